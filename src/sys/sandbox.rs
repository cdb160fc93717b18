//! What is left to somebody who takes this process over: the folders it serves and the calls that serving makes.
//!
//! Files and TCP ports are held by landlock, from before the first thread; system calls by seccomp, once everything is
//! open, on all threads. io_uring, which would make calls past seccomp, is held by [`super::uring`] to the one operation each
//! ring is for.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::SysError;

/// What may still be opened.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Read, with everything below.
    pub read: Vec<PathBuf>,
    /// Read, written, made and removed, with everything below.
    pub write: Vec<PathBuf>,
    /// TCP ports that may be listened on; with 0 among them any. Nothing may be connected to.
    pub tcp_ports: Vec<u16>,
}

/// How far the kernel goes along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// All of it.
    Whole,
    /// What this kernel's landlock knows of it.
    Partly,
    /// This kernel has no landlock, or it is switched off.
    Not,
}

/// Holds this thread and those it makes to `files`. A path that does not exist is left out: what appears there later
/// stays out of reach.
pub fn hold_files(files: &Files) -> Result<Held, SysError> {
    let fail = |error: &dyn std::fmt::Display| {
        SysError::new("hold the process to its folders", io::Error::other(error.to_string()))
    };
    // The newest this program knows; an older kernel holds to what it knows.
    let abi = ABI::V6;
    let all = AccessFs::from_all(abi);
    // Neither is any file of ours a program.
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    // Every core listens on the port that the first one was given, and which that is nobody knows yet.
    let any_port = files.tcp_ports.contains(&0);
    let net =
        if any_port { AccessNet::ConnectTcp.into() } else { AccessNet::BindTcp | AccessNet::ConnectTcp };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|rules| rules.handle_access(net))
        .and_then(|rules| rules.scope(Scope::Signal))
        .and_then(|rules| rules.create())
        .map_err(|error| fail(&error))?;
    for (paths, access) in [(&files.read, read), (&files.write, write)] {
        for path in paths {
            // Not there, or not ours to see: nothing to allow.
            let Ok(opened) = PathFd::new(path) else { continue };
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(abi) };
            rules = rules.add_rule(PathBeneath::new(opened, access)).map_err(|error| fail(&error))?;
        }
    }
    for port in files.tcp_ports.iter().filter(|_| !any_port) {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp)).map_err(|error| fail(&error))?;
    }
    let status = rules.restrict_self().map_err(|error| fail(&error))?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Held::Whole,
        RulesetStatus::PartiallyEnforced => Held::Partly,
        RulesetStatus::NotEnforced => Held::Not,
    })
}

/// Where the links of a folder lead, one step: what a rule for the folder alone would not reach.
pub fn link_targets(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    links.filter_map(|entry| std::fs::canonicalize(entry.path()).ok()).filter(|path| path.is_file()).collect()
}

/// Calls that serving makes, whatever their arguments. What is not here or in [`bounded_calls`] fails with EPERM.
const CALLS: &[libc::c_long] = &[
    // Bytes.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    // Files: landlock says which.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_umask,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads and time.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    // Capabilities can only become fewer.
    libc::SYS_capget,
    libc::SYS_capset,
    // Waiting.
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Sockets: which may be made is in `bounded_calls`.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_ioctl,
    libc::SYS_io_uring_enter,
];

/// Older forms of the same calls, which libraries still make on this processor.
#[cfg(target_arch = "x86_64")]
const OLDER_CALLS: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_CALLS: &[libc::c_long] = &[];

/// Calls allowed with some arguments only.
fn bounded_calls(packet_sockets: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let condition =
        |index, operator, value: u64| SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
    let is = |index, value: libc::c_int| condition(index, SeccompCmpOp::Eq, value as u64);
    let masked = |index, mask: libc::c_int, value: libc::c_int| {
        condition(index, SeccompCmpOp::MaskedEq(mask as u64), value as u64)
    };
    let mut calls = BTreeMap::new();
    // A socket's kind, without the flags in its upper bits.
    const KIND: libc::c_int = 0xf;
    let mut sockets = vec![SeccompRule::new(vec![is(0, libc::AF_NETLINK)?])?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        // No stream: connections come in. One that goes out needs its own socket.
        sockets.push(SeccompRule::new(vec![is(0, family)?, masked(1, KIND, libc::SOCK_DGRAM)?])?);
    }
    if packet_sockets {
        sockets.push(SeccompRule::new(vec![is(0, libc::AF_PACKET)?])?);
    }
    calls.insert(libc::SYS_socket, sockets);
    // Threads, and no processes.
    calls.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?])?],
    );
    // Memory never becomes a program.
    calls.insert(libc::SYS_mprotect, vec![SeccompRule::new(vec![masked(2, libc::PROT_EXEC, 0)?])?]);
    let mut named = Vec::new();
    for option in
        [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_CAPBSET_READ, libc::PR_CAP_AMBIENT, 0x5356_4d41]
    {
        // The last is PR_SET_VMA: the allocator names its memory.
        named.push(SeccompRule::new(vec![is(0, option)?])?);
    }
    calls.insert(libc::SYS_prctl, named);
    // Limits of this process are looked at, and nobody's.
    calls.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![is(0, 0)?])?]);
    Ok(calls)
}

/// Holds every thread of the process to the calls that serving makes. With `packet_sockets` new ones may still be opened,
/// as an interface that is waited for needs.
pub fn hold_calls(packet_sockets: bool) -> Result<(), SysError> {
    let fail = |error: &dyn std::fmt::Display| {
        SysError::new("hold the process to its system calls", io::Error::other(error.to_string()))
    };
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(|error| fail(&error))?;
    let build = |rules, otherwise, matched| -> Result<BpfProgram, SysError> {
        SeccompFilter::new(rules, otherwise, matched, arch)
            .and_then(BpfProgram::try_from)
            .map_err(|error| fail(&error))
    };
    let mut allowed = bounded_calls(packet_sockets).map_err(|error| fail(&error))?;
    allowed.extend(CALLS.iter().chain(OLDER_CALLS).map(|call| (*call, Vec::new())));
    // Its arguments are in memory, where no filter looks: the C library then makes threads by the older call.
    let older = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let programs = [
        build(older, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
        build(allowed, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?,
    ];
    for program in &programs {
        seccompiler::apply_filter_all_threads(program).map_err(|error| fail(&error))?;
    }
    Ok(())
}

/// For tests that hold themselves.
#[cfg(test)]
pub(crate) mod apart {
    use super::*;
    use std::process::Command;

    /// Runs the test of this path again in a process of its own, where it may hold itself.
    pub(crate) fn alone(path: &str, child: fn()) {
        const INSIDE: &str = "BOOTSTORM_TEST_SANDBOX";
        if std::env::var_os(INSIDE).is_some() {
            return child();
        }
        let program = std::env::current_exe().expect("a test is a program");
        let run = Command::new(program).args(["--exact", path, "--nocapture"]).env(INSIDE, "1").output();
        let run = run.expect("it starts");
        let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && text.contains("1 passed"), "{text}");
    }

    /// One call fails from now on, in every thread, as a service manager's filter has it.
    pub(crate) fn refuse(call: libc::c_long) {
        let arch: TargetArch = std::env::consts::ARCH.try_into().expect("known");
        let rules = BTreeMap::from([(call, Vec::new())]);
        let otherwise = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, otherwise, arch).expect("a filter");
        let program = BpfProgram::try_from(filter).expect("a program");
        seccompiler::apply_filter_all_threads(&program).expect("this kernel has seccomp");
    }
}

#[cfg(test)]
mod tests {
    use super::apart::alone as alone_at;
    use super::*;
    use std::process::Command;

    fn alone(name: &str, child: fn()) {
        alone_at(&format!("sys::sandbox::tests::{name}"), child);
    }

    fn refused<T: std::fmt::Debug>(result: io::Result<T>) {
        let kind = result.expect_err("this must not be possible").kind();
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn files_outside_cannot_be_opened_and_files_inside_can() {
        alone("files_outside_cannot_be_opened_and_files_inside_can", || {
            let folder = std::env::temp_dir().join(format!("bootstorm-sandbox-{}", std::process::id()));
            let (inside, images) = (folder.join("state"), folder.join("images"));
            std::fs::create_dir_all(&inside).expect("made");
            std::fs::create_dir_all(&images).expect("made");
            std::fs::write(images.join("boot.wim"), b"x").expect("written");
            let files =
                Files { read: vec![images.clone()], write: vec![inside.clone()], tcp_ports: vec![47_113] };
            assert_ne!(hold_files(&files).expect("this kernel has landlock"), Held::Not);
            std::fs::write(inside.join("new"), b"x").expect("the state folder can be written");
            std::fs::read(images.join("boot.wim")).expect("images can be read");
            refused(std::fs::write(images.join("boot.wim"), b"y"));
            refused(std::fs::read("/etc/hostname"));
            refused(std::fs::write(folder.join("beside"), b"x"));
            let listen = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port));
            listen(47_113).expect("its own port");
            refused(listen(47_114));
            refused(std::net::TcpStream::connect("127.0.0.1:9"));
            // Threads made from here on are held too.
            std::thread::spawn(|| refused(std::fs::read("/etc/hostname"))).join().expect("no panic");
            std::fs::remove_dir_all(&inside).expect_err("its own folder is not its to remove");
        });
    }

    #[test]
    fn no_program_is_run_no_raw_socket_made_and_no_ring_set_up() {
        alone("no_program_is_run_no_raw_socket_made_and_no_ring_set_up", || {
            let (tell, told) = std::sync::mpsc::channel::<()>();
            // A thread that is there already is held too.
            let before = std::thread::spawn(move || {
                told.recv().expect("told");
                refused(super::super::uring::SendRing::new(8));
            });
            hold_calls(false).expect("this kernel has seccomp");
            refused(Command::new("/bin/true").status());
            refused(super::super::packet::PacketSocket::open("lo", 1, &[]).map_err(|error| error.source));
            refused(super::super::uring::SendRing::new(8));
            refused(std::os::unix::net::UnixStream::connect("/run/dbus/system_bus_socket"));
            refused(std::net::TcpStream::connect("127.0.0.1:9"));
            tell.send(()).expect("it waits");
            before.join().expect("no panic");
            // What serving does goes on.
            std::os::unix::net::UnixStream::pair().expect("pairs of its own");
            std::net::UdpSocket::bind("127.0.0.1:0").expect("datagrams");
            std::thread::spawn(|| ()).join().expect("threads");
            std::fs::metadata("/").expect("files");
        });
    }

    #[test]
    fn an_interface_that_is_waited_for_may_still_get_its_socket() {
        alone("an_interface_that_is_waited_for_may_still_get_its_socket", || {
            hold_calls(true).expect("this kernel has seccomp");
            let take_all = [super::super::packet::BpfInstruction { code: 6, jt: 0, jf: 0, k: u32::MAX }];
            super::super::packet::PacketSocket::open("lo", 1, &take_all).expect("as root");
            refused(Command::new("/bin/true").status());
        });
    }
}

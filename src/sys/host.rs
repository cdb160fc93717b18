//! What the host gives a process: limits, the clock's state, room on a file system, capabilities, whose a port is.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

/// A limit of this process, soft and hard; `u64::MAX` is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// In force.
    pub soft: u64,
    /// The most that may be asked for.
    pub hard: u64,
}

/// Open files (RLIMIT_NOFILE).
pub fn open_files() -> Limit {
    limit(nix::sys::resource::Resource::RLIMIT_NOFILE)
}

/// Locked memory in bytes (RLIMIT_MEMLOCK): packet rings and io_uring count against it for ordinary users.
pub fn locked_memory() -> Limit {
    limit(nix::sys::resource::Resource::RLIMIT_MEMLOCK)
}

fn limit(what: nix::sys::resource::Resource) -> Limit {
    let (soft, hard) = nix::sys::resource::getrlimit(what).unwrap_or((u64::MAX, u64::MAX));
    Limit { soft, hard }
}

/// Bytes of memory there are for this process and what it reads: all of the host's, or what its control group (v2) may have;
/// `u64::MAX` where nothing is said. Found out once: the sandbox does not show the groups.
pub fn memory() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    static FOUND: OnceLock<u64> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let told = |var| sysconf(var).ok().flatten().and_then(|value| u64::try_from(value).ok());
        let host = told(SysconfVar::_PHYS_PAGES).zip(told(SysconfVar::PAGE_SIZE));
        let host = host.map_or(u64::MAX, |(pages, len)| pages.saturating_mul(len));
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        host.min(group_limit(Path::new("/sys/fs/cgroup"), &own))
    })
}

/// The least `memory.max` from a process' group (as `/proc/self/cgroup` names it) up to the root of the hierarchy.
fn group_limit(root: &Path, own: &str) -> u64 {
    let Some(group) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return u64::MAX };
    let limits = Path::new(group).ancestors().filter_map(|group| {
        let text = fs::read_to_string(root.join(group).join("memory.max")).ok()?;
        text.trim().parse().ok()
    });
    limits.min().unwrap_or(u64::MAX)
}

/// Room on a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Bytes an ordinary user may still write.
    pub bytes: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Files that may still be made.
    pub files: u64,
    /// Files in all; 0 where the file system does not count them.
    pub files_total: u64,
    /// Nobody writes there.
    pub read_only: bool,
}

/// Room where `path` is.
///
/// # Errors
/// When the path is not there.
pub fn room(path: &Path) -> io::Result<Room> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statvfs` is plain old data; all-zero is valid.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads a terminated string and writes one `statvfs`; both live across the call.
    super::check(unsafe { libc::statvfs(path.as_ptr(), &raw mut found) })?;
    let block = found.f_frsize;
    Ok(Room {
        bytes: found.f_bavail * block,
        bytes_total: found.f_blocks * block,
        files: found.f_favail,
        files_total: found.f_files,
        read_only: found.f_flag & libc::ST_RDONLY != 0,
    })
}

/// Whether something keeps the clock right; `None` where the kernel does not say.
pub fn clock_is_kept() -> Option<bool> {
    // SAFETY: `timex` is plain old data; all-zero asks without changing anything.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads and writes one `timex`, which lives across the call.
    let done = unsafe { libc::adjtimex(&raw mut state) };
    (done >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}

/// The capabilities in force, as bits (linux/capability.h); `None` without /proc.
pub fn capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

/// CAP_NET_BIND_SERVICE.
pub const BIND_SERVICE: u32 = 10;
/// CAP_NET_ADMIN.
pub const NET_ADMIN: u32 = 12;
/// CAP_NET_RAW.
pub const NET_RAW: u32 = 13;

/// A process that has a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// Its name (comm).
    pub name: String,
}

/// A port that is listened on in this network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listening {
    /// True for TCP.
    pub tcp: bool,
    /// Local address; unspecified is every one.
    pub addr: std::net::Ipv4Addr,
    /// Local port.
    pub port: u16,
    inode: u64,
}

/// Every TCP port listened on and every UDP port bound, IPv4, and IPv6 where it takes IPv4 too.
pub fn listening() -> Vec<Listening> {
    let mut found = Vec::new();
    // `/proc/self/net` is this thread's namespace, whatever /proc was mounted in.
    for (name, tcp) in [("tcp", true), ("udp", false), ("tcp6", true), ("udp6", false)] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| listening_of(line, tcp)));
    }
    found
}

/// One line of /proc/net/tcp or udp: `sl local remote st tx:rx tr:when retr uid timeout inode`.
fn listening_of(line: &str, tcp: bool) -> Option<Listening> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (addr, port) = words.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // TCP_LISTEN.
    if tcp && *words.get(3)? != "0A" {
        return None;
    }
    let addr = match addr.len() {
        8 => std::net::Ipv4Addr::from(u32::from_str_radix(addr, 16).ok()?.to_ne_bytes()),
        // An IPv6 socket on any address usually takes IPv4 too; on an address of its own it does not.
        _ if addr.bytes().all(|byte| byte == b'0') => std::net::Ipv4Addr::UNSPECIFIED,
        _ => return None,
    };
    Some(Listening { tcp, addr, port, inode: words.get(9)?.parse().ok()? })
}

/// Whose these ports are, as far as this user may see: by the sockets in every process' table of files.
pub fn owners(ports: &[Listening]) -> HashMap<(bool, u16), Owner> {
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let links = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        for link in links.filter_map(|fd| fs::read_link(fd.path()).ok()) {
            let Some(inode) = link
                .to_str()
                .and_then(|text| text.strip_prefix("socket:["))
                .and_then(|text| text.strip_suffix(']'))
                .and_then(|text| text.parse::<u64>().ok())
            else {
                continue;
            };
            for port in ports.iter().filter(|port| port.inode == inode) {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found
                    .entry((port.tcp, port.port))
                    .or_insert_with(|| Owner { pid, name: name.trim().to_owned() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_is_listed_with_this_process_as_its_owner() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let all = listening();
        let ours: Vec<_> = all.iter().filter(|l| l.port == port && l.tcp).copied().collect();
        assert_eq!(ours.len(), 1);
        let owner = &owners(&ours)[&(true, port)];
        assert_eq!(owner.pid, std::process::id());
    }

    #[test]
    fn lines_of_proc_are_read() {
        let line = "  12: 0100007F:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2";
        let found = listening_of(line, false).unwrap();
        assert_eq!((found.port, found.inode), (69, 4242));
        let connected = "   1: 0100007F:1F90 0100007F:9C40 01 0:0 00:0 0 0 0 99 1";
        assert_eq!(listening_of(connected, true), None);
        assert_eq!(listening_of("garbage", true), None);
    }

    #[test]
    fn memory_is_what_the_narrowest_of_its_groups_may_have() {
        let root = std::env::temp_dir().join(format!("bootstorm-groups-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/memory.max"), "4096\n").unwrap();
        fs::write(root.join("a/b/memory.max"), "max\n").unwrap();
        assert_eq!(group_limit(&root, "1:cpu:/x\n0::/a/b\n"), 4096);
        fs::write(root.join("a/b/memory.max"), "512\n").unwrap();
        assert_eq!(group_limit(&root, "0::/a/b\n"), 512);
        assert_eq!([group_limit(&root, "0::/\n"), group_limit(&root, "")], [u64::MAX; 2]);
        fs::remove_dir_all(&root).unwrap();
        assert!(memory() > 1 << 20, "{} bytes", memory());
    }

    #[test]
    fn a_file_system_has_room_and_the_limits_are_numbers() {
        let room = room(Path::new("/")).unwrap();
        assert!(room.bytes_total > 0 && room.bytes <= room.bytes_total);
        assert!(open_files().soft > 0);
        assert!(locked_memory().soft > 0);
    }
}

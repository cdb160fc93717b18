//! Syscalls, and the only home of `unsafe`. Nothing here knows a protocol.
//!
//! Every error leaves this module with operation, object and cause: "bind udp 0.0.0.0:67: Permission denied".
#![allow(unsafe_code, reason = "this is where it lives; each block names its condition and who upholds it")]

pub mod acting;
pub mod affinity;
pub mod bpf;
pub mod disk;
pub mod firewall;
pub mod frames;
pub mod host;
pub mod icmp;
pub mod inject;
pub mod interfaces;
pub mod links;
pub mod memory;
pub mod mmap;
pub mod packet;
pub mod pages;
pub mod peer;
pub mod privileges;
pub mod ring;
pub mod runs;
pub mod sandbox;
pub mod tap;
pub mod tcp;
pub mod timer;
pub mod udp;
pub mod uring;

use std::fmt;
use std::io;

/// A failed system call: what was tried on what, and why it failed.
#[derive(Debug)]
pub struct SysError {
    /// Operation and object, e.g. `bind udp 0.0.0.0:67`.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl SysError {
    /// Names a failed call.
    pub fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source }
    }

    /// The likely cause and the command that mends it, where there is one.
    pub fn advice(&self) -> Option<String> {
        match self.source.raw_os_error()? {
            libc::EACCES | libc::EPERM if self.what.starts_with("open packet socket") => Some(
                "raw sockets need CAP_NET_RAW: run as root, or `setcap cap_net_raw,cap_net_bind_service+ep \
                 $(command -v bootstorm)`"
                    .into(),
            ),
            libc::EACCES | libc::EPERM | libc::EINVAL | libc::ENOSYS if self.what.contains(" BPF ") => Some(
                "BPF programs on an interface need CAP_BPF and CAP_NET_ADMIN (run as root), and Linux 6.6 with \
                 CONFIG_BPF_SYSCALL"
                    .into(),
            ),
            libc::EACCES | libc::EPERM => Some(
                "ports below 1024 need CAP_NET_BIND_SERVICE: run as root, `setcap \
                 cap_net_raw,cap_net_bind_service+ep $(command -v bootstorm)`, or configure a port above 1023"
                    .into(),
            ),
            libc::EADDRINUSE => {
                let protocol = if self.what.contains(" tcp ") { "t" } else { "u" };
                let port = self.what.rsplit(':').next().unwrap_or_default();
                Some(format!(
                    "another program has this port: `ss -{protocol}lnp 'sport = :{port}'` shows which"
                ))
            }
            libc::EADDRNOTAVAIL => {
                Some("no interface has this address: `ip -br addr` shows what there is".into())
            }
            _ => None,
        }
    }

    /// True when a privilege is missing.
    pub fn is_permission(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = match self.source.raw_os_error() {
            Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_owned(),
            None => self.source.to_string(),
        };
        write!(f, "{}: {}", self.what, cause)
    }
}

impl std::error::Error for SysError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Opens a file for reading, refusing a link in its last step and never waiting for a pipe's far end.
pub fn open_plain(path: &std::path::Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    std::fs::File::options().read(true).custom_flags(flags).open(path)
}

/// The same for reading and writing.
pub fn open_plain_to_write(path: &std::path::Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    std::fs::File::options().read(true).write(true).custom_flags(flags).open(path)
}

/// Turns a libc return value into a result.
fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Turns a libc length-or-minus-one into a result.
fn check_len(value: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}

/// Sets an integer socket option.
fn set_int(fd: libc::c_int, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<c_int>()` bytes from `value`, which lives across the call.
    check(unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

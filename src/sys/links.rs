//! A word from the kernel when an interface comes, goes, or changes its state or address (rtnetlink).

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{SysError, check, check_len};

/// A socket that becomes readable when something about the interfaces has changed. What, is not read: whoever cares lists
/// the interfaces anew.
#[derive(Debug)]
pub struct LinkWatch {
    fd: OwnedFd,
}

impl LinkWatch {
    /// Needs no privilege.
    ///
    /// # Errors
    /// Where a sandbox forbids netlink.
    pub fn open() -> Result<Self, SysError> {
        let fail = |e| SysError::new("watch the interfaces", e);
        // SAFETY: no pointers.
        let raw = check(unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                libc::NETLINK_ROUTE,
            )
        })
        .map_err(fail)?;
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: `sockaddr_nl` is plain old data; all-zero is valid.
        let mut addr: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        addr.nl_family = libc::AF_NETLINK as u16;
        addr.nl_groups = (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR) as u32;
        // SAFETY: the kernel reads `size_of::<sockaddr_nl>()` bytes from `addr`, which lives across the call.
        check(unsafe {
            libc::bind(raw, (&raw const addr).cast(), size_of::<libc::sockaddr_nl>() as libc::socklen_t)
        })
        .map_err(fail)?;
        Ok(Self { fd })
    }

    /// Takes everything that waits; true if there was something. An overrun counts as something.
    pub fn drain(&self) -> bool {
        let mut buffer = [0u8; 4096];
        let mut heard = false;
        loop {
            // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`, borrowed for the call.
            let got = check_len(unsafe {
                libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
            });
            match got {
                Ok(_) => heard = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                Err(_) => return heard,
            }
        }
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_without_news_is_empty() {
        let watch = LinkWatch::open().unwrap();
        // Other tests make interfaces meanwhile; twice in a row is enough to see that it ends.
        watch.drain();
        watch.drain();
    }
}

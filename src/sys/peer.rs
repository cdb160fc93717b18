//! Who is at the other end of a Unix socket, beyond what the standard library asks.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Groups the kernel lets a process have (NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;

/// The supplementary groups the peer had when it connected, as the kernel noted them then: no name and no file is looked
/// up.
///
/// # Errors
/// The socket has no peer with credentials.
pub fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let fd = socket.as_fd().as_raw_fd();
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut len = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `groups`, which has that many, and one length into `len`;
        // both live across the call.
        let done = super::check(unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        });
        let count = len as usize / size_of::<libc::gid_t>();
        match done {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // There are more, and this is how many.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                if count > GROUPS_MAX {
                    return Err(error);
                }
                groups.resize(count, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peers_groups_are_its_own() {
        let (here, _there) = UnixStream::pair().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let mut own: Vec<u32> = line.split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        let mut told = groups(&here).unwrap();
        own.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, own);
        groups(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).expect_err("nobody is there");
    }
}

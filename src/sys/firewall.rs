//! Whether the host filters packets: what a sender of raw frames would bypass.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{check, check_len};

/// What is known of the host's packet filter. IPsec policies count as one: what must come or leave encrypted they keep from
/// passing in clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firewall {
    /// No table of nftables or iptables and no IPsec policy in this network namespace.
    None,
    /// There are some; what they do is not looked into.
    Some,
    /// This process may not ask (CAP_NET_ADMIN).
    Unknown,
}

// linux/netfilter/nfnetlink.h, nf_tables.h.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = 1;
// linux/xfrm.h.
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Looks for tables of nftables and IPsec policies (by netlink) and for tables of the older iptables (by /proc).
pub fn look() -> Firewall {
    // The file exists only where the old modules are loaded, and lists the tables of this namespace.
    let old = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if !old.trim().is_empty() {
        return Firewall::Some;
    }
    let asked = [
        has_any(libc::NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE),
        has_any(libc::NETLINK_XFRM, XFRM_MSG_GETPOLICY),
    ];
    let mut found = Firewall::None;
    for answer in asked {
        match answer {
            Ok(true) => return Firewall::Some,
            Ok(false) => {}
            Err(error) => match error.raw_os_error() {
                // A kernel without one of the two has none of it.
                Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP) => {}
                _ => found = Firewall::Unknown,
            },
        }
    }
    found
}

/// True when the kernel lists at least one of what this message of this netlink family asks for.
fn has_any(family: libc::c_int, message: u16) -> io::Result<bool> {
    // SAFETY: no pointers.
    let raw = check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family) })?;
    // SAFETY: `raw` is a fresh descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let patience = libc::timeval { tv_sec: 1, tv_usec: 0 };
    // SAFETY: the kernel reads one timeval, which lives across the call.
    check(unsafe {
        libc::setsockopt(
            raw,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    })?;
    // struct nlmsghdr (16 bytes) and struct nfgenmsg (4): any family. To list policies no more is read.
    let mut request = [0u8; 20];
    request[0..4].copy_from_slice(&20u32.to_ne_bytes());
    request[4..6].copy_from_slice(&message.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    // SAFETY: the kernel reads `request.len()` bytes from it during the call.
    check_len(unsafe { libc::send(fd.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) })?;
    let mut answer = [0u8; 8192];
    // SAFETY: the kernel writes at most `answer.len()` bytes into it, borrowed for the call.
    let len = check_len(unsafe { libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) })?;
    let Some(head) = answer[..len].first_chunk::<20>() else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    match u16::from_ne_bytes([head[4], head[5]]) {
        NLMSG_DONE => Ok(false),
        NLMSG_ERROR => {
            let errno = i32::from_ne_bytes([head[16], head[17], head[18], head[19]]);
            Err(io::Error::from_raw_os_error(-errno))
        }
        _ => Ok(true),
    }
}

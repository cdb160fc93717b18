//! A raw ICMP socket that hears nothing but echo replies.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::{SysError, set_int};

/// linux/icmp.h.
const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;
const ICMP_ECHO_REPLY: u32 = 0;

/// Sends ICMP messages and hears echo replies, each with its IPv4 header.
#[derive(Debug)]
pub struct EchoSocket {
    /// The standard library's calls for datagrams are the right ones for this socket too.
    socket: UdpSocket,
}

impl EchoSocket {
    /// Opens one, non-blocking.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open() -> Result<Self, SysError> {
        let fail = |e| SysError::new("open packet socket for ICMP", e);
        let kind = Type::RAW.nonblocking().cloexec();
        let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::ICMPV4)).map_err(fail)?;
        set_int(socket.as_raw_fd(), SOL_RAW, ICMP_FILTER, !(1 << ICMP_ECHO_REPLY)).map_err(fail)?;
        Ok(Self { socket: socket.into() })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// What the kernel says: no route, a packet filter.
    pub fn send(&self, to: Ipv4Addr, message: &[u8]) -> io::Result<()> {
        self.socket.send_to(message, SocketAddrV4::new(to, 0)).map(drop)
    }

    /// One packet into `buffer`, cut to its length; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// As above, and what earlier messages have met on their way.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buffer)
    }
}

impl AsRawFd for EchoSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

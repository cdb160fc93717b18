//! AF_PACKET sockets: whole Ethernet frames in and out of one interface, filtered in the kernel.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{SysError, check, check_len};

/// One instruction of a classic BPF program (linux/filter.h `struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u16,
    /// Jump if true, in instructions.
    pub jt: u8,
    /// Jump if false, in instructions.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A raw socket on one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens a non-blocking raw socket for IPv4 frames on `index` that receives what `filter` accepts.
    /// The filter is attached before the socket is bound, so not one stray frame is ever queued.
    pub fn open(name: &str, index: u32, filter: &[BpfInstruction]) -> Result<Self, SysError> {
        Self::open_for(name, index, filter, libc::ETH_P_IP)
    }

    /// The same for ARP frames.
    ///
    /// # Errors
    /// As [`PacketSocket::open`].
    pub fn open_arp(name: &str, index: u32, filter: &[BpfInstruction]) -> Result<Self, SysError> {
        Self::open_for(name, index, filter, libc::ETH_P_ARP)
    }

    fn open_for(
        name: &str,
        index: u32,
        filter: &[BpfInstruction],
        protocol: libc::c_int,
    ) -> Result<Self, SysError> {
        let what = || format!("open packet socket on {name}");
        // SAFETY: no pointers. Protocol 0 keeps the socket silent until `bind` below names one.
        let raw = check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        })
        .map_err(|e| SysError::new(what(), e))?;
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        attach_filter(raw, filter).map_err(|e| SysError::new(format!("{}: attach filter", what()), e))?;
        // SAFETY: `sockaddr_ll` is plain old data; all-zero is valid.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = (protocol as u16).to_be();
        addr.sll_ifindex = index as i32;
        // SAFETY: the kernel reads `size_of::<sockaddr_ll>()` bytes from `addr`, which lives across the call.
        check(unsafe {
            libc::bind(raw, (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        })
        .map_err(|e| SysError::new(what(), e))?;
        // A storm of DISCOVERs must fit while the core is busy elsewhere; a refusal only means the default size.
        let _ = super::set_int(raw, libc::SOL_SOCKET, libc::SO_RCVBUF, 4 << 20);
        Ok(Self { fd })
    }

    /// Opens a non-blocking raw socket that hears every frame of the link that `filter` accepts, whoever it is addressed
    /// to, and what this host itself sends there: for machines with hardware addresses of their own. What is sent by
    /// this socket it does not hear, nor frames that leave past the queueing layer.
    ///
    /// # Errors
    /// As [`PacketSocket::open`].
    pub fn open_all(name: &str, index: u32, filter: &[BpfInstruction]) -> Result<Self, SysError> {
        let fail = |e| SysError::new(format!("open packet socket on {name}"), e);
        let socket = Self::open(name, index, filter)?;
        let raw = socket.fd.as_raw_fd();
        let member = libc::packet_mreq {
            mr_ifindex: index as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        // SAFETY: the kernel reads `size_of::<packet_mreq>()` bytes from `member`, which lives across the call.
        check(unsafe {
            libc::setsockopt(
                raw,
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const member).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        })
        .map_err(fail)?;
        // SAFETY: `sockaddr_ll` is plain old data; all-zero is valid.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        addr.sll_ifindex = index as i32;
        // SAFETY: the kernel reads `size_of::<sockaddr_ll>()` bytes from `addr`, which lives across the call.
        check(unsafe {
            libc::bind(raw, (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        })
        .map_err(fail)?;
        Ok(socket)
    }

    /// Waits until there is a frame, at most so long.
    ///
    /// # Errors
    /// What `ppoll` says.
    pub fn wait(&self, time: std::time::Duration) -> io::Result<()> {
        super::ring::wait_readable(self.fd.as_raw_fd(), time)
    }

    /// One frame into `buffer`; `WouldBlock` when there is none.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`, borrowed for the call.
        check_len(unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
    }

    /// Sends one whole frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel reads `frame.len()` bytes from `frame`, borrowed for the call.
        check_len(unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) })
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Attaches a classic BPF program to any socket.
pub fn attach_filter(fd: RawFd, filter: &[BpfInstruction]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr() as *mut libc::sock_filter };
    // SAFETY: `BpfInstruction` has the layout of `sock_filter` (repr(C), same fields); the kernel copies
    // `program.len` of them during the call and keeps no pointer.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

const _: () = assert!(size_of::<BpfInstruction>() == size_of::<libc::sock_filter>());

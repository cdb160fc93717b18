//! Receiving datagrams whose payload nobody reads: the kernel hands over their first bytes and their length, and runs
//! of equal datagrams as one (UDP_GRO).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use super::udp::{BATCH, UdpSocket};
use super::{check, set_int};

/// linux/udp.h.
const UDP_GRO: libc::c_int = 104;
/// IP_PKTINFO and UDP_GRO.
const CONTROL_LEN: usize = 64;

/// One datagram, or several of the same length from the same sender, the last perhaps shorter.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The first bytes.
    pub head: &'a [u8],
    /// Bytes in all.
    pub len: usize,
    /// Bytes of each datagram but the last; `len` when there is only one.
    pub segment: usize,
    /// Sender.
    pub from: SocketAddrV4,
    /// The local address it came to.
    pub to: Ipv4Addr,
}

/// Lets the kernel hand over runs of datagrams as one.
///
/// # Errors
/// ENOPROTOOPT before Linux 5.0: every datagram comes alone then.
pub fn join_runs(socket: &UdpSocket) -> io::Result<()> {
    set_int(socket.as_raw_fd(), libc::SOL_UDP, UDP_GRO, 1)
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// Buffers for receiving up to [`BATCH`] runs with one call.
#[derive(Debug)]
pub struct RunBatch {
    head_len: usize,
    heads: Box<[u8]>,
    names: Box<[libc::sockaddr_in]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    len: usize,
}

impl RunBatch {
    /// Allocates buffers that keep the first `head_len` bytes of each run.
    pub fn new(head_len: usize) -> Self {
        // SAFETY: sockaddr_in, iovec and mmsghdr are plain old data; all-zero is valid, and `receive` fills them
        // before the kernel sees them.
        let (name, iovec, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            head_len,
            heads: vec![0; BATCH * head_len].into_boxed_slice(),
            names: vec![name; BATCH].into_boxed_slice(),
            controls: vec![Control([0; CONTROL_LEN]); BATCH].into_boxed_slice(),
            iovecs: vec![iovec; BATCH].into_boxed_slice(),
            headers: vec![header; BATCH].into_boxed_slice(),
            len: 0,
        }
    }

    /// Takes what waits, at most [`BATCH`] runs; 0 when there is nothing. An error a former datagram brought back
    /// (port unreachable) is passed over.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.len = 0;
        for (index, head) in self.heads.chunks_exact_mut(self.head_len).enumerate() {
            self.iovecs[index] = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = &raw mut self.iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = CONTROL_LEN;
            header.msg_flags = 0;
        }
        // SAFETY: every header points at this batch's own buffers, set just above with their true lengths; they are
        // borrowed mutably for the call and the kernel keeps no pointer after it.
        let taken = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                std::ptr::null_mut(),
            )
        });
        match taken {
            Ok(taken) => {
                self.len = taken as usize;
                Ok(self.len)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// The `index`-th run of the last [`RunBatch::receive`].
    pub fn run(&self, index: usize) -> Option<Run<'_>> {
        if index >= self.len {
            return None;
        }
        let header = &self.headers[index];
        let len = header.msg_len as usize;
        let name = &self.names[index];
        let start = index * self.head_len;
        let mut run = Run {
            head: &self.heads[start..start + len.min(self.head_len)],
            len,
            segment: len,
            from: SocketAddrV4::new(
                Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)),
                u16::from_be(name.sin_port),
            ),
            to: Ipv4Addr::UNSPECIFIED,
        };
        // SAFETY: the kernel filled msg_control and msg_controllen in `receive`; they still point at our buffer.
        let mut message = unsafe { libc::CMSG_FIRSTHDR(&header.msg_hdr) };
        while !message.is_null() {
            // SAFETY: FIRSTHDR/NXTHDR return only headers that lie wholly inside the control buffer.
            let control = unsafe { &*message };
            match (control.cmsg_level, control.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // SAFETY: an IP_PKTINFO message carries one in_pktinfo; unaligned reads ask nothing of it.
                    let info =
                        unsafe { libc::CMSG_DATA(message).cast::<libc::in_pktinfo>().read_unaligned() };
                    run.to = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                }
                (libc::SOL_UDP, UDP_GRO) => {
                    // SAFETY: a UDP_GRO message carries one int (linux net/ipv4/udp.c udp_cmsg_recv).
                    let segment = unsafe { libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned() };
                    run.segment = usize::try_from(segment).ok().filter(|s| *s > 0).unwrap_or(len);
                }
                _ => {}
            }
            // SAFETY: as above.
            message = unsafe { libc::CMSG_NXTHDR(&header.msg_hdr, message) };
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ring::wait_readable;
    use crate::sys::udp::UdpOptions;
    use std::time::Duration;

    fn pair() -> (UdpSocket, UdpSocket) {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let bind = || UdpSocket::bind(any, &UdpOptions::default()).unwrap();
        (bind(), bind())
    }

    #[test]
    fn a_long_datagram_shows_its_head_and_its_length() {
        let (a, b) = pair();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&[9; 3000], b.local()).unwrap();
        wait_readable(b.as_raw_fd(), Duration::from_secs(2)).unwrap();
        let mut batch = RunBatch::new(64);
        assert_eq!(batch.receive(&b).unwrap(), 1);
        let run = batch.run(0).unwrap();
        assert_eq!((run.head, run.len, run.segment), ([9; 64].as_slice(), 3000, 3000));
        assert_eq!(run.to, Ipv4Addr::LOCALHOST);
        assert!(batch.run(1).is_none());
        assert_eq!(batch.receive(&a).unwrap(), 0);
    }

    #[test]
    fn a_segmented_send_comes_as_one_run() {
        let (_, b) = pair();
        join_runs(&b).unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        set_int(sender.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1000).unwrap();
        sender.send_to(&[5; 3500], b.local()).unwrap();
        let mut batch = RunBatch::new(64);
        let (mut bytes, mut runs) = (0, 0);
        while bytes < 3500 {
            wait_readable(b.as_raw_fd(), Duration::from_secs(2)).unwrap();
            let count = batch.receive(&b).unwrap();
            assert!(count > 0, "nothing came in 2 s");
            for index in 0..count {
                let run = batch.run(index).unwrap();
                assert_eq!(run.segment, 1000);
                bytes += run.len;
                runs += 1;
            }
        }
        assert_eq!((bytes, runs), (3500, 1));
    }
}

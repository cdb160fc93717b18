//! UDP sockets that say which address a datagram came to, and send many datagrams, or one long run of equal
//! segments, in a single call. Payload goes from a file's mapping to the kernel without a copy in user space.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::mmap::Mapping;
use super::packet::{BpfInstruction, attach_filter};
use super::{SysError, check, set_int};

/// Datagrams taken or sent in one call.
pub const BATCH: usize = 64;
/// Longest datagram received; requests, acknowledgements and DHCP messages are far shorter.
pub const RECV_LEN: usize = 2048;
/// Segments in one UDP_SEGMENT send (linux/udp.h UDP_MAX_SEGMENTS was 64 until 6.7; the smaller one fits all).
pub const SEGMENTS_MAX: usize = 64;
/// Payload bytes in one send: the IPv4 datagram limit, which also bounds a segmented send before it is cut.
pub const SEND_LEN_MAX: usize = 65_507;
/// Room for one message's control data: IP_PKTINFO and UDP_SEGMENT.
const CONTROL_LEN: usize = 64;
/// Header bytes kept per batch: 64 messages with 64 four-byte DATA headers, or short packets.
const SCRATCH_LEN: usize = 64 * 1024;

/// How a socket is to behave.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions<'a> {
    /// Several sockets, one per core, share the port.
    pub reuse_port: bool,
    /// May send to 255.255.255.255.
    pub broadcast: bool,
    /// Receive buffer in bytes; 0 leaves the system's.
    pub recv_buffer: i32,
    /// Send buffer in bytes; 0 leaves the system's.
    pub send_buffer: i32,
    /// Datagrams longer than the path MTU are fragmented instead of refused.
    pub fragment: bool,
    /// Only this interface.
    pub device: Option<&'a str>,
    /// [`Datagram`]s do not say which address they came to, which costs the kernel less.
    pub anonymous: bool,
}

/// Nobody's address (RFC 7600), for a socket that nothing is to come to.
const NOBODYS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// A bound, non-blocking IPv4 UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    local: SocketAddrV4,
}

impl UdpSocket {
    /// Binds. Port 0 takes a free one; [`UdpSocket::local`] says which.
    pub fn bind(addr: SocketAddrV4, options: &UdpOptions<'_>) -> Result<Self, SysError> {
        let fail = |e| SysError::new(format!("bind udp {addr}"), e);
        let fd = Self::open(options).map_err(fail)?;
        if options.reuse_port {
            set_int(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).map_err(fail)?;
        }
        let socket = socket2::SockRef::from(&fd);
        if let Some(device) = options.device {
            socket.bind_device(Some(device.as_bytes())).map_err(fail)?;
        }
        socket.bind(&addr.into()).map_err(fail)?;
        let local = socket.local_addr().map_err(fail)?.as_socket_ipv4().unwrap_or(addr);
        Ok(Self { fd, local })
    }

    /// A second socket on this one's port, for sending alone: nothing is ever received there, and [`Source::addr`] must
    /// say where each datagram leaves from.
    ///
    /// Each datagram that has left tells whoever waits at its socket that there is room again, even those who wait for
    /// something to read only (sock_def_write_space), and that is an eighth of what a small datagram costs. At this
    /// socket nobody waits.
    ///
    /// # Errors
    /// What `bind` says.
    pub fn sender_beside(&self, options: &UdpOptions<'_>) -> Result<Self, SysError> {
        let addr = SocketAddrV4::new(NOBODYS, self.local.port());
        let fail = |e| SysError::new(format!("bind udp {addr}"), e);
        let fd = Self::open(options).map_err(fail)?;
        // For the moment of binding alone, so that nobody else comes in beside.
        let share = |fd: RawFd, on| set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, on).map_err(fail);
        set_int(fd.as_raw_fd(), libc::IPPROTO_IP, libc::IP_FREEBIND, 1).map_err(fail)?;
        share(fd.as_raw_fd(), 1)?;
        share(self.as_raw_fd(), 1)?;
        let bound = socket2::SockRef::from(&fd).bind(&addr.into()).map_err(fail);
        share(self.as_raw_fd(), 0)?;
        share(fd.as_raw_fd(), 0)?;
        bound.map(|()| Self { fd, local: addr })
    }

    /// Not bound yet.
    fn open(options: &UdpOptions<'_>) -> io::Result<OwnedFd> {
        // SAFETY: no pointers.
        let raw = check(unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        })?;
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        set_int(raw, libc::IPPROTO_IP, libc::IP_PKTINFO, i32::from(!options.anonymous))?;
        if options.broadcast {
            set_int(raw, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)?;
        }
        if options.fragment {
            set_int(raw, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        }
        if options.recv_buffer > 0 {
            // FORCE needs CAP_NET_ADMIN; the plain option is capped by net.core.rmem_max. Either is only a wish.
            let _ = set_int(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, options.recv_buffer)
                .or_else(|_| set_int(raw, libc::SOL_SOCKET, libc::SO_RCVBUF, options.recv_buffer));
        }
        if options.send_buffer > 0 {
            let _ = set_int(raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, options.send_buffer)
                .or_else(|_| set_int(raw, libc::SOL_SOCKET, libc::SO_SNDBUF, options.send_buffer));
        }
        Ok(fd)
    }

    /// The address it is bound to.
    pub fn local(&self) -> SocketAddrV4 {
        self.local
    }

    /// Lets the kernel drop what `filter` does not accept. The program sees the datagram from its UDP header on.
    pub fn attach_filter(&self, filter: &[BpfInstruction]) -> io::Result<()> {
        attach_filter(self.fd.as_raw_fd(), filter)
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Payload.
    pub bytes: &'a [u8],
    /// Sender.
    pub from: SocketAddrV4,
    /// Destination address as the sender wrote it (a broadcast address stays one); unspecified, as all that follow, at
    /// an anonymous socket.
    pub to: Ipv4Addr,
    /// The local address the kernel would answer from.
    pub local: Ipv4Addr,
    /// Interface it came in on.
    pub interface: u32,
}

/// Buffers for receiving up to [`BATCH`] datagrams with one call. Lives on one core.
#[derive(Debug)]
pub struct RecvBatch {
    buffers: Box<[[u8; RECV_LEN]]>,
    names: Box<[libc::sockaddr_in]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBatch {
    /// Allocates the buffers: about 140 KiB, once per core.
    pub fn new() -> Self {
        // SAFETY: sockaddr_in, iovec and mmsghdr are plain old data; all-zero (null pointers, zero lengths) is
        // valid, and `recv` fills them before the kernel sees them.
        let (name, iovec, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let mut batch = Self {
            buffers: vec![[0; RECV_LEN]; BATCH].into_boxed_slice(),
            names: vec![name; BATCH].into_boxed_slice(),
            controls: vec![Control([0; CONTROL_LEN]); BATCH].into_boxed_slice(),
            iovecs: vec![iovec; BATCH].into_boxed_slice(),
            headers: vec![header; BATCH].into_boxed_slice(),
            len: 0,
        };
        (0..BATCH).for_each(|index| batch.prepare(index));
        batch
    }

    /// Points a header at its buffers, with their true lengths. The boxes stay where they are for good.
    fn prepare(&mut self, index: usize) {
        self.iovecs[index] =
            libc::iovec { iov_base: self.buffers[index].as_mut_ptr().cast(), iov_len: RECV_LEN };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = (&raw mut self.names[index]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_iov = &raw mut self.iovecs[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.controls[index]).cast();
        header.msg_controllen = CONTROL_LEN;
        header.msg_flags = 0;
    }

    /// Takes what is waiting, at most [`BATCH`]; the number taken. Fewer than that were all.
    pub fn recv(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // The kernel wrote its lengths into those that it filled the last time.
        (0..std::mem::take(&mut self.len)).for_each(|index| self.prepare(index));
        // SAFETY: every header points at this batch's own buffers, set by `prepare` with their true lengths; they
        // are borrowed mutably for the call and the kernel keeps no pointer after it.
        let taken = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match check(taken) {
            Ok(taken) => {
                self.len = taken as usize;
                Ok(self.len)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// The `index`-th datagram of the last [`RecvBatch::recv`]; `None` past the end, or when it was longer than
    /// [`RECV_LEN`].
    pub fn datagram(&self, index: usize) -> Option<Datagram<'_>> {
        if index >= self.len {
            return None;
        }
        let header = &self.headers[index];
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let name = &self.names[index];
        let from = SocketAddrV4::new(
            Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)),
            u16::from_be(name.sin_port),
        );
        let info = self.packet_info(index);
        Some(Datagram {
            bytes: &self.buffers[index][..(header.msg_len as usize).min(RECV_LEN)],
            from,
            to: info.map_or(Ipv4Addr::UNSPECIFIED, |i| Ipv4Addr::from(u32::from_be(i.ipi_addr.s_addr))),
            local: info
                .map_or(Ipv4Addr::UNSPECIFIED, |i| Ipv4Addr::from(u32::from_be(i.ipi_spec_dst.s_addr))),
            interface: info.map_or(0, |i| i.ipi_ifindex as u32),
        })
    }

    fn packet_info(&self, index: usize) -> Option<libc::in_pktinfo> {
        let header = &self.headers[index].msg_hdr;
        // SAFETY: the kernel filled msg_control and msg_controllen in `recv`; they still point at our buffer.
        let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !message.is_null() {
            // SAFETY: FIRSTHDR/NXTHDR return only headers that lie wholly inside the control buffer.
            let control = unsafe { &*message };
            if control.cmsg_level == libc::IPPROTO_IP && control.cmsg_type == libc::IP_PKTINFO {
                // SAFETY: an IP_PKTINFO message carries one in_pktinfo (linux ip(7)); read_unaligned asks nothing
                // of its alignment.
                return Some(unsafe { libc::CMSG_DATA(message).cast::<libc::in_pktinfo>().read_unaligned() });
            }
            // SAFETY: as above.
            message = unsafe { libc::CMSG_NXTHDR(header, message) };
        }
        None
    }
}

/// Where a datagram leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Source address; unspecified lets the kernel choose.
    pub addr: Ipv4Addr,
    /// Interface to leave by; 0 lets routing choose.
    pub interface: u32,
}

/// A message the kernel would not take: its tag and why.
#[derive(Debug)]
pub struct Unsent {
    /// What the caller tagged the message with.
    pub tag: u64,
    /// The kernel's answer.
    pub error: io::Error,
}

/// Datagrams collected for one `sendmmsg`. Payload pieces from a mapping are not copied; the batch holds the
/// mapping until it has been flushed.
#[derive(Debug)]
pub struct SendBatch {
    names: Box<[libc::sockaddr_in]>,
    controls: Box<[Control]>,
    headers: Box<[libc::mmsghdr]>,
    /// Pieces of all messages; `first_piece[i]..first_piece[i + 1]` belong to message `i`.
    pieces: Vec<libc::iovec>,
    first_piece: Vec<usize>,
    scratch: Box<[u8]>,
    scratch_used: usize,
    keep: Vec<Arc<Mapping>>,
    tags: Vec<u64>,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl SendBatch {
    /// Allocates the buffers: about 210 KiB, once per core.
    pub fn new() -> Self {
        // SAFETY: plain old data, as in `RecvBatch::new`.
        let (name, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            names: vec![name; BATCH].into_boxed_slice(),
            controls: vec![Control([0; CONTROL_LEN]); BATCH].into_boxed_slice(),
            headers: vec![header; BATCH].into_boxed_slice(),
            pieces: Vec::with_capacity(BATCH * SEGMENTS_MAX * 2),
            first_piece: Vec::with_capacity(BATCH + 1),
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
            scratch_used: 0,
            keep: Vec::with_capacity(BATCH),
            tags: Vec::with_capacity(BATCH),
        }
    }

    /// True when another message of `pieces` pieces and `header_bytes` copied bytes may not fit.
    pub fn is_full(&self, pieces: usize, header_bytes: usize) -> bool {
        self.tags.len() == BATCH
            || self.pieces.len() + pieces > BATCH * SEGMENTS_MAX * 2
            || self.scratch_used + header_bytes > SCRATCH_LEN
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Adds a short datagram, copied. False when the batch is full.
    pub fn push_bytes(&mut self, to: SocketAddrV4, from: Source, tag: u64, bytes: &[u8]) -> bool {
        if self.is_full(1, bytes.len()) {
            return false;
        }
        self.first_piece.push(self.pieces.len());
        self.copy(bytes);
        self.address(to, from, 0, tag);
        true
    }

    /// Adds file data: for each of `blocks`, a four-byte header and a slice of `mapping`. More than one block makes
    /// a single segmented send (UDP_SEGMENT), for which every block but the last must be equally long.
    /// False when the batch is full; nothing is added then.
    pub fn push_blocks(
        &mut self,
        to: SocketAddrV4,
        from: Source,
        tag: u64,
        mapping: &Arc<Mapping>,
        blocks: impl ExactSizeIterator<Item = ([u8; 4], u64, u16)>,
    ) -> bool {
        let count = blocks.len();
        if self.is_full(count * 2, count * 4) || count > SEGMENTS_MAX {
            return false;
        }
        self.first_piece.push(self.pieces.len());
        let mut segment = 0;
        for (header, offset, len) in blocks {
            self.copy(&header);
            if segment == 0 {
                segment = len + 4;
            }
            let Some(slice) = mapping.iovec_range(offset, usize::from(len)) else { continue };
            if slice.len > 0 {
                self.pieces.push(libc::iovec { iov_base: slice.ptr.cast_mut().cast(), iov_len: slice.len });
            }
        }
        // Neighbouring sends are of the same file: hold it once.
        if self.keep.last().is_none_or(|last| !Arc::ptr_eq(last, mapping)) {
            self.keep.push(Arc::clone(mapping));
        }
        self.address(to, from, if count > 1 { segment } else { 0 }, tag);
        true
    }

    fn copy(&mut self, bytes: &[u8]) {
        let start = self.scratch_used;
        let place = &mut self.scratch[start..start + bytes.len()];
        place.copy_from_slice(bytes);
        self.pieces.push(libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: bytes.len() });
        self.scratch_used += bytes.len();
    }

    fn address(&mut self, to: SocketAddrV4, from: Source, segment: u16, tag: u64) {
        let index = self.tags.len();
        let name = &mut self.names[index];
        name.sin_family = libc::AF_INET as u16;
        name.sin_port = to.port().to_be();
        name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
        let control = &mut self.controls[index].0;
        let mut used = 0;
        if from.addr != Ipv4Addr::UNSPECIFIED || from.interface != 0 {
            let mut info = [0u8; 12];
            info[..4].copy_from_slice(&from.interface.to_ne_bytes());
            info[4..8].copy_from_slice(&from.addr.octets());
            used += put_control(&mut control[used..], libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        if segment != 0 {
            used +=
                put_control(&mut control[used..], libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        self.headers[index].msg_hdr.msg_controllen = used;
        self.tags.push(tag);
    }

    /// Sends everything in order. A message the kernel refuses is handed to `unsent` and the rest goes on; when
    /// the socket's buffer is full the rest is dropped with `WouldBlock`, as a network would (the protocols above
    /// resend).
    pub fn flush(&mut self, socket: &UdpSocket, mut unsent: impl FnMut(Unsent)) {
        let count = self.tags.len();
        self.first_piece.push(self.pieces.len());
        for i in 0..count {
            let pieces = self.first_piece[i]..self.first_piece[i + 1];
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iovlen = pieces.len();
            header.msg_iov = self.pieces[pieces].as_mut_ptr();
            header.msg_control = (&raw mut self.controls[i]).cast();
            header.msg_flags = 0;
        }
        let mut done = 0;
        while done < count {
            // SAFETY: every header from `done` to `count` was pointed above at this batch's own memory and, for
            // file pieces, at mappings held in `keep`; nothing is moved or released before the call returns, and
            // the kernel keeps no pointer after it.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers[done..].as_mut_ptr(),
                    (count - done) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match check(sent) {
                Ok(sent) => done += sent as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    for tag in &self.tags[done..] {
                        unsent(Unsent { tag: *tag, error: io::ErrorKind::WouldBlock.into() });
                    }
                    break;
                }
                Err(error) => {
                    unsent(Unsent { tag: self.tags[done], error });
                    done += 1;
                }
            }
        }
        self.pieces.clear();
        self.first_piece.clear();
        self.scratch_used = 0;
        self.keep.clear();
        self.tags.clear();
    }
}

/// Writes one control message; the bytes it takes, padding included.
fn put_control(buffer: &mut [u8], level: i32, kind: i32, data: &[u8]) -> usize {
    // SAFETY: CMSG_LEN and CMSG_SPACE only compute.
    let (len, space) = unsafe { (libc::CMSG_LEN(data.len() as u32), libc::CMSG_SPACE(data.len() as u32)) };
    let header = len as usize - data.len();
    buffer[..space as usize].fill(0);
    // struct cmsghdr: length (native word), level, type (linux/socket.h).
    let word = size_of::<usize>();
    buffer[..word].copy_from_slice(&(len as usize).to_ne_bytes());
    buffer[word..word + 4].copy_from_slice(&level.to_ne_bytes());
    buffer[word + 4..word + 8].copy_from_slice(&kind.to_ne_bytes());
    buffer[header..header + data.len()].copy_from_slice(data);
    space as usize
}

/// The local address that routing would send from towards `to`. Sends nothing.
///
/// # Errors
/// What `connect` says: no route, most of all.
pub fn source_towards(to: SocketAddrV4) -> io::Result<Ipv4Addr> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.connect(&to.into())?;
    let local = socket.local_addr()?.as_socket_ipv4();
    Ok(local.map_or(Ipv4Addr::UNSPECIFIED, |local| *local.ip()))
}

/// True if this kernel takes UDP_SEGMENT (Linux 4.18).
pub fn has_segmentation() -> bool {
    let Ok(socket) = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), &UdpOptions::default())
    else {
        return false;
    };
    set_int(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1400).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_readable(socket: &UdpSocket) {
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, borrowed for the call.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 2000) }, 1, "nothing arrived in 2 s");
    }

    fn pair() -> (UdpSocket, UdpSocket) {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let options = UdpOptions { fragment: true, ..UdpOptions::default() };
        (UdpSocket::bind(any, &options).unwrap(), UdpSocket::bind(any, &options).unwrap())
    }

    #[test]
    fn a_datagram_says_where_it_came_from_and_where_it_went() {
        let (a, b) = pair();
        let mut batch = SendBatch::new();
        let from = Source { addr: Ipv4Addr::new(127, 0, 0, 9), interface: 0 };
        assert!(batch.push_bytes(b.local(), from, 1, b"hello"));
        batch.flush(&a, |u| panic!("{u:?}"));
        wait_readable(&b);
        let mut recv = RecvBatch::new();
        assert_eq!(recv.recv(&b).unwrap(), 1);
        let datagram = recv.datagram(0).unwrap();
        assert_eq!(datagram.bytes, b"hello");
        assert_eq!(*datagram.from.ip(), Ipv4Addr::new(127, 0, 0, 9));
        assert_eq!(datagram.to, Ipv4Addr::LOCALHOST);
        assert!(datagram.interface > 0);
        assert!(recv.datagram(1).is_none());
        assert_eq!(recv.recv(&b).unwrap(), 0);
    }

    #[test]
    fn a_sender_beside_has_the_port_and_receives_nothing() {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let options = UdpOptions { anonymous: true, ..UdpOptions::default() };
        let receiver = UdpSocket::bind(any, &options).unwrap();
        let sender = receiver.sender_beside(&options).unwrap();
        let port = receiver.local().port();
        let client =
            UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), &UdpOptions::default()).unwrap();
        let mut batch = SendBatch::new();
        let local = Source { addr: Ipv4Addr::new(127, 0, 0, 3), interface: 0 };
        assert!(batch.push_bytes(client.local(), local, 1, b"block"));
        batch.flush(&sender, |u| panic!("{u:?}"));
        wait_readable(&client);
        let mut recv = RecvBatch::new();
        assert_eq!(recv.recv(&client).unwrap(), 1);
        assert_eq!(recv.datagram(0).unwrap().from, SocketAddrV4::new(local.addr, port));

        // Whatever address is answered, it is the receiver that gets it.
        let from = Source { addr: Ipv4Addr::LOCALHOST, interface: 0 };
        for answered in [local.addr, Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9)] {
            assert!(batch.push_bytes(SocketAddrV4::new(answered, port), from, 1, b"ack"));
        }
        batch.flush(&client, |u| panic!("{u:?}"));
        let mut got = 0;
        while got < 3 {
            wait_readable(&receiver);
            got += recv.recv(&receiver).unwrap();
        }
        let last = recv.datagram(0).unwrap();
        assert_eq!((last.bytes, last.local), (&b"ack"[..], Ipv4Addr::UNSPECIFIED), "an anonymous socket");
        assert_eq!(recv.recv(&sender).unwrap(), 0);
        // Nobody else gets the port, whatever they agree to share.
        for reuse_port in [false, true] {
            let taken = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            assert!(UdpSocket::bind(taken, &UdpOptions { reuse_port, ..UdpOptions::default() }).is_err());
        }
    }

    #[test]
    fn a_batch_is_whole_again_for_the_next_socket() {
        let (a, b) = pair();
        let anonymous = UdpOptions { anonymous: true, ..UdpOptions::default() };
        let c = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), &anonymous).unwrap();
        let mut batch = SendBatch::new();
        let from = Source { addr: Ipv4Addr::LOCALHOST, interface: 0 };
        let mut recv = RecvBatch::new();
        // The lengths that the kernel wrote for one must not bound what is taken from the other.
        for (to, bytes, known) in [(&c, &b"x"[..], false), (&b, b"longer than that", true), (&c, b"y", false)]
        {
            assert!(batch.push_bytes(to.local(), from, 1, bytes));
            batch.flush(&a, |u| panic!("{u:?}"));
            wait_readable(to);
            assert_eq!(recv.recv(to).unwrap(), 1);
            let datagram = recv.datagram(0).unwrap();
            assert_eq!((datagram.bytes, datagram.from), (bytes, a.local()));
            assert_eq!(!datagram.local.is_unspecified(), known);
        }
    }

    #[test]
    fn a_run_of_blocks_arrives_as_separate_datagrams_with_their_headers() {
        let (a, b) = pair();
        let path = std::env::temp_dir().join(format!("bootstorm-udp-{}", std::process::id()));
        let content: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mapping = Arc::new(Mapping::map(&std::fs::File::open(&path).unwrap()).unwrap());
        std::fs::remove_file(&path).unwrap();
        let mut batch = SendBatch::new();
        let blocks = [([0, 3, 0, 1], 0, 1400), ([0, 3, 0, 2], 1400, 1400), ([0, 3, 0, 3], 2800, 200)];
        let any = Source { addr: Ipv4Addr::UNSPECIFIED, interface: 0 };
        assert!(batch.push_blocks(b.local(), any, 7, &mapping, blocks.into_iter()));
        batch.flush(&a, |u| panic!("{u:?}"));
        let mut recv = RecvBatch::new();
        let mut got = Vec::new();
        while got.len() < 3 {
            wait_readable(&b);
            let count = recv.recv(&b).unwrap();
            got.extend((0..count).map(|i| recv.datagram(i).unwrap().bytes.to_vec()));
        }
        assert_eq!(got.iter().map(|d| d[3]).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(got.iter().flat_map(|d| d[4..].to_vec()).collect::<Vec<_>>(), content);
    }

    #[test]
    fn a_refused_message_is_named_and_the_rest_goes_out() {
        let (a, b) = pair();
        let mut batch = SendBatch::new();
        let foreign = Source { addr: Ipv4Addr::new(203, 0, 113, 9), interface: 0 };
        let any = Source { addr: Ipv4Addr::UNSPECIFIED, interface: 0 };
        assert!(batch.push_bytes(b.local(), foreign, 11, b"no"));
        assert!(batch.push_bytes(b.local(), any, 12, b"yes"));
        let mut refused = Vec::new();
        batch.flush(&a, |u| refused.push(u.tag));
        assert_eq!(refused, [11]);
        wait_readable(&b);
        let mut recv = RecvBatch::new();
        assert_eq!(recv.recv(&b).unwrap(), 1);
        assert_eq!(recv.datagram(0).unwrap().bytes, b"yes");
    }
}

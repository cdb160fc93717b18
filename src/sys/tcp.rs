//! TCP listeners and the ways a file's bytes reach a socket without passing through user space.

use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::mmap::Mapping;
use super::{SysError, check, check_len, set_int};

/// Connections the kernel queues before `accept`.
const BACKLOG: i32 = 4096;
/// Bytes a pooled pipe holds: 256 pages move per call instead of the 16 of `sendfile`'s own pipe.
pub const PIPE_LEN: usize = 1 << 20;
/// Seconds the kernel waits for a connection's first bytes before it is accepted without them.
const DEFER_ACCEPT: i32 = 1;
/// Unsent bytes above which a socket stops asking for more; keeps a slow reader from hoarding page references.
const NOTSENT_LOWAT: i32 = 1 << 20;

/// Opens a non-blocking listener whose port several cores may share.
pub fn listen(addr: SocketAddrV4, congestion: Option<&str>) -> Result<std::net::TcpListener, SysError> {
    let fail = |e| SysError::new(format!("bind tcp {addr}"), e);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).map_err(fail)?;
    socket.set_reuse_address(true).map_err(fail)?;
    socket.set_reuse_port(true).map_err(fail)?;
    socket.set_nonblocking(true).map_err(fail)?;
    // Accepted sockets inherit all of these.
    socket.set_tcp_nodelay(true).map_err(fail)?;
    set_int(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, NOTSENT_LOWAT).map_err(fail)?;
    // A connection is heard of with its request, not before it: that spares a wake-up, a read that finds nothing and the
    // wait for the next event. Who says nothing is accepted a second later.
    set_int(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, DEFER_ACCEPT).map_err(fail)?;
    if let Some(name) = congestion {
        socket
            .set_tcp_congestion(name.as_bytes())
            .map_err(|e| SysError::new(format!("use the congestion control {name} on tcp {addr}"), e))?;
    }
    socket.bind(&addr.into()).map_err(fail)?;
    socket.listen(BACKLOG).map_err(fail)?;
    Ok(socket.into())
}

/// Takes one waiting connection: its socket, which does not block, and the two ends of it.
///
/// # Errors
/// `WouldBlock` when none waits; what `accept4` says otherwise.
pub fn accept(
    listener: &std::net::TcpListener,
) -> io::Result<(std::net::TcpStream, SocketAddrV4, SocketAddrV4)> {
    let mut peer = sockaddr_in();
    let mut len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `peer`, and their number into `len`; both live across the call.
    let fd = check(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            (&raw mut peer).cast(),
            &raw mut len,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: the descriptor is fresh and nobody else owns it.
    let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
    let mut local = sockaddr_in();
    let mut len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: as above, for `local`.
    check(unsafe { libc::getsockname(fd, (&raw mut local).cast(), &raw mut len) })?;
    Ok((stream, address(&peer), address(&local)))
}

fn sockaddr_in() -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    }
}

fn address(raw: &libc::sockaddr_in) -> SocketAddrV4 {
    SocketAddrV4::new(u32::from_be(raw.sin_addr.s_addr).into(), u16::from_be(raw.sin_port))
}

/// Fails like [`listen`] where any other socket listens already, also one that shares its port as ours do among each
/// other: two servers of one user would else split the machines between them without a word.
pub fn check_free(addr: SocketAddrV4) -> Result<(), SysError> {
    let fail = |e| SysError::new(format!("bind tcp {addr}"), e);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).map_err(fail)?;
    // Connections of a server that has just ended do not count.
    socket.set_reuse_address(true).map_err(fail)?;
    socket.bind(&addr.into()).map_err(fail)
}

/// The congestion control to ask for on a LAN: `None` keeps the system's. BBR paces with timers, which doubles the
/// cost of a send on a fast local link, so it is replaced by the first allowed of cubic and reno.
pub fn lan_congestion() -> Option<&'static str> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    if read("tcp_congestion_control").trim() != "bbr" {
        return None;
    }
    let allowed = read("tcp_allowed_congestion_control");
    let available = read("tcp_available_congestion_control");
    ["cubic", "reno"].into_iter().find(|wanted| {
        let listed = |text: &str| text.split_whitespace().any(|word| word == *wanted);
        // A privileged process may use whatever is available, others only what is allowed; a trial tells which.
        (listed(&allowed) || listed(&available))
            && Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
                .is_ok_and(|socket| socket.set_tcp_congestion(wanted.as_bytes()).is_ok())
    })
}

/// Holds back partial segments until released, so that a head and the file after it share segments.
pub fn set_cork(fd: &impl AsRawFd, on: bool) -> io::Result<()> {
    set_int(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CORK, i32::from(on))
}

/// Whether there was no descriptor left for what was asked, in this process or on the host.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// This process has no descriptor left, which passes.
pub fn is_own_limit(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMFILE)
}

/// Bytes sent or queued that the peer has not acknowledged yet.
pub fn unacknowledged(fd: &impl AsRawFd) -> io::Result<u64> {
    let mut queued: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int, into `queued`, which lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) })?;
    Ok(queued.max(0) as u64)
}

/// A kernel pipe used as a page carrier between a file and a socket.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in it now. A pipe goes back to its pool only when this is 0.
    held: usize,
}

impl Pipe {
    /// Makes a pipe of [`PIPE_LEN`] bytes.
    ///
    /// # Errors
    /// EPERM when the user's share of pipe memory is used up (16 MiB of pages for an ordinary user: 63 such pipes); EMFILE and
    /// ENFILE while there are no descriptors.
    pub fn new() -> io::Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: the kernel writes two descriptors into `fds`.
        check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
        // SAFETY: both descriptors are fresh and nobody else owns them.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        // SAFETY: no pointers.
        check(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_LEN as libc::c_int) })?;
        Ok(Self { read, write, held: 0 })
    }

    /// Bytes in the pipe.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves up to `len` bytes of `file` from `offset` into the pipe; 0 means the file ends there (truncated, if
    /// more was expected).
    pub fn fill(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        let mut at = offset as libc::loff_t;
        // SAFETY: the kernel reads and writes `at`, which lives across the call; the other pointer is null.
        let moved = check_len(unsafe {
            libc::splice(
                file.as_raw_fd(),
                &raw mut at,
                self.write.as_raw_fd(),
                std::ptr::null_mut(),
                len.min(PIPE_LEN),
                libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
            )
        })?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe to `socket`, as many as it takes.
    pub fn drain(&mut self, socket: &impl AsRawFd, more: bool) -> io::Result<usize> {
        let flags =
            libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK | if more { libc::SPLICE_F_MORE } else { 0 };
        // SAFETY: both offset pointers are null, as pipes and sockets require.
        let moved = check_len(unsafe {
            libc::splice(
                self.read.as_raw_fd(),
                std::ptr::null_mut(),
                socket.as_raw_fd(),
                std::ptr::null_mut(),
                self.held,
                flags,
            )
        })?;
        self.held -= moved;
        Ok(moved)
    }

    /// Drops what is in the pipe, without reading it: `nowhere` is `/dev/null`, open for writing.
    pub fn discard(&mut self, nowhere: &File) -> io::Result<()> {
        while self.held > 0 && self.drain(nowhere, false)? > 0 {}
        Ok(())
    }
}

/// `sendfile`: up to `len` bytes of `file` from `offset`; 0 means the file ends there.
pub fn send_file(socket: &impl AsRawFd, file: &File, offset: u64, len: usize) -> io::Result<usize> {
    let mut at = offset as libc::off_t;
    // SAFETY: the kernel reads and writes `at`, which lives across the call.
    check_len(unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut at, len) })
}

/// Sends bytes, telling the kernel whether more follow at once.
pub fn send(socket: &impl AsRawFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    // Not by libc's `send`, which is a cancellation point: its bookkeeping in a process with threads costs as much as half
    // of an entry into the kernel, and nobody cancels threads here.
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`, borrowed for the call; there is no address.
    check_len(unsafe {
        libc::syscall(
            libc::SYS_sendto,
            socket.as_raw_fd(),
            bytes.as_ptr(),
            bytes.len(),
            flags,
            std::ptr::null::<libc::sockaddr>(),
            0,
        )
    } as libc::ssize_t)
}

/// Lets [`send_mapped`] be used on a socket (`SO_ZEROCOPY`).
pub fn allow_zero_copy(socket: &impl AsRawFd) -> io::Result<()> {
    set_int(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)
}

/// Sends `len` bytes of `mapping` from `offset` without copying them, where the device can (`MSG_ZEROCOPY`): [`zero_copy_released`] tells.
/// EFAULT where the file has become shorter, ENOBUFS where no more may be pinned.
pub fn send_mapped(socket: &impl AsRawFd, mapping: &Mapping, offset: u64, len: usize) -> io::Result<usize> {
    let range = mapping.iovec_range(offset, len).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_ZEROCOPY;
    // Past libc for the reason given in [`send`].
    // SAFETY: the range lies in `mapping`, borrowed for the call. The kernel takes references to its pages before it comes
    // back, and reads them through these later on, whatever becomes of the mapping; there is no address.
    check_len(unsafe {
        libc::syscall(
            libc::SYS_sendto,
            socket.as_raw_fd(),
            range.ptr,
            range.len,
            flags,
            std::ptr::null::<libc::sockaddr>(),
            0,
        )
    } as libc::ssize_t)
}

/// Who tells of a send without a copy, and that the kernel copied after all (linux/errqueue.h).
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// Takes the next notification about pages of [`send_mapped`] that the kernel is done with; true when it had copied them first.
/// `None` when there is none.
pub fn zero_copy_released(socket: &impl AsRawFd) -> io::Result<Option<bool>> {
    // One notification: a header and a sock_extended_err, behind which an address would stand.
    let mut control = [0_u64; 16];
    // SAFETY: all of its fields are integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes into `control`, which lives as long as `header`, and no further than it is long.
    match check_len(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) }) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut copied = false;
    // SAFETY: `header` is as the kernel filled it, over `control`, for this walk.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: not null, so it points to a whole header in `control`.
        let kind = unsafe { (*message).cmsg_type };
        if kind == libc::IP_RECVERR {
            // SAFETY: a message of this kind carries a sock_extended_err (linux net/ipv4/ip_sockglue.c, ip_recv_error).
            let told = unsafe { libc::CMSG_DATA(message).cast::<libc::sock_extended_err>().read_unaligned() };
            copied |=
                told.ee_origin == SO_EE_ORIGIN_ZEROCOPY && told.ee_code & SO_EE_CODE_ZEROCOPY_COPIED != 0;
        }
        // SAFETY: as above.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(Some(copied))
}

/// Receives into `buffer`'s spare capacity without zeroing it first; the bytes taken, 0 at the end of the stream.
pub fn recv_into(socket: &impl AsRawFd, buffer: &mut Vec<u8>, room: usize) -> io::Result<usize> {
    buffer.reserve(room);
    let spare = buffer.spare_capacity_mut();
    // Past libc for the reason given in [`send`].
    // SAFETY: the kernel writes at most `spare.len()` bytes into the spare capacity, borrowed for the call; the address is
    // not asked for.
    let taken = check_len(unsafe {
        libc::syscall(
            libc::SYS_recvfrom,
            socket.as_raw_fd(),
            spare.as_mut_ptr(),
            spare.len().min(room),
            libc::MSG_DONTWAIT,
            std::ptr::null_mut::<libc::sockaddr>(),
            std::ptr::null_mut::<libc::socklen_t>(),
        )
    } as libc::ssize_t)?;
    // SAFETY: `recv` has just initialised `taken` bytes after the old length, within the capacity.
    unsafe { buffer.set_len(buffer.len() + taken) };
    Ok(taken)
}

/// Makes the next close of this socket a reset, so that a receiver cannot take a cut body for a whole one.
pub fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the kernel reads one `linger` from the stack.
    let _ = check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::net::{Ipv4Addr, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), lan_congestion()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    fn file(content: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!(
            "bootstorm-tcp-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let mut file =
            File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(content).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    #[test]
    fn a_pipe_carries_file_pages_to_a_socket() {
        let content: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        let (server, mut client) = pair();
        let file = file(&content);
        let mut pipe = Pipe::new().unwrap();
        set_cork(&server, true).unwrap();
        assert_eq!(pipe.fill(&file, 10, content.len() - 10).unwrap(), content.len() - 10);
        while pipe.held() > 0 {
            pipe.drain(&server, false).unwrap();
        }
        set_cork(&server, false).unwrap();
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, content[10..]);
    }

    #[test]
    fn what_is_discarded_is_gone_and_the_pipe_is_as_new() {
        let content: Vec<u8> = (0..3_000_000u32).map(|i| (i * 11) as u8).collect();
        let file = file(&content);
        let mut pipe = Pipe::new().unwrap();
        let nowhere = File::options().write(true).open("/dev/null").unwrap();
        assert_eq!(pipe.fill(&file, 0, PIPE_LEN).unwrap(), PIPE_LEN);
        pipe.discard(&nowhere).unwrap();
        assert_eq!(pipe.held(), 0);
        assert_eq!(pipe.fill(&file, 2_000_000, 1000).unwrap(), 1000);
        let (server, mut client) = pair();
        assert_eq!(pipe.drain(&server, false).unwrap(), 1000);
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, content[2_000_000..2_001_000]);
    }

    #[test]
    fn the_end_of_a_truncated_file_reads_as_zero_not_as_waiting() {
        let file = file(b"short");
        let mut pipe = Pipe::new().unwrap();
        assert_eq!(pipe.fill(&file, 5, 1000).unwrap(), 0);
        let (server, _client) = pair();
        assert_eq!(send_file(&server, &file, 5, 1000).unwrap(), 0);
    }

    #[test]
    fn a_taken_port_names_the_address_and_the_way_out() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let Ok(std::net::SocketAddr::V4(addr)) = holder.local_addr() else { panic!("bound to IPv4") };
        let error = listen(addr, None).unwrap_err();
        assert_eq!(error.to_string(), format!("bind tcp {addr}: Address already in use"));
        assert!(error.advice().unwrap().contains(&format!("sport = :{}", addr.port())));
    }
}

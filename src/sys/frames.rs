//! Frames of file data collected for one `sendmmsg` past the queueing discipline: headers made here, payload from the
//! file's mapping.
//!
//! This bypasses the host's IP stack, its packet filter included. Who uses it has made sure that nothing there would
//! have said no.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::mmap::Mapping;
use super::udp::Unsent;
use super::{SysError, check, set_int};

/// Frames collected for one call.
pub const FRAMES: usize = 128;
/// Bytes of a frame that are written here: Ethernet, IPv4, UDP, and a DATA header or a whole OACK or ERROR.
pub const HEAD_LEN_MAX: usize = 320;

/// Frames on their way out of one interface. Payload pieces from a mapping are not copied; the batch holds the mapping
/// until it has been flushed.
#[derive(Debug)]
pub struct FrameSender {
    fd: OwnedFd,
    heads: Box<[[u8; HEAD_LEN_MAX]]>,
    /// Two per frame: what was written here, and the file's part.
    pieces: Box<[[libc::iovec; 2]]>,
    headers: Box<[libc::mmsghdr]>,
    tags: Vec<u64>,
    keep: Vec<Arc<Mapping>>,
}

// SAFETY: the raw pointers in `pieces` and `headers` point into the boxes of this very value, or into mappings held in
// `keep`, and are written afresh before every use; whoever owns the value owns all of it.
unsafe impl Send for FrameSender {}

impl FrameSender {
    /// Opens a sender for one interface that receives nothing and skips the queueing discipline.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open(name: &str, index: u32) -> Result<Self, SysError> {
        let fail = |e| SysError::new(format!("open packet socket on {name}: sender"), e);
        let fd = packet_socket().map_err(fail)?;
        bind(fd.as_raw_fd(), index, 0).map_err(fail)?;
        // Not there before Linux 3.14: frames then go through the discipline, which is only slower.
        let _ = set_int(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1);
        // A batch of large frames must fit; a refusal only means the default size.
        let _ = set_int(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 4 << 20);
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: mmsghdr is plain old data; all-zero is valid, and `flush` fills it before the kernel sees it.
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        Ok(Self {
            fd,
            heads: vec![[0; HEAD_LEN_MAX]; FRAMES].into_boxed_slice(),
            pieces: vec![[empty; 2]; FRAMES].into_boxed_slice(),
            headers: vec![header; FRAMES].into_boxed_slice(),
            tags: Vec::with_capacity(FRAMES),
            keep: Vec::with_capacity(FRAMES),
        })
    }

    /// True when the next push needs a flush first.
    pub fn is_full(&self) -> bool {
        self.tags.len() == FRAMES
    }

    /// Frames that wait.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Adds a frame: `head`, copied, then `len` bytes of `mapping` from `offset`, not copied. False when the batch is
    /// full, the head too long, or the range not in the mapping; nothing is added then.
    pub fn push(&mut self, head: &[u8], body: Option<(&Arc<Mapping>, u64, usize)>, tag: u64) -> bool {
        let index = self.tags.len();
        if index == FRAMES || head.len() > HEAD_LEN_MAX {
            return false;
        }
        let file = match body {
            None => libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            Some((mapping, offset, len)) => {
                let Some(range) = mapping.iovec_range(offset, len) else { return false };
                // Neighbouring blocks are of the same file: hold it once.
                if self.keep.last().is_none_or(|last| !Arc::ptr_eq(last, mapping)) {
                    self.keep.push(Arc::clone(mapping));
                }
                libc::iovec { iov_base: range.ptr.cast_mut().cast(), iov_len: range.len }
            }
        };
        let place = &mut self.heads[index];
        place[..head.len()].copy_from_slice(head);
        self.pieces[index] = [libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: head.len() }, file];
        self.tags.push(tag);
        true
    }

    /// Sends everything in order. A frame the kernel refuses is handed to `unsent` and the rest goes on; when the
    /// device's queue or the socket's buffer is full the rest is dropped with `WouldBlock`, as a network would.
    pub fn flush(&mut self, mut unsent: impl FnMut(Unsent)) {
        let count = self.tags.len();
        for (header, pieces) in self.headers[..count].iter_mut().zip(&mut self.pieces[..count]) {
            header.msg_hdr.msg_iovlen = if pieces[1].iov_len == 0 { 1 } else { 2 };
            header.msg_hdr.msg_iov = pieces.as_mut_ptr();
        }
        let mut done = 0;
        while done < count {
            // SAFETY: the headers from `done` to `count` were pointed above at this value's own boxes and, for file
            // pieces, at mappings held in `keep`; nothing is moved or released before the call returns, and the
            // kernel keeps no pointer after it (packet_snd copies into the frame).
            let sent = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    self.headers[done..].as_mut_ptr(),
                    (count - done) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match check(sent) {
                Ok(sent) => done += sent as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_full(&error) => {
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
        self.tags.clear();
        self.keep.clear();
    }
}

/// The device or the socket has no room just now.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// A silent raw packet socket: protocol 0 receives nothing until `bind` names one.
fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let raw = check(unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    })?;
    // SAFETY: `raw` is a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bind(raw: RawFd, index: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: `sockaddr_ll` is plain old data; all-zero is valid.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_protocol = protocol.to_be();
    addr.sll_ifindex = index as i32;
    // SAFETY: the kernel reads `size_of::<sockaddr_ll>()` bytes from `addr`, which lives across the call.
    check(unsafe {
        libc::bind(raw, (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    })
    .map(drop)
}

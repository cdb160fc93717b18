//! Frames by the thousand: a receive ring that user space reads without a call per packet (TPACKET_V2), a group of
//! rings that share one interface (fanout), and frames collected for one `sendmmsg` past the queueing discipline.
//!
//! Everything here bypasses the host's IP stack, its packet filter included. Who uses it has made sure that nothing
//! there would have said no.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::mmap::Mapping;
use super::packet::{BpfInstruction, attach_filter};
use super::udp::Unsent;
use super::{SysError, check, set_int};

/// Bytes of one slot of the receive ring: the kernel's header and a frame, cut where the slot ends.
const SLOT_LEN: usize = 1024;
/// Slots are laid out in blocks of this many bytes (a multiple of every page size in use up to 64 KiB).
const BLOCK_LEN: usize = 64 * 1024;
/// The kernel's header at the start of a slot: struct tpacket2_hdr (linux/if_packet.h).
const STATUS_AT: usize = 0;
const SNAPLEN_AT: usize = 8;
const MAC_AT: usize = 12;
/// Frames collected for one call.
pub const FRAMES: usize = 128;
/// Bytes of a frame that are written here: Ethernet, IPv4, UDP, and a DATA header or a whole OACK or ERROR.
pub const HEAD_LEN_MAX: usize = 320;

/// One member of a group of rings on one interface, or the only one.
#[derive(Debug)]
pub struct FrameRing {
    fd: OwnedFd,
    /// The ring as mapped; slots of [`SLOT_LEN`] bytes. Unmapped before the descriptor is closed (field order does
    /// not matter to the kernel, which keeps the pages until both are gone).
    slots: MmapRaw,
    count: usize,
    next: usize,
}

/// Rings that share an interface: the kernel gives every frame to exactly one of them.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    id: u16,
}

impl FrameRing {
    /// Opens a ring of `slots` slots (rounded up to whole blocks) for IPv4 frames on interface `index` that `filter`
    /// accepts. Nothing is queued before the filter stands.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW; ENOMEM when the ring cannot be had.
    pub fn open(name: &str, index: u32, slots: usize, filter: &[BpfInstruction]) -> Result<Self, SysError> {
        let fail = |e| SysError::new(format!("open packet socket on {name}: receive ring"), e);
        let fd = packet_socket().map_err(fail)?;
        let raw = fd.as_raw_fd();
        attach_filter(raw, filter).map_err(fail)?;
        set_int(raw, libc::SOL_PACKET, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as i32)
            .map_err(fail)?;
        let blocks = (slots * SLOT_LEN).div_ceil(BLOCK_LEN).max(1);
        let count = blocks * (BLOCK_LEN / SLOT_LEN);
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_LEN as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: SLOT_LEN as u32,
            tp_frame_nr: count as u32,
        };
        // SAFETY: the kernel reads one tpacket_req, which lives across the call.
        check(unsafe {
            libc::setsockopt(
                raw,
                libc::SOL_PACKET,
                libc::PACKET_RX_RING,
                (&raw const request).cast(),
                size_of::<libc::tpacket_req>() as libc::socklen_t,
            )
        })
        .map_err(fail)?;
        let slots = MmapOptions::new().len(blocks * BLOCK_LEN).map_raw(raw).map_err(fail)?;
        bind(raw, index, libc::ETH_P_IP as u16).map_err(fail)?;
        Ok(Self { fd, slots, count, next: 0 })
    }

    /// Makes the first ring's group; `chooser` is a classic BPF program whose result, modulo the number of members,
    /// is the position (in the order of joining) of the ring that gets a frame.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn found(&self, chooser: &[BpfInstruction]) -> io::Result<Group> {
        let kind = libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_UNIQUEID;
        set_int(self.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, (kind << 16) as i32)?;
        let mut answer: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `answer`, and the length into `len`.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT,
                (&raw mut answer).cast(),
                &raw mut len,
            )
        })?;
        let program = libc::sock_fprog {
            len: chooser.len() as u16,
            filter: chooser.as_ptr() as *mut libc::sock_filter,
        };
        // SAFETY: `BpfInstruction` has the layout of `sock_filter`; the kernel copies the program during the call.
        check(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT_DATA,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        })?;
        Ok(Group { id: answer as u16 })
    }

    /// Joins a group as its next member.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn join(&self, group: Group) -> io::Result<()> {
        let value = u32::from(group.id) | libc::PACKET_FANOUT_CBPF << 16;
        set_int(self.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, value as i32)
    }

    /// The next frame, cut at the slot's end; `None` when there is none. It stays valid until
    /// [`FrameRing::release`], which gives its slot back and moves on.
    pub fn peek(&self) -> Option<&[u8]> {
        let slot = self.slot();
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: `slot` is the start of a slot inside the mapping; the Acquire load above saw that the kernel has
        // written the slot and handed it over, and it will not touch it until `release` hands it back.
        let (snaplen, mac) = unsafe {
            (slot.add(SNAPLEN_AT).cast::<u32>().read(), usize::from(slot.add(MAC_AT).cast::<u16>().read()))
        };
        let len = (snaplen as usize).min(SLOT_LEN.saturating_sub(mac));
        // SAFETY: as above; `mac + len` was just bounded by the slot's length.
        Some(unsafe { std::slice::from_raw_parts(slot.add(mac), len) })
    }

    /// Gives the slot of the frame last peeked at back to the kernel. Without such a frame nothing happens.
    pub fn release(&mut self) {
        let status = self.status();
        if status.load(Ordering::Relaxed) & libc::TP_STATUS_USER != 0 {
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % self.count;
        }
    }

    fn slot(&self) -> *mut u8 {
        // `next` is below `count`, so this stays inside the mapping.
        self.slots.as_mut_ptr().wrapping_add(self.next * SLOT_LEN)
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the slot's first word is aligned (slots are multiples of 1024 from a page), lives as long as the
        // mapping, and is only ever accessed atomically by both sides (linux tpacket: status changes hands).
        unsafe { AtomicU32::from_ptr(self.slot().add(STATUS_AT).cast()) }
    }

    /// Frames the kernel had no slot for since the last call.
    pub fn dropped(&self) -> u32 {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `stats`.
        let answered = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        if answered == 0 { stats.tp_drops } else { 0 }
    }
}

impl AsRawFd for FrameRing {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

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

const _: () = assert!(size_of::<libc::tpacket2_hdr>() == 32 && BLOCK_LEN.is_multiple_of(SLOT_LEN));

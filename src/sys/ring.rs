//! A packet socket with a ring shared with the kernel (TPACKET_V2): frames come in without a call per packet, cut to a
//! snapshot where nobody reads the rest, and leave in batches past the queueing layer. The server's cores share an
//! interface's frames by it; the load drives thousands of simulated hosts from one thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::packet::{BpfInstruction, attach_filter};
use super::{SysError, check, set_int};

/// The kernel allocates the ring in pieces of this size.
const BLOCK_LEN: usize = 1 << 20;
/// Room in a slot before the frame: `tpacket2_hdr`, `sockaddr_ll`, alignment (linux/if_packet.h).
const SLOT_HEAD_LEN: usize = 96;
/// Frames sent with one call.
pub const SEND_BATCH: usize = 64;
/// Bytes of frames collected for one call.
const ARENA_LEN: usize = 256 * 1024;
/// Bytes of frames on their way, with what the kernel keeps beside each.
const SEND_BUFFER_LEN: libc::c_int = 4 << 20;

/// linux/if_packet.h, not in libc for every target.
const PACKET_QDISC_BYPASS: libc::c_int = 20;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// Whose frames a ring takes, and how much of them.
#[derive(Clone, Copy, Debug)]
pub struct RingUse {
    /// First bytes of each frame that are kept.
    pub snapshot: usize,
    /// Memory of the ring; rounded up to whole MiB.
    pub len: usize,
    /// Every frame of the link, whoever it is addressed to, as hosts with hardware addresses of their own need it.
    /// Otherwise what is for this machine: IPv4 alone, unless `outgoing` asks for every protocol.
    pub all: bool,
    /// What this host itself sends, too. The kernel shows that only to sockets of every protocol (dev_queue_xmit_nit), and
    /// makes a clone of each frame that leaves for them; what leaves straight to the driver nobody hears.
    pub outgoing: bool,
    /// What is sent through it goes the way of other packets: past the interface's queueing discipline, where captures on this
    /// host see it. Otherwise straight to the driver, unseen.
    pub captured: bool,
}

/// Rings that share an interface: the kernel gives every frame to exactly one of them, and looks through its sockets once for it
/// and not once for each. A position is a ring's for as long as none that joined before it is closed; an interface that goes down and
/// comes up again has its rings join in the order in which they were opened (net/packet/af_packet.c, `packet_notifier`).
#[derive(Clone, Copy, Debug)]
pub struct Group {
    id: u16,
}

impl Group {
    /// Rings that a group can have, where its founder names no other number (net/packet/af_packet.c, `fanout_add`).
    pub const MEMBERS_MAX: usize = 256;
}

/// A frame as it lies in the ring.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its beginning: all of it unless it was longer than the ring's snapshot.
    pub bytes: &'a [u8],
    /// Its length on the wire. More than the interface's MTU means several segments in one (GSO), not cut yet.
    pub len: usize,
    /// The UDP or TCP checksum is there to be checked: not one that is still to be made, as in what comes from this host.
    /// Whether a card has done so is not said reliably (before Linux 6.2).
    pub unchecked: bool,
}

/// The receiving half and the socket.
#[derive(Debug)]
pub struct FrameRing {
    fd: OwnedFd,
    map: NonNull<u8>,
    slot_len: usize,
    slots: usize,
    next: usize,
    ring_len: usize,
    snapshot: usize,
    index: u32,
    captured: bool,
    what: String,
}

// SAFETY: the mapping belongs to this value alone and has no tie to the thread that made it.
unsafe impl Send for FrameRing {}

impl FrameRing {
    /// Opens a ring on interface `name` that receives what `filter` accepts. Nothing is queued before the filter
    /// stands.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV for an interface that is gone.
    pub fn open(
        name: &str,
        index: u32,
        filter: &[BpfInstruction],
        taken: &RingUse,
    ) -> Result<Self, SysError> {
        let what = format!("open packet socket on {name}");
        let fail = |e| SysError::new(what.clone(), e);
        // SAFETY: no pointers. Protocol 0 keeps the socket silent until `bind` below names one.
        let raw = check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        })
        .map_err(fail)?;
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        attach_filter(raw, filter).map_err(fail)?;
        set_int(raw, libc::SOL_PACKET, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as i32)
            .map_err(fail)?;
        // Old kernels know neither; what is lost is speed, and our own frames are told by their source.
        let _ = set_int(raw, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, i32::from(!taken.outgoing));
        let snapshot = taken.snapshot;
        let ring_len = taken.len.next_multiple_of(BLOCK_LEN);
        let slot_len = (snapshot + SLOT_HEAD_LEN).next_power_of_two().clamp(256, BLOCK_LEN);
        let slots = ring_len / slot_len;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_LEN as u32,
            tp_block_nr: (ring_len / BLOCK_LEN) as u32,
            tp_frame_size: slot_len as u32,
            tp_frame_nr: slots as u32,
        };
        set_struct(raw, libc::PACKET_RX_RING, &request).map_err(fail)?;
        // SAFETY: a fresh shared mapping of the ring just made, `ring_len` bytes as asked for; the address is
        // the kernel's choice.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                ring_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                raw,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(fail(io::Error::last_os_error()));
        }
        let map = NonNull::new(map.cast()).expect("mmap of a non-zero length is never null");
        let captured = taken.captured;
        let ring = Self { fd, map, slot_len, slots, next: 0, ring_len, snapshot, index, captured, what };
        let fail = |e| SysError::new(ring.what.clone(), e);
        if taken.all {
            // A real card would drop what is for addresses it does not know.
            let member = libc::packet_mreq {
                mr_ifindex: index as i32,
                mr_type: libc::PACKET_MR_PROMISC as u16,
                mr_alen: 0,
                mr_address: [0; 8],
            };
            set_struct(raw, libc::PACKET_ADD_MEMBERSHIP, &member).map_err(fail)?;
        }
        let every_protocol = taken.all || taken.outgoing;
        bind(raw, index, if every_protocol { libc::ETH_P_ALL } else { libc::ETH_P_IP }).map_err(fail)?;
        Ok(ring)
    }

    /// Makes the first ring's group; `chooser` is a classic BPF program whose result, modulo the number of members,
    /// is the position (in the order of joining) of the ring that gets a frame.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn found(&self, chooser: &[BpfInstruction]) -> io::Result<Group> {
        let raw = self.fd.as_raw_fd();
        let kind = libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_UNIQUEID;
        set_int(raw, libc::SOL_PACKET, libc::PACKET_FANOUT, (kind << 16) as i32)?;
        let mut answer: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `answer`, and the length into `len`.
        check(unsafe {
            libc::getsockopt(
                raw,
                libc::SOL_PACKET,
                libc::PACKET_FANOUT,
                (&raw mut answer).cast(),
                &raw mut len,
            )
        })?;
        self.choose(chooser)?;
        Ok(Group { id: answer as u16 })
    }

    /// Gives this ring's group another program to choose by.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn choose(&self, chooser: &[BpfInstruction]) -> io::Result<()> {
        // The kernel copies the program during the call and keeps no pointer; `BpfInstruction` has the layout of
        // `sock_filter`.
        let program = libc::sock_fprog {
            len: chooser.len() as u16,
            filter: chooser.as_ptr() as *mut libc::sock_filter,
        };
        set_struct(self.fd.as_raw_fd(), libc::PACKET_FANOUT_DATA, &program)
    }

    /// Joins a group as its next member.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn join(&self, group: Group) -> io::Result<()> {
        let value = u32::from(group.id) | libc::PACKET_FANOUT_CBPF << 16;
        set_int(self.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, value as i32)
    }

    /// Another filter from here on.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn filter(&self, filter: &[BpfInstruction]) -> io::Result<()> {
        attach_filter(self.fd.as_raw_fd(), filter)
    }

    /// The status word of the slot that is filled next.
    fn status(&self) -> &AtomicU32 {
        // SAFETY: `next` is below `slots`, so the slot lies inside the mapping of `slots * slot_len` bytes, which lives as
        // long as `self`. It begins with `tpacket2_hdr`, whose first word is the status; slots are aligned to 256 bytes,
        // and both sides touch the word only atomically.
        unsafe { AtomicU32::from_ptr(self.map.add(self.next * self.slot_len).cast().as_ptr()) }
    }

    /// True when a frame is waiting. Asks the memory that is shared with the kernel, not the kernel.
    pub fn has_frames(&self) -> bool {
        self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// Hands at most `max` waiting frames to `take` and gives their slots back; how many there were.
    pub fn receive(&mut self, max: usize, mut take: impl FnMut(Frame<'_>)) -> usize {
        self.receive_looking_ahead(max, |frame, _| take(frame))
    }

    /// The same; with each frame comes the one behind it, if it is there by now, so that what it will need can be fetched
    /// meanwhile. It is handed out as a frame of its own afterwards, in this call or the next.
    pub fn receive_looking_ahead(
        &mut self,
        max: usize,
        mut take: impl FnMut(Frame<'_>, Option<Frame<'_>>),
    ) -> usize {
        let mut taken = 0;
        while taken < max {
            let Some(frame) = self.frame(self.next) else { break };
            let after = if self.next + 1 == self.slots { 0 } else { self.next + 1 };
            take(frame, self.frame(after));
            self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = after;
            taken += 1;
        }
        taken
    }

    /// The frame in a slot, if there is one. Slots are given back by `&mut self` alone, so it stays as it is meanwhile.
    fn frame(&self, index: usize) -> Option<Frame<'_>> {
        assert!(index < self.slots);
        // SAFETY: `index` is below `slots`, so the slot lies inside the mapping of `slots * slot_len` bytes.
        let slot = unsafe { self.map.add(index * self.slot_len) };
        // SAFETY: a slot begins with `tpacket2_hdr`, whose first word is the status; slots are aligned to 256
        // bytes, and both sides touch the word only atomically.
        let status = unsafe { AtomicU32::from_ptr(slot.cast().as_ptr()) };
        let status = status.load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the acquire above says that the kernel has filled the header and will not touch the slot until
        // its status is given back, which takes `&mut self`, or comes after the last use of the frame.
        let header = unsafe { slot.cast::<libc::tpacket2_hdr>().as_ref() };
        let at = usize::from(header.tp_mac).min(self.slot_len);
        let len = (header.tp_snaplen as usize).min(self.slot_len - at);
        // SAFETY: `at + len` is at most `slot_len`, so the bytes lie inside this slot, which is ours until then.
        let bytes = unsafe { std::slice::from_raw_parts(slot.add(at).as_ptr(), len) };
        let unchecked = status & libc::TP_STATUS_CSUMNOTREADY == 0;
        Some(Frame { bytes, len: header.tp_len as usize, unchecked })
    }

    /// Waits until a frame is there, at most for `time`.
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        wait_readable(self.fd.as_raw_fd(), time)
    }

    /// Frames that found no free slot since the last call.
    pub fn overruns(&self) -> u64 {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `stats`, which lives across the call.
        let done = check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        });
        done.map_or(0, |_| u64::from(stats.tp_drops))
    }

    /// A socket of its own for what a [`FrameBatch`] sends on the same interface: the ring's would be looked through for
    /// somebody who waits for it, with every frame that has left. It hears nothing.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, EMFILE.
    pub fn sender(&self) -> io::Result<OwnedFd> {
        // SAFETY: no pointers. Protocol 0 receives nothing.
        let raw = check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        })?;
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        bind(raw, self.index, 0)?;
        let _ = set_int(raw, libc::SOL_PACKET, PACKET_QDISC_BYPASS, i32::from(!self.captured));
        // A whole batch of the longest frames has room; a refusal only means the default size.
        let _ = set_int(raw, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER_LEN);
        Ok(fd)
    }

    /// Bytes of each frame that are kept.
    pub fn snapshot(&self) -> usize {
        self.snapshot
    }
}

impl Drop for FrameRing {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, `ring_len` bytes, and no slice of it outlives `receive`.
        let _ = unsafe { libc::munmap(self.map.as_ptr().cast(), self.ring_len) };
    }
}

impl AsRawFd for FrameRing {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Names interface and protocol (0: nothing is received).
fn bind(raw: RawFd, index: u32, protocol: libc::c_int) -> io::Result<()> {
    // SAFETY: `sockaddr_ll` is plain old data; all-zero is valid.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_protocol = (protocol as u16).to_be();
    addr.sll_ifindex = index as i32;
    // SAFETY: the kernel reads `size_of::<sockaddr_ll>()` bytes from `addr`, which lives across the call.
    check(unsafe {
        libc::bind(raw, (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    })
    .map(drop)
}

fn set_struct<T>(fd: RawFd, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes from `value`, borrowed for the call.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Waits until a descriptor is readable, at most for `time`; a signal ends the wait early.
pub fn wait_readable(fd: RawFd, time: Duration) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let wait = libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(time.subsec_nanos()),
    };
    // SAFETY: one pollfd and one timespec, both borrowed for the call; no signal mask.
    match check(unsafe { libc::ppoll(&raw mut poll, 1, &raw const wait, std::ptr::null()) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// The sending half: frames collected for one `sendmmsg`.
#[derive(Debug)]
pub struct FrameBatch {
    arena: Box<[u8]>,
    used: usize,
    ranges: Vec<(usize, usize)>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    unsent: u64,
}

// SAFETY: the pointers in `iovecs` and `headers` are set afresh in every `flush` and never followed outside it.
unsafe impl Send for FrameBatch {}

impl Default for FrameBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameBatch {
    /// Allocates the buffers, about 260 KiB.
    pub fn new() -> Self {
        // SAFETY: iovec and mmsghdr are plain old data; all-zero (null pointers, zero lengths) is valid.
        let (iovec, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            arena: vec![0; ARENA_LEN].into_boxed_slice(),
            used: 0,
            ranges: Vec::with_capacity(SEND_BATCH),
            iovecs: vec![iovec; SEND_BATCH].into_boxed_slice(),
            headers: vec![header; SEND_BATCH].into_boxed_slice(),
            unsent: 0,
        }
    }

    /// Adds a frame of at most `len_max` bytes, written by `write`, which says how long it became (`None`: no frame).
    /// A full batch is sent first.
    pub fn push(
        &mut self,
        socket: &impl AsRawFd,
        len_max: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        if self.ranges.len() == SEND_BATCH || self.used + len_max > self.arena.len() {
            self.flush(socket);
        }
        let Some(room) = self.arena.get_mut(self.used..self.used + len_max) else { return };
        if let Some(len) = write(room).filter(|len| *len <= len_max) {
            self.ranges.push((self.used, len));
            self.used += len;
        }
    }

    /// Sends what was collected. What the kernel does not take is lost, as on a wire, and counted.
    pub fn flush(&mut self, socket: &impl AsRawFd) {
        let count = self.ranges.len();
        for (index, (at, len)) in self.ranges.iter().enumerate() {
            self.iovecs[index] =
                libc::iovec { iov_base: self.arena[*at..at + len].as_mut_ptr().cast(), iov_len: *len };
            self.headers[index].msg_hdr.msg_iov = &raw mut self.iovecs[index];
            self.headers[index].msg_hdr.msg_iovlen = 1;
        }
        let mut done = 0;
        while done < count {
            // SAFETY: the headers from `done` to `count` point at this batch's own iovecs and arena, set just above;
            // the kernel keeps no pointer after the call.
            let sent = check(unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers[done..].as_mut_ptr(),
                    (count - done) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            });
            match sent {
                Ok(sent) => done += sent as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    done += 1;
                    self.unsent += 1;
                }
            }
        }
        self.ranges.clear();
        self.used = 0;
    }

    /// Frames the kernel did not take so far.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE_LINK: RingUse =
        RingUse { snapshot: 100, len: 1 << 20, all: true, outgoing: false, captured: false };
    use std::net::UdpSocket;

    const ACCEPT_ALL: [BpfInstruction; 1] = [BpfInstruction { code: 6, jt: 0, jf: 0, k: 0x4_0000 }];

    fn loopback() -> u32 {
        crate::sys::interfaces::list().unwrap().iter().find(|i| i.name == "lo").unwrap().index
    }

    /// Receives until `wanted` says yes to a frame; panics after two seconds.
    fn until(ring: &mut FrameRing, mut wanted: impl FnMut(&Frame<'_>) -> bool) {
        let start = std::time::Instant::now();
        let mut found = false;
        while !found {
            assert!(start.elapsed() < Duration::from_secs(2), "the frame never came");
            ring.wait(Duration::from_millis(100)).unwrap();
            ring.receive(64, |frame| found |= wanted(&frame));
        }
    }

    #[test]
    fn a_frame_keeps_its_length_when_it_is_cut() {
        let mut ring = FrameRing::open("lo", loopback(), &ACCEPT_ALL, &WHOLE_LINK).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mark = b"a mark that nothing else on loopback has";
        let mut payload = mark.to_vec();
        payload.resize(5000, 7);
        sender.send_to(&payload, receiver.local_addr().unwrap()).unwrap();
        until(&mut ring, |frame| {
            let ours = frame.bytes.windows(mark.len()).any(|window| window == mark);
            if ours {
                assert_eq!(frame.len, 14 + 20 + 8 + 5000);
                assert!(frame.bytes.len() < 200, "{}", frame.bytes.len());
            }
            ours
        });
    }

    #[test]
    fn what_this_host_sends_is_heard_by_who_asks_for_it() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mark = b"once as it leaves and once as it comes";
        for outgoing in [false, true] {
            let use_of_it = RingUse { snapshot: 100, len: 1 << 20, all: false, outgoing, captured: false };
            let mut ring = FrameRing::open("lo", loopback(), &ACCEPT_ALL, &use_of_it).unwrap();
            sender.send_to(mark, receiver.local_addr().unwrap()).unwrap();
            // Loopback delivers before the call returns.
            let mut heard = 0;
            ring.receive(1000, |frame| {
                heard += usize::from(frame.bytes.windows(mark.len()).any(|window| window == mark));
            });
            assert_eq!(heard, 1 + usize::from(outgoing));
        }
    }

    #[test]
    fn frames_leave_in_order_and_are_seen_by_another_socket() {
        let index = loopback();
        let sender = FrameRing::open("lo", index, &ACCEPT_ALL, &WHOLE_LINK).unwrap();
        let mut receiver = FrameRing::open("lo", index, &ACCEPT_ALL, &WHOLE_LINK).unwrap();
        let mut batch = FrameBatch::new();
        for number in 0..100u8 {
            batch.push(&sender, 64, |frame| {
                frame[..12].fill(2);
                // An EtherType for experiments (IEEE 802), so that no stack answers.
                frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                frame[14..64].fill(number);
                Some(64)
            });
        }
        batch.push(&sender, 64, |_| None);
        batch.flush(&sender);
        assert_eq!(batch.unsent(), 0);
        let mut seen = Vec::new();
        until(&mut receiver, |frame| {
            if frame.bytes.get(12..14) == Some(&[0x88, 0xb5]) {
                seen.push(frame.bytes[20]);
            }
            seen.len() == 100
        });
        assert_eq!(seen, (0..100).collect::<Vec<u8>>());
    }
}

//! io_uring as a sender. By one ring file pages leave from the file's own mapping (IORING_OP_SEND_ZC), without a copy where the
//! device can send user pages; its descriptor is one more readable descriptor in a core's loop. By another many short
//! answers leave in one call (IORING_OP_SEND).

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, cqueue, opcode, types};

use super::mmap::Mapping;

/// Report in the notification whether the kernel copied after all (linux/io_uring.h).
const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;
/// Set in a notification's result when it did.
const NOTIF_USAGE_ZC_COPIED: u32 = 1 << 31;

/// How long the end of a ring waits for the kernel to let go of pages.
const LETTING_GO_MAX: Duration = Duration::from_millis(500);

/// What a send came to.
#[derive(Debug)]
pub enum Completion {
    /// The socket took this many bytes, or an error. The mapping is still held.
    Sent {
        /// The caller's tag.
        tag: u64,
        /// Bytes taken.
        result: io::Result<usize>,
    },
    /// The kernel is done with the pages.
    Released {
        /// The caller's tag.
        tag: u64,
        /// It copied them first: zero-copy gained nothing on this path.
        copied: bool,
    },
}

/// A send whose pages the kernel may still read.
#[derive(Debug)]
struct Inflight {
    tag: u64,
    /// Held until the notification says the kernel has let go of the pages.
    _mapping: Arc<Mapping>,
}

/// One core's ring.
pub struct SendRing {
    ring: IoUring,
    inflight: Vec<Option<Inflight>>,
    free: Vec<u32>,
}

impl std::fmt::Debug for SendRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendRing").field("inflight", &(self.inflight.len() - self.free.len())).finish()
    }
}

impl SendRing {
    /// Sets up a ring that can have `sends_max` sends in flight, and checks that this kernel has SEND_ZC. It takes no other
    /// operation, ever: a ring makes calls that no filter of system calls sees.
    pub fn new(sends_max: u32) -> io::Result<Self> {
        // Each send makes two completions: the result and the release of its pages.
        let ring = IoUring::builder().setup_cqsize(sends_max * 2).setup_r_disabled().build(sends_max)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::SendZc::CODE) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring has no SEND_ZC (needs 6.0)",
            ));
        }
        let mut restrictions = [Restriction::sqe_op(opcode::SendZc::CODE)];
        ring.submitter().register_restrictions(&mut restrictions)?;
        ring.submitter().register_enable_rings()?;
        Ok(Self {
            ring,
            inflight: (0..sends_max).map(|_| None).collect(),
            free: (0..sends_max).rev().collect(),
        })
    }

    /// Queues `len` bytes of `mapping` from `offset` for `socket`. False when too many sends are in flight or the
    /// range is not in the mapping. The caller keeps `socket` open until the [`Completion::Sent`].
    pub fn send(&mut self, socket: RawFd, mapping: &Arc<Mapping>, offset: u64, len: usize, tag: u64) -> bool {
        let Some(slice) = mapping.iovec_range(offset, len) else { return false };
        let Some(slot) = self.free.pop() else { return false };
        let entry = opcode::SendZc::new(types::Fd(socket), slice.ptr, slice.len as u32)
            .flags(libc::MSG_NOSIGNAL)
            .zc_flags(SEND_ZC_REPORT_USAGE)
            .build()
            .user_data(u64::from(slot));
        self.inflight[slot as usize] = Some(Inflight { tag, _mapping: Arc::clone(mapping) });
        // SAFETY: the entry points into `mapping`, which `inflight[slot]` holds until the release notification (or
        // a completion that announces none) is reaped; on drop `Drop` reaps them all before letting go.
        let queued = unsafe { self.ring.submission().push(&entry) }.is_ok();
        if !queued {
            self.inflight[slot as usize] = None;
            self.free.push(slot);
        }
        queued
    }

    /// Hands queued sends to the kernel.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.ring.submit().map(drop)
    }

    /// Sends the kernel has not finished with.
    pub fn inflight(&self) -> usize {
        self.inflight.len() - self.free.len()
    }

    /// The next completion, if any.
    pub fn complete(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let slot = entry.user_data() as usize;
        let tag = self.inflight.get(slot)?.as_ref()?.tag;
        if cqueue::notif(entry.flags()) {
            self.release(slot);
            return Some(Completion::Released {
                tag,
                copied: entry.result() as u32 & NOTIF_USAGE_ZC_COPIED != 0,
            });
        }
        if !cqueue::more(entry.flags()) {
            self.release(slot);
        }
        let result = match entry.result() {
            bytes if bytes >= 0 => Ok(bytes as usize),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        Some(Completion::Sent { tag, result })
    }

    fn release(&mut self, slot: usize) {
        if self.inflight[slot].take().is_some() {
            self.free.push(slot as u32);
        }
    }
}

impl Drop for SendRing {
    fn drop(&mut self) {
        // Every socket is shut down by now, so what the sockets had not taken ends with an error at once. What they had
        // taken is let go of when the peer acknowledges it, and a peer that has vanished never does: no exit waits for
        // that. What is left is leaked, never unmapped under the kernel.
        let until = Instant::now() + LETTING_GO_MAX;
        loop {
            while self.complete().is_some() {}
            let left = until.saturating_duration_since(Instant::now());
            if self.inflight() == 0 || left.is_zero() {
                break;
            }
            let timeout = types::Timespec::from(left);
            let wait = types::SubmitArgs::new().timespec(&timeout);
            match self.ring.submitter().submit_with_args(1, &wait) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
                Err(_) => break,
            }
        }
        for inflight in self.inflight.drain(..).flatten() {
            std::mem::forget(inflight);
        }
    }
}

/// One of the sends of a [`BurstRing`].
#[derive(Clone, Debug)]
pub struct Shot {
    /// Where it goes.
    pub socket: RawFd,
    /// Which of the bytes.
    pub bytes: Range<usize>,
    /// More follows at once.
    pub more: bool,
}

/// One core's ring for many short sends in one call, each of which ends within the call.
pub struct BurstRing {
    /// `None` once the kernel has failed it.
    ring: Option<IoUring>,
    results: Vec<Option<i32>>,
}

impl std::fmt::Debug for BurstRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BurstRing").field("works", &self.ring.is_some()).finish()
    }
}

impl BurstRing {
    /// Sets up a ring that takes `sends_max` sends in one call and no other operation, ever: see [`SendRing::new`].
    ///
    /// # Errors
    /// What the kernel says where it has no such ring or refuses it.
    pub fn new(sends_max: u32) -> io::Result<Self> {
        // One send that is refused keeps none behind it from being tried.
        let ring = IoUring::builder().setup_submit_all().setup_r_disabled().build(sends_max)?;
        let mut restrictions = [Restriction::sqe_op(opcode::Send::CODE)];
        ring.submitter().register_restrictions(&mut restrictions)?;
        ring.submitter().register_enable_rings()?;
        Ok(Self { ring: Some(ring), results: Vec::new() })
    }

    /// False once a call of this ring has failed: then nothing is sent by it.
    pub fn works(&self) -> bool {
        self.ring.is_some()
    }

    /// Sends each shot of `bytes` as [`tcp::send`](super::tcp::send) would, and says in their order what became of them: bytes
    /// taken; `WouldBlock` where nothing was, by a full socket or a ring that failed; another error of a broken socket.
    pub fn send(&mut self, bytes: &[u8], shots: &[Shot]) -> impl Iterator<Item = io::Result<usize>> {
        self.results.clear();
        self.results.resize(shots.len(), None);
        if let Some(ring) = &mut self.ring
            && let Err(error) = shoot(ring, bytes, shots, &mut self.results)
        {
            tracing::warn!(%error, "io_uring fails: answers leave without it");
            // What is still queued in it points to `bytes`, and goes unread with it.
            self.ring = None;
        }
        self.results.iter().map(|result| match result.unwrap_or(-libc::EAGAIN) {
            taken if taken >= 0 => Ok(taken as usize),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        })
    }
}

/// Queues as many shots as there is room for, has them sent, and so on with the rest.
fn shoot(ring: &mut IoUring, bytes: &[u8], shots: &[Shot], results: &mut [Option<i32>]) -> io::Result<()> {
    let mut left = 0;
    for (number, shot) in shots.iter().enumerate() {
        let Some(part) = bytes.get(shot.bytes.clone()) else { continue };
        let more = if shot.more { libc::MSG_MORE } else { 0 };
        let entry = opcode::Send::new(types::Fd(shot.socket), part.as_ptr(), part.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | more)
            .build()
            .user_data(number as u64);
        if ring.submission().is_full() {
            settle(ring, &mut left, results)?;
        }
        // SAFETY: `bytes` is borrowed for longer than this call. The kernel reads it in `settle` only: a send with
        // MSG_DONTWAIT never waits (io_uring/net.c, `io_sendmsg_prep`), `settle` comes back when it has ended, and after
        // an error the ring goes with what is queued.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        left += 1;
    }
    settle(ring, &mut left, results)
}

/// Hands over what is queued, and takes what became of it, which is at once, until nothing is `left`.
fn settle(ring: &mut IoUring, left: &mut usize, results: &mut [Option<i32>]) -> io::Result<()> {
    while *left > 0 {
        match ring.submit_and_wait(*left) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            submitted => _ = submitted?,
        }
        for entry in ring.completion() {
            if let Some(result) = results.get_mut(entry.user_data() as usize) {
                *result = Some(entry.result());
            }
            *left = left.saturating_sub(1);
        }
    }
    Ok(())
}

impl AsRawFd for SendRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tcp;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_mapping_is_sent_and_released() {
        let Ok(mut ring) = SendRing::new(8) else {
            panic!("io_uring is refused here: no test of the ring is possible")
        };
        let path = std::env::temp_dir().join(format!("bootstorm-uring-{}", std::process::id()));
        let content: Vec<u8> = (0..200_000u32).map(|i| (i * 13) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mapping = Arc::new(Mapping::map(&std::fs::File::open(&path).unwrap()).unwrap());
        std::fs::remove_file(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            TcpStream::connect(address).unwrap().read_to_end(&mut got).unwrap();
            got
        });
        let (server, _) = listener.accept().unwrap();
        let mut sent = 0;
        let mut released = 0;
        let mut sends = 0;
        while sent < content.len() {
            assert!(ring.send(server.as_raw_fd(), &mapping, sent as u64, content.len() - sent, 42));
            sends += 1;
            ring.submit().unwrap();
            let mut answered = false;
            while !answered {
                ring.ring.submit_and_wait(1).unwrap();
                while let Some(completion) = ring.complete() {
                    match completion {
                        Completion::Sent { tag, result } => {
                            assert_eq!(tag, 42);
                            sent += result.unwrap();
                            answered = true;
                        }
                        Completion::Released { .. } => released += 1,
                    }
                }
            }
        }
        drop(server);
        assert_eq!(reader.join().unwrap(), content);
        while released < sends {
            if let Some(Completion::Released { .. }) = ring.complete() {
                released += 1;
            }
        }
        assert_eq!(ring.inflight(), 0);
    }

    #[test]
    fn a_burst_reaches_every_socket_and_says_which_took_nothing() {
        // Fewer places than shots: it takes several calls.
        let Ok(mut ring) = BurstRing::new(4) else {
            panic!("io_uring is refused here: no test of the ring is possible")
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pairs: Vec<_> = (0..11)
            .map(|_| {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (server, _) = listener.accept().unwrap();
                server.set_nonblocking(true).unwrap();
                (server, client)
            })
            .collect();
        // The fourth is full, the seventh ended, the ninth is to send what there is not.
        let filler = vec![7; 1 << 20];
        while tcp::send(&pairs[3].0, &filler, false).is_ok() {}
        pairs[6].0.shutdown(std::net::Shutdown::Both).unwrap();
        let bytes: Vec<u8> = (0..110).collect();
        let mut shots: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(n, pair)| Shot { socket: pair.0.as_raw_fd(), bytes: n * 10..n * 10 + 10, more: n == 2 })
            .collect();
        shots[8].bytes = 105..111;
        for _ in 0..3 {
            let results: Vec<_> = ring.send(&bytes, &shots).collect();
            assert_eq!(results.len(), pairs.len());
            for (n, result) in results.into_iter().enumerate() {
                match n {
                    3 | 8 => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock),
                    6 => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe),
                    _ => assert_eq!(result.unwrap(), 10),
                }
            }
            assert!(ring.works());
        }
        assert_eq!(ring.send(&bytes, &[]).count(), 0);
        for (n, (server, mut client)) in pairs.into_iter().enumerate() {
            drop(server);
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            match n {
                3 => assert!(got.iter().all(|byte| *byte == 7)),
                6 | 8 => assert!(got.is_empty()),
                _ => assert_eq!(got, bytes[n * 10..n * 10 + 10].repeat(3), "{n}"),
            }
        }
    }

    #[test]
    fn the_end_does_not_wait_for_a_peer_that_takes_nothing() {
        let Ok(mut ring) = SendRing::new(64) else {
            panic!("io_uring is refused here: no test of the ring is possible")
        };
        let path = std::env::temp_dir().join(format!("bootstorm-uring-e-{}", std::process::id()));
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let mapping = Arc::new(Mapping::map(&std::fs::File::open(&path).unwrap()).unwrap());
        std::fs::remove_file(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        for _ in 0..64 {
            assert!(ring.send(server.as_raw_fd(), &mapping, 0, 1 << 20, 1));
        }
        ring.submit().unwrap();
        server.shutdown(std::net::Shutdown::Both).unwrap();
        let begun = Instant::now();
        drop(ring);
        // The kernel still held pages, and would have until the peer reads or the connection is given up.
        assert!(
            begun.elapsed() >= LETTING_GO_MAX && begun.elapsed() < Duration::from_secs(20),
            "{:?}",
            begun.elapsed()
        );
        drop(peer);
    }

    #[test]
    fn a_range_outside_the_mapping_is_never_queued() {
        let Ok(mut ring) = SendRing::new(2) else {
            panic!("io_uring is refused here: no test of the ring is possible")
        };
        let path = std::env::temp_dir().join(format!("bootstorm-uring-r-{}", std::process::id()));
        std::fs::write(&path, b"ten bytes!").unwrap();
        let mapping = Arc::new(Mapping::map(&std::fs::File::open(&path).unwrap()).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(!ring.send(0, &mapping, 5, 6, 1));
        assert!(!ring.send(0, &mapping, u64::MAX, 1, 1));
        assert_eq!(ring.inflight(), 0);
    }
}

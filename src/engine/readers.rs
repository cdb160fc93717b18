//! Files of TFTP that are not in memory: read by threads of their own, so that no core waits for a disk with them.
//!
//! A block that leaves from a mapping whose page is not there makes the system call wait for the disk, and with it every
//! other transfer of that core. So before blocks leave, [`Readers::at_hand`] asks whether their pages are in memory
//! (a read that may not wait), once per chunk of a file and couple of seconds, whoever asks. What is not is read by one
//! of a few threads, from a queue with a bound; the transfer looks again in a moment, and all others go on.
//!
//! What this cannot see: a page that goes between the look and the send (memory is short), a file system that does not
//! know reads without waiting (its files count as present).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::files::served::{CHUNK_LEN, Opened};
use crate::sys::pages::Resident;

/// Threads that read: as many disks, or requests to one, are waited for at once.
const THREADS: usize = 4;
/// Chunks waiting to be read.
const QUEUE: usize = 256;
/// Chunks asked for ahead of the one that was missing: a download goes on where it is.
const AHEAD: u64 = 8;
/// For so long a chunk that was there is taken to be there still.
const PRESENT_FOR: Duration = Duration::from_secs(2);
/// A chunk that is being read.
const BEING_READ: u32 = u32::MAX;

struct Missing {
    opened: Arc<Opened>,
    chunk: u64,
}

/// Reads ahead for all cores. The threads end when the last core lets go of it.
#[derive(Debug)]
pub(super) struct Readers {
    queue: Sender<Missing>,
    start: Instant,
}

impl Readers {
    /// Starts the threads. With fewer than wanted, or none, the rest or the cores do the waiting.
    pub(super) fn start() -> Arc<Self> {
        let (readers, missing) = Self::new(QUEUE);
        for number in 0..THREADS {
            let (missing, start) = (missing.clone(), readers.start);
            let spawned = std::thread::Builder::new().name(format!("reader-{number}")).spawn(move || {
                crate::sys::privileges::renounce();
                read_all(&missing, start);
            });
            if let Err(error) = spawned {
                tracing::warn!(%error, "cannot start a reader: cores will wait for disks themselves");
            }
        }
        Arc::new(readers)
    }

    fn new(queue: usize) -> (Self, Receiver<Missing>) {
        let (sender, receiver) = crossbeam_channel::bounded(queue);
        (Self { queue: sender, start: Instant::now() }, receiver)
    }

    /// Milliseconds since the start; wraps after seven weeks.
    pub(super) fn elapsed_ms(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_millis() as u32
    }

    /// True when `len` bytes from `offset` can leave without waiting for a disk. Where not, they are on their way into
    /// memory, or will be when the queue has room: ask again.
    pub(super) fn at_hand(&self, now: Instant, opened: &Arc<Opened>, offset: u64, len: u64) -> bool {
        let last = (offset + len.max(1) - 1) / CHUNK_LEN;
        // All of them, so that what a window needs is read at once.
        let missing =
            (offset / CHUNK_LEN..=last).filter(|chunk| !self.chunk_at_hand(now, opened, *chunk)).count();
        missing == 0
    }

    fn chunk_at_hand(&self, now: Instant, opened: &Arc<Opened>, chunk: u64) -> bool {
        // Behind the end: an empty last block.
        let Some(seen) = opened.chunk(chunk) else { return true };
        let stamp = seen.load(Ordering::Relaxed);
        if stamp == BEING_READ {
            return false;
        }
        let stamp_now = stamp_at(self.start, now);
        if stamp != 0 && stamp_now.wrapping_sub(stamp) <= PRESENT_FOR.as_secs() as u32 {
            return true;
        }
        if opened.is_resident(chunk) != Resident::Missing {
            seen.store(stamp_now, Ordering::Relaxed);
            return true;
        }
        if seen.compare_exchange(stamp, BEING_READ, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            match self.queue.try_send(Missing { opened: Arc::clone(opened), chunk }) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => seen.store(0, Ordering::Relaxed),
                // No thread: the send waits for the disk as it would without all this.
                Err(TrySendError::Disconnected(_)) => {
                    seen.store(stamp_now, Ordering::Relaxed);
                    return true;
                }
            }
        }
        false
    }
}

/// Seconds since the start, from 1: 0 is a chunk nobody looked at.
fn stamp_at(start: Instant, now: Instant) -> u32 {
    (now.saturating_duration_since(start).as_secs() as u32).saturating_add(1).min(BEING_READ - 1)
}

fn read_all(missing: &Receiver<Missing>, start: Instant) {
    let mut buffer = vec![0; CHUNK_LEN as usize];
    while let Ok(Missing { opened, chunk }) = missing.recv() {
        opened.ask_ahead(chunk + 1, AHEAD);
        // A chunk that cannot be read counts as present too: then the send says what is wrong with it.
        if let Err(error) = opened.read_chunk(chunk, &mut buffer) {
            tracing::debug!(%error, chunk, "cannot read ahead");
        }
        if let Some(seen) = opened.chunk(chunk) {
            seen.store(stamp_at(start, Instant::now()), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::served::test_file::cold_file;

    #[test]
    fn a_missing_chunk_is_asked_for_once_and_present_when_it_was_read() {
        let (_folder, opened) = cold_file("readers-once", 40 * CHUNK_LEN + 5);
        let (readers, missing) = Readers::new(8);
        let now = readers.start;
        assert!(!readers.at_hand(now, &opened, 0, 1428));
        assert!(!readers.at_hand(now, &opened, 1428, 1428));
        assert_eq!(missing.len(), 1, "asked once");
        assert!(!readers.at_hand(now, &opened, 31 * CHUNK_LEN - 1, 2), "a window across two chunks");
        assert!(missing.len() >= 2);
        drop(readers);
        let (readers, _) = Readers::new(8);
        read_all(&missing, readers.start);
        assert!(readers.at_hand(now, &opened, 0, CHUNK_LEN));
        assert!(readers.at_hand(now, &opened, 31 * CHUNK_LEN - 1, 1));
        assert!(readers.at_hand(now, &opened, opened.len, 0), "the empty block behind the end");
    }

    #[test]
    fn a_full_queue_is_tried_again_and_never_grows() {
        let (_folder, opened) = cold_file("readers-full", 40 * CHUNK_LEN);
        let (readers, missing) = Readers::new(1);
        let now = readers.start;
        assert!(!readers.at_hand(now, &opened, 0, 1));
        // Chunks far apart: looking at one makes the kernel read ahead.
        for chunk in [9, 18, 27] {
            assert!(!readers.at_hand(now, &opened, chunk * CHUNK_LEN, 1));
            assert_eq!(missing.len(), 1);
        }
        let first = missing.recv().expect("one waits");
        assert_eq!(first.chunk, 0);
        assert!(!readers.at_hand(now, &opened, 36 * CHUNK_LEN, 1));
        assert_eq!(missing.recv().expect("now it has room").chunk, 36);
    }

    #[test]
    fn without_readers_the_core_waits_itself() {
        let (_folder, opened) = cold_file("readers-none", CHUNK_LEN);
        let (readers, missing) = Readers::new(1);
        drop(missing);
        assert!(readers.at_hand(readers.start, &opened, 0, 1));
    }
}

//! Files that are not in memory: read by threads of their own, so that no core waits for a disk with them.
//!
//! A block that leaves from a mapping whose page is not there makes the system call wait for the disk, and so does a splice
//! or a read of such a page, and with it every other transfer of that core. So before anything leaves, [`Readers::ready`]
//! says how much of it has its pages in memory, which is looked at once per chunk of a file and some seconds, whoever asks
//! ([`crate::sys::pages`]). What is not is read by one of a few threads, from a queue with a bound; the transfer looks again in
//! a moment, and all others go on.
//!
//! A file that takes more than half of the memory there is, and that one machine at a time is sent, goes out of memory behind it
//! ([`Readers::leave`]): it would push out what everybody else is being sent, for nobody. What was in memory before stays, and so does
//! what several are sent.
//!
//! What this cannot see: a page that goes between the look and the send (memory is short), a file of another owner on a file
//! system that does not know reads without waiting (it counts as present).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError, select_biased};

use crate::files::served::{CHUNK_LEN, FOLIO_MAX, Opened, SPAN_LEN};
use crate::sys::pages::Resident;

/// Threads that read: as many disks, or requests to one, are waited for at once. The last of them reads windows only.
const THREADS: usize = 4;
/// Chunks waiting to be read, of each kind of transfer.
const QUEUE: usize = 256;
/// Chunks looked at that are not there yet, for one who asks: what comes after them is read ahead.
const ASKED_MAX: usize = 4;
/// Chunks asked for ahead of the one that was missing: a download goes on where it is.
const AHEAD: u64 = 8;
/// Not when more than so many wait: what is asked for ahead comes before them.
const AHEAD_UNTIL: usize = 32;
/// For so long a chunk that was there is taken to be there still while others are being read, which pushes pages out, ...
const PRESENT_FOR: u32 = 2;
/// ... and for so long, in seconds, when nothing has been missing for as long.
const PRESENT_FOR_QUIET: u32 = 10;

/// Chunks are stamped with the second they were seen in, or with one of these, all of which are later.
const BEING_READ: u32 = u32::MAX;
/// It stands in the queue of pieces: a window that needs it goes before.
const WAITS_AS_PIECE: u32 = u32::MAX - 1;
/// It is not in memory and found no room in its queue: looks begin to read, and would do so without a bound.
const MISSING: u32 = u32::MAX - 2;
/// Its disk does not give it. Whoever looks next is told so, and the one after that has it read again.
const UNREADABLE: u32 = u32::MAX - 3;

/// A span of a huge file nobody has looked at since somebody began to be sent it.
const UNSEEN: u8 = 0;
/// Whether it is in memory will be known.
const SURVEYED: u8 = 1;
/// Hardly any of it was in memory: it leaves when it has been sent.
const ABSENT: u8 = 2;
/// It was in memory, or several are being sent it.
const STAYS: u8 = 3;
/// It has left.
const GONE: u8 = 4;
/// The next span but one behind where a transfer is, what is in between may not be acknowledged yet; and the next but one
/// before it, which the kernel does not read ahead yet.
const APART: u64 = 2;
/// How far behind a transfer a span is looked for that has not left yet, in spans.
const BEHIND: u64 = 8;

struct Missing {
    opened: Arc<Opened>,
    chunk: u64,
}

/// What is done with a span of a huge file when nobody waits.
struct Errand {
    opened: Arc<Opened>,
    span: u64,
    /// Or else see whether it is in memory.
    leaves: bool,
}

/// Whose turn it is when more is missing than can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// The next window of a machine whose firmware gives up after some seconds.
    Window,
    /// The next piece of a download: read when no window waits.
    Piece,
}

/// A disk does not give what it should hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unreadable;

/// What a look at a chunk came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// It is in memory.
    Ready,
    /// It will be.
    Asked,
    /// It is not, and too many wait already.
    Full,
    /// It never will be.
    Unreadable,
}

/// Reads ahead for all cores. The threads end when the last core lets go of it.
#[derive(Debug)]
pub(super) struct Readers {
    windows: Sender<Missing>,
    pieces: Sender<Missing>,
    errands: Sender<Errand>,
    /// When a chunk was missing last, as chunks are stamped.
    missed: AtomicU32,
    start: Instant,
    /// Files longer than this are huge.
    huge: u64,
}

/// What the threads read from.
#[derive(Clone)]
struct Queues {
    windows: Receiver<Missing>,
    pieces: Receiver<Missing>,
    errands: Receiver<Errand>,
}

impl Queues {
    /// The next chunk, for windows or for whoever waits; `None` when nobody is left who could ask for one. Errands are run
    /// in between.
    fn next(&self, windows_only: bool) -> Option<Missing> {
        if windows_only {
            return self.windows.recv().ok();
        }
        // One with each chunk, however many wait.
        self.errands.try_iter().take(1).for_each(Errand::run);
        loop {
            select_biased! {
                recv(self.windows) -> missing => return missing.ok(),
                recv(self.pieces) -> missing => return missing.ok(),
                recv(self.errands) -> errand => errand.ok()?.run(),
            }
        }
    }

    fn len(&self) -> usize {
        self.windows.len() + self.pieces.len()
    }
}

impl Errand {
    fn run(self) {
        let Self { opened, span, leaves } = self;
        let Some(note) = opened.span(span) else { return };
        if !leaves {
            let is = if opened.is_absent(span) { ABSENT } else { STAYS };
            let _ = note.compare_exchange(SURVEYED, is, Ordering::Relaxed, Ordering::Relaxed);
            return;
        }
        if !opened.is_alone() {
            note.store(STAYS, Ordering::Relaxed);
            return;
        }
        let is_gone = |span: u64| opened.span(span).is_some_and(|note| note.load(Ordering::Relaxed) == GONE);
        let before = if span.checked_sub(1).is_some_and(is_gone) { FOLIO_MAX } else { 0 };
        // Before and after: what is looked at meanwhile may be gone a moment later. What waits to be read is read anyway.
        let begin = (span * SPAN_LEN - before) / CHUNK_LEN;
        let look_again = || {
            let chunks = begin..(span + 1) * SPAN_LEN / CHUNK_LEN;
            for seen in chunks.filter_map(|chunk| opened.chunk(chunk)) {
                let _ = seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |stamp| {
                    (stamp < UNREADABLE).then_some(0)
                });
            }
        };
        look_again();
        opened.let_go(span, before);
        look_again();
    }
}

impl Readers {
    /// Starts the threads. With fewer than wanted, or none, the rest or the cores do the waiting. Files of more than `huge`
    /// bytes do not stay in memory for one machine.
    pub(super) fn start(huge: u64) -> Arc<Self> {
        let (readers, queues) = Self::new(QUEUE, huge);
        let mut started = 0;
        for number in 0..THREADS {
            let (queues, start) = (queues.clone(), readers.start);
            let windows_only = started == THREADS - 1;
            let spawned = std::thread::Builder::new().name(format!("reader-{number}")).spawn(move || {
                crate::sys::privileges::renounce();
                read_all(&queues, windows_only, start);
            });
            match spawned {
                Ok(_) => started += 1,
                Err(error) => {
                    tracing::warn!(%error, "cannot start a reader: cores will wait for disks themselves");
                }
            }
        }
        Arc::new(readers)
    }

    fn new(queue: usize, huge: u64) -> (Self, Queues) {
        let (windows, missing_windows) = crossbeam_channel::bounded(queue);
        let (pieces, missing_pieces) = crossbeam_channel::bounded(queue);
        let (errands, to_run) = crossbeam_channel::bounded(queue);
        let (missed, start) = (AtomicU32::new(0), Instant::now());
        let readers = Self { windows, pieces, errands, missed, start, huge };
        (readers, Queues { windows: missing_windows, pieces: missing_pieces, errands: to_run })
    }

    /// None: whatever is missing, the caller waits for it.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self::new(1, u64::MAX).0
    }

    /// Milliseconds since the start; wraps after seven weeks.
    pub(super) fn elapsed_ms(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_millis() as u32
    }

    /// Of `len` bytes from `offset`, how many from the first on can leave without waiting for a disk. Where those are not all,
    /// the others are on their way into memory, or will be when the queue has room: ask again.
    ///
    /// # Errors
    /// [`Unreadable`] when the first of them cannot be read; of a window, which leaves whole or not at all, when any cannot.
    pub(super) fn ready(
        &self,
        now: Instant,
        opened: &Arc<Opened>,
        offset: u64,
        len: u64,
        want: Want,
    ) -> Result<u64, Unreadable> {
        let (first, last) = (offset / CHUNK_LEN, (offset + len.max(1) - 1) / CHUNK_LEN);
        let now = stamp_at(self.start, now);
        if opened.len > self.huge {
            self.leave(opened, offset);
        }
        let (mut ready, mut asked) = (len, 0);
        // More than one, so that what is needed is read at once.
        for chunk in first..=last {
            let seen = self.look(now, opened, chunk, want);
            if seen == Look::Ready {
                continue;
            }
            let before = (chunk * CHUNK_LEN).saturating_sub(offset);
            if seen == Look::Unreadable {
                if before == 0 || want == Want::Window {
                    return Err(Unreadable);
                }
                // Whoever comes to it is told.
                if let Some(note) = opened.chunk(chunk) {
                    let _ = note.compare_exchange(MISSING, UNREADABLE, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
            ready = ready.min(before);
            asked += 1;
            if seen != Look::Asked || asked == ASKED_MAX {
                break;
            }
        }
        Ok(ready)
    }

    /// A transfer of a huge file is at `offset`. What it has behind it leaves memory, if it was brought in for it alone.
    fn leave(&self, opened: &Arc<Opened>, offset: u64) {
        let here = offset / SPAN_LEN;
        if !opened.is_alone() {
            if let Some(note) = opened.span(here) {
                note.store(STAYS, Ordering::Relaxed);
            }
            return;
        }
        for span in here..=here + APART {
            self.errand(opened, span, UNSEEN, SURVEYED);
            self.errand(opened, span, GONE, SURVEYED);
        }
        for span in here.saturating_sub(BEHIND)..here.saturating_sub(APART - 1) {
            self.errand(opened, span, ABSENT, GONE);
        }
    }

    /// Has something done with a span whose note is `from`. Not when too much waits: the next who asks tries again.
    fn errand(&self, opened: &Arc<Opened>, span: u64, from: u8, to: u8) {
        let Some(note) = opened.span(span) else { return };
        if note.load(Ordering::Relaxed) != from
            || note.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let errand = Errand { opened: Arc::clone(opened), span, leaves: from == ABSENT };
        if self.errands.try_send(errand).is_err() {
            note.store(from, Ordering::Relaxed);
        }
    }

    fn look(&self, now: u32, opened: &Arc<Opened>, chunk: u64, want: Want) -> Look {
        // Behind the end: an empty last block.
        let Some(seen) = opened.chunk(chunk) else { return Look::Ready };
        let queue = match want {
            Want::Window => &self.windows,
            Want::Piece => &self.pieces,
        };
        let stamp = seen.load(Ordering::Relaxed);
        match stamp {
            BEING_READ => return Look::Asked,
            WAITS_AS_PIECE if want == Want::Piece => return Look::Asked,
            WAITS_AS_PIECE | MISSING if queue.is_full() => return Look::Full,
            WAITS_AS_PIECE | MISSING => {}
            UNREADABLE => {
                seen.store(MISSING, Ordering::Relaxed);
                return Look::Unreadable;
            }
            0 => {}
            _ => {
                // A core whose turn began before another one looked is behind its stamp.
                let age = now.saturating_sub(stamp);
                if age <= PRESENT_FOR || (age <= PRESENT_FOR_QUIET && self.is_quiet(now)) {
                    return Look::Ready;
                }
            }
        }
        if !matches!(stamp, WAITS_AS_PIECE | MISSING) && opened.is_resident(chunk) != Resident::Missing {
            seen.store(now, Ordering::Relaxed);
            return Look::Ready;
        }
        self.doubt_at(now);
        let waits = if want == Want::Piece { WAITS_AS_PIECE } else { BEING_READ };
        if seen.compare_exchange(stamp, waits, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Look::Asked;
        }
        match queue.try_send(Missing { opened: Arc::clone(opened), chunk }) {
            Ok(()) => Look::Asked,
            Err(TrySendError::Full(_)) => {
                let before = if stamp == WAITS_AS_PIECE { stamp } else { MISSING };
                // Who had it in hand from the other queue may have read it meanwhile.
                let _ = seen.compare_exchange(waits, before, Ordering::Relaxed, Ordering::Relaxed);
                Look::Full
            }
            // No thread: the send waits for the disk as it would without all this.
            Err(TrySendError::Disconnected(_)) => {
                seen.store(now, Ordering::Relaxed);
                Look::Ready
            }
        }
    }

    /// A core had to wait, perhaps for a disk: what was seen longer ago is looked at again.
    pub(super) fn doubt(&self, now: Instant) {
        self.doubt_at(stamp_at(self.start, now));
    }

    fn doubt_at(&self, now: u32) {
        self.missed.store(now, Ordering::Relaxed);
    }

    /// Nothing has been missing for a while.
    fn is_quiet(&self, now: u32) -> bool {
        let missed = self.missed.load(Ordering::Relaxed);
        missed == 0 || now.saturating_sub(missed) > PRESENT_FOR_QUIET
    }
}

/// Seconds since the start, from 1: 0 is a chunk nobody looked at.
fn stamp_at(start: Instant, now: Instant) -> u32 {
    (now.saturating_duration_since(start).as_secs() as u32).saturating_add(1).min(UNREADABLE - 1)
}

fn read_all(queues: &Queues, windows_only: bool, start: Instant) {
    let mut buffer = vec![0; CHUNK_LEN as usize];
    while let Some(Missing { opened, chunk }) = queues.next(windows_only) {
        let Some(seen) = opened.chunk(chunk) else { continue };
        if seen.load(Ordering::Relaxed) < UNREADABLE {
            // A window that needed it went before.
            continue;
        }
        if queues.len() <= AHEAD_UNTIL {
            opened.ask_ahead(chunk + 1, AHEAD);
        }
        let stamp = match opened.read_chunk(chunk, &mut buffer) {
            Ok(()) => stamp_at(start, Instant::now()),
            Err(error) => {
                tracing::debug!(%error, chunk, "cannot read ahead");
                UNREADABLE
            }
        };
        seen.store(stamp, Ordering::Relaxed);
        if stamp != UNREADABLE && opened.is_resident(chunk) == Resident::Missing {
            opened.ask_another_teller();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;
    use crate::files::served::test_file::{cold_file, cold_served};
    use crate::sys::pages;

    fn is_ready(readers: &Readers, now: Instant, opened: &Arc<Opened>, offset: u64, len: u64) -> bool {
        readers.ready(now, opened, offset, len, Want::Window) == Ok(len)
    }

    #[test]
    fn a_missing_chunk_is_asked_for_once_and_ready_when_it_was_read() {
        let (_folder, opened) = cold_file("readers-once", 40 * CHUNK_LEN + 5);
        let (readers, queues) = Readers::new(8, u64::MAX);
        let now = readers.start;
        assert_eq!(readers.ready(now, &opened, 0, 1428, Want::Window), Ok(0));
        assert_eq!(readers.ready(now, &opened, 1428, 1428, Want::Piece), Ok(0));
        assert_eq!((queues.windows.len(), queues.pieces.len()), (1, 0), "asked once");
        assert!(!is_ready(&readers, now, &opened, 31 * CHUNK_LEN - 1, 2), "a window across two chunks");
        assert!(queues.windows.len() >= 2);
        drop(readers);
        let (readers, _) = Readers::new(8, u64::MAX);
        read_all(&queues, false, readers.start);
        assert!(is_ready(&readers, now, &opened, 0, CHUNK_LEN));
        assert!(is_ready(&readers, now, &opened, 31 * CHUNK_LEN - 1, 1));
        assert!(is_ready(&readers, now, &opened, opened.len, 0), "the empty block behind the end");
    }

    #[test]
    fn a_piece_is_ready_up_to_its_first_missing_chunk() {
        let (_folder, opened) = cold_file("readers-piece", 40 * CHUNK_LEN);
        let (readers, queues) = Readers::new(8, u64::MAX);
        let now = readers.start;
        opened.chunk(30).expect("a chunk").store(stamp_at(readers.start, now), Ordering::Relaxed);
        let from = 30 * CHUNK_LEN + 100;
        assert_eq!(readers.ready(now, &opened, from, 2 * CHUNK_LEN, Want::Piece), Ok(CHUNK_LEN - 100));
        assert_eq!(readers.ready(now, &opened, from, 50, Want::Piece), Ok(50));
        assert!(!queues.pieces.is_empty(), "what follows is being read meanwhile");
    }

    #[test]
    fn windows_are_read_before_pieces() {
        let (_folder, opened) = cold_file("readers-order", 40 * CHUNK_LEN);
        let (readers, queues) = Readers::new(8, u64::MAX);
        for (chunk, want) in [(0, Want::Piece), (12, Want::Piece), (24, Want::Window), (36, Want::Window)] {
            assert_eq!(readers.ready(readers.start, &opened, chunk * CHUNK_LEN, 1, want), Ok(0));
        }
        let order = [(); 4].map(|()| queues.next(false).expect("four wait").chunk);
        assert_eq!(order, [24, 36, 0, 12]);
        assert_eq!(readers.ready(readers.start, &opened, 6 * CHUNK_LEN, 1, Want::Piece), Ok(0));
        assert_eq!(readers.ready(readers.start, &opened, 18 * CHUNK_LEN, 1, Want::Window), Ok(0));
        assert_eq!(queues.next(true).expect("a window waits").chunk, 18);
        // A window may need what waits as a piece, and does not wait with it.
        assert_eq!(readers.ready(readers.start, &opened, 6 * CHUNK_LEN, 1, Want::Window), Ok(0));
        assert_eq!(readers.ready(readers.start, &opened, 6 * CHUNK_LEN, 1, Want::Window), Ok(0));
        assert_eq!((queues.windows.len(), queues.pieces.len()), (1, 1));
    }

    #[test]
    fn what_its_disk_does_not_give_is_told_once_and_read_again() {
        let (folder, opened) = cold_file("readers-unreadable", CHUNK_LEN);
        let (readers, queues) = Readers::new(8, u64::MAX);
        let now = readers.start;
        assert_eq!(readers.ready(now, &opened, 0, 1, Want::Piece), Ok(0));
        // As a disk that fails: there is nothing to be read.
        File::options().write(true).open(folder.path().join("cold.bin")).unwrap().set_len(0).unwrap();
        let first = queues.next(false).expect("it waits");
        drop(readers);
        let (readers, more) = Readers::new(8, u64::MAX);
        readers.pieces.send(first).unwrap();
        let start = readers.start;
        std::thread::scope(|scope| {
            scope.spawn(|| read_all(&more, false, start));
            while opened.chunk(0).unwrap().load(Ordering::Relaxed) != UNREADABLE {
                std::thread::yield_now();
            }
            assert_eq!(readers.ready(now, &opened, 0, 1, Want::Piece), Err(Unreadable));
            assert_eq!(readers.ready(now, &opened, 0, 1, Want::Piece), Ok(0), "it is read again");
            drop(readers);
        });
    }

    #[test]
    fn a_window_that_ends_where_its_disk_gives_nothing_is_not_waited_for() {
        let (_folder, opened) = cold_file("readers-border", 2 * CHUNK_LEN);
        let (readers, _queues) = Readers::new(8, u64::MAX);
        let now = readers.start;
        let note = |chunk: u64| opened.chunk(chunk).expect("a chunk");
        note(0).store(stamp_at(readers.start, now), Ordering::Relaxed);
        note(1).store(UNREADABLE, Ordering::Relaxed);
        // A download has what is there, and leaves the word for who comes to the other one.
        let ready = readers.ready(now, &opened, CHUNK_LEN - 100, 200, Want::Piece);
        assert_eq!(ready, Ok(100));
        assert_eq!(note(1).load(Ordering::Relaxed), UNREADABLE);
        assert_eq!(readers.ready(now, &opened, CHUNK_LEN - 100, 200, Want::Window), Err(Unreadable));
    }

    #[test]
    fn a_look_holds_longer_when_nothing_is_missing() {
        let (_folder, opened) = cold_file("readers-quiet", 40 * CHUNK_LEN);
        let (readers, _queues) = Readers::new(8, u64::MAX);
        let at = |seconds: u64| readers.start + Duration::from_secs(seconds);
        // Seen a moment ago, and gone since.
        opened.chunk(0).expect("a chunk").store(stamp_at(readers.start, at(100)), Ordering::Relaxed);
        for seconds in [98, 100, 102, 110] {
            assert!(is_ready(&readers, at(seconds), &opened, 0, 1), "{seconds}");
        }
        readers.missed.store(stamp_at(readers.start, at(100)), Ordering::Relaxed);
        assert!(is_ready(&readers, at(102), &opened, 0, 1));
        assert!(!is_ready(&readers, at(103), &opened, 0, 1), "somebody reads");
        opened.chunk(8).expect("a chunk").store(stamp_at(readers.start, at(103)), Ordering::Relaxed);
        assert!(is_ready(&readers, at(104), &opened, 8 * CHUNK_LEN, 1));
        assert!(!is_ready(&readers, at(114), &opened, 8 * CHUNK_LEN, 1), "too long ago in any case");
    }

    #[test]
    fn a_full_queue_is_tried_again_and_never_grows() {
        let (_folder, opened) = cold_file("readers-full", 40 * CHUNK_LEN);
        let (readers, queues) = Readers::new(1, u64::MAX);
        let now = readers.start;
        assert!(!is_ready(&readers, now, &opened, 0, 1));
        // Chunks far apart: looking at one makes the kernel read ahead.
        for chunk in [9, 18, 27] {
            assert!(!is_ready(&readers, now, &opened, chunk * CHUNK_LEN, 1));
            assert_eq!(queues.windows.len(), 1);
        }
        // However often it is looked at.
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(2));
            assert!(!is_ready(&readers, now, &opened, 9 * CHUNK_LEN, CHUNK_LEN));
        }
        assert_eq!(queues.next(false).expect("one waits").chunk, 0);
        assert!(!is_ready(&readers, now, &opened, 36 * CHUNK_LEN, 1));
        assert_eq!(queues.next(false).expect("now it has room").chunk, 36);
    }

    /// Reads a file from span `from` to span `to` as a transfer does, and lets reading threads do theirs.
    fn pass(readers: &Readers, queues: &Queues, opened: &Arc<Opened>, spans: std::ops::Range<u64>) {
        let mut buffer = vec![0; CHUNK_LEN as usize];
        for chunk in spans.start * SPAN_LEN / CHUNK_LEN..spans.end * SPAN_LEN / CHUNK_LEN {
            while readers.ready(readers.start, opened, chunk * CHUNK_LEN, CHUNK_LEN, Want::Piece) == Ok(0) {
                queues.errands.try_iter().for_each(Errand::run);
                for missing in queues.pieces.try_iter() {
                    missing.opened.read_chunk(missing.chunk, &mut buffer).unwrap();
                    missing.opened.chunk(missing.chunk).unwrap().store(1, Ordering::Relaxed);
                }
            }
            queues.errands.try_iter().for_each(Errand::run);
        }
    }

    fn is_present(opened: &Opened, span: u64) -> bool {
        // Not its edge: what the kernel read ahead of one span may lie in the next.
        pages::any_present(&opened.mapping, span * SPAN_LEN + SPAN_LEN / 4, SPAN_LEN / 2)
    }

    #[test]
    fn a_huge_file_leaves_memory_behind_the_one_machine_that_is_sent_it() {
        let (_folder, opened) = cold_file("readers-huge", 5 * SPAN_LEN);
        let (readers, queues) = Readers::new(QUEUE, 4 * SPAN_LEN);
        pass(&readers, &queues, &opened, 0..5);
        assert_eq!([0, 1, 2, 3, 4].map(|span| is_present(&opened, span)), [false, false, false, true, true]);
        // It is looked at again, and found missing, though it was there a moment ago.
        assert_eq!(readers.ready(readers.start, &opened, 4 * CHUNK_LEN, 1, Want::Piece), Ok(0));
    }

    #[test]
    fn what_is_no_burden_or_serves_several_or_was_there_stays() {
        let (_folder, opened) = cold_file("readers-smaller", 4 * SPAN_LEN);
        let (readers, queues) = Readers::new(QUEUE, 4 * SPAN_LEN);
        pass(&readers, &queues, &opened, 0..4);
        assert!((0..4).all(|span| is_present(&opened, span)), "not huge");
        let (readers, queues) = Readers::new(QUEUE, 0);
        pass(&readers, &queues, &opened, 0..4);
        assert!((0..4).all(|span| is_present(&opened, span)), "it was in memory before");

        let (_folder, served) = cold_served("readers-several", 4 * SPAN_LEN);
        let first = served.open().unwrap();
        let second = served.open().unwrap();
        pass(&readers, &queues, &first, 0..2);
        drop(second);
        pass(&readers, &queues, &first, 2..4);
        assert!((0..4).all(|span| is_present(&first, span)), "two were sent its first half");
        let third = served.open().unwrap();
        drop(first);
        pass(&readers, &queues, &third, 0..4);
        assert!(is_present(&third, 0) && is_present(&third, 1));
    }

    #[test]
    fn without_readers_the_core_waits_itself() {
        let (_folder, opened) = cold_file("readers-none", CHUNK_LEN);
        assert!(is_ready(&Readers::none(), Instant::now(), &opened, 0, 1));
    }
}

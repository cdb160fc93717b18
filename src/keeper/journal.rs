//! The thread that writes DHCP's journal: leases, and what is remembered of machines.
//!
//! A core hands over a batch and goes on; the desk hears when the batch is on the disk, or that it is not. Whoever must
//! not say something before it is stored holds it until then. One batch waits while one is written, so what comes
//! meanwhile shares the next fsync.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{Answer, Desk};
use crate::store::journal::Journal;
pub use crate::store::journal::{Entry, VALUE_LEN_MAX};

/// Batches that wait while one is written.
const BATCHES_MAX: usize = 2;

struct Batch {
    entries: Vec<Entry>,
    tag: u64,
    desk: Arc<dyn Desk>,
}

/// Batches on their way. No channel: whoever waits at one spins and yields before it sleeps, which for a few thousand
/// small batches a second is more work than storing them.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    /// Nothing more is taken: the server ends, or the thread did.
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when there is no room.
    fn push(&self, batch: Batch) -> bool {
        let mut waiting = self.lock();
        if waiting.closed || waiting.batches.len() >= BATCHES_MAX {
            return false;
        }
        waiting.batches.push_back(batch);
        drop(waiting);
        self.filled.notify_one();
        true
    }

    /// The next one, waited for; `None` when all are written and no more will come.
    fn pop(&self) -> Option<Batch> {
        let mut waiting = self.lock();
        loop {
            if let Some(batch) = waiting.batches.pop_front() {
                return Some(batch);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }
}

/// Closes the queue when the thread ends, however it does: nobody then waits for what is not written.
struct Open(Arc<Queue>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Counts for `/metrics`.
#[derive(Debug, Default)]
struct Counts {
    commits: AtomicU64,
    entries: AtomicU64,
    failures: AtomicU64,
    waited_us: AtomicU64,
}

/// The way to the journal; what it held when it was opened comes with it.
#[derive(Clone)]
pub struct Scribe {
    queue: Arc<Queue>,
    counts: Arc<Counts>,
    stored: Arc<[Entry]>,
}

impl fmt::Debug for Scribe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scribe").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// The thread; dropping it stores what waits and ends it.
pub struct Writing {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Writing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl Writing {
    /// True when the thread has ended: no lease is stored any more.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread ended by a panic");
        }
    }
}

impl Scribe {
    /// Opens the journal in a folder and starts its thread.
    ///
    /// # Errors
    /// What the file system says.
    pub fn start(folder: &Path) -> io::Result<(Self, Writing)> {
        let journal = Journal::open(folder)?;
        let stored = journal.entries().copied().collect();
        let queue = Arc::<Queue>::default();
        let open = Open(Arc::clone(&queue));
        let counts = Arc::<Counts>::default();
        let counted = Arc::clone(&counts);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || write(journal, &open.0, &counted))?;
        let writing = Writing { queue: Arc::clone(&queue), thread: Some(thread) };
        Ok((Self { queue, counts, stored }, writing))
    }

    /// What was stored when the journal was opened.
    pub fn stored(&self) -> &[Entry] {
        &self.stored
    }

    /// Hands a batch over; `desk` hears [`Answer::Go`] once it is on the disk, [`Answer::NotNow`] when it could not be
    /// put there. Never waits for the disk: false, and nothing is done, when two batches wait already.
    pub fn write(&self, entries: Vec<Entry>, tag: u64, desk: &Arc<dyn Desk>) -> bool {
        self.queue.push(Batch { entries, tag, desk: Arc::clone(desk) })
    }

    /// The journal's part of `/metrics`.
    pub fn metrics(&self) -> String {
        let counts = &self.counts;
        let rows = [
            ("commits_total", "Batches of leases stored, one fsync each.", &counts.commits),
            ("entries_total", "Leases and machines stored.", &counts.entries),
            (
                "failures_total",
                "Batches the file system refused; their ACKs were not sent.",
                &counts.failures,
            ),
            ("microseconds_total", "Time spent storing batches.", &counts.waited_us),
        ];
        rows.iter()
            .map(|(name, help, value)| {
                format!(
                    "# HELP bootstorm_lease_journal_{name} {help}\n# TYPE bootstorm_lease_journal_{name} counter\n\
                     bootstorm_lease_journal_{name} {}\n",
                    value.load(Ordering::Relaxed)
                )
            })
            .collect()
    }
}

fn write(mut journal: Journal, queue: &Queue, counts: &Counts) {
    let mut troubled = false;
    while let Some(Batch { entries, tag, desk }) = queue.pop() {
        let start = Instant::now();
        let answer = match journal.commit(&entries) {
            Ok(()) => {
                counts.commits.fetch_add(1, Ordering::Relaxed);
                counts.entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
                // Said once, not with every batch.
                if std::mem::take(&mut troubled) {
                    tracing::info!("leases are stored again");
                }
                Answer::Go
            }
            Err(error) => {
                counts.failures.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut troubled, true) {
                    tracing::error!(%error, "leases cannot be stored: machines that have none get no address until they can");
                }
                Answer::NotNow
            }
        };
        counts.waited_us.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        desk.answer(tag, answer);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Sender, bounded};

    use super::*;

    #[derive(Debug)]
    struct Heard(Sender<(u64, Answer)>);

    impl Desk for Heard {
        fn answer(&self, tag: u64, answer: Answer) {
            self.0.send((tag, answer)).unwrap();
        }
    }

    #[test]
    fn a_batch_is_answered_once_it_is_stored_and_found_at_the_next_start() {
        let folder = std::env::temp_dir().join(format!("bootstorm-scribe-{}", std::process::id()));
        let (answers, heard) = bounded(4);
        let desk: Arc<dyn Desk> = Arc::new(Heard(answers));
        let (scribe, writing) = Scribe::start(&folder).unwrap();
        assert!(scribe.stored().is_empty());
        assert!(scribe.write(vec![Entry::new(5, b"five").unwrap()], 9, &desk));
        assert_eq!(heard.recv().unwrap(), (9, Answer::Go));
        assert!(scribe.metrics().contains("bootstorm_lease_journal_entries_total 1\n"));
        drop(writing);
        assert!(!scribe.write(Vec::new(), 10, &desk), "nobody is there to write it");
        drop(scribe);
        let (scribe, writing) = Scribe::start(&folder).unwrap();
        assert_eq!(scribe.stored(), [Entry::new(5, b"five").unwrap()]);
        drop(scribe);
        drop(writing);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

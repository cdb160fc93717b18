//! The thread that writes DHCP's journal: leases, and what is remembered of machines.
//!
//! A core hands over a batch and goes on; the desk hears when the batch is on the disk, or that it is not. Whoever must
//! not say something before it is stored holds it until then. One batch waits while one is written, so what comes
//! meanwhile shares the next fsync.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Answer, Desk};
use crate::store::journal::Journal;
pub use crate::store::journal::{Entry, VALUE_LEN_MAX};

/// Batches on their way: one is written, one waits.
const BATCHES_MAX: usize = 2;

struct Batch {
    entries: Vec<Entry>,
    tag: u64,
    desk: Arc<dyn Desk>,
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
    batches: Sender<Option<Batch>>,
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
    batches: Sender<Option<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Writing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // A thread that is gone needs no telling.
        let _ = self.batches.send(None);
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
        let (batches, batches_in) = bounded(BATCHES_MAX);
        let counts = Arc::<Counts>::default();
        let counted = Arc::clone(&counts);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || write(journal, &batches_in, &counted))?;
        let writing = Writing { batches: batches.clone(), thread: Some(thread) };
        Ok((Self { batches, counts, stored }, writing))
    }

    /// What was stored when the journal was opened.
    pub fn stored(&self) -> &[Entry] {
        &self.stored
    }

    /// Hands a batch over; `desk` hears [`Answer::Go`] once it is on the disk, [`Answer::NotNow`] when it could not be
    /// put there. Never waits: false, and nothing is done, when two batches are under way.
    pub fn write(&self, entries: Vec<Entry>, tag: u64, desk: &Arc<dyn Desk>) -> bool {
        self.batches.try_send(Some(Batch { entries, tag, desk: Arc::clone(desk) })).is_ok()
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

fn write(mut journal: Journal, batches: &Receiver<Option<Batch>>, counts: &Counts) {
    let mut troubled = false;
    while let Ok(Some(Batch { entries, tag, desk })) = batches.recv() {
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
        drop(scribe);
        drop(writing);
        let (scribe, writing) = Scribe::start(&folder).unwrap();
        assert_eq!(scribe.stored(), [Entry::new(5, b"five").unwrap()]);
        drop(scribe);
        drop(writing);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

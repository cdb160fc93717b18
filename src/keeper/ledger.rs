//! One turn of the writer: judge, commit, publish, answer. A value without a thread, so that simulations can crash it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::records::{self, Identity};
use crate::jobs::book::{AtTheLine, Book, MachineSpec, Moment, Refusal};
use crate::jobs::claim::ClaimId;
use crate::jobs::evidence::Evidence;
use crate::jobs::image::Images;
use crate::jobs::job::{Job, JobId, JobSpec, Stage};
use crate::jobs::lifecycle::{Denial, Passage};
use crate::jobs::machine::{Machine, MachineId};
use crate::jobs::table::{self, Table, Writer};
use crate::jobs::token::{Boots, TokenKey};
use crate::store::{Log, Store, StoreError, Transition, Write};

/// Where orders look images up: the catalogue of the moment.
pub type ImagesNow = Box<dyn Fn() -> Arc<dyn Images + Send + Sync> + Send>;

/// What an operator orders. `expected` is the generation the record must still have, where that matters.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the fields are the arguments of the book's method of the same name")]
pub enum Order {
    /// Adds jobs: all of them or none.
    AddJobs(Vec<JobSpec>),
    /// Takes a job back.
    Cancel { id: JobId, expected: Option<u64> },
    /// Starts a job again.
    Rearm { id: JobId, expected: Option<u64>, all: bool },
    /// Confirms what no call-back did.
    Confirm { id: JobId, expected: Option<u64> },
    /// Gives one machine a rule's job once more.
    RearmClaim(ClaimId),
    /// Registers a machine.
    Register(MachineSpec),
    /// Changes a machine.
    SetMachine { id: MachineId, expected: Option<u64>, spec: MachineSpec },
    /// Forgets a machine.
    ForgetMachine { id: MachineId, expected: Option<u64> },
    /// Makes two machines one.
    Merge { id: MachineId, other: MachineId, why: String },
    /// Takes a merged part out again.
    Split { id: MachineId, part: MachineId },
}

/// What an order came to, once it is stored.
#[derive(Clone, PartialEq, Debug)]
pub enum Done {
    /// These jobs, as they are now.
    Jobs(Vec<Arc<Job>>),
    /// This machine, as it is now.
    Machine(Arc<Machine>),
    /// Nothing to show.
    Nothing,
}

/// The answer to a boot at the point of no return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Its bytes may leave: that it passed is on the disk.
    Go,
    /// They may not, for good.
    Refused(Denial),
    /// It cannot be stored now; ask again.
    NotNow,
}

/// An input of one turn. A ticket comes back with the output that answers it.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// Something was seen.
    Seen(Evidence),
    /// An order, and who gave it.
    Order {
        /// The order.
        order: Order,
        /// For the audit log.
        by: String,
        /// Comes back with the answer.
        ticket: u64,
    },
    /// A boot waits at the point of no return.
    Line {
        /// Which.
        line: AtTheLine,
        /// Comes back with the answer.
        ticket: u64,
    },
    /// Look at the clock.
    Tick,
}

/// An output of one turn.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// An order's answer.
    Done {
        /// The order's ticket.
        ticket: u64,
        /// What came of it.
        result: Result<Done, Refusal>,
    },
    /// A waiting boot's answer.
    Line {
        /// Its ticket.
        ticket: u64,
        /// What came of it.
        answer: Answer,
    },
    /// A job moved by evidence or the clock: for the log.
    Moved(Arc<Job>),
}

/// The book, the store it rests on, and the table it is published to: the only writer of all three.
pub struct Ledger {
    book: Book,
    store: Box<dyn Store>,
    table: Arc<Table>,
    writer: Writer,
    images: ImagesNow,
    boots: Arc<Boots>,
    key: TokenKey,
    /// The last commit failed, and how.
    trouble: Option<StoreError>,
    /// For metrics.
    pub(super) commits: u64,
    pub(super) transitions: u64,
    pub(super) failures: u64,
    /// What the commits took together, and the longest.
    pub(super) committing: Duration,
    pub(super) longest: Duration,
    /// Jobs that came to each stage, in the order of [`Stage::ALL`].
    pub(super) moves: [u64; Stage::ALL.len()],
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("trouble", &self.trouble).finish_non_exhaustive()
    }
}

/// Jobs of a backup that are ended in one commit: it must not need the room of all of them.
const ENDED_AT_ONCE: usize = 1_000;

/// A book, and the table that shows it.
pub(super) struct Published {
    book: Book,
    pub(super) table: Arc<Table>,
    writer: Writer,
}

impl Published {
    /// Publishes a book to a table of its own.
    pub(super) fn of(mut book: Book) -> Self {
        // What is known by now fits without growing.
        let (table, mut writer) = table::table(book.published_len().max(1024));
        book.publish_all(&Book::new(), &mut writer);
        Self { book, table, writer }
    }
}

/// What an input came to before the commit.
enum Judged {
    Nothing,
    Moved(Arc<Job>),
    Order { ticket: u64, result: Result<Done, Refusal> },
    Line { ticket: u64, line: AtTheLine, passage: Passage },
}

impl Ledger {
    /// Loads everything and publishes it. `secret` becomes the token key of a store that has none yet.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn open(
        mut store: Box<dyn Store>,
        images: ImagesNow,
        secret: [u8; 32],
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let book = records::load(store.as_mut())?;
        let identity = Identity::begin(store.as_mut(), secret, now)?;
        let mut ledger = Self::of(store, &identity, Published::of(book), identity.boots(), images);
        ledger.put_back(now)?;
        Ok(ledger)
    }

    /// A ledger over a store and the book that was loaded from it.
    pub(super) fn of(
        store: Box<dyn Store>,
        identity: &Identity,
        published: Published,
        boots: Arc<Boots>,
        images: ImagesNow,
    ) -> Self {
        let Published { book, table, writer } = published;
        Self {
            book,
            store,
            table,
            writer,
            images,
            boots,
            key: identity.key(),
            trouble: None,
            commits: 0,
            transitions: 0,
            failures: 0,
            committing: Duration::ZERO,
            longest: Duration::ZERO,
            moves: [0; Stage::ALL.len()],
        }
    }

    /// Looks whether the store was put back from a backup, before anybody is answered. What that says of jobs that may
    /// wipe a disk was true when it was made: a machine that was installed since would be installed again. So those are
    /// ended. When the backup was made, and how many jobs these were.
    ///
    /// # Errors
    ///
    /// The store's own: what cannot be stored must not be believed.
    pub(super) fn put_back(&mut self, now: SystemTime) -> Result<Option<(SystemTime, usize)>, StoreError> {
        let Some(taken) = records::put_back(self.store.as_mut())? else { return Ok(None) };
        let by = format!("the start on a backup of {}", httpdate::fmt_http_date(taken));
        let at = Moment { now, next_boot: self.boots.peek() };
        let failed = |why: &dyn fmt::Display| StoreError::Io {
            path: "the store".into(),
            detail: format!("end a job of a backup: {why}"),
        };
        let all = self.book.may_wipe_yet();
        // The mark goes last: whoever dies in between begins again.
        for some in all.chunks(ENDED_AT_ONCE) {
            let mark = self.book.mark();
            for id in some {
                self.book.put_back(*id, &by, at).map_err(|refusal| failed(&refusal))?;
            }
            let changes = self.book.changes(mark);
            for result in self.store.commit(&[records::transition(changes, now)])? {
                result.map_err(|conflict| failed(&conflict))?;
            }
            self.book.publish(&mut self.writer);
        }
        self.store.commit(&[records::no_more_a_backup(&by, all.len(), now)])?;
        Ok(Some((taken, all.len())))
    }

    /// The table the cores decide with.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// Where boots get their numbers.
    pub fn boots(&self) -> Arc<Boots> {
        Arc::clone(&self.boots)
    }

    /// The key of this server's tokens.
    pub fn key(&self) -> &TokenKey {
        &self.key
    }

    /// The book as it is stored.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// The store.
    pub fn store(&mut self) -> &mut dyn Store {
        self.store.as_mut()
    }

    /// The book and the store, for a look at both.
    pub fn parts(&mut self) -> (&Book, &mut dyn Store) {
        (&self.book, self.store.as_mut())
    }

    /// Why the last commit failed; `None` when it did not.
    pub fn trouble(&self) -> Option<&StoreError> {
        self.trouble.as_ref()
    }

    /// Judges the inputs in order, stores what they changed in one commit, publishes it, and answers. If the store
    /// refuses, everything is as it was before, and whoever would have changed something is told so.
    pub fn turn(&mut self, inputs: Vec<Input>, now: SystemTime) -> Vec<Output> {
        let start = self.book.mark();
        let mut judged = Vec::with_capacity(inputs.len());
        let (mut batch, mut moves) = (Vec::new(), Vec::new());
        for input in inputs {
            let mark = self.book.mark();
            let at = Moment { now, next_boot: self.boots.peek() };
            let verdict = self.judge(input, at, &mut judged);
            let changes = self.book.changes(mark);
            let changed = !changes.is_empty();
            if changed {
                batch.push(records::transition(changes, now));
                moves.extend(self.book.moves(mark));
            }
            judged.push((verdict, changed));
        }
        if batch.is_empty() {
            return judged.into_iter().filter_map(|(verdict, _)| verdict.output()).collect();
        }
        let begun = Instant::now();
        match self.store.commit(&batch) {
            Ok(results) if results.iter().all(Result::is_ok) => {
                self.trouble = None;
                let took = begun.elapsed();
                self.committing += took;
                self.longest = self.longest.max(took);
                for (stage, count) in Stage::ALL.iter().zip(&mut self.moves) {
                    *count += moves.iter().filter(|moved| *moved == stage).count() as u64;
                }
                self.commits += 1;
                self.transitions += batch.len() as u64;
                self.book.publish(&mut self.writer);
                judged.into_iter().filter_map(|(verdict, _)| verdict.output()).collect()
            }
            Ok(results) => {
                // Somebody else wrote to the store. What it holds is what counts: start over from it, and let
                // nobody pass on what was believed before.
                let conflict = results.into_iter().find_map(Result::err);
                let detail = conflict.map_or_else(String::new, |conflict| conflict.to_string());
                let error = StoreError::Io { path: "the store".into(), detail };
                self.failed(&error);
                match records::load(self.store.as_mut()) {
                    Ok(book) => {
                        let before = std::mem::replace(&mut self.book, book);
                        self.book.publish_all(&before, &mut self.writer);
                    }
                    Err(_) => self.book.roll_back(start),
                }
                self.refuse(judged, &error, now)
            }
            Err(error) => {
                self.failed(&error);
                self.book.roll_back(start);
                self.book.settle();
                self.refuse(judged, &error, now)
            }
        }
    }

    fn judge(&mut self, input: Input, at: Moment, moved: &mut Vec<(Judged, bool)>) -> Judged {
        match input {
            Input::Seen(evidence) => {
                let before = evidence.job().and_then(|id| self.book.job(id)).cloned();
                // That its script was given once more is no news of a job.
                let is_news = |job: &Arc<Job>| {
                    !job.selector.is_exact()
                        || before
                            .is_none_or(|before| (before.stage, &before.reason) != (job.stage, &job.reason))
                };
                self.book.note(&evidence, at).filter(is_news).map_or(Judged::Nothing, Judged::Moved)
            }
            Input::Tick => {
                moved.extend(self.book.expire(at).into_iter().map(|job| (Judged::Moved(job), false)));
                Judged::Nothing
            }
            Input::Line { line, ticket } => {
                let passage = self.book.pass(&line, at);
                Judged::Line { ticket, line, passage }
            }
            Input::Order { order, by, ticket } => {
                let mark = self.book.mark();
                let result = self.order(order, &by, at);
                if result.is_err() {
                    self.book.roll_back(mark);
                }
                Judged::Order { ticket, result }
            }
        }
    }

    fn order(&mut self, order: Order, by: &str, at: Moment) -> Result<Done, Refusal> {
        let one = |job| Done::Jobs(vec![job]);
        let book = &mut self.book;
        match order {
            Order::AddJobs(specs) => {
                let images = (self.images)();
                let jobs: Result<Vec<_>, _> =
                    specs.into_iter().map(|spec| book.add(spec, &*images, by, at)).collect();
                jobs.map(Done::Jobs)
            }
            Order::Cancel { id, expected } => book.cancel(id, expected, by, at).map(one),
            Order::Rearm { id, expected, all } => {
                book.rearm(id, expected, all, &*(self.images)(), by, at).map(one)
            }
            Order::Confirm { id, expected } => book.confirm(id, expected, by, at).map(one),
            Order::RearmClaim(id) => book.rearm_claim(id, by, at).map(|()| Done::Nothing),
            Order::Register(spec) => book.register(spec, by, at).map(Done::Machine),
            Order::SetMachine { id, expected, spec } => {
                book.set_machine(id, expected, spec, by, at).map(Done::Machine)
            }
            Order::ForgetMachine { id, expected } => {
                book.forget_machine(id, expected, by).map(|()| Done::Nothing)
            }
            Order::Merge { id, other, why } => book.merge(id, other, &why, by, at).map(Done::Machine),
            Order::Split { id, part } => book.split(id, part, by, at).map(Done::Machine),
        }
    }

    /// After a failure: finds out whether the store takes something again, by an event that says so.
    pub fn try_again(&mut self, now: SystemTime) {
        if self.trouble.is_none() {
            return;
        }
        let at_unix_ms =
            now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let body = serde_json::json!({ "what": "store-works-again" }).to_string();
        let works = Write::Append { log: Log::Event, at_unix_ms, subject: "store".into(), body };
        match self.store.commit(&[Transition { writes: vec![works] }]) {
            Ok(results) if results.iter().all(Result::is_ok) => self.trouble = None,
            Ok(_) => {}
            Err(error) => self.trouble = Some(error),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        self.failures += 1;
        self.trouble = Some(error.clone());
    }

    /// Answers when nothing was stored. Boots that need no transition still go on.
    fn refuse(&mut self, judged: Vec<(Judged, bool)>, error: &StoreError, now: SystemTime) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (verdict, changed) in judged {
            match verdict {
                Judged::Order { ticket, result: Ok(_) } if changed => {
                    let reason = error.to_string();
                    outputs.push(Output::Done { ticket, result: Err(Refusal::StoreUnavailable { reason }) });
                }
                Judged::Order { ticket, result } => outputs.push(Output::Done { ticket, result }),
                Judged::Line { ticket, line, .. } => {
                    // What it was judged by has been taken back: judge it by what is stored.
                    let mark = self.book.mark();
                    let passage = self.book.pass(&line, Moment { now, next_boot: self.boots.peek() });
                    self.book.roll_back(mark);
                    let answer = match passage {
                        Passage::Before => Answer::Go,
                        Passage::Now => Answer::NotNow,
                        Passage::Denied(denial) => Answer::Refused(denial),
                    };
                    outputs.push(Output::Line { ticket, answer });
                }
                Judged::Moved(_) | Judged::Nothing => {}
            }
        }
        self.book.settle();
        outputs
    }
}

impl Judged {
    fn output(self) -> Option<Output> {
        Some(match self {
            Self::Nothing => return None,
            Self::Moved(job) => Output::Moved(job),
            Self::Order { ticket, result } => Output::Done { ticket, result },
            Self::Line { ticket, passage, .. } => Output::Line {
                ticket,
                answer: match passage {
                    Passage::Now | Passage::Before => Answer::Go,
                    Passage::Denied(denial) => Answer::Refused(denial),
                },
            },
        })
    }
}

//! The keeper: the one thread that owns the book, the store and the table's writing side.
//!
//! ```text
//!  cores ── evidence ──────► bounded queue ─┐                    ┌─► table (lock-free, read by every core)
//!  cores ── at the line ───► bounded queue ─┼─► Ledger::turn ────┤
//!  API ──── orders, looks ─►      "         ┘   judge, one       └─► answers: to a core's desk, to whoever ordered
//!                                               commit
//! ```
//!
//! It takes everything that waits, judges it in order, makes one commit of it, and only then publishes and answers.
//! If the store refuses (a full disk), nothing is published and everything is as it was: orders get a refusal, boots
//! at the point of no return are told *not now*, boots that need no transition go on, and all is well again as soon
//! as the store is.
//!
//! Start with [`Keeper::start`]; it returns once everything stored is published. The keeper's thread reads and checks the
//! store while the thread that starts it fills the book and the table; who has something else to do meanwhile takes the
//! two halves, [`Keeper::begin`] and [`Beginning::finish`].
#![forbid(unsafe_code)]

pub mod journal;
mod ledger;
mod records;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, SendError, Sender, bounded, select, unbounded};

use self::ledger::Published;
pub use self::ledger::{Answer, Done, ImagesNow, Input, Ledger, Order, Output};
use self::records::{Identity, Piece};
pub use self::records::{back_up, load as stored_book};
pub use crate::jobs::book::AtTheLine;
use crate::jobs::book::{Book, Refusal};
use crate::jobs::evidence::Evidence;
use crate::jobs::job::{Job, Stage};
use crate::jobs::table::Table;
use crate::jobs::token::{Boots, TokenKey};
use crate::store::{Store, StoreError};

/// Orders and boots at the line that wait; beyond it orders are refused and boots are told *not now*.
const URGENT_MAX: usize = 16 * 1024;
/// Evidence that waits; beyond it evidence is lost and counted, never a core held up.
const EVIDENCE_MAX: usize = 64 * 1024;
/// Evidence that nobody waits for is stored together with what comes within this time.
const GATHER: Duration = Duration::from_millis(20);
/// Nobody has asked for anything for so long: what the store would rather not do while somebody waits is done now.
const REST: Duration = Duration::from_millis(50);
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(2);
/// How often old history is forgotten, and how old and how much of it may be.
const TRIM: Duration = Duration::from_secs(10 * 60);
const EVENTS_KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);
const EVENTS_MAX: u64 = 1_000_000;
const BOOTS_MAX: u64 = 100_000;

/// Where a core hears what became of a boot that waits.
pub trait Desk: Send + Sync + fmt::Debug {
    /// The answer to the one sent with this tag. Called on the keeper's thread: it must not wait.
    fn answer(&self, tag: u64, answer: Answer);
}

/// What is seen of jobs that move.
pub type Observer = Box<dyn FnMut(&Job) + Send>;

enum Urgent {
    Order(Order, String, Box<dyn FnOnce(Result<Done, Refusal>) + Send>),
    Line(AtTheLine, u64, Arc<dyn Desk>),
    Look(Box<dyn FnOnce(&Book, &mut dyn Store) + Send>),
    Stop,
}

/// Counts for `/metrics`.
#[derive(Debug, Default)]
struct Counts {
    commits: AtomicU64,
    transitions: AtomicU64,
    failures: AtomicU64,
    evidence_lost: AtomicU64,
    lines: AtomicU64,
    lines_refused: AtomicU64,
    lines_not_now: AtomicU64,
    /// In microseconds.
    committing: AtomicU64,
    longest: AtomicU64,
    /// Looks taken from the queue that wait for a turn.
    looks: AtomicU64,
    moves: [AtomicU64; Stage::ALL.len()],
    /// The last attempt to store something failed.
    troubled: AtomicBool,
    /// The thread has ended.
    ended: AtomicBool,
}

/// Held by the thread: however it ends, also by a panic, that is known.
struct Alive(Arc<Counts>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

/// The handle that everyone has.
#[derive(Clone)]
pub struct Keeper {
    urgent: Sender<Urgent>,
    evidence: Sender<Evidence>,
    table: Arc<Table>,
    boots: Arc<Boots>,
    key: TokenKey,
    counts: Arc<Counts>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// The thread; dropping it stores what waits and ends it.
#[derive(Debug)]
pub struct Running {
    keeper: Keeper,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Loads everything from the store, publishes it, and starts the thread. `observer` is told of every job that
    /// evidence or the clock moved.
    ///
    /// # Errors
    ///
    /// The store's own: damaged, of a newer schema, unreadable, full.
    pub fn start(
        store: Box<dyn Store>,
        images: ImagesNow,
        secret: [u8; 32],
        observer: Observer,
    ) -> Result<Running, StoreError> {
        Self::begin(move || Ok(store), secret)?.finish(images, observer)
    }

    /// Starts the thread, which opens the store and reads what is in it. `secret` becomes the token key of a store that has
    /// none yet.
    ///
    /// # Errors
    ///
    /// There is no thread to be had; the store's own come from [`Beginning::finish`].
    pub fn begin(
        open: impl FnOnce() -> Result<Box<dyn Store>, StoreError> + Send + 'static,
        secret: [u8; 32],
    ) -> Result<Beginning, StoreError> {
        // Bounded by whoever sends. An array as long as the bound would be touched page by page before anybody is answered.
        let (urgent, urgent_in) = unbounded();
        let (evidence, evidence_in) = unbounded();
        let (tell, told) = bounded(PIECES_MAX);
        let (hand, handed) = bounded(1);
        let counts = Arc::<Counts>::default();
        let thread = std::thread::Builder::new().name("keeper".into()).spawn({
            let counts = Arc::clone(&counts);
            move || {
                let _alive = Alive(Arc::clone(&counts));
                // Whoever began it and has given up hears nothing, and hands nothing over.
                let read = read_all(open, secret, |news| _ = tell.send(news));
                let (store, identity) = match read {
                    Ok(read) => read,
                    Err(error) => {
                        let _ = tell.send(News::Failed(error));
                        return;
                    }
                };
                let Ok(Handed { published, boots, images, observer }) = handed.recv() else { return };
                let mut ledger = Ledger::of(store, &identity, published, boots, images);
                match ledger.put_back(SystemTime::now()) {
                    Ok(None) => {}
                    Ok(Some((taken, cancelled))) => tracing::warn!(
                        cancelled,
                        taken = %httpdate::fmt_http_date(taken),
                        "this store was put back from a backup: what happened since is not known, so the jobs of it that may \
                         wipe a disk are cancelled; add again what is still wanted, for machines that have not had it"
                    ),
                    Err(error) => {
                        let _ = tell.send(News::Failed(error));
                        return;
                    }
                }
                let _ = tell.send(News::Begun);
                keep(ledger, &urgent_in, &evidence_in, &counts, observer);
            }
        });
        let thread = thread
            .map_err(|error| StoreError::Io { path: "thread keeper".into(), detail: error.to_string() })?;
        Ok(Beginning { urgent, evidence, counts, told, hand, thread })
    }

    /// The table the cores decide with.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Where boots get their numbers.
    pub fn boots(&self) -> &Boots {
        &self.boots
    }

    /// The key of this server's tokens, the same after a restart.
    pub fn key(&self) -> &TokenKey {
        &self.key
    }

    /// False while the store refuses what it is given; looked into again every few seconds.
    pub fn can_store(&self) -> bool {
        !self.counts.troubled.load(Ordering::Relaxed)
    }

    /// True when the thread has ended: nothing is judged, stored or allowed any more.
    pub fn has_ended(&self) -> bool {
        self.counts.ended.load(Ordering::Acquire)
    }

    /// Tells what was seen. Never waits: a full queue loses it and counts it.
    pub fn note(&self, evidence: Evidence) {
        if self.evidence.len() >= EVIDENCE_MAX || self.evidence.send(evidence).is_err() {
            self.counts.evidence_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks whether a boot's last bytes may leave. Never waits: `desk` hears the answer.
    pub fn ask(&self, line: AtTheLine, tag: u64, desk: &Arc<dyn Desk>) {
        if !self.has_room() || self.urgent.send(Urgent::Line(line, tag, Arc::clone(desk))).is_err() {
            self.counts.lines_not_now.fetch_add(1, Ordering::Relaxed);
            desk.answer(tag, Answer::NotNow);
        }
    }

    /// Gives an order; `reply` is called on the keeper's thread once it is stored, or refused. `by` is for the audit
    /// log.
    pub fn order(
        &self,
        order: Order,
        by: impl Into<String>,
        reply: impl FnOnce(Result<Done, Refusal>) + Send + 'static,
    ) {
        if !self.has_room() {
            return reply(Err(Refusal::Busy));
        }
        let sent = self.urgent.send(Urgent::Order(order, by.into(), Box::new(reply)));
        if let Err(SendError(Urgent::Order(_, _, reply))) = sent {
            reply(Err(Refusal::Busy));
        }
    }

    /// Less waits than may (give or take one for each thread that sends just now).
    fn has_room(&self) -> bool {
        self.urgent.len() < URGENT_MAX
    }

    /// [`Keeper::order`] for a thread that may wait.
    ///
    /// # Errors
    ///
    /// The book's [`Refusal`].
    pub fn order_and_wait(&self, order: Order, by: &str) -> Result<Done, Refusal> {
        let (sender, receiver) = bounded(1);
        self.order(order, by, move |result| {
            // Whoever asked has gone.
            let _ = sender.send(result);
        });
        receiver.recv().unwrap_or(Err(Refusal::Busy))
    }

    /// Looks at the book and the store as they are after everything that was sent before; `look` runs on the keeper's
    /// thread, so it takes what it needs and leaves. False when the keeper is too busy or gone.
    pub fn look(&self, look: impl FnOnce(&Book, &mut dyn Store) + Send + 'static) -> bool {
        let waiting = self.counts.looks.load(Ordering::Relaxed);
        waiting < URGENT_MAX as u64
            && self.has_room()
            && self.urgent.send(Urgent::Look(Box::new(look))).is_ok()
    }

    /// [`Keeper::look`] for a thread that may wait.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`].
    pub fn look_and_wait<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Book, &mut dyn Store) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (sender, receiver) = bounded(1);
        let sent = self.look(move |book, store| {
            // Whoever asked has gone.
            let _ = sender.send(look(book, store));
        });
        if !sent {
            return Err(Refusal::Busy);
        }
        receiver.recv().map_err(|_| Refusal::Busy)
    }

    /// The keeper's part of `/metrics`.
    pub fn metrics(&self) -> String {
        let counts = &self.counts;
        let rows = [
            ("store_commits_total", "Group commits of the keeper.", &counts.commits),
            ("store_transitions_total", "Transitions stored.", &counts.transitions),
            ("store_failures_total", "Commits that the store refused.", &counts.failures),
            ("barrier_waits_total", "Boots that waited at the point of no return.", &counts.lines),
            ("barrier_refused_total", "Boots refused at the point of no return.", &counts.lines_refused),
            (
                "barrier_not_now_total",
                "Boots told to ask again, nothing could be stored.",
                &counts.lines_not_now,
            ),
            ("keeper_evidence_lost_total", "Evidence the keeper had no room for.", &counts.evidence_lost),
        ];
        let waiting = format!(
            "# HELP bootstorm_keeper_waiting Inputs waiting for the one writer, by queue.\n# TYPE \
             bootstorm_keeper_waiting gauge\nbootstorm_keeper_waiting{{queue=\"urgent\"}} \
             {}\nbootstorm_keeper_waiting{{queue=\"evidence\"}} {}\n",
            self.urgent.len() as u64 + self.counts.looks.load(Ordering::Relaxed),
            self.evidence.len()
        );
        let seconds = |count: &AtomicU64| Duration::from_micros(count.load(Ordering::Relaxed)).as_secs_f64();
        let commits = format!(
            "# HELP bootstorm_store_commit_seconds_total Time spent on group commits.\n# TYPE \
             bootstorm_store_commit_seconds_total counter\nbootstorm_store_commit_seconds_total {}\n# HELP \
             bootstorm_store_commit_max_seconds The longest group commit since the start.\n# TYPE \
             bootstorm_store_commit_max_seconds gauge\nbootstorm_store_commit_max_seconds {}\n",
            seconds(&counts.committing),
            seconds(&counts.longest)
        );
        let mut moves = String::from(
            "# HELP bootstorm_job_moves_total Jobs, and machines with a rule's job, that came to a stage.\n# TYPE \
             bootstorm_job_moves_total counter\n",
        );
        for (stage, count) in Stage::ALL.iter().zip(&counts.moves) {
            let count = count.load(Ordering::Relaxed);
            moves.push_str(&format!("bootstorm_job_moves_total{{stage=\"{stage}\"}} {count}\n"));
        }
        rows.iter()
            .map(|(name, help, value)| {
                format!(
                    "# HELP bootstorm_{name} {help}\n# TYPE bootstorm_{name} counter\nbootstorm_{name} {}\n",
                    value.load(Ordering::Relaxed)
                )
            })
            .chain([waiting, commits, moves])
            .collect()
    }
}

/// Pieces that wait to be put into the book; the thread that reads waits when there are more.
const PIECES_MAX: usize = 16;

/// What the thread tells while it starts.
enum News {
    /// Some of what is stored.
    Piece(Piece),
    /// That was all of it; what follows is the look for damage.
    Read,
    /// There is no damage, and the start is stored.
    Sound(Identity),
    /// What it was given is published as it is to be.
    Begun,
    /// It ends.
    Failed(StoreError),
}

/// What the thread is given to begin its work.
struct Handed {
    published: Published,
    boots: Arc<Boots>,
    images: ImagesNow,
    observer: Observer,
}

/// A keeper whose thread reads the store. Dropping it ends the thread when that has read.
pub struct Beginning {
    urgent: Sender<Urgent>,
    evidence: Sender<Evidence>,
    counts: Arc<Counts>,
    told: Receiver<News>,
    hand: Sender<Handed>,
    thread: JoinHandle<()>,
}

impl fmt::Debug for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beginning").finish_non_exhaustive()
    }
}

impl Beginning {
    /// Publishes what the thread reads, and returns once that is all and the store is found sound. `observer` is told of
    /// every job that evidence or the clock moved.
    ///
    /// # Errors
    ///
    /// The store's own: damaged, of a newer schema, unreadable, full.
    pub fn finish(self, images: ImagesNow, observer: Observer) -> Result<Running, StoreError> {
        let Self { urgent, evidence, counts, told, hand, thread } = self;
        let mut book = Book::new();
        let mut published = None;
        let found = loop {
            match told.recv() {
                Ok(News::Piece(piece)) => piece.put_in(&mut book),
                // Not before it was handed anything.
                Ok(News::Begun) => {}
                // Nobody decides by it before this returns.
                Ok(News::Read) => published = Some(Published::of(std::mem::take(&mut book))),
                Ok(News::Sound(identity)) => break published.map(|published| (identity, published)),
                Ok(News::Failed(error)) => {
                    // When it has ended the file is closed.
                    let _ = thread.join();
                    return Err(error);
                }
                Err(_) => break None,
            }
        };
        let gone =
            || StoreError::Io { path: "thread keeper".into(), detail: "it ended by a panic".to_owned() };
        let (identity, published) = found.ok_or_else(gone)?;
        let keeper = Keeper {
            urgent,
            evidence,
            table: Arc::clone(&published.table),
            boots: identity.boots(),
            key: identity.key(),
            counts,
        };
        let boots = Arc::clone(&keeper.boots);
        hand.send(Handed { published, boots, images, observer }).map_err(|_| gone())?;
        match told.recv() {
            Ok(News::Begun) => Ok(Running { keeper, thread: Some(thread) }),
            Ok(News::Failed(error)) => {
                let _ = thread.join();
                Err(error)
            }
            Ok(_) | Err(_) => Err(gone()),
        }
    }
}

/// Opens a store, tells what is in it, looks for damage, and stores that there was one more start.
fn read_all(
    open: impl FnOnce() -> Result<Box<dyn Store>, StoreError>,
    secret: [u8; 32],
    tell: impl Fn(News),
) -> Result<(Box<dyn Store>, Identity), StoreError> {
    let mut store = open()?;
    // A record that makes no sense may be one of a damaged file: then that is what is wrong.
    let shown = records::show(store.as_mut(), |piece| tell(News::Piece(piece)));
    shown.or_else(|error| store.check().and(Err(error)))?;
    tell(News::Read);
    store.check()?;
    let identity = Identity::begin(store.as_mut(), secret, SystemTime::now())?;
    tell(News::Sound(identity.clone()));
    Ok((store, identity))
}

impl Running {
    /// The handle.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A keeper that is gone needs no telling.
        let _ = self.keeper.urgent.send(Urgent::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper ended by a panic");
        }
    }
}

/// How long looks take of a turn, but for the last of them.
const LOOKS_PER_TURN: Duration = Duration::from_millis(20);
/// Jobs in one order from which on it has a turn of its own.
const LONG_ORDER: usize = 64;

fn is_long(order: &Order) -> bool {
    matches!(order, Order::AddJobs(specs) if specs.len() >= LONG_ORDER)
}

/// The thread's loop.
fn keep(
    mut ledger: Ledger,
    urgent: &Receiver<Urgent>,
    evidence: &Receiver<Evidence>,
    counts: &Counts,
    mut observer: Observer,
) {
    let mut next_tick = Instant::now() + TICK;
    let mut next_trim = Instant::now() + TRIM;
    let (mut troubled, mut rested) = (false, true);
    let mut looks = VecDeque::new();
    loop {
        let pause = next_tick.saturating_duration_since(Instant::now());
        let pause = if rested { pause } else { pause.min(REST) };
        let pause = if looks.is_empty() { pause } else { Duration::ZERO };
        let mut first: Option<Urgent> = None;
        let mut inputs: Vec<Input> = Vec::new();
        let mut seen: Vec<Evidence> = Vec::new();
        select! {
            recv(urgent) -> message => first = message.ok(),
            recv(evidence) -> message => {
                seen.extend(message.ok());
                // Nobody waits for evidence: let more of it share the commit.
                first = urgent.recv_timeout(GATHER).ok();
            }
            default(pause) => {}
        }
        if first.is_none() && seen.is_empty() && !rested && looks.is_empty() {
            ledger.store().rest();
            rested = true;
        }
        // What waits at the line was offered before: first these are taken, then the evidence, and then the evidence
        // is judged first, so that everything that a boot at the line has shown is known.
        let waiting: Vec<Urgent> = first.into_iter().chain(urgent.try_iter().take(URGENT_MAX)).collect();
        seen.extend(evidence.try_iter().take(EVIDENCE_MAX));
        inputs.extend(seen.into_iter().map(Input::Seen));
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            ledger.try_again(SystemTime::now());
            inputs.push(Input::Tick);
        }
        let (mut desks, mut replies, mut stop) = (Vec::new(), Vec::new(), false);
        let mut bulk: Vec<Input> = Vec::new();
        for message in waiting {
            match message {
                Urgent::Line(line, tag, desk) => {
                    inputs.push(Input::Line { line, ticket: desks.len() as u64 });
                    desks.push((tag, desk));
                }
                Urgent::Order(order, by, reply) => {
                    // What was ordered after a long order stays behind it.
                    let inputs = if bulk.is_empty() && !is_long(&order) { &mut inputs } else { &mut bulk };
                    inputs.push(Input::Order { order, by, ticket: replies.len() as u64 });
                    replies.push(Some(reply));
                }
                Urgent::Look(look) => looks.push_back(look),
                Urgent::Stop => stop = true,
            }
        }
        // A long order takes as long as hundreds of boots: whoever waits already does not wait for it.
        for inputs in [inputs, bulk].into_iter().filter(|inputs| !inputs.is_empty()) {
            rested = false;
            for output in ledger.turn(inputs, SystemTime::now()) {
                match output {
                    Output::Line { ticket, answer } => {
                        counts.lines.fetch_add(1, Ordering::Relaxed);
                        match answer {
                            Answer::Go => {}
                            Answer::Refused(_) => _ = counts.lines_refused.fetch_add(1, Ordering::Relaxed),
                            Answer::NotNow => _ = counts.lines_not_now.fetch_add(1, Ordering::Relaxed),
                        }
                        if let Some((tag, desk)) = desks.get(ticket as usize) {
                            desk.answer(*tag, answer);
                        }
                    }
                    Output::Done { ticket, result } => {
                        if let Some(reply) = replies.get_mut(ticket as usize).and_then(Option::take) {
                            reply(result);
                        }
                    }
                    Output::Moved(job) => observer(&job),
                }
            }
        }
        // Who only looks does not hold up who orders and boots: the rest of them is looked at in the next turn. Some of them
        // write, so none is left at the end.
        let since = Instant::now();
        while (stop || since.elapsed() < LOOKS_PER_TURN)
            && let Some(look) = looks.pop_front()
        {
            let (book, store) = ledger.parts();
            look(book, store);
        }
        counts.looks.store(looks.len() as u64, Ordering::Relaxed);
        counts.commits.store(ledger.commits, Ordering::Relaxed);
        counts.transitions.store(ledger.transitions, Ordering::Relaxed);
        counts.failures.store(ledger.failures, Ordering::Relaxed);
        counts.committing.store(ledger.committing.as_micros() as u64, Ordering::Relaxed);
        counts.longest.store(ledger.longest.as_micros() as u64, Ordering::Relaxed);
        for (count, moved) in counts.moves.iter().zip(&ledger.moves) {
            count.store(*moved, Ordering::Relaxed);
        }
        counts.troubled.store(ledger.trouble().is_some(), Ordering::Relaxed);
        // Said once, not every turn.
        match ledger.trouble() {
            Some(error) if !troubled => {
                tracing::error!(%error, "nothing can be stored: orders are refused, and no boot passes the point of no return");
                troubled = true;
            }
            None if troubled => {
                tracing::info!("the store works again");
                troubled = false;
            }
            _ => {}
        }
        if stop {
            return;
        }
        if Instant::now() >= next_trim {
            next_trim = Instant::now() + TRIM;
            let before = SystemTime::now().checked_sub(EVENTS_KEPT).unwrap_or(SystemTime::UNIX_EPOCH);
            let before = before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            match ledger.store().trim(before, EVENTS_MAX, BOOTS_MAX) {
                Ok(trimmed) if trimmed.more => next_trim = Instant::now() + TICK,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot forget old events"),
            }
        }
    }
}

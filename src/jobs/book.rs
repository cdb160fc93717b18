//! The book: every job, claim and machine as a plain value, moved by orders and evidence.
//!
//! The book decides and stores nothing. Whoever owns it (the `keeper`) does four things in turn: hands it inputs,
//! takes the [`Change`]s they made, has them stored, and then either [`publish`](Book::publish)es or
//! [`roll_back`](Book::roll_back)s. What the cores may see is published from a settled book alone.
//!
//! An order that is refused has changed nothing. Everything is bounded: jobs, claims, machines, and what is
//! remembered of boots and of machines nobody knows.

mod machines;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::machines::{MACHINES_MAX, MachineSpec};
use super::claim::{Claim, ClaimId};
use super::evidence::{Evidence, Seen};
use super::identity;
use super::image::Images;
use super::job::{Action, Confirm, Job, JobId, JobSpec, Selector, Stage};
pub use super::lifecycle::SILENCE;
use super::lifecycle::{Course, Denial, Passage, Terms, since};
use super::machine::{Ident, Machine, MachineId};
use super::reach;
use super::script::LocalStrategy;
use super::table::{Entry, Key, Standing, Writer};
use super::token::BootId;
use crate::wire::MacAddr;

/// Jobs in the book, ended ones included. At the bound the oldest ended jobs make room.
pub const JOBS_MAX: usize = 100_000;
/// Claims in the book. At the bound the oldest that deny nothing make room.
pub const CLAIMS_MAX: usize = 200_000;
/// Boots of which the presented identities are remembered between script and last file.
const BOOTS_MAX: usize = 100_000;
/// How the reason of a job begins whose boot should have called back.
const NO_CALL_BACK: &str = "no call-back came";
/// Jobs that are over and still shown as the reason of a machine's local boots.
const SPENT_SHOWN: usize = 4;

/// What orders and evidence are judged by besides themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The wall clock.
    pub now: SystemTime,
    /// No boot that begins from here on has a lower number.
    pub next_boot: BootId,
}

/// Why an order to the book is refused. `Display` is one line that says what to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No such image.
    UnknownImage {
        /// The name asked for.
        name: String,
    },
    /// The image is there but cannot boot.
    CannotBoot {
        /// The image.
        name: String,
        /// Why it cannot.
        reason: String,
    },
    /// The image may wipe a disk, and the job would boot it every time.
    DestructiveAlways {
        /// The image.
        name: String,
    },
    /// The image may wipe a disk, and the job is a rule that does not allow that.
    DestructiveRule {
        /// The image.
        name: String,
    },
    /// The image boots without iPXE, and the selector is one that only a script request shows.
    NeedsIpxe {
        /// The image.
        name: String,
    },
    /// A sequence of boots that cannot be one.
    Sequence {
        /// Why not.
        why: &'static str,
    },
    /// The machine has a live job already.
    HasJob {
        /// That job.
        id: JobId,
        /// The machine, as both name it.
        selector: Selector,
    },
    /// The selector names something that many machines share.
    NotIdentifying {
        /// The selector.
        selector: Selector,
    },
    /// A rule that boots no image, and so never has given a machine its boot.
    RuleOnce,
    /// `attempts` is 0.
    NoAttempts,
    /// No such job.
    NotFound {
        /// The number asked for.
        id: JobId,
    },
    /// No such claim.
    NoClaim {
        /// The number asked for.
        id: ClaimId,
    },
    /// The job is over.
    Ended {
        /// The job.
        id: JobId,
        /// How it ended.
        stage: Stage,
    },
    /// The job is not over, so there is nothing to re-arm.
    NotEnded {
        /// The job.
        id: JobId,
        /// Its stage.
        stage: Stage,
    },
    /// Nothing of the job waits to be confirmed.
    NotRunning {
        /// The job.
        id: JobId,
        /// Its stage.
        stage: Stage,
    },
    /// [`JOBS_MAX`] live jobs.
    TooMany,
    /// Machines on record are at their bound.
    TooManyMachines,
    /// No such machine.
    NoMachine {
        /// As it was named.
        named: String,
    },
    /// An identity belongs to another machine already.
    IdentTaken {
        /// The identity.
        ident: Ident,
        /// Its machine.
        machine: MachineId,
    },
    /// An identity that many machines share cannot name one.
    SharedIdent {
        /// The identity.
        ident: Ident,
    },
    /// These two cannot become one, or this one cannot be taken apart.
    CannotMerge {
        /// Why.
        why: String,
    },
    /// It has changed since it was looked at.
    Stale {
        /// Its generation now.
        found: u64,
    },
    /// What the order would change cannot be stored now. Nothing was changed.
    StoreUnavailable {
        /// What the store says, with what to do.
        reason: String,
    },
    /// Too many orders wait already.
    Busy,
}

impl Refusal {
    /// The refusal as one kebab-case word, for JSON.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownImage { .. } => "unknown-image",
            Self::CannotBoot { .. } => "image-cannot-boot",
            Self::DestructiveAlways { .. } => "destructive-needs-once",
            Self::DestructiveRule { .. } => "destructive-needs-allow-rule",
            Self::NeedsIpxe { .. } => "image-needs-ipxe",
            Self::Sequence { .. } => "not-a-sequence",
            Self::HasJob { .. } => "machine-has-job",
            Self::NotIdentifying { .. } => "selector-not-identifying",
            Self::RuleOnce => "rule-needs-always",
            Self::NoAttempts => "no-attempts",
            Self::NotFound { .. } => "job-not-found",
            Self::NoClaim { .. } => "claim-not-found",
            Self::Ended { .. } => "job-ended",
            Self::NotEnded { .. } => "job-not-ended",
            Self::NotRunning { .. } => "job-not-running",
            Self::TooMany => "too-many-jobs",
            Self::TooManyMachines => "too-many-machines",
            Self::NoMachine { .. } => "machine-not-found",
            Self::IdentTaken { .. } => "identity-taken",
            Self::SharedIdent { .. } => "identity-shared",
            Self::CannotMerge { .. } => "cannot-merge",
            Self::Stale { .. } => "changed-meanwhile",
            Self::StoreUnavailable { .. } => "store-unavailable",
            Self::Busy => "busy",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownImage { name } => {
                write!(f, "there is no image {name:?}; `bootstorm image list` shows the ones there are")
            }
            Self::CannotBoot { name, reason } => {
                write!(
                    f,
                    "image {name:?} cannot boot: {reason}; mend that, then `bootstorm image show {name}` again"
                )
            }
            Self::DestructiveAlways { name } => write!(
                f,
                "image {name:?} may wipe a disk, and --always would wipe it at every boot; leave --always out"
            ),
            Self::NeedsIpxe { name } => write!(
                f,
                "image {name:?} boots without iPXE, and a machine's serial, asset tag, manufacturer and product are \
                 known only when its iPXE asks; name the machine by MAC address or UUID, or switch iPXE on: bootstorm \
                 image loader enable {name}"
            ),
            Self::DestructiveRule { name } => write!(
                f,
                "image {name:?} may wipe a disk, and a rule sends it to machines nobody named; add --allow-rule if \
                 that is meant, or name the machines"
            ),
            Self::Sequence { why } => write!(f, "{why}; a sequence is one machine's images, each booted once"),
            Self::HasJob { id, selector } => write!(
                f,
                "{selector} has the live job {id} already; add --replace, or --then to have this one follow it, or \
                 `bootstorm job cancel {id}` first"
            ),
            Self::NotIdentifying { selector } => write!(
                f,
                "{selector} does not name one machine (many share it or nobody set it); use another of the \
                 machine's identities"
            ),
            Self::RuleOnce => f.write_str(
                "a rule that boots no image never comes to an end with a machine; add --always, or name the machines",
            ),
            Self::NoAttempts => f.write_str("a job with 0 attempts never starts; use --attempts 1 or more"),
            Self::NotFound { id } => {
                write!(f, "there is no job {id}; `bootstorm job list` shows the ones there are")
            }
            Self::NoClaim { id } => {
                write!(f, "there is no claim {id}")
            }
            Self::Ended { id, stage } => {
                write!(f, "job {id} has ended already ({stage}); `bootstorm job rearm {id}` starts it again")
            }
            Self::NotEnded { id, stage } => {
                write!(f, "job {id} has not ended ({stage}); `bootstorm job cancel {id}` ends it")
            }
            Self::NotRunning { id, stage } => write!(
                f,
                "job {id} is {stage}: only a running one can be confirmed; `bootstorm job show {id}` shows how far it is"
            ),
            Self::TooMany => write!(f, "{JOBS_MAX} jobs are live, which is the most; cancel some first"),
            Self::TooManyMachines => {
                write!(f, "{MACHINES_MAX} machines are on record, which is the most; forget some first")
            }
            Self::NoMachine { named } => {
                write!(f, "there is no machine {named}; `bootstorm machine list` shows the ones there are")
            }
            Self::IdentTaken { ident, machine } => {
                write!(f, "{ident} belongs to machine {machine} already; merge the two, or split it off there first")
            }
            Self::SharedIdent { ident } => {
                write!(f, "{ident} does not name one machine (many share it, or it goes from machine to machine)")
            }
            Self::CannotMerge { why } => f.write_str(why),
            Self::Stale { found } => {
                write!(f, "it has changed meanwhile (now generation {found}); look again and repeat the order")
            }
            Self::StoreUnavailable { reason } => write!(f, "not stored, nothing was changed: {reason}"),
            Self::Busy => f.write_str("too many orders wait already; try again in a moment"),
        }
    }
}

impl std::error::Error for Refusal {}

/// A boot at the point of no return.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AtTheLine {
    /// The boot.
    pub boot: BootId,
    /// Its token's job.
    pub job: JobId,
    /// The image whose last bytes wait.
    pub image: String,
    /// What waits, in words for the job's reason.
    pub what: String,
    /// What the machine is known by, where no script request has shown it.
    pub idents: Vec<Ident>,
    /// What waits is no end of a boot but an answer file that is given once: to this machine, under this name.
    pub once: Option<(MacAddr, String)>,
}

/// One record that changed.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// A job; `before` is the generation it replaces, `None` a new one's.
    Job {
        /// The number.
        id: JobId,
        /// The generation before.
        before: Option<u64>,
        /// As it is now; `None` when it was forgotten.
        now: Option<Arc<Job>>,
    },
    /// A claim.
    Claim {
        /// The number.
        id: ClaimId,
        /// The generation before.
        before: Option<u64>,
        /// As it is now.
        now: Option<Arc<Claim>>,
    },
    /// A machine.
    Machine {
        /// The number.
        id: MachineId,
        /// The generation before.
        before: Option<u64>,
        /// As it is now.
        now: Option<Arc<Machine>>,
    },
    /// The numbers given out last.
    Numbers(Numbers),
    /// A line of a log.
    Said {
        /// Of the audit log; of the event log otherwise.
        audit: bool,
        /// What it is found by.
        subject: String,
        /// JSON.
        body: String,
    },
}

/// The numbers given out last. They never go down, so that none is used twice.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Numbers {
    /// Jobs.
    pub job: u64,
    /// Claims.
    pub claim: u64,
    /// Machines.
    pub machine: u64,
}

/// What to put back when the store refuses.
#[derive(Clone, Debug)]
enum Undo {
    Job(JobId, Option<Arc<Job>>),
    Claim(ClaimId, Option<Arc<Claim>>),
    Machine(MachineId, Option<Arc<Machine>>),
    Numbers(Numbers),
    Said { audit: bool, subject: String, body: String },
}

/// A place in the book's list of changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark(usize);

/// Every job, claim and machine.
#[derive(Clone, Default, Debug)]
pub struct Book {
    jobs: BTreeMap<JobId, Arc<Job>>,
    claims: BTreeMap<ClaimId, Arc<Claim>>,
    machines: BTreeMap<MachineId, Arc<Machine>>,
    numbers: Numbers,
    /// Jobs that name one machine, by what they name.
    exact: HashMap<Ident, BTreeSet<JobId>>,
    rules: BTreeSet<JobId>,
    claims_of: HashMap<Ident, BTreeSet<ClaimId>>,
    by_boot: HashMap<BootId, ClaimId>,
    by_ident: HashMap<Ident, MachineId>,
    /// What boots presented, in memory only.
    boots: Remembered<BootId, Vec<Ident>>,
    /// UUIDs that DHCP showed beside addresses of machines not on record, in memory only.
    strangers: Remembered<MacAddr, crate::wire::Uuid>,
    /// How each machine was last sent to its disk, in memory only.
    local_boots: Remembered<MachineId, machines::LocalBoot>,
    bucket: machines::Bucket,
    undo: Vec<Undo>,
    touched: BTreeSet<Ident>,
    jobs_touched: BTreeSet<JobId>,
    rules_touched: bool,
}

/// A bounded memory: the oldest makes room.
#[derive(Clone, Debug)]
struct Remembered<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Eq + std::hash::Hash, V> Remembered<K, V> {
    fn insert(&mut self, key: K, value: V, max: usize) {
        if self.map.insert(key, value).is_none() {
            self.order.push_back(key);
            while self.order.len() > max {
                if let Some(oldest) = self.order.pop_front() {
                    self.map.remove(&oldest);
                }
            }
        }
    }

    fn get(&self, key: K) -> Option<&V> {
        self.map.get(&key)
    }
}

/// What an operator orders about one job or machine, with the generation it must still have, if that matters.
type Expected = Option<u64>;

impl Book {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// The book as it was stored.
    pub fn load(
        numbers: Numbers,
        jobs: impl IntoIterator<Item = Job>,
        claims: impl IntoIterator<Item = Claim>,
        machines: impl IntoIterator<Item = Machine>,
    ) -> Self {
        let mut book = Self { numbers, ..Self::default() };
        for job in jobs {
            book.numbers.job = book.numbers.job.max(job.id.0);
            book.put_job(job.id, Some(Arc::new(job)));
        }
        for machine in machines {
            let last = machine.parts.iter().map(|part| part.id.0).max().unwrap_or(0).max(machine.id.0);
            book.numbers.machine = book.numbers.machine.max(last);
            book.put_machine(machine.id, Some(Arc::new(machine)));
        }
        for claim in claims {
            book.numbers.claim = book.numbers.claim.max(claim.id.0);
            book.put_claim(claim.id, Some(Arc::new(claim)));
        }
        book.undo.clear();
        book
    }

    /// Every job, oldest first.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.values()
    }

    /// One job.
    pub fn job(&self, id: JobId) -> Option<&Arc<Job>> {
        self.jobs.get(&id)
    }

    /// Every claim of one rule's job.
    pub fn claims(&self, job: JobId) -> impl Iterator<Item = &Arc<Claim>> {
        self.claims.values().filter(move |claim| claim.job == job)
    }

    /// Where the list of changes stands.
    pub fn mark(&self) -> Mark {
        Mark(self.undo.len())
    }

    /// What changed since `mark`, each record once, in the order of its first change.
    pub fn changes(&self, mark: Mark) -> Vec<Change> {
        let mut seen_jobs = BTreeSet::new();
        let mut seen_claims = BTreeSet::new();
        let mut seen_machines = BTreeSet::new();
        let mut numbers = false;
        let mut out = Vec::new();
        for undo in &self.undo[mark.0..] {
            match undo {
                Undo::Job(id, before) if seen_jobs.insert(*id) => {
                    let (before, now) =
                        (before.as_ref().map(|job| job.generation), self.jobs.get(id).cloned());
                    out.push(Change::Job { id: *id, before, now });
                }
                Undo::Claim(id, before) if seen_claims.insert(*id) => {
                    let before = before.as_ref().map(|claim| claim.generation);
                    out.push(Change::Claim { id: *id, before, now: self.claims.get(id).cloned() });
                }
                Undo::Machine(id, before) if seen_machines.insert(*id) => {
                    let before = before.as_ref().map(|machine| machine.generation);
                    out.push(Change::Machine { id: *id, before, now: self.machines.get(id).cloned() });
                }
                Undo::Numbers(_) if !std::mem::replace(&mut numbers, true) => {
                    out.push(Change::Numbers(self.numbers));
                }
                Undo::Said { audit, subject, body } => {
                    out.push(Change::Said { audit: *audit, subject: subject.clone(), body: body.clone() });
                }
                _ => {}
            }
        }
        out
    }

    /// Takes back everything since `mark`.
    pub fn roll_back(&mut self, mark: Mark) {
        while self.undo.len() > mark.0 {
            match self.undo.pop() {
                Some(Undo::Job(id, before)) => self.put_job(id, before),
                Some(Undo::Claim(id, before)) => self.put_claim(id, before),
                Some(Undo::Machine(id, before)) => self.put_machine(id, before),
                Some(Undo::Numbers(before)) => self.numbers = before,
                Some(Undo::Said { .. }) | None => {}
            }
        }
    }

    /// Forgets how to take back what changed, and what would be published of it.
    pub fn settle(&mut self) -> (BTreeSet<Ident>, bool) {
        self.undo.clear();
        self.jobs_touched.clear();
        (std::mem::take(&mut self.touched), std::mem::take(&mut self.rules_touched))
    }

    /// What changed is stored: the cores may see it.
    pub fn publish(&mut self, writer: &mut Writer) {
        for id in std::mem::take(&mut self.jobs_touched) {
            writer.put(Key::Job(id), self.job_entry(id));
        }
        let (idents, rules) = self.settle();
        for ident in &idents {
            writer.put(ident.key(), self.entry(ident));
        }
        if rules {
            writer.set_rules(self.rule_jobs());
        }
    }

    /// Publishes everything, and what `before` had and this book has not.
    pub fn publish_all(&mut self, before: &Self, writer: &mut Writer) {
        self.settle();
        for id in before.jobs.keys().chain(self.jobs.keys()) {
            writer.put(Key::Job(*id), self.job_entry(*id));
        }
        for ident in before.idents().into_iter().chain(self.idents()) {
            writer.put(ident.key(), self.entry(&ident));
        }
        writer.set_rules(self.rule_jobs());
    }

    fn job_entry(&self, id: JobId) -> Option<Entry> {
        self.jobs.get(&id).map(|job| Entry { grants: vec![Arc::clone(job)], machine: None })
    }

    /// What is to be published about one identity.
    pub fn entry(&self, ident: &Ident) -> Option<Entry> {
        let mut grants: Vec<Arc<Job>> = self.exact_jobs(ident).filter(|job| job.is_live()).cloned().collect();
        grants.retain(|job| !job.is_on_last_attempt());
        grants.sort_by_key(|job| (std::cmp::Reverse(job.priority), job.created, job.id));
        let machine = self.by_ident.get(ident).and_then(|id| self.machines.get(id));
        let mut over: Vec<Arc<Job>> = Vec::new();
        let mut denied: Vec<Arc<Job>> = Vec::new();
        let mut look = |ident: &Ident| {
            for job in self.exact_jobs(ident) {
                if job.is_done() {
                    over.push(Arc::clone(job));
                } else if job.is_on_last_attempt() {
                    denied.push(Arc::clone(job));
                }
            }
            for claim in self.claims_of.get(ident).into_iter().flatten().filter_map(|id| self.claims.get(id))
            {
                let Some(job) = self.jobs.get(&claim.job).filter(|job| job.is_live()) else { continue };
                if claim.denies(job) && !denied.iter().any(|other| other.id == job.id) {
                    // As it stands with this machine, which is what the machine's screen and `explain` are to say.
                    let mut job = Job::clone(job);
                    job.set_course(claim.course());
                    denied.push(Arc::new(job));
                }
            }
        };
        look(ident);
        if let Some(machine) = machine {
            machine.idents().filter(|other| *other != ident).for_each(&mut look);
        }
        over.sort_by_key(|job| std::cmp::Reverse((job.updated, job.id)));
        over.dedup_by_key(|job| job.id);
        over.truncate(SPENT_SHOWN);
        denied.append(&mut over);
        denied.sort_by_key(|job| std::cmp::Reverse((job.updated, job.id)));
        let part = machine.and_then(|machine| machine.part_of(ident));
        // A machine that was only seen is still unknown to rules that ask for unknown machines.
        let said = |machine: &Arc<Machine>| machine.registered || machine.is_rejected();
        let known = machine.is_some_and(said) || !denied.is_empty();
        let leaves_otherwise = machine.is_some_and(|machine| machine.local_boot != 0);
        let standing = (known || leaves_otherwise).then(|| {
            Arc::new(Standing {
                machine: machine.map_or(MachineId(0), |machine| machine.id),
                known,
                name: machine.and_then(|machine| machine.name.as_deref()).map(Box::from),
                spent: denied,
                rejected: machine.is_some_and(|machine| machine.is_rejected()),
                approved: part.is_some_and(|part| part.state == super::machine::MachineState::Approved),
                groups: part.map(|part| part.groups.clone()).unwrap_or_default(),
                loader: machine.and_then(|machine| machine.loader.as_deref()).map(Box::from),
                local_boot: machine.map_or(0, |machine| machine.local_boot),
            })
        });
        (!grants.is_empty() || standing.is_some()).then_some(Entry { grants, machine: standing })
    }

    /// The live rules' jobs, in no order.
    pub fn rule_jobs(&self) -> Vec<Arc<Job>> {
        self.rules.iter().filter_map(|id| self.jobs.get(id)).filter(|job| job.is_live()).cloned().collect()
    }

    /// Every identity that has an entry.
    pub fn idents(&self) -> BTreeSet<Ident> {
        self.exact.keys().chain(self.claims_of.keys()).chain(self.by_ident.keys()).cloned().collect()
    }

    fn exact_jobs(&self, ident: &Ident) -> impl Iterator<Item = &Arc<Job>> {
        self.exact.get(ident).into_iter().flatten().filter_map(|id| self.jobs.get(id))
    }

    /// Adds a job.
    ///
    /// # Errors
    ///
    /// Every [`Refusal`] about images, selectors and numbers. Nothing is changed then.
    pub fn add(
        &mut self,
        mut spec: JobSpec,
        images: &dyn Images,
        by: &str,
        at: Moment,
    ) -> Result<Arc<Job>, Refusal> {
        spec.selector = checked_selector(spec.selector)?;
        let destructive = check_spec(&spec, images)?;
        let ident = Ident::of_selector(&spec.selector);
        let live: Vec<JobId> = match &ident {
            Some(ident) => self.exact_jobs(ident).filter(|job| job.is_live()).map(|job| job.id).collect(),
            None => Vec::new(),
        };
        if let Some(first) = live.first()
            && !spec.replace
            && !spec.queue
        {
            return Err(Refusal::HasJob { id: *first, selector: spec.selector });
        }
        if self.jobs.len() >= JOBS_MAX && !self.make_room() {
            return Err(Refusal::TooMany);
        }
        let id = JobId(self.number(|numbers| &mut numbers.job));
        if spec.replace {
            for old in live.iter().copied() {
                self.move_job(old, at, |course, terms| {
                    course.cancel(format!("replaced by {id}"), terms.always, at.now)
                });
            }
        }
        let mut job = Job::new(id, &spec, destructive, at.now);
        job.floor = BootId(0);
        let job = Arc::new(job);
        self.change_job(id, Some(Arc::clone(&job)));
        let replaced = if spec.replace { live } else { Vec::new() };
        let body = json!({ "by": by, "what": "job-added", "job": &*job, "replaced": replaced });
        self.say(true, id.to_string(), body);
        Ok(job)
    }

    /// Takes a live job back.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::Ended`], [`Refusal::Stale`].
    pub fn cancel(
        &mut self,
        id: JobId,
        expected: Expected,
        by: &str,
        at: Moment,
    ) -> Result<Arc<Job>, Refusal> {
        let job = self.expect_job(id, expected)?;
        if !job.is_live() {
            return Err(Refusal::Ended { id, stage: job.stage });
        }
        self.move_job(id, at, |course, terms| {
            course.cancel(format!("cancelled by {by}"), terms.always, at.now)
        });
        self.say_changed(by, "job-cancelled", &job)
    }

    /// Starts a job that is over again from `armed`, with all its attempts, its whole time, from its first image.
    /// A rule's job is started again for every machine that had it.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::NotEnded`], [`Refusal::HasJob`], [`Refusal::Stale`], and what `add` says
    /// about images.
    pub fn rearm(
        &mut self,
        id: JobId,
        expected: Expected,
        images: &dyn Images,
        by: &str,
        at: Moment,
    ) -> Result<Arc<Job>, Refusal> {
        let old = self.expect_job(id, expected)?;
        let claimed: Vec<ClaimId> = self.claims(id).map(|claim| claim.id).collect();
        let is_over = !old.is_live() || !old.selector.is_exact() && !claimed.is_empty();
        if !is_over {
            return Err(Refusal::NotEnded { id, stage: old.stage });
        }
        if let Some(ident) = Ident::of_selector(&old.selector)
            && let Some(live) = self.exact_jobs(&ident).find(|job| job.is_live())
        {
            return Err(Refusal::HasJob { id: live.id, selector: old.selector.clone() });
        }
        let mut job = Job::clone(&old);
        if let Some(first) = job.sequence.first() {
            job.action = first.clone();
        }
        job.step = 0;
        let mut destructive = false;
        for action in std::iter::once(&job.action).chain(&job.sequence) {
            destructive |= check_action(action, job.always, &job.selector, job.allow_rule, images)?;
        }
        job.destructive = destructive;
        let mut course = job.course();
        if !course.rearm(job.always, at.next_boot, at.now) {
            // A rule's job that is live, and of which machines had their boot.
            course.floor = at.next_boot;
            course.reason = "re-armed by an operator".into();
            course.updated = at.now;
        }
        job.set_course(course);
        job.created = at.now;
        job.generation += 1;
        let job = Arc::new(job);
        self.change_job(id, Some(job));
        for claim in claimed {
            self.change_claim(claim, None);
        }
        self.say_changed(by, "job-rearmed", &old)
    }

    /// An operator confirms what no call-back did.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::Stale`], [`Refusal::NotRunning`] where nothing waits to be confirmed.
    pub fn confirm(
        &mut self,
        id: JobId,
        expected: Expected,
        by: &str,
        at: Moment,
    ) -> Result<Arc<Job>, Refusal> {
        let job = self.expect_job(id, expected)?;
        let Some(boot) = job.passed.filter(|_| job.stage == Stage::Running) else {
            return Err(Refusal::NotRunning { id, stage: job.stage });
        };
        self.move_job(id, at, |course, terms| course.confirmed(boot, terms.always, at.now));
        self.advance(id, Stage::Confirmed, at);
        self.say_changed(by, "job-confirmed", &job)
    }

    /// Gives one machine a rule's job once more.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoClaim`].
    pub fn forget_claim(&mut self, id: ClaimId, by: &str) -> Result<(), Refusal> {
        let claim = self.claims.get(&id).cloned().ok_or(Refusal::NoClaim { id })?;
        self.change_claim(id, None);
        self.say(
            true,
            claim.job.to_string(),
            json!({ "by": by, "what": "claim-forgotten", "claim": &*claim }),
        );
        Ok(())
    }

    /// A boot is about to get the last bytes it needs. [`Passage::Now`] holds once the change is stored, and not
    /// before; [`Passage::Before`] holds at once.
    pub fn pass(&mut self, line: &AtTheLine, at: Moment) -> Passage {
        let Some(job) = self.jobs.get(&line.job).cloned() else { return Passage::Denied(Denial::NoJob) };
        if let Some((mac, name)) = &line.once {
            return self.give(&job, line, *mac, name);
        }
        // What boots every time wipes nothing, and what a person picked from a menu is the person's doing.
        if job.always || job.action.image().is_none() {
            return Passage::Before;
        }
        let presented = self.boots.get(line.boot).cloned().unwrap_or_else(|| line.idents.clone());
        let own = Ident::of_selector(&job.selector);
        if presented.iter().chain(&own).any(|ident| self.is_rejected(ident)) {
            return Passage::Denied(Denial::Rejected);
        }
        if own.is_some() {
            if job.passed == Some(line.boot) {
                return Passage::Before;
            }
            if job.action.image() != Some(line.image.as_str()) {
                return Passage::Denied(Denial::OtherImage);
            }
            let mut passage = Passage::Before;
            let reason = format!("{} left the server: what it boots may have started", line.what);
            self.move_job(line.job, at, |course, terms| {
                passage = course.pass(line.boot, reason, terms, at.now);
                passage == Passage::Now
            });
            if passage == Passage::Now {
                self.advance(line.job, Stage::Running, at);
            }
            return passage;
        }
        self.pass_claim(&job, line, presented, at)
    }

    /// An answer file is about to leave that is given once per boot. Remembered in the job that names the machine,
    /// else with the machine.
    fn give(&mut self, job: &Arc<Job>, line: &AtTheLine, mac: MacAddr, name: &str) -> Passage {
        let ident = Ident::Mac(mac);
        if self.is_rejected(&ident) {
            return Passage::Denied(Denial::Rejected);
        }
        match reach::image_of(job, line.boot) {
            Ok(image) if image == line.image => {}
            Ok(_) => return Passage::Denied(Denial::OtherImage),
            Err(_) => return Passage::Denied(Denial::Outdated),
        }
        if job.selector.is_exact() {
            let mut job = Job::clone(job);
            if !job.given.give(line.boot, name) {
                return Passage::Denied(Denial::GivenBefore);
            }
            job.generation += 1;
            self.change_job(job.id, Some(Arc::new(job)));
            return Passage::Now;
        }
        let Some(machine) = self.machine_with(&ident) else { return Passage::Denied(Denial::NotOnRecord) };
        let mut machine = Machine::clone(machine);
        if !machine.given.give(line.boot, name) {
            return Passage::Denied(Denial::GivenBefore);
        }
        self.put_changed(machine);
        Passage::Now
    }

    /// The point of no return of a rule's job: every claim of whoever the boot presents itself as has a say.
    fn pass_claim(&mut self, job: &Arc<Job>, line: &AtTheLine, presented: Vec<Ident>, at: Moment) -> Passage {
        let by_boot = self.by_boot.get(&line.boot).and_then(|id| self.claims.get(id)).cloned();
        if let Some(claim) = by_boot.as_ref().filter(|claim| claim.job == job.id)
            && claim.passed == Some(line.boot)
        {
            return Passage::Before;
        }
        // A rule that expires takes no further machine; one that is in the middle of its boot goes on.
        let under_way =
            by_boot.as_ref().is_some_and(|claim| claim.job == job.id && claim.stage == Stage::Fetching);
        let open = job.is_live() || job.stage == Stage::Expired && under_way;
        if !open {
            return Passage::Denied(Denial::Over(job.stage));
        }
        if line.boot < job.floor {
            return Passage::Denied(Denial::Outdated);
        }
        if job.action.image() != Some(line.image.as_str()) {
            return Passage::Denied(Denial::OtherImage);
        }
        let mut idents: Vec<Ident> = presented.into_iter().filter(Ident::is_identifying).collect();
        if let Some(claim) = by_boot.filter(|claim| claim.job == job.id) {
            idents.extend(claim.idents.iter().cloned());
        }
        if idents.is_empty() {
            return Passage::Denied(Denial::UnknownBoot);
        }
        if job.destructive && !idents.iter().any(|ident| matches!(ident, Ident::Uuid(_) | Ident::Serial(_))) {
            return Passage::Denied(Denial::NotIdentified);
        }
        let mut passage = Passage::Denied(Denial::Spent);
        let reason = format!("{} left the server: what it boots may have started", line.what);
        self.move_claim(job, &idents, at, |course, terms| {
            passage = course.pass(line.boot, reason, terms, at.now);
            passage == Passage::Now
        });
        passage
    }

    /// Moves what `evidence` is about, and returns the job if anything of it changed.
    pub fn note(&mut self, evidence: &Evidence, at: Moment) -> Option<Arc<Job>> {
        match (&evidence.seen, evidence.mac, evidence.uuid) {
            (Seen::DhcpOffered { .. }, Some(mac), Some(uuid)) => {
                self.seen_together(mac, uuid, at);
                return None;
            }
            (Seen::ScriptAsked { offer, .. }, ..) => self.script_asked(evidence, offer, at),
            (Seen::LocalBack { strategy }, ..) => {
                if let (Some(boot), Some(way)) = (evidence.boot, LocalStrategy::of_word(strategy)) {
                    self.local_came_back(boot, way, at);
                }
                return None;
            }
            _ => {}
        }
        let (id, boot) = (evidence.job()?, evidence.boot?);
        let job = self.jobs.get(&id)?.clone();
        let moved = if job.selector.is_exact() {
            self.move_job(id, at, |course, terms| weigh(course, &job, evidence, boot, terms, at.now))
        } else if !job.always && job.action.image().is_some() {
            let mut idents = self.boots.get(boot).cloned().unwrap_or_default();
            if idents.is_empty()
                && let Some(claim) = self.by_boot.get(&boot).and_then(|claim| self.claims.get(claim))
            {
                idents.clone_from(&claim.idents);
            }
            idents.retain(Ident::is_identifying);
            let known = idents
                .iter()
                .any(|ident| self.by_ident.contains_key(ident) || self.claim_for(job.id, ident).is_some());
            // Machines nobody knows are taken on record only so fast.
            if idents.is_empty() || !known && !self.bucket.take(at.now) {
                return None;
            }
            self.move_claim(&job, &idents, at, |course, terms| {
                weigh(course, &job, evidence, boot, terms, at.now)
            })
        } else {
            false
        };
        if moved && matches!(evidence.seen, Seen::CalledBack { .. }) {
            self.advance(id, Stage::Confirmed, at);
        }
        moved.then(|| self.jobs.get(&id).cloned()).flatten()
    }

    /// Ends jobs whose time ran out, and counts an attempt of every boot that fell silent while fetching. To be
    /// called every few seconds; returns the jobs it changed.
    pub fn expire(&mut self, at: Moment) -> Vec<Arc<Job>> {
        let due: Vec<JobId> = self
            .jobs
            .values()
            .filter(|job| job.has_expired(at.now) || job.stage == Stage::Fetching || job.boots > 0)
            .map(|job| job.id)
            .collect();
        let mut changed = Vec::new();
        for id in due {
            let expired = self.jobs.get(&id).is_some_and(|job| job.has_expired(at.now));
            let moved = self.move_job(id, at, |course, terms| {
                if expired { course.expire(terms.always, at.now) } else { course.look(terms, at.now) }
            });
            if moved && let Some(job) = self.jobs.get(&id) {
                changed.push(Arc::clone(job));
            }
        }
        self.miss_call_backs(at, &mut changed);
        let due: Vec<Arc<Claim>> = self
            .claims
            .values()
            .filter(|claim| claim.stage == Stage::Fetching || claim.boots > 0)
            .cloned()
            .collect();
        for old in due {
            let Some(job) = self.jobs.get(&old.job).cloned() else { continue };
            let mut course = old.course();
            if course.look(&job.terms(), at.now) {
                self.set_claim_course(&old, course);
            }
        }
        changed
    }

    /// A boot that passed and was to call back, and has not within the window, is said to have not. It stays running:
    /// what it booted may be at work, so nobody else gets the job.
    fn miss_call_backs(&mut self, at: Moment, changed: &mut Vec<Arc<Job>>) {
        let overdue = |stage: Stage, updated: SystemTime, reason: &str, job: &Job| {
            stage == Stage::Running
                && job.confirm == Confirm::Callback
                && since(updated, at.now) >= job.window
                && !reason.starts_with(NO_CALL_BACK)
        };
        let reason = |job: &Job| {
            let minutes = job.window.as_secs().div_ceil(60);
            format!("{NO_CALL_BACK} within {minutes} minutes: whether what it boots runs is not known")
        };
        let jobs: Vec<Arc<Job>> = self
            .jobs
            .values()
            .filter(|job| overdue(job.stage, job.updated, &job.reason, job))
            .cloned()
            .collect();
        for job in jobs {
            let Some(boot) = job.passed else { continue };
            let why = reason(&job);
            if self.move_job(job.id, at, |course, _| course.learned(boot, why.clone(), at.now)) {
                self.say(
                    false,
                    job.id.to_string(),
                    json!({ "what": "no-call-back", "boot": boot, "reason": why }),
                );
                changed.extend(self.jobs.get(&job.id).cloned());
            }
        }
        let claims: Vec<(Arc<Claim>, Arc<Job>)> = self
            .claims
            .values()
            .filter_map(|claim| Some((Arc::clone(claim), self.jobs.get(&claim.job).cloned()?)))
            .filter(|(claim, job)| overdue(claim.stage, claim.updated, &claim.reason, job))
            .collect();
        for (claim, job) in claims {
            let (Some(boot), why) = (claim.passed, reason(&job)) else { continue };
            let mut course = claim.course();
            if course.learned(boot, why.clone(), at.now) {
                self.set_claim_course(&claim, course);
                let body = json!({ "what": "no-call-back", "claim": claim.id, "boot": boot, "reason": why });
                self.say(false, job.id.to_string(), body);
            }
        }
    }

    /// A sequence goes on to its next image once `reached` is what its boots are to reach.
    fn advance(&mut self, id: JobId, reached: Stage, at: Moment) {
        let Some(job) = self.jobs.get(&id).cloned() else { return };
        let due = match job.confirm {
            Confirm::Image => Stage::Running,
            Confirm::Callback => Stage::Confirmed,
        };
        if job.stage != reached || reached < due || !job.has_next_step() {
            return;
        }
        let mut next = Job::clone(&job);
        let mut course = next.course();
        if !course.next(at.next_boot, at.now) {
            return;
        }
        next.set_course(course);
        next.step += 1;
        if let Some(action) = next.sequence.get(next.step as usize) {
            next.action = action.clone();
        }
        next.generation += 1;
        self.change_job(id, Some(Arc::new(next)));
    }

    /// Moves a job's own course; says whether it changed.
    fn move_job(&mut self, id: JobId, _at: Moment, change: impl FnOnce(&mut Course, &Terms) -> bool) -> bool {
        let Some(old) = self.jobs.get(&id).cloned() else { return false };
        let mut course = old.course();
        if !change(&mut course, &old.terms()) {
            return false;
        }
        let mut job = Job::clone(&old);
        job.set_course(course);
        job.generation += 1;
        if job.stage != old.stage {
            let body = json!({ "what": "job", "from": old.stage, "to": job.stage, "boot": job.boot,
                "reason": job.reason, "step": job.step });
            self.say(false, id.to_string(), body);
        }
        self.change_job(id, Some(Arc::new(job)));
        true
    }

    /// Moves the claim of whoever presents `idents`, a new one if there is none; says whether it changed. When these
    /// identities have several claims and one of them is over, nothing moves: a denial holds for all.
    fn move_claim(
        &mut self,
        job: &Arc<Job>,
        idents: &[Ident],
        at: Moment,
        change: impl FnOnce(&mut Course, &Terms) -> bool,
    ) -> bool {
        let mut all: BTreeSet<ClaimId> = BTreeSet::new();
        let mut machine = None;
        for ident in idents {
            all.extend(self.claim_for(job.id, ident));
            if let Some(id) = self.by_ident.get(ident) {
                machine = machine.or(Some(*id));
                if let Some(record) = self.machines.get(id) {
                    all.extend(record.idents().filter_map(|ident| self.claim_for(job.id, ident)));
                }
            }
        }
        let over = all.iter().find(|id| self.claims.get(id).is_some_and(|claim| !claim.stage.is_live(false)));
        let chosen = over.or(all.first()).copied();
        let old = match chosen.and_then(|id| self.claims.get(&id).cloned()) {
            Some(claim) => claim,
            None if self.claims.len() >= CLAIMS_MAX && !self.make_claims_room() => return false,
            None => {
                let id = ClaimId(self.number(|numbers| &mut numbers.claim));
                Arc::new(Claim::new(id, job, Vec::new(), at.now))
            }
        };
        let mut course = old.course();
        if !change(&mut course, &job.terms()) {
            return false;
        }
        let mut claim = Claim::clone(&old);
        for ident in idents {
            if !claim.idents.contains(ident) {
                claim.idents.push(ident.clone());
            }
        }
        claim.machine = claim.machine.or(machine);
        if claim.stage != course.stage() {
            let body = json!({ "what": "claim", "claim": claim.id, "machine": claim.machine, "from": claim.stage,
                "to": course.stage(), "boot": course.boot, "reason": course.reason });
            self.say(false, job.id.to_string(), body);
        }
        self.set_claim_course(&claim, course);
        true
    }

    fn set_claim_course(&mut self, claim: &Claim, course: Course) {
        let mut claim = claim.clone();
        claim.set_course(course);
        claim.generation += 1;
        self.change_claim(claim.id, Some(Arc::new(claim)));
    }

    fn claim_for(&self, job: JobId, ident: &Ident) -> Option<ClaimId> {
        let of = self.claims_of.get(ident)?;
        of.iter().copied().find(|id| self.claims.get(id).is_some_and(|claim| claim.job == job))
    }

    fn is_rejected(&self, ident: &Ident) -> bool {
        self.by_ident.get(ident).and_then(|id| self.machines.get(id)).is_some_and(|m| m.is_rejected())
    }

    fn expect_job(&self, id: JobId, expected: Expected) -> Result<Arc<Job>, Refusal> {
        let job = self.jobs.get(&id).cloned().ok_or(Refusal::NotFound { id })?;
        match expected {
            Some(generation) if generation != job.generation => Err(Refusal::Stale { found: job.generation }),
            _ => Ok(job),
        }
    }

    fn number(&mut self, which: impl FnOnce(&mut Numbers) -> &mut u64) -> u64 {
        self.undo.push(Undo::Numbers(self.numbers));
        let last = which(&mut self.numbers);
        *last += 1;
        *last
    }

    /// Says what an order changed of a job, and returns it as it is now.
    fn say_changed(&mut self, by: &str, what: &str, before: &Job) -> Result<Arc<Job>, Refusal> {
        let now = self.expect_job(before.id, None)?;
        let told = |job: &Job| json!({ "stage": job.stage, "step": job.step, "generation": job.generation });
        let body =
            json!({ "by": by, "what": what, "job": now.id, "before": told(before), "after": told(&now) });
        self.say(true, now.id.to_string(), body);
        Ok(now)
    }

    fn say(&mut self, audit: bool, subject: String, body: serde_json::Value) {
        self.undo.push(Undo::Said { audit, subject, body: body.to_string() });
    }

    /// Forgets the oldest ended jobs, a thousandth of the book at a time; false if every job is live.
    fn make_room(&mut self) -> bool {
        let oldest: Vec<JobId> =
            self.jobs.values().filter(|job| !job.is_live()).map(|job| job.id).take(JOBS_MAX / 1000).collect();
        for id in &oldest {
            let claims: Vec<ClaimId> = self.claims(*id).map(|claim| claim.id).collect();
            for claim in claims {
                self.change_claim(claim, None);
            }
            self.change_job(*id, None);
        }
        !oldest.is_empty()
    }

    /// Forgets the oldest claims that deny nothing; false if there are none.
    fn make_claims_room(&mut self) -> bool {
        let idle = |claim: &&Arc<Claim>| {
            let over = self.jobs.get(&claim.job).is_none_or(|job| !job.is_live());
            over || claim.stage == Stage::Armed || claim.stage == Stage::Offered
        };
        let oldest: Vec<ClaimId> =
            self.claims.values().filter(idle).map(|claim| claim.id).take(CLAIMS_MAX / 1000).collect();
        for id in &oldest {
            self.change_claim(*id, None);
        }
        !oldest.is_empty()
    }

    fn change_job(&mut self, id: JobId, job: Option<Arc<Job>>) {
        self.undo.push(Undo::Job(id, self.jobs.get(&id).cloned()));
        self.put_job(id, job);
    }

    fn change_claim(&mut self, id: ClaimId, claim: Option<Arc<Claim>>) {
        self.undo.push(Undo::Claim(id, self.claims.get(&id).cloned()));
        self.put_claim(id, claim);
    }

    fn change_machine(&mut self, id: MachineId, machine: Option<Arc<Machine>>) {
        self.undo.push(Undo::Machine(id, self.machines.get(&id).cloned()));
        self.put_machine(id, machine);
    }

    fn put_job(&mut self, id: JobId, job: Option<Arc<Job>>) {
        let old = match &job {
            Some(job) => self.jobs.insert(id, Arc::clone(job)),
            None => self.jobs.remove(&id),
        };
        self.jobs_touched.insert(id);
        for selector in old.iter().chain(&job).map(|job| job.selector.clone()) {
            match Ident::of_selector(&selector) {
                Some(ident) => {
                    let of = self.exact.entry(ident.clone()).or_default();
                    if job.is_some() {
                        of.insert(id)
                    } else {
                        of.remove(&id)
                    };
                    if of.is_empty() {
                        self.exact.remove(&ident);
                    }
                    self.touch(&ident);
                }
                None => {
                    if job.is_some() {
                        self.rules.insert(id)
                    } else {
                        self.rules.remove(&id)
                    };
                    self.rules_touched = true;
                }
            }
        }
        // What a rule denies matters while it is live.
        let live = |job: &Option<Arc<Job>>| job.as_ref().is_some_and(|job| job.is_live());
        if self.rules.contains(&id) && live(&old) != live(&job) {
            let idents: Vec<Ident> = self.claims(id).flat_map(|claim| claim.idents.clone()).collect();
            idents.iter().for_each(|ident| self.touch(ident));
        }
    }

    fn put_claim(&mut self, id: ClaimId, claim: Option<Arc<Claim>>) {
        let old = match &claim {
            Some(claim) => self.claims.insert(id, Arc::clone(claim)),
            None => self.claims.remove(&id),
        };
        if let Some(old) = &old {
            for boot in old.boot.iter().chain(&old.passed) {
                if self.by_boot.get(boot) == Some(&id) {
                    self.by_boot.remove(boot);
                }
            }
            for ident in &old.idents {
                if let Some(of) = self.claims_of.get_mut(ident) {
                    of.remove(&id);
                    if of.is_empty() {
                        self.claims_of.remove(ident);
                    }
                }
                self.touch(ident);
            }
        }
        if let Some(claim) = &claim {
            for boot in claim.boot.iter().chain(&claim.passed) {
                self.by_boot.insert(*boot, id);
            }
            for ident in &claim.idents {
                self.claims_of.entry(ident.clone()).or_default().insert(id);
                self.touch(ident);
            }
        }
    }

    fn put_machine(&mut self, id: MachineId, machine: Option<Arc<Machine>>) {
        let old = match &machine {
            Some(machine) => self.machines.insert(id, Arc::clone(machine)),
            None => self.machines.remove(&id),
        };
        for ident in old.iter().flat_map(|machine| machine.idents()) {
            if self.by_ident.get(ident) == Some(&id) {
                self.by_ident.remove(ident);
            }
            self.touched.insert(ident.clone());
        }
        for ident in machine.iter().flat_map(|machine| machine.idents()) {
            self.by_ident.insert(ident.clone(), id);
            self.touched.insert(ident.clone());
        }
    }

    /// What is published of an identity, and of every other one of its machine, may have changed.
    fn touch(&mut self, ident: &Ident) {
        self.touched.insert(ident.clone());
        if let Some(machine) = self.by_ident.get(ident).and_then(|id| self.machines.get(id)) {
            self.touched.extend(machine.idents().cloned());
        }
    }
}

/// Lets evidence move a course; says whether it changed.
fn weigh(
    course: &mut Course,
    job: &Job,
    evidence: &Evidence,
    boot: BootId,
    terms: &Terms,
    now: SystemTime,
) -> bool {
    let ours = |image: &str| job.action.image() == Some(image);
    match &evidence.seen {
        Seen::ScriptAsked { .. } => course.offered(boot, job.action.image().is_some(), terms, now),
        Seen::FileStarted { image, file, .. } | Seen::FileProgress { image, file, .. } if ours(image) => {
            course.fetched(boot, format!("fetching {file}"), terms, now)
        }
        // What boots every time needs no barrier: its evidence is all there is.
        Seen::LastPieceSent { image, file, .. } | Seen::FileDone { image, file, last: true, .. }
            if ours(image) && terms.always =>
        {
            let reason = format!("the last of {file} has left: what it boots may have started");
            course.pass(boot, reason, terms, now) == Passage::Now
        }
        Seen::FileDone { file, last: true, .. } => course.learned(
            boot,
            format!("{file}, the last file, was delivered: what it boots may have started"),
            now,
        ),
        Seen::FileDone { image, file, last: false, .. } if ours(image) => {
            course.fetched(boot, format!("has {file}"), terms, now)
        }
        Seen::TransferFailed { file, reason, .. } => {
            course.broke_off(boot, format!("{file} broke off: {reason}"), now)
        }
        Seen::CalledBack { .. } => course.confirmed(boot, terms.always, now),
        Seen::FailureCalled { reason, .. } => course.failed(boot, reason, terms, now),
        _ => false,
    }
}

/// Everything a spec must be; whether it may wipe a disk.
fn check_spec(spec: &JobSpec, images: &dyn Images) -> Result<bool, Refusal> {
    if spec.attempts == 0 {
        return Err(Refusal::NoAttempts);
    }
    let exact = spec.selector.is_exact();
    if !exact && !spec.always && spec.action.image().is_none() {
        return Err(Refusal::RuleOnce);
    }
    if !spec.then.is_empty() {
        let why = match () {
            () if spec.always => "a job with --always has no second image",
            () if !exact => "a rule has no second image",
            () if spec.then.len() >= SEQUENCE_MAX => "a sequence has at most 32 images",
            () if std::iter::once(&spec.action).chain(&spec.then).any(|action| action.image().is_none()) => {
                "what boots no image is no step"
            }
            () => "",
        };
        if !why.is_empty() {
            return Err(Refusal::Sequence { why });
        }
    }
    let mut destructive = false;
    for action in std::iter::once(&spec.action).chain(&spec.then) {
        destructive |= check_action(action, spec.always, &spec.selector, spec.allow_rule, images)?;
    }
    Ok(destructive)
}

/// Images of one sequence.
const SEQUENCE_MAX: usize = 32;

fn check_action(
    action: &Action,
    always: bool,
    selector: &Selector,
    allow_rule: bool,
    images: &dyn Images,
) -> Result<bool, Refusal> {
    let Some(name) = action.image() else { return Ok(false) };
    let Some(image) = images.image(name) else {
        return Err(Refusal::UnknownImage { name: name.to_owned() });
    };
    if let Some(reason) = &image.unbootable {
        return Err(Refusal::CannotBoot { name: name.to_owned(), reason: reason.clone() });
    }
    if image.boot.is_none() {
        return Err(Refusal::CannotBoot {
            name: name.to_owned(),
            reason: "nothing in it was recognised as bootable".into(),
        });
    }
    if image.is_native_only() && needs_script(selector) {
        return Err(Refusal::NeedsIpxe { name: name.to_owned() });
    }
    if image.destructive && always {
        return Err(Refusal::DestructiveAlways { name: name.to_owned() });
    }
    if image.destructive && !selector.is_exact() && !allow_rule {
        return Err(Refusal::DestructiveRule { name: name.to_owned() });
    }
    Ok(image.destructive)
}

/// True for what firmware does not show: it is known when iPXE asks for its script, and not before.
fn needs_script(selector: &Selector) -> bool {
    match selector {
        Selector::Serial(_) | Selector::Asset(_) => true,
        Selector::Rule(rule) => rule.manufacturer.is_some() || rule.product.is_some(),
        Selector::Mac(_) | Selector::Uuid(_) | Selector::Any => false,
    }
}

fn checked_selector(selector: Selector) -> Result<Selector, Refusal> {
    let selector = match selector {
        Selector::Serial(serial) => Selector::Serial(serial.trim().to_owned()),
        Selector::Asset(asset) => Selector::Asset(asset.trim().to_owned()),
        other => other,
    };
    let identifies = match &selector {
        // An adapter that goes from machine to machine is a fine name for a job: the next boot behind it.
        Selector::Mac(mac) => !mac.is_zero() && !mac.is_group(),
        Selector::Uuid(uuid) => uuid.is_identifying(),
        Selector::Serial(text) | Selector::Asset(text) => identity::is_identifying_text(text),
        Selector::Any | Selector::Rule(_) => true,
    };
    if identifies { Ok(selector) } else { Err(Refusal::NotIdentifying { selector }) }
}

impl Job {
    fn has_expired(&self, now: SystemTime) -> bool {
        let waiting = matches!(self.stage, Stage::Armed | Stage::Offered)
            || self.always && matches!(self.stage, Stage::Running | Stage::Confirmed);
        waiting && self.expires.is_some_and(|expires| since(self.created, now) >= expires)
    }
}

#[cfg(test)]
pub(in crate::jobs) mod published;
#[cfg(test)]
mod tests;

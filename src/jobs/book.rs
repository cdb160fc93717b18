//! The book: every job, claim and machine as a plain value, moved by orders and evidence.
//!
//! The book decides and stores nothing. Whoever owns it (the `keeper`) does four things in turn: hands it inputs,
//! takes the [`Change`]s they made, has them stored, and then either [`publish`](Book::publish)es or
//! [`roll_back`](Book::roll_back)s. What the cores may see is published from a settled book alone.
//!
//! An order that is refused has changed nothing. Everything is bounded: jobs, claims, machines, and what is
//! remembered of boots and of machines nobody knows.

mod boots;
mod machines;
mod orders;
mod refusal;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::machines::{MACHINES_MAX, MachineSpec};
use self::orders::{check_action, check_spec, checked_selector};
pub use self::refusal::Refusal;
use super::claim::{Claim, ClaimId};
use super::evidence::Evidence;
use super::image::Images;
use super::job::{Job, JobId, JobSpec, Stage};
pub use super::lifecycle::SILENCE;
use super::lifecycle::{Course, since};
use super::machine::{Ident, Machine, MachineId};
use super::table::{Entry, Key, Standing, Writer};
use super::token::BootId;
use crate::wire::{MacAddr, Uuid};

/// Jobs in the book, ended ones included. At the bound the oldest ended jobs make room.
pub const JOBS_MAX: usize = 100_000;
/// Claims in the book. At the bound the oldest that deny nothing make room.
pub const CLAIMS_MAX: usize = 200_000;
/// Boots of which the presented identities are remembered between script and last file.
const BOOTS_MAX: usize = 100_000;
/// Jobs that are over and still shown as the reason of a machine's local boots.
const SPENT_SHOWN: usize = 4;

/// The reason of a job that another one took the place of.
pub fn replaced_by(id: JobId) -> String {
    format!("replaced by {id}")
}

/// What orders and evidence are judged by besides themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The wall clock.
    pub now: SystemTime,
    /// No boot that begins from here on has a lower number.
    pub next_boot: BootId,
}

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
    /// The image is not what the boot's script was made of any more, so nobody knows whether it can start something
    /// with this.
    pub changed: bool,
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
    /// What machines on record have passed as.
    passed_as: HashMap<Ident, BTreeSet<MachineId>>,
    /// Machines that make room for others: they were seen, and nothing else.
    only_seen: BTreeSet<MachineId>,
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

    /// A book that is to be filled with what is stored ([`Book::load_job`] and its like, in any order).
    pub fn stored(numbers: Numbers) -> Self {
        Self { numbers, ..Self::default() }
    }

    /// A job that is stored. It is no change, so nothing is touched.
    pub fn load_job(&mut self, job: Job) {
        self.numbers.job = self.numbers.job.max(job.id.0);
        let _ = match Ident::of_selector(&job.selector) {
            Some(ident) => self.exact.entry(ident).or_default().insert(job.id),
            None => self.rules.insert(job.id),
        };
        self.jobs.insert(job.id, Arc::new(job));
    }

    /// A machine that is stored.
    pub fn load_machine(&mut self, machine: Machine) {
        let last = machine.parts.iter().map(|part| part.id.0).max().unwrap_or(0).max(machine.id.0);
        self.numbers.machine = self.numbers.machine.max(last);
        for ident in machine.idents() {
            self.by_ident.insert(ident.clone(), machine.id);
        }
        for ident in &machine.passed_as {
            self.passed_as.entry(ident.clone()).or_default().insert(machine.id);
        }
        if machine.is_only_seen() {
            self.only_seen.insert(machine.id);
        }
        self.machines.insert(machine.id, Arc::new(machine));
    }

    /// A claim that is stored.
    pub fn load_claim(&mut self, claim: Claim) {
        self.numbers.claim = self.numbers.claim.max(claim.id.0);
        for boot in claim.boot.iter().chain(&claim.passed) {
            self.by_boot.insert(*boot, claim.id);
        }
        for ident in &claim.idents {
            self.claims_of.entry(ident.clone()).or_default().insert(claim.id);
        }
        self.claims.insert(claim.id, Arc::new(claim));
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

    /// The stages that jobs, and machines with a rule's job, have come to since `mark`.
    pub fn moves(&self, mark: Mark) -> Vec<Stage> {
        let (mut jobs, mut claims) = (BTreeMap::new(), BTreeMap::new());
        let mut moves = Vec::new();
        for undo in &self.undo[mark.0..] {
            // What was before a change is where the change before it led.
            let (stage, known) = match undo {
                Undo::Job(id, before) => {
                    let stage = before.as_ref().map(|job| job.stage);
                    (stage, jobs.insert(*id, stage))
                }
                Undo::Claim(id, before) => {
                    let stage = before.as_ref().map(|claim| claim.stage);
                    (stage, claims.insert(*id, stage))
                }
                _ => continue,
            };
            moves.extend(stage.filter(|_| known.is_some_and(|known| known != stage)));
        }
        let jobs = jobs.iter().map(|(id, before)| (*before, self.jobs.get(id).map(|job| job.stage)));
        let claims =
            claims.iter().map(|(id, before)| (*before, self.claims.get(id).map(|claim| claim.stage)));
        moves.extend(jobs.chain(claims).filter_map(|(before, now)| now.filter(|_| now != before)));
        moves
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

    /// How much [`Book::publish_all`] publishes, at most.
    pub fn published_len(&self) -> usize {
        // An identity of a job and of a machine is published once; as a rule machines with a job are few or all.
        self.jobs.len() + self.exact.len() + self.by_ident.len() + self.claims_of.len() + self.passed_as.len()
    }

    /// Publishes everything, and what `before` had and this book has not.
    pub fn publish_all(&mut self, before: &Self, writer: &mut Writer) {
        self.settle();
        for id in before.jobs.keys().filter(|id| !self.jobs.contains_key(id)) {
            writer.put(Key::Job(*id), None);
        }
        for ident in before.idents().filter(|ident| !self.has_ident(ident)) {
            writer.put(ident.key(), None);
        }
        // A job's identity goes along with it: both of their entries are made of what is at hand then.
        for (id, job) in &self.jobs {
            writer.put(Key::Job(*id), self.job_entry(*id));
            if let Some(ident) = Ident::of_selector(&job.selector)
                && self.exact.get(&ident).and_then(BTreeSet::first) == Some(id)
            {
                writer.put(ident.key(), self.entry(&ident));
            }
        }
        for ident in self.idents().filter(|ident| !self.exact.contains_key(*ident)) {
            writer.put(ident.key(), self.entry(ident));
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
        let mut has_passed = self.passed_as.contains_key(ident);
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
                has_passed |= claim.passed.is_some();
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
        let said = |machine: &Arc<Machine>| machine.registered || machine.had_job || machine.is_rejected();
        let known = machine.is_some_and(said) || has_passed || !denied.is_empty();
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

    /// Every identity that has an entry, once, in no order.
    pub fn idents(&self) -> impl Iterator<Item = &Ident> {
        let claimed = self.claims_of.keys().filter(|ident| !self.exact.contains_key(*ident));
        let known = self.by_ident.keys();
        let known =
            known.filter(|ident| !self.exact.contains_key(*ident) && !self.claims_of.contains_key(*ident));
        let passed = self.passed_as.keys().filter(|ident| {
            !self.exact.contains_key(*ident)
                && !self.claims_of.contains_key(*ident)
                && !self.by_ident.contains_key(*ident)
        });
        self.exact.keys().chain(claimed).chain(known).chain(passed)
    }

    fn has_ident(&self, ident: &Ident) -> bool {
        self.exact.contains_key(ident)
            || self.claims_of.contains_key(ident)
            || self.by_ident.contains_key(ident)
            || self.passed_as.contains_key(ident)
    }

    fn exact_jobs(&self, ident: &Ident) -> impl Iterator<Item = &Arc<Job>> {
        self.exact.get(ident).into_iter().flatten().filter_map(|id| self.jobs.get(id))
    }

    /// Live jobs for the machine that has this identity, by whatever of it they name, oldest first.
    fn live_jobs(&self, ident: &Ident) -> Vec<JobId> {
        // A UUID names the machine in either byte order.
        let both = |ident: &Ident| match ident {
            Ident::Uuid(uuid) => vec![ident.clone(), Ident::Uuid(Uuid::from_smbios(uuid.0))],
            _ => vec![ident.clone()],
        };
        let of_machine = |ident: &Ident| -> Vec<Ident> {
            self.machine_with(ident).into_iter().flat_map(|machine| machine.idents()).flat_map(both).collect()
        };
        let named = both(ident);
        let all: BTreeSet<Ident> = named.iter().flat_map(of_machine).chain(named.iter().cloned()).collect();
        let live = all.iter().flat_map(|ident| self.exact_jobs(ident)).filter(|job| job.is_live());
        let live: BTreeSet<JobId> = live.map(|job| job.id).collect();
        live.into_iter().collect()
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
            Some(ident) => self.live_jobs(ident),
            None => Vec::new(),
        };
        if let Some(first) = live.first()
            && !spec.replace
            && !spec.queue
        {
            return Err(Refusal::HasJob { id: *first, selector: spec.selector });
        }
        if self.jobs.len() >= JOBS_MAX {
            self.make_room(at.now)?;
        }
        let id = JobId(self.number(|numbers| &mut numbers.job));
        if spec.replace {
            for old in live.iter().copied() {
                self.move_job(old, |course, terms| course.cancel(replaced_by(id), terms.always, at.now));
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
        self.move_job(id, |course, terms| course.cancel(format!("cancelled by {by}"), terms.always, at.now));
        self.say_changed(by, "job-cancelled", &job)
    }

    /// Starts a job that is over again from `armed`, with all its attempts, its whole time, from its first image.
    /// A rule's job is started again for every machine that had it; of one that may wipe a disk and that several
    /// machines had, `all` says that this is meant.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::NotEnded`], [`Refusal::HasJob`], [`Refusal::Stale`],
    /// [`Refusal::RearmsAll`], [`Refusal::KnownNow`] of a live rule for unknown machines, and what `add` says about images.
    pub fn rearm(
        &mut self,
        id: JobId,
        expected: Expected,
        all: bool,
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
        if old.is_live() && is_for_unknown(&old) && self.claims(id).all(|claim| claim.passed.is_some()) {
            return Err(Refusal::KnownNow { id });
        }
        if let Some(ident) = Ident::of_selector(&old.selector)
            && let Some(live) = self.live_jobs(&ident).first()
        {
            return Err(Refusal::HasJob { id: *live, selector: old.selector.clone() });
        }
        let mut job = Job::clone(&old);
        if let Some(first) = job.sequence.first() {
            job.action = first.clone();
        }
        job.step = 0;
        job.step_since = SystemTime::UNIX_EPOCH;
        let mut destructive = false;
        for action in std::iter::once(&job.action).chain(&job.sequence) {
            destructive |= check_action(action, job.always, &job.selector, job.allow_rule, images)?;
        }
        job.destructive = destructive;
        // A boot that passed has had the image; one that did not has lost nothing to the disk yet.
        let machines = self.claims(id).filter(|claim| claim.passed.is_some()).count();
        if destructive && machines > 1 && !all && !is_for_unknown(&old) {
            return Err(Refusal::RearmsAll { id, machines });
        }
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
        let exact = Ident::of_selector(&old.selector).filter(|_| old.passed.is_some());
        let exact: Vec<Ident> = exact.into_iter().collect();
        // Who had it must stay known also when this order is taken back.
        if !self.remember_passed(&exact, at.now)
            || !claimed.into_iter().all(|claim| self.forget_claim(claim, at.now))
        {
            return Err(Refusal::TooManyMachines);
        }
        self.change_job(id, Some(job));
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
        self.move_job(id, |course, terms| course.confirmed(boot, terms.always, at.now));
        self.advance(id, Stage::Confirmed, at);
        self.say_changed(by, "job-confirmed", &job)
    }

    /// Gives one machine a rule's job once more. What its boots so far still do counts no more.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoClaim`], [`Refusal::KnownNow`].
    pub fn rearm_claim(&mut self, id: ClaimId, by: &str, at: Moment) -> Result<(), Refusal> {
        let old = self.claims.get(&id).cloned().ok_or(Refusal::NoClaim { id })?;
        if old.passed.is_some() {
            if self.jobs.get(&old.job).is_some_and(|job| is_for_unknown(job)) {
                return Err(Refusal::KnownNow { id: old.job });
            }
            if !self.remember_passed(&old.idents, at.now) {
                return Err(Refusal::TooManyMachines);
            }
        }
        let mut claim = Claim::clone(&old);
        let again = "re-armed by an operator".to_owned();
        claim.set_course(Course { floor: at.next_boot, reason: again, ..Course::begin(at.now) });
        claim.generation += 1;
        self.change_claim(id, Some(Arc::new(claim)));
        let body = json!({ "by": by, "what": "claim-rearmed", "claim": &*old });
        self.say(true, old.job.to_string(), body);
        Ok(())
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

    /// Jobs that would wipe a disk again if what is known of them were an old copy: those that are live, and those that wait
    /// for a word to go on to their next image.
    pub fn may_wipe_yet(&self) -> Vec<JobId> {
        let goes_on =
            |job: &Job| matches!(job.stage, Stage::Running | Stage::Confirmed) && job.has_next_step();
        let wanted = |job: &&Arc<Job>| job.may_wipe() && (job.is_live() || goes_on(job));
        self.jobs.values().filter(wanted).map(|job| job.id).collect()
    }

    /// Ends one of them: it is cancelled, or its next images are left out.
    ///
    /// # Errors
    ///
    /// As [`Book::cancel`].
    pub fn put_back(&mut self, id: JobId, by: &str, at: Moment) -> Result<Arc<Job>, Refusal> {
        let job = self.expect_job(id, None)?;
        if job.is_live() {
            return self.cancel(id, None, by, at);
        }
        let mut shorter = Job::clone(&job);
        shorter.sequence.truncate(job.step as usize + 1);
        shorter.generation += 1;
        self.change_job(id, Some(Arc::new(shorter)));
        self.say_changed(by, "job-cut-short", &job)
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

    /// Forgets the oldest ended jobs, a thousandth of the book at a time.
    fn make_room(&mut self, now: SystemTime) -> Result<(), Refusal> {
        let ended: Vec<JobId> = self.jobs.values().filter(|job| !job.is_live()).map(|job| job.id).collect();
        if ended.is_empty() {
            return Err(Refusal::TooMany);
        }
        let mut forgotten = 0;
        for id in ended {
            let Some(job) = self.jobs.get(&id).cloned() else { continue };
            match Ident::of_selector(&job.selector) {
                // There is no room to remember which machine had it.
                Some(ident) if job.is_done() && !self.remember_job(&ident, now) => continue,
                Some(_) => {}
                None => {
                    let claims: Vec<ClaimId> = self.claims(id).map(|claim| claim.id).collect();
                    if !claims.into_iter().all(|claim| self.forget_claim(claim, now)) {
                        continue;
                    }
                }
            }
            self.change_job(id, None);
            forgotten += 1;
            if forgotten >= JOBS_MAX / 1000 {
                break;
            }
        }
        if forgotten == 0 { Err(Refusal::TooManyMachines) } else { Ok(()) }
    }

    /// Forgets the oldest claims that deny nothing; false if there are none.
    fn make_claims_room(&mut self, now: SystemTime) -> bool {
        // Those under which nobody passed need no room elsewhere.
        [false, true].into_iter().any(|passed| {
            let of_kind = |claim: &&Arc<Claim>| {
                let over = self.jobs.get(&claim.job).is_none_or(|job| !job.is_live());
                let idle = over || claim.stage == Stage::Armed || claim.stage == Stage::Offered;
                claim.passed.is_some() == passed && idle
            };
            let oldest = self.claims.values().filter(of_kind).map(|claim| claim.id).take(CLAIMS_MAX / 1000);
            let oldest: Vec<ClaimId> = oldest.collect();
            oldest.into_iter().filter(|id| self.forget_claim(*id, now)).count() > 0
        })
    }

    /// Whoever passed under it is remembered; false, and nothing is forgotten, where there is no room for that.
    fn forget_claim(&mut self, id: ClaimId, now: SystemTime) -> bool {
        if let Some(claim) = self.claims.get(&id).filter(|claim| claim.passed.is_some()).cloned()
            && !self.remember_passed(&claim.idents, now)
        {
            return false;
        }
        self.change_claim(id, None);
        true
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
        match machine.as_ref().is_some_and(|machine| machine.is_only_seen()) {
            true => self.only_seen.insert(id),
            false => self.only_seen.remove(&id),
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
        for ident in old.iter().flat_map(|machine| &machine.passed_as) {
            if let Some(of) = self.passed_as.get_mut(ident) {
                of.remove(&id);
                if of.is_empty() {
                    self.passed_as.remove(ident);
                }
            }
            self.touched.insert(ident.clone());
        }
        for ident in machine.iter().flat_map(|machine| &machine.passed_as) {
            self.passed_as.entry(ident.clone()).or_default().insert(id);
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

/// A rule for unknown machines: who had its job is known from then on.
fn is_for_unknown(job: &Job) -> bool {
    job.selector.rule().is_some_and(|rule| rule.any_unknown)
}

impl Job {
    fn has_expired(&self, now: SystemTime) -> bool {
        let waiting = matches!(self.stage, Stage::Armed | Stage::Offered)
            || self.always && matches!(self.stage, Stage::Running | Stage::Confirmed);
        // A later image of a sequence has its time from the boot before it on.
        let from = self.created.max(self.step_since);
        waiting && self.expires.is_some_and(|expires| since(from, now) >= expires)
    }
}

#[cfg(test)]
pub(in crate::jobs) mod published;
#[cfg(test)]
mod tests;

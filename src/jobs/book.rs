//! The book of jobs: the one writer. It keeps every job, moves them by orders and evidence, and publishes the
//! [`Table`] that the cores decide with.
//!
//! Jobs live in memory. The wipe interlock, which must survive a crash, is not built: so a job for an image that
//! may wipe a disk is refused, and says so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};

use super::evidence::{Evidence, Seen};
use super::identity;
use super::image::Images;
use super::job::{Action, Job, JobId, JobSpec, Selector, Stage};
use super::table::Table;
use super::token::BootId;

/// Jobs in the book, ended ones included. At the bound the oldest ended jobs make room.
pub const JOBS_MAX: usize = 100_000;

/// A boot that was fetching and of which nothing was heard for so long has stopped. Longer than a slow TFTP
/// transfer goes between two signs of life.
pub const SILENCE: Duration = Duration::from_secs(15 * 60);

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
    /// The image may wipe a disk, and the wipe interlock is not built.
    Destructive {
        /// The image.
        name: String,
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
    /// A rule matches many machines, and a job that ends with the first of them would surprise.
    RuleOnce,
    /// `attempts` is 0.
    NoAttempts,
    /// No such job.
    NotFound {
        /// The number asked for.
        id: JobId,
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
    /// [`JOBS_MAX`] live jobs.
    TooMany,
}

impl Refusal {
    /// The refusal as one kebab-case word, for JSON.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownImage { .. } => "unknown-image",
            Self::CannotBoot { .. } => "image-cannot-boot",
            Self::Destructive { .. } => "image-is-destructive",
            Self::HasJob { .. } => "machine-has-job",
            Self::NotIdentifying { .. } => "selector-not-identifying",
            Self::RuleOnce => "rule-needs-always",
            Self::NoAttempts => "no-attempts",
            Self::NotFound { .. } => "job-not-found",
            Self::Ended { .. } => "job-ended",
            Self::NotEnded { .. } => "job-not-ended",
            Self::TooMany => "too-many-jobs",
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
            Self::Destructive { name } => write!(
                f,
                "image {name:?} may wipe a disk, and the wipe interlock that keeps a machine from being wiped \
                 twice is not built yet; boot it by hand from the menu instead"
            ),
            Self::HasJob { id, selector } => write!(
                f,
                "{selector} has the live job {id} already; add --replace, or `bootstorm job cancel {id}` first"
            ),
            Self::NotIdentifying { selector } => write!(
                f,
                "{selector} does not name one machine (many share it or nobody set it); use another of the \
                 machine's identities"
            ),
            Self::RuleOnce => f.write_str(
                "a job for any machine does not end with the first one that takes it; add --always, or name the \
                 machines",
            ),
            Self::NoAttempts => f.write_str("a job with 0 attempts never starts; use --attempts 1 or more"),
            Self::NotFound { id } => {
                write!(f, "there is no job {id}; `bootstorm job list` shows the ones there are")
            }
            Self::Ended { id, stage } => {
                write!(f, "job {id} has ended already ({stage}); `bootstorm job rearm {id}` starts it again")
            }
            Self::NotEnded { id, stage } => {
                write!(f, "job {id} has not ended ({stage}); `bootstorm job cancel {id}` ends it")
            }
            Self::TooMany => write!(f, "{JOBS_MAX} jobs are live, which is the most; cancel some first"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Every job, and the one place where they change.
#[derive(Default)]
pub struct Book {
    pages: Mutex<Pages>,
    table: ArcSwap<Table>,
}

#[derive(Default)]
struct Pages {
    jobs: BTreeMap<JobId, Arc<Job>>,
    last: u64,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").field("jobs", &self.pages().jobs.len()).finish_non_exhaustive()
    }
}

impl Book {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// The table as published last. Wait-free; what to hold on to while deciding one thing.
    pub fn load(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Adds a job.
    ///
    /// # Errors
    ///
    /// Every [`Refusal`] about images, selectors and numbers. Nothing is changed then.
    pub fn add(&self, spec: JobSpec, images: &dyn Images, now: SystemTime) -> Result<Job, Refusal> {
        let selector = checked_selector(spec.selector)?;
        if let Action::Image(name) = &spec.action {
            check_image(name, images)?;
        }
        if spec.attempts == 0 {
            return Err(Refusal::NoAttempts);
        }
        if !selector.is_exact() && !spec.always {
            return Err(Refusal::RuleOnce);
        }
        let mut pages = self.pages();
        let mut table = self.copy();
        let replaced = match table.live(&selector) {
            Some(live) if !spec.replace => return Err(Refusal::HasJob { id: live.id, selector }),
            Some(live) => Some(live.id),
            None => None,
        };
        if pages.jobs.len() >= JOBS_MAX && replaced.is_none() && !pages.make_room(&mut table) {
            return Err(Refusal::TooMany);
        }
        pages.last += 1;
        let id = JobId(pages.last);
        if let Some(old) = replaced.and_then(|old| pages.jobs.get(&old)) {
            let mut old = Job::clone(old);
            old.enter(Stage::Cancelled, format!("replaced by {id}"), now);
            pages.put(old, &mut table);
        }
        let job = Job {
            id,
            action: spec.action,
            selector,
            always: spec.always,
            destructive: false,
            attempts: spec.attempts,
            expires: spec.expires,
            priority: spec.priority,
            stage: Stage::Armed,
            attempts_used: 0,
            created: now,
            updated: now,
            boot: None,
            retired: None,
            generation: 1,
            reason: "waiting for its machine".into(),
        };
        pages.put(job.clone(), &mut table);
        self.table.store(Arc::new(table));
        Ok(job)
    }

    /// Takes a live job back.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::Ended`].
    pub fn cancel(&self, id: JobId, now: SystemTime) -> Result<Job, Refusal> {
        self.order(id, |job| {
            if !job.is_live() {
                return Err(Refusal::Ended { id, stage: job.stage });
            }
            job.enter(Stage::Cancelled, "cancelled by an operator".into(), now);
            Ok(())
        })
    }

    /// Starts a job that is over again from `armed`, with all its attempts and its whole time.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::NotEnded`], [`Refusal::HasJob`], and what `add` says about images.
    pub fn rearm(&self, id: JobId, images: &dyn Images, now: SystemTime) -> Result<Job, Refusal> {
        self.order_with_table(id, |job, table| {
            if job.is_live() || !job.stage.may_rearm() {
                return Err(Refusal::NotEnded { id, stage: job.stage });
            }
            if let Some(live) = table.live(&job.selector) {
                return Err(Refusal::HasJob { id: live.id, selector: job.selector.clone() });
            }
            if let Some(name) = job.action.image() {
                check_image(name, images)?;
            }
            job.retired = job.boot.take();
            job.attempts_used = 0;
            job.created = now;
            job.enter(Stage::Armed, "re-armed by an operator".into(), now);
            Ok(())
        })
    }

    /// Every job, oldest first.
    pub fn list(&self) -> Vec<Job> {
        self.pages().jobs.values().map(|job| Job::clone(job)).collect()
    }

    /// One job.
    pub fn job(&self, id: JobId) -> Option<Job> {
        self.pages().jobs.get(&id).map(|job| Job::clone(job))
    }

    /// Moves the job that `evidence` is about, and returns it if it changed. Jobs for any machine have many boots
    /// at once and stay `armed`; `history` tells those boots apart.
    pub fn note(&self, evidence: &Evidence, now: SystemTime) -> Option<Job> {
        let id = evidence.job()?;
        let mut pages = self.pages();
        let mut job = Job::clone(pages.jobs.get(&id)?);
        if !job.weigh(evidence, now) {
            return None;
        }
        let mut table = self.copy();
        pages.put(job.clone(), &mut table);
        self.table.store(Arc::new(table));
        Some(job)
    }

    /// Ends jobs whose time ran out, and counts an attempt of every job whose boot fell silent while fetching.
    /// To be called every few seconds; returns the jobs it changed.
    pub fn expire(&self, now: SystemTime) -> Vec<Job> {
        let mut pages = self.pages();
        let changed: Vec<Job> = pages
            .jobs
            .values()
            .filter_map(|job| {
                if job.has_expired(now) {
                    let mut job = Job::clone(job);
                    job.enter(Stage::Expired, "no machine took it in time".into(), now);
                    return Some(job);
                }
                if job.stage == Stage::Fetching && since(job.updated, now) >= SILENCE {
                    let mut job = Job::clone(job);
                    job.lose_attempt("a boot that was fetching it fell silent", now);
                    return Some(job);
                }
                None
            })
            .collect();
        if !changed.is_empty() {
            let mut table = self.copy();
            for job in &changed {
                pages.put(job.clone(), &mut table);
            }
            self.table.store(Arc::new(table));
        }
        changed
    }

    fn order(&self, id: JobId, change: impl FnOnce(&mut Job) -> Result<(), Refusal>) -> Result<Job, Refusal> {
        self.order_with_table(id, |job, _| change(job))
    }

    fn order_with_table(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Job, &Table) -> Result<(), Refusal>,
    ) -> Result<Job, Refusal> {
        let mut pages = self.pages();
        let mut job = Job::clone(pages.jobs.get(&id).ok_or(Refusal::NotFound { id })?);
        let mut table = self.copy();
        change(&mut job, &table)?;
        pages.put(job.clone(), &mut table);
        self.table.store(Arc::new(table));
        Ok(job)
    }

    fn copy(&self) -> Table {
        Table::clone(&self.table.load())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Every change is made on copies and put in whole, so a panic elsewhere leaves nothing half done.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn put(&mut self, job: Job, table: &mut Table) {
        let job = Arc::new(job);
        table.place(&job);
        self.jobs.insert(job.id, job);
    }

    /// Forgets the oldest ended jobs, a thousandth of the book at a time; false if every job is live.
    fn make_room(&mut self, table: &mut Table) -> bool {
        let oldest: Vec<JobId> =
            self.jobs.values().filter(|job| !job.is_live()).map(|job| job.id).take(JOBS_MAX / 1000).collect();
        for id in &oldest {
            if let Some(job) = self.jobs.remove(id) {
                table.remove(&job);
            }
        }
        !oldest.is_empty()
    }
}

fn check_image(name: &str, images: &dyn Images) -> Result<(), Refusal> {
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
    if image.destructive {
        return Err(Refusal::Destructive { name: name.to_owned() });
    }
    Ok(())
}

fn checked_selector(selector: Selector) -> Result<Selector, Refusal> {
    let selector = match selector {
        Selector::Serial(serial) => Selector::Serial(serial.trim().to_owned()),
        Selector::Asset(asset) => Selector::Asset(asset.trim().to_owned()),
        other => other,
    };
    let identifies = match &selector {
        Selector::Mac(mac) => !mac.is_zero() && !mac.is_group(),
        Selector::Uuid(uuid) => uuid.is_identifying(),
        Selector::Serial(text) | Selector::Asset(text) => identity::is_identifying_text(text),
        Selector::Any | Selector::Rule(_) => true,
    };
    if identifies { Ok(selector) } else { Err(Refusal::NotIdentifying { selector }) }
}

fn since(earlier: SystemTime, now: SystemTime) -> Duration {
    // A clock set back makes nothing older.
    now.duration_since(earlier).unwrap_or_default()
}

impl Job {
    fn has_expired(&self, now: SystemTime) -> bool {
        let waiting = matches!(self.stage, Stage::Armed | Stage::Offered)
            || self.always && matches!(self.stage, Stage::Running | Stage::Confirmed);
        waiting && self.expires.is_some_and(|expires| since(self.created, now) >= expires)
    }

    fn enter(&mut self, stage: Stage, reason: String, now: SystemTime) {
        self.stage = stage;
        self.reason = reason;
        self.updated = now;
        self.generation += 1;
    }

    /// Moves to `stage` if that is legal from here; says whether it was.
    fn step(&mut self, stage: Stage, reason: String, now: SystemTime) -> bool {
        let legal = self.stage.may_become(stage, self.always);
        if legal {
            self.enter(stage, reason, now);
        }
        legal
    }

    /// A boot that was fetching has stopped.
    fn lose_attempt(&mut self, why: &str, now: SystemTime) {
        self.attempts_used = self.attempts_used.saturating_add(1);
        if self.attempts_used >= self.attempts && !self.always {
            let reason = format!("{why}; that was attempt {} of {}", self.attempts_used, self.attempts);
            self.step(Stage::Failed, reason, now);
        } else {
            self.step(Stage::Armed, why.to_owned(), now);
        }
    }

    /// Lets evidence move the job; says whether it changed.
    fn weigh(&mut self, evidence: &Evidence, now: SystemTime) -> bool {
        let Some(boot) = evidence.boot else { return false };
        if !self.selector.is_exact() || self.retired == Some(boot) {
            return false;
        }
        let same_boot = self.boot == Some(boot);
        let ours = |image: &str| self.action.image() == Some(image);
        match &evidence.seen {
            Seen::ScriptAsked { .. } => {
                if self.stage == Stage::Fetching && !same_boot {
                    self.lose_attempt("the machine asked for its script again before it had everything", now);
                }
                if self.stage == Stage::Offered {
                    // Asking twice boots twice: the later answer is the one that will be followed.
                    self.updated = now;
                    self.boot = Some(boot);
                    return true;
                }
                if !self.step(Stage::Offered, "its script was given".into(), now) {
                    return self.stage == Stage::Failed && self.updated == now;
                }
                self.boot = Some(boot);
                true
            }
            Seen::FileStarted { image, file, .. } | Seen::FileProgress { image, file, .. } if ours(image) => {
                self.fetch(boot, format!("fetching {file}"), now)
            }
            Seen::FileDone { image, file, last: false, .. } if ours(image) => {
                self.fetch(boot, format!("has {file}"), now)
            }
            Seen::LastPieceSent { image, file, .. } if ours(image) => {
                let reason = format!("the last of {file} has left: what it boots may have started");
                if !self.step(Stage::Running, reason, now) {
                    return false;
                }
                self.boot = Some(boot);
                self.attempts_used = 0;
                true
            }
            Seen::FileDone { image, file, last: true, .. } if ours(image) => {
                let reason = format!("{file}, the last file, was delivered");
                if self.stage == Stage::Running && same_boot && self.reason != reason {
                    self.reason = reason;
                    self.updated = now;
                    return true;
                }
                if !self.step(Stage::Running, reason, now) {
                    return false;
                }
                self.boot = Some(boot);
                self.attempts_used = 0;
                true
            }
            Seen::TransferFailed { file, reason, .. } if self.stage == Stage::Fetching && same_boot => {
                // The script tries again by itself; whether the boot has stopped shows later.
                self.reason = format!("{file} broke off: {reason}");
                self.updated = now;
                true
            }
            Seen::CalledBack { .. } => {
                if self.stage == Stage::Fetching && same_boot {
                    self.step(Stage::Running, "the booted system called back".into(), now);
                }
                self.step(Stage::Confirmed, "the booted system called back".into(), now)
            }
            _ => false,
        }
    }

    fn fetch(&mut self, boot: BootId, reason: String, now: SystemTime) -> bool {
        if self.stage == Stage::Fetching {
            self.boot = Some(boot);
            self.reason = reason;
            self.updated = now;
            return true;
        }
        // A boot that has everything may fetch its files again without starting over.
        if self.boot == Some(boot) && matches!(self.stage, Stage::Running | Stage::Confirmed) {
            return false;
        }
        let moved = self.step(Stage::Fetching, reason, now);
        if moved {
            self.boot = Some(boot);
        }
        moved
    }
}

#[cfg(test)]
mod tests;

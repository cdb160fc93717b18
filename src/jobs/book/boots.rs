//! What boots do to jobs and claims: the evidence they leave, and the point of no return.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::json;

use super::super::claim::{Claim, ClaimId};
use super::super::evidence::{Evidence, Seen};
use super::super::job::{Confirm, Job, JobId, Stage};
use super::super::lifecycle::{Course, Denial, Passage, Terms, since};
use super::super::machine::{Ident, Machine};
use super::super::reach;
use super::super::script::LocalStrategy;
use super::super::token::BootId;
use super::{AtTheLine, Book, CLAIMS_MAX, Moment};
use crate::wire::MacAddr;

/// How the reason of a job begins whose boot should have called back.
const NO_CALL_BACK: &str = "no call-back came";

impl Book {
    /// A boot is about to get the last bytes it needs. [`Passage::Now`] holds once the change is stored, and not
    /// before; [`Passage::Before`] holds at once.
    pub fn pass(&mut self, line: &AtTheLine, at: Moment) -> Passage {
        let Some(job) = self.jobs.get(&line.job).cloned() else { return Passage::Denied(Denial::NoJob) };
        if let Some((mac, name)) = &line.once {
            return self.give(&job, line, *mac, name);
        }
        // What boots every time wipes nothing, and what a person picked from a menu is the person's doing.
        if job.always || job.action.image().is_none() {
            // But for an image that has become one that wipes.
            return if line.changed { Passage::Denied(Denial::ImageChanged) } else { Passage::Before };
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
            if line.changed {
                return Passage::Denied(Denial::ImageChanged);
            }
            let mut passage = Passage::Before;
            let reason = format!("{} left the server: what it boots may have started", line.what);
            self.move_job(line.job, |course, terms| {
                passage = course.pass(line.boot, reason, terms, at.now);
                passage == Passage::Now
            });
            if passage == Passage::Now {
                let idents: Vec<Ident> = presented.into_iter().chain(own).collect();
                // Where there is no room the job remembers it.
                let _ = self.remember_passed(&idents, at.now);
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
        if line.changed {
            return Passage::Denied(Denial::ImageChanged);
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
        // The claim remembers it. Strangers make records only so fast.
        let is_known = idents.iter().any(|ident| self.by_ident.contains_key(ident));
        if passage == Passage::Now && (is_known || self.bucket.take(at.now)) {
            let _ = self.remember_passed(&idents, at.now);
        }
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
            self.move_job(id, |course, terms| weigh(course, &job, evidence, boot, terms, at.now))
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
            let moved = self.move_job(id, |course, terms| {
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
            if self.move_job(job.id, |course, _| course.learned(boot, why.clone(), at.now)) {
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
    pub(super) fn advance(&mut self, id: JobId, reached: Stage, at: Moment) {
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
        next.step_since = at.now;
        if let Some(action) = next.sequence.get(next.step as usize) {
            next.action = action.clone();
        }
        next.generation += 1;
        self.change_job(id, Some(Arc::new(next)));
    }

    /// Moves a job's own course; says whether it changed.
    pub(super) fn move_job(&mut self, id: JobId, change: impl FnOnce(&mut Course, &Terms) -> bool) -> bool {
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
            None if self.claims.len() >= CLAIMS_MAX && !self.make_claims_room(at.now) => return false,
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

    pub(super) fn claim_for(&self, job: JobId, ident: &Ident) -> Option<ClaimId> {
        let of = self.claims_of.get(ident)?;
        of.iter().copied().find(|id| self.claims.get(id).is_some_and(|claim| claim.job == job))
    }

    pub(super) fn is_rejected(&self, ident: &Ident) -> bool {
        self.by_ident.get(ident).and_then(|id| self.machines.get(id)).is_some_and(|m| m.is_rejected())
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
    // Where the machine is not, its boots neither get on nor fail; the one that has had everything may be anywhere.
    let is_its = evidence.elsewhere.is_none() || course.passed == Some(boot);
    match &evidence.seen {
        Seen::ScriptAsked { .. } if evidence.elsewhere.is_some() => {
            course.offered_elsewhere(boot, terms, now)
        }
        Seen::ScriptAsked { .. } => course.offered(boot, job.action.image().is_some(), terms, now),
        Seen::FileStarted { image, file, .. } | Seen::FileProgress { image, file, .. }
            if ours(image) && is_its =>
        {
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
        Seen::FileDone { image, file, last: false, .. } if ours(image) && is_its => {
            course.fetched(boot, format!("has {file}"), terms, now)
        }
        Seen::TransferFailed { file, reason, .. } => {
            course.broke_off(boot, format!("{file} broke off: {reason}"), now)
        }
        Seen::CalledBack { .. } => course.confirmed(boot, terms.always, now),
        Seen::FailureCalled { reason, .. } if is_its => course.failed(boot, reason, terms, now),
        _ => false,
    }
}

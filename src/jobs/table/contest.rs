//! Who wins: a machine's identities looked up, its grants, denials and rules weighed against each other.

use std::cmp::Reverse;
use std::time::SystemTime;

use super::readers::Held;
use super::reclaim::Swap;
use super::rules::{Asked, Rules, is_withheld};
use super::slots::{Found, Packed, READ_GRANTS, REJECTED, SPENT, Slots};
use super::sync::Atomics;
use super::{Decision, Key, Standing};
use crate::jobs::Identity;
use crate::jobs::job::{Job, JobId};
use crate::jobs::machine::MachineId;
use crate::jobs::rule::Specificity;
use crate::wire::Uuid;

/// What all cores share.
pub(super) struct Shared<S: Atomics> {
    pub(super) slots: Slots<S>,
    pub(super) rules: Swap<S, Rules>,
}

const SEEN_AS: [&str; 5] = ["MAC", "UUID", "UUID in the other byte order", "serial", "asset tag"];

/// Rules that do not fit, which `explain` lists at most.
const MISFITS_MAX: usize = 16;

impl<S: Atomics> Shared<S> {
    pub(super) fn new(hint: usize) -> Self {
        Self { slots: Slots::new(hint), rules: Swap::new(Rules::default()) }
    }

    pub(super) fn decide<'g>(&self, who: &Identity, held: Held<'g>) -> Decision<'g> {
        let found = self.presented(who, held);
        let flags = found.iter().flatten().fold(0, |flags, one| flags | one.flags);
        if flags & REJECTED != 0 {
            return Decision::Rejected;
        }
        if flags & (SPENT | READ_GRANTS) == 0 {
            let best = found.iter().flatten().filter_map(Found::job).reduce(better);
            let rule = || self.best_rule(who, &found, |_| false, held);
            return best.or_else(rule).map_or(Decision::NoJob, Decision::Job);
        }
        let spent = |job: &Job| spent(&found).any(|spent| spent.id == job.id);
        let (mut best, mut over) = (None, None);
        for job in found.iter().flatten().flat_map(|one| &one.entry().grants) {
            if job.is_on_last_attempt() || spent(job) {
                over = later(over, job);
            } else {
                best = Some(best.map_or(&**job, |best| better(best, job)));
            }
        }
        if let Some(job) = best.or_else(|| self.best_rule(who, &found, spent, held)) {
            return Decision::Job(job);
        }
        let over = self::spent(&found).fold(over, later);
        over.map_or(Decision::NoJob, Decision::Done)
    }

    pub(super) fn standing<'g>(&self, who: &Identity, held: Held<'g>) -> Option<&'g Standing> {
        let found = self.presented(who, held);
        let mut all = found.iter().flatten().filter_map(Found::standing);
        let first = all.next()?;
        // Of what is only known to have passed there is no record that could say more.
        Some(if first.machine == MachineId(0) {
            all.find(|other| other.machine != MachineId(0)).unwrap_or(first)
        } else {
            first
        })
    }

    pub(super) fn job<'g>(&self, id: JobId, held: Held<'g>) -> Option<&'g Job> {
        let found = self.slots.find(&Packed::new(Key::Job(id)), held)?;
        found.entry().grants.first().map(|job| &**job)
    }

    pub(super) fn is_approved(&self, who: &Identity, held: Held<'_>) -> bool {
        let found = self.presented(who, held);
        found.iter().flatten().filter_map(Found::standing).any(|standing| standing.approved)
    }

    pub(super) fn explain(&self, who: &Identity, held: Held<'_>) -> Vec<String> {
        let found = self.presented(who, held);
        let decision = self.decide(who, held);
        let decided = match decision {
            Decision::Job(job) | Decision::Done(job) => Some(job.id),
            Decision::Rejected | Decision::NoJob => None,
        };
        let mut lines = Vec::new();
        for (one, seen_as) in found.iter().zip(SEEN_AS) {
            if let Some(standing) = one.as_ref().and_then(Found::standing)
                && standing.rejected
            {
                lines
                    .push(format!("machine {}: refused by an operator (by its {seen_as})", standing.machine));
            }
        }
        let mut told: Vec<(&Job, String)> = Vec::new();
        let is_spent = |job: &Job| spent(&found).any(|spent| spent.id == job.id);
        for (one, seen_as) in found.iter().zip(SEEN_AS) {
            for job in one.iter().flat_map(|one| &one.entry().grants) {
                told.push((job, verdict(job, seen_as, is_spent(job), decision)));
            }
        }
        for job in spent(&found) {
            if !told.iter().any(|(one, _)| one.id == job.id) {
                told.push((job, verdict(job, "", true, decision)));
            }
        }
        let (groups, known) = (|| groups(&found), is_known(&found));
        let mut misfits = 0;
        for job in self.rules.load(held).all() {
            let misfit = job.selector.rule().and_then(|rule| rule.misfit(who, groups(), known));
            let line = if let Some(misfit) = misfit {
                misfits += 1;
                if misfits > MISFITS_MAX {
                    continue;
                }
                format!("{}: not in the contest: {misfit}", head(job))
            } else if is_withheld(job, who) {
                format!(
                    "{}: not in the contest: it may wipe a disk, and this machine presents no UUID or serial of its \
                     own",
                    head(job)
                )
            } else if told.iter().any(|(one, _)| one.id == job.id) {
                continue;
            } else {
                verdict(job, "rule", false, decision)
            };
            told.push((job, line));
        }
        // What decided first; the rest in the order of the contest.
        told.sort_by_key(|(job, _)| (Some(job.id) != decided, !job.is_live(), rank(job)));
        told.dedup_by_key(|(job, _)| job.id);
        lines.extend(told.into_iter().map(|(_, line)| line));
        if misfits > MISFITS_MAX {
            lines.push(format!("and {} more rules that do not fit", misfits - MISFITS_MAX));
        }
        lines
    }

    /// What is published about everything `who` presents, in the order of [`SEEN_AS`].
    #[inline]
    fn presented<'g>(&self, who: &Identity, held: Held<'g>) -> [Option<Found<'g>>; 5] {
        let find = |key| self.slots.find(&Packed::new(key), held);
        // Some firmware fills option 97 in printing order, so the parser's swap turns it round: look both ways.
        let swapped = who.uuid.map(|uuid| Uuid::from_smbios(uuid.0)).filter(|uuid| Some(*uuid) != who.uuid);
        [
            who.mac.and_then(|mac| find(Key::Mac(mac))),
            who.uuid.and_then(|uuid| find(Key::Uuid(uuid))),
            swapped.and_then(|uuid| find(Key::Uuid(uuid))),
            who.serial.as_deref().and_then(|serial| find(Key::Serial(serial))),
            who.asset.as_deref().and_then(|asset| find(Key::Asset(asset))),
        ]
    }

    fn best_rule<'g>(
        &self,
        who: &Identity,
        found: &[Option<Found<'g>>],
        without: impl Fn(&Job) -> bool,
        held: Held<'g>,
    ) -> Option<&'g Job> {
        let asked = Asked { who, known: is_known(found), groups: || groups(found), without };
        self.rules.load(held).best(&asked)
    }
}

fn is_known(found: &[Option<Found<'_>>]) -> bool {
    found.iter().flatten().any(Found::is_known)
}

fn groups<'g>(found: &[Option<Found<'g>>]) -> impl Iterator<Item = &'g str> {
    found
        .iter()
        .flatten()
        .filter_map(Found::standing)
        .flat_map(|standing| &standing.groups)
        .map(|group| &**group)
}

fn spent<'g>(found: &[Option<Found<'g>>]) -> impl Iterator<Item = &'g Job> {
    found.iter().flatten().filter_map(Found::standing).flat_map(|standing| &standing.spent).map(|job| &**job)
}

fn head(job: &Job) -> String {
    format!("{}: {} for {}", job.id, job.action, job.selector)
}

fn verdict(job: &Job, seen_as: &str, spent: bool, decision: Decision<'_>) -> String {
    let head = head(job);
    match decision {
        Decision::Job(winner) if winner.id == job.id => format!("{head}: chosen (by its {seen_as})"),
        Decision::Done(over) if over.id == job.id && job.is_on_last_attempt() => format!(
            "{head}: a boot is fetching it as attempt {} of {}; if the machine asks again that attempt has failed too, \
             so it gets a local boot",
            job.attempts_used.saturating_add(1),
            job.attempts
        ),
        Decision::Done(over) if over.id == job.id => {
            format!("{head}: over for this machine ({}: {}), so it gets a local boot", job.stage, job.reason)
        }
        _ if !job.is_live() => format!("{head}: not in the contest ({}: {})", job.stage, job.reason),
        _ if spent => format!("{head}: not in the contest (this machine had it)"),
        _ if job.is_on_last_attempt() => format!("{head}: not in the contest (on its last attempt)"),
        Decision::Job(winner) => format!("{head}: lost to {}, {}", winner.id, why_lost(job, winner)),
        Decision::Rejected => format!("{head}: withheld, the machine is refused"),
        Decision::Done(_) | Decision::NoJob => head,
    }
}

pub(super) fn why_lost(loser: &Job, winner: &Job) -> String {
    if winner.selector.is_exact() && !loser.selector.is_exact() {
        "which names this machine exactly".into()
    } else if winner.selector.specificity() != loser.selector.specificity() {
        "whose rule is narrower".into()
    } else if winner.priority != loser.priority {
        format!("which has priority {} against {}", winner.priority, loser.priority)
    } else {
        "which is older".into()
    }
}

/// Smaller is better.
pub(super) fn rank(job: &Job) -> ((bool, Specificity), Reverse<i32>, SystemTime, JobId) {
    (job.selector.specificity(), Reverse(job.priority), job.created, job.id)
}

fn better<'a>(one: &'a Job, other: &'a Job) -> &'a Job {
    if rank(other) < rank(one) { other } else { one }
}

/// Of two jobs that are over, the one that ended last speaks for the machine.
pub(super) fn later<'a>(one: Option<&'a Job>, other: &'a Job) -> Option<&'a Job> {
    match one {
        Some(one) if (one.updated, one.id) >= (other.updated, other.id) => Some(one),
        _ => Some(other),
    }
}

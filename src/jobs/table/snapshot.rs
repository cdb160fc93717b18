//! The table the cores decide with: an immutable snapshot of the jobs that matter to a machine's next boot.
//!
//! The [`Book`](crate::jobs::book::Book) publishes a new snapshot at every change. A change copies one of 256 shards of
//! one map and the list of shards, so its cost does not grow with the number of jobs as long as they are spread.
//!
//! The contest: a job for one exact machine beats a rule; among equals the higher priority wins, then the older
//! job. A grant needs the very identity that the selector names to be presented. Jobs that are over do not take
//! part; but a machine that had its job, and for which nobody else wants anything, gets an explicit local boot.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

use super::Decision;
use super::contest::{later, rank, why_lost};
use crate::jobs::Identity;
use crate::jobs::job::{Job, JobId, Selector};
use crate::jobs::rule::Rule;
use crate::wire::{MacAddr, Uuid};

/// An immutable snapshot of every job that matters to somebody's next boot.
#[derive(Clone, Default, Debug)]
pub struct Table {
    by_mac: Shards<MacAddr>,
    by_uuid: Shards<Uuid>,
    by_serial: Shards<Box<str>>,
    by_asset: Shards<Box<str>>,
    /// Live jobs for any machine, best first.
    rules: Arc<[Arc<Job>]>,
}

/// The jobs of one exact selector.
#[derive(Clone, Default, Debug)]
struct Slot {
    live: Option<Arc<Job>>,
    done: Option<Arc<Job>>,
}

/// What `explain` says of one job that has to do with a machine.
struct Entry<'a> {
    job: &'a Job,
    seen_as: &'static str,
}

impl Table {
    /// What this machine's next boot is to be. Looks up what `who` presents; no allocation, no lock.
    pub fn decide(&self, who: &Identity) -> Decision<'_> {
        let mut best: Option<&Job> = None;
        let mut done: Option<&Job> = None;
        for slot in self.slots(who).into_iter().flatten() {
            if let Some(job) = slot.live.as_deref() {
                if job.is_on_last_attempt() {
                    done = later(done, job);
                } else if best.is_none_or(|best| rank(job) < rank(best)) {
                    best = Some(job);
                }
            }
            if let Some(job) = slot.done.as_deref() {
                done = later(done, job);
            }
        }
        let known = best.is_some() || done.is_some();
        match (best.or_else(|| self.rules_for(who, known).next()), done) {
            (Some(job), _) => Decision::Job(job),
            (None, Some(job)) => Decision::Done(job),
            (None, None) => Decision::NoJob,
        }
    }

    /// Every job that has to do with this machine, the deciding one first, each with why it won or lost. Empty
    /// when no job has to do with it.
    pub fn explain(&self, who: &Identity) -> Vec<String> {
        const SEEN_AS: [&str; 5] = ["MAC", "UUID", "UUID in the other byte order", "serial", "asset tag"];
        let mut entries: Vec<Entry<'_>> = Vec::new();
        for (slot, seen_as) in self.slots(who).into_iter().zip(SEEN_AS) {
            let Some(slot) = slot else { continue };
            for job in [&slot.live, &slot.done].into_iter().flatten() {
                entries.push(Entry { job, seen_as });
            }
        }
        let known = !entries.is_empty();
        entries.extend(self.rules_for(who, known).map(|job| Entry { job, seen_as: "rule" }));
        let decision = self.decide(who);
        let decided = match decision {
            Decision::Job(job) | Decision::Done(job) => Some(job),
            Decision::Rejected | Decision::NoJob => None,
        };
        entries.sort_by_key(|entry| {
            (decided.map(|job| job.id) != Some(entry.job.id), !entry.job.is_live(), rank(entry.job))
        });
        entries.iter().map(|entry| entry.line(decision)).collect()
    }

    /// The rules that this machine meets, best first.
    fn rules_for<'a, 'w>(
        &'a self,
        who: &'w Identity,
        known: bool,
    ) -> impl Iterator<Item = &'a Job> + use<'a, 'w> {
        let meets = move |rule: &Rule| rule.misfit(who, std::iter::empty(), known).is_none();
        self.rules.iter().map(Arc::as_ref).filter(move |job| job.selector.rule().is_some_and(&meets))
    }

    /// Puts a job where decisions find it, or takes it out if it no longer matters to any.
    pub(in crate::jobs) fn place(&mut self, job: &Arc<Job>) {
        match &job.selector {
            Selector::Mac(mac) => self.by_mac.place(*mac, job),
            Selector::Uuid(uuid) => self.by_uuid.place(*uuid, job),
            Selector::Serial(serial) => self.by_serial.place(serial.as_str().into(), job),
            Selector::Asset(asset) => self.by_asset.place(asset.as_str().into(), job),
            Selector::Any | Selector::Rule(_) => {
                let mut rules: Vec<_> = self.rules.iter().filter(|rule| rule.id != job.id).cloned().collect();
                if job.is_live() {
                    rules.push(Arc::clone(job));
                }
                rules.sort_by_key(|rule| rank(rule));
                self.rules = rules.into();
            }
        }
    }

    /// Forgets a job.
    pub(in crate::jobs) fn remove(&mut self, job: &Job) {
        match &job.selector {
            Selector::Mac(mac) => self.by_mac.change(*mac, |slot| slot.forget(job.id)),
            Selector::Uuid(uuid) => self.by_uuid.change(*uuid, |slot| slot.forget(job.id)),
            Selector::Serial(serial) => {
                self.by_serial.change(serial.as_str().into(), |slot| slot.forget(job.id))
            }
            Selector::Asset(asset) => self.by_asset.change(asset.as_str().into(), |slot| slot.forget(job.id)),
            Selector::Any | Selector::Rule(_) => {
                self.rules = self.rules.iter().filter(|rule| rule.id != job.id).cloned().collect();
            }
        }
    }

    /// The live job of exactly this selector. `Any` has none: rules stand side by side.
    pub(in crate::jobs) fn live(&self, selector: &Selector) -> Option<&Job> {
        let slot = match selector {
            Selector::Mac(mac) => self.by_mac.get(mac),
            Selector::Uuid(uuid) => self.by_uuid.get(uuid),
            Selector::Serial(serial) => self.by_serial.get(serial.as_str()),
            Selector::Asset(asset) => self.by_asset.get(asset.as_str()),
            Selector::Any | Selector::Rule(_) => None,
        };
        slot?.live.as_deref()
    }

    /// The slots of everything `who` presents that can name one machine.
    fn slots(&self, who: &Identity) -> [Option<&Slot>; 5] {
        let uuid = who.uuid.filter(|uuid| uuid.is_identifying());
        // Some firmware fills option 97 in printing order, so the parser's swap turns it round: look both ways.
        let swapped = uuid.map(|uuid| Uuid::from_smbios(uuid.0)).filter(|swapped| Some(*swapped) != uuid);
        [
            who.mac.and_then(|mac| self.by_mac.get(&mac)),
            uuid.and_then(|uuid| self.by_uuid.get(&uuid)),
            swapped.and_then(|uuid| self.by_uuid.get(&uuid)),
            who.serial.as_deref().and_then(|serial| self.by_serial.get(serial.trim())),
            who.asset.as_deref().and_then(|asset| self.by_asset.get(asset.trim())),
        ]
    }
}

impl Entry<'_> {
    fn line(&self, decision: Decision<'_>) -> String {
        let Self { job, seen_as } = self;
        let head = format!("{}: {} for {}", job.id, job.action, job.selector);
        match decision {
            Decision::Job(winner) if winner.id == job.id => format!("{head}: chosen (by its {seen_as})"),
            Decision::Done(over) if over.id == job.id && job.is_on_last_attempt() => format!(
                "{head}: a boot is fetching it as attempt {} of {}; if the machine asks again that attempt has \
                 failed too, so it gets a local boot",
                job.attempts_used.saturating_add(1),
                job.attempts
            ),
            Decision::Done(over) if over.id == job.id => {
                format!("{head}: over ({}: {}), so the machine gets a local boot", job.stage, job.reason)
            }
            _ if !job.is_live() => format!("{head}: not in the contest ({}: {})", job.stage, job.reason),
            _ if job.is_on_last_attempt() => format!("{head}: not in the contest (on its last attempt)"),
            Decision::Job(winner) => format!("{head}: lost to {}, {}", winner.id, why_lost(job, winner)),
            Decision::Done(_) | Decision::Rejected | Decision::NoJob => head,
        }
    }
}

impl Slot {
    fn forget(&mut self, id: JobId) {
        self.live.take_if(|job| job.id == id);
        self.done.take_if(|job| job.id == id);
    }

    fn is_empty(&self) -> bool {
        self.live.is_none() && self.done.is_none()
    }
}

/// Shards of a map, so that a change copies a small part of it.
#[derive(Clone, Debug)]
struct Shards<K>(Arc<[Arc<ShardMap<K>>]>);

/// The keys come from operators, so a fixed hash is safe from being flooded, and keeps this module free of
/// randomness.
type Fixed = BuildHasherDefault<DefaultHasher>;
type ShardMap<K> = HashMap<K, Slot, Fixed>;
const SHARDS: usize = 256;

impl<K> Default for Shards<K> {
    fn default() -> Self {
        let empty: Arc<ShardMap<K>> = Arc::default();
        Self((0..SHARDS).map(|_| Arc::clone(&empty)).collect())
    }
}

impl<K: Hash + Eq + Clone> Shards<K> {
    fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&Slot>
    where
        K: Borrow<Q>,
    {
        self.0.get(shard_of(key))?.get(key)
    }

    fn place(&mut self, key: K, job: &Arc<Job>) {
        self.change(key, |slot| {
            slot.forget(job.id);
            if job.is_live() {
                slot.live = Some(Arc::clone(job));
            } else if job.is_done() && later(slot.done.as_deref(), job).is_some_and(|last| last.id == job.id)
            {
                slot.done = Some(Arc::clone(job));
            }
        });
    }

    fn change(&mut self, key: K, change: impl FnOnce(&mut Slot)) {
        let shards = Arc::make_mut(&mut self.0);
        let Some(shard) = shards.get_mut(shard_of(&key)) else { return };
        let map = Arc::make_mut(shard);
        let slot = map.entry(key.clone()).or_default();
        change(slot);
        if slot.is_empty() {
            map.remove(&key);
        }
    }
}

fn shard_of<Q: Hash + ?Sized>(key: &Q) -> usize {
    // The low bits pick the bucket inside the shard's map; the shard is picked by the high ones.
    (Fixed::default().hash_one(key) >> 56) as usize % SHARDS
}

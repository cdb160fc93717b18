//! Rules, compiled: the best one that a machine meets, without looking at the others.
//!
//! Rules with the same set of conditions, and the same prefix length, have one *shape*. Of one shape, what a machine
//! shows (architecture, network, product ...) makes one hash under which every rule that it meets is filed. So a look-up
//! costs one probe for each shape, of which there are few, however many rules there are; and since all rules
//! are in one order, it ends at the first shape whose best rule is worse than what was found.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::contest::rank;
use super::slots::{fold, hashes};
use crate::jobs::Identity;
use crate::jobs::job::Job;
use crate::jobs::rule::{CircuitMark, Rule, mask};

const GROUP: u8 = 1;
const SUBNET: u8 = 2;
const CIRCUIT: u8 = 4;
const ARCH: u8 = 8;
const MANUFACTURER: u8 = 16;
const PRODUCT: u8 = 32;
const UNKNOWN: u8 = 64;

/// Every rule, as it is published.
#[derive(Default)]
pub(super) struct Rules {
    /// Best first.
    jobs: Box<[Arc<Job>]>,
    /// By their best rules, best first.
    shapes: Box<[Shape]>,
    /// Hash of a shape and of what it asks for, to places in `jobs`, best first.
    filed: HashMap<u64, Vec<u32>, BuildHasherDefault<AsItIs>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    conditions: u8,
    prefix: u8,
    /// The place of its best rule.
    best: u32,
}

/// What is asked of the rules, and what is known of the machine beyond what it presents.
pub(super) struct Asked<'a, G, X> {
    pub(super) who: &'a Identity,
    /// The machine is registered, or a job names it.
    pub(super) known: bool,
    /// Groups it is in; asked for anew for each shape that needs them.
    pub(super) groups: G,
    /// Jobs it must not get.
    pub(super) without: X,
}

impl Rules {
    /// Compiles. What is not live, or no rule, is left out.
    pub(super) fn new(mut jobs: Vec<Arc<Job>>) -> Self {
        jobs.retain(|job| job.is_live() && !job.selector.is_exact());
        jobs.sort_by_key(|job| rank(job));
        let mut rules = Self { jobs: jobs.into(), ..Self::default() };
        let mut shapes: Vec<Shape> = Vec::new();
        for (place, job) in (0u32..).zip(&rules.jobs) {
            let Some(rule) = job.selector.rule() else { continue };
            let shape = Shape::of(rule, place);
            if !shapes.iter().any(|known| known.is_like(shape)) {
                shapes.push(shape);
            }
            let mut file = |arch| {
                let places = rules.filed.entry(shape.hash_of(rule, arch)).or_default();
                // Two codes of one rule may hash alike.
                if places.last() != Some(&place) {
                    places.push(place);
                }
            };
            if rule.arch.is_empty() {
                file(0);
            }
            rule.arch.iter().for_each(|arch| file(arch.0));
        }
        rules.shapes = shapes.into();
        rules
    }

    /// The best rule that the machine meets. Allocates nothing.
    pub(super) fn best<'r, 'g, G, I, X>(&'r self, asked: &Asked<'_, G, X>) -> Option<&'r Job>
    where
        G: Fn() -> I,
        I: Iterator<Item = &'g str>,
        X: Fn(&Job) -> bool,
    {
        let mut best: Option<u32> = None;
        let wanted = self.shapes.iter().fold(0, |all, shape| all | shape.conditions);
        let shown = Shown::of(asked.who, wanted);
        for shape in &self.shapes {
            if best.is_some_and(|best| best < shape.best) {
                break;
            }
            if shape.conditions & UNKNOWN != 0 && asked.known {
                continue;
            }
            let Some(hash) = shape.hash_shown(&shown) else { continue };
            if shape.conditions & GROUP == 0 {
                best = self.better(best, hash, asked);
            } else {
                for group in (asked.groups)() {
                    best = self.better(best, fold(hash ^ hashes(group)[0], SEED), asked);
                }
            }
        }
        best.and_then(|place| self.jobs.get(place as usize)).map(Arc::as_ref)
    }

    fn better<'g, G, I, X>(&self, best: Option<u32>, hash: u64, asked: &Asked<'_, G, X>) -> Option<u32>
    where
        G: Fn() -> I,
        I: Iterator<Item = &'g str>,
        X: Fn(&Job) -> bool,
    {
        for place in self.filed.get(&hash).into_iter().flatten() {
            if best.is_some_and(|best| best <= *place) {
                break;
            }
            let Some(job) = self.jobs.get(*place as usize) else { break };
            if meets(job, asked) && !is_withheld(job, asked.who) && !(asked.without)(job) {
                return Some(*place);
            }
        }
        best
    }

    /// Every rule, best first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().map(Arc::as_ref)
    }
}

fn meets<'g, G, I, X>(job: &Job, asked: &Asked<'_, G, X>) -> bool
where
    G: Fn() -> I,
    I: Iterator<Item = &'g str>,
{
    let rule = job.selector.rule();
    rule.is_some_and(|rule| rule.misfit(asked.who, (asked.groups)(), asked.known).is_none())
}

/// A rule that may wipe a disk is only for machines that present something of their own. A hardware address is not
/// enough: it stays with a docking station or an adapter when the machine changes.
pub(super) fn is_withheld(job: &Job, who: &Identity) -> bool {
    let of_its_own = who.uuid.is_some_and(|uuid| uuid.is_identifying())
        || who.serial.as_deref().is_some_and(crate::jobs::identity::is_identifying_text);
    job.destructive && !job.selector.is_exact() && !of_its_own
}

const SEED: u64 = 0x8ebc_6af0_9c88_c6e3;

/// What a machine shows, hashed once.
struct Shown {
    at: Option<Ipv4Addr>,
    circuit: Option<u64>,
    arch: Option<u16>,
    manufacturer: Option<u64>,
    product: Option<u64>,
}

impl Shown {
    fn of(who: &Identity, wanted: u8) -> Self {
        let text = |condition: u8, text: &Option<String>| {
            if wanted & condition == 0 { None } else { text.as_deref().map(without_case) }
        };
        Self {
            at: who.relay.or(who.address),
            circuit: who.circuit.map(CircuitMark::bits),
            arch: who.arch.map(|arch| arch.0),
            manufacturer: text(MANUFACTURER, &who.manufacturer),
            product: text(PRODUCT, &who.product),
        }
    }
}

fn without_case(text: &str) -> u64 {
    text.trim().bytes().fold(SEED, |hash, byte| fold(hash ^ u64::from(byte.to_ascii_lowercase()), SEED))
}

impl Shape {
    fn of(rule: &Rule, best: u32) -> Self {
        let conditions = [
            (GROUP, rule.group.is_some()),
            (SUBNET, rule.subnet.is_some()),
            (CIRCUIT, rule.circuit.is_some()),
            (ARCH, !rule.arch.is_empty()),
            (MANUFACTURER, rule.manufacturer.is_some()),
            (PRODUCT, rule.product.is_some()),
            (UNKNOWN, rule.any_unknown),
        ];
        let conditions = conditions.into_iter().map(|(bit, given)| if given { bit } else { 0 }).sum();
        Self { conditions, prefix: rule.subnet.map_or(0, |network| network.prefix()), best }
    }

    fn is_like(self, other: Self) -> bool {
        (self.conditions, self.prefix) == (other.conditions, other.prefix)
    }

    /// Where a rule of this shape is filed, for one of its architectures.
    fn hash_of(self, rule: &Rule, arch: u16) -> u64 {
        let shown = Shown {
            at: rule.subnet.map(|network| network.address()),
            circuit: rule.circuit.as_ref().map(|circuit| CircuitMark::of(&circuit.0).bits()),
            arch: Some(arch),
            manufacturer: rule.manufacturer.as_deref().map(without_case),
            product: rule.product.as_deref().map(without_case),
        };
        // Whatever the shape asks for is there: the shape was made of the rule.
        let hash = self.hash_shown(&shown).unwrap_or(SEED);
        rule.group.as_deref().map_or(hash, |group| fold(hash ^ hashes(group)[0], SEED))
    }

    /// The same but for the group, for what a machine shows. `None` when it does not show what the shape asks for.
    fn hash_shown(self, shown: &Shown) -> Option<u64> {
        let mut hash = fold(SEED ^ u64::from(self.conditions), SEED ^ u64::from(self.prefix));
        let mut mix = |condition: u8, value: Option<u64>| {
            if self.conditions & condition != 0 {
                hash = fold(hash ^ value?, SEED);
            }
            Some(())
        };
        mix(SUBNET, shown.at.map(|at| u64::from(u32::from(at) & mask(self.prefix))))?;
        mix(CIRCUIT, shown.circuit)?;
        mix(ARCH, shown.arch.map(u64::from))?;
        mix(MANUFACTURER, shown.manufacturer)?;
        mix(PRODUCT, shown.product)?;
        Some(hash)
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

//! The flight recorder: the last boots of the last machines, each as a timeline that says where it stopped.
//!
//! It is bounded in every direction: machines, boots of a machine, steps of a boot, and the length of every text.
//! When it is full, machines that never came further than DHCP make room first, so that a flood of made-up
//! addresses does not push out the boots someone will ask about. It decides nothing.
#![forbid(unsafe_code)]

mod timeline;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

pub use self::timeline::{Outcome, Step, Timeline};
use crate::jobs::evidence::{Asker, Evidence, Seen};
use crate::jobs::token::BootId;
use crate::wire::{MacAddr, Uuid};

/// How much is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Machines.
    pub machines: usize,
    /// Boots of one machine.
    pub boots: usize,
    /// Steps of one boot; from a longer one the middle is left out.
    pub steps: usize,
}

impl Default for Bounds {
    /// 4,096 machines, 8 boots each, 48 steps each. A full recorder of usual boots takes some 100 MB.
    fn default() -> Self {
        Self { machines: 4_096, boots: 8, steps: 48 }
    }
}

/// A machine as someone asks about it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Named {
    /// By hardware address.
    Mac(MacAddr),
    /// By SMBIOS UUID.
    Uuid(Uuid),
}

impl From<MacAddr> for Named {
    fn from(mac: MacAddr) -> Self {
        Self::Mac(mac)
    }
}

impl From<Uuid> for Named {
    fn from(uuid: Uuid) -> Self {
        Self::Uuid(uuid)
    }
}

/// A text names no machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAMachine;

impl fmt::Display for NotAMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "expected a MAC address such as 52:54:00:12:34:56 or a UUID such as \
             4c4c4544-0042-3510-8052-b4c04f564231",
        )
    }
}

impl std::error::Error for NotAMachine {}

impl FromStr for Named {
    type Err = NotAMachine;

    fn from_str(text: &str) -> Result<Self, NotAMachine> {
        let mac = text.parse().map(Self::Mac);
        mac.or_else(|_| text.parse().map(Self::Uuid)).map_err(|_| NotAMachine)
    }
}

/// Longer than this without a sign of life, and the next one begins another boot.
const PAUSE_MAX: Duration = Duration::from_secs(10 * 60);
/// Firmware repeats its DHCP for a minute or so before it gives up.
const DHCP_PAUSE_MAX: Duration = Duration::from_secs(2 * 60);

/// The recorder. Shared by reference; one lock inside, meant for the slow side only.
#[derive(Debug)]
pub struct History {
    bounds: Bounds,
    records: Mutex<Records>,
}

#[derive(Default, Debug)]
struct Records {
    machines: HashMap<u64, Machine>,
    by_mac: HashMap<MacAddr, u64>,
    by_uuid: HashMap<Uuid, u64>,
    by_address: HashMap<Ipv4Addr, u64>,
    /// Who makes room first: strangers before others, then the longest unseen.
    order: BTreeMap<(bool, u64), u64>,
    sequence: u64,
    unplaced: u64,
}

#[derive(Debug)]
struct Machine {
    mac: Option<MacAddr>,
    uuid: Option<Uuid>,
    address: Option<Ipv4Addr>,
    /// Oldest first, never empty once evidence is in.
    boots: VecDeque<Timeline>,
    place: (bool, u64),
}

impl Default for History {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl History {
    /// An empty recorder. A bound of 0 counts as 1, and a boot keeps at least 4 steps.
    pub fn new(bounds: Bounds) -> Self {
        let bounds = Bounds {
            machines: bounds.machines.max(1),
            boots: bounds.boots.max(1),
            steps: bounds.steps.max(4),
        };
        Self { bounds, records: Mutex::default() }
    }

    /// Writes down one piece of evidence. Without MAC, UUID or a known boot it goes to the machine that was last
    /// seen at its address, and is marked so; with none of these it is only counted.
    pub fn note(&self, evidence: &Evidence) {
        let mut records = self.records();
        let Some((key, by_address)) = records.find_or_make(evidence, self.bounds) else {
            records.unplaced += 1;
            return;
        };
        records.learn(key, evidence);
        let bounds = self.bounds;
        if let Some(machine) = records.machines.get_mut(&key) {
            machine.write_down(evidence, by_address, bounds);
        }
        records.touch(key);
    }

    /// The boots of one machine, newest first. A UUID that several addresses showed gives the boots of all.
    pub fn boots(&self, named: impl Into<Named>) -> Vec<Timeline> {
        let named = named.into();
        let records = self.records();
        let matches = |machine: &&Machine| match named {
            Named::Mac(mac) => machine.mac == Some(mac),
            Named::Uuid(uuid) => machine.uuid == Some(uuid),
        };
        newest_first(records.machines.values().filter(matches).flat_map(|machine| &machine.boots))
    }

    /// The last `count` boots of all machines, newest first.
    pub fn recent(&self, count: usize) -> Vec<Timeline> {
        let records = self.records();
        let mut latest: Vec<&Timeline> =
            records.machines.values().flat_map(|machine| &machine.boots).collect();
        latest.sort_by_key(|timeline| std::cmp::Reverse(timeline.until));
        latest.into_iter().take(count).cloned().collect()
    }

    /// The last boot of every machine, newest first: what lists of machines are made of.
    pub fn machines(&self) -> Vec<Timeline> {
        newest_first(self.records().machines.values().filter_map(|machine| machine.boots.back()))
    }

    /// Pieces of evidence that could not be given to any machine.
    pub fn unplaced(&self) -> u64 {
        self.records().unplaced
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // The records are for reading: after a panic elsewhere an incomplete one is better than none.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn newest_first<'a>(boots: impl Iterator<Item = &'a Timeline>) -> Vec<Timeline> {
    let mut boots: Vec<Timeline> = boots.cloned().collect();
    boots.sort_by_key(|timeline| std::cmp::Reverse(timeline.until));
    boots
}

impl Records {
    /// The machine that `evidence` is about, and whether only its address says so.
    fn find_or_make(&mut self, evidence: &Evidence, bounds: Bounds) -> Option<(u64, bool)> {
        let uuid = evidence.uuid.filter(|uuid| uuid.is_identifying());
        let known = match (evidence.mac, uuid) {
            // One UUID can be on many machines (cloned, or set to a constant), so an address not seen before is a
            // machine of its own.
            (Some(mac), _) => self.by_mac.get(&mac).copied(),
            (None, Some(uuid)) => self.by_uuid.get(&uuid).copied(),
            (None, None) => {
                let by_boot = evidence.boot.and_then(|boot| self.with_boot(boot));
                let by_address =
                    || evidence.address.and_then(|address| self.by_address.get(&address).copied());
                return by_boot.map(|key| (key, false)).or_else(|| by_address().map(|key| (key, true)));
            }
        };
        if let Some(key) = known {
            return Some((key, false));
        }
        while self.machines.len() >= bounds.machines {
            let (_, key) = self.order.pop_first()?;
            self.forget(key);
        }
        self.sequence += 1;
        let (key, place) = (self.sequence, (false, self.sequence));
        let machine = Machine { mac: evidence.mac, uuid: None, address: None, boots: VecDeque::new(), place };
        self.machines.insert(key, machine);
        self.order.insert(place, key);
        if let Some(mac) = evidence.mac {
            self.by_mac.insert(mac, key);
        }
        Some((key, false))
    }

    fn with_boot(&self, boot: BootId) -> Option<u64> {
        let holds = |machine: &Machine| machine.boots.iter().any(|timeline| timeline.boot == Some(boot));
        self.machines.iter().find(|(_, machine)| holds(machine)).map(|(key, _)| *key)
    }

    fn learn(&mut self, key: u64, evidence: &Evidence) {
        let Some(machine) = self.machines.get_mut(&key) else { return };
        if let Some(uuid) = evidence.uuid.filter(|uuid| uuid.is_identifying())
            && machine.uuid != Some(uuid)
        {
            if let Some(old) = machine.uuid.replace(uuid) {
                remove_if(&mut self.by_uuid, old, key);
            }
            self.by_uuid.insert(uuid, key);
        }
        if let Some(address) = evidence.address.filter(|address| !address.is_unspecified()) {
            if let Some(old) = machine.address.replace(address).filter(|old| *old != address) {
                remove_if(&mut self.by_address, old, key);
            }
            self.by_address.insert(address, key);
        }
    }

    fn touch(&mut self, key: u64) {
        self.sequence += 1;
        let Some(machine) = self.machines.get_mut(&key) else { return };
        self.order.remove(&machine.place);
        let came_further = machine.boots.iter().any(|timeline| timeline.boot.is_some());
        machine.place = (came_further, self.sequence);
        self.order.insert(machine.place, key);
    }

    fn forget(&mut self, key: u64) {
        let Some(machine) = self.machines.remove(&key) else { return };
        if let Some(mac) = machine.mac {
            remove_if(&mut self.by_mac, mac, key);
        }
        if let Some(uuid) = machine.uuid {
            remove_if(&mut self.by_uuid, uuid, key);
        }
        if let Some(address) = machine.address {
            remove_if(&mut self.by_address, address, key);
        }
    }
}

/// Takes an index entry out unless another machine has it by now.
fn remove_if<K: std::hash::Hash + Eq>(index: &mut HashMap<K, u64>, name: K, key: u64) {
    if index.get(&name) == Some(&key) {
        index.remove(&name);
    }
}

impl Machine {
    fn write_down(&mut self, evidence: &Evidence, by_address: bool, bounds: Bounds) {
        let (mac, uuid) = (self.mac, self.uuid);
        let named = |timeline: &&mut Timeline| evidence.boot.is_some() && timeline.boot == evidence.boot;
        let timeline = match self.boots.iter_mut().rev().find(named) {
            Some(timeline) => timeline,
            None => {
                if self.boots.back().is_none_or(|last| begins_another(last, evidence)) {
                    if self.boots.len() >= bounds.boots {
                        self.boots.pop_front();
                    }
                    self.boots.push_back(Timeline::begin(evidence.at));
                }
                let Some(timeline) = self.boots.back_mut() else { return };
                timeline
            }
        };
        timeline.mac = mac;
        timeline.uuid = uuid;
        timeline.write_down(evidence, by_address, bounds.steps);
    }
}

/// Whether `evidence`, which names no boot on record, is the first sign of another boot than `last`.
fn begins_another(last: &Timeline, evidence: &Evidence) -> bool {
    let pause = since(last.until, evidence.at);
    if pause > PAUSE_MAX {
        return true;
    }
    match &evidence.seen {
        // Firmware starts over, or repeats its question.
        Seen::DhcpOffered { asker: Asker::Firmware | Asker::Http, .. } | Seen::DhcpIgnored { .. } => {
            !matches!(last.outcome, Outcome::Answered | Outcome::Ignored) || pause > DHCP_PAUSE_MAX
        }
        // A loader asks DHCP again in the middle of a boot, before it asks for its script; a ROM begins with it.
        Seen::DhcpOffered { asker: Asker::Ipxe, .. } => last.boot.is_some(),
        // Waiting machines and those whose answer got lost ask again and again in one boot.
        Seen::ScriptAsked { .. } => matches!(last.outcome, Outcome::Running | Outcome::Confirmed),
        _ => false,
    }
}

fn since(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

#[cfg(test)]
mod tests;

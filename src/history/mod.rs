//! The flight recorder: the last boots of the last machines, each as a timeline that says where it stopped.
//!
//! ```text
//!  evidence ──► note ──► a machine's open boot ──► sealed (packed) when another begins or room is needed
//!                            │                         │
//!                            └── due ──► the store ◄───┘   read back by address when a machine is asked about
//! ```
//!
//! It is bounded in every direction: machines, boots of a machine, steps of a boot, the length of every text, and all of
//! it together in bytes; the packets it keeps have bounds of their own. When it is full, machines that never came further
//! than DHCP make room first, so that a flood of made-up addresses does not push out the boots someone will ask about.
//! It decides nothing.
#![forbid(unsafe_code)]

pub mod alarms;
mod sealed;
mod story;
mod timeline;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use self::sealed::{Head, Kept};
pub use self::sealed::{merge, read_record, record};
pub use self::story::Context;
pub use self::timeline::{Outcome, Step, Timeline};
pub use self::verdict::{Code, Rule, Stop, Verdict, never_seen, rules};
use crate::jobs::evidence::{Asker, Evidence, Seen};
use crate::jobs::token::BootId;
use crate::wire::capture::Packet;
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
    /// Machines whose last boot is held ready for more evidence; of the others it is packed.
    pub open: usize,
    /// Bytes of all timelines and their indexes together, as far as they are counted.
    pub bytes: usize,
    /// Bytes of all packets together.
    pub packets: usize,
}

impl Default for Bounds {
    /// 100,000 machines, 8 boots each, 48 steps each, 4,096 machines open, within 192 MiB; 64 MiB of packets.
    fn default() -> Self {
        Self { machines: 100_000, boots: 8, steps: 48, open: 4_096, bytes: 192 << 20, packets: 64 << 20 }
    }
}

/// Packets kept of one boot, and their bytes; a boot that goes on keeps its first ones.
const PACKETS_MAX: usize = 96;
const PACKET_BYTES_MAX: usize = 48 << 10;
/// What a machine takes besides its boots: its entry and those of the indexes.
const MACHINE_COST: usize = 400;
/// A machine that goes on talking moves behind the others this often.
const TOUCHED_AGAIN: Duration = Duration::from_secs(1);
/// A machine that says the same thing all the time is not stored more often than this.
const STORED_AGAIN: Duration = Duration::from_secs(60);

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
/// Offers of other servers that wait for the boot they belong to, and for how long they do.
const OVERHEARD_MAX: usize = 64;
const OVERHEARD_FOR: Duration = Duration::from_secs(3);
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
    by_boot: HashMap<BootId, u64>,
    /// Who makes room first: strangers before others, then the longest unseen.
    order: BTreeMap<(bool, u64), u64>,
    /// Machines with an open boot, the longest unseen first.
    open: BTreeSet<(u64, u64)>,
    sequence: u64,
    unplaced: u64,
    bytes: usize,
    packet_bytes: usize,
    /// To be stored: since the last look, and before it.
    fresh: Vec<u64>,
    ripe: VecDeque<u64>,
    /// Other servers' offers to whom is not known to boot: the fastest server answers before this one is asked.
    overheard: VecDeque<Evidence>,
}

#[derive(Debug)]
struct Machine {
    mac: Option<MacAddr>,
    uuid: Option<Uuid>,
    address: Option<Ipv4Addr>,
    /// Oldest first, never empty once evidence is in.
    boots: VecDeque<Kept>,
    /// Of the last two boots.
    packets: Vec<(SystemTime, Packet)>,
    /// Packets of the last boot and their bytes.
    packets_now: (usize, usize),
    place: (bool, u64),
    /// When it was given its place; `None` while its place is to be looked at.
    touched: Option<SystemTime>,
    is_open: bool,
    /// Waits to be stored.
    is_due: bool,
    /// When it was stored last, and how its last boot stood then.
    stored: Option<(SystemTime, Outcome, BootStart)>,
}

/// What tells a boot from the others of its machine.
type BootStart = SystemTime;

/// A machine's boots, to be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Due {
    number: u64,
    /// Its hardware address.
    pub mac: Option<MacAddr>,
    /// Its UUID.
    pub uuid: Option<Uuid>,
    /// Its last boots, oldest first.
    pub boots: Vec<Timeline>,
}

/// Counts for `/metrics`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Size {
    /// Machines.
    pub machines: usize,
    /// Bytes of timelines.
    pub bytes: usize,
    /// Bytes of packets.
    pub packet_bytes: usize,
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
            open: bounds.open.max(1),
            ..bounds
        };
        Self { bounds, records: Mutex::default() }
    }

    /// Writes down one piece of evidence, and keeps its packets. Without MAC, UUID or a known boot it goes to the machine
    /// that was last seen at its address, and is marked so; with none of these it is only counted.
    pub fn note(&self, evidence: Evidence) {
        let mut records = self.records();
        let Some((key, only_address)) = records.find_or_make(&evidence, self.bounds) else {
            records.unplaced += u64::from(!is_of_others(&evidence.seen));
            return records.overhear(evidence);
        };
        let at = evidence.at;
        records.learn(key, &evidence);
        records.write_down(key, evidence, only_address, self.bounds);
        records.touch(key, at);
        records.keep_within(self.bounds);
    }

    /// Which machine evidence is about: what it says itself, and what is known of that machine besides. Where only its address
    /// says which, that is so for who was heard of lately, and the third value is true.
    pub fn whose(&self, evidence: &Evidence) -> (Option<MacAddr>, Option<Uuid>, bool) {
        let records = self.records();
        let known = || {
            let (key, only_address) = records.find(evidence)?;
            let machine = records.machines.get(&key)?;
            let lately = |boot: &Kept| since(boot.until(), evidence.at) <= PAUSE_MAX;
            (!only_address || machine.boots.back().is_some_and(lately)).then_some((machine, only_address))
        };
        let Some((machine, only_address)) = known() else { return (evidence.mac, evidence.uuid, false) };
        (evidence.mac.or(machine.mac), evidence.uuid.or(machine.uuid), only_address)
    }

    /// The boots of one machine, newest first. A UUID that several addresses showed gives the boots of all.
    pub fn boots(&self, named: impl Into<Named>) -> Vec<Timeline> {
        let named = named.into();
        let records = self.records();
        let matches = |machine: &&Machine| match named {
            Named::Mac(mac) => machine.mac == Some(mac),
            Named::Uuid(uuid) => machine.uuid == Some(uuid),
        };
        match named {
            Named::Mac(mac) => {
                let machine = records.by_mac.get(&mac).and_then(|key| records.machines.get(key));
                newest_first(machine.into_iter().flat_map(|machine| &machine.boots))
            }
            Named::Uuid(_) => {
                newest_first(records.machines.values().filter(matches).flat_map(|machine| &machine.boots))
            }
        }
    }

    /// The last `count` boots of all machines, newest first.
    pub fn recent(&self, count: usize) -> Vec<Timeline> {
        let records = self.records();
        let mut latest: Vec<&Kept> = records.machines.values().flat_map(|machine| &machine.boots).collect();
        latest.sort_by_key(|boot| std::cmp::Reverse(boot.until()));
        latest.into_iter().take(count).filter_map(Kept::timeline).collect()
    }

    /// The last boot of every machine, newest first: what lists of machines are made of.
    pub fn machines(&self) -> Vec<Timeline> {
        newest_first(self.records().machines.values().filter_map(|machine| machine.boots.back()))
    }

    /// Where the last boots of every machine heard of since a moment stopped.
    fn heads(&self, since: SystemTime) -> Vec<(Option<MacAddr>, Option<Uuid>, Vec<Head>)> {
        let records = self.records();
        let recent = records
            .machines
            .values()
            .filter(|machine| machine.boots.back().is_some_and(|boot| boot.until() >= since));
        recent
            .map(|machine| (machine.mac, machine.uuid, machine.boots.iter().map(Kept::head).collect()))
            .collect()
    }

    /// When a machine last gave a sign of life.
    pub fn last_seen(&self, named: impl Into<Named>) -> Option<SystemTime> {
        let named = named.into();
        let records = self.records();
        let key = match named {
            Named::Mac(mac) => records.by_mac.get(&mac),
            Named::Uuid(uuid) => records.by_uuid.get(&uuid),
        };
        records.machines.get(key?)?.boots.back().map(Kept::until)
    }

    /// The packets kept of a machine since a moment, in their order.
    pub fn packets(&self, mac: MacAddr, since: SystemTime) -> Vec<(SystemTime, Packet)> {
        let records = self.records();
        let machine = records.by_mac.get(&mac).and_then(|key| records.machines.get(key));
        let kept = machine.map(|machine| machine.packets.as_slice()).unwrap_or_default();
        kept.iter().filter(|(at, _)| *at >= since).cloned().collect()
    }

    /// Takes machines whose last boots have something new that is not stored: those that were due at the last call, at
    /// most `count`. `may` is asked whether a machine is worth it: its address and UUID, and whether it came as far as a
    /// script.
    pub fn take_due(
        &self,
        count: usize,
        boots: usize,
        now: SystemTime,
        mut may: impl FnMut(Option<MacAddr>, Option<Uuid>, bool) -> bool,
    ) -> Vec<Due> {
        let mut records = self.records();
        let records = &mut *records;
        let mut taken = Vec::new();
        for _ in 0..records.ripe.len() {
            if taken.len() >= count {
                break;
            }
            let Some(number) = records.ripe.pop_front() else { break };
            let Some(machine) = records.machines.get_mut(&number) else { continue };
            let Some(last) = machine.boots.back() else { continue };
            let (outcome, started) = (last.outcome(), last.started());
            // Waiting machines ask the same every ten seconds, all night.
            let is_told = machine.stored.is_some_and(|(at, stored, start)| {
                (stored, start) == (outcome, started) && since(at, now) < STORED_AGAIN
            });
            if is_told {
                records.ripe.push_back(number);
                continue;
            }
            machine.is_due = false;
            if !may(machine.mac, machine.uuid, machine.place.0) {
                continue;
            }
            machine.stored = Some((now, outcome, started));
            let skipped = machine.boots.len().saturating_sub(boots);
            let boots = machine.boots.iter().skip(skipped).filter_map(Kept::timeline).collect();
            taken.push(Due { number, mac: machine.mac, uuid: machine.uuid, boots });
        }
        let fresh = std::mem::take(&mut records.fresh);
        records.ripe.extend(fresh);
        taken
    }

    /// Puts back what could not be stored.
    pub fn still_due(&self, due: &[Due]) {
        let mut records = self.records();
        for due in due {
            if let Some(machine) = records.machines.get_mut(&due.number)
                && !std::mem::replace(&mut machine.is_due, true)
            {
                machine.stored = None;
                records.ripe.push_back(due.number);
            }
        }
    }

    /// How much is kept.
    pub fn size(&self) -> Size {
        let records = self.records();
        Size { machines: records.machines.len(), bytes: records.bytes, packet_bytes: records.packet_bytes }
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

impl Machine {
    /// Keeps packets of the last boot, as far as there is room for them.
    fn keep_packets(&mut self, moment: SystemTime, packets: Vec<Packet>, packet_bytes: &mut usize) {
        for (n, packet) in (0..).zip(packets) {
            let cost = packet.footprint();
            let (count, bytes) = &mut self.packets_now;
            if *count >= PACKETS_MAX || *bytes + cost > PACKET_BYTES_MAX {
                continue;
            }
            *count += 1;
            *bytes += cost;
            *packet_bytes += cost;
            // Packets of one piece of evidence keep their order in a file sorted by time.
            self.packets.push((moment + Duration::from_micros(n), packet));
        }
    }

    /// Its last boot is ready for more evidence.
    fn opened(&mut self) {
        if !std::mem::replace(&mut self.is_open, true) {
            self.touched = None;
        }
    }
}

fn newest_first<'a>(boots: impl Iterator<Item = &'a Kept>) -> Vec<Timeline> {
    let mut boots: Vec<Timeline> = boots.filter_map(Kept::timeline).collect();
    boots.sort_by_key(|timeline| std::cmp::Reverse(timeline.until));
    boots
}

impl Records {
    /// The machine that `evidence` is about, and whether only its address says so.
    fn find(&self, evidence: &Evidence) -> Option<(u64, bool)> {
        let certain = |key: Option<&u64>| key.map(|key| (*key, false));
        match (evidence.mac, evidence.uuid.filter(|uuid| uuid.is_identifying())) {
            // One UUID can be on many machines (cloned, or set to a constant), so an address not seen before is a
            // machine of its own.
            (Some(mac), _) => certain(self.by_mac.get(&mac)),
            (None, Some(uuid)) => certain(self.by_uuid.get(&uuid)),
            (None, None) => {
                let by_boot = evidence.boot.and_then(|boot| self.by_boot.get(&boot));
                let by_address = || evidence.address.and_then(|address| self.by_address.get(&address));
                certain(by_boot).or_else(|| by_address().map(|key| (*key, true)))
            }
        }
    }

    /// The same; who is not known and says who it is is taken in.
    fn find_or_make(&mut self, evidence: &Evidence, bounds: Bounds) -> Option<(u64, bool)> {
        if let Some(known) = self.find(evidence) {
            return Some(known);
        }
        if evidence.mac.is_none() && evidence.uuid.is_none_or(|uuid| !uuid.is_identifying()) {
            return None;
        }
        if is_of_others(&evidence.seen) {
            // What is heard of somebody who never asked here for a boot is nobody's boot.
            return None;
        }
        while self.machines.len() >= bounds.machines {
            let (_, key) = self.order.pop_first()?;
            self.forget(key);
        }
        self.sequence += 1;
        let (key, place) = (self.sequence, (false, self.sequence));
        let machine = Machine {
            mac: evidence.mac,
            uuid: None,
            address: None,
            boots: VecDeque::new(),
            packets: Vec::new(),
            packets_now: (0, 0),
            place,
            touched: None,
            is_open: false,
            is_due: false,
            stored: None,
        };
        self.machines.insert(key, machine);
        self.bytes += MACHINE_COST;
        self.order.insert(place, key);
        if let Some(mac) = evidence.mac {
            self.by_mac.insert(mac, key);
        }
        Some((key, false))
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

    fn write_down(&mut self, key: u64, mut evidence: Evidence, only_address: bool, bounds: Bounds) {
        let packets = std::mem::take(&mut evidence.packets);
        let moment = evidence.at;
        evidence.at = whole_millis(moment);
        let Some(machine) = self.machines.get_mut(&key) else { return };
        let named = |kept: &Kept| evidence.boot.is_some() && kept.boot() == evidence.boot;
        let index = match machine.boots.iter().rposition(named) {
            Some(index) => index,
            None => {
                if let Some(last) = machine.boots.back_mut() {
                    last.open(&mut self.bytes);
                    machine.opened();
                }
                let begins = match machine.boots.back() {
                    Some(Kept::Open(last)) if !goes_on(last, &evidence) => {
                        evidence.packets = packets;
                        return self.overhear(evidence);
                    }
                    Some(Kept::Open(last)) => begins_another(last, &evidence),
                    Some(Kept::Sealed(_)) | None => true,
                };
                if begins {
                    if machine.boots.len() >= bounds.boots
                        && let Some(old) = machine.boots.pop_front()
                    {
                        self.bytes -= old.footprint();
                        if let Some(boot) = old.boot() {
                            remove_if(&mut self.by_boot, boot, key);
                        }
                    }
                    if let Some(last) = machine.boots.back_mut() {
                        last.seal(&mut self.bytes);
                        let since = last.started();
                        let before: usize =
                            machine.packets.iter().map(|(_, packet)| packet.footprint()).sum();
                        machine.packets.retain(|(at, _)| *at >= since);
                        machine.packets.shrink_to_fit();
                        let after: usize = machine.packets.iter().map(|(_, packet)| packet.footprint()).sum();
                        self.packet_bytes -= before - after;
                    }
                    machine.packets_now = (0, 0);
                    let begun = Kept::Open(Box::new(Timeline::begin(evidence.at)));
                    self.bytes += begun.footprint();
                    machine.boots.push_back(begun);
                    if !self.overheard.is_empty() {
                        for mut heard in told_of(&mut self.overheard, &evidence) {
                            let packets = std::mem::take(&mut heard.packets);
                            machine.keep_packets(heard.at, packets, &mut self.packet_bytes);
                            if let Some(Kept::Open(boot)) = machine.boots.back_mut() {
                                heard.at = whole_millis(heard.at);
                                boot.started = boot.started.min(heard.at);
                                boot.write_down(heard, false, bounds.steps, &mut self.bytes);
                            }
                        }
                    }
                }
                machine.boots.len().saturating_sub(1)
            }
        };
        let is_last = index + 1 == machine.boots.len();
        let Some(kept) = machine.boots.get_mut(index) else { return };
        let before = kept.boot();
        if let Some(timeline) = kept.open(&mut self.bytes) {
            timeline.mac = machine.mac;
            timeline.uuid = machine.uuid;
            timeline.write_down(evidence, only_address, bounds.steps, &mut self.bytes);
        }
        if !is_last {
            kept.seal(&mut self.bytes);
        }
        let now = kept.boot();
        if before != now {
            if let Some(before) = before {
                remove_if(&mut self.by_boot, before, key);
            }
            if let Some(now) = now {
                self.by_boot.insert(now, key);
            }
        }
        machine.opened();
        if !std::mem::replace(&mut machine.is_due, true) {
            self.fresh.push(key);
        }
        if is_last {
            machine.keep_packets(moment, packets, &mut self.packet_bytes);
        }
    }

    /// Keeps another server's offer until the boot begins that it was for.
    fn overhear(&mut self, evidence: Evidence) {
        if !matches!(evidence.seen, Seen::OtherOffered { .. }) || evidence.mac.is_none() {
            return;
        }
        if self.overheard.len() >= OVERHEARD_MAX {
            self.overheard.pop_front();
        }
        self.overheard.push_back(evidence);
    }

    fn touch(&mut self, key: u64, at: SystemTime) {
        let Some(machine) = self.machines.get_mut(&key) else { return };
        // Once as far as a script, a machine is no stranger, whatever its later boots come to.
        let came_further = machine.place.0 || machine.boots.iter().any(|boot| boot.boot().is_some());
        // Who was heard of before whom matters by the second, not by the packet.
        let lately = machine.touched.is_some_and(|last| last <= at && since(last, at) < TOUCHED_AGAIN);
        if lately && came_further == machine.place.0 {
            return;
        }
        self.sequence += 1;
        self.order.remove(&machine.place);
        self.open.remove(&(machine.place.1, key));
        machine.touched = Some(at);
        machine.place = (came_further, self.sequence);
        self.order.insert(machine.place, key);
        if machine.is_open {
            self.open.insert((machine.place.1, key));
        }
    }

    fn keep_within(&mut self, bounds: Bounds) {
        while self.open.len() > bounds.open {
            let Some((_, key)) = self.open.pop_first() else { break };
            let Some(machine) = self.machines.get_mut(&key) else { continue };
            machine.is_open = false;
            for kept in &mut machine.boots {
                kept.seal(&mut self.bytes);
            }
        }
        while self.bytes > bounds.bytes && self.machines.len() > 1 {
            let Some((place, key)) = self.order.pop_first() else { break };
            // Of who has more than one boot the old ones go first.
            match self.machines.get_mut(&key) {
                Some(machine) if machine.boots.len() > 1 => {
                    while machine.boots.len() > 1
                        && let Some(old) = machine.boots.pop_front()
                    {
                        self.bytes -= old.footprint();
                        if let Some(boot) = old.boot() {
                            remove_if(&mut self.by_boot, boot, key);
                        }
                    }
                    self.order.insert(place, key);
                }
                _ => self.forget(key),
            }
        }
        if self.packet_bytes > bounds.packets {
            // More than needed at once, so that the next packet does not walk the same way again.
            let enough = bounds.packets - bounds.packets / 8;
            for key in self.order.values() {
                if self.packet_bytes <= enough {
                    break;
                }
                let Some(machine) = self.machines.get_mut(key) else { continue };
                for (_, packet) in std::mem::take(&mut machine.packets) {
                    self.packet_bytes -= packet.footprint();
                }
            }
        }
    }

    fn forget(&mut self, key: u64) {
        let Some(machine) = self.machines.remove(&key) else { return };
        self.open.remove(&(machine.place.1, key));
        self.bytes -= MACHINE_COST;
        for boot in &machine.boots {
            self.bytes -= boot.footprint();
            if let Some(boot) = boot.boot() {
                remove_if(&mut self.by_boot, boot, key);
            }
        }
        for (_, packet) in &machine.packets {
            self.packet_bytes -= packet.footprint();
        }
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

/// Takes the offers that were made to the machine of `first` just before it was heard of first.
fn told_of(overheard: &mut VecDeque<Evidence>, first: &Evidence) -> Vec<Evidence> {
    overheard
        .retain(|heard| since(heard.at, first.at) <= OVERHEARD_FOR && heard.at <= first.at + OVERHEARD_FOR);
    let (theirs, others) =
        overheard.drain(..).partition(|heard| heard.mac == first.mac && first.mac.is_some());
    *overheard = others;
    Vec::from(theirs)
}

/// What is heard of other servers, and what the middle of a boot shows: it begins no boot.
fn is_of_others(seen: &Seen) -> bool {
    matches!(
        seen,
        Seen::OtherOffered { .. }
            | Seen::OtherAcked { .. }
            | Seen::ServerChosen { .. }
            | Seen::AddressGiven { .. }
            | Seen::TftpRefused { .. }
            | Seen::HttpRefused { .. }
    )
}

/// Whether what begins no boot has to do with `last`: a system that runs asks DHCP too, and is answered by others.
fn goes_on(last: &Timeline, evidence: &Evidence) -> bool {
    let early = matches!(last.outcome, Outcome::Ignored | Outcome::Answered | Outcome::Loading);
    match &evidence.seen {
        Seen::TftpRefused { .. } | Seen::HttpRefused { .. } => since(last.until, evidence.at) <= PAUSE_MAX,
        seen if is_of_others(seen) => early && since(last.until, evidence.at) <= DHCP_PAUSE_MAX,
        _ => true,
    }
}

/// Whether `evidence`, which names no boot on record, is the first sign of another boot than `last`.
fn begins_another(last: &Timeline, evidence: &Evidence) -> bool {
    let pause = since(last.until, evidence.at);
    if is_of_others(&evidence.seen) {
        return false;
    }
    if pause > PAUSE_MAX {
        return true;
    }
    match &evidence.seen {
        // Firmware starts over, or repeats its question.
        Seen::DhcpOffered { asker: Asker::Firmware | Asker::Http, .. }
        | Seen::BootServerAnswered { .. }
        | Seen::DhcpIgnored { asker: None | Some(Asker::Firmware | Asker::Http), .. } => {
            !matches!(last.outcome, Outcome::Answered | Outcome::Ignored)
                || pause > DHCP_PAUSE_MAX
                // It has an address and asks for one again: it started over.
                || matches!(&evidence.seen, Seen::DhcpOffered { .. }) && has_address(last)
        }
        // A loader asks DHCP again in the middle of a boot, before it asks for its script; a ROM begins with it.
        Seen::DhcpOffered { asker: Asker::Ipxe, .. } | Seen::DhcpIgnored { asker: Some(Asker::Ipxe), .. } => {
            let is_rom = last.steps.iter().find_map(|step| match step.seen {
                Seen::DhcpOffered { asker, .. } | Seen::DhcpIgnored { asker: Some(asker), .. } => {
                    Some(asker == Asker::Ipxe)
                }
                _ => None,
            });
            last.boot.is_some()
                || is_rom == Some(true)
                    && matches!(last.outcome, Outcome::Answered | Outcome::Ignored)
                    && (has_address(last) || pause > DHCP_PAUSE_MAX)
        }
        // Waiting machines and those whose answer got lost ask again and again in one boot.
        Seen::ScriptAsked { .. } => matches!(last.outcome, Outcome::Running | Outcome::Confirmed),
        _ => false,
    }
}

fn has_address(boot: &Timeline) -> bool {
    boot.steps.iter().any(|step| {
        matches!(
            step.seen,
            Seen::AddressGiven { .. }
                | Seen::OtherAcked { .. }
                | Seen::ServerChosen { .. }
                | Seen::BootServerAnswered { .. }
        )
    })
}

/// A moment as timelines keep it, so that what is packed or stored and read back is the same.
fn whole_millis(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(since.as_millis() as u64)
}

fn since(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

#[cfg(test)]
mod tests;

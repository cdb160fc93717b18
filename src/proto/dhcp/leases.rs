//! Who has which address: full mode's memory.
//!
//! ```text
//!            offer             claim              until
//!   (free) -------> Offered ---------> Bound ---------------> Remembered --> (free, when the pool runs out)
//!                      | offer_hold      | release ------------^
//!                      v                 | decline
//!                    (free)              v
//!                                   Quarantined -- 10 min --> (free)
//! ```
//!
//! Every address has at most one record, so the tables are bounded by the pools and reservations. Deadlines are
//! ordered; a packet looks at the first few only. A record has one entry among them, at its deadline or before: one
//! that moves later (an offer that becomes a lease, a renewal) is looked at when the old time has come.
//!
//! What must survive a crash is handed out as changes ([`LeaseRecord`]). An address counts as stored for twice its
//! term, so a machine that asks again within one term (firmware, then iPXE, then the installed system; every renewal)
//! changes nothing on the disk and waits for nothing: after a crash it is at worst held for that machine too long.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use foldhash::quality::FixedState;

use super::settings::{Network, ReservedFor, Settings, Subnet};
use super::verdict::DropReason;
use crate::wire::dhcp::Message;
use crate::wire::{MacAddr, Uuid};

/// Most addresses of one range that are given away; the bitmap of such a pool is 8 KiB.
pub const POOL_LEN_MAX: u32 = 65_536;
/// How long nobody gets an address that its machine found in use.
pub(super) const QUARANTINE: Duration = Duration::from_secs(600);
/// Changes that wait to be taken; beyond it nothing is given or taken back.
const CHANGES_MAX: usize = 65_536;
/// Pools smaller than this keep nothing back for registered machines.
const KEPT_POOL_LEN_MIN: u32 = 10;

/// A hardware address of any kind, as `chaddr` says it: what leases hang on. Client ids (61) are not used, because
/// firmware, iPXE and the installed system of one machine send three different ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Hardware {
    htype: u8,
    hlen: u8,
    bytes: [u8; 16],
}

impl Hardware {
    /// Bytes after `hlen` are not part of it.
    pub(super) fn of(message: &Message<'_>) -> Self {
        let mut bytes = [0; 16];
        let len = usize::from(message.hlen()).min(bytes.len());
        if let Some(given) = message.chaddr().get(..len) {
            bytes[..len].copy_from_slice(given);
        }
        Self { htype: message.htype(), hlen: message.hlen(), bytes }
    }

    fn is(&self, mac: MacAddr) -> bool {
        self.hlen == 6 && self.bytes[..6] == mac.0
    }

    /// FNV-1a. The same after every restart, so that a machine most likely gets the address it had.
    fn spread(&self) -> u32 {
        self.bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
    }
}

/// A machine in one subnet; the same machine may have an address in several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Owner {
    hardware: Hardware,
    network: Network,
}

/// Who asks the table, and what is known of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenant {
    /// What the lease hangs on.
    pub(super) hardware: Hardware,
    /// The address reserved for it in this subnet.
    pub(super) reserved: Option<Ipv4Addr>,
    /// May have one of the last fifth of a pool.
    pub(super) registered: bool,
    /// Index of the subnet in [`Settings::subnets`].
    pub(super) subnet: usize,
    /// Relay and circuit it sits behind, hashed; 0 where no relay says.
    pub(super) circuit: u64,
}

/// One change of who has which address, as it is to be stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    /// The address.
    pub ip: Ipv4Addr,
    /// Hardware type, `htype`.
    pub htype: u8,
    /// Bytes of the hardware address.
    pub hlen: u8,
    /// The hardware address, zero after `hlen` bytes.
    pub hardware: [u8; 16],
    /// What holds.
    pub term: LeaseTerm,
}

/// What holds for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseTerm {
    /// It is the machine's, at the latest until then; in the past: it was, and would be again.
    Held {
        /// Longer than the machine was told.
        until: Instant,
        /// Counts against what unregistered machines may have.
        stranger: bool,
    },
    /// Nobody gets it until then.
    Quarantined {
        /// The end.
        until: Instant,
    },
    /// Nothing: there is nothing to remember.
    Forgotten,
}

/// A pool and how full it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolUse {
    /// Its subnet.
    pub network: Network,
    /// Addresses that can be given.
    pub len: u32,
    /// Of those, offered, given or in quarantine.
    pub live: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Offered,
    Bound,
    Remembered,
    Quarantined,
}

impl State {
    /// True while the machine has a right to the address.
    fn is_live(self) -> bool {
        matches!(self, Self::Offered | Self::Bound)
    }
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    owner: Owner,
    subnet: usize,
    state: State,
    /// Deadline of the state; for `Remembered` when it began.
    at: Instant,
    /// Counts against what strangers may have of the pool.
    stranger: bool,
    /// xid of the last DISCOVER or REQUEST answered.
    xid: u32,
    /// Its entry among the deadlines; none while it is remembered.
    armed: Option<Instant>,
    /// Relay and circuit, hashed.
    circuit: u64,
    /// Counted among the pool's live addresses.
    pooled: bool,
    /// What is stored, or on its way there, of this machine on this address.
    saved: Option<Saved>,
}

impl Lease {
    /// Counts against what strangers may have of the pool. What they had put aside does too, or who declines all that it
    /// is given would leave nothing for registered machines.
    fn is_strangers(&self) -> bool {
        self.stranger && self.state != State::Remembered
    }

    /// Counts against what its circuit may have: not what was put aside, since its machine is to get another address.
    fn is_on_circuit(&self) -> bool {
        self.circuit != 0 && self.stranger && self.state.is_live()
    }
}

/// What a change said that was handed out to be stored.
#[derive(Clone, Copy, Debug)]
struct Saved {
    /// Number of the change.
    number: u64,
    until: Instant,
}

/// An address given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    /// This request, known by its xid, was granted before.
    pub(super) retried: bool,
    /// The change that must be stored before the machine is told; 0 for none.
    pub(super) stored: u64,
}

/// Why an address is not a machine's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Another machine has it, or this one has another.
    Wrong,
    /// Nothing is known of it here.
    Unknown,
    /// It is kept for registered machines.
    Kept,
}

/// An address found for a DISCOVER.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    pub(super) ip: Ipv4Addr,
    /// The same DISCOVER was answered before.
    pub(super) retried: bool,
    /// The machine neither has the address nor had it last.
    pub(super) fresh: bool,
}

/// Hashes with a key, so that strangers cannot choose hardware addresses that collide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyed(pub(super) u64);

impl BuildHasher for Keyed {
    type Hasher = <FixedState as BuildHasher>::Hasher;

    fn build_hasher(&self) -> Self::Hasher {
        FixedState::with_seed(self.0).build_hasher()
    }
}

/// One range: which of its addresses can be given.
#[derive(Debug)]
struct Pool {
    first: u32,
    len: u32,
    /// Never to be given from the pool: reservations, routers, our own.
    blocked: Vec<u64>,
    /// Has a record.
    taken: Vec<u64>,
    /// Leases of unregistered machines, and what was put aside of theirs.
    strangers: u32,
    /// Records that are not merely remembered.
    live: u32,
    /// Addresses whose machine is gone, the longest gone first.
    remembered: BTreeSet<(Instant, Ipv4Addr)>,
}

impl Pool {
    fn new(subnet: &Subnet) -> Option<Self> {
        let (first, last) = subnet.range?;
        let len = last.to_bits().checked_sub(first.to_bits())?.saturating_add(1).min(POOL_LEN_MAX);
        let words = vec![0; len.div_ceil(64) as usize];
        let mut pool = Self {
            first: first.to_bits(),
            len,
            blocked: words.clone(),
            taken: words,
            strangers: 0,
            live: 0,
            remembered: BTreeSet::new(),
        };
        let known = subnet.dns.iter().chain(&subnet.router).chain(&subnet.next_server);
        known.for_each(|ip| pool.block(*ip));
        if subnet.network.prefix() < 31 {
            pool.block(subnet.network.address());
            pool.block(subnet.network.broadcast());
        }
        Some(pool)
    }

    fn index(&self, ip: Ipv4Addr) -> Option<u32> {
        ip.to_bits().checked_sub(self.first).filter(|index| *index < self.len)
    }

    fn block(&mut self, ip: Ipv4Addr) {
        if let Some(index) = self.index(ip) {
            set(&mut self.blocked, index, true);
        }
    }

    /// True for addresses of the range that are not blocked.
    fn gives(&self, ip: Ipv4Addr) -> bool {
        self.index(ip).is_some_and(|index| !is_set(&self.blocked, index))
    }

    /// Addresses that can be given at all.
    fn usable(&self) -> u32 {
        let blocked: u32 = self.blocked.iter().map(|word| word.count_ones()).sum();
        self.len - blocked
    }

    /// What unregistered machines may have at once, or make others go without.
    fn strangers_max(&self) -> u32 {
        if self.len < KEPT_POOL_LEN_MIN { self.len } else { self.len - self.len / 5 }
    }

    /// The first address without record and block at or after `start`, round to it again.
    fn find_free(&self, start: u32) -> Option<Ipv4Addr> {
        let start = start % self.len;
        let words = self.taken.len() as u32;
        // The first word is looked at twice: from `start` on, and at the end from its beginning.
        (0..=words).find_map(|step| {
            let word = (start / 64 + step) % words;
            let used = self.taken[word as usize] | self.blocked[word as usize];
            let free = if step == 0 { !used & (u64::MAX << (start % 64)) } else { !used };
            let index = word * 64 + free.trailing_zeros();
            (free != 0 && index < self.len).then(|| Ipv4Addr::from(self.first + index))
        })
    }
}

fn record(ip: Ipv4Addr, lease: &Lease, term: LeaseTerm) -> LeaseRecord {
    let Hardware { htype, hlen, bytes } = lease.owner.hardware;
    LeaseRecord { ip, htype, hlen, hardware: bytes, term }
}

fn is_set(words: &[u64], index: u32) -> bool {
    words.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 != 0)
}

fn set(words: &mut [u64], index: u32, value: bool) {
    if let Some(word) = words.get_mut(index as usize / 64) {
        let bit = 1 << (index % 64);
        *word = if value { *word | bit } else { *word & !bit };
    }
}

/// Every address given, offered, remembered or in quarantine.
#[derive(Debug)]
pub(super) struct Leases {
    by_ip: HashMap<Ipv4Addr, Lease, Keyed>,
    by_owner: HashMap<Owner, Ipv4Addr, Keyed>,
    deadlines: BTreeSet<(Instant, Ipv4Addr)>,
    pools: Vec<Option<Pool>>,
    networks: Vec<Network>,
    reservations: Reservations,
    /// Live addresses of unregistered machines by relay and circuit.
    circuits: HashMap<u64, u32, Keyed>,
    circuit_max: u32,
    /// Changes to be stored, when somebody takes them.
    changes: Vec<LeaseRecord>,
    change_number: u64,
    journal: bool,
    keyed: Keyed,
    /// Addresses of ours that were kept out of the pools last.
    blocked: Option<[Ipv4Addr; 2]>,
}

/// Addresses kept for machines, by what they are known by.
#[derive(Debug)]
struct Reservations {
    macs: HashMap<(MacAddr, usize), Ipv4Addr, Keyed>,
    uuids: HashMap<(Uuid, usize), Ipv4Addr, Keyed>,
    /// By client id and by circuit: the bytes, then a subnet each.
    client_ids: HashMap<Box<[u8]>, Vec<(usize, Ipv4Addr)>, Keyed>,
    circuits: HashMap<Box<[u8]>, Vec<(usize, Ipv4Addr)>, Keyed>,
    /// Every address that is reserved, and the MAC it is for: none when it is by anything else, or by several.
    taken: HashMap<Ipv4Addr, Option<MacAddr>, Keyed>,
}

impl Reservations {
    fn new(settings: &Settings, keyed: Keyed) -> Self {
        let mut all = Self {
            macs: HashMap::with_hasher(keyed),
            uuids: HashMap::with_hasher(keyed),
            client_ids: HashMap::with_hasher(keyed),
            circuits: HashMap::with_hasher(keyed),
            taken: HashMap::with_hasher(keyed),
        };
        for reservation in &settings.reservations {
            let ip = reservation.ip;
            let subnet = settings.subnets.iter().position(|subnet| subnet.network.contains_host(ip));
            let Some(subnet) = subnet else { continue };
            let mac = match &reservation.who {
                ReservedFor::Mac(mac) => Some(*mac),
                ReservedFor::Uuid(_) | ReservedFor::ClientId(_) | ReservedFor::Circuit(_) => None,
            };
            all.taken.entry(ip).and_modify(|of| *of = of.filter(|of| Some(*of) == mac)).or_insert(mac);
            match &reservation.who {
                ReservedFor::Mac(mac) => drop(all.macs.insert((*mac, subnet), ip)),
                ReservedFor::Uuid(uuid) => drop(all.uuids.insert((*uuid, subnet), ip)),
                ReservedFor::ClientId(bytes) => {
                    all.client_ids.entry(bytes.as_slice().into()).or_default().push((subnet, ip));
                }
                ReservedFor::Circuit(bytes) => {
                    all.circuits.entry(bytes.as_slice().into()).or_default().push((subnet, ip));
                }
            }
        }
        all
    }

    fn find(&self, shown: &Shown<'_>, subnet: usize) -> Option<Ipv4Addr> {
        if self.taken.is_empty() {
            return None;
        }
        let of = |map: &HashMap<Box<[u8]>, Vec<(usize, Ipv4Addr)>, Keyed>, bytes: Option<&[u8]>| {
            map.get(bytes?)?.iter().find(|(of, _)| *of == subnet).map(|(_, ip)| *ip)
        };
        shown
            .mac
            .and_then(|mac| self.macs.get(&(mac, subnet)).copied())
            .or_else(|| self.uuids.get(&(shown.uuid?, subnet)).copied())
            .or_else(|| of(&self.client_ids, shown.client_id))
            .or_else(|| of(&self.circuits, shown.circuit))
    }
}

/// What a request shows that a reservation can hang on; the first that has one counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'a> {
    pub(super) mac: Option<MacAddr>,
    pub(super) uuid: Option<Uuid>,
    pub(super) client_id: Option<&'a [u8]>,
    pub(super) circuit: Option<&'a [u8]>,
}

impl Leases {
    /// Empty pools after `settings`.
    pub(super) fn new(settings: &Settings, keyed: Keyed) -> Self {
        let mut leases = Self {
            by_ip: HashMap::with_hasher(keyed),
            by_owner: HashMap::with_hasher(keyed),
            deadlines: BTreeSet::new(),
            pools: settings.subnets.iter().map(Pool::new).collect(),
            networks: settings.subnets.iter().map(|subnet| subnet.network).collect(),
            reservations: Reservations::new(settings, keyed),
            circuits: HashMap::with_hasher(keyed),
            circuit_max: settings.circuit_max,
            changes: Vec::new(),
            change_number: 0,
            journal: settings.journal,
            keyed,
            blocked: None,
        };
        for ip in leases.reservations.taken.keys() {
            for pool in leases.pools.iter_mut().flatten() {
                pool.block(*ip);
            }
        }
        leases
    }

    /// The same leases under other settings. Those of addresses that no subnet lists any more are forgotten.
    pub(super) fn under(self, settings: &Settings) -> Self {
        let mut next = Self::new(settings, self.keyed);
        (next.changes, next.change_number) = (self.changes, self.change_number);
        for (ip, lease) in self.by_ip {
            let Some(subnet) = next.subnet_of(ip) else { continue };
            // A network that was widened or split is another one.
            let owner = Owner { network: next.networks[subnet], ..lease.owner };
            next.take_over(ip, Lease { owner, subnet, ..lease });
        }
        next
    }

    /// The subnet that an address is of.
    fn subnet_of(&self, ip: Ipv4Addr) -> Option<usize> {
        self.networks.iter().position(|network| network.contains_host(ip))
    }

    /// Takes over a record of before. Of two addresses of one machine the one it has for longer counts; the other one is nobody's
    /// until its own term is over, since it may be the one that is in use.
    fn take_over(&mut self, ip: Ipv4Addr, mut lease: Lease) {
        if lease.state != State::Quarantined
            && let Some(held) = self.by_owner.get(&lease.owner).copied()
        {
            // Nobody else is given one that is reserved.
            let may_be_in_use = |ip: Ipv4Addr, lease: &Lease, reservations: &Reservations| {
                lease.state.is_live() && !reservations.taken.contains_key(&ip)
            };
            if self.by_ip.get(&held).is_some_and(|other| other.at >= lease.at) {
                if !may_be_in_use(ip, &lease, &self.reservations) {
                    return;
                }
                lease.state = State::Quarantined;
            } else if let Some(other) = self.remove(held)
                && may_be_in_use(held, &other, &self.reservations)
            {
                self.insert(held, Lease { state: State::Quarantined, saved: None, ..other });
            }
        }
        match lease.state {
            State::Remembered => self.remember(ip, lease, lease.at),
            State::Offered | State::Bound | State::Quarantined => self.insert(ip, lease),
        }
    }

    /// When [`Leases::expire`] has something to do next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Ends what has run out, at most `count_max` records.
    pub(super) fn expire(&mut self, now: Instant, count_max: usize) {
        for _ in 0..count_max {
            let Some((at, ip)) = self.deadlines.first().copied() else { return };
            if at > now {
                return;
            }
            match self.by_ip.get_mut(&ip) {
                Some(lease) if lease.at > now => {
                    // It was put off since.
                    lease.armed = Some(lease.at);
                    self.deadlines.remove(&(at, ip));
                    self.deadlines.insert((lease.at, ip));
                }
                Some(_) => {
                    if let Some(lease) = self.remove(ip)
                        && lease.state == State::Bound
                    {
                        self.remember(ip, lease, lease.at);
                    }
                }
                None => drop(self.deadlines.remove(&(at, ip))),
            }
        }
    }

    /// Takes back what was stored: who had which address when the server ended. Records of addresses that no subnet
    /// lists any more are left out.
    pub(super) fn restore(&mut self, now: Instant, records: impl Iterator<Item = LeaseRecord>) {
        for record in records {
            let ip = record.ip;
            // The newest counts.
            self.remove(ip);
            let Some(subnet) = self.subnet_of(ip) else { continue };
            let hardware = Hardware { htype: record.htype, hlen: record.hlen, bytes: record.hardware };
            let owner = Owner { hardware, network: self.networks[subnet] };
            let (state, at, stranger) = match record.term {
                LeaseTerm::Held { until, stranger } if until > now => (State::Bound, until, stranger),
                LeaseTerm::Held { until, stranger } => (State::Remembered, until, stranger),
                LeaseTerm::Quarantined { until } if until > now => (State::Quarantined, until, false),
                LeaseTerm::Quarantined { .. } | LeaseTerm::Forgotten => continue,
            };
            let saved = (state == State::Bound).then_some(Saved { number: 0, until: at });
            let lease = Lease {
                owner,
                subnet,
                state,
                at,
                stranger,
                xid: 0,
                armed: None,
                circuit: 0,
                pooled: false,
                saved,
            };
            self.take_over(ip, lease);
        }
    }

    /// Changes not yet taken, in order, with the number of the last.
    pub(super) fn take_changes(&mut self) -> (std::vec::Drain<'_, LeaseRecord>, u64) {
        (self.changes.drain(..), self.change_number)
    }

    /// Changes that wait to be taken.
    pub(super) fn change_count(&self) -> usize {
        self.changes.len()
    }

    /// True when so many wait that whoever takes them must be stuck: a disk that hangs.
    pub(super) fn is_backed_up(&self) -> bool {
        self.changes.len() >= CHANGES_MAX
    }

    /// What came after this change could not be stored: nobody may rely on it.
    pub(super) fn forget_changes_after(&mut self, number: u64) {
        self.changes.clear();
        for lease in self.by_ip.values_mut() {
            lease.saved = lease.saved.filter(|saved| saved.number <= number);
        }
    }

    /// How full each pool is.
    pub(super) fn pools(&self) -> impl Iterator<Item = PoolUse> {
        self.pools.iter().zip(&self.networks).filter_map(|(pool, network)| {
            let pool = pool.as_ref()?;
            Some(PoolUse { network: *network, len: pool.usable(), live: pool.live })
        })
    }

    /// The address reserved for a machine in a subnet.
    pub(super) fn reserved_for(&self, shown: &Shown<'_>, subnet: usize) -> Option<Ipv4Addr> {
        self.reservations.find(shown, subnet)
    }

    /// What quotas count by: the relay and its circuit.
    pub(super) fn circuit(&self, relay: Option<Ipv4Addr>, circuit: Option<&[u8]>) -> u64 {
        match (relay, circuit) {
            (Some(relay), Some(circuit)) if self.circuit_max > 0 => self.keyed.hash_one((relay, circuit)) | 1,
            _ => 0,
        }
    }

    /// Keeps addresses of ours out of every pool. Most messages come to the same ones as the message before.
    pub(super) fn block(&mut self, ours: [Ipv4Addr; 2]) {
        if self.blocked == Some(ours) {
            return;
        }
        self.blocked = Some(ours);
        for pool in self.pools.iter_mut().flatten() {
            ours.into_iter().for_each(|ip| pool.block(ip));
        }
    }

    /// Finds the address for a DISCOVER and holds it until `hold_until`: its reservation, else what it has or had,
    /// else `wanted` (its option 50), else a free one, else the one whose machine is gone the longest.
    pub(super) fn offer(
        &mut self,
        tenant: &Tenant,
        wanted: Option<Ipv4Addr>,
        xid: u32,
        hold_until: Instant,
    ) -> Result<Offer, DropReason> {
        self.end_what_it_may_not_keep(tenant);
        let owner = self.owner(tenant);
        let held = self.by_owner.get(&owner).copied();
        let held_lease = held.and_then(|ip| self.by_ip.get(&ip)).copied();
        let reserved = tenant.reserved.filter(|ip| self.is_open_to(*ip, &owner));
        let ip = match (reserved, held, held_lease) {
            (Some(reserved), ..) => reserved,
            (None, Some(ip), Some(lease)) if lease.state.is_live() || self.gives(tenant, ip) => ip,
            _ => self.find(tenant, &owner, wanted)?,
        };
        let same = held_lease.filter(|_| held == Some(ip));
        let live = same.is_some_and(|lease| lease.state.is_live());
        if !live {
            if self.is_kept(tenant, ip) {
                return Err(DropReason::PoolKept);
            }
            if self.is_crowded(tenant) {
                return Err(DropReason::CircuitFull);
            }
        }
        // A machine that starts again keeps its lease to the end of its term.
        let (state, at) = match same {
            Some(lease) if lease.state == State::Bound => (State::Bound, lease.at),
            _ => (State::Offered, hold_until),
        };
        self.settle(ip, (owner, held), tenant, state, at, xid);
        let fresh = same.is_none();
        Ok(Offer { ip, retried: live && same.is_some_and(|lease| lease.xid == xid), fresh })
    }

    /// Gives an address to the machine that asks for it, until `until`. With `create`, also one that is free but was
    /// never offered. `margin` is how much longer than that it is stored for.
    pub(super) fn claim(
        &mut self,
        tenant: &Tenant,
        ip: Ipv4Addr,
        create: bool,
        xid: u32,
        until: Instant,
        margin: Duration,
    ) -> Result<Claim, Refusal> {
        let owner = self.owner(tenant);
        let held = self.by_owner.get(&owner).copied();
        let held_lease = held.and_then(|ip| self.by_ip.get(&ip)).copied();
        let live = held_lease.is_some_and(|lease| lease.state.is_live());
        if live && (held != Some(ip) || !self.may_keep(tenant, ip)) {
            return Err(Refusal::Wrong);
        }
        if !live {
            match self.by_ip.get(&ip) {
                Some(lease) if lease.state != State::Remembered => return Err(Refusal::Wrong),
                _ => {}
            }
            let own = tenant.reserved == Some(ip);
            if !own && self.reservations.taken.contains_key(&ip) {
                return Err(Refusal::Wrong);
            }
            if !own && !self.gives(tenant, ip) || !create && held != Some(ip) {
                return Err(Refusal::Unknown);
            }
            if self.is_kept(tenant, ip) || self.is_crowded(tenant) {
                return Err(Refusal::Kept);
            }
        }
        let retried = held_lease.is_some_and(|lease| lease.state == State::Bound && lease.xid == xid);
        self.settle(ip, (owner, held), tenant, State::Bound, until, xid);
        Ok(Claim { retried, stored: self.store(ip, until, margin) })
    }

    /// Sees to it that a lease is stored until its end; the number of the change that does it.
    fn store(&mut self, ip: Ipv4Addr, until: Instant, margin: Duration) -> u64 {
        let Some(lease) = self.by_ip.get_mut(&ip).filter(|_| self.journal) else { return 0 };
        if let Some(saved) = lease.saved.filter(|saved| saved.until >= until) {
            return saved.number;
        }
        self.change_number += 1;
        let until = until + margin;
        lease.saved = Some(Saved { number: self.change_number, until });
        let term = LeaseTerm::Held { until, stranger: lease.stranger };
        self.changes.push(record(ip, lease, term));
        self.change_number
    }

    /// Hands out a change that nobody waits for.
    fn tell(&mut self, ip: Ipv4Addr, lease: &Lease, term: LeaseTerm) {
        if self.journal {
            self.change_number += 1;
            self.changes.push(record(ip, lease, term));
        }
    }

    /// Forgets an offer the machine did not take.
    pub(super) fn withdraw(&mut self, tenant: &Tenant) {
        if let Some((ip, lease)) = self.held(tenant)
            && lease.state == State::Offered
        {
            self.remove(ip);
        }
    }

    /// Takes an address back; true when the machine had it.
    pub(super) fn release(&mut self, tenant: &Tenant, ip: Ipv4Addr, now: Instant) -> bool {
        match self.held(tenant) {
            Some((held, mut lease)) if held == ip && lease.state.is_live() => {
                self.remove(ip);
                if lease.state == State::Bound {
                    self.tell(ip, &lease, LeaseTerm::Held { until: now, stranger: lease.stranger });
                    // What was stored before counts no more: taken up again, it is stored again.
                    lease.saved = None;
                }
                self.remember(ip, lease, now);
                true
            }
            _ => false,
        }
    }

    /// True when the machine has this address, or it is on offer to it.
    pub(super) fn has(&self, tenant: &Tenant, ip: Ipv4Addr) -> bool {
        self.held(tenant).is_some_and(|(held, lease)| held == ip && lease.state.is_live())
    }

    /// Puts an address aside that the machine found in use; true when the machine had it.
    pub(super) fn decline(&mut self, tenant: &Tenant, ip: Ipv4Addr, now: Instant) -> bool {
        match self.held(tenant) {
            Some((held, lease)) if held == ip && lease.state.is_live() => {
                self.remove(ip);
                let until = now + QUARANTINE;
                self.tell(ip, &lease, LeaseTerm::Quarantined { until });
                self.insert(ip, Lease { state: State::Quarantined, at: until, saved: None, ..lease });
                true
            }
            _ => false,
        }
    }

    /// Puts an address aside that somebody has although it is only on offer; true when it was.
    pub(super) fn set_aside(&mut self, ip: Ipv4Addr, now: Instant) -> bool {
        let Some(lease) = self.by_ip.get(&ip).copied().filter(|lease| lease.state == State::Offered) else {
            return false;
        };
        self.remove(ip);
        let until = now + QUARANTINE;
        self.tell(ip, &lease, LeaseTerm::Quarantined { until });
        self.insert(ip, Lease { state: State::Quarantined, at: until, saved: None, ..lease });
        true
    }

    /// True when the address is on offer to the machine with this hardware address.
    pub(super) fn is_offered_to(&self, ip: Ipv4Addr, mac: MacAddr) -> bool {
        self.by_ip.get(&ip).is_some_and(|lease| lease.state == State::Offered && lease.owner.hardware.is(mac))
    }

    fn owner(&self, tenant: &Tenant) -> Owner {
        // A tenant's subnet comes from the same settings as `networks`.
        Owner { hardware: tenant.hardware, network: self.networks[tenant.subnet] }
    }

    fn held(&self, tenant: &Tenant) -> Option<(Ipv4Addr, Lease)> {
        let ip = *self.by_owner.get(&self.owner(tenant))?;
        Some((ip, *self.by_ip.get(&ip)?))
    }

    fn pool(&self, subnet: usize) -> Option<&Pool> {
        self.pools.get(subnet)?.as_ref()
    }

    fn gives(&self, tenant: &Tenant, ip: Ipv4Addr) -> bool {
        self.pool(tenant.subnet).is_some_and(|pool| pool.gives(ip))
    }

    /// Whether a machine may keep the address it has, after the settings were changed. One that is reserved by a UUID, a
    /// client id or a circuit is renewed by systems that do not show it, so only a MAC keeps others from it.
    fn may_keep(&self, tenant: &Tenant, ip: Ipv4Addr) -> bool {
        tenant.reserved == Some(ip)
            || match self.reservations.taken.get(&ip) {
                Some(mac) => mac.is_none_or(|mac| tenant.hardware.is(mac)),
                None => self.gives(tenant, ip),
            }
    }

    /// A machine that asks for an address has given up the one it may not keep, which then takes no room of the new one.
    fn end_what_it_may_not_keep(&mut self, tenant: &Tenant) {
        if let Some((ip, lease)) = self.held(tenant)
            && lease.state.is_live()
            && !self.may_keep(tenant, ip)
        {
            self.remove(ip);
            if lease.saved.is_some() {
                self.tell(ip, &lease, LeaseTerm::Forgotten);
            }
        }
    }

    /// True unless another machine is on the address or it is in quarantine.
    fn is_open_to(&self, ip: Ipv4Addr, owner: &Owner) -> bool {
        self.by_ip.get(&ip).is_none_or(|lease| match lease.state {
            State::Offered | State::Bound => lease.owner == *owner,
            State::Remembered => true,
            State::Quarantined => false,
        })
    }

    /// True when one more address of the pool would be one of those kept for registered machines.
    fn is_kept(&self, tenant: &Tenant, ip: Ipv4Addr) -> bool {
        !tenant.registered
            && self
                .pool(tenant.subnet)
                .is_some_and(|pool| pool.gives(ip) && pool.strangers >= pool.strangers_max())
    }

    /// True when the machine's switch port has as many addresses as one may have.
    fn is_crowded(&self, tenant: &Tenant) -> bool {
        tenant.circuit != 0
            && !tenant.registered
            && self.circuits.get(&tenant.circuit).is_some_and(|count| *count >= self.circuit_max)
    }

    fn find(&self, tenant: &Tenant, owner: &Owner, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, DropReason> {
        let pool = self.pool(tenant.subnet).ok_or(DropReason::NoRange)?;
        if let Some(ip) = wanted.filter(|ip| pool.gives(*ip) && self.is_open_to(*ip, owner)) {
            return Ok(ip);
        }
        pool.find_free(owner.hardware.spread())
            .or_else(|| pool.remembered.iter().map(|(_, ip)| *ip).find(|ip| pool.gives(*ip)))
            .ok_or(DropReason::PoolExhausted)
    }

    /// Makes `ip` the machine's only record, whoever was remembered there before. `held` is what it has by now.
    fn settle(
        &mut self,
        ip: Ipv4Addr,
        (owner, held): (Owner, Option<Ipv4Addr>),
        tenant: &Tenant,
        state: State,
        at: Instant,
        xid: u32,
    ) {
        if held == Some(ip)
            && let Some(lease) = self.by_ip.get_mut(&ip).filter(|lease| lease.state.is_live())
            && lease.stranger != tenant.registered
            && lease.circuit == tenant.circuit
        {
            // The usual case touches no index.
            (lease.state, lease.at, lease.xid) = (state, at, xid);
            if lease.armed.is_none_or(|armed| at < armed)
                && let Some(armed) = lease.armed.replace(at)
            {
                self.deadlines.remove(&(armed, ip));
                self.deadlines.insert((at, ip));
            }
            return;
        }
        let mut saved = None;
        if let Some(held) = held
            && let Some(lease) = self.remove(held)
        {
            if held == ip {
                saved = lease.saved;
            } else if lease.saved.is_some() {
                self.tell(held, &lease, LeaseTerm::Forgotten);
            }
        }
        self.remove(ip);
        let stranger = !tenant.registered;
        let circuit = tenant.circuit;
        let subnet = tenant.subnet;
        let (armed, pooled) = (None, false);
        self.insert(ip, Lease { owner, subnet, state, at, stranger, xid, armed, circuit, pooled, saved });
    }

    /// Reservations need no memory: only addresses a pool gives are remembered.
    fn remember(&mut self, ip: Ipv4Addr, lease: Lease, at: Instant) {
        if self.pool(lease.subnet).is_some_and(|pool| pool.gives(ip)) {
            self.insert(ip, Lease { state: State::Remembered, at, ..lease });
        }
    }

    fn insert(&mut self, ip: Ipv4Addr, mut lease: Lease) {
        if let Some(Some(pool)) = self.pools.get_mut(lease.subnet)
            && let Some(index) = pool.index(ip)
        {
            set(&mut pool.taken, index, true);
            pool.strangers += u32::from(lease.is_strangers());
            lease.pooled = lease.state != State::Remembered && !is_set(&pool.blocked, index);
            pool.live += u32::from(lease.pooled);
            if lease.state == State::Remembered {
                pool.remembered.insert((lease.at, ip));
            }
        }
        if lease.is_on_circuit() {
            *self.circuits.entry(lease.circuit).or_default() += 1;
        }
        lease.armed = (lease.state != State::Remembered).then_some(lease.at);
        if let Some(at) = lease.armed {
            self.deadlines.insert((at, ip));
        }
        if lease.state != State::Quarantined {
            self.by_owner.insert(lease.owner, ip);
        }
        self.by_ip.insert(ip, lease);
    }

    fn remove(&mut self, ip: Ipv4Addr) -> Option<Lease> {
        let lease = self.by_ip.remove(&ip)?;
        if let Some(Some(pool)) = self.pools.get_mut(lease.subnet)
            && let Some(index) = pool.index(ip)
        {
            set(&mut pool.taken, index, false);
            pool.strangers -= u32::from(lease.is_strangers());
            pool.live -= u32::from(lease.pooled);
            pool.remembered.remove(&(lease.at, ip));
        }
        if lease.is_on_circuit()
            && let Some(count) = self.circuits.get_mut(&lease.circuit)
        {
            *count -= 1;
            if *count == 0 {
                self.circuits.remove(&lease.circuit);
            }
        }
        if let Some(armed) = lease.armed {
            self.deadlines.remove(&(armed, ip));
        }
        if self.by_owner.get(&lease.owner) == Some(&ip) {
            self.by_owner.remove(&lease.owner);
        }
        Some(lease)
    }

    /// Addresses with a record, whatever its state.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_ip.len()
    }

    /// The books agree with each other.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for (ip, lease) in &self.by_ip {
            assert_eq!(lease.armed.is_some(), lease.state != State::Remembered, "{ip} {lease:?}");
            assert!(lease.armed.is_none_or(|armed| armed <= lease.at), "{ip} {lease:?}");
            let timed = lease.armed.is_some_and(|armed| self.deadlines.contains(&(armed, *ip)));
            assert_eq!(timed, lease.armed.is_some(), "{ip} {lease:?}");
            let owned = self.by_owner.get(&lease.owner) == Some(ip);
            assert!(owned || lease.state == State::Quarantined, "{ip} {lease:?}");
        }
        assert!(self.by_owner.iter().all(|(owner, ip)| self.by_ip[ip].owner == *owner));
        let timed = self.by_ip.values().filter(|lease| lease.state != State::Remembered).count();
        assert_eq!(self.deadlines.len(), timed);
        for (subnet, pool) in self.pools.iter().enumerate() {
            let Some(pool) = pool else { continue };
            let inside = |state: &dyn Fn(&Lease) -> bool| {
                self.by_ip
                    .iter()
                    .filter(|(ip, lease)| {
                        lease.subnet == subnet && pool.index(**ip).is_some() && state(lease)
                    })
                    .count()
            };
            let taken: u32 = pool.taken.iter().map(|word| word.count_ones()).sum();
            assert_eq!(taken as usize, inside(&|_| true));
            assert_eq!(pool.strangers as usize, inside(&Lease::is_strangers));
            assert_eq!(pool.remembered.len(), inside(&|lease| lease.state == State::Remembered));
            assert!(pool.live as usize <= inside(&|lease| lease.state != State::Remembered));
        }
        for (circuit, count) in &self.circuits {
            let live = |lease: &&Lease| lease.circuit == *circuit && lease.is_on_circuit();
            assert_eq!(self.by_ip.values().filter(live).count(), *count as usize);
        }
    }
}

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
//! ordered; a packet looks at the first few only.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, DefaultHasher, Hasher};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::settings::{Network, Settings, Subnet};
use super::verdict::DropReason;
use crate::wire::MacAddr;
use crate::wire::dhcp::Message;

/// Most addresses of one range that are given away; the bitmap of such a pool is 8 KiB.
pub const POOL_LEN_MAX: u32 = 65_536;
/// How long nobody gets an address that its machine found in use.
pub(super) const QUARANTINE: Duration = Duration::from_secs(600);
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
        for (byte, given) in bytes.iter_mut().zip(message.chaddr()).take(usize::from(message.hlen())) {
            *byte = *given;
        }
        Self { htype: message.htype(), hlen: message.hlen(), bytes }
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
    /// What reservations hang on.
    pub(super) mac: Option<MacAddr>,
    /// May have one of the last fifth of a pool.
    pub(super) registered: bool,
    /// Index of the subnet in [`Settings::subnets`].
    pub(super) subnet: usize,
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
}

/// Hashes with a key, so that strangers cannot choose hardware addresses that collide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyed(pub(super) u64);

impl BuildHasher for Keyed {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
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
    /// Live leases of unregistered machines.
    strangers: u32,
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

    /// What unregistered machines may have at once.
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
    reservations: HashMap<(MacAddr, usize), Ipv4Addr, Keyed>,
    reserved: HashMap<Ipv4Addr, MacAddr, Keyed>,
    keyed: Keyed,
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
            reservations: HashMap::with_hasher(keyed),
            reserved: HashMap::with_hasher(keyed),
            keyed,
        };
        for reservation in &settings.reservations {
            let subnet =
                settings.subnets.iter().position(|subnet| subnet.network.contains_host(reservation.ip));
            let Some(subnet) = subnet else { continue };
            leases.reservations.insert((reservation.mac, subnet), reservation.ip);
            leases.reserved.insert(reservation.ip, reservation.mac);
            for pool in leases.pools.iter_mut().flatten() {
                pool.block(reservation.ip);
            }
        }
        leases
    }

    /// The same leases under other settings. Those whose subnet is no longer listed are forgotten.
    pub(super) fn under(self, settings: &Settings) -> Self {
        let mut next = Self::new(settings, self.keyed);
        for (ip, lease) in self.by_ip {
            let subnet = next.networks.iter().position(|network| *network == lease.owner.network);
            let Some(subnet) = subnet else { continue };
            let lease = Lease { subnet, ..lease };
            match lease.state {
                State::Remembered => next.remember(ip, lease, lease.at),
                State::Offered | State::Bound | State::Quarantined => next.insert(ip, lease),
            }
        }
        next
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
            if let Some(lease) = self.remove(ip)
                && lease.state == State::Bound
            {
                self.remember(ip, lease, at);
            }
        }
    }

    /// Keeps an address of ours out of every pool.
    pub(super) fn block(&mut self, ip: Ipv4Addr) {
        for pool in self.pools.iter_mut().flatten() {
            pool.block(ip);
        }
    }

    /// True when the machine has a reservation in the subnet.
    pub(super) fn has_reservation(&self, mac: Option<MacAddr>, subnet: usize) -> bool {
        mac.is_some_and(|mac| self.reservations.contains_key(&(mac, subnet)))
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
        let owner = self.owner(tenant);
        let held = self.by_owner.get(&owner).copied();
        let held_lease = held.and_then(|ip| self.by_ip.get(&ip)).copied();
        let reserved = self.reservation(tenant).filter(|ip| self.is_open_to(*ip, &owner));
        let ip = match (reserved, held, held_lease) {
            (Some(reserved), ..) => reserved,
            (None, Some(ip), Some(lease)) if lease.state.is_live() || self.gives(tenant, ip) => ip,
            _ => self.find(tenant, &owner, wanted)?,
        };
        let same = held_lease.filter(|_| held == Some(ip));
        let live = same.is_some_and(|lease| lease.state.is_live());
        if !live && self.is_kept(tenant, ip) {
            return Err(DropReason::PoolKept);
        }
        // A machine that starts again keeps its lease to the end of its term.
        let (state, at) = match same {
            Some(lease) if lease.state == State::Bound => (State::Bound, lease.at),
            _ => (State::Offered, hold_until),
        };
        self.settle(ip, owner, tenant, state, at, xid);
        Ok(Offer { ip, retried: live && same.is_some_and(|lease| lease.xid == xid) })
    }

    /// Gives an address to the machine that asks for it, until `until`. With `create`, also one that is free but was
    /// never offered. True when this request, known by its xid, was granted before.
    pub(super) fn claim(
        &mut self,
        tenant: &Tenant,
        ip: Ipv4Addr,
        create: bool,
        xid: u32,
        until: Instant,
    ) -> Result<bool, Refusal> {
        let owner = self.owner(tenant);
        let held = self.by_owner.get(&owner).copied();
        let held_lease = held.and_then(|ip| self.by_ip.get(&ip)).copied();
        let live = held_lease.is_some_and(|lease| lease.state.is_live());
        if live && held != Some(ip) {
            return Err(Refusal::Wrong);
        }
        if !live {
            match self.by_ip.get(&ip) {
                Some(lease) if lease.state != State::Remembered => return Err(Refusal::Wrong),
                _ => {}
            }
            let own = self.reservation(tenant) == Some(ip);
            if !own && self.reserved.contains_key(&ip) {
                return Err(Refusal::Wrong);
            }
            if !own && !self.gives(tenant, ip) || !create && held != Some(ip) {
                return Err(Refusal::Unknown);
            }
            if self.is_kept(tenant, ip) {
                return Err(Refusal::Kept);
            }
        }
        let retried = held_lease.is_some_and(|lease| lease.state == State::Bound && lease.xid == xid);
        self.settle(ip, owner, tenant, State::Bound, until, xid);
        Ok(retried)
    }

    /// The address reserved for the machine in this subnet.
    pub(super) fn reservation(&self, tenant: &Tenant) -> Option<Ipv4Addr> {
        self.reservations.get(&(tenant.mac?, tenant.subnet)).copied()
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
            Some((held, lease)) if held == ip && lease.state.is_live() => {
                self.remove(ip);
                self.remember(ip, lease, now);
                true
            }
            _ => false,
        }
    }

    /// Puts an address aside that the machine found in use; true when the machine had it.
    pub(super) fn decline(&mut self, tenant: &Tenant, ip: Ipv4Addr, now: Instant) -> bool {
        match self.held(tenant) {
            Some((held, lease)) if held == ip && lease.state.is_live() => {
                self.remove(ip);
                self.insert(ip, Lease { state: State::Quarantined, at: now + QUARANTINE, ..lease });
                true
            }
            _ => false,
        }
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

    fn find(&self, tenant: &Tenant, owner: &Owner, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, DropReason> {
        let pool = self.pool(tenant.subnet).ok_or(DropReason::NoRange)?;
        if let Some(ip) = wanted.filter(|ip| pool.gives(*ip) && self.is_open_to(*ip, owner)) {
            return Ok(ip);
        }
        pool.find_free(owner.hardware.spread())
            .or_else(|| pool.remembered.iter().map(|(_, ip)| *ip).find(|ip| pool.gives(*ip)))
            .ok_or(DropReason::PoolExhausted)
    }

    /// Makes `ip` the machine's only record, whoever was remembered there before.
    fn settle(&mut self, ip: Ipv4Addr, owner: Owner, tenant: &Tenant, state: State, at: Instant, xid: u32) {
        if let Some(held) = self.by_owner.get(&owner).copied() {
            self.remove(held);
        }
        self.remove(ip);
        let stranger = !tenant.registered;
        self.insert(ip, Lease { owner, subnet: tenant.subnet, state, at, stranger, xid });
    }

    /// Reservations need no memory: only addresses a pool gives are remembered.
    fn remember(&mut self, ip: Ipv4Addr, lease: Lease, at: Instant) {
        if self.pool(lease.subnet).is_some_and(|pool| pool.gives(ip)) {
            self.insert(ip, Lease { state: State::Remembered, at, ..lease });
        }
    }

    fn insert(&mut self, ip: Ipv4Addr, lease: Lease) {
        if let Some(Some(pool)) = self.pools.get_mut(lease.subnet)
            && let Some(index) = pool.index(ip)
        {
            set(&mut pool.taken, index, true);
            pool.strangers += u32::from(lease.stranger && lease.state.is_live());
            if lease.state == State::Remembered {
                pool.remembered.insert((lease.at, ip));
            }
        }
        if lease.state != State::Remembered {
            self.deadlines.insert((lease.at, ip));
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
            pool.strangers -= u32::from(lease.stranger && lease.state.is_live());
            pool.remembered.remove(&(lease.at, ip));
        }
        self.deadlines.remove(&(lease.at, ip));
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
            let timed = self.deadlines.contains(&(lease.at, *ip));
            assert_eq!(timed, lease.state != State::Remembered, "{ip} {lease:?}");
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
            assert_eq!(pool.strangers as usize, inside(&|lease| lease.stranger && lease.state.is_live()));
            assert_eq!(pool.remembered.len(), inside(&|lease| lease.state == State::Remembered));
        }
    }
}

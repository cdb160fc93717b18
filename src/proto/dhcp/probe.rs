//! Whether an address is free although nobody has it here: asked on the wire before it is offered first (RFC 2131
//! §4.3.1).
//!
//! ```text
//!   DISCOVER -> an address nobody has -> Verdict::Probe ----- nothing is heard ------> the same DISCOVER again: OFFER
//!                                             |
//!                                             +-- somebody answers: quarantine -> the DISCOVER again: another address
//! ```
//!
//! Nothing is kept of the DISCOVER: whoever asks the wire keeps it and hands it in again, when the time is up or
//! [`super::Server::heard_from`] says so. If it never comes again, the machine's own next DISCOVER does as well.
//!
//! Anybody on the link can answer for any address, and decline any it is given: who does so with too many ([`Claims`]) is
//! not believed, as if nobody had answered, or the address had been given back.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::leases::{Keyed, PoolUse, QUARANTINE};
use crate::wire::MacAddr;

/// Addresses asked for at once. What is beyond it is offered unasked: in a storm of machines an address that might be in
/// use is better than none, and a machine that finds it so declines it.
pub(super) const PROBES_MAX: usize = 4096;

/// A question to the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Whoever has this address is to answer.
    pub ip: Ipv4Addr,
    /// The address is of another network, behind this relay: by ICMP echo, since ARP does not reach there.
    pub relay: Option<Ipv4Addr>,
    /// When the DISCOVER is to be handed in again if nobody does.
    pub until: Instant,
}

/// What is known of an address about to be offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// To be asked for, until then.
    Ask(Instant),
    /// Being asked for.
    Asked,
    /// It was asked for, and nobody answered.
    Silent,
    /// It need not be asked for.
    Known,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Probes {
    wait: Duration,
    /// Addresses asked for, and until when.
    asked: HashMap<Ipv4Addr, Instant, Keyed>,
}

impl Probes {
    pub(super) fn new(wait: Duration, keyed: Keyed) -> Self {
        Self { wait, asked: HashMap::with_hasher(keyed) }
    }

    /// How long answers are waited for from now on; zero: nothing is asked.
    pub(super) fn set_wait(&mut self, wait: Duration) {
        self.wait = wait;
        if wait.is_zero() {
            self.asked.clear();
        }
    }

    /// What to do with an address about to be offered; `fresh` when its machine neither has it nor had it last.
    pub(super) fn standing(&mut self, now: Instant, ip: Ipv4Addr, fresh: bool) -> Standing {
        if self.wait.is_zero() {
            return Standing::Known;
        }
        match self.asked.get(&ip) {
            Some(until) if !fresh && now < *until => return Standing::Asked,
            Some(_) if !fresh => {
                self.asked.remove(&ip);
                return Standing::Silent;
            }
            // Left by a machine that is gone.
            Some(_) => drop(self.asked.remove(&ip)),
            None if !fresh => return Standing::Known,
            None => {}
        }
        if self.asked.len() >= PROBES_MAX {
            self.asked.retain(|_, until| *until > now);
        }
        if self.asked.len() >= PROBES_MAX {
            return Standing::Known;
        }
        let until = now + self.wait;
        self.asked.insert(ip, until);
        Standing::Ask(until)
    }

    /// True while the address is asked for.
    pub(super) fn is_asked(&self, ip: Ipv4Addr) -> bool {
        self.asked.contains_key(&ip)
    }

    /// Somebody has it: the question is answered.
    pub(super) fn answered(&mut self, ip: Ipv4Addr) {
        self.asked.remove(&ip);
    }
}

/// What an answer for an address means ([`super::Server::heard_from`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeAnswer {
    /// Nobody asked for that address.
    Unasked,
    /// Somebody has it, and it is put aside: what waits for it is to be handed in again.
    InUse,
    /// The machine that is to be offered it has it already: what waits for it is to be handed in again.
    ItsOwn,
    /// Whoever answered is not believed: the address is waited for as before.
    Disbelieved,
}

/// Addresses that one hardware address may have put aside at a time. A machine with more of its own in a range is better
/// taken out of it; a router with proxy ARP, and whoever means harm, answers for all.
pub(super) const CLAIMS_OF_ONE_MAX: usize = 8;
/// Addresses that are put aside at a time on the word of others, whoever they are.
const CLAIMS_MAX: usize = 1024;

/// For which addresses somebody answered, or which were declined, within [`QUARANTINE`]: as long as each stays put aside.
#[derive(Debug, Default)]
pub(super) struct Claims {
    believed: VecDeque<Claim>,
    /// When an operator was last told that some are not.
    told: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    at: Instant,
    ip: Ipv4Addr,
    by: Option<MacAddr>,
}

impl Claims {
    /// Whether an answer or a DECLINE is to be believed: not of who has too many addresses already, nor for the last quarter of a pool,
    /// since hardware addresses can be made up.
    pub(super) fn is_believed(&mut self, now: Instant, by: Option<MacAddr>, pool: Option<PoolUse>) -> bool {
        while self.believed.front().is_some_and(|claim| now.duration_since(claim.at) >= QUARANTINE) {
            self.believed.pop_front();
        }
        let count = |is: &dyn Fn(&Claim) -> bool| self.believed.iter().filter(|claim| is(claim)).count();
        // By ICMP nobody's hardware address is known, and some DECLINEs have none that is a MAC.
        let is_his_own = by.is_none() || count(&|claim| claim.by == by) < CLAIMS_OF_ONE_MAX;
        let leaves_some = pool.is_none_or(|pool| {
            let max = (u64::from(pool.len) * 3 / 4).max(1);
            (count(&|claim| pool.network.contains(claim.ip)) as u64) < max
        });
        is_his_own && leaves_some && self.believed.len() < CLAIMS_MAX
    }

    /// An address was put aside.
    pub(super) fn note(&mut self, now: Instant, ip: Ipv4Addr, by: Option<MacAddr>) {
        self.believed.push_back(Claim { at: now, ip, by });
    }

    /// True when an operator is to be told that somebody is not believed: once as long as addresses are put aside.
    pub(super) fn is_news(&mut self, now: Instant) -> bool {
        let news = self.told.is_none_or(|told| now.duration_since(told) >= QUARANTINE);
        if news {
            self.told = Some(now);
        }
        news
    }
}

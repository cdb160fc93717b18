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

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::leases::Keyed;

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

    /// Somebody answered; true when the address was asked for.
    pub(super) fn heard_from(&mut self, ip: Ipv4Addr) -> bool {
        self.asked.remove(&ip).is_some()
    }
}

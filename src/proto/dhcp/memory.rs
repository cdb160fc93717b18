//! What is remembered of machines between two of their messages, leases aside: a fixed table, where a newer machine
//! takes the place of an older one. Forgetting is harmless, so strangers can do no more than cause it.

use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use super::leases::Keyed;
use crate::wire::{Arch, MacAddr};

/// Machines remembered at once.
const SEEN_COUNT: usize = 4096;
/// Interfaces on which other PXE servers are remembered.
const INTERFACE_COUNT: usize = 16;
/// How long another PXE server counts as present after it was heard.
const RIVAL_PRESENT: Duration = Duration::from_secs(600);
/// A machine once left to the other server is answered for this long: its retries and its later stages.
const ANSWERED_AFTER_RETRY: Duration = Duration::from_secs(120);
/// Two copies of one DISCOVER (direct and relayed) come closer together than a retry does; iPXE's first is after 1 s.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
struct Seen {
    mac: MacAddr,
    arch: Option<Arch>,
    deferred_at: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    seen: Box<[Seen]>,
    /// Interface index and when another PXE server was last heard on it.
    rivals: [Option<(u32, Instant)>; INTERFACE_COUNT],
    keyed: Keyed,
}

impl Memory {
    pub(super) fn new(keyed: Keyed) -> Self {
        // The zero address is no machine's, so an empty place matches nobody.
        let empty = Seen { mac: MacAddr::default(), arch: None, deferred_at: None };
        Self { seen: vec![empty; SEEN_COUNT].into_boxed_slice(), rivals: [None; INTERFACE_COUNT], keyed }
    }

    /// The architecture the machine last named.
    pub(super) fn arch(&self, mac: MacAddr) -> Option<Arch> {
        self.seen.get(self.place(mac)).filter(|seen| seen.mac == mac)?.arch
    }

    /// Remembers the architecture a machine names.
    pub(super) fn note_arch(&mut self, mac: MacAddr, arch: Arch) {
        self.seen_mut(mac).arch = Some(arch);
    }

    /// Another PXE server was heard on an interface.
    pub(super) fn note_rival(&mut self, interface_index: u32, now: Instant) {
        let known =
            self.rivals.iter().position(|rival| rival.is_some_and(|(index, _)| index == interface_index));
        let place = known.or_else(|| self.rivals.iter().position(Option::is_none)).unwrap_or(0);
        self.rivals[place] = Some((interface_index, now));
    }

    /// True when a DISCOVER of a machine without a job is to be left to another PXE server: one was heard here
    /// lately, and this is not yet the machine's retry.
    pub(super) fn defers(&mut self, interface_index: u32, mac: MacAddr, now: Instant) -> bool {
        let present = self.rivals.iter().flatten().any(|(index, heard)| {
            *index == interface_index && now.saturating_duration_since(*heard) < RIVAL_PRESENT
        });
        if !present {
            return false;
        }
        let seen = self.seen_mut(mac);
        match seen.deferred_at.map(|at| now.saturating_duration_since(at)) {
            Some(since) if since < RETRY_AFTER_MIN => true,
            Some(since) if since < ANSWERED_AFTER_RETRY => false,
            _ => {
                seen.deferred_at = Some(now);
                true
            }
        }
    }

    fn seen_mut(&mut self, mac: MacAddr) -> &mut Seen {
        let place = self.place(mac);
        let seen = &mut self.seen[place];
        if seen.mac != mac {
            *seen = Seen { mac, arch: None, deferred_at: None };
        }
        seen
    }

    fn place(&self, mac: MacAddr) -> usize {
        self.keyed.hash_one(mac) as usize % SEEN_COUNT
    }
}

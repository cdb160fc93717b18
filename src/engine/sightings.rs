//! Which machine was last seen at an address: written by the core that owns DHCP, read by every core, never locked.
//!
//! Used for hints only: which loader a TFTP request means, whose timeline a transfer belongs to. It is no identity.
//!
//! A fixed, direct-mapped table: an address has one place, a newer address with the same hash takes it over, so
//! memory is bounded whatever a LAN sends. One entry is two words:
//!
//! ```text
//! tag:  address (32) | architecture (16) | writes (16)      machine: MAC address (48)
//! ```
//!
//! Protocol, with one writer: the writer stores 0 to `tag` (Relaxed), then the machine (Release: no reader that
//! sees the new machine can still see the old tag *after* it), then the new tag (Release). A reader loads `tag`
//! (Acquire), the machine (Acquire), and `tag` again (Relaxed, ordered after by the Acquire); equal tags mean the
//! machine belongs to them, because `writes` makes every tag of a place differ from the one before.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::{Arch, MacAddr};

/// Places; 64 Ki addresses at 16 bytes are 1 MiB.
const PLACES: usize = 1 << 16;

#[derive(Debug, Default)]
struct Place {
    tag: AtomicU64,
    machine: AtomicU64,
}

/// The table.
#[derive(Debug)]
pub struct Sightings {
    places: Box<[Place]>,
}

/// Who was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Option 93 of its DHCP exchange.
    pub arch: Arch,
    /// Differs from the one before whenever the machine speaks DHCP again. Set by [`Sightings::record`].
    pub exchange: u16,
}

impl Default for Sightings {
    fn default() -> Self {
        Self::new()
    }
}

impl Sightings {
    /// An empty table.
    pub fn new() -> Self {
        Self { places: (0..PLACES).map(|_| Place::default()).collect() }
    }

    fn place(&self, addr: Ipv4Addr) -> &Place {
        // Fibonacci hashing: neighbours on one subnet spread over the table.
        let hash = u32::from(addr).wrapping_mul(0x9e37_79b1) >> 16;
        &self.places[hash as usize % PLACES]
    }

    /// Records a machine at an address. One thread only.
    pub fn record(&self, addr: Ipv4Addr, seen: Sighting) {
        let place = self.place(addr);
        let writes = place.tag.load(Ordering::Relaxed).wrapping_add(1) & 0xffff;
        let mut mac = [0; 8];
        mac[2..].copy_from_slice(&seen.mac.0);
        place.tag.store(0, Ordering::Relaxed);
        place.machine.store(u64::from_be_bytes(mac), Ordering::Release);
        let tag = u64::from(u32::from(addr)) << 32 | u64::from(seen.arch.0) << 16 | writes;
        place.tag.store(tag, Ordering::Release);
    }

    /// Who was last seen at an address.
    pub fn at(&self, addr: Ipv4Addr) -> Option<Sighting> {
        let place = self.place(addr);
        let tag = place.tag.load(Ordering::Acquire);
        let machine = place.machine.load(Ordering::Acquire);
        if tag != place.tag.load(Ordering::Relaxed) || tag >> 32 != u64::from(u32::from(addr)) || tag == 0 {
            return None;
        }
        let bytes = machine.to_be_bytes();
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[2..]);
        Some(Sighting { mac: MacAddr(mac), arch: Arch((tag >> 16) as u16), exchange: tag as u16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(n: u8) -> Sighting {
        Sighting { mac: MacAddr([2, 0, 0, 0, 0, n]), arch: Arch(u16::from(n)), exchange: 0 }
    }

    #[test]
    fn the_last_machine_at_an_address_is_found_and_others_are_not() {
        let table = Sightings::new();
        let addr = Ipv4Addr::new(10, 77, 0, 5);
        assert_eq!(table.at(addr), None);
        table.record(addr, seen(1));
        table.record(addr, seen(7));
        let found = table.at(addr).expect("just recorded");
        assert_eq!((found.mac, found.arch), (seen(7).mac, seen(7).arch));
        table.record(addr, seen(7));
        assert_ne!(table.at(addr).expect("still there").exchange, found.exchange, "it spoke again");
        assert_eq!(table.at(Ipv4Addr::new(10, 77, 0, 6)), None);
    }

    #[test]
    fn readers_never_see_half_a_machine() {
        let table = Sightings::new();
        let addr = Ipv4Addr::new(10, 77, 0, 5);
        // A reader that is done before the writer has begun has found somebody all the same.
        table.record(addr, seen(0));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut reads, mut found) = (0, 0);
                while reads < 200_000 || found == 0 {
                    reads += 1;
                    if let Some(who) = table.at(addr) {
                        assert_eq!(u16::from(who.mac.0[5]), who.arch.0);
                        found += 1;
                    }
                }
                found
            });
            for n in 0..200_000u32 {
                table.record(addr, seen(n as u8));
            }
            assert!(reader.join().unwrap() > 0, "a reader sees machines at all");
        });
    }
}

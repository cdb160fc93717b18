//! Which machine was last seen at an address: written by the core that owns DHCP, read by every core, never locked.
//!
//! Used for hints only: which loader a TFTP request means, whose timeline a transfer belongs to, whether who asks in a
//! machine's name asks from where that machine is. It is no identity.
//!
//! Two fixed, direct-mapped tables, one by address and one by machine: each has one place, a newer one with the same hash
//! takes it over, so memory is bounded whatever a LAN sends. One entry is a few words:
//!
//! ```text
//! tag:  address (32) | architecture (16) | writes (16)      rest: MAC address (48), UUID (128), circuit (64)
//! tag:  MAC address (48) | writes (16)                      rest: address (32)
//! ```
//!
//! Protocol, with one writer: the writer stores 0 to `tag` (Relaxed), then the rest (Release: no reader that
//! sees the new rest can still see the old tag *after* it), then the new tag (Release). A reader loads `tag`
//! (Acquire), the rest (Acquire), and `tag` again (Relaxed, ordered after by the Acquire); equal tags mean the
//! rest belongs to them, because `writes` makes every tag of a place differ from the one before.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::jobs::rule::CircuitMark;
use crate::wire::{Arch, MacAddr, Uuid};

/// Places for addresses; 64 Ki at 40 bytes are 2.5 MiB.
const PLACES: usize = 1 << 16;
/// Places for machines: 256 KiB.
const HOMES: usize = 1 << 14;

#[derive(Debug)]
struct Place<const REST: usize> {
    tag: AtomicU64,
    rest: [AtomicU64; REST],
}

impl<const REST: usize> Default for Place<REST> {
    fn default() -> Self {
        Self { tag: AtomicU64::new(0), rest: [const { AtomicU64::new(0) }; REST] }
    }
}

impl<const REST: usize> Place<REST> {
    /// One thread only. The low 16 bits of `tag` are the count of writes.
    fn write(&self, tag: u64, rest: [u64; REST]) {
        let writes = self.tag.load(Ordering::Relaxed).wrapping_add(1) & 0xffff;
        self.tag.store(0, Ordering::Relaxed);
        self.rest.iter().zip(rest).for_each(|(word, value)| word.store(value, Ordering::Release));
        self.tag.store(tag | writes, Ordering::Release);
    }

    /// Tag and rest that belong together; `None` while they are written, and where nothing was.
    fn read(&self) -> Option<(u64, [u64; REST])> {
        let tag = self.tag.load(Ordering::Acquire);
        let rest = self.rest.each_ref().map(|word| word.load(Ordering::Acquire));
        (tag != 0 && tag == self.tag.load(Ordering::Relaxed)).then_some((tag, rest))
    }
}

/// The table.
#[derive(Debug)]
pub struct Sightings {
    places: Box<[Place<4>]>,
    homes: Box<[Place<1>]>,
}

/// Who was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Option 93 of its DHCP exchange.
    pub arch: Arch,
    /// Option 97 of its DHCP exchange.
    pub uuid: Option<Uuid>,
    /// The circuit that a relay named in its DHCP exchange.
    pub circuit: Option<CircuitMark>,
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
        Self {
            places: (0..PLACES).map(|_| Place::default()).collect(),
            homes: (0..HOMES).map(|_| Place::default()).collect(),
        }
    }

    fn place(&self, addr: Ipv4Addr) -> &Place<4> {
        // Fibonacci hashing: neighbours on one subnet spread over the table.
        let hash = u32::from(addr).wrapping_mul(0x9e37_79b1) >> 16;
        &self.places[hash as usize % PLACES]
    }

    fn home(&self, mac: u64) -> &Place<1> {
        let hash = mac.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        &self.homes[hash as usize % HOMES]
    }

    /// Records a machine at an address. One thread only.
    pub fn record(&self, addr: Ipv4Addr, seen: Sighting) {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&seen.mac.0);
        let (mac, addr_bits) = (u64::from_be_bytes(bytes), u64::from(u32::from(addr)));
        // None is written as the UUID of zeros, which is nobody's.
        let uuid = u128::from_be_bytes(seen.uuid.map_or([0; 16], |uuid| uuid.0));
        let rest = [mac, (uuid >> 64) as u64, uuid as u64, seen.circuit.map_or(0, CircuitMark::bits)];
        self.place(addr).write(addr_bits << 32 | u64::from(seen.arch.0) << 16, rest);
        self.home(mac).write(mac << 16, [addr_bits]);
    }

    /// Who was last seen at an address.
    pub fn at(&self, addr: Ipv4Addr) -> Option<Sighting> {
        let (tag, [mac, high, low, circuit]) = self.place(addr).read()?;
        if tag >> 32 != u64::from(u32::from(addr)) {
            return None;
        }
        let bytes = mac.to_be_bytes();
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[2..]);
        let uuid = u128::from(high) << 64 | u128::from(low);
        Some(Sighting {
            mac: MacAddr(mac),
            arch: Arch((tag >> 16) as u16),
            uuid: (uuid != 0).then(|| Uuid(uuid.to_be_bytes())),
            circuit: CircuitMark::from_bits(circuit),
            exchange: tag as u16,
        })
    }

    /// Where a machine was last seen.
    pub fn of(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&mac.0);
        let mac = u64::from_be_bytes(bytes);
        let (tag, [addr]) = self.home(mac).read()?;
        (tag >> 16 == mac).then(|| Ipv4Addr::from(addr as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(n: u8) -> Sighting {
        let uuid = (n > 0).then_some(Uuid([n; 16]));
        let circuit = uuid.map(|_| CircuitMark::of(&[n]));
        Sighting { mac: MacAddr([2, 0, 0, 0, 0, n]), arch: Arch(u16::from(n)), uuid, circuit, exchange: 0 }
    }

    #[test]
    fn the_last_machine_at_an_address_is_found_and_others_are_not() {
        let table = Sightings::new();
        let addr = Ipv4Addr::new(10, 77, 0, 5);
        assert_eq!(table.at(addr), None);
        table.record(addr, seen(1));
        table.record(addr, seen(7));
        let found = table.at(addr).expect("just recorded");
        assert_eq!(Sighting { exchange: 0, ..found }, seen(7));
        table.record(addr, seen(7));
        assert_ne!(table.at(addr).expect("still there").exchange, found.exchange, "it spoke again");
        let other = Ipv4Addr::new(10, 77, 0, 6);
        assert_eq!(table.at(other), None);
        assert_eq!((table.of(seen(1).mac), table.of(seen(7).mac)), (Some(addr), Some(addr)));
        table.record(other, seen(7));
        assert_eq!((table.of(seen(7).mac), table.of(seen(9).mac)), (Some(other), None));
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
                        assert_eq!(Sighting { exchange: 0, ..who }, seen(who.mac.0[5]));
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

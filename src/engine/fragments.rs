//! Which machines fragments do not reach, so that their next request is given blocks that need none.
//!
//! Written when a transfer of large blocks gets nowhere, read only for requests that ask for such blocks; one place per
//! address, and whoever comes to the same place later takes it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Addresses remembered.
const PLACES: usize = 1024;
/// How long. A cable is replaced, a tunnel goes.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Addresses and when (seconds since the start, from 1) they were noted, packed: a place is read and written whole.
#[derive(Debug)]
pub struct FragmentsLost {
    places: Box<[AtomicU64]>,
    start: Instant,
}

impl FragmentsLost {
    /// Nobody yet.
    pub fn new(now: Instant) -> Self {
        Self { places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(), start: now }
    }

    /// Remembers an address; true when it was not known.
    pub fn note(&self, now: Instant, address: Ipv4Addr) -> bool {
        let known = self.contains(now, address);
        let packed = u64::from(u32::from(address)) << 32 | u64::from(self.seconds(now));
        self.place(address).store(packed, Ordering::Relaxed);
        !known
    }

    /// True for an address noted in the last ten minutes.
    pub fn contains(&self, now: Instant, address: Ipv4Addr) -> bool {
        let packed = self.place(address).load(Ordering::Relaxed);
        let age = self.seconds(now).saturating_sub(packed as u32);
        packed >> 32 == u64::from(u32::from(address))
            && packed as u32 != 0
            && u64::from(age) < REMEMBERED_FOR.as_secs()
    }

    fn place(&self, address: Ipv4Addr) -> &AtomicU64 {
        let hash = u32::from(address).wrapping_mul(0x9e37_79b1) >> 22;
        &self.places[hash as usize % PLACES]
    }

    fn seconds(&self, now: Instant) -> u32 {
        (now.saturating_duration_since(self.start).as_secs() as u32).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_remembered_for_ten_minutes() {
        let start = Instant::now();
        let lost = FragmentsLost::new(start);
        let (one, two) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        assert!(!lost.contains(start, one) && !lost.contains(start, Ipv4Addr::UNSPECIFIED));
        assert!(lost.note(start, one));
        assert!(!lost.note(start, one));
        assert!(lost.contains(start + Duration::from_secs(599), one) && !lost.contains(start, two));
        assert!(!lost.contains(start + Duration::from_secs(600), one));
        assert!(lost.note(start + Duration::from_secs(700), one), "anew");
    }

    #[test]
    fn any_number_of_addresses_takes_the_same_room() {
        let start = Instant::now();
        let lost = FragmentsLost::new(start);
        let addresses = || (0..100_000).map(|n| Ipv4Addr::from(0x0a00_0000 + n));
        for address in addresses() {
            lost.note(start, address);
        }
        assert!(addresses().filter(|address| lost.contains(start, *address)).count() <= PLACES);
        assert!(lost.contains(start, Ipv4Addr::from(0x0a00_0000 + 99_999)), "the latest has its place");
    }
}

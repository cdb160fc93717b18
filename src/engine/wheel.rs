//! Deadlines of one core: a hashed wheel. Scheduling and firing cost the same whatever is waiting.
//!
//! Nothing is ever cancelled. A key that fires early (its owner has moved its deadline since) is simply scheduled
//! again by the owner, and a key whose owner is gone is recognised by its generation. So an owner keeps at most one
//! entry in the wheel, whatever happens to its deadline.

use std::time::{Duration, Instant};

/// Length of one slot: what the loop's own waiting can tell apart. Pieces of a TFTP window leave so far from each other.
const TICK: Duration = Duration::from_millis(1);
/// Slots; a revolution is about a second, later deadlines go round.
const SLOTS: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Entry {
    at_tick: u64,
    key: u64,
}

/// The wheel.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<Entry>>,
    /// One bit per slot that has entries.
    filled: [u64; SLOTS / 64],
    start: Instant,
    /// Every tick before this one has fired.
    now_tick: u64,
    len: usize,
}

impl Wheel {
    /// An empty wheel that begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self { slots: vec![Vec::new(); SLOTS], filled: [0; SLOTS / 64], start: now, now_tick: 0, len: 0 }
    }

    /// Entries waiting.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn tick_of(&self, at: Instant) -> u64 {
        // Rounded up, so that nothing fires before its deadline.
        at.saturating_duration_since(self.start).as_nanos().div_ceil(TICK.as_nanos()) as u64
    }

    /// Fires `key` once `at` has passed.
    pub fn schedule(&mut self, at: Instant, key: u64) {
        let at_tick = self.tick_of(at).max(self.now_tick);
        let slot = (at_tick % SLOTS as u64) as usize;
        self.slots[slot].push(Entry { at_tick, key });
        self.filled[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
    }

    /// Moves every key whose time has come to `fired`.
    pub fn expire(&mut self, now: Instant, fired: &mut Vec<u64>) {
        let end = now.saturating_duration_since(self.start).as_nanos() as u64 / TICK.as_nanos() as u64;
        if end < self.now_tick {
            return;
        }
        // After a long sleep one revolution visits every slot.
        for tick in self.now_tick..=end.min(self.now_tick + SLOTS as u64 - 1) {
            let slot = (tick % SLOTS as u64) as usize;
            if self.filled[slot / 64] & 1 << (slot % 64) == 0 {
                continue;
            }
            let entries = &mut self.slots[slot];
            let before = entries.len();
            entries.retain(|entry| {
                let due = entry.at_tick <= end;
                if due {
                    fired.push(entry.key);
                }
                !due
            });
            self.len -= before - entries.len();
            if entries.is_empty() {
                self.filled[slot / 64] &= !(1 << (slot % 64));
            }
        }
        self.now_tick = end + 1;
    }

    /// When to look again: the first slot with entries. It may hold only entries of a later revolution, in which
    /// case the look finds nothing due.
    pub fn next(&self) -> Option<Instant> {
        if self.len == 0 {
            return None;
        }
        let first = (self.now_tick % SLOTS as u64) as usize;
        // The word with the first slot is looked at twice: from that slot on, and at last what is before it.
        let ahead = (0..=SLOTS / 64).find_map(|step| {
            let at = (first / 64 + step) % (SLOTS / 64);
            let from_first = u64::MAX << (first % 64);
            let mask = match step {
                0 => from_first,
                step if step == SLOTS / 64 => !from_first,
                _ => u64::MAX,
            };
            let found = self.filled[at] & mask;
            (found != 0).then(|| (step * 64 + found.trailing_zeros() as usize) - first % 64)
        })?;
        let tick = self.now_tick + ahead as u64;
        Some(self.start + TICK * u32::try_from(tick).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn nothing_fires_early_and_everything_fires_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let deadlines = [0u64, 1, 8, 9, 250, 1000, 8191, 8192, 9000, 30_000];
        for (key, at) in deadlines.iter().enumerate() {
            wheel.schedule(start + ms(*at), key as u64);
        }
        let mut seen = vec![None; deadlines.len()];
        let mut fired = Vec::new();
        for now in (0..40_000).step_by(3) {
            wheel.expire(start + ms(now), &mut fired);
            for key in fired.drain(..) {
                assert_eq!(seen[key as usize], None, "key {key} fired twice");
                seen[key as usize] = Some(now);
            }
        }
        for (at, seen) in deadlines.iter().zip(seen) {
            let seen = seen.expect("fired");
            assert!(seen >= *at && seen <= at + 12, "deadline {at} fired at {seen}");
        }
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_long_sleep_fires_all_that_was_due() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for key in 0..100 {
            wheel.schedule(start + ms(key * 500), key);
        }
        let mut fired = Vec::new();
        wheel.expire(start + ms(25_000), &mut fired);
        fired.sort_unstable();
        assert_eq!(fired, (0..=50).collect::<Vec<_>>());
        assert_eq!(wheel.len(), 49);
    }

    #[test]
    fn the_next_look_is_never_after_the_first_deadline() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        assert_eq!(wheel.next(), None);
        wheel.schedule(start + ms(20_000), 1);
        wheel.schedule(start + ms(100), 2);
        let next = wheel.next().unwrap();
        assert!(next >= start + ms(100) && next <= start + ms(108), "{:?}", next - start);
        // Wherever the wheel stands, what is next is found, before and behind its turn.
        for now in [1u64, 63, 64, 65, 700, 1023, 1024, 1500] {
            for wait in [0u64, 1, 2, 62, 63, 64, 65, 128, 960, 1000, 1022] {
                let mut wheel = Wheel::new(start);
                wheel.expire(start + ms(now), &mut Vec::new());
                let at = start + ms(now + 1 + wait);
                wheel.schedule(at, 1);
                assert_eq!(wheel.next(), Some(at), "{wait} ms after {now}");
            }
        }
    }
}

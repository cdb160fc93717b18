//! Deadlines of one core: a hashed wheel of milliseconds, where scheduling and firing cost the same whatever is waiting,
//! and a heap for the few that are so near that a millisecond would be far off: the pieces of a TFTP window leave a round
//! trip apart.
//!
//! Nothing is ever cancelled. A key that fires early (its owner has moved its deadline since) is simply scheduled
//! again by the owner, and a key whose owner is gone is recognised by its generation. So an owner keeps at most one
//! entry in the wheel, whatever happens to its deadline.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Length of one slot: what `epoll_wait` can tell apart.
const TICK: Duration = Duration::from_millis(1);
/// Deadlines nearer than this are kept to the nanosecond.
const NEAR: Duration = Duration::from_millis(16);
/// Slots; a revolution is about a second, later deadlines go round.
const SLOTS: usize = 1024;

/// Twelve bytes, since every transfer has one: the low half of its tick, enough for deadlines less than 24 days ahead, and
/// the halves of its key.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at_tick: u32,
    key: [u32; 2],
}

impl Entry {
    fn new(at_tick: u64, key: u64) -> Self {
        Self { at_tick: at_tick as u32, key: [(key >> 32) as u32, key as u32] }
    }

    fn is_due(self, now_tick: u64) -> bool {
        (now_tick as u32).wrapping_sub(self.at_tick) as i32 >= 0
    }

    fn key(self) -> u64 {
        u64::from(self.key[0]) << 32 | u64::from(self.key[1])
    }
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
    /// When it was last looked at.
    now: Instant,
    near: BinaryHeap<Reverse<(Instant, u64)>>,
    len: usize,
}

impl Wheel {
    /// An empty wheel that begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            slots: vec![Vec::new(); SLOTS],
            filled: [0; SLOTS / 64],
            start: now,
            now_tick: 0,
            now,
            near: BinaryHeap::new(),
            len: 0,
        }
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
        self.len += 1;
        if at.saturating_duration_since(self.now) < NEAR {
            return self.near.push(Reverse((at, key)));
        }
        let at_tick = self.tick_of(at).max(self.now_tick);
        let slot = (at_tick % SLOTS as u64) as usize;
        self.slots[slot].push(Entry::new(at_tick, key));
        self.filled[slot / 64] |= 1 << (slot % 64);
    }

    /// Moves every key whose time has come to `fired`.
    pub fn expire(&mut self, now: Instant, fired: &mut Vec<u64>) {
        self.now = now;
        while let Some(Reverse((at, key))) = self.near.peek()
            && *at <= now
        {
            fired.push(*key);
            self.near.pop();
            self.len -= 1;
        }
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
                let due = entry.is_due(end);
                if due {
                    fired.push(entry.key());
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

    /// When to look again: the nearest deadline, or the first slot with entries, which may all be of a later revolution:
    /// then the look finds nothing due.
    pub fn next(&self) -> Option<Instant> {
        self.next_near().into_iter().chain(self.next_slot()).min()
    }

    /// The nearest of the deadlines that are kept exactly: waiting to the next millisecond would miss it.
    pub fn next_near(&self) -> Option<Instant> {
        self.near.peek().map(|Reverse((at, _))| *at)
    }

    fn next_slot(&self) -> Option<Instant> {
        if self.len == self.near.len() {
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
        Some(self.start + Duration::from_millis(tick))
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
        assert_eq!(wheel.next_near(), None);
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

    #[test]
    fn near_deadlines_are_kept_exactly() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let us = Duration::from_micros;
        wheel.schedule(start + us(900), 2);
        wheel.schedule(start + us(250), 1);
        wheel.schedule(start + ms(20), 3);
        assert_eq!((wheel.next(), wheel.len()), (Some(start + us(250)), 3));
        let mut fired = Vec::new();
        wheel.expire(start + us(249), &mut fired);
        assert!(fired.is_empty());
        wheel.expire(start + us(250), &mut fired);
        assert_eq!(fired, [1]);
        assert_eq!(wheel.next_near(), Some(start + us(900)));
        wheel.expire(start + ms(1), &mut fired);
        assert_eq!(fired, [1, 2]);
        assert_eq!((wheel.next_near(), wheel.next()), (None, Some(start + ms(20))));
        // Near from now on, whatever was far when the wheel began.
        wheel.schedule(start + ms(10) + us(1), 4);
        assert_eq!(wheel.next(), Some(start + ms(10) + us(1)));
        wheel.expire(start + ms(20), &mut fired);
        assert_eq!(fired, [1, 2, 4, 3]);
        assert!(wheel.is_empty());
    }

    #[test]
    fn weeks_go_round_the_half_of_a_tick() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let mut fired = Vec::new();
        let days = |n: u64| Duration::from_secs(n * 86_400);
        for day in [30, 49, 50, 100] {
            wheel.expire(start + days(day), &mut fired);
            wheel.schedule(start + days(day) + ms(30_000), day);
            wheel.expire(start + days(day) + ms(29_999), &mut fired);
            assert!(fired.is_empty());
            assert_eq!(wheel.next(), Some(start + days(day) + ms(30_000)), "day {day}");
            wheel.expire(start + days(day) + ms(30_000), &mut fired);
            assert_eq!(fired, [day]);
            fired.clear();
        }
    }
}

//! Replies that wait until their leases are on the disk.

use std::time::{Duration, Instant, SystemTime};

use super::DhcpSide;
use super::records::encode;
use super::sending::Route;
use crate::engine::core::{Owner, Turn};
use crate::keeper::Answer;
use crate::keeper::journal::Scribe;
use crate::proto::dhcp::DropReason;

/// Bytes of replies that wait for their leases to be stored.
const HELD_MAX: usize = 4 << 20;
/// Batches for the journal begin so far apart, unless so many leases wait: what comes one by one at a few thousand a second
/// shares a write, a sync and three wake-ups, and no machine notices four milliseconds. The first after a pause goes at once.
const BATCHES_APART: Duration = Duration::from_millis(4);
const BATCH_ENOUGH: usize = 32;

/// Replies that wait, back to back.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    replies: Vec<(Route, usize)>,
}

impl Held {
    fn clear(&mut self) {
        self.bytes.clear();
        self.replies.clear();
    }
}

/// When a batch begins.
#[derive(Debug)]
struct Pace {
    /// No small one before this, ...
    next_at: Instant,
    /// ... where leases are asked for while others are written. A machine alone, whose next lease comes when it has this
    /// one, waits in vain.
    crowded: bool,
    /// What the timer was set for last.
    timer_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Begin {
    Now,
    /// Not yet: the timer is to be set for this.
    At(Instant),
    /// Not yet, and the timer is set.
    Later,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { next_at: now, crowded: false, timer_at: None }
    }

    /// With so many changes that wait for it.
    fn begin(&mut self, now: Instant, waiting: usize) -> Begin {
        if waiting >= BATCH_ENOUGH || now >= self.next_at || !self.crowded {
            // One that waited and nobody joined: it need not have.
            if waiting <= 1 && self.timer_at == Some(self.next_at) {
                self.crowded = false;
            }
            self.next_at = now + BATCHES_APART;
            return Begin::Now;
        }
        match self.timer_at.replace(self.next_at) {
            Some(at) if at == self.next_at => Begin::Later,
            _ => Begin::At(self.next_at),
        }
    }

    /// The batch is written, and meanwhile so many changes have come that wait for the next.
    fn written(&mut self, waiting: usize) {
        self.crowded |= waiting > 0;
    }
}

/// The journal as DHCP uses it: one batch under way, the next gathering.
#[derive(Debug)]
pub(super) struct Journal {
    scribe: Scribe,
    /// Everything up to this change is stored.
    stored: u64,
    /// The last change of the batch under way.
    under_way: Option<u64>,
    pace: Pace,
    sent_when_stored: Held,
    gathering: Held,
}

impl Journal {
    pub(super) fn new(scribe: Scribe, now: Instant) -> Self {
        Self {
            scribe,
            stored: 0,
            under_way: None,
            pace: Pace::new(now),
            sent_when_stored: Held::default(),
            gathering: Held::default(),
        }
    }

    /// True for a change that is not on the disk yet.
    pub(super) fn is_awaited(&self, change: u64) -> bool {
        change > self.stored
    }

    /// Keeps a reply until its lease is stored; false when there is no room.
    pub(super) fn hold(&mut self, route: Route, bytes: &[u8]) -> bool {
        let held = &mut self.gathering;
        if held.bytes.len() + bytes.len() > HELD_MAX {
            return false;
        }
        held.replies.push((route, bytes.len()));
        held.bytes.extend_from_slice(bytes);
        true
    }
}

impl DhcpSide {
    /// Hands what changed to the journal, when it is free.
    pub(super) fn store(&mut self, turn: &mut Turn<'_>) {
        let Some(journal) = &mut self.journal else { return };
        if journal.under_way.is_some() || !self.server.has_changes() {
            return;
        }
        match journal.pace.begin(turn.now, self.server.change_count()) {
            Begin::Now => {}
            Begin::At(at) => return turn.wheel.schedule(at, Owner::DhcpTimer.pack()),
            Begin::Later => return,
        }
        let mut entries = Vec::with_capacity(self.server.change_count());
        // What is stored counts in seconds since 1970, by the clock as it is now: it may have been set since the start.
        let both = (Instant::now(), SystemTime::now());
        let number = self.server.changes(|change| entries.extend(encode(&change, both)));
        std::mem::swap(&mut journal.gathering, &mut journal.sent_when_stored);
        journal.under_way = Some(number);
        if !journal.scribe.write(entries, Owner::DhcpJournal.pack(), turn.desk) {
            self.journalled(Answer::NotNow, turn);
        }
    }

    /// The journal has stored the batch under way, or could not.
    pub(in crate::engine) fn journalled(&mut self, answer: Answer, turn: &mut Turn<'_>) {
        let Some(journal) = &mut self.journal else { return };
        let Some(number) = journal.under_way.take() else { return };
        journal.pace.written(self.server.change_count());
        let mut held = std::mem::take(&mut journal.sent_when_stored);
        if answer == Answer::Go {
            journal.stored = number;
            let mut at = 0;
            for (route, len) in held.replies.drain(..) {
                self.send(route, &held.bytes[at..at + len], turn);
                at += len;
            }
        } else {
            let stored = journal.stored;
            let lost = held.replies.len() + journal.gathering.replies.len();
            journal.gathering.clear();
            self.server.forget_changes_after(stored);
            (0..lost).for_each(|_| turn.tally.drop_dhcp(DropReason::NotStored));
        }
        held.clear();
        if let Some(journal) = &mut self.journal {
            journal.sent_when_stored = held;
        }
        self.release_gathered(turn);
        self.store(turn);
        self.flush(turn);
    }

    /// Replies that gathered but wait for nothing that is not stored by now: repeated REQUESTs.
    fn release_gathered(&mut self, turn: &mut Turn<'_>) {
        let Some(journal) = &mut self.journal else { return };
        if self.server.has_changes() || journal.gathering.replies.is_empty() {
            return;
        }
        let held = std::mem::take(&mut journal.gathering);
        let mut at = 0;
        for (route, len) in &held.replies {
            self.send(*route, &held.bytes[at..at + len], turn);
            at += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_batches_are_apart_and_each_that_waits_has_its_timer() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.begin(start, 1), Begin::Now, "after a pause at once");
        pace.written(1);
        let moment = Duration::from_micros(1);
        let mut at = start;
        for _ in 0..3 {
            let next = at + BATCHES_APART;
            assert_eq!(pace.begin(at + moment, 1), Begin::At(next));
            assert_eq!(pace.begin(at + moment * 2, BATCH_ENOUGH - 1), Begin::Later);
            assert_eq!(pace.begin(next, BATCH_ENOUGH - 1), Begin::Now, "whoever looks at the clock first");
            pace.written(0);
            at = next;
        }
        assert_eq!(pace.begin(at + moment, 1), Begin::At(at + BATCHES_APART));
        // So many do not wait, and who comes behind them has a timer of his own.
        assert_eq!(pace.begin(at + moment * 2, BATCH_ENOUGH), Begin::Now);
        assert_eq!(pace.begin(at + moment * 3, 1), Begin::At(at + moment * 2 + BATCHES_APART));
        assert_eq!(pace.begin(at + BATCHES_APART * 2, 2), Begin::Now);
    }

    #[test]
    fn a_machine_alone_does_not_wait() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut next = |pace: &mut Pace, meanwhile| {
            now += Duration::from_micros(300);
            let begin = pace.begin(now, 1);
            pace.written(meanwhile);
            (now, begin)
        };
        for _ in 0..5 {
            assert_eq!(next(&mut pace, 0).1, Begin::Now);
        }
        // Another one comes while its lease is written, and does not come again: one wait is in vain.
        let (at, begin) = next(&mut pace, 1);
        assert_eq!(begin, Begin::Now);
        let next_at = at + BATCHES_APART;
        assert_eq!(pace.begin(at + BATCHES_APART / 2, 1), Begin::At(next_at));
        assert_eq!(pace.begin(next_at, 1), Begin::Now);
        pace.written(0);
        assert_eq!(pace.begin(next_at + Duration::from_micros(300), 1), Begin::Now);
    }
}

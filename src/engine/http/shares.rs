//! Who of the connections that have a file to send is next: who has had least, of those that could go on.
//!
//! In turns of equal right a receiver with a large window would have a megabyte at each and one with a small window
//! 64 KiB, and who found a full socket would wait for all others before the rest. By what they have had, small windows
//! come round as often as it takes, and all go forward alike, whoever is given how much at a time. This is start-time fair
//! queuing (Goyal, Vin and Cheng, SIGCOMM 1996), with the bytes of a visit known only after it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::engine::slab::Key;

/// The queue. What a connection has had is kept with the connection, as its share in bytes.
#[derive(Default)]
pub(super) struct Shares {
    /// Share, running number of the entry, whose it is.
    waiting: BinaryHeap<Reverse<(u64, u64, Key)>>,
    entries: u64,
    /// The share of who was next last.
    served: u64,
}

impl Shares {
    /// Puts a connection in line that is not in it. Whoever had nothing to send for a while begins beside those that have
    /// had least: idleness saves nothing up.
    pub(super) fn enter(&mut self, key: Key, share: &mut u64) {
        *share = self.served.max(*share);
        self.waiting.push(Reverse((*share, self.entries, key)));
        self.entries += 1;
    }

    /// Takes out who is next; of those with equal shares, who came first.
    pub(super) fn next(&mut self) -> Option<Key> {
        let Reverse((share, _, key)) = self.waiting.pop()?;
        self.served = share;
        Some(key)
    }

    /// Connections in line, those that have ended since among them.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections that can always go on and take so many bytes a visit: what each has after so many visits in all.
    fn given(shares: &mut Shares, takes: &[u64], visits: usize) -> Vec<u64> {
        let key = |index: usize| Key { index: index as u32, generation: 0 };
        let mut share = vec![0; takes.len()];
        let mut had = vec![0; takes.len()];
        (0..takes.len()).for_each(|index| shares.enter(key(index), &mut share[index]));
        for _ in 0..visits {
            let next = shares.next().expect("all of them wait").index as usize;
            had[next] += takes[next];
            share[next] += takes[next];
            shares.enter(key(next), &mut share[next]);
        }
        had
    }

    #[test]
    fn all_go_forward_alike_whatever_they_take_at_a_time() {
        let had = given(&mut Shares::default(), &[2_000, 64, 1_000, 64, 700], 10_000);
        let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
        assert!(*least > 100_000 && most - least <= 2_000, "{had:?}");
    }

    #[test]
    fn equals_come_in_the_order_in_which_they_came() {
        assert_eq!(given(&mut Shares::default(), &[10; 4], 6), [20, 20, 10, 10]);
    }

    #[test]
    fn who_comes_late_waits_for_nobody_and_has_nothing_to_make_up_for() {
        let mut shares = Shares::default();
        let first = given(&mut shares, &[1_000; 3], 3_000);
        assert_eq!(first, [1_000_000; 3]);
        let late = Key { index: 9, generation: 0 };
        let mut share = 0;
        shares.enter(late, &mut share);
        // The last visit was to one of three that had 999,000 then; two of them have had their next thousand since.
        assert_eq!(share, 999_000);
        assert_eq!(shares.next(), Some(late));
        share += 1_000;
        shares.enter(late, &mut share);
        for _ in 0..3 {
            assert_ne!(shares.next(), Some(late));
        }
        assert_eq!(shares.next(), Some(late));
    }

    #[test]
    fn an_empty_line_has_nobody_next() {
        let mut shares = Shares::default();
        assert!(shares.is_empty() && shares.next().is_none());
        shares.enter(Key { index: 1, generation: 0 }, &mut 5);
        assert_eq!((shares.len(), shares.is_empty()), (1, false));
    }
}

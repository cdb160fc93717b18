//! A few words that change together, read without a lock: the slot protocol of [`super`], and nothing else.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::sync::{Atomics, Word};

/// Readings that may fail before the last word alone is taken.
const ROUNDS: usize = if cfg!(models) { 2 } else { 8 };

/// `N` words under a sequence. The last word is the one that may be read alone.
///
/// The sequence counts two for each writing (so half of it is the slot's generation) and is odd within one. It
/// wraps after 2^63 writings, so a reader cannot meet the same one twice.
#[repr(C, align(64))]
pub(super) struct Slot<S: Atomics, const N: usize> {
    sequence: S::Word,
    words: [S::Word; N],
}

/// What a reader got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading<const N: usize> {
    /// All words, of one writing.
    Whole([u64; N]),
    /// A writing is under way; this is the last word, before or after it.
    Last(u64),
}

impl<S: Atomics, const N: usize> Slot<S, N> {
    /// Zeroes.
    pub(super) fn new() -> Self {
        Self { sequence: S::Word::new(0), words: std::array::from_fn(|_| S::Word::new(0)) }
    }

    /// The words of one writing, or the last word alone. Never waits.
    #[inline]
    pub(super) fn read(&self) -> Reading<N> {
        for _ in 0..ROUNDS {
            let before = self.sequence.load(Acquire);
            if before.is_multiple_of(2) {
                let words = std::array::from_fn(|index| self.words[index].load(Relaxed));
                S::fence(Acquire);
                if self.sequence.load(Relaxed) == before {
                    return Reading::Whole(words);
                }
            }
            S::pause();
        }
        Reading::Last(self.words[N - 1].load(Acquire))
    }

    /// Writes all words. Only one thread may write at a time; readers are never wrong for it, but the words would
    /// be mixed.
    pub(super) fn write(&self, words: [u64; N]) {
        let before = self.sequence.load(Relaxed);
        self.sequence.store(before.wrapping_add(1), Relaxed);
        S::fence(Release);
        for (word, value) in self.words.iter().zip(words).take(N - 1) {
            word.store(value, Relaxed);
        }
        self.words[N - 1].store(words[N - 1], Release);
        self.sequence.store(before.wrapping_add(2), Release);
    }

    /// The words, for the one thread that writes them.
    pub(super) fn own(&self) -> [u64; N] {
        std::array::from_fn(|index| self.words[index].load(Relaxed))
    }
}

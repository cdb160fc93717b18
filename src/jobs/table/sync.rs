//! The atomics that the table stands on, as a parameter, so that model checkers can put theirs in place.

use std::sync::atomic::{self, AtomicU64, Ordering};

/// One family of atomics.
pub(super) trait Atomics: 'static {
    /// A word of 64 bits.
    type Word: Word;

    /// A fence.
    fn fence(order: Ordering);

    /// Called between two readings of a slot that is being written.
    fn pause();
}

/// A word that one thread writes and many read.
pub(super) trait Word: Send + Sync {
    fn new(value: u64) -> Self;
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn swap(&self, value: u64, order: Ordering) -> u64;
}

/// The processor's own.
pub(super) struct Real;

impl Atomics for Real {
    type Word = AtomicU64;

    fn fence(order: Ordering) {
        atomic::fence(order);
    }

    fn pause() {
        std::hint::spin_loop();
    }
}

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.swap(value, order)
    }
}

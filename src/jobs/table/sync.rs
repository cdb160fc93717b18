//! The atomics that the table stands on, as a parameter, so that model checkers can put theirs in place.

use std::sync::atomic::{self, AtomicBool, AtomicU64, Ordering};

use crate::sys::memory;

/// One family of atomics.
pub(super) trait Atomics: 'static {
    /// A word of 64 bits.
    type Word: Word;

    /// A fence.
    fn fence(order: Ordering);

    /// A fence that orders a store before it against the loads after it, for whoever makes a [`heavy_fence`]. Free
    /// where that one does the work.
    ///
    /// [`heavy_fence`]: Atomics::heavy_fence
    fn light_fence();

    /// The other half: of a store before a thread's [`light_fence`] and the loads after it, either the store is seen
    /// from here on, or the loads see everything that was stored before. False when that cannot be had now.
    ///
    /// [`light_fence`]: Atomics::light_fence
    fn heavy_fence() -> bool;

    /// Called between two readings of a slot that is being written.
    fn pause();
}

/// A word that one thread writes and many read.
pub(super) trait Word: Send + Sync {
    fn new(value: u64) -> Self;
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn swap(&self, value: u64, order: Ordering) -> u64;
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
}

/// The processor's own.
pub(super) struct Real;

/// False once this process has the kernel's barrier. Whoever sees it late makes a fence too many.
static FENCES_NEEDED: AtomicBool = AtomicBool::new(true);

impl Real {
    /// To be called before a writer's first [`heavy_fence`](Atomics::heavy_fence).
    pub(super) fn prepare() {
        if memory::has_barrier_everywhere() {
            FENCES_NEEDED.store(false, Ordering::Release);
        }
    }
}

impl Atomics for Real {
    type Word = AtomicU64;

    fn fence(order: Ordering) {
        atomic::fence(order);
    }

    #[inline]
    fn light_fence() {
        if FENCES_NEEDED.load(Ordering::Acquire) {
            atomic::fence(Ordering::SeqCst);
        } else {
            atomic::compiler_fence(Ordering::SeqCst);
        }
    }

    fn heavy_fence() -> bool {
        if memory::has_barrier_everywhere() {
            memory::barrier_everywhere()
        } else {
            atomic::fence(Ordering::SeqCst);
            true
        }
    }

    fn pause() {
        std::hint::spin_loop();
    }
}

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.swap(value, order)
    }

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
}

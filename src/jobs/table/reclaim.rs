//! Pointers in atomic words, freed when no reader can hold them any more. The table's only unsafe code.
//!
//! Every `Guard` handed in here must be of the collector that the writer retires with: for a table that is
//! crossbeam's default one, always.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crossbeam_epoch::Guard;

use super::sync::{Atomics, Word};

/// Takes a value out of Rust's sight; the word is its address, never 0.
pub(super) fn publish<T>(value: Box<T>) -> u64 {
    Box::into_raw(value).expose_provenance() as u64
}

/// What stands at an address.
///
/// # Safety
///
/// `address` is of a live `T`: it came from [`publish`] (or is the address of something owned by what did), and a
/// reader pinned by `guard` found it published, so that retiring it waits for the guard.
#[inline]
pub(super) unsafe fn at<T>(address: u64, _guard: &Guard) -> &T {
    // SAFETY: the caller says that a `T` is there and that the guard keeps it.
    unsafe { &*std::ptr::with_exposed_provenance(address as usize) }
}

/// Frees what was published at an address once every reader that is pinned now is gone.
///
/// # Safety
///
/// `address` came from [`publish`]`::<T>`, no reader that pins from now on can find it, and nobody else frees it.
pub(super) unsafe fn retire<T: Send + 'static>(address: u64, guard: &Guard) {
    // SAFETY: by what the caller says, when the closure runs nobody holds the value, and it runs once.
    unsafe { guard.defer_unchecked(move || free::<T>(address)) };
}

/// Frees what was published at an address now.
///
/// # Safety
///
/// `address` came from [`publish`]`::<T>`, and nobody holds or finds the value.
pub(super) unsafe fn free<T>(address: u64) {
    // SAFETY: by what the caller says the box is whole and nobody else's.
    drop(unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut::<T>(address as usize)) });
}

/// A value that is replaced whole while others read it.
pub(super) struct Swap<S: Atomics, T: Send + Sync + 'static> {
    word: S::Word,
    holds: PhantomData<T>,
}

impl<S: Atomics, T: Send + Sync + 'static> Swap<S, T> {
    pub(super) fn new(value: T) -> Self {
        Self { word: S::Word::new(publish(Box::new(value))), holds: PhantomData }
    }

    /// The value as it is now; it stays for as long as the guard.
    #[inline]
    pub(super) fn load<'g>(&self, guard: &'g Guard) -> &'g T {
        // SAFETY: the word always holds a published `T`, and `replace` retires it only after taking it out.
        unsafe { at(self.word.load(Acquire), guard) }
    }

    /// Puts another value in place.
    pub(super) fn replace(&self, value: T, guard: &Guard) {
        let old = self.word.swap(publish(Box::new(value)), AcqRel);
        // SAFETY: the swap took it out of the only place where it can be found, and gave it to this call alone.
        unsafe { retire::<T>(old, guard) };
    }
}

impl<S: Atomics, T: Send + Sync + 'static> Drop for Swap<S, T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: no reader is left that could find or hold it through this cell.
        unsafe { free::<T>(self.word.load(Relaxed)) };
    }
}

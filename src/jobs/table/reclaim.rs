//! Pointers in atomic words, freed when no reader can hold them any more. Most of the table's unsafe code.
//!
//! Every [`Held`] handed in here must be of the readers that the writer's [`Garbage`] looks at: for a table that is
//! this process's, always.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::readers::{Garbage, Held};
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
/// reader found it published under the guard, so that freeing it waits for the guard.
#[inline]
pub(super) unsafe fn at<T>(address: u64, _held: Held<'_>) -> &T {
    // SAFETY: the caller says that a `T` is there and that the guard keeps it.
    unsafe { &*std::ptr::with_exposed_provenance(address as usize) }
}

/// Something that nobody finds any more, and that has to be freed once.
pub(super) struct Retired {
    address: u64,
    free: unsafe fn(u64),
}

impl Retired {
    /// # Safety
    ///
    /// `address` came from [`publish`]`::<T>`, no reader that comes in from now on can find it, and nobody else frees
    /// it. It goes to a [`Garbage`] and nowhere else.
    pub(super) unsafe fn new<T: Send + 'static>(address: u64) -> Self {
        Self { address, free: free::<T> }
    }

    /// Frees it, on whatever thread. For [`Garbage`] alone: when no reader holds it.
    pub(super) fn free(self) {
        // SAFETY: by what the maker of `self` said nobody finds the value, and `Garbage` waited for those who had.
        // The value is `Send`, and `self` goes with it.
        unsafe { (self.free)(self.address) };
    }
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
    pub(super) fn load<'g>(&self, held: Held<'g>) -> &'g T {
        // SAFETY: the word always holds a published `T`, and `replace` retires it only after taking it out.
        unsafe { at(self.word.load(Acquire), held) }
    }

    /// The value, when there is no reader.
    pub(super) fn get_mut(&mut self) -> &mut T {
        // SAFETY: the word always holds a published `T`; `&mut self`: nobody else finds it, and who had found it in
        // time borrowed what this cell is part of.
        unsafe { &mut *std::ptr::with_exposed_provenance_mut(self.word.load(Relaxed) as usize) }
    }

    /// Puts another value in place.
    pub(super) fn replace(&self, value: T, garbage: &mut Garbage<S>) {
        let old = self.word.swap(publish(Box::new(value)), AcqRel);
        // SAFETY: the swap took it out of the only place where it can be found, and gave it to this call alone.
        garbage.keep(unsafe { Retired::new::<T>(old) });
    }
}

impl<S: Atomics, T: Send + Sync + 'static> Drop for Swap<S, T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: no reader is left that could find or hold it through this cell.
        unsafe { free::<T>(self.word.load(Relaxed)) };
    }
}

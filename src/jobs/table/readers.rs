//! Who is looking at the table, so that the writer knows what nobody can hold any more. Algorithm and memory orders
//! are in [`super`].

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use super::reclaim::Retired;
use super::sync::{Atomics, Real, Word};

/// Every thread that has looked, and the era that those who look now are told.
pub(super) struct Readers<S: Atomics> {
    /// Counts the writers' looks at the places; never 0.
    era: S::Word,
    /// A place is made for a thread's first look and goes to another thread after it, so there are as many as there
    /// ever were threads at once, and none is freed. Taken for the first look of a thread and by writers alone.
    places: Mutex<Vec<&'static Place<S>>>,
    /// What writers left behind that went while somebody looked.
    orphans: Mutex<Vec<Batch>>,
}

/// Where one thread says that it looks. It has a cache line of its own: nobody else writes to it.
#[repr(align(128))]
pub(super) struct Place<S: Atomics> {
    /// The era in which its thread came in; 0 while it is out.
    entered: S::Word,
    /// Guards of its thread; nobody else's business.
    guards: AtomicU32,
    /// Some thread's.
    taken: AtomicBool,
    readers: &'static Readers<S>,
}

/// What was retired between two looks at the places.
pub(super) struct Batch {
    /// Whoever came in later than in this era cannot find any of it.
    era: u64,
    retired: Vec<Retired>,
}

impl Readers<Real> {
    const fn of_this_process() -> Self {
        Self { era: AtomicU64::new(1), places: Mutex::new(Vec::new()), orphans: Mutex::new(Vec::new()) }
    }
}

impl<S: Atomics> Readers<S> {
    /// Readers of their own, for a model.
    #[cfg(all(test, models))]
    pub(super) fn leaked() -> &'static Self {
        Box::leak(Box::new(Self {
            era: S::Word::new(1),
            places: Mutex::new(Vec::new()),
            orphans: Mutex::new(Vec::new()),
        }))
    }

    /// A place for one thread.
    pub(super) fn place(&'static self) -> &'static Place<S> {
        let mut places = lock(&self.places);
        if let Some(free) = places.iter().find(|place| !place.taken.swap(true, AcqRel)) {
            return free;
        }
        let place: &Place<S> = Box::leak(Box::new(Place {
            entered: S::Word::new(0),
            guards: AtomicU32::new(0),
            taken: AtomicBool::new(true),
            readers: self,
        }));
        places.push(place);
        place
    }

    /// The era of the reader that has looked longest; greater than any when nobody looks.
    fn oldest(&self) -> u64 {
        // Not under the lock: a thread whose place is made after this copy sees what was taken out before it.
        let places = lock(&self.places).clone();
        let eras = places.iter().map(|place| place.entered.load(Acquire)).filter(|era| *era != 0);
        eras.min().unwrap_or(u64::MAX)
    }
}

/// Nothing that is done under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<S: Atomics> Place<S> {
    /// Comes in, on the thread that has the place. What is found from here on stays until the guard goes.
    #[inline]
    pub(super) fn enter(&'static self) -> Guard<S> {
        let guards = self.guards.load(Relaxed);
        if guards == 0 {
            self.entered.store(self.readers.era.load(Acquire), Release);
            S::light_fence();
        }
        self.guards.store(guards.checked_add(1).expect("guards are dropped"), Relaxed);
        Guard { place: self, alone: PhantomData }
    }
}

/// A thread that looks.
pub(super) struct Guard<S: Atomics> {
    place: &'static Place<S>,
    /// Not for other threads.
    alone: PhantomData<*const ()>,
}

impl<S: Atomics> Guard<S> {
    /// What is found under this guard is held for so long.
    #[inline]
    pub(super) fn held(&self) -> Held<'_> {
        Held(PhantomData)
    }
}

impl<S: Atomics> Drop for Guard<S> {
    #[inline]
    fn drop(&mut self) {
        let guards = self.place.guards.load(Relaxed) - 1;
        self.place.guards.store(guards, Relaxed);
        if guards == 0 {
            self.place.entered.store(0, Release);
        }
    }
}

/// Proof of a guard, which holds what is found for `'g`.
#[derive(Clone, Copy)]
pub(super) struct Held<'g>(PhantomData<&'g ()>);

static READERS: Readers<Real> = Readers::of_this_process();

thread_local! {
    static PLACE: Cell<Option<&'static Place<Real>>> = const { Cell::new(None) };
    /// Gives the place back when the thread ends.
    static LEASE: Cell<Option<Lease>> = const { Cell::new(None) };
}

struct Lease(&'static Place<Real>);

impl Drop for Lease {
    fn drop(&mut self) {
        PLACE.set(None);
        // A guard that outlives this, in a destructor that runs later, keeps the place for good.
        if self.0.guards.load(Relaxed) == 0 {
            self.0.taken.store(false, Release);
        }
    }
}

/// Comes in on this thread's place.
#[inline]
pub(super) fn enter() -> Guard<Real> {
    PLACE.get().unwrap_or_else(first_look).enter()
}

#[cold]
fn first_look() -> &'static Place<Real> {
    let place = READERS.place();
    PLACE.set(Some(place));
    // Without a destructor to come, the place stays this thread's.
    let _ = LEASE.try_with(|lease| lease.set(Some(Lease(place))));
    place
}

/// Retirements after which the writer looks at the places: a barrier in every thread is not for each of them.
const BATCH: usize = if cfg!(models) { 2 } else { 128 };

/// What one writer took out of its table and has not freed yet.
pub(super) struct Garbage<S: Atomics> {
    readers: &'static Readers<S>,
    fresh: Vec<Retired>,
    waiting: Vec<Batch>,
}

impl Garbage<Real> {
    pub(super) fn of_this_process() -> Self {
        Real::prepare();
        Self::new(&READERS)
    }
}

impl<S: Atomics> Garbage<S> {
    pub(super) fn new(readers: &'static Readers<S>) -> Self {
        Self { readers, fresh: Vec::new(), waiting: Vec::new() }
    }

    /// Keeps something, which nobody finds any more, until nobody holds it.
    pub(super) fn keep(&mut self, retired: Retired) {
        self.fresh.push(retired);
    }

    /// Frees what nobody holds any more, when there is enough of it to be worth looking. Not to be called while in.
    pub(super) fn settle(&mut self) {
        if self.fresh.len() >= BATCH {
            self.free();
        }
    }

    /// Frees what nobody holds any more. Not to be called while in: one's own guard would hold it.
    pub(super) fn free(&mut self) {
        let era = self.readers.era.fetch_add(1, AcqRel);
        self.waiting.push(Batch { era, retired: std::mem::take(&mut self.fresh) });
        self.waiting.append(&mut lock(&self.readers.orphans));
        if !S::heavy_fence() {
            return;
        }
        let oldest = self.readers.oldest();
        for batch in self.waiting.extract_if(.., |batch| batch.era < oldest) {
            batch.retired.into_iter().for_each(Retired::free);
        }
    }
}

impl<S: Atomics> Drop for Garbage<S> {
    fn drop(&mut self) {
        self.free();
        lock(&self.readers.orphans).append(&mut self.waiting);
    }
}

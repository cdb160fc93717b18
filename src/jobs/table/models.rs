//! The slot protocol and the reclaiming under loom, which tries every order that the memory model allows; the whole table with its
//! reclaiming under shuttle, which tries many schedules at random. Built and run by
//! `RUSTFLAGS="--cfg models" cargo test --lib table::models --target-dir target/models`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::slot::{Reading, Slot};
use super::sync::{Atomics, Word};

struct Loom;

impl Atomics for Loom {
    type Word = loom::sync::atomic::AtomicU64;

    fn fence(order: Ordering) {
        loom::sync::atomic::fence(order);
    }

    fn light_fence() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }

    fn heavy_fence() -> bool {
        loom::sync::atomic::fence(Ordering::SeqCst);
        true
    }

    fn pause() {
        loom::hint::spin_loop();
    }
}

impl Word for loom::sync::atomic::AtomicU64 {
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

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
}

mod slot_protocol {
    use loom::cell::UnsafeCell;
    use loom::thread;

    use super::*;
    use crate::jobs::table::readers::{Garbage, Readers};
    use crate::jobs::table::reclaim::{Retired, publish};

    /// What the last word points to: memory without an order of its own, which loom reports any unordered use of.
    struct Tails([UnsafeCell<u64>; 3]);

    fn reader_of(tails: &Tails, reading: Reading<2>) -> u64 {
        let (Reading::Whole([_, tail]) | Reading::Last(tail)) = reading;
        let held = tails.0[tail as usize].with(|cell| Tails::get(cell));
        assert_eq!(held, tail * 10, "the tail is not what was put there");
        if let Reading::Whole([summary, tail]) = reading {
            assert_eq!(summary, tail * 100, "a torn pair");
        }
        tail
    }

    #[test]
    fn no_reader_sees_a_torn_pair_or_an_unwritten_tail() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(|| {
            let slot = loom::sync::Arc::new(Slot::<Loom, 2>::new());
            let tails = loom::sync::Arc::new(Tails(std::array::from_fn(|_| UnsafeCell::new(0))));
            let reader = {
                let (slot, tails) = (slot.clone(), tails.clone());
                thread::spawn(move || {
                    let first = reader_of(&tails, slot.read());
                    let second = reader_of(&tails, slot.read());
                    assert!(second >= first, "an older writing came back");
                })
            };
            for writing in 1..=2u64 {
                tails.0[writing as usize].with_mut(|cell| Tails::set(cell, writing * 10));
                slot.write([writing * 100, writing]);
            }
            reader.join().unwrap();
            assert_eq!(slot.read(), Reading::Whole([200, 2]));
        });
    }

    #[test]
    fn two_readers_beside_one_writing() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(|| {
            let slot = loom::sync::Arc::new(Slot::<Loom, 2>::new());
            let tails = loom::sync::Arc::new(Tails(std::array::from_fn(|_| UnsafeCell::new(0))));
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let (slot, tails) = (slot.clone(), tails.clone());
                    thread::spawn(move || reader_of(&tails, slot.read()))
                })
                .collect();
            tails.0[1].with_mut(|cell| Tails::set(cell, 10));
            slot.write([100, 1]);
            for reader in readers {
                assert!(reader.join().unwrap() <= 1);
            }
        });
    }

    // SAFETY: loom lets one thread run at a time, and looks after the order of every use.
    #[allow(unsafe_code)]
    unsafe impl Sync for Tails {}
    // SAFETY: as above.
    #[allow(unsafe_code)]
    unsafe impl Send for Tails {}

    /// Overwrites its memory when it is freed.
    struct Freed(loom::sync::Arc<Tails>, usize);

    impl Drop for Freed {
        fn drop(&mut self) {
            self.0.0[self.1].with_mut(|cell| Tails::set(cell, 0));
        }
    }

    /// The kernel's barrier is modelled as what stands in for it: a full fence on both sides.
    #[test]
    fn nothing_is_freed_that_a_reader_holds_and_all_is_freed_in_the_end() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let readers = Readers::<Loom>::leaked();
            let place = readers.place();
            let word = loom::sync::Arc::new(loom::sync::atomic::AtomicU64::new(1));
            let tails = Tails([0, 10, 20].map(UnsafeCell::new));
            let tails = loom::sync::Arc::new(tails);
            let reader = {
                let (word, tails) = (word.clone(), tails.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        let guard = place.enter();
                        let tail = word.load(Ordering::Acquire);
                        let held = tails.0[tail as usize].with(|cell| Tails::get(cell));
                        assert_eq!(held, tail * 10, "read after it was freed");
                        drop(guard);
                    }
                })
            };
            let mut garbage = Garbage::new(readers);
            let retired = |number| {
                let address = publish(Box::new(Freed(tails.clone(), number)));
                Tails::retired(address)
            };
            word.store(2, Ordering::Release);
            garbage.keep(retired(1));
            garbage.free();
            reader.join().unwrap();
            garbage.free();
            assert_eq!(tails.0[1].with(|cell| Tails::get(cell)), 0, "never freed");
        });
    }

    #[allow(unsafe_code)]
    impl Tails {
        fn retired(address: u64) -> Retired {
            // SAFETY: the one caller published it, and tells nobody where it is.
            unsafe { Retired::new::<Freed>(address) }
        }

        fn get(cell: *const u64) -> u64 {
            // SAFETY: loom's cell hands out the pointer for the length of the closure, and has checked the order.
            unsafe { *cell }
        }

        fn set(cell: *mut u64, value: u64) {
            // SAFETY: as above.
            unsafe { *cell = value };
        }
    }
}

struct Shuttle;

impl Atomics for Shuttle {
    type Word = shuttle::sync::atomic::AtomicU64;

    fn fence(order: Ordering) {
        shuttle::sync::atomic::fence(order);
    }

    fn light_fence() {
        shuttle::sync::atomic::fence(Ordering::SeqCst);
    }

    fn heavy_fence() -> bool {
        shuttle::sync::atomic::fence(Ordering::SeqCst);
        true
    }

    fn pause() {
        shuttle::hint::spin_loop();
    }
}

impl Word for shuttle::sync::atomic::AtomicU64 {
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

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
}

mod whole_table {
    use super::*;
    use crate::jobs::Identity;
    use crate::jobs::job::{Job, JobId, Selector};
    use crate::jobs::machine::MachineId;
    use crate::jobs::table::contest::Shared;
    use crate::jobs::table::readers::{Garbage, Readers};
    use crate::jobs::table::rules::Rules;
    use crate::jobs::table::slots::{Fill, Packed};
    use crate::jobs::table::tests::{by_mac, job, mac};
    use crate::jobs::table::{Decision, Entry, Key, Standing};

    /// Keys enough to share homes in the smallest array and to outgrow it.
    const KEYS: u64 = 60;
    const SCHEDULES: usize = 500;

    /// Job and standing of one writing carry its number. What was freed reads otherwise: its text was overwritten.
    fn entry(key: u64, writing: u64) -> Entry {
        let job = Job {
            generation: writing,
            reason: format!("writing {writing}"),
            ..job(key + 1, Selector::Mac(mac(key)))
        };
        let standing =
            Standing { groups: vec![writing.to_string().into()], ..Standing::new(MachineId(writing)) };
        Entry { grants: vec![Arc::new(job)], machine: Some(Arc::new(standing)) }
    }

    fn check(key: u64, newest: &mut u64, decision: Decision<'_>, standing: Option<&Standing>, always: bool) {
        match decision {
            Decision::Job(job) => {
                assert_eq!(job.id, JobId(key + 1));
                assert_eq!(job.reason, format!("writing {}", job.generation), "read after it was freed");
                assert!(job.generation >= *newest, "an older writing came back");
                *newest = job.generation;
            }
            other => assert!(!always, "a key that is there was not found: {other:?}"),
        }
        if let Some(standing) = standing {
            assert_eq!(*standing.groups[0], *standing.machine.0.to_string(), "a torn standing");
            assert!(standing.machine.0 >= *newest, "an older standing came back");
        }
    }

    #[test]
    fn readers_see_published_states_and_nothing_freed() {
        shuttle::check_random(
            || {
                let readers = Readers::<Shuttle>::leaked();
                let shared = Arc::new(Shared::<Shuttle>::new(0));
                let mut fill = Fill::default();
                let (writer, mut garbage) = (readers.place(), Garbage::new(readers));
                let mut put = |shared: &Shared<Shuttle>, key: u64, entry: Option<Entry>| {
                    let (guard, packed) = (writer.enter(), Packed::new(Key::Mac(mac(key))));
                    fill.put(&shared.slots, &packed, entry, guard.held(), &mut garbage);
                    drop(guard);
                    garbage.settle();
                };
                // A table near its bound, so that the storm below makes it grow.
                for key in 0..36 {
                    put(&shared, key, Some(entry(key, 1)));
                }
                let readers: Vec<_> = (0..2u64)
                    .map(|reader| {
                        let shared = Arc::clone(&shared);
                        shuttle::thread::spawn(move || {
                            let place = readers.place();
                            let mut newest = [0; KEYS as usize];
                            for look in 0..12u64 {
                                let key = (look * (3 + 4 * reader) + reader) % 12;
                                let guard = place.enter();
                                let who: Identity = by_mac(key);
                                let decision = shared.decide(&who, guard.held());
                                let standing = shared.standing(&who, guard.held());
                                // Even keys of the first dozen are never removed.
                                check(key, &mut newest[key as usize], decision, standing, key % 2 == 0);
                                assert!(matches!(shared.decide(&by_mac(70), guard.held()), Decision::NoJob));
                                drop(guard);
                            }
                        })
                    })
                    .collect();
                for writing in 2..10u64 {
                    let even = writing * 2 % 12;
                    put(&shared, even, Some(entry(even, writing)));
                    put(&shared, writing * 2 % 12 + 1, None);
                    put(&shared, 36 + writing, Some(entry(36 + writing, writing)));
                    put(&shared, writing * 2 % 12 + 1, Some(entry(writing * 2 % 12 + 1, writing)));
                }
                shared.rules.replace(Rules::new(Vec::new()), &mut garbage);
                garbage.free();
                readers.into_iter().for_each(|reader| reader.join().unwrap());
            },
            SCHEDULES,
        );
    }
}

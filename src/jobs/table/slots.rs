//! The array of slots: keys to entries.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use super::contest::rank;
use super::readers::{Garbage, Held};
use super::reclaim::{Retired, Swap, at, free, publish};
use super::slot::{Reading, Slot};
use super::sync::Atomics;
use super::{Entry, Key, Standing};
use crate::jobs::identity;
use crate::jobs::job::{Job, Selector};
use crate::sys::memory;
use crate::wire::Uuid;

/// Kind and flags; the key's two words; the plain grant; the tail.
const WORDS: usize = 5;
type Words = [u64; WORDS];
const _: () = assert!(size_of::<Slot<super::sync::Real, WORDS>>() == 64);

/// Kinds of the lowest byte of a slot's first word. An untouched slot reads as zeroes.
const EMPTY: u8 = 0;
const REMOVED: u8 = 1;
const MAC: u8 = 2;
const UUID: u8 = 3;
const SERIAL: u8 = 4;
const ASSET: u8 = 5;
const JOB: u8 = 6;

/// Something holds for the machine.
pub(super) const STANDING: u64 = 1 << 8;
/// The machine had jobs that it must not get again.
pub(super) const SPENT: u64 = 1 << 9;
/// The machine is refused.
pub(super) const REJECTED: u64 = 1 << 10;
/// The machine is known.
pub(super) const KNOWN: u64 = 1 << 12;
/// What the grants come to is to be read in the tail.
pub(super) const READ_GRANTS: u64 = 1 << 11;

/// A key as it stands in a slot.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    kind: u8,
    key: [u64; 2],
    text: &'a str,
    hash: u64,
}

impl<'a> Packed<'a> {
    #[inline]
    pub(super) fn new(key: Key<'a>) -> Self {
        let (kind, key, text) = match key {
            Key::Mac(mac) => {
                let [a, b, c, d, e, f] = mac.0;
                (MAC, [u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), 0], "")
            }
            Key::Uuid(uuid) => (UUID, halves(uuid), ""),
            Key::Serial(text) => (SERIAL, hashes(text.trim()), text.trim()),
            Key::Asset(text) => (ASSET, hashes(text.trim()), text.trim()),
            Key::Job(id) => (JOB, [id.0, 0], ""),
        };
        Self { kind, key, text, hash: spread(kind, key) }
    }

    #[cfg(test)]
    pub(super) fn home(&self) -> u64 {
        self.hash
    }

    /// Whether this key can name one machine; what many share is not taken in, so it is never found either.
    fn is_identifying(&self) -> bool {
        match self.kind {
            MAC => self.key[0] != 0 && self.key[0] & 1 == 0,
            UUID => uuid(self.key).is_identifying(),
            JOB => true,
            _ => identity::is_identifying_text(self.text),
        }
    }

    /// Whether a job's selector names this very key.
    fn is_named_by(&self, selector: &Selector) -> bool {
        let named = match selector {
            Selector::Mac(mac) => Key::Mac(*mac),
            Selector::Uuid(uuid) => Key::Uuid(*uuid),
            Selector::Serial(text) => Key::Serial(text),
            Selector::Asset(text) => Key::Asset(text),
            Selector::Any | Selector::Rule(_) => return false,
        };
        let named = Packed::new(named);
        (named.kind, named.key, named.text) == (self.kind, self.key, self.text)
    }
}

fn halves(uuid: Uuid) -> [u64; 2] {
    let value = u128::from_be_bytes(uuid.0);
    [(value >> 64) as u64, value as u64]
}

fn uuid([high, low]: [u64; 2]) -> Uuid {
    Uuid((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
}

/// The first half of a UUID with its fields turned round, as [`Uuid::from_smbios`] does.
fn turned(high: u64) -> u64 {
    let [a, b, c, d, e, f, g, h] = high.to_be_bytes();
    u64::from_be_bytes([d, c, b, a, f, e, h, g])
}

/// The product of two words, folded: every bit of the result depends on every bit of both.
#[inline]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

const ONE: u64 = 0x9e37_79b9_7f4a_7c15;
const TWO: u64 = 0xe703_7ed1_a0b4_28db;

/// Where a key belongs. Both byte orders of a UUID belong to one place, so that looking for both costs one miss.
#[inline]
fn spread(kind: u8, [a, b]: [u64; 2]) -> u64 {
    let a = if kind == UUID { a.min(turned(a)) } else { a };
    fold(a ^ ONE, fold(b ^ u64::from(kind), TWO) ^ TWO)
}

/// Two hashes of a text.
pub(super) fn hashes(text: &str) -> [u64; 2] {
    let (mut one, mut two) = (ONE ^ text.len() as u64, TWO);
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u64::from_le_bytes(word);
        one = fold(one ^ word, TWO);
        two = fold(two ^ word.rotate_left(32), ONE);
    }
    [one, two]
}

/// What a slot points to: the whole key, and the entry with what the slot says of it.
struct Tail {
    kind: u8,
    key: [u64; 2],
    text: Box<str>,
    flags: u64,
    job: u64,
    entry: Entry,
}

impl Tail {
    fn new(packed: &Packed<'_>, entry: Entry) -> Self {
        let mut flags = 0;
        if let Some(standing) = &entry.machine {
            flags |= STANDING;
            flags |= if standing.known { KNOWN } else { 0 };
            flags |= if standing.spent.is_empty() { 0 } else { SPENT };
            flags |= if standing.rejected { REJECTED } else { 0 };
        }
        let job = match entry.grants.as_slice() {
            [] => 0,
            [job] if !job.is_on_last_attempt() => Arc::as_ptr(job).expose_provenance() as u64,
            _ => {
                flags |= READ_GRANTS;
                0
            }
        };
        Self { kind: packed.kind, key: packed.key, text: packed.text.into(), flags, job, entry }
    }

    fn has_key(&self, packed: &Packed<'_>) -> bool {
        (self.kind, self.key, &*self.text) == (packed.kind, packed.key, packed.text)
    }
}

/// What a look-up found; good for as long as the guard.
#[derive(Clone, Copy)]
pub(super) struct Found<'g> {
    pub(super) flags: u64,
    job: u64,
    tail: u64,
    held: Held<'g>,
}

impl<'g> Found<'g> {
    /// The only grant, if there is nothing else to weigh (no [`READ_GRANTS`]).
    #[inline]
    pub(super) fn job(&self) -> Option<&'g Job> {
        // SAFETY: the address is of a job that the tail's entry owns, of one writing with the tail or taken from it,
        // and the guard keeps the tail.
        (self.job != 0).then(|| unsafe { at::<Job>(self.job, self.held) })
    }

    /// The entry.
    pub(super) fn entry(&self) -> &'g Entry {
        // SAFETY: the reading that found the tail confirmed it or took it alone, under the guard.
        &unsafe { at::<Tail>(self.tail, self.held) }.entry
    }

    /// The standing of the identity's machine.
    pub(super) fn standing(&self) -> Option<&'g Standing> {
        if self.flags & STANDING == 0 { None } else { self.entry().machine.as_deref() }
    }

    /// Whether the identity belongs to a machine that is registered or that a job names.
    pub(super) fn is_known(&self) -> bool {
        self.flags & (KNOWN | READ_GRANTS) != 0 || self.job != 0
    }
}

/// A boxed slice, but on huge pages where it is large: a look-up is one miss of the cache, and is not to be one of the
/// address translation as well.
struct Array<S: Atomics> {
    slots: NonNull<Slot<S, WORDS>>,
    capacity: usize,
}

// SAFETY: it owns its slots as a `Box<[Slot]>` would, and those are words that may be shared.
unsafe impl<S: Atomics> Send for Array<S> {}
// SAFETY: as above.
unsafe impl<S: Atomics> Sync for Array<S> {}

/// A huge page where pages are of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

impl<S: Atomics> Array<S> {
    /// At least one slot.
    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: a slot has a size, and there is one at least.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        if layout.align() == HUGE_PAGE {
            memory::prefer_huge_pages(start, layout.size());
        }
        let slots = start.cast::<Slot<S, WORDS>>();
        for number in 0..capacity {
            // SAFETY: the layout has room for so many slots, aligned for them.
            unsafe { slots.add(number).write(Slot::new()) };
        }
        Self { slots, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        let layout = Layout::array::<Slot<S, WORDS>>(capacity.max(1));
        let layout = layout.expect("a capacity that keys were counted for");
        if layout.size() < HUGE_PAGE {
            layout
        } else {
            layout.align_to(HUGE_PAGE).expect("a small power of two")
        }
    }

    /// Slot numbers in the order of probing, each once.
    #[inline]
    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> {
        let mask = self.capacity - 1;
        (0..self.capacity).map(move |step| (hash as usize).wrapping_add(step) & mask)
    }
}

impl<S: Atomics> Deref for Array<S> {
    type Target = [Slot<S, WORDS>];

    #[inline]
    fn deref(&self) -> &Self::Target {
        // SAFETY: `new` wrote so many slots, and they stay until `self` goes.
        unsafe { std::slice::from_raw_parts(self.slots.as_ptr(), self.capacity) }
    }
}

impl<S: Atomics> Drop for Array<S> {
    fn drop(&mut self) {
        for number in 0..self.capacity {
            // SAFETY: `new` wrote this slot, and nobody has dropped it.
            unsafe { self.slots.add(number).drop_in_place() };
        }
        // SAFETY: `new` had it from the allocator with this very layout.
        unsafe { dealloc(self.slots.as_ptr().cast(), Self::layout(self.capacity)) };
    }
}

/// The slots, as every core shares them.
pub(super) struct Slots<S: Atomics> {
    array: Swap<S, Array<S>>,
}

impl<S: Atomics> Slots<S> {
    /// Room for `hint` keys without growing.
    pub(super) fn new(hint: usize) -> Self {
        Self { array: Swap::new(Array::new(capacity_for(hint))) }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self, held: Held<'_>) -> usize {
        self.array.load(held).len()
    }

    /// What is published under a key.
    #[inline]
    pub(super) fn find<'g>(&self, packed: &Packed<'_>, held: Held<'g>) -> Option<Found<'g>> {
        let array = self.array.load(held);
        for number in array.probe(packed.hash) {
            match array[number].read() {
                Reading::Whole([word, a, b, job, tail]) => {
                    let kind = word as u8;
                    if kind == EMPTY {
                        return None;
                    }
                    let found = Found { flags: word, job, tail, held };
                    // SAFETY: of a whole reading of a slot in use, the tail is published, and the guard keeps it.
                    let text_is =
                        || packed.kind < SERIAL || unsafe { at::<Tail>(tail, held) }.has_key(packed);
                    if kind == packed.kind && [a, b] == packed.key && text_is() {
                        return Some(found);
                    }
                }
                Reading::Last(0) => {}
                Reading::Last(tail) => {
                    // SAFETY: the word was read alone, with acquire, under the guard: what it holds was published
                    // before, and is retired only after it was taken out of the word.
                    let whole = unsafe { at::<Tail>(tail, held) };
                    if whole.has_key(packed) {
                        return Some(Found { flags: whole.flags, job: whole.job, tail, held });
                    }
                }
            }
        }
        None
    }
}

impl<S: Atomics> Drop for Slots<S> {
    fn drop(&mut self) {
        for slot in self.array.get_mut().iter() {
            let [.., tail] = slot.own();
            if tail != 0 {
                // SAFETY: `&mut self`: there is no reader, and only the current array's tails are not retired yet.
                unsafe { free::<Tail>(tail) };
            }
        }
    }
}

/// At most five eighths of the slots are in use.
fn capacity_for(keys: usize) -> usize {
    (keys.saturating_mul(8) / 5 + 1).next_power_of_two().max(64)
}

/// What the one writer knows of the slots.
#[derive(Default)]
pub(super) struct Fill {
    /// Keys.
    live: usize,
    /// Slots that are not empty.
    used: usize,
}

impl Fill {
    /// Publishes what holds for a key from now on; an entry that says nothing removes it. `false` when the key names
    /// no one machine: then nothing is published.
    pub(super) fn put<S: Atomics>(
        &mut self,
        slots: &Slots<S>,
        packed: &Packed<'_>,
        entry: Option<Entry>,
        held: Held<'_>,
        garbage: &mut Garbage<S>,
    ) -> bool {
        if !packed.is_identifying() {
            return false;
        }
        let entry = entry.map(|entry| checked(packed, entry)).filter(|entry| !says_nothing(entry));
        let array = slots.array.load(held);
        let (found, free) = self.place(array, packed, held);
        match (found, entry) {
            (None, None) => {}
            (Some(number), None) => {
                let [.., old] = array[number].own();
                self.clear(array, number);
                // SAFETY: the slot no longer names it, and no other ever did.
                garbage.keep(unsafe { Retired::new::<Tail>(old) });
            }
            (Some(number), Some(entry)) => {
                let [.., old] = array[number].own();
                array[number].write(words(Tail::new(packed, entry)));
                // SAFETY: as above.
                garbage.keep(unsafe { Retired::new::<Tail>(old) });
            }
            (None, Some(entry)) => {
                let takes_empty = array[free].own()[0] as u8 == EMPTY;
                if takes_empty && capacity_for(self.used + 1) > array.len() {
                    self.grow(slots, held, garbage);
                    return self.put(slots, packed, Some(entry), held, garbage);
                }
                array[free].write(words(Tail::new(packed, entry)));
                self.used += usize::from(takes_empty);
                self.live += 1;
            }
        }
        true
    }

    /// Keys in the table.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The slot that holds a key, and the first one that could take it.
    fn place<S: Atomics>(
        &self,
        array: &Array<S>,
        packed: &Packed<'_>,
        held: Held<'_>,
    ) -> (Option<usize>, usize) {
        let mut free = None;
        for number in array.probe(packed.hash) {
            let [word, a, b, _, tail] = array[number].own();
            match word as u8 {
                EMPTY => return (None, free.unwrap_or(number)),
                REMOVED => free = free.or(Some(number)),
                kind => {
                    // SAFETY: the writer reads what it wrote; the slot is in use, so the tail is not retired.
                    let same = || packed.kind < SERIAL || unsafe { at::<Tail>(tail, held) }.has_key(packed);
                    if kind == packed.kind && [a, b] == packed.key && same() {
                        return (Some(number), number);
                    }
                }
            }
        }
        // A part of the slots is always empty, see `put`.
        unreachable!("a table without an empty slot");
    }

    /// Empties a slot, or marks it as removed if a key beyond it may be probed for through it.
    fn clear<S: Atomics>(&mut self, array: &Array<S>, number: usize) {
        let mask = array.len() - 1;
        self.live -= 1;
        if array[(number + 1) & mask].own()[0] as u8 != EMPTY {
            array[number].write([u64::from(REMOVED), 0, 0, 0, 0]);
            return;
        }
        let mut last = number;
        loop {
            array[last].write([u64::from(EMPTY), 0, 0, 0, 0]);
            self.used -= 1;
            last = last.wrapping_sub(1) & mask;
            if array[last].own()[0] as u8 != REMOVED {
                return;
            }
        }
    }

    /// Moves every key to an array without marks, in which a quarter more keys have room.
    fn grow<S: Atomics>(&mut self, slots: &Slots<S>, held: Held<'_>, garbage: &mut Garbage<S>) {
        let old = slots.array.load(held);
        let new = Array::new(capacity_for((self.live + 1) * 5 / 4));
        for slot in old.iter() {
            let words = slot.own();
            let kind = words[0] as u8;
            if kind > REMOVED {
                let home = spread(kind, [words[1], words[2]]);
                let free = new.probe(home).find(|number| new[*number].own()[0] as u8 == EMPTY);
                new[free.expect("the new array has room")].write(words);
            }
        }
        self.used = self.live;
        slots.array.replace(new, garbage);
    }
}

fn words(tail: Tail) -> Words {
    let word = u64::from(tail.kind) | tail.flags;
    let ([a, b], job) = (tail.key, tail.job);
    [word, a, b, job, publish(Box::new(tail))]
}

/// Grants in their order, without those that are none: not live, or naming something else than this key.
fn checked(packed: &Packed<'_>, mut entry: Entry) -> Entry {
    if packed.kind == JOB {
        return entry;
    }
    entry.grants.retain(|job| job.is_live() && packed.is_named_by(&job.selector));
    entry.grants.sort_by_key(|job| rank(job));
    entry
}

fn says_nothing(entry: &Entry) -> bool {
    entry.grants.is_empty() && entry.machine.is_none()
}

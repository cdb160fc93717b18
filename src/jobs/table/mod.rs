//! What the cores decide with: jobs by identity, and rules.
//!
//! It is changed in place, by one [`Writer`], while every core reads it.
//!
//! # The contest
//!
//! A machine presents identities; each may carry *grants* (live jobs whose selector names that very identity) and
//! the *standing* of the machine it belongs to. A rejection, and a job the machine had and must not get again, hold
//! if any presented identity carries them: belonging together only takes away. Of the grants that are left the one
//! with the higher priority wins, then the older, then the lower number. Without one the rules are asked, the
//! narrowest first ([`Rule::specificity`](super::rule::Rule::specificity)), then as before. If nothing is left, and
//! something was taken away, the machine's next boot is a local one.
//!
//! # The algorithm
//!
//! *Slots.* An array of cache-line slots, a power of two of them, found by linear probing. A slot is the sequence
//! and five words: kind and flags, two words of key, the one plain grant, the *tail*. A MAC address and a UUID stand
//! in the slot whole; of a serial or asset tag two hashes do, and the tail has the text. Flags and grant are all
//! that most decisions need, so one look-up is one cache line. The tail is the [`Entry`] as it was put, immutable.
//!
//! *Writing a slot* (only the [`Writer`] does, one change at a time): make the sequence odd, write the
//! words, the tail last, make the sequence even again. The old tail is retired: freed when no reader that was
//! looking then is left.
//!
//! *Reading a slot*: come in (once per view, see below), read the sequence, then the words, then the sequence again. Even
//! and twice the same: the words belong together, and the tail may be followed. Else again; and after a few rounds,
//! so that a writer that lost its core in the middle never holds up a packet, read the tail word alone. It changes
//! by one store, and the tail holds the whole key and the whole entry, so what it says is what was published
//! last or last but one, like any other reading. A writer in the middle of an unused slot shows no tail: probing
//! goes on, as if over a removed key.
//!
//! *Removing.* An entry never moves within an array. A removed key leaves a mark that probing passes over and that
//! a new key may take; where the next slot is empty, the mark is emptied instead, and so are the marks before it. So
//! between a key's home and its slot no slot is ever empty, and a reader finds every key that was there all the
//! while it probed.
//!
//! *Growing.* When five eighths of the slots are in use, marks included, the writer fills a new array with the same
//! tails and swaps the pointer. Readers that are in the old array go on there: it is never written again, and is
//! retired as a tail is. The same goes for the compiled rules.
//!
//! *Reclaiming.* Every thread that looks has a *place*, a cache line of its own. It comes in by writing the current
//! era there, and goes out by writing 0. The writer gathers what it retires; when there is enough it counts the era up,
//! remembers the era before with what it gathered, has a barrier executed in every thread of the process (membarrier(2);
//! where there is none, every reader makes a fence when it comes in), and looks at the places. What was gathered in an
//! era before the oldest one found is freed, by the writer: a core that answers packets frees nothing. That is right,
//! because a reader either wrote its place before the barrier, and is seen; or after it, and then it looks at a table
//! from which all that was taken out; or it read an era counted up after the taking out, and then it sees that too.
//!
//! # Memory orders
//!
//! | release | acquire | gives |
//! |---|---|---|
//! | sequence made even, `store(Release)` | first read of the sequence, `load(Acquire)` | the words of that writing, and what its tail points to |
//! | `fence(Release)` after the sequence was made odd, before the words | `fence(Acquire)` after the words, before the second read of the sequence | whoever saw a word of a writing sees at least its odd sequence, and does not use the words |
//! | tail word, `store(Release)` | tail word alone, `load(Acquire)` | what the tail points to |
//! | array and rules pointer, `swap(AcqRel)` | `load(Acquire)` | the array's slots, the compiled rules |
//! | place written, then the light fence, then the table read | table written, then the heavy fence, then the places read, `load(Acquire)` | one of the two sees the other |
//! | era counted up, `fetch_add(AcqRel)`, by whichever writer | coming in, `load(Acquire)` | a reader of a later era does not find what was retired before |
//! | going out, `store(Release)` | places read, `load(Acquire)` | what a reader read, it read before that is freed |
//!
//! Everything else is `Relaxed`. The writer reads its own words.
//!
//! A reader writes nothing that another thread writes, and nothing that another thread reads but a writer that
//! reclaims.
//!
//! The hash is fast and fixed: keys come from operators and registered machines, and a stranger can only look up.

mod contest;
mod live;
#[cfg(all(test, models))]
mod models;
mod readers;
mod reclaim;
mod rules;
mod slot;
mod slots;
mod sync;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use live::{Table, View, Writer, table};

use super::job::{Job, JobId};
use super::machine::MachineId;
use crate::wire::{MacAddr, Uuid};

/// What a machine's next boot is to be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Decision<'a> {
    /// This live job.
    Job(&'a Job),
    /// The machine's job is over: a local boot.
    Done(&'a Job),
    /// An operator refuses this machine: it is not to be booted.
    Rejected,
    /// No job is meant for this machine: the policy for such machines.
    NoJob,
}

impl<'a> Decision<'a> {
    /// The live job, if there is one.
    pub fn job(self) -> Option<&'a Job> {
        match self {
            Self::Job(job) => Some(job),
            Self::Done(_) | Self::Rejected | Self::NoJob => None,
        }
    }
}

/// One identity of a machine. Blanks around a serial or asset tag do not count; upper and lower case do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Key<'a> {
    /// Hardware address.
    Mac(MacAddr),
    /// SMBIOS UUID, in printing order. It is found by its other byte order too.
    Uuid(Uuid),
    /// SMBIOS serial.
    Serial(&'a str),
    /// SMBIOS asset tag.
    Asset(&'a str),
    /// A job's number: not what a machine presents but what its token carries. The entry's one grant is the job, live
    /// or over.
    Job(JobId),
}

/// What is published about one identity. Immutable from then on.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Live jobs whose selector names this very identity.
    pub grants: Vec<Arc<Job>>,
    /// What holds for the machine that this identity belongs to; the entries of all its identities share it.
    pub machine: Option<Arc<Standing>>,
}

/// What holds for a machine, whichever of its identities it presents.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The machine.
    pub machine: MachineId,
    /// An operator registered it, or it had jobs. One that was only seen is unknown to rules that ask for such.
    pub known: bool,
    /// The name an operator gave it.
    pub name: Option<Box<str>>,
    /// Jobs that this machine had and must not get again, newest first: exact ones past the point of no return, and
    /// rules it has used up.
    pub spent: Vec<Arc<Job>>,
    /// An operator refuses it: no boot.
    pub rejected: bool,
    /// An operator let it in.
    pub approved: bool,
    /// Groups it is in, for rules.
    pub groups: Vec<Box<str>>,
    /// The loader its firmware is given.
    pub loader: Option<Box<str>>,
    /// Where in the list of ways to leave for the local disk its scripts begin.
    pub local_boot: u8,
}

impl Standing {
    /// A machine of which nothing is known but that it is one.
    pub fn new(machine: MachineId) -> Self {
        Self {
            machine,
            known: true,
            name: None,
            spent: Vec::new(),
            rejected: false,
            approved: false,
            groups: Vec::new(),
            loader: None,
            local_boot: 0,
        }
    }
}

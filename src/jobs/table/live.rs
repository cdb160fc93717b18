//! The table that changes in place while every core reads it. Algorithm and memory orders are in [`super`].

use std::fmt;
use std::sync::Arc;

use super::contest::Shared;
use super::readers::{Garbage, Guard, enter};
use super::rules::Rules;
use super::slots::{Fill, Packed};
use super::sync::Real;
use super::{Decision, Entry, Key, Standing};
use crate::jobs::Identity;
use crate::jobs::job::{Job, JobId};

/// Shared by every core. Readers never lock, never wait, never allocate, and write no memory of another thread.
pub struct Table {
    shared: Shared<Real>,
}

/// The only one who changes the table: there is one, made with it.
pub struct Writer {
    table: Arc<Table>,
    fill: Fill,
    /// Freed by the writer, between changes: a core that answers packets frees nothing.
    garbage: Garbage<Real>,
}

/// An empty table with room for so many identities before it grows, and its writer.
///
/// A slot is 64 bytes and between a third and five eighths of the slots are in use once it has grown.
pub fn table(capacity_hint: usize) -> (Arc<Table>, Writer) {
    let table = Arc::new(Table { shared: Shared::new(capacity_hint) });
    (Arc::clone(&table), Writer { table, fill: Fill::default(), garbage: Garbage::of_this_process() })
}

impl Table {
    /// Pins the table for one turn of work; everything a decision borrows lives as long as the view. A view that is
    /// held keeps the memory of everything that is replaced meanwhile, so it is not for keeping.
    ///
    /// A view is no snapshot: each decision sees what is published when it is made.
    pub fn view(&self) -> View<'_> {
        View { table: self, guard: enter() }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.shared.slots.capacity(enter().held())
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

/// The table, pinned.
pub struct View<'t> {
    table: &'t Table,
    guard: Guard<Real>,
}

impl View<'_> {
    /// What this machine's next boot is to be. Looks up what `who` presents; no allocation, no lock.
    pub fn decide(&self, who: &Identity) -> Decision<'_> {
        self.table.shared.decide(who, self.guard.held())
    }

    /// Every job that has to do with this machine, the deciding one first, each with why it won or lost; then the
    /// first few rules that do not fit, with the condition that it does not meet. Empty when there is nothing to say.
    pub fn explain(&self, who: &Identity) -> Vec<String> {
        self.table.shared.explain(who, self.guard.held())
    }

    /// The job of this number, live or over: what a token is judged by.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.table.shared.job(id, self.guard.held())
    }

    /// Whether an operator let the machine in, by any identity that it presents.
    pub fn is_approved(&self, who: &Identity) -> bool {
        self.table.shared.is_approved(who, self.guard.held())
    }

    /// What holds for the machine of the first presented identity that belongs to one.
    pub fn standing(&self, who: &Identity) -> Option<&Standing> {
        self.table.shared.standing(who, self.guard.held())
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl Writer {
    /// Publishes what holds for one identity from now on; `None` removes it. Readers see all of it or nothing.
    ///
    /// Under any key but a job's number, a grant that is not live, or whose selector does not name this very key, is left out. Returns `false`, and
    /// publishes nothing, for a key that many machines share (see [`Uuid::is_identifying`](crate::wire::Uuid::is_identifying)
    /// and [`is_identifying_text`](crate::jobs::identity::is_identifying_text)), or that no machine can own: it would
    /// never be matched.
    ///
    /// Entries of one machine are put one after the other. To take something away, putting it under any one of the
    /// identities already denies it to whoever presents that one.
    pub fn put(&mut self, key: Key<'_>, entry: Option<Entry>) -> bool {
        let guard = enter();
        let (slots, packed) = (&self.table.shared.slots, Packed::new(key));
        let taken = self.fill.put(slots, &packed, entry, guard.held(), &mut self.garbage);
        drop(guard);
        self.garbage.settle();
        taken
    }

    /// Puts other rules in place of all that are there. What is not live, or names one machine, is left out.
    pub fn set_rules(&mut self, rules: Vec<Arc<Job>>) {
        self.table.shared.rules.replace(Rules::new(rules), &mut self.garbage);
        self.garbage.free();
    }

    /// Identities in the table.
    pub fn len(&self) -> usize {
        self.fill.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("identities", &self.len()).finish_non_exhaustive()
    }
}

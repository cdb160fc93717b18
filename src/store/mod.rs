//! What survives a crash: records under guards, an event log and an audit log, behind one small trait.
//!
//! A store knows records and logs, not what they mean: bodies are JSON text made by their owners. It answers four
//! questions (list, get, log, commit) and promises one thing: what a commit accepted is on the disk when the call
//! returns, each transition whole or not at all. [`SqliteStore`] is the real one, [`MemoryStore`] the one that
//! simulations crash; one conformance suite runs over both.
//!
//! There is one caller, the thread that writes; nothing here is shared between threads.
#![forbid(unsafe_code)]

mod chain;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash;
pub mod journal;
mod memory;
mod sqlite;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::chain::{AuditCheck, ChainHash};
pub use self::memory::{Fault, MemoryStore, SharedStore, Snapshot};
pub use self::sqlite::SqliteStore;

/// What a record is of. A start reads the records kind by kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A job: what some machine or rule is to boot.
    Job,
    /// A machine's claim of a job: the wipe interlock's memory.
    Claim,
    /// A machine: the set of its identities.
    Machine,
    /// One boot. The only kind that [`Store::trim`] forgets.
    Boot,
    /// A DHCP lease.
    Lease,
    /// An API token (its hash, its role).
    Token,
    /// What there is one of: keys, counters, the server's own identity.
    Meta,
}

impl Kind {
    /// Every kind, in the order of their names' declaration.
    pub const ALL: [Self; 7] =
        [Self::Job, Self::Claim, Self::Machine, Self::Boot, Self::Lease, Self::Token, Self::Meta];

    /// The kind as one lower-case word, as [`fmt::Display`] writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Claim => "claim",
            Self::Machine => "machine",
            Self::Boot => "boot",
            Self::Lease => "lease",
            Self::Token => "token",
            Self::Meta => "meta",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text is no [`Kind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAKind;

impl fmt::Display for NotAKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected one of job, claim, machine, boot, lease, token, meta")
    }
}

impl std::error::Error for NotAKind {}

impl FromStr for Kind {
    type Err = NotAKind;

    fn from_str(text: &str) -> Result<Self, NotAKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(NotAKind)
    }
}

/// A record: a body under (kind, key), guarded by a generation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What it is of.
    pub kind: Kind,
    /// Its name within its kind. Lists are ordered by it, byte by byte.
    pub key: String,
    /// Counted up by the record's owner with every change; the store only compares it.
    pub generation: u64,
    /// JSON text, not looked into.
    pub body: String,
}

/// What must be true of the stored record, or the whole transition is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// There is no such record.
    Absent,
    /// There is one, of exactly this generation.
    Generation(u64),
    /// Whatever there is.
    Any,
}

impl Guard {
    /// Whether the guard holds for a record of this generation, or for none.
    pub fn holds(self, found: Option<u64>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Generation(generation) => found == Some(generation),
            Self::Any => true,
        }
    }
}

/// Which of the two logs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    /// What happened to machines and jobs; trimmed by age and number.
    Event,
    /// Who changed what; never trimmed, and chained by hashes ([`Store::verify_audit`]).
    Audit,
}

/// One change within a transition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Stores a record, in place of the one under the same kind and key.
    Put {
        /// The record.
        record: Record,
        /// What must be there before.
        guard: Guard,
    },
    /// Removes a record. Removing what is not there is no conflict unless the guard makes it one.
    Delete {
        /// The record's kind.
        kind: Kind,
        /// The record's key.
        key: String,
        /// What must be there before.
        guard: Guard,
    },
    /// Adds an entry to a log. It gets the log's next number, from 1, and is never changed.
    Append {
        /// Which log.
        log: Log,
        /// When, in milliseconds since 1970. Beyond `i64::MAX` it is stored as that.
        at_unix_ms: u64,
        /// What the entry can be found by: a MAC, a job's id, a boot's id.
        subject: String,
        /// JSON text, not looked into.
        body: String,
    },
}

/// One transition: all of its writes or none.
///
/// All guards are judged before the first write, against what the transitions before it left; then the writes are
/// made in order, so of two writes to one key the later one stays.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Transition {
    /// The writes, in order.
    pub writes: Vec<Write>,
}

/// Counts committed transitions from 0, an empty store. A list carries the one it is consistent with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A guard did not hold, and nothing of its transition is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The record's kind.
    pub kind: Kind,
    /// The record's key.
    pub key: String,
    /// The generation that was there, or none.
    pub found: Option<u64>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found {
            Some(found) => write!(f, "{} {:?} is at generation {found}", self.kind, self.key),
            None => write!(f, "there is no {} {:?}", self.kind, self.key),
        }
    }
}

impl std::error::Error for Conflict {}

/// An entry of a log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number: later entries have higher ones, and no number is used twice, not even after a trim.
    pub number: u64,
    /// When, in milliseconds since 1970, as its writer said.
    pub at_unix_ms: u64,
    /// What it can be found by.
    pub subject: String,
    /// JSON text.
    pub body: String,
}

/// What one [`Store::trim`] forgot.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Trimmed {
    /// Event entries.
    pub events: u64,
    /// Boots.
    pub boots: u64,
    /// A bound was reached ([`TRIM_AT_ONCE`]): there may be more, so call again.
    pub more: bool,
}

/// Events and boots that one [`Store::trim`] forgets at most, each, so that it does not hold commits up for long.
pub const TRIM_AT_ONCE: u64 = 5_000;

/// Why a store did not do as asked. `Display` is one line that says what to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// No space is left. Nothing of the batch is stored, what was stored before is all there and can be read, and
    /// the same store goes on once there is space.
    Full {
        /// The store's file.
        path: PathBuf,
    },
    /// The system refused to read or write.
    ///
    /// After a commit: nothing of the batch is seen by this store from now on. Only if the process dies before
    /// another commit succeeds may a restart find the batch stored, and then whole: the last system call failed,
    /// and nobody can know how much of it reached the disk.
    Io {
        /// The store's file, or the file of the backup.
        path: PathBuf,
        /// What was tried and what the system said.
        detail: String,
    },
    /// The file is damaged or not one of ours.
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What was seen.
        detail: String,
    },
    /// The file was written by a newer bootstorm.
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// The file's schema.
        found: u32,
        /// The newest one known here.
        known: u32,
    },
    /// Another process has the file open.
    Locked {
        /// The store's file.
        path: PathBuf,
    },
}

impl StoreError {
    /// Whether only space is missing, so that the same call can succeed later.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { path } => write!(
                f,
                "no space left for {}: nothing was stored; make room on that file system, and it goes on by itself",
                path.display()
            ),
            Self::Io { path, detail } => write!(
                f,
                "{}: {detail}; look at the permissions of that folder and at the disk's health (dmesg)",
                path.display()
            ),
            Self::Corrupt { path, detail } => write!(
                f,
                "{} is damaged or no bootstorm store ({detail}); move it and its -wal file away together and put \
                 a backup in its place",
                path.display()
            ),
            Self::NewerSchema { path, found, known } => write!(
                f,
                "{} has schema {found}, and this bootstorm knows up to {known}; run the newer bootstorm, or put a \
                 backup from before the upgrade in its place",
                path.display()
            ),
            Self::Locked { path } => write!(
                f,
                "{} is in use by another process; stop the bootstorm that runs with this state folder, or give this \
                 one its own with --state",
                path.display()
            ),
        }
    }
}

impl std::error::Error for StoreError {}

/// Records and logs that survive a crash.
pub trait Store: Send {
    /// Every record of a kind at one revision, ordered by key.
    fn list(&mut self, kind: Kind) -> Result<(Revision, Vec<Record>), StoreError>;

    /// Shows key and body of every record of a kind, in no order, until `visit` refuses one; its error is returned. For
    /// many records: no list is made of them.
    fn each(
        &mut self,
        kind: Kind,
        visit: &mut dyn FnMut(&str, &str) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Finds damage to the file that no record has shown yet. What was not checked when the store was opened is to be
    /// checked by this before anybody relies on a record; a second call does nothing.
    fn check(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// One record, or none.
    fn get(&mut self, kind: Kind, key: &str) -> Result<Option<Record>, StoreError>;

    /// Group commit: the transitions are judged in order, each whole or not at all, and all that are accepted are
    /// on the disk (one fsync) when this returns.
    ///
    /// There is one answer for each transition, in order: the revision it made, or the guard that refused it alone.
    /// A later transition sees what an earlier one of the batch did. An `Err` means that nothing of the batch is
    /// stored; see [`StoreError::Io`] for the one doubt about it.
    fn commit(&mut self, batch: &[Transition]) -> Result<Vec<Result<Revision, Conflict>>, StoreError>;

    /// Does what is due and what no commit should wait for, such as folding a write-ahead log into its file; says whether
    /// anything was. For moments in which nobody waits: it may take as long as many commits.
    fn rest(&mut self) -> bool {
        false
    }

    /// At most `limit` entries of a log, newest first; of one subject, if given; with numbers below `before`, if
    /// given, which is how to turn a page: pass the last number seen.
    fn read_log(
        &mut self,
        log: Log,
        subject: Option<&str>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError>;

    /// Walks the whole audit log and checks its hash chain. Reads all of it: for a command, not for a timer.
    fn verify_audit(&mut self) -> Result<AuditCheck, StoreError>;

    /// Forgets events older than a moment, then the oldest beyond `events_max`, and the boots least lately written
    /// beyond `boots_max`; at most [`TRIM_AT_ONCE`] of each in one call. It makes no revision: what it forgets
    /// is history. Audit entries stay.
    fn trim(
        &mut self,
        events_before_unix_ms: u64,
        events_max: u64,
        boots_max: u64,
    ) -> Result<Trimmed, StoreError>;

    /// A consistent copy in a new file, complete and checked when this returns, with one record that the store itself has
    /// not: by `mark` the copy is known for one. It refuses to write over a file.
    fn backup(&mut self, to: &Path, mark: &Record) -> Result<(), StoreError>;
}

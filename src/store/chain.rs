//! The hash chain of the audit log: every entry's hash covers the entry and the hash before it, so that an entry
//! changed, taken out or put in between shows.
//!
//! What it cannot show: whoever may write the file can also make the whole chain anew. Against that, the head hash
//! is to be written down elsewhere from time to time, and compared.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::LogEntry;

/// A hash in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    /// What stands before the first entry.
    pub const START: Self = Self([0; 32]);

    /// The hash of an entry that follows one with this hash.
    pub fn followed_by(self, entry: &LogEntry) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(&entry.number.to_le_bytes());
        hasher.update(&entry.at_unix_ms.to_le_bytes());
        // Lengths go first, so that no byte can move from the subject into the body.
        for text in [&entry.subject, &entry.body] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What walking the chain found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuditCheck {
    /// Every entry is there and as it was written.
    Whole {
        /// Entries.
        entries: u64,
        /// The newest one's hash; [`ChainHash::START`] for an empty log.
        head: ChainHash,
    },
    /// The first entry that is not as it was written, or is missing.
    Broken {
        /// Its number.
        number: u64,
    },
}

/// A walk along the chain, entry by entry from the first.
pub(super) struct Walk {
    last: u64,
    head: ChainHash,
}

impl Walk {
    pub(super) fn start() -> Self {
        Self { last: 0, head: ChainHash::START }
    }

    /// Takes the next entry with its stored hash. `Err` is the number of the first one that is wrong.
    pub(super) fn step(&mut self, entry: &LogEntry, stored: &[u8]) -> Result<(), u64> {
        let expected = self.last + 1;
        let hash = self.head.followed_by(entry);
        if entry.number != expected || hash.0 != stored {
            return Err(expected);
        }
        (self.last, self.head) = (expected, hash);
        Ok(())
    }

    /// The end of the log, of which the store says how many entries it wrote.
    pub(super) fn end(self, written: u64) -> AuditCheck {
        if self.last == written {
            AuditCheck::Whole { entries: written, head: self.head }
        } else {
            AuditCheck::Broken { number: self.last + 1 }
        }
    }
}

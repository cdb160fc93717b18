//! A machine: the set of identities that were seen, or declared, to belong together.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A machine's number, written `m17`. It stays the same however many identities the machine turns out to have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub u64);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

//! What stands between a machine and its boot, found before the machine does: standing checks of the set-up
//! ([`standing`]), and a boot acted hop by hop against the running server ([`live`]).
//!
//! What is found is a list of [`Finding`]s, each with the fault's name, what was seen, the likely cause, and the command
//! that mends it. A set-up that works has none.
//!
//! Nothing is left behind: the acting machine has an address of `jobs::machine::VISITOR_PREFIX`, which no record and no
//! job knows; it gives its lease back; and image files are fetched by their open URLs, which move no job.
#![forbid(unsafe_code)]

pub mod certificate;
mod link;
pub mod live;
mod offers;
mod packet;
mod probe;
pub mod standing;

use serde::Serialize;

use crate::client::Kind;

pub use offers::Answerer;

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Looked at, and as it should be.
    Fine,
    /// Worth knowing; machines boot all the same.
    Note,
    /// Some machine will not boot.
    Wrong,
}

impl Level {
    /// As in lists.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// The fault's or check's name, one of `docs/TROUBLESHOOTING.md`.
    pub name: &'static str,
    /// What was seen.
    pub what: String,
    /// Why, most likely.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// The command or setting that mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

impl Finding {
    /// As it should be.
    pub fn fine(name: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Fine, name, what: what.into(), cause: String::new(), mend: String::new() }
    }

    /// Worth knowing.
    pub fn note(name: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Note, name, what: what.into(), cause: String::new(), mend: mend.into() }
    }

    /// A fault.
    pub fn wrong(
        name: &'static str,
        what: impl Into<String>,
        cause: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { level: Level::Wrong, name, what: what.into(), cause: cause.into(), mend: mend.into() }
    }
}

/// One step of the acted boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Hop {
    /// What.
    pub name: String,
    /// Milliseconds from power-on to its end.
    pub at_ms: u64,
    /// More about it.
    pub note: String,
}

/// A kind of machine in a sentence.
pub fn machine(kind: Kind) -> &'static str {
    match kind {
        Kind::Bios => "a BIOS machine",
        Kind::Uefi => "a UEFI machine",
        Kind::Http => "a machine with UEFI HTTP Boot",
        Kind::Ipxe => "an iPXE",
    }
}

//! Why an order is refused, in words and as a code.

use std::fmt;

use super::super::claim::ClaimId;
use super::super::job::{JobId, Selector, Stage};
use super::super::machine::{Ident, MachineId};
use super::{JOBS_MAX, MACHINES_MAX};

/// Why an order to the book is refused. `Display` is one line that says what to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No such image.
    UnknownImage {
        /// The name asked for.
        name: String,
    },
    /// The image is there but cannot boot.
    CannotBoot {
        /// The image.
        name: String,
        /// Why it cannot.
        reason: String,
    },
    /// The image may wipe a disk, and the job would boot it every time.
    DestructiveAlways {
        /// The image.
        name: String,
    },
    /// The image may wipe a disk, and the job is a rule that does not allow that.
    DestructiveRule {
        /// The image.
        name: String,
    },
    /// The image boots without iPXE, and the selector is one that only a script request shows.
    NeedsIpxe {
        /// The image.
        name: String,
    },
    /// A sequence of boots that cannot be one.
    Sequence {
        /// Why not.
        why: &'static str,
    },
    /// The machine has a live job already.
    HasJob {
        /// That job.
        id: JobId,
        /// The machine, as both name it.
        selector: Selector,
    },
    /// The selector names something that many machines share.
    NotIdentifying {
        /// The selector.
        selector: Selector,
    },
    /// A rule that boots no image, and so never has given a machine its boot.
    RuleOnce,
    /// `attempts` is 0.
    NoAttempts,
    /// No such job.
    NotFound {
        /// The number asked for.
        id: JobId,
    },
    /// No such claim.
    NoClaim {
        /// The number asked for.
        id: ClaimId,
    },
    /// The job is over.
    Ended {
        /// The job.
        id: JobId,
        /// How it ended.
        stage: Stage,
    },
    /// The job is not over, so there is nothing to re-arm.
    NotEnded {
        /// The job.
        id: JobId,
        /// Its stage.
        stage: Stage,
    },
    /// The job is a rule's for unknown machines, and who had it is known.
    KnownNow {
        /// The job.
        id: JobId,
    },
    /// The job is a rule's and may wipe a disk, and re-arming it would give it to several machines once more.
    RearmsAll {
        /// The job.
        id: JobId,
        /// Machines that had it.
        machines: usize,
    },
    /// Nothing of the job waits to be confirmed.
    NotRunning {
        /// The job.
        id: JobId,
        /// Its stage.
        stage: Stage,
    },
    /// [`JOBS_MAX`] live jobs.
    TooMany,
    /// Machines on record are at their bound.
    TooManyMachines,
    /// No such machine.
    NoMachine {
        /// As it was named.
        named: String,
    },
    /// An identity belongs to another machine already.
    IdentTaken {
        /// The identity.
        ident: Ident,
        /// Its machine.
        machine: MachineId,
    },
    /// Another machine has this name already.
    NameTaken {
        /// The name.
        name: String,
        /// Its machine.
        machine: MachineId,
    },
    /// An identity that many machines share cannot name one.
    SharedIdent {
        /// The identity.
        ident: Ident,
    },
    /// These two cannot become one, or this one cannot be taken apart.
    CannotMerge {
        /// Why.
        why: String,
    },
    /// It has changed since it was looked at.
    Stale {
        /// Its generation now.
        found: u64,
    },
    /// What the order would change cannot be stored now. Nothing was changed.
    StoreUnavailable {
        /// What the store says, with what to do.
        reason: String,
    },
    /// Too many orders wait already.
    Busy,
}

impl Refusal {
    /// The refusal as one kebab-case word, for JSON.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownImage { .. } => "unknown-image",
            Self::CannotBoot { .. } => "image-cannot-boot",
            Self::DestructiveAlways { .. } => "destructive-needs-once",
            Self::DestructiveRule { .. } => "destructive-needs-allow-rule",
            Self::NeedsIpxe { .. } => "image-needs-ipxe",
            Self::Sequence { .. } => "not-a-sequence",
            Self::HasJob { .. } => "machine-has-job",
            Self::NotIdentifying { .. } => "selector-not-identifying",
            Self::RuleOnce => "rule-needs-always",
            Self::NoAttempts => "no-attempts",
            Self::NotFound { .. } => "job-not-found",
            Self::NoClaim { .. } => "claim-not-found",
            Self::Ended { .. } => "job-ended",
            Self::NotEnded { .. } => "job-not-ended",
            Self::KnownNow { .. } => "rule-for-unknown-machines",
            Self::RearmsAll { .. } => "rearm-needs-all",
            Self::NotRunning { .. } => "job-not-running",
            Self::TooMany => "too-many-jobs",
            Self::TooManyMachines => "too-many-machines",
            Self::NoMachine { .. } => "machine-not-found",
            Self::IdentTaken { .. } => "identity-taken",
            Self::NameTaken { .. } => "name-taken",
            Self::SharedIdent { .. } => "identity-shared",
            Self::CannotMerge { .. } => "cannot-merge",
            Self::Stale { .. } => "changed-meanwhile",
            Self::StoreUnavailable { .. } => "store-unavailable",
            Self::Busy => "busy",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownImage { name } => {
                write!(f, "there is no image {name:?}; `bootstorm image list` shows the ones there are")
            }
            Self::CannotBoot { name, reason } => {
                write!(
                    f,
                    "image {name:?} cannot boot: {reason}; `bootstorm image show {name}` says when that is over"
                )
            }
            Self::DestructiveAlways { name } => write!(
                f,
                "image {name:?} may wipe a disk, and --always would wipe it at every boot; leave --always out"
            ),
            Self::NeedsIpxe { name } => write!(
                f,
                "image {name:?} boots without iPXE, and a machine's serial, asset tag, manufacturer and product are \
                 known only when its iPXE asks; name the machine by MAC address or UUID, or switch iPXE on: bootstorm \
                 image loader enable {name}"
            ),
            Self::DestructiveRule { name } => write!(
                f,
                "image {name:?} may wipe a disk, and a rule sends it to machines nobody named; add --allow-rule if \
                 that is meant, or name the machines"
            ),
            Self::Sequence { why } => write!(f, "{why}; a sequence is one machine's images, each booted once"),
            Self::HasJob { id, selector } => write!(
                f,
                "{selector} has the live job {id} already; `bootstorm job cancel {id}` first, or `job add` with \
                 --replace to have a new one in its place, or with --then to have it follow"
            ),
            Self::NotIdentifying { selector } => write!(
                f,
                "{selector} does not name one machine (many share it or nobody set it); use another of the \
                 machine's identities"
            ),
            Self::RuleOnce => f.write_str(
                "a rule that boots no image never comes to an end with a machine; add --always, or name the machines",
            ),
            Self::NoAttempts => f.write_str("a job with 0 attempts never starts; use --attempts 1 or more"),
            Self::NotFound { id } => {
                write!(f, "there is no job {id}; `bootstorm job list` shows the ones there are")
            }
            Self::NoClaim { id } => {
                write!(f, "there is no claim {id}")
            }
            Self::Ended { id, stage: Stage::Running } => {
                write!(
                    f,
                    "job {id} was handed over and gives no boot any more (running); `bootstorm job rearm {id}` starts \
                     it again"
                )
            }
            Self::Ended { id, stage } => {
                write!(f, "job {id} has ended already ({stage}); `bootstorm job rearm {id}` starts it again")
            }
            Self::NotEnded { id, stage } => {
                write!(f, "job {id} has not ended ({stage}); `bootstorm job cancel {id}` ends it")
            }
            Self::KnownNow { id } => write!(
                f,
                "job {id} is for unknown machines, and one that had it is known: add a job that names the machine"
            ),
            Self::RearmsAll { id, machines } => write!(
                f,
                "{machines} machines had {id}, which may wipe a disk, and each would get it again: name one with \
                 --machine (in the API: DELETE its claim), or say --all (?all=true)"
            ),
            Self::NotRunning { id, stage } => write!(
                f,
                "job {id} is {stage}: only a running one can be confirmed; `bootstorm job show {id}` shows how far it is"
            ),
            Self::TooMany => write!(f, "{JOBS_MAX} jobs are live, which is the most; cancel some first"),
            Self::TooManyMachines => {
                write!(f, "{MACHINES_MAX} machines are on record, which is the most; forget some first")
            }
            Self::NoMachine { named } => {
                write!(f, "there is no machine {named}; `bootstorm machine list` shows the ones there are")
            }
            Self::IdentTaken { ident, machine } => {
                write!(f, "{ident} belongs to machine {machine} already; merge the two, or split it off there first")
            }
            Self::NameTaken { name, machine } => {
                write!(f, "machine {machine} is called {name:?} already; give one of the two another name")
            }
            Self::SharedIdent { ident } => {
                write!(f, "{ident} does not name one machine (many share it, or it goes from machine to machine)")
            }
            Self::CannotMerge { why } => f.write_str(why),
            Self::Stale { found } => {
                write!(f, "it has changed meanwhile (now generation {found}); look again and repeat the order")
            }
            Self::StoreUnavailable { reason } => write!(f, "not stored, nothing was changed: {reason}"),
            Self::Busy => f.write_str("too many orders wait already; try again in a moment"),
        }
    }
}

impl std::error::Error for Refusal {}

//! A machine's claim of a rule's job: how far that job has come with that one machine.
//!
//! A job that names one machine keeps its own course. A rule's job has as many courses as machines take it; each is a
//! claim. It denies the job to every identity that the claiming boot presented and to the machine's whole set, so
//! that a second network card, or a request that shows less of the machine, does not get the job anew.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::job::{Job, JobId, Stage, unix_seconds};
use super::lifecycle::{Course, holds_back};
use super::machine::{Ident, MachineId};
use super::token::BootId;

/// A claim's number within the book.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClaimId(pub u64);

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// A claim.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// Its number.
    pub id: ClaimId,
    /// The rule's job.
    pub job: JobId,
    /// The machine, where one is on record.
    pub machine: Option<MachineId>,
    /// Every identity that a boot under this claim presented and that names one machine.
    pub idents: Vec<Ident>,
    /// How far the job has come with this machine.
    pub stage: Stage,
    /// The boot that has it or had it last.
    pub boot: Option<BootId>,
    /// The last boot that passed the point of no return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<BootId>,
    /// Boots with lower numbers no longer count.
    pub floor: BootId,
    /// Boots that stopped before `running`.
    pub attempts_used: u32,
    /// Boots within the window that did not come to run.
    pub boots: u32,
    /// When that window began.
    #[serde(with = "unix_seconds")]
    pub boots_since: SystemTime,
    /// When it changed last.
    #[serde(with = "unix_seconds")]
    pub updated: SystemTime,
    /// Why it is where it is.
    pub reason: String,
    /// Counts every change; never goes down.
    pub generation: u64,
}

super::lifecycle::has_course!(Claim);

impl Claim {
    pub(super) fn new(id: ClaimId, job: &Job, idents: Vec<Ident>, now: SystemTime) -> Self {
        let course = Course::begin(now);
        Self {
            id,
            job: job.id,
            machine: None,
            idents,
            stage: course.stage(),
            boot: None,
            passed: None,
            // What belonged to an earlier arming of the job does not begin a claim under the next one.
            floor: job.floor,
            attempts_used: 0,
            boots: 0,
            boots_since: now,
            updated: now,
            reason: course.reason,
            generation: 0,
        }
    }

    /// True when the machine's next boot does not get the job.
    pub fn denies(&self, job: &Job) -> bool {
        !self.stage.is_live(false) || holds_back(self.stage, self.attempts_used, self.boots, &job.terms())
    }
}

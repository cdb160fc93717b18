//! The life of a job for one machine, as one table.
//!
//! ```text
//!   armed ──► offered ──► fetching ──► running ──► confirmed
//!     ▲          │            │        ▲    │
//!     └──────────┴────────────┘        │    └─► failed
//!        (an attempt is lost)   the point of no return
//! ```
//!
//! [`EDGES`] lists every edge there is; what it does not list cannot happen, because [`Course`] changes its stage
//! through [`Stage::on`] alone. `docs/JOBS.md` shows the same table, and a test compares the two.
//!
//! The edge into `running` is the one that must be on the disk before anything that could start an installer leaves
//! the server. Every other edge may be lost in a crash without harm: the evidence comes again, or the next boot
//! starts over.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::job::Stage;
use super::token::BootId;

/// Boots that are given the script within a job's window without one of them coming to run; the next one is stopped.
pub const LOOP_BOOTS: u32 = 5;

/// What can happen to a job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Event {
    /// A script that carries it was given.
    Offer,
    /// A file of its image was asked for, or goes on, under its token.
    Fetch,
    /// The last bytes that a boot needs are about to leave.
    Pass,
    /// A boot stopped before it ran, and there are attempts left.
    Stop,
    /// A boot stopped before it ran, and it was the last attempt.
    StopLast,
    /// The machine boots again and again without coming to run.
    Loop,
    /// The booted system called back that all is well.
    Confirm,
    /// The booted system called back that it failed.
    Fail,
    /// The next image of its sequence is due.
    Next,
    /// Its time ran out.
    Expire,
    /// An operator took it back.
    Cancel,
    /// An operator starts it again.
    Rearm,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 12] = [
        Self::Offer,
        Self::Fetch,
        Self::Pass,
        Self::Stop,
        Self::StopLast,
        Self::Loop,
        Self::Confirm,
        Self::Fail,
        Self::Next,
        Self::Expire,
        Self::Cancel,
        Self::Rearm,
    ];

    /// The word of the documents.
    pub fn word(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::Fetch => "fetch",
            Self::Pass => "pass",
            Self::Stop => "stop",
            Self::StopLast => "stop-last",
            Self::Loop => "loop",
            Self::Confirm => "confirm",
            Self::Fail => "fail",
            Self::Next => "next",
            Self::Expire => "expire",
            Self::Cancel => "cancel",
            Self::Rearm => "rearm",
        }
    }
}

/// Which jobs an edge is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum For {
    /// Every job.
    All,
    /// Jobs that end with one boot.
    Once,
    /// Jobs that boot every time.
    Always,
}

/// One edge of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    /// From this stage,
    pub from: Stage,
    /// when this happens,
    pub event: Event,
    /// to this stage,
    pub to: Stage,
    /// for these jobs.
    pub of: For,
}

const fn edge(from: Stage, event: Event, to: Stage, of: For) -> Edge {
    Edge { from, event, to, of }
}

/// Every edge.
pub const EDGES: &[Edge] = {
    use Event::{Cancel, Confirm, Expire, Fail, Fetch, Loop, Next, Offer, Pass, Rearm, Stop, StopLast};
    use For::{All, Always, Once};
    use Stage::{Armed, Cancelled, Confirmed, Expired, Failed, Fetching, Offered, Running};
    &[
        edge(Armed, Offer, Offered, All),
        // The offer was made before a crash, or the boot came back after a silence.
        edge(Armed, Fetch, Fetching, All),
        edge(Armed, Pass, Running, All),
        edge(Armed, Expire, Expired, All),
        edge(Armed, Cancel, Cancelled, All),
        edge(Offered, Offer, Offered, All),
        edge(Offered, Fetch, Fetching, All),
        edge(Offered, Pass, Running, All),
        edge(Offered, Stop, Armed, All),
        edge(Offered, StopLast, Failed, Once),
        edge(Offered, Loop, Failed, Once),
        edge(Offered, Expire, Expired, All),
        edge(Offered, Cancel, Cancelled, All),
        edge(Fetching, Offer, Offered, All),
        edge(Fetching, Fetch, Fetching, All),
        edge(Fetching, Pass, Running, All),
        edge(Fetching, Stop, Armed, All),
        edge(Fetching, StopLast, Failed, Once),
        edge(Fetching, Loop, Failed, Once),
        edge(Fetching, Cancel, Cancelled, All),
        edge(Running, Confirm, Confirmed, All),
        edge(Running, Fail, Failed, Once),
        edge(Running, Next, Armed, Once),
        edge(Running, Rearm, Armed, Once),
        edge(Running, Offer, Offered, Always),
        edge(Running, Fetch, Fetching, Always),
        edge(Running, Pass, Running, Always),
        edge(Running, Expire, Expired, Always),
        edge(Running, Cancel, Cancelled, Always),
        edge(Confirmed, Next, Armed, Once),
        edge(Confirmed, Rearm, Armed, Once),
        edge(Confirmed, Offer, Offered, Always),
        edge(Confirmed, Fetch, Fetching, Always),
        edge(Confirmed, Pass, Running, Always),
        edge(Confirmed, Expire, Expired, Always),
        edge(Confirmed, Cancel, Cancelled, Always),
        edge(Failed, Rearm, Armed, All),
        edge(Expired, Rearm, Armed, All),
        edge(Cancelled, Rearm, Armed, All),
    ]
};

impl Stage {
    /// Where `event` leads from here, or `None` when it leads nowhere.
    pub fn on(self, event: Event, always: bool) -> Option<Self> {
        let fits = |of: For| match of {
            For::All => true,
            For::Once => !always,
            For::Always => always,
        };
        EDGES
            .iter()
            .find(|edge| edge.from == self && edge.event == event && fits(edge.of))
            .map(|edge| edge.to)
    }

    /// True while a job of this stage can still give its machine a boot.
    pub fn is_live(self, always: bool) -> bool {
        self.on(Event::Pass, always).is_some()
    }
}

/// What a course is judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Boots that may stop before `running`.
    pub attempts: u32,
    /// The loop window.
    pub window: Duration,
    /// At every boot, instead of once.
    pub always: bool,
}

/// How far a job has come with one machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Course {
    /// The stage; changed by the table only.
    pub(super) stage: Stage,
    /// The boot that has it or had it last.
    pub boot: Option<BootId>,
    /// The last boot that passed the point of no return.
    pub passed: Option<BootId>,
    /// Boots with lower numbers no longer count.
    pub floor: BootId,
    /// Boots that stopped before `running`.
    pub attempts_used: u32,
    /// Boots within the window that did not come to run.
    pub boots: u32,
    /// When that window began.
    pub boots_since: SystemTime,
    /// When it changed last.
    pub updated: SystemTime,
    /// Why it is where it is.
    pub reason: String,
}

/// Gives a record that holds the fields of a [`Course`] among its own the two ways between them.
macro_rules! has_course {
    ($record:ty) => {
        impl $record {
            /// How far it has come, to be moved and put back.
            pub(super) fn course(&self) -> $crate::jobs::lifecycle::Course {
                $crate::jobs::lifecycle::Course {
                    stage: self.stage,
                    boot: self.boot,
                    passed: self.passed,
                    floor: self.floor,
                    attempts_used: self.attempts_used,
                    boots: self.boots,
                    boots_since: self.boots_since,
                    updated: self.updated,
                    reason: self.reason.clone(),
                }
            }

            /// Puts a moved course back, as a change of the record.
            pub(super) fn set_course(&mut self, course: $crate::jobs::lifecycle::Course) {
                self.stage = course.stage;
                self.boot = course.boot;
                self.passed = course.passed;
                self.floor = course.floor;
                self.attempts_used = course.attempts_used;
                self.boots = course.boots;
                self.boots_since = course.boots_since;
                self.updated = course.updated;
                self.reason = course.reason;
            }
        }
    };
}
pub(super) use has_course;

/// Why a boot may not pass the point of no return. `Display` is a clause for the log and the machine's screen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denial {
    /// The job is not known any more.
    NoJob,
    /// Another boot has passed.
    Spent,
    /// The job is over in another way.
    Over(Stage),
    /// The boot belongs to an earlier arming or step of the job.
    Outdated,
    /// What it asks for is not what the job boots now.
    OtherImage,
    /// The image boots by other files than it did when the boot's script was made.
    ImageChanged,
    /// The machine is rejected.
    Rejected,
    /// The boot of a rule's job is not known here any more.
    UnknownBoot,
    /// A machine that a destructive rule may reach must show a UUID or serial of its own.
    NotIdentified,
    /// The answer file is given once per boot, and was.
    GivenBefore,
    /// Nothing is there that could remember that the answer file was given: the machine is not on record.
    NotOnRecord,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoJob => f.write_str("its job is not known any more"),
            Self::Spent => f.write_str("another boot of this machine had the job"),
            Self::Over(stage) => write!(f, "the job is {stage}"),
            Self::Outdated => f.write_str("the job was armed anew since this boot began"),
            Self::OtherImage => f.write_str("the job boots another image now"),
            Self::ImageChanged => f.write_str("the image was changed since this boot's script was made"),
            Self::Rejected => f.write_str("the machine is rejected"),
            Self::UnknownBoot => f.write_str("this boot is not known any more, the next one will be"),
            Self::NotIdentified => f.write_str("the machine shows no UUID or serial of its own"),
            Self::GivenBefore => f.write_str("it is given once per boot, and was already"),
            Self::NotOnRecord => f.write_str(
                "it is given once per boot, and the machine is not on record, so nothing would remember it",
            ),
        }
    }
}

/// What became of a boot at the point of no return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passage {
    /// It passes, once that is on the disk.
    Now,
    /// It has passed before, and may go on.
    Before,
    /// It may not.
    Denied(Denial),
}

/// A boot that was fetching and of which nothing was heard for so long has stopped. Longer than a slow TFTP
/// transfer goes between two signs of life.
pub const SILENCE: Duration = Duration::from_secs(15 * 60);

pub(super) fn since(earlier: SystemTime, now: SystemTime) -> Duration {
    // A clock set back makes nothing older.
    now.duration_since(earlier).unwrap_or_default()
}

/// Whether the next boot of a live job must be a local one: its last attempt is under way, and if the machine comes
/// back that has failed; or the machine has started over too often.
pub(super) fn holds_back(stage: Stage, attempts_used: u32, boots: u32, terms: &Terms) -> bool {
    let last = stage == Stage::Fetching && attempts_used.saturating_add(1) >= terms.attempts;
    !terms.always && (last || boots >= LOOP_BOOTS)
}

impl Course {
    /// A course that begins now.
    pub fn begin(now: SystemTime) -> Self {
        Self {
            stage: Stage::Armed,
            boot: None,
            passed: None,
            floor: BootId(0),
            attempts_used: 0,
            boots: 0,
            boots_since: now,
            updated: now,
            reason: "waiting for its machine".into(),
        }
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Moves if the table has an edge; says whether it has.
    fn step(&mut self, event: Event, always: bool, reason: impl Into<String>, now: SystemTime) -> bool {
        let Some(to) = self.stage.on(event, always) else { return false };
        self.stage = to;
        self.reason = reason.into();
        self.updated = now;
        true
    }

    /// Whether the next boot must be a local one although the course is live.
    pub fn holds_back(&self, terms: &Terms) -> bool {
        holds_back(self.stage, self.attempts_used, self.boots, terms)
    }

    /// A script that carries the job was given to `boot`; `loops` says that it is one that should come to run.
    pub fn offered(&mut self, boot: BootId, loops: bool, terms: &Terms, now: SystemTime) -> bool {
        if boot < self.floor || self.boot == Some(boot) || self.passed == Some(boot) {
            return false;
        }
        let before = self.clone();
        if self.stage == Stage::Fetching {
            self.lose_attempt("the machine asked for its script again before it had everything", terms, now);
        }
        if loops && !terms.always && self.stage.is_live(false) {
            if now < self.boots_since || since(self.boots_since, now) > terms.window {
                self.boots = 0;
                self.boots_since = now;
            }
            if self.boots >= LOOP_BOOTS {
                let minutes = terms.window.as_secs() / 60;
                let reason = format!(
                    "stopped: the machine asked for it {} times within {minutes} minutes without coming to run it",
                    self.boots.saturating_add(1)
                );
                // From armed there is no such edge: the offer that is one too many makes it first.
                self.step(Event::Offer, false, "its script was given", now);
                return self.step(Event::Loop, false, reason, now);
            }
            self.boots += 1;
        }
        if self.step(Event::Offer, terms.always, "its script was given", now) {
            self.boot = Some(boot);
        }
        *self != before
    }

    /// A script that carries the job was given to somebody who asked for it in the machine's name, from an address where the
    /// machine is not: an administrator who looks, a stranger, a proxy on the machine's way. It may be the machine all the
    /// same, so the job goes on; but such asking costs it nothing, however often it is done.
    pub fn offered_elsewhere(&mut self, boot: BootId, terms: &Terms, now: SystemTime) -> bool {
        if self.stage != Stage::Armed || boot < self.floor {
            return false;
        }
        let moved = self.step(Event::Offer, terms.always, "its script was given", now);
        self.boot = Some(boot);
        moved
    }

    /// A file was asked for under the token of `boot`, or its delivery goes on.
    pub fn fetched(&mut self, boot: BootId, reason: String, terms: &Terms, now: SystemTime) -> bool {
        // A boot that has everything may fetch its files again without starting over.
        if boot < self.floor || self.passed == Some(boot) {
            return false;
        }
        let moved = self.step(Event::Fetch, terms.always, reason, now);
        if moved {
            self.boot = Some(boot);
        }
        moved
    }

    /// A transfer of `boot` broke off. The script tries again by itself; whether the boot has stopped shows later.
    pub fn broke_off(&mut self, boot: BootId, reason: String, now: SystemTime) -> bool {
        let ours = self.stage == Stage::Fetching && self.boot == Some(boot);
        if ours {
            self.reason = reason;
            self.updated = now;
        }
        ours
    }

    /// `boot` is about to get the last bytes it needs.
    pub fn pass(&mut self, boot: BootId, reason: String, terms: &Terms, now: SystemTime) -> Passage {
        if self.passed == Some(boot) {
            return Passage::Before;
        }
        if boot < self.floor {
            return Passage::Denied(Denial::Outdated);
        }
        if !self.step(Event::Pass, terms.always, reason, now) {
            return Passage::Denied(match self.stage {
                Stage::Running | Stage::Confirmed => Denial::Spent,
                stage => Denial::Over(stage),
            });
        }
        self.boot = Some(boot);
        self.passed = Some(boot);
        self.attempts_used = 0;
        self.boots = 0;
        Passage::Now
    }

    /// More is known of the boot that has passed: its last bytes were acknowledged, say.
    pub fn learned(&mut self, boot: BootId, reason: String, now: SystemTime) -> bool {
        let news = self.stage == Stage::Running && self.passed == Some(boot) && self.reason != reason;
        if news {
            self.reason = reason;
            self.updated = now;
        }
        news
    }

    /// The booted system called back. Only the boot that has passed can.
    pub fn confirmed(&mut self, boot: BootId, always: bool, now: SystemTime) -> bool {
        self.passed == Some(boot) && self.step(Event::Confirm, always, "the booted system called back", now)
    }

    /// The booted system, or its loader, called back that it failed.
    pub fn failed(&mut self, boot: BootId, why: &str, terms: &Terms, now: SystemTime) -> bool {
        if self.passed == Some(boot) {
            return self.step(Event::Fail, terms.always, format!("the booted system says: {why}"), now);
        }
        let under_way = matches!(self.stage, Stage::Offered | Stage::Fetching) && self.boot == Some(boot);
        if under_way {
            self.lose_attempt(&format!("the boot says: {why}"), terms, now);
        }
        under_way
    }

    /// Looks at the clock: a boot that fell silent has stopped, a loop window that is over counts no more, and a
    /// clock that was set back does not make what it measures last for ever.
    pub fn look(&mut self, terms: &Terms, now: SystemTime) -> bool {
        let before = self.clone();
        if self.stage == Stage::Fetching {
            self.updated = self.updated.min(now);
        }
        if self.boots > 0 && (now < self.boots_since || since(self.boots_since, now) > terms.window) {
            self.boots = 0;
            self.boots_since = now;
        }
        if self.stage == Stage::Fetching && since(self.updated, now) >= SILENCE {
            self.lose_attempt("a boot that was fetching it fell silent", terms, now);
        }
        *self != before
    }

    /// Its time ran out; false where that ends nothing.
    pub fn expire(&mut self, always: bool, now: SystemTime) -> bool {
        self.step(Event::Expire, always, "no machine took it in time", now)
    }

    /// An operator takes it back.
    pub fn cancel(&mut self, reason: String, always: bool, now: SystemTime) -> bool {
        self.step(Event::Cancel, always, reason, now)
    }

    /// An operator starts it again: all attempts, and deaf to every boot before `next`.
    pub fn rearm(&mut self, always: bool, next: BootId, now: SystemTime) -> bool {
        let moved = self.step(Event::Rearm, always, "re-armed by an operator", now);
        if moved {
            self.start_over(next, now);
            self.passed = None;
        }
        moved
    }

    /// The next image of a sequence is due. The boot that has passed may still fetch its own files.
    pub fn next(&mut self, next: BootId, now: SystemTime) -> bool {
        let moved = self.step(Event::Next, false, "its next image waits for the machine's next boot", now);
        if moved {
            let passed = self.passed;
            self.start_over(next, now);
            self.passed = passed;
        }
        moved
    }

    fn start_over(&mut self, next: BootId, now: SystemTime) {
        self.boot = None;
        self.floor = next;
        self.attempts_used = 0;
        self.boots = 0;
        self.boots_since = now;
    }

    /// A boot has stopped before it ran.
    fn lose_attempt(&mut self, why: &str, terms: &Terms, now: SystemTime) {
        self.attempts_used = self.attempts_used.saturating_add(1);
        if self.attempts_used >= terms.attempts && !terms.always {
            let reason = format!("{why}; that was attempt {} of {}", self.attempts_used, terms.attempts);
            self.step(Event::StopLast, false, reason, now);
        } else {
            self.step(Event::Stop, terms.always, why, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the document's table: `| from | event | to | of | ...`.
    fn documented() -> Vec<(String, String, String, String)> {
        let text = include_str!("../../docs/JOBS.md");
        let table = text.split("<!-- edges -->").nth(1).expect("the document marks its table");
        table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let cells: Vec<&str> =
                    line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
                (cells[0].into(), cells[1].into(), cells[2].into(), cells[3].into())
            })
            .collect()
    }

    #[test]
    fn the_document_shows_this_table() {
        let written: Vec<_> = EDGES
            .iter()
            .map(|edge| {
                let of = match edge.of {
                    For::All => "all",
                    For::Once => "once",
                    For::Always => "always",
                };
                (
                    edge.from.word().to_owned(),
                    edge.event.word().to_owned(),
                    edge.to.word().to_owned(),
                    of.to_owned(),
                )
            })
            .collect();
        assert_eq!(documented(), written);
    }

    /// A course that has come to a stage by its own methods.
    fn at_stage(stage: Stage, terms: &Terms) -> Course {
        let mut course = Course::begin(T0);
        let (boot, why) = (BootId(1), String::new());
        match stage {
            Stage::Armed => {}
            Stage::Offered => assert!(course.offered(boot, true, terms, T0)),
            Stage::Fetching => assert!(course.fetched(boot, why, terms, T0)),
            Stage::Running => assert_eq!(course.pass(boot, why, terms, T0), Passage::Now),
            Stage::Confirmed => {
                assert_eq!(course.pass(boot, why, terms, T0), Passage::Now);
                assert!(course.confirmed(boot, terms.always, T0));
            }
            Stage::Failed if terms.always => course.stage = Stage::Failed,
            Stage::Failed => {
                assert_eq!(course.pass(boot, why, terms, T0), Passage::Now);
                assert!(course.failed(boot, "x", terms, T0));
            }
            Stage::Expired => assert!(course.expire(terms.always, T0)),
            Stage::Cancelled => assert!(course.cancel(why, terms.always, T0)),
        }
        assert_eq!(course.stage(), stage);
        course
    }

    const T0: SystemTime = SystemTime::UNIX_EPOCH;

    /// Each row of the table, gone by the method that stands for its event.
    #[test]
    fn every_edge_is_gone_by_what_its_row_says() {
        for edge in EDGES {
            let always = edge.of == For::Always;
            let attempts = if edge.event == Event::StopLast { 1 } else { 3 };
            let terms = Terms { attempts, window: Duration::from_secs(60), always };
            let mut course = at_stage(edge.from, &terms);
            let (other, why) = (BootId(2), String::new());
            let later = T0 + Duration::from_secs(1);
            let moved = match edge.event {
                Event::Offer => course.offered(other, true, &terms, later),
                Event::Fetch => course.fetched(other, why, &terms, later),
                Event::Pass => course.pass(other, why, &terms, later) == Passage::Now,
                Event::Stop | Event::StopLast => course.failed(BootId(1), "x", &terms, later),
                Event::Loop => {
                    course.boots = LOOP_BOOTS;
                    course.offered(other, true, &terms, later)
                }
                Event::Confirm => course.confirmed(BootId(1), always, later),
                Event::Fail => course.failed(BootId(1), "x", &terms, later),
                Event::Next => course.next(BootId(9), later),
                Event::Expire => course.expire(always, later),
                Event::Cancel => course.cancel(why, always, later),
                Event::Rearm => course.rearm(always, BootId(9), later),
            };
            assert!(moved, "{edge:?}");
            assert_eq!(course.stage(), edge.to, "{edge:?}");
            if edge.of == For::Once {
                let always = Terms { always: true, ..terms };
                assert_eq!(edge.from.on(edge.event, true), None, "{edge:?} {always:?}");
            }
        }
    }

    #[test]
    fn silence_counts_an_attempt() {
        let terms = Terms { attempts: 3, window: Duration::from_secs(60), always: false };
        let mut course = at_stage(Stage::Fetching, &terms);
        assert!(!course.look(&terms, T0 + SILENCE - Duration::from_secs(1)));
        assert!(course.look(&terms, T0 + SILENCE));
        assert_eq!((course.stage(), course.attempts_used), (Stage::Armed, 1));
        // A clock that was ahead does not keep a dead boot alive.
        let mut course = at_stage(Stage::Fetching, &terms);
        course.updated = T0 + SILENCE * 100;
        course.look(&terms, T0 + SILENCE);
        assert!(course.look(&terms, T0 + SILENCE * 2));
    }

    #[test]
    fn an_event_leads_from_a_stage_to_one_stage_only() {
        for from in Stage::ALL {
            for event in Event::ALL {
                for always in [false, true] {
                    let fits = |of| of == For::All || (of == For::Always) == always;
                    let edges =
                        EDGES.iter().filter(|e| e.from == from && e.event == event && fits(e.of)).count();
                    assert!(edges <= 1, "{from} on {}", event.word());
                    assert_eq!(from.on(event, always).is_some(), edges == 1);
                }
            }
        }
    }

    #[test]
    fn nothing_but_an_operator_leads_back_from_beyond_the_point_of_no_return() {
        for from in [Stage::Running, Stage::Confirmed] {
            for event in Event::ALL {
                let live = from.on(event, false).is_some_and(|to| to.is_live(false));
                assert_eq!(live, matches!(event, Event::Rearm | Event::Next), "{from} on {}", event.word());
            }
        }
    }
}

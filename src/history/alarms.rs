//! What someone should look at without being asked: machines that were expected and never came, machines that start over
//! and over, and several machines that stop at the same point behind the same relay.
//!
//! An alarm is raised once, stays while its cause does, and is raised again only after it was over.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::timeline::Span;
use super::{History, Named, Stop, since};
use crate::jobs::job::{Job, JobId, Selector, Stage};
use crate::wire::{MacAddr, Uuid};

/// When something is worth an alarm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// A machine that a job waits for is expected within this; zero: never mind.
    pub never_seen: Duration,
    /// A machine that starts this often within the window, and runs nothing, loops.
    pub loop_boots: usize,
    /// So many machines that stop at the same point behind the same relay have one cause.
    pub same_stop: usize,
    /// The window of both.
    pub window: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            never_seen: Duration::from_secs(30 * 60),
            loop_boots: 5,
            same_stop: 3,
            window: Duration::from_secs(30 * 60),
        }
    }
}

/// A machine that is silent for so long has stopped where it is.
const STOPPED_AFTER: Duration = Duration::from_secs(2 * 60);
/// Alarms of one kind at the same time; more say nothing new. Strangers can make some kinds, and crowd no other out.
const ACTIVE_MAX: usize = 1_000;
/// Machines named by one alarm.
const NAMED_MAX: usize = 20;

/// What kind of alarm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A machine with a job was not seen in time.
    NeverSeen,
    /// A machine starts over and over.
    Loop,
    /// Several machines stop at the same point behind the same relay.
    SameStop,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::NeverSeen, Self::Loop, Self::SameStop];

    /// The word of metrics, logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::NeverSeen => "never-seen",
            Self::Loop => "loop",
            Self::SameStop => "same-stop",
        }
    }
}

/// An alarm.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Alarm {
    /// What kind.
    pub kind: Kind,
    /// What it is about: a job's id, a machine's address, a relay's.
    pub subject: String,
    /// When it was raised, in seconds since 1970.
    pub since_unix: u64,
    /// What is wrong.
    pub sentence: String,
    /// The machines, at most twenty of them.
    pub machines: Vec<MacAddr>,
    /// The UUID that one machine showed by DHCP.
    #[serde(skip)]
    pub uuid: Option<Uuid>,
}

/// What there is to be said of something.
struct Found {
    sentence: String,
    machines: Vec<MacAddr>,
    uuid: Option<Uuid>,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// A machine that a job waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    job: JobId,
    machine: Named,
    waits_since: SystemTime,
}

impl Expected {
    /// The machine that `job` waits for, if it names one by an address or UUID and has not had it.
    pub fn of(job: &Job) -> Option<Self> {
        let machine = match &job.selector {
            Selector::Mac(mac) => Named::Mac(*mac),
            Selector::Uuid(uuid) => Named::Uuid(*uuid),
            Selector::Serial(_) | Selector::Asset(_) | Selector::Any | Selector::Rule(_) => return None,
        };
        let waits = job.stage == Stage::Armed && job.boot.is_none() && job.attempts_used == 0;
        waits.then_some(Self { job: job.id, machine, waits_since: job.created })
    }
}

/// The alarms that are on.
#[derive(Debug, Default)]
pub struct Alarms {
    terms: Terms,
    active: BTreeMap<(Kind, String), Alarm>,
    raised: [u64; 3],
}

impl Alarms {
    /// None yet.
    pub fn new(terms: Terms) -> Self {
        Self { terms, ..Self::default() }
    }

    /// Looks at everything and returns what is new.
    pub fn look(&mut self, now: SystemTime, history: &History, expected: &[Expected]) -> Vec<Alarm> {
        let mut found: BTreeMap<(Kind, String), Found> = BTreeMap::new();
        if !self.terms.never_seen.is_zero() {
            self.look_for_missing(now, history, expected, &mut found);
        }
        self.look_for_loops_and_places(now, history, &mut found);
        self.active.retain(|key, _| found.contains_key(key));
        let mut new = Vec::new();
        let mut counts = [0; Kind::ALL.len()];
        self.active.keys().for_each(|(kind, _)| counts[*kind as usize] += 1);
        for ((kind, subject), Found { sentence, machines, uuid }) in found {
            let key = (kind, subject.clone());
            if let Some(alarm) = self.active.get_mut(&key) {
                (alarm.sentence, alarm.machines) = (sentence, machines);
            } else if counts[kind as usize] < ACTIVE_MAX {
                counts[kind as usize] += 1;
                let since_unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let alarm = Alarm { kind, subject, since_unix, sentence, machines, uuid };
                self.raised[kind as usize] += 1;
                self.active.insert(key, alarm.clone());
                new.push(alarm);
            }
        }
        new
    }

    /// The alarms that are on.
    pub fn active(&self) -> Vec<Alarm> {
        self.active.values().cloned().collect()
    }

    /// The alarms' part of `/metrics`.
    pub fn metrics(&self) -> String {
        let mut text =
            String::from("# HELP bootstorm_alarms Alarms that are on.\n# TYPE bootstorm_alarms gauge\n");
        for kind in Kind::ALL {
            let count = self.active.keys().filter(|(of, _)| *of == kind).count();
            text.push_str(&format!("bootstorm_alarms{{kind=\"{}\"}} {count}\n", kind.word()));
        }
        text.push_str(
            "# HELP bootstorm_alarms_raised_total Alarms raised so far.\n# TYPE bootstorm_alarms_raised_total counter\n",
        );
        for kind in Kind::ALL {
            let count = self.raised[kind as usize];
            text.push_str(&format!("bootstorm_alarms_raised_total{{kind=\"{}\"}} {count}\n", kind.word()));
        }
        text
    }

    fn look_for_missing(
        &self,
        now: SystemTime,
        history: &History,
        expected: &[Expected],
        found: &mut BTreeMap<(Kind, String), Found>,
    ) {
        for waiting in expected {
            let waited = since(waiting.waits_since, now);
            let came = history.last_seen(waiting.machine).is_some_and(|seen| seen >= waiting.waits_since);
            if waited < self.terms.never_seen || came {
                continue;
            }
            let (name, machines) = match waiting.machine {
                Named::Mac(mac) => (mac.to_string(), vec![mac]),
                Named::Uuid(uuid) => (uuid.to_string(), Vec::new()),
            };
            let sentence = format!(
                "job {} has waited for {name} for {}, and nothing was seen of it: is it on, and does it boot from the network?",
                waiting.job,
                Span(waited)
            );
            found
                .insert((Kind::NeverSeen, waiting.job.to_string()), Found { sentence, machines, uuid: None });
        }
    }

    fn look_for_loops_and_places(
        &self,
        now: SystemTime,
        history: &History,
        found: &mut BTreeMap<(Kind, String), Found>,
    ) {
        let Some(from) = now.checked_sub(self.terms.window) else { return };
        let mut places: BTreeMap<(Option<Ipv4Addr>, Stop), Vec<Option<MacAddr>>> = BTreeMap::new();
        for (mac, uuid, boots) in history.heads(from) {
            let Some(last) = boots.last() else { continue };
            let recent = boots.iter().filter(|boot| boot.started >= from);
            let runs = |stop| matches!(stop, Stop::Start | Stop::Booted);
            let (count, ran) = recent.fold((0, false), |(n, ran), boot| (n + 1, ran || runs(boot.stop)));
            if count >= self.terms.loop_boots && !ran {
                let name = mac.map(|mac| mac.to_string()).or_else(|| uuid.map(|uuid| uuid.to_string()));
                let name = name.unwrap_or_default();
                let sentence = format!(
                    "{name} has started {count} times within {} and runs nothing (bootstorm explain {name} --last {count})",
                    Span(self.terms.window)
                );
                let machines = mac.into_iter().collect();
                found.insert((Kind::Loop, name), Found { sentence, machines, uuid });
            }
            let stuck = matches!(last.stop, Stop::Dhcp | Stop::Loader | Stop::Script | Stop::Image);
            if stuck && since(last.until, now) >= STOPPED_AFTER {
                places.entry((last.relay, last.stop)).or_default().push(mac);
            }
        }
        for ((relay, stop), machines) in places {
            if machines.len() < self.terms.same_stop {
                continue;
            }
            let place =
                relay.map_or("on the local networks".to_owned(), |relay| format!("behind the relay {relay}"));
            let sentence = format!(
                "{} machines {place} stopped at the same point ({}): one cause is likelier than many",
                machines.len(),
                stop.word()
            );
            let subject =
                format!("{} {}", relay.map_or("local".to_owned(), |relay| relay.to_string()), stop.word());
            let machines = machines.into_iter().flatten().take(NAMED_MAX).collect();
            found.insert((Kind::SameStop, subject), Found { sentence, machines, uuid: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::evidence::{Asker, Evidence, Seen};
    use crate::jobs::job::{Action, JobSpec};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn mac(n: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, n])
    }

    fn tell(history: &History, n: u8, seconds: u64, seen: Seen) {
        let mut evidence = Evidence::new(at(seconds), seen);
        evidence.mac = Some(mac(n));
        history.note(evidence);
    }

    fn boots(history: &History, n: u8, seconds: u64, relay: Option<Ipv4Addr>) {
        let file = "undionly.kpxe".to_owned();
        tell(history, n, seconds, Seen::DhcpOffered { asker: Asker::Firmware, arch: None, relay, file });
        tell(history, n, seconds + 1, Seen::AddressGiven { relay });
    }

    #[test]
    fn a_machine_that_was_expected_and_never_came_is_told_once_until_it_comes() {
        let history = History::default();
        let mut alarms = Alarms::new(Terms::default());
        let mut job = Job::new(JobId(7), &JobSpec::new(Action::Local, Selector::Mac(mac(1))), false, at(0));
        let expected = [Expected::of(&job).unwrap()];
        assert!(alarms.look(at(1_799), &history, &expected).is_empty(), "not yet");
        let new = alarms.look(at(1_800), &history, &expected);
        assert_eq!((new.len(), new[0].kind, new[0].subject.as_str()), (1, Kind::NeverSeen, "j7"));
        assert!(new[0].sentence.contains("30 min") && new[0].machines == [mac(1)], "{new:?}");
        assert!(alarms.look(at(1_810), &history, &expected).is_empty(), "once");
        assert_eq!(alarms.active().len(), 1);
        assert!(alarms.metrics().contains("bootstorm_alarms{kind=\"never-seen\"} 1\n"));
        boots(&history, 1, 1_815, None);
        assert!(alarms.look(at(1_820), &history, &expected).is_empty());
        assert!(alarms.active().is_empty(), "it came");
        assert!(alarms.metrics().contains("bootstorm_alarms_raised_total{kind=\"never-seen\"} 1\n"));
        job.attempts_used = 1;
        assert_eq!(Expected::of(&job), None, "it was here");
        let mut never = Alarms::new(Terms { never_seen: Duration::ZERO, ..Terms::default() });
        assert!(never.look(at(9_999), &History::default(), &expected).is_empty(), "switched off");
    }

    #[test]
    fn a_machine_that_starts_over_and_over_is_told_and_one_that_runs_something_is_not() {
        let history = History::default();
        let mut alarms = Alarms::new(Terms::default());
        for n in 0..4 {
            boots(&history, 1, n * 60, None);
        }
        assert!(alarms.look(at(240), &history, &[]).is_empty());
        boots(&history, 1, 300, None);
        let new = alarms.look(at(310), &history, &[]);
        assert_eq!((new.len(), new[0].kind), (1, Kind::Loop), "{new:?}");
        assert!(new[0].sentence.contains("5 times"), "{new:?}");
        assert!(alarms.look(at(3_000), &history, &[]).is_empty() && alarms.active().is_empty(), "long ago");
    }

    #[test]
    fn machines_that_stop_at_one_point_behind_one_relay_have_one_alarm() {
        let history = History::default();
        let mut alarms = Alarms::new(Terms::default());
        let relay = Some(Ipv4Addr::new(10, 9, 0, 1));
        for n in 1..=2 {
            boots(&history, n, 0, relay);
        }
        // The same stop elsewhere is another place.
        boots(&history, 3, 0, None);
        assert!(alarms.look(at(200), &history, &[]).is_empty());
        boots(&history, 4, 100, relay);
        assert!(alarms.look(at(150), &history, &[]).is_empty(), "the last may be under way");
        let new = alarms.look(at(300), &history, &[]);
        assert_eq!((new.len(), new[0].kind, new[0].machines.len()), (1, Kind::SameStop, 3), "{new:?}");
        assert!(new[0].sentence.contains("behind the relay 10.9.0.1"), "{new:?}");
    }
}

//! The flight recorder's thread: evidence becomes timelines, timelines go to the store, alarms to the log.
//!
//! Nothing waits for it. A packet's core puts evidence into a bounded queue; the keeper is handed whole batches now and
//! then, apart from its own commits, so that no order and no boot waits for a timeline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Receiver;
use serde_json::json;

use crate::history::alarms::{self, Alarm, Alarms, Expected};
use crate::history::{Due, History, merge, read_record, record};
use crate::jobs::Identity;
use crate::jobs::evidence::{Evidence, Seen};
use crate::jobs::job::{Job, Selector};
use crate::jobs::table::Decision;
use crate::keeper::Keeper;
use crate::store::{Guard, Kind, Log, Record, Store, StoreError, Transition, Write};
use crate::wire::{MacAddr, Uuid};

/// How long evidence is gathered before the recorder looks again.
const GATHER: Duration = Duration::from_millis(20);
/// Without evidence the recorder looks at its clock this often.
const IDLE: Duration = Duration::from_millis(200);
/// How often timelines are stored, how many machines at once, and how many boots of each.
const STORE_EVERY: Duration = Duration::from_secs(2);
const STORED_AT_ONCE: usize = 64;
const STORED_BOOTS: usize = 3;
/// Rounds of storing when the server stops.
const LAST_ROUNDS: usize = 400;
/// After a commit that failed, nothing is tried for so long.
const TROUBLE_PAUSE: Duration = Duration::from_secs(30);
/// How often alarms are looked for.
const ALARMS_EVERY: Duration = Duration::from_secs(10);
/// Alarms of one kind raised at once that have a line each in the log.
const ALARMS_SAID: usize = 20;
/// Machines without a job or a record of their own that are stored: a burst, then so many a second.
const STRANGERS_BURST: f64 = 500.0;
const STRANGERS_PER_SECOND: f64 = 0.5;

/// What the thread works with.
pub(super) struct Recorder {
    pub(super) history: Arc<History>,
    pub(super) alarms: Arc<Mutex<Alarms>>,
    pub(super) keeper: Keeper,
    pub(super) stopping: Arc<AtomicBool>,
}

impl Recorder {
    /// Until the server stops: what is left is written down and stored then.
    pub(super) fn run(self, evidence: &Receiver<Evidence>) {
        let mut lines = Budget::lines();
        let mut take = |seen: Evidence| {
            say(&seen, &self.history, &mut lines);
            self.history.note(seen);
        };
        let mut pen = Pen::new();
        let mut gathering = false;
        while !self.stopping.load(Ordering::Acquire) {
            pen.look(&self);
            // Waking a thread that waits costs the core that wakes it more than the evidence does. So while evidence
            // comes, it is gathered for a moment instead of being waited for.
            if gathering {
                std::thread::park_timeout(GATHER);
            } else {
                let Ok(seen) = evidence.recv_timeout(IDLE) else { continue };
                take(seen);
            }
            let waiting = evidence.len();
            evidence.try_iter().take(waiting).for_each(&mut take);
            gathering = !gathering || waiting > 0;
        }
        for seen in evidence.try_iter() {
            self.history.note(seen);
        }
        pen.store_the_rest(&self);
    }
}

/// A stage's line in the log. A DISCOVER is anybody's packet; what follows it costs a stranger more, but is anybody's
/// still. Whatever the network says, the log grows only so fast; the timelines have it all.
fn say(seen: &Evidence, history: &History, lines: &mut Budget) {
    let quiet = matches!(
        seen.seen,
        Seen::DhcpOffered { .. }
            | Seen::DhcpIgnored { .. }
            | Seen::BootServerAnswered { .. }
            | Seen::AddressGiven { .. }
            | Seen::OtherOffered { .. }
            | Seen::OtherAcked { .. }
            | Seen::ServerChosen { .. }
            | Seen::TftpAsked { .. }
            | Seen::TftpRefused { .. }
            | Seen::HttpRefused { .. }
            | Seen::FileProgress { .. }
    );
    let is_loud = !quiet && lines.take();
    if !is_loud && !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (mac, uuid, by_address) = history.whose(seen);
    macro_rules! say {
        ($level:ident) => {
            tracing::$level!(
                mac = mac.map(tracing::field::display),
                uuid = uuid.map(tracing::field::display),
                session = seen.boot.map(tracing::field::display),
                by_address = by_address.then_some(true),
                address = seen.address.map(tracing::field::display),
                job = seen.job().map(tracing::field::display),
                stage = seen.seen.word(),
                "{}",
                seen.seen
            )
        };
    }
    if is_loud { say!(info) } else { say!(debug) }
}

/// When to store and to look for alarms, and what may be stored.
struct Pen {
    strangers: Budget,
    next_store: Instant,
    next_alarms: Instant,
    /// Set by the keeper's thread when a commit failed.
    troubled: Arc<AtomicBool>,
}

impl Pen {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            strangers: Budget::new(STRANGERS_BURST, STRANGERS_PER_SECOND),
            next_store: now + STORE_EVERY,
            next_alarms: now + ALARMS_EVERY,
            troubled: Arc::default(),
        }
    }

    fn look(&mut self, recorder: &Recorder) {
        let now = Instant::now();
        if now >= self.next_store {
            self.next_store = now + STORE_EVERY;
            if self.troubled.swap(false, Ordering::Relaxed) {
                self.next_store = now + TROUBLE_PAUSE;
            } else {
                let due = self.take_due(recorder, SystemTime::now());
                self.store(recorder, due);
            }
        }
        if now >= self.next_alarms {
            self.next_alarms = now + ALARMS_EVERY;
            look_for_alarms(recorder);
        }
    }

    fn take_due(&mut self, recorder: &Recorder, now: SystemTime) -> Vec<Due> {
        let view = recorder.keeper.table().view();
        let is_known = |mac: Option<MacAddr>, uuid: Option<Uuid>| {
            let who = Identity { mac, uuid, ..Identity::default() };
            view.standing(&who).is_some() || !matches!(view.decide(&who), Decision::NoJob)
        };
        let strangers = &mut self.strangers;
        recorder.history.take_due(STORED_AT_ONCE, STORED_BOOTS, now, |mac, uuid, had_script| {
            is_known(mac, uuid) || had_script && strangers.take()
        })
    }

    fn store(&self, recorder: &Recorder, due: Vec<Due>) {
        if due.is_empty() {
            return;
        }
        let due = Arc::new(due);
        let (theirs, history, troubled) =
            (Arc::clone(&due), Arc::clone(&recorder.history), Arc::clone(&self.troubled));
        let sent = recorder.keeper.look(move |_, store| {
            if let Err(error) = write(&theirs, store) {
                tracing::debug!(%error, "timelines are not stored");
                troubled.store(true, Ordering::Relaxed);
                history.still_due(&theirs);
            }
        });
        if !sent {
            recorder.history.still_due(&due);
        }
    }

    /// The server stops: everything that is due, whether it waited long enough or not.
    fn store_the_rest(&mut self, recorder: &Recorder) {
        let later = SystemTime::now() + Duration::from_secs(3600);
        // What came in last is due from the second look on.
        let mut empty = 0;
        for _ in 0..LAST_ROUNDS {
            let due = self.take_due(recorder, later);
            empty = if due.is_empty() { empty + 1 } else { 0 };
            if empty == 2 {
                return;
            }
            if due.is_empty() {
                continue;
            }
            match recorder.keeper.look_and_wait(move |_, store| write(&due, store)) {
                Ok(Ok(())) => {}
                _ => return tracing::warn!("the last timelines could not be stored"),
            }
        }
    }
}

/// Writes machines' records in one commit, each put together with what is stored of it.
fn write(due: &[Due], store: &mut dyn Store) -> Result<(), StoreError> {
    let mut writes = Vec::with_capacity(due.len());
    for due in due {
        let mac = due.mac.map(|mac| mac.to_string());
        let Some(key) = mac.or_else(|| due.uuid.map(|uuid| uuid.to_string())) else { continue };
        let stored = store.get(Kind::Boot, &key)?;
        let generation = stored.as_ref().map_or(0, |record| record.generation) + 1;
        let before = stored.map(|record| read_record(&record.body)).unwrap_or_default();
        let all = merge(before, due.boots.clone());
        let body = record(&all[all.len().saturating_sub(STORED_BOOTS)..]);
        let record = Record { kind: Kind::Boot, key, generation, body };
        writes.push(Write::Put { record, guard: Guard::Any });
    }
    store.commit(&[Transition { writes }]).map(drop)
}

fn look_for_alarms(recorder: &Recorder) {
    // The keeper has better things to do than to look at timelines: it only says for whom jobs wait.
    let waiting = recorder.keeper.look_and_wait(|book, _| {
        let by_more = |job: &Job| !matches!(job.selector, Selector::Mac(_) | Selector::Uuid(_));
        let open = book.jobs().any(|job| job.is_live() && by_more(job));
        (book.jobs().filter_map(|job| Expected::of(job)).collect::<Vec<_>>(), open)
    });
    let Ok((expected, open)) = waiting else { return };
    let now = SystemTime::now();
    let new = lock(&recorder.alarms).look(now, &recorder.history, &expected);
    let view = recorder.keeper.table().view();
    // What a job names beyond address and UUID, DHCP does not show: then it may be about anybody.
    let may_have_job = |alarm: &Alarm| {
        let who = Identity { mac: alarm.machines.first().copied(), uuid: alarm.uuid, ..Identity::default() };
        open || !matches!(view.decide(&who), Decision::NoJob)
    };
    let (loud, quiet): (Vec<_>, Vec<_>) = new.into_iter().partition(|alarm| is_loud(alarm, may_have_job));
    for alarm in quiet {
        tracing::debug!(alarm = alarm.kind.word(), subject = alarm.subject, "{alarm}");
    }
    if !loud.is_empty() {
        recorder.keeper.look(move |_, store| raise(&loud, now, store));
    }
}

/// Whether an alarm is for the log and the events. Anybody can start over and over: of a machine that is to boot nothing it is only
/// listed.
fn is_loud(alarm: &Alarm, may_have_job: impl Fn(&Alarm) -> bool) -> bool {
    alarm.kind != alarms::Kind::Loop || may_have_job(alarm)
}

fn raise(alarms: &[Alarm], now: SystemTime, store: &mut dyn Store) {
    let at_unix_ms = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut writes = Vec::with_capacity(alarms.len());
    for (kind, said, more) in spoken(alarms) {
        for alarm in said {
            tracing::warn!(alarm = kind.word(), subject = alarm.subject, "{alarm}");
        }
        if more > 0 {
            tracing::warn!(
                alarm = kind.word(),
                more,
                "and {more} more at the same time: `bootstorm explain` lists them"
            );
        }
    }
    for alarm in alarms {
        let body = json!({
            "what": "alarm", "kind": alarm.kind, "sentence": alarm.sentence, "machines": alarm.machines,
        });
        let (subject, body) = (alarm.subject.clone(), body.to_string());
        writes.push(Write::Append { log: Log::Event, at_unix_ms, subject, body });
    }
    if let Err(error) = store.commit(&[Transition { writes }]) {
        tracing::debug!(%error, "alarms are not in the event log");
    }
}

/// Which of the alarms raised at once have a line in the log, and how many more there are, kind by kind: a bulk order whose
/// machines are all off is one thing to look at.
fn spoken(all: &[Alarm]) -> Vec<(alarms::Kind, Vec<&Alarm>, usize)> {
    let kinds = alarms::Kind::ALL.into_iter().map(|kind| {
        let mut of_kind: Vec<&Alarm> = all.iter().filter(|alarm| alarm.kind == kind).collect();
        let more = of_kind.len().saturating_sub(ALARMS_SAID);
        of_kind.truncate(ALARMS_SAID);
        (kind, of_kind, more)
    });
    kinds.collect()
}

/// The recorder's part of `/metrics`.
pub(super) fn metrics(history: &History, alarms: &Mutex<Alarms>) -> String {
    let size = history.size();
    let mut text = String::new();
    for (name, help, value) in [
        ("history_machines", "Machines the flight recorder knows.", size.machines),
        ("history_bytes", "Bytes of timelines in memory.", size.bytes),
        ("history_packet_bytes", "Bytes of packets in memory.", size.packet_bytes),
    ] {
        text.push_str(&format!(
            "# HELP bootstorm_{name} {help}\n# TYPE bootstorm_{name} gauge\nbootstorm_{name} {value}\n"
        ));
    }
    text.push_str(&lock(alarms).metrics());
    text
}

fn lock(alarms: &Mutex<Alarms>) -> std::sync::MutexGuard<'_, Alarms> {
    // Alarms are for reading: after a panic elsewhere they are as good as before.
    alarms.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A burst, then so many a second.
pub(super) struct Budget {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    /// Of lines in the log that whatever comes from the network makes.
    pub(super) fn lines() -> Self {
        Self::new(1000.0, 100.0)
    }

    fn new(burst: f64, per_second: f64) -> Self {
        Self { burst, per_second, left: burst, at: Instant::now() }
    }

    pub(super) fn take(&mut self) -> bool {
        let now = Instant::now();
        let came = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + came).min(self.burst);
        self.at = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_that_starts_over_and_over_is_listed_and_not_said() {
        let alarm = |kind| Alarm {
            kind,
            subject: String::new(),
            since_unix: 0,
            sentence: String::new(),
            machines: vec![MacAddr([2, 0, 0, 0, 0, 1])],
            uuid: None,
        };
        assert!(!is_loud(&alarm(alarms::Kind::Loop), |_| false));
        assert!(is_loud(&alarm(alarms::Kind::Loop), |_| true));
        assert!(is_loud(&alarm(alarms::Kind::NeverSeen), |_| false));
    }

    #[test]
    fn of_many_alarms_at_once_some_are_said_and_the_rest_counted() {
        let alarm = |kind, n: usize| Alarm {
            kind,
            subject: format!("j{n}"),
            since_unix: 0,
            sentence: String::new(),
            machines: Vec::new(),
            uuid: None,
        };
        let many = (0..1000).map(|n| alarm(alarms::Kind::NeverSeen, n));
        let all: Vec<Alarm> = many.chain([alarm(alarms::Kind::Loop, 7)]).collect();
        let said: Vec<_> =
            spoken(&all).into_iter().map(|(kind, said, more)| (kind, said.len(), more)).collect();
        assert_eq!(
            said,
            [
                (alarms::Kind::NeverSeen, ALARMS_SAID, 980),
                (alarms::Kind::Loop, 1, 0),
                (alarms::Kind::SameStop, 0, 0)
            ]
        );
    }
}

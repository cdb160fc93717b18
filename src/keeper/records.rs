//! The book's records as the store keeps them: JSON bodies under numbered keys.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::jobs::book::{Book, Change, Numbers};
use crate::jobs::claim::Claim;
use crate::jobs::job::Job;
use crate::jobs::machine::Machine;
use crate::store::{Guard, Kind, Log, Record, Store, StoreError, Transition, Write};

/// Keys of what there is one of.
const NUMBERS: &str = "numbers";
const IDENTITY: &str = "server";

/// Numbers as keys, so that lists are in their order.
fn key(number: u64) -> String {
    format!("{number:020}")
}

fn body(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("records are plain data with text for keys")
}

fn guard(before: Option<u64>) -> Guard {
    before.map_or(Guard::Absent, Guard::Generation)
}

fn put(kind: Kind, number: u64, before: Option<u64>, generation: u64, body: String) -> Write {
    Write::Put { record: Record { kind, key: key(number), generation, body }, guard: guard(before) }
}

/// The transition that stores what changed.
pub(super) fn transition(changes: Vec<Change>, now: SystemTime) -> Transition {
    let at_unix_ms = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64;
    let mut writes = Vec::with_capacity(changes.len());
    for change in changes {
        let (kind, number, before, now) = match change {
            Change::Job { id, before, now } => {
                (Kind::Job, id.0, before, now.map(|job| (job.generation, body(&*job))))
            }
            Change::Claim { id, before, now } => {
                (Kind::Claim, id.0, before, now.map(|claim| (claim.generation, body(&*claim))))
            }
            Change::Machine { id, before, now } => {
                (Kind::Machine, id.0, before, now.map(|machine| (machine.generation, body(&*machine))))
            }
            Change::Numbers(numbers) => {
                let record =
                    Record { kind: Kind::Meta, key: NUMBERS.into(), generation: 1, body: body(&numbers) };
                writes.push(Write::Put { record, guard: Guard::Any });
                continue;
            }
            Change::Said { audit, subject, body } => {
                let log = if audit { Log::Audit } else { Log::Event };
                writes.push(Write::Append { log, at_unix_ms, subject, body });
                continue;
            }
        };
        match (now, before) {
            (Some((generation, body)), before) => writes.push(put(kind, number, before, generation, body)),
            (None, Some(_)) => writes.push(Write::Delete { kind, key: key(number), guard: guard(before) }),
            // Made and forgotten within one transition: it was never stored.
            (None, None) => {}
        }
    }
    Transition { writes }
}

fn read<T: DeserializeOwned>(store: &mut dyn Store, kind: Kind) -> Result<Vec<T>, StoreError> {
    let (_, records) = store.list(kind)?;
    records.iter().map(|record| parse(record)).collect()
}

fn parse<T: DeserializeOwned>(record: &Record) -> Result<T, StoreError> {
    serde_json::from_str(&record.body).map_err(|error| StoreError::Corrupt {
        path: PathBuf::from("the store"),
        detail: format!("{} {} is not what this bootstorm reads: {error}", record.kind, record.key),
    })
}

/// Everything that is stored of jobs, claims and machines.
///
/// # Errors
///
/// The store's own.
pub fn load(store: &mut dyn Store) -> Result<Book, StoreError> {
    let numbers = match store.get(Kind::Meta, NUMBERS)? {
        Some(record) => parse::<Numbers>(&record)?,
        None => Numbers::default(),
    };
    let jobs: Vec<Job> = read(store, Kind::Job)?;
    let claims: Vec<Claim> = read(store, Kind::Claim)?;
    let machines: Vec<Machine> = read(store, Kind::Machine)?;
    Ok(Book::load(numbers, jobs, claims, machines))
}

/// What makes this server's tokens its own across restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The token key.
    pub(super) secret: [u8; 32],
    /// Counts starts; the high bits of every boot's number.
    pub(super) epoch: u64,
}

/// Low bits of a boot's number that count boots of one start.
const BOOT_BITS: u32 = 40;
/// Minutes of the clock that an epoch begins with, so that an old backup put back does not repeat one.
const EPOCH_BASE: Duration = Duration::from_secs(1_700_000_000);
const EPOCH_CLOCK_MAX: u64 = 1 << 23;

impl Identity {
    /// The identity that is stored, for one more start; a first start takes `secret`.
    pub(super) fn begin(
        store: &mut dyn Store,
        secret: [u8; 32],
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let since = now.duration_since(UNIX_EPOCH + EPOCH_BASE).unwrap_or_default();
        let clock = (since.as_secs() / 60).min(EPOCH_CLOCK_MAX);
        let found = store.get(Kind::Meta, IDENTITY)?;
        let next = match &found {
            Some(record) => {
                let old: Self = parse(record)?;
                Self { epoch: (old.epoch + 1).max(clock), ..old }
            }
            None => Self { secret, epoch: clock.max(1) },
        };
        let before = found.map(|record| record.generation);
        let record = Record {
            kind: Kind::Meta,
            key: IDENTITY.into(),
            generation: before.unwrap_or(0) + 1,
            body: body(&next),
        };
        let write = Write::Put { record, guard: guard(before) };
        match store.commit(&[Transition { writes: vec![write] }])?.pop() {
            Some(Ok(_)) => Ok(next),
            Some(Err(conflict)) => Err(StoreError::Io {
                path: PathBuf::from("the store"),
                detail: format!("another process changed it: {conflict}"),
            }),
            None => Err(StoreError::Io { path: PathBuf::from("the store"), detail: "no answer".into() }),
        }
    }

    /// The first boot's number of this start.
    pub(super) fn first_boot(&self) -> u64 {
        self.epoch << BOOT_BITS
    }
}

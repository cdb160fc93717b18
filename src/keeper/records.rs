//! The book's records as the store keeps them: JSON bodies under numbered keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::jobs::book::{Book, Change, Numbers};
use crate::jobs::claim::Claim;
use crate::jobs::job::Job;
use crate::jobs::machine::Machine;
use crate::jobs::token::{BootId, Boots, TokenKey};
use crate::store::{Guard, Kind, Log, Record, Store, StoreError, Transition, Write};

/// Keys of what there is one of.
const NUMBERS: &str = "numbers";
const IDENTITY: &str = "server";
const BACKUP: &str = "backup";
/// The end of the year 9999.
const DATE_MAX_MS: u64 = 253_402_300_799_000;

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

/// Records shown at once: worth a message between two threads, and few enough to be at hand still when they arrive.
const AT_ONCE: usize = 256;

/// What is stored of jobs, claims and machines, in pieces.
#[derive(Debug)]
pub(super) enum Piece {
    /// What was given out last: the first piece.
    Numbers(Numbers),
    Jobs(Vec<Job>),
    Claims(Vec<Claim>),
    Machines(Vec<Machine>),
}

impl Piece {
    /// Puts it into the book; the first piece makes it one.
    pub(super) fn put_in(self, book: &mut Book) {
        match self {
            Self::Numbers(numbers) => *book = Book::stored(numbers),
            Self::Jobs(jobs) => jobs.into_iter().for_each(|job| book.load_job(job)),
            Self::Claims(claims) => claims.into_iter().for_each(|claim| book.load_claim(claim)),
            Self::Machines(machines) => machines.into_iter().for_each(|machine| book.load_machine(machine)),
        }
    }
}

fn parse<T: DeserializeOwned>(kind: Kind, key: &str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::Corrupt {
        path: PathBuf::from("the store"),
        detail: format!("{kind} {key} is not what this bootstorm reads: {error}"),
    })
}

fn read<T: DeserializeOwned>(
    store: &mut dyn Store,
    kind: Kind,
    mut show: impl FnMut(Vec<T>),
) -> Result<(), StoreError> {
    let mut some = Vec::new();
    store.each(kind, &mut |key, body| {
        some.push(parse(kind, key, body)?);
        if some.len() == AT_ONCE {
            show(std::mem::replace(&mut some, Vec::with_capacity(AT_ONCE)));
        }
        Ok(())
    })?;
    show(some);
    Ok(())
}

/// Shows everything that is stored of jobs, claims and machines. None of it is to be relied on before [`Store::check`]
/// has found no damage.
pub(super) fn show(store: &mut dyn Store, mut show: impl FnMut(Piece)) -> Result<(), StoreError> {
    let numbers = match store.get(Kind::Meta, NUMBERS)? {
        Some(record) => parse(record.kind, &record.key, &record.body)?,
        None => Numbers::default(),
    };
    show(Piece::Numbers(numbers));
    read(store, Kind::Job, |jobs| show(Piece::Jobs(jobs)))?;
    read(store, Kind::Claim, |claims| show(Piece::Claims(claims)))?;
    read(store, Kind::Machine, |machines| show(Piece::Machines(machines)))
}

/// Everything that is stored of jobs, claims and machines.
///
/// # Errors
///
/// The store's own.
pub fn load(store: &mut dyn Store) -> Result<Book, StoreError> {
    let mut book = Book::new();
    show(store, |piece| piece.put_in(&mut book))?;
    store.check()?;
    Ok(book)
}

/// What a backup is known by when it has been put in the store's place: when it was made.
#[derive(Serialize, Deserialize)]
struct Taken {
    at_unix_ms: u64,
}

/// Copies the store to a new file that is known for a backup: whoever starts on it knows that what happened since is not
/// in it.
///
/// # Errors
///
/// The store's own; the file is there only if it is whole.
pub fn back_up(store: &mut dyn Store, to: &Path, now: SystemTime) -> Result<(), StoreError> {
    let at_unix_ms = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64;
    let mark =
        Record { kind: Kind::Meta, key: BACKUP.into(), generation: 1, body: body(&Taken { at_unix_ms }) };
    store.backup(to, &mark)
}

/// When the backup was made that this store was put back from, if nobody has looked at that yet.
pub(super) fn put_back(store: &mut dyn Store) -> Result<Option<SystemTime>, StoreError> {
    let Some(record) = store.get(Kind::Meta, BACKUP)? else { return Ok(None) };
    let taken: Taken = parse(record.kind, &record.key, &record.body)?;
    // A date that can be written.
    Ok(Some(UNIX_EPOCH + Duration::from_millis(taken.at_unix_ms.min(DATE_MAX_MS))))
}

/// The transition after which a store that was put back is one like any other, and which says that it was.
pub(super) fn no_more_a_backup(by: &str, ended: usize, now: SystemTime) -> Transition {
    let at_unix_ms = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64;
    let said = serde_json::json!({ "by": by, "what": "store-put-back", "jobs_ended": ended }).to_string();
    Transition {
        writes: vec![
            Write::Delete { kind: Kind::Meta, key: BACKUP.into(), guard: Guard::Any },
            Write::Append { log: Log::Audit, at_unix_ms, subject: "store".into(), body: said },
        ],
    }
}

/// What makes this server's tokens its own across restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The token key.
    secret: [u8; 32],
    /// Counts starts; the high bits of every boot's number.
    epoch: u64,
}

/// Low bits of a boot's number that count boots of one start.
const BOOT_BITS: u32 = 40;
/// Minutes of the clock that an epoch begins with, so that an old backup put back does not repeat one.
const EPOCH_BASE: Duration = Duration::from_secs(1_700_000_000);
const EPOCH_CLOCK_MAX: u64 = 1 << 23;

impl Identity {
    /// The identity that is stored, for one more start; a first start takes `secret`, and so does one on a backup: the
    /// numbers of jobs are given out a second time there, and a token of before must not open another job.
    pub(super) fn begin(
        store: &mut dyn Store,
        secret: [u8; 32],
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let since = now.duration_since(UNIX_EPOCH + EPOCH_BASE).unwrap_or_default();
        let clock = (since.as_secs() / 60).min(EPOCH_CLOCK_MAX);
        let found = store.get(Kind::Meta, IDENTITY)?;
        let is_copy = put_back(store)?.is_some();
        let next = match &found {
            Some(record) => {
                let old: Self = parse(record.kind, &record.key, &record.body)?;
                let secret = if is_copy { secret } else { old.secret };
                Self { epoch: (old.epoch + 1).max(clock), secret }
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

    /// Where the boots of this start get their numbers.
    pub(super) fn boots(&self) -> Arc<Boots> {
        Arc::new(Boots::from(BootId(self.epoch << BOOT_BITS)))
    }

    /// The token key.
    pub(super) fn key(&self) -> TokenKey {
        TokenKey::new(self.secret)
    }
}

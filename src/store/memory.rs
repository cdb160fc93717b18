//! A store in memory: the plain statement of what a store does, and the one that simulations crash.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::chain::Walk;
use super::{
    AuditCheck, ChainHash, Conflict, Guard, Kind, Log, LogEntry, Record, Revision, Store, StoreError,
    TRIM_AT_ONCE, Transition, Trimmed, Write,
};

/// Everything that a store holds. [`MemoryStore::from`] opens it again.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    revision: Revision,
    records: BTreeMap<Kind, BTreeMap<String, Stored>>,
    events: BTreeMap<u64, LogEntry>,
    event_last: u64,
    audit: Vec<(LogEntry, ChainHash)>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stored {
    generation: u64,
    body: String,
    /// Of the transition that wrote it last.
    revision: Revision,
}

/// How the next commit fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// [`StoreError::Full`]; nothing is stored.
    Full,
    /// [`StoreError::Io`]; nothing is stored.
    Io,
    /// [`StoreError::Io`], and the batch did reach the disk: this store does not see it, but a
    /// [`snapshot`](MemoryStore::snapshot) taken before another commit succeeds does, as a restart would.
    InDoubt,
}

/// A store in memory. A simulated crash throws it away and opens the last [`Snapshot`] again.
#[derive(Default, Debug)]
pub struct MemoryStore {
    now: Snapshot,
    /// After so many commits that succeed.
    fault: Option<(u32, Fault)>,
    full: bool,
    /// What a restart would find instead of `now`.
    in_doubt: Option<Snapshot>,
}

impl From<Snapshot> for MemoryStore {
    fn from(now: Snapshot) -> Self {
        Self { now, fault: None, full: false, in_doubt: None }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens what [`Store::backup`] of a store in memory wrote.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let text = fs::read(path).map_err(|error| io(path, "read", &error))?;
        let corrupt = |error: serde_json::Error| StoreError::Corrupt {
            path: path.to_owned(),
            detail: error.to_string(),
        };
        Ok(Self::from(serde_json::from_slice::<Snapshot>(&text).map_err(corrupt)?))
    }

    /// What a process that dies now leaves behind.
    pub fn snapshot(&self) -> Snapshot {
        self.in_doubt.as_ref().unwrap_or(&self.now).clone()
    }

    /// Makes the next commit fail, once.
    pub fn fail_next_commit(&mut self, fault: Fault) {
        self.fail_commit_after(0, fault);
    }

    /// Makes a commit fail, once: the one after so many that succeed.
    pub fn fail_commit_after(&mut self, commits: u32, fault: Fault) {
        self.fault = Some((commits, fault));
    }

    /// Makes every commit fail for want of space, until told otherwise.
    pub fn fill_up(&mut self, full: bool) {
        self.full = full;
    }
}

impl Snapshot {
    fn found(&self, kind: Kind, key: &str) -> Option<&Stored> {
        self.records.get(&kind)?.get(key)
    }

    fn judge(&self, transition: &Transition) -> Result<(), Conflict> {
        for write in &transition.writes {
            let (kind, key, guard) = match write {
                Write::Put { record, guard } => (record.kind, &record.key, *guard),
                Write::Delete { kind, key, guard } => (*kind, key, *guard),
                Write::Append { .. } => continue,
            };
            let found = self.found(kind, key).map(|stored| stored.generation);
            if !Guard::holds(guard, found) {
                return Err(Conflict { kind, key: key.clone(), found });
            }
        }
        Ok(())
    }

    fn apply(&mut self, transition: &Transition) -> Revision {
        self.revision.0 += 1;
        for write in &transition.writes {
            match write.clone() {
                Write::Put { record: Record { kind, key, generation, body }, .. } => {
                    let stored = Stored { generation, body, revision: self.revision };
                    self.records.entry(kind).or_default().insert(key, stored);
                }
                Write::Delete { kind, key, .. } => {
                    self.records.entry(kind).or_default().remove(&key);
                }
                Write::Append { log, at_unix_ms, subject, body } => {
                    let at_unix_ms = at_unix_ms.min(i64::MAX as u64);
                    match log {
                        Log::Event => {
                            self.event_last += 1;
                            let number = self.event_last;
                            self.events.insert(number, LogEntry { number, at_unix_ms, subject, body });
                        }
                        Log::Audit => {
                            let number = self.audit.len() as u64 + 1;
                            let entry = LogEntry { number, at_unix_ms, subject, body };
                            let before = self.audit.last().map_or(ChainHash::START, |(_, hash)| *hash);
                            let hash = before.followed_by(&entry);
                            self.audit.push((entry, hash));
                        }
                    }
                }
            }
        }
        self.revision
    }

    fn commit(&mut self, batch: &[Transition]) -> Vec<Result<Revision, Conflict>> {
        batch.iter().map(|transition| self.judge(transition).map(|()| self.apply(transition))).collect()
    }
}

impl Store for MemoryStore {
    fn list(&mut self, kind: Kind) -> Result<(Revision, Vec<Record>), StoreError> {
        let of_kind = self.now.records.get(&kind).into_iter().flatten();
        let records = of_kind.map(|(key, stored)| stored.as_record(kind, key)).collect();
        Ok((self.now.revision, records))
    }

    fn each(
        &mut self,
        kind: Kind,
        visit: &mut dyn FnMut(&str, &str) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut of_kind = self.now.records.get(&kind).into_iter().flatten();
        of_kind.try_for_each(|(key, stored)| visit(key, &stored.body))
    }

    fn get(&mut self, kind: Kind, key: &str) -> Result<Option<Record>, StoreError> {
        Ok(self.now.found(kind, key).map(|stored| stored.as_record(kind, key)))
    }

    fn commit(&mut self, batch: &[Transition]) -> Result<Vec<Result<Revision, Conflict>>, StoreError> {
        let path = PathBuf::from("(memory)");
        if self.full {
            return Err(StoreError::Full { path });
        }
        if let Some((commits @ 1.., _)) = &mut self.fault {
            *commits -= 1;
            self.in_doubt = None;
            return Ok(self.now.commit(batch));
        }
        match self.fault.take().map(|(_, fault)| fault) {
            Some(Fault::Full) => return Err(StoreError::Full { path }),
            Some(fault) => {
                if fault == Fault::InDoubt {
                    let mut found_later = self.now.clone();
                    found_later.commit(batch);
                    self.in_doubt = Some(found_later);
                }
                return Err(StoreError::Io { path, detail: "cannot commit: a fault was asked for".into() });
            }
            None => {}
        }
        self.in_doubt = None;
        Ok(self.now.commit(batch))
    }

    fn read_log(
        &mut self,
        log: Log,
        subject: Option<&str>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let wanted = |entry: &&LogEntry| {
            before.is_none_or(|before| entry.number < before) && subject.is_none_or(|s| entry.subject == s)
        };
        Ok(match log {
            Log::Event => self.now.events.values().rev().filter(wanted).take(limit).cloned().collect(),
            Log::Audit => {
                self.now.audit.iter().rev().map(|(e, _)| e).filter(wanted).take(limit).cloned().collect()
            }
        })
    }

    fn verify_audit(&mut self) -> Result<AuditCheck, StoreError> {
        let mut walk = Walk::start();
        for (entry, hash) in &self.now.audit {
            if let Err(number) = walk.step(entry, &hash.0) {
                return Ok(AuditCheck::Broken { number });
            }
        }
        Ok(walk.end(self.now.audit.len() as u64))
    }

    fn trim(
        &mut self,
        events_before_unix_ms: u64,
        events_max: u64,
        boots_max: u64,
    ) -> Result<Trimmed, StoreError> {
        let events = &mut self.now.events;
        let mut old: Vec<_> = events
            .values()
            .filter(|entry| entry.at_unix_ms < events_before_unix_ms)
            .map(|entry| (entry.at_unix_ms, entry.number))
            .collect();
        old.sort_unstable();
        old.truncate(TRIM_AT_ONCE as usize);
        for (_, number) in &old {
            events.remove(number);
        }
        let mut events_gone = old.len() as u64;
        while events.len() as u64 > events_max && events_gone < TRIM_AT_ONCE {
            events.pop_first();
            events_gone += 1;
        }
        let boots = self.now.records.entry(Kind::Boot).or_default();
        let mut order: Vec<_> = boots.iter().map(|(key, stored)| (stored.revision, key.clone())).collect();
        order.sort_unstable();
        order.truncate((boots.len() as u64).saturating_sub(boots_max).min(TRIM_AT_ONCE) as usize);
        for (_, key) in &order {
            boots.remove(key);
        }
        let boots_gone = order.len() as u64;
        let more = events_gone == TRIM_AT_ONCE || boots_gone == TRIM_AT_ONCE;
        Ok(Trimmed { events: events_gone, boots: boots_gone, more })
    }

    fn backup(&mut self, to: &Path, mark: &Record) -> Result<(), StoreError> {
        let mut copy = self.now.clone();
        let stored = Stored { generation: mark.generation, body: mark.body.clone(), revision: copy.revision };
        copy.records.entry(mark.kind).or_default().insert(mark.key.clone(), stored);
        let text = serde_json::to_vec(&copy).expect("a snapshot is plain data with text for keys");
        let mut file = fs::File::create_new(to).map_err(|error| io(to, "create", &error))?;
        std::io::Write::write_all(&mut file, &text).map_err(|error| io(to, "write", &error))
    }
}

/// A store in memory that several hands hold, so that a test can make it fail, or read what a crash leaves, while its
/// owner uses it.
#[derive(Clone, Default, Debug)]
pub struct SharedStore(Arc<Mutex<MemoryStore>>);

impl SharedStore {
    /// Holds this store.
    pub fn new(store: MemoryStore) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    /// The store itself, to look at or to break.
    pub fn inner(&self) -> MutexGuard<'_, MemoryStore> {
        // Each call leaves the store whole, so one that panicked left it as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for SharedStore {
    fn list(&mut self, kind: Kind) -> Result<(Revision, Vec<Record>), StoreError> {
        self.inner().list(kind)
    }

    fn each(
        &mut self,
        kind: Kind,
        visit: &mut dyn FnMut(&str, &str) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.inner().each(kind, visit)
    }

    fn get(&mut self, kind: Kind, key: &str) -> Result<Option<Record>, StoreError> {
        self.inner().get(kind, key)
    }

    fn commit(&mut self, batch: &[Transition]) -> Result<Vec<Result<Revision, Conflict>>, StoreError> {
        self.inner().commit(batch)
    }

    fn read_log(
        &mut self,
        log: Log,
        subject: Option<&str>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        self.inner().read_log(log, subject, before, limit)
    }

    fn verify_audit(&mut self) -> Result<AuditCheck, StoreError> {
        self.inner().verify_audit()
    }

    fn trim(&mut self, events_before: u64, events_max: u64, boots_max: u64) -> Result<Trimmed, StoreError> {
        self.inner().trim(events_before, events_max, boots_max)
    }

    fn backup(&mut self, to: &Path, mark: &Record) -> Result<(), StoreError> {
        self.inner().backup(to, mark)
    }
}

impl Stored {
    fn as_record(&self, kind: Kind, key: &str) -> Record {
        Record { kind, key: key.to_owned(), generation: self.generation, body: self.body.clone() }
    }
}

fn io(path: &Path, verb: &str, error: &std::io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), detail: format!("cannot {verb}: {error}") }
}

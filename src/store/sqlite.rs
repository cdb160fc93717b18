//! The store in one SQLite file.
//!
//! Write-ahead log, `synchronous=FULL`: a commit is one write and one fsync, and returns after it. The file is held
//! under an exclusive lock for as long as it is open, so that two servers cannot serve from one state, and so that
//! SQLite keeps its index of the log on the heap: the usual shared-memory file is a mapping, and a mapping on a full
//! disk is a SIGBUS.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::chain::Walk;
use super::{
    AuditCheck, ChainHash, Conflict, Guard, Kind, Log, LogEntry, Record, Revision, Store, StoreError,
    TRIM_AT_ONCE, Transition, Trimmed, Write,
};

/// "bsto": tells our files from SQLite files of other programs.
const APPLICATION_ID: i32 = 0x6273_746f;

/// The schema's history: step N leads from version N to N + 1. A step that was released is never changed.
///
/// Bodies of claims, leases, tokens and meta records are short, so these live in their key's own tree.
const STEPS: &[&str] = &[
    "
    CREATE TABLE jobs     (key TEXT PRIMARY KEY NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL);
    CREATE TABLE claims   (key TEXT PRIMARY KEY NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE machines (key TEXT PRIMARY KEY NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL);
    CREATE TABLE boots    (key TEXT PRIMARY KEY NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL);
    CREATE TABLE leases   (key TEXT PRIMARY KEY NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE tokens   (key TEXT PRIMARY KEY NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE meta     (key TEXT PRIMARY KEY NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE events   (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL);
    CREATE TABLE audit    (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL, hash BLOB NOT NULL);
    CREATE TABLE counters (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counters VALUES ('revision', 0), ('events', 0), ('audit', 0);
    ",
    // What one machine did is asked for often, and a trim must not read the whole log.
    "
    CREATE INDEX events_by_subject ON events (subject, number);
    CREATE INDEX events_by_time ON events (at, number);
    CREATE INDEX audit_by_subject ON audit (subject, number);
    CREATE INDEX boots_by_revision ON boots (revision, key);
    ",
];

/// The schema that this program writes.
const SCHEMA: u32 = STEPS.len() as u32;

/// How long opening waits for a server that is just stopping.
const OPEN_WAIT: Duration = Duration::from_secs(2);
/// Pages of the log (4 KiB each) at which it is folded into the file whoever waits. Before that, [`Store::rest`] does it.
const LOG_PAGES_MAX: i64 = 16 * 1_024;
/// Records and entries in the log that are worth folding when nobody waits.
const REST_WRITES: u64 = 1_000;
/// The log's file is cut to this when it begins anew. To write again where it was written before is cheaper for the file
/// system than to grow.
const LOG_KEPT: i64 = LOG_PAGES_MAX * 4_096;
/// Memory for pages. A storm's transitions are scattered over all jobs, and a page that is not here is read anew.
const CACHE_KIB: i64 = 64 << 10;
/// Pages that a backup copies in one step.
const BACKUP_PAGES: i32 = 1_024;

/// A store in one SQLite file, and its `-wal` file beside it while it is open.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    connection: Connection,
    counters: Counters,
    /// What was written since the log was folded into the file by [`Store::rest`].
    unfolded: u64,
    /// The file's structure was looked at since it was opened, or the file was made then.
    checked: bool,
}

/// What the next transition and the next entries follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counters {
    revision: u64,
    events: u64,
    audit: u64,
    audit_head: ChainHash,
}

/// The statements for the records of one kind.
struct Sql {
    list: &'static str,
    /// In the order in which they lie in the file.
    each: &'static str,
    get: &'static str,
    generation: &'static str,
    put: &'static str,
    /// The same where there is none; changes nothing otherwise.
    put_absent: &'static str,
    /// The same where there is one of this generation; changes nothing otherwise.
    put_following: &'static str,
    delete: &'static str,
}

macro_rules! sql {
    ($table:literal) => {
        Sql {
            list: concat!("SELECT key, generation, body FROM ", $table, " ORDER BY key"),
            each: concat!("SELECT key, body FROM ", $table),
            get: concat!("SELECT generation, body FROM ", $table, " WHERE key = ?1"),
            generation: concat!("SELECT generation FROM ", $table, " WHERE key = ?1"),
            put: concat!(
                "INSERT INTO ",
                $table,
                " (key, generation, body, revision) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO UPDATE SET \
                 generation = excluded.generation, body = excluded.body, revision = excluded.revision"
            ),
            put_absent: concat!(
                "INSERT INTO ",
                $table,
                " (key, generation, body, revision) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO NOTHING"
            ),
            put_following: concat!(
                "UPDATE ",
                $table,
                " SET generation = ?2, body = ?3, revision = ?4 WHERE key = ?1 AND generation = ?5"
            ),
            delete: concat!("DELETE FROM ", $table, " WHERE key = ?1"),
        }
    };
}

const fn sql(kind: Kind) -> Sql {
    match kind {
        Kind::Job => sql!("jobs"),
        Kind::Claim => sql!("claims"),
        Kind::Machine => sql!("machines"),
        Kind::Boot => sql!("boots"),
        Kind::Lease => sql!("leases"),
        Kind::Token => sql!("tokens"),
        Kind::Meta => sql!("meta"),
    }
}

impl SqliteStore {
    /// Opens the store in this file, or makes an empty one (mode 0600; its folder must be there).
    ///
    /// Whatever a killed server left half done is undone before this returns, an older schema is brought up to
    /// date, and the file's structure is checked, which reads all of it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut store = Self::open_unchecked(path)?;
        store.check()?;
        Ok(store)
    }

    /// [`SqliteStore::open`], but for the look at the structure of a file whose schema is up to date: for whoever reads
    /// all records first, and calls [`Store::check`] before anybody relies on one.
    pub fn open_unchecked(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let io = |verb: &str, error: &io::Error| StoreError::Io {
            path: path.clone(),
            detail: format!("cannot {verb}: {error}"),
        };
        let mut made = false;
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => made = true,
            // Not opened and closed here: closing any descriptor of a file drops all locks that this process has
            // on it (POSIX).
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mode =
                    fs::metadata(&path).map_err(|error| io("look at it", &error))?.permissions().mode();
                if mode & 0o077 != 0 {
                    let mode = Permissions::from_mode(mode & 0o700);
                    fs::set_permissions(&path, mode).map_err(|error| io("make it private", &error))?;
                }
            }
            Err(error) => return Err(io("create", &error)),
        }
        let opened = Self::connect(&path);
        let (connection, counters, checked) = opened.map_err(|failure| failure.explain(&path, "open"))?;
        if made {
            // The new name must be as durable as what will be acknowledged under it. A file system with a journal has
            // stored it with the file's first page, and has nothing left to wait for.
            sync_folder_of(&path).map_err(|error| io("sync the folder", &error))?;
        }
        Ok(Self { path, connection, counters, unfolded: 0, checked })
    }

    /// The connection, what the next transition follows, and whether the structure needs no look any more.
    fn connect(path: &Path) -> Result<(Connection, Counters, bool), Failure> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(OPEN_WAIT)?;
        connection.set_prepared_statement_cache_capacity(64);
        // The first thing of all: it must be set before the log is touched.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        // Nothing is written before this says that the file is ours and not from the future.
        let version = schema_of(&connection)?;
        let is_new = version == 0;
        if is_new {
            // An empty file has nothing to go back to: its first page is written and synced without a journal, which
            // would take three more syncs.
            let _: String =
                connection.pragma_update_and_check(None, "journal_mode", "OFF", |row| row.get(0))?;
        }
        let journal: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if journal != "wal" {
            return Err(Failure::Corrupt(format!("its journal cannot be a write-ahead log: {journal}")));
        }
        for (name, value) in [
            // The tables of a new store are at the beginning of the log: the first commit syncs them with itself, and a
            // log that was cut before it is that of an empty store, or of one with all tables.
            ("synchronous", if is_new { "OFF" } else { "FULL" }),
            ("temp_store", "MEMORY"),
            ("cell_size_check", "ON"),
            ("trusted_schema", "OFF"),
        ] {
            connection.pragma_update(None, name, value)?;
        }
        connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES_MAX)?;
        connection.pragma_update(None, "journal_size_limit", LOG_KEPT)?;
        // In KiB when negative.
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let is_old = !is_new && version < SCHEMA;
        if is_old {
            check_structure(&connection)?;
        }
        migrate(&mut connection, version)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let counters = Counters::read(&connection)?;
        Ok((connection, counters, is_new || is_old))
    }

    #[cfg(test)]
    pub(super) fn pragma(&self, name: &str) -> i64 {
        self.connection.pragma_query_value(None, name, |row| row.get(0)).expect("a number")
    }

    fn explain(&self, verb: &str, error: &rusqlite::Error) -> StoreError {
        explain(&self.path, verb, error)
    }

    fn try_commit(
        &mut self,
        batch: &[Transition],
    ) -> rusqlite::Result<(Counters, Vec<Result<Revision, Conflict>>)> {
        let mut counters = self.counters;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut answers = Vec::with_capacity(batch.len());
        for transition in batch {
            answers.push(match apply(&transaction, transition, &mut counters)? {
                Some(conflict) => Err(conflict),
                None => Ok(Revision(counters.revision)),
            });
        }
        if counters == self.counters {
            transaction.rollback()?;
        } else {
            counters.write(&transaction, &self.counters)?;
            transaction.commit()?;
        }
        Ok((counters, answers))
    }

    fn try_trim(&mut self, before: i64, events_max: u64, boots_max: u64) -> rusqlite::Result<Trimmed> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let count = |sql: &str| transaction.query_row(sql, [], |row| row.get::<_, i64>(0));
        let mut events = transaction.execute(
            "DELETE FROM events WHERE number IN (SELECT number FROM events WHERE at < ?1 ORDER BY at, number LIMIT ?2)",
            params![before, as_stored(TRIM_AT_ONCE)],
        )? as u64;
        let excess = (count("SELECT count(*) FROM events")? as u64).saturating_sub(events_max);
        events += transaction.execute(
            "DELETE FROM events WHERE number IN (SELECT number FROM events ORDER BY number LIMIT ?1)",
            [as_stored(excess.min(TRIM_AT_ONCE - events))],
        )? as u64;
        let excess = (count("SELECT count(*) FROM boots")? as u64).saturating_sub(boots_max);
        let boots = transaction.execute(
            "DELETE FROM boots WHERE key IN (SELECT key FROM boots ORDER BY revision, key LIMIT ?1)",
            [as_stored(excess.min(TRIM_AT_ONCE))],
        )? as u64;
        transaction.commit()?;
        Ok(Trimmed { events, boots, more: events == TRIM_AT_ONCE || boots == TRIM_AT_ONCE })
    }

    /// After a failed write: folds what is committed into the file and empties the log. That gives the log's space
    /// back, and it removes what a failed fsync may have left there for a restart to find.
    fn fold_log(&self) {
        // If it fails too, the next commit overwrites the same place in the log.
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
}

impl Store for SqliteStore {
    fn list(&mut self, kind: Kind) -> Result<(Revision, Vec<Record>), StoreError> {
        let read = || -> rusqlite::Result<Vec<Record>> {
            let mut statement = self.connection.prepare_cached(sql(kind).list)?;
            let rows = statement.query_map([], |row| {
                Ok(Record { kind, key: row.get(0)?, generation: from_stored(row.get(1)?), body: row.get(2)? })
            })?;
            rows.collect()
        };
        let records = read().map_err(|error| self.explain("list", &error))?;
        // Nobody else can write, so the counter in memory is the file's.
        Ok((Revision(self.counters.revision), records))
    }

    fn each(
        &mut self,
        kind: Kind,
        visit: &mut dyn FnMut(&str, &str) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut refused = Ok(());
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(sql(kind).each)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                refused = visit(row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
                if refused.is_err() {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(|error| self.explain("list", &error))?;
        refused
    }

    fn check(&mut self) -> Result<(), StoreError> {
        if !self.checked {
            check_structure(&self.connection).map_err(|failure| failure.explain(&self.path, "open"))?;
            self.checked = true;
        }
        Ok(())
    }

    fn get(&mut self, kind: Kind, key: &str) -> Result<Option<Record>, StoreError> {
        let read = || {
            let mut statement = self.connection.prepare_cached(sql(kind).get)?;
            let record = statement.query_row([key], |row| {
                let key = key.to_owned();
                Ok(Record { kind, key, generation: from_stored(row.get(0)?), body: row.get(1)? })
            });
            record.optional()
        };
        read().map_err(|error| self.explain("read", &error))
    }

    fn commit(&mut self, batch: &[Transition]) -> Result<Vec<Result<Revision, Conflict>>, StoreError> {
        match self.try_commit(batch) {
            Ok((counters, answers)) => {
                self.counters = counters;
                self.unfolded += batch.iter().map(|transition| transition.writes.len() as u64).sum::<u64>();
                Ok(answers)
            }
            Err(error) => {
                self.fold_log();
                Err(self.explain("commit", &error))
            }
        }
    }

    fn rest(&mut self) -> bool {
        if self.unfolded < REST_WRITES {
            return false;
        }
        self.unfolded = 0;
        // What fails now is done by the commit at whose end the log is too long, which says so.
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        true
    }

    fn read_log(
        &mut self,
        log: Log,
        subject: Option<&str>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let below = before.map_or(i64::MAX, clamped);
        let limit = clamped(limit as u64);
        let read = || -> rusqlite::Result<Vec<LogEntry>> {
            let mut statement = self.connection.prepare_cached(match (log, subject) {
                (Log::Event, None) => {
                    "SELECT number, at, subject, body FROM events WHERE number < ?1 ORDER BY number DESC LIMIT ?2"
                }
                (Log::Event, Some(_)) => {
                    "SELECT number, at, subject, body FROM events WHERE number < ?1 AND subject = ?3 \
                     ORDER BY number DESC LIMIT ?2"
                }
                (Log::Audit, None) => {
                    "SELECT number, at, subject, body FROM audit WHERE number < ?1 ORDER BY number DESC LIMIT ?2"
                }
                (Log::Audit, Some(_)) => {
                    "SELECT number, at, subject, body FROM audit WHERE number < ?1 AND subject = ?3 \
                     ORDER BY number DESC LIMIT ?2"
                }
            })?;
            match subject {
                None => statement.query_map(params![below, limit], entry)?.collect(),
                Some(subject) => statement.query_map(params![below, limit, subject], entry)?.collect(),
            }
        };
        read().map_err(|error| self.explain("read the log", &error))
    }

    fn verify_audit(&mut self) -> Result<AuditCheck, StoreError> {
        let check = || -> rusqlite::Result<AuditCheck> {
            let mut walk = Walk::start();
            let mut statement = self
                .connection
                .prepare_cached("SELECT number, at, subject, body, hash FROM audit ORDER BY number")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if let Err(number) = walk.step(&entry(row)?, row.get_ref(4)?.as_bytes().unwrap_or_default()) {
                    return Ok(AuditCheck::Broken { number });
                }
            }
            Ok(walk.end(self.counters.audit))
        };
        check().map_err(|error| self.explain("verify the audit log", &error))
    }

    fn trim(
        &mut self,
        events_before_unix_ms: u64,
        events_max: u64,
        boots_max: u64,
    ) -> Result<Trimmed, StoreError> {
        self.try_trim(clamped(events_before_unix_ms), events_max, boots_max).map_err(|error| {
            self.fold_log();
            self.explain("trim", &error)
        })
    }

    fn backup(&mut self, to: &Path, mark: &Record) -> Result<(), StoreError> {
        let io = |verb: &str, error: &io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::Full { path: to.to_owned() }
            }
            _ => StoreError::Io { path: to.to_owned(), detail: format!("cannot {verb}: {error}") },
        };
        let Some(name) = to.file_name() else {
            return Err(io("write a backup", &io::ErrorKind::InvalidInput.into()));
        };
        // Any file: an older backup, and above all the store itself.
        if fs::symlink_metadata(to).is_ok() {
            return Err(io("write a backup", &io::ErrorKind::AlreadyExists.into()));
        }
        let partial = |tail: &str| {
            let mut partial = std::ffi::OsString::from(".");
            partial.push(name);
            partial.push(tail);
            to.with_file_name(partial)
        };
        let remove = || {
            for tail in [".partial", ".partial-wal", ".partial-journal"] {
                let _ = fs::remove_file(partial(tail));
            }
        };
        remove();
        let path = partial(".partial");
        let copy = || {
            let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            drop(created.map_err(|error| io("create", &error))?);
            copy_into(&self.connection, &path, mark).map_err(|failure| match failure {
                Failure::Sqlite(error) => explain(to, "write a backup", &error),
                Failure::Corrupt(detail) => StoreError::Corrupt { path: self.path.clone(), detail },
                Failure::NewerSchema(found) => {
                    StoreError::NewerSchema { path: self.path.clone(), found, known: SCHEMA }
                }
            })?;
            File::open(&path).and_then(|file| file.sync_all()).map_err(|error| io("sync", &error))?;
            fs::rename(&path, to).map_err(|error| io("rename into place", &error))?;
            sync_folder_of(to).map_err(|error| io("sync the folder", &error))
        };
        copy().inspect_err(|_| remove())
    }
}

/// Copies by SQLite's backup interface, marks the copy and looks at it; it ends as a single file without a log.
fn copy_into(from: &Connection, path: &Path, mark: &Record) -> Result<(), Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut copy = Connection::open_with_flags(path, flags)?;
    copy.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // One fsync at the end, by the caller, is enough for a file that has no name yet.
    copy.pragma_update(None, "synchronous", "OFF")?;
    let backup = Backup::new(from, &mut copy)?;
    while backup.step(BACKUP_PAGES)? != StepResult::Done {}
    drop(backup);
    let _: String = copy.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get(0))?;
    let revision = as_stored(Counters::read(&copy)?.revision);
    copy.execute(sql(mark.kind).put, params![mark.key, as_stored(mark.generation), mark.body, revision])?;
    check_structure(&copy)?;
    copy.close().map_err(|(_, error)| error.into())
}

impl Counters {
    fn read(connection: &Connection) -> Result<Self, Failure> {
        let counter = |name: &str| -> rusqlite::Result<u64> {
            let sql = "SELECT value FROM counters WHERE name = ?1";
            connection.query_row(sql, [name], |row| row.get(0)).map(from_stored)
        };
        let head = connection
            .query_row("SELECT hash FROM audit ORDER BY number DESC LIMIT 1", [], |row| row.get(0))
            .optional()?;
        Ok(Self {
            revision: counter("revision")?,
            events: counter("events")?,
            audit: counter("audit")?,
            audit_head: head.map_or(ChainHash::START, ChainHash),
        })
    }

    fn write(&self, connection: &Connection, before: &Self) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached("UPDATE counters SET value = ?2 WHERE name = ?1")?;
        for (name, new, old) in [
            ("revision", self.revision, before.revision),
            ("events", self.events, before.events),
            ("audit", self.audit, before.audit),
        ] {
            if new != old {
                statement.execute(params![name, as_stored(new)])?;
            }
        }
        Ok(())
    }
}

/// The first guard that does not hold.
fn judge<'t>(
    connection: &Connection,
    writes: impl IntoIterator<Item = &'t Write>,
) -> rusqlite::Result<Option<Conflict>> {
    for write in writes {
        let (kind, key, guard) = match write {
            Write::Put { record, guard } => (record.kind, &record.key, *guard),
            Write::Delete { kind, key, guard } => (*kind, key, *guard),
            Write::Append { .. } => continue,
        };
        if guard == Guard::Any {
            continue;
        }
        let mut statement = connection.prepare_cached(sql(kind).generation)?;
        let found = statement.query_row([key], |row| row.get(0)).optional()?.map(from_stored);
        if !guard.holds(found) {
            return Ok(Some(Conflict { kind, key: key.clone(), found }));
        }
    }
    Ok(None)
}

/// Stores a transition, or nothing of it if a guard does not hold.
///
/// Most transitions change one record and log it. That one's guard is judged by the very statement that writes, which
/// goes first; of more, all are judged before.
fn apply(
    connection: &Connection,
    transition: &Transition,
    counters: &mut Counters,
) -> rusqlite::Result<Option<Conflict>> {
    let revision = counters.revision + 1;
    let guarded = |write: &Write| matches!(write, Write::Put { guard, .. } | Write::Delete { guard, .. } if *guard != Guard::Any);
    let mut changes = transition.writes.iter().filter(|write| !matches!(write, Write::Append { .. }));
    let first = match changes.next() {
        Some(first @ Write::Put { record, guard }) if guarded(first) && !changes.any(guarded) => {
            if !put_guarded(connection, record, *guard, revision)? {
                // Nothing was written, so it is found as it was.
                return judge(connection, [first]);
            }
            Some(first)
        }
        Some(_) => match judge(connection, &transition.writes)? {
            Some(conflict) => return Ok(Some(conflict)),
            None => None,
        },
        None => None,
    };
    counters.revision = revision;
    for write in &transition.writes {
        if first.is_some_and(|first| std::ptr::eq(first, write)) {
            continue;
        }
        match write {
            Write::Put { record: Record { kind, key, generation, body }, .. } => {
                connection.prepare_cached(sql(*kind).put)?.execute(params![
                    key,
                    as_stored(*generation),
                    body,
                    as_stored(revision)
                ])?;
            }
            Write::Delete { kind, key, .. } => {
                connection.prepare_cached(sql(*kind).delete)?.execute([key])?;
            }
            Write::Append { log: Log::Event, at_unix_ms, subject, body } => {
                counters.events += 1;
                connection
                    .prepare_cached("INSERT INTO events (number, at, subject, body) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![as_stored(counters.events), clamped(*at_unix_ms), subject, body])?;
            }
            Write::Append { log: Log::Audit, at_unix_ms, subject, body } => {
                counters.audit += 1;
                let at = clamped(*at_unix_ms);
                let entry = LogEntry {
                    number: counters.audit,
                    at_unix_ms: from_stored(at),
                    subject: subject.clone(),
                    body: body.clone(),
                };
                counters.audit_head = counters.audit_head.followed_by(&entry);
                connection
                    .prepare_cached(
                        "INSERT INTO audit (number, at, subject, body, hash) VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![as_stored(entry.number), at, subject, body, counters.audit_head.0])?;
            }
        }
    }
    Ok(None)
}

/// Writes a record if its guard holds; says whether it did.
fn put_guarded(
    connection: &Connection,
    Record { kind, key, generation, body }: &Record,
    guard: Guard,
    revision: u64,
) -> rusqlite::Result<bool> {
    let (generation, revision) = (as_stored(*generation), as_stored(revision));
    let written = match guard {
        Guard::Absent => connection
            .prepare_cached(sql(*kind).put_absent)?
            .execute(params![key, generation, body, revision])?,
        Guard::Generation(before) => connection
            .prepare_cached(sql(*kind).put_following)?
            .execute(params![key, generation, body, revision, as_stored(before)])?,
        Guard::Any => {
            connection.prepare_cached(sql(*kind).put)?.execute(params![key, generation, body, revision])?
        }
    };
    Ok(written == 1)
}

/// Why a file cannot be opened, before it has a path to say it with.
enum Failure {
    Sqlite(rusqlite::Error),
    Corrupt(String),
    NewerSchema(u32),
}

impl Failure {
    fn explain(self, path: &Path, verb: &str) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Sqlite(error) => explain(&path, verb, &error),
            Self::Corrupt(detail) => StoreError::Corrupt { path, detail },
            Self::NewerSchema(found) => StoreError::NewerSchema { path, found, known: SCHEMA },
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The version of the schema in the file; 0 for an empty one.
fn schema_of(connection: &Connection) -> Result<u32, Failure> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match u32::try_from(version) {
        Ok(0) if application == 0 && tables == 0 => Ok(0),
        _ if application != APPLICATION_ID => {
            Err(Failure::Corrupt("a SQLite file of another program".into()))
        }
        Ok(version) if version > SCHEMA => Err(Failure::NewerSchema(version)),
        Ok(version) if version > 0 => Ok(version),
        _ => Err(Failure::Corrupt(format!("its schema version is {version}"))),
    }
}

/// Brings the schema up to date, from whatever version, in one transaction.
fn migrate(connection: &mut Connection, from: u32) -> Result<(), Failure> {
    if from == SCHEMA {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in &STEPS[from as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    Ok(transaction.commit()?)
}

fn check_structure(connection: &Connection) -> Result<(), Failure> {
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if said == "ok" { Ok(()) } else { Err(Failure::Corrupt(said.replace('\n', " "))) }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<LogEntry> {
    Ok(LogEntry {
        number: from_stored(row.get(0)?),
        at_unix_ms: from_stored(row.get(1)?),
        subject: row.get(2)?,
        body: row.get(3)?,
    })
}

/// SQLite's integers are signed; generations are only compared for being equal, so they keep their bits.
fn as_stored(value: u64) -> i64 {
    value.cast_signed()
}

fn from_stored(value: i64) -> u64 {
    value.cast_unsigned()
}

/// Moments and bounds are compared by size, so they keep their order.
fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn explain(path: &Path, verb: &str, error: &rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { path },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { path, detail: error.to_string() }
        }
        Some(_) => StoreError::Io { path, detail: format!("cannot {verb}: {error}") },
        // A missing row or a value of the wrong type: the file says something that was never written.
        None => StoreError::Corrupt { path, detail: format!("cannot {verb}: {error}") },
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

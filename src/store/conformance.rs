//! What every store must do, as one suite over any of them: cases that say one fact each, and a model that random
//! histories are held against.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

/// A kind of store, as the suite needs it.
pub(super) trait Subject {
    type S: Store;
    /// An empty store; its file, if it has one, in this folder.
    fn create(folder: &Path) -> Self::S;
    /// Throws the store away as a crash would, and opens what it left.
    fn reopen(folder: &Path, store: Self::S) -> Self::S;
    /// Opens a backup.
    fn open(path: &Path) -> Self::S;
}

struct InMemory;

impl Subject for InMemory {
    type S = MemoryStore;

    fn create(_: &Path) -> MemoryStore {
        MemoryStore::new()
    }

    fn reopen(_: &Path, store: MemoryStore) -> MemoryStore {
        MemoryStore::from(store.snapshot())
    }

    fn open(path: &Path) -> MemoryStore {
        MemoryStore::open(path).expect("a backup opens")
    }
}

struct InSqlite;

impl Subject for InSqlite {
    type S = SqliteStore;

    fn create(folder: &Path) -> SqliteStore {
        SqliteStore::open(&folder.join("store.db")).expect("a new store opens")
    }

    fn reopen(folder: &Path, store: SqliteStore) -> SqliteStore {
        drop(store);
        Self::create(folder)
    }

    fn open(path: &Path) -> SqliteStore {
        SqliteStore::open(path).expect("a backup opens")
    }
}

/// A folder for one test, removed with it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bootstorm-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a folder for the test");
        Self(path)
    }
}

impl std::ops::Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn put(kind: Kind, key: &str, generation: u64, body: &str, guard: Guard) -> Write {
    let record = Record { kind, key: key.into(), generation, body: body.into() };
    Write::Put { record, guard }
}

pub(super) fn append(log: Log, at_unix_ms: u64, subject: &str, body: &str) -> Write {
    Write::Append { log, at_unix_ms, subject: subject.into(), body: body.into() }
}

pub(super) fn all(writes: Vec<Write>) -> Transition {
    Transition { writes }
}

fn delete(kind: Kind, key: &str, guard: Guard) -> Write {
    Write::Delete { kind, key: key.into(), guard }
}

fn conflict(kind: Kind, key: &str, found: Option<u64>) -> Conflict {
    Conflict { kind, key: key.into(), found }
}

/// Commits one transition and returns its answer.
fn one(store: &mut impl Store, writes: Vec<Write>) -> Result<Revision, Conflict> {
    let mut answers = store.commit(&[all(writes)]).expect("a commit");
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

fn body_of(store: &mut impl Store, kind: Kind, key: &str) -> Option<String> {
    store.get(kind, key).expect("a read").map(|record| record.body)
}

fn keys(store: &mut impl Store, kind: Kind) -> Vec<String> {
    store.list(kind).expect("a list").1.into_iter().map(|record| record.key).collect()
}

fn numbers(entries: Vec<LogEntry>) -> Vec<u64> {
    entries.into_iter().map(|entry| entry.number).collect()
}

/// A list, which is what the store shows record by record.
fn listed(store: &mut impl Store, kind: Kind) -> (Revision, Vec<Record>) {
    let (revision, records) = store.list(kind).expect("a list");
    let mut shown = Vec::new();
    let mut show = |key: &str, body: &str| {
        shown.push((key.to_owned(), body.to_owned()));
        Ok(())
    };
    store.each(kind, &mut show).expect("every record");
    shown.sort();
    let expected = records.iter().map(|record| (record.key.clone(), record.body.clone()));
    assert_eq!(shown, expected.collect::<Vec<_>>());
    (revision, records)
}

/// Everything a store can be asked.
#[derive(PartialEq, Eq, Debug)]
struct Everything {
    lists: Vec<(Revision, Vec<Record>)>,
    events: Vec<LogEntry>,
    audit: Vec<LogEntry>,
}

fn everything(store: &mut impl Store) -> Everything {
    Everything {
        lists: Kind::ALL.into_iter().map(|kind| listed(store, kind)).collect(),
        events: store.read_log(Log::Event, None, None, usize::MAX).expect("the events"),
        audit: store.read_log(Log::Audit, None, None, usize::MAX).expect("the audit log"),
    }
}

fn a_new_store_is_empty_at_revision_0<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    for kind in Kind::ALL {
        assert_eq!(store.list(kind), Ok((Revision(0), vec![])));
    }
    assert_eq!(store.read_log(Log::Event, None, None, 10), Ok(vec![]));
    assert_eq!(store.verify_audit(), Ok(AuditCheck::Whole { entries: 0, head: ChainHash::START }));
    assert_eq!(store.commit(&[]), Ok(vec![]));
}

fn each_guard_holds_for_what_it_says_and_names_what_was_found<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    let job = |generation, guard| vec![put(Kind::Job, "j1", generation, "{}", guard)];
    assert_eq!(one(&mut store, job(1, Guard::Generation(1))), Err(conflict(Kind::Job, "j1", None)));
    assert_eq!(one(&mut store, job(1, Guard::Absent)), Ok(Revision(1)));
    assert_eq!(one(&mut store, job(9, Guard::Absent)), Err(conflict(Kind::Job, "j1", Some(1))));
    assert_eq!(one(&mut store, job(9, Guard::Generation(2))), Err(conflict(Kind::Job, "j1", Some(1))));
    assert_eq!(one(&mut store, job(2, Guard::Generation(1))), Ok(Revision(2)));
    assert_eq!(one(&mut store, job(u64::MAX, Guard::Any)), Ok(Revision(3)));
    let gone = |guard| vec![delete(Kind::Job, "j1", guard)];
    assert_eq!(one(&mut store, gone(Guard::Generation(2))), Err(conflict(Kind::Job, "j1", Some(u64::MAX))));
    assert_eq!(one(&mut store, gone(Guard::Generation(u64::MAX))), Ok(Revision(4)));
    assert_eq!(one(&mut store, gone(Guard::Generation(2))), Err(conflict(Kind::Job, "j1", None)));
    assert_eq!(one(&mut store, gone(Guard::Any)), Ok(Revision(5)), "nothing to delete is no conflict");
    assert_eq!(store.get(Kind::Job, "j1"), Ok(None));
    assert_eq!(store.get(Kind::Claim, "j1"), Ok(None), "kinds do not share keys");
}

fn a_refused_transition_leaves_nothing_behind<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    one(&mut store, vec![put(Kind::Job, "old", 1, "1", Guard::Absent)]).expect("stored");
    let before = everything(&mut store);
    let refused = one(
        &mut store,
        vec![
            put(Kind::Job, "new", 1, "1", Guard::Absent),
            append(Log::Event, 1, "new", "{}"),
            append(Log::Audit, 1, "new", "{}"),
            delete(Kind::Job, "old", Guard::Any),
            put(Kind::Claim, "c", 1, "1", Guard::Generation(7)),
        ],
    );
    assert_eq!(refused, Err(conflict(Kind::Claim, "c", None)));
    assert_eq!(everything(&mut store), before);
    let store = &mut T::reopen(&folder, store);
    assert_eq!(everything(store), before);
    // Numbers that a refused append would have had are not lost.
    one(store, vec![append(Log::Event, 1, "x", "{}")]).expect("stored");
    assert_eq!(store.read_log(Log::Event, None, None, 9).map(numbers), Ok(vec![1]));
}

fn a_conflict_is_refused_alone_and_costs_no_revision<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    let claim = |key| all(vec![put(Kind::Claim, key, 1, key, Guard::Absent)]);
    let answers =
        store.commit(&[claim("a"), claim("a"), claim("b"), claim("b"), claim("c")]).expect("a commit");
    let taken = |key| Err(conflict(Kind::Claim, key, Some(1)));
    assert_eq!(answers, [Ok(Revision(1)), taken("a"), Ok(Revision(2)), taken("b"), Ok(Revision(3))]);
    assert_eq!(store.commit(&[claim("a")]), Ok(vec![taken("a")]));
    assert_eq!(store.list(Kind::Job).map(|(revision, _)| revision), Ok(Revision(3)));
}

fn a_later_transition_sees_an_earlier_one_of_its_batch<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    let batch = [
        all(vec![put(Kind::Job, "j", 1, "first", Guard::Absent)]),
        all(vec![put(Kind::Job, "j", 2, "second", Guard::Generation(1))]),
        all(vec![put(Kind::Job, "j", 2, "late", Guard::Generation(1))]),
        all(vec![delete(Kind::Job, "j", Guard::Generation(2))]),
        all(vec![put(Kind::Job, "j", 1, "third", Guard::Absent)]),
    ];
    let answers = store.commit(&batch).expect("a commit");
    let expected = [
        Ok(Revision(1)),
        Ok(Revision(2)),
        Err(conflict(Kind::Job, "j", Some(2))),
        Ok(Revision(3)),
        Ok(Revision(4)),
    ];
    assert_eq!(answers, expected);
    assert_eq!(body_of(&mut store, Kind::Job, "j").as_deref(), Some("third"));
}

fn guards_are_judged_before_the_first_write_and_the_last_write_of_a_key_stays<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    let twice =
        vec![put(Kind::Job, "j", 1, "first", Guard::Absent), put(Kind::Job, "j", 2, "second", Guard::Absent)];
    assert_eq!(one(&mut store, twice), Ok(Revision(1)));
    assert_eq!(body_of(&mut store, Kind::Job, "j").as_deref(), Some("second"));
}

fn lists_are_ordered_by_the_bytes_of_the_key<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    let names = ["b", "a", "é", "B", "", "a\0b", "a'; DROP TABLE jobs; --", "ab", "10", "9", "\u{10ffff}"];
    for name in names {
        one(&mut store, vec![put(Kind::Machine, name, 1, "{}", Guard::Absent)]).expect("stored");
    }
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    assert_eq!(keys(&mut store, Kind::Machine), sorted);
    for name in names {
        assert_eq!(store.get(Kind::Machine, name).map(|r| r.map(|r| r.key)), Ok(Some(name.into())));
    }
}

fn logs_are_read_newest_first_by_page_and_by_subject<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    for number in 1..=10u64 {
        let subject = if number % 3 == 0 { "third" } else { "other" };
        let writes =
            [Log::Event, Log::Audit].map(|log| append(log, 1000 - number, subject, &number.to_string()));
        one(&mut store, writes.into()).expect("stored");
    }
    for log in [Log::Event, Log::Audit] {
        let mut read = |subject, before, limit| store.read_log(log, subject, before, limit).map(numbers);
        assert_eq!(read(None, None, 3), Ok(vec![10, 9, 8]));
        assert_eq!(read(None, Some(8), 3), Ok(vec![7, 6, 5]));
        assert_eq!(read(None, Some(2), 3), Ok(vec![1]));
        assert_eq!(read(None, Some(1), 3), Ok(vec![]));
        assert_eq!(read(None, Some(u64::MAX), 1), Ok(vec![10]));
        assert_eq!(read(None, None, 0), Ok(vec![]));
        assert_eq!(read(Some("third"), None, 2), Ok(vec![9, 6]));
        assert_eq!(read(Some("third"), Some(6), 2), Ok(vec![3]));
        assert_eq!(read(Some("nobody"), None, 2), Ok(vec![]));
    }
    let expected = LogEntry { number: 9, at_unix_ms: 991, subject: "third".into(), body: "9".into() };
    assert_eq!(store.read_log(Log::Audit, Some("third"), None, 1), Ok(vec![expected]));
}

fn trim_forgets_the_oldest_and_never_a_number_or_the_audit_log<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    for number in 1..=10 {
        let key = format!("b{}", 11 - number);
        let writes = vec![
            append(Log::Event, number * 100, "s", "{}"),
            append(Log::Audit, number * 100, "s", "{}"),
            put(Kind::Boot, &key, 1, "{}", Guard::Absent),
            put(Kind::Job, &key, 1, "{}", Guard::Absent),
        ];
        one(&mut store, writes).expect("stored");
    }
    // b10 was the first and is now the last written.
    one(&mut store, vec![put(Kind::Boot, "b10", 2, "{}", Guard::Any)]).expect("stored");
    let nothing = Trimmed { events: 0, boots: 0, more: false };
    assert_eq!(store.trim(0, 10, 10), Ok(nothing));
    assert_eq!(store.trim(301, 100, 100), Ok(Trimmed { events: 3, boots: 0, more: false }));
    assert_eq!(store.trim(301, 5, 3), Ok(Trimmed { events: 2, boots: 7, more: false }));
    let mut store = T::reopen(&folder, store);
    assert_eq!(store.read_log(Log::Event, None, None, 99).map(numbers), Ok(vec![10, 9, 8, 7, 6]));
    assert_eq!(keys(&mut store, Kind::Boot), ["b1", "b10", "b2"]);
    assert_eq!(keys(&mut store, Kind::Job).len(), 10);
    assert_eq!(store.read_log(Log::Audit, None, None, 99).map(|entries| entries.len()), Ok(10));
    assert_eq!(store.list(Kind::Boot).map(|(revision, _)| revision), Ok(Revision(11)));
    assert_eq!(store.trim(u64::MAX, 0, 0), Ok(Trimmed { events: 5, boots: 3, more: false }));
    let mut store = T::reopen(&folder, store);
    one(&mut store, vec![append(Log::Event, 1, "s", "{}")]).expect("stored");
    assert_eq!(store.read_log(Log::Event, None, None, 99).map(numbers), Ok(vec![11]));
}

fn one_trim_forgets_a_bounded_number<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    let mut writes = Vec::new();
    for number in 0..TRIM_AT_ONCE + 10 {
        writes.push(append(Log::Event, number, "s", "{}"));
        writes.push(put(Kind::Boot, &number.to_string(), 1, "{}", Guard::Any));
    }
    one(&mut store, writes).expect("stored");
    let first = Trimmed { events: TRIM_AT_ONCE, boots: TRIM_AT_ONCE, more: true };
    assert_eq!(store.trim(5, 2, 3), Ok(first));
    assert_eq!(store.trim(5, 2, 3), Ok(Trimmed { events: 8, boots: 7, more: false }));
}

fn a_reopened_store_is_the_same<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        let writes = vec![
            put(kind, "ключ", number as u64, "{\"a\": \"\\u0000 \u{1f980}\"}", Guard::Absent),
            put(kind, "long", u64::MAX, &"x".repeat(300_000), Guard::Absent),
            append(Log::Event, u64::MAX, kind.name(), "{}"),
            append(Log::Audit, 7, kind.name(), "{}"),
        ];
        one(&mut store, writes).expect("stored");
    }
    let (before, chain) = (everything(&mut store), store.verify_audit());
    assert!(matches!(chain, Ok(AuditCheck::Whole { entries: 7, .. })), "{chain:?}");
    let mut store = T::reopen(&folder, store);
    assert_eq!(everything(&mut store), before);
    assert_eq!(store.verify_audit(), chain);
    assert_eq!(one(&mut store, vec![append(Log::Audit, 8, "s", "{}")]), Ok(Revision(8)));
    assert!(matches!(store.verify_audit(), Ok(AuditCheck::Whole { entries: 8, .. })));
}

fn a_backup_is_equal_opens_and_is_written_over_nothing<T: Subject>() {
    let folder = Folder::new();
    let mut store = T::create(&folder);
    for number in 0..100 {
        let writes = vec![
            put(Kind::Job, &number.to_string(), number, &"y".repeat(500), Guard::Absent),
            append(Log::Audit, number, "s", "{}"),
        ];
        one(&mut store, writes).expect("stored");
    }
    let to = folder.join("copy");
    let mark = Record { kind: Kind::Meta, key: "copy".into(), generation: 7, body: "{\"of\":1}".into() };
    store.backup(&to, &mark).expect("a backup");
    let mut equal = everything(&mut store);
    let meta = Kind::ALL.iter().position(|kind| *kind == Kind::Meta).expect("a kind");
    assert_eq!(equal.lists[meta].1, [], "the store itself is not marked");
    equal.lists[meta].1.push(mark.clone());
    assert_eq!(everything(&mut T::open(&to)), equal);
    assert!(matches!(store.backup(&to, &mark), Err(StoreError::Io { .. })));
    one(&mut store, vec![put(Kind::Job, "after", 1, "{}", Guard::Absent)]).expect("stored");
    assert_eq!(T::open(&to).get(Kind::Job, "after"), Ok(None));
    assert!(matches!(store.backup(&folder.join("nowhere/copy"), &mark), Err(StoreError::Io { .. })));
    let left: Vec<_> = fs::read_dir(&*folder)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.to_string_lossy().contains("partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What a store must answer, said once more and as plainly as can be.
#[derive(Default)]
struct Model {
    revision: u64,
    records: BTreeMap<(Kind, String), (u64, String, u64)>,
    events: Vec<LogEntry>,
    events_ever: u64,
    audit: Vec<LogEntry>,
}

impl Model {
    fn commit(&mut self, transition: &Transition) -> Result<Revision, Conflict> {
        let generation = |kind: Kind, key: &str| self.records.get(&(kind, key.into())).map(|r| r.0);
        for write in &transition.writes {
            let (kind, key, guard) = match write {
                Write::Put { record, guard } => (record.kind, &record.key, guard),
                Write::Delete { kind, key, guard } => (*kind, key, guard),
                Write::Append { .. } => continue,
            };
            let found = generation(kind, key);
            let holds = match guard {
                Guard::Any => true,
                Guard::Absent => found.is_none(),
                Guard::Generation(wanted) => found == Some(*wanted),
            };
            if !holds {
                return Err(Conflict { kind, key: key.clone(), found });
            }
        }
        self.revision += 1;
        for write in transition.writes.clone() {
            match write {
                Write::Put { record: r, .. } => {
                    self.records.insert((r.kind, r.key), (r.generation, r.body, self.revision));
                }
                Write::Delete { kind, key, .. } => {
                    self.records.remove(&(kind, key));
                }
                Write::Append { log, at_unix_ms, subject, body } => {
                    let (list, number) = match log {
                        Log::Event => {
                            self.events_ever += 1;
                            (&mut self.events, self.events_ever)
                        }
                        Log::Audit => {
                            let number = self.audit.len() as u64 + 1;
                            (&mut self.audit, number)
                        }
                    };
                    list.push(LogEntry { number, at_unix_ms, subject, body });
                }
            }
        }
        Ok(Revision(self.revision))
    }

    fn trim(&mut self, before: u64, events_max: u64, boots_max: u64) {
        self.events.retain(|entry| entry.at_unix_ms >= before);
        let excess = self.events.len().saturating_sub(events_max as usize);
        self.events.drain(..excess);
        let mut boots: Vec<_> = self
            .records
            .iter()
            .filter(|((kind, _), _)| *kind == Kind::Boot)
            .map(|(key, record)| (record.2, key.clone()))
            .collect();
        boots.sort();
        boots.truncate(boots.len().saturating_sub(boots_max as usize));
        for (_, key) in boots {
            self.records.remove(&key);
        }
    }

    fn everything(&self) -> Everything {
        let list = |wanted: Kind| {
            let of_kind = self.records.iter().filter(|((kind, _), _)| *kind == wanted);
            of_kind
                .map(|((kind, key), (generation, body, _))| Record {
                    kind: *kind,
                    key: key.clone(),
                    generation: *generation,
                    body: body.clone(),
                })
                .collect()
        };
        Everything {
            lists: Kind::ALL.map(|kind| (Revision(self.revision), list(kind))).into(),
            events: self.events.iter().rev().cloned().collect(),
            audit: self.audit.iter().rev().cloned().collect(),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Transition>),
    Trim(u64, u64, u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = || prop::sample::select(vec![Kind::Job, Kind::Claim, Kind::Boot, Kind::Lease]);
    let key = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let guard = || prop_oneof![Just(Guard::Absent), Just(Guard::Any), (0..3u64).prop_map(Guard::Generation)];
    let write = prop_oneof![
        4 => (kind(), key(), 0..3u64, any::<u16>(), guard())
            .prop_map(|(kind, key, generation, body, guard)| put(kind, key, generation, &body.to_string(), guard)),
        1 => (kind(), key(), guard()).prop_map(|(kind, key, guard)| delete(kind, key, guard)),
        2 => (any::<bool>(), 0..100u64, key(), any::<u16>()).prop_map(|(event, at, subject, body)| {
            append(if event { Log::Event } else { Log::Audit }, at, subject, &body.to_string())
        }),
    ];
    let transition = prop::collection::vec(write, 0..5).prop_map(all);
    let step = prop_oneof![
        12 => prop::collection::vec(transition, 0..8).prop_map(Step::Commit),
        1 => (0..60u64, 0..30u64, 0..4u64).prop_map(|(before, events, boots)| Step::Trim(before, events, boots)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

fn run_beside_the_model<T: Subject>(steps: &[Step]) -> Result<(), TestCaseError> {
    let folder = Folder::new();
    let (mut store, mut model) = (T::create(&folder), Model::default());
    for step in steps {
        match step {
            Step::Commit(batch) => {
                let expected: Vec<_> = batch.iter().map(|transition| model.commit(transition)).collect();
                prop_assert_eq!(store.commit(batch), Ok(expected));
            }
            Step::Trim(before, events, boots) => {
                store.trim(*before, *events, *boots).expect("a trim");
                model.trim(*before, *events, *boots);
            }
            Step::Reopen => store = T::reopen(&folder, store),
        }
        prop_assert_eq!(everything(&mut store), model.everything());
    }
    let audited = model.audit.len() as u64;
    let whole = matches!(store.verify_audit(), Ok(AuditCheck::Whole { entries, .. }) if entries == audited);
    prop_assert!(whole, "the audit log's chain");
    Ok(())
}

fn random_histories_agree_with_the_model<T: Subject>() {
    // Some 3,000 batches; a file for each found failure would be noise in the tree, the message holds the case.
    let config = ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps())| run_beside_the_model::<T>(&steps)?);
}

macro_rules! suite {
    ($($case:ident)*) => {
        mod memory {
            $(#[test] fn $case() { super::$case::<super::InMemory>(); })*
        }
        mod sqlite {
            $(#[test] fn $case() { super::$case::<super::InSqlite>(); })*
        }
    };
}

suite! {
    a_new_store_is_empty_at_revision_0
    each_guard_holds_for_what_it_says_and_names_what_was_found
    a_refused_transition_leaves_nothing_behind
    a_conflict_is_refused_alone_and_costs_no_revision
    a_later_transition_sees_an_earlier_one_of_its_batch
    guards_are_judged_before_the_first_write_and_the_last_write_of_a_key_stays
    lists_are_ordered_by_the_bytes_of_the_key
    logs_are_read_newest_first_by_page_and_by_subject
    trim_forgets_the_oldest_and_never_a_number_or_the_audit_log
    one_trim_forgets_a_bounded_number
    a_reopened_store_is_the_same
    a_backup_is_equal_opens_and_is_written_over_nothing
    random_histories_agree_with_the_model
}

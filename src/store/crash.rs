//! The real file under what happens to files: a server killed at any moment, a log cut anywhere, a damaged page, a
//! full disk, a second server.
//!
//! A test that needs a process of its own runs this test binary again, with the folder in [`CHILD`].

use std::env;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::conformance::{Folder, all, append, put};
use super::*;

const CHILD: &str = "BOOTSTORM_STORE_CHILD";

/// Numbers that look random and come again with their seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

const SLOTS: u64 = 50;

/// Transition number `n` of the numbered history: after it, the store's revision is `n`, job `n mod SLOTS` and the
/// claim of the same name say `n`, and both logs end with `n`.
fn numbered(n: u64) -> Transition {
    let (key, body) = ((n % SLOTS).to_string(), n.to_string());
    let guard = if n > SLOTS { Guard::Generation(n - SLOTS) } else { Guard::Absent };
    all(vec![
        put(Kind::Job, &key, n, &body, guard),
        append(Log::Event, n, &key, &body),
        put(Kind::Claim, &key, n, &body, guard),
        append(Log::Audit, n, &key, &body),
        // Long enough that the log is folded into the file now and then, also within one short life.
        put(Kind::Meta, &format!("filler {}", n % 7), n, &"f".repeat(9_000), Guard::Any),
    ])
}

/// What a copy is known by.
fn mark() -> Record {
    Record { kind: Kind::Meta, key: "copy".into(), generation: 1, body: "{}".into() }
}

/// Checks that the store holds exactly the numbered history up to some transition, and says which.
fn check_numbered(store: &mut SqliteStore) -> u64 {
    let (Revision(last), jobs) = store.list(Kind::Job).expect("the jobs");
    let expected: std::collections::BTreeMap<String, u64> =
        (last.saturating_sub(SLOTS - 1).max(1)..=last).map(|n| ((n % SLOTS).to_string(), n)).collect();
    let claims = store.list(Kind::Claim).expect("the claims").1;
    for records in [jobs, claims] {
        let found = records.into_iter().map(|record| {
            assert_eq!(record.body, record.generation.to_string());
            (record.key, record.generation)
        });
        assert_eq!(found.collect::<std::collections::BTreeMap<_, _>>(), expected, "at revision {last}");
    }
    for log in [Log::Event, Log::Audit] {
        let entries = store.read_log(log, None, None, usize::MAX).expect("a log");
        assert_eq!(entries.len() as u64, last, "{log:?}");
        for (entry, n) in entries.iter().zip((1..=last).rev()) {
            assert_eq!((entry.number, entry.at_unix_ms, &entry.body), (n, n, &n.to_string()));
        }
    }
    let check = store.verify_audit().expect("the audit log");
    assert!(matches!(check, AuditCheck::Whole { entries, .. } if entries == last), "{check:?} at {last}");
    last
}

/// This test binary again, with only the named test in it.
fn again(test: &str, folder: &Path, before: &[&str]) -> Command {
    let program = env::current_exe().expect("this program's path");
    let words: Vec<&OsStr> = before.iter().map(OsStr::new).chain([program.as_os_str()]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args([&format!("store::crash::{test}"), "--exact", "--nocapture"]);
    command.env(CHILD, folder).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn child_folder() -> Option<PathBuf> {
    env::var_os(CHILD).map(PathBuf::from)
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "\n{line}").and_then(|()| out.flush()).expect("the parent reads");
}

/// Goes on with the numbered history until it is killed. Says what it begins and what is acknowledged.
fn write_until_killed(folder: &Path) -> ! {
    let mut store = SqliteStore::open(&folder.join("store.db")).expect("opens after any kill");
    let mut last = store.list(Kind::Meta).expect("the revision").0.0;
    let mut dice = Dice(last);
    say(&format!("ack {last}"));
    loop {
        let size_max = if dice.below(4) == 0 { 64 } else { 4 };
        let next = last + 1 + dice.below(size_max);
        let batch: Vec<_> = (last + 1..=next).map(numbered).collect();
        say(&format!("begin {next}"));
        let answers = store.commit(&batch).expect("a commit");
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        say(&format!("ack {next}"));
        last = next;
    }
}

/// Forty kills; `BOOTSTORM_KILLS` says another number.
#[test]
fn what_was_acknowledged_before_kill_9_is_there_and_nothing_else() {
    if let Some(folder) = child_folder() {
        write_until_killed(&folder);
    }
    let kills: u64 = env::var("BOOTSTORM_KILLS").map_or(40, |kills| kills.parse().expect("a number"));
    let mut dice = Dice(kills);
    let mut folder = Folder::new();
    let (mut total, mut in_flight, mut unopened) = (0, 0, 0);
    let mut known = 0;
    for kill in 0..kills {
        // A history that grows without end would make the checking slow, not better.
        if known > 2_000 {
            folder = Folder::new();
            known = 0;
        }
        let test = "what_was_acknowledged_before_kill_9_is_there_and_nothing_else";
        let mut child = again(test, &folder, &[]).spawn().expect("this program runs again");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (mut acked, mut begun) = (known, known);
        let mut read = |line: io::Result<String>| {
            let line = line.expect("a line of text");
            if let Some(number) = line.strip_prefix("ack ") {
                acked = number.parse().expect("a number");
                return true;
            }
            if let Some(number) = line.strip_prefix("begin ") {
                begun = number.parse().expect("a number");
                return true;
            }
            false
        };
        // Some die while they start and recover, most after some commits.
        let wanted = dice.below(16);
        let mut seen = 0;
        while seen < wanted {
            seen += u64::from(read(lines.next().expect("the child writes until it is killed")));
        }
        let pause = Duration::from_micros(dice.below(if wanted == 0 { 40_000 } else { 3_000 }));
        let moment = Instant::now() + pause;
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        child.kill().expect("SIGKILL is sent");
        let mut heard = seen > 0;
        lines.for_each(|line| heard |= read(line));
        let status = child.wait().expect("the child is gone");
        assert_eq!(status.code(), None, "the child ended by itself");
        let mut store = SqliteStore::open(&folder.join("store.db")).expect("opens after a kill");
        known = check_numbered(&mut store);
        assert!(
            known == acked || known == begun,
            "kill {kill}: {acked} acknowledged, {begun} begun, {known} found"
        );
        total += known;
        in_flight += u64::from(begun > acked);
        unopened += u64::from(!heard);
    }
    say(&format!("{kills} kills, {in_flight} within a commit, {unopened} before the first line"));
    assert!(total > 0 && in_flight > 0, "no kill met a commit: the test shows nothing");
}

/// What a power cut may leave of a log whose end was not yet written: every prefix.
#[test]
fn a_log_cut_anywhere_holds_whole_batches_only() {
    let folder = Folder::new();
    let path = folder.join("store.db");
    let mut store = SqliteStore::open(&path).expect("a new store");
    let mut ends = vec![0];
    for size in [1, 3, 2, 1, 4] {
        let last = ends[ends.len() - 1];
        let batch: Vec<_> = (last + 1..=last + size).map(numbered).collect();
        assert!(store.commit(&batch).expect("a commit").iter().all(Result::is_ok));
        ends.push(last + size);
    }
    // Read while it is open, since closing folds the log into the file; opening them again ends the test.
    let file = fs::read(&path).expect("the file");
    let log = fs::read(folder.join("store.db-wal")).expect("the log");
    assert!(log.len() > 20 * 4_096, "nothing to cut: {} bytes", log.len());
    let mut dice = Dice(1);
    let mut found = std::collections::BTreeSet::new();
    for cut in 0..60 {
        let copy = Folder::new();
        let path = copy.join("store.db");
        let mut log = log.clone();
        let at = if cut == 0 { log.len() } else { dice.below(log.len() as u64) as usize };
        if cut % 2 == 0 {
            log.truncate(at);
        } else {
            log[at] ^= 1 << dice.below(8);
        }
        fs::write(&path, &file).expect("a copy");
        fs::write(copy.join("store.db-wal"), &log).expect("a copy");
        // A log cut before the schema was written is a store never used.
        let last = check_numbered(&mut SqliteStore::open(&path).expect("opens"));
        assert!(ends.contains(&last), "cut at {at}: {last} is within a batch of {ends:?}");
        found.insert(last);
    }
    assert!(found.len() > 3, "every cut left the same: {found:?}");
}

/// A small file system is filled with a file of its own, so that taking that away makes room again.
fn on_a_full_disk(disk: &Path) {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(disk).status();
    assert!(mount.expect("mount runs").success(), "no tmpfs on {}", disk.display());
    let path = disk.join("store.db");
    let ballast = disk.join("ballast");
    let fill = || {
        let mut file = OpenOptions::new().append(true).create(true).open(&ballast).expect("a file");
        let error = io::copy(&mut io::repeat(0), &mut file).expect_err("a tmpfs is not endless");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file
    };
    let mut store = SqliteStore::open(&path).expect("a new store");
    let mut last = 0;
    let write = |store: &mut SqliteStore, last: u64| {
        let batch: Vec<_> = (last + 1..=last + 5).map(numbered).collect();
        store.commit(&batch).map(|answers| assert!(answers.iter().all(Result::is_ok), "{answers:?}"))
    };
    let full = Err(StoreError::Full { path: path.clone() });
    for round in 0..20 {
        // Room for some more pages, so that the space ends at another place of a batch every time.
        let file = fill();
        let len = file.metadata().expect("its size").len();
        file.set_len(len - 4_096 * (7 * round % 64)).expect("a little room");
        drop(file);
        let mut answer = write(&mut store, last);
        while answer.is_ok() {
            last += 5;
            assert!(last < 10_000, "a full disk takes everything");
            answer = write(&mut store, last);
        }
        assert_eq!(answer, full);
        drop(fill());
        assert_eq!(write(&mut store, last), full, "still full");
        assert_eq!(check_numbered(&mut store), last, "reads go on, and nothing of the batch is there");
        assert!(
            store.backup(&disk.join("backup"), &mark()).is_err_and(|error| error.is_full()),
            "no room for a backup"
        );
        if round % 2 == 1 {
            drop(store);
            store = SqliteStore::open(&path).expect("opens on a full disk");
            assert_eq!(check_numbered(&mut store), last);
        }
        fs::remove_file(&ballast).expect("room again");
        assert_eq!(write(&mut store, last), Ok(()), "goes on");
        last += 5;
        if round % 3 == 2 {
            // Closing with room to spare folds the log, so that the next end of space meets a grown file.
            drop(store);
            store = SqliteStore::open(&path).expect("opens again");
        }
    }
    drop(store);
    assert_eq!(check_numbered(&mut SqliteStore::open(&path).expect("opens")), last);
    say(&format!("full after {last}"));
}

#[test]
fn a_full_disk_refuses_whole_batches_and_the_same_store_goes_on_when_there_is_room() {
    if let Some(disk) = child_folder() {
        return on_a_full_disk(&disk);
    }
    let folder = Folder::new();
    // A mount namespace of its own, with a user namespace for whoever is not root: the mount ends with the process.
    let unshare = ["unshare", "--map-root-user", "--mount", "--propagation", "private"];
    let test = "a_full_disk_refuses_whole_batches_and_the_same_store_goes_on_when_there_is_room";
    let output = again(test, &folder, &unshare).stderr(Stdio::piped()).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("full after "),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_second_server_is_refused_by_name_of_the_file() {
    if let Some(folder) = child_folder() {
        let found = SqliteStore::open(&folder.join("store.db")).err();
        return say(&format!("found {found:?}"));
    }
    let folder = Folder::new();
    let path = folder.join("store.db");
    let mut store = SqliteStore::open(&path).expect("a new store");
    store.commit(&[numbered(1)]).expect("a commit");
    let output = again("a_second_server_is_refused_by_name_of_the_file", &folder, &[]).output();
    let said = String::from_utf8(output.expect("this program runs again").stdout).expect("text");
    let expected = format!("found {:?}", Some(StoreError::Locked { path: path.clone() }));
    assert!(said.contains(&expected), "{said}");
    assert_eq!(SqliteStore::open(&path).err(), Some(StoreError::Locked { path }), "nor this same process");
    assert_eq!(check_numbered(&mut store), 1);
    store.commit(&[numbered(2)]).expect("the first goes on");
}

#[test]
fn the_file_is_private_durable_and_leaves_no_shared_memory() {
    let folder = Folder::new();
    let path = folder.join("store.db");
    drop(SqliteStore::open(&path).expect("a new store"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a careless copy");
    let mut store = SqliteStore::open(&path).expect("opens");
    store.commit(&[numbered(1)]).expect("a commit");
    store.backup(&folder.join("backup"), &mark()).expect("a backup");
    let mut seen: Vec<_> = fs::read_dir(&*folder)
        .expect("the folder")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("its mode").permissions().mode() & 0o777;
            (entry.file_name().into_string().expect("text"), mode)
        })
        .collect();
    seen.sort();
    let expected = ["backup", "store.db", "store.db-wal"].map(|name| (name.to_owned(), 0o600));
    assert_eq!(seen, expected);
    assert_eq!(store.pragma("synchronous"), 2, "FULL");
}

#[test]
fn a_store_of_schema_1_is_migrated_with_all_that_it_holds() {
    let folder = Folder::new();
    let path = folder.join("store.db");
    let old = Connection::open(&path).expect("a file");
    old.execute_batch(include_str!("../../tests/data/store-schema-1.sql")).expect("the fixture");
    drop(old);
    let mut store = SqliteStore::open(&path).expect("migrates");
    assert_eq!(check_numbered(&mut store), 2);
    assert_eq!(store.pragma("user_version"), 2);
    let boots = store.list(Kind::Boot).expect("the boots").1;
    assert_eq!(boots.len(), 1);
    store.commit(&[numbered(3)]).expect("goes on");
    drop(store);
    assert_eq!(check_numbered(&mut SqliteStore::open(&path).expect("opens again")), 3);
    // The same schema, whichever way it came about.
    let schema = |path: &Path| -> Vec<String> {
        let file = Connection::open(path).expect("a file");
        let sql = "SELECT name || ': ' || coalesce(sql, '') FROM sqlite_schema ORDER BY name";
        let mut statement = file.prepare(sql).expect("a query");
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
        rows.map(|row| row.expect("a row").split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let fresh = folder.join("fresh.db");
    drop(SqliteStore::open(&fresh).expect("a new store"));
    assert_eq!(schema(&path), schema(&fresh));
}

#[test]
fn a_newer_schema_and_other_programs_files_are_refused_untouched() {
    let folder = Folder::new();
    let path = folder.join("store.db");
    drop(SqliteStore::open(&path).expect("a new store"));
    Connection::open(&path).and_then(|c| c.pragma_update(None, "user_version", 99)).expect("from the future");
    let before = fs::read(&path).expect("the file");
    let newer = StoreError::NewerSchema { path: path.clone(), found: 99, known: 2 };
    assert_eq!(SqliteStore::open(&path).err(), Some(newer));
    assert_eq!(fs::read(&path).expect("the file"), before);

    let other = folder.join("other.db");
    Connection::open(&other).and_then(|c| c.execute_batch("CREATE TABLE songs (title)")).expect("a file");
    let before = fs::read(&other).expect("the file");
    assert!(matches!(SqliteStore::open(&other), Err(StoreError::Corrupt { .. })));
    assert_eq!(fs::read(&other).expect("the file"), before);

    let text = folder.join("text");
    fs::write(&text, "not a database, but longer than a header of one\n".repeat(100)).expect("a file");
    assert!(matches!(SqliteStore::open(&text), Err(StoreError::Corrupt { .. })));
    assert!(matches!(SqliteStore::open(&folder), Err(StoreError::Io { .. })), "a folder");
    assert!(matches!(SqliteStore::open(&folder.join("no/store.db")), Err(StoreError::Io { .. })));
}

#[test]
fn a_damaged_file_is_corrupt_and_says_what_to_do() {
    let folder = Folder::new();
    let path = folder.join("store.db");
    let mut store = SqliteStore::open(&path).expect("a new store");
    store.commit(&(1..=200).map(numbered).collect::<Vec<_>>()).expect("a commit");
    drop(store);
    let mut file = OpenOptions::new().read(true).write(true).open(&path).expect("the file");
    let len = file.metadata().expect("its size").len();
    for page in (2..len / 4_096).step_by(3) {
        file.seek(SeekFrom::Start(page * 4_096)).expect("a page");
        file.write_all(&[0x5a; 512]).expect("damage");
    }
    drop(file);
    let error = SqliteStore::open(&path).expect_err("refused");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    let line = error.to_string();
    assert!(line.contains("backup") && !line.contains('\n'), "{line}");
}

#[test]
fn an_audit_log_changed_behind_the_stores_back_is_found_by_its_first_wrong_entry() {
    let change = |sql: &str| {
        let folder = Folder::new();
        let path = folder.join("store.db");
        let mut store = SqliteStore::open(&path).expect("a new store");
        store.commit(&(1..=20).map(numbered).collect::<Vec<_>>()).expect("a commit");
        drop(store);
        Connection::open(&path).and_then(|file| file.execute_batch(sql)).expect("a change");
        SqliteStore::open(&path).expect("opens").verify_audit().expect("a walk")
    };
    let broken = |number| AuditCheck::Broken { number };
    assert!(matches!(change("SELECT 1"), AuditCheck::Whole { entries: 20, .. }));
    assert_eq!(change("UPDATE audit SET body = '0' WHERE number = 7"), broken(7));
    assert_eq!(change("UPDATE audit SET at = 0 WHERE number >= 9"), broken(9));
    assert_eq!(change("UPDATE audit SET subject = subject || '1', body = '' WHERE number = 11"), broken(11));
    assert_eq!(change("DELETE FROM audit WHERE number = 5"), broken(5));
    assert_eq!(change("DELETE FROM audit WHERE number = 20"), broken(20));
    assert_eq!(change("DELETE FROM audit"), broken(1));
    assert_eq!(change("UPDATE audit SET hash = x'00' WHERE number = 3"), broken(3));
    assert_eq!(change("INSERT INTO audit VALUES (21, 1, 's', 'b', zeroblob(32))"), broken(21));
}

#[test]
fn faults_asked_for_fail_one_commit_and_the_doubtful_one_shows_only_after_a_crash() {
    let mut store = MemoryStore::new();
    store.commit(&[numbered(1)]).expect("a commit");
    let revision = |store: &mut MemoryStore| store.list(Kind::Job).expect("the jobs").0.0;
    for fault in [Fault::Full, Fault::Io] {
        store.fail_next_commit(fault);
        let error = store.commit(&[numbered(2)]).expect_err("a fault");
        assert_eq!(error.is_full(), fault == Fault::Full);
        assert_eq!(revision(&mut store), 1);
        assert_eq!(revision(&mut store.snapshot().into()), 1);
    }
    store.fail_next_commit(Fault::InDoubt);
    assert!(store.commit(&[numbered(2)]).is_err());
    assert_eq!(revision(&mut store), 1);
    assert_eq!(revision(&mut store.snapshot().into()), 2);
    store.commit(&[all(vec![])]).expect("a commit");
    assert_eq!(store.get(Kind::Job, "2"), Ok(None));
    assert_eq!(MemoryStore::from(store.snapshot()).get(Kind::Job, "2"), Ok(None), "written over");
}

//! Durable transitions, in batches of 1, 64 and 512 to a commit: `cargo bench --bench store`.
//!
//! The file is in the folder `BOOTSTORM_BENCH_DIR`, or in the one for temporary files: an fsync costs what that disk
//! takes for it. Before measuring, the store is filled with 100,000 jobs.
#![allow(clippy::print_stderr, reason = "figures that are no benchmark of criterion's")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bootstorm::store::{Guard, Kind, Log, Record, Revision, SqliteStore, Store, Transition, Write};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const JOBS: u64 = 100_000;

fn key(n: u64) -> String {
    format!("j{:05}", n % JOBS)
}

fn put(kind: Kind, key: String, generation: u64, stage: &str, guard: Guard) -> Write {
    let body = format!(
        r#"{{"image":"winpe","selector":"mac 52:54:00:12:34:56","stage":"{stage}","attempts":1,"boot":"b{generation}","since":1790000000000}}"#
    );
    Write::Put { record: Record { kind, key, generation, body }, guard }
}

/// What a boot does to its job: the job moves on under its guard, and an event says so.
fn moved(n: u64) -> Transition {
    // A prime stride, so that the pages written are as scattered as the machines of a storm.
    let (at, generation) = (n * 7_919 % JOBS, n / JOBS + 1);
    let event = Write::Append {
        log: Log::Event,
        at_unix_ms: 1_790_000_000_000 + n,
        subject: key(at),
        body: r#"{"event":"stage","from":"fetching","to":"running","mac":"52:54:00:12:34:56"}"#.into(),
    };
    let guard = Guard::Generation(generation);
    Transition { writes: vec![put(Kind::Job, key(at), generation + 1, "running", guard), event] }
}

fn store(c: &mut Criterion) {
    let folder = std::env::var_os("BOOTSTORM_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("bootstorm-bench-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder for the file");
    let path = folder.join("store.db");
    let mut store = SqliteStore::open(&path).expect("a new store");
    let jobs: Vec<_> = (0..JOBS)
        .map(|n| Transition { writes: vec![put(Kind::Job, key(n), 1, "armed", Guard::Absent)] })
        .collect();
    let begin = Instant::now();
    store.commit(&jobs).expect("the jobs are stored");
    eprintln!("100,000 jobs in one commit: {:?}", begin.elapsed());

    let mut next = 0;
    let mut slowest = Vec::new();
    let mut group = c.benchmark_group("store/commit");
    group.measurement_time(Duration::from_secs(8)).sample_size(30);
    for size in [1u64, 64, 512] {
        group.throughput(Throughput::Elements(size));
        let mut times = Vec::new();
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let batch: Vec<_> = (next..next + size).map(moved).collect();
                    next += size;
                    let begin = Instant::now();
                    let answers = store.commit(&batch).expect("a commit");
                    let time = begin.elapsed();
                    assert!(answers.iter().all(Result::is_ok), "a guard did not hold");
                    times.push(time);
                    spent += time;
                }
                spent
            });
        });
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        slowest.push(format!(
            "commits of {size}: {} measured, p50 {:?} p99 {:?} max {:?}",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        ));
    }
    group.finish();
    slowest.iter().for_each(|line| eprintln!("{line}"));

    let begin = Instant::now();
    let mark = Record { kind: Kind::Meta, key: "copy".into(), generation: 1, body: "{}".into() };
    store.backup(&folder.join("backup"), &mark).expect("a backup");
    let len = std::fs::metadata(folder.join("backup")).expect("its size").len();
    eprintln!("backup of {} MiB: {:?}", len >> 20, begin.elapsed());
    drop(store);
    let begin = Instant::now();
    let mut store = SqliteStore::open(&path).expect("opens again");
    eprintln!("open, with the check of its structure: {:?}", begin.elapsed());
    let begin = Instant::now();
    let (Revision(revision), jobs) = store.list(Kind::Job).expect("the jobs");
    eprintln!("list of {} jobs at revision {revision}: {:?}", jobs.len(), begin.elapsed());
    drop(store);
    std::fs::remove_dir_all(&folder).expect("the folder can go");
}

criterion_group!(benches, store);
criterion_main!(benches);

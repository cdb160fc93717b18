//! The job table beside other maps: `cargo bench --bench table`.
//!
//! The first part is criterion's, on one thread. The second runs one or two threads, with writes among the look-ups,
//! and prints the processor time of one look-up (a thread's own, from `/proc/thread-self/schedstat`, so that a busy
//! machine disturbs it less than it would disturb a clock), the median of five rounds in which all kinds take turns.
//!
//! Who asks is written down 64 at a time before they are looked up, as a batch of packets is: on a core an identity has
//! just been read from a packet, so it is in the cache, and the machine it names is not.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bootstorm::jobs::image::{Access, BootFiles, Images, WimbootAt};
use bootstorm::jobs::job::{Action, Job, JobId, JobSpec, Selector};
use bootstorm::jobs::machine::MachineId;
use bootstorm::jobs::rule::{Network, Rule};
use bootstorm::jobs::script::{Context, Hints, Policy, compose};
use bootstorm::jobs::table::{Entry, Key, Standing};
use bootstorm::jobs::table::{Writer, table};
use bootstorm::jobs::token::{BootId, TokenKey};
use bootstorm::jobs::{Identity, Image};
use bootstorm::wire::{Arch, MacAddr, Uuid};
use criterion::{Criterion, criterion_group};

const MACHINES: u64 = 100_000;
/// Identities that are written down before they are looked up.
const BATCH: usize = 64;

fn mac(machine: u64) -> MacAddr {
    let [_, _, _, b, c, d, e, f] = machine.to_be_bytes();
    MacAddr([0x52 ^ (b & 0xfc), 0x54, c, d, e, f])
}

fn uuid(machine: u64) -> Uuid {
    let low = machine.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Uuid((u128::from(machine + 1) << 64 | u128::from(low)).to_be_bytes())
}

fn who(machine: u64) -> Identity {
    Identity { mac: Some(mac(machine)), ..Identity::default() }
}

fn job(id: u64, selector: Selector) -> Arc<Job> {
    let always = !selector.is_exact();
    let spec = JobSpec { always, ..JobSpec::new(Action::Image("winpe-x64".into()), selector) };
    Arc::new(Job::new(JobId(id), &spec, false, SystemTime::UNIX_EPOCH))
}

fn jobs() -> Vec<Arc<Job>> {
    (0..MACHINES).map(|machine| job(machine + 1, Selector::Mac(mac(machine)))).collect()
}

fn entry(machine: u64, job: &Arc<Job>) -> Entry {
    let standing = Standing::new(MachineId(machine));
    Entry { grants: vec![Arc::clone(job)], machine: Some(Arc::new(standing)) }
}

/// A rule of one of eight shapes.
fn rule(number: u64) -> Rule {
    let subnet = |prefix| Network::new(std::net::Ipv4Addr::from(0x0a00_0000 | (number as u32) << 8), prefix);
    let text = |name: &str| Some(format!("{name} {number}"));
    let arch = vec![Arch(7), Arch(9)];
    match number % 8 {
        0 => Rule { subnet: subnet(24), ..Rule::default() },
        1 => Rule { subnet: subnet(28), arch, ..Rule::default() },
        2 => Rule { group: text("room"), ..Rule::default() },
        3 => Rule { manufacturer: text("Maker"), product: text("Box"), ..Rule::default() },
        4 => Rule { product: text("Box"), arch, ..Rule::default() },
        5 => Rule { subnet: subnet(24), any_unknown: true, ..Rule::default() },
        6 => Rule { group: text("room"), arch, ..Rule::default() },
        _ => Rule { subnet: subnet(16), product: text("Box"), ..Rule::default() },
    }
}

struct Library([Arc<Image>; 1]);

impl Images for Library {
    fn image(&self, name: &str) -> Option<&Image> {
        self.0.iter().map(Arc::as_ref).find(|image| image.name == name)
    }

    fn list(&self) -> &[Arc<Image>] {
        &self.0
    }
}

fn library() -> Library {
    let boot = BootFiles::Winpe {
        wimboot: WimbootAt::Loader("wimboot".into()),
        wim: "sources/boot.wim".into(),
        extra: vec!["BCD".into(), "boot.sdi".into()],
    };
    Library([Arc::new(Image {
        name: "winpe-x64".into(),
        title: "Windows PE".into(),
        kind: None,
        cpu: None,
        platform: None,
        args: String::new(),
        index: None,
        destructive: false,
        access: Access::Open,
        boot: Some(boot),
        unbootable: None,
        warnings: Vec::new(),
        files: Vec::new(),
        group: None,
        key: None,
        loader: None,
        template: None,
        answers: Vec::new(),
        url_args: Vec::new(),
        gss: None,
    })])
}

fn single(c: &mut Criterion) {
    let before = resident();
    let jobs = jobs();
    let of_jobs = resident();
    let (table, mut writer) = table(0);
    for (machine, job) in (0..).zip(&jobs) {
        let entry = entry(machine, job);
        let standing = entry.machine.clone();
        writer.put(Key::Mac(mac(machine)), Some(entry));
        writer.put(Key::Uuid(uuid(machine)), Some(Entry { grants: Vec::new(), machine: standing }));
    }
    let rules = (0..1_000).map(|number| job(MACHINES + 1 + number, Selector::Rule(Box::new(rule(number)))));
    writer.set_rules(rules.collect());
    println!(
        "memory: {} jobs {} KiB; a table of {} identities, grown from nothing, and 1000 rules {} KiB",
        jobs.len(),
        (of_jobs - before) / 1024,
        writer.len(),
        (resident() - of_jobs) / 1024
    );
    let asked: Vec<u64> = random_machines(1 << 16).collect();
    for (name, with_uuid) in [("decide/mac/hit", false), ("decide/mac_and_uuid/hit", true)] {
        let mut batches = asked.chunks_exact(BATCH).cycle();
        let mut batch = vec![Identity::default(); BATCH];
        c.bench_function(name, |b| {
            b.iter_custom(|decisions| {
                let mut spent = Duration::ZERO;
                for _ in 0..decisions.div_ceil(BATCH as u64) {
                    for (who, machine) in batch.iter_mut().zip(batches.next().expect("it goes round")) {
                        who.mac = Some(mac(*machine));
                        who.uuid = with_uuid.then(|| uuid(*machine));
                    }
                    let begin = Instant::now();
                    for who in black_box(&batch) {
                        assert!(table.view().decide(who).job().is_some());
                    }
                    spent += begin.elapsed();
                }
                spent.mul_f64(decisions as f64 / decisions.next_multiple_of(BATCH as u64) as f64)
            });
        });
    }
    let (library, policy, key) = (library(), Policy::default(), TokenKey::new([7; 32]));
    let context = Context {
        base_url: "http://10.77.0.1:4433",
        boot: BootId(7),
        key: &key,
        now_unix: 1_800_000_000,
        policy: &policy,
        hints: Hints::default(),
    };
    let stranger = Identity {
        uuid: Some(Uuid([9; 16])),
        serial: Some("ABC123".into()),
        asset: Some("T-7".into()),
        manufacturer: Some("Maker 12".into()),
        product: Some("Box 12".into()),
        arch: Some(Arch::UEFI_X64),
        address: Some([10, 200, 200, 9].into()),
        ..who(MACHINES + 5)
    };
    let by_rule = Identity { address: Some([10, 1, 244, 9].into()), ..stranger.clone() };
    let by_job = Identity { mac: Some(mac(77)), ..stranger.clone() };
    let nobody = Identity { product: Some("Other".into()), ..stranger };
    let mut out = String::with_capacity(8192);
    for (name, who) in [("rule", &by_rule), ("exact", &by_job), ("nothing", &nobody)] {
        println!("{name}: {:?}", table.view().decide(who).job().map(|job| job.selector.to_string()));
        c.bench_function(&format!("decide/1000_rules/{name}"), |b| {
            b.iter(|| table.view().decide(black_box(who)).job().is_some());
        });
        c.bench_function(&format!("decide_and_render/1000_rules/{name}"), |b| {
            b.iter(|| {
                let view = table.view();
                compose(view.decide(black_box(who)), &library, who, &context, &mut out);
                out.len()
            });
        });
    }
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("there is a proc");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("statm has pages") * 4096
}

/// Numbers of machines without an order that a cache could learn.
fn random_machines(count: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % MACHINES
    })
}

/// A good and fast hash for the other maps, so that they are not measured by SipHash.
#[derive(Default)]
struct Fast(u64);

impl Hasher for Fast {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let product =
                u128::from(self.0 ^ u64::from_le_bytes(word)) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
            self.0 = (product >> 64) as u64 ^ product as u64;
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

type FastHash = BuildHasherDefault<Fast>;

/// A map as this bench drives it.
trait Map: Sync {
    /// Looks a machine up; how it gets at the job's address is all it does.
    fn find(&self, who: &Identity) -> bool;
    /// Publishes a job again.
    fn write(&self, machine: u64, job: &Arc<Job>);
}

/// Ours. The lock is the writer's own and never seen by a look-up: the trait lets any thread write.
struct Ours(Arc<bootstorm::jobs::table::Table>, std::sync::Mutex<Writer>);

impl Map for Ours {
    fn find(&self, who: &Identity) -> bool {
        black_box(self.0.view().decide(who).job()).is_some()
    }

    fn write(&self, machine: u64, job: &Arc<Job>) {
        self.1.lock().expect("no panic").put(Key::Mac(mac(machine)), Some(entry(machine, job)));
    }
}

impl Map for RwLock<HashMap<MacAddr, Arc<Job>, FastHash>> {
    fn find(&self, who: &Identity) -> bool {
        let map = self.read().expect("no panic");
        black_box(who.mac.and_then(|mac| map.get(&mac)).map(Arc::as_ptr)).is_some()
    }

    fn write(&self, machine: u64, job: &Arc<Job>) {
        self.write().expect("no panic").insert(mac(machine), Arc::clone(job));
    }
}

impl Map for dashmap::DashMap<MacAddr, Arc<Job>, FastHash> {
    fn find(&self, who: &Identity) -> bool {
        black_box(who.mac.and_then(|mac| self.get(&mac)).map(|job| Arc::as_ptr(&job))).is_some()
    }

    fn write(&self, machine: u64, job: &Arc<Job>) {
        self.insert(mac(machine), Arc::clone(job));
    }
}

impl Map for papaya::HashMap<MacAddr, Arc<Job>, FastHash> {
    fn find(&self, who: &Identity) -> bool {
        let map = self.pin();
        black_box(who.mac.and_then(|mac| map.get(&mac)).map(Arc::as_ptr)).is_some()
    }

    fn write(&self, machine: u64, job: &Arc<Job>) {
        self.pin().insert(mac(machine), Arc::clone(job));
    }
}

/// Nanoseconds of processor time of one operation on each of `threads` threads, `percent` of all operations being
/// writes, which the first thread does among its look-ups. The last thread only looks up.
fn round(map: &dyn Map, jobs: &[Arc<Job>], threads: u64, percent: u64) -> Vec<f64> {
    let (barrier, stop) = (Barrier::new(threads as usize + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|thread| {
                let (barrier, stop) = (&barrier, &stop);
                scope.spawn(move || {
                    let machines: Vec<u64> = random_machines(1 << 17).skip(thread as usize * 9_973).collect();
                    let mut batch = vec![Identity::default(); BATCH];
                    let every = if thread == 0 && percent > 0 { 100 / (percent * threads) } else { u64::MAX };
                    barrier.wait();
                    let (begin, mut done) = (cpu_time(), 0u64);
                    while !stop.load(Ordering::Relaxed) {
                        for machines in machines.chunks_exact(BATCH) {
                            for (who, machine) in batch.iter_mut().zip(machines) {
                                who.mac = Some(mac(*machine));
                            }
                            for (who, machine) in black_box(&batch).iter().zip(machines) {
                                if done % every == every - 1 {
                                    map.write(*machine, &jobs[*machine as usize]);
                                } else {
                                    assert!(map.find(who));
                                }
                                done += 1;
                            }
                        }
                    }
                    (cpu_time() - begin) as f64 / done as f64
                })
            })
            .collect();
        barrier.wait();
        thread::sleep(Duration::from_millis(600));
        stop.store(true, Ordering::Relaxed);
        all.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn cpu_time() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel keeps schedstat");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("it begins with nanoseconds")
}

fn threads() {
    let jobs = jobs();
    let (table, writer) = table(MACHINES as usize);
    let ours = Ours(table, std::sync::Mutex::new(writer));
    let lock = RwLock::new(HashMap::<MacAddr, Arc<Job>, FastHash>::default());
    let dash = dashmap::DashMap::<MacAddr, Arc<Job>, FastHash>::default();
    let papaya = papaya::HashMap::<MacAddr, Arc<Job>, FastHash>::default();
    let maps: [(&str, &dyn Map); 4] =
        [("table", &ours), ("rwlock", &lock), ("dashmap", &dash), ("papaya", &papaya)];
    for (_, map) in &maps {
        for (machine, job) in (0..).zip(&jobs) {
            map.write(machine, job);
        }
    }
    println!("\nns of processor time per operation; of two threads: mixed thread / look-ups only");
    println!(
        "{:<10}{:>16}{:>16}{:>16}{:>16}{:>16}",
        "", "1 thread", "1, 10 % writes", "2 threads", "2, 1 %", "2, 10 %"
    );
    let cases = [(1, 0), (1, 10), (2, 0), (2, 1), (2, 10)];
    let mut results = vec![vec![Vec::new(); cases.len()]; maps.len()];
    for _ in 0..5 {
        for (case, (threads, percent)) in cases.iter().enumerate() {
            for (number, (_, map)) in maps.iter().enumerate() {
                results[number][case].push(round(*map, &jobs, *threads, *percent));
            }
        }
    }
    for ((name, _), cases) in maps.iter().zip(results) {
        print!("{name:<10}");
        for rounds in cases {
            let median = |thread: usize| {
                let mut all: Vec<f64> = rounds.iter().map(|round| round[thread]).collect();
                all.sort_by(f64::total_cmp);
                all[all.len() / 2]
            };
            let threads: Vec<String> = (0..rounds[0].len()).map(|t| format!("{:.0}", median(t))).collect();
            print!("{:>16}", threads.join(" / "));
        }
        println!();
    }
}

criterion_group!(benches, single);

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        // Called by `cargo test`, which only asks whether it can run.
        return;
    }
    benches();
    threads();
}

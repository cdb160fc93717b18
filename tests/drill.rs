//! The loop drill: random histories of machines that boot, break off and come back, of a server that dies between any
//! two effects, of a disk that fills up, of clocks that jump, against the real book, table, keeper's turn and store.
//! What must hold in all of them:
//!
//! - no machine starts an installer twice for one arming of its job, whichever of its cards it boots from;
//! - a job that is over for a machine was passed by a boot that stood at the point of no return, or says why not;
//! - whoever has a live job and boots in peace gets it.
//!
//! Every history is made from one number. `BOOTSTORM_HISTORIES=100000 cargo test --release --test drill` runs more of
//! them; `BOOTSTORM_SEED=n` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bootstorm::jobs::Identity;
use bootstorm::jobs::evidence::{Asker, Evidence, Over, Seen};
use bootstorm::jobs::image::{Access, BootFiles, Image, ImageKind, Images};
use bootstorm::jobs::job::{Action, Confirm, Job, JobId, JobSpec, Selector, Stage};
use bootstorm::jobs::script::{Barrier, barrier};
use bootstorm::jobs::table::Decision;
use bootstorm::jobs::token::BootId;
use bootstorm::keeper::{Answer, AtTheLine, Input, Ledger, Order, Output};
use bootstorm::store::{Fault, MemoryStore, SharedStore, SqliteStore, Store};
use bootstorm::wire::{MacAddr, Uuid};

#[path = "drill/power_on.rs"]
mod power_on;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

struct Library(Vec<Arc<Image>>);

impl Images for Library {
    fn image(&self, name: &str) -> Option<&Image> {
        self.0.iter().map(Arc::as_ref).find(|image| image.name == name)
    }

    fn list(&self) -> &[Arc<Image>] {
        &self.0
    }
}

/// One whose last file waits, one whose script does.
fn library() -> Arc<Library> {
    let file = Image {
        name: "file".into(),
        title: "file".into(),
        kind: Some(ImageKind::Linux),
        cpu: None,
        platform: None,
        args: String::new(),
        index: None,
        destructive: true,
        access: Access::Open,
        boot: Some(BootFiles::Linux { kernel: "k".into(), initrds: vec!["i".into()] }),
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
    };
    let script = Image {
        name: "script".into(),
        kind: Some(ImageKind::Iso),
        boot: Some(BootFiles::Iso { iso: "x.iso".into() }),
        ..file.clone()
    };
    Arc::new(Library(vec![Arc::new(file), Arc::new(script)]))
}

/// A machine as it stands in the room.
struct Machine {
    macs: Vec<MacAddr>,
    uuid: Option<Uuid>,
    serial: Option<String>,
    state: State,
    /// Cards it boots from next.
    card: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Off,
    /// Its script, or its last file, waits for the keeper.
    AtTheLine(AtTheLine),
    /// It has a script and downloads.
    Loading(AtTheLine),
    /// What it booted runs.
    Started(BootId),
}

/// The store as the operating system has it, whatever happens to the process.
enum Disk {
    Memory(SharedStore),
    File(PathBuf),
}

struct World {
    random: Random,
    now: SystemTime,
    disk: Disk,
    images: Arc<Library>,
    ledger: Option<Ledger>,
    machines: Vec<Machine>,
    jobs: Vec<JobId>,
    /// Sent to the keeper and not judged yet.
    queue: Vec<Input>,
    tickets: u64,
    /// Which machine waits for which ticket, with which boot.
    waiting: BTreeMap<u64, (usize, BootId)>,
    /// Boots that stood at the point of no return.
    at_the_line: BTreeSet<BootId>,
    /// What a boot passed for: job, re-armings of it, step.
    passed_for: BTreeMap<BootId, (JobId, u64, u32)>,
    rearms: BTreeMap<JobId, u64>,
    /// Boots that started something, by what they passed for and, with rules, the machine.
    started: BTreeMap<(JobId, u64, u32, Option<usize>), BTreeSet<BootId>>,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64, disk: Disk) -> Self {
        let mut random = Random(seed);
        let count = 1 + random.below(3);
        let adapter = MacAddr([0x00, 0xe0, 0x4c, 0, 0, 1]);
        let machines = (0..count)
            .map(|n| {
                let mut macs: Vec<MacAddr> =
                    (0..1 + random.below(2)).map(|card| MacAddr([2, 0, 0, 0, n as u8, card as u8])).collect();
                if random.one_in(5) {
                    macs.push(adapter);
                }
                let uuid = match random.below(5) {
                    0 => None,
                    1 => Some(Uuid([0; 16])),
                    _ => {
                        Some(Uuid((0x4c4c_4544_0042_3510_8052_b4c0_4f56_4200u128 + n as u128).to_be_bytes()))
                    }
                };
                let serial = match random.below(3) {
                    0 => None,
                    1 => Some("To be filled by O.E.M.".to_owned()),
                    _ => Some(format!("SN-{n}")),
                };
                Machine { macs, uuid, serial, state: State::Off, card: 0 }
            })
            .collect();
        let mut world = Self {
            random,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            disk,
            images: library(),
            ledger: None,
            machines,
            jobs: Vec::new(),
            queue: Vec::new(),
            tickets: 0,
            waiting: BTreeMap::new(),
            at_the_line: BTreeSet::new(),
            passed_for: BTreeMap::new(),
            rearms: BTreeMap::new(),
            started: BTreeMap::new(),
            log: Vec::new(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let store: Box<dyn Store> = match &self.disk {
            Disk::Memory(shared) => Box::new(shared.clone()),
            Disk::File(path) => Box::new(SqliteStore::open(path).expect("the store opens")),
        };
        let images = Arc::clone(&self.images);
        let images = Box::new(move || Arc::clone(&images) as Arc<dyn Images + Send + Sync>);
        self.ledger = Some(Ledger::open(store, images, [7; 32], self.now).expect("the ledger opens"));
        self.log.push("server starts".into());
    }

    /// The process is gone: what was not on the disk has never been.
    fn kill(&mut self) {
        self.ledger = None;
        self.queue.clear();
        self.waiting.clear();
        if let Disk::Memory(shared) = &mut self.disk {
            let left = shared.inner().snapshot();
            *shared = SharedStore::new(MemoryStore::from(left));
        }
        // Connections are gone with it: a download is tried again, a script is asked for again.
        for machine in &mut self.machines {
            if let State::AtTheLine(line) = &machine.state {
                machine.state = match line.image.as_str() {
                    "file" => State::Loading(line.clone()),
                    _ => State::Off,
                };
            }
        }
        self.log.push("server dies".into());
    }

    fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().expect("the server runs")
    }

    fn job(&self, id: JobId) -> Option<Job> {
        self.ledger().book().job(id).map(|job| Job::clone(job))
    }

    /// Hands what is queued to the keeper. The server may die before, after, or between its answers.
    fn turn(&mut self, may_die: bool) {
        if may_die && self.random.one_in(25) {
            self.kill();
            return self.start();
        }
        let inputs = std::mem::take(&mut self.queue);
        let lines: BTreeMap<u64, AtTheLine> = inputs
            .iter()
            .filter_map(|input| match input {
                Input::Line { line, ticket } => Some((*ticket, line.clone())),
                _ => None,
            })
            .collect();
        if may_die
            && self.random.one_in(12)
            && let Disk::Memory(shared) = &self.disk
        {
            let fault = [Fault::Full, Fault::Io, Fault::InDoubt][self.random.below(3)];
            shared.inner().fail_next_commit(fault);
        }
        let now = self.now;
        let outputs = self.ledger.as_mut().expect("the server runs").turn(inputs, now);
        // What passed is read from the book, which is what is on the disk, before anything can be lost again. Orders
        // stand behind evidence and boots in a turn of their own here, so the order of both is known.
        for (ticket, line) in &lines {
            let go = outputs.iter().any(
                |output| matches!(output, Output::Line { ticket: t, answer: Answer::Go } if t == ticket),
            );
            if go {
                self.note_passage(line);
            }
        }
        for output in outputs {
            if may_die && self.random.one_in(40) {
                self.kill();
                return self.start();
            }
            if let Output::Line { ticket, answer } = output {
                self.answered(ticket, answer);
            }
        }
    }

    fn note_passage(&mut self, line: &AtTheLine) {
        let Some(job) = self.job(line.job) else { panic!("a job that is unknown let a boot pass") };
        let exact = job.selector.is_exact();
        // A sequence has gone on by the time it is looked at.
        let step = if exact && job.stage == Stage::Armed { job.step.saturating_sub(1) } else { job.step };
        let rearms = self.rearms.get(&line.job).copied().unwrap_or_default();
        self.passed_for.entry(line.boot).or_insert((line.job, rearms, step));
    }

    fn answered(&mut self, ticket: u64, answer: Answer) {
        let Some((index, boot)) = self.waiting.remove(&ticket) else { return };
        let State::AtTheLine(line) = self.machines[index].state.clone() else { return };
        if line.boot != boot {
            // It was switched off and on meanwhile: that connection is gone.
            return;
        }
        self.log.push(format!("machine {index}, {} of {}: {answer:?}", line.boot, line.job));
        match answer {
            Answer::Go if self.random.one_in(6) => {
                // Lost on the wire: a download is tried again under its token, a script is asked for again.
                self.machines[index].state =
                    if line.image == "file" { State::Loading(line) } else { State::Off };
            }
            Answer::Go => self.starts(index, &line),
            Answer::NotNow if line.image == "file" => self.machines[index].state = State::Loading(line),
            Answer::NotNow | Answer::Refused(_) => self.machines[index].state = State::Off,
        }
    }

    /// The machine has everything: whatever it is, it wipes the disk now.
    fn starts(&mut self, index: usize, line: &AtTheLine) {
        self.machines[index].state = State::Started(line.boot);
        let (job, rearms, step) = self.passed_for[&line.boot];
        let exact = self.job(job).is_none_or(|job| job.selector.is_exact());
        let boots = self.started.entry((job, rearms, step, (!exact).then_some(index))).or_default();
        boots.insert(line.boot);
        assert_eq!(
            boots.len(),
            1,
            "{job} wiped a second time: boots {boots:?}, step {step}, after {rearms} re-armings"
        );
    }

    /// Whoever the machine is in this request.
    fn who(&mut self, index: usize) -> Identity {
        let short = self.random.one_in(6);
        let machine = &self.machines[index];
        let mut who = Identity { mac: Some(machine.macs[machine.card]), ..Identity::default() };
        if !short {
            who.uuid = machine.uuid;
            who.serial.clone_from(&machine.serial);
        }
        who
    }

    fn asks_for_script(&mut self, index: usize) {
        let who = self.who(index);
        self.asks_as(index, &who);
    }

    fn asks_as(&mut self, index: usize, who: &Identity) {
        let table = self.ledger().table();
        let view = table.view();
        let decision = view.decide(who);
        let boot = self.ledger().boots().begin();
        let image = decision.job().and_then(|job| job.action.image()).map(str::to_owned);
        let named = match decision {
            Decision::Job(job) | Decision::Done(job) => Some(job.id),
            Decision::Rejected | Decision::NoJob => None,
        };
        if let Decision::Done(job) = decision {
            assert!(!job.reason.is_empty(), "a local boot without a reason");
        }
        let live = decision.job().map(|job| job.id);
        let seen = Seen::ScriptAsked {
            job: named,
            offer: if live.is_some() { "image" } else { "local" }.into(),
            image: image.clone(),
        };
        let mut evidence = Evidence::new(self.now, seen);
        (evidence.mac, evidence.uuid, evidence.boot) = (who.mac, who.uuid, Some(boot));
        evidence.serial.clone_from(&who.serial);
        if !self.random.one_in(30) {
            self.queue.push(Input::Seen(evidence));
        }
        self.log.push(format!("machine {index} as {:?} {:?}: {live:?} {image:?} {boot}", who.mac, who.uuid));
        self.machines[index].state = State::Off;
        let (Some(job), Some(image)) = (live, image) else { return };
        let line = AtTheLine {
            boot,
            job,
            image,
            what: "the last of it".into(),
            idents: Vec::new(),
            once: None,
            changed: false,
        };
        let waits = barrier(self.images.image(&line.image).expect("an image of the library"));
        if waits == Some(Barrier::Script) {
            self.waits(index, line);
        } else if !self.random.one_in(10) {
            self.machines[index].state = State::Loading(line);
        }
    }

    fn waits(&mut self, index: usize, line: AtTheLine) {
        self.tickets += 1;
        self.at_the_line.insert(line.boot);
        self.waiting.insert(self.tickets, (index, line.boot));
        self.queue.push(Input::Line { line: line.clone(), ticket: self.tickets });
        self.machines[index].state = State::AtTheLine(line);
    }

    fn downloads(&mut self, index: usize, line: AtTheLine) {
        let seen = Seen::FileStarted {
            job: Some(line.job),
            image: line.image.clone(),
            file: "k".into(),
            over: Over::Http,
        };
        let mut evidence = Evidence::new(self.now, seen);
        evidence.boot = Some(line.boot);
        if !self.random.one_in(20) {
            self.queue.push(Input::Seen(evidence));
        }
        if !self.random.one_in(3) {
            self.waits(index, line);
        }
    }

    fn dhcp(&mut self, index: usize) {
        let machine = &self.machines[index];
        let seen =
            Seen::DhcpOffered { asker: Asker::Firmware, arch: None, relay: None, file: "snponly.efi".into() };
        let mut evidence = Evidence::new(self.now, seen);
        (evidence.mac, evidence.uuid) = (Some(machine.macs[machine.card]), machine.uuid);
        self.queue.push(Input::Seen(evidence));
    }

    fn order(&mut self, order: Order) -> Option<Vec<Arc<Job>>> {
        // Orders have a turn of their own, so that what they met is known.
        self.turn(true);
        self.tickets += 1;
        let ticket = self.tickets;
        let rearm = match &order {
            Order::Rearm { id, .. } => Some(*id),
            _ => None,
        };
        let now = self.now;
        let input = Input::Order { order, by: "drill".into(), ticket };
        let outputs = self.ledger.as_mut().expect("the server runs").turn(vec![input], now);
        let result = outputs.into_iter().find_map(|output| match output {
            Output::Done { ticket: t, result } if t == ticket => Some(result),
            _ => None,
        })?;
        // A commit that failed in doubt is known after a restart.
        // Not by its floor alone: re-armed before another boot began, it is where the last passage left it.
        let state = |world: &Self, id| world.job(id).map(|job| (job.floor, job.generation));
        if let Some(id) = rearm {
            let before = state(self, id);
            if matches!(result, Err(bootstorm::jobs::book::Refusal::StoreUnavailable { .. })) {
                self.kill();
                self.start();
            }
            if result.is_ok() || state(self, id) != before {
                *self.rearms.entry(id).or_default() += 1;
                self.log.push(format!("{id} re-armed"));
            }
        }
        match result.ok()? {
            bootstorm::keeper::Done::Jobs(jobs) => Some(jobs),
            _ => None,
        }
    }

    fn adds_job(&mut self) {
        let index = self.random.below(self.machines.len());
        let machine = &self.machines[index];
        let image = if self.random.one_in(3) { "script" } else { "file" };
        let selector = match self.random.below(4) {
            0 => machine.uuid.map_or(Selector::Mac(machine.macs[0]), Selector::Uuid),
            1 => machine.serial.clone().map_or(Selector::Mac(machine.macs[0]), Selector::Serial),
            2 => Selector::Any,
            _ => Selector::Mac(machine.macs[self.random.below(machine.macs.len())]),
        };
        let exact = selector.is_exact();
        let then =
            if exact && self.random.one_in(4) { vec![Action::Image("file".into())] } else { Vec::new() };
        let confirm = if self.random.one_in(4) { Confirm::Callback } else { Confirm::Image };
        let spec = JobSpec {
            attempts: 1 + self.random.below(3) as u32,
            allow_rule: !exact,
            replace: exact && self.random.one_in(3),
            queue: exact && self.random.one_in(3),
            expires: self.random.one_in(4).then(|| Duration::from_secs(self.random.next() % 7_200)),
            then,
            confirm,
            ..JobSpec::new(Action::Image(image.into()), selector)
        };
        for job in self.order(Order::AddJobs(vec![spec])).into_iter().flatten() {
            self.log.push(format!("{}: {} for {}", job.id, job.action, job.selector));
            self.jobs.push(job.id);
        }
    }

    fn step(&mut self) {
        let index = self.random.below(self.machines.len());
        match self.random.below(16) {
            0 => self.adds_job(),
            1 if !self.jobs.is_empty() => {
                let id = self.jobs[self.random.below(self.jobs.len())];
                let order = if self.random.one_in(2) {
                    Order::Cancel { id, expected: None }
                } else {
                    Order::Rearm { id, expected: None, all: true }
                };
                self.order(order);
            }
            2 => {
                // The machine is switched off and on, in the middle of whatever it did.
                let cards = self.machines[index].macs.len();
                self.machines[index].state = State::Off;
                self.machines[index].card = self.random.below(cards);
                self.dhcp(index);
            }
            3 => {
                let seconds = Duration::from_secs(self.random.next() % 3_000);
                self.now = if self.random.one_in(4) { self.now - seconds } else { self.now + seconds };
                self.queue.push(Input::Tick);
            }
            4 => {
                if let State::Started(boot) = self.machines[index].state {
                    let (job, ..) = self.passed_for[&boot];
                    let seen = match self.random.below(3) {
                        0 => Seen::FailureCalled { job, reason: "drill".into() },
                        _ => Seen::CalledBack { job },
                    };
                    let evidence = Evidence { boot: Some(boot), ..Evidence::new(self.now, seen) };
                    self.queue.push(Input::Seen(evidence));
                }
            }
            5 | 6 => self.turn(true),
            _ => match self.machines[index].state.clone() {
                State::Off | State::Started(_) => self.asks_for_script(index),
                State::Loading(line) => self.downloads(index, line),
                State::AtTheLine(_) => self.turn(true),
            },
        }
        self.now += Duration::from_secs(self.random.next() % 20);
        if self.random.one_in(3) {
            self.turn(true);
        }
    }

    /// Peace at last: nobody dies any more, and everything that is still owed is given.
    fn rest(&mut self) {
        self.kill();
        self.start();
        for machine in &mut self.machines {
            machine.state = State::Off;
        }
        for id in self.jobs.clone() {
            let Some(job) = self.job(id) else { continue };
            assert!(!job.reason.is_empty(), "{id} is {} without a reason", job.stage);
            if job.selector.is_exact() && matches!(job.stage, Stage::Running | Stage::Confirmed) {
                let boot = job.passed.expect("whoever runs has passed");
                assert!(self.at_the_line.contains(&boot), "{id} is over by {boot}, which never came so far");
            }
        }
        for index in 0..self.machines.len() {
            for card in 0..self.machines[index].macs.len() {
                self.machines[index].card = card;
                self.boots_in_peace(index);
            }
        }
    }

    fn boots_in_peace(&mut self, index: usize) {
        // Twice the attempts and every image of a sequence: more boots than any job here has.
        for _ in 0..16 {
            let machine = &self.machines[index];
            let who = Identity {
                mac: Some(machine.macs[machine.card]),
                uuid: machine.uuid,
                serial: machine.serial.clone(),
                ..Identity::default()
            };
            let table = self.ledger().table();
            let owed = match table.view().decide(&who) {
                Decision::Job(job) => Some(job.id),
                Decision::Done(job) => {
                    assert!(!job.reason.is_empty());
                    return;
                }
                Decision::Rejected | Decision::NoJob => None,
            };
            let Some(owed) = owed else { return };
            // A lost report or answer of this boot is made good by the next one.
            for _ in 0..20 {
                self.asks_as(index, &who);
                self.turn(false);
                for _ in 0..40 {
                    let State::Loading(line) = self.machines[index].state.clone() else { break };
                    self.downloads(index, line);
                    self.turn(false);
                }
                let over = match table.view().decide(&who) {
                    Decision::Job(job) => job.id != owed,
                    _ => true,
                };
                if over || matches!(self.machines[index].state, State::Started(_)) {
                    break;
                }
            }
            let still = matches!(table.view().decide(&who), Decision::Job(job) if job.id == owed);
            let started = matches!(self.machines[index].state, State::Started(_));
            assert!(started || !still, "machine {index} is owed {owed} and never gets it");
        }
    }
}

fn history(seed: u64, disk: Disk, steps: usize) {
    let mut world = World::new(seed, disk);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..steps {
            world.step();
        }
        world.rest();
    }));
    if let Err(cause) = result {
        let tail: Vec<&String> = world.log.iter().rev().take(60).rev().collect();
        panic!(
            "history {seed} (BOOTSTORM_SEED={seed}): {}\n{}",
            cause.downcast_ref::<String>().map_or_else(
                || cause.downcast_ref::<&str>().copied().unwrap_or("?").to_owned(),
                Clone::clone
            ),
            tail.into_iter().map(String::as_str).collect::<Vec<_>>().join("\n")
        );
    }
}

#[test]
fn no_machine_is_wiped_twice_and_none_is_forgotten() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("BOOTSTORM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BOOTSTORM_HISTORIES").unwrap_or(2_000),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|half| {
                let seeds = seeds.clone();
                scope.spawn(move || {
                    for seed in seeds.filter(|seed| seed % 2 == half) {
                        history(seed, Disk::Memory(SharedStore::default()), 120);
                    }
                })
            })
            .collect();
        for thread in threads {
            if let Err(cause) = thread.join() {
                std::panic::resume_unwind(cause);
            }
        }
    });
}

#[test]
fn the_same_holds_on_the_real_file() {
    let count = std::env::var("BOOTSTORM_HISTORIES").ok().and_then(|text| text.parse::<u64>().ok());
    let dir = std::env::temp_dir().join(format!("bootstorm-drill-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    for seed in 0..count.map_or(20, |count| count / 200).clamp(1, 500) {
        let path = dir.join(format!("{seed}.db"));
        history(1_000_000 + seed, Disk::File(path.clone()), 80);
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", path.display()));
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
}

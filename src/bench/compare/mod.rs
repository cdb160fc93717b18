//! The same work on this program and on the servers that are installed: each alone in a network namespace and a control
//! group of its own on one CPU, the load on another, in rounds in which the servers take turns.
//!
//! Needs root. All of it is taken down when [`run`] returns, fails or panics; a killed comparison leaves empty control
//! groups and a folder in /tmp, which the next one removes.

mod cgroup;
mod contender;
mod place;
mod work;

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use cgroup::{Group, Hierarchy, SoftIrqs};
use contender::{CERTIFICATES, Contender, IMAGE, Kind, LOADER, LOADER_LEN, Site};
use place::{Awake, Folder, LoadFailure, Namespace, Process, inside, interrupted, run_load};
pub use work::{Exchange, Load, Sender, What, Work};

use super::hosts::LoadError;
use super::impair::{Impairment, duration_text, share_text};
use super::report::{Conditions, FORMAT, Missing, OURS, Report, Sample, Trial, median, range};
use super::result::Point;
use super::sink::Sink;
use crate::sys::affinity::{allowed_cpus, pin_to};
use crate::sys::mmap::Mapping;
use crate::sys::uring::SendRing;
use crate::tls::{Certificates, Source};

/// At both ends.
const CONGESTION_CONTROL: &str = "reno";
/// How long a server may take to run, or to answer.
const SOON: Duration = Duration::from_secs(20);
/// What a load may take beyond its time, to set up and to end.
const LOAD_PATIENCE: Duration = Duration::from_secs(15);
/// How long the probe of a server that does not answer yet is run, and how long until the next.
const PROBE_MS: u64 = 60;
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// A server that gave nothing for so many rounds in a row is not asked for the same again.
const FRUITLESS_MAX: usize = 2;
/// A server that falls over so often before its first answer is not waited for any longer.
const FALLS_MAX: u32 = 5;
/// How long a load is run to fill caches and tables before anything is counted.
const WARM_UP: Duration = Duration::from_millis(250);
/// Of what is left for further rounds, one work takes at most one part of so many.
const EXTRA_PART: u32 = 3;
/// Rounds over an impaired wire: chance is drawn from a seed there, so more of them say little more.
const NETWORK_ROUNDS_MAX: u32 = 3;
/// A load over a wire that loses packets goes on for so many times as long, so that a time-out is a part and not the whole.
const LOSSY_TIMES: u32 = 3;
/// What machines of a storm load, about a small Linux's.
const KERNEL_LEN: u64 = 8 << 20;
const INITRD_LEN: u64 = 24 << 20;
/// The impaired wire's addresses.
const WAN_SERVER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 250, 0, 1);
const WAN_CLIENT: &str = "10.250.0.2";
/// Between the first simulated hosts of two loads over it: more than one load has.
const WAN_HOSTS_STEP: u32 = 32;
/// What the bridge's process prints once it passes frames.
pub const BRIDGE_READY: &str = "the wire is up";

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which works.
    pub works: Vec<Work>,
    /// Fewer settings of each.
    pub quick: bool,
    /// Interleaved rounds at least.
    pub rounds: u32,
    /// And at most, where they leave a ratio to a peer uncertain.
    pub rounds_max: u32,
    /// What all the rounds beyond `rounds` may take together.
    pub extra: Duration,
    /// Of one load.
    pub time: Duration,
    /// Names of peers; empty: all that are installed.
    pub peers: Vec<String>,
    /// Bytes of the large file.
    pub image_bytes: u64,
    /// Round trips and losses of the impaired wire; every pair is measured.
    pub rtts: Vec<Duration>,
    /// See `rtts`.
    pub losses: Vec<f64>,
    /// What else is wrong with it, and the seed of everything.
    pub impairment: Impairment,
}

/// Why a comparison gave nothing.
#[derive(Debug)]
pub struct CompareError {
    message: String,
    kind: ErrorKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ErrorKind {
    Failed,
    Permission,
    Interrupted,
}

impl CompareError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: ErrorKind::Failed }
    }

    fn permission(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: ErrorKind::Permission }
    }

    fn interrupted() -> Self {
        Self { message: "interrupted; everything was taken down".into(), kind: ErrorKind::Interrupted }
    }

    /// True when a privilege is missing.
    pub fn is_permission(&self) -> bool {
        self.kind == ErrorKind::Permission
    }
}

impl fmt::Display for CompareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CompareError {}

/// Names `--peers` knows.
pub fn peer_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = Kind::ALL.into_iter().filter_map(Kind::peer).collect();
    names.dedup();
    names
}

/// Runs the comparison. `say` is told what is being done; `stop` ends it early, with an error and nothing left behind.
///
/// # Errors
/// When not run by root, when this machine lacks what namespaces and control groups need, when this program's own server
/// does not start, or when interrupted. A peer's failure is a row.
pub fn run(plan: &Plan, stop: &AtomicBool, say: &mut dyn FnMut(&str)) -> Result<Report, CompareError> {
    if fs::metadata("/proc/self").map_or(true, |me| me.uid() != 0) {
        return Err(CompareError::permission(
            "bench compare makes network namespaces and control groups: run it as root",
        ));
    }
    for (program, package) in [
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
        ("taskset", "util-linux"),
        ("chrt", "util-linux"),
    ] {
        if super::find_programs(program).is_empty() {
            let advice = format!("{program} is missing: apt-get install --no-install-recommends {package}");
            return Err(CompareError::new(advice));
        }
    }
    let began = Instant::now();
    let before = Conditions::here();
    let (server_cpu, load_cpu) = place::cpu_pair(&allowed_cpus());
    pin_to(load_cpu).map_err(|error| CompareError::new(format!("pin to CPU {load_cpu}: {error}")))?;
    let hierarchy = Hierarchy::find()?;
    hierarchy.sweep();
    let folder = Folder::new()?;
    say("making the files");
    let kept = make_files(&folder, plan.image_bytes)?;
    if plan.works.contains(&Work::Https) {
        make_certificate(&folder)?;
    }
    let client = Namespace::new()?;
    let program =
        std::env::current_exe().map_err(|error| CompareError::new(format!("find this program: {error}")))?;
    let site = Site {
        folder: &folder,
        client: &client,
        hierarchy: &hierarchy,
        cpu: server_cpu,
        stop,
        program: &program,
    };
    let load_group = hierarchy.group("load")?;
    let awake_group = hierarchy.group("awake")?;
    // With one CPU for both, or where nobody can be put behind the others, what keeps awake would only be in the way.
    let kept_awake = server_cpu != load_cpu && awake_group.stand_back();
    let both = [server_cpu, load_cpu];
    let _awake = Awake::keep(if kept_awake { &both } else { &[] }, &awake_group)?;
    let mut bench = Bench {
        plan,
        site,
        load_cpu,
        softirqs: (server_cpu != load_cpu).then(|| SoftIrqs::of(server_cpu)).flatten(),
        load_group,
        contenders: Vec::new(),
        missing: Vec::new(),
        extra: plan.extra,
        notes: kept.as_ref().err().cloned().into_iter().collect(),
    };
    let mut report = Report {
        format: FORMAT,
        title: format!(
            "{OURS} beside {}",
            if plan.peers.is_empty() { "its peers".into() } else { plan.peers.join(", ") }
        ),
        ..Report::default()
    };

    let mut cases = work::cases(&plan.works, plan.quick);
    if plan.works.contains(&Work::Transmit) {
        bench.missing.extend(drop_refused(&mut cases));
    }
    let about = bench.about(&cases);
    say(&format!(
        "this takes about {}, and up to {} where rounds disagree",
        minutes(about),
        minutes(about + if cases.is_empty() { Duration::ZERO } else { plan.extra })
    ));
    for (number, case) in (1..).zip(&cases) {
        let (work, settings, clients) = case.what.describe();
        let trial = Trial { work: work.into(), settings, clients, servers: Vec::new() };
        let settings: Vec<String> = settings_words(&trial.settings);
        say(&format!(
            "{number}/{}: {work}, {}, {clients} at once; {} of about {}",
            cases.len(),
            settings.join(", "),
            minutes(began.elapsed()),
            minutes(about)
        ));
        report.rows.extend(bench.trial(case, trial)?.rows());
    }
    if plan.works.contains(&Work::Dhcp) {
        for (factor, share) in work::OVERLOADS {
            say(&format!("overload: {factor} times what a throttled server can do"));
            report.rows.extend(bench.overload(factor, share)?);
        }
    }
    let place = |word: &str| Work::ALL.into_iter().position(|work| work.word() == word);
    report.rows.sort_by_key(|row| place(if row.work == "handshake" { "https" } else { &row.work }));
    if plan.works.contains(&Work::Network) {
        report.rows.extend(bench.network(say)?);
    }
    report.reckon_confidence();
    report.servers = bench.servers();
    report.missing = bench.missing;
    report.notes = bench.notes;
    report.notes.extend(notes(plan, server_cpu == load_cpu, kept_awake, bench.softirqs.is_some()));
    report.conditions = Conditions {
        server_cpu: server_cpu as u32,
        load_cpu: load_cpu as u32,
        congestion_control: CONGESTION_CONTROL.into(),
        link: "a veth pair between two network namespaces, MTU 1500".into(),
        rounds: plan.rounds,
        round_seconds: plan.time.as_secs_f64(),
        seed: plan.impairment.seed,
        load_average: before.load_average,
        seconds: began.elapsed().as_secs_f64(),
        ..Conditions::here()
    };
    Ok(report)
}

/// One certificate (RSA, 2048 bits) for all servers, in a folder of its own.
fn make_certificate(folder: &Folder) -> Result<(), CompareError> {
    let source = Source::Own { folder: folder.join(CERTIFICATES), host: None };
    Certificates::open(source, &[])
        .map(drop)
        .map_err(|error| CompareError::new(format!("make a certificate: {error}")))
}

/// Takes out the transmit-only loads that this kernel refuses; what is told instead.
fn drop_refused(cases: &mut Vec<work::Case>) -> Option<Missing> {
    let refused = |what: &str, why: String| Some(Missing { server: what.into(), why, ..Missing::default() });
    if let Err(error) = Sink::check() {
        cases.retain(|case| !matches!(case.what, What::Transmit { .. }));
        return refused("transmit", LoadError::from(error).to_string());
    }
    if let Err(error) = SendRing::new(1) {
        cases.retain(|case| !matches!(case.what, What::Transmit { sender: Sender::ZeroCopy, .. }));
        return refused("transmit by SEND_ZC", format!("set up io_uring: {error}"));
    }
    None
}

/// What every reader has to know.
fn notes(plan: &Plan, one_cpu: bool, kept_awake: bool, softirqs: bool) -> Vec<String> {
    let mut notes = vec![
        "veth and loopback copy what a network card would not: zero-copy senders show nothing here, and a card's driver \
         and interrupts cost nothing. Ratios and CPU costs say more than throughput."
            .to_owned(),
        "Server CPU is what the server's control group used, ended children and the kernel's work in its context \
         included, and its CPU's ksoftirqd; the kernel's receive work for UDP is charged to whoever sends, for all servers alike."
            .to_owned(),
    ];
    if !softirqs {
        notes.push(format!(
            "{}, so what it does of a server's work is charged to nobody.",
            if one_cpu { "ksoftirqd serves server and load alike" } else { "ksoftirqd is not shown here" }
        ));
    }
    if plan.works.contains(&Work::Network) {
        notes.push(
            "The impaired wire is a process on the load's CPU: beyond some 100 000 packets a second it is the limit."
                .to_owned(),
        );
    }
    if plan.works.contains(&Work::Transmit) {
        notes.push(
            "Transmit: segments are acknowledged in the kernel and received by nobody, so this is the cost of sending alone, \
             without a card's driver and IOMMU and without a network's pace of acknowledgements."
                .to_owned(),
        );
    }
    if kept_awake {
        notes.push(
            "The two CPUs are kept from falling asleep by processes that run only when nobody else wants to: no server and no \
             load pays for waking a CPU, which takes longer on one machine than on another."
                .to_owned(),
        );
    }
    if cfg!(debug_assertions) {
        notes.push(format!("This {OURS} was built for debugging: its figures say nothing about its speed."));
    }
    if one_cpu {
        notes.push("There is one CPU for server and load: throughput says nothing here.".to_owned());
    }
    notes
}

struct Bench<'a> {
    plan: &'a Plan,
    site: Site<'a>,
    load_cpu: usize,
    /// Of the server's CPU; `None` where the load has the same one, or the kernel does not show it.
    softirqs: Option<SoftIrqs>,
    /// Of the load and the impaired wire, for their share of the CPU.
    load_group: Group,
    contenders: Vec<Contender>,
    missing: Vec<Missing>,
    /// What is left of the plan's time for further rounds.
    extra: Duration,
    notes: Vec<String>,
}

impl Bench<'_> {
    /// About how long all of it takes, rounds beyond the least aside.
    fn about(&self, cases: &[work::Case]) -> Duration {
        let Plan { rounds, time, .. } = *self.plan;
        let there = |kinds: &[Kind]| -> u32 {
            kinds.iter().filter(|kind| self.wants(**kind) && kind.missing().is_none()).count() as u32
        };
        let mut about = Duration::ZERO;
        let mut started: Vec<Kind> = Vec::new();
        for case in cases {
            let rounds = rounds.min(case.what.rounds_max());
            let warm_up = if case.what.warm_up().is_some() { WARM_UP } else { Duration::ZERO };
            about += (case.what.about(time) * rounds + warm_up) * there(case.kinds);
            started.extend(case.kinds);
        }
        if self.plan.works.contains(&Work::Dhcp) {
            let each = work::OVERLOAD.about(time) * 2 * rounds;
            about += each * there(work::OVERLOADED) * work::OVERLOADS.len() as u32;
        }
        if self.plan.works.contains(&Work::Network) {
            let loads = work::network_loads(self.plan.quick);
            let each: Duration = loads.iter().map(|what| what.about(time)).sum();
            let lossy = self.plan.losses.iter().filter(|loss| **loss > 0.0).count() as u32;
            let points = self.plan.losses.len() as u32 + lossy * (LOSSY_TIMES - 1);
            about += each * points * self.plan.rtts.len() as u32 * self.network_rounds();
        }
        started.sort_by_key(|kind| *kind as u8);
        started.dedup();
        about + Duration::from_millis(700) * there(&started)
    }

    /// One work on everybody who can do it.
    fn trial(&mut self, case: &work::Case, mut trial: Trial) -> Result<Trial, CompareError> {
        let mut able = Vec::new();
        for kind in case.kinds.iter().copied() {
            if self.wants(kind) && self.ready(kind, &case.what)? {
                able.push(kind);
                trial.servers.push((kind.name().into(), Vec::new()));
            }
        }
        if let Some(warm_up) = case.what.warm_up() {
            for kind in able.iter().copied() {
                // What it reaches does not count; who falls over is started again for the first round.
                let _ = self.sample(kind, &warm_up, WARM_UP.min(self.plan.time))?;
            }
        }
        let most = case.what.rounds_max();
        // No work takes all of what further rounds may take: what one leaves over is there for the next.
        let mut allowance = self.extra / EXTRA_PART;
        let mut round = 0;
        while round < self.plan.rounds.min(most)
            || (round < self.plan.rounds_max.min(most) && !allowance.is_zero() && !trial.is_settled())
        {
            let began = Instant::now();
            // Whoever goes first finds the caches as the last one left them, and what changes in the course of a round meets
            // the last most: everybody begins in turn, and every other round goes the other way round.
            let mut order: Vec<usize> = (0..able.len()).collect();
            order.rotate_left(round as usize / 2 % able.len().max(1));
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let sample = match fruitless(&trial.servers[index].1) {
                    Some(why) => Err(why),
                    None => self.round(able[index], &case.what)?,
                };
                trial.servers[index].1.push(sample);
            }
            if round >= self.plan.rounds {
                self.extra = self.extra.saturating_sub(began.elapsed());
                allowance = allowance.saturating_sub(began.elapsed());
            }
            round += 1;
        }
        trial.judge_load();
        Ok(trial)
    }

    /// One load of a round; a server that has to know nothing yet is started for it.
    fn round(&mut self, kind: Kind, what: &What) -> Result<Result<Sample, String>, CompareError> {
        if what.begins_afresh(kind) {
            let site = &self.site;
            if let Some(contender) = self.contenders.iter_mut().find(|contender| contender.kind == kind)
                && let Err(error) = contender.restart(site)
            {
                interrupted(self.site.stop)?;
                return Ok(Err(error.message));
            }
            if let Err(why) = self.answers(kind, what)? {
                return Ok(Err(why));
            }
        }
        self.sample(kind, what, self.plan.time)
    }

    /// A server left with `share` of its CPU is offered `factor` times what it then can do.
    fn overload(&mut self, factor: u32, share: f64) -> Result<Vec<super::report::Row>, CompareError> {
        let (work, mut settings, clients) = work::OVERLOAD.describe();
        settings.insert("offered".into(), format!("{factor} x its peak"));
        let mut trial = Trial { work: work.into(), settings, clients, servers: Vec::new() };
        let mut able = Vec::new();
        for kind in work::OVERLOADED.iter().copied() {
            if self.wants(kind) && self.ready(kind, &work::OVERLOAD)? {
                able.push(kind);
                trial.servers.push((kind.name().into(), Vec::new()));
            }
        }
        let mut of_peak: Vec<Vec<f64>> = vec![Vec::new(); able.len()];
        for round in 0..self.plan.rounds as usize {
            for place in 0..able.len() {
                let index = (place + round) % able.len();
                let kind = able[index];
                self.limit(kind, Some(share))?;
                let peak = self.sample(kind, &work::OVERLOAD, self.plan.time)?;
                let peak_rate = peak.as_ref().map_or(0.0, |peak| peak.point.units_per_s());
                let sample = match peak {
                    Ok(_) if peak_rate >= 1.0 => {
                        let offered = work::OVERLOAD.offered((peak_rate * f64::from(factor)) as u32);
                        self.sample(kind, &offered, self.plan.time)?
                    }
                    Ok(_) => Err("throttled, it did nothing".into()),
                    Err(why) => Err(why),
                };
                self.limit(kind, None)?;
                of_peak[index].extend(sample.as_ref().ok().map(|s| s.point.units_per_s() / peak_rate));
                trial.servers[index].1.push(sample);
            }
        }
        let mut rows = trial.rows();
        for (row, shares) in rows.iter_mut().zip(of_peak) {
            row.of_peak = median(&shares);
            row.of_peak_spread = range(&shares);
            // A load that offers more than anybody takes is busy with what is refused: that is no limit of the server's.
            row.load_headroom = None;
        }
        Ok(rows)
    }

    fn limit(&self, kind: Kind, share: Option<f64>) -> Result<(), CompareError> {
        let contender = self.contenders.iter().find(|contender| contender.kind == kind);
        contender.map_or(Ok(()), |contender| contender.group.limit(share))
    }

    fn wants(&self, kind: Kind) -> bool {
        self.plan.peers.is_empty() || kind.peer().is_none_or(|peer| self.plan.peers.iter().any(|p| p == peer))
    }

    /// True once the server runs and answers; false when it is missing, which is noted.
    fn ready(&mut self, kind: Kind, what: &What) -> Result<bool, CompareError> {
        if self.missing.iter().any(|missing| missing.server == kind.name()) {
            return Ok(false);
        }
        if let Some(missing) = kind.missing() {
            self.missing.push(missing);
            return Ok(false);
        }
        if self.contenders.iter().all(|contender| contender.kind != kind)
            && let Err(error) = self.start(kind)
        {
            interrupted(self.site.stop)?;
            if kind.peer().is_none() {
                return Err(error);
            }
            self.missing.push(Missing {
                server: kind.name().into(),
                why: error.message,
                ..Missing::default()
            });
            return Ok(false);
        }
        let Err(why) = self.answers(kind, what)? else { return Ok(true) };
        if kind.peer().is_none() {
            return Err(CompareError::new(format!("{OURS} does not answer: {why}")));
        }
        self.missing.push(Missing { server: kind.name().into(), why, ..Missing::default() });
        Ok(false)
    }

    /// Waits until a server that was started answers one client, as often as it takes: Kea needs a second for that.
    fn answers(&mut self, kind: Kind, what: &What) -> Result<Result<(), String>, CompareError> {
        let began = Instant::now();
        let probe = what.probe();
        let falls = |bench: &Self| {
            bench.contenders.iter().find(|contender| contender.kind == kind).map_or(0, |c| c.fell_over)
        };
        let fell_before = falls(self);
        loop {
            let why = match self.sample(kind, &probe, Duration::from_millis(PROBE_MS))? {
                Ok(sample) if sample.point.bytes + sample.point.units > 0 => return Ok(Ok(())),
                Ok(sample) => format!("no answer: {:?}", sample.point.failure_reasons),
                Err(why) => why,
            };
            if began.elapsed() > SOON || falls(self) - fell_before >= FALLS_MAX {
                return Ok(Err(why));
            }
            std::thread::sleep(PROBE_PAUSE);
        }
    }

    fn start(&mut self, kind: Kind) -> Result<(), CompareError> {
        let number = self.contenders.len() as u8 + 1;
        let contender = Contender::start(kind, number, &self.site)?;
        self.contenders.push(contender);
        Ok(())
    }

    /// One load on one server; the inner error is that server's or that load's.
    fn sample(
        &mut self,
        kind: Kind,
        what: &What,
        time: Duration,
    ) -> Result<Result<Sample, String>, CompareError> {
        let Some(index) = self.contenders.iter().position(|contender| contender.kind == kind) else {
            return Ok(Err("it does not run".into()));
        };
        let (contender, site) = (&mut self.contenders[index], &self.site);
        if let Some(why) = contender.why_ended()
            && let Err(error) = contender.stand_up(site)
        {
            interrupted(site.stop)?;
            return Ok(Err(format!("{why}; started again: {error}")));
        }
        let contender = &self.contenders[index];
        // Addresses of simulated clients fill the kernel's table, which all namespaces share.
        contender.namespace.ip("neigh flush all")?;
        let addr = if what.is_http() { contender.addr } else { contender.frames_addr };
        let interface = contender.interface.clone();
        let load = Load {
            server: addr,
            interface,
            from: None,
            time_ms: time.as_millis() as u64,
            what: what.clone(),
        };
        let sample = self.load(&contender.group, &load)?;
        // What it did before it fell over is no figure of a server.
        Ok(match self.contenders[index].why_ended() {
            Some(why) => Err(why),
            None => sample,
        })
    }

    fn load(&self, group: &Group, load: &Load) -> Result<Result<Sample, String>, CompareError> {
        let text = serde_json::to_string(load).map_err(|error| CompareError::new(error.to_string()))?;
        let mut program = Command::new(self.site.program);
        program.args(["bench", "one", &text]);
        let mut command = inside(self.site.client, self.load_cpu, &self.load_group, &program);
        // One server works at a time, so what the kernel's thread does meanwhile is this one's.
        let used = || -> Result<Duration, CompareError> {
            Ok(group.used()? + self.softirqs.as_ref().map_or(Duration::ZERO, SoftIrqs::used))
        };
        let before = used()?;
        let output = run_load(&mut command, load.patience() + LOAD_PATIENCE, self.site.stop);
        let cpu_seconds = used()?.saturating_sub(before).as_secs_f64();
        match output {
            Ok(text) => Ok(match serde_json::from_str::<Point>(&text) {
                Ok(point) => Ok(Sample { point, cpu_seconds }),
                Err(error) => Err(format!("the load's answer makes no sense: {error}")),
            }),
            Err(LoadFailure::Interrupted) => Err(CompareError::interrupted()),
            Err(LoadFailure::Failed(why)) => Ok(Err(why)),
        }
    }

    /// This program over a wire with every pair of round trip and loss.
    fn network(&mut self, say: &mut dyn FnMut(&str)) -> Result<Vec<super::report::Row>, CompareError> {
        let loads = work::network_loads(self.plan.quick);
        if !self.ready(Kind::Ours, &loads[0])? {
            return Ok(Vec::new());
        }
        let Some(ours) = self.contenders.iter().find(|contender| contender.kind == Kind::Ours) else {
            return Ok(Vec::new());
        };
        let middle = Namespace::new()?;
        for (end, inside, addr) in [
            (&ours.namespace, "wan0", WAN_SERVER.to_string()),
            (self.site.client, "wan1", WAN_CLIENT.to_owned()),
        ] {
            end.wire("wan", &middle, inside)?;
            end.ip(&format!("addr add {addr}/16 dev wan"))?;
            // One frame is one packet, or the wire would lose 64 KiB at a time.
            end.ip("link set wan gso_max_segs 1")?;
        }
        let rounds = self.network_rounds();
        let (mut rows, mut hosts) = (Vec::new(), 0);
        for loss in self.plan.losses.iter().copied() {
            for rtt in self.plan.rtts.iter().copied() {
                let mut impairment = Impairment { rtt, loss, ..self.plan.impairment };
                say(&format!("the impaired wire: {impairment}"));
                let mut trials: Vec<Trial> = loads.iter().map(network_trial).collect();
                for round in 0..rounds {
                    impairment.seed = self.plan.impairment.seed + u64::from(round);
                    for (what, trial) in loads.iter().zip(&mut trials) {
                        // A new wire for each load, so that each meets the same chances.
                        let mut bridge = Command::new(self.site.program);
                        bridge.args(["bench", "wire", "wan0", "wan1"]).args(impairment.flags());
                        let output = self.site.folder.join("wire");
                        let mut wire = Process::start(
                            "the wire",
                            &middle,
                            self.load_cpu,
                            &self.load_group,
                            &bridge,
                            &output,
                        )?;
                        wire.wait_for(BRIDGE_READY, SOON, self.site.stop)?;
                        let time = if loss > 0.0 { self.plan.time * LOSSY_TIMES } else { self.plan.time };
                        // New addresses for each, or what the last one left on its way would meet it.
                        hosts += WAN_HOSTS_STEP;
                        let load = Load {
                            server: WAN_SERVER,
                            interface: "wan".into(),
                            from: Some((u32::from(WAN_SERVER) + hosts).into()),
                            time_ms: time.as_millis() as u64,
                            what: what.clone(),
                        };
                        let sample = self.load(&ours.group, &load)?;
                        trial.servers[0].1.push(sample);
                    }
                }
                for trial in &mut trials {
                    trial.settings.insert("rtt".into(), duration_text(rtt));
                    trial.settings.insert("loss".into(), share_text(loss));
                    if let Some(rate) = impairment.rate {
                        trial.settings.insert("rate".into(), super::impair::rate_text(rate));
                    }
                    if impairment.reorder > 0.0 {
                        trial.settings.insert("reorder".into(), share_text(impairment.reorder));
                    }
                    rows.extend(trial.rows());
                }
            }
        }
        Ok(rows)
    }

    fn network_rounds(&self) -> u32 {
        self.plan.rounds.min(if self.plan.quick { 1 } else { NETWORK_ROUNDS_MAX })
    }

    /// Everybody who took part, once.
    fn servers(&self) -> Vec<super::report::Server> {
        let mut servers: Vec<super::report::Server> = Vec::new();
        for contender in &self.contenders {
            if servers.iter().all(|server| server.name != contender.server.name) {
                servers.push(contender.server.clone());
            }
        }
        servers
    }
}

/// What went wrong, when it went wrong in each of the last rounds.
fn fruitless(samples: &[Result<Sample, String>]) -> Option<String> {
    let last = samples.len().checked_sub(FRUITLESS_MAX).map(|from| &samples[from..])?;
    let why = last.last()?.as_ref().err()?;
    last.iter().all(Result::is_err).then(|| why.clone())
}

/// `blksize 1428` for each setting.
fn settings_words(settings: &std::collections::BTreeMap<String, String>) -> Vec<String> {
    settings.iter().map(|(key, value)| format!("{key} {value}")).collect()
}

/// For people who wait: `40 s`, `4 min`.
fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

fn network_trial(what: &What) -> Trial {
    let (work, settings, clients) = what.describe();
    Trial { work: work.into(), settings, clients, servers: vec![(OURS.into(), Vec::new())] }
}

/// What is served: bytes that no sender can make shorter, and loaders to be offered. It stays in memory for as long as the
/// mappings live, or a kernel that pages out what is only sent, as some hosts have it do, would have a server wait for the disk
/// now and then; a note where that fails.
fn make_files(folder: &Folder, image_bytes: u64) -> Result<Result<Vec<Mapping>, String>, CompareError> {
    let failed = |path: &std::path::Path, error: std::io::Error| {
        CompareError::new(format!("{}: {error}", path.display()))
    };
    let images = folder.join("images");
    for dir in [images.join("data"), images.join("tiny"), folder.join("loaders")] {
        fs::create_dir_all(&dir).map_err(|error| failed(&dir, error))?;
    }
    let block: Vec<u8> = (0..1 << 20u32).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let files: [(PathBuf, u64); 7] = [
        (images.join(IMAGE), image_bytes),
        (images.join(LOADER), LOADER_LEN),
        (folder.join("loaders/snponly.efi"), 1 << 20),
        (folder.join("loaders/undionly.kpxe"), 1 << 17),
        (images.join("loader.efi"), 1 << 20),
        (images.join("tiny/initrd.gz"), INITRD_LEN),
        (images.join("tiny/vmlinuz"), KERNEL_LEN),
    ];
    for (path, len) in &files {
        let (path, len) = (path.as_path(), *len);
        let mut file = fs::File::create(path).map_err(|error| failed(path, error))?;
        let mut left = len as usize;
        while left > 0 {
            let part = left.min(block.len());
            file.write_all(&block[..part]).map_err(|error| failed(path, error))?;
            left -= part;
        }
    }
    // By these words a server takes them for what they stand for (linux Documentation/arch/x86/boot.rst; RFC 1952).
    for (name, offset, magic) in [
        ("tiny/vmlinuz", 0x1fe, &b"\x55\xaa\xeb\x66HdrS\x0f\x02"[..]),
        ("tiny/initrd.gz", 0, b"\x1f\x8b\x08"),
    ] {
        let path = images.join(name);
        let file = fs::File::options().write(true).open(&path).map_err(|error| failed(&path, error))?;
        std::os::unix::fs::FileExt::write_all_at(&file, magic, offset)
            .map_err(|error| failed(&path, error))?;
    }
    let keep = |path: &PathBuf| -> std::io::Result<Mapping> {
        let file = fs::File::open(path)?;
        file.sync_all()?;
        let mapping = Mapping::map(&file)?;
        mapping.keep_in_memory()?;
        Ok(mapping)
    };
    let kept = files.iter().map(|(path, _)| keep(path)).collect::<std::io::Result<Vec<_>>>();
    Ok(kept.map_err(|error| {
        format!("The files could not be kept in memory ({error}): a server may have waited for a disk now and then.")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_falls_over_twice_in_a_row_is_not_asked_again() {
        let fell = || Err::<Sample, _>("it fell over".to_owned());
        let good = || Ok(Sample { point: Point::default(), cpu_seconds: 0.0 });
        assert_eq!(fruitless(&[]), None);
        assert_eq!(fruitless(&[fell()]), None);
        assert_eq!(fruitless(&[fell(), good()]), None);
        assert_eq!(fruitless(&[fell(), good(), fell()]), None);
        assert_eq!(fruitless(&[good(), fell(), fell()]).as_deref(), Some("it fell over"));
    }

    #[test]
    fn waiting_times_are_told_in_words() {
        assert_eq!(minutes(Duration::from_secs(89)), "89 s");
        assert_eq!(minutes(Duration::from_secs(1350)), "23 min");
    }

    #[test]
    fn every_peer_can_be_named() {
        assert_eq!(peer_names(), ["nginx", "dnsmasq", "tftpd-hpa", "atftpd", "kea"]);
    }
}

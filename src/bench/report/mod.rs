//! What a comparison found: rows with their spread and what they were measured under, as JSON (this module), as a
//! table for a terminal ([`text`]) and as one page with charts ([`page`]).

mod chart;
mod page;
mod text;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::impair::{parse_rtt, parse_share};
use super::model::Method;
use super::result::{Latency, Point};

pub use page::page;
pub use text::text;

/// Raised when a reader of an older document would be misled.
pub const FORMAT: u32 = 1;

/// The server that the others are compared with.
pub const OURS: &str = "bootstorm";

/// A whole comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// What it is called.
    pub title: String,
    /// What it was measured under.
    pub conditions: Conditions,
    /// Who took part.
    pub servers: Vec<Server>,
    /// Who could not, and what to install.
    pub missing: Vec<Missing>,
    /// What was found.
    pub rows: Vec<Row>,
    /// What a reader has to know.
    pub notes: Vec<String>,
    /// How many ratios are known how well from this run alone.
    #[serde(default)]
    pub confidence: Confidence,
    /// How well this run agrees with the earlier one it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// What everything was measured under.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// UTC, `2026-11-28 11:30:00`.
    pub date: String,
    /// Kernel release.
    pub kernel: String,
    /// Processor's name.
    pub processor: String,
    /// CPU of the server under test.
    pub server_cpu: u32,
    /// CPU of the load, and of the impaired wire.
    pub load_cpu: u32,
    /// TCP congestion control at both ends.
    pub congestion_control: String,
    /// What joins server and load.
    pub link: String,
    /// Interleaved rounds.
    pub rounds: u32,
    /// Seconds of one load.
    pub round_seconds: f64,
    /// Where chance starts.
    pub seed: u64,
    /// Version of this program, and whether it was built for speed.
    pub program: String,
    /// Load of the machine over the last minute, before the first load: what else ran.
    pub load_average: f64,
    /// How long all of it took.
    pub seconds: f64,
}

impl Conditions {
    /// This machine, this program and this moment; the rest is for who measures to say.
    pub fn here() -> Self {
        Self {
            date: utc(SystemTime::now()),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            processor: processor(),
            program: format!(
                "{OURS} {}{}",
                env!("CARGO_PKG_VERSION"),
                if cfg!(debug_assertions) { ", built for debugging" } else { "" }
            ),
            load_average: load_average(),
            ..Self::default()
        }
    }
}

/// A server that took part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Name as in the rows.
    pub name: String,
    /// What it says of itself.
    pub version: String,
    /// How it was tuned.
    pub settings: String,
}

/// A server that is not installed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// Name.
    pub server: String,
    /// Debian's package.
    pub package: String,
    /// Why it could not take part, when it is not that the package is missing.
    pub why: String,
}

/// What one load found of one server, as a report: each setting's rounds. What it cost the server nobody knows.
pub fn of_load(conditions: Conditions, points: &[Vec<Point>]) -> Report {
    let row = |rounds: &Vec<Point>| -> Option<Row> {
        let first = rounds.first()?;
        let sample = |point: &Point| Ok(Sample { point: point.clone(), cpu_seconds: 0.0 });
        let trial = Trial {
            work: first.work.clone(),
            settings: first.settings.clone(),
            clients: first.clients,
            servers: vec![(UNDER_LOAD.into(), rounds.iter().map(sample).collect())],
        };
        trial.rows().pop().map(|row| Row { cpu: None, ..row })
    };
    let rows: Vec<Row> = points.iter().filter_map(row).collect();
    let works: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.work.as_str()).collect();
    Report {
        format: FORMAT,
        title: format!("{} under load, measured by {OURS}", works.into_iter().collect::<Vec<_>>().join(", ")),
        conditions,
        rows,
        ..Report::default()
    }
}

/// The only server of [`of_load`].
const UNDER_LOAD: &str = "server";

/// One server's figures for one work, over all rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// `tftp`, `http`, `transmit`, `dhcp`, `script` or `storm`.
    pub work: String,
    /// How it was asked for.
    pub settings: BTreeMap<String, String>,
    /// Clients at once.
    pub clients: u32,
    /// Who was measured.
    pub server: String,
    /// Median throughput.
    pub value: f64,
    /// Of `value`: `MB/s`, `exchanges/s`, `requests/s`, `boots/s`.
    pub unit: String,
    /// Least and greatest `value`.
    pub value_spread: [f64; 2],
    /// Median of blocks, requests, exchanges or boots a second.
    pub units_per_s: f64,
    /// What `units_per_s` counts.
    pub counted: String,
    /// Median CPU seconds of the server, per `cpu_unit`.
    pub cpu: Option<f64>,
    /// `GiB`, or `million exchanges` and so on.
    pub cpu_unit: String,
    /// This program's value by this server's in the same round: the median.
    pub ratio: Option<f64>,
    /// Least and greatest of those.
    pub spread: Option<[f64; 2]>,
    /// Where the true median of those lies, with a confidence of seven in eight or more ([`interval`]).
    pub interval: Option<[f64; 2]>,
    /// Each round's, in the order of the rounds.
    pub ratios: Vec<f64>,
    /// This program's CPU cost by this server's in the same round: the median.
    pub cpu_ratio: Option<f64>,
    /// Least and greatest of those.
    pub cpu_spread: Option<[f64; 2]>,
    /// Time of one unit, in the round of the median value.
    pub latency: Option<Latency>,
    /// Time to the first answer, in the same round.
    pub first_answer: Option<Latency>,
    /// Jain's fairness index, in the same round.
    pub jain: Option<f64>,
    /// Under overload: what was done by what it did when no more was asked of it than it can do. The median.
    pub of_peak: Option<f64>,
    /// Least and greatest of those.
    pub of_peak_spread: Option<[f64; 2]>,
    /// Failures of all rounds.
    pub failures: u64,
    /// The same by reason.
    pub failure_reasons: BTreeMap<String, u64>,
    /// In most rounds the load was the limit.
    pub load_limited: bool,
    /// What the load could have taken by what it took: the median. Below [`HEADROOM`] the figure says as much about the
    /// load as about the server.
    pub load_headroom: Option<f64>,
    /// Rounds that gave a figure.
    pub rounds: u32,
    /// What the load said when it gave none.
    pub error: Option<String>,
}

/// One load's result and what it cost the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What the load measured.
    pub point: Point,
    /// CPU seconds of the server's cgroup meanwhile.
    pub cpu_seconds: f64,
}

impl Sample {
    /// Throughput in the unit [`value_unit`] names.
    pub fn value(&self) -> f64 {
        match value_unit(&self.point.work) {
            "MB/s" => self.point.megabytes_per_s(),
            _ => self.point.units_per_s(),
        }
    }

    /// Server CPU seconds per GiB, or per million units.
    pub fn cpu(&self) -> Option<f64> {
        let amount = match value_unit(&self.point.work) {
            "MB/s" => self.point.bytes as f64 / f64::from(1 << 30),
            _ => self.point.units as f64 / 1e6,
        };
        (amount > 0.0).then(|| self.cpu_seconds / amount)
    }
}

/// What throughput is counted in.
fn value_unit(work: &str) -> &'static str {
    match work {
        "tftp" | "http" | "transmit" | "https" => "MB/s",
        "script" | "handshake" => "requests/s",
        "storm" => "boots/s",
        _ => "exchanges/s",
    }
}

/// What a load should be able to take beside what it took, so that the server is what is measured.
pub const HEADROOM: f64 = 1.5;

/// Two runs agree, and one run knows a ratio, within this factor.
pub const AGREE: f64 = 1.15;

/// A responder that does nothing and yet fills this much of its CPU is a limit of its own.
const NULL_BUSY: f64 = 0.9;

/// What all servers did with one work: the samples of each, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// `tftp`, …
    pub work: String,
    /// How it was asked for.
    pub settings: BTreeMap<String, String>,
    /// Clients at once.
    pub clients: u32,
    /// By server: each round's sample, or what went wrong.
    pub servers: Vec<(String, Vec<Result<Sample, String>>)>,
}

impl Trial {
    /// This program's throughput by another server's, round by round.
    fn ratios_to(&self, server: &str) -> Vec<f64> {
        let of =
            |name: &str| self.servers.iter().find(|(other, _)| other == name).map(|(_, samples)| samples);
        let (Some(ours), Some(theirs)) = (of(OURS), of(server)) else { return Vec::new() };
        let pairs = ours.iter().zip(theirs).filter_map(|(a, b)| Some((a.as_ref().ok()?, b.as_ref().ok()?)));
        pairs.filter(|(_, b)| b.value() > 0.0).map(|(a, b)| a.value() / b.value()).collect()
    }

    /// True once further rounds would hardly move a ratio to a peer.
    pub fn is_settled(&self) -> bool {
        let peers = self.servers.iter().filter(|(name, _)| is_a_peer(name));
        peers.map(|(name, _)| self.ratios_to(name)).all(|ratios| ratios.is_empty() || is_known(&ratios))
    }

    /// What the load reaches when the server is no limit, units a second: against the responder that does nothing, as far
    /// as that was not busy itself.
    fn ceiling(&self) -> Option<f64> {
        let (_, samples) = self.servers.iter().find(|(name, _)| name == NULL)?;
        let reached = |sample: &Sample| {
            let point = &sample.point;
            let null_was_the_limit = sample.cpu_seconds >= NULL_BUSY * point.seconds;
            let busy = if null_was_the_limit { point.load_busy().clamp(0.01, 1.0) } else { 1.0 };
            point.units_per_s() / busy
        };
        median(&samples.iter().flatten().map(reached).collect::<Vec<_>>())
    }

    /// What the load could have taken by what it took in one round. Without a responder that does nothing beside it, that
    /// follows from how busy the load's CPU was.
    fn headroom(&self, sample: &Sample) -> Option<f64> {
        let point = &sample.point;
        let by_null = self.ceiling().map(|ceiling| ceiling / point.units_per_s());
        let by_cpu = 1.0 / point.load_busy();
        // Nobody receives what is sent for `transmit`: there is no load to be a limit.
        let headroom = if point.work == "transmit" { None } else { by_null.or(Some(by_cpu)) };
        headroom.filter(|value| value.is_finite())
    }

    /// Says of each round whether the load was its limit.
    pub fn judge_load(&mut self) {
        let ceiling = self.ceiling();
        for sample in self.servers.iter_mut().filter(|(name, _)| name != NULL).flat_map(|(_, s)| s).flatten()
        {
            let was = sample.point.load_limited;
            sample.point.judge_load(ceiling);
            // What the load said of itself, such as frames it could not take in time, stays.
            sample.point.load_limited |= was;
        }
    }

    /// A row for each server.
    pub fn rows(&self) -> Vec<Row> {
        let ours = self.servers.iter().find(|(name, _)| name == OURS).map(|(_, samples)| samples.as_slice());
        self.servers.iter().map(|(name, samples)| self.row(name, samples, ours.unwrap_or_default())).collect()
    }

    fn row(&self, server: &str, samples: &[Result<Sample, String>], ours: &[Result<Sample, String>]) -> Row {
        let good: Vec<&Sample> = samples.iter().flatten().collect();
        let unit = value_unit(&self.work);
        let values: Vec<f64> = good.iter().map(|sample| sample.value()).collect();
        let value = median(&values).unwrap_or_default();
        // The round whose value is the median, or just above where there is none in the middle.
        let typical =
            good.iter().min_by(|a, b| (a.value() - value).abs().total_cmp(&(b.value() - value).abs()));
        let by_round = |figure: &dyn Fn(&Sample) -> Option<f64>| -> Vec<f64> {
            let pair = |(ours, this): (&Result<Sample, String>, &Result<Sample, String>)| {
                let (ours, this) = (figure(ours.as_ref().ok()?)?, figure(this.as_ref().ok()?)?);
                (this > 0.0).then(|| ours / this)
            };
            ours.iter().zip(samples).filter_map(pair).collect()
        };
        let ratios = by_round(&|sample| Some(sample.value()));
        let cpu_ratios = by_round(&Sample::cpu);
        let costs: Vec<f64> = good.iter().filter_map(|sample| sample.cpu()).collect();
        let mut failure_reasons = BTreeMap::new();
        for (reason, count) in good.iter().flat_map(|sample| &sample.point.failure_reasons) {
            *failure_reasons.entry(reason.clone()).or_default() += count;
        }
        let counted = typical.map(|sample| sample.point.unit.clone()).unwrap_or_default();
        let point = typical.map(|sample| &sample.point);
        Row {
            work: self.work.clone(),
            settings: self.settings.clone(),
            clients: self.clients,
            server: server.to_owned(),
            value,
            unit: unit.into(),
            value_spread: range(&values).unwrap_or_default(),
            units_per_s: median(&good.iter().map(|sample| sample.point.units_per_s()).collect::<Vec<_>>())
                .unwrap_or_default(),
            cpu: median(&costs),
            cpu_unit: if unit == "MB/s" { "GiB".into() } else { format!("million {counted}") },
            counted,
            ratio: median(&ratios),
            spread: range(&ratios),
            interval: interval(&ratios),
            cpu_ratio: median(&cpu_ratios),
            cpu_spread: range(&cpu_ratios),
            latency: point.and_then(|point| point.latency),
            first_answer: point.and_then(|point| point.first_answer),
            jain: point.and_then(|point| point.jain),
            of_peak: None,
            of_peak_spread: None,
            failures: good.iter().map(|sample| sample.point.failures).sum(),
            failure_reasons,
            load_limited: good.iter().filter(|sample| sample.point.load_limited).count() * 2 > good.len(),
            load_headroom: median(
                &good.iter().filter_map(|sample| self.headroom(sample)).collect::<Vec<_>>(),
            ),
            ratios,
            rounds: good.len() as u32,
            error: samples.iter().find_map(|sample| sample.as_ref().err().cloned()),
        }
    }
}

impl Row {
    /// How a client fetched, for the works where that has a name.
    pub fn method(&self) -> Option<Method> {
        let number = |key: &str, default: u16| match self.settings.get(key) {
            Some(text) => text.parse().ok(),
            None => Some(default),
        };
        match self.work.as_str() {
            "tftp" => {
                Some(Method::Tftp { blksize: number("blksize", 512)?, windowsize: number("windowsize", 1)? })
            }
            "http" => Some(Method::Http),
            _ => None,
        }
    }

    /// The round trip that was put in between, seconds.
    pub fn rtt_s(&self) -> f64 {
        self.settings.get("rtt").and_then(|text| parse_rtt(text).ok()).unwrap_or(Duration::ZERO).as_secs_f64()
    }

    /// The share of packets that was taken out.
    pub fn loss(&self) -> f64 {
        self.settings.get("loss").and_then(|text| parse_share(text).ok()).unwrap_or_default()
    }

    /// True when nothing was lost on purpose.
    pub fn is_lossless(&self) -> bool {
        self.loss() == 0.0
    }

    /// True when there was an impaired wire in between.
    pub fn is_impaired(&self) -> bool {
        self.settings.contains_key("rtt") || self.settings.contains_key("loss")
    }

    /// What was asked of the server, clients aside: `TFTP blksize 1428, windowsize 16`.
    pub fn family(&self) -> String {
        // The values of these say by themselves what they are.
        let plain = |key: &str| matches!(key, "request" | "mode" | "connection" | "timers" | "sender");
        let pairs: Vec<String> = self
            .settings
            .iter()
            .map(|(key, value)| if plain(key) { value.clone() } else { format!("{key} {value}") })
            .collect();
        let name = if matches!(self.work.as_str(), "script" | "storm" | "transmit" | "handshake") {
            self.work.clone()
        } else {
            self.work.to_uppercase()
        };
        if pairs.is_empty() { name } else { format!("{name} {}", pairs.join(", ")) }
    }

    /// The same with the clients.
    pub fn title(&self) -> String {
        let clients = match (self.work.as_str(), self.clients) {
            ("http" | "https" | "script" | "handshake" | "transmit", 1) => "1 connection".into(),
            ("http" | "https" | "script" | "handshake" | "transmit", count) => format!("{count} connections"),
            (_, 1) => "1 client".into(),
            (_, count) => format!("{count} clients"),
        };
        format!("{}, {clients}", self.family())
    }

    /// True for another server's: neither this program's nor that of the responder that does nothing.
    fn is_a_peers(&self) -> bool {
        is_a_peer(&self.server)
    }

    /// How it did under overload.
    fn overload_remark(&self) -> Option<String> {
        let percent = |share: f64| format!("{:.0}", share * 100.0);
        let spread = self
            .of_peak_spread
            .map(|[low, high]| format!(" [{}..{}]", percent(low), percent(high)))
            .unwrap_or_default();
        self.of_peak.map(|share| format!("{}{spread} % of what it does when not overloaded", percent(share)))
    }

    /// What there is to say about the load, when it was not certainly faster than the server.
    fn load_remark(&self) -> Option<String> {
        if self.load_limited {
            return Some("the load was the limit: only the CPU figure says something of the server".into());
        }
        let near = self.load_headroom.filter(|headroom| *headroom < HEADROOM && self.server != NULL);
        near.map(|headroom| {
            format!("the load was near its own limit: it could have taken {headroom:.1} times this")
        })
    }

    /// Whether the ratio is known from this run, when there is one to a peer.
    fn certainty(&self) -> Option<String> {
        let [low, high] = self.interval.filter(|_| self.is_a_peers())?;
        (high > low * AGREE).then(|| {
            format!(
                "the ratio is not settled: {} rounds leave it between {} and {}",
                self.ratios.len(),
                ratio(low),
                ratio(high)
            )
        })
    }

    /// True for the same work by the same server.
    pub fn is_same_measurement(&self, other: &Self) -> bool {
        (&self.work, &self.settings, self.clients, &self.server)
            == (&other.work, &other.settings, other.clients, &other.server)
    }
}

/// A row beside the same one of an earlier report.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Value now by value then. The machine may have been another, or busier.
    pub value: f64,
    /// Ratio to this program now by the same ratio then; what a busy machine disturbs least.
    pub ratio: Option<f64>,
    /// The same for the ratio of CPU costs.
    pub cpu_ratio: Option<f64>,
    /// CPU cost now by CPU cost then.
    pub cpu: Option<f64>,
}

impl Report {
    /// What became of `row` since `earlier`; `None` when that did not measure it.
    pub fn change(row: &Row, earlier: &Report) -> Option<Change> {
        let then = earlier.rows.iter().find(|then| then.is_same_measurement(row) && then.value > 0.0)?;
        let quotient =
            |now: Option<f64>, then: Option<f64>| Some(now? / then?).filter(|value| value.is_finite());
        Some(Change {
            value: row.value / then.value,
            ratio: quotient(row.ratio, then.ratio),
            cpu_ratio: quotient(row.cpu_ratio, then.cpu_ratio),
            cpu: quotient(row.cpu, then.cpu),
        })
    }

    /// How well two runs of the same comparison agree. `None` when no ratio is in both.
    pub fn agreement_with(&self, earlier: &Report) -> Option<Agreement> {
        let mut apart = Vec::new();
        let mut factors = |of: &dyn Fn(&Change) -> Option<f64>, what: &str| -> Vec<f64> {
            let peers = self.rows.iter().filter(|row| row.is_a_peers());
            let changes = peers.filter_map(|row| Some((row, of(&Self::change(row, earlier)?)?)));
            let mut found = Vec::new();
            for (row, change) in changes {
                let factor = change.max(1.0 / change);
                if factor > AGREE {
                    apart.push(format!("{}, {}{what} ({factor:.2})", row.title(), row.server));
                }
                found.push(factor);
            }
            found
        };
        let throughput = factors(&|change| change.ratio, "");
        let cpu = factors(&|change| change.cpu_ratio, ", CPU");
        let within = |factors: &[f64]| factors.iter().filter(|factor| **factor <= AGREE).count();
        Some(Agreement {
            since: earlier.conditions.date.clone(),
            ratios: throughput.len(),
            median: median(&throughput)?,
            greatest: range(&throughput)?[1],
            within: within(&throughput),
            cpu_ratios: cpu.len(),
            cpu_within: within(&cpu),
            apart,
        })
    }

    /// Reckons [`Report::confidence`] from the rows.
    pub fn reckon_confidence(&mut self) {
        let intervals: Vec<[f64; 2]> =
            self.rows.iter().filter(|row| row.is_a_peers()).filter_map(|row| row.interval).collect();
        let known = intervals.iter().filter(|[low, high]| *high <= low * AGREE).count();
        let widths: Vec<f64> = intervals.iter().filter(|i| i[0] > 0.0).map(|i| i[1] / i[0]).collect();
        self.confidence = Confidence {
            ratios: intervals.len(),
            settled: known,
            median_width: median(&widths).unwrap_or(1.0),
            greatest_width: range(&widths).map_or(1.0, |range| range[1]),
        };
    }

    /// For each peer and work: the geometric mean of the ratios, of throughput and of CPU, and over how many rows.
    fn summary(&self) -> Vec<Summary> {
        let mut groups: BTreeMap<(String, String), (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for row in
            self.rows.iter().filter(|row| row.is_a_peers() && !row.is_impaired() && row.of_peak.is_none())
        {
            let group = groups.entry((row.work.clone(), row.server.clone())).or_default();
            group.0.extend(row.ratio);
            group.1.extend(row.cpu_ratio);
        }
        let summary = |((work, server), (ratios, cpu)): ((String, String), (Vec<f64>, Vec<f64>))| {
            Some(Summary {
                work,
                server,
                rows: ratios.len(),
                ratio: geometric_mean(&ratios)?,
                cpu: geometric_mean(&cpu),
            })
        };
        groups.into_iter().filter_map(summary).collect()
    }
}

/// How well two runs agree: see [`Report::agreement_with`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agreement {
    /// When the earlier one was made.
    pub since: String,
    /// Ratios of throughput to peers that are in both runs.
    pub ratios: usize,
    /// The median factor between the two runs' figures for them, at least 1.
    pub median: f64,
    /// The greatest.
    pub greatest: f64,
    /// How many differ by no more than [`AGREE`].
    pub within: usize,
    /// Ratios of CPU cost in both runs.
    pub cpu_ratios: usize,
    /// How many of them differ by no more than [`AGREE`].
    pub cpu_within: usize,
    /// Those that differ by more, by name and factor.
    pub apart: Vec<String>,
}

impl Agreement {
    /// `22 of 24 throughput ratios and 24 of 24 CPU ratios agree within 15 %, …`.
    fn sentence(&self) -> String {
        format!(
            "{} of {} throughput ratios and {} of {} CPU ratios agree within 15 %; median factor {:.2}, greatest {:.2}",
            self.within, self.ratios, self.cpu_within, self.cpu_ratios, self.median, self.greatest
        )
    }
}

/// How well a run knows its own ratios: by [`interval`], and [`AGREE`] from end to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confidence {
    /// Ratios of throughput to peers.
    pub ratios: usize,
    /// How many are settled.
    pub settled: usize,
    /// From the lower to the upper end of their intervals, as a factor: the median.
    pub median_width: f64,
    /// The widest.
    pub greatest_width: f64,
}

impl Confidence {
    fn sentence(&self) -> Option<String> {
        (self.ratios > 0).then(|| {
            format!(
                "{} of {} ratios are settled: their rounds leave them within 15 % from end to end; median width {:.0} %, widest \
                 {:.0} %",
                self.settled,
                self.ratios,
                (self.median_width - 1.0) * 100.0,
                (self.greatest_width - 1.0) * 100.0
            )
        })
    }
}

/// One line of the summary.
struct Summary {
    work: String,
    server: String,
    rows: usize,
    ratio: f64,
    cpu: Option<f64>,
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Name in rows of the responder that does nothing.
pub const NULL: &str = "null";

fn is_a_peer(server: &str) -> bool {
    server != OURS && server != NULL
}

/// Where the median of what `values` are drawn from lies: the narrowest pair of them, as far from either end, that
/// holds it in at least seven of eight cases, whatever the distribution (the binomial one of how many lie below the
/// median; three rounds make it three of four).
pub(super) fn interval(values: &[f64]) -> Option<[f64; 2]> {
    const MISSED_MAX: f64 = 0.125 + 1e-9;
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    // Probability that fewer than `place + 1` of them lie below the median.
    let mut place = 0;
    let (mut term, mut below) = (0.5f64.powi(count as i32), 0.0);
    while place * 2 + 2 < count {
        below += term;
        term *= (count - place) as f64 / (place + 1) as f64;
        if 2.0 * (below + term) > MISSED_MAX {
            break;
        }
        place += 1;
    }
    Some([*sorted.get(place)?, *sorted.get(count - 1 - place)?])
}

/// True when [`interval`] leaves no more than [`AGREE`] from end to end.
fn is_known(ratios: &[f64]) -> bool {
    interval(ratios).is_some_and(|[low, high]| high <= low * AGREE)
}

/// Least and greatest.
pub(super) fn range(values: &[f64]) -> Option<[f64; 2]> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some([least, values.iter().copied().reduce(f64::max)?])
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logs: Vec<f64> = values.iter().filter(|value| **value > 0.0).map(|value| value.ln()).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// Three significant digits and no exponent: `0.136`, `14.6`, `5670`.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    if value.abs() < 10_000.0 {
        return text;
    }
    // Thousands in groups of three.
    let digits = text.trim_start_matches('-').len();
    let mut grouped = String::new();
    for (index, digit) in text.chars().enumerate() {
        let left = text.len() - index;
        if digit != '-' && left < digits && left % 3 == 0 {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// A time in microseconds for people: `850 µs`, `12.3 ms`.
fn micros(us: u64) -> String {
    match us {
        us if us < 1000 => format!("{us} µs"),
        us if us < 1_000_000 => format!("{} ms", figure(us as f64 / 1e3)),
        us => format!("{} s", figure(us as f64 / 1e6)),
    }
}

/// Two decimals while they say something.
fn ratio(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// `1.21 [1.10..1.30]`.
fn with_spread(value: Option<f64>, spread: Option<[f64; 2]>) -> String {
    match (value, spread) {
        (Some(value), Some([least, greatest])) => {
            format!("{} [{}..{}]", ratio(value), ratio(least), ratio(greatest))
        }
        (Some(value), None) => ratio(value),
        _ => "-".into(),
    }
}

/// Of the last minute.
fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// The processor's name.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown");
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    format!("{name}, {count} CPUs")
}

/// `2026-11-28 11:30:00 UTC`.
fn utc(time: SystemTime) -> String {
    let text = httpdate::fmt_http_date(time);
    // `Sat, 28 Nov 2026 11:30:00 GMT` holds all of it.
    let words: Vec<&str> = text.split(' ').collect();
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    match words.as_slice() {
        [_, day, month, year, clock, _] => {
            let month = months.iter().position(|name| name == month).unwrap_or(0) + 1;
            format!("{year}-{month:02}-{day} {clock} UTC")
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests;

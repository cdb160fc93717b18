//! What a comparison found: rows with their spread and what they were measured under, as JSON (this module), as a
//! table for a terminal ([`text`]) and as one page with charts ([`page`]).

mod chart;
mod page;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

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
    /// Failures of all rounds.
    pub failures: u64,
    /// The same by reason.
    pub failure_reasons: BTreeMap<String, u64>,
    /// In most rounds the load was the limit.
    pub load_limited: bool,
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
            cpu_ratio: median(&cpu_ratios),
            cpu_spread: range(&cpu_ratios),
            latency: point.and_then(|point| point.latency),
            first_answer: point.and_then(|point| point.first_answer),
            jain: point.and_then(|point| point.jain),
            of_peak: None,
            failures: good.iter().map(|sample| sample.point.failures).sum(),
            failure_reasons,
            load_limited: good.iter().filter(|sample| sample.point.load_limited).count() * 2 > good.len(),
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
        let pairs: Vec<String> = self.settings.iter().map(|(key, value)| format!("{key} {value}")).collect();
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
        self.server != OURS && self.server != "null" && self.of_peak.is_none()
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
            cpu: quotient(row.cpu, then.cpu),
        })
    }

    /// How well two runs of the same comparison agree: of the ratios in both, the median and the greatest factor by
    /// which they differ, and how many there are. `None` when none is in both.
    pub fn agreement(&self, earlier: &Report) -> Option<Agreement> {
        let factors: Vec<f64> = self
            .rows
            .iter()
            .filter(|row| row.is_a_peers())
            .filter_map(|row| Self::change(row, earlier)?.ratio)
            .map(|factor| factor.max(1.0 / factor))
            .collect();
        let within = factors.iter().filter(|factor| **factor <= 1.15).count();
        Some(Agreement {
            ratios: factors.len(),
            median: median(&factors)?,
            greatest: range(&factors)?[1],
            within,
        })
    }

    /// For each peer and work: the geometric mean of the ratios, of throughput and of CPU, and over how many rows.
    fn summary(&self) -> Vec<Summary> {
        let mut groups: BTreeMap<(String, String), (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.is_a_peers() && !row.is_impaired()) {
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

/// See [`Report::agreement`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Ratios in both runs.
    pub ratios: usize,
    /// The median factor between them, at least 1.
    pub median: f64,
    /// The greatest.
    pub greatest: f64,
    /// Ratios that agree within 15 %.
    pub within: usize,
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

/// Least and greatest.
fn range(values: &[f64]) -> Option<[f64; 2]> {
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

#[cfg(test)]
mod tests;

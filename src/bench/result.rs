//! One measured point: what every load generator hands back and every report is made from.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest time a histogram tells apart; what is longer counts as this.
const MICROSECONDS_MAX: u64 = 10 * 60 * 1_000_000;

/// A load CPU busier than this was the limit, whatever the server could have done.
pub const BUSY_LIMIT: f64 = 0.95;

/// A figure within this factor of the null responder's was the load's own.
pub const CEILING_FACTOR: f64 = 1.2;

/// One measured point. Everything a report needs; serde both ways.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// What was asked for: `tftp`, `http`, `https`, `transmit`, `dhcp`, `script`, `storm`.
    pub work: String,
    /// How it was asked for: `blksize` → `1428`, `windowsize` → `16`, `mode` → `proxy`, …
    pub settings: BTreeMap<String, String>,
    /// Clients, connections or machines at once.
    pub clients: u32,
    /// Time measured over.
    pub seconds: f64,
    /// Payload bytes received (for `transmit`: acknowledged), all clients together.
    pub bytes: u64,
    /// How many of `unit` were completed.
    pub units: u64,
    /// What is counted: `blocks`, `requests`, `segments`, `exchanges`, `boots`.
    pub unit: String,
    /// Clients, requests or boots that broke off.
    pub failures: u64,
    /// The same by reason; the sum is `failures`.
    pub failure_reasons: BTreeMap<String, u64>,
    /// How long one unit took (for TFTP: one whole file).
    pub latency: Option<Latency>,
    /// From asking to the first answer (for TFTP: from RRQ to OACK or DATA).
    pub first_answer: Option<Latency>,
    /// Jain's fairness index over what each client got: 1 is all alike, 1/clients is one takes all.
    pub jain: Option<f64>,
    /// CPU seconds the load itself took, in user space and kernel.
    pub load_cpu_seconds: f64,
    /// The load was the limit, so the figure says little about the server.
    pub load_limited: bool,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Half were no slower.
    pub p50: u64,
    /// Nine of ten were no slower.
    pub p90: u64,
    /// 99 of 100 were no slower.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

impl Point {
    /// 10⁶ bytes a second, all clients together; 0 for no time.
    pub fn megabytes_per_s(&self) -> f64 {
        self.per_second(self.bytes as f64 / 1e6)
    }

    /// Units a second, all clients together; 0 for no time.
    pub fn units_per_s(&self) -> f64 {
        self.per_second(self.units as f64)
    }

    /// The share of one CPU that the load took.
    pub fn load_busy(&self) -> f64 {
        self.per_second(self.load_cpu_seconds)
    }

    /// Failures by all that was tried.
    pub fn failure_share(&self) -> f64 {
        match self.failures + self.units {
            0 => 0.0,
            tried => self.failures as f64 / tried as f64,
        }
    }

    /// Counts one failure.
    pub fn fail(&mut self, reason: &str) {
        self.failures += 1;
        match self.failure_reasons.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(self.failure_reasons.insert(reason.to_owned(), 1)),
        }
    }

    /// The settings in one line: `blksize=1428 windowsize=16`.
    pub fn settings_line(&self) -> String {
        let pairs: Vec<String> = self.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(" ")
    }

    /// Says whether the load was the limit: its CPU was busy, or a responder that does no work was hardly faster.
    pub fn judge_load(&mut self, null_units_per_s: Option<f64>) {
        let near = null_units_per_s.is_some_and(|null| self.units_per_s() * CEILING_FACTOR >= null);
        self.load_limited = self.load_busy() >= BUSY_LIMIT || near;
    }

    fn per_second(&self, amount: f64) -> f64 {
        if self.seconds > 0.0 { amount / self.seconds } else { 0.0 }
    }
}

/// Collects times; recording allocates nothing.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, MICROSECONDS_MAX, 2).expect("the bounds are in order"))
    }
}

impl Times {
    /// Notes one time.
    pub fn record(&mut self, time: std::time::Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(MICROSECONDS_MAX));
    }

    /// Times noted.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// True when none was noted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A bucket is known by its upper end, which may lie past what can have been noted.
    fn at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile).min(MICROSECONDS_MAX)
    }

    /// The percentiles; `None` when nothing was noted.
    pub fn latency(&self) -> Option<Latency> {
        (!self.is_empty()).then(|| Latency {
            p50: self.at(0.5),
            p90: self.at(0.9),
            p99: self.at(0.99),
            max: self.0.max().min(MICROSECONDS_MAX),
        })
    }
}

/// Jain's fairness index of what each client got; `None` when nobody got anything.
pub fn jain(shares: impl IntoIterator<Item = u64>) -> Option<f64> {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        let share = share as f64;
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    (squares > 0.0).then(|| sum * sum / (count * squares))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_point_survives_json() {
        let mut point = Point { work: "tftp".into(), units: 7, jain: Some(0.5), ..Point::default() };
        point.settings.insert("blksize".into(), "1428".into());
        point.latency = Some(Latency { p50: 1, p90: 2, p99: 3, max: 4 });
        point.fail("silence");
        let text = serde_json::to_string(&point).unwrap();
        assert_eq!(serde_json::from_str::<Point>(&text).unwrap(), point);
    }

    #[test]
    fn rates_over_no_time_are_zero() {
        let point = Point { bytes: 5_000_000, units: 10, ..Point::default() };
        assert_eq!((point.megabytes_per_s(), point.units_per_s()), (0.0, 0.0));
        let point = Point { seconds: 2.0, ..point };
        assert_eq!((point.megabytes_per_s(), point.units_per_s()), (2.5, 5.0));
    }

    #[test]
    fn failures_are_counted_by_reason() {
        let mut point = Point { units: 2, ..Point::default() };
        point.fail("refused");
        point.fail("refused");
        assert_eq!(point.failures, 2);
        assert_eq!(point.failure_reasons["refused"], 2);
        assert_eq!(point.failure_share(), 0.5);
    }

    #[test]
    fn a_busy_load_and_a_close_ceiling_are_the_limit() {
        let point = Point { seconds: 1.0, units: 100, load_cpu_seconds: 0.5, ..Point::default() };
        let judged = |busy: f64, null: Option<f64>| {
            let mut point = Point { load_cpu_seconds: busy, ..point.clone() };
            point.judge_load(null);
            point.load_limited
        };
        assert!(!judged(0.5, None));
        assert!(judged(0.96, None));
        assert!(!judged(0.5, Some(121.0)));
        assert!(judged(0.5, Some(119.0)));
    }

    #[test]
    fn fairness_is_one_for_equals_and_a_share_for_a_glutton() {
        assert_eq!(jain([5, 5, 5, 5]), Some(1.0));
        assert_eq!(jain([8, 0, 0, 0]), Some(0.25));
        assert_eq!(jain([0, 0]), None);
        assert_eq!(jain([]), None);
    }

    #[test]
    fn percentiles_come_from_what_was_noted() {
        let mut times = Times::default();
        assert_eq!(times.latency(), None);
        for ms in 1..=100 {
            times.record(Duration::from_millis(ms));
        }
        times.record(Duration::from_secs(10_000));
        let latency = times.latency().unwrap();
        assert!((49_000..=52_000).contains(&latency.p50), "{latency:?}");
        assert!((99_000..=101_500).contains(&latency.p99), "{latency:?}");
        assert_eq!(latency.max, MICROSECONDS_MAX);
    }
}

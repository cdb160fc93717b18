//! Counters that cores move without sharing, their names in Prometheus' words, and the log's set-up.
//!
//! Knows no protocol: whoever counts brings the list of [`Metric`]s.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What one cell of [`Counters`] means.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Prometheus name, `bootstorm_` in front, `_total` behind for what only grows.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// One label with one of a fixed set of values; a stranger can never make a new one.
    pub label: Option<(&'static str, &'static str)>,
    /// Goes up and down.
    pub gauge: bool,
}

/// One core's cells. Only that core writes them, so an addition is a plain load and store.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    cells: Box<[AtomicU64]>,
}

impl Counters {
    /// One zero cell per metric.
    pub fn new(metrics: usize) -> Self {
        Self { cells: (0..metrics).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds to a cell. Called by the owning core only.
    pub fn add(&self, index: usize, amount: u64) {
        if let Some(cell) = self.cells.get(index) {
            cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
        }
    }

    /// Sets a gauge. Called by the owning core only.
    pub fn set(&self, index: usize, value: u64) {
        if let Some(cell) = self.cells.get(index) {
            cell.store(value, Relaxed);
        }
    }

    /// Reads a cell, from any thread.
    pub fn read(&self, index: usize) -> u64 {
        self.cells.get(index).map_or(0, |cell| cell.load(Relaxed))
    }
}

/// The Prometheus text of all cores' cells, added up. Metrics of one name must stand side by side in the list.
pub fn render(metrics: &[Metric], cores: &[Arc<Counters>], out: &mut String) {
    let mut last = "";
    for (index, metric) in metrics.iter().enumerate() {
        if metric.name != last {
            last = metric.name;
            let kind = if metric.gauge { "gauge" } else { "counter" };
            let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} {kind}", metric.name, metric.help);
        }
        let value: u64 = cores.iter().map(|core| core.read(index)).sum();
        let _ = match metric.label {
            Some((label, word)) => writeln!(out, "{}{{{label}=\"{word}\"}} {value}", metric.name),
            None => writeln!(out, "{} {value}", metric.name),
        };
    }
}

/// What is to be known of the process itself, in Prometheus' own names. `started` is when it did.
pub fn render_process(started: std::time::SystemTime, version: &str, out: &mut String) {
    let since = started.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0);
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
    // Linux' pages, as it counts them in that file, are 4 KiB where this program runs.
    let resident = pages * 4096;
    let _ = write!(
        out,
        "# HELP bootstorm_build_info Which version this is.\n# TYPE bootstorm_build_info gauge\n\
         bootstorm_build_info{{version=\"{version}\"}} 1\n\
         # HELP process_start_time_seconds When it started, in seconds since 1970.\n\
         # TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {since}\n\
         # HELP process_resident_memory_bytes Memory of its own and mapped that is present.\n\
         # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {resident}\n\
         # HELP process_open_fds Open descriptors.\n# TYPE process_open_fds gauge\nprocess_open_fds {descriptors}\n"
    );
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// [`Journal`](Self::Journal) where standard error is systemd's journal, [`Text`](Self::Text) elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Entries of systemd's journal, every field of a line a field of the entry: `BOOTSTORM_MAC`, `BOOTSTORM_STAGE`, ...
    Journal,
}

/// Which lines are logged: a level, or directives as `tracing` has them. The default is `info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl std::str::FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
        let expected =
            "expected error, warn, info, debug or trace, or directives such as info,bootstorm::engine=debug";
        let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
        // A bare word that is no level would be taken for the name of a part of the program, and nothing be logged.
        let is_fine =
            text.split(',').all(|part| is_level(part.trim()) || part.contains(['=', '[', ']', '{', '}']));
        match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) if is_fine => Ok(Self(text.to_owned())),
            Ok(_) => Err(expected.to_owned()),
            Err(error) => Err(format!("{error}; {expected}")),
        }
    }
}

/// Starts logging, to standard error or to systemd's journal. A second call changes nothing.
///
/// # Errors
/// [`LogFormat::Journal`] was asked for, and no journal takes entries here.
pub fn start_log(format: LogFormat, filter: &LogFilter) -> std::io::Result<()> {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::new(&filter.0);
    let journal = match format {
        LogFormat::Journal => Some(journal()?),
        // What cannot be reached as a journal is still read from standard error.
        LogFormat::Auto if stderr_is_journal() => journal().ok(),
        _ => None,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let lines = || fmt::layer().with_writer(std::io::stderr).with_target(false);
    // Fails only when a subscriber is already there, as in tests.
    let _ = match (journal, format) {
        (Some(journal), _) => registry.with(journal).try_init(),
        (None, LogFormat::Json) => registry.with(lines().json().flatten_event(true)).try_init(),
        (None, _) => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(lines().with_ansi(ansi)).try_init()
        }
    };
    Ok(())
}

/// Entries by the journal's own socket, with the levels systemd's tools expect.
fn journal() -> std::io::Result<tracing_journald::Layer> {
    use tracing_journald::{Priority, PriorityMappings};
    let priorities =
        PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    let layer = tracing_journald::layer()?;
    Ok(layer.with_field_prefix(Some("BOOTSTORM".to_owned())).with_priority_mappings(priorities))
}

/// systemd says in `JOURNAL_STREAM` which stream it connected (systemd.exec(5)): whoever inherited the variable and wrote
/// its standard error elsewhere has not that stream.
fn stderr_is_journal() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Some((device, inode)) = std::env::var("JOURNAL_STREAM")
        .ok()
        .and_then(|said| said.split_once(':').map(|(d, i)| (d.parse(), i.parse())))
    else {
        return false;
    };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| device == Ok(stderr.dev()) && inode == Ok(stderr.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_filter_is_a_level_or_directives_and_nothing_else() {
        for text in ["info", "WARN", "debug,bootstorm::engine=trace", "bootstorm[boot{mac}]=debug"] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text}");
        }
        for text in ["", "bad", "info,bad", "loud", "bootstorm=loud", "5x"] {
            assert!(text.parse::<LogFilter>().is_err(), "{text}");
        }
    }

    #[test]
    fn cores_add_up_and_a_family_has_one_head() {
        let metric = |label| Metric {
            name: "bootstorm_x_total",
            help: "Xs.",
            label: Some(("why", label)),
            gauge: false,
        };
        let metrics = [metric("a"), metric("b")];
        let cores = [Arc::new(Counters::new(2)), Arc::new(Counters::new(2))];
        cores[0].add(0, 2);
        cores[1].add(0, 3);
        cores[1].add(1, 1);
        cores[1].add(9, 1);
        let mut text = String::new();
        render(&metrics, &cores, &mut text);
        assert_eq!(
            text,
            "# HELP bootstorm_x_total Xs.\n# TYPE bootstorm_x_total counter\n\
             bootstorm_x_total{why=\"a\"} 5\nbootstorm_x_total{why=\"b\"} 1\n"
        );
    }
}

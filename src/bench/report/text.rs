//! The report for a terminal of 100 columns.

use super::{OURS, Report, Row, figure, micros, with_spread};

/// Longest line, unless one word alone is longer.
const WIDTH: usize = 100;

/// The whole report; with `earlier`, what changed since.
pub fn text(report: &Report, earlier: Option<&Report>) -> String {
    let c = &report.conditions;
    let mut out = format!("{}\n\n", report.title);
    let facts = [
        format!("{} · {} · kernel {} · {}", c.date, c.program, c.kernel, c.processor),
        format!(
            "server on CPU {}, load on CPU {}, {}, congestion control {}, {} interleaved rounds of {} s, seed {}, load \
             average before {:.2}",
            c.server_cpu,
            c.load_cpu,
            c.link,
            c.congestion_control,
            c.rounds,
            c.round_seconds,
            c.seed,
            c.load_average
        ),
    ];
    for fact in facts {
        out.push_str(&wrap(&fact, ""));
    }
    for server in &report.servers {
        out.push_str(&wrap(&format!("{}: {} ({})", server.name, server.version, server.settings), "  "));
    }
    for missing in &report.missing {
        out.push_str(&wrap(&missing_line(missing), "  "));
    }
    out.push('\n');
    out.push_str(&format!(
        "  {:<12}{:>16}{:>15}  {:<20}{:<20}{}\n",
        "SERVER", "THROUGHPUT", "SERVER CPU", "OURS : THIS", "CPU OURS : THIS", "LATENCY"
    ));
    let mut title = String::new();
    for row in &report.rows {
        if row.title() != title {
            title = row.title();
            out.push_str(&format!("{title}\n"));
        }
        out.push_str(&line(row, earlier));
    }
    let summary = report.summary();
    if !summary.is_empty() {
        out.push_str(&format!("\n{OURS} by peer, geometric mean over the rows without an impaired wire\n"));
    }
    for line in summary {
        let cpu = line.cpu.map_or_else(|| "-".into(), |cpu| format!("{cpu:.2}"));
        out.push_str(&format!(
            "  {:<7} {:<12} throughput {:>6.2}   CPU per unit {cpu:>5}   {} rows\n",
            line.work, line.server, line.ratio, line.rows
        ));
    }
    if let Some(sentence) = report.confidence.sentence() {
        out.push('\n');
        out.push_str(&wrap(&sentence, ""));
    }
    if let Some(agreement) = &report.agreement {
        out.push('\n');
        out.push_str(&wrap(&format!("against the run of {}: {}", agreement.since, agreement.sentence()), ""));
    }
    if !report.notes.is_empty() {
        out.push('\n');
    }
    for note in &report.notes {
        out.push_str(&wrap(note, "  "));
    }
    out
}

/// Why somebody is not there.
pub(super) fn missing_line(missing: &super::Missing) -> String {
    match missing.why.as_str() {
        "" => format!(
            "{} is not installed, so it is not compared: apt-get install --no-install-recommends {}",
            missing.server, missing.package
        ),
        why => format!("{} is not compared: {why}", missing.server),
    }
}

fn line(row: &Row, earlier: Option<&Report>) -> String {
    if let (Some(error), 0) = (&row.error, row.rounds) {
        return wrap(&format!("{:<12} no figure: {error}", row.server), "  ");
    }
    let value = format!("{} {}", figure(row.value), rate_unit(&row.unit));
    let cpu =
        row.cpu.map_or_else(|| "-".into(), |cpu| format!("{} s/{}", figure(cpu), short_unit(&row.cpu_unit)));
    let [ratio, cpu_ratio] = if row.server == OURS {
        [spread_of_value(row), String::new()]
    } else {
        [with_spread(row.ratio, row.spread), with_spread(row.cpu_ratio, row.cpu_spread)]
    };
    let mut line = format!("  {:<12}{value:>16}{cpu:>15}  {ratio:<20}{cpu_ratio:<20}", row.server);
    let mut more = Vec::new();
    more.extend(row.latency.map(|latency| format!("p99 {}", micros(latency.p99))));
    line.push_str(more.join(" ").trim_end());
    let mut out = format!("{}\n", line.trim_end());
    let mut remarks = Vec::new();
    remarks.extend(row.jain.filter(|jain| *jain < 0.95).map(|jain| format!("unfair: Jain {jain:.2}")));
    remarks.extend(row.overload_remark());
    if row.failures > 0 {
        let reasons: Vec<String> =
            row.failure_reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        remarks.push(format!("{} failed ({})", row.failures, reasons.join(", ")));
    }
    remarks.extend(row.load_remark());
    remarks.extend(row.certainty());
    remarks.extend(row.error.as_ref().map(|error| format!("in one round: {error}")));
    if let Some(change) = earlier.and_then(|earlier| Report::change(row, earlier)) {
        let part = |name: &str, factor: Option<f64>| {
            factor.map(|factor| format!("{name} {:+.0} %", (factor - 1.0) * 100.0))
        };
        let ratios = if row.server == OURS { [None, None] } else { [change.ratio, change.cpu_ratio] };
        let parts = [
            part("value", Some(change.value)),
            part("CPU", change.cpu),
            part("ratio", ratios[0]),
            part("CPU ratio", ratios[1]),
        ];
        remarks.push(format!("since then: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    }
    for remark in remarks {
        out.push_str(&wrap(&remark, "              "));
    }
    out
}

/// For this program's own rows, whose ratio to itself says nothing.
fn spread_of_value(row: &Row) -> String {
    match row.rounds {
        0 | 1 => String::new(),
        _ => format!("({}..{})", figure(row.value_spread[0]), figure(row.value_spread[1])),
    }
}

/// A unit of throughput in a narrow column.
fn rate_unit(unit: &str) -> &str {
    match unit {
        "exchanges/s" => "exch/s",
        "requests/s" => "req/s",
        unit => unit,
    }
}

/// `million exchanges` is `M`.
pub(super) fn short_unit(unit: &str) -> &str {
    if unit.starts_with("million") { "M" } else { unit }
}

/// Breaks between words; further lines are set in by two more.
fn wrap(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut line = String::new();
    let lead = text.len() - text.trim_start_matches('\n').len();
    out.push_str(&text[..lead]);
    for word in text.split_whitespace() {
        if !line.is_empty() && indent.len() + line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(&format!("{indent}{line}\n"));
            line = "  ".into();
        } else if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    out.push_str(&format!("{indent}{line}\n"));
    out
}

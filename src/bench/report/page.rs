//! The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::chart::{Axis, Bar, Range, Series, bars, escape, lines, ranges};
use super::text::{missing_line, short_unit};
use super::{OURS, Report, Row, figure, micros, with_spread};
use crate::bench::impair::{duration_text, share_text};

const STYLE: &str = include_str!("page.css");
/// Groups of bars or ranges in one picture: what half a printed page holds.
const GROUPS_MAX: usize = 6;

/// The whole page; with `earlier`, what changed since.
pub fn page(report: &Report, earlier: Option<&Report>) -> String {
    let styles = styles(report);
    let mut out = String::new();
    let title = escape(&report.title);
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n<h1>{title}</h1>\n"
    );
    conditions(&mut out, report);
    summary(&mut out, report);
    network(&mut out, report);
    throughput(&mut out, report, &styles);
    cpu(&mut out, report, &styles);
    latency(&mut out, report, &styles);
    figures(&mut out, report, earlier);
    if !report.notes.is_empty() {
        out.push_str("<section>\n<h2>What to know when reading this</h2>\n<ul>\n");
        for note in &report.notes {
            let _ = writeln!(out, "<li>{}</li>", escape(note));
        }
        out.push_str("</ul>\n</section>\n");
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// A style for each server that is the same in all charts; this program's is always the first.
fn styles(report: &Report) -> BTreeMap<String, usize> {
    let mut styles = BTreeMap::from([(OURS.to_owned(), 0)]);
    for row in &report.rows {
        let next = styles.len();
        styles.entry(row.server.clone()).or_insert(next);
    }
    styles
}

fn conditions(out: &mut String, report: &Report) {
    let c = &report.conditions;
    let _ = writeln!(
        out,
        "<p class=\"lead\">{} · {} · took {:.0} s</p>\n<dl class=\"facts\">",
        escape(&c.date),
        escape(&c.program),
        c.seconds
    );
    let wired = !c.link.is_empty();
    let facts = [
        (
            "Machine",
            format!("{}, kernel {}; load average before: {:.2}", c.processor, c.kernel, c.load_average),
        ),
        ("Places", format!("server on CPU {}, load on CPU {}", c.server_cpu, c.load_cpu)),
        ("Wire", format!("{}; congestion control {}", c.link, c.congestion_control)),
        (
            "Rounds",
            format!(
                "{} interleaved, {} s each{}; figures are medians",
                c.rounds,
                c.round_seconds,
                if wired { format!(", seed {}", c.seed) } else { String::new() }
            ),
        ),
    ];
    // A load of its own knows of no place but its own.
    for (name, value) in facts.into_iter().filter(|(name, _)| wired || !["Places", "Wire"].contains(name)) {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    for server in &report.servers {
        let _ = writeln!(
            out,
            "<dt>{}</dt><dd>{}<span class=\"dim\"> {}</span></dd>",
            escape(&server.name),
            escape(&server.version),
            escape(&server.settings)
        );
    }
    out.push_str("</dl>\n");
    for missing in &report.missing {
        let _ = writeln!(out, "<p class=\"missing\">{}</p>", escape(&missing_line(missing)));
    }
}

fn summary(out: &mut String, report: &Report) {
    let lines = report.summary();
    if lines.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<section>\n<h2>At a glance</h2>\n<p>{OURS} by each peer, geometric mean over the rows without an impaired wire. \
         Throughput above 1 and CPU below 1 are in favour of {OURS}.</p>\n<table>\n<thead><tr><th>Work</th><th>Peer</th>\
         <th class=\"n\">Throughput</th><th class=\"n\">Server CPU per unit</th><th class=\"n\">Rows</th></tr></thead>\n<tbody>\n"
    );
    for line in lines {
        let cpu = line.cpu.map_or_else(|| "-".into(), |cpu| format!("{cpu:.2} ×"));
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{:.2} ×</td><td class=\"n\">{cpu}</td><td class=\"n\">{}</td></tr>",
            escape(&line.work),
            escape(&line.server),
            line.ratio,
            line.rows
        );
    }
    out.push_str("</tbody>\n</table>\n");
    if let Some(sentence) = report.confidence.sentence() {
        let _ = writeln!(out, "<p>{}.</p>", escape(&sentence));
    }
    if let Some(agreement) = &report.agreement {
        let since = escape(&agreement.since);
        let _ = writeln!(out, "<p>Against the run of {since}: {}.</p>", escape(&agreement.sentence()));
        if !agreement.apart.is_empty() {
            out.push_str("<p>Further apart, with the factor between the two runs:</p>\n<ul>\n");
            for apart in &agreement.apart {
                let _ = writeln!(out, "<li>{}</li>", escape(apart));
            }
            out.push_str("</ul>\n");
        }
    }
    out.push_str("</section>\n");
}

/// TFTP against HTTP over round trip and loss: this program alone, one chart for each loss and number of clients.
fn network(out: &mut String, report: &Report) {
    let rows = || report.rows.iter().filter(|row| row.is_impaired() && row.server == OURS && row.value > 0.0);
    let mut by_loss: BTreeMap<(String, u32), Vec<&Row>> = BTreeMap::new();
    let mut by_rtt: BTreeMap<(u64, u32), Vec<&Row>> = BTreeMap::new();
    for row in rows() {
        by_loss.entry((format!("{:09.6}", row.loss()), row.clients)).or_default().push(row);
        by_rtt.entry(((row.rtt_s() * 1e6) as u64, row.clients)).or_default().push(row);
    }
    if by_loss.is_empty() {
        return;
    }
    out.push_str(
        "<section>\n<h2>TFTP or HTTP on a network like yours</h2>\n<p>What one server gives over a wire with delay and \
         loss, put there on purpose. TFTP waits a round trip after each window; HTTP keeps the wire full. Look for your \
         network's round trip (<code>ping</code>) and read off which settings are worth having.</p>\n",
    );
    let label = |value: f64| figure(value);
    let speed =
        Axis { title: "MB/s, all clients together", label: &|value| format!("{} MB/s", label(value)) };
    let mut number = 0;
    let mut chart =
        |out: &mut String, title: String, x: &Axis<'_>, rows: &[&Row], at: &dyn Fn(&Row) -> f64| {
            let series = by_method(rows, at);
            if series.iter().all(|series| series.points.len() < 2) {
                return;
            }
            number += 1;
            figure_of(out, "lines", &title, &lines(&format!("net{number}"), &title, x, &speed, &series));
        };
    for ((loss, clients), rows) in &by_loss {
        let loss: f64 = loss.parse().unwrap_or_default();
        let title = format!("Loss {}, {}", share_text(loss), client_words(*clients));
        let x = Axis { title: "round trip", label: &|ms| format!("{ms} ms") };
        chart(out, title, &x, rows, &|row| (row.rtt_s() * 1e6).round() / 1e3);
    }
    for ((rtt, clients), rows) in &by_rtt {
        let title =
            format!("Round trip {}, {}", duration_text(Duration::from_micros(*rtt)), client_words(*clients));
        let x = Axis { title: "loss", label: &|loss| format!("{loss} %") };
        chart(out, title, &x, rows, &|row| (row.loss() * 1e6).round() / 1e4);
    }
    out.push_str("</section>\n");
}

fn client_words(clients: u32) -> String {
    if clients == 1 { "one client".into() } else { format!("{clients} clients") }
}

/// A line for each way of fetching.
fn by_method(rows: &[&Row], at: &dyn Fn(&Row) -> f64) -> Vec<Series> {
    let mut found: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for row in rows {
        let name = row.method().map_or_else(|| row.work.clone(), |method| method.name());
        let point = (at(row), row.value);
        match found.iter_mut().find(|(other, _)| *other == name) {
            Some((_, points)) => points.push(point),
            None => found.push((name, vec![point])),
        }
    }
    // HTTP has the same style in every chart, whatever else is there.
    found.sort_by_key(|(name, _)| name != "HTTP");
    found
        .into_iter()
        .enumerate()
        .map(|(style, (name, mut points))| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series { name, style, points }
        })
        .collect()
}

/// Throughput over clients: a chart for each work that was done with several numbers of clients, bars for the others.
fn throughput(out: &mut String, report: &Report, styles: &BTreeMap<String, usize>) {
    let families = families(report);
    if families.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>Throughput against clients</h2>\n");
    let mut single = Vec::new();
    for (number, (family, rows)) in families.iter().enumerate() {
        let mut clients: Vec<u32> = rows.iter().map(|row| row.clients).collect();
        clients.sort_unstable();
        clients.dedup();
        if clients.len() < 2 {
            single.push((rows[0].title(), rows));
            continue;
        }
        let mut series: Vec<Series> = Vec::new();
        for row in rows {
            let point = (f64::from(row.clients), row.value);
            match series.iter_mut().find(|series| series.name == row.server) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    name: row.server.clone(),
                    style: styles.get(&row.server).copied().unwrap_or_default(),
                    points: vec![point],
                }),
            }
        }
        for series in &mut series {
            series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        let unit = rows[0].unit.clone();
        let x = Axis { title: "clients at once", label: &|clients| format!("{clients:.0}") };
        let y = Axis { title: &unit, label: &|value| format!("{} {unit}", figure(value)) };
        figure_of(out, "lines", family, &lines(&format!("thr{number}"), family, &x, &y, &series));
    }
    let mut by_unit: BTreeMap<String, Vec<(String, Vec<Bar>)>> = BTreeMap::new();
    for (title, rows) in single {
        let bars = rows.iter().map(|row| Bar {
            name: row.server.clone(),
            style: styles.get(&row.server).copied().unwrap_or_default(),
            value: row.value,
            label: format!("{} {}", figure(row.value), row.unit),
        });
        by_unit.entry(rows[0].unit.clone()).or_default().push((title, bars.collect()));
    }
    for (number, (unit, groups)) in by_unit.iter().enumerate() {
        let title = format!("At one number of clients, {unit}");
        figure_of(out, "list", &title, &bars(&format!("one{number}"), &title, unit, groups));
    }
    out.push_str("</section>\n");
}

/// True for what [`network`] draws.
fn is_in_network(row: &Row) -> bool {
    row.is_impaired() && row.server == OURS
}

/// The other rows, by what was asked for.
fn families(report: &Report) -> Vec<(String, Vec<&Row>)> {
    let mut families: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in report.rows.iter().filter(|row| !is_in_network(row) && row.value > 0.0) {
        let family = row.family();
        match families.iter_mut().find(|(name, _)| *name == family) {
            Some((_, rows)) => rows.push(row),
            None => families.push((family, vec![row])),
        }
    }
    families
}

fn cpu(out: &mut String, report: &Report, styles: &BTreeMap<String, usize>) {
    let mut by_unit: BTreeMap<(&str, &str), Vec<(String, Vec<Bar>)>> = BTreeMap::new();
    for row in report.rows.iter().filter(|row| !is_in_network(row)) {
        let Some(value) = row.cpu else { continue };
        let groups = by_unit.entry((&row.cpu_unit, &row.work)).or_default();
        let bar = Bar {
            name: row.server.clone(),
            style: styles.get(&row.server).copied().unwrap_or_default(),
            value,
            label: format!("{} s/{}", figure(value), short_unit(&row.cpu_unit)),
        };
        let title = row.title();
        match groups.iter_mut().find(|(name, _)| *name == title) {
            Some((_, bars)) => bars.push(bar),
            None => groups.push((title, vec![bar])),
        }
    }
    if by_unit.is_empty() {
        return;
    }
    out.push_str(
        "<section>\n<h2>What it costs the server</h2>\n<p>CPU seconds of the server, its ended children included. Less is \
         better. A group whose bars would be too short to see has a scale of its own.</p>\n",
    );
    for (number, ((unit, work), groups)) in by_unit.iter().enumerate() {
        for (part, groups) in groups.chunks(GROUPS_MAX).enumerate() {
            let title = format!("CPU seconds per {unit}, {work}");
            figure_of(out, "list", &title, &bars(&format!("cpu{number}-{part}"), &title, unit, groups));
        }
    }
    out.push_str("</section>\n");
}

fn latency(out: &mut String, report: &Report, styles: &BTreeMap<String, usize>) {
    let kinds: [(&str, &dyn Fn(&Row) -> Option<super::Latency>); 2] = [
        ("Time of one request, file, exchange or boot", &|row| row.latency),
        ("Time to the first answer", &|row| row.first_answer),
    ];
    let mut section = String::new();
    for (number, (title, of)) in kinds.into_iter().enumerate() {
        let mut groups: Vec<(String, Vec<Range>)> = Vec::new();
        for row in report.rows.iter().filter(|row| !is_in_network(row)) {
            let Some(latency) = of(row) else { continue };
            let range = Range {
                name: row.server.clone(),
                style: styles.get(&row.server).copied().unwrap_or_default(),
                p50: latency.p50,
                p90: latency.p90,
                p99: latency.p99,
                max: latency.max,
            };
            let name = row.title();
            match groups.iter_mut().find(|(other, _)| *other == name) {
                Some((_, ranges)) => ranges.push(range),
                None => groups.push((name, vec![range])),
            }
        }
        for (part, groups) in groups.chunks(GROUPS_MAX).enumerate() {
            let svg = ranges(&format!("lat{number}-{part}"), title, groups);
            figure_of(&mut section, "list", title, &svg);
        }
    }
    if !section.is_empty() {
        let _ = write!(
            out,
            "<section>\n<h2>Latency</h2>\n<p>Dot: half were faster. Thick line: up to 90 %. Tall mark: 99 %. The thin line \
             ends at the slowest. Logarithmic.</p>\n{section}</section>\n"
        );
    }
}

fn figures(out: &mut String, report: &Report, earlier: Option<&Report>) {
    let since = if earlier.is_some() { "<th class=\"n\">Since then</th>" } else { "" };
    let ratios = match report.rows.iter().any(|row| row.ratio.is_some()) {
        true => format!(
            "<p>Ratios are of {OURS} to that server in the same round: median and, in brackets, least and greatest.</p>\n"
        ),
        false => String::new(),
    };
    let _ = write!(
        out,
        "<section class=\"table\">\n<h2>All figures</h2>\n{ratios}<div class=\"wide\">\n<table class=\"all\">\n<thead><tr><th>Server</th>\
         <th class=\"n\">Throughput</th><th class=\"n\">Least..greatest</th><th class=\"n\">Server CPU</th>\
         <th class=\"n\">{OURS} : this</th><th class=\"n\">CPU, {OURS} : this</th><th class=\"n\">Median</th>\
         <th class=\"n\">99 %</th><th class=\"n\">Jain</th><th class=\"n\">Failed</th>{since}</tr></thead>\n"
    );
    let mut title = String::new();
    for row in &report.rows {
        if row.title() != title {
            title = row.title();
            let columns = if earlier.is_some() { 11 } else { 10 };
            let _ = writeln!(
                out,
                "<tbody><tr class=\"work\"><th colspan=\"{columns}\" scope=\"rowgroup\">{}</th></tr>",
                escape(&title)
            );
        }
        figures_row(out, row, earlier);
    }
    out.push_str("</tbody></table>\n</div>\n</section>\n");
}

fn figures_row(out: &mut String, row: &Row, earlier: Option<&Report>) {
    let dash = || "-".to_owned();
    let mut remarks = Vec::new();
    remarks.extend(row.overload_remark());
    remarks.extend(row.load_remark());
    remarks.extend(row.certainty());
    remarks.extend(row.error.as_ref().map(|error| format!("in one round: {error}")));
    let reasons: Vec<String> =
        row.failure_reasons.iter().map(|(why, count)| format!("{count} {why}")).collect();
    let mut cells = vec![
        format!("{} {}", figure(row.value), row.unit),
        format!("{}..{}", figure(row.value_spread[0]), figure(row.value_spread[1])),
        row.cpu.map_or_else(dash, |cpu| format!("{} s/{}", figure(cpu), short_unit(&row.cpu_unit))),
        if row.server == OURS { dash() } else { with_spread(row.ratio, row.spread) },
        if row.server == OURS { dash() } else { with_spread(row.cpu_ratio, row.cpu_spread) },
        row.latency.map_or_else(dash, |latency| micros(latency.p50)),
        row.latency.map_or_else(dash, |latency| micros(latency.p99)),
        row.jain.map_or_else(dash, |jain| format!("{jain:.2}")),
        if row.failures == 0 { "0".into() } else { format!("{} ({})", row.failures, reasons.join(", ")) },
    ];
    if let Some(earlier) = earlier {
        cells.push(Report::change(row, earlier).map_or_else(dash, |change| {
            let ratio = change.ratio.filter(|_| row.server != OURS);
            let ratio =
                ratio.map_or_else(String::new, |ratio| format!(", ratio {:+.0} %", (ratio - 1.0) * 100.0));
            format!("{:+.0} %{ratio}", (change.value - 1.0) * 100.0)
        }));
    }
    let cells_len = cells.len();
    let class = if row.server == OURS { " class=\"ours\"" } else { "" };
    let _ = write!(out, "<tr{class}><td>{}</td>", escape(&row.server));
    for cell in cells {
        let _ = write!(out, "<td class=\"n\">{}</td>", escape(&cell));
    }
    out.push_str("</tr>\n");
    for remark in remarks {
        let _ = writeln!(
            out,
            "<tr class=\"remark\"><td colspan=\"{}\">{}: {}</td></tr>",
            cells_len + 1,
            escape(&row.server),
            escape(&remark)
        );
    }
}

/// `class`: `lines`, of which two stand side by side in print, or `list`.
fn figure_of(out: &mut String, class: &str, caption: &str, svg: &str) {
    let caption = escape(caption);
    let _ = write!(out, "<figure class=\"{class}\">\n<figcaption>{caption}</figcaption>\n{svg}</figure>\n");
}

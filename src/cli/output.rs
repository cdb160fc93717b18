//! The one place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]

use std::io::{self, Write};

use serde_json::Value;

/// Bytes to standard output. A closed pipe ends the command quietly, as `| head` expects.
pub(super) fn raw(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush())
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        std::process::exit(0);
    }
}

/// A line, or several, to standard output.
pub(super) fn line(text: impl AsRef<str>) {
    raw(format!("{}\n", text.as_ref().trim_end_matches('\n')).as_bytes());
}

/// Why a command fails, to standard error.
pub(super) fn error(message: &str) {
    let _ = writeln!(io::stderr(), "{}", message.trim_end());
}

/// A remark, to standard error.
pub(super) fn remark(message: &str) {
    error(message);
}

/// A JSON document, indented.
pub(super) fn json(value: &Value) {
    line(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// A table: columns as wide as their widest entry, two blanks between.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>) {
    let all: Vec<Vec<String>> =
        std::iter::once(head.iter().map(|text| (*text).to_owned()).collect()).chain(rows).collect();
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    line(text);
}

/// Bytes for people: `1.5 GiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

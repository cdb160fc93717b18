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

/// What the server has to say of a change beside that it is made, to standard error.
pub(super) fn notes(warnings: &Value) {
    for warning in warnings.as_array().into_iter().flatten().filter_map(Value::as_str) {
        remark(&plain(&format!("note: {warning}")));
    }
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
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:width$}", plain(cell)));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    line(text);
}

/// A text that machines or operators chose, without what would steer a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Lines, each [`plain`].
pub(super) fn plain_lines(lines: &[String]) -> String {
    lines.iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n")
}

/// A text as a table shows it: its beginning, where it is long.
pub(super) fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(3)).chain("...".chars()).collect()
}

/// Whether somebody looks at standard output.
pub(super) fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stdout())
}

/// Empties the terminal's screen, for a list that is shown again in place.
pub(super) fn clear() {
    raw(b"\x1b[H\x1b[2J");
}

/// Seconds since 1970 as people read them: `2026-11-28 12:00:00Z`.
pub(super) fn moment(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    // Civil date from days, after Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is
    // the last one.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_utc() {
        for (unix, shown) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_709_251_199, "2024-02-29 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(moment(unix), shown);
        }
    }

    #[test]
    fn a_long_text_is_cut_for_a_table() {
        assert_eq!((cut("short", 5).as_str(), cut("longer", 5).as_str()), ("short", "lo..."));
    }

    #[test]
    fn what_would_steer_a_terminal_is_not_printed() {
        assert_eq!(plain("a\u{1b}[2Jb\u{9b}c\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
    }
}

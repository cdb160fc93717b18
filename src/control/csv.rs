//! Jobs as rows of a table: what a spreadsheet exports becomes what the API takes.
//!
//! The first row names the columns. What to boot: `image` (several, separated by `;`, are a sequence of boots) or
//! `action`. For whom: one of `mac uuid serial asset`, or any of `group subnet circuit arch manufacturer product
//! any_unknown`. How, as the flags of `job add`: `always attempts expires priority replace then confirm allow_rule
//! window`. An empty cell is one that was not given.

use serde_json::{Map, Value, json};

use super::problem::RowError;
use crate::jobs::job::JobSpec;

/// Jobs of one bulk order.
pub const ROWS_MAX: usize = 10_000;

const EXACT: [&str; 4] = ["mac", "uuid", "serial", "asset"];
const RULE: [&str; 6] = ["group", "subnet", "circuit", "arch", "manufacturer", "product"];
const FLAGS: [&str; 4] = ["always", "replace", "then", "allow_rule"];
const NUMBERS: [&str; 2] = ["attempts", "priority"];
const TEXTS: [&str; 3] = ["expires", "confirm", "window"];
const OTHERS: [&str; 4] = ["image", "action", "any_unknown", "comment"];

/// The jobs of a table, each with its line in the file. `defaults` is an object of [`JobSpec`]'s fields for what the rows leave out.
///
/// # Errors
///
/// Every row that is wrong, by its line in the file. The whole table is wrong when its head is.
pub fn jobs(text: &str, defaults: &Value) -> Result<Vec<(u64, JobSpec)>, Vec<RowError>> {
    let wrong = |row: u64, detail: String| RowError { row, code: "not-a-job", detail };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Spreadsheets of half of Europe separate by semicolons.
    let head_line = text.lines().next().unwrap_or_default();
    let delimiter = if head_line.contains(';') && !head_line.contains(',') { b';' } else { b',' };
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).delimiter(delimiter).from_reader(text.as_bytes());
    let head: Vec<String> = match reader.headers() {
        Ok(head) => head.iter().map(|name| name.to_ascii_lowercase().replace('-', "_")).collect(),
        Err(error) => return Err(vec![wrong(1, error.to_string())]),
    };
    let known = || [&EXACT[..], &RULE, &FLAGS, &NUMBERS, &TEXTS, &OTHERS].into_iter().flatten();
    let mut errors: Vec<RowError> = Vec::new();
    for (index, name) in head.iter().enumerate() {
        if !known().any(|other| other == name) {
            let all = known().copied().collect::<Vec<_>>().join(" ");
            errors.push(wrong(1, format!("there is no column {name:?}; the columns are {all}")));
        } else if head[..index].contains(name) {
            errors.push(wrong(1, format!("the column {name:?} is there twice")));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut specs = Vec::new();
    let mut lines = Lines { text: text.as_bytes(), at: 0, line: 1 };
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, |position| lines.of(position));
                errors.push(wrong(line, format!("not a row of this table: {error}")));
                continue;
            }
        };
        let line = record.position().map_or(0, |position| lines.of(position));
        if record.iter().all(str::is_empty) {
            continue;
        }
        if specs.len() >= ROWS_MAX {
            errors.push(wrong(line, format!("more than {ROWS_MAX} jobs; send the rest as a second order")));
            break;
        }
        match job(head.iter().map(String::as_str).zip(&record), defaults) {
            Ok(spec) => specs.push((line, spec)),
            Err(detail) => errors.push(wrong(line, detail)),
        }
    }
    if specs.is_empty() && errors.is_empty() {
        errors
            .push(wrong(1, "there is no job in it: a row of column names, then one row for each job".into()));
    }
    if errors.is_empty() { Ok(specs) } else { Err(errors) }
}

/// Counts lines as an editor does. The reader's own count is of where it began to look for a row: before the rest of the
/// line end in front of it, and before empty lines.
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line on which the row at this position stands; rows come in order.
    fn of(&mut self, position: &csv::Position) -> u64 {
        let start = usize::try_from(position.byte()).unwrap_or(usize::MAX).min(self.text.len());
        let rest = self.text.get(start..).unwrap_or_default();
        let row = start + rest.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        let passed = self.text.get(self.at..row).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.at = row.max(self.at);
        self.line
    }
}

fn job<'a>(cells: impl Iterator<Item = (&'a str, &'a str)>, defaults: &Value) -> Result<JobSpec, String> {
    let mut job = defaults.as_object().cloned().unwrap_or_default();
    let mut exact: Vec<(&str, &str)> = Vec::new();
    let mut rule = Map::new();
    for (name, cell) in cells.filter(|(_, cell)| !cell.is_empty()) {
        match name {
            "image" => {
                let mut images = cell.split(';').map(str::trim).filter(|image| !image.is_empty());
                let first = images.next().unwrap_or_default();
                job.insert("action".into(), json!({ "image": first }));
                job.insert("then".into(), images.map(|image| json!({ "image": image })).collect());
            }
            "action" => {
                job.insert("action".into(), json!(cell));
                job.remove("then");
            }
            // The flag of the command line; a sequence is `then` in JSON, and a list of images here.
            "then" => _ = job.insert("queue".into(), json!(flag(name, cell)?)),
            "arch" => {
                let codes: Result<Vec<u16>, String> = cell.split(';').map(|word| arch(word.trim())).collect();
                rule.insert("arch".into(), json!(codes?));
            }
            "any_unknown" => {
                if flag(name, cell)? {
                    rule.insert(name.into(), json!(true));
                }
            }
            "comment" => {}
            name if EXACT.contains(&name) => exact.push((name, cell)),
            name if RULE.contains(&name) => _ = rule.insert(name.into(), json!(cell)),
            name if FLAGS.contains(&name) => _ = job.insert(name.into(), json!(flag(name, cell)?)),
            name if NUMBERS.contains(&name) => {
                let number: i64 =
                    cell.parse().map_err(|_| format!("{name}: expected a number, found {cell:?}"))?;
                job.insert(name.into(), json!(number));
            }
            name => _ = job.insert(name.into(), json!(cell)),
        }
    }
    match (exact.as_slice(), rule.is_empty()) {
        ([], true) => {}
        ([(name, cell)], true) => _ = job.insert("selector".into(), json!({ *name: cell })),
        ([], false) => _ = job.insert("selector".into(), json!({ "rule": rule })),
        _ => {
            return Err("a job is for one mac, uuid, serial or asset, or for a rule; give one of them".into());
        }
    }
    serde_json::from_value(Value::Object(job)).map_err(|error| error.to_string())
}

/// Option 93 as a number or one of the words lists show.
pub fn arch(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let word = || (0..0x30).find(|code| crate::wire::Arch(*code).word() == text);
    number
        .or_else(word)
        .ok_or_else(|| "expected a number such as 7, or bios, uefi-x64, uefi-ia32, uefi-arm64".into())
}

fn flag(name: &str, cell: &str) -> Result<bool, String> {
    match cell.to_ascii_lowercase().as_str() {
        "yes" | "true" | "1" | "x" => Ok(true),
        "no" | "false" | "0" => Ok(false),
        _ => Err(format!("{name}: expected yes or no, found {cell:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::job::{Action, Selector};

    #[test]
    fn a_spreadsheet_becomes_jobs() {
        let text = "\u{feff}Image,MAC,serial,always,expires,then,allow-rule,subnet,comment\r\n\
                    winpe; finish ;report,52-54-00-00-00-01,,,12h,yes,,,\"bench 1, left\"\r\n\
                    ,,ABC 1,yes,,,,,\r\n\
                    \r\n\
                    winpe,,,,,,x,10.77.0.0/24,\r\n";
        let jobs = jobs(text, &json!({ "action": "local", "priority": 5 })).expect("good rows");
        let (lines, jobs): (Vec<u64>, Vec<JobSpec>) = jobs.into_iter().unzip();
        assert_eq!(lines, [2, 3, 5]);
        assert_eq!(jobs.len(), 3);
        assert_eq!(jobs[0].action, Action::Image("winpe".into()));
        assert_eq!(jobs[0].then, [Action::Image("finish".into()), Action::Image("report".into())]);
        assert!(jobs[0].queue && !jobs[1].queue);
        assert_eq!((jobs[0].priority, jobs[0].expires.unwrap().as_secs()), (5, 43_200));
        assert_eq!((&jobs[1].action, &jobs[1].selector), (&Action::Local, &Selector::Serial("ABC 1".into())));
        assert!(jobs[1].always && jobs[2].allow_rule);
        assert!(matches!(&jobs[2].selector, Selector::Rule(rule) if rule.subnet.is_some()));
    }

    #[test]
    fn semicolons_separate_where_no_comma_does() {
        assert_eq!(jobs("image;mac\nx;52:54:00:00:00:01\n", &json!({})).unwrap().len(), 1);
    }

    #[test]
    fn every_wrong_row_is_named_by_its_line() {
        let text = "image,mac,attempts,always\na,nonsense,,\nb,52:54:00:00:00:01,,\nc,52:54:00:00:00:02,many,\n\
                    d,52:54:00:00:00:03,,maybe\ne,,,\nf,52:54:00:00:00:04\n";
        let errors = jobs(text, &json!({})).unwrap_err();
        let lines: Vec<u64> = errors.iter().map(|error| error.row).collect();
        assert_eq!(lines, [2, 4, 5, 6, 7], "{errors:?}");
        // With the line ends of another system, empty lines, and a cell of several lines.
        let text = text.replace('\n', "\r\n").replace("\r\na,", "\r\n\r\n\"a\nb\",");
        let errors = jobs(&text, &json!({})).unwrap_err();
        let lines: Vec<u64> = errors.iter().map(|error| error.row).collect();
        assert_eq!(lines, [3, 6, 7, 8, 9], "{errors:?}");
    }

    #[test]
    fn a_wrong_head_and_an_empty_table_are_refused() {
        for (text, word) in
            [("image,mack\n", "mack"), ("image,image\n", "twice"), ("", "no job"), ("image,mac\n", "no job")]
        {
            let errors = jobs(text, &json!({})).unwrap_err();
            assert!(errors[0].detail.contains(word), "{text:?}: {errors:?}");
        }
    }

    #[test]
    fn more_rows_than_the_bound_are_refused() {
        let text = format!("image,mac\n{}", "x,52:54:00:00:00:01\n".repeat(ROWS_MAX + 1));
        assert!(jobs(&text, &json!({})).unwrap_err()[0].detail.contains("second order"));
    }

    #[test]
    fn architectures_by_number_and_word() {
        assert_eq!(arch("7"), Ok(7));
        assert_eq!(arch("0x0b"), Ok(11));
        assert_eq!(arch("uefi-x64"), Ok(7));
        assert_eq!(arch("bios"), Ok(0));
        assert!(arch("toaster").is_err());
    }
}

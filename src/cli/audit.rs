//! `audit list` and `audit verify`.

use serde_json::Value;

use super::args::{AuditVerb, Common};
use super::{Done, Exit, client, listing, output};
use crate::control::client::escaped;

pub(super) fn run(common: &Common, verb: &AuditVerb) -> Done {
    let client = client(common)?;
    match verb {
        AuditVerb::List { subject, limit, listing } => {
            let mut path = format!("/v1/audit?limit={limit}");
            if let Some(subject) = subject {
                path.push_str(&format!("&subject={}", escaped(subject)));
            }
            listing::show(*listing, || client.get(&path), draw)
        }
        AuditVerb::Verify { json } => {
            let check = client.get("/v1/audit/verify")?;
            let whole = check["whole"].as_bool() == Some(true);
            if *json {
                output::json(&check);
            } else if whole {
                let head = check["head"].as_str().unwrap_or_default();
                output::line(format!(
                    "the audit log is whole: {} entries, newest hash {head}",
                    check["entries"]
                ));
            } else {
                output::line(format!(
                    "the audit log was tampered with or damaged: entry {} is not as it was written, or is missing",
                    check["broken_at"]
                ));
            }
            Ok(if whole { Exit::Fine } else { Exit::Wrong })
        }
    }
}

fn draw(list: &Value) {
    let rows = list["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            let body = &entry["body"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            vec![
                entry["number"].to_string(),
                output::moment(entry["at_unix_ms"].as_u64().unwrap_or(0) / 1000),
                text(&body["by"]),
                text(&body["what"]),
                text(&entry["subject"]),
            ]
        })
        .collect();
    output::table(&["NO", "WHEN", "WHO", "WHAT", "ABOUT"], rows);
}

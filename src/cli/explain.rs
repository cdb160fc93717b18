//! `explain`: a machine's last boots and what is to be said of them, from the running server, or from its store when it
//! does not run.

use std::fs;
use std::io::Write;
use std::time::SystemTime;

use serde_json::Value;

use super::args::{Common, Explain};
use super::serve::STORE;
use super::{Done, Exit, Failure, client, load_config, output};
use crate::control::client::{ClientError, escaped};
use crate::control::explain::find;
use crate::keeper;
use crate::store::SqliteStore;

/// Boots of a machine when nobody says how many.
const LAST: usize = 8;
/// Boots listed when nobody is named.
const RECENT: usize = 20;

pub(super) fn run(common: &Common, explain: &Explain) -> Done {
    let Some(machine) = &explain.machine else { return overview(common, explain) };
    let not_a_machine = |error: ClientError| match error {
        ClientError::Refused { code, detail, .. } if code == "not-a-machine" => {
            Failure::new(Exit::Usage, detail)
        }
        error => error.into(),
    };
    if let Some(file) = &explain.pcap {
        let last = explain.last.unwrap_or(1);
        let path = format!("/v1/boots/pcap?machine={}&last={last}", escaped(machine));
        return write_file(file, &client(common)?.bytes(&path).map_err(not_a_machine)?);
    }
    let last = explain.last.unwrap_or(LAST);
    let query = format!("machine={}&last={last}", escaped(machine));
    let document = match client(common)?.get(&format!("/v1/explain?{query}")) {
        Ok(document) => document,
        Err(error) if no_server_runs(&error) => match from_the_store(common, machine, last)? {
            Some(document) => {
                output::remark("no server runs: this is what it stored");
                document
            }
            None => return Err(error.into()),
        },
        Err(error) => return Err(not_a_machine(error)),
    };
    let boots = document["boots"].as_array().map(Vec::as_slice).unwrap_or_default();
    if explain.json {
        output::json(&document);
    } else {
        for boot in boots {
            output::line(boot["text"].as_str().unwrap_or_default());
        }
        if boots.is_empty() {
            let verdict = &document["never_seen"];
            output::line(text(verdict, "sentence"));
            let codes: Vec<String> = verdict["codes"].as_array().into_iter().flatten().map(code).collect();
            output::line(format!("On its screen: {}", codes.join(" or ")));
            output::line(format!("Next: {}", text(verdict, "next")));
        }
    }
    Ok(if boots.is_empty() { Exit::Wrong } else { Exit::Fine })
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn code(value: &Value) -> String {
    format!("{} ({})", text(value, "code"), text(value, "text"))
}

/// True when there is no process to ask, as opposed to one that does not answer this user.
fn no_server_runs(error: &ClientError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error, ClientError::NoServer { source, .. } if matches!(source.kind(), NotFound | ConnectionRefused))
}

/// The same answer from the store of a server that does not run; `None` when there is no store.
fn from_the_store(common: &Common, machine: &str, last: usize) -> Result<Option<Value>, Failure> {
    let path = load_config(common, &[])?.plan.server.state_dir.join(STORE);
    if !path.exists() {
        return Ok(None);
    }
    let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Runtime, error);
    let mut store = SqliteStore::open(&path).map_err(|error| failed(&error))?;
    let book = keeper::stored_book(&mut store).map_err(|error| failed(&error))?;
    let found = find(machine, last, None, &book, &mut store, SystemTime::now())
        .map_err(|nobody| Failure::new(Exit::Usage, nobody))?;
    Ok(Some(found.document()))
}

/// The alarms that are on, and the last boots of all machines.
fn overview(common: &Common, explain: &Explain) -> Done {
    if explain.pcap.is_some() {
        return Err(Failure::new(Exit::Usage, "--pcap needs a machine"));
    }
    let client = client(common)?;
    let mut document = client.get("/v1/alarms")?;
    let recent = client.get(&format!("/v1/boots?limit={RECENT}"))?;
    let alarms = document["alarms"].as_array().cloned().unwrap_or_default();
    if explain.json {
        document["recent"] = recent;
        output::json(&document);
        return Ok(Exit::Fine);
    }
    for alarm in &alarms {
        output::line(format!("alarm {}: {}", text(alarm, "kind"), text(alarm, "sentence")));
    }
    let boots = recent["boots"].as_array().cloned().unwrap_or_default();
    let verdicts = recent["verdicts"].as_array().cloned().unwrap_or_default();
    let rows = boots.iter().zip(&verdicts).map(|(boot, verdict)| {
        let name = boot["mac"].as_str().or(boot["uuid"].as_str()).unwrap_or("-");
        vec![name.to_owned(), text(verdict, "stage").to_owned(), text(verdict, "sentence").to_owned()]
    });
    output::table(&["MACHINE", "STAGE", "LAST BOOT"], rows.collect());
    Ok(Exit::Fine)
}

fn write_file(file: &std::path::Path, bytes: &[u8]) -> Done {
    let written = match file.as_os_str() == "-" {
        true => std::io::stdout().lock().write_all(bytes),
        false => fs::write(file, bytes),
    };
    written.map_err(|error| Failure::new(Exit::Runtime, format!("write {}: {error}", file.display())))?;
    if file.as_os_str() != "-" {
        output::line(format!("wrote {}: open it with Wireshark, or tshark -r", file.display()));
    }
    Ok(Exit::Fine)
}

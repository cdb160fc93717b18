//! `machine list`, `show`, `set`, `approve`, `reject`, `forget`, `merge`, `split`.

use std::path::Path;

use clap::ValueEnum as _;
use serde_json::{Value, json};

use super::args::{Common, MachineNamed, MachineSet, MachineState, MachineVerb};
use super::{Done, Exit, Failure, client, listing, output};
use crate::control::client::{Client, ClientError, escaped};
use crate::jobs::machine::Ident;
use crate::wire::{MacAddr, Uuid};

pub(super) fn run(common: &Common, verb: &MachineVerb) -> Done {
    if let (MachineVerb::List { .. }, Some(folder)) = (verb, &common.state)
        && let Some(word) =
            MachineState::value_variants().iter().map(|is| is.word()).find(|w| folder == Path::new(w))
        && !folder.is_dir()
    {
        let message = format!("--state is the server's state folder; machines of one state: --is {word}");
        return Err(Failure::new(Exit::Usage, message));
    }
    let client = client(common)?;
    match verb {
        MachineVerb::List { is, group, listing } => {
            let filters = [("state", is.map(MachineState::word)), ("group", group.as_deref())];
            let query: Vec<(&str, &str)> =
                filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            return listing::show(
                *listing,
                || listing::all(&client, "/v1/machines", "machines", &query),
                draw,
            );
        }
        MachineVerb::Show(MachineNamed { machine, json }) => {
            let machine = client.get(&path(machine, ""))?;
            if *json {
                output::json(&machine);
            } else {
                show(&machine);
            }
        }
        MachineVerb::Set(set) => done(&change(&client, set)?, set.json, "set"),
        MachineVerb::Approve(MachineNamed { machine, json }) => {
            done(&client.post(&path(machine, "/approve"), &Value::Null)?, *json, "approved");
        }
        MachineVerb::Reject(MachineNamed { machine, json }) => {
            done(&client.post(&path(machine, "/reject"), &Value::Null)?, *json, "rejected");
        }
        MachineVerb::Forget(MachineNamed { machine, json }) => {
            let was = client.get(&path(machine, ""))?;
            let id = was["id"].as_str().unwrap_or(machine);
            client.delete(&path(id, ""))?;
            let rejected = was["state"] == json!("rejected");
            match json {
                true => output::json(&json!({ "forgotten": machine, "was_rejected": rejected })),
                false => output::line(format!("forgot {}", output::plain(machine))),
            }
            if rejected {
                output::remark(
                    "warning: it was rejected, and that is forgotten too: from now on it is an unknown machine",
                );
            }
        }
        MachineVerb::Merge { machine, other, why, json } => {
            let merged = client.post(&path(machine, "/merge"), &json!({ "other": other, "why": why }))?;
            done(&merged, *json, "merged into");
        }
        MachineVerb::Split { machine, part, json } => {
            done(&client.post(&path(machine, "/split"), &json!({ "part": part }))?, *json, "split off");
        }
    }
    Ok(Exit::Fine)
}

fn path(machine: &str, rest: &str) -> String {
    format!("/v1/machines/{}{rest}", escaped(machine))
}

/// Changes a machine on record; an address or UUID that is not on record becomes one.
fn change(client: &Client, set: &MachineSet) -> Result<Value, ClientError> {
    let named: Option<Ident> = match (set.machine.parse::<MacAddr>(), set.machine.parse::<Uuid>()) {
        (Ok(mac), _) => Some(Ident::Mac(mac)),
        (_, Ok(uuid)) => Some(Ident::Uuid(uuid)),
        _ => None,
    };
    let macs = set.mac.iter().copied().map(Ident::Mac);
    let uuid = set.uuid.map(Ident::Uuid);
    let serial = set.serial.clone().map(Ident::Serial);
    let asset = set.asset.clone().map(Ident::Asset);
    let idents: Vec<Ident> = macs.chain(uuid).chain(serial).chain(asset).collect();
    let mut spec = json!({ "idents": idents });
    if let Some(name) = &set.name {
        spec["name"] = json!(name);
    }
    if let Some(loader) = &set.loader {
        spec["loader"] = json!(loader);
    }
    if !set.group.is_empty() || set.no_group {
        spec["groups"] = json!(set.group);
    }
    match (client.patch(&path(&set.machine, ""), &spec), named) {
        (Err(ClientError::Refused { status: 404, .. }), Some(named)) => {
            let all: Vec<Ident> = std::iter::once(named).chain(idents).collect();
            spec["idents"] = json!(all);
            client.post("/v1/machines", &spec)
        }
        (answer, _) => answer,
    }
}

fn idents(list: &Value) -> String {
    let one = |ident: &Value| {
        let pairs = ident.as_object().into_iter().flatten();
        pairs
            .map(|(kind, value)| format!("{kind} {}", value.as_str().unwrap_or_default()))
            .collect::<String>()
    };
    list.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(", ")
}

fn groups(machine: &Value) -> String {
    let parts = machine["parts"].as_array().into_iter().flatten();
    let mut groups: Vec<&str> = parts
        .flat_map(|part| part["groups"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups.join(" ")
}

fn draw(list: &Value) {
    let machines = list["machines"].as_array().map(Vec::as_slice).unwrap_or_default();
    if machines.is_empty() {
        return output::line(
            "no machines on record: none has asked for a script yet, and none was registered",
        );
    }
    let rows = machines
        .iter()
        .map(|machine| {
            let text = |key: &str| machine[key].as_str().unwrap_or_default().to_owned();
            let parts = machine["parts"].as_array().into_iter().flatten();
            let known: Vec<String> = parts.map(|part| idents(&part["idents"])).collect();
            vec![
                text("id"),
                text("name"),
                text("state"),
                groups(machine),
                output::moment(machine["last_seen"].as_u64().unwrap_or(0)),
                known.join(", "),
            ]
        })
        .collect();
    output::table(&["MACHINE", "NAME", "STATE", "GROUPS", "LAST SEEN", "IDENTITIES"], rows);
}

fn show(machine: &Value) {
    let text = |value: &Value| output::plain(value.as_str().unwrap_or_default());
    let when = |key: &str| output::moment(machine[key].as_u64().unwrap_or(0));
    let name = text(&machine["name"]);
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    let known = if machine["registered"] == json!(true) { "registered" } else { "seen, not registered" };
    output::line(format!("{}{name}: {}, {known}", text(&machine["id"]), text(&machine["state"])));
    output::line(format!("first seen {}, last seen {}", when("first_seen"), when("last_seen")));
    let loader = text(&machine["loader"]);
    if !loader.is_empty() {
        output::line(format!("loader {loader}"));
    }
    for part in machine["parts"].as_array().into_iter().flatten() {
        let groups: Vec<&str> =
            part["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let groups =
            if groups.is_empty() { "no group".into() } else { format!("groups {}", groups.join(" ")) };
        let merged = match part["merged"].as_object() {
            Some(_) => {
                let merged = &part["merged"];
                let at = output::moment(merged["at"].as_u64().unwrap_or(0));
                format!("; merged {at} by {}: {}", text(&merged["by"]), text(&merged["why"]))
            }
            None => String::new(),
        };
        output::line(output::plain(&format!(
            "part {}: {}; {groups}; {}{merged}",
            text(&part["id"]),
            idents(&part["idents"]),
            text(&part["state"])
        )));
    }
    let suggested = idents(&machine["suggested"]);
    if !suggested.is_empty() {
        output::line(output::plain(&format!(
            "seen beside these, which proves nothing: {suggested}; `bootstorm machine set` or `merge` says that they \
             belong together"
        )));
    }
}

fn done(machine: &Value, as_json: bool, what: &str) {
    if as_json {
        return output::json(machine);
    }
    let text = |value: &Value| output::plain(value.as_str().unwrap_or_default());
    let parts = machine["parts"].as_array().into_iter().flatten();
    let known: Vec<String> = parts.map(|part| idents(&part["idents"])).collect();
    output::line(output::plain(&format!(
        "{what} {}: {}, {}",
        text(&machine["id"]),
        text(&machine["state"]),
        known.join(", ")
    )));
}

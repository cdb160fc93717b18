//! `loader list` and `loader show`: what the loader folders hold, which machines get what, and what will not work.

use serde_json::{Value, json};

use super::args::{Common, LoaderVerb};
use super::serve::library_settings;
use super::{Done, Exit, Failure, load_config, output};
use crate::files::library;
use crate::files::loader_facts::{self, Chain, Facts};
use crate::files::loaders::{Loader, family_of_name};
use crate::wire::arch::Family;

pub(super) fn run(common: &Common, verb: &LoaderVerb) -> Done {
    let plan = load_config(common, &[])?.plan;
    let table = &library::loaders(&library_settings(&plan), None);
    let chains: Vec<Chain> =
        Family::ALL.into_iter().map(|family| loader_facts::chain(table, family, false)).collect();
    match verb {
        LoaderVerb::List { json } => {
            // Option ROMs of network cards lie in the same folder of Debian's package, and nobody loads them from here.
            let loaders: Vec<(&Loader, Value)> = table
                .list()
                .into_iter()
                .filter(|loader| !loader.served.name.to_lowercase().ends_with(".rom"))
                .map(|loader| (loader, document(loader, &chains)))
                .collect();
            if *json {
                let loaders: Vec<&Value> = loaders.iter().map(|(_, document)| document).collect();
                output::json(&json!({ "loaders": loaders, "families": chains }));
                return Ok(Exit::Fine);
            }
            if loaders.is_empty() {
                let dirs: Vec<_> = plan.loaders.dirs.iter().map(|dir| dir.display().to_string()).collect();
                output::line(format!("no loaders in {}", dirs.join(", ")));
            } else {
                let rows = loaders.iter().map(|(_, document)| row(document)).collect();
                output::table(
                    &["LOADER", "WHAT", "VERSION", "BUILT FOR", "OFFERED TO", "FEATURES", "SIGNED BY"],
                    rows,
                );
            }
            for warning in chains.iter().flat_map(|chain| &chain.warnings) {
                output::line(format!("warning: {}", output::plain(warning)));
            }
            Ok(Exit::Fine)
        }
        LoaderVerb::Show { name, json } => {
            let loader = table.find(name).ok_or_else(|| {
                let message = format!(
                    "there is no loader {name:?} in the loader folders; `bootstorm loader list` shows the ones there are"
                );
                Failure::new(Exit::Wrong, message)
            })?;
            let document = document(loader, &chains);
            if *json {
                output::json(&document);
            } else {
                show(loader, &document, &chains);
            }
            Ok(Exit::Fine)
        }
    }
}

/// A loader with what is known of it.
fn document(loader: &Loader, chains: &[Chain]) -> Value {
    let name = &loader.served.name;
    let offered: Vec<&str> = chains
        .iter()
        .filter(|chain| chain.first.as_ref() == Some(name))
        .map(|chain| chain.family.word())
        .collect();
    let facts = loader_facts::read(loader.served.path());
    let mut document = match &facts {
        Ok(facts) => serde_json::to_value(facts).unwrap_or_default(),
        Err(error) => json!({ "what": "other", "len": loader.served.len, "error": error.to_string() }),
    };
    document["name"] = json!(name);
    document["offered_to"] = json!(offered);
    document["built_for"] = json!(built_for(loader, facts.as_ref().ok()));
    document["path"] = json!(loader.served.path());
    document
}

fn built_for(loader: &Loader, facts: Option<&Facts>) -> String {
    let efi = facts.and_then(|facts| facts.cpu);
    if loader.sniff.bzimage.is_some() && efi.is_some() {
        return "bios, uefi".into();
    }
    match efi {
        Some(cpu) => {
            let family = Family::ALL.into_iter().find(|family| family.cpu() == Some(cpu));
            family.map_or("uefi, another processor", Family::word).to_owned()
        }
        None if family_of_name(&loader.served.name) == Some(Family::Bios)
            || loader.sniff.bzimage.is_some() =>
        {
            "bios".into()
        }
        None => "-".into(),
    }
}

fn row(document: &Value) -> Vec<String> {
    let text = |key: &str| document[key].as_str().unwrap_or("-").to_owned();
    let list = |key: &str| {
        let list: Vec<&str> =
            document[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if list.is_empty() { "-".to_owned() } else { list.join(" ") }
    };
    let features = if document["features"].is_null() { "?".to_owned() } else { list("features") };
    let signed: Vec<&str> =
        document["signed_by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let signed = if signed.is_empty() { "-".to_owned() } else { signed.join("; ") };
    let features = if document["what"] == "ipxe" { features } else { "-".to_owned() };
    vec![text("name"), text("what"), text("version"), text("built_for"), list("offered_to"), features, signed]
}

fn show(loader: &Loader, document: &Value, chains: &[Chain]) {
    let cells = row(document);
    let [name, what, version, built_for, offered, features, signed] = cells.as_slice() else { return };
    output::line(format!("{name}: {what} {version}"));
    output::line(format!("file {}", loader.served.path().display()));
    output::line(format!("built for {built_for}, {}", output::bytes(loader.served.len)));
    output::line(format!("blake3 {}", document["blake3"].as_str().unwrap_or("-")));
    match document["known"].as_str() {
        Some(known) => output::line(format!("known by its hash: {known}")),
        None => output::line("not known by its hash: what is said of it is read from the file"),
    }
    output::line(format!(
        "features {}",
        if features == "?" { "not shown by the file (compressed)" } else { features }
    ));
    output::line(format!("signed by {}", output::plain(signed)));
    output::line(format!("offered to {offered}"));
    for chain in chains.iter().filter(|chain| chain.first.as_ref() == Some(&loader.served.name)) {
        if let Some(next) = &chain.next {
            output::line(format!("{} machines load {next} after it", chain.family.word()));
        }
        for warning in &chain.warnings {
            output::line(format!("warning: {}", output::plain(warning)));
        }
    }
}

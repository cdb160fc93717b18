//! `config check`, `config show`, `config example`, `config reload`.

use serde_json::json;

use super::args::{Common, ConfigVerb};
use super::{Done, Exit, Failure, client, load_config, output, standing};
use crate::config::{DEFAULT_FILE, EXAMPLE, Origin, Problems, Value};

pub(super) fn run(common: &Common, verb: &ConfigVerb) -> Done {
    match verb {
        ConfigVerb::Example => {
            output::line(EXAMPLE);
            Ok(Exit::Fine)
        }
        ConfigVerb::Check { file, json } => {
            let common = Common { config: file.clone().or_else(|| common.config.clone()), ..common.clone() };
            match load_config(&common, &[]) {
                Ok(loaded) => {
                    let found = standing::look(&loaded);
                    let mut warnings = loaded.plan.warnings.clone();
                    warnings.extend(found.warnings);
                    if *json {
                        let ok = found.problems.is_empty();
                        output::json(&json!({
                            "ok": ok, "problems": found.problems, "warnings": warnings, "notes": loaded.plan.notes
                        }));
                        return Ok(if ok { Exit::Fine } else { Exit::Config });
                    }
                    for warning in &warnings {
                        output::line(output::plain(&format!("warning: {warning}")));
                    }
                    if !found.problems.is_empty() {
                        return Err(Problems(found.problems).into());
                    }
                    if common.config.is_none() && !std::path::Path::new(DEFAULT_FILE).exists() {
                        output::line(format!(
                            "note: no file was read: there is no {DEFAULT_FILE}, so these are defaults"
                        ));
                    }
                    for note in &loaded.plan.notes {
                        output::line(output::plain(&format!("note: {note}")));
                    }
                    output::line(match warnings.is_empty() {
                        true => "the configuration is fine",
                        false => "the configuration can be served with; look at the warnings",
                    });
                    Ok(Exit::Fine)
                }
                Err(problems) if *json => {
                    output::json(
                        &json!({ "ok": false, "problems": problems.0, "warnings": [], "notes": [] }),
                    );
                    Ok(Exit::Config)
                }
                Err(problems) => Err(Failure::from(problems)),
            }
        }
        ConfigVerb::Reload { json } => {
            let done = client(common)?.post("/v1/config/reload", &json!({}))?;
            let changed: Vec<&str> =
                done["changed"].as_array().into_iter().flatten().filter_map(|table| table.as_str()).collect();
            output::notes(&done["warnings"]);
            if *json {
                output::json(&done);
            } else if changed.is_empty() {
                output::line("read again: nothing changed");
            } else {
                output::line(format!("reloaded: {}", changed.join(", ")));
            }
            Ok(Exit::Fine)
        }
        ConfigVerb::Show { effective, json } => {
            let loaded = load_config(common, &[])?;
            let keys = loaded.effective.iter().map(|(path, entry)| (*path, entry));
            let shown = keys
                .filter(|(_, entry)| *effective || entry.origin != Origin::Default)
                .chain(loaded.listed.iter().map(|(path, entry)| (path.as_str(), entry)));
            if *json {
                let keys: Vec<_> = shown
                    .map(|(path, entry)| json!({ "key": path, "value": value(&entry.value), "origin": entry.origin }))
                    .collect();
                output::json(&json!({ "keys": keys }));
            } else if !*effective
                && loaded.listed.is_empty()
                && loaded.effective.iter().all(|(_, entry)| entry.origin == Origin::Default)
            {
                output::line("nothing is set: every key has its default; --effective shows them all");
            } else {
                let rows = shown
                    .map(|(path, entry)| {
                        vec![path.to_owned(), entry.value.to_string(), entry.origin.to_string()]
                    })
                    .collect();
                output::table(&["KEY", "VALUE", "FROM"], rows);
            }
            Ok(Exit::Fine)
        }
    }
}

fn value(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => json!(text),
        Value::Integer(number) => json!(number),
        Value::Bool(flag) => json!(flag),
        Value::List(list) => json!(list),
        Value::Other(word) => json!(word),
    }
}

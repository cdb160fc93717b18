//! `config check`, `config show`, `config example`, `config reload`.

use serde_json::json;

use super::args::{Common, ConfigVerb};
use super::{Done, Exit, Failure, client, load_config, output};
use crate::config::{EXAMPLE, Origin, Value};

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
                    if *json {
                        output::json(&json!({ "ok": true, "problems": [], "notes": loaded.plan.notes }));
                    } else {
                        for note in &loaded.plan.notes {
                            output::line(format!("note: {note}"));
                        }
                        output::line("the configuration is fine");
                    }
                    Ok(Exit::Fine)
                }
                Err(problems) if *json => {
                    output::json(&json!({ "ok": false, "problems": problems.0 }));
                    Ok(Exit::Config)
                }
                Err(problems) => Err(Failure::from(problems)),
            }
        }
        ConfigVerb::Reload { json } => {
            let done = client(common)?.post("/v1/config/reload", &json!({}))?;
            let changed: Vec<&str> =
                done["changed"].as_array().into_iter().flatten().filter_map(|table| table.as_str()).collect();
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
            let shown =
                loaded.effective.iter().filter(|(_, entry)| *effective || entry.origin != Origin::Default);
            if *json {
                let keys: Vec<_> = shown
                    .map(|(path, entry)| json!({ "key": path, "value": value(&entry.value), "origin": entry.origin }))
                    .collect();
                output::json(&json!({ "keys": keys }));
            } else {
                let rows = shown
                    .map(|(path, entry)| {
                        vec![(*path).to_owned(), entry.value.to_string(), entry.origin.to_string()]
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

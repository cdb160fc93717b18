//! `token add`, `list`, `revoke`.

use serde_json::{Value, json};

use super::args::{Common, TokenVerb};
use super::{Done, Exit, client, listing, output};
use crate::control::client::escaped;

pub(super) fn run(common: &Common, verb: &TokenVerb) -> Done {
    let client = client(common)?;
    match verb {
        TokenVerb::Add { role, name, expires, json } => {
            let token =
                client.post("/v1/tokens", &json!({ "name": name, "role": role, "expires": expires }))?;
            if *json {
                output::json(&token);
            } else {
                output::remark("this token is shown only now; the server keeps no more than its hash");
                output::line(token["token"].as_str().unwrap_or_default());
            }
            Ok(Exit::Fine)
        }
        TokenVerb::List { listing } => listing::show(*listing, || client.get("/v1/tokens"), draw),
        TokenVerb::Revoke { id, json } => {
            let token = client.delete(&format!("/v1/tokens/{}", escaped(id)))?;
            if *json {
                output::json(&token);
            } else {
                let text = |key: &str| output::plain(token[key].as_str().unwrap_or_default());
                output::line(format!("revoked {} ({}, {})", text("id"), text("name"), text("role")));
            }
            Ok(Exit::Fine)
        }
    }
}

fn draw(list: &Value) {
    let tokens = list["tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    if tokens.is_empty() {
        return output::line("no tokens; `bootstorm token add --role operate --name NAME` makes one");
    }
    let when = |value: &Value, none: &str| value.as_u64().map_or_else(|| none.to_owned(), output::moment);
    let rows = tokens
        .iter()
        .map(|token| {
            let text = |key: &str| token[key].as_str().unwrap_or_default().to_owned();
            let expires = match token["expired"].as_bool() {
                Some(true) => "expired".into(),
                _ => when(&token["expires"], "never"),
            };
            vec![
                text("id"),
                text("name"),
                text("role"),
                when(&token["created"], "-"),
                expires,
                when(&token["last_used"], "never"),
            ]
        })
        .collect();
    output::table(&["TOKEN", "NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"], rows);
}

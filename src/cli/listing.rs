//! Lists: all pages of them, and watching them change.

use std::time::Duration;

use serde_json::{Value, json};

use super::args::Listing;
use super::{Done, Exit, output};
use crate::control::client::{Client, ClientError, escaped};

/// How often a watched list is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Every row of a list, page by page.
pub(super) fn all(
    client: &Client,
    path: &str,
    key: &str,
    query: &[(&str, &str)],
) -> Result<Value, ClientError> {
    let mut rows = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut url = format!("{path}?limit=1000");
        for (name, value) in query.iter().copied().chain(after.as_deref().map(|after| ("after", after))) {
            url.push_str(&format!("&{name}={}", escaped(value)));
        }
        let mut page = client.get(&url)?;
        if let Some(more) = page[key].as_array_mut() {
            rows.append(more);
        }
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return Ok(json!({ key: rows })),
        }
    }
}

/// Shows a list once, or again and again.
pub(super) fn show(
    listing: Listing,
    mut fetch: impl FnMut() -> Result<Value, ClientError>,
    draw: impl Fn(&Value),
) -> Done {
    let mut shown: Option<Value> = None;
    loop {
        let list = fetch()?;
        if shown.as_ref() != Some(&list) {
            if listing.watch && !listing.json && output::is_terminal() {
                output::clear();
            }
            if listing.json {
                output::json(&list);
            } else {
                draw(&list);
            }
            shown = Some(list);
        }
        if !listing.watch {
            return Ok(Exit::Fine);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

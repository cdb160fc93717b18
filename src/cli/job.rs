//! `job add`, `list`, `show`, `rearm`, `cancel`: through the running server.

use serde_json::{Value, json};

use super::args::{Common, JobAction, JobAdd, JobVerb};
use super::{Done, Exit, Failure, client, output};
use crate::jobs::job::{Action, JobSpec, Selector};

pub(super) fn run(common: &Common, verb: &JobVerb) -> Done {
    let client = client(common)?;
    match verb {
        JobVerb::Add(add) => {
            let spec =
                serde_json::to_value(spec(add)?).map_err(|error| Failure::new(Exit::Runtime, error))?;
            let job = client.post("/v1/jobs", &spec)?;
            show(&job, add.json, "added");
        }
        JobVerb::List { json: true } => output::json(&client.get("/v1/jobs")?),
        JobVerb::List { json: false } => {
            let answer = client.get("/v1/jobs")?;
            let rows = answer["jobs"].as_array().into_iter().flatten().map(row).collect();
            output::table(&["JOB", "STAGE", "WHAT", "FOR", "MODE", "ATTEMPTS"], rows);
        }
        JobVerb::Show { id, json } => show(&client.get(&format!("/v1/jobs/{id}"))?, *json, ""),
        JobVerb::Rearm { id, json } => {
            show(&client.post(&format!("/v1/jobs/{id}/rearm"), &json!({}))?, *json, "re-armed");
        }
        JobVerb::Cancel { id, json } => show(&client.delete(&format!("/v1/jobs/{id}"))?, *json, "cancelled"),
    }
    Ok(Exit::Fine)
}

fn spec(add: &JobAdd) -> Result<JobSpec, Failure> {
    let action = match (&add.image_name, &add.image, add.action) {
        (Some(name), ..) | (None, Some(name), _) => Action::Image(name.clone()),
        (.., Some(JobAction::Local)) => Action::Local,
        (.., Some(JobAction::Menu)) => Action::Menu,
        (.., Some(JobAction::Wait)) => Action::Wait,
        (.., Some(JobAction::Shell)) => Action::Shell,
        (None, None, None) => return Err(Failure::new(Exit::Usage, "name an image or an --action")),
    };
    let selector = match add {
        JobAdd { mac: Some(mac), .. } => Selector::Mac(*mac),
        JobAdd { uuid: Some(uuid), .. } => Selector::Uuid(*uuid),
        JobAdd { serial: Some(serial), .. } => Selector::Serial(serial.clone()),
        JobAdd { asset: Some(asset), .. } => Selector::Asset(asset.clone()),
        _ => Selector::Any,
    };
    let expires = match &add.expires {
        None => None,
        Some(text) => Some(crate::config::values::duration(text).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                format!("--expires {text:?}: expected a time such as 90s, 30m, 12h or 7d"),
            )
        })?),
    };
    Ok(JobSpec {
        always: add.always,
        attempts: add.attempts,
        expires,
        priority: add.priority,
        replace: add.replace,
        allow_rule: add.allow_rule,
        ..JobSpec::new(action, selector)
    })
}

fn what(job: &Value) -> String {
    match &job["action"] {
        Value::String(word) => word.clone(),
        action => format!("image {}", action["image"].as_str().unwrap_or_default()),
    }
}

fn whom(job: &Value) -> String {
    match &job["selector"] {
        Value::Object(selector) => selector
            .iter()
            .map(|(kind, value)| format!("{kind} {}", value.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(" "),
        selector => selector.as_str().unwrap_or_default().to_owned(),
    }
}

fn row(job: &Value) -> Vec<String> {
    let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
    let mode = if job["always"] == json!(true) { "always" } else { "once" };
    vec![
        text("id"),
        text("stage"),
        what(job),
        whom(job),
        mode.into(),
        format!("{}/{}", job["attempts_used"], job["attempts"]),
    ]
}

fn show(job: &Value, as_json: bool, done: &str) {
    if as_json {
        return output::json(job);
    }
    let text = |key: &str| job[key].as_str().unwrap_or_default();
    let mut line = format!("{} {}: {} for {}", text("id"), text("stage"), what(job), whom(job));
    if !done.is_empty() {
        line = format!("{done} {line}");
    }
    if !text("reason").is_empty() {
        line.push_str(&format!(" ({})", text("reason")));
    }
    output::line(line);
}

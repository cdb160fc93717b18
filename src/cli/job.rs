//! `job add`, `list`, `show`, `cancel`, `rearm`, `confirm`: through the running server.

use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use super::args::{Common, ConfirmBy, JobAction, JobAdd, JobNamed, JobRearm, JobVerb};
use super::{Done, Exit, Failure, client, listing, output};
use crate::config::values::duration;
use crate::control::client::{Client, ClientError, escaped};
use crate::control::csv;
use crate::jobs::job::{Action, Confirm, JobId, JobSpec, Selector};
use crate::jobs::rule::Rule;
use crate::wire::Arch;

pub(super) fn run(common: &Common, verb: &JobVerb) -> Done {
    let client = client(common)?;
    match verb {
        JobVerb::Add(add) => match &add.csv {
            Some(file) => return add_all(&client, add, file),
            None => {
                let actions = actions(add);
                if actions.is_empty() {
                    return Err(Failure::new(Exit::Usage, "name an image or an --action"));
                }
                let spec = spec(add, &actions, selector(add)?)?;
                let spec = serde_json::to_value(spec).map_err(|error| Failure::new(Exit::Runtime, error))?;
                show(&client.post("/v1/jobs", &spec)?, add.json, "added");
            }
        },
        JobVerb::List { stage, image, machine, live, listing } => {
            let live = live.then_some("true");
            let stages: Vec<&str> = stage.iter().map(|stage| stage.word()).collect();
            let stages = Some(stages.join(",")).filter(|stages| !stages.is_empty());
            let filters = [
                ("stage", stages.as_deref()),
                ("image", image.as_deref()),
                ("machine", machine.as_deref()),
                ("live", live),
            ];
            let query: Vec<(&str, &str)> =
                filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            return listing::show(*listing, || listing::all(&client, "/v1/jobs", "jobs", &query), draw);
        }
        JobVerb::Show(JobNamed { id, json }) => show_whole(&client, *id, *json)?,
        JobVerb::Cancel(JobNamed { id, json }) => show(&client.delete(&path(*id, ""))?, *json, "cancelled"),
        JobVerb::Rearm(JobRearm { id, machine: Some(machine), json, .. }) => {
            give_again(&client, *id, machine, *json)?;
        }
        JobVerb::Rearm(JobRearm { id, machine: None, all, json }) => {
            // Re-arming forgets them.
            let had_it = claims(&client, *id)?.iter().filter(|claim| has_started(claim)).count();
            let path = path(*id, if *all { "/rearm?all=true" } else { "/rearm" });
            show(&client.post(&path, &Value::Null)?, *json, "re-armed");
            if had_it > 0 && !json {
                output::line(format!("machines that had it and get it once more: {had_it}"));
            }
        }
        JobVerb::Confirm(JobNamed { id, json }) => {
            show(&client.post(&path(*id, "/confirm"), &Value::Null)?, *json, "confirmed");
        }
    }
    Ok(Exit::Fine)
}

fn path(id: JobId, rest: &str) -> String {
    format!("/v1/jobs/{id}{rest}")
}

/// What to boot: an action, or images of which the first is booted first.
fn actions(add: &JobAdd) -> Vec<Action> {
    let word = add.action.map(|action| match action {
        JobAction::Local => Action::Local,
        JobAction::Menu => Action::Menu,
        JobAction::Wait => Action::Wait,
        JobAction::Shell => Action::Shell,
    });
    let images = add.image_name.iter().chain(&add.image).cloned().map(Action::Image);
    word.into_iter().chain(images).collect()
}

fn selector(add: &JobAdd) -> Result<Selector, Failure> {
    let rule = Rule {
        any_unknown: add.any_unknown,
        group: add.group.clone(),
        subnet: add.subnet,
        circuit: add.circuit.clone(),
        arch: add.arch.iter().copied().map(Arch).collect::<Vec<_>>(),
        manufacturer: add.manufacturer.clone(),
        product: add.product.clone(),
    };
    Ok(match add {
        JobAdd { mac: Some(mac), .. } => Selector::Mac(*mac),
        JobAdd { uuid: Some(uuid), .. } => Selector::Uuid(*uuid),
        JobAdd { serial: Some(serial), .. } => Selector::Serial(serial.clone()),
        JobAdd { asset: Some(asset), .. } => Selector::Asset(asset.clone()),
        JobAdd { any: true, .. } => Selector::Any,
        _ if rule.is_any() => {
            return Err(Failure::new(Exit::Usage, "name a machine, or a rule such as --subnet"));
        }
        _ => Selector::Rule(Box::new(rule)),
    })
}

fn spec(add: &JobAdd, actions: &[Action], selector: Selector) -> Result<JobSpec, Failure> {
    let span = |flag: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => duration(text).filter(|span| !span.is_zero()).map(Some).ok_or_else(|| {
            let message = format!("{flag} {text:?}: expected a time above 0s, such as 90s, 30m, 12h or 7d");
            Failure::new(Exit::Usage, message)
        }),
    };
    Ok(JobSpec {
        always: add.always,
        attempts: add.attempts,
        expires: span("--expires", &add.expires)?,
        window: span("--window", &add.window)?,
        priority: add.priority,
        replace: add.replace,
        queue: add.then,
        then: actions.iter().skip(1).cloned().collect(),
        confirm: match add.confirm {
            ConfirmBy::Image => Confirm::Image,
            ConfirmBy::Callback => Confirm::Callback,
        },
        allow_rule: add.allow_rule,
        ..JobSpec::new(actions.first().cloned().unwrap_or(Action::Local), selector)
    })
}

/// A file of jobs: read here, so that what is wrong is named by its line, then added as one order.
fn add_all(client: &Client, add: &JobAdd, file: &Path) -> Done {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        false => std::fs::read_to_string(file).map(|read| text = read),
    };
    read.map_err(|error| Failure::new(Exit::Wrong, format!("read {}: {error}", file.display())))?;
    // What the flags say stands in for what a row leaves out; whom a job is for only the row can say.
    let actions = actions(add);
    let anybody = spec(add, &actions, Selector::Any)?;
    let mut defaults = serde_json::to_value(anybody).map_err(|error| Failure::new(Exit::Runtime, error))?;
    if let Some(defaults) = defaults.as_object_mut() {
        defaults.remove("selector");
        if actions.is_empty() {
            defaults.remove("action");
        }
    }
    let specs = csv::jobs(&text, &defaults).map_err(|rows| {
        let lines: Vec<String> =
            rows.iter().map(|row| format!("{}:{}: {}", file.display(), row.row, row.detail)).collect();
        Failure::new(Exit::Wrong, format!("{}\nnothing was added", lines.join("\n")))
    })?;
    let (lines, specs): (Vec<u64>, Vec<JobSpec>) = specs.into_iter().unzip();
    let answer = match client.post("/v1/jobs/bulk", &json!({ "jobs": specs, "lines": lines })) {
        Ok(answer) => answer,
        Err(ClientError::Refused { problem, .. }) if problem["errors"].is_array() => {
            let errors = problem["errors"].as_array().into_iter().flatten();
            let mut lines: Vec<String> = errors
                .map(|row| {
                    format!(
                        "{}:{}: {}",
                        file.display(),
                        row["row"],
                        row["detail"].as_str().unwrap_or_default()
                    )
                })
                .collect();
            let more = problem["errors_total"].as_u64().unwrap_or(0).saturating_sub(lines.len() as u64);
            if more > 0 {
                lines.push(format!("and {more} more"));
            }
            lines.push("nothing was added".into());
            return Err(Failure::new(Exit::Wrong, output::plain_lines(&lines)));
        }
        Err(error @ ClientError::Refused { .. }) => {
            return Err(Failure { message: format!("{}: {error}", file.display()), ..Failure::from(error) });
        }
        Err(error) => return Err(error.into()),
    };
    if add.json {
        output::json(&answer);
    } else {
        let ids = answer["ids"].as_array().map(Vec::as_slice).unwrap_or_default();
        let end = |id: Option<&Value>| id.and_then(Value::as_str).unwrap_or_default().to_owned();
        output::line(format!("added {} jobs, {} to {}", answer["added"], end(ids.first()), end(ids.last())));
    }
    Ok(Exit::Fine)
}

fn what(action: &Value) -> String {
    match action {
        Value::String(word) => word.clone(),
        action => format!("image {}", action["image"].as_str().unwrap_or_default()),
    }
}

fn whom(job: &Value) -> String {
    let one = |(kind, value): (&String, &Value)| match value {
        Value::Object(rule) => {
            let conditions: Vec<String> = rule.iter().map(|(name, value)| condition(name, value)).collect();
            if conditions.is_empty() { "any".into() } else { conditions.join(", ") }
        }
        value => format!("{kind} {}", value.as_str().unwrap_or_default()),
    };
    match &job["selector"] {
        Value::Object(selector) => selector.iter().map(one).collect(),
        selector => selector.as_str().unwrap_or_default().to_owned(),
    }
}

fn condition(name: &str, value: &Value) -> String {
    match value {
        Value::Bool(_) => name.replace('_', " "),
        Value::Array(list) => {
            let words: Vec<String> = list.iter().map(Value::to_string).collect();
            format!("{name} {}", words.join(","))
        }
        value => format!("{name} {}", value.as_str().unwrap_or_default()),
    }
}

/// All images of a sequence, the one it is at in brackets.
fn course(job: &Value) -> String {
    let steps = job["sequence"].as_array().map(Vec::as_slice).unwrap_or_default();
    if steps.is_empty() {
        return what(&job["action"]);
    }
    let at = job["step"].as_u64().unwrap_or(0);
    let shown = (0u64..).zip(steps).map(|(index, step)| {
        let step = what(step);
        if index == at { format!("[{step}]") } else { step }
    });
    shown.collect::<Vec<_>>().join(", then ")
}

fn draw(list: &Value) {
    let jobs = list["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if jobs.is_empty() {
        return output::line("no such jobs; `bootstorm job add IMAGE --mac MAC` makes one");
    }
    let rows = jobs
        .iter()
        .map(|job| {
            let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
            let mode = if job["always"] == json!(true) { "always" } else { "once" };
            vec![
                text("id"),
                text("stage"),
                course(job),
                whom(job),
                mode.into(),
                format!("{}/{}", job["attempts_used"], job["attempts"]),
            ]
        })
        .collect();
    output::table(&["JOB", "STAGE", "WHAT", "FOR", "MODE", "ATTEMPTS"], rows);
}

fn show(job: &Value, as_json: bool, done: &str) {
    if as_json {
        return output::json(job);
    }
    let text = |key: &str| job[key].as_str().unwrap_or_default();
    let mut line = format!("{} {}: {} for {}", text("id"), text("stage"), course(job), whom(job));
    if !done.is_empty() {
        line = format!("{done} {line}");
    }
    if !text("reason").is_empty() {
        line.push_str(&format!(" ({})", text("reason")));
    }
    output::line(output::plain(&line));
    let replaced: Vec<&str> =
        job["replaced"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !replaced.is_empty() {
        output::line(output::plain(&format!("cancelled by this: {}", replaced.join(", "))));
    }
}

/// How a job goes on and ends, and when it was touched.
fn terms(job: &Value) -> Vec<String> {
    let mode = if job["always"] == json!(true) { "at every boot" } else { "once" };
    let ends = match job["confirm"].as_str() {
        Some("callback") => "a call-back of what it booted ends a boot well",
        _ => "handing the image over ends a boot well",
    };
    let wipes = if job["destructive"] == json!(true) { "; it may wipe a disk" } else { "" };
    let mut lines = vec![
        format!(
            "{mode}; {} of {} attempts used; priority {}; {ends}{wipes}",
            job["attempts_used"], job["attempts"], job["priority"]
        ),
        format!("armed {}, last touched {}", moment(&job["created"]), moment(&job["updated"])),
    ];
    if let Some(expires) = job["expires"].as_str() {
        let lasts = duration(expires).map_or(0, |lasts| lasts.as_secs());
        let at = ["created", "step_since"].iter().filter_map(|key| job[*key].as_u64()).max();
        let at = at.unwrap_or(0).saturating_add(lasts);
        lines.push(format!("expires {} unless a machine has taken it by then", output::moment(at)));
    }
    if let Some(boot) = job["boot"].as_str() {
        lines.push(format!("last boot {boot}"));
    }
    lines
}

fn moment(unix: &Value) -> String {
    output::moment(unix.as_u64().unwrap_or(0))
}

fn is_rule(job: &Value) -> bool {
    job["selector"] == json!("any") || job["selector"].get("rule").is_some()
}

/// How far a rule's job has come with each machine that took it; of any other job there is nothing.
fn claims(client: &Client, id: JobId) -> Result<Vec<Value>, ClientError> {
    let mut answer = client.get(&path(id, "/claims"))?;
    Ok(answer["claims"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// Whether a machine's boot has passed the point of no return.
fn has_started(claim: &Value) -> bool {
    !claim["passed"].is_null()
}

/// Gives one machine a rule's job once more.
fn give_again(client: &Client, id: JobId, machine: &str, as_json: bool) -> Result<(), Failure> {
    // By what is on record of it too; a machine that is on record nowhere may have a claim all the same.
    let record = client.get(&format!("/v1/machines/{}", escaped(machine))).unwrap_or_default();
    let is_it = |claim: &Value| {
        let named = |value: &Value| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(machine));
        let idents = claim["idents"].as_array().into_iter().flatten();
        let shown = idents.filter_map(Value::as_object).flat_map(|ident| ident.values());
        let on_record = record["id"].is_string() && record["id"] == claim["machine"];
        on_record || named(&claim["machine"]) || named(&claim["id"]) || shown.into_iter().any(named)
    };
    let all = claims(client, id)?;
    let of_machine: Vec<&Value> = all.iter().filter(|claim| is_it(claim)).collect();
    if of_machine.is_empty() {
        let job = client.get(&path(id, ""))?;
        let message = match is_rule(&job) {
            true => format!("{machine} has not had {id}; bootstorm job show {id} lists who has"),
            false => format!("{id} is one machine's job: bootstorm job rearm {id}"),
        };
        return Err(Failure::new(Exit::Wrong, output::plain(&message)));
    }
    for claim in &of_machine {
        client.delete(&path(id, &format!("/claims/{}", claim["id"].as_str().unwrap_or_default())))?;
    }
    if as_json {
        output::json(&json!({ "job": id.to_string(), "rearmed": of_machine }));
    } else {
        output::line(output::plain(&format!("{machine} gets {id} once more")));
    }
    Ok(())
}

/// One job, and of a rule's job how far it has come with whom.
fn show_whole(client: &Client, id: JobId, as_json: bool) -> Result<(), ClientError> {
    let job = client.get(&path(id, ""))?;
    show(&job, as_json, "");
    if !as_json {
        terms(&job).iter().for_each(|line| output::line(output::plain(line)));
    }
    if as_json || !is_rule(&job) {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = claims(client, id)?
        .iter()
        .map(|claim| {
            let text = |key: &str| claim[key].as_str().unwrap_or_default().to_owned();
            vec![text("id"), text("machine"), text("stage"), text("reason")]
        })
        .collect();
    if rows.is_empty() {
        output::line("no machine has taken it yet");
    } else {
        output::table(&["CLAIM", "MACHINE", "STAGE", "REASON"], rows);
    }
    Ok(())
}

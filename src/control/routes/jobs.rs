//! Jobs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::super::Admin;
use super::super::auth::{Caller, Operator, Reader};
use super::super::csv::{self, ROWS_MAX};
use super::super::problem::{Problem, RowError};
use super::{Answer, Asked, Named, Text, document_of, expected, located, page_of, read_body, tagged};
use crate::jobs::book::{Moment, Refusal, replaced_by};
use crate::jobs::claim::{Claim, ClaimId};
use crate::jobs::job::{Job, JobId, JobSpec, Selector, Stage};
use crate::keeper::{Done, Order};

/// Which jobs.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct JobQuery {
    /// Stages, separated by commas, such as `armed,offered`.
    stage: Option<String>,
    /// Only jobs that boot this image, now or later in their sequence.
    image: Option<String>,
    /// Only jobs that name this machine: a MAC address, UUID, serial or asset tag.
    machine: Option<String>,
    /// Only jobs that can still give a machine a boot (true), or only the others (false).
    live: Option<bool>,
    /// The id after which the page begins: `next` of the page before.
    #[param(pattern = "^j[0-9]{1,18}$")]
    after: Option<String>,
    /// Jobs at most, 1 to 1000 (100 unless told).
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A [`JobQuery`] that makes sense.
struct Wanted {
    stages: Option<Vec<Stage>>,
    image: Option<String>,
    machine: Option<String>,
    live: Option<bool>,
}

impl Wanted {
    fn takes(&self, job: &Job) -> bool {
        let stage = self.stages.as_ref().is_none_or(|stages| stages.contains(&job.stage));
        let image = self.image.as_deref().is_none_or(|image| {
            let mut actions = std::iter::once(&job.action).chain(&job.sequence);
            actions.any(|action| action.image() == Some(image))
        });
        let machine = self.machine.as_deref().is_none_or(|text| names(&job.selector, text));
        stage && image && machine && self.live.is_none_or(|live| live == job.is_live())
    }
}

/// Whether a selector names the machine that somebody typed.
fn names(selector: &Selector, text: &str) -> bool {
    match selector {
        Selector::Mac(mac) => text.parse() == Ok(*mac),
        Selector::Uuid(uuid) => text.parse() == Ok(*uuid),
        Selector::Serial(own) | Selector::Asset(own) => own == text.trim(),
        Selector::Any | Selector::Rule(_) => false,
    }
}

fn stages(text: &str) -> Result<Vec<Stage>, Problem> {
    let stage = |word: &str| {
        Stage::ALL.into_iter().find(|stage| stage.word() == word).ok_or_else(|| {
            let all = Stage::ALL.map(Stage::word).join(", ");
            Problem::bad("not-a-stage", format!("{word:?} is no stage; the stages are {all}"))
        })
    };
    text.split(',').map(|word| stage(word.trim())).collect()
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| Problem::bad("not-a-job-id", format!("{text:?} is no job id such as j17")))
}

/// List jobs, oldest first, a page at a time.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", params(JobQuery),
    responses((status = 200, description = "A page of jobs", body = ref("#/components/schemas/JobPage"))),
    security(("token" = ["read"]))
)]
pub(super) async fn list(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<JobQuery>,
) -> Answer {
    let limit = page_of(query.limit)?;
    let after = query.after.as_deref().map(job_id).transpose()?;
    let wanted = Wanted {
        stages: query.stage.as_deref().map(stages).transpose()?,
        image: query.image,
        machine: query.machine,
        live: query.live,
    };
    let mut jobs: Vec<Arc<Job>> = admin
        .look(move |book, _| {
            let later = book.jobs().filter(|job| after.is_none_or(|after| job.id > after));
            later.filter(|job| wanted.takes(job)).take(limit + 1).cloned().collect()
        })
        .await?;
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let next = jobs.last().filter(|_| more).map(|job| job.id);
    document_of(json!({ "jobs": jobs.iter().map(|job| &**job).collect::<Vec<_>>(), "next": next })).map(Json)
}

/// Add a job.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats of this order get the first answer")),
    request_body(content = ref("#/components/schemas/JobSpec"), content_type = "application/json"),
    responses((status = 201, description = "The job, armed", body = ref("#/components/schemas/Job"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn add(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let spec = sane(read_body(&body, "not-a-job")?).map_err(|why| Problem::bad("not-a-job", why))?;
    let replaces = spec.replace;
    let job = one(admin.order(Order::AddJobs(vec![spec]), &by).await?)?;
    tracing::info!(job = %job.id, action = %job.action, selector = %job.selector, by = by.name, "job added");
    let path = format!("/v1/jobs/{}", job.id);
    let mut document = document_of(&*job)?;
    if replaces {
        let reason = replaced_by(job.id);
        let replaced = admin.look(move |book, _| {
            book.jobs().filter(|job| job.reason == reason).map(|job| job.id).collect::<Vec<_>>()
        });
        // The order is carried out: that this cannot be told in a storm makes no failure of it.
        if let Ok(replaced) = replaced.await {
            document["replaced"] = json!(replaced);
        }
    }
    Ok(located(tagged(StatusCode::CREATED, document, job.generation), &path))
}

/// Refuses texts that no machine could ever show and no folder could be called, before they are stored: identities
/// are kept to 128 bytes of what a machine sends.
fn sane(mut spec: JobSpec) -> Result<JobSpec, String> {
    const TEXT_MAX: usize = 128;
    const IMAGE_MAX: usize = 255;
    const SEQUENCE_MAX: usize = 32;
    let bad = |text: &str, max: usize| text.len() > max || text.chars().any(char::is_control);
    let texts: Vec<(&str, Option<&String>)> = match &spec.selector {
        Selector::Serial(text) => vec![("serial", Some(text))],
        Selector::Asset(text) => vec![("asset", Some(text))],
        Selector::Rule(rule) => vec![
            ("group", rule.group.as_ref()),
            ("manufacturer", rule.manufacturer.as_ref()),
            ("product", rule.product.as_ref()),
        ],
        Selector::Mac(_) | Selector::Uuid(_) | Selector::Any => Vec::new(),
    };
    let mut texts = texts.into_iter().filter_map(|(key, text)| Some((key, text?)));
    if let Some((key, _)) = texts.find(|(_, text)| bad(text, TEXT_MAX) || text.trim().is_empty()) {
        return Err(format!("{key}: expected 1 to {TEXT_MAX} bytes, without control characters"));
    }
    for (key, span) in [("expires", spec.expires), ("window", spec.window)] {
        if span.is_some_and(|span| span.is_zero()) {
            return Err(format!("{key}: expected a time above 0s"));
        }
    }
    if let Selector::Rule(rule) = &spec.selector
        && rule.arch.len() > SEQUENCE_MAX
    {
        return Err(format!("arch: up to {SEQUENCE_MAX} codes"));
    }
    if let Selector::Rule(rule) = &mut spec.selector {
        // One architecture named twice is one.
        let mut seen = Vec::new();
        rule.arch.retain(|arch| {
            !seen.contains(arch) && {
                seen.push(*arch);
                true
            }
        });
    }
    let mut actions = std::iter::once(&spec.action).chain(&spec.then);
    if spec.then.len() >= SEQUENCE_MAX
        || actions.any(|action| action.image().is_some_and(|name| bad(name, IMAGE_MAX)))
    {
        return Err(format!("up to {SEQUENCE_MAX} images, of names up to {IMAGE_MAX} bytes"));
    }
    Ok(spec)
}

fn one(done: Done) -> Result<Arc<Job>, Problem> {
    match done {
        Done::Jobs(jobs) => jobs.into_iter().next().ok_or_else(Problem::busy),
        Done::Machine(_) | Done::Nothing => Err(Problem::busy()),
    }
}

/// Jobs to add, all or none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bulk {
    jobs: Vec<Value>,
    /// The line of each job in the file it came from: what a refusal names it by.
    #[serde(default)]
    lines: Vec<u64>,
}

/// Add up to 10,000 jobs, all of them or none, from JSON or CSV.
#[utoipa::path(
    post, path = "/v1/jobs/bulk", tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats of this order get the first answer")),
    request_body(
        content((ref("#/components/schemas/Bulk") = "application/json"), (String = "text/csv")),
        description = "Jobs, or a table whose first row names columns such as image, mac, expires"
    ),
    responses((status = 201, description = "All were added", body = ref("#/components/schemas/BulkAdded"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn bulk(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Text(body): Text,
) -> Result<Response, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_csv = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/csv"));
    // Thousands of rows take a while: not on the thread that answers /healthz.
    let read = tokio::task::spawn_blocking(move || if is_csv { csv_rows(&body) } else { json_rows(&body) });
    let rows = read.await.map_err(|_| Problem::busy())??;
    let specs: Vec<JobSpec> = rows.iter().map(|(_, spec)| spec.clone()).collect();
    let done = match admin.order(Order::AddJobs(specs), &by).await {
        Ok(done) => done,
        Err(problem) if problem.status == StatusCode::SERVICE_UNAVAILABLE => return Err(problem),
        // The order's own refusal is of the first row that is wrong. Which rows are, and why, is found out on a copy.
        Err(problem) => return Err(wrong_rows(&admin, rows, &by, problem).await),
    };
    let Done::Jobs(jobs) = done else { return Err(Problem::busy()) };
    tracing::info!(jobs = jobs.len(), by = by.name, "jobs added");
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    Ok((StatusCode::CREATED, Json(document_of(json!({ "added": ids.len(), "ids": ids }))?)).into_response())
}

fn csv_rows(body: &str) -> Result<Vec<(u64, JobSpec)>, Problem> {
    let rows = csv::jobs(body, &json!({})).map_err(Problem::rows)?;
    rows_of(rows.into_iter().map(|(line, spec)| (line, Ok(spec))))
}

fn json_rows(body: &str) -> Result<Vec<(u64, JobSpec)>, Problem> {
    let bulk: Bulk = read_body(body, "not-jobs")?;
    if bulk.jobs.is_empty() || bulk.jobs.len() > ROWS_MAX {
        return Err(Problem::bad(
            "not-jobs",
            format!("expected 1 to {ROWS_MAX} jobs, found {}", bulk.jobs.len()),
        ));
    }
    if !bulk.lines.is_empty() && bulk.lines.len() != bulk.jobs.len() {
        let found = (bulk.lines.len(), bulk.jobs.len());
        return Err(Problem::bad("not-jobs", format!("lines: {} of them for {} jobs", found.0, found.1)));
    }
    let numbers: Box<dyn Iterator<Item = u64>> =
        if bulk.lines.is_empty() { Box::new(1..) } else { Box::new(bulk.lines.into_iter()) };
    let read = |job| serde_json::from_value(job).map_err(|error| error.to_string());
    rows_of(numbers.zip(bulk.jobs.into_iter().map(read)))
}

fn rows_of(
    jobs: impl Iterator<Item = (u64, Result<JobSpec, String>)>,
) -> Result<Vec<(u64, JobSpec)>, Problem> {
    let (mut specs, mut errors) = (Vec::new(), Vec::new());
    for (row, job) in jobs {
        match job.and_then(sane) {
            Ok(spec) => specs.push((row, spec)),
            Err(detail) => errors.push(RowError { row, code: "not-a-job", detail }),
        }
    }
    if errors.is_empty() { distinct(specs) } else { Err(Problem::rows(errors)) }
}

/// Two rows for one machine are a mistake unless the second says what it means.
fn distinct(rows: Vec<(u64, JobSpec)>) -> Result<Vec<(u64, JobSpec)>, Problem> {
    let mut seen: HashMap<String, u64> = HashMap::new();
    let mut errors = Vec::new();
    for (row, spec) in rows.iter().filter(|(_, spec)| spec.selector.is_exact()) {
        match seen.insert(spec.selector.to_string(), *row) {
            Some(earlier) if !spec.replace && !spec.queue => errors.push(RowError {
                row: *row,
                code: "machine-twice",
                detail: format!("{} is in row {earlier} already", spec.selector),
            }),
            _ => {}
        }
    }
    if errors.is_empty() { Ok(rows) } else { Err(Problem::rows(errors)) }
}

async fn wrong_rows(admin: &Admin, rows: Vec<(u64, JobSpec)>, by: &Caller, first: Problem) -> Problem {
    let catalog = admin.state.library.snapshot();
    let at = Moment { now: SystemTime::now(), next_boot: admin.state.keeper.boots().peek() };
    let name = by.name.clone();
    // Only the copy is made on the keeper's thread, where boots wait.
    let Ok(mut trial) = admin.look(|book, _| book.clone()).await else { return first };
    let tried = tokio::task::spawn_blocking(move || {
        let mut errors = Vec::new();
        for (row, spec) in rows {
            if let Err(refusal) = trial.add(spec, &*catalog, &name, at) {
                errors.push(RowError { row, code: refusal.code(), detail: refusal.to_string() });
            }
        }
        errors
    });
    match tried.await {
        Ok(errors) if !errors.is_empty() => Problem::rows(errors),
        _ => first,
    }
}

/// Show a job.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, pattern = "^j[0-9]{1,18}$", description = "Job id such as j17")),
    responses((
        status = 200, description = "The job; its generation is the ETag", body = ref("#/components/schemas/Job")
    )),
    security(("token" = ["read"]))
)]
pub(super) async fn show(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Named(id): Named<String>,
) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let job = admin.look(move |book, _| book.job(id).cloned()).await?.ok_or(Refusal::NotFound { id })?;
    Ok(tagged(StatusCode::OK, document_of(&*job)?, job.generation))
}

async fn change(
    admin: &Admin,
    by: &Caller,
    headers: &HeaderMap,
    id: &str,
    done: &'static str,
    order: impl FnOnce(JobId, Option<u64>) -> Order,
) -> Result<Response, Problem> {
    let job = one(admin.order(order(job_id(id)?, expected(headers)?), by).await?)?;
    tracing::info!(job = %job.id, by = by.name, "job {done}");
    Ok(tagged(StatusCode::OK, document_of(&*job)?, job.generation))
}

/// Cancel a job.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", tag = "jobs",
    params(
        ("id" = String, Path, pattern = "^j[0-9]{1,18}$", description = "Job id such as j17"),
        ("If-Match" = Option<String>, Header, description = "Only if the job still has this ETag")
    ),
    responses((status = 200, description = "The job, cancelled", body = ref("#/components/schemas/Job"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn cancel(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Named(id): Named<String>,
) -> Result<Response, Problem> {
    change(&admin, &by, &headers, &id, "cancelled", |id, expected| Order::Cancel { id, expected }).await
}

/// Who gets a job again.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RearmQuery {
    /// Although it may wipe a disk: every machine that had a rule's job, where several had it.
    all: Option<bool>,
}

/// Start a job that is over again, with all its attempts. A rule's job goes to every machine that had it.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/rearm", tag = "jobs",
    params(
        ("id" = String, Path, pattern = "^j[0-9]{1,18}$", description = "Job id such as j17"),
        ("If-Match" = Option<String>, Header, description = "Only if the job still has this ETag"),
        RearmQuery
    ),
    responses((status = 200, description = "The job, armed", body = ref("#/components/schemas/Job"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn rearm(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Named(id): Named<String>,
    Asked(query): Asked<RearmQuery>,
) -> Result<Response, Problem> {
    let all = query.all.unwrap_or(false);
    change(&admin, &by, &headers, &id, "re-armed", |id, expected| Order::Rearm { id, expected, all }).await
}

/// Confirm a running job that no call-back has confirmed.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/confirm", tag = "jobs",
    params(
        ("id" = String, Path, pattern = "^j[0-9]{1,18}$", description = "Job id such as j17"),
        ("If-Match" = Option<String>, Header, description = "Only if the job still has this ETag")
    ),
    responses((status = 200, description = "The job, confirmed", body = ref("#/components/schemas/Job"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn confirm(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Named(id): Named<String>,
) -> Result<Response, Problem> {
    change(&admin, &by, &headers, &id, "confirmed", |id, expected| Order::Confirm { id, expected }).await
}

fn claim_shown(claim: &Claim) -> Result<Value, Problem> {
    let mut shown = document_of(claim)?;
    shown["id"] = json!(claim.id.to_string());
    shown["machine"] = json!(claim.machine.map(|machine| machine.to_string()));
    Ok(shown)
}

/// Show how far a rule's job has come with each machine that took it.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/claims", tag = "jobs",
    params(("id" = String, Path, pattern = "^j[0-9]{1,18}$", description = "Job id such as j17")),
    responses((status = 200, description = "The claims", body = ref("#/components/schemas/ClaimList"))),
    security(("token" = ["read"]))
)]
pub(super) async fn claims(_: Reader, State(admin): State<Arc<Admin>>, Named(id): Named<String>) -> Answer {
    let id = job_id(&id)?;
    let look = move |book: &crate::jobs::book::Book, _: &mut dyn crate::store::Store| {
        book.job(id).map(|_| book.claims(id).cloned().collect::<Vec<_>>())
    };
    let claims = admin.look(look).await?.ok_or(Refusal::NotFound { id })?;
    let shown: Result<Vec<Value>, Problem> = claims.iter().map(|claim| claim_shown(claim)).collect();
    Ok(Json(json!({ "claims": shown? })))
}

/// Give one machine a rule's job once more.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}/claims/{claim}", tag = "jobs",
    params(
        ("id" = String, Path, pattern = "^j[0-9]{1,18}$", description = "Job id such as j17"),
        ("claim" = String, Path, pattern = "^c[0-9]{1,18}$", description = "Claim id such as c3")
    ),
    responses((status = 204, description = "It waits for the machine's next boot again")),
    security(("token" = ["operate"]))
)]
pub(super) async fn forget_claim(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    Named((id, claim)): Named<(String, String)>,
) -> Result<StatusCode, Problem> {
    let id = job_id(&id)?;
    let digits = claim.strip_prefix('c').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let claim = digits
        .and_then(|digits| digits.parse().ok())
        .map(ClaimId)
        .ok_or_else(|| Problem::bad("not-a-claim-id", format!("{claim:?} is no claim id such as c3")))?;
    let of_job = admin.look(move |book, _| book.claims(id).any(|other| other.id == claim)).await?;
    if !of_job {
        return Err(Refusal::NoClaim { id: claim }.into());
    }
    admin.order(Order::RearmClaim(claim), &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

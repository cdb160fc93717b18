//! The API's routes. Errors are problem+json (RFC 9457) with a one-word `code`.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use crate::history::Named;
use crate::jobs::Identity;
use crate::jobs::book::Refusal;
use crate::jobs::image::Images;
use crate::jobs::job::{Job, JobId, JobSpec};
use crate::keeper::{Done, Order};

/// Longest request body, bytes.
const BODY_MAX: usize = 1 << 20;

/// A refusal on its way out.
struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("error");
        let body = json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(), "code": self.code,
            "detail": self.detail,
        });
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NotFound { .. } | Refusal::NoMachine { .. } => StatusCode::NOT_FOUND,
            Refusal::HasJob { .. }
            | Refusal::Ended { .. }
            | Refusal::NotEnded { .. }
            | Refusal::IdentTaken { .. }
            | Refusal::CannotMerge { .. } => StatusCode::CONFLICT,
            Refusal::Stale { .. } => StatusCode::PRECONDITION_FAILED,
            Refusal::TooMany | Refusal::TooManyMachines => StatusCode::INSUFFICIENT_STORAGE,
            Refusal::StoreUnavailable { .. } | Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self { status, code: refusal.code(), detail: refusal.to_string() }
    }
}

fn problem(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
    Problem { status, code, detail: detail.into() }
}

type Answer = Result<Json<Value>, Problem>;

fn value(body: impl serde::Serialize) -> Answer {
    serde_json::to_value(body)
        .map(Json)
        .map_err(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, "not-json", error.to_string()))
}

/// Everything, for the Unix socket.
pub(super) fn local(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/jobs", get(list_jobs).post(add_job))
        .route("/v1/jobs/{id}", get(show_job).delete(cancel_job))
        .route("/v1/jobs/{id}/rearm", post(rearm_job))
        .route("/v1/jobs/{id}/confirm", post(confirm_job))
        .route("/v1/images", get(list_images))
        .route("/v1/images/rescan", post(rescan))
        .route("/v1/images/{name}", get(show_image))
        .route("/v1/script/render", post(render))
        .route("/v1/boots", get(boots))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(state)
}

/// What may be asked without a token, for TCP.
pub(super) fn public(state: Arc<State>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .fallback(async || {
            problem(
                StatusCode::UNAUTHORIZED,
                "token-needed",
                "over TCP only /healthz and /metrics answer without a token",
            )
        })
        .layer(middleware::from_fn(check_host))
        .with_state(state)
}

/// A page on the Internet must not reach this port through the administrator's browser under a name of its own
/// (DNS rebinding): only literal addresses and localhost are taken.
async fn check_host(headers: HeaderMap, request: Request, next: Next) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok() {
        next.run(request).await
    } else {
        problem(StatusCode::MISDIRECTED_REQUEST, "wrong-host", "ask by address or as localhost")
            .into_response()
    }
}

async fn not_found() -> Problem {
    problem(StatusCode::NOT_FOUND, "no-such-path", "this API has no such path")
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn metrics(Extract(state): Extract<Arc<State>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], (state.metrics)())
}

/// Who orders by the Unix socket, for the audit log.
const LOCAL: &str = "the local command line";

/// Gives an order and waits for its answer without holding up this thread.
async fn order(state: &State, order: Order) -> Result<Done, Problem> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    state.keeper.order(order, LOCAL, move |result| {
        // Whoever asked has gone.
        let _ = reply.send(result);
    });
    Ok(answer.await.unwrap_or(Err(Refusal::Busy))?)
}

async fn order_job(state: &State, order: Order) -> Result<Arc<Job>, Problem> {
    match self::order(state, order).await? {
        Done::Jobs(jobs) if !jobs.is_empty() => Ok(Arc::clone(&jobs[0])),
        _ => Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "no-job", "the order came to no job")),
    }
}

/// Looks at the book without holding up this thread.
async fn look<T: Send + 'static>(
    state: &State,
    look: impl FnOnce(&crate::jobs::book::Book) -> T + Send + 'static,
) -> Result<T, Problem> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    state.keeper.look(move |book, _| {
        // Whoever asked has gone.
        let _ = reply.send(look(book));
    });
    Ok(answer.await.map_err(|_| Refusal::Busy)?)
}

async fn list_jobs(Extract(state): Extract<Arc<State>>) -> Answer {
    let jobs: Vec<Arc<Job>> = look(&state, |book| book.jobs().cloned().collect()).await?;
    value(json!({ "jobs": jobs.iter().map(|job| &**job).collect::<Vec<_>>() }))
}

async fn add_job(Extract(state): Extract<Arc<State>>, body: String) -> Answer {
    let spec: JobSpec = serde_json::from_str(&body)
        .map_err(|error| problem(StatusCode::BAD_REQUEST, "not-a-job", error.to_string()))?;
    let job = order_job(&state, Order::AddJobs(vec![spec])).await?;
    tracing::info!(job = %job.id, action = %job.action, selector = %job.selector, "job added");
    value(&*job)
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| {
        problem(StatusCode::BAD_REQUEST, "not-a-job-id", format!("{text:?} is no job id such as j17"))
    })
}

async fn show_job(Extract(state): Extract<Arc<State>>, Path(id): Path<String>) -> Answer {
    let id = job_id(&id)?;
    let job = look(&state, move |book| book.job(id).cloned()).await?;
    value(&*job.ok_or(Refusal::NotFound { id })?)
}

async fn cancel_job(Extract(state): Extract<Arc<State>>, Path(id): Path<String>) -> Answer {
    let job = order_job(&state, Order::Cancel { id: job_id(&id)?, expected: None }).await?;
    tracing::info!(job = %job.id, "job cancelled");
    value(&*job)
}

async fn rearm_job(Extract(state): Extract<Arc<State>>, Path(id): Path<String>) -> Answer {
    let job = order_job(&state, Order::Rearm { id: job_id(&id)?, expected: None }).await?;
    tracing::info!(job = %job.id, "job re-armed");
    value(&*job)
}

async fn confirm_job(Extract(state): Extract<Arc<State>>, Path(id): Path<String>) -> Answer {
    let job = order_job(&state, Order::Confirm { id: job_id(&id)?, expected: None }).await?;
    tracing::info!(job = %job.id, "job confirmed");
    value(&*job)
}

async fn list_images(Extract(state): Extract<Arc<State>>) -> Answer {
    value(json!({ "images": state.library.load().list().iter().map(|image| &**image).collect::<Vec<_>>() }))
}

async fn show_image(Extract(state): Extract<Arc<State>>, Path(name): Path<String>) -> Answer {
    let catalog = state.library.load();
    match catalog.image(&name) {
        Some(image) => value(image),
        None => Err(Refusal::UnknownImage { name }.into()),
    }
}

async fn rescan(Extract(state): Extract<Arc<State>>) -> Answer {
    let library = Arc::clone(&state.library);
    // Walks folders: not on this thread, which answers /healthz.
    let report = tokio::task::spawn_blocking(move || library.rescan())
        .await
        .map_err(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, "scan-failed", error.to_string()))?
        .map_err(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, "scan-failed", error.to_string()))?;
    value(json!({ "images": report.images, "files": report.files, "settling": report.settling }))
}

async fn render(Extract(state): Extract<Arc<State>>, body: String) -> Answer {
    let who: Identity = serde_json::from_str(&body)
        .map_err(|error| problem(StatusCode::BAD_REQUEST, "not-an-identity", error.to_string()))?;
    value((state.script)(&who))
}

/// Whose boots.
#[derive(Deserialize)]
struct Whose {
    /// MAC address or UUID; nobody means the latest of all.
    machine: Option<String>,
}

async fn boots(Extract(state): Extract<Arc<State>>, Query(whose): Query<Whose>) -> Answer {
    let boots = match whose.machine {
        Some(text) => {
            let named: Named = text.parse().map_err(|_| {
                problem(
                    StatusCode::BAD_REQUEST,
                    "not-a-machine",
                    format!("{text:?} is no MAC address or UUID"),
                )
            })?;
            state.history.boots(named)
        }
        None => state.history.recent(100),
    };
    let texts: Vec<String> = boots.iter().map(ToString::to_string).collect();
    value(json!({ "boots": boots, "text": texts }))
}

#[cfg(test)]
mod tests;

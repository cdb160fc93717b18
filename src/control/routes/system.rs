//! The server itself: alive, ready, counted, documented.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::super::Admin;
use super::super::Reloaded;
use super::super::auth::{Administrator, Reader};
use super::super::problem::{Problem, not_noted};
use super::Answer;

/// A writer that does not answer within this is not ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// Whether this process answers.
#[utoipa::path(
    get, path = "/healthz", tag = "server", security(()),
    responses((status = 200, description = "It does", body = String, content_type = "text/plain"))
)]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether every listener answers, jobs can be decided and changes stored.
#[utoipa::path(
    get, path = "/readyz", tag = "server", security(()),
    responses((status = 200, description = "All of it", body = String, content_type = "text/plain"))
)]
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> Result<&'static str, Problem> {
    if let Err(why) = (admin.state.ready)() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", why).retry_after(5));
    }
    match tokio::time::timeout(READY_WITHIN, admin.look(|_, _| ())).await {
        Ok(Ok(())) if admin.state.keeper.can_store() => Ok("ready\n"),
        Ok(Ok(())) => {
            let detail = "changes cannot be stored: look at the disk of the state folder and at the log";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", detail).retry_after(5))
        }
        Ok(Err(problem)) => Err(problem),
        Err(_) => {
            let detail = "the thread that stores jobs does not answer; look at the disk and at the log";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", detail).retry_after(5))
        }
    }
}

/// Read the configuration again: whole, or not at all.
#[utoipa::path(
    post, path = "/v1/config/reload", tag = "server",
    responses(
        (status = 200, description = "In force; what was asked for before ends as it began", body = ref("#/components/schemas/Reloaded")),
        (status = 409, description = "Refused: it has mistakes, or changes what needs a restart; the old one stays in force")
    ),
    security(("token" = ["admin"]))
)]
pub(super) async fn reload(Administrator(by): Administrator, State(admin): State<Arc<Admin>>) -> Answer {
    let state = Arc::clone(&admin.state);
    let failed = |error: &dyn std::fmt::Display| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "reload-failed", error.to_string())
    };
    // Reads files: not on this thread, which answers /healthz.
    let done = tokio::task::spawn_blocking(move || (state.reload)(&by.name))
        .await
        .map_err(|error| failed(&error))?;
    let Reloaded { changed, noted } =
        done.map_err(|why| Problem::new(StatusCode::CONFLICT, "configuration-refused", why))?;
    // It is in force, whatever became of its entry.
    let warnings: Vec<String> = noted.err().map(|why| not_noted(&why)).into_iter().collect();
    Ok(Json(json!({ "changed": changed, "warnings": warnings })))
}

/// Counters, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "server", security(()),
    responses((status = 200, description = "Prometheus text", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let text = (admin.state.metrics)() + &admin.refused.metrics();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "server",
    responses((status = 200, description = "The OpenAPI document of this API", body = ref("#/components/schemas/Any"))),
    security(("token" = ["read"]))
)]
pub(super) async fn document(_: Reader) -> Json<Value> {
    Json(super::document())
}

//! The server itself: alive, ready, counted, documented.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::Value;

use super::super::Admin;
use super::super::auth::Reader;
use super::super::problem::Problem;

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

/// Whether jobs can be decided and changes stored.
#[utoipa::path(
    get, path = "/readyz", tag = "server", security(()),
    responses((status = 200, description = "They can", body = String, content_type = "text/plain"))
)]
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> Result<&'static str, Problem> {
    match tokio::time::timeout(READY_WITHIN, admin.look(|_, _| ())).await {
        Ok(Ok(())) => Ok("ready\n"),
        Ok(Err(problem)) => Err(problem),
        Err(_) => {
            let detail = "the thread that stores jobs does not answer; look at the disk and at the log";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", detail).retry_after(5))
        }
    }
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

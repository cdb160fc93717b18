//! The routes, a file for each resource, and what they share: pages, documents, generations.

pub(super) mod backup;
mod boots;
pub(super) mod events;
mod images;
mod jobs;
mod machines;
mod system;
mod tokens;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::Problem;
use super::{Admin, BODY_MAX, auth, idempotency, in_time};

/// An answer that is a JSON document.
type Answer = Result<Json<Value>, Problem>;

/// Rows of one page when nobody says how many, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1_000;

fn documented() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(jobs::bulk))
        .layer(DefaultBodyLimit::max(super::BULK_BODY_MAX))
        // What follows takes ordinary bodies.
        .routes(routes!(jobs::list, jobs::add))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(jobs::rearm))
        .routes(routes!(jobs::confirm))
        .routes(routes!(jobs::claims))
        .routes(routes!(jobs::forget_claim))
        .routes(routes!(machines::list, machines::register))
        .routes(routes!(machines::show, machines::set, machines::forget))
        .routes(routes!(machines::approve))
        .routes(routes!(machines::reject))
        .routes(routes!(machines::merge))
        .routes(routes!(machines::split))
        .routes(routes!(images::list))
        .routes(routes!(images::show, images::remove))
        .routes(routes!(images::list_versions))
        .routes(routes!(images::rollback))
        .routes(routes!(images::verify))
        .routes(routes!(images::announce))
        .routes(routes!(images::rescan))
        .routes(routes!(images::loader))
        .routes(routes!(boots::list))
        .routes(routes!(boots::explain))
        .routes(routes!(boots::pcap))
        .routes(routes!(boots::alarms))
        .routes(routes!(boots::render))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(events::audit))
        .routes(routes!(events::verify))
        .routes(routes!(tokens::list, tokens::add))
        .routes(routes!(tokens::revoke))
        .routes(routes!(system::document))
        .routes(routes!(system::reload))
        .routes(routes!(backup::download))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::metrics))
}

/// The OpenAPI document, made from the routes themselves.
pub(super) fn document() -> Value {
    super::openapi::complete(documented().into_openapi())
}

/// The whole API. Who asks must be in the request's extensions.
pub(super) fn router(admin: Arc<Admin>) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), idempotency::repeat))
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), auth::identify))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(admin)
}

async fn no_such_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no-such-path",
        "this API has no such path; /v1/openapi.json lists them",
    )
}

async fn no_such_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", "this path does not take that method")
}

/// A query, or a problem that says what is wrong with it.
struct Asked<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Ok(Self(Query::<T>::from_request_parts(parts, state).await?.0))
    }
}

/// A path's variables, or a problem.
struct Named<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Ok(Self(Path::<T>::from_request_parts(parts, state).await?.0))
    }
}

/// A body as text, or a problem that says why it is none.
struct Text(String);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        in_time(String::from_request(request, state)).await?.map(Self).map_err(|rejection| {
            match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(),
                _ => Problem::bad("not-text", rejection.body_text()),
            }
        })
    }
}

/// A JSON body of any content type: what it must hold is told by whoever reads it.
fn read_body<T: DeserializeOwned>(body: &str, code: &'static str) -> Result<T, Problem> {
    serde_json::from_str(body).map_err(|error| Problem::bad(code, error.to_string()))
}

fn document_of(body: impl serde::Serialize) -> Result<Value, Problem> {
    serde_json::to_value(body)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not-json", error.to_string()))
}

fn page_of(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(PAGE) {
        limit @ 1..=PAGE_MAX => Ok(limit),
        other => Err(Problem::bad("not-a-limit", format!("limit={other}: expected 1 to {PAGE_MAX}"))),
    }
}

/// The generation that `If-Match` asks for, if it asks for one.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    quoted.and_then(|digits| digits.parse().ok()).map(Some).ok_or_else(|| {
        Problem::bad("not-an-etag", "If-Match: expected the ETag of an earlier answer, such as \"7\"")
    })
}

/// A document with its generation as ETag.
fn tagged(status: StatusCode, document: Value, generation: u64) -> Response {
    let mut response = (status, Json(document)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{generation}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn located(mut response: Response, path: &str) -> Response {
    if let Ok(path) = HeaderValue::from_str(path) {
        response.headers_mut().insert(header::LOCATION, path);
    }
    response
}

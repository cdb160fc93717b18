//! API tokens.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Admin;
use super::super::auth::{Administrator, Role};
use super::super::problem::Problem;
use super::super::tokens::{AddError, NAME_MAX, TOKENS_MAX, Wish};
use super::{Answer, Named, Text, located, read_body};

/// A token as someone asks for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenSpec {
    name: String,
    role: Role,
    #[serde(default)]
    expires: Option<String>,
}

fn wish(spec: TokenSpec) -> Result<Wish, Problem> {
    let name = spec.name.trim().to_owned();
    if name.is_empty() || name.chars().count() > NAME_MAX || name.chars().any(char::is_control) {
        let detail = format!("a token's name is 1 to {NAME_MAX} characters, without control characters");
        return Err(Problem::bad("not-a-name", detail));
    }
    let lasts = match spec.expires.as_deref() {
        None => None,
        Some(text) => {
            let lasts = crate::config::values::duration(text).filter(|lasts| *lasts > Duration::ZERO);
            Some(lasts.ok_or_else(|| {
                Problem::bad("not-a-time", format!("expires {text:?}: expected a time such as 12h or 90d"))
            })?)
        }
    };
    Ok(Wish { name, role: spec.role, lasts })
}

/// List tokens: everything but the tokens themselves, of which only hashes are kept.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, description = "Every token", body = ref("#/components/schemas/TokenList"))),
    security(("token" = ["admin"]))
)]
pub(super) async fn list(_: Administrator, State(admin): State<Arc<Admin>>) -> Answer {
    let now = SystemTime::now();
    let tokens: Vec<Value> = admin.tokens.list().iter().map(|token| token.shown(now)).collect();
    Ok(Json(json!({ "tokens": tokens })))
}

/// Make a token. It is shown this once.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens",
    request_body(content = ref("#/components/schemas/TokenSpec"), content_type = "application/json"),
    responses((
        status = 201, description = "The token; `token` is shown this once", body = ref("#/components/schemas/NewToken")
    )),
    security(("token" = ["admin"]))
)]
pub(super) async fn add(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let wish = wish(read_body(&body, "not-a-token")?)?;
    let mut random = [0; 36];
    getrandom::fill(&mut random).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no-randomness", error.to_string())
    })?;
    let (tokens, now) = (admin.tokens.clone(), SystemTime::now());
    let name = by.name.clone();
    let added = admin.look(move |_, store| tokens.add(&wish, random, &name, store, now)).await?;
    let (text, token) = added.map_err(|error| match error {
        AddError::TooMany => {
            let detail = format!("there are {TOKENS_MAX} tokens, which is the most; revoke some first");
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "too-many-tokens", detail)
        }
        AddError::Again => Problem::busy(),
        AddError::Store(error) => error.into(),
    })?;
    tracing::info!(token = token.id, role = %token.role, by = by.name, "token added");
    let mut shown = token.shown(now);
    shown["token"] = json!(text);
    let response = (StatusCode::CREATED, [(axum::http::header::CACHE_CONTROL, "no-store")], Json(shown));
    let path = format!("/v1/tokens/{}", token.id);
    Ok(located(axum::response::IntoResponse::into_response(response), &path))
}

/// Revoke a token. It stops working at once, and its event streams end.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens",
    params(("id" = String, Path, description = "The token's id: the eight digits after bst-")),
    responses((status = 200, description = "The token that was revoked", body = ref("#/components/schemas/Token"))),
    security(("token" = ["admin"]))
)]
pub(super) async fn revoke(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
    Named(id): Named<String>,
) -> Answer {
    let (tokens, now, name) = (admin.tokens.clone(), SystemTime::now(), by.name.clone());
    let wanted = id.clone();
    let revoked = admin.look(move |_, store| tokens.revoke(&wanted, &name, store, now)).await??;
    match revoked {
        Some(token) => {
            tracing::info!(token = token.id, by = by.name, "token revoked");
            Ok(Json(token.shown(now)))
        }
        None => {
            let detail = format!("there is no token {id}; `bootstorm token list` shows the ones there are");
            Err(Problem::new(StatusCode::NOT_FOUND, "token-not-found", detail))
        }
    }
}

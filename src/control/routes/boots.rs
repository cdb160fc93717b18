//! Boots as timelines, and the script a machine would get.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::super::Admin;
use super::super::auth::Reader;
use super::super::problem::Problem;
use super::{Answer, Asked, Text, document_of, page_of, read_body};
use crate::history::Named;
use crate::jobs::Identity;

/// Whose boots.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BootQuery {
    /// MAC address or UUID; nobody means the latest of all.
    machine: Option<String>,
    /// Boots at most, 1 to 1000 (100 unless told).
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// List boots as timelines, newest first. They are kept in memory: a restart forgets them.
#[utoipa::path(
    get, path = "/v1/boots", tag = "boots", params(BootQuery),
    responses((status = 200, description = "Boots, newest first", body = ref("#/components/schemas/BootList"))),
    security(("token" = ["read"]))
)]
pub(super) async fn list(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<BootQuery>,
) -> Answer {
    let limit = page_of(query.limit)?;
    let history = &admin.state.history;
    let mut boots = match query.machine {
        Some(text) => {
            let named: Named = text
                .parse()
                .map_err(|_| Problem::bad("not-a-machine", format!("{text:?} is no MAC address or UUID")))?;
            history.boots(named)
        }
        None => history.recent(limit),
    };
    boots.truncate(limit);
    let texts: Vec<String> = boots.iter().map(ToString::to_string).collect();
    document_of(json!({ "boots": boots, "text": texts })).map(Json)
}

/// Render the exact script a machine would get now, and why. Changes nothing.
#[utoipa::path(
    post, path = "/v1/script/render", tag = "boots",
    request_body(content = ref("#/components/schemas/Identity"), content_type = "application/json"),
    responses((status = 200, description = "The script", body = ref("#/components/schemas/Explained"))),
    security(("token" = ["read"]))
)]
pub(super) async fn render(_: Reader, State(admin): State<Arc<Admin>>, Text(body): Text) -> Answer {
    let who: Identity = read_body(&body, "not-an-identity")?;
    document_of((admin.state.script)(&who)).map(Json)
}

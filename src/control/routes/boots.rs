//! Boots as timelines, what is to be said of them, their packets, and the script a machine would get.

use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::super::Admin;
use super::super::auth::Reader;
use super::super::explain::{Found, find};
use super::super::problem::Problem;
use super::{Answer, Asked, Text, document_of, page_of, read_body};
use crate::history::{Context, Named};
use crate::jobs::Identity;
use crate::wire::capture::Writer;

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

/// List boots as timelines, newest first: those in memory since the server started.
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
    let context = Context { now: SystemTime::now(), job: None };
    let verdicts: Vec<_> = boots.iter().map(|boot| boot.verdict(&context)).collect();
    let texts: Vec<String> =
        boots.iter().zip(&verdicts).map(|(boot, verdict)| format!("{boot}{verdict}")).collect();
    document_of(json!({ "boots": boots, "text": texts, "verdicts": verdicts })).map(Json)
}

/// Whose boots are to be explained.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ExplainQuery {
    /// MAC address in any form, UUID, job number (j17), or a machine's name.
    machine: String,
    /// Boots at most, 1 to 1000 (8 unless told).
    #[param(minimum = 1, maximum = 1000)]
    last: Option<usize>,
}

/// Boots explained when nobody says how many.
const LAST: usize = 8;

async fn explained(admin: &Admin, query: ExplainQuery) -> Result<Found, Problem> {
    let last = page_of(Some(query.last.unwrap_or(LAST)))?;
    let history = Arc::clone(&admin.state.history);
    let found = admin
        .look(move |book, store| find(&query.machine, last, Some(&history), book, store, SystemTime::now()));
    found.await?.map_err(|nobody| Problem::bad("not-a-machine", nobody.to_string()))
}

/// Explain a machine's last boots, newest first: where each stands or stopped, and the next step.
#[utoipa::path(
    get, path = "/v1/explain", tag = "boots", params(ExplainQuery),
    responses((status = 200, description = "What was found", body = ref("#/components/schemas/Explanation"))),
    security(("token" = ["read"]))
)]
pub(super) async fn explain(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<ExplainQuery>,
) -> Answer {
    let found = explained(&admin, query).await?;
    document_of(found.document()).map(Json)
}

/// Get the control packets of a machine's last boots as a pcapng file. They are kept in memory, of the last two boots.
#[utoipa::path(
    get, path = "/v1/boots/pcap", tag = "boots", params(ExplainQuery),
    responses((
        status = 200, content_type = "application/x-pcapng", body = Vec<u8>,
        description = "A capture file that Wireshark opens"
    )),
    security(("token" = ["read"]))
)]
pub(super) async fn pcap(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<ExplainQuery>,
) -> Result<Response, Problem> {
    let query = ExplainQuery { last: query.last.or(Some(1)), ..query };
    let found = explained(&admin, query).await?;
    let nothing = || {
        let detail = "no packets are kept of that: they are in memory only, of a machine's last two boots, and the oldest \
                      make room";
        Problem::new(StatusCode::NOT_FOUND, "no-packets", detail)
    };
    let mac = found.boots.iter().find_map(|(boot, _)| boot.mac).ok_or_else(nothing)?;
    let of_it = found.boots.iter().filter(|(boot, _)| boot.mac == Some(mac));
    let since = of_it.map(|(boot, _)| boot.started).min().ok_or_else(nothing)?;
    let mut packets = admin.state.history.packets(mac, since);
    if packets.is_empty() {
        return Err(nothing());
    }
    packets.sort_by_key(|(at, _)| *at);
    let mut writer = Writer::new(Some(mac));
    for (at, packet) in &packets {
        writer.packet(*at, packet);
    }
    Ok(([(header::CONTENT_TYPE, "application/x-pcapng")], writer.finish()).into_response())
}

/// List the alarms that are on: machines that were expected and never seen, that start over and over, or that stop at the
/// same point behind the same relay.
#[utoipa::path(
    get, path = "/v1/alarms", tag = "boots",
    responses((status = 200, description = "The alarms", body = ref("#/components/schemas/AlarmList"))),
    security(("token" = ["read"]))
)]
pub(super) async fn alarms(_: Reader, State(admin): State<Arc<Admin>>) -> Answer {
    let alarms = admin.state.alarms.lock().unwrap_or_else(PoisonError::into_inner).active();
    document_of(json!({ "alarms": alarms })).map(Json)
}

/// Render the exact script a machine would get now, and why. Changes nothing, and the tokens in its URLs open nothing.
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

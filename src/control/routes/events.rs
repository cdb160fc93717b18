//! The two logs: what happened, as pages and as a live stream, and who changed what.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;

use super::super::Admin;
use super::super::auth::{Administrator, Caller, Reader};
use super::super::problem::Problem;
use super::{Answer, Asked, page_of};
use crate::store::{AuditCheck, Log, LogEntry, Store, StoreError};

/// Streams at the same time.
pub(in crate::control) const STREAMS_MAX: usize = 32;
/// How often a stream that has everything looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Entries taken from the log at once: all that a stream ever holds.
const AT_ONCE: u64 = 200;

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Only entries about this: a job's id, a machine's number.
    subject: Option<String>,
    /// Only entries with lower numbers: `next` of the page before.
    before: Option<u64>,
    /// Entries at most, 1 to 1000 (100 unless told).
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

fn shown(entry: &LogEntry) -> Value {
    // Bodies are JSON of our own making.
    let body: Value = serde_json::from_str(&entry.body).unwrap_or_else(|_| json!(entry.body));
    json!({ "number": entry.number, "at_unix_ms": entry.at_unix_ms, "subject": entry.subject, "body": body })
}

async fn page(admin: &Admin, log: Log, query: LogQuery) -> Answer {
    let limit = page_of(query.limit)?;
    let entries = admin
        .look(move |_, store| {
            // No number is beyond this one, and SQLite's integers end there.
            let before = query.before.filter(|before| i64::try_from(*before).is_ok());
            store.read_log(log, query.subject.as_deref(), before, limit)
        })
        .await??;
    let next =
        entries.last().filter(|last| entries.len() == limit && last.number > 1).map(|last| last.number);
    Ok(Json(json!({ "entries": entries.iter().map(shown).collect::<Vec<_>>(), "next": next })))
}

/// List what happened to machines and jobs, newest first.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", params(LogQuery),
    responses((status = 200, description = "A page of events", body = ref("#/components/schemas/LogPage"))),
    security(("token" = ["read"]))
)]
pub(super) async fn list(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<LogQuery>,
) -> Answer {
    page(&admin, Log::Event, query).await
}

/// List who changed what, newest first.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "list", tag = "audit", params(LogQuery),
    responses((status = 200, description = "A page of the audit log", body = ref("#/components/schemas/LogPage"))),
    security(("token" = ["admin"]))
)]
pub(super) async fn audit(
    _: Administrator,
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<LogQuery>,
) -> Answer {
    page(&admin, Log::Audit, query).await
}

/// Check the audit log's chain of hashes, all of it. Holds up other changes while it reads.
#[utoipa::path(
    get, path = "/v1/audit/verify", tag = "audit",
    responses((status = 200, description = "What was found", body = ref("#/components/schemas/AuditCheck"))),
    security(("token" = ["admin"]))
)]
pub(super) async fn verify(_: Administrator, State(admin): State<Arc<Admin>>) -> Answer {
    Ok(Json(match admin.look(|_, store| store.verify_audit()).await?? {
        AuditCheck::Whole { entries, head } => {
            json!({ "whole": true, "entries": entries, "head": head.to_string(), "broken_at": null })
        }
        AuditCheck::Broken { number } => {
            json!({ "whole": false, "entries": null, "head": null, "broken_at": number })
        }
    }))
}

/// Where a stream begins.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// Begin after the event of this number; 0 for all that are kept. Without it: with what happens from now on.
    after: Option<u64>,
}

/// One reader's place in the log. Nothing is queued for it: it reads the log itself, at its own pace.
struct Reading {
    admin: Arc<Admin>,
    token: Option<String>,
    after: u64,
    held: VecDeque<LogEntry>,
    _permit: OwnedSemaphorePermit,
}

enum Next {
    Event(Event),
    /// The token was revoked, or the server ends.
    End,
}

impl Reading {
    async fn next(&mut self) -> Next {
        loop {
            if let Some(entry) = self.held.pop_front() {
                let missing = entry.number > self.after + 1;
                let skipped = entry.number - self.after - 1;
                if missing {
                    self.held.push_front(entry);
                    self.after += skipped;
                    // The log is trimmed by age and number; who was away for too long is told so.
                    return Next::Event(
                        Event::default().event("gap").data(json!({ "skipped": skipped }).to_string()),
                    );
                }
                self.after = entry.number;
                let data = shown(&entry).to_string();
                return Next::Event(Event::default().id(entry.number.to_string()).event("event").data(data));
            }
            if self.token.as_deref().is_some_and(|id| !self.admin.tokens.still_works(id, SystemTime::now())) {
                return Next::End;
            }
            match self.read().await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(LOOK_EVERY).await,
                // A keeper that is busy for a moment; one that is gone stays so until this connection is dropped.
                Err(()) => tokio::time::sleep(LOOK_EVERY * 4).await,
            }
        }
    }

    /// Takes the next entries; false when there are none yet.
    async fn read(&mut self) -> Result<bool, ()> {
        let after = self.after;
        let read = move |store: &mut dyn Store| {
            let until = after.saturating_add(AT_ONCE + 1);
            let page = store.read_log(Log::Event, None, Some(until), AT_ONCE as usize)?;
            let mut newer: Vec<LogEntry> = page.into_iter().filter(|entry| entry.number > after).collect();
            if newer.is_empty()
                && let Some(first) = first_after(store, after)?
            {
                // What came just after was trimmed, and the log goes on further up.
                newer = store.read_log(Log::Event, None, Some(first + AT_ONCE), AT_ONCE as usize)?;
                newer.retain(|entry| entry.number > after);
            }
            newer.reverse();
            Ok::<_, StoreError>(newer)
        };
        let newer = self.admin.look(move |_, store| read(store)).await.map_err(|_| ())?.map_err(|_| ())?;
        self.held = newer.into();
        Ok(!self.held.is_empty())
    }
}

/// The first entry that is kept beyond a number.
fn first_after(store: &mut dyn Store, after: u64) -> Result<Option<u64>, StoreError> {
    let mut up_to = |number: u64| -> Result<Option<u64>, StoreError> {
        let page = store.read_log(Log::Event, None, Some(number.saturating_add(1)), 1)?;
        Ok(page.first().map(|entry| entry.number).filter(|number| *number > after))
    };
    let Some(mut found) = up_to(i64::MAX as u64 - 1)? else { return Ok(None) };
    // The trimmed ones are all older than the kept ones: halve what lies between.
    let mut none_up_to = after;
    while found - none_up_to > 1 {
        let middle = none_up_to + (found - none_up_to) / 2;
        match up_to(middle)? {
            Some(number) => found = number,
            None => none_up_to = middle,
        }
    }
    Ok(Some(found))
}

/// Follow events as they happen (server-sent events). `Last-Event-ID` resumes where a stream broke off.
#[utoipa::path(
    get, path = "/v1/events/stream", tag = "events",
    params(
        StreamQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen")
    ),
    responses((
        status = 200, content_type = "text/event-stream", body = String,
        description = "Events named `event` with the entry as JSON; `gap` where older ones are no longer kept"
    )),
    security(("token" = ["read"]))
)]
pub(super) async fn stream(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(query): Asked<StreamQuery>,
) -> Result<Response, Problem> {
    let seen = match headers.get("last-event-id") {
        None => None,
        Some(id) => {
            let number = id.to_str().ok().and_then(|text| text.trim().parse().ok());
            Some(number.ok_or_else(|| {
                Problem::bad("not-an-event-id", "Last-Event-ID: expected an event's number")
            })?)
        }
    };
    let Ok(permit) = Arc::clone(&admin.streams).try_acquire_owned() else {
        let detail = format!("{STREAMS_MAX} streams are open, which is the most");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-streams", detail).retry_after(10));
    };
    let newest = admin.look(|_, store| store.read_log(Log::Event, None, None, 1)).await??;
    let newest = newest.first().map_or(0, |entry| entry.number);
    // A number from another server's log, or from before the store was replaced, is no reason to wait for ever.
    let after = seen.or(query.after).unwrap_or(newest).min(newest);
    let reading = Reading { admin, token: caller.token, after, held: VecDeque::new(), _permit: permit };
    let events = futures_util::stream::unfold(reading, |mut reading| async move {
        match reading.next().await {
            Next::Event(event) => Some((Ok::<_, std::convert::Infallible>(event), reading)),
            Next::End => None,
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

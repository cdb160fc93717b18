//! Refusals on their way out: problem+json (RFC 9457) with a one-word `code`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use crate::jobs::book::Refusal;
use crate::store::StoreError;

/// Rows that a refused bulk order names; how many there are is told beside them.
const ROWS_SHOWN: usize = 100;

/// What is wrong with one row of a bulk order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RowError {
    /// The row, from 1: of a CSV file the line of the job as an editor counts it, of JSON the place in the list.
    pub row: u64,
    /// One word.
    pub code: &'static str,
    /// One line.
    pub detail: String,
}

/// A refusal.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: String,
    rows: Vec<RowError>,
    retry_after: Option<u32>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), rows: Vec::new(), retry_after: None }
    }

    pub(super) fn bad(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(super) fn busy() -> Self {
        Refusal::Busy.into()
    }

    pub(super) fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the body is longer than this path takes")
    }

    /// Several rows of a bulk order are wrong; nothing was added.
    pub(super) fn rows(rows: Vec<RowError>) -> Self {
        let detail = match rows.as_slice() {
            [only] => format!("row {}: {}; nothing was added", only.row, only.detail),
            rows => format!("{} rows are wrong; nothing was added", rows.len()),
        };
        Self { rows, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "rows-refused", detail) }
    }

    pub(super) fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}

/// What is said of a change that is made and did not come into the audit log.
pub(super) fn not_noted(why: &Refusal) -> String {
    let reason: &dyn std::fmt::Display = match why {
        // Its own words are that nothing was changed.
        Refusal::StoreUnavailable { reason } => reason,
        other => other,
    };
    format!("this is not in the audit log: {reason}")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("error");
        let mut body = json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(), "code": self.code,
            "detail": self.detail,
        });
        if !self.rows.is_empty() {
            body["errors_total"] = json!(self.rows.len());
            body["errors"] = json!(self.rows.iter().take(ROWS_SHOWN).collect::<Vec<_>>());
        }
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string())
                .into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NotFound { .. } | Refusal::NoClaim { .. } | Refusal::NoMachine { .. } => {
                StatusCode::NOT_FOUND
            }
            Refusal::HasJob { .. }
            | Refusal::Ended { .. }
            | Refusal::NotEnded { .. }
            | Refusal::KnownNow { .. }
            | Refusal::RearmsAll { .. }
            | Refusal::NotRunning { .. }
            | Refusal::IdentTaken { .. }
            | Refusal::NameTaken { .. }
            | Refusal::CannotMerge { .. } => StatusCode::CONFLICT,
            Refusal::Stale { .. } => StatusCode::PRECONDITION_FAILED,
            Refusal::TooMany | Refusal::TooManyMachines => StatusCode::INSUFFICIENT_STORAGE,
            Refusal::StoreUnavailable { .. } | Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::UnknownImage { .. }
            | Refusal::CannotBoot { .. }
            | Refusal::DestructiveAlways { .. }
            | Refusal::DestructiveRule { .. }
            | Refusal::NeedsIpxe { .. }
            | Refusal::Sequence { .. }
            | Refusal::NotIdentifying { .. }
            | Refusal::SharedIdent { .. }
            | Refusal::RuleOnce
            | Refusal::NoAttempts => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let problem = Self::new(status, refusal.code(), refusal.to_string());
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(2) } else { problem }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Refusal::StoreUnavailable { reason: error.to_string() }.into()
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad("not-a-query", rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad("not-a-path", rejection.body_text())
    }
}

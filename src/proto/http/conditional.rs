//! Conditional requests (RFC 9110 §13) against one strong validator and one date.

use std::time::{Duration, SystemTime};

use super::FileMeta;
use crate::wire::http::{Method, Request, parse_date};

/// What the conditions of a GET or HEAD come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Go on; `ranges` says whether a Range field still counts (If-Range).
    Proceed { ranges: bool },
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates the conditions in the order of RFC 9110 §13.2.2. `modified` is the date sent as Last-Modified, in
/// whole seconds, or `None` when none is sent: then no date condition can be evaluated and all are ignored.
pub(super) fn evaluate(
    request: &Request<'_>,
    meta: &FileMeta<'_>,
    modified: Option<SystemTime>,
    now: SystemTime,
) -> Verdict {
    if has(request, "If-Match") {
        if !any_tag(request, "If-Match", meta.etag, Comparison::Strong) {
            return Verdict::Failed;
        }
    } else if let (Some(limit), Some(modified)) = (date(request, "If-Unmodified-Since"), modified)
        && modified > limit
    {
        // UEFI HTTP Boot sends a weak ETag it once stored as this date (HttpBootSupport.c); what is no date is
        // ignored, as §13.1.4 wants.
        return Verdict::Failed;
    }
    if has(request, "If-None-Match") {
        if any_tag(request, "If-None-Match", meta.etag, Comparison::Weak) {
            return Verdict::NotModified;
        }
    } else if let (Some(limit), Some(modified)) = (date(request, "If-Modified-Since"), modified)
        && modified <= limit
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed { ranges: request.method == Method::Get && if_range(request, meta, modified, now) }
}

/// RFC 9110 §13.1.5: true without the field; else an entity tag must match strongly, and a date be exactly the
/// one sent, when that one is a strong validator (§8.8.2.2: at least a second old).
pub(super) fn if_range(
    request: &Request<'_>,
    meta: &FileMeta<'_>,
    modified: Option<SystemTime>,
    now: SystemTime,
) -> bool {
    if !has(request, "If-Range") {
        return true;
    }
    let Some(value) = request.sole_header("If-Range") else { return false };
    if value.starts_with('"') || value.starts_with("W/") {
        return value == meta.etag && meta.etag.starts_with('"');
    }
    match (parse_date(value), modified) {
        (Some(date), Some(modified)) => date == modified && modified + Duration::from_secs(1) <= now,
        _ => false,
    }
}

fn has(request: &Request<'_>, name: &str) -> bool {
    request.fields().any(|(found, _)| found.eq_ignore_ascii_case(name))
}

fn date(request: &Request<'_>, name: &str) -> Option<SystemTime> {
    parse_date(request.sole_header(name)?)
}

/// RFC 9110 §8.8.3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// A weak tag never matches.
    Strong,
    /// `W/` does not count.
    Weak,
}

/// True when a list of entity tags holds `etag`, or is `*`. What cannot be read ends the list.
fn any_tag(request: &Request<'_>, name: &str, etag: &str, comparison: Comparison) -> bool {
    request.headers(name).any(|value| {
        if value == "*" {
            return true;
        }
        let mut rest = value;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let (weak, tag) = match rest.strip_prefix("W/") {
                Some(tag) => (true, tag),
                None => (false, rest),
            };
            // A tag may hold commas, so it ends at its quote and nowhere else.
            let Some((inside, behind)) = tag.strip_prefix('"').and_then(|tag| tag.split_once('"')) else {
                return false;
            };
            let ours = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"'));
            if ours == Some(inside) && !(weak && comparison == Comparison::Strong) {
                return true;
            }
            rest = behind;
        }
    })
}

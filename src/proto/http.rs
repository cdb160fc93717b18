//! HTTP decisions: which thing a path names, who asks, and the exact head of the answer.
//!
//! The engine drives it so: `wire::http::next_request` cuts a request, `decode_path` and [`route`] say what it
//! names, [`identity`] who asks, and one of the `answer_*` functions writes the head into the core's buffer and
//! returns an [`Answer`]: which bytes of the file follow, and whether the connection ends after them. File bytes
//! are named by range and never pass through here.
//!
//! What every answer keeps to, because some firmware dies without it: a blank after the status code, a
//! Content-Length, a strong ETag, a Content-Type without parameters for boot files, no redirect, no chunking, and
//! to iPXE no 1xx, 204 or 304.

mod answer;
mod conditional;
mod identity;
mod route;

pub use answer::{
    Answer, Body, FileMeta, Piece, answer_busy, answer_error, answer_file, answer_not_allowed,
    answer_refusal, answer_text, content_type,
};
pub use identity::{IDENTITY_TEXT_MAX, identity, reason, strategy};
pub use route::{Route, ScriptPath, route};

use std::time::{Duration, SystemTime};

use crate::wire::http::{Next, PATH_MAX, decode_path, next_request};

/// Takes whatever bytes a connection may bring through the whole room: every request in them is cut, routed,
/// identified and answered as a file. For fuzzers and mutation tests; returns how many requests were answered.
pub fn fuzz_head(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut answered = 0;
    let mut head = Vec::new();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    loop {
        head.clear();
        match next_request(rest) {
            Next::More => return answered,
            Next::Refuse { status, .. } => {
                answer_error(None, status, now, &mut head);
                return answered;
            }
            Next::Request { request, len } => {
                let mut buffer = [0; PATH_MAX];
                if let Ok(path) = decode_path(request.path, &mut buffer) {
                    let _ = route(path);
                }
                let _ = identity(&request);
                let meta = FileMeta {
                    len: bytes.len() as u64,
                    etag: "\"fuzz\"",
                    modified: now - Duration::from_secs(3600),
                    content_type: "application/octet-stream",
                };
                let answer = answer_file(&request, &meta, now, &mut head);
                answered += 1;
                if answer.close {
                    return answered;
                }
                rest = rest.get(len..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod cases;

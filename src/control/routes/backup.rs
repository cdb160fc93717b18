//! A copy of everything that is stored, made while the server runs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::super::Admin;
use super::super::auth::Administrator;
use super::super::problem::Problem;
use crate::keeper::back_up;
use crate::store::{Log, Store, StoreError, Transition, Write};
use crate::sys::disk::free_bytes;

/// The copy's name in the state folder, for as long as it has one: nobody else's.
const COPY: &str = ".copy-for-backup";
/// The same and what the store calls it before it is whole.
const LEFT: [&str; 4] =
    [COPY, "..copy-for-backup.partial", "..copy-for-backup.partial-wal", "..copy-for-backup.partial-journal"];
/// Room that stays for the store and the leases while a copy waits to be taken.
const ROOM_LEFT: u64 = 64 << 20;
/// Read and sent at once.
const PIECE: usize = 256 << 10;

/// Download a copy of everything stored: jobs, machines, boots, tokens and both logs, a file of SQLite's. It is whole and
/// checked; changes wait while it is made. A server that starts on it knows it for a backup, and cancels the jobs in it that
/// may wipe a disk: what happened since is not known.
#[utoipa::path(
    get, path = "/v1/backup", tag = "server",
    responses((
        status = 200, content_type = "application/vnd.sqlite3", body = Vec<u8>,
        description = "The store, for `bootstorm.db`"
    )),
    security(("token" = ["admin"]))
)]
pub(super) async fn download(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
) -> Result<Response, Problem> {
    let Ok(permit) = Arc::clone(&admin.backups).try_acquire_owned() else {
        let detail = "another backup is on its way; one at a time";
        return Err(Problem::new(StatusCode::CONFLICT, "backup-under-way", detail).retry_after(10));
    };
    let place = admin.state.folder.join(COPY);
    // The permit goes along: whoever gives up lets nobody begin before this one is done.
    let (copy, len, permit) =
        admin.look(move |_, store| copy_of(store, &place).map(|(copy, len)| (copy, len, permit))).await??;
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let body = json!({ "by": by.name, "what": "store-backed-up", "bytes": len }).to_string();
    let entry =
        Write::Append { log: Log::Audit, at_unix_ms: at.as_millis() as u64, subject: "store".into(), body };
    // It holds the keys of the house: nobody takes it unnoticed.
    admin.append(Transition { writes: vec![entry] }).await?;
    tracing::info!(by = by.name, bytes = len, "the store is copied");
    let name = format!("attachment; filename=\"bootstorm-{}.db\"", at.as_secs());
    let headers = [
        (header::CONTENT_TYPE, "application/vnd.sqlite3".to_owned()),
        (header::CONTENT_LENGTH, len.to_string()),
        (header::CONTENT_DISPOSITION, name),
    ];
    Ok((headers, sent(copy, permit)).into_response())
}

/// The copy, without a name already: whatever happens, nothing of it stays.
fn copy_of(store: &mut dyn Store, place: &Path) -> Result<(File, u64), StoreError> {
    let io = |error: io::Error| StoreError::Io { path: place.to_owned(), detail: error.to_string() };
    clear(place.parent().unwrap_or(Path::new(".")));
    back_up(store, place, SystemTime::now())?;
    let opened = File::open(place).and_then(|copy| copy.metadata().map(|about| (copy, about.len())));
    fs::remove_file(place).map_err(io)?;
    let opened = opened.map_err(io)?;
    // What keeps others from being stored is not kept for who may be slow to take it.
    if free_bytes(place.parent().unwrap_or(Path::new("."))).is_ok_and(|left| left < ROOM_LEFT) {
        return Err(StoreError::Full { path: place.to_owned() });
    }
    Ok(opened)
}

/// Removes what a server that was killed at its backup left.
pub(in crate::control) fn clear(folder: &Path) {
    for left in LEFT {
        // It is not there, as a rule.
        let _ = fs::remove_file(folder.join(left));
    }
}

/// A file as a body. The permit is held until the last of it is taken, or nobody takes it any more.
fn sent(copy: File, permit: OwnedSemaphorePermit) -> Body {
    let pieces = futures_util::stream::unfold(Some((copy, permit)), |rest| async {
        let (mut copy, permit) = rest?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            copy.read(&mut piece).map(|len| {
                piece.truncate(len);
                (Bytes::from(piece), copy)
            })
        });
        match read.await.map_err(io::Error::other).flatten() {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, copy)) => Some((Ok(piece), Some((copy, permit)))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Body::from_stream(pieces)
}

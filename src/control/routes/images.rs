//! Images.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::super::Admin;
use super::super::auth::{Administrator, Operator, Reader};
use super::super::loaders::{loader_document, loader_entry};
use super::super::problem::{Problem, not_noted};
use super::{Answer, Asked, Named, Text, document_of, read_body};
use crate::files::gss::{Switch, SwitchError};
use crate::files::library::Library;
use crate::files::verify::{self, How};
use crate::files::versions::{Version, VersionError, Versions};
use crate::jobs::book::Refusal;
use crate::store::{Log, Transition, Write};

/// Most bytes of what is told about a change.
const ABOUT_LEN_MAX: usize = 64 * 1024;

/// List images, bootable or not.
#[utoipa::path(
    get, path = "/v1/images", tag = "images",
    responses((status = 200, description = "Every image", body = ref("#/components/schemas/ImageList"))),
    security(("token" = ["read"]))
)]
pub(super) async fn list(_: Reader, State(admin): State<Arc<Admin>>) -> Answer {
    let catalog = admin.state.library.load();
    document_of(json!({ "images": catalog.shown_list().collect::<Vec<_>>() })).map(Json)
}

/// Show an image with its files, its WIMs and its version.
#[utoipa::path(
    get, path = "/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "The image's name")),
    responses((status = 200, description = "The image", body = ref("#/components/schemas/Image"))),
    security(("token" = ["read"]))
)]
pub(super) async fn show(_: Reader, State(admin): State<Arc<Admin>>, Named(name): Named<String>) -> Answer {
    match admin.state.library.load().shown(&name) {
        Some(shown) => document_of(shown).map(Json),
        None => Err(unknown(name)),
    }
}

fn unknown(name: String) -> Problem {
    let detail = Refusal::UnknownImage { name }.to_string();
    Problem::new(StatusCode::NOT_FOUND, "unknown-image", detail)
}

impl From<VersionError> for Problem {
    fn from(error: VersionError) -> Self {
        let status = match &error {
            VersionError::NoImage { .. } | VersionError::NoVersion { .. } => StatusCode::NOT_FOUND,
            VersionError::BadName { .. } => StatusCode::BAD_REQUEST,
            // The server may have been given a folder to read only: the commands on its host can write there.
            error if error.is_permission() => StatusCode::CONFLICT,
            VersionError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            VersionError::Current { .. }
            | VersionError::Link { .. }
            | VersionError::Exists { .. }
            | VersionError::Meanwhile { .. }
            | VersionError::Changed { .. } => StatusCode::CONFLICT,
        };
        // What the system said holds local paths, and whoever asks is an administrator.
        Self::new(status, error.code(), error.to_string())
    }
}

/// Walks, renames and removes folders: not on this thread, which answers /healthz.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "images-folder", error.to_string()))
}

fn versions(library: &Library) -> Result<Versions, VersionError> {
    Versions::open(&library.settings().images_dir)
}

/// An entry of the audit log about an image.
fn entry(by: &str, name: &str, what: &str, about: &Value) -> Transition {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let body = json!({ "by": by, "what": what, "image": name, "about": about });
    let append = Write::Append {
        log: Log::Audit,
        at_unix_ms: now.as_millis() as u64,
        subject: format!("image {name}"),
        body: body.to_string(),
    };
    Transition { writes: vec![append] }
}

async fn note(admin: &Admin, by: &str, name: &str, what: &str, about: &Value) -> Result<(), Refusal> {
    tracing::info!(image = name, by, "{}", what.replace('-', " "));
    admin.append(entry(by, name, what, about)).await
}

fn not_looked_at(why: &dyn std::fmt::Display) -> String {
    format!("the folders of images are looked at again later: {why}")
}

/// After a change: what was done is done, and an error would be taken for nothing done. What could not be done beside it
/// is told in the answer.
async fn noted(admin: &Admin, by: &str, name: &str, what: &str, about: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Err(problem) = scan(admin).await {
        warnings.push(not_looked_at(&problem.detail));
    }
    warnings.extend(note(admin, by, name, what, about).await.err().map(|why| not_noted(&why)));
    warnings
}

/// Look at the folders of images now, instead of with the next round.
#[utoipa::path(
    post, path = "/v1/images/rescan", tag = "images",
    responses((status = 200, description = "What was found", body = ref("#/components/schemas/Rescan"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn rescan(_: Operator, State(admin): State<Arc<Admin>>) -> Answer {
    scan(&admin).await.map(Json)
}

async fn scan(admin: &Admin) -> Result<Value, Problem> {
    let library = Arc::clone(&admin.state.library);
    let report = apart(move || library.rescan())
        .await?
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "scan-failed", error.to_string()))?;
    Ok(json!({ "images": report.images, "files": report.files, "settling": report.settling }))
}

fn version_shown(version: &Version) -> Value {
    let record = &version.record;
    json!({
        "version": record.version, "current": version.current, "added_unix": record.added_unix, "by": record.by,
        "verified_unix": record.verified_unix(), "files": record.files,
    })
}

/// List the versions of an image, the one that is served first.
#[utoipa::path(
    get, path = "/v1/images/{name}/versions", operation_id = "versions", tag = "images",
    params(("name" = String, Path, description = "The image's name")),
    responses((status = 200, description = "The versions", body = ref("#/components/schemas/VersionList"))),
    security(("token" = ["read"]))
)]
pub(super) async fn list_versions(
    _: Reader,
    State(admin): State<Arc<Admin>>,
    Named(name): Named<String>,
) -> Answer {
    let library = Arc::clone(&admin.state.library);
    let asked = name.clone();
    let all = apart(move || versions(&library)?.list(&asked)).await??;
    Ok(Json(json!({ "name": name, "versions": all.iter().map(version_shown).collect::<Vec<_>>() })))
}

/// A body that may be left out.
fn read_or_default<T: serde::de::DeserializeOwned + Default>(
    body: &str,
    code: &'static str,
) -> Result<T, Problem> {
    if body.trim().is_empty() { Ok(T::default()) } else { read_body(body, code) }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RollBack {
    version: Option<u32>,
    #[serde(default)]
    force: bool,
}

/// Serve an earlier version of an image again: the newest one before what is served, unless one is named.
#[utoipa::path(
    post, path = "/v1/images/{name}/rollback", tag = "images",
    params(("name" = String, Path, description = "The image's name")),
    request_body(content = ref("#/components/schemas/RollBack"), content_type = "application/json"),
    responses((status = 200, description = "The versions now and before", body = ref("#/components/schemas/RolledBack"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn rollback(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    Named(name): Named<String>,
    Text(body): Text,
) -> Answer {
    let RollBack { version, force } = read_or_default(&body, "not-a-rollback")?;
    let (library, asked) = (Arc::clone(&admin.state.library), name.clone());
    let (now, before) = apart(move || versions(&library)?.roll_back(&asked, version, force)).await??;
    let about = json!({ "version": now, "before": before });
    let warnings = noted(&admin, &by.name, &name, "image-rolled-back", &about).await;
    Ok(Json(json!({ "name": name, "version": now, "before": before, "warnings": warnings })))
}

/// What is to be removed.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// Only this earlier version.
    version: Option<u32>,
    /// Although live jobs boot the image.
    force: Option<bool>,
}

/// Remove an image with all its versions, or one earlier version; not one that a live job boots.
#[utoipa::path(
    delete, path = "/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "The image's name"), RemoveQuery),
    responses(
        (status = 204, description = "It is gone"),
        (status = 200, description = "It is gone, and there is something to be said about that", body = ref("#/components/schemas/Warned"))
    ),
    security(("token" = ["admin"]))
)]
pub(super) async fn remove(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
    Named(name): Named<String>,
    Asked(query): Asked<RemoveQuery>,
) -> Result<Response, Problem> {
    let (library, asked) = (Arc::clone(&admin.state.library), name.clone());
    if let Some(version) = query.version {
        apart(move || versions(&library)?.remove_version(&asked, version)).await??;
        let about = json!({ "version": version });
        return Ok(gone(noted(&admin, &by.name, &name, "image-version-removed", &about).await));
    }
    let forced = query.force.unwrap_or(false);
    let wanted = name.clone();
    let needed: Vec<String> = admin
        .look(move |book, _| {
            let boots = |job: &crate::jobs::job::Job| {
                let mut actions = std::iter::once(&job.action).chain(&job.sequence);
                actions.any(|action| action.image() == Some(&wanted))
            };
            let live = book.jobs().filter(|job| job.is_live() && boots(job));
            live.take(6).map(|job| job.id.to_string()).collect()
        })
        .await?;
    if !needed.is_empty() && !forced {
        let detail =
            format!("{name} is needed by job {}: cancel it first, or say force=true", needed.join(", "));
        return Err(Problem::new(StatusCode::CONFLICT, "image-in-use", detail));
    }
    apart(move || versions(&library)?.remove(&asked)).await??;
    Ok(gone(noted(&admin, &by.name, &name, "image-removed", &json!({ "forced": forced })).await))
}

fn gone(warnings: Vec<String>) -> Response {
    match warnings.is_empty() {
        true => StatusCode::NO_CONTENT.into_response(),
        false => Json(json!({ "warnings": warnings })).into_response(),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Verify {
    #[serde(default)]
    all: bool,
}

/// An image is being read again, until this is dropped.
struct Verifying(Arc<AtomicBool>);

impl Verifying {
    /// `None` while another one is.
    fn begin(flag: &Arc<AtomicBool>) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(flag)))
    }
}

impl Drop for Verifying {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Read an image again and compare every byte with what was taken in. It takes its time: what was found is in the audit
/// log, and in the image's `verified_unix`.
#[utoipa::path(
    post, path = "/v1/images/{name}/verify", tag = "images",
    params(("name" = String, Path, description = "The image's name")),
    request_body(content = ref("#/components/schemas/Verify"), content_type = "application/json"),
    responses((status = 202, description = "It is being read", body = ref("#/components/schemas/Verifying"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn verify(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    Named(name): Named<String>,
    Text(body): Text,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let Verify { all } = read_or_default(&body, "not-a-verification")?;
    let (library, asked) = (Arc::clone(&admin.state.library), name.clone());
    let list = apart(move || versions(&library)?.list(&asked)).await??;
    let list: Vec<Version> = list.into_iter().filter(|version| version.current || all).collect();
    let Some(verifying) = Verifying::begin(&admin.verifying) else {
        let detail = "another image is being read; ask again when it is done";
        return Err(Problem::new(StatusCode::CONFLICT, "already-verifying", detail).retry_after(30));
    };
    let numbers: Vec<u32> = list.iter().map(|version| version.record.version).collect();
    let (told, by) = (name.clone(), by.name);
    let reading = Arc::clone(&admin);
    tokio::task::spawn_blocking(move || {
        // Until the end, also if that is a panic.
        let _verifying = verifying;
        let library = &reading.state.library;
        let how = How { stop: Some(&reading.stopping), ..How::default() };
        for version in &list {
            let outcomes = versions(library).and_then(|all| verify::version(&all, version, how, &mut |_| ()));
            let number = version.record.version;
            let (what, about) = match outcomes {
                Ok(_) if reading.stopping.load(Ordering::Relaxed) => {
                    let detail = "the server stopped before everything was read";
                    ("image-not-verified", json!({ "version": number, "detail": detail }))
                }
                Ok(outcomes) => {
                    let bad = outcomes.iter().filter(|(_, outcome)| !outcome.is_good()).take(100);
                    let bad: Vec<Value> = bad
                        .map(|(file, outcome)| json!({ "name": file, "detail": outcome.to_string() }))
                        .collect();
                    let what = if bad.is_empty() { "image-verified" } else { "image-damaged" };
                    (what, json!({ "version": number, "files": bad }))
                }
                Err(error) => {
                    ("image-not-verified", json!({ "version": number, "detail": error.to_string() }))
                }
            };
            tracing::info!(image = told, version = number, by, "{}", what.replace('-', " "));
            let entry = entry(&by, &told, what, &about);
            // A full queue loses an entry of what was found; the image's own record has it.
            reading.state.keeper.look(move |_, store| {
                if let Err(error) = store.commit(&[entry]) {
                    tracing::warn!(%error, "a verification is not in the audit log");
                }
            });
            if reading.stopping.load(Ordering::Relaxed) {
                return;
            }
        }
        if let Err(error) = library.rescan() {
            tracing::debug!(%error, "cannot look for new images");
        }
    });
    Ok((StatusCode::ACCEPTED, Json(json!({ "name": name, "versions": numbers }))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Announced {
    what: String,
    #[serde(default)]
    about: Value,
}

/// Tell what was done to an image's folder on the server's own host: it is looked at now, and noted in the audit log.
#[utoipa::path(
    post, path = "/v1/images/{name}/announce", tag = "images",
    params(("name" = String, Path, description = "The image's name")),
    request_body(content = ref("#/components/schemas/Announce"), content_type = "application/json"),
    responses((status = 200, description = "What is there now", body = ref("#/components/schemas/Rescan"))),
    security(("token" = ["admin"]))
)]
pub(super) async fn announce(
    Administrator(by): Administrator,
    State(admin): State<Arc<Admin>>,
    Named(name): Named<String>,
    Text(body): Text,
) -> Answer {
    let Announced { what, about } = read_body(&body, "not-an-announcement")?;
    let is_word = what.strip_prefix("image-").is_some_and(|rest| {
        (1..=40).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
    });
    let is_name = !name.is_empty() && name.len() <= 255 && !name.chars().any(char::is_control);
    if !is_word
        || !is_name
        || !(about.is_object() || about.is_null())
        || about.to_string().len() > ABOUT_LEN_MAX
    {
        let detail = "expected {\"what\": \"image-...\", \"about\": {...}}, about up to 64 KiB";
        return Err(Problem::bad("not-an-announcement", detail));
    }
    let found = scan(&admin).await;
    note(&admin, &by.name, &name, &what, &about).await?;
    found.map(Json)
}

/// Whether an image is to boot by iPXE.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoaderSwitch {
    ipxe: bool,
}

/// Switch an image's iPXE on or off: the loader files in its folder are copied there, or set aside. Machines see it at
/// their next packet.
#[utoipa::path(
    post, path = "/v1/images/{name}/loader", tag = "images",
    params(("name" = String, Path, description = "The image's name")),
    request_body(content = ref("#/components/schemas/LoaderSwitch"), content_type = "application/json"),
    responses((status = 200, description = "What was done", body = ref("#/components/schemas/LoaderSwitched"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn loader(
    Operator(by): Operator,
    State(admin): State<Arc<Admin>>,
    Named(name): Named<String>,
    Text(body): Text,
) -> Answer {
    let LoaderSwitch { ipxe } = read_body(&body, "not-a-switch")?;
    let (library, image) = (Arc::clone(&admin.state.library), name.clone());
    // Reads, writes and walks folders: not on this thread, which answers /healthz.
    let switched = tokio::task::spawn_blocking(move || {
        let settings = library.settings();
        let scan = || {
            library.rescan().map_err(|error| SwitchError::Io {
                path: settings.images_dir.clone(),
                error: std::io::Error::other(error.to_string()),
            })
        };
        // What somebody did by hand a moment ago counts.
        scan()?;
        let catalog = library.snapshot();
        let roots: Vec<&Path> =
            std::iter::once(&settings.images_dir).chain(&settings.trees).map(|path| path.as_path()).collect();
        let switch = Switch::of(&catalog, &roots, &image)?;
        let done = if ipxe { switch.enable() } else { switch.disable() }?;
        // It is switched by now, whatever becomes of the look at it.
        let looked = scan();
        let mut document = loader_document(&library.snapshot(), &image, ipxe, &done);
        if let (Err(error), Some(warnings)) = (looked, document["warnings"].as_array_mut()) {
            warnings.push(json!(not_looked_at(&error)));
        }
        Ok(document)
    });
    let mut document = switched
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "switch-failed", error.to_string()))?
        .map_err(|error: SwitchError| match &error {
            SwitchError::NoImage(_) => {
                Problem::new(StatusCode::NOT_FOUND, "unknown-image", error.to_string())
            }
            SwitchError::NotAnImage(_) | SwitchError::NoLoaders => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "cannot-switch", error.to_string())
            }
            SwitchError::Writing { .. } => {
                Problem::new(StatusCode::CONFLICT, "still-writing", error.to_string())
            }
            SwitchError::Io { .. } => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "switch-failed", error.to_string())
            }
        })?;
    let at = super::super::tokens::unix_ms(SystemTime::now());
    let body = loader_entry(&by.name, ipxe, &document).to_string();
    let entry = Write::Append { log: Log::Audit, at_unix_ms: at, subject: format!("image {name}"), body };
    tracing::info!(image = name, ipxe, by = by.name, "image loader switched");
    // It is switched: an error now would be taken for nothing done.
    if let Err(why) = admin.append(Transition { writes: vec![entry] }).await
        && let Some(warnings) = document["warnings"].as_array_mut()
    {
        warnings.push(json!(not_noted(&why)));
    }
    Ok(Json(document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_image_can_be_read_again_although_the_last_reading_panicked() {
        let flag = Arc::new(AtomicBool::new(false));
        let verifying = Verifying::begin(&flag).unwrap();
        assert!(Verifying::begin(&flag).is_none(), "one at a time");
        let reading = std::thread::spawn(move || {
            let _verifying = verifying;
            panic!("a fault");
        });
        reading.join().expect_err("it panics");
        assert!(Verifying::begin(&flag).is_some());
    }
}

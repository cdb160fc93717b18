//! Images.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::super::Admin;
use super::super::auth::{Operator, Reader};
use super::super::loaders::{loader_document, loader_entry};
use super::super::problem::Problem;
use super::{Answer, Named, Text, document_of, read_body};
use crate::files::gss::{Switch, SwitchError};
use crate::jobs::book::Refusal;
use crate::jobs::image::Images;
use crate::store::{Log, Transition, Write};

/// List images, bootable or not.
#[utoipa::path(
    get, path = "/v1/images", tag = "images",
    responses((status = 200, description = "Every image", body = ref("#/components/schemas/ImageList"))),
    security(("token" = ["read"]))
)]
pub(super) async fn list(_: Reader, State(admin): State<Arc<Admin>>) -> Answer {
    let catalog = admin.state.library.load();
    document_of(json!({ "images": catalog.list().iter().map(|image| &**image).collect::<Vec<_>>() }))
        .map(Json)
}

/// Show an image with its files.
#[utoipa::path(
    get, path = "/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "The image's name")),
    responses((status = 200, description = "The image", body = ref("#/components/schemas/Image"))),
    security(("token" = ["read"]))
)]
pub(super) async fn show(_: Reader, State(admin): State<Arc<Admin>>, Named(name): Named<String>) -> Answer {
    match admin.state.library.load().image(&name) {
        Some(image) => document_of(image).map(Json),
        None => {
            let detail = Refusal::UnknownImage { name }.to_string();
            Err(Problem::new(StatusCode::NOT_FOUND, "unknown-image", detail))
        }
    }
}

/// Look at the folders of images now, instead of with the next round.
#[utoipa::path(
    post, path = "/v1/images/rescan", tag = "images",
    responses((status = 200, description = "What was found", body = ref("#/components/schemas/Rescan"))),
    security(("token" = ["operate"]))
)]
pub(super) async fn rescan(_: Operator, State(admin): State<Arc<Admin>>) -> Answer {
    let library = Arc::clone(&admin.state.library);
    let failed = |error: &dyn std::fmt::Display| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "scan-failed", error.to_string())
    };
    // Walks folders: not on this thread, which answers /healthz.
    let report = tokio::task::spawn_blocking(move || library.rescan())
        .await
        .map_err(|error| failed(&error))?
        .map_err(|error| failed(&error))?;
    Ok(Json(json!({ "images": report.images, "files": report.files, "settling": report.settling })))
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
        scan()?;
        Ok(loader_document(&library.snapshot(), &image, ipxe, &done))
    });
    let document = switched
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "switch-failed", error.to_string()))?
        .map_err(|error: SwitchError| match &error {
            SwitchError::NoImage(_) => {
                Problem::new(StatusCode::NOT_FOUND, "unknown-image", error.to_string())
            }
            SwitchError::NotAnImage(_) | SwitchError::NoLoaders => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "cannot-switch", error.to_string())
            }
            SwitchError::Io { .. } => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "switch-failed", error.to_string())
            }
        })?;
    let at = super::super::tokens::unix_ms(SystemTime::now());
    let body = loader_entry(&by.name, ipxe, &document).to_string();
    let entry = Write::Append { log: Log::Audit, at_unix_ms: at, subject: format!("image {name}"), body };
    admin.look(move |_, store| store.commit(&[Transition { writes: vec![entry] }]).map(|_| ())).await??;
    tracing::info!(image = name, ipxe, by = by.name, "image loader switched");
    Ok(Json(document))
}

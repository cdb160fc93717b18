//! Images.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::super::Admin;
use super::super::auth::{Operator, Reader};
use super::super::problem::Problem;
use super::{Answer, Named, document_of};
use crate::jobs::book::Refusal;
use crate::jobs::image::Images;

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

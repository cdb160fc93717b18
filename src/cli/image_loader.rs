//! `image loader enable|disable`: whether an image boots by iPXE or by the boot program its folder brings. A running
//! server does it and shows it at the machines' next packet; without one the folder is changed all the same.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::args::{Common, ImageLoaderVerb};
use super::image::acting_in;
use super::serve::{STORE, open_library};
use super::{Done, Exit, Failure, client, load_config, output};
use crate::config::Plan;
use crate::control::client::{ClientError, escaped};
use crate::control::loader_document;
use crate::files::gss::{Switch, SwitchError};
use crate::store::{Log, SqliteStore, Store, Transition, Write};

pub(super) fn run(common: &Common, verb: &ImageLoaderVerb) -> Done {
    let (name, ipxe, json) = match verb {
        ImageLoaderVerb::Enable { name, json } => (name, true, *json),
        ImageLoaderVerb::Disable { name, json } => (name, false, *json),
    };
    let path = format!("/v1/images/{}/loader", escaped(name));
    let document = match client(common)?.post(&path, &json!({ "ipxe": ipxe })) {
        Err(ClientError::NoServer { source, .. })
            if common.api.is_none() && source.kind() != std::io::ErrorKind::PermissionDenied =>
        {
            here(&load_config(common, &[])?.plan, name, ipxe)?
        }
        answer => answer?,
    };
    if json {
        output::json(&document);
    } else {
        draw(&document);
    }
    Ok(Exit::Fine)
}

/// Without a server: in the folder itself, with an entry in the audit log of the store that no server holds.
fn here(plan: &Plan, name: &str, ipxe: bool) -> Result<Value, Failure> {
    let library = open_library(plan)?;
    let catalog = library.snapshot();
    let roots: Vec<&Path> =
        std::iter::once(&plan.images_dir).chain(&plan.image_trees).map(|path| path.as_path()).collect();
    let switch = Switch::of(&catalog, &roots, name).map_err(failure)?;
    let acting =
        acting_in(roots.iter().find(|root| root.join(name).is_dir()).unwrap_or(&plan.images_dir.as_path()))?;
    let done = if ipxe { switch.enable() } else { switch.disable() };
    drop(acting);
    let done = done.map_err(failure)?;
    library.rescan().map_err(|error| Failure::new(Exit::Runtime, error))?;
    let document = loader_document(&library.snapshot(), name, ipxe, &done);
    match said(plan, name, ipxe, &document) {
        Ok(true) => {}
        Ok(false) => output::remark("note: this is not in the audit log: no server has run here yet"),
        Err(why) => {
            output::remark(&format!("warning: the change is made, but not in the audit log: {why}"));
        }
    }
    Ok(document)
}

fn failure(error: SwitchError) -> Failure {
    let exit = match &error {
        SwitchError::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Exit::Permission
        }
        SwitchError::Io { .. } => Exit::Runtime,
        SwitchError::NoImage(_)
        | SwitchError::NotAnImage(_)
        | SwitchError::NoLoaders
        | SwitchError::Writing { .. } => Exit::Wrong,
    };
    Failure::new(exit, error)
}

/// Writes the entry; false where there is no store yet. It is not made here: it would be this user's, and not the server's.
fn said(plan: &Plan, name: &str, ipxe: bool, document: &Value) -> Result<bool, String> {
    let path = plan.server.state_dir.join(STORE);
    if !path.exists() {
        return Ok(false);
    }
    let mut store = SqliteStore::open(&path).map_err(|error| error.to_string())?;
    let user =
        std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "root".into());
    let entry = crate::control::loader_entry(&format!("{user} (no server running)"), ipxe, document);
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64;
    let write = Write::Append {
        log: Log::Audit,
        at_unix_ms: at,
        subject: format!("image {name}"),
        body: entry.to_string(),
    };
    store.commit(&[Transition { writes: vec![write] }]).map(|_| true).map_err(|error| error.to_string())
}

fn draw(document: &Value) {
    let text = |value: &Value| output::plain(value.as_str().unwrap_or_default());
    let name = text(&document["image"]);
    let files = document["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    let word = if document["ipxe"] == true { "on" } else { "off" };
    if files.is_empty() {
        output::line(format!("iPXE is {word} for {name} already"));
    } else {
        output::line(format!("iPXE is {word} for {name} from the machines' next packet on"));
    }
    for file in files {
        let from =
            file["from"].as_str().map(|from| format!(" from {}", output::plain(from))).unwrap_or_default();
        output::line(format!("  {} {}{from}", text(&file["done"]), text(&file["file"])));
    }
    for (family, way) in document["boots"].as_object().into_iter().flatten() {
        match way["by"].as_str() {
            Some("native") => {
                output::line(format!("  {family} machines boot {} over TFTP", text(&way["program"])));
            }
            Some("ipxe") => output::line(format!("  {family} machines boot by iPXE")),
            _ => {}
        }
    }
    for warning in document["warnings"].as_array().into_iter().flatten() {
        output::line(format!("warning: {}", text(warning)));
    }
}

//! `import gss`: what an existing tree of GSS or DS holds, which machines could boot what from it, and two ways to serve
//! it: where it lies, or copied.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{Common, ImportGss, ImportVerb};
use super::image::{Site, acting, make_images, me};
use super::serve::library_settings;
use super::{Done, Exit, Failure, load_config, output};
use crate::config::{DEFAULT_FILE, Plan};
use crate::control::ways;
use crate::files::gss;
use crate::files::intake::{self, Refused};
use crate::files::library::{Library, Settings};
use crate::files::loader_facts;
use crate::files::make;
use crate::files::record::{RECORD_NAME, Record};
use crate::files::versions::{VersionError, Versions};
use crate::jobs::Image;
use crate::jobs::image::Images;
use crate::sys::acting::as_myself;

/// Versions of before that an import leaves in place: there are none where it may copy to.
const KEPT: usize = 2;

/// Where the images folder is below what an administrator may name: the product's own folder, or one above it.
const BELOW: &[&str] =
    &["images", "pxe/images", "sbs/images", "deployment/sbs/images", "agents/deployment/sbs/images"];

pub(super) fn run(common: &Common, verb: &ImportVerb) -> Done {
    let ImportVerb::Gss(import) = verb;
    let plan = load_config(common, &[])?.plan;
    let root = root_of(&import.dir)?;
    let tree =
        Library::open(Settings { images_dir: root.clone(), trees: Vec::new(), ..library_settings(&plan) })
            .map_err(|error| Failure::new(Exit::Wrong, error))?;
    let catalog = tree.load();
    let images: Vec<&Image> = catalog.list().iter().map(|image| &**image).collect();
    if images.is_empty() {
        let message = format!("{}: no folder of images in it", root.display());
        return Err(Failure::new(Exit::Wrong, message));
    }
    let served = is_served(&plan, &root);
    let mut document = json!({
        "root": root,
        "served": served,
        "images": images.iter().map(|image| found(image, &root)).collect::<Vec<_>>(),
        "beside": beside(&root),
    });
    if import.copy {
        let copied = copy_all(&plan, &root, &images)?;
        let mut site = Site::find(&plan);
        for one in copied.iter().filter(|one| one["done"] == "copied") {
            let about = json!({ "version": one["version"], "bytes": one["bytes"], "from": root });
            site.tell(one["name"].as_str().unwrap_or_default(), "image-imported", about);
        }
        document["copied"] = Value::Array(copied);
    }
    if import.serve && !served {
        document["configured"] = json!(configure(common, &root)?);
    }
    if import.json {
        output::json(&document);
    } else {
        draw(&document, import, &plan);
    }
    let is_left = document["copied"]
        .as_array()
        .is_some_and(|copied| copied.iter().any(|one| one["reason"].is_string()));
    Ok(if is_left { Exit::Wrong } else { Exit::Fine })
}

/// The images folder that `dir` means.
fn root_of(dir: &Path) -> Result<PathBuf, Failure> {
    let dir = fs::canonicalize(dir)
        .map_err(|error| Failure::new(Exit::Wrong, format!("{}: {error}", dir.display())))?;
    let is_root = dir.file_name().is_some_and(|name| name.eq_ignore_ascii_case("images"))
        || steps(&dir).any(|(name, _)| gss::is_menu_option(&name) || gss::is_bstrap_folder(&name));
    if is_root {
        return Ok(dir);
    }
    let below = BELOW.iter().find_map(|path| {
        path.split('/').try_fold(dir.clone(), |at, step| {
            steps(&at).find(|(name, _)| name.eq_ignore_ascii_case(step)).map(|(_, path)| path)
        })
    });
    Ok(below.unwrap_or(dir))
}

/// The folders in a folder.
fn steps(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

fn is_served(plan: &Plan, root: &Path) -> bool {
    std::iter::once(&plan.images_dir)
        .chain(&plan.image_trees)
        .any(|dir| fs::canonicalize(dir).is_ok_and(|dir| dir == root))
}

/// One image of the tree.
fn found(image: &Image, root: &Path) -> Value {
    let form = match &image.gss {
        _ if gss::is_bstrap_folder(&image.name) => "bstrap",
        _ if gss::is_menu_option(&image.name) => "gss",
        Some(_) => "ds",
        None => "other",
    };
    let loaders: Vec<Value> = image
        .gss
        .iter()
        .flat_map(|gss| &gss.ipxe)
        .map(|program| {
            let facts = loader_facts::read(&root.join(&image.name).join(&program.file)).ok();
            json!({
                "family": program.family,
                "file": program.file,
                "what": facts.as_ref().map(|facts| facts.what),
                "version": facts.as_ref().and_then(|facts| facts.version.clone()),
                "signed_by": facts.as_ref().map(|facts| facts.signed_by.clone()),
                "blake3": facts.as_ref().map(|facts| facts.blake3.clone()),
            })
        })
        .collect();
    let programs: Vec<&str> =
        image.files.iter().map(|file| file.name.as_str()).filter(|name| gss::is_boot_program(name)).collect();
    json!({
        "name": image.name,
        "form": form,
        "title": image.title,
        "kind": image.kind,
        "bytes": image.bytes(),
        "ipxe": image.gss.as_ref().is_some_and(|gss| gss.is_on()),
        "ipxe_loaders": loaders,
        "boot_programs": programs,
        "boots": ways(image),
        "cannot_boot": image.unbootable,
        "warnings": image.warnings,
    })
}

/// Files beside the images' folders: nobody can ask for them, and their loader names are answered all the same.
fn beside(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Copies every image into the images folder, each whole and on the disk before it is seen there, with a record that says
/// so: a server takes it at once. Those whose name is taken, and those with a file that `image add` would refuse, are left as
/// they are.
fn copy_all(plan: &Plan, root: &Path, images: &[&Image]) -> Result<Vec<Value>, Failure> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::Runtime,
            };
            Failure::new(exit, format!("{path}: {error}"))
        }
    };
    make_images(plan)?;
    // One that somebody named is made as well.
    fs::create_dir_all(&plan.images_dir).map_err(failed(&plan.images_dir))?;
    let versions = Versions::open(&plan.images_dir)?;
    let _acting = acting(plan)?;
    versions.recover()?;
    let mut copied = Vec::new();
    for image in images {
        let (from, to) = (root.join(&image.name), plan.images_dir.join(&image.name));
        // Whatever it is: a link, or a file in the way.
        let taken = std::fs::symlink_metadata(&to).is_ok();
        let nothing = if taken { None } else { Some(versions.base(&image.name)?) };
        let Some(nothing) = nothing.filter(|nothing| nothing.is_nothing()) else {
            copied.push(json!({ "name": image.name, "done": "there already" }));
            continue;
        };
        // Hidden from the scan until it is whole, and removed if it never is.
        let staged = versions.stage(&image.name)?;
        let (bytes, record) = match copy_folder(&from, staged.path()) {
            // The others can be copied all the same.
            Err(refused @ Refused::File { .. }) => {
                copied
                    .push(json!({ "name": image.name, "done": "not copied", "reason": refused.to_string() }));
                continue;
            }
            copied => copied?,
        };
        let published = match versions.publish(&image.name, staged, record, KEPT, &nothing, || true) {
            Err(VersionError::Meanwhile { .. }) => {
                copied.push(json!({ "name": image.name, "done": "there already" }));
                continue;
            }
            published => published?,
        };
        copied.push(json!({
            "name": image.name, "done": "copied", "bytes": bytes, "version": published.version
        }));
    }
    Ok(copied)
}

/// Copies an image's folder with all its files, checked as `image add` checks them, on disk when it returns; its bytes and its
/// record. A folder of which a file is still being written is left.
fn copy_folder(from: &Path, to: &Path) -> Result<(u64, Record), Refused> {
    let failed = |path: &Path| {
        let what = path.display().to_string();
        move |error| Refused::Io { what, error }
    };
    let mut found = Vec::new();
    as_myself(|| files_of(from, "", &mut found)).map_err(failed(from))?;
    let files: Vec<PathBuf> =
        found.iter().filter(|(_, is_dir)| !is_dir).map(|(name, _)| from.join(name)).collect();
    intake::check_rest(&files)?;
    let (mut bytes, mut hashes) = (0, HashMap::new());
    for (name, is_dir) in &found {
        let target = to.join(name);
        if *is_dir {
            make::folder(&target, name).map_err(failed(&target))?;
        } else {
            let (len, hash) = intake::take_over(&from.join(name), &target, name)?;
            bytes += len;
            hashes.insert(name.as_str(), hash);
        }
    }
    let folders = found.iter().filter(|(_, is_dir)| *is_dir).map(|(name, _)| to.join(name));
    for folder in folders.chain([to.to_owned()]) {
        fs::File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed(&folder))?;
    }
    let mut record = Record::of_folder(to, &me());
    for file in &mut record.files {
        file.blake3 = hashes.remove(file.name.as_str());
    }
    Ok((bytes, record))
}

/// Every folder and file below a folder, each folder before what is in it; true for folders. Links are left out, as the scan
/// would not follow those that leave the folder, and a record, which is the other place's.
fn files_of(top: &Path, below: &str, found: &mut Vec<(String, bool)>) -> io::Result<()> {
    for entry in fs::read_dir(top.join(below))? {
        let entry = entry?;
        let (kind, step) = (entry.file_type()?, entry.file_name());
        // Nobody could ask for it.
        let Some(step) = step.to_str() else { continue };
        let name = if below.is_empty() { step.to_owned() } else { format!("{below}/{step}") };
        if kind.is_dir() {
            found.push((name.clone(), true));
            files_of(top, &name, found)?;
        } else if kind.is_file() && step != RECORD_NAME {
            found.push((name, false));
        }
    }
    Ok(())
}

/// Adds the tree to `[images] trees` of the configuration file; the file.
fn configure(common: &Common, root: &Path) -> Result<PathBuf, Failure> {
    let path = common.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let failed = |error: io::Error| {
        let exit =
            if error.kind() == io::ErrorKind::PermissionDenied { Exit::Permission } else { Exit::Runtime };
        Failure::new(exit, format!("{}: {error}", path.display()))
    };
    let wrong = |why: String| Failure::new(Exit::Config, format!("{}: {why}", path.display()));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let mut document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| wrong(error.to_string()))?;
    let root = root.to_str().ok_or_else(|| wrong("the folder's name is not UTF-8".into()))?;
    let images = document.entry("images").or_insert_with(toml_edit::table);
    let images = images.as_table_like_mut().ok_or_else(|| wrong("images is no table".into()))?;
    let trees = images.entry("trees").or_insert_with(|| toml_edit::value(toml_edit::Array::new()));
    let trees = trees.as_array_mut().ok_or_else(|| wrong("images.trees is no list".into()))?;
    trees.push(root);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let staged = path.with_extension(format!("toml.{}.new", std::process::id()));
    let written = fs::write(&staged, document.to_string()).and_then(|()| {
        if let Ok(meta) = fs::metadata(&path) {
            fs::set_permissions(&staged, meta.permissions())?;
        }
        fs::File::open(&staged)?.sync_all()?;
        fs::rename(&staged, &path)
    });
    if let Err(error) = written {
        // The old file is as it was.
        let _ = fs::remove_file(&staged);
        return Err(failed(error));
    }
    Ok(path)
}

fn draw(document: &Value, import: &ImportGss, plan: &Plan) {
    let text = |value: &Value| output::plain(value.as_str().unwrap_or_default());
    let root = text(&document["root"]);
    let images = document["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    let plural = if images.len() == 1 { "" } else { "s" };
    output::line(format!("{root}: {} folder{plural}", images.len()));
    let rows = images
        .iter()
        .map(|image| {
            let boots = image["boots"].as_object().into_iter().flatten();
            let boots: Vec<String> = boots
                .filter_map(|(family, way)| match way["by"].as_str()? {
                    "native" => Some(format!("{family}: {} (TFTP)", text(&way["program"]))),
                    "ipxe" => Some(format!("{family}: iPXE (HTTP)")),
                    _ => None,
                })
                .collect();
            let ipxe = match (image["form"].as_str(), image["ipxe"].as_bool()) {
                (Some("bstrap" | "other"), _) => "-",
                (_, Some(true)) => "on",
                _ => "off",
            };
            vec![
                text(&image["name"]),
                text(&image["form"]),
                if image["kind"].is_null() { "-".into() } else { text(&image["kind"]) },
                output::bytes(image["bytes"].as_u64().unwrap_or(0)),
                ipxe.to_owned(),
                if boots.is_empty() { "nothing".into() } else { boots.join(", ") },
            ]
        })
        .collect();
    output::table(&["FOLDER", "FORM", "KIND", "SIZE", "IPXE", "MACHINES BOOT"], rows);
    for image in images {
        let name = text(&image["name"]);
        for loader in image["ipxe_loaders"].as_array().into_iter().flatten() {
            let version = loader["version"].as_str().map(|version| format!(" {}", output::plain(version)));
            let signed = match loader["signed_by"].as_array().map(Vec::as_slice) {
                Some([first, ..]) => format!(", signed by {}", text(first)),
                _ => String::new(),
            };
            let what = loader["what"].as_str().filter(|what| *what != "other").unwrap_or("a loader");
            let version = version.unwrap_or_default();
            output::line(format!("{name}: {} is {what}{version}{signed}", text(&loader["file"])));
        }
        if let Some(reason) = image["cannot_boot"].as_str() {
            output::line(format!("warning: {name} is not offered: {}", output::plain(reason)));
        }
        for warning in image["warnings"].as_array().into_iter().flatten() {
            output::line(format!("warning: {name}: {}", text(warning)));
        }
    }
    let beside: Vec<String> = document["beside"].as_array().into_iter().flatten().map(&text).collect();
    if !beside.is_empty() {
        output::line(format!("not served, because they lie beside the folders: {}", beside.join(", ")));
    }
    for copied in document["copied"].as_array().into_iter().flatten() {
        let reason = copied["reason"].as_str().map(|reason| format!(": {}", output::plain(reason)));
        let done = text(&copied["done"]);
        output::line(format!("{}: {done}{}", text(&copied["name"]), reason.unwrap_or_default()));
    }
    match (document["configured"].as_str(), document["served"].as_bool()) {
        (Some(file), _) => output::line(format!(
            "served in place from the server's next start on: {} has it in [images] trees now",
            output::plain(file)
        )),
        (None, Some(true)) => output::line("this server's configuration serves it in place"),
        _ if import.copy => output::line(format!("in {} now", plan.images_dir.display())),
        _ => output::line(format!(
            "nothing was changed; --serve serves it where it lies ([images] trees = [\"{root}\"]), --copy copies it to {}",
            plan.images_dir.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    #[test]
    fn a_folder_is_copied_whole_and_checked_or_not_at_all() {
        let folder = TestFolder::new("import-copy");
        let tree = folder.path().join("tree");
        let wim = include_bytes!("../../tests/data/wim/two-images-lzx.wim");
        for (name, bytes) in [
            ("X64/boot.wim", &wim[..]),
            ("X64/.ipxe64.efi.off", b"off"),
            ("image.toml", b"title = \"x\""),
            (RECORD_NAME, b"{}"),
        ] {
            folder.write(&format!("tree/{name}"), bytes);
            folder.age(&format!("tree/{name}"), 60);
        }
        std::os::unix::fs::symlink("/etc/passwd", tree.join("X64/link")).unwrap();
        let copy = |to: &str| {
            let to = folder.path().join(to);
            fs::create_dir(&to).unwrap();
            copy_folder(&tree, &to)
        };
        let (bytes, record) = copy("whole").unwrap();
        assert_eq!(bytes, wim.len() as u64 + 3 + 11);
        let hash = blake3::hash(wim).to_hex().to_string();
        assert_eq!(record.file("X64/boot.wim").and_then(|file| file.blake3.clone()), Some(hash));
        assert_eq!((record.files.len(), record.texts.len()), (1, 1));
        let copied = folder.path().join("whole");
        assert!(copied.join("X64/.ipxe64.efi.off").is_file() && !copied.join("X64/link").exists());

        let refused = |to: &str| copy(to).unwrap_err().to_string();
        let mut writer = fs::File::options().append(true).open(tree.join("image.toml")).unwrap();
        assert!(refused("open").contains("image.toml: refused: it is still being written"));
        writer.write_all(b"#").unwrap();
        drop(writer);
        assert!(refused("young").contains("it is still being written"));
        let aged = SystemTime::now() - Duration::from_secs(60);
        fs::File::options().write(true).open(tree.join("image.toml")).unwrap().set_modified(aged).unwrap();
        folder.write("tree/X64/boot.wim", &wim[..900]);
        folder.age("tree/X64/boot.wim", 60);
        assert!(refused("cut").contains("boot.wim: refused: truncated"));
    }
}

//! `image add`, `list`, `show`, `verify`, `versions`, `rollback`, `remove`: in the images folder itself, with or without
//! a running server. One that runs is asked which jobs need an image, and told what was done. With `--api` the server
//! there does it, but for `add`, whose files are here.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::args::{AccessArg, Common, ImageAdd, ImageVerb, ImageVerify, KindArg};
use super::progress::Progress;
use super::serve::{STORE, library_settings, open_library};
use super::{Done, Exit, Failure, client, image_loader, load_config, output};
use crate::config::Plan;
use crate::control::client::{Client, ClientError, escaped};
use crate::control::user_name;
use crate::files::intake::{self, Refused, Setting, Wish};
use crate::files::library::Library;
use crate::files::make;
use crate::files::scan;
use crate::files::verify::{self, How, Run};
use crate::files::versions::{Version, VersionError, Versions};
use crate::jobs::job::Job;
use crate::store::{Kind, Log, SqliteStore, Store, StoreError, Transition, Write};
use crate::sys::acting::Acting;

pub(super) fn run(common: &Common, verb: &ImageVerb) -> Done {
    // That one asks the running server first.
    if let ImageVerb::Loader(verb) = verb {
        return image_loader::run(common, verb);
    }
    if common.api.is_some() {
        return far(common, verb);
    }
    let plan = load_config(common, &[])?.plan;
    match verb {
        ImageVerb::Loader(_) => Ok(Exit::Fine),
        ImageVerb::Add(add) => self::add(&plan, add),
        ImageVerb::List { json } => {
            let library = open_library(&plan)?;
            let catalog = library.load();
            let list = document(&json!({ "images": catalog.shown_list().collect::<Vec<_>>() }))?;
            draw(&list, *json, &format!("no images in {}", plan.images_dir.display()));
            Ok(Exit::Fine)
        }
        ImageVerb::Show { name, json } => {
            let library = open_library(&plan)?;
            let catalog = library.load();
            let Some(shown) = catalog.shown(name) else {
                let message = format!(
                    "there is no image {name:?} in {}; `bootstorm image list` shows the ones there are",
                    plan.images_dir.display()
                );
                return Err(Failure::new(Exit::Wrong, message));
            };
            show(&document(&shown)?, *json);
            Ok(Exit::Fine)
        }
        ImageVerb::Verify(verify) => self::verify(&plan, verify),
        ImageVerb::Versions { name, json } => {
            let all = versions(&plan)?.list(name)?;
            draw_versions(
                &json!({ "name": name, "versions": all.iter().map(version_shown).collect::<Vec<_>>() }),
                *json,
            );
            Ok(Exit::Fine)
        }
        ImageVerb::Rollback { name, version, force, json } => {
            let (now, before) = {
                let _acting = acting(&plan)?;
                versions(&plan)?.roll_back(name, *version, *force)?
            };
            let mut site = Site::find(&plan);
            site.tell(name, "image-rolled-back", json!({ "version": now, "before": before }));
            let library = open_library(&plan)?;
            let catalog = library.load();
            let notes = notes(catalog.shown(name).map(|shown| shown.image), &[]);
            say_rolled_back(
                &json!({ "name": name, "version": now, "before": before, "warnings": notes }),
                *json,
            );
            for note in &notes {
                output::remark(&format!("warning: {}", output::plain(note)));
            }
            Ok(Exit::Fine)
        }
        ImageVerb::Remove { name, version, force, json } => {
            let versions = versions(&plan)?;
            let mut site = Site::find(&plan);
            match version {
                Some(version) => {
                    let acting = acting(&plan)?;
                    versions.remove_version(name, *version)?;
                    drop(acting);
                    site.tell(name, "image-version-removed", json!({ "version": version }));
                }
                None => {
                    let known = versions.exists(name)? || versions.list(name).is_ok();
                    let needed = if known && !force { site.jobs_of(name)? } else { Vec::new() };
                    if !needed.is_empty() {
                        return Err(Failure::new(Exit::Wrong, in_use(name, &needed)));
                    }
                    let acting = acting(&plan)?;
                    versions.remove(name)?;
                    drop(acting);
                    site.tell(name, "image-removed", json!({ "forced": force }));
                }
            }
            say_removed(name, *version, *json);
            Ok(Exit::Fine)
        }
    }
}

/// The same through the API of a server elsewhere.
fn far(common: &Common, verb: &ImageVerb) -> Done {
    let client = client(common)?;
    let path = |name: &str, rest: &str| format!("/v1/images/{}{rest}", escaped(name));
    match verb {
        ImageVerb::Loader(_) => {}
        ImageVerb::Add(_) => {
            let message =
                "add takes files of the host it runs on: run it on the server itself, without --api";
            return Err(Failure::new(Exit::Usage, message));
        }
        ImageVerb::List { json } => draw(&client.get("/v1/images")?, *json, "no images on that server"),
        ImageVerb::Show { name, json } => show(&client.get(&path(name, ""))?, *json),
        ImageVerb::Versions { name, json } => draw_versions(&client.get(&path(name, "/versions"))?, *json),
        ImageVerb::Rollback { name, version, force, json } => {
            let body = json!({ "version": version, "force": force });
            let done = client.post(&path(name, "/rollback"), &body)?;
            output::notes(&done["warnings"]);
            say_rolled_back(&done, *json);
        }
        ImageVerb::Remove { name, version, force, json } => {
            let mut query = format!("?force={force}");
            if let Some(version) = version {
                query.push_str(&format!("&version={version}"));
            }
            output::notes(&client.delete(&path(name, &query))?["warnings"]);
            say_removed(name, *version, *json);
        }
        ImageVerb::Verify(verify) => {
            let Some(name) = verify.name.as_deref().filter(|_| !verify.accept && !verify.restart) else {
                let message = "with --api one image by its name is verified, without --accept or --restart";
                return Err(Failure::new(Exit::Usage, message));
            };
            let begun = client.post(&path(name, "/verify"), &json!({ "all": verify.all }))?;
            match verify.json {
                true => output::json(&begun),
                false => output::line(format!(
                    "the server reads {} now; `bootstorm image show` and `audit list --subject` tell what it found",
                    output::plain(name)
                )),
            }
        }
    }
    Ok(Exit::Fine)
}

impl From<VersionError> for Failure {
    fn from(error: VersionError) -> Self {
        let exit = match &error {
            error if error.is_permission() => Exit::Permission,
            VersionError::Io { .. } => Exit::Runtime,
            VersionError::BadName { .. } => Exit::Usage,
            _ => Exit::Wrong,
        };
        Self::new(exit, error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let is_permission = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
        };
        let exit = match refused {
            Refused::Version(error) => return error.into(),
            Refused::Io { ref error, .. } if is_permission(error) => Exit::Permission,
            Refused::Io { .. } | Refused::NoSpace { .. } => Exit::Runtime,
            Refused::File { .. } | Refused::Files(_) | Refused::Settings(_) => Exit::Wrong,
        };
        Self::new(exit, refused)
    }
}

fn document(shown: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(shown).map_err(|error| Failure::new(Exit::Runtime, error))
}

fn versions(plan: &Plan) -> Result<Versions, Failure> {
    Versions::open(&plan.images_dir).map_err(|error| {
        Failure::new(Exit::Runtime, format!("{error}; make it, or name another one with --images"))
    })
}

/// Whoever does something in the images folder does it as the owner of that folder, if they may: what root makes there is to
/// be the server's, and what the server makes is not to lead root elsewhere.
pub(super) fn acting(plan: &Plan) -> Result<Acting, Failure> {
    acting_in(&plan.images_dir)
}

/// The same for the folder of a tree.
pub(super) fn acting_in(folder: &Path) -> Result<Acting, Failure> {
    Acting::for_owner_of(folder).map_err(|error| {
        Failure::new(if error.is_permission() { Exit::Permission } else { Exit::Runtime }, error)
    })
}

/// As the server does: an images folder of our own is made, as its state folder's owner; one that somebody named must be
/// there.
pub(super) fn make_images(plan: &Plan) -> Result<(), Failure> {
    let (images, state) = (&plan.images_dir, &plan.server.state_dir);
    if !images.starts_with(state) || images.exists() {
        return Ok(());
    }
    let made = std::fs::create_dir_all(state).map_err(|error| (state, error)).and_then(|()| {
        let _acting = Acting::for_owner_of(state).map_err(|error| (state, error.source))?;
        let between = images.parent().map_or(Ok(()), std::fs::create_dir_all);
        between.and_then(|()| make::folder(images, "")).map_err(|error| (images, error))
    });
    made.map_err(|(folder, error)| {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let message = format!("make {}: {error}; --images names another folder", folder.display());
        Failure::new(if denied { Exit::Permission } else { Exit::Runtime }, message)
    })
}

// add

fn add(plan: &Plan, add: &ImageAdd) -> Done {
    make_images(plan)?;
    let versions = versions(plan)?;
    let wish = Wish {
        name: add.name.clone(),
        sources: add.files.clone(),
        settings: settings(add),
        update: add.update,
        only_new: add.new,
        keep: add.keep,
        by: me(),
    };
    let progress = Progress::new();
    let acting = acting(plan)?;
    let taken = intake::add(&versions, &wish, &mut |step| progress.step(step));
    drop(acting);
    progress.end();
    let taken = taken?;
    let bytes: u64 = taken.files.iter().map(|file| file.len).sum();
    let shown: Vec<Value> = taken
        .files
        .iter()
        .map(|file| json!({ "name": file.name, "len": file.len, "blake3": file.blake3 }))
        .collect();
    let told = json!({ "version": taken.version, "before": taken.replaced, "bytes": bytes,
        "files": shown.iter().take(100).collect::<Vec<_>>() });
    Site::find(plan).tell(&add.name, "image-added", told);

    // What it has become, as the server sees it.
    let library =
        Library::open(library_settings(plan)).map_err(|error| Failure::new(Exit::Runtime, error))?;
    let catalog = library.load();
    let image = catalog.shown(&add.name);
    let notes = notes(image.map(|shown| shown.image), &taken.warnings);
    if add.json {
        output::json(&json!({
            "name": add.name, "version": taken.version, "replaced": taken.replaced, "removed": taken.dropped,
            "bytes": bytes, "files": shown, "kept": taken.carried, "warnings": taken.warnings, "notes": notes,
        }));
    } else {
        let which = match taken.replaced {
            Some(before) => format!("version {} (version {before} is kept)", taken.version),
            None => format!("version {}", taken.version),
        };
        let which = if taken.replaced.is_some_and(|before| taken.dropped.contains(&before)) {
            format!("version {}", taken.version)
        } else {
            which
        };
        let count = taken.files.len();
        let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
        let own = match taken.private.as_slice() {
            [] => String::new(),
            private => format!("; never served: {}", private.join(", ")),
        };
        output::line(output::plain(&format!(
            "added {} {which}: {files}, {}{own}",
            add.name,
            output::bytes(bytes)
        )));
        for file in &taken.files {
            let hash = file.blake3.as_deref().unwrap_or("not read");
            output::line(output::plain(&format!(
                "  {}  {}  BLAKE3 {hash}",
                file.name,
                output::bytes(file.len)
            )));
        }
        for wim in image.iter().flat_map(|shown| &shown.details.wims) {
            document(wim).map(|wim| show_wim(&wim))?;
        }
        if !taken.carried.is_empty() {
            output::line(output::plain(&format!("  kept from before: {}", taken.carried.join(", "))));
        }
        if !taken.dropped.is_empty() {
            let numbers: Vec<String> = taken.dropped.iter().map(u32::to_string).collect();
            output::line(format!(
                "  removed with this: version {} (--keep {})",
                numbers.join(", "),
                add.keep
            ));
        }
    }
    for warning in &taken.warnings {
        output::remark(&format!("warning: {}", output::plain(warning)));
    }
    for note in &notes {
        output::remark(&format!("note: {}", output::plain(note)));
    }
    Ok(Exit::Fine)
}

/// What is to be said of the image beside what its files gave rise to.
fn notes(image: Option<&crate::jobs::Image>, warnings: &[String]) -> Vec<String> {
    let Some(image) = image else { return vec!["it does not show in the list of images".to_owned()] };
    let cannot = image.unbootable.iter().map(|reason| (reason, format!("it cannot boot yet: {reason}")));
    let doubts = image.warnings.iter().map(|warning| (warning, warning.clone()));
    let known = |text: &String| warnings.iter().any(|warning| warning == text);
    cannot.chain(doubts).filter(|(text, _)| !known(text)).map(|(_, said)| said).collect()
}

fn settings(add: &ImageAdd) -> Vec<(&'static str, Setting)> {
    let text = |key, value: &Option<String>| value.as_deref().map(|text| (key, Setting::from(text)));
    let kind = add.kind.map(|kind| match kind {
        KindArg::Winpe => "winpe",
        KindArg::Linux => "linux",
        KindArg::Iso => "iso",
        KindArg::Efi => "efi",
        KindArg::Script => "script",
    });
    let access = add.access.map(|access| match access {
        AccessArg::Open => "open",
        AccessArg::Boot => "boot",
    });
    [
        text("title", &add.title),
        kind.map(|kind| ("kind", kind.into())),
        text("arch", &add.arch),
        text("args", &add.args),
        add.boot_files.clone().map(|files| ("files", Setting::List(files))),
        add.index.map(|index| ("index", Setting::Number(index.into()))),
        add.destructive.map(|yes| ("destructive", Setting::Flag(yes))),
        access.map(|access| ("access", access.into())),
        text("group", &add.group),
        text("key", &add.key),
    ]
    .into_iter()
    .flatten()
    .collect()
}

// verify

fn verify(plan: &Plan, wanted: &ImageVerify) -> Done {
    let versions = versions(plan)?;
    let names: Vec<String> = match &wanted.name {
        Some(name) => vec![name.clone()],
        None => {
            let failed =
                |error| Failure::new(Exit::Runtime, format!("{}: {error}", plan.images_dir.display()));
            scan::image_folders(versions.root()).map_err(failed)?.into_iter().map(|(name, _)| name).collect()
        }
    };
    let mut all: Vec<(String, Version)> = Vec::new();
    for name in names {
        match versions.list(&name) {
            Ok(list) => {
                let list = list.into_iter().filter(|version| version.current || wanted.all);
                all.extend(list.map(|version| (name.clone(), version)));
            }
            // What it points to is read under its own name.
            Err(VersionError::Link { .. }) if wanted.name.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let acting = acting(plan)?;
    let run = Run::begin(&versions, wanted.name.as_deref().unwrap_or_default(), wanted.restart);
    if run.resumed {
        let since = output::moment(run.since);
        output::remark(&format!("going on with the run begun {since}; --restart reads everything again"));
    }
    let how = How { since: Some(run.since).filter(|_| run.resumed), accept: wanted.accept, stop: None };
    let progress = Progress::new();
    progress
        .step(intake::Step::Total(all.iter().map(|(_, version)| verify::bytes_of(&versions, version)).sum()));
    let (mut shown, mut bad, mut count, mut lines) = (Vec::new(), 0, 0, Vec::new());
    for (name, version) in &all {
        let outcomes = verify::version(&versions, version, how, &mut |step| progress.step(step))?;
        let number = version.record.version;
        for (file, outcome) in &outcomes {
            count += 1;
            if !outcome.is_good() {
                bad += 1;
                let which = if version.current { String::new() } else { format!(" version {number}") };
                lines.push(output::plain(&format!("{name}{which}: {file}: {outcome}")));
            }
        }
        let files: Vec<Value> = outcomes
            .iter()
            .map(|(file, outcome)| json!({ "name": file, "outcome": outcome.word(), "detail": outcome.to_string() }))
            .collect();
        shown.push(json!({ "name": name, "version": number, "current": version.current, "files": files }));
    }
    progress.end();
    run.finish();
    drop(acting);
    let mut site = Site::find(plan);
    for image in shown.iter().filter(|image| image["current"] == json!(true)) {
        let wrong = image["files"].as_array().into_iter().flatten();
        let wrong: Vec<&Value> = wrong.filter(|file| !is_good(file)).collect();
        let what = if wrong.is_empty() { "image-verified" } else { "image-damaged" };
        let name = image["name"].as_str().unwrap_or_default();
        site.tell(name, what, json!({ "version": image["version"], "files": wrong }));
    }
    if wanted.json {
        output::json(&json!({ "images": shown, "files": count, "bad": bad }));
    } else {
        lines.iter().for_each(output::line);
        let what =
            format!("{} of {count} files in {} versions", if bad == 0 { count } else { bad }, all.len());
        output::line(match bad {
            0 => format!("{what} are as they were taken in"),
            _ => format!("{what} are not as they were taken in"),
        });
    }
    Ok(if bad == 0 { Exit::Fine } else { Exit::Wrong })
}

fn is_good(file: &Value) -> bool {
    ["same", "first", "accepted", "done"].iter().any(|word| file["outcome"] == json!(word))
}

// Lists

/// One word of a JSON document.
fn text(value: &Value) -> String {
    output::plain(value.as_str().unwrap_or_default())
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn size_of(image: &Value) -> u64 {
    image["files"].as_array().into_iter().flatten().filter_map(|file| file["len"].as_u64()).sum()
}

fn moment(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), output::moment)
}

/// Characters of a title in lists.
const TITLE_SHOWN: usize = 48;

fn draw(list: &Value, as_json: bool, none: &str) {
    if as_json {
        return output::json(list);
    }
    let images = list["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    if images.is_empty() {
        return output::line(none);
    }
    let rows = images.iter().map(|image| {
        vec![
            text(&image["name"]),
            or_dash(text(&image["kind"])),
            or_dash(text(&image["cpu"])),
            number(&image["version"]),
            output::bytes(size_of(image)),
            output::cut(&text(&image["title"]), TITLE_SHOWN),
            state(image),
        ]
    });
    output::table(&["NAME", "KIND", "ARCH", "VERSION", "SIZE", "TITLE", "STATE"], rows.collect());
}

fn state(image: &Value) -> String {
    let mut said = Vec::new();
    if let Some(reason) = image["unbootable"].as_str() {
        said.push(format!("cannot boot: {reason}"));
    }
    if image["destructive"] == json!(true) {
        said.push("destructive".to_owned());
    }
    if image["access"] == json!("boot") {
        said.push("for boots only".to_owned());
    }
    let changed = texts(&image["changed"]);
    if !changed.is_empty() {
        said.push(format!("changed since it was taken in: {}", changed.join(", ")));
    }
    let warnings = texts(&image["warnings"]);
    match warnings.as_slice() {
        [] => {}
        [only] => said.push(format!("warning: {only}")),
        [first, rest @ ..] => said.push(format!("warning: {first} (and {} more)", rest.len())),
    }
    said.join("; ")
}

fn show(image: &Value, as_json: bool) {
    if as_json {
        return output::json(image);
    }
    let kind = or_dash(text(&image["kind"]));
    output::line(format!("{}: {}", text(&image["name"]), text(&image["title"])));
    let cpu = image["cpu"].as_str().map(|cpu| format!(", {cpu}")).unwrap_or_default();
    output::line(format!("kind {kind}{cpu}, {}", output::bytes(size_of(image))));
    if image["version"].is_u64() {
        let kept = image["versions_kept"].as_array().into_iter().flatten().map(number).collect::<Vec<_>>();
        let kept = if kept.is_empty() { String::new() } else { format!("; kept: {}", kept.join(", ")) };
        output::line(format!(
            "version {} of {}{kept}",
            number(&image["version"]),
            moment(&image["added_unix"])
        ));
        output::line(format!(
            "verified {}",
            match image["verified_unix"].as_u64() {
                Some(at) => output::moment(at),
                None => "never since it was taken in".to_owned(),
            }
        ));
    }
    let args = text(&image["args"]);
    if !args.is_empty() {
        output::line(format!("arguments {args}"));
    }
    if image["destructive"] == json!(true) {
        output::line("destructive: may wipe a disk");
    }
    if image["access"] == json!("boot") {
        output::line("access: only boots with their token");
    }
    for program in image["gss"]["ipxe"].as_array().into_iter().flatten() {
        output::line(format!(
            "{} machines boot by iPXE ({})",
            text(&program["family"]),
            text(&program["file"])
        ));
    }
    for native in image["gss"]["native"].as_array().into_iter().flatten() {
        let (family, program) = (text(&native["family"]), text(&native["program"]));
        output::line(format!("{family} machines boot {program} over TFTP, without iPXE"));
    }
    if let Some(reason) = image["unbootable"].as_str() {
        output::line(format!("cannot boot: {}", output::plain(reason)));
    }
    for warning in texts(&image["warnings"]) {
        output::line(format!("warning: {warning}"));
    }
    for name in texts(&image["changed"]) {
        output::line(format!(
            "warning: {name} is not as it was taken in; `bootstorm image verify` says more"
        ));
    }
    let files = image["files"].as_array().into_iter().flatten();
    let rows = files.map(|file| vec![text(&file["name"]), output::bytes(file["len"].as_u64().unwrap_or(0))]);
    output::table(&["FILE", "SIZE"], rows.collect());
    image["wims"].as_array().into_iter().flatten().for_each(show_wim);
}

fn show_wim(wim: &Value) {
    let images = wim["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut said = vec![
        match images.len() {
            1 => "1 image".to_owned(),
            count => format!("{count} images"),
        },
        match wim["compression"].as_str() {
            Some("none") => "not compressed".to_owned(),
            _ => text(&wim["compression"]),
        },
        match wim["boot_index"].as_u64() {
            Some(0) | None => "no boot index".to_owned(),
            Some(index) => format!("boot index {index}"),
        },
    ];
    for (key, word) in [("solid", "solid"), ("pipable", "pipable"), ("integrity", "integrity table")] {
        if wim[key] == json!(true) {
            said.push(word.to_owned());
        }
    }
    if wim["parts"].as_u64().is_some_and(|parts| parts > 1) {
        said.push(format!("part {} of {}", number(&wim["part"]), number(&wim["parts"])));
    }
    output::line(format!("{}: {}", text(&wim["file"]), said.join(", ")));
    for image in images {
        let facts = ["arch", "version", "edition", "default_language"].map(|key| text(&image[key]));
        let facts: Vec<String> = facts.into_iter().filter(|fact| !fact.is_empty()).collect();
        output::line(format!(
            "  {}  {}  {}",
            number(&image["index"]),
            or_dash(text(&image["name"])),
            facts.join(" ")
        ));
    }
    for finding in texts(&wim["findings"]) {
        output::line(format!("  {finding}"));
    }
}

/// A version as a document.
fn version_shown(version: &Version) -> Value {
    let record = &version.record;
    json!({
        "version": record.version, "current": version.current, "added_unix": record.added_unix, "by": record.by,
        "verified_unix": record.verified_unix(), "files": record.files,
    })
}

fn draw_versions(list: &Value, as_json: bool) {
    if as_json {
        return output::json(list);
    }
    let versions = list["versions"].as_array().into_iter().flatten();
    let rows = versions.map(|version| {
        vec![
            number(&version["version"]),
            if version["current"] == json!(true) { "served".to_owned() } else { "kept".to_owned() },
            moment(&version["added_unix"]),
            or_dash(text(&version["by"])),
            version["files"].as_array().map_or(0, Vec::len).to_string(),
            output::bytes(size_of(version)),
            moment(&version["verified_unix"]),
        ]
    });
    output::table(&["VERSION", "STATE", "ADDED", "BY", "FILES", "SIZE", "VERIFIED"], rows.collect());
}

fn say_rolled_back(done: &Value, as_json: bool) {
    match as_json {
        true => output::json(done),
        false => {
            let before = match done["before"].as_u64() {
                Some(before) => format!(" (version {before} is kept)"),
                None => String::new(),
            };
            output::line(format!(
                "{} is version {} again{before}",
                text(&done["name"]),
                number(&done["version"])
            ));
        }
    }
}

fn say_removed(name: &str, version: Option<u32>, as_json: bool) {
    match (as_json, version) {
        (true, version) => output::json(&json!({ "removed": name, "version": version })),
        (false, Some(version)) => {
            output::line(format!("removed version {version} of {}", output::plain(name)))
        }
        (false, None) => output::line(format!("removed {}", output::plain(name))),
    }
}

// Who else has to know

/// The user of this process, as the audit log names them.
pub(super) fn me() -> String {
    user_name(nix::unistd::Uid::current().as_raw())
}

fn in_use(name: &str, jobs: &[String]) -> String {
    let first: Vec<&str> = jobs.iter().take(5).map(String::as_str).collect();
    let more = if jobs.len() > first.len() {
        format!(" and {} more", jobs.len() - first.len())
    } else {
        String::new()
    };
    format!(
        "{name} is needed by job {}{more}: cancel it first (`bootstorm job cancel`), or say --force",
        first.join(", ")
    )
}

/// Where jobs and the audit log are.
pub(super) enum Site {
    /// With a server that runs.
    Server(Client),
    /// In its store, while none runs.
    Store(SqliteStore),
    /// No server ever ran with this state folder.
    Nowhere,
    /// They are not to be had.
    Closed(Failure),
}

impl Site {
    pub(super) fn find(plan: &Plan) -> Self {
        let client = Client::new(plan.admin.socket.clone());
        match client.get("/v1/jobs?limit=1") {
            Ok(_) => return Self::Server(client),
            Err(ClientError::NoServer { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(error) => return Self::Closed(error.into()),
        }
        let path = plan.server.state_dir.join(STORE);
        if !path.exists() {
            return Self::Nowhere;
        }
        match SqliteStore::open(&path) {
            Ok(store) => Self::Store(store),
            Err(error) => Self::Closed(Failure::new(Exit::Runtime, error)),
        }
    }

    /// Ids of live jobs that boot an image, now or later in their sequence.
    fn jobs_of(&mut self, name: &str) -> Result<Vec<String>, Failure> {
        match self {
            Self::Server(client) => {
                let list = client.get(&format!("/v1/jobs?live=true&limit=1000&image={}", escaped(name)))?;
                let jobs = list["jobs"].as_array().into_iter().flatten();
                Ok(jobs.map(|job| text(&job["id"])).collect())
            }
            Self::Store(store) => {
                let failed = |error: StoreError| Failure::new(Exit::Runtime, error);
                let (_, records) = store.list(Kind::Job).map_err(failed)?;
                let mut needed = Vec::new();
                for record in records {
                    let job: Job = serde_json::from_str(&record.body).map_err(|error| {
                        Failure::new(Exit::Runtime, format!("job {} cannot be read: {error}", record.key))
                    })?;
                    let mut actions = std::iter::once(&job.action).chain(&job.sequence);
                    if job.is_live() && actions.any(|action| action.image() == Some(name)) {
                        needed.push(job.id.to_string());
                    }
                }
                Ok(needed)
            }
            Self::Nowhere => Ok(Vec::new()),
            Self::Closed(failure) => Err(Failure::new(
                failure.exit,
                format!("cannot see whether a job needs it: {}; --force removes it unseen", failure.message),
            )),
        }
    }

    /// Has it written to the audit log, and the server look at the folder now. What was done is done: that it cannot be
    /// told is only said.
    pub(super) fn tell(&mut self, name: &str, what: &str, about: Value) {
        let told = match self {
            Self::Server(client) => {
                let body = json!({ "what": what, "about": about });
                let path = format!("/v1/images/{}/announce", escaped(name));
                client.post(&path, &body).map(drop).map_err(|error| error.to_string())
            }
            Self::Store(store) => {
                let body = json!({ "by": me(), "what": what, "image": name, "about": about });
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let write = Write::Append {
                    log: Log::Audit,
                    at_unix_ms: now.as_millis() as u64,
                    subject: format!("image {name}"),
                    body: body.to_string(),
                };
                store
                    .commit(&[Transition { writes: vec![write] }])
                    .map(drop)
                    .map_err(|error| error.to_string())
            }
            Self::Nowhere => Ok(()),
            Self::Closed(failure) => Err(failure.message.clone()),
        };
        if let Err(why) = told {
            output::remark(&format!("note: this is not in the audit log: {why}"));
        }
    }
}

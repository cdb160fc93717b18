//! `backup`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::args::Common;
use super::{Done, Exit, Failure, client, output};

/// What is asked for.
const PATH: &str = "/v1/backup";

/// A name that goes, however this ends but by a signal.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It is gone where it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

pub(super) fn run(common: &Common, file: &Path) -> Done {
    let client = client(common)?;
    if file.as_os_str() == "-" {
        client.download(PATH, io::stdout().lock())?;
        return Ok(Exit::Fine);
    }
    let failed = |verb: &str, error: &dyn std::fmt::Display| {
        Failure::new(Exit::Runtime, format!("{verb} {}: {error}", file.display()))
    };
    let Some(name) = file.file_name() else {
        return Err(Failure::new(Exit::Usage, "expected a file's path"));
    };
    // An older backup is not what a newer one is written over.
    if fs::symlink_metadata(file).is_ok() {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} is there already: name a new file", file.display()),
        ));
    }
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.partial", std::process::id()));
    let path = file.with_file_name(hidden);
    // It holds the keys of the house.
    let mut open = OpenOptions::new();
    let written = open.write(true).create_new(true).mode(0o600).open(&path);
    let written = written.map_err(|error| failed("write", &error))?;
    let partial = Partial(path);
    let len = client.download(PATH, &written)?;
    written.sync_all().map_err(|error| failed("write", &error))?;
    // A link, which unlike a rename replaces nothing that came meanwhile.
    fs::hard_link(&partial.0, file)
        .or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Err(error),
            // Not every file system has them.
            _ => fs::rename(&partial.0, file),
        })
        .map_err(|error| failed("write", &error))?;
    drop(partial);
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // It is whole and there; only a crash of this host in the next seconds could lose its name.
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        output::remark(&format!("{} cannot be synced: {error}", folder.display()));
    }
    output::line(format!("wrote {} ({})", file.display(), output::bytes(len)));
    output::line("images, leases, certificates and the configuration are files of their own");
    Ok(Exit::Fine)
}

//! Files and folders of ours below the images folder: with their rights whatever the umask says, and never where a link
//! leads. Images are read by the server's user, whoever takes them in; answer files hold passwords.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::files::names;
use crate::sys::{acting, open_plain_to_write};

/// For everybody to read.
const OPEN: u32 = 0o644;
/// For the owner of the images folder, and its group, to read.
const PRIVATE: u32 = 0o640;

/// Rights of a file by its name below its image's folder. Of what is private nobody knows here whether a server of another user
/// has to read it, so the umask decides, unless root acts for who owns the folder.
fn mode_of(name: &str) -> Option<u32> {
    match names::is_private(name) {
        true => acting::is_acting().then_some(PRIVATE),
        false => Some(OPEN),
    }
}

/// The same of a folder: whoever may read a file of it may go through it.
fn folder_mode_of(name: &str) -> Option<u32> {
    mode_of(name).map(|mode| mode | (mode >> 2 & 0o111))
}

/// A folder that is there, or is made; its last step is no link. `name` says whose rights it has: what it is called below its
/// image's folder.
///
/// # Errors
/// What making says; `NotADirectory` when something else has its name.
pub fn folder(path: &Path, name: &str) -> io::Result<()> {
    let mode = folder_mode_of(name);
    match DirBuilder::new().mode(mode.unwrap_or(0o777)).create(path) {
        Ok(()) => mode.map_or(Ok(()), |mode| fs::set_permissions(path, Permissions::from_mode(mode))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::symlink_metadata(path)?.is_dir() {
                true => Ok(()),
                false => Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("{} is a link or a file, and should be a folder", path.display()),
                )),
            }
        }
        Err(error) => Err(error),
    }
}

/// The folders of `name`, which may have several steps, below `top`, which is there.
///
/// # Errors
/// As [`folder`].
pub fn folders(top: &Path, name: &str) -> io::Result<()> {
    let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
    ends.filter_map(|end| name.get(..end))
        .filter(|name| !name.is_empty())
        .try_for_each(|name| folder(&top.join(name), name))
}

/// A new file for `name`.
///
/// # Errors
/// What making says; `AlreadyExists` where there is anything, be it a link that leads nowhere.
pub fn file(path: &Path, name: &str) -> io::Result<File> {
    let mode = mode_of(name);
    let file = OpenOptions::new().write(true).create_new(true).mode(mode.unwrap_or(0o666)).open(path)?;
    mode.map_or(Ok(()), |mode| file.set_permissions(Permissions::from_mode(mode)))?;
    Ok(file)
}

/// A new file of our own in place of what an earlier command left half-written under its name, on the disk when this returns.
///
/// # Errors
/// What making and writing say.
pub fn written(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = file(path, "")?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A file that is there to be locked.
///
/// # Errors
/// What opening says, also of a link.
pub fn lock_file(path: &Path) -> io::Result<File> {
    match file(path, "") {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_plain_to_write(path),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    #[test]
    fn what_is_made_has_its_rights_and_is_not_made_where_a_link_leads() {
        let test = TestFolder::new("make");
        let mode = |name: &str| fs::metadata(test.path().join(name)).unwrap().permissions().mode() & 0o7777;
        let make = |top: &str| {
            let top = test.path().join(top);
            folders(&top, "x64/sources").unwrap();
            folders(&top, "private/keys").unwrap();
            for name in ["x64/boot.wim", "private/ks.cfg"] {
                file(&top.join(name), name).unwrap();
            }
        };
        let modes = |top: &str| {
            let names = ["x64", "x64/sources", "x64/boot.wim", "private", "private/keys", "private/ks.cfg"];
            names.map(|name| mode(&format!("{top}/{name}")))
        };
        for top in ["own", "others"] {
            fs::create_dir(test.path().join(top)).unwrap();
        }
        make("own");
        assert_eq!(modes("own")[..3], [0o755, 0o755, 0o644]);
        std::os::unix::fs::chown(test.path().join("others"), Some(65_534), Some(65_534)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _acting = acting::Acting::for_owner_of(&test.path().join("others")).unwrap();
                make("others");
            });
        });
        assert_eq!(modes("others"), [0o755, 0o755, 0o644, 0o750, 0o750, 0o640]);
        let victim = test.write("victim", b"whole");
        for name in ["link", "away"] {
            symlink(
                if name == "link" { victim.clone() } else { test.path().join("gone") },
                test.path().join(name),
            )
            .unwrap();
            let path = test.path().join(name);
            assert!(
                file(&path, "").is_err() && lock_file(&path).is_err() && folder(&path, "").is_err(),
                "{name}"
            );
        }
        written(&test.path().join("link"), b"new").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"whole", "its name was taken, not what it led to");
        assert!(!test.path().join("gone").exists());
        written(&test.path().join("link"), b"again").unwrap();
        assert_eq!(fs::read(test.path().join("link")).unwrap(), b"again");
    }
}

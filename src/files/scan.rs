//! Walking folders: which files there are, where they really are, and which of them are not to be named.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::files::names;
use crate::files::served::FileIdentity;

/// Folders below an image's folder are followed this deep.
pub const DEPTH_MAX: usize = 12;
/// Most files listed of one image; more are left out with a note.
pub const FILES_MAX: usize = 50_000;
/// Most folders walked of one image: links among folders can multiply them without end.
const FOLDERS_MAX: usize = 10_000;
/// How long a file whose length still moves must have been left alone.
pub const SETTLE: Duration = Duration::from_secs(2);
/// Links inside a loader folder are followed this often; one of them may leave it.
const LOADER_LINKS_MAX: usize = 8;

/// A file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name relative to the folder walked, `/`-separated, as on disk.
    pub name: String,
    /// Where it really is (links resolved).
    pub path: PathBuf,
    /// Its version.
    pub identity: FileIdentity,
}

/// What is in a folder.
#[derive(Debug, Default)]
pub struct Walk {
    /// Files that can be served, in name order.
    pub files: Vec<Found>,
    /// Files left out for now because they are still being written.
    pub settling: Vec<String>,
    /// Things the operator should know (links that leave, names nobody can ask for).
    pub notes: Vec<String>,
    /// Every file seen, also those left out for now, for the next scan to compare with.
    pub seen: Vec<(PathBuf, FileIdentity)>,
    folder_count: usize,
}

/// What the previous scan saw, to tell a file that grows from one that is merely new.
#[derive(Debug)]
pub struct Before {
    seen: HashMap<PathBuf, FileIdentity>,
    now: SystemTime,
    first: bool,
}

impl Before {
    /// For the first scan: whatever is there is taken as it is.
    pub fn first(now: SystemTime) -> Self {
        Self { seen: HashMap::new(), now, first: true }
    }

    /// For a later scan.
    pub fn after(seen: HashMap<PathBuf, FileIdentity>, now: SystemTime) -> Self {
        Self { seen, now, first: false }
    }

    /// What the last scan saw, to try again with.
    pub fn into_seen(self) -> HashMap<PathBuf, FileIdentity> {
        self.seen
    }

    /// True while a file is being written: touched within [`SETTLE`], and its length moved since the last scan.
    ///
    /// For a file the last scan did not see, its two times tell: a writer moves both together, while a rename into
    /// place or the `utimensat` a copying tool ends with moves the inode's time alone.
    fn is_settling(&self, path: &Path, identity: &FileIdentity) -> bool {
        let now_ns =
            self.now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
        let fresh = (now_ns - identity.modified_ns).abs() < SETTLE.as_nanos() as i128;
        let moving = match self.seen.get(path) {
            Some(before) => before.len != identity.len,
            None => !self.first && identity.modified_ns == identity.changed_ns,
        };
        fresh && moving
    }
}

/// The folders below the images folder, by name. Files beside them, dot folders and `private` are no images.
///
/// # Errors
/// When the images folder itself cannot be read.
pub fn image_folders(images_dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(images_dir)? {
        let Ok(entry) = entry else { continue };
        let Ok(name) = entry.file_name().into_string() else { continue };
        let hidden = names::is_hidden(&name) || name == "lost+found" || !names::is_nameable(&name);
        if !hidden && fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir()) {
            folders.push((name, entry.path()));
        }
    }
    folders.sort();
    Ok(folders)
}

/// Lists an image's folder. Links are followed as long as they stay inside `root` (the real path of the images
/// folder); what is hidden stays hidden under every name.
pub fn walk_image(root: &Path, folder: &Path, before: &Before) -> Walk {
    let mut walk = Walk::default();
    let Ok(real) = fs::canonicalize(folder) else { return walk };
    match real.strip_prefix(root) {
        Ok(inside) if !hidden_path(inside) => {}
        _ => {
            walk.notes.push("the folder is a link that leaves the images folder".to_owned());
            return walk;
        }
    }
    let mut open = vec![real];
    walk_images_in(root, "", &mut open, before, &mut walk);
    walk.files.sort_by(|a, b| a.name.cmp(&b.name));
    walk
}

fn walk_images_in(root: &Path, prefix: &str, open: &mut Vec<PathBuf>, before: &Before, walk: &mut Walk) {
    let Some(folder) = open.last().cloned() else { return };
    let Ok(entries) = fs::read_dir(&folder) else {
        walk.notes.push(format!("{} cannot be read", if prefix.is_empty() { "the folder" } else { prefix }));
        return;
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(step) = entry.file_name().into_string() else {
            walk.notes.push("a file whose name is not UTF-8 is left out".to_owned());
            continue;
        };
        let name = if prefix.is_empty() { step.clone() } else { format!("{prefix}/{step}") };
        // The arguments of a Linux image are read by the scan and fetched by nobody.
        if names::is_hidden(&name) || (prefix.is_empty() && step == "cmdline") {
            continue;
        }
        if !names::is_nameable(&name) {
            walk.notes.push(format!("{name:?} is left out: nobody can ask for that name"));
            continue;
        }
        let Ok(path) = fs::canonicalize(entry.path()) else { continue };
        match path.strip_prefix(root) {
            Ok(inside) if !hidden_path(inside) => {}
            _ => {
                walk.notes.push(format!("{name} is left out: it is a link that leaves the images folder"));
                continue;
            }
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            // A folder already open above is a loop of links.
            if open.len() < DEPTH_MAX && !open.contains(&path) && walk.folder_count < FOLDERS_MAX {
                walk.folder_count += 1;
                open.push(path);
                walk_images_in(root, &name, open, before, walk);
                open.pop();
            }
        } else if meta.is_file() {
            if walk.files.len() >= FILES_MAX {
                let note = format!("more than {FILES_MAX} files: the rest is left out");
                if walk.notes.last() != Some(&note) {
                    walk.notes.push(note);
                }
                return;
            }
            let identity = FileIdentity::of(&meta);
            walk.seen.push((path.clone(), identity));
            if before.is_settling(&path, &identity) {
                walk.notes.push(format!("{name} is still being written and not served yet"));
                walk.settling.push(name);
            } else {
                walk.files.push(Found { name, path, identity });
            }
        }
    }
}

fn hidden_path(inside: &Path) -> bool {
    // The path of the images folder itself is empty: an image's folder that links to it is no image either.
    inside.to_str().is_none_or(|inside| inside.is_empty() || names::is_hidden(inside))
}

/// Lists the loader folders; of two files with one name the earlier folder's counts. A folder that is not there is
/// no error: defaults name folders that few machines have.
pub fn walk_loaders(dirs: &[PathBuf]) -> Vec<Found> {
    let roots: Vec<PathBuf> = dirs.iter().filter_map(|dir| fs::canonicalize(dir).ok()).collect();
    let mut files: Vec<Found> = Vec::new();
    for root in &roots {
        walk_loaders_in(&roots, root, "", 0, &mut files);
    }
    // Stable, so the first of two equal names is the one of the earlier folder.
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files.dedup_by(|later, first| later.name == first.name);
    files
}

fn walk_loaders_in(roots: &[PathBuf], folder: &Path, prefix: &str, depth: usize, files: &mut Vec<Found>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(step) = entry.file_name().into_string() else { continue };
        let name = if prefix.is_empty() { step } else { format!("{prefix}/{step}") };
        if names::is_hidden(&name) || !names::is_nameable(&name) || files.len() >= FILES_MAX {
            continue;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if depth < 4 {
                walk_loaders_in(roots, &entry.path(), &name, depth + 1, files);
            }
        } else if let Some((path, identity)) = loader_target(roots, entry.path()) {
            files.push(Found { name, path, identity });
        }
    }
}

/// Follows a loader's links: any inside the loader folders, one out of them (Debian's `ipxe.efi` points to `/boot`),
/// and none from there on.
fn loader_target(roots: &[PathBuf], mut path: PathBuf) -> Option<(PathBuf, FileIdentity)> {
    let mut left = false;
    for _ in 0..LOADER_LINKS_MAX {
        let meta = fs::symlink_metadata(&path).ok()?;
        if meta.is_file() {
            return Some((path, FileIdentity::of(&meta)));
        }
        if !meta.is_symlink() || left {
            return None;
        }
        let target = path.parent()?.join(fs::read_link(&path).ok()?);
        // Only the folder part is resolved here, so that a link at the end is seen as one.
        let folder = fs::canonicalize(target.parent()?).ok()?;
        left = !roots.iter().any(|root| folder.starts_with(root));
        path = folder.join(target.file_name()?);
    }
    None
}

#[cfg(test)]
pub(crate) mod test_folder {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, SystemTime};

    /// A folder below the system's temporary one, gone when dropped.
    pub(crate) struct TestFolder(PathBuf);

    impl TestFolder {
        pub(crate) fn new(what: &str) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let unique =
                format!("bootstorm-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(unique);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            path
        }

        /// Makes a file look `seconds` old.
        pub(crate) fn age(&self, name: &str, seconds: u64) {
            let file = File::options().write(true).open(self.0.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        }
    }

    impl Drop for TestFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::test_folder::TestFolder;
    use super::*;

    fn names_of(files: &[Found]) -> Vec<&str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    fn walk(folder: &TestFolder, name: &str) -> Walk {
        let root = fs::canonicalize(folder.path().join("images")).unwrap();
        walk_image(&root, &root.join(name), &Before::first(SystemTime::now()))
    }

    #[test]
    fn hidden_files_are_not_listed() {
        let folder = TestFolder::new("scan-hidden");
        for name in ["boot.wim", "image.toml", ".x", "private/key", "a/b/c", "x.tmpl", "cmdline", "a/cmdline"]
        {
            folder.write(&format!("images/pe/{name}"), b"x");
        }
        assert_eq!(names_of(&walk(&folder, "pe").files), ["a/b/c", "a/cmdline", "boot.wim"]);
    }

    #[test]
    fn links_inside_the_images_folder_are_followed_and_links_out_are_not() {
        let folder = TestFolder::new("scan-links");
        folder.write("secret", b"x");
        folder.write("images/pe/boot.wim", b"x");
        folder.write("images/pe/private/key", b"x");
        folder.write("images/.upload/part", b"x");
        let images = folder.path().join("images");
        fs::create_dir(images.join("other")).unwrap();
        symlink("../pe/boot.wim", images.join("other/boot.wim")).unwrap();
        symlink("../../secret", images.join("other/secret")).unwrap();
        symlink("/etc", images.join("other/etc")).unwrap();
        symlink("../pe/private/key", images.join("other/key")).unwrap();
        symlink("../pe/private", images.join("other/dir")).unwrap();
        symlink("../.upload/part", images.join("other/part")).unwrap();
        symlink("..", images.join("other/up")).unwrap();
        symlink(".", images.join("other/loop")).unwrap();
        let found = walk(&folder, "other");
        assert_eq!(names_of(&found.files), ["boot.wim"]);
        assert!(found.notes.iter().any(|note| note.starts_with("secret")), "{:?}", found.notes);
        symlink("/etc", images.join("whole")).unwrap();
        assert_eq!(walk(&folder, "whole").files, []);
        symlink("pe", images.join("alias")).unwrap();
        assert_eq!(names_of(&walk(&folder, "alias").files), ["boot.wim"]);
    }

    #[test]
    fn one_link_out_of_the_loader_folders_is_followed_and_no_second() {
        let folder = TestFolder::new("scan-loaders");
        folder.write("boot/ipxe.efi", b"efi");
        folder.write("loaders/real.efi", b"real");
        folder.write("later/real.efi", b"the later folder's");
        let path = folder.path();
        symlink("ipxe.efi", path.join("boot/again.efi")).unwrap();
        symlink(path.join("boot/ipxe.efi"), path.join("loaders/ipxe.efi")).unwrap();
        symlink(path.join("boot/again.efi"), path.join("loaders/twice.efi")).unwrap();
        symlink("real.efi", path.join("loaders/inner.efi")).unwrap();
        symlink("ipxe.efi", path.join("loaders/inner-then-out.efi")).unwrap();
        symlink(path.join("boot"), path.join("loaders/folder")).unwrap();
        symlink("gone", path.join("loaders/broken.efi")).unwrap();
        let found = walk_loaders(&[path.join("missing"), path.join("loaders"), path.join("later")]);
        assert_eq!(names_of(&found), ["inner-then-out.efi", "inner.efi", "ipxe.efi", "real.efi"]);
        assert_eq!(found[3].identity.len, 4);
    }

    #[test]
    fn a_growing_file_waits_and_a_renamed_one_does_not() {
        let folder = TestFolder::new("scan-growing");
        let path = folder.write("images/pe/boot.wim", b"1234");
        let root = fs::canonicalize(folder.path().join("images")).unwrap();
        let now = SystemTime::now();
        let scan = |before: &Before| walk_image(&root, &root.join("pe"), before);
        let first = scan(&Before::first(now));
        assert_eq!(names_of(&first.files), ["boot.wim"]);
        let real = first.files[0].path.clone();
        let seen = |len| {
            let identity = FileIdentity { len, ..first.files[0].identity };
            HashMap::from([(real.clone(), identity)])
        };
        assert_eq!(scan(&Before::after(seen(3), now)).settling, ["boot.wim"]);
        assert_eq!(names_of(&scan(&Before::after(seen(4), now)).files), ["boot.wim"]);
        // Left alone for long enough, whatever the last scan saw.
        assert_eq!(names_of(&scan(&Before::after(seen(3), now + SETTLE * 2)).files), ["boot.wim"]);
        // Never seen before: being written now, or renamed into place.
        assert_eq!(scan(&Before::after(HashMap::new(), now)).settling, ["boot.wim"]);
        let staged = folder.write(".staged", b"whole");
        std::thread::sleep(Duration::from_millis(20));
        fs::rename(staged, &path).unwrap();
        assert_eq!(names_of(&scan(&Before::after(HashMap::new(), SystemTime::now())).files), ["boot.wim"]);
    }
}

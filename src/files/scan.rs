//! Walking folders: which files there are, where they really are, and which of them are not to be named.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::files::detect::{self, CMDLINE_NAME, TEMPLATE_NAME};
use crate::files::manifest::MANIFEST_NAME;
use crate::files::names;
use crate::files::record::{RECORD_NAME, Record};
use crate::files::served::FileIdentity;
use crate::files::wim::{self, WimReport};
use crate::sys::disk::{self, Writers};
use crate::sys::open_plain;

/// Folders below an image's folder are followed this deep.
pub const DEPTH_MAX: usize = 12;
/// Most files listed of one image; more are left out with a note.
pub const FILES_MAX: usize = 50_000;
/// Most folders walked of one image: links among folders can multiply them without end.
const FOLDERS_MAX: usize = 10_000;
/// Most WIMs of one image looked into.
const WIMS_MAX: usize = 1_000;
/// How long a file must have been left alone to count as whole.
pub const SETTLE: Duration = Duration::from_secs(2);
/// The same where it cannot be told whether somebody has it open for writing: a copy over a slow network pauses.
pub const SETTLE_UNTOLD: Duration = Duration::from_secs(10);
/// What an image said of itself stays in force for so long at most while that is being written anew.
pub(super) const HELD_MAX: Duration = Duration::from_secs(30);
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

/// A WIM looked at, or why it could not be read.
pub type WimLook = Result<Arc<WimReport>, io::ErrorKind>;

/// What is in a folder.
#[derive(Debug, Default)]
pub struct Walk {
    /// Files that can be served, in name order.
    pub files: Vec<Found>,
    /// Files left out for now because they are still being written.
    pub settling: Vec<String>,
    /// Things the operator should know (links that leave, names nobody can ask for).
    pub notes: Vec<String>,
    /// What is read here and served to nobody, by name: `image.toml`, `cmdline`, the template, answer files. What it was
    /// when it was seen to be whole; nothing while it is still being written.
    pub texts: BTreeMap<String, Option<FileIdentity>>,
    /// What is in those of `files` that are WIMs by their name.
    pub wims: BTreeMap<String, WimLook>,
    /// Which version this is, if its record says so.
    pub record: Option<Arc<Record>>,
    /// Every file seen, also those left out for now, for the next scan to compare with.
    pub memory: Memory,
    folder_count: usize,
}

impl Walk {
    /// A file that can be served, by its name as on disk.
    pub fn file(&self, name: &str) -> Option<&Found> {
        let at = self.files.binary_search_by(|found| found.name.as_str().cmp(name)).ok()?;
        self.files.get(at)
    }
}

/// A file as a scan saw it.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    identity: FileIdentity,
    /// When it was first seen as it is.
    since: SystemTime,
    published: bool,
    /// Since when it is not there.
    gone: Option<SystemTime>,
}

/// What a scan hands to the next one.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    files: HashMap<PathBuf, Sighting>,
    wims: HashMap<PathBuf, (FileIdentity, WimLook)>,
    records: HashMap<PathBuf, (FileIdentity, Arc<Record>)>,
    /// Images that stay as they were while a text of theirs is being written, and since when.
    held: HashMap<PathBuf, SystemTime>,
}

impl Memory {
    /// Adds what was seen of another folder.
    pub fn extend(&mut self, other: Self) {
        self.files.extend(other.files);
        self.wims.extend(other.wims);
        self.records.extend(other.records);
        self.held.extend(other.held);
    }

    /// An image stays as it was, since then.
    pub(super) fn hold(&mut self, folder: PathBuf, since: SystemTime) {
        self.held.insert(folder, since);
    }
}

/// By a file's own time of content: whether nobody wrote to it for so long.
fn is_left_alone(identity: &FileIdentity, enough: Duration, now: SystemTime) -> bool {
    let now_ns = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
    (now_ns - identity.modified_ns).abs() >= enough.as_nanos() as i128
}

/// The judgement on a file that is looked at only once, before it is copied: its own times have to do for what scans saw.
pub(crate) fn is_being_written(file: &fs::File, identity: &FileIdentity, now: SystemTime) -> bool {
    let enough = match disk::writers(file) {
        Writers::Some => return true,
        Writers::None => SETTLE,
        Writers::Unknown => SETTLE_UNTOLD,
    };
    identity.modified_ns == identity.changed_ns && !is_left_alone(identity, enough, now)
}

/// What the previous scan saw, to tell a file that is being written from one that is merely new.
#[derive(Debug)]
pub struct Before {
    memory: Memory,
    now: SystemTime,
    first: bool,
}

impl Before {
    /// For the first scan: whatever is there is taken as it is, unless somebody is writing it.
    pub fn first(now: SystemTime) -> Self {
        Self { memory: Memory::default(), now, first: true }
    }

    /// For a later scan.
    pub fn after(memory: Memory, now: SystemTime) -> Self {
        Self { memory, now, first: false }
    }

    /// What the last scan saw, to try again with.
    pub fn into_memory(self) -> Memory {
        self.memory
    }

    /// Since when an image has stayed as it was; `None` when that is too long ago. What it says of itself is then not known.
    pub(super) fn held_since(&self, folder: &Path) -> Option<SystemTime> {
        // A clock that was set back makes nothing younger.
        let since = self.memory.held.get(folder).map_or(self.now, |since| (*since).min(self.now));
        self.now.duration_since(since).is_ok_and(|held| held < HELD_MAX).then_some(since)
    }

    /// Whether a file was whole at the last look, and just as it is.
    pub(super) fn was_whole(&self, path: &Path, identity: &FileIdentity) -> bool {
        let before = self.memory.files.get(path);
        before.is_some_and(|before| before.published && before.identity.same_bytes(identity))
    }

    /// A file that was there and is not: there are editors that rename it away before they write the new one. After
    /// [`SETTLE`] it is taken to be gone.
    fn has_just_gone(&self, path: &Path) -> Option<Sighting> {
        let before = self.memory.files.get(path)?;
        let gone = before.gone.map_or(self.now, |gone| gone.min(self.now));
        let just = self.now.duration_since(gone).is_ok_and(|gone| gone < SETTLE);
        just.then_some(Sighting { published: false, gone: Some(gone), ..*before })
    }

    /// Judges a file that is there now. `vouched` says that its record describes it as it is.
    ///
    /// It is whole once it has been left alone for [`SETTLE`], as this process saw it or by its own times, where it is
    /// known that nobody has it open for writing; else once this process saw it rest for [`SETTLE_UNTOLD`]. A rename into place, or the `utimensat` that a copying tool ends
    /// with, is at once: it moves the inode's time alone, while a writer moves both together.
    fn judge(&self, path: &Path, identity: &FileIdentity, vouched: bool) -> Sighting {
        let before = self.memory.files.get(path);
        let same = before.filter(|before| before.identity.same_bytes(identity));
        // A clock that was set back makes nothing younger.
        let since = same.map_or(self.now, |before| before.since.min(self.now));
        let sighting = |published| Sighting { identity: *identity, since, published, gone: None };
        if vouched || same.is_some_and(|before| before.published) {
            return sighting(true);
        }
        let writers = open_plain(path).map_or(Writers::Unknown, |file| disk::writers(&file));
        if writers == Writers::Some {
            return sighting(false);
        }
        let renamed = identity.modified_ns != identity.changed_ns
            && before.is_none_or(|before| before.identity.inode != identity.inode);
        let enough = if writers == Writers::None { SETTLE } else { SETTLE_UNTOLD };
        let rests = self.now.duration_since(since).is_ok_and(|rest| rest >= enough);
        let is_old = is_left_alone(identity, SETTLE, self.now);
        sighting(self.first || renamed || rests || (is_old && writers == Writers::None))
    }

    /// The record of a folder, with the version of the file that it was read from.
    fn record_of(&self, folder: &Path) -> Option<(FileIdentity, Arc<Record>)> {
        let identity = FileIdentity::of(&fs::symlink_metadata(folder.join(RECORD_NAME)).ok()?);
        match self.memory.records.get(folder) {
            Some((known, record)) if *known == identity => Some((identity, Arc::clone(record))),
            _ => Some((identity, Arc::new(Record::read(folder).ok()??))),
        }
    }

    fn look_into(&self, found: &Found) -> WimLook {
        match self.memory.wims.get(&found.path) {
            Some((identity, look)) if *identity == found.identity => look.clone(),
            _ => {
                let report = open_plain(&found.path).and_then(|file| wim::inspect(&file));
                report.map(Arc::new).map_err(|error| error.kind())
            }
        }
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
    if let Some((identity, record)) = before.record_of(&real) {
        walk.record = Some(Arc::clone(&record));
        walk.memory.records.insert(real.clone(), (identity, record));
    }
    look_at_texts(&real, before, &mut walk);
    let mut open = vec![real];
    walk_images_in(root, "", &mut open, before, &mut walk);
    walk.files.sort_by(|a, b| a.name.cmp(&b.name));
    for found in walk.files.iter().filter(|found| names::may_be_wim(&found.name)).take(WIMS_MAX) {
        let look = before.look_into(found);
        walk.memory.wims.insert(found.path.clone(), (found.identity, look.clone()));
        walk.wims.insert(found.name.clone(), look);
    }
    walk
}

/// Lists a version by itself, wherever it lies. Links out of its folder are not followed.
pub(crate) fn walk_version(folder: &Path) -> Walk {
    let mut walk = Walk::default();
    let Ok(real) = fs::canonicalize(folder) else { return walk };
    let before = Before::first(SystemTime::now());
    look_at_texts(&real, &before, &mut walk);
    walk_images_in(&real, "", &mut vec![real.clone()], &before, &mut walk);
    walk.files.sort_by(|a, b| a.name.cmp(&b.name));
    walk
}

/// Judges what is read here and served to nobody as payload is judged: half of an `image.toml` may say less than all of it.
fn look_at_texts(folder: &Path, before: &Before, walk: &mut Walk) {
    for name in [MANIFEST_NAME, CMDLINE_NAME, TEMPLATE_NAME] {
        look_at_text(folder, name, before, walk);
    }
    // Those that the manifest names: who may enter `private` may not always list it.
    for name in detect::answers_named(folder, walk) {
        look_at_text(folder, &format!("private/{name}"), before, walk);
    }
}

fn look_at_text(folder: &Path, name: &str, before: &Before, walk: &mut Walk) {
    let named = folder.join(name);
    let Ok(path) = fs::canonicalize(&named) else {
        // Another version was put in place that has none.
        let is_other = |record: &Record| {
            let known = before.memory.records.get(folder);
            !record.has_text(name) && known.is_none_or(|(_, known)| known.version != record.version)
        };
        if name == MANIFEST_NAME
            && !walk.record.as_deref().is_some_and(is_other)
            && let Some(gone) = before.has_just_gone(&named)
        {
            walk.memory.files.insert(named, gone);
            walk.texts.insert(name.to_owned(), None);
        }
        return;
    };
    let Ok(meta) = fs::symlink_metadata(&path) else { return };
    // Whoever reads it refuses a link that leaves the folder, too.
    if !path.starts_with(folder) || !meta.is_file() {
        return;
    }
    let identity = FileIdentity::of(&meta);
    let vouched = walk.record.as_ref().is_some_and(|record| record.describes(name, &identity));
    let sighting = before.judge(&path, &identity, vouched);
    walk.memory.files.insert(path, sighting);
    // By the name that it may go from, which can be a link's.
    walk.memory.files.insert(named, sighting);
    walk.texts.insert(name.to_owned(), sighting.published.then_some(identity));
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
        if names::is_hidden(&name) || (prefix.is_empty() && step == CMDLINE_NAME) {
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
            let vouched = walk.record.as_ref().is_some_and(|record| record.describes(&name, &identity));
            let sighting = before.judge(&path, &identity, vouched);
            // Under two names it is one file, and it is published if it is under either.
            walk.memory.files.insert(path.clone(), sighting);
            if sighting.published {
                walk.files.push(Found { name, path, identity });
            } else {
                walk.notes.push(format!("{name} is still being written and not served yet"));
                walk.settling.push(name);
            }
        }
    }
}

pub(crate) fn hidden_path(inside: &Path) -> bool {
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
    fn a_growing_file_waits_until_it_rests_and_a_renamed_one_does_not() {
        let folder = TestFolder::new("scan-growing");
        let path = folder.write("images/pe/boot.wim", b"1234");
        let root = fs::canonicalize(folder.path().join("images")).unwrap();
        let start = SystemTime::now();
        let scan = |memory: &Memory, at: SystemTime| {
            walk_image(&root, &root.join("pe"), &Before::after(memory.clone(), at))
        };
        // Never seen before, and just written.
        let first = scan(&Memory::default(), start);
        assert_eq!(first.settling, ["boot.wim"]);
        // It has grown: what counts begins anew.
        folder.write("images/pe/boot.wim", b"12345");
        let second = scan(&first.memory, start + Duration::from_millis(1500));
        assert_eq!(second.settling, ["boot.wim"]);
        let third = scan(&second.memory, start + SETTLE + Duration::from_millis(1000));
        assert_eq!(names_of(&third.files), ["boot.wim"]);
        // A published one that nobody touches stays, whatever the clock says.
        assert_eq!(names_of(&scan(&third.memory, start).files), ["boot.wim"]);
        // Another inode under its name, renamed into place.
        let staged = folder.write(".staged", b"whole");
        std::thread::sleep(Duration::from_millis(20));
        fs::rename(staged, &path).unwrap();
        assert_eq!(names_of(&scan(&third.memory, SystemTime::now()).files), ["boot.wim"]);
    }

    #[test]
    fn a_file_that_somebody_has_open_for_writing_is_not_whole_however_long_it_rests() {
        let folder = TestFolder::new("scan-open");
        let path = folder.write("images/pe/boot.wim", b"1234");
        let root = fs::canonicalize(folder.path().join("images")).unwrap();
        folder.age("images/pe/boot.wim", 3600);
        let writer = fs::File::options().append(true).open(&path).unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        for before in [Before::first(later), Before::after(Memory::default(), later)] {
            assert_eq!(walk_image(&root, &root.join("pe"), &before).settling, ["boot.wim"]);
        }
        drop(writer);
        assert_eq!(names_of(&walk_image(&root, &root.join("pe"), &Before::first(later)).files), ["boot.wim"]);
    }
}

//! Versions of images: put in place by one rename, kept for a way back, removed.
//!
//! ```text
//! IMAGES/NAME/                    the version that is served, a folder like any other
//!       NAME/.version.json        which one it is, and what its files were when they were taken in
//! IMAGES/.versions/NAME/3/        an earlier version, kept
//! IMAGES/.staging/NAME.x/         one that is being taken in, or is being removed; locked by whoever does that
//! ```
//!
//! A new version is complete and on the disk below `.staging` before anything else happens. It then takes its place among
//! the kept ones, and *exchanges* places with the served one: at every moment there is a whole folder under the image's
//! name, and what was served before is kept, or is removed after its last reader. A crash leaves either a folder below
//! `.staging`, which [`Versions::recover`] removes, or a kept folder whose name is not its version's number, which it
//! renames. Where the file system cannot exchange, a crash may leave nothing under the name: what was served is put back.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::files::make;
use crate::files::names;
use crate::files::record::{FileRecord, Record};
use crate::files::scan;
use crate::sys::{disk, open_plain};

/// Folder of versions that are being taken in or removed.
const STAGING_DIR: &str = ".staging";
/// Folder of versions kept.
const VERSIONS_DIR: &str = ".versions";
/// What was served and has not taken the place of its successor yet, where two folders cannot be exchanged.
const ASIDE: &str = "aside";
/// Longest name of an image, bytes: it is a part of URLs that firmware has little room for.
pub const NAME_LEN_MAX: usize = 128;

/// Why nothing was changed.
#[derive(Debug)]
pub enum VersionError {
    /// Not a name of an image; why.
    BadName {
        /// As given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// No image of this name.
    NoImage {
        /// As given.
        name: String,
    },
    /// The image has no such version.
    NoVersion {
        /// The image.
        name: String,
        /// The number asked for; `None` for "the one before".
        version: Option<u32>,
        /// Those there are, newest first.
        kept: Vec<u32>,
    },
    /// The version is the one that is served.
    Current {
        /// The image.
        name: String,
        /// The number.
        version: u32,
    },
    /// The image's folder is a link: what it points to is another's.
    Link {
        /// The image.
        name: String,
    },
    /// There is an image of this name already.
    Exists {
        /// The image.
        name: String,
    },
    /// Something else was put in its place, or written to it, while the next version was made.
    Meanwhile {
        /// The image.
        name: String,
    },
    /// Files of the version are not what they were when it was taken in.
    Changed {
        /// The image.
        name: String,
        /// The number.
        version: u32,
        /// One of them.
        file: String,
    },
    /// The system said no.
    Io {
        /// What was tried on what.
        what: String,
        /// What it said.
        error: io::Error,
    },
}

impl VersionError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }

    /// True when a privilege is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Io { error, .. } => {
                matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
            }
            _ => false,
        }
    }

    /// One word, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadName { .. } => "not-an-image-name",
            Self::NoImage { .. } => "unknown-image",
            Self::NoVersion { .. } => "unknown-version",
            Self::Current { .. } => "version-in-use",
            Self::Link { .. } => "image-is-a-link",
            Self::Exists { .. } => "image-exists",
            Self::Meanwhile { .. } => "image-changed",
            Self::Changed { .. } => "version-changed",
            Self::Io { .. } => "images-folder",
        }
    }
}

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName { name, why } => write!(f, "{name:?} is no name for an image: {why}"),
            Self::NoImage { name } => {
                write!(f, "there is no image {name:?}; `bootstorm image list` shows the ones there are")
            }
            Self::NoVersion { name, version, kept } => {
                match version {
                    Some(version) => write!(f, "{name} has no version {version} to go back to")?,
                    None => write!(f, "{name} has no version before the one that is served")?,
                }
                match kept.as_slice() {
                    [] => write!(f, "; none is kept beside it"),
                    kept => {
                        let kept: Vec<String> = kept.iter().map(u32::to_string).collect();
                        write!(f, "; kept: {}", kept.join(", "))
                    }
                }
            }
            Self::Current { name, version } => {
                write!(f, "version {version} of {name} is the one that is served")
            }
            Self::Link { name } => {
                write!(f, "{name} is a link to another folder: change that one, or remove the link by hand")
            }
            Self::Exists { name } => {
                write!(f, "there is an image {name} already; without --new this becomes its next version")
            }
            Self::Meanwhile { name } => {
                write!(f, "{name} changed meanwhile: nothing was done, run it again")
            }
            Self::Changed { name, version, file } => write!(
                f,
                "{file} in version {version} of {name} is not what it was when it was taken in; \
                 `bootstorm image verify {name} --all` says more, --force goes back to it nevertheless"
            ),
            Self::Io { what, error } if error.kind() == io::ErrorKind::StorageFull => {
                write!(f, "{what}: no space left on the file system; nothing was changed")
            }
            Self::Io { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for VersionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// A version as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its record; of a folder put there by hand, what a look at it says.
    pub record: Record,
    /// It is the one that is served.
    pub current: bool,
    /// Where it is.
    pub path: PathBuf,
}

/// A folder being filled; removed when it is dropped without having been published.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    /// Holds the lock that tells others that somebody is at work here.
    _lock: File,
    published: bool,
}

impl Staged {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // If it stays, the next command removes it.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// What was served under a name when a next version was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base(Option<BaseFolder>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BaseFolder {
    device: u64,
    inode: u64,
    /// Its record's number and time: the inode of a folder that is removed is soon another's.
    record: Option<(u32, u64)>,
}

impl Base {
    /// True where nothing was served.
    pub fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// True while `now` is what was served then. It may have got a record since.
    fn is(&self, now: &Self) -> bool {
        match (self.0, now.0) {
            (Some(then), Some(now)) => then == now || BaseFolder { record: None, ..now } == then,
            (then, now) => then == now,
        }
    }
}

/// What publishing came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The new version's number.
    pub version: u32,
    /// The number of the version that was served before.
    pub replaced: Option<u32>,
    /// Versions removed because more are not to be kept.
    pub dropped: Vec<u32>,
}

/// The images folder, as something that versions are put into.
#[derive(Clone, Debug)]
pub struct Versions {
    root: PathBuf,
}

impl Versions {
    /// Of an images folder that is there.
    ///
    /// # Errors
    /// [`VersionError::Io`].
    pub fn open(images_dir: &Path) -> Result<Self, VersionError> {
        let root = fs::canonicalize(images_dir)
            .map_err(VersionError::io(format!("images folder {}", images_dir.display())))?;
        Ok(Self { root })
    }

    /// The real path of the images folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Checks a name for an image that may not be there yet.
    ///
    /// # Errors
    /// [`VersionError::BadName`].
    pub fn check_name(&self, name: &str) -> Result<(), VersionError> {
        let bad = |why: &str| Err(VersionError::BadName { name: name.to_owned(), why: why.to_owned() });
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return bad(&format!("it needs 1 to {NAME_LEN_MAX} bytes"));
        }
        if name.contains(['/', '\\']) {
            return bad("it is one folder's name, without slashes");
        }
        if !names::is_nameable(name) || name.trim() != name {
            return bad("no machine could ask for it");
        }
        if names::is_hidden(name) || name == "lost+found" {
            return bad("folders of that name are never served");
        }
        // Machines ask without regard to case: of two such folders one would hide the other.
        let twin = scan::image_folders(&self.root).unwrap_or_default().into_iter().map(|(other, _)| other);
        match twin.into_iter().find(|other| other != name && names::folded(other) == names::folded(name)) {
            Some(other) => bad(&format!("there is {other}, and machines do not tell them apart")),
            None => Ok(()),
        }
    }

    /// Refuses names that could lead elsewhere than to a folder right below the images folder: they may come from a URL.
    fn inside(&self, name: &str) -> Result<(), VersionError> {
        let is_one_step = !name.contains(['/', '\\']) && names::is_nameable(name) && !names::is_hidden(name);
        if is_one_step { Ok(()) } else { Err(VersionError::NoImage { name: name.to_owned() }) }
    }

    /// The folder that is served under a name.
    fn current(&self, name: &str) -> Result<Option<PathBuf>, VersionError> {
        self.inside(name)?;
        let path = self.root.join(name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VersionError::Io { what: path.display().to_string(), error }),
            Ok(meta) if meta.is_symlink() => Err(VersionError::Link { name: name.to_owned() }),
            Ok(meta) if meta.is_dir() => Ok(Some(path)),
            Ok(_) => Err(VersionError::BadName {
                name: name.to_owned(),
                why: "a file of that name is in the way".to_owned(),
            }),
        }
    }

    /// True when an image of this name is served.
    ///
    /// # Errors
    /// [`VersionError::Link`], [`VersionError::Io`].
    pub fn exists(&self, name: &str) -> Result<bool, VersionError> {
        Ok(self.current(name)?.is_some())
    }

    /// What is served under a name now.
    ///
    /// # Errors
    /// As [`Versions::exists`].
    pub fn base(&self, name: &str) -> Result<Base, VersionError> {
        let Some(path) = self.current(name)? else { return Ok(Base(None)) };
        let failed = || VersionError::io(format!("read {}", path.display()));
        let meta = fs::symlink_metadata(&path).map_err(failed())?;
        let record = Record::read(&path).map_err(failed())?;
        Ok(Base(Some(BaseFolder {
            device: meta.dev(),
            inode: meta.ino(),
            record: record.map(|record| (record.version, record.added_unix)),
        })))
    }

    fn kept_dir(&self, name: &str) -> PathBuf {
        self.root.join(VERSIONS_DIR).join(name)
    }

    /// The record of a folder; of one without, what a look at it says, under `number`.
    fn record_of(&self, folder: &Path, number: u32) -> Result<Record, VersionError> {
        let read = Record::read(folder).map_err(VersionError::io(format!("read {}", folder.display())))?;
        Ok(read.unwrap_or_else(|| {
            let added =
                fs::metadata(folder).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            Record { version: number, added_unix: unix(added), ..Record::of_folder(folder, "") }
        }))
    }

    /// Every version of an image, the served one first, then by number, newest first.
    ///
    /// # Errors
    /// [`VersionError::NoImage`] when there is none; what reading says.
    pub fn list(&self, name: &str) -> Result<Vec<Version>, VersionError> {
        self.inside(name)?;
        let mut versions = Vec::new();
        for number in kept_numbers(&self.root, name) {
            let path = self.kept_dir(name).join(number.to_string());
            // After a command that died, a folder may still have the number of what it made room for.
            let record = self.record_of(&path, number)?;
            versions.push(Version { record, current: false, path });
        }
        versions.sort_by_key(|version| std::cmp::Reverse(version.record.version));
        if let Some(path) = self.current(name)? {
            let newest = versions.first().map_or(0, |newest| newest.record.version);
            let record = self.record_of(&path, newest + 1)?;
            versions.insert(0, Version { record, current: true, path });
        }
        if versions.is_empty() {
            return Err(VersionError::NoImage { name: name.to_owned() });
        }
        Ok(versions)
    }

    /// Holds off others that publish, roll back, remove or tidy up.
    fn lock(&self) -> Result<File, VersionError> {
        let dir = self.root.join(STAGING_DIR);
        let failed = |error| VersionError::Io { what: format!("write in {}", self.root.display()), error };
        make::folder(&dir, "").map_err(failed)?;
        let lock = make::lock_file(&dir.join(".lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        Ok(lock)
    }

    /// A new folder to fill with a version of `name`.
    ///
    /// # Errors
    /// [`VersionError::Io`].
    pub fn stage(&self, name: &str) -> Result<Staged, VersionError> {
        self.inside(name)?;
        let _held = self.lock()?;
        self.stage_locked(name)
    }

    fn stage_locked(&self, name: &str) -> Result<Staged, VersionError> {
        let failed = |error| VersionError::Io { what: format!("write in {}", self.root.display()), error };
        let dir = self.root.join(STAGING_DIR);
        let mut count = 0u32;
        let path = loop {
            let path = dir.join(format!("{name}.{}.{count}", std::process::id()));
            if fs::symlink_metadata(&path).is_err() {
                make::folder(&path, "").map_err(failed)?;
                break path;
            }
            count += 1;
        };
        let lock = open_plain(&path).and_then(|folder| folder.lock().map(|()| folder)).map_err(failed)?;
        Ok(Staged { path, _lock: lock, published: false })
    }

    /// Puts a filled folder in place as the image's next version. Its files must be on the disk already. `keep` is how
    /// many earlier versions stay. It is made for `base` to be served before it, and `is_base_same` says, while nobody else
    /// publishes, whether what was taken over from there still is as it was.
    ///
    /// # Errors
    /// [`VersionError`]; then what was served is served as before.
    pub fn publish(
        &self,
        name: &str,
        mut staged: Staged,
        mut record: Record,
        keep: usize,
        base: &Base,
        is_base_same: impl FnOnce() -> bool,
    ) -> Result<Published, VersionError> {
        self.inside(name)?;
        let _held = self.lock()?;
        self.put_in_order(name)?;
        if !base.is(&self.base(name)?) || !is_base_same() {
            return Err(VersionError::Meanwhile { name: name.to_owned() });
        }
        let failed = || VersionError::io(format!("publish {name}"));
        let current = self.current(name)?;
        let kept = kept_numbers(&self.root, name);
        let Some(current) = current else {
            record.version = kept.first().map_or(1, |newest| newest + 1);
            record.write(staged.path()).map_err(failed())?;
            let place = self.root.join(name);
            move_new(staged.path(), &place).map_err(failed())?;
            staged.published = true;
            sync(&self.root).map_err(failed())?;
            return Ok(Published { version: record.version, replaced: None, dropped: Vec::new() });
        };
        let replaced = self.numbered(&current, kept.first().copied())?;
        record.version = kept.first().copied().unwrap_or(0).max(replaced) + 1;
        record.write(staged.path()).map_err(failed())?;
        let shelf = self.kept_dir(name);
        make::folder(&self.root.join(VERSIONS_DIR), "").map_err(failed())?;
        make::folder(&shelf, "").map_err(failed())?;
        let waiting = shelf.join(record.version.to_string());
        move_new(staged.path(), &waiting).map_err(failed())?;
        staged.published = true;
        sync(&shelf).map_err(failed())?;
        self.take_turns(&waiting, &current).map_err(failed())?;
        let replaced = self.file_away(&shelf, &waiting).map_err(failed())?.unwrap_or(replaced);
        // What was served until now is what somebody goes back to first, whatever its number.
        let mut kept = kept_numbers(&self.root, name);
        kept.sort_by_key(|number| *number != replaced);
        let older = kept.into_iter().skip(keep);
        let dropped: Vec<u32> =
            older.filter(|number| self.discard(name, &shelf.join(number.to_string())).is_ok()).collect();
        // Only when it is empty.
        let _ = fs::remove_dir(&shelf);
        Ok(Published { version: record.version, replaced: Some(replaced), dropped })
    }

    /// Exchanges a waiting folder with the served one, on the disk when this returns.
    fn take_turns(&self, waiting: &Path, current: &Path) -> io::Result<()> {
        match disk::exchange(waiting, current) {
            // A file system without that: for a moment there is nothing under the name, which is better than half.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                take_turns_by_steps(waiting, current)?
            }
            other => other?,
        }
        sync(&self.root)?;
        waiting.parent().map_or(Ok(()), sync)
    }

    /// Gives a kept folder the name of the version it holds; its number, if it has one.
    fn file_away(&self, shelf: &Path, folder: &Path) -> io::Result<Option<u32>> {
        let Some(mut record) = Record::read(folder)? else { return Ok(None) };
        let mut place = shelf.join(record.version.to_string());
        if place == folder {
            return Ok(Some(record.version));
        }
        if place.exists() {
            // Two folders with one number: somebody copied one by hand.
            record.version = numbers_in(shelf).first().map_or(1, |newest| newest + 1);
            record.write(folder)?;
            place = shelf.join(record.version.to_string());
        }
        move_new(folder, &place)?;
        sync(shelf)?;
        Ok(Some(record.version))
    }

    /// Ends what a command that died had begun with an image's versions: what was served is put back, and kept versions are
    /// filed under their own numbers. The lock is held.
    fn put_in_order(&self, name: &str) -> Result<(), VersionError> {
        let shelf = self.kept_dir(name);
        self.put_back(name, &shelf).map_err(VersionError::io(format!("put back {}", shelf.display())))?;
        for folder in fs::read_dir(&shelf).into_iter().flatten().flatten() {
            // What is none, or damaged, stays where it is: it is in nobody's way who asks for another one.
            if !folder.path().is_dir() || Record::read(&folder.path()).is_err() {
                continue;
            }
            self.file_away(&shelf, &folder.path())
                .map_err(VersionError::io(format!("file {}", folder.path().display())))?;
        }
        Ok(())
    }

    /// The number of the served folder, which gets a record if it has none.
    fn numbered(&self, current: &Path, newest_kept: Option<u32>) -> Result<u32, VersionError> {
        let failed = || VersionError::io(format!("write {}", current.display()));
        let record = self.record_of(current, newest_kept.map_or(1, |newest| newest + 1))?;
        if Record::read(current).map_err(failed())?.is_none() {
            record.write(current).map_err(failed())?;
        }
        Ok(record.version)
    }

    /// Serves a kept version again: `version`, or the newest one before what is served now. With `force` also one whose
    /// files are not what they were. The numbers now and before.
    ///
    /// # Errors
    /// [`VersionError`]; then what was served is served as before.
    pub fn roll_back(
        &self,
        name: &str,
        version: Option<u32>,
        force: bool,
    ) -> Result<(u32, Option<u32>), VersionError> {
        self.inside(name)?;
        let _held = self.lock()?;
        self.put_in_order(name)?;
        let failed = || VersionError::io(format!("roll back {name}"));
        let kept = kept_numbers(&self.root, name);
        let current = self.current(name)?;
        if current.is_none() && kept.is_empty() {
            return Err(VersionError::NoImage { name: name.to_owned() });
        }
        let before = match &current {
            Some(current) => Some(self.numbered(current, kept.first().copied())?),
            None => None,
        };
        if let (Some(asked), Some(before)) = (version, before)
            && asked == before
        {
            return Err(VersionError::Current { name: name.to_owned(), version: asked });
        }
        let target = match version {
            Some(asked) => kept.iter().copied().find(|number| *number == asked),
            None => kept.iter().copied().find(|number| before.is_none_or(|before| *number < before)),
        };
        let Some(target) = target else {
            return Err(VersionError::NoVersion { name: name.to_owned(), version, kept });
        };
        let shelf = self.kept_dir(name);
        let waiting = shelf.join(target.to_string());
        if let Some(file) = self.changed(&waiting, target)?.filter(|_| !force) {
            return Err(VersionError::Changed { name: name.to_owned(), version: target, file });
        }
        match &current {
            Some(current) => {
                self.take_turns(&waiting, current).map_err(failed())?;
                self.file_away(&shelf, &waiting).map_err(failed())?;
            }
            None => {
                move_new(&waiting, &self.root.join(name)).map_err(failed())?;
                sync(&self.root).map_err(failed())?;
            }
        }
        Ok((target, before))
    }

    /// A file of a kept version that is not what its record says.
    fn changed(&self, folder: &Path, number: u32) -> Result<Option<String>, VersionError> {
        let record = self.record_of(folder, number)?;
        let walk = scan::walk_version(folder);
        let is_same =
            |file: &FileRecord| walk.file(&file.name).is_some_and(|found| file.describes(&found.identity));
        Ok(record.files.iter().find(|file| !is_same(file)).map(|file| file.name.clone()))
    }

    /// Removes an image with all its versions.
    ///
    /// # Errors
    /// [`VersionError`].
    pub fn remove(&self, name: &str) -> Result<(), VersionError> {
        self.inside(name)?;
        let _held = self.lock()?;
        let shelf = self.kept_dir(name);
        let current = self.current(name)?;
        if current.is_none() && !shelf.is_dir() {
            return Err(VersionError::NoImage { name: name.to_owned() });
        }
        // First the kept ones: if this breaks off, there is an image without a past and no past without an image.
        for folder in [shelf.is_dir().then_some(shelf), current].into_iter().flatten() {
            self.discard(name, &folder).map_err(VersionError::io(format!("remove {}", folder.display())))?;
        }
        sync(&self.root).map_err(VersionError::io(format!("remove {name}")))
    }

    /// Removes one kept version.
    ///
    /// # Errors
    /// [`VersionError`].
    pub fn remove_version(&self, name: &str, version: u32) -> Result<(), VersionError> {
        self.inside(name)?;
        let _held = self.lock()?;
        self.put_in_order(name)?;
        let kept = kept_numbers(&self.root, name);
        if !kept.contains(&version) {
            let current = self.current(name)?;
            let current =
                current.map(|path| self.record_of(&path, kept.first().map_or(1, |newest| newest + 1)));
            return Err(match current.transpose()?.filter(|record| record.version == version) {
                Some(_) => VersionError::Current { name: name.to_owned(), version },
                None => VersionError::NoVersion { name: name.to_owned(), version: Some(version), kept },
            });
        }
        let folder = self.kept_dir(name).join(version.to_string());
        self.discard(name, &folder).map_err(VersionError::io(format!("remove {}", folder.display())))?;
        let _ = fs::remove_dir(self.kept_dir(name));
        Ok(())
    }

    /// Takes a folder out of the way in one rename, and then removes it.
    fn discard(&self, name: &str, folder: &Path) -> io::Result<()> {
        let staged = self.stage_locked(name).map_err(io::Error::other)?;
        fs::rename(folder, staged.path().join("removed"))?;
        // Dropping removes it.
        drop(staged);
        Ok(())
    }

    /// Removes what commands that died left behind, and files kept versions under their own numbers. Folders that
    /// somebody still works on stay. What was removed.
    ///
    /// # Errors
    /// [`VersionError::Io`] when the folder is not to be written.
    pub fn recover(&self) -> Result<usize, VersionError> {
        if !self.root.join(STAGING_DIR).is_dir() && !self.root.join(VERSIONS_DIR).is_dir() {
            return Ok(0);
        }
        let _held = self.lock()?;
        let mut removed = 0;
        for entry in fs::read_dir(self.root.join(STAGING_DIR)).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let is_left = is_folder && open_plain(&path).is_ok_and(|folder| folder.try_lock().is_ok());
            if is_left && fs::remove_dir_all(&path).is_ok() {
                removed += 1;
            }
        }
        for shelf in fs::read_dir(self.root.join(VERSIONS_DIR)).into_iter().flatten().flatten() {
            if let Ok(name) = shelf.file_name().into_string() {
                self.put_in_order(&name)?;
            }
        }
        Ok(removed)
    }

    /// An image of which nothing is left under its name, because a command died between two renames, gets back what was
    /// served.
    fn put_back(&self, name: &str, shelf: &Path) -> io::Result<()> {
        let place = self.root.join(name);
        if self.inside(name).is_err() || fs::symlink_metadata(&place).is_ok() {
            return Ok(());
        }
        let entries = fs::read_dir(shelf).into_iter().flatten().flatten().map(|entry| entry.path());
        let Some(aside) = entries.into_iter().find(|path| path.extension().is_some_and(|end| end == ASIDE))
        else {
            return Ok(());
        };
        move_new(&aside, &place)?;
        sync(&self.root)?;
        sync(shelf)
    }

    /// Writes the record of a version that was read meanwhile, if the folder still holds that version.
    ///
    /// # Errors
    /// [`VersionError::Io`]; `false` when another version has taken its place.
    pub(crate) fn update_record(&self, folder: &Path, record: &Record) -> Result<bool, VersionError> {
        let _held = self.lock()?;
        let failed = || VersionError::io(format!("write {}", folder.display()));
        let there = Record::read(folder).map_err(failed())?;
        let is_same =
            |there: &Record| there.version == record.version && there.added_unix == record.added_unix;
        if there.as_ref().is_some_and(|there| !is_same(there)) || !folder.is_dir() {
            return Ok(false);
        }
        record.write(folder).map_err(failed())?;
        Ok(true)
    }

    /// The folder of what is under way, for files that are no version.
    pub(crate) fn staging_dir(&self) -> PathBuf {
        self.root.join(STAGING_DIR)
    }
}

/// Numbers of the versions kept of an image, newest first.
fn kept_numbers(root: &Path, name: &str) -> Vec<u32> {
    numbers_in(&root.join(VERSIONS_DIR).join(name))
}

/// The same beside the version that is served, for lists. After a command that died, the folder with that one's number holds
/// what was served before it.
pub(crate) fn kept_beside(root: &Path, name: &str, served: Option<u32>) -> Vec<u32> {
    let shelf = root.join(VERSIONS_DIR).join(name);
    let mut numbers = numbers_in(&shelf);
    for number in numbers.iter_mut().filter(|number| Some(**number) == served) {
        let record = Record::read(&shelf.join(number.to_string())).ok().flatten();
        *number = record.map_or(*number, |record| record.version);
    }
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers
}

fn numbers_in(shelf: &Path) -> Vec<u32> {
    let entries = fs::read_dir(shelf).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let mut numbers: Vec<u32> = entries.filter_map(number).filter(|number| *number > 0).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers
}

/// The same as an exchange, for a file system that has none.
fn take_turns_by_steps(waiting: &Path, current: &Path) -> io::Result<()> {
    let aside = waiting.with_extension(ASIDE);
    fs::rename(current, &aside)?;
    if let Err(error) = fs::rename(waiting, current) {
        // What was served is served as before; if that fails too, the next command tries again.
        let _ = fs::rename(&aside, current);
        return Err(error);
    }
    fs::rename(&aside, waiting)
}

/// A rename that overwrites nothing, also where the file system has none.
fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    match disk::rename_new(from, to) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput && !to.exists() => fs::rename(from, to),
        other => other,
    }
}

/// Brings a folder's names to the disk.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Seconds since 1970.
pub(crate) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    fn versions(folder: &TestFolder) -> Versions {
        fs::create_dir_all(folder.path().join("images")).unwrap();
        Versions::open(&folder.path().join("images")).unwrap()
    }

    fn add(versions: &Versions, name: &str, content: &str, keep: usize) -> Published {
        let staged = versions.stage(name).unwrap();
        fs::write(staged.path().join("boot.wim"), content).unwrap();
        let record = versions.record_of(staged.path(), 0).unwrap();
        let base = versions.base(name).unwrap();
        versions.publish(name, staged, record, keep, &base, || true).unwrap()
    }

    fn served(versions: &Versions, name: &str) -> String {
        fs::read_to_string(versions.root().join(name).join("boot.wim")).unwrap()
    }

    fn numbers(versions: &Versions, name: &str) -> Vec<u32> {
        versions.list(name).unwrap().iter().map(|version| version.record.version).collect()
    }

    #[test]
    fn versions_follow_one_another_and_each_can_be_gone_back_to() {
        let folder = TestFolder::new("versions");
        let versions = versions(&folder);
        assert_eq!(add(&versions, "pe", "one", 9), Published { version: 1, replaced: None, dropped: vec![] });
        assert_eq!(add(&versions, "pe", "two", 9).replaced, Some(1));
        assert_eq!(add(&versions, "pe", "three", 9).version, 3);
        assert_eq!((served(&versions, "pe").as_str(), numbers(&versions, "pe")), ("three", vec![3, 2, 1]));
        assert_eq!(versions.roll_back("pe", None, false).unwrap(), (2, Some(3)));
        assert_eq!((served(&versions, "pe").as_str(), numbers(&versions, "pe")), ("two", vec![2, 3, 1]));
        assert_eq!(versions.roll_back("pe", None, false).unwrap(), (1, Some(2)));
        let none = versions.roll_back("pe", None, false).unwrap_err();
        assert!(
            none.to_string().contains("no version before") && none.to_string().contains("3, 2"),
            "{none}"
        );
        assert!(matches!(versions.roll_back("pe", Some(1), false), Err(VersionError::Current { .. })));
        assert!(matches!(versions.roll_back("pe", Some(7), false), Err(VersionError::NoVersion { .. })));
        assert_eq!(versions.roll_back("pe", Some(3), false).unwrap(), (3, Some(1)));
        // No number is used twice, and only so many are kept.
        let fourth = add(&versions, "pe", "four", 1);
        assert_eq!(fourth, Published { version: 4, replaced: Some(3), dropped: vec![2, 1] });
        assert_eq!(numbers(&versions, "pe"), [4, 3]);
        assert!(fs::read_dir(versions.staging_dir()).unwrap().count() <= 1, "only the lock is left");
    }

    #[test]
    fn what_was_served_until_now_is_kept_first() {
        let folder = TestFolder::new("versions-keep");
        let versions = versions(&folder);
        for content in ["one", "two", "three"] {
            add(&versions, "pe", content, 9);
        }
        versions.roll_back("pe", Some(1), false).unwrap();
        assert_eq!(add(&versions, "pe", "four", 1).dropped, [3, 2]);
        assert_eq!(numbers(&versions, "pe"), [4, 1]);
        versions.roll_back("pe", None, false).unwrap();
        assert_eq!(add(&versions, "pe", "five", 2).dropped, [] as [u32; 0]);
        versions.roll_back("pe", Some(1), false).unwrap();
        assert_eq!(add(&versions, "pe", "six", 2).dropped, [4]);
        assert_eq!(numbers(&versions, "pe"), [6, 5, 1]);
    }

    #[test]
    fn a_version_is_not_put_over_another_than_it_was_made_for() {
        let folder = TestFolder::new("versions-meanwhile");
        let versions = versions(&folder);
        let publish = |base: &Base, is_same: bool| {
            let staged = versions.stage("pe").unwrap();
            fs::write(staged.path().join("boot.wim"), "late").unwrap();
            let record = versions.record_of(staged.path(), 0).unwrap();
            versions.publish("pe", staged, record, 9, base, || is_same)
        };
        let is_late = |published| matches!(published, Err(VersionError::Meanwhile { .. }));
        let nothing = versions.base("pe").unwrap();
        add(&versions, "pe", "one", 9);
        assert!(nothing.is_nothing() && is_late(publish(&nothing, true)));
        let first = versions.base("pe").unwrap();
        add(&versions, "pe", "two", 9);
        assert!(is_late(publish(&first, true)));
        versions.roll_back("pe", None, false).unwrap();
        assert!(is_late(publish(&first, false)));
        assert_eq!((served(&versions, "pe").as_str(), numbers(&versions, "pe")), ("one", vec![1, 2]));
        assert_eq!(publish(&first, true).unwrap().version, 3);
        // That a folder gets its record is no change.
        folder.write("images/hand/boot.wim", b"by hand");
        let hand = versions.base("hand").unwrap();
        assert!(hand.is(&versions.base("hand").unwrap()));
        Record { version: 7, ..Record::default() }.write(&versions.root().join("hand")).unwrap();
        assert!(hand.is(&versions.base("hand").unwrap()) && !versions.base("hand").unwrap().is(&hand));
    }

    #[test]
    fn a_folder_put_there_by_hand_becomes_a_version_when_it_is_replaced() {
        let folder = TestFolder::new("versions-hand");
        let versions = versions(&folder);
        folder.write("images/pe/boot.wim", b"by hand");
        assert_eq!(
            add(&versions, "pe", "taken in", 2),
            Published { version: 2, replaced: Some(1), dropped: vec![] }
        );
        assert_eq!(versions.roll_back("pe", None, false).unwrap(), (1, Some(2)));
        assert_eq!(served(&versions, "pe"), "by hand");
    }

    #[test]
    fn a_kept_version_that_was_changed_is_not_gone_back_to_unasked() {
        let folder = TestFolder::new("versions-changed");
        let versions = versions(&folder);
        add(&versions, "pe", "one", 9);
        add(&versions, "pe", "two", 9);
        folder.write("images/.versions/pe/1/boot.wim", b"meddled with");
        let error = versions.roll_back("pe", None, false).unwrap_err();
        assert!(matches!(&error, VersionError::Changed { file, .. } if file == "boot.wim"), "{error}");
        assert_eq!(versions.roll_back("pe", None, true).unwrap(), (1, Some(2)));
    }

    #[test]
    fn what_a_crash_leaves_is_put_in_order_and_what_is_at_work_is_left_alone() {
        let folder = TestFolder::new("versions-crash");
        let versions = versions(&folder);
        add(&versions, "pe", "one", 9);
        add(&versions, "pe", "two", 9);
        // Died while copying.
        folder.write("images/.staging/pe.1.0/boot.wim", b"half");
        // Died between the exchange and the filing: the served version is 2, and 1 lies under 2's number.
        let shelf = folder.path().join("images/.versions/pe");
        fs::rename(shelf.join("1"), shelf.join("3")).unwrap();
        let working = versions.stage("other").unwrap();
        assert_eq!(versions.recover().unwrap(), 1);
        assert!(working.path().is_dir() && !folder.path().join("images/.staging/pe.1.0").exists());
        assert_eq!(numbers(&versions, "pe"), [2, 1]);
        drop(working);
        assert_eq!(versions.recover().unwrap(), 0);
    }

    #[test]
    fn after_a_crash_every_command_has_the_numbers_right() {
        let folder = TestFolder::new("versions-numbers");
        let versions = versions(&folder);
        for content in ["one", "two", "three"] {
            add(&versions, "pe", content, 9);
        }
        // Died between the exchange and the filing: 3 was served, and lies under the number of 1, which is.
        let (place, shelf) = (folder.path().join("images/pe"), folder.path().join("images/.versions/pe"));
        let die = || disk::exchange(&shelf.join("1"), &place).unwrap();
        die();
        assert_eq!(numbers(&versions, "pe"), [1, 3, 2]);
        assert_eq!(kept_beside(versions.root(), "pe", Some(1)), [3, 2]);
        assert!(matches!(versions.remove_version("pe", 1), Err(VersionError::Current { version: 1, .. })));
        assert!(shelf.join("3").is_dir() && !shelf.join("1").exists());
        versions.roll_back("pe", Some(3), false).unwrap();
        die();
        assert_eq!(versions.roll_back("pe", Some(3), false).unwrap(), (3, Some(1)));
        assert_eq!((served(&versions, "pe").as_str(), numbers(&versions, "pe")), ("three", vec![3, 2, 1]));
        die();
        assert_eq!(
            add(&versions, "pe", "four", 1),
            Published { version: 4, replaced: Some(1), dropped: vec![3, 2] }
        );
    }

    #[test]
    fn what_a_crash_between_two_renames_took_away_is_put_back() {
        let folder = TestFolder::new("versions-aside");
        let versions = versions(&folder);
        add(&versions, "pe", "one", 9);
        add(&versions, "pe", "two", 9);
        let (name, shelf) = (folder.path().join("images/pe"), folder.path().join("images/.versions/pe"));
        // Died after the first rename: the next version waits, and what was served lies aside.
        fs::rename(&name, shelf.join("3.aside")).unwrap();
        fs::create_dir(shelf.join("3")).unwrap();
        versions.recover().unwrap();
        assert_eq!(served(&versions, "pe"), "two");
        fs::remove_dir(shelf.join("3")).unwrap();
        assert_eq!(numbers(&versions, "pe"), [2, 1]);
        // Died after the second: the next version is served, and what was before it is filed.
        fs::rename(&name, shelf.join("1.aside")).unwrap();
        fs::rename(shelf.join("1"), &name).unwrap();
        versions.recover().unwrap();
        assert_eq!((served(&versions, "pe").as_str(), numbers(&versions, "pe")), ("one", vec![1, 2]));
        // Without a crash, and with one of the renames refused.
        take_turns_by_steps(&shelf.join("2"), &name).unwrap();
        assert_eq!(served(&versions, "pe"), "two");
        versions.recover().unwrap();
        assert!(take_turns_by_steps(&shelf.join("7"), &name).is_err());
        assert_eq!((served(&versions, "pe").as_str(), numbers(&versions, "pe")), ("two", vec![2, 1]));
    }

    #[test]
    fn removing_takes_all_versions_or_one() {
        let folder = TestFolder::new("versions-remove");
        let versions = versions(&folder);
        add(&versions, "pe", "one", 9);
        add(&versions, "pe", "two", 9);
        assert!(matches!(versions.remove_version("pe", 2), Err(VersionError::Current { .. })));
        assert!(matches!(versions.remove_version("pe", 5), Err(VersionError::NoVersion { .. })));
        versions.remove_version("pe", 1).unwrap();
        assert_eq!(numbers(&versions, "pe"), [2]);
        add(&versions, "pe", "three", 9);
        versions.remove("pe").unwrap();
        assert!(
            !folder.path().join("images/pe").exists() && !folder.path().join("images/.versions/pe").exists()
        );
        assert!(matches!(versions.remove("pe"), Err(VersionError::NoImage { .. })));
        std::os::unix::fs::symlink("elsewhere", folder.path().join("images/alias")).unwrap();
        assert!(matches!(versions.remove("alias"), Err(VersionError::Link { .. })));
    }

    #[test]
    fn no_name_leads_out_of_the_images_folder() {
        let folder = TestFolder::new("versions-out");
        let versions = versions(&folder);
        folder.write("precious/boot.wim", b"x");
        folder.write("precious/1/boot.wim", b"x");
        add(&versions, "pe", "one", 9);
        add(&versions, "pe", "two", 9);
        let absolute = folder.path().join("precious").to_str().unwrap().to_owned();
        for name in [
            "../precious",
            "..",
            ".",
            "",
            "pe/../../precious",
            ".versions",
            ".staging",
            "..\\precious",
            &absolute,
        ] {
            assert!(versions.remove(name).is_err(), "{name}");
            assert!(versions.remove_version(name, 1).is_err(), "{name}");
            assert!(versions.roll_back(name, Some(1), true).is_err(), "{name}");
            assert!(versions.list(name).is_err() && versions.stage(name).is_err(), "{name}");
        }
        assert!(folder.path().join("precious/1/boot.wim").exists());
        assert_eq!(numbers(&versions, "pe"), [2, 1]);
    }

    #[test]
    fn names_that_no_machine_could_ask_for_are_refused() {
        let folder = TestFolder::new("versions-names");
        let versions = versions(&folder);
        folder.write("images/pe/boot.wim", b"x");
        for name in ["", "..", ".hidden", "a/b", "a\\b", "private", "C:x", "a\nb", " a", "lost+found", "PE"] {
            assert!(versions.check_name(name).is_err(), "{name:?}");
        }
        assert!(versions.check_name(&"x".repeat(129)).is_err());
        for name in ["pe", "winpe x64", "Wärme", "win11-24h2"] {
            versions.check_name(name).unwrap();
        }
    }
}

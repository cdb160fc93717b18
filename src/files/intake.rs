//! Taking files into the library: copied to new inodes, checked, hashed, on the disk, and then put in place in one step.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::files::detect::{self, CMDLINE_NAME};
use crate::files::gss;
use crate::files::make;
use crate::files::manifest::{MANIFEST_NAME, Manifest};
use crate::files::names;
use crate::files::record::{FileRecord, RECORD_NAME, Record};
use crate::files::scan::{self, DEPTH_MAX, FILES_MAX};
use crate::files::served::FileIdentity;
use crate::files::sniff;
use crate::files::versions::{self, VersionError, Versions};
use crate::files::visit::Visit;
use crate::files::wim::{self, Finding, Integrity, Severity, WimReport};
use crate::sys::acting::{as_myself, may_link};
use crate::sys::disk;
use crate::sys::open_plain;

/// Bytes copied at a time.
const COPY_LEN: usize = 1 << 20;
/// Runs of zeros from this length on become holes.
const HOLE_LEN: usize = 64 << 10;
static ZEROS: [u8; HOLE_LEN] = [0; HOLE_LEN];
/// Files up to this length are copied into the next version that keeps them, so that editing one does not edit both;
/// longer ones are linked.
const LINK_LEN_MIN: u64 = 1 << 20;
/// Left free on the file system, bytes: logs and the store may be on it.
const RESERVE: u64 = 16 << 20;

/// What is to be taken in.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The image's name.
    pub name: String,
    /// Files, and folders whose content is meant.
    pub sources: Vec<PathBuf>,
    /// Keys of `image.toml` to set.
    pub settings: Vec<(&'static str, Setting)>,
    /// The other files of the version before stay in this one.
    pub update: bool,
    /// Only if there is no such image.
    pub only_new: bool,
    /// How many earlier versions are kept.
    pub keep: usize,
    /// Who does it, for the record.
    pub by: String,
}

/// The value of a key of `image.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is what it holds")]
pub enum Setting {
    /// The key is taken away.
    Unset,
    Text(String),
    Flag(bool),
    Number(i64),
    List(Vec<String>),
}

impl From<&str> for Setting {
    /// An empty text takes the key away.
    fn from(text: &str) -> Self {
        if text.is_empty() { Self::Unset } else { Self::Text(text.to_owned()) }
    }
}

/// What was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its number.
    pub version: u32,
    /// The version it replaced.
    pub replaced: Option<u32>,
    /// Versions removed because more are not to be kept.
    pub dropped: Vec<u32>,
    /// Payload files in name order.
    pub files: Vec<FileRecord>,
    /// Files that came from the version before.
    pub carried: Vec<String>,
    /// Files that are read here and served to nobody: templates, answer files, a kernel's arguments.
    pub private: Vec<String>,
    /// Files that are taken and will give trouble, and which.
    pub warnings: Vec<String>,
}

/// Why nothing was taken in.
#[derive(Debug)]
pub enum Refused {
    /// A file is not what it should be.
    File {
        /// As given.
        file: PathBuf,
        /// One line.
        reason: String,
    },
    /// The files do not go together.
    Files(String),
    /// `image.toml` would be wrong.
    Settings(String),
    /// There is too little space.
    NoSpace {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
        /// The images folder.
        dir: PathBuf,
    },
    /// A file cannot be read or written.
    Io {
        /// Which.
        what: String,
        /// What the system said.
        error: io::Error,
    },
    /// The images folder says no.
    Version(VersionError),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, reason } => write!(f, "{}: refused: {reason}", file.display()),
            Self::Files(reason) => write!(f, "refused: {reason}"),
            Self::Settings(reason) => write!(f, "refused: {reason}"),
            Self::NoSpace { need, have, dir } => write!(
                f,
                "no space in {}: {need} bytes are needed, and {have} are free; nothing was taken",
                dir.display()
            ),
            Self::Io { what, error } if error.kind() == io::ErrorKind::StorageFull => {
                write!(f, "{what}: no space left on the file system; nothing was taken")
            }
            Self::Io { what, error } => write!(f, "{what}: {error}"),
            Self::Version(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

impl From<VersionError> for Refused {
    fn from(error: VersionError) -> Self {
        Self::Version(error)
    }
}

impl Refused {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

/// What is going on, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// So many bytes are to be copied, or read.
    Total(u64),
    /// This file begins.
    File(&'a str),
    /// So many bytes more are done.
    Bytes(u64),
    /// This file's content is compared with what it says of itself.
    Check(&'a str),
}

/// A file on its way in.
#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    len: u64,
    /// Which file it was when it was found.
    identity: FileIdentity,
    /// Bytes it takes on the disk: a sparse file takes less than its length.
    on_disk: u64,
    /// Kept from the version before.
    kept: bool,
}

/// Files by the names they will have.
#[derive(Debug, Default)]
struct Sources {
    files: BTreeMap<String, Source>,
    /// The same names as machines tell them apart.
    folded: HashMap<String, String>,
    /// They are the version before, which others may write to.
    before: Option<Before>,
}

/// Where the version before lies.
#[derive(Debug)]
struct Before {
    root: PathBuf,
    folder: PathBuf,
}

impl Before {
    /// What a link in it leads to, if that stays: as the scan has it, what lies in the images folder and is not hidden. What
    /// is hidden itself may lead to anything of its own image.
    fn follow(&self, name: &str, link: &Path) -> Option<PathBuf> {
        let real = fs::canonicalize(link).ok()?;
        let is_served = real.strip_prefix(&self.root).is_ok_and(|inside| !scan::hidden_path(inside));
        let is_own = names::is_hidden(name) && real.starts_with(&self.folder);
        (is_served || is_own).then_some(real)
    }
}

/// Takes files in as the next version of an image.
///
/// # Errors
/// [`Refused`]; then nothing was changed.
pub fn add(versions: &Versions, wish: &Wish, progress: &mut dyn FnMut(Step<'_>)) -> Result<Taken, Refused> {
    versions.check_name(&wish.name)?;
    versions.recover()?;
    let base = versions.base(&wish.name)?;
    let exists_already = || VersionError::Exists { name: wish.name.clone() };
    if wish.only_new && !base.is_nothing() {
        return Err(exists_already().into());
    }
    let mut warnings = Vec::new();
    let mut sources = Sources::default();
    let mut reports = BTreeMap::new();
    // What is named may be readable for who names it alone.
    as_myself(|| {
        for path in &wish.sources {
            gather(path, &mut sources, &mut warnings)?;
        }
        if sources.files.is_empty() {
            return Err(Refused::Files("there are no files in what was named".to_owned()));
        }
        for (name, source) in &sources.files {
            let file = File::open(&source.path).map_err(Refused::io(source.path.display().to_string()))?;
            if let Some(report) = first_look(name, &source.path, &file)? {
                reports.insert(name.clone(), report);
            }
        }
        Ok(())
    })?;
    let Sources { files: mut sources, folded, .. } = sources;
    let carry = |left_out: &mut Vec<String>| match base.is_nothing() {
        true => Ok(BTreeMap::new()),
        false => carried(versions.root(), wish, &folded, left_out),
    };
    let mut left_out = Vec::new();
    let carried = carry(&mut left_out)?;
    // The rest would not have been served either.
    let is_to_tell = |warning: &String| wish.update && warning.contains("it is a link that leaves");
    warnings.extend(left_out.into_iter().filter(is_to_tell));
    sources.extend(carried.clone());
    let manifest = manifest(&sources, &wish.settings)?;
    let need: u64 = sources.values().filter(|source| !source.is_linked()).map(|source| source.on_disk).sum();
    let have = disk::free_bytes(versions.root())
        .map_err(Refused::io(format!("images folder {}", versions.root().display())))?;
    if need.saturating_add(RESERVE) > have {
        return Err(Refused::NoSpace { need, have, dir: versions.root().to_owned() });
    }

    let staged = versions.stage(&wish.name)?;
    progress(Step::Total(sources.values().map(|source| source.len).sum()));
    let (mut files, mut private, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    let mut folders = vec![staged.path().to_owned()];
    for (name, source) in &sources {
        let to = staged.path().join(name);
        if let Some((folder, _)) = name.rsplit_once('/') {
            make::folders(staged.path(), folder)
                .map_err(Refused::io(format!("make {}", staged.path().join(folder).display())))?;
        }
        folders.extend(to.ancestors().skip(1).take_while(|f| *f != staged.path()).map(Path::to_owned));
        if name == MANIFEST_NAME {
            // Written below.
            continue;
        }
        progress(Step::File(name));
        let hash = source.take_in(name, &to, progress)?;
        let meta = fs::metadata(&to).map_err(Refused::io(to.display().to_string()))?;
        let record = FileRecord::unread(name, &FileIdentity::of(&meta));
        if !names::is_hidden(name) && name != CMDLINE_NAME {
            files.push(FileRecord { blake3: hash, ..record });
        } else {
            private.push(name.clone());
            texts.push(record);
        }
    }
    if let Some(text) = &manifest {
        let to = staged.path().join(MANIFEST_NAME);
        let written = make::written(&to, text.as_bytes()).and_then(|()| fs::metadata(&to));
        let meta = written.map_err(Refused::io(to.display().to_string()))?;
        texts.push(FileRecord::unread(MANIFEST_NAME, &FileIdentity::of(&meta)));
    }
    texts.sort_by(|a, b| a.name.cmp(&b.name));
    for (name, source) in sources.iter().filter(|(_, source)| !source.kept) {
        if reports.contains_key(name) {
            progress(Step::Check(name));
            check_wim(&source.path, &staged.path().join(name))?;
        }
    }
    let parsed = manifest.as_deref().map(Manifest::parse).and_then(Result::ok).unwrap_or_default();
    for (name, report) in &reports {
        warnings.extend(doubts(name, report, &parsed));
    }
    warnings.extend(sources.iter().filter(|(_, source)| !source.kept).filter_map(|(name, source)| {
        iso_doubt(&staged.path().join(name), source.len).map(|doubt| format!("{name}: {doubt}"))
    }));
    let kernel = sources
        .iter()
        .filter(|(name, source)| !source.kept && parsed.files.is_none() && detect::is_kernel_name(name));
    warnings.extend(kernel.filter(|(name, _)| !sniff::may_be_kernel(&staged.path().join(name))).map(
        |(name, _)| {
            format!(
                "{name}: called like a Linux kernel, and does not begin as one does: no machine will start it"
            )
        },
    ));
    folders.sort();
    folders.dedup();
    for folder in folders.iter().rev() {
        versions::sync(folder).map_err(Refused::io(folder.display().to_string()))?;
    }
    let added_unix = versions::unix(SystemTime::now());
    let record = Record { version: 0, added_unix, by: wish.by.clone(), files, texts };
    let files = record.files.clone();
    // What was carried over was read while others could put another version in its place, or write to this one.
    let is_base_same = || carry(&mut Vec::new()).is_ok_and(|now| are_same(&carried, &now));
    let published =
        versions.publish(&wish.name, staged, record, wish.keep, &base, is_base_same).map_err(|error| {
            match error {
                VersionError::Meanwhile { .. } if wish.only_new => exists_already(),
                other => other,
            }
        })?;
    Ok(Taken {
        version: published.version,
        replaced: published.replaced,
        dropped: published.dropped,
        files,
        carried: carried.into_keys().collect(),
        private,
        warnings,
    })
}

/// Lists what a file or folder named on the command line stands for.
fn gather(path: &Path, sources: &mut Sources, warnings: &mut Vec<String>) -> Result<(), Refused> {
    let refused = |reason: &str| Refused::File { file: path.to_owned(), reason: reason.to_owned() };
    let meta = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => refused("there is no such file"),
        _ => Refused::Io { what: path.display().to_string(), error },
    })?;
    if meta.is_dir() {
        return gather_folder(path, "", 0, sources, warnings);
    }
    if !meta.is_file() {
        return Err(refused("neither a file nor a folder"));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| refused("its name is not UTF-8, and no machine could ask for it"))?;
    if name.starts_with('.') {
        return Err(refused("dot files are never served"));
    }
    put(name, path, &meta, sources)
}

fn put(name: &str, path: &Path, meta: &fs::Metadata, sources: &mut Sources) -> Result<(), Refused> {
    let refused = |reason: String| Refused::File { file: path.to_owned(), reason };
    if !names::is_nameable(name) {
        return Err(refused(format!("no machine could ask for the name {name:?}")));
    }
    if sources.files.len() >= FILES_MAX {
        return Err(Refused::Files(format!("more than {FILES_MAX} files")));
    }
    if let Some(twin) = sources.folded.insert(names::folded(name), name.to_owned()) {
        return Err(refused(format!(
            "there are two files for the name {twin}, and machines do not tell them apart"
        )));
    }
    let on_disk = meta.len().min(meta.blocks().saturating_mul(512));
    let identity = FileIdentity::of(meta);
    let source = Source { path: path.to_owned(), len: meta.len(), identity, on_disk, kept: false };
    sources.files.insert(name.to_owned(), source);
    Ok(())
}

fn gather_folder(
    folder: &Path,
    prefix: &str,
    depth: usize,
    sources: &mut Sources,
    warnings: &mut Vec<String>,
) -> Result<(), Refused> {
    let entries = fs::read_dir(folder).map_err(Refused::io(folder.display().to_string()))?;
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let Ok(step) = entry.file_name().into_string() else {
            warnings.push(format!("{}: left out: its name is not UTF-8", path.display()));
            continue;
        };
        let name = if prefix.is_empty() { step.clone() } else { format!("{prefix}/{step}") };
        if step == RECORD_NAME {
            continue;
        }
        let is_kept_off = sources.before.is_some() && gss::set_aside(&step).is_some();
        if step.starts_with('.') && !is_kept_off {
            warnings.push(format!("{name}: left out: dot files are never served"));
            continue;
        }
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let path = match &sources.before {
            Some(before) if is_link => match before.follow(&name, &path) {
                Some(real) => real,
                None => {
                    warnings.push(format!("{name}: left out: it is a link that leaves the images folder"));
                    continue;
                }
            },
            _ => path,
        };
        let Ok(meta) = fs::symlink_metadata(&path).and_then(|meta| match meta.is_symlink() {
            // Of the version before, every link was followed above.
            true if sources.before.is_none() => fs::metadata(&path),
            _ => Ok(meta),
        }) else {
            warnings.push(format!("{name}: left out: it leads nowhere"));
            continue;
        };
        if meta.is_dir() && is_link {
            warnings.push(format!("{name}: left out: it is a link to a folder"));
        } else if meta.is_dir() && depth + 1 >= DEPTH_MAX {
            warnings.push(format!("{name}: left out: {DEPTH_MAX} folders deep"));
        } else if meta.is_dir() {
            gather_folder(&path, &name, depth + 1, sources, warnings)?;
        } else if meta.is_file() {
            put(&name, &path, &meta, sources)?;
        } else {
            warnings.push(format!("{name}: left out: neither a file nor a folder"));
        }
    }
    Ok(())
}

/// Refuses what is damaged before anything is copied. A report of what is a WIM.
fn first_look(name: &str, path: &Path, file: &File) -> Result<Option<WimReport>, Refused> {
    let mut magic = [0; 5];
    let is_wim = file.read_exact_at(&mut magic, 0).is_ok() && matches!(&magic, b"MSWIM" | b"WLPWM");
    if !is_wim && !names::may_be_wim(name) {
        return Ok(None);
    }
    let report = wim::inspect(file).map_err(Refused::io(path.display().to_string()))?;
    match report.worst(Severity::Damaged) {
        Some(finding) => Err(Refused::File { file: path.to_owned(), reason: finding.to_string() }),
        None => Ok(Some(report)),
    }
}

/// Looks at the copy, which is what will be served: whole, and as its integrity table says if it has one.
fn check_wim(path: &Path, copy: &Path) -> Result<(), Refused> {
    let failed = |error| Refused::Io { what: copy.display().to_string(), error };
    let refused = |finding: Finding| Refused::File { file: path.to_owned(), reason: finding.to_string() };
    let file = open_plain(copy).map_err(failed)?;
    let report = wim::inspect(&file).map_err(failed)?;
    if let Some(finding) = report.worst(Severity::Damaged) {
        return Err(refused(*finding));
    }
    let Some(info) = &report.info else { return Ok(()) };
    match wim::verify_integrity(&file, &info.header, |_| ()).map_err(failed)? {
        Integrity::Bad(finding) => Err(refused(finding)),
        Integrity::Good { .. } => Ok(()),
        Integrity::Absent => match wim::verify_blobs(&file, &info.header).map_err(failed)? {
            Some(finding) => Err(refused(finding)),
            None => Ok(()),
        },
    }
}

/// What is to be known of a sound WIM before it is booted.
fn doubts(name: &str, report: &WimReport, manifest: &Manifest) -> Vec<String> {
    let count = report.info.as_ref().map_or(0, |info| info.header.image_count);
    let is_settled = |finding: &Finding| match finding {
        // With one image there is nothing to choose, and wimboot is told.
        Finding::NoBootIndex => count == 1 || manifest.index.is_some(),
        _ => false,
    };
    let findings = report.findings.iter().filter(|finding| !is_settled(finding));
    let mut doubts: Vec<String> = findings.map(|finding| format!("{name}: {finding}")).collect();
    if let Some(index) = manifest.index.filter(|index| *index > count) {
        doubts.push(format!("{name}: image.toml asks for index {index}, but it has {}", images(count)));
    }
    doubts
}

/// So many images, in words.
pub(crate) fn images(count: u32) -> String {
    if count == 1 { "1 image".into() } else { format!("{count} images") }
}

/// ECMA-119 §8.4.8: an ISO says how many sectors it has.
fn iso_doubt(path: &Path, len: u64) -> Option<String> {
    if !sniff::is_iso(path) {
        return None;
    }
    let mut front = [0; 2];
    let mut blocks = [0; 4];
    let file = File::open(path).ok()?;
    file.read_exact_at(&mut blocks, 0x8050).ok()?;
    file.read_exact_at(&mut front, 0x8080).ok()?;
    let need = u64::from(u32::from_le_bytes(blocks)) * u64::from(u16::from_le_bytes(front));
    (need > len).then(|| format!("an ISO of {need} bytes by its own words, cut short at {len}"))
}

/// The files of the version before that stay: settings and answer files, and with an update every other one that has no
/// successor, loaders that are off among them.
fn carried(
    root: &Path,
    wish: &Wish,
    successors: &HashMap<String, String>,
    left_out: &mut Vec<String>,
) -> Result<BTreeMap<String, Source>, Refused> {
    let folder = root.join(&wish.name);
    let before = Before { root: root.to_owned(), folder: folder.clone() };
    let mut before = Sources { before: Some(before), ..Sources::default() };
    gather_folder(&folder, "", 0, &mut before, left_out)?;
    let mut carried = BTreeMap::new();
    for (name, source) in before.files {
        let off = gss::set_aside(&name);
        let is_setting = off.is_none() && (names::is_hidden(&name) || name == CMDLINE_NAME);
        let both = [Some(&name), off.as_ref()].into_iter().flatten();
        let has_successor = both.map(|name| names::folded(name)).any(|name| successors.contains_key(&name));
        if !has_successor && (wish.update || is_setting) {
            carried.insert(name, Source { kept: true, ..source });
        }
    }
    Ok(carried)
}

/// True while files are the ones that they were, and no other has come.
fn are_same(then: &BTreeMap<String, Source>, now: &BTreeMap<String, Source>) -> bool {
    let is_same = |(then, now): ((&String, &Source), (&String, &Source))| {
        then.0 == now.0 && then.1.path == now.1.path && then.1.identity.same_bytes(&now.1.identity)
    };
    then.len() == now.len() && then.iter().zip(now).all(is_same)
}

/// The text of `image.toml`: what there is, with the settings put in; `None` when there is nothing to say.
fn manifest(
    sources: &BTreeMap<String, Source>,
    settings: &[(&'static str, Setting)],
) -> Result<Option<String>, Refused> {
    let read = |source: &Source| {
        let mut text = String::new();
        source.open()?.read_to_string(&mut text).map(|_| text)
    };
    let there = sources
        .get(MANIFEST_NAME)
        .map(|source| read(source).map_err(Refused::io(source.path.display().to_string())));
    let there = there.transpose()?;
    if settings.is_empty() {
        if let Some(text) = &there {
            Manifest::parse(text).map_err(|bad| Refused::Settings(bad.reason))?;
        }
        if there.as_ref().is_some_and(String::is_empty) {
            return Err(Refused::Settings(format!("{MANIFEST_NAME} is empty")));
        }
        return Ok(there);
    }
    // Comments stay where they are.
    let mut document: toml_edit::DocumentMut =
        there.unwrap_or_default().parse().map_err(|error: toml_edit::TomlError| {
            Refused::Settings(format!("{MANIFEST_NAME}: {}", one_line(error.message())))
        })?;
    for (key, value) in settings {
        let value = match value {
            Setting::Unset => {
                document.remove(key);
                continue;
            }
            Setting::Text(text) => text.as_str().into(),
            Setting::Flag(flag) => (*flag).into(),
            Setting::Number(number) => (*number).into(),
            Setting::List(list) => toml_edit::Value::from(list.iter().collect::<toml_edit::Array>()),
        };
        document[key] = toml_edit::Item::Value(value);
    }
    let text = document.to_string();
    Manifest::parse(&text).map_err(|bad| Refused::Settings(bad.reason))?;
    Ok((!text.is_empty()).then_some(text))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Source {
    /// True for a file that the next version shares with the one before.
    fn is_linked(&self) -> bool {
        self.kept && self.len >= LINK_LEN_MIN && may_link(&self.path)
    }

    /// What was named is opened by who named it; what is kept lies where others may write, and no link is followed there.
    fn open(&self) -> io::Result<File> {
        if self.kept { open_plain(&self.path) } else { as_myself(|| File::open(&self.path)) }
    }

    /// Brings the file to its place, on the disk when this returns; the hash of what was read.
    fn take_in(
        &self,
        name: &str,
        to: &Path,
        progress: &mut dyn FnMut(Step<'_>),
    ) -> Result<Option<String>, Refused> {
        if self.is_linked() && fs::hard_link(&self.path, to).is_ok() {
            progress(Step::Bytes(self.len));
            // What it was when it was taken in, its record knows, if it has one.
            let before = self.path.ancestors().find(|folder| folder.join(RECORD_NAME).is_file());
            let record = before.and_then(|folder| Record::read(folder).ok().flatten());
            let identity = fs::metadata(&self.path).map(|meta| FileIdentity::of(&meta)).ok();
            let file = record.as_ref().and_then(|record| record.file(name));
            return Ok(file
                .filter(|file| identity.is_some_and(|identity| file.describes(&identity)))
                .and_then(|file| file.blake3.clone()));
        }
        let from = self.open().map_err(Refused::io(self.path.display().to_string()))?;
        let hash = copy_whole(&from, &self.path, to, name, progress)?;
        if self.kept && names::is_private(name) {
            // Whoever could read it can.
            let rights = from.metadata().map(|meta| meta.permissions());
            rights
                .and_then(|rights| fs::set_permissions(to, rights))
                .map_err(Refused::io(to.display().to_string()))?;
        }
        Ok(Some(hash))
    }
}

/// Files of another tree for an image of their names, before any of them is copied: none of them is still being written.
///
/// # Errors
/// [`Refused`].
pub(crate) fn check_rest(paths: &[PathBuf]) -> Result<(), Refused> {
    for path in paths {
        let failed = || Refused::io(path.display().to_string());
        let look = || {
            let file = open_plain(path)?;
            let identity = FileIdentity::of(&file.metadata()?);
            Ok(scan::is_being_written(&file, &identity, SystemTime::now()))
        };
        if as_myself(look).map_err(failed())? {
            return Err(Refused::File { file: path.clone(), reason: "it is still being written".to_owned() });
        }
    }
    Ok(())
}

/// Copies a file of another tree as [`add`] does one that is named: whole and checked, on the disk when this returns. Its
/// bytes, and their hash. No link is followed.
///
/// # Errors
/// [`Refused`].
pub(crate) fn take_over(path: &Path, to: &Path, name: &str) -> Result<(u64, String), Refused> {
    let failed = || Refused::io(path.display().to_string());
    let from = as_myself(|| open_plain(path)).map_err(failed())?;
    let report = first_look(name, path, &from)?;
    let hash = copy_whole(&from, path, to, name, &mut |_| ())?;
    if report.is_some() {
        check_wim(path, to)?;
    }
    Ok((from.metadata().map_err(failed())?.len(), hash))
}

/// Copies a file, which is at `path`, and refuses one that changes meanwhile. The hash of what was read.
fn copy_whole(
    from: &File,
    path: &Path,
    to: &Path,
    name: &str,
    progress: &mut dyn FnMut(Step<'_>),
) -> Result<String, Refused> {
    let identity = || from.metadata().map(|meta| FileIdentity::of(&meta));
    let before = identity().map_err(Refused::io(path.display().to_string()))?;
    let (hash, len) =
        copy(from, to, name, progress).map_err(Refused::io(format!("copy {}", path.display())))?;
    let after = identity().map_err(Refused::io(path.display().to_string()))?;
    if !before.same_bytes(&after) || len != after.len {
        let reason = "it changed while it was copied".to_owned();
        return Err(Refused::File { file: path.to_owned(), reason });
    }
    Ok(hash.to_hex().to_string())
}

/// Copies to a new file, which is called `name`, and brings it to the disk; runs of zeros become holes. Hash and length.
fn copy(
    from: &File,
    to: &Path,
    name: &str,
    progress: &mut dyn FnMut(Step<'_>),
) -> io::Result<(blake3::Hash, u64)> {
    let out = make::file(to, name)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; COPY_LEN];
    let mut reader = from;
    let visit = Visit::begin(from);
    let mut at = 0u64;
    loop {
        let have = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(have) => have,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = buffer.get(..have).unwrap_or_default();
        hasher.update(piece);
        let mut offset = at;
        for run in piece.chunks(HOLE_LEN) {
            if *run != ZEROS {
                out.write_all_at(run, offset)?;
            }
            offset += run.len() as u64;
        }
        visit.leave(from, at..at + have as u64);
        at += have as u64;
        progress(Step::Bytes(have as u64));
    }
    visit.end(from);
    out.set_len(at)?;
    out.sync_all()?;
    Ok((hasher.finalize(), at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::library::Library;
    use crate::files::library::test_site::{SMALL_WIM, Site};
    use crate::files::sniff::samples;
    use crate::jobs::image::Images;

    fn versions(site: &Site) -> Versions {
        Versions::open(&site.path().join("images")).unwrap()
    }

    fn wish(name: &str, sources: &[PathBuf]) -> Wish {
        Wish { name: name.into(), sources: sources.to_vec(), keep: 2, by: "test".into(), ..Wish::default() }
    }

    fn take(site: &Site, wish: &Wish) -> Result<Taken, Refused> {
        add(&versions(site), wish, &mut |_| ())
    }

    #[test]
    fn a_file_is_copied_hashed_and_served_at_once() {
        let site = Site::new();
        site.write("loaders/wimboot", b"wimboot");
        let library = site.library();
        let source = site.write("incoming/boot.wim", SMALL_WIM);
        let taken = take(&site, &wish("pe", std::slice::from_ref(&source))).unwrap();
        assert_eq!((taken.version, taken.replaced, taken.warnings.len()), (1, None, 0));
        assert_eq!(taken.files[0].blake3.as_deref(), Some(blake3::hash(SMALL_WIM).to_hex().as_str()));
        assert_eq!(library.rescan().unwrap().settling, 0, "its record vouches for it");
        let catalog = library.load();
        assert_eq!(catalog.image("pe").unwrap().unbootable, None);
        let shown = catalog.shown("pe").unwrap();
        assert_eq!((shown.details.version, shown.details.wims[0].boot_index), (Some(1), 2));
        assert_eq!(shown.details.wims[0].images[0].version.as_deref(), Some("10.0.26100"));
        assert!(catalog.http_image("pe/.version.json").is_err());
        // The source is not needed any more.
        std::fs::remove_file(source).unwrap();
        assert!(catalog.http_image("pe/boot.wim").unwrap().open().is_ok());
    }

    #[test]
    fn damaged_files_are_refused_with_the_reason_and_leave_nothing() {
        let site = Site::new();
        let mut half = SMALL_WIM.to_vec();
        half[16] |= 0x40;
        let mut corrupt = SMALL_WIM.to_vec();
        corrupt[300] ^= 1;
        for (name, bytes, reason) in [
            ("cut.wim", &SMALL_WIM[..1000], "truncated: "),
            ("empty.wim", &b""[..], "truncated: "),
            (
                "text.wim",
                &b"no WIM at all, but long enough to look like something".repeat(9)[..],
                "not a WIM file",
            ),
            ("half.wim", &half[..], "marked as being written"),
            ("corrupt.wim", &corrupt[..], "does not match the integrity table"),
        ] {
            let source = site.write(&format!("incoming/{name}"), bytes);
            let refused = take(&site, &wish("pe", &[source])).unwrap_err().to_string();
            assert!(
                refused.contains(reason) && refused.contains(name) && !refused.contains('\n'),
                "{refused}"
            );
            assert!(!site.path().join("images/pe").exists());
        }
        let staged = fs::read_dir(site.path().join("images/.staging")).map_or(0, Iterator::count);
        assert!(staged <= 1, "only the lock is left");
        let missing = take(&site, &wish("pe", &[site.path().join("gone")])).unwrap_err().to_string();
        assert!(missing.contains("no such file"), "{missing}");
        let device = take(&site, &wish("pe", &["/dev/null".into()])).unwrap_err().to_string();
        assert!(device.contains("neither a file nor a folder"), "{device}");
    }

    #[test]
    fn sound_files_that_do_not_boot_are_taken_with_a_warning() {
        let site = Site::new();
        let solid = site.write("incoming/install.esd", include_bytes!("../../tests/data/wim/solid-lzms.wim"));
        let taken = take(&site, &wish("esd", &[solid])).unwrap();
        assert!(taken.warnings.iter().any(|warning| warning.contains("LZMS")), "{:?}", taken.warnings);
        let mut split = SMALL_WIM.to_vec();
        split[42] = 3;
        let split = site.write("incoming/part.swm", &split);
        let taken = take(&site, &wish("split", &[split])).unwrap();
        assert!(taken.warnings.iter().any(|warning| warning.contains("split in 3")), "{:?}", taken.warnings);
        let mut iso = vec![0; 0x9000];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        iso[0x8050..0x8054].copy_from_slice(&100u32.to_le_bytes());
        iso[0x8080..0x8082].copy_from_slice(&2048u16.to_le_bytes());
        let taken = take(&site, &wish("iso", &[site.write("incoming/live.iso", &iso)])).unwrap();
        assert!(taken.warnings[0].contains("204800 bytes"), "{:?}", taken.warnings);
        let noise: Vec<u8> = (0..1000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let taken = take(&site, &wish("noise", &[site.write("incoming/vmlinuz", &noise)])).unwrap();
        assert!(taken.warnings[0].starts_with("vmlinuz: called like a Linux kernel"), "{:?}", taken.warnings);
        for sound in [samples::bzimage(), b"\x1f\x8b\x08".to_vec(), b"\x7fELF".to_vec()] {
            let taken = take(&site, &wish("sound", &[site.write("incoming/vmlinuz", &sound)])).unwrap();
            assert_eq!(taken.warnings, Vec::<String>::new());
        }
    }

    #[test]
    fn what_is_taken_and_never_served_is_named() {
        let site = Site::new();
        site.write("incoming/scr/private/ks.cfg", b"secret");
        let taken = take(&site, &wish("scr", &[site.path().join("incoming/scr")])).unwrap();
        assert_eq!((taken.files.len(), taken.private.as_slice()), (0, &["private/ks.cfg".to_owned()][..]));
    }

    #[test]
    fn the_next_version_is_just_these_files_and_keeps_the_settings() {
        let site = Site::new();
        let old = site.write("incoming/boot.wim", SMALL_WIM);
        let extra = site.write("incoming/startnet.cmd", b"wpeinit");
        let mut first = wish("pe", &[old.clone(), extra]);
        first.settings = vec![("title", "Windows".into()), ("destructive", Setting::Flag(true))];
        take(&site, &first).unwrap();
        site.write("images/pe/private/ks.cfg", b"secret");
        let manifest = site.path().join("images/pe/image.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, format!("# ours\n{text}")).unwrap();
        let mut second = wish("pe", std::slice::from_ref(&old));
        second.settings = vec![("title", "Windows 11".into())];
        let taken = take(&site, &second).unwrap();
        assert_eq!((taken.version, taken.replaced), (2, Some(1)));
        assert_eq!(taken.carried, ["image.toml", "private/ks.cfg"]);
        let folder = site.path().join("images/pe");
        assert!(!folder.join("startnet.cmd").exists() && folder.join("private/ks.cfg").exists());
        let text = fs::read_to_string(folder.join("image.toml")).unwrap();
        assert!(
            text.contains("# ours") && text.contains("Windows 11") && text.contains("destructive = true"),
            "{text}"
        );
        let image = site.image("pe");
        assert!(image.destructive && image.title == "Windows 11", "{image:?}");
        // With the others kept.
        let update = Wish { update: true, ..wish("pe", &[site.write("incoming/BCD", b"bcd")]) };
        let taken = take(&site, &update).unwrap();
        assert!(taken.carried.contains(&"boot.wim".to_owned()), "{:?}", taken.carried);
        assert!(folder.join("boot.wim").exists() && folder.join("BCD").exists());
        let only_new = Wish { only_new: true, ..update };
        assert!(take(&site, &only_new).unwrap_err().to_string().contains("pe already"));
    }

    #[test]
    fn settings_that_were_taken_in_count_at_once() {
        let site = Site::new();
        let library = site.library();
        site.write("incoming/linux", &samples::bzimage());
        site.write("incoming/cmdline", b"quiet");
        site.write("incoming/private/ks.cfg", b"rootpw x");
        let mut lab = wish("lab", &[site.path().join("incoming")]);
        lab.settings =
            vec![("destructive", Setting::Flag(true)), ("answers", Setting::List(vec!["ks.cfg".into()]))];
        take(&site, &lab).unwrap();
        assert_eq!(library.rescan().unwrap().settling, 0);
        let catalog = library.load();
        let image = catalog.image("lab").unwrap();
        assert_eq!((image.unbootable.as_deref(), image.destructive, image.answers.len()), (None, true, 1));
        // What is changed by hand later, nobody vouches for.
        site.write("images/lab/image.toml", b"title = \"x\"\n");
        assert_eq!(library.rescan().unwrap().settling, 1);
        let image = library.load().image("lab").unwrap().clone();
        assert!(image.destructive && image.warnings.iter().any(|text| text.contains("still being written")));
    }

    #[test]
    fn an_empty_manifest_is_refused_and_one_without_keys_is_not_written() {
        let site = Site::new();
        let script = site.write("incoming/boot.ipxe", b"#!ipxe\n");
        let empty = site.write("incoming/image.toml", b"");
        let refused = take(&site, &wish("lab", &[script.clone(), empty])).unwrap_err().to_string();
        assert!(refused.contains("image.toml is empty"), "{refused}");
        let mut titled = wish("lab", &[script]);
        titled.settings = vec![("title", "Lab".into())];
        take(&site, &titled).unwrap();
        titled.settings = vec![("title", "".into())];
        take(&site, &titled).unwrap();
        assert!(!site.path().join("images/lab/image.toml").exists());
        assert_eq!(site.image("lab").unbootable, None);
    }

    #[test]
    fn what_another_does_meanwhile_is_not_mixed_in_or_lost() {
        let site = Site::new();
        let versions = versions(&site);
        let script = |text: &str| site.write("incoming/boot.ipxe", text.as_bytes());
        let mut first = wish("lab", &[script("#!ipxe\n# one\n"), site.write("incoming/other", b"one")]);
        first.settings = vec![("destructive", Setting::Flag(true))];
        take(&site, &first).unwrap();
        take(&site, &wish("lab", &[script("#!ipxe\n# two\n")])).unwrap();
        let update = Wish { update: true, ..wish("lab", &[site.write("incoming/more", b"more")]) };
        // Once it has been seen what is to be carried over.
        let add_while = |wish: &Wish, meanwhile: &dyn Fn()| {
            let mut begun = false;
            let taken = add(&versions, wish, &mut |_| {
                if !std::mem::replace(&mut begun, true) {
                    meanwhile();
                }
            });
            taken.unwrap_err().to_string()
        };
        let late = "lab changed meanwhile: nothing was done, run it again";
        assert_eq!(add_while(&update, &|| _ = versions.roll_back("lab", None, false).unwrap()), late);
        assert_eq!(add_while(&update, &|| _ = take(&site, &first).unwrap()), late);
        // By hand, to what was carried over, and a setting that was not there.
        let manifest = || _ = site.write("images/lab/image.toml", b"access = \"boot\"\n");
        assert_eq!(add_while(&update, &manifest), late);
        assert_eq!(add_while(&update, &|| _ = site.write("images/lab/private/key", b"secret")), late);
        let numbers: Vec<_> =
            versions.list("lab").unwrap().iter().map(|version| version.record.version).collect();
        assert_eq!(numbers, [3, 2, 1]);
        assert_eq!(
            take(&site, &update).unwrap().carried,
            ["boot.ipxe", "image.toml", "other", "private/key"]
        );
        // Nothing was there, and another was quicker.
        let new = wish("new", &[script("#!ipxe\n")]);
        let only_new = Wish { only_new: true, ..new.clone() };
        let refused = add_while(&only_new, &|| _ = take(&site, &only_new).unwrap());
        assert!(refused.contains("there is an image new already"), "{refused}");
        versions.remove("new").unwrap();
        assert!(add_while(&new, &|| _ = take(&site, &new).unwrap()).contains("new changed meanwhile"));
    }

    #[test]
    fn a_loader_that_is_off_stays_with_an_update_unless_it_comes_anew() {
        let site = Site::new();
        let script = site.write("incoming/boot.ipxe", b"#!ipxe\n");
        take(&site, &wish("lab", std::slice::from_ref(&script))).unwrap();
        site.write("images/lab/X64/.ipxe64.efi.off", b"the vendor's");
        let off = site.path().join("images/lab/X64/.ipxe64.efi.off");
        let update = Wish { update: true, ..wish("lab", std::slice::from_ref(&script)) };
        let taken = take(&site, &update).unwrap();
        assert_eq!(taken.carried, ["X64/.ipxe64.efi.off"]);
        assert_eq!(fs::read(&off).unwrap(), b"the vendor's");
        site.write("incoming/tree/X64/ipxe64.efi", b"a newer one");
        let update = Wish { update: true, ..wish("lab", &[site.path().join("incoming/tree")]) };
        assert_eq!(take(&site, &update).unwrap().carried, ["boot.ipxe"]);
        site.write("images/lab/X64/.ipxe64.efi.off", b"the vendor's");
        take(&site, &wish("lab", &[script])).unwrap();
        assert!(!off.exists(), "just the files named");
    }

    #[test]
    fn a_link_in_the_version_before_that_leaves_is_not_kept() {
        use std::os::unix::fs::symlink;
        let site = Site::new();
        let script = site.write("incoming/boot.ipxe", b"#!ipxe\n");
        take(&site, &wish("lab", std::slice::from_ref(&script))).unwrap();
        let (secret, images) = (site.write("secret", b"secret"), site.path().join("images"));
        site.write("images/other/shared", b"shared");
        site.write("images/other/private/key", b"key");
        site.write("images/lab/private/real", b"real");
        for (to, link) in [
            ("../../secret", "lab/out"),
            ("../../../secret", "lab/private/out"),
            ("../other/shared", "lab/in"),
            ("../other/private/key", "lab/key"),
            ("../../other/private/key", "lab/private/key"),
            ("private/real", "lab/real"),
            ("real", "lab/private/own"),
            ("../../secret", "lab/image.toml"),
        ] {
            symlink(to, images.join(link)).unwrap();
        }
        symlink(&secret, images.join("lab/absolute")).unwrap();
        let taken = take(&site, &Wish { update: true, ..wish("lab", &[script]) }).unwrap();
        assert_eq!(taken.carried, ["in", "private/own", "private/real"]);
        assert!(taken.warnings.iter().any(|warning| warning.starts_with("out:")), "{:?}", taken.warnings);
        assert_eq!(fs::read(images.join("lab/in")).unwrap(), b"shared");
        assert!(fs::symlink_metadata(images.join("lab/in")).unwrap().is_file(), "a copy, and no link");
    }

    #[test]
    fn long_files_that_stay_are_shared_and_keep_their_hash() {
        let site = Site::new();
        let long = vec![7; 3 << 20];
        take(&site, &wish("lab", &[site.write("incoming/data.bin", &long)])).unwrap();
        let update = Wish { update: true, ..wish("lab", &[site.write("incoming/x.ipxe", b"#!ipxe\n")]) };
        let taken = take(&site, &update).unwrap();
        let data = taken.files.iter().find(|file| file.name == "data.bin").unwrap();
        assert_eq!(data.blake3.as_deref(), Some(blake3::hash(&long).to_hex().as_str()));
        let inode = |path: &str| fs::metadata(site.path().join(path)).unwrap().ino();
        assert_eq!(inode("images/lab/data.bin"), inode("images/.versions/lab/1/data.bin"));
    }

    #[test]
    fn bad_settings_and_bad_names_change_nothing() {
        let site = Site::new();
        let script = site.write("incoming/boot.ipxe", b"#!ipxe\nexit\n");
        let mut bad = wish("lab", std::slice::from_ref(&script));
        bad.settings = vec![("key", "##".into())];
        assert!(take(&site, &bad).unwrap_err().to_string().contains("key"));
        let toml = site.write("incoming/image.toml", b"titel = \"x\"");
        let refused = take(&site, &wish("lab", &[script.clone(), toml])).unwrap_err().to_string();
        assert!(refused.contains("titel"), "{refused}");
        let upper = site.write("incoming/two/BOOT.ipxe", b"#!ipxe\n");
        assert!(
            take(&site, &wish("lab", &[script.clone(), upper]))
                .unwrap_err()
                .to_string()
                .contains("two files")
        );
        for name in ["..", "a/b", ".x"] {
            assert!(take(&site, &wish(name, std::slice::from_ref(&script))).is_err(), "{name}");
        }
        assert!(!site.path().join("images/lab").exists());
    }

    #[test]
    fn a_folder_is_taken_with_everything_that_can_be_served() {
        let site = Site::new();
        for (name, bytes) in [
            ("sources/boot.wim", SMALL_WIM),
            ("Boot/BCD", b"bcd"),
            ("image.toml", b"title = \"Media\""),
            ("private/answers.xml", b"<x/>"),
            (".git/config", b"x"),
        ] {
            site.write(&format!("incoming/{name}"), bytes);
        }
        std::os::unix::fs::symlink("/etc", site.path().join("incoming/etc")).unwrap();
        let taken = take(&site, &wish("media", &[site.path().join("incoming")])).unwrap();
        let names: Vec<_> = taken.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["Boot/BCD", "sources/boot.wim"]);
        assert!(taken.warnings.iter().any(|warning| warning.starts_with("etc:")), "{:?}", taken.warnings);
        assert_eq!(site.image("media").title, "Media");
        assert!(site.path().join("images/media/private/answers.xml").exists());
        assert!(!site.path().join("images/media/.git").exists());
    }

    #[test]
    fn a_sparse_file_stays_sparse() {
        let site = Site::new();
        let path = site.write("incoming/big.bin", b"front");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let taken = take(&site, &wish("big", &[path])).unwrap();
        assert_eq!(taken.files[0].len, 64 << 20);
        let meta = fs::metadata(site.path().join("images/big/big.bin")).unwrap();
        assert!(meta.blocks() * 512 < 4 << 20, "{} bytes on the disk", meta.blocks() * 512);
    }

    #[test]
    fn a_running_download_ends_with_its_version_and_the_next_gets_the_new_one() {
        let site = Site::new();
        take(&site, &wish("lab", &[site.write("incoming/boot.ipxe", b"#!ipxe\necho one\n")])).unwrap();
        let library: Library = site.library();
        let old = library.load().http_image("lab/boot.ipxe").unwrap().open().unwrap();
        take(&site, &wish("lab", &[site.write("incoming/boot.ipxe", b"#!ipxe\necho two!\n")])).unwrap();
        library.rescan().unwrap();
        let new = library.load().http_image("lab/boot.ipxe").unwrap().open().unwrap();
        assert!(old.still_same() && new.still_same());
        assert_eq!((old.len, new.len), (16, 17));
    }
}

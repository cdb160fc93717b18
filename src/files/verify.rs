//! Reading images again: whether every byte is still what was taken in.
//!
//! A file is hashed whole and compared with its record; a WIM also with its own integrity table. What was found is
//! written down as it goes, so that a run that was interrupted goes on about where it was.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::files::intake::Step;
use crate::files::make;
use crate::files::names;
use crate::files::record::{FileRecord, Record};
use crate::files::scan::{self, Before, Found, Walk};
use crate::files::served::FileIdentity;
use crate::files::versions::{self, Version, VersionError, Versions};
use crate::files::visit::{self, Visit, Visited};
use crate::files::wim::{self, Finding, Integrity, Severity};
use crate::sys::open_plain;

/// Bytes read at a time.
const READ_LEN: usize = 1 << 20;
/// What was found is written down this often at most: a folder may have many thousand small files.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// An interrupted run older than this is begun anew.
const RESUME_MAX_S: u64 = 7 * 24 * 60 * 60;

/// What reading a file again came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every byte is what was taken in.
    Same,
    /// It was read for the first time: what it is now, it is held to from now on.
    First,
    /// It is another, and was accepted as what it is now.
    Accepted,
    /// An interrupted run has read it already.
    Done,
    /// Its bytes are not what was taken in.
    Differs {
        /// What was taken in.
        was: FileRecord,
        /// BLAKE3 now.
        now: String,
        /// Bytes now.
        len: u64,
        /// Its time is another, too: somebody wrote it. If it is not, the disk lost it.
        touched: bool,
    },
    /// The WIM contradicts itself.
    Damaged(Finding),
    /// It is in the record and not in the folder.
    Missing,
    /// It changed while it was read.
    Changing,
    /// The system said no.
    Unreadable(String),
}

impl Outcome {
    /// True when nothing is wrong.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Same | Self::First | Self::Accepted | Self::Done)
    }

    /// One word, for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::First => "first",
            Self::Accepted => "accepted",
            Self::Done => "done",
            Self::Differs { .. } => "differs",
            Self::Damaged(_) => "damaged",
            Self::Missing => "missing",
            Self::Changing => "changing",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("as it was taken in"),
            Self::First => f.write_str("read for the first time; it is held to that from now on"),
            Self::Accepted => f.write_str("accepted as it is now"),
            Self::Done => f.write_str("read already"),
            Self::Differs { was, now, len, touched } => {
                write!(f, "not what was taken in: ")?;
                if was.len != *len {
                    write!(f, "{} bytes then, {len} now; ", was.len)?;
                }
                let then = was.blake3.as_deref().unwrap_or("unknown");
                write!(f, "BLAKE3 {then} then, {now} now; ")?;
                f.write_str(match touched {
                    true => "somebody wrote to it",
                    false => "nobody wrote to it: the disk or its memory is failing",
                })
            }
            Self::Damaged(finding) => finding.fmt(f),
            Self::Missing => f.write_str("is gone"),
            Self::Changing => f.write_str("is being written, or changed while it was read"),
            Self::Unreadable(why) => write!(f, "cannot be read: {why}"),
        }
    }
}

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    /// Files verified since then, seconds since 1970, are not read again.
    pub since: Option<u64>,
    /// What is not as it was taken in is what is wanted.
    pub accept: bool,
    /// Set to break off: soon after it nothing more is read, and what was read whole by then is the answer.
    pub stop: Option<&'a AtomicBool>,
}

impl How<'_> {
    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

/// Reads a version again. What each of its files came to, in name order.
///
/// # Errors
/// [`VersionError::Io`] when the record cannot be read. One that cannot be written is no error: then the next run
/// reads everything.
pub fn version(
    versions: &Versions,
    version: &Version,
    how: How<'_>,
    progress: &mut dyn FnMut(Step<'_>),
) -> Result<Vec<(String, Outcome)>, VersionError> {
    let walk = files_of(versions, version);
    let mut record = version.record.clone();
    let mut outcomes = Vec::new();
    let mut is_current = true;
    let (mut written, mut unwritten) = (Instant::now(), false);
    for found in &walk.files {
        let before = record.file(&found.name).cloned();
        let is_done = |file: &FileRecord| {
            file.describes(&found.identity)
                && file.verified_unix.is_some_and(|at| how.since.is_some_and(|s| at >= s))
        };
        if before.as_ref().is_some_and(is_done) {
            outcomes.push((found.name.clone(), Outcome::Done));
            continue;
        }
        progress(Step::File(&found.name));
        let (outcome, hash) = read_again(found, before.as_ref(), how, progress);
        // A file that was read in part is neither good nor bad.
        if how.is_stopped() {
            break;
        }
        if let Some(hash) = hash.filter(|_| outcome.is_good()) {
            let now = FileRecord {
                blake3: Some(hash),
                verified_unix: Some(versions::unix(SystemTime::now())),
                ..FileRecord::unread(&found.name, &found.identity)
            };
            match record.files.binary_search_by(|file| file.name.cmp(&now.name)) {
                Ok(at) => record.files[at] = now,
                Err(at) => record.files.insert(at, now),
            }
            unwritten = true;
            if written.elapsed() >= WRITE_EVERY {
                // A folder that is not ours to write to is verified all the same.
                is_current = versions.update_record(&version.path, &record).unwrap_or(true);
                (written, unwritten) = (Instant::now(), false);
            }
        }
        outcomes.push((found.name.clone(), outcome));
        if !is_current {
            break;
        }
    }
    if unwritten && is_current {
        is_current = versions.update_record(&version.path, &record).unwrap_or(true);
    }
    outcomes.extend(walk.settling.iter().map(|name| (name.clone(), Outcome::Changing)));
    if is_current && !how.is_stopped() {
        let gone: Vec<String> = missing(&record, &walk).map(str::to_owned).collect();
        if how.accept && !gone.is_empty() {
            record.files.retain(|file| !gone.contains(&file.name));
            versions.update_record(&version.path, &record)?;
        }
        let outcome = if how.accept { Outcome::Accepted } else { Outcome::Missing };
        outcomes.extend(gone.into_iter().map(|name| (name, outcome.clone())));
    }
    outcomes.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(outcomes)
}

/// Bytes that [`version`] would read.
pub fn bytes_of(versions: &Versions, version: &Version) -> u64 {
    files_of(versions, version).files.iter().map(|found| found.identity.len).sum()
}

fn files_of(versions: &Versions, version: &Version) -> Walk {
    match version.current {
        true => scan::walk_image(versions.root(), &version.path, &Before::first(SystemTime::now())),
        false => scan::walk_version(&version.path),
    }
}

fn missing<'r>(record: &'r Record, walk: &Walk) -> impl Iterator<Item = &'r str> {
    let is_there = |name: &str| walk.file(name).is_some() || walk.settling.iter().any(|other| other == name);
    record.files.iter().map(|file| file.name.as_str()).filter(move |name| !is_there(name))
}

fn read_again(
    found: &Found,
    before: Option<&FileRecord>,
    how: How<'_>,
    progress: &mut dyn FnMut(Step<'_>),
) -> (Outcome, Option<String>) {
    let file = match open_plain(&found.path) {
        Ok(file) => file,
        Err(error) => return (Outcome::Unreadable(error.to_string()), None),
    };
    let visit = Visit::begin(&file);
    let outcome = read_file_again(&file, &visit, found, before, how, progress);
    visit.end(&file);
    outcome
}

fn read_file_again(
    file: &File,
    visit: &Visit,
    found: &Found,
    before: Option<&FileRecord>,
    how: How<'_>,
    progress: &mut dyn FnMut(Step<'_>),
) -> (Outcome, Option<String>) {
    let read =
        hash(file, visit, how, progress).and_then(|hash| Ok((hash, FileIdentity::of(&file.metadata()?))));
    let (hash, identity) = match read {
        Ok(read) => read,
        Err(error) => return (Outcome::Unreadable(error.to_string()), None),
    };
    if !identity.same_bytes(&found.identity) {
        return (Outcome::Changing, None);
    }
    let was = before.and_then(|before| Some((before, before.blake3.as_deref()?)));
    if let Some((before, then)) = was
        && then != hash
        && !how.accept
    {
        let touched = !before.describes(&identity);
        let differs = Outcome::Differs { was: before.clone(), now: hash, len: identity.len, touched };
        return (differs, None);
    }
    if names::may_be_wim(&found.name)
        && let Some(finding) = damage(file, visit, how.stop, was.is_none())
    {
        return (Outcome::Damaged(finding), None);
    }
    let outcome = match was {
        Some((_, then)) if then == hash => Outcome::Same,
        Some(_) => Outcome::Accepted,
        None => Outcome::First,
    };
    (outcome, Some(hash))
}

/// What was read is let go of as `visit` says.
fn hash(
    mut file: &File,
    visit: &Visit,
    how: How<'_>,
    progress: &mut dyn FnMut(Step<'_>),
) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_LEN];
    let mut at = 0;
    loop {
        if how.is_stopped() {
            return Err(visit::stopped());
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
            Ok(have) => {
                hasher.update(buffer.get(..have).unwrap_or_default());
                visit.leave(file, at..at + have as u64);
                at += have as u64;
                progress(Step::Bytes(have as u64));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What is wrong inside a WIM; a failure to read was told by the hash. `whole`: nothing is known of it yet.
fn damage(file: &File, visit: &Visit, stop: Option<&AtomicBool>, whole: bool) -> Option<Finding> {
    let file = &Visited { file, visit, stop };
    let report = wim::inspect(file).ok()?;
    if let Some(finding) = report.worst(Severity::Damaged) {
        return Some(*finding);
    }
    let header = report.info?.header;
    match wim::verify_integrity(file, &header, |_| ()).ok()? {
        Integrity::Bad(finding) => Some(finding),
        Integrity::Good { .. } => None,
        Integrity::Absent if whole => wim::verify_blobs(file, &header).ok()?,
        Integrity::Absent => None,
    }
}

/// Longest note read: a scope is an image's name.
const NOTE_LEN_MAX: u64 = 4096;

fn read_note(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open_plain(path)?.take(NOTE_LEN_MAX).read_to_end(&mut text)?;
    Ok(text)
}

#[derive(Serialize, Deserialize)]
struct Begun {
    scope: String,
    started_unix: u64,
}

/// A run over one image or all of them, remembered until it has ended.
#[derive(Debug)]
pub struct Run {
    /// When the run was begun, seconds since 1970: files verified since then are done.
    pub since: u64,
    /// It was begun before and broken off.
    pub resumed: bool,
    note: Option<PathBuf>,
}

impl Run {
    /// Begins a run over `scope` (an image's name, or empty for all), or goes on with one that was broken off unless it is
    /// to `restart`.
    pub fn begin(versions: &Versions, scope: &str, restart: bool) -> Self {
        let note = versions.staging_dir().join(".verify.json");
        let now = versions::unix(SystemTime::now());
        let begun: Option<Begun> = read_note(&note).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(begun) = begun.filter(|begun| !restart && begun.scope == scope)
            && begun.started_unix <= now
            && now - begun.started_unix < RESUME_MAX_S
        {
            return Self { since: begun.started_unix, resumed: true, note: Some(note) };
        }
        let begun = Begun { scope: scope.to_owned(), started_unix: now };
        let written = make::folder(&versions.staging_dir(), "").is_ok()
            && serde_json::to_vec(&begun).is_ok_and(|text| make::written(&note, &text).is_ok());
        Self { since: now, resumed: false, note: written.then_some(note) }
    }

    /// It has come to its end.
    pub fn finish(self) {
        if let Some(note) = self.note {
            // Left behind, it would only save the next run some reading.
            let _ = fs::remove_file(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::library::test_site::{SMALL_WIM, Site};

    fn verify(site: &Site, how: How<'_>) -> Vec<(String, &'static str)> {
        let versions = Versions::open(&site.path().join("images")).unwrap();
        let current = versions.list("pe").unwrap().remove(0);
        let outcomes = version(&versions, &current, how, &mut |_| ()).unwrap();
        outcomes.into_iter().map(|(name, outcome)| (name, outcome.word())).collect()
    }

    fn one(name: &str, word: &'static str) -> (String, &'static str) {
        (name.to_owned(), word)
    }

    #[test]
    fn the_first_reading_is_what_later_ones_are_held_to() {
        let site = Site::new();
        site.write("images/pe/boot.wim", SMALL_WIM);
        site.write("images/pe/a.txt", b"one");
        assert_eq!(verify(&site, How::default()), [one("a.txt", "first"), one("boot.wim", "first")]);
        assert_eq!(verify(&site, How::default()), [one("a.txt", "same"), one("boot.wim", "same")]);
        site.write("images/pe/a.txt", b"two");
        std::fs::remove_file(site.path().join("images/pe/boot.wim")).unwrap();
        assert_eq!(verify(&site, How::default()), [one("a.txt", "differs"), one("boot.wim", "missing")]);
        let accept = How { accept: true, ..How::default() };
        assert_eq!(verify(&site, accept), [one("a.txt", "accepted"), one("boot.wim", "accepted")]);
        assert_eq!(verify(&site, How::default()), [one("a.txt", "same")]);
    }

    #[test]
    fn a_byte_that_the_disk_lost_is_told_from_one_that_somebody_wrote() {
        let site = Site::new();
        let path = site.write("images/pe/a.txt", b"one");
        verify(&site, How::default());
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, b"onf").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let versions = Versions::open(&site.path().join("images")).unwrap();
        let current = versions.list("pe").unwrap().remove(0);
        let outcomes = version(&versions, &current, How::default(), &mut |_| ()).unwrap();
        let text = outcomes[0].1.to_string();
        assert!(text.contains("the disk") && text.contains("then"), "{text}");
    }

    #[test]
    fn a_damaged_wim_is_never_accepted() {
        let site = Site::new();
        let mut bytes = SMALL_WIM.to_vec();
        bytes[300] ^= 1;
        site.write("images/pe/boot.wim", &bytes);
        assert_eq!(verify(&site, How { accept: true, ..How::default() }), [one("boot.wim", "damaged")]);
    }

    #[test]
    fn a_run_that_was_broken_off_reads_on_where_it_was() {
        let site = Site::new();
        site.write("images/pe/a.txt", b"one");
        let versions = Versions::open(&site.path().join("images")).unwrap();
        let run = Run::begin(&versions, "", false);
        assert!(!run.resumed);
        let since = Some(run.since);
        assert_eq!(verify(&site, How { since, ..How::default() }), [one("a.txt", "first")]);
        site.write("images/pe/b.txt", b"two");
        let again = Run::begin(&versions, "", false);
        assert!(again.resumed && !Run::begin(&versions, "pe", false).resumed);
        let again = Run { since: again.since, resumed: true, note: again.note };
        assert_eq!(
            verify(&site, How { since: Some(again.since), ..How::default() }),
            [one("a.txt", "done"), one("b.txt", "first")]
        );
        again.finish();
        assert!(!Run::begin(&versions, "", false).resumed);
        assert!(!Run::begin(&versions, "", true).resumed);
    }
}

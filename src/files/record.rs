//! The record of an image's version: its number, and what each of its files was when it was taken in. It lies in the
//! version's own folder, so that it moves with it in one rename, and is never served.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::files::make;
use crate::files::scan;
use crate::files::served::FileIdentity;
use crate::files::versions;
use crate::sys::open_plain;

/// Name of the file in the version's folder.
pub const RECORD_NAME: &str = ".version.json";
/// Largest record read: some 50,000 files.
const RECORD_LEN_MAX: u64 = 32 << 20;

/// A version of an image.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1. No number is used twice while an image has any version.
    pub version: u32,
    /// When it was taken in, seconds since 1970.
    pub added_unix: u64,
    /// Who did it, as the audit log names them; empty for a folder that somebody put there by hand.
    #[serde(default)]
    pub by: String,
    /// Its payload files in name order.
    pub files: Vec<FileRecord>,
    /// What is read here and served to nobody (`image.toml`, templates, answer files) as it was taken in, in name order: the
    /// scan needs not wait to see that it is whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<FileRecord>,
}

/// A file as it was taken in.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name below the image's folder.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// Time of its content, nanoseconds since 1970.
    pub modified_ns: i64,
    /// BLAKE3 of the whole file in hexadecimal; `None` for one that was not read yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// When its bytes were last read and found to be these, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_unix: Option<u64>,
}

impl FileRecord {
    /// Of a file that is there, not read yet.
    pub fn unread(name: &str, identity: &FileIdentity) -> Self {
        Self {
            name: name.to_owned(),
            len: identity.len,
            modified_ns: nanoseconds(identity),
            ..Self::default()
        }
    }

    /// True while length and time say that the content is what it was.
    pub fn describes(&self, identity: &FileIdentity) -> bool {
        self.len == identity.len && self.modified_ns == nanoseconds(identity)
    }
}

fn nanoseconds(identity: &FileIdentity) -> i64 {
    i64::try_from(identity.modified_ns).unwrap_or(i64::MAX)
}

fn named<'r>(files: &'r [FileRecord], name: &str) -> Option<&'r FileRecord> {
    let at = files.binary_search_by(|file| file.name.as_str().cmp(name)).ok()?;
    files.get(at)
}

impl Record {
    /// Whether it was taken in with such a text.
    pub fn has_text(&self, name: &str) -> bool {
        named(&self.texts, name).is_some()
    }

    /// Of a folder as it is now, none of its files read; its number is still to be given.
    pub fn of_folder(folder: &Path, by: &str) -> Self {
        let walk = scan::walk_version(folder);
        let files = walk.files.iter().map(|found| FileRecord::unread(&found.name, &found.identity));
        let texts =
            walk.texts.iter().filter_map(|(name, whole)| Some(FileRecord::unread(name, whole.as_ref()?)));
        Self {
            version: 0,
            added_unix: versions::unix(SystemTime::now()),
            by: by.to_owned(),
            files: files.collect(),
            texts: texts.collect(),
        }
    }

    /// Reads the record of a folder; `None` when it has none.
    ///
    /// # Errors
    /// What reading says, and `InvalidData` for a record that cannot be understood.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        let path = folder.join(RECORD_NAME);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{RECORD_NAME}: {why}"));
        if !meta.is_file() || meta.len() > RECORD_LEN_MAX {
            return Err(bad("not a record".to_owned()));
        }
        // Whoever may write there can have put anything in its place since.
        let mut text = Vec::new();
        open_plain(&path)?.take(RECORD_LEN_MAX).read_to_end(&mut text)?;
        let mut record: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        record.files.sort_by(|a, b| a.name.cmp(&b.name));
        record.texts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(record))
    }

    /// Writes the record into its folder, on the disk when this returns: whole, or as it was before.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let staged = folder.join(format!("{RECORD_NAME}.new"));
        let written = (|| {
            make::written(&staged, &serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
            fs::rename(&staged, folder.join(RECORD_NAME))?;
            File::open(folder)?.sync_all()
        })();
        if written.is_err() {
            // What is left of it is of no use; the first error is the one to report.
            let _ = fs::remove_file(&staged);
        }
        written
    }

    /// A payload file by its name.
    pub fn file(&self, name: &str) -> Option<&FileRecord> {
        named(&self.files, name)
    }

    /// True when the record has this file, payload or text, as it is.
    pub fn describes(&self, name: &str, identity: &FileIdentity) -> bool {
        let file = self.file(name).or_else(|| named(&self.texts, name));
        file.is_some_and(|file| file.describes(identity))
    }

    /// When the last of its files was verified that was verified longest ago; `None` while there is one that never was.
    pub fn verified_unix(&self) -> Option<u64> {
        self.files.iter().map(|file| file.verified_unix).min().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_broken_one_is_an_error() {
        let folder = TestFolder::new("record");
        assert_eq!(Record::read(folder.path()).unwrap(), None);
        let file = |name: &str, verified_unix| FileRecord {
            name: name.into(),
            verified_unix,
            ..FileRecord::default()
        };
        let record = Record {
            version: 3,
            added_unix: 9,
            by: "uid 0 (root)".into(),
            files: vec![file("a", Some(5)), file("b", Some(4))],
            texts: vec![file("image.toml", None)],
        };
        record.write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap().as_ref(), Some(&record));
        assert_eq!(record.verified_unix(), Some(4));
        assert!(record.file("b").is_some() && record.file("c").is_none());
        let unread = Record { files: vec![file("a", Some(5)), file("b", None)], ..record };
        assert_eq!(unread.verified_unix(), None);
        for bytes in [&b"{"[..], b"[]", b"{\"version\": -1}"] {
            folder.write(RECORD_NAME, bytes);
            assert_eq!(Record::read(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}

//! One file that can be served: what may be said about it, and the file itself once somebody asks.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;

use crate::files::names;
use crate::jobs::image::Access;
use crate::sys::mmap::Mapping;
use crate::sys::open_plain;
use crate::sys::pages::{self, Resident, Teller};

/// Files are looked at, and read ahead, in pieces of this many bytes.
pub const CHUNK_LEN: u64 = 256 << 10;
/// Files that are not to stay in memory are let go of in pieces of this many bytes: longer than what the kernel reads ahead.
pub const SPAN_LEN: u64 = 16 << 20;
/// With a piece that leaves, so much of one before it is let go of once more: the kernel keeps pages in larger pieces (folios),
/// which may lie across two of these and leave only as a whole.
pub const FOLIO_MAX: u64 = 2 << 20;

/// What tells one version of a file from another (`fstat`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileIdentity {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub len: u64,
    /// Last change of content, nanoseconds since 1970.
    pub modified_ns: i128,
    /// Last change of content or inode, nanoseconds since 1970.
    pub changed_ns: i128,
    /// Names this inode has.
    pub links: u64,
}

impl FileIdentity {
    /// From what `stat` says.
    pub fn of(meta: &Metadata) -> Self {
        let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
            links: meta.nlink(),
        }
    }

    /// True when `other` is the same inode with the same length and time of content; names and rights may differ.
    pub fn same_bytes(&self, other: &Self) -> bool {
        self.device == other.device
            && self.inode == other.inode
            && self.len == other.len
            && self.modified_ns == other.modified_ns
    }

    /// True when `now` still has the content this identity was taken of.
    ///
    /// Losing a name (a newer version was renamed over this one, or it was removed) or gaining one (the next version
    /// keeps this file) moves the change time but not the content, and a transfer under way is to end with its own
    /// version. One lost and one gained leave as many as there were, so of a file with several names that move says
    /// nothing; every other move of it counts as a change.
    pub fn same_content(&self, now: &Self) -> bool {
        let is_shared = self.links > 1 || now.links > 1;
        self.same_bytes(now) && (self.changed_ns == now.changed_ns || now.links != self.links || is_shared)
    }
}

/// An open file with its mapping.
#[derive(Debug)]
pub struct Opened {
    /// For `pread`, `splice`, `sendfile` and `fstat`.
    pub file: File,
    /// For iovecs; see [`Mapping`] for what may be done with it.
    pub mapping: Arc<Mapping>,
    /// Bytes; equal to the mapping's length.
    pub len: u64,
    /// What the file was when it was opened.
    pub identity: FileIdentity,
    /// Who tells what of it is in memory: not the map of its pages where there is none (ZFS has memory of its own).
    teller: Teller,
    is_unmapped: AtomicBool,
    is_known_bad: AtomicBool,
    /// One per chunk; what it means is the engine's.
    chunks: Box<[AtomicU32]>,
    /// One per span; what it means is the engine's.
    spans: Box<[AtomicU8]>,
    /// Who is being sent it.
    transfers: AtomicU32,
}

impl Opened {
    /// The note that whoever reads ahead keeps of a chunk of [`CHUNK_LEN`] bytes, 0 at first; `None` behind the end.
    pub fn chunk(&self, chunk: u64) -> Option<&AtomicU32> {
        self.chunks.get(usize::try_from(chunk).ok()?)
    }

    /// The note that whoever lets go of pages keeps of a span of [`SPAN_LEN`] bytes, 0 when the first transfer of several begins;
    /// `None` behind the end.
    pub fn span(&self, span: u64) -> Option<&AtomicU8> {
        self.spans.get(usize::try_from(span).ok()?)
    }

    /// Whether hardly any of a span is in memory: less than a quarter, as of one that left it; or, where the kernel tells only what
    /// could be sent, less than all. Never waits for a disk; in the second case what is missing is read soon.
    pub fn is_absent(&self, span: u64) -> bool {
        let offset = span * SPAN_LEN;
        let len = SPAN_LEN.min(self.len.saturating_sub(offset));
        let is_mapped = self.teller == Teller::Map && !self.is_unmapped.load(Ordering::Relaxed);
        if is_mapped && let Some(present) = pages::present(&self.mapping, offset, len) {
            return present < len / 4;
        }
        self.look_at(offset, SPAN_LEN) == Resident::Missing
    }

    /// One transfer at most is under way.
    pub fn is_alone(&self) -> bool {
        self.transfers.load(Ordering::Relaxed) <= 1
    }

    /// Lets the kernel forget a span's pages, but for those on their way to somebody, which it keeps for now; with `before` so much
    /// of what is before it.
    pub fn let_go(&self, span: u64, before: u64) {
        let offset = (span * SPAN_LEN).saturating_sub(before);
        let len = self.len.min((span + 1) * SPAN_LEN).saturating_sub(offset);
        // What is mapped stays, so that comes first.
        self.mapping.unmap_pages(offset, len);
        pages::forget(&self.file, offset, len);
    }

    /// Whether all of a chunk is in memory. Never waits for a disk.
    pub fn is_resident(&self, chunk: u64) -> Resident {
        self.look_at(chunk * CHUNK_LEN, CHUNK_LEN)
    }

    fn look_at(&self, offset: u64, most: u64) -> Resident {
        let len = most.min(self.len.saturating_sub(offset));
        let look = |teller| pages::is_resident(&self.file, &self.mapping, teller, offset, len);
        let teller = if self.is_unmapped.load(Ordering::Relaxed) { Teller::Read } else { self.teller };
        let seen = look(teller);
        if teller == Teller::Map && seen == Resident::Unknown {
            // `mincore` is refused: by somebody's filter of system calls, as containers and service managers have them.
            self.ask_another_teller();
            return look(Teller::Read);
        }
        seen
    }

    /// What was just read is said not to be in memory, or nothing is said: the other teller is asked from now on.
    pub fn ask_another_teller(&self) {
        self.is_unmapped.store(true, Ordering::Relaxed);
    }

    /// True the first time somebody could not be sent this file whole: a stranger may ask for it without end.
    pub fn is_bad_news(&self) -> bool {
        !self.is_known_bad.swap(true, Ordering::Relaxed)
    }

    /// Reads a chunk, which brings it into memory; `buffer` has room for one.
    ///
    /// # Errors
    /// What `pread` says.
    pub fn read_chunk(&self, chunk: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut offset = chunk * CHUNK_LEN;
        let end = self.len.min(offset + CHUNK_LEN);
        while offset < end {
            let most = buffer.len().min((end - offset) as usize);
            match std::os::unix::fs::FileExt::read_at(&self.file, &mut buffer[..most], offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => offset += read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Asks the kernel to read `count` chunks from `chunk` on, without waiting for them.
    pub fn ask_ahead(&self, chunk: u64, count: u64) {
        pages::will_need(&self.file, chunk * CHUNK_LEN, count * CHUNK_LEN);
    }

    /// Asks the kernel again (`fstat`): true while the content is the one that was opened. Called before the last
    /// piece of a transfer leaves; on `false` the transfer is cut, since bytes of two versions may be in it.
    pub fn still_same(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| self.identity.same_content(&FileIdentity::of(&meta)))
    }
}

/// An open file as long as somebody is being sent it.
#[derive(Debug)]
pub struct Handle(Arc<Opened>);

impl Handle {
    fn of(opened: Arc<Opened>) -> Self {
        if opened.transfers.fetch_add(1, Ordering::Relaxed) == 0 {
            opened.spans.iter().for_each(|note| note.store(0, Ordering::Relaxed));
        }
        Self(opened)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.transfers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deref for Handle {
    type Target = Arc<Opened>;

    fn deref(&self) -> &Arc<Opened> {
        &self.0
    }
}

/// Which table a file belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// An image's payload; the name is `IMAGE/FILE`.
    Image,
    /// A loader folder's file; the name is relative to that folder.
    Loader,
}

/// One file as the catalogue lists it. Made by a scan, kept by later scans for as long as the file is unchanged.
#[derive(Debug)]
pub struct Served {
    /// Public name: `IMAGE/FILE` or a loader's name. Never a local path.
    pub name: String,
    /// Which table it is in.
    pub place: Place,
    /// Bytes.
    pub len: u64,
    /// Strong entity tag, with its quotes (RFC 9110 §8.8.3).
    pub etag: String,
    /// Last modification.
    pub modified: SystemTime,
    /// Content type without parameters: UEFI HTTP Boot compares it to the letter.
    pub content_type: &'static str,
    /// Who may fetch it; whether a request may is decided where the token is known.
    pub access: Access,
    /// What the scan saw; [`Served::open`] opens nothing else.
    pub identity: FileIdentity,
    path: PathBuf,
    opened: ArcSwapOption<Opened>,
    used: AtomicBool,
}

impl Served {
    /// Describes a file found at `path`, which has no symbolic link in its last step.
    pub fn new(name: String, place: Place, path: PathBuf, identity: FileIdentity, access: Access) -> Self {
        let since_epoch = Duration::from_nanos(u64::try_from(identity.modified_ns).unwrap_or(0));
        Self {
            etag: format!("\"{:x}-{:x}-{:x}\"", identity.inode, identity.len, identity.modified_ns.max(0)),
            len: identity.len,
            modified: SystemTime::UNIX_EPOCH + since_epoch,
            content_type: content_type(&name),
            name,
            place,
            access,
            identity,
            path,
            opened: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
        }
    }

    /// The image this belongs to; `None` for a loader.
    pub fn image(&self) -> Option<&str> {
        match self.place {
            Place::Image => self.name.split('/').next(),
            Place::Loader => None,
        }
    }

    /// The open file, opened on first use and shared from then on.
    ///
    /// # Errors
    /// What `open`, `fstat` or `mmap` say, and `NotFound` when the file is no longer the one that was listed (a scan
    /// will list the new one).
    pub fn open(&self) -> io::Result<Handle> {
        self.used.store(true, Ordering::Relaxed);
        if let Some(opened) = self.opened.load_full() {
            return Ok(Handle::of(opened));
        }
        let opened = Arc::new(self.open_now()?);
        // Two cores may get here at once; both have the same inode, and the earlier one is kept for all.
        let before = self.opened.compare_and_swap(&None::<Arc<Opened>>, Some(Arc::clone(&opened)));
        Ok(Handle::of(Option::clone(&before).unwrap_or(opened)))
    }

    fn open_now(&self) -> io::Result<Opened> {
        let file = open_plain(&self.path)?;
        let identity = FileIdentity::of(&file.metadata()?);
        if !self.identity.same_content(&identity) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the file changed since it was listed"));
        }
        let mapping = Arc::new(Mapping::map(&file)?);
        if mapping.len() as u64 != identity.len {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the file changed while it was opened"));
        }
        let chunks = (0..identity.len.div_ceil(CHUNK_LEN)).map(|_| AtomicU32::new(0)).collect();
        let spans = (0..identity.len.div_ceil(SPAN_LEN)).map(|_| AtomicU8::new(0)).collect();
        let teller = Teller::of(&file);
        Ok(Opened {
            file,
            mapping,
            len: identity.len,
            identity,
            teller,
            is_unmapped: AtomicBool::new(false),
            is_known_bad: AtomicBool::new(false),
            chunks,
            spans,
            transfers: AtomicU32::new(0),
        })
    }

    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        self.opened.load().is_some()
    }

    /// Where the file is; for messages to the operator only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when this entry describes exactly what a new scan found, so that it can be kept.
    pub(crate) fn describes(&self, path: &Path, identity: &FileIdentity, access: Access) -> bool {
        self.path == path && self.identity == *identity && self.access == access
    }

    /// Closes the file if nobody asked for it since the last call and no transfer holds it, so that a large library
    /// does not keep a descriptor for every file it ever served.
    pub(crate) fn close_if_idle(&self) {
        let is_used = self.used.swap(false, Ordering::Relaxed);
        let is_sent =
            || self.opened.load().as_ref().is_some_and(|opened| opened.transfers.load(Ordering::Relaxed) > 0);
        if !is_used && !is_sent() {
            self.opened.store(None);
        }
    }
}

/// Content type by suffix: the words UEFI HTTP Boot knows (UEFI 2.10 §24.7.3.1), exact and without parameters.
pub fn content_type(name: &str) -> &'static str {
    let name = names::folded(names::base(name));
    match name.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("efi") => "application/efi",
        Some("iso") => "application/vnd.efi-iso",
        Some("img") => "application/vnd.efi-img",
        Some("ipxe") => "text/plain",
        _ => "application/octet-stream",
    }
}

/// A file that is on disk and not in memory.
#[cfg(test)]
pub(crate) mod test_file {
    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    pub(crate) fn cold_file(name: &str, len: u64) -> (TestFolder, Handle) {
        let (folder, served) = cold_served(name, len);
        let opened = served.open().unwrap();
        (folder, opened)
    }

    pub(crate) fn cold_served(name: &str, len: u64) -> (TestFolder, Served) {
        let folder = TestFolder::new(name);
        let content: Vec<u8> = (0..len).map(|i| (i >> 3) as u8).collect();
        let path = folder.write("cold.bin", &content);
        make_cold(&path);
        let identity = FileIdentity::of(&std::fs::metadata(&path).unwrap());
        (folder, Served::new("t/cold.bin".into(), Place::Image, path, identity, Access::Open))
    }

    /// Writes a file out and lets go of its pages.
    pub(crate) fn make_cold(path: &Path) {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        pages::forget(&file, 0, 0);
        assert!(!pages::any_page_present(&file), "the temporary folder must be on a disk's file system");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    fn served(path: &Path) -> Served {
        let identity = FileIdentity::of(&std::fs::metadata(path).unwrap());
        Served::new("pe/boot.wim".into(), Place::Image, path.to_owned(), identity, Access::Open)
    }

    #[test]
    fn a_file_replaced_by_rename_keeps_its_transfers_whole() {
        let folder = TestFolder::new("served-rename");
        let path = folder.write("boot.wim", b"old version");
        let served = served(&path);
        let opened = served.open().unwrap();
        let new = folder.write(".new", b"new version");
        std::fs::rename(new, &path).unwrap();
        assert!(opened.still_same());
        // The cached file serves on; a fresh entry of the old listing does not open the new inode.
        assert_eq!(served.open().unwrap().len, 11);
        drop(opened);
        served.close_if_idle();
        served.close_if_idle();
        assert_eq!(served.open().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_being_sent_stays_open_for_who_comes_later() {
        let folder = TestFolder::new("served-sent");
        let served = served(&folder.write("boot.wim", b"0123456789"));
        let first = served.open().unwrap();
        served.close_if_idle();
        served.close_if_idle();
        let second = served.open().unwrap();
        assert!(Arc::ptr_eq(&first, &second) && !first.is_alone());
        drop(second);
        assert!(first.is_alone());
        drop(first);
        served.close_if_idle();
        served.close_if_idle();
        assert!(served.opened.load().is_none());
    }

    #[test]
    fn a_file_that_the_next_version_keeps_goes_on_being_sent() {
        let folder = TestFolder::new("served-link-kept");
        let path = folder.write("boot.wim", b"0123456789");
        let opened = served(&path).open().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::hard_link(&path, folder.path().join("kept")).unwrap();
        assert!(opened.still_same());
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, b"9876543210").unwrap();
        assert!(!opened.still_same());
    }

    #[test]
    fn a_file_whose_names_come_and_go_with_versions_goes_on_being_sent() {
        let folder = TestFolder::new("served-link-turn");
        let path = folder.write("boot.wim", b"0123456789");
        let (first, second) = (folder.path().join("1"), folder.path().join("2"));
        std::fs::hard_link(&path, &first).unwrap();
        let opened = served(&path).open().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::hard_link(&path, second).unwrap();
        std::fs::remove_file(first).unwrap();
        let now = FileIdentity::of(&std::fs::metadata(&path).unwrap());
        assert!(now.links == opened.identity.links && now.changed_ns != opened.identity.changed_ns);
        assert!(opened.still_same());
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, b"9876543210").unwrap();
        assert!(!opened.still_same());
    }

    #[test]
    fn a_file_edited_in_place_is_noticed() {
        let folder = TestFolder::new("served-edit");
        let path = folder.write("boot.wim", b"0123456789");
        folder.age("boot.wim", 60);
        let first = served(&path);
        let opened = first.open().unwrap();
        assert!(opened.still_same());
        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all(b"x").unwrap();
        assert!(!opened.still_same());
        assert!(first.open().is_ok(), "the entry itself goes with the next scan");
        let second = served(&path);
        let opened = second.open().unwrap();
        file.set_len(3).unwrap();
        assert!(!opened.still_same());
    }

    #[test]
    fn a_link_put_in_the_file_s_place_is_not_followed() {
        let folder = TestFolder::new("served-link");
        let path = folder.write("boot.wim", b"0123456789");
        let served = served(&path);
        std::fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert!(served.open().is_err());
    }

    #[test]
    fn where_mincore_is_refused_a_read_that_does_not_wait_tells_what_is_missing() {
        use crate::sys::sandbox::apart;
        let name = "where_mincore_is_refused_a_read_that_does_not_wait_tells_what_is_missing";
        apart::alone(&format!("files::served::tests::{name}"), || {
            let (_folder, opened) = test_file::cold_file("served-refused", 64 * CHUNK_LEN);
            apart::refuse(libc::SYS_mincore);
            let seen = opened.is_resident(0);
            // Far from what the look at the first one began to read.
            let read =
                pages::is_resident(&opened.file, &opened.mapping, Teller::Read, 40 * CHUNK_LEN, CHUNK_LEN);
            assert_eq!(seen, read, "as this file system can tell");
            let map = pages::is_resident(&opened.file, &opened.mapping, Teller::Map, 0, CHUNK_LEN);
            assert_eq!(map, Resident::Unknown);
        });
    }

    #[test]
    fn content_types_are_exact_and_case_blind() {
        assert_eq!(content_type("a/snponly.EFI"), "application/efi");
        assert_eq!(content_type("a.efi/x"), "application/octet-stream");
        assert_eq!(content_type("x.iso"), "application/vnd.efi-iso");
        assert_eq!(content_type("x.img"), "application/vnd.efi-img");
        assert_eq!(content_type("x.ipxe"), "text/plain");
    }

    #[test]
    fn entity_tags_are_strong_and_quoted() {
        let folder = TestFolder::new("served-etag");
        let path = folder.write("boot.wim", b"0123456789");
        let served = served(&path);
        assert!(served.etag.starts_with('"') && served.etag.ends_with('"'));
        assert_eq!(served.image(), Some("pe"));
    }
}

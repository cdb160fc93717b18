//! A journal of small facts that change often: the newest value of each key, appended in batches, one fsync a batch.
//!
//! [`super::Store`] is for what is guarded, listed and audited; at some 20 µs a transition it is too slow for a lease
//! with every boot. Here a change is a few dozen bytes at the end of a file:
//!
//! ```text
//! segment file  JOURNAL-00000007:  header (16): "bsjrnl1\n", number u64
//! batch:  hash (16)  length u32  entries ...        hash = BLAKE3 over number, offset of the batch, entries
//! entry:  key u64    length u8   value (0 bytes: the key is gone)
//! ```
//!
//! Integers are little-endian. A batch is whole or it is not there: reading ends at the first that does not hash,
//! which is where a crash cut it. Space for a segment is taken before it is used, so that a disk that fills up is
//! noticed with room to spare.
//!
//! When a segment is full, the next one is begun, and with every batch some of the values that only stand in older
//! segments are written to it again; when none is left, those are removed. No commit ever waits for the whole of it.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Longest value.
pub const VALUE_LEN_MAX: usize = 55;
/// A segment is full at this size, or at twice what all values take.
const SEGMENT_LEN: u64 = 4 << 20;
/// Values written again with one batch.
const MOVED_PER_BATCH: usize = 1024;
/// Longest batch read back; a longer length is no batch of ours.
const BATCH_LEN_MAX: u32 = 64 << 20;

const MAGIC: &[u8; 8] = b"bsjrnl1\n";
const HEADER_LEN: u64 = 16;
const BATCH_HEAD_LEN: usize = 20;
const NAME: &str = "journal-";

/// A key and its newest value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    key: u64,
    len: u8,
    value: [u8; VALUE_LEN_MAX],
}

impl Entry {
    /// This value for this key; an empty one removes the key. `None` when it is longer than [`VALUE_LEN_MAX`].
    pub fn new(key: u64, value: &[u8]) -> Option<Self> {
        let mut entry = Self { key, len: u8::try_from(value.len()).ok()?, value: [0; VALUE_LEN_MAX] };
        entry.value.get_mut(..value.len())?.copy_from_slice(value);
        Some(entry)
    }

    /// The key.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.value[..usize::from(self.len)]
    }

    fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.to_le_bytes());
        out.push(self.len);
        out.extend_from_slice(self.value());
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}={:02x?}", self.key, self.value())
    }
}

/// The newest value of each key, and which segment it stands in.
type Live = HashMap<u64, (Entry, u64), foldhash::fast::RandomState>;

/// An open journal. One process, one thread: the store's lock on the same folder sees to the first.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// None while no segment could be begun because the disk is full: every commit tries again.
    file: Option<File>,
    /// Number of the segment written to.
    number: u64,
    at: u64,
    live: Live,
    /// Segments before that, the oldest first.
    old: Vec<u64>,
    /// Keys that may still stand in old segments only.
    to_move: Vec<u64>,
    buffer: Vec<u8>,
    segment_len: u64,
    /// A batch may stand half on the disk: nothing more may follow it there.
    torn: bool,
}

impl Journal {
    /// Opens the journal of a folder, or begins one. A batch cut by a crash, and what follows it, is left out.
    ///
    /// # Errors
    /// What the file system says; a segment that is none of ours.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Self::open_with(folder, SEGMENT_LEN)
    }

    fn open_with(folder: &Path, segment_len: u64) -> io::Result<Self> {
        let made = fs::create_dir_all(folder);
        let mut old = Vec::new();
        let listed = match &made {
            Ok(()) => Some(fs::read_dir(folder)?),
            // What cannot be made was not there.
            Err(_) => None,
        };
        for entry in listed.into_iter().flatten() {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u64>().ok());
            old.extend(number);
        }
        old.sort_unstable();
        let mut live = Live::default();
        let mut empty = Vec::new();
        for number in &old {
            if !replay(&path(folder, *number), *number, &mut live)? {
                empty.push(*number);
            }
        }
        // A segment whose header was never written holds nothing.
        for number in &empty {
            fs::remove_file(path(folder, *number))?;
        }
        let next = old.last().map_or(1, |last| last + 1);
        old.retain(|number| !empty.contains(number));
        live.retain(|_, (entry, _)| entry.len > 0);
        // What follows a torn batch would never be read, so every start begins a segment.
        let begun = match made.and_then(|()| begin(folder, next, segment_len)) {
            Ok((file, at)) => Some((file, at, next)),
            // What is stored holds, and what cannot be is refused until there is room.
            Err(error) if is_full(&error) => None,
            Err(error) => return Err(error),
        };
        let torn = begun.is_none();
        let (file, at, number) =
            begun.map_or((None, 0, next - 1), |(file, at, number)| (Some(file), at, number));
        let to_move = live.keys().copied().collect();
        let buffer = Vec::new();
        Ok(Self { folder: folder.into(), file, number, at, live, old, to_move, buffer, segment_len, torn })
    }

    /// Every key's newest value, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.live.values().map(|(entry, _)| entry)
    }

    /// Keys with a value.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Appends a batch. It is on the disk, whole, when this returns; after an error none of it counts, now or after
    /// a restart.
    ///
    /// # Errors
    /// What the file system says; the same call may succeed later.
    pub fn commit(&mut self, batch: &[Entry]) -> io::Result<()> {
        if self.torn || self.at >= self.segment_len.max(self.live.len() as u64 * 2 * 64) {
            self.roll()?;
        }
        let mut moved = 0;
        self.buffer.clear();
        self.buffer.resize(BATCH_HEAD_LEN, 0);
        // First what is moved: it must not overwrite what the batch says of the same key.
        let mut moving = Vec::new();
        while moved < MOVED_PER_BATCH
            && let Some(key) = self.to_move.pop()
        {
            if let Some((entry, number)) = self.live.get(&key)
                && *number != self.number
            {
                entry.emit(&mut self.buffer);
                moved += 1;
            }
            moving.push(key);
        }
        for entry in batch {
            entry.emit(&mut self.buffer);
        }
        if self.buffer.len() > BATCH_HEAD_LEN {
            let len = (self.buffer.len() - BATCH_HEAD_LEN) as u32;
            let hash = hash(self.number, self.at, &self.buffer[BATCH_HEAD_LEN..]);
            self.buffer[..16].copy_from_slice(&hash);
            self.buffer[16..BATCH_HEAD_LEN].copy_from_slice(&len.to_le_bytes());
            let Some(file) = &mut self.file else { return Err(io::ErrorKind::StorageFull.into()) };
            let written = file.write_all(&self.buffer).and_then(|()| file.sync_data());
            if let Err(error) = written {
                self.to_move.append(&mut moving);
                self.torn = true;
                // Cut off what may be there, so that a restart does not find a batch that was refused. If that fails
                // as well, the disk is gone, and the next segment says so.
                let _ = file.set_len(self.at).and_then(|()| file.sync_data());
                return Err(error);
            }
            self.at += self.buffer.len() as u64;
        }
        for key in moving {
            if let Some((_, number)) = self.live.get_mut(&key) {
                *number = self.number;
            }
        }
        for entry in batch {
            match entry.len {
                0 => drop(self.live.remove(&entry.key)),
                _ => drop(self.live.insert(entry.key, (*entry, self.number))),
            }
        }
        if self.to_move.is_empty() {
            self.forget_old();
        }
        Ok(())
    }

    /// Begins the next segment.
    fn roll(&mut self) -> io::Result<()> {
        let next = self.number + 1;
        fs::create_dir_all(&self.folder)?;
        let (file, at) = begin(&self.folder, next, self.segment_len)?;
        if self.file.is_some() {
            self.old.push(self.number);
        }
        (self.file, self.at, self.number, self.torn) = (Some(file), at, next, false);
        // A key removed meanwhile is removed by its own entry in a segment that is newer than its value.
        self.to_move = self.live.keys().copied().collect();
        Ok(())
    }

    /// Removes the segments nothing is needed of, the oldest first: a removal in a newer one must not go before the
    /// value it removed. One that cannot be removed is tried again, and until then only read once more at a start.
    fn forget_old(&mut self) {
        while let Some(number) = self.old.first() {
            match fs::remove_file(path(&self.folder, *number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return,
                _ => drop(self.old.remove(0)),
            }
            if !self.old.is_empty() && File::open(&self.folder).and_then(|folder| folder.sync_all()).is_err()
            {
                return;
            }
        }
    }
}

/// True for an error that goes when somebody makes room.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{NAME}{number:08}"))
}

fn header(number: u64) -> [u8; HEADER_LEN as usize] {
    let mut header = [0; HEADER_LEN as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..].copy_from_slice(&number.to_le_bytes());
    header
}

fn hash(number: u64, at: u64, entries: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes()).update(&at.to_le_bytes()).update(entries);
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Makes a segment, its space taken, and the folder's entry of it on the disk.
fn begin(folder: &Path, number: u64, len: u64) -> io::Result<(File, u64)> {
    let path = path(folder, number);
    let made = || -> io::Result<File> {
        let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&path)?;
        // Zeros are no batch. Written, not only reserved: a reservation is not there on every file system.
        let zeros = vec![0; 1 << 16];
        let mut left = len;
        while left > 0 {
            let piece = left.min(zeros.len() as u64) as usize;
            file.write_all(&zeros[..piece])?;
            left -= piece as u64;
        }
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header(number))?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(file)
    };
    made().map(|file| (file, HEADER_LEN)).inspect_err(|_| {
        // The space is needed for what is there already.
        let _ = fs::remove_file(&path);
    })
}

/// Reads a segment; false when it has no header, because its making was cut short.
fn replay(path: &Path, number: u64, live: &mut Live) -> io::Result<bool> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    replay_bytes(&bytes, number, live).ok_or_else(|| {
        let what = format!("{} is no journal of ours: move it away, with what is beside it", path.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// The same from what the file holds; `None` when another program wrote it.
fn replay_bytes(bytes: &[u8], number: u64, live: &mut Live) -> Option<bool> {
    let Some((head, rest)) = bytes.split_at_checked(HEADER_LEN as usize) else { return Some(false) };
    let header = header(number);
    if *head != header {
        // Cut short: some of the header, and zeros from there on. No batch is written before all of it is on the disk.
        let some = head.iter().zip(&header).take_while(|(found, wanted)| found == wanted).count();
        let is_cut = head[some..].iter().chain(rest).all(|byte| *byte == 0);
        return is_cut.then_some(false);
    }
    let mut at = HEADER_LEN as usize;
    while let Some((head, rest)) = bytes[at..].split_at_checked(BATCH_HEAD_LEN) {
        let len = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
        let Some(entries) = rest.get(..len as usize).filter(|_| len > 0 && len <= BATCH_LEN_MAX) else {
            break;
        };
        if hash(number, at as u64, entries) != head[..16] {
            break;
        }
        read_batch(entries, number, live);
        at += BATCH_HEAD_LEN + entries.len();
    }
    Some(true)
}

fn read_batch(mut entries: &[u8], number: u64, live: &mut Live) {
    while let Some((head, rest)) = entries.split_first_chunk::<9>() {
        let [key @ .., len] = *head;
        let Some((value, rest)) = rest.split_at_checked(usize::from(len)) else { return };
        let key = u64::from_le_bytes(key);
        // A removal stays in the map until everything is read: an older segment may be read after it never, but a
        // moved value stands in a newer one only if the key was there then.
        if let Some(entry) = Entry::new(key, value) {
            live.insert(key, (entry, number));
        }
        entries = rest;
    }
}

/// Takes any bytes for a segment as a crash or a bad disk may leave it, and for a batch whose hash is right. For fuzz
/// targets and the mutation tests. Panics only when an invariant of this module is broken.
pub fn fuzz_segment(bytes: &[u8]) {
    let mut live = Live::default();
    let _ = replay_bytes(bytes, 1, &mut live);
    let mut segment = [MAGIC.as_slice(), &1u64.to_le_bytes()].concat();
    let _ = replay_bytes(&[&segment, bytes].concat(), 1, &mut live);
    live.clear();
    let at = segment.len() as u64;
    segment.extend_from_slice(&hash(1, at, bytes));
    segment.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    segment.extend_from_slice(bytes);
    assert_eq!(replay_bytes(&segment, 1, &mut live), Some(true));
    // What was read is what a journal of these entries would hold, and cut anywhere it is a batch that never was.
    let mut again = Live::default();
    let mut entries = Vec::new();
    live.values().for_each(|(entry, _)| entry.emit(&mut entries));
    read_batch(&entries, 1, &mut again);
    assert_eq!(again, live);
    if let Some(cut) = segment.len().checked_sub(1).filter(|_| !bytes.is_empty()) {
        live.clear();
        assert_eq!(replay_bytes(&segment[..cut], 1, &mut live), Some(true));
        assert!(live.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            Self(std::env::temp_dir().join(format!("bootstorm-journal-{}-{number}", std::process::id())))
        }

        fn segments(&self) -> Vec<PathBuf> {
            let mut all: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
            all.sort();
            all
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn entry(key: u64, value: &[u8]) -> Entry {
        Entry::new(key, value).unwrap()
    }

    fn found(journal: &Journal) -> Vec<(u64, Vec<u8>)> {
        let mut all: Vec<_> = journal.entries().map(|entry| (entry.key(), entry.value().to_vec())).collect();
        all.sort();
        all
    }

    #[test]
    fn what_was_committed_is_there_again_and_the_newest_value_counts() {
        let folder = Folder::new();
        let mut journal = Journal::open(&folder.0).unwrap();
        journal.commit(&[entry(1, b"a"), entry(2, b"b")]).unwrap();
        journal.commit(&[entry(2, b""), entry(1, b"c"), entry(3, &[7; VALUE_LEN_MAX])]).unwrap();
        drop(journal);
        let journal = Journal::open(&folder.0).unwrap();
        assert_eq!(found(&journal), [(1, b"c".to_vec()), (3, vec![7; VALUE_LEN_MAX])]);
        assert_eq!(Entry::new(4, &[0; VALUE_LEN_MAX + 1]), None);
    }

    #[test]
    fn a_batch_cut_anywhere_is_left_out_whole_and_those_before_it_stay() {
        let folder = Folder::new();
        let mut journal = Journal::open_with(&folder.0, 4096).unwrap();
        journal.commit(&[entry(1, b"first")]).unwrap();
        let before = journal.at as usize;
        journal.commit(&[entry(1, b"second"), entry(2, b"second")]).unwrap();
        let after = journal.at as usize;
        drop(journal);
        let segment = folder.segments().pop().unwrap();
        let whole = fs::read(&segment).unwrap();
        for cut in before..after {
            // Cut off, and as a torn write leaves it: the rest still zero.
            for tail in [Vec::new(), vec![0; whole.len() - cut]] {
                fs::write(&segment, [&whole[..cut], &tail].concat()).unwrap();
                let journal = Journal::open_with(&folder.0, 4096).unwrap();
                assert_eq!(found(&journal), [(1, b"first".to_vec())], "cut at {cut}");
                drop(journal);
                // That start's own segment.
                fs::remove_file(folder.segments().pop().unwrap()).unwrap();
            }
        }
        fs::write(&segment, &whole).unwrap();
        assert_eq!(Journal::open_with(&folder.0, 4096).unwrap().len(), 2);
    }

    #[test]
    fn old_segments_go_and_what_stood_in_them_stays() {
        let folder = Folder::new();
        let mut journal = Journal::open_with(&folder.0, 4096).unwrap();
        journal.commit(&[entry(0, b"never again"), entry(9, b"soon gone")]).unwrap();
        let mut rolled = 0;
        for round in 0..3000u64 {
            let number = journal.number;
            let value = round.to_le_bytes();
            let mut batch = vec![entry(1 + round % 5, &value)];
            if round == 1000 {
                batch.push(entry(9, b""));
            }
            journal.commit(&batch).unwrap();
            rolled += u64::from(journal.number != number);
            assert!(folder.segments().len() <= 2, "{:?}", folder.segments());
        }
        assert!(rolled > 10, "{rolled}");
        let expected = found(&journal);
        assert_eq!(expected.len(), 6);
        assert_eq!(expected[0], (0, b"never again".to_vec()));
        drop(journal);
        assert_eq!(found(&Journal::open_with(&folder.0, 4096).unwrap()), expected);
    }

    #[test]
    fn thousands_of_values_are_moved_a_batch_at_a_time() {
        let folder = Folder::new();
        let mut journal = Journal::open_with(&folder.0, 4096).unwrap();
        let all: Vec<Entry> = (0..5000).map(|key| entry(key, &key.to_le_bytes())).collect();
        journal.commit(&all).unwrap();
        drop(journal);
        let mut journal = Journal::open_with(&folder.0, 4096).unwrap();
        assert_eq!(folder.segments().len(), 2);
        for _ in 0..5 {
            assert_eq!(folder.segments().len(), 2);
            journal.commit(&[entry(1, b"new")]).unwrap();
        }
        assert_eq!(folder.segments().len(), 1);
        let expected = found(&journal);
        drop(journal);
        assert_eq!(found(&Journal::open_with(&folder.0, 4096).unwrap()), expected);
    }

    #[test]
    fn a_strangers_file_is_not_read_for_ours() {
        let folder = Folder::new();
        fs::create_dir_all(&folder.0).unwrap();
        fs::write(path(&folder.0, 3), [b'x'; 4096]).unwrap();
        assert_eq!(Journal::open(&folder.0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // One whose making was cut short is.
        fs::write(path(&folder.0, 3), [0; 100]).unwrap();
        assert!(Journal::open(&folder.0).unwrap().is_empty());
    }

    #[test]
    fn a_segment_whose_header_was_cut_anywhere_lost_nothing() {
        let folder = Folder::new();
        let mut journal = Journal::open_with(&folder.0, 4096).unwrap();
        journal.commit(&[entry(1, b"first")]).unwrap();
        let next = path(&folder.0, journal.number + 1);
        for cut in 0..HEADER_LEN as usize {
            let mut header = header(journal.number + 1);
            header[cut..].fill(0);
            for len in [cut, HEADER_LEN as usize, 4096] {
                fs::write(&next, [&header[..], &[0; 4096][..]].concat().get(..len).unwrap()).unwrap();
                let again = Journal::open_with(&folder.0, 4096).unwrap();
                assert_eq!(found(&again), [(1, b"first".to_vec())], "cut at {cut} of {len}");
                fs::remove_file(path(&folder.0, again.number)).unwrap();
            }
        }
        // Another number, or anything behind half a header, is no cut.
        for bytes in [[header(99), [0; 16]].concat(), [&MAGIC[..], &[0; 9], &[7; 20]].concat()] {
            fs::write(&next, bytes).unwrap();
            assert_eq!(Journal::open(&folder.0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}

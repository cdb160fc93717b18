//! Files that are read once, whole: when they are taken in and when they are verified. What of them was not in memory before
//! is let go of behind the reader, so that a visit of ten gigabytes does not push out what machines are being sent. (Machines
//! that are sent the visited file itself, and were not when the visit began, have the pieces read again that are let go of
//! just before they need them.)

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::files::wim::Source;
use crate::sys::mmap::Mapping;
use crate::sys::pages;

/// Looked at, and let go of, in pieces of this many bytes.
const PIECE_LEN: u64 = 1 << 20;
/// With a piece so many before it are let go of once more: the kernel keeps pages in larger pieces (folios), which may lie
/// across two of these and leave only as a whole.
const AGAIN: u64 = 8;

/// Which pieces of a file had no page in memory when the visit began.
#[derive(Debug, Default)]
pub(super) struct Visit {
    absent: Vec<bool>,
}

impl Visit {
    /// Looks at a file before it is read. Who does not own it is not told by the kernel, and leaves it all as it comes; so
    /// does who may not ask it (`mincore` refused): a read that does not wait would tell, and bring the whole file in.
    pub(super) fn begin(file: &File) -> Self {
        let Ok(mapping) = Mapping::map(file) else { return Self::default() };
        let len = mapping.len() as u64;
        let is_absent = |piece: u64| {
            let at = piece * PIECE_LEN;
            !pages::any_present(&mapping, at, PIECE_LEN.min(len - at))
        };
        Self { absent: (0..len.div_ceil(PIECE_LEN)).map(is_absent).collect() }
    }

    /// The reader has done with these bytes: pieces that end among them and were not in memory before leave it.
    pub(super) fn leave(&self, file: &File, bytes: Range<u64>) {
        let len = self.absent.len() as u64 * PIECE_LEN;
        for piece in bytes.start / PIECE_LEN..bytes.end.min(len).div_ceil(PIECE_LEN) {
            let end = (piece + 1) * PIECE_LEN;
            if end > bytes.end || !self.was_absent(piece) {
                continue;
            }
            let is_between = |other: &u64| (*other..piece).all(|other| self.was_absent(other));
            let first = (piece.saturating_sub(AGAIN)..piece).find(is_between).unwrap_or(piece);
            pages::forget(file, first * PIECE_LEN, end - first * PIECE_LEN);
        }
    }

    fn was_absent(&self, piece: u64) -> bool {
        self.absent.get(piece as usize).copied().unwrap_or(false)
    }

    /// The file was read to its end: its last piece leaves too.
    pub(super) fn end(self, file: &File) {
        let pieces = self.absent.len() as u64;
        self.leave(file, pieces.saturating_sub(1) * PIECE_LEN..pieces * PIECE_LEN);
    }
}

/// A file under a visit, for who reads a WIM.
#[derive(Debug)]
pub(super) struct Visited<'v> {
    pub(super) file: &'v File,
    pub(super) visit: &'v Visit,
    /// Once it is set nothing more can be read.
    pub(super) stop: Option<&'v AtomicBool>,
}

/// A read that was not made because whoever waits for it has gone.
pub(super) fn stopped() -> io::Error {
    io::Error::other("reading was broken off")
}

impl Source for Visited<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        self.file.byte_len()
    }

    fn read_piece(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(stopped());
        }
        let read = self.file.read_piece(buffer, offset)?;
        self.visit.leave(self.file, offset..offset + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::files::scan::test_folder::TestFolder;
    use crate::files::served::test_file::make_cold;

    #[test]
    fn what_was_in_memory_stays_and_what_was_not_leaves() {
        let folder = TestFolder::new("visit");
        let path = folder.write("image.bin", &vec![7; 40 << 20]);
        make_cold(&path);
        let file = File::open(&path).unwrap();
        let mut buffer = vec![0; PIECE_LEN as usize];
        file.read_exact_at(&mut buffer, 20 * PIECE_LEN).unwrap();
        let mapping = Mapping::map(&file).unwrap();
        let present = |piece: &u64| pages::any_present(&mapping, piece * PIECE_LEN, PIECE_LEN);
        // What the kernel read ahead of it was there as well.
        let before: Vec<u64> = (0..40).filter(present).collect();
        assert!(before.contains(&20) && before.len() < 20, "{before:?}");
        let visit = Visit::begin(&file);
        for piece in 0..40 {
            file.read_exact_at(&mut buffer, piece * PIECE_LEN).unwrap();
            visit.leave(&file, piece * PIECE_LEN..(piece + 1) * PIECE_LEN);
        }
        let left: Vec<u64> = (0..40).filter(present).collect();
        assert!(
            left.contains(&20) && left.iter().all(|piece| before.contains(piece)),
            "{before:?}, {left:?}"
        );
    }

    #[test]
    fn short_files_and_short_reads_are_let_go_of_whole() {
        let folder = TestFolder::new("visit-short");
        let path = folder.write("image.bin", &vec![7; (3 << 20) + 5]);
        make_cold(&path);
        let file = File::open(&path).unwrap();
        let visit = Visit::begin(&file);
        let mut buffer = vec![0; (3 << 20) + 5];
        file.read_exact_at(&mut buffer, 0).unwrap();
        let any = || pages::any_page_present(&file);
        visit.leave(&file, 0..100);
        assert!(any(), "its first piece is not read to its end");
        visit.leave(&file, 100..(3 << 20) + 5);
        visit.end(&file);
        assert!(!any());
        Visit::begin(&File::open(folder.write("empty", b"")).unwrap()).end(&file);
    }
}

//! Whether a file's bytes are in memory, asked without waiting for its disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use super::check_len;
use super::mmap::Mapping;

/// What `mincore` counts in, or a part of it on processors with larger pages.
const PAGE_LEN: usize = 4096;
/// Pages asked about in one call.
const PAGES_AT_ONCE: usize = 64;

/// What is known of a range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resident {
    /// All of it is in memory.
    Present,
    /// Some of it is not.
    Missing,
    /// Nobody says: the file system does not know reads without waiting (RWF_NOWAIT), or `mincore` is refused.
    Unknown,
}

/// Who tells what of a file is in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Teller {
    /// `mincore`, which tells it of a file's owner alone and says to others that all is there (mm/mincore.c, can_do_mincore).
    Map,
    /// A read of all of it that may not wait: ten times as dear. A read of some bytes would not do. It makes the kernel
    /// begin to read what it misses (mm/filemap.c, filemap_get_pages), and where the disk is as fast as a system call, as
    /// for a virtual machine, those bytes are there by the time they are looked for, while their neighbours are not.
    Read,
}

impl Teller {
    /// Who may be asked about this file.
    pub fn of(file: &File) -> Self {
        // SAFETY: no pointers.
        let own = unsafe { libc::geteuid() };
        if file.metadata().is_ok_and(|meta| meta.uid() == own) { Self::Map } else { Self::Read }
    }
}

/// Looks at a range, which lies in the mapping of this file and begins at a page of it.
pub fn is_resident(file: &File, mapping: &Mapping, teller: Teller, offset: u64, len: u64) -> Resident {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let part = (end - at).min((PAGES_AT_ONCE * PAGE_LEN) as u64) as usize;
        let seen = match teller {
            Teller::Map => is_mapped_part_there(mapping, at, part),
            Teller::Read => read_away(file, at, part),
        };
        match seen {
            // Nothing is also what is behind the end of a shrunken file; reading ahead will find that out.
            Ok(0) => return Resident::Missing,
            Ok(seen) => at += seen as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Resident::Missing,
            Err(_) => return Resident::Unknown,
        }
    }
    Resident::Present
}

/// `len`, which is no more than [`PAGES_AT_ONCE`] pages, if all of them are there, otherwise 0.
fn is_mapped_part_there(mapping: &Mapping, at: u64, len: usize) -> io::Result<usize> {
    let range = mapping.iovec_range(at, len).ok_or(io::ErrorKind::InvalidInput)?;
    // There is a byte for each page of the smallest size; of larger ones there are fewer, and the rest stays as it is.
    let mut pages = [1u8; PAGES_AT_ONCE];
    // SAFETY: the range is inside the mapping, which lives across the call; `pages` has a byte for each of its pages.
    check_len(unsafe { libc::mincore(range.ptr.cast_mut().cast(), range.len, pages.as_mut_ptr()) } as isize)?;
    Ok(if pages.iter().all(|page| page & 1 != 0) { len } else { 0 })
}

/// Reads up to [`PAGES_AT_ONCE`] pages, all of them to the same place, if that needs no waiting: what they say is of no
/// interest, and one page stays in the processor's cache.
fn read_away(file: &File, at: u64, len: usize) -> io::Result<usize> {
    let at = libc::off64_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut page = [0u8; PAGE_LEN];
    let mut pieces = [libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: PAGE_LEN }; PAGES_AT_ONCE];
    let count = len.div_ceil(PAGE_LEN).min(PAGES_AT_ONCE);
    if let Some(last) = pieces.get_mut(count.wrapping_sub(1)) {
        last.iov_len = len.min(count * PAGE_LEN) - (count - 1) * PAGE_LEN;
    }
    // SAFETY: each of the first `count` pieces lies in `page`, which lives across the call and is read by nobody.
    check_len(unsafe {
        libc::preadv2(file.as_raw_fd(), pieces.as_ptr(), count as libc::c_int, at, libc::RWF_NOWAIT)
    })
}

/// Asks the kernel to read a range soon. A hint: it may do nothing.
pub fn will_need(file: &File, offset: u64, len: u64) {
    advise(file, offset, len, libc::POSIX_FADV_WILLNEED);
}

/// Lets the kernel forget the clean pages of a range that nobody has mapped.
pub fn forget(file: &File, offset: u64, len: u64) {
    advise(file, offset, len, libc::POSIX_FADV_DONTNEED);
}

/// Bytes of a range of a file that are in memory, all of them for who does not own that file; `None` for what is not in the
/// mapping, or where the kernel does not say. The range begins at a page.
pub fn present(mapping: &Mapping, offset: u64, len: u64) -> Option<u64> {
    let range = mapping.iovec_range(offset, usize::try_from(len).ok()?)?;
    let page_len = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()?? as usize;
    let mut pages = vec![0u8; range.len.div_ceil(page_len)];
    // SAFETY: the range is inside the mapping, which lives across the call; `pages` has a byte for each of its pages.
    let result = unsafe { libc::mincore(range.ptr.cast_mut().cast(), range.len, pages.as_mut_ptr()) };
    (result == 0).then(|| pages.iter().filter(|page| **page & 1 != 0).count() as u64 * page_len as u64)
}

/// True while any of a range may be in memory.
pub fn any_present(mapping: &Mapping, offset: u64, len: u64) -> bool {
    present(mapping, offset, len) != Some(0)
}

/// The same for all of a file.
#[cfg(test)]
pub(crate) fn any_page_present(file: &File) -> bool {
    let mapping = Mapping::map(file).unwrap();
    any_present(&mapping, 0, mapping.len() as u64)
}

fn advise(file: &File, offset: u64, len: u64, advice: libc::c_int) {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
    // SAFETY: no pointers.
    unsafe { libc::posix_fadvise64(file.as_raw_fd(), offset, len, advice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that has no name any more, and its mapping.
    fn written(name: &str, len: usize) -> (File, Mapping) {
        let path = std::env::temp_dir().join(format!("bootstorm-pages-{}-{name}", std::process::id()));
        std::fs::write(&path, vec![7; len]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mapping = Mapping::map(&file).unwrap();
        (file, mapping)
    }

    #[test]
    fn pages_that_were_just_written_are_there() {
        let (file, mapping) = written("there", 600_001);
        assert_eq!(Teller::of(&file), Teller::Map, "this process made it");
        for teller in [Teller::Map, Teller::Read] {
            for (offset, len) in
                [(0, 1), (0, 4096), (4096, 4097), (0, 262_144), (0, 600_001), (598_016, 1985)]
            {
                let seen = is_resident(&file, &mapping, teller, offset, len);
                let may_not_know = teller == Teller::Read && seen == Resident::Unknown;
                assert!(seen == Resident::Present || may_not_know, "{teller:?} {offset} {len}: {seen:?}");
            }
        }
        assert_eq!(
            is_resident(&file, &mapping, Teller::Map, 598_016, 1986),
            Resident::Unknown,
            "behind the end"
        );
    }

    #[test]
    fn a_range_with_one_page_missing_is_missing_whoever_tells() {
        for teller in [Teller::Map, Teller::Read] {
            let (file, mapping) = written("hole", 64 * PAGE_LEN);
            file.sync_all().unwrap();
            forget(&file, 0, 0);
            let len = 64 * PAGE_LEN as u64;
            assert!(!any_present(&mapping, 0, len), "the temporary folder must be on a disk's file system");
            let mut byte = [0];
            for page in (0..64).filter(|page| *page != 21) {
                // As it is read by nobody before, one page at a time.
                advise(&file, 0, 0, libc::POSIX_FADV_RANDOM);
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, page * PAGE_LEN as u64).unwrap();
            }
            assert_eq!(is_resident(&file, &mapping, Teller::Map, 0, len), Resident::Missing);
            // A read may bring it in on its way, and is right then too.
            let seen = is_resident(&file, &mapping, teller, 0, len);
            assert!(
                seen == Resident::Missing || seen == is_resident(&file, &mapping, Teller::Map, 0, len),
                "{teller:?}"
            );
        }
    }
}

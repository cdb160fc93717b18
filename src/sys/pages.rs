//! Whether a file's bytes are in memory, asked without waiting for its disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::check_len;

/// What is read into when only the answer counts.
const SCRATCH_LEN: usize = 4096;
/// Pieces of one call: a quarter of a mebibyte.
const PIECES: usize = 64;

/// What is known of a range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resident {
    /// All of it is in memory.
    Present,
    /// Some of it is not.
    Missing,
    /// The file system cannot say (no RWF_NOWAIT).
    Unknown,
}

/// Looks at `len` bytes from `offset`, the first quarter of a mebibyte of them. `mincore` would say nothing to a user
/// who does not own the file; a read that may not wait says the same to everyone who may read, and makes the kernel
/// begin to read ahead what it missed (mm/filemap.c filemap_get_pages).
pub fn is_resident(file: &File, offset: u64, len: u64) -> Resident {
    let len = (len as usize).min(SCRATCH_LEN * PIECES);
    let Ok(offset) = libc::off64_t::try_from(offset) else { return Resident::Unknown };
    if len == 0 {
        return Resident::Present;
    }
    let mut scratch = [0u8; SCRATCH_LEN];
    let base = scratch.as_mut_ptr().cast();
    let mut pieces = [libc::iovec { iov_base: base, iov_len: SCRATCH_LEN }; PIECES];
    let count = len.div_ceil(SCRATCH_LEN);
    pieces[count - 1].iov_len = len - (count - 1) * SCRATCH_LEN;
    // SAFETY: `count` is at most `PIECES`; every piece points at `scratch`, which is `SCRATCH_LEN` bytes long, lives
    // across the call and is read by nobody, so that the pieces may overwrite each other.
    let read = unsafe {
        libc::preadv2(file.as_raw_fd(), pieces.as_ptr(), count as libc::c_int, offset, libc::RWF_NOWAIT)
    };
    match check_len(read) {
        Ok(read) if read == len => Resident::Present,
        // Short is also what the end of a shrunken file is; reading ahead will find that out.
        Ok(_) => Resident::Missing,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Resident::Missing,
        Err(_) => Resident::Unknown,
    }
}

/// Asks the kernel to read a range soon. A hint: it may do nothing.
pub fn will_need(file: &File, offset: u64, len: u64) {
    advise(file, offset, len, libc::POSIX_FADV_WILLNEED);
}

/// Lets the kernel forget a file's clean pages.
#[cfg(test)]
pub(crate) fn forget_pages(file: &File) {
    advise(file, 0, 0, libc::POSIX_FADV_DONTNEED);
}

/// True while any page of the file is in memory. Changes nothing, as [`is_resident`] does.
#[cfg(test)]
pub(crate) fn any_page_present(file: &File) -> bool {
    let mapping = super::mmap::Mapping::map(file).unwrap();
    let mut pages = vec![0u8; mapping.len().div_ceil(4096)];
    // SAFETY: the mapping is `len` bytes long and lives across the call, `pages` has a byte for each of its pages.
    let result =
        unsafe { libc::mincore(mapping.as_ptr().cast_mut().cast(), mapping.len(), pages.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    pages.iter().any(|page| page & 1 != 0)
}

fn advise(file: &File, offset: u64, len: u64, advice: libc::c_int) {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
    // SAFETY: no pointers.
    unsafe { libc::posix_fadvise64(file.as_raw_fd(), offset, len, advice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_just_written_are_there() {
        let path = std::env::temp_dir().join(format!("bootstorm-pages-{}", std::process::id()));
        std::fs::write(&path, vec![7; 300_001]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for (offset, len) in [(0, 1), (0, 4096), (1, 4096), (0, 262_144), (299_999, 2), (300_001, 0)] {
            assert_ne!(is_resident(&file, offset, len), Resident::Missing, "{offset} {len}");
        }
    }
}

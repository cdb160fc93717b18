//! Whether a file's bytes are in memory, asked without waiting for its disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::check_len;

/// One byte in so many is looked at: pages come and go in larger pieces than one, and to read them all would cost what
/// serving them costs.
const STRIDE: usize = 32 << 10;

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

/// Looks at a range, at its last byte and one in every 32 KiB before it. `mincore` would say nothing to a user who does
/// not own the file; a read that may not wait says the same to everyone who may read, and makes the kernel begin to read
/// ahead what it missed (mm/filemap.c filemap_get_pages).
pub fn is_resident(file: &File, offset: u64, len: u64) -> Resident {
    let Some(last) = (offset + len).checked_sub(1).filter(|_| len > 0) else { return Resident::Present };
    for at in (offset..last).step_by(STRIDE).chain([last]) {
        match read_byte(file, at) {
            Ok(1) => {}
            // Nothing is also what is behind the end of a shrunken file; reading ahead will find that out.
            Ok(_) => return Resident::Missing,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Resident::Missing,
            Err(_) => return Resident::Unknown,
        }
    }
    Resident::Present
}

/// Reads one byte if that needs no waiting.
fn read_byte(file: &File, at: u64) -> io::Result<usize> {
    let at = libc::off64_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut byte = 0u8;
    let piece = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: one piece, of one byte, that lives across the call.
    check_len(unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, at, libc::RWF_NOWAIT) })
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

//! Read-only shared mappings of image files, as addresses for the kernel.
//!
//! A mapping is a promise about a file somebody else can change, so here is the whole contract.
//!
//! - **Publishing.** An image file is written under another name and published by renaming that new inode into
//!   place. A mapping keeps its inode alive, so replacing a file never disturbs a transfer under way: it ends with
//!   the version it began with. Whoever edits a published file in place breaks the contract; the engine notices by
//!   `fstat` before the last piece and cuts the transfer rather than let two versions mix.
//! - **Truncation.** A page that no longer has file behind it raises SIGBUS when *user space* touches it. A
//!   *syscall* that reads through the mapping fails with EFAULT (`sendmsg`), and `splice` and `sendfile` on the file
//!   return 0. So user space never reads image bytes through a mapping: parsing, hashing and TLS use `pread`. That
//!   is why [`Mapping`] hands out addresses and no slice.
//! - **Lifetime.** The addresses are good for as long as the [`Mapping`] lives. Who passes one to the kernel keeps
//!   the mapping alive until the kernel is done with it (for io_uring: until the completion is reaped).

use std::fs::File;
use std::io;
use std::ptr;

use memmap2::{MmapOptions, MmapRaw};

/// A whole file mapped read-only and shared.
#[derive(Debug)]
pub struct Mapping {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<MmapRaw>,
}

/// A piece of a mapping as an iovec wants it. It borrows nothing: the holder keeps the [`Mapping`] alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRange {
    /// First byte; only for the kernel, never to be read here.
    pub ptr: *const u8,
    /// Bytes.
    pub len: usize,
}

impl Mapping {
    /// Maps all of `file` as it is now; a file of length 0 gives an empty mapping.
    ///
    /// # Errors
    /// What `fstat` or `mmap` say; EOVERFLOW-like lengths come back as `InvalidInput`.
    pub fn map(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len == 0 {
            return Ok(Self { map: None });
        }
        let len = usize::try_from(len)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file too large to map"))?;
        let map = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Self { map: Some(map) })
    }

    /// Address of the first byte; dangling but aligned when the mapping is empty.
    pub fn as_ptr(&self) -> *const u8 {
        self.map.as_ref().map_or(ptr::dangling(), |map| map.as_ptr())
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.map.as_ref().map_or(0, MmapRaw::len)
    }

    /// True for the mapping of an empty file.
    pub fn is_empty(&self) -> bool {
        self.map.is_none()
    }

    /// Reads all of it into memory and keeps it there for as long as the mapping lives (`mlock`).
    ///
    /// # Errors
    /// What `mlock` says: ENOMEM beyond RLIMIT_MEMLOCK or what memory there is.
    pub fn keep_in_memory(&self) -> io::Result<()> {
        self.map.as_ref().map_or(Ok(()), MmapRaw::lock)
    }

    /// Takes pages out of this process' page table, not out of memory: whoever touches one again finds it there, or in the
    /// file. The range begins at a page; what is not inside, or is kept in memory, stays as it is.
    pub fn unmap_pages(&self, offset: u64, len: u64) {
        let range = usize::try_from(len).ok().and_then(|len| self.iovec_range(offset, len));
        if let Some(MappedRange { ptr, len }) = range {
            // SAFETY: the range is inside the mapping, which is shared and read-only: what is dropped comes back the same, and
            // nobody holds a reference to its bytes.
            unsafe { libc::madvise(ptr.cast_mut().cast(), len, libc::MADV_DONTNEED) };
        }
    }

    /// The bytes `offset .. offset + len` as an address range; `None` when they are not all inside.
    pub fn iovec_range(&self, offset: u64, len: usize) -> Option<MappedRange> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len)?;
        // The bounds were just checked, and `wrapping_add` stays inside the mapping (or one past its end).
        (end <= self.len()).then(|| MappedRange { ptr: self.as_ptr().wrapping_add(start), len })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn ranges_outside_the_mapping_are_refused() {
        let path = std::env::temp_dir().join(format!("bootstorm-mmap-{}", std::process::id()));
        let mut file =
            File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        assert_eq!(Mapping::map(&file).unwrap().len(), 0);
        assert!(Mapping::map(&file).unwrap().iovec_range(0, 0).is_some());
        assert!(Mapping::map(&file).unwrap().iovec_range(0, 1).is_none());
        file.write_all(&[7; 5000]).unwrap();
        let mapping = Mapping::map(&file).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(mapping.len(), 5000);
        let range = mapping.iovec_range(4000, 1000).unwrap();
        assert_eq!(range.ptr, mapping.as_ptr().wrapping_add(4000));
        assert!(mapping.iovec_range(4000, 1001).is_none());
        assert!(mapping.iovec_range(u64::MAX, 1).is_none());
        assert!(mapping.iovec_range(1, usize::MAX).is_none());
    }

    #[test]
    fn the_kernel_reads_what_the_file_holds_through_the_mapping() {
        use std::os::unix::net::UnixStream;
        let path = std::env::temp_dir().join(format!("bootstorm-mmap-send-{}", std::process::id()));
        std::fs::write(&path, b"abcdefgh").unwrap();
        let file = File::open(&path).unwrap();
        let mapping = Mapping::map(&file).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let range = mapping.iovec_range(2, 4).unwrap();
        // SAFETY: `range` lies inside `mapping`, which lives until the end of this test; the kernel only reads it.
        let sent =
            unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&near), range.ptr.cast(), range.len) };
        assert_eq!(sent, 4);
        drop(near);
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut far, &mut got).unwrap();
        assert_eq!(got, b"cdef");
        // What a truncated file does to a syscall: an error, no signal.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        // SAFETY: as above; the pages are gone, which the kernel reports as EFAULT.
        let sent =
            unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&near), range.ptr.cast(), range.len) };
        assert_eq!(sent, -1);
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
        std::fs::remove_file(&path).unwrap();
    }
}

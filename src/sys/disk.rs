//! What file systems can do beyond `std::fs`: exchange two names, never overwrite one, say how much room is left, and
//! tell whether anybody has a file open for writing.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::check;

/// `fcntl(2)`, F_SETSIG: which signal announces that a lease is to be given up.
const F_SETSIG: libc::c_int = 10;

/// Renames, and fails with `AlreadyExists` where a name is taken instead of replacing what has it.
///
/// # Errors
/// What `renameat2` says; `InvalidInput` from a file system that cannot do it.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to, libc::RENAME_NOREPLACE)
}

/// Exchanges two names in one step: at every moment there is one thing or the other under each.
///
/// # Errors
/// As [`rename_new`].
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    rename(one, other, libc::RENAME_EXCHANGE)
}

fn rename(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: both are NUL-terminated and live across the call.
    check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
        .map(drop)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Bytes that this user can still write to the file system of `path`.
///
/// # Errors
/// What `statvfs` says.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = c_path(path)?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated, `stat` has room for the answer, and both live across the call.
    check(unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the kernel has filled it in.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether somebody has a file open for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writers {
    /// Nobody.
    None,
    /// Somebody.
    Some,
    /// It cannot be told: the file is another user's, or its file system has no leases.
    Unknown,
}

/// Asks for a read lease, which the kernel grants only while nobody has the file open for writing, and gives it back at
/// once. `file` must be open for reading only.
pub fn writers(file: &File) -> Writers {
    let fd = file.as_raw_fd();
    // Whoever opens the file for writing in between has this process told by a signal; the usual one would end it,
    // this one is ignored by default.
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) } < 0 {
        return Writers::Unknown;
    }
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } < 0 {
        return match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock if !is_of_a_server(file) => Writers::Some,
            _ => Writers::Unknown,
        };
    }
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    Writers::None
}

/// Whether a file lies on another host, or with a program: such file systems say that somebody writes when they only do not know.
fn is_of_a_server(file: &File) -> bool {
    /// `statfs(2)`, `f_type`: NFS, SMB, SMB2, CIFS, 9p, FUSE, Ceph.
    const OF_SERVERS: [u32; 7] =
        [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x0102_1997, 0x6573_5546, 0x00c3_6400];
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `stat` has room for the answer and lives across the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } < 0 {
        return false;
    }
    // SAFETY: the call succeeded, so the kernel has filled it in.
    let stat = unsafe { stat.assume_init() };
    OF_SERVERS.contains(&(stat.f_type as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(word: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("bootstorm-disk-{word}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn two_folders_change_places_and_none_is_overwritten() {
        let dir = folder("rename");
        for name in ["one", "two"] {
            std::fs::create_dir(dir.join(name)).unwrap();
            std::fs::write(dir.join(name).join("name"), name).unwrap();
        }
        exchange(&dir.join("one"), &dir.join("two")).unwrap();
        assert_eq!(std::fs::read(dir.join("one/name")).unwrap(), b"two");
        let error = rename_new(&dir.join("one"), &dir.join("two")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        rename_new(&dir.join("one"), &dir.join("three")).unwrap();
        assert!(free_bytes(&dir).unwrap() > 0 && free_bytes(&dir.join("gone")).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_open_for_writing_is_told_from_one_that_is_not() {
        let dir = folder("writers");
        let path = dir.join("file");
        let writer = File::create(&path).unwrap();
        let look = || writers(&File::open(&path).unwrap());
        assert_eq!(look(), Writers::Some);
        drop(writer);
        assert_eq!(look(), Writers::None);
        // The lease is given back: a writer that comes later does not wait.
        let reader = File::open(&path).unwrap();
        assert_eq!(writers(&reader), Writers::None);
        drop(File::options().write(true).open(&path).unwrap());
        std::fs::remove_dir_all(dir).unwrap();
    }
}

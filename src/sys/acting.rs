//! Root at work in a folder of another user's.
//!
//! Whoever owns a folder can, at any moment, put a link or another folder where root expects a file of its own. So root does
//! not work there as root: it opens, makes, renames and removes files with the owner's rights, which lead nowhere the owner
//! could not go, and what it makes is the owner's. What the owner has to be able to change and root made there before is
//! handed over first.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

use super::{SysError, check, open_plain};

/// Folders below the one that is handed over are followed this deep.
const DEPTH_MAX: u32 = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owner {
    uid: Uid,
    gid: Gid,
}

thread_local! {
    /// For whom this thread acts.
    static FOR: Cell<Option<Owner>> = const { Cell::new(None) };
}

/// While this lives, files are opened and made by this thread with the rights of somebody else. Sockets, signals and what is
/// open already stay this process's.
#[derive(Debug)]
pub struct Acting {
    /// The groups this thread had, once it has begun.
    had: Option<Vec<Gid>>,
}

impl Acting {
    /// For the owner of a folder, which gets the folders below it first, and the files that only root could read. Nothing
    /// happens unless this is root and the folder is somebody else's, or in a folder of somebody else's.
    ///
    /// # Errors
    /// This root may not act for others.
    pub fn for_owner_of(folder: &Path) -> Result<Self, SysError> {
        let failed = |error| SysError::new(format!("act for the owner of {}", folder.display()), error);
        if !nix::unistd::geteuid().is_root() || FOR.get().is_some() {
            return Ok(Self { had: None });
        }
        let Some((owner, may_get_it)) = owner_of(folder).map_err(failed)? else {
            return Ok(Self { had: None });
        };
        // Of what cannot be handed over (a disk that is not written to), the work itself says what it needs.
        if may_get_it && let Ok(real) = std::fs::canonicalize(folder) {
            let _ = hand_over(&real, owner);
        }
        // What root's groups may is not the owner's, and what the owner's may is.
        let had = nix::unistd::getgroups().map_err(|errno| failed(errno.into()))?;
        set_groups(&groups_of(owner)).map_err(failed)?;
        take_rights(owner);
        // The call does not say whether it did anything; asked for nobody, it says who it is.
        let now = nix::unistd::setfsuid(Uid::from_raw(u32::MAX));
        if now != owner.uid {
            take_rights(myself());
            let _ = set_groups(&had);
            return Err(failed(io::ErrorKind::PermissionDenied.into()));
        }
        FOR.set(Some(owner));
        Ok(Self { had: Some(had) })
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Some(had) = &self.had {
            FOR.set(None);
            take_rights(myself());
            // They were this thread's before.
            let _ = set_groups(had);
        }
    }
}

/// True while this thread acts for somebody.
pub fn is_acting() -> bool {
    FOR.get().is_some()
}

/// Whether this thread may give a file a second name: who acts for somebody may link that one's own files only
/// (`fs.protected_hardlinks`), and those that everybody may write to.
pub fn may_link(file: &Path) -> bool {
    let Some(owner) = FOR.get() else { return true };
    std::fs::symlink_metadata(file).is_ok_and(|meta| meta.uid() == owner.uid.as_raw())
}

/// Does something with the rights of who started this process, whomever this thread acts for: what somebody named on the
/// command line is opened by them.
pub fn as_myself<T>(work: impl FnOnce() -> T) -> T {
    struct Again(Owner);
    impl Drop for Again {
        fn drop(&mut self) {
            take_rights(self.0);
            FOR.set(Some(self.0));
        }
    }
    let Some(owner) = FOR.replace(None) else { return work() };
    let _again = Again(owner);
    take_rights(myself());
    work()
}

/// The groups a user is in; none of one who has no name.
fn groups_of(owner: Owner) -> Vec<Gid> {
    let user = nix::unistd::User::from_uid(owner.uid).ok().flatten();
    let named = user.and_then(|user| CString::new(user.name).ok());
    named.and_then(|name| nix::unistd::getgrouplist(&name, owner.gid).ok()).unwrap_or_default()
}

/// Of this thread alone, as the rights to files are. The C library's call is for all threads, and ends the process where one of
/// them may not, as those do that have given up their privileges.
fn set_groups(groups: &[Gid]) -> io::Result<()> {
    let raw: Vec<libc::gid_t> = groups.iter().map(|gid| gid.as_raw()).collect();
    // SAFETY: the kernel reads as many group numbers as `raw` has, which lives across the call.
    check(unsafe { libc::syscall(libc::SYS_setgroups, raw.len(), raw.as_ptr()) } as libc::c_int).map(drop)
}

fn myself() -> Owner {
    Owner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid() }
}

/// The group first: the user takes the right to do that away.
fn take_rights(owner: Owner) {
    nix::unistd::setfsgid(owner.gid);
    nix::unistd::setfsuid(owner.uid);
}

/// Who rules over what a folder's name leads to, if it is not root: whoever made a link on the way, who could make it lead
/// anywhere and gets nothing for that; else the folder's owner; else the owner of a folder that it lies in.
fn owner_of(folder: &Path) -> io::Result<Option<(Owner, bool)>> {
    let named = |meta: &Metadata| Owner { uid: Uid::from_raw(meta.uid()), gid: Gid::from_raw(meta.gid()) };
    for step in std::path::absolute(folder)?.ancestors() {
        let meta = std::fs::symlink_metadata(step)?;
        if meta.is_symlink() && meta.uid() != 0 {
            return Ok(Some((named(&meta), false)));
        }
    }
    for step in std::fs::canonicalize(folder)?.ancestors() {
        let meta = std::fs::symlink_metadata(step)?;
        if meta.uid() != 0 {
            return Ok(Some((named(&meta), true)));
        }
    }
    Ok(None)
}

/// Gives a folder, and what is below it, to its owner, as far as the owner needs it. Where another folder is meanwhile at its
/// place, nothing is given that does not lie in a folder of the owner's.
fn hand_over(place: &Path, owner: Owner) -> io::Result<()> {
    let opened = open_plain(place)?;
    let is_owners = |meta: Metadata| meta.uid() == owner.uid.as_raw();
    // Where it really is, whatever its name leads to by now.
    let real = std::fs::read_link(of_opened(&opened))?;
    let lies_in = |real: &Path| {
        real.ancestors().skip(1).any(|step| std::fs::symlink_metadata(step).is_ok_and(is_owners))
    };
    if is_owners(opened.metadata()?) || lies_in(&real) {
        hand_over_opened(&opened, place, owner, 0)
    } else {
        Ok(())
    }
}

/// Folders, and files that are not for everybody: others keep their time of change, by which running downloads see that they
/// are the same. No link is followed, and what is below a folder is reached through the folder that was opened. A file with a
/// second name is left alone.
fn hand_over_opened(opened: &File, place: &Path, owner: Owner, depth: u32) -> io::Result<()> {
    let meta = opened.metadata()?;
    let is_for_all = meta.mode() & 0o444 == 0o444;
    let is_due = meta.is_dir() || (meta.is_file() && meta.nlink() == 1 && (!is_for_all || is_lock(place)));
    if is_due && meta.uid() != owner.uid.as_raw() {
        std::os::unix::fs::fchown(opened, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
    }
    if meta.is_dir() && depth < DEPTH_MAX {
        for entry in std::fs::read_dir(of_opened(opened))?.flatten() {
            // Of one that is going this very moment nothing is needed.
            if entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_file())
                && let Ok(inner) = open_plain(&entry.path())
            {
                let _ = hand_over_opened(&inner, &entry.path(), owner, depth + 1);
            }
        }
    }
    Ok(())
}

fn of_opened(opened: &File) -> PathBuf {
    format!("/proc/self/fd/{}", opened.as_raw_fd()).into()
}

/// Written to and not replaced.
fn is_lock(place: &Path) -> bool {
    place.file_name().is_some_and(|name| name == ".lock")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    const NOBODY: u32 = 65_534;

    /// Whom root acts for in a folder, and who owns it then.
    fn acted_for(folder: &Path) -> (u32, u32) {
        std::thread::scope(|scope| {
            let acted = scope.spawn(|| {
                let acting = Acting::for_owner_of(folder).expect("as root");
                let seen = FOR.get().map_or(0, |owner| owner.uid.as_raw());
                drop(acting);
                (seen, fs::metadata(folder).expect("there").uid())
            });
            acted.join().expect("no panic")
        })
    }

    #[test]
    fn a_link_counts_as_its_makers_and_a_folder_in_anothers_as_that_ones() {
        let root = std::env::temp_dir().join(format!("bootstorm-acting-link-{}", std::process::id()));
        for folder in ["state/images", "roots/images"] {
            fs::create_dir_all(root.join(folder)).expect("made");
        }
        chown(root.join("state"), Some(NOBODY), Some(NOBODY)).expect("as root");
        assert_eq!(acted_for(&root.join("roots/images")), (0, 0));
        assert_eq!(
            acted_for(&root.join("state/images")),
            (NOBODY, NOBODY),
            "made by root in the state folder"
        );
        // By root, and by whoever owns the state folder.
        symlink(root.join("roots"), root.join("state/link")).expect("a link");
        assert_eq!(acted_for(&root.join("state/link")), (0, 0));
        std::os::unix::fs::lchown(root.join("state/link"), Some(NOBODY), Some(NOBODY)).expect("as root");
        assert_eq!(acted_for(&root.join("state/link")), (NOBODY, 0), "nothing is given to who planted it");
        assert_eq!(acted_for(&root.join("state/link/images")), (NOBODY, 0));
        // As if the link had come after the look.
        let nobody = Owner { uid: Uid::from_raw(NOBODY), gid: Gid::from_raw(NOBODY) };
        hand_over(&root.join("roots"), nobody).expect("nothing to do");
        assert_eq!(fs::metadata(root.join("roots")).expect("there").uid(), 0);
        fs::remove_dir_all(&root).expect("its own");
    }

    #[test]
    fn root_acts_with_the_owners_rights_and_opens_what_it_was_told_with_its_own() {
        let root = std::env::temp_dir().join(format!("bootstorm-acting-{}", std::process::id()));
        let (images, secret) = (root.join("images"), root.join("secret"));
        for folder in ["images/pe/x64", "images/.staging"] {
            fs::create_dir_all(root.join(folder)).expect("made");
        }
        for name in ["secret", "images/pe/boot.wim", "images/pe/x64/hidden", "images/.staging/.lock"] {
            fs::write(root.join(name), b"x").expect("written");
        }
        let mode = |name: &str, mode| fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode));
        mode("secret", 0o640).expect("its own");
        mode("images/pe/x64/hidden", 0o600).expect("its own");
        symlink(&secret, images.join("link")).expect("a link");
        chown(&images, Some(NOBODY), Some(NOBODY)).expect("as root");
        let owner = |name: &str| fs::symlink_metadata(root.join(name)).expect("there").uid();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let acting = Acting::for_owner_of(&images).expect("as root");
                let refused = fs::read(images.join("link")).expect_err("the owner may not read it");
                assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
                assert_eq!(as_myself(|| fs::read(&secret)).expect("root may"), b"x");
                fs::read(&secret).expect_err("the owner may not, after that as before");
                fs::write(images.join("pe/new"), b"x").expect("it was handed over");
                fs::write(root.join("beside"), b"x").expect_err("not the owner's folder");
                drop(acting);
                fs::read(images.join("link")).expect("as root again");
            });
        });
        for given in
            ["images/pe", "images/pe/x64", "images/pe/x64/hidden", "images/.staging/.lock", "images/pe/new"]
        {
            assert_eq!(owner(given), NOBODY, "{given}");
        }
        for kept in ["images/pe/boot.wim", "secret", "images/link"] {
            assert_eq!(owner(kept), 0, "{kept}");
        }
        fs::remove_dir_all(&root).expect("its own");
    }
}

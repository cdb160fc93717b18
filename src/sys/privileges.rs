//! What the process may do beyond an ordinary user, given up in two steps: what starting needs is kept until the sockets
//! are open, what serving needs is kept for good.
//!
//! Capabilities belong to threads, and a new thread has its maker's. So each step is to be taken by the thread that makes
//! the others, before it makes them.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, User};

use super::SysError;

/// Kept for good: frames of our own, also on an interface that comes up later, and ports below 1024.
const SERVING: [Capability; 2] = [Capability::CAP_NET_RAW, Capability::CAP_NET_BIND_SERVICE];
/// Kept for good by a process that stays root: folders of other users, such as images in somebody's home. Without this root
/// is a user like any other.
const STAYING_ROOT: Capability = Capability::CAP_DAC_READ_SEARCH;
/// Kept while sockets are opened: receive buffers above `net.core.rmem_max`, and the look at the packet filter.
const STARTING: [Capability; 3] =
    [Capability::CAP_NET_RAW, Capability::CAP_NET_BIND_SERVICE, Capability::CAP_NET_ADMIN];

/// A user this process can become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// Name, as asked for.
    pub name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// Looks a user up by name.
    ///
    /// # Errors
    /// That there is none, with the command that makes one.
    pub fn find(name: &str) -> Result<Self, SysError> {
        let missing = || {
            let advice = format!(
                "there is no such user; `useradd --system --no-create-home --shell /usr/sbin/nologin {name}` makes it"
            );
            io::Error::new(io::ErrorKind::NotFound, advice)
        };
        let what = format!("find user {name}");
        match User::from_name(name) {
            Ok(Some(user)) => Ok(Self { name: name.to_owned(), uid: user.uid, gid: user.gid }),
            Ok(None) => Err(SysError::new(what, missing())),
            Err(errno) => Err(SysError::new(what, errno.into())),
        }
    }

    /// True when this process runs as that user already.
    pub fn is_current(&self) -> bool {
        nix::unistd::geteuid() == self.uid
    }

    /// Gives a folder to this user, with all in it but what is in the folder `images`. Who may write there must not lead
    /// this process, which is root, anywhere else: no link below it is followed, and what is below a folder is reached through
    /// the folder that was opened, not by its name again. The folder itself, which is root's to name, may be a link. A file
    /// with a second name elsewhere is left alone.
    pub fn give(&self, folder: &Path, images: &Path) -> Result<(), SysError> {
        let given = std::fs::canonicalize(folder).and_then(|real| {
            // By its own name: where it leads, if it is a link, is not looked at.
            let parent = images.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
            let images = parent.zip(images.file_name()).map(|(parent, name)| parent.join(name));
            let images = images.filter(|images| *images != real);
            self.give_opened(&real, &real, images.as_deref())
        });
        given.map_err(|error| SysError::new(format!("give {} to {}", folder.display(), self.name), error))
    }

    /// `place` is where it is opened, `name` what it is called.
    fn give_opened(&self, place: &Path, name: &Path, images: Option<&Path>) -> io::Result<()> {
        let opened = super::open_plain(place)?;
        let meta = opened.metadata()?;
        if meta.is_dir() && Some(name) != images {
            let inside = format!("/proc/self/fd/{}", opened.as_raw_fd());
            for entry in std::fs::read_dir(&inside)? {
                let entry = entry?;
                let name = name.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() || kind.is_file() {
                    self.give_opened(&entry.path(), &name, images)?;
                }
            }
        } else if !meta.is_dir() && (!meta.is_file() || meta.nlink() != 1) {
            return Ok(());
        }
        std::os::unix::fs::fchown(&opened, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }
}

/// What a thread may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rights(Vec<String>);

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { f.write_str(&self.0.join(",")) }
    }
}

/// First step, with one thread: becomes `account` if one is given, and keeps of what it has what opening the sockets
/// needs. Fine without any privilege, then nothing is given up.
///
/// # Errors
/// Another user is to be become and this one may not.
pub fn prepare(account: Option<&Account>) -> Result<Rights, SysError> {
    // While it may still be done: what nobody gets back by running a program.
    if has(CapSet::Effective, Capability::CAP_SETPCAP) {
        for capability in caps::all() {
            // One that this kernel does not know is in nobody's set.
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    if let Some(account) = account.filter(|account| !account.is_current()) {
        let fail = |errno: nix::errno::Errno| {
            SysError::new(format!("become user {}", account.name), io::Error::from(errno))
        };
        nix::sys::prctl::set_keepcaps(true).map_err(fail)?;
        nix::unistd::setgroups(&[account.gid]).map_err(fail)?;
        nix::unistd::setresgid(account.gid, account.gid, account.gid).map_err(fail)?;
        nix::unistd::setresuid(account.uid, account.uid, account.uid).map_err(fail)?;
        nix::sys::prctl::set_keepcaps(false).map_err(fail)?;
    }
    keep(&STARTING)
}

/// Second step, before the threads that serve are made.
pub fn settle() -> Result<Rights, SysError> {
    keep(&SERVING)
}

/// For a thread that needs no privilege at all, but for the folders of a process that stays root.
pub fn renounce() {
    if let Err(error) = keep(&[]) {
        tracing::warn!(%error, "a thread keeps privileges it does not need");
    }
}

fn has(set: CapSet, capability: Capability) -> bool {
    caps::has_cap(None, set, capability).unwrap_or(false)
}

fn keep(wanted: &[Capability]) -> Result<Rights, SysError> {
    let fail = |error: caps::errors::CapsError| {
        SysError::new("give up privileges", io::Error::other(error.to_string()))
    };
    let root = nix::unistd::geteuid().is_root().then_some(STAYING_ROOT);
    let wanted = wanted.iter().copied().chain(root);
    let kept: CapsHashSet = wanted.filter(|capability| has(CapSet::Permitted, *capability)).collect();
    // Ambient ones go first: they may not outlive the others. Where they cannot be cleared, the kernel has none (before 4.3).
    let _ = caps::clear(None, CapSet::Ambient);
    caps::set(None, CapSet::Effective, &kept).map_err(fail)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(fail)?;
    caps::clear(None, CapSet::Inheritable).map_err(fail)?;
    let mut names: Vec<String> = kept.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(Rights(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: capabilities are a thread's.
    fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().expect("does not panic"))
    }

    #[test]
    fn what_is_settled_is_what_serving_needs_and_does_not_come_back() {
        in_a_thread(|| {
            let before = caps::read(None, CapSet::Permitted).expect("readable");
            settle().expect("giving up is always allowed");
            let now = caps::read(None, CapSet::Permitted).expect("readable");
            let root = nix::unistd::geteuid().is_root().then_some(STAYING_ROOT);
            let wanted: CapsHashSet =
                SERVING.iter().copied().chain(root).filter(|c| before.contains(c)).collect();
            assert_eq!(now, wanted);
            assert!(caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_err());
            renounce();
            let left: CapsHashSet = root.into_iter().filter(|c| before.contains(c)).collect();
            assert_eq!(caps::read(None, CapSet::Permitted).expect("readable"), left);
        });
    }

    #[test]
    fn what_is_given_stays_inside_its_folder() {
        let root = std::env::temp_dir().join(format!("bootstorm-give-{}", std::process::id()));
        let (state, other) = (root.join("state"), root.join("other"));
        for folder in [state.join("leases"), state.join("images"), other.clone()] {
            std::fs::create_dir_all(folder).expect("made");
        }
        for file in ["state/db", "state/leases/1", "state/images/wim", "other/secret", "other/linked"] {
            std::fs::write(root.join(file), b"x").expect("written");
        }
        std::os::unix::fs::symlink(other.join("secret"), state.join("link")).expect("a link");
        std::os::unix::fs::symlink(&other, state.join("folder")).expect("a link");
        std::fs::hard_link(other.join("linked"), state.join("second")).expect("a second name");
        let nobody = Account::find("nobody").expect("every Linux has it");
        nobody.give(&state, &state.join("images")).expect("as root");
        let owner = |name: &str| std::fs::metadata(root.join(name)).expect("there").uid();
        for given in ["state", "state/db", "state/leases", "state/leases/1"] {
            assert_eq!(owner(given), nobody.uid.as_raw(), "{given}");
        }
        assert_eq!(owner("state/images"), nobody.uid.as_raw(), "the folder of the images alone");
        for kept in ["other", "other/secret", "other/linked", "state/images/wim"] {
            assert_eq!(owner(kept), nix::unistd::getuid().as_raw(), "{kept}");
        }
        std::fs::remove_dir_all(&root).expect("its own");
    }

    #[test]
    fn the_folder_itself_may_be_a_link_and_the_images_in_it_too() {
        let root = std::env::temp_dir().join(format!("bootstorm-give-link-{}", std::process::id()));
        for folder in ["real/leases", "images"] {
            std::fs::create_dir_all(root.join(folder)).expect("made");
        }
        std::os::unix::fs::symlink("real", root.join("state")).expect("a link");
        std::os::unix::fs::symlink(root.join("images"), root.join("real/images")).expect("a link");
        let nobody = Account::find("nobody").expect("every Linux has it");
        nobody.give(&root.join("state"), &root.join("state/images")).expect("as root");
        let owner = |name: &str| std::fs::metadata(root.join(name)).expect("there").uid();
        assert_eq!((owner("real"), owner("real/leases")), (nobody.uid.as_raw(), nobody.uid.as_raw()));
        // Whoever may write in the state folder could have put that link there.
        assert_eq!(owner("images"), nix::unistd::getuid().as_raw());
        std::fs::remove_dir_all(&root).expect("its own");
    }

    #[test]
    fn a_user_that_is_not_there_is_named_with_the_way_to_make_it() {
        let error = Account::find("no-such-user-here").expect_err("nobody has that name");
        let text = error.source.to_string();
        assert!(text.contains("useradd --system") && text.contains("no-such-user-here"), "{text}");
    }
}

//! Being told that something below the images folder changed, so that a file that was dropped there is found soon. It
//! is a hint: what is there, the scan says, and it also comes by itself.

use std::path::{Component, Path, PathBuf};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};

/// Watches for as long as it lives.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

/// Calls `changed` whenever a file below `images_dir` was made, written, closed after writing, renamed or removed; from a
/// thread of its own, often, and not for hidden folders.
///
/// # Errors
/// When the kernel has no watches left (`fs.inotify.max_user_watches`) or the folder cannot be read; one line.
pub fn watch(images_dir: &Path, changed: impl Fn() + Send + 'static) -> Result<Watch, String> {
    let root = std::fs::canonicalize(images_dir).map_err(|error| error.to_string())?;
    let below = root.clone();
    let heard = move |event: Result<Event, notify::Error>| match event {
        // A queue that overflowed has lost events: look.
        Err(_) => changed(),
        Ok(event) if event.need_rescan() || matters(&below, &event) => changed(),
        Ok(_) => {}
    };
    // A link could lead anywhere, and watches are counted. Where one is served through, the look every two seconds finds it.
    let plain = Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(heard, plain).map_err(|error| error.to_string())?;
    watcher.watch(&root, RecursiveMode::Recursive).map_err(|error| error.to_string())?;
    Ok(Watch { _watcher: watcher })
}

fn matters(root: &Path, event: &Event) -> bool {
    let is_change = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        // Every scan and every download opens files.
        EventKind::Access(_) => false,
        _ => true,
    };
    let is_hidden = |path: &PathBuf| {
        let inside = path.strip_prefix(root).unwrap_or(path);
        inside
            .components()
            .any(|step| matches!(step, Component::Normal(step) if step.as_encoded_bytes().starts_with(b".")))
    };
    is_change && !event.paths.iter().all(is_hidden)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    #[test]
    fn what_happens_below_is_heard_and_hidden_folders_are_not() {
        let folder = TestFolder::new("watch");
        folder.write("pe/boot.wim", b"x");
        folder.write(".staging/x", b"x");
        let (told, heard) = mpsc::channel();
        let _watch = watch(folder.path(), move || _ = told.send(())).unwrap();
        let hears = || {
            let is_heard = heard.recv_timeout(Duration::from_secs(10)).is_ok();
            while heard.recv_timeout(Duration::from_millis(50)).is_ok() {}
            is_heard
        };
        std::fs::write(folder.path().join(".staging/x"), b"more").unwrap();
        std::fs::read(folder.path().join("pe/boot.wim")).unwrap();
        assert!(heard.recv_timeout(Duration::from_millis(200)).is_err());
        std::fs::write(folder.path().join("pe/boot.wim"), b"more").unwrap();
        assert!(hears());
        // Folders made later are watched too.
        std::fs::create_dir(folder.path().join("new")).unwrap();
        assert!(hears());
        std::fs::write(folder.path().join("new/x"), b"x").unwrap();
        assert!(hears());
    }

    #[test]
    fn what_links_lead_to_is_not_watched() {
        let (folder, elsewhere) = (TestFolder::new("watch-link"), TestFolder::new("watch-elsewhere"));
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("link")).unwrap();
        folder.write("pe/boot.wim", b"x");
        let (told, heard) = mpsc::channel();
        let _watch = watch(folder.path(), move || _ = told.send(())).unwrap();
        elsewhere.write("x", b"x");
        assert!(heard.recv_timeout(Duration::from_millis(200)).is_err());
        folder.write("pe/boot.wim", b"y");
        assert!(heard.recv_timeout(Duration::from_secs(10)).is_ok());
    }
}

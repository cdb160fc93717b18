//! The library: folders on disk, scanned into snapshots of the [`Catalog`].

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};

use crate::files::catalog::Catalog;
use crate::files::details::Details;
use crate::files::detect;
use crate::files::loaders::{Loader, LoaderTable, Preferences};
use crate::files::scan::{self, Before, Found, Memory, Walk};
use crate::files::served::{Place, Served};
use crate::files::sniff::Sniff;
use crate::jobs::image::{Access, Image, Images};

/// Where the library is and which loaders are preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A folder per image below it.
    pub images_dir: PathBuf,
    /// Further folders of images, served as they lie. Of two images of one name the earlier folder's counts.
    pub trees: Vec<PathBuf>,
    /// Loader folders, earlier ones first; those that do not exist are passed over.
    pub loader_dirs: Vec<PathBuf>,
    /// Loaders for PC BIOS, best first.
    pub bios: Vec<String>,
    /// Loaders for UEFI x64, best first.
    pub uefi_x64: Vec<String>,
    /// Loaders for UEFI IA32, best first.
    pub uefi_ia32: Vec<String>,
    /// Loaders for UEFI ARM64, best first.
    pub uefi_arm64: Vec<String>,
    /// Names of wimboot, looked for in the image's folder and then in the loader folders.
    pub wimboot: Vec<String>,
}

/// Why there is no library.
#[derive(Debug)]
pub enum LibraryError {
    /// The images folder cannot be listed.
    ImagesDir {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The look ended by a panic.
    Fault,
}

impl fmt::Display for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImagesDir { path, error } if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "images folder {}: it does not exist", path.display())
            }
            Self::ImagesDir { path, error } if error.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "images folder {}: {error}; one that came, or was mounted, after the start of a server is out of its reach \
                 until it is started again",
                path.display()
            ),
            Self::ImagesDir { path, error } => write!(f, "images folder {}: {error}", path.display()),
            Self::Fault => {
                f.write_str("a fault, which is one of bootstorm's own; the images stay as they were")
            }
        }
    }
}

impl std::error::Error for LibraryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::ImagesDir { error, .. } => Some(error),
            Self::Fault => None,
        }
    }
}

/// What a scan did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScanReport {
    /// Image folders listed, bootable or not.
    pub images: usize,
    /// Payload files listed.
    pub files: usize,
    /// Files left out because they are still being written: scan again after [`scan::SETTLE`].
    pub settling: usize,
}

/// The library. Readers take snapshots without a lock; scans run one at a time.
#[derive(Debug)]
pub struct Library {
    settings: Settings,
    catalog: ArcSwap<Catalog>,
    /// What the last scan saw, also of files it left out.
    memory: Mutex<Memory>,
}

impl Library {
    /// Scans the folders for the first time.
    ///
    /// # Errors
    /// [`LibraryError`] when the images folder is missing or unreadable; an empty one is fine.
    pub fn open(settings: Settings) -> Result<Self, LibraryError> {
        let before = Before::first(SystemTime::now());
        let scanned = Scanned::of(&settings, &before, None)?;
        let memory = Mutex::new(scanned.memory);
        Ok(Self { settings, catalog: ArcSwap::from_pointee(scanned.catalog), memory })
    }

    /// The snapshot of now. Hold it for one request, not for long.
    pub fn load(&self) -> Guard<Arc<Catalog>> {
        self.catalog.load()
    }

    /// The snapshot of now, to keep.
    pub fn snapshot(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// As opened.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Scans again and publishes the result whole. Entries of unchanged files are kept with their open mappings. On
    /// an error the old snapshot stays.
    ///
    /// # Errors
    /// As [`Library::open`].
    pub fn rescan(&self) -> Result<ScanReport, LibraryError> {
        self.rescan_at(SystemTime::now())
    }

    fn rescan_at(&self, now: SystemTime) -> Result<ScanReport, LibraryError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Before::after(std::mem::take(&mut *memory), now);
        let old = self.catalog.load_full();
        // What reads other people's files may have a fault. That is no reason to serve nothing, nor to forget what is known.
        let scan = AssertUnwindSafe(|| Scanned::of(&self.settings, &before, Some(&old)));
        let scanned = match catch_unwind(scan).unwrap_or(Err(LibraryError::Fault)) {
            Ok(scanned) => scanned,
            Err(error) => {
                *memory = before.into_memory();
                return Err(error);
            }
        };
        *memory = scanned.memory;
        for served in scanned.catalog.payload_files() {
            served.close_if_idle();
        }
        self.catalog.store(Arc::new(scanned.catalog));
        Ok(scanned.report)
    }
}

struct Scanned {
    catalog: Catalog,
    memory: Memory,
    report: ScanReport,
}

impl Scanned {
    fn of(settings: &Settings, before: &Before, old: Option<&Catalog>) -> Result<Self, LibraryError> {
        let mut folders: Vec<(String, PathBuf, Arc<PathBuf>)> = Vec::new();
        let mut names: HashMap<String, bool> = HashMap::new();
        for dir in std::iter::once(&settings.images_dir).chain(&settings.trees) {
            let failed = |error| LibraryError::ImagesDir { path: dir.clone(), error };
            let root = Arc::new(fs::canonicalize(dir).map_err(failed)?);
            for (name, path) in scan::image_folders(&root).map_err(failed)? {
                let twice = names.entry(name.clone()).and_modify(|twice| *twice = true).or_insert(false);
                if !*twice {
                    folders.push((name, path, Arc::clone(&root)));
                }
            }
        }
        folders.sort_by(|(a, ..), (b, ..)| a.cmp(b));

        let loaders = loaders(settings, old);

        let mut images = Vec::with_capacity(folders.len());
        let mut payload = Vec::new();
        let mut details = Vec::with_capacity(folders.len());
        let mut memory = Memory::default();
        let mut report = ScanReport::default();
        for (name, path, root) in folders {
            let mut walk = scan::walk_image(&root, &path, before);
            if names.get(&name) == Some(&true) {
                walk.notes.push("a folder of the same name in [images] trees is left out".to_owned());
            }
            memory.extend(std::mem::take(&mut walk.memory));
            report.settling +=
                walk.settling.len() + walk.texts.values().filter(|text| text.is_none()).count();
            let mut image = detect::detect(&name, &path, &walk, &loaders);
            // Boots under way go by what it said until the new text is whole.
            if let Some(was) = old.and_then(|old| as_it_was(&image, &path, &walk, before, old))
                && let Some(since) = before.held_since(&path)
            {
                memory.hold(path.clone(), since);
                image = was;
            }
            details.push(Details::of(&root, &name, &walk));
            let Walk { files, .. } = walk;
            payload.extend(files.into_iter().map(|found| {
                let public = format!("{name}/{}", found.name);
                let kept = old.and_then(|old| old.http_image(&public).ok());
                entry(kept.as_ref(), public, Place::Image, found, image.access)
            }));
            images.push(Arc::new(image));
        }
        report.images = images.len();
        report.files = payload.len();
        Ok(Self { catalog: Catalog::new(images, details, payload, loaders), memory, report })
    }
}

/// The image as it was before somebody began to write one of the texts that say what it is and does, if that is all that has
/// changed: what a text says that is whole counts at once.
fn as_it_was(image: &Image, path: &Path, walk: &Walk, before: &Before, old: &Catalog) -> Option<Image> {
    image.unbootable.as_ref()?;
    let written = walk.texts.iter().find(|(_, whole)| whole.is_none()).map(|(name, _)| name.as_str())?;
    let whole = walk.texts.iter().filter_map(|(name, whole)| Some((name, whole.as_ref()?)));
    if !whole.into_iter().all(|(name, identity)| before.was_whole(&path.join(name), identity)) {
        return None;
    }
    let was = old.image(&image.name)?;
    let same = |found: &Found| {
        let served = old.http_image(&format!("{}/{}", image.name, found.name));
        served.is_ok_and(|served| served.describes(&found.path, &found.identity, was.access))
    };
    if was.unbootable.is_some() || was.files.len() != walk.files.len() || !walk.files.iter().all(same) {
        return None;
    }
    let mut was = was.clone();
    let note = format!("{written} is still being written: until it is whole, what it said before counts");
    if !was.warnings.contains(&note) {
        was.warnings.push(note);
    }
    Some(was)
}

/// The loaders of the loader folders; with a catalogue of before, their entries are kept where they are unchanged. Needs no
/// images folder.
pub fn loaders(settings: &Settings, old: Option<&Catalog>) -> LoaderTable {
    let preferences = Preferences {
        bios: settings.bios.clone(),
        uefi_x64: settings.uefi_x64.clone(),
        uefi_ia32: settings.uefi_ia32.clone(),
        uefi_arm64: settings.uefi_arm64.clone(),
        wimboot: settings.wimboot.clone(),
    };
    let loaders = scan::walk_loaders(&settings.loader_dirs).into_iter().map(|found| {
        let kept = old.and_then(|old| old.loaders().find(&found.name)).map(|loader| &loader.served);
        let sniff = Sniff::of_file(&found.path);
        let name = found.name.clone();
        Loader { served: entry(kept, name, Place::Loader, found, Access::Open), sniff }
    });
    LoaderTable::new(loaders.collect(), preferences)
}

fn entry(
    kept: Option<&Arc<Served>>,
    name: String,
    place: Place,
    found: Found,
    access: Access,
) -> Arc<Served> {
    match kept {
        Some(kept) if kept.name == name && kept.describes(&found.path, &found.identity, access) => {
            Arc::clone(kept)
        }
        _ => Arc::new(Served::new(name, place, found.path, found.identity, access)),
    }
}

#[cfg(test)]
pub(crate) mod test_site {
    use std::path::{Path, PathBuf};

    use super::{Library, Settings};
    use crate::files::scan::test_folder::TestFolder;
    use crate::jobs::image::{Image, Images};

    /// Two images, LZX, boot index 2, x64.
    pub(crate) const SMALL_WIM: &[u8] = include_bytes!("../../tests/data/wim/two-images-lzx.wim");

    /// A temporary site: `images/` and `loaders/`.
    pub(crate) struct Site(TestFolder);

    impl Site {
        pub(crate) fn new() -> Self {
            let folder = TestFolder::new("site");
            for name in ["images", "loaders"] {
                std::fs::create_dir(folder.path().join(name)).unwrap();
            }
            Self(folder)
        }

        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }

        pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            self.0.write(name, bytes)
        }

        pub(crate) fn age(&self, name: &str, seconds: u64) {
            self.0.age(name, seconds);
        }

        pub(crate) fn settings(&self) -> Settings {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Settings {
                images_dir: self.path().join("images"),
                trees: Vec::new(),
                loader_dirs: vec![self.path().join("loaders"), self.path().join("none")],
                bios: names(&["undionly.kpxe"]),
                uefi_x64: names(&["snponly.efi", "ipxe.efi"]),
                uefi_ia32: names(&["ia32/snponly.efi"]),
                uefi_arm64: names(&["snponly-arm64.efi"]),
                wimboot: names(&["wimboot"]),
            }
        }

        pub(crate) fn library(&self) -> Library {
            Library::open(self.settings()).unwrap()
        }

        pub(crate) fn image(&self, name: &str) -> Image {
            self.library().load().image(name).unwrap_or_else(|| panic!("no image {name}")).clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::test_site::{SMALL_WIM, Site};
    use super::*;
    use crate::files::NotServed;
    use crate::jobs::image::Images;

    #[test]
    fn a_missing_images_folder_is_named_and_an_empty_one_is_fine() {
        let site = Site::new();
        assert_eq!(site.library().load().list().len(), 0);
        let gone = Settings { images_dir: site.path().join("nowhere"), ..site.settings() };
        let error = Library::open(gone).unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains("does not exist"), "{error}");
        let file = Settings { images_dir: site.write("file", b"x"), ..site.settings() };
        assert!(Library::open(file).unwrap_err().to_string().contains("/file"));
    }

    #[test]
    fn images_are_listed_in_name_order_and_only_folders_are_images() {
        let site = Site::new();
        for name in ["b/x", "a/x", "C/x", ".upload/x", "private/x", "file"] {
            site.write(&format!("images/{name}"), b"x");
        }
        let library = site.library();
        let catalog = library.load();
        let names: Vec<_> = catalog.list().iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, ["C", "a", "b"]);
        assert!(catalog.image("a").is_some() && catalog.image("A").is_none());
    }

    #[test]
    fn further_trees_are_served_as_they_lie_and_the_first_of_a_name_counts() {
        let site = Site::new();
        for name in ["images/b/x", "estate/a/x", "estate/b/other"] {
            site.write(name, b"x");
        }
        let estate = site.path().join("estate");
        let library = Library::open(Settings { trees: vec![estate], ..site.settings() }).unwrap();
        let catalog = library.load();
        let names: Vec<_> = catalog.list().iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(catalog.http_image("a/x").is_ok() && catalog.http_image("b/x").is_ok());
        assert!(catalog.http_image("b/other").is_err());
        assert!(catalog.image("b").unwrap().warnings.iter().any(|note| note.contains("same name")));
        let gone = Settings { trees: vec![site.path().join("gone")], ..site.settings() };
        assert!(Library::open(gone).unwrap_err().to_string().contains("/gone"));
    }

    #[test]
    fn a_rescan_keeps_what_did_not_change_open() {
        let site = Site::new();
        site.write("images/pe/boot.wim", SMALL_WIM);
        site.write("images/pe/other", b"other");
        site.write("loaders/snponly.efi", b"loader");
        let library = site.library();
        let kept = library.load().http_image("pe/boot.wim").unwrap();
        let replaced = library.load().http_image("pe/other").unwrap();
        let loader = library.load().loader("snponly.efi").unwrap();
        let opened = kept.open().unwrap();
        let old = replaced.open().unwrap();
        std::fs::rename(site.write("images/.new", b"a new version"), site.path().join("images/pe/other"))
            .unwrap();
        site.age("images/pe/other", 10);
        let report = library.rescan().unwrap();
        assert_eq!(report, ScanReport { images: 1, files: 2, settling: 0 });
        let again = library.load().http_image("pe/boot.wim").unwrap();
        assert!(Arc::ptr_eq(&kept, &again) && Arc::ptr_eq(&opened, &again.open().unwrap()));
        assert!(Arc::ptr_eq(&loader, &library.load().loader("snponly.efi").unwrap()));
        let new = library.load().http_image("pe/other").unwrap();
        assert_ne!(new.etag, replaced.etag);
        assert_eq!((new.open().unwrap().len, old.len), (13, 5));
        assert!(old.still_same(), "who had the old version reads it to its end");
    }

    #[test]
    fn a_file_being_copied_is_not_served_until_it_rests() {
        let site = Site::new();
        site.write("images/pe/wimboot", b"wimboot");
        site.age("images/pe/wimboot", 10);
        let library = site.library();
        site.write("images/pe/boot.wim", &SMALL_WIM[..500]);
        assert_eq!(library.rescan().unwrap().settling, 1);
        let catalog = library.snapshot();
        assert_eq!(catalog.http_image("pe/boot.wim").unwrap_err(), NotServed::NotFound);
        let image = catalog.image("pe").unwrap();
        assert_eq!(image.unbootable.as_deref(), Some("boot.wim is still being written"));
        assert!(image.warnings.iter().any(|warning| warning.contains("boot.wim")), "{:?}", image.warnings);
        site.write("images/pe/boot.wim", SMALL_WIM);
        let now = SystemTime::now();
        assert_eq!(library.rescan_at(now).unwrap().settling, 1);
        assert_eq!(library.rescan_at(now + scan::SETTLE / 2).unwrap().settling, 1);
        assert_eq!(library.rescan_at(now + scan::SETTLE).unwrap().settling, 0);
        assert_eq!(library.load().image("pe").unwrap().unbootable, None);
        assert!(library.load().http_image("pe/boot.wim").unwrap().open().is_ok());
    }

    #[test]
    fn a_file_edited_in_place_is_unpublished_and_cuts_its_transfers() {
        let site = Site::new();
        site.write("images/pe/big", &[1; 5000]);
        site.age("images/pe/big", 10);
        let library = site.library();
        let opened = library.load().http_image("pe/big").unwrap().open().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        site.write("images/pe/big", &[2; 6000]);
        assert!(!opened.still_same());
        let now = SystemTime::now();
        assert_eq!(library.rescan_at(now).unwrap().settling, 1);
        assert!(library.load().http_image("pe/big").is_err());
        assert_eq!(library.rescan_at(now + scan::SETTLE).unwrap().settling, 0);
        assert_eq!(library.load().http_image("pe/big").unwrap().open().unwrap().len, 6000);
    }

    #[test]
    fn a_failed_rescan_leaves_the_old_snapshot() {
        let site = Site::new();
        site.write("images/pe/boot.wim", SMALL_WIM);
        let library = site.library();
        let (images, away) = (site.path().join("images"), site.path().join("away"));
        std::fs::rename(&images, &away).unwrap();
        assert!(library.rescan().is_err());
        assert!(library.load().http_image("pe/boot.wim").is_ok());
        std::fs::rename(&away, &images).unwrap();
        assert_eq!(library.rescan().unwrap().files, 1);
    }

    #[test]
    fn access_of_an_image_stands_on_its_files() {
        let site = Site::new();
        site.write("images/pe/boot.wim", SMALL_WIM);
        let library = site.library();
        assert_eq!(library.load().http_image("pe/boot.wim").unwrap().access, Access::Open);
        site.write("images/pe/image.toml", b"access = \"boot\"");
        site.age("images/pe/image.toml", 60);
        library.rescan().unwrap();
        assert_eq!(library.load().http_image("pe/boot.wim").unwrap().access, Access::Boot);
        assert!(!library.load().image("pe").unwrap().destructive);
    }

    #[test]
    fn a_manifest_that_is_being_written_counts_once_it_is_whole_and_until_then_what_it_said_before() {
        let site = Site::new();
        site.write("images/own/start.ipxe", b"#!ipxe\n");
        let manifest = "images/own/image.toml";
        site.write(manifest, b"destructive = true\naccess = \"boot\"\n");
        for name in ["images/own/start.ipxe", manifest] {
            site.age(name, 60);
        }
        let library = site.library();
        let now = SystemTime::now();
        let is_closed = |at: SystemTime, reason: Option<&str>, settling: usize| {
            assert_eq!(library.rescan_at(at).unwrap().settling, settling);
            let catalog = library.snapshot();
            let image = catalog.image("own").unwrap();
            assert_eq!(image.unbootable.as_deref(), reason);
            let doubted =
                image.warnings.iter().filter(|text| text.contains("is still being written")).count();
            assert_eq!(doubted, usize::from(settling > 0 && reason.is_none()));
            image.destructive && image.access == Access::Boot
        };
        assert!(is_closed(now, None, 0));
        // An editor empties the file and writes line by line; each of these is a manifest by itself.
        site.write(manifest, b"");
        assert!(is_closed(now, None, 1));
        site.write(manifest, b"title = \"x\"\n");
        assert!(is_closed(now, None, 1));
        // It rests as payload does, and whoever has it open for writing is not done.
        let writer = std::fs::File::options().append(true).open(site.path().join(manifest)).unwrap();
        assert!(is_closed(now + scan::SETTLE, None, 1));
        drop(writer);
        assert!(!is_closed(now + scan::SETTLE, None, 0));
        // What was open before stays so until then, and no longer than that: then nobody knows what it is.
        let settling = Some("image.toml is still being written");
        let writer = std::fs::File::options().append(true).open(site.path().join(manifest)).unwrap();
        site.write(manifest, b"title = \"xy\"\n");
        assert!(!is_closed(now, None, 1));
        assert!(!is_closed(now + scan::HELD_MAX / 2, None, 1));
        assert!(is_closed(now + scan::HELD_MAX, settling, 1));
        assert!(is_closed(now + scan::HELD_MAX + scan::SETTLE, settling, 1), "nor is it again what it was");
        drop(writer);
        assert!(!is_closed(now + scan::SETTLE, None, 0));
        // The disk was full: empty it stays, and closed.
        site.write(manifest, b"");
        assert!(!is_closed(now, None, 1));
        let empty = Some("image.toml is empty");
        assert!(is_closed(now + scan::SETTLE, empty, 0));
        assert_eq!(site.image("own").unbootable.as_deref(), empty);
        // From there nothing is known to go on with.
        site.write(manifest, b"destructive = true\n");
        assert!(is_closed(now, settling, 1));
        assert!(!is_closed(now + scan::SETTLE, None, 0), "it wipes, and its files are open");
        // There are editors that rename it away first, whether it was whole or not.
        for published in [true, false] {
            if !published {
                site.write(manifest, b"destructive = true\naccess = \"boot\"\n");
                assert_eq!(library.rescan_at(now).unwrap().settling, 1);
            }
            let later = now + scan::SETTLE / 2;
            std::fs::remove_file(site.path().join(manifest)).unwrap();
            let held = |at| {
                library.rescan_at(at).unwrap();
                library.snapshot().image("own").unwrap().destructive
            };
            let stays = [later, later + scan::SETTLE / 2].map(held);
            assert!(!published || stays == [true; 2], "{stays:?}");
            assert!(!held(later + scan::SETTLE), "there is none");
        }
        // Renamed into place it counts at once.
        site.write("images/own/.new", b"title = \"x\"\n");
        std::thread::sleep(Duration::from_millis(20));
        std::fs::rename(site.path().join("images/own/.new"), site.path().join(manifest)).unwrap();
        assert!(!is_closed(now, None, 0));
    }

    #[test]
    fn texts_for_machines_wait_until_they_are_whole() {
        let site = Site::new();
        site.write("images/lab/linux", &crate::files::sniff::samples::bzimage());
        site.write("images/lab/image.toml", b"answers = [\"ks.cfg\"]");
        for name in ["images/lab/linux", "images/lab/image.toml"] {
            site.age(name, 60);
        }
        let library = site.library();
        let now = SystemTime::now();
        for (name, reason) in [
            // One that was there before is known, one that is new is not.
            ("private/ks.cfg", Some("answer file private/ks.cfg: is still being written")),
            ("private/ks.cfg", None),
            ("cmdline", None),
            ("cmdline", None),
            ("boot.ipxe.tmpl", None),
        ] {
            site.write(&format!("images/lab/{name}"), b"#!ipxe\n");
            assert_eq!(library.rescan_at(now).unwrap().settling, 1, "{name}");
            assert_eq!(library.load().image("lab").unwrap().unbootable.as_deref(), reason, "{name}");
            assert_eq!(library.rescan_at(now + scan::SETTLE).unwrap().settling, 0, "{name}");
            assert_eq!(library.load().image("lab").unwrap().unbootable, None);
        }
        std::fs::remove_file(site.path().join("images/lab/boot.ipxe.tmpl")).unwrap();
        library.rescan_at(now + scan::SETTLE).unwrap();
        // What is whole counts, whatever else is being written: nobody's word on what wipes is put off.
        site.write("images/lab/.new", b"destructive = true\nanswers = [\"ks.cfg\"]");
        std::thread::sleep(Duration::from_millis(20));
        std::fs::rename(site.path().join("images/lab/.new"), site.path().join("images/lab/image.toml"))
            .unwrap();
        site.write("images/lab/cmdline", b"quiet");
        assert_eq!(library.rescan_at(now).unwrap().settling, 1);
        let image = library.load().image("lab").unwrap().clone();
        assert!(image.destructive && image.unbootable.is_some(), "{image:?}");
        // Nor is it what it was where its payload has changed too.
        library.rescan_at(now + scan::SETTLE).unwrap();
        assert_eq!(library.load().image("lab").unwrap().unbootable, None);
        site.write("images/lab/linux", &[crate::files::sniff::samples::bzimage(), vec![0]].concat());
        site.write("images/lab/cmdline", b"loud");
        library.rescan_at(now).unwrap();
        assert!(library.load().image("lab").unwrap().unbootable.is_some());
    }
}

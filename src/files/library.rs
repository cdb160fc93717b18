//! The library: folders on disk, scanned into snapshots of the [`Catalog`].

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};

use crate::files::catalog::Catalog;
use crate::files::detect;
use crate::files::loaders::{Loader, LoaderTable, Preferences};
use crate::files::scan::{self, Before, Found, Walk};
use crate::files::served::{FileIdentity, Place, Served};
use crate::files::sniff::Sniff;
use crate::jobs::image::Access;

/// Where the library is and which loaders are preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A folder per image below it.
    pub images_dir: PathBuf,
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
}

impl fmt::Display for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImagesDir { path, error } if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "images folder {}: it does not exist", path.display())
            }
            Self::ImagesDir { path, error } => write!(f, "images folder {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for LibraryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::ImagesDir { error, .. } => Some(error),
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
    /// What the last scan saw by real path, also files it left out.
    seen: Mutex<HashMap<PathBuf, FileIdentity>>,
}

impl Library {
    /// Scans the folders for the first time.
    ///
    /// # Errors
    /// [`LibraryError`] when the images folder is missing or unreadable; an empty one is fine.
    pub fn open(settings: Settings) -> Result<Self, LibraryError> {
        let before = Before::first(SystemTime::now());
        let scanned = Scanned::of(&settings, &before, None)?;
        Ok(Self { settings, catalog: ArcSwap::from_pointee(scanned.catalog), seen: Mutex::new(scanned.seen) })
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
        // A scan that panicked left the table of the scan before it, which is what is wanted.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Before::after(std::mem::take(&mut *seen), SystemTime::now());
        let old = self.catalog.load_full();
        let scanned = match Scanned::of(&self.settings, &before, Some(&old)) {
            Ok(scanned) => scanned,
            Err(error) => {
                *seen = before.into_seen();
                return Err(error);
            }
        };
        *seen = scanned.seen;
        for served in scanned.catalog.payload_files() {
            served.close_if_idle();
        }
        self.catalog.store(Arc::new(scanned.catalog));
        Ok(scanned.report)
    }
}

struct Scanned {
    catalog: Catalog,
    seen: HashMap<PathBuf, FileIdentity>,
    report: ScanReport,
}

impl Scanned {
    fn of(settings: &Settings, before: &Before, old: Option<&Catalog>) -> Result<Self, LibraryError> {
        let failed = |error| LibraryError::ImagesDir { path: settings.images_dir.clone(), error };
        let root = fs::canonicalize(&settings.images_dir).map_err(failed)?;
        let folders = scan::image_folders(&root).map_err(failed)?;

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
        let loaders = LoaderTable::new(loaders.collect(), preferences);

        let mut images = Vec::with_capacity(folders.len());
        let mut payload = Vec::new();
        let mut seen = HashMap::new();
        let mut report = ScanReport::default();
        for (name, path) in folders {
            let mut walk = scan::walk_image(&root, &path, before);
            seen.extend(walk.seen.drain(..));
            report.settling += walk.settling.len();
            let image = detect::detect(&name, &path, &walk, &loaders);
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
        Ok(Self { catalog: Catalog::new(images, payload, loaders), seen, report })
    }
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

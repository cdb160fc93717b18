//! Folders laid out as Ghost Solution Suite and Deployment Solution lay them out, as they lie on disk.
//!
//! Both products keep an image as `NAME/ARCHITECTURE/...` (GSS names images `MenuOption128`, `MenuOption144`, ...; DS
//! by their title), with Windows' network boot programs and `bstrap.0` or `bstrap.efi` beside the WIM. What such a
//! folder is, is seen from names alone; what it means for machines is in [`crate::jobs::gss`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use serde::Serialize;

use crate::files::catalog::Catalog;
use crate::files::loaders::LoaderTable;
use crate::files::make;
use crate::files::names::{self, base, folded};
use crate::files::scan::{self, Found, Walk};
use crate::files::served::Served;
use crate::files::sniff::Sniff;
use crate::jobs::Image;
use crate::jobs::gss::{GssForm, Native, Program, SWITCHES};
use crate::jobs::image::Images;
use crate::wire::arch::{Cpu, Family};

/// True for a program that firmware can start from the network, or that GSS and DS keep beside those.
pub fn is_boot_program(name: &str) -> bool {
    let file = folded(base(name));
    BIOS_PROGRAMS.contains(&file.as_str()) || is_efi_program(name) || is_bstrap(name) || file == "bootmgr.exe"
}

/// The folder of the PXE server's own boot programs, beside the images. It is no image.
const BSTRAP_FOLDER: &str = "bstrap";
/// What a switched-off loader's name ends in; with the dot in front it is hidden from everybody.
const OFF_SUFFIX: &str = ".off";

/// Network boot programs for BIOS, best first: Windows' own without and with its F12 prompt, then those of others.
const BIOS_PROGRAMS: &[&str] = &[
    "pxeboot.n12",
    "pxeboot.com",
    "pxeboot.0",
    "bootmgr.n12",
    "pxelinux.0",
    "lpxelinux.0",
    "grldr",
    "bstrap.0",
];

/// EFI network boot programs, best first. `bootmgr.efi` is last of Windows': loaded by firmware it ends in PXE-E99 on
/// many machines (Broadcom article 163295), and `wdsmgfw.efi` is left out because it talks to a WDS server.
const EFI_PROGRAMS: &[&str] = &[
    "bootmgfw.efi",
    "bootx64.efi",
    "bootia32.efi",
    "bootaa64.efi",
    "bootmgr.efi",
    "shimx64.efi",
    "shimia32.efi",
    "shimaa64.efi",
    "grubx64.efi",
    "grubia32.efi",
    "grubaa64.efi",
    "elilo.efi",
    "bstrap.efi",
    "bstrapx64.efi",
    "bstrap64.efi",
    "bstrap32.efi",
];

/// Programs that mark a folder as one that boots by itself: nothing else has them.
const MARKS: &[&str] = &["pxeboot.n12", "pxeboot.com", "pxeboot.0"];

/// What a folder's architecture is called, in either product.
fn folder_family(step: &str) -> Option<Family> {
    Some(match step {
        "x64" | "amd64" | "x86_64" | "x86-64" | "x86-64_efi" | "efi_x64" | "x64_efi" => Family::UefiX64,
        "x86" | "i386" | "ia32" | "x86_efi" | "efi_x86" => Family::UefiIa32,
        "arm64" | "aa64" | "aarch64" => Family::UefiArm64,
        "x86pc" | "bios" => Family::Bios,
        _ => return None,
    })
}

/// The family that the folders of a name say, the innermost first.
fn family_of_folders(name: &str) -> Option<Family> {
    let lower = folded(name);
    let (folders, _) = lower.rsplit_once('/')?;
    folders.rsplit('/').find_map(folder_family)
}

fn is_bstrap(name: &str) -> bool {
    let name = folded(base(name));
    name.starts_with("bstrap.") || ["bstrapx64.efi", "bstrap64.efi", "bstrap32.efi"].contains(&name.as_str())
}

/// True for GSS's own name of an image's folder.
pub fn is_menu_option(name: &str) -> bool {
    let name = folded(name);
    let number = name.strip_prefix("menuoption").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// True for the folder of the PXE server's own boot programs.
pub fn is_bstrap_folder(name: &str) -> bool {
    folded(name) == BSTRAP_FOLDER
}

/// The machines whose iPXE a file switches on.
fn switch_of(name: &str) -> Option<Family> {
    let name = folded(base(name));
    SWITCHES.iter().find(|(_, file)| *file == name).map(|(family, _)| *family)
}

/// Recognises such a folder from what is in it; `None` for any other.
pub fn form(name: &str, walk: &Walk) -> Option<GssForm> {
    let files = &walk.files;
    let of_wimboot = files.iter().any(|file| folded(base(&file.name)).starts_with("wimboot"));
    let has = |test: &dyn Fn(&str) -> bool| files.iter().any(|file| test(&file.name));
    let marked = is_menu_option(name)
        || has(&is_bstrap)
        || has(&|name| switch_of(name).is_some())
        || has(&|name| MARKS.contains(&folded(base(name)).as_str()))
        // DS: NAME/x64/bootmgfw.efi. With a wimboot beside it the same folder is one of ours.
        || !of_wimboot && has(&|name| in_architecture_folder(name) && is_efi_program(name));
    if !marked || is_bstrap_folder(name) {
        return None;
    }
    let mut ipxe: Vec<Program> = files
        .iter()
        .filter_map(|file| Some(Program { family: switch_of(&file.name)?, file: file.name.clone() }))
        .collect();
    ipxe.sort_by_key(|program| (program.family, depth(&program.file), program.file.clone()));
    ipxe.dedup_by_key(|program| program.family);
    let off = Family::ALL.into_iter().filter(|family| !ipxe.iter().any(|program| program.family == *family));
    let native = off.filter_map(|family| native(files, family)).collect();
    Some(GssForm { ipxe, native })
}

fn in_architecture_folder(name: &str) -> bool {
    let lower = folded(name);
    let mut steps = lower.rsplit('/').skip(1);
    steps.next().and_then(folder_family).is_some()
}

fn is_efi_program(name: &str) -> bool {
    EFI_PROGRAMS.contains(&folded(base(name)).as_str())
}

/// The program of a family, and the WIM it ends in.
fn native(files: &[Found], family: Family) -> Option<Native> {
    let list = if family == Family::Bios { BIOS_PROGRAMS } else { EFI_PROGRAMS };
    let rank = |file: &Found| {
        let name = folded(base(&file.name));
        list.iter().position(|known| *known == name)
    };
    let mut programs: Vec<(&Found, usize)> = files
        .iter()
        .filter_map(|file| Some((file, rank(file)?)))
        .filter(|(file, _)| suits(file, family))
        .collect();
    // A BIOS machine of today is a 64-bit one: its folder first.
    let folder = |file: &Found| match (family, family_of_folders(&file.name)) {
        (Family::Bios, Some(Family::Bios)) => 0,
        (Family::Bios, Some(Family::UefiX64)) => 1,
        (Family::Bios, _) => 2,
        (family, Some(of)) if of == family => 0,
        _ => 1,
    };
    programs.sort_by_key(|(file, rank)| (*rank, folder(file), depth(&file.name), file.name.clone()));
    let (program, _) = programs.first()?;
    let last = wim_of(files, program).unwrap_or(program);
    Some(Native { family, program: program.name.clone(), last: last.name.clone() })
}

/// Whether a program is for a family: what its head says of EFI, else what its folder or its name says.
fn suits(file: &Found, family: Family) -> bool {
    let Some(cpu) = family.cpu() else { return true };
    if let Some(built_for) = Sniff::of_file(&file.path).efi {
        return built_for == cpu;
    }
    let by_name = match folded(base(&file.name)) {
        name if name.contains("x64") || name.contains("64.") && !name.contains("aa64") => Some(Cpu::X64),
        name if name.contains("ia32") || name.contains("32.") => Some(Cpu::X86),
        name if name.contains("aa64") => Some(Cpu::Arm64),
        _ => None,
    };
    let by_folder = family_of_folders(&file.name).and_then(Family::cpu);
    by_name.or(by_folder).unwrap_or(Cpu::X64) == cpu
}

/// The WIM that a program's boot store most likely names: the nearest, `boot.wim` before others.
fn wim_of<'f>(files: &'f [Found], program: &Found) -> Option<&'f Found> {
    let folder = parent(&program.name);
    let shared = |name: &str| {
        let steps = |text: &str| text.split('/').map(folded).collect::<Vec<_>>();
        steps(folder).iter().zip(&steps(parent(name))).take_while(|(a, b)| a == b && !a.is_empty()).count()
    };
    let wims = files.iter().filter(|file| folded(&file.name).ends_with(".wim"));
    wims.min_by_key(|file| {
        let named = folded(base(&file.name)) != "boot.wim";
        (usize::MAX - shared(&file.name), named, depth(&file.name), file.name.clone())
    })
}

fn depth(name: &str) -> usize {
    name.matches('/').count()
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The file of an image that a machine means which boots the image's own program: Windows' boot manager asks for
/// `\Boot\BCD` from the root, from the folder of the program it was, in any case and with either slash. Looked for in
/// the program's folder, then in those above it up to the image's.
pub fn file_of_native(catalog: &Catalog, image: &Image, native: &Native, name: &str) -> Option<Arc<Served>> {
    let name = names::normalise(name).ok()?;
    // Windows 7's boot manager knows its store by this name; later ones have it in `Boot`.
    let later = folded(&name).strip_prefix("efi/microsoft/boot/").map(|rest| format!("boot/{rest}"));
    let mut folder = parent(&native.program);
    loop {
        let at = if folder.is_empty() { image.name.clone() } else { format!("{}/{folder}", image.name) };
        for name in std::iter::once(&name).chain(&later) {
            if let Ok(served) = catalog.http_image(&format!("{at}/{name}")) {
                return Some(served);
            }
        }
        if folder.is_empty() {
            return None;
        }
        folder = parent(folder);
    }
}

// The switch

/// What was done with one loader file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Switched {
    /// The machines it is for.
    pub family: Family,
    /// The file below the image's folder.
    pub file: String,
    /// What was done.
    pub done: Deed,
    /// The loader it is a copy of, if it was copied now.
    pub from: Option<String>,
    /// BLAKE3 of its content, in hex.
    pub blake3: Option<String>,
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Deed {
    /// Copied from the loader folders.
    Copied,
    /// One that was set aside came back.
    Restored,
    /// It was there.
    Kept,
    /// Set aside, under a name that nobody can ask for.
    Removed,
}

impl Deed {
    /// The word of lists and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Restored => "restored",
            Self::Kept => "kept",
            Self::Removed => "removed",
        }
    }
}

/// Why an image's loaders cannot be switched.
#[derive(Debug)]
pub enum SwitchError {
    /// No image of this name.
    NoImage(String),
    /// The folder of the PXE server's own boot programs is no image.
    NotAnImage(String),
    /// There is no iPXE to copy, for any machine this image is for.
    NoLoaders,
    /// Somebody is writing into the folder: what is there now is not all of it.
    Writing {
        /// The image.
        image: String,
        /// A loader's file that is not whole yet.
        file: String,
    },
    /// A file could not be copied, renamed or read.
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoImage(name) => {
                write!(f, "there is no image {name:?}; `bootstorm image list` shows the ones there are")
            }
            Self::NotAnImage(name) => {
                write!(f, "{name} holds the PXE server's own boot programs and is no image to switch")
            }
            Self::NoLoaders => f.write_str(
                "the loader folders hold no iPXE to copy: put one there ([loaders] dirs; Debian's package ipxe is \
                 looked for in /usr/lib/ipxe)",
            ),
            Self::Writing { image, file } => write!(
                f,
                "{file} in {image} is still being written: nothing was changed; try again when it has been left alone for \
                 {} s",
                scan::SETTLE_UNTOLD.as_secs()
            ),
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for SwitchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// An image's folder, to be switched.
#[derive(Debug)]
pub struct Switch<'a> {
    folder: PathBuf,
    image: &'a Image,
    loaders: &'a LoaderTable,
}

impl<'a> Switch<'a> {
    /// For the image of this name, whose folder is one of `roots`.
    ///
    /// # Errors
    /// [`SwitchError::NoImage`], [`SwitchError::NotAnImage`]; [`SwitchError::Writing`] while loaders in the folder are not
    /// in the catalogue yet, which would else be passed over.
    pub fn of(catalog: &'a Catalog, roots: &[&Path], name: &str) -> Result<Self, SwitchError> {
        let image = catalog.image(name).ok_or_else(|| SwitchError::NoImage(name.to_owned()))?;
        if is_bstrap_folder(name) {
            return Err(SwitchError::NotAnImage(name.to_owned()));
        }
        let folder = roots.iter().map(|root| root.join(name)).find(|folder| folder.is_dir());
        let folder = folder.ok_or_else(|| SwitchError::NoImage(name.to_owned()))?;
        let Walk { files, settling, .. } = scan::walk_version(&folder);
        let mut on_disk = files.into_iter().map(|found| found.name).chain(settling);
        let known = |name: &str| image.files.iter().any(|file| file.name == *name);
        if let Some(file) = on_disk.find(|name| switch_of(name).is_some() && !known(name)) {
            return Err(SwitchError::Writing { image: name.to_owned(), file });
        }
        Ok(Self { folder, image, loaders: catalog.loaders() })
    }

    /// Puts the iPXE loaders into the folder: those set aside come back, missing ones are copied from the loader
    /// folders. Each file appears whole, under its name, or not at all.
    ///
    /// # Errors
    /// [`SwitchError::NoLoaders`] when that would leave the folder without any; [`SwitchError::Io`].
    pub fn enable(&self) -> Result<Vec<Switched>, SwitchError> {
        let mut done = Vec::new();
        for (family, file) in SWITCHES {
            if let Some(present) = self.image.files.iter().find(|f| switch_of(&f.name) == Some(family)) {
                let blake3 = Some(self.hash(&present.name)?);
                let file = present.name.clone();
                done.push(Switched { family, file, done: Deed::Kept, from: None, blake3 });
                continue;
            }
            if !self.is_for(family) {
                continue;
            }
            let folder = self.place(family);
            let name = if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
            let aside = self.aside(family);
            if let Some(name) = aside {
                let (from, to) = (self.folder.join(off_name(&name)), self.folder.join(&name));
                fs::rename(&from, &to).map_err(|error| SwitchError::Io { path: to.clone(), error })?;
                sync_folder(&to);
                let blake3 = Some(self.hash(&name)?);
                done.push(Switched { family, file: name, done: Deed::Restored, from: None, blake3 });
            } else if let Some(loader) = self.loaders.find(file).or_else(|| self.loaders.for_family(family)) {
                let blake3 = self.copy(loader.served.path(), &name)?;
                let from = Some(loader.served.name.clone());
                done.push(Switched { family, file: name, done: Deed::Copied, from, blake3: Some(blake3) });
            }
        }
        if done.is_empty() { Err(SwitchError::NoLoaders) } else { Ok(done) }
    }

    /// Sets the folder's iPXE loaders aside, under names that nobody can ask for. Nothing is lost: they may be the
    /// vendor's own.
    ///
    /// # Errors
    /// [`SwitchError::Io`].
    pub fn disable(&self) -> Result<Vec<Switched>, SwitchError> {
        let mut done = Vec::new();
        for file in &self.image.files {
            let Some(family) = switch_of(&file.name) else { continue };
            let blake3 = Some(self.hash(&file.name)?);
            let (from, to) = (self.folder.join(&file.name), self.folder.join(off_name(&file.name)));
            fs::rename(&from, &to).map_err(|error| SwitchError::Io { path: from, error })?;
            sync_folder(&to);
            let file = file.name.clone();
            done.push(Switched { family, file, done: Deed::Removed, from: None, blake3 });
        }
        Ok(done)
    }

    /// Whether the image is for machines of this family at all.
    fn is_for(&self, family: Family) -> bool {
        let has_folder = self.image.files.iter().any(|file| family_of_folders(&file.name) == Some(family));
        match (family, self.image.cpu) {
            (Family::Bios, cpu) => !matches!(cpu, Some(Cpu::Arm32 | Cpu::Arm64)),
            _ if has_folder => true,
            (family, Some(cpu)) => family.cpu() == Some(cpu),
            (family, None) => family == Family::UefiX64,
        }
    }

    /// The folder a loader belongs into, below the image's: beside the program it stands in for, else the one of its
    /// architecture, else the top.
    fn place(&self, family: Family) -> &str {
        let files = &self.image.files;
        let native = self.image.native_for(family).map(|native| parent(&native.program));
        let own = || {
            let found = files.iter().find(|file| family_of_folders(&file.name) == Some(family))?;
            let depth =
                found.name.split('/').position(|step| folder_family(&folded(step)) == Some(family))?;
            let end = found.name.match_indices('/').nth(depth).map(|(at, _)| at)?;
            found.name.get(..end)
        };
        native.or_else(own).unwrap_or("")
    }

    /// A loader of this family that was set aside: where it was.
    fn aside(&self, family: Family) -> Option<String> {
        let (_, file) = SWITCHES.iter().find(|(of, _)| *of == family)?;
        let mut folders: Vec<&str> = self.image.files.iter().map(|file| parent(&file.name)).collect();
        folders.push("");
        folders.sort_unstable();
        folders.dedup();
        let mut found = Vec::new();
        for folder in folders {
            for entry in fs::read_dir(self.folder.join(folder)).ok()?.flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let was = name.strip_prefix('.').and_then(|name| name.strip_suffix(OFF_SUFFIX));
                if let Some(was) = was.filter(|was| folded(was) == *file) {
                    found.push(if folder.is_empty() { was.to_owned() } else { format!("{folder}/{was}") });
                }
            }
        }
        found.sort();
        found.into_iter().next()
    }

    /// Copies a loader to a name of the folder; the hash of what was written.
    fn copy(&self, from: &Path, name: &str) -> Result<String, SwitchError> {
        let to = self.folder.join(name);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| SwitchError::Io { path, error }
        };
        let bytes = fs::read(from).map_err(failed(from))?;
        publish(&to, &bytes).map_err(failed(&to))?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }

    fn hash(&self, name: &str) -> Result<String, SwitchError> {
        let path = self.folder.join(name);
        let bytes = fs::read(&path).map_err(|error| SwitchError::Io { path, error })?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }
}

/// Writes a file so that it appears whole or not at all, even if the power goes.
fn publish(to: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = to.file_name().and_then(|name| name.to_str()).unwrap_or("loader");
    let staged = to.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = make::written(&staged, bytes).and_then(|()| fs::rename(&staged, to));
    if written.is_err() {
        // What is left of it is of no use to anybody.
        let _ = fs::remove_file(&staged);
    }
    written?;
    sync_folder(to);
    Ok(())
}

/// Makes a rename last. A file system that cannot is no reason to fail: the rename itself has happened.
fn sync_folder(path: &Path) {
    if let Some(folder) = path.parent()
        && let Ok(folder) = fs::File::open(folder)
    {
        let _ = folder.sync_all();
    }
}

/// The name of a loader that is off, by the one it has while it is.
pub(crate) fn set_aside(off: &str) -> Option<String> {
    let (folder, file) = match off.rsplit_once('/') {
        Some((folder, file)) => (format!("{folder}/"), file),
        None => (String::new(), off),
    };
    let was = file.strip_prefix('.')?.strip_suffix(OFF_SUFFIX).filter(|was| !was.is_empty())?;
    Some(folder + was)
}

/// The name a loader has while it is off.
fn off_name(name: &str) -> String {
    match name.rsplit_once('/') {
        Some((folder, file)) => format!("{folder}/.{file}{OFF_SUFFIX}"),
        None => format!(".{name}{OFF_SUFFIX}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::library::Library;
    use crate::files::library::test_site::{SMALL_WIM, Site};
    use crate::files::record::Record;
    use crate::files::sniff::samples;
    use crate::jobs::gss::Way;

    /// A tree of both products' shapes, without any iPXE in it.
    fn site() -> Site {
        let site = Site::new();
        site.write("loaders/undionly.kpxe", b"our bios ipxe");
        site.write("loaders/snponly.efi", &samples::efi(0x8664));
        site.write("loaders/wimboot", &samples::bzimage());
        for (name, bytes) in [
            ("BStrap/X86pc/BStrap.0", b"bstrap".as_slice()),
            ("MenuOption128/X64/bstrap.0", b"bstrap"),
            ("MenuOption128/X64/pxeboot.n12", b"pxeboot"),
            ("MenuOption128/X64/bootmgr.exe", b"bootmgr"),
            ("MenuOption128/X64/bootmgfw.efi", &samples::efi(0x8664)),
            ("MenuOption128/X64/Boot/BCD", b"bcd"),
            ("MenuOption128/X64/Boot/boot.sdi", b"sdi"),
            ("MenuOption128/X64/sources/boot.wim", SMALL_WIM),
            ("WinPE 10/x64/bootmgfw.efi", &samples::efi(0x8664)),
            ("WinPE 10/x64/boot.wim", SMALL_WIM),
            ("WinPE 10/x86/bootmgfw.efi", &samples::efi(0x014c)),
            ("WinPE 10/x86/boot.wim", SMALL_WIM),
        ] {
            site.write(&format!("images/{name}"), bytes);
        }
        site
    }

    fn ways(image: &Image) -> Vec<&'static str> {
        Family::ALL.iter().map(|family| image.way(*family).word()).collect()
    }

    #[test]
    fn folders_of_both_products_boot_by_their_own_programs_while_ipxe_is_off() {
        let site = site();
        let gss = site.image("MenuOption128");
        assert_eq!(ways(&gss), ["native", "native", "none", "none"], "{gss:?}");
        let bios = gss.native_for(Family::Bios).unwrap();
        assert_eq!(bios.program, "X64/pxeboot.n12");
        assert_eq!(bios.last, "X64/sources/boot.wim");
        assert_eq!(gss.native_for(Family::UefiX64).unwrap().program, "X64/bootmgfw.efi");
        let ds = site.image("WinPE 10");
        assert_eq!(ways(&ds), ["none", "native", "native", "none"], "{ds:?}");
        assert_eq!(ds.native_for(Family::UefiIa32).unwrap().program, "x86/bootmgfw.efi");
        assert_eq!(ds.native_for(Family::UefiIa32).unwrap().last, "x86/boot.wim");
        let reason = site.image("BStrap").unbootable.unwrap();
        assert!(reason.contains("boot programs"), "{reason}");
    }

    #[test]
    fn a_loader_file_switches_its_own_machines_alone() {
        let site = site();
        site.write("images/MenuOption128/X64/IPXE64.EFI", b"the vendor's");
        let image = site.image("MenuOption128");
        assert_eq!(ways(&image), ["native", "ipxe", "none", "none"], "{image:?}");
        site.write("images/MenuOption128/zipxe.0", b"the vendor's");
        assert_eq!(ways(&site.image("MenuOption128"))[0], "ipxe");
    }

    #[test]
    fn a_loader_that_is_still_being_written_is_not_passed_over() {
        let site = site();
        let library = site.library();
        site.write("images/MenuOption128/X64/ipxe64.efi", b"the vendor's");
        library.rescan().unwrap();
        let root = site.path().join("images");
        let catalog = library.snapshot();
        let refused = Switch::of(&catalog, &[&root], "MenuOption128").unwrap_err();
        assert!(
            refused.to_string().starts_with("X64/ipxe64.efi in MenuOption128 is still being written"),
            "{refused}"
        );
        // A record vouches for it: what our own commands put there is whole.
        Record::of_folder(&root.join("MenuOption128"), "").write(&root.join("MenuOption128")).unwrap();
        library.rescan().unwrap();
        let catalog = library.snapshot();
        let done = Switch::of(&catalog, &[&root], "MenuOption128").unwrap().disable().unwrap();
        assert_eq!(done.len(), 1, "{done:?}");
    }

    #[test]
    fn folders_that_are_not_laid_out_so_have_no_switch() {
        let site = Site::new();
        site.write("loaders/wimboot", &samples::bzimage());
        site.write("images/media/sources/boot.wim", SMALL_WIM);
        site.write("images/media/bootmgr.efi", &samples::efi(0x8664));
        site.write("images/media/efi/boot/bootx64.efi", &samples::efi(0x8664));
        site.write("images/ours/x64/boot.wim", SMALL_WIM);
        site.write("images/ours/x64/bootmgfw.efi", &samples::efi(0x8664));
        site.write("images/ours/wimboot", &samples::bzimage());
        for name in ["media", "ours"] {
            assert_eq!(site.image(name).gss, None, "{name}");
            assert_eq!(site.image(name).way(Family::UefiX64), Way::Ipxe);
        }
    }

    #[test]
    fn an_image_whose_ipxe_is_off_and_that_brings_no_program_says_what_to_do() {
        let site = Site::new();
        site.write("images/MenuOption7/X64/boot.wim", SMALL_WIM);
        let reason = site.image("MenuOption7").unbootable.unwrap();
        assert!(reason.contains("image loader enable MenuOption7"), "{reason}");
    }

    fn switched(done: &[Switched]) -> Vec<(&str, Deed)> {
        done.iter().map(|one| (one.file.as_str(), one.done)).collect()
    }

    fn switch<T>(site: &Site, what: impl Fn(&Switch<'_>) -> T) -> T {
        let library: Library = site.library();
        let images = site.path().join("images");
        let catalog = library.snapshot();
        what(&Switch::of(&catalog, &[&images], "MenuOption128").unwrap())
    }

    #[test]
    fn enabling_copies_and_disabling_sets_aside_so_that_nothing_is_lost() {
        let site = site();
        let done = switch(&site, |switch| switch.enable().unwrap());
        assert_eq!(switched(&done), [("X64/zipxe.0", Deed::Copied), ("X64/ipxe64.efi", Deed::Copied)]);
        assert_eq!(done[0].from.as_deref(), Some("undionly.kpxe"));
        assert_eq!(
            done[0].blake3.as_deref(),
            Some(blake3::hash(b"our bios ipxe").to_hex().as_str()),
            "what was written is what is reported"
        );
        assert_eq!(ways(&site.image("MenuOption128"))[..2], ["ipxe", "ipxe"]);
        // The vendor's own in place of ours.
        site.write("images/MenuOption128/X64/ipxe64.efi", b"the vendor's");
        let done = switch(&site, |switch| switch.disable().unwrap());
        assert_eq!(done.len(), 2);
        assert_eq!(ways(&site.image("MenuOption128"))[..2], ["native", "native"]);
        assert!(!site.image("MenuOption128").files.iter().any(|file| file.name.contains("ipxe")));
        let done = switch(&site, |switch| switch.enable().unwrap());
        assert_eq!(switched(&done), [("X64/zipxe.0", Deed::Restored), ("X64/ipxe64.efi", Deed::Restored)]);
        let path = site.path().join("images/MenuOption128/X64/ipxe64.efi");
        assert_eq!(fs::read(path).unwrap(), b"the vendor's");
        let again = switch(&site, |switch| switch.enable().unwrap());
        assert!(again.iter().all(|one| one.done == Deed::Kept));
    }

    #[test]
    fn without_any_ipxe_to_copy_nothing_is_switched() {
        let site = site();
        for name in ["undionly.kpxe", "snponly.efi"] {
            fs::remove_file(site.path().join("loaders").join(name)).unwrap();
        }
        assert!(matches!(switch(&site, |switch| switch.enable()), Err(SwitchError::NoLoaders)));
    }

    #[test]
    fn the_boot_managers_names_are_found_from_the_programs_folder_upwards() {
        let site = site();
        let library = site.library();
        let catalog = library.snapshot();
        let image = catalog.image("MenuOption128").unwrap();
        let native = image.native_for(Family::Bios).unwrap();
        let found =
            |name: &str| file_of_native(&catalog, image, native, name).map(|served| served.name.clone());
        for (asked, expected) in [
            ("\\Boot\\BCD", Some("X64/Boot/BCD")),
            ("/boot\\bcd", Some("X64/Boot/BCD")),
            ("bootmgr.exe", Some("X64/bootmgr.exe")),
            ("\\EFI\\Microsoft\\Boot\\BCD", Some("X64/Boot/BCD")),
            ("\\sources\\BOOT.WIM", Some("X64/sources/boot.wim")),
            ("X64/Boot/boot.sdi", Some("X64/Boot/boot.sdi")),
            ("..\\..\\secret", None),
            ("Boot/../../BStrap/X86pc/BStrap.0", None),
            ("\\Boot\\Fonts\\segmono_boot.ttf", None),
            ("", None),
        ] {
            let expected = expected.map(|name| format!("MenuOption128/{name}"));
            assert_eq!(found(asked), expected, "{asked}");
        }
    }
}

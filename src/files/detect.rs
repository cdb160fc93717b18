//! What an image folder boots, from its `image.toml` or from its files.

use std::fs;
use std::path::Path;

use crate::files::loaders::{self, LoaderTable};
use crate::files::manifest::{BadManifest, MANIFEST_NAME, Manifest};
use crate::files::names::{self, base, folded};
use crate::files::scan::{Found, Walk};
use crate::files::sniff::{self, Sniff};
use crate::files::tree::{self, Tree};
use crate::files::wim::{Finding, Severity};
use crate::files::{gss, intake};
use crate::jobs::answers::{self, Answer};
use crate::jobs::image::{Access, BootFiles, Image, ImageFile, ImageKind, WimbootAt};
use crate::jobs::script;
use crate::jobs::template::Template;
use crate::wire::arch::{Cpu, Platform};

/// Longest name wimboot can take; a longer one stops the boot on EFI.
pub const WIMBOOT_NAME_LEN_MAX: usize = 31;
/// Most files wimboot takes beside itself.
pub const WIMBOOT_FILES_MAX: usize = 63;
/// The script with variables.
pub const TEMPLATE_NAME: &str = "boot.ipxe.tmpl";
/// Largest `image.toml` or `cmdline` read.
const TEXT_LEN_MAX: u64 = 256 * 1024;
/// Most files of a folder opened to see what they are.
const SNIFFED_MAX: usize = 64;

/// Recognises the folder at `path`. Never fails: a folder that cannot boot is an image with the reason in it.
pub fn detect(name: &str, path: &Path, walk: &Walk, loaders: &LoaderTable) -> Image {
    let mut image = Image {
        name: name.to_owned(),
        title: name.to_owned(),
        kind: None,
        cpu: None,
        platform: None,
        args: String::new(),
        index: None,
        destructive: false,
        access: Access::Open,
        boot: None,
        unbootable: None,
        warnings: walk.notes.clone(),
        files: walk.files.iter().map(|f| ImageFile { name: f.name.clone(), len: f.identity.len }).collect(),
        group: None,
        key: None,
        loader: None,
        template: None,
        answers: Vec::new(),
        url_args: Vec::new(),
        gss: None,
    };
    let manifest = match read_manifest(path) {
        Ok(manifest) => manifest,
        Err(bad) => {
            image.access = bad.access;
            image.destructive = bad.destructive;
            image.unbootable = Some(bad.reason);
            return image;
        }
    };
    image.title = manifest.title.clone().unwrap_or(image.title);
    image.args = manifest.args.clone().unwrap_or_default();
    image.index = manifest.index;
    image.cpu = manifest.arch;
    image.destructive = manifest.destructive;
    image.access = manifest.access;
    image.kind = manifest.kind;
    image.group = manifest.group.clone();
    image.key = manifest.key;
    image.loader = manifest.loader.clone();
    if let Some(loader) = image.loader.as_deref().filter(|loader| loaders.find(loader).is_none()) {
        image.warnings.push(format!(
            "its loader {loader} is not in the loader folders: its machines get what everybody gets"
        ));
    }

    image.gss = gss::form(name, walk);
    let folder = Folder { path, walk, loaders, manifest: &manifest };
    let answers = folder.answers();
    let boot = folder.recognise(&mut image);
    let boot = folder.switched(boot, &mut image);
    match boot.and_then(|boot| answers.map(|answers| (boot, answers))) {
        Ok((boot, answers)) => {
            image.boot = Some(boot);
            image.answers = answers;
        }
        Err(reason) => image.unbootable = Some(reason),
    }
    image
}

fn read_manifest(path: &Path) -> Result<Manifest, BadManifest> {
    match read_text(&path.join(MANIFEST_NAME)) {
        Ok(Some(text)) => Manifest::parse(&text),
        Ok(None) => Ok(Manifest::default()),
        // One that cannot be read may have closed the payload or called the image destructive.
        Err(why) => Err(BadManifest {
            reason: format!("{MANIFEST_NAME}: {why}"),
            access: Access::Boot,
            destructive: true,
        }),
    }
}

/// A small text file beside the payload; `None` when there is none.
fn read_text(path: &Path) -> Result<Option<String>, String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
        Ok(meta) if !meta.is_file() => Err("not a file".to_owned()),
        Ok(meta) if meta.len() > TEXT_LEN_MAX => Err(format!("longer than {TEXT_LEN_MAX} bytes")),
        Ok(_) => fs::read_to_string(path).map(Some).map_err(|error| error.to_string()),
    }
}

struct Folder<'a> {
    path: &'a Path,
    walk: &'a Walk,
    loaders: &'a LoaderTable,
    manifest: &'a Manifest,
}

type Recognised = Result<BootFiles, String>;

impl Folder<'_> {
    fn recognise(&self, image: &mut Image) -> Recognised {
        let named = self.named_files()?;
        if let Some(boot) = self.template(image)? {
            image.kind = Some(ImageKind::Script);
            return Ok(boot);
        }
        let kind = match self.manifest.kind {
            Some(kind) => kind,
            None => self.kind(&named).ok_or_else(|| self.nothing_here())?,
        };
        image.kind = Some(kind);
        match kind {
            ImageKind::Winpe => self.winpe(&named, image),
            ImageKind::Linux => self.linux(&named, image),
            ImageKind::Iso => self.iso(&named),
            ImageKind::Efi => self.efi(&named, image),
            ImageKind::Script => self.script(&named),
        }
    }

    /// What a folder with a switch boots: by iPXE what was recognised, else its own programs.
    fn switched(&self, boot: Recognised, image: &mut Image) -> Recognised {
        if gss::is_bstrap_folder(&image.name) {
            return Err("it holds the PXE server's own boot programs and is no image".to_owned());
        }
        let Some(gss) = &image.gss else { return boot };
        if gss.native.is_empty() && !gss.is_on() {
            let off = format!(
                "its iPXE is off and it brings no boot program of its own: `bootstorm image loader enable {}` switches \
                 iPXE on",
                image.name
            );
            return Err(match boot {
                Ok(_) => off,
                Err(reason) if image.kind.is_none() || !self.walk.settling.is_empty() => reason,
                Err(reason) => format!("{off}, but then: {reason}"),
            });
        }
        if !gss.native.is_empty() && image.access == Access::Boot {
            image.warnings.push(
                "access = \"boot\": its own boot programs go by TFTP, where no machine can show a token, so they \
                 are not given"
                    .to_owned(),
            );
        }
        match boot {
            Ok(boot) if gss.is_on() => Ok(boot),
            Ok(_) => Ok(BootFiles::Native),
            Err(reason) if gss.native.is_empty() => Err(reason),
            Err(reason) => {
                if gss.is_on() {
                    image.warnings.push(format!("by iPXE it cannot boot: {reason}"));
                }
                Ok(BootFiles::Native)
            }
        }
    }

    /// The files `image.toml` names, found; every one has to be there.
    fn named_files(&self) -> Result<Vec<&Found>, String> {
        let names = self.manifest.files.iter().flatten();
        names
            .map(|name| {
                let normal = names::normalise(name);
                let found = normal.ok().and_then(|normal| self.find(&normal));
                found.ok_or_else(|| self.missing(name, "named by image.toml"))
            })
            .collect()
    }

    fn missing(&self, name: &str, why: &str) -> String {
        let copying = self.walk.settling.iter().any(|settling| folded(settling) == folded(name));
        let what = if copying { "is still being written" } else { "is not in the folder" };
        format!("{name}, {why}, {what}")
    }

    fn find(&self, name: &str) -> Option<&Found> {
        let files = &self.walk.files;
        let exact = files.iter().find(|file| file.name == name);
        exact.or_else(|| files.iter().find(|file| folded(&file.name) == folded(name)))
    }

    /// Why nothing was recognised.
    fn nothing_here(&self) -> String {
        if let Some(name) = self.walk.settling.first() {
            return format!("{name} is still being written");
        }
        let ends = |end: &str| self.walk.files.iter().find(|file| folded(&file.name).ends_with(end));
        if self.walk.files.is_empty() {
            match self.walk.notes.first() {
                Some(note) => note.clone(),
                None => "the folder holds no files to boot".to_owned(),
            }
        } else if let Some(part) = ends(".swm") {
            format!("{} is a part of a split WIM, which wimboot cannot read: join the parts first", part.name)
        } else if let Some(esd) = ends(".esd") {
            format!("{} is a solid (LZMS) WIM, which wimboot cannot read: export it with LZX first", esd.name)
        } else {
            "nothing bootable: no WIM, Linux kernel, ISO, EFI program or iPXE script found".to_owned()
        }
    }

    fn kind(&self, named: &[&Found]) -> Option<ImageKind> {
        if named.is_empty() {
            if let Some(tree) = self.tree() {
                return Some(if tree.is_efi { ImageKind::Efi } else { ImageKind::Linux });
            }
            let kinds =
                [ImageKind::Winpe, ImageKind::Linux, ImageKind::Iso, ImageKind::Efi, ImageKind::Script];
            return kinds.into_iter().find(|kind| match kind {
                ImageKind::Winpe => !self.wims().is_empty(),
                ImageKind::Linux => !self.kernels().is_empty(),
                ImageKind::Iso => !self.isos().is_empty(),
                ImageKind::Efi => !self.programs().is_empty(),
                ImageKind::Script => !self.scripts().is_empty(),
            });
        }
        if named.iter().any(|file| names::is_wim(&file.name)) {
            return Some(ImageKind::Winpe);
        }
        let main = named.first()?;
        let sniff = Sniff::of_file(&main.path);
        if is_kernel(main, sniff) {
            Some(ImageKind::Linux)
        } else if sniff::is_iso(&main.path) {
            Some(ImageKind::Iso)
        } else if sniff.efi.is_some() {
            Some(ImageKind::Efi)
        } else {
            sniff.script.then_some(ImageKind::Script)
        }
    }

    /// The distribution's tree that the folder is, if it is one.
    fn tree(&self) -> Option<Tree> {
        let names: Vec<&str> = self.walk.files.iter().map(|file| file.name.as_str()).collect();
        tree::of(&names)
    }

    // WinPE

    fn wims(&self) -> Vec<&Found> {
        let mut wims: Vec<_> = self.walk.files.iter().filter(|file| names::is_wim(&file.name)).collect();
        wims.sort_by_key(|file| {
            let name = folded(&file.name);
            let place = match (name.as_str(), base(&name)) {
                ("boot.wim", _) => 0,
                ("sources/boot.wim", _) => 1,
                (_, "boot.wim") => 2,
                (_, "install.wim") => 4,
                _ => 3,
            };
            (place, depth(&name), name)
        });
        wims
    }

    fn winpe(&self, named: &[&Found], image: &mut Image) -> Recognised {
        let candidates = if named.is_empty() {
            self.wims()
        } else {
            named.iter().copied().filter(|file| names::is_wim(&file.name)).collect()
        };
        let Some(wim) = candidates.first() else {
            return Err(match self.walk.settling.iter().find(|name| names::is_wim(name)) {
                Some(name) => format!("{name} is still being written"),
                None => "no WIM in the folder".to_owned(),
            });
        };
        if candidates.len() > 1 {
            let note = format!(
                "{} WIMs: {} is booted (name another in image.toml, files)",
                candidates.len(),
                wim.name
            );
            image.warnings.push(note);
        }
        self.look_into_wim(wim, image)?;
        for arg in image.args.split_whitespace() {
            if !wimboot_knows(arg) {
                image.warnings.push(format!("wimboot stops at the argument {arg:?}, which it does not know"));
            }
        }
        let extra = self.wimboot_files(named, wim, image)?;
        Ok(BootFiles::Winpe { wimboot: self.wimboot(image.cpu)?, wim: wim.name.clone(), extra })
    }

    /// Takes over what the WIM says of itself; an error when it cannot boot.
    fn look_into_wim(&self, found: &Found, image: &mut Image) -> Result<(), String> {
        let of_wim = |what: &dyn std::fmt::Display| format!("{}: {what}", found.name);
        let report = match self.walk.wims.get(&found.name) {
            Some(look) => look.clone().map_err(|error| of_wim(&error))?,
            None => return Err(of_wim(&"one WIM too many to look into")),
        };
        if let Some(finding) = report.worst(Severity::NotBootable) {
            return Err(of_wim(finding));
        }
        let Some(info) = &report.info else { return Err(of_wim(&"no header")) };
        let count = info.header.image_count;
        if let Some(index) = image.index.filter(|index| *index > count) {
            return Err(of_wim(&format!(
                "image.toml asks for index {index}, but it has {}",
                intake::images(count)
            )));
        }
        for finding in report.warnings() {
            match finding {
                Finding::NoBootIndex if image.index.is_some() => {}
                // With one image there is nothing to choose, so wimboot is told.
                Finding::NoBootIndex if count == 1 => image.index = Some(1),
                Finding::NoBootIndex => {
                    return Err(of_wim(&"no image is marked bootable: say which in image.toml, index"));
                }
                _ => image.warnings.push(of_wim(finding)),
            }
        }
        if let (Some(said), Some(seen)) = (image.cpu, info.cpu(image.index))
            && said != seen
        {
            let note =
                of_wim(&format!("built for {}, and image.toml says {}", cpu_name(seen), cpu_name(said)));
            image.warnings.push(note);
        }
        image.cpu = image.cpu.or(info.cpu(image.index));
        if let (None, Some(inside)) = (&self.manifest.title, info.boot_image(image.index)) {
            let name = inside.name.clone().filter(|name| *name != image.name);
            let version = inside.windows.as_ref().and_then(|windows| windows.version);
            let version = version.map(|(major, minor, build)| format!("{major}.{minor}.{build}"));
            // Said once: most names of boot images have the processor in them.
            let said = |cpu: &&str| name.as_ref().is_some_and(|name| folded(name).contains(cpu));
            let cpu = inside.windows.as_ref().and_then(|windows| windows.cpu()).map(cpu_name);
            let cpu = cpu.filter(|cpu| !said(cpu)).map(str::to_owned);
            let told: Vec<String> = [name, version, cpu].into_iter().flatten().collect();
            if !told.is_empty() {
                image.title = format!("{} ({})", image.name, told.join(", "));
            }
        }
        Ok(())
    }

    fn wimboot(&self, cpu: Option<Cpu>) -> Result<WimbootAt, String> {
        let mut other = false;
        for name in self.loaders.preferences().wimboot_names(cpu) {
            if let Some(file) = self.find(&name) {
                if loaders::wimboot_suits(Sniff::of_file(&file.path), cpu) {
                    return Ok(WimbootAt::Image(file.name.clone()));
                }
                other = true;
            }
        }
        if let Some(loader) = self.loaders.wimboot(cpu) {
            return Ok(WimbootAt::Loader(loader.served.name.clone()));
        }
        let names = self.loaders.preferences().wimboot_names(cpu);
        other |= names.iter().any(|name| self.loaders.find(name).is_some());
        Err(if other {
            "wimboot is there, but built for another processor than the WIM".to_owned()
        } else {
            format!(
                "no wimboot in the image's folder or the loader folders (looked for {})",
                names.join(", ")
            )
        })
    }

    /// Files that go with the WIM: those named, or those wimboot and Windows know by name.
    fn wimboot_files(&self, named: &[&Found], wim: &Found, image: &mut Image) -> Result<Vec<String>, String> {
        let wimboot = self.loaders.preferences().wimboot_names(image.cpu);
        let is_wimboot = |file: &Found| wimboot.iter().any(|name| folded(name) == folded(base(&file.name)));
        let mut extra: Vec<&Found> = Vec::new();
        let mut files: Vec<&Found> = if named.is_empty() {
            self.walk.files.iter().filter(|file| self.goes_with_wim(file, wim)).collect()
        } else {
            named.iter().copied().filter(|file| !names::is_wim(&file.name) && !is_wimboot(file)).collect()
        };
        if named.is_empty() {
            // Of two files with one name the one nearer to the top counts.
            files.sort_by_key(|file| (depth(&file.name), file.name.clone()));
        }
        for file in files {
            let name = base(&file.name);
            let twin = extra.iter().find(|other| folded(base(&other.name)) == folded(name));
            if name.len() > WIMBOOT_NAME_LEN_MAX {
                let reason =
                    format!("{name}: wimboot takes names of at most {WIMBOOT_NAME_LEN_MAX} characters");
                if !named.is_empty() {
                    return Err(reason);
                }
                image.warnings.push(format!("{reason}; it is left out"));
            } else if let Some(twin) = twin {
                let note = format!("{} is left out: {} has the same name for wimboot", file.name, twin.name);
                image.warnings.push(note);
            } else {
                extra.push(file);
            }
        }
        if extra.len() >= WIMBOOT_FILES_MAX {
            return Err(format!(
                "{} files, and wimboot takes {WIMBOOT_FILES_MAX} with the WIM",
                extra.len() + 1
            ));
        }
        Ok(extra.into_iter().map(|file| file.name.clone()).collect())
    }

    fn goes_with_wim(&self, file: &Found, wim: &Found) -> bool {
        let name = folded(&file.name);
        let (folder, name) = name.rsplit_once('/').unwrap_or(("", &name));
        let beside = folder.is_empty() || folder == "boot" || folder == folded(parent(&wim.name));
        beside
            && (matches!(
                name,
                "bcd"
                    | "boot.sdi"
                    | "boot.stl"
                    | "bootmgr"
                    | "bootmgr.exe"
                    | "bootmgfw.efi"
                    | "bootmgfw_ex.efi"
                    | "bootx64.efi"
                    | "bootia32.efi"
                    | "bootaa64.efi"
                    | "startnet.cmd"
                    | "winpeshl.ini"
                    | "unattend.xml"
                    | "autounattend.xml"
            ) || name.ends_with("_boot.ttf")
                || name.ends_with("_slboot.ttf"))
    }

    // Linux

    /// Files that may be opened to see what they are: the topmost first, loaders and WIM parts not among them.
    fn sniffable(&self) -> impl Iterator<Item = &Found> {
        let mut files: Vec<_> = self.walk.files.iter().filter(|file| !is_loader_name(&file.name)).collect();
        files.sort_by_key(|file| (depth(&file.name), file.name.clone()));
        files.into_iter().take(SNIFFED_MAX)
    }

    fn kernels(&self) -> Vec<&Found> {
        let mut kernels: Vec<_> =
            self.sniffable().filter(|file| is_kernel(file, Sniff::of_file(&file.path))).collect();
        kernels.sort_by_key(|file| !is_kernel_name(&file.name));
        kernels
    }

    fn linux(&self, named: &[&Found], image: &mut Image) -> Recognised {
        let tree = self.tree().filter(|tree| named.is_empty() && !tree.is_efi);
        let of_tree = tree.as_ref().and_then(|tree| {
            let initrds: Option<Vec<&Found>> = tree.initrds.iter().map(|name| self.find(name)).collect();
            Some((self.find(&tree.program)?, initrds?))
        });
        let (kernel, initrds) = match named {
            [kernel, initrds @ ..] => (*kernel, initrds.to_vec()),
            [] if let Some(of_tree) = of_tree => of_tree,
            [] => {
                let kernels = self.kernels();
                let Some(kernel) = kernels.first() else {
                    return Err("no Linux kernel in the folder".to_owned());
                };
                if kernels.len() > 1 {
                    let note = format!(
                        "{} kernels: {} is booted (name another in image.toml, files)",
                        kernels.len(),
                        kernel.name
                    );
                    image.warnings.push(note);
                }
                (*kernel, self.initrds(kernel))
            }
        };
        if image.args.is_empty() {
            match read_text(&self.path.join("cmdline")) {
                // One line for the kernel, however many the file has.
                Ok(text) => {
                    let words: Vec<_> = text.iter().flat_map(|text| text.split_whitespace()).collect();
                    image.args = words.join(" ");
                }
                Err(why) => return Err(format!("cmdline: {why}")),
            }
        }
        if let Some(tree) = &tree {
            self.told(tree, image);
        }
        let sniff = Sniff::of_file(&kernel.path);
        image.cpu = image.cpu.or(sniff.bzimage).or(sniff.kernel).or(sniff.efi);
        if sniff.bzimage.is_none() && (sniff.kernel.is_some() || sniff.efi.is_some()) {
            image.platform = Some(Platform::Efi);
        }
        let initrds = initrds.into_iter().map(|file| file.name.clone()).collect();
        Ok(BootFiles::Linux { kernel: kernel.name.clone(), initrds })
    }

    /// Takes over the arguments that a tree needs, and what it lacks.
    fn told(&self, tree: &Tree, image: &mut Image) {
        (image.args, image.url_args) = tree::arguments(tree, &image.args);
        image.warnings.extend(tree.warnings.iter().cloned());
        if self.manifest.title.is_none() {
            image.title = format!("{} ({})", image.name, tree.what);
        }
    }

    /// Initrds at the top or beside the kernel, CPU microcode first as the kernel wants it.
    fn initrds(&self, kernel: &Found) -> Vec<&Found> {
        let mut initrds: Vec<_> = self
            .walk
            .files
            .iter()
            .filter(|file| {
                let folder = parent(&file.name);
                let name = folded(base(&file.name));
                let known =
                    name.starts_with("initrd") || name.starts_with("initramfs") || is_microcode(&name);
                known && (folder.is_empty() || folder == parent(&kernel.name))
            })
            .collect();
        initrds.sort_by_key(|file| {
            (!is_microcode(&folded(base(&file.name))), depth(&file.name), file.name.clone())
        });
        initrds
    }

    // ISO, EFI, script

    fn isos(&self) -> Vec<&Found> {
        self.sniffable().filter(|file| sniff::is_iso(&file.path)).collect()
    }

    fn iso(&self, named: &[&Found]) -> Recognised {
        let iso = self.only(named, self.isos(), "ISO")?;
        if !sniff::is_iso(&iso.path) {
            return Err(format!("{} is no ISO 9660 image", iso.name));
        }
        Ok(BootFiles::Iso { iso: iso.name.clone() })
    }

    fn programs(&self) -> Vec<&Found> {
        self.sniffable().filter(|file| Sniff::of_file(&file.path).efi.is_some()).collect()
    }

    fn efi(&self, named: &[&Found], image: &mut Image) -> Recognised {
        let mut programs = self.programs();
        // A distribution's folder has shim, GRUB and MOK manager side by side; its own first one is the one to start.
        for first in ["boot", "shim"] {
            let of_name: Vec<_> =
                programs.iter().copied().filter(|file| folded(base(&file.name)).starts_with(first)).collect();
            if of_name.len() == 1 {
                programs = of_name;
            }
        }
        let tree = self.tree().filter(|tree| named.is_empty() && tree.is_efi);
        let of_tree = tree.as_ref().and_then(|tree| self.find(&tree.program));
        let program = match of_tree {
            Some(program) => program,
            None => self.only(named, programs, "EFI program")?,
        };
        if let Some(tree) = &tree {
            self.told(tree, image);
            let config = self.find("boot.cfg").and_then(|file| read_text(&file.path).ok().flatten());
            image.warnings.extend(config.and_then(|text| tree::boot_cfg_warning(&text)));
        }
        let Some(cpu) = Sniff::of_file(&program.path).efi else {
            return Err(format!("{} is no EFI program", program.name));
        };
        image.cpu = image.cpu.or(Some(cpu));
        image.platform = Some(Platform::Efi);
        Ok(BootFiles::Efi { program: program.name.clone() })
    }

    fn scripts(&self) -> Vec<&Found> {
        let named_so = |file: &&Found| folded(&file.name).ends_with(".ipxe");
        self.sniffable().filter(named_so).filter(|file| Sniff::of_file(&file.path).script).collect()
    }

    fn script(&self, named: &[&Found]) -> Recognised {
        let mut scripts = self.scripts();
        if let Some(boot) = scripts.iter().copied().find(|file| folded(&file.name) == "boot.ipxe") {
            scripts = vec![boot];
        }
        let script = self.only(named, scripts, "iPXE script")?;
        if !Sniff::of_file(&script.path).script {
            return Err(format!("{} is no iPXE script: its first line is not #!ipxe", script.name));
        }
        Ok(BootFiles::Script { script: script.name.clone() })
    }

    /// A script with variables. There under its name, it is what the folder boots, whatever lies beside it.
    fn template(&self, image: &mut Image) -> Result<Option<BootFiles>, String> {
        if !matches!(self.manifest.kind, None | Some(ImageKind::Script)) || self.manifest.files.is_some() {
            return Ok(None);
        }
        let of_file = |what: String| format!("{TEMPLATE_NAME} {what}");
        let Some(text) = self.own_text(TEMPLATE_NAME).map_err(of_file)? else { return Ok(None) };
        image.template = Some(script::script_template(&text).map_err(|bad| of_file(bad.to_string()))?);
        Ok(Some(BootFiles::Script { script: TEMPLATE_NAME.to_owned() }))
    }

    /// A text of the image that machines get to see. Not by a link that leaves the folder: who may drop images here
    /// could have the server read out what only it can read.
    fn own_text(&self, name: &str) -> Result<Option<String>, String> {
        let path = self.path.join(name);
        match (fs::canonicalize(&path), fs::canonicalize(self.path)) {
            (Ok(real), Ok(folder)) if !real.starts_with(&folder) => {
                Err("is a link that leaves the folder".to_owned())
            }
            _ => read_text(&path),
        }
    }

    /// The answer files named in image.toml, out of `private`.
    fn answers(&self) -> Result<Vec<Answer>, String> {
        let named = |names: &Option<Vec<String>>| names.clone().unwrap_or_default();
        let (often, once) = (named(&self.manifest.answers), named(&self.manifest.answers_once));
        if often.len() + once.len() > answers::ANSWERS_MAX {
            return Err(format!("{MANIFEST_NAME}: at most {} answer files", answers::ANSWERS_MAX));
        }
        let names =
            often.into_iter().map(|name| (name, false)).chain(once.into_iter().map(|name| (name, true)));
        let mut found: Vec<Answer> = Vec::new();
        for (name, once) in names {
            let of_file = |what: String| format!("answer file private/{name}: {what}");
            if name.contains(['/', '\\']) || name.starts_with('.') || !names::is_nameable(&name) {
                return Err(format!("{MANIFEST_NAME}: {name:?} is no name of a file in private"));
            }
            if found.iter().any(|answer| answer.name == name) {
                return Err(format!("{MANIFEST_NAME}: the answer file {name} is named twice"));
            }
            let text = self.own_text(&format!("private/{name}")).map_err(of_file)?;
            let text = text.ok_or_else(|| of_file("is not in the folder".to_owned()))?;
            let template = Template::parse(&text).map_err(|bad| of_file(bad.to_string()))?;
            found.push(Answer { name, once, template });
        }
        Ok(found)
    }

    /// The one file of a kind that boots from one.
    fn only<'f>(&self, named: &[&'f Found], found: Vec<&'f Found>, what: &str) -> Result<&'f Found, String> {
        let files = if named.is_empty() { found } else { named.to_vec() };
        match files.as_slice() {
            [only] => Ok(only),
            [] => Err(format!("no {what} in the folder")),
            [first, second, ..] => Err(format!(
                "more than one {what} ({}, {}): name the one to boot in image.toml, files",
                first.name, second.name
            )),
        }
    }
}

fn cpu_name(cpu: Cpu) -> &'static str {
    match cpu {
        Cpu::X86 => "x86",
        Cpu::X64 => "x64",
        Cpu::Arm32 => "arm32",
        Cpu::Arm64 => "arm64",
        Cpu::Other => "another processor",
    }
}

fn depth(name: &str) -> usize {
    name.matches('/').count()
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_microcode(name: &str) -> bool {
    name.ends_with("-ucode.img") || name.starts_with("microcode")
}

/// iPXE and wimboot themselves: they carry kernel and EFI magics, and are no image.
fn is_loader_name(name: &str) -> bool {
    let name = folded(base(name));
    loaders::family_of_name(&name).is_some() || name.starts_with("wimboot") || name.ends_with(".lkrn")
}

/// True for what distributions call a kernel.
pub(crate) fn is_kernel_name(name: &str) -> bool {
    let name = folded(base(name));
    name.starts_with("vmlinuz") || matches!(name.as_str(), "bzimage" | "linux" | "vmlinux")
}

fn is_kernel(file: &Found, sniff: Sniff) -> bool {
    sniff.bzimage.is_some() || sniff.kernel.is_some() || is_kernel_name(&file.name)
}

/// wimboot's own arguments; an unknown one after the first stops the boot.
fn wimboot_knows(arg: &str) -> bool {
    matches!(arg, "rawbcd" | "rawwim" | "gui" | "pause" | "pause=quiet" | "quiet" | "linear")
        || arg.starts_with("index=")
        || arg.starts_with("initrdfile=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::library::test_site::{SMALL_WIM, Site};
    use crate::files::sniff::samples;

    fn reason(image: &Image) -> &str {
        image.unbootable.as_deref().unwrap_or_else(|| panic!("{} boots: {image:?}", image.name))
    }

    fn iso() -> Vec<u8> {
        let mut bytes = vec![0; 0x9000];
        bytes[0x8001..0x8006].copy_from_slice(b"CD001");
        bytes
    }

    #[test]
    fn winpe_is_seen_from_its_wim() {
        let site = Site::new();
        site.write("images/pe/boot.wim", SMALL_WIM);
        site.write("images/pe/wimboot", b"wimboot");
        site.write("images/pe/BCD", b"bcd");
        site.write("images/pe/Boot/bcd", b"another");
        site.write("images/pe/Boot/boot.sdi", b"sdi");
        site.write("images/pe/Boot/Fonts/wgl4_boot.ttf", b"font");
        site.write("images/pe/segoe_slboot.ttf", b"font");
        site.write("images/pe/startnet.cmd", b"cmd");
        site.write("images/pe/readme.txt", b"not for System32");
        let image = site.image("pe");
        assert_eq!((image.kind, image.cpu), (Some(ImageKind::Winpe), Some(Cpu::X64)));
        assert_eq!(image.unbootable, None);
        assert_eq!(image.title, "pe (Windows Setup, 10.0.26100, x64)");
        let boot = BootFiles::Winpe {
            wimboot: WimbootAt::Image("wimboot".into()),
            wim: "boot.wim".into(),
            extra: ["BCD", "segoe_slboot.ttf", "startnet.cmd", "Boot/boot.sdi"].map(String::from).to_vec(),
        };
        assert_eq!(image.boot, Some(boot));
        assert!(image.warnings.iter().any(|warning| warning.starts_with("Boot/bcd")), "{:?}", image.warnings);
        assert_eq!(image.files.len(), 9);
    }

    #[test]
    fn install_media_boot_their_sources_folder_and_a_loader_folder_s_wimboot() {
        let site = Site::new();
        site.write("images/media/sources/boot.wim", SMALL_WIM);
        site.write("images/media/sources/install.wim", b"never looked at");
        site.write("loaders/wimboot", b"wimboot");
        let image = site.image("media");
        let Some(BootFiles::Winpe { wimboot, wim, .. }) = &image.boot else { panic!("{image:?}") };
        assert_eq!(*wimboot, WimbootAt::Loader("wimboot".into()));
        assert_eq!(wim, "sources/boot.wim");
    }

    #[test]
    fn winpe_without_wimboot_says_so() {
        let site = Site::new();
        site.write("images/pe/boot.wim", SMALL_WIM);
        let image = site.image("pe");
        assert_eq!(image.kind, Some(ImageKind::Winpe));
        assert!(reason(&image).contains("no wimboot"), "{}", reason(&image));
        assert!(
            site.library().load().http_image("pe/boot.wim").is_ok(),
            "its payload is served all the same"
        );
    }

    #[test]
    fn a_wimboot_for_another_processor_does_not_count() {
        let site = Site::new();
        site.write("images/pe/boot.wim", SMALL_WIM);
        site.write("images/pe/wimboot", &samples::efi(0xaa64));
        assert!(reason(&site.image("pe")).contains("another processor"));
        site.write("images/pe/image.toml", b"arch = \"arm64\"");
        site.write("images/pe/wimboot", &samples::efi(0x8664));
        site.write("loaders/wimboot.arm64", &samples::efi(0xaa64));
        let image = site.image("pe");
        let Some(BootFiles::Winpe { wimboot, .. }) = &image.boot else { panic!("{image:?}") };
        assert_eq!(*wimboot, WimbootAt::Loader("wimboot.arm64".into()));
        assert!(
            image.warnings.iter().any(|warning| warning.contains("built for x64")),
            "{:?}",
            image.warnings
        );
    }

    #[test]
    fn a_wim_that_wimboot_cannot_boot_gives_its_reason() {
        let site = Site::new();
        site.write("loaders/wimboot", b"wimboot");
        site.write("images/solid/boot.wim", include_bytes!("../../tests/data/wim/solid-lzms.wim"));
        site.write("images/cut/boot.wim", &SMALL_WIM[..900]);
        site.write("images/text/boot.wim", b"not a WIM at all");
        site.write("images/esd/sources/install.esd", b"x");
        site.write("images/swm/a.swm", b"x");
        let mut unmarked = SMALL_WIM.to_vec();
        unmarked[120] = 0;
        site.write("images/unmarked/boot.wim", &unmarked);
        site.write("images/beyond/boot.wim", SMALL_WIM);
        site.write("images/beyond/image.toml", b"index = 3");
        for (name, part) in [
            ("solid", "LZMS"),
            ("cut", "truncated"),
            ("text", "not a WIM"),
            ("esd", "solid"),
            ("swm", "split"),
            ("unmarked", "index"),
            ("beyond", "index 3"),
        ] {
            let image = site.image(name);
            assert!(reason(&image).contains(part), "{name}: {}", reason(&image));
            assert_eq!(image.boot, None);
        }
        site.write("images/unmarked/image.toml", b"index = 1");
        let image = site.image("unmarked");
        assert_eq!((image.unbootable, image.index), (None, Some(1)));
        assert_eq!(image.title, "unmarked (Windows PE, 10.0.26100, x64)");
    }

    #[test]
    fn a_script_with_variables_is_checked_when_it_is_scanned() {
        let site = Site::new();
        site.write("images/lab/boot.ipxe.tmpl", b"#!ipxe\necho {{serial}}\n");
        site.write("images/lab/linux", &samples::bzimage());
        let image = site.image("lab");
        assert_eq!((image.kind, &image.unbootable), (Some(ImageKind::Script), &None));
        assert!(image.template.is_some() && crate::jobs::script::last_file(&image).is_none());
        assert!(!image.files.iter().any(|file| file.name.contains("tmpl")), "a template is no payload");
        site.write("images/lab/boot.ipxe.tmpl", b"#!ipxe\n\necho {{seriel}}\n");
        let image = site.image("lab");
        assert!(reason(&image).contains("boot.ipxe.tmpl line 3") && reason(&image).contains("seriel"));
        assert_eq!(image.boot, None);
        // Said to be something else, it is.
        site.write("images/lab/image.toml", b"kind = \"linux\"");
        assert_eq!(site.image("lab").kind, Some(ImageKind::Linux));
    }

    #[test]
    fn answer_files_come_from_private_and_stay_out_of_the_payload() {
        let site = Site::new();
        site.write("images/lab/linux", &samples::bzimage());
        site.write("images/lab/private/ks.cfg", b"rootpw {{serial}}");
        site.write("images/lab/private/once.xml", b"<key>{{mac}}</key>");
        site.write(
            "images/lab/image.toml",
            b"answers = [\"ks.cfg\"]\nanswers_once = [\"once.xml\"]\ngroup = \"Lab\"\nkey = \"7\"",
        );
        let image = site.image("lab");
        let named: Vec<_> = image.answers.iter().map(|answer| (answer.name.as_str(), answer.once)).collect();
        assert_eq!(named, [("ks.cfg", false), ("once.xml", true)]);
        assert!(!image.files.iter().any(|file| file.name.contains("private")));
        assert_eq!((image.group.as_deref(), image.key), (Some("Lab"), Some('7')));
        for (toml, word) in [
            ("answers = [\"gone.cfg\"]", "private/gone.cfg: is not in the folder"),
            ("answers = [\"../linux\"]", "no name of a file"),
            ("answers = [\".x\"]", "no name of a file"),
            ("answers = [\"ks.cfg\"]\nanswers_once = [\"ks.cfg\"]", "named twice"),
        ] {
            site.write("images/lab/image.toml", toml.as_bytes());
            let image = site.image("lab");
            assert!(reason(&image).contains(word), "{toml}: {}", reason(&image));
        }
        site.write("secret", b"x");
        std::os::unix::fs::symlink("../../../secret", site.path().join("images/lab/private/link")).unwrap();
        site.write("images/lab/image.toml", b"answers = [\"link\"]");
        assert!(reason(&site.image("lab")).contains("leaves the folder"), "{}", reason(&site.image("lab")));
        site.write("images/lab/private/ks.cfg", b"{{sereal}}");
        site.write("images/lab/image.toml", b"answers = [\"ks.cfg\"]");
        assert!(
            reason(&site.image("lab")).contains("private/ks.cfg: line 1"),
            "{}",
            reason(&site.image("lab"))
        );
    }

    #[test]
    fn wimboot_s_limits_are_kept() {
        let site = Site::new();
        site.write("loaders/wimboot", b"wimboot");
        site.write("images/pe/boot.wim", SMALL_WIM);
        let long = format!("{}.cmd", "x".repeat(28));
        site.write(&format!("images/pe/{long}"), b"x");
        site.write("images/pe/image.toml", format!("files = [\"boot.wim\", \"{long}\"]").as_bytes());
        assert!(reason(&site.image("pe")).contains("31 characters"));
        let names: Vec<_> = (0..63).map(|n| format!("{n}.cmd")).collect();
        for name in &names {
            site.write(&format!("images/pe/{name}"), b"x");
        }
        site.write(
            "images/pe/image.toml",
            format!("files = {:?}", [&["boot.wim".to_owned()], &names[..]].concat()).as_bytes(),
        );
        assert!(reason(&site.image("pe")).contains("64 files"), "{}", reason(&site.image("pe")));
        site.write("images/pe/image.toml", b"args = \"quiet frobnicate\"");
        assert!(site.image("pe").warnings.iter().any(|warning| warning.contains("frobnicate")));
    }

    #[test]
    fn linux_is_seen_from_its_kernel() {
        let site = Site::new();
        site.write("images/debian/linux", &samples::bzimage());
        site.write("images/debian/initrd.gz", b"initrd");
        site.write("images/debian/amd-ucode.img", b"microcode");
        site.write("images/debian/cmdline", b"quiet\nauto=true  priority=critical\n");
        let image = site.image("debian");
        assert_eq!((image.kind, image.cpu, image.platform), (Some(ImageKind::Linux), Some(Cpu::X64), None));
        assert_eq!(image.args, "quiet auto=true priority=critical");
        let initrds = ["amd-ucode.img", "initrd.gz"].map(String::from).to_vec();
        assert_eq!(image.boot, Some(BootFiles::Linux { kernel: "linux".into(), initrds }));
        // Seen by its magic alone, and an ARM64 one.
        site.write("images/magic/some-file", &samples::bzimage());
        assert_eq!(site.image("magic").kind, Some(ImageKind::Linux));
        let mut arm = vec![0; 64];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        site.write("images/arm/Image", &arm);
        let image = site.image("arm");
        assert_eq!((image.cpu, image.platform), (Some(Cpu::Arm64), Some(Platform::Efi)));
        // Known by its name alone (a compressed kernel of another processor).
        site.write("images/name/vmlinuz-6.1", b"\x1f\x8b");
        assert_eq!(site.image("name").kind, Some(ImageKind::Linux));
    }

    #[test]
    fn isos_programs_and_scripts_are_seen_from_their_content() {
        let site = Site::new();
        site.write("images/live/disc.bin", &iso());
        site.write("images/prog/tool.efi", &samples::efi(0xaa64));
        site.write("images/own/start.ipxe", b"#!ipxe\nexit\n");
        let live = site.image("live");
        assert_eq!(live.boot, Some(BootFiles::Iso { iso: "disc.bin".into() }));
        let program = site.image("prog");
        assert_eq!(program.boot, Some(BootFiles::Efi { program: "tool.efi".into() }));
        assert_eq!((program.cpu, program.platform), (Some(Cpu::Arm64), Some(Platform::Efi)));
        assert_eq!(site.image("own").boot, Some(BootFiles::Script { script: "start.ipxe".into() }));
    }

    #[test]
    fn a_choice_that_is_not_ours_is_left_to_image_toml() {
        let site = Site::new();
        site.write("images/two/a.iso", &iso());
        site.write("images/two/b.iso", &iso());
        assert!(reason(&site.image("two")).contains("more than one ISO (a.iso, b.iso)"));
        site.write(
            "images/two/image.toml",
            b"files = [\"B.ISO\"]\ntitle = \"The second\"\ndestructive = true",
        );
        let image = site.image("two");
        assert_eq!(image.boot, Some(BootFiles::Iso { iso: "b.iso".into() }));
        assert_eq!((image.title.as_str(), image.destructive), ("The second", true));
    }

    #[test]
    fn mistakes_in_image_toml_are_the_reason() {
        let site = Site::new();
        for (name, text, part) in [
            ("key", "titel = \"x\"", "titel"),
            ("missing", "files = [\"gone.iso\"]", "gone.iso, named by image.toml, is not in the folder"),
            ("out", "files = [\"../key/a.iso\"]", "../key/a.iso"),
            ("kind", "kind = \"linux\"", "no Linux kernel"),
            ("notscript", "kind = \"script\"\nfiles = [\"a.iso\"]", "no iPXE script"),
            ("noteef", "kind = \"efi\"\nfiles = [\"a.iso\"]", "no EFI program"),
            ("notwim", "kind = \"winpe\"", "no WIM"),
        ] {
            site.write(&format!("images/{name}/a.iso"), &iso());
            site.write(&format!("images/{name}/image.toml"), text.as_bytes());
            let image = site.image(name);
            assert!(reason(&image).contains(part), "{name}: {}", reason(&image));
            assert_eq!(image.boot, None);
        }
        site.write("images/closed/image.toml", b"acess = \"boot\"");
        assert_eq!(site.image("closed").access, Access::Boot);
    }

    #[test]
    fn folders_with_nothing_to_boot_say_so() {
        let site = Site::new();
        std::fs::create_dir_all(site.path().join("images/empty")).unwrap();
        site.write("images/docs/readme.txt", b"x");
        site.write("images/loaders-only/ipxe64.efi", &samples::efi(0x8664));
        site.write("images/loaders-only/wimboot", &samples::bzimage());
        assert!(reason(&site.image("empty")).contains("no files"));
        assert!(reason(&site.image("docs")).contains("nothing bootable"));
        assert!(reason(&site.image("loaders-only")).contains("nothing bootable"));
        assert_eq!(site.image("docs").kind, None);
    }

    #[test]
    fn a_folder_laid_out_as_gss_does_is_an_image() {
        let site = Site::new();
        site.write("loaders/wimboot", b"wimboot");
        site.write("images/MenuOption128/X64/boot.wim", SMALL_WIM);
        site.write("images/MenuOption128/X64/ipxe64.efi", &samples::efi(0x8664));
        site.write("images/MenuOption128/X64/bstrap.0", b"bstrap");
        site.write("images/MenuOption128/X86/boot.wim", SMALL_WIM);
        site.write("images/MenuOption128/zipxe.0", b"zipxe");
        let image = site.image("MenuOption128");
        let Some(BootFiles::Winpe { wim, .. }) = &image.boot else { panic!("{image:?}") };
        assert_eq!(wim, "X64/boot.wim");
        assert!(image.warnings.iter().any(|warning| warning.contains("2 WIMs")), "{:?}", image.warnings);
        assert_eq!(image.files.len(), 5);
    }

    #[test]
    fn a_distributions_tree_boots_with_the_arguments_it_needs() {
        let site = Site::new();
        site.write("images/ubuntu/casper/vmlinuz", &samples::bzimage());
        site.write("images/ubuntu/casper/initrd", b"initrd");
        site.write("images/ubuntu/ubuntu.iso", &iso());
        site.write("images/ubuntu/image.toml", b"args = \"quiet\"");
        let image = site.image("ubuntu");
        assert_eq!(image.kind, Some(ImageKind::Linux));
        let Some(BootFiles::Linux { kernel, initrds }) = &image.boot else { panic!("{image:?}") };
        assert_eq!(
            (kernel.as_str(), initrds.as_slice()),
            ("casper/vmlinuz", &["casper/initrd".to_owned()][..])
        );
        assert_eq!(image.args, "boot=casper ip=dhcp quiet");
        assert_eq!(
            (image.url_args[0].word.as_str(), image.url_args[0].file.as_str()),
            ("url=", "ubuntu.iso")
        );
        assert_eq!(image.title, "ubuntu (Ubuntu live (casper))");
        for name in ["b.b00", "s.v00"] {
            site.write(&format!("images/esxi/{name}"), b"module");
        }
        site.write("images/esxi/boot.cfg", b"kernel=/b.b00\nmodules=/s.v00\n");
        site.write("images/esxi/efi/boot/bootx64.efi", &samples::efi(0x8664));
        site.write("images/esxi/mboot.efi", &samples::efi(0x8664));
        let image = site.image("esxi");
        assert_eq!(image.boot, Some(BootFiles::Efi { program: "mboot.efi".into() }), "{image:?}");
        assert_eq!(image.url_args[0].word, "-c ");
        assert!(image.warnings.iter().any(|warning| warning.contains("slash")), "{:?}", image.warnings);
    }
}

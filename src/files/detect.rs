//! What an image folder boots, from its `image.toml` or from its files.

#[cfg(test)]
mod tests;
mod winpe;

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::files::gss;
use crate::files::loaders::{self, LoaderTable};
use crate::files::manifest::{BadManifest, MANIFEST_NAME, Manifest};
use crate::files::names::{self, base, folded};
use crate::files::scan::{Found, Walk};
use crate::files::served::FileIdentity;
use crate::files::sniff::{self, Sniff};
use crate::files::tree::{self, Tree};
use crate::jobs::answers::{self, Answer};
use crate::jobs::image::{Access, BootFiles, Image, ImageFile, ImageKind};
use crate::jobs::script;
use crate::jobs::template::Template;
use crate::sys::open_plain;
use crate::wire::arch::Platform;

/// The script with variables.
pub const TEMPLATE_NAME: &str = "boot.ipxe.tmpl";
/// The arguments of a Linux image.
pub const CMDLINE_NAME: &str = "cmdline";
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
    let manifest = match read_manifest(path, walk) {
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

fn read_manifest(folder: &Path, walk: &Walk) -> Result<Manifest, BadManifest> {
    let why = match own_text(folder, MANIFEST_NAME, walk) {
        // What is left where the disk was full, or where somebody is about to write.
        Ok(Some(text)) if text.is_empty() => "is empty".to_owned(),
        Ok(Some(text)) => return Manifest::parse(&text),
        // Where there was one, another one may be on its way.
        Ok(None) if walk.texts.contains_key(MANIFEST_NAME) => "is still being written".to_owned(),
        Ok(None) => return Ok(Manifest::default()),
        Err(why) => why,
    };
    // One that cannot be read may have closed the payload or called the image destructive.
    Err(BadManifest { reason: format!("{MANIFEST_NAME} {why}"), access: Access::Boot, destructive: true })
}

/// The answer files that the manifest of a folder names, if it is whole.
pub(crate) fn answers_named(folder: &Path, walk: &Walk) -> Vec<String> {
    let Ok(manifest) = read_manifest(folder, walk) else { return Vec::new() };
    let named = [manifest.answers, manifest.answers_once].into_iter().flatten().flatten();
    named.filter(|name| !name.contains('/')).take(answers::ANSWERS_MAX).collect()
}

/// A text that the image brings for us or its machines; `None` when there is none. Not by a link that leaves the folder:
/// who may drop images here could have the server read out what only it can read. Not one that is still being written
/// either: half of it may be a text as well.
fn own_text(folder: &Path, name: &str, walk: &Walk) -> Result<Option<String>, String> {
    let path = folder.join(name);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
        Ok(_) => {}
    }
    let real = fs::canonicalize(&path).map_err(|error| unreadable(&error))?;
    let folder = fs::canonicalize(folder).map_err(|error| unreadable(&error))?;
    if !real.starts_with(&folder) {
        return Err("is a link that leaves the folder".to_owned());
    }
    let (text, identity) = read_text(&real)?;
    match walk.texts.get(name) {
        Some(Some(whole)) if whole.same_bytes(&identity) => Ok(Some(text)),
        None => Err("was not looked at with its folder".to_owned()),
        Some(_) => Err("is still being written".to_owned()),
    }
}

/// A small text file beside the payload, and which file it was when it had been read.
fn read_text(path: &Path) -> Result<(String, FileIdentity), String> {
    let file = open_plain(path).map_err(|error| unreadable(&error))?;
    let meta = file.metadata().map_err(|error| unreadable(&error))?;
    if !meta.is_file() {
        return Err("is not a file".to_owned());
    }
    if meta.len() > TEXT_LEN_MAX {
        return Err(format!("is longer than {TEXT_LEN_MAX} bytes"));
    }
    let mut text = String::new();
    (&file).take(TEXT_LEN_MAX).read_to_string(&mut text).map_err(|error| unreadable(&error))?;
    let meta = file.metadata().map_err(|error| unreadable(&error))?;
    Ok((text, FileIdentity::of(&meta)))
}

fn unreadable(error: &std::io::Error) -> String {
    format!("cannot be read: {error}")
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
            match own_text(self.path, CMDLINE_NAME, self.walk) {
                // One line for the kernel, however many the file has.
                Ok(text) => {
                    let words: Vec<_> = text.iter().flat_map(|text| text.split_whitespace()).collect();
                    image.args = words.join(" ");
                }
                Err(why) => return Err(format!("{CMDLINE_NAME} {why}")),
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
            let config = self.find("boot.cfg").and_then(|file| read_text(&file.path).ok());
            image.warnings.extend(config.and_then(|(text, _)| tree::boot_cfg_warning(&text)));
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
        let Some(text) = own_text(self.path, TEMPLATE_NAME, self.walk).map_err(of_file)? else {
            return Ok(None);
        };
        image.template = Some(script::script_template(&text).map_err(|bad| of_file(bad.to_string()))?);
        Ok(Some(BootFiles::Script { script: TEMPLATE_NAME.to_owned() }))
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
            let text = own_text(self.path, &format!("private/{name}"), self.walk).map_err(of_file)?;
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

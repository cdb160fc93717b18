//! WinPE: the WIM that boots, wimboot, and what goes with them.

use super::{Folder, Recognised, depth, parent};
use crate::files::intake;
use crate::files::loaders;
use crate::files::names::{self, base, folded};
use crate::files::scan::Found;
use crate::files::sniff::Sniff;
use crate::files::wim::{Finding, Severity};
use crate::jobs::image::{BootFiles, Image, WimbootAt};
use crate::wire::arch::Cpu;

/// Longest name wimboot can take; a longer one stops the boot on EFI.
const WIMBOOT_NAME_LEN_MAX: usize = 31;
/// Most files wimboot takes beside itself.
const WIMBOOT_FILES_MAX: usize = 63;

impl Folder<'_> {
    pub(super) fn wims(&self) -> Vec<&Found> {
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

    pub(super) fn winpe(&self, named: &[&Found], image: &mut Image) -> Recognised {
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

/// wimboot's own arguments; an unknown one after the first stops the boot.
fn wimboot_knows(arg: &str) -> bool {
    matches!(arg, "rawbcd" | "rawwim" | "gui" | "pause" | "pause=quiet" | "quiet" | "linear")
        || arg.starts_with("index=")
        || arg.starts_with("initrdfile=")
}

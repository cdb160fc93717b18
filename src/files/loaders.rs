//! The loader table: files of the loader folders, and which of them a machine should get.

use std::collections::HashMap;
use std::sync::Arc;

use crate::files::names;
use crate::files::served::Served;
use crate::files::sniff::Sniff;
use crate::wire::Arch;
use crate::wire::arch::Cpu;
pub use crate::wire::arch::Family;

/// Values by name, found by exact name first and without regard to case second.
#[derive(Debug)]
pub struct NameTable<T> {
    exact: HashMap<String, T>,
    /// Folded name to exact name; of several the first in name order.
    folded: HashMap<String, String>,
}

impl<T> NameTable<T> {
    /// From pairs in name order.
    pub fn new(entries: impl IntoIterator<Item = (String, T)>) -> Self {
        let mut table = Self { exact: HashMap::new(), folded: HashMap::new() };
        for (name, value) in entries {
            table.folded.entry(names::folded(&name)).or_insert_with(|| name.clone());
            table.exact.insert(name, value);
        }
        table
    }

    /// The value of a normalised name.
    pub fn find(&self, name: &str) -> Option<&T> {
        self.exact.get(name).or_else(|| self.exact.get(self.folded.get(&names::folded(name))?))
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values()
    }
}

/// Names by which firmware, older set-ups and GSS/DS sites ask for "the loader", and the family each name means when
/// nothing better is known of the machine.
const LOADER_NAMES: &[(&str, Family)] = &[
    ("undionly.kpxe", Family::Bios),
    ("undionly.kkpxe", Family::Bios),
    ("undionly.kkkpxe", Family::Bios),
    ("undionly.pxe", Family::Bios),
    ("undionly.0", Family::Bios),
    ("ipxe.pxe", Family::Bios),
    ("ipxe.kpxe", Family::Bios),
    ("ipxe.kkpxe", Family::Bios),
    ("ipxe.0", Family::Bios),
    ("zipxe.0", Family::Bios),
    ("bstrap.0", Family::Bios),
    ("ipxe.efi", Family::UefiX64),
    ("ipxe64.efi", Family::UefiX64),
    ("ipxe-x64.efi", Family::UefiX64),
    ("ipxe-x86_64.efi", Family::UefiX64),
    ("snp.efi", Family::UefiX64),
    ("snponly.efi", Family::UefiX64),
    ("snponly64.efi", Family::UefiX64),
    ("snponly-x64.efi", Family::UefiX64),
    ("snponly-x86_64.efi", Family::UefiX64),
    ("bstrap.efi", Family::UefiX64),
    ("bstrap64.efi", Family::UefiX64),
    ("ipxe32.efi", Family::UefiIa32),
    ("ipxe-ia32.efi", Family::UefiIa32),
    ("ipxe-i386.efi", Family::UefiIa32),
    ("snponly32.efi", Family::UefiIa32),
    ("snponly-ia32.efi", Family::UefiIa32),
    ("snponly-i386.efi", Family::UefiIa32),
    ("bstrap32.efi", Family::UefiIa32),
    ("ipxe-arm64.efi", Family::UefiArm64),
    ("ipxe-aa64.efi", Family::UefiArm64),
    ("snponly-arm64.efi", Family::UefiArm64),
    ("snponly-aa64.efi", Family::UefiArm64),
];

/// The family a loader name means; `None` when it is not such a name. Shims, GRUBs, MOK managers and revocation
/// files are no loader names: each is wanted as itself or not at all.
pub fn family_of_name(name: &str) -> Option<Family> {
    let base = names::folded(names::base(name));
    LOADER_NAMES.iter().find(|(known, _)| *known == base).map(|(_, family)| *family)
}

/// A file of the loader folders.
#[derive(Clone, Debug)]
pub struct Loader {
    /// The file.
    pub served: Arc<Served>,
    /// What its head says.
    pub sniff: Sniff,
}

impl Loader {
    /// False when the file is certainly of another family: an EFI program for another processor or for BIOS, or a
    /// BIOS program by its suffix for EFI. What is not known is believed.
    pub fn suits(&self, family: Family) -> bool {
        let name = names::folded(&self.served.name);
        let bios_name = [".0", ".pxe", ".kpxe", ".kkpxe", ".kkkpxe"].iter().any(|end| name.ends_with(end));
        match (family.cpu(), self.sniff.efi) {
            (Some(wanted), Some(built_for)) => wanted == built_for,
            (Some(_), None) => !bios_name,
            // wimboot and Linux kernels are both; anything else with an EFI head is for EFI.
            (None, Some(_)) => self.sniff.bzimage.is_some(),
            (None, None) => !name.ends_with(".efi"),
        }
    }

    /// True for an iPXE by its name, as opposed to a shim or a GRUB an operator listed first.
    fn is_ipxe(&self) -> bool {
        let base = names::folded(names::base(&self.served.name));
        !base.contains("shim") && ["ipxe", "undionly", "snp"].iter().any(|word| base.contains(word))
    }
}

/// Which loader each family gets: names in order of preference, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// PC BIOS.
    pub bios: Vec<String>,
    /// UEFI x64.
    pub uefi_x64: Vec<String>,
    /// UEFI IA32.
    pub uefi_ia32: Vec<String>,
    /// UEFI ARM64.
    pub uefi_arm64: Vec<String>,
    /// Names under which wimboot is looked for, in an image's folder and then here.
    pub wimboot: Vec<String>,
}

impl Preferences {
    /// A family's.
    pub fn of(&self, family: Family) -> &[String] {
        match family {
            Family::Bios => &self.bios,
            Family::UefiX64 => &self.uefi_x64,
            Family::UefiIa32 => &self.uefi_ia32,
            Family::UefiArm64 => &self.uefi_arm64,
        }
    }

    /// Names of wimboot that fit a processor, best first. wimboot's releases name the x86 and ARM64 builds
    /// `wimboot.i386` and `wimboot.arm64`; plain `wimboot` is BIOS for any x86 and EFI for x64 in one file.
    pub fn wimboot_names(&self, cpu: Option<Cpu>) -> Vec<String> {
        let mut names = Vec::new();
        if cpu == Some(Cpu::Arm64) {
            names.extend(self.wimboot.iter().map(|name| format!("{name}.arm64")));
        }
        names.extend(self.wimboot.iter().cloned());
        names
    }
}

/// The loader folders' files and the choice among them.
#[derive(Debug)]
pub struct LoaderTable {
    files: NameTable<Loader>,
    preferences: Preferences,
    /// The configured loaders of each family that are there and suit, best first: DHCP asks with every packet.
    chosen: [Vec<Loader>; 4],
}

impl LoaderTable {
    /// From the files of the loader folders, in name order.
    pub fn new(files: Vec<Loader>, preferences: Preferences) -> Self {
        let files = NameTable::new(files.into_iter().map(|loader| (loader.served.name.clone(), loader)));
        let mut table = Self { files, preferences, chosen: Default::default() };
        table.chosen = [Family::Bios, Family::UefiX64, Family::UefiIa32, Family::UefiArm64].map(|family| {
            let names = table.preferences.of(family).iter();
            names.filter_map(|name| table.find(name)).filter(|loader| loader.suits(family)).cloned().collect()
        });
        table
    }

    /// A file by its normalised name.
    pub fn find(&self, name: &str) -> Option<&Loader> {
        self.files.find(name)
    }

    /// Every file, in name order.
    pub fn list(&self) -> Vec<&Loader> {
        let mut list: Vec<_> = self.files.values().collect();
        list.sort_by(|a, b| a.served.name.cmp(&b.served.name));
        list
    }

    /// The first configured loader of a family that is there and is not for something else.
    pub fn for_family(&self, family: Family) -> Option<&Loader> {
        self.preferred(family).next()
    }

    /// The loader for a machine that the first `pass_over` ones did not bring to its script, counted round. Where the
    /// first is no iPXE it is always that one: whether such a loader works is not seen.
    pub fn for_family_after(&self, family: Family, pass_over: u8) -> Option<&Loader> {
        let first = self.for_family(family)?;
        if pass_over == 0 || !first.is_ipxe() {
            return Some(first);
        }
        let count = self.preferred(family).count();
        self.preferred(family).nth(usize::from(pass_over) % count.max(1))
    }

    /// A file of the loader folders that an operator names for machines of a family, unless it is certainly for others.
    pub fn named(&self, name: &str, family: Family) -> Option<&Loader> {
        self.find(name).filter(|loader| loader.suits(family))
    }

    /// The first configured loader of a family that is an iPXE itself, else one under iPXE's usual names: what an
    /// iPXE without HTTP needs, which a shim or a GRUB would not give it.
    pub fn ipxe_for_family(&self, family: Family) -> Option<&Loader> {
        let usual =
            LOADER_NAMES.iter().filter(|(_, of)| *of == family).filter_map(|(name, _)| self.find(name));
        self.preferred(family)
            .chain(usual.filter(|loader| loader.suits(family)))
            .find(|loader| loader.is_ipxe())
    }

    fn preferred(&self, family: Family) -> impl Iterator<Item = &Loader> {
        let [bios, uefi_x64, uefi_ia32, uefi_arm64] = &self.chosen;
        let chosen = match family {
            Family::Bios => bios,
            Family::UefiX64 => uefi_x64,
            Family::UefiIa32 => uefi_ia32,
            Family::UefiArm64 => uefi_arm64,
        };
        chosen.iter()
    }

    /// The loader a machine that asked for `name` should get, when `name` is a loader name: the very file if it is
    /// there and fits the machine, else its family's.
    pub fn for_name(&self, name: &str, arch: Option<Arch>) -> Option<&Loader> {
        let implied = family_of_name(name)?;
        let family = match arch {
            Some(arch) => Family::of(arch)?,
            None => implied,
        };
        self.find(names::base(name)).filter(|loader| loader.suits(family)).or_else(|| self.for_family(family))
    }

    /// wimboot for a processor.
    pub fn wimboot(&self, cpu: Option<Cpu>) -> Option<&Loader> {
        let names = self.preferences.wimboot_names(cpu);
        names.iter().filter_map(|name| self.find(name)).find(|loader| wimboot_suits(loader.sniff, cpu))
    }

    /// As configured.
    pub fn preferences(&self) -> &Preferences {
        &self.preferences
    }
}

/// False when a wimboot is certainly built for another processor: an ARM64 one for x86 or the reverse.
pub fn wimboot_suits(sniff: Sniff, cpu: Option<Cpu>) -> bool {
    match (cpu, sniff.efi) {
        (Some(Cpu::Arm64), Some(built_for)) => built_for == Cpu::Arm64,
        (Some(Cpu::X86 | Cpu::X64), Some(built_for)) => built_for != Cpu::Arm64,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_and_grubs_are_no_loader_names() {
        for name in [
            "shimx64.efi",
            "ipxe-shim.efi",
            "grubx64.efi",
            "mmx64.efi",
            "revocations_sku.efi",
            "shim_certificate_0.efi",
        ] {
            assert_eq!(family_of_name(name), None, "{name}");
        }
        assert_eq!(family_of_name("MenuOption128/X64/IPXE64.EFI"), Some(Family::UefiX64));
        assert_eq!(family_of_name("bstrap.0"), Some(Family::Bios));
    }

    #[test]
    fn every_loader_name_is_listed_in_the_form_it_is_compared_in() {
        for (name, _) in LOADER_NAMES {
            assert_eq!(*name, names::folded(name));
            assert!(!name.contains('/'));
        }
    }

    #[test]
    fn a_name_table_prefers_the_exact_case() {
        let table = NameTable::new([("BCD".to_owned(), 1), ("bcd".to_owned(), 2)]);
        assert_eq!(table.find("bcd"), Some(&2));
        assert_eq!(table.find("BCD"), Some(&1));
        assert_eq!(table.find("Bcd"), Some(&1));
        assert_eq!(table.find("b"), None);
    }
}

//! What a boot loader is, read from its own bytes: which program, which version, what it can do, who signed it; and
//! what it lacks for the hop that comes after it.
//!
//! A version is what the file says of itself (iPXE's version string, shim's, the SBAT section). BIOS builds of iPXE are
//! compressed and say nothing, so common ones are known by hash. Names are not believed: an operator's own build may
//! have any.

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::files::loaders::{Family, Loader, LoaderTable};
use crate::files::names::{base, folded};
use crate::files::sniff::{HEAD_LEN, Sniff};
use crate::wire::arch::Cpu;

/// Longest loader read: shims, GRUBs and iPXEs have a few MiB.
const LEN_MAX: u64 = 64 << 20;
/// Longest version kept.
const VERSION_MAX: usize = 64;
/// Most names kept of those who signed.
const SIGNERS_MAX: usize = 8;

/// Which program it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// iPXE.
    Ipxe,
    /// shim: the first hop under Secure Boot.
    Shim,
    /// shim's MOK manager.
    Mokmanager,
    /// GRUB.
    Grub,
    /// wimboot.
    Wimboot,
    /// Windows' boot manager or network boot program.
    Windows,
    /// PXELINUX or another of Syslinux.
    Syslinux,
    /// A Linux kernel.
    Kernel,
    /// Something else.
    Other,
}

impl What {
    /// The word of lists and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ipxe => "ipxe",
            Self::Shim => "shim",
            Self::Mokmanager => "mokmanager",
            Self::Grub => "grub",
            Self::Wimboot => "wimboot",
            Self::Windows => "windows",
            Self::Syslinux => "syslinux",
            Self::Kernel => "kernel",
            Self::Other => "other",
        }
    }
}

/// What is known of a loader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Facts {
    /// Which program.
    pub what: What,
    /// Its version, as it says or as its hash is known.
    pub version: Option<String>,
    /// Whose build it is, if its hash is known here.
    pub known: Option<&'static str>,
    /// The processor its EFI program is for; `None` for a BIOS program.
    pub cpu: Option<Cpu>,
    /// What it can do, of what matters here ([`FEATURES`]); `None` when the file does not show it.
    pub features: Option<Vec<&'static str>>,
    /// Names in its Authenticode signature; empty without one. Whether firmware trusts them is the firmware's to say.
    pub signed_by: Vec<String>,
    /// Components and generations of its SBAT section.
    pub sbat: Vec<String>,
    /// Bytes.
    pub len: u64,
    /// BLAKE3 of the whole file, in hex.
    pub blake3: String,
}

/// iPXE features by the text that shows them in an uncompressed build: names of URI schemes, commands and files, each a
/// string with its NUL.
pub const FEATURES: &[(&str, &[u8])] = &[
    ("http", b"http\0"),
    ("https", b"https\0"),
    // TLS with elliptic curves for the exchange of keys: the name of the first curve it learned, in January 2024.
    ("ecdhe", b"x25519\0"),
    ("tftp", b"tftp\0"),
    ("nfs", b"nfs\0"),
    ("iscsi", b"iscsi\0"),
    ("menu", b"menu\0"),
    ("sanboot", b"sanboot\0"),
    ("cpuid", b"cpuid\0"),
    // Of the command pair params and param: "##params" is in every build.
    ("params", b"param\0"),
    ("console", b"console\0"),
    ("poweroff", b"poweroff\0"),
    ("imgtrust", b"imgtrust\0"),
    ("shim", b"\0shim\0"),
    ("autoexec", b"autoexec.ipxe\0"),
    ("ipv6", b"IPv6\0"),
];

/// A build of iPXE that is known by its hash: of a compressed one nothing else can be read.
struct Known {
    blake3: &'static str,
    version: &'static str,
    whose: &'static str,
    features: &'static [&'static str],
}

const DEBIAN_2019_VERSION: &str = "1.0.0+git-20190125.36a4c85-5.1";
const DEBIAN_2019: &str = "Debian's package ipxe, 10 to 12";
/// Its BIOS builds were made with one configuration with its EFI builds, which show it.
const DEBIAN_2019_FEATURES: &[&str] = &["http", "tftp", "nfs", "iscsi", "menu", "sanboot", "cpuid", "ipv6"];

const fn debian_2019(blake3: &'static str) -> Known {
    Known { blake3, version: DEBIAN_2019_VERSION, whose: DEBIAN_2019, features: DEBIAN_2019_FEATURES }
}

const KNOWN: &[Known] = &[
    // undionly.kpxe
    debian_2019("c64a9fef6ea137d5f1f7c0d3765674ea42e7d356c2f40322d38397be66bfe14c"),
    // undionly.kkpxe
    debian_2019("b8eda390f0bacf4c095cb2c4f8e7eba6db1264d1a356bf5b08e3fe35d895715b"),
    // ipxe.pxe
    debian_2019("845bca7b58e2e5c20ad02d2418a189b6865817cfd5ae4c1fd55eaefd4770dc5c"),
    // ipxe.lkrn
    debian_2019("da7e24a8f4f266d8fb958acefa627fd4150ccc511b26e245e52ee51b27228a0f"),
    // snponly.efi
    debian_2019("5ff34800d78ed968219b34bf0baa315cd19d516375eff8951389460827fbb282"),
    // ipxe.efi
    debian_2019("c555b326ac22c858f1682fd9c4d302400da66347035da5ce9aab07d9c46ec923"),
];

/// Reads a loader.
///
/// # Errors
/// What the system says; a file of more than 64 MiB is no loader.
pub fn read(path: &Path) -> io::Result<Facts> {
    let len = std::fs::metadata(path)?.len();
    if len > LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than any boot loader"));
    }
    Ok(of(&std::fs::read(path)?))
}

/// From a loader's bytes.
pub fn of(bytes: &[u8]) -> Facts {
    let sniff = Sniff::of(bytes.get(..HEAD_LEN).unwrap_or(bytes));
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    let known = KNOWN.iter().find(|known| known.blake3 == blake3);
    let what = if known.is_some() { What::Ipxe } else { what(bytes, sniff) };
    let sbat = sbat(bytes);
    let version = known.map(|known| known.version.to_owned()).or_else(|| version(bytes, what));
    // Commands stand in the file as they are, unless it unpacks itself.
    let shows = what == What::Ipxe && has(bytes, b"#!ipxe");
    let features = match known {
        Some(known) => Some(known.features.to_vec()),
        None if shows => {
            Some(FEATURES.iter().filter(|(_, text)| has(bytes, text)).map(|(name, _)| *name).collect())
        }
        None => None,
    };
    Facts {
        what,
        version,
        known: known.map(|known| known.whose),
        cpu: sniff.efi,
        features,
        signed_by: signers(bytes),
        sbat: sbat.iter().map(|(component, generation)| format!("{component},{generation}")).collect(),
        len: bytes.len() as u64,
        blake3,
    }
}

impl Facts {
    /// Whether it certainly cannot do something.
    pub fn lacks(&self, feature: &str) -> bool {
        self.features.as_ref().is_some_and(|features| !features.contains(&feature))
    }
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    find(bytes, wanted).is_some()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    // Files of a few MiB, looked at once when somebody asks.
    let first = *wanted.first()?;
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|byte| *byte == first) {
        let at = from + at;
        if bytes.get(at..)?.starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn what(bytes: &[u8], sniff: Sniff) -> What {
    // wimboot and shim speak of other loaders, so they come first.
    if has(bytes, b"Windows Imaging Format bootloader") {
        What::Wimboot
    } else if has(bytes, b"UEFI SHIM\n$Version:") {
        What::Shim
    } else if sniff.efi.is_some()
        && (has(bytes, &wide("Perform MOK management")) || has(bytes, &wide("MOK management")))
    {
        What::Mokmanager
    } else if has(bytes, b"PXE->EB:")
        || has(bytes, b"iPXE") && (has(bytes, b"ipxe.org") || has(bytes, b"#!ipxe"))
    {
        What::Ipxe
    } else if has(bytes, b"grub_") || has(bytes, b"GNU GRUB") || has(bytes, b"grub,") && sniff.efi.is_some() {
        What::Grub
    } else if has(bytes, b"PXELINUX") || has(bytes, b"SYSLINUX") {
        What::Syslinux
    } else if has(bytes, &wide("bootmgfw")) || has(bytes, b"bootmgr.exe") || has(bytes, &wide("BOOTMGR")) {
        What::Windows
    } else if sniff.bzimage.is_some() || sniff.kernel.is_some() {
        What::Kernel
    } else {
        What::Other
    }
}

fn version(bytes: &[u8], what: What) -> Option<String> {
    let after = |marker: &[u8], end: &[char]| {
        let start = find(bytes, marker)? + marker.len();
        let text: String =
            bytes.get(start..)?.iter().take(VERSION_MAX).map(|byte| char::from(*byte)).collect();
        let text = text.trim_start().split(|c: char| c.is_control() || end.contains(&c)).next()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    match what {
        What::Shim => after(b"UEFI SHIM\n$Version:", &['$', ' ']),
        What::Wimboot => after(b"wimboot v", &[' ']).or_else(|| after(b"wimboot ", &[' '])),
        What::Syslinux => after(b"PXELINUX ", &[' ']),
        What::Ipxe => ipxe_version(bytes),
        What::Grub => sbat_version(bytes, "grub.").or_else(|| sbat_version(bytes, "grub,")),
        What::Mokmanager | What::Windows | What::Kernel | What::Other => None,
    }
}

/// iPXE's version stands as a string of its own: `1.21.1+ (g1a2b3c)`, `2.0.0`, `1.0.0+git-20190125.36a4c85-5.1`.
fn ipxe_version(bytes: &[u8]) -> Option<String> {
    let texts = bytes.split(|byte| *byte == 0).filter(|text| (5..VERSION_MAX).contains(&text.len()));
    let texts = texts.filter_map(|text| std::str::from_utf8(text).ok());
    texts.into_iter().find(|text| is_version(text)).map(str::to_owned)
}

fn is_version(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let parts: Vec<&str> = numbers.split('.').collect();
    parts.len() == 3
        && parts.iter().all(|part| (1..=4).contains(&part.len()))
        && (rest.is_empty() || rest.starts_with(['+', ' ', '-']))
        && text.chars().all(|c| c.is_ascii_graphic() || c == ' ')
}

/// The SBAT section's lines: component and generation. It is CSV that begins with a line about itself.
fn sbat(bytes: &[u8]) -> Vec<(String, u32)> {
    sbat_lines(bytes)
        .filter_map(|line| {
            let mut fields = line.split(',');
            Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
        })
        .collect()
}

fn sbat_lines(bytes: &[u8]) -> impl Iterator<Item = &str> {
    let text =
        find(bytes, b"sbat,1,SBAT Version,").and_then(|at| bytes.get(at..(at + 4096).min(bytes.len())));
    let end = text.and_then(|text| text.iter().position(|byte| *byte == 0));
    let text = text.map(|text| text.get(..end.unwrap_or(text.len())).unwrap_or_default());
    text.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default().lines().take(32)
}

fn sbat_version(bytes: &[u8], component: &str) -> Option<String> {
    let line = sbat_lines(bytes).find(|line| line.starts_with(component))?;
    line.split(',').nth(4).map(|version| version.chars().take(VERSION_MAX).collect())
}

/// The common names in a PE file's certificate table, each once, in order; those of organizations where there is none.
fn signers(bytes: &[u8]) -> Vec<String> {
    // id-at-commonName and id-at-organizationName.
    const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    const ORGANIZATION: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x0a];
    let Some(table) = certificate_table(bytes) else { return Vec::new() };
    let mut kinds = [COMMON_NAME, ORGANIZATION].into_iter().map(|kind| names_in(table, kind));
    kinds.find(|names| !names.is_empty()).unwrap_or_else(|| vec!["somebody without a name".to_owned()])
}

/// The texts behind this attribute's name, each once, in order: a string type, a length, the text.
fn names_in(mut table: &[u8], attribute: &[u8]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    while let Some(at) = find(table, attribute) {
        let rest = table.get(at + attribute.len()..).unwrap_or_default();
        if let [kind, len @ 0..=0x7f, text @ ..] = rest {
            let text = text.get(..usize::from(*len)).unwrap_or_default();
            let name: String = match kind {
                0x1e => {
                    let units: Vec<u16> = text
                        .chunks_exact(2)
                        .map(|pair| u16::from(pair[0]) << 8 | u16::from(pair[1]))
                        .collect();
                    String::from_utf16_lossy(&units)
                }
                _ => String::from_utf8_lossy(text).into_owned(),
            };
            let name: String = name.chars().filter(|c| !c.is_control()).collect();
            if !name.is_empty() && !names.contains(&name) && names.len() < SIGNERS_MAX {
                names.push(name);
            }
        }
        table = rest;
    }
    names
}

/// The attribute certificate table of a PE file (PE/COFF: data directory 4, a file offset), `None` without one.
fn certificate_table(bytes: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if bytes.get(..2)? != b"MZ" {
        return None;
    }
    let pe = usize::try_from(u32_at(0x3c)?).ok()?;
    let optional = pe.checked_add(24)?;
    let directories =
        match u16::from_le_bytes(bytes.get(optional..optional.checked_add(2)?)?.try_into().ok()?) {
            0x10b => 96,
            0x20b => 112,
            _ => return None,
        };
    let entry = optional.checked_add(directories + 4 * 8)?;
    let (at, len) = (usize::try_from(u32_at(entry)?).ok()?, usize::try_from(u32_at(entry + 4)?).ok()?);
    if at == 0 || len < 8 {
        return None;
    }
    bytes.get(at..at.checked_add(len)?)
}

/// A family's way through the loader table: what it is offered, and what follows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Chain {
    /// The machines.
    pub family: Family,
    /// Names configured, in order.
    pub wanted: Vec<String>,
    /// The one machines are offered: the first that is there and is for them.
    pub first: Option<String>,
    /// What that one loads next by itself: a shim's second stage.
    pub next: Option<String>,
    /// What will not work.
    pub warnings: Vec<String>,
}

/// Follows a family through the table.
pub fn chain(table: &LoaderTable, family: Family, https: bool) -> Chain {
    let wanted = table.preferences().of(family).to_vec();
    let mut chain = Chain { family, wanted, first: None, next: None, warnings: Vec::new() };
    for name in &chain.wanted {
        if let Some(loader) = table.find(name)
            && !loader.suits(family)
        {
            chain.warnings.push(format!("{name} is passed over: it is not built for {}", family.word()));
        }
    }
    let Some(first) = table.for_family(family) else {
        if !chain.wanted.is_empty() {
            chain.warnings.push(format!(
                "none of {} is in the loader folders: {} machines are offered nothing",
                chain.wanted.join(", "),
                family.word()
            ));
        }
        return chain;
    };
    chain.first = Some(first.served.name.clone());
    follow(table, first, https, &mut chain);
    chain
}

fn follow(table: &LoaderTable, loader: &Loader, https: bool, chain: &mut Chain) {
    let name = &loader.served.name;
    let facts = match read(loader.served.path()) {
        Ok(facts) => facts,
        Err(error) => return chain.warnings.push(format!("{name} cannot be read: {error}")),
    };
    match facts.what {
        What::Ipxe => {
            if facts.lacks("http") {
                chain.warnings.push(format!("{name} has no HTTP: it cannot fetch its script"));
            }
            if https && facts.lacks("https") {
                chain.warnings.push(format!("{name} has no HTTPS: it gets plain HTTP"));
            }
        }
        What::Shim => {
            let second = second_stage(name, facts.cpu);
            chain.next = Some(second.clone());
            match table.find(&second) {
                None => chain.warnings.push(format!(
                    "{name} loads {second} next, which is not there: put the second stage beside it, under that name"
                )),
                Some(next) => match read(next.served.path()) {
                    Ok(next_facts) => {
                        if next_facts.signed_by.is_empty() {
                            chain.warnings.push(format!(
                                "{second} is not signed: {name} refuses it while Secure Boot is on"
                            ));
                        }
                        if next_facts.what == What::Ipxe {
                            if next_facts.lacks("http") {
                                chain.warnings.push(format!("{second} has no HTTP: it cannot fetch its script"));
                            }
                            if next_facts.lacks("autoexec") {
                                chain.warnings.push(format!(
                                    "{second} does not look for autoexec.ipxe: behind a shim it depends on what DHCP \
                                     tells it"
                                ));
                            }
                        }
                        if next_facts.cpu != facts.cpu {
                            chain.warnings.push(format!("{second} is built for another processor than {name}"));
                        }
                    }
                    Err(error) => chain.warnings.push(format!("{second} cannot be read: {error}")),
                },
            }
        }
        What::Grub => {
            let config = sibling(name, "grub.cfg");
            if table.find(&config).is_none() {
                chain.warnings.push(format!(
                    "{name} is a GRUB and asks for a grub.cfg of its own; it never asks for a job's script"
                ));
            }
        }
        What::Mokmanager | What::Wimboot | What::Kernel => {
            chain.warnings.push(format!("{name} is no first loader: it is {}", facts.what.word()));
        }
        What::Windows | What::Syslinux => chain.warnings.push(format!(
            "{name} goes its own way ({}): it never asks for a job's script",
            facts.what.word()
        )),
        What::Other => {}
    }
}

fn sibling(name: &str, file: &str) -> String {
    match name.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{file}"),
        None => file.to_owned(),
    }
}

/// What a shim loads next, from the name it was loaded by: iPXE's shim takes `ipxe-shim.efi`, `snponly-shimx64.efi` to
/// mean `ipxe.efi`, `snponly.efi`; everybody else's loads GRUB under its architecture's name.
fn second_stage(name: &str, cpu: Option<Cpu>) -> String {
    let file = folded(base(name));
    let stem = file.strip_suffix(".efi").unwrap_or(&file);
    let suffixes = ["-shimx64", "-shimia32", "-shimaa64", "-shim"];
    let second = match suffixes.iter().find_map(|suffix| stem.strip_suffix(suffix)) {
        Some(stem) if !stem.is_empty() => format!("{stem}.efi"),
        _ => match cpu {
            Some(Cpu::X86) => "grubia32.efi".to_owned(),
            Some(Cpu::Arm64) => "grubaa64.efi".to_owned(),
            _ => "grubx64.efi".to_owned(),
        },
    };
    sibling(name, &second)
}

/// Takes any bytes for a loader. For fuzz targets and the mutation tests. Panics only when something is told of them that
/// nobody could print.
pub fn fuzz_loader(bytes: &[u8]) {
    let facts = of(bytes);
    assert_eq!(facts.len, bytes.len() as u64);
    assert!(facts.signed_by.len() <= SIGNERS_MAX && facts.sbat.len() <= 32);
    let texts = facts.signed_by.iter().chain(facts.version.iter());
    for text in texts {
        assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
    }
    assert!(facts.version.is_none_or(|version| version.chars().count() <= VERSION_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::library::test_site::Site;
    use crate::files::sniff::samples;

    /// An EFI program with these texts in it, and a signature by `signer` if there is one.
    fn program(machine: u16, texts: &[&[u8]], signer: Option<&str>) -> Vec<u8> {
        let mut bytes = samples::efi(machine);
        for text in texts {
            bytes.push(0);
            bytes.extend_from_slice(text);
            bytes.push(0);
        }
        if let Some(signer) = signer {
            let at = bytes.len() as u32;
            let mut table = vec![0; 8];
            table.extend_from_slice(&[0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, signer.len() as u8]);
            table.extend_from_slice(signer.as_bytes());
            let optional = 0x80 + 24;
            bytes[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
            let entry = optional + 112 + 32;
            bytes[entry..entry + 4].copy_from_slice(&at.to_le_bytes());
            bytes[entry + 4..entry + 8].copy_from_slice(&(table.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&table);
        }
        bytes
    }

    const SHIM: &[u8] = b"UEFI SHIM\n$Version: 15.8 $\n$BuildMachine: Linux x86_64 $";
    const IPXE: &[&[u8]] =
        &[b"iPXE", b"http://ipxe.org/cfg/%s", b"#!ipxe", b"1.21.1+ (g1a2b3)", b"http", b"param"];

    #[test]
    fn ipxe_tells_its_version_and_what_it_can_do() {
        let facts = of(&program(0x8664, IPXE, None));
        assert_eq!((facts.what, facts.cpu), (What::Ipxe, Some(Cpu::X64)));
        assert_eq!(facts.version.as_deref(), Some("1.21.1+ (g1a2b3)"));
        assert_eq!(facts.features.as_deref(), Some(&["http", "params"][..]));
        assert!(facts.lacks("https") && !facts.lacks("http"));
        assert_eq!(facts.signed_by, Vec::<String>::new());
        for (text, version) in [
            ("1.0.0+git-20190125.36a4c85-5.1", true),
            ("2.0.0", true),
            ("10.77.0.1", false),
            ("1.2", false),
            ("1.1.1.1", false),
            ("2.5.4.3x", false),
        ] {
            assert_eq!(is_version(text), version, "{text}");
        }
    }

    #[test]
    fn a_compressed_build_that_nobody_knows_says_nothing_of_its_features() {
        let facts = of(b"PXE->EB:\0packed");
        assert_eq!((facts.what, facts.version, facts.features), (What::Ipxe, None, None));
    }

    #[test]
    fn shim_grub_and_wimboot_are_told_apart_by_what_they_say_of_themselves() {
        let shim = of(&program(0x8664, &[SHIM, b"iPXE"], Some("Microsoft Corporation UEFI CA 2011")));
        assert_eq!((shim.what, shim.version.as_deref()), (What::Shim, Some("15.8")));
        assert_eq!(shim.signed_by, ["Microsoft Corporation UEFI CA 2011"]);
        let sbat = b"sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim\ngrub,4,Free Software Foundation,grub,\
                     2.06,https://www.gnu.org/software/grub/\ngrub.debian,5,Debian,grub2,2.06-13,https://debian.org\n";
        let grub = of(&program(0x8664, &[sbat, b"grub_"], None));
        assert_eq!((grub.what, grub.version.as_deref()), (What::Grub, Some("2.06-13")));
        assert_eq!(grub.sbat, ["sbat,1", "grub,4", "grub.debian,5"]);
        let wimboot =
            of(b"\0wimboot v2.7.5 -- Windows Imaging Format bootloader -- https://ipxe.org/wimboot\0");
        assert_eq!((wimboot.what, wimboot.version.as_deref()), (What::Wimboot, Some("2.7.5")));
    }

    #[test]
    fn bytes_that_lie_about_where_things_are_harm_nobody() {
        let good = program(0x8664, &[SHIM], Some("x"));
        for at in 0..good.len().min(0x200) {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            of(&bad);
            of(&good[..at]);
        }
    }

    #[test]
    fn shims_name_their_second_stage() {
        for (name, cpu, second) in [
            ("shimx64.efi", Cpu::X64, "grubx64.efi"),
            ("sb/shimaa64.efi", Cpu::Arm64, "sb/grubaa64.efi"),
            ("shim.efi", Cpu::X86, "grubia32.efi"),
            ("x86_64-sb/ipxe-shim.efi", Cpu::X64, "x86_64-sb/ipxe.efi"),
            ("SNPONLY-SHIMX64.EFI", Cpu::X64, "snponly.efi"),
        ] {
            assert_eq!(second_stage(name, Some(cpu)), second, "{name}");
        }
    }

    fn warnings(site: &Site, prefer: &[&str]) -> Vec<String> {
        let mut settings = site.settings();
        settings.uefi_x64 = prefer.iter().map(|name| (*name).to_owned()).collect();
        let library = crate::files::Library::open(settings).unwrap();
        chain(library.load().loaders(), Family::UefiX64, true).warnings
    }

    #[test]
    fn a_chain_is_followed_to_the_hop_that_is_missing_or_cannot_go_on() {
        let site = Site::new();
        site.write("loaders/sb/ipxe-shim.efi", &program(0x8664, &[SHIM], Some("Microsoft")));
        let one = |found: Vec<String>, wanted: &str| {
            assert!(found.iter().any(|warning| warning.contains(wanted)), "{wanted}: {found:?}");
        };
        one(warnings(&site, &["sb/ipxe-shim.efi"]), "sb/ipxe.efi next, which is not there");
        site.write("loaders/sb/ipxe.efi", &program(0x8664, IPXE, None));
        one(warnings(&site, &["sb/ipxe-shim.efi"]), "sb/ipxe.efi is not signed");
        one(warnings(&site, &["sb/ipxe-shim.efi"]), "does not look for autoexec.ipxe");
        let texts: Vec<&[u8]> = IPXE.iter().copied().chain([b"autoexec.ipxe".as_slice(), b"https"]).collect();
        site.write("loaders/sb/ipxe.efi", &program(0x8664, &texts, Some("iPXE")));
        assert_eq!(warnings(&site, &["sb/ipxe-shim.efi"]), Vec::<String>::new());
        site.write("loaders/plain.efi", &program(0x8664, &IPXE[..4], None));
        one(warnings(&site, &["plain.efi"]), "plain.efi has no HTTP");
        site.write("loaders/old.efi", &program(0x014c, IPXE, None));
        one(warnings(&site, &["old.efi", "plain.efi"]), "old.efi is passed over");
        one(warnings(&site, &["none.efi"]), "none of none.efi is in the loader folders");
    }
}

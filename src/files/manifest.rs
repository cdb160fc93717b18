//! `image.toml`: what an operator says about an image instead of letting it be guessed.

use serde::Deserialize;

use crate::jobs::image::{Access, ImageKind};
use crate::jobs::script;
use crate::wire::arch::Cpu;

/// Name of the file in an image's folder. It is never served.
pub const MANIFEST_NAME: &str = "image.toml";

/// The file's content. Every key is optional; any other key is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Shown to people.
    pub title: Option<String>,
    /// How it boots.
    pub kind: Option<ImageKind>,
    /// Processor it is built for.
    #[serde(default, deserialize_with = "cpu")]
    pub arch: Option<Cpu>,
    /// Kernel or wimboot arguments.
    pub args: Option<String>,
    /// The boot files, main one first.
    pub files: Option<Vec<String>>,
    /// WIM index to boot.
    pub index: Option<u32>,
    /// May wipe a disk.
    #[serde(default)]
    pub destructive: bool,
    /// Who may fetch the payload.
    #[serde(default)]
    pub access: Access,
    /// The sub-menu it is in.
    pub group: Option<String>,
    /// The key that chooses it in the menu.
    #[serde(default, deserialize_with = "menu_key")]
    pub key: Option<char>,
    /// The loader of machines with a job for it.
    pub loader: Option<String>,
    /// Answer files: names in the folder's `private`.
    pub answers: Option<Vec<String>>,
    /// Answer files that are given once per boot.
    pub answers_once: Option<Vec<String>>,
}

/// An `image.toml` that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadManifest {
    /// One line: file, line, what is wrong with which key.
    pub reason: String,
    /// The access to assume. A file that may have meant to close the payload closes it, however misspelt.
    pub access: Access,
    /// As far as it could be read.
    pub destructive: bool,
}

impl Manifest {
    /// Reads the file's text.
    ///
    /// # Errors
    /// [`BadManifest`] naming file, line and key.
    pub fn parse(text: &str) -> Result<Self, BadManifest> {
        let bad = |reason: String| {
            let (access, destructive) = assume(text);
            BadManifest { reason, access, destructive }
        };
        let manifest: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().and_then(|span| text.get(..span.start));
            let line = line.map_or(1, |before| before.matches('\n').count() + 1);
            // The parser's message may have several lines; the reason stands in lists, on one.
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            let key =
                text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
            let key = key.filter(|key| !message.contains(&format!("`{key}`")));
            let key = key.map(|key| format!("key {key}: ")).unwrap_or_default();
            bad(format!("{MANIFEST_NAME} line {line}: {key}{message}"))
        })?;
        if manifest.index == Some(0) {
            return Err(bad(format!("{MANIFEST_NAME}: key index: WIM images are counted from 1")));
        }
        Ok(manifest)
    }
}

fn assume(text: &str) -> (Access, bool) {
    let Ok(table) = text.parse::<toml::Table>() else { return (Access::Boot, true) };
    let open = match table.get("access") {
        Some(access) => access.as_str() == Some("open"),
        None => !table.values().any(|value| value.as_str() == Some("boot")),
    };
    let destructive = table.get("destructive").is_some_and(|value| value.as_bool() != Some(false));
    (if open { Access::Open } else { Access::Boot }, destructive)
}

fn cpu<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Cpu>, D::Error> {
    let text = String::deserialize(deserializer)?;
    cpu_word(&text).map(Some).ok_or_else(|| {
        serde::de::Error::custom(format!("unknown arch `{text}`, expected x86, x64, arm32 or arm64"))
    })
}

fn menu_key<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<char>, D::Error> {
    let text = String::deserialize(deserializer)?.to_ascii_lowercase();
    script::menu_key(&text).map(Some).ok_or_else(|| {
        let reserved = script::MENU_KEYS_RESERVED;
        serde::de::Error::custom(format!("expected one letter or digit that is none of {reserved}"))
    })
}

/// A processor by any of its common names.
pub fn cpu_word(text: &str) -> Option<Cpu> {
    Some(match text.trim().to_ascii_lowercase().as_str() {
        "x86" | "i386" | "i686" | "ia32" => Cpu::X86,
        "x64" | "x86_64" | "x86-64" | "amd64" => Cpu::X64,
        "arm" | "arm32" | "armhf" => Cpu::Arm32,
        "arm64" | "aarch64" | "aa64" => Cpu::Arm64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = r#"
            title = "Windows PE"
            kind = "winpe"
            arch = "amd64"
            args = "gui"
            files = ["boot.wim", "startnet.cmd"]
            index = 2
            destructive = true
            access = "boot"
            group = "Windows"
            key = "W"
            loader = "ipxe.efi"
            answers = ["a.xml"]
            answers_once = ["b.xml"]
        "#;
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.title.as_deref(), Some("Windows PE"));
        assert_eq!(manifest.kind, Some(ImageKind::Winpe));
        assert_eq!(manifest.arch, Some(Cpu::X64));
        assert_eq!(manifest.args.as_deref(), Some("gui"));
        assert_eq!(manifest.files.unwrap().len(), 2);
        assert_eq!(manifest.index, Some(2));
        assert!(manifest.destructive);
        assert_eq!((manifest.group.as_deref(), manifest.key), (Some("Windows"), Some('w')));
        assert_eq!(manifest.loader.as_deref(), Some("ipxe.efi"));
        assert_eq!((manifest.answers.unwrap().len(), manifest.answers_once.unwrap().len()), (1, 1));
        assert_eq!(manifest.access, Access::Boot);
        assert_eq!(Manifest::parse("").unwrap(), Manifest::default());
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        for (text, line, key) in [
            ("title = \"a\"\ntitel = \"b\"", 2, "titel"),
            ("kind = \"windows\"", 1, "kind"),
            ("\n\nindex = \"two\"", 3, "index"),
            ("arch = \"sparc\"", 1, "arch"),
            ("access = \"all\"", 1, "access"),
            ("key = \"l\"", 1, "key"),
            ("key = \"ab\"", 1, "key"),
            ("key = \"#\"", 1, "key"),
            ("files = \"boot.wim\"", 1, "files"),
        ] {
            let bad = Manifest::parse(text).unwrap_err();
            assert!(bad.reason.starts_with(&format!("image.toml line {line}: ")), "{}", bad.reason);
            assert!(bad.reason.contains(key), "{}", bad.reason);
            assert!(!bad.reason.contains('\n'));
        }
        assert!(Manifest::parse("index = 0").unwrap_err().reason.contains("index"));
        assert!(Manifest::parse("title = ").is_err());
    }

    #[test]
    fn a_broken_file_never_opens_what_it_may_have_closed() {
        for (text, access) in [
            ("titel = \"x\"", Access::Open),
            ("titel = \"x\"\naccess = \"boot\"", Access::Boot),
            ("acess = \"boot\"", Access::Boot),
            ("access = \"Boot\"", Access::Boot),
            ("access = [", Access::Boot),
            ("access = \"open\"\nx = 1", Access::Open),
        ] {
            assert_eq!(Manifest::parse(text).unwrap_err().access, access, "{text}");
        }
        assert!(Manifest::parse("destructive = true\nx = 1").unwrap_err().destructive);
        assert!(Manifest::parse("destructive = \"yes\"").unwrap_err().destructive);
    }
}

//! What an image is, as far as jobs, scripts and lists need to know. Found out by `files`, decided on here.

use serde::{Deserialize, Serialize};

use super::answers::Answer;
use super::gss::GssForm;
use super::template::Template;
use crate::wire::arch::{Cpu, Platform};

/// How an image boots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// WinPE: a WIM through wimboot.
    Winpe,
    /// Linux: kernel, initrds, arguments.
    Linux,
    /// An ISO by `sanboot`.
    Iso,
    /// An EFI program by `chain`.
    Efi,
    /// An operator's own iPXE script.
    Script,
}

/// Who may fetch the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Anyone who can reach the port.
    #[default]
    Open,
    /// Only a boot's own URLs (`/s/TOKEN/...`).
    Boot,
}

/// The files of an image by the part they play; names are relative to the image's folder, `/`-separated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum BootFiles {
    /// wimboot, one WIM, and files wimboot injects or prefers (BCD, boot.sdi, bootmgr.exe, startnet.cmd, ...).
    Winpe {
        /// Where wimboot is: in the image's folder (`images/NAME/FILE`) or in the loader table.
        wimboot: WimbootAt,
        /// The WIM.
        wim: String,
        /// Further files by name.
        extra: Vec<String>,
    },
    /// Kernel and initrds in order.
    Linux {
        /// Kernel.
        kernel: String,
        /// Initrds, possibly none.
        initrds: Vec<String>,
    },
    /// One ISO.
    Iso {
        /// The ISO.
        iso: String,
    },
    /// One EFI program.
    Efi {
        /// The program.
        program: String,
    },
    /// One script.
    Script {
        /// The script.
        script: String,
    },
    /// Nothing that iPXE could boot: the folder's own boot programs do ([`GssForm::native`]).
    Native,
}

/// A kernel argument that names one of the image's own files by URL. The URL is a boot's own, so it is known only when
/// its script is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UrlArg {
    /// What stands in front of the URL: `fetch=`.
    pub word: String,
    /// The file below the image's folder; empty for the folder itself, with a slash at its end.
    pub file: String,
}

/// Where an image's wimboot comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WimbootAt {
    /// In the image's own folder, under this name.
    Image(String),
    /// In a loader folder, under this name (`/loaders/NAME`).
    Loader(String),
}

/// One payload file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageFile {
    /// Name below the image's folder, `/`-separated, as on disk.
    pub name: String,
    /// Bytes.
    pub len: u64,
}

/// An image folder as recognised.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Image {
    /// Folder name: the image's name everywhere.
    pub name: String,
    /// Shown to people; the name if nothing better is known.
    pub title: String,
    /// How it boots; `None` when it was not recognised.
    pub kind: Option<ImageKind>,
    /// Processor it is built for, if known.
    pub cpu: Option<Cpu>,
    /// Platform it needs, if it needs one.
    pub platform: Option<Platform>,
    /// Kernel or wimboot arguments.
    pub args: String,
    /// WIM index to boot, if not the WIM's own.
    pub index: Option<u32>,
    /// May wipe a disk.
    pub destructive: bool,
    /// Who may fetch the payload.
    pub access: Access,
    /// The parts, when it can boot.
    pub boot: Option<BootFiles>,
    /// Why it cannot boot; never offered then.
    pub unbootable: Option<String>,
    /// Things to know before booting it.
    pub warnings: Vec<String>,
    /// Payload files.
    pub files: Vec<ImageFile>,
    /// The sub-menu it is in; on the first page without one.
    #[serde(default)]
    pub group: Option<String>,
    /// The key that chooses it in the menu, if it has one of its own.
    #[serde(default)]
    pub key: Option<char>,
    /// The loader that firmware of machines with a job for it is given, where it fits, instead of what everybody gets.
    #[serde(default)]
    pub loader: Option<String>,
    /// Of a custom script with variables: its text, written into the machine's script instead of being fetched.
    #[serde(skip)]
    pub template: Option<Template>,
    /// Answer files by name.
    #[serde(default)]
    pub answers: Vec<Answer>,
    /// Arguments that name files of the image by URL, before [`Image::args`].
    #[serde(default)]
    pub url_args: Vec<UrlArg>,
    /// Of a folder laid out as GSS and DS do: who boots it by iPXE and who without.
    #[serde(default)]
    pub gss: Option<GssForm>,
}

impl Image {
    /// Total payload bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }
}

/// Where decisions and scripts look images up; implemented by the catalogue in `files`.
pub trait Images {
    /// An image by its exact name, bootable or not.
    fn image(&self, name: &str) -> Option<&Image>;
    /// Every image in name order, bootable or not.
    fn list(&self) -> &[std::sync::Arc<Image>];
}

//! `image`, `import` and `loader`.

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand, ValueEnum};

use crate::files::manifest::cpu_word;
use crate::jobs::script;

/// `image`.
#[derive(Subcommand, Debug)]
pub enum ImageVerb {
    /// Take files in as an image, or as the next version of one
    #[command(
        after_help = "Example: bootstorm image add winpe boot.wim startnet.cmd --title \"Windows PE\"\n         bootstorm \
                      image add winpe boot.wim --update\n         bootstorm image add rescue ./live-build/ --args \"boot=live \
                      quiet\"\n\nFiles are copied, checked and hashed first, and then put in place in one step; downloads that run end \
                      with the version they began with. A damaged file is refused with exit code 1 and one line that says why; \
                      one that is sound but will give trouble is taken, with a line that begins with warning:."
    )]
    Add(Box<ImageAdd>),
    /// List images, with why some cannot boot
    #[command(after_help = "Example: bootstorm image list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one image with its files, its WIMs and its version
    #[command(after_help = "Example: bootstorm image show winpe-x64")]
    Show {
        /// Name
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether an image boots by iPXE or by its folder's own boot program
    #[command(
        subcommand,
        after_help = "Example: bootstorm image loader disable MenuOption128\n\nThe switch is files in the image's folder, as in \
                      GSS and DS: zipxe.0 for BIOS, ipxe64.efi and ipxe32.efi for UEFI machines. A running server shows a \
                      change at the machines' next packet."
    )]
    Loader(ImageLoaderVerb),
    /// Read images again, and compare every byte with what was taken in
    #[command(
        after_help = "Example: bootstorm image verify winpe\n         bootstorm image verify --all\n\nExit code 1 and a line \
                      for every file that is not as it was. A run that was broken off goes on where it was."
    )]
    Verify(ImageVerify),
    /// List the versions of an image, the one that is served first
    #[command(after_help = "Example: bootstorm image versions winpe")]
    Versions {
        /// Name
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve an earlier version of an image again
    #[command(
        after_help = "Example: bootstorm image rollback winpe\n         bootstorm image rollback winpe 3\n\nThe version that \
                      was served until then is kept, so that this can be taken back too."
    )]
    Rollback {
        /// Name
        name: String,
        /// The version [default: the newest one before the one that is served]
        version: Option<u32>,
        /// Also one whose files are not what they were when they were taken in
        #[arg(long)]
        force: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image with all its versions, or one earlier version
    #[command(
        after_help = "Example: bootstorm image remove old-winpe\n         bootstorm image remove winpe --version 3\n\nAn image \
                      that a live job boots is not removed: cancel the job first, or say --force."
    )]
    Remove {
        /// Name
        name: String,
        /// Only this earlier version
        #[arg(long, value_name = "N")]
        version: Option<u32>,
        /// Although jobs need it: their machines are told that it is not there
        #[arg(long)]
        force: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `image add`.
#[derive(clap::Args, Debug)]
pub struct ImageAdd {
    /// The image's name: the name of its folder, and a part of its URLs
    pub name: String,
    /// Files, and folders whose content is meant
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The new version holds just these files; settings and answer files stay (the default)
    #[arg(long, conflicts_with = "update")]
    pub replace: bool,
    /// The other files of the version before stay, too
    #[arg(long)]
    pub update: bool,
    /// Only if there is no image of that name
    #[arg(long, conflicts_with_all = ["replace", "update"])]
    pub new: bool,
    /// How many earlier versions are kept for a way back
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub keep: usize,
    /// Shown to people in lists and menus, up to 200 bytes
    #[arg(long, value_parser = title)]
    pub title: Option<String>,
    /// How it boots [default: seen from the files]
    #[arg(long, value_enum)]
    pub kind: Option<KindArg>,
    /// Processor it is built for: x86, x64, arm32, arm64 [default: seen from the files]
    #[arg(long, value_parser = processor)]
    pub arch: Option<String>,
    /// Kernel or wimboot arguments
    #[arg(long, allow_hyphen_values = true)]
    pub args: Option<String>,
    /// The boot files, main one first [default: seen from their names]
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    pub boot_files: Option<Vec<String>>,
    /// Which image of the WIM is booted [default: the WIM's own boot index]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub index: Option<u32>,
    /// It may wipe a disk: boots of it pass the point of no return once (--destructive=false takes that back)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub destructive: Option<bool>,
    /// Who may fetch its files: anyone who reaches the port, or only a boot with its token
    #[arg(long, value_enum)]
    pub access: Option<AccessArg>,
    /// The sub-menu it is shown in
    #[arg(long)]
    pub group: Option<String>,
    /// The key that chooses it in the menu
    #[arg(long, value_parser = key)]
    pub key: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `--kind`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum KindArg {
    Winpe,
    Linux,
    Iso,
    Efi,
    Script,
}

/// `--access`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "shown as they are")]
pub enum AccessArg {
    Open,
    Boot,
}

/// `image verify`.
#[derive(clap::Args, Debug)]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["name", "all"])))]
pub struct ImageVerify {
    /// The image; its version that is served, and with --all every one that is kept
    pub name: Option<String>,
    /// Every image, and every version that is kept
    #[arg(long)]
    pub all: bool,
    /// What is there now is what is wanted: take it down as such
    #[arg(long)]
    pub accept: bool,
    /// Begin anew instead of going on with a run that was broken off
    #[arg(long)]
    pub restart: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `import`.
#[derive(Subcommand, Debug)]
pub enum ImportVerb {
    /// Read a PXE images tree of Ghost Solution Suite or Deployment Solution
    #[command(
        after_help = "Example: bootstorm import gss /mnt/express/PXE\n         bootstorm import gss /srv/PXE/Images --serve\n\nSays \
                      what each folder holds, whether its iPXE is on, and what cannot be served and why. Nothing in the tree is \
                      changed."
    )]
    Gss(ImportGss),
}

/// `import gss`.
#[derive(clap::Args, Debug)]
pub struct ImportGss {
    /// The images folder (SBS/Images, PXE/Images), or one above it
    pub dir: PathBuf,
    /// Copy its folders into the images folder; one whose name is taken is left out
    #[arg(long, conflicts_with = "serve")]
    pub copy: bool,
    /// Serve it where it lies: writes it into [images] trees of the configuration file
    #[arg(long)]
    pub serve: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `loader`.
#[derive(Subcommand, Debug)]
pub enum LoaderVerb {
    /// List the loader folders' files with version, features and signature, and warn of what will not work
    #[command(after_help = "Example: bootstorm loader list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one loader
    #[command(after_help = "Example: bootstorm loader show snponly.efi")]
    Show {
        /// Its name below the loader folders
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `image loader`.
#[derive(Subcommand, Debug)]
pub enum ImageLoaderVerb {
    /// Switch iPXE on: loaders that were set aside come back, missing ones are copied from the loader folders
    #[command(after_help = "Example: bootstorm image loader enable MenuOption128")]
    Enable {
        /// The image
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Switch iPXE off: the loaders in the folder are set aside, and machines boot by the folder's own program over TFTP
    #[command(after_help = "Example: bootstorm image loader disable MenuOption128")]
    Disable {
        /// The image
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

// What a value may be, said beside its flag. An empty text takes a setting away.

fn processor(text: &str) -> Result<String, String> {
    match text.is_empty() || cpu_word(text).is_some() {
        true => Ok(text.to_owned()),
        false => Err("expected x86, x64, arm32 or arm64".into()),
    }
}

fn key(text: &str) -> Result<String, String> {
    match text.is_empty() || script::menu_key(&text.to_ascii_lowercase()).is_some() {
        true => Ok(text.to_owned()),
        false => Err(format!("expected one letter or digit that is none of {}", script::MENU_KEYS_RESERVED)),
    }
}

fn title(text: &str) -> Result<String, String> {
    match text.len() <= 200 && !text.contains(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("expected up to 200 bytes, without control characters".into()),
    }
}

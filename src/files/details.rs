//! What lists show of an image beyond what booting it needs: its version, and what its WIMs say of themselves.

use std::path::Path;

use serde::Serialize;

use crate::files::record::Record;
use crate::files::scan::Walk;
use crate::files::versions;
use crate::files::wim::{WimInfo, WimReport};
use crate::jobs::image::Image;
use crate::wire::arch::Cpu;
use crate::wire::wim::Header;

/// An image with all that is known of it, as one document.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shown<'a> {
    /// The image.
    #[serde(flatten)]
    pub image: &'a Image,
    /// The rest.
    #[serde(flatten)]
    pub details: &'a Details,
}

/// What a scan found out about an image's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    /// The number of the version that is served; `None` for a folder that was put there by hand and never verified.
    pub version: Option<u32>,
    /// When it was taken in, seconds since 1970.
    pub added_unix: Option<u64>,
    /// Since when every file of it is known to be as it was taken in, seconds since 1970.
    pub verified_unix: Option<u64>,
    /// Numbers of the versions kept beside it, newest first.
    pub versions_kept: Vec<u32>,
    /// Files whose length or time is another than when they were taken in.
    pub changed: Vec<String>,
    /// Its WIMs in name order.
    pub wims: Vec<WimShown>,
}

/// A WIM file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WimShown {
    /// Name below the image's folder.
    pub file: String,
    /// Bytes.
    pub len: u64,
    /// GUID as 32 hexadecimal digits, in file order.
    pub guid: String,
    /// `none`, `XPRESS`, `LZX`, `LZMS` or `unknown`.
    pub compression: String,
    /// Bytes per compressed chunk.
    pub chunk_len: u32,
    /// Any resource is solid.
    pub solid: bool,
    /// wimlib's pipable layout.
    pub pipable: bool,
    /// This part of a split WIM, from 1.
    pub part: u16,
    /// Parts in all.
    pub parts: u16,
    /// Image to boot; 0 is none.
    pub boot_index: u32,
    /// It carries an integrity table.
    pub integrity: bool,
    /// Images in the order of their index.
    pub images: Vec<WimImageShown>,
    /// What is wrong with it, worst first.
    pub findings: Vec<String>,
}

/// An image inside a WIM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WimImageShown {
    /// Index, from 1.
    pub index: u32,
    /// NAME.
    pub name: Option<String>,
    /// DESCRIPTION.
    pub description: Option<String>,
    /// DISPLAYNAME.
    pub display_name: Option<String>,
    /// FLAGS: the edition.
    pub flags: Option<String>,
    /// The processor, when the image holds Windows.
    pub arch: Option<Cpu>,
    /// `10.0.26100`, when the image holds Windows.
    pub version: Option<String>,
    /// EDITIONID.
    pub edition: Option<String>,
    /// PRODUCTNAME.
    pub product: Option<String>,
    /// INSTALLATIONTYPE.
    pub installation_type: Option<String>,
    /// LANGUAGES.
    pub languages: Vec<String>,
    /// LANGUAGES/DEFAULT.
    pub default_language: Option<String>,
    /// FILECOUNT.
    pub files: Option<u64>,
    /// DIRCOUNT.
    pub directories: Option<u64>,
    /// TOTALBYTES.
    pub bytes: Option<u64>,
    /// HARDLINKBYTES.
    pub hard_link_bytes: Option<u64>,
}

impl Details {
    /// Of a folder as it was walked; `root` is the images folder.
    pub fn of(root: &Path, name: &str, walk: &Walk) -> Self {
        let wims = walk.wims.iter().filter_map(|(file, look)| Some(WimShown::of(file, look.as_ref().ok()?)));
        let mut details = Self {
            wims: wims.collect(),
            versions_kept: versions::kept_beside(
                root,
                name,
                walk.record.as_ref().map(|record| record.version),
            ),
            ..Self::default()
        };
        if let Some(record) = &walk.record {
            details.version = Some(record.version);
            details.added_unix = Some(record.added_unix);
            details.changed = changed(record, walk);
            details.verified_unix = record.verified_unix().filter(|_| details.changed.is_empty());
        }
        details
    }
}

fn changed(record: &Record, walk: &Walk) -> Vec<String> {
    let other = walk.files.iter().filter(|found| !record.describes(&found.name, &found.identity));
    let is_there = |name: &String| walk.file(name).is_some() || walk.settling.contains(name);
    let gone = record.files.iter().map(|file| &file.name).filter(|name| !is_there(name));
    let mut names: Vec<String> =
        other.map(|found| &found.name).chain(&walk.settling).chain(gone).cloned().collect();
    names.sort();
    names
}

impl WimShown {
    /// Of a report; what a file without a readable header says is its findings alone.
    pub fn of(file: &str, report: &WimReport) -> Self {
        let findings = report.findings.iter().map(ToString::to_string).collect();
        match &report.info {
            Some(info) => Self { file: file.to_owned(), findings, ..Self::of_info(info) },
            None => Self { file: file.to_owned(), findings, ..Self::default() },
        }
    }

    fn of_info(info: &WimInfo) -> Self {
        let header: &Header = &info.header;
        let images = info.xml.images.iter().map(|image| {
            let windows = image.windows.clone().unwrap_or_default();
            let version = windows.version.map(|(major, minor, build)| format!("{major}.{minor}.{build}"));
            WimImageShown {
                index: image.index,
                name: image.name.clone(),
                description: image.description.clone(),
                display_name: image.display_name.clone(),
                flags: image.flags.clone(),
                arch: windows.cpu(),
                version,
                edition: windows.edition,
                product: windows.product,
                installation_type: windows.installation_type,
                languages: windows.languages,
                default_language: windows.default_language,
                files: image.file_count,
                directories: image.directory_count,
                bytes: image.total_bytes,
                hard_link_bytes: image.hard_link_bytes,
            }
        });
        Self {
            len: info.len,
            guid: header.guid.iter().map(|byte| format!("{byte:02x}")).collect(),
            compression: info.compression().to_string(),
            chunk_len: header.chunk_len,
            solid: info.solid,
            pipable: header.pipable,
            part: header.part_number,
            parts: header.part_count,
            boot_index: header.boot_index,
            integrity: info.has_integrity(),
            images: images.collect(),
            ..Self::default()
        }
    }
}

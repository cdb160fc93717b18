//! WIM files on disk: what is in them and what is wrong with them. Read by `pread` only, since a mapping of a file
//! that somebody cuts short would end the process.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::files::sha1::Sha1;
use crate::wire::arch::Cpu;
use crate::wire::reader::Reader;
use crate::wire::wim::xml::{self, ImageXml, WimXml, XML_LEN_MAX, XmlError};
use crate::wire::wim::{
    BLOB_ENTRY_LEN, BlobEntry, CHUNK_LEN, Compression, DIGEST_LEN, HEADER_LEN, Header, INTEGRITY_HEADER_LEN,
    IntegrityHeader, ResourceHeader, WimError,
};

/// From this length on a WIM does not fit the memory a 32-bit boot program can reach, twice over.
pub const LARGE_LEN: u64 = 2 << 30;

/// Longest blob table read, bytes: one and a quarter million blobs, ten times what the largest install media have.
pub const BLOB_TABLE_LEN_MAX: u64 = 64 << 20;

/// Bytes to read by offset: a file, or a piece of memory.
pub trait Source {
    /// Bytes in all.
    ///
    /// # Errors
    /// What the system says.
    fn byte_len(&self) -> io::Result<u64>;

    /// Reads some bytes from `offset` on; 0 at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_piece(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for File {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_piece(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buffer, offset)
    }
}

impl Source for [u8] {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_piece(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let have = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(have)
    }
}

/// What a finding means for the file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Worth knowing before booting.
    Warning,
    /// A sound file that wimboot cannot boot.
    NotBootable,
    /// Not a WIM, or a broken one: not to be taken in.
    Damaged,
}

/// Something about a WIM that is not as it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Header or tables are broken, or the file is cut short.
    Format(WimError),
    /// The write-in-progress flag is set.
    WriteInProgress,
    /// The XML cannot be read.
    Xml(XmlError),
    /// A blob table of more than [`BLOB_TABLE_LEN_MAX`] bytes.
    BlobTableTooLong(u64),
    /// Header and blob table disagree on how many images there are.
    Metadata {
        /// By the header.
        images: u32,
        /// Metadata resources in the blob table.
        found: u32,
    },
    /// The boot index names an image that is not there.
    BootIndexBeyond {
        /// Boot index.
        index: u32,
        /// Images there are.
        images: u32,
    },
    /// A part of a split set.
    Split {
        /// This part.
        part: u16,
        /// Parts in all.
        parts: u16,
    },
    /// wimlib's pipable layout.
    Pipable,
    /// Solid resources.
    Solid,
    /// A compression wimboot has no decoder for.
    Compression(Compression),
    /// Chunks of another length than 32 KiB.
    ChunkLen(u32),
    /// Holds no image.
    NoImages,
    /// No image is marked as the one to boot.
    NoBootIndex,
    /// [`LARGE_LEN`] or more.
    Large(u64),
    /// A blob's bytes are not those whose digest the blob table has, or its chunk table makes no sense.
    Blob {
        /// Entry of the blob table, from 0.
        index: u64,
        /// Where it begins in the file.
        offset: u64,
    },
    /// Bytes differ from what the integrity table says.
    Integrity {
        /// Chunk of the table, from 0.
        chunk: u32,
    },
}

impl Finding {
    /// What it means.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Format(_)
            | Self::WriteInProgress
            | Self::Xml(_)
            | Self::BlobTableTooLong(_)
            | Self::Metadata { .. }
            | Self::BootIndexBeyond { .. }
            | Self::Blob { .. }
            | Self::Integrity { .. } => Severity::Damaged,
            Self::Split { .. }
            | Self::Pipable
            | Self::Solid
            | Self::Compression(_)
            | Self::ChunkLen(_)
            | Self::NoImages => Severity::NotBootable,
            Self::NoBootIndex | Self::Large(_) => Severity::Warning,
        }
    }

    /// True when the file ends before its content does, as after an upload that stopped.
    pub fn is_truncation(&self) -> bool {
        matches!(self, Self::Format(WimError::Truncated { .. } | WimError::Outside { .. }))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(WimError::BadMagic) => write!(f, "not a WIM file"),
            Self::Format(error) if self.is_truncation() => write!(f, "truncated: {error}"),
            Self::Format(error) => write!(f, "damaged WIM: {error}"),
            Self::WriteInProgress => {
                write!(f, "marked as being written: copying or capturing it did not finish")
            }
            Self::Xml(error) => write!(f, "damaged WIM: {error}"),
            Self::BlobTableTooLong(len) => {
                write!(f, "damaged WIM: a blob table of {len} bytes, more than {BLOB_TABLE_LEN_MAX}")
            }
            Self::Metadata { images, found } => {
                write!(f, "damaged WIM: {images} images by its header, metadata of {found}")
            }
            Self::BootIndexBeyond { index, images } => {
                write!(f, "boot index {index}, but the WIM has {images} images")
            }
            Self::Split { part, parts } => {
                write!(
                    f,
                    "part {part} of a WIM split in {parts}, which wimboot cannot read: join the parts first"
                )
            }
            Self::Pipable => {
                write!(f, "a pipable WIM, which wimboot cannot read: export it without --pipable")
            }
            Self::Solid => {
                write!(f, "a solid WIM (ESD), which wimboot cannot read: export it with LZX first")
            }
            Self::Compression(kind) => {
                write!(f, "compressed with {kind}, which wimboot cannot read: export it with LZX first")
            }
            Self::ChunkLen(len) => {
                write!(f, "compressed in chunks of {len} bytes, and wimboot reads only chunks of {CHUNK_LEN}")
            }
            Self::NoImages => write!(f, "a WIM without an image"),
            Self::NoBootIndex => write!(f, "no image is marked bootable: wimboot needs index=N"),
            Self::Large(len) => write!(
                f,
                "{} MiB: the machine needs about twice that in memory, and 32-bit iPXE cannot hold it",
                len >> 20
            ),
            Self::Blob { index, offset } => {
                write!(
                    f,
                    "blob {index} at byte {offset} is not what its digest says: the file was damaged on its way"
                )
            }
            Self::Integrity { chunk } => {
                write!(f, "chunk {chunk} does not match the integrity table: the file was damaged on its way")
            }
        }
    }
}

/// What a WIM says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WimInfo {
    /// The header.
    pub header: Header,
    /// Bytes of the file.
    pub len: u64,
    /// Any resource is solid.
    pub solid: bool,
    /// Blob table entries.
    pub blob_count: u64,
    /// What the XML says; empty when it could not be read.
    pub xml: WimXml,
}

impl WimInfo {
    /// How resources are compressed.
    pub fn compression(&self) -> Compression {
        self.header.compression()
    }

    /// True when the file carries an integrity table; most do not.
    pub fn has_integrity(&self) -> bool {
        !self.header.integrity.is_absent()
    }

    /// The image that `index` (or, at `None`, the boot index) names; of a WIM with one image, that one.
    pub fn boot_image(&self, index: Option<u32>) -> Option<&ImageXml> {
        match index.unwrap_or(self.header.boot_index) {
            0 if self.header.image_count == 1 => self.xml.image(1),
            index => self.xml.image(index),
        }
    }

    /// The processor of that image.
    pub fn cpu(&self, index: Option<u32>) -> Option<Cpu> {
        self.boot_image(index)?.windows.as_ref()?.cpu()
    }
}

/// A WIM looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WimReport {
    /// What it says; `None` when there is no header to read.
    pub info: Option<WimInfo>,
    /// What is wrong with it, worst first.
    pub findings: Vec<Finding>,
}

impl WimReport {
    /// The worst finding if it is at least this bad.
    pub fn worst(&self, at_least: Severity) -> Option<&Finding> {
        self.findings.first().filter(|finding| finding.severity() >= at_least)
    }

    /// Findings that only warn.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity() == Severity::Warning)
    }
}

/// Looks at a WIM: header, blob table, XML. Reads a few pieces, not the images.
///
/// # Errors
/// Only what reading says; whatever is wrong with the content is a finding.
pub fn inspect(file: &(impl Source + ?Sized)) -> io::Result<WimReport> {
    let len = file.byte_len()?;
    let mut findings = Vec::new();
    let info = match read_header(file, len)? {
        Ok(header) => Some(inspect_parts(file, len, header, &mut findings)?),
        Err(error) => {
            findings.push(Finding::Format(error));
            None
        }
    };
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity()));
    Ok(WimReport { info, findings })
}

fn read_header(file: &(impl Source + ?Sized), len: u64) -> io::Result<Result<Header, WimError>> {
    let front = read_part(file, 0, len.min(HEADER_LEN as u64))?;
    let header = match Header::parse(&front) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    // A pipable WIM is written in one go: what was not known at the front stands in a second header at the end.
    if header.pipable && header.blob_table.is_absent() {
        let end = read_part(file, len.saturating_sub(HEADER_LEN as u64), HEADER_LEN as u64)?;
        return Ok(Header::parse(&end));
    }
    Ok(Ok(header))
}

fn inspect_parts(
    file: &(impl Source + ?Sized),
    len: u64,
    header: Header,
    findings: &mut Vec<Finding>,
) -> io::Result<WimInfo> {
    if header.flags & Header::WRITE_IN_PROGRESS != 0 {
        findings.push(Finding::WriteInProgress);
    }
    if header.pipable {
        findings.push(Finding::Pipable);
    }
    if header.part_count > 1 || header.part_number > 1 || header.flags & Header::SPANNED != 0 {
        findings.push(Finding::Split { part: header.part_number, parts: header.part_count });
    }
    match header.compression() {
        Compression::None => {}
        Compression::Lzx | Compression::Xpress if header.chunk_len == CHUNK_LEN => {}
        Compression::Lzx | Compression::Xpress => findings.push(Finding::ChunkLen(header.chunk_len)),
        other => findings.push(Finding::Compression(other)),
    }
    if header.image_count == 0 {
        findings.push(Finding::NoImages);
    } else if header.boot_index > header.image_count {
        findings.push(Finding::BootIndexBeyond { index: header.boot_index, images: header.image_count });
    } else if header.boot_index == 0 && header.part_count <= 1 {
        // Splitting a WIM clears it in every part; joining restores nothing, so it is said of the joined one.
        findings.push(Finding::NoBootIndex);
    }
    if len >= LARGE_LEN {
        findings.push(Finding::Large(len));
    }
    let mut info = WimInfo { header, len, solid: false, blob_count: 0, xml: WimXml::default() };
    if let Err(error) = header.check(len) {
        findings.push(Finding::Format(error));
        return Ok(info);
    }
    inspect_blobs(file, &mut info, findings)?;
    match read_xml(file, &header)? {
        Ok(xml) => info.xml = xml,
        Err(error) => findings.push(Finding::Xml(error)),
    }
    if info.has_integrity() {
        let front = read_part(file, header.integrity.offset, INTEGRITY_HEADER_LEN as u64)?;
        if let Err(error) = IntegrityHeader::parse(&front, &header) {
            findings.push(Finding::Format(error));
        }
    }
    Ok(info)
}

fn inspect_blobs(
    file: &(impl Source + ?Sized),
    info: &mut WimInfo,
    findings: &mut Vec<Finding>,
) -> io::Result<()> {
    let table = info.header.blob_table;
    if table.has(ResourceHeader::COMPRESSED) {
        // No writer compresses the table; what it holds is then seen by whoever reads the WIM, not by us.
        return Ok(());
    }
    if table.len_in_file > BLOB_TABLE_LEN_MAX {
        findings.push(Finding::BlobTableTooLong(table.len_in_file));
        return Ok(());
    }
    if !table.len_in_file.is_multiple_of(BLOB_ENTRY_LEN as u64) {
        findings.push(Finding::Format(WimError::BadBlobTable(table.len_in_file)));
        return Ok(());
    }
    let (mut metadata, mut outside) = (0u32, None);
    // A thousand entries at a time: the table of a large image has a hundred thousand.
    let step = BLOB_ENTRY_LEN as u64 * 1024;
    let mut done = 0;
    while done < table.len_in_file {
        let piece = read_part(file, table.offset + done, step.min(table.len_in_file - done))?;
        if piece.is_empty() {
            break;
        }
        done += piece.len() as u64;
        let mut reader = Reader::new(&piece);
        while let Some(blob) = BlobEntry::parse(&mut reader) {
            info.blob_count += 1;
            info.solid |= blob.resource.has(ResourceHeader::SOLID);
            metadata = metadata.saturating_add(u32::from(blob.resource.has(ResourceHeader::METADATA)));
            outside = outside.or(blob.check(info.header.part_number, info.len).err());
        }
    }
    if info.solid {
        findings.push(Finding::Solid);
    }
    if let Some(error) = outside {
        findings.push(Finding::Format(error));
    } else if info.header.part_count <= 1 && metadata != info.header.image_count {
        findings.push(Finding::Metadata { images: info.header.image_count, found: metadata });
    }
    Ok(())
}

fn read_xml(file: &(impl Source + ?Sized), header: &Header) -> io::Result<Result<WimXml, XmlError>> {
    if header.xml.len_in_file > XML_LEN_MAX as u64 {
        return Ok(Err(XmlError::TooLong(header.xml.len_in_file)));
    }
    let bytes = read_part(file, header.xml.offset, header.xml.len_in_file)?;
    Ok(xml::decode(&bytes).and_then(|text| WimXml::parse(&text)))
}

/// Reads `len` bytes, or fewer when the file ends. The caller bounds `len`.
fn read_part(file: &(impl Source + ?Sized), offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?];
    let have = read_full(file, &mut bytes, offset)?;
    bytes.truncate(have);
    Ok(bytes)
}

fn read_full(file: &(impl Source + ?Sized), buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read_piece(rest, offset + have as u64) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// What comparing a file with its integrity table gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Integrity {
    /// There is no table: not an error, most WIMs have none.
    Absent,
    /// Every chunk matches.
    Good {
        /// Chunks compared.
        chunks: u32,
    },
    /// It does not; the finding says where.
    Bad(Finding),
}

/// Reads the whole covered range and compares it with the integrity table. `progress` is told the bytes done.
///
/// # Errors
/// What reading says.
pub fn verify_integrity(
    file: &(impl Source + ?Sized),
    header: &Header,
    mut progress: impl FnMut(u64),
) -> io::Result<Integrity> {
    let len = file.byte_len()?;
    if header.integrity.is_absent() {
        return Ok(Integrity::Absent);
    }
    if let Err(error) = header.check(len) {
        return Ok(Integrity::Bad(Finding::Format(error)));
    }
    let front = read_part(file, header.integrity.offset, INTEGRITY_HEADER_LEN as u64)?;
    let table = match IntegrityHeader::parse(&front, header) {
        Ok(table) => table,
        Err(error) => return Ok(Integrity::Bad(Finding::Format(error))),
    };
    let covered = table.covered(header).unwrap_or(0);
    let mut buffer = vec![0; 256 * 1024];
    let mut done = 0;
    for chunk in 0..table.entry_count {
        let digest_at = INTEGRITY_HEADER_LEN as u64 + u64::from(chunk) * DIGEST_LEN as u64;
        let expected = read_part(file, header.integrity.offset + digest_at, DIGEST_LEN as u64)?;
        let end = covered.min(done + u64::from(table.chunk_len));
        let mut sha1 = Sha1::new();
        while done < end {
            let want = usize::try_from(end - done).unwrap_or(usize::MAX).min(buffer.len());
            let Some(piece) = buffer.get_mut(..want) else { break };
            let have = read_full(file, piece, HEADER_LEN as u64 + done)?;
            if have == 0 {
                return Ok(Integrity::Bad(Finding::Integrity { chunk }));
            }
            sha1.update(piece.get(..have).unwrap_or_default());
            done += have as u64;
            progress(done);
        }
        if sha1.finish()[..] != expected[..] {
            return Ok(Integrity::Bad(Finding::Integrity { chunk }));
        }
    }
    Ok(Integrity::Good { chunks: table.entry_count })
}

/// Holds the blobs against the blob table: the digest of each that is not compressed, the chunk table of each that is.
/// What is damaged inside a compressed chunk is seen by whoever unpacks it. For a WIM that has no integrity table.
///
/// # Errors
/// What reading says.
pub fn verify_blobs(file: &(impl Source + ?Sized), header: &Header) -> io::Result<Option<Finding>> {
    let len = file.byte_len()?;
    let table = header.blob_table;
    if header.check(len).is_err()
        || table.has(ResourceHeader::COMPRESSED)
        || table.len_in_file > BLOB_TABLE_LEN_MAX
    {
        return Ok(None);
    }
    let bytes = read_part(file, table.offset, table.len_in_file)?;
    let mut reader = Reader::new(&bytes);
    let mut index = 0;
    while let Some(blob) = BlobEntry::parse(&mut reader) {
        let resource = blob.resource;
        let is_here = blob.part_number == header.part_number && blob.check(header.part_number, len).is_ok();
        let is_good = match resource {
            resource if !is_here || resource.has(ResourceHeader::SOLID | ResourceHeader::FREE) => true,
            // Pipable ones have a header of their own in front of each chunk.
            resource if resource.has(ResourceHeader::COMPRESSED) => {
                header.pipable || chunks_fit(file, header, &resource)?
            }
            resource => resource.len != resource.len_in_file || digest_of(file, &resource)? == blob.digest,
        };
        if !is_good {
            return Ok(Some(Finding::Blob { index, offset: resource.offset }));
        }
        index += 1;
    }
    Ok(None)
}

fn digest_of(file: &(impl Source + ?Sized), resource: &ResourceHeader) -> io::Result<[u8; DIGEST_LEN]> {
    let mut buffer = vec![0; 256 * 1024];
    let mut sha1 = Sha1::new();
    let mut done = 0;
    while done < resource.len_in_file {
        let want = usize::try_from(resource.len_in_file - done).unwrap_or(usize::MAX).min(buffer.len());
        let Some(piece) = buffer.get_mut(..want) else { break };
        let have = read_full(file, piece, resource.offset + done)?;
        if have == 0 {
            break;
        }
        sha1.update(piece.get(..have).unwrap_or_default());
        done += have as u64;
    }
    Ok(sha1.finish())
}

/// Whether the offsets of a compressed resource's chunks rise, end inside it, and leave no chunk longer than it is
/// uncompressed.
fn chunks_fit(file: &(impl Source + ?Sized), header: &Header, resource: &ResourceHeader) -> io::Result<bool> {
    let chunk_len = u64::from(header.chunk_len);
    if chunk_len == 0 || resource.len == 0 {
        return Ok(chunk_len != 0);
    }
    let chunks = resource.len.div_ceil(chunk_len);
    let width = if resource.len > u64::from(u32::MAX) { 8 } else { 4 };
    let Some(table_len) = (chunks - 1).checked_mul(width).filter(|len| *len <= resource.len_in_file) else {
        return Ok(false);
    };
    let data_len = resource.len_in_file - table_len;
    let (mut done, mut last) = (0, 0);
    while done < table_len {
        let piece = read_part(file, resource.offset + done, (table_len - done).min(256 * 1024))?;
        if piece.is_empty() {
            return Ok(false);
        }
        done += piece.len() as u64;
        for entry in piece.chunks_exact(width as usize) {
            let start = entry.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
            if start <= last || start > data_len || start - last > chunk_len {
                return Ok(false);
            }
            last = start;
        }
    }
    Ok(data_len > last && data_len - last <= chunk_len)
}

/// Takes any bytes for a WIM file and reads all that can be read of it. For fuzzing: must return, soon, and without
/// taking more memory than a few times [`XML_LEN_MAX`].
pub fn fuzz_file(bytes: &[u8]) {
    let report = inspect(bytes).expect("memory can be read");
    let words: usize = report.findings.iter().map(|finding| finding.to_string().len()).sum();
    assert!(words < 4096, "findings are a few lines");
    if let Some(info) = &report.info {
        let _ = verify_integrity(bytes, &info.header, |_| ()).expect("memory can be read");
        let _ = verify_blobs(bytes, &info.header).expect("memory can be read");
        let _ = info.cpu(None);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::files::scan::test_folder::TestFolder;

    const TWO_IMAGES: &[u8] = include_bytes!("../../tests/data/wim/two-images-lzx.wim");

    fn wimlib(args: &[&str]) -> Vec<u8> {
        let output = Command::new("wimlib-imagex").args(args).output();
        let output = output.expect("wimlib-imagex does not start: install the Debian package wimtools");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// A folder with something to capture, and the WIM made of it.
    fn captured(folder: &TestFolder, name: &str, options: &[&str]) -> String {
        for n in 0..20u32 {
            let text = format!("file {n} ").repeat(3000 + n as usize);
            folder.write(&format!("source/Windows/System32/{n}.txt"), text.as_bytes());
        }
        let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        folder.write("source/noise.bin", &noise);
        let source = folder.path().join("source").to_str().unwrap().to_owned();
        let wim = folder.path().join(name).to_str().unwrap().to_owned();
        let image = "Image of <one> & \"all\"";
        wimlib(&[&["capture", &source, &wim, image, "what it is"], options].concat());
        wim
    }

    fn look(path: &str) -> WimReport {
        inspect(&File::open(path).unwrap()).unwrap()
    }

    /// The value of a line of `wiminfo`.
    fn told(text: &str, key: &str) -> String {
        let line =
            text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {text}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    }

    #[test]
    fn what_is_read_is_what_wiminfo_says() {
        let folder = TestFolder::new("wim-kinds");
        for (name, options) in [
            ("none.wim", &["--compress=none", "--boot"][..]),
            ("xpress.wim", &["--compress=XPRESS", "--boot", "--check"]),
            ("lzx.wim", &["--compress=LZX", "--boot"]),
            ("lzms.wim", &["--compress=LZMS", "--boot"]),
            ("solid.esd", &["--solid", "--boot"]),
            ("pipable.wim", &["--pipable", "--boot"]),
            ("lzx64k.wim", &["--compress=LZX", "--chunk-size=64K", "--boot"]),
            ("noboot.wim", &["--compress=LZX"]),
        ] {
            let wim = captured(&folder, name, options);
            let report = look(&wim);
            let info = report.info.as_ref().unwrap();
            let text = String::from_utf8(wimlib(&["info", &wim])).unwrap();
            assert_eq!(told(&text, "Image Count"), info.header.image_count.to_string());
            assert_eq!(told(&text, "Boot Index"), info.header.boot_index.to_string());
            assert_eq!(
                told(&text, "Compression").to_uppercase(),
                info.compression().to_string().to_uppercase()
            );
            assert_eq!(text.contains("Integrity info"), info.has_integrity());
            assert_eq!(
                told(&text, "Part Number"),
                format!("{}/{}", info.header.part_number, info.header.part_count)
            );
            let image = info.xml.image(1).unwrap();
            assert_eq!(Some(told(&text, "Name")), image.name);
            assert_eq!(Some(told(&text, "Description")), image.description);
            assert_eq!(told(&text, "File Count"), image.file_count.unwrap().to_string());
            assert_eq!(told(&text, "Total Bytes"), image.total_bytes.unwrap().to_string());
            let xml = wimlib(&["info", &wim, "--xml"]);
            assert_eq!(xml::decode(&xml).and_then(|text| WimXml::parse(&text)).as_ref(), Ok(&info.xml));
            let expected = match name {
                "none.wim" | "xpress.wim" | "lzx.wim" => vec![],
                "lzms.wim" => vec![Finding::Compression(Compression::Lzms)],
                "solid.esd" => vec![Finding::Compression(Compression::Lzms), Finding::Solid],
                "pipable.wim" => vec![Finding::Pipable],
                "lzx64k.wim" => vec![Finding::ChunkLen(65536)],
                _ => vec![Finding::NoBootIndex],
            };
            // wimlib captures LZMS with longer chunks, which says no more than LZMS does.
            assert_eq!(report.findings, expected, "{name}: {text}");
        }
    }

    #[test]
    fn parts_of_a_split_wim_are_sound_and_do_not_boot() {
        let folder = TestFolder::new("wim-split");
        let wim = captured(&folder, "whole.wim", &["--compress=none", "--boot"]);
        let part = folder.path().join("part.swm").to_str().unwrap().to_owned();
        wimlib(&["split", &wim, &part, "0.2"]);
        let first = look(&part);
        let parts = first.info.unwrap().header.part_count;
        assert!(parts > 1);
        assert_eq!(first.findings, [Finding::Split { part: 1, parts }]);
        let second = look(&part.replace("part.swm", "part2.swm"));
        assert!(second.findings.contains(&Finding::Split { part: 2, parts }), "{:?}", second.findings);
        assert!(second.findings.iter().all(|f| f.severity() != Severity::Damaged), "{:?}", second.findings);
    }

    #[test]
    fn a_wim_cut_short_anywhere_is_damaged() {
        let folder = TestFolder::new("wim-cut");
        let path = folder.path().join("cut.wim");
        for len in (0..TWO_IMAGES.len()).step_by(61).chain([207, 208, TWO_IMAGES.len() - 1]) {
            std::fs::write(&path, &TWO_IMAGES[..len]).unwrap();
            let report = look(path.to_str().unwrap());
            let worst = report.worst(Severity::Damaged).unwrap_or_else(|| panic!("{len}"));
            assert!(worst.is_truncation(), "{len}: {worst:?}");
            assert!(worst.to_string().starts_with("truncated"), "{worst}");
        }
        std::fs::write(&path, TWO_IMAGES).unwrap();
        assert_eq!(look(path.to_str().unwrap()).findings, []);
    }

    #[test]
    fn blobs_are_held_against_their_digests_and_chunk_tables() {
        let folder = TestFolder::new("wim-digests");
        for (name, options) in [
            ("none.wim", &["--compress=none"][..]),
            ("xpress.wim", &["--compress=XPRESS"]),
            ("lzx.wim", &["--compress=LZX"]),
            ("lzms.wim", &["--compress=LZMS"]),
            ("solid.esd", &["--solid"]),
            ("pipable.wim", &["--pipable"]),
        ] {
            let path = captured(&folder, name, options);
            let mut bytes = std::fs::read(&path).unwrap();
            let header = look(&path).info.unwrap().header;
            assert_eq!(verify_blobs(&bytes[..], &header).unwrap(), None, "{name}");
            let table = header.blob_table.offset as usize;
            let mut reader = Reader::new(&bytes[table..]);
            let blob = BlobEntry::parse(&mut reader).unwrap();
            let (at, is_plain) = (blob.resource.offset as usize, name == "none.wim");
            if is_plain || (name == "lzx.wim" && blob.resource.len > 65_536) {
                // Content, or the first offset of the chunk table.
                bytes[at + 3] ^= 0x80;
                let found = verify_blobs(&bytes[..], &header).unwrap();
                assert_eq!(found, Some(Finding::Blob { index: 0, offset: at as u64 }), "{name}");
            }
        }
        let seeds: [&[u8]; 2] = [TWO_IMAGES, include_bytes!("../../tests/data/wim/solid-lzms.wim")];
        for bytes in seeds {
            assert_eq!(verify_blobs(bytes, &Header::parse(bytes).unwrap()).unwrap(), None);
        }
    }

    #[test]
    fn a_blob_table_longer_than_any_is_not_read() {
        let mut header = Header::parse(TWO_IMAGES).unwrap();
        header.blob_table.len_in_file = BLOB_TABLE_LEN_MAX + 50;
        let folder = TestFolder::new("wim-blobs");
        let path = folder.write("long.wim", &header.emit());
        File::options().write(true).open(&path).unwrap().set_len(BLOB_TABLE_LEN_MAX * 2).unwrap();
        let report = look(path.to_str().unwrap());
        assert!(report.findings.contains(&Finding::BlobTableTooLong(BLOB_TABLE_LEN_MAX + 50)), "{report:?}");
    }

    #[test]
    fn a_wim_left_half_written_is_damaged() {
        let folder = TestFolder::new("wim-flags");
        let mut bytes = TWO_IMAGES.to_vec();
        bytes[16] |= 0x40;
        let path = folder.write("half.wim", &bytes);
        assert_eq!(look(path.to_str().unwrap()).findings, [Finding::WriteInProgress]);
        let mut bytes = TWO_IMAGES.to_vec();
        bytes[120] = 9;
        let path = folder.write("index.wim", &bytes);
        assert_eq!(look(path.to_str().unwrap()).findings, [Finding::BootIndexBeyond { index: 9, images: 2 }]);
        let path = folder.write("text.wim", &b"no wim at all ".repeat(100));
        let report = look(path.to_str().unwrap());
        assert_eq!(report.info, None);
        assert_eq!(report.findings[0].to_string(), "not a WIM file");
    }

    #[test]
    fn one_changed_byte_fails_the_integrity_table() {
        let folder = TestFolder::new("wim-integrity");
        let verify = |bytes: &[u8]| {
            let file = File::open(folder.write("x.wim", bytes)).unwrap();
            verify_integrity(&file, &Header::parse(bytes).unwrap(), |_| ()).unwrap()
        };
        assert_eq!(verify(TWO_IMAGES), Integrity::Good { chunks: 1 });
        let mut bytes = TWO_IMAGES.to_vec();
        bytes[300] ^= 1;
        assert_eq!(verify(&bytes), Integrity::Bad(Finding::Integrity { chunk: 0 }));
        // Header and XML are not covered, which is why there is a whole-file hash beside it.
        let mut bytes = TWO_IMAGES.to_vec();
        bytes[120] = 1;
        assert_eq!(verify(&bytes), Integrity::Good { chunks: 1 });
        assert_eq!(verify(include_bytes!("../../tests/data/wim/solid-lzms.wim")), Integrity::Absent);
    }

    #[test]
    fn the_boot_image_is_the_one_asked_for_or_the_wim_s_own() {
        let folder = TestFolder::new("wim-index");
        let info = look(folder.write("x.wim", TWO_IMAGES).to_str().unwrap()).info.unwrap();
        assert_eq!(info.boot_image(None).unwrap().name.as_deref(), Some("Windows Setup"));
        assert_eq!(info.boot_image(Some(1)).unwrap().name.as_deref(), Some("Windows PE"));
        assert_eq!(info.boot_image(Some(3)), None);
        assert_eq!(info.cpu(None), Some(Cpu::X64));
    }
}

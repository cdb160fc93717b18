//! The Windows Imaging format, as far as telling whether a WIM is whole and bootable needs it: header, resource
//! headers, blob table, integrity table, and the XML ([`xml`]).
//!
//! All integers are little-endian. Layout after wimlib (`include/wimlib/header.h`, `resource.h`, `blob_table.c`,
//! `integrity.c`) and Microsoft's "Windows Imaging File Format" paper.

pub mod xml;

use std::fmt;

use crate::wire::reader::Reader;

/// Bytes of the header at the front of every WIM (and at the end of a pipable one).
pub const HEADER_LEN: usize = 208;
/// Bytes of a resource header.
pub const RESOURCE_HEADER_LEN: usize = 24;
/// Bytes of a blob table entry.
pub const BLOB_ENTRY_LEN: usize = 50;
/// Bytes of an integrity table before its digests.
pub const INTEGRITY_HEADER_LEN: usize = 12;
/// Bytes of a SHA-1 digest.
pub const DIGEST_LEN: usize = 20;

/// Version of ordinary WIMs.
pub const VERSION: u32 = 0x0001_0d00;
/// Version of WIMs with solid resources (ESD).
pub const VERSION_SOLID: u32 = 0x0000_0e00;
/// Chunk length of compressed resources that every reader knows, wimboot included.
pub const CHUNK_LEN: u32 = 32 * 1024;

const MAGIC: [u8; 8] = *b"MSWIM\0\0\0";
const MAGIC_PIPABLE: [u8; 8] = *b"WLPWM\0\0\0";

/// Why bytes are not a WIM, or not a whole one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WimError {
    /// Fewer bytes than the part at hand needs.
    Truncated {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// Neither `MSWIM` nor `WLPWM`.
    BadMagic,
    /// A header length other than 208.
    BadHeaderLen(u32),
    /// A version nobody has written.
    BadVersion(u32),
    /// A part ends beyond the file: an upload that stopped early, or bad numbers.
    Outside {
        /// Which part.
        part: Part,
        /// Where it would end.
        end: u64,
        /// Where the file ends.
        file_len: u64,
    },
    /// An offset and a length that overflow 64 bits together.
    Overflow(Part),
    /// A blob table whose length is no multiple of its entries'.
    BadBlobTable(u64),
    /// An integrity table whose numbers do not fit each other or the file.
    BadIntegrityTable,
}

/// Parts of a WIM that the header points to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The blob (lookup) table.
    BlobTable,
    /// The XML.
    Xml,
    /// The boot image's metadata.
    BootMetadata,
    /// The integrity table.
    Integrity,
    /// A blob of the blob table.
    Blob,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlobTable => "blob table",
            Self::Xml => "XML",
            Self::BootMetadata => "boot metadata",
            Self::Integrity => "integrity table",
            Self::Blob => "a blob",
        })
    }
}

impl fmt::Display for WimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => write!(f, "{have} bytes where {need} are needed"),
            Self::BadMagic => write!(f, "it does not begin like a WIM"),
            Self::BadHeaderLen(len) => write!(f, "header length {len}, expected {HEADER_LEN}"),
            Self::BadVersion(version) => write!(f, "unknown version {version:#x}"),
            Self::Outside { part, end, file_len } => {
                write!(f, "{part} ends at byte {end}, but the file has {file_len}")
            }
            Self::Overflow(part) => write!(f, "{part} has an impossible offset or length"),
            Self::BadBlobTable(len) => {
                write!(f, "blob table of {len} bytes, which is no multiple of {BLOB_ENTRY_LEN}")
            }
            Self::BadIntegrityTable => write!(f, "the integrity table contradicts itself or the file"),
        }
    }
}

impl std::error::Error for WimError {}

/// Where a resource is: 56-bit length in the file, flags, offset, length once uncompressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ResourceHeader {
    /// Bytes in the file; below 2^56.
    pub len_in_file: u64,
    /// [`ResourceHeader::METADATA`] and the others.
    pub flags: u8,
    /// Byte offset in the file; for a member of a solid resource, within that one uncompressed.
    pub offset: u64,
    /// Bytes once uncompressed.
    pub len: u64,
}

impl ResourceHeader {
    /// The entry is unused.
    pub const FREE: u8 = 0x01;
    /// An image's metadata.
    pub const METADATA: u8 = 0x02;
    /// Compressed by chunks.
    pub const COMPRESSED: u8 = 0x04;
    /// Continued in another part.
    pub const SPANNED: u8 = 0x08;
    /// Part of a solid resource, or that resource.
    pub const SOLID: u8 = 0x10;
    /// Uncompressed length that marks a solid resource itself in the blob table.
    pub const SOLID_RESOURCE_LEN: u64 = 0x1_0000_0000;

    /// Reads one.
    pub fn parse(bytes: &[u8; RESOURCE_HEADER_LEN]) -> Self {
        let [l0, l1, l2, l3, l4, l5, l6, flags, rest @ ..] = bytes;
        let [o0, o1, o2, o3, o4, o5, o6, o7, len @ ..] = rest;
        Self {
            len_in_file: u64::from_le_bytes([*l0, *l1, *l2, *l3, *l4, *l5, *l6, 0]),
            flags: *flags,
            offset: u64::from_le_bytes([*o0, *o1, *o2, *o3, *o4, *o5, *o6, *o7]),
            len: u64::from_le_bytes(*len),
        }
    }

    /// Writes one. Bits of `len_in_file` beyond 56 are cut off.
    pub fn emit(&self) -> [u8; RESOURCE_HEADER_LEN] {
        let mut bytes = [0; RESOURCE_HEADER_LEN];
        let (head, rest) = bytes.split_at_mut(8);
        head.copy_from_slice(&self.len_in_file.to_le_bytes());
        if let Some(flags) = head.last_mut() {
            *flags = self.flags;
        }
        let (offset, len) = rest.split_at_mut(8);
        offset.copy_from_slice(&self.offset.to_le_bytes());
        len.copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// True for an all-zero header: there is no such resource.
    pub fn is_absent(&self) -> bool {
        self.len_in_file == 0 && self.offset == 0
    }

    /// True with any of `flags`.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Checks that the resource lies inside a file of `file_len` bytes.
    ///
    /// # Errors
    /// [`WimError::Outside`] or [`WimError::Overflow`].
    pub fn check(&self, part: Part, file_len: u64) -> Result<(), WimError> {
        let end = self.offset.checked_add(self.len_in_file).ok_or(WimError::Overflow(part))?;
        if end > file_len { Err(WimError::Outside { part, end, file_len }) } else { Ok(()) }
    }
}

/// How the resources of a WIM are compressed, as its header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Not at all.
    None,
    /// XPRESS ("fast").
    Xpress,
    /// LZX ("max"): what install media have.
    Lzx,
    /// LZMS ("recovery"): what ESD files have.
    Lzms,
    /// Flagged as compressed, by something else.
    Unknown,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Xpress => "XPRESS",
            Self::Lzx => "LZX",
            Self::Lzms => "LZMS",
            Self::Unknown => "unknown",
        })
    }
}

/// The header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// wimlib's pipable variant (`WLPWM`), which only wimlib reads.
    pub pipable: bool,
    /// [`VERSION`] or [`VERSION_SOLID`].
    pub version: u32,
    /// [`Header::COMPRESSED`] and the others.
    pub flags: u32,
    /// Chunk length of compressed resources, bytes.
    pub chunk_len: u32,
    /// Names the WIM; shared by all parts of a split one.
    pub guid: [u8; 16],
    /// This part, from 1.
    pub part_number: u16,
    /// Parts in all.
    pub part_count: u16,
    /// Images.
    pub image_count: u32,
    /// Blob table.
    pub blob_table: ResourceHeader,
    /// XML.
    pub xml: ResourceHeader,
    /// Metadata of the boot image.
    pub boot_metadata: ResourceHeader,
    /// Image to boot, from 1; 0 is none.
    pub boot_index: u32,
    /// Integrity table; absent in most WIMs.
    pub integrity: ResourceHeader,
}

impl Header {
    /// Resources are compressed.
    pub const COMPRESSED: u32 = 0x02;
    /// Not to be changed.
    pub const READ_ONLY: u32 = 0x04;
    /// Split into parts.
    pub const SPANNED: u32 = 0x08;
    /// Holds blobs only.
    pub const RESOURCE_ONLY: u32 = 0x10;
    /// Holds metadata only.
    pub const METADATA_ONLY: u32 = 0x20;
    /// Somebody was or is writing.
    pub const WRITE_IN_PROGRESS: u32 = 0x40;
    /// Reparse points were made relative.
    pub const REPARSE_FIX: u32 = 0x80;
    /// XPRESS.
    pub const XPRESS: u32 = 0x0002_0000;
    /// LZX.
    pub const LZX: u32 = 0x0004_0000;
    /// LZMS.
    pub const LZMS: u32 = 0x0008_0000;
    /// XPRESS, as newer writers flag it.
    pub const XPRESS2: u32 = 0x0020_0000;

    /// Reads the first [`HEADER_LEN`] bytes. Magic, header length and version are checked; where things are is for
    /// [`Header::check`].
    ///
    /// # Errors
    /// [`WimError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WimError> {
        let short = WimError::Truncated { need: HEADER_LEN as u64, have: bytes.len() as u64 };
        let mut reader = Reader::new(bytes);
        let pipable = match reader.array::<8>().ok_or(short)? {
            MAGIC => false,
            MAGIC_PIPABLE => true,
            _ => return Err(WimError::BadMagic),
        };
        if bytes.len() < HEADER_LEN {
            return Err(short);
        }
        let header_len = reader.u32_le().ok_or(short)?;
        if header_len as usize != HEADER_LEN {
            return Err(WimError::BadHeaderLen(header_len));
        }
        let version = reader.u32_le().ok_or(short)?;
        if version != VERSION && version != VERSION_SOLID {
            return Err(WimError::BadVersion(version));
        }
        let mut number = || reader.u32_le().ok_or(short);
        let (flags, chunk_len) = (number()?, number()?);
        let guid = reader.array().ok_or(short)?;
        let part_number = reader.u16_le().ok_or(short)?;
        let part_count = reader.u16_le().ok_or(short)?;
        let image_count = reader.u32_le().ok_or(short)?;
        let blob_table = resource(&mut reader).ok_or(short)?;
        let xml = resource(&mut reader).ok_or(short)?;
        let boot_metadata = resource(&mut reader).ok_or(short)?;
        let boot_index = reader.u32_le().ok_or(short)?;
        let integrity = resource(&mut reader).ok_or(short)?;
        Ok(Self {
            pipable,
            version,
            flags,
            chunk_len,
            guid,
            part_number,
            part_count,
            image_count,
            blob_table,
            xml,
            boot_metadata,
            boot_index,
            integrity,
        })
    }

    /// Writes the header as it stands in the file.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(if self.pipable { &MAGIC_PIPABLE } else { &MAGIC });
        for number in [HEADER_LEN as u32, self.version, self.flags, self.chunk_len] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.guid);
        bytes.extend_from_slice(&self.part_number.to_le_bytes());
        bytes.extend_from_slice(&self.part_count.to_le_bytes());
        bytes.extend_from_slice(&self.image_count.to_le_bytes());
        for resource in [&self.blob_table, &self.xml, &self.boot_metadata] {
            bytes.extend_from_slice(&resource.emit());
        }
        bytes.extend_from_slice(&self.boot_index.to_le_bytes());
        bytes.extend_from_slice(&self.integrity.emit());
        let mut header = [0; HEADER_LEN];
        for (to, from) in header.iter_mut().zip(bytes) {
            *to = from;
        }
        header
    }

    /// Checks that everything the header points to is inside a file of `file_len` bytes.
    ///
    /// # Errors
    /// [`WimError::Outside`] or [`WimError::Overflow`], naming the part.
    pub fn check(&self, file_len: u64) -> Result<(), WimError> {
        let metadata_elsewhere = self.part_count > 1;
        for (part, resource) in [
            (Part::BlobTable, &self.blob_table),
            (Part::Xml, &self.xml),
            (Part::BootMetadata, &self.boot_metadata),
            (Part::Integrity, &self.integrity),
        ] {
            // Later parts of a split WIM repeat where the first part has the boot metadata.
            if !(part == Part::BootMetadata && metadata_elsewhere) {
                resource.check(part, file_len)?;
            }
        }
        Ok(())
    }

    /// The compression the flags name.
    pub fn compression(&self) -> Compression {
        if self.flags & Self::COMPRESSED == 0 {
            Compression::None
        } else if self.flags & Self::LZX != 0 {
            Compression::Lzx
        } else if self.flags & (Self::XPRESS | Self::XPRESS2) != 0 {
            Compression::Xpress
        } else if self.flags & Self::LZMS != 0 {
            Compression::Lzms
        } else {
            Compression::Unknown
        }
    }
}

fn resource(reader: &mut Reader<'_>) -> Option<ResourceHeader> {
    reader.array::<RESOURCE_HEADER_LEN>().map(|bytes| ResourceHeader::parse(&bytes))
}

/// One entry of the blob table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobEntry {
    /// Where it is.
    pub resource: ResourceHeader,
    /// Part of a split WIM it is in.
    pub part_number: u16,
    /// How many files have this content.
    pub reference_count: u32,
    /// SHA-1 of the uncompressed bytes.
    pub digest: [u8; DIGEST_LEN],
}

impl BlobEntry {
    /// Reads one; `None` when fewer than [`BLOB_ENTRY_LEN`] bytes are left.
    pub fn parse(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            resource: resource(reader)?,
            part_number: reader.u16_le()?,
            reference_count: reader.u32_le()?,
            digest: reader.array()?,
        })
    }

    /// Writes one.
    pub fn emit(&self) -> [u8; BLOB_ENTRY_LEN] {
        let fields = [
            &self.resource.emit()[..],
            &self.part_number.to_le_bytes(),
            &self.reference_count.to_le_bytes(),
            &self.digest,
        ];
        let mut bytes = [0; BLOB_ENTRY_LEN];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// Checks that the blob is inside a file of `file_len` bytes, if it is in this part and stands for itself.
    ///
    /// # Errors
    /// [`WimError::Outside`] or [`WimError::Overflow`].
    pub fn check(&self, part_number: u16, file_len: u64) -> Result<(), WimError> {
        let solid = self.resource.has(ResourceHeader::SOLID);
        // The offset of a solid resource's member counts inside that resource.
        let member = solid && self.resource.len != ResourceHeader::SOLID_RESOURCE_LEN;
        if self.part_number != part_number || member {
            return Ok(());
        }
        self.resource.check(Part::Blob, file_len)
    }
}

/// Front of an integrity table. Its digests cover the file from the end of the header to the end of the blob table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntegrityHeader {
    /// Digests that follow.
    pub entry_count: u32,
    /// Bytes of file each digest covers; the last may cover fewer.
    pub chunk_len: u32,
}

impl IntegrityHeader {
    /// Reads the table's front and holds its numbers against each other and against `header`.
    ///
    /// # Errors
    /// [`WimError::Truncated`] or [`WimError::BadIntegrityTable`].
    pub fn parse(bytes: &[u8], header: &Header) -> Result<Self, WimError> {
        let short = WimError::Truncated { need: INTEGRITY_HEADER_LEN as u64, have: bytes.len() as u64 };
        let mut reader = Reader::new(bytes);
        let mut number = || reader.u32_le().ok_or(short);
        let (table_len, entry_count, chunk_len) = (number()?, number()?, number()?);
        let table = Self { entry_count, chunk_len };
        let whole = u64::from(table_len) == table.len() && header.integrity.len_in_file >= table.len();
        let covered = table.covered(header).ok_or(WimError::BadIntegrityTable)?;
        let chunks = if chunk_len == 0 { None } else { Some(covered.div_ceil(u64::from(chunk_len))) };
        if whole && chunks == Some(u64::from(entry_count)) {
            Ok(table)
        } else {
            Err(WimError::BadIntegrityTable)
        }
    }

    /// Writes the table's front.
    pub fn emit(&self) -> [u8; INTEGRITY_HEADER_LEN] {
        let [a, b, c, d] = (self.len() as u32).to_le_bytes();
        let [e, f, g, h] = self.entry_count.to_le_bytes();
        let [i, j, k, l] = self.chunk_len.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    /// Bytes of the whole table.
    #[allow(clippy::len_without_is_empty, reason = "a length in bytes; no table is empty")]
    pub fn len(&self) -> u64 {
        INTEGRITY_HEADER_LEN as u64 + u64::from(self.entry_count) * DIGEST_LEN as u64
    }

    /// Bytes of file covered, from offset [`HEADER_LEN`]; `None` when the blob table stands before that.
    pub fn covered(&self, header: &Header) -> Option<u64> {
        header.blob_table.offset.checked_add(header.blob_table.len_in_file)?.checked_sub(HEADER_LEN as u64)
    }
}

/// Takes any bytes for a WIM file and reads all this module can read of it. For fuzzing: must return.
pub fn fuzz_wim(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else { return };
    let file_len = bytes.len() as u64;
    let _ = header.check(file_len);
    debug_assert_eq!(Header::parse(&header.emit()), Ok(header));
    let part = |resource: &ResourceHeader| {
        let start = usize::try_from(resource.offset).ok()?;
        let len = usize::try_from(resource.len_in_file).ok()?;
        bytes.get(start..start.checked_add(len)?)
    };
    if let Some(table) = part(&header.blob_table) {
        let mut reader = Reader::new(table);
        while let Some(blob) = BlobEntry::parse(&mut reader) {
            let _ = blob.check(header.part_number, file_len);
            let emitted = blob.emit();
            debug_assert_eq!(BlobEntry::parse(&mut Reader::new(&emitted)), Some(blob));
        }
    }
    if let Some(table) = part(&header.integrity) {
        let _ = IntegrityHeader::parse(table, &header);
    }
    if let Some(text) = part(&header.xml) {
        let _ = xml::decode(text).map(|text| xml::WimXml::parse(&text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images, LZX, integrity table; made by wimlib, see tests/data/wim/README.md.
    const TWO_IMAGES: &[u8] = include_bytes!("../../../tests/data/wim/two-images-lzx.wim");
    const SOLID: &[u8] = include_bytes!("../../../tests/data/wim/solid-lzms.wim");

    #[test]
    fn a_real_header_is_read_field_by_field() {
        let header = Header::parse(TWO_IMAGES).unwrap();
        assert!(!header.pipable);
        assert_eq!(header.version, VERSION);
        assert_eq!(header.compression(), Compression::Lzx);
        assert_eq!(header.chunk_len, CHUNK_LEN);
        assert_eq!((header.part_number, header.part_count), (1, 1));
        assert_eq!((header.image_count, header.boot_index), (2, 2));
        assert_eq!(header.check(TWO_IMAGES.len() as u64), Ok(()));
        assert_eq!(header.emit(), TWO_IMAGES[..HEADER_LEN]);
        let solid = Header::parse(SOLID).unwrap();
        assert_eq!((solid.version, solid.compression()), (VERSION_SOLID, Compression::Lzms));
    }

    #[test]
    fn every_real_blob_is_inside_its_file() {
        for file in [TWO_IMAGES, SOLID] {
            let header = Header::parse(file).unwrap();
            let start = header.blob_table.offset as usize;
            let mut reader = Reader::new(&file[start..start + header.blob_table.len_in_file as usize]);
            let mut metadata = 0;
            while let Some(blob) = BlobEntry::parse(&mut reader) {
                blob.check(1, file.len() as u64).unwrap();
                metadata += u32::from(blob.resource.has(ResourceHeader::METADATA));
            }
            assert_eq!(reader.rest(), b"");
            assert_eq!(metadata, header.image_count);
        }
    }

    #[test]
    fn a_file_cut_short_is_told_from_a_whole_one() {
        let header = Header::parse(TWO_IMAGES).unwrap();
        let len = TWO_IMAGES.len() as u64;
        assert!(matches!(header.check(len - 1), Err(WimError::Outside { .. })));
        let mut absurd = header;
        absurd.xml.offset = u64::MAX;
        assert_eq!(absurd.check(len), Err(WimError::Overflow(Part::Xml)));
    }

    #[test]
    fn the_integrity_table_has_to_fit_the_file() {
        let header = Header::parse(TWO_IMAGES).unwrap();
        let table = &TWO_IMAGES[header.integrity.offset as usize..];
        let parsed = IntegrityHeader::parse(table, &header).unwrap();
        assert_eq!(parsed.entry_count, 1);
        assert_eq!(parsed.emit(), table[..INTEGRITY_HEADER_LEN]);
        let mut other = header;
        other.blob_table.len_in_file += u64::from(parsed.chunk_len);
        assert_eq!(IntegrityHeader::parse(table, &other), Err(WimError::BadIntegrityTable));
        assert_eq!(IntegrityHeader::parse(&[0; 12], &header), Err(WimError::BadIntegrityTable));
        assert!(matches!(IntegrityHeader::parse(&[0; 11], &header), Err(WimError::Truncated { .. })));
    }

    #[test]
    fn no_cut_and_no_changed_byte_breaks_the_reader() {
        for file in [TWO_IMAGES, SOLID] {
            for len in 0..file.len() {
                fuzz_wim(&file[..len]);
            }
            let mut changed = file.to_vec();
            let blob_table = Header::parse(file).unwrap().blob_table;
            let table = blob_table.offset as usize..(blob_table.offset + blob_table.len_in_file) as usize;
            for at in (0..HEADER_LEN).chain(table) {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let kept = std::mem::replace(&mut changed[at], value);
                    fuzz_wim(&changed);
                    changed[at] = kept;
                }
            }
        }
    }

    #[test]
    fn other_files_are_no_wims() {
        assert_eq!(Header::parse(&[0; HEADER_LEN]), Err(WimError::BadMagic));
        assert!(matches!(Header::parse(b"MSWIM"), Err(WimError::Truncated { .. })));
        assert!(matches!(
            Header::parse(&TWO_IMAGES[..207]),
            Err(WimError::Truncated { need: 208, have: 207 })
        ));
        let mut bytes = TWO_IMAGES.to_vec();
        bytes[8] = 96;
        assert_eq!(Header::parse(&bytes), Err(WimError::BadHeaderLen(96)));
        bytes[8] = 208;
        bytes[12] = 1;
        assert!(matches!(Header::parse(&bytes), Err(WimError::BadVersion(_))));
    }
}

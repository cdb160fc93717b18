//! Writes a real WIM of a wanted size: uncompressed, one image, bootable by its header, with files in it.
//!
//! What it boots is nothing; it is made to be served, checked and unpacked, by our own tools and by wimlib's. The
//! file is written front to back in one go, since everything the header says is known before the first byte:
//!
//! ```text
//! header · small files · payload (pseudo-random) · metadata · blob table · XML · integrity table
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::SystemTime;

use crate::files::sha1::Sha1;
use crate::wire::wim::xml;
use crate::wire::wim::{
    BLOB_ENTRY_LEN, BlobEntry, DIGEST_LEN, HEADER_LEN, Header, INTEGRITY_HEADER_LEN, IntegrityHeader,
    ResourceHeader, VERSION,
};

/// Bytes each digest of the integrity table covers; what other writers use.
const INTEGRITY_CHUNK_LEN: u32 = 10 * 1024 * 1024;
/// 1601 to 1970 in units of 100 ns: Windows counts from the former.
const FILETIME_UNIX_EPOCH: u64 = 116_444_736_000_000_000;

const README: &[u8] = b"This image was made by bootstorm to be transferred, checked and unpacked.\r\n\
It holds no Windows; payload.bin is pseudo-random.\r\n";
const STARTNET: &[u8] = b"@echo bootstorm demo image\r\n";

const DIRECTORY: u32 = 0x10;
const ARCHIVE: u32 = 0x20;

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WimSpec {
    /// Bytes of the whole file; at least [`WIM_LEN_MIN`].
    pub len: u64,
    /// NAME of the image.
    pub name: String,
    /// DESCRIPTION of the image.
    pub description: String,
    /// What the payload and the GUID are made from: equal specs give equal files.
    pub seed: u64,
    /// Creation time everywhere in the file.
    pub created: SystemTime,
    /// Append an integrity table; costs a second SHA-1 over everything.
    pub integrity: bool,
}

/// Smallest file [`write_wim`] takes on, with room for long names.
pub const WIM_LEN_MIN: u64 = 64 * 1024;

/// Writes a WIM into `out`, exactly `spec.len` bytes.
///
/// # Errors
/// `InvalidInput` when the wanted length is below [`WIM_LEN_MIN`] or too short for the names; else what writing says.
pub fn write_wim(out: &mut impl Write, spec: &WimSpec) -> io::Result<()> {
    let layout = Layout::of(spec)?;
    let mut out = Covered { out, sha1: Sha1::new(), in_chunk: 0, digests: Vec::new(), on: false };
    out.write(&layout.header(spec).emit())?;
    out.on = spec.integrity;

    let mut digests = vec![];
    for content in [README, STARTNET] {
        out.write(content)?;
        digests.push(Sha1::digest(content));
    }
    digests.push(write_payload(&mut out, spec.seed, layout.payload_len)?);
    let metadata = metadata(&digests, filetime(spec.created));
    out.write(&metadata)?;
    digests.push(Sha1::digest(&metadata));

    for (resource, digest) in layout.blobs().into_iter().zip(digests) {
        out.write(&BlobEntry { resource, part_number: 1, reference_count: 1, digest }.emit())?;
    }
    out.on = false;
    out.write(&layout.xml(spec))?;
    if spec.integrity {
        let digests = out.finish_chunks();
        let front = IntegrityHeader { entry_count: layout.chunks, chunk_len: INTEGRITY_CHUNK_LEN };
        out.write(&front.emit())?;
        out.write(&digests)?;
    }
    out.write(&vec![0; layout.gap])
}

/// Writes a WIM beside `path` under a hidden name and renames it into place, as images are published.
///
/// # Errors
/// As [`write_wim`], and what creating and renaming say.
pub fn create_wim(path: &Path, spec: &WimSpec) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let staged = path.with_file_name(hidden);
    let written = (|| {
        let mut out = BufWriter::with_capacity(256 * 1024, File::create(&staged)?);
        write_wim(&mut out, spec)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::rename(&staged, path)
    })();
    if written.is_err() {
        // What is left of it is of no use; the first error is the one to report.
        let _ = fs::remove_file(&staged);
    }
    written
}

/// Where everything is, found out before the first byte is written.
struct Layout {
    payload_len: u64,
    metadata_len: u64,
    xml_units: usize,
    chunks: u32,
    /// Bytes at the end that no part needs: where one byte more of payload would cost another integrity digest.
    gap: usize,
}

impl Layout {
    fn of(spec: &WimSpec) -> io::Result<Self> {
        let too_short =
            || io::Error::new(io::ErrorKind::InvalidInput, "too short for a WIM with these names");
        if spec.len < WIM_LEN_MIN {
            return Err(too_short());
        }
        let metadata_len = metadata(&[[0; DIGEST_LEN]; 3], 0).len() as u64;
        // The XML is padded to the length it has with the largest numbers, so that its length depends on no number.
        let xml_units = xml_text(spec, u64::MAX, u64::MAX).encode_utf16().count();
        let mut layout = Self { payload_len: 0, metadata_len, xml_units, chunks: 0, gap: 0 };
        let fixed = layout.xml_offset() + layout.xml_len();
        // A payload of nothing would have the digest of nothing, which stands for "no content" in a WIM.
        let room = spec.len.checked_sub(fixed).filter(|room| *room > 0).ok_or_else(too_short)?;
        if !spec.integrity {
            layout.payload_len = room;
            return Ok(layout);
        }
        let mut digests = room.div_ceil(u64::from(INTEGRITY_CHUNK_LEN)) + 2;
        loop {
            let table_len = INTEGRITY_HEADER_LEN as u64 + digests * DIGEST_LEN as u64;
            layout.payload_len = room.checked_sub(table_len).filter(|len| *len > 0).ok_or_else(too_short)?;
            let covered = layout.xml_offset() - HEADER_LEN as u64;
            let needed = covered.div_ceil(u64::from(INTEGRITY_CHUNK_LEN));
            let one_less = digests - 1;
            let with_one_less = covered + DIGEST_LEN as u64;
            if with_one_less.div_ceil(u64::from(INTEGRITY_CHUNK_LEN)) > one_less || needed == digests {
                layout.chunks = u32::try_from(needed).map_err(|_| too_short())?;
                layout.gap = (digests - needed) as usize * DIGEST_LEN;
                return Ok(layout);
            }
            digests = one_less;
        }
    }

    fn metadata_offset(&self) -> u64 {
        HEADER_LEN as u64 + (README.len() + STARTNET.len()) as u64 + self.payload_len
    }

    fn xml_offset(&self) -> u64 {
        self.metadata_offset() + self.metadata_len + 4 * BLOB_ENTRY_LEN as u64
    }

    /// Two bytes a unit, and the byte order mark.
    fn xml_len(&self) -> u64 {
        2 * (self.xml_units as u64 + 1)
    }

    /// The blobs in file order: two small files, payload, metadata.
    fn blobs(&self) -> [ResourceHeader; 4] {
        let mut offset = HEADER_LEN as u64;
        let lens = [README.len() as u64, STARTNET.len() as u64, self.payload_len, self.metadata_len];
        let [readme, startnet, payload, metadata] = lens.map(|len| {
            let resource = ResourceHeader { len_in_file: len, flags: 0, offset, len };
            offset += len;
            resource
        });
        [readme, startnet, payload, ResourceHeader { flags: ResourceHeader::METADATA, ..metadata }]
    }

    fn header(&self, spec: &WimSpec) -> Header {
        let plain = |offset, len| ResourceHeader { len_in_file: len, flags: 0, offset, len };
        let [_, _, _, boot_metadata] = self.blobs();
        let table_len = 4 * BLOB_ENTRY_LEN as u64;
        let integrity_len = INTEGRITY_HEADER_LEN as u64 + u64::from(self.chunks) * DIGEST_LEN as u64;
        let integrity_offset = self.xml_offset() + self.xml_len();
        let mut guid = [0; 16];
        fill(&mut guid, spec.seed ^ spec.len, 0);
        Header {
            pipable: false,
            version: VERSION,
            flags: 0,
            chunk_len: 0,
            guid,
            part_number: 1,
            part_count: 1,
            image_count: 1,
            blob_table: plain(self.xml_offset() - table_len, table_len),
            xml: plain(self.xml_offset(), self.xml_len()),
            boot_metadata,
            boot_index: 1,
            integrity: if spec.integrity {
                plain(integrity_offset, integrity_len)
            } else {
                ResourceHeader::default()
            },
        }
    }

    fn xml(&self, spec: &WimSpec) -> Vec<u8> {
        let files = (README.len() + STARTNET.len()) as u64 + self.payload_len;
        let mut text = xml_text(spec, self.xml_offset(), files);
        let units = text.encode_utf16().count();
        // Blanks after the last tag are no content.
        text.extend(std::iter::repeat_n(' ', self.xml_units.saturating_sub(units)));
        xml::encode(&text)
    }
}

fn xml_text(spec: &WimSpec, wim_bytes: u64, file_bytes: u64) -> String {
    let time = filetime(spec.created);
    let time = format!("<HIGHPART>0x{:08X}</HIGHPART><LOWPART>0x{:08X}</LOWPART>", time >> 32, time as u32);
    format!(
        "<WIM><TOTALBYTES>{wim_bytes}</TOTALBYTES><IMAGE INDEX=\"1\"><DIRCOUNT>2</DIRCOUNT><FILECOUNT>3</FILECOUNT>\
         <TOTALBYTES>{file_bytes}</TOTALBYTES><HARDLINKBYTES>0</HARDLINKBYTES><CREATIONTIME>{time}</CREATIONTIME>\
         <LASTMODIFICATIONTIME>{time}</LASTMODIFICATIONTIME><WINDOWS><ARCH>9</ARCH></WINDOWS>\
         <NAME>{}</NAME><DESCRIPTION>{}</DESCRIPTION></IMAGE></WIM>",
        xml::escape(&spec.name),
        xml::escape(&spec.description)
    )
}

fn filetime(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    FILETIME_UNIX_EPOCH + u64::try_from(since.as_nanos() / 100).unwrap_or(0)
}

/// The image's metadata: no security descriptors, then the directory tree (wimlib `src/dentry.c`).
///
/// ```text
/// \ bootstorm.txt
///   Windows \ System32 \ payload.bin
///                        startnet.cmd
/// ```
fn metadata(digests: &[[u8; DIGEST_LEN]], time: u64) -> Vec<u8> {
    let digest = |index: usize| digests.get(index).copied().unwrap_or_default();
    let root_len = Entry::len("");
    let end = 8;
    let security = [8u32.to_le_bytes(), 0u32.to_le_bytes()].concat();
    // Each folder's entries follow one another, closed by eight zero bytes; the root has no siblings.
    let top = security.len() as u64 + root_len + end;
    let windows = top + Entry::len("bootstorm.txt") + Entry::len("Windows") + end;
    let system = windows + Entry::len("System32") + end;

    let folder = |name, subdir| Entry { name, attributes: DIRECTORY, subdir, digest: [0; DIGEST_LEN] };
    let file = |name, index| Entry { name, attributes: ARCHIVE, subdir: 0, digest: digest(index) };
    let mut bytes = security;
    for list in [
        &[folder("", top)][..],
        &[file("bootstorm.txt", 0), folder("Windows", windows)],
        &[folder("System32", system)],
        &[file("payload.bin", 2), file("startnet.cmd", 1)],
    ] {
        list.iter().for_each(|entry| entry.emit(time, &mut bytes));
        bytes.extend_from_slice(&[0; 8]);
    }
    bytes
}

/// One directory entry.
struct Entry {
    name: &'static str,
    attributes: u32,
    /// Offset of the folder's entries in the metadata; 0 for a file.
    subdir: u64,
    digest: [u8; DIGEST_LEN],
}

impl Entry {
    /// Fixed fields, the name with its NUL, then up to a multiple of eight.
    fn len(name: &str) -> u64 {
        let name_len = 2 * name.encode_utf16().count();
        let with_nul = if name_len == 0 { 0 } else { name_len + 2 };
        (102 + with_nul).next_multiple_of(8) as u64
    }

    fn emit(&self, time: u64, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        let len = Self::len(self.name);
        let name: Vec<u8> = self.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&self.attributes.to_le_bytes());
        // No security descriptor.
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        bytes.extend_from_slice(&self.subdir.to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        // Created, read, written.
        (0..3).for_each(|_| bytes.extend_from_slice(&time.to_le_bytes()));
        bytes.extend_from_slice(&self.digest);
        // Unknown field, hard link group, no further streams, no short name.
        bytes.extend_from_slice(&[0; 4 + 8 + 2 + 2]);
        bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&name);
        bytes.resize(start + len as usize, 0);
    }
}

/// Writes the payload and gives its digest.
fn write_payload(out: &mut Covered<'_, impl Write>, seed: u64, len: u64) -> io::Result<[u8; DIGEST_LEN]> {
    let mut buffer = vec![0; 256 * 1024];
    let mut sha1 = Sha1::new();
    let mut done = 0;
    while done < len {
        fill(&mut buffer, seed, done / 8);
        let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get(..want).unwrap_or_default();
        sha1.update(piece);
        out.write(piece)?;
        done += want as u64;
    }
    Ok(sha1.finish())
}

/// Pseudo-random bytes: SplitMix64 of a word counter, so any piece can be made by itself.
fn fill(buffer: &mut [u8], seed: u64, first_word: u64) {
    for (index, word) in buffer.chunks_mut(8).enumerate() {
        let mut z = seed.wrapping_add((first_word + index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        for (to, from) in word.iter_mut().zip((z ^ (z >> 31)).to_le_bytes()) {
            *to = from;
        }
    }
}

/// Passes bytes on and, while `on`, digests them by integrity chunks.
struct Covered<'o, W> {
    out: &'o mut W,
    sha1: Sha1,
    in_chunk: u64,
    digests: Vec<u8>,
    on: bool,
}

impl<W: Write> Covered<'_, W> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        while self.on && !bytes.is_empty() {
            let room = usize::try_from(u64::from(INTEGRITY_CHUNK_LEN) - self.in_chunk).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            self.sha1.update(piece);
            self.in_chunk += piece.len() as u64;
            if self.in_chunk == u64::from(INTEGRITY_CHUNK_LEN) {
                self.close_chunk();
            }
            bytes = rest;
        }
        Ok(())
    }

    fn close_chunk(&mut self) {
        let sha1 = std::mem::replace(&mut self.sha1, Sha1::new());
        self.digests.extend_from_slice(&sha1.finish());
        self.in_chunk = 0;
    }

    fn finish_chunks(&mut self) -> Vec<u8> {
        if self.in_chunk > 0 {
            self.close_chunk();
        }
        std::mem::take(&mut self.digests)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::files::scan::test_folder::TestFolder;
    use crate::files::wim::{self, Integrity};

    fn spec(len: u64, integrity: bool) -> WimSpec {
        WimSpec {
            len,
            name: "Demo <PE> & more".into(),
            description: "written by bootstorm".into(),
            seed: 7,
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            integrity,
        }
    }

    fn wimlib(args: &[&str]) -> String {
        let output = Command::new("wimlib-imagex").args(args).output();
        let output = output.expect("wimlib-imagex does not start: install the Debian package wimtools");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    #[test]
    fn wimlib_reads_verifies_and_unpacks_what_is_written() {
        for integrity in [false, true] {
            let folder = TestFolder::new("wim-write");
            let path = folder.path().join("boot.wim");
            create_wim(&path, &spec(3_000_001, integrity)).unwrap();
            let path = path.to_str().unwrap();
            let info = wimlib(&["info", path]);
            for line in ["Image Count:    1", "Boot Index:     1", "Name:                   Demo <PE> & more"]
            {
                assert!(info.contains(line), "{info}");
            }
            assert!(info.contains("Architecture:           x86_64"), "{info}");
            assert_eq!(info.contains("Integrity info"), integrity, "{info}");
            wimlib(&["verify", path]);
            let files = wimlib(&["dir", path, "1"]);
            for file in ["/bootstorm.txt", "/Windows/System32/payload.bin", "/Windows/System32/startnet.cmd"]
            {
                assert!(files.lines().any(|line| line == file), "{files}");
            }
            let unpacked = folder.path().join("unpacked");
            wimlib(&["apply", path, "1", unpacked.to_str().unwrap()]);
            assert_eq!(std::fs::read(unpacked.join("bootstorm.txt")).unwrap(), README);
            let payload = std::fs::read(unpacked.join("Windows/System32/payload.bin")).unwrap();
            let mut expected = vec![0; payload.len()];
            fill(&mut expected, 7, 0);
            assert!(payload == expected && payload.len() > 2_900_000);
            let modified = std::fs::metadata(unpacked.join("bootstorm.txt")).unwrap().modified().unwrap();
            assert_eq!(modified, spec(0, false).created);
        }
    }

    #[test]
    fn our_own_check_finds_nothing_wrong() {
        let folder = TestFolder::new("wim-own");
        let path = folder.path().join("boot.wim");
        create_wim(&path, &spec(12 << 20, true)).unwrap();
        let file = File::open(&path).unwrap();
        let report = wim::inspect(&file).unwrap();
        assert_eq!(report.findings, []);
        let info = report.info.unwrap();
        assert_eq!(info.boot_image(None).unwrap().name.as_deref(), Some("Demo <PE> & more"));
        assert_eq!(info.cpu(None), Some(crate::wire::arch::Cpu::X64));
        assert_eq!(
            wim::verify_integrity(&file, &info.header, |_| ()).unwrap(),
            Integrity::Good { chunks: 2 }
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_file_has_exactly_the_wanted_length() {
        struct Count(u64);
        impl Write for Count {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += bytes.len() as u64;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut lens = vec![(WIM_LEN_MIN, false), (WIM_LEN_MIN, true), (WIM_LEN_MIN + 1, true)];
        // Around the length from which one more digest is needed.
        let overhead =
            Layout::of(&spec(WIM_LEN_MIN, true)).map(|layout| WIM_LEN_MIN - layout.payload_len).unwrap();
        let edge = u64::from(INTEGRITY_CHUNK_LEN) + overhead - 600;
        lens.extend([0, 590, 610, 1200].map(|more| (edge + more, true)));
        for (len, integrity) in lens {
            let mut count = Count(0);
            write_wim(&mut count, &spec(len, integrity)).unwrap();
            assert_eq!(count.0, len);
        }
        // Every single length around the edge, without writing.
        let mut gaps = 0;
        for len in edge - 700..edge + 2000 {
            let layout = Layout::of(&spec(len, true)).unwrap();
            let table = INTEGRITY_HEADER_LEN as u64 + u64::from(layout.chunks) * DIGEST_LEN as u64;
            assert_eq!(layout.xml_offset() + layout.xml_len() + table + layout.gap as u64, len);
            let covered = layout.xml_offset() - HEADER_LEN as u64;
            assert_eq!(covered.div_ceil(u64::from(INTEGRITY_CHUNK_LEN)), u64::from(layout.chunks));
            gaps += usize::from(layout.gap > 0);
        }
        assert_eq!(gaps, DIGEST_LEN, "the lengths between n digests and n + 1");
    }

    #[test]
    fn a_length_that_holds_no_wim_is_refused() {
        let mut sink = Vec::new();
        assert!(write_wim(&mut sink, &spec(WIM_LEN_MIN - 1, false)).is_err());
        let long = WimSpec { name: "x".repeat(40_000), ..spec(WIM_LEN_MIN, true) };
        assert!(write_wim(&mut sink, &long).is_err());
        assert!(sink.is_empty());
    }
}

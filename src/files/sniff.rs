//! What a file is by its first bytes: EFI programs, Linux kernels, ISOs, iPXE scripts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use std::path::Path;

use crate::sys::open_plain;
use crate::wire::arch::Cpu;

/// Bytes of a file's head that tell what it is.
pub const HEAD_LEN: usize = 4096;
/// Where an ISO 9660 volume descriptor says so (ECMA-119 §8.1.2: sector 16, after the type byte).
const ISO_MAGIC_OFFSET: u64 = 0x8001;

/// What the head of a file says. Several can hold at once: a Linux kernel is often an EFI program too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sniff {
    /// An EFI application or driver, and for which processor.
    pub efi: Option<Cpu>,
    /// A Linux x86 boot image (`HdrS`); the processor its 64-bit entry point implies.
    pub bzimage: Option<Cpu>,
    /// A Linux kernel for ARM64 (`Image`, or a compressed EFI image of any processor).
    pub kernel: Option<Cpu>,
    /// An iPXE script.
    pub script: bool,
}

impl Sniff {
    /// From a file's first [`HEAD_LEN`] bytes (or all of them).
    pub fn of(head: &[u8]) -> Self {
        let efi = efi_cpu(head);
        Self { efi, bzimage: bzimage_cpu(head), kernel: kernel_cpu(head, efi), script: is_script(head) }
    }

    /// From a file. An unreadable one is nothing known.
    pub fn of_file(path: &Path) -> Self {
        let Ok(file) = open_plain(path) else { return Self::default() };
        let mut head = [0; HEAD_LEN];
        let len = read_some(&file, &mut head, 0).unwrap_or(0);
        Self::of(head.get(..len).unwrap_or_default())
    }
}

/// Whether a file begins as a Linux kernel may: as [`Sniff`] knows one, as an ELF file, or as one of the compressed forms
/// that kernels of other processors are given out in. An unreadable one may be anything.
pub fn may_be_kernel(path: &Path) -> bool {
    const FORMS: &[&[u8]] = &[
        b"\x7fELF",
        b"\x1f\x8b", // gzip
        b"BZh",
        b"\xfd7zXZ\0",
        b"\x5d\0\0",         // LZMA
        b"\x28\xb5\x2f\xfd", // Zstandard
        b"\x89LZO",
        b"\x02\x21\x4c\x18", // LZ4
        b"\x27\x05\x19\x56", // U-Boot's uImage
        b"\xd0\x0d\xfe\xed", // a flattened image tree
    ];
    let mut head = [0; HEAD_LEN];
    let Ok(len) = open_plain(path).and_then(|file| read_some(&file, &mut head, 0)) else { return true };
    let head = head.get(..len).unwrap_or_default();
    let sniff = Sniff::of(head);
    let is_known = sniff.bzimage.is_some() || sniff.kernel.is_some() || sniff.efi.is_some();
    is_known || FORMS.iter().any(|form| head.starts_with(form))
}

/// True for an ISO 9660 image.
pub fn is_iso(path: &Path) -> bool {
    let mut magic = [0; 5];
    open_plain(path).is_ok_and(|file| file.read_exact_at(&mut magic, ISO_MAGIC_OFFSET).is_ok())
        && magic == *b"CD001"
}

/// Reads until the buffer is full or the file ends.
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + have as u64) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

fn bytes<const N: usize>(head: &[u8], offset: usize) -> Option<[u8; N]> {
    head.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn u16_at(head: &[u8], offset: usize) -> Option<u16> {
    bytes(head, offset).map(u16::from_le_bytes)
}

/// PE/COFF with an EFI subsystem (10 application, 11 boot driver, 12 run-time driver).
fn efi_cpu(head: &[u8]) -> Option<Cpu> {
    if bytes(head, 0)? != *b"MZ" {
        return None;
    }
    let pe = usize::try_from(u32::from_le_bytes(bytes(head, 0x3c)?)).ok()?;
    if bytes(head, pe)? != *b"PE\0\0" {
        return None;
    }
    let machine = u16_at(head, pe.checked_add(4)?)?;
    // The subsystem stands at the same place in PE32 and PE32+: 24 bytes of headers, 68 into the optional one.
    let subsystem = u16_at(head, pe.checked_add(24 + 68)?)?;
    (10..=12).contains(&subsystem).then_some(match machine {
        0x014c => Cpu::X86,
        0x8664 => Cpu::X64,
        0x01c0 | 0x01c2 | 0x01c4 => Cpu::Arm32,
        0xaa64 => Cpu::Arm64,
        _ => Cpu::Other,
    })
}

/// Linux x86 boot protocol (Documentation/arch/x86/boot.rst): `HdrS` at 0x202, from 2.12 on `xloadflags` at 0x236,
/// whose bit 0 says there is a 64-bit entry point.
fn bzimage_cpu(head: &[u8]) -> Option<Cpu> {
    if bytes(head, 0x202)? != *b"HdrS" {
        return None;
    }
    let long_mode = u16_at(head, 0x206)? >= 0x020c && u16_at(head, 0x236)? & 1 != 0;
    Some(if long_mode { Cpu::X64 } else { Cpu::X86 })
}

/// ARM64 `Image` (Documentation/arch/arm64/booting.rst: `ARM\x64` at 0x38) and the compressed EFI image (`zimg` at 4).
fn kernel_cpu(head: &[u8], efi: Option<Cpu>) -> Option<Cpu> {
    if bytes(head, 0x38) == Some(*b"ARM\x64") {
        return Some(Cpu::Arm64);
    }
    (bytes(head, 4) == Some(*b"zimg")).then_some(efi).flatten()
}

fn is_script(head: &[u8]) -> bool {
    head.strip_prefix(b"#!ipxe").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}

#[cfg(test)]
pub(crate) mod samples {
    /// An EFI program's head: nothing to run, all a loader's table looks at.
    pub(crate) fn efi(machine: u16) -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[..2].copy_from_slice(b"MZ");
        head[0x3c] = 0x80;
        head[0x80..0x84].copy_from_slice(b"PE\0\0");
        head[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        head[0x80 + 24 + 68] = 10;
        head
    }

    /// A Linux x86-64 kernel's head.
    pub(crate) fn bzimage() -> Vec<u8> {
        let mut head = vec![0; 2048];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        head[0x236] = 1;
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efi_programs_tell_their_processor() {
        for (machine, cpu) in
            [(0x014c, Cpu::X86), (0x8664, Cpu::X64), (0xaa64, Cpu::Arm64), (0x5064, Cpu::Other)]
        {
            assert_eq!(Sniff::of(&samples::efi(machine)).efi, Some(cpu));
        }
        let mut windows_program = samples::efi(0x8664);
        windows_program[0x80 + 24 + 68] = 3;
        assert_eq!(Sniff::of(&windows_program), Sniff::default());
    }

    #[test]
    fn a_header_that_points_out_of_the_file_is_nothing() {
        let mut head = samples::efi(0x8664);
        for pointer in [0xffff_ffffu32, 0x3f8, 1020, 4096] {
            head[0x3c..0x40].copy_from_slice(&pointer.to_le_bytes());
            assert_eq!(Sniff::of(&head).efi, None);
        }
        for len in 0..head.len() {
            let _ = Sniff::of(&head[..len]);
        }
    }

    #[test]
    fn kernels_are_seen_by_their_magic() {
        assert_eq!(Sniff::of(&samples::bzimage()).bzimage, Some(Cpu::X64));
        let mut old = samples::bzimage();
        old[0x206] = 0x0a;
        assert_eq!(Sniff::of(&old).bzimage, Some(Cpu::X86));
        let mut arm = vec![0; 64];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert_eq!(Sniff::of(&arm).kernel, Some(Cpu::Arm64));
        let mut zboot = samples::efi(0xaa64);
        zboot[4..8].copy_from_slice(b"zimg");
        assert_eq!(Sniff::of(&zboot).kernel, Some(Cpu::Arm64));
    }

    #[test]
    fn a_script_begins_with_its_magic_line() {
        for head in [&b"#!ipxe"[..], b"#!ipxe\n", b"#!ipxe\r\necho", b"#!ipxe \n"] {
            assert!(Sniff::of(head).script);
        }
        for head in [&b""[..], b"#!ipx", b"#!ipxeX", b" #!ipxe\n", b"#!/bin/sh\n"] {
            assert!(!Sniff::of(head).script);
        }
    }
}

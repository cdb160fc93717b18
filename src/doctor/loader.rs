//! What a loader can do, by the texts in it: the one place that knows.

use crate::wire::arch::Cpu;

/// What is known of a boot loader's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Features {
    /// It is an iPXE whose texts can be read: BIOS builds are compressed, and say nothing.
    pub(super) readable_ipxe: bool,
    /// It fetches by `http://`.
    pub(super) http: bool,
    /// It fetches by `https://`.
    pub(super) https: bool,
    /// By TLS as of 2024: elliptic curves for the exchange of keys.
    pub(super) curves: bool,
    /// An EFI program with a signature of whatever signer.
    pub(super) signed: Option<bool>,
}

/// Looks through a loader's bytes.
pub(super) fn features(bytes: &[u8], efi: Option<Cpu>) -> Features {
    let has = |text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
    Features {
        readable_ipxe: has(b"iPXE") && has(b"ipxe.org"),
        // The request line iPXE sends, as a format.
        http: has(b" HTTP/1."),
        // The label of TLS's key derivation.
        https: has(b"master secret"),
        // The name of the first curve it learned, in January 2024 (crypto/x25519.c).
        curves: has(b"x25519"),
        signed: efi.and_then(|_| is_signed(bytes)),
    }
}

/// Whether a PE file has a certificate table (Microsoft PE format, optional header data directory 4).
fn is_signed(bytes: &[u8]) -> Option<bool> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let pe = u32_at(0x3c)? as usize;
    let optional = pe.checked_add(24)?;
    // Data directories begin at 96 in PE32, at 112 in PE32+; each is an offset and a length.
    let directories = optional + if u16_at(optional)? == 0x20b { 112 } else { 96 };
    let count = u32_at(directories - 4)?;
    let (offset, len) = (u32_at(directories + 32)? as usize, u32_at(directories + 36)? as usize);
    let inside = offset.checked_add(len).is_some_and(|end| end <= bytes.len());
    Some(count > 4 && offset > 0 && len > 8 && inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(len: u32) -> Vec<u8> {
        let mut bytes = vec![0; 2048];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x80;
        let optional = 0x80 + 24;
        bytes[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
        bytes[optional + 108..optional + 112].copy_from_slice(&16u32.to_le_bytes());
        bytes[optional + 144..optional + 148].copy_from_slice(&1024u32.to_le_bytes());
        bytes[optional + 148..optional + 152].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    #[test]
    fn a_signature_is_a_table_inside_the_file() {
        assert_eq!(features(&program(512), Some(Cpu::X64)).signed, Some(true));
        assert_eq!(features(&program(0), Some(Cpu::X64)).signed, Some(false));
        assert_eq!(features(&program(4096), Some(Cpu::X64)).signed, Some(false));
        assert_eq!(features(b"MZ", Some(Cpu::X64)).signed, None);
        assert_eq!(features(&program(512), None).signed, None);
    }

    #[test]
    fn an_ipxe_tells_what_it_fetches_by() {
        let mut bytes = b"iPXE initialising devices http://ipxe.org\0%s %s HTTP/1.1\0".to_vec();
        let full = features(&bytes, None);
        assert!(full.readable_ipxe && full.http && !full.https);
        let mut secure = bytes.clone();
        secure.extend_from_slice(b"master secret\0");
        assert!(features(&secure, None).https && !features(&secure, None).curves);
        secure.extend_from_slice(b"x25519\0");
        assert!(features(&secure, None).https && features(&secure, None).curves);
        bytes.truncate(42);
        let bare = features(&bytes, None);
        assert!(bare.readable_ipxe && !bare.http);
    }
}

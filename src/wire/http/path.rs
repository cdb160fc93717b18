//! Paths: percent-decoding and the shape a path must have before anything is looked up by it.

/// The longest decoded path, bytes: longer than any catalogue name, short enough for a stack buffer.
pub const PATH_MAX: usize = 4096;

/// Why a path names nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathError {
    /// Does not begin with `/`.
    NotAbsolute,
    /// `%` without two hexadecimal digits.
    Escape,
    /// NUL or another control character, as it stands or escaped.
    ControlByte,
    /// Not UTF-8 once decoded.
    NotText,
    /// A `.` or `..` segment, with either slash around it, once decoded.
    DotSegment,
    /// Does not fit the caller's buffer.
    TooLong,
}

/// Decodes a request path into `buffer`: escapes resolved, runs of `/` made one (shim asks for
/// `/dir//grubx64.efi`, shim httpboot.c), then checked, so that no encoding of `..` gets by.
///
/// The result begins with `/` and keeps a `/` at its end. [`PATH_MAX`] bytes of buffer are enough for all that
/// should be answered with anything but 404.
pub fn decode_path<'b>(raw: &str, buffer: &'b mut [u8]) -> Result<&'b str, PathError> {
    if !raw.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let mut len = 0;
    let mut previous = 0;
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                // iPXE of 2019 takes a byte from 128 on for a negative number when it encodes a URL anew: `%FFFFFFC3`.
                // Bytes FF are in no UTF-8 text, so this cannot have been meant as it stands.
                if bytes.clone().take(6).eq(*b"FFFFFF") {
                    bytes.nth(5);
                }
                hex_pair(bytes.next(), bytes.next()).ok_or(PathError::Escape)?
            }
            _ => byte,
        };
        if byte.is_ascii_control() {
            return Err(PathError::ControlByte);
        }
        if byte == b'/' && previous == b'/' {
            continue;
        }
        *buffer.get_mut(len).ok_or(PathError::TooLong)? = byte;
        len += 1;
        previous = byte;
    }
    let path = std::str::from_utf8(buffer.get(..len).unwrap_or_default()).map_err(|_| PathError::NotText)?;
    // A backslash is an ordinary character here, but not to every reader of a log or a mount.
    if path.split(['/', '\\']).any(|segment| matches!(segment, "." | "..")) {
        return Err(PathError::DotSegment);
    }
    Ok(path)
}

/// True for a path that [`decode_path`] would give back as it stands, seen at a glance: letters, digits, `-`, `_` and
/// slashes, each of them alone, and dots that begin no segment. False says nothing. Most requests need no buffer then.
pub fn is_decoded(raw: &str) -> bool {
    let mut previous = b' ';
    let fits = raw.bytes().all(|byte| {
        let fits = match byte {
            b'/' | b'.' => previous != b'/',
            _ => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
        };
        previous = byte;
        fits
    });
    fits && raw.starts_with('/') && raw.len() <= PATH_MAX
}

/// The byte that two hexadecimal digits name.
pub(super) fn hex_pair(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let value = digit(high?)? << 4 | digit(low?)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_once_and_slashes_collapsed() {
        for (raw, want) in [
            ("/", "/"),
            ("//", "/"),
            ("/ipxe", "/ipxe"),
            ("/images/win%20pe/boot.wim", "/images/win pe/boot.wim"),
            ("/loaders//grubx64.efi", "/loaders/grubx64.efi"),
            ("///a///b//", "/a/b/"),
            ("/a%2Fb", "/a/b"),
            ("/a/%2f/b", "/a/b"),
            ("/a%2520b", "/a%20b"),
            ("/%C3%BC", "/\u{fc}"),
            ("/%FFFFFFC3%FFFFFFBC.wim", "/\u{fc}.wim"),
            ("/a+b", "/a+b"),
            ("/a;v=1,2", "/a;v=1,2"),
            ("/...", "/..."),
            ("/.hidden", "/.hidden"),
            ("/a..b", "/a..b"),
        ] {
            let mut buffer = [0; 64];
            assert_eq!(decode_path(raw, &mut buffer), Ok(want), "{raw}");
            assert!(!is_decoded(raw) || raw == want, "{raw}");
        }
        for (raw, decoded) in [
            ("/", true),
            ("/ipxe", true),
            ("/images/win-11_pe/boot.wim/", true),
            ("", false),
            ("ipxe", false),
            ("/a//b", false),
            ("/a/.b", false),
            ("/a/../b", false),
            ("/a%20b", false),
            ("/a\\..", false),
        ] {
            assert_eq!(is_decoded(raw), decoded, "{raw}");
        }
        assert!(!is_decoded(&"/x".repeat(PATH_MAX)));
    }

    #[test]
    fn what_could_leave_the_library_is_refused() {
        use PathError::{ControlByte, DotSegment, Escape, NotAbsolute, NotText};
        for (raw, want) in [
            ("", NotAbsolute),
            ("a", NotAbsolute),
            ("%2Fa", NotAbsolute),
            ("/..", DotSegment),
            ("/.", DotSegment),
            ("/a/../b", DotSegment),
            ("/a/./b", DotSegment),
            ("/%2e%2e/b", DotSegment),
            ("/%2E.", DotSegment),
            ("/a%2f..%2fb", DotSegment),
            ("/a%2f..", DotSegment),
            ("//..//", DotSegment),
            ("/a%5c..%5cb", DotSegment),
            ("/a\\..\\b", DotSegment),
            ("/a%00.efi", ControlByte),
            ("/%0a", ControlByte),
            ("/%7f", ControlByte),
            ("/%", Escape),
            ("/%2", Escape),
            ("/%zz", Escape),
            ("/%+1", Escape),
            ("/% 1", Escape),
            ("/%ff", NotText),
            ("/%c3", NotText),
            ("/%c0%ae%c0%ae/", NotText),
        ] {
            let mut buffer = [0; 64];
            assert_eq!(decode_path(raw, &mut buffer), Err(want), "{raw}");
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_too_long() {
        let mut buffer = [0; 4];
        assert_eq!(decode_path("/abc", &mut buffer), Ok("/abc"));
        assert_eq!(decode_path("/abcd", &mut buffer), Err(PathError::TooLong));
        assert_eq!(decode_path("////////", &mut buffer), Ok("/"));
    }
}

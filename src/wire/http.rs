//! HTTP/1.1 messages as bytes: request heads and bodies, response heads, paths, forms, ranges (RFC 9110, 9112).
//!
//! [`next_request`] is the server's way in: handed everything received so far, it says `More`, `Request` or
//! `Refuse`. It keeps nothing between calls, so a connection is only its bytes. It is strict about framing
//! (whatever two parsers could read in two ways is refused) and lenient about nothing but empty lines before a
//! request. What a request *means* is decided in `proto::http`.
//!
//! [`parse_response_head`] is the firmware machines' way in, and as strict as iPXE, the strictest of them.

mod form;
mod path;
mod range;
mod request;
mod response;

use std::fmt;
use std::time::SystemTime;

pub use form::{Encoded, Field, Fields, Plus, fields};
pub use path::{PATH_MAX, PathError, decode_path, is_decoded};
pub use range::{ByteRange, RANGES_MAX, RangeList, Selected, select_ranges};
pub use request::{
    BODY_MAX, FIELDS_MAX, HEAD_MAX, Next, REQUEST_LINE_MAX, RefuseReason, Request, expects_continue,
    next_request,
};
pub use response::{
    BodyLength, ContentRange, ResponseError, ResponseHead, parse_content_range, parse_response_head,
};

/// A status code (RFC 9110 §15). Any number can be held, because clients meet any number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Status(pub u16);

#[allow(missing_docs, reason = "RFC 9110 §15 and RFC 6585 §5 name them")]
impl Status {
    pub const CONTINUE: Self = Self(100);
    pub const OK: Self = Self(200);
    pub const NO_CONTENT: Self = Self(204);
    pub const PARTIAL_CONTENT: Self = Self(206);
    pub const NOT_MODIFIED: Self = Self(304);
    pub const BAD_REQUEST: Self = Self(400);
    pub const FORBIDDEN: Self = Self(403);
    pub const NOT_FOUND: Self = Self(404);
    pub const METHOD_NOT_ALLOWED: Self = Self(405);
    pub const REQUEST_TIMEOUT: Self = Self(408);
    pub const GONE: Self = Self(410);
    pub const LENGTH_REQUIRED: Self = Self(411);
    pub const PRECONDITION_FAILED: Self = Self(412);
    pub const CONTENT_TOO_LARGE: Self = Self(413);
    pub const URI_TOO_LONG: Self = Self(414);
    pub const RANGE_NOT_SATISFIABLE: Self = Self(416);
    pub const EXPECTATION_FAILED: Self = Self(417);
    pub const FIELDS_TOO_LARGE: Self = Self(431);
    pub const INTERNAL_ERROR: Self = Self(500);
    pub const NOT_IMPLEMENTED: Self = Self(501);
    pub const UNAVAILABLE: Self = Self(503);
    pub const VERSION_NOT_SUPPORTED: Self = Self(505);
}

impl Status {
    /// The number.
    pub fn code(self) -> u16 {
        self.0
    }

    /// The phrase that goes with the number, empty for numbers this server never sends.
    pub fn reason(self) -> &'static str {
        match self {
            Self::CONTINUE => "Continue",
            Self::OK => "OK",
            Self::NO_CONTENT => "No Content",
            Self::PARTIAL_CONTENT => "Partial Content",
            Self::NOT_MODIFIED => "Not Modified",
            Self::BAD_REQUEST => "Bad Request",
            Self::FORBIDDEN => "Forbidden",
            Self::NOT_FOUND => "Not Found",
            Self::METHOD_NOT_ALLOWED => "Method Not Allowed",
            Self::REQUEST_TIMEOUT => "Request Timeout",
            Self::GONE => "Gone",
            Self::LENGTH_REQUIRED => "Length Required",
            Self::PRECONDITION_FAILED => "Precondition Failed",
            Self::CONTENT_TOO_LARGE => "Content Too Large",
            Self::URI_TOO_LONG => "URI Too Long",
            Self::RANGE_NOT_SATISFIABLE => "Range Not Satisfiable",
            Self::EXPECTATION_FAILED => "Expectation Failed",
            Self::FIELDS_TOO_LARGE => "Request Header Fields Too Large",
            Self::INTERNAL_ERROR => "Internal Server Error",
            Self::NOT_IMPLEMENTED => "Not Implemented",
            Self::UNAVAILABLE => "Service Unavailable",
            Self::VERSION_NOT_SUPPORTED => "HTTP Version Not Supported",
            _ => "",
        }
    }

    /// 1xx: an interim answer, fatal to iPXE.
    pub fn is_informational(self) -> bool {
        (100..200).contains(&self.0)
    }

    /// 2xx.
    pub fn is_success(self) -> bool {
        (200..300).contains(&self.0)
    }

    /// True for the answers that never carry a body, whatever their fields say (RFC 9112 §6.3).
    pub fn is_bodiless(self) -> bool {
        self.is_informational() || matches!(self, Self::NO_CONTENT | Self::NOT_MODIFIED)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.reason())
    }
}

/// Request methods as far as this server tells them apart. Methods are case-sensitive (RFC 9110 §9.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD: how UEFI HTTP Boot and iPXE's SAN driver ask for a size.
    Head,
    /// POST: iPXE's `params`.
    Post,
    /// Any other well-formed method; [`Request::method_token`] has its name.
    Other,
}

/// The version a message claims. Minor versions above 1 count as 1.1 (RFC 9110 §2.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0: closes unless keep-alive is agreed.
    Http10,
    /// HTTP/1.1: stays open unless told otherwise.
    Http11,
}

/// Reads a date in any of the three forms of RFC 9110 §5.6.7; `None` for anything else.
pub fn parse_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// RFC 9110 §5.6.2 `tchar`.
const TOKEN: u8 = 1;
/// What a host's name or address may hold outside brackets (RFC 3986 §3.2.2, `reg-name`).
const HOST: u8 = 2;

/// What a byte may be part of. Looked up, because every byte of a name and of a host is asked.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        if (byte as u8).is_ascii_alphanumeric() {
            classes[byte] = TOKEN | HOST;
        }
        byte += 1;
    }
    let of_some = [(TOKEN, b"!#$%&'*+-.^_`|~" as &[u8]), (HOST, b"-._~!$&'()*+,;=%")];
    let mut one = 0;
    while one < of_some.len() {
        let (class, bytes) = of_some[one];
        let mut at = 0;
        while at < bytes.len() {
            classes[bytes[at] as usize] |= class;
            at += 1;
        }
        one += 1;
    }
    classes
};

/// How many bytes at the front are of a class.
fn class_len(bytes: &[u8], class: u8) -> usize {
    bytes.iter().take_while(|byte| CLASSES[usize::from(**byte)] & class != 0).count()
}

/// The comma-separated, trimmed, non-empty members of a list-valued field (RFC 9110 §5.6.1), for lists whose
/// members hold no quoted commas.
fn list_members(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|member| !member.is_empty())
}

/// `1*DIGIT`, with no sign, blank or other base. Too large for 64 bits is `None` as well.
fn decimal(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The escapes of `tests/data/http/README.md`.
#[cfg(test)]
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        match next {
            '~' => bytes.extend_from_slice(b"\r\n"),
            '\\' => {
                let kind = rest.chars().next().expect("a backslash escapes something");
                rest = &rest[1..];
                match kind {
                    'r' => bytes.push(b'\r'),
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    '0' => bytes.push(0),
                    '\\' => bytes.push(b'\\'),
                    'x' => {
                        bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hexadecimal digits"));
                        rest = &rest[2..];
                    }
                    '{' => {
                        let (what, behind) = rest.split_once('}').expect("a repetition ends");
                        let (unit, times) = what.rsplit_once('*').expect("a repetition says how often");
                        let times = times.parse().expect("a repetition says how often");
                        bytes.extend(unescape(unit).repeat(times));
                        rest = behind;
                    }
                    _ => panic!("no such escape: {kind}"),
                }
            }
            _ => {
                let mut buffer = [0; 4];
                bytes.extend_from_slice(next.encode_utf8(&mut buffer).as_bytes());
            }
        }
    }
    bytes
}

/// Takes any bytes through the readers of this room that stand behind a request's first look: a path, a range set, a
/// form, a date, a response's head. For fuzz targets and the mutation tests. Panics only when an invariant of one of
/// them is broken.
pub fn fuzz_values(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut buffer = [0; PATH_MAX];
    if let Ok(path) = decode_path(&text, &mut buffer) {
        assert!(path.starts_with('/') && !path.contains("//") && !path.chars().any(|c| c.is_ascii_control()));
        assert!(!path.split(['/', '\\']).any(|segment| segment == ".." || segment == "."));
    }
    for len in [0, 1, 500, u64::MAX] {
        let selected = select_ranges(&text, len);
        let parts: &[ByteRange] = match &selected {
            Selected::Whole | Selected::Unsatisfiable => &[],
            Selected::One(range) => std::slice::from_ref(range),
            Selected::Many(list) => list.as_slice(),
        };
        for (at, part) in parts.iter().enumerate() {
            assert!(part.len > 0 && part.first < len && part.last() < len, "{part:?} of {len}");
            let apart = |other: &ByteRange| part.last() < other.first || other.last() < part.first;
            assert!(parts[..at].iter().all(apart), "{parts:?}");
        }
    }
    for plus in [Plus::Plus, Plus::Blank] {
        for field in fields(bytes, plus) {
            let whole = field.value.bytes().count();
            let mut buffer = [0; 64];
            assert!(field.value.decode(&mut buffer).is_none_or(|text| text.len() == whole));
            let text = field.value.text(64).unwrap_or_default();
            assert!(text.len() <= 64 && text == text.trim() && !text.chars().any(char::is_control));
            let _ = field.name.is("mac");
        }
    }
    let _ = parse_date(&text);
    if let Ok(Some(head)) = parse_response_head(bytes) {
        assert!(head.len <= bytes.len());
        let _ = (head.body(false), head.header("Location"), head.fields().count());
    }
}

#[cfg(test)]
mod cases;

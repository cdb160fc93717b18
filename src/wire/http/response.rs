//! Response heads, as clients read them.

use super::{Status, Version, decimal, list_members};
use crate::wire::http::request::{FIELDS_MAX, HEAD_MAX};

/// Why bytes are not a response head that boot firmware would take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseError {
    /// Not `HTTP/1.x CODE reason`. The blank after the code is required even when no reason follows: iPXE fails
    /// without it (net/tcp/httpcore.c, "Invalid status line").
    StatusLine,
    /// A field line is malformed or folded.
    Field,
    /// More than [`FIELDS_MAX`] fields or [`HEAD_MAX`] bytes.
    TooLarge,
    /// Content-Length is no plain decimal, or two of them differ, or it stands beside Transfer-Encoding.
    Length,
}

/// What a `Content-Range: bytes ...` field says (RFC 9110 §14.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentRange {
    /// `bytes FIRST-LAST/LEN`; LEN is `None` for `*`.
    Part {
        /// First byte.
        first: u64,
        /// Last byte, inclusive.
        last: u64,
        /// Length of the whole, bytes.
        len: Option<u64>,
    },
    /// `bytes */LEN`, as a 416 says it.
    Unsatisfied {
        /// Length of the whole, bytes.
        len: u64,
    },
}

/// How long the body is (RFC 9112 §6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyLength {
    /// There is none.
    None,
    /// Exactly so many bytes.
    Exact(u64),
    /// Chunked transfer coding.
    Chunked,
    /// Up to the end of the connection.
    UntilClose,
}

/// The head of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// Status code.
    pub status: Status,
    /// Version the server claims.
    pub version: Version,
    /// Bytes of the head, its empty line included; the body starts here.
    pub len: usize,
    /// Content-Length, bytes.
    pub content_length: Option<u64>,
    /// Transfer-Encoding is exactly `chunked`.
    pub chunked: bool,
    /// False when the connection ends with this response.
    pub keep_alive: bool,
    /// Content-Range, if there is one and it counts bytes.
    pub content_range: Option<ContentRange>,
    fields: [httparse::Header<'a>; FIELDS_MAX],
    field_count: usize,
}

impl<'a> ResponseHead<'a> {
    /// Every field in order: name as sent, value without surrounding blanks.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.fields.iter().take(self.field_count).map(|field| (field.name, field.value.trim_ascii()))
    }

    /// The first field of that name (any case), if its value is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.fields().find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// How long the body is, given whether the request was a HEAD.
    pub fn body(&self, head_request: bool) -> BodyLength {
        match self.content_length {
            _ if head_request || self.status.is_bodiless() => BodyLength::None,
            _ if self.chunked => BodyLength::Chunked,
            Some(len) => BodyLength::Exact(len),
            None => BodyLength::UntilClose,
        }
    }
}

/// Parses a response head from the start of `bytes`; `Ok(None)` when more bytes are needed.
pub fn parse_response_head(bytes: &[u8]) -> Result<Option<ResponseHead<'_>>, ResponseError> {
    let window = bytes.get(..HEAD_MAX).unwrap_or(bytes);
    let Some(line_end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        let wrong_start = !window.iter().zip(b"HTTP/1.").all(|(have, want)| have == want);
        return match (wrong_start, window.len() >= HEAD_MAX) {
            (true, _) => Err(ResponseError::StatusLine),
            (_, true) => Err(ResponseError::TooLarge),
            _ => Ok(None),
        };
    };
    let (line, rest) = window.split_at(line_end);
    let (version, status) = status_line(line).ok_or(ResponseError::StatusLine)?;
    let block = rest.get(2..).unwrap_or_default();
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let (block_len, field_count) = match httparse::parse_headers(block, &mut fields) {
        Ok(httparse::Status::Complete((len, found))) => (len, found.len()),
        Ok(httparse::Status::Partial) if window.len() >= HEAD_MAX => return Err(ResponseError::TooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(ResponseError::TooLarge),
        Err(_) => return Err(ResponseError::Field),
    };
    let mut head = ResponseHead {
        status,
        version,
        len: line_end + 2 + block_len,
        content_length: None,
        chunked: false,
        keep_alive: version == Version::Http11,
        content_range: None,
        fields,
        field_count,
    };
    let (mut close, mut stay, mut coded) = (false, false, false);
    for (name, value) in fields.iter().take(field_count).map(|field| (field.name, field.value.trim_ascii())) {
        let value = std::str::from_utf8(value).unwrap_or("");
        if name.eq_ignore_ascii_case("Content-Length") {
            let len = decimal(value).ok_or(ResponseError::Length)?;
            if head.content_length.is_some_and(|before| before != len) {
                return Err(ResponseError::Length);
            }
            head.content_length = Some(len);
        } else if name.eq_ignore_ascii_case("Transfer-Encoding") {
            // A list of codings fails in iPXE, so only the plain word counts.
            coded = true;
            head.chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("Connection") {
            close |= list_members(value).any(|word| word.eq_ignore_ascii_case("close"));
            stay |= list_members(value).any(|word| word.eq_ignore_ascii_case("keep-alive"));
        } else if name.eq_ignore_ascii_case("Content-Range") {
            head.content_range = parse_content_range(value);
        }
    }
    if coded && (head.content_length.is_some() || !head.chunked) {
        return Err(ResponseError::Length);
    }
    head.keep_alive = !close && (stay || version == Version::Http11);
    Ok(Some(head))
}

/// Reads the value of a Content-Range field; `None` for other units and malformed or impossible ranges.
pub fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (unit, range) = value.split_once(' ')?;
    let (range, len) = range.trim().split_once('/')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    if range == "*" {
        return Some(ContentRange::Unsatisfied { len: decimal(len)? });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (decimal(first)?, decimal(last)?);
    let len = if len == "*" { None } else { Some(decimal(len)?) };
    (first <= last && len.is_none_or(|len| last < len)).then_some(ContentRange::Part { first, last, len })
}

/// `HTTP/1.x CODE `, then any reason.
fn status_line(line: &[u8]) -> Option<(Version, Status)> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let (&[minor, b' ', a, b, c, b' '], reason) = rest.split_first_chunk::<6>()? else { return None };
    let digits = [minor, a, b, c].iter().all(u8::is_ascii_digit);
    let clean = reason.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    if !digits || !clean || a == b'0' {
        return None;
    }
    let version = if minor == b'0' { Version::Http10 } else { Version::Http11 };
    let code = [a, b, c].iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    Some((version, Status(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> ResponseHead<'_> {
        parse_response_head(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_range_answer_is_read_field_by_field() {
        let text = "HTTP/1.1 206 Partial Content\r\nContent-Type: application/octet-stream\r\n\
                    content-length: 512\r\nContent-Range: bytes 1024-1535/1048576\r\nETag: \"a-1\"\r\n\r\nBODY";
        let head = head(text);
        assert_eq!(head.status, Status::PARTIAL_CONTENT);
        assert_eq!(head.version, Version::Http11);
        assert_eq!(&text[head.len..], "BODY");
        assert_eq!(head.content_length, Some(512));
        assert!(head.keep_alive && !head.chunked);
        let range = ContentRange::Part { first: 1024, last: 1535, len: Some(1 << 20) };
        assert_eq!(head.content_range, Some(range));
        assert_eq!(head.header("etag"), Some("\"a-1\""));
        assert_eq!(head.header("location"), None);
        assert_eq!(head.fields().count(), 4);
        assert_eq!(head.body(false), BodyLength::Exact(512));
        assert_eq!(head.body(true), BodyLength::None);
    }

    #[test]
    fn every_prefix_of_a_head_asks_for_more() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
        for len in 0..text.len() {
            let found = parse_response_head(&text.as_bytes()[..len]);
            assert!(matches!(found, Ok(None)), "{len}: {found:?}");
        }
        assert!(!head(text).keep_alive);
    }

    #[test]
    fn the_blank_after_the_code_is_required_as_ipxe_requires_it() {
        assert_eq!(head("HTTP/1.1 200 \r\n\r\n").status, Status::OK);
        for line in [
            "HTTP/1.1 200",
            "HTTP/1.1 20 OK",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1  200 OK",
            "HTTP/1.1 099 Low",
            "HTTP/2.0 200 OK",
            "HTTP/1.x 200 OK",
            "http/1.1 200 OK",
            "SSH-2.0-OpenSSH",
            "",
        ] {
            let text = format!("{line}\r\n\r\n");
            let found = parse_response_head(text.as_bytes());
            assert!(matches!(found, Err(ResponseError::StatusLine)), "{line}: {found:?}");
        }
        assert!(matches!(parse_response_head(b"\x16\x03\x01"), Err(ResponseError::StatusLine)));
    }

    #[test]
    fn lengths_that_leave_a_doubt_are_errors() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            let found = parse_response_head(text.as_bytes());
            assert!(matches!(found, Err(ResponseError::Length)), "{fields}: {found:?}");
        }
    }

    #[test]
    fn the_body_ends_where_rfc_9112_section_6_3_says() {
        for (text, want) in [
            ("HTTP/1.1 200 OK\r\n\r\n", BodyLength::UntilClose),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", BodyLength::Chunked),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", BodyLength::Exact(0)),
            ("HTTP/1.1 204 No Content\r\n\r\n", BodyLength::None),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", BodyLength::None),
            ("HTTP/1.1 100 Continue\r\n\r\n", BodyLength::None),
        ] {
            assert_eq!(head(text).body(false), want, "{text}");
        }
    }

    #[test]
    fn connections_stay_open_as_version_and_field_say() {
        for (text, want) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nConnection: Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nConnection: keep-alive, close\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("HTTP/1.9 200 OK\r\n\r\n", true),
        ] {
            assert_eq!(head(text).keep_alive, want, "{text}");
        }
    }

    #[test]
    fn impossible_content_ranges_are_none() {
        assert_eq!(parse_content_range("bytes */10"), Some(ContentRange::Unsatisfied { len: 10 }));
        let open = ContentRange::Part { first: 0, last: 9, len: None };
        assert_eq!(parse_content_range("bytes 0-9/*"), Some(open));
        for value in ["", "bytes", "bytes 0-9", "bytes 9-0/10", "bytes 0-10/10", "items 0-1/2", "bytes -1/2"]
        {
            assert_eq!(parse_content_range(value), None, "{value}");
        }
    }

    #[test]
    fn heads_beyond_the_bounds_are_refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1));
        assert!(matches!(parse_response_head(many.as_bytes()), Err(ResponseError::TooLarge)));
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(HEAD_MAX));
        assert!(matches!(parse_response_head(long.as_bytes()), Err(ResponseError::TooLarge)));
        let line = format!("HTTP/1.1 200 {}", "b".repeat(HEAD_MAX));
        assert!(matches!(parse_response_head(line.as_bytes()), Err(ResponseError::TooLarge)));
        assert!(matches!(
            parse_response_head(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n"),
            Err(ResponseError::Field)
        ));
    }
}

//! Heads of answers, and which bytes follow them.

use std::time::{Duration, SystemTime};

use super::conditional::{self, Verdict};
use crate::wire::http::{
    ByteRange, Method, RangeList, RefuseReason, Request, Selected, Status, Version, select_ranges,
};

/// What is known of a file that is about to be served.
#[derive(Clone, Copy, Debug)]
pub struct FileMeta<'a> {
    /// Bytes.
    pub len: u64,
    /// Strong entity tag with its quotes (`"..."`). UEFI HTTP Boot misuses a weak one.
    pub etag: &'a str,
    /// When the content last changed.
    pub modified: SystemTime,
    /// Sent as it stands; without parameters for boot files, because UEFI compares it whole.
    pub content_type: &'a str,
}

/// One stretch of a body of several parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Bytes given here: the head of a part, or the closing boundary.
    Text(Vec<u8>),
    /// Bytes of the file.
    File {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// What follows the head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Nothing more; a short error text stands in the head buffer already.
    None,
    /// Bytes of the file, never zero of them.
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The text whose length the caller gave; the caller appends it.
    Inline,
    /// `multipart/byteranges`: these, one after the other.
    Multi(Vec<Piece>),
}

/// An answer whose head has been written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Status sent, which may differ from the one asked for where iPXE could not bear it.
    pub status: Status,
    /// Bytes appended to the head buffer, a short error text included.
    pub head_len: usize,
    /// What to send after them.
    pub body: Body,
    /// Bytes still to send after the head buffer.
    pub body_len: u64,
    /// Close the connection when all of it is sent.
    pub close: bool,
}

/// Methods for files.
const ALLOW_FILE: &str = "GET, HEAD";
/// Methods for scripts, and so for the server as a whole.
const ALLOW_ALL: &str = "GET, HEAD, POST";
/// Content type of error texts.
const TEXT: &str = "text/plain";

/// Answers a request for a file: conditions, ranges, then the file. Writes the head to the end of `head`.
///
/// GET and HEAD only, 405 to others. iPXE gets 200 where another client would get 304, since a 304 leaves it
/// waiting. A Range counts for GET only (RFC 9110 §14.2), so HEAD always tells the whole length. Allocates
/// nothing beyond `head`, but for a body of several parts.
pub fn answer_file(
    request: &Request<'_>,
    meta: &FileMeta<'_>,
    now: SystemTime,
    head: &mut Vec<u8>,
) -> Answer {
    if !matches!(request.method, Method::Get | Method::Head) {
        return answer_not_allowed(request, ALLOW_FILE, now, head);
    }
    // RFC 9110 §8.8.2.1: no Last-Modified later than Date. A clock that is behind is no reason to make one up.
    let modified = representable(whole_seconds(meta.modified)).filter(|modified| *modified <= now);
    let ranges = match conditional::evaluate(request, meta, modified, now) {
        Verdict::Failed => return answer_error(Some(request), Status::PRECONDITION_FAILED, now, head),
        Verdict::NotModified if !request.is_ipxe() => {
            let mut head = Head::start(head, Status::NOT_MODIFIED, now);
            head.validators(meta, modified);
            // RFC 9110 §8.6 allows the length the 200 would have had, and clients that wait for one get it.
            head.number("Content-Length", meta.len);
            return head.end(Some(request), Body::None, 0);
        }
        Verdict::NotModified => {
            request.method == Method::Get && conditional::if_range(request, meta, modified, now)
        }
        Verdict::Proceed { ranges } => ranges,
    };
    let asked = if ranges { request.sole_header("Range") } else { None };
    match asked.map_or(Selected::Whole, |value| select_ranges(value, meta.len)) {
        Selected::Whole => whole(request, meta, modified, now, head),
        Selected::One(range) => one(request, meta, modified, range, now, head),
        Selected::Many(list) => many(request, meta, modified, &list, now, head),
        Selected::Unsatisfiable => {
            let mut head = Head::start(head, Status::RANGE_NOT_SATISFIABLE, now);
            head.text("Content-Range", &["bytes */"]);
            head.digits(meta.len);
            head.accept_ranges();
            head.end_error(Some(request))
        }
    }
}

fn whole(
    request: &Request<'_>,
    meta: &FileMeta<'_>,
    modified: Option<SystemTime>,
    now: SystemTime,
    head: &mut Vec<u8>,
) -> Answer {
    let mut head = Head::start(head, Status::OK, now);
    head.text("Content-Type", &[meta.content_type]);
    head.number("Content-Length", meta.len);
    head.accept_ranges();
    head.validators(meta, modified);
    if request.method == Method::Head || meta.len == 0 {
        return head.end(Some(request), Body::None, 0);
    }
    head.end(Some(request), Body::Range { offset: 0, len: meta.len }, meta.len)
}

fn one(
    request: &Request<'_>,
    meta: &FileMeta<'_>,
    modified: Option<SystemTime>,
    range: ByteRange,
    now: SystemTime,
    head: &mut Vec<u8>,
) -> Answer {
    let mut head = Head::start(head, Status::PARTIAL_CONTENT, now);
    head.text("Content-Type", &[meta.content_type]);
    head.number("Content-Length", range.len);
    head.text("Content-Range", &[]);
    content_range(head.out, range, meta.len);
    head.accept_ranges();
    head.validators(meta, modified);
    head.end(Some(request), Body::Range { offset: range.first, len: range.len }, range.len)
}

fn many(
    request: &Request<'_>,
    meta: &FileMeta<'_>,
    modified: Option<SystemTime>,
    list: &RangeList,
    now: SystemTime,
    head: &mut Vec<u8>,
) -> Answer {
    let boundary = boundary(meta, list, now);
    let mut pieces = Vec::with_capacity(list.as_slice().len() * 2 + 1);
    let mut body_len = 0;
    for (index, range) in list.as_slice().iter().enumerate() {
        let mut part = Vec::with_capacity(160);
        let lead = if index == 0 { "--" } else { "\r\n--" };
        for text in [lead, &boundary, "\r\nContent-Type: "] {
            part.extend_from_slice(text.as_bytes());
        }
        put_clean(&mut part, meta.content_type);
        part.extend_from_slice(b"\r\nContent-Range: ");
        content_range(&mut part, *range, meta.len);
        part.extend_from_slice(b"\r\n\r\n");
        body_len += part.len() as u64 + range.len;
        pieces.push(Piece::Text(part));
        pieces.push(Piece::File { offset: range.first, len: range.len });
    }
    let tail = format!("\r\n--{boundary}--\r\n").into_bytes();
    body_len += tail.len() as u64;
    pieces.push(Piece::Text(tail));
    let mut head = Head::start(head, Status::PARTIAL_CONTENT, now);
    head.text("Content-Type", &["multipart/byteranges; boundary=", &boundary]);
    head.number("Content-Length", body_len);
    head.accept_ranges();
    head.validators(meta, modified);
    head.end(Some(request), Body::Multi(pieces), body_len)
}

/// Answers with a text the caller renders and appends: scripts, pages, `ok`. `extra` fields are written as they
/// stand, without control characters.
///
/// iPXE gets 200 in place of a 204, 304 or 1xx, any of which would stop it. HEAD gets the head alone.
pub fn answer_text(
    request: &Request<'_>,
    status: Status,
    content_type: &str,
    body_len: u64,
    extra: &[(&str, &str)],
    now: SystemTime,
    head: &mut Vec<u8>,
) -> Answer {
    // An interim answer is no answer to anyone, so 1xx is 200 for all.
    let unbearable = status.is_informational() || (status.is_bodiless() && request.is_ipxe());
    let status = if unbearable { Status::OK } else { status };
    let mut head = Head::start(head, status, now);
    if !status.is_bodiless() {
        head.text("Content-Type", &[content_type]);
        head.number("Content-Length", body_len);
    }
    for (name, value) in extra {
        head.text(name, &[value]);
    }
    if request.method == Method::Head || body_len == 0 || status.is_bodiless() {
        return head.end(Some(request), Body::None, 0);
    }
    head.end(Some(request), Body::Inline, body_len)
}

/// Answers with a status and a short plain text that says no more than the status. Closes when there is no
/// request, that is, when bytes were refused.
pub fn answer_error(
    request: Option<&Request<'_>>,
    status: Status,
    now: SystemTime,
    head: &mut Vec<u8>,
) -> Answer {
    let mut head = Head::start(head, status, now);
    if status == Status::METHOD_NOT_ALLOWED {
        head.text("Allow", &[ALLOW_ALL]);
    }
    head.end_error(request)
}

/// Answers bytes that are no request; the connection ends with it.
pub fn answer_refusal(reason: RefuseReason, now: SystemTime, head: &mut Vec<u8>) -> Answer {
    answer_error(None, reason.status(), now, head)
}

/// 405 with the methods that are allowed there. A CONNECT ends the connection: what follows it is no HTTP.
pub fn answer_not_allowed(request: &Request<'_>, allow: &str, now: SystemTime, head: &mut Vec<u8>) -> Answer {
    let mut head = Head::start(head, Status::METHOD_NOT_ALLOWED, now);
    head.text("Allow", &[allow]);
    head.end_error(Some(request))
}

/// 503 with Retry-After and nothing else, for iPXE alone: it waits and asks again, in every build since 2014.
/// Never 0 seconds, which iPXE would take as "at once" (net/tcp/httpcore.c).
pub fn answer_busy(
    request: &Request<'_>,
    retry_after_secs: u32,
    now: SystemTime,
    head: &mut Vec<u8>,
) -> Answer {
    let mut head = Head::start(head, Status::UNAVAILABLE, now);
    head.number("Retry-After", u64::from(retry_after_secs.max(1)));
    head.number("Content-Length", 0);
    head.end(Some(request), Body::None, 0)
}

/// The content type of a file by its name. UEFI HTTP Boot takes a program, an ISO or a disk image only under
/// exactly these names (HttpBootSupport.c, `HttpBootCheckImageType`).
pub fn content_type(name: &str) -> &'static str {
    let dot = name.rfind('.').map_or(name.len(), |dot| dot + 1);
    let extension = name.get(dot..).unwrap_or_default();
    let known = [
        ("efi", "application/efi"),
        ("iso", "application/vnd.efi-iso"),
        ("img", "application/vnd.efi-img"),
        ("ipxe", TEXT),
        ("txt", TEXT),
        ("cfg", TEXT),
        ("ks", TEXT),
        ("cmd", TEXT),
        ("xml", "application/xml"),
        ("json", "application/json"),
        ("html", "text/html"),
    ];
    known
        .into_iter()
        .find(|(known, _)| extension.eq_ignore_ascii_case(known))
        .map_or("application/octet-stream", |(_, kind)| kind)
}

/// A head being written. Every field line is finished by the one after it, so a value can be put together.
struct Head<'h> {
    out: &'h mut Vec<u8>,
    start: usize,
    status: Status,
}

impl<'h> Head<'h> {
    /// The status line and Date. Always 1.1, and always a blank after the code: iPXE needs it even when the
    /// reason is empty.
    fn start(out: &'h mut Vec<u8>, status: Status, now: SystemTime) -> Self {
        let start = out.len();
        out.extend_from_slice(b"HTTP/1.1 ");
        put_number(out, u64::from(status.code()));
        out.push(b' ');
        out.extend_from_slice(status.reason().as_bytes());
        let mut head = Self { out, start, status };
        head.date("Date", now);
        head
    }

    fn text(&mut self, name: &str, value: &[&str]) {
        self.out.extend_from_slice(b"\r\n");
        put_clean(self.out, name);
        self.out.extend_from_slice(b": ");
        for part in value {
            put_clean(self.out, part);
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.text(name, &[]);
        self.digits(value);
    }

    /// Continues the value of the field begun last.
    fn digits(&mut self, value: u64) {
        put_number(self.out, value);
    }

    fn date(&mut self, name: &str, date: SystemTime) {
        let Some(date) = representable(date) else { return };
        self.text(name, &[]);
        self.out.extend_from_slice(&http_date(date));
    }

    fn accept_ranges(&mut self) {
        self.text("Accept-Ranges", &["bytes"]);
    }

    fn validators(&mut self, meta: &FileMeta<'_>, modified: Option<SystemTime>) {
        self.text("ETag", &[meta.etag]);
        if let Some(modified) = modified {
            self.date("Last-Modified", modified);
        }
    }

    /// Connection and the empty line.
    fn end(&mut self, request: Option<&Request<'_>>, body: Body, body_len: u64) -> Answer {
        // What follows a CONNECT is no HTTP, so its connection ends as well.
        let keep = request.is_some_and(|request| request.keep_alive() && request.method_token != "CONNECT");
        let version = request.map_or(Version::Http11, |request| request.version);
        match (keep, version) {
            (false, _) => self.text("Connection", &["close"]),
            // HTTP/1.0 closes unless both sides say otherwise.
            (true, Version::Http10) => self.text("Connection", &["keep-alive"]),
            (true, Version::Http11) => {}
        }
        self.out.extend_from_slice(b"\r\n\r\n");
        Answer { status: self.status, head_len: self.out.len() - self.start, body, body_len, close: !keep }
    }

    /// The end of an error's head, and the short text behind it: the status once more.
    fn end_error(&mut self, request: Option<&Request<'_>>) -> Answer {
        let status = self.status;
        // "404 " and the line end.
        let text_len = status.reason().len() as u64 + 5;
        self.text("Content-Type", &[TEXT]);
        self.number("Content-Length", text_len);
        let mut answer = self.end(request, Body::None, 0);
        if request.is_none_or(|request| request.method != Method::Head) {
            put_number(self.out, u64::from(status.code()));
            for text in [" ", status.reason(), "\n"] {
                self.out.extend_from_slice(text.as_bytes());
            }
        }
        answer.head_len = self.out.len() - self.start;
        answer
    }
}

/// `bytes FIRST-LAST/LEN`.
fn content_range(out: &mut Vec<u8>, range: ByteRange, len: u64) {
    out.extend_from_slice(b"bytes ");
    put_number(out, range.first);
    out.push(b'-');
    put_number(out, range.last());
    out.push(b'/');
    put_number(out, len);
}

/// A boundary that nothing in a file was written to contain: it depends on the ranges and on the moment.
fn boundary(meta: &FileMeta<'_>, list: &RangeList, now: SystemTime) -> String {
    let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let ranges = list.as_slice().iter().flat_map(|range| [range.first, range.len]);
    let bytes = nanos.to_be_bytes().into_iter().chain(meta.etag.bytes());
    let bytes = bytes.chain(ranges.flat_map(u64::to_be_bytes));
    // FNV-1a, 128 bits.
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("bootstorm-{hash:032x}")
}

/// Appends text without its control characters, so that no value can end a line.
fn put_clean(out: &mut Vec<u8>, text: &str) {
    // Without a branch for each byte.
    if text.bytes().fold(false, |found, byte| found | byte.is_ascii_control()) {
        out.extend(text.bytes().filter(|byte| !byte.is_ascii_control()));
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    // 2^64 has 20 digits.
    let mut digits = [b'0'; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        // The remainder is below ten.
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        used += 1;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

/// HTTP dates have no fractions.
fn whole_seconds(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Err(_) => time,
    }
}

/// RFC 9110 §5.6.7, IMF-fixdate. Every answer has one, so nothing of it goes through a formatter. Right for what
/// [`representable`] lets through.
fn http_date(date: SystemTime) -> [u8; 29] {
    const DAYS: &[u8; 21] = b"ThuFriSatSunMonTueWed";
    const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let seconds = date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, (seconds % 86_400) as u32);
    // Years that begin on 1 March have their leap day at the end; 719,468 days lie between such a year 0 and 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, (shifted % 146_097) as u32);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    // From March as 0 to January as 0.
    let (month, next_year) = if month < 10 { (month + 2, 0) } else { (month - 10, 1) };
    let year = era as u32 * 400 + year_of_era + next_year;
    let name = |names: &[u8], number: usize| {
        let mut name = [b' '; 3];
        for (to, from) in name.iter_mut().zip(names.iter().skip(3 * number)) {
            *to = *from;
        }
        name
    };
    let two = |number: u32| [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8];
    let ([a, b, c], [d, e]) = (name(DAYS, (days % 7) as usize), two(day));
    let ([f, g, h], [i, j], [k, l]) = (name(MONTHS, month as usize), two(year / 100), two(year % 100));
    let ([m, n], [o, p], [q, r]) = (two(second / 3600), two(second / 60 % 60), two(second % 60));
    [
        a, b, c, b',', b' ', d, e, b' ', f, g, h, b' ', i, j, k, l, b' ', m, n, b':', o, p, b':', q, r, b' ',
        b'G', b'M', b'T',
    ]
}

/// Dates an HTTP date can hold: 1970 to 9999.
fn representable(time: SystemTime) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since.as_secs() < YEAR_10000).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_another_writer_has_them() {
        let check = |seconds: u64| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let want = httpdate::fmt_http_date(at);
            assert_eq!(std::str::from_utf8(&http_date(at)), Ok(want.as_str()), "{seconds}");
        };
        // Every day to the year 2101, at a time of day that moves, then all the years there are.
        (0..48_000).for_each(|day| check(day * 86_400 + day * 12_347 % 86_400));
        (0..8_029).for_each(|year| check(year * 31_556_952));
        check(0);
        check(253_402_300_799);
    }
}

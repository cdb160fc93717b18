//! Answer cases from `tests/data/http`, a range oracle, and changed bytes.

use super::*;
use crate::wire::http::{
    BodyLength, ContentRange, Request, ResponseHead, Status, parse_content_range, parse_response_head,
    unescape,
};

const ANSWERS: &str = include_str!("../../../tests/data/http/answers.txt");
const REQUESTS: &str = include_str!("../../../tests/data/http/requests.txt");

/// Fri, 15 Jan 2027 08:00:00 GMT.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn meta(len: u64) -> FileMeta<'static> {
    // Half a second, because file systems count nanoseconds and HTTP dates do not.
    let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_500);
    FileMeta { len, etag: "\"v1\"", modified, content_type: "application/efi" }
}

fn with_request<T>(bytes: &[u8], run: impl FnOnce(&Request<'_>) -> T) -> T {
    match next_request(bytes) {
        Next::Request { request, .. } => run(&request),
        other => panic!("{}: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn every_answer_case_comes_out_as_written_down() {
    let lines: Vec<_> = ANSWERS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.len() >= 100, "{}", lines.len());
    let wrong: Vec<_> = lines.iter().filter_map(|line| answer_case(line).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs one line of `answers.txt`; what is wrong, if something is.
fn answer_case(line: &str) -> Result<(), String> {
    let (name, rest) = line.split_once(" | ").expect("a name");
    let (bytes, want) = rest.rsplit_once(" | ").expect("a result");
    let (summary, fields) = want.split_once(" ;").unwrap_or((want, ""));
    with_request(&unescape(bytes), |request| {
        let mut head = Vec::new();
        let answer = answer_file(request, &meta(1000), now(), &mut head);
        let parsed = check_answer(request, &answer, &head);
        let body = match &answer.body {
            Body::None if head.len() > parsed.len => "error".to_owned(),
            Body::None => "none".to_owned(),
            Body::Range { offset, len } => format!("{offset}+{len}"),
            Body::Inline => "inline".to_owned(),
            Body::Multi(pieces) => file_pieces(pieces)
                .iter()
                .map(|(offset, len)| format!("{offset}+{len}"))
                .collect::<Vec<_>>()
                .join(","),
        };
        let close = if answer.close { "close" } else { "keep" };
        let found = format!("{} {close} {body}", answer.status.code());
        if found != summary {
            return Err(format!("{name}: {found}, not {summary}"));
        }
        for field in fields.split(" ;").map(str::trim).filter(|field| !field.is_empty()) {
            match field.strip_prefix('!') {
                Some(absent) if parsed.header(absent).is_some() => {
                    return Err(format!("{name}: has {absent}"));
                }
                Some(_) => {}
                None => {
                    let (field, want) = field.split_once(": ").expect("a field has a value");
                    if parsed.header(field) != Some(want) {
                        return Err(format!("{name}: {field} is {:?}", parsed.header(field)));
                    }
                }
            }
        }
        Ok(())
    })
}

fn file_pieces(pieces: &[Piece]) -> Vec<(u64, u64)> {
    let file = |piece: &Piece| match piece {
        Piece::File { offset, len } => Some((*offset, *len)),
        Piece::Text(_) => None,
    };
    pieces.iter().filter_map(file).collect()
}

/// What holds for every answer, and its head as a client reads it.
fn check_answer<'h>(request: &Request<'_>, answer: &Answer, head: &'h [u8]) -> ResponseHead<'h> {
    let parsed = parse_response_head(head).expect("a head clients can read").expect("a whole head");
    let head_request = request.method == crate::wire::http::Method::Head;
    assert_eq!(parsed.status, answer.status);
    assert_eq!(answer.head_len, head.len());
    assert_eq!(parsed.keep_alive, !answer.close && request.keep_alive());
    let follows = (head.len() - parsed.len) as u64 + answer.body_len;
    let declared = parsed.content_length.expect("every answer says how long it is");
    match parsed.body(head_request) {
        BodyLength::None => assert_eq!(follows, 0),
        BodyLength::Exact(len) => assert_eq!((len, len), (follows, declared)),
        other => panic!("{other:?}"),
    }
    let counted = match &answer.body {
        Body::None => 0,
        Body::Range { len, .. } => *len,
        Body::Inline => answer.body_len,
        Body::Multi(pieces) => pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.len() as u64,
                Piece::File { len, .. } => *len,
            })
            .sum(),
    };
    assert_eq!(counted, answer.body_len);
    if request.is_ipxe() {
        assert!(!answer.status.is_bodiless());
    }
    for name in ["Content-Length", "Content-Type", "Content-Range", "ETag", "Date", "Connection"] {
        let times = parsed.fields().filter(|(found, _)| found.eq_ignore_ascii_case(name)).count();
        assert!(times <= 1, "{name} {times} times");
    }
    parsed
}

/// SplitMix64: small, seeded, good enough to draw cases.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A range as text, with the bytes of a file of `len` bytes it means: `None` if it is malformed.
    fn range(&mut self, len: u64) -> (String, Option<std::ops::Range<u64>>) {
        let reach = len + len / 4 + 2;
        match self.below(20) {
            0..=10 => {
                let first = self.below(reach);
                let span = if self.below(4) == 0 { reach } else { 40 };
                let last = first + self.below(span);
                (format!("{first}-{last}"), Some(first.min(len)..(last + 1).min(len)))
            }
            11..=13 => {
                let first = self.below(reach);
                (format!("{first}-"), Some(first.min(len)..len))
            }
            14..=17 => {
                let suffix = self.below(reach);
                (format!("-{suffix}"), Some(len.saturating_sub(suffix)..len))
            }
            18 => (format!("{}-{}", u64::MAX, u64::MAX), Some(len..len)),
            _ => {
                let bad = ["-", "5-4", "a-b", "1-2-3", "--1", "0x1-2", "1.0-2", "7"];
                let at = self.below(bad.len() as u64) as usize;
                (bad[at].to_owned(), None)
            }
        }
    }
}

#[test]
fn random_range_sets_yield_the_bytes_of_the_file() {
    let mut draw = Draw(0x0b00_7570);
    let mut seen = [0_u32; 4];
    for round in 0..6000 {
        let len = [1, 2, 100, 1000, 5000][draw.below(5) as usize];
        let file: Vec<u8> = (0..len).map(|_| draw.next() as u8).collect();
        let count = if draw.below(3) == 0 { 1 } else { 1 + draw.below(24) };
        // Malformed ranges spoil a whole set, so most sets have none.
        let spoilt = draw.below(6) == 0;
        let ranges: Vec<_> = std::iter::repeat_with(|| draw.range(len))
            .filter(|(_, bytes)| spoilt || bytes.is_some())
            .take(count as usize)
            .collect();
        let texts: Vec<_> = ranges.iter().map(|(text, _)| text.as_str()).collect();
        let set = texts.join([",", ", ", " ,,\t"][draw.below(3) as usize]);
        let raw = format!("GET /f HTTP/1.1\r\nHost: h\r\nRange: bytes={set}\r\n\r\n");
        let kind = with_request(raw.as_bytes(), |request| {
            let mut head = Vec::new();
            let answer = answer_file(request, &meta(len), now(), &mut head);
            let parsed = check_answer(request, &answer, &head);
            check_ranges(&file, &ranges, &answer, &parsed)
                .unwrap_or_else(|wrong| panic!("{round} {set}: {wrong}"))
        });
        seen[kind] += 1;
    }
    assert!(seen.iter().all(|times| *times > 100), "whole, unsatisfiable, one, several: {seen:?}");
}

/// Holds an answer against what the drawn ranges mean; the kind of answer it was.
fn check_ranges(
    file: &[u8],
    ranges: &[(String, Option<std::ops::Range<u64>>)],
    answer: &Answer,
    head: &ResponseHead<'_>,
) -> Result<usize, String> {
    let len = file.len() as u64;
    let malformed = ranges.iter().any(|(_, bytes)| bytes.is_none());
    let wanted: Vec<_> = ranges.iter().filter_map(|(_, b)| b.clone()).filter(|b| !b.is_empty()).collect();
    let mut asked = vec![false; file.len()];
    for bytes in &wanted {
        asked[bytes.start as usize..bytes.end as usize].fill(true);
    }
    let parts = match (answer.status, &answer.body) {
        (Status::OK, Body::Range { offset: 0, len: all }) if *all == len => {
            // Apart by more than a gap, so that joining leaves more than an answer may have.
            let apart = asked.split(|asked| *asked).filter(|gap| gap.len() >= 80).count();
            return if malformed || apart >= 15 { Ok(0) } else { Err("ignored".to_owned()) };
        }
        (Status::RANGE_NOT_SATISFIABLE, Body::None) => {
            let says = head.content_range == Some(ContentRange::Unsatisfied { len });
            return if wanted.is_empty() && !malformed && says { Ok(1) } else { Err("416".to_owned()) };
        }
        (Status::PARTIAL_CONTENT, Body::Range { offset, len: part }) => {
            let says = ContentRange::Part { first: *offset, last: offset + part - 1, len: Some(len) };
            if head.content_range != Some(says) {
                return Err(format!("{:?}", head.content_range));
            }
            vec![(*offset, *part)]
        }
        (Status::PARTIAL_CONTENT, Body::Multi(pieces)) => multipart(file, pieces, head)?,
        (status, body) => return Err(format!("{status} {body:?}")),
    };
    if malformed {
        return Err("a malformed set was answered".to_owned());
    }
    let mut sent = vec![0_u8; file.len()];
    for (first, part) in &parts {
        sent[*first as usize..(first + part) as usize].iter_mut().for_each(|times| *times += 1);
    }
    if sent.iter().any(|times| *times > 1) {
        return Err("bytes twice".to_owned());
    }
    if sent.iter().zip(&asked).any(|(sent, asked)| *asked && *sent == 0) {
        return Err("bytes missing".to_owned());
    }
    // Whatever was not asked for lies in a gap too small to be worth a part.
    let extra: Vec<_> = sent.iter().zip(&asked).map(|(sent, asked)| *sent == 1 && !asked).collect();
    if extra.split(|extra| !extra).any(|run| run.len() >= 80) {
        return Err("bytes nobody asked for".to_owned());
    }
    // Parts stand in the order of the earliest range in each.
    let place = |part: &(u64, u64)| {
        wanted.iter().position(|bytes| bytes.start >= part.0 && bytes.end <= part.0 + part.1)
    };
    let places: Vec<_> = parts.iter().map(place).collect();
    if places.iter().any(Option::is_none) || !places.is_sorted() {
        return Err(format!("order {places:?}"));
    }
    Ok(if parts.len() == 1 { 2 } else { 3 })
}

/// Puts a multipart body together and takes it apart as a client does (RFC 9110 §14.6).
fn multipart(file: &[u8], pieces: &[Piece], head: &ResponseHead<'_>) -> Result<Vec<(u64, u64)>, String> {
    let mut body = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => body.extend_from_slice(text),
            Piece::File { offset, len } => {
                body.extend_from_slice(&file[*offset as usize..(offset + len) as usize]);
            }
        }
    }
    let kind = head.header("Content-Type").unwrap_or_default();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").ok_or("no boundary")?;
    if boundary.len() > 70 || head.header("Content-Range").is_some() {
        return Err(format!("head of {kind}"));
    }
    let mut parts = Vec::new();
    let mut rest = body.strip_prefix(format!("--{boundary}").as_bytes()).ok_or("no first boundary")?;
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = part.windows(4).position(|four| four == b"\r\n\r\n").ok_or("a part without end of head")?;
        let fields = std::str::from_utf8(&part[..end]).map_err(|error| error.to_string())?;
        let range = fields.strip_prefix("Content-Type: application/efi\r\nContent-Range: ").ok_or(fields)?;
        let Some(ContentRange::Part { first, last, len }) = parse_content_range(range) else {
            return Err(range.to_owned());
        };
        let part_len = last + 1 - first;
        let bytes = &part[end + 4..end + 4 + part_len as usize];
        if len != Some(file.len() as u64) || bytes != &file[first as usize..=last as usize] {
            return Err(format!("part {range}"));
        }
        parts.push((first, part_len));
        let behind = &part[end + 4 + part_len as usize..];
        rest =
            behind.strip_prefix(format!("\r\n--{boundary}").as_bytes()).ok_or("no boundary behind a part")?;
    }
    if rest != b"--\r\n" || !(2..=16).contains(&parts.len()) {
        return Err(format!("{} parts, then {rest:?}", parts.len()));
    }
    Ok(parts)
}

#[test]
fn a_range_and_its_complement_are_the_file() {
    let ask = |range: String| {
        let raw = format!("GET /f HTTP/1.1\r\nHost: h\r\nRange: bytes={range}\r\n\r\n");
        with_request(raw.as_bytes(), |request| {
            match answer_file(request, &meta(1000), now(), &mut Vec::new()).body {
                Body::Range { offset, len } => (offset, len),
                other => panic!("{other:?}"),
            }
        })
    };
    for cut in 1..1000 {
        let (front, back) = (ask(format!("0-{}", cut - 1)), ask(format!("{cut}-")));
        assert_eq!((front, back), ((0, cut), (cut, 1000 - cut)));
        assert_eq!(ask(format!("-{}", 1000 - cut)), back);
    }
}

#[test]
fn sizes_near_the_end_of_64_bits_do_not_overflow() {
    for len in [u64::MAX, u64::MAX - 1, 1 << 63] {
        for set in
            ["0-", "-1", "0-0,-1", "-18446744073709551615", "1-18446744073709551615,5-", "0-,9-,99-,-9"]
        {
            let raw = format!("GET /f HTTP/1.1\r\nHost: h\r\nRange: bytes={set}\r\n\r\n");
            with_request(raw.as_bytes(), |request| {
                let mut head = Vec::new();
                let answer = answer_file(request, &meta(len), now(), &mut head);
                assert_eq!(answer.status, Status::PARTIAL_CONTENT, "{len} {set}");
            });
        }
    }
}

#[test]
fn an_empty_file_is_answered_whole_whatever_is_asked() {
    for range in ["0-", "0-0", "-1", "5-9,0-0"] {
        let raw = format!("GET /f HTTP/1.1\r\nHost: h\r\nRange: bytes={range}\r\n\r\n");
        with_request(raw.as_bytes(), |request| {
            let mut head = Vec::new();
            let answer = answer_file(request, &meta(0), now(), &mut head);
            let parsed = check_answer(request, &answer, &head);
            assert_eq!((answer.status, answer.body), (Status::OK, Body::None));
            assert_eq!(parsed.content_length, Some(0));
        });
    }
}

#[test]
fn dates_that_http_cannot_say_are_left_out() {
    let years = |years: u64| Duration::from_secs(years * 31_556_952);
    let epoch = SystemTime::UNIX_EPOCH;
    let conditions = "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nIf-Unmodified-Since: Sun, 06 Nov 1994 \
                      08:49:37 GMT\r\n";
    let raw = format!("GET /f HTTP/1.1\r\nHost: h\r\n{conditions}\r\n");
    with_request(raw.as_bytes(), |request| {
        for (modified, now, said) in [
            (epoch - years(10), now(), false),
            (epoch + years(9000), now(), false),
            (now() + years(1), now(), false),
            (epoch + years(5), epoch - years(1), false),
            (epoch + years(9000), epoch + years(9500), false),
            (epoch + years(20), now(), true),
        ] {
            let mut head = Vec::new();
            let answer = answer_file(request, &FileMeta { modified, ..meta(10) }, now, &mut head);
            let parsed = check_answer(request, &answer, &head);
            assert_eq!(parsed.header("Last-Modified").is_some(), said, "{modified:?} {now:?}");
            assert_eq!(answer.status == Status::OK, !said, "a date never sent is no condition");
        }
    });
}

#[test]
fn a_date_is_a_validator_of_ranges_only_once_its_second_is_over() {
    let at = |age_ms: u64| {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let raw = b"GET /f HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\n\
            If-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n";
        let now = modified + Duration::from_millis(age_ms);
        with_request(raw, |request| answer_file(request, &meta(10), now, &mut Vec::new()).status)
    };
    assert_eq!(at(900), Status::OK);
    assert_eq!(at(1000), Status::PARTIAL_CONTENT);
}

#[test]
fn texts_come_with_their_length_and_extra_fields() {
    let raw = b"GET /ipxe HTTP/1.1\r\nHost: h\r\n\r\n";
    with_request(raw, |request| {
        let mut head = b"earlier".to_vec();
        let extra = [("Cache-Control", "no-store"), ("X-Note", "a\r\nSet-Cookie: b")];
        let answer = answer_text(request, Status::OK, "text/plain", 12, &extra, now(), &mut head);
        assert_eq!((answer.body.clone(), answer.body_len), (Body::Inline, 12));
        assert_eq!(answer.head_len, head.len() - 7);
        let parsed = check_answer(request, &answer, &head[7..]);
        assert_eq!(parsed.content_length, Some(12));
        assert_eq!(parsed.header("Cache-Control"), Some("no-store"));
        assert_eq!(parsed.header("X-Note"), Some("aSet-Cookie: b"));
        assert_eq!(parsed.header("Set-Cookie"), None);
    });
    with_request(b"HEAD /ipxe HTTP/1.1\r\nHost: h\r\n\r\n", |request| {
        let mut head = Vec::new();
        let answer = answer_text(request, Status::OK, "text/plain", 12, &[], now(), &mut head);
        assert_eq!((answer.body.clone(), answer.body_len), (Body::None, 0));
        assert_eq!(check_answer(request, &answer, &head).content_length, Some(12));
    });
}

#[test]
fn ipxe_never_gets_a_status_it_cannot_bear() {
    for (agent, status, want) in [
        ("iPXE/1", Status::NO_CONTENT, Status::OK),
        ("iPXE/1", Status::NOT_MODIFIED, Status::OK),
        ("iPXE/1", Status::CONTINUE, Status::OK),
        ("iPXE/1", Status::NOT_FOUND, Status::NOT_FOUND),
        ("curl/8", Status::NO_CONTENT, Status::NO_CONTENT),
        ("curl/8", Status(103), Status::OK),
    ] {
        let raw = format!("GET /cb HTTP/1.1\r\nHost: h\r\nUser-Agent: {agent}\r\n\r\n");
        with_request(raw.as_bytes(), |request| {
            let mut head = Vec::new();
            let answer = answer_text(request, status, "text/plain", 0, &[], now(), &mut head);
            let parsed = parse_response_head(&head).unwrap().unwrap();
            assert_eq!((answer.status, parsed.status), (want, want), "{agent} {status}");
            // RFC 9110 §8.6 forbids the field in a 204.
            assert_eq!(parsed.content_length.is_none(), want == Status::NO_CONTENT, "{agent} {status}");
        });
    }
}

#[test]
fn errors_say_their_status_and_nothing_else() {
    with_request(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", |request| {
        for status in (400..=505).map(Status).filter(|status| !status.reason().is_empty()) {
            let mut head = Vec::new();
            let answer = answer_error(Some(request), status, now(), &mut head);
            let parsed = check_answer(request, &answer, &head);
            assert_eq!(head[parsed.len..], *format!("{status}\n").as_bytes());
            assert_eq!(parsed.header("Allow").is_some(), status == Status::METHOD_NOT_ALLOWED);
            assert!(!answer.close);
        }
    });
    let mut head = Vec::new();
    let answer = answer_refusal(crate::wire::http::RefuseReason::HeadTooLarge, now(), &mut head);
    assert_eq!((answer.status, answer.close), (Status::FIELDS_TOO_LARGE, true));
    assert!(head.starts_with(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"));
    assert!(head.ends_with(b"\r\nConnection: close\r\n\r\n431 Request Header Fields Too Large\n"));
    let mut head = Vec::new();
    answer_error(None, Status(299), now(), &mut head);
    assert!(head.starts_with(b"HTTP/1.1 299 \r\n"), "the blank stands without a reason, too");
}

#[test]
fn busy_never_says_zero_seconds() {
    with_request(b"GET /ipxe HTTP/1.1\r\nHost: h\r\nUser-Agent: iPXE/1\r\n\r\n", |request| {
        for (secs, want) in [(0, "1"), (1, "1"), (7, "7")] {
            let mut head = Vec::new();
            let answer = answer_busy(request, secs, now(), &mut head);
            let parsed = check_answer(request, &answer, &head);
            assert_eq!(answer.status, Status::UNAVAILABLE);
            assert_eq!((parsed.header("Retry-After"), parsed.content_length), (Some(want), Some(0)));
        }
    });
}

#[test]
fn content_types_are_what_uefi_compares_with() {
    for (name, want) in [
        ("ipxe.efi", "application/efi"),
        ("x64/SHIMX64.EFI", "application/efi"),
        ("debian.iso", "application/vnd.efi-iso"),
        ("disk.img", "application/vnd.efi-img"),
        ("boot.wim", "application/octet-stream"),
        ("vmlinuz", "application/octet-stream"),
        ("efi", "application/octet-stream"),
        ("a.efi/b", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("boot.ipxe", "text/plain"),
    ] {
        assert_eq!(content_type(name), want, "{name}");
    }
}

#[test]
fn no_change_of_a_byte_and_no_cut_panics() {
    let mut draw = Draw(0x5eed);
    let lines = REQUESTS.lines().chain(ANSWERS.lines());
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (_, rest) = line.split_once(" | ").expect("a name");
        let (bytes, _) = rest.rsplit_once("| ").expect("a result");
        let bytes = unescape(bytes.trim_start());
        fuzz_head(&bytes);
        let rounds = if bytes.len() > 2000 { 4 } else { 60 };
        for _ in 0..rounds {
            let mut changed = bytes.clone();
            for _ in 0..=draw.below(3) {
                let at = draw.below(changed.len().max(1) as u64) as usize;
                match (draw.below(4), changed.get_mut(at)) {
                    (_, None) => {}
                    (0, Some(byte)) => *byte = draw.next() as u8,
                    (1, Some(byte)) => *byte ^= 1 << draw.below(8),
                    (2, Some(_)) => {
                        changed.remove(at);
                    }
                    (_, Some(_)) => changed.insert(at, b"\r\n ,:-%\"*\0"[draw.below(10) as usize]),
                }
            }
            fuzz_head(&changed);
            changed.truncate(draw.below(changed.len() as u64 + 1) as usize);
            fuzz_head(&changed);
        }
    }
    assert_eq!(fuzz_head(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nHEAD /b HTTP/1.1\r\nHost: h\r\n\r\nGET"), 2);
}

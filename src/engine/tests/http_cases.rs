//! The tables of `tests/data/http` against the running engine, over real sockets; and ranges beside the file itself.

use std::time::SystemTime;

use super::*;
use crate::wire::http::{ContentRange, parse_content_range, parse_response_head, unescape};

const REQUESTS: &str = include_str!("../../../tests/data/http/requests.txt");
const ANSWERS: &str = include_str!("../../../tests/data/http/answers.txt");
const CONNECTIONS: &str = include_str!("../../../tests/data/http/connections.txt");

/// Nothing came for this long: nothing comes.
const SILENCE: Duration = Duration::from_millis(30);
const FURTHER: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";

fn lab() -> Lab {
    Lab::start_with(Driver::Mio, 10, |images| {
        let folder = images.join("t");
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::create_dir_all(folder.join("private")).unwrap();
        fs::create_dir_all(images.join("locked")).unwrap();
        for (name, bytes) in [
            ("a.efi", content(1000)),
            ("empty.bin", Vec::new()),
            ("one.txt", b"x".to_vec()),
            ("a b.txt", b"space".to_vec()),
            ("big.bin", content(100_000)),
            ("sub/deep.txt", b"deep".to_vec()),
            (".hidden", b"h".to_vec()),
            ("private/key", b"k".to_vec()),
            ("unattend.xml.tmpl", b"u".to_vec()),
            ("image.toml", b"title = \"t\"\n".to_vec()),
        ] {
            fs::write(folder.join(name), bytes).unwrap();
        }
        // Half a second, because file systems count nanoseconds and HTTP dates do not.
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        fs::File::options()
            .write(true)
            .open(folder.join("a.efi"))
            .and_then(|file| file.set_modified(modified))
            .unwrap();
        fs::write(images.join("locked/boot.bin"), "b").unwrap();
        fs::write(images.join("locked/image.toml"), "access = \"boot\"\n").unwrap();
    })
}

/// The lines of a table: name, bytes, result.
fn table(text: &'static str) -> Vec<(&'static str, &'static str, &'static str)> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let cut = |line: &'static str| {
        let (name, rest) = line.split_once(" | ").unwrap_or_else(|| panic!("no bytes: {line}"));
        let (bytes, want) = rest.rsplit_once("| ").unwrap_or_else(|| panic!("no result: {line}"));
        let bytes = bytes.strip_suffix(' ').unwrap_or(bytes);
        (name.trim(), bytes.strip_prefix(' ').unwrap_or(bytes), want)
    };
    lines.map(cut).collect()
}

/// One answer off the wire.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// A connection that is played on.
struct Wire {
    stream: TcpStream,
    pending: Vec<u8>,
}

impl Wire {
    /// Sends all of it: at once, or in two pieces.
    fn send(lab: &Lab, bytes: &[u8], split: bool) -> Self {
        let mut stream = lab.http();
        stream.set_nodelay(true).unwrap();
        let cut = if split { bytes.len() / 2 } else { 0 };
        // The server may refuse the first piece and close before the second.
        let _ = stream.write_all(&bytes[..cut]).and_then(|()| stream.write_all(&bytes[cut..]));
        Self { stream, pending: Vec::new() }
    }

    /// The next answer; of a body, what the head declares unless `bodiless`.
    fn answer(&mut self, bodiless: bool) -> Result<Answer, String> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(head) = parse_response_head(&self.pending).map_err(|e| format!("{e:?}"))? {
                let status = head.status.code();
                let none = bodiless || head.status.is_bodiless();
                let body = if none { 0 } else { head.content_length.ok_or("no length")? as usize };
                let end = head.len + body;
                if self.pending.len() >= end {
                    let text = String::from_utf8_lossy(&self.pending[..head.len]).into_owned();
                    let body = self.pending[head.len..end].to_vec();
                    self.pending.drain(..end);
                    return Ok(Answer { status, head: text, body });
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&self.pending))),
                Ok(len) => self.pending.extend_from_slice(&buffer[..len]),
                Err(error) => {
                    return Err(format!("{error} after {:?}", String::from_utf8_lossy(&self.pending)));
                }
            }
        }
    }

    /// The server has ended it, without another byte and without a reset.
    fn is_closed(&mut self) -> Result<(), String> {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) if self.pending.is_empty() => Ok(()),
            Ok(0) => Err(format!("{} bytes more", self.pending.len())),
            Ok(len) => Err(format!("{len} bytes more")),
            Err(error) => Err(format!("not closed: {error}")),
        }
    }

    /// A further request is answered, and nothing comes before its answer.
    fn is_open(&mut self) -> Result<(), String> {
        self.stream.write_all(FURTHER).map_err(|error| format!("not open: {error}"))?;
        match self.answer(false) {
            Ok(answer) if answer.status == 200 && answer.body == b"ok\n" => Ok(()),
            Ok(answer) => Err(format!("more: {}", answer.head)),
            Err(error) => Err(format!("not open: {error}")),
        }
    }

    /// Nothing comes, and it is not closed.
    fn is_silent(&mut self) -> Result<(), String> {
        self.stream.set_read_timeout(Some(SILENCE)).unwrap();
        match self.stream.read(&mut [0; 64]) {
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                Ok(())
            }
            other => Err(format!("not silent: {other:?}")),
        }
    }
}

/// Plays every line whole and in two pieces; what is wrong, with its name.
fn play(
    lines: &[(&'static str, &'static str, &'static str)],
    case: impl Fn(&str, &str, bool) -> Result<(), String>,
) {
    let wrong: Vec<String> = lines
        .iter()
        .flat_map(|line| [(line, false), (line, true)])
        .filter_map(|((name, bytes, want), split)| {
            case(bytes, want, split).err().map(|error| format!("{name} ({split}): {error}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_connection_case_is_answered_as_written_down() {
    let lab = lab();
    let lines = table(CONNECTIONS);
    assert!(lines.len() >= 140, "{}", lines.len());
    play(&lines, |bytes, want, split| {
        let want = String::from_utf8(unescape(want)).expect("results are text");
        let mut wire = Wire::send(&lab, &unescape(bytes), split);
        let mut steps: Vec<&str> = want.split(" > ").collect();
        let end = steps.pop().expect("an end");
        let interim = steps.last() == Some(&"100");
        for step in &steps {
            answers_as(&mut wire, step)?;
        }
        match end {
            "closed" => wire.is_closed(),
            "open" if steps.is_empty() || interim => wire.is_silent(),
            "open" => wire.is_open(),
            other => panic!("no such end: {other}"),
        }
    });
}

/// Checks one `STATUS LEN {field}...`.
fn answers_as(wire: &mut Wire, step: &str) -> Result<(), String> {
    let mut parts = step.split('{');
    let (status, len) = {
        let words = parts.next().expect("a status").trim();
        words.split_once(' ').unwrap_or((words, "0"))
    };
    let answer = wire.answer(len == "0")?;
    if status != "*" && status != answer.status.to_string() {
        return Err(format!("{}, not {step}", answer.head));
    }
    if len != "*" && len != answer.body.len().to_string() {
        return Err(format!("{} bytes, not {step}: {}", answer.body.len(), answer.head));
    }
    for field in parts.map(|part| part.trim().trim_end_matches('}')) {
        match field.strip_prefix('!') {
            Some(absent) if answer.field(absent).is_some() => return Err(format!("has {absent}")),
            Some(_) => {}
            None => {
                let (name, value) = field.split_once(": ").expect("a field has a value");
                if answer.field(name) != Some(value) {
                    return Err(format!("{name} is {:?}, not {value}", answer.field(name)));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_request_case_is_taken_or_refused_by_the_server_as_by_the_parser() {
    let lab = lab();
    play(&table(REQUESTS), |bytes, want, split| {
        let mut wire = Wire::send(&lab, &unescape(bytes), split);
        let words: Vec<&str> = want.split(' ').collect();
        match words[..] {
            ["more"] => wire.is_silent(),
            ["refuse", status, _] => {
                let answer = wire.answer(false)?;
                if answer.status.to_string() != status || answer.field("Connection") != Some("close") {
                    return Err(answer.head);
                }
                wire.is_closed()
            }
            ["request", method, _, _, _, keeps, _, rest] => {
                let answer = wire.answer(method == "HEAD")?;
                let closes = keeps == "close" || method == "CONNECT";
                if closes != (answer.field("Connection") == Some("close")) {
                    return Err(answer.head);
                }
                match rest {
                    "0" if closes => wire.is_closed(),
                    "0" => wire.is_open(),
                    _ => Ok(()),
                }
            }
            _ => panic!("no such result: {want}"),
        }
    });
}

#[test]
fn every_answer_case_comes_over_the_wire_as_written_down() {
    let lab = lab();
    let file = content(1000);
    let (head, _) = get(&mut lab.http(), "/images/t/a.efi", "");
    let etag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).expect("a tag").to_owned();
    // `*` is the server, and the table is about a file.
    let path = |text: &str| text.replace("OPTIONS * ", "OPTIONS /a ").replace(" /a ", " /images/t/a.efi ");
    let real = |text: &str| path(text).replace("\"v1\"", &etag);
    play(&table(ANSWERS), |bytes, want, split| {
        let (bytes, want) = (real(bytes), real(want));
        let (summary, fields) = want.split_once(" ;").unwrap_or((&want, ""));
        let [status, keeps, body] = summary.split(' ').collect::<Vec<_>>()[..] else { panic!("{summary}") };
        let mut wire = Wire::send(&lab, &unescape(&bytes), split);
        let answer = wire.answer(body == "none")?;
        if answer.status.to_string() != status {
            return Err(answer.head);
        }
        let slices: Vec<(usize, usize)> = body
            .split(',')
            .filter_map(|part| part.split_once('+'))
            .map(|(offset, len)| (offset.parse().unwrap(), len.parse().unwrap()))
            .collect();
        let right = match slices[..] {
            [] => body == "none" && answer.body.is_empty() || body == "error" && !answer.body.is_empty(),
            [(offset, len)] => answer.body == file[offset..offset + len],
            _ => parts(&answer)?
                .iter()
                .map(|(range, bytes)| (range.0, bytes.len(), *bytes == &file[range.0..range.0 + bytes.len()]))
                .eq(slices.iter().map(|(offset, len)| (*offset, *len, true))),
        };
        if !right {
            return Err(format!("another body: {}", answer.head));
        }
        for field in fields.split(" ;").map(str::trim).filter(|f| !f.is_empty() && !f.starts_with("Date:")) {
            match field.strip_prefix('!') {
                Some(absent) if answer.field(absent).is_some() => return Err(format!("has {absent}")),
                Some(_) => {}
                None => {
                    let (name, value) = field.split_once(": ").expect("a field has a value");
                    if answer.field(name) != Some(value) {
                        return Err(format!("{name} is {:?}, not {value}", answer.field(name)));
                    }
                }
            }
        }
        if keeps == "close" { wire.is_closed() } else { wire.is_open() }
    });
}

/// The parts of a `multipart/byteranges` body: where each begins and ends, and its bytes.
fn parts(answer: &Answer) -> Result<Vec<((usize, usize), &[u8])>, String> {
    let kind = answer.field("Content-Type").unwrap_or_default();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").ok_or("not several parts")?;
    let mut rest = answer.body.as_slice();
    let mut parts = Vec::new();
    loop {
        let lead = format!("{}--{boundary}", if parts.is_empty() { "" } else { "\r\n" });
        rest = rest.strip_prefix(lead.as_bytes()).ok_or("no boundary where one must be")?;
        if rest == b"--\r\n" {
            return Ok(parts);
        }
        let end = rest.windows(4).position(|w| w == b"\r\n\r\n").ok_or("a part without a head")? + 4;
        let head = std::str::from_utf8(&rest[..end]).map_err(|_| "a part's head is no text")?;
        let range = head.lines().find_map(|line| line.strip_prefix("Content-Range: ")).ok_or("no range")?;
        let Some(ContentRange::Part { first, last, len: Some(_) }) = parse_content_range(range) else {
            return Err(format!("an odd range: {range}"));
        };
        let len = (last - first + 1) as usize;
        parts.push(((first as usize, last as usize), rest.get(end..end + len).ok_or("a part cut short")?));
        rest = &rest[end + len..];
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    /// An offset that is often an edge of something.
    fn offset(&mut self, len: u64) -> u64 {
        let edges = [0, 1, 16_383, 16_384, 65_535, 65_536, len / 2, len - 1, len, len + 1, u64::MAX];
        match self.roll(3) {
            0 => edges[self.roll(edges.len() as u64) as usize],
            _ => self.roll(len + len / 8),
        }
    }
}

/// What RFC 9110 §14.1.2 makes of a set: the stretches that exist, or `None` when the set is none.
fn wanted(set: &[(Option<u64>, Option<u64>)], len: u64) -> Option<Vec<(u64, u64)>> {
    let mut stretches = Vec::new();
    for range in set {
        match *range {
            (Some(first), Some(last)) if last < first => return None,
            (Some(first), last) if first < len => {
                stretches.push((first, last.unwrap_or(u64::MAX).min(len - 1)));
            }
            (None, Some(suffix)) if suffix > 0 => stretches.push((len - suffix.min(len), len - 1)),
            (None, None) => return None,
            _ => {}
        }
    }
    Some(stretches)
}

#[test]
fn random_range_sets_are_answered_with_the_file_itself() {
    let rounds = std::env::var("BOOTSTORM_RANGES").map_or(1_000, |text| text.parse().expect("a number"));
    let lab = lab();
    let file = content(100_000);
    let len = file.len() as u64;
    let mut dice = Dice(0x5eed_5eed_5eed_5eed);
    let mut stream = lab.http();
    let (mut singles, mut multiples, mut wholes, mut nones) = (0, 0, 0, 0);
    for round in 0..rounds {
        let count = if dice.roll(2) == 0 { 1 } else { 1 + dice.roll(12) };
        let set: Vec<(Option<u64>, Option<u64>)> = (0..count)
            .map(|_| {
                let first = dice.offset(len);
                match dice.roll(12) {
                    0 => (None, Some(dice.offset(len))),
                    1 => (Some(first), None),
                    2 => (Some(first), Some(dice.offset(len))),
                    _ => (Some(first), Some(first.saturating_add(dice.roll(3_000)))),
                }
            })
            .collect();
        let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        let text: Vec<String> =
            set.iter().map(|(first, last)| format!("{}-{}", number(*first), number(*last))).collect();
        let range = text.join([",", ", ", " ,\t"][dice.roll(3) as usize]);
        write!(stream, "GET /images/t/big.bin HTTP/1.1\r\nHost: h\r\nRange: bytes={range}\r\n\r\n").unwrap();
        let mut wire = Wire { stream: stream.try_clone().unwrap(), pending: Vec::new() };
        let answer = wire.answer(false).unwrap();
        let context = format!("round {round}, bytes={range}: {}", answer.head);
        assert!(wire.pending.is_empty(), "{context}");
        let wanted = wanted(&set, len);
        let given: Vec<(usize, usize)> = match answer.status {
            200 => {
                assert!(answer.body == file, "{context}");
                wholes += 1;
                // Allowed for what is no set, and for more parts than anybody needs.
                assert!(wanted.is_none_or(|stretches| stretches.len() > 8), "{context}");
                continue;
            }
            416 => {
                nones += 1;
                assert_eq!(answer.field("Content-Range"), Some("bytes */100000"), "{context}");
                assert_eq!(wanted, Some(Vec::new()), "{context}");
                continue;
            }
            206 => match answer.field("Content-Range") {
                Some(range) => {
                    singles += 1;
                    let Some(ContentRange::Part { first, last, len: Some(100_000) }) =
                        parse_content_range(range)
                    else {
                        panic!("{context}");
                    };
                    assert!(answer.body == file[first as usize..=last as usize], "{context}");
                    vec![(first as usize, last as usize)]
                }
                None => {
                    multiples += 1;
                    let parts = parts(&answer).unwrap_or_else(|error| panic!("{error}: {context}"));
                    for ((first, last), bytes) in &parts {
                        assert!(*bytes == &file[*first..=*last], "{context}");
                    }
                    parts.into_iter().map(|(range, _)| range).collect()
                }
            },
            _ => panic!("{context}"),
        };
        // Every byte that was asked for, no byte twice, and between two that were asked for at most a part's head.
        let stretches = wanted.unwrap_or_else(|| panic!("{context}"));
        assert!(!stretches.is_empty(), "{context}");
        for (first, last) in &stretches {
            let inside = |(a, b): &(usize, usize)| *a as u64 <= *first && *last <= *b as u64;
            assert!(given.iter().any(inside), "{first}-{last} is missing: {context}");
        }
        for (index, (first, last)) in given.iter().enumerate() {
            assert!(given[..index].iter().all(|(a, b)| last < a || b < first), "twice: {context}");
            let starts = stretches.iter().any(|(a, _)| *a == *first as u64);
            let ends = stretches.iter().any(|(_, b)| *b == *last as u64);
            assert!(starts && ends, "more than was asked for: {context}");
        }
    }
    assert!(singles > rounds / 5 && multiples > rounds / 5 && wholes > 0 && nones > 0);
}

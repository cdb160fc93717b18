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
struct Wire<S = TcpStream> {
    stream: S,
    pending: Vec<u8>,
}

impl<S: Read> Wire<S> {
    fn new(stream: S) -> Self {
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
}

impl Wire {
    /// Sends all of it: at once, or in two pieces.
    fn send(lab: &Lab, bytes: &[u8], split: bool) -> Self {
        let mut stream = lab.http();
        stream.set_nodelay(true).unwrap();
        let cut = if split { bytes.len() / 2 } else { 0 };
        // The server may refuse the first piece and close before the second.
        let _ = stream.write_all(&bytes[..cut]).and_then(|()| stream.write_all(&bytes[cut..]));
        Self::new(stream)
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

/// The length of the file that ranges are asked of.
const LEN: u64 = 100_000;

/// A `Range` field: ranges, and what stands between them.
struct Set {
    ranges: Vec<(Option<u64>, Option<u64>)>,
    between: &'static str,
}

impl Set {
    fn roll(dice: &mut Dice) -> Self {
        let between = [",", ", ", " ,\t"][dice.roll(3) as usize];
        let ranges = match dice.roll(24) {
            // More of them than anybody needs, nothing else amiss.
            0 => {
                let small = |dice: &mut Dice| {
                    let first = dice.roll(LEN);
                    (Some(first), Some(first + dice.roll(300)))
                };
                (0..17 + dice.roll(60)).map(|_| small(dice)).collect()
            }
            half => (0..if half % 2 == 0 { 1 } else { 1 + dice.roll(12) })
                .map(|_| {
                    let first = dice.offset(LEN);
                    match dice.roll(12) {
                        0 => (None, Some(dice.offset(LEN))),
                        1 => (Some(first), None),
                        2 => (Some(first), Some(dice.offset(LEN))),
                        _ => (Some(first), Some(first.saturating_add(dice.roll(3_000)))),
                    }
                })
                .collect(),
        };
        Self { ranges, between }
    }

    fn text(&self) -> String {
        let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        let texts: Vec<String> =
            self.ranges.iter().map(|(first, last)| format!("{}-{}", number(*first), number(*last))).collect();
        texts.join(self.between)
    }

    fn request(&self) -> String {
        format!("GET /images/t/big.bin HTTP/1.1\r\nHost: h\r\nRange: bytes={}\r\n\r\n", self.text())
    }

    /// One that ends before it begins: RFC 9110 §14.1.1 calls that invalid.
    fn has_backwards(&self) -> bool {
        self.ranges.iter().any(|range| matches!(range, (Some(first), Some(last)) if last < first))
    }

    /// The stretches that exist, in the order asked for, ones that end before they begin left out.
    fn stretches(&self) -> Vec<(u64, u64)> {
        let resolve = |range: &(Option<u64>, Option<u64>)| match *range {
            (Some(first), Some(last)) if last < first => None,
            (Some(first), last) if first < LEN => Some((first, last.unwrap_or(u64::MAX).min(LEN - 1))),
            (None, Some(suffix)) if suffix > 0 => Some((LEN - suffix.min(LEN), LEN - 1)),
            _ => None,
        };
        self.ranges.iter().filter_map(resolve).collect()
    }

    /// What RFC 9110 §14.1.2 makes of it: the stretches that exist, or `None` when the set is none.
    fn wanted(&self) -> Option<Vec<(u64, u64)>> {
        (!self.has_backwards()).then(|| self.stretches())
    }
}

/// What came for a set, every byte compared with the file.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Given {
    Whole,
    /// 416.
    Nothing,
    Parts(Vec<(u64, u64)>),
}

fn given(answer: &Answer, file: &[u8]) -> Result<Given, String> {
    let same = |first: usize, last: usize, bytes: &[u8]| {
        (file.get(first..=last) == Some(bytes)).then_some((first as u64, last as u64)).ok_or("other bytes")
    };
    match answer.status {
        200 if answer.body == file => Ok(Given::Whole),
        200 => Err("not the file".into()),
        416 if answer.field("Content-Range") == Some("bytes */100000") => Ok(Given::Nothing),
        206 => match answer.field("Content-Range").map(parse_content_range) {
            Some(Some(ContentRange::Part { first, last, len: Some(LEN) })) => {
                Ok(Given::Parts(vec![same(first as usize, last as usize, &answer.body)?]))
            }
            Some(_) => Err("an odd range".into()),
            None => {
                let parts = parts(answer)?;
                let all: Result<Vec<_>, _> =
                    parts.into_iter().map(|((first, last), bytes)| same(first, last, bytes)).collect();
                Ok(Given::Parts(all?))
            }
        },
        _ => Err("an odd status".into()),
    }
}

/// Rounds of the range tests.
fn rounds() -> usize {
    std::env::var("BOOTSTORM_RANGES").map_or(1_000, |text| text.parse().expect("a number"))
}

#[test]
fn random_range_sets_are_answered_with_the_file_itself() {
    let rounds = rounds();
    let lab = lab();
    let file = content(LEN as usize);
    let mut dice = Dice(0x5eed_5eed_5eed_5eed);
    let mut wire = Wire::new(lab.http());
    let (mut singles, mut multiples, mut wholes, mut nones) = (0, 0, 0, 0);
    for round in 0..rounds {
        let set = Set::roll(&mut dice);
        wire.stream.write_all(set.request().as_bytes()).unwrap();
        let answer = wire.answer(false).unwrap();
        let context = format!("round {round}, bytes={}: {}", set.text(), answer.head);
        assert!(wire.pending.is_empty(), "{context}");
        let given = given(&answer, &file).unwrap_or_else(|error| panic!("{error}: {context}"));
        let wanted = set.wanted();
        let parts = match given {
            Given::Whole => {
                wholes += 1;
                // Allowed for what is no set, and for more parts than anybody needs.
                assert!(wanted.is_none_or(|stretches| stretches.len() > 16), "{context}");
                continue;
            }
            Given::Nothing => {
                nones += 1;
                assert_eq!(wanted, Some(Vec::new()), "{context}");
                continue;
            }
            Given::Parts(parts) => parts,
        };
        match parts.len() {
            1 => singles += 1,
            _ => multiples += 1,
        }
        // Every byte that was asked for, no byte twice, and between two that were asked for at most a part's head.
        let stretches = wanted.unwrap_or_else(|| panic!("{context}"));
        assert!(!stretches.is_empty(), "{context}");
        for (first, last) in &stretches {
            let inside = |(a, b): &(u64, u64)| a <= first && last <= b;
            assert!(parts.iter().any(inside), "{first}-{last} is missing: {context}");
        }
        for (index, (first, last)) in parts.iter().enumerate() {
            assert!(parts[..index].iter().all(|(a, b)| last < a || b < first), "twice: {context}");
            let starts = stretches.iter().any(|(a, _)| a == first);
            let ends = stretches.iter().any(|(_, b)| b == last);
            assert!(starts && ends, "more than was asked for: {context}");
        }
    }
    println!("{rounds} sets: {singles} of one part, {multiples} of several, {wholes} whole, {nones} refused");
    assert!(singles > rounds / 5 && multiples > rounds / 5 && wholes > 0 && nones > 0);
}

/// Where nginx answers a set otherwise, and why that is so; docs/HTTP.md says the same in words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Difference {
    /// A number beyond 63 bits: it refuses with 416, we read the largest number there is.
    HugeNumber,
    /// A tab beside a comma, which is a blank to RFC 9110 §5.6.1: it refuses with 416.
    Tab,
    /// A range that ends before it begins: it leaves that range out, we leave the whole field out (§14.2).
    Backwards,
    /// Ranges that together are longer than the file: it sends the file, we join them first.
    LongerThanTheFile,
    /// Ranges that overlap, touch or nearly do: it sends each as asked for, we join them (§15.3.7.2).
    Joined,
    /// More than 16 parts after joining, or 64 ranges before it: it sends them all, we send the file (§14.2).
    ManyParts,
}

const DIFFERENCES: [Difference; 6] = [
    Difference::HugeNumber,
    Difference::Tab,
    Difference::Backwards,
    Difference::LongerThanTheFile,
    Difference::Joined,
    Difference::ManyParts,
];

impl Difference {
    /// True if it can be the reason for other answers to `set`; `ours` is what we gave.
    fn explains(self, set: &Set, ours: &Given) -> bool {
        let stretches = set.stretches();
        match self {
            Self::HugeNumber => set
                .ranges
                .iter()
                .any(|(first, last)| first.max(last).is_some_and(|number| number > i64::MAX as u64)),
            Self::Tab => set.ranges.len() > 1 && set.between.contains('\t'),
            Self::Backwards => set.has_backwards(),
            Self::LongerThanTheFile => {
                stretches.iter().map(|(first, last)| last - first + 1).sum::<u64>() > LEN
            }
            Self::Joined => matches!(ours, Given::Parts(parts) if parts.len() < stretches.len()),
            Self::ManyParts => *ours == Given::Whole && stretches.len() > 16,
        }
    }
}

/// What nginx gives for a set, by its own rules (its range filter; 1.22 and later).
fn by_nginx(set: &Set) -> Given {
    let none = Given::Whole;
    if [Difference::HugeNumber, Difference::Tab].iter().any(|difference| difference.explains(set, &none)) {
        return Given::Nothing;
    }
    let stretches = set.stretches();
    if stretches.is_empty() {
        Given::Nothing
    } else if Difference::LongerThanTheFile.explains(set, &none) {
        Given::Whole
    } else {
        Given::Parts(stretches)
    }
}

/// nginx, serving the folder of `lab` on a socket there.
fn nginx(lab: &Lab) -> (labkit::Process, std::path::PathBuf) {
    let folder = lab.dir.join("nginx");
    fs::create_dir_all(&folder).unwrap();
    let own = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {own}/{name};\n"))
        .concat();
    // One process, so that its end is the end of it.
    let config = format!(
        "daemon off; master_process off; pid {own}/pid;\nevents {{}}\nhttp {{\naccess_log off; keepalive_requests \
         1000000;\n{temporary}server {{ listen unix:{own}/socket; root {}; }} }}\n",
        lab.dir.join("").display()
    );
    fs::write(folder.join("conf"), config).unwrap();
    let mut command = std::process::Command::new(labkit::tool("nginx", "nginx-light"));
    command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(folder.join("conf"));
    (labkit::Process::spawn("nginx", &mut command, &folder.join("output")), folder.join("socket"))
}

#[test]
fn nginx_answers_the_same_range_sets_alike_but_for_differences_that_have_a_name() {
    let lab = lab();
    let file = content(LEN as usize);
    let (mut process, socket) = nginx(&lab);
    let start = std::time::Instant::now();
    let stream = loop {
        match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() > Duration::from_secs(20) => {
                panic!("nginx: {error}\n{}", process.output())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut theirs, mut ours) = (Wire::new(stream), Wire::new(lab.http()));
    let mut dice = Dice(0x5eed_0fa1_1123_4000);
    let mut seen = std::collections::BTreeMap::new();
    let mut alike = 0;
    for round in 0..rounds() {
        let set = Set::roll(&mut dice);
        let request = set.request();
        ours.stream.write_all(request.as_bytes()).unwrap();
        theirs.stream.write_all(request.as_bytes()).unwrap();
        let context = format!("round {round}, bytes={}", set.text());
        let ours = ours.answer(false).and_then(|answer| given(&answer, &file));
        let ours = ours.unwrap_or_else(|error| panic!("ours: {error}: {context}"));
        let theirs = theirs.answer(false).and_then(|mut answer| {
            // It puts an empty line before the first part.
            if answer.body.starts_with(b"\r\n--") {
                answer.body.drain(..2);
            }
            given(&answer, &file).map_err(|error| format!("{error}: {}", answer.head))
        });
        let theirs = theirs.unwrap_or_else(|error| panic!("nginx: {error}: {context}"));
        assert_eq!(theirs, by_nginx(&set), "nginx: {context}");
        if ours == theirs {
            alike += 1;
            continue;
        }
        let why = DIFFERENCES.into_iter().find(|difference| difference.explains(&set, &ours));
        let why =
            why.unwrap_or_else(|| panic!("{ours:?} and not {theirs:?}, for no known reason: {context}"));
        *seen.entry(why).or_insert(0) += 1;
    }
    println!("{} sets: {alike} answered alike, {seen:?}", rounds());
    // No name for what does not happen.
    assert!(DIFFERENCES.iter().all(|difference| seen.contains_key(difference)), "{seen:?}");
    assert!(alike > rounds() / 5, "{alike} alike, {seen:?}");
    // A Range counts for GET only (§14.2); nginx answers it for HEAD too.
    let head = b"HEAD /images/t/big.bin HTTP/1.1\r\nHost: h\r\nRange: bytes=0-9\r\n\r\n";
    ours.stream.write_all(head).unwrap();
    theirs.stream.write_all(head).unwrap();
    let statuses = (ours.answer(true).unwrap().status, theirs.answer(true).unwrap().status);
    assert_eq!(statuses, (200, 206));
    process.signal("TERM");
    process.wait(Duration::from_secs(20));
}

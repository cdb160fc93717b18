//! HTTP load: many connections, one thread. Whole files, ranges of them, or scripts for machine after machine; kept
//! alive or closed after each answer. Bodies are thrown away by the kernel.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::fetch::{Fetch, Part, Progress, Scratch};
use super::hosts::LoadError;
use super::result::{Point, Times, jain};
use super::{Meter, Random, TICK, machine_mac};
use crate::wire::http::{HEAD_MAX, parse_response_head};

/// Connections at once.
pub const CONNECTIONS_MAX: u32 = 16_384;
/// A connection that hears nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A connection that failed is opened again after this.
const PAUSE: Duration = Duration::from_millis(500);
/// Connections begun in one turn.
const STARTS_PER_TURN: usize = 64;
/// Longest path, and what a script's may grow to.
pub const PATH_LEN_MAX: usize = 2048;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A whole file.
    File {
        /// Path and query.
        path: String,
    },
    /// Parts of a file.
    Ranges {
        /// Path and query.
        path: String,
        /// Bytes of each part.
        len: u64,
        /// At random offsets, or one after the other.
        random: bool,
    },
    /// A script for each of many machines.
    Script {
        /// Path and query, `{mac}` standing for the machine's address.
        path: String,
        /// Different machines.
        machines: u32,
    },
}

impl Work {
    fn path(&self) -> &str {
        match self {
            Self::File { path } | Self::Ranges { path, .. } | Self::Script { path, .. } => path,
        }
    }
}

/// What every connection does.
#[derive(Clone, Debug)]
pub struct HttpLoad {
    /// Server.
    pub server: SocketAddrV4,
    /// What is asked for.
    pub work: Work,
    /// Connections at once.
    pub connections: u32,
    /// A new connection for every request.
    pub close: bool,
    /// Measured for this long.
    pub time: Duration,
    /// The load ends after so many answers.
    pub requests_max: Option<u64>,
}

#[derive(Debug)]
struct Connection {
    fetch: Option<Fetch>,
    /// Not before this: a failure is not repeated at full speed.
    pause: Instant,
    asked_at: Instant,
    bytes: u64,
    /// Next offset of a sequential reader.
    offset: u64,
    status: u16,
    again: bool,
}

struct Run<'a> {
    load: &'a HttpLoad,
    poll: Poll,
    connections: Vec<Connection>,
    again: Vec<u32>,
    scratch: Scratch,
    random: Random,
    /// Length of the file, for ranges.
    len: u64,
    machine: u32,
    latency: Times,
    first_answer: Times,
    failures: BTreeMap<String, u64>,
    answers: u64,
}

/// Loads the server for the time given.
///
/// # Errors
/// What keeps the load from running at all; requests that fail are counted.
pub fn run(load: &HttpLoad) -> Result<Point, LoadError> {
    if load.connections == 0 || load.connections > CONNECTIONS_MAX {
        return Err(LoadError::new(format!(
            "{} connections: expected 1 to {CONNECTIONS_MAX}",
            load.connections
        )));
    }
    let path = load.work.path();
    if !path.starts_with('/') || path.len() > PATH_LEN_MAX || path.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        return Err(LoadError::new(format!("path {path:?}: expected printable text that begins with /")));
    }
    let len = match &load.work {
        Work::Ranges { len: 0, .. } => return Err(LoadError::new("ranges of 0 bytes: expected at least 1")),
        Work::Ranges { path, len, .. } => {
            let whole = file_len(load.server, path)?;
            if whole < *len {
                return Err(LoadError::new(format!("ranges of {len} bytes: {path} has only {whole}")));
            }
            whole
        }
        Work::Script { machines: 0, .. } => return Err(LoadError::new("0 machines: expected at least 1")),
        _ => 0,
    };
    let meter = Meter::start();
    let start = Instant::now();
    let mut run = Run {
        poll: Poll::new().map_err(|error| LoadError::io("wait for sockets", &error))?,
        connections: (0..load.connections)
            .map(|_| Connection {
                fetch: None,
                pause: start,
                asked_at: start,
                bytes: 0,
                offset: 0,
                status: 0,
                again: false,
            })
            .collect(),
        again: Vec::with_capacity(load.connections as usize),
        scratch: Scratch::new(),
        random: Random::new(u64::from(load.connections)),
        len,
        machine: 0,
        latency: Times::default(),
        first_answer: Times::default(),
        failures: BTreeMap::new(),
        answers: 0,
        load,
    };
    run.spread_offsets();
    let mut events = Events::with_capacity(1024);
    let end = start + load.time;
    let (mut started, mut tick) = (0, start + TICK);
    loop {
        let now = Instant::now();
        if now >= end || load.requests_max.is_some_and(|max| run.answers >= max) {
            break;
        }
        let starts = started..(started + STARTS_PER_TURN).min(run.connections.len());
        for index in starts.clone() {
            run.open(now, index as u32);
        }
        started = starts.end;
        let idle = run.again.is_empty() && started == run.connections.len();
        let wait = if idle { tick.min(end).saturating_duration_since(now) } else { Duration::ZERO };
        match run.poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                return Err(LoadError::io("wait for sockets", &error));
            }
            _ => {}
        }
        let now = Instant::now();
        for index in std::mem::take(&mut run.again) {
            run.connections[index as usize].again = false;
            run.drive(now, index);
        }
        for event in events.iter() {
            run.drive(now, event.token().0 as u32);
        }
        if now >= tick {
            tick = now + TICK;
            run.timeouts(now, started);
        }
    }
    Ok(run.point(&meter))
}

/// What HEAD says of a file's length.
pub(super) fn file_len(server: SocketAddrV4, path: &str) -> Result<u64, LoadError> {
    let fail =
        |error: std::io::Error| LoadError::io(&format!("ask {server} for the length of {path}"), &error);
    let mut stream = TcpStream::connect_timeout(&server.into(), SILENCE_MAX).map_err(fail)?;
    stream.set_read_timeout(Some(SILENCE_MAX)).map_err(fail)?;
    write!(stream, "HEAD {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").map_err(fail)?;
    let mut answer = Vec::new();
    stream.take(HEAD_MAX as u64).read_to_end(&mut answer).map_err(fail)?;
    let head = parse_response_head(&answer).ok().flatten();
    let len = head.as_ref().filter(|head| head.status.is_success()).and_then(|head| head.content_length);
    len.ok_or_else(|| {
        let status = head.map_or_else(|| "no HTTP".into(), |head| format!("status {}", head.status.code()));
        LoadError::new(format!("http://{server}{path}: HEAD tells no length ({status})"))
    })
}

impl Run<'_> {
    /// Sequential readers do not all read the same part at the same time.
    fn spread_offsets(&mut self) {
        let count = self.connections.len() as u64;
        let Work::Ranges { len, .. } = self.load.work else { return };
        let ranges = (self.len / len).max(1);
        for (connection, index) in self.connections.iter_mut().zip(0u64..) {
            connection.offset = ranges * index / count * len;
        }
    }

    /// Writes the connection's next request.
    fn write_request(&mut self, index: u32, out: &mut Vec<u8>) {
        out.clear();
        let connection = &mut self.connections[index as usize];
        let server = self.load.server;
        // Writing to a vector cannot fail.
        let _ = match &self.load.work {
            Work::File { path } => write!(out, "GET {path} HTTP/1.1\r\nHost: {server}\r\n"),
            Work::Ranges { path, len, random } => {
                let first = if *random {
                    self.random.below(self.len - len + 1)
                } else {
                    let first = if connection.offset + len > self.len { 0 } else { connection.offset };
                    connection.offset = first + len;
                    first
                };
                let last = first + len - 1;
                write!(out, "GET {path} HTTP/1.1\r\nHost: {server}\r\nRange: bytes={first}-{last}\r\n")
            }
            Work::Script { path, machines } => {
                let mac = machine_mac(self.machine);
                self.machine = (self.machine + 1) % machines;
                let (before, after) = path.split_once("{mac}").unwrap_or((path, ""));
                let mac = if path.contains("{mac}") { mac.to_string() } else { String::new() };
                write!(
                    out,
                    "GET {before}{mac}{after} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: iPXE/1.0.0+\r\n"
                )
            }
        };
        out.extend_from_slice(if self.load.close { b"Connection: close\r\n\r\n" } else { b"\r\n" });
    }

    fn open(&mut self, now: Instant, index: u32) {
        let mut out =
            self.connections[index as usize].fetch.take().map(|fetch| fetch.out).unwrap_or_default();
        self.write_request(index, &mut out);
        let token = Token(index as usize);
        let fetch = Fetch::connect(self.load.server, self.poll.registry(), token, out, now);
        let connection = &mut self.connections[index as usize];
        connection.asked_at = now;
        match fetch {
            Ok(fetch) => connection.fetch = Some(fetch),
            Err(_) => self.fail(now, index, "no socket"),
        }
    }

    fn fail(&mut self, now: Instant, index: u32, reason: &str) {
        match self.failures.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(self.failures.insert(reason.to_owned(), 1)),
        }
        let connection = &mut self.connections[index as usize];
        connection.fetch = None;
        connection.pause = now + PAUSE;
    }

    fn drive(&mut self, now: Instant, index: u32) {
        let Some(connection) = self.connections.get_mut(index as usize) else { return };
        let Some(fetch) = &mut connection.fetch else { return };
        let closing = fetch.is_closing();
        let (status, bytes) = (&mut connection.status, &mut connection.bytes);
        let progress = fetch.drive(now, 0, &mut self.scratch, |part| match part {
            Part::Head(head) => {
                *status = head.status.code();
                self.first_answer.record(now.saturating_duration_since(connection.asked_at));
            }
            Part::Bytes(part) => *bytes += part.len() as u64,
            Part::Discarded(count) => *bytes += count,
        });
        match progress {
            Progress::Waiting => {}
            Progress::Again => {
                if !connection.again {
                    connection.again = true;
                    self.again.push(index);
                }
            }
            Progress::Answered { .. } if closing => self.open(now, index),
            Progress::Answered { keep_alive } => self.answered(now, index, keep_alive),
            Progress::Failed(reason) => self.fail(now, index, reason),
        }
    }

    fn answered(&mut self, now: Instant, index: u32, keep_alive: bool) {
        let connection = &mut self.connections[index as usize];
        let wanted = if matches!(self.load.work, Work::Ranges { .. }) { 206 } else { 200 };
        if connection.status != wanted {
            let reason = format!("status {}", connection.status);
            return self.fail(now, index, &reason);
        }
        self.answers += 1;
        self.latency.record(now.saturating_duration_since(connection.asked_at));
        if self.load.close
            && let Some(fetch) = &mut connection.fetch
        {
            fetch.await_close();
            return self.drive(now, index);
        }
        if !keep_alive {
            return self.open(now, index);
        }
        let Some(mut fetch) = connection.fetch.take() else { return };
        let mut out = std::mem::take(&mut fetch.out);
        self.write_request(index, &mut out);
        fetch.out = out;
        fetch.ask();
        let connection = &mut self.connections[index as usize];
        connection.asked_at = now;
        connection.fetch = Some(fetch);
        self.drive(now, index);
    }

    fn timeouts(&mut self, now: Instant, started: usize) {
        for index in 0..started as u32 {
            let connection = &self.connections[index as usize];
            match &connection.fetch {
                None if now >= connection.pause => self.open(now, index),
                Some(fetch) if now.saturating_duration_since(fetch.heard) > SILENCE_MAX => {
                    self.fail(now, index, "silence");
                }
                _ => {}
            }
        }
    }

    fn point(self, meter: &Meter) -> Point {
        let load = self.load;
        let mut settings = BTreeMap::new();
        if load.close {
            settings.insert("connection".to_owned(), "close".to_owned());
        }
        match &load.work {
            Work::File { .. } => drop(settings.insert("range".into(), "whole".into())),
            Work::Ranges { len, random, .. } => {
                settings.insert("range".into(), len.to_string());
                settings.insert("order".into(), if *random { "random" } else { "sequential" }.into());
            }
            Work::Script { machines, .. } => drop(settings.insert("machines".into(), machines.to_string())),
        }
        let mut point = Point {
            work: if matches!(load.work, Work::Script { .. }) { "script" } else { "http" }.into(),
            settings,
            clients: load.connections,
            bytes: self.connections.iter().map(|connection| connection.bytes).sum(),
            units: self.answers,
            unit: "requests".into(),
            failures: self.failures.values().sum(),
            failure_reasons: self.failures,
            latency: self.latency.latency(),
            first_answer: self.first_answer.latency(),
            jain: jain(self.connections.iter().map(|connection| connection.bytes)),
            ..Point::default()
        };
        meter.stop(&mut point);
        point
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::net::{Ipv4Addr, TcpListener};

    /// A server of its own thread: answers every request with `answer(request line and fields)` until the listener's
    /// clients are gone.
    fn serve(answer: fn(&str) -> (String, bool)) -> SocketAddrV4 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
                    loop {
                        let mut request = String::new();
                        while !request.ends_with("\r\n\r\n") {
                            match reader.read_line(&mut request) {
                                Ok(count) if count > 0 => {}
                                _ => return,
                            }
                        }
                        let (text, close) = answer(&request);
                        if stream.write_all(text.as_bytes()).is_err() || close {
                            return;
                        }
                    }
                });
            }
        });
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    fn load(server: SocketAddrV4, work: Work, close: bool) -> HttpLoad {
        HttpLoad {
            server,
            work,
            connections: 3,
            close,
            time: Duration::from_secs(20),
            requests_max: Some(30),
        }
    }

    #[test]
    fn answers_are_counted_with_their_bytes_on_kept_and_closed_connections() {
        let server = serve(|request| {
            let close = request.contains("Connection: close");
            let body = "x".repeat(5000);
            (format!("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{body}"), close)
        });
        for close in [false, true] {
            let point = run(&load(server, Work::File { path: "/file".into() }, close)).unwrap();
            assert!(point.units >= 30 && point.failures == 0, "{point:?}");
            assert!(point.bytes >= 30 * 5000 && point.latency.is_some() && point.jain.is_some(), "{point:?}");
        }
    }

    #[test]
    fn ranges_stay_inside_the_file() {
        let server = serve(|request| {
            if request.starts_with("HEAD") {
                return ("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".into(), true);
            }
            let range = request.split("bytes=").nth(1).unwrap().split("\r\n").next().unwrap();
            let (first, last) = range.split_once('-').unwrap();
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let good = last - first == 299 && last < 1000;
            let status = if good { 206 } else { 416 };
            (format!("HTTP/1.1 {status} x\r\nContent-Length: 300\r\n\r\n{}", "y".repeat(300)), false)
        });
        for random in [false, true] {
            let work = Work::Ranges { path: "/file".into(), len: 300, random };
            let point = run(&load(server, work, false)).unwrap();
            assert!(point.units >= 30 && point.failures == 0, "{point:?}");
        }
        let too_long = Work::Ranges { path: "/file".into(), len: 1001, random: false };
        assert!(run(&load(server, too_long, false)).unwrap_err().to_string().contains("only 1000"));
    }

    #[test]
    fn each_machine_asks_for_its_own_script() {
        let server = serve(|request| {
            let good = request.starts_with(&format!("GET /ipxe?mac={} ", machine_mac(0)))
                || request.starts_with(&format!("GET /ipxe?mac={} ", machine_mac(1)));
            let status = if good { 200 } else { 404 };
            (format!("HTTP/1.1 {status} x\r\nContent-Length: 6\r\n\r\n#!ipxe"), false)
        });
        let work = Work::Script { path: "/ipxe?mac={mac}".into(), machines: 2 };
        let point = run(&load(server, work, false)).unwrap();
        assert!(point.units >= 30 && point.failures == 0, "{point:?}");
    }

    #[test]
    fn what_goes_wrong_is_counted_by_reason() {
        let missing = serve(|_| ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(), false));
        let short = serve(|_| ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".into(), true));
        let work = || Work::File { path: "/".into() };
        let fail = |server| {
            let time = Duration::from_millis(300);
            run(&HttpLoad { time, ..load(server, work(), false) }).unwrap()
        };
        let point = fail(missing);
        assert!(point.failure_reasons["status 404"] >= 3 && point.units == 0, "{point:?}");
        let point = fail(short);
        assert!(point.failure_reasons["connection ended in an answer's body"] >= 3, "{point:?}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let closed = SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
        drop(listener);
        let point = fail(closed);
        assert!(point.failure_reasons["connection refused"] >= 3, "{point:?}");
    }
}

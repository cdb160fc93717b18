//! HTTPS load: many connections, one thread. A file again and again on kept connections, or a script for machine after
//! machine on a new one each, which is a whole handshake each. Certificates are not looked at, bodies are decrypted and
//! thrown away, so the load costs about what the server costs.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::fetch::READ_LEN;
use super::hosts::LoadError;
use super::http::CONNECTIONS_MAX;
use super::result::{Point, Times, jain};
use super::{Meter, TICK, machine_mac};
use crate::tls::{Dialer, Dialled};
use crate::wire::http::{HEAD_MAX, parse_response_head};

/// Bytes taken before others have their turn.
const QUANTUM: usize = 2 << 20;
/// A connection that hears nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A connection that failed is opened again after this.
const PAUSE: Duration = Duration::from_millis(500);

/// What every connection does.
#[derive(Clone, Debug)]
pub struct HttpsLoad {
    /// Server.
    pub server: SocketAddrV4,
    /// Path and query, `{mac}` standing for a machine's address.
    pub path: String,
    /// Different machines, at least 1.
    pub machines: u32,
    /// Connections at once.
    pub connections: u32,
    /// A new connection, and so a handshake, for every request.
    pub close: bool,
    /// Measured for this long.
    pub time: Duration,
}

/// One connection, once it is begun.
#[derive(Debug)]
struct Line {
    tls: Dialled<TcpStream>,
    /// The request and how much of it is sent.
    out: Vec<u8>,
    sent: usize,
    head: Vec<u8>,
    /// Bytes of the body that are still to come, once the head is there.
    left: Option<u64>,
    asked_at: Instant,
    heard: Instant,
}

enum Progress {
    Waiting,
    Again,
    Answered,
    Failed(&'static str),
}

struct Run<'a> {
    load: &'a HttpsLoad,
    dialer: Dialer,
    poll: Poll,
    lines: Vec<Option<Line>>,
    /// Not before this: a failure is not repeated at full speed.
    pauses: Vec<Instant>,
    bytes: Vec<u64>,
    again: Vec<usize>,
    buffer: Vec<u8>,
    machine: u32,
    latency: Times,
    failures: BTreeMap<String, u64>,
    answers: u64,
}

/// Loads the server for the time given.
///
/// # Errors
/// What keeps the load from running at all; requests that fail are counted.
pub fn run(load: &HttpsLoad) -> Result<Point, LoadError> {
    if load.connections == 0 || load.connections > CONNECTIONS_MAX || load.machines == 0 {
        return Err(LoadError::new(format!(
            "{} connections: expected 1 to {CONNECTIONS_MAX}",
            load.connections
        )));
    }
    let dialer = Dialer::to_anybody().ok_or_else(|| LoadError::new("TLS cannot be set up"))?;
    let count = load.connections as usize;
    let meter = Meter::start();
    let start = Instant::now();
    let mut run = Run {
        load,
        dialer,
        poll: Poll::new().map_err(|error| LoadError::io("wait for sockets", &error))?,
        lines: (0..count).map(|_| None).collect(),
        pauses: vec![start; count],
        bytes: vec![0; count],
        again: Vec::with_capacity(count),
        buffer: vec![0; READ_LEN],
        machine: 0,
        latency: Times::default(),
        failures: BTreeMap::new(),
        answers: 0,
    };
    let mut events = Events::with_capacity(1024);
    let end = start + load.time;
    let mut tick = start;
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        if now >= tick {
            tick = now + TICK;
            run.look_after_all(now);
        }
        let wait =
            if run.again.is_empty() { tick.min(end).saturating_duration_since(now) } else { Duration::ZERO };
        match run.poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                return Err(LoadError::io("wait for sockets", &error));
            }
            _ => {}
        }
        let now = Instant::now();
        for index in std::mem::take(&mut run.again) {
            run.drive(now, index);
        }
        for event in events.iter() {
            run.drive(now, event.token().0);
        }
    }
    Ok(run.point(&meter))
}

impl Run<'_> {
    /// Begins what is to begin, and gives up on who says nothing.
    fn look_after_all(&mut self, now: Instant) {
        for index in 0..self.lines.len() {
            match &self.lines[index] {
                None if now >= self.pauses[index] => self.open(now, index),
                Some(line) if now.saturating_duration_since(line.heard) > SILENCE_MAX => {
                    self.fail(now, index, "silence");
                }
                _ => {}
            }
        }
    }

    fn request(&mut self) -> Vec<u8> {
        let server = self.load.server;
        let mac = machine_mac(self.machine).to_string();
        self.machine = (self.machine + 1) % self.load.machines;
        let path = self.load.path.replace("{mac}", &mac);
        let end = if self.load.close { "Connection: close\r\n\r\n" } else { "\r\n" };
        format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: iPXE/1.0.0+\r\n{end}").into_bytes()
    }

    fn open(&mut self, now: Instant, index: usize) {
        let out = self.request();
        let opened = TcpStream::connect(self.load.server.into()).and_then(|mut stream| {
            let _ = stream.set_nodelay(true);
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), both)?;
            Ok(stream)
        });
        let tls = opened.ok().and_then(|stream| self.dialer.dial(stream));
        match tls {
            Some(tls) => {
                let line =
                    Line { tls, out, sent: 0, head: Vec::new(), left: None, asked_at: now, heard: now };
                self.lines[index] = Some(line);
            }
            None => self.fail(now, index, "no socket"),
        }
    }

    fn fail(&mut self, now: Instant, index: usize, reason: &str) {
        *self.failures.entry(reason.to_owned()).or_default() += 1;
        self.lines[index] = None;
        self.pauses[index] = now + PAUSE;
    }

    fn drive(&mut self, now: Instant, index: usize) {
        let Some(line) = self.lines.get_mut(index).and_then(Option::as_mut) else { return };
        match line.drive(now, &mut self.buffer, &mut self.bytes[index]) {
            Progress::Waiting => {}
            Progress::Again => self.again.push(index),
            Progress::Failed(reason) => self.fail(now, index, reason),
            Progress::Answered => {
                self.answers += 1;
                self.latency.record(now.saturating_duration_since(line.asked_at));
                if self.load.close {
                    // The next event is the new connection's own.
                    return self.open(now, index);
                }
                let out = self.request();
                if let Some(line) = &mut self.lines[index] {
                    line.out = out;
                    (line.sent, line.left, line.asked_at) = (0, None, now);
                    line.head.clear();
                }
                self.again.push(index);
            }
        }
    }

    fn point(self, meter: &Meter) -> Point {
        let connection = if self.load.close { "new each time" } else { "kept alive" };
        let mut point = Point {
            // Named apart: one is counted in bytes, the other in answers.
            work: if self.load.close { "handshake" } else { "https" }.into(),
            settings: [("connection".to_owned(), connection.to_owned())].into(),
            clients: self.load.connections,
            bytes: self.bytes.iter().sum(),
            units: self.answers,
            unit: "requests".into(),
            failures: self.failures.values().sum(),
            failure_reasons: self.failures,
            latency: self.latency.latency(),
            jain: jain(self.bytes.iter().copied()),
            ..Point::default()
        };
        meter.stop(&mut point);
        point
    }
}

impl Line {
    /// Goes as far as it can.
    fn drive(&mut self, now: Instant, buffer: &mut [u8], bytes: &mut u64) -> Progress {
        while self.sent < self.out.len() {
            match self.tls.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) => return waits(&error),
            }
        }
        if self.tls.wants_write()
            && let Err(error) = self.tls.flush()
        {
            return waits(&error);
        }
        let mut quantum = QUANTUM;
        loop {
            let taken = match self.tls.read(buffer) {
                Ok(0) => return Progress::Failed("connection ended in an answer"),
                Ok(taken) => taken,
                Err(error) => return waits(&error),
            };
            self.heard = now;
            let mut body = taken as u64;
            let left = match self.left {
                Some(left) => left,
                None => {
                    self.head.extend_from_slice(&buffer[..taken]);
                    match parse_response_head(&self.head) {
                        Ok(Some(head)) if head.status.code() == 200 => {
                            let Some(len) = head.content_length else {
                                return Progress::Failed("an answer without a length");
                            };
                            body = (self.head.len() - head.len) as u64;
                            len
                        }
                        Ok(None) if self.head.len() < HEAD_MAX => continue,
                        _ => return Progress::Failed("not a 200"),
                    }
                }
            };
            if body > left {
                return Progress::Failed("more body than announced");
            }
            *bytes += body;
            self.left = Some(left - body);
            if left == body {
                return Progress::Answered;
            }
            quantum = quantum.saturating_sub(taken);
            if quantum == 0 {
                return Progress::Again;
            }
        }
    }
}

fn waits(error: &std::io::Error) -> Progress {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::NotConnected => Progress::Waiting,
        ErrorKind::Interrupted => Progress::Again,
        ErrorKind::ConnectionRefused => Progress::Failed("connection refused"),
        ErrorKind::InvalidData => Progress::Failed("no TLS between the two"),
        _ => Progress::Failed("connection broke"),
    }
}

//! Transmit-only load: connections that ask for a large file again and again and receive nothing of it, because a
//! [`Sink`] on their interface acknowledges every segment in the kernel. What the server pays is its transmit cost alone.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::Meter;
use super::hosts::{LoadError, interface, stays_here};
use super::http::{CONNECTIONS_MAX, file_len};
use super::result::Point;
use super::sink::Sink;

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether everything asked for has come.
const LOOK: Duration = Duration::from_millis(2);
/// Requests that a connection makes at once. All of them must fit the first flight of its segments (RFC 6928: ten), since
/// whatever acknowledges them is lost in the sink with the data it comes with.
const REQUESTS_MAX: u64 = 64;
/// What no server reaches: so much is asked for, for the time given.
const BYTES_PER_SECOND_MAX: u64 = 40_000_000_000;

/// What every connection does.
#[derive(Clone, Debug)]
pub struct TransmitLoad {
    /// Server.
    pub server: SocketAddrV4,
    /// Interface of this network namespace towards it: one end of a veth pair.
    pub interface: String,
    /// Path and query of a file.
    pub path: String,
    /// Connections at once.
    pub connections: u32,
    /// Measured for this long at most; it ends earlier when nothing is left to be sent.
    pub time: Duration,
    /// Times that each connection asks for the file, 64 at most; `None`: as often as the time may need.
    pub requests: Option<u32>,
}

/// Loads the server for the time given. The point's bytes are those acknowledged, heads of answers included, its units
/// the segments.
///
/// # Errors
/// What keeps the load from running at all, such as a kernel that refuses the sink. Connections whose data came past the
/// sink, or that broke off, are failures.
pub fn run(load: &TransmitLoad) -> Result<Point, LoadError> {
    if load.connections == 0 || load.connections > CONNECTIONS_MAX {
        return Err(LoadError::new(format!(
            "{} connections: expected 1 to {CONNECTIONS_MAX}",
            load.connections
        )));
    }
    if !stays_here(&load.interface)? {
        return Err(LoadError::new(format!(
            "{}: a sink stands on a veth alone, for it leaves checksums as they are there",
            load.interface
        )));
    }
    // Before the sink is there: it would swallow the answer.
    let len = file_len(load.server, &load.path)?;
    let requests = match load.requests {
        Some(requests) => u64::from(requests),
        None => (BYTES_PER_SECOND_MAX as f64 * load.time.as_secs_f64()) as u64 / len.max(1) + 1,
    };
    let requests = requests.clamp(1, REQUESTS_MAX);
    let asked = len * requests * u64::from(load.connections);
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", load.path, load.server);
    let request = request.repeat(requests as usize);

    let sink = Sink::open(interface(&load.interface)?.index, &load.interface, load.server.port())?;
    let mut streams = Vec::with_capacity(load.connections as usize);
    for _ in 0..load.connections {
        streams.push(connect(load.server).map_err(|error| LoadError::io("connect", &error))?);
    }
    let meter = Meter::start();
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).map_err(|error| LoadError::io("ask", &error))?;
    }
    let end = Instant::now() + load.time;
    let mut all_sent = false;
    let sunk = loop {
        std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        let sunk = sink.read().map_err(|error| LoadError::io("read the sink's counters", &error))?;
        all_sent |= sunk.bytes >= asked;
        if Instant::now() >= end || all_sent {
            break sunk;
        }
    };
    let mut point = Point {
        work: "transmit".into(),
        clients: load.connections,
        bytes: sunk.bytes,
        units: sunk.segments,
        unit: "segments".into(),
        ..Point::default()
    };
    meter.stop(&mut point);
    for stream in &streams {
        // Nothing is there and nobody has hung up: that is what a sink is for.
        match stream.peek(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) => point.fail("closed by the server"),
            Ok(_) => point.fail("data came past the sink"),
            Err(_) => point.fail("broken off by the server"),
        }
    }
    // Reset while the sink still stands, so that nothing of what is under way is received.
    drop(streams);
    Ok(point)
}

/// A connection that waits for nothing and is reset when it is closed.
fn connect(server: SocketAddrV4) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server.into(), CONNECT_PATIENCE)?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

//! Load generators. For now the two that the demonstration's table needs: whole downloads over loopback by plain
//! TFTP and HTTP clients, for a bounded time. They share `wire` with the server and nothing of its engine.
//!
//! What they cannot tell: where the limit of a server is. A client here is a thread with a socket of its own, and costs
//! as much as the server does.
#![forbid(unsafe_code)]

pub mod impair;
pub mod model;
pub mod report;
pub mod result;

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::wire::http::parse_response_head;
use crate::wire::tftp::{Mode, Options, Packet, emit_ack, emit_rrq};

/// A client that hears nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Receive buffer asked for.
const RECV_BUFFER: usize = 4 << 20;

/// Bytes taken with one read.
const READ_LEN: usize = 1 << 20;
/// Room for an answer's head.
const HEAD_LEN: usize = 4096;
/// linux/socket.h.
const MSG_TRUNC: i32 = 0x20;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `tftp` or `http`.
    pub protocol: &'static str,
    /// Block and window size.
    pub settings: String,
    /// Clients at once.
    pub clients: u32,
    /// 10⁶ bytes a second, all clients together.
    pub megabytes_per_s: f64,
    /// Clients that broke off.
    pub failures: u32,
}

fn measure(
    protocol: &'static str,
    settings: String,
    clients: u32,
    client: impl Fn() -> io::Result<u64> + Sync,
) -> Row {
    let start = Instant::now();
    let results: Vec<Option<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(|| client().ok())).collect();
        threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let bytes: u64 = results.iter().flatten().sum();
    Row {
        protocol,
        settings,
        clients,
        megabytes_per_s: bytes as f64 / 1e6 / seconds,
        failures: results.iter().filter(|result| result.is_none()).count() as u32,
    }
}

/// Downloads `file` by TFTP, again and again, for `time`.
///
/// # Errors
/// None of its own; clients that fail are counted.
pub fn measure_tftp(
    server: SocketAddrV4,
    file: &str,
    blksize: u16,
    windowsize: u16,
    clients: u32,
    time: Duration,
) -> io::Result<Row> {
    let settings = format!("blksize {blksize}, windowsize {windowsize}");
    Ok(measure("tftp", settings, clients, || {
        let end = Instant::now() + time;
        let mut bytes = 0;
        while Instant::now() < end {
            bytes += tftp_download(server, file, blksize, windowsize, end)?;
        }
        Ok(bytes)
    }))
}

/// One download, or as much of it as fits before `end`; its bytes.
fn tftp_download(
    server: SocketAddrV4,
    file: &str,
    blksize: u16,
    windowsize: u16,
    end: Instant,
) -> io::Result<u64> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "not the answer a transfer needs");
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    // A window of large blocks must fit, or every one of them is cut by our own buffer.
    socket2::SockRef::from(&socket).set_recv_buffer_size(RECV_BUFFER)?;
    let options = Options {
        blksize: Some(blksize),
        windowsize: (windowsize > 1).then_some(windowsize),
        ..Options::default()
    };
    let mut packet = [0; 512];
    let len = emit_rrq(&mut packet, file.as_bytes(), Mode::Octet, &options).ok_or_else(broken)?;
    socket.send_to(&packet[..len], server)?;
    let mut buffer = vec![0; usize::from(blksize).max(512) + 4];
    // What the server does not grant, it does not do: without an OACK the defaults hold.
    let (mut blksize, mut windowsize) = (512, 1);
    let (mut have, mut acked, mut bytes) = (0u64, 0u64, 0u64);
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        let ack = |block: u64| {
            let mut packet = [0; 4];
            emit_ack(&mut packet, block as u16).ok_or_else(broken)?;
            socket.send_to(&packet, from).map(drop)
        };
        match Packet::parse(&buffer[..len]).map_err(|_| broken())? {
            Packet::Oack(granted) => {
                blksize = granted.blksize.unwrap_or(512);
                windowsize = granted.windowsize.unwrap_or(1);
                ack(0)?;
            }
            Packet::Data(block, payload) if block == (have + 1) as u16 => {
                have += 1;
                bytes += payload.len() as u64;
                let last = payload.len() < usize::from(blksize);
                if last || Instant::now() >= end {
                    ack(have)?;
                    return Ok(bytes);
                }
                if have - acked >= u64::from(windowsize) {
                    acked = have;
                    ack(have)?;
                }
            }
            // Something was lost: say what is there, and the window starts again behind it.
            Packet::Data(..) if have != acked => {
                acked = have;
                ack(have)?;
            }
            Packet::Data(..) => {}
            _ => return Err(broken()),
        }
    }
}

/// Downloads `path` by HTTP, again and again over one connection each, for `time`.
///
/// # Errors
/// None of its own; clients that fail are counted.
pub fn measure_http(server: SocketAddrV4, path: &str, clients: u32, time: Duration) -> io::Result<Row> {
    Ok(measure("http", "whole file".into(), clients, || {
        let end = Instant::now() + time;
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let mut buffer = vec![0; HEAD_LEN];
        let mut discard = vec![std::mem::MaybeUninit::uninit(); READ_LEN];
        let mut bytes = 0;
        loop {
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n")?;
            let mut have = 0;
            let mut left = loop {
                have += match stream.read(&mut buffer[have..])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => count,
                };
                let head = parse_response_head(&buffer[..have])
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                if let Some(head) = head {
                    let len: u64 = head.header("Content-Length").and_then(|l| l.parse().ok()).unwrap_or(0);
                    let first = (have - head.len) as u64;
                    bytes += first;
                    break len - first.min(len);
                }
            };
            while left > 0 {
                if Instant::now() >= end {
                    return Ok(bytes);
                }
                // MSG_TRUNC on TCP throws bytes away without copying them (linux tcp(7)): the load costs less.
                let spare = &mut discard[..(left.min(READ_LEN as u64) as usize)];
                match socket2::SockRef::from(&stream).recv_with_flags(spare, MSG_TRUNC)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => {
                        bytes += count as u64;
                        left -= (count as u64).min(left);
                    }
                }
            }
            if Instant::now() >= end {
                return Ok(bytes);
            }
        }
    }))
}

//! Responders that do no work: what a load reaches against them is its own ceiling.
//!
//! On an interface: ARP, DHCP (an OFFER or ACK with whatever address comes of the hardware address) and TFTP (blocks of
//! nothing in particular, as fast as they are acknowledged), by hand-made frames from an address that the kernel does not
//! have. Over TCP: one answer to every request. Neither keeps state per client beyond what answering needs, checks
//! anything or logs anything. Nobody should boot from them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::hosts::{LoadError, RawOut, RawPort, mac_of};
use crate::sys::tcp::{PIPE_LEN, Pipe, listen, send_file, set_cork};
use crate::wire::MacAddr;
use crate::wire::dhcp::{Emitter, FLAG_BROADCAST, Header, Message, MessageType, code};
use crate::wire::frame::UdpHead;
use crate::wire::tftp::{Options, Packet, data_header, emit_oack};

/// Whole requests, headers included.
const SNAPSHOT: usize = 1600;
/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Combinations of block and window size that are told apart, by the port they are answered from.
const COMBINATIONS_MAX: usize = 1024;
const FIRST_TID: u16 = 32_768;
/// Blocks sent for one ACK.
const WINDOW_MAX: u16 = 64;
const CONNECTIONS_MAX: usize = 16_384;
/// Longest request looked at.
const REQUEST_LEN_MAX: usize = 8192;
/// The file bodies are taken from, again and again.
const BODY_LEN: u64 = 64 << 20;

/// A responder on an interface.
#[derive(Clone, Debug)]
pub struct NullFrames {
    /// Interface.
    pub interface: String,
    /// Its address, which nobody else has.
    pub address: Ipv4Addr,
    /// DHCP: offer no address, as a proxy.
    pub proxy: bool,
    /// TFTP: length of every file.
    pub file_len: u64,
}

struct Frames<'a> {
    settings: &'a NullFrames,
    mac: MacAddr,
    combinations: Vec<(u16, u16)>,
}

/// Answers until `stop` is set. `ready` is called once frames are listened to.
///
/// # Errors
/// No raw socket, no such interface.
pub fn answer_frames(
    settings: &NullFrames,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<(), LoadError> {
    let mut raw = RawPort::open(&settings.interface, Some(settings.address), 1, None, 0, SNAPSHOT)?;
    let mut frames = Frames { settings, mac: mac_of(settings.address), combinations: Vec::new() };
    ready();
    while !stop.load(Ordering::Relaxed) {
        raw.receive(LOOK, |out, head, frame| {
            let payload = head.payload_offset..head.payload_offset + head.payload_len;
            let Some(payload) = frame.bytes.get(payload) else { return };
            match head.dst.port() {
                67 => frames.dhcp(out, head, payload),
                69 if *head.dst.ip() == settings.address => frames.request(out, head, payload),
                port if port >= FIRST_TID && *head.dst.ip() == settings.address => {
                    frames.ack(out, head, payload, port);
                }
                _ => {}
            }
        })?;
        raw.out.flush();
    }
    Ok(())
}

impl Frames<'_> {
    fn dhcp(&self, out: &mut RawOut, head: &UdpHead, payload: &[u8]) {
        let Ok(message) = Message::parse(payload) else { return };
        let kind = match message.message_type() {
            Some(MessageType::Discover) => MessageType::Offer,
            Some(MessageType::Request) => MessageType::Ack,
            _ => return,
        };
        let Some(mac) = message.mac() else { return };
        let address = self.settings.address;
        let mut header = Header::reply_to(&message);
        header.siaddr = address;
        if !self.settings.proxy {
            let [.., a, b, c] = mac.0;
            header.yiaddr = Ipv4Addr::new(10, a | 0x80, b, c);
        }
        let giaddr = message.giaddr();
        let (dst_mac, dst) = if !giaddr.is_unspecified() {
            (head.src_mac, SocketAddrV4::new(giaddr, 67))
        } else if message.flags() & FLAG_BROADCAST != 0 || self.settings.proxy {
            (MacAddr::BROADCAST, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68))
        } else {
            (mac, SocketAddrV4::new(header.yiaddr, 68))
        };
        out.send_from(self.mac, SocketAddrV4::new(address, 67), dst_mac, dst, 576, |buffer| {
            let mut message_out = Emitter::new(buffer, &header)?;
            message_out.option(code::MESSAGE_TYPE, &[kind.code()])?;
            message_out.option(code::SERVER_ID, &address.octets())?;
            if self.settings.proxy {
                message_out.option(code::VENDOR_CLASS, b"PXEClient")?;
            } else {
                message_out.option(code::LEASE_TIME, &3600u32.to_be_bytes())?;
            }
            if let Some(relay) = message.option(code::RELAY_AGENT) {
                message_out.option(code::RELAY_AGENT, relay)?;
            }
            message_out.finish()
        });
    }

    fn request(&mut self, out: &mut RawOut, head: &UdpHead, payload: &[u8]) {
        let Ok(Packet::Request(request)) = Packet::parse(payload) else { return };
        let blksize = request.options.blksize.unwrap_or(512);
        let windowsize = request.options.windowsize.unwrap_or(1).min(WINDOW_MAX);
        let combination = (blksize, windowsize);
        let index = match self.combinations.iter().position(|known| *known == combination) {
            Some(index) => index,
            None if self.combinations.len() < COMBINATIONS_MAX => {
                self.combinations.push(combination);
                self.combinations.len() - 1
            }
            None => return,
        };
        let tid = FIRST_TID + index as u16;
        let granted = Options {
            blksize: request.options.blksize,
            windowsize: request.options.windowsize.map(|_| windowsize),
            tsize: request.options.tsize.map(|_| self.settings.file_len),
            timeout_secs: None,
        };
        if granted == Options::default() {
            return self.blocks(out, head, tid, 0);
        }
        let src = SocketAddrV4::new(self.settings.address, tid);
        out.send_from(self.mac, src, head.src_mac, head.src, 128, |buffer| emit_oack(buffer, &granted));
    }

    fn ack(&self, out: &mut RawOut, head: &UdpHead, payload: &[u8], tid: u16) {
        if let Ok(Packet::Ack(block)) = Packet::parse(payload) {
            self.blocks(out, head, tid, block);
        }
    }

    /// The window behind `have`. Files end where a block number would repeat itself, so an ACK says where it is.
    fn blocks(&self, out: &mut RawOut, head: &UdpHead, tid: u16, have: u16) {
        let Some((blksize, windowsize)) = self.combinations.get(usize::from(tid - FIRST_TID)) else { return };
        let full = self.settings.file_len / u64::from(*blksize);
        let last = (full + 1).min(65_535) as u16;
        let rest =
            if full + 1 > 65_535 { 0 } else { (self.settings.file_len % u64::from(*blksize)) as usize };
        let src = SocketAddrV4::new(self.settings.address, tid);
        for block in have.saturating_add(1)..=have.saturating_add(*windowsize).min(last) {
            let len = if block == last { rest } else { usize::from(*blksize) };
            out.send_from(self.mac, src, head.src_mac, head.src, 4 + len, |buffer| {
                // What lies in the buffer is as good a payload as any.
                buffer.get_mut(..4)?.copy_from_slice(&data_header(block));
                Some(4 + len)
            });
        }
    }
}

/// A responder over TCP.
#[derive(Clone, Debug)]
pub struct NullHttp {
    /// Where it listens.
    pub listen: SocketAddrV4,
    /// Bytes of every whole answer.
    pub body_len: u64,
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    head: Vec<u8>,
    sent: usize,
    left: u64,
    offset: u64,
    pipe: Option<Pipe>,
    close: bool,
}

/// Answers until `stop` is set. `ready` is told the address once it listens.
///
/// # Errors
/// No such address, no temporary file.
pub fn answer_http(
    settings: &NullHttp,
    stop: &AtomicBool,
    ready: impl FnOnce(SocketAddrV4),
) -> Result<(), LoadError> {
    let fail = |error: io::Error| LoadError::io("null responder", &error);
    let listener = listen(settings.listen, None)?;
    if let std::net::SocketAddr::V4(bound) = listener.local_addr().map_err(fail)? {
        ready(bound);
    }
    let mut listener = TcpListener::from_std(listener);
    let file = body_file().map_err(fail)?;
    let mut poll = Poll::new().map_err(fail)?;
    poll.registry().register(&mut listener, Token(usize::MAX), Interest::READABLE).map_err(fail)?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match poll.poll(&mut events, Some(LOOK)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(fail(error)),
            _ => {}
        }
        for event in events.iter() {
            if event.token() != Token(usize::MAX) {
                let index = event.token().0;
                let Some(Some(connection)) = connections.get_mut(index) else { continue };
                if !connection.drive(settings, &file) {
                    connections[index] = None;
                    free.push(index);
                }
                continue;
            }
            while let Ok((mut stream, _)) = listener.accept() {
                let index = match free.pop() {
                    Some(index) => index,
                    None if connections.len() < CONNECTIONS_MAX => {
                        connections.push(None);
                        connections.len() - 1
                    }
                    None => continue,
                };
                let interest = Interest::READABLE | Interest::WRITABLE;
                if poll.registry().register(&mut stream, Token(index), interest).is_err() {
                    free.push(index);
                    continue;
                }
                connections[index] = Some(Connection {
                    stream,
                    request: Vec::with_capacity(1024),
                    head: Vec::with_capacity(256),
                    sent: 0,
                    left: 0,
                    offset: 0,
                    pipe: None,
                    close: false,
                });
            }
        }
    }
    Ok(())
}

/// A file nobody else can open, in memory where `/dev/shm` is.
fn body_file() -> io::Result<std::fs::File> {
    let shm = std::path::Path::new("/dev/shm");
    let folder = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let path =
        folder.join(format!("bootstorm-null-{}-{:?}", std::process::id(), std::thread::current().id()));
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let part = vec![0x5a; 1 << 20];
    for _ in 0..BODY_LEN >> 20 {
        file.write_all(&part)?;
    }
    Ok(file)
}

impl Connection {
    /// As far as it goes; false at the end.
    fn drive(&mut self, settings: &NullHttp, file: &std::fs::File) -> bool {
        loop {
            match self.step(settings, file) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    fn step(&mut self, settings: &NullHttp, file: &std::fs::File) -> io::Result<bool> {
        if self.sent < self.head.len() {
            self.sent += self.stream.write(&self.head[self.sent..])?;
            // The next request is an event of its own; looking for it now would mostly be in vain.
            let over = self.sent == self.head.len() && self.left == 0 && !self.close;
            return if over { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(true) };
        }
        if self.left > 0 || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0) {
            self.send_body(file)?;
            return Ok(true);
        }
        if self.pipe.is_some() {
            self.pipe = None;
            set_cork(&self.stream, false)?;
        }
        if self.close {
            return Ok(false);
        }
        let start = self.request.len();
        self.request.resize(start + 1024, 0);
        let taken = self.stream.read(&mut self.request[start..]);
        self.request.truncate(start + *taken.as_ref().unwrap_or(&0));
        if taken? == 0 || self.request.len() > REQUEST_LEN_MAX {
            return Ok(false);
        }
        if self.request.ends_with(b"\r\n\r\n") {
            self.answer(settings);
        }
        Ok(true)
    }

    fn answer(&mut self, settings: &NullHttp) {
        let has = |word: &[u8]| self.request.windows(word.len()).position(|window| window == word);
        let head_only = self.request.starts_with(b"HEAD");
        self.close = has(b"Connection: close").is_some();
        let range = has(b"bytes=").and_then(|at| {
            let text = std::str::from_utf8(self.request.get(at + 6..)?).ok()?;
            let (first, last) = text.split("\r\n").next()?.split_once('-')?;
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            Some((first, last.min(settings.body_len.checked_sub(1)?).checked_sub(first)? + 1))
        });
        let (status, offset, len) = match range {
            Some((first, len)) => ("206 Partial Content", first, len),
            None => ("200 OK", 0, settings.body_len),
        };
        self.head.clear();
        self.sent = 0;
        // Writing to a vector cannot fail.
        let _ = write!(self.head, "HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n");
        self.request.clear();
        (self.offset, self.left) = (offset, if head_only { 0 } else { len });
        // A script's length goes out with its head.
        if self.left <= 16 * 1024 {
            self.head.resize(self.head.len() + self.left as usize, b'#');
            self.left = 0;
        } else {
            self.pipe = Pipe::new().ok();
            let _ = set_cork(&self.stream, true);
        }
    }

    fn send_body(&mut self, file: &std::fs::File) -> io::Result<()> {
        let at = self.offset % BODY_LEN;
        let len = self.left.min(BODY_LEN - at);
        let Some(pipe) = &mut self.pipe else {
            let sent = send_file(&self.stream, file, at, len.min(PIPE_LEN as u64) as usize)? as u64;
            self.offset += sent;
            self.left -= sent;
            return Ok(());
        };
        if pipe.held() == 0 {
            let moved = pipe.fill(file, at, len.min(PIPE_LEN as u64) as usize)? as u64;
            self.offset += moved;
            self.left -= moved;
        }
        pipe.drain(&self.stream, self.left > 0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::http::{HttpLoad, Work, run};

    #[test]
    fn the_http_load_reads_every_answer_of_the_null_responder() {
        let stop = AtomicBool::new(false);
        let settings =
            NullHttp { listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), body_len: BODY_LEN + 12_345 };
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let responder =
                scope.spawn(|| answer_http(&settings, &stop, move |bound| tell.send(bound).unwrap()));
            let server = told.recv().unwrap();
            let load = |work, close, requests| {
                let point = run(&HttpLoad {
                    server,
                    work,
                    connections: 4,
                    close,
                    time: Duration::from_secs(30),
                    requests_max: Some(requests),
                })
                .unwrap();
                assert!(point.units >= requests && point.failures == 0, "{point:?}");
                point
            };
            let file = || Work::File { path: "/".into() };
            let point = load(file(), false, 4);
            assert!(point.bytes >= 4 * settings.body_len);
            load(file(), true, 4);
            let ranges = Work::Ranges { path: "/".into(), len: 1 << 20, random: true };
            assert!(load(ranges, false, 50).bytes >= 50 << 20);
            let small = Work::Ranges { path: "/".into(), len: 600, random: false };
            load(small, false, 200);
            stop.store(true, Ordering::Relaxed);
            responder.join().unwrap().unwrap();
        });
    }
}

//! How the machine that is acted reaches the network: by frames of its own on an interface, or, as a relay that is this
//! very host, by ordinary sockets.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::packet::{self, Heard, Segment, flag};
use crate::jobs::machine::VISITOR_PREFIX;
use crate::sys::SysError;
use crate::sys::inject::Injector;
use crate::sys::interfaces::Interface;
use crate::sys::packet::{BpfInstruction, PacketSocket};
use crate::wire::MacAddr;
use crate::wire::arp::{ARP_FRAME_LEN, Arp, emit_arp_frame, parse_arp_frame};
use crate::wire::http::{BodyLength, ContentRange, parse_response_head};

/// How long a neighbour may take to say its hardware address.
const ARP_PATIENCE: Duration = Duration::from_millis(900);
const ARP_INTERVAL: Duration = Duration::from_millis(300);
/// How long a connection may take, and how long an answer may stand still.
const CONNECT_PATIENCE: Duration = Duration::from_millis(2000);
const ANSWER_PATIENCE: Duration = Duration::from_millis(2500);
/// How long the other end of a connection may take to hang up as well.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(100);
const FIRST_RESEND: Duration = Duration::from_millis(300);
/// How much is still looked through when the time is over: what came while this process had no processor came in time.
pub(super) const LATE_MAX: usize = 4096;
/// IEEE's EtherType for experiments on one link (802a local experimental 1): nobody listens to it.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
/// Neighbours that are remembered, and packets that wait to be looked at: strangers can send more.
const NEIGHBOURS_MAX: usize = 1024;
const WAITING_MAX: usize = 4096;
/// A segment still to be cut by the card is as long as this.
const FRAME_LEN_MAX: usize = 70_000;
/// Longest answer that is kept.
const ANSWER_LEN_MAX: usize = 32 << 20;
/// Largest payload of one segment on Ethernet without tunnels.
const MSS: u16 = 1460;

/// An HTTP answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) len: Option<u64>,
    /// Of a 206: first byte, last byte, whole length.
    pub(super) range: Option<(u64, u64, Option<u64>)>,
    pub(super) content_type: String,
    pub(super) body: Vec<u8>,
}

/// How an HTTP request comes to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum HttpFault {
    /// Nobody answers the connection.
    Silent,
    /// The connection is refused.
    Refused,
    /// A connection, then nothing more of the answer after so many bytes.
    Stalled(u64),
    /// No HTTP, or it broke off.
    Broken(String),
}

/// A machine's way to the network.
pub(super) trait Carrier {
    /// Sends one datagram from the machine's port.
    fn send(&mut self, from_port: u16, to: SocketAddrV4, payload: &[u8]);
    /// What is heard within `wait`, if anything is.
    fn hear(&mut self, wait: Duration) -> Option<Heard>;
    /// The machine has this address now, and this router and network if the lease named them.
    fn settle(&mut self, address: Ipv4Addr, prefix: u8, router: Option<Ipv4Addr>);
    /// One request, one answer; `head`: an answer without body.
    fn http(&mut self, server: SocketAddrV4, request: &str, head: bool) -> Result<Answer, HttpFault>;
    /// Whether somebody has this address on the link, as far as that can be asked.
    fn is_there(&mut self, address: Ipv4Addr) -> Option<bool>;
}

/// What concerns a visitor: ARP, what is for everybody, and what is for a visitor's hardware address, also one that was
/// here before and whose network address the server still knows. Without `own` everything, since a router's frames do.
fn filter(own: bool) -> Vec<BpfInstruction> {
    let op = |code: u16, k: u32, jt: u8, jf: u8| BpfInstruction { code, jt, jf, k };
    let (load_half, load_word, and, jump_eq, ret) = (0x28, 0x20, 0x54, 0x15, 0x06);
    let accept = op(ret, 0x4_0000, 0, 0);
    if !own {
        return vec![accept];
    }
    let [a, b, c] = VISITOR_PREFIX;
    vec![
        op(load_half, 12, 0, 0),
        op(jump_eq, 0x0806, 4, 0),
        op(load_word, 0, 0, 0),
        op(jump_eq, u32::MAX, 2, 0),
        op(and, 0xffff_ff00, 0, 0),
        op(jump_eq, u32::from_be_bytes([a, b, c, 0]), 0, 1),
        accept,
        op(ret, 0, 0, 0),
    ]
}

/// How a connection is to be ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Broken,
    Whole,
    WholeAndOver,
}

/// Frames of its own on an interface.
pub(super) struct Frames {
    socket: PacketSocket,
    /// On the server's own host, which does not hear its own frames.
    injector: Option<Injector>,
    interface: Interface,
    mac: MacAddr,
    address: Ipv4Addr,
    prefix: u8,
    router: Option<Ipv4Addr>,
    neighbours: HashMap<Ipv4Addr, MacAddr>,
    /// Heard while something else was waited for.
    waiting: VecDeque<Heard>,
    id: u16,
    random: u64,
    buffer: Vec<u8>,
}

impl Frames {
    /// `here`: the server is on this host. `routed`: answers go to a router, not to the machine. `seed`: for ports and
    /// sequence numbers.
    pub(super) fn open(
        interface: Interface,
        mac: MacAddr,
        here: bool,
        routed: bool,
        seed: u64,
    ) -> Result<Self, SysError> {
        let socket = PacketSocket::open_all(&interface.name, interface.index, &filter(!routed))?;
        let injector = match here {
            true => Some(Injector::new(interface.index)?),
            false => None,
        };
        if let Some(injector) = &injector {
            // Old kernels refuse with the first frame, which would look like a server that does not answer.
            let mut nothing = [0; 64];
            nothing[6..12].copy_from_slice(&mac.0);
            nothing[12..14].copy_from_slice(&EXPERIMENTAL);
            let what = || format!("run the BPF program that puts frames into {}", interface.name);
            injector.inject(&nothing).map_err(|error| SysError::new(what(), error))?;
        }
        Ok(Self {
            socket,
            injector,
            interface,
            mac,
            address: Ipv4Addr::UNSPECIFIED,
            prefix: 32,
            router: None,
            neighbours: HashMap::new(),
            waiting: VecDeque::new(),
            id: 1,
            random: seed,
            buffer: vec![0; FRAME_LEN_MAX],
        })
    }

    /// To the link, and to this host's own sockets when the server is among them.
    fn put(&mut self, frame: &[u8]) {
        let to = frame.first_chunk::<6>().copied().unwrap_or_default();
        // What cannot be sent is not heard of again, which is what the caller notices.
        if let Some(injector) = &self.injector {
            if to == self.interface.mac || to == MacAddr::BROADCAST.0 {
                let _ = injector.inject(frame);
            }
            if to == self.interface.mac {
                return;
            }
        }
        let _ = self.socket.send(frame);
    }

    fn arp(&mut self, arp: &Arp) {
        let mut frame = [0; ARP_FRAME_LEN];
        if emit_arp_frame(&mut frame, arp).is_some() {
            self.put(&frame);
        }
    }

    /// One frame that waits, if it is any of ours; ARP is answered on the way.
    fn take(&mut self) -> io::Result<Option<Heard>> {
        let len = self.socket.recv(&mut self.buffer)?;
        let frame = self.buffer.get(..len).unwrap_or_default();
        // Injected frames are heard like everybody's.
        if frame.get(6..12) == Some(&self.mac.0[..]) {
            return Ok(None);
        }
        if let Some(arp) = parse_arp_frame(frame) {
            if self.neighbours.len() < NEIGHBOURS_MAX || self.neighbours.contains_key(&arp.sender) {
                self.neighbours.insert(arp.sender, arp.sender_mac);
            }
            if !arp.reply && arp.target == self.address && !self.address.is_unspecified() {
                let answer = Arp {
                    reply: true,
                    sender_mac: self.mac,
                    sender: self.address,
                    target_mac: arp.sender_mac,
                    target: arp.sender,
                };
                self.arp(&answer);
            }
            return Ok(None);
        }
        Ok(packet::read(frame))
    }

    /// The next packet of the link, until then at the latest.
    fn next(&mut self, until: Instant) -> Option<Heard> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.take() {
                Ok(Some(heard)) => return Some(heard),
                // Other hosts' traffic may never end.
                Ok(None) if left.is_zero() => return None,
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !left.is_zero() => {
                    self.socket.wait(left).ok()?;
                }
                // An interface that went down says so once.
                Err(_) => return None,
            }
        }
    }

    /// The hardware address of whoever brings a packet there.
    fn next_hop(&mut self, to: Ipv4Addr) -> Option<MacAddr> {
        if to.is_broadcast() {
            return Some(MacAddr::BROADCAST);
        }
        if self.injector.is_some() && self.interface.addr == Some(to) {
            return Some(MacAddr(self.interface.mac));
        }
        let hop = self.hop_address(to);
        self.find(hop)
    }

    fn hop_address(&self, to: Ipv4Addr) -> Ipv4Addr {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        let near = u32::from(to) & mask == u32::from(self.address) & mask;
        match self.router {
            Some(router) if !near => router,
            _ => to,
        }
    }

    fn find(&mut self, address: Ipv4Addr) -> Option<MacAddr> {
        let start = Instant::now();
        while start.elapsed() < ARP_PATIENCE {
            if let Some(mac) = self.neighbours.get(&address) {
                return Some(*mac);
            }
            self.arp(&Arp {
                reply: false,
                sender_mac: self.mac,
                sender: self.address,
                target_mac: MacAddr([0; 6]),
                target: address,
            });
            let until = Instant::now() + ARP_INTERVAL;
            while !self.neighbours.contains_key(&address) {
                let left = until.saturating_duration_since(Instant::now());
                match self.take() {
                    // What else is heard meanwhile is for later.
                    Ok(Some(heard)) if self.waiting.len() < WAITING_MAX => self.waiting.push_back(heard),
                    Ok(_) => {}
                    Err(_) if left.is_zero() => break,
                    Err(_) => {
                        let _ = self.socket.wait(left);
                    }
                }
                if left.is_zero() {
                    break;
                }
            }
        }
        self.neighbours.get(&address).copied()
    }

    fn send_segment(&mut self, from: u16, to: SocketAddrV4, segment: &Segment) {
        let Some(hop) = self.next_hop(*to.ip()) else { return };
        self.id = self.id.wrapping_add(1);
        let src = SocketAddrV4::new(self.address, from);
        let frame = packet::tcp_frame((self.mac, hop), src, to, self.id, segment, MSS);
        self.put(&frame);
    }

    /// Ends a connection: with what was asked for in hand the usual way, so that the server sees no broken download and
    /// keeps nothing of it. `theirs` counts their FIN once it has come.
    fn hang_up(&mut self, port: u16, server: SocketAddrV4, mut seq: u32, mut theirs: u32, end: End) {
        let plain = |flags, seq, ack| Segment { seq, ack, flags, payload: Vec::new() };
        let mut over = match end {
            End::Broken => {
                return self.send_segment(port, server, &plain(flag::RST | flag::ACK, seq, theirs));
            }
            End::Whole => false,
            End::WholeAndOver => true,
        };
        let until = Instant::now() + GOODBYE_PATIENCE;
        if !over {
            // It was asked to close, and does: what it sent is acknowledged to the last before this end says goodbye.
            self.send_segment(port, server, &plain(flag::ACK, seq, theirs));
            while let Some(Ok(segment)) = self.hear_segment(port, server, until) {
                if segment.flags & (flag::FIN | flag::RST) != 0 {
                    theirs = segment.seq.wrapping_add(segment.payload.len() as u32 + 1);
                    over = segment.flags & flag::RST == 0;
                    break;
                }
            }
        }
        if over {
            self.send_segment(port, server, &plain(flag::FIN | flag::ACK, seq, theirs));
            seq = seq.wrapping_add(1);
            while let Some(Ok(segment)) = self.hear_segment(port, server, until) {
                if segment.flags & flag::RST != 0 || segment.ack == seq {
                    return;
                }
            }
        }
        // It does not answer the goodbye: nothing is to be left of it all the same.
        self.send_segment(port, server, &plain(flag::RST | flag::ACK, seq, theirs));
    }

    /// The next segment of one connection, or that its port refuses.
    fn hear_segment(
        &mut self,
        port: u16,
        server: SocketAddrV4,
        until: Instant,
    ) -> Option<Result<Segment, HttpFault>> {
        let mut late = 0;
        while late < LATE_MAX {
            let left = until.saturating_duration_since(Instant::now());
            late += usize::from(left.is_zero());
            match self.hear(left)? {
                Heard::Tcp { from, to, segment }
                    if from == server && to == SocketAddrV4::new(self.address, port) =>
                {
                    return Some(Ok(segment));
                }
                Heard::Unreachable { to, .. } if to == server => return Some(Err(HttpFault::Refused)),
                _ => {}
            }
        }
        None
    }
}

impl Carrier for Frames {
    fn send(&mut self, from_port: u16, to: SocketAddrV4, payload: &[u8]) {
        let Some(hop) = self.next_hop(*to.ip()) else { return };
        self.id = self.id.wrapping_add(1);
        let src = SocketAddrV4::new(self.address, from_port);
        // The server answers a plain packet by a frame past the host's own queues, where this host does not hear it;
        // one with IP options by its socket.
        let options = self.injector.is_some() && !to.ip().is_broadcast();
        let frame = packet::udp_frame((self.mac, hop), src, to, self.id, options, payload);
        self.put(&frame);
    }

    fn hear(&mut self, wait: Duration) -> Option<Heard> {
        let until = Instant::now() + wait;
        self.waiting.pop_front().or_else(|| self.next(until))
    }

    fn settle(&mut self, address: Ipv4Addr, prefix: u8, router: Option<Ipv4Addr>) {
        (self.address, self.prefix, self.router) = (address, prefix, router);
    }

    /// A connection of the machine's own, from its own address: one request, segments in order, acknowledged one by one.
    fn http(&mut self, server: SocketAddrV4, request: &str, head: bool) -> Result<Answer, HttpFault> {
        // Another port and another beginning each time: the server may remember a connection of the visitor before.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let port = 32_768 + (self.random >> 40) as u16 % 30_000;
        let mut seq = (self.random >> 32) as u32;
        let syn = Segment { seq, ack: 0, flags: flag::SYN, payload: Vec::new() };
        let start = Instant::now();
        let mut pause = FIRST_RESEND;
        let mut tries = 0;
        let mut theirs = loop {
            tries += 1;
            self.send_segment(port, server, &syn);
            match self.hear_segment(port, server, Instant::now() + pause) {
                Some(Ok(segment)) if segment.flags & flag::RST != 0 => return Err(HttpFault::Refused),
                Some(Ok(segment)) if segment.flags & flag::SYN != 0 => break segment.seq.wrapping_add(1),
                Some(Err(fault)) => return Err(fault),
                _ => {}
            }
            // Three times at least: one long pause of this host's is no silence of the server's.
            if start.elapsed() > CONNECT_PATIENCE && tries >= 3 {
                return Err(HttpFault::Silent);
            }
            pause *= 2;
        };
        seq = seq.wrapping_add(1);
        let asked =
            Segment { seq, ack: theirs, flags: flag::ACK | flag::PSH, payload: request.as_bytes().to_vec() };
        seq = seq.wrapping_add(request.len() as u32);
        self.send_segment(port, server, &asked);
        let mut reader = AnswerReader::new(head);
        let mut over = false;
        let mut moved = Instant::now();
        let mut resend = moved + FIRST_RESEND;
        let answer = loop {
            match self.hear_segment(port, server, resend) {
                Some(Err(fault)) => break Err(fault),
                Some(Ok(segment)) if segment.flags & flag::RST != 0 => {
                    break Err(HttpFault::Broken("the server reset the connection".into()));
                }
                Some(Ok(segment)) => {
                    let ahead = theirs.wrapping_sub(segment.seq) as usize;
                    let fin = segment.flags & flag::FIN != 0;
                    // What was received before is passed over; what comes too early comes again.
                    let news = segment.payload.get(ahead..).unwrap_or_default();
                    theirs = theirs.wrapping_add(news.len() as u32);
                    if fin && segment.seq.wrapping_add(segment.payload.len() as u32) == theirs {
                        theirs = theirs.wrapping_add(1);
                        over = true;
                    }
                    if !news.is_empty() {
                        moved = Instant::now();
                        match reader.take(news) {
                            Ok(false) => {}
                            Ok(true) => break Ok(()),
                            Err(why) => break Err(HttpFault::Broken(why)),
                        }
                    }
                    if over {
                        break reader.end().map_err(HttpFault::Broken);
                    }
                    if !segment.payload.is_empty() {
                        let ack = Segment { seq, ack: theirs, flags: flag::ACK, payload: Vec::new() };
                        self.send_segment(port, server, &ack);
                    }
                }
                None => {}
            }
            let now = Instant::now();
            if now.duration_since(moved) > ANSWER_PATIENCE {
                break Err(HttpFault::Stalled(reader.received()));
            }
            if now >= resend {
                resend = now + FIRST_RESEND;
                if reader.received() == 0 {
                    self.send_segment(port, server, &asked);
                }
            }
        };
        let end = match (answer.is_ok(), over) {
            (false, _) => End::Broken,
            (true, false) => End::Whole,
            (true, true) => End::WholeAndOver,
        };
        self.hang_up(port, server, seq, theirs, end);
        answer.map(|()| reader.answer)
    }

    fn is_there(&mut self, address: Ipv4Addr) -> Option<bool> {
        if self.injector.is_some() && self.interface.addr == Some(address) {
            return Some(true);
        }
        let hop = self.hop_address(address);
        let found = self.find(hop).is_some();
        // Whether the router knows the way cannot be asked.
        if hop == address || !found { Some(found) } else { None }
    }
}

/// Puts an answer together from what arrives.
struct AnswerReader {
    head: bool,
    bytes: Vec<u8>,
    received: u64,
    wanted: Option<u64>,
    body_at: Option<usize>,
    answer: Answer,
}

impl AnswerReader {
    fn new(head: bool) -> Self {
        Self { head, bytes: Vec::new(), received: 0, wanted: None, body_at: None, answer: Answer::default() }
    }

    fn received(&self) -> u64 {
        self.received
    }

    /// True when it is whole.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, String> {
        self.received += bytes.len() as u64;
        if self.bytes.len() + bytes.len() > ANSWER_LEN_MAX {
            return Err("the answer is too long".into());
        }
        self.bytes.extend_from_slice(bytes);
        if self.body_at.is_none() {
            let parsed = parse_response_head(&self.bytes);
            let Some(head) = parsed.map_err(|_| "the answer is no HTTP".to_owned())? else {
                return Ok(false);
            };
            self.answer.status = head.status.code();
            self.answer.len = head.content_length;
            self.answer.content_type = head.header("Content-Type").unwrap_or_default().to_owned();
            if let Some(ContentRange::Part { first, last, len }) = head.content_range {
                self.answer.range = Some((first, last, len));
            }
            self.wanted = match head.body(self.head) {
                BodyLength::None => Some(0),
                BodyLength::Exact(len) => Some(len),
                BodyLength::Chunked => return Err("a chunked answer, which no boot firmware takes".into()),
                BodyLength::UntilClose => None,
            };
            self.body_at = Some(head.len);
        }
        let have = (self.bytes.len() - self.body_at.unwrap_or(0)) as u64;
        match self.wanted {
            Some(wanted) if have >= wanted => self.end().map(|()| true),
            _ => Ok(false),
        }
    }

    /// The connection has ended.
    fn end(&mut self) -> Result<(), String> {
        let Some(at) = self.body_at else { return Err("the connection ended in the answer's head".into()) };
        let have = (self.bytes.len() - at) as u64;
        if self.wanted.is_some_and(|wanted| have < wanted) {
            return Err("the connection ended in the answer's body".into());
        }
        let end = self.wanted.map_or(self.bytes.len(), |wanted| at + wanted as usize);
        self.answer.body = self.bytes.get(at..end).unwrap_or_default().to_vec();
        Ok(())
    }
}

/// Ordinary sockets of this host, which is the relay: everything comes from its own address.
pub(super) struct Sockets {
    address: Ipv4Addr,
    sockets: HashMap<u16, UdpSocket>,
    buffer: Vec<u8>,
}

impl Sockets {
    /// `address`: this host's own. Its port 67 is used if it is free; else the server is asked to answer to another one
    /// (RFC 8357).
    pub(super) fn open(address: Ipv4Addr) -> io::Result<Self> {
        let dhcp = UdpSocket::bind((address, 67)).or_else(|_| UdpSocket::bind((address, 0)))?;
        Ok(Self { address, sockets: HashMap::from([(67, dhcp)]), buffer: vec![0; FRAME_LEN_MAX] })
    }
}

impl Carrier for Sockets {
    fn send(&mut self, from_port: u16, to: SocketAddrV4, payload: &[u8]) {
        let socket = match self.sockets.get(&from_port) {
            Some(socket) => socket,
            None => match UdpSocket::bind((self.address, 0)) {
                Ok(socket) => self.sockets.entry(from_port).or_insert(socket),
                Err(_) => return,
            },
        };
        // What cannot be sent is not answered.
        let _ = socket.send_to(payload, to);
    }

    fn hear(&mut self, wait: Duration) -> Option<Heard> {
        let until = Instant::now() + wait;
        loop {
            for (port, socket) in &self.sockets {
                // One after the other for a moment each: there are two or three.
                socket.set_read_timeout(Some(Duration::from_millis(5))).ok()?;
                if let Ok((len, SocketAddr::V4(from))) = socket.recv_from(&mut self.buffer) {
                    let payload = self.buffer.get(..len)?.to_vec();
                    return Some(Heard::Udp { from, to: SocketAddrV4::new(self.address, *port), payload });
                }
            }
            if Instant::now() >= until {
                return None;
            }
        }
    }

    fn settle(&mut self, _: Ipv4Addr, _: u8, _: Option<Ipv4Addr>) {}

    fn http(&mut self, server: SocketAddrV4, request: &str, head: bool) -> Result<Answer, HttpFault> {
        let broken = |error: io::Error| HttpFault::Broken(error.to_string());
        let mut stream = match TcpStream::connect_timeout(&server.into(), CONNECT_PATIENCE) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(HttpFault::Refused),
            Err(_) => return Err(HttpFault::Silent),
        };
        stream.set_read_timeout(Some(ANSWER_PATIENCE)).map_err(broken)?;
        stream.write_all(request.as_bytes()).map_err(broken)?;
        let mut reader = AnswerReader::new(head);
        loop {
            match stream.read(&mut self.buffer) {
                Ok(0) => return reader.end().map(|()| reader.answer).map_err(HttpFault::Broken),
                Ok(len) => {
                    let news = self.buffer.get(..len).unwrap_or_default();
                    if reader.take(news).map_err(HttpFault::Broken)? {
                        return Ok(reader.answer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(HttpFault::Stalled(reader.received()));
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn is_there(&mut self, _: Ipv4Addr) -> Option<bool> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_length_is_there() {
        let mut reader = AnswerReader::new(false);
        assert_eq!(
            reader.take(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-6/9\r\nCont"),
            Ok(false)
        );
        assert_eq!(reader.take(b"ent-Length: 3\r\nContent-Type: text/plain\r\n\r\na"), Ok(false));
        assert_eq!(reader.take(b"bc"), Ok(true));
        assert_eq!(reader.answer.status, 206);
        assert_eq!(reader.answer.range, Some((4, 6, Some(9))));
        assert_eq!(reader.answer.body, b"abc");
        let mut head = AnswerReader::new(true);
        assert_eq!(head.take(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000000\r\n\r\n"), Ok(true));
        assert_eq!((head.answer.len, head.answer.body.len()), (Some(3_000_000_000), 0));
    }

    #[test]
    fn an_answer_that_ends_early_says_where() {
        let mut reader = AnswerReader::new(false);
        assert_eq!(reader.take(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na"), Ok(false));
        assert!(reader.end().unwrap_err().contains("body"));
        assert!(AnswerReader::new(false).end().unwrap_err().contains("head"));
        assert!(AnswerReader::new(false).take(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }
}

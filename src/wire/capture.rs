//! Control packets kept for a capture file: DHCP messages, TFTP requests and their answers, heads of HTTP.
//!
//! What is kept is a message and its two ends. The Ethernet, IPv4, UDP and TCP headers of the file are made anew when
//! it is written ([`Writer`]), because a message read from a socket has none; the file says so. Secrets are taken out
//! before a packet is kept, not when it is shown: a token opens files, and iPXE's DHCP options can hold a password.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::MacAddr;
use super::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_frame};

/// Longest head of a request or an answer that is kept.
const HEAD_MAX: usize = 1024;
/// Longest DHCP message: what fits into an Ethernet frame.
const DHCP_MAX: usize = 1472;
/// Longest TFTP packet: RFC 1350's requests, with room for options.
const TFTP_MAX: usize = 516;
/// Runs of token characters from this length on are taken for tokens.
const TOKEN_RUN: usize = 40;

/// One message and its ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Of TCP; else of UDP.
    pub tcp: bool,
    /// To the machine; else from it.
    pub to_machine: bool,
    /// Sender.
    pub from: SocketAddrV4,
    /// Receiver.
    pub to: SocketAddrV4,
    /// Bytes that followed and are not kept: the body of an HTTP message.
    pub left_out: u64,
    /// The message.
    pub bytes: Box<[u8]>,
}

impl Packet {
    /// A DHCP message.
    pub fn dhcp(from: SocketAddrV4, to: SocketAddrV4, to_machine: bool, bytes: &[u8]) -> Self {
        let mut bytes: Box<[u8]> = bytes[..bytes.len().min(DHCP_MAX)].into();
        mask_dhcp(&mut bytes);
        Self { tcp: false, to_machine, from, to, left_out: 0, bytes }
    }

    /// A TFTP request, OACK or ERROR.
    pub fn tftp(from: SocketAddrV4, to: SocketAddrV4, to_machine: bool, bytes: &[u8]) -> Self {
        let bytes = bytes[..bytes.len().min(TFTP_MAX)].into();
        Self { tcp: false, to_machine, from, to, left_out: 0, bytes }
    }

    /// The head of an HTTP message, of which `bytes` may hold more; `body_len` bytes follow it.
    pub fn http(from: SocketAddrV4, to: SocketAddrV4, to_machine: bool, bytes: &[u8], body_len: u64) -> Self {
        let mut head = mask_head(bytes);
        head.truncate(HEAD_MAX);
        Self { tcp: true, to_machine, from, to, left_out: body_len, bytes: head.into() }
    }

    /// Bytes it takes in memory.
    pub fn footprint(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

/// Blots out iPXE's user name and password (option 175, 190 and 191 in it) of whatever server sent them.
fn mask_dhcp(message: &mut [u8]) {
    const OPTIONS: usize = 240;
    const ENCAPSULATED: u8 = 175;
    let mut at = OPTIONS;
    while let Some(&[code, len]) = message.get(at..at + 2) {
        match code {
            0 => {
                at += 1;
                continue;
            }
            255 => return,
            _ => {}
        }
        let end = (at + 2 + usize::from(len)).min(message.len());
        if code == ENCAPSULATED {
            let mut sub = at + 2;
            while sub + 2 <= end {
                let (code, len) = (message[sub], usize::from(message[sub + 1]));
                let body = sub + 2..(sub + 2 + len).min(end);
                if matches!(code, 190 | 191) {
                    message[body.clone()].fill(b'*');
                }
                sub = body.end.max(sub + 2);
            }
        }
        at = end.max(at + 2);
    }
}

/// Whether a header's value is kept; of all others only the name is. By length, because every line of every head that is
/// kept is asked about.
fn is_value_kept(name: &[u8]) -> bool {
    let kept: &[&str] = match name.len() {
        4 => &["date", "etag", "host"],
        5 => &["range"],
        6 => &["accept", "server"],
        8 => &["if-match", "if-range"],
        10 => &["connection", "keep-alive", "user-agent"],
        11 => &["retry-after"],
        12 => &["content-type"],
        13 => &["accept-ranges", "cache-control", "content-range", "if-none-match", "last-modified"],
        14 => &["content-length"],
        15 => &["accept-encoding"],
        17 => &["if-modified-since", "transfer-encoding"],
        _ => &[],
    };
    kept.iter().any(|kept| kept.as_bytes().eq_ignore_ascii_case(name))
}

/// The head at the front of `bytes`, without tokens and without the values of headers that could hold a secret. Lines
/// that begin behind [`HEAD_MAX`] are left out.
fn mask_head(mut bytes: &[u8]) -> Vec<u8> {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let mut out = Vec::with_capacity(bytes.len().min(HEAD_MAX));
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let start = out.len();
        if start >= HEAD_MAX {
            break;
        }
        if number == 0 {
            mask_request_line(line, &mut out);
        } else {
            match line.iter().position(|byte| *byte == b':') {
                Some(colon) if !is_value_kept(&line[..colon]) => {
                    out.extend_from_slice(&line[..=colon]);
                    out.extend_from_slice(b" *\r\n");
                }
                _ => out.extend_from_slice(line),
            }
        }
        mask_runs(&mut out[start..]);
        if line == b"\r\n" && out[..start].ends_with(b"\r\n") {
            break;
        }
    }
    out
}

fn mask_request_line(line: &[u8], out: &mut Vec<u8>) {
    // A token with characters percent-encoded would look like none: nothing of such a path is kept.
    let encoded = line.contains(&b'%')
        && (line.windows(2).any(|pair| pair == b"/%")
            || line.split(|byte| *byte == b'?').next().is_some_and(|path| path.contains(&b'%')));
    if encoded {
        let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        out.extend_from_slice(&method[..method.len().min(16)]);
        out.extend_from_slice(b" /* HTTP/1.1\r\n");
    } else {
        let start = out.len();
        out.extend_from_slice(line);
        mask_segment(&mut out[start..]);
    }
}

/// Blots out what stands between `/s/` and the next slash.
fn mask_segment(line: &mut [u8]) {
    let Some(at) = line.windows(3).position(|window| window == b"/s/") else { return };
    let rest = &mut line[at + 3..];
    let end =
        rest.iter().position(|byte| matches!(byte, b'/' | b' ' | b'?' | b'\r' | b'\n')).unwrap_or(rest.len());
    rest[..end].fill(b'*');
}

/// Blots out runs of base32 characters as long as a token's. A run that long has one of every [`TOKEN_RUN`] places, so
/// only around those that hold such a character the others are looked at.
fn mask_runs(text: &mut [u8]) {
    let is_token = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'2'..=b'7');
    // No run reaches from before `at` to behind it.
    let mut at = 0;
    while let Some(probe) = text.get(at + TOKEN_RUN - 1) {
        let place = at + TOKEN_RUN - 1;
        if !is_token(probe) {
            at = place + 1;
            continue;
        }
        let start = place - text[at..place].iter().rev().take_while(|byte| is_token(byte)).count();
        let end = place + text[place..].iter().take_while(|byte| is_token(byte)).count();
        if end - start >= TOKEN_RUN {
            text[start..end].fill(b'*');
        }
        at = end;
    }
}

/// The machine's address where it is not known, and everybody else's.
const NOBODY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0]);
/// What the file says about itself.
const COMMENT: &str = "Control packets of one machine's boot as this server saw them. The messages are as they were; the \
                       Ethernet, IPv4, UDP and TCP headers are made anew, and file contents are left out. Tokens and \
                       secrets are blotted out with asterisks.";

/// Writes packets as a pcapng file (draft-ietf-opsawg-pcapng), which Wireshark and tcpdump open.
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
    machine: MacAddr,
    ip_id: u16,
    /// The next sequence number of every sender of every connection.
    sequences: HashMap<(SocketAddrV4, SocketAddrV4), u32>,
}

impl Writer {
    /// A file with no packet yet. `machine` is who the packets are from and to.
    pub fn new(machine: Option<MacAddr>) -> Self {
        let mut writer =
            Self { out: Vec::new(), machine: machine.unwrap_or(NOBODY), ip_id: 0, sequences: HashMap::new() };
        let mut section = Vec::new();
        section.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
        section.extend_from_slice(&[1, 0, 0, 0]);
        section.extend_from_slice(&u64::MAX.to_le_bytes());
        option(&mut section, 1, COMMENT.as_bytes());
        option(&mut section, 4, b"bootstorm");
        section.extend_from_slice(&[0; 4]);
        writer.block(0x0a0d_0d0a, &section);
        // Ethernet, no limit on lengths, microseconds.
        writer.block(1, &[1, 0, 0, 0, 0, 0, 0, 0]);
        writer
    }

    /// Adds a packet. One that cannot be put into a frame is left out.
    pub fn packet(&mut self, at: SystemTime, packet: &Packet) {
        let (frame, original) = match packet.tcp {
            true => self.tcp_frame(packet),
            false => match self.udp_frame(packet) {
                Some(frame) => {
                    let len = frame.len();
                    (frame, len)
                }
                None => return,
            },
        };
        let micros = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as u64;
        let mut body = Vec::with_capacity(frame.len() + 24);
        body.extend_from_slice(&0u32.to_le_bytes());
        body.extend_from_slice(&((micros >> 32) as u32).to_le_bytes());
        body.extend_from_slice(&(micros as u32).to_le_bytes());
        body.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        body.extend_from_slice(&(original as u32).to_le_bytes());
        padded(&mut body, &frame);
        self.block(6, &body);
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    fn block(&mut self, kind: u32, body: &[u8]) {
        let len = (12 + body.len()) as u32;
        self.out.extend_from_slice(&kind.to_le_bytes());
        self.out.extend_from_slice(&len.to_le_bytes());
        self.out.extend_from_slice(body);
        self.out.extend_from_slice(&len.to_le_bytes());
    }

    fn macs(&self, packet: &Packet) -> (MacAddr, MacAddr) {
        let (from, to) = if packet.to_machine { (NOBODY, self.machine) } else { (self.machine, NOBODY) };
        (from, if packet.to.ip().is_broadcast() { MacAddr::BROADCAST } else { to })
    }

    fn udp_frame(&mut self, packet: &Packet) -> Option<Vec<u8>> {
        let (src_mac, dst_mac) = self.macs(packet);
        self.ip_id = self.ip_id.wrapping_add(1);
        let header =
            UdpHeader { src_mac, dst_mac, src: packet.from, dst: packet.to, ttl: 64, ip_id: self.ip_id };
        let mut frame = vec![0; UDP_PAYLOAD_OFFSET + packet.bytes.len()];
        frame[UDP_PAYLOAD_OFFSET..].copy_from_slice(&packet.bytes);
        let len = emit_udp_frame(&mut frame, &header, packet.bytes.len())?;
        frame.truncate(len);
        Some(frame)
    }

    /// The frame and its length before what is left out was cut off. A body is shown as the part of the same packet that
    /// was not kept, as if the capture had been cut short there: so nobody looks for it in the packets behind.
    fn tcp_frame(&mut self, packet: &Packet) -> (Vec<u8>, usize) {
        const HEADERS: usize = 14 + 20 + 20;
        let cut = packet.left_out.min(1400) as usize;
        let (src_mac, dst_mac) = self.macs(packet);
        self.ip_id = self.ip_id.wrapping_add(1);
        let acknowledged = self.sequences.get(&(packet.to, packet.from)).copied().unwrap_or(1);
        let sequence = self.sequences.entry((packet.from, packet.to)).or_insert(1);
        let this = *sequence;
        *sequence = sequence.wrapping_add((packet.bytes.len() as u64 + packet.left_out) as u32);
        let mut frame = Vec::with_capacity(HEADERS + packet.bytes.len());
        frame.extend_from_slice(&dst_mac.0);
        frame.extend_from_slice(&src_mac.0);
        frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
        frame.extend_from_slice(&((40 + packet.bytes.len() + cut) as u16).to_be_bytes());
        frame.extend_from_slice(&self.ip_id.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 64, 6, 0, 0]);
        frame.extend_from_slice(&packet.from.ip().octets());
        frame.extend_from_slice(&packet.to.ip().octets());
        let sum =
            frame[14..34].chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
        let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(&packet.from.port().to_be_bytes());
        frame.extend_from_slice(&packet.to.port().to_be_bytes());
        frame.extend_from_slice(&this.to_be_bytes());
        frame.extend_from_slice(&acknowledged.to_be_bytes());
        // Length of the header, PSH and ACK, a window, no checksum, no urgent pointer.
        frame.extend_from_slice(&[0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend_from_slice(&packet.bytes);
        let len = frame.len();
        (frame, len + cut)
    }
}

fn option(out: &mut Vec<u8>, code: u16, text: &[u8]) {
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    padded(out, text);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "10.77.0.100:1024";
    const SERVER: &str = "10.77.0.1:4433";
    const TOKEN: &str = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrstuvwxyz234567";

    fn addr(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn kept(head: &str) -> String {
        let packet = Packet::http(addr(MACHINE), addr(SERVER), false, head.as_bytes(), 0);
        String::from_utf8(packet.bytes.into()).unwrap()
    }

    #[test]
    fn no_token_is_kept_however_it_is_written() {
        let encoded = TOKEN.replace('a', "%61");
        for head in [
            format!("GET /s/{TOKEN}/images/x/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n"),
            format!("GET /s/{TOKEN} HTTP/1.1\r\n\r\n"),
            format!("GET http://x:1/s/{TOKEN}/images/x?y=z HTTP/1.1\r\n\r\n"),
            format!("GET /S/{TOKEN}/x HTTP/1.1\r\n\r\n"),
            format!("GET /s/{encoded}/images/x HTTP/1.1\r\n\r\n"),
            format!("GET /%73/{TOKEN}/images/x HTTP/1.1\r\n\r\n"),
            format!("GET /x HTTP/1.1\r\nReferer: http://x/s/{TOKEN}/y\r\nUser-Agent: {TOKEN}\r\n\r\n"),
            "GET /x HTTP/1.1\r\nAuthorization: Bearer secret\r\nCookie: a=secret\r\n\r\n".to_owned(),
        ] {
            let text = kept(&head);
            assert!(!text.contains(&TOKEN[..20]) && !text.contains(&encoded[..20]), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
        let text = kept(&format!(
            "GET /s/{TOKEN}/images/x/vmlinuz HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\nBODY"
        ));
        let stars = "*".repeat(64);
        assert_eq!(
            text,
            format!("GET /s/{stars}/images/x/vmlinuz HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n")
        );
        let query = "GET /ipxe?mac=52:54:00:12:34:56&serial=A%20B HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(kept(query), query);
    }

    #[test]
    fn runs_are_blotted_out_as_if_every_byte_were_looked_at() {
        let slow = |text: &[u8]| {
            let mut out = Vec::new();
            let is_token = |byte: &u8| matches!(byte.to_ascii_lowercase(), b'a'..=b'z' | b'2'..=b'7');
            for run in text.chunk_by(|one, other| is_token(one) && is_token(other)) {
                let blotted = run.len() >= TOKEN_RUN;
                out.extend(run.iter().map(|byte| if blotted { b'*' } else { *byte }));
            }
            out
        };
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..20_000 {
            let mut text = Vec::new();
            for _ in 0..next(6) {
                let run = if next(2) == 0 { 36 + next(8) } else { next(100) };
                text.extend((0..run).map(|_| b"aZ27mQ"[next(6) as usize]));
                text.extend((0..next(3)).map(|_| b"/18: "[next(5) as usize]));
            }
            let expected = slow(&text);
            mask_runs(&mut text);
            assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(&expected));
        }
    }

    #[test]
    fn a_run_as_long_as_a_token_is_found_wherever_it_stands() {
        for before in 0..90 {
            for run in [1, TOKEN_RUN - 1, TOKEN_RUN, TOKEN_RUN + 1, 64, 3 * TOKEN_RUN] {
                for (gap, end) in [(1, ""), (TOKEN_RUN - 1, " "), (3, "-ab")] {
                    let text = format!("{}{}{end}", "ab1".repeat(before), "1".repeat(gap));
                    let (front, back) = (&text[..text.len() - end.len()], end);
                    let whole = format!("{front}{}{back}", &TOKEN.repeat(2)[..run]);
                    let mut masked = whole.clone().into_bytes();
                    mask_runs(&mut masked);
                    let mask =
                        if run >= TOKEN_RUN { "*".repeat(run) } else { TOKEN.repeat(2)[..run].to_owned() };
                    assert_eq!(String::from_utf8(masked).unwrap(), format!("{front}{mask}{back}"));
                }
            }
        }
    }

    #[test]
    fn a_head_ends_where_it_ends_and_empty_lines_before_it_hide_nothing() {
        let head = format!("\r\n\r\nGET /s/{TOKEN}/x HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\nBODY: {TOKEN}");
        let stars = "*".repeat(64);
        assert_eq!(kept(&head), format!("GET /s/{stars}/x HTTP/1.1\r\nHost: x\r\nX: *\r\n\r\n"));
        let encoded = "\r\nGET /%73/abc HTTP/1.1\r\n\r\n";
        assert_eq!(kept(encoded), "GET /* HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn a_password_in_dhcp_is_not_kept() {
        let mut message = vec![0; 240];
        message.extend_from_slice(&[
            53, 1, 2, 0, 175, 14, 8, 1, 1, 190, 2, b'm', b'e', 191, 5, b'p', b'a', b's', b's', b'w', 255,
        ]);
        let packet = Packet::dhcp(addr("10.77.0.5:67"), addr("255.255.255.255:68"), true, &message);
        assert_eq!(
            &packet.bytes[240..],
            [53, 1, 2, 0, 175, 14, 8, 1, 1, 190, 2, b'*', b'*', 191, 5, b'*', b'*', b'*', b'*', b'*', 255]
        );
        // Whatever a length says, nothing is read past the end.
        for len in 0..message.len() {
            Packet::dhcp(addr("10.77.0.5:67"), addr("255.255.255.255:68"), true, &message[..len]);
        }
        message[245] = 255;
        message[248] = 255;
        Packet::dhcp(addr("10.77.0.5:67"), addr("255.255.255.255:68"), true, &message);
    }

    #[test]
    fn lengths_are_bounded() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x/".repeat(5_000));
        assert_eq!(kept(&long).len(), HEAD_MAX);
        assert_eq!(Packet::dhcp(addr(MACHINE), addr(SERVER), false, &[1; 9000]).bytes.len(), DHCP_MAX);
        assert_eq!(Packet::tftp(addr(MACHINE), addr(SERVER), false, &[1; 9000]).bytes.len(), TFTP_MAX);
    }

    #[test]
    fn the_file_is_blocks_whose_lengths_add_up_and_frames_that_parse() {
        let mut writer = Writer::new(Some(MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        let at = UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456);
        let request =
            Packet::tftp(addr("10.77.0.100:2000"), addr("10.77.0.1:69"), false, b"\0\x01x\0octet\0");
        writer.packet(at, &request);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
        let answer = Packet::http(addr(SERVER), addr(MACHINE), true, answer, 5_000);
        writer.packet(at, &answer);
        writer.packet(at, &answer);
        let file = writer.finish();
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds, mut frames) = (0, Vec::new(), Vec::new());
        while at < file.len() {
            let len = word(at + 4) as usize;
            assert_eq!(word(at + len - 4) as usize, len);
            kinds.push(word(at));
            if word(at) == 6 {
                assert_eq!(u64::from(word(at + 12)) << 32 | u64::from(word(at + 16)), 1_800_000_000_123_456);
                frames
                    .push((file[at + 28..at + 28 + word(at + 20) as usize].to_vec(), word(at + 24) as usize));
            }
            at += len;
        }
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 6]);
        let udp = super::super::frame::parse_udp_frame(&frames[0].0).unwrap();
        assert_eq!((udp.payload, udp.src, udp.dst), (&request.bytes[..], request.from, request.to));
        assert_eq!(frames[1].1, frames[1].0.len() + 1400, "a cut packet");
        let sequence = |n: usize| u32::from_be_bytes(frames[n].0[38..42].try_into().unwrap());
        assert_eq!(sequence(2) - sequence(1), answer.bytes.len() as u32 + 5_000);
    }
}

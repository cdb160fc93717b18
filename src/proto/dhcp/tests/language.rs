//! The language of `tests/data/dhcp/cases.txt`: what a machine says, and what must come back. Included by the tests that
//! play the cases against the machine, and by those that play them by frames against a running server; both name the
//! `wire` room beside it. `tests/data/dhcp/README.md` says what the words mean.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::wire::MacAddr;
use super::wire::dhcp::{
    Emitter, FLAG_BROADCAST, Header, Message, MessageType, OPTIONS_OFFSET, SubOptions, code,
};

pub(crate) const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);

/// The cases: name, setting, steps.
pub(crate) fn cases() -> Vec<(usize, &'static str, &'static str, &'static str)> {
    let lines = include_str!("../../../../tests/data/dhcp/cases.txt").lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .enumerate()
        .map(|(number, line)| {
            let mut fields = line.splitn(3, '|').map(str::trim);
            let mut field = || fields.next().unwrap_or_else(|| panic!("three fields: {line}"));
            (number, field(), field(), field())
        })
        .collect()
}

/// One thing said.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) bytes: Vec<u8>,
    pub(crate) src: SocketAddrV4,
    pub(crate) src_mac: MacAddr,
    /// `None`: broadcast.
    pub(crate) dst: Option<Ipv4Addr>,
    /// 67 or 4011.
    pub(crate) port: u16,
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    pub(crate) bytes: Vec<u8>,
    /// `bcast`, `link` (to the machine's own hardware address, without ARP), or an address with a port.
    pub(crate) to: String,
    pub(crate) from_port: u16,
}

/// One step: a wait, or something said; then what is expected.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Wait(Duration),
    Say(Said, String),
}

/// A case being played: its machine, and the address it was last given.
#[derive(Debug)]
pub(crate) struct Case {
    number: usize,
    step: u32,
    pub(crate) given: Ipv4Addr,
}

impl Case {
    pub(crate) fn new(number: usize) -> Self {
        Self { number, step: 0, given: Ipv4Addr::UNSPECIFIED }
    }

    fn mac(&self, last: u8) -> MacAddr {
        let [high, low] = (self.number as u16).to_be_bytes();
        MacAddr([0x52, 0x54, 1, high, low, last])
    }

    /// Reads one step of a case.
    pub(crate) fn read(&mut self, text: &str) -> Step {
        if let Some(seconds) = text.trim().strip_prefix('+') {
            return Step::Wait(Duration::from_secs(seconds.parse().expect("seconds")));
        }
        let (said, expected) = text.split_once('>').unwrap_or_else(|| panic!("`said > expected`: {text}"));
        self.step += 1;
        Step::Say(self.say(said), expected.trim().to_owned())
    }

    fn file(&self, text: &str, request: &Message<'_>) -> String {
        match text {
            "0" => String::new(),
            text => text.replace("$mac", &request.mac().map(|mac| mac.to_string()).unwrap_or_default()),
        }
    }

    fn address(&self, text: &str) -> Ipv4Addr {
        match text {
            "us" => US,
            "other" => OTHER,
            "relay" => RELAY,
            "$" => self.given,
            "0" => Ipv4Addr::UNSPECIFIED,
            text => text.parse().unwrap_or_else(|_| panic!("{text} is no address")),
        }
    }

    fn say(&self, text: &str) -> Said {
        let mut words = text.split_whitespace();
        let kind = words.next().expect("a message");
        let words: Vec<&str> = words.collect();
        let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let last = value("mac").map_or(1, |n| n.parse().expect("a last byte"));
        let xid =
            (self.number as u32) << 8 | value("xid").map_or(self.step, |n| n.parse().expect("a number"));
        let mut header = Header::request_from(self.mac(last), xid);
        header.flags = FLAG_BROADCAST;
        let mut buffer = vec![0; 1500];
        for word in &words {
            let (name, text) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "flags" => header.flags = u16::from_str_radix(text, 16).expect("flags"),
                "ci" => header.ciaddr = self.address(text),
                "gi" => header.giaddr = self.address(text),
                "secs" => header.secs = text.parse().expect("secs"),
                "hops" => header.hops = text.parse().expect("hops"),
                _ => {}
            }
        }
        let mut out = Emitter::new(&mut buffer, &header).expect("room");
        let mut put =
            |code, body: &[u8]| out.option(code, body).unwrap_or_else(|| panic!("no room for {code}"));
        let kind = match kind {
            "discover" => Some(MessageType::Discover.code()),
            "offer" => Some(MessageType::Offer.code()),
            "request" => Some(MessageType::Request.code()),
            "decline" => Some(MessageType::Decline.code()),
            "ack" => Some(MessageType::Ack.code()),
            "nak" => Some(MessageType::Nak.code()),
            "release" => Some(MessageType::Release.code()),
            "inform" => Some(MessageType::Inform.code()),
            "bootp" => None,
            number => {
                Some(number.strip_prefix("type=").and_then(|n| n.parse().ok()).expect("a message type"))
            }
        };
        let kind_last = words.contains(&"53-last");
        if let (Some(kind), false) = (kind, kind_last) {
            put(code::MESSAGE_TYPE, &[kind]);
        }
        let uuid = {
            let mut id = [0; 17];
            id[1..3].copy_from_slice(&(self.number as u16).to_be_bytes());
            (id[3], id[16]) = (last, 9);
            id
        };
        let mut firmware = |class: &str, arch: u16, ndi: [u8; 3], ipxe: &[u8]| {
            if !words.contains(&"no60") {
                put(code::VENDOR_CLASS, class.as_bytes());
            }
            if !words.contains(&"no93") {
                put(code::CLIENT_ARCHITECTURE, &arch.to_be_bytes());
            }
            put(code::CLIENT_NDI, &ndi);
            if !words.contains(&"no97") {
                put(code::CLIENT_MACHINE_ID, &uuid);
            }
            if !ipxe.is_empty() {
                put(code::USER_CLASS, b"iPXE");
                put(code::IPXE, ipxe);
            }
        };
        for word in &words {
            match *word {
                "bios" => firmware("PXEClient:Arch:00000:UNDI:002001", 0, [1, 2, 1], &[]),
                "uefi" => firmware("PXEClient:Arch:00007:UNDI:003016", 7, [1, 3, 16], &[]),
                "http" => firmware("HTTPClient:Arch:00016:UNDI:003016", 16, [1, 3, 16], &[]),
                "ipxe" => firmware(
                    "PXEClient:Arch:00000:UNDI:002001",
                    0,
                    [1, 2, 1],
                    &[33, 1, 1, 19, 1, 1, 235, 3, 1, 21, 1],
                ),
                "ipxe-uefi" => {
                    firmware(
                        "PXEClient:Arch:00007:UNDI:003010",
                        7,
                        [1, 3, 10],
                        &[36, 1, 1, 19, 1, 1, 39, 1, 1],
                    );
                }
                "ipxe-tftp" => {
                    firmware("PXEClient:Arch:00000:UNDI:002001", 0, [1, 2, 1], &[33, 1, 1, 21, 1, 1])
                }
                _ => {}
            }
        }
        for word in &words {
            let (name, text) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "want" => put(code::REQUESTED_ADDRESS, &self.address(text).octets()),
                "sid" => put(code::SERVER_ID, &self.address(text).octets()),
                "size" => put(code::MAX_SIZE, &text.parse::<u16>().expect("a size").to_be_bytes()),
                name => {
                    if let Ok(code) = name.parse::<u8>() {
                        put(code, &bytes(text));
                    }
                }
            }
        }
        if let (Some(kind), true) = (kind, kind_last) {
            put(code::MESSAGE_TYPE, &[kind]);
        }
        let len = out.finish().expect("room");
        buffer.truncate(len);
        for word in &words {
            match word.split_once('=') {
                Some(("cut", len)) => buffer.truncate(len.parse().expect("a length")),
                Some(("grow", len)) => buffer.resize(len.parse().expect("a length"), 0),
                Some(("options", hex)) => {
                    buffer.truncate(OPTIONS_OFFSET);
                    buffer.extend(bytes(hex));
                }
                Some(("at", change)) => {
                    let (at, hex) = change.split_once(':').expect("at=OFFSET:HEX");
                    let (at, hex) = (at.parse::<usize>().expect("an offset"), bytes(hex));
                    buffer[at..at + hex.len()].copy_from_slice(&hex);
                }
                _ => {}
            }
        }
        let relayed = !header.giaddr.is_unspecified();
        let boot_server = words.contains(&"4011");
        let src = value("src").map(|text| match text.split_once(':') {
            Some((ip, port)) => SocketAddrV4::new(self.address(ip), port.parse().expect("a port")),
            None => SocketAddrV4::new(self.address(text), 68),
        });
        let src = src.unwrap_or_else(|| match relayed {
            true => SocketAddrV4::new(header.giaddr, 67),
            false => SocketAddrV4::new(header.ciaddr, 68),
        });
        let unicast = relayed || boot_server || words.contains(&"unicast");
        Said {
            bytes: buffer,
            src,
            src_mac: self.mac(last),
            dst: unicast.then_some(US),
            port: if boot_server { 4011 } else { 67 },
        }
    }

    /// Looks at what came back; what is wrong, if something is.
    pub(crate) fn check(&mut self, said: &Said, expected: &str, came: Option<&Came>) -> Result<(), String> {
        let mut words = expected.split_whitespace();
        let kind = words.next().expect("an answer, or -");
        let (kind, came) = match (kind, came) {
            ("-", None) => return Ok(()),
            ("-", Some(came)) => {
                return Err(format!("silence is right, not {:?}", Message::parse(&came.bytes)));
            }
            (kind, None) => return Err(format!("silence, not {kind}")),
            (kind, Some(came)) => (kind, came),
        };
        let reply = Message::parse(&came.bytes).map_err(|error| format!("the answer: {error}"))?;
        let request = Message::parse(&said.bytes).map_err(|error| format!("answered although {error}"))?;
        every_reply(&request, &reply, came)?;
        let wanted = match kind {
            "offer" => MessageType::Offer,
            "ack" => MessageType::Ack,
            "nak" => MessageType::Nak,
            other => panic!("{other} is no answer"),
        };
        if reply.message_type() != Some(wanted) {
            return Err(format!("{:?}, not {kind}", reply.message_type()));
        }
        for word in words {
            let (name, text) = word.split_once('=').unwrap_or_else(|| panic!("NAME=VALUE: {word}"));
            let found = match name {
                "yi" | "ci" | "si" | "gi" => {
                    let ip = match name {
                        "yi" => reply.yiaddr(),
                        "ci" => reply.ciaddr(),
                        "si" => reply.siaddr(),
                        _ => reply.giaddr(),
                    };
                    match text {
                        "any" if !ip.is_unspecified() => continue,
                        "any" => ip.to_string(),
                        _ if ip == self.address(text) => continue,
                        _ => ip.to_string(),
                    }
                }
                "file" if reply.file() == self.file(text, &request).as_bytes() => continue,
                "file" => reply.file().escape_ascii().to_string(),
                "flags" if reply.flags() == u16::from_str_radix(text, 16).expect("flags") => continue,
                "flags" => format!("{:04x}", reply.flags()),
                "to" if came.to == text.replace('$', &self.given.to_string()) => continue,
                "to" => came.to.clone(),
                "from" if came.from_port.to_string() == text => continue,
                "from" => came.from_port.to_string(),
                "max" if came.bytes.len() <= text.parse().expect("a length") => continue,
                "max" => format!("{} bytes", came.bytes.len()),
                "last"
                    if reply.options().last().map(|(code, _)| code.to_string()).as_deref() == Some(text) =>
                {
                    continue;
                }
                "last" => format!("{:?}", reply.options().last()),
                code => {
                    let body =
                        reply.option(code.parse().unwrap_or_else(|_| panic!("{code} is nothing known")));
                    match (text, body) {
                        ("0", None) | ("any", Some(_)) => continue,
                        ("0" | "any", body) => format!("{body:02x?}"),
                        (text, Some(body)) if bytes(text) == body => continue,
                        (_, body) => body.map_or("nothing".into(), |body| format!("{body:02x?}")),
                    }
                }
            };
            return Err(format!("{name}={found}, not {text}"));
        }
        if !reply.yiaddr().is_unspecified() {
            self.given = reply.yiaddr();
        }
        Ok(())
    }
}

/// What holds for every reply, whoever asked: RFC 2131 table 3, RFC 3046 §2.2, and what firmware needs.
fn every_reply(request: &Message<'_>, reply: &Message<'_>, came: &Came) -> Result<(), String> {
    let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("every reply: {what}")) };
    must(reply.op() == 2, "op is 2")?;
    must(reply.xid() == request.xid(), "the request's xid")?;
    must(reply.chaddr() == request.chaddr(), "the request's chaddr")?;
    must((reply.htype(), reply.hlen()) == (request.htype(), request.hlen()), "the request's htype and hlen")?;
    must(reply.giaddr() == request.giaddr(), "the request's giaddr")?;
    must((reply.hops(), reply.secs()) == (0, 0), "hops and secs are 0")?;
    must(reply.flags() & request.flags() == request.flags(), "the request's flags")?;
    must((300..=1472).contains(&came.bytes.len()), "300 to 1472 bytes")?;
    let codes: Vec<u8> = reply.options().map(|(code, _)| code).collect();
    must(codes.first() == Some(&code::MESSAGE_TYPE), "53 first")?;
    must(codes.contains(&code::SERVER_ID), "54")?;
    must((1..codes.len()).all(|at| !codes[..at].contains(&codes[at])), "no option twice")?;
    must(!codes.contains(&code::OVERLOAD) && !codes.contains(&code::BOOT_FILE_SIZE), "neither 52 nor 13")?;
    must(reply.option(code::RELAY_AGENT) == request.option(code::RELAY_AGENT), "82 as it came")?;
    must(request.option(code::RELAY_AGENT).is_none() || codes.last() == Some(&code::RELAY_AGENT), "82 last")?;
    must(reply.boot_file_option().unwrap_or_default() == reply.file(), "file and 67 agree")?;
    must(reply.option(code::BOOT_FILE).is_none_or(|body| body.last() == Some(&0)), "67 ends in NUL")?;
    must(reply.file().is_empty() || !reply.siaddr().is_unspecified(), "a file has a server")?;
    if let Some(vendor) = reply.option(code::VENDOR_SPECIFIC) {
        must(vendor.last() == Some(&255), "43 ends in 255")?;
        must(
            SubOptions::encapsulated(vendor).first(6) == Some([8].as_slice()),
            "43.6 is 8: no menu, no discovery",
        )?;
    }
    let pxe = reply.option(code::VENDOR_CLASS).is_some_and(|class| class == b"PXEClient");
    must(!pxe || reply.option(code::VENDOR_SPECIFIC).is_some(), "60=PXEClient has 43")
}

/// `0a0b`, `t:text`, or `ip:10.0.0.1,...`.
fn bytes(text: &str) -> Vec<u8> {
    if let Some(text) = text.strip_prefix("t:") {
        return text.as_bytes().to_vec();
    }
    if let Some(list) = text.strip_prefix("ip:") {
        return list.split(',').flat_map(|ip| ip.parse::<Ipv4Addr>().expect("an address").octets()).collect();
    }
    let digits: Vec<char> = text.chars().collect();
    let pair = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
    digits.chunks(2).map(|p| pair(p).unwrap_or_else(|_| panic!("{text} is not hex"))).collect()
}

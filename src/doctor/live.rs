//! A boot acted against the running server, hop by hop, by a machine that exists nowhere else.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::link::{Answer, Carrier, Frames, HttpFault, Sockets};
use super::offers::{self, Answerer, Offered};
use super::packet::Heard;
use super::probe::{self, Block};
use super::{Finding, Hop, machine};
use crate::client::{Command, Config, Input, Kind, Machine, Outcome, Patience, Relay};
use crate::jobs::machine::VISITOR_PREFIX;
use crate::sys::SysError;
use crate::sys::interfaces::Interface;
use crate::wire::dhcp::{Emitter, Header, Message, MessageType, OP_REPLY, code};
use crate::wire::tftp::{Packet, data_header};
use crate::wire::{MacAddr, Uuid};

/// A boot that has not got to its script by then is looked at as it stands.
const BOOT_PATIENCE: Duration = Duration::from_secs(14);
/// Without one usable answer to DHCP it is given up earlier: one retry of a firmware's four.
const DHCP_PATIENCE: Duration = Duration::from_millis(6_500);
/// First of the machine's own TFTP ports.
const FIRST_PORT: u16 = 20_000;
/// Bytes of an image that are fetched at each end.
pub const IMAGE_PART: u64 = 64 * 1024;
/// Offers that are looked at after one DISCOVER; EDK2 keeps 16.
const OFFERS_MAX: usize = 64;
/// What the relay that is acted says of the machine's port.
const CIRCUIT: &[u8] = b"bootstorm doctor";

/// How the machine reaches the network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// By frames of its own on this interface.
    Frames {
        /// The interface.
        interface: Interface,
        /// The server is on this host.
        here: bool,
    },
    /// Behind a relay that is looked at from the server's own host.
    RelayFromServer {
        /// The interface that leads to the relay.
        interface: Interface,
        /// The relay's address on the machines' network.
        relay: Ipv4Addr,
    },
    /// Behind a relay that is this very host.
    RelayIsHere {
        /// Its address on the machines' network.
        relay: Ipv4Addr,
    },
}

/// An image file whose two ends are to arrive as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageFile {
    /// `NAME/FILE`.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// Its first [`IMAGE_PART`] bytes, or all of it.
    pub first: Vec<u8>,
    /// Its last ones.
    pub last: Vec<u8>,
}

/// What is to be acted.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Firmware.
    pub kind: Kind,
    /// How it reaches the network.
    pub way: Way,
    /// The server's address; `None` takes whoever answers like one.
    pub server: Option<Ipv4Addr>,
    /// DHCP's port and the boot server's.
    pub dhcp: (u16, u16),
    /// TFTP's, if it listens.
    pub tftp: Option<u16>,
    /// HTTP's, if it listens.
    pub http: Option<u16>,
    /// Names of loaders this server hands out.
    pub loaders: Vec<String>,
    /// The image that is fetched from, if there is one.
    pub image: Option<ImageFile>,
}

/// What came of it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Story {
    /// Firmware.
    pub kind: Kind,
    /// The machine's address on the wire.
    pub mac: MacAddr,
    /// The server that was looked at.
    pub server: Option<Ipv4Addr>,
    /// Its steps.
    pub hops: Vec<Hop>,
    /// Everybody who offered it anything.
    pub answerers: Vec<Answerer>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Why nothing could be acted.
#[derive(Debug)]
pub enum LiveError {
    /// A system call failed.
    Sys(SysError),
    /// Something else.
    Io(io::Error),
}

impl From<SysError> for LiveError {
    fn from(error: SysError) -> Self {
        Self::Sys(error)
    }
}

impl std::fmt::Display for LiveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sys(error) => match error.advice() {
                Some(advice) => write!(f, "{error}; {advice}"),
                None => write!(f, "{error}"),
            },
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for LiveError {}

impl LiveError {
    /// True when a privilege is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Sys(error) => error.is_permission(),
            Self::Io(error) => error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
}

/// One DISCOVER with everything that came of it.
struct Round {
    speaks: Kind,
    xid: u32,
    started: Instant,
    offers: Vec<Offered>,
}

struct Lease {
    address: Ipv4Addr,
    server: Ipv4Addr,
}

struct Session<'a> {
    ask: &'a Ask,
    carrier: Box<dyn Carrier>,
    machine: Machine,
    mac: MacAddr,
    relay: Option<Relay>,
    started: Instant,
    hops: Vec<Hop>,
    rounds: Vec<Round>,
    lease: Option<Lease>,
    /// Option 82 as sent, and whether every relayed answer had it.
    circuit_came_back: Option<bool>,
    /// The loader's request: where to and for what.
    loader: Option<(SocketAddrV4, String)>,
    loader_refused: bool,
    blksize: usize,
    loaded: bool,
    scripts: u32,
    http_fault: Option<(SocketAddrV4, String, HttpFault)>,
    last_status: u16,
    outcome: Option<Outcome>,
    next_port: u16,
}

/// Acts it. `drops`: the server's counters of DHCP messages it left without an answer, by reason; empty where they
/// cannot be had.
///
/// # Errors
/// When there is no way to the network; everything else is a finding.
pub fn run(ask: &Ask, drops: &dyn Fn() -> BTreeMap<String, u64>) -> Result<Story, LiveError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| LiveError::Io(io::Error::other(error.to_string())))?;
    let seed = u64::from_ne_bytes(random);
    let [a, b, c] = VISITOR_PREFIX;
    let mac = MacAddr([a, b, c, random[0], random[1], random[2]]);
    let relay = |giaddr| Relay { giaddr, circuit: CIRCUIT.to_vec() };
    let (carrier, relay): (Box<dyn Carrier>, Option<Relay>) = match &ask.way {
        Way::Frames { interface, here } => {
            (Box::new(Frames::open(interface.clone(), mac, *here, false, seed)?), None)
        }
        Way::RelayFromServer { interface, relay: giaddr } => {
            let mut frames = Frames::open(interface.clone(), mac, true, true, seed)?;
            frames.settle(*giaddr, 32, None);
            (Box::new(frames), Some(relay(*giaddr)))
        }
        Way::RelayIsHere { relay: giaddr } => {
            (Box::new(Sockets::open(*giaddr).map_err(LiveError::Io)?), Some(relay(*giaddr)))
        }
    };
    let quick = Patience {
        discover: Duration::from_secs(4),
        discover_ipxe: Duration::from_secs(1),
        proxy_ipxe: Duration::from_secs(2),
        request: Duration::from_millis(400),
        tftp: Duration::from_millis(500),
        tftp_ipxe: Duration::from_millis(50),
    };
    let config =
        Config { kind: ask.kind, mac, uuid: Uuid([0; 16]), serial: String::new(), patience: quick, seed };
    let before = drops();
    let mut session = Session {
        ask,
        carrier,
        machine: Machine::new(config),
        mac,
        relay,
        started: Instant::now(),
        hops: Vec::new(),
        rounds: Vec::new(),
        lease: None,
        circuit_came_back: None,
        loader: None,
        loader_refused: false,
        blksize: 512,
        loaded: false,
        scripts: 0,
        http_fault: None,
        last_status: 0,
        outcome: None,
        next_port: 30_000 + u16::from(random[3]) * 64,
    };
    session.act();
    let reasons = drops().into_iter().filter(|(reason, count)| before.get(reason).unwrap_or(&0) < count);
    let reasons: Vec<String> = reasons.map(|(reason, _)| reason).collect();
    let story = session.judge(&reasons);
    session.release();
    Ok(story)
}

impl Session<'_> {
    fn hop(&mut self, name: impl Into<String>, note: impl Into<String>) {
        let at_ms = self.started.elapsed().as_millis() as u64;
        self.hops.push(Hop { name: name.into(), at_ms, note: note.into() });
    }

    /// Until the script has come, or the boot is over.
    fn act(&mut self) {
        self.machine.start(self.started);
        loop {
            while let Some(command) = self.machine.poll_command() {
                self.carry_out(command);
            }
            let now = Instant::now();
            let lasted = now.duration_since(self.started);
            let heard_nothing = self.lease.is_none() && lasted > DHCP_PATIENCE;
            if self.outcome.is_some() || heard_nothing || lasted > BOOT_PATIENCE {
                return;
            }
            let due = self.machine.poll_timeout().unwrap_or(now + Duration::from_millis(200));
            // A script that waits has been fetched, which is all that is asked here.
            if self.scripts > 1 && due > now + Duration::from_secs(1) {
                return;
            }
            let wait = due.saturating_duration_since(now).clamp(Duration::from_millis(1), DHCP_PATIENCE);
            if let Some(heard) = self.carrier.hear(wait.min(Duration::from_millis(500))) {
                self.take(&heard);
            }
            self.machine.handle_timeout(Instant::now());
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Dhcp { to, bytes } if to.ip().is_broadcast() => self.send_dhcp(&bytes),
            Command::Dhcp { to, bytes } => {
                let from = if self.ask.kind == Kind::Uefi { 4011 } else { 68 };
                self.carrier.send(from, SocketAddrV4::new(*to.ip(), self.ask.dhcp.1), &bytes);
            }
            Command::Tftp { socket, to, bytes } => {
                let port = if to.port() == 69 { self.ask.tftp.unwrap_or(69) } else { to.port() };
                let to = SocketAddrV4::new(*to.ip(), port);
                if let Ok(Packet::Request(request)) = Packet::parse(&bytes) {
                    self.loader = Some((to, String::from_utf8_lossy(request.name).into_owned()));
                    self.blksize = 512;
                }
                self.carrier.send(tftp_port(socket), to, &bytes);
            }
            Command::Http { id, method, server, path, user_agent } => {
                // The boot's own URLs are its image's: a visitor has no business there.
                if path.starts_with("/s/") {
                    self.outcome = Some(Outcome::Local);
                    return;
                }
                self.http_for_machine(id, method, server, &path, user_agent);
            }
            Command::UseAddress(_) => {}
            Command::Stage(stage) => {
                self.loaded |= stage.name.starts_with("loader");
                self.scripts += u32::from(stage.name == "script");
                let size = if stage.bytes > 0 { format!("{} bytes ", stage.bytes) } else { String::new() };
                self.hop(stage.name, format!("{size}{}", stage.note).trim_end().to_owned());
            }
            Command::Done(outcome) => self.outcome = Some(outcome),
        }
    }

    fn send_dhcp(&mut self, bytes: &[u8]) {
        if let Ok(message) = Message::parse(bytes)
            && message.message_type() == Some(MessageType::Discover)
            && self.rounds.last().is_none_or(|round| round.xid != message.xid())
        {
            let speaks = if message.option(code::USER_CLASS).is_some() { Kind::Ipxe } else { self.ask.kind };
            let round = Round { speaks, xid: message.xid(), started: Instant::now(), offers: Vec::new() };
            self.rounds.push(round);
        }
        match (&self.relay, self.ask.server) {
            (Some(relay), Some(server)) => {
                if let Some(relayed) = relay.to_server(bytes) {
                    self.carrier.send(67, SocketAddrV4::new(server, self.ask.dhcp.0), &relayed);
                }
            }
            _ => self.carrier.send(68, SocketAddrV4::new(Ipv4Addr::BROADCAST, self.ask.dhcp.0), bytes),
        }
    }

    fn take(&mut self, heard: &Heard) {
        let now = Instant::now();
        match heard {
            Heard::Udp { from, to, payload } if [67, 68, 4011].contains(&to.port()) => {
                self.take_dhcp(now, *from, payload);
            }
            Heard::Udp { from, to, payload } if (FIRST_PORT..FIRST_PORT + 5_000).contains(&to.port()) => {
                let socket = u32::from(to.port() - FIRST_PORT);
                if let Ok(Packet::Oack(options)) = Packet::parse(payload) {
                    self.blksize = options.blksize.map_or(512, usize::from);
                }
                // A window that the card is to cut comes as one.
                let is_data = payload.get(..2) == data_header(0).get(..2);
                let len = if is_data { self.blksize + 4 } else { payload.len().max(1) };
                for bytes in payload.chunks(len) {
                    self.machine.handle(now, Input::Tftp { socket, from: *from, bytes });
                }
            }
            Heard::Unreachable { to, .. } if self.loader.as_ref().is_some_and(|(server, _)| server == to) => {
                self.loader_refused = true;
            }
            _ => {}
        }
    }

    fn take_dhcp(&mut self, now: Instant, from: SocketAddrV4, payload: &[u8]) {
        let relayed;
        let mut bytes = payload;
        let Ok(message) = Message::parse(payload) else { return };
        if message.op() != OP_REPLY || message.mac() != Some(self.mac) {
            return;
        }
        if self.relay.is_some() {
            let came_back = message
                .option(code::RELAY_AGENT)
                .is_some_and(|agent| agent.windows(CIRCUIT.len()).any(|part| part == CIRCUIT));
            self.circuit_came_back = Some(self.circuit_came_back.unwrap_or(true) && came_back);
            relayed = Relay::to_machine(payload);
            bytes = relayed.as_deref().unwrap_or(payload);
        }
        let kind = message.message_type();
        if let Some(round) = self.rounds.last_mut()
            && round.xid == message.xid()
            && kind == Some(MessageType::Offer)
            && round.offers.len() < OFFERS_MAX
        {
            let after_ms = now.duration_since(round.started).as_millis() as u64;
            round.offers.push(Offered { from, after_ms, bytes: bytes.to_vec() });
        }
        if kind == Some(MessageType::Ack) && !message.yiaddr().is_unspecified() {
            let address = message.yiaddr();
            let prefix = message
                .option_ipv4(code::SUBNET_MASK)
                .map_or(24, |mask| u32::from(mask).leading_ones() as u8);
            let router = message.option_ipv4(code::ROUTER);
            self.carrier.settle(address, prefix, router);
            self.lease = Some(Lease { address, server: message.server_id().unwrap_or(*from.ip()) });
        }
        // Tests use other ports than 67 and 4011, which the machine does not know.
        let port = if from.port() == self.ask.dhcp.1 { 4011 } else { 67 };
        self.machine.handle(now, Input::Dhcp { from: SocketAddrV4::new(*from.ip(), port), bytes });
    }

    fn http_for_machine(
        &mut self,
        id: u32,
        method: &str,
        server: SocketAddrV4,
        path: &str,
        user_agent: &str,
    ) {
        let answer =
            self.carrier.http(server, &request(method, server, path, user_agent, ""), method == "HEAD");
        let now = Instant::now();
        match answer {
            Ok(Answer { status, len, content_type, body, .. }) => {
                self.last_status = status;
                self.machine.handle(now, Input::HttpHead { id, status, len, content_type: &content_type });
                self.machine.handle(now, Input::HttpBody { id, bytes: &body });
                self.machine.handle(now, Input::HttpEnd { id });
            }
            Err(fault) => {
                // iPXE's scripts try again and again; what is wrong is known the first time.
                self.http_fault = Some((server, path.to_owned(), fault));
                self.outcome = Some(Outcome::Failed(format!("no answer from http://{server}{path}")));
            }
        }
    }

    /// Gives the address back.
    fn release(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let mut buffer = [0; 600];
        let mac = self.mac;
        let message = |buffer: &mut [u8]| {
            let mut header = Header::request_from(mac, 0xd0c7_0007);
            header.ciaddr = lease.address;
            let mut out = Emitter::new(buffer, &header)?;
            out.option(code::MESSAGE_TYPE, &[MessageType::Release.code()])?;
            out.option(code::SERVER_ID, &lease.server.octets())?;
            out.finish()
        };
        let Some(len) = message(&mut buffer) else { return };
        let bytes = buffer.get(..len).unwrap_or_default();
        match &self.relay {
            Some(relay) => {
                if let Some(relayed) = relay.to_server(bytes) {
                    self.carrier.send(67, SocketAddrV4::new(lease.server, self.ask.dhcp.0), &relayed);
                }
            }
            None => self.carrier.send(68, SocketAddrV4::new(lease.server, self.ask.dhcp.0), bytes),
        }
    }

    fn is_like_ours(&self, answerer: &Answerer) -> bool {
        let file = answerer.file.as_str();
        file.contains("/ipxe?mac=")
            || file.contains("/loaders/")
            || self.ask.loaders.iter().any(|name| name == file)
    }

    fn judge(&mut self, reasons: &[String]) -> Story {
        let mut findings = Vec::new();
        let first: &[Offered] = self.rounds.first().map_or(&[], |round| &round.offers);
        let all = offers::answerers(self.ask.kind, first, &|_| false);
        let like_ours = || all.iter().find(|answerer| self.is_like_ours(answerer)).map(|found| found.server);
        let server = self.ask.server.or_else(like_ours);
        let ours = |address: Ipv4Addr| Some(address) == server;
        let mut answerers = offers::answerers(self.ask.kind, first, &ours);
        findings.extend(offers::judge(self.ask.kind, &answerers));
        // What an iPXE hears decides differently.
        if let Some(round) = self.rounds.iter().skip(1).find(|round| round.speaks == Kind::Ipxe) {
            let second = offers::answerers(Kind::Ipxe, &round.offers, &ours);
            for finding in offers::judge(Kind::Ipxe, &second) {
                if !findings.iter().any(|known: &Finding| known.name == finding.name) {
                    findings.push(finding);
                }
            }
            for answerer in second {
                if !answerers.iter().any(|known| known.server == answerer.server) {
                    answerers.push(answerer);
                }
            }
        }
        let beaten = !findings.is_empty();
        self.judge_dhcp(&answerers, server, reasons, beaten, &mut findings);
        if self.circuit_came_back == Some(false) {
            findings.push(Finding::wrong(
                "relay-drops-option-82",
                "option 82 was sent to the server, and is not in its answer",
                "a relay or switch on the way takes it out: relays drop such answers, and --circuit rules never match",
                "on the relay: keep option 82 (Cisco: ip dhcp relay information trusted; Linux dhcrelay: -a without -m discard)",
            ));
        }
        if let Some(server) = server.filter(|_| !beaten) {
            self.judge_loader(server, &mut findings);
            self.judge_http(server, &mut findings);
        }
        if findings.is_empty() {
            findings.extend(self.broke_off(&answerers));
        }
        if let (Some(server), Some(_)) = (server, &self.lease) {
            self.probe(server, &answerers, &mut findings);
        }
        Story {
            kind: self.ask.kind,
            mac: self.mac,
            server,
            hops: std::mem::take(&mut self.hops),
            answerers,
            findings,
        }
    }

    /// A boot that did not come to its script, for a reason that nothing above has named.
    fn broke_off(&self, answerers: &[Answerer]) -> Option<Finding> {
        let why = match &self.outcome {
            // What a script does then is its own affair: a shell, the power off.
            _ if self.scripts > 0 => return None,
            Some(Outcome::Booted { .. } | Outcome::Local) => return None,
            Some(Outcome::Failed(why)) => why.clone(),
            None => "nothing more was heard".to_owned(),
        };
        let kind = machine(self.ask.kind);
        // One that was late may not have been asked yet.
        let in_time = |answerer: &&Answerer| answerer.address.is_some() && answerer.after_ms < 3_000;
        let offerer = answerers.iter().find(in_time);
        Some(match offerer.filter(|_| self.lease.is_none()) {
            Some(offerer) => Finding::wrong(
                "no-ack",
                format!(
                    "{} offers {kind} an address, and its REQUEST is not acknowledged: {why}",
                    offerer.server
                ),
                "that server, or another one, refuses it (an allow list, a pool that is used up meanwhile, one that calls \
                 itself authoritative), or a switch drops it (DHCP snooping)",
                format!(
                    "look into the log of {}; tcpdump -vni IF port 67 shows who answers what",
                    offerer.server
                ),
            ),
            None => Finding::wrong(
                "boot-broken-off",
                format!("the boot of {kind} ended before it had its script: {why}"),
                "what came last is the last hop that --verbose shows",
                format!("bootstorm explain {}; journalctl -u bootstorm", self.mac),
            ),
        })
    }

    fn judge_dhcp(
        &self,
        answerers: &[Answerer],
        server: Option<Ipv4Addr>,
        reasons: &[String],
        beaten: bool,
        findings: &mut Vec<Finding>,
    ) {
        let kind = machine(self.ask.kind);
        let whom = server.map_or_else(|| "the server".to_owned(), |server| server.to_string());
        let said = |reason: &str| reasons.iter().any(|said| said == reason);
        let ours = answerers.iter().find(|answerer| answerer.ours);
        if said("pool-exhausted") || said("pool-kept") {
            findings.push(Finding::wrong(
                "full-pool",
                format!("{whom} has no address left to give"),
                "every address of the range is leased, held for an offer, or kept for registered machines",
                "widen range in [[dhcp.subnet]], or shorten lease there",
            ));
            return;
        }
        if said("unknown-subnet") {
            let network = self.relay.as_ref().map_or_else(
                || "this interface's network".to_owned(),
                |relay| format!("the network of relay {}", relay.giaddr),
            );
            findings.push(Finding::wrong(
                "unknown-subnet",
                format!("{whom} does not know {network}"),
                "in full mode addresses are given inside listed subnets only",
                "add a [[dhcp.subnet]] with that network and a range",
            ));
            return;
        }
        if ours.is_none() && (said("silent") || said("excluded")) {
            findings.push(Finding::note(
                "policy-silent",
                format!("{whom} leaves machines without a job unanswered, as [policy] says"),
                "bootstorm job add IMAGE --mac MAC gives one machine a boot",
            ));
            return;
        }
        if answerers.is_empty() {
            let (cause, mend) = match &self.relay {
                Some(relay) => (
                    format!("no way from the server back to {}, a filter on UDP 67 between, or another server", relay.giaddr),
                    format!("run on the server: bootstorm doctor --relay {}", relay.giaddr),
                ),
                None => (
                    "the server is not on this network, answers on another interface, or UDP 67 is filtered".to_owned(),
                    "on the server: bootstorm doctor, and journalctl -u bootstorm; between: tcpdump -ni IF port 67".to_owned(),
                ),
            };
            findings.push(Finding::wrong(
                "dhcp-silent",
                format!("nobody answers the DISCOVER of {kind} (PXE-E51)"),
                cause,
                mend,
            ));
            return;
        }
        if !answerers.iter().any(|answerer| answerer.address.is_some()) {
            findings.push(Finding::wrong(
                "no-address",
                format!("{whom} offers a boot, but nobody offers an address (PXE-E51)"),
                "in proxy mode another DHCP server has to give addresses, and none answers here",
                "start that DHCP server, or let this one give addresses: [dhcp] mode = \"full\" and a [[dhcp.subnet]]",
            ));
            return;
        }
        let nothing = ours.is_none_or(|ours| ours.file.is_empty());
        if nothing && !beaten {
            let no_loader = said("no-boot") || said("no-boot-file") || ours.is_some();
            findings.push(match no_loader {
                true => Finding::wrong(
                    "missing-loader",
                    format!("{whom} names no boot file for {kind} (PXE-E53)"),
                    "no loader for this firmware is in the loader folders",
                    "apt-get install ipxe, or put one into a folder of [loaders] dirs",
                ),
                false => Finding::wrong(
                    "dhcp-silent",
                    format!("{whom} does not answer the DISCOVER of {kind}; others do"),
                    "the server does not run, answers on another interface, or UDP 67 is filtered on its host",
                    "on the server: bootstorm doctor",
                ),
            });
        }
    }

    /// Why the loader did not come, if it did not.
    fn judge_loader(&mut self, server: Ipv4Addr, findings: &mut Vec<Finding>) {
        let Some((asked, name)) = self.loader.clone() else { return };
        if self.loaded {
            return;
        }
        let why = match &self.outcome {
            Some(Outcome::Failed(why)) => why.clone(),
            _ => "no answer".to_owned(),
        };
        if *asked.ip() != server {
            let there = self.carrier.is_there(*asked.ip());
            let how = if there == Some(false) { "where nobody is" } else { "which does not serve it" };
            findings.push(Finding::wrong(
                "wrong-next-server",
                format!("the boot file {name:?} is to be fetched from {}, {how} (PXE-E32)", asked.ip()),
                format!("next_server is {}, and the server is {server}", asked.ip()),
                "take next_server out of [[dhcp.subnet]], or set it to an address of the server",
            ));
            return;
        }
        if why.contains("file not found") {
            findings.push(Finding::wrong(
                "loader-not-found",
                format!("{asked} has no file {name:?} (PXE-T01)"),
                "the loader was there when it was offered, or another server answers on this port",
                "bootstorm doctor on the server; ls the folders of [loaders] dirs",
            ));
            return;
        }
        if self.loader_refused {
            findings.push(Finding::wrong(
                "tftp-refused",
                format!("nobody listens on UDP {} of {server} (PXE-E32)", asked.port()),
                "the server has no TFTP listener there, or a filter refuses it",
                "on the server: ss -lunp 'sport = :69'; [tftp] listen",
            ));
            return;
        }
        let small = self.block(asked, &name, 512);
        if small == Block::Arrived {
            self.mtu_hole(asked, &name, findings);
            return;
        }
        findings.push(Finding::wrong(
            "tftp-blocked",
            format!("UDP {} of {server} does not answer (PXE-E32): {why}", asked.port()),
            "a packet filter on the server's host or between drops TFTP",
            format!("on the server: nft list ruleset; let UDP {} and answers to it through", asked.port()),
        ));
    }

    fn block(&mut self, server: SocketAddrV4, name: &str, blksize: u16) -> Block {
        self.next_port += 1;
        probe::block(&mut *self.carrier, server, name, blksize, self.next_port)
    }

    /// Blocks of 512 bytes come, larger ones do not.
    fn mtu_hole(&mut self, server: SocketAddrV4, name: &str, findings: &mut Vec<Finding>) {
        let sizes = [1428, 1400, 1300, 1200, 1024];
        let passes = sizes.into_iter().find(|size| self.block(server, name, *size) == Block::Arrived);
        let passes = passes.unwrap_or(512);
        findings.push(Finding::wrong(
            "mtu-hole",
            format!("TFTP blocks of {passes} bytes arrive from {}, blocks of 1468 do not", server.ip()),
            "a tunnel, VPN or switch port on the way takes smaller packets than this interface, and says nothing",
            format!("mend the MTU on the way, or [tftp] max_blksize = {passes} until then"),
        ));
    }

    /// What came of HTTP during the boot.
    fn judge_http(&mut self, server: Ipv4Addr, findings: &mut Vec<Finding>) {
        match self.http_fault.clone() {
            Some((to, _, _)) if *to.ip() != server => findings.push(Finding::wrong(
                "wrong-next-server",
                format!("the script is to be fetched from {to}, which does not answer"),
                format!("next_server is {}, and the server is {server}", to.ip()),
                "take next_server out of [[dhcp.subnet]], or set it to an address of the server",
            )),
            Some((to, path, fault)) => findings.push(http_finding(to, &path, &fault)),
            None => {
                if let Some(Outcome::Failed(why)) = &self.outcome
                    && self.loaded | (self.ask.kind == Kind::Ipxe)
                    && (why.contains("script") || why.contains("HTTP Boot"))
                {
                    let status = self.last_status;
                    findings.push(Finding::wrong(
                        "script-missing",
                        format!("{why} (HTTP {status})"),
                        "another server answers on this port, or this one could not make the script",
                        "bootstorm script render --mac 52:54:00:00:00:01; journalctl -u bootstorm",
                    ));
                }
            }
        }
    }

    /// Questions beside the boot.
    fn probe(&mut self, server: Ipv4Addr, answerers: &[Answerer], findings: &mut Vec<Finding>) {
        let Some(address) = self.lease.as_ref().map(|lease| lease.address) else { return };
        // One that only sends machines here leaves port 4011 to nobody.
        let itself = |answerer: &Answerer| answerer.server == server || self.relay.is_some();
        let answers_dhcp = answerers.iter().any(|answerer| answerer.ours && itself(answerer));
        if answers_dhcp && self.ask.kind != Kind::Http {
            let boot_server = SocketAddrV4::new(server, self.ask.dhcp.1);
            let arch = if self.ask.kind == Kind::Uefi { 7 } else { 0 };
            if probe::boot_server(&mut *self.carrier, boot_server, self.mac, address, arch) {
                self.hop("4011", "the boot server answers");
            } else {
                findings.push(Finding::wrong(
                    "4011-blocked",
                    format!("UDP {} of {server} does not answer (PXE-E55)", self.ask.dhcp.1),
                    "a packet filter drops it: firmware that asks there waits for ever",
                    format!("on the server: nft list ruleset; let UDP {} through", self.ask.dhcp.1),
                ));
            }
        }
        let has = |findings: &[Finding], names: &[&str]| findings.iter().any(|f| names.contains(&f.name));
        let tftp_known =
            ["tftp-blocked", "tftp-refused", "mtu-hole", "loader-not-found", "wrong-next-server"];
        let name = self.ask.loaders.first().cloned();
        if let (Some(port), Some(name)) = (self.ask.tftp, name)
            && !has(findings, &tftp_known)
        {
            self.probe_tftp(SocketAddrV4::new(server, port), &name, findings);
        }
        let http_known = ["http-blocked", "http-refused", "http-stalled", "script-missing"];
        if let Some(port) = self.ask.http
            && !has(findings, &http_known)
        {
            self.probe_http(SocketAddrV4::new(server, port), findings);
        }
    }

    fn probe_tftp(&mut self, server: SocketAddrV4, name: &str, findings: &mut Vec<Finding>) {
        match self.block(server, name, 1468) {
            Block::Arrived | Block::Smaller(_) => {
                self.hop("tftp 1468", "a full packet arrives");
                // Only Windows' boot manager asks for that, so its failure stops nobody else.
                match self.block(server, name, 8192) {
                    Block::Arrived => self.hop("tftp 8192", "a block in fragments arrives"),
                    Block::Lost => findings.push(Finding::note(
                        "fragments-lost",
                        format!("a TFTP block of 8192 bytes, in fragments, does not arrive from {}", server.ip()),
                        "only clients that ask for such blocks notice; [tftp] max_blksize = 1468 keeps them from it",
                    )),
                    _ => {}
                }
            }
            Block::Lost => match self.block(server, name, 512) {
                Block::Arrived => self.mtu_hole(server, name, findings),
                _ => findings.push(Finding::wrong(
                    "tftp-blocked",
                    format!("TFTP requests to {server} are answered, and no block arrives"),
                    "a packet filter lets port 69 through and not the ports blocks are sent from",
                    "on the server: nft list ruleset; or [tftp] single_port = true",
                )),
            },
            Block::Silent => findings.push(Finding::wrong(
                "tftp-blocked",
                format!("UDP {} of {} does not answer (PXE-E32)", server.port(), server.ip()),
                "a packet filter on the server's host or between drops TFTP",
                format!(
                    "on the server: nft list ruleset; let UDP {} and answers to it through",
                    server.port()
                ),
            )),
            Block::Refused => findings.push(Finding::wrong(
                "tftp-refused",
                format!("nobody listens on UDP {} of {} (PXE-E32)", server.port(), server.ip()),
                "the server has no TFTP listener there, or a filter refuses it",
                "on the server: ss -lunp 'sport = :69'; [tftp] listen",
            )),
            Block::Error(why) => findings.push(Finding::wrong(
                "loader-not-found",
                format!("{server} does not give {name:?}: {why}"),
                "the loader is not in the loader folders",
                "bootstorm doctor on the server",
            )),
        }
    }

    fn probe_http(&mut self, server: SocketAddrV4, findings: &mut Vec<Finding>) {
        let health = request("GET", server, "/healthz", "iPXE/1.0.0+", "");
        match self.carrier.http(server, &health, false) {
            Ok(answer) if answer.status == 200 => self.hop("http", format!("{server} answers")),
            Ok(answer) => findings.push(Finding::wrong(
                "http-other-server",
                format!("http://{server}/healthz answers with status {}", answer.status),
                "another program has this port",
                format!("on the server: ss -ltnp 'sport = :{}'", server.port()),
            )),
            Err(fault) => return findings.push(http_finding(server, "/healthz", &fault)),
        }
        let Some(image) = self.ask.image.clone() else { return };
        let path = format!("/images/{}", escaped(&image.path));
        let last_at = image.len.saturating_sub(IMAGE_PART);
        let parts = [(0, image.len.min(IMAGE_PART), &image.first), (last_at, image.len, &image.last)];
        for (from, to, wanted) in parts {
            let range = format!("Range: bytes={from}-{}\r\n", to.saturating_sub(1));
            let asked = request("GET", server, &path, "iPXE/1.0.0+", &range);
            let mut answer = self.carrier.http(server, &asked, false);
            // It took a connection a moment ago: no filter drops the next one.
            if answer == Err(HttpFault::Silent) {
                answer = self.carrier.http(server, &asked, false);
            }
            match answer {
                Ok(answer) if answer.status == 206 && answer.body == *wanted => {}
                Ok(answer) if answer.status == 206 => {
                    return findings.push(Finding::wrong(
                        "image-differs",
                        format!("bytes {from} to {to} of {} are not what is on the disk", image.path),
                        "the file was edited in place and is not published yet, or another server answers",
                        "replace images by rename (mv), never in place",
                    ));
                }
                Ok(answer) => {
                    return findings.push(Finding::wrong(
                        "image-not-served",
                        format!("http://{server}{path} answers with status {}", answer.status),
                        "the running server does not list this file",
                        "bootstorm image list; is the server running with the same --images?",
                    ));
                }
                // The hole that TFTP found: which of these parts it swallows depends on how they were cut into segments.
                Err(HttpFault::Stalled(_)) if findings.iter().any(|f| f.name == "mtu-hole") => return,
                Err(HttpFault::Stalled(_)) if from == 0 => {
                    return findings.push(Finding::wrong(
                        "mtu-hole",
                        format!("{server} answers, and full segments of {} do not arrive", image.path),
                        "a tunnel, VPN or switch port on the way takes smaller packets than this interface, and says nothing",
                        "mend the MTU on the way, or clamp TCP's segment size there",
                    ));
                }
                Err(fault) => return findings.push(http_finding(server, &path, &fault)),
            }
        }
        self.hop("image", format!("first and last bytes of {}, {} bytes", image.path, image.len));
    }
}

/// The number of a machine's port is the number its answers name.
fn tftp_port(socket: u32) -> u16 {
    FIRST_PORT + (socket % 5_000) as u16
}

fn request(method: &str, server: SocketAddrV4, path: &str, user_agent: &str, more: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: {user_agent}\r\n{more}Connection: close\r\n\r\n"
    )
}

/// A file's path as part of a URL.
fn escaped(path: &str) -> String {
    path.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(byte as char)
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
        out
    })
}

fn http_finding(server: SocketAddrV4, path: &str, fault: &HttpFault) -> Finding {
    let (ip, port) = (server.ip(), server.port());
    match fault {
        HttpFault::Silent => Finding::wrong(
            "http-blocked",
            format!("TCP {port} of {ip} does not answer"),
            "a packet filter on the server's host or between drops HTTP",
            format!("on the server: nft list ruleset; let TCP {port} through"),
        ),
        HttpFault::Refused => Finding::wrong(
            "http-refused",
            format!("nobody listens on TCP {port} of {ip}"),
            "the server does not run, or listens elsewhere",
            format!("on the server: ss -ltnp 'sport = :{port}'; [http] listen"),
        ),
        HttpFault::Stalled(0) => Finding::wrong(
            "http-stalled",
            format!("http://{server}{path} takes the connection and sends nothing"),
            "full segments are lost on the way (MTU), or the server is overloaded",
            "ping -M do -s 1472 from the machine's network; bootstorm doctor on the server",
        ),
        HttpFault::Stalled(bytes) => Finding::wrong(
            "http-stalled",
            format!("http://{server}{path} stands still after {bytes} bytes"),
            "full segments are lost on the way (MTU), or the server is overloaded",
            "ping -M do -s 1472 from the machine's network; bootstorm doctor on the server",
        ),
        HttpFault::Broken(why) => Finding::wrong(
            "http-other-server",
            format!("http://{server}{path}: {why}"),
            "another program has this port, or something between speaks for it",
            format!("on the server: ss -ltnp 'sport = :{port}'"),
        ),
    }
}

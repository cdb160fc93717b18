//! A machine from power-on to the start of its image.
//!
//! ```text
//! start ─ Discovering ─ Requesting ─┬─ BootServer (4011) ─┐
//!                                   └─────────────────────┴─ Loading (TFTP) ──► iPXE: Discovering again
//!                                                         └─ Sizing ─ Getting (HTTP Boot) ──► the same
//! iPXE: Discovering ─ Requesting ─ Scripting (downloads as the script says) ─ done
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::dhcp::{Asker, Choice, Chosen, Offer, choose, is_enough};
use super::script::{End, Fetched, Interpreter, Step as ScriptStep};
use super::tftp::{Download, Step};
use super::{Kind, Patience};
use crate::wire::dhcp::{Message, MessageType};
use crate::wire::{MacAddr, Uuid};

/// DISCOVERs before BIOS and UEFI give up (PXE-E51).
const DISCOVERS_MAX: u32 = 4;
/// iPXE's back-off ends when it passes ten times its start.
const DISCOVERS_MAX_IPXE: u32 = 5;
/// REQUESTs before the address counts as refused.
const REQUESTS_MAX: u32 = 4;
/// Texts up to this length are kept: scripts.
const KEEP_LEN_MAX: usize = 256 * 1024;
/// The boot server's port.
const BOOT_SERVER_PORT: u16 = 4011;

/// Who a machine is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Firmware.
    pub kind: Kind,
    /// Hardware address.
    pub mac: MacAddr,
    /// SMBIOS UUID.
    pub uuid: Uuid,
    /// SMBIOS serial.
    pub serial: String,
    /// Timers.
    pub patience: Patience,
    /// For transaction ids.
    pub seed: u64,
}

/// What a machine wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A DHCP message: to 255.255.255.255:67, or to a boot server.
    Dhcp {
        /// Where to.
        to: SocketAddrV4,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A TFTP packet from a port of its own for each number.
    Tftp {
        /// The port's number.
        socket: u32,
        /// Where to.
        to: SocketAddrV4,
        /// The packet.
        bytes: Vec<u8>,
    },
    /// An HTTP request.
    Http {
        /// To be named in the answers.
        id: u32,
        /// Method.
        method: &'static str,
        /// Server.
        server: SocketAddrV4,
        /// Path and query.
        path: String,
        /// User-Agent.
        user_agent: &'static str,
    },
    /// Nothing for a while; the machine's deadline says how long.
    UseAddress(Ipv4Addr),
    /// Something to tell.
    Stage(Stage),
    /// Over.
    Done(Outcome),
}

/// What happens to a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input<'a> {
    /// A DHCP message, or an answer from a boot server.
    Dhcp {
        /// Where from.
        from: SocketAddrV4,
        /// The message.
        bytes: &'a [u8],
    },
    /// A TFTP packet.
    Tftp {
        /// The port's number.
        socket: u32,
        /// Where from.
        from: SocketAddrV4,
        /// The packet.
        bytes: &'a [u8],
    },
    /// An HTTP answer's head.
    HttpHead {
        /// The request.
        id: u32,
        /// Status code.
        status: u16,
        /// Content-Length.
        len: Option<u64>,
        /// Content-Type.
        content_type: &'a str,
    },
    /// Part of an HTTP answer's body.
    HttpBody {
        /// The request.
        id: u32,
        /// The part.
        bytes: &'a [u8],
    },
    /// Bytes of an HTTP answer's body that arrived and were thrown away unread.
    HttpSkipped {
        /// The request.
        id: u32,
        /// How many.
        len: u64,
    },
    /// The body is whole.
    HttpEnd {
        /// The request.
        id: u32,
    },
    /// The request or its answer broke off.
    HttpFailed {
        /// The request.
        id: u32,
    },
}

/// One step of a boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stage {
    /// What.
    pub name: String,
    /// Bytes delivered by it.
    pub bytes: u64,
    /// More about it.
    pub note: String,
}

/// How a boot ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An image would start now.
    Booted {
        /// Kernel or program, and what it is told.
        what: String,
        /// Bytes of everything it consists of.
        bytes: u64,
        /// BLAKE3 of the last file fetched; empty when not all of it was read.
        hash: String,
    },
    /// The local disk's turn.
    Local,
    /// The firmware gave up, and why in its words.
    Failed(String),
}

#[derive(Debug)]
enum Phase {
    Off,
    Discovering {
        tries: u32,
        deadline: Instant,
        started: Instant,
    },
    Requesting {
        choice: Box<Choice>,
        tries: u32,
        deadline: Instant,
    },
    BootServer {
        choice: Box<Choice>,
        tries: u32,
        deadline: Instant,
    },
    Loading {
        download: Box<Download>,
        socket: u32,
    },
    /// HTTP Boot: HEAD, then GET.
    Sizing {
        server: SocketAddrV4,
        path: String,
        len: Option<u64>,
        typed: bool,
        ok: bool,
    },
    Getting,
    Scripting {
        sleeping: Option<Instant>,
    },
    Done,
}

/// An HTTP download under way.
#[derive(Debug, Default)]
struct Body {
    status: u16,
    len: Option<u64>,
    bytes: u64,
    hash: blake3::Hasher,
    /// Not every byte was seen, so the hash says nothing.
    skipped: bool,
    kept: Vec<u8>,
}

impl Body {
    fn hash_text(&self) -> String {
        if self.skipped { String::new() } else { self.hash.finalize().to_hex().to_string() }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    speaks: Kind,
    efi: bool,
    phase: Phase,
    offers: Vec<Offer>,
    address: Ipv4Addr,
    commands: VecDeque<Command>,
    random: u64,
    xid: u32,
    next_id: u32,
    body: Body,
    interpreter: Option<Interpreter>,
    /// Bytes and last hash of what the script fetched.
    fetched_bytes: u64,
    last_hash: String,
    url: String,
    said_again: u32,
}

impl Machine {
    /// A machine that is switched off.
    pub fn new(config: Config) -> Self {
        let random = config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            speaks: config.kind,
            efi: matches!(config.kind, Kind::Uefi | Kind::Http),
            config,
            phase: Phase::Off,
            offers: Vec::new(),
            address: Ipv4Addr::UNSPECIFIED,
            commands: VecDeque::new(),
            random,
            xid: 0,
            next_id: 0,
            body: Body::default(),
            interpreter: None,
            fetched_bytes: 0,
            last_hash: String::new(),
            url: String::new(),
            said_again: 0,
        }
    }

    /// DHCP messages that were not answered in time and sent once more.
    pub fn said_again(&self) -> u32 {
        self.said_again
    }

    /// Power on.
    pub fn start(&mut self, now: Instant) {
        self.discover(now);
    }

    /// What it wants done next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`Machine::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Discovering { deadline, started, .. } if self.speaks == Kind::Ipxe && self.has_lease() => {
                Some((*deadline).min(*started + self.config.patience.proxy_ipxe))
            }
            Phase::Discovering { deadline, .. }
            | Phase::Requesting { deadline, .. }
            | Phase::BootServer { deadline, .. } => Some(*deadline),
            Phase::Loading { download, .. } => Some(download.deadline()),
            Phase::Scripting { sleeping } => *sleeping,
            Phase::Off | Phase::Sizing { .. } | Phase::Getting | Phase::Done => None,
        }
    }

    fn has_lease(&self) -> bool {
        self.offers.iter().any(Offer::is_lease)
    }

    fn asker(&self) -> Asker {
        Asker {
            speaks: self.speaks,
            efi: self.efi,
            mac: self.config.mac,
            uuid: self.config.uuid,
            xid: self.xid,
        }
    }

    fn stage(&mut self, name: &str, bytes: u64, note: impl Into<String>) {
        self.commands.push_back(Command::Stage(Stage { name: name.to_owned(), bytes, note: note.into() }));
    }

    fn done(&mut self, outcome: Outcome) {
        self.phase = Phase::Done;
        self.commands.push_back(Command::Done(outcome));
    }

    fn fail(&mut self, why: impl Into<String>) {
        self.done(Outcome::Failed(why.into()));
    }

    fn send_dhcp(&mut self, to: SocketAddrV4, message: Option<Vec<u8>>) {
        if let Some(bytes) = message {
            self.commands.push_back(Command::Dhcp { to, bytes });
        }
    }

    fn discover(&mut self, now: Instant) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.xid = self.random as u32;
        self.offers.clear();
        self.address = Ipv4Addr::UNSPECIFIED;
        let first = self.discover_interval();
        self.phase = Phase::Discovering { tries: 1, deadline: now + first, started: now };
        self.broadcast(MessageType::Discover, None);
    }

    fn discover_interval(&self) -> Duration {
        if self.speaks == Kind::Ipxe {
            self.config.patience.discover_ipxe
        } else {
            self.config.patience.discover
        }
    }

    fn broadcast(&mut self, kind: MessageType, chosen: Option<Chosen>) {
        let message = self.asker().message(kind, chosen, Ipv4Addr::UNSPECIFIED);
        self.send_dhcp(SocketAddrV4::new(Ipv4Addr::BROADCAST, 67), message);
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Off) {
            Phase::Discovering { tries, deadline, started } => {
                self.discover_timeout(now, tries, deadline, started)
            }
            Phase::Requesting { choice, tries, .. } => {
                if tries >= REQUESTS_MAX {
                    return self.fail("no answer to the request for the offered address (PXE-E52)");
                }
                let deadline = now + self.config.patience.request * (1 << tries.min(3));
                let chosen = Chosen { server: choice.lease.server, address: choice.lease.yiaddr };
                self.phase = Phase::Requesting { choice, tries: tries + 1, deadline };
                self.said_again += 1;
                self.broadcast(MessageType::Request, Some(chosen));
            }
            Phase::BootServer { choice, tries, .. } => {
                if tries >= REQUESTS_MAX {
                    return self.fail("the boot server does not answer on port 4011 (PXE-E55)");
                }
                self.said_again += 1;
                self.ask_boot_server(now, choice, tries + 1);
            }
            Phase::Loading { mut download, socket } => {
                let step = download.handle_timeout(now);
                self.phase = Phase::Loading { download, socket };
                self.tftp_step(now, step);
            }
            Phase::Scripting { .. } => {
                self.phase = Phase::Scripting { sleeping: None };
                let step = self.interpreter.as_mut().map(Interpreter::resume);
                self.script_step(now, step);
            }
            other => self.phase = other,
        }
    }

    fn discover_timeout(&mut self, now: Instant, tries: u32, deadline: Instant, started: Instant) {
        let waited = now.saturating_duration_since(started) >= self.config.patience.proxy_ipxe;
        let settled = self.speaks != Kind::Ipxe || is_enough(self.speaks, &self.offers, waited);
        if settled && let Some(choice) = choose(self.speaks, &self.offers) {
            return self.request(now, choice);
        }
        if now < deadline {
            self.phase = Phase::Discovering { tries, deadline, started };
            return;
        }
        let limit = if self.speaks == Kind::Ipxe { DISCOVERS_MAX_IPXE } else { DISCOVERS_MAX };
        if tries >= limit {
            return self.fail(if self.offers.is_empty() {
                "nobody offered an address (PXE-E51)"
            } else {
                "offers came, but none to boot with (PXE-E53)"
            });
        }
        let deadline = now + self.discover_interval() * (1 << tries);
        self.phase = Phase::Discovering { tries: tries + 1, deadline, started };
        self.said_again += 1;
        self.broadcast(MessageType::Discover, None);
    }

    fn request(&mut self, now: Instant, choice: Choice) {
        let chosen = Chosen { server: choice.lease.server, address: choice.lease.yiaddr };
        let deadline = now + self.config.patience.request;
        self.phase = Phase::Requesting { choice: Box::new(choice), tries: 1, deadline };
        self.broadcast(MessageType::Request, Some(chosen));
    }

    fn ask_boot_server(&mut self, now: Instant, choice: Box<Choice>, tries: u32) {
        let Some(boot) = &choice.boot else { return self.fail("no boot server was named") };
        let server = boot.next_server(Kind::Uefi);
        let message = self.asker().message(MessageType::Request, None, self.address);
        self.send_dhcp(SocketAddrV4::new(server, BOOT_SERVER_PORT), message);
        self.phase = Phase::BootServer { choice, tries, deadline: now + self.config.patience.request };
    }

    /// Something has happened.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Dhcp { from, bytes } => self.dhcp(now, from, bytes),
            Input::Tftp { socket, from, bytes } => {
                if let Phase::Loading { download, socket: own } = &mut self.phase
                    && *own == socket
                {
                    let step = download.handle(now, from, bytes);
                    self.tftp_step(now, step);
                }
            }
            Input::HttpHead { id, status, len, content_type } if id == self.next_id => {
                self.body = Body { status, len, ..Body::default() };
                if let Phase::Sizing { len: size, typed, ok, path, .. } = &mut self.phase {
                    *size = len;
                    // The type is compared whole; a name's ending counts when there is none (HttpBootSupport.c).
                    *typed = content_type.eq_ignore_ascii_case("application/efi") || path.ends_with(".efi");
                    *ok = status == 200;
                }
            }
            Input::HttpBody { id, bytes } if id == self.next_id => {
                self.body.bytes += bytes.len() as u64;
                self.body.hash.update(bytes);
                if self.body.kept.len() < KEEP_LEN_MAX {
                    self.body.kept.extend_from_slice(bytes);
                }
            }
            Input::HttpSkipped { id, len } if id == self.next_id => {
                self.body.bytes += len;
                self.body.skipped = true;
            }
            Input::HttpEnd { id } if id == self.next_id => self.http_end(now, false),
            Input::HttpFailed { id } if id == self.next_id => self.http_end(now, true),
            _ => {}
        }
    }

    fn dhcp(&mut self, now: Instant, from: SocketAddrV4, bytes: &[u8]) {
        let Ok(message) = Message::parse(bytes) else { return };
        if message.op() != 2 || message.xid() != self.xid || message.mac() != Some(self.config.mac) {
            return;
        }
        let kind = message.message_type();
        let Some(offer) = Offer::of(&message, from) else { return };
        match &self.phase {
            Phase::Discovering { started, .. } if kind == Some(MessageType::Offer) => {
                let waited = now.saturating_duration_since(*started) >= self.config.patience.proxy_ipxe;
                self.offers.push(offer);
                if is_enough(self.speaks, &self.offers, waited)
                    && let Some(choice) = choose(self.speaks, &self.offers)
                {
                    self.request(now, choice);
                }
            }
            Phase::Requesting { choice, .. } if offer.server == choice.lease.server => match kind {
                Some(MessageType::Ack) if offer.yiaddr == choice.lease.yiaddr => {
                    let choice = choice.clone();
                    self.leased(now, choice);
                }
                Some(MessageType::Nak) => self.discover(now),
                _ => {}
            },
            Phase::BootServer { .. }
                if kind == Some(MessageType::Ack) && !offer.file(self.speaks).is_empty() =>
            {
                let (file, server) = (offer.file(self.speaks).to_owned(), offer.next_server(self.speaks));
                self.stage("boot server", 0, file.clone());
                self.load(now, &file, server);
            }
            _ => {}
        }
    }

    fn leased(&mut self, now: Instant, choice: Box<Choice>) {
        self.address = choice.lease.yiaddr;
        self.commands.push_back(Command::UseAddress(self.address));
        let name = if self.speaks == Kind::Ipxe { "dhcp (ipxe)" } else { "dhcp" };
        self.stage(name, 0, format!("{} from {}", self.address, choice.lease.server));
        let Some(boot) = &choice.boot else { return self.fail("nothing to boot was offered (PXE-E53)") };
        if choice.ask_boot_server {
            return self.ask_boot_server(now, choice, 1);
        }
        let (file, server) = (boot.file(self.speaks).to_owned(), boot.next_server(self.speaks));
        self.load(now, &file, server);
    }

    /// Fetches the boot file: by HTTP when it is a URL, by TFTP else.
    fn load(&mut self, now: Instant, file: &str, server: Ipv4Addr) {
        if file.is_empty() {
            return self.fail("no boot file was named (PXE-E53)");
        }
        if let Some((server, path)) = split_url(file) {
            if self.speaks == Kind::Ipxe {
                self.phase = Phase::Scripting { sleeping: None };
                self.url = file.to_owned();
                return self.http("GET", server, path, "iPXE/1.0.0+");
            }
            if self.speaks == Kind::Http {
                self.phase = Phase::Sizing { server, path: path.clone(), len: None, typed: false, ok: false };
                return self.http("HEAD", server, path, "UefiHttpBoot/1.0");
            }
        }
        if self.speaks == Kind::Http || file.contains("://") {
            return self.fail(format!("{file:?} is no URL this firmware can fetch"));
        }
        let server = SocketAddrV4::new(server, 69);
        let mut download = Download::new(self.speaks, file.to_owned(), server, now, &self.config.patience);
        let step = download.request(now);
        self.next_id += 1;
        self.phase = Phase::Loading { download: Box::new(download), socket: self.next_id };
        self.tftp_step(now, step);
    }

    fn send_tftp(&mut self, packets: Vec<(SocketAddrV4, Vec<u8>)>) {
        let Phase::Loading { socket, .. } = &self.phase else { return };
        let socket = *socket;
        self.commands.extend(packets.into_iter().map(|(to, bytes)| Command::Tftp { socket, to, bytes }));
    }

    fn tftp_step(&mut self, now: Instant, step: Step) {
        match step {
            Step::Send(packets) => self.send_tftp(packets),
            Step::Again(packets) => {
                self.send_tftp(packets);
                self.next_id += 1;
                let next = self.next_id;
                let Phase::Loading { download, socket } = &mut self.phase else { return };
                *socket = next;
                let step = download.request(now);
                self.tftp_step(now, step);
            }
            Step::Complete(packets) => {
                self.send_tftp(packets);
                let Phase::Loading { download, .. } = &self.phase else { return };
                let (bytes, hash) = (download.bytes, download.hash().to_hex().to_string());
                self.loaded(now, bytes, hash, "tftp");
            }
            Step::Failed(why) => self.fail(why),
        }
    }

    /// The loader is here and runs: from now on this is iPXE.
    fn loaded(&mut self, now: Instant, bytes: u64, hash: String, how: &str) {
        if bytes == 0 {
            return self.fail("the loader is empty");
        }
        self.stage(&format!("loader ({how})"), bytes, hash.get(..16).unwrap_or_default());
        self.speaks = Kind::Ipxe;
        self.discover(now);
    }

    fn http(&mut self, method: &'static str, server: SocketAddrV4, path: String, user_agent: &'static str) {
        self.next_id += 1;
        self.body = Body::default();
        self.commands.push_back(Command::Http { id: self.next_id, method, server, path, user_agent });
    }

    fn http_end(&mut self, now: Instant, failed: bool) {
        let body = std::mem::take(&mut self.body);
        let short = body.len.is_some_and(|len| len != body.bytes);
        let whole = !failed && (200..300).contains(&body.status);
        match &self.phase {
            Phase::Sizing { ok: false, .. } => self.fail("HTTP Boot: the server has no such file"),
            Phase::Sizing { typed: false, .. } => {
                self.fail("HTTP Boot: neither type nor name says what the file is")
            }
            Phase::Sizing { len: None, .. } => self.fail("HTTP Boot: HEAD tells no length"),
            Phase::Sizing { server, path, .. } => {
                let (server, path) = (*server, path.clone());
                self.phase = Phase::Getting;
                self.http("GET", server, path, "UefiHttpBoot/1.0");
            }
            Phase::Getting if whole && !short => {
                let hash = body.hash_text();
                self.loaded(now, body.bytes, hash, "http");
            }
            Phase::Getting => self.fail("HTTP Boot: the download broke off"),
            Phase::Scripting { .. } => self.script_fetched(now, body, whole && !short),
            _ => {}
        }
    }

    fn script_fetched(&mut self, now: Instant, body: Body, whole: bool) {
        let script = Some(&body.kept).filter(|kept| kept.starts_with(b"#!ipxe"));
        let script = script.map(|kept| String::from_utf8_lossy(kept).into_owned());
        let first = self.interpreter.is_none();
        if whole {
            let name = self
                .url
                .split('?')
                .next()
                .unwrap_or_default()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            if script.is_some() {
                self.stage("script", body.bytes, name);
            } else {
                self.fetched_bytes += body.bytes;
                self.last_hash = body.hash_text();
                self.stage("http", body.bytes, name);
            }
        }
        if first {
            let Some(text) = script.filter(|_| whole) else {
                return self.fail(format!("no script came from {}", self.url));
            };
            let mut interpreter = Interpreter::new(self.settings());
            let step = interpreter.start(&text);
            self.interpreter = Some(interpreter);
            return self.script_step(now, Some(step));
        }
        let what = match (whole, script) {
            (false, _) => Fetched::Failed,
            (true, Some(text)) => Fetched::Script(text),
            (true, None) => Fetched::Image,
        };
        let step = self.interpreter.as_mut().map(|interpreter| interpreter.fetched(what));
        self.script_step(now, step);
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let mac = self.config.mac.to_string();
        let (platform, build) = if self.efi { ("efi", "x86_64") } else { ("pcbios", "i386") };
        [
            ("net0/mac", mac.as_str()),
            ("netX/mac", &mac),
            ("mac", &mac),
            ("ip", &self.address.to_string()),
            ("uuid", &self.config.uuid.to_string()),
            ("serial", &self.config.serial),
            ("platform", platform),
            ("buildarch", build),
            ("cpuid/longmode", "1"),
            ("version", "1.0.0+"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }

    fn script_step(&mut self, now: Instant, step: Option<ScriptStep>) {
        match step {
            None => {}
            Some(ScriptStep::Sleep(time)) => {
                self.phase = Phase::Scripting { sleeping: Some(now + time) };
            }
            Some(ScriptStep::Fetch { url }) => match split_url(&url) {
                Some((server, path)) => {
                    self.url = url;
                    self.http("GET", server, path, "iPXE/1.0.0+");
                }
                None => {
                    let step =
                        self.interpreter.as_mut().map(|interpreter| interpreter.fetched(Fetched::Failed));
                    self.script_step(now, step);
                }
            },
            Some(ScriptStep::Done(end)) => {
                let (bytes, hash) = (self.fetched_bytes, self.last_hash.clone());
                self.done(match end {
                    End::Booted { kernel, cmdline, .. } => {
                        Outcome::Booted { what: format!("{kernel} {cmdline}").trim().to_owned(), bytes, hash }
                    }
                    End::Chained(what) | End::SanBooted(what) => Outcome::Booted { what, bytes, hash },
                    End::LocalBoot | End::Exited(_) => Outcome::Local,
                    End::Shell => Outcome::Failed("iPXE shell".into()),
                    End::Power(what) => Outcome::Failed(what.into()),
                    End::Failed { line, reason } => Outcome::Failed(format!("{line:?}: {reason}")),
                });
            }
        }
    }
}

/// An `http://` URL with a literal address: server, path and query.
fn split_url(url: &str) -> Option<(SocketAddrV4, String)> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let server = host.parse().or_else(|_| host.parse().map(|ip| SocketAddrV4::new(ip, 80))).ok()?;
    Some((server, format!("/{path}")))
}

//! DHCP load on an interface: hand-made frames of many machines, broadcast as firmware does or from many relays.
//!
//! Two ways of asking: a *closed loop* keeps so many exchanges under way, each followed by the next; an *offered rate*
//! starts so many a second whatever comes back, which is how a server is overloaded. The avalanche is neither: every
//! machine is switched on at once and repeats itself with firmware's own back-off until it has an address or gives up.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::hosts::{LoadError, RawOut, RawPort};
use super::result::{Point, Times};
use super::{Meter, TICK, machine_mac};
use crate::wire::MacAddr;
use crate::wire::dhcp::{Emitter, FLAG_BROADCAST, Header, Message, MessageType, OPTIONS_OFFSET, code};

/// Exchanges under way at once.
pub const EXCHANGES_MAX: u32 = 1 << 16;
/// PXE 2.1's waits between DISCOVERs, and EDK2's (PxeBcDhcp4.c): doubling from 4 s, four in all.
const BACKOFF: Duration = Duration::from_secs(4);
const DISCOVERS_MAX: u32 = 4;
/// Exchanges begun between two looks at what came.
const STARTS_PER_TURN: u32 = 64;
/// Whole DHCP messages, headers included.
const SNAPSHOT: usize = 1600;
/// Longest message sent.
const MESSAGE_LEN_MAX: usize = 576;
/// Where a broadcast load's own address would be; RFC 5737's, so nobody asks for it.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// What makes an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// DISCOVER and its OFFER.
    Discover,
    /// DISCOVER, OFFER, REQUEST, ACK.
    Dora,
    /// A PXE client's DISCOVER and a proxyDHCP OFFER; other servers' offers are passed over.
    Proxy,
    /// All machines at once, each DORA with firmware's back-off.
    Avalanche,
}

impl Mode {
    /// As on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Dora => "dora",
            Self::Proxy => "proxy",
            Self::Avalanche => "avalanche",
        }
    }
}

/// What is asked, by how many, how often.
#[derive(Clone, Debug)]
pub struct DhcpLoad {
    /// Interface.
    pub interface: String,
    /// Server; needed for relays, else any server's answers count.
    pub server: Option<Ipv4Addr>,
    /// What makes an exchange.
    pub mode: Mode,
    /// Exchanges under way at once (closed loop), or machines (avalanche).
    pub clients: u32,
    /// Different machines that ask in turn.
    pub machines: u32,
    /// Firmware's options in every message; always so for proxyDHCP and the avalanche.
    pub pxe: bool,
    /// Relays that pass the messages on; 0: broadcast.
    pub relays: u32,
    /// First relay's address; `None` takes the last ones of the interface's network.
    pub first_relay: Option<Ipv4Addr>,
    /// Exchanges begun a second; `None`: closed loop.
    pub rate: Option<u32>,
    /// An exchange without an answer for so long is lost. iPXE waits 1 s first, PXE ROMs and EDK2 4 s.
    pub wait: Duration,
    /// Exchanges after which it is over; `None`: only time ends it.
    pub exchanges_max: Option<u32>,
    /// Measured for this long; an avalanche, or a load of so many exchanges, may end sooner.
    pub time: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Discovering,
    Requesting,
}

#[derive(Clone, Copy, Debug)]
struct Exchange {
    state: State,
    machine: u32,
    /// Tells this exchange's answers from its predecessors'.
    generation: u16,
    tries: u32,
    started: Instant,
    deadline: Instant,
    offered: Ipv4Addr,
    server_id: Ipv4Addr,
}

/// A message to be sent with few bytes changed.
#[derive(Debug)]
struct Template {
    bytes: Vec<u8>,
    uuid_at: Option<usize>,
    address_at: Option<usize>,
    server_at: Option<usize>,
    circuit_at: Option<usize>,
}

impl Template {
    fn new(kind: MessageType, pxe: bool, relayed: bool) -> Option<Self> {
        let mut bytes = vec![0; MESSAGE_LEN_MAX];
        let mut header = Header::request_from(MacAddr([2, 0, 0, 0, 0, 0]), 0);
        header.hops = u8::from(relayed);
        header.flags = if relayed { 0 } else { FLAG_BROADCAST };
        let mut out = Emitter::new(&mut bytes, &header)?;
        out.option(code::MESSAGE_TYPE, &[kind.code()])?;
        out.option(code::MAX_SIZE, &1472u16.to_be_bytes())?;
        if kind == MessageType::Request {
            out.option(code::REQUESTED_ADDRESS, &[0; 4])?;
            out.option(code::SERVER_ID, &[0; 4])?;
        }
        out.option(code::PARAMETER_LIST, &[1, 3, 6, 12, 15, 43, 54, 60, 66, 67])?;
        if pxe {
            out.option(code::VENDOR_CLASS, b"PXEClient:Arch:00007:UNDI:003016")?;
            out.option(code::CLIENT_ARCHITECTURE, &[0, 7])?;
            out.option(code::CLIENT_NDI, &[1, 3, 16])?;
            out.option(code::CLIENT_MACHINE_ID, &[0; 17])?;
        }
        if relayed {
            // RFC 3046: one circuit id of four bytes.
            out.option(code::RELAY_AGENT, &[1, 4, 0, 0, 0, 0])?;
        }
        let len = out.finish()?;
        bytes.truncate(len);
        let mut template = Self { bytes, uuid_at: None, address_at: None, server_at: None, circuit_at: None };
        let mut at = OPTIONS_OFFSET;
        while let [code, len, ..] = template.bytes[at..] {
            let body = at + 2;
            match code {
                code::CLIENT_MACHINE_ID => template.uuid_at = Some(body + 13),
                code::REQUESTED_ADDRESS => template.address_at = Some(body),
                code::SERVER_ID => template.server_at = Some(body),
                code::RELAY_AGENT => template.circuit_at = Some(body + 2),
                code::END => break,
                _ => {}
            }
            at = body + usize::from(len);
        }
        Some(template)
    }

    /// Writes the message of one exchange; its length.
    fn write(&self, buffer: &mut [u8], xid: u32, exchange: &Exchange, giaddr: Ipv4Addr) -> Option<usize> {
        let message = buffer.get_mut(..self.bytes.len())?;
        message.copy_from_slice(&self.bytes);
        let mut put = |at: Option<usize>, bytes: &[u8]| {
            if let Some(place) = at.and_then(|at| message.get_mut(at..at + bytes.len())) {
                place.copy_from_slice(bytes);
            }
        };
        let machine = exchange.machine.to_be_bytes();
        put(Some(4), &xid.to_be_bytes());
        put(Some(24), &giaddr.octets());
        put(Some(28), &machine_mac(exchange.machine).0);
        put(self.uuid_at, &machine);
        put(self.address_at, &exchange.offered.octets());
        put(self.server_at, &exchange.server_id.octets());
        put(self.circuit_at, &machine);
        Some(self.bytes.len())
    }
}

struct Run<'a> {
    load: &'a DhcpLoad,
    discover: Template,
    request: Template,
    exchanges: Vec<Exchange>,
    free: Vec<u32>,
    next_machine: u32,
    begun: u64,
    done: u64,
    latency: Times,
    first_answer: Times,
    failures: BTreeMap<String, u64>,
}

/// Loads the network's DHCP server for the time given.
///
/// # Errors
/// What keeps the load from running at all; exchanges that fail are counted.
pub fn run(load: &DhcpLoad) -> Result<Point, LoadError> {
    for (what, value) in [("clients", load.clients), ("machines", load.machines)] {
        if value == 0 || value > EXCHANGES_MAX {
            return Err(LoadError::new(format!("{value} {what}: expected 1 to {EXCHANGES_MAX}")));
        }
    }
    if load.relays > 1024 {
        return Err(LoadError::new(format!("{} relays: expected at most 1024", load.relays)));
    }
    let relayed = load.relays > 0;
    let (first, server, port) = match (relayed, load.server) {
        (true, Some(server)) => (load.first_relay, Some(server), SERVER_PORT),
        (true, None) => return Err(LoadError::new("relays need a server to pass messages to: --server")),
        (false, _) => (Some(NOBODY), None, CLIENT_PORT),
    };
    let mut raw = RawPort::open(&load.interface, first, load.relays.max(1), server, port, SNAPSHOT)?;
    let pxe = load.pxe || matches!(load.mode, Mode::Proxy | Mode::Avalanche);
    let template =
        |kind| Template::new(kind, pxe, relayed).ok_or_else(|| LoadError::new("a message does not fit"));
    let meter = Meter::start();
    let start = Instant::now();
    let slots = if load.rate.is_some() { EXCHANGES_MAX } else { load.clients };
    let free = Exchange {
        state: State::Free,
        machine: 0,
        generation: 0,
        tries: 0,
        started: start,
        deadline: start,
        offered: Ipv4Addr::UNSPECIFIED,
        server_id: Ipv4Addr::UNSPECIFIED,
    };
    let mut run = Run {
        discover: template(MessageType::Discover)?,
        request: template(MessageType::Request)?,
        exchanges: vec![free; slots as usize],
        free: (0..slots).rev().collect(),
        next_machine: 0,
        begun: 0,
        done: 0,
        latency: Times::default(),
        first_answer: Times::default(),
        failures: BTreeMap::new(),
        load,
    };
    let end = start + load.time;
    let mut tick = start + TICK;
    loop {
        let now = Instant::now();
        if now >= end || run.is_over() {
            break;
        }
        let due = run.due(now.saturating_duration_since(start));
        for _ in 0..due.min(STARTS_PER_TURN) {
            run.begin(now, &mut raw.out);
        }
        raw.out.flush();
        let wait = match (due > STARTS_PER_TURN, load.rate) {
            (true, _) => Duration::ZERO,
            // Until the next is due, but not a system call for each.
            (false, Some(rate)) => Duration::from_secs_f64(16.0 / f64::from(rate.max(1))).min(TICK),
            (false, None) => tick.min(end).saturating_duration_since(now),
        };
        let mut now = None;
        raw.receive(wait, |out, head, frame| {
            let now = *now.get_or_insert_with(Instant::now);
            let payload = head.payload_offset..head.payload_offset + head.payload_len;
            if let Some(payload) = frame.bytes.get(payload) {
                run.arrived(now, out, payload);
            }
        })?;
        raw.out.flush();
        let now = Instant::now();
        if now >= tick {
            tick = now + TICK;
            run.timeouts(now, &mut raw.out);
        }
    }
    let overruns = raw.ring.overruns();
    Ok(run.point(&meter, raw.out.unsent(), overruns))
}

impl Run<'_> {
    fn is_avalanche(&self) -> bool {
        self.load.mode == Mode::Avalanche
    }

    /// Exchanges that are begun at most.
    fn begun_max(&self) -> Option<u64> {
        if self.is_avalanche() {
            return Some(self.load.clients.into());
        }
        self.load.exchanges_max.map(u64::from)
    }

    fn is_over(&self) -> bool {
        self.begun_max().is_some_and(|most| self.begun >= most) && self.free.len() == self.exchanges.len()
    }

    /// How many exchanges are to be begun now.
    fn due(&self, elapsed: Duration) -> u32 {
        let left = self.begun_max().map_or(u64::MAX, |most| most.saturating_sub(self.begun));
        let due = match self.load.rate {
            _ if self.is_avalanche() => left,
            Some(rate) => ((elapsed.as_secs_f64() * f64::from(rate)) as u64).saturating_sub(self.begun),
            None => self.free.len() as u64,
        };
        u32::try_from(due.min(left)).unwrap_or(u32::MAX)
    }

    fn begin(&mut self, now: Instant, out: &mut RawOut) {
        self.begun += 1;
        let Some(slot) = self.free.pop() else { return self.count("no room for more exchanges") };
        let machine = self.next_machine;
        self.next_machine =
            (machine + 1) % if self.is_avalanche() { self.load.clients } else { self.load.machines };
        let wait = if self.is_avalanche() { BACKOFF } else { self.load.wait };
        let exchange = &mut self.exchanges[slot as usize];
        *exchange = Exchange {
            state: State::Discovering,
            machine,
            generation: exchange.generation.wrapping_add(1),
            tries: 1,
            started: now,
            deadline: now + wait,
            ..*exchange
        };
        self.send(slot, out);
    }

    fn send(&self, slot: u32, out: &mut RawOut) {
        let exchange = &self.exchanges[slot as usize];
        let template = if exchange.state == State::Requesting { &self.request } else { &self.discover };
        let xid = u32::from(exchange.generation) << 16 | slot;
        if let (relays @ 1.., Some(server)) = (self.load.relays, self.load.server) {
            let relay = exchange.machine % relays;
            let giaddr = out.hosts.ip(relay);
            let to = SocketAddrV4::new(server, SERVER_PORT);
            out.send(relay, SERVER_PORT, to, MESSAGE_LEN_MAX, |buffer| {
                template.write(buffer, xid, exchange, giaddr)
            });
        } else {
            let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
            let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
            let mac = machine_mac(exchange.machine);
            out.send_from(mac, from, MacAddr::BROADCAST, to, MESSAGE_LEN_MAX, |buffer| {
                template.write(buffer, xid, exchange, Ipv4Addr::UNSPECIFIED)
            });
        }
    }

    fn count(&mut self, reason: &str) {
        match self.failures.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(self.failures.insert(reason.to_owned(), 1)),
        }
    }

    fn release(&mut self, slot: u32) {
        self.exchanges[slot as usize].state = State::Free;
        self.free.push(slot);
    }

    fn arrived(&mut self, now: Instant, out: &mut RawOut, payload: &[u8]) {
        let Ok(message) = Message::parse(payload) else { return };
        let slot = message.xid() & 0xffff;
        let Some(exchange) = self.exchanges.get_mut(slot as usize) else { return };
        if message.op() != 2
            || (message.xid() >> 16) as u16 != exchange.generation
            || message.mac() != Some(machine_mac(exchange.machine))
        {
            return;
        }
        match (exchange.state, message.message_type()) {
            (State::Discovering, Some(MessageType::Offer)) => {
                let proxy = message.yiaddr().is_unspecified()
                    && message
                        .option(code::VENDOR_CLASS)
                        .is_some_and(|class| class.starts_with(b"PXEClient"));
                if proxy != (self.load.mode == Mode::Proxy) {
                    return;
                }
                self.first_answer.record(now.saturating_duration_since(exchange.started));
                if matches!(self.load.mode, Mode::Discover | Mode::Proxy) {
                    return self.complete(now, slot);
                }
                let Some(server_id) = message.server_id() else { return };
                exchange.state = State::Requesting;
                (exchange.offered, exchange.server_id) = (message.yiaddr(), server_id);
                exchange.tries = 1;
                exchange.deadline =
                    now + if self.load.mode == Mode::Avalanche { BACKOFF } else { self.load.wait };
                self.send(slot, out);
            }
            (State::Requesting, Some(MessageType::Ack)) if message.yiaddr() == exchange.offered => {
                self.complete(now, slot);
            }
            (State::Requesting, Some(MessageType::Nak)) => {
                self.count("NAK");
                self.release(slot);
            }
            _ => {}
        }
    }

    fn complete(&mut self, now: Instant, slot: u32) {
        self.latency.record(now.saturating_duration_since(self.exchanges[slot as usize].started));
        self.done += 1;
        self.release(slot);
    }

    fn timeouts(&mut self, now: Instant, out: &mut RawOut) {
        for slot in 0..self.exchanges.len() as u32 {
            let avalanche = self.is_avalanche();
            let exchange = &mut self.exchanges[slot as usize];
            if exchange.state == State::Free || now < exchange.deadline {
                continue;
            }
            if avalanche && exchange.tries < DISCOVERS_MAX {
                exchange.deadline = now + BACKOFF * (1 << exchange.tries);
                exchange.tries += 1;
                self.send(slot, out);
                continue;
            }
            let reason = match (exchange.state, avalanche) {
                (State::Requesting, false) => "no ACK",
                (State::Requesting, true) => "gave up without an ACK",
                (_, false) => "no OFFER",
                (_, true) => "gave up without an OFFER (PXE-E51)",
            };
            self.count(reason);
            self.release(slot);
        }
    }

    fn point(mut self, meter: &Meter, unsent: u64, overruns: u64) -> Point {
        let load = self.load;
        if self.is_avalanche() {
            for _ in 0..self.exchanges.len() - self.free.len() {
                self.count("not done when time was up");
            }
        }
        let unanswered = self.exchanges.len() - self.free.len();
        let mut settings = BTreeMap::from([("mode".to_owned(), load.mode.word().to_owned())]);
        let mut set = |name: &str, value: u64| drop(settings.insert(name.to_owned(), value.to_string()));
        if load.relays > 0 {
            set("relays", load.relays.into());
        }
        if let Some(rate) = load.rate {
            set("rate", rate.into());
            set("begun", self.begun);
        }
        if load.machines != load.clients {
            set("machines", load.machines.into());
        }
        // Begun, and neither answered nor given up when time was up: worth a word when nothing else came of the load.
        if self.done == 0 {
            set("unanswered", unanswered as u64);
        }
        if unsent > 0 {
            set("unsent", unsent);
        }
        // Answers that came faster than they were looked at: the load's fault, and its limit.
        if overruns > 0 {
            set("overruns", overruns);
        }
        let mut point = Point {
            work: "dhcp".into(),
            settings,
            clients: load.clients,
            units: self.done,
            unit: "exchanges".into(),
            failures: self.failures.values().sum(),
            failure_reasons: self.failures,
            latency: self.latency.latency(),
            first_answer: self.first_answer.latency(),
            ..Point::default()
        };
        meter.stop(&mut point);
        point.load_limited |= overruns > 0;
        point
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(machine: u32) -> Exchange {
        let now = Instant::now();
        Exchange {
            state: State::Discovering,
            machine,
            generation: 1,
            tries: 1,
            started: now,
            deadline: now,
            offered: Ipv4Addr::new(10, 0, 0, 50),
            server_id: Ipv4Addr::new(10, 0, 0, 1),
        }
    }

    #[test]
    fn a_template_becomes_a_message_of_one_machine() {
        let giaddr = Ipv4Addr::new(10, 0, 0, 9);
        for (kind, pxe, relayed) in [
            (MessageType::Discover, false, false),
            (MessageType::Discover, true, false),
            (MessageType::Request, true, true),
        ] {
            let template = Template::new(kind, pxe, relayed).unwrap();
            let mut buffer = [0xaa; MESSAGE_LEN_MAX];
            let giaddr = if relayed { giaddr } else { Ipv4Addr::UNSPECIFIED };
            let len = template.write(&mut buffer, 0x0102_0304, &exchange(0x0a0b_0c0d), giaddr).unwrap();
            let message = Message::parse(&buffer[..len]).unwrap();
            assert_eq!(message.message_type(), Some(kind));
            assert_eq!((message.xid(), message.giaddr()), (0x0102_0304, giaddr));
            assert_eq!(message.mac(), Some(machine_mac(0x0a0b_0c0d)));
            assert_eq!(message.wants_broadcast(), !relayed);
            assert_eq!(message.uuid().is_some(), pxe);
            let circuit = [1, 4, 0x0a, 0x0b, 0x0c, 0x0d];
            assert_eq!(message.option(code::RELAY_AGENT), relayed.then_some(circuit.as_slice()));
            if kind == MessageType::Request {
                assert_eq!(message.option_ipv4(code::REQUESTED_ADDRESS), Some(Ipv4Addr::new(10, 0, 0, 50)));
                assert_eq!(message.server_id(), Some(Ipv4Addr::new(10, 0, 0, 1)));
            }
        }
    }

    #[test]
    fn machines_differ_in_address_and_uuid() {
        let template = Template::new(MessageType::Discover, true, false).unwrap();
        let identity = |machine| {
            let mut buffer = [0; MESSAGE_LEN_MAX];
            let len = template.write(&mut buffer, 1, &exchange(machine), Ipv4Addr::UNSPECIFIED).unwrap();
            let message = Message::parse(&buffer[..len]).unwrap();
            (message.mac(), message.uuid())
        };
        let (first, second) = (identity(1), identity(2));
        assert!(first.0 != second.0 && first.1 != second.1);
        assert!(first.1.is_some_and(crate::wire::Uuid::is_identifying));
    }
}

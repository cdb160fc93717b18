//! A boot storm: many machines switched on together, each a firmware machine of `client` that goes through DHCP, its
//! loader by TFTP or HTTP, its script and every file the script names, with its firmware's own timers. One that its
//! firmware would have given up on has failed, and counts with the stage it got to.
//!
//! DHCP and TFTP are hand-made frames, a hardware and a network address for each machine. HTTP goes through the kernel's
//! TCP, from the interface's own address for all: a machine's TCP stack is not simulated. Files longer than a script are
//! counted and not read.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::fetch::{Fetch, Part, Progress, Scratch};
use super::hosts::{LoadError, RawOut, RawPort};
use super::result::{Point, Times};
use super::{Meter, machine_mac, machine_of};
use crate::client::{Command, Config, Input, Kind, Machine, Outcome, Patience};
use crate::sys::ring::Frame;
use crate::wire::arp::{Arp, parse_arp_frame};
use crate::wire::frame::{UdpHead, parse_udp_head};
use crate::wire::tftp::data_header;
use crate::wire::{MacAddr, Uuid};

/// Machines in one storm.
pub const MACHINES_MAX: u32 = 16_384;
/// Machines switched on in one turn.
const STARTS_PER_TURN: u32 = 64;
/// HTTP is given up after this long without a byte: iPXE's own watchdog.
const HTTP_PATIENCE: Duration = Duration::from_secs(120);
/// How often silent connections are looked for.
const SILENCE_LOOK: Duration = Duration::from_secs(1);
/// Answers no longer than this are read: scripts.
const READ_UP_TO: u64 = 256 * 1024;
/// Whole DHCP messages, and firmware's largest window that a server may send as one: four blocks of 1468 bytes.
const SNAPSHOT: usize = 42 + 4 * 1472;
const FRAMES_PER_TURN: usize = 256;
const DATAGRAM_LEN_MAX: usize = 1472;
/// Servers and routers whose hardware addresses are known.
const NEIGHBOURS_MAX: usize = 1024;
/// Datagrams that wait for an answer to ARP.
const HELD_MAX: usize = 4096;
/// Different reasons of failure told apart.
const REASONS_MAX: usize = 64;
/// The storm's own address before anybody has one; RFC 5737's, so nobody asks for it.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// IPv4 and UDP headers.
const IP_UDP_LEN: usize = 28;
const FIRST_PORT: u16 = 20_000;
const PORTS: u32 = 40_000;
const RING: Token = Token(usize::MAX);
/// The longest wait without a look at the clock.
const TURN_MAX: Duration = Duration::from_millis(100);

/// What kind of machines, how many, how fast.
#[derive(Clone, Debug)]
pub struct StormLoad {
    /// Interface.
    pub interface: String,
    /// Firmware, in turn.
    pub kinds: Vec<Kind>,
    /// Machines.
    pub machines: u32,
    /// They are switched on one after the other over this time.
    pub ramp: Duration,
    /// Timers.
    pub patience: Patience,
    /// What has not booted by then has failed.
    pub time: Duration,
}

#[derive(Debug)]
struct Sim {
    machine: Machine,
    address: Ipv4Addr,
    /// Number of its newest TFTP port.
    tftp: u32,
    started: Instant,
    /// When the heap will look at it next.
    scheduled: Option<Instant>,
    stage: String,
    fetch_id: u32,
    again: bool,
    over: bool,
}

/// A datagram whose next hop is not known yet.
#[derive(Debug)]
struct Held {
    index: u32,
    from: SocketAddrV4,
    to: SocketAddrV4,
    bytes: Vec<u8>,
}

struct Run<'a> {
    load: &'a StormLoad,
    poll: Poll,
    sims: Vec<Sim>,
    fetches: Vec<Option<Fetch>>,
    heap: BinaryHeap<Reverse<(Instant, u32)>>,
    leased: HashMap<Ipv4Addr, u32>,
    neighbours: HashMap<Ipv4Addr, MacAddr>,
    held: Vec<Held>,
    again: Vec<u32>,
    scratch: Scratch,
    /// A longer payload is several datagrams.
    mtu_payload: usize,
    silence_looked_for: Instant,
    over: u32,
    boots: u64,
    local: u64,
    bytes: u64,
    latency: Times,
    first_answer: Times,
    failures: BTreeMap<String, u64>,
}

/// Boots every machine once.
///
/// # Errors
/// What keeps the storm from running at all; boots that fail are counted.
pub fn run(load: &StormLoad) -> Result<Point, LoadError> {
    if load.machines == 0 || load.machines > MACHINES_MAX || load.kinds.is_empty() {
        return Err(LoadError::new(format!("{} machines: expected 1 to {MACHINES_MAX}", load.machines)));
    }
    let mut raw = RawPort::open(&load.interface, Some(NOBODY), 1, None, 0, SNAPSHOT)?;
    if raw.interface.addr.is_none() {
        return Err(LoadError::new(format!(
            "{0} has no address, and machines fetch by HTTP from it: `ip addr add ADDR/LEN dev {0}`",
            load.interface
        )));
    }
    let fail = |error: std::io::Error| LoadError::io("wait for sockets", &error);
    let poll = Poll::new().map_err(fail)?;
    let descriptor = raw.ring.as_raw_fd();
    poll.registry().register(&mut SourceFd(&descriptor), RING, Interest::READABLE).map_err(fail)?;
    let meter = Meter::start();
    let start = Instant::now();
    let mut run = Run {
        poll,
        sims: (0..load.machines).map(|index| Sim::new(load, index, start)).collect(),
        fetches: (0..load.machines).map(|_| None).collect(),
        heap: BinaryHeap::new(),
        leased: HashMap::new(),
        neighbours: HashMap::new(),
        held: Vec::new(),
        again: Vec::new(),
        scratch: Scratch::new(),
        mtu_payload: (raw.interface.mtu as usize).saturating_sub(IP_UDP_LEN),
        silence_looked_for: start,
        over: 0,
        boots: 0,
        local: 0,
        bytes: 0,
        latency: Times::default(),
        first_answer: Times::default(),
        failures: BTreeMap::new(),
        load,
    };
    let mut events = Events::with_capacity(1024);
    let end = start + load.time;
    let mut started = 0;
    let mut frames = 0;
    loop {
        let now = Instant::now();
        if now >= end || run.over == load.machines {
            break;
        }
        let due = run.due(now.saturating_duration_since(start)).min(started + STARTS_PER_TURN);
        for index in started..due {
            let sim = &mut run.sims[index as usize];
            sim.started = now;
            sim.machine.start(now);
            run.carry_out(now, index, &mut raw.out);
        }
        started = due;
        raw.out.flush();
        let wait = match frames == FRAMES_PER_TURN || !run.again.is_empty() || run.due(now - start) > started
        {
            true => Duration::ZERO,
            false => {
                run.next_deadline().map_or(TURN_MAX, |at| at.saturating_duration_since(now)).min(TURN_MAX)
            }
        };
        match run.poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(fail(error)),
            _ => {}
        }
        let now = Instant::now();
        let out = &mut raw.out;
        frames = raw.ring.receive(FRAMES_PER_TURN, |frame| run.frame(now, out, frame));
        for index in std::mem::take(&mut run.again) {
            run.sims[index as usize].again = false;
            run.drive(now, index, &mut raw.out);
        }
        for event in events.iter().filter(|event| event.token() != RING) {
            run.drive(now, event.token().0 as u32, &mut raw.out);
        }
        run.timeouts(now, &mut raw.out);
        raw.out.flush();
    }
    let overruns = raw.ring.overruns();
    Ok(run.point(&meter, overruns))
}

impl Sim {
    fn new(load: &StormLoad, index: u32, now: Instant) -> Self {
        let mut uuid = [0x42; 16];
        uuid[12..].copy_from_slice(&index.to_be_bytes());
        let config = Config {
            kind: load.kinds[index as usize % load.kinds.len()],
            mac: machine_mac(index),
            uuid: Uuid(uuid),
            serial: format!("STORM{index}"),
            patience: load.patience,
            seed: u64::from(index) + 1,
        };
        Self {
            machine: Machine::new(config),
            address: Ipv4Addr::UNSPECIFIED,
            tftp: 0,
            started: now,
            scheduled: None,
            stage: "power-on".into(),
            fetch_id: 0,
            again: false,
            over: false,
        }
    }
}

/// Several datagrams that no card has cut yet (GSO) come as one and do not say how long each is: blocks of a window,
/// whose numbers follow each other at equal distances.
fn block_len(payload: &[u8]) -> Option<usize> {
    let [0, 3, high, low, ..] = *payload else { return None };
    let first = u16::from_be_bytes([high, low]);
    let is_next = |at: usize, count: usize| {
        let number = first.wrapping_add(count as u16);
        payload.get(at..at + 4).is_none_or(|header| header == data_header(number))
    };
    let next = data_header(first.wrapping_add(1));
    (4..payload.len().saturating_sub(3))
        .filter(|len| payload.get(*len..len + 4) == Some(&next))
        .find(|len| (len * 2..payload.len()).step_by(*len).zip(2..).all(|(at, count)| is_next(at, count)))
}

fn tftp_port(number: u32) -> u16 {
    FIRST_PORT + (number % PORTS) as u16
}

impl Run<'_> {
    /// Machines that are to be on after `elapsed`.
    fn due(&self, elapsed: Duration) -> u32 {
        if self.load.ramp.is_zero() {
            return self.load.machines;
        }
        let share = (elapsed.as_secs_f64() / self.load.ramp.as_secs_f64()).min(1.0);
        (f64::from(self.load.machines) * share) as u32
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    fn frame(&mut self, now: Instant, out: &mut RawOut, frame: Frame<'_>) {
        match parse_udp_head(frame.bytes) {
            Ok(head) => {
                let payload = head.payload_offset..head.payload_offset + head.payload_len;
                if let Some(payload) = frame.bytes.get(payload) {
                    self.datagram(now, out, &head, payload);
                }
            }
            Err(_) => self.arp(out, frame.bytes),
        }
    }

    fn datagram(&mut self, now: Instant, out: &mut RawOut, head: &UdpHead, payload: &[u8]) {
        if self.neighbours.len() < NEIGHBOURS_MAX || self.neighbours.contains_key(head.src.ip()) {
            self.neighbours.insert(*head.src.ip(), head.src_mac);
        }
        let index = match head.dst.port() {
            // A broadcast is told by the machine it is about: chaddr.
            68 => payload
                .get(28..34)
                .and_then(|mac| mac.first_chunk())
                .and_then(|mac| machine_of(MacAddr(*mac))),
            _ => machine_of(head.dst_mac),
        };
        let Some(sim) = index.and_then(|index| self.sims.get_mut(index as usize)) else { return };
        let Some(index) = index.filter(|_| !sim.over) else { return };
        let from = head.src;
        if head.dst.port() == 68 {
            sim.machine.handle(now, Input::Dhcp { from, bytes: payload });
        } else if head.dst.port() == tftp_port(sim.tftp) && *head.dst.ip() == sim.address {
            let whole = payload.len().max(1);
            let segment = if whole > self.mtu_payload { block_len(payload).unwrap_or(whole) } else { whole };
            for bytes in payload.chunks(segment) {
                sim.machine.handle(now, Input::Tftp { socket: sim.tftp, from, bytes });
            }
        } else {
            return;
        }
        self.carry_out(now, index, out);
    }

    fn arp(&mut self, out: &mut RawOut, frame: &[u8]) {
        let Some(arp) = parse_arp_frame(frame) else { return };
        if arp.reply {
            if self.neighbours.len() < NEIGHBOURS_MAX {
                self.neighbours.insert(arp.sender, arp.sender_mac);
            }
            let (ready, waiting): (Vec<Held>, Vec<Held>) =
                std::mem::take(&mut self.held).into_iter().partition(|held| *held.to.ip() == arp.sender);
            self.held = waiting;
            for held in ready {
                self.send(held.index, held.from, held.to, held.bytes, out);
            }
        } else if let Some(index) = self.leased.get(&arp.target) {
            out.send_arp(&Arp {
                reply: true,
                sender_mac: machine_mac(*index),
                sender: arp.target,
                target_mac: arp.sender_mac,
                target: arp.sender,
            });
        }
    }

    fn send(&mut self, index: u32, from: SocketAddrV4, to: SocketAddrV4, bytes: Vec<u8>, out: &mut RawOut) {
        let mac = machine_mac(index);
        let next = match to.ip().is_broadcast() {
            true => Some(MacAddr::BROADCAST),
            false => self.neighbours.get(to.ip()).copied(),
        };
        if let Some(next) = next {
            out.send_from(mac, from, next, to, DATAGRAM_LEN_MAX, |buffer| {
                buffer.get_mut(..bytes.len())?.copy_from_slice(&bytes);
                Some(bytes.len())
            });
            return;
        }
        out.send_arp(&Arp {
            reply: false,
            sender_mac: mac,
            sender: *from.ip(),
            target_mac: MacAddr([0; 6]),
            target: *to.ip(),
        });
        if self.held.len() < HELD_MAX {
            self.held.push(Held { index, from, to, bytes });
        }
    }

    /// Does what a machine wants done, and notes when it wants to be looked at.
    fn carry_out(&mut self, now: Instant, index: u32, out: &mut RawOut) {
        while let Some(command) = self.sims[index as usize].machine.poll_command() {
            let sim = &mut self.sims[index as usize];
            match command {
                Command::Dhcp { to, bytes } => {
                    let from = SocketAddrV4::new(sim.address, 68);
                    let from = if to.ip().is_broadcast() {
                        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68)
                    } else {
                        from
                    };
                    self.send(index, from, to, bytes, out);
                }
                Command::Tftp { socket, to, bytes } => {
                    sim.tftp = socket;
                    let from = SocketAddrV4::new(sim.address, tftp_port(socket));
                    self.send(index, from, to, bytes, out);
                }
                Command::Http { id, method, server, path, user_agent } => {
                    sim.fetch_id = id;
                    self.fetch(now, index, method, server, &path, user_agent);
                }
                Command::UseAddress(address) => {
                    self.leased.remove(&sim.address);
                    sim.address = address;
                    self.leased.insert(address, index);
                }
                Command::Stage(stage) => {
                    if stage.name.starts_with("dhcp") && sim.stage == "power-on" {
                        self.first_answer.record(now.saturating_duration_since(sim.started));
                    }
                    self.bytes += stage.bytes;
                    sim.stage = stage.name;
                }
                Command::Done(outcome) => {
                    sim.over = true;
                    self.over += 1;
                    self.fetches[index as usize] = None;
                    self.done(now, index, outcome);
                }
            }
        }
        let sim = &mut self.sims[index as usize];
        let wanted = sim.machine.poll_timeout().filter(|_| !sim.over);
        // A deadline that moved back is noticed when the old one passes.
        if let Some(at) = wanted
            && sim.scheduled.is_none_or(|scheduled| at < scheduled)
        {
            sim.scheduled = Some(at);
            self.heap.push(Reverse((at, index)));
        }
    }

    fn done(&mut self, now: Instant, index: u32, outcome: Outcome) {
        let sim = &self.sims[index as usize];
        match outcome {
            Outcome::Booted { .. } | Outcome::Local => {
                self.boots += 1;
                self.local += u64::from(outcome == Outcome::Local);
                self.latency.record(now.saturating_duration_since(sim.started));
            }
            Outcome::Failed(why) => {
                let reason = format!("after {}: {why}", sim.stage);
                self.fail(reason);
            }
        }
    }

    fn fail(&mut self, reason: String) {
        let known = self.failures.len() < REASONS_MAX || self.failures.contains_key(&reason);
        *self.failures.entry(if known { reason } else { "for yet another reason".into() }).or_default() += 1;
    }

    fn fetch(
        &mut self,
        now: Instant,
        index: u32,
        method: &str,
        server: SocketAddrV4,
        path: &str,
        user_agent: &str,
    ) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: {user_agent}\r\nConnection: close\r\n\r\n"
        );
        let token = Token(index as usize);
        let fetch = Fetch::connect(server, self.poll.registry(), token, request.into_bytes(), now);
        match fetch {
            Ok(mut fetch) => {
                if method == "HEAD" {
                    fetch.expect_no_body();
                }
                self.fetches[index as usize] = Some(fetch);
            }
            Err(_) => {
                let sim = &mut self.sims[index as usize];
                // No socket is the storm's own trouble, and the machine's failure all the same: it is seen as such.
                sim.machine.handle(now, Input::HttpFailed { id: sim.fetch_id });
            }
        }
    }

    fn drive(&mut self, now: Instant, index: u32, out: &mut RawOut) {
        let Some(Some(fetch)) = self.fetches.get_mut(index as usize) else { return };
        let sim = &mut self.sims[index as usize];
        let id = sim.fetch_id;
        let machine = &mut sim.machine;
        let progress = fetch.drive(now, READ_UP_TO, &mut self.scratch, |part| {
            machine.handle(
                now,
                match part {
                    Part::Head(head) => Input::HttpHead {
                        id,
                        status: head.status.code(),
                        len: head.content_length,
                        content_type: head.header("Content-Type").unwrap_or_default(),
                    },
                    Part::Bytes(bytes) => Input::HttpBody { id, bytes },
                    Part::Discarded(len) => Input::HttpSkipped { id, len },
                },
            );
        });
        match progress {
            Progress::Waiting => return,
            Progress::Again => {
                if !sim.again {
                    sim.again = true;
                    self.again.push(index);
                }
                return;
            }
            Progress::Answered { .. } => {
                self.fetches[index as usize] = None;
                sim.machine.handle(now, Input::HttpEnd { id });
            }
            Progress::Failed(_) => {
                self.fetches[index as usize] = None;
                sim.machine.handle(now, Input::HttpFailed { id });
            }
        }
        self.carry_out(now, index, out);
    }

    fn timeouts(&mut self, now: Instant, out: &mut RawOut) {
        while let Some(Reverse((at, index))) = self.heap.peek().copied() {
            if at > now {
                break;
            }
            self.heap.pop();
            let sim = &mut self.sims[index as usize];
            if sim.scheduled != Some(at) {
                continue;
            }
            sim.scheduled = None;
            if sim.over {
                continue;
            }
            sim.machine.handle_timeout(now);
            self.carry_out(now, index, out);
        }
        if now < self.silence_looked_for {
            return;
        }
        self.silence_looked_for = now + SILENCE_LOOK;
        for index in 0..self.fetches.len() {
            let silent = self.fetches[index]
                .as_ref()
                .is_some_and(|fetch| now.saturating_duration_since(fetch.heard) > HTTP_PATIENCE);
            if silent {
                self.fetches[index] = None;
                let sim = &mut self.sims[index];
                sim.machine.handle(now, Input::HttpFailed { id: sim.fetch_id });
                self.carry_out(now, index as u32, out);
            }
        }
    }

    fn point(mut self, meter: &Meter, overruns: u64) -> Point {
        let unfinished: Vec<String> = self
            .sims
            .iter()
            .filter(|sim| !sim.over)
            .map(|sim| format!("after {}: not done when time was up", sim.stage))
            .collect();
        unfinished.into_iter().for_each(|reason| self.fail(reason));
        let load = self.load;
        let kinds: Vec<&str> = load.kinds.iter().map(|kind| kind.word()).collect();
        let mut settings = BTreeMap::from([("firmware".to_owned(), kinds.join("+"))]);
        if !load.ramp.is_zero() {
            settings.insert("ramp_ms".into(), load.ramp.as_millis().to_string());
        }
        if load.patience != Patience::firmware() {
            settings.insert("patience".into(), "short".into());
        }
        if self.local > 0 {
            settings.insert("to_local_disk".into(), self.local.to_string());
        }
        let said_again: u32 = self.sims.iter().map(|sim| sim.machine.said_again()).sum();
        if said_again > 0 {
            settings.insert("said_again".into(), said_again.to_string());
        }
        if overruns > 0 {
            settings.insert("overruns".into(), overruns.to_string());
        }
        let mut point = Point {
            work: "storm".into(),
            settings,
            clients: load.machines,
            bytes: self.bytes,
            units: self.boots,
            unit: "boots".into(),
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

    #[test]
    fn a_window_in_one_piece_is_taken_apart_at_its_block_numbers() {
        let window = |first: u16, lens: &[usize]| -> Vec<u8> {
            lens.iter()
                .zip(0u16..)
                .flat_map(|(len, index)| {
                    let mut block = data_header(first.wrapping_add(index)).to_vec();
                    block.resize(len + 4, 0);
                    block
                })
                .collect()
        };
        assert_eq!(block_len(&window(65_534, &[1468, 1468, 1468, 1468])), Some(1472));
        assert_eq!(block_len(&window(7, &[1468, 5])), Some(1472));
        assert_eq!(block_len(&window(7, &[1468, 0])), Some(1472));
        assert_eq!(block_len(&window(7, &[1468])), None);
        // Payload that looks like a header, but not at every distance.
        let mut mistaken = window(7, &[1468, 1468, 1468]);
        mistaken[100..104].copy_from_slice(&data_header(8));
        assert_eq!(block_len(&mistaken), Some(1472));
        assert_eq!(block_len(b"\0\x06"), None);
    }

    #[test]
    fn a_storm_of_nobody_is_refused() {
        let load = StormLoad {
            interface: "lo".into(),
            kinds: vec![Kind::Bios],
            machines: 0,
            ramp: Duration::ZERO,
            patience: Patience::quick(),
            time: Duration::from_secs(1),
        };
        assert!(run(&load).unwrap_err().to_string().contains("0 machines"));
        let load = StormLoad { machines: MACHINES_MAX + 1, ..load };
        assert!(run(&load).is_err());
    }
}

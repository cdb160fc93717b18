//! Simulated hosts: each with an address of its own and, on a raw interface, a hardware address; one thread speaks for
//! all of them.
//!
//! On an interface they are hand-made frames, so that thousands of clients cost no socket and no payload is copied. Where
//! no raw socket may be had, or the server is on loopback, they are few sockets: below 127.0.0.0/8 every client has an
//! address of its own there too, elsewhere it has two ports.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::sys::SysError;
use crate::sys::interfaces::{self, Device, Interface};
use crate::sys::packet::BpfInstruction;
use crate::sys::ring::{Frame, FrameBatch, FrameRing, RingUse};
use crate::sys::runs::{RunBatch, join_runs};
use crate::sys::udp::{SendBatch, Source, UdpOptions, UdpSocket};
use crate::wire::MacAddr;
use crate::wire::arp::{ARP_FRAME_LEN, Arp, emit_arp_frame, parse_arp_frame};
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHead, UdpHeader, emit_udp_headers, parse_udp_head};

/// Simulated hosts in one load.
pub const HOSTS_MAX: u32 = 1 << 16;
/// Clients on plain sockets of their own, off loopback.
pub const SOCKET_CLIENTS_MAX: u32 = 4096;
/// Memory of the receive ring.
const RING_LEN: usize = 16 << 20;
/// Ports a client takes in turn, so that one download's stragglers are no part of the next.
const PORTS_PER_CLIENT: u16 = 2;
/// Sockets all clients on loopback share.
const LOOPBACK_SOCKETS: u16 = 8;
/// First ephemeral port of simulated hosts.
const FIRST_PORT: u16 = 20_000;
/// Frames handled between two looks at the clock.
const FRAMES_PER_TURN: usize = 256;
/// How long the server may take to answer ARP.
const ARP_PATIENCE: Duration = Duration::from_secs(3);
const ARP_INTERVAL: Duration = Duration::from_millis(300);
/// Receive buffer asked for.
const RECV_BUFFER: i32 = 32 << 20;
/// Headers and the first bytes of a payload.
pub(super) const SNAPSHOT_HEAD: usize = 128;
/// Everything, GSO included.
pub(super) const SNAPSHOT_ALL: usize = 65_535 + 14;

/// Why a load could not run: one line, with the way out where there is one.
#[derive(Debug)]
pub struct LoadError {
    message: String,
    permission: bool,
}

impl LoadError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), permission: false }
    }

    pub(super) fn io(what: &str, error: &io::Error) -> Self {
        Self {
            message: format!("{what}: {error}"),
            permission: error.kind() == io::ErrorKind::PermissionDenied,
        }
    }

    /// True when a privilege is missing.
    pub fn is_permission(&self) -> bool {
        self.permission
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for LoadError {}

impl From<SysError> for LoadError {
    fn from(error: SysError) -> Self {
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        Self { message: format!("{error}{advice}"), permission: error.is_permission() }
    }
}

/// How simulated hosts reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Hand-made frames on this interface, hosts numbered from `first` on.
    Raw {
        /// Interface name.
        interface: String,
        /// First host's address; `None` takes the last ones of the interface's own network.
        first: Option<Ipv4Addr>,
    },
    /// Ordinary sockets.
    Sockets,
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hosts {
    first: u32,
    count: u32,
}

impl Hosts {
    pub(super) fn new(first: Ipv4Addr, count: u32) -> Option<Self> {
        let first = u32::from(first);
        (count > 0 && count <= HOSTS_MAX && first.checked_add(count).is_some())
            .then_some(Self { first, count })
    }

    pub(super) fn ip(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + index)
    }

    /// Locally administered, and another one for every address in use at once.
    pub(super) fn mac(self, index: u32) -> MacAddr {
        mac_of(self.ip(index))
    }

    pub(super) fn index(self, ip: Ipv4Addr) -> Option<u32> {
        u32::from(ip).checked_sub(self.first).filter(|index| *index < self.count)
    }
}

pub(super) fn mac_of(ip: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = ip.octets();
    MacAddr([0x02, 0xb5, a, b, c, d])
}

/// How long an interface may take to have its carrier. Linux tells of a new one up to a second late
/// (`net/core/link_watch.c`), and a switch port negotiates.
const CARRIER_PATIENCE: Duration = Duration::from_secs(2);

/// An interface by name, up.
pub(super) fn interface(name: &str) -> Result<Interface, LoadError> {
    let until = Instant::now() + CARRIER_PATIENCE;
    up(
        || named(name),
        || {
            std::thread::sleep(Duration::from_millis(50));
            Instant::now() < until
        },
    )
}

/// What `look` finds once it is up, looking again for as long as `again` says so.
fn up(
    look: impl Fn() -> Result<Interface, LoadError>,
    mut again: impl FnMut() -> bool,
) -> Result<Interface, LoadError> {
    loop {
        let found = look()?;
        if found.running {
            return Ok(found);
        }
        if !again() {
            let name = found.name;
            return Err(LoadError::new(format!(
                "{name} is down or has no carrier: `ip link set {name} up`, and the same at its other end"
            )));
        }
    }
}

fn named(name: &str) -> Result<Interface, LoadError> {
    let all = interfaces::list().map_err(|error| LoadError::io("list interfaces", &error))?;
    let names: Vec<String> = all.iter().map(|interface| interface.name.clone()).collect();
    let found = all.into_iter().find(|interface| interface.name == name);
    found.ok_or_else(|| LoadError::new(format!("no interface {name:?} here; there are {}", names.join(", "))))
}

/// True when frames to everybody on this interface stay on this machine.
pub fn stays_here(interface_name: &str) -> Result<bool, LoadError> {
    Ok(matches!(interface(interface_name)?.device, Device::Veth | Device::Loopback))
}

/// Where hosts of an interface's own network get their addresses: its last ones.
fn default_first(interface: &Interface, server: Option<Ipv4Addr>, count: u32) -> Result<Ipv4Addr, LoadError> {
    let name = &interface.name;
    let no = |why: &str| LoadError::new(format!("{name} {why}: name the first client's address with --from"));
    let own = interface.addr.ok_or_else(|| no("has no address"))?;
    let size = 1u64 << (32 - u32::from(interface.prefix.min(32)));
    let network = u64::from(u32::from(own)) & !(size - 1);
    let first = (network + size)
        .checked_sub(u64::from(count) + 1)
        .filter(|first| *first > network)
        .ok_or_else(|| no("has too small a network"))?;
    let taken = |ip: Ipv4Addr| (first..first + u64::from(count)).contains(&u64::from(u32::from(ip)));
    if taken(own) || server.is_some_and(taken) {
        return Err(no("has too small a network"));
    }
    Ok(Ipv4Addr::from(first as u32))
}

/// ARP, and IPv4 UDP from `server` (0: anybody's), to `port` (0: any).
fn filter(server: Ipv4Addr, port: u16, snapshot: usize) -> Vec<BpfInstruction> {
    let op = |code: u16, k: u32, jt: u8, jf: u8| BpfInstruction { code, jt, jf, k };
    let (load_half, load_byte, load_word, jump_eq, ret) = (0x28, 0x30, 0x20, 0x15, 0x06);
    let mut program = vec![op(load_half, 12, 0, 0), op(jump_eq, 0x0806, 0, 0), op(jump_eq, 0x0800, 0, 0)];
    let arp = program.len() - 2;
    let mut checks = vec![program.len() - 1];
    program.push(op(load_byte, 23, 0, 0));
    checks.push(program.len());
    program.push(op(jump_eq, 17, 0, 0));
    if !server.is_unspecified() {
        program.push(op(load_word, 26, 0, 0));
        checks.push(program.len());
        program.push(op(jump_eq, u32::from(server), 0, 0));
    }
    if port != 0 {
        // Simulated hosts' servers send no IP options; with them a frame is passed on and looked at here.
        program.push(op(load_half, 36, 0, 0));
        checks.push(program.len());
        program.push(op(jump_eq, u32::from(port), 0, 0));
    }
    let accept = program.len();
    program.push(op(ret, snapshot as u32, 0, 0));
    let drop = program.len();
    program.push(op(ret, 0, 0, 0));
    for at in checks {
        program[at].jf = (drop - at - 1) as u8;
    }
    program[arp].jt = (accept - arp - 1) as u8;
    program
}

/// The sending half on an interface.
#[derive(Debug)]
pub(super) struct RawOut {
    socket: OwnedFd,
    batch: FrameBatch,
    pub(super) hosts: Hosts,
    /// Where frames to the server go.
    pub(super) server_mac: MacAddr,
    ip_id: u16,
}

impl RawOut {
    /// One datagram of at most `len_max` bytes of payload, from a host to the server.
    pub(super) fn send(
        &mut self,
        host: u32,
        from_port: u16,
        to: SocketAddrV4,
        len_max: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        let src = SocketAddrV4::new(self.hosts.ip(host), from_port);
        self.send_from(self.hosts.mac(host), src, self.server_mac, to, len_max, write);
    }

    /// The same with every address given.
    pub(super) fn send_from(
        &mut self,
        src_mac: MacAddr,
        src: SocketAddrV4,
        dst_mac: MacAddr,
        dst: SocketAddrV4,
        len_max: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        self.ip_id = self.ip_id.wrapping_add(1);
        let header = UdpHeader { src_mac, dst_mac, src, dst, ttl: 64, ip_id: self.ip_id };
        self.batch.push(&self.socket, UDP_PAYLOAD_OFFSET + len_max, |frame| {
            let (headers, payload) = frame.split_first_chunk_mut::<UDP_PAYLOAD_OFFSET>()?;
            let len = write(payload)?;
            // No UDP checksum: summing what nobody loses would be a good part of the load's cost.
            emit_udp_headers(headers, &header, len)?;
            Some(UDP_PAYLOAD_OFFSET + len)
        });
    }

    pub(super) fn send_arp(&mut self, arp: &Arp) {
        self.batch.push(&self.socket, ARP_FRAME_LEN, |frame| emit_arp_frame(frame, arp));
    }

    /// Answers a question about one of `hosts`, or about `also`.
    pub(super) fn answer_arp(&mut self, frame: &[u8], also: Option<Ipv4Addr>) {
        let Some(question) = parse_arp_frame(frame) else { return };
        if question.reply || (self.hosts.index(question.target).is_none() && also != Some(question.target)) {
            return;
        }
        self.send_arp(&Arp {
            reply: true,
            sender_mac: mac_of(question.target),
            sender: question.target,
            target_mac: question.sender_mac,
            target: question.sender,
        });
    }

    pub(super) fn flush(&mut self) {
        self.batch.flush(&self.socket);
    }

    pub(super) fn unsent(&self) -> u64 {
        self.batch.unsent()
    }
}

/// Simulated hosts on an interface.
#[derive(Debug)]
pub(super) struct RawPort {
    pub(super) ring: FrameRing,
    pub(super) out: RawOut,
    pub(super) interface: Interface,
}

impl RawPort {
    /// Opens the interface for `count` hosts. `server`, if given, is looked for by ARP, and nobody else is heard.
    pub(super) fn open(
        name: &str,
        first: Option<Ipv4Addr>,
        count: u32,
        server: Option<Ipv4Addr>,
        port: u16,
        snapshot: usize,
    ) -> Result<Self, LoadError> {
        let interface = interface(name)?;
        let first = match first {
            Some(first) => first,
            None => default_first(&interface, server, count)?,
        };
        let hosts = Hosts::new(first, count)
            .ok_or_else(|| LoadError::new(format!("{count} hosts from {first} on do not fit")))?;
        let heard = server.filter(|_| port == 0).unwrap_or(Ipv4Addr::UNSPECIFIED);
        let program = filter(heard, port, snapshot);
        let ring = FrameRing::open(
            name,
            interface.index,
            &program,
            &RingUse { snapshot, len: RING_LEN, all: true, outgoing: false, captured: false },
        )?;
        let socket = ring.sender().map_err(|error| LoadError::io("open packet socket", &error))?;
        let out =
            RawOut { socket, batch: FrameBatch::new(), hosts, server_mac: MacAddr::BROADCAST, ip_id: 0 };
        let mut opened = Self { ring, out, interface };
        if let Some(server) = server {
            opened.out.server_mac = opened.find(server)?;
        }
        Ok(opened)
    }

    /// A machine's hardware address by ARP.
    fn find(&mut self, target: Ipv4Addr) -> Result<MacAddr, LoadError> {
        let start = Instant::now();
        let mut found = None;
        while start.elapsed() < ARP_PATIENCE {
            let question = Arp {
                reply: false,
                sender_mac: self.out.hosts.mac(0),
                sender: self.out.hosts.ip(0),
                target_mac: MacAddr([0; 6]),
                target,
            };
            self.out.send_arp(&question);
            self.out.flush();
            let asked = Instant::now();
            while asked.elapsed() < ARP_INTERVAL {
                self.ring
                    .wait(ARP_INTERVAL.saturating_sub(asked.elapsed()))
                    .map_err(|error| LoadError::io("wait for ARP", &error))?;
                let out = &mut self.out;
                self.ring.receive(FRAMES_PER_TURN, |frame| match parse_arp_frame(frame.bytes) {
                    Some(arp) if arp.reply && arp.sender == target => found = Some(arp.sender_mac),
                    _ => out.answer_arp(frame.bytes, None),
                });
                self.out.flush();
                if let Some(mac) = found {
                    return Ok(mac);
                }
            }
        }
        Err(LoadError::new(format!(
            "nobody has {target} on {}: no answer to ARP in {} s; is the server up, and on that network?",
            self.interface.name,
            ARP_PATIENCE.as_secs()
        )))
    }

    /// Handles what waits, after waiting for it at most `wait`. ARP is answered here; every UDP datagram is handed on
    /// with its headers.
    pub(super) fn receive(
        &mut self,
        wait: Duration,
        mut take: impl FnMut(&mut RawOut, &UdpHead, Frame<'_>),
    ) -> Result<usize, LoadError> {
        let out = &mut self.out;
        let mut handle = |frame: Frame<'_>| match parse_udp_head(frame.bytes) {
            Ok(head) => take(out, &head, frame),
            Err(_) => out.answer_arp(frame.bytes, None),
        };
        let taken = self.ring.receive(FRAMES_PER_TURN, &mut handle);
        if taken > 0 || wait.is_zero() {
            return Ok(taken);
        }
        self.ring.wait(wait).map_err(|error| LoadError::io("wait for frames", &error))?;
        Ok(self.ring.receive(FRAMES_PER_TURN, &mut handle))
    }
}

/// A datagram, or a run of equal ones, for a simulated client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival<'a> {
    pub(super) client: u32,
    /// Which of the client's ports, as [`Out::next_port`] named it.
    pub(super) port: u16,
    pub(super) from: SocketAddrV4,
    /// The first bytes of the payload.
    pub(super) head: &'a [u8],
    /// Bytes of payload.
    pub(super) len: usize,
    /// Bytes of each datagram but the last, where that is known: 0 says that it may be several, of a length that the
    /// protocol knows.
    pub(super) segment: usize,
}

/// The sending half, on either way.
#[derive(Debug)]
pub(super) enum Out {
    Raw(RawOut),
    Sockets(SocketOut),
}

#[derive(Debug)]
pub(super) struct SocketOut {
    sockets: Vec<UdpSocket>,
    /// Shared by all sockets that are this many apart; each collects for one socket at a time.
    batches: Vec<(u16, SendBatch)>,
    loopback: Option<Hosts>,
    unsent: u64,
}

impl SocketOut {
    fn send(&mut self, client: u32, port: u16, to: SocketAddrV4, bytes: &[u8]) {
        let addr = self.loopback.map_or(Ipv4Addr::UNSPECIFIED, |hosts| hosts.ip(client));
        let index = usize::from(port) % self.batches.len();
        let (current, batch) = &self.batches[index];
        if *current != port || batch.is_full(1, bytes.len()) {
            self.flush_batch(index);
        }
        let (current, batch) = &mut self.batches[index];
        *current = port;
        batch.push_bytes(to, Source { addr, interface: 0 }, 0, bytes);
    }

    fn flush_batch(&mut self, index: usize) {
        let (port, batch) = &mut self.batches[index];
        if !batch.is_empty()
            && let Some(socket) = self.sockets.get(usize::from(*port))
        {
            let unsent = &mut self.unsent;
            batch.flush(socket, |_| *unsent += 1);
        }
    }

    fn flush(&mut self) {
        (0..self.batches.len()).for_each(|index| self.flush_batch(index));
    }
}

impl Out {
    /// Another port for a client's next download.
    pub(super) fn next_port(&self, client: u32, last: Option<u16>) -> u16 {
        match self {
            Self::Raw(_) => match last {
                Some(last) if last < u16::MAX => last + 1,
                Some(_) => FIRST_PORT,
                None => FIRST_PORT + (client % 30_000) as u16,
            },
            Self::Sockets(out) if out.loopback.is_some() => last
                .map_or((client % u32::from(LOOPBACK_SOCKETS)) as u16, |last| (last + 1) % LOOPBACK_SOCKETS),
            Self::Sockets(_) => {
                let first = client as u16 * PORTS_PER_CLIENT;
                last.map_or(first, |last| first + (last - first + 1) % PORTS_PER_CLIENT)
            }
        }
    }

    /// One datagram of at most `len_max` bytes from a client's port.
    pub(super) fn send(
        &mut self,
        client: u32,
        port: u16,
        to: SocketAddrV4,
        len_max: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        match self {
            Self::Raw(out) => out.send(client, port, to, len_max, write),
            Self::Sockets(out) => {
                let mut buffer = [0; 1024];
                let room = &mut buffer[..len_max.min(1024)];
                let Some(len) = write(room) else { return };
                out.send(client, port, to, &buffer[..len]);
            }
        }
    }

    pub(super) fn flush(&mut self) {
        match self {
            Self::Raw(out) => out.flush(),
            Self::Sockets(out) => out.flush(),
        }
    }

    pub(super) fn unsent(&self) -> u64 {
        match self {
            Self::Raw(out) => out.unsent(),
            Self::Sockets(out) => out.unsent,
        }
    }
}

#[derive(Debug)]
enum Rx {
    Raw(FrameRing),
    Sockets { poll: Poll, events: Events, ready: Vec<u16>, is_ready: Vec<bool>, batch: RunBatch },
}

/// Simulated clients of one server, on either way.
#[derive(Debug)]
pub(super) struct Port {
    rx: Rx,
    pub(super) out: Out,
}

impl Port {
    /// `whole` hands over all of every payload, for those who check it; a datagram's length is `payload_max` at most.
    pub(super) fn open(
        way: &Way,
        server: Ipv4Addr,
        clients: u32,
        payload_max: usize,
        whole: bool,
    ) -> Result<Self, LoadError> {
        if clients == 0 || clients > HOSTS_MAX {
            return Err(LoadError::new(format!("{clients} clients: expected 1 to {HOSTS_MAX}")));
        }
        match way {
            Way::Raw { interface, first } => {
                let snapshot = if whole { SNAPSHOT_ALL } else { SNAPSHOT_HEAD };
                let port = RawPort::open(interface, *first, clients, Some(server), 0, snapshot)?;
                let mtu = port.interface.mtu as usize;
                if payload_max + 28 > mtu {
                    return Err(LoadError::new(format!(
                        "datagrams of {payload_max} bytes do not fit {interface}'s MTU of {mtu}, and simulated hosts \
                         put no fragments together: leave out --interface, or raise the MTU"
                    )));
                }
                Ok(Self { rx: Rx::Raw(port.ring), out: Out::Raw(port.out) })
            }
            Way::Sockets => Self::sockets(server, clients, whole),
        }
    }

    fn sockets(server: Ipv4Addr, clients: u32, whole: bool) -> Result<Self, LoadError> {
        let loopback = match server.is_loopback() {
            true => Hosts::new(Ipv4Addr::new(127, 64, 0, 1), clients),
            false => None,
        };
        let count = match loopback {
            Some(_) => u32::from(LOOPBACK_SOCKETS),
            None if clients <= SOCKET_CLIENTS_MAX => clients * u32::from(PORTS_PER_CLIENT),
            None => {
                return Err(LoadError::new(format!(
                    "{clients} clients on plain sockets: at most {SOCKET_CLIENTS_MAX}; --interface has room for more"
                )));
            }
        };
        let fail = |error: io::Error| LoadError::io("wait for sockets", &error);
        let poll = Poll::new().map_err(fail)?;
        let options = UdpOptions { recv_buffer: RECV_BUFFER, fragment: true, ..UdpOptions::default() };
        let mut sockets = Vec::with_capacity(count as usize);
        for index in 0..count {
            let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), &options)?;
            // An older kernel hands datagrams over one by one, which only costs more.
            let _ = join_runs(&socket);
            let descriptor = socket.as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&descriptor), Token(index as usize), Interest::READABLE)
                .map_err(fail)?;
            sockets.push(socket);
        }
        let head_len = if whole { 65_536 } else { SNAPSHOT_HEAD };
        Ok(Self {
            rx: Rx::Sockets {
                poll,
                events: Events::with_capacity(1024),
                ready: Vec::with_capacity(count as usize),
                is_ready: vec![false; count as usize],
                batch: RunBatch::new(head_len),
            },
            out: Out::Sockets(SocketOut {
                sockets,
                batches: (0..LOOPBACK_SOCKETS).map(|port| (port, SendBatch::new())).collect(),
                loopback,
                unsent: 0,
            }),
        })
    }

    /// Handles what waits, after waiting for it at most `wait`; how much there was.
    pub(super) fn receive(
        &mut self,
        wait: Duration,
        mut take: impl FnMut(&mut Out, Arrival<'_>),
    ) -> Result<usize, LoadError> {
        match &mut self.rx {
            Rx::Raw(ring) => {
                let out = &mut self.out;
                let mut handle = |frame: Frame<'_>| {
                    let Ok(head) = parse_udp_head(frame.bytes) else {
                        if let Out::Raw(out) = out {
                            out.answer_arp(frame.bytes, None);
                        }
                        return;
                    };
                    let Out::Raw(raw) = &*out else { return };
                    let Some(client) = raw.hosts.index(*head.dst.ip()) else { return };
                    let end = (head.payload_offset + head.payload_len).min(frame.bytes.len());
                    let bytes = frame.bytes.get(head.payload_offset..end).unwrap_or_default();
                    let arrival = Arrival {
                        client,
                        port: head.dst.port(),
                        from: head.src,
                        head: bytes,
                        len: head.payload_len,
                        // A frame may be several datagrams that no card has cut yet (GSO), and does not say so.
                        segment: 0,
                    };
                    take(out, arrival);
                };
                let taken = ring.receive(FRAMES_PER_TURN, &mut handle);
                if taken > 0 || wait.is_zero() {
                    return Ok(taken);
                }
                ring.wait(wait).map_err(|error| LoadError::io("wait for frames", &error))?;
                Ok(ring.receive(FRAMES_PER_TURN, &mut handle))
            }
            Rx::Sockets { poll, events, ready, is_ready, batch } => {
                let patience = if ready.is_empty() { wait } else { Duration::ZERO };
                match poll.poll(events, Some(patience)) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                        return Err(LoadError::io("wait for sockets", &error));
                    }
                    _ => {}
                }
                for event in events.iter() {
                    let index = event.token().0;
                    if let Some(flag) = is_ready.get_mut(index).filter(|flag| !**flag) {
                        *flag = true;
                        ready.push(index as u16);
                    }
                }
                let mut taken = 0;
                // One batch from each: nobody waits for somebody else's flood.
                let mut at = 0;
                while let Some(&index) = ready.get(at) {
                    let Out::Sockets(out) = &mut self.out else { return Ok(taken) };
                    let Some(socket) = out.sockets.get(usize::from(index)) else { return Ok(taken) };
                    let loopback = out.loopback;
                    let count = batch.receive(socket).map_err(|error| LoadError::io("receive", &error))?;
                    if count == 0 {
                        is_ready[usize::from(index)] = false;
                        ready.swap_remove(at);
                        continue;
                    }
                    for run in (0..count).filter_map(|index| batch.run(index)) {
                        let client = match loopback {
                            Some(hosts) => hosts.index(run.to),
                            None => Some(u32::from(index / PORTS_PER_CLIENT)),
                        };
                        let Some(client) = client else { continue };
                        let (head, len, segment) = (run.head, run.len, run.segment);
                        take(
                            &mut self.out,
                            Arrival { client, port: index, from: run.from, head, len, segment },
                        );
                        taken += 1;
                    }
                    at += 1;
                }
                Ok(taken)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_addresses_of_their_own() {
        let hosts = Hosts::new(Ipv4Addr::new(10, 0, 0, 250), 20).unwrap();
        assert_eq!(hosts.ip(6), Ipv4Addr::new(10, 0, 1, 0));
        assert_eq!(hosts.index(hosts.ip(19)), Some(19));
        assert_eq!(hosts.index(Ipv4Addr::new(10, 0, 1, 14)), None);
        assert_eq!(hosts.index(Ipv4Addr::new(10, 0, 0, 249)), None);
        assert!(!hosts.mac(3).is_group());
        assert_eq!(Hosts::new(Ipv4Addr::new(255, 255, 255, 250), 20), None);
        assert_eq!(Hosts::new(Ipv4Addr::new(10, 0, 0, 1), 0), None);
        assert_eq!(Hosts::new(Ipv4Addr::new(10, 0, 0, 1), HOSTS_MAX + 1), None);
    }

    #[test]
    fn hosts_take_the_end_of_the_network_and_nobodys_address() {
        let interface = |addr: [u8; 4], prefix| Interface {
            index: 1,
            name: "v0".into(),
            addr: Some(addr.into()),
            prefix,
            mac: [0; 6],
            ethernet: true,
            running: true,
            mtu: 1500,
            device: Device::Veth,
        };
        let first = |interface: &Interface, server: [u8; 4], count| {
            default_first(interface, Some(server.into()), count).map_err(|error| error.to_string())
        };
        let lan = interface([10, 0, 0, 2], 24);
        assert_eq!(first(&lan, [10, 0, 0, 1], 100), Ok(Ipv4Addr::new(10, 0, 0, 155)));
        assert!(first(&lan, [10, 0, 0, 200], 100).unwrap_err().contains("--from"), "the server's address");
        assert!(first(&lan, [10, 0, 0, 1], 254).unwrap_err().contains("--from"));
        assert!(first(&lan, [10, 0, 0, 1], 1000).unwrap_err().contains("too small"));
        let without = Interface { addr: None, ..lan };
        assert!(first(&without, [10, 0, 0, 1], 1).unwrap_err().contains("has no address"));
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_with_those_that_are() {
        let error = interface("nope0").unwrap_err().to_string();
        assert!(error.contains("nope0") && error.contains("lo"), "{error}");
    }

    #[test]
    fn an_interface_that_comes_up_is_waited_for_and_one_that_does_not_is_said_to_be_down() {
        let looks = std::cell::Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            named("lo").map(|lo| Interface { running: looks.get() == 4, ..lo })
        };
        assert!(up(look, || looks.get() < 4).unwrap().running);
        looks.set(4);
        let error = up(look, || looks.get() < 9).unwrap_err().to_string();
        assert!(looks.get() == 9 && error.contains("ip link set lo up"), "{error}");
    }

    #[test]
    fn the_filter_jumps_inside_its_program() {
        for (server, port) in [([0; 4], 0), ([10, 0, 0, 1], 0), ([0; 4], 68), ([10, 0, 0, 1], 68)] {
            let program = filter(server.into(), port, 96);
            for (at, instruction) in program.iter().enumerate() {
                if instruction.code == 0x15 {
                    assert!(at + 1 + usize::from(instruction.jt.max(instruction.jf)) < program.len());
                }
            }
            let [.., accept, drop] = &program[..] else { panic!("a program ends in two returns") };
            assert_eq!((accept.k, drop.k), (96, 0));
        }
    }
}

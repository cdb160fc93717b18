//! DHCP on the core that owns it: frames from a ring and UDP datagrams in, the machine's answers out in batches.
//!
//! A client that has no address yet is answered by a whole frame, so nothing waits for ARP. Where raw sockets are
//! refused, the same answers leave by UDP as broadcasts.
//!
//! *More than can be answered.* What belongs to an exchange under way (REQUEST and all that is no DISCOVER) has a ring of
//! its own, which every turn empties; of DISCOVERs so many are answered in a turn, and the rest waits: in their ring, or
//! for those that came by UDP in a bounded queue. What finds no room there is dropped, the newest first, at no cost to
//! us; so what was offered is also given, whatever is asked beyond it. One that waited too long is dropped when its turn
//! comes: its machine has asked again.
//!
//! *Leases on the disk.* An ACK that gives an address leaves only when the lease is stored. The replies of one turn are
//! held together, their leases written as one batch by the journal's thread ([`Scribe`]), and sent when it says so;
//! meanwhile the next batch gathers, and a small one for two milliseconds. If the disk refuses, they are not sent: the machines ask again.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use mio::Registry;

use super::core::{Owner, Turn, watch};
use super::counters::Count;
use super::filters;
use super::policy::Decider;
use super::probe::Prober;
use super::shared::Tuning;
use super::sightings::Sighting;
use super::start::readdress;
use crate::jobs::evidence::{Asker, Evidence, Seen};
use crate::keeper::Answer;
use crate::keeper::journal::{Entry, Scribe};
use crate::proto::dhcp::{
    CLIENT_PORT, Change, DhcpEvent, DhcpStep, DropReason, Input, Interface, LeaseRecord, LeaseTerm, Network,
    Notice, Output, Probe, ProbeAnswer, Rival, Server, ServerPort, Settings, To, Verdict,
};
use crate::proto::firmware::{Firmware, FirmwareKind};
use crate::sys::memory::prefetch;
use crate::sys::packet::BpfInstruction;
use crate::sys::ring::{FrameBatch, FrameRing, RingUse};
use crate::sys::udp::{BATCH, Source, UdpSocket};
use crate::sys::{SysError, interfaces};
use crate::wire::MacAddr;
use crate::wire::capture::Packet;
use crate::wire::dhcp::{CHADDR_OFFSET, Message, MessageType, OP_REQUEST, OPTIONS_OFFSET, code};
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_frame, parse_udp_frame};

/// Messages taken from one socket per turn.
const MESSAGES_PER_TURN: usize = 1024;
/// DISCOVERs answered per turn as they come, and as many again of those that wait.
const DISCOVERS_PER_TURN: usize = 128;
/// Relayed DISCOVERs that wait; at 200,000 a second they wait 40 ms.
const WAITING_MAX: usize = 8192;
/// One that waited longer is not answered: iPXE repeats itself after a second, ROMs after four.
const STALE: Duration = Duration::from_millis(900);
/// Longest frame taken: an Ethernet frame with a VLAN tag.
const FRAME_LEN: usize = 1518;
/// Where a hardware address stands in a frame without IP options; in another one these are other bytes.
const CHADDR_IN_FRAME: Range<usize> =
    UDP_PAYLOAD_OFFSET + CHADDR_OFFSET..UDP_PAYLOAD_OFFSET + CHADDR_OFFSET + 6;
/// Bytes of replies that wait for their leases to be stored.
const HELD_MAX: usize = 4 << 20;
/// Batches for the journal begin so far apart, unless so many leases wait: what comes one by one at a few thousand a second
/// shares a write, a sync and three wake-ups, and no machine notices two milliseconds. The first after a pause goes at once.
const BATCHES_APART: Duration = Duration::from_millis(2);
const BATCH_ENOUGH: usize = 16;
/// Offers the flight recorder is told of: a burst, then so many a second. No hall of machines starts faster.
const RECORDED_BURST: f64 = 16_384.0;
const RECORDED_PER_SECOND: f64 = 5_000.0;
/// Log lines about what was noticed: a burst, then one in so many seconds. Strangers can make notices.
const NOTICED_BURST: f64 = 16.0;
const NOTICED_PER_SECOND: f64 = 1.0 / 60.0;
/// How often pools are looked at.
const POOLS_EVERY: Duration = Duration::from_secs(1);

/// An interface's frames, and the way out of it.
#[derive(Debug)]
pub(super) struct RawPort {
    /// Out on loan while their frames are handled.
    ring: Option<FrameRing>,
    discovers: Option<FrameRing>,
    /// Both rings' descriptors, which they own.
    readable: [RawFd; 2],
    /// The way out, apart from the rings.
    fd: OwnedFd,
    batch: FrameBatch,
    unsent: u64,
    ip_id: u16,
    interface: Arc<Interface>,
}

impl RawPort {
    /// # Errors
    /// As [`FrameRing::open`].
    pub(super) fn open(
        interface: &Arc<Interface>,
        rest: (&[BpfInstruction], &RingUse),
        discovers: (&[BpfInstruction], &RingUse),
    ) -> Result<Self, SysError> {
        let open = |(filter, ring): (&[BpfInstruction], &RingUse)| {
            FrameRing::open(&interface.name, interface.index, filter, ring)
        };
        let (ring, discovers) = (open(rest)?, open(discovers)?);
        let fail = |e| SysError::new(format!("send frames on {}", interface.name), e);
        let fd = ring.sender().map_err(fail)?;
        let interface = Arc::clone(interface);
        Ok(Self {
            readable: [ring.as_raw_fd(), discovers.as_raw_fd()],
            ring: Some(ring),
            discovers: Some(discovers),
            fd,
            batch: FrameBatch::new(),
            unsent: 0,
            ip_id: 0,
            interface,
        })
    }

    /// Watches both rings; the DISCOVERs' number is one above the other's.
    fn watch(&self, registry: &Registry, index: usize) -> io::Result<()> {
        let [rest, discovers] = self.readable;
        watch(registry, rest, Owner::DhcpRaw(index as u32 * 2))?;
        watch(registry, discovers, Owner::DhcpRaw(index as u32 * 2 + 1))
    }
}

/// A UDP socket and which of the two ports it serves.
#[derive(Debug)]
pub(super) struct UdpPort {
    pub(super) socket: UdpSocket,
    pub(super) port: ServerPort,
}

/// An interface that had no address when the server started, and has one now.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) interface: Arc<Interface>,
    pub(super) raw: Option<RawPort>,
    /// With this one every interface has a raw socket: UDP must leave broadcasts to them.
    pub(super) raw_everywhere: bool,
}

/// How a message came: everything of [`Input`] that is not its bytes.
#[derive(Clone, Copy, Debug)]
struct Came {
    /// Index into the interfaces.
    interface: usize,
    /// Index into the raw ports, for the way back.
    raw: Option<usize>,
    port: ServerPort,
    src: SocketAddrV4,
    src_mac: Option<MacAddr>,
    dst: Ipv4Addr,
    local: Ipv4Addr,
}

/// DISCOVERs that wait, the oldest first, in a ring of places that is made when it is first needed.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<(Came, Instant, usize)>,
    places: Box<[u8]>,
    next: usize,
}

impl Waiting {
    /// False when there is no room.
    fn push(&mut self, came: &Came, now: Instant, bytes: &[u8]) -> bool {
        if self.queue.len() == WAITING_MAX || bytes.len() > FRAME_LEN {
            return false;
        }
        if self.places.is_empty() {
            self.places = vec![0; WAITING_MAX * FRAME_LEN].into_boxed_slice();
        }
        let start = self.next * FRAME_LEN;
        self.places[start..start + bytes.len()].copy_from_slice(bytes);
        self.next = (self.next + 1) % WAITING_MAX;
        self.queue.push_back((*came, now, bytes.len()));
        true
    }

    /// The oldest, its bytes copied to `bytes`.
    fn pop(&mut self, bytes: &mut [u8; FRAME_LEN]) -> Option<(Came, Instant, usize)> {
        let place = (self.next + WAITING_MAX - self.queue.len()) % WAITING_MAX;
        let (came, since, len) = self.queue.pop_front()?;
        let start = place * FRAME_LEN;
        bytes[..len].copy_from_slice(&self.places[start..start + len]);
        Some((came, since, len))
    }
}

/// Where a reply goes.
#[derive(Clone, Copy, Debug)]
enum Route {
    /// A whole frame, by this raw port.
    Frame(usize),
    /// A datagram, by this UDP port.
    Udp { port: usize, to: SocketAddrV4, source: Source },
}

/// Replies that wait, back to back.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    replies: Vec<(Route, usize)>,
}

impl Held {
    fn clear(&mut self) {
        self.bytes.clear();
        self.replies.clear();
    }
}

/// When a batch begins.
#[derive(Debug)]
struct Pace {
    /// No small one before this.
    next_at: Instant,
    /// What the timer was set for last.
    timer_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Begin {
    Now,
    /// Not yet: the timer is to be set for this.
    At(Instant),
    /// Not yet, and the timer is set.
    Later,
}

impl Pace {
    /// With so many replies that wait for it.
    fn begin(&mut self, now: Instant, waiting: usize) -> Begin {
        if waiting >= BATCH_ENOUGH || now >= self.next_at {
            self.next_at = now + BATCHES_APART;
            return Begin::Now;
        }
        match self.timer_at.replace(self.next_at) {
            Some(at) if at == self.next_at => Begin::Later,
            _ => Begin::At(self.next_at),
        }
    }
}

/// The journal as DHCP uses it: one batch under way, the next gathering.
#[derive(Debug)]
struct Journal {
    scribe: Scribe,
    /// One moment on both clocks: what is stored counts in seconds since 1970.
    epoch: (Instant, SystemTime),
    /// Everything up to this change is stored.
    stored: u64,
    /// The last change of the batch under way.
    under_way: Option<u64>,
    pace: Pace,
    sent_when_stored: Held,
    gathering: Held,
}

/// So many at once, then so many a second.
#[derive(Debug)]
struct Budget {
    left: f64,
    burst: f64,
    per_second: f64,
    at: Instant,
}

impl Budget {
    fn new(burst: f64, per_second: f64) -> Self {
        Self { left: burst, burst, per_second, at: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * self.per_second).min(self.burst);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// DHCP, owned by one core.
pub(super) struct DhcpSide {
    server: Server,
    raws: Vec<RawPort>,
    udps: Vec<UdpPort>,
    /// Interfaces answered on.
    interfaces: Vec<Arc<Interface>>,
    /// Interfaces that have come up since.
    arrivals: Receiver<Arrival>,
    /// Real numbers of the two ports; tests use others than 67 and 4011.
    port: u16,
    boot_server_port: u16,
    ready_raw: VecDeque<u32>,
    ready_udp: VecDeque<u32>,
    /// Where a message is copied to that cannot stay where it is.
    message: Vec<u8>,
    reply: Vec<u8>,
    waiting: Waiting,
    /// DISCOVERs that may still be answered in this turn as they come.
    discovers: usize,
    /// The UDP port whose datagrams the core's batch holds.
    gathered: Option<usize>,
    journal: Option<Journal>,
    /// Where addresses are asked for before they are offered first.
    prober: Option<Prober<Came>>,
    recorded: Budget,
    noticed: Budget,
    pools_at: Instant,
    /// Pools said to be nearly empty.
    low: Vec<Network>,
    armed_at: Option<Instant>,
    /// What the server was told last.
    tuning: Arc<Tuning>,
}

impl DhcpSide {
    #[allow(clippy::too_many_arguments, reason = "its parts, once")]
    pub(super) fn new(
        settings: Settings,
        seed: u64,
        interfaces: Vec<Arc<Interface>>,
        arrivals: Receiver<Arrival>,
        raws: Vec<RawPort>,
        udps: Vec<UdpPort>,
        ports: (u16, u16),
        journal: Option<Scribe>,
    ) -> Self {
        let now = Instant::now();
        let epoch = (now, SystemTime::now());
        let mut server = Server::new(settings, seed);
        if let Some(scribe) = &journal {
            server.restore(now, scribe.stored().iter().filter_map(|entry| decode(entry, epoch)));
        }
        Self {
            server,
            raws,
            udps,
            interfaces,
            arrivals,
            port: ports.0,
            boot_server_port: ports.1,
            ready_raw: VecDeque::new(),
            ready_udp: VecDeque::new(),
            message: vec![0; FRAME_LEN],
            reply: vec![0; FRAME_LEN],
            waiting: Waiting::default(),
            discovers: 0,
            gathered: None,
            journal: journal.map(|scribe| Journal {
                scribe,
                epoch,
                stored: 0,
                under_way: None,
                pace: Pace { next_at: now, timer_at: None },
                sent_when_stored: Held::default(),
                gathering: Held::default(),
            }),
            prober: None,
            recorded: Budget::new(RECORDED_BURST, RECORDED_PER_SECOND),
            noticed: Budget::new(NOTICED_BURST, NOTICED_PER_SECOND),
            pools_at: now,
            low: Vec::new(),
            armed_at: None,
            tuning: Arc::default(),
        }
    }

    /// Addresses are asked for, with these sockets.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub(super) fn ask_before_offering(&mut self) -> Result<(), SysError> {
        self.prober = Some(Prober::open(self.raws.iter().map(|raw| &raw.interface))?);
        Ok(())
    }

    /// Takes over the interfaces' hardware addresses.
    pub(super) fn readdress(&mut self, links: &[interfaces::Interface]) {
        let raws = self.raws.iter_mut().map(|raw| &mut raw.interface);
        let probed = self.prober.iter_mut().flat_map(Prober::interfaces);
        raws.chain(&mut self.interfaces).chain(probed).for_each(|interface| readdress(interface, links));
    }

    /// Takes up what a reload changed.
    fn take_up(&mut self, turn: &Turn<'_>) {
        let now = turn.shared.tuning.load();
        if !Arc::ptr_eq(&now, &self.tuning) {
            self.tuning = Arc::clone(&now);
            if let Some(settings) = &now.dhcp {
                let mut settings = settings.clone();
                if self.prober.is_none() {
                    settings.probe = Duration::ZERO;
                }
                self.server.replace_settings(settings);
            }
        }
    }

    pub(super) fn register(&self, registry: &Registry) -> io::Result<()> {
        for (index, raw) in self.raws.iter().enumerate() {
            raw.watch(registry, index)?;
        }
        for (index, udp) in self.udps.iter().enumerate() {
            watch(registry, udp.socket.as_raw_fd(), Owner::DhcpUdp(index as u32))?;
        }
        self.prober.as_ref().map_or(Ok(()), |prober| prober.register(registry))
    }

    /// Looks at every socket once: frames may have come between opening and registering.
    pub(super) fn ready_all(&mut self) {
        self.ready_raw = (0..self.raws.len() as u32 * 2).collect();
        self.ready_udp = (0..self.udps.len() as u32).collect();
    }

    pub(super) fn raw_readable(&mut self, index: u32) {
        if !self.ready_raw.contains(&index) {
            self.ready_raw.push_back(index);
        }
    }

    pub(super) fn udp_readable(&mut self, index: u32) {
        if !self.ready_udp.contains(&index) {
            self.ready_udp.push_back(index);
        }
    }

    pub(super) fn probe_readable(&mut self) {
        if let Some(prober) = &mut self.prober {
            prober.ready = true;
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.prober.as_ref().is_some_and(|prober| prober.ready)
            || !self.ready_raw.is_empty()
            || !self.ready_udp.is_empty()
            || !self.waiting.queue.is_empty()
    }

    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
        self.take_up(turn);
        while let Ok(arrival) = self.arrivals.try_recv() {
            self.welcome(arrival, turn);
        }
        // Before a machine's next DISCOVER, which takes an answer that was not read yet for silence.
        self.settle_probes(turn);
        if self.is_busy() {
            self.serve(turn);
        }
        self.store(turn);
        self.flush(turn);
        self.look_around(turn);
        self.arm(turn);
    }

    /// Takes what there is, within the bounds of a turn.
    fn serve(&mut self, turn: &mut Turn<'_>) {
        let mut decider = Decider::new(turn.shared);
        self.discovers = DISCOVERS_PER_TURN;
        // Exchanges under way first, on every interface.
        for discovers in [false, true] {
            for _ in 0..self.ready_raw.len() {
                let Some(index) = self.ready_raw.pop_front() else { break };
                let ours = (index % 2 == 1) == discovers;
                if !ours || !self.drain_raw(index as usize / 2, discovers, turn, &mut decider) {
                    self.ready_raw.push_back(index);
                }
            }
        }
        for _ in 0..self.ready_udp.len() {
            let Some(index) = self.ready_udp.pop_front() else { break };
            if !self.drain_udp(index as usize, turn, &mut decider) {
                self.ready_udp.push_back(index);
            }
        }
        self.serve_waiting(turn, &mut decider);
    }

    /// Answers DISCOVERs that waited, the oldest first.
    fn serve_waiting(&mut self, turn: &mut Turn<'_>, decider: &mut Decider<'_>) {
        if self.waiting.queue.is_empty() {
            return;
        }
        let mut bytes = [0; FRAME_LEN];
        for _ in 0..DISCOVERS_PER_TURN {
            let Some((came, since, len)) = self.waiting.pop(&mut bytes) else { return };
            if turn.now.saturating_duration_since(since) > STALE {
                turn.tally.drop_dhcp(DropReason::Stale);
            } else {
                self.handle(&came, &bytes[..len], turn, decider);
            }
        }
    }

    /// Hands in again what waited for an address that somebody has, or that nobody has answered for.
    fn settle_probes(&mut self, turn: &mut Turn<'_>) {
        let Some(prober) = &mut self.prober else { return };
        for (ip, by) in prober.answers(turn.now) {
            match self.server.heard_from(turn.now, ip, by) {
                ProbeAnswer::InUse | ProbeAnswer::ItsOwn => {}
                ProbeAnswer::Disbelieved => {
                    turn.tally.add(Count::DhcpDisbelieved, 1);
                    continue;
                }
                ProbeAnswer::Unasked => continue,
            }
            let waiting = self.prober.as_mut().map(|prober| prober.waited_for(ip)).unwrap_or_default();
            for waited in waiting {
                self.handle(&waited.came, &waited.bytes, turn, &mut Decider::new(turn.shared));
            }
        }
        while let Some(waited) = self.prober.as_mut().and_then(|prober| prober.due(turn.now)) {
            self.handle(&waited.came, &waited.bytes, turn, &mut Decider::new(turn.shared));
        }
    }

    fn welcome(&mut self, arrival: Arrival, turn: &Turn<'_>) {
        if arrival.raw_everywhere
            && let Some(udp) = self.udps.iter().find(|udp| udp.port == ServerPort::Dhcp)
            && let Err(error) = udp.socket.attach_filter(&filters::udp())
        {
            // Without the filter a broadcast would be answered twice: the raw socket is let go instead.
            tracing::warn!(interface = arrival.interface.name, %error, "answered by UDP broadcast only");
            self.interfaces.push(arrival.interface);
            return;
        }
        if let Some(raw) = arrival.raw {
            if let Err(error) = raw.watch(turn.registry, self.raws.len()) {
                tracing::warn!(interface = raw.interface.name, %error, "cannot watch the raw socket");
                return;
            }
            self.ready_raw.extend([self.raws.len() as u32 * 2, self.raws.len() as u32 * 2 + 1]);
            self.raws.push(raw);
        }
        tracing::info!(interface = arrival.interface.name, address = %arrival.interface.addr, "answered on from now on");
        self.interfaces.push(arrival.interface);
    }

    fn arm(&mut self, turn: &mut Turn<'_>) {
        if let Some(at) = self.server.poll_timeout()
            && self.armed_at.is_none_or(|armed| at < armed)
        {
            self.armed_at = Some(at);
            turn.wheel.schedule(at, Owner::DhcpTimer.pack());
        }
    }

    /// An address is to be asked for, and the message kept until that is done.
    fn ask(&mut self, probe: &Probe, came: &Came, bytes: &[u8], turn: &mut Turn<'_>) {
        let Some(prober) = &mut self.prober else { return };
        if prober.ask(&self.interfaces[came.interface], probe, *came, bytes) {
            turn.tally.add(Count::DhcpProbes, 1);
            turn.wheel.schedule(probe.until, Owner::DhcpTimer.pack());
        } else {
            turn.tally.drop_dhcp(DropReason::QueueFull);
        }
    }

    /// A deadline of the machine may have passed.
    pub(super) fn expired(&mut self, turn: &mut Turn<'_>) {
        self.settle_probes(turn);
        self.store(turn);
        self.flush(turn);
        if self.armed_at.is_some_and(|at| at <= turn.now) {
            self.armed_at = None;
            self.server.handle_timeout(turn.now);
            self.arm(turn);
        }
    }

    /// True when the ring is empty.
    fn drain_raw(
        &mut self,
        index: usize,
        discovers: bool,
        turn: &mut Turn<'_>,
        decider: &mut Decider<'_>,
    ) -> bool {
        let raw = &mut self.raws[index];
        let (lent, max) = match discovers {
            true => (&mut raw.discovers, DISCOVERS_PER_TURN),
            false => (&mut raw.ring, MESSAGES_PER_TURN),
        };
        let Some(mut ring) = lent.take() else { return true };
        let interface = Arc::clone(&self.raws[index].interface);
        let of = self.interfaces.iter().position(|i| i.index == interface.index);
        let taken = ring.receive_looking_ahead(max, |frame, next| {
            // What is remembered of ten thousand machines is in no near cache.
            if let Some(mac) = next.and_then(|next| next.bytes.get(CHADDR_IN_FRAME)?.first_chunk().copied()) {
                prefetch(self.server.memory_of(MacAddr(mac)));
            }
            turn.tally.add(Count::DhcpPackets, 1);
            let (Ok(datagram), Some(of)) = (parse_udp_frame(frame.bytes), of) else {
                return turn.tally.add(Count::DhcpMalformedFrames, 1);
            };
            let came = Came {
                interface: of,
                raw: Some(index),
                port: ServerPort::Dhcp,
                src: datagram.src,
                src_mac: Some(datagram.src_mac),
                dst: *datagram.dst.ip(),
                local: interface.addr,
            };
            self.handle(&came, datagram.payload, turn, decider);
        });
        let raw = &mut self.raws[index];
        *(if discovers { &mut raw.discovers } else { &mut raw.ring }) = Some(ring);
        taken < max
    }

    /// True when the socket is empty.
    fn drain_udp(&mut self, index: usize, turn: &mut Turn<'_>, decider: &mut Decider<'_>) -> bool {
        let mut message = std::mem::take(&mut self.message);
        let mut empty = false;
        for _ in 0..MESSAGES_PER_TURN / BATCH {
            let taken = match turn.recv.recv(&self.udps[index].socket) {
                Ok(taken) => taken,
                Err(error) => {
                    turn.tally.add(Count::DhcpRecvErrors, 1);
                    tracing::debug!(%error, "dhcp receive");
                    break;
                }
            };
            // Less than there was room for: it is empty, and whatever comes from now on is an event of its own.
            empty = taken < BATCH;
            for i in 0..taken {
                turn.tally.add(Count::DhcpPackets, 1);
                let Some(d) = turn.recv.datagram(i) else { continue };
                let Some(bytes) = message.get_mut(..d.bytes.len()) else { continue };
                bytes.copy_from_slice(d.bytes);
                let Some(interface) = self.interfaces.iter().position(|i| i.index == d.interface) else {
                    turn.tally.add(Count::DhcpForeignInterface, 1);
                    continue;
                };
                let came = Came {
                    interface,
                    raw: self.raws.iter().position(|raw| raw.interface.index == d.interface),
                    port: self.udps[index].port,
                    src: d.from,
                    src_mac: None,
                    dst: d.to,
                    local: d.local,
                };
                self.arrived(&came, bytes, turn, decider);
            }
            if empty {
                break;
            }
        }
        self.message = message;
        empty
    }

    /// A message, to be answered now or, when it begins an exchange and many do, later.
    fn arrived(&mut self, came: &Came, bytes: &[u8], turn: &mut Turn<'_>, decider: &mut Decider<'_>) {
        if !is_discover(bytes) {
            return self.handle(came, bytes, turn, decider);
        }
        if self.discovers > 0 && self.waiting.queue.is_empty() {
            self.discovers -= 1;
            return self.handle(came, bytes, turn, decider);
        }
        if self.waiting.push(came, turn.now, bytes) {
            turn.tally.add(Count::DhcpWaited, 1);
        } else {
            turn.tally.drop_dhcp(DropReason::QueueFull);
        }
    }

    fn handle(&mut self, came: &Came, bytes: &[u8], turn: &mut Turn<'_>, decider: &mut Decider<'_>) {
        let input = Input {
            interface: &self.interfaces[came.interface],
            port: came.port,
            src: came.src,
            src_mac: came.src_mac,
            dst: came.dst,
            local: came.local,
            bytes,
        };
        decider.next_message();
        // The message is built where a frame's payload goes.
        let reply = &mut self.reply[UDP_PAYLOAD_OFFSET..];
        match self.server.handle(turn.now, &input, decider, reply) {
            Verdict::Reply(output, event) => {
                let reply = &self.reply[UDP_PAYLOAD_OFFSET..][..output.len];
                note(&event, &input, Some((&output, reply)), &mut self.recorded, turn);
                self.reply(&output, came, turn);
            }
            Verdict::Probe(probe) => self.ask(&probe, came, bytes, turn),
            Verdict::Heard(event) => note(&event, &input, None, &mut self.recorded, turn),
            Verdict::Drop(reason) => {
                turn.tally.drop_dhcp(reason);
                note_ignored(reason, &input, &mut self.recorded, turn);
            }
        }
    }

    /// Addresses the reply just made, and sends it or holds it until its lease is stored.
    fn reply(&mut self, output: &Output, came: &Came, turn: &mut Turn<'_>) {
        let real_port = match output.port {
            ServerPort::Dhcp => self.port,
            ServerPort::BootServer => self.boot_server_port,
        };
        let (mac, to) = match output.to {
            To::Broadcast => (Some(MacAddr::BROADCAST), SocketAddrV4::new(Ipv4Addr::BROADCAST, 68)),
            To::Link { mac, to } => (Some(mac), to),
            To::Unicast(to) => (None, to),
        };
        let udp = self.udps.iter().position(|udp| udp.port == output.port);
        // A unicast goes by UDP, where routing and ARP do their work. With another server on port 67 there is no
        // socket to send it from, and it goes back to the MAC address it came from.
        let frame_to = mac.or(if udp.is_none() { came.src_mac } else { None });
        let (route, range) = if let (Some(raw), Some(dst_mac)) = (came.raw, frame_to) {
            let port = &mut self.raws[raw];
            port.ip_id = port.ip_id.wrapping_add(1);
            let header = UdpHeader {
                src_mac: port.interface.mac,
                dst_mac,
                src: SocketAddrV4::new(output.from, real_port),
                dst: to,
                ttl: 64,
                ip_id: port.ip_id,
            };
            let Some(len) = emit_udp_frame(&mut self.reply[..], &header, output.len) else {
                return turn.tally.add(Count::DhcpSendErrors, 1);
            };
            (Route::Frame(raw), 0..len)
        } else {
            let Some(port) = udp else { return turn.tally.add(Count::DhcpSendErrors, 1) };
            let to = if mac.is_some() { SocketAddrV4::new(Ipv4Addr::BROADCAST, to.port()) } else { to };
            let interface = if to.ip().is_broadcast() { self.interfaces[came.interface].index } else { 0 };
            let source = Source { addr: output.from, interface };
            (Route::Udp { port, to, source }, UDP_PAYLOAD_OFFSET..UDP_PAYLOAD_OFFSET + output.len)
        };
        match &mut self.journal {
            Some(journal) if output.stored > journal.stored => {
                let held = &mut journal.gathering;
                if held.bytes.len() + range.len() > HELD_MAX {
                    return turn.tally.drop_dhcp(DropReason::NotStored);
                }
                held.replies.push((route, range.len()));
                held.bytes.extend_from_slice(&self.reply[range]);
            }
            _ => {
                let reply = std::mem::take(&mut self.reply);
                self.send(route, &reply[range], turn);
                self.reply = reply;
            }
        }
    }

    /// Adds a reply to the batch of its way out.
    fn send(&mut self, route: Route, bytes: &[u8], turn: &mut Turn<'_>) {
        turn.tally.add(Count::DhcpReplies, 1);
        match route {
            Route::Frame(raw) => {
                let RawPort { batch, fd, .. } = &mut self.raws[raw];
                batch.push(fd, bytes.len(), |frame| {
                    frame.copy_from_slice(bytes);
                    Some(bytes.len())
                });
            }
            Route::Udp { port, to, source } => {
                if self.gathered != Some(port) {
                    self.flush_udp(turn);
                    self.gathered = Some(port);
                }
                if !turn.send.push_bytes(to, source, 0, bytes) {
                    self.flush_udp(turn);
                    self.gathered = Some(port);
                    turn.send.push_bytes(to, source, 0, bytes);
                }
            }
        }
    }

    /// Sends what was gathered.
    fn flush(&mut self, turn: &mut Turn<'_>) {
        for raw in &mut self.raws {
            raw.batch.flush(&raw.fd);
            let unsent = raw.batch.unsent();
            turn.tally.add(Count::DhcpSendErrors, unsent - raw.unsent);
            raw.unsent = unsent;
        }
        self.flush_udp(turn);
    }

    fn flush_udp(&mut self, turn: &mut Turn<'_>) {
        let Some(port) = self.gathered.take() else { return };
        let tally = turn.tally;
        turn.send.flush(&self.udps[port].socket, |unsent| {
            tally.add(Count::DhcpSendErrors, 1);
            tracing::debug!(error = %unsent.error, "dhcp send");
        });
    }

    /// Hands what changed to the journal, when it is free.
    fn store(&mut self, turn: &mut Turn<'_>) {
        let Some(journal) = &mut self.journal else { return };
        if journal.under_way.is_some() || !self.server.has_changes() {
            return;
        }
        match journal.pace.begin(turn.now, journal.gathering.replies.len()) {
            Begin::Now => {}
            Begin::At(at) => return turn.wheel.schedule(at, Owner::DhcpTimer.pack()),
            Begin::Later => return,
        }
        let mut entries = Vec::with_capacity(journal.gathering.replies.len());
        let epoch = journal.epoch;
        let number = self.server.changes(|change| entries.extend(encode(&change, epoch)));
        std::mem::swap(&mut journal.gathering, &mut journal.sent_when_stored);
        journal.under_way = Some(number);
        if !journal.scribe.write(entries, Owner::DhcpJournal.pack(), turn.desk) {
            self.journalled(Answer::NotNow, turn);
        }
    }

    /// The journal has stored the batch under way, or could not.
    pub(super) fn journalled(&mut self, answer: Answer, turn: &mut Turn<'_>) {
        let Some(journal) = &mut self.journal else { return };
        let Some(number) = journal.under_way.take() else { return };
        let mut held = std::mem::take(&mut journal.sent_when_stored);
        if answer == Answer::Go {
            journal.stored = number;
            let mut at = 0;
            for (route, len) in held.replies.drain(..) {
                self.send(route, &held.bytes[at..at + len], turn);
                at += len;
            }
        } else {
            let stored = journal.stored;
            let lost = held.replies.len() + journal.gathering.replies.len();
            journal.gathering.clear();
            self.server.forget_changes_after(stored);
            (0..lost).for_each(|_| turn.tally.drop_dhcp(DropReason::NotStored));
        }
        held.clear();
        if let Some(journal) = &mut self.journal {
            journal.sent_when_stored = held;
        }
        self.release_gathered(turn);
        self.store(turn);
        self.flush(turn);
    }

    /// Replies that gathered but wait for nothing that is not stored by now: repeated REQUESTs.
    fn release_gathered(&mut self, turn: &mut Turn<'_>) {
        let Some(journal) = &mut self.journal else { return };
        if self.server.has_changes() || journal.gathering.replies.is_empty() {
            return;
        }
        let held = std::mem::take(&mut journal.gathering);
        let mut at = 0;
        for (route, len) in &held.replies {
            self.send(*route, &held.bytes[at..at + len], turn);
            at += len;
        }
    }

    /// What an operator should know: pools that run out, and what the machine noticed.
    fn look_around(&mut self, turn: &mut Turn<'_>) {
        for notice in self.server.notices() {
            if let Some(count) = count_of(&notice) {
                turn.tally.add(count, 1);
            }
            let loud = self.noticed.take(turn.now);
            tell(&notice, &self.interfaces, loud);
        }
        if turn.now < self.pools_at {
            return;
        }
        self.pools_at = turn.now + POOLS_EVERY;
        for ring in self.raws.iter().flat_map(|raw| [&raw.ring, &raw.discovers]).flatten() {
            let dropped = ring.overruns();
            turn.tally.drop_dhcp_many(DropReason::QueueFull, dropped);
        }
        let (mut addresses, mut taken) = (0, 0);
        for pool in self.server.pools() {
            addresses += u64::from(pool.len);
            taken += u64::from(pool.live);
            let known = self.low.iter().position(|network| *network == pool.network);
            // Said once, and again only after it was better.
            match known {
                None if u64::from(pool.live) * 10 >= u64::from(pool.len) * 9 => {
                    self.low.push(pool.network);
                    tracing::warn!(
                        network = %pool.network,
                        taken = pool.live,
                        of = pool.len,
                        "the pool is nearly empty: widen its range, or shorten [[dhcp.subnet]] lease"
                    );
                }
                Some(known) if u64::from(pool.live) * 10 < u64::from(pool.len) * 8 => {
                    self.low.swap_remove(known);
                    tracing::info!(network = %pool.network, taken = pool.live, of = pool.len, "the pool has room again");
                }
                _ => {}
            }
        }
        turn.tally.set(Count::DhcpPoolAddresses, addresses);
        turn.tally.set(Count::DhcpPoolTaken, taken);
        turn.tally.set(Count::DhcpPoolsLow, self.low.len() as u64);
    }
}

/// Passes on what a message told: to the other cores who is where, to the flight recorder what happened. In a storm most
/// of it goes no further, so nothing is made of it before that is known.
fn note(
    event: &DhcpEvent,
    input: &Input<'_>,
    reply: Option<(&Output, &[u8])>,
    recorded: &mut Budget,
    turn: &Turn<'_>,
) {
    let told_address = matches!(
        event.what,
        DhcpStep::Offered
            | DhcpStep::Acked
            | DhcpStep::BootServerAnswered
            | DhcpStep::OverheardRequest { .. }
    );
    if let (true, Some(mac), Some(addr), Some(arch)) = (told_address, event.mac, event.ip, event.arch)
        && !addr.is_unspecified()
    {
        turn.shared.sightings.record(addr, Sighting { mac, arch, exchange: 0 });
    }
    if !is_news(event) {
        return;
    }
    if !recorded.take(turn.now) {
        return turn.tally.add(Count::DhcpUnrecorded, 1);
    }
    let Some(seen) = seen(event) else { return };
    let mut evidence = Evidence::new(turn.wall, seen);
    evidence.mac = event.mac;
    evidence.uuid = event.uuid;
    evidence.address = event.ip;
    if turn.shared.is_recording() {
        evidence.packets = packets(input, reply);
    }
    turn.shared.note(evidence);
}

/// Whether an event means something for a boot: whether [`seen`] makes anything of it.
fn is_news(event: &DhcpEvent) -> bool {
    match event.what {
        DhcpStep::Offered | DhcpStep::Acked | DhcpStep::OverheardRequest { .. } => event.kind.is_some(),
        DhcpStep::BootServerAnswered => !event.file.is_empty(),
        DhcpStep::OtherServerOffer { .. } | DhcpStep::OtherServerAck { .. } => true,
        DhcpStep::Informed | DhcpStep::Naked | DhcpStep::Released | DhcpStep::Declined => false,
    }
}

/// True for a DISCOVER as every client writes it: option 53 first. One that is not taken for it is answered like any
/// other message.
fn is_discover(message: &[u8]) -> bool {
    message.get(OPTIONS_OFFSET..OPTIONS_OFFSET + 3)
        == Some(&[code::MESSAGE_TYPE, 1, MessageType::Discover.code()])
}

fn count_of(notice: &Notice) -> Option<Count> {
    Some(match notice {
        Notice::OtherServer { .. } => Count::DhcpOtherServers,
        Notice::Restarting { .. } => Count::DhcpRestarting,
        Notice::InUse { .. } => Count::DhcpInUse,
        // Each such answer is counted when it is heard.
        Notice::Disbelieved { .. } => return None,
        Notice::LateFirst { .. } => Count::DhcpLateFirst,
        Notice::NextLoader { .. } => Count::DhcpNextLoader,
    })
}

fn tell(notice: &Notice, interfaces: &[Arc<Interface>], loud: bool) {
    let text = match notice {
        Notice::OtherServer { interface, rival } => {
            let name = interfaces.iter().find(|i| i.index == *interface).map_or("?", |i| i.name.as_str());
            format!(
                "another server, {}, answers machines that boot on {name}: {}",
                rival.server,
                meaning(rival)
            )
        }
        Notice::Restarting { mac, count } => {
            format!("{mac} has started {count} times within a quarter of an hour: `bootstorm explain {mac}`")
        }
        Notice::LateFirst { mac, secs } => format!(
            "{mac} had been asking for {secs} s when it was first heard: its switch port does not forward at once; \
             switch spanning tree to edge (portfast) there"
        ),
        Notice::InUse { ip, by } => {
            let by = by.map_or_else(|| "some machine".into(), |mac| mac.to_string());
            format!(
                "{ip} is in use by {by}, without a lease: nobody is offered it for ten minutes; take it out of the range"
            )
        }
        Notice::Disbelieved { by } => {
            let by = by.map_or_else(|| "some machine".into(), |mac| mac.to_string());
            format!(
                "{by} answers for more addresses than it can have: from here on they are offered all the same; look for \
                 a router with proxy ARP, or for who means harm"
            )
        }
        Notice::NextLoader { mac, .. } => {
            format!(
                "{mac} came back without having reached its script: the next loader is tried, if there is one"
            )
        }
    };
    match notice {
        Notice::OtherServer { .. } | Notice::InUse { .. } | Notice::Disbelieved { .. } if loud => {
            tracing::warn!("{text}");
        }
        // Of one machine, or of a stranger in its name: counted, in its timeline, and an alarm where it has a job.
        _ => tracing::debug!("{text}"),
    }
}

/// What another server's answers do to machines, in words.
fn meaning(rival: &Rival) -> &'static str {
    match (rival.pxe, rival.has_vendor_options, rival.gives_addresses, rival.has_file) {
        (true, false, true, false) => {
            "option 60 in its leases without option 43 sends firmware to its port 4011, where it hangs (PXE-E55); take \
             option 60 out of its settings"
        }
        (true, ..) => "a second PXE server; machines without a job are left to it for one retry",
        (false, _, true, true) => {
            "it names a boot file in its leases, which iPXE prefers to ours; take options 66 and 67 out of its settings"
        }
        (false, ..) => "it names a boot file",
    }
}

const KEY_LEASE: u64 = 1 << 56;
const KEY_LOADER: u64 = 2 << 56;
const HELD: u8 = 1;
const QUARANTINED: u8 = 2;
const LEASE_LEN: usize = 28;

/// A change as the journal keeps it:
///
/// ```text
/// 1, address -> state u8, stranger u8, htype u8, hlen u8, hardware (16), until u64 (seconds since 1970)
/// 2, MAC     -> loaders passed over u8
/// ```
fn encode(change: &Change, epoch: (Instant, SystemTime)) -> Option<Entry> {
    let mut value = [0; LEASE_LEN];
    match change {
        Change::Lease(record) => {
            let key = KEY_LEASE | u64::from(record.ip.to_bits());
            let (state, stranger, until) = match record.term {
                LeaseTerm::Held { until, stranger } => (HELD, stranger, until),
                LeaseTerm::Quarantined { until } => (QUARANTINED, false, until),
                LeaseTerm::Forgotten => return Entry::new(key, &[]),
            };
            value[..4].copy_from_slice(&[state, u8::from(stranger), record.htype, record.hlen]);
            value[4..20].copy_from_slice(&record.hardware);
            let at = epoch.1 + until.saturating_duration_since(epoch.0);
            let secs = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            value[20..].copy_from_slice(&secs.to_le_bytes());
            Entry::new(key, &value)
        }
        Change::Loader { mac, pass_over } => {
            let mut key = [0; 8];
            key[2..].copy_from_slice(&mac.0);
            let value = [*pass_over];
            // The first loader is what everybody gets.
            Entry::new(KEY_LOADER | u64::from_be_bytes(key), if *pass_over == 0 { &[] } else { &value })
        }
    }
}

/// Back from the journal; what is none of ours is left out.
fn decode(entry: &Entry, epoch: (Instant, SystemTime)) -> Option<Change> {
    if entry.key() & !((1 << 48) - 1) == KEY_LOADER {
        let bytes = entry.key().to_be_bytes();
        let mac = MacAddr([bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
        let [pass_over] = *entry.value() else { return None };
        return Some(Change::Loader { mac, pass_over });
    }
    let ip = u32::try_from(entry.key() ^ KEY_LEASE).ok().map(Ipv4Addr::from_bits)?;
    let value: &[u8; LEASE_LEN] = entry.value().try_into().ok()?;
    let [state, stranger, htype, hlen, rest @ ..] = *value;
    let mut hardware = [0; 16];
    hardware.copy_from_slice(&rest[..16]);
    let secs = u64::from_le_bytes(*rest.last_chunk()?);
    let now = epoch.1.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Until the end of that second, whatever part of it was cut off.
    let until = match secs.checked_sub(now) {
        Some(left) if left > 0 => epoch.0.checked_add(Duration::from_secs(left + 1))?,
        _ => epoch.0.checked_sub(Duration::from_secs(now.saturating_sub(secs))).unwrap_or(epoch.0),
    };
    let term = match state {
        HELD => LeaseTerm::Held { until, stranger: stranger != 0 },
        QUARANTINED => LeaseTerm::Quarantined { until },
        _ => return None,
    };
    Some(Change::Lease(LeaseRecord { ip, htype, hlen: hlen.min(16), hardware, term }))
}

/// What an event means for a boot; nothing for who is not booting.
fn seen(event: &DhcpEvent) -> Option<Seen> {
    let file = || event.file.as_str().to_owned();
    let named = !event.file.is_empty();
    Some(match event.what {
        DhcpStep::Offered if named => {
            let asker = asker(event.kind?);
            Seen::DhcpOffered { asker, arch: event.arch, relay: event.relay, file: file() }
        }
        // An address and nothing to boot: what the screen says is that there is no boot file.
        DhcpStep::Offered => {
            let asker = Some(asker(event.kind?));
            Seen::DhcpIgnored {
                reason: DropReason::NoBoot.word().into(),
                asker,
                arch: event.arch,
                relay: event.relay,
                boot_server: false,
            }
        }
        DhcpStep::BootServerAnswered if named => Seen::BootServerAnswered { arch: event.arch, file: file() },
        DhcpStep::Acked => {
            event.kind?;
            Seen::AddressGiven { relay: event.relay }
        }
        DhcpStep::OverheardRequest { server } => {
            event.kind?;
            Seen::ServerChosen { server }
        }
        DhcpStep::OtherServerOffer { server, next_server, has_file, pxe, sends_to_4011, leases } => {
            let file = (has_file && named).then(file);
            Seen::OtherOffered { server, file, next_server, leases, pxe, sends_to_4011 }
        }
        DhcpStep::OtherServerAck { server } => Seen::OtherAcked { server },
        DhcpStep::BootServerAnswered
        | DhcpStep::Informed
        | DhcpStep::Naked
        | DhcpStep::Released
        | DhcpStep::Declined => return None,
    })
}

fn asker(kind: FirmwareKind) -> Asker {
    match kind {
        FirmwareKind::Pxe => Asker::Firmware,
        FirmwareKind::HttpBoot => Asker::Http,
        FirmwareKind::Ipxe(_) => Asker::Ipxe,
    }
}

/// Tells the flight recorder of boot firmware that got no answer, where the reason is about it and not about the packet.
fn note_ignored(reason: DropReason, input: &Input<'_>, recorded: &mut Budget, turn: &Turn<'_>) {
    let about_the_machine = matches!(
        reason,
        DropReason::Silent
            | DropReason::Excluded
            | DropReason::NoBoot
            | DropReason::NoBootFile
            | DropReason::Deferred
            | DropReason::UnknownSubnet
            | DropReason::NoRange
            | DropReason::PoolExhausted
            | DropReason::PoolKept
            | DropReason::ReplyTooBig
    );
    let boot_server = input.port == ServerPort::BootServer;
    if !turn.shared.is_recording() || !(about_the_machine || boot_server && reason == DropReason::OtherServer)
    {
        return;
    }
    let Ok(message) = Message::parse(input.bytes) else { return };
    let (Some(mac), Some(firmware)) = (message.mac(), Firmware::recognise(&message)) else { return };
    if !recorded.take(turn.now) {
        return turn.tally.add(Count::DhcpUnrecorded, 1);
    }
    let seen = Seen::DhcpIgnored {
        reason: reason.word().into(),
        asker: Some(asker(firmware.kind)),
        arch: firmware.arch_stated.then_some(firmware.arch),
        relay: Some(message.giaddr()).filter(|relay| !relay.is_unspecified()),
        boot_server,
    };
    let mut evidence = Evidence::new(turn.wall, seen);
    evidence.mac = Some(mac);
    evidence.uuid = message.uuid();
    evidence.packets = packets(input, None);
    turn.shared.note(evidence);
}

/// A message and our answer to it, for a capture file: on the ports of the standards, whatever ours are.
fn packets(input: &Input<'_>, reply: Option<(&Output, &[u8])>) -> Vec<Packet> {
    let is_request = input.bytes.first() == Some(&OP_REQUEST);
    let port = if is_request { input.port.number() } else { CLIENT_PORT };
    let asked = Packet::dhcp(input.src, SocketAddrV4::new(input.dst, port), !is_request, input.bytes);
    let answer = reply.map(|(output, bytes)| {
        let to = match output.to {
            To::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
            To::Link { to, .. } | To::Unicast(to) => to,
        };
        Packet::dhcp(SocketAddrV4::new(output.from, output.port.number()), to, true, bytes)
    });
    std::iter::once(asked).chain(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::dhcp::BootFile;

    #[test]
    fn a_change_is_read_from_the_journal_as_it_was_written() {
        let epoch = (Instant::now(), SystemTime::now());
        let record = |term| LeaseRecord {
            ip: Ipv4Addr::new(10, 77, 0, 9),
            htype: 1,
            hlen: 6,
            hardware: *b"\x52\x54\0\x77\0\x01\0\0\0\0\0\0\0\0\0\0",
            term,
        };
        let until = epoch.0 + Duration::from_secs(7200);
        for term in [
            LeaseTerm::Held { until, stranger: true },
            LeaseTerm::Held { until, stranger: false },
            LeaseTerm::Quarantined { until },
        ] {
            let entry = encode(&Change::Lease(record(term)), epoch).unwrap();
            let Some(Change::Lease(back)) = decode(&entry, epoch) else { panic!("{entry:?}") };
            let end = |term| match term {
                LeaseTerm::Held { until, .. } | LeaseTerm::Quarantined { until } => until,
                LeaseTerm::Forgotten => panic!("{term:?}"),
            };
            let longer = end(back.term).saturating_duration_since(until);
            assert!(end(back.term) >= until && longer <= Duration::from_secs(1), "never shorter");
            assert_eq!(LeaseRecord { term, ..back }, record(term));
        }
        let gone = encode(&Change::Lease(record(LeaseTerm::Forgotten)), epoch).unwrap();
        assert!(gone.value().is_empty());
        let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 0xff]);
        let loader = Change::Loader { mac, pass_over: 1 };
        assert_eq!(decode(&encode(&loader, epoch).unwrap(), epoch), Some(loader));
    }

    #[test]
    fn what_is_news_is_what_something_is_seen_in() {
        let addr = Ipv4Addr::new(10, 77, 0, 1);
        let mut named = BootFile::new();
        std::fmt::Write::write_str(&mut named, "ipxe.efi").unwrap();
        let offer = |has_file| DhcpStep::OtherServerOffer {
            server: addr,
            next_server: None,
            has_file,
            pxe: true,
            sends_to_4011: false,
            leases: true,
        };
        for what in [
            DhcpStep::Offered,
            DhcpStep::Acked,
            DhcpStep::BootServerAnswered,
            DhcpStep::Informed,
            DhcpStep::Naked,
            DhcpStep::Released,
            DhcpStep::Declined,
            DhcpStep::OverheardRequest { server: Some(addr) },
            offer(true),
            offer(false),
            DhcpStep::OtherServerAck { server: addr },
        ] {
            for kind in [None, Some(FirmwareKind::Pxe), Some(FirmwareKind::HttpBoot)] {
                for file in [BootFile::new(), named] {
                    // A server that names a file knows for whom.
                    if what == DhcpStep::Offered && kind.is_none() && !file.is_empty() {
                        continue;
                    }
                    let event = DhcpEvent {
                        what,
                        mac: None,
                        uuid: None,
                        xid: 1,
                        arch: None,
                        kind,
                        relay: None,
                        ip: Some(addr),
                        file,
                    };
                    assert_eq!(is_news(&event), seen(&event).is_some(), "{event:?}");
                }
            }
        }
    }

    #[test]
    fn small_batches_are_apart_and_each_that_waits_has_its_timer() {
        let start = Instant::now();
        let mut pace = Pace { next_at: start, timer_at: None };
        assert_eq!(pace.begin(start, 1), Begin::Now, "after a pause at once");
        let moment = Duration::from_micros(1);
        let mut at = start;
        for _ in 0..3 {
            let next = at + BATCHES_APART;
            assert_eq!(pace.begin(at + moment, 1), Begin::At(next));
            assert_eq!(pace.begin(at + moment * 2, BATCH_ENOUGH - 1), Begin::Later);
            assert_eq!(pace.begin(next, 1), Begin::Now, "whoever looks at the clock first");
            at = next;
        }
        assert_eq!(pace.begin(at + moment, 1), Begin::At(at + BATCHES_APART));
        // So many do not wait, and who comes behind them has a timer of his own.
        assert_eq!(pace.begin(at + moment * 2, BATCH_ENOUGH), Begin::Now);
        assert_eq!(pace.begin(at + moment * 3, 1), Begin::At(at + moment * 2 + BATCHES_APART));
        assert_eq!(pace.begin(at + BATCHES_APART * 2, 1), Begin::Now);
    }

    #[test]
    fn discovers_wait_in_order_and_the_newest_is_refused() {
        let mut waiting = Waiting::default();
        let came = Came {
            interface: 0,
            raw: None,
            port: ServerPort::Dhcp,
            src: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            src_mac: None,
            dst: Ipv4Addr::BROADCAST,
            local: Ipv4Addr::UNSPECIFIED,
        };
        let now = Instant::now();
        let mut bytes = [0; FRAME_LEN];
        let (mut pushed, mut popped) = (0u32, 0u32);
        for round in 1..40u32 {
            while pushed - popped < WAITING_MAX as u32 {
                assert!(waiting.push(&came, now, &pushed.to_be_bytes()));
                pushed += 1;
            }
            assert!(!waiting.push(&came, now, &[]));
            for _ in 0..round * 200 {
                let (_, _, len) = waiting.pop(&mut bytes).unwrap();
                assert_eq!(bytes[..len], popped.to_be_bytes());
                popped += 1;
            }
        }
    }
}

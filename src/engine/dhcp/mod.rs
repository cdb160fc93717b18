//! DHCP on the core that owns it: frames from a ring and UDP datagrams in, the machine's answers out in batches.
//!
//! A client that has no address yet is answered by a whole frame, so nothing waits for ARP. Where raw sockets are
//! refused, the same answers leave by UDP as broadcasts. Relays and clients with an address are answered by a frame too,
//! back to who sent theirs, where that may be (no packet filter to go past, and routing leads there); else by UDP.
//!
//! *More than can be answered.* What belongs to an exchange under way (REQUEST and all that is no DISCOVER) has a ring of
//! its own, which every turn empties; of DISCOVERs so many are answered in a turn, and the rest waits: in their ring, or
//! for those that came by UDP in a bounded queue. What finds no room there is dropped, the newest first, at no cost to
//! us; so what was offered is also given, whatever is asked beyond it. One that waited too long is dropped when its turn
//! comes: its machine has asked again.
//!
//! *Leases on the disk.* An ACK that gives an address leaves only when the lease is stored. The replies of one turn are
//! held together, their leases written as one batch by the journal's thread ([`Scribe`]), and sent when it says so;

mod notices;
mod ports;
mod records;
mod sending;
mod storing;
mod told;
mod waiting;
mod ways;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Receiver;
use mio::Registry;

use self::notices::{NOTICED_BURST, NOTICED_PER_SECOND};
use self::ports::Kind;
pub(super) use self::ports::{Arrival, RawPort, Reach, UdpPort};
use self::records::decode;
use self::storing::Journal;
use self::told::{Budget, RECORDED_BURST, RECORDED_PER_SECOND, note, note_ignored};
use self::waiting::Waiting;
use self::ways::Ways;
use super::core::{Owner, Turn, watch};
use super::counters::Count;
use super::policy::Decider;
use super::probe::Prober;
use super::shared::Tuning;
use crate::keeper::journal::Scribe;
use crate::proto::dhcp::{
    DropReason, Input, Interface, Network, Probe, ProbeAnswer, Server, ServerPort, Settings, Verdict,
};
use crate::sys::SysError;
use crate::sys::memory::prefetch;
use crate::sys::udp::BATCH;
use crate::wire::MacAddr;
use crate::wire::dhcp::{CHADDR_OFFSET, MessageType, OPTIONS_OFFSET, code};
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, parse_udp_frame};

/// Messages taken from one socket per turn.
const MESSAGES_PER_TURN: usize = 1024;
/// DISCOVERs answered per turn as they come, and as many again of those that wait.
const DISCOVERS_PER_TURN: usize = 128;
/// One that waited longer is not answered: iPXE repeats itself after a second, ROMs after four.
const STALE: Duration = Duration::from_millis(900);
/// Longest frame taken: an Ethernet frame with a VLAN tag.
const FRAME_LEN: usize = 1518;
/// Where a hardware address stands in a frame without IP options; in another one these are other bytes.
const CHADDR_IN_FRAME: Range<usize> =
    UDP_PAYLOAD_OFFSET + CHADDR_OFFSET..UDP_PAYLOAD_OFFSET + CHADDR_OFFSET + 6;

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
    ways: Ways,
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
        let both = (now, SystemTime::now());
        let mut server = Server::new(settings, seed);
        if let Some(scribe) = &journal {
            server.restore(now, scribe.stored().iter().filter_map(|entry| decode(entry, both)));
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
            ways: Ways::default(),
            discovers: 0,
            gathered: None,
            journal: journal.map(|scribe| Journal::new(scribe, now)),
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
        self.ready_raw = (0..(self.raws.len() * Kind::ALL.len()) as u32).collect();
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
        for kind in Kind::ALL {
            for _ in 0..self.ready_raw.len() {
                let Some(number) = self.ready_raw.pop_front() else { break };
                let index = number as usize / Kind::ALL.len();
                let ours = number as usize % Kind::ALL.len() == kind as usize;
                if !ours || !self.drain_raw(index, kind, turn, &mut decider) {
                    self.ready_raw.push_back(number);
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
        kind: Kind,
        turn: &mut Turn<'_>,
        decider: &mut Decider<'_>,
    ) -> bool {
        let Some(mut ring) = self.raws[index].rings[kind as usize].take() else { return true };
        let max = if kind == Kind::Discovers { DISCOVERS_PER_TURN } else { MESSAGES_PER_TURN };
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
            // Behind routers a message passes memories that no link's checksum covers.
            if kind == Kind::Addressed && frame.unchecked && !datagram.is_sound() {
                return turn.tally.add(Count::DhcpMalformedFrames, 1);
            }
            let came = Came {
                interface: of,
                raw: Some(index),
                port: ServerPort::Dhcp,
                src: datagram.src,
                src_mac: Some(datagram.src_mac),
                dst: *datagram.dst.ip(),
                local: interface.addr,
            };
            match kind {
                Kind::Addressed => self.arrived(&came, datagram.payload, turn, decider),
                Kind::Rest | Kind::Discovers => self.handle(&came, datagram.payload, turn, decider),
            }
        });
        self.raws[index].rings[kind as usize] = Some(ring);
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
}

/// True for a DISCOVER as every client writes it: option 53 first. One that is not taken for it is answered like any
/// other message.
fn is_discover(message: &[u8]) -> bool {
    message.get(OPTIONS_OFFSET..OPTIONS_OFFSET + 3)
        == Some(&[code::MESSAGE_TYPE, 1, MessageType::Discover.code()])
}

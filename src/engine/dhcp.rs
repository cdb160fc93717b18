//! DHCP on the core that owns it: raw frames and UDP datagrams in, the machine's answers out.
//!
//! A client that has no address yet is answered by a whole frame, so nothing waits for ARP. Where raw sockets are
//! refused, the same answers leave by UDP as broadcasts.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crossbeam_channel::Receiver;
use mio::Registry;

use super::core::{Owner, Turn, watch};
use super::counters::Count;
use super::filters;
use super::policy::Decider;
use super::shared::Tuning;
use super::sightings::Sighting;
use crate::jobs::evidence::{Asker, Evidence, Seen};
use crate::proto::dhcp::{
    CLIENT_PORT, DhcpEvent, DhcpStep, DropReason, Input, Interface, Output, Server, ServerPort, Settings, To,
    Verdict,
};
use crate::proto::firmware::{Firmware, FirmwareKind};
use crate::sys::packet::PacketSocket;
use crate::sys::udp::{Source, UdpSocket};
use crate::wire::MacAddr;
use crate::wire::capture::Packet;
use crate::wire::dhcp::{Message, OP_REQUEST};
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_frame, parse_udp_frame};

/// Messages taken from one socket per turn.
const MESSAGES_PER_TURN: usize = 256;
/// Longest frame taken: an Ethernet frame with a VLAN tag.
const FRAME_LEN: usize = 1518;

/// A raw socket and the interface it is on.
#[derive(Debug)]
pub(super) struct RawPort {
    pub(super) socket: PacketSocket,
    pub(super) interface: Arc<Interface>,
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
    /// Where a frame is read to; out on loan while its message is handled.
    frame: Vec<u8>,
    reply: Box<[u8; FRAME_LEN]>,
    ip_id: u16,
    armed_at: Option<Instant>,
    /// What the server was told last.
    tuning: Arc<Tuning>,
}

impl DhcpSide {
    pub(super) fn new(
        settings: Settings,
        seed: u64,
        interfaces: Vec<Arc<Interface>>,
        arrivals: Receiver<Arrival>,
        raws: Vec<RawPort>,
        udps: Vec<UdpPort>,
        ports: (u16, u16),
    ) -> Self {
        Self {
            server: Server::new(settings, seed),
            raws,
            udps,
            interfaces,
            arrivals,
            port: ports.0,
            boot_server_port: ports.1,
            ready_raw: VecDeque::new(),
            ready_udp: VecDeque::new(),
            frame: vec![0; FRAME_LEN],
            reply: Box::new([0; FRAME_LEN]),
            ip_id: 0,
            armed_at: None,
            tuning: Arc::default(),
        }
    }

    /// Takes up what a reload changed.
    fn take_up(&mut self, turn: &Turn<'_>) {
        let now = turn.shared.tuning.load();
        if !Arc::ptr_eq(&now, &self.tuning) {
            self.tuning = Arc::clone(&now);
            if let Some(settings) = &now.dhcp {
                self.server.replace_settings(settings.clone());
            }
        }
    }

    pub(super) fn register(&self, registry: &Registry) -> io::Result<()> {
        for (index, raw) in self.raws.iter().enumerate() {
            watch(registry, raw.socket.as_raw_fd(), Owner::DhcpRaw(index as u32))?;
        }
        for (index, udp) in self.udps.iter().enumerate() {
            watch(registry, udp.socket.as_raw_fd(), Owner::DhcpUdp(index as u32))?;
        }
        Ok(())
    }

    /// Looks at every socket once: frames may have come between opening and registering.
    pub(super) fn ready_all(&mut self) {
        self.ready_raw = (0..self.raws.len() as u32).collect();
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

    pub(super) fn is_busy(&self) -> bool {
        !self.ready_raw.is_empty() || !self.ready_udp.is_empty()
    }

    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
        self.take_up(turn);
        while let Ok(arrival) = self.arrivals.try_recv() {
            self.welcome(arrival, turn);
        }
        for _ in 0..self.ready_raw.len() {
            let Some(index) = self.ready_raw.pop_front() else { break };
            if !self.drain_raw(index as usize, turn) {
                self.ready_raw.push_back(index);
            }
        }
        for _ in 0..self.ready_udp.len() {
            let Some(index) = self.ready_udp.pop_front() else { break };
            if !self.drain_udp(index as usize, turn) {
                self.ready_udp.push_back(index);
            }
        }
        self.arm(turn);
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
            let owner = Owner::DhcpRaw(self.raws.len() as u32);
            if let Err(error) = watch(turn.registry, raw.socket.as_raw_fd(), owner) {
                tracing::warn!(interface = raw.interface.name, %error, "cannot watch the raw socket");
                return;
            }
            self.ready_raw.push_back(self.raws.len() as u32);
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

    /// A deadline of the machine may have passed.
    pub(super) fn expired(&mut self, turn: &mut Turn<'_>) {
        if self.armed_at.is_some_and(|at| at <= turn.now) {
            self.armed_at = None;
            self.server.handle_timeout(turn.now);
            self.arm(turn);
        }
    }

    /// True when the socket is empty.
    fn drain_raw(&mut self, index: usize, turn: &mut Turn<'_>) -> bool {
        for _ in 0..MESSAGES_PER_TURN {
            let len = match self.raws[index].socket.recv(&mut self.frame[..]) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) => {
                    // ENETDOWN when the interface goes down; it is delivered once.
                    turn.tally.add(Count::DhcpRecvErrors, 1);
                    tracing::debug!(interface = self.raws[index].interface.name, %error, "dhcp raw receive");
                    return false;
                }
            };
            turn.tally.add(Count::DhcpPackets, 1);
            let frame = std::mem::take(&mut self.frame);
            match parse_udp_frame(&frame[..len]) {
                Ok(datagram) => {
                    let interface = Arc::clone(&self.raws[index].interface);
                    let input = Input {
                        interface: &interface,
                        port: ServerPort::Dhcp,
                        src: datagram.src,
                        src_mac: Some(datagram.src_mac),
                        dst: *datagram.dst.ip(),
                        local: interface.addr,
                        bytes: datagram.payload,
                    };
                    self.handle(&input, Some(index), turn);
                }
                Err(_) => turn.tally.add(Count::DhcpMalformedFrames, 1),
            }
            self.frame = frame;
        }
        false
    }

    /// True when the socket is empty.
    fn drain_udp(&mut self, index: usize, turn: &mut Turn<'_>) -> bool {
        for _ in 0..MESSAGES_PER_TURN / crate::sys::udp::BATCH {
            let taken = match turn.recv.recv(&self.udps[index].socket) {
                Ok(0) => return true,
                Ok(taken) => taken,
                Err(error) => {
                    turn.tally.add(Count::DhcpRecvErrors, 1);
                    tracing::debug!(%error, "dhcp receive");
                    return false;
                }
            };
            for i in 0..taken {
                turn.tally.add(Count::DhcpPackets, 1);
                let mut bytes = [0u8; FRAME_LEN];
                let Some(d) = turn.recv.datagram(i) else { continue };
                let Some(message) = bytes.get_mut(..d.bytes.len()) else { continue };
                message.copy_from_slice(d.bytes);
                let (len, from, to, local, on) = (d.bytes.len(), d.from, d.to, d.local, d.interface);
                let Some(interface) = self.interfaces.iter().find(|i| i.index == on).cloned() else {
                    turn.tally.add(Count::DhcpForeignInterface, 1);
                    continue;
                };
                let input = Input {
                    interface: &interface,
                    port: self.udps[index].port,
                    src: from,
                    src_mac: None,
                    dst: to,
                    local,
                    bytes: &bytes[..len],
                };
                self.handle(&input, self.raws.iter().position(|raw| raw.interface.index == on), turn);
            }
        }
        false
    }

    fn handle(&mut self, input: &Input<'_>, raw: Option<usize>, turn: &mut Turn<'_>) {
        let mut decider = Decider::new(turn.shared);
        // The message is built where a frame's payload goes, so that a raw answer needs no second copy.
        let reply = &mut self.reply[UDP_PAYLOAD_OFFSET..];
        match self.server.handle(turn.now, input, &mut decider, reply) {
            Verdict::Reply(output, event) => {
                let reply = &self.reply[UDP_PAYLOAD_OFFSET..][..output.len];
                note(&event, input, Some((&output, reply)), turn);
                self.send(&output, input, raw, turn);
            }
            Verdict::Heard(event) => note(&event, input, None, turn),
            Verdict::Drop(reason) => {
                turn.tally.drop_dhcp(reason);
                note_ignored(reason, input, turn);
            }
        }
    }

    fn send(&mut self, output: &Output, input: &Input<'_>, raw: Option<usize>, turn: &mut Turn<'_>) {
        turn.tally.add(Count::DhcpReplies, 1);
        let real_port = match output.port {
            ServerPort::Dhcp => self.port,
            ServerPort::BootServer => self.boot_server_port,
        };
        let (mac, to) = match output.to {
            To::Broadcast => (Some(MacAddr::BROADCAST), SocketAddrV4::new(Ipv4Addr::BROADCAST, 68)),
            To::Link { mac, to } => (Some(mac), to),
            To::Unicast(to) => (None, to),
        };
        let socket = self.udps.iter().find(|udp| udp.port == output.port);
        // A unicast goes by UDP, where routing and ARP do their work. With another server on port 67 there is no
        // socket to send it from, and it goes back to the MAC address it came from.
        let frame_to = mac.or(if socket.is_none() { input.src_mac } else { None });
        if let (Some(raw), Some(dst_mac)) = (raw, frame_to) {
            let port = &self.raws[raw];
            self.ip_id = self.ip_id.wrapping_add(1);
            let header = UdpHeader {
                src_mac: port.interface.mac,
                dst_mac,
                src: SocketAddrV4::new(output.from, real_port),
                dst: to,
                ttl: 64,
                ip_id: self.ip_id,
            };
            let sent = emit_udp_frame(&mut self.reply[..], &header, output.len)
                .map(|len| port.socket.send(&self.reply[..len]));
            if !matches!(sent, Some(Ok(_))) {
                turn.tally.add(Count::DhcpSendErrors, 1);
                tracing::debug!(?sent, "dhcp raw send");
            }
            return;
        }
        let Some(socket) = socket else { return turn.tally.add(Count::DhcpSendErrors, 1) };
        let to = if mac.is_some() { SocketAddrV4::new(Ipv4Addr::BROADCAST, to.port()) } else { to };
        let interface = if to.ip().is_broadcast() { input.interface.index } else { 0 };
        let source = Source { addr: output.from, interface };
        let bytes = &self.reply[UDP_PAYLOAD_OFFSET..UDP_PAYLOAD_OFFSET + output.len];
        turn.send.push_bytes(to, source, 0, bytes);
        let tally = turn.tally;
        turn.send.flush(&socket.socket, |unsent| {
            tally.add(Count::DhcpSendErrors, 1);
            tracing::debug!(%to, error = %unsent.error, "dhcp send");
        });
    }
}

/// Passes on what a message told: to the other cores who is where, to the flight recorder what happened.
fn note(event: &DhcpEvent, input: &Input<'_>, reply: Option<(&Output, &[u8])>, turn: &Turn<'_>) {
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
        turn.shared.sightings.record(addr, Sighting { mac, arch });
    }
    let Some(seen) = seen(event) else { return };
    let mut evidence = Evidence::new(SystemTime::now(), seen);
    evidence.mac = event.mac;
    evidence.uuid = event.uuid;
    evidence.address = event.ip;
    if turn.shared.is_recording() {
        evidence.packets = packets(input, reply);
    }
    turn.shared.note(evidence);
}

/// What an event means for a boot; nothing for who is not booting.
fn seen(event: &DhcpEvent) -> Option<Seen> {
    let file = || event.file.as_str().to_owned();
    let named = !event.file.is_empty();
    Some(match event.what {
        DhcpStep::Offered if named => {
            let asker = match event.kind? {
                FirmwareKind::Pxe => Asker::Firmware,
                FirmwareKind::HttpBoot => Asker::Http,
                FirmwareKind::Ipxe(_) => Asker::Ipxe,
            };
            Seen::DhcpOffered { asker, arch: event.arch, relay: event.relay, file: file() }
        }
        // An address and nothing to boot: what the screen says is that there is no boot file.
        DhcpStep::Offered => {
            event.kind?;
            Seen::DhcpIgnored {
                reason: DropReason::NoBoot.word().into(),
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

/// Tells the flight recorder of boot firmware that got no answer, where the reason is about it and not about the packet.
fn note_ignored(reason: DropReason, input: &Input<'_>, turn: &Turn<'_>) {
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
    let seen = Seen::DhcpIgnored {
        reason: reason.word().into(),
        arch: firmware.arch_stated.then_some(firmware.arch),
        relay: Some(message.giaddr()).filter(|relay| !relay.is_unspecified()),
        boot_server,
    };
    let mut evidence = Evidence::new(SystemTime::now(), seen);
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

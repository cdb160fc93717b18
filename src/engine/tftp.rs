//! TFTP on one core: datagrams in, the transfer machines, datagrams out.
//!
//! A transfer is a slab entry, never a thread, process or socket. Requests come to port 69, which every core shares;
//! everything after that goes between the client's port and one of this core's few data ports, so that the pair
//! names the transfer (RFC 1350 §4) and the kernel, seeing a bound socket, answers nothing of its own.
//!
//! File data goes from the mapping to the kernel: headers are all that is written here. How it leaves is chosen per
//! transfer, when its request arrives:
//!
//! | way | when |
//! |---|---|
//! | whole frames past the IP stack, to the request's own sender | small windows, to a machine on (or routed back through) the interface its request came in on, each block fits the link |
//! | a window in one segmented send | larger windows, each block fits the link |
//! | datagrams in batches | everything else |
//!
//! An error at a send takes that one transfer a step down this table.
//!
//! Who sends how much: what a transfer's window allows leaves at once, up to [`QUANTUM`] bytes; the rest waits for the
//! other transfers that have something to send, each its quantum in turn (deficit round robin, Shreedhar and Varghese,
//! SIGCOMM 1995; nothing is carried over, since a block is never larger than a quantum).
//!
//! What is shed, and when: requests wait in the sockets' and rings' own buffers, and what does not fit there the kernel
//! drops, newest first. A request that is read is answered. When every place is taken, the oldest transfer that was
//! never acknowledged goes; when there is none, the newest request is dropped in silence, and its firmware asks again.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use mio::Registry;

use super::core::{Owner, Turn, watch};
use super::counters::Count;
use super::native::{self, End};
use super::readers::Readers;
use super::shared::Shared;
use super::sightings::Sighting;
use super::slab::{Key, Slab};
use crate::files::catalog::TftpTarget;
use crate::files::served::{Opened, Served};
use crate::jobs::evidence::{self, Evidence, Over, Seen, TransferFacts};
use crate::jobs::image::Access;
use crate::jobs::script;
use crate::keeper::{Answer, AtTheLine};
use crate::proto::dhcp::Interface;
use crate::proto::tftp::{Limits, Outcome, Transfer, Transmit, Verdict};
use crate::sys::SysError;
use crate::sys::frames::{FrameSender, HEAD_LEN_MAX};
use crate::sys::mmap::Mapping;
use crate::sys::ring::FrameRing;
use crate::sys::udp::{self, SEGMENTS_MAX, SEND_LEN_MAX, Source, UdpOptions, UdpSocket, Unsent};
use crate::wire::MacAddr;
use crate::wire::capture;
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_headers, parse_udp_frame};
use crate::wire::tftp::{self, ErrorCode, Mode, Options, Packet, Request};

/// Data ports of one core.
pub(super) const DATA_PORTS: usize = 8;
/// Receive buffer of each socket: a hall of machines asks at once, and peers lose requests in the default 212 KiB.
const RECV_BUFFER: i32 = 8 << 20;
/// Send buffer of each socket: a quantum for a good many transfers fits, where the default loses a single window of the
/// largest blocks.
const SEND_BUFFER: i32 = 4 << 20;
/// Bytes a transfer sends before the others have their turn: any window of unfragmented blocks that is granted, and two
/// of the largest blocks.
const QUANTUM: u32 = 128 << 10;
/// When blocks were not in memory, they are looked for again after this.
const COLD_PAUSE: Duration = Duration::from_millis(2);
/// Sends of the same blocks, as fragments, without an answer, after which fragments are taken to be lost.
const FRAGMENT_TRIES: u16 = 2;
/// Batches taken from one socket before the others have their turn.
const BATCHES_PER_TURN: usize = 4;
/// Transfers one core holds.
pub(super) const TRANSFERS_MAX: usize = 32 * 1024;
/// Netascii exists for small texts; a conversion is held in memory.
const NETASCII_LEN_MAX: u64 = 1 << 20;
/// The port of the standard, for capture files.
const TFTP_PORT: u16 = 69;
/// Longest name kept of what was refused.
const NAME_SHOWN_MAX: usize = 160;
/// IPv4 and UDP headers.
const HEADERS_LEN: u32 = 28;
/// A boot that cannot be recorded asks again this often.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a request names, opened.
struct Found {
    payload: Payload,
    served: Option<Arc<Served>>,
    line: Option<Box<Line>>,
}

/// A transfer whose last block is a point of no return.
struct Line {
    at: AtTheLine,
    /// Whose.
    seen: Sighting,
    /// The keeper was asked, and has not answered.
    asked: bool,
    /// Not before this is it asked again.
    again: Option<Instant>,
}

/// Frames taken from one ring before the others have their turn.
const FRAMES_PER_TURN: usize = 512;
/// Windows up to this many blocks leave by frame: for larger ones a segmented send costs less per block.
const FRAME_WINDOW_MAX: u16 = 4;
/// Time to live of what we send, as the kernel has it.
const TTL: u8 = 64;

/// How a transfer's packets leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Whole frames on this link, to this address.
    Frame { link: u8, to: MacAddr },
    /// A run of blocks in one segmented send.
    Segments,
    /// Datagrams.
    Datagrams,
}

/// Where a request came in by frame.
#[derive(Clone, Copy)]
struct Hop {
    link: u8,
    from: MacAddr,
}

/// One interface served by frames, as one core sees it.
pub(super) struct Link {
    pub(super) interface: Arc<Interface>,
    /// Out on loan while its frames are handled.
    ring: Option<FrameRing>,
    sender: FrameSender,
    ip_id: u16,
}

impl Link {
    pub(super) fn new(interface: Arc<Interface>, ring: FrameRing, sender: FrameSender) -> Self {
        Self { interface, ring: Some(ring), sender, ip_id: 0 }
    }
}

/// Where a transfer's bytes come from.
enum Payload {
    /// A published file: sent from its mapping.
    File(Arc<Opened>),
    /// A text made here: the constant script, or a netascii conversion.
    Text(Arc<Vec<u8>>),
}

/// [`Live::armed_us`] of a transfer that nobody will look at.
const UNARMED: u64 = u64::MAX;

/// One transfer and what the engine must know to carry it out.
struct Live {
    transfer: Transfer,
    payload: Payload,
    served: Option<Arc<Served>>,
    client: SocketAddrV4,
    /// Our address, as the client wrote it.
    local: Ipv4Addr,
    socket: u16,
    /// The request, to tell a retry from another one: a BIOS ROM asks for the size and then for the file from one port.
    request_hash: u32,
    way: Way,
    /// When the request came, in milliseconds since the engine's start; wraps.
    began_ms: u32,
    /// On the list of those with more to send.
    queued: bool,
    /// When the wheel will look at this transfer, in microseconds since the side was made ([`UNARMED`]: never); a firing
    /// before is left over from an earlier plan.
    armed_us: u64,
    /// Set where the last block waits for the keeper.
    line: Option<Box<Line>>,
}

impl Live {
    fn source(&self) -> Source {
        Source { addr: self.local, interface: 0 }
    }
}

/// One core's TFTP.
pub(super) struct TftpSide {
    /// Listeners first, then the data ports.
    sockets: Vec<UdpSocket>,
    listeners: usize,
    /// Interfaces served by frames.
    links: Vec<Link>,
    ready_links: Vec<bool>,
    /// Frames taken since [`TftpSide::take_frame_count`].
    frame_count: usize,
    /// Sockets with datagrams waiting.
    ready: VecDeque<u32>,
    is_ready: Vec<bool>,
    transfers: Slab<Live>,
    /// Positions of the transfers, found by their clients' addresses: each has one transfer at most.
    by_client: HashTable<u32>,
    hasher: RandomState,
    start: Instant,
    /// Transfers with more to send than their quantum, in the order of their turns.
    due: VecDeque<Key>,
    readers: Arc<Readers>,
    /// Transfers in the order they came, those that have not been acknowledged yet among them.
    unanswered: VecDeque<Key>,
    next_port: usize,
    single_port: bool,
    segmentation: bool,
    accepting: bool,
    /// Socket the waiting batch belongs to.
    batch_socket: usize,
    /// Sends the kernel refused, dealt with after the flush.
    refused: Vec<Unsent>,
}

impl TftpSide {
    /// Binds this core's sockets.
    pub(super) fn bind(
        listen: &[SocketAddrV4],
        single_port: bool,
        segmentation: bool,
        readers: &Arc<Readers>,
        data_ports: &mut DataPorts,
    ) -> Result<Self, SysError> {
        let options = UdpOptions {
            reuse_port: true,
            fragment: true,
            recv_buffer: RECV_BUFFER,
            send_buffer: SEND_BUFFER,
            ..UdpOptions::default()
        };
        let mut sockets = Vec::new();
        for addr in listen {
            sockets.push(UdpSocket::bind(*addr, &options)?);
        }
        let listeners = sockets.len();
        if !single_port && listeners > 0 {
            sockets.extend(data_ports.take());
        }
        Ok(Self {
            is_ready: vec![false; sockets.len()],
            sockets,
            listeners,
            links: Vec::new(),
            ready_links: Vec::new(),
            frame_count: 0,
            ready: VecDeque::new(),
            transfers: Slab::new(TRANSFERS_MAX),
            by_client: HashTable::new(),
            hasher: RandomState::default(),
            start: Instant::now(),
            due: VecDeque::new(),
            readers: Arc::clone(readers),
            unanswered: VecDeque::new(),
            next_port: 0,
            single_port,
            segmentation,
            accepting: true,
            batch_socket: 0,
            refused: Vec::new(),
        })
    }

    /// The first listener's port.
    pub(super) fn addresses(&self) -> Vec<SocketAddrV4> {
        self.sockets[..self.listeners].iter().map(UdpSocket::local).collect()
    }

    pub(super) fn register(&self, registry: &Registry) -> io::Result<()> {
        for (index, socket) in self.sockets.iter().enumerate() {
            watch(registry, socket.as_raw_fd(), Owner::Tftp(index as u32))?;
        }
        for (index, link) in self.links.iter().enumerate() {
            if let Some(ring) = &link.ring {
                watch(registry, ring.as_raw_fd(), Owner::TftpFrames(index as u32))?;
            }
        }
        Ok(())
    }

    /// Serves these interfaces by frames; their packets must not reach the sockets any more.
    pub(super) fn take_links(&mut self, links: Vec<Link>) {
        self.ready_links = vec![true; links.len()];
        self.links = links;
    }

    /// The sockets, for their filters.
    pub(super) fn sockets(&self) -> &[UdpSocket] {
        &self.sockets
    }

    pub(super) fn frames_readable(&mut self, index: u32) {
        if let Some(ready) = self.ready_links.get_mut(index as usize) {
            *ready = true;
        }
    }

    pub(super) fn readable(&mut self, index: u32) {
        if let Some(ready) = self.is_ready.get_mut(index as usize)
            && !std::mem::replace(ready, true)
        {
            self.ready.push_back(index);
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.ready.is_empty() || !self.due.is_empty() || self.ready_links.contains(&true)
    }

    /// Looks into the rings' memory, which costs no call; true when frames are waiting there.
    pub(super) fn has_frames(&mut self) -> bool {
        for (link, ready) in self.links.iter().zip(&mut self.ready_links) {
            *ready |= link.ring.as_ref().is_some_and(FrameRing::has_frames);
        }
        self.ready_links.contains(&true)
    }

    /// Frames taken since this was asked last.
    pub(super) fn take_frame_count(&mut self) -> usize {
        std::mem::take(&mut self.frame_count)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.transfers.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.transfers.len()
    }

    /// New requests are dropped from now on; running transfers go on.
    pub(super) fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Takes what is waiting on every ready socket, within the budget.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
        for index in 0..self.links.len() {
            if self.ready_links[index] {
                self.ready_links[index] = self.frames(index, turn);
            }
        }
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { break };
            let mut drained = false;
            for _ in 0..BATCHES_PER_TURN {
                let taken = match turn.recv.recv(&self.sockets[index as usize]) {
                    Ok(taken) => taken,
                    Err(error) => {
                        // Only errors a stranger can provoke arrive here (ICMP unreachable and the like).
                        turn.tally.add(Count::TftpRecvErrors, 1);
                        tracing::debug!(%error, "tftp receive");
                        continue;
                    }
                };
                if taken == 0 {
                    drained = true;
                    break;
                }
                if (index as usize) < self.listeners && !self.single_port {
                    // One data port per batch of requests: their answers then leave in one call.
                    self.next_port = (self.next_port + 1) % DATA_PORTS;
                }
                for i in 0..taken {
                    self.datagram(index, i, turn);
                }
            }
            if drained {
                self.is_ready[index as usize] = false;
            } else {
                self.ready.push_back(index);
            }
        }
        for _ in 0..self.due.len() {
            let Some(key) = self.due.pop_front() else { break };
            if let Some(live) = self.transfers.get_mut(key) {
                live.queued = false;
                self.follow(key, Verdict::Progress, turn);
            }
        }
        turn.tally.set(Count::TftpTransfers, self.transfers.len() as u64);
    }

    /// Takes what is waiting in one ring, within the budget; true when there may be more.
    fn frames(&mut self, index: usize, turn: &mut Turn<'_>) -> bool {
        let Some(mut ring) = self.links[index].ring.take() else { return false };
        // One data port per batch of requests, as for the sockets.
        self.next_port = (self.next_port + 1) % DATA_PORTS;
        let taken = ring.receive(FRAMES_PER_TURN, |frame| match parse_udp_frame(frame.bytes) {
            Ok(datagram) => {
                let hop = Hop { link: index as u8, from: datagram.src_mac };
                let source = Source { addr: *datagram.dst.ip(), interface: 0 };
                match self.socket_of(datagram.dst) {
                    Some(socket) => {
                        self.packet(socket, datagram.payload, datagram.src, source, Some(hop), turn)
                    }
                    None => turn.tally.add(Count::TftpUnknownTid, 1),
                }
            }
            Err(_) => turn.tally.add(Count::TftpMalformed, 1),
        });
        self.links[index].ring = Some(ring);
        self.frame_count += taken;
        taken == FRAMES_PER_TURN
    }

    /// The socket that a frame would have reached. Few, so they are looked through.
    fn socket_of(&self, to: SocketAddrV4) -> Option<u32> {
        let covers = |socket: &UdpSocket| {
            let local = socket.local();
            local.port() == to.port() && (local.ip().is_unspecified() || local.ip() == to.ip())
        };
        self.sockets.iter().position(covers).map(|index| index as u32)
    }

    fn datagram(&mut self, socket: u32, index: usize, turn: &mut Turn<'_>) {
        // Copied out: a request's bytes must not stay borrowed from the batch that the answer's code uses too.
        let mut bytes = [0u8; 1024];
        let (len, from, local) = match turn.recv.datagram(index) {
            Some(d) if d.bytes.len() <= bytes.len() => {
                bytes[..d.bytes.len()].copy_from_slice(d.bytes);
                (d.bytes.len(), d.from, d.local)
            }
            _ => return turn.tally.add(Count::TftpMalformed, 1),
        };
        let source = Source { addr: local, interface: 0 };
        self.packet(socket, &bytes[..len], from, source, None, turn);
    }

    fn packet(
        &mut self,
        socket: u32,
        bytes: &[u8],
        from: SocketAddrV4,
        source: Source,
        hop: Option<Hop>,
        turn: &mut Turn<'_>,
    ) {
        match Packet::parse(bytes) {
            Ok(Packet::Request(request)) if (socket as usize) < self.listeners => {
                self.request(socket, &request, bytes, from, source, hop, turn);
            }
            Ok(Packet::Ack(block)) => {
                self.on_transfer(socket, from, turn, |transfer, now| transfer.handle_ack(now, block))
            }
            Ok(Packet::Error(code, _)) => {
                self.on_transfer(socket, from, turn, |transfer, now| transfer.handle_error(now, code))
            }
            Ok(_) => turn.tally.add(Count::TftpUnexpected, 1),
            Err(error) => {
                turn.tally.add(Count::TftpMalformed, 1);
                // A request in an unknown mode is one all the same, and silence would cost its client a time-out.
                if error == tftp::Error::BadMode && (socket as usize) < self.listeners {
                    self.refuse(socket, from, source, ErrorCode::IllegalOperation, "unknown mode", turn);
                }
            }
        }
    }

    /// Answers a request with an ERROR.
    fn refuse(
        &mut self,
        socket: u32,
        client: SocketAddrV4,
        source: Source,
        code: ErrorCode,
        message: &str,
        turn: &mut Turn<'_>,
    ) {
        let mut reply = [0; 128];
        if let Some(len) = tftp::emit_error(&mut reply, code, message) {
            self.push_bytes(socket, client, source, u64::MAX, &reply[..len], turn);
        }
        turn.tally.add(Count::TftpRefused, 1);
    }

    /// This client's transfer.
    fn of_client(&self, client: SocketAddrV4) -> Option<Key> {
        let is_its = |index: &u32| self.transfers.at(*index).is_some_and(|live| live.client == client);
        let index = self.by_client.find(self.hasher.hash_one(client), is_its)?;
        self.transfers.key_at(*index)
    }

    fn on_transfer(
        &mut self,
        socket: u32,
        from: SocketAddrV4,
        turn: &mut Turn<'_>,
        input: impl FnOnce(&mut Transfer, Instant) -> Verdict,
    ) {
        let Some(key) = self.of_client(from) else {
            return turn.tally.add(Count::TftpUnknownTid, 1);
        };
        let Some(live) = self.transfers.get_mut(key) else { return };
        if u32::from(live.socket) != socket {
            return turn.tally.add(Count::TftpUnknownTid, 1);
        }
        let verdict = input(&mut live.transfer, turn.now);
        self.follow(key, verdict, turn);
    }

    #[allow(clippy::too_many_arguments, reason = "a request, as it was sent, where it came in and from whom")]
    fn request(
        &mut self,
        socket: u32,
        request: &Request<'_>,
        bytes: &[u8],
        client: SocketAddrV4,
        source: Source,
        hop: Option<Hop>,
        turn: &mut Turn<'_>,
    ) {
        turn.tally.add(Count::TftpRequests, 1);
        let request_hash = hash(request);
        if let Some(key) = self.of_client(client) {
            match self.transfers.get_mut(key) {
                Some(live) if live.request_hash == request_hash => {
                    let verdict = live.transfer.handle_retried_request(turn.now);
                    return self.follow(key, verdict, turn);
                }
                // The same port asks for something else: the old transfer is over for the client. One that it never
                // acknowledged was a size query, aborted in silence.
                Some(live) => {
                    let outcome = live.transfer.is_unanswered().then_some(Outcome::ProbeAborted);
                    self.end(key, outcome, turn);
                }
                None => {}
            }
        }
        if !self.accepting {
            return turn.tally.add(Count::TftpShed, 1);
        }
        let listener = SocketAddrV4::new(source.addr, TFTP_PORT);
        let socket = if self.single_port { socket } else { (self.listeners + self.next_port) as u32 };
        let Found { payload, served, line } = match self.find(request, client, source, turn) {
            Ok(found) => found,
            Err((code, message)) => {
                self.refuse(socket, client, source, code, message, turn);
                tracing::debug!(%client, name = %String::from_utf8_lossy(request.name), message, "tftp refused");
                let mut reply = [0; 128];
                let len = tftp::emit_error(&mut reply, code, message).unwrap_or(0);
                let file = String::from_utf8_lossy(&request.name[..request.name.len().min(NAME_SHOWN_MAX)]);
                let seen = Seen::TftpRefused { file: file.into_owned(), reason: message.to_owned() };
                let packets = self.exchange(bytes, client, listener, socket, &reply[..len]);
                note_request(turn.shared, *client.ip(), seen, packets);
                return;
            }
        };
        let len = match &payload {
            Payload::File(opened) => opened.len,
            Payload::Text(text) => text.len() as u64,
        };
        let limits = self.limits_for(client, source, turn);
        let (mut transfer, _start) = Transfer::accept(turn.now, request, len, &limits);
        if line.is_some() {
            transfer.hold_last();
        }
        let way = match &payload {
            Payload::File(_) => self.way(&transfer, client, source, hop, turn),
            Payload::Text(_) => Way::Datagrams,
        };
        if turn.shared.is_recording()
            && let Some(served) = &served
        {
            let mut reply = [0; HEAD_LEN_MAX];
            let len = transfer.oack().and_then(|options| tftp::emit_oack(&mut reply, &options)).unwrap_or(0);
            let packets = self.exchange(bytes, client, listener, socket, &reply[..len]);
            note_request(turn.shared, *client.ip(), Seen::TftpAsked { file: served.name.clone() }, packets);
        }
        let live = Live {
            transfer,
            payload,
            served,
            client,
            local: source.addr,
            socket: socket as u16,
            request_hash,
            way,
            began_ms: self.readers.elapsed_ms(turn.now),
            queued: false,
            armed_us: UNARMED,
            line,
        };
        if self.transfers.is_full() {
            self.evict(turn);
        }
        match self.transfers.insert(live) {
            Ok(key) => {
                let (hasher, transfers) = (&self.hasher, &self.transfers);
                self.by_client.insert_unique(hasher.hash_one(client), key.index, |index| {
                    transfers.at(*index).map_or(0, |live| hasher.hash_one(live.client))
                });
                self.remember_unanswered(key);
                self.follow(key, Verdict::Progress, turn);
            }
            // Full of clients that answer: the newest is shed in silence, and its firmware asks again.
            Err(_) => turn.tally.add(Count::TftpShed, 1),
        }
    }

    /// A request and the answer that is no data, for a capture file.
    fn exchange(
        &self,
        request: &[u8],
        client: SocketAddrV4,
        listener: SocketAddrV4,
        socket: u32,
        reply: &[u8],
    ) -> Vec<capture::Packet> {
        let mut packets = vec![capture::Packet::tftp(client, listener, false, request)];
        if !reply.is_empty() {
            let port = self.sockets.get(socket as usize).map_or(0, |socket| socket.local().port());
            let from = SocketAddrV4::new(*listener.ip(), port);
            packets.push(capture::Packet::tftp(from, client, true, reply));
        }
        packets
    }

    /// What is granted to this client: smaller blocks, if fragments do not reach it.
    fn limits_for(&self, client: SocketAddrV4, source: Source, turn: &Turn<'_>) -> Limits {
        let mut limits = turn.shared.tuning.load().tftp_limits;
        let whole = turn.shared.mtu(source.addr).saturating_sub(HEADERS_LEN + 4);
        if u32::from(limits.blksize_max) > whole
            && turn.shared.fragments_lost.contains(turn.now, *client.ip())
        {
            limits.blksize_max = whole as u16;
        }
        limits
    }

    /// How a new transfer's blocks leave.
    fn way(
        &self,
        transfer: &Transfer,
        client: SocketAddrV4,
        source: Source,
        hop: Option<Hop>,
        turn: &Turn<'_>,
    ) -> Way {
        let packet_len = u32::from(transfer.blksize()) + 4 + HEADERS_LEN;
        let segments = self.segmentation
            && packet_len <= turn.shared.mtu(source.addr)
            && !turn.shared.refuses_segments(source.addr);
        if let Some(Hop { link, from }) = hop
            && (transfer.windowsize() <= FRAME_WINDOW_MAX || !segments)
            && let Some(Link { interface, .. }) = self.links.get(usize::from(link))
            && packet_len <= interface.mtu
            && (interface.network.contains(*client.ip())
                // Behind a router: the way back must be the way it came, or the frame ends where nobody forwards it.
                || udp::source_towards(client).is_ok_and(|local| local == interface.addr))
        {
            return Way::Frame { link, to: from };
        }
        if segments { Way::Segments } else { Way::Datagrams }
    }

    /// Notes a transfer that is still to be answered, and forgets those that are not any more.
    fn remember_unanswered(&mut self, key: Key) {
        if self.unanswered.len() >= 2 * TRANSFERS_MAX {
            let transfers = &mut self.transfers;
            self.unanswered
                .retain(|key| transfers.get_mut(*key).is_some_and(|live| live.transfer.is_unanswered()));
        }
        self.unanswered.push_back(key);
    }

    /// Makes room by ending the oldest transfer that nobody has acknowledged. Requests in other machines' names would
    /// else keep all places taken; a real client acknowledges within its round trip, long before it is the oldest.
    fn evict(&mut self, turn: &mut Turn<'_>) {
        while let Some(key) = self.unanswered.pop_front() {
            if self.transfers.get_mut(key).is_some_and(|live| live.transfer.is_unanswered()) {
                turn.tally.add(Count::TftpShed, 1);
                return self.end(key, Some(Outcome::TimedOut), turn);
            }
        }
    }

    /// What a request names, opened.
    fn find(
        &self,
        request: &Request<'_>,
        client: SocketAddrV4,
        source: Source,
        turn: &Turn<'_>,
    ) -> Result<Found, (ErrorCode, &'static str)> {
        if request.write {
            return Err((ErrorCode::AccessViolation, "this server is read-only"));
        }
        let catalog = turn.shared.library.load();
        let served = match native::target(turn.shared, &catalog, request.name, *client.ip()) {
            Ok(TftpTarget::Loader(_) | TftpTarget::Autoexec)
                if native::is_denied(turn.shared, *client.ip()) =>
            {
                return Err((ErrorCode::AccessViolation, "this machine is refused here"));
            }
            Ok(TftpTarget::File(served) | TftpTarget::Loader(served)) => served,
            Ok(TftpTarget::Autoexec) => return self.autoexec(source, turn),
            Err(_) => return Err((ErrorCode::FileNotFound, "file not found")),
        };
        if served.access == Access::Boot {
            return Err((
                ErrorCode::AccessViolation,
                "this image is given only to a boot with a token, by HTTP",
            ));
        }
        let line = match native::end_of(&served, *client.ip(), turn.shared) {
            End::Open => None,
            End::Line(at, seen) => Some(Box::new(Line { at, seen, asked: false, again: None })),
            End::Shut(why) => return Err((ErrorCode::AccessViolation, why)),
        };
        let opened = served.open().map_err(|error| {
            turn.tally.add(Count::OpenFailures, 1);
            tracing::debug!(name = served.name, %error, "cannot open");
            (ErrorCode::FileNotFound, "file not found")
        })?;
        let payload = match request.mode {
            Mode::Octet => Payload::File(opened),
            Mode::Netascii if opened.len > NETASCII_LEN_MAX => {
                return Err((ErrorCode::NotDefined, "netascii is served up to 1 MiB; ask for octet"));
            }
            Mode::Netascii => {
                let mut raw = vec![0; opened.len as usize];
                std::os::unix::fs::FileExt::read_exact_at(&opened.file, &mut raw, 0)
                    .map_err(|_| (ErrorCode::FileNotFound, "file not found"))?;
                Payload::Text(Arc::new(tftp::to_netascii(&raw)))
            }
        };
        Ok(Found { payload, served: Some(served), line })
    }

    /// The constant script: the same bytes for the size query and the read after it.
    fn autoexec(&self, source: Source, turn: &Turn<'_>) -> Result<Found, (ErrorCode, &'static str)> {
        let port = turn.shared.http_port(source.addr).ok_or((ErrorCode::FileNotFound, "file not found"))?;
        let mut script = String::new();
        script::ask_identity(&format!("http://{}:{port}", source.addr), &mut script);
        Ok(Found { payload: Payload::Text(Arc::new(script.into_bytes())), served: None, line: None })
    }

    /// Does what a machine's verdict asks for: send what it wants sent, keep its deadline, or end it.
    fn follow(&mut self, key: Key, verdict: Verdict, turn: &mut Turn<'_>) {
        match verdict {
            Verdict::Progress => {}
            Verdict::Ignored(reason) => {
                turn.tally.drop_tftp(reason);
                // A duplicate may still have made the machine resend.
            }
            Verdict::Finished(outcome) => return self.end(key, Some(outcome), turn),
        }
        let mut quantum = QUANTUM;
        let mut cold = None;
        while let Some(live) = self.transfers.get_mut(key) {
            let block_len = u32::from(live.transfer.blksize()) + 4;
            let blocks_max = (quantum / block_len) as u16;
            if let Some((offset, len)) = live.transfer.upcoming(turn.now, blocks_max.max(1)) {
                if blocks_max == 0 {
                    if !std::mem::replace(&mut live.queued, true) {
                        self.due.push_back(key);
                        turn.tally.add(Count::TftpQueued, 1);
                    }
                    break;
                }
                if let Payload::File(opened) = &live.payload
                    && !self.readers.at_hand(turn.now, opened, offset, len)
                {
                    turn.tally.add(Count::TftpCold, 1);
                    cold = Some(turn.now + COLD_PAUSE);
                    break;
                }
            }
            let Some(transmit) = live.transfer.poll_transmit_within(turn.now, blocks_max.max(1)) else {
                break;
            };
            if let Transmit::Data(run) = &transmit {
                quantum = quantum.saturating_sub(u32::from(run.count) * block_len);
            }
            match transmit {
                Transmit::Oack(options) => {
                    let mut reply = [0; HEAD_LEN_MAX];
                    let (socket, client, source) = (live.socket.into(), live.client, live.source());
                    let way = live.way;
                    let Some(len) = tftp::emit_oack(&mut reply[UDP_PAYLOAD_OFFSET..], &options) else {
                        continue;
                    };
                    if let Way::Frame { link, to } = way {
                        self.push_frame(key, link, to, &mut reply[..UDP_PAYLOAD_OFFSET + len], None);
                    } else {
                        self.push_bytes(
                            socket,
                            client,
                            source,
                            Owner::Transfer(key).pack(),
                            &reply[UDP_PAYLOAD_OFFSET..][..len],
                            turn,
                        );
                    }
                }
                Transmit::Data(run) => self.push_run(key, &run, turn),
            }
        }
        let Some(live) = self.transfers.get_mut(key) else { return };
        if live.transfer.waits_for_release()
            && let Some(line) = &mut live.line
            && !line.asked
            && line.again.is_none_or(|again| again <= turn.now)
        {
            line.asked = true;
            turn.shared.keeper.ask(line.at.clone(), Owner::Transfer(key).pack(), turn.desk);
        }
        if let Some(at) = live.transfer.poll_timeout().into_iter().chain(cold).min() {
            let at_us = micros(self.start, at);
            if at_us < live.armed_us {
                live.armed_us = at_us;
                turn.wheel.schedule(at, Owner::Transfer(key).pack());
            }
        }
    }

    fn push_run(&mut self, key: Key, run: &crate::proto::tftp::Run, turn: &mut Turn<'_>) {
        let Some(live) = self.transfers.get_mut(key) else { return };
        let (socket, client, source) = (live.socket.into(), live.client, live.source());
        let tag = Owner::Transfer(key).pack();
        turn.tally.add(Count::TftpBytes, run.bytes);
        turn.tally.add(Count::TftpBlocks, u64::from(run.count));
        match &live.payload {
            Payload::File(opened) => {
                // The last blocks: the last chance to see that the file is still the one that was promised.
                if run.offset + run.bytes == opened.len && !opened.still_same() {
                    tracing::warn!(
                        file = live.served.as_ref().map_or("", |s| s.name.as_str()),
                        "file changed under a transfer: the transfer is cut"
                    );
                    turn.tally.add(Count::FilesChanged, 1);
                    let mut reply = [0; 64];
                    if let Some(len) = tftp::emit_error(&mut reply, ErrorCode::NotDefined, "file changed") {
                        self.push_bytes(socket, client, source, u64::MAX, &reply[..len], turn);
                    }
                    return self.end(key, None, turn);
                }
                let block_len = usize::from(live.transfer.blksize()) + 4;
                let mapping = Arc::clone(&opened.mapping);
                let (per_send, way) = match live.way {
                    Way::Frame { link, to } => {
                        turn.tally.add(Count::TftpByFrame, u64::from(run.count));
                        for i in 0..run.count {
                            let mut head = [0; UDP_PAYLOAD_OFFSET + 4];
                            head[UDP_PAYLOAD_OFFSET..].copy_from_slice(&run.header(i));
                            let (offset, len) = run.slice(i);
                            let body = Some((&mapping, offset, usize::from(len)));
                            self.push_frame(key, link, to, &mut head, body);
                        }
                        return;
                    }
                    Way::Segments => {
                        ((SEND_LEN_MAX / block_len).clamp(1, SEGMENTS_MAX) as u16, Count::TftpBySegments)
                    }
                    Way::Datagrams => (1, Count::TftpByDatagram),
                };
                turn.tally.add(way, u64::from(run.count));
                let mut from = 0;
                while from < run.count {
                    let count = per_send.min(run.count - from);
                    let blocks = (from..from + count).map(|i| {
                        let (offset, len) = run.slice(i);
                        (run.header(i), offset, len)
                    });
                    self.reserve(socket, usize::from(count) * 2, usize::from(count) * 4, turn);
                    turn.send.push_blocks(client, source, tag, &mapping, blocks);
                    from += count;
                }
            }
            Payload::Text(text) => {
                let text = Arc::clone(text);
                let mut packet = Vec::with_capacity(usize::from(live.transfer.blksize()) + 4);
                for i in 0..run.count {
                    let (offset, len) = run.slice(i);
                    let start = offset as usize;
                    packet.clear();
                    packet.extend_from_slice(&run.header(i));
                    packet.extend_from_slice(text.get(start..start + usize::from(len)).unwrap_or_default());
                    self.push_bytes(socket, client, source, tag, &packet, turn);
                }
            }
        }
    }

    /// Adds a frame to its link's batch: `head` has room for the headers before what it already holds.
    fn push_frame(
        &mut self,
        key: Key,
        link: u8,
        to: MacAddr,
        head: &mut [u8],
        body: Option<(&Arc<Mapping>, u64, usize)>,
    ) {
        if self.links.get(usize::from(link)).is_some_and(|link| link.sender.is_full()) {
            self.flush_frames(usize::from(link));
        }
        let (Some(live), Some(link)) = (self.transfers.get_mut(key), self.links.get_mut(usize::from(link)))
        else {
            return;
        };
        link.ip_id = link.ip_id.wrapping_add(1);
        let port = self.sockets.get(live.socket as usize).map_or(0, |socket| socket.local().port());
        let header = UdpHeader {
            src_mac: link.interface.mac,
            dst_mac: to,
            src: SocketAddrV4::new(live.local, port),
            dst: live.client,
            ttl: TTL,
            ip_id: link.ip_id,
        };
        let payload_len = head.len() - UDP_PAYLOAD_OFFSET + body.map_or(0, |(_, _, len)| len);
        let Some(headers) = head.first_chunk_mut::<UDP_PAYLOAD_OFFSET>() else { return };
        // No UDP checksum (RFC 768): the file's bytes are not read here, and Ethernet's own covers them on the link.
        if emit_udp_headers(headers, &header, payload_len).is_some() {
            let pushed = link.sender.push(head, body, Owner::Transfer(key).pack());
            debug_assert!(pushed, "room was made, and no head is longer than an OACK");
        }
    }

    fn flush_frames(&mut self, link: usize) {
        let refused = &mut self.refused;
        if let Some(link) = self.links.get_mut(link)
            && !link.sender.is_empty()
        {
            link.sender.flush(|unsent| refused.push(unsent));
        }
    }

    /// Makes room in the batch, and makes it this socket's.
    fn reserve(&mut self, socket: u32, pieces: usize, bytes: usize, turn: &mut Turn<'_>) {
        if self.batch_socket != socket as usize || turn.send.is_full(pieces, bytes) {
            self.flush_batch(turn);
            self.batch_socket = socket as usize;
        }
    }

    fn push_bytes(
        &mut self,
        socket: u32,
        to: SocketAddrV4,
        from: Source,
        tag: u64,
        bytes: &[u8],
        turn: &mut Turn<'_>,
    ) {
        self.reserve(socket, 1, bytes.len(), turn);
        turn.send.push_bytes(to, from, tag, bytes);
    }

    fn flush_batch(&mut self, turn: &mut Turn<'_>) {
        if !turn.send.is_empty() {
            let refused = &mut self.refused;
            turn.send.flush(&self.sockets[self.batch_socket], |unsent| refused.push(unsent));
        }
    }

    /// Hands everything collected in this turn to the kernel, and takes transfers whose sends it refused one rung
    /// down. Their own timers then send again.
    pub(super) fn flush(&mut self, turn: &mut Turn<'_>) {
        self.flush_batch(turn);
        for link in 0..self.links.len() {
            self.flush_frames(link);
        }
        for unsent in std::mem::take(&mut self.refused) {
            turn.tally.add(Count::TftpSendErrors, 1);
            if unsent.error.kind() == io::ErrorKind::WouldBlock {
                continue;
            }
            let Some(Owner::Transfer(key)) = Owner::unpack(unsent.tag) else { continue };
            let Some(live) = self.transfers.get_mut(key) else { continue };
            tracing::debug!(client = %live.client, error = %unsent.error, "tftp send refused");
            let way = std::mem::replace(&mut live.way, Way::Datagrams);
            if way == Way::Segments && turn.shared.note_refused_segments(live.local) {
                tracing::info!(
                    address = %live.local,
                    error = %unsent.error,
                    "segmented UDP sends are refused here: blocks go out one by one"
                );
            }
        }
    }

    /// The keeper's answer to a transfer that waits with its last block.
    pub(super) fn answered(&mut self, key: Key, answer: Answer, turn: &mut Turn<'_>) {
        let Some(live) = self.transfers.get_mut(key) else { return };
        let Some(line) = &mut live.line else { return };
        line.asked = false;
        match answer {
            Answer::Go => {
                turn.shared.passed.note(line.seen);
                live.line = None;
                live.transfer.release();
                self.follow(key, Verdict::Progress, turn);
            }
            // Its own deadlines look at it again.
            Answer::NotNow => line.again = Some(turn.now + ASK_AGAIN),
            Answer::Refused(denial) => {
                tracing::debug!(client = %live.client, %denial, "transfer cut at the point of no return");
                let (socket, client, source) = (live.socket.into(), live.client, live.source());
                let mut reply = [0; 64];
                if let Some(len) =
                    tftp::emit_error(&mut reply, ErrorCode::AccessViolation, "this machine had its job")
                {
                    self.push_bytes(socket, client, source, u64::MAX, &reply[..len], turn);
                }
                self.end(key, None, turn);
            }
        }
    }

    /// A transfer's entry in the wheel has come up.
    pub(super) fn expired(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(live) = self.transfers.get_mut(key) else { return };
        if live.armed_us > micros(self.start, turn.now) {
            return;
        }
        live.armed_us = UNARMED;
        let due = live.transfer.poll_timeout().is_some_and(|at| at <= turn.now);
        let verdict = if due { live.transfer.handle_timeout(turn.now) } else { Verdict::Progress };
        let fragments = u32::from(live.transfer.blksize()) + 4 + HEADERS_LEN > turn.shared.mtu(live.local);
        if fragments
            && live.transfer.unanswered_sends() >= FRAGMENT_TRIES
            && turn.shared.fragments_lost.note(turn.now, *live.client.ip())
        {
            turn.tally.add(Count::TftpFragmentsLost, 1);
            tracing::debug!(client = %live.client, "fragments do not arrive: smaller blocks from the next request on");
        }
        self.follow(key, verdict, turn);
    }

    fn end(&mut self, key: Key, outcome: Option<Outcome>, turn: &mut Turn<'_>) {
        let Some(live) = self.transfers.remove(key) else { return };
        let hash = self.hasher.hash_one(live.client);
        if let Ok(entry) = self.by_client.find_entry(hash, |index| *index == key.index) {
            entry.remove();
        }
        turn.tally.tftp_outcome(outcome);
        turn.tally.add(Count::TftpResends, live.transfer.resends().into());
        let Some(served) = &live.served else { return };
        let took_ms = self.readers.elapsed_ms(turn.now).wrapping_sub(live.began_ms);
        note(turn.shared, &live, served, outcome, took_ms);
    }
}

/// Tells the flight recorder of a request, if it comes from where a machine was seen.
fn note_request(shared: &Shared, client: Ipv4Addr, seen: Seen, packets: Vec<capture::Packet>) {
    let Some(sighting) = shared.sightings.at(client) else { return };
    let mut evidence = Evidence::new(SystemTime::now(), seen);
    evidence.mac = Some(sighting.mac);
    evidence.address = Some(client);
    evidence.packets = packets;
    shared.note(evidence);
}

/// Tells the flight recorder how a transfer ended. A size query that was aborted, as firmware does before every
/// download, is no event.
fn note(shared: &Shared, live: &Live, served: &Served, outcome: Option<Outcome>, took_ms: u32) {
    let over = Over::Tftp;
    let bytes = live.transfer.acked_bytes();
    let line = live.line.as_ref().map(|line| &line.at);
    let seen = match (outcome, served.image()) {
        (Some(Outcome::ProbeAborted), _) => return,
        (Some(Outcome::Complete), None) => Seen::LoaderFetched { name: served.name.clone(), bytes, over },
        (Some(Outcome::Complete), Some(image)) => Seen::FileDone {
            job: line.map(|line| line.job),
            image: image.to_owned(),
            file: served.name.get(image.len() + 1..).unwrap_or_default().to_owned(),
            bytes,
            last: line.is_some(),
            over,
        },
        (outcome, _) => Seen::TransferFailed {
            job: None,
            file: served.name.clone(),
            bytes,
            reason: match outcome {
                Some(Outcome::ClientError(code)) => {
                    format!("the machine gave up with TFTP error {}", code.code())
                }
                Some(_) => "the machine fell silent".to_owned(),
                None => "it was cut or replaced by another request".to_owned(),
            },
            over,
        },
    };
    let mut evidence = Evidence::new(SystemTime::now(), seen);
    evidence.transfer = Some(TransferFacts {
        blksize: live.transfer.blksize(),
        windowsize: live.transfer.windowsize(),
        took_ms,
        rtt_us: live.transfer.rtt().map(|rtt| rtt.as_micros() as u32),
        resends: live.transfer.resends(),
        way: match live.way {
            Way::Frame { .. } => evidence::Way::Frame,
            Way::Segments => evidence::Way::Segments,
            Way::Datagrams => evidence::Way::Datagram,
        },
    });
    evidence.mac = shared.sightings.at(*live.client.ip()).map(|seen| seen.mac);
    evidence.boot = line.map(|line| line.boot);
    evidence.address = Some(*live.client.ip());
    shared.note(evidence);
}

fn micros(start: Instant, at: Instant) -> u64 {
    at.saturating_duration_since(start).as_micros() as u64
}

fn hash(request: &Request<'_>) -> u32 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    let Options { blksize, tsize, timeout_secs, windowsize } = request.options;
    (request.name, request.mode == Mode::Octet, blksize, tsize, timeout_secs, windowsize).hash(&mut hasher);
    hasher.finish() as u32
}

/// The data ports of all cores: one run without a hole, in which a port belongs to the core it is congruent to, so
/// that a packet filter can tell both with a comparison.
pub(super) struct DataPorts {
    sockets: Vec<Vec<UdpSocket>>,
    /// All of them.
    pub(super) range: Range<u16>,
}

impl DataPorts {
    /// Where runs are looked for first: the dynamic ports (RFC 6335 §6).
    const FIRST: u16 = 49152;
    /// Runs tried before it is left to the kernel to find single ports.
    const TRIES: u16 = 64;

    /// Binds them. Where no run is free, ports anywhere do, but [`DataPorts::range`] is empty and frames cannot be
    /// told apart.
    pub(super) fn bind(cores: usize, seed: u32) -> Result<Self, SysError> {
        let options = UdpOptions {
            fragment: true,
            recv_buffer: RECV_BUFFER,
            send_buffer: SEND_BUFFER,
            ..UdpOptions::default()
        };
        let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let len = (cores * DATA_PORTS) as u16;
        let runs = (u16::MAX - Self::FIRST) / len.max(1);
        for attempt in 0..Self::TRIES.min(runs.saturating_sub(1)) {
            // Servers started one after the other do not try the same runs first.
            let run = 1 + ((seed.wrapping_mul(0x9e37_79b1) >> 16) as u16).wrapping_add(attempt) % (runs - 1);
            // The first of a run is congruent to core 0.
            let first = (Self::FIRST + run * len).next_multiple_of(cores as u16);
            let Some(end) = first.checked_add(len) else { continue };
            let bound: Result<Vec<_>, _> =
                (first..end).map(|port| UdpSocket::bind(any(port), &options)).collect();
            let Ok(bound) = bound else { continue };
            let mut sockets: Vec<Vec<UdpSocket>> = (0..cores).map(|_| Vec::new()).collect();
            for socket in bound {
                sockets[usize::from(socket.local().port()) % cores].push(socket);
            }
            // Handed out from the end.
            sockets.reverse();
            return Ok(Self { sockets, range: first..end });
        }
        let single = || UdpSocket::bind(any(0), &options);
        let sockets = (0..cores)
            .map(|_| (0..DATA_PORTS).map(|_| single()).collect())
            .collect::<Result<Vec<Vec<_>>, SysError>>()?;
        Ok(Self { sockets, range: 0..0 })
    }

    /// None: the listeners send as well.
    pub(super) fn none() -> Self {
        Self { sockets: Vec::new(), range: 0..0 }
    }

    /// The next core's.
    fn take(&mut self) -> Vec<UdpSocket> {
        self.sockets.pop().unwrap_or_default()
    }
}

const _: () = assert!(size_of::<Live>() <= 184, "memory per transfer is part of the promise");

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
//! never acknowledged goes; when there is none, the newest request is dropped in silence, and its firmware asks again: a
//! place without progress is free after half a minute to a minute. A transfer ends also when its port is being guessed
//! ([`GUESSES_MAX`]). Texts converted to netascii have a bound of their own, and who comes beyond it is told so.

mod ports;
mod requests;
mod sending;
mod told;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use mio::Registry;

pub(super) use self::ports::DataPorts;
use self::ports::{DATA_PORT, DATA_PORTS, RECV_BUFFER, SEND_BUFFER};
use super::core::{Owner, Turn, watch};
use super::counters::Count;
use super::native::ThisBoot;
use super::readers::{Readers, Unreadable, Want};
use super::sightings::Sighting;
use super::slab::{Key, Slab};
use super::start::readdress;
use crate::files::served::{Handle, Served};
use crate::jobs::image::Images;
use crate::jobs::lifecycle::Denial;
use crate::keeper::{Answer, AtTheLine};
use crate::proto::dhcp::Interface;
use crate::proto::tftp::{Outcome, Transfer, Transmit, Verdict};
use crate::sys::frames::{FrameSender, HEAD_LEN_MAX};
use crate::sys::ring::FrameRing;
use crate::sys::udp::{BATCH, Datagram, Source, UdpOptions, UdpSocket, Unsent};
use crate::sys::{SysError, interfaces};
use crate::wire::MacAddr;
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, parse_udp_frame};
use crate::wire::tftp::{self, ErrorCode, Packet};

/// Bytes a transfer sends before the others have their turn: any window of unfragmented blocks that is granted, and two
/// of the largest blocks.
const QUANTUM: u32 = 128 << 10;
/// When blocks were not in memory, they are looked for again after this.
const COLD_PAUSE: Duration = Duration::from_millis(2);
/// Sends of the same blocks, as fragments, without an answer, after which fragments are taken to be lost.
const FRAGMENT_TRIES: u16 = 2;
/// Batches taken from one socket before the others have their turn.
const BATCHES_PER_TURN: usize = 4;
/// ACKs at other ports than its own after which a transfer ends that had no block acknowledged: a port is guessed. The machine
/// itself knows it from the answer; of one that asked anew, an ACK of its last transfer may be under way.
const GUESSES_MAX: u8 = 3;
/// Transfers one core holds.
pub(super) const TRANSFERS_MAX: usize = 32 * 1024;
/// IPv4 and UDP headers.
const HEADERS_LEN: u32 = 28;
/// A boot that cannot be recorded asks again this often.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Whose client has said nothing for so long is asked for no more: firmware says its last word again every few seconds.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// A transfer whose last block is a point of no return.
struct Line {
    at: AtTheLine,
    /// Whose.
    seen: Sighting,
    /// The keeper was asked, and has not answered.
    asked: bool,
    /// When the client spoke last: nobody passes who has gone.
    heard: Instant,
    /// Not before this is it asked again.
    again: Option<Instant>,
}

impl Line {
    /// Whether the machine at that address is still at the boot that asked: it has not spoken DHCP since.
    fn is_of(&self, client: SocketAddrV4, turn: &Turn<'_>) -> bool {
        turn.shared.sightings.at(*client.ip()) == Some(self.seen)
    }

    fn boot(&self, client: SocketAddrV4) -> ThisBoot {
        ThisBoot { addr: *client.ip(), seen: self.seen }
    }
}

/// Frames taken from one ring before the others have their turn.
const FRAMES_PER_TURN: usize = 512;

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
    File(Handle),
    /// A text made here: the constant script, or a netascii conversion.
    Text(Arc<Vec<u8>>),
}

impl Payload {
    /// Bytes held in memory for this transfer alone.
    fn held(&self) -> usize {
        match self {
            Self::File(_) => 0,
            Self::Text(text) => text.len(),
        }
    }
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
    /// ACKs that came to other ports while no block was acknowledged.
    guesses: u8,
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
    /// Where each of them sends by another socket than it receives by.
    senders: Vec<Option<UdpSocket>>,
    listeners: usize,
    /// Interfaces served by frames.
    links: Vec<Link>,
    ready_links: Vec<bool>,
    /// Packets taken since [`TftpSide::take_count`].
    taken: usize,
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
    /// Bytes of texts that transfers hold.
    text_bytes: usize,
    /// The data port of this batch's requests, and the batches so far.
    next_port: usize,
    batches: u64,
    single_port: bool,
    segmentation: bool,
    accepting: bool,
    /// Socket the waiting batch belongs to.
    batch_socket: usize,
    /// Nothing has left in this turn yet.
    is_first: bool,
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
        let sender = |socket: &UdpSocket| {
            socket
                .sender_beside(&DATA_PORT)
                .inspect_err(|error| tracing::debug!(%error, "this port sends by the socket it receives by"))
                .ok()
        };
        // The listeners are shared by all cores, and send little.
        let mut senders: Vec<Option<UdpSocket>> = (0..listeners).map(|_| None).collect();
        senders.extend(sockets[listeners..].iter().map(sender));
        Ok(Self {
            senders,
            is_ready: vec![false; sockets.len()],
            sockets,
            listeners,
            links: Vec::new(),
            ready_links: Vec::new(),
            taken: 0,
            ready: VecDeque::new(),
            transfers: Slab::new(TRANSFERS_MAX),
            by_client: HashTable::new(),
            hasher: RandomState::default(),
            start: Instant::now(),
            due: VecDeque::new(),
            readers: Arc::clone(readers),
            unanswered: VecDeque::new(),
            text_bytes: 0,
            next_port: 0,
            batches: 0,
            single_port,
            segmentation,
            accepting: true,
            batch_socket: 0,
            is_first: true,
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

    /// Takes over the interfaces' hardware addresses.
    pub(super) fn readdress(&mut self, links: &[interfaces::Interface]) {
        self.links.iter_mut().for_each(|link| readdress(&mut link.interface, links));
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

    /// Packets taken since this was asked last.
    pub(super) fn take_count(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    /// True when all that is expected comes by frame, so that [`TftpSide::has_frames`] sees it.
    pub(super) fn is_by_frame(&self) -> bool {
        !self.links.is_empty()
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
                self.taken += taken;
                if (index as usize) < self.listeners && !self.single_port {
                    self.choose_port();
                }
                for i in 0..taken {
                    self.datagram(index, i, turn);
                }
                if taken < BATCH {
                    drained = true;
                    break;
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

    /// One data port per batch of requests: their answers then leave in one call. Which one nobody can foresee, since whoever
    /// finds the port of a request made in another's name can acknowledge what is sent to that.
    fn choose_port(&mut self) {
        self.batches = self.batches.wrapping_add(1);
        self.next_port = (self.hasher.hash_one(self.batches) % DATA_PORTS as u64) as usize;
    }

    /// Takes what is waiting in one ring, within the budget; true when there may be more.
    fn frames(&mut self, index: usize, turn: &mut Turn<'_>) -> bool {
        let Some(mut ring) = self.links[index].ring.take() else { return false };
        self.choose_port();
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
        self.taken += taken;
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
        let Some(Datagram { bytes: received, from, local, .. }) = turn.recv.datagram(index) else {
            return turn.tally.add(Count::TftpMalformed, 1);
        };
        if let Ok(Packet::Ack(block)) = Packet::parse(received) {
            return self.on_transfer(socket, from, &Packet::Ack(block), turn);
        }
        // Copied out: a request's bytes must not stay borrowed from the batch that the answer's code uses too.
        let (mut bytes, len) = ([0u8; 1024], received.len());
        match bytes.get_mut(..len) {
            Some(bytes) => bytes.copy_from_slice(received),
            None => return turn.tally.add(Count::TftpMalformed, 1),
        }
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
            Ok(word @ (Packet::Ack(_) | Packet::Error(..))) => self.on_transfer(socket, from, &word, turn),
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

    /// This client's transfer.
    fn of_client(&self, client: SocketAddrV4) -> Option<Key> {
        let is_its = |index: &u32| self.transfers.at(*index).is_some_and(|live| live.client == client);
        let index = self.by_client.find(self.hasher.hash_one(client), is_its)?;
        self.transfers.key_at(*index)
    }

    /// An ACK or an ERROR.
    fn on_transfer(&mut self, socket: u32, from: SocketAddrV4, word: &Packet<'_>, turn: &mut Turn<'_>) {
        let Some(key) = self.of_client(from) else {
            return turn.tally.add(Count::TftpUnknownTid, 1);
        };
        let Some(live) = self.transfers.get_mut(key) else { return };
        if u32::from(live.socket) != socket {
            turn.tally.add(Count::TftpUnknownTid, 1);
            if matches!(word, Packet::Ack(_)) && live.transfer.acked_bytes() == 0 {
                live.guesses += 1;
                if live.guesses == GUESSES_MAX {
                    turn.tally.add(Count::TftpShed, 1);
                    self.end(key, Some(Outcome::TimedOut), turn);
                }
            }
            return;
        }
        let verdict = match *word {
            Packet::Ack(block) => {
                if let Some(line) = &mut live.line {
                    line.heard = turn.now;
                }
                live.transfer.handle_ack(turn.now, block)
            }
            Packet::Error(code, _) => live.transfer.handle_error(turn.now, code),
            _ => return,
        };
        self.follow(key, verdict, turn);
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
                if let Payload::File(opened) = &live.payload {
                    match self.readers.ready(turn.now, opened, offset, len, Want::Window) {
                        Ok(ready) if ready >= len => {}
                        Ok(_) => {
                            turn.tally.add(Count::TftpCold, 1);
                            cold = Some(turn.now + COLD_PAUSE);
                            break;
                        }
                        Err(Unreadable) => return self.cut(key, "the file cannot be read", turn),
                    }
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
            && turn.now.saturating_duration_since(line.heard) < HEARD_WITHIN
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

    /// The keeper's answer to a transfer that waits with its last block.
    pub(super) fn answered(&mut self, key: Key, answer: Answer, turn: &mut Turn<'_>) {
        let Some(live) = self.transfers.get_mut(key) else { return };
        let Some(line) = &mut live.line else { return };
        line.asked = false;
        match answer {
            Answer::Go => {
                // The line is kept: whose the file was is told when it is delivered.
                let wipes = turn.shared.library.load().image(&line.at.image).is_some_and(|i| i.destructive);
                turn.shared.passed.note(turn.now, line.boot(live.client), &line.at.image, wipes, false);
                live.transfer.release();
                self.follow(key, Verdict::Progress, turn);
            }
            // Its own deadlines look at it again.
            Answer::NotNow => line.again = Some(turn.now + ASK_AGAIN),
            // The same boot asked for the file twice, and passed with the other transfer.
            Answer::Refused(Denial::Spent)
                if line.is_of(live.client, turn)
                    && turn.shared.passed.holds(turn.now, line.boot(live.client), &line.at.image) =>
            {
                live.transfer.release();
                self.follow(key, Verdict::Progress, turn);
            }
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
        self.text_bytes -= live.payload.held();
        let hash = self.hasher.hash_one(live.client);
        if let Ok(entry) = self.by_client.find_entry(hash, |index| *index == key.index) {
            entry.remove();
        }
        turn.tally.tftp_outcome(outcome);
        turn.tally.add(Count::TftpResends, live.transfer.resends().into());
        let Some(served) = &live.served else { return };
        let took_ms = self.readers.elapsed_ms(turn.now).wrapping_sub(live.began_ms);
        told::note(turn.shared, &live, served, outcome, took_ms);
    }
}

fn micros(start: Instant, at: Instant) -> u64 {
    at.saturating_duration_since(start).as_micros() as u64
}

const _: () = assert!(size_of::<Live>() <= 184, "memory per transfer is part of the promise");

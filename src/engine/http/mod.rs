//! HTTP on one core: connections in a slab, requests answered on the core they arrived on, bodies sent by
//! [`Outgoing`].
//!
//! A connection's life: read a head (bounded in bytes and time), answer it, send until the socket is full, go on
//! when it drains; then the next head of the same connection, or the end. A connection that reads nothing, or sends
//! a head a byte at a time, costs one slab entry and one deadline, and no other connection anything. A request that
//! comes whole and an answer that the socket takes whole cost three system calls and no memory.
//!
//! [`requests`] reads, [`answers`] makes scripts and texts, [`files`] looks out files, [`sending`] lets it all leave, [`shares`]
//! says whose turn it is, [`parked`] holds what may not leave yet, [`delivery`] says what became of it.

mod answers;
mod delivery;
mod files;
mod parked;
mod requests;
mod sending;
mod shares;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Registry;
use mio::event::Event;
use mio::net::TcpStream;
use mio::unix::SourceFd;

use super::core::{Owner, Turn, watch, watch_both};
use super::counters::Count;
use super::readers::Readers;
use super::sender::{CopyingDevices, Outgoing, PipePool};
use super::slab::{Key, Slab};
use super::start::ZeroCopy;
use crate::keeper::AtTheLine;
use crate::sys::uring::{BurstRing, Shot};
use crate::sys::{SysError, tcp};
use crate::tls::{Certificates, Session};
use delivery::Delivery;
use parked::Parked;
use requests::READ_LEN;
use sending::{PROGRESS_MIN, SEND_PATIENCE};
use shares::Shares;

/// Connections one core holds.
pub(super) const CONNECTIONS_MAX: usize = 16 * 1024;
/// After an accept that failed for want of descriptors or memory; a core that sleeps looks after five seconds at the latest.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Accepted per listener and turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Requests answered per turn, over all connections.
const READS_PER_TURN: usize = 256;
/// Bytes of files sent per turn, over all connections: some milliseconds, which is as long as DHCP and TFTP wait for them.
const BULK_PER_TURN: u64 = 16 << 20;
/// A turn with files to send that took longer waited for a disk, or for its CPU.
const SLOW_TURN: Duration = Duration::from_millis(20);
/// Downloads whose next bytes are not in memory are looked at again after this, so many of them: what the looks cost stays a
/// small part of a core.
const COLD_PAUSE: Duration = Duration::from_millis(1);
const COLD_LOOKS: usize = 64;
/// Connections looked at for one to close when a new one finds no place.
const EVICTION_LOOKS: usize = 256;
/// Bytes of answers that wait to leave together.
const OUTBOX_MAX: usize = 128 << 10;
/// What a step of a TLS handshake counts for among [`READS_PER_TURN`]: a signature takes as long as many answers.
const HANDSHAKE_READS: usize = 32;
/// A head must be whole this long after its first byte.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// A connection without a request is kept this long. iPXE drops idle ones after 10 s itself.
const IDLE_PATIENCE: Duration = Duration::from_secs(20);
/// How long and how often delivery is waited for after the last byte went to the kernel.
const ACK_CHECK: Duration = Duration::from_millis(50);
/// The first time, if the next request is here already.
const ACK_CHECK_SOON: Duration = Duration::from_millis(1);
/// Who stands in line, and so far in front that the next free place may be its own, has its answer when one is free, or after
/// this long. Not longer: iPXE hears no key meanwhile.
const STANDS_FOR: Duration = Duration::from_secs(2);
/// How often it is looked whether one may be.
const STANDS_LOOK: Duration = Duration::from_millis(50);
/// Requests of one core that stand in line; who finds no room is answered at once.
const STANDING_MAX: usize = 256;
/// Checks before the last bytes count as lost: 30 s.
const ACK_CHECKS_MAX: u32 = 600;
/// So many bytes acknowledged meanwhile, and they begin anew: a quarter of what has to move in 120 s while it is sent.
const ACK_STEP: u64 = 16 << 10;

struct Connection {
    stream: TcpStream,
    /// Keys and records, where this is HTTPS.
    tls: Option<Box<Session>>,
    peer: SocketAddrV4,
    local: SocketAddrV4,
    /// Bytes of a head that is not whole yet, or of the next request. Empty (and unallocated) most of the time.
    input: Vec<u8>,
    out: Outgoing,
    keep_alive: bool,
    /// Bytes that nobody reads may still come: they are read away before the end, or the kernel would answer them with
    /// a reset that overtakes what was sent.
    lingers: bool,
    /// The poll knows it, and so does the wheel: only then can it be waited for.
    watched: bool,
    readable: bool,
    /// The peer has closed its side, or the connection is broken: there is an end to be read, whatever else there is.
    closing: bool,
    /// The peer has reset it, or the network lost it.
    broken: bool,
    /// The kernel has told something of sends without a copy, or that the connection is broken.
    error_queued: bool,
    writable: bool,
    /// On one of the lists of connections with something to do, or of those that wait for a disk.
    listed: bool,
    /// What it has had of files, as [`Shares`] counts.
    share: u64,
    /// What of it has left since its deadline was put off last.
    moved: u64,
    /// Nothing has left since its next bytes were not in memory.
    is_cold: bool,
    /// Its answer stands in the outbox; nothing else of it is looked at before that has left.
    owed: bool,
    /// To be removed as soon as the ring has answered.
    doomed: bool,
    deadline: Instant,
    /// When the wheel will look at this connection; a firing at another time is left over from an earlier plan.
    armed_at: Option<Instant>,
    /// Set while a response is out or not acknowledged yet.
    delivery: Option<Box<Delivery>>,
    /// Looks taken for the acknowledgement of the last response.
    ack_checks: u32,
    /// What was not acknowledged when they began.
    waiting: u64,
    /// Set while its boot waits at the point of no return.
    parked: Option<Box<Parked>>,
    /// The boot that a body with a held piece belongs to.
    line: Option<Box<AtTheLine>>,
    /// Set while its request for a script stands in line.
    stands: Option<Standing>,
    /// Requests kept for a capture file.
    kept: u8,
}

/// A request that waits for a place in line to be free.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// It is answered then, whatever the answer.
    until: Instant,
    /// [`Shared::line_moves`] when it was looked at last.
    seen: u64,
    /// It is kept for a capture file.
    kept: bool,
}

impl Connection {
    /// The address that stands for the device its packets go by. Who asks from the very address that is asked is on this
    /// host and comes by loopback, which copies, whatever the card of that address does.
    fn device(&self) -> Ipv4Addr {
        let (peer, local) = (*self.peer.ip(), *self.local.ip());
        if peer == local { Ipv4Addr::LOCALHOST } else { local }
    }

    /// So many bytes of its response have left.
    fn moves(&mut self, bytes: u64, now: Instant) {
        if bytes == 0 {
            return;
        }
        self.is_cold = false;
        self.share += bytes;
        self.moved += bytes;
        if self.moved >= PROGRESS_MIN {
            self.moved = 0;
            self.deadline = now + SEND_PATIENCE;
        }
    }
}

/// One core's socket of a listening address.
pub(super) struct Listener {
    socket: std::net::TcpListener,
    secure: bool,
    acceptable: bool,
}

impl Listener {
    /// Where it really listens.
    pub(super) fn address(&self, wanted: SocketAddrV4) -> SocketAddrV4 {
        match self.socket.local_addr() {
            Ok(SocketAddr::V4(addr)) => addr,
            _ => wanted,
        }
    }
}

/// One core's HTTP.
pub(super) struct HttpSide {
    listeners: Vec<Listener>,
    /// What HTTPS shows.
    certificates: Option<Arc<Certificates>>,
    connections: Slab<Connection>,
    /// Connections in the order they were accepted, those that have ended since among them.
    accepted: VecDeque<Key>,
    /// Connections to look at, in turn.
    ready: VecDeque<Key>,
    /// Connections to look at that have a file to send.
    sending: Shares,
    /// Connections whose next bytes are not in memory, who has waited longest first.
    cold: VecDeque<Key>,
    readers: Arc<Readers>,
    pipes: PipePool,
    copying: CopyingDevices,
    /// Reused for every head and small body.
    head: Vec<u8>,
    /// Answers that leave together at the end of a turn: whose they are, and where each ends in `outbox_bytes`. A send runs
    /// through so much of the kernel that the next request would find none of this program's code in the processor's cache.
    outbox: Vec<(Key, usize)>,
    outbox_bytes: Vec<u8>,
    /// Sends many of them in one call, where there is a ring.
    burst: Option<BurstRing>,
    shots: Vec<Shot>,
    /// The request that is being answered, for a capture file; empty where none is kept.
    asked: Vec<u8>,
    /// Ends of its connection, which may be gone when its answer is out.
    asked_by: (SocketAddrV4, SocketAddrV4),
    /// Reused for every read.
    received: Vec<u8>,
    /// File bytes on their way into TLS records.
    unsealed: Vec<u8>,
    /// The last URL prefix that was made, and for whom.
    base: (SocketAddrV4, bool, Arc<str>),
    /// The script that asks a machine who it is, for that prefix; empty until it is asked for.
    asking: String,
    script: String,
    /// Connections with a response under way.
    busy: usize,
    /// Connections whose request stands in line.
    standing: usize,
    accepting: bool,
    /// Since when a listener has not been looked at although somebody may stand in its queue.
    starved: Option<Instant>,
}

impl HttpSide {
    /// Takes listeners that are bound already.
    pub(super) fn new(
        listeners: Vec<Listener>,
        certificates: Option<Arc<Certificates>>,
        connections_max: usize,
        readers: Arc<Readers>,
        pipes: PipePool,
        zero_copy: ZeroCopy,
        burst: Option<BurstRing>,
    ) -> Self {
        Self {
            listeners,
            certificates,
            connections: Slab::new(connections_max.min(CONNECTIONS_MAX)),
            accepted: VecDeque::new(),
            ready: VecDeque::new(),
            sending: Shares::default(),
            cold: VecDeque::new(),
            readers,
            pipes,
            copying: CopyingDevices::new(zero_copy),
            head: Vec::with_capacity(4096),
            outbox: Vec::new(),
            outbox_bytes: Vec::new(),
            burst,
            shots: Vec::new(),
            asked: Vec::new(),
            asked_by: (
                SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
                SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            ),
            received: Vec::with_capacity(READ_LEN),
            unsealed: Vec::new(),
            base: (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), false, Arc::from("")),
            asking: String::new(),
            script: String::with_capacity(4096),
            busy: 0,
            standing: 0,
            accepting: true,
            starved: None,
        }
    }

    /// Binds one core's listeners; `secure` ones speak TLS.
    pub(super) fn bind(
        listen: &[SocketAddrV4],
        secure: bool,
        congestion: Option<&str>,
    ) -> Result<Vec<Listener>, SysError> {
        let bind = |addr: &SocketAddrV4| tcp::listen(*addr, congestion);
        let listener = |socket| Listener { socket, secure, acceptable: false };
        listen.iter().map(|addr| bind(addr).map(listener)).collect()
    }

    pub(super) fn register(&self, registry: &Registry) -> io::Result<()> {
        for (index, listener) in self.listeners.iter().enumerate() {
            watch(registry, listener.socket.as_raw_fd(), Owner::HttpListener(index as u32))?;
        }
        Ok(())
    }

    pub(super) fn acceptable(&mut self, index: u32) {
        if let Some(listener) = self.listeners.get_mut(index as usize) {
            listener.acceptable = true;
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.ready.is_empty()
            || !self.sending.is_empty()
            || (self.accepting && self.listeners.iter().any(|listener| listener.acceptable))
    }

    /// No response is under way (idle kept-alive connections do not count).
    pub(super) fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.sending.is_empty() && self.busy == 0 && self.standing == 0
    }

    /// Somebody waits at the point of no return, and may be on the disk by now: what is recorded is owed.
    pub(super) fn owes(&self) -> bool {
        let parked =
            |key: Key| self.connections.at(key.index).is_some_and(|connection| connection.parked.is_some());
        self.connections.keys().into_iter().any(parked)
    }

    pub(super) fn busy_connections(&self) -> usize {
        self.busy
    }

    pub(super) fn stop_accepting(&mut self, registry: &Registry) {
        self.accepting = false;
        for listener in self.listeners.drain(..) {
            let fd = listener.socket.as_raw_fd();
            // Closing it deregisters it as well; a failure changes nothing.
            let _ = registry.deregister(&mut SourceFd(&fd));
        }
    }

    /// Readiness of one connection.
    pub(super) fn event(&mut self, key: Key, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let may_be_notice = connection.out.uses_error_queue();
        connection.error_queued |= may_be_notice && event.is_error();
        connection.broken |= !may_be_notice && event.is_error();
        connection.closing |= event.is_read_closed() || connection.broken;
        connection.readable |= event.is_readable() || connection.closing;
        connection.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.list(key);
    }

    /// The URL prefix under which this connection's client reaches the server.
    fn base_url(&mut self, key: Key) -> Arc<str> {
        let Some(connection) = self.connections.get_mut(key) else { return Arc::from("") };
        let (local, secure) = (connection.local, connection.tls.is_some());
        if (self.base.0, self.base.1) != (local, secure) {
            let scheme = if secure { "https" } else { "http" };
            self.base = (local, secure, format!("{scheme}://{}:{}", local.ip(), local.port()).into());
            self.asking.clear();
        }
        Arc::clone(&self.base.2)
    }

    fn list(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if std::mem::replace(&mut connection.listed, true) {
            return;
        }
        if connection.out.file.is_none() {
            self.ready.push_back(key);
            return;
        }
        self.sending.enter(key, &mut connection.share);
    }

    /// Those that wait for a disk have their turn among the others.
    pub(super) fn look_again(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..COLD_LOOKS {
            let Some(key) = self.cold.pop_front() else { return };
            if let Some(connection) = self.connections.get_mut(key) {
                connection.listed = false;
                self.list(key);
            }
        }
        if !self.cold.is_empty() {
            turn.wheel.schedule(turn.now + COLD_PAUSE, Owner::HttpCold.pack());
        }
    }

    /// Accepts, answers and sends, within the turn's budget.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
        if self.starved.is_some_and(|since| turn.now.saturating_duration_since(since) >= ACCEPT_PAUSE) {
            // Who stands in the queue already makes no noise again.
            self.starved = None;
            self.listeners.iter_mut().for_each(|listener| listener.acceptable = true);
        }
        for index in 0..self.listeners.len() {
            if self.listeners[index].acceptable {
                self.accept(index, turn);
            }
        }
        let mut reads = READS_PER_TURN;
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { break };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            connection.listed = false;
            if reads == 0 && connection.out.is_empty() {
                self.list(key);
                continue;
            }
            let shakes_hands = connection.tls.as_ref().is_some_and(|tls| tls.is_handshaking());
            reads = reads.saturating_sub(if shakes_hands { HANDSHAKE_READS } else { 1 });
            self.drive(key, turn);
            self.keep(key, turn);
            if self.outbox_bytes.len() >= OUTBOX_MAX {
                self.send_answers(turn);
            }
        }
        self.send_answers(turn);
        let mut bulk = BULK_PER_TURN;
        // Who comes back into the line is looked at again after whatever else has come meanwhile.
        for _ in 0..self.sending.len() {
            if bulk == 0 {
                break;
            }
            let Some(key) = self.sending.next() else { break };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            connection.listed = false;
            bulk = bulk.saturating_sub(self.drive(key, turn));
            self.keep(key, turn);
        }
        if bulk < BULK_PER_TURN && turn.now.elapsed() > SLOW_TURN {
            self.readers.doubt(turn.now);
        }
        self.send_answers(turn);
        turn.tally.set(Count::HttpOpen, self.connections.len() as u64);
    }

    fn accept(&mut self, index: usize, turn: &mut Turn<'_>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(Listener { socket, secure, .. }) = self.listeners.get(index) else { return };
            let secure = *secure;
            let (stream, peer, local) = match tcp::accept(socket) {
                Ok(accepted) => accepted,
                Err(error) => {
                    if tcp::is_out_of_descriptors(&error) && self.evict(turn) {
                        continue;
                    }
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // Nobody could make room, or a connection that died in the queue: look again on the next one, or soon.
                        self.starved = Some(turn.now);
                        turn.tally.add(Count::HttpShed, 1);
                        tracing::debug!(%error, "accept");
                    }
                    if let Some(listener) = self.listeners.get_mut(index) {
                        listener.acceptable = false;
                    }
                    return;
                }
            };
            turn.tally.add(Count::HttpConnections, 1);
            let tls = match (secure, &self.certificates) {
                (false, _) => None,
                (true, Some(certificates)) => match Session::new(&certificates.config()) {
                    Some(session) => Some(Box::new(session)),
                    None => continue,
                },
                (true, None) => continue,
            };
            let connection = Connection {
                stream: TcpStream::from_std(stream),
                tls,
                peer,
                local,
                input: Vec::new(),
                out: Outgoing::default(),
                keep_alive: true,
                lingers: false,
                watched: false,
                readable: true,
                closing: false,
                broken: false,
                error_queued: false,
                writable: true,
                listed: false,
                share: 0,
                moved: 0,
                is_cold: false,
                owed: false,
                doomed: false,
                deadline: turn.now + HEAD_PATIENCE,
                armed_at: None,
                delivery: None,
                ack_checks: 0,
                waiting: 0,
                parked: None,
                line: None,
                stands: None,
                kept: 0,
            };
            if self.connections.is_full() {
                self.evict(turn);
            }
            let Ok(key) = self.connections.insert(connection) else {
                // Full of downloads: the newest is shed, and closed so that it knows.
                turn.tally.add(Count::HttpShed, 1);
                continue;
            };
            self.list(key);
        }
    }

    /// Sees to it that a connection which outlives its first visit is heard of again. Many do not: their request is
    /// there when they are accepted, and its answer is their end.
    fn keep(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.owed || std::mem::replace(&mut connection.watched, true) {
            return;
        }
        if watch_both(turn.registry, connection.stream.as_raw_fd(), Owner::Connection(key)).is_err() {
            return self.close(key, Some("the kernel would not watch the connection"), turn);
        }
        if self.accepted.len() >= 2 * CONNECTIONS_MAX {
            let connections = &mut self.connections;
            self.accepted.retain(|key| connections.get_mut(*key).is_some());
        }
        self.accepted.push_back(key);
        self.arm(key, turn);
    }

    /// Makes room by closing one of the oldest connections that nothing is being sent on, or else somebody who opens
    /// connections and says nothing would lock every machine out. False if there was none among those looked at.
    fn evict(&mut self, turn: &mut Turn<'_>) -> bool {
        let mut looks = 0;
        while looks < EVICTION_LOOKS {
            let Some(key) = self.accepted.pop_front() else { return false };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            looks += 1;
            // A boot at its point of no return may be on the disk already: its script is owed.
            if connection.out.is_empty()
                && !connection.out.in_ring
                && connection.delivery.is_none()
                && connection.parked.is_none()
                && connection.stands.is_none()
            {
                turn.tally.add(Count::HttpShed, 1);
                self.close(key, None, turn);
                return true;
            }
            self.accepted.push_back(key);
        }
        false
    }

    /// Sees to it that the wheel looks at this connection not later than its deadline.
    fn arm(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.armed_at.is_none_or(|at| connection.deadline < at) {
            connection.armed_at = Some(connection.deadline);
            turn.wheel.schedule(connection.deadline, Owner::Connection(key).pack());
        }
    }

    /// Whether the file that was sent last is still to be acknowledged. Then the next request, which was sent before its
    /// answer came, waits: what is delivered is told by acknowledgements, and two answers under way could not be told apart.
    fn awaits_delivery(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        if connection.delivery.is_none()
            || tcp::unacknowledged(&connection.stream).is_ok_and(|waiting| waiting == 0)
        {
            return false;
        }
        if connection.broken {
            turn.tally.add(Count::HttpAborted, 1);
            self.close(key, Some("the connection was reset"), turn);
            return true;
        }
        connection.deadline = turn.now + ACK_CHECK_SOON;
        self.arm(key, turn);
        true
    }

    /// The connection was reset. All of the file that was sent may have arrived before: there is firmware that ends so.
    fn was_reset(&mut self, key: Key, turn: &mut Turn<'_>) {
        turn.tally.add(Count::HttpAborted, 1);
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.out.is_empty()
            && tcp::unacknowledged(&connection.stream).is_ok_and(|waiting| waiting == 0)
        {
            self.delivered(key, turn, false);
        }
        self.close(key, Some("the connection was reset"), turn);
    }

    /// If a response was out, finds out whether all of it has arrived, and says so. `ending` counts what is not
    /// acknowledged as lost.
    fn delivered(&mut self, key: Key, turn: &mut Turn<'_>, ending: bool) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(delivery) = connection.delivery.take() else { return };
        let unsent = !connection.out.is_empty();
        // Who does not end has been asked already.
        let waiting = if ending { tcp::unacknowledged(&connection.stream).unwrap_or(0) } else { 0 };
        if ending && (unsent || waiting > 0) {
            delivery.failed(
                turn.shared,
                "the connection ended before the last byte was acknowledged",
                waiting,
            );
        } else {
            delivery.done(turn.shared);
        }
    }

    /// A deadline has come up.
    pub(super) fn expired(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.armed_at.is_none_or(|at| at > turn.now) {
            return;
        }
        connection.armed_at = None;
        if connection.deadline > turn.now {
            return self.arm(key, turn);
        }
        if let Some(parked) = &mut connection.parked
            && turn.now < parked.until
        {
            if parked.again.take_if(|again| *again <= turn.now).is_some() {
                turn.shared.keeper.ask(parked.line.clone(), Owner::Connection(key).pack(), turn.desk);
            }
            connection.deadline = parked.until;
            return self.arm(key, turn);
        }
        if let Some(standing) = connection.stands {
            connection.deadline = turn.now + STANDS_LOOK;
            if turn.now >= standing.until || turn.shared.line_moves() != standing.seen {
                self.list(key);
            }
            return self.arm(key, turn);
        }
        if connection.out.is_empty() && connection.delivery.is_some() {
            // Everything is with the kernel: is it with the machine?
            let waiting = tcp::unacknowledged(&connection.stream).unwrap_or(u64::MAX);
            if waiting == 0 {
                self.delivered(key, turn, false);
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.deadline = turn.now + IDLE_PATIENCE;
                    if !connection.input.is_empty() {
                        self.list(key);
                    }
                }
            } else {
                connection.deadline = turn.now + ACK_CHECK;
                // A slow reader may have a mebibyte to go, as fast as while it was sent.
                if connection.ack_checks == 0 || connection.waiting.saturating_sub(waiting) >= ACK_STEP {
                    (connection.ack_checks, connection.waiting) = (0, waiting);
                }
                connection.ack_checks += 1;
                if connection.ack_checks > ACK_CHECKS_MAX {
                    turn.tally.add(Count::HttpTimedOut, 1);
                    return self.close(key, Some("the last bytes were never acknowledged"), turn);
                }
            }
            return self.arm(key, turn);
        }
        turn.tally.add(Count::HttpTimedOut, 1);
        self.close(key, Some("nothing moved for too long"), turn);
    }

    fn close(&mut self, key: Key, why: Option<&str>, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let waiting = tcp::unacknowledged(&connection.stream).unwrap_or(0) + connection.out.left();
        if let Some(delivery) = connection.delivery.take() {
            delivery.failed(turn.shared, why.unwrap_or("the connection ended"), waiting);
        }
        if connection.out.in_ring {
            // The kernel still reads the file for this socket: end the send first, forget the connection after it.
            connection.doomed = true;
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        self.remove(key);
    }

    fn remove(&mut self, key: Key) {
        let Some(mut connection) = self.connections.remove(key) else { return };
        if !connection.out.is_empty() {
            self.busy -= 1;
        }
        self.standing -= usize::from(connection.stands.is_some());
        connection.out.abandon(&mut self.pipes);
        // Closing the descriptor takes it out of the poll as well: nobody else has a copy of it.
    }

    /// The server stops: every connection ends. A body that is cut short ends in a reset, and the kernel lets go of what it
    /// still held for it.
    pub(super) fn close_all(&mut self) {
        for key in self.connections.keys() {
            if let Some(connection) = self.connections.get_mut(key) {
                if !connection.out.is_empty() {
                    tcp::reset_on_close(connection.stream.as_raw_fd());
                }
                let _ = connection.stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

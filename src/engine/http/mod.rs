//! HTTP on one core: connections in a slab, requests answered on the core they arrived on, bodies sent by
//! [`Outgoing`].
//!
//! A connection's life: read a head (bounded in bytes and time), answer it, send until the socket is full, go on
//! when it drains; then the next head of the same connection, or the end. A connection that reads nothing, or sends
//! a head a byte at a time, costs one slab entry and one deadline, and no other connection anything. A request that
//! comes whole and an answer that the socket takes whole cost three system calls and no memory.
//!
//! [`answers`] makes scripts and texts, [`files`] sends files, [`shares`] says whose turn it is to send, [`parked`] holds
//! what may not leave yet, [`delivery`] says what became of it.

mod answers;
mod delivery;
mod files;
mod parked;
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
use super::counters::{Count, Tally};
use super::readers::Readers;
use super::sender::{self, CopyingDevices, Means, Moved, Outgoing, Piece, PipePool, Pumped};
use super::slab::{Key, Slab};
use crate::keeper::AtTheLine;
use crate::proto::http as plan;
use crate::sys::uring::{BurstRing, Completion, Shot};
use crate::sys::{SysError, tcp};
use crate::tls::{Certificates, Refusal, Session};
use crate::wire::capture::Packet;
use crate::wire::http::{Next, expects_continue, next_request};
use delivery::{Delivery, PROGRESS_EVERY};
use parked::{Parked, ParkedAnswer};
use shares::Shares;

/// Connections one core holds.
pub(super) const CONNECTIONS_MAX: usize = 16 * 1024;
/// Accepted per listener and turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Requests answered per turn, over all connections.
const READS_PER_TURN: usize = 256;
/// Bytes of files sent per turn, over all connections: some milliseconds, which is as long as DHCP and TFTP wait for them.
const BULK_PER_TURN: u64 = 16 << 20;
/// Requests of one connection answered before the others have their turn: a client may send thousands at once.
const ANSWERS_PER_VISIT: usize = 16;
/// Reads of one connection that is being closed, before the others have their turn.
const LATE_READS_PER_VISIT: usize = 16;
/// Connections looked at for one to close when a new one finds no place.
const EVICTION_LOOKS: usize = 256;
/// From so many answers on they leave in one call: what that call costs, these calls cost as well.
const BURST_MIN: usize = 4;
/// Bytes of answers that wait to leave together.
const OUTBOX_MAX: usize = 128 << 10;
/// Bytes asked for in one read.
const READ_LEN: usize = 4096;
/// What a step of a TLS handshake counts for among [`READS_PER_TURN`]: a signature takes as long as many answers.
const HANDSHAKE_READS: usize = 32;
/// A head must be whole this long after its first byte.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// A connection without a request is kept this long. iPXE drops idle ones after 10 s itself.
const IDLE_PATIENCE: Duration = Duration::from_secs(20);
/// A response must move this often. A machine that hashes or unpacks while downloading may pause.
const SEND_PATIENCE: Duration = Duration::from_secs(120);
/// How long and how often delivery is waited for after the last byte went to the kernel.
const ACK_CHECK: Duration = Duration::from_millis(50);
/// Checks before the last bytes count as lost: 30 s.
const ACK_CHECKS_MAX: u32 = 600;

/// Downloads whose next bytes are not in memory are looked at again after this, and later by so much for each of them: what
/// the looks cost stays a small part of a core.
const COLD_PAUSE: Duration = Duration::from_millis(1);
const COLD_PAUSE_EACH: Duration = Duration::from_micros(10);

/// Requests of one connection kept for a capture file, and bytes of each.
const KEPT_PER_CONNECTION: u8 = 24;
const KEPT_LEN: usize = 2048;

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
    writable: bool,
    /// On one of the lists of connections with something to do, or of those that wait for a disk.
    listed: bool,
    /// What it has had of files, as [`Shares`] counts.
    share: u64,
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
    /// Set while its boot waits at the point of no return.
    parked: Option<Box<Parked>>,
    /// The boot that a body with a held piece belongs to.
    line: Option<Box<AtTheLine>>,
    /// Requests kept for a capture file.
    kept: u8,
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
    /// Connections whose next bytes are not in memory, and how many there were at the last look.
    cold: Vec<Key>,
    cold_before: u32,
    readers: Arc<Readers>,
    pipes: PipePool,
    copying: CopyingDevices,
    /// Devices that copy are not remembered.
    zero_copy_always: bool,
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
    accepting: bool,
}

impl HttpSide {
    /// Takes listeners that are bound already.
    pub(super) fn new(
        listeners: Vec<Listener>,
        certificates: Option<Arc<Certificates>>,
        connections_max: usize,
        readers: Arc<Readers>,
        pipes: PipePool,
        zero_copy_always: bool,
        burst: Option<BurstRing>,
    ) -> Self {
        Self {
            listeners,
            certificates,
            connections: Slab::new(connections_max.min(CONNECTIONS_MAX)),
            accepted: VecDeque::new(),
            ready: VecDeque::new(),
            sending: Shares::default(),
            cold: Vec::new(),
            cold_before: 0,
            readers,
            pipes,
            copying: CopyingDevices::default(),
            zero_copy_always,
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
            accepting: true,
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
        self.ready.is_empty() && self.sending.is_empty() && self.busy == 0
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
        connection.closing |= event.is_read_closed() || event.is_error();
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
    pub(super) fn look_again(&mut self) {
        self.cold_before = self.cold.len() as u32;
        for key in std::mem::take(&mut self.cold) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.listed = false;
                self.list(key);
            }
        }
    }

    /// Accepts, answers and sends, within the turn's budget.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
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
        self.send_answers(turn);
        turn.tally.set(Count::HttpOpen, self.connections.len() as u64);
    }

    fn accept(&mut self, index: usize, turn: &mut Turn<'_>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(Listener { socket, secure, acceptable }) = self.listeners.get_mut(index) else { return };
            let (stream, peer, local) = match tcp::accept(socket) {
                Ok(accepted) => accepted,
                Err(error) => {
                    *acceptable = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // Out of descriptors, or a connection that died in the queue: look again on the next one.
                        turn.tally.add(Count::HttpShed, 1);
                        tracing::debug!(%error, "accept");
                    }
                    return;
                }
            };
            turn.tally.add(Count::HttpConnections, 1);
            let tls = match (*secure, &self.certificates) {
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
                writable: true,
                listed: false,
                share: 0,
                owed: false,
                doomed: false,
                deadline: turn.now + HEAD_PATIENCE,
                armed_at: None,
                delivery: None,
                ack_checks: 0,
                parked: None,
                line: None,
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
    /// connections and says nothing would lock every machine out.
    fn evict(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..EVICTION_LOOKS {
            let Some(key) = self.accepted.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            // A boot at its point of no return may be on the disk already: its script is owed.
            if connection.out.is_empty()
                && !connection.out.in_ring
                && connection.delivery.is_none()
                && connection.parked.is_none()
            {
                turn.tally.add(Count::HttpShed, 1);
                return self.close(key, None, turn);
            }
            self.accepted.push_back(key);
        }
    }

    /// Goes on with one connection as far as it can; the bytes that it sent of its queue.
    fn drive(&mut self, key: Key, turn: &mut Turn<'_>) -> u64 {
        let (mut answers, mut sent) = (0, 0);
        let quantum = sender::quantum(self.busy);
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return sent };
            if connection.doomed || connection.owed {
                return sent;
            }
            if connection.parked.is_some() && !self.unpark(key, turn) {
                return sent;
            }
            let Some(connection) = self.connections.get_mut(key) else { return sent };
            if !connection.out.is_empty() || connection.out.in_ring {
                if connection.out.in_ring || !connection.writable {
                    return sent;
                }
                if answers > 0 && connection.out.file.is_some() {
                    // A file that was just asked for waits its turn among the others.
                    self.list(key);
                    return sent;
                }
                let mut moved = Moved::default();
                let mut means = Means {
                    pipes: &mut self.pipes,
                    ring: turn.ring.as_deref_mut(),
                    copying: &self.copying,
                    local: *connection.local.ip(),
                    readers: &self.readers,
                    now: turn.now,
                    quantum,
                    tag: Owner::Connection(key).pack(),
                    unsealed: &mut self.unsealed,
                    moved: &mut moved,
                };
                let pumped = match &mut connection.tls {
                    None => connection.out.pump(&connection.stream, &mut means),
                    Some(tls) => connection.out.pump_sealed(&mut connection.stream, tls, &mut means),
                };
                count_moved(turn.tally, &moved);
                if let Some(delivery) = &mut connection.delivery
                    && turn.now >= delivery.progress_at
                {
                    delivery.progress_at = turn.now + PROGRESS_EVERY;
                    delivery.goes_on(turn.shared, connection.out.left());
                }
                if moved.total() > 0 {
                    connection.deadline = turn.now + SEND_PATIENCE;
                }
                connection.share += moved.total();
                sent += moved.total();
                if !self.pumped(key, pumped, turn) {
                    return sent;
                }
                continue;
            }
            if answers == ANSWERS_PER_VISIT {
                self.list(key);
                return sent;
            }
            answers += 1;
            if !self.read_request(key, turn) {
                return sent;
            }
        }
    }

    /// Deals with what a go at sending came to; false when the connection has nothing more to do for now.
    fn pumped(&mut self, key: Key, pumped: Pumped, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        match pumped {
            Pumped::Done => {
                self.busy -= 1;
                self.sent(key, turn)
            }
            Pumped::Yielded => {
                connection.out.rest(&mut self.pipes);
                self.list(key);
                false
            }
            Pumped::Blocked => {
                connection.writable = false;
                connection.out.rest(&mut self.pipes);
                self.arm(key, turn);
                false
            }
            Pumped::InRing => {
                self.arm(key, turn);
                false
            }
            Pumped::Held => {
                connection.out.rest(&mut self.pipes);
                let Some(line) = connection.line.take() else {
                    connection.out.release();
                    return true;
                };
                self.park(key, *line, ParkedAnswer::File, turn);
                false
            }
            Pumped::Cold => {
                connection.out.rest(&mut self.pipes);
                connection.listed = true;
                turn.tally.add(Count::HttpCold, 1);
                if self.cold.is_empty() {
                    let pause = COLD_PAUSE + COLD_PAUSE_EACH * self.cold_before;
                    turn.wheel.schedule(turn.now + pause, Owner::HttpCold.pack());
                }
                self.cold.push(key);
                self.arm(key, turn);
                false
            }
            Pumped::Changed => {
                turn.tally.add(Count::FilesChanged, 1);
                let file =
                    connection.delivery.as_ref().map(|d| d.subject.name().to_owned()).unwrap_or_default();
                tracing::warn!(file, peer = %connection.peer, "file changed under a download, or its disk cannot read it: the download is cut");
                tcp::reset_on_close(connection.stream.as_raw_fd());
                self.close(key, Some("the file changed on the server, or could not be read"), turn);
                false
            }
            Pumped::Broken => {
                turn.tally.add(Count::HttpAborted, 1);
                self.close(key, Some("the receiver went away"), turn);
                false
            }
        }
    }

    /// A response is with the kernel to its last byte; false when that was the connection's end.
    fn sent(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        if let Some(delivery) = &connection.delivery {
            delivery.left(turn.shared);
        }
        connection.deadline = turn.now + IDLE_PATIENCE;
        if connection.keep_alive {
            if connection.delivery.is_some() {
                connection.deadline = turn.now + ACK_CHECK;
                self.arm(key, turn);
            }
            return true;
        }
        if let Some(tls) = &mut connection.tls {
            // Lost on a full or dead socket, where it would say nothing the end of the stream does not.
            tls.close();
            let _ = tls.flush(&mut connection.stream);
        } else if !connection.lingers && !connection.readable && connection.delivery.is_none() {
            self.remove(key);
            return false;
        }
        // What is queued still goes out; the peer sees the end of the stream after it.
        let _ = connection.stream.shutdown(std::net::Shutdown::Write);
        connection.deadline = turn.now + ACK_CHECK;
        self.arm(key, turn);
        true
    }

    /// Sees to it that the wheel looks at this connection not later than its deadline.
    fn arm(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.armed_at.is_none_or(|at| connection.deadline < at) {
            connection.armed_at = Some(connection.deadline);
            turn.wheel.schedule(connection.deadline, Owner::Connection(key).pack());
        }
    }

    /// Reads until a request is whole and answers it; false when there is nothing to do until the next event.
    fn read_request(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let mut late_reads = 0;
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return false };
            if connection.keep_alive && !connection.input.is_empty() {
                let mut input = std::mem::take(&mut connection.input);
                let taken = self.take_request(key, &input, turn);
                let Some(connection) = self.connections.get_mut(key) else { return false };
                match taken {
                    Taken::Answered(len) => {
                        input.drain(..len);
                        if !input.is_empty() {
                            connection.input = input;
                        }
                        return true;
                    }
                    Taken::Refused => return true,
                    Taken::Parked => {
                        connection.input = input;
                        return false;
                    }
                    Taken::Nothing => connection.input = input,
                }
            }
            let Some(connection) = self.connections.get_mut(key) else { return false };
            if !connection.readable {
                return false;
            }
            if !connection.keep_alive {
                // The response is out and the write side closed: what still comes is read away, so that the close
                // does not reset what the peer has not read yet.
                connection.input = Vec::new();
                if late_reads == LATE_READS_PER_VISIT {
                    self.list(key);
                    return false;
                }
                late_reads += 1;
            }
            let mut received = std::mem::take(&mut self.received);
            received.clear();
            let read = tcp::recv_into(&connection.stream, &mut received, READ_LEN);
            let goes_on = match read {
                Ok(0) => {
                    connection.readable = false;
                    self.delivered(key, turn, true);
                    self.close(key, None, turn);
                    Some(false)
                }
                Ok(taken) => {
                    // Less than there was room for: that was all there is, and what comes will be told.
                    if taken < READ_LEN && !connection.closing {
                        connection.readable = false;
                    }
                    self.take_bytes(key, &received, turn)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                    Some(false)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                Err(_) => {
                    turn.tally.add(Count::HttpAborted, 1);
                    self.close(key, Some("the connection was reset"), turn);
                    Some(false)
                }
            };
            self.received = received;
            if let Some(goes_on) = goes_on {
                return goes_on;
            }
        }
    }

    /// Deals with bytes from the socket; `None` to read on, else what [`HttpSide::read_request`] answers. A request that
    /// comes whole is answered from the core's own buffer.
    fn take_bytes(&mut self, key: Key, received: &[u8], turn: &mut Turn<'_>) -> Option<bool> {
        let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
        let first = connection.input.is_empty();
        if connection.tls.is_some() {
            return self.take_records(key, received, turn);
        }
        if !connection.keep_alive {
            return None;
        }
        if first {
            connection.deadline = turn.now + HEAD_PATIENCE;
            let taken = self.take_request(key, received, turn);
            let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
            match taken {
                Taken::Answered(len) => {
                    connection.input.extend_from_slice(&received[len..]);
                    return Some(true);
                }
                Taken::Refused => return Some(true),
                Taken::Parked => {
                    connection.input.extend_from_slice(received);
                    return Some(false);
                }
                Taken::Nothing => {}
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
        connection.input.extend_from_slice(received);
        if expects_continue(&connection.input) {
            // One small send on a socket that owes nothing else; a client that misses it sends its body anyway.
            let _ = tcp::send(&connection.stream, b"HTTP/1.1 100 Continue\r\n\r\n", false);
        }
        None
    }

    /// The same for TLS records: what they carry becomes input, and what the protocol wants to say leaves.
    fn take_records(&mut self, key: Key, received: &[u8], turn: &mut Turn<'_>) -> Option<bool> {
        let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
        let Some(tls) = &mut connection.tls else { return None };
        let (first, shook_hands) = (connection.input.is_empty(), tls.is_handshaking());
        let refused = tls.receive(received, &mut connection.input);
        if first && !connection.input.is_empty() {
            connection.deadline = turn.now + HEAD_PATIENCE;
        }
        if shook_hands && !tls.is_handshaking() {
            let old = tls.version() == Some("1.2");
            turn.tally.add(if old { Count::HttpsHandshakes12 } else { Count::HttpsHandshakes13 }, 1);
        }
        let flushed = match tls.wants_write() {
            true => tls.flush(&mut connection.stream).map(|_| tls.wants_write()),
            false => Ok(false),
        };
        if let Err(refusal) = refused {
            turn.tally.add(
                match refusal {
                    Refusal::NotTls => Count::HttpsNotTls,
                    Refusal::Incompatible => Count::HttpsIncompatible,
                    Refusal::Alert => Count::HttpsAlerts,
                    Refusal::Broken => Count::HttpsBroken,
                },
                1,
            );
            tracing::debug!(peer = %connection.peer, reason = refusal.word(), "https refused");
            self.close(key, Some("the TLS session broke"), turn);
            return Some(false);
        }
        match flushed {
            Ok(false) => None,
            // A handshake that the socket does not take: it goes out like a response.
            Ok(true) => {
                connection.out.owes_records();
                self.busy += 1;
                Some(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.out.owes_records();
                self.busy += 1;
                Some(true)
            }
            Err(_) => {
                turn.tally.add(Count::HttpAborted, 1);
                self.close(key, Some("the connection was reset"), turn);
                Some(false)
            }
        }
    }

    /// Answers the request that `input` begins with, if it is whole.
    fn take_request(&mut self, key: Key, input: &[u8], turn: &mut Turn<'_>) -> Taken {
        match next_request(input) {
            Next::More => Taken::Nothing,
            Next::Request { request, len } => {
                self.delivered(key, turn, false);
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.lingers = len < input.len();
                }
                self.remember(key, &input[..len], turn);
                self.answer(key, &request, turn);
                // Its answer is made when it may leave, from the same request.
                let parked = self.connections.get_mut(key).is_some_and(|c| c.parked.is_some());
                if parked { Taken::Parked } else { Taken::Answered(len) }
            }
            Next::Refuse { status, reason } => {
                turn.tally.refuse_http(reason);
                if let Some(connection) = self.connections.get_mut(key) {
                    tracing::debug!(peer = %connection.peer, reason = reason.word(), "http refused");
                    connection.lingers = true;
                }
                self.delivered(key, turn, false);
                self.head.clear();
                plan::answer_error(None, status, turn.wall, &mut self.head);
                self.respond(key, false, turn);
                Taken::Refused
            }
        }
    }

    /// Keeps a request's bytes at hand until its answer is made: of a connection's first ones, since a disk is read in
    /// thousands.
    fn remember(&mut self, key: Key, request: &[u8], turn: &Turn<'_>) {
        self.asked.clear();
        let Some(connection) = self.connections.get_mut(key) else { return };
        self.asked_by = (connection.peer, connection.local);
        if turn.shared.is_recording() && connection.kept < KEPT_PER_CONNECTION {
            connection.kept += 1;
            self.asked.extend_from_slice(&request[..request.len().min(KEPT_LEN)]);
        }
    }

    /// The request and the head of its answer, which stands in the head buffer, for a capture file.
    fn packets(&self, body_len: u64) -> Vec<Packet> {
        if self.asked.is_empty() {
            return Vec::new();
        }
        let (peer, local) = self.asked_by;
        let asked = Packet::http(peer, local, false, &self.asked, 0);
        let answer = (!self.head.is_empty()).then(|| Packet::http(local, peer, true, &self.head, body_len));
        std::iter::once(asked).chain(answer).collect()
    }

    /// Sends what stands in the head buffer as the whole response, at the end of the turn.
    fn respond(&mut self, key: Key, keep_alive: bool, turn: &mut Turn<'_>) {
        self.respond_with(key, "", keep_alive, turn);
    }

    /// The same with a body behind it.
    fn respond_with(&mut self, key: Key, body: &str, keep_alive: bool, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.keep_alive = keep_alive && self.accepting;
        if connection.tls.is_some() {
            let bytes = [&self.head, body.as_bytes()].concat();
            connection.out.pieces.push_back(Piece::Text { bytes, sent: 0 });
            connection.deadline = turn.now + SEND_PATIENCE;
            self.busy += 1;
            return;
        }
        connection.owed = true;
        self.outbox_bytes.extend_from_slice(&self.head);
        self.outbox_bytes.extend_from_slice(body.as_bytes());
        self.outbox.push((key, self.outbox_bytes.len()));
    }

    /// Sends the answers of this turn: at once what the sockets take, the rest from the connections' queues.
    fn send_answers(&mut self, turn: &mut Turn<'_>) {
        let mut outbox = std::mem::take(&mut self.outbox);
        let bytes = std::mem::take(&mut self.outbox_bytes);
        let mut start = 0;
        if let Some(mut burst) = self.burst.take_if(|burst| outbox.len() >= BURST_MIN && burst.works()) {
            let mut shots = std::mem::take(&mut self.shots);
            outbox.retain(|(key, end)| {
                let bytes = std::mem::replace(&mut start, *end)..*end;
                let Some(connection) = self.connections.get_mut(*key) else { return false };
                let (socket, more) = (connection.stream.as_raw_fd(), !connection.keep_alive);
                shots.push(Shot { socket, bytes, more });
                true
            });
            for ((shot, sent), (key, _)) in shots.iter().zip(burst.send(&bytes, &shots)).zip(outbox.drain(..))
            {
                self.answer_left(key, &bytes[shot.bytes.clone()], sent, turn);
            }
            shots.clear();
            self.shots = shots;
            self.burst = Some(burst);
        }
        for (key, end) in outbox.drain(..) {
            let answer = &bytes[std::mem::replace(&mut start, end)..end];
            let Some(connection) = self.connections.get_mut(key) else { continue };
            // What is the last anyway leaves in one segment with the end of the stream.
            let sent = tcp::send(&connection.stream, answer, !connection.keep_alive);
            self.answer_left(key, answer, sent, turn);
        }
        self.outbox = outbox;
        self.outbox_bytes = bytes;
        self.outbox_bytes.clear();
    }

    /// Goes on with a connection whose answer has left the outbox, as far as its socket took it.
    fn answer_left(&mut self, key: Key, answer: &[u8], sent: io::Result<usize>, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.owed = false;
        // What went wrong comes up again when the rest is sent.
        let sent = sent.unwrap_or(0);
        turn.tally.add(Count::HttpText, sent as u64);
        if sent == answer.len() {
            if !self.sent(key, turn) {
                return;
            }
        } else {
            connection.out.pieces.push_back(Piece::Text { bytes: answer[sent..].into(), sent: 0 });
            connection.deadline = turn.now + SEND_PATIENCE;
            self.busy += 1;
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.readable || !connection.input.is_empty() || !connection.out.is_empty() {
            self.list(key);
        }
        self.keep(key, turn);
    }

    /// Queues what stands in the head buffer as the beginning of a response; the caller queues the rest.
    fn begin_response(&mut self, key: Key, keep_alive: bool, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.keep_alive = keep_alive && self.accepting;
        connection.out.pieces.push_back(Piece::Text { bytes: self.head.as_slice().into(), sent: 0 });
        connection.deadline = turn.now + SEND_PATIENCE;
        self.busy += 1;
    }

    /// If a response was out, finds out whether all of it has arrived, and says so. `ending` counts what is not
    /// acknowledged as lost; a further request of the same client proves that it has everything.
    fn delivered(&mut self, key: Key, turn: &mut Turn<'_>, ending: bool) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(delivery) = connection.delivery.take() else { return };
        let unsent = !connection.out.is_empty();
        let waiting = tcp::unacknowledged(&connection.stream).unwrap_or(0);
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
        if connection.out.is_empty() && connection.delivery.is_some() {
            // Everything is with the kernel: is it with the machine?
            if tcp::unacknowledged(&connection.stream).is_ok_and(|waiting| waiting == 0) {
                self.delivered(key, turn, false);
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.deadline = turn.now + IDLE_PATIENCE;
                }
            } else {
                connection.deadline = turn.now + ACK_CHECK;
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

    /// What the ring has finished.
    pub(super) fn ring_completions(&mut self, turn: &mut Turn<'_>) {
        while let Some(completion) = turn.ring.as_deref_mut().and_then(|ring| ring.complete()) {
            match completion {
                Completion::Sent { tag, result } => {
                    let Some(Owner::Connection(key)) = Owner::unpack(tag) else { continue };
                    let Some(connection) = self.connections.get_mut(key) else { continue };
                    let mut moved = Moved::default();
                    let pumped = connection.out.ring_answered(result, &mut moved);
                    count_moved(turn.tally, &moved);
                    connection.share += moved.total();
                    connection.deadline = turn.now + SEND_PATIENCE;
                    if connection.doomed {
                        self.remove(key);
                    } else {
                        self.pumped(key, pumped, turn);
                    }
                }
                Completion::Released { tag, copied: true } if !self.zero_copy_always => {
                    let Some(Owner::Connection(key)) = Owner::unpack(tag) else { continue };
                    let Some(connection) = self.connections.get_mut(key) else { continue };
                    let local = *connection.local.ip();
                    if self.copying.learn(local) {
                        tracing::info!(
                            core = turn.core,
                            address = %local,
                            "zero-copy sends are copied on this device: splice from now on"
                        );
                    }
                }
                Completion::Released { .. } => {}
            }
        }
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

/// What became of a look for a whole request.
enum Taken {
    /// There is none yet.
    Nothing,
    /// Answered; so many bytes are done with.
    Answered(usize),
    /// It waits at the point of no return, and is needed once more.
    Parked,
    /// The bytes are none; an error is on its way and the connection ends.
    Refused,
}

fn count_moved(tally: &Tally, moved: &Moved) {
    for (count, bytes) in [
        (Count::HttpSplice, moved.splice),
        (Count::HttpSendfile, moved.sendfile),
        (Count::HttpRing, moved.ring),
        (Count::HttpText, moved.text),
        (Count::HttpSealed, moved.sealed),
    ] {
        if bytes > 0 {
            tally.add(count, bytes);
        }
    }
}

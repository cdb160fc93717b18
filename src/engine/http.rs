//! HTTP on one core: connections in a slab, requests answered on the core they arrived on, bodies sent by
//! [`Outgoing`].
//!
//! A connection's life: read a head (bounded in bytes and time), answer it, send until the socket is full, go on
//! when it drains; then the next head of the same connection, or the end. A connection that reads nothing, or sends
//! a head a byte at a time, costs one slab entry and one deadline, and no other connection anything.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::event::Event;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Registry, Token};

use super::core::{Owner, Turn, watch, watch_both};
use super::counters::{Count, Tally};
use super::sender::{CopyingDevices, INLINE_MAX, Means, Moved, Outgoing, Piece, PipePool, Pumped};
use super::shared::{Shared, unix_now};
use super::slab::{Key, Slab};
use crate::files::catalog::{NotServed, Served};
use crate::jobs::Identity;
use crate::jobs::evidence::{Evidence, Over, Seen};
use crate::jobs::image::{Access, Images};
use crate::jobs::job::JobId;
use crate::jobs::script::{self, Context};
use crate::jobs::token::{BootId, Token as BootToken};
use crate::proto::http::{self as plan, Body, FileMeta, Route};
use crate::sys::uring::Completion;
use crate::sys::{SysError, tcp};
use crate::wire::MacAddr;
use crate::wire::http::{Next, Request, Status, next_request};

/// Connections one core holds.
pub(super) const CONNECTIONS_MAX: usize = 16 * 1024;
/// Accepted per listener and turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Requests answered per turn, over all connections.
const READS_PER_TURN: usize = 256;
/// Bytes asked for in one read.
const READ_LEN: usize = 4096;
/// A head must be whole this long after its first byte.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// A connection without a request is kept this long. iPXE drops idle ones after 10 s itself.
const IDLE_PATIENCE: Duration = Duration::from_secs(20);
/// A response must move this often. A machine that hashes or unpacks while downloading may pause.
const SEND_PATIENCE: Duration = Duration::from_secs(120);
/// How long and how often delivery is waited for after the last byte went to the kernel.
const ACK_CHECK: Duration = Duration::from_millis(50);
const PLAIN: &str = "text/plain";

/// What of the response under way the flight recorder wants to know.
struct Delivery {
    /// What it is of.
    subject: Subject,
    bytes: u64,
    peer: Ipv4Addr,
}

/// What a file response carries.
enum Subject {
    /// A loader.
    Loader { name: String },
    /// An image's file, under a boot's token or openly.
    File { boot: Option<BootToken>, image: String, file: String, end: u64, len: u64 },
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddrV4,
    local: SocketAddrV4,
    /// Bytes of a head that is not whole yet, or of the next request. Empty (and unallocated) most of the time.
    input: Vec<u8>,
    out: Outgoing,
    keep_alive: bool,
    /// The peer has said it sends no more.
    ended: bool,
    readable: bool,
    writable: bool,
    /// On the list of connections with something to do.
    listed: bool,
    /// To be removed as soon as the ring has answered.
    doomed: bool,
    deadline: Instant,
    timed: bool,
    /// Set while a response is out or not acknowledged yet.
    delivery: Option<Box<Delivery>>,
}

/// One core's HTTP.
pub(super) struct HttpSide {
    listeners: Vec<std::net::TcpListener>,
    acceptable: Vec<bool>,
    connections: Slab<Connection>,
    /// Connections to look at, in turn.
    ready: VecDeque<Key>,
    pipes: PipePool,
    copying: CopyingDevices,
    /// Reused for every head and small body.
    head: Vec<u8>,
    script: String,
    /// Connections with a response under way.
    busy: usize,
    accepting: bool,
}

impl HttpSide {
    /// Takes listeners that are bound already.
    pub(super) fn new(listeners: Vec<std::net::TcpListener>, pipes_max: usize) -> Self {
        Self {
            acceptable: vec![false; listeners.len()],
            listeners,
            connections: Slab::new(CONNECTIONS_MAX),
            ready: VecDeque::new(),
            pipes: PipePool::new(pipes_max),
            copying: CopyingDevices::default(),
            head: Vec::with_capacity(4096),
            script: String::with_capacity(4096),
            busy: 0,
            accepting: true,
        }
    }

    /// Binds one core's listeners.
    pub(super) fn bind(
        listen: &[SocketAddrV4],
        congestion: Option<&str>,
    ) -> Result<Vec<std::net::TcpListener>, SysError> {
        listen.iter().map(|addr| tcp::listen(*addr, congestion)).collect()
    }

    pub(super) fn register(&self, registry: &Registry) -> io::Result<()> {
        for (index, listener) in self.listeners.iter().enumerate() {
            watch(registry, listener.as_raw_fd(), Owner::HttpListener(index as u32))?;
        }
        Ok(())
    }

    pub(super) fn acceptable(&mut self, index: u32) {
        if let Some(flag) = self.acceptable.get_mut(index as usize) {
            *flag = true;
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.ready.is_empty() || (self.accepting && self.acceptable.contains(&true))
    }

    /// No response is under way (idle kept-alive connections do not count).
    pub(super) fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.busy == 0
    }

    pub(super) fn busy_connections(&self) -> usize {
        self.busy
    }

    pub(super) fn stop_accepting(&mut self, registry: &Registry) {
        self.accepting = false;
        for listener in self.listeners.drain(..) {
            let fd = listener.as_raw_fd();
            // Closing it deregisters it as well; a failure changes nothing.
            let _ = registry.deregister(&mut SourceFd(&fd));
        }
    }

    /// Readiness of one connection.
    pub(super) fn event(&mut self, key: Key, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        connection.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.list(key);
    }

    fn list(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && !std::mem::replace(&mut connection.listed, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Accepts, answers and sends, within the turn's budget.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) {
        for index in 0..self.listeners.len() {
            if self.acceptable[index] {
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
            reads = reads.saturating_sub(1);
            self.drive(key, turn);
        }
        turn.tally.set(Count::HttpOpen, self.connections.len() as u64);
    }

    fn accept(&mut self, index: usize, turn: &mut Turn<'_>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let (stream, peer) = match self.listeners[index].accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.acceptable[index] = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // Out of descriptors, or a connection that died in the queue: look again on the next one.
                        turn.tally.add(Count::HttpShed, 1);
                        tracing::debug!(%error, "accept");
                    }
                    return;
                }
            };
            turn.tally.add(Count::HttpConnections, 1);
            let (SocketAddr::V4(peer), Ok(SocketAddr::V4(local))) = (peer, stream.local_addr()) else { continue };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let connection = Connection {
                stream: TcpStream::from_std(stream),
                peer,
                local,
                input: Vec::new(),
                out: Outgoing::default(),
                keep_alive: true,
                ended: false,
                readable: true,
                writable: true,
                listed: false,
                doomed: false,
                deadline: turn.now + HEAD_PATIENCE,
                timed: true,
                delivery: None,
            };
            let Ok(key) = self.connections.insert(connection) else {
                // Full: the newest is shed, and closed so that it knows.
                turn.tally.add(Count::HttpShed, 1);
                continue;
            };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if watch_both(turn.registry, connection.stream.as_raw_fd(), Owner::Connection(key)).is_err() {
                self.connections.remove(key);
                continue;
            }
            turn.wheel.schedule(turn.now + HEAD_PATIENCE, Owner::Connection(key).pack());
            self.list(key);
        }
    }

    /// Goes on with one connection as far as it can.
    fn drive(&mut self, key: Key, turn: &mut Turn<'_>) {
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return };
            if connection.doomed {
                return;
            }
            if !connection.out.is_empty() || connection.out.in_ring {
                if connection.out.in_ring || !connection.writable {
                    return;
                }
                let mut moved = Moved::default();
                let mut means = Means {
                    pipes: &mut self.pipes,
                    ring: turn.ring.as_deref_mut(),
                    copying: &self.copying,
                    local: *connection.local.ip(),
                    tag: Owner::Connection(key).pack(),
                    moved: &mut moved,
                };
                let pumped = connection.out.pump(&connection.stream, &mut means);
                count_moved(turn.tally, &moved);
                if moved.total() > 0 {
                    connection.deadline = turn.now + SEND_PATIENCE;
                }
                if !self.pumped(key, pumped, turn) {
                    return;
                }
                continue;
            }
            if !self.read_request(key, turn) {
                return;
            }
        }
    }

    /// Deals with what a go at sending came to; false when the connection has nothing more to do for now.
    fn pumped(&mut self, key: Key, pumped: Pumped, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        match pumped {
            Pumped::Done => {
                self.busy -= 1;
                connection.deadline = turn.now + IDLE_PATIENCE;
                if connection.keep_alive {
                    if connection.delivery.is_some() {
                        connection.deadline = turn.now + ACK_CHECK;
                        self.arm(key, turn);
                    }
                    return true;
                }
                // What is queued still goes out; the peer sees the end of the stream after it.
                let _ = connection.stream.shutdown(std::net::Shutdown::Write);
                connection.deadline = turn.now + ACK_CHECK;
                self.arm(key, turn);
                true
            }
            Pumped::Yielded => {
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
            Pumped::Changed => {
                turn.tally.add(Count::FilesChanged, 1);
                let file = connection.delivery.as_ref().map(|d| d.subject.file().to_owned()).unwrap_or_default();
                tracing::warn!(file, peer = %connection.peer, "file changed under a download: the download is cut");
                tcp::reset_on_close(connection.stream.as_raw_fd());
                self.close(key, Some("the file changed on the server"), turn);
                false
            }
            Pumped::Broken => {
                turn.tally.add(Count::HttpAborted, 1);
                self.close(key, Some("the receiver went away"), turn);
                false
            }
        }
    }

    /// Keeps exactly one entry of the wheel for this connection, not later than its deadline needs.
    fn arm(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        // The entry that is there fires within HEAD_PATIENCE at the latest and is renewed then; only the short
        // look for acknowledgements needs one of its own.
        if !connection.timed || connection.delivery.is_some() {
            connection.timed = true;
            turn.wheel.schedule(connection.deadline, Owner::Connection(key).pack());
        }
    }

    /// Reads until a request is whole and answers it; false when there is nothing to do until the next event.
    fn read_request(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let mut input = std::mem::take(&mut connection.input);
        loop {
            let next = if input.is_empty() || !connection.keep_alive { Next::More } else { next_request(&input) };
            match next {
                Next::Request { request, len } => {
                    self.delivered(key, turn, false);
                    self.answer(key, &request, turn);
                    let Some(connection) = self.connections.get_mut(key) else { return false };
                    input.drain(..len);
                    if input.is_empty() {
                        input = Vec::new();
                    }
                    connection.input = input;
                    return true;
                }
                Next::Refuse { status, reason } => {
                    turn.tally.refuse_http(reason);
                    tracing::debug!(peer = %connection.peer, reason = reason.word(), "http refused");
                    self.delivered(key, turn, false);
                    self.head.clear();
                    let answer = plan::answer_error(None, status, &mut self.head);
                    let text = self.head.clone();
                    let Some(connection) = self.connections.get_mut(key) else { return false };
                    let _ = answer;
                    connection.keep_alive = false;
                    connection.out.pieces.push_back(Piece::Text { bytes: text, sent: 0 });
                    connection.deadline = turn.now + SEND_PATIENCE;
                    self.busy += 1;
                    return true;
                }
                Next::More => {}
            }
            if !connection.readable {
                connection.input = input;
                return false;
            }
            if !connection.keep_alive {
                // The response is out and the write side closed: what still comes is read away, so that the close
                // does not reset what the peer has not read yet.
                input.clear();
            }
            let first = input.is_empty() && connection.keep_alive;
            match tcp::recv_into(&connection.stream, &mut input, READ_LEN) {
                Ok(0) => {
                    connection.ended = true;
                    connection.readable = false;
                    self.delivered(key, turn, true);
                    self.close(key, None, turn);
                    return false;
                }
                Ok(_) if first => connection.deadline = turn.now + HEAD_PATIENCE,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                    if input.is_empty() {
                        input = Vec::new();
                    }
                    connection.input = input;
                    return false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    turn.tally.add(Count::HttpAborted, 1);
                    self.close(key, Some("the connection was reset"), turn);
                    return false;
                }
            }
        }
    }
}

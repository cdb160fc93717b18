//! HTTP on one core: connections in a slab, requests answered on the core they arrived on, bodies sent by
//! [`Outgoing`].
//!
//! A connection's life: read a head (bounded in bytes and time), answer it, send until the socket is full, go on
//! when it drains; then the next head of the same connection, or the end. A connection that reads nothing, or sends
//! a head a byte at a time, costs one slab entry and one deadline, and no other connection anything.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime};

use mio::Registry;
use mio::event::Event;
use mio::net::TcpStream;
use mio::unix::SourceFd;

use super::core::{Owner, Turn, watch, watch_both};
use super::counters::{Count, Tally};
use super::sender::{CopyingDevices, INLINE_MAX, Means, Moved, Outgoing, Piece, PipePool, Pumped};
use super::shared::{Shared, unix_now};
use super::slab::{Key, Slab};
use crate::files::catalog::NotServed;
use crate::files::served::Served;
use crate::jobs::Identity;
use crate::jobs::answers::{self, Asking};
use crate::jobs::evidence::{Evidence, Over, Seen};
use crate::jobs::image::{Access, Images};
use crate::jobs::reach::{self, Shut};
use crate::jobs::script::{self, Barrier, Context, Hints, Offer, barrier, barrier_of_script, last_file};
use crate::jobs::table::Decision;
use crate::jobs::template::Values;
use crate::jobs::token::Token as BootToken;
use crate::keeper::{Answer, AtTheLine};
use crate::proto::http::{self as plan, Body, FileMeta, Route};
use crate::sys::uring::Completion;
use crate::sys::{SysError, tcp};
use crate::wire::http::{Method, Next, PATH_MAX, Request, Status, decode_path, next_request};

/// Connections one core holds.
pub(super) const CONNECTIONS_MAX: usize = 16 * 1024;
/// Accepted per listener and turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Requests answered per turn, over all connections.
const READS_PER_TURN: usize = 256;
/// Requests of one connection answered before the others have their turn: a client may send thousands at once.
const ANSWERS_PER_VISIT: usize = 16;
/// Reads of one connection that is being closed, before the others have their turn.
const LATE_READS_PER_VISIT: usize = 16;
/// Connections looked at for one to close when a new one finds no place.
const EVICTION_LOOKS: usize = 256;
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
/// Checks before the last bytes count as lost: 30 s.
const ACK_CHECKS_MAX: u32 = 600;
/// A long download says so this often, because silence counts against a boot.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);
const TEXT: &str = "text/plain";
/// The end of a last boot file that leaves only once its boot is recorded: no machine starts anything without it.
const HELD_LEN: u64 = 64 * 1024;
/// A boot that cannot be recorded asks again this often, and waits this long for it.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const HELD_PATIENCE: Duration = Duration::from_secs(30);
/// Longest reason kept of a call-back.
const REASON_MAX: usize = 160;
/// Longest name kept of an answer file that was withheld.
const NAME_MAX: usize = 64;

/// A boot at its point of no return: what leaves next could start an installer.
struct Parked {
    line: AtTheLine,
    what: ParkedAnswer,
    /// What the keeper said, until it is acted on.
    answer: Option<Answer>,
    /// When to ask again, after a *not now*.
    again: Option<Instant>,
    until: Instant,
}

/// What is parked.
enum ParkedAnswer {
    /// A body stopped at [`Piece::Held`].
    File,
    /// A script, with whom it is for. The request it answers is still in the connection's input.
    Script { script: String, who: Box<Identity> },
    /// An answer file that is given once. Its request is still in the connection's input too.
    Once { text: String, content_type: &'static str, token: BootToken, name: String },
}

/// What of the response under way the flight recorder wants to know.
struct Delivery {
    /// What it is of.
    subject: Subject,
    bytes: u64,
    peer: Ipv4Addr,
    /// When to say that it goes on.
    progress_at: Instant,
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
    /// The peer has closed its side, or the connection is broken: there is an end to be read, whatever else there is.
    closing: bool,
    writable: bool,
    /// On the list of connections with something to do.
    listed: bool,
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
}

/// One core's HTTP.
pub(super) struct HttpSide {
    listeners: Vec<std::net::TcpListener>,
    acceptable: Vec<bool>,
    connections: Slab<Connection>,
    /// Connections in the order they were accepted, those that have ended since among them.
    accepted: VecDeque<Key>,
    /// Connections to look at, in turn.
    ready: VecDeque<Key>,
    pipes: PipePool,
    copying: CopyingDevices,
    /// Devices that copy are not remembered.
    zero_copy_always: bool,
    /// Reused for every head and small body.
    head: Vec<u8>,
    script: String,
    /// Connections with a response under way.
    busy: usize,
    accepting: bool,
}

impl HttpSide {
    /// Takes listeners that are bound already.
    pub(super) fn new(
        listeners: Vec<std::net::TcpListener>,
        connections_max: usize,
        pipes_max: usize,
        zero_copy_always: bool,
    ) -> Self {
        Self {
            acceptable: vec![false; listeners.len()],
            listeners,
            connections: Slab::new(connections_max.min(CONNECTIONS_MAX)),
            accepted: VecDeque::new(),
            ready: VecDeque::new(),
            pipes: PipePool::new(pipes_max),
            copying: CopyingDevices::default(),
            zero_copy_always,
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
        connection.closing |= event.is_read_closed() || event.is_error();
        connection.readable |= event.is_readable() || connection.closing;
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
            let (SocketAddr::V4(peer), Ok(SocketAddr::V4(local))) = (peer, stream.local_addr()) else {
                continue;
            };
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
                closing: false,
                writable: true,
                listed: false,
                doomed: false,
                deadline: turn.now + HEAD_PATIENCE,
                armed_at: None,
                delivery: None,
                ack_checks: 0,
                parked: None,
                line: None,
            };
            if self.connections.is_full() {
                self.evict(turn);
            }
            let Ok(key) = self.connections.insert(connection) else {
                // Full of downloads: the newest is shed, and closed so that it knows.
                turn.tally.add(Count::HttpShed, 1);
                continue;
            };
            if self.accepted.len() >= 2 * CONNECTIONS_MAX {
                let connections = &mut self.connections;
                self.accepted.retain(|key| connections.get_mut(*key).is_some());
            }
            self.accepted.push_back(key);
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if watch_both(turn.registry, connection.stream.as_raw_fd(), Owner::Connection(key)).is_err() {
                self.connections.remove(key);
                continue;
            }
            self.arm(key, turn);
            self.list(key);
        }
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

    /// Goes on with one connection as far as it can.
    fn drive(&mut self, key: Key, turn: &mut Turn<'_>) {
        let mut answers = 0;
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return };
            if connection.doomed {
                return;
            }
            if connection.parked.is_some() && !self.unpark(key, turn) {
                return;
            }
            let Some(connection) = self.connections.get_mut(key) else { return };
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
                if let Some(delivery) = &mut connection.delivery
                    && turn.now >= delivery.progress_at
                {
                    delivery.progress_at = turn.now + PROGRESS_EVERY;
                    delivery.goes_on(turn.shared, connection.out.left());
                }
                if moved.total() > 0 {
                    connection.deadline = turn.now + SEND_PATIENCE;
                }
                if !self.pumped(key, pumped, turn) {
                    return;
                }
                continue;
            }
            if answers == ANSWERS_PER_VISIT {
                return self.list(key);
            }
            answers += 1;
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
            Pumped::Held => {
                connection.out.rest(&mut self.pipes);
                let Some(line) = connection.line.take() else {
                    connection.out.release();
                    return true;
                };
                self.park(key, *line, ParkedAnswer::File, turn);
                false
            }
            Pumped::Changed => {
                turn.tally.add(Count::FilesChanged, 1);
                let file =
                    connection.delivery.as_ref().map(|d| d.subject.name().to_owned()).unwrap_or_default();
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
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let mut input = std::mem::take(&mut connection.input);
        let mut late_reads = 0;
        loop {
            let next =
                if input.is_empty() || !connection.keep_alive { Next::More } else { next_request(&input) };
            match next {
                Next::Request { request, len } => {
                    self.delivered(key, turn, false);
                    self.answer(key, &request, turn);
                    let Some(connection) = self.connections.get_mut(key) else { return false };
                    if connection.parked.is_some() {
                        // Its answer is made when it may leave, from the same request.
                        connection.input = input;
                        return false;
                    }
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
                    plan::answer_error(None, status, SystemTime::now(), &mut self.head);
                    self.respond(key, false, turn);
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
                if late_reads == LATE_READS_PER_VISIT {
                    self.list(key);
                    return false;
                }
                late_reads += 1;
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
                Ok(taken) => {
                    if first {
                        connection.deadline = turn.now + HEAD_PATIENCE;
                    }
                    // Less than there was room for: that was all there is, and what comes will be told.
                    if taken < READ_LEN && !connection.closing {
                        connection.readable = false;
                    }
                }
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

    /// Asks the keeper whether what is parked may leave.
    fn park(&mut self, key: Key, line: AtTheLine, what: ParkedAnswer, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        turn.shared.keeper.ask(line.clone(), Owner::Connection(key).pack(), turn.desk);
        let until = turn.now + HELD_PATIENCE;
        connection.parked = Some(Box::new(Parked { line, what, answer: None, again: None, until }));
        connection.deadline = until;
        self.arm(key, turn);
    }

    /// The keeper's answer to what a connection asked.
    pub(super) fn answered(&mut self, key: Key, answer: Answer) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(parked) = &mut connection.parked {
            parked.answer = Some(answer);
            self.list(key);
        }
    }

    /// Acts on the keeper's answer; false while there is none, or when the connection is at its end.
    fn unpark(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let Some(parked) = &mut connection.parked else { return true };
        let Some(answer) = parked.answer else { return false };
        let is_file = matches!(parked.what, ParkedAnswer::File);
        let asks_again = is_file || matches!(parked.what, ParkedAnswer::Once { .. });
        match answer {
            Answer::Go if is_file => {
                connection.parked = None;
                connection.out.release();
                connection.deadline = turn.now + SEND_PATIENCE;
                true
            }
            Answer::NotNow if asks_again => {
                parked.answer = None;
                let again = turn.now + ASK_AGAIN;
                parked.again = Some(again);
                connection.deadline = again.min(parked.until);
                self.arm(key, turn);
                false
            }
            Answer::Refused(denial) if is_file => {
                tracing::debug!(peer = %connection.peer, job = %parked.line.job, boot = %parked.line.boot, %denial,
                    "download cut at the point of no return");
                tcp::reset_on_close(connection.stream.as_raw_fd());
                self.close(key, Some(&format!("refused at the point of no return: {denial}")), turn);
                false
            }
            // A script and an answer file are answered from their request, which is still there.
            Answer::Go | Answer::NotNow | Answer::Refused(_) => true,
        }
    }

    /// Queues what stands in the head buffer as the response.
    fn respond(&mut self, key: Key, keep_alive: bool, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.keep_alive = keep_alive && self.accepting;
        connection.out.pieces.push_back(Piece::Text { bytes: self.head.as_slice().into(), sent: 0 });
        connection.deadline = turn.now + SEND_PATIENCE;
        self.busy += 1;
    }

    fn answer(&mut self, key: Key, request: &Request<'_>, turn: &mut Turn<'_>) {
        turn.tally.add(Count::HttpRequests, 1);
        self.head.clear();
        let now = SystemTime::now();
        let mut buffer = [0; PATH_MAX];
        let route = match decode_path(request.path, &mut buffer) {
            Ok(path) => plan::route(path),
            Err(_) => Route::NotFound,
        };
        match route {
            Route::Image { path } => {
                let served = turn.shared.library.load().http_image(path);
                match served {
                    Ok(served) if served.access == Access::Open => {
                        self.answer_file(key, request, &served, None, now, turn)
                    }
                    Ok(_) => self.answer_error(key, request, Status::FORBIDDEN, now, turn),
                    Err(_) => self.answer_error(key, request, Status::NOT_FOUND, now, turn),
                }
            }
            Route::Loader { name } => match turn.shared.library.load().loader(name) {
                Ok(served) => self.answer_file(key, request, &served, None, now, turn),
                Err(_) => self.answer_error(key, request, Status::NOT_FOUND, now, turn),
            },
            Route::Boot { rest, .. } if rest.starts_with("answers/") && self.is_parked(key) => {
                self.answer_once(key, request, now, turn);
            }
            Route::Boot { token, rest } => {
                let Some(token) = turn.shared.key().verify(token, unix_now()) else {
                    turn.tally.add(Count::BadTokens, 1);
                    return self.answer_error(key, request, Status::FORBIDDEN, now, turn);
                };
                if matches!(rest, "confirm" | "failed") {
                    return self.answer_call_back(key, request, &token, rest == "failed", now, turn);
                }
                if rest == "local" {
                    return self.answer_local_back(key, request, &token, now, turn);
                }
                if let Some(name) = rest.strip_prefix("answers/") {
                    return self.answer_answers(key, request, &token, name, now, turn);
                }
                let catalog = turn.shared.library.load();
                let served = match rest.split_once('/') {
                    Some(("images", path)) => catalog.http_image(path),
                    Some(("loaders", name)) => catalog.loader(name),
                    _ => Err(NotServed::NotFound),
                };
                match served {
                    Ok(served) => {
                        if let Err(why) = opens(&token, &served, turn.shared) {
                            turn.tally.add(Count::TokensShut, 1);
                            tracing::debug!(boot = %token.boot, name = served.name, %why, "not opened");
                            return self.answer_error(key, request, Status::FORBIDDEN, now, turn);
                        }
                        self.answer_file(key, request, &served, Some(token), now, turn)
                    }
                    Err(_) => self.answer_error(key, request, Status::NOT_FOUND, now, turn),
                }
            }
            Route::Script(_) => self.answer_script(key, request, now, turn),
            Route::Autoexec => self.answer_ask(key, request, now, turn),
            Route::Health => {
                let answer = plan::answer_text(request, Status::OK, TEXT, 3, &[], now, &mut self.head);
                if answer.body == Body::Inline {
                    self.head.extend_from_slice(b"ok\n");
                }
                self.respond(key, !answer.close, turn);
            }
            Route::NotFound => self.answer_error(key, request, Status::NOT_FOUND, now, turn),
        }
    }

    fn answer_error(
        &mut self,
        key: Key,
        request: &Request<'_>,
        status: Status,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let answer = plan::answer_error(Some(request), status, now, &mut self.head);
        self.respond(key, !answer.close, turn);
    }

    /// Sends `self.script` as the body.
    fn answer_rendered(
        &mut self,
        key: Key,
        request: &Request<'_>,
        content_type: &str,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Head | Method::Post) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        // A script is this machine's, now: no cache may keep it.
        let extra = [("Cache-Control", "no-store")];
        let len = self.script.len() as u64;
        let answer = plan::answer_text(request, Status::OK, content_type, len, &extra, now, &mut self.head);
        if answer.body == Body::Inline {
            self.head.extend_from_slice(self.script.as_bytes());
        }
        self.respond(key, !answer.close, turn);
    }

    /// The constant script for who has not said who it is.
    fn answer_ask(&mut self, key: Key, request: &Request<'_>, now: SystemTime, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let (peer, local) = (*connection.peer.ip(), connection.local);
        self.script.clear();
        script::ask_identity(&base_url(local), &mut self.script);
        let mut evidence = Evidence::new(now, Seen::IdentityAsked);
        evidence.mac = turn.shared.sightings.at(peer).map(|seen| seen.mac);
        evidence.address = Some(peer);
        turn.shared.note(evidence);
        self.answer_rendered(key, request, TEXT, now, turn);
    }

    fn answer_script(&mut self, key: Key, request: &Request<'_>, now: SystemTime, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let (peer, local) = (*connection.peer.ip(), connection.local);
        let mut who = plan::identity(request);
        let named = who.mac.is_some() || who.uuid.is_some() || who.serial.is_some() || who.asset.is_some();
        if !named {
            if request.is_ipxe() || request.method == Method::Post {
                return self.answer_ask(key, request, now, turn);
            }
            self.script.clear();
            let catalog = turn.shared.library.load();
            script::options_page(&**catalog, &mut self.script);
            return self.answer_rendered(key, request, "text/html; charset=utf-8", now, turn);
        }
        if let Some(connection) = self.connections.get_mut(key)
            && let Some(parked) = connection.parked.take()
        {
            return self.answer_parked(key, request, *parked, now, turn);
        }
        let view = turn.shared.keeper.table().view();
        // The short address that DHCP hands out carries a MAC address and nothing else. Where that decides nothing,
        // the machine is asked for the rest of its identity, which a job may be about.
        if request.is_ipxe() && who.platform.is_none() && matches!(view.decide(&who), Decision::NoJob) {
            return self.answer_ask(key, request, now, turn);
        }
        who.address = Some(peer);
        if who.arch.is_none()
            && let Some(seen) = turn.shared.sightings.at(peer)
            && who.mac == Some(seen.mac)
        {
            who.arch = Some(seen.arch);
        }
        let policy = turn.shared.policy.load();
        let catalog = turn.shared.library.load();
        let context = Context {
            base_url: &base_url(local),
            boot: turn.shared.next_boot(),
            key: turn.shared.key(),
            now_unix: unix_now(),
            policy: &policy,
            hints: Hints::of(&view, &who),
        };
        let decision = view.decide(&who);
        let composed = script::compose(decision, &**catalog, &who, &context, &mut self.script);
        turn.tally.add(Count::HttpScripts, 1);
        let image = composed.image.as_deref().and_then(|name| catalog.image(name));
        if image.is_some_and(|image| !image.answers.is_empty()) {
            turn.shared.presented.record(composed.boot, &who);
        }
        let once = decision.job().filter(|job| !job.always).map(|job| job.id);
        let seen = Seen::ScriptAsked {
            job: composed.job,
            offer: composed.what.word().to_owned(),
            image: composed.image.clone(),
        };
        let mut evidence = Evidence::new(now, seen);
        evidence.mac = who.mac;
        evidence.uuid = who.uuid;
        evidence.serial.clone_from(&who.serial);
        evidence.asset.clone_from(&who.asset);
        evidence.boot = Some(composed.boot);
        evidence.address = Some(peer);
        turn.shared.note(evidence);
        // What such a script starts fetches the rest as it likes: the script itself is what must not leave too soon.
        if let (Offer::Image, Some(job), Some(image)) = (composed.what, once, composed.image)
            && catalog.image(&image).and_then(|image| barrier_of_script(image, &who)) == Some(Barrier::Script)
            && request.method != Method::Head
        {
            let what = "the script".to_owned();
            let line = AtTheLine { boot: composed.boot, job, image, what, idents: Vec::new(), once: None };
            let script = std::mem::take(&mut self.script);
            return self.park(key, line, ParkedAnswer::Script { script, who: Box::new(who) }, turn);
        }
        self.answer_rendered(key, request, TEXT, now, turn);
    }

    /// Answers a script's request once the keeper has.
    fn answer_parked(
        &mut self,
        key: Key,
        request: &Request<'_>,
        parked: Parked,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let local = connection.local;
        let ParkedAnswer::Script { script, who } = parked.what else { return };
        match parked.answer {
            Some(Answer::Go) => self.script = script,
            Some(Answer::Refused(denial)) => {
                script::refused(&who, parked.line.job, &denial, &mut self.script);
            }
            Some(Answer::NotNow) | None => script::not_now(&who, &base_url(local), &mut self.script),
        }
        self.answer_rendered(key, request, TEXT, now, turn);
    }

    /// `/s/TOKEN/local?strategy=WORD`: a way to the local disk came back.
    fn answer_local_back(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Post) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        let Some(strategy) = plan::strategy(request) else {
            return self.answer_error(key, request, Status::BAD_REQUEST, now, turn);
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        let seen = Seen::LocalBack { strategy: strategy.word().to_owned() };
        note(turn.shared, Some(*token), *connection.peer.ip(), seen);
        let answer = plan::answer_text(request, Status::OK, TEXT, 3, &[], now, &mut self.head);
        if answer.body == Body::Inline {
            self.head.extend_from_slice(b"ok\n");
        }
        self.respond(key, !answer.close, turn);
    }

    fn is_parked(&mut self, key: Key) -> bool {
        self.connections.get_mut(key).is_some_and(|connection| connection.parked.is_some())
    }

    /// `/s/TOKEN/answers/NAME`.
    fn answer_answers(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        name: &str,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Head) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let (peer, local) = (*connection.peer.ip(), connection.local);
        let shared = turn.shared;
        let view = shared.keeper.table().view();
        let mut who = Identity { mac: token.mac, ..Identity::default() };
        let standing = view.standing(&who);
        let job = token.job.and_then(|job| view.job(job));
        let image = match job {
            _ if standing.is_some_and(|standing| standing.rejected) => Err(Shut::Rejected),
            _ if token.mac.is_some_and(|mac| shared.policy.load().excludes(mac)) => Err(Shut::Rejected),
            Some(job) => reach::image_of(job, token.boot),
            None => Err(Shut::NoJob),
        };
        let image = match image {
            Ok(image) => image,
            Err(why) => {
                turn.tally.add(Count::TokensShut, 1);
                return self.withhold(key, request, token, name, &why, now, turn);
            }
        };
        let catalog = shared.library.load();
        let answer =
            catalog.image(image).and_then(|image| image.answers.iter().find(|answer| answer.name == name));
        let Some(answer) = answer else {
            return self.answer_error(key, request, Status::NOT_FOUND, now, turn);
        };
        let asking = Asking {
            token: *token,
            from: peer,
            seen: shared.sightings.at(peer).map(|seen| seen.mac),
            // What rules gave is with the machines: only the keeper knows.
            given_before: job.is_some_and(|job| job.given.has(token.boot, name)),
        };
        if let Err(why) = answers::may_have(answer, &asking) {
            return self.withhold(key, request, token, name, &why, now, turn);
        }
        if let Some(known) = shared.presented.of(token.boot) {
            who = known;
        }
        who.address = Some(peer);
        let values = Values {
            who: &who,
            hostname: standing.and_then(|standing| standing.name.as_deref()),
            job: token.job,
            boot: token.boot,
            image,
            base_url: &base_url(local),
            token: &shared.key().sign(token),
        };
        answer.render(&values, &mut self.script);
        let content_type = answer.content_type();
        if request.method == Method::Head {
            return self.answer_rendered(key, request, content_type, now, turn);
        }
        if let (true, Some(job), Some(mac)) = (answer.once, token.job, token.mac) {
            let line = AtTheLine {
                boot: token.boot,
                job,
                image: image.to_owned(),
                what: format!("the answer file {name}"),
                idents: Vec::new(),
                once: Some((mac, name.to_owned())),
            };
            let (text, name) = (std::mem::take(&mut self.script), name.to_owned());
            let what = ParkedAnswer::Once { text, content_type, token: *token, name };
            return self.park(key, line, what, turn);
        }
        note(shared, Some(*token), peer, Seen::AnswerGiven { name: name.to_owned() });
        self.answer_rendered(key, request, content_type, now, turn);
    }

    /// Answers an answer file's request once it is stored that it is given, or that it was before.
    fn answer_once(&mut self, key: Key, request: &Request<'_>, now: SystemTime, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        let Some(parked) = connection.parked.take() else { return };
        let ParkedAnswer::Once { text, content_type, token, name } = parked.what else { return };
        match parked.answer {
            Some(Answer::Go) => {
                self.script = text;
                note(turn.shared, Some(token), peer, Seen::AnswerGiven { name });
                self.answer_rendered(key, request, content_type, now, turn);
            }
            Some(Answer::Refused(why)) => self.withhold(key, request, &token, &name, &why, now, turn),
            // It asks the keeper again for as long as it is parked, so there is no such answer to act on.
            Some(Answer::NotNow) | None => self.close(key, None, turn),
        }
    }

    /// An answer file is not given, and `explain` hears why.
    #[allow(clippy::too_many_arguments, reason = "what is asked, by whom, and why it is not given")]
    fn withhold(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        name: &str,
        why: &dyn std::fmt::Display,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        turn.tally.add(Count::AnswersWithheld, 1);
        tracing::debug!(boot = %token.boot, name, %why, "answer file withheld");
        let name = name.chars().take(NAME_MAX).collect();
        note(turn.shared, Some(*token), peer, Seen::AnswerWithheld { name, reason: why.to_string() });
        self.answer_error(key, request, Status::FORBIDDEN, now, turn);
    }

    /// `/s/TOKEN/confirm` and `/s/TOKEN/failed`: moves the token's own boot forward, and nothing else.
    fn answer_call_back(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        failed: bool,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Post) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        if let Some(job) = token.job {
            let seen = match failed {
                true => Seen::FailureCalled { job, reason: plan::reason(request, REASON_MAX) },
                false => Seen::CalledBack { job },
            };
            note(turn.shared, Some(*token), peer, seen);
        }
        let answer = plan::answer_text(request, Status::OK, TEXT, 3, &[], now, &mut self.head);
        if answer.body == Body::Inline {
            self.head.extend_from_slice(b"ok\n");
        }
        self.respond(key, !answer.close, turn);
    }

    fn answer_file(
        &mut self,
        key: Key,
        request: &Request<'_>,
        served: &Served,
        token: Option<BootToken>,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let opened = match served.open() {
            Ok(opened) => opened,
            Err(error) => {
                turn.tally.add(Count::OpenFailures, 1);
                tracing::debug!(name = served.name, %error, "cannot open");
                return self.answer_error(key, request, Status::NOT_FOUND, now, turn);
            }
        };
        let meta = FileMeta {
            len: opened.len,
            etag: &served.etag,
            modified: served.modified,
            content_type: served.content_type,
        };
        let answer = plan::answer_file(request, &meta, now, &mut self.head);
        let (end, body_len) = match &answer.body {
            Body::Range { offset, len } => (offset + len, *len),
            Body::Multi(_) => (0, answer.body_len),
            Body::None | Body::Inline => return self.respond(key, !answer.close, turn),
        };
        let line = token.and_then(|token| line_of(&token, served, turn.shared));
        let held_from = opened.len.saturating_sub(HELD_LEN);
        let held = line.is_some()
            && match &answer.body {
                Body::Range { offset, len } => offset + len > held_from,
                Body::Multi(_) => true,
                Body::None | Body::Inline => false,
            };
        if let Body::Range { offset, len } = &answer.body
            && *len < INLINE_MAX
            && !held
        {
            let start = self.head.len();
            self.head.resize(start + *len as usize, 0);
            if opened.file.read_exact_at(&mut self.head[start..], *offset).is_err() {
                turn.tally.add(Count::FilesChanged, 1);
                tracing::warn!(file = served.name, "file is shorter than it was when it was published");
                return self.close(key, None, turn);
            }
        }
        let inline = body_len < INLINE_MAX && matches!(answer.body, Body::Range { .. }) && !held;
        self.respond(key, !answer.close, turn);
        let Some(connection) = self.connections.get_mut(key) else { return };
        match answer.body {
            Body::Range { .. } if inline => {}
            Body::Range { offset, len } => {
                let before = if held { held_from } else { u64::MAX };
                push_file(&mut connection.out.pieces, offset, offset + len, before);
            }
            Body::Multi(pieces) => {
                let mut before = if held { held_from } else { u64::MAX };
                for piece in pieces {
                    match piece {
                        plan::Piece::Text(bytes) => {
                            connection.out.pieces.push_back(Piece::Text { bytes, sent: 0 });
                        }
                        plan::Piece::File { offset, len } => {
                            // Once for the whole response: what follows waits with it.
                            if push_file(&mut connection.out.pieces, offset, offset + len, before) {
                                before = u64::MAX;
                            }
                        }
                    }
                }
            }
            Body::None | Body::Inline => {}
        }
        connection.line = if held { line.map(Box::new) } else { None };
        connection.out.file = Some(opened);
        let peer = *connection.peer.ip();
        let subject = match served.image() {
            None => Subject::Loader { name: served.name.clone() },
            Some(image) => Subject::File {
                boot: token,
                image: image.to_owned(),
                file: served.name.get(image.len() + 1..).unwrap_or_default().to_owned(),
                end,
                len: served.len,
            },
        };
        if let Subject::File { boot, image, file, .. } = &subject {
            let job = boot.and_then(|token| token.job);
            let seen = Seen::FileStarted { job, image: image.clone(), file: file.clone(), over: Over::Http };
            note(turn.shared, *boot, peer, seen);
        }
        connection.delivery = Some(Box::new(Delivery {
            subject,
            bytes: body_len,
            peer,
            progress_at: turn.now + PROGRESS_EVERY,
        }));
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
                    connection.deadline = turn.now + SEND_PATIENCE;
                    if connection.doomed {
                        self.remove(key, turn);
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
        self.remove(key, turn);
    }

    fn remove(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(mut connection) = self.connections.remove(key) else { return };
        if !connection.out.is_empty() {
            self.busy -= 1;
        }
        connection.out.abandon(&mut self.pipes);
        let fd = connection.stream.as_raw_fd();
        // Closing the descriptor removes it from the poll as well.
        let _ = turn.registry.deregister(&mut SourceFd(&fd));
    }

    /// The server stops: every connection ends.
    pub(super) fn close_all(&mut self) {
        for key in self.connections.keys() {
            if let Some(connection) = self.connections.get_mut(key) {
                let _ = connection.stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

impl Subject {
    fn name(&self) -> &str {
        match self {
            Self::Loader { name } => name,
            Self::File { file, .. } => file,
        }
    }

    /// Whether this completes what the image's script makes a machine fetch.
    fn is_last(&self, shared: &Shared) -> bool {
        let Self::File { image, file, end, len, .. } = self else { return false };
        let catalog = shared.library.load();
        catalog.image(image).and_then(last_file).is_some_and(|last| last.is_done_by(file, end == len))
    }

    fn token(&self) -> Option<BootToken> {
        match self {
            Self::Loader { .. } => None,
            Self::File { boot, .. } => *boot,
        }
    }
}

impl Delivery {
    fn goes_on(&self, shared: &Shared, left: u64) {
        let Subject::File { boot, image, file, .. } = &self.subject else { return };
        let seen = Seen::FileProgress {
            job: boot.and_then(|token| token.job),
            image: image.clone(),
            file: file.clone(),
            bytes: self.bytes.saturating_sub(left),
            over: Over::Http,
        };
        note(shared, *boot, self.peer, seen);
    }

    /// Every byte is with the kernel, and will be with the machine whether it says so or not.
    fn left(&self, shared: &Shared) {
        if let Subject::File { boot: Some(token), image, file, .. } = &self.subject
            && self.subject.is_last(shared)
        {
            let (image, file) = (image.clone(), file.clone());
            let seen = Seen::LastPieceSent { job: token.job, image, file, over: Over::Http };
            note(shared, Some(*token), self.peer, seen);
        }
    }

    fn done(self, shared: &Shared) {
        let last = self.subject.is_last(shared);
        let boot = self.subject.token();
        let seen = match self.subject {
            Subject::Loader { name } => Seen::LoaderFetched { name, bytes: self.bytes, over: Over::Http },
            Subject::File { boot, image, file, .. } => {
                let job = boot.and_then(|token| token.job);
                Seen::FileDone { job, image, file, bytes: self.bytes, last, over: Over::Http }
            }
        };
        note(shared, boot, self.peer, seen);
    }

    fn failed(self, shared: &Shared, reason: &str, missing: u64) {
        let boot = self.subject.token();
        let seen = Seen::TransferFailed {
            job: boot.and_then(|token| token.job),
            file: self.subject.name().to_owned(),
            bytes: self.bytes.saturating_sub(missing),
            reason: reason.to_owned(),
            over: Over::Http,
        };
        note(shared, boot, self.peer, seen);
    }
}

/// Whether a token opens a file. Loaders are open to anyone who is not refused.
fn opens(token: &BootToken, served: &Served, shared: &Shared) -> Result<(), Shut> {
    let view = shared.keeper.table().view();
    let who = Identity { mac: token.mac, ..Identity::default() };
    let rejected = view.standing(&who).is_some_and(|standing| standing.rejected)
        || token.mac.is_some_and(|mac| shared.policy.load().excludes(mac));
    let catalog = shared.library.load();
    match served.image() {
        None if rejected => Err(Shut::Rejected),
        None => Ok(()),
        Some(name) => {
            let image = catalog.image(name).ok_or(Shut::OtherImage)?;
            reach::opens(token, token.job.and_then(|job| view.job(job)), rejected, image)
        }
    }
}

/// The point of no return that the end of a file is, if it is one under this token.
fn line_of(token: &BootToken, served: &Served, shared: &Shared) -> Option<AtTheLine> {
    let (job, name) = (token.job?, served.image()?);
    let file = served.name.get(name.len() + 1..)?;
    let catalog = shared.library.load();
    let image = catalog.image(name)?;
    (barrier(image) == Some(Barrier::File(file))).then(|| AtTheLine {
        boot: token.boot,
        job,
        image: name.to_owned(),
        what: format!("the last of {file}"),
        idents: Vec::new(),
        once: None,
    })
}

/// Queues a range of a file; what lies from `held_from` on waits behind [`Piece::Held`]. True when some does.
fn push_file(pieces: &mut VecDeque<Piece>, at: u64, end: u64, held_from: u64) -> bool {
    if end <= held_from {
        pieces.push_back(Piece::File { at, end });
        return false;
    }
    if at < held_from {
        pieces.push_back(Piece::File { at, end: held_from });
    }
    pieces.push_back(Piece::Held);
    pieces.push_back(Piece::File { at: at.max(held_from), end });
    true
}

fn note(shared: &Shared, boot: Option<BootToken>, peer: Ipv4Addr, seen: Seen) {
    let mut evidence = Evidence::new(SystemTime::now(), seen);
    evidence.mac =
        boot.and_then(|token| token.mac).or_else(|| shared.sightings.at(peer).map(|seen| seen.mac));
    evidence.boot = boot.map(|token| token.boot);
    evidence.address = Some(peer);
    shared.note(evidence);
}

fn base_url(local: SocketAddrV4) -> String {
    format!("http://{}:{}", local.ip(), local.port())
}

fn count_moved(tally: &Tally, moved: &Moved) {
    for (count, bytes) in [
        (Count::HttpSplice, moved.splice),
        (Count::HttpSendfile, moved.sendfile),
        (Count::HttpRing, moved.ring),
        (Count::HttpText, moved.text),
    ] {
        if bytes > 0 {
            tally.add(count, bytes);
        }
    }
}

//! One HTTP exchange after another on one connection, never waiting: what the HTTP load and the storm are made of.

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddrV4;
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use crate::wire::http::{BodyLength, HEAD_MAX, ResponseHead, parse_response_head};

/// linux/socket.h: on TCP, bytes are thrown away without being copied (linux tcp(7)).
const MSG_TRUNC: i32 = 0x20;
/// Taken with the head; a script's whole answer, as a rule.
const HEAD_READ: usize = 2048;
/// Bytes thrown away with one call.
pub(super) const DISCARD_LEN: usize = 4 << 20;
/// Bytes read with one call.
pub(super) const READ_LEN: usize = 64 * 1024;
/// Bytes taken before others have their turn.
const QUANTUM: u64 = 8 << 20;

/// What all exchanges of one thread share.
pub(super) struct Scratch {
    discard: Box<[MaybeUninit<u8>]>,
    read: Box<[u8]>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { discard: Box::new_uninit_slice(DISCARD_LEN), read: vec![0; READ_LEN].into_boxed_slice() }
    }
}

/// Part of an answer.
pub(super) enum Part<'a> {
    Head(&'a ResponseHead<'a>),
    /// Bytes of the body, read.
    Bytes(&'a [u8]),
    /// So many bytes of the body, not looked at.
    Discarded(u64),
}

/// How far an exchange has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// Until the next readiness event.
    Waiting,
    /// The quantum is used up; to be driven again without an event.
    Again,
    /// The answer is whole.
    Answered {
        /// Another request may follow on this connection.
        keep_alive: bool,
    },
    /// The connection is of no more use.
    Failed(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Connecting,
    Sending,
    Head,
    Body {
        left: u64,
        until_close: bool,
        keep_alive: bool,
    },
    /// The answer is whole; the server is to close.
    Closing,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Fetch {
    stream: TcpStream,
    state: State,
    /// The request.
    pub(super) out: Vec<u8>,
    sent: usize,
    head: Vec<u8>,
    head_request: bool,
    /// When something last came or went.
    pub(super) heard: Instant,
}

impl Fetch {
    /// Begins to connect; the request is `out`.
    pub(super) fn connect(
        server: SocketAddrV4,
        registry: &Registry,
        token: Token,
        out: Vec<u8>,
        now: Instant,
    ) -> io::Result<Self> {
        let mut stream = TcpStream::connect(server.into())?;
        // A request leaves at once, whatever is under way.
        let _ = stream.set_nodelay(true);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            stream,
            state: State::Connecting,
            out,
            sent: 0,
            head: Vec::with_capacity(HEAD_READ),
            head_request: false,
            heard: now,
        })
    }

    /// Sends what now stands in `out`, on a connection whose last answer was whole.
    pub(super) fn ask(&mut self) {
        self.state = State::Sending;
        self.sent = 0;
        self.head.clear();
    }

    /// The answer to this request has no body.
    pub(super) fn expect_no_body(&mut self) {
        self.head_request = true;
    }

    /// After the last answer: wait for the server's end, so that its side keeps the connection's remains.
    pub(super) fn await_close(&mut self) {
        self.state = State::Closing;
    }

    /// Goes as far as it can. `read_up_to`: bodies no longer than this are read, others thrown away unread.
    pub(super) fn drive(
        &mut self,
        now: Instant,
        read_up_to: u64,
        scratch: &mut Scratch,
        mut on: impl FnMut(Part<'_>),
    ) -> Progress {
        let mut quantum = QUANTUM;
        loop {
            match self.state {
                State::Connecting => match self.stream.take_error() {
                    Ok(None) if self.stream.peer_addr().is_ok() => {
                        self.heard = now;
                        self.ask();
                    }
                    Ok(None) => return Progress::Waiting,
                    Ok(Some(error)) | Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        return Progress::Failed("connection refused");
                    }
                    _ => return Progress::Failed("no connection"),
                },
                State::Sending => {
                    match self.stream.write(self.out.get(self.sent..).unwrap_or_default()) {
                        Ok(count) => self.sent += count,
                        Err(error) => return wait_or_fail(&error),
                    }
                    if self.sent >= self.out.len() {
                        self.state = State::Head;
                        // The answer's arrival is an event of its own; looking for it now would mostly be in vain.
                        return Progress::Waiting;
                    }
                }
                State::Head => {
                    let start = self.head.len();
                    let room = match read_into(&self.stream, &mut self.head) {
                        Ok(0) if start == 0 => return Progress::Failed("connection ended before an answer"),
                        Ok(0) => return Progress::Failed("connection ended in an answer's head"),
                        Ok(count) => count,
                        Err(error) => return wait_or_fail(&error),
                    };
                    self.heard = now;
                    let head = match parse_response_head(&self.head) {
                        Ok(Some(head)) => head,
                        Ok(None) if self.head.len() < HEAD_MAX && room > 0 => continue,
                        _ => return Progress::Failed("the answer is no HTTP"),
                    };
                    on(Part::Head(&head));
                    let (left, until_close) = match head.body(self.head_request) {
                        BodyLength::None => (0, false),
                        BodyLength::Exact(len) => (len, false),
                        BodyLength::UntilClose => (u64::MAX, true),
                        BodyLength::Chunked => return Progress::Failed("a chunked answer"),
                    };
                    let keep_alive = head.keep_alive && !until_close;
                    let rest = self.head.get(head.len..).unwrap_or_default();
                    if rest.len() as u64 > left {
                        return Progress::Failed("more body than announced");
                    }
                    if !rest.is_empty() {
                        on(if left <= read_up_to || until_close {
                            Part::Bytes(rest)
                        } else {
                            Part::Discarded(rest.len() as u64)
                        });
                    }
                    self.state = State::Body { left: left - rest.len() as u64, until_close, keep_alive };
                }
                State::Body { left: 0, keep_alive, .. } => return Progress::Answered { keep_alive },
                State::Body { left, until_close, keep_alive } => {
                    if quantum == 0 {
                        return Progress::Again;
                    }
                    let max = left.min(quantum).min(DISCARD_LEN as u64) as usize;
                    let socket = SockRef::from(&self.stream);
                    let (taken, asked) = if left <= read_up_to || until_close {
                        let asked = max.min(READ_LEN);
                        let room = &mut scratch.read[..asked];
                        let taken = io::Read::read(&mut &self.stream, room);
                        if let Ok(taken) = taken
                            && taken > 0
                        {
                            on(Part::Bytes(&room[..taken]));
                        }
                        (taken, asked)
                    } else {
                        let taken = socket.recv_with_flags(&mut scratch.discard[..max], MSG_TRUNC);
                        if let Ok(taken) = taken
                            && taken > 0
                        {
                            on(Part::Discarded(taken as u64));
                        }
                        (taken, max)
                    };
                    match taken {
                        Ok(0) if until_close => return Progress::Answered { keep_alive: false },
                        Ok(0) => return Progress::Failed("connection ended in an answer's body"),
                        Ok(taken) => {
                            self.heard = now;
                            let taken = taken as u64;
                            quantum = quantum.saturating_sub(taken);
                            self.state =
                                State::Body { left: left - taken.min(left), until_close, keep_alive };
                            // Less than asked for: the queue is empty, and what comes next is an event.
                            if (taken as usize) < asked && left > taken {
                                return Progress::Waiting;
                            }
                        }
                        Err(error) => return wait_or_fail(&error),
                    }
                }
                State::Closing => {
                    let mut rest = [0; 64];
                    return match io::Read::read(&mut &self.stream, &mut rest) {
                        Ok(0) => Progress::Answered { keep_alive: false },
                        Ok(_) => Progress::Failed("bytes after the answer"),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Waiting,
                        // A reset after the answer is an end too.
                        Err(_) => Progress::Answered { keep_alive: false },
                    };
                }
            }
        }
    }

    /// True once the answer is whole and only the close is awaited.
    pub(super) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }
}

fn wait_or_fail(error: &io::Error) -> Progress {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected => Progress::Waiting,
        io::ErrorKind::Interrupted => Progress::Again,
        io::ErrorKind::ConnectionReset => Progress::Failed("connection reset"),
        _ => Progress::Failed("connection broke"),
    }
}

/// Appends what is there, at most [`HEAD_READ`] bytes.
fn read_into(stream: &TcpStream, head: &mut Vec<u8>) -> io::Result<usize> {
    let start = head.len();
    head.resize(start + HEAD_READ, 0);
    let taken = io::Read::read(&mut &*stream, &mut head[start..]);
    head.truncate(start + *taken.as_ref().unwrap_or(&0));
    taken
}

//! An impaired way to a server elsewhere, without root: a relay on loopback that loads are pointed at.
//!
//! UDP is relayed datagram by datagram, so delay, loss, reordering and a slow link are what they are on a wire; a client's
//! transfer ID reaches the server as a socket of its own. TCP is relayed as a stream: it can be delayed and slowed down,
//! with a window's worth of bytes under way, but not lost or reordered, because TCP on both sides of the relay would mend
//! that before anybody saw it. For that, and for more than some ten thousand packets a second, there is
//! [`bridge`](super::impair::bridge).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};

use super::impair::{Fate, Impairment, Line};

/// Clients at once; what comes beyond is dropped.
const SESSIONS_MAX: usize = 4096;
const CONNECTIONS_MAX: u32 = 256;
/// Datagrams under way.
const HELD_MAX: usize = 1 << 16;
/// Bytes of one direction of a connection under way: iPXE's receive window.
const STREAM_HELD_MAX: usize = 2 << 20;
const CHUNK: usize = 64 << 10;
const DATAGRAM_MAX: usize = 65_535;
/// What UDP, IP and Ethernet add.
const UDP_OVERHEAD: usize = 42;
/// How often it is looked whether to end.
const LOOK: Duration = Duration::from_millis(20);
/// A poll's grain: what is due sooner is waited for awake.
const GRAIN: Duration = Duration::from_millis(1);
/// RFC 1350 §5: requests go to the server's own port, everything else to the transfer's.
const RRQ: u8 = 1;
const WRQ: u8 = 2;
const MAIN: Token = Token(0);

/// A running relay. It ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddrV4,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Relays TFTP to `server`.
    ///
    /// # Errors
    /// No socket.
    pub fn tftp(server: SocketAddrV4, impairment: Impairment) -> io::Result<Self> {
        let main = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        main.set_nonblocking(true)?;
        let addr = local(main.local_addr()?)?;
        let mut datagrams = Datagrams::new(UdpSocket::from_std(main), server, impairment)?;
        Self::start("relay", addr, move |stop| datagrams.run(stop))
    }

    /// Relays TCP to `server`: delay and rate of `impairment`, nothing else.
    ///
    /// # Errors
    /// No socket; `InvalidInput` when loss or reordering is asked for.
    pub fn tcp(server: SocketAddrV4, impairment: Impairment) -> io::Result<Self> {
        if impairment.loss > 0.0 || impairment.reorder > 0.0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a relay cannot take packets out of TCP: `bench wire` between two namespaces can, as `bench compare --work \
                 network` does",
            ));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = local(listener.local_addr()?)?;
        Self::start("relay", addr, move |stop| accept(&listener, server, impairment, stop))
    }

    fn start(
        name: &str,
        addr: SocketAddrV4,
        work: impl FnOnce(&Arc<AtomicBool>) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&flag))?;
        Ok(Self { addr, stop, thread: Some(thread) })
    }

    /// What loads are pointed at instead of the server.
    pub fn addr(&self) -> SocketAddrV4 {
        self.addr
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the relay has been printed; the load has failed by it already.
            let _ = thread.join();
        }
    }
}

fn local(addr: SocketAddr) -> io::Result<SocketAddrV4> {
    match addr {
        SocketAddr::V4(addr) => Ok(addr),
        SocketAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// One client of the UDP relay.
struct Session {
    client: SocketAddr,
    upstream: UdpSocket,
    /// The server's end of the transfer, once it has answered.
    peer: Option<SocketAddr>,
    /// That of the transfer before, whose stragglers are no answers to the next request.
    former: Option<SocketAddr>,
}

/// A datagram under way, ordered by the time it is due.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Duration,
    number: u64,
    session: usize,
    /// To the server's end there; `None`: to the client.
    to: Option<SocketAddr>,
    bytes: Vec<u8>,
}

struct Datagrams {
    poll: Poll,
    main: UdpSocket,
    server: SocketAddr,
    lines: [Line; 2],
    sessions: Vec<Session>,
    by_client: HashMap<SocketAddr, usize>,
    held: BinaryHeap<Reverse<Held>>,
    number: u64,
    buffer: Vec<u8>,
    start: Instant,
}

impl Datagrams {
    fn new(mut main: UdpSocket, server: SocketAddrV4, impairment: Impairment) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut main, MAIN, Interest::READABLE)?;
        Ok(Self {
            poll,
            main,
            server: server.into(),
            lines: [Line::new(impairment, 0), Line::new(impairment, 1)],
            sessions: Vec::new(),
            by_client: HashMap::new(),
            held: BinaryHeap::new(),
            number: 0,
            buffer: vec![0; DATAGRAM_MAX],
            start: Instant::now(),
        })
    }

    fn run(&mut self, stop: &AtomicBool) {
        let mut events = Events::with_capacity(256);
        while !stop.load(Ordering::Relaxed) {
            let due = self.held.peek().map(|Reverse(held)| held.due.saturating_sub(self.start.elapsed()));
            let patience = match due {
                Some(due) if due < GRAIN => Duration::ZERO,
                Some(due) => due.min(LOOK),
                None => LOOK,
            };
            if let Err(error) = self.poll.poll(&mut events, Some(patience))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return;
            }
            for event in &events {
                match event.token() {
                    MAIN => while self.client_sent().is_ok() {},
                    Token(token) => while self.server_sent(token - 1).is_ok() {},
                }
            }
            self.deliver();
        }
    }

    /// An error is that there is no more (or that the last send was refused, which is no matter of this datagram's).
    fn client_sent(&mut self) -> io::Result<()> {
        let (len, client) = self.main.recv_from(&mut self.buffer)?;
        let session = match self.by_client.get(&client) {
            Some(session) => *session,
            None if self.sessions.len() >= SESSIONS_MAX => return Ok(()),
            None => {
                let mut upstream = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0).into())?;
                let session = self.sessions.len();
                self.poll.registry().register(&mut upstream, Token(session + 1), Interest::READABLE)?;
                self.sessions.push(Session { client, upstream, peer: None, former: None });
                self.by_client.insert(client, session);
                session
            }
        };
        let at = &mut self.sessions[session];
        let to = if matches!(self.buffer[..len], [0, RRQ | WRQ, ..]) {
            at.former = at.peer.take().or(at.former);
            Some(self.server)
        } else {
            at.peer
        };
        if to.is_some() {
            self.send(0, session, to, len);
        }
        Ok(())
    }

    fn server_sent(&mut self, session: usize) -> io::Result<()> {
        let Some(at) = self.sessions.get_mut(session) else { return Err(io::ErrorKind::NotFound.into()) };
        let (len, from) = at.upstream.recv_from(&mut self.buffer)?;
        let is_new = at.peer.is_none() && at.former != Some(from) && from.ip() == self.server.ip();
        if is_new {
            at.peer = Some(from);
        }
        if at.peer == Some(from) {
            self.send(1, session, None, len);
        }
        Ok(())
    }

    fn send(&mut self, direction: usize, session: usize, to: Option<SocketAddr>, len: usize) {
        let fate = self.lines[direction].send(self.start.elapsed(), len + UDP_OVERHEAD);
        if let Fate::At(due) = fate
            && self.held.len() < HELD_MAX
        {
            self.number += 1;
            let bytes = self.buffer[..len].to_vec();
            self.held.push(Reverse(Held { due, number: self.number, session, to, bytes }));
        }
    }

    fn deliver(&mut self) {
        while let Some(Reverse(next)) = self.held.peek()
            && next.due <= self.start.elapsed()
            && let Some(Reverse(next)) = self.held.pop()
        {
            let session = &self.sessions[next.session];
            // A refused datagram is a lost one.
            let _ = match next.to {
                Some(to) => session.upstream.send_to(&next.bytes, to),
                None => self.main.send_to(&next.bytes, session.client),
            };
        }
    }
}

/// Two threads for each direction of each connection: a relay is there to be slow.
fn accept(listener: &TcpListener, server: SocketAddrV4, impairment: Impairment, stop: &Arc<AtomicBool>) {
    let lines = [0, 1].map(|direction| Arc::new(Mutex::new(Line::new(impairment, direction))));
    let (start, running) = (Instant::now(), Arc::new(AtomicU32::new(0)));
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(GRAIN);
            continue;
        };
        if running.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        let Ok(upstream) = TcpStream::connect(server) else { continue };
        let pair = || Some((client.try_clone().ok()?, upstream.try_clone().ok()?));
        let (Some((client_in, server_out)), Some((client_out, server_in))) = (pair(), pair()) else {
            continue;
        };
        running.fetch_add(1, Ordering::Relaxed);
        for (from, to, line) in [(client_in, server_out, &lines[0]), (server_in, client_out, &lines[1])] {
            let (line, stop, running) = (Arc::clone(line), Arc::clone(stop), Arc::clone(&running));
            let is_last = Arc::ptr_eq(&line, &lines[1]);
            std::thread::spawn(move || {
                stream(&from, &to, &line, start, &stop);
                let _ = to.shutdown(Shutdown::Write);
                if is_last {
                    let _ = from.shutdown(Shutdown::Both);
                    running.fetch_sub(1, Ordering::Relaxed);
                }
            });
        }
    }
}

/// One direction of one connection, until either end closes.
fn stream(from: &TcpStream, to: &TcpStream, line: &Mutex<Line>, start: Instant, stop: &AtomicBool) {
    let prepared = from.set_nonblocking(false).and_then(|()| to.set_nonblocking(false));
    let prepared =
        prepared.and_then(|()| to.set_nodelay(true)).and_then(|()| from.set_read_timeout(Some(LOOK)));
    if prepared.is_err() {
        return;
    }
    let (sender, receiver) = crossbeam_channel::bounded::<(Duration, Vec<u8>)>(STREAM_HELD_MAX / CHUNK);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut to = to;
            for (due, bytes) in receiver {
                std::thread::sleep(due.saturating_sub(start.elapsed()));
                if to.write_all(&bytes).is_err() {
                    // The reader sees it by the channel's end.
                    return;
                }
            }
        });
        let (mut from, mut buffer) = (from, vec![0; CHUNK]);
        while !stop.load(Ordering::Relaxed) {
            let len = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    continue;
                }
                Err(_) => break,
            };
            let mut fate = Fate::Overflow;
            // What finds the slow link's queue full waits: a stream loses nothing.
            while fate == Fate::Overflow && !stop.load(Ordering::Relaxed) {
                let mut line = line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                fate = line.send(start.elapsed(), len);
                drop(line);
                if fate == Fate::Overflow {
                    std::thread::sleep(GRAIN);
                }
            }
            let Fate::At(due) = fate else { break };
            if sender.send((due, buffer[..len].to_vec())).is_err() {
                break;
            }
        }
        drop(sender);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn slow(rtt_ms: u64) -> Impairment {
        Impairment { rtt: Duration::from_millis(rtt_ms), ..Impairment::default() }
    }

    fn socket() -> (std::net::UdpSocket, SocketAddrV4) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let addr = local(socket.local_addr().unwrap()).unwrap();
        (socket, addr)
    }

    fn received(socket: &std::net::UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 600];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        (buffer[..len].to_vec(), from)
    }

    #[test]
    fn a_transfer_keeps_its_ends_through_the_relay_and_takes_the_round_trip() {
        let (server, server_addr) = socket();
        let relay = Relay::tftp(server_addr, slow(20)).unwrap();
        let (client, _) = socket();
        let start = Instant::now();
        client.send_to(b"\0\x01file\0octet\0", relay.addr()).unwrap();
        let (request, from) = received(&server);
        assert_eq!(request, b"\0\x01file\0octet\0");
        // The server answers from a port of the transfer's own, and hears the ACK there.
        let (transfer, _) = socket();
        transfer.send_to(b"\0\x03\0\x01data", from).unwrap();
        let (data, tid) = received(&client);
        assert_eq!(data, b"\0\x03\0\x01data");
        assert!(start.elapsed() >= Duration::from_millis(20), "{:?}", start.elapsed());
        client.send_to(b"\0\x04\0\x01", tid).unwrap();
        assert_eq!(received(&transfer), (b"\0\x04\0\x01".to_vec(), from));
        // A straggler of the former transfer is no answer to the next request.
        client.send_to(b"\0\x01next\0octet\0", relay.addr()).unwrap();
        assert_eq!(received(&server).0, b"\0\x01next\0octet\0");
        transfer.send_to(b"\0\x03\0\x01late", from).unwrap();
        let (next, _) = socket();
        next.send_to(b"\0\x03\0\x01good", from).unwrap();
        assert_eq!(received(&client).0, b"\0\x03\0\x01good");
    }

    #[test]
    fn everything_lost_is_nothing_received() {
        let (server, server_addr) = socket();
        let relay = Relay::tftp(server_addr, Impairment { loss: 1.0, ..slow(0) }).unwrap();
        let (client, _) = socket();
        client.send_to(b"\0\x01file\0octet\0", relay.addr()).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(server.recv_from(&mut [0; 600]).is_err());
    }

    #[test]
    fn a_stream_comes_whole_late_and_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::tcp(local(listener.local_addr().unwrap()).unwrap(), slow(20)).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 4];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&vec![7; 3 << 20]).unwrap();
            question
        });
        let start = Instant::now();
        let mut client = TcpStream::connect(relay.addr()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"what").unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert!(answer.len() == 3 << 20 && answer.iter().all(|byte| *byte == 7));
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(&server.join().unwrap(), b"what");
    }

    #[test]
    fn loss_inside_tcp_is_refused_with_the_way_out() {
        let error =
            Relay::tcp("127.0.0.1:1".parse().unwrap(), Impairment { loss: 0.1, ..slow(1) }).unwrap_err();
        assert!(error.to_string().contains("bench wire"));
    }
}

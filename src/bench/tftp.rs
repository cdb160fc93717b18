//! TFTP load: many clients that fetch one file again and again, each with options, windows, timers and retries as real
//! ones have them.
//!
//! Payload is counted and not read, unless it is to be checked. Then several blocks that the kernel hands over as one
//! are taken to be consecutive, which they are when a server sends a window with one call.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::hosts::{Arrival, LoadError, Out, Port, Way};
use super::result::{Point, Times, jain};
use super::{Meter, TICK};
use crate::wire::tftp::{
    BLKSIZE_DEFAULT, BLKSIZE_MAX, BLKSIZE_MIN, ErrorCode, Mode, Options, Packet, emit_ack, emit_error,
    emit_rrq,
};

/// First resend; doubles.
const RESEND: Duration = Duration::from_millis(1000);
/// Sends of one packet before a client gives up.
const TRIES: u32 = 5;
/// A client that failed asks again after this.
const PAUSE: Duration = Duration::from_millis(500);
/// The same acknowledgement is not sent more often.
const REPEAT: Duration = Duration::from_millis(10);
/// Clients that start in one turn: the others' answers are looked at in between.
const STARTS_PER_TURN: usize = 64;
/// Longest name asked for.
pub const NAME_LEN_MAX: usize = 480;
const REQUEST_LEN_MAX: usize = 600;

/// What every client does.
#[derive(Clone, Debug)]
pub struct TftpLoad {
    /// Server.
    pub server: SocketAddrV4,
    /// File asked for.
    pub file: String,
    /// Block size asked for; 512 asks for none.
    pub blksize: u16,
    /// Window size asked for; 1 asks for none.
    pub windowsize: u16,
    /// Ask for the size too.
    pub tsize: bool,
    /// Clients at once.
    pub clients: u32,
    /// Measured for this long.
    pub time: Duration,
    /// Each client ends after so many files.
    pub files_max: Option<u32>,
    /// What every file must be.
    pub check: Option<Check>,
    /// How clients reach the server.
    pub way: Way,
}

/// A file's length and BLAKE3 hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Bytes.
    pub len: u64,
    /// Hash.
    pub hash: [u8; 32],
}

impl Check {
    /// Of a file's content.
    pub fn of(content: &[u8]) -> Self {
        Self { len: content.len() as u64, hash: *blake3::hash(content).as_bytes() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Waits for its next start.
    Paused,
    /// RRQ sent.
    Asked,
    Receiving,
    /// Does no more.
    Over,
}

/// What to send after an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Nothing,
    /// ACK of this block.
    Ack(u64),
    /// The last ACK; the file is whole.
    Complete(u64),
    /// Given up.
    Failed(Reason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    /// Nobody answered the request.
    NoAnswer,
    /// The server fell silent.
    Silence,
    /// ERROR.
    Error(u16),
    /// An OACK of what was not asked for, or of more.
    BadOack,
    /// A block longer than agreed.
    LongBlock,
    /// Not the file it should be.
    WrongContent,
}

impl Reason {
    fn word(self) -> String {
        match self {
            Self::NoAnswer => "no answer to the request".into(),
            Self::Silence => "silence in mid-download".into(),
            Self::Error(code) => format!("TFTP error {code}"),
            Self::BadOack => "malformed OACK".into(),
            Self::LongBlock => "block longer than agreed".into(),
            Self::WrongContent => "wrong content".into(),
        }
    }
}

/// One client.
#[derive(Debug)]
struct Client {
    phase: Phase,
    port: Option<u16>,
    peer: Option<SocketAddrV4>,
    blksize: u16,
    windowsize: u64,
    /// Blocks received without a gap.
    have: u64,
    acked: u64,
    /// This window's gap has been told.
    told: bool,
    acked_at: Instant,
    asked_at: Instant,
    deadline: Instant,
    tries: u32,
    /// Of this file, and of all.
    file_bytes: u64,
    bytes: u64,
    files: u32,
    hash: Option<Box<blake3::Hasher>>,
}

impl Client {
    fn new(now: Instant, checks: bool) -> Self {
        Self {
            phase: Phase::Paused,
            port: None,
            peer: None,
            blksize: BLKSIZE_DEFAULT,
            windowsize: 1,
            have: 0,
            acked: 0,
            told: false,
            acked_at: now,
            asked_at: now,
            deadline: now,
            tries: 0,
            file_bytes: 0,
            bytes: 0,
            files: 0,
            hash: checks.then(Box::default),
        }
    }

    fn begin(&mut self, now: Instant, port: u16) {
        self.phase = Phase::Asked;
        self.port = Some(port);
        self.peer = None;
        (self.blksize, self.windowsize) = (BLKSIZE_DEFAULT, 1);
        (self.have, self.acked, self.told) = (0, 0, false);
        self.file_bytes = 0;
        (self.asked_at, self.deadline, self.tries) = (now, now + RESEND, 1);
        if let Some(hash) = &mut self.hash {
            hash.reset();
        }
    }

    /// A datagram or a run of them; `first` is set when it is the server's first answer.
    fn handle(
        &mut self,
        now: Instant,
        asked: &Options,
        check: Option<&Check>,
        arrival: &Arrival<'_>,
    ) -> Step {
        if !matches!(self.phase, Phase::Asked | Phase::Receiving)
            || self.port != Some(arrival.port)
            || self.peer.is_some_and(|peer| peer != arrival.from)
        {
            return Step::Nothing;
        }
        match Packet::parse(arrival.head) {
            Ok(Packet::Data(block, _)) => {
                self.phase = Phase::Receiving;
                self.peer = Some(arrival.from);
                self.data(now, block, check, arrival)
            }
            Ok(Packet::Oack(granted)) => {
                self.peer = Some(arrival.from);
                self.oack(now, asked, &granted)
            }
            Ok(Packet::Error(code, _)) => Step::Failed(Reason::Error(code.code())),
            _ => Step::Nothing,
        }
    }

    fn oack(&mut self, now: Instant, asked: &Options, granted: &Options) -> Step {
        // EDK2's rule (Mtftp4Option.c): nothing unasked, nothing larger.
        let more =
            |granted: Option<u16>, asked: Option<u16>| granted.is_some_and(|g| asked.is_none_or(|a| g > a));
        if more(granted.blksize, asked.blksize)
            || more(granted.windowsize, asked.windowsize)
            || (granted.tsize.is_some() && asked.tsize.is_none())
        {
            return Step::Failed(Reason::BadOack);
        }
        if self.phase == Phase::Asked {
            self.blksize = granted.blksize.unwrap_or(BLKSIZE_DEFAULT);
            self.windowsize = u64::from(granted.windowsize.unwrap_or(1));
            self.phase = Phase::Receiving;
        }
        // Said again when the OACK comes again: our ACK 0 was lost.
        if self.have == 0 { self.ack(now) } else { Step::Nothing }
    }

    fn data(&mut self, now: Instant, first: u16, check: Option<&Check>, arrival: &Arrival<'_>) -> Step {
        let full = usize::from(self.blksize) + 4;
        let segment = if arrival.segment == 0 { full } else { arrival.segment };
        if segment > full || segment < 4 || arrival.len < 4 {
            return Step::Failed(Reason::LongBlock);
        }
        let mut step = Step::Nothing;
        let mut at = 0;
        let mut number = first;
        while at < arrival.len {
            let len = segment.min(arrival.len - at);
            // Where everything is there to be read, every block says its own number.
            let own = arrival.head.get(at..at + len);
            if at > 0 {
                number = match own.map(Packet::parse) {
                    Some(Ok(Packet::Data(number, _))) => number,
                    Some(_) => return step,
                    None => number.wrapping_add(1),
                };
            }
            let payload = own.and_then(|own| own.get(4..)).unwrap_or_default();
            match self.block(now, number, (len - 4) as u64, payload, check) {
                Step::Nothing => {}
                other => step = other,
            }
            if matches!(step, Step::Complete(_) | Step::Failed(_)) {
                return step;
            }
            at += len;
            if arrival.len - at < 4 {
                break;
            }
        }
        step
    }

    fn block(&mut self, now: Instant, number: u16, len: u64, payload: &[u8], check: Option<&Check>) -> Step {
        // How far ahead of what is wanted, modulo the number's wrap.
        match number.wrapping_sub((self.have + 1) as u16) {
            0 => {
                self.have += 1;
                self.file_bytes += len;
                self.bytes += len;
                self.told = false;
                self.tries = 1;
                self.deadline = now + RESEND;
                if let Some(hash) = &mut self.hash {
                    hash.update(payload);
                }
                if len < u64::from(self.blksize) {
                    return self.complete(check);
                }
                if self.have - self.acked >= self.windowsize { self.ack(now) } else { Step::Nothing }
            }
            // A gap: the server is to go on behind what there is (RFC 7440 §4), told once.
            ahead if ahead < 0x8000 => {
                if self.told {
                    return Step::Nothing;
                }
                self.told = true;
                self.ack(now)
            }
            // What is there already: our ACK was lost, or its answer crossed it. Never more than once in a while.
            _ if self.have > 0 && now.saturating_duration_since(self.acked_at) >= REPEAT => self.ack(now),
            _ => Step::Nothing,
        }
    }

    fn ack(&mut self, now: Instant) -> Step {
        self.acked = self.have;
        self.acked_at = now;
        Step::Ack(self.have)
    }

    fn complete(&mut self, check: Option<&Check>) -> Step {
        if let (Some(check), Some(hash)) = (check, &self.hash)
            && (self.file_bytes != check.len || *hash.finalize().as_bytes() != check.hash)
        {
            return Step::Failed(Reason::WrongContent);
        }
        self.files += 1;
        Step::Complete(self.have)
    }

    /// A deadline has passed: what is to be said again.
    fn timeout(&mut self, now: Instant) -> Option<Step> {
        if !matches!(self.phase, Phase::Asked | Phase::Receiving) || now < self.deadline {
            return None;
        }
        if self.tries >= TRIES {
            return Some(Step::Failed(match self.phase {
                Phase::Asked => Reason::NoAnswer,
                _ => Reason::Silence,
            }));
        }
        self.deadline = now + RESEND * (1 << self.tries);
        self.tries += 1;
        // The window starts again behind what there is.
        Some(match self.phase {
            Phase::Asked => Step::Nothing,
            _ => self.ack(now),
        })
    }
}

struct Run<'a> {
    load: &'a TftpLoad,
    asked: Options,
    clients: Vec<Client>,
    latency: Times,
    first_answer: Times,
    failures: BTreeMap<String, u64>,
    blocks: u64,
    over: u32,
}

/// Loads the server for the time given.
///
/// # Errors
/// What keeps the load from running at all; clients that fail are counted.
pub fn run(load: &TftpLoad) -> Result<Point, LoadError> {
    if !(BLKSIZE_MIN..=BLKSIZE_MAX).contains(&load.blksize) || load.windowsize == 0 {
        return Err(LoadError::new(format!(
            "block size {} or window size {}: expected {BLKSIZE_MIN} to {BLKSIZE_MAX}, and 1 to 65535",
            load.blksize, load.windowsize
        )));
    }
    if load.file.is_empty() || load.file.len() > NAME_LEN_MAX || load.file.contains('\0') {
        return Err(LoadError::new(format!("file name {:?}: expected 1 to {NAME_LEN_MAX} bytes", load.file)));
    }
    let payload_max = usize::from(load.blksize.max(BLKSIZE_DEFAULT)) + 4;
    let mut port = Port::open(&load.way, *load.server.ip(), load.clients, payload_max, load.check.is_some())?;
    let meter = Meter::start();
    let start = Instant::now();
    let mut run = Run {
        asked: Options {
            blksize: (load.blksize != BLKSIZE_DEFAULT).then_some(load.blksize),
            windowsize: (load.windowsize > 1).then_some(load.windowsize),
            tsize: load.tsize.then_some(0),
            timeout_secs: None,
        },
        clients: (0..load.clients).map(|_| Client::new(start, load.check.is_some())).collect(),
        latency: Times::default(),
        first_answer: Times::default(),
        failures: BTreeMap::new(),
        blocks: 0,
        over: 0,
        load,
    };
    let end = start + load.time;
    let (mut started, mut tick) = (0, start + TICK);
    loop {
        let now = Instant::now();
        if now >= end || run.over == load.clients {
            break;
        }
        let starts = started..(started + STARTS_PER_TURN).min(run.clients.len());
        for client in starts.clone() {
            run.request(now, client as u32, &mut port.out);
        }
        started = starts.end;
        let wait =
            if started < run.clients.len() { Duration::ZERO } else { tick.min(end) - now.min(tick.min(end)) };
        port.out.flush();
        let mut now = None;
        port.receive(wait, |out, arrival| {
            let now = *now.get_or_insert_with(Instant::now);
            run.arrived(now, out, &arrival);
        })?;
        port.out.flush();
        let now = Instant::now();
        if now >= tick {
            tick = now + TICK;
            run.timeouts(now, started, &mut port.out);
        }
    }
    run.abort_all(&mut port.out);
    Ok(run.point(&meter, port.out.unsent()))
}

impl Run<'_> {
    fn request(&mut self, now: Instant, index: u32, out: &mut Out) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.begin(now, out.next_port(index, client.port));
        self.send_request(index, out);
    }

    fn send_request(&self, index: u32, out: &mut Out) {
        let Some(port) = self.clients[index as usize].port else { return };
        out.send(index, port, self.load.server, REQUEST_LEN_MAX, |buffer| {
            emit_rrq(buffer, self.load.file.as_bytes(), Mode::Octet, &self.asked)
        });
    }

    fn arrived(&mut self, now: Instant, out: &mut Out, arrival: &Arrival<'_>) {
        let Some(client) = self.clients.get_mut(arrival.client as usize) else { return };
        let (waiting, had) = (client.phase == Phase::Asked, client.have);
        let step = client.handle(now, &self.asked, self.load.check.as_ref(), arrival);
        if waiting && client.peer.is_some() && client.phase == Phase::Receiving {
            self.first_answer.record(now.saturating_duration_since(client.asked_at));
        }
        self.blocks += client.have - had;
        self.carry_out(now, out, arrival.client, step);
    }

    fn carry_out(&mut self, now: Instant, out: &mut Out, index: u32, step: Step) {
        let client = &mut self.clients[index as usize];
        match step {
            Step::Nothing => {}
            Step::Ack(block) => send_ack(client, index, block, out),
            Step::Complete(block) => {
                send_ack(client, index, block, out);
                self.latency.record(now.saturating_duration_since(client.asked_at));
                if self.load.files_max.is_some_and(|max| client.files >= max) {
                    client.phase = Phase::Over;
                    self.over += 1;
                } else {
                    self.request(now, index, out);
                }
            }
            Step::Failed(reason) => {
                if !matches!(reason, Reason::Error(_) | Reason::NoAnswer) {
                    send_error(client, index, out);
                }
                *self.failures.entry(reason.word()).or_default() += 1;
                if self.load.files_max.is_some() {
                    client.phase = Phase::Over;
                    self.over += 1;
                } else {
                    client.phase = Phase::Paused;
                    client.deadline = now + PAUSE;
                }
            }
        }
    }

    fn timeouts(&mut self, now: Instant, started: usize, out: &mut Out) {
        for index in 0..started as u32 {
            let client = &mut self.clients[index as usize];
            if client.phase == Phase::Paused && now >= client.deadline {
                self.request(now, index, out);
            } else if let Some(step) = client.timeout(now) {
                match step {
                    Step::Nothing => self.send_request(index, out),
                    step => self.carry_out(now, out, index, step),
                }
            }
        }
    }

    /// Nobody goes on sending to a client that is not there any more.
    fn abort_all(&mut self, out: &mut Out) {
        for (client, index) in self.clients.iter().zip(0u32..) {
            if client.phase == Phase::Receiving {
                send_error(client, index, out);
            }
        }
        out.flush();
    }

    fn point(self, meter: &Meter, unsent: u64) -> Point {
        let load = self.load;
        let mut settings = BTreeMap::from([
            ("blksize".to_owned(), load.blksize.to_string()),
            ("windowsize".to_owned(), load.windowsize.to_string()),
        ]);
        if load.tsize {
            settings.insert("tsize".into(), "yes".into());
        }
        if unsent > 0 {
            settings.insert("unsent".into(), unsent.to_string());
        }
        let mut point = Point {
            work: "tftp".into(),
            settings,
            clients: load.clients,
            bytes: self.clients.iter().map(|client| client.bytes).sum(),
            units: self.blocks,
            unit: "blocks".into(),
            failures: self.failures.values().sum(),
            failure_reasons: self.failures,
            latency: self.latency.latency(),
            first_answer: self.first_answer.latency(),
            jain: jain(self.clients.iter().map(|client| client.bytes)),
            ..Point::default()
        };
        meter.stop(&mut point);
        point
    }
}

/// The server need not go on.
fn send_error(client: &Client, index: u32, out: &mut Out) {
    let (Some(port), Some(peer)) = (client.port, client.peer) else { return };
    out.send(index, port, peer, 64, |buffer| emit_error(buffer, ErrorCode::NotDefined, "no more is needed"));
}

fn send_ack(client: &Client, index: u32, block: u64, out: &mut Out) {
    let (Some(port), Some(peer)) = (client.port, client.peer) else { return };
    out.send(index, port, peer, 4, |buffer| emit_ack(buffer, block as u16));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tftp::{data_header, emit_oack};
    use std::net::Ipv4Addr;

    const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 3000);
    const ASKED: Options = Options { blksize: Some(8), windowsize: Some(4), tsize: None, timeout_secs: None };

    fn arrival(head: &[u8], segment: usize) -> Arrival<'_> {
        Arrival { client: 0, port: 7, from: SERVER, head, len: head.len(), segment }
    }

    fn asked(now: Instant, checks: bool) -> Client {
        let mut client = Client::new(now, checks);
        client.begin(now, 7);
        client
    }

    fn granted(client: &mut Client, now: Instant, options: &Options) -> Step {
        let mut packet = [0; 64];
        let len = emit_oack(&mut packet, options).unwrap();
        client.handle(now, &ASKED, None, &arrival(&packet[..len], len))
    }

    fn data(block: u16, payload: &[u8]) -> Vec<u8> {
        [&data_header(block)[..], payload].concat()
    }

    fn receive(client: &mut Client, now: Instant, block: u16, payload: &[u8]) -> Step {
        let packet = data(block, payload);
        client.handle(now, &ASKED, None, &arrival(&packet, packet.len()))
    }

    #[test]
    fn a_window_is_acknowledged_once_and_a_short_block_ends_the_file() {
        let now = Instant::now();
        let mut client = asked(now, false);
        assert_eq!(granted(&mut client, now, &ASKED), Step::Ack(0));
        for block in 1..4 {
            assert_eq!(receive(&mut client, now, block, &[1; 8]), Step::Nothing);
        }
        assert_eq!(receive(&mut client, now, 4, &[1; 8]), Step::Ack(4));
        assert_eq!(receive(&mut client, now, 5, &[1; 3]), Step::Complete(5));
        assert_eq!((client.bytes, client.files), (35, 1));
    }

    #[test]
    fn blocks_handed_over_as_one_count_as_what_they_are() {
        let now = Instant::now();
        let mut client = asked(now, false);
        granted(&mut client, now, &ASKED);
        // Only the first bytes are there, as behind a snapshot; 0: the frame was longer than the MTU.
        let packet = data(1, &[]);
        let run = Arrival { len: 12 * 3 + 6, ..arrival(&packet, 0) };
        assert_eq!(client.handle(now, &ASKED, None, &run), Step::Complete(4));
        assert_eq!(client.bytes, 3 * 8 + 2);
    }

    #[test]
    fn a_gap_is_told_once_and_repeated_blocks_are_not_counted() {
        let now = Instant::now();
        let mut client = asked(now, false);
        granted(&mut client, now, &ASKED);
        assert_eq!(receive(&mut client, now, 1, &[1; 8]), Step::Nothing);
        assert_eq!(receive(&mut client, now, 3, &[1; 8]), Step::Ack(1));
        assert_eq!(receive(&mut client, now, 4, &[1; 8]), Step::Nothing);
        // The window comes again behind what there was.
        assert_eq!(receive(&mut client, now, 2, &[1; 8]), Step::Nothing);
        assert_eq!(receive(&mut client, now, 3, &[1; 8]), Step::Nothing);
        assert_eq!(receive(&mut client, now, 3, &[1; 8]), Step::Nothing, "answers that crossed are no loss");
        assert_eq!(receive(&mut client, now + REPEAT, 3, &[1; 8]), Step::Ack(3));
        assert_eq!(client.bytes, 24);
    }

    #[test]
    fn block_numbers_wrap() {
        let now = Instant::now();
        let mut client = asked(now, false);
        granted(&mut client, now, &ASKED);
        client.have = 65_534;
        client.acked = 65_534;
        for block in [65_535, 0, 1] {
            assert_eq!(receive(&mut client, now, block, &[0; 8]), Step::Nothing);
        }
        assert_eq!(receive(&mut client, now, 2, &[0; 8]), Step::Ack(65_538));
    }

    #[test]
    fn silence_is_borne_for_a_while() {
        let start = Instant::now();
        let mut client = asked(start, false);
        assert_eq!(client.timeout(start), None);
        assert_eq!(client.timeout(start + RESEND), Some(Step::Nothing), "asks again");
        let mut now = start + RESEND;
        for _ in 2..TRIES {
            now += RESEND * 40;
            assert_eq!(client.timeout(now), Some(Step::Nothing));
        }
        assert_eq!(client.timeout(now + RESEND * 40), Some(Step::Failed(Reason::NoAnswer)));
        let mut client = asked(start, false);
        granted(&mut client, start, &ASKED);
        receive(&mut client, start, 1, &[0; 8]);
        assert_eq!(client.timeout(start + RESEND), Some(Step::Ack(1)), "the window starts again");
    }

    #[test]
    fn what_no_firmware_would_take_is_a_failure() {
        let now = Instant::now();
        let larger = Options { blksize: Some(9), ..ASKED };
        assert_eq!(granted(&mut asked(now, false), now, &larger), Step::Failed(Reason::BadOack));
        let unasked = Options { tsize: Some(5), ..ASKED };
        assert_eq!(granted(&mut asked(now, false), now, &unasked), Step::Failed(Reason::BadOack));
        let mut client = asked(now, false);
        granted(&mut client, now, &ASKED);
        assert_eq!(receive(&mut client, now, 1, &[0; 9]), Step::Failed(Reason::LongBlock));
        let mut client = asked(now, false);
        let error = [0, 5, 0, 1, b'n', b'o', 0];
        let step = client.handle(now, &ASKED, None, &arrival(&error, error.len()));
        assert_eq!(step, Step::Failed(Reason::Error(1)));
    }

    #[test]
    fn strangers_and_old_ports_are_not_listened_to() {
        let now = Instant::now();
        let mut client = asked(now, false);
        granted(&mut client, now, &ASKED);
        let packet = data(1, &[0; 8]);
        let stranger = Arrival { from: SocketAddrV4::new(*SERVER.ip(), 3001), ..arrival(&packet, 12) };
        assert_eq!(client.handle(now, &ASKED, None, &stranger), Step::Nothing);
        let late = Arrival { port: 6, ..arrival(&packet, 12) };
        assert_eq!(client.handle(now, &ASKED, None, &late), Step::Nothing);
        assert_eq!(client.have, 0);
    }

    #[test]
    fn wrong_bytes_are_found_when_they_are_looked_for() {
        let now = Instant::now();
        let good = b"0123456789";
        let check = Check::of(good);
        let fetch = |content: &[u8]| {
            let mut client = asked(now, true);
            granted(&mut client, now, &ASKED);
            let first = data(1, &content[..8]);
            client.handle(now, &ASKED, Some(&check), &arrival(&first, first.len()));
            let second = data(2, &content[8..]);
            client.handle(now, &ASKED, Some(&check), &arrival(&second, second.len()))
        };
        assert_eq!(fetch(good), Step::Complete(2));
        assert_eq!(fetch(b"0123456798"), Step::Failed(Reason::WrongContent));
        assert_eq!(fetch(b"012345678"), Step::Failed(Reason::WrongContent));
    }

    /// A server as plain as can be: a window, then silence until it is acknowledged or a second has passed.
    struct PlainServer<'a> {
        content: &'a [u8],
        acked: u64,
        sent_at: Instant,
    }

    impl PlainServer<'_> {
        fn window(&self) -> Vec<Vec<u8>> {
            let last = self.content.len() as u64 / 8 + 1;
            (self.acked + 1..=(self.acked + 4).min(last))
                .map(|block| {
                    let start = (block as usize - 1) * 8;
                    data(block as u16, &self.content[start..(start + 8).min(self.content.len())])
                })
                .collect()
        }
    }

    #[test]
    fn whatever_a_wire_loses_and_repeats_the_file_comes_whole_or_the_failure_has_a_name() {
        let content: Vec<u8> = (0..997u32).map(|i| ((i * 7) >> 2) as u8).collect();
        let check = Check::of(&content);
        let mut whole = 0;
        for seed in 0..200 {
            let mut random = crate::bench::Random::new(seed);
            let loss = [0, 5, 20, 40][seed as usize % 4];
            let mut lost = move || random.below(100) < loss;
            let mut now = Instant::now();
            let mut client = asked(now, true);
            let mut server = PlainServer { content: &content, acked: 0, sent_at: now };
            let mut to_client: Vec<Vec<u8>> = Vec::new();
            assert_eq!(granted(&mut client, now, &ASKED), Step::Ack(0));
            to_client.extend(server.window());
            let mut end = None;
            for _ in 0..100_000 {
                let step = if to_client.is_empty() {
                    now += Duration::from_millis(100);
                    if now >= server.sent_at + RESEND {
                        server.sent_at = now;
                        to_client = server.window();
                    }
                    client.timeout(now)
                } else {
                    let packet = to_client.remove(0);
                    now += Duration::from_micros(50);
                    let again = lost();
                    let step = (!lost())
                        .then(|| client.handle(now, &ASKED, Some(&check), &arrival(&packet, packet.len())));
                    if again && loss > 20 {
                        to_client.push(packet);
                    }
                    step
                };
                match step {
                    Some(Step::Ack(block)) if !lost() && block >= server.acked => {
                        server.acked = block;
                        server.sent_at = now;
                        to_client = server.window();
                    }
                    Some(Step::Complete(_)) => end = Some(Ok(())),
                    Some(Step::Failed(reason)) => end = Some(Err(reason)),
                    _ => {}
                }
                if end.is_some() {
                    break;
                }
            }
            match end {
                Some(Ok(())) => whole += 1,
                Some(Err(reason)) => assert_eq!((reason, loss), (Reason::Silence, 40), "seed {seed}"),
                None => panic!("seed {seed} never ends"),
            }
        }
        assert!(whole >= 150, "only {whole} of 200 came through");
    }
}

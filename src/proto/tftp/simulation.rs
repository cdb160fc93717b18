//! Whole transfers over a network that loses, repeats, delays and reorders, from a seed: each ends with the identical
//! file or a named outcome. A failure prints the seed that repeats it. And how fast they are over one that only loses.

use std::collections::BTreeMap;

use super::*;
use crate::wire::tftp::Mode;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// How a client answers DATA.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    /// RFC 7440: an ACK per window, when a gap shows, and, now and then, when blocks come again.
    Windowed,
    /// The same, but what it has already is no reason to say anything before its own time-out.
    Stubborn,
    /// EDK2: a duplicate ACK for every block out of order.
    Edk2,
    /// Lockstep, repeating its last ACK for a repeated block and on a time-out (iPXE, PXE ROMs).
    Lockstep,
    /// Lockstep, repeating each ACK for a repeated block once, after that only when nothing at all came for 5 s (atftp).
    Reserved,
}

#[derive(Debug)]
enum Packet {
    /// The request again, since nothing came back.
    Request,
    ToClient {
        block: u64,
        len: u16,
    },
    Oack,
    ToServer {
        block: u16,
    },
}

struct Client {
    style: Style,
    windowsize: u64,
    blksize: u16,
    /// Blocks received without a gap, and their bytes.
    have: u64,
    bytes: u64,
    acked: u64,
    /// This gap was told, or this block's ACK repeated.
    told: bool,
    finished: bool,
    started: bool,
    timer: Duration,
    resend_at: Duration,
    /// Nothing is repeated sooner.
    repeat_at: Duration,
}

/// A path: what is lost, repeated and delayed, and how fast its narrowest link is.
#[derive(Clone, Copy)]
struct Path {
    loss_per_mille: u64,
    repeats_per_mille: u64,
    delay_us: u64,
    /// Added to the delay, up to so much; and for some packets far more.
    jitter_us: u64,
    late_per_mille: u64,
    /// Time one DATA packet takes on the narrowest link.
    serial_us: u64,
    /// DATA packets that wait before it; more are lost.
    queue: u64,
}

struct Network {
    random: Random,
    path: Path,
    queue: BTreeMap<(Duration, u64), Packet>,
    sequence: u64,
    /// The narrowest link is busy until then.
    busy: Duration,
}

impl Network {
    fn new(random: Random, path: Path) -> Self {
        Self { random, path, queue: BTreeMap::new(), sequence: 0, busy: Duration::ZERO }
    }

    fn send(&mut self, now: Duration, packet: impl Fn() -> Packet) {
        let path = self.path;
        let copies = if self.random.chance(path.loss_per_mille) {
            0
        } else if self.random.chance(path.repeats_per_mille) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let packet = packet();
            let mut leaves = now;
            if path.serial_us > 0 && matches!(packet, Packet::ToClient { .. }) {
                let serial = Duration::from_micros(path.serial_us);
                leaves = self.busy.max(now);
                if leaves - now > serial * path.queue as u32 {
                    continue;
                }
                leaves += serial;
                self.busy = leaves;
            }
            let spread = if self.random.chance(path.late_per_mille) { 40_000 } else { path.jitter_us };
            let jitter = if spread == 0 { 0 } else { self.random.below(spread) };
            self.sequence += 1;
            let at = leaves + Duration::from_micros(path.delay_us + jitter);
            self.queue.insert((at, self.sequence), packet);
        }
    }
}

/// One transfer over one path.
#[derive(Clone, Copy)]
struct Setup {
    style: Style,
    blksize: u16,
    windowsize: u64,
    len: u64,
    path: Path,
}

/// How it went.
struct Result {
    outcome: Outcome,
    /// Bytes the client has.
    bytes: u64,
    took: Duration,
    blocks_sent: u64,
}

/// Anything, from a seed.
fn any(random: &mut Random) -> Setup {
    let style = [Style::Windowed, Style::Stubborn, Style::Edk2, Style::Lockstep, Style::Reserved];
    let style = style[random.below(5) as usize];
    let blksize = [8, 512, 1428, 1468][random.below(4) as usize];
    let windowsize = match (style, random.below(3)) {
        (Style::Lockstep | Style::Reserved, _) => 1,
        (_, 0) => 1 + random.below(64),
        _ => 1 + random.below(16),
    };
    let len = random.below(60) * u64::from(blksize)
        + [0, 1, u64::from(blksize) - 1, random.below(blksize.into())][random.below(4) as usize];
    let path = Path {
        loss_per_mille: [0, 10, 50, 200][random.below(4) as usize],
        repeats_per_mille: 20,
        delay_us: 200,
        jitter_us: 300,
        late_per_mille: 50,
        serial_us: 0,
        queue: 0,
    };
    Setup { style, blksize, windowsize, len, path }
}

fn seeded(seed: u64) -> Random {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..8 {
        random.next();
    }
    random
}

/// Runs one transfer.
fn run(setup: Setup, random: Random) -> Result {
    let Setup { style, blksize, windowsize, len, path } = setup;
    let client_timer = Duration::from_secs(match style {
        Style::Lockstep => 1,
        Style::Reserved => 5,
        Style::Windowed | Style::Stubborn | Style::Edk2 => 4,
    });
    let options = Options {
        blksize: Some(blksize),
        tsize: None,
        timeout_secs: None,
        windowsize: (windowsize > 1).then_some(windowsize as u16),
    };
    let request = Request { write: false, name: b"x", mode: Mode::Octet, options };
    let epoch = Instant::now();
    let (mut transfer, _) = Transfer::accept(epoch, &request, len, &Limits::default());
    let mut client = Client {
        style,
        windowsize,
        blksize,
        have: 0,
        bytes: 0,
        acked: 0,
        told: false,
        finished: false,
        started: false,
        timer: client_timer,
        resend_at: client_timer,
        repeat_at: Duration::ZERO,
    };
    let mut network = Network::new(random, path);
    let mut now = Duration::ZERO;
    let mut blocks_sent = 0;
    let result = |outcome, bytes, took, blocks_sent| Result { outcome, bytes, took, blocks_sent };
    for _ in 0..1_000_000 {
        while let Some(transmit) = transfer.poll_transmit(epoch + now) {
            match transmit {
                Transmit::Oack(_) => network.send(now, || Packet::Oack),
                Transmit::Data(run) => {
                    blocks_sent += u64::from(run.count);
                    for i in 0..run.count {
                        let (offset, len) = run.slice(i);
                        assert_eq!(offset, (run.first_index + u64::from(i)) * u64::from(blksize));
                        network.send(now, || Packet::ToClient {
                            block: run.first_index + u64::from(i) + 1,
                            len,
                        });
                    }
                }
            }
        }
        let arrival = network.queue.first_key_value().map(|(key, _)| *key);
        let server_at = transfer.poll_timeout().map(|at| at.duration_since(epoch));
        let client_at = (!client.finished).then_some(client.resend_at);
        let next = [arrival.map(|(at, _)| at), server_at, client_at].into_iter().flatten().min();
        let Some(next) = next else { panic!("nobody waits for anything") };
        now = now.max(next);
        if let Some(key) = arrival.filter(|(at, _)| *at <= now) {
            match network.queue.remove(&key).expect("just seen") {
                Packet::ToServer { block } => {
                    if let Verdict::Finished(outcome) = transfer.handle_ack(epoch + now, block) {
                        return result(outcome, client.bytes, now, blocks_sent);
                    }
                }
                Packet::Request => {
                    transfer.handle_retried_request(epoch + now);
                }
                Packet::Oack if !client.started || client.have == 0 => {
                    client.started = true;
                    client.resend_at = now + client.timer;
                    network.send(now, || Packet::ToServer { block: 0 });
                }
                Packet::Oack => {}
                Packet::ToClient { block, len } => client.data(now, block, len, &mut network),
            }
        } else if client_at.is_some_and(|at| at <= now) {
            client.resend_at = now + client.timer;
            if client.started {
                let have = client.have as u16;
                client.acked = client.have;
                network.send(now, || Packet::ToServer { block: have });
            } else {
                network.send(now, || Packet::Request);
            }
        } else if let Verdict::Finished(outcome) = transfer.handle_timeout(epoch + now) {
            return result(outcome, client.bytes, now, blocks_sent);
        }
    }
    panic!("no end in sight");
}

impl Client {
    fn data(&mut self, now: Duration, block: u64, len: u16, network: &mut Network) {
        if self.style != Style::Stubborn || block > self.have {
            self.resend_at = now + self.timer;
        }
        let ack = |network: &mut Network, block: u64| {
            network.send(now, || Packet::ToServer { block: block as u16 })
        };
        if block == self.have + 1 && !self.finished {
            self.have = block;
            self.told = false;
            self.bytes += u64::from(len);
            if len < self.blksize {
                self.finished = true;
                return ack(network, block);
            }
            if self.have - self.acked >= self.windowsize {
                self.acked = self.have;
                ack(network, self.have);
            }
            return;
        }
        if self.finished {
            // Lingers: the last ACK was lost.
            return ack(network, self.have);
        }
        match self.style {
            Style::Edk2 => {
                self.acked = self.have;
                ack(network, self.have);
            }
            Style::Windowed | Style::Stubborn if block > self.have + 1 && !self.told => {
                self.told = true;
                self.acked = self.have;
                ack(network, self.have);
            }
            Style::Windowed | Style::Lockstep if block <= self.have && now >= self.repeat_at => {
                self.repeat_at = now + Duration::from_millis(10);
                self.acked = self.have;
                ack(network, self.have);
            }
            Style::Reserved if block == self.have && !self.told => {
                self.told = true;
                ack(network, self.have);
            }
            Style::Windowed | Style::Stubborn | Style::Lockstep | Style::Reserved => {}
        }
    }
}

#[test]
fn every_transfer_ends_with_the_identical_file_or_a_named_outcome() {
    let total = match std::env::var("BOOTSTORM_TRANSFERS") {
        Ok(total) => total.parse().expect("BOOTSTORM_TRANSFERS is a number"),
        Err(_) => 20_000,
    };
    let mut complete = 0;
    for seed in 0..total {
        let outcome = std::panic::catch_unwind(|| {
            let mut random = seeded(seed);
            let setup = any(&mut random);
            (setup, run(setup, random))
        });
        let Ok((setup, result)) = outcome else { panic!("seed {seed} broke a rule of the machine") };
        match result.outcome {
            Outcome::Complete => {
                assert_eq!(result.bytes, setup.len, "seed {seed}: complete, but not the file");
                complete += 1;
            }
            // All of the last packets lost, nine times in a row.
            Outcome::TimedOut if setup.path.loss_per_mille > 10 => {}
            other => panic!("seed {seed}: {other:?} from a client that never says ERROR"),
        }
    }
    assert!(complete * 100 >= total * 99, "only {complete} of {total} transfers completed");
}

/// Blocks a second over several transfers, and DATA packets sent per block of the file.
fn speed(windowsize: u64, style: Style, path: Path) -> (f64, f64) {
    let blocks: u64 = if windowsize == 1 { 1000 } else { 4000 };
    let setup = Setup { style, blksize: 1428, windowsize, len: blocks * 1428 - 1, path };
    let (mut took, mut sent) = (Duration::ZERO, 0);
    let rounds = 12;
    for seed in 0..rounds {
        let result = run(setup, seeded(seed));
        assert_eq!(result.outcome, Outcome::Complete, "window {windowsize}, seed {seed}");
        took += result.took;
        sent += result.blocks_sent;
    }
    let all = (blocks * rounds) as f64;
    (all / took.as_secs_f64(), sent as f64 / all)
}

/// A gigabit link with a round trip of a millisecond.
const LAN: Path = Path {
    loss_per_mille: 0,
    repeats_per_mille: 0,
    delay_us: 494,
    jitter_us: 0,
    late_per_mille: 0,
    serial_us: 12,
    queue: 1000,
};

#[test]
fn a_larger_window_is_never_slower_whatever_is_lost() {
    for style in [Style::Windowed, Style::Edk2] {
        for loss_per_mille in [0, 5, 20] {
            let path = Path { loss_per_mille, ..LAN };
            let curve = [1, 4, 16, 64].map(|window| speed(window, style, path));
            println!("{style:?}, loss {loss_per_mille} per mille: {curve:.2?}");
            for pair in curve.windows(2) {
                assert!(pair[1].0 >= 0.9 * pair[0].0, "{style:?}, {loss_per_mille} per mille: {curve:.2?}");
            }
            assert!(curve.iter().all(|(speed, _)| *speed >= curve[0].0), "{curve:.2?}");
        }
    }
}

#[test]
fn a_window_larger_than_the_queue_on_the_way_does_not_collapse() {
    // A hundred megabits behind a queue of 20 packets.
    let path = Path { serial_us: 120, queue: 20, ..LAN };
    let curve = [1, 4, 16, 64].map(|window| speed(window, Style::Windowed, path));
    println!("queue of 20: {curve:.2?}");
    for pair in curve.windows(2) {
        assert!(pair[1].0 >= 0.9 * pair[0].0, "{curve:.2?}");
    }
    assert!(curve[3].1 < 1.25, "most of what is sent arrives: {curve:.2?}");
}

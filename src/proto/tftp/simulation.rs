//! Whole transfers over a network that loses, repeats, delays and reorders, from a seed: each ends with the identical
//! file or a named outcome. A failure prints the seed that repeats it.

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

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How a client answers DATA.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    /// RFC 7440 to the letter: an ACK per window, or when a gap shows.
    Windowed,
    /// EDK2: a duplicate ACK for every block out of order.
    Edk2,
    /// Lockstep, resending its last ACK on a time-out (iPXE, PXE ROMs).
    Lockstep,
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
    finished: bool,
    started: bool,
    resend_at: Duration,
}

struct Network {
    random: Random,
    loss: u64,
    queue: BTreeMap<(Duration, u64), Packet>,
    sequence: u64,
}

impl Network {
    fn send(&mut self, now: Duration, packet: impl Fn() -> Packet) {
        let copies = if self.random.chance(self.loss) {
            0
        } else if self.random.chance(2) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let spread = if self.random.chance(5) { 40_000 } else { 300 };
            let delay = Duration::from_micros(200 + self.random.below(spread));
            self.sequence += 1;
            self.queue.insert((now + delay, self.sequence), packet());
        }
    }
}

/// Runs one transfer; what it came to, and the bytes the client has.
fn run(seed: u64) -> (Outcome, u64, u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..8 {
        random.next();
    }
    let style = [Style::Windowed, Style::Edk2, Style::Lockstep][random.below(3) as usize];
    let blksize = [8, 512, 1428, 1468][random.below(4) as usize];
    let windowsize = if style == Style::Lockstep { 1 } else { 1 + random.below(16) };
    let blocks = random.below(60);
    let len = blocks * u64::from(blksize)
        + [0, 1, u64::from(blksize) - 1, random.below(blksize.into())][random.below(4) as usize];
    let loss = [0, 1, 5, 20][random.below(4) as usize];
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
        finished: false,
        started: false,
        resend_at: Duration::from_secs(4),
    };
    let mut network = Network { random, loss, queue: BTreeMap::new(), sequence: 0 };
    let mut now = Duration::ZERO;
    for _ in 0..100_000 {
        while let Some(transmit) = transfer.poll_transmit(epoch + now) {
            match transmit {
                Transmit::Oack(_) => network.send(now, || Packet::Oack),
                Transmit::Data(run) => {
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
                        return (outcome, client.bytes, len);
                    }
                }
                Packet::Request => {
                    transfer.handle_retried_request(epoch + now);
                }
                Packet::Oack if !client.started || client.have == 0 => {
                    client.started = true;
                    client.resend_at = now + Duration::from_secs(4);
                    network.send(now, || Packet::ToServer { block: 0 });
                }
                Packet::Oack => {}
                Packet::ToClient { block, len } => client.data(now, block, len, &mut network),
            }
        } else if client_at.is_some_and(|at| at <= now) {
            client.resend_at = now + Duration::from_secs(4);
            if client.started {
                let have = client.have as u16;
                client.acked = client.have;
                network.send(now, || Packet::ToServer { block: have });
            } else {
                network.send(now, || Packet::Request);
            }
        } else if let Verdict::Finished(outcome) = transfer.handle_timeout(epoch + now) {
            return (outcome, client.bytes, len);
        }
    }
    panic!("no end in sight");
}

impl Client {
    fn data(&mut self, now: Duration, block: u64, len: u16, network: &mut Network) {
        self.resend_at = now + Duration::from_secs(4);
        let ack = |network: &mut Network, block: u64| {
            network.send(now, || Packet::ToServer { block: block as u16 })
        };
        if block == self.have + 1 && !self.finished {
            self.have = block;
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
            Style::Windowed if block > self.have + 1 && self.acked != self.have => {
                self.acked = self.have;
                ack(network, self.have);
            }
            Style::Windowed | Style::Lockstep => {}
        }
    }
}

#[test]
fn every_transfer_ends_with_the_identical_file_or_a_named_outcome() {
    let mut complete = 0;
    let total = 6000;
    for seed in 0..total {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let Ok((outcome, bytes, len)) = outcome else { panic!("seed {seed} broke a rule of the machine") };
        match outcome {
            Outcome::Complete => {
                assert_eq!(bytes, len, "seed {seed}: complete, but not the file");
                complete += 1;
            }
            Outcome::TimedOut => {}
            other => panic!("seed {seed}: {other:?} from a client that never says ERROR"),
        }
    }
    assert!(complete * 100 >= total * 97, "only {complete} of {total} transfers completed");
}

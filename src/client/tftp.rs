//! A TFTP download as firmware does it: the size query first where it makes one, then the file.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::{Kind, Patience};
use crate::wire::tftp::{ErrorCode, Mode, Options, Packet, emit_ack, emit_error, emit_rrq};

/// Tries before a packet's lack of an answer ends the download (Mtftp4Dxe; iPXE's back-off comes to the same).
const TRIES: u32 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Asking for the size, to be aborted.
    Size,
    /// Asking for the file.
    Asked,
    /// Receiving.
    Receiving,
}

/// One download.
#[derive(Debug)]
pub(super) struct Download {
    speaks: Kind,
    name: String,
    server: SocketAddrV4,
    /// The server's transfer port, once it has answered.
    peer: Option<SocketAddrV4>,
    phase: Phase,
    asked: Options,
    blksize: u16,
    windowsize: u64,
    /// Blocks received without a gap.
    have: u64,
    acked: u64,
    pub(super) bytes: u64,
    hash: blake3::Hasher,
    last_sent: Vec<u8>,
    pause: Duration,
    tries: u32,
    deadline: Instant,
}

/// What came of an input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Send these packets.
    Send(Vec<(SocketAddrV4, Vec<u8>)>),
    /// The size query is over: send this abort, then start again from another port.
    Again(Vec<(SocketAddrV4, Vec<u8>)>),
    /// The file is whole: send the last acknowledgement.
    Complete(Vec<(SocketAddrV4, Vec<u8>)>),
    /// Given up, and why in the firmware's words.
    Failed(String),
}

impl Download {
    pub(super) fn new(
        speaks: Kind,
        name: String,
        server: SocketAddrV4,
        now: Instant,
        patience: &Patience,
    ) -> Self {
        let pause = if speaks == Kind::Ipxe { patience.tftp_ipxe } else { patience.tftp };
        Self {
            speaks,
            name,
            server,
            peer: None,
            phase: if speaks == Kind::Ipxe { Phase::Asked } else { Phase::Size },
            asked: Options::default(),
            blksize: 512,
            windowsize: 1,
            have: 0,
            acked: 0,
            bytes: 0,
            hash: blake3::Hasher::new(),
            last_sent: Vec::new(),
            pause,
            tries: 0,
            deadline: now,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn hash(&self) -> blake3::Hash {
        self.hash.finalize()
    }

    /// The request that begins this phase.
    pub(super) fn request(&mut self, now: Instant) -> Step {
        let none = Options::default();
        self.asked = match (self.speaks, self.phase) {
            (Kind::Ipxe, _) => Options { blksize: Some(1432), tsize: Some(0), ..none },
            (Kind::Bios, Phase::Size) => Options { tsize: Some(0), ..none },
            (Kind::Bios, _) => Options { blksize: Some(1456), ..none },
            (_, Phase::Size) => Options { tsize: Some(0), blksize: Some(1468), windowsize: Some(4), ..none },
            (..) => Options { blksize: Some(1468), windowsize: Some(4), ..none },
        };
        let mut packet = vec![0; 512];
        let Some(len) = emit_rrq(&mut packet, self.name.as_bytes(), Mode::Octet, &self.asked) else {
            return Step::Failed("the boot file's name is too long for a request".into());
        };
        packet.truncate(len);
        self.peer = None;
        self.send(now, self.server, packet)
    }

    fn send(&mut self, now: Instant, to: SocketAddrV4, packet: Vec<u8>) -> Step {
        self.tries = 0;
        self.deadline = now + self.pause;
        self.last_sent.clone_from(&packet);
        Step::Send(vec![(to, packet)])
    }

    fn ack(&mut self, now: Instant) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let mut packet = vec![0; 4];
        // Four bytes hold an acknowledgement.
        let _ = emit_ack(&mut packet, self.have as u16);
        self.acked = self.have;
        let to = self.peer.unwrap_or(self.server);
        match self.send(now, to, packet) {
            Step::Send(packets) => packets,
            _ => Vec::new(),
        }
    }

    pub(super) fn handle(&mut self, now: Instant, from: SocketAddrV4, bytes: &[u8]) -> Step {
        if self.peer.is_some_and(|peer| peer != from) {
            return Step::Send(Vec::new());
        }
        match Packet::parse(bytes) {
            Ok(Packet::Oack(granted)) => {
                self.peer = Some(from);
                self.oack(now, from, &granted)
            }
            Ok(Packet::Data(block, payload)) if self.phase != Phase::Size => {
                self.peer = Some(from);
                self.phase = Phase::Receiving;
                self.data(now, block, payload)
            }
            // A ROM whose size query is answered by data has learnt nothing, and aborts all the same.
            Ok(Packet::Data(..)) => self.abort_size_query(from),
            Ok(Packet::Error(code, message)) => Step::Failed(match code {
                ErrorCode::FileNotFound => "TFTP error 1: file not found (PXE-T01)".into(),
                code => format!("TFTP error {}: {}", code.code(), String::from_utf8_lossy(message)),
            }),
            _ => Step::Send(Vec::new()),
        }
    }

    /// EDK2 refuses an OACK with anything it did not ask for, or more of it (Mtftp4Option.c).
    fn oack(&mut self, now: Instant, from: SocketAddrV4, granted: &Options) -> Step {
        let more = |granted: Option<u64>, asked: Option<u64>| match (granted, asked) {
            (Some(granted), Some(asked)) => granted > asked,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let wide = |value: Option<u16>| value.map(u64::from);
        let malformed = more(wide(granted.blksize), wide(self.asked.blksize))
            || more(wide(granted.windowsize), wide(self.asked.windowsize))
            || (granted.tsize.is_some() && self.asked.tsize.is_none())
            || granted.timeout_secs.is_some();
        if malformed && self.speaks != Kind::Ipxe {
            return Step::Failed("malformed OACK".into());
        }
        if self.phase == Phase::Size {
            if granted.tsize.is_none() {
                return Step::Failed("the server did not tell the file's size".into());
            }
            return self.abort_size_query(from);
        }
        if self.phase == Phase::Asked {
            self.blksize = granted.blksize.unwrap_or(512);
            self.windowsize = granted.windowsize.map_or(1, u64::from);
            self.phase = Phase::Receiving;
        }
        // Acknowledged again when it comes again: our ACK 0 was lost.
        if self.have == 0 { Step::Send(self.ack(now)) } else { Step::Send(Vec::new()) }
    }

    fn abort_size_query(&mut self, to: SocketAddrV4) -> Step {
        let mut packet = vec![0; 64];
        let len = emit_error(&mut packet, ErrorCode::OptionRefused, "User aborted the transfer").unwrap_or(0);
        packet.truncate(len);
        self.phase = Phase::Asked;
        Step::Again(vec![(to, packet)])
    }

    fn data(&mut self, now: Instant, block: u16, payload: &[u8]) -> Step {
        if block == (self.have + 1) as u16 {
            self.have += 1;
            self.bytes += payload.len() as u64;
            self.hash.update(payload);
            if payload.len() < usize::from(self.blksize) {
                return Step::Complete(self.ack(now));
            }
            if self.have - self.acked >= self.windowsize {
                return Step::Send(self.ack(now));
            }
            self.deadline = now + self.pause;
            return Step::Send(Vec::new());
        }
        match self.speaks {
            // EDK2 says once more what it has, for every block out of order.
            Kind::Uefi | Kind::Http => Step::Send(self.ack(now)),
            _ => Step::Send(Vec::new()),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Step {
        if now < self.deadline {
            return Step::Send(Vec::new());
        }
        self.tries += 1;
        if self.tries >= TRIES {
            return Step::Failed(match self.phase {
                Phase::Receiving => "the server fell silent in mid-download".into(),
                _ => "no answer to the request (PXE-E32: TFTP open timeout)".into(),
            });
        }
        let factor = if self.speaks == Kind::Ipxe { 1 << self.tries } else { 1 };
        self.deadline = now + self.pause * factor;
        let to = self.peer.unwrap_or(self.server);
        Step::Send(vec![(to, self.last_sent.clone())])
    }
}

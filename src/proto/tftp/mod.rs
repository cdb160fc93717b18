//! One TFTP read transfer (RFC 1350, 2347-2349, 7440) as a machine that knows only a length.
//!
//! ```text
//!            accept
//!              │ options accepted            none
//!              ├───────────────► [Oack] ──ACK 0──► [Data] ◄── DATA 1 at once
//!              │                   │ timer: OACK      │ timer: the window again
//!              │                   └── ERROR: a size query, no failure
//!              │                                      │ ACK of the last block
//!              └───────── 30 s without progress ──► Finished
//! ```
//!
//! What it does on a bad network: it waits for the round trip it has measured before it believes a loss, and answers
//! any number of duplicate ACKs with at most one resend per round trip (RFC 1123 §4.2.3.1; UEFI firmware sends a
//! duplicate for every block that arrives out of order). It never sends less than the window the client counts on:
//! a client acknowledges only whole windows (RFC 7440 §4), so a shortened one would cost its time-out. After a loss
//! the window leaves in pieces instead, one a round trip ([`pacing`]). When a window stays without an answer, its last
//! block is sent once more before all of it is: a client that lost the end shows its gap then, one whose ACK was lost
//! repeats it, and neither costs a window.
//!
//! What it will not do: send an option that was not asked for, or a larger value than asked for; touch a byte of the
//! file; keep a copy of anything it sent.

#[cfg(test)]
mod cases;
mod numbers;
mod pacing;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::wire::tftp::{BLKSIZE_DEFAULT, BLKSIZE_MIN, ErrorCode, Options, Request, data_header};
use numbers::Numbering;
use pacing::Piece;

/// First resend when no round trip has been measured: firmware's own timers start at a quarter of a second (iPXE)
/// to four seconds (UEFI), so a second resends before either gives up and after any sane LAN has answered.
const RESEND_FIRST: Duration = Duration::from_secs(1);
/// Never resend sooner: a machine may be busy writing a block to flash.
const RESEND_MIN: Duration = Duration::from_millis(250);
/// Longest pause between resends. Longer than clients' own timers (4 s in UEFI, 5 s in atftp and tftp-hpa): some leave
/// repeated blocks unanswered and start their timer anew at each, so only a pause lets them repeat a lost ACK.
const RESEND_MAX: Duration = Duration::from_secs(8);
/// Without progress for so long the client is gone. UEFI retries for 24 s, iPXE for 16 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The same where the client wants resends far apart: five of the 12 s that no known client asks for, since whoever asks
/// for 255 s would hold a place for twenty minutes.
const SILENCE_AS_AGREED_MAX: Duration = Duration::from_secs(60);
/// The same while nothing at all was heard, or as long as four answers take that a client wants up to 7 s apart: anybody can
/// ask in another's name, so an answer is sent four times at most and its place given up soon. Clients repeat a request that was not answered themselves.
const UNANSWERED_MAX: Duration = Duration::from_secs(10);
/// A first block that answers a request without options is sent again so often while nothing was heard: it is more than
/// thirty times as long as its request.
const UNANSWERED_RESENDS: u8 = 1;
/// An OACK is sent again so often while nothing was heard, however near together the client wants its answers.
const OACK_RESENDS: u8 = 3;
/// The first window after an OACK is sent again so often while no block is acknowledged: ACK 0 says nothing that whoever
/// finds the transfer's port cannot say in another's name. A client that lost it asks for it by repeating its ACK.
const FIRST_WINDOW_RESENDS: u8 = 2;
/// A request repeated this soon after an ACK is an old copy that was overtaken, not a client that started again.
const OVERTAKEN: Duration = Duration::from_secs(1);
/// A duplicate ACK sooner than this after a send (or than the measured round trip) says nothing new. In lockstep it is
/// an old one that was delayed far more often than word of a loss; in a window, the first block's loss says itself so.
const DUPLICATE_MIN: Duration = Duration::from_millis(20);
const DUPLICATE_IN_WINDOW_MIN: Duration = Duration::from_millis(1);
/// Three round trips and this long after a window has left, its last block is sent again.
const PROBE_SLACK: Duration = Duration::from_millis(20);

/// Bounds on what is granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest `blksize` granted.
    pub blksize_max: u16,
    /// Largest `windowsize` granted.
    pub windowsize_max: u16,
    /// The block number after 65535: 0, as most clients expect, or 1.
    pub rollover_to: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { blksize_max: 65464, windowsize_max: 64, rollover_to: 0 }
    }
}

/// How the first answer looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Options were accepted.
    Oack,
    /// No options: the first block.
    Data,
}

/// How a transfer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The last block was acknowledged.
    Complete,
    /// The client asked for the size and aborted before any data: what firmware does before every download.
    ProbeAborted,
    /// The client gave up with an ERROR.
    ClientError(ErrorCode),
    /// The client fell silent.
    TimedOut,
}

/// Why a packet changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// An ACK repeated within a round trip of the last send.
    DuplicateAck,
    /// An ACK for a block that was acknowledged long ago.
    StaleAck,
    /// An ACK for a block that was never sent.
    FutureAck,
    /// An ACK of a block while the OACK is unanswered.
    AckBeforeOack,
    /// A copy of the request that comes after the ACKs of its answer.
    OvertakenRequest,
    /// A packet after the end.
    AfterEnd,
}

impl DropReason {
    /// Every reason.
    pub const ALL: &[Self] = &[
        Self::DuplicateAck,
        Self::StaleAck,
        Self::FutureAck,
        Self::AckBeforeOack,
        Self::OvertakenRequest,
        Self::AfterEnd,
    ];

    /// The word counters and logs use.
    pub fn word(self) -> &'static str {
        match self {
            Self::DuplicateAck => "duplicate-ack",
            Self::StaleAck => "stale-ack",
            Self::FutureAck => "future-ack",
            Self::AckBeforeOack => "ack-before-oack",
            Self::OvertakenRequest => "overtaken-request",
            Self::AfterEnd => "after-end",
        }
    }
}

/// What an input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Ask [`Transfer::poll_transmit`].
    Progress,
    /// Over; forget the transfer.
    Finished(Outcome),
    /// Nothing changed.
    Ignored(DropReason),
}

/// What to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transmit {
    /// An OACK with these options.
    Oack(Options),
    /// DATA packets.
    Data(Run),
}

/// Consecutive blocks of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Position of the first block in the file, counted from 0.
    pub first_index: u64,
    /// Blocks.
    pub count: u16,
    /// First byte.
    pub offset: u64,
    /// Payload bytes of all blocks.
    pub bytes: u64,
    blksize: u16,
    numbering: Numbering,
}

impl Run {
    /// The DATA header of the `i`-th block of the run.
    pub fn header(&self, i: u16) -> [u8; 4] {
        data_header(self.numbering.wire(self.first_index + u64::from(i) + 1))
    }

    /// Offset in the file and length of the `i`-th block's payload. All are `blksize` long but the file's last, which
    /// is shorter, possibly empty.
    pub fn slice(&self, i: u16) -> (u64, u16) {
        let before = u64::from(i) * u64::from(self.blksize);
        let left = self.bytes.saturating_sub(before).min(u64::from(self.blksize));
        (self.offset + before, left as u16)
    }
}

/// What the deadline is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Timer {
    /// The answer: then everything unacknowledged is sent again.
    Answer,
    /// The window's next piece.
    Piece,
    /// The answer to a window: then its last block is sent again.
    Probe,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The OACK is not acknowledged.
    Oack,
    /// Blocks are going out.
    Data,
    /// Over.
    Ended,
}

/// One transfer. About a hundred bytes, no allocation.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// File length in bytes.
    len: u64,
    /// Blocks acknowledged without a gap.
    acked: u64,
    /// Blocks sent since the last (re)start of the window; `acked <= next`.
    next: u64,
    /// Blocks ever sent.
    sent_max: u64,
    /// When the oldest unacknowledged packet was last sent.
    sent_at: Instant,
    /// When the client last moved on: it acknowledged something new, or asked anew.
    heard_at: Instant,
    deadline: Option<Instant>,
    timer: Timer,
    /// Sends of what is unacknowledged that brought no answer.
    unanswered: u8,
    /// Smoothed round trip in microseconds; 0 before the first measurement.
    rtt_us: u32,
    /// Current pause before a resend, in milliseconds.
    resend_ms: u16,
    /// How long after `heard_at` its last word came, if that only repeated an ACK, in milliseconds.
    repeated_ms: u16,
    resends: u16,
    blksize: u16,
    windowsize: u16,
    piece: Piece,
    /// Seconds between resends as agreed by the `timeout` option; 0 when not.
    timeout_secs: u8,
    phase: Phase,
    numbering: Numbering,
    asked: Asked,
    oack_due: bool,
    /// The window's last block may be sent once more before all of it is.
    may_probe: bool,
    probe_due: bool,
    /// The last block waits for [`Transfer::release`].
    held: bool,
    /// The round trip under way is of a resend, which measures nothing (Karn).
    resent: bool,
}

const _: () = assert!(size_of::<Transfer>() <= 128, "a transfer's machine is part of the memory promise");

/// Options to repeat in the OACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Asked {
    blksize: bool,
    tsize: bool,
    windowsize: bool,
}

impl Transfer {
    /// Negotiates a read of `len` bytes. A request without options is answered by the first block at once.
    pub fn accept(now: Instant, request: &Request<'_>, len: u64, limits: &Limits) -> (Self, Start) {
        let options = &request.options;
        let asked = Asked {
            blksize: options.blksize.is_some(),
            tsize: options.tsize.is_some(),
            windowsize: options.windowsize.is_some(),
        };
        let windowsize = options.windowsize.map_or(1, |asked| asked.min(limits.windowsize_max.max(1)));
        let timeout_secs = options.timeout_secs.unwrap_or(0);
        let oack = asked != Asked::default() || timeout_secs != 0;
        let transfer = Self {
            len,
            acked: 0,
            next: 0,
            sent_max: 0,
            sent_at: now,
            heard_at: now,
            deadline: Some(now + UNANSWERED_MAX),
            timer: Timer::Answer,
            unanswered: 0,
            rtt_us: 0,
            resend_ms: RESEND_FIRST.as_millis() as u16,
            repeated_ms: 0,
            resends: 0,
            blksize: options
                .blksize
                .map_or(BLKSIZE_DEFAULT, |asked| asked.min(limits.blksize_max).max(BLKSIZE_MIN)),
            windowsize,
            piece: Piece::whole(windowsize),
            timeout_secs,
            phase: if oack { Phase::Oack } else { Phase::Data },
            numbering: Numbering::new(limits.rollover_to),
            asked,
            oack_due: oack,
            may_probe: false,
            probe_due: false,
            held: false,
            resent: false,
        };
        (transfer, if oack { Start::Oack } else { Start::Data })
    }

    /// Keeps the last block back until [`Transfer::release`].
    pub fn hold_last(&mut self) {
        self.held = true;
    }

    /// Lets the last block go.
    pub fn release(&mut self) {
        self.held = false;
    }

    /// True when the last block is all that there is to send, and it is held back.
    pub fn waits_for_release(&self) -> bool {
        let last = self.blocks() - 1;
        self.held
            && self.phase == Phase::Data
            && self.next == last
            && self.acked + u64::from(self.windowsize) > last
    }

    /// Block length agreed on.
    pub fn blksize(&self) -> u16 {
        self.blksize
    }

    /// Window agreed on, in blocks.
    pub fn windowsize(&self) -> u16 {
        self.windowsize
    }

    /// File length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for an empty file.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes the client has acknowledged.
    pub fn acked_bytes(&self) -> u64 {
        self.acked.saturating_mul(u64::from(self.blksize)).min(self.len)
    }

    /// Windows and OACKs sent again.
    pub fn resends(&self) -> u16 {
        self.resends
    }

    /// How often the same blocks were sent without a word from the client; 0 while the OACK is not acknowledged.
    pub fn unanswered_sends(&self) -> u16 {
        if self.phase == Phase::Data { self.unanswered.into() } else { 0 }
    }

    /// The measured round trip.
    pub fn rtt(&self) -> Option<Duration> {
        (self.rtt_us > 0).then(|| Duration::from_micros(self.rtt_us.into()))
    }

    /// Blocks of the file: the last is the first one shorter than `blksize`, so an exact multiple has an empty one.
    fn blocks(&self) -> u64 {
        self.len / u64::from(self.blksize) + 1
    }

    /// True until the client's first ACK: whoever asked may never have sent the request.
    pub fn is_unanswered(&self) -> bool {
        let oack = self.asked != Asked::default() || self.timeout_secs != 0;
        self.acked == 0 && (self.phase == Phase::Oack || !oack)
    }

    /// The OACK, while it is not acknowledged.
    pub fn oack(&self) -> Option<Options> {
        (self.phase == Phase::Oack).then(|| Options {
            blksize: self.asked.blksize.then_some(self.blksize),
            tsize: self.asked.tsize.then_some(self.len),
            timeout_secs: (self.timeout_secs != 0).then_some(self.timeout_secs),
            windowsize: self.asked.windowsize.then_some(self.windowsize),
        })
    }

    /// An ACK from the transfer's own client.
    pub fn handle_ack(&mut self, now: Instant, block: u16) -> Verdict {
        match self.phase {
            Phase::Ended => return Verdict::Ignored(DropReason::AfterEnd),
            Phase::Oack if block != 0 => return Verdict::Ignored(DropReason::AckBeforeOack),
            Phase::Oack => {
                self.moved_on(now);
                self.measure(now);
                self.phase = Phase::Data;
                self.oack_due = false;
                self.may_probe = true;
                return Verdict::Progress;
            }
            Phase::Data => {}
        }
        let ahead = self.numbering.ahead(self.acked, block);
        if ahead > self.sent_max - self.acked {
            // Half the number space behind us is the past, the other half the future.
            return Verdict::Ignored(if ahead > u64::from(u16::MAX / 2) {
                DropReason::StaleAck
            } else {
                DropReason::FutureAck
            });
        }
        if ahead == 0 {
            if self.next == self.acked || self.waits_for_release() {
                // It waits for us.
                self.heard_at = now;
            }
            let after = now.saturating_duration_since(self.heard_at);
            self.repeated_ms = u16::try_from(after.as_millis()).unwrap_or(u16::MAX);
            return self.duplicate_ack(now);
        }
        self.moved_on(now);
        self.acked += ahead;
        self.may_probe = true;
        self.probe_due = false;
        self.timer = Timer::Answer;
        if self.acked == self.blocks() {
            self.phase = Phase::Ended;
            return Verdict::Finished(Outcome::Complete);
        }
        if self.acked >= self.next {
            // The whole window arrived (or more of it than we thought when we went back to resend).
            self.piece.arrived(self.windowsize);
            self.measure(now);
            self.next = self.acked;
        } else {
            // The client stops at a gap: resume behind it (RFC 7440 §4).
            self.piece.lost();
            self.lost();
        }
        self.resend_ms = self.resend_pause();
        Verdict::Progress
    }

    /// The client has not seen what follows `acked`. Believed once per round trip.
    fn duplicate_ack(&mut self, now: Instant) -> Verdict {
        let least = if self.windowsize > 1 { DUPLICATE_IN_WINDOW_MIN } else { DUPLICATE_MIN };
        let guard = self.rtt().unwrap_or(RESEND_MIN).max(least);
        if self.next == self.acked || now.saturating_duration_since(self.sent_at) < guard {
            return Verdict::Ignored(DropReason::DuplicateAck);
        }
        self.piece.lost();
        self.lost();
        Verdict::Progress
    }

    /// The client has moved on: what was counted since it last did is over.
    fn moved_on(&mut self, now: Instant) {
        self.heard_at = now;
        self.repeated_ms = 0;
        self.unanswered = 0;
    }

    /// Back to the first unacknowledged block.
    fn lost(&mut self) {
        self.next = self.acked;
        self.timer = Timer::Answer;
        self.probe_due = false;
        self.resends = self.resends.saturating_add(1);
        self.resent = true;
    }

    /// The client says ERROR.
    pub fn handle_error(&mut self, _now: Instant, code: ErrorCode) -> Verdict {
        let outcome = match self.phase {
            Phase::Ended => return Verdict::Ignored(DropReason::AfterEnd),
            Phase::Oack => Outcome::ProbeAborted,
            Phase::Data if self.acked == 0 && self.asked.tsize => Outcome::ProbeAborted,
            Phase::Data => Outcome::ClientError(code),
        };
        self.phase = Phase::Ended;
        Verdict::Finished(outcome)
    }

    /// The same request again, from the same address and port: the same answer, from the beginning.
    ///
    /// In a boot storm a client's second copy can still lie in a queue when its first one is answered and acknowledged:
    /// that copy changes nothing, or the transfer would wait for an ACK 0 that never comes.
    pub fn handle_retried_request(&mut self, now: Instant) -> Verdict {
        if self.phase == Phase::Ended {
            return Verdict::Ignored(DropReason::AfterEnd);
        }
        let last_word = self.heard_at + Duration::from_millis(self.repeated_ms.into());
        if !self.is_unanswered() && now.saturating_duration_since(last_word) < OVERTAKEN {
            return Verdict::Ignored(DropReason::OvertakenRequest);
        }
        self.moved_on(now);
        self.acked = 0;
        self.next = 0;
        self.sent_max = 0;
        self.timer = Timer::Answer;
        self.probe_due = false;
        self.resent = true;
        self.resends = self.resends.saturating_add(1);
        if self.asked != Asked::default() || self.timeout_secs != 0 {
            self.phase = Phase::Oack;
            self.oack_due = true;
        }
        Verdict::Progress
    }

    /// A deadline named by [`Transfer::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Instant) -> Verdict {
        if self.phase == Phase::Ended {
            return Verdict::Ignored(DropReason::AfterEnd);
        }
        if self.deadline.is_none_or(|at| at > now) {
            return Verdict::Progress;
        }
        let patience = self.patience();
        if now.saturating_duration_since(self.heard_at) >= patience {
            self.phase = Phase::Ended;
            return Verdict::Finished(Outcome::TimedOut);
        }
        match std::mem::replace(&mut self.timer, Timer::Answer) {
            Timer::Piece => return Verdict::Progress,
            Timer::Probe => {
                self.probe_due = true;
                self.may_probe = false;
                self.resent = true;
                self.resends = self.resends.saturating_add(1);
                return Verdict::Progress;
            }
            Timer::Answer => {}
        }
        if self.acked == 0 && self.unanswered >= self.resends_unproven() {
            self.deadline = Some(self.heard_at + patience);
            return Verdict::Progress;
        }
        if self.phase == Phase::Data && self.next == self.acked {
            // Nothing is out that could be lost: the wait is ours.
            self.deadline = Some((now + self.pause()).min(self.heard_at + patience));
            return Verdict::Progress;
        }
        if self.timeout_secs == 0 {
            self.resend_ms = self.resend_ms.saturating_mul(2).min(RESEND_MAX.as_millis() as u16);
        }
        match self.phase {
            Phase::Oack => {
                self.unanswered += 1;
                self.oack_due = true;
                self.resent = true;
                self.resends = self.resends.saturating_add(1);
            }
            _ => {
                self.unanswered = self.unanswered.saturating_add(1);
                self.may_probe = false;
                self.piece.silence();
                self.lost();
            }
        }
        Verdict::Progress
    }

    /// Where in the file the next blocks come from that [`Transfer::poll_transmit`] would give: first byte and length,
    /// at most `blocks_max` blocks of it. For who must know first whether the bytes are at hand.
    pub fn upcoming(&self, now: Instant, blocks_max: u16) -> Option<(u64, u64)> {
        if self.phase != Phase::Data || (self.timer == Timer::Piece && !self.is_due(now)) {
            return None;
        }
        let (first, count) = self.due_blocks(blocks_max)?;
        let offset = first * u64::from(self.blksize);
        Some((offset, (self.len - offset).min(u64::from(count) * u64::from(self.blksize))))
    }

    fn is_due(&self, now: Instant) -> bool {
        self.deadline.is_none_or(|at| at <= now)
    }

    /// First and number of the blocks that are to be sent next.
    fn due_blocks(&self, blocks_max: u16) -> Option<(u64, u16)> {
        if self.probe_due {
            return Some((self.next.checked_sub(1)?, 1));
        }
        let end = self.window_end();
        let count = end.checked_sub(self.next).filter(|count| *count > 0)?;
        let most = self.piece.blocks().min(blocks_max.max(1));
        Some((self.next, count.min(most.into()) as u16))
    }

    /// The block behind the last one the window allows.
    fn window_end(&self) -> u64 {
        let ready = self.blocks() - u64::from(self.held);
        ready.min(self.acked + u64::from(self.windowsize))
    }

    /// What to send next; `None` when everything the window allows is out.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.poll_transmit_within(now, u16::MAX)
    }

    /// The same, but at most `blocks_max` blocks (and no less than one): ask again for the rest when others had their
    /// turn.
    pub fn poll_transmit_within(&mut self, now: Instant, blocks_max: u16) -> Option<Transmit> {
        match self.phase {
            Phase::Ended => None,
            Phase::Oack => {
                if !std::mem::take(&mut self.oack_due) {
                    return None;
                }
                self.sent(now);
                self.oack().map(Transmit::Oack)
            }
            Phase::Data => {
                if self.timer == Timer::Piece && !self.is_due(now) {
                    return None;
                }
                let (first_index, count) = self.due_blocks(blocks_max)?;
                let blksize = u64::from(self.blksize);
                let offset = first_index * blksize;
                let run = Run {
                    first_index,
                    count,
                    offset,
                    bytes: (self.len - offset).min(u64::from(count) * blksize),
                    blksize: self.blksize,
                    numbering: self.numbering,
                };
                self.sent(now);
                if !std::mem::take(&mut self.probe_due) {
                    self.next += u64::from(count);
                    if self.next > self.sent_max {
                        // The ACK of a block that was sent once only measures again.
                        self.sent_max = self.next;
                        self.resent = false;
                    }
                    self.wait(now, count);
                }
                Some(Transmit::Data(run))
            }
        }
    }

    /// When to call [`Transfer::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.phase == Phase::Ended { None } else { self.deadline }
    }

    fn sent(&mut self, now: Instant) {
        self.sent_at = now;
        self.timer = Timer::Answer;
        self.deadline = Some((now + self.pause()).min(self.heard_at + self.patience()));
    }

    /// Before everything unacknowledged is sent again.
    fn pause(&self) -> Duration {
        match self.timeout_secs {
            0 => Duration::from_millis(self.resend_ms.into()),
            seconds => Duration::from_secs(seconds.into()),
        }
    }

    /// Blocks have left: what is waited for is the window's next piece, or its answer.
    fn wait(&mut self, now: Instant, count: u16) {
        let rtt = self.rtt();
        if self.next < self.window_end() {
            if count == self.piece.blocks() {
                self.timer = Timer::Piece;
                self.deadline = Some(now + Piece::gap(rtt));
            }
        } else if let Some(rtt) = rtt
            && self.windowsize > 1
            && self.timeout_secs == 0
            && self.may_probe
        {
            let at = now + rtt * 3 + PROBE_SLACK;
            if self.deadline.is_some_and(|deadline| at < deadline) {
                self.timer = Timer::Probe;
                self.deadline = Some(at);
            }
        }
    }

    /// How often what was sent is sent again while no block is acknowledged.
    fn resends_unproven(&self) -> u8 {
        match self.phase {
            Phase::Oack => OACK_RESENDS,
            _ if self.is_unanswered() => UNANSWERED_RESENDS,
            _ => FIRST_WINDOW_RESENDS,
        }
    }

    /// The silence after which it is over.
    fn patience(&self) -> Duration {
        if self.is_unanswered() {
            // Four sends need so long where the client has said how far apart they are to be, curl with 5 or 6 s.
            let four = Duration::from_secs(u64::from(self.timeout_secs) * 4);
            return if four <= SILENCE_MAX { four.max(UNANSWERED_MAX) } else { UNANSWERED_MAX };
        }
        if self.acked == 0 {
            return SILENCE_MAX;
        }
        let five = Duration::from_secs(u64::from(self.timeout_secs) * 5);
        five.clamp(SILENCE_MAX, SILENCE_AS_AGREED_MAX)
    }

    /// A send was answered for the first time: that is a round trip.
    fn measure(&mut self, now: Instant) {
        if std::mem::take(&mut self.resent) {
            return;
        }
        let sample = now.saturating_duration_since(self.sent_at).as_micros().clamp(1, u32::MAX.into()) as u32;
        self.rtt_us = match self.rtt_us {
            0 => sample,
            rtt => (u64::from(rtt) * 7 / 8 + u64::from(sample) / 8).clamp(1, u32::MAX.into()) as u32,
        };
    }

    fn resend_pause(&self) -> u16 {
        let pause = self.rtt().map_or(RESEND_FIRST, |rtt| rtt * 4).clamp(RESEND_MIN, RESEND_FIRST);
        pause.as_millis() as u16
    }
}

/// Drives a transfer by a list of operations taken from any bytes and holds what must hold whatever a client does:
/// no byte beyond the file, never more unacknowledged blocks than the window, no more than one window per input.
pub fn fuzz_transfer(start: Instant, bytes: &[u8]) {
    let mut input = crate::wire::reader::Reader::new(bytes);
    let Some([a, b, c, d, e, f]) = input.array::<6>() else { return };
    let options = Options {
        blksize: (a & 1 != 0).then(|| u16::from_be_bytes([b, c]).clamp(BLKSIZE_MIN, 65464)),
        tsize: (a & 2 != 0).then_some(0),
        timeout_secs: (a & 4 != 0).then_some(d.max(1)),
        windowsize: (a & 8 != 0).then(|| u16::from(e).max(1)),
    };
    let request = Request { write: false, name: b"x", mode: crate::wire::tftp::Mode::Octet, options };
    let limits = Limits { rollover_to: u16::from(a >> 4 & 1), ..Limits::default() };
    let len = (u64::from(f) << ((a >> 5) * 3)) | u64::from(d);
    let mut now = start;
    let (mut transfer, _) = Transfer::accept(now, &request, len, &limits);
    loop {
        let mut sent = 0;
        while let Some(transmit) = transfer.poll_transmit(now) {
            if let Transmit::Data(run) = transmit {
                sent += u64::from(run.count);
                assert!(run.offset + run.bytes <= len);
                let last = run.slice(run.count - 1);
                assert_eq!(last.0 + u64::from(last.1), run.offset + run.bytes);
            }
        }
        assert!(sent <= u64::from(transfer.windowsize()));
        assert!(transfer.next - transfer.acked <= u64::from(transfer.windowsize()));
        assert!(transfer.acked <= transfer.sent_max && transfer.sent_max <= transfer.blocks());
        assert!(transfer.acked > 0 || transfer.unanswered <= transfer.resends_unproven());
        let Some(operation) = input.u8() else { return };
        now += Duration::from_millis(u64::from(operation >> 4) * 40);
        let verdict = match operation & 7 {
            0 | 1 => transfer.handle_ack(now, transfer.numbering.wire(transfer.next)),
            2 => transfer.handle_ack(now, transfer.numbering.wire(transfer.acked)),
            3 => transfer.handle_ack(now, input.u16_be().unwrap_or(0)),
            4 => {
                now = transfer.poll_timeout().unwrap_or(now).max(now);
                transfer.handle_timeout(now)
            }
            5 => transfer.handle_retried_request(now),
            6 => transfer.handle_ack(now, 0),
            _ => transfer.handle_error(now, ErrorCode::from_code(u16::from(operation))),
        };
        if let Verdict::Finished(_) = verdict {
            assert_eq!(transfer.poll_transmit(now), None);
            assert_eq!(transfer.poll_timeout(), None);
            return;
        }
    }
}

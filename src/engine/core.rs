//! The loop of one core: wait, then one turn with a budget, in a fixed order of priority.
//!
//! 1. DHCP (on the core that owns it)
//! 2. TFTP requests and acknowledgements
//! 3. HTTP connections, requests, small answers
//! 4. bulk sends, who has had least first
//! 5. deadlines
//! 6. messages from the control side
//!
//! mio reports edges: whatever stops at its budget stays on its own ready list, and the loop does not sleep while
//! any list has entries but that of downloads that wait for a disk.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::os::fd::RawFd;

use super::counters::{Count, Tally};
use super::dhcp::DhcpSide;
use super::http::HttpSide;
use super::shared::Shared;
use super::slab::Key;
use super::tftp::TftpSide;
use super::wheel::Wheel;
use crate::keeper::{Answer, Desk};
use crate::sys::timer::Timer;
use crate::sys::udp::{RecvBatch, SendBatch};
use crate::sys::uring::SendRing;

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;
/// Longest sleep: a stop or a new address is noticed by waker anyway, this is only a backstop.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// Turns in a row that take frames from a ring, whose own memory says that they are there, before the kernel is asked for
/// other events again.
const TURNS_UNASKED: u32 = 8;

/// After a turn with this many TFTP packets the core looks out for more before it sleeps, ...
const STORM: usize = 32;
/// ... for so long a packet: a quarter of what it takes to serve one. Waking a sleeping core up takes longer than a batch, and
/// clients in lockstep, who are all waited for by then, would from that time on be served in turns with the network.
const LOOK_OUT: Duration = Duration::from_nanos(200);
/// Not more packets than these count: a tenth of a millisecond is the longest that everything else waits.
const LOOK_OUT_PACKETS: usize = 512;

/// What a readiness event, a deadline or a ring completion belongs to, packed into 64 bits:
/// kind (8), index (24), generation (32).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// Messages from the control side.
    Wake,
    /// The ring has completions.
    Ring,
    /// A raw DHCP socket.
    DhcpRaw(u32),
    /// A UDP DHCP socket.
    DhcpUdp(u32),
    /// A socket that hears who has an address.
    DhcpProbe(u32),
    /// DHCP's own deadlines.
    DhcpTimer,
    /// The journal of leases.
    DhcpJournal,
    /// A TFTP socket: listeners first, then data ports.
    Tftp(u32),
    /// A ring of frames for TFTP.
    TftpFrames(u32),
    /// The timer for deadlines that are near.
    Near,
    /// A TFTP transfer.
    Transfer(Key),
    /// An HTTP listener.
    HttpListener(u32),
    /// An HTTP connection.
    Connection(Key),
    /// Downloads that wait for a disk.
    HttpCold,
}

impl Owner {
    /// As a 64-bit number.
    pub(super) fn pack(self) -> u64 {
        let (kind, index, generation) = match self {
            Self::Wake => (0, 0, 0),
            Self::Ring => (1, 0, 0),
            Self::DhcpRaw(index) => (2, index, 0),
            Self::DhcpUdp(index) => (3, index, 0),
            Self::DhcpTimer => (4, 0, 0),
            Self::Tftp(index) => (5, index, 0),
            Self::Transfer(key) => (6, key.index, key.generation),
            Self::HttpListener(index) => (7, index, 0),
            Self::Connection(key) => (8, key.index, key.generation),
            Self::TftpFrames(index) => (9, index, 0),
            Self::Near => (10, 0, 0),
            Self::DhcpJournal => (11, 0, 0),
            Self::DhcpProbe(index) => (12, index, 0),
            Self::HttpCold => (13, 0, 0),
        };
        u64::from(kind as u8) << 56 | u64::from(index & 0x00ff_ffff) << 32 | u64::from(generation)
    }

    /// Back from a number made by [`Owner::pack`].
    pub(super) fn unpack(packed: u64) -> Option<Self> {
        let index = (packed >> 32) as u32 & 0x00ff_ffff;
        let key = Key { index, generation: packed as u32 };
        Some(match packed >> 56 {
            0 => Self::Wake,
            1 => Self::Ring,
            2 => Self::DhcpRaw(index),
            3 => Self::DhcpUdp(index),
            4 => Self::DhcpTimer,
            5 => Self::Tftp(index),
            6 => Self::Transfer(key),
            7 => Self::HttpListener(index),
            8 => Self::Connection(key),
            9 => Self::TftpFrames(index),
            10 => Self::Near,
            11 => Self::DhcpJournal,
            12 => Self::DhcpProbe(index),
            13 => Self::HttpCold,
            _ => return None,
        })
    }

    fn token(self) -> Token {
        Token(self.pack() as usize)
    }
}

/// Registers a descriptor for reading, edge-triggered.
pub(super) fn watch(registry: &Registry, fd: RawFd, owner: Owner) -> io::Result<()> {
    registry.register(&mut SourceFd(&fd), owner.token(), Interest::READABLE)
}

/// Registers a connection for both directions.
pub(super) fn watch_both(registry: &Registry, fd: RawFd, owner: Owner) -> io::Result<()> {
    registry.register(&mut SourceFd(&fd), owner.token(), Interest::READABLE | Interest::WRITABLE)
}

/// What every part of a core's turn may use.
pub(super) struct Turn<'a> {
    /// Read once per turn.
    pub now: Instant,
    /// The calendar's, read once per turn.
    pub wall: SystemTime,
    /// This core's number.
    pub core: usize,
    /// What all cores read.
    pub shared: &'a Shared,
    /// This core's counters.
    pub tally: &'a Tally,
    /// This core's deadlines.
    pub wheel: &'a mut Wheel,
    /// For receiving datagrams.
    pub recv: &'a mut RecvBatch,
    /// For sending datagrams.
    pub send: &'a mut SendBatch,
    /// This core's ring, where there is one.
    pub ring: Option<&'a mut SendRing>,
    /// For new connections.
    pub registry: &'a Registry,
    /// Where this core hears what became of its boots at the point of no return.
    pub desk: &'a Arc<dyn Desk>,
}

/// A core's desk: answers of the keeper, and the waker that makes the core look at them.
///
/// The queue has no bound of its own: each connection and each transfer has at most one question out.
#[derive(Debug)]
struct CoreDesk {
    answers: Sender<(u64, Answer)>,
    waker: Arc<Waker>,
}

impl Desk for CoreDesk {
    fn answer(&self, tag: u64, answer: Answer) {
        // A core that is gone needs no answer.
        if self.answers.send((tag, answer)).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// One core: made on the main thread (so that every failure to bind is known before the server says it is ready),
/// run on its own.
pub(super) struct Core {
    pub(super) index: usize,
    pub(super) poll: Poll,
    pub(super) shared: Arc<Shared>,
    pub(super) tally: Tally,
    pub(super) dhcp: Option<DhcpSide>,
    pub(super) tftp: TftpSide,
    pub(super) http: HttpSide,
    pub(super) ring: Option<SendRing>,
    /// Wakes the loop for deadlines that fall between the milliseconds it can wait for.
    timer: Option<Timer>,
    /// What the timer is set for.
    timer_at: Option<Instant>,
    desk: Option<(Arc<dyn Desk>, Receiver<(u64, Answer)>)>,
}

impl Core {
    /// A core that waits for nothing yet.
    #[allow(clippy::too_many_arguments, reason = "its parts, once")]
    pub(super) fn new(
        index: usize,
        poll: Poll,
        shared: Arc<Shared>,
        tally: Tally,
        dhcp: Option<DhcpSide>,
        tftp: TftpSide,
        http: HttpSide,
        ring: Option<SendRing>,
    ) -> Self {
        Self { index, poll, shared, tally, dhcp, tftp, http, ring, timer: None, timer_at: None, desk: None }
    }

    /// Registers everything this core waits for; the waker is for the control side.
    pub(super) fn register(&mut self) -> io::Result<Arc<Waker>> {
        let registry = self.poll.registry();
        let waker = Arc::new(Waker::new(registry, Owner::Wake.token())?);
        let (answers, heard) = crossbeam_channel::unbounded();
        self.desk = Some((Arc::new(CoreDesk { answers, waker: Arc::clone(&waker) }), heard));
        let timer = Timer::new()?;
        watch(registry, std::os::fd::AsRawFd::as_raw_fd(&timer), Owner::Near)?;
        self.timer = Some(timer);
        if let Some(ring) = &self.ring {
            watch(registry, std::os::fd::AsRawFd::as_raw_fd(ring), Owner::Ring)?;
        }
        if let Some(dhcp) = &self.dhcp {
            dhcp.register(registry)?;
        }
        self.tftp.register(registry)?;
        self.http.register(registry)?;
        Ok(waker)
    }

    /// Looks out for more packets, in a storm, for a moment; true when there are any: frames, or events.
    fn more_comes(&mut self, events: &mut Events) -> bool {
        let taken = self.tftp.take_count();
        if taken < STORM {
            return false;
        }
        let until = Instant::now() + LOOK_OUT * taken.min(LOOK_OUT_PACKETS) as u32;
        let by_frame = self.tftp.is_by_frame();
        while Instant::now() < until {
            if by_frame {
                std::hint::spin_loop();
                if self.tftp.has_frames() {
                    return true;
                }
            } else if self.poll.poll(events, Some(Duration::ZERO)).is_err() || !events.is_empty() {
                // An error comes again when this is waited for.
                return !events.is_empty();
            }
        }
        false
    }

    /// How long to wait for events; the timer is set where the wait itself is too coarse.
    fn wait(&mut self, wheel: &Wheel, drain_until: Option<Instant>) -> Duration {
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        let wait = wheel.next().into_iter().chain(drain_until).map(until).min().unwrap_or(SLEEP_MAX);
        if let Some(at) = wheel.next_near()
            && self.timer_at != Some(at)
            && until(at) <= wait
            && !until(at).is_zero()
            && let Some(timer) = &self.timer
        {
            self.timer_at = Some(at);
            if let Err(error) = timer.set(until(at)) {
                tracing::debug!(%error, "the timer cannot be set: what is near waits for the next millisecond");
            }
        }
        wait.min(SLEEP_MAX)
    }

    /// Runs until told to stop: first draining, for a bounded time, then for good.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut wheel = Wheel::new(Instant::now());
        let mut recv = RecvBatch::new();
        let mut send = SendBatch::new();
        let mut fired = Vec::new();
        let mut drain_until: Option<Instant> = None;
        let Some((desk, answers)) = self.desk.take() else { return };
        if let Some(dhcp) = &mut self.dhcp {
            dhcp.ready_all();
        }
        let mut unasked = 0;
        loop {
            self.tally.add(Count::LoopTurns, 1);
            events.clear();
            let others_busy = self.http.is_busy() || self.dhcp.as_ref().is_some_and(DhcpSide::is_busy);
            let may_go_on = !others_busy && unasked < TURNS_UNASKED;
            if may_go_on && (self.tftp.has_frames() || (!self.tftp.is_busy() && self.more_comes(&mut events)))
            {
                unasked += 1;
            } else {
                let busy = others_busy || self.tftp.is_busy() || unasked == TURNS_UNASKED;
                unasked = 0;
                let wait = if busy { Duration::ZERO } else { self.wait(&wheel, drain_until) };
                if let Err(error) = self.poll.poll(&mut events, Some(wait))
                    && error.kind() != io::ErrorKind::Interrupted
                {
                    tracing::error!(core = self.index, %error, "the loop cannot wait for events; this core stops");
                    return;
                }
            }
            let (mut ring_ready, mut woken) = (false, false);
            for event in &events {
                match Owner::unpack(event.token().0 as u64) {
                    Some(Owner::Ring) => ring_ready = true,
                    Some(Owner::Wake) => woken = true,
                    Some(Owner::DhcpRaw(index)) => {
                        if let Some(dhcp) = &mut self.dhcp {
                            dhcp.raw_readable(index);
                        }
                    }
                    Some(Owner::DhcpUdp(index)) => {
                        if let Some(dhcp) = &mut self.dhcp {
                            dhcp.udp_readable(index);
                        }
                    }
                    Some(Owner::DhcpProbe(_)) => {
                        if let Some(dhcp) = &mut self.dhcp {
                            dhcp.probe_readable();
                        }
                    }
                    Some(Owner::Tftp(index)) => self.tftp.readable(index),
                    Some(Owner::TftpFrames(index)) => self.tftp.frames_readable(index),
                    Some(Owner::HttpListener(index)) => self.http.acceptable(index),
                    Some(Owner::Connection(key)) => self.http.event(key, event),
                    Some(
                        Owner::Near
                        | Owner::DhcpTimer
                        | Owner::DhcpJournal
                        | Owner::Transfer(_)
                        | Owner::HttpCold,
                    )
                    | None => {}
                }
            }
            let mut turn = Turn {
                now: Instant::now(),
                wall: SystemTime::now(),
                core: self.index,
                shared: &self.shared,
                tally: &self.tally,
                wheel: &mut wheel,
                recv: &mut recv,
                send: &mut send,
                ring: self.ring.as_mut(),
                registry: self.poll.registry(),
                desk: &desk,
            };
            for (tag, answer) in answers.try_iter() {
                match Owner::unpack(tag) {
                    Some(Owner::Connection(key)) => self.http.answered(key, answer),
                    Some(Owner::Transfer(key)) => self.tftp.answered(key, answer, &mut turn),
                    Some(Owner::DhcpJournal) => {
                        if let Some(dhcp) = &mut self.dhcp {
                            dhcp.journalled(answer, &mut turn);
                        }
                    }
                    _ => {}
                }
            }
            if woken {
                let links = self.shared.interfaces.load();
                self.dhcp.iter_mut().for_each(|dhcp| dhcp.readdress(&links));
                self.tftp.readdress(&links);
            }
            if let Some(dhcp) = &mut self.dhcp {
                dhcp.turn(&mut turn);
            }
            self.tftp.turn(&mut turn);
            if ring_ready {
                self.http.ring_completions(&mut turn);
            }
            self.http.turn(&mut turn);
            if let Some(ring) = turn.ring.as_deref_mut()
                && let Err(error) = ring.submit()
            {
                tracing::warn!(core = self.index, %error, "io_uring takes no more sends for now");
            }
            turn.wheel.expire(turn.now, &mut fired);
            for owner in fired.drain(..).filter_map(Owner::unpack) {
                match owner {
                    Owner::DhcpTimer => {
                        if let Some(dhcp) = &mut self.dhcp {
                            dhcp.expired(&mut turn);
                        }
                    }
                    Owner::Transfer(key) => self.tftp.expired(key, &mut turn),
                    Owner::Connection(key) => self.http.expired(key, &mut turn),
                    Owner::HttpCold => self.http.look_again(&mut turn),
                    _ => {}
                }
            }
            self.tftp.flush(&mut turn);
            if let Some(drain_for) = self.shared.stopping()
                && drain_until.is_none()
            {
                drain_until = Some(turn.now + drain_for);
                self.http.stop_accepting(turn.registry);
                self.tftp.stop_accepting();
                self.dhcp = None;
            }
            let idle = || self.tftp.is_idle() && self.http.is_idle() && !self.http.owes();
            if drain_until.is_some_and(|until| idle() || Instant::now() >= until) {
                break;
            }
        }
        let cut = self.tftp.len() + self.http.busy_connections();
        if cut > 0 {
            tracing::warn!(core = self.index, cut, "stopped with transfers still running");
        }
        self.http.close_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_survive_packing() {
        let key = Key { index: 0x00ab_cdef, generation: 0xdead_beef };
        for owner in [
            Owner::Wake,
            Owner::Ring,
            Owner::DhcpRaw(3),
            Owner::DhcpUdp(1),
            Owner::DhcpTimer,
            Owner::DhcpProbe(2),
            Owner::Tftp(9),
            Owner::TftpFrames(1),
            Owner::Near,
            Owner::DhcpJournal,
            Owner::Transfer(key),
            Owner::HttpListener(2),
            Owner::Connection(key),
            Owner::HttpCold,
        ] {
            assert_eq!(Owner::unpack(owner.pack()), Some(owner));
        }
        assert_eq!(Owner::unpack(u64::MAX), None);
    }
}

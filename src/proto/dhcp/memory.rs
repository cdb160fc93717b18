//! What is remembered of machines between two of their messages, leases aside: a fixed table, where a newer machine
//! takes the place of an older one. Forgetting is harmless, so strangers can do no more than cause it.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::leases::Keyed;
use crate::wire::{Arch, MacAddr};

/// Machines remembered at once.
const SEEN_COUNT: usize = 16_384;
/// Other PXE servers remembered.
const RIVAL_COUNT: usize = 16;
/// How long another PXE server counts as present after it was heard.
const RIVAL_PRESENT: Duration = Duration::from_secs(600);
/// A server that is still there is named again after this.
const RIVAL_NAMED_AGAIN: Duration = Duration::from_secs(24 * 3600);
/// A machine once left to the other server, and answered at its retry, is answered for this long: its later stages too.
const ANSWERED_AFTER_RETRY: Duration = Duration::from_secs(120);
/// Two copies of one DISCOVER (direct and relayed) come closer together than a retry does; iPXE's first is after 1 s.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(500);
/// Messages of one machine in one second. Through two relays and with retries a boot needs less than ten.
const MESSAGES_PER_SECOND_MAX: u8 = 100;
/// Firmware that starts again within this, so often, is going round in circles.
const RESTARTS_WITHIN: Duration = Duration::from_secs(900);
const RESTARTS_NOTICED: u8 = 5;
/// A machine that starts again sooner was switched off by somebody; its loader had no chance.
const LOADER_TRIED_MIN: Duration = Duration::from_secs(12);
/// A machine that starts again later had done something else meanwhile.
const LOADER_TRIED_MAX: Duration = Duration::from_secs(900);
/// An iPXE without HTTP that comes back sooner was not switched on anew: no firmware is that fast.
const FULL_LOADER_AGAIN: Duration = Duration::from_secs(30);
/// Machines whose loader is not the first, remembered for good.
const LOADERS_MAX: usize = 65_536;
/// `secs` of a first message that was preceded by others nobody heard: a port that does not forward yet.
const LATE_SECS: u16 = 4;
/// Notices that nobody has taken; beyond it the newest are dropped.
const NOTICES_MAX: usize = 32;

/// Something an operator might want to know, told once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Another server answers machines that boot from the network.
    OtherServer {
        /// Index of the interface it was heard on.
        interface: u32,
        /// What it said.
        rival: Rival,
    },
    /// A machine's firmware starts again and again.
    Restarting {
        /// The machine.
        mac: MacAddr,
        /// Starts within a quarter of an hour.
        count: u8,
    },
    /// The first message heard of a machine was not the first it sent: its switch port was not forwarding yet.
    LateFirst {
        /// The machine.
        mac: MacAddr,
        /// Seconds it says it has been trying.
        secs: u16,
    },
    /// An address that was to be offered first is in use without a lease, and put aside for ten minutes.
    InUse {
        /// The address.
        ip: Ipv4Addr,
        /// Who answered, where that is known.
        by: Option<MacAddr>,
    },
    /// More addresses are said to be in use, by answers to who asks for them or by DECLINE, than can be believed: they are
    /// offered all the same. Told once in ten minutes, whoever it is.
    Disbelieved {
        /// Who said so last, where that is known.
        by: Option<MacAddr>,
    },
    /// A machine came back without having reached its script, and is given the next loader, where there is one.
    NextLoader {
        /// The machine.
        mac: MacAddr,
        /// As [`super::Wish::pass_over`].
        pass_over: u8,
    },
}

/// What another server's offer looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rival {
    /// Its option 54.
    pub server: Ipv4Addr,
    /// It calls itself a PXE or HTTP Boot server (option 60).
    pub pxe: bool,
    /// It names a boot file.
    pub has_file: bool,
    /// It sends option 43.
    pub has_vendor_options: bool,
    /// It gives addresses.
    pub gives_addresses: bool,
}

/// One message, as far as the memory cares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) xid: u32,
    pub(super) secs: u16,
    /// Firmware begins a boot with it, or repeats that.
    pub(super) starts: bool,
}

/// A moment, in milliseconds since the memory was made, and never 0; 49 days go in, and who was seen before that counts
/// as new.
type Moment = NonZeroU32;

/// One cache line, which every message touches.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Seen {
    mac: MacAddr,
    arch: Option<Arch>,
    /// When and in which exchange it was left to another server, whether by its iPXE, and whether it then came to us.
    deferred_at: Option<Moment>,
    deferred_xid: u32,
    deferred_ipxe: bool,
    ours: bool,
    /// The second `count` is of.
    second: Option<Moment>,
    count: u8,
    starts: u8,
    /// Loaders passed over.
    pass_over: u8,
    /// The boot firmware began last, and when the first of `starts` was.
    start_xid: Option<u32>,
    starts_since: Option<Moment>,
    /// Since when it has its loader without having come to its script.
    tried_since: Option<Moment>,
    tried_xid: u32,
    /// When and in which exchange its iPXE without HTTP was given a full one.
    full_since: Option<Moment>,
    full_xid: u32,
    /// Its last DISCOVER was not: nor is what follows it.
    full_refused: bool,
}

const _: () = assert!(size_of::<Seen>() == 64);

/// Whether less than `time` lies between two moments.
fn within(now: Moment, since: Moment, time: Duration) -> bool {
    u128::from(now.get().wrapping_sub(since.get())) < time.as_millis()
}

impl Seen {
    const fn nothing(mac: MacAddr) -> Self {
        Self {
            mac,
            arch: None,
            deferred_at: None,
            deferred_xid: 0,
            deferred_ipxe: false,
            ours: false,
            second: None,
            count: 0,
            start_xid: None,
            starts_since: None,
            starts: 0,
            pass_over: 0,
            tried_since: None,
            tried_xid: 0,
            full_since: None,
            full_xid: 0,
            full_refused: false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Present {
    interface: u32,
    rival: Rival,
    heard: Instant,
    named: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    seen: Box<[Seen]>,
    /// What moments count from: the first message.
    origin: Option<Instant>,
    rivals: [Option<Present>; RIVAL_COUNT],
    /// Machines for which another loader than the first has worked.
    loaders: HashMap<MacAddr, u8, Keyed>,
    changed: Vec<(MacAddr, u8)>,
    journal: bool,
    notices: VecDeque<Notice>,
    keyed: Keyed,
    /// The machine looked for last, and its place: one message looks several times.
    last: (MacAddr, usize),
}

impl Memory {
    pub(super) fn new(keyed: Keyed, journal: bool) -> Self {
        // The zero address is no machine's, so an empty place matches nobody.
        Self {
            seen: vec![Seen::nothing(MacAddr::default()); SEEN_COUNT].into_boxed_slice(),
            origin: None,
            rivals: [None; RIVAL_COUNT],
            loaders: HashMap::with_hasher(keyed),
            changed: Vec::new(),
            journal,
            notices: VecDeque::new(),
            keyed,
            last: (MacAddr::default(), place(keyed, MacAddr::default())),
        }
    }

    /// Counts a message; false when its machine has said too much in this second.
    pub(super) fn admits(&mut self, mac: MacAddr, now: Instant, heard: &Heard) -> bool {
        let now = self.moment(now);
        let seen = self.seen_mut(mac);
        let known = seen.second.is_some();
        match seen.second {
            Some(second) if within(now, second, Duration::from_secs(1)) => {
                seen.count = seen.count.saturating_add(1);
                if seen.count > MESSAGES_PER_SECOND_MAX {
                    return false;
                }
            }
            _ => (seen.second, seen.count) = (Some(now), 1),
        }
        if !heard.starts || seen.start_xid == Some(heard.xid) {
            return true;
        }
        seen.start_xid = Some(heard.xid);
        match seen.starts_since {
            Some(since) if within(now, since, RESTARTS_WITHIN) => {
                seen.starts = seen.starts.saturating_add(1);
                if seen.starts == RESTARTS_NOTICED {
                    let count = seen.starts;
                    self.notice(Notice::Restarting { mac, count });
                }
            }
            _ => (seen.starts_since, seen.starts) = (Some(now), 1),
        }
        if !known && heard.secs >= LATE_SECS {
            self.notice(Notice::LateFirst { mac, secs: heard.secs });
        }
        true
    }

    /// What is remembered of a machine, or of another one in the same place: something to be brought near.
    pub(super) fn of(&self, mac: MacAddr) -> &(impl Sized + use<>) {
        &self.seen[place(self.keyed, mac)]
    }

    /// The architecture the machine last named.
    pub(super) fn arch(&self, mac: MacAddr) -> Option<Arch> {
        self.seen.get(place(self.keyed, mac)).filter(|seen| seen.mac == mac)?.arch
    }

    /// Remembers the architecture a machine names.
    pub(super) fn note_arch(&mut self, mac: MacAddr, arch: Arch) {
        self.seen_mut(mac).arch = Some(arch);
    }

    /// The loader for a machine whose firmware begins a boot: the one that worked; the next one when it comes back
    /// without having reached its script.
    pub(super) fn loader_for_start(&mut self, mac: MacAddr, xid: u32, now: Instant) -> u8 {
        let now = self.moment(now);
        let worked = self.worked(mac);
        let seen = self.seen_mut(mac);
        if seen.tried_since.is_none() {
            seen.pass_over = worked;
        }
        match seen.tried_since {
            // The DISCOVER again, or somebody's hand on the switch.
            Some(since) if within(now, since, LOADER_TRIED_MIN) || seen.tried_xid == xid => {}
            Some(since) if within(now, since, LOADER_TRIED_MAX) => {
                seen.pass_over = seen.pass_over.wrapping_add(1);
                (seen.tried_since, seen.tried_xid) = (Some(now), xid);
                let pass_over = seen.pass_over;
                self.notice(Notice::NextLoader { mac, pass_over });
                return pass_over;
            }
            _ => (seen.tried_since, seen.tried_xid) = (Some(now), xid),
        }
        seen.pass_over
    }

    /// Whether an iPXE without HTTP is given a full one: once. If it comes back at once, that one cannot fetch by HTTP
    /// either, and would come back without end. `discover` is the number of the exchange that begins with this message.
    pub(super) fn gets_full_loader(&mut self, mac: MacAddr, discover: Option<u32>, now: Instant) -> bool {
        let now = self.moment(now);
        let seen = self.seen_mut(mac);
        let Some(xid) = discover else { return !seen.full_refused };
        match seen.full_since {
            Some(since) if within(now, since, FULL_LOADER_AGAIN) => seen.full_refused = seen.full_xid != xid,
            _ => (seen.full_since, seen.full_xid, seen.full_refused) = (Some(now), xid, false),
        }
        !seen.full_refused
    }

    /// The loader the machine was last offered.
    pub(super) fn loader(&mut self, mac: MacAddr) -> u8 {
        let worked = self.worked(mac);
        let seen = self.seen_mut(mac);
        if seen.tried_since.is_some() { seen.pass_over } else { worked }
    }

    fn worked(&self, mac: MacAddr) -> u8 {
        if self.loaders.is_empty() { 0 } else { self.loaders.get(&mac).copied().unwrap_or(0) }
    }

    /// The machine's loader has worked: iPXE asks.
    pub(super) fn note_script(&mut self, mac: MacAddr) {
        let seen = self.seen_mut(mac);
        if seen.tried_since.take().is_none() {
            return;
        }
        let worked = seen.pass_over;
        let before = self.loaders.get(&mac).copied();
        if before.unwrap_or(0) == worked || before.is_none() && self.loaders.len() >= LOADERS_MAX {
            return;
        }
        self.restore_loader(mac, worked);
        if self.journal {
            self.changed.push((mac, worked));
        }
    }

    /// Takes back what was stored.
    pub(super) fn restore_loader(&mut self, mac: MacAddr, pass_over: u8) {
        match pass_over {
            0 => drop(self.loaders.remove(&mac)),
            _ => drop(self.loaders.insert(mac, pass_over)),
        }
    }

    pub(super) fn change_count(&self) -> usize {
        self.changed.len()
    }

    pub(super) fn take_changes(&mut self, mut take: impl FnMut(MacAddr, u8)) {
        self.changed.drain(..).for_each(|(mac, pass_over)| take(mac, pass_over));
    }

    pub(super) fn notices(&mut self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.drain(..)
    }

    /// Another PXE server was heard on an interface.
    pub(super) fn note_rival(&mut self, interface: u32, now: Instant, rival: Rival) {
        let is_it = |present: &Option<Present>| {
            present.is_some_and(|it| it.interface == interface && it.rival.server == rival.server)
        };
        let known = self.rivals.iter().position(is_it);
        // Whoever was silent the longest makes room.
        let place = known.or_else(|| self.rivals.iter().position(Option::is_none)).unwrap_or_else(|| {
            let oldest = self.rivals.iter().enumerate().min_by_key(|(_, it)| it.map(|it| it.heard));
            oldest.map_or(0, |(place, _)| place)
        });
        let before = known.and_then(|place| self.rivals[place]);
        let named = before
            .map(|it| it.named)
            .filter(|named| now.saturating_duration_since(*named) < RIVAL_NAMED_AGAIN);
        self.rivals[place] = Some(Present { interface, rival, heard: now, named: named.unwrap_or(now) });
        if named.is_none() {
            self.notice(Notice::OtherServer { interface, rival });
        }
    }

    /// True when a DISCOVER of a machine without a job is to be left to another PXE server: one was heard here
    /// lately, and this is not yet the machine's retry. iPXE repeats itself in one exchange, so another one of its is
    /// another stage of a boot that the other server may have begun; of firmware any further message counts as a retry.
    pub(super) fn defers(
        &mut self,
        interface: u32,
        mac: MacAddr,
        xid: u32,
        ipxe: bool,
        now: Instant,
    ) -> bool {
        let present =
            self.rivals.iter().flatten().any(|it| {
                it.interface == interface && now.saturating_duration_since(it.heard) < RIVAL_PRESENT
            });
        if !present {
            return false;
        }
        let now = self.moment(now);
        let seen = self.seen_mut(mac);
        let again = seen.deferred_xid == xid || !ipxe && !seen.deferred_ipxe;
        match seen.deferred_at {
            Some(since) if seen.ours && within(now, since, ANSWERED_AFTER_RETRY) => false,
            Some(since) if again && within(now, since, RETRY_AFTER_MIN) => true,
            Some(since) if again && within(now, since, ANSWERED_AFTER_RETRY) => {
                seen.ours = true;
                false
            }
            _ => {
                (seen.deferred_at, seen.deferred_xid) = (Some(now), xid);
                (seen.deferred_ipxe, seen.ours) = (ipxe, false);
                true
            }
        }
    }

    fn moment(&mut self, now: Instant) -> Moment {
        let since = now.saturating_duration_since(*self.origin.get_or_insert(now));
        Moment::new((since.as_millis() as u32).wrapping_add(1)).unwrap_or(Moment::MIN)
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push_back(notice);
        }
    }

    fn seen_mut(&mut self, mac: MacAddr) -> &mut Seen {
        if self.last.0 != mac {
            self.last = (mac, place(self.keyed, mac));
        }
        let seen = &mut self.seen[self.last.1];
        if seen.mac != mac {
            *seen = Seen::nothing(mac);
        }
        seen
    }
}

fn place(keyed: Keyed, mac: MacAddr) -> usize {
    keyed.hash_one(mac) as usize % SEEN_COUNT
}

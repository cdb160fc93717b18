//! Who may fetch an image now, and who waits.
//!
//! A link that is full serves everybody last if everybody shares it; if only as many boots as fill it run at once, the
//! mean machine has its image in half the time and the last one no later. Whether a boot runs is decided once, when its
//! script is asked for: an admitted boot is never refused a byte. First come, first served: a machine goes ahead of an
//! earlier one only where that one waits for something it does not need itself.
//!
//! A place ends when the last file has left, when nothing was fetched for [`SILENCE`], or [`FIRST_SILENCE`] after the
//! script if nothing was fetched at all. A machine in line that stops asking leaves it after [`LINE_SILENCE`].

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::token::BootId;
use crate::wire::MacAddr;

/// How long a boot may fetch nothing new: a large file says that it goes on every 30 s.
pub const SILENCE: Duration = Duration::from_secs(90);
/// How long a machine may take from its script to its first file.
pub const FIRST_SILENCE: Duration = Duration::from_secs(20);
/// How long a machine in line may be silent: it asks again every [`AGAIN_MAX`] at most.
pub const LINE_SILENCE: Duration = Duration::from_secs(30);
/// A machine in line asks again after this long at least.
pub const AGAIN_MIN: Duration = Duration::from_secs(1);
/// And after this long at most, but for the spread.
pub const AGAIN_MAX: Duration = Duration::from_secs(10);
/// Neighbours in line ask this far apart, up to [`SPREAD_PLACES`] of them: machines that all came at once would else all ask
/// at once, and begin and end at once, with the link idle in between.
const SPREAD: Duration = Duration::from_millis(250);
const SPREAD_PLACES: u32 = 8;
/// Machines in line; beyond it they are only told to come back.
pub const LINE_MAX: usize = 16 * 1024;
/// Who stands further back is never near: finding out takes a walk along the line, under its lock.
const NEAR_PLACES: usize = 1024;
/// How often those who have gone silent are looked for: it takes a walk through all.
const SILENT_EVERY: Duration = Duration::from_millis(500);

/// Boots that may fetch at once; 0 is any number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// The same image.
    pub per_image: u32,
    /// In the same subnet.
    pub per_subnet: u32,
    /// From the same address of this server, which stands for its link.
    pub per_link: u32,
}

impl Limits {
    /// False when nobody ever waits.
    pub fn limits_anything(&self) -> bool {
        self.per_image != 0 || self.per_subnet != 0 || self.per_link != 0
    }
}

/// A machine, by what its requests show of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Who {
    /// Its hardware address.
    Mac(MacAddr),
    /// Who asks in a machine's name, from an address where that machine is not: it may be the machine behind a proxy, or
    /// somebody else, who must not have its place.
    Elsewhere(MacAddr, Ipv4Addr),
    /// Its network address, where it names no other.
    Address(Ipv4Addr),
}

/// What a boot would take a share of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Share {
    /// The image.
    pub image: Arc<str>,
    /// Where the machine is.
    pub from: Ipv4Addr,
    /// Which of the server's addresses it reached.
    pub link: Ipv4Addr,
}

/// The answer to a machine that asks for its script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// It may boot.
    Now,
    /// Others come first.
    Wait {
        /// Its place in line, from 1.
        place: u32,
        /// About how long it is until its turn, once any boot has ended.
        about: Option<Duration>,
        /// When it should ask again.
        again: Duration,
        /// It stood in line already, and so far in front that the next places to be free may be its own.
        next: bool,
    },
    /// The line itself is full.
    Full {
        /// When it should ask again: about when somebody will have left the line.
        again: Duration,
    },
}

#[derive(Debug)]
struct Running {
    boot: BootId,
    share: Share,
    since: Instant,
    until: Instant,
}

#[derive(Debug)]
struct Waiting {
    who: Who,
    share: Share,
    seen: Instant,
    /// Ascends along the line.
    ticket: u64,
}

/// What is taken of each thing that is limited.
#[derive(PartialEq, Eq, Debug, Default)]
struct Taken {
    images: HashMap<Arc<str>, u32>,
    subnets: HashMap<Ipv4Addr, u32>,
    links: HashMap<Ipv4Addr, u32>,
}

impl Taken {
    fn take(&mut self, share: &Share, subnet: Ipv4Addr) {
        *self.images.entry(Arc::clone(&share.image)).or_default() += 1;
        *self.subnets.entry(subnet).or_default() += 1;
        *self.links.entry(share.link).or_default() += 1;
    }

    fn give_back(&mut self, share: &Share, subnet: Ipv4Addr) {
        fn less<K: Eq + Hash + Borrow<Q>, Q: Eq + Hash + ?Sized>(counts: &mut HashMap<K, u32>, key: &Q) {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
        less(&mut self.images, &share.image);
        less(&mut self.subnets, &subnet);
        less(&mut self.links, &share.link);
    }
}

/// The line and those at its head.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    networks: Vec<(Ipv4Addr, u8)>,
    running: HashMap<Who, Running>,
    /// What they have taken.
    taken: Taken,
    line: VecDeque<Waiting>,
    /// The ticket of everybody in line.
    tickets: HashMap<Who, u64>,
    next_ticket: u64,
    /// When the silent are looked for next.
    look_at: Option<Instant>,
    /// How long boots hold their places, a moving mean.
    mean: Option<Duration>,
    /// Moves whenever somebody in line may have come nearer.
    moves: Arc<AtomicU64>,
}

impl Admission {
    /// Nobody runs yet. `networks` are the subnets as the site has them (address and prefix length); an address in none
    /// of them counts by its /24.
    pub fn new(limits: Limits, networks: Vec<(Ipv4Addr, u8)>) -> Self {
        Self {
            limits,
            networks,
            running: HashMap::new(),
            taken: Taken::default(),
            line: VecDeque::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            look_at: None,
            mean: None,
            moves: Arc::default(),
        }
    }

    /// Other limits from now on: who runs goes on, who waits is weighed by them when it asks again.
    pub fn limit(&mut self, limits: Limits, networks: Vec<(Ipv4Addr, u8)>) {
        (self.limits, self.networks) = (limits, networks);
        let mut taken = Taken::default();
        self.running.values().for_each(|running| taken.take(&running.share, self.subnet(running.share.from)));
        self.taken = taken;
        self.moved();
    }

    /// A number that moves whenever a place or the line may have room for somebody: while it stands still, asking again is of no
    /// use to who stands in line. (Who falls silent is noticed when anybody asks.)
    pub fn moves(&self) -> &Arc<AtomicU64> {
        &self.moves
    }

    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Release);
    }

    /// Boots that fetch, and machines in line.
    pub fn counts(&self) -> (usize, usize) {
        (self.running.len(), self.line.len())
    }

    /// A machine asks for the script of a boot. One that runs already goes on, under its new boot.
    pub fn ask(&mut self, now: Instant, who: Who, boot: BootId, share: Share) -> Turn {
        self.forget_the_silent(now);
        if let Some(running) = self.running.get_mut(&who)
            && running.share == share
        {
            (running.boot, running.until) = (boot, now + FIRST_SILENCE);
            return Turn::Now;
        }
        // Another image than before: it begins anew, and its old place is free.
        if let Some(before) = self.running.remove(&who) {
            self.leaves(&before);
        }
        let place = match self.place_of(who, now) {
            Some(place) if self.line[place].share == share => {
                self.line[place].seen = now;
                place
            }
            Some(place) => {
                self.leave(place);
                self.line.len()
            }
            None => self.line.len(),
        };
        let mut kept = Taken::default();
        for earlier in self.line.iter().take(place) {
            // What is full gets no emptier by who else comes first, and most of the time all is full.
            if !self.fits(&kept, &share) {
                break;
            }
            // Room is kept for it until it asks again.
            if earlier.seen + LINE_SILENCE > now && self.fits(&kept, &earlier.share) {
                kept.take(&earlier.share, self.subnet(earlier.share.from));
            }
        }
        let in_line = place < self.line.len();
        if self.fits(&kept, &share) {
            if in_line {
                self.leave(place);
            }
            let subnet = self.subnet(share.from);
            self.taken.take(&share, subnet);
            self.running.insert(who, Running { boot, share, since: now, until: now + FIRST_SILENCE });
            return Turn::Now;
        }
        let limit = self.smallest_limit();
        let near = self.is_near(place, &share);
        let number = u32::try_from(place + 1).unwrap_or(u32::MAX);
        if !in_line {
            if self.line.len() >= LINE_MAX {
                let again = self.mean.map_or(AGAIN_MAX, |mean| mean / limit);
                return Turn::Full { again: again.clamp(AGAIN_MIN, LINE_SILENCE) };
            }
            self.join(who, share, now);
        }
        let about = self.mean.map(|mean| mean * number.div_ceil(limit));
        // Who is next asks often, so that a place that is free is not free for long.
        let far = || about.map_or(AGAIN_MIN, |about| (about / 4).clamp(AGAIN_MIN, AGAIN_MAX));
        let again = if near { AGAIN_MIN } else { far() + SPREAD * (number % SPREAD_PLACES) };
        Turn::Wait { place: number, about, again, next: in_line && near }
    }

    /// A boot fetches.
    pub fn goes_on(&mut self, now: Instant, who: Who, boot: BootId) {
        if let Some(running) = self.running.get_mut(&who)
            && running.boot == boot
        {
            running.until = now + SILENCE;
        }
    }

    /// A boot has all its files.
    pub fn ended(&mut self, now: Instant, who: Who, boot: BootId) {
        if self.running.get(&who).is_some_and(|running| running.boot == boot)
            && let Some(running) = self.running.remove(&who)
        {
            self.leaves(&running);
            let took = now.saturating_duration_since(running.since);
            self.mean = Some(self.mean.map_or(took, |mean| (mean * 7 + took) / 8));
        }
    }

    fn join(&mut self, who: Who, share: Share, now: Instant) {
        self.next_ticket += 1;
        self.tickets.insert(who, self.next_ticket);
        self.line.push_back(Waiting { who, share, seen: now, ticket: self.next_ticket });
    }

    fn leave(&mut self, place: usize) {
        if let Some(gone) = self.line.remove(place) {
            self.tickets.remove(&gone.who);
            self.moved();
        }
    }

    /// Where it stands, from 0; who was silent for too long has lost its place.
    fn place_of(&mut self, who: Who, now: Instant) -> Option<usize> {
        let ticket = *self.tickets.get(&who)?;
        let place = self.line.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()?;
        if self.line[place].seen + LINE_SILENCE > now {
            return Some(place);
        }
        self.leave(place);
        None
    }

    fn forget_the_silent(&mut self, now: Instant) {
        let silent = self.running.extract_if(|_, running| running.until <= now);
        let silent: Vec<Running> = silent.map(|(_, running)| running).collect();
        silent.iter().for_each(|gone| self.leaves(gone));
        if self.look_at.is_some_and(|at| at > now) {
            return;
        }
        self.look_at = Some(now + SILENT_EVERY);
        let (tickets, before) = (&mut self.tickets, self.line.len());
        self.line.retain(|waiting| {
            let stays = waiting.seen + LINE_SILENCE > now;
            if !stays {
                tickets.remove(&waiting.who);
            }
            stays
        });
        if self.line.len() < before {
            self.moved();
        }
    }

    /// A boot that had a place has it no longer.
    fn leaves(&mut self, running: &Running) {
        let subnet = self.subnet(running.share.from);
        self.taken.give_back(&running.share, subnet);
        self.moved();
    }

    /// Whether there is room for one more beside who runs and those room is `kept` for.
    fn fits(&self, kept: &Taken, share: &Share) -> bool {
        let below = |limit: u32, count: &dyn Fn(&Taken) -> Option<u32>| {
            limit == 0 || count(&self.taken).unwrap_or(0) + count(kept).unwrap_or(0) < limit
        };
        let subnet = self.subnet(share.from);
        below(self.limits.per_image, &|taken| taken.images.get(&share.image).copied())
            && below(self.limits.per_subnet, &|taken| taken.subnets.get(&subnet).copied())
            && below(self.limits.per_link, &|taken| taken.links.get(&share.link).copied())
    }

    /// Whether of each thing that is limited fewer want the same before this place in line than may have it at once.
    fn is_near(&self, place: usize, share: &Share) -> bool {
        let fewer = |limit: u32, same: &dyn Fn(&Share) -> bool| {
            let earlier = self.line.iter().take(place).filter(|earlier| same(&earlier.share));
            limit == 0 || earlier.take(limit as usize).count() < limit as usize
        };
        let subnet = self.subnet(share.from);
        place < NEAR_PLACES
            && fewer(self.limits.per_image, &|earlier| earlier.image == share.image)
            && fewer(self.limits.per_link, &|earlier| earlier.link == share.link)
            && fewer(self.limits.per_subnet, &|earlier| self.subnet(earlier.from) == subnet)
    }

    fn smallest_limit(&self) -> u32 {
        let Limits { per_image, per_subnet, per_link } = self.limits;
        [per_image, per_subnet, per_link].into_iter().filter(|limit| *limit != 0).min().unwrap_or(1)
    }

    fn subnet(&self, from: Ipv4Addr) -> Ipv4Addr {
        let masked = |addr: Ipv4Addr, prefix: u8| {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from(u32::from(addr) & mask)
        };
        let of = |(network, prefix): &(Ipv4Addr, u8)| {
            (masked(from, *prefix) == masked(*network, *prefix)).then(|| masked(*network, *prefix))
        };
        self.networks.iter().find_map(of).unwrap_or_else(|| masked(from, 24))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(number: u32) -> Who {
        Who::Mac(MacAddr([2, 0, 0, 0, (number >> 8) as u8, number as u8]))
    }

    fn share(image: &str, from: [u8; 4]) -> Share {
        Share { image: image.into(), from: from.into(), link: Ipv4Addr::new(10, 0, 0, 1) }
    }

    fn wim() -> Share {
        share("winpe", [10, 0, 0, 9])
    }

    fn place(turn: Turn) -> u32 {
        match turn {
            Turn::Now => 0,
            Turn::Wait { place, .. } => place,
            Turn::Full { .. } => u32::MAX,
        }
    }

    #[test]
    fn a_lone_machine_never_waits_whatever_the_limits() {
        for limits in [
            Limits::default(),
            Limits { per_image: 1, ..Limits::default() },
            Limits { per_image: 1, per_subnet: 1, per_link: 1 },
        ] {
            let (mut admission, now) = (Admission::new(limits, Vec::new()), Instant::now());
            for boot in 0..5 {
                assert_eq!(admission.ask(now, who(1), BootId(boot), wim()), Turn::Now);
                let other = admission.ask(now, who(1), BootId(boot + 10), share("linux", [10, 0, 0, 9]));
                assert_eq!(other, Turn::Now);
            }
        }
    }

    #[test]
    fn what_is_taken_is_what_runs_whatever_happens() {
        let limits = Limits { per_image: 3, per_subnet: 4, per_link: 5 };
        let (mut admission, mut now) = (Admission::new(limits, Vec::new()), Instant::now());
        let mut random = 1u32;
        let mut below = |n: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % n
        };
        for step in 0..4000u64 {
            now += Duration::from_millis(u64::from(below(4000)));
            let number = below(12);
            match below(8) {
                0..5 => {
                    let share = share(["a", "b"][below(2) as usize], [10, 0, below(3) as u8, 1]);
                    admission.ask(now, who(number), BootId(step), share);
                }
                5..7 => {
                    let boot = admission.running.get(&who(number)).map_or(BootId(0), |running| running.boot);
                    admission.ended(now, who(number), boot);
                }
                _ => admission
                    .limit(Limits { per_image: 1 + below(4), ..limits }, vec![([10, 0, 0, 0].into(), 23)]),
            }
            let mut taken = Taken::default();
            for running in admission.running.values() {
                taken.take(&running.share, admission.subnet(running.share.from));
            }
            assert_eq!(admission.taken, taken);
        }
    }

    #[test]
    fn first_come_is_first_served_and_shown_its_place() {
        let limits = Limits { per_link: 2, ..Limits::default() };
        let (mut admission, now) = (Admission::new(limits, Vec::new()), Instant::now());
        let places: Vec<u32> =
            (1..=5).map(|n| place(admission.ask(now, who(n), BootId(n.into()), wim()))).collect();
        assert_eq!(places, [0, 0, 1, 2, 3]);
        let later = now + Duration::from_secs(4);
        admission.ended(later, who(1), BootId(1));
        // The free place is the third's, who has not asked yet; whoever asks meanwhile keeps behind it.
        assert_eq!(place(admission.ask(later, who(5), BootId(5), wim())), 3);
        assert_eq!(place(admission.ask(later, who(6), BootId(6), wim())), 4);
        assert_eq!(admission.ask(later, who(3), BootId(3), wim()), Turn::Now);
        let Turn::Wait { place: 1, about: Some(about), again, next: true } =
            admission.ask(later, who(4), BootId(4), wim())
        else {
            panic!("the fourth is next");
        };
        assert_eq!((about, again), (Duration::from_secs(4), AGAIN_MIN));
        assert_eq!(admission.counts(), (2, 3));
    }

    #[test]
    fn who_is_near_is_so_among_those_that_want_the_same() {
        let limits = Limits { per_image: 1, per_link: 100, ..Limits::default() };
        let (mut admission, now) = (Admission::new(limits, Vec::new()), Instant::now());
        let mut ask = |n: u32, image: &str| {
            let Turn::Wait { next, again, .. } =
                admission.ask(now, who(n), BootId(n.into()), share(image, [10, 0, 0, 9]))
            else {
                return None;
            };
            assert!(!next || again == AGAIN_MIN);
            Some(next)
        };
        assert_eq!([ask(1, "winpe"), ask(2, "linux")], [None, None]);
        // The first question is answered at once.
        assert_eq!([ask(3, "winpe"), ask(4, "winpe"), ask(5, "linux")], [Some(false); 3]);
        assert_eq!(
            [ask(3, "winpe"), ask(4, "winpe"), ask(5, "linux")],
            [Some(true), Some(false), Some(true)]
        );
    }

    #[test]
    fn an_admitted_boot_goes_on_and_asks_as_often_as_it_likes() {
        let limits = Limits { per_image: 1, ..Limits::default() };
        let (mut admission, now) = (Admission::new(limits, Vec::new()), Instant::now());
        assert_eq!(admission.ask(now, who(1), BootId(1), wim()), Turn::Now);
        assert_eq!(place(admission.ask(now, who(2), BootId(2), wim())), 1);
        assert_eq!(admission.ask(now, who(1), BootId(3), wim()), Turn::Now, "it was reset before it fetched");
        admission.ended(now, who(1), BootId(1));
        assert_eq!(place(admission.ask(now, who(2), BootId(2), wim())), 1, "that was an earlier boot's word");
        admission.ended(now, who(1), BootId(3));
        assert_eq!(admission.ask(now, who(2), BootId(2), wim()), Turn::Now);
    }

    #[test]
    fn who_asks_in_a_machines_name_from_elsewhere_takes_no_place_of_it() {
        let limits = Limits { per_image: 1, ..Limits::default() };
        let (mut admission, now) = (Admission::new(limits, Vec::new()), Instant::now());
        assert_eq!(admission.ask(now, who(1), BootId(1), wim()), Turn::Now);
        assert_eq!(place(admission.ask(now, who(2), BootId(2), wim())), 1);
        for (n, boot) in [(1, 11), (2, 12)] {
            let Who::Mac(mac) = who(n) else { unreachable!() };
            let other = Who::Elsewhere(mac, [10, 0, 7, 7].into());
            assert_ne!(admission.ask(now, other, BootId(boot), share("winpe", [10, 0, 7, 7])), Turn::Now);
        }
        let later = now + FIRST_SILENCE - Duration::from_secs(1);
        admission.goes_on(later, who(1), BootId(1));
        assert_eq!(place(admission.ask(later, who(2), BootId(2), wim())), 1, "it keeps its place");
        admission.ended(later, who(1), BootId(1));
        assert_eq!(admission.ask(later, who(2), BootId(2), wim()), Turn::Now);
    }

    #[test]
    fn the_silent_lose_their_places() {
        let limits = Limits { per_image: 1, ..Limits::default() };
        let (mut admission, start) = (Admission::new(limits, Vec::new()), Instant::now());
        admission.ask(start, who(1), BootId(1), wim());
        admission.ask(start, who(2), BootId(2), wim());
        let mut now = start + FIRST_SILENCE - Duration::from_secs(1);
        admission.goes_on(now, who(1), BootId(1));
        admission.ask(now, who(2), BootId(2), wim());
        admission.ask(now, who(3), BootId(3), wim());
        // The first fetches on; the second stops asking and leaves the line.
        now += LINE_SILENCE - Duration::from_secs(1);
        assert_eq!(place(admission.ask(now, who(3), BootId(3), wim())), 2);
        now += Duration::from_secs(2);
        assert_eq!(place(admission.ask(now, who(3), BootId(3), wim())), 1);
        while place(admission.ask(now, who(3), BootId(3), wim())) == 1 {
            now += Duration::from_secs(5);
            assert!(now < start + FIRST_SILENCE + SILENCE + Duration::from_secs(5));
        }
        assert_eq!(admission.counts(), (1, 0));
    }

    #[test]
    fn who_waits_for_one_thing_holds_up_nobody_who_needs_another() {
        let limits = Limits { per_image: 1, per_subnet: 2, per_link: 0 };
        let networks = vec![(Ipv4Addr::new(10, 1, 0, 0), 16)];
        let (mut admission, now) = (Admission::new(limits, networks), Instant::now());
        let mut ask =
            |n, image, from| place(admission.ask(now, who(n), BootId(n.into()), share(image, from)));
        assert_eq!(ask(1, "winpe", [10, 1, 1, 1]), 0);
        assert_eq!(ask(2, "winpe", [10, 2, 0, 1]), 1, "the image is taken");
        assert_eq!(ask(3, "linux", [10, 1, 200, 1]), 0, "another image, in a subnet with room");
        assert_eq!(ask(4, "rescue", [10, 1, 3, 1]), 2, "the subnet is full");
        assert_eq!(ask(5, "rescue", [10, 3, 0, 1]), 0, "another subnet");
    }

    #[test]
    fn the_line_has_an_end() {
        let limits = Limits { per_image: 1, ..Limits::default() };
        let (mut admission, now) = (Admission::new(limits, Vec::new()), Instant::now());
        admission.ask(now, who(0), BootId(0), wim());
        for n in 0..LINE_MAX as u32 {
            let at = Who::Address(Ipv4Addr::from(n));
            assert_eq!(place(admission.ask(now, at, BootId(2), wim())), n + 1);
        }
        assert_eq!(admission.ask(now, who(1), BootId(1), wim()), Turn::Full { again: AGAIN_MAX });
        admission.ended(now + Duration::from_secs(3), who(0), BootId(0));
        let full = Turn::Full { again: Duration::from_secs(3) };
        assert_eq!(admission.ask(now, who(1), BootId(1), wim()), full, "the mean boot, one at a time");
        assert_eq!(admission.counts(), (0, LINE_MAX));
    }

    /// Two hundred machines, one 16 MiB image, 400 Mbit/s shared in equal parts: when each has it, in seconds.
    fn storm(limits: Limits) -> Vec<f64> {
        const MACHINES: u32 = 200;
        const STEP: f64 = 0.01;
        let (mut admission, start) = (Admission::new(limits, Vec::new()), Instant::now());
        let mut left = vec![16.0 * 1024.0 * 1024.0; MACHINES as usize];
        let mut asks = vec![Some(0.0); MACHINES as usize];
        let mut asked = asks.clone();
        let (mut done, mut time) = (vec![0.0; MACHINES as usize], 0.0);
        while done.contains(&0.0) {
            let now = start + Duration::from_secs_f64(time);
            for n in 0..MACHINES {
                let index = n as usize;
                if asks[index].is_some_and(|at| at <= time) {
                    asks[index] = match admission.ask(now, who(n), BootId(n.into()), wim()) {
                        Turn::Now => None,
                        // The request stands for two seconds, and comes a second after that.
                        Turn::Wait { next: true, .. }
                            if asked[index].is_some_and(|since| time < since + 2.0) =>
                        {
                            Some(time + 0.05)
                        }
                        Turn::Wait { again, .. } => {
                            asked[index] = Some(time + again.as_secs_f64());
                            asked[index]
                        }
                        Turn::Full { .. } => panic!("the line is long enough"),
                    };
                }
            }
            let fetching: Vec<usize> =
                (0..left.len()).filter(|n| asks[*n].is_none() && done[*n] == 0.0).collect();
            let each = 50e6 * STEP / fetching.len().max(1) as f64;
            for n in fetching {
                left[n] -= each;
                admission.goes_on(now, who(n as u32), BootId(n as u64));
                if left[n] <= 0.0 {
                    done[n] = time;
                    admission.ended(now, who(n as u32), BootId(n as u64));
                }
            }
            time += STEP;
        }
        done
    }

    #[test]
    fn the_mean_machine_is_done_in_six_tenths_of_the_time_and_the_last_no_later() {
        let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
        let last = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
        let all = storm(Limits::default());
        let few = storm(Limits { per_link: 16, ..Limits::default() });
        assert!(mean(&few) <= 0.6 * mean(&all), "{} s and {} s", mean(&few), mean(&all));
        assert!(last(&few) <= 1.01 * last(&all), "{} s and {} s", last(&few), last(&all));
    }
}

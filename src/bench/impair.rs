//! A bad network on purpose: delay, loss, reordering and a slow link, from a seed.
//!
//! [`Line`] decides and does nothing else: packets go in with their time and length, and come out lost or with the time
//! they arrive. The decisions depend on the seed and on the packets' order alone, so a run can be repeated. [`bridge`]
//! applies two of them (one a direction) to whole frames between two interfaces, which is how TCP and UDP meet the same
//! network; the kernel's own netem is not needed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys::tap::{Tap, VNET_LEN, wait_exactly, wait_readable};

/// How long a frame may wait for the slow link before it is dropped at the tail: a switch's shallow buffer.
const QUEUE_MAX: Duration = Duration::from_millis(50);
/// How far a reordered frame is held back at least, when the delay itself is too short to say.
const HOLD_BACK_MIN: Duration = Duration::from_micros(300);
/// Longest round trip taken.
const RTT_MAX: Duration = Duration::from_secs(5);
/// What a frame costs on an Ethernet wire beside its bytes: FCS, preamble, gap.
const WIRE_OVERHEAD: usize = 24;
/// Bytes under way in one bridge; what comes beyond is dropped and counted.
const HELD_BYTES_MAX: usize = 256 << 20;
/// Frames taken from one side before the other is looked at.
const BATCH: usize = 64;
/// Longest sleep of the bridge: after so long it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(20);

/// What is wrong with a network. The default is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Impairment {
    /// Delay there and back; each direction gets half.
    pub rtt: Duration,
    /// Share of packets that are lost, each direction by itself.
    pub loss: f64,
    /// Share of packets that are held back so that later ones overtake them.
    pub reorder: f64,
    /// Bits a second, each direction.
    pub rate: Option<u64>,
    /// Where chance starts.
    pub seed: u64,
}

impl Default for Impairment {
    fn default() -> Self {
        Self { rtt: Duration::ZERO, loss: 0.0, reorder: 0.0, rate: None, seed: 1 }
    }
}

impl Impairment {
    /// True when nothing is wrong.
    pub fn is_none(&self) -> bool {
        self.rtt.is_zero() && self.loss == 0.0 && self.reorder == 0.0 && self.rate.is_none()
    }

    /// The words that make it, `--rtt 1ms --loss 0.5% --seed 7`, for a command line.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--rtt".into(), duration_text(self.rtt), "--loss".into(), share_text(self.loss)];
        flags.extend(["--reorder".into(), share_text(self.reorder), "--seed".into(), self.seed.to_string()]);
        flags.extend(self.rate.into_iter().flat_map(|rate| ["--rate".into(), rate.to_string()]));
        flags
    }
}

impl fmt::Display for Impairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rtt {}, loss {}", duration_text(self.rtt), share_text(self.loss))?;
        if self.reorder > 0.0 {
            write!(f, ", reorder {}", share_text(self.reorder))?;
        }
        match self.rate {
            Some(rate) => write!(f, ", rate {}", rate_text(rate)),
            None => Ok(()),
        }
    }
}

/// `1ms`, `250us`, `2.5ms`, `1s`: a round trip.
///
/// # Errors
/// A sentence saying what was expected.
pub fn parse_rtt(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?}: expected a time up to 5s such as 250us, 5ms or 0");
    let (number, unit) = split_unit(text).ok_or_else(expected)?;
    let factor = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "" if number == 0.0 => 0.0,
        _ => return Err(expected()),
    };
    let time = Duration::try_from_secs_f64(number * factor).map_err(|_| expected())?;
    if time > RTT_MAX { Err(expected()) } else { Ok(time) }
}

/// `0.5%` or `0.005`: a share from 0 to 1.
///
/// # Errors
/// A sentence saying what was expected.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let expected = || format!("{text:?}: expected a share such as 0.5%");
    let (number, percent) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text.trim(), 1.0),
    };
    let share = f64::from_str(number.trim()).map_err(|_| expected())? / percent;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(expected()) }
}

/// `100M`, `1G`, `2.5G`, `64k`: bits a second.
///
/// # Errors
/// A sentence saying what was expected.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?}: expected bits a second from 1k to 1T, such as 100M or 10G");
    let (number, unit) = split_unit(text).ok_or_else(expected)?;
    let factor = match unit {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        _ => return Err(expected()),
    };
    let rate = number * factor;
    if (1e3..=1e12).contains(&rate) { Ok(rate as u64) } else { Err(expected()) }
}

/// A number and what follows it.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    Some((number.parse().ok()?, unit.trim()))
}

/// As [`parse_rtt`] reads it.
pub fn duration_text(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0 => "0ms".into(),
        us if us.is_multiple_of(1000) => format!("{}ms", us / 1000),
        us => format!("{us}us"),
    }
}

/// As [`parse_share`] reads it.
pub fn share_text(share: f64) -> String {
    // Rounded, or 0.07 % would show what a binary fraction makes of it.
    format!("{}%", (share * 1e8).round() / 1e6)
}

/// As [`parse_rate`] reads it.
pub fn rate_text(rate: u64) -> String {
    match rate {
        rate if rate >= 1_000_000_000 => format!("{}G", rate as f64 / 1e9),
        rate if rate >= 1_000_000 => format!("{}M", rate as f64 / 1e6),
        rate => format!("{}k", rate as f64 / 1e3),
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Lost by chance.
    Lost,
    /// The slow link's queue is full.
    Overflow,
    /// It arrives then (in the clock of [`Line::send`]).
    At(Duration),
}

/// One direction of an impaired network.
#[derive(Debug)]
pub struct Line {
    impairment: Impairment,
    random: Random,
    /// When the slow link has sent all it took.
    free_at: Duration,
}

impl Line {
    /// `direction` keeps the two directions' chances apart.
    pub fn new(impairment: Impairment, direction: u64) -> Self {
        let random = Random(impairment.seed ^ direction.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { impairment, random, free_at: Duration::ZERO }
    }

    /// A packet of `len` bytes is sent at `now`, which never goes back.
    pub fn send(&mut self, now: Duration, len: usize) -> Fate {
        // Both are drawn for every packet, so that one setting does not change what another one hits.
        let (lost, late) = (self.random.share(), self.random.share());
        let mut at = now;
        if let Some(rate) = self.impairment.rate {
            let start = self.free_at.max(now);
            if start - now > QUEUE_MAX {
                return Fate::Overflow;
            }
            at = start + Duration::from_secs_f64(((len + WIRE_OVERHEAD) * 8) as f64 / rate as f64);
            self.free_at = at;
        }
        // A packet lost on the way has used the link before it was lost.
        if lost < self.impairment.loss {
            return Fate::Lost;
        }
        let delay = self.impairment.rtt / 2;
        let held =
            if late < self.impairment.reorder { (delay / 2).max(HOLD_BACK_MIN) } else { Duration::ZERO };
        Fate::At(at + delay + held)
    }
}

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// From 0 up to, and never, 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What a bridge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeCounts {
    /// Frames handed over.
    pub passed: u64,
    /// Frames lost by chance.
    pub lost: u64,
    /// Frames that found the slow link's queue, or the bridge's memory, full.
    pub overflowed: u64,
    /// Frames the other interface refused.
    pub refused: u64,
}

/// A frame under way. Ordered by the time it is due, then by arrival.
struct Held {
    due: Duration,
    number: u64,
    side: usize,
    frame: Vec<u8>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.number) == (other.due, other.number)
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// Joins two interfaces of this network namespace by an impaired wire until `stop` is set. Every frame counts as one
/// packet, so segmentation offload has to be off at the far ends (`ip link set … gso_max_segs 1`), or one loss would
/// take 64 KiB with it; frames longer than an MTU are passed on all the same.
///
/// # Errors
/// When an interface cannot be opened or goes away.
pub fn bridge(
    interfaces: [&str; 2],
    impairment: Impairment,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> io::Result<BridgeCounts> {
    let open = |name: &str| Tap::open(name).map_err(|error| io::Error::other(error.to_string()));
    let mut taps = [open(interfaces[0])?, open(interfaces[1])?];
    let mut lines = [Line::new(impairment, 0), Line::new(impairment, 1)];
    let mut held: BinaryHeap<Reverse<Held>> = BinaryHeap::new();
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let (mut held_bytes, mut number) = (0, 0);
    let mut counts = BridgeCounts::default();
    wait_exactly();
    let start = Instant::now();
    ready();
    while !stop.load(Ordering::Relaxed) {
        for side in [0, 1] {
            for _ in 0..BATCH {
                let mut frame = spare.pop().unwrap_or_default();
                match taps[side].recv(&mut frame) {
                    Ok(true) => {}
                    Ok(false) => {
                        spare.push(frame);
                        break;
                    }
                    Err(error) => return Err(error),
                }
                let fate = match lines[side].send(start.elapsed(), frame.len() - VNET_LEN) {
                    Fate::At(_) if held_bytes + frame.len() > HELD_BYTES_MAX => Fate::Overflow,
                    fate => fate,
                };
                match fate {
                    Fate::At(due) => {
                        held_bytes += frame.len();
                        number += 1;
                        held.push(Reverse(Held { due, number, side: 1 - side, frame }));
                    }
                    Fate::Lost => {
                        counts.lost += 1;
                        spare.push(frame);
                    }
                    Fate::Overflow => {
                        counts.overflowed += 1;
                        spare.push(frame);
                    }
                }
            }
        }
        let now = start.elapsed();
        while let Some(Reverse(next)) = held.peek()
            && next.due <= now
            && let Some(Reverse(next)) = held.pop()
        {
            held_bytes -= next.frame.len();
            match taps[next.side].send(&next.frame) {
                Ok(()) => counts.passed += 1,
                Err(_) => counts.refused += 1,
            }
            spare.push(next.frame);
        }
        let patience =
            held.peek().map_or(LOOK, |Reverse(next)| next.due.saturating_sub(start.elapsed()).min(LOOK));
        if !patience.is_zero() {
            wait_readable(&taps, patience)?;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(impairment: Impairment, packets: u64) -> Vec<Fate> {
        let mut line = Line::new(impairment, 0);
        (0..packets).map(|i| line.send(Duration::from_micros(i * 100), 1000)).collect()
    }

    fn bad() -> Impairment {
        Impairment { rtt: Duration::from_millis(5), loss: 0.1, reorder: 0.1, rate: None, seed: 7 }
    }

    #[test]
    fn the_same_seed_makes_the_same_decisions() {
        assert_eq!(fates(bad(), 1000), fates(bad(), 1000));
        assert_ne!(fates(bad(), 1000), fates(Impairment { seed: 8, ..bad() }, 1000));
        let other_way: Vec<Fate> = {
            let mut line = Line::new(bad(), 1);
            (0..1000).map(|i| line.send(Duration::from_micros(i * 100), 1000)).collect()
        };
        assert_ne!(fates(bad(), 1000), other_way, "the two directions have chances of their own");
    }

    #[test]
    fn another_setting_does_not_change_which_packets_are_lost() {
        let lost = |impairment| -> Vec<bool> {
            fates(impairment, 2000).into_iter().map(|fate| fate == Fate::Lost).collect()
        };
        assert_eq!(lost(bad()), lost(Impairment { reorder: 0.5, rtt: Duration::ZERO, ..bad() }));
    }

    #[test]
    fn a_share_is_lost_and_the_rest_takes_half_the_round_trip() {
        let fates = fates(Impairment { reorder: 0.0, ..bad() }, 10_000);
        let lost = fates.iter().filter(|fate| **fate == Fate::Lost).count();
        assert!((850..1150).contains(&lost), "{lost}");
        for (index, fate) in (0..).zip(&fates) {
            let due = Duration::from_micros(index * 100) + Duration::from_micros(2500);
            assert!(*fate == Fate::Lost || *fate == Fate::At(due));
        }
    }

    #[test]
    fn a_reordered_packet_comes_after_the_next_one() {
        let fates = fates(Impairment { loss: 0.0, ..bad() }, 10_000);
        let overtaken = fates.windows(2).filter(|pair| match (pair[0], pair[1]) {
            (Fate::At(first), Fate::At(second)) => first > second,
            _ => false,
        });
        let overtaken = overtaken.count();
        assert!(
            (700..1100).contains(&overtaken),
            "{overtaken}: a tenth, less the pairs that are late together"
        );
    }

    #[test]
    fn a_slow_link_spaces_packets_and_drops_at_the_tail() {
        let slow = Impairment { rate: Some(8_192_000), ..Impairment::default() };
        let mut line = Line::new(slow, 0);
        let burst: Vec<Fate> = (0..100).map(|_| line.send(Duration::ZERO, 1000)).collect();
        // 1024 bytes on the wire at 1.024 MB/s are a millisecond each.
        for (index, fate) in (1..).zip(&burst[..51]) {
            assert_eq!(*fate, Fate::At(Duration::from_millis(index)));
        }
        assert!(burst[51..].iter().all(|fate| *fate == Fate::Overflow), "{burst:?}");
        assert_eq!(line.send(Duration::from_secs(1), 1000), Fate::At(Duration::from_millis(1001)));
    }

    #[test]
    fn no_impairment_passes_everything_at_once() {
        assert!(Impairment::default().is_none());
        for (index, fate) in (0..).zip(fates(Impairment::default(), 100)) {
            assert_eq!(fate, Fate::At(Duration::from_micros(index * 100)));
        }
    }

    #[test]
    fn what_people_write_is_read_and_written_back() {
        for (text, us) in [("250us", 250), ("5ms", 5000), ("0", 0), ("2.5ms", 2500), ("1s", 1_000_000)] {
            let time = parse_rtt(text).unwrap();
            assert_eq!(time, Duration::from_micros(us));
            assert_eq!(parse_rtt(&duration_text(time)).unwrap(), time);
        }
        for (text, share) in [("0.5%", 0.005), ("0.005", 0.005), ("0", 0.0), ("100%", 1.0), ("0.07%", 0.0007)]
        {
            let parsed = parse_share(text).unwrap();
            assert!((parsed - share).abs() < 1e-12);
            assert!((parse_share(&share_text(parsed)).unwrap() - share).abs() < 1e-9);
        }
        assert_eq!(share_text(0.0007), "0.07%");
        for (text, rate) in [("100M", 100_000_000), ("2.5G", 2_500_000_000), ("64k", 64_000)] {
            assert_eq!(parse_rate(text).unwrap(), rate);
            assert_eq!(rate_text(rate), text);
        }
        for bad in ["", "5", "5m", "-1ms", "9s", "NaNms", "1e9s"] {
            assert!(parse_rtt(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "101%", "-1", "NaN", "x%"] {
            assert!(parse_share(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "0", "10X", "9999T", "-1G"] {
            assert!(parse_rate(bad).is_err(), "{bad:?}");
        }
    }
}

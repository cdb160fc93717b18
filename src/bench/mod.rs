//! Load generators: TFTP, HTTP, DHCP, scripts and whole boots, each thousands at once from one thread, so that the load
//! is not what is measured. They share `wire` and the firmware machines of `client` with the rest and nothing of the
//! engine.
//!
//! Every load is bounded in time and in what it holds, and gives back one [`result::Point`]. [`null`] answers without
//! doing anything: against it, a load shows its own ceiling.
#![forbid(unsafe_code)]

pub mod compare;
pub mod dhcp;
mod fetch;
mod hosts;
pub mod http;
pub mod https;
pub mod impair;
pub mod model;
pub mod null;
pub mod relay;
pub mod report;
pub mod result;
pub mod sink;
pub mod storm;
pub mod tftp;
pub mod transmit;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use hosts::{HOSTS_MAX, LoadError, SOCKET_CLIENTS_MAX, Way, stays_here};

use crate::sys::affinity::{thread_cpu_time, thread_wait_time};
use crate::wire::MacAddr;
use result::Point;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(10);

/// Wherever `name` is, looking where administrators' programs are as well.
fn find_programs(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).filter(|file| file.is_file()).collect()
}

/// Time and CPU time of a load that runs in the calling thread.
#[derive(Debug)]
struct Meter {
    start: Instant,
    cpu: Duration,
    waited: Duration,
}

impl Meter {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: thread_cpu_time(), waited: thread_wait_time() }
    }

    fn stop(&self, point: &mut Point) {
        point.seconds = self.start.elapsed().as_secs_f64();
        point.load_cpu_seconds = thread_cpu_time().saturating_sub(self.cpu).as_secs_f64();
        point.judge_load(None);
        // Others on this CPU are as good as work of one's own: the load could not have done more.
        let waited = thread_wait_time().saturating_sub(self.waited).as_secs_f64();
        point.load_limited |= point.load_cpu_seconds + waited >= result::BUSY_LIMIT * point.seconds;
    }
}

/// Seeded numbers (xorshift64*): the same load every time.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// The hardware address of simulated machine `index`, the same in every load.
pub fn machine_mac(index: u32) -> MacAddr {
    let [a, b, c, d] = index.to_be_bytes();
    MacAddr([0x02, 0xb0, a, b, c, d])
}

/// The number of a simulated machine, by its hardware address.
fn machine_of(mac: MacAddr) -> Option<u32> {
    match mac.0 {
        [0x02, 0xb0, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])),
        _ => None,
    }
}

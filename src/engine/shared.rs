//! What every core reads: snapshots that are swapped whole, tables without locks. Nothing here is written on a
//! packet's path, but for DHCP's own core recording who is at which address.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;

use super::fragments::FragmentsLost;
use super::sightings::Sightings;
use crate::files::library::Library;
use crate::jobs::book::Book;
use crate::jobs::evidence::Evidence;
use crate::jobs::script::Policy;
use crate::jobs::token::{BootId, TokenKey};
use crate::sys::interfaces::Interface;

/// Addresses remembered as refusing segmented sends; one per local address, and hosts have few.
const REFUSING_MAX: usize = 32;

/// State all cores share.
#[derive(Debug)]
pub struct Shared {
    /// Images and loaders.
    pub library: Arc<Library>,
    /// Jobs.
    pub book: Arc<Book>,
    /// What machines without a job get.
    pub policy: ArcSwap<Policy>,
    /// Signs the tokens of script URLs. Made anew at every start: a boot does not outlive the server's restart
    /// under its old URLs, it asks for its script again.
    pub key: TokenKey,
    /// Who is at which address.
    pub sightings: Sightings,
    /// Machines that fragments do not reach.
    pub fragments_lost: FragmentsLost,
    /// The interfaces, as last looked at.
    pub interfaces: ArcSwap<Vec<Interface>>,
    /// Cores whose loop still runs.
    pub cores_running: AtomicUsize,
    /// Where HTTP answers.
    http: ArcSwap<Vec<SocketAddrV4>>,
    evidence: Sender<Evidence>,
    /// Evidence that found the recorder's queue full.
    pub evidence_lost: AtomicU64,
    /// Local addresses whose device refuses UDP_SEGMENT; 0 is a free place.
    refusing: [AtomicU32; REFUSING_MAX],
    stopping: AtomicBool,
    drain: Duration,
    boots: AtomicU64,
}

impl Shared {
    /// Puts the parts together. `drain` bounds a graceful stop; `boot_seed` makes boot ids of two runs differ.
    pub fn new(
        library: Arc<Library>,
        book: Arc<Book>,
        policy: Policy,
        key: TokenKey,
        evidence: Sender<Evidence>,
        drain: Duration,
        boot_seed: u64,
    ) -> Self {
        Self {
            library,
            book,
            policy: ArcSwap::from_pointee(policy),
            key,
            sightings: Sightings::new(),
            fragments_lost: FragmentsLost::new(Instant::now()),
            interfaces: ArcSwap::from_pointee(Vec::new()),
            cores_running: AtomicUsize::new(0),
            http: ArcSwap::from_pointee(Vec::new()),
            evidence,
            evidence_lost: AtomicU64::new(0),
            refusing: [const { AtomicU32::new(0) }; REFUSING_MAX],
            stopping: AtomicBool::new(false),
            drain,
            boots: AtomicU64::new(boot_seed),
        }
    }

    /// Records where HTTP listens, with the ports really bound.
    pub fn set_http(&self, addresses: Vec<SocketAddrV4>) {
        self.http.store(Arc::new(addresses));
    }

    /// The port a client that can reach `local` gets its URLs with: the first listener that covers the address.
    pub fn http_port(&self, local: Ipv4Addr) -> Option<u16> {
        let covers = |addr: &&SocketAddrV4| addr.ip().is_unspecified() || *addr.ip() == local;
        self.http.load().iter().find(covers).map(SocketAddrV4::port)
    }

    /// A number no other boot of this run has.
    pub fn next_boot(&self) -> BootId {
        BootId(self.boots.fetch_add(1, Ordering::Relaxed))
    }

    /// Tells the flight recorder. Never waits: a full queue loses the evidence and counts it.
    pub fn note(&self, evidence: Evidence) {
        if self.evidence.try_send(evidence).is_err() {
            self.evidence_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Largest IP packet on the link that has `local`; Ethernet's where it is not known.
    pub fn mtu(&self, local: Ipv4Addr) -> u32 {
        let interfaces = self.interfaces.load();
        interfaces.iter().find(|i| i.addr == Some(local)).map_or(1500, |i| i.mtu.min(1500))
    }

    /// True once a segmented send from this address was refused.
    pub fn refuses_segments(&self, local: Ipv4Addr) -> bool {
        let wanted = u32::from(local);
        self.refusing.iter().any(|place| place.load(Ordering::Relaxed) == wanted)
    }

    /// Remembers that a segmented send from this address was refused; true the first time.
    pub fn note_refused_segments(&self, local: Ipv4Addr) -> bool {
        if self.refuses_segments(local) {
            return false;
        }
        let wanted = u32::from(local);
        self.refusing
            .iter()
            .any(|place| place.compare_exchange(0, wanted, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }

    /// Asks every core to drain and end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// How long a core may still drain, once it was asked to end.
    pub fn stopping(&self) -> Option<Duration> {
        self.stopping.load(Ordering::Acquire).then_some(self.drain)
    }
}

/// Seconds since 1970, as tokens and jobs count.
pub(super) fn unix_now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

//! What every core reads: snapshots that are swapped whole, tables without locks. Nothing here is written on a
//! packet's path, but for DHCP's own core recording who is at which address.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;

use super::fragments::FragmentsLost;
use super::native::Passed;
use super::presented::Presented;
use super::sightings::Sightings;
use crate::files::library::Library;
use crate::jobs::admission::{self, Admission, Who};
use crate::jobs::evidence::{Evidence, Seen};
use crate::jobs::script::Policy;
use crate::jobs::token::{BootId, TokenKey};
use crate::keeper::Keeper;
use crate::proto::dhcp::Settings;
use crate::proto::tftp;
use crate::sys::interfaces::Interface;
use crate::wire::MacAddr;

/// Evidence waiting for the recorder; beyond it evidence is lost and counted, never a core held up.
const EVIDENCE_MAX: usize = 64 * 1024;
/// Addresses remembered as refusing segmented sends; one per local address, and hosts have few.
const REFUSING_MAX: usize = 32;

/// What a reload may change, taken up by each core at its next packet.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// DHCP's settings; `None` where DHCP is off.
    pub dhcp: Option<Settings>,
    /// Bounds of TFTP's options.
    pub tftp_limits: tftp::Limits,
}

/// State all cores share.
#[derive(Debug)]
pub struct Shared {
    /// Images and loaders.
    pub library: Arc<Library>,
    /// Who decides over jobs: their table, and the desk where evidence goes.
    pub keeper: Keeper,
    /// What machines without a job get.
    pub policy: ArcSwap<Policy>,
    /// What DHCP and TFTP are told.
    pub tuning: ArcSwap<Tuning>,
    /// Who is at which address.
    pub sightings: Sightings,
    /// Who passed the point of no return by TFTP.
    pub(super) passed: Passed,
    /// Machines that fragments do not reach.
    pub fragments_lost: FragmentsLost,
    /// Who began which boot, for its answer files.
    pub presented: Presented,
    /// The interfaces, as last looked at.
    pub interfaces: ArcSwap<Vec<Interface>>,
    /// Who may fetch an image now. A lock between cores: taken for the script of a boot, for the beginning of a file and for its
    /// end, where there are limits, and nowhere else. The other one, of `passed`, is taken at points of no return by TFTP.
    admission: Mutex<Admission>,
    /// [`Admission::moves`], read without that lock.
    line_moves: Arc<AtomicU64>,
    /// Whether there are limits.
    limited: AtomicBool,
    /// Cores whose loop has ended.
    cores_ended: AtomicUsize,
    /// Where HTTP answers.
    http: ArcSwap<Vec<SocketAddrV4>>,
    evidence: Sender<Evidence>,
    /// Evidence that found the recorder's queue full.
    pub evidence_lost: AtomicU64,
    /// Whether the flight recorder is told anything; off only to measure what it costs.
    pub records: AtomicBool,
    /// Local addresses whose device refuses UDP_SEGMENT; 0 is a free place.
    refusing: [AtomicU32; REFUSING_MAX],
    stopping: AtomicBool,
    drain: Duration,
}

/// Held by a core's thread: however that ends, also by a panic, it is counted.
pub(super) struct CoreThread(pub(super) Arc<Shared>);

impl Drop for CoreThread {
    fn drop(&mut self) {
        self.0.cores_ended.fetch_add(1, Ordering::Release);
    }
}

impl Shared {
    /// Puts the parts together. `drain` bounds a graceful stop.
    pub fn new(
        library: Arc<Library>,
        keeper: Keeper,
        policy: Policy,
        evidence: Sender<Evidence>,
        drain: Duration,
    ) -> Self {
        let admission = Admission::new(admission::Limits::default(), Vec::new());
        Self {
            library,
            keeper,
            policy: ArcSwap::from_pointee(policy),
            tuning: ArcSwap::default(),
            sightings: Sightings::new(),
            passed: Passed::default(),
            fragments_lost: FragmentsLost::new(Instant::now()),
            presented: Presented::new(),
            interfaces: ArcSwap::from_pointee(Vec::new()),
            line_moves: Arc::clone(admission.moves()),
            admission: Mutex::new(admission),
            limited: AtomicBool::new(false),
            cores_ended: AtomicUsize::new(0),
            http: ArcSwap::from_pointee(Vec::new()),
            evidence,
            evidence_lost: AtomicU64::new(0),
            records: AtomicBool::new(true),
            refusing: [const { AtomicU32::new(0) }; REFUSING_MAX],
            stopping: AtomicBool::new(false),
            drain,
        }
    }

    /// Where a machine's last DHCP exchange left it, if that is not where something in its name comes from.
    pub(super) fn elsewhere(&self, mac: Option<MacAddr>, peer: Ipv4Addr) -> Option<Ipv4Addr> {
        self.sightings.of(mac?).filter(|place| *place != peer)
    }

    /// Cores whose loop has ended; while nobody stops the server, by a fault.
    pub fn cores_ended(&self) -> usize {
        self.cores_ended.load(Ordering::Acquire)
    }

    /// Makes boots wait for each other from now on; `networks` are the site's subnets. Who is admitted stays so.
    pub fn limit_boots(&self, limits: admission::Limits, networks: Vec<(Ipv4Addr, u8)>) {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner).limit(limits, networks);
        self.limited.store(limits.limits_anything(), Ordering::Release);
    }

    /// Who may fetch an image now; `None` where everybody may.
    pub(super) fn admission(&self) -> Option<MutexGuard<'_, Admission>> {
        self.limited
            .load(Ordering::Acquire)
            .then(|| self.admission.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What moves when it is of use to ask again for a place.
    pub(super) fn line_moves(&self) -> u64 {
        self.line_moves.load(Ordering::Acquire)
    }

    /// Boots that hold a place, and machines in line.
    pub fn admission_counts(&self) -> (usize, usize) {
        self.admission().map_or((0, 0), |admission| admission.counts())
    }

    /// Lets evidence of a boot that fetches keep its place, or free it.
    fn tell_admission(&self, evidence: &Evidence) {
        if !self.limited.load(Ordering::Acquire) {
            return;
        }
        let Some(boot) = evidence.boot else { return };
        let ended = match &evidence.seen {
            Seen::FileStarted { .. } | Seen::FileProgress { .. } | Seen::FileDone { last: false, .. } => {
                false
            }
            Seen::LastPieceSent { .. } | Seen::FileDone { last: true, .. } => true,
            _ => return,
        };
        let Some(mut admission) = self.admission() else { return };
        let now = Instant::now();
        // As whom it asked for its script is not in what it fetches; the boot tells which of them it is.
        let (mac, address) = (evidence.mac, evidence.address);
        let asked_as = [
            mac.map(Who::Mac),
            mac.zip(address).map(|(mac, from)| Who::Elsewhere(mac, from)),
            address.map(Who::Address),
        ];
        for who in asked_as.into_iter().flatten() {
            if ended { admission.ended(now, who, boot) } else { admission.goes_on(now, who, boot) }
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

    /// A number no other boot has.
    pub fn next_boot(&self) -> BootId {
        self.keeper.boots().begin()
    }

    /// Signs the tokens of script URLs. The same after a restart: a boot goes on under its URLs.
    pub fn key(&self) -> &TokenKey {
        self.keeper.key()
    }

    /// Tells the keeper, if jobs or machines may be moved by it, and the flight recorder. Never waits: a full queue
    /// loses the evidence and counts it.
    pub fn note(&self, evidence: Evidence) {
        self.tell_admission(&evidence);
        let moves = match &evidence.seen {
            Seen::DhcpOffered { .. } => evidence.mac.is_some() && evidence.uuid.is_some(),
            Seen::ScriptAsked { .. } | Seen::LocalBack { .. } => true,
            _ => evidence.job().is_some(),
        };
        if moves {
            self.keeper.note(evidence.without_packets());
        }
        if self.is_recording()
            && (self.evidence.len() >= EVIDENCE_MAX || self.evidence.try_send(evidence).is_err())
        {
            self.evidence_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether packets are worth a copy.
    pub fn is_recording(&self) -> bool {
        self.records.load(Ordering::Relaxed)
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
pub(super) fn unix_seconds(at: SystemTime) -> u32 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

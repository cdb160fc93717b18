//! From a plan to running cores: the ladder of probes, every socket bound before anything is promised, then one
//! thread per core.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use mio::{Poll, Waker};

use super::core::Core;
use super::counters;
use super::counters::Tally;
use super::dhcp::{Arrival, DhcpSide, RawPort, Reach, UdpPort};
use super::filters::{self, DhcpRings};
use super::http::HttpSide;
use super::readers::Readers;
use super::sender::PipePool;
use super::shared::{CoreThread, Shared, Tuning};
use super::tftp::{DataPorts, Link, TftpSide};
use crate::keeper::journal::Scribe;
use crate::proto::dhcp::{Interface, Mode, Network, ServerPort, Settings};
use crate::proto::tftp::Limits;
use crate::sys::firewall::{self, Firewall};
use crate::sys::frames::FrameSender;
use crate::sys::interfaces::{self, Device};
use crate::sys::ring::{FrameRing, Group, RingUse};
use crate::sys::udp::{UdpOptions, UdpSocket};
use crate::sys::uring::{BurstRing, SendRing};
use crate::sys::{SysError, affinity, host, privileges, tcp, udp};
use crate::telemetry::Counters;
use crate::tls::Certificates;
use crate::wire::MacAddr;

/// SEND_ZC operations one core has in flight.
const RING_SENDS: u32 = 1024;
/// Answers in one call of a core's other ring: as many as a full outbox has of small ones.
const BURST_SENDS: u32 = 128;
/// Pipes of all cores together, of 1 MiB each. An ordinary user may have 63 such, and root without its privileges is one: a
/// second server, or whatever else runs under that name, is to find whole pipes as well. More serve no better.
const PIPES_TOTAL: usize = 16;
/// Interfaces that can come up between two looks of the core.
const ARRIVALS_MAX: usize = 256;
/// Descriptors that connections leave alone: pipes, open images, listeners, rings.
const DESCRIPTORS_KEPT: usize = 512;
/// Receive buffer of the DHCP sockets.
const DHCP_RECV_BUFFER: i32 = 4 << 20;

/// Which senders may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// The ring where it is to be had.
    Auto,
    /// The ring, or no start.
    Uring,
    /// No ring.
    Mio,
}

/// Whether files may leave from where they are in memory, without a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroCopy {
    /// Until a device is known to copy them after all.
    Auto,
    /// Never.
    Off,
    /// Also where it copies.
    Always,
}

/// Whether packets may come and go as frames of our own, past the host's IP stack and its packet filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frames {
    /// Where no packet filter is in force.
    Auto,
    /// Whatever filter there is.
    On,
    /// Never.
    Off,
}

/// What the engine is to do.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Senders.
    pub driver: Driver,
    /// And what they may do.
    pub zero_copy: ZeroCopy,
    /// Loops; 0 is one per core this process may use.
    pub cores: usize,
    /// Interfaces to answer DHCP on; empty chooses.
    pub interfaces: Vec<String>,
    /// DHCP; `None` is off.
    pub dhcp: Option<Settings>,
    /// DHCP's two ports.
    pub dhcp_ports: (u16, u16),
    /// Relayed and unicast DHCP by frames.
    pub dhcp_frames: Frames,
    /// Where leases are stored; `None` keeps them in memory alone.
    pub journal: Option<Scribe>,
    /// TFTP listeners.
    pub tftp: Vec<SocketAddrV4>,
    /// TFTP bounds.
    pub tftp_limits: Limits,
    /// Answer from the listening port.
    pub single_port: bool,
    /// TFTP by frames.
    pub tftp_frames: Frames,
    /// HTTP listeners.
    pub http: Vec<SocketAddrV4>,
    /// Congestion control of HTTP and HTTPS by the kernel's name; empty: the system's, or another where that is BBR.
    pub congestion: String,
    /// Give up, once the sockets are open, every privilege that serving does not need. The calling thread's, and with it
    /// those of the threads it makes.
    pub settle: bool,
    /// HTTPS listeners, and what they show.
    pub https: Option<(Vec<SocketAddrV4>, Arc<Certificates>)>,
}

/// Why the engine did not start.
#[derive(Debug)]
pub enum StartError {
    /// A system call failed.
    Sys(SysError),
    /// A named interface does not exist.
    NoSuchInterface {
        /// The name.
        name: String,
        /// Those that exist.
        have: Vec<String>,
    },
    /// `--driver uring` where the ring is refused.
    NoRing(io::Error),
}

impl From<SysError> for StartError {
    fn from(error: SysError) -> Self {
        Self::Sys(error)
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sys(error) => match error.advice() {
                Some(advice) => write!(f, "{error}; {advice}"),
                None => write!(f, "{error}"),
            },
            Self::NoSuchInterface { name, have } => {
                write!(
                    f,
                    "interface {name}: there is none of that name; this machine has {}",
                    have.join(", ")
                )
            }
            Self::NoRing(error) => write!(f, "--driver uring: {error}; {}", ring_advice(error)),
        }
    }
}

impl std::error::Error for StartError {}

impl StartError {
    /// True when a privilege is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Sys(error) => error.is_permission(),
            Self::NoRing(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::NoSuchInterface { .. } => false,
        }
    }
}

fn ring_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "io_uring is switched off here (`sysctl kernel.io_uring_disabled`, or a container's seccomp profile): use \
             --driver mio, which serves the same without it"
        }
        _ => "this kernel has no usable io_uring: use --driver mio, which serves the same without it",
    }
}

/// What an engine stands on: what the machine can do, and the rings. Nobody hears of it, and nothing that is stored is needed
/// for it.
#[derive(Debug)]
pub struct Ground {
    open_files: u64,
    cpus: Vec<usize>,
    count: usize,
    memory: u64,
    interfaces: Vec<interfaces::Interface>,
    segmentation: bool,
    congestion: Option<&'static str>,
    rings: Vec<SendRing>,
    bursts: Vec<BurstRing>,
    ring_refused: Option<io::Error>,
}

impl Ground {
    /// Finds out what there is for this driver and so many loops (0: one for each CPU that may be used).
    ///
    /// # Errors
    /// The interfaces cannot be listed.
    pub fn prepare(driver: Driver, cores: usize) -> Result<Self, StartError> {
        let open_files = affinity::raise_open_files();
        let cpus = affinity::allowed_cpus();
        let count = if cores == 0 { cpus.len() } else { cores }.max(1);
        let interfaces = interfaces::list().map_err(|e| SysError::new("list interfaces", e))?;
        let segmentation = udp::has_segmentation();
        let congestion = tcp::lan_congestion();
        let (mut rings, mut bursts) = (Vec::new(), Vec::new());
        let mut ring_refused = None;
        if driver != Driver::Mio {
            for _ in 0..count {
                match (SendRing::new(RING_SENDS), BurstRing::new(BURST_SENDS)) {
                    (Ok(ring), Ok(burst)) => {
                        rings.push(ring);
                        bursts.push(burst);
                    }
                    (Err(error), _) | (_, Err(error)) => {
                        ring_refused = Some(error);
                        break;
                    }
                }
            }
        }
        Ok(Self {
            open_files,
            cpus,
            count,
            memory: host::memory(),
            interfaces,
            segmentation,
            congestion,
            rings,
            bursts,
            ring_refused,
        })
    }
}

/// The engine, running.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    cells: Vec<Arc<Counters>>,
    wakers: Vec<Arc<Waker>>,
    threads: Vec<JoinHandle<()>>,
    waiting: Option<Waiting>,
    /// What was really bound.
    pub bound: Bound,
}

/// What the ready line says.
#[derive(Clone, Debug)]
pub struct Bound {
    /// DHCP's mode and ports, if it is on.
    pub dhcp: Option<(Mode, u16, u16)>,
    /// TFTP listeners with their real ports.
    pub tftp: Vec<SocketAddrV4>,
    /// HTTP listeners with their real ports.
    pub http: Vec<SocketAddrV4>,
    /// HTTPS listeners with their real ports.
    pub https: Vec<SocketAddrV4>,
    /// `uring` or `mio`.
    pub driver: &'static str,
    /// Loops.
    pub cores: usize,
    /// Interfaces DHCP is answered on.
    pub interfaces: Vec<String>,
}

impl Engine {
    /// [`Ground::prepare`] and [`Engine::start_on`] at once.
    pub fn start(settings: &EngineSettings, shared: Arc<Shared>) -> Result<Self, StartError> {
        Self::start_on(Ground::prepare(settings.driver, settings.cores)?, settings, shared)
    }

    /// Binds everything, starts one thread per core, and returns once every listener is open. `ground` is that of the
    /// settings' driver and cores.
    pub fn start_on(
        ground: Ground,
        settings: &EngineSettings,
        shared: Arc<Shared>,
    ) -> Result<Self, StartError> {
        let Ground {
            open_files,
            cpus,
            count,
            memory,
            interfaces: all,
            segmentation,
            congestion,
            mut rings,
            mut bursts,
            ring_refused,
        } = ground;
        shared.interfaces.store(Arc::new(all.clone()));
        let tuning = Tuning { dhcp: settings.dhcp.clone(), tftp_limits: settings.tftp_limits };
        shared.tuning.store(Arc::new(tuning));
        match (settings.driver, ring_refused) {
            (Driver::Uring, Some(error)) => return Err(StartError::NoRing(error)),
            (Driver::Auto, Some(error)) => {
                rings.clear();
                bursts.clear();
                tracing::info!(rung = "io_uring", have = false, %error, "senders without the ring: {}", ring_advice(&error));
            }
            (Driver::Mio, _) => {
                tracing::info!(rung = "io_uring", have = false, "switched off by the driver setting")
            }
            _ => {
                tracing::info!(
                    rung = "io_uring",
                    have = true,
                    "answers leave together{}",
                    match settings.zero_copy {
                        ZeroCopy::Auto => ", zero-copy sends where a device does not copy",
                        ZeroCopy::Always => ", zero-copy sends wherever they go",
                        ZeroCopy::Off => "",
                    }
                )
            }
        }
        if settings.zero_copy == ZeroCopy::Off {
            tracing::info!(rung = "zero_copy", have = false, "switched off by the zero_copy setting");
        }
        tracing::info!(
            rung = "udp_segment",
            have = segmentation,
            "{}",
            if segmentation {
                "a TFTP window leaves in one call"
            } else {
                "TFTP blocks leave one by one in batches"
            }
        );
        let named = (!settings.congestion.is_empty()).then_some(settings.congestion.as_str());
        let congestion = named.or(congestion);
        tracing::info!(
            rung = "congestion",
            control = congestion.unwrap_or("system"),
            "{}",
            match congestion {
                Some(_) if named.is_some() => "as the configuration says",
                Some(_) => "instead of BBR, the system's, whose pacing costs processor time on a LAN",
                None => "HTTP leaves under the congestion control that the system has",
            }
        );
        tracing::info!(rung = "open_files", limit = open_files, "descriptors this process may have");

        // Asked once, and only where it is of account: the kernel may have to load a module for the answer.
        let filter = HostFilter::new(firewall::look);
        let dhcp = match &settings.dhcp {
            Some(dhcp) => Some(open_dhcp(settings, dhcp, &filter, &all)?),
            None => None,
        };
        let (mut dhcp, dhcp_interfaces, waiting) = match dhcp {
            Some(Opened { side, names, waiting }) => (Some(side), names, Some(waiting)),
            None => (None, Vec::new(), None),
        };

        // Our own sockets share their ports among the cores, so whether somebody else has one is asked first.
        for addr in settings.tftp.iter().filter(|addr| addr.port() != 0) {
            drop(UdpSocket::bind(*addr, &UdpOptions::default())?);
        }
        let (mut https_listen, certificates) = match &settings.https {
            Some((listen, certificates)) => (listen.clone(), Some(Arc::clone(certificates))),
            None => (Vec::new(), None),
        };
        for addr in settings.http.iter().chain(&https_listen).filter(|addr| addr.port() != 0) {
            tcp::check_free(*addr)?;
        }

        // The first core's sockets choose the port where the configuration says 0; the others share it.
        let mut tftp_listen = settings.tftp.clone();
        let mut http_listen = settings.http.clone();
        // A connection needs a descriptor; what pipes, files and the rest need stays free.
        let connections_max = (open_files as usize).saturating_sub(DESCRIPTORS_KEPT).max(64) / count;
        let mut data_ports = match settings.tftp.is_empty() || settings.single_port {
            true => DataPorts::none(),
            false => DataPorts::bind(count, std::process::id())?,
        };
        let readers = Readers::start(memory / 2);
        let nowhere = File::options().write(true).open("/dev/null");
        if let Err(error) = &nowhere {
            tracing::warn!(
                rung = "pipes",
                have = false,
                %error,
                "/dev/null cannot be opened for writing, so beside slow downloads all others cost more: make it writable"
            );
        }
        let nowhere = nowhere.ok().map(Arc::new);
        let mut cores = Vec::new();
        let mut wakers = Vec::new();
        let mut cells = Vec::new();
        for index in 0..count {
            let tftp =
                TftpSide::bind(&tftp_listen, settings.single_port, segmentation, &readers, &mut data_ports)?;
            tftp_listen = tftp.addresses();
            let mut listeners = HttpSide::bind(&http_listen, false, congestion)?;
            http_listen = listeners.iter().zip(&http_listen).map(|(l, wanted)| l.address(*wanted)).collect();
            let secure = HttpSide::bind(&https_listen, true, congestion)?;
            https_listen = secure.iter().zip(&https_listen).map(|(l, wanted)| l.address(*wanted)).collect();
            listeners.extend(secure);
            let tally = Tally::default();
            cells.push(tally.cells());
            let poll = Poll::new().map_err(|e| SysError::new("make an event queue", e))?;
            let core = Core::new(
                index,
                poll,
                Arc::clone(&shared),
                tally,
                if index == 0 { dhcp.take() } else { None },
                tftp,
                HttpSide::new(
                    listeners,
                    certificates.clone(),
                    connections_max,
                    Arc::clone(&readers),
                    PipePool::new((PIPES_TOTAL / count).max(1), nowhere.clone()),
                    settings.zero_copy,
                    bursts.pop(),
                ),
                rings.pop(),
            );
            cores.push(core);
        }
        if !tftp_listen.is_empty() {
            frames_for_tftp(settings, &filter, &all, &tftp_listen, data_ports.range, &mut cores);
        }
        for core in &mut cores {
            wakers.push(core.register().map_err(|e| SysError::new("watch a core's sockets", e))?);
        }
        if settings.settle {
            tracing::info!(rung = "privileges", kept = %privileges::settle()?, "what serving needs");
        }
        shared.set_http(http_listen.clone());
        let driver = if cores.iter().all(|core| core.ring.is_some()) { "uring" } else { "mio" };
        let mut threads = Vec::new();
        for core in cores {
            let cpu = cpus[core.index % cpus.len()];
            let running = CoreThread(Arc::clone(&shared));
            let thread = std::thread::Builder::new()
                .name(format!("core-{}", core.index))
                .spawn(move || {
                    let _running = running;
                    if let Err(error) = affinity::pin_to(cpu) {
                        tracing::warn!(core = core.index, cpu, %error, "cannot pin this loop to its CPU");
                    }
                    core.run();
                })
                .map_err(|e| SysError::new("start a core's thread", e))?;
            threads.push(thread);
        }
        let bound = Bound {
            dhcp: settings
                .dhcp
                .as_ref()
                .map(|dhcp| (dhcp.mode, settings.dhcp_ports.0, settings.dhcp_ports.1)),
            tftp: tftp_listen,
            http: http_listen,
            https: https_listen,
            driver,
            cores: count,
            interfaces: dhcp_interfaces,
        };
        Ok(Self { shared, cells, wakers, threads, waiting, bound })
    }

    /// Looks at the interfaces anew: sizes and hardware addresses may have changed, and one that was waited for may have
    /// an address. To be called every few seconds.
    pub fn look_at_interfaces(&mut self) {
        let Ok(all) = interfaces::list() else { return };
        let arrived = self.waiting.as_mut().is_some_and(|waiting| waiting.look(&all));
        let changed = **self.shared.interfaces.load() != all;
        if changed {
            self.shared.interfaces.store(Arc::new(all));
        }
        if changed || arrived {
            for waker in &self.wakers {
                // A core that is gone needs no waking.
                let _ = waker.wake();
            }
        }
    }

    /// True while an interface is waited for: its socket is opened when it comes.
    pub fn is_waiting(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.names.is_empty())
    }

    /// Where the cores' counters can be read.
    pub fn cells(&self) -> Vec<Arc<Counters>> {
        self.cells.clone()
    }

    /// How often the core of each of these cells has been around its loop. One that is well goes round at least every few
    /// seconds.
    pub fn turns(cells: &[Arc<Counters>]) -> Vec<u64> {
        cells.iter().map(|cells| cells.read(counters::Count::LoopTurns as usize)).collect()
    }

    /// The `/metrics` text of these cells.
    pub fn metrics(cells: &[Arc<Counters>]) -> String {
        counters::render(cells)
    }

    /// Stops accepting, lets running transfers end within the bound, and waits for every core.
    pub fn stop(self) {
        self.shared.stop();
        for waker in &self.wakers {
            // A core that is gone needs no waking.
            let _ = waker.wake();
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a core ended by a panic");
            }
        }
    }
}

/// Which interfaces to answer on: the named ones, or every physical one. Those without an address are waited for: the
/// switch of machines that are to boot may come up after this server.
fn choose_interfaces(
    names: &[String],
    all: &[interfaces::Interface],
) -> Result<Vec<interfaces::Interface>, StartError> {
    if names.is_empty() {
        let with =
            |device: Device| -> Vec<_> { all.iter().filter(|i| i.device == device).cloned().collect() };
        let mut chosen = with(Device::Physical);
        chosen.retain(|link| link.addr.is_some() || !interfaces::is_port(&link.name));
        if chosen.iter().all(|link| link.addr.is_none()) {
            // In a container the link that counts is one end of a veth pair, whatever else its kernel shows there.
            chosen.extend(with(Device::Veth).into_iter().filter(|link| link.addr.is_some()));
        }
        if chosen.iter().all(|link| link.addr.is_none()) {
            tracing::warn!("no interface with an IPv4 address to answer DHCP on: name one with --interface");
        }
        return Ok(chosen);
    }
    // Twice the same one would be answered twice.
    let once = names.iter().enumerate().filter(|(index, name)| !names[..*index].contains(name));
    once.map(|(_, name)| {
        all.iter().find(|i| i.name == *name).cloned().ok_or_else(|| StartError::NoSuchInterface {
            name: name.clone(),
            have: all.iter().map(|i| i.name.clone()).collect(),
        })
    })
    .collect()
}

/// A configured DHCP side and what belongs to it outside its core.
struct Opened {
    side: DhcpSide,
    names: Vec<String>,
    waiting: Waiting,
}

/// Interfaces without an address yet, or that are gone, and the way to tell the core when they have come.
#[derive(Debug)]
struct Waiting {
    names: Vec<String>,
    /// Those that are answered on, by name and the kernel's index.
    served: Vec<(String, u32)>,
    port: u16,
    reach: Reach,
    arrivals: Sender<Arrival>,
}

/// One core's ring on one interface: 8,192 requests of a hall, or acknowledgements. No request is longer than the
/// snapshot (RFC 2347 §2 ends them at 512 bytes).
const RING: RingUse = RingUse { snapshot: 900, len: 8 << 20, all: false, outgoing: false, captured: false };

/// What is known of the host's packet filter, once somebody asks.
type HostFilter = LazyCell<Firewall>;

impl Frames {
    /// Why not, where frames are not to go past the host's packet filter.
    fn refused(self, filter: &HostFilter, section: &str) -> Option<String> {
        let filter = match self {
            Self::Off => return Some("switched off by the configuration".into()),
            Self::On => return None,
            Self::Auto => **filter,
        };
        match filter {
            Firewall::Some => Some(format!(
                "this host has a packet filter or IPsec policies, which frames would bypass; [{section}] frames = \"on\" does so"
            )),
            Firewall::Unknown => {
                Some("whether this host has a packet filter cannot be seen without CAP_NET_ADMIN".into())
            }
            Firewall::None => None,
        }
    }
}

/// Puts TFTP on frames where that serves the same machines for less: rings first, then the filters that keep the
/// same packets from the sockets. What cannot be had is said, and the sockets serve on.
fn frames_for_tftp(
    settings: &EngineSettings,
    filter: &HostFilter,
    all: &[interfaces::Interface],
    listen: &[SocketAddrV4],
    data: std::ops::Range<u16>,
    cores: &mut [Core],
) {
    let without = |why: &str| tracing::info!(rung = "tftp_frames", have = false, "TFTP by sockets: {why}");
    if let Some(why) = settings.tftp_frames.refused(filter, "tftp") {
        return without(&why);
    }
    if !settings.single_port && data.is_empty() {
        return without("no run of free data ports");
    }
    let Ok(chosen) = choose_interfaces(&settings.interfaces, all) else { return };
    // One port may be listened on at many addresses.
    let listen_ports: BTreeSet<u16> = listen.iter().map(SocketAddrV4::port).collect();
    let ports = filters::TftpPorts { listen: listen_ports.into_iter().collect(), data };
    let mut taken = Vec::new();
    let mut links: Vec<Vec<Link>> = cores.iter().map(|_| Vec::new()).collect();
    for link in chosen.iter().filter(|link| link.ethernet) {
        let Some(interface) = described(link) else { continue };
        if !listen.iter().any(|addr| addr.ip().is_unspecified() || *addr.ip() == interface.addr) {
            continue;
        }
        let dhcp = cores.iter().find_map(|core| core.dhcp.as_ref()?.group_on(interface.index));
        let dhcp = dhcp.filter(|(_, rings)| rings.count() as usize + cores.len() <= Group::MEMBERS_MAX);
        match open_links(&interface, &ports, cores.len(), dhcp) {
            Ok(opened) => {
                taken.push((interface.index, interface.addr));
                links.iter_mut().zip(opened).for_each(|(links, link)| links.push(link));
            }
            Err(error) => without(&format!("{error}")),
        }
    }
    if taken.is_empty() {
        return;
    }
    let filter = filters::tftp_sockets(&taken);
    let sockets = || cores.iter().flat_map(|core| core.tftp.sockets());
    if let Some(error) = sockets().find_map(|socket| socket.attach_filter(&filter).err()) {
        // The sockets serve everything again, those that have a filter by now included.
        for socket in sockets() {
            let _ = socket.attach_filter(&filters::everything());
        }
        return without(&format!("attach filter to a UDP socket: {error}"));
    }
    for (core, links) in cores.iter_mut().zip(links) {
        core.tftp.take_links(links);
    }
    let names = taken.iter().filter_map(|(index, _)| all.iter().find(|i| i.index == *index));
    let names: Vec<&str> = names.map(|interface| interface.name.as_str()).collect();
    tracing::info!(
        rung = "tftp_frames",
        have = true,
        interfaces = names.join(","),
        "TFTP in small windows leaves in frames, past the IP stack"
    );
}

/// One interface's rings, one for each core, in DHCP's group where there is one, otherwise in one of their own where there are several.
fn open_links(
    interface: &Arc<Interface>,
    ports: &filters::TftpPorts,
    cores: usize,
    dhcp: Option<(Group, DhcpRings)>,
) -> Result<Vec<Link>, SysError> {
    let failed = |e| SysError::new(format!("share {} between cores", interface.name), e);
    let filter = filters::tftp_frames(interface.index, interface.addr, ports);
    let (mut group, members) = dhcp.unzip();
    let chooser = filters::chooser(members, Some((ports, cores as u32)));
    let mut rings = Vec::new();
    for _ in 0..cores {
        let ring = FrameRing::open(&interface.name, interface.index, &filter, &RING)?;
        match group {
            None if cores == 1 => {}
            None => group = Some(ring.found(&chooser).map_err(failed)?),
            Some(group) => ring.join(group).map_err(failed)?,
        }
        rings.push(ring);
    }
    if members.is_some()
        && let Some(ring) = rings.last()
    {
        ring.choose(&chooser).map_err(failed)?;
    }
    let sender = || FrameSender::open(&interface.name, interface.index);
    rings.into_iter().map(|ring| Ok(Link::new(Arc::clone(interface), ring, sender()?))).collect()
}

fn described(link: &interfaces::Interface) -> Option<Arc<Interface>> {
    let addr = link.addr?;
    Some(Arc::new(Interface {
        index: link.index,
        name: link.name.clone(),
        addr,
        network: Network::new(addr, link.prefix)?,
        mac: MacAddr(link.mac),
        mtu: link.mtu,
    }))
}

/// Takes over the hardware address that an interface has by now, and nothing else: for who has filters that name the address
/// it had. A bridge that was given none has the lowest of its ports',
/// so another one when a port comes or goes, and what is sent to the old one reaches nobody.
pub(super) fn readdress(interface: &mut Arc<Interface>, all: &[interfaces::Interface]) {
    let found = all.iter().find(|link| link.index == interface.index).map(|link| MacAddr(link.mac));
    if let Some(mac) = found.filter(|mac| *mac != interface.mac) {
        tracing::debug!(interface = interface.name, %mac, "has another hardware address");
        Arc::make_mut(interface).mac = mac;
    }
}

/// Takes over all that an interface has become. One without an address keeps what it had: it is a matter of moments where a
/// network is set up anew.
pub(super) fn renew(interface: &mut Arc<Interface>, all: &[interfaces::Interface]) {
    let found = all.iter().find(|link| link.index == interface.index).and_then(described);
    if let Some(found) = found.filter(|found| found != interface) {
        *interface = found;
    }
}

fn open_dhcp(
    settings: &EngineSettings,
    dhcp: &Settings,
    filter: &HostFilter,
    all: &[interfaces::Interface],
) -> Result<Opened, StartError> {
    let chosen = choose_interfaces(&settings.interfaces, all)?;
    if settings.interfaces.is_empty() && !chosen.is_empty() {
        let with_address = chosen.iter().filter(|interface| interface.addr.is_some());
        let names: Vec<&str> = with_address.map(|interface| interface.name.as_str()).collect();
        tracing::info!(interfaces = names.join(","), "none is named, so DHCP is answered on these");
    }
    let (port, boot_server_port) = settings.dhcp_ports;
    let options = UdpOptions { broadcast: true, recv_buffer: DHCP_RECV_BUFFER, ..UdpOptions::default() };
    let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);

    let mut interfaces = Vec::new();
    let mut waiting = Vec::new();
    for link in &chosen {
        match described(link) {
            Some(interface) => interfaces.push(interface),
            None => {
                // A port without a cable is nothing to warn of, but for who named it.
                match settings.interfaces.is_empty() {
                    true => tracing::info!(interface = link.name, "has no IPv4 address yet: waited for"),
                    false => tracing::warn!(interface = link.name, "has no IPv4 address yet: waited for"),
                }
                waiting.push(link.name.clone());
            }
        }
    }

    // Port 67 in use by another DHCP server is normal in proxy mode: the raw socket then takes everything.
    let in_use = |error: &SysError| error.source.raw_os_error() == Some(nix::errno::Errno::EADDRINUSE as i32);
    let udp = match UdpSocket::bind(any(port), &options) {
        Ok(socket) => Some(socket),
        Err(error) if in_use(&error) && dhcp.mode == Mode::Proxy => {
            tracing::info!(
                rung = "dhcp_port",
                have = false,
                port,
                "another DHCP server on this host has the port: its clients are answered by raw socket alone"
            );
            None
        }
        Err(error) => return Err(error.into()),
    };
    let reach = match settings.dhcp_frames.refused(filter, "dhcp") {
        _ if udp.is_none() => Reach::Everything,
        None => Reach::Addressed,
        Some(why) => {
            tracing::info!(rung = "dhcp_frames", have = false, "relays are answered by UDP: {why}");
            Reach::Broadcasts
        }
    };
    let mut raws = Vec::new();
    for interface in &interfaces {
        if chosen.iter().any(|link| link.index == interface.index && !link.ethernet) {
            // Loopback and tunnels have no such frames: what comes there comes by UDP.
            continue;
        }
        match RawPort::open(interface, port, reach) {
            Ok(raw) => raws.push(raw),
            Err(error) if error.is_permission() && udp.is_some() => {
                tracing::warn!(
                    rung = "packet_socket",
                    have = false,
                    interface = interface.name,
                    "{error}: answers go out as UDP broadcasts; {}",
                    error.advice().unwrap_or_default()
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
    if !raws.is_empty() {
        tracing::info!(
            rung = "packet_socket",
            have = true,
            "machines without an address are answered by frame"
        );
    }
    let mut udps: Vec<UdpPort> =
        udp.into_iter().map(|socket| UdpPort { socket, port: ServerPort::Dhcp }).collect();
    match UdpSocket::bind(any(boot_server_port), &options) {
        Ok(socket) => udps.push(UdpPort { socket, port: ServerPort::BootServer }),
        Err(error) if in_use(&error) && dhcp.mode == Mode::Proxy => {
            tracing::warn!(
                port = boot_server_port,
                "another PXE boot server on this host has the port: firmware that insists on asking there will hear \
                 it, not us; {}",
                error.advice().unwrap_or_default()
            );
        }
        Err(error) => return Err(error.into()),
    }
    // Which of all others will be one, nobody knows.
    let named = waiting.iter().filter(|_| !settings.interfaces.is_empty());
    let names = interfaces.iter().map(|i| i.name.clone()).chain(named.cloned()).collect();
    let served = interfaces.iter().map(|interface| (interface.name.clone(), interface.index)).collect();
    let (arrivals, arrived) = crossbeam_channel::bounded(ARRIVALS_MAX);
    // The standard library's hasher has a random key.
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    let mut dhcp = dhcp.clone();
    dhcp.journal = settings.journal.is_some();
    let journal = settings.journal.clone();
    let ask = dhcp.mode == Mode::Full && !dhcp.probe.is_zero();
    let mut side = DhcpSide::new(dhcp, seed, interfaces, arrived, raws, udps, settings.dhcp_ports, journal);
    side.divide().map_err(|e| SysError::new(format!("attach filter to udp port {port}"), e))?;
    if ask {
        side.ask_before_offering()?;
    }
    Ok(Opened { side, names, waiting: Waiting { names: waiting, served, port, reach, arrivals } })
}

impl Waiting {
    /// Hands over those that have an address by now. One that was made anew is another one to the kernel, whatever its name.
    fn look(&mut self, all: &[interfaces::Interface]) -> bool {
        let is_there = |(_, index): &(String, u32)| all.iter().any(|link| link.index == *index);
        for (name, _) in self.served.extract_if(.., |served| !is_there(served)) {
            tracing::warn!(
                interface = name,
                "is gone: nobody there is answered until one of that name has an address"
            );
            self.names.push(name);
        }
        let before = self.names.len();
        let names = std::mem::take(&mut self.names);
        for name in names {
            let found = all.iter().find(|link| link.name == name);
            let Some((link, interface)) = found.and_then(|link| Some((link, described(link)?))) else {
                self.names.push(name);
                continue;
            };
            let opened = link.ethernet.then(|| RawPort::open(&interface, self.port, self.reach));
            let raw = opened.and_then(|opened| {
                opened
                    .map_err(|error| {
                        let then = match self.reach {
                            Reach::Everything => "another server has the port, so nobody there is answered",
                            Reach::Broadcasts | Reach::Addressed => "answers go out as UDP broadcasts",
                        };
                        tracing::warn!(
                            interface = name,
                            "{error}: {then} until this server is started again"
                        );
                    })
                    .ok()
            });
            if raw.is_none() && matches!(self.reach, Reach::Everything) {
                self.served.push((name, link.index));
                continue;
            }
            if self.arrivals.try_send(Arrival { interface, raw }).is_err() {
                self.names.push(name);
            } else {
                self.served.push((name, link.index));
            }
        }
        self.names.len() < before
    }
}

/// How long a stop waits for running transfers.
pub const DRAIN: Duration = Duration::from_secs(10);

//! `serve`: from a plan to a running server, and its end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use sd_notify::NotifyState;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::args::{Common, Dhcp, Driver as DriverArg, LogFormat as LogFormatArg, Serve};
use super::manager::Manager;
use super::pulse::{Pulse, look_at_cores};
use super::recorder::{Budget, Recorder};
use super::reload::{Reloader, Source, Watch};
use super::{Done, Exit, Failure, config_file, load_config, output, standing};
use crate::config::{self, DhcpMode, Plan, ReservationPlan, ReservedWho, Sandbox, Value};
use crate::control::{Control, State};
use crate::engine::{DRAIN, Driver, Engine, EngineSettings, Frames, Ground, Shared, StartError, ZeroCopy};
use crate::files::library::{Library, LibraryError, Settings as LibrarySettings};
use crate::files::versions::Versions;
use crate::files::watch::watch;
use crate::history::History;
use crate::history::alarms::{Alarms, Terms};
use crate::jobs::evidence::Evidence;
use crate::jobs::job::{Job, Selector};
use crate::jobs::script::{Context, Hints, compose_explained};
use crate::jobs::token::BootId;
use crate::keeper::journal::{Scribe, Writing};
use crate::keeper::{Beginning, Keeper, Running as KeeperRunning};
use crate::proto::dhcp::{
    Mode, Network, Reservation, ReservedFor, Settings as DhcpSettings, SiteOption, Subnet,
};
use crate::proto::tftp::Limits;
use crate::store::{SqliteStore, Store};
use crate::sys::links::LinkWatch;
use crate::sys::privileges::{self, Account};
use crate::sys::sandbox::{self, Held};
use crate::sys::{SysError, affinity, host, interfaces, memory};
use crate::telemetry::{LogFormat, render_process, start_log};
use crate::tls::{Certificates, OWN_FOLDER, Source as CertificateSource};

/// The store's file in the state folder.
pub(super) const STORE: &str = "bootstorm.db";
/// The folder of leases beside it.
const LEASES: &str = "leases";
/// How often folders are looked at for new images.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// The images are looked at again so long after a look that ended by a fault.
const FAULT_REST: Duration = Duration::from_secs(60);
/// The same while a file is still being written.
const SETTLING: Duration = Duration::from_millis(500);
/// At least so long between two looks.
const REST: Duration = Duration::from_millis(200);

/// Where images and loaders are, in the library's words.
pub(super) fn library_settings(plan: &Plan) -> LibrarySettings {
    LibrarySettings {
        images_dir: plan.images_dir.clone(),
        trees: plan.image_trees.clone(),
        loader_dirs: plan.loaders.dirs.clone(),
        bios: plan.loaders.bios.clone(),
        uefi_x64: plan.loaders.uefi_x64.clone(),
        uefi_ia32: plan.loaders.uefi_ia32.clone(),
        uefi_arm64: plan.loaders.uefi_arm64.clone(),
        wimboot: plan.loaders.wimboot.clone(),
    }
}

/// Opens the library; what is missing is said with the way out.
pub(super) fn open_library(plan: &Plan) -> Result<Library, Failure> {
    Library::open(library_settings(plan)).map_err(|error| {
        Failure::new(Exit::Runtime, format!("{error}; make it, or name another one with --images"))
    })
}

pub(super) fn dhcp_settings(plan: &Plan) -> Option<DhcpSettings> {
    let mode = match plan.dhcp.mode {
        DhcpMode::Proxy => Mode::Proxy,
        DhcpMode::Full => Mode::Full,
        DhcpMode::Off => return None,
    };
    let subnets = plan
        .dhcp
        .subnets
        .iter()
        .filter_map(|subnet| {
            Some(Subnet {
                network: Network::new(subnet.network.0, subnet.network.1)?,
                range: subnet.range,
                router: subnet.router,
                dns: subnet.dns.clone(),
                lease: subnet.lease,
                next_server: subnet.next_server,
                domain: subnet.domain.clone(),
                options: plan.dhcp.options.iter().chain(&subnet.options).cloned().map(site_option).collect(),
                loader: subnet.loader.clone(),
            })
        })
        .collect();
    let reservations = plan.dhcp.reservations.iter().map(reservation).collect();
    Some(DhcpSettings {
        mode,
        subnets,
        reservations,
        authoritative: plan.dhcp.authoritative,
        circuit_max: plan.dhcp.circuit_max,
        probe: plan.dhcp.probe,
        ..DhcpSettings::default()
    })
}

fn site_option((code, body): (u8, Vec<u8>)) -> SiteOption {
    SiteOption { code, body }
}

fn reservation(planned: &ReservationPlan) -> Reservation {
    let who = match &planned.who {
        ReservedWho::Mac(mac) => ReservedFor::Mac(*mac),
        ReservedWho::Uuid(uuid) => ReservedFor::Uuid(*uuid),
        ReservedWho::ClientId(bytes) => ReservedFor::ClientId(bytes.clone()),
        ReservedWho::Circuit(bytes) => ReservedFor::Circuit(bytes.clone()),
    };
    Reservation { who, ip: planned.ip }
}

/// Bounds of TFTP's options.
pub(super) fn tftp_limits(plan: &Plan) -> Limits {
    Limits {
        blksize_max: plan.tftp.max_blksize,
        windowsize_max: plan.tftp.max_windowsize,
        ..Limits::default()
    }
}

fn driver(plan: &Plan) -> Driver {
    match plan.server.driver {
        config::Driver::Auto => Driver::Auto,
        config::Driver::Uring => Driver::Uring,
        config::Driver::Mio => Driver::Mio,
    }
}

fn zero_copy(plan: &Plan) -> ZeroCopy {
    match plan.server.zero_copy {
        config::ZeroCopy::Auto => ZeroCopy::Auto,
        config::ZeroCopy::Off => ZeroCopy::Off,
        config::ZeroCopy::Always => ZeroCopy::Always,
    }
}

fn frames(setting: config::Frames) -> Frames {
    match setting {
        config::Frames::Auto => Frames::Auto,
        config::Frames::On => Frames::On,
        config::Frames::Off => Frames::Off,
    }
}

fn engine_settings(
    plan: &Plan,
    certificates: Option<Arc<Certificates>>,
    journal: Option<Scribe>,
) -> EngineSettings {
    EngineSettings {
        driver: driver(plan),
        zero_copy: zero_copy(plan),
        cores: plan.server.cores,
        interfaces: plan.server.interfaces.clone(),
        dhcp: dhcp_settings(plan),
        dhcp_ports: (plan.dhcp.port, plan.dhcp.boot_server_port),
        dhcp_frames: frames(plan.dhcp.frames),
        journal,
        tftp: plan.tftp.listen.clone(),
        tftp_limits: tftp_limits(plan),
        single_port: plan.tftp.single_port,
        tftp_frames: frames(plan.tftp.frames),
        http: plan.http.listen.clone(),
        congestion: plan.http.congestion.clone(),
        settle: plan.server.sandbox != Sandbox::Off,
        https: certificates.map(|certificates| (plan.https.listen.clone(), certificates)),
    }
}

/// A server with everything that belongs to it.
pub(super) struct Running {
    pub(super) engine: Option<Engine>,
    pub(super) control: Option<Control>,
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
    /// These end last: what the cores still said is stored.
    keeper: Option<KeeperRunning>,
    reloader: Arc<Reloader>,
    leases: Option<Writing>,
    pulse: Arc<Pulse>,
}

/// Makes the folders of our own, on the first start; one that somebody named must be there.
fn make_folders(plan: &Plan) -> Result<(), Failure> {
    let own_images = plan.images_dir.starts_with(&plan.server.state_dir).then_some(plan.images_dir.as_path());
    for folder in std::iter::once(plan.server.state_dir.as_path()).chain(own_images) {
        std::fs::create_dir_all(folder).map_err(|error| {
            let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
            let message =
                format!("make {}: {error}; --state names a folder this user may write to", folder.display());
            Failure::new(if denied { Exit::Permission } else { Exit::Runtime }, message)
        })?;
    }
    Ok(())
}

fn not_started(error: StartError) -> Failure {
    Failure::new(if error.is_permission() { Exit::Permission } else { Exit::Runtime }, error)
}

fn system(error: SysError) -> Failure {
    Failure::new(if error.is_permission() { Exit::Permission } else { Exit::Runtime }, error)
}

/// Gives up what starting does not need, and holds this process to its own files. With one thread only: those that come
/// after it are held by what is done here.
fn confine(common: &Common, plan: &Plan) -> Result<(), Failure> {
    affinity::raise_open_files();
    affinity::raise_pinned_memory();
    host::memory();
    let account = match plan.server.user.as_str() {
        "" => None,
        name => Some(Account::find(name).map_err(system)?),
    };
    if let Some(account) = &account
        && !account.is_current()
    {
        // What an earlier run as another user left there, which this one could not write; not the images, which may be
        // somebody else's: of those the folder alone, and not where a link in the state folder leads.
        account.give(&plan.server.state_dir, &plan.images_dir).map_err(system)?;
    }
    if plan.server.sandbox == Sandbox::Off {
        if account.is_some() {
            privileges::prepare(account.as_ref()).map_err(system)?;
        }
        tracing::info!(rung = "sandbox", held = "off", "switched off by the configuration");
        return Ok(());
    }
    let kept = privileges::prepare(account.as_ref()).map_err(system)?;
    tracing::debug!(%kept, user = plan.server.user, "privileges to start with");
    let held = sandbox::hold_files(&own_files(common, plan)).map_err(system)?;
    let (word, text) = match held {
        Held::Whole => ("whole", "only its own folders and ports can be opened"),
        Held::Partly => ("partly", "this kernel's landlock is older and knows a part of it"),
        Held::Not => ("not", "this kernel has no landlock, or it is switched off (`lsm=` at boot)"),
    };
    if held != Held::Whole && plan.server.sandbox == Sandbox::On {
        return Err(Failure::new(Exit::Runtime, format!("server.sandbox = \"on\": {text}")));
    }
    tracing::info!(rung = "landlock", held = word, "{text}");
    Ok(())
}

/// What serving opens.
fn own_files(common: &Common, plan: &Plan) -> sandbox::Files {
    // Counters, sysctls and limits of the kernel; the folder of the configuration, which is read again.
    // What the peers of the admin socket are called. Who replaces these files takes the names away until a restart, and
    // nothing but the names.
    let names = ["/etc/passwd", "/etc/nsswitch.conf"];
    let mut read: Vec<PathBuf> = vec!["/proc".into()];
    read.extend(names.map(PathBuf::from));
    let folder = |file: std::io::Result<PathBuf>| file.ok()?.parent().map(PathBuf::from);
    // By its name and by where that leads: it can be a link that is changed.
    if let Some(config) = config_file(common) {
        read.extend(folder(std::path::absolute(&config)));
        read.extend(folder(std::fs::canonicalize(&config)));
    }
    for folder in &plan.loaders.dirs {
        read.push(folder.clone());
        read.extend(sandbox::link_targets(folder));
    }
    // Certificates are renewed in place, or by a link that is changed.
    if let Some((certificate, key)) = &plan.https.files {
        for file in [certificate, key] {
            read.extend(folder(std::path::absolute(file)));
            read.extend(folder(std::fs::canonicalize(file)));
        }
    }
    // Loaders are switched in the folders of images, wherever those lie.
    let mut write = vec![plan.server.state_dir.clone(), plan.images_dir.clone()];
    write.extend(plan.image_trees.iter().cloned());
    // Takes what a pipe held for a receiver that has no room for it.
    write.push("/dev/null".into());
    let listen = plan.http.listen.iter().chain(&plan.https.listen);
    let mut tcp_ports: Vec<u16> = listen.map(|addr| addr.port()).collect();
    tcp_ports.extend(plan.admin.listen.map(|addr| addr.port()));
    sandbox::Files { read, write, tcp_ports }
}

/// Starts everything; returns once every listener is open. `source` is asked for a reload.
pub(super) fn start(plan: &Plan, source: Source) -> Result<Running, Failure> {
    let runtime = |error: &dyn std::fmt::Display| Failure::new(Exit::Runtime, error);
    make_folders(plan)?;
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| runtime(&error))?;
    // What is stored is read by a thread of its own meanwhile.
    let keeper = begin_keeper(plan, secret)?;
    let library = Arc::new(open_library(plan)?);
    if let Some(doubt) = standing::menu_default(plan, &library.load()) {
        tracing::warn!("{doubt}");
    }
    let history = Arc::new(History::default());
    let terms = Terms { never_seen: plan.admin.expect_within, ..Terms::default() };
    let alarms = Arc::new(Mutex::new(Alarms::new(terms)));
    let ground = Ground::prepare(driver(plan), plan.server.cores).map_err(not_started)?;
    // Everything that is stored is loaded and published before any listener answers.
    let keeper = finish_keeper(keeper, &library)?;
    // The store's lock, taken by now, says that nobody else writes in this folder.
    let leases = start_journal(plan)?;
    // `Shared::note` bounds it: an array as long as that would be touched page by page before anybody is answered.
    let (evidence, recorder) = crossbeam_channel::unbounded::<Evidence>();
    let shared =
        Shared::new(Arc::clone(&library), keeper.keeper().clone(), plan.policy.clone(), evidence, DRAIN);
    shared.limit_boots(plan.admission, networks(plan));
    let shared = Arc::new(shared);
    let handle = keeper.keeper().clone();
    let (scribe, leases) = leases.unzip();
    let certificates = open_certificates(plan)?;
    let settings = engine_settings(plan, certificates.clone(), scribe.clone());
    let engine = Engine::start_on(ground, &settings, Arc::clone(&shared)).map_err(not_started)?;
    let reloader = Arc::new(Reloader::new(plan.clone(), Arc::clone(&shared), source));
    let mut running = Running {
        reloader: Arc::clone(&reloader),
        control: None,
        shared: Arc::clone(&shared),
        helpers: Vec::new(),
        stopping: Arc::new(AtomicBool::new(false)),
        engine: None,
        keeper: Some(keeper),
        leases,
        pulse: Arc::new(Pulse::new(engine.cells(), Instant::now())),
    };
    let cells = engine.cells();
    let served = Served { dhcp: engine.bound.interfaces.clone(), shared: Arc::clone(&shared) };
    let trouble = Arc::<AtomicBool>::default();
    let unreadable = Arc::clone(&trouble);
    let (pulse, answering) = (Arc::clone(&running.pulse), Arc::clone(&shared));
    let recording = Recorder {
        history: Arc::clone(&history),
        alarms: Arc::clone(&alarms),
        keeper: handle.clone(),
        stopping: Arc::clone(&running.stopping),
    };
    let (sizes, raised) = (Arc::clone(&history), Arc::clone(&alarms));
    let started = SystemTime::now();
    let lost = Arc::clone(&shared);
    let scripts = Arc::clone(&shared);
    let base = format!(
        "http://{}",
        engine.bound.http.first().map_or_else(
            || "127.0.0.1:4433".into(),
            |http| match http.ip().is_unspecified() {
                true => format!("{}:{}", own_address(&shared), http.port()),
                false => http.to_string(),
            }
        )
    );
    let state = State {
        folder: plan.server.state_dir.clone(),
        keeper: handle.clone(),
        library: Arc::clone(&library),
        history,
        alarms,
        script: Box::new(move |who| {
            let policy = scripts.policy.load();
            let context = Context {
                base_url: &base,
                boot: BootId::SHOWN,
                key: scripts.key(),
                now_unix: 0,
                policy: &policy,
                hints: Hints::default(),
            };
            compose_explained(&scripts.keeper.table().view(), &**scripts.library.load(), who, &context)
        }),
        reload: Box::new(move |by| {
            let told = reloader.reload_and_tell(by).map_err(|refused| refused.to_string())?;
            Ok(told.wait())
        }),
        ready: Box::new(move || {
            look_at_cores(&answering, &pulse)?;
            match unreadable.load(Ordering::Relaxed) {
                false => Ok(()),
                // Anybody may ask; the log has the path.
                true => Err("the images cannot be looked at: the log says why".to_owned()),
            }
        }),
        metrics: Box::new(move || {
            let mut text = Engine::metrics(&cells);
            render_process(started, env!("CARGO_PKG_VERSION"), &mut text);
            let count = lost.evidence_lost.load(Ordering::Relaxed);
            text.push_str(&format!(
                "# HELP bootstorm_evidence_lost_total Events the flight recorder had no room for.\n# TYPE \
                 bootstorm_evidence_lost_total counter\nbootstorm_evidence_lost_total {count}\n"
            ));
            text.push_str(&format!(
                "# HELP bootstorm_cores_ended Cores whose loop has ended although the server runs.\n# TYPE \
                 bootstorm_cores_ended gauge\nbootstorm_cores_ended {}\n",
                lost.cores_ended()
            ));
            let (admitted, waiting) = lost.admission_counts();
            text.push_str(&format!(
                "# HELP bootstorm_admission_admitted Boots that hold a place to fetch.\n# TYPE \
                 bootstorm_admission_admitted gauge\nbootstorm_admission_admitted {admitted}\n# HELP \
                 bootstorm_admission_waiting Machines in line.\n# TYPE bootstorm_admission_waiting \
                 gauge\nbootstorm_admission_waiting {waiting}\n"
            ));
            text.push_str(&handle.metrics());
            text.push_str(&link_metrics(&served));
            text.push_str(&super::recorder::metrics(&sizes, &raised));
            text.push_str(&scribe.as_ref().map(Scribe::metrics).unwrap_or_default());
            text
        }),
    };
    running.engine = Some(engine);
    let control =
        Control::start(Arc::new(state), &plan.admin.socket, plan.admin.listen).map_err(|error| {
            Failure::new(if error.is_permission() { Exit::Permission } else { Exit::Runtime }, error)
        })?;
    running.control = Some(control);
    running.helpers.push(spawn("recorder", move || recording.run(&recorder))?);
    running.helpers.push(spawn("housekeeping", {
        let stopping = Arc::clone(&running.stopping);
        let interfaces = Arc::clone(&shared);
        move || {
            keep_house(&library, &trouble, &stopping, || {
                look_at_certificates(certificates.as_deref(), &interfaces)
            })
        }
    })?);
    Ok(running)
}

/// Begins something in a thread that keeps no privilege: the threads that are made there have none either.
fn without_privileges<T: Send>(plan: &Plan, begin: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| {
            if plan.server.sandbox != Sandbox::Off {
                privileges::renounce();
            }
            begin()
        });
        begun.join().map_err(|_| Failure::new(Exit::Runtime, "a start panicked"))
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|error| Failure::new(Exit::Runtime, format!("start thread {name}: {error}")))
}

/// The site's subnets, for `[admission]`.
pub(super) fn networks(plan: &Plan) -> Vec<(std::net::Ipv4Addr, u8)> {
    plan.dhcp.subnets.iter().map(|subnet| subnet.network).collect()
}

/// What HTTPS shows, if it is listened for.
fn open_certificates(plan: &Plan) -> Result<Option<Arc<Certificates>>, Failure> {
    if plan.https.listen.is_empty() {
        return Ok(None);
    }
    let source = match &plan.https.files {
        Some((certificate, key)) => {
            CertificateSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
        None => CertificateSource::Own { folder: plan.server.state_dir.join(OWN_FOLDER), host: host_name() },
    };
    let listed = interfaces::list().unwrap_or_default();
    let addresses: Vec<_> = listed.iter().filter_map(|i| i.addr).collect();
    let certificates = Certificates::open(source, &addresses)
        .map_err(|error| Failure::new(Exit::Runtime, format!("[https]: {error}")))?;
    Ok(Some(Arc::new(certificates)))
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

/// A renewed certificate is taken, one that is no good is named once and the old one kept.
fn look_at_certificates(certificates: Option<&Certificates>, shared: &Shared) {
    let Some(certificates) = certificates else { return };
    let addresses: Vec<_> = shared.interfaces.load().iter().filter_map(|i| i.addr).collect();
    match certificates.look(&addresses) {
        Ok(false) => {}
        Ok(true) => tracing::info!("HTTPS shows a new certificate from now on"),
        Err(error) => tracing::warn!("[https]: {error}; the certificate in force stays"),
    }
}

/// The interfaces whose use is told.
struct Served {
    /// Those that DHCP is answered on; where it is off, all with an address.
    dhcp: Vec<String>,
    shared: Arc<Shared>,
}

/// What the kernel says of these interfaces, as Prometheus text.
fn link_metrics(served: &Served) -> String {
    let interfaces = served.shared.interfaces.load();
    let is_served = |name: &String| match served.dhcp.as_slice() {
        [] => interfaces.iter().any(|interface| {
            interface.name == *name && interface.addr.is_some_and(|addr| !addr.is_loopback())
        }),
        names => names.contains(name),
    };
    let traffic: Vec<_> =
        interfaces::traffic().into_iter().filter(|traffic| is_served(&traffic.name)).collect();
    let mut text = String::new();
    let mut family = |name: &str,
                      kind: &str,
                      help: &str,
                      value: &dyn Fn(&interfaces::Traffic) -> Option<u64>| {
        text.push_str(&format!("# HELP bootstorm_link_{name} {help}\n# TYPE bootstorm_link_{name} {kind}\n"));
        for traffic in &traffic {
            if let Some(value) = value(traffic) {
                let label = traffic.name.replace('\\', "\\\\").replace('"', "\\\"");
                text.push_str(&format!("bootstorm_link_{name}{{interface=\"{label}\"}} {value}\n"));
            }
        }
    };
    let received = "Bytes an interface has received, of whatever kind, as the kernel counts them.";
    family("received_bytes_total", "counter", received, &|traffic| Some(traffic.received));
    let sent = "Bytes an interface has sent, of whatever kind, as the kernel counts them.";
    family("sent_bytes_total", "counter", sent, &|traffic| Some(traffic.sent));
    let speed = "What an interface can carry each way, where its device says it.";
    family("speed_bits_per_second", "gauge", speed, &|traffic| interfaces::speed(&traffic.name));
    text
}

fn own_address(shared: &Shared) -> std::net::Ipv4Addr {
    let interfaces = shared.interfaces.load();
    let outside = interfaces.iter().filter_map(|i| i.addr).find(|addr| !addr.is_loopback());
    outside.unwrap_or(std::net::Ipv4Addr::LOCALHOST)
}

/// Opens the journal of leases and starts its thread.
fn start_journal(plan: &Plan) -> Result<Option<(Scribe, Writing)>, Failure> {
    if plan.dhcp.mode == DhcpMode::Off {
        return Ok(None);
    }
    let folder = plan.server.state_dir.join(LEASES);
    let started = without_privileges(plan, || Scribe::start(&folder))?;
    started
        .map(Some)
        .map_err(|error| Failure::new(Exit::Runtime, format_args!("leases in {}: {error}", folder.display())))
}

/// Starts the keeper's thread, which keeps no privilege, on the store.
fn begin_keeper(plan: &Plan, secret: [u8; 32]) -> Result<Beginning, Failure> {
    let confined = plan.server.sandbox != Sandbox::Off;
    let path = plan.server.state_dir.join(STORE);
    let open = move || {
        if confined {
            privileges::renounce();
        }
        Ok(Box::new(SqliteStore::open_unchecked(&path)?) as Box<dyn Store>)
    };
    Keeper::begin(open, secret).map_err(|error| Failure::new(Exit::Runtime, error))
}

/// Waits until everything stored is published.
fn finish_keeper(keeper: Beginning, library: &Arc<Library>) -> Result<KeeperRunning, Failure> {
    let images = Arc::clone(library);
    let mut lines = Budget::lines();
    let observer = move |job: &Job| {
        let (mac, uuid) = match &job.selector {
            Selector::Mac(mac) => (Some(tracing::field::display(mac)), None),
            Selector::Uuid(uuid) => (None, Some(tracing::field::display(uuid))),
            _ => (None, None),
        };
        let session = job.boot.map(tracing::field::display);
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(job = %job.id, mac, uuid, session, stage = job.stage.word(), reason = job.reason, "job moved")
            };
        }
        if lines.take() { say!(info) } else { say!(debug) }
    };
    keeper
        .finish(Box::new(move || images.snapshot()), Box::new(observer))
        .map_err(|error| Failure::new(Exit::Runtime, error))
}

/// New images appear: soon after the kernel tells that something moved, and every two seconds in any case;
/// certificates are renewed.
fn keep_house(library: &Library, trouble: &AtomicBool, stopping: &AtomicBool, certificates: impl Fn()) {
    match Versions::open(&library.settings().images_dir).and_then(|versions| versions.recover()) {
        Ok(0) => {}
        Ok(left) => tracing::info!(left, "removed what an interrupted command left in the images folder"),
        // Images may well be on a disk that is not to be written.
        Err(error) => tracing::debug!(%error, "cannot tidy the images folder"),
    }
    let me = std::thread::current();
    let watch = watch(&library.settings().images_dir, move || me.unpark());
    if let Err(why) = &watch {
        tracing::info!(why, "not told of changes in the images folder: it is looked at every two seconds");
    }
    let mut failed = false;
    let mut wait = HOUSEKEEPING;
    while !stopping.load(Ordering::Acquire) {
        std::thread::park_timeout(wait);
        wait = HOUSEKEEPING;
        certificates();
        let looked = library.rescan();
        trouble.store(looked.is_err(), Ordering::Relaxed);
        match looked {
            Ok(report) => {
                failed = false;
                if report.settling > 0 {
                    wait = SETTLING;
                }
            }
            // Said once, not every two seconds.
            Err(error) => {
                if matches!(error, LibraryError::Fault) {
                    wait = FAULT_REST;
                }
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%error, "cannot look for images");
                }
            }
        }
        // A file that is written tells so a thousand times a second: all that tell meanwhile are one.
        if !stopping.load(Ordering::Acquire) {
            std::thread::sleep(REST);
        }
    }
}

impl Running {
    /// The thread that has ended although the server runs, by a fault: what nobody else does. A core's work is done by the
    /// other cores.
    fn lost(&self) -> Option<&str> {
        let keeper = self.keeper.as_ref().is_some_and(|running| running.keeper().has_ended());
        let journal = self.leases.as_ref().is_some_and(Writing::has_ended);
        let helper = self.helpers.iter().find(|helper| helper.is_finished());
        (keeper.then_some("keeper"))
            .or(journal.then_some("journal"))
            .or(helper.map(|helper| helper.thread().name().unwrap_or("helper")))
    }

    /// Drains and ends.
    pub(super) fn stop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
        self.stopping.store(true, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            if helper.join().is_err() {
                tracing::error!("a helper thread ended by a panic");
            }
        }
        self.control = None;
        self.keeper = None;
        self.leases = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(super) fn run(common: &Common, serve: &Serve) -> Done {
    let mut flags: Vec<(&'static str, &'static str, Value)> = Vec::new();
    if !serve.interface.is_empty() {
        flags.push(("server.interfaces", "--interface", Value::List(serve.interface.clone())));
    }
    if let Some(dhcp) = serve.dhcp {
        let word = match dhcp {
            Dhcp::Proxy => "proxy",
            Dhcp::Full => "full",
            Dhcp::Off => "off",
        };
        flags.push(("dhcp.mode", "--dhcp", Value::Text(word.into())));
    }
    if let Some(driver) = serve.driver {
        let word = match driver {
            DriverArg::Auto => "auto",
            DriverArg::Uring => "uring",
            DriverArg::Mio => "mio",
        };
        flags.push(("server.driver", "--driver", Value::Text(word.into())));
    }
    if let Some(cores) = serve.cores {
        flags.push(("server.cores", "--cores", Value::Integer(cores.into())));
    }
    // While there is one thread. With more, the kernel waits until every CPU has been through its scheduler, which takes ten
    // milliseconds and more; the job table asks again, and finds it done.
    memory::has_barrier_everywhere();
    let (outer, common) = (common.clone(), common.clone());
    let source = move || load_config(&common, &flags).map(|loaded| loaded.plan);
    let plan = source()?;
    let format = match serve.log_format {
        LogFormatArg::Auto => LogFormat::Auto,
        LogFormatArg::Text => LogFormat::Text,
        LogFormatArg::Json => LogFormat::Json,
        LogFormatArg::Journal => LogFormat::Journal,
    };
    start_log(format, &serve.log).map_err(|error| {
        let message = format!("--log-format journal: no systemd journal takes entries here: {error}");
        Failure::new(Exit::Runtime, message)
    })?;
    for note in &plan.notes {
        tracing::info!("{note}");
    }
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let signals = Signals::watch()?;
    make_folders(&plan)?;
    confine(&outer, &plan)?;
    let mut running = start(&plan, Box::new(source))?;
    if serve.without_recorder {
        tracing::warn!("the flight recorder is off: explain knows nothing, and no alarm is raised");
        running.shared.records.store(false, Ordering::Relaxed);
    }
    let manager = Manager::find();
    if plan.server.sandbox != Sandbox::Off {
        // An interface that is waited for gets its socket when it comes.
        let packet_sockets = running.engine.as_ref().is_some_and(Engine::is_waiting);
        match sandbox::hold_calls(packet_sockets) {
            Ok(()) => tracing::info!(rung = "seccomp", packet_sockets, "only the system calls of serving"),
            Err(error) if plan.server.sandbox == Sandbox::On => return Err(system(error)),
            Err(error) => tracing::warn!(rung = "seccomp", %error, "every system call stays possible"),
        }
    }
    announce(&running);
    manager.tell(&[NotifyState::Ready]);
    let mut watch = config_file(&outer).filter(|_| plan.server.watch_config).map(Watch::new);
    let pulse = Arc::clone(&running.pulse);
    let reloader = Arc::clone(&running.reloader);
    let lost = signals.wait(
        || reload(&manager, &reloader, "signal"),
        || {
            if let Some(lost) = running.lost() {
                return Err(lost.to_owned());
            }
            if let Some(engine) = &mut running.engine {
                engine.look_at_interfaces();
            }
            if pulse.is_whole(Instant::now()) {
                manager.tell(&[NotifyState::Watchdog]);
            }
            if watch.as_mut().is_some_and(|watch| watch.changed(Instant::now())) {
                reload(&manager, &reloader, "file watch");
            }
            Ok(())
        },
    );
    manager.tell(&[NotifyState::Stopping]);
    if let Err(lost) = &lost {
        // What a boot waits for would never come: whoever keeps this server running is to start it again.
        tracing::error!(thread = lost, "a thread ended by a fault, and the server with it");
    }
    tracing::info!("stopping: running transfers have {} s to end", DRAIN.as_secs());
    running.stop();
    match lost {
        Ok(()) => Ok(Exit::Fine),
        Err(lost) => Err(Failure::new(
            Exit::Runtime,
            format!(
                "the thread {lost} ended by a fault, which is one of bootstorm's own: the lines before this one say where"
            ),
        )),
    }
}

/// A reload that the service manager sees.
fn reload(manager: &Manager, reloader: &Reloader, by: &str) {
    let begun = NotifyState::monotonic_usec_now();
    manager.tell(&[NotifyState::Reloading, begun.unwrap_or(NotifyState::Status("reloading"))]);
    // It is in the log either way.
    let _ = reloader.reload_and_tell(by);
    manager.tell(&[NotifyState::Ready]);
}

/// The one line that says every listener answers.
fn announce(running: &Running) {
    let Some(engine) = &running.engine else { return };
    let list = |addrs: &[std::net::SocketAddrV4]| match addrs {
        [] => "off".to_owned(),
        addrs => addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    let bound = &engine.bound;
    let dhcp = bound.dhcp.map_or_else(
        || "off".into(),
        |(mode, port, boot_server)| format!("{}:{port},{boot_server}", mode.word()),
    );
    let admin =
        running.control.as_ref().and_then(|c| c.tcp).map_or_else(|| "socket".into(), |tcp| tcp.to_string());
    let interfaces = if bound.interfaces.is_empty() { "none".into() } else { bound.interfaces.join(",") };
    output::remark(&format!(
        "bootstorm ready dhcp={dhcp} tftp={} http={} https={} admin={admin} driver={} cores={} interfaces={interfaces}",
        list(&bound.tftp),
        list(&bound.http),
        list(&bound.https),
        bound.driver,
        bound.cores,
    ));
}

/// SIGTERM, SIGINT and SIGHUP, taken over before anything is started so that none is missed.
struct Signals {
    runtime: tokio::runtime::Runtime,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    /// Says when an interface comes or changes; where that cannot be had, they are looked at every few seconds only.
    links: Option<AsyncFd<LinkWatch>>,
}

impl Signals {
    fn watch() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let fail = |error: std::io::Error| Failure::new(Exit::Runtime, format!("take over signals: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let (terminate, interrupt, hangup, links) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::terminate()).map_err(fail)?,
                signal(SignalKind::interrupt()).map_err(fail)?,
                signal(SignalKind::hangup()).map_err(fail)?,
                watched_links(),
            )
        };
        Ok(Self { runtime, terminate, interrupt, hangup, links })
    }

    /// Until the first SIGTERM or SIGINT, or what `tick` refuses to go on with.
    /// `tick` is called every few seconds until then, and soon after an interface has changed.
    fn wait<E>(mut self, mut hup: impl FnMut(), mut tick: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        self.runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = self.terminate.recv() => return Ok(()),
                    _ = self.interrupt.recv() => return Ok(()),
                    _ = self.hangup.recv() => hup(),
                    () = changed(&self.links) => tick()?,
                    () = tokio::time::sleep(HOUSEKEEPING) => tick()?,
                }
            }
        })
    }
}

#[allow(deprecated, reason = "what replaces it is unsafe code; a LinkWatch owns its descriptor and keeps it")]
fn watched_links() -> Option<AsyncFd<LinkWatch>> {
    AsyncFd::with_interest(LinkWatch::open().ok()?, Interest::READABLE).ok()
}

/// Until something about the interfaces has changed, and what belongs to it as well.
async fn changed(links: &Option<AsyncFd<LinkWatch>>) {
    const GATHERED: Duration = Duration::from_millis(50);
    let Some(links) = links else { return std::future::pending().await };
    let Ok(mut ready) = links.readable().await else { return std::future::pending().await };
    tokio::time::sleep(GATHERED).await;
    links.get_ref().drain();
    ready.clear_ready();
}

/// The signals that end a command which leaves something behind if it is killed.
pub(super) struct Ends {
    runtime: tokio::runtime::Runtime,
    signals: [tokio::signal::unix::Signal; 3],
}

impl Ends {
    /// Takes them over from here on.
    pub(super) fn watch() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let fail = |error: std::io::Error| Failure::new(Exit::Runtime, format!("take over signals: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let inside = runtime.enter();
        let take = |kind| signal(kind).map_err(fail);
        let signals =
            [take(SignalKind::terminate())?, take(SignalKind::interrupt())?, take(SignalKind::hangup())?];
        drop(inside);
        Ok(Self { runtime, signals })
    }

    /// Until the first of them.
    pub(super) fn wait(mut self) {
        let [terminate, interrupt, hangup] = &mut self.signals;
        self.runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn a_thread_that_nobody_can_do_without_is_missed_when_it_ends() {
        let folder = std::env::temp_dir().join(format!("bootstorm-lost-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "[server]\nstate_dir = \"{}\"\ncores = 1\n[dhcp]\nmode = \"off\"\n[tftp]\nlisten = []\n[http]\nlisten = \
             [\"127.0.0.1:0\"]\n[admin]\nlisten = \"\"\n",
            folder.display()
        );
        let plan = load(&Sources { file: Some(("f".into(), text)), ..Sources::default() }).unwrap().plan;
        let unchanged = plan.clone();
        let mut running = start(&plan, Box::new(move || Ok(unchanged.clone()))).unwrap();
        assert_eq!(running.lost(), None);
        running.shared.keeper.look(|_, _| panic!("a fault"));
        let begun = Instant::now();
        while running.lost() != Some("keeper") {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", running.lost());
            std::thread::yield_now();
        }
        running.stop();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

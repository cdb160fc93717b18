//! `serve`: from a plan to a running server, and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::args::{Common, Dhcp, Driver as DriverArg, LogFormat as LogFormatArg, Serve};
use super::{Done, Exit, Failure, load_config, output};
use crate::config::{self, DhcpMode, Plan, Value};
use crate::control::{Control, State};
use crate::engine::{DRAIN, Driver, Engine, EngineSettings, Frames, Shared};
use crate::files::library::{Library, Settings as LibrarySettings};
use crate::history::History;
use crate::jobs::evidence::{Evidence, Seen};
use crate::jobs::job::Job;
use crate::jobs::script::{Context, Hints, compose_explained};
use crate::jobs::token::BootId;
use crate::keeper::{Keeper, Running as KeeperRunning};
use crate::proto::dhcp::{Mode, Network, Reservation, Settings as DhcpSettings, Subnet};
use crate::proto::tftp::Limits;
use crate::store::{SqliteStore, StoreError};
use crate::telemetry::{LogFormat, start_log};

/// Evidence waiting for the recorder; beyond it evidence is lost and counted, never a core held up.
const EVIDENCE_QUEUE: usize = 64 * 1024;
/// The store's file in the state folder.
pub(super) const STORE: &str = "bootstorm.db";
/// How long evidence is gathered before the recorder looks again.
const GATHER: Duration = Duration::from_millis(5);
/// How often folders are looked at for new images.
const HOUSEKEEPING: Duration = Duration::from_secs(2);

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

fn dhcp_settings(plan: &Plan) -> Option<DhcpSettings> {
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
            })
        })
        .collect();
    let reservations = plan.dhcp.reservations.iter().map(|r| Reservation { mac: r.mac, ip: r.ip }).collect();
    Some(DhcpSettings { mode, subnets, reservations, ..DhcpSettings::default() })
}

fn engine_settings(plan: &Plan) -> EngineSettings {
    EngineSettings {
        driver: match plan.server.driver {
            config::Driver::Auto => Driver::Auto,
            config::Driver::Uring => Driver::Uring,
            config::Driver::Mio => Driver::Mio,
            config::Driver::UringAlways => Driver::UringAlways,
        },
        cores: plan.server.cores,
        interfaces: plan.server.interfaces.clone(),
        dhcp: dhcp_settings(plan),
        dhcp_ports: (plan.dhcp.port, plan.dhcp.boot_server_port),
        tftp: plan.tftp.listen.clone(),
        tftp_limits: Limits {
            blksize_max: plan.tftp.max_blksize,
            windowsize_max: plan.tftp.max_windowsize,
            rollover_to: 0,
        },
        single_port: plan.tftp.single_port,
        tftp_frames: match plan.tftp.frames {
            config::Frames::Auto => Frames::Auto,
            config::Frames::On => Frames::On,
            config::Frames::Off => Frames::Off,
        },
        http: plan.http.listen.clone(),
    }
}

/// A server with everything that belongs to it.
pub(super) struct Running {
    pub(super) engine: Option<Engine>,
    pub(super) control: Option<Control>,
    helpers: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
    /// Ends last: what the cores still said is stored.
    keeper: Option<KeeperRunning>,
}

/// Starts everything; returns once every listener is open.
pub(super) fn start(plan: &Plan) -> Result<Running, Failure> {
    let runtime = |error: &dyn std::fmt::Display| Failure::new(Exit::Runtime, error);
    // Folders of our own are made on the first start; one that somebody named must be there.
    if plan.images_dir.starts_with(&plan.server.state_dir) {
        std::fs::create_dir_all(&plan.images_dir).map_err(|error| {
            let exit = if error.kind() == std::io::ErrorKind::PermissionDenied {
                Exit::Permission
            } else {
                Exit::Runtime
            };
            let message = format!(
                "make {}: {error}; --state names a folder this user may write to",
                plan.images_dir.display()
            );
            Failure::new(exit, message)
        })?;
    }
    let library = Arc::new(open_library(plan)?);
    let history = Arc::new(History::default());
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| runtime(&error))?;
    // Everything that is stored is loaded and published before any listener answers.
    let keeper = start_keeper(plan, &library, secret)?;
    let (evidence, recorder) = crossbeam_channel::bounded::<Evidence>(EVIDENCE_QUEUE);
    let shared = Arc::new(Shared::new(
        Arc::clone(&library),
        keeper.keeper().clone(),
        plan.policy.clone(),
        evidence,
        DRAIN,
    ));
    let handle = keeper.keeper().clone();
    let engine = Engine::start(&engine_settings(plan), Arc::clone(&shared)).map_err(|error| {
        Failure::new(if error.is_permission() { Exit::Permission } else { Exit::Runtime }, error)
    })?;
    let mut running = Running {
        control: None,
        helpers: Vec::new(),
        stopping: Arc::new(AtomicBool::new(false)),
        engine: None,
        keeper: Some(keeper),
    };
    let cells = engine.cells();
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
        keeper: handle.clone(),
        library: Arc::clone(&library),
        history: Arc::clone(&history),
        script: Box::new(move |who| {
            let policy = scripts.policy.load();
            // Number 0 is no boot's: a token rendered here for show moves nothing.
            let context = Context {
                base_url: &base,
                boot: BootId(0),
                key: scripts.key(),
                now_unix: 0,
                policy: &policy,
                hints: Hints::default(),
            };
            compose_explained(&scripts.keeper.table().view(), &**scripts.library.load(), who, &context)
        }),
        metrics: Box::new(move || {
            let mut text = Engine::metrics(&cells);
            let count = lost.evidence_lost.load(Ordering::Relaxed);
            text.push_str(&format!(
                "# HELP bootstorm_evidence_lost_total Events the flight recorder had no room for.\n# TYPE \
                 bootstorm_evidence_lost_total counter\nbootstorm_evidence_lost_total {count}\n"
            ));
            text.push_str(&handle.metrics());
            text
        }),
    };
    running.engine = Some(engine);
    let control =
        Control::start(Arc::new(state), &plan.admin.socket, plan.admin.listen).map_err(|error| {
            Failure::new(if error.is_permission() { Exit::Permission } else { Exit::Runtime }, error)
        })?;
    running.control = Some(control);
    running.helpers.push(spawn("recorder", {
        let stopping = Arc::clone(&running.stopping);
        move || record(&recorder, &history, &stopping)
    })?);
    running.helpers.push(spawn("housekeeping", {
        let stopping = Arc::clone(&running.stopping);
        move || keep_house(&library, &stopping)
    })?);
    Ok(running)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|error| Failure::new(Exit::Runtime, format!("start thread {name}: {error}")))
}

fn own_address(shared: &Shared) -> std::net::Ipv4Addr {
    let interfaces = shared.interfaces.load();
    let outside = interfaces.iter().filter_map(|i| i.addr).find(|addr| !addr.is_loopback());
    outside.unwrap_or(std::net::Ipv4Addr::LOCALHOST)
}

/// Opens the store and starts the keeper on it.
fn start_keeper(plan: &Plan, library: &Arc<Library>, secret: [u8; 32]) -> Result<KeeperRunning, Failure> {
    let failure = |error: StoreError| Failure::new(Exit::Runtime, error);
    let folder = &plan.server.state_dir;
    std::fs::create_dir_all(folder).map_err(|error| {
        let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let message =
            format!("make {}: {error}; --state names a folder this user may write to", folder.display());
        Failure::new(if denied { Exit::Permission } else { Exit::Runtime }, message)
    })?;
    let store = SqliteStore::open(&folder.join(STORE)).map_err(failure)?;
    let images = Arc::clone(library);
    let observer =
        |job: &Job| tracing::info!(job = %job.id, stage = job.stage.word(), reason = job.reason, "job moved");
    Keeper::start(Box::new(store), Box::new(move || images.snapshot()), secret, Box::new(observer))
        .map_err(failure)
}

/// Everything that was seen becomes timelines.
fn record(evidence: &crossbeam_channel::Receiver<Evidence>, history: &History, stopping: &AtomicBool) {
    let mut budget = LogBudget::new();
    let mut gathering = false;
    while !stopping.load(Ordering::Acquire) {
        // Waking a thread that waits costs the core that wakes it more than the evidence does. So while evidence
        // comes, it is gathered for a moment instead of being waited for.
        let seen = if gathering {
            let Ok(seen) = evidence.try_recv() else {
                std::thread::park_timeout(GATHER);
                gathering = !evidence.is_empty();
                continue;
            };
            seen
        } else {
            let Ok(seen) = evidence.recv_timeout(Duration::from_millis(200)) else { continue };
            gathering = true;
            seen
        };
        budget.refill();
        // A DISCOVER is anybody's packet; what follows it costs a stranger more, but is anybody's still. Whatever
        // the network says, the log grows only so fast; the timelines have it all.
        let loud =
            !matches!(seen.seen, Seen::DhcpOffered { .. } | Seen::FileProgress { .. }) && budget.take();
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(
                    mac = seen.mac.map(tracing::field::display),
                    uuid = seen.uuid.map(tracing::field::display),
                    session = seen.boot.map(tracing::field::display),
                    address = seen.address.map(tracing::field::display),
                    job = seen.job().map(tracing::field::display),
                    stage = seen.seen.word(),
                    "{}",
                    seen.seen
                )
            };
        }
        if loud {
            say!(info)
        } else {
            say!(debug)
        }
        history.note(&seen);
    }
}

/// Stage lines the log takes: a burst, then so many a second.
struct LogBudget {
    left: f64,
    at: Instant,
}

impl LogBudget {
    const BURST: f64 = 1000.0;
    const PER_SECOND: f64 = 100.0;

    fn new() -> Self {
        Self { left: Self::BURST, at: Instant::now() }
    }

    fn refill(&mut self) {
        let now = Instant::now();
        self.left =
            (self.left + now.duration_since(self.at).as_secs_f64() * Self::PER_SECOND).min(Self::BURST);
        self.at = now;
    }

    fn take(&mut self) -> bool {
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// New images appear.
fn keep_house(library: &Library, stopping: &AtomicBool) {
    let mut failed = false;
    while !stopping.load(Ordering::Acquire) {
        std::thread::park_timeout(HOUSEKEEPING);
        match library.rescan() {
            Ok(_) => failed = false,
            // Said once, not every two seconds.
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::warn!(%error, "cannot look for new images")
            }
            Err(_) => {}
        }
    }
}

impl Running {
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
    let plan = load_config(common, &flags)?.plan;
    let format = match serve.log_format {
        LogFormatArg::Text => LogFormat::Text,
        LogFormatArg::Json => LogFormat::Json,
    };
    start_log(format, &serve.log);
    for note in &plan.notes {
        tracing::info!("{note}");
    }
    let signals = Signals::watch()?;
    let mut running = start(&plan)?;
    announce(&running);
    // No service manager, no notification.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    signals.wait(
        || tracing::warn!("SIGHUP: reloading is not built yet; the configuration is as it was"),
        || {
            if let Some(engine) = &mut running.engine {
                engine.look_at_interfaces();
            }
        },
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping: running transfers have {} s to end", DRAIN.as_secs());
    running.stop();
    Ok(Exit::Fine)
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
        "bootstorm ready dhcp={dhcp} tftp={} http={} admin={admin} driver={} cores={} interfaces={interfaces}",
        list(&bound.tftp),
        list(&bound.http),
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
}

impl Signals {
    fn watch() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let fail = |error: std::io::Error| Failure::new(Exit::Runtime, format!("take over signals: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let (terminate, interrupt, hangup) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::terminate()).map_err(fail)?,
                signal(SignalKind::interrupt()).map_err(fail)?,
                signal(SignalKind::hangup()).map_err(fail)?,
            )
        };
        Ok(Self { runtime, terminate, interrupt, hangup })
    }

    /// Until the first SIGTERM or SIGINT.
    /// `tick` is called every few seconds until then.
    fn wait(mut self, mut hup: impl FnMut(), mut tick: impl FnMut()) {
        self.runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = self.terminate.recv() => return,
                    _ = self.interrupt.recv() => return,
                    _ = self.hangup.recv() => hup(),
                    () = tokio::time::sleep(HOUSEKEEPING) => tick(),
                }
            }
        });
    }
}

/// Until SIGTERM or SIGINT.
pub(super) fn wait_for_end() -> Result<(), Failure> {
    Signals::watch()?.wait(|| {}, || {});
    Ok(())
}

//! `demo`: a library made on the spot, the real engine on loopback, four simulated machines, and a first table of
//! TFTP against HTTP. No root, no configuration, nothing left behind.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::args::{Demo, Driver as DriverArg};
use super::{Done, Exit, Failure, output, serve};
use crate::bench::http::{HttpLoad, Work};
use crate::bench::result::Point;
use crate::bench::tftp::TftpLoad;
use crate::bench::{LoadError, Way, http, tftp};
use crate::client::run::{BootReport, Endpoints, boot};
use crate::client::{Config, Kind, Patience, Relay};
use crate::config::values;
use crate::config::{Sources, Value, load};
use crate::files::wim_write::{WIM_LEN_MIN, WimSpec, create_wim};
use crate::wire::MacAddr;

/// A boot must be over by then.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);
/// How long each row of the throughput table is measured.
const ROW_TIME: Duration = Duration::from_millis(700);
/// Largest WIM a demonstration makes.
const SIZE_MAX: u64 = 64 << 30;
const LOADER_LEN: usize = 200_000;
/// How often the folder of a demonstration that is ended is tried to be removed, and the pauses in between.
const REMOVALS: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// The demonstration's folder, removed at the end whatever happens.
struct Folder(PathBuf);

impl Folder {
    /// A new one, under a name that nobody can have taken before, and for this user alone.
    fn new() -> io::Result<Self> {
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(io::Error::other)?;
        let name = format!("bootstorm-demo-{:016x}", u64::from_le_bytes(number));
        let path = std::env::temp_dir().join(name);
        // Fails where there is anything, a link that leads nowhere as well.
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing sensible is left to do when even this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What SIGINT, SIGTERM and SIGHUP do: the folder goes whenever they come, it may hold 64 GiB.
struct Ending {
    /// Held while folders are made: what is made must not come back behind the one who removes it.
    making: Arc<Mutex<()>>,
    is_staying: Arc<AtomicBool>,
    told: mpsc::Receiver<()>,
}

impl Ending {
    /// Takes the signals over, before there is anything to remove.
    fn watch(signals: serve::Ends, folder: &Path) -> Result<Self, Failure> {
        let (making, is_staying) = (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)));
        let (tell, told) = mpsc::channel();
        let ending = Self { making: Arc::clone(&making), is_staying: Arc::clone(&is_staying), told };
        let folder = folder.to_owned();
        let wait = move || {
            signals.wait();
            if is_staying.load(Ordering::Acquire) {
                // Whoever waits for that goes on to the ordinary end.
                let _ = tell.send(());
                return;
            }
            let _held = making.lock().unwrap_or_else(PoisonError::into_inner);
            // A file may still come while the others go.
            let gone = (0..REMOVALS).any(|_| match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(REMOVAL_PAUSE);
                    false
                }
                _ => true,
            });
            match gone {
                true => output::remark("ended before its time; nothing is left behind"),
                false => {
                    output::remark(&format!("ended before its time; {} is left behind", folder.display()))
                }
            }
            std::process::exit(i32::from(Exit::Runtime as u8));
        };
        std::thread::Builder::new()
            .name("ending".into())
            .spawn(wait)
            .map_err(|error| Failure::new(Exit::Runtime, format!("start thread ending: {error}")))?;
        Ok(ending)
    }

    /// Does what makes folders.
    fn while_making<T>(&self, make: impl FnOnce() -> T) -> T {
        let _held = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        make()
    }

    /// Until one of the signals comes.
    fn wait(&self) {
        self.is_staying.store(true, Ordering::Release);
        // The other end is gone only when it has been told.
        let _ = self.told.recv();
    }
}

pub(super) fn run(demo: &Demo) -> Done {
    let size =
        values::size(&demo.size).filter(|size| (WIM_LEN_MIN..=SIZE_MAX).contains(size)).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                format!("--size {:?}: expected a size from 64KiB to 64GiB, such as 256MiB", demo.size),
            )
        })?;
    let signals = serve::Ends::watch()?;
    let folder = Folder::new().map_err(|error| {
        Failure::new(Exit::Runtime, format!("make a folder in {}: {error}", std::env::temp_dir().display()))
    })?;
    let ending = Ending::watch(signals, &folder.0)?;
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::new(Exit::Runtime, format!("{what}: {error}"));
    let say = |text: String| {
        if !demo.json {
            output::line(text);
        }
    };
    ending
        .while_making(|| make_folders(&folder.0))
        .and_then(|()| make_library(&folder.0, size))
        .map_err(|error| failed("make the image library", &error))?;
    say(format!("made a WIM of {} in {}", output::bytes(size), folder.0.display()));

    let plan = plan(&folder.0, demo)?;
    let unchanged = plan.clone();
    let mut running = ending.while_making(|| serve::start(&plan, Box::new(move || Ok(unchanged.clone()))))?;
    let Some(bound) = running.engine.as_ref().map(|engine| engine.bound.clone()) else {
        return Err(Failure::new(Exit::Runtime, "the engine is gone"));
    };
    let (Some(http), Some(tftp)) = (bound.http.first().copied(), bound.tftp.first().copied()) else {
        return Err(Failure::new(Exit::Runtime, "the engine has no listeners"));
    };
    say(format!("the engine runs on loopback: {} loops, driver {}", bound.cores, bound.driver));
    say("four machines boot; their waits for further DHCP offers are cut short, everything else is as in firmware\n".into());

    let progress = progress_bar(demo.json, size * 4);
    let (dhcp, boot_server) = bound.dhcp.map_or((0, 0), |(_, dhcp, boot_server)| (dhcp, boot_server));
    let reports: Vec<Result<BootReport, Failure>> = std::thread::scope(|scope| {
        let boots: Vec<_> = Kind::ALL
            .into_iter()
            .zip(1u8..)
            .map(|(kind, number)| {
                let progress = &progress;
                scope.spawn(move || {
                    let relay = Relay {
                        giaddr: Ipv4Addr::LOCALHOST,
                        circuit: format!("bench {number}").into_bytes(),
                    };
                    let endpoints = Endpoints {
                        server: Ipv4Addr::LOCALHOST,
                        dhcp,
                        boot_server,
                        tftp: tftp.port(),
                        relay,
                    };
                    boot(machine(kind, number), &endpoints, BOOT_PATIENCE, &|bytes| progress.inc(bytes))
                })
            })
            .collect();
        boots
            .into_iter()
            .map(|boot| match boot.join() {
                Ok(Ok(report)) => Ok(report),
                Ok(Err(error)) => Err(failed("a machine's sockets", &error)),
                Err(_) => Err(Failure::new(Exit::Runtime, "a machine ended by a panic")),
            })
            .collect()
    });
    progress.finish_and_clear();
    let reports = reports.into_iter().collect::<Result<Vec<_>, _>>()?;
    for report in &reports {
        say(timeline(report));
    }

    let rows = throughput(http, tftp).map_err(|error| failed("measure throughput", &error))?;
    if demo.json {
        output::json(&json!({ "boots": reports, "throughput": rows }));
    } else {
        output::line("what one client and sixteen clients get, on this machine's loopback:");
        let table = rows.iter().map(|row| {
            vec![
                row.work.clone(),
                row.settings_line(),
                row.clients.to_string(),
                format!("{:.0} MB/s", row.megabytes_per_s()),
                row.failures.to_string(),
            ]
        });
        output::table(&["PROTOCOL", "SETTINGS", "CLIENTS", "TOGETHER", "FAILED"], table.collect());
    }
    let all = reports.iter().all(|report| report.booted) && rows.iter().all(|row| row.failures == 0);
    if demo.stay {
        stay(&folder.0, http, tftp, demo.json);
        ending.wait();
    }
    running.stop();
    Ok(if all { Exit::Fine } else { Exit::Wrong })
}

fn machine(kind: Kind, number: u8) -> Config {
    let mut uuid = [0x42; 16];
    uuid[15] = number;
    Config {
        kind,
        mac: MacAddr([0x52, 0x54, 0, 0xde, 0x30, number]),
        uuid: crate::wire::Uuid(uuid),
        serial: format!("DEMO{number}"),
        patience: Patience::quick(),
        seed: u64::from(number),
    }
}

fn make_folders(folder: &Path) -> io::Result<()> {
    ["images", "images/winpe", "loaders", "state"]
        .iter()
        .try_for_each(|name| fs::create_dir(folder.join(name)))
}

fn make_library(folder: &Path, size: u64) -> io::Result<()> {
    let (image, loaders) = (folder.join("images/winpe"), folder.join("loaders"));
    let spec = WimSpec {
        len: size,
        name: "Demonstration".into(),
        description: "made by bootstorm demo".into(),
        seed: 1,
        created: SystemTime::now(),
        integrity: false,
    };
    create_wim(&image.join("boot.wim"), &spec)?;
    // Stand-ins: the simulated machines take any program for iPXE and any kernel for wimboot.
    let stand_in: Vec<u8> = (0..LOADER_LEN).map(|i| ((i * 31) >> 3) as u8).collect();
    fs::write(image.join("wimboot"), &stand_in)?;
    for name in ["undionly.kpxe", "snponly.efi"] {
        fs::write(loaders.join(name), &stand_in)?;
    }
    Ok(())
}

fn plan(folder: &Path, demo: &Demo) -> Result<crate::config::Plan, Failure> {
    let text = |path: PathBuf| Value::Text(path.display().to_string());
    let list = |word: &str| Value::List(vec![word.to_owned()]);
    let driver = match demo.driver {
        DriverArg::Auto => "auto",
        DriverArg::Uring => "uring",
        DriverArg::Mio => "mio",
    };
    // Addresses for the machines from 127.0.1.0 on: Linux takes any address of 127.0.0.0/8 as its own.
    let file = "[[dhcp.subnet]]\nnetwork = \"127.0.0.0/8\"\nrange = \"127.0.1.10-127.0.1.250\"\nnext_server = \"127.0.0.1\"\n";
    let (dhcp, boot_server) = (free_port()?, free_port()?);
    let sources = Sources {
        file: Some(("demo".into(), file.into())),
        environment: Vec::new(),
        flags: vec![
            ("server.interfaces", "demo", list("lo")),
            ("server.state_dir", "demo", text(folder.join("state"))),
            ("server.driver", "demo", Value::Text(driver.into())),
            ("server.sandbox", "demo", Value::Text("off".into())),
            ("dhcp.mode", "demo", Value::Text("full".into())),
            ("dhcp.port", "demo", Value::Integer(dhcp.into())),
            ("dhcp.boot_server_port", "demo", Value::Integer(boot_server.into())),
            ("tftp.listen", "demo", list("127.0.0.1:0")),
            ("http.listen", "demo", list("127.0.0.1:0")),
            ("images.dir", "demo", text(folder.join("images"))),
            ("loaders.dirs", "demo", Value::List(vec![folder.join("loaders").display().to_string()])),
            ("policy.menu_default", "demo", Value::Text("winpe".into())),
            ("policy.menu_timeout", "demo", Value::Text("1s".into())),
            ("admin.listen", "demo", Value::Text(String::new())),
        ],
    };
    Ok(load(&sources)?.plan)
}

/// A UDP port nobody has at this moment.
fn free_port() -> Result<u16, Failure> {
    std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .map(|addr| addr.port())
        .map_err(|error| Failure::new(Exit::Runtime, format!("find a free port: {error}")))
}

fn progress_bar(quiet: bool, total: u64) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    match ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn timeline(report: &BootReport) -> String {
    let mut text = format!("{}\n", report.kind.word());
    for stage in &report.stages {
        let bytes = if stage.bytes > 0 { output::bytes(stage.bytes) } else { String::new() };
        text.push_str(&format!(
            "  {:>7.3} s  {:<14} {:>10}  {}\n",
            stage.at_ms as f64 / 1000.0,
            stage.name,
            bytes,
            stage.note
        ));
    }
    let verdict = if report.booted { "would start" } else { "did not boot:" };
    text.push_str(&format!("  {verdict} {}", report.outcome));
    if report.booted {
        text.push_str(&format!(
            ", {} in all, last file {}",
            output::bytes(report.bytes),
            report.hash.get(..16).unwrap_or("")
        ));
    }
    text.push('\n');
    text
}

fn throughput(http: SocketAddrV4, tftp: SocketAddrV4) -> Result<Vec<Point>, LoadError> {
    let file = "images/winpe/boot.wim";
    let mut rows = Vec::new();
    for clients in [1, 16] {
        for (blksize, windowsize) in [(1428, 1), (1428, 16), (1428, 64), (8192, 16)] {
            rows.push(tftp::run(&TftpLoad {
                server: tftp,
                file: file.into(),
                blksize,
                windowsize,
                tsize: false,
                clients,
                time: ROW_TIME,
                files_max: None,
                check: None,
                way: Way::Sockets,
            })?);
        }
        rows.push(http::run(&HttpLoad {
            server: http,
            work: Work::File { path: format!("/{file}") },
            connections: clients,
            close: false,
            time: ROW_TIME,
            requests_max: None,
        })?);
    }
    Ok(rows)
}

fn stay(folder: &Path, http: SocketAddrV4, tftp: SocketAddrV4, json: bool) {
    let text = format!(
        "\nhttp://{http}/ipxe shows the boot options, http://{http}/images/winpe/boot.wim is the image\n\
         tftp://{tftp}/images/winpe/boot.wim is the same by TFTP\n\
         bootstorm job list --state {}\n\
         Ctrl-C ends it",
        folder.join("state").display()
    );
    // Whoever reads JSON reads nothing else.
    if json { output::remark(&text) } else { output::line(text) }
}

//! `bench`: loads any server by address and says what it gave.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::bench_compare::{BadNetwork, unwritable, writable};
use super::{Done, Exit, Failure, bench_compare, output};
use crate::bench::dhcp::{DhcpLoad, Mode};
use crate::bench::http::{HttpLoad, Work};
use crate::bench::impair::Impairment;
use crate::bench::null::{NullFrames, NullHttp, answer_frames, answer_http};
use crate::bench::relay::Relay;
use crate::bench::report::{Conditions, of_load, page};
use crate::bench::result::Point;
use crate::bench::storm::StormLoad;
use crate::bench::tftp::{Check, TftpLoad};
use crate::bench::{LoadError, Way, dhcp, http, stays_here, storm, tftp};
use crate::client::{Kind, Patience};
use crate::config::values;

/// Longest time one point is measured.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Most points of one command, rounds included.
const POINTS_MAX: usize = 1000;
const ROUNDS_MAX: u32 = 100;

/// `bench`.
#[derive(Subcommand, Debug)]
pub enum BenchVerb {
    /// Many clients that fetch one file by TFTP
    #[command(
        after_help = "Example: bootstorm bench tftp --server 10.0.0.1 --file boot.wim --blksize 512,1428 \
                      --windowsize 1,16 --clients 1,64,512\n\nOn an interface every client has an address of its own; \
                      more than about 1000 of them need a larger neighbour table on the server \
                      (net.ipv4.neigh.default.gc_thresh3)."
    )]
    Tftp(Box<TftpArgs>),
    /// Many connections that fetch a file, or ranges of it, by HTTP
    #[command(
        after_help = "Example: bootstorm bench http --server 10.0.0.1:4433 --path /images/winpe/boot.wim \
                      --range-size 1MiB --connections 16,256"
    )]
    Http(Box<HttpArgs>),
    /// Many machines that ask for addresses or boot files by DHCP, on an interface
    #[command(
        after_help = "Example: sudo bootstorm bench dhcp --interface veth0 --mode dora --clients 64\n         \
                      sudo bootstorm bench dhcp --interface eth1 --server 10.0.0.1 --relays 4 --mode proxy\n\nWithout \
                      --relays every message is a broadcast to whatever DHCP server hears it. That is refused on \
                      anything but a veth or loopback unless --allow-broadcast says that it is meant."
    )]
    Dhcp(Box<DhcpArgs>),
    /// Many machines that fetch their boot script by HTTP
    #[command(after_help = "Example: bootstorm bench script --server 10.0.0.1:4433 --connections 64 --close")]
    Script(Box<ScriptArgs>),
    /// Many machines that boot at once, from DHCP to their last file
    #[command(
        after_help = "Example: sudo bootstorm bench storm --interface veth0 --machines 500 --kind bios,uefi\n\nMachines \
                      have firmware's own timers and retries; one that its firmware would have given up on has failed."
    )]
    Storm(StormArgs),
    /// Answer without doing anything, to see what the load itself can do
    #[command(
        after_help = "Example: sudo bootstorm bench null --interface veth0 --address 10.99.0.9\n\nNothing here should \
                      ever be booted from: never on a network with machines on it."
    )]
    Null(NullArgs),
    /// The same work on this program and on the servers installed here (root; stays in namespaces of its own)
    #[command(
        after_help = "Example: sudo bootstorm bench compare --quick --work http,tftp --json now.json --html now.html"
    )]
    Compare(Box<super::bench_compare::Compare>),
    /// Print a report of `compare` again, as a page or beside another one
    #[command(after_help = "Example: bootstorm bench report now.json --against then.json --html now.html")]
    Report(super::bench_compare::Show),
    /// Reckon how long N machines take to boot over a link
    #[command(
        after_help = "Example: bootstorm bench model --nic 10G --clients 1000 --image 500MiB --rtt 1ms"
    )]
    Model(super::bench_compare::Model),
    /// Join two interfaces by a wire with delay and loss (root)
    #[command(after_help = "Example: sudo bootstorm bench wire veth1 veth2 --rtt 5ms --loss 0.5%")]
    Wire(super::bench_compare::Wire),
    /// One load for one server, as `compare` hands it to a process of its own
    #[command(hide = true, after_help = "Example: bootstorm bench compare --quick")]
    One {
        /// The load, as JSON
        load: String,
    },
}

/// What every load takes.
#[derive(clap::Args, Debug, Clone)]
pub struct Common {
    /// How often each point is measured; the table shows the median round
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Units a second that the same load reached against `bench null`
    #[arg(long, value_name = "RATE")]
    pub ceiling: Option<f64>,
    /// Broadcast and multicast targets are meant
    #[arg(long)]
    pub allow_broadcast: bool,
    /// Print every point of every round as JSON
    #[arg(long)]
    pub json: bool,
    /// Write a page with charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `bench tftp`.
#[derive(clap::Args, Debug)]
pub struct TftpArgs {
    /// Server, with its port if that is not 69
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = tftp_server)]
    pub server: SocketAddrV4,
    /// File to fetch
    #[arg(long, value_name = "NAME")]
    pub file: String,
    /// Block sizes
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1428")]
    pub blksize: Vec<u16>,
    /// Window sizes
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,16")]
    pub windowsize: Vec<u16>,
    /// Clients at once
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,64")]
    pub clients: Vec<u32>,
    /// Ask for the file's size too
    #[arg(long)]
    pub tsize: bool,
    /// Each client ends after so many files [default: goes on until time is up]
    #[arg(long, value_name = "N")]
    pub files: Option<u32>,
    /// Every download must be this local file, byte for byte; slows the load down
    #[arg(long, value_name = "FILE")]
    pub verify: Option<PathBuf>,
    /// Simulate hosts with hand-made frames on this interface; needs CAP_NET_RAW
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// First simulated host's address [default: the last ones of the interface's network]
    #[arg(long, value_name = "ADDR", requires = "interface")]
    pub from: Option<Ipv4Addr>,
    /// What is put in between.
    #[command(flatten)]
    pub bad: BadNetwork,
    /// How long each point is measured
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = time)]
    pub time: Duration,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `bench http`.
#[derive(clap::Args, Debug)]
pub struct HttpArgs {
    /// Server, with its port if that is not 4433
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = http_server)]
    pub server: SocketAddrV4,
    /// Path to fetch
    #[arg(long, value_name = "PATH")]
    pub path: String,
    /// Sizes of ranges, such as 1MiB; 0 fetches the whole file
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub range_size: Vec<String>,
    /// Ranges at random offsets instead of one after the other
    #[arg(long)]
    pub random: bool,
    /// What is put in between.
    #[command(flatten)]
    pub bad: BadNetwork,
    /// Connections at once
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,16")]
    pub connections: Vec<u32>,
    /// A new connection for every request
    #[arg(long)]
    pub close: bool,
    /// How long each point is measured
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = time)]
    pub time: Duration,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `bench script`.
#[derive(clap::Args, Debug)]
pub struct ScriptArgs {
    /// Server, with its port if that is not 4433
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = http_server)]
    pub server: SocketAddrV4,
    /// Path to fetch; {mac} stands for the machine's address
    #[arg(long, value_name = "PATH", default_value = "/ipxe?mac={mac}")]
    pub path: String,
    /// Different machines that ask in turn
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub machines: u32,
    /// Connections at once
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,64")]
    pub connections: Vec<u32>,
    /// A new connection for every request
    #[arg(long)]
    pub close: bool,
    /// How long each point is measured
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = time)]
    pub time: Duration,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `bench dhcp`.
#[derive(clap::Args, Debug)]
pub struct DhcpArgs {
    /// Interface; needs CAP_NET_RAW
    #[arg(long, value_name = "IF")]
    pub interface: String,
    /// Server that relays pass messages to
    #[arg(long, value_name = "ADDR")]
    pub server: Option<Ipv4Addr>,
    /// What is asked
    #[arg(long, value_enum, default_value = "dora")]
    pub mode: ModeArg,
    /// Exchanges under way at once; for an avalanche, machines [default: 1,64, or 64 with --rate]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub clients: Vec<u32>,
    /// Different machines that ask in turn [default: as many as clients]
    #[arg(long, value_name = "N")]
    pub machines: Option<u32>,
    /// Firmware's options in every message
    #[arg(long)]
    pub pxe: bool,
    /// Relays that pass the messages on [default: broadcasts]
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub relays: u32,
    /// First relay's address [default: the last ones of the interface's network]
    #[arg(long, value_name = "ADDR")]
    pub from: Option<Ipv4Addr>,
    /// An exchange without an answer for so long is lost
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub wait: Duration,
    /// Exchanges begun a second, whatever comes back
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub rate: Vec<u32>,
    /// How long each point is measured
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = time)]
    pub time: Duration,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `--mode`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeArg {
    /// DISCOVER and its OFFER
    Discover,
    /// DISCOVER to ACK
    Dora,
    /// DISCOVER and a proxyDHCP OFFER
    Proxy,
    /// All machines at once, with firmware's back-off
    Avalanche,
}

/// `bench storm`.
#[derive(clap::Args, Debug)]
pub struct StormArgs {
    /// Interface, with an address of its own; needs CAP_NET_RAW
    #[arg(long, value_name = "IF")]
    pub interface: String,
    /// Machines
    #[arg(
        long,
        visible_alias = "clients",
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "100"
    )]
    pub machines: Vec<u32>,
    /// Their firmware, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bios,uefi,http,ipxe")]
    pub kind: Vec<KindArg>,
    /// Switch them on one after the other over this time [default: all at once]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub ramp: Option<Duration>,
    /// Wait less for further DHCP offers than firmware does
    #[arg(long)]
    pub impatient: bool,
    /// What has not booted by then has failed
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = time)]
    pub patience: Duration,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `--kind`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindArg {
    /// BIOS PXE
    Bios,
    /// UEFI PXE
    Uefi,
    /// UEFI HTTP Boot
    Http,
    /// iPXE in the card's ROM
    Ipxe,
}

/// `bench null`.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("where").required(true).multiple(true).args(["interface", "http"])))]
pub struct NullArgs {
    /// Answer ARP, DHCP and TFTP with hand-made frames on this interface
    #[arg(long, value_name = "IF", requires = "address")]
    pub interface: Option<String>,
    /// Its address there, which the kernel must not have
    #[arg(long, value_name = "ADDR")]
    pub address: Option<Ipv4Addr>,
    /// DHCP: offer no address, as a proxy
    #[arg(long)]
    pub proxy: bool,
    /// Answer every HTTP request on this address
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<SocketAddrV4>,
    /// Length of every file
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    pub size: u64,
    /// Ends by itself after this
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = time)]
    pub time: Duration,
    /// A veth or loopback is not enough: answer on this interface all the same
    #[arg(long)]
    pub allow_broadcast: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    values::duration(text)
        .filter(|time| !time.is_zero() && *time <= TIME_MAX)
        .ok_or_else(|| "expected a time up to 10min, such as 3s or 500ms".into())
}

fn size(text: &str) -> Result<u64, String> {
    values::size(text).ok_or_else(|| "expected a size such as 1MiB".into())
}

fn server(text: &str, port: u16) -> Result<SocketAddrV4, String> {
    text.parse()
        .or_else(|_| text.parse().map(|ip| SocketAddrV4::new(ip, port)))
        .map_err(|_| "expected an IPv4 address, with or without a port".into())
}

fn tftp_server(text: &str) -> Result<SocketAddrV4, String> {
    server(text, 69)
}

fn http_server(text: &str) -> Result<SocketAddrV4, String> {
    server(text, 4433)
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::new(if error.is_permission() { Exit::Permission } else { Exit::Runtime }, error)
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message.into())
}

/// One point, to be measured as often as there are rounds.
type Job<'a> = Box<dyn Fn() -> Result<Point, LoadError> + 'a>;

pub(super) fn run(verb: &BenchVerb) -> Done {
    match verb {
        BenchVerb::Tftp(args) => run_tftp(args),
        BenchVerb::Http(args) => run_http(args),
        BenchVerb::Script(args) => run_script(args),
        BenchVerb::Dhcp(args) => run_dhcp(args),
        BenchVerb::Storm(args) => run_storm(args),
        BenchVerb::Null(args) => run_null(args),
        BenchVerb::Compare(args) => bench_compare::compare(args),
        BenchVerb::Report(args) => bench_compare::show(args),
        BenchVerb::Model(args) => bench_compare::model(args),
        BenchVerb::Wire(args) => bench_compare::wire(args),
        BenchVerb::One { load } => bench_compare::one(load),
    }
}

fn run_tftp(args: &TftpArgs) -> Done {
    one_host(*args.server.ip(), &args.common)?;
    if args.interface.is_some() && !args.bad.impairment().is_none() {
        return Err(usage(
            "--rtt and the like are a relay for ordinary sockets: leave --interface out, or put `bench wire` in between",
        ));
    }
    let relay = relay(&args.bad, |impairment| Relay::tftp(args.server, impairment))?;
    let server = relay.as_ref().map_or(args.server, Relay::addr);
    let check = match &args.verify {
        None => None,
        Some(path) => {
            let content = std::fs::read(path)
                .map_err(|error| Failure::new(Exit::Wrong, format!("read {}: {error}", path.display())))?;
            Some(Check::of(&content))
        }
    };
    let way = match &args.interface {
        Some(interface) => Way::Raw { interface: interface.clone(), first: args.from },
        None => Way::Sockets,
    };
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for &clients in &args.clients {
        for &blksize in &args.blksize {
            for &windowsize in &args.windowsize {
                let load = TftpLoad {
                    server,
                    file: args.file.clone(),
                    blksize,
                    windowsize,
                    tsize: args.tsize,
                    clients,
                    time: args.time,
                    files_max: args.files,
                    check,
                    way: way.clone(),
                };
                jobs.push(Box::new(move || tftp::run(&load).map(|point| noted(point, &args.bad))));
            }
        }
    }
    measure(&args.common, &jobs)
}

/// A relay for the loads to go through, unless nothing is to be wrong with the network.
fn relay(
    bad: &BadNetwork,
    start: impl FnOnce(Impairment) -> std::io::Result<Relay>,
) -> Result<Option<Relay>, Failure> {
    let impairment = bad.impairment();
    if impairment.is_none() {
        return Ok(None);
    }
    start(impairment).map(Some).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => usage(error.to_string()),
        _ => Failure::new(Exit::Runtime, format!("start the relay: {error}")),
    })
}

/// A point says what it was measured through.
fn noted(mut point: Point, bad: &BadNetwork) -> Point {
    let impairment = bad.impairment();
    if !impairment.is_none() {
        point.settings.insert("network".into(), impairment.to_string());
    }
    point
}

fn run_http(args: &HttpArgs) -> Done {
    one_host(*args.server.ip(), &args.common)?;
    let relay = relay(&args.bad, |impairment| Relay::tcp(args.server, impairment))?;
    let server = relay.as_ref().map_or(args.server, Relay::addr);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for &connections in &args.connections {
        for text in &args.range_size {
            let path = args.path.clone();
            let work = match size(text).map_err(|error| usage(format!("--range-size {text:?}: {error}")))? {
                0 => Work::File { path },
                len => Work::Ranges { path, len, random: args.random },
            };
            let load = HttpLoad {
                server,
                work,
                connections,
                close: args.close,
                time: args.time,
                requests_max: None,
            };
            jobs.push(Box::new(move || http::run(&load).map(|point| noted(point, &args.bad))));
        }
    }
    measure(&args.common, &jobs)
}

fn run_script(args: &ScriptArgs) -> Done {
    one_host(*args.server.ip(), &args.common)?;
    let jobs = args.connections.iter().map(|&connections| {
        let load = HttpLoad {
            server: args.server,
            work: Work::Script { path: args.path.clone(), machines: args.machines },
            connections,
            close: args.close,
            time: args.time,
            requests_max: None,
        };
        Box::new(move || http::run(&load)) as Job<'_>
    });
    measure(&args.common, &jobs.collect::<Vec<_>>())
}

fn run_dhcp(args: &DhcpArgs) -> Done {
    if args.relays == 0 {
        may_broadcast(&args.interface, args.common.allow_broadcast)?;
    }
    if let Some(server) = args.server {
        one_host(server, &args.common)?;
    }
    let rates: Vec<Option<u32>> = match args.rate.is_empty() {
        true => vec![None],
        false => args.rate.iter().copied().map(Some).collect(),
    };
    // At a rate nobody counts what is under way: one point is all there is to measure.
    let clients = match (args.clients.as_slice(), args.rate.is_empty()) {
        ([], true) => &[1, 64][..],
        ([], false) => &[64],
        (given, _) => given,
    };
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for &clients in clients {
        for &rate in &rates {
            let load = DhcpLoad {
                interface: args.interface.clone(),
                server: args.server,
                mode: match args.mode {
                    ModeArg::Discover => Mode::Discover,
                    ModeArg::Dora => Mode::Dora,
                    ModeArg::Proxy => Mode::Proxy,
                    ModeArg::Avalanche => Mode::Avalanche,
                },
                clients,
                machines: args.machines.unwrap_or(clients),
                pxe: args.pxe,
                relays: args.relays,
                first_relay: args.from,
                rate,
                wait: args.wait,
                exchanges_max: None,
                time: args.time,
            };
            jobs.push(Box::new(move || dhcp::run(&load)));
        }
    }
    measure(&args.common, &jobs)
}

fn run_storm(args: &StormArgs) -> Done {
    may_broadcast(&args.interface, args.common.allow_broadcast)?;
    let kinds = args.kind.iter().map(|kind| match kind {
        KindArg::Bios => Kind::Bios,
        KindArg::Uefi => Kind::Uefi,
        KindArg::Http => Kind::Http,
        KindArg::Ipxe => Kind::Ipxe,
    });
    let kinds: Vec<Kind> = kinds.collect();
    let jobs = args.machines.iter().map(|&machines| {
        let load = StormLoad {
            interface: args.interface.clone(),
            kinds: kinds.clone(),
            machines,
            ramp: args.ramp.unwrap_or_default(),
            patience: if args.impatient { Patience::quick() } else { Patience::firmware() },
            time: args.patience,
        };
        Box::new(move || storm::run(&load)) as Job<'_>
    });
    measure(&args.common, &jobs.collect::<Vec<_>>())
}

fn run_null(args: &NullArgs) -> Done {
    if let Some(interface) = &args.interface {
        may_broadcast(interface, args.allow_broadcast)?;
    }
    let stop = AtomicBool::new(false);
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        if let (Some(interface), Some(address)) = (&args.interface, args.address) {
            let settings =
                NullFrames { interface: interface.clone(), address, proxy: args.proxy, file_len: args.size };
            let stop = &stop;
            threads.push(scope.spawn(move || {
                let ready = || {
                    output::remark(&format!("null ready interface={} address={address}", settings.interface))
                };
                answer_frames(&settings, stop, ready)
            }));
        }
        if let Some(listen) = args.http {
            let settings = NullHttp { listen, body_len: args.size };
            let stop = &stop;
            threads.push(scope.spawn(move || {
                answer_http(&settings, stop, |bound| output::remark(&format!("null ready http={bound}")))
            }));
        }
        let end = std::time::Instant::now() + args.time;
        while std::time::Instant::now() < end && threads.iter().all(|thread| !thread.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        results = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
    });
    for result in results {
        result.map_err(|_| Failure::new(Exit::Runtime, "the null responder ended by a panic"))??;
    }
    Ok(Exit::Fine)
}

/// Frames to everybody, or answers to everybody, only where they stay on this machine or it is said.
fn may_broadcast(interface: &str, allowed: bool) -> Result<(), Failure> {
    if allowed || stays_here(interface)? {
        return Ok(());
    }
    Err(usage(format!(
        "{interface} is no veth or loopback, and every machine on its network would be concerned: add \
         --allow-broadcast if that is meant"
    )))
}

/// A target that is many machines is refused unless it is said.
fn one_host(target: Ipv4Addr, common: &Common) -> Result<(), Failure> {
    let directed = || {
        let interfaces = crate::sys::interfaces::list().unwrap_or_default();
        interfaces.iter().any(|interface| {
            interface.prefix < 31
                && interface.addr.is_some_and(|addr| {
                    let host = u32::MAX.checked_shr(interface.prefix.into()).unwrap_or(0);
                    u32::from(target) == u32::from(addr) | host
                })
        })
    };
    if target.is_unspecified() {
        return Err(usage(format!("{target} is no server's address")));
    }
    if !common.allow_broadcast && (target.is_broadcast() || target.is_multicast() || directed()) {
        return Err(usage(format!(
            "{target} is more than one machine: add --allow-broadcast if that is meant"
        )));
    }
    Ok(())
}

/// Measures every point once a round, so that what changes on the machine meanwhile meets them all alike.
fn measure(common: &Common, jobs: &[Job<'_>]) -> Done {
    let rounds = common.rounds.min(ROUNDS_MAX) as usize;
    if jobs.is_empty() || jobs.len() * rounds > POINTS_MAX {
        return Err(usage(format!(
            "{} points in {rounds} rounds: expected 1 to {POINTS_MAX} in all",
            jobs.len()
        )));
    }
    let page_file = common.html.as_deref().map(writable).transpose()?;
    let (began, mut conditions) = (Instant::now(), Conditions::here());
    let mut points: Vec<Vec<Point>> = vec![Vec::with_capacity(rounds); jobs.len()];
    for _ in 0..rounds {
        for (job, points) in jobs.iter().zip(&mut points) {
            let mut point = job()?;
            if common.ceiling.is_some() {
                let limited = point.load_limited;
                point.judge_load(common.ceiling);
                point.load_limited |= limited;
            }
            points.push(point);
        }
    }
    let answered = points.iter().flatten().any(|point| point.units > 0);
    if common.json {
        output::json(&json!({ "points": points.concat() }));
    } else {
        print(&points);
    }
    if let Some(path) = page_file {
        conditions.rounds = common.rounds;
        conditions.seconds = began.elapsed().as_secs_f64();
        conditions.round_seconds =
            points.iter().flatten().map(|point| (point.seconds * 10.0).round() / 10.0).fold(0.0, f64::max);
        let report = of_load(conditions, &points);
        fs::write(path, page(&report, None)).map_err(|error| unwritable(path, &error))?;
    }
    // Exit code 1 says that nothing at all came back.
    Ok(if answered { Exit::Fine } else { Exit::Wrong })
}

fn print(points: &[Vec<Point>]) {
    let time = |us: u64| match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    };
    let optional = |value: Option<u64>| value.map_or_else(|| "-".into(), time);
    let mut rows = Vec::new();
    let mut limited = false;
    let mut reasons = Vec::new();
    for rounds in points {
        let mut sorted: Vec<&Point> = rounds.iter().collect();
        sorted.sort_by(|a, b| a.units_per_s().total_cmp(&b.units_per_s()));
        let Some(point) = sorted.get(sorted.len() / 2) else { continue };
        limited |= point.load_limited;
        for (reason, count) in &point.failure_reasons {
            reasons.push(format!(
                "{count} x {reason} ({}, {} clients)",
                point.settings_line(),
                point.clients
            ));
        }
        if point.units == 0 && point.failures == 0 {
            reasons.push(format!(
                "nothing was answered within {:.1} s ({}, {} clients): is a server there, and the path to it open?",
                point.seconds,
                point.settings_line(),
                point.clients
            ));
        }
        rows.push(vec![
            point.settings_line(),
            point.clients.to_string(),
            format!("{:.0} {}/s", point.units_per_s(), point.unit),
            if point.bytes > 0 { format!("{:.0} MB/s", point.megabytes_per_s()) } else { "-".into() },
            optional(point.latency.map(|latency| latency.p50)),
            optional(point.latency.map(|latency| latency.p99)),
            optional(point.first_answer.map(|latency| latency.p99)),
            point.jain.map_or_else(|| "-".into(), |jain| format!("{jain:.3}")),
            point.failures.to_string(),
            format!("{:.0} %{}", point.load_busy() * 100.0, if point.load_limited { " *" } else { "" }),
        ]);
    }
    output::table(
        &["SETTINGS", "CLIENTS", "RATE", "BYTES", "P50", "P99", "FIRST P99", "JAIN", "FAILED", "LOAD CPU"],
        rows,
    );
    if limited {
        output::line("* the load was the limit here: the server may do more");
    }
    reasons.truncate(20);
    for reason in reasons {
        output::line(format!("failed: {reason}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(allow_broadcast: bool) -> Common {
        Common { rounds: 1, ceiling: None, allow_broadcast, json: false, html: None }
    }

    #[test]
    fn a_target_that_is_many_machines_must_be_meant() {
        for target in ["255.255.255.255", "224.0.0.1", "127.255.255.255"] {
            let target = target.parse().unwrap();
            assert!(one_host(target, &common(false)).unwrap_err().message.contains("--allow-broadcast"));
            assert!(one_host(target, &common(true)).is_ok());
        }
        assert!(one_host(Ipv4Addr::LOCALHOST, &common(false)).is_ok());
        assert!(one_host(Ipv4Addr::UNSPECIFIED, &common(true)).is_err());
        assert!(may_broadcast("lo", false).is_ok());
    }

    #[test]
    fn times_and_servers_are_bounded_and_defaulted() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert!(time("0s").is_err() && time("11min").is_err() && time("soon").is_err());
        assert_eq!(tftp_server("10.0.0.1"), Ok("10.0.0.1:69".parse().unwrap()));
        assert_eq!(http_server("10.0.0.1:80"), Ok("10.0.0.1:80".parse().unwrap()));
        assert!(tftp_server("server").is_err());
    }

    #[test]
    fn too_many_points_are_refused_before_the_first_is_measured() {
        let jobs: Vec<Job<'_>> = (0..2000)
            .map(|_| Box::new(|| -> Result<Point, LoadError> { panic!("measured") }) as Job<'_>)
            .collect();
        assert_eq!(measure(&common(false), &jobs).unwrap_err().exit, Exit::Usage);
        assert_eq!(measure(&common(false), &[]).unwrap_err().exit, Exit::Usage);
    }
}

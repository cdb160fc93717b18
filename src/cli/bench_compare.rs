//! `bench compare`, `bench model`, and the two verbs that `compare` starts in processes of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{Done, Exit, Failure, output};
use crate::bench::compare::{self, BRIDGE_READY, Load, Plan, Work, peer_names};
use crate::bench::impair::{Impairment, bridge, duration_text, parse_rate, parse_rtt, parse_share};
use crate::bench::model::{Answer, Ceiling, Question, advice, answer, seconds};
use crate::bench::report::{FORMAT, OURS, Report, page, text};
use crate::config::values;

/// Rounds unless told otherwise, at least and at most, and what the further ones may take together: what a noisy machine
/// needs, and what fits half an hour and five minutes.
const ROUNDS: u32 = 7;
const ROUNDS_TIMES: u32 = 2;
const EXTRA: Duration = Duration::from_secs(5 * 60);
const TIME: Duration = Duration::from_secs(1);
const ROUNDS_QUICK: u32 = 3;
const ROUNDS_TIMES_QUICK: u32 = 3;
const EXTRA_QUICK: Duration = Duration::from_secs(45);
const TIME_QUICK: Duration = Duration::from_millis(600);
const ROUNDS_MAX: u32 = 100;
/// The large file's least and greatest length: a range of 16 MiB is asked for.
const IMAGE_MIN: u64 = 16 << 20;
const IMAGE_MAX: u64 = 8 << 30;

/// `--json` without a file.
const STDOUT: &str = "-";

/// `bench compare`.
#[derive(clap::Args, Debug)]
pub struct Compare {
    /// Fewer settings and rounds: under five minutes instead of half an hour
    #[arg(long)]
    pub quick: bool,
    /// What to compare: http, https, transmit, tftp, dhcp, script, storm, network [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub work: Vec<String>,
    /// Interleaved rounds, no more and no less [default: 7, or 3 with --quick, and more where they disagree]
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// How long one load runs, such as 1500ms [default: 1s, or 600ms with --quick]
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// Size of the large file
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub size: String,
    /// Peers to compare with: nginx, dnsmasq, tftpd-hpa, atftpd, kea [default: all that are installed]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Round trips of the impaired wire
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_rtt, default_value = "200us,1ms,5ms")]
    pub rtt: Vec<Duration>,
    /// Losses of the impaired wire
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_share, default_value = "0%,0.5%")]
    pub loss: Vec<f64>,
    /// Share of packets that later ones overtake on the impaired wire
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "0%")]
    pub reorder: f64,
    /// Bits a second of the impaired wire, such as 1G [default: as fast as it can]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Where chance starts
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write the report as JSON; without a FILE print it instead of the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub json: Option<PathBuf>,
    /// Write the report as a page with charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Compare with an earlier report
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
}

/// `bench report`.
#[derive(clap::Args, Debug)]
pub struct Show {
    /// A report of `bench compare --json`
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write it as a page with charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Compare with an earlier report
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
}

/// `bench model`.
#[derive(clap::Args, Debug)]
pub struct Model {
    /// The server's link, such as 10G
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub nic: u64,
    /// Each client's link
    #[arg(long, value_name = "RATE", value_parser = parse_rate, default_value = "1G")]
    pub client_link: u64,
    /// Machines
    #[arg(long, value_name = "N")]
    pub clients: u32,
    /// What each of them loads, such as 500MiB
    #[arg(long, value_name = "SIZE")]
    pub image: String,
    /// Round trip between server and client
    #[arg(long, value_name = "TIME", value_parser = parse_rtt, default_value = "1ms")]
    pub rtt: Duration,
    /// Take the ceilings from a report of `bench compare --json`
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Which server of that report
    #[arg(long, value_name = "NAME", default_value = OURS)]
    pub server: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `bench wire`.
#[derive(clap::Args, Debug)]
pub struct Wire {
    /// The two interfaces, in this network namespace
    #[arg(num_args = 2, value_name = "IF", required = true)]
    pub interfaces: Vec<String>,
    /// What is wrong with it
    #[command(flatten)]
    pub bad: BadNetwork,
}

/// What is wrong with a network.
#[derive(clap::Args, Debug, Clone)]
pub struct BadNetwork {
    /// Delay there and back
    #[arg(long, value_name = "TIME", value_parser = parse_rtt, default_value = "0")]
    pub rtt: Duration,
    /// Share of packets lost, each way
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "0%")]
    pub loss: f64,
    /// Share of packets that later ones overtake
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "0%")]
    pub reorder: f64,
    /// Bits a second, each way
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Where chance starts
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

impl BadNetwork {
    /// The same as a value.
    pub(super) fn impairment(&self) -> Impairment {
        Impairment { rtt: self.rtt, loss: self.loss, reorder: self.reorder, rate: self.rate, seed: self.seed }
    }
}

pub(super) fn compare(args: &Compare) -> Done {
    let plan = plan(args)?;
    let earlier = args.against.as_deref().map(read_report).transpose()?;
    let printed = args.json.as_deref() == Some(Path::new(STDOUT));
    for path in [&args.json, &args.html].into_iter().flatten().filter(|path| **path != Path::new(STDOUT)) {
        writable(path)?;
    }
    let stop = stop_on_signal()?;
    let mut report = compare::run(&plan, &stop, &mut |line| output::remark(line)).map_err(|error| {
        let exit = if error.is_permission() { Exit::Permission } else { Exit::Runtime };
        Failure::new(exit, error)
    })?;
    report.agreement = earlier.as_ref().and_then(|earlier| report.agreement_with(earlier));
    if let Some(path) = &args.json {
        let document =
            serde_json::to_string_pretty(&report).map_err(|error| Failure::new(Exit::Runtime, error))?;
        if printed {
            output::line(document);
        } else {
            fs::write(path, document + "\n").map_err(|error| unwritable(path, &error))?;
        }
    }
    if !printed {
        output::line(text(&report, earlier.as_ref()));
    }
    if let Some(path) = &args.html {
        fs::write(path, page(&report, earlier.as_ref())).map_err(|error| unwritable(path, &error))?;
    }
    let ours_failed = report.rows.iter().any(|row| row.server == OURS && row.rounds == 0);
    Ok(if ours_failed { Exit::Wrong } else { Exit::Fine })
}

/// A report that was measured before, once more.
pub(super) fn show(args: &Show) -> Done {
    let mut report = read_report(&args.file)?;
    let earlier = args.against.as_deref().map(read_report).transpose()?;
    if let Some(earlier) = &earlier {
        report.agreement = report.agreement_with(earlier);
    }
    if let Some(path) = &args.html {
        fs::write(path, page(&report, earlier.as_ref())).map_err(|error| unwritable(path, &error))?;
    }
    output::line(text(&report, earlier.as_ref()));
    Ok(Exit::Fine)
}

fn plan(args: &Compare) -> Result<Plan, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let mut works = Vec::new();
    for word in &args.work {
        let known = || Work::ALL.map(Work::word).join(", ");
        let work = Work::ALL.into_iter().find(|work| work.word() == word);
        works.push(work.ok_or_else(|| usage(format!("--work {word:?}: expected some of {}", known())))?);
    }
    if works.is_empty() {
        works = Work::ALL.into();
    }
    if let Some(peer) = args.peers.iter().find(|peer| !peer_names().contains(&peer.as_str())) {
        return Err(usage(format!("--peers {peer:?}: expected some of {}", peer_names().join(", "))));
    }
    let (default_rounds, times, extra) = if args.quick {
        (ROUNDS_QUICK, ROUNDS_TIMES_QUICK, EXTRA_QUICK)
    } else {
        (ROUNDS, ROUNDS_TIMES, EXTRA)
    };
    let rounds = args.rounds.unwrap_or(default_rounds);
    // Who names a number of rounds gets that number.
    let (rounds_max, extra) = match args.rounds {
        Some(rounds) => (rounds, Duration::ZERO),
        None => (rounds * times, extra),
    };
    if !(1..=ROUNDS_MAX).contains(&rounds) {
        return Err(usage(format!("--rounds {rounds}: expected 1 to {ROUNDS_MAX}")));
    }
    let time = match &args.time {
        Some(text) => values::duration(text)
            .filter(|time| (Duration::from_millis(50)..=Duration::from_secs(60)).contains(time))
            .ok_or_else(|| usage(format!("--time {text:?}: expected 50ms to 60s")))?,
        None if args.quick => TIME_QUICK,
        None => TIME,
    };
    let image_bytes = values::size(&args.size)
        .filter(|size| (IMAGE_MIN..=IMAGE_MAX).contains(size))
        .ok_or_else(|| usage(format!("--size {:?}: expected 16MiB to 8GiB", args.size)))?;
    let impairment = Impairment {
        rtt: Duration::ZERO,
        loss: 0.0,
        reorder: args.reorder,
        rate: args.rate,
        seed: args.seed,
    };
    Ok(Plan {
        works,
        quick: args.quick,
        rounds,
        rounds_max,
        extra,
        time,
        peers: args.peers.clone(),
        image_bytes,
        rtts: args.rtt.clone(),
        losses: args.loss.clone(),
        impairment,
    })
}

/// Set by SIGINT and SIGTERM, so that whoever works takes everything down and returns.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Failure::new(Exit::Runtime, format!("wait for signals: {error}"));
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?)
    };
    let flag = Arc::clone(&stop);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
            });
            flag.store(true, Ordering::Relaxed);
        })
        .map_err(failed)?;
    Ok(stop)
}

/// Before minutes are spent: can the results be kept?
pub(super) fn writable(path: &Path) -> Result<&Path, Failure> {
    let file = fs::OpenOptions::new().append(true).create(true).open(path);
    file.map(|_| path).map_err(|error| unwritable(path, &error))
}

pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Runtime, format!("write {}: {error}", path.display()))
}

fn read_report(path: &Path) -> Result<Report, Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::new(Exit::Wrong, format!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
    let report: Report = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    if report.format != FORMAT {
        return Err(wrong(&format!("a report of format {}; this program reads {FORMAT}", report.format)));
    }
    Ok(report)
}

pub(super) fn model(args: &Model) -> Done {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let image_bytes = values::size(&args.image)
        .filter(|size| *size > 0)
        .ok_or_else(|| usage(format!("--image {:?}: expected a size such as 500MiB", args.image)))?;
    let question = Question {
        nic_bits_per_s: args.nic as f64,
        client_bits_per_s: args.client_link as f64,
        clients: args.clients,
        image_bytes,
        rtt_s: args.rtt.as_secs_f64(),
    };
    let ceilings = match &args.from {
        Some(path) => {
            let report = read_report(path)?;
            if report.rows.iter().all(|row| row.server != args.server) {
                return Err(usage(format!("{} has no rows of {:?}", path.display(), args.server)));
            }
            Ceiling::from_rows(&question, &report.rows, &args.server)
        }
        None => Ceiling::by_arithmetic(&question),
    };
    let answers = answer(&question, &ceilings).map_err(usage)?;
    if args.json {
        output::json(
            &json!({ "question": question, "answers": answers, "advice": advice(&question, &answers) }),
        );
        return Ok(Exit::Fine);
    }
    output::line(format!(
        "{} machines load {} each over {}; each has {} and a round trip of {}",
        args.clients,
        output::bytes(image_bytes),
        crate::bench::impair::rate_text(args.nic),
        crate::bench::impair::rate_text(args.client_link),
        duration_text(args.rtt)
    ));
    output::line(match &args.from {
        Some(path) => format!("ceilings: {} in {}, else arithmetic\n", args.server, path.display()),
        None => {
            "ceilings by arithmetic from round trip and links; --from takes them from a measurement\n".into()
        }
    });
    output::table(
        &["METHOD", "ONE CLIENT", "FILL THE LINK", "ALL SHARE IT", "ADMITTED: MEAN", "LAST", "CEILING"],
        answers.iter().map(model_row).collect(),
    );
    output::line(
        "\nall share it: every machine ends then. admitted: only as many at once as fill the link, first come, first served.",
    );
    for sentence in advice(&question, &answers) {
        output::line(format!("- {sentence}"));
    }
    Ok(Exit::Fine)
}

fn model_row(answer: &Answer) -> Vec<String> {
    let server = match answer.ceiling.server_bytes_per_s {
        Some(server) => format!("{}; server {:.0} MB/s", answer.ceiling.from, server / 1e6),
        None => answer.ceiling.from.clone(),
    };
    vec![
        answer.ceiling.method.name(),
        format!("{:.1} MB/s", answer.ceiling.client_bytes_per_s / 1e6),
        format!("{:.0} clients", answer.clients_to_fill.ceil()),
        seconds(answer.sharing),
        seconds(answer.admission_mean),
        seconds(answer.admission_last),
        server,
    ]
}

pub(super) fn wire(args: &Wire) -> Done {
    let [a, b] = args.interfaces.as_slice() else {
        return Err(Failure::new(Exit::Usage, "expected two interfaces"));
    };
    let impairment = args.bad.impairment();
    let stop = stop_on_signal()?;
    let counts = bridge([a, b], impairment, &stop, || output::line(format!("{BRIDGE_READY}: {impairment}")))
        .map_err(|error| Failure::new(Exit::Runtime, error))?;
    output::line(format!(
        "{} frames passed, {} lost, {} found the queue full, {} refused",
        counts.passed, counts.lost, counts.overflowed, counts.refused
    ));
    Ok(Exit::Fine)
}

pub(super) fn one(load: &str) -> Done {
    let load: Load = serde_json::from_str(load).map_err(|error| Failure::new(Exit::Usage, error))?;
    let point = load.run().map_err(|error| Failure::new(Exit::Runtime, error))?;
    output::json(&json!(point));
    Ok(Exit::Fine)
}

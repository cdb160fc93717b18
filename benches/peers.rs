//! First figures beside nginx and dnsmasq, in one interleaved run: `cargo bench --bench peers` as root.
//!
//! Two namespaces joined by a veth pair; the server under test alone on CPU 0 (one loop, one worker, one process), the
//! load on CPU 1; the same congestion control for all, set here and printed. The servers take turns within each round,
//! and a figure is the median over the rounds. CPU seconds are the server's own, from /proc. The load is one
//! thread with plain sockets.
#![allow(clippy::print_stdout, reason = "a report")]

use std::fs;
use std::net::SocketAddrV4;
use std::process::Command;
use std::time::{Duration, Instant};

use bootstorm::bench::http::{HttpLoad, Work};
use bootstorm::bench::tftp::TftpLoad;
use bootstorm::bench::{Way, http, tftp};
use labkit::{Namespace, Process, TempDir, run, tool};

const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(20);
const IMAGE_LEN: usize = 1 << 30;
const SERVER: &str = "10.99.0.1";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "load") {
        return load(&args[at + 1..]);
    }
    compare();
}

/// The load, in its own process on its own CPU: `load http|tftp ADDR FILE CLIENTS [BLKSIZE WINDOWSIZE]`.
fn load(args: &[String]) {
    let server: SocketAddrV4 = args[1].parse().expect("an address");
    let clients = args[3].parse().expect("a number");
    let number = |index: usize| args[index].parse().expect("a number");
    let point = match args[0].as_str() {
        "http" => http::run(&HttpLoad {
            server,
            work: Work::File { path: args[2].clone() },
            connections: clients,
            close: false,
            time: TIME,
            requests_max: None,
        }),
        _ => tftp::run(&TftpLoad {
            server,
            file: args[2].clone(),
            blksize: number(4),
            windowsize: number(5),
            tsize: false,
            clients,
            time: TIME,
            files_max: None,
            check: None,
            way: Way::Sockets,
        }),
    }
    .expect("a measurement");
    println!("{} {}", point.megabytes_per_s(), point.failures);
}

struct Contender {
    name: &'static str,
    process: Process,
    http: Option<(String, &'static str)>,
    tftp: Option<(String, &'static str)>,
}

/// CPU seconds of a process and its descendants, ended ones included.
fn cpu_seconds(pid: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..15].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below: f64 = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(cpu_seconds).sum();
    ticks as f64 / 100.0 + below
}

fn compare() {
    let dir = TempDir::new("peers");
    fs::create_dir_all(dir.join("images/data")).expect("a folder");
    fs::create_dir_all(dir.join("state")).expect("a folder");
    let block: Vec<u8> = (0..1 << 20u32).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let image = dir.join("images/data/image.bin");
    fs::write(&image, block.repeat(IMAGE_LEN >> 20)).expect("the image");
    fs::set_permissions(&dir.0, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a readable folder");

    let (server, client) = (Namespace::new(), Namespace::new());
    server.wire("v0", &client, "v0");
    server.ip(&format!("addr add {SERVER}/24 dev v0"));
    client.ip("addr add 10.99.0.2/24 dev v0");
    for namespace in [&server, &client] {
        run(namespace.command("sysctl").args(["-qw", "net.ipv4.tcp_congestion_control=reno"]));
    }
    let contenders = [ours(&server, &dir), nginx(&server, &dir), dnsmasq(&server, &dir)];

    println!("kernel {}", run(Command::new("uname").arg("-r")).trim());
    println!(
        "{}",
        run(Command::new("sh").args(["-c", "nginx -v 2>&1; dnsmasq --version | head -n 1"])).trim()
    );
    println!("congestion control reno, {ROUNDS} interleaved rounds of {TIME:?}, medians\n");
    println!(
        "| work | server | MB/s | CPU-s/GB | MB/s, ratio | CPU, ratio | failed |\n|---|---|---|---|---|---|---|"
    );
    for clients in [1, 16, 64] {
        row(&format!("HTTP, 1 GiB file, {clients} connections"), &contenders, &client, |c| {
            let (addr, path) = c.http.clone()?;
            Some(vec!["http".into(), addr, path.into(), clients.to_string()])
        });
    }
    for (clients, blksize, windowsize) in [(1, 1428, 1), (64, 1428, 1), (1, 1428, 16), (16, 1428, 16)] {
        row(
            &format!("TFTP, blksize {blksize}, windowsize {windowsize}, {clients} clients"),
            &contenders,
            &client,
            |c| {
                let (addr, file) = c.tftp.clone()?;
                let (blksize, windowsize) = (blksize.to_string(), windowsize.to_string());
                Some(vec!["tftp".into(), addr, file.into(), clients.to_string(), blksize, windowsize])
            },
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(
    work: &str,
    contenders: &[Contender],
    client: &Namespace,
    args: impl Fn(&Contender) -> Option<Vec<String>>,
) {
    let able: Vec<(&Contender, Vec<String>)> =
        contenders.iter().filter_map(|c| Some((c, args(c)?))).collect();
    let mut speed = vec![Vec::new(); able.len()];
    let mut cost = vec![Vec::new(); able.len()];
    let mut failed = vec![0.0; able.len()];
    let program = std::env::current_exe().expect("this program has a path");
    for _ in 0..ROUNDS {
        for (index, (contender, args)) in able.iter().enumerate() {
            let before = cpu_seconds(contender.process.pid());
            let start = Instant::now();
            let output =
                run(client.command("taskset").args(["-c", "1"]).arg(&program).arg("load").args(args));
            let seconds = start.elapsed().as_secs_f64();
            let used = cpu_seconds(contender.process.pid()) - before;
            let mut words = output.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
            let (rate, failures) = (words.next().unwrap_or(0.0), words.next().unwrap_or(0.0));
            speed[index].push(rate);
            // The rate is over the measurement's own time, a little less than the process's life.
            cost[index].push(used / (rate * seconds / 1000.0));
            failed[index] += failures;
        }
    }
    let ratio = |values: &[Vec<f64>], index: usize| {
        let rounds = values[0].iter().zip(&values[index]).map(|(ours, theirs)| ours / theirs);
        median(rounds.collect())
    };
    for (index, (contender, _)) in able.iter().enumerate() {
        println!(
            "| {work} | {} | {:.0} | {:.3} | {:.2} | {:.2} | {} |",
            contender.name,
            median(speed[index].clone()),
            median(cost[index].clone()),
            ratio(&speed, index),
            ratio(&cost, index),
            failed[index],
        );
    }
}

fn pinned(server: &Namespace, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = server.command("taskset");
    command.args(["-c", "0"]).arg(program);
    command
}

fn ours(server: &Namespace, dir: &TempDir) -> Contender {
    let config = dir.join("bootstorm.toml");
    let text = format!(
        "[server]\nstate_dir = \"{}\"\ncores = 1\n[tftp]\nlisten = [\"{SERVER}:69\"]\n[dhcp]\nmode = \"off\"\n[images]\ndir = \"{}\"\n",
        dir.join("state").display(),
        dir.join("images").display()
    );
    fs::write(&config, text).expect("the configuration");
    let mut command = pinned(server, env!("CARGO_BIN_EXE_bootstorm"));
    command.arg("serve").arg("--config").arg(&config).args(["--log", "warn"]);
    let mut process = Process::spawn("bootstorm", &mut command, &dir.join("ours.log"));
    process.wait_for("bootstorm ready", SOON);
    Contender {
        name: "bootstorm",
        process,
        http: Some((format!("{SERVER}:4433"), "/images/data/image.bin")),
        tftp: Some((format!("{SERVER}:69"), "data/image.bin")),
    }
}

fn nginx(server: &Namespace, dir: &TempDir) -> Contender {
    let config = dir.join("nginx.conf");
    let text = format!(
        "daemon off; worker_processes 1; pid {0}/nginx.pid; error_log {0}/nginx.err; user root;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; sendfile_max_chunk 2m; tcp_nopush on; open_file_cache max=100;\n\
         keepalive_requests 1000000; server {{ listen 8088 reuseport; root {0}/images; }} }}\n",
        dir.0.display()
    );
    fs::write(&config, text).expect("the configuration");
    let mut command = pinned(server, tool("nginx", "nginx-light"));
    command.arg("-p").arg(&dir.0).arg("-c").arg(&config);
    let process = Process::spawn("nginx", &mut command, &dir.join("nginx.log"));
    wait_for_tcp(server, 8088);
    Contender {
        name: "nginx",
        process,
        http: Some((format!("{SERVER}:8088"), "/data/image.bin")),
        tftp: None,
    }
}

fn dnsmasq(server: &Namespace, dir: &TempDir) -> Contender {
    let mut command = pinned(server, tool("dnsmasq", "dnsmasq-base"));
    // Its own address: both it and the other listen on port 69.
    server.ip("addr add 10.99.0.3/24 dev v0");
    command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root", "--enable-tftp"]);
    command.args(["--listen-address=10.99.0.3", "--bind-interfaces", "--tftp-max=1000"]);
    command.arg(format!("--tftp-root={}", dir.join("images").display()));
    let mut process = Process::spawn("dnsmasq", &mut command, &dir.join("dnsmasq.log"));
    process.wait_for("TFTP root", SOON);
    Contender { name: "dnsmasq", process, http: None, tftp: Some(("10.99.0.3:69".into(), "data/image.bin")) }
}

fn wait_for_tcp(server: &Namespace, port: u16) {
    let start = Instant::now();
    let script = format!("exec 3<>/dev/tcp/{SERVER}/{port}");
    while !server.command("bash").args(["-c", &script]).output().expect("bash runs").status.success() {
        assert!(start.elapsed() < SOON, "nobody listens on port {port}");
    }
}

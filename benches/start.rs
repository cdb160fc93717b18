//! From the start of the program to its first answer: `cargo bench --bench start -- [MACHINES] [ROUNDS]`.
//!
//! Each round starts `bootstorm serve` on loopback, DHCP and TFTP off, and connects until somebody listens; the time is
//! the one from before the program's start until a script has come. Without machines the state is an empty folder,
//! made anew for each round; with machines each has a job of its own, stored beforehand, and the script must be that job's.
//! The folder is below `target`, on a real disk: much of a first start is what a disk takes to make a file durable.
#![allow(clippy::print_stdout)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootstorm::jobs::Image;
use bootstorm::jobs::image::Images;
use bootstorm::jobs::job::{Action, JobSpec, Selector};
use bootstorm::keeper::{Keeper, Order};
use bootstorm::store::SqliteStore;
use bootstorm::wire::MacAddr;

/// Jobs stored at once.
const ORDER: u32 = 10_000;

/// No image: the jobs are for a shell.
struct NoImages;

impl Images for NoImages {
    fn image(&self, _name: &str) -> Option<&Image> {
        None
    }

    fn list(&self) -> &[Arc<Image>] {
        &[]
    }
}

fn mac(machine: u32) -> MacAddr {
    let [a, b, c, d] = machine.to_be_bytes();
    MacAddr([0x52, 0x54, a, b, c, d])
}

fn store(state: &Path, machines: u32) {
    let store = SqliteStore::open(&state.join("bootstorm.db")).expect("a store");
    let running = Keeper::start(Box::new(store), Box::new(|| Arc::new(NoImages)), [7; 32], Box::new(|_| {}))
        .expect("a keeper");
    for first in (0..machines).step_by(ORDER as usize) {
        let some = first..(first + ORDER).min(machines);
        let specs = some.map(|machine| JobSpec::new(Action::Shell, Selector::Mac(mac(machine)))).collect();
        running.keeper().order_and_wait(Order::AddJobs(specs), "bench").expect("jobs");
    }
}

/// Milliseconds until somebody listened, and until the script of this job (0: of none) was there.
fn start(folder: &Path, job: u32) -> (f64, f64) {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let state = folder.join("state");
    let config = folder.join("bootstorm.toml");
    let text = format!(
        "[server]\ninterfaces = [\"lo\"]\nstate_dir = \"{0}\"\n[images]\ndir = \"{0}/images\"\n[dhcp]\nmode = \"off\"\n\
         [tftp]\nlisten = []\n[http]\nlisten = [\"{free}\"]\n[admin]\nlisten = \"\"\n",
        state.display()
    );
    fs::write(&config, text).expect("a configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootstorm"));
    command.arg("serve").arg("--config").arg(&config).args(["--log", "error"]);
    let begin = Instant::now();
    let mut server = command.stderr(Stdio::null()).spawn().expect("it starts");
    let mut stream = connect(free, begin);
    let heard = begin.elapsed();
    let machine = mac(job.saturating_sub(1));
    write!(stream, "GET /ipxe?mac={machine} HTTP/1.1\r\nHost: {free}\r\nUser-Agent: iPXE/1.21.1\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut answer = [0; 4096];
    let len = stream.read(&mut answer).expect("an answer");
    let took = begin.elapsed();
    let answer = String::from_utf8_lossy(&answer[..len]);
    let right = answer.starts_with("HTTP/1.1 200") && (job == 0 || answer.contains(&format!("job j{job}")));
    let stop = Command::new("kill").arg(server.id().to_string()).status();
    let ended = server.wait().expect("it ends");
    assert!(right && stop.is_ok() && ended.success(), "{ended}: {answer}");
    (heard.as_secs_f64() * 1e3, took.as_secs_f64() * 1e3)
}

fn connect(to: SocketAddr, begin: Instant) -> TcpStream {
    loop {
        match TcpStream::connect(to) {
            Ok(stream) => return stream,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "nobody listens: {error}"),
        }
        // The server's core is not to be taken from it.
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let machines = numbers.first().copied().unwrap_or(0);
    let rounds = numbers.get(1).copied().unwrap_or(9).max(1);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("start-{}", std::process::id()));
    let state = folder.join("state");
    let fresh = || {
        let _ = fs::remove_dir_all(&state);
        fs::create_dir_all(state.join("images")).expect("a folder");
    };
    fresh();
    if machines > 0 {
        store(&state, machines);
    }
    let mut times = Vec::new();
    for round in 0..=rounds {
        if machines == 0 {
            fresh();
        }
        // A machine that was there before may have had its job.
        let (heard, took) = start(&folder, machines.saturating_sub(round));
        // The first one has the program itself read from the disk.
        if round > 0 {
            times.push(took);
        }
        println!("round {round}: listens after {heard:.1} ms, a script after {took:.1} ms");
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{machines} machines: first script after {:.1} ms [{:.1}..{:.1}], median of {rounds}",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    );
    let _ = fs::remove_dir_all(&folder);
}

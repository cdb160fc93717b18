//! Clients that die, say nothing, or hang on: others feel nothing, and nothing of them stays behind.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use labkit::{Process, tool};

use crate::server::{SOON, Site, binary};

const LEN: usize = 64 << 20;
const IMAGE: &str = "/images/data/file.bin";

/// A server on loopback, on ports of its own.
struct Alone {
    process: Process,
    http: SocketAddr,
    admin: SocketAddr,
    site: Site,
}

impl Alone {
    fn start() -> Self {
        // A port that was free a moment ago: several loops share it, so the server has to know it beforehand.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let rest = format!(
            "[dhcp]\nmode = \"off\"\n[tftp]\nlisten = []\n[http]\nlisten = [\"{free}\"]\n[admin]\nlisten = \
             \"127.0.0.1:0\"\n"
        );
        let site = Site::new("lo", "auto", &rest);
        fs::create_dir_all(site.dir.join("images/data")).expect("a folder");
        let image = File::create(site.dir.join("images/data/file.bin")).expect("an image");
        image.set_len(LEN as u64).expect("a sparse file");
        // A file that somebody could still write to is not published.
        drop(image);
        let mut command = Command::new(binary());
        command.arg("serve").arg("--config").arg(site.config()).args(["--log", "warn"]);
        let mut process = Process::spawn("bootstorm", &mut command, &site.dir.join("server.log"));
        let ready = process.wait_for("bootstorm ready", SOON);
        let field = |name: &str| {
            let word = ready.split(' ').find_map(|word| word.strip_prefix(name)).expect("a field");
            word.parse().expect("an address")
        };
        let (http, admin) = (field("http="), field("admin="));
        let server = Self { process, http, admin, site };
        // Nor is one that was just written, before it has rested.
        server.wait_until("the image is served", |server| server.get(http, IMAGE).len() == LEN);
        server
    }

    fn get(&self, to: SocketAddr, path: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(to).expect("the server accepts");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            .expect("a request");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("an answer");
        let at = all.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
        all.split_off(at)
    }

    fn metric(&self, name: &str) -> u64 {
        let text = String::from_utf8(self.get(self.admin, "/metrics")).expect("metrics are text");
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number")
    }

    fn wait_until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is(self) {
            assert!(start.elapsed() < SOON, "never: {what}");
        }
    }

    /// Open descriptors and mappings.
    fn held(&self) -> (usize, usize) {
        let folder = format!("/proc/{}", self.process.pid());
        let descriptors = fs::read_dir(format!("{folder}/fd")).expect("descriptors").count();
        let maps = fs::read_to_string(format!("{folder}/maps")).expect("mappings");
        (descriptors, maps.lines().filter(|line| line.contains("file.bin")).count())
    }

    /// A file that nobody asks for any more may be closed meanwhile.
    fn holds_no_more_than(&self, before: (usize, usize)) -> bool {
        let now = self.held();
        now.0 <= before.0 && now.1 <= before.1
    }

    /// The least of some looks: the connection that was asked for a metric may be open for a moment yet.
    fn settled(&self) -> (usize, usize) {
        (0..200).map(|_| self.held()).min().expect("some looks")
    }

    /// Kilobytes of its own memory.
    fn own_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.wait(SOON);
        assert!(status.success(), "{status}\n{}", self.process.output());
        drop(self.site);
    }
}

/// Downloads that go on until they are killed.
fn downloads(server: &Alone, count: usize) -> Vec<Child> {
    let url = format!("http://{}{IMAGE}", server.http);
    let curl = tool("curl", "curl");
    let start = |_| {
        let mut command = Command::new(&curl);
        command.args(["-sS", "--limit-rate", "50k", "-o", "/dev/null", &url]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("curl runs")
    };
    (0..count).map(start).collect()
}

#[test]
fn clients_killed_by_the_hundred_leave_nothing_behind() {
    let server = Alone::start();
    let open = |server: &Alone| server.metric("bootstorm_http_connections_open");
    let mut before = None;
    // The first round opens what is kept: the image, and pipes for as many as send at once.
    for _ in 0..3 {
        let mut clients = downloads(&server, 100);
        server.wait_until("a hundred downloads", |server| open(server) >= 100);
        assert_eq!(server.get(server.http, IMAGE).len(), LEN, "others are served meanwhile");
        for client in &mut clients {
            client.kill().expect("SIGKILL");
        }
        for mut client in clients {
            client.wait().expect("it is dead");
        }
        server.wait_until("their connections are gone", |server| open(server) == 0);
        let before = *before.get_or_insert_with(|| server.settled());
        server.wait_until("descriptors and mappings are as they were", |server| {
            server.holds_no_more_than(before)
        });
    }
    server.stop();
}

#[test]
fn thousands_of_idle_connections_cost_little_and_are_closed_in_the_end() {
    let count = if std::env::var_os("LAB_ALL").is_some() { 10_000 } else { 4_000 };
    let server = Alone::start();
    assert_eq!(server.get(server.http, "/healthz"), b"ok\n");
    let (before, memory) = (server.settled(), server.own_memory());
    let mut idle: Vec<TcpStream> = Vec::new();
    for _ in 0..count {
        idle.push(TcpStream::connect(server.http).expect("room for one more"));
    }
    server.wait_until("all accepted", |server| server.metric("bootstorm_http_connections_open") >= count);
    let each = (server.own_memory().saturating_sub(memory)) * 1024 / count;
    assert!(each <= 2048, "{each} bytes of its own for an idle connection");
    let start = Instant::now();
    assert_eq!(server.get(server.http, "/healthz"), b"ok\n");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // Nothing was said on them for ten seconds: the server ends them, not the clients.
    server.wait_until("all closed", |server| server.metric("bootstorm_http_connections_open") == 0);
    assert!(server.metric("bootstorm_http_timed_out_total") >= count);
    server.wait_until("descriptors are as they were", |server| server.holds_no_more_than(before));
    drop(idle);
    server.stop();
}

//! Boots in line on a wire: a hall of machines for one image over a slow link, with `[admission]` and without.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use bootstorm::client::script::{End, Fetched, Interpreter, Step};
use labkit::{Namespace, Process};

use crate::server::{SOON, Site, binary};

const SERVER: &str = "10.77.0.1:4433";
/// Longer than a whole hall takes.
const PATIENCE: Duration = Duration::from_secs(240);
/// Longer than any script.
const SCRIPT_MAX: usize = 64 << 10;

/// What is booted, and through what.
struct Hall {
    machines: u32,
    initrd: u64,
    rate: &'static str,
}

fn mac(machine: u32) -> String {
    format!("52:54:00:99:{:02x}:{:02x}", machine >> 8, machine & 0xff)
}

impl Hall {
    /// Switches all of it on at once; for each machine how long it took until its kernel would start.
    fn boot(&self, admission: &str) -> Vec<f64> {
        let (servers, middle, clients) = (Namespace::new(), Namespace::new(), Namespace::new());
        servers.wire("lan", &middle, "a0");
        middle.wire("b0", &clients, "eth0");
        servers.ip("addr add 10.77.0.1/24 dev lan");
        clients.ip("addr add 10.77.0.2/24 dev eth0");
        // A frame on the wire is one packet.
        servers.ip("link set lan gso_max_segs 1");
        let site = Site::new(
            "lan",
            "auto",
            &format!("[dhcp]\nmode = \"off\"\n[tftp]\nlisten = []\n[admission]\n{admission}"),
        );
        let mut wire = middle.command(binary());
        wire.args(["bench", "wire", "a0", "b0", "--rtt", "1ms", "--rate", self.rate]);
        let mut wire = Process::spawn("wire", &mut wire, &site.dir.join("wire.log"));
        wire.wait_for("the wire is up", SOON);

        let folder = site.dir.join("images/hall");
        fs::create_dir_all(&folder).expect("a folder");
        let mut kernel = vec![0; 300_000];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        kernel[0x236] = 1;
        fs::write(folder.join("vmlinuz"), kernel).expect("a kernel");
        let initrd = File::create(folder.join("initrd.gz")).expect("an initrd");
        initrd.set_len(self.initrd).expect("room for it");
        initrd.write_all_at(b"\x1f\x8b", 0).expect("its magic");
        // One that somebody has open for writing is not served.
        drop(initrd);
        let mut command = servers.command(binary());
        command.arg("serve").arg("--config").arg(site.config()).args(["--log", "warn"]);
        let mut server = Process::spawn("bootstorm", &mut command, &site.dir.join("server.log"));
        server.wait_for("bootstorm ready", SOON);
        let begin = Instant::now();
        while !site.ask(&["image", "list", "--json"]).contains("\"hall\"") {
            assert!(begin.elapsed() < SOON, "the image is never served: {}", server.output());
        }
        let mut rows = String::from("mac\n");
        for machine in 0..self.machines {
            writeln!(rows, "{}", mac(machine)).expect("a String grows");
        }
        fs::write(site.dir.join("hall.csv"), rows).expect("the rows");
        site.ask(&["job", "add", "hall", "--csv", site.dir.join("hall.csv").to_str().expect("a path")]);

        let start = Instant::now();
        let took = thread::scope(|scope| {
            let machines: Vec<_> = (0..self.machines)
                .map(|number| {
                    let clients = &clients;
                    scope.spawn(move || {
                        clients.enter();
                        machine(number, start)
                    })
                })
                .collect();
            machines.into_iter().map(|machine| machine.join().expect("it boots")).collect()
        });
        server.signal("TERM");
        assert!(server.wait(SOON).success(), "{}", server.output());
        took
    }
}

/// One machine from its script to its kernel; seconds.
fn machine(number: u32, start: Instant) -> f64 {
    let mac = mac(number);
    let settings: BTreeMap<String, String> = [
        ("net0/mac", mac.as_str()),
        ("mac", &mac),
        ("ip", "10.77.0.2"),
        ("platform", "efi"),
        ("buildarch", "x86_64"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let mut iron = Interpreter::new(settings);
    let first = get(&format!("http://{SERVER}/ipxe?mac={mac}&platform=efi&buildarch=x86_64"));
    let Fetched::Script(text) = first else { panic!("{mac}: {first:?}") };
    let mut step = iron.start(&text);
    loop {
        assert!(start.elapsed() < PATIENCE, "{mac}: {}", iron.screen);
        step = match step {
            Step::Fetch { url } => iron.fetched(get(&url)),
            // What iPXE would wait for is waited for.
            Step::Sleep(time) => {
                thread::sleep(time);
                iron.resume()
            }
            Step::Done(End::Booted { images, .. }) => {
                assert!(images.iter().any(|image| image.contains("initrd")), "{mac}: {images:?}");
                return start.elapsed().as_secs_f64();
            }
            Step::Done(other) => panic!("{mac}: {other:?}\n{}", iron.screen),
        };
    }
}

fn get(url: &str) -> Fetched {
    let rest = url.strip_prefix(&format!("http://{SERVER}")).unwrap_or_else(|| panic!("{url}: elsewhere"));
    let mut stream = TcpStream::connect(SERVER).expect("the server accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(
        stream,
        "GET {rest} HTTP/1.1\r\nHost: {SERVER}\r\nUser-Agent: iPXE/1.21.1\r\nConnection: close\r\n\r\n"
    )
    .expect("a request");
    let (mut kept, mut total) = (Vec::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer).expect("an answer") {
            0 => break,
            len => {
                kept.extend_from_slice(&buffer[..len.min(SCRIPT_MAX.saturating_sub(kept.len()))]);
                total += len;
            }
        }
    }
    let head = kept.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let text = String::from_utf8_lossy(&kept[..head]).into_owned();
    if !text.starts_with("HTTP/1.1 200") {
        return Fetched::Failed;
    }
    let len: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .and_then(|len| len.parse().ok())
        .expect("a length");
    assert_eq!(total - head, len, "{url}: cut short");
    match kept[head..].starts_with(b"#!ipxe") {
        true => Fetched::Script(String::from_utf8_lossy(&kept[head..]).into_owned()),
        false => Fetched::Image,
    }
}

/// The mean, the first and the last.
fn told(took: &[f64]) -> (f64, f64, f64) {
    let mean = took.iter().sum::<f64>() / took.len() as f64;
    (mean, took.iter().copied().fold(f64::MAX, f64::min), took.iter().copied().fold(0.0, f64::max))
}

#[test]
#[ignore = "takes three minutes: tools/test --all runs it"]
fn a_hall_in_line_is_done_sooner_on_average_and_no_later_in_the_end() {
    let hall = Hall { machines: 200, initrd: 16 << 20, rate: "400M" };
    let (sharing, first_sharing, last_sharing) = told(&hall.boot(""));
    let (mean, first, last) = told(&hall.boot("per_image = 16\n"));
    println!(
        "all sharing: mean {sharing:.1} s, first {first_sharing:.1}, last {last_sharing:.1}; 16 at a time: mean {mean:.1} s, \
         first {first:.1}, last {last:.1}; ratios {:.2} and {:.2}",
        mean / sharing,
        last / last_sharing
    );
    // The goals are 0.6 and 1; a machine that tests run on is given some room.
    assert!(mean <= 0.7 * sharing, "{mean:.1} s and {sharing:.1} s");
    assert!(last <= 1.1 * last_sharing, "{last:.1} s and {last_sharing:.1} s");
}

//! A storm of honest machines beside strangers who misbehave in every way docs/THREAT-MODEL.md names: nobody honest fails, and
//! nothing grows.
//!
//! In the ordinary run for one storm; with `LAB_ALL` for five minutes, or as many as `LAB_SOAK` says.

use std::fs;
use std::time::{Duration, Instant};

use labkit::{BRIDGE, Namespace, Net, Process, tool};
use serde_json::Value;

use crate::server::{Server, Site, binary};

/// Everything a stranger does, in turn, for so many seconds (first argument) and with such a pause after each (second).
const STRANGERS: &str = r#"
import os, random, socket, struct, sys, time
rng = random.Random(7)
end = time.monotonic() + float(sys.argv[1])
server = "10.77.0.1"
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.setblocking(False)
    return s
def dhcp(kind, giaddr="0.0.0.0", extra=b""):
    mac = bytes([0x02]) + rng.randbytes(5)
    head = bytearray(236)
    head[0:4] = b"\x01\x01\x06\x00"
    head[4:8] = rng.randbytes(4)
    head[24:28] = socket.inet_aton(giaddr)
    head[28:34] = mac
    return bytes(head) + b"\x63\x82\x53\x63" + bytes([53, 1, kind]) + b"\x3c\x20PXEClient:Arch:00007:UNDI:003016" + b"\x5d\x02\x00\x07" + extra + b"\xff"
def tcp(what, read=None, hold=None):
    try:
        s = socket.create_connection((server, 4433), 2)
        s.settimeout(0.2)
        s.sendall(what)
        if read:
            s.recv(read)
        if hold is not None:
            hold.append(s)
            if len(hold) > 200:
                hold.pop(0).close()
        else:
            s.close()
    except OSError:
        pass
held, u, n = [], udp(), 0
counts = [0] * 12
while time.monotonic() < end:
    n += 1
    which = n % 12
    counts[which] += 1
    try:
        if which == 0:   # machines that never were
            for _ in range(20): u.sendto(dhcp(1), ("255.255.255.255", 67))
        elif which == 1: # behind a relay that is none
            for _ in range(20): u.sendto(dhcp(1, "10.77.0.66"), (server, 67))
        elif which == 2: # requests and declines of what nobody was offered
            u.sendto(dhcp(3, extra=b"\x32\x04\x0a\x4d\x01\x05"), ("255.255.255.255", 67))
            u.sendto(dhcp(4, extra=b"\x32\x04\x0a\x4d\x01\x06\x36\x04\x0a\x4d\x00\x01"), ("255.255.255.255", 67))
        elif which == 3: # noise
            for port in (67, 69, 4011): u.sendto(rng.randbytes(rng.randrange(1, 1400)), (server, port))
        elif which == 4: # downloads that nobody acknowledges
            for _ in range(5):
                s = udp(); s.sendto(b"\0\x01tiny/vmlinuz\0octet\0blksize\x001428\0windowsize\x0064\0", (server, 69)); s.close()
        elif which == 5: # the sorcerer's apprentice: every acknowledgement many times, and errors
            s = udp(); s.settimeout(0.1)
            s.sendto(b"\0\x01tiny/vmlinuz\0octet\0", (server, 69))
            try:
                _, peer = s.recvfrom(2000)
                for _ in range(20): s.sendto(b"\0\x04\0\x01", peer)
                s.sendto(b"\0\x05\0\0go away\0", peer)
            except OSError: pass
            s.close()
        elif which == 6: # a large file that nobody reads
            tcp(b"GET /images/tiny/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n", hold=held)
        elif which == 7: # half a head, and silence
            tcp(b"GET /images/tiny/vml", hold=held)
        elif which == 8: # heads that are none, and two lengths
            tcp(rng.randbytes(300), read=100)
            tcp(b"POST /ipxe HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", read=100)
        elif which == 9: # guessed tokens, absurd ranges
            tcp(b"GET /s/" + rng.randbytes(16).hex().encode() + b"/images/tiny/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n", read=100)
            tcp(b"GET /images/tiny/vmlinuz HTTP/1.1\r\nHost: x\r\nRange: bytes=" + b",".join(b"%d-%d" % (i, i) for i in range(500)) + b"\r\n\r\n", read=100)
        elif which == 10: # scripts for machines that never were
            mac = ":".join("%02x" % b for b in b"\x02" + rng.randbytes(5)).encode()
            tcp(b"GET /ipxe?mac=" + mac + b"&platform=efi&buildarch=x86_64 HTTP/1.1\r\nHost: x\r\n\r\n", read=100)
        else:            # cut in the middle
            s = socket.create_connection((server, 4433), 2)
            s.sendall(b"GET /images/tiny/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
            s.recv(1000)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
    except (BlockingIOError, OSError):
        pass
    time.sleep(float(sys.argv[2]))
print(sum(counts), flush=True)
"#;

/// What must not grow.
#[derive(Clone, Copy, Debug)]
struct Sample {
    second: u64,
    boots: u64,
    anonymous_kib: u64,
    descriptors: usize,
    mappings: usize,
}

fn sample(server: &Server<'_>, second: u64, boots: u64) -> Sample {
    let folder = format!("/proc/{}", server.process.pid());
    let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).expect("it runs");
    let status = read("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    Sample {
        second,
        boots,
        anonymous_kib: line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number"),
        descriptors: fs::read_dir(format!("{folder}/fd")).expect("it runs").count(),
        mappings: read("maps").lines().count(),
    }
}

#[test]
fn honest_machines_boot_beside_every_kind_of_stranger_and_nothing_grows() {
    let minutes = std::env::var("LAB_SOAK").ok().map(|text| text.parse::<u64>().expect("minutes"));
    let all = std::env::var_os("LAB_ALL").is_some();
    let (lasts, machines, ramp) = match minutes.or(all.then_some(5)) {
        Some(minutes) => (Duration::from_secs(minutes * 60), 300, 30),
        None => (Duration::ZERO, 60, 5),
    };
    let net = Net::flat();
    let [load, strangers] = [("to-load", 2), ("to-bad", 66)].map(|(plug, number)| {
        let namespace = Namespace::new();
        net.server.wire(plug, &namespace, "eth0");
        net.server.ip(&format!("link set {plug} master {BRIDGE}"));
        namespace.ip(&format!("addr add 10.77.0.{number}/24 dev eth0"));
        namespace.ip("route add default dev eth0");
        namespace
    });
    net.server.ip(&format!("route add 10.77.0.0/16 dev {BRIDGE}"));
    // Names nobody offered addresses to, and everybody's own default.
    let config = "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/16\"\nrange = \"10.77.1.0-10.77.200.255\"\n\
                  [policy]\nmenu_default = \"tiny\"\nmenu_timeout = \"1s\"\n";
    let site = Site::new(net.interface, "auto", config);
    site.add_linux();
    let server = site.serve(&net);
    let begun = Instant::now();
    let mut samples = Vec::new();
    let mut boots = 0;
    // What is bounded fills first: timelines by boots ten times as fast, what is remembered of a machine or a stranger for
    // a quarter of an hour by strangers ten times as fast, and the hundred thousand boots whose machines are remembered
    // by scripts that nobody goes on with.
    let mut filling = if lasts > Duration::from_secs(600) { 6 } else { 0 };
    loop {
        let machines = if filling > 0 { 10 * machines } else { machines };
        let mut command = strangers.command(tool("python3", "python3"));
        let pause = if filling > 0 { "0.003" } else { "0.03" };
        command.args(["-c", STRANGERS, &(ramp + 5).to_string(), pause]);
        let mut bad = Process::spawn("strangers", &mut command, &site.dir.join("strangers.log"));
        let words = format!(
            "storm --interface eth0 --machines {machines} --ramp {ramp}s --impatient --patience 100s --json"
        );
        let output = load.command(binary()).arg("bench").args(words.split(' ')).output().expect("it runs");
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let point = &report["points"][0];
        assert_eq!(point["failures"], 0, "an honest machine failed: {point}");
        assert_eq!(point["units"], machines, "{point}");
        let status = bad.wait(Duration::from_secs(60));
        assert!(status.success(), "{}", bad.output());
        let done: u64 = bad.output().trim().parse().expect("how many things they did");
        assert!(done > 10 * ramp, "the strangers were hardly there: {done}");
        boots += machines;
        if filling > 0 {
            let scripts = "script --server 10.77.0.1 --path /ipxe?mac={mac}&platform=efi&buildarch=x86_64 --machines 200000 \
                           --connections 4 --time 3s --json";
            let output =
                strangers.command(binary()).arg("bench").args(scripts.split(' ')).output().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let taken = sample(&server, begun.elapsed().as_secs(), boots);
        if lasts > Duration::ZERO {
            if samples.is_empty() {
                println!("second  boots  RssAnon KiB  descriptors  mappings");
            }
            let Sample { second, boots, anonymous_kib, descriptors, mappings } = taken;
            println!("{second:6} {boots:6} {anonymous_kib:12} {descriptors:12} {mappings:9}");
        }
        samples.push(taken);
        filling -= i32::from(filling > 0);
        if begun.elapsed() >= lasts {
            break;
        }
    }
    for line in server.process.output().lines() {
        assert!(!line.contains("panicked"), "{line}");
    }
    if lasts > Duration::ZERO {
        // The first samples fill what is bounded: tables of strangers, timelines, pools.
        let is_long = lasts > Duration::from_secs(600);
        let settled = match is_long {
            true => samples.iter().find(|s| s.second >= 300).expect("one"),
            false => &samples[samples.len() / 2],
        };
        let last = samples.last().expect("one");
        assert!(last.descriptors <= settled.descriptors + 250, "{settled:?} {last:?}");
        assert!(last.mappings <= settled.mappings + 50, "{settled:?} {last:?}");
        // In minutes the recorder is not full: what a boot and the strangers beside it add to it.
        let recorded = if is_long { 0 } else { 40 * (last.boots - settled.boots) };
        let allowed = settled.anonymous_kib * 105 / 100 + 1024 + recorded;
        assert!(last.anonymous_kib <= allowed, "{settled:?} {last:?}");
    }
    server.stop();
}

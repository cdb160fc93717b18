//! Real clients: curl, atftp, udhcpc; large files; hostile packets.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use labkit::{Namespace, run, tool};

use crate::server::{FULL, Net, PROXY, Server, Site};

const GIB: u64 = 1 << 30;

/// Eight bytes that say where they are, at every 512 MiB and around them; zero elsewhere.
fn marked_sparse_file(path: &Path, len: u64) {
    let file = File::create(path).expect("the image can be made");
    file.set_len(len).expect("a sparse file");
    let mut at = 0;
    while at + 8 <= len {
        file.write_all_at(&at.to_be_bytes(), at).expect("a mark");
        at += GIB / 2;
    }
    file.write_all_at(&(len - 8).to_be_bytes(), len - 8).expect("the last mark");
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn site_with(net: &Net, name: &str, content: impl FnOnce(&Path)) -> Site {
    site_with_config(net, "", name, content)
}

fn site_with_config(net: &Net, config: &str, name: &str, content: impl FnOnce(&Path)) -> Site {
    let site = Site::new(net.interface, "auto", &format!("{config}{FULL}"));
    let folder = site.dir.join("images/data");
    fs::create_dir_all(&folder).expect("a folder");
    content(&folder.join(name));
    site
}

#[test]
fn curl_fetches_six_gibibytes_whole_and_by_ranges() {
    let net = Net::flat();
    let len = 6 * GIB;
    let site = site_with(&net, "big.img", |path| marked_sparse_file(path, len));
    let server = site.serve(&net);
    let curl = tool("curl", "curl");
    let url = "http://10.77.0.1:4433/images/data/big.img";
    for (first, last) in [
        (0, 99),
        (3 * GIB, 3 * GIB + 4095),
        (3 * GIB - 100, 3 * GIB + 70_000),
        (len - 8, len - 1),
        (len - 100_000, len - 1),
    ] {
        let output = net
            .server
            .command(&curl)
            .args(["-sS", "-f", "-r", &format!("{first}-{last}"), url])
            .output()
            .expect("curl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut expected = vec![0; (last - first + 1) as usize];
        let file = File::open(site.dir.join("images/data/big.img")).expect("the image");
        file.read_exact_at(&mut expected, first).expect("the same bytes");
        assert!(output.stdout == expected, "bytes {first} to {last} differ");
    }
    let image = site.dir.join("images/data/big.img");
    let compare = format!("set -o pipefail; curl -sS -f {url} | cmp - '{}'", image.display());
    run(net.server.command("bash").arg("-c").arg(compare));
    server.stop();
}

#[test]
fn curl_and_atftp_fetch_by_tftp_with_every_block_size() {
    let net = Net::flat();
    let content = pattern(3_000_001);
    let site = site_with(&net, "file.bin", |path| fs::write(path, &content).expect("the file"));
    let server = site.serve(&net);
    let got = site.dir.join("got");
    for blksize in ["512", "1428", "8192"] {
        let _ = fs::remove_file(&got);
        let mut command = net.server.command(tool("curl", "curl"));
        command.args(["-sS", "-f", "--tftp-blksize", blksize, "tftp://10.77.0.1/images/data/file.bin", "-o"]);
        run(command.arg(&got));
        assert!(fs::read(&got).expect("a file") == content, "curl, blksize {blksize}");
        for windowsize in [None, Some("16")] {
            let _ = fs::remove_file(&got);
            atftp(&net, &got, blksize, windowsize);
            assert!(
                fs::read(&got).expect("a file") == content,
                "atftp, blksize {blksize}, windowsize {windowsize:?}"
            );
        }
    }
    server.stop();
}

fn atftp(net: &Net, to: &Path, blksize: &str, windowsize: Option<&str>) {
    atftp_from(&net.server, "10.77.0.1", to, blksize, windowsize);
}

fn atftp_from(place: &Namespace, server: &str, to: &Path, blksize: &str, windowsize: Option<&str>) {
    let mut command = place.command(tool("atftp", "atftp"));
    command.args(["--option", &format!("blksize {blksize}")]);
    if let Some(windowsize) = windowsize {
        command.args(["--option", &format!("windowsize {windowsize}")]);
    }
    command.args(["--get", "--remote-file", "data/file.bin", "--local-file"]).arg(to).arg(server);
    run(&mut command);
}

fn curl_tftp(place: &Namespace, server: &str, to: &Path, blksize: &str) {
    let mut command = place.command(tool("curl", "curl"));
    let url = format!("tftp://{server}/images/data/file.bin");
    run(command.args(["-sS", "-f", "--tftp-blksize", blksize, &url, "-o"]).arg(to));
}

/// A machine of its own on the server's bridge.
fn plugged(net: &Net) -> Namespace {
    let client = Namespace::new();
    net.server.wire("plug0", &client, "eth0");
    net.server.ip(&format!("link set plug0 master {}", crate::server::BRIDGE));
    client.ip("addr add 10.77.0.66/24 dev eth0");
    client
}

fn sent(server: &Server<'_>, net: &Net, way: &str) -> u64 {
    server.metric(net, &format!("bootstorm_tftp_sent_total{{way=\"{way}\"}}"))
}

#[test]
fn machines_on_the_link_are_served_by_frames_and_everyone_else_by_sockets() {
    let content = pattern(3_000_001);
    for (config, blksize, windowsize, way) in [
        ("", "512", None, "frame"),
        ("", "1428", None, "frame"),
        ("", "1468", Some("4"), "frame"),
        ("", "1428", Some("16"), "segments"),
        ("", "8192", None, "datagram"),
        ("[tftp]\nframes = \"off\"\n", "1428", None, "segments"),
        ("[tftp]\nsingle_port = true\n", "1428", None, "frame"),
    ] {
        let net = Net::flat();
        let client = plugged(&net);
        let site =
            site_with_config(&net, config, "file.bin", |path| fs::write(path, &content).expect("the file"));
        let server = site.serve(&net);
        let got = site.dir.join("got");
        atftp_from(&client, "10.77.0.1", &got, blksize, windowsize);
        assert!(fs::read(&got).expect("a file") == content, "blksize {blksize}, windowsize {windowsize:?}");
        let blocks = content.len() as u64 / blksize.parse::<u64>().expect("a number") + 1;
        assert!(sent(&server, &net, way) >= blocks, "{config:?}, blksize {blksize}: not by {way}");
        if windowsize.is_none() {
            let _ = fs::remove_file(&got);
            curl_tftp(&client, "10.77.0.1", &got, blksize);
            assert!(fs::read(&got).expect("a file") == content, "curl, blksize {blksize}");
        }
        // The server's own programs reach it by loopback, which has no frames.
        let before = sent(&server, &net, "frame");
        let _ = fs::remove_file(&got);
        curl_tftp(&net.server, "10.77.0.1", &got, "1428");
        assert!(fs::read(&got).expect("a file") == content, "from the server's own host");
        assert_eq!(sent(&server, &net, "frame"), before);
        server.stop();
    }
}

#[test]
fn a_second_address_of_an_interface_and_a_routed_machine_are_served_too() {
    let content = pattern(300_000);
    let net = Net::flat();
    let client = plugged(&net);
    net.server.ip(&format!("addr add 10.78.0.1/24 dev {}", crate::server::BRIDGE));
    client.ip("addr add 10.78.0.66/24 dev eth0");
    // Behind the client, which forwards: its packets come in by the bridge, and so does the way back.
    let behind = Namespace::new();
    client.wire("down0", &behind, "eth0");
    client.ip("addr add 10.99.0.1/24 dev down0");
    behind.ip("addr add 10.99.0.2/24 dev eth0");
    behind.ip("route add default via 10.99.0.1");
    run(client.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    net.server.ip("route add 10.99.0.0/24 via 10.77.0.66");
    let site = site_with(&net, "file.bin", |path| fs::write(path, &content).expect("the file"));
    let server = site.serve(&net);
    let got = site.dir.join("got");
    curl_tftp(&client, "10.78.0.1", &got, "1428");
    assert!(fs::read(&got).expect("a file") == content, "the second address");
    assert_eq!(sent(&server, &net, "frame"), 0, "frames serve the first address only");
    let _ = fs::remove_file(&got);
    curl_tftp(&behind, "10.77.0.1", &got, "1428");
    assert!(fs::read(&got).expect("a file") == content, "behind a router");
    assert!(sent(&server, &net, "frame") > 200, "the way back is the way it came");
    // Now the way back is another: a frame to the router would end nowhere.
    let other = Namespace::new();
    net.server.wire("other0", &other, "eth0");
    net.server.ip("addr add 10.88.0.1/24 dev other0");
    other.ip("addr add 10.88.0.2/24 dev eth0");
    other.wire("back0", &behind, "eth1");
    other.ip("addr add 10.98.0.1/24 dev back0");
    behind.ip("addr add 10.98.0.2/24 dev eth1");
    run(other.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    other.ip("route add 10.99.0.0/24 via 10.98.0.2");
    net.server.ip("route replace 10.99.0.0/24 via 10.88.0.2");
    for place in [&behind, &net.server, &other] {
        run(place.command("sysctl").args(["-qw", "net.ipv4.conf.all.rp_filter=0"]));
        run(place.command("sysctl").args(["-qw", "net.ipv4.conf.default.rp_filter=0"]));
    }
    let before = sent(&server, &net, "frame");
    let _ = fs::remove_file(&got);
    curl_tftp(&behind, "10.77.0.1", &got, "1428");
    assert!(fs::read(&got).expect("a file") == content, "another way back");
    assert_eq!(sent(&server, &net, "frame"), before, "the sockets know the way");
    server.stop();
}

#[test]
fn a_file_of_more_than_65535_blocks_rolls_over() {
    let net = Net::flat();
    let content = pattern(40 << 20);
    let site = site_with(&net, "file.bin", |path| fs::write(path, &content).expect("the file"));
    let server = site.serve(&net);
    let got = site.dir.join("got");
    let mut command = net.server.command(tool("curl", "curl"));
    run(command.args(["-sS", "-f", "tftp://10.77.0.1/data/file.bin", "-o"]).arg(&got));
    assert!(fs::read(&got).expect("a file") == content, "curl, 81,921 blocks");
    let _ = fs::remove_file(&got);
    atftp(&net, &got, "512", Some("16"));
    assert!(fs::read(&got).expect("a file") == content, "atftp, 81,921 blocks in windows");
    server.stop();
}

#[test]
fn names_that_leave_the_library_are_not_found() {
    let net = Net::flat();
    let site = site_with(&net, "file.bin", |path| fs::write(path, b"x").expect("the file"));
    let server = site.serve(&net);
    let refused = server.metric(&net, "bootstorm_tftp_refused_total");
    for name in [
        "../../etc/passwd",
        "/../../etc/passwd",
        "..\\..\\etc\\passwd",
        "images/../../../etc/passwd",
        "data/..\\../..//etc/passwd",
    ] {
        let script = format!(
            "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(10)\n\
             s.sendto(b'\\0\\x01'+{name:?}.encode()+b'\\0octet\\0',('10.77.0.1',69))\n\
             d=s.recvfrom(2000)[0]\nprint(d[:4].hex(), d)\n"
        );
        let answer = run(net.server.command(tool("python3", "python3")).arg("-c").arg(script));
        assert!(answer.starts_with("00050001"), "{name}: {answer}");
        assert!(!answer.contains("root:"), "{name}: {answer}");
        let path = name.replace('\\', "%5c");
        let status = run(net.server.command(tool("curl", "curl")).args([
            "-sS",
            "--path-as-is",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("http://10.77.0.1:4433/images/data/{path}"),
        ]));
        assert_eq!(status, "404", "{name}");
    }
    assert_eq!(server.metric(&net, "bootstorm_tftp_refused_total"), refused + 5);
    server.stop();
}

#[test]
fn udhcpc_gets_a_lease_in_full_mode_and_nothing_in_proxy_mode() {
    for (config, wanted) in [(FULL, true), (PROXY, false)] {
        let net = Net::flat();
        let client = labkit::Namespace::new();
        net.server.wire("plug0", &client, "eth0");
        net.server.ip(&format!("link set plug0 master {}", crate::server::BRIDGE));
        let site = Site::new(net.interface, "auto", config);
        let server = site.serve(&net);
        let output = client
            .command(tool("udhcpc", "udhcpc"))
            .args(["-i", "eth0", "-f", "-n", "-q", "-t", "3", "-T", "1", "-s", "/bin/true"])
            .output()
            .expect("udhcpc runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), wanted, "{text}");
        if wanted {
            assert!(text.contains("lease of 10.77.0.") && text.contains("obtained from 10.77.0.1"), "{text}");
        } else {
            assert!(server.metric(&net, "bootstorm_dhcp_drops_total{reason=\"not-booting\"}") > 0);
        }
        server.stop();
    }
}

#[test]
fn hostile_packets_move_counters_and_nothing_else() {
    let net = Net::flat();
    let client = labkit::Namespace::new();
    net.server.wire("plug0", &client, "eth0");
    net.server.ip(&format!("link set plug0 master {}", crate::server::BRIDGE));
    client.ip("addr add 10.77.0.66/24 dev eth0");
    // Where a broadcast to 255.255.255.255 goes.
    client.ip("route add default dev eth0");
    let site = Site::new(net.interface, "auto", FULL);
    let server = site.serve(&net);
    let script = r#"
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET,socket.SO_BROADCAST,1)
head=bytearray(236); head[0]=1; head[1]=1; head[2]=6; head[28:34]=b"\x52\x54\0\0\0\x09"
cookie=b"\x63\x82\x53\x63"
hlen=bytearray(head); hlen[2]=255
for packet in (b"x", bytes(hlen)+cookie+b"\x35\x01\x01\xff", bytes(head)+cookie+b"\x35\x01\x01\x3c\xffPXE", bytes(head)+b"nope"+bytes(60)):
    for to in ("10.77.0.1","255.255.255.255"):
        s.sendto(packet,(to,67))
    s.sendto(packet,("10.77.0.1",69))
    s.sendto(packet,("10.77.0.1",4011))
h=socket.create_connection(("10.77.0.1",4433)); h.settimeout(20)
try:
    h.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: "+b"y"*(1<<20)+b"\r\n\r\n")
except OSError: pass
print(h.recv(100).split(b"\r\n")[0].decode())
"#;
    let answer = run(client.command(tool("python3", "python3")).arg("-c").arg(script));
    assert!(answer.contains("431"), "{answer}");
    for reason in ["truncated", "bad-hlen", "option-overrun", "bad-cookie"] {
        let count = server.metric(&net, &format!("bootstorm_dhcp_drops_total{{reason=\"{reason}\"}}"));
        assert!(count >= 2, "{reason}: {count}");
    }
    assert!(server.metric(&net, "bootstorm_tftp_malformed_total") >= 3);
    assert_eq!(server.metric(&net, "bootstorm_dhcp_replies_total"), 0);
    let log = server.process.output();
    let loud =
        log.lines().filter(|line| line.contains(" WARN ") || line.contains("ERROR")).collect::<Vec<_>>();
    assert!(loud.is_empty(), "a stranger's packet is not worth a line: {loud:?}");
    // And a good machine is served as ever.
    let output = client
        .command(tool("udhcpc", "udhcpc"))
        .args(["-i", "eth0", "-f", "-n", "-q", "-t", "3", "-T", "1", "-s", "/bin/true"])
        .output()
        .expect("udhcpc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.stop();
}

#[test]
fn an_interface_without_an_address_is_waited_for() {
    let net = Net::flat();
    net.server.bridge("late", "");
    let client = labkit::Namespace::new();
    net.server.wire("plug0", &client, "eth0");
    net.server.ip("link set plug0 master late");
    let subnet = FULL.replace("10.77.0.", "10.79.0.");
    let site = Site::new("late", "auto", &subnet);
    let mut server = site.serve(&net);
    net.server.ip("addr add 10.79.0.1/24 dev late");
    server.process.wait_for("answered on from now on", crate::server::SOON);
    let output = client
        .command(tool("udhcpc", "udhcpc"))
        .args(["-i", "eth0", "-f", "-n", "-q", "-t", "3", "-T", "1", "-s", "/bin/true"])
        .output()
        .expect("udhcpc runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("lease of 10.79.0."), "{text}");
    let replies = server.metric(&net, "bootstorm_dhcp_replies_total");
    assert_eq!(replies, 2, "one offer and one acknowledgement: nothing is answered twice");
    server.stop();
}

#[test]
fn an_interface_that_is_made_anew_or_addressed_anew_is_answered_on() {
    let net = Net::flat();
    let client = labkit::Namespace::new();
    net.server.wire("plug0", &client, "eth0");
    net.server.ip("addr add 10.79.0.1/24 dev plug0");
    let site = Site::new("plug0", "auto", &FULL.replace("10.77.0.", "10.79.0."));
    let server = site.serve(&net);
    let lease = |client: &labkit::Namespace| {
        let output = client
            .command(tool("udhcpc", "udhcpc"))
            .args(["-i", "eth0", "-f", "-n", "-q", "-t", "8", "-T", "1", "-s", "/bin/true"])
            .output()
            .expect("udhcpc runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("lease of 10.79.0."), "{text}\n{}", server.process.output());
        text
    };
    assert!(lease(&client).contains("from 10.79.0.1"));
    net.server.ip("addr add 10.79.0.3/24 dev plug0");
    net.server.ip("addr del 10.79.0.1/24 dev plug0");
    net.server.ip("addr replace 10.79.0.3/24 dev plug0");
    wait_until(|| server.process.output().contains("has another address"));
    let text = lease(&client);
    assert!(text.contains("from 10.79.0.3"), "{text}");

    net.server.ip("link del plug0");
    wait_until(|| server.process.output().contains("is gone"));
    net.server.wire("plug0", &client, "eth0");
    net.server.ip("addr add 10.79.0.1/24 dev plug0");
    wait_until(|| server.process.output().contains("answered on from now on"));
    lease(&client);
    server.stop();
}

/// Waits for what a server notices by itself every few seconds.
fn wait_until(done: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !done() {
        assert!(begin.elapsed() < crate::server::SOON, "it never comes");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn connections_that_say_nothing_lock_nobody_out() {
    let net = Net::flat();
    let site = site_with(&net, "x.bin", |path| fs::write(path, pattern(3_000_000)).expect("a file"));
    // With 700 descriptors there are 188 places for connections.
    let mut command = net.server.command(tool("prlimit", "util-linux"));
    command.args(["--nofile=700:700", crate::server::binary(), "serve", "--cores", "1", "--config"]);
    command.arg(site.config());
    let mut server = labkit::Process::spawn("bootstorm", &mut command, &site.dir.join("server.log"));
    server.wait_for("bootstorm ready", crate::server::SOON);
    let script = r#"
import socket
def connect():
    s = socket.create_connection(("10.77.0.1", 4433), 5)
    s.settimeout(5)
    return s
download = connect()
download.sendall(b"GET /images/data/x.bin HTTP/1.1\r\nHost: x\r\n\r\n")
got = len(download.recv(1000))
silent = []
for i in range(600):
    silent.append(connect())
    if i % 3 == 0: silent[-1].sendall(b"GET /heal")
for i in range(20):
    s = connect()
    s.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert s.recv(12) == b"HTTP/1.1 200", i
while got < 3000000:
    piece = download.recv(1 << 20)
    assert piece, "the download was cut after %d" % got
    got += len(piece)
print("served")
"#;
    let answer = run(net.server.command(tool("python3", "python3")).arg("-c").arg(script));
    assert!(answer.contains("served"), "{answer}");
    server.signal("TERM");
    assert!(server.wait(crate::server::SOON).success(), "{}", server.output());
}

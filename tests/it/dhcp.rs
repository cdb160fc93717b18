//! DHCP: every case by frames, real clients, several servers on one LAN, kills, storms and strangers.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bootstorm::bench::machine_mac;
use bootstorm::wire;
use bootstorm::wire::MacAddr;
use bootstorm::wire::dhcp::Message;
use bootstorm::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_frame, parse_udp_frame};
use labkit::{Namespace, TempDir, run, tool};

use crate::dhcp_clients::udhcpc;
use crate::server::{BRIDGE, FULL, Net, PROXY, SOON, Server, Site, binary, tell};

#[path = "../../src/proto/dhcp/tests/language.rs"]
mod language;

use language::{Came, Case, Said, Step, US, cases};

/// A machine of its own on a bridge.
pub fn plugged(at: &Namespace, name: &str) -> Namespace {
    let client = Namespace::new();
    at.wire(name, &client, "eth0");
    at.ip(&format!("link set {name} master {BRIDGE}"));
    client
}

/// Two loaders that nobody looks into.
fn with_loaders(site: &Site) -> String {
    let dir = site.dir.join("loaders");
    fs::create_dir_all(&dir).expect("a folder");
    for name in ["undionly.kpxe", "snponly.efi"] {
        fs::write(dir.join(name), name).expect("a loader");
    }
    format!("[loaders]\ndirs = [\"{}\"]\n", dir.display())
}

fn append(site: &Site, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(site.config()).expect("the configuration");
    file.write_all(text.as_bytes()).expect("the configuration can be written");
}

/// Sends frames in a client's namespace and says what came back, line by line: in `XID FRAME PROBE...`, where a probe
/// is `XID:FRAME`; out the frame that answered, or `-` when every probe was answered and that was not.
const PLAYER: &str = r#"
import socket, struct, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
s.bind(("eth0", 0))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
def answers(end):
    while time.monotonic() < end:
        s.settimeout(max(0.001, end - time.monotonic()))
        try: frame, where = s.recvfrom(4096)
        except (TimeoutError, socket.timeout): return
        if where[2] == socket.PACKET_OUTGOING or len(frame) < 282 or frame[23] != 17: continue
        udp = 14 + 4 * (frame[14] & 15)
        if frame[udp + 8] != 2 or struct.unpack("!H", frame[udp:udp + 2])[0] not in (67, 4011): continue
        yield frame[udp + 12:udp + 16], frame
for line in sys.stdin:
    xid, frame, *probes = line.split()
    xid, found, end = bytes.fromhex(xid), None, time.monotonic() + 10
    s.send(bytes.fromhex(frame))
    if not probes:
        # An answer by UDP needs ARP first, which a crowded host may not get through: firmware asks again.
        for again in range(4):
            for got, answer in answers(time.monotonic() + 3):
                if got == xid:
                    found = answer
                    break
            if found: break
            s.send(bytes.fromhex(frame))
        print(found.hex() if found else "timeout", flush=True)
        continue
    for probe in probes:
        probe_xid, probe = (bytes.fromhex(part) for part in probe.split(":"))
        s.send(probe)
        done = False
        for got, answer in answers(end):
            if got == xid: found = answer
            if got == probe_xid:
                done = True
                break
        if not done: sys.exit("a good machine is not answered after " + frame)
    print(found.hex() if found else "-", flush=True)
"#;

struct Player {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    server_mac: MacAddr,
    /// The server answers relays and renewals by frame.
    by_frames: bool,
    probes: u32,
}

/// True for what comes from a relay or from a client that has an address.
fn has_address(message: &[u8]) -> bool {
    Message::parse(message)
        .is_ok_and(|message| !message.giaddr().is_unspecified() || !message.ciaddr().is_unspecified())
}

impl Player {
    fn start(net: &Net, client: &Namespace, by_frames: bool) -> Self {
        let shown = run(net.server.command("ip").args(["-o", "link", "show", BRIDGE]));
        let server_mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        let server_mac = server_mac.and_then(|text| text.parse().ok()).expect("the bridge has an address");
        let mut command = client.command(tool("python3", "python3"));
        command.arg("-c").arg(PLAYER).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 runs");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output, server_mac, by_frames, probes: 0 }
    }

    fn frame(&self, said: &Said) -> String {
        let mut frame = vec![0; UDP_PAYLOAD_OFFSET + said.bytes.len()];
        frame[UDP_PAYLOAD_OFFSET..].copy_from_slice(&said.bytes);
        let header = UdpHeader {
            src_mac: said.src_mac,
            dst_mac: said.dst.map_or(MacAddr::BROADCAST, |_| self.server_mac),
            src: said.src,
            dst: SocketAddrV4::new(said.dst.unwrap_or(Ipv4Addr::BROADCAST), said.port),
            ttl: 64,
            ip_id: 1,
        };
        emit_udp_frame(&mut frame, &header, said.bytes.len()).expect("a frame");
        hex(&frame)
    }

    /// A good machine that was never seen before.
    fn probe(&mut self) -> String {
        self.probes += 1;
        let mut case = Case::new(60_000 + self.probes as usize % 5000);
        let Step::Say(said, _) = case.read("discover uefi > offer") else { panic!("a message") };
        format!("{}:{}", hex(&said.bytes[4..8]), self.frame(&said))
    }

    /// What came back.
    fn play(&mut self, said: &Said, silence: bool) -> Option<Came> {
        let frame = self.frame(said);
        self.play_frame(said, &frame, silence)
    }

    /// The same with a frame of one's own.
    fn play_frame(&mut self, said: &Said, frame: &str, silence: bool) -> Option<Came> {
        let xid = said.bytes.get(4..8).map_or("ffffffff".into(), hex);
        let mut line = format!("{xid} {frame}");
        if silence {
            // Two: by the time the second is answered, a turn that could have answered the case is over.
            line.push_str(&format!(" {} {}", self.probe(), self.probe()));
        }
        writeln!(self.input, "{line}").expect("the player listens");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("the player answers");
        let answer = answer.trim();
        assert!(!answer.is_empty(), "the player ended");
        if answer == "-" || answer == "timeout" {
            return None;
        }
        let bytes: Vec<u8> = (0..answer.len() / 2)
            .map(|at| u8::from_str_radix(&answer[2 * at..2 * at + 2], 16).expect("hex"))
            .collect();
        let datagram = parse_udp_frame(&bytes).expect("a whole frame");
        let reply = Message::parse(datagram.payload).expect("what is sent parses");
        let to = if datagram.dst_mac == MacAddr::BROADCAST {
            assert_eq!(datagram.dst, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
            "bcast".into()
        } else if self.by_frames && said.port == 67 && has_address(&said.bytes) {
            // Back to who sent it; by UDP it goes to whom ARP names.
            assert_eq!(datagram.dst_mac, said.src_mac);
            datagram.dst.to_string()
        } else if datagram.dst_mac == said.src_mac {
            assert_eq!(datagram.dst, SocketAddrV4::new(reply.yiaddr(), 68));
            "link".into()
        } else {
            datagram.dst.to_string()
        };
        assert_eq!(*datagram.src.ip(), US);
        Some(Came { bytes: datagram.payload.to_vec(), to, from_port: datagram.src.port() })
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const NETWORKS: &str = r#"
[[dhcp.subnet]]
network = "10.77.0.0/16"
range = "10.77.8.0-10.77.135.255"
router = "10.77.0.1"
dns = ["10.77.0.1", "10.77.0.3"]
domain = "lab.test"
dhcp_option = ["150=10.77.0.9"]
[[dhcp.subnet]]
network = "10.88.0.0/24"
range = "10.88.0.100-10.88.0.150"
next_server = "10.77.0.9"
lease = "2h"
[[dhcp.subnet]]
network = "10.99.0.0/24"
[[dhcp.reservation]]
client_id = "desk8"
ip = "10.77.0.50"
[[dhcp.reservation]]
circuit = "port17"
ip = "10.88.0.60"
"#;

#[test]
fn every_case_is_answered_by_frames_as_written_down() {
    every_case(true);
}

/// As on a host with a packet filter.
#[test]
fn every_case_is_answered_as_written_down_with_relays_by_udp() {
    every_case(false);
}

fn every_case(by_frames: bool) {
    let mut wrong = Vec::new();
    let mut played = 0;
    for setting in ["proxy", "full", "open"] {
        let net = Net::flat();
        let client = plugged(&net.server, "plug0");
        // The client's side answers ARP for every machine and relay there is.
        client.ip("addr add 10.88.0.2/32 dev eth0");
        let machines = ["10.77.8.0/21", "10.77.16.0/20", "10.77.32.0/19", "10.77.64.0/18", "10.77.128.0/17"];
        for network in machines.iter().chain(&["10.88.0.0/16"]) {
            client.ip(&format!("route add local {network} dev lo"));
        }
        // Not the server's own address: a question from there would be taken for the client's own.
        client.ip("route add 10.77.0.0/21 dev eth0");
        for network in ["10.77.0.0/16", "10.88.0.0/16"] {
            net.server.ip(&format!("route add {network} dev {BRIDGE}"));
        }
        let (mode, authoritative) = match setting {
            "proxy" => ("proxy", true),
            setting => ("full", setting == "full"),
        };
        let site = Site::new(
            net.interface,
            "auto",
            &format!(
                "[dhcp]\nmode = \"{mode}\"\nauthoritative = {authoritative}\nframes = \"{}\"\n{NETWORKS}",
                if by_frames { "auto" } else { "off" }
            ),
        );
        append(&site, &with_loaders(&site));
        let server = site.serve(&net);
        let mut player = Player::start(&net, &client, by_frames);
        for (number, name, of, steps) in cases() {
            if of != setting || steps.contains("+") {
                continue;
            }
            played += 1;
            let mut case = Case::new(number);
            for text in steps.split(" ; ") {
                let (said, expected) = match case.read(text) {
                    Step::Say(said, expected) => (said, expected),
                    Step::Wait(time) => panic!("{name}: waits {time:?}"),
                };
                let silence = expected.starts_with('-');
                let came = player.play(&said, silence);
                if let Err(what) = case.check(&said, &expected, came.as_ref()) {
                    wrong.push(format!("{setting}: {name}: {text}: {what}"));
                    assert!(wrong.len() < 8, "{played} played, among them wrong:\n{}", wrong.join("\n"));
                    break;
                }
            }
        }
        drop(player);
        server.stop();
    }
    assert!(played >= 300, "{played}");
    assert!(wrong.is_empty(), "{} of {played} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Waits for one DHCP message to a relay's address, and says how long it is.
const RELAY: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.88.0.2", 67))
s.settimeout(30)
print("listening", flush=True)
print(len(s.recv(4096)), "bytes", flush=True)
"#;

/// Plays a relayed DISCOVER, its frame changed; true when it was answered, and well.
fn play_relayed(
    player: &mut Player,
    number: usize,
    silence: bool,
    change: &dyn Fn(String) -> String,
) -> bool {
    let mut case = Case::new(number);
    let Step::Say(said, expected) = case.read("discover uefi gi=relay > offer to=10.88.0.2:67") else {
        panic!("a message")
    };
    let frame = change(player.frame(&said));
    let came = player.play_frame(&said, &frame, silence);
    came.map(|came| case.check(&said, &expected, Some(&came)).expect("a good answer")).is_some()
}

#[test]
fn a_relay_is_answered_past_no_packet_filter_and_only_where_routing_leads() {
    let table = "table inet lab { chain in { type filter hook input priority 0; policy accept; \
                 ip daddr 10.77.0.1 udp dport 67 drop; }\n}";
    // What comes from there in clear is dropped.
    let policy = "xfrm policy add src 10.88.0.0/16 dst 10.77.0.1 dir in tmpl proto esp mode transport";
    for (frames, kept_out_by) in [
        ("auto", None),
        ("auto", Some("nftables")),
        ("auto", Some("ipsec")),
        ("off", Some("nftables")),
        ("on", Some("nftables")),
    ] {
        let net = Net::flat();
        let client = plugged(&net.server, "plug0");
        client.ip("addr add 10.88.0.2/32 dev eth0");
        client.ip("route add 10.77.0.0/16 dev eth0");
        net.server.ip(&format!("route add 10.88.0.0/16 dev {BRIDGE}"));
        match kept_out_by {
            Some("nftables") => drop(run(net.server.command(tool("nft", "nftables")).arg(table))),
            Some(_) => net.server.ip(policy),
            None => {}
        }
        let is_kept_out = kept_out_by.is_some() && frames != "on";
        let rest = format!("[dhcp]\nmode = \"full\"\nframes = \"{frames}\"\n{NETWORKS}");
        let site = Site::new(net.interface, "auto", &rest);
        append(&site, &with_loaders(&site));
        let mut server = site.serve(&net);
        let mut player = Player::start(&net, &client, true);
        let whole = |frame: String| frame;
        assert_eq!(
            play_relayed(&mut player, 1, is_kept_out, &whole),
            !is_kept_out,
            "{frames} {kept_out_by:?}"
        );
        if is_kept_out {
            server.process.wait_for("relays are answered by UDP", SOON);
        }
        if kept_out_by.is_none() {
            // Of a network that has no interface here: its tag (802.1Q) stands behind the two addresses.
            let tagged = |frame: String| format!("{}8100000a{}", &frame[..24], &frame[24..]);
            assert!(!play_relayed(&mut player, 5, true, &tagged), "a relay of another network");
            let mut case = Case::new(6);
            let Step::Say(said, _) = case.read("discover uefi > offer") else { panic!("a message") };
            let frame = tagged(player.frame(&said));
            assert!(player.play_frame(&said, &frame, true).is_none(), "a machine of another network");
            let mut relayed = |number, silence, damage: &dyn Fn(String) -> String| {
                play_relayed(&mut player, number, silence, damage)
            };
            // The checksum is at 40, two digits each.
            let other_sum = |frame: String| format!("{}5a5a{}", &frame[..80], &frame[84..]);
            assert!(!relayed(3, true, &other_sum), "damaged on its way");
            assert_eq!(server.metric(&net, "bootstorm_dhcp_malformed_frames_total"), 1);
            let no_sum = |frame: String| format!("{}0000{}", &frame[..80], &frame[84..]);
            assert!(relayed(4, false, &no_sum), "RFC 768 lets a sender leave it out");
            // Routing finds the relay behind another link now: what came past it is answered there.
            let side = Namespace::new();
            net.server.wire("side0", &side, "eth0");
            side.ip("addr add 10.88.0.2/16 dev eth0");
            let mut command = side.command(tool("python3", "python3"));
            command.arg("-c").arg(RELAY).stdout(Stdio::piped());
            let mut relay = command.spawn().expect("python3 runs");
            let mut heard = BufReader::new(relay.stdout.take().expect("a pipe")).lines();
            let mut line = || heard.next().expect("it goes on").expect("text");
            assert_eq!(line(), "listening");
            net.server.ip("addr add 10.88.0.1/16 dev side0");
            net.server.ip(&format!("route del 10.88.0.0/16 dev {BRIDGE}"));
            // What routing said is believed for ten seconds.
            std::thread::sleep(Duration::from_secs(10));
            assert!(!relayed(2, true, &whole), "answered where it came from");
            assert!(line().ends_with("bytes"));
            relay.wait().expect("it ends");
        }
        drop(player);
        server.stop();
    }
}

/// DORA of many machines in turn, in a client's namespace, for so many seconds; every ACK is a line `MAC IP`. What is
/// not answered within half a second is asked again, as long as it takes.
const MANY: &str = r#"
import os, socket, struct, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
s.bind(("eth0", 0))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
first, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def sum16(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 65535) + (total >> 16)
    return 65535 ^ total
def frame(mac, xid, options):
    dhcp = struct.pack("!BBBBIHH", 1, 1, 6, 0, xid, 0, 0x8000) + bytes(16) + mac + bytes(202) + b"\x63\x82\x53\x63" + options + b"\xff"
    dhcp += bytes(max(0, 300 - len(dhcp)))
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(dhcp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    ip = ip[:10] + struct.pack("!H", sum16(ip)) + ip[12:]
    return b"\xff" * 6 + mac + b"\x08\x00" + ip + struct.pack("!HHHH", 68, 67, 8 + len(dhcp), 0) + dhcp
waiting, todo, end = {}, list(range(first, first + count)), time.monotonic() + seconds
def ask(n, offer=None):
    mac = b"\x52\x54\x03" + n.to_bytes(3, "big")
    if offer is None: options = b"\x35\x01\x01"
    else: options = b"\x35\x01\x03\x32\x04" + offer[0] + b"\x36\x04" + offer[1]
    waiting[n] = (time.monotonic(), offer)
    try: s.send(frame(mac, 0x30000000 + n, options))
    except OSError: pass
s.settimeout(0.05)
while (todo or waiting) and time.monotonic() < end:
    while todo and len(waiting) < 64: ask(todo.pop(0))
    try: data, where = s.recvfrom(4096)
    except (TimeoutError, socket.timeout):
        data = None
    now = time.monotonic()
    if data and where[2] != socket.PACKET_OUTGOING and data[23] == 17 and data[42] == 2:
        n = struct.unpack("!I", data[46:50])[0] - 0x30000000
        if n in waiting:
            options, at = {}, 282
            while at < len(data) and data[at] != 255:
                options[data[at]] = data[at + 2:at + 2 + data[at + 1]]
                at += 2 + data[at + 1]
            kind, ip = options.get(53), data[58:62]
            if kind == b"\x02" and waiting[n][1] is None: ask(n, (ip, options[54]))
            elif kind == b"\x05":
                del waiting[n]
                print(n, socket.inet_ntoa(ip), flush=True)
            elif kind == b"\x06": ask(n)
    for n, (since, offer) in list(waiting.items()):
        if now - since > 0.5: ask(n, None)
if todo or waiting: sys.exit("%d machines got no address" % (len(todo) + len(waiting)))
"#;

fn many(place: &Namespace, first: u32, count: u32, seconds: u32) -> Child {
    let mut command = place.command(tool("python3", "python3"));
    command.arg("-c").arg(MANY).args([first, count, seconds].map(|n| n.to_string()));
    command.stdout(Stdio::piped()).spawn().expect("python3 runs")
}

#[test]
fn no_address_is_given_twice_whenever_the_server_is_killed() {
    let kills = if std::env::var_os("LAB_ALL").is_some() { 40 } else { 4 };
    let net = Net::flat();
    let client = plugged(&net.server, "plug0");
    let config = "[dhcp]\nmode = \"full\"\nper_circuit = 0\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/16\"\n\
                  range = \"10.77.1.0-10.77.200.255\"\nlease = \"1h\"\n";
    let site = Site::new(net.interface, "auto", config);
    let mut owners = std::collections::HashMap::new();
    let mut first = 0;
    for round in 0..kills {
        let mut server = site.serve(&net);
        let mut load = many(&client, first, 600, 60);
        let mut lines = BufReader::new(load.stdout.take().expect("a pipe")).lines();
        // Killed at another moment each time, in the middle of it.
        for line in lines.by_ref().take(50 + 37 * (round % 9)) {
            given(&mut owners, &line.expect("a line"));
        }
        server.process.signal("KILL");
        server.process.wait(SOON);
        drop(server);
        let server = site.serve(&net);
        for line in lines {
            given(&mut owners, &line.expect("a line"));
        }
        assert!(load.wait().expect("it ends").success(), "every machine gets its address in the end");
        // All of them start again, and each gets what it had.
        let mut again = many(&client, first, 600, 60);
        for line in BufReader::new(again.stdout.take().expect("a pipe")).lines() {
            let (machine, ip) = given(&mut owners, &line.expect("a line"));
            assert_eq!(owners[&ip], machine);
        }
        assert!(again.wait().expect("it ends").success());
        let had = owners.values().filter(|machine| (first..first + 600).contains(*machine)).count();
        assert_eq!(had, 600, "one address for each machine");
        server.stop();
        first += 600;
    }
}

/// Notes an ACK; nobody else may have had the address.
fn given(owners: &mut std::collections::HashMap<Ipv4Addr, u32>, line: &str) -> (u32, Ipv4Addr) {
    let (machine, ip) = line.split_once(' ').expect("a machine and an address");
    let (machine, ip) = (machine.parse().expect("a number"), ip.parse().expect("an address"));
    let before = owners.insert(ip, machine);
    assert!(before.is_none_or(|before| before == machine), "{ip} was {before:?}'s and is now {machine}'s");
    (machine, ip)
}

#[test]
fn a_disk_that_is_full_still_takes_leases_into_the_space_taken_before() {
    let net = Net::flat();
    let client = plugged(&net.server, "plug0");
    let site = Site::new(net.interface, "auto", FULL);
    let disk = site.dir.join("state/leases");
    fs::create_dir_all(&disk).expect("a folder");
    let mount = |words: &[&str]| run(Command::new("mount").args(words).arg(&disk));
    mount(&["-t", "tmpfs", "-o", "size=9m", "tmpfs"]);
    let server = site.serve(&net);
    udhcpc(&client);
    fs::write(disk.join("filler"), vec![1; 16 << 20]).expect_err("the disk is full now");
    let other = plugged(&net.server, "plug1");
    udhcpc(&other);
    server.stop();
    run(Command::new("umount").arg(&disk));
}

#[test]
fn of_two_servers_beside_a_third_the_one_that_has_the_job_answers() {
    let folder = TempDir::new("two");
    let net = Net::with_dnsmasq(&folder.0);
    let second = plugged(&net.server, "second");
    second.ip("addr add 10.77.0.3/24 dev eth0");
    let sites = [Site::new(net.interface, "auto", PROXY), Site::new("eth0", "auto", PROXY)];
    let macs = ["52:54:00:00:0a", "52:54:00:00:0b"];
    for site in &sites {
        append(site, &with_loaders(site));
        site.add_linux();
    }
    let first_server = sites[0].serve(&net);
    // The second stands in a namespace of its own.
    let mut command = second.command(binary());
    command.arg("serve").arg("--config").arg(sites[1].config()).args(["--log", "debug"]);
    let mut process = labkit::Process::spawn("bootstorm", &mut command, &sites[1].dir.join("server.log"));
    process.wait_for("bootstorm ready", SOON);
    for (site, mac) in sites.iter().zip(macs) {
        for number in 0..4 {
            site.ask(&["job", "add", "tiny", "--mac", &format!("{mac}:{number:02x}")]);
        }
    }
    let machine = plugged(&net.server, "plug0");
    let offers = |mac: &str| {
        let script = r#"
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)); s.bind(("eth0", 0))
mac = bytes.fromhex(sys.argv[1].replace(":", ""))
xid = (int(time.time() * 1e6) & 0xffffffff).to_bytes(4, "big")
options = b"\x35\x01\x01\x3c\x20PXEClient:Arch:00007:UNDI:003016\x5d\x02\x00\x07\xff"
dhcp = b"\x01\x01\x06\x00" + xid + b"\x00\x00\x80\x00" + bytes(16) + mac + bytes(202) + b"\x63\x82\x53\x63" + options
dhcp += bytes(max(0, 300 - len(dhcp)))
import struct
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(dhcp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
t = sum(struct.unpack("!10H", ip)); t = (t & 65535) + (t >> 16); t = (t & 65535) + (t >> 16)
ip = ip[:10] + struct.pack("!H", 65535 ^ t) + ip[12:]
s.send(b"\xff" * 6 + mac + b"\x08\x00" + ip + struct.pack("!HHHH", 68, 67, 8 + len(dhcp), 0) + dhcp)
# A lease offer says that the other server has answered too, after which a proxy's would have come long ago.
found, end, seen = set(), time.monotonic() + 10, False
while time.monotonic() < end:
    s.settimeout(max(0.001, end - time.monotonic()))
    try: data, where = s.recvfrom(4096)
    except (TimeoutError, socket.timeout): break
    if where[2] == socket.PACKET_OUTGOING or len(data) < 282 or data[23] != 17 or data[42] != 2 or data[46:50] != xid: continue
    server = socket.inet_ntoa(data[26:30])
    if data[150:151] != b"\x00": found.add(server)
    if server == "10.77.0.2" and not seen:
        seen, end = True, min(end, time.monotonic() + 0.3)
print(" ".join(sorted(found)))
"#;
        run(machine.command(tool("python3", "python3")).arg("-c").arg(script).arg(mac)).trim().to_owned()
    };
    // Nobody has heard anybody yet: both may answer. From then on they know of each other. A machine that asks again
    // within two minutes is answered by both: it got nothing from the one that was to answer.
    for number in 0..4 {
        for (mac, server) in macs.iter().zip(["10.77.0.1", "10.77.0.3"]) {
            let answered = offers(&format!("{mac}:{number:02x}"));
            assert!(number == 0 || answered == server, "machine {number} of {server}: {answered}");
        }
    }
    // Whole boots of every firmware, each machine's from the server that has its job. One whose lease is slow to come asks
    // again and hears the other server too; by then it has an offer to go by.
    let load = plugged(&net.server, "load");
    load.ip("addr add 10.77.0.9/24 dev eth0");
    let count = 24;
    // Four kinds in turn, and of each kind some for each.
    let owner = |index: u32| index as usize / 4 % 2;
    for index in 0..count {
        sites[owner(index)].ask(&["job", "add", "tiny", "--mac", &machine_mac(index).to_string()]);
    }
    let point =
        bench(&load, &format!("storm --interface eth0 --machines {count} --impatient --patience 100s"));
    assert_eq!(
        (point["units"].as_u64(), point["failures"].as_u64()),
        (Some(count.into()), Some(0)),
        "{point}"
    );
    assert_eq!(point["settings"].get("to_local_disk"), None, "{point}");
    let said = [first_server.process.output(), process.output()];
    for index in 0..count {
        let mac = machine_mac(index).to_string();
        let jobs = sites[owner(index)].ask(&["job", "list", "--json"]);
        let jobs: serde_json::Value = serde_json::from_str(&jobs).expect("one document");
        let job = jobs["jobs"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|job| job["selector"]["mac"] == mac.as_str());
        assert_eq!(job.expect("its job")["stage"], "running", "{mac}: {jobs:#}");
        let told = |of: usize| {
            said[of].lines().filter(|line| line.contains(" offered ") && line.contains(&mac)).count()
        };
        assert!(told(owner(index)) > 0, "{mac} was told by its own server:\n{}", said[owner(index)]);
    }
    process.signal("TERM");
    assert!(process.wait(SOON).success());
    first_server.stop();
}

fn bench(load: &Namespace, words: &str) -> serde_json::Value {
    let output = load
        .command(binary())
        .arg("bench")
        .args(format!("{words} --json").split_whitespace())
        .output()
        .expect("bootstorm runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("bench {words}: {error}\n{text}"));
    report["points"][0].clone()
}

const WIDE: &str = "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/16\"\n\
                    range = \"10.77.1.0-10.77.200.255\"\n";

#[test]
fn ten_thousand_machines_at_once_all_get_their_address_before_their_firmware_gives_up() {
    let net = Net::flat();
    let load = plugged(&net.server, "plug0");
    load.ip("addr add 10.77.0.2/24 dev eth0");
    let site = Site::new(net.interface, "auto", WIDE);
    append(&site, &with_loaders(&site));
    let server = site.serve(&net);
    let point = bench(&load, "dhcp --interface eth0 --mode avalanche --clients 10000 --time 70s");
    println!("ten thousand at once: {point}");
    assert_eq!((point["units"].as_u64(), point["failures"].as_u64()), (Some(10_000), Some(0)), "{point}");
    server.stop();
}

/// A relay that takes one machine after the other to its lease, for so many seconds; each is a line with the time it took,
/// ms, both answers together. What is not answered in half a second is asked again, and counted in that time.
const ONE_BY_ONE: &str = r#"
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.88.0.2", 67))
s.settimeout(0.5)
def ask(xid, options):
    mac = b"\x52\x54\x09" + (xid & 0xffffff).to_bytes(3, "big")
    head = struct.pack("!BBBBIHH", 1, 1, 6, 1, xid, 0, 0) + bytes(12) + socket.inet_aton("10.88.0.2") + mac + bytes(202)
    message = head + b"\x63\x82\x53\x63" + options + b"\xff"
    for again in range(20):
        s.sendto(message, ("10.77.0.1", 67))
        try:
            while True:
                answer = s.recv(2048)
                if answer[4:8] == message[4:8]: return answer
        except TimeoutError: pass
    sys.exit("a relay's machine is not answered")
end, xid = time.monotonic() + float(sys.argv[1]), 0x51000000
while time.monotonic() < end:
    begun, xid = time.monotonic(), xid + 1
    address = ask(xid, b"\x35\x01\x01")[16:20]
    ask(xid + 0x100000, b"\x35\x01\x03\x32\x04" + address + b"\x36\x04\x0a\x4d\x00\x01")
    print(round((time.monotonic() - begun) * 1000), flush=True)
"#;

#[test]
fn a_storm_on_the_link_leaves_relays_their_room() {
    let net = Net::flat();
    let load = plugged(&net.server, "plug0");
    load.ip("addr add 10.77.0.2/16 dev eth0");
    let relay = plugged(&net.server, "plug1");
    relay.ip("addr add 10.88.0.2/16 dev eth0");
    relay.ip("route add 10.77.0.0/16 dev eth0");
    net.server.ip(&format!("route add 10.88.0.0/16 dev {BRIDGE}"));
    let networks = "[[dhcp.subnet]]\nnetwork = \"10.77.0.0/16\"\nrange = \"10.77.1.0-10.77.250.255\"\n\
                    [[dhcp.subnet]]\nnetwork = \"10.88.0.0/16\"\nrange = \"10.88.1.0-10.88.250.255\"\n";
    let site =
        Site::new(net.interface, "auto", &format!("[dhcp]\nmode = \"full\"\nper_circuit = 0\n{networks}"));
    append(&site, &with_loaders(&site));
    let server = site.serve(&net);
    let dropped = || server.metric(&net, "bootstorm_dhcp_drops_total{reason=\"queue-full\"}");
    std::thread::scope(|scope| {
        // Far more than there is room for, whatever comes back.
        let words =
            "dhcp --interface eth0 --mode discover --machines 60000 --clients 60000 --rate 400000 --time 8s";
        let storm = scope.spawn(|| bench(&load, words));
        let begun = Instant::now();
        // What was dropped is counted once in a while.
        while dropped() == 0 {
            assert!(begun.elapsed() < SOON, "no storm: nothing was more than fits");
            std::thread::sleep(Duration::from_millis(100));
        }
        let before = dropped();
        let mut command = relay.command(tool("python3", "python3"));
        let output = command.args(["-c", ONE_BY_ONE, "2"]).output().expect("python3 runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!storm.is_finished(), "the storm was over before");
        let mut took: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        took.sort_unstable();
        let half = *took.get(took.len() / 2).expect("at least one exchange");
        tell(format!("{} relayed leases in a storm, half of them within {half} ms", took.len()));
        // Most of them without asking again.
        assert!(half < 500, "{took:?}");
        storm.join().expect("the storm ends");
        assert!(dropped() > before, "the storm went on meanwhile");
    });
    server.stop();
}

/// Resident memory of a process, KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn bytes_below(dir: &Path) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        meta => meta.map_or(0, |meta| meta.len()),
    };
    fs::read_dir(dir).expect("a folder").filter_map(Result::ok).map(size).sum()
}

#[test]
fn strangers_without_end_leave_memory_flat_and_a_registered_machine_its_boot() {
    let (rate, seconds) = if std::env::var_os("LAB_ALL").is_some() { (5_000, 200) } else { (3_000, 8) };
    let net = Net::flat();
    let load = plugged(&net.server, "plug0");
    load.ip("addr add 10.77.0.2/24 dev eth0");
    let machines = plugged(&net.server, "plug1");
    machines.ip("addr add 10.77.0.3/24 dev eth0");
    let site = Site::new(net.interface, "auto", FULL);
    append(&site, &with_loaders(&site));
    site.add_linux();
    let server = site.serve(&net);
    // Among the addresses strangers make up for DHCP is the machine's own.
    let registered = machine_mac(0).to_string();
    site.ask(&["job", "add", "tiny", "--always", "--mac", &registered]);
    // One whole boot of each kind of firmware, how long they took, and how many DHCP messages had to be said again.
    let boots = || {
        let start = Instant::now();
        let mut said_again = 0u64;
        for kind in ["bios", "uefi", "http", "ipxe"] {
            let words =
                format!("storm --interface eth0 --machines 1 --kind {kind} --impatient --patience 100s");
            let point = bench(&machines, &words);
            assert_eq!(point["failures"], 0, "{kind}: {point}");
            assert_eq!(point["settings"].get("to_local_disk"), None, "{kind}: {point}");
            let again = point["settings"]["said_again"].as_str().unwrap_or("0");
            said_again += again.parse::<u64>().expect("a number");
        }
        (start.elapsed(), said_again)
    };
    let (alone, _) = boots();
    let words = |rate: u32, seconds: u32| {
        format!(
            "dhcp --interface eth0 --mode discover --pxe --clients 64 --machines 65536 --rate {rate} --time {seconds}s"
        )
    };
    let scripts = |seconds: u32| {
        let words = format!(
            "script --server 10.77.0.1 --path /ipxe?serial=S{{mac}} --machines 1000000 --connections 4 --time {seconds}s"
        );
        bench(&load, &words)["units"].as_u64().expect("a number")
    };
    // The first second fills every table there is.
    bench(&load, &words(rate, 4));
    scripts(4);
    let pid = server.process.pid();
    // KiB in memory, of those the recorder's, which has a bound of its own, and bytes on disk.
    let held = || {
        let recorder: u64 = ["bytes", "packet_bytes"]
            .iter()
            .map(|what| server.metric(&net, &format!("bootstorm_history_{what} ")) / 1024)
            .sum();
        let (memory, disk) = (resident(pid), bytes_below(&site.dir.join("state")));
        let messages = server.metric(&net, "bootstorm_dhcp_packets_total");
        let machines = server.metric(&net, "bootstorm_history_machines");
        println!(
            "{messages} messages: {memory} KiB, of {machines} machines on record {recorder}; {disk} bytes on disk"
        );
        (memory, recorder, disk)
    };
    let before = held();
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| bench(&load, &words(rate, seconds)));
        let asked = scope.spawn(|| scripts(seconds));
        // Of one that is not heard the storm says so after its patience.
        let (beside, said_again) = boots();
        println!(
            "four boots alone {alone:?}, in the storm {beside:?}, {said_again} messages said again, {} not heard",
            server.metric(&net, "bootstorm_dhcp_drops_total{reason=\"queue-full\"}")
        );
        assert!(beside < alone * 3 + Duration::from_secs(30), "{alone:?} became {beside:?}");
        while !storm.is_finished() {
            std::thread::sleep(Duration::from_secs(u64::from(seconds / 8)));
            samples.push(held());
        }
        storm.join().expect("the storm ends");
        let asked = asked.join().expect("the scripts end");
        assert!(asked > 100 * u64::from(seconds), "{asked} scripts");
    });
    assert!(server.metric(&net, "bootstorm_dhcp_packets_total") > u64::from(rate) * u64::from(seconds) / 2);
    let after = held();
    // The recorder counts what it asked for, not what the allocator took for it and keeps for the next.
    let recorder = after.1.saturating_sub(before.1) * 2;
    assert!(after.0 < before.0 + 24 * 1024 + recorder, "{before:?} became {after:?}");
    assert!(after.1 <= 256 * 1024, "{after:?}");
    if seconds >= 60 {
        // By half of it everything that is bounded is full.
        let half = samples[samples.len() / 2];
        assert!(after.0 <= half.0 * 105 / 100 + 8 * 1024, "{half:?} became {after:?}");
    }
    // Who asks for a script comes on record: 10,000 at once, then 100 a second, up to 100,000 machines.
    let recorded = 10_000 + 100 * (u64::from(seconds) + 60);
    assert!(after.2 < before.2 + (1 << 20) + 1024 * recorded, "{before:?} became {after:?}");
    drop::<Server<'_>>(server);
}

#[test]
fn an_address_in_use_without_a_lease_is_found_out_on_the_link_and_behind_a_relay() {
    let folder = TempDir::new("probe");
    for kind in ["flat", "relayed"] {
        let net = if kind == "flat" { Net::flat() } else { Net::relayed(&folder.0) };
        let squatter = plugged(net.machines(), "squat");
        squatter.ip("addr add 10.77.0.100/24 dev eth0");
        squatter.ip("route add default via 10.77.0.1");
        let machines = [plugged(net.machines(), "plug0"), plugged(net.machines(), "plug1")];
        let site = Site::new(
            net.interface,
            "auto",
            "[dhcp]\nmode = \"full\"\nprobe = \"300ms\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/24\"\n\
             range = \"10.77.0.100-10.77.0.101\"\nrouter = \"10.77.0.1\"\n",
        );
        let mut server = site.serve(&net);
        let text = udhcpc(&machines[0]);
        assert!(text.contains("lease of 10.77.0.101"), "{kind}: {text}");
        // The other address is somebody's, whichever of the two machines was to get it first.
        let mut command = machines[1].command(tool("udhcpc", "udhcpc"));
        command.args(["-i", "eth0", "-f", "-n", "-q", "-t", "2", "-T", "1", "-s", "/bin/true"]);
        let output = command.output().expect("udhcpc runs");
        assert!(!output.status.success(), "{kind}: {output:?}");
        assert_eq!(server.metric(&net, "bootstorm_dhcp_in_use_total"), 1, "{kind}");
        assert!(server.metric(&net, "bootstorm_dhcp_probes_total") >= 2, "{kind}");
        server.process.wait_for("10.77.0.100 is in use by", SOON);
        server.stop();
    }
}

/// The kernel takes the rings of an interface out of their group when it goes down, and puts them in again, one after the other.
#[test]
fn an_interface_that_was_down_is_answered_on_as_before() {
    let net = Net::flat();
    let client = plugged(&net.server, "plug0");
    client.ip("addr add 10.88.0.2/32 dev eth0");
    client.ip("route add 10.77.0.0/16 dev eth0");
    let site = Site::new(net.interface, "auto", &format!("[dhcp]\nmode = \"full\"\n{NETWORKS}"));
    append(&site, &with_loaders(&site));
    let file = vec![7; 300_000];
    fs::create_dir_all(site.dir.join("images/data")).expect("a folder");
    fs::write(site.dir.join("images/data/file.bin"), &file).expect("the file");
    let server = site.serve(&net);
    let by_frame = || server.metric(&net, "bootstorm_tftp_sent_total{way=\"frame\"}");
    for number in 0..3 {
        if number > 0 {
            net.server.ip(&format!("link set {BRIDGE} down"));
            net.server.ip(&format!("link set {BRIDGE} up"));
        }
        // Down it loses its routes.
        net.server.ip(&format!("route add 10.88.0.0/16 dev {BRIDGE}"));
        let mut player = Player::start(&net, &client, true);
        let mut case = Case::new(10 + number);
        for text in ["discover uefi > offer", "request uefi want=$ sid=us > ack"] {
            let Step::Say(said, expected) = case.read(text) else { panic!("a message") };
            let came = player.play(&said, false);
            case.check(&said, &expected, came.as_ref())
                .unwrap_or_else(|what| panic!("{number}: {text}: {what}"));
        }
        assert!(play_relayed(&mut player, 20 + number, false, &|frame| frame), "a relay, {number}");
        // From ports of both parities, and so on either core.
        for port in [40_000, 40_001, 40_002, 40_003] {
            let before = by_frame();
            let to = site.dir.join("got");
            let mut curl = client.command(tool("curl", "curl"));
            curl.args(["-sS", "-f", "--max-time", "20", "--local-port", &port.to_string(), "-o"]).arg(&to);
            run(curl.arg("tftp://10.77.0.1/images/data/file.bin"));
            assert_eq!(fs::read(&to).expect("what came"), file, "{number}: port {port}");
            assert!(by_frame() >= before + 585, "{number}: port {port}: by socket");
        }
    }
    server.stop();
}

#[test]
fn machines_boot_after_the_bridge_has_taken_another_hardware_address() {
    let net = Net::flat();
    let load = plugged(&net.server, "plug0");
    load.ip("addr add 10.77.0.2/24 dev eth0");
    let site = Site::new(net.interface, "auto", FULL);
    append(&site, &with_loaders(&site));
    site.add_linux();
    let mut server = site.serve(&net);
    // A bridge has the lowest address of its ports, as long as nobody gives it one.
    let other = Namespace::new();
    net.server.wire("low", &other, "eth0");
    net.server.ip("link set low address 02:00:00:00:00:01");
    net.server.ip(&format!("link set low master {BRIDGE}"));
    server.process.wait_for("has another hardware address", SOON);
    let point = bench(&load, "storm --interface eth0 --machines 8 --impatient --patience 100s");
    assert_eq!((point["units"].as_u64(), point["failures"].as_u64()), (Some(8), Some(0)), "{point}");
    server.stop();
}

#[test]
fn a_proxy_on_the_host_of_another_dhcp_server_boots_machines_by_frames_alone() {
    let net = Net::flat();
    let load = plugged(&net.server, "plug0");
    load.ip("addr add 10.77.0.9/24 dev eth0");
    let site = Site::new(
        net.interface,
        "auto",
        &format!("{PROXY}[policy]\nmenu_default = \"tiny\"\nmenu_timeout = \"1s\"\n"),
    );
    append(&site, &with_loaders(&site));
    site.add_linux();
    let mut command = net.server.command(tool("dnsmasq", "dnsmasq-base"));
    command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--user=root"]);
    command.args(["--no-ping", "--interface=lan", "--dhcp-range=10.77.0.100,10.77.0.200,1h"]);
    // Of what it sends from this host's own address the boot file is what an operator should hear about.
    command.args(["--dhcp-vendorclass=set:busybox,udhcp", "--dhcp-boot=tag:busybox,elsewhere.0"]);
    command.arg(format!("--dhcp-leasefile={}", site.dir.join("dnsmasq.leases").display()));
    let mut dnsmasq = labkit::Process::spawn("dnsmasq", &mut command, &site.dir.join("dnsmasq.log"));
    dnsmasq.wait_for("DHCP, IP range", SOON);
    let server = site.serve(&net);
    let point = bench(&load, "storm --interface eth0 --machines 8 --impatient --patience 100s");
    assert_eq!((point["units"].as_u64(), point["failures"].as_u64()), (Some(8), Some(0)), "{point}");
    assert_eq!(point["settings"].get("to_local_disk"), None, "{point}");
    assert!(dnsmasq.output().contains("DHCPACK"), "addresses are the other server's:\n{}", dnsmasq.output());
    let replies = server.metric(&net, "bootstorm_dhcp_replies_total");
    let text = udhcpc(&plugged(&net.server, "plug1"));
    assert!(text.contains("lease of 10.77.0."), "{text}");
    assert_eq!(server.metric(&net, "bootstorm_dhcp_replies_total"), replies, "it was not booting");
    assert_eq!(server.metric(&net, "bootstorm_dhcp_other_servers_total"), 1, "its OFFER was not heard");
    server.stop();
}

#[test]
fn a_pool_that_runs_out_is_told_before_it_does_and_its_last_fifth_is_for_registered_machines() {
    let net = Net::flat();
    let client = plugged(&net.server, "plug0");
    let config = "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/24\"\n\
                  range = \"10.77.0.100-10.77.0.119\"\nlease = \"1h\"\n";
    let site = Site::new(net.interface, "auto", config);
    site.add_linux();
    let mut server = site.serve(&net);
    // Sixteen of twenty go to whoever asks, and not one more.
    assert!(many(&client, 0, 16, 60).wait().expect("it ends").success());
    assert!(!many(&client, 16, 1, 2).wait().expect("it ends").success(), "the last fifth is kept");
    assert_eq!(server.metric(&net, "bootstorm_dhcp_pools_low"), 0);
    // Machines with a job get the rest, and with the eighteenth it is said.
    for number in 32..34u32 {
        site.ask(&["job", "add", "tiny", "--mac", &format!("52:54:03:00:00:{number:02x}")]);
    }
    assert!(many(&client, 32, 2, 60).wait().expect("it ends").success());
    server.process.wait_for("the pool is nearly empty", SOON);
    assert!(server.metric(&net, "bootstorm_dhcp_drops_total{reason=\"pool-kept\"}") > 0);
    server.stop();
}

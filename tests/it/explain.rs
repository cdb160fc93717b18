//! `explain` on machines that stop at every stage: simulated ones against the real binary, beside a real DHCP server, and real
//! firmware in QEMU.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use bootstorm::client::run::{BootReport, Endpoints, boot_while};
use bootstorm::client::{Command, Config, Kind, Patience, Relay};
use bootstorm::wire::{MacAddr, Uuid};
use labkit::{BRIDGE, FULL, Firmware, Machine, MachineSpec, Namespace, Net, PROXY, Process, run, tool};
use serde_json::Value;

use crate::server::{SOON, Site, binary};

/// A server on loopback, as the demonstration has one, with ports of its own.
struct Local {
    site: Site,
    process: Process,
    dhcp: u16,
    boot_server: u16,
    tftp: u16,
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.local_addr().expect("an address").port()
}

fn free_tcp_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

impl Local {
    fn start(policy: &str) -> Self {
        let (dhcp, boot_server) = (free_port(), free_port());
        // The sandbox holds the server to the TCP ports that its configuration names.
        let http = free_tcp_port();
        let rest = format!(
            "[dhcp]\nmode = \"full\"\nport = {dhcp}\nboot_server_port = {boot_server}\n\
             [[dhcp.subnet]]\nnetwork = \"127.0.0.0/8\"\nrange = \"127.0.1.10-127.0.1.250\"\nnext_server = \"127.0.0.1\"\n\
             [tftp]\nlisten = [\"127.0.0.1:0\"]\n[http]\nlisten = [\"127.0.0.1:{http}\"]\n{policy}[admin]\nlisten = \"\"\n"
        );
        let site = Site::new("lo", "auto", &rest);
        site.add_linux();
        let (process, ready) = serve(&site);
        let word = |key: &str| {
            let found = ready.split_whitespace().find_map(|word| word.strip_prefix(key));
            let port =
                found.and_then(|address| address.rsplit(':').next()).and_then(|port| port.parse().ok());
            port.unwrap_or_else(|| panic!("no {key} in {ready}"))
        };
        let tftp = word("tftp=");
        Self { site, process, dhcp, boot_server, tftp }
    }

    /// Boots a machine until `may` refuses one of its commands.
    fn boot(&self, kind: Kind, number: u8, may: &dyn Fn(&Command) -> bool) -> BootReport {
        let relay = Relay { giaddr: Ipv4Addr::LOCALHOST, circuit: vec![number] };
        let endpoints = Endpoints {
            server: Ipv4Addr::LOCALHOST,
            dhcp: self.dhcp,
            boot_server: self.boot_server,
            tftp: self.tftp,
            relay,
        };
        let mut uuid = [0x42; 16];
        uuid[15] = number;
        let config = Config {
            kind,
            mac: MacAddr([0x52, 0x54, 0, 0, 7, number]),
            uuid: Uuid(uuid),
            serial: format!("EXPLAIN{number}"),
            patience: Patience::quick(),
            seed: number.into(),
        };
        boot_while(config, &endpoints, SOON, &|_| {}, may).expect("sockets")
    }

    /// The last boot as `explain --json` tells it, once `rule` speaks.
    fn explained(&self, who: &str, rule: &str) -> Value {
        let until = Instant::now() + SOON;
        loop {
            let output = self.site.command(&["explain", who, "--last", "1", "--json"]);
            let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let boot = document["boots"][0].clone();
            if boot["verdict"]["rule"] == rule {
                return boot;
            }
            assert!(Instant::now() < until, "{rule} is not said: {document:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn serve(site: &Site) -> (Process, String) {
    let mut command = Program::new(binary());
    command.args(["serve", "--config"]).arg(site.config());
    let mut process = Process::spawn("bootstorm", &mut command, &site.dir.join("server.log"));
    let ready = process.wait_for("bootstorm ready", SOON);
    (process, ready)
}

fn mac(number: u8) -> String {
    format!("52:54:00:00:07:{number:02x}")
}

/// Refuses the command numbered so, from 0, among those that `of` counts.
fn until(count: u32, of: fn(&Command) -> bool) -> impl Fn(&Command) -> bool {
    let seen = Cell::new(0);
    move |command| {
        if of(command) {
            seen.set(seen.get() + 1);
        }
        seen.get() <= count
    }
}

fn is_dhcp(command: &Command) -> bool {
    matches!(command, Command::Dhcp { .. })
}

fn is_tftp(command: &Command) -> bool {
    matches!(command, Command::Tftp { .. })
}

fn is_http(command: &Command) -> bool {
    matches!(command, Command::Http { .. })
}

fn verdict(boot: &Value, key: &str) -> String {
    boot["verdict"][key].as_str().unwrap_or_else(|| panic!("no {key} in {boot:#}")).to_owned()
}

#[test]
fn a_machine_that_stops_anywhere_is_told_from_the_others() {
    let mut local = Local::start("");
    for number in 1..=9 {
        local.site.ask(&["job", "add", "tiny", "--mac", &mac(number)]);
    }
    // Machine, what it is, where it is cut off, the rule, a word of its sentence, the stage.
    let stops: [(u8, Kind, Box<dyn Fn(&Command) -> bool>, &str, &str, &str); 7] = [
        (1, Kind::Bios, Box::new(until(1, is_dhcp)), "offer-not-taken", "undionly.kpxe", "dhcp"),
        (2, Kind::Bios, Box::new(until(0, is_tftp)), "address-no-loader", "never asked for it", "loader"),
        (3, Kind::Uefi, Box::new(until(2, is_tftp)), "loader-under-way", "snponly.efi", "loader"),
        (
            4,
            Kind::Uefi,
            Box::new(until(2, is_dhcp)),
            "loader-no-script",
            "fetched the loader snponly.efi",
            "loader",
        ),
        (5, Kind::Uefi, Box::new(until(0, is_http)), "ipxe-no-script", "never did", "script"),
        (6, Kind::Ipxe, Box::new(until(1, is_http)), "script-no-image", "image tiny", "image"),
        (7, Kind::Ipxe, Box::new(until(2, is_http)), "image-in-part", "vmlinuz", "image"),
    ];
    for (number, kind, may, rule, word, stage) in &stops {
        let report = local.boot(*kind, *number, may);
        assert_eq!(report.outcome, "cut off", "{report:?}");
        let boot = local.explained(&mac(*number), rule);
        let sentence = verdict(&boot, "sentence");
        assert!(sentence.contains(word), "{rule}: {sentence}");
        assert_eq!(verdict(&boot, "stage"), *stage);
        assert!(!verdict(&boot, "next").is_empty());
        let text = local.site.ask(&["explain", &mac(*number)]);
        assert!(text.contains(&sentence[sentence.len() - 20..]) && text.contains("Next: "), "{text}");
    }
    // One that asks for a name nobody has, from where it was seen.
    let address =
        local.explained(&mac(2), "address-no-loader")["address"].as_str().expect("an address").to_owned();
    let socket = UdpSocket::bind((address.as_str(), 0)).expect("the machine's address is ours on loopback");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    socket.send_to(b"\0\x01pxelinux.cfg/default\0octet\0", ("127.0.0.1", local.tftp)).expect("a request");
    let mut answer = [0; 100];
    let len = socket.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..4], [0, 5, 0, 1], "{:?}", &answer[..len]);
    let boot = local.explained(&mac(2), "missing-file");
    assert!(verdict(&boot, "sentence").contains("pxelinux.cfg/default"), "{boot:#}");
    assert!(verdict(&boot, "sentence").contains("undionly.kpxe"), "what it was offered: {boot:#}");

    // One that has no job, asked who it is, and never said.
    local.boot(Kind::Ipxe, 20, &until(1, is_http));
    local.explained(&mac(20), "identity-not-told");
    // And one that goes on to the menu.
    local.boot(Kind::Ipxe, 21, &until(2, is_http));
    local.explained(&mac(21), "menu");

    // A whole boot, by every name, then the interlock.
    let report = local.boot(Kind::Uefi, 8, &|_| true);
    assert!(report.booted, "{report:?}");
    for who in ["52-54-00-00-07-08", "525400000708", "42424242-4242-4242-4242-424242424208", "j8"] {
        let boot = local.explained(who, "delivered-unconfirmed");
        assert_eq!(boot["mac"], mac(8), "{who}");
        assert!(verdict(&boot, "sentence").contains("may have started"), "{boot:#}");
    }
    local.boot(Kind::Uefi, 8, &|_| true);
    let boot = local.explained(&mac(8), "had-its-job");
    assert!(verdict(&boot, "sentence").contains("j8"), "{boot:#}");
    let both = local.site.ask(&["explain", &mac(8), "--last", "2"]);
    assert!(both.matches("Next: ").count() == 2, "{both}");

    // Under a good token for a file that is not there; the token is taken from the script.
    let script = get(&local, &format!("/ipxe?mac={}&platform=efi&buildarch=x86_64", mac(9)));
    let at = script.find("/s/").unwrap_or_else(|| panic!("no token in {script}"));
    let token = &script[at + 3..at + 67];
    assert!(get(&local, &format!("/s/{token}/images/tiny/no.img")).starts_with("HTTP/1.1 404"));
    let boot = local.explained(&mac(9), "image-missing-file");
    assert!(verdict(&boot, "sentence").contains("tiny/no.img"), "{boot:#}");
    assert!(!local.site.ask(&["explain", &mac(9), "--json"]).contains(token), "no token is shown");

    // Never seen, nobody, and everybody.
    local.site.ask(&["job", "add", "tiny", "--mac", &mac(99)]);
    let never = local.site.command(&["explain", &mac(99)]);
    let text = String::from_utf8_lossy(&never.stdout).into_owned();
    assert_eq!(never.status.code(), Some(1), "{text}");
    assert!(text.contains("although job j10 has waited") && text.contains("PXE-E61"), "{text}");
    assert_eq!(local.site.command(&["explain", "nobody"]).status.code(), Some(2));
    let all = local.site.ask(&["explain"]);
    assert!(all.contains("LAST BOOT") && all.contains(&mac(8)), "{all}");

    // What was said is said again after a restart, and while no server runs.
    let before = rules(&local.site, &mac(8));
    local.process.signal("TERM");
    assert!(local.process.wait(SOON).success());
    let offline = local.site.command(&["explain", &mac(8), "--last", "2"]);
    assert!(String::from_utf8_lossy(&offline.stderr).contains("no server runs"), "{offline:?}");
    assert!(offline.status.success());
    assert_eq!(rules(&local.site, &mac(8)), before);
    assert_eq!(
        rules(&local.site, &mac(4)),
        ["loader-no-script"],
        "a machine with a job is kept whatever stage it reached"
    );
    let (mut process, _) = serve(&local.site);
    assert_eq!(rules(&local.site, &mac(8)), before);
    process.signal("TERM");
    assert!(process.wait(SOON).success());
}

fn rules(site: &Site, who: &str) -> Vec<String> {
    let output = site.command(&["explain", who, "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let boots = document["boots"].as_array().cloned().unwrap_or_default();
    boots.iter().map(|boot| verdict(boot, "rule")).collect()
}

/// One answer, head and all.
fn get(local: &Local, path: &str) -> String {
    let log = local.process.output();
    let port =
        log.split("http=127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a port");
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the server");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: iPXE/1.21.1\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn what_is_stored_survives_a_kill() {
    let mut local = Local::start("");
    local.site.ask(&["job", "add", "tiny", "--mac", &mac(1)]);
    assert!(local.boot(Kind::Uefi, 1, &|_| true).booted);
    local.explained(&mac(1), "delivered-unconfirmed");
    // Stored within some seconds; a copy of the store shows it, as a kill would leave it.
    let store = local.site.dir.join("state/bootstorm.db-wal");
    let until = Instant::now() + SOON;
    while !fs::read(&store).is_ok_and(|log| log.windows(17).any(|window| window == b"\"outcome\":\"runnin")) {
        assert!(Instant::now() < until, "no timeline is stored");
        std::thread::sleep(Duration::from_millis(50));
    }
    local.process.signal("KILL");
    local.process.wait(SOON);
    assert_eq!(rules(&local.site, &mac(1)), ["delivered-unconfirmed"]);
}

#[test]
fn a_boots_packets_open_in_wireshark_and_hold_no_token() {
    let local = Local::start("");
    local.site.ask(&["job", "add", "tiny", "--mac", &mac(1)]);
    assert!(local.boot(Kind::Bios, 1, &|_| true).booted);
    local.explained(&mac(1), "delivered-unconfirmed");
    let file = local.site.dir.join("boot.pcapng");
    local.site.ask(&["explain", &mac(1), "--pcap", file.to_str().expect("a path")]);
    let port = local.process.output();
    let port =
        port.split("http=127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a port");
    let tshark = |fields: &str, filter: &str| {
        let mut command = Program::new(tool("tshark", "tshark"));
        command.args(["-n", "-d", &format!("tcp.port=={port},http"), "-Y", filter, "-T", "fields"]);
        command.args(fields.split(' ').flat_map(|field| ["-e", field])).arg("-r").arg(&file);
        // It says on the other channel that root is dangerous.
        let output = command.output().expect("tshark runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let dhcp = tshark("dhcp.option.dhcp dhcp.hw.mac_addr", "dhcp");
    let kinds: Vec<&str> = dhcp.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(kinds, ["1", "2", "3", "5", "1", "2", "3", "5"], "firmware's exchange and iPXE's: {dhcp}");
    assert!(dhcp.lines().all(|line| line.ends_with(&mac(1))), "{dhcp}");
    let tftp = tshark("tftp.opcode tftp.source_file", "tftp");
    assert!(
        tftp.contains("undionly.kpxe") && tftp.lines().any(|line| line.starts_with('6')),
        "RRQ and OACK: {tftp}"
    );
    let asked = tshark("http.request.uri", "http.request");
    assert_eq!(asked.lines().count(), 3, "script, kernel, initrd: {asked}");
    let stars = "*".repeat(64);
    assert!(
        asked.contains("/ipxe?mac=") && asked.contains(&format!("/s/{stars}/images/tiny/vmlinuz")),
        "{asked}"
    );
    let answered = tshark("http.response.code http.content_length_header", "http.response");
    assert_eq!(answered.lines().filter(|line| line.starts_with("200")).count(), 3, "{answered}");
    let broken =
        tshark("frame.number", "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0");
    assert!(broken.trim().is_empty(), "malformed: {broken}");
    let log = local.process.output();
    assert!(!log.contains("panicked"), "{log}");
    let nothing = local.site.command(&["explain", &mac(77), "--pcap", file.to_str().expect("a path")]);
    assert_eq!(nothing.status.code(), Some(1));
}

#[test]
fn a_policy_of_silence_is_told_and_a_machine_that_waits_for_approval() {
    let local = Local::start("[policy]\nunknown = \"silent\"\n");
    let report = local.boot(Kind::Bios, 1, &until(2, is_dhcp));
    assert!(!report.booted);
    let boot = local.explained(&mac(1), "left-alone");
    assert!(verdict(&boot, "sentence").contains("silence"), "{boot:#}");
    drop(local);
    let local = Local::start("[policy]\nunknown = \"pending\"\n");
    local.boot(Kind::Ipxe, 1, &until(2, is_http));
    let boot = local.explained(&mac(1), "pending");
    assert!(verdict(&boot, "next").contains("machine approve"), "{boot:#}");
}

/// A BIOS ROM beside another DHCP server, up to its REQUEST, by hand: broadcasts on a bridge, as a raw socket hears them.
const ROM: &str = r#"
import socket, struct, sys
mac = bytes.fromhex("525400000733")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
s.bind(("", 68)); s.settimeout(20)
def send(kind, more=b""):
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0x8000) + bytes(16) + mac + bytes(10) + bytes(192)
    pxe = bytes([53, 1, kind]) + b"\x3c\x20PXEClient:Arch:00000:UNDI:002001" + b"\x5d\x02\x00\x00" + b"\x5e\x03\x01\x02\x01"
    s.sendto(head + b"\x63\x82\x53\x63" + pxe + more + b"\xff", ("255.255.255.255", 67))
def options(packet):
    at, found = 240, {}
    while packet[at] != 255:
        if packet[at] == 0: at += 1; continue
        found[packet[at]] = packet[at + 2:at + 2 + packet[at + 1]]; at += 2 + packet[at + 1]
    return found
send(1)
servers = {}
while len(servers) < 2:
    packet = s.recv(2000)
    servers[socket.inet_ntoa(options(packet)[54])] = packet[16:20]
lease = servers["10.77.0.2"]
send(3, b"\x32\x04" + lease + b"\x36\x04" + socket.inet_aton("10.77.0.2"))
while options(s.recv(2000))[53] != b"\x05": pass
print("address", socket.inet_ntoa(lease))
"#;

/// dnsmasq at 10.77.0.2 that names a boot file of its own.
fn rival(net: &mut Net, folder: &Path) {
    let other = Namespace::new();
    net.server.wire("to-dns", &other, "eth0");
    net.server.ip(&format!("link set to-dns master {BRIDGE}"));
    other.ip("addr add 10.77.0.2/24 dev eth0");
    let mut command = other.command(tool("dnsmasq", "dnsmasq-base"));
    command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--user=root"]);
    command.args(["--interface=eth0", "--bind-interfaces", "--dhcp-range=10.77.0.100,10.77.0.200,1h"]);
    command.arg("--dhcp-boot=pxelinux.0");
    command.arg(format!("--dhcp-leasefile={}", folder.join("dnsmasq.leases").display()));
    let mut dnsmasq = Process::spawn("dnsmasq", &mut command, &folder.join("dnsmasq.log"));
    dnsmasq.wait_for("DHCP, IP range", SOON);
    net.helpers.push(dnsmasq);
    net.other = Some(other);
}

#[test]
fn another_servers_boot_file_is_named_with_its_address() {
    let folder = labkit::TempDir::new("net");
    let mut net = Net::flat();
    rival(&mut net, &folder.0);
    let site = Site::new(net.interface, "auto", PROXY);
    site.add_linux();
    let server = site.serve(&net);
    site.ask(&["job", "add", "tiny", "--mac", "52:54:00:00:07:33"]);
    let client = Namespace::new();
    net.server.wire("plug0", &client, "eth0");
    net.server.ip(&format!("link set plug0 master {BRIDGE}"));
    client.ip("route add default dev eth0");
    let said = run(client.command(tool("python3", "python3")).arg("-c").arg(ROM));
    assert!(said.contains("address 10.77.0."), "{said}");
    let until = Instant::now() + SOON;
    let text = loop {
        let text = site.ask(&["explain", "52:54:00:00:07:33"]);
        if text.contains("gave it its address") || Instant::now() > until {
            break text;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    for word in [
        "another server, 10.77.0.2, offered an address and a boot, pxelinux.0",
        "got our offer, never asked for the loader: another server's option 67 won, 10.77.0.2 answered",
        "PXE-E53",
        "Next: take the boot file (options 66, 67 and the next server) out of the DHCP server 10.77.0.2",
    ] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    server.stop();
}

/// An emulated boot takes 25 to 45 s on an idle machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts a machine, waits for what its screen says, and returns what is explained of it.
fn stopped(net: &Net, site: &Site, spec: &MachineSpec, screen: &str, rule: &str) -> String {
    let machine = Machine::start(spec, net.machines(), BRIDGE, &site.dir.0);
    // A console of eighty columns breaks lines anywhere.
    let patience = Instant::now() + PATIENCE;
    while !machine.serial().replace(['\r', '\n'], "").contains(screen) {
        assert!(Instant::now() < patience, "no {screen:?} in\n{}", machine.serial());
        std::thread::sleep(Duration::from_millis(100));
    }
    let until = Instant::now() + SOON;
    loop {
        let output = site.command(&["explain", &spec.mac, "--last", "1", "--json"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if document["boots"][0]["verdict"]["rule"] == rule {
            return site.ask(&["explain", &spec.mac, "--last", "1"]);
        }
        assert!(Instant::now() < until, "{rule} is not said: {document:#}\n{}", machine.serial());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn bios(number: u8) -> MachineSpec {
    let mut spec = MachineSpec::new(Firmware::Bios, number);
    spec.screen_on_serial = true;
    spec
}

/// Real iPXE says on its screen what `explain` says that it does.
#[test]
fn a_file_that_is_missing_shows_on_the_screen_as_explain_says() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let folder = site.dir.join("images/own");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(
        folder.join("boot.ipxe.tmpl"),
        "#!ipxe\nkernel {{files}}/nowhere || goto bootstorm_local\nboot\n",
    )
    .expect("a script");
    let server = site.serve(&net);
    let spec = bios(0x21);
    site.ask(&["job", "add", "own", "--mac", &spec.mac]);
    let text = stopped(&net, &site, &spec, "ipxe.org/2d0c61", "image-missing-file");
    for word in [
        "own/nowhere",
        "404",
        "ipxe.org/2d0c613b",
        "Next: put the file, or the image if that is gone, back into its folder",
    ] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    server.stop();
}

/// The stages where something stands between, each with a firewall rule or a wrong server in a machine's way.
#[test]
#[ignore = "minutes of emulation: tools/test --all runs it"]
fn firmware_that_is_cut_off_is_explained_at_every_stage() {
    let block = |net: &Net, rule: &str| {
        let rules = format!(
            "table inet plug {{ chain in {{ type filter hook input priority 0; {rule} drop; }}; }}\n"
        );
        let file =
            std::env::temp_dir().join(format!("bootstorm-nft-{}-{}", std::process::id(), labkit::unique()));
        fs::write(&file, rules).expect("a file");
        run(net.server.command(tool("nft", "nftables")).arg("-f").arg(&file));
        fs::remove_file(&file).expect("the file");
    };
    // HTTP is blocked: iPXE in the ROM gets its URL and cannot ask.
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    site.add_linux();
    let server = site.serve(&net);
    block(&net, "tcp dport 4433");
    let text = stopped(&net, &site, &bios(0x22), "ipxe.org/4c0a6035", "ipxe-no-script");
    assert!(text.contains("TCP 4433") && text.contains("ipxe.org/4c0a6035"), "{text}");
    server.stop();

    // TFTP is blocked: UEFI has its address and cannot fetch the loader.
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", &format!("{FULL}[tftp]\nframes = \"off\"\n"));
    site.add_linux();
    let server = site.serve(&net);
    block(&net, "udp dport 69");
    let text = stopped(&net, &site, &MachineSpec::new(Firmware::Uefi, 0x23), "PXE-E18", "address-no-loader");
    assert!(text.contains("UDP 69") && text.contains("PXE-E18"), "{text}");
    server.stop();

    // A loader that is none: it is fetched, and nothing comes after it.
    let net = Net::flat();
    let rest = format!("{FULL}[loaders]\ndirs = [\"loaders\"]\n");
    let site = Site::new(net.interface, "auto", &rest);
    let loaders = site.dir.join("loaders");
    fs::create_dir_all(&loaders).expect("a folder");
    fs::write(loaders.join("snponly.efi"), [0x5a; 20_000]).expect("a loader");
    let config = fs::read_to_string(site.config()).expect("the configuration");
    fs::write(site.config(), config.replace("\"loaders\"", &format!("\"{}\"", loaders.display())))
        .expect("written");
    let server = site.serve(&net);
    let text = stopped(
        &net,
        &site,
        &MachineSpec::new(Firmware::Uefi, 0x24),
        "NBP file downloaded successfully",
        "loader-no-script",
    );
    assert!(text.contains("snponly.efi") && text.contains("Secure Boot"), "{text}");
    server.stop();

    // Nobody gives addresses: a boot offer alone.
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", PROXY);
    site.add_linux();
    let server = site.serve(&net);
    let text = stopped(&net, &site, &bios(0x25), "ipxe.org/040ee119", "no-lease");
    assert!(text.contains("no DHCP server was heard"), "{text}");
    server.stop();

    // Another server's boot file wins: iPXE takes it from who gave the address.
    let folder = labkit::TempDir::new("net");
    let mut net = Net::flat();
    rival(&mut net, &folder.0);
    let site = Site::new(net.interface, "auto", PROXY);
    site.add_linux();
    let server = site.serve(&net);
    let text = stopped(&net, &site, &bios(0x26), "pxelinux.0", "ipxe-no-script");
    assert!(text.contains("take the boot file out of the DHCP server 10.77.0.2"), "{text}");
    server.stop();
}

#[test]
fn alarms_are_raised_once_and_shown_everywhere() {
    let local = Local::start("");
    // Expected within no time at all would be an alarm at once; here machines that stop at the same point.
    local.site.ask(&["job", "add", "tiny", "--mac", "52:54:00:00:07:02"]);
    for number in 1..=3 {
        for _ in 0..5 {
            local.boot(Kind::Bios, number, &until(0, is_tftp));
        }
    }
    let until = Instant::now() + SOON;
    let alarms = loop {
        let text = local.site.ask(&["explain", "--json"]);
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let alarms = document["alarms"].as_array().cloned().unwrap_or_default();
        if alarms.len() >= 3 {
            break alarms;
        }
        assert!(Instant::now() < until, "{document:#}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(alarms.iter().all(|alarm| alarm["kind"] == "loop"), "{alarms:?}");
    let text = local.site.ask(&["explain"]);
    assert!(text.contains("alarm loop: 52:54:00:00:07:01 has started 5 times"), "{text}");
    let log = local.process.output();
    assert_eq!(log.matches("52:54:00:00:07:02 has started 5 times").count(), 1, "{log}");
    // Anybody can start over and over: of who is to boot nothing it is listed, and below what the log shows as a rule.
    let warned = |number: u8| {
        let sentence = format!("52:54:00:00:07:0{number} has started 5 times");
        log.lines().any(|line| line.contains(" WARN ") && line.contains(&sentence))
    };
    assert_eq!([1, 2, 3].map(warned), [false, true, false], "{log}");
}

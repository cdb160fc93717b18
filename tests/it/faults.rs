//! Faults planted on purpose, each in a network of its own: `doctor` finds every one, calls it by its name, and says what
//! `docs/TROUBLESHOOTING.md` shows, word for word. A set-up that works has none.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use bootstorm::files::wim_write::{WimSpec, create_wim};
use labkit::{Namespace, Process, TempDir, run, tool};
use serde_json::Value;

use crate::server::{BRIDGE, FULL, Net, PROXY, SOON, Site, binary};

/// What a healthy boot may take from the first packet to the last byte.
const HEALTHY_WITHIN: Duration = Duration::from_secs(10);

/// `doctor` in a namespace, with the site's configuration.
fn doctor(place: &Namespace, site: &Site, words: &[&str]) -> Output {
    let mut command = place.command(binary());
    command.arg("doctor").args(words).arg("--config").arg(site.config());
    command.output().expect("doctor runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What is said of a fault, without what differs from run to run.
fn block(name: &str, site: &Site, said: &str) -> Option<String> {
    let mut lines = said.lines().skip_while(|line| !line.starts_with(&format!("wrong  {name}: ")));
    let mut found = vec![lines.next()?];
    found.extend(lines.take_while(|line| line.starts_with("       ")));
    let folder = site.dir.0.display().to_string();
    let plain = found.join("\n").replace(&folder, "/var/lib/bootstorm");
    // Which of two servers is the faster one is not the same every time.
    let plain = plain.replace("takes ours this time", "takes it");
    let mut out = String::new();
    let mut rest = plain.as_str();
    // A process has another number every time.
    while let Some((before, after)) = rest.split_once("process ") {
        out.push_str(before);
        out.push_str("process N");
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out.push_str(rest);
    Some(out)
}

/// The fault is found, the command fails for it, and the document has it as it is said.
fn finds(name: &str, site: &Site, output: &Output) {
    let said = text(output);
    let Some(block) = block(name, site, &said) else {
        panic!("{name} was not found ({}):\n{said}", output.status);
    };
    assert_eq!(output.status.code(), Some(1), "{said}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/TROUBLESHOOTING.md");
    let document = fs::read_to_string(path).expect("the document is there");
    assert!(
        document.contains(&block),
        "docs/TROUBLESHOOTING.md does not show this:\n{block}\n--- all:\n{said}"
    );
}

/// Nothing but this one is wrong.
fn finds_only(name: &str, site: &Site, output: &Output) {
    finds(name, site, output);
    let said = text(output);
    let wrong = said.lines().filter(|line| line.starts_with("wrong  ")).count();
    assert_eq!(wrong, 1, "{said}");
}

/// A site with a small Linux image, which no test here starts.
fn site(interface: &str, rest: &str) -> Site {
    let site = Site::new(interface, "auto", rest);
    let folder = site.dir.join("images/tiny");
    fs::create_dir_all(&folder).expect("a folder");
    let mut kernel = vec![0; 300_000];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    kernel[0x236] = 1;
    for (at, byte) in kernel.iter_mut().enumerate().skip(4096) {
        *byte = ((at * 31) >> 5) as u8;
    }
    fs::write(folder.join("vmlinuz"), kernel).expect("a kernel");
    fs::write(folder.join("initrd.gz"), vec![7; 70_000]).expect("an initrd");
    site
}

/// A machine of its own on the server's bridge.
fn plugged(net: &Net) -> Namespace {
    let client = Namespace::new();
    net.server.wire("plug0", &client, "eth0");
    net.server.ip(&format!("link set plug0 master {BRIDGE}"));
    client
}

/// A machine of this kind runs into the fault as well, and `explain` calls what stopped it by this rule, in these words.
fn explained(net: &Net, site: &Site, kind: &str, rule: &str, words: &[&str]) {
    let machine = Namespace::new();
    let port = format!("to-m{}", labkit::unique());
    net.server.wire(&port, &machine, "eth0");
    net.server.ip(&format!("link set {port} master {BRIDGE}"));
    machine.ip("addr add 10.77.0.250/24 dev eth0");
    let mut storm = machine.command(binary());
    storm.args(["bench", "storm", "--interface", "eth0", "--machines", "1", "--kind", kind]);
    // That it does not boot is the point.
    storm.args(["--impatient", "--patience", "5s"]).output().expect("a machine boots");
    let deadline = Instant::now() + SOON;
    loop {
        let mut command = net.server.command(binary());
        let output = command.args(["explain", "--json", "--config"]).arg(site.config()).output();
        let document = output.expect("explain runs").stdout;
        let document: Value = serde_json::from_slice(&document).unwrap_or_default();
        let list = |key: &str| document["recent"][key].as_array().cloned().unwrap_or_default();
        // Load generators' machines have addresses of their own kind; doctor's visits are no machines.
        let of_machine = |boot: &Value| boot["mac"].as_str().is_some_and(|mac| mac.starts_with("02:b0:"));
        let mut said = list("boots").into_iter().zip(list("verdicts"));
        let verdict = said.find(|(boot, _)| of_machine(boot)).map(|(_, verdict)| verdict).unwrap_or_default();
        let sentence = verdict["sentence"].as_str().unwrap_or_default();
        if verdict["rule"] == rule && words.iter().all(|word| sentence.contains(word)) {
            return;
        }
        assert!(Instant::now() < deadline, "{kind}: {rule} {words:?} is not what was said: {document:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn filter(place: &Namespace, rule: &str) {
    let nft = tool("nft", "nftables");
    let rules = format!(
        "table inet planted {{ chain in {{ type filter hook input priority 0; policy accept; {rule} drop; }}\n}}"
    );
    run(place.command(nft).arg(rules));
}

/// Another DHCP server at 10.77.0.2, beside or instead of the one that gives plain leases.
fn rival(net: &Net, addr: &str, folder: &Path, args: &[&str]) -> (Namespace, Process) {
    let other = Namespace::new();
    let port = format!("to-r{}", labkit::unique());
    net.server.wire(&port, &other, "eth0");
    net.server.ip(&format!("link set {port} master {BRIDGE}"));
    other.ip(&format!("addr add {addr}/24 dev eth0"));
    let mut command = other.command(tool("dnsmasq", "dnsmasq-base"));
    command.args([
        "--no-daemon",
        "--conf-file=/dev/null",
        "--port=0",
        "--log-dhcp",
        "--user=root",
        "--no-ping",
    ]);
    command.args(["--interface=eth0", "--bind-interfaces", "--dhcp-leasefile=/dev/null"]).args(args);
    let log = folder.join(format!("rival-{}.log", labkit::unique()));
    let mut dnsmasq = Process::spawn("dnsmasq", &mut command, &log);
    dnsmasq.wait_for("DHCP, ", SOON);
    (other, dnsmasq)
}

fn job_for_everybody(net: &Net, site: &Site) {
    let mut command = net.server.command(binary());
    run(command.args(["job", "add", "tiny", "--any", "--config"]).arg(site.config()));
}

const PLAIN_LEASES: &str = "--dhcp-range=10.77.0.100,10.77.0.200,1h";

fn healthy(place: &Namespace, site: &Site, words: &[&str]) {
    let start = Instant::now();
    let output = doctor(place, site, words);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{words:?}\n{said}");
    assert!(said.contains("everything answers"), "{words:?}\n{said}");
    for word in ["wrong", "note"] {
        assert!(!said.lines().any(|line| line.starts_with(word)), "{words:?}\n{said}");
    }
    assert!(start.elapsed() < HEALTHY_WITHIN, "{words:?} took {:?}", start.elapsed());
}

#[test]
fn a_healthy_server_has_no_fault_and_keeps_nothing_of_its_visitors() {
    let net = Net::flat();
    let client = plugged(&net);
    // One address: a visitor that kept it would leave nothing for the next one.
    let config = FULL.replace("10.77.0.100-10.77.0.200", "10.77.0.100-10.77.0.100");
    let site = site(net.interface, &config);
    let server = site.serve(&net);
    let standing = doctor(&net.server, &site, &[]);
    assert_eq!(standing.status.code(), Some(0), "{}", text(&standing));
    assert_eq!(text(&standing).lines().count(), 1, "{}", text(&standing));
    for kind in ["bios", "ipxe", "uefi", "http"] {
        healthy(&net.server, &site, &["--as", kind]);
    }
    healthy(&client, &site, &["--as", "uefi", "--interface", "eth0", "--server", "10.77.0.1"]);
    // The wire's own interface is the only one there, and whoever answers like this server is it.
    healthy(&client, &site, &["--as", "bios"]);
    assert!(site.ask(&["machine", "list"]).contains("no machines on record"));
    assert!(!site.ask(&["job", "list"]).contains("j1"));
    let json = doctor(&net.server, &site, &["--as", "bios", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["ok"], true, "{json}");
    assert!(json["boot"]["hops"].as_array().is_some_and(|hops| hops.len() > 6), "{json}");
    assert_eq!(json["boot"]["answerers"][0]["ours"], true);
    server.stop();
}

#[test]
fn a_rule_that_covers_every_machine_is_not_moved_by_a_visitor() {
    let net = Net::flat();
    let site = site(net.interface, FULL);
    let server = site.serve(&net);
    site.ask(&["job", "add", "tiny", "--any"]);
    healthy(&net.server, &site, &["--as", "bios"]);
    let jobs = site.ask(&["job", "list", "--json"]);
    assert!(jobs.contains("armed") && !jobs.contains("offered") && !jobs.contains("fetching"), "{jobs}");
    assert!(site.ask(&["machine", "list"]).contains("no machines on record"));
    server.stop();
}

#[test]
fn beside_another_dhcp_server_all_is_well_too() {
    let net = Net::flat();
    let site = site(net.interface, PROXY);
    let _dnsmasq = rival(&net, "10.77.0.2", &site.dir.0, &[PLAIN_LEASES]);
    let server = site.serve(&net);
    for kind in ["bios", "uefi", "http", "ipxe"] {
        healthy(&net.server, &site, &["--as", kind]);
    }
    server.stop();
}

#[test]
fn a_second_pxe_answerer_is_found() {
    let net = Net::flat();
    let site = site(net.interface, PROXY);
    let _leases = rival(&net, "10.77.0.2", &site.dir.0, &[PLAIN_LEASES]);
    let _second = rival(
        &net,
        "10.77.0.3",
        &site.dir.0,
        &["--dhcp-range=10.77.0.0,proxy", "--pxe-service=x86PC,Other,pxelinux"],
    );
    let server = site.serve(&net);
    finds_only("second-pxe-answerer", &site, &doctor(&net.server, &site, &["--as", "bios"]));
    server.stop();
}

#[test]
fn option_60_without_43_is_found() {
    let net = Net::flat();
    let site = site(net.interface, PROXY);
    let _other = rival(&net, "10.77.0.2", &site.dir.0, &[PLAIN_LEASES, "--dhcp-option-force=60,PXEClient"]);
    let server = site.serve(&net);
    finds_only("option-60-without-43", &site, &doctor(&net.server, &site, &["--as", "uefi"]));
    explained(&net, &site, "uefi", "sent-to-4011-of-another", &["10.77.0.2", "option 60", "4011"]);
    server.stop();
}

#[test]
fn a_filename_in_the_lease_is_found() {
    let net = Net::flat();
    let site = site(net.interface, PROXY);
    let _other = rival(&net, "10.77.0.2", &site.dir.0, &[PLAIN_LEASES, "--dhcp-boot=grub.efi"]);
    let server = site.serve(&net);
    finds_only("filename-in-lease", &site, &doctor(&net.server, &site, &["--as", "ipxe"]));
    // With a job it is offered its script at once, whoever else was heard.
    job_for_everybody(&net, &site);
    explained(&net, &site, "ipxe", "ipxe-no-script", &["10.77.0.2", "grub.efi"]);
    server.stop();
}

#[test]
fn nobody_who_gives_addresses_is_found() {
    let net = Net::flat();
    let site = site(net.interface, PROXY);
    let server = site.serve(&net);
    finds_only("no-address", &site, &doctor(&net.server, &site, &["--as", "bios"]));
    explained(&net, &site, "bios", "no-lease", &["no DHCP server was heard giving it an address"]);
    server.stop();
}

#[test]
fn each_blocked_port_is_found() {
    for (rule, name, kind) in [
        ("udp dport 4011", "4011-blocked", "bios"),
        ("udp dport 69", "tftp-blocked", "bios"),
        ("tcp dport 4433", "http-blocked", "ipxe"),
    ] {
        let net = Net::flat();
        let client = plugged(&net);
        let site = site(net.interface, FULL);
        // Before the server starts: it then serves TFTP by sockets, which the filter sees.
        filter(&net.server, rule);
        let server = site.serve(&net);
        for (place, more) in [(&net.server, None), (&client, Some(["--interface", "eth0"]))] {
            let words = ["--as", kind].into_iter().chain(more.into_iter().flatten()).collect::<Vec<_>>();
            finds_only(name, &site, &doctor(place, &site, &words));
        }
        match name {
            "tftp-blocked" => explained(&net, &site, kind, "address-no-loader", &["never asked for it"]),
            "http-blocked" => explained(&net, &site, kind, "ipxe-no-script", &["never did"]),
            // A machine that takes the offer as it is does not notice.
            _ => {}
        }
        server.stop();
    }
}

#[test]
fn nobody_on_the_network_is_found() {
    let net = Net::flat();
    let client = plugged(&net);
    let site = site(net.interface, FULL);
    finds_only("dhcp-silent", &site, &doctor(&client, &site, &["--as", "bios", "--interface", "eth0"]));
}

#[test]
fn a_wrong_next_server_is_found() {
    let net = Net::flat();
    let site = site(net.interface, &format!("{FULL}next_server = \"10.77.0.99\"\n"));
    let server = site.serve(&net);
    finds_only("wrong-next-server", &site, &doctor(&net.server, &site, &["--as", "bios"]));
    explained(&net, &site, "bios", "address-no-loader", &["never asked for it"]);
    server.stop();
}

/// A folder of loaders with what `change` makes of Debian's.
fn own_loaders(change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> TempDir {
    let folder = TempDir::new("loaders");
    for name in ["undionly.kpxe", "snponly.efi"] {
        let bytes = fs::read(Path::new("/usr/lib/ipxe").join(name)).unwrap_or_else(|error| {
            panic!("/usr/lib/ipxe/{name}: {error}: apt-get install --no-install-recommends ipxe")
        });
        if let Some(bytes) = change(name, bytes) {
            fs::write(folder.join(name), bytes).expect("a loader");
        }
    }
    folder
}

fn site_with_loaders(interface: &str, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Site {
    let made = own_loaders(change);
    let site = site(interface, "");
    fs::rename(&made.0, site.dir.join("loaders")).expect("the loaders can be moved");
    let config = fs::read_to_string(site.config()).expect("the configuration");
    let dirs = format!("[loaders]\ndirs = [\"{}\"]\n", site.dir.join("loaders").display());
    fs::write(site.config(), format!("{config}{FULL}{dirs}")).expect("the configuration");
    site
}

#[test]
fn a_missing_loader_is_found() {
    let net = Net::flat();
    let site = site_with_loaders(net.interface, |name, bytes| (name != "snponly.efi").then_some(bytes));
    let server = site.serve(&net);
    finds_only("missing-loader", &site, &doctor(&net.server, &site, &[]));
    finds_only("missing-loader", &site, &doctor(&net.server, &site, &["--as", "uefi"]));
    healthy_but_for("missing-loader", &doctor(&net.server, &site, &["--as", "bios"]));
    explained(&net, &site, "uefi", "not-answered", &["no loader for uefi-x64"]);
    server.stop();
}

/// Machines of another kind boot all the same.
fn healthy_but_for(name: &str, output: &Output) {
    let said = text(output);
    assert!(said.contains(" image ") && said.contains(&format!("wrong  {name}: ")), "{said}");
}

#[test]
fn a_loader_that_cannot_fetch_by_http_is_found() {
    let net = Net::flat();
    let site = site_with_loaders(net.interface, |name, mut bytes| {
        if name == "snponly.efi" {
            // The name of the URI scheme, by which iPXE finds who fetches it.
            let places: Vec<usize> =
                (0..bytes.len() - 5).filter(|at| bytes[*at..].starts_with(b"http\0")).collect();
            assert!(!places.is_empty(), "an iPXE with HTTP");
            places.into_iter().for_each(|at| bytes[at..at + 4].copy_from_slice(b"xxxx"));
        }
        Some(bytes)
    });
    finds_only("loader-without-http", &site, &doctor(&net.server, &site, &[]));
}

#[test]
fn an_unsigned_loader_is_found_where_machines_want_signatures() {
    let net = Net::flat();
    let site = site_with_loaders(net.interface, |_, bytes| Some(bytes));
    assert_eq!(doctor(&net.server, &site, &[]).status.code(), Some(0));
    finds_only("unsigned-loader", &site, &doctor(&net.server, &site, &["--secure-boot"]));
}

fn wim(path: &Path) {
    let spec = WimSpec {
        len: 1 << 20,
        name: "WinPE".into(),
        description: "made by a test".into(),
        seed: 1,
        created: SystemTime::UNIX_EPOCH,
        integrity: false,
    };
    create_wim(path, &spec).expect("a WIM");
}

#[test]
fn a_missing_wimboot_and_a_truncated_wim_are_found() {
    let net = Net::flat();
    let without = site(net.interface, FULL);
    fs::create_dir_all(without.dir.join("images/winpe")).expect("a folder");
    wim(&without.dir.join("images/winpe/boot.wim"));
    finds_only("missing-wimboot", &without, &doctor(&net.server, &without, &[]));

    let cut = site(net.interface, FULL);
    let folder = cut.dir.join("images/winpe");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("wimboot"), vec![0x55; 4096]).expect("a stand-in for wimboot");
    wim(&folder.join("boot.wim"));
    let file = fs::File::options().write(true).open(folder.join("boot.wim")).expect("the WIM");
    file.set_len(500_000).expect("a shorter WIM");
    // A file that was changed this moment is taken for one that is still being written.
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("an older WIM");
    // Nor may anybody have it open for writing.
    drop(file);
    finds_only("truncated-wim", &cut, &doctor(&net.server, &cut, &[]));
}

#[test]
fn a_hole_for_large_packets_is_found() {
    let net = Net::flat();
    let (switch, client) = (Namespace::new(), Namespace::new());
    net.server.wire("plug0", &switch, "up0");
    net.server.ip(&format!("link set plug0 master {BRIDGE}"));
    switch.bridge("sw", "");
    switch.wire("down0", &client, "eth0");
    switch.ip("link set up0 master sw");
    switch.ip("link set down0 master sw");
    // What is longer is dropped without a word.
    switch.ip("link set up0 mtu 1300");
    let site = site(net.interface, FULL);
    let server = site.serve(&net);
    finds_only("mtu-hole", &site, &doctor(&client, &site, &["--as", "uefi", "--interface", "eth0"]));
    server.stop();
}

const RELAYED: &str = "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/24\"\n\
                       range = \"10.77.0.100-10.77.0.200\"\nrouter = \"10.77.0.1\"\n";

#[test]
fn behind_a_relay_all_is_well_until_the_way_back_is_gone() {
    let folder = TempDir::new("relay");
    let net = Net::relayed(&folder.0);
    let site = site(net.interface, RELAYED);
    let server = site.serve(&net);
    // As a machine behind the relay, from the server; as the relay itself, which holds that address.
    healthy(&net.server, &site, &["--as", "uefi", "--relay", "10.77.0.1"]);
    let router = net.machines();
    healthy(router, &site, &["--as", "bios", "--relay", "10.77.0.1", "--server", "10.88.0.1"]);
    // And as a machine on the relay's network.
    let client = Namespace::new();
    router.wire("plug0", &client, "eth0");
    router.ip(&format!("link set plug0 master {BRIDGE}"));
    healthy(&client, &site, &["--as", "bios", "--interface", "eth0", "--server", "10.88.0.1"]);
    net.server.ip("route del 10.77.0.0/24");
    finds_only("no-route-to-relay", &site, &doctor(&net.server, &site, &["--relay", "10.77.0.1"]));
    server.stop();
}

/// Takes option 82 out of every request that is sent to its port, and sends it on.
const STRIPPER: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 6767))
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.bind(("10.88.0.2", 67))
print("ready", flush=True)
while True:
    message, _ = s.recvfrom(4096)
    kept, at = bytearray(message[:240]), 240
    while at < len(message) and message[at] != 255:
        end = at + 2 + message[at + 1] if message[at] else at + 1
        if message[at] != 82:
            kept += message[at:end]
        at = end
    out.sendto(bytes(kept) + b"\xff", ("10.88.0.1", 67))
"#;

#[test]
fn a_relay_that_drops_option_82_is_found() {
    let (server_place, middle, relay) = (Namespace::new(), Namespace::new(), Namespace::new());
    server_place.wire("eth0", &middle, "m0");
    server_place.ip("addr add 10.88.0.1/24 dev eth0");
    middle.ip("addr add 10.88.0.2/24 dev m0");
    middle.wire("m1", &relay, "up0");
    middle.ip("addr add 10.89.0.1/24 dev m1");
    relay.ip("addr add 10.89.0.2/24 dev up0");
    relay.bridge(BRIDGE, "10.77.0.1/24");
    relay.ip("route add default via 10.89.0.1");
    middle.ip("route add 10.77.0.0/24 via 10.89.0.2");
    server_place.ip("route add default via 10.88.0.2");
    run(middle.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    let rules = "table ip planted { chain pre { type nat hook prerouting priority -100; ip saddr 10.77.0.1 udp \
                 dport 67 redirect to :6767; }\n}";
    run(middle.command(tool("nft", "nftables")).arg(rules));
    let folder = TempDir::new("strip");
    let mut command = middle.command(tool("python3", "python3"));
    command.args(["-c", STRIPPER]);
    let mut stripper = Process::spawn("python3", &mut command, &folder.join("stripper.log"));
    stripper.wait_for("ready", SOON);
    let net = Net { server: server_place, router: None, other: None, interface: "eth0", helpers: Vec::new() };
    let site = site(net.interface, RELAYED);
    let server = site.serve(&net);
    let words = ["--as", "bios", "--relay", "10.77.0.1", "--server", "10.88.0.1"];
    finds_only("relay-drops-option-82", &site, &doctor(&relay, &site, &words));
    server.stop();
}

#[test]
fn a_full_pool_is_found() {
    let net = Net::flat();
    let client = plugged(&net);
    let config = FULL.replace("10.77.0.100-10.77.0.200", "10.77.0.100-10.77.0.100");
    let site = site(net.interface, &config);
    let server = site.serve(&net);
    run(client.command(tool("udhcpc", "udhcpc")).args(["-i", "eth0", "-f", "-n", "-q", "-s", "/bin/true"]));
    finds_only("full-pool", &site, &doctor(&net.server, &site, &["--as", "bios"]));
    explained(&net, &site, "bios", "not-answered", &["every address of its pool is taken"]);
    server.stop();
}

#[test]
fn a_full_disk_is_found() {
    let net = Net::flat();
    let site = site(net.interface, FULL);
    // A mount namespace of its own, which ends with the command.
    let state = site.dir.join("state");
    let script = format!(
        "mount -t tmpfs -o size=1m none '{0}' && head -c 2000000 /dev/zero > '{0}/ballast' 2>/dev/null; exec '{1}' doctor --config '{2}'",
        state.display(),
        binary(),
        site.config().display()
    );
    let mut command = net.server.command(tool("unshare", "util-linux"));
    let output = command.args(["--mount", "sh", "-c", &script]).output().expect("unshare runs");
    finds_only("full-disk", &site, &output);
}

#[test]
fn an_expired_certificate_and_a_clock_of_1970_are_found() {
    let net = Net::flat();
    let site = site(net.interface, FULL);
    let (key, file) = (site.dir.join("key.pem"), site.dir.join("server.pem"));
    let faketime = tool("faketime", "faketime");
    let mut command = Command::new(&faketime);
    command.args(["2020-01-01 00:00:00", "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"]);
    command.args(["-days", "30", "-subj", "/CN=boot", "-addext", "subjectAltName=IP:10.77.0.1"]);
    run(command.arg("-keyout").arg(&key).arg("-out").arg(&file));
    let file = file.display().to_string();
    finds_only("expired-certificate", &site, &doctor(&net.server, &site, &["--certificate", &file]));

    let mut command = net.server.command(&faketime);
    command.args(["1970-01-02 00:00:00", binary(), "doctor", "--config"]).arg(site.config());
    finds_only("clock-1970", &site, &command.output().expect("faketime runs"));
}

#[test]
fn a_port_that_is_taken_is_found() {
    let net = Net::flat();
    let site = site(net.interface, FULL);
    let holder = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 69)); \
                  print('ready', flush=True); s.recv(1)";
    let mut command = net.server.command(tool("python3", "python3"));
    command.args(["-c", holder]);
    let mut process = Process::spawn("python3", &mut command, &site.dir.join("holder.log"));
    process.wait_for("ready", SOON);
    finds_only("port-taken", &site, &doctor(&net.server, &site, &[]));
}

#[test]
fn who_may_not_send_frames_is_told_what_grants_it() {
    let net = Net::flat();
    let site = site(net.interface, FULL);
    // Readable by the one who has nothing.
    for path in [site.dir.0.clone(), site.dir.join("state"), site.dir.join("images")] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a folder can be opened");
    }
    let copied = site.dir.join("bootstorm");
    fs::copy(binary(), &copied).expect("the program can be copied");
    let mut command = net.server.command(tool("setpriv", "util-linux"));
    command.args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all"]).arg(&copied);
    command.args(["doctor", "--as", "bios", "--interface", BRIDGE, "--config"]).arg(site.config());
    let output = command.output().expect("setpriv runs");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("CAP_NET_RAW") && said.contains("setcap"), "{said}");
}

#[test]
fn every_fault_has_its_place_in_the_document() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/TROUBLESHOOTING.md")).expect("the document is there");
    let mut missing = Vec::new();
    for file in
        ["doctor/standing.rs", "doctor/live.rs", "doctor/offers.rs", "doctor/certificate.rs", "cli/doctor.rs"]
    {
        let source = fs::read_to_string(root.join("src").join(file)).expect("a source");
        let source = source.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        for call in ["Finding::wrong(", "Finding::note("] {
            for part in source.split(call).skip(1) {
                let name = part.split('"').nth(1).expect("a finding has a name");
                if !document.contains(&format!("`{name}`")) {
                    missing.push(name.to_owned());
                }
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/TROUBLESHOOTING.md: {missing:?}");
}

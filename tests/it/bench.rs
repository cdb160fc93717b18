//! The load generators against the real server and against the responder that does nothing.

use std::fs;
use std::process::{Command, Output};

use labkit::{BRIDGE, FULL, Namespace, Net, PROXY, Process, TempDir, tool};
use serde_json::Value;

use crate::server::{SOON, Site, binary};

const FILE_LEN: usize = 1_000_003;

/// The flat network with a load's namespace on its bridge: 10.77.0.2 on eth0.
fn lab() -> (Net, Namespace) {
    let net = Net::flat();
    let load = Namespace::new();
    net.server.wire("to-load", &load, "eth0");
    net.server.ip(&format!("link set to-load master {BRIDGE}"));
    load.ip("addr add 10.77.0.2/24 dev eth0");
    (net, load)
}

fn site(config: &str) -> Site {
    let site = Site::new(BRIDGE, "auto", config);
    let folder = site.dir.join("images/data");
    fs::create_dir_all(&folder).expect("a folder");
    let content: Vec<u8> =
        (0..FILE_LEN as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    fs::write(folder.join("file.bin"), content).expect("the file");
    site
}

fn bench(load: &Namespace, words: &str) -> Output {
    load.command(binary()).arg("bench").args(words.split_whitespace()).output().expect("bootstorm runs")
}

/// Every point, and none may have failed.
fn points(load: &Namespace, words: &str) -> Vec<Value> {
    let output = bench(load, &format!("{words} --json"));
    assert!(
        output.status.success(),
        "bench {words}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let points = report["points"].as_array().expect("points").clone();
    for point in &points {
        assert_eq!(point["failures"], 0, "bench {words}: {point}");
        assert!(number(point, "units") > 0, "bench {words}: {point}");
    }
    points
}

fn number(point: &Value, field: &str) -> u64 {
    point[field].as_u64().unwrap_or_else(|| panic!("{field} of {point}"))
}

#[test]
fn simulated_hosts_fetch_every_byte_by_tftp() {
    let (net, load) = lab();
    let site = site(FULL);
    let server = site.serve(&net);
    let file = site.dir.join("images/data/file.bin");
    let ways = ["--interface eth0 --blksize 512,1428", "--blksize 1428,8192"];
    for way in ways {
        let words = format!(
            "tftp --server 10.77.0.1 --file data/file.bin {way} --windowsize 1,16 --clients 1,20 --files 2 --time 60s \
             --verify {}",
            file.display()
        );
        let points = points(&load, &words);
        assert_eq!(points.len(), 8);
        for point in points {
            let files = 2 * number(&point, "clients");
            assert_eq!(number(&point, "bytes"), files * FILE_LEN as u64, "{point}");
            assert!(point["jain"].as_f64().expect("fairness") > 0.99, "{point}");
            assert!(number(&point["first_answer"], "p50") > 0 && number(&point["latency"], "p99") > 0);
        }
    }
    // Hosts that came and went have left no transfer behind.
    server.stop();
}

#[test]
fn a_load_that_does_not_look_at_bytes_counts_them_all() {
    let (net, load) = lab();
    let site = site(FULL);
    let server = site.serve(&net);
    for way in ["--interface eth0", ""] {
        let words = format!(
            "tftp --server 10.77.0.1 --file data/file.bin {way} --windowsize 1,16 --clients 10 --files 3 --time 60s --tsize"
        );
        for point in points(&load, &words) {
            assert_eq!(number(&point, "bytes"), 30 * FILE_LEN as u64, "{point}");
            assert_eq!(number(&point, "units"), 30 * (FILE_LEN as u64 / 1428 + 1), "{point}");
        }
    }
    server.stop();
}

#[test]
fn machines_get_addresses_by_broadcast_and_across_relays() {
    let (net, load) = lab();
    let site = site(FULL);
    let server = site.serve(&net);
    for words in [
        "dhcp --interface eth0 --mode discover --clients 1,20 --machines 90 --time 300ms",
        "dhcp --interface eth0 --mode dora --clients 1,20 --machines 90 --time 300ms",
        "dhcp --interface eth0 --mode dora --pxe --clients 20 --rate 200 --time 1s",
        "dhcp --interface eth0 --server 10.77.0.1 --relays 3 --mode dora --clients 20 --machines 90 --time 300ms",
    ] {
        for point in points(&load, words) {
            assert!(number(&point["latency"], "p50") > 0, "{point}");
        }
    }
    let avalanche = points(&load, "dhcp --interface eth0 --mode avalanche --clients 60 --time 40s");
    assert_eq!(number(&avalanche[0], "units"), 60);
    server.stop();
}

#[test]
fn an_interface_that_just_came_up_is_waited_for() {
    let (net, load) = lab();
    let site = site(FULL);
    let server = site.serve(&net);
    load.ip("link set eth0 down");
    load.ip("link set eth0 up");
    // Neither veth end has its carrier at once.
    points(&load, "dhcp --interface eth0 --mode discover --clients 1 --machines 9 --time 300ms");
    server.stop();
}

#[test]
fn a_proxys_offers_are_told_from_a_dhcp_servers() {
    let (net, load) = lab();
    let site = site(PROXY);
    let server = site.serve(&net);
    points(&load, "dhcp --interface eth0 --mode proxy --clients 1,20 --time 300ms");
    // Nobody gives addresses here, and that is what is said.
    let output = bench(&load, "dhcp --interface eth0 --mode dora --clients 2 --time 1500ms");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("no OFFER"), "{text}");
    server.stop();
}

#[test]
fn files_ranges_and_scripts_by_http() {
    let (net, load) = lab();
    let site = site(FULL);
    let server = site.serve(&net);
    for words in [
        "http --path /images/data/file.bin --range-size 0,64KiB --connections 1,20",
        "http --path /images/data/file.bin --range-size 0,64KiB --random --close --connections 20",
        "script --connections 1,20",
        "script --connections 20 --close --machines 7",
    ] {
        for point in points(&load, &format!("{words} --server 10.77.0.1 --time 300ms")) {
            assert!(number(&point, "bytes") > 0 && number(&point["latency"], "p50") > 0, "{point}");
        }
    }
    server.stop();
}

#[test]
fn a_storm_of_all_kinds_of_machines_boots() {
    let (net, load) = lab();
    let site = site(&format!("{FULL}[policy]\nmenu_default = \"tiny\"\nmenu_timeout = \"1s\"\n"));
    site.add_linux();
    let server = site.serve(&net);
    let points = points(&load, "storm --interface eth0 --machines 40 --impatient --patience 100s");
    assert_eq!(number(&points[0], "units"), 40);
    let kernel = fs::metadata(site.dir.join("images/tiny/vmlinuz")).expect("the kernel").len();
    assert!(number(&points[0], "bytes") > 40 * kernel, "{}", points[0]);
    assert_eq!(points[0]["settings"].get("to_local_disk"), None, "every machine boots the image");
    server.stop();
}

#[test]
fn machines_that_nobody_answers_fail_as_their_firmware_does() {
    let (_net, load) = lab();
    let output = bench(&load, "storm --interface eth0 --machines 4 --impatient --patience 30s --json");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let point = &report["points"][0];
    assert_eq!(number(point, "failures"), 4);
    assert_eq!(point["failure_reasons"]["after power-on: nobody offered an address (PXE-E51)"], 4, "{point}");
}

/// `bench null` in the server's namespace, ready.
fn null(net: &Net, dir: &TempDir, words: &str) -> Process {
    let mut command = net.server.command(binary());
    command.args(["bench", "null"]).args(words.split_whitespace());
    let mut process = Process::spawn("bench null", &mut command, &dir.join("null.log"));
    process.wait_for("null ready", SOON);
    process
}

#[test]
fn every_load_runs_against_the_responder_that_does_nothing() {
    let (net, load) = lab();
    let dir = TempDir::new("null");
    {
        let _null = null(&net, &dir, "--interface to-load --address 10.77.0.9 --size 100000");
        for words in [
            "tftp --server 10.77.0.9 --file any --interface eth0 --windowsize 1,16 --clients 1,20 --time 300ms",
            "tftp --server 10.77.0.9 --file any --interface eth0 --blksize 512 --clients 5 --files 2 --time 20s",
            "dhcp --interface eth0 --mode discover --clients 20 --time 300ms",
            "dhcp --interface eth0 --mode dora --clients 20 --time 300ms",
            "dhcp --interface eth0 --server 10.77.0.9 --relays 2 --mode dora --clients 20 --time 300ms",
        ] {
            points(&load, words);
        }
    }
    {
        let _null = null(&net, &dir, "--interface to-load --address 10.77.0.9 --proxy");
        points(&load, "dhcp --interface eth0 --mode proxy --clients 20 --time 300ms");
    }
    let _null = null(&net, &dir, "--http 10.77.0.1:8080 --size 300000");
    let http = "http --server 10.77.0.1:8080 --path /any --range-size 0,64KiB --connections 5 --time 300ms";
    for point in points(&load, http) {
        assert!(number(&point, "bytes") >= number(&point, "units") * 65_536, "{point}");
    }
}

#[test]
fn what_would_reach_other_peoples_machines_must_be_meant() {
    let (net, load) = lab();
    // A bridge may have anything behind it.
    for words in [
        format!("dhcp --interface {BRIDGE} --time 1s"),
        format!("storm --interface {BRIDGE} --machines 1"),
        format!("null --interface {BRIDGE} --address 10.77.0.9"),
        "tftp --server 10.77.0.255 --file x".into(),
        "http --server 224.0.0.1 --path /".into(),
    ] {
        let output = bench(&net.server, &words);
        assert_eq!(output.status.code(), Some(2), "{words}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.lines().count() == 1 && text.contains("--allow-broadcast"), "{words}: {text}");
    }
    for (words, expected) in [
        ("dhcp --interface nope0", "there are"),
        ("tftp --server 10.77.0.99 --file x --interface eth0", "no answer to ARP"),
        ("tftp --server 10.77.0.1 --file x --interface eth0 --blksize 8192", "MTU"),
        ("tftp --server 10.77.0.1 --file x --interface eth0 --clients 5000", "--from"),
    ] {
        let output = bench(&load, words);
        assert_eq!(output.status.code(), Some(5), "{words}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.lines().count() == 1 && text.contains(expected), "{words}: {text}");
    }
}

#[test]
fn without_the_privilege_the_way_out_is_said() {
    let dir = TempDir::new("bench-nobody");
    fs::set_permissions(&dir.0, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a readable folder");
    let program = dir.join("bootstorm");
    fs::copy(binary(), &program).expect("the program can be copied");
    let output = Command::new(tool("setpriv", "util-linux"))
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["bench", "dhcp", "--interface", "lo"])
        .output()
        .expect("bootstorm runs");
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("CAP_NET_RAW") && text.contains("setcap"), "{text}");
}

//! `bench compare` with whatever peers are installed, and `bench model`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use labkit::{Namespace, Process, TempDir};
use serde_json::Value;

use crate::server::{SOON, Site, binary};

/// Nothing of a comparison with this process id is left on the machine.
fn assert_nothing_is_left(pid: u32) {
    let mine = format!("bootstorm-compare-{pid}");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let places =
        mounts.lines().filter(|line| line.contains(" cgroup")).filter_map(|line| line.split(' ').nth(1));
    for place in places.map(str::to_owned).chain([std::env::temp_dir().display().to_string()]) {
        let left: Vec<String> = fs::read_dir(&place)
            .map(|entries| {
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            })
            .unwrap_or_default();
        assert!(left.iter().all(|name| !name.starts_with(&mine)), "{place}: {left:?}");
    }
}

/// A comparison that goes well and leaves nothing behind, with its report written to `json`: all it said, and the report.
fn compared(mut command: Command, json: &Path) -> (String, Value) {
    let command = command.arg("--json").arg(json);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bootstorm runs");
    let pid = child.id();
    let output = child.wait_with_output().expect("it ends");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert_nothing_is_left(pid);
    let report = serde_json::from_str(&fs::read_to_string(json).expect("the report")).expect("JSON");
    (said, report)
}

/// A short comparison of TFTP servers, this often and so long each.
fn quick_tftp(rounds: &str, time: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(["bench", "compare", "--quick", "--work", "tftp", "--size", "16MiB"]);
    command.args(["--rounds", rounds, "--time", time]);
    command
}

#[test]
fn a_quick_comparison_gives_rows_ratios_and_a_page_and_leaves_nothing_behind() {
    let dir = TempDir::new("compare");
    let (json, html) = (dir.join("report.json"), dir.join("report.html"));
    let mut command = quick_tftp("1", "1s");
    command.arg("--html").arg(&html);
    let (said, report) = compared(command, &json);
    assert_eq!(report["conditions"]["congestion_control"], "reno");
    let rows = report["rows"].as_array().expect("rows");
    let of = |server: &str| rows.iter().filter(|row| row["server"] == server).collect::<Vec<_>>();
    let ours = of("bootstorm");
    assert_eq!(ours.len(), 7, "{said}");
    for row in &ours {
        assert!(
            row["value"].as_f64().expect("a value") > 0.0 && row["cpu"].as_f64().expect("CPU") > 0.0,
            "{row}"
        );
        assert_eq!((row["unit"].as_str(), row["ratio"].as_f64()), (Some("MB/s"), Some(1.0)), "{row}");
    }
    // Everybody else is a row for each work it knows, or named with what to install.
    let missing = report["missing"].as_array().expect("missing");
    for (peer, works) in [("dnsmasq", 4), ("tftpd-hpa", 3), ("atftpd", 6)] {
        let named = missing.iter().filter(|missing| missing["server"] == peer).count();
        assert!(of(peer).len() == works || named == 1, "{peer}: {said}");
    }
    for row in of("dnsmasq") {
        assert!(row["spread"].as_array().is_some_and(|spread| spread.len() == 2), "{row}");
    }
    assert!(fs::read_to_string(&html).expect("the page").ends_with("</html>\n"));

    // The same report is an earlier one to itself, to be printed again, and feeds the model.
    let again = Command::new(binary())
        .args(["bench", "report"])
        .arg(&json)
        .arg("--against")
        .arg(&json)
        .output()
        .expect("bootstorm runs");
    let text = String::from_utf8_lossy(&again.stdout).into_owned();
    let ratios = rows.iter().filter(|row| {
        !["bootstorm", "null"].contains(&row["server"].as_str().unwrap_or_default()) && row["ratio"].is_f64()
    });
    let ratios = ratios.count();
    if ratios > 0 {
        assert!(text.contains(&format!("{ratios} of {ratios} throughput ratios")), "{text}");
    }
    assert!(again.status.success(), "{text}");
    let words =
        ["bench", "model", "--nic", "10G", "--clients", "100", "--image", "500MiB", "--json", "--from"];
    let output = Command::new(binary()).args(words).arg(&json).output().expect("bootstorm runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let model: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let answers = model["answers"].as_array().expect("answers");
    assert!(
        answers.iter().any(|answer| answer["protocol"] == "tftp" && answer["sharing"].as_f64() > Some(1.0))
    );
}

/// A program of that name which runs this script.
fn stand_in(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a program");
}

#[test]
fn peers_that_die_or_never_answer_are_named_and_end_nothing() {
    let dir = TempDir::new("compare-peers");
    // Dies at once; never answers; dies again and again while it is measured.
    stand_in(&dir.0, "atftpd", "case $1 in --version) echo stand-in;; *) echo no luck today; exit 1;; esac");
    stand_in(&dir.0, "in.tftpd", "case $1 in -V) echo tftp-hpa stand-in;; *) exec sleep 600;; esac");
    let real = labkit::tool("dnsmasq", "dnsmasq-base").display().to_string();
    let script = format!(
        "case $1 in --version) exec {real} --version;; *) exec timeout -k 1 0.4 {real} \"$@\";; esac"
    );
    stand_in(&dir.0, "dnsmasq", &script);
    let json = dir.join("report.json");
    let path = format!("{}:{}", dir.0.display(), std::env::var("PATH").expect("PATH"));
    let mut command = quick_tftp("2", "200ms");
    command.env("PATH", path);
    let (said, report) = compared(command, &json);
    assert!(said.contains("this takes about"), "{said}");
    let rows = report["rows"].as_array().expect("rows");
    let of = |server: &str| rows.iter().filter(|row| row["server"] == server).collect::<Vec<_>>();
    let missing = |peer: &str| {
        let all = report["missing"].as_array().expect("missing");
        let why = all.iter().find(|missing| missing["server"] == peer)?["why"].as_str()?;
        Some(why.to_owned())
    };
    assert_eq!(of("bootstorm").iter().filter(|row| row["rounds"] == 2).count(), 7, "{said}");
    assert!(missing("atftpd").is_some_and(|why| why.contains("no luck today")), "{said}");
    assert!(missing("tftpd-hpa").is_some_and(|why| why.contains("no answer")), "{said}");
    // How far it gets before it dies is chance; that it did not simply vanish is not.
    assert!(missing("dnsmasq").is_some() || of("dnsmasq").len() == 4, "{said}");
}

#[test]
fn an_interrupted_comparison_takes_everything_down() {
    let dir = TempDir::new("compare");
    let mut command = Command::new(binary());
    command.args([
        "bench", "compare", "--work", "tftp", "--rounds", "50", "--size", "16MiB", "--peers", "dnsmasq",
    ]);
    let mut process = Process::spawn("bench compare", &mut command, &dir.join("output"));
    process.wait_for("1/", SOON);
    process.signal("INT");
    let status = process.wait(SOON);
    assert_eq!(status.code(), Some(5), "{}", process.output());
    assert!(process.output().contains("interrupted"), "{}", process.output());
    assert_nothing_is_left(process.pid());
}

#[test]
fn a_comparison_without_root_says_what_is_missing() {
    let dir = TempDir::new("compare");
    fs::set_permissions(&dir.0, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a folder for anyone");
    let program = dir.join("bootstorm");
    fs::copy(binary(), &program).expect("the program can be copied");
    let output = Command::new(labkit::tool("setpriv", "util-linux"))
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["bench", "compare", "--quick"])
        .output()
        .expect("bootstorm runs");
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run it as root"));
}

#[test]
fn reports_that_cannot_be_read_or_written_are_refused_before_anything_is_measured() {
    let dir = TempDir::new("compare");
    fs::write(dir.join("other.json"), "{}").expect("a file");
    let compare = |flag: &str, path: &Path| {
        Command::new(binary())
            .args(["bench", "compare", "--quick", flag])
            .arg(path)
            .output()
            .expect("bootstorm runs")
    };
    for (flag, path, code) in [
        ("--against", dir.join("other.json"), 1),
        ("--against", dir.join("none.json"), 1),
        ("--json", dir.join("no/x"), 5),
    ] {
        let output = compare(flag, &path);
        assert_eq!(output.status.code(), Some(code), "{flag}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for words in [
        &["bench", "compare", "--work", "pigeon"][..],
        &["bench", "compare", "--peers", "iis"],
        &["bench", "compare", "--rounds", "0"],
        &["bench", "model", "--nic", "10G", "--clients", "0", "--image", "1MiB"],
    ] {
        let output = Command::new(binary()).args(words).output().expect("bootstorm runs");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
}

/// A counter of a namespace's TCP, by its name in /proc/net/snmp.
fn tcp_counter(namespace: &Namespace, name: &str) -> u64 {
    let text = labkit::run(namespace.command("cat").arg("/proc/net/snmp"));
    let lines: Vec<Vec<&str>> =
        text.lines().filter(|line| line.starts_with("Tcp:")).map(|line| line.split(' ').collect()).collect();
    let column = lines[0].iter().position(|word| *word == name).expect("the counter has a column");
    lines[1][column].parse().expect("a counter is a number")
}

#[test]
fn a_sink_acknowledges_all_that_is_sent_and_the_client_receives_nothing_of_it() {
    const LEN: u64 = 64 << 20;
    // Nothing is copied there, and so nobody is told that it was.
    for (driver, zero_copy, sender, load_sender) in [
        ("mio", "off", "splice", "Splice"),
        ("uring", "off", "splice", "Splice"),
        ("uring", "auto", "send_zc", "ZeroCopy"),
        ("mio", "auto", "msg_zerocopy", "ZeroCopy"),
    ] {
        let (servers, clients) = (Namespace::new(), Namespace::new());
        servers.wire("lan", &clients, "to-1");
        servers.ip("addr add 10.77.0.1/24 dev lan");
        clients.ip("addr add 10.77.0.2/24 dev to-1");
        let site = Site::new("lan", driver, "");
        fs::create_dir_all(site.dir.join("images/data")).expect("a folder");
        let image = fs::File::create(site.dir.join("images/data/image.bin")).expect("a file");
        image.set_len(LEN).expect("room for it");
        // A file that somebody has open for writing is not served.
        drop(image);
        let mut command = servers.command(binary());
        command.arg("serve").arg("--config").arg(site.config());
        // Where not even root may lift the limit on pinned memory, only a privilege that the sandbox takes is above it.
        command.env("BOOTSTORM_SERVER_SANDBOX", "off").env("BOOTSTORM_SERVER_ZERO_COPY", zero_copy);
        let mut server = Process::spawn("bootstorm", &mut command, &site.dir.join("server.log"));
        server.wait_for("bootstorm ready", SOON);

        let load = serde_json::json!({
            "server": "10.77.0.1", "interface": "to-1", "from": null, "time_ms": 20_000,
            "what": { "Transmit": { "connections": 4, "requests": 1, "sender": load_sender } },
        });
        let output = clients
            .command(binary())
            .args(["bench", "one", &load.to_string()])
            .output()
            .expect("bootstorm runs");
        let said = format!(
            "{driver}: {}{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            server.output()
        );
        assert!(output.status.success(), "{said}");
        let point: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        // It ends once all four bodies are acknowledged, long before its time.
        let bytes = point["bytes"].as_u64().expect("bytes");
        assert!(bytes >= 4 * LEN, "{said}");
        assert!(point["seconds"].as_f64().expect("seconds") < 10.0, "{said}");
        assert_eq!(point["failures"], 0, "{said}");
        // What the server did not take for acknowledged it would have sent again.
        assert_eq!(tcp_counter(&servers, "RetransSegs"), 0, "{said}");
        let received = tcp_counter(&clients, "InSegs");
        assert!(received < 100, "handshakes, one HEAD and nothing more, not {received} segments");
        let metrics = labkit::run(
            servers.command(labkit::tool("curl", "curl")).args(["-sS", "http://127.0.0.1:8081/metrics"]),
        );
        let moved: u64 = metrics
            .lines()
            .find(|line| line.contains("http_bytes_total") && line.contains(&format!("\"{sender}\"")))
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no bytes by {sender} in\n{metrics}"));
        assert!(moved >= 4 * LEN, "{moved} bytes by {sender}, {driver}:\n{metrics}");
        server.signal("TERM");
        assert!(server.wait(SOON).success(), "{}", server.output());
    }
}

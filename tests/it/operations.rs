//! What an administrator sees of a daemon: whom it runs as, what it may do, how it reloads, what it tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use labkit::{run, tool};

use crate::server::{FULL, Net, PROXY, SOON, Server, Site, binary};

/// A field of every thread's status, as the kernel shows it.
fn of_all_threads(pid: u32, field: &str) -> BTreeMap<String, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status =
        |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).expect("a thread's status");
    tasks
        .map(|task| status(task.expect("a thread")))
        .map(|status| {
            let value = |wanted: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'));
                line.unwrap_or_else(|| panic!("no {wanted} in {status}")).trim().to_owned()
            };
            (value("Name"), value(field))
        })
        .collect()
}

fn values(pid: u32, field: &str) -> BTreeSet<String> {
    of_all_threads(pid, field).into_values().collect()
}

fn script(net: &Net) -> String {
    let url = "http://10.77.0.1:4433/ipxe?mac=52:54:00:00:00:07&platform=pcbios&buildarch=i386";
    run(net.server.command(tool("curl", "curl")).args(["-sS", "-f", "-A", "iPXE/1.21.1", url]))
}

/// A file of this many MiB in the library.
fn add_file(site: &Site, name: &str, mib: usize) {
    let folder = site.dir.join("images/big");
    fs::create_dir_all(&folder).expect("a folder");
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n ^ (n >> 8)) as u8).collect();
    let content: Vec<u8> = block.iter().copied().cycle().take(mib << 20).collect();
    fs::write(folder.join(name), content).expect("a file");
}

/// MiB that no pair of sockets holds.
const LARGE: usize = 48;

/// A download that nobody reads for two seconds; it prints how many bytes came. (curl's own `--limit-rate` looks at the clock
/// only after some megabytes, which loopback brings in one go.)
fn slow_download(net: &Net, path: &str) -> Child {
    let curl = tool("curl", "curl");
    let words = format!("{} -sS -f http://10.77.0.1:4433{path} | (sleep 2; wc -c)", curl.display());
    let mut shell = net.server.command("sh");
    shell.args(["-c", &words]);
    shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("curl starts")
}

/// Waits for its end: all of the [`LARGE`] file has come.
fn came_whole(download: Child) {
    let output = download.wait_with_output().expect("curl ends");
    let came = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(came, (LARGE << 20).to_string(), "{output:?}");
}

#[test]
fn as_another_user_it_keeps_two_capabilities_and_no_way_back() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", &format!("{FULL}\n[policy]\nunknown = \"wait\"\n"));
    let config = fs::read_to_string(site.config()).expect("it was written");
    fs::write(
        site.config(),
        config.replacen("[server]\n", "[server]\nuser = \"nobody\"\nsandbox = \"on\"\n", 1),
    )
    .expect("written");
    let server = site.serve(&net);
    let pid = server.process.pid();
    let nobody = run(Command::new("id").args(["-u", "nobody"])).trim().to_owned();
    let uids = [&*nobody; 4].join("\t");
    assert_eq!(values(pid, "Uid"), BTreeSet::from([uids]), "real, effective, saved and of the file system");
    // CAP_NET_BIND_SERVICE (10) and CAP_NET_RAW (13), and none for threads that open nothing.
    let two = format!("{:016x}", 1 << 10 | 1 << 13);
    let none = format!("{:016x}", 0);
    for set in ["CapPrm", "CapEff"] {
        for (thread, value) in of_all_threads(pid, set) {
            let idle = ["keeper", "journal"].contains(&&*thread) || thread.starts_with("reader");
            assert_eq!(value, if idle { &*none } else { &*two }, "{set} of {thread}");
        }
    }
    for set in ["CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(values(pid, set), BTreeSet::from([none.clone()]), "{set}");
    }
    assert_eq!(values(pid, "NoNewPrivs"), BTreeSet::from(["1".to_owned()]));
    assert_eq!(values(pid, "Seccomp"), BTreeSet::from(["2".to_owned()]), "system calls are filtered");
    assert!(server.process.output().contains("held=\"whole\""), "{}", server.process.output());
    // It serves all the same, and what it stores is its user's.
    assert!(script(&net).starts_with("#!ipxe"));
    let owner = run(Command::new("stat").args(["-c", "%u"]).arg(site.dir.join("state/bootstorm.db")));
    assert_eq!(owner.trim(), nobody);
    server.stop();
}

#[test]
fn a_state_folder_that_is_a_link_is_given_to_its_user_and_one_for_images_is_followed() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    change(&site, "[server]\n", "[server]\nuser = \"nobody\"\n");
    let images = site.dir.join("state/images").display().to_string();
    change(&site, &site.dir.join("images").display().to_string(), &images);
    add_file(&site, "a.bin", 1);
    for (real, link, to) in [("real", "state", "real"), ("images", "real/images", "../images")] {
        if link == "state" {
            fs::rename(site.dir.join(link), site.dir.join(real)).expect("empty");
        }
        std::os::unix::fs::symlink(to, site.dir.join(link)).expect("a link");
    }
    let server = site.serve(&net);
    let nobody = run(Command::new("id").args(["-u", "nobody"]));
    let owner = run(Command::new("stat").args(["-c", "%u"]).arg(site.dir.join("real/bootstorm.db")));
    assert_eq!(owner, nobody);
    let url = "http://10.77.0.1:4433/images/big/a.bin";
    run(net.server.command(tool("curl", "curl")).args(["-sS", "-f", "-o", "/dev/null", url]));
    server.stop();
}

#[test]
fn it_has_open_what_the_documentation_says_and_nothing_else() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    add_file(&site, "a.bin", 1);
    let server = site.serve(&net);
    run(net.server.command(tool("curl", "curl")).args([
        "-sS",
        "-f",
        "-o",
        "/dev/null",
        "http://10.77.0.1:4433/images/big/a.bin",
    ]));
    let folder = format!("/proc/{}/fd", server.process.pid());
    let mut strange = Vec::new();
    for entry in fs::read_dir(&folder).expect("it runs") {
        let Ok(target) = fs::read_link(entry.expect("a descriptor").path()) else { continue };
        let target = target.display().to_string();
        let kinds = [
            "socket:",
            "pipe:",
            "anon_inode:[eventpoll]",
            "anon_inode:[eventfd]",
            "anon_inode:[io_uring]",
            "anon_inode:inotify",
            "anon_inode:[timerfd]",
            "/dev/null",
        ];
        let own = [
            site.dir.join("state"),
            site.dir.join("images"),
            site.dir.join("server.log"),
            "/usr/lib/ipxe".into(),
        ];
        let known = kinds.iter().any(|kind| target.starts_with(kind))
            || own.iter().any(|folder| target.starts_with(&*folder.display().to_string()));
        if !known {
            strange.push(target);
        }
    }
    assert!(strange.is_empty(), "open and not in docs/OPERATIONS.md: {strange:?}");
    server.stop();
}

fn reload(site: &Site) -> (bool, String) {
    let output = site.command(&["config", "reload"]);
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn change(site: &Site, from: &str, to: &str) {
    let text = fs::read_to_string(site.config()).expect("it is there");
    assert!(text.contains(from), "{from} is not in\n{text}");
    fs::write(site.config(), text.replacen(from, to, 1)).expect("written");
}

#[test]
fn a_reload_is_whole_or_refused_and_disturbs_nothing() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", &format!("{FULL}[policy]\nunknown = \"local\"\n"));
    add_file(&site, "a.bin", LARGE);
    let mut server = site.serve(&net);
    let before = script(&net);
    let downloads: Vec<Child> = (0..8).map(|_| slow_download(&net, "/images/big/a.bin")).collect();

    change(&site, "unknown = \"local\"", "unknown = \"wait\"");
    let (fine, text) = reload(&site);
    assert!(fine && text.contains("reloaded: policy"), "{text}");
    let after = script(&net);
    assert_ne!(before.lines().skip(3).collect::<Vec<_>>(), after.lines().skip(3).collect::<Vec<_>>());

    // By signal, with a mistake: the old one stays, and the log says what is wrong with the new one.
    change(&site, "unknown = \"wait\"", "unknown = \"perhaps\"");
    server.process.signal("HUP");
    server.process.wait_for("the old one keeps running", SOON);
    assert!(server.process.output().contains("policy.unknown"), "{}", server.process.output());
    let (fine, text) = reload(&site);
    assert!(!fine && text.contains("policy.unknown") && text.contains("one of"), "{text}");
    assert_eq!(script(&net).lines().skip(3).collect::<Vec<_>>(), after.lines().skip(3).collect::<Vec<_>>());

    // Half of it could be taken, so none is.
    change(&site, "unknown = \"perhaps\"", "unknown = \"local\"");
    change(&site, "driver = \"auto\"", "driver = \"mio\"");
    let (fine, text) = reload(&site);
    assert!(!fine && text.contains("needs restart") && text.contains("server.driver"), "{text}");
    assert_eq!(script(&net).lines().skip(3).collect::<Vec<_>>(), after.lines().skip(3).collect::<Vec<_>>());

    // DHCP's networks: a machine gets an address from the new range, the counters say the server is the same one.
    change(&site, "driver = \"mio\"", "driver = \"auto\"");
    change(&site, "10.77.0.100-10.77.0.200", "10.77.0.150-10.77.0.160");
    let (fine, text) = reload(&site);
    assert!(fine && text.contains("dhcp") && text.contains("policy"), "{text}");

    downloads.into_iter().for_each(came_whole);
    let audit = site.ask(&["audit", "list"]);
    assert_eq!(audit.matches("configuration-reloaded").count(), 2, "{audit}");
    server.stop();
}

#[test]
fn whoever_had_the_configuration_read_again_is_in_the_audit_log() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", &format!("{FULL}[policy]\nunknown = \"local\"\n"));
    change(&site, "[server]\n", "[server]\nwatch_config = true\n");
    let mut server = site.serve(&net);
    change(&site, "unknown = \"local\"", "unknown = \"wait\"");
    server.process.wait_for("configuration reloaded", SOON);
    server.process.signal("HUP");
    server.process.wait_for("nothing changed", SOON);
    let (fine, text) = reload(&site);
    assert!(fine && text.contains("nothing changed"), "{text}");
    let audit = site.ask(&["audit", "list", "--json"]);
    for by in ["\"file watch\"", "\"signal\"", "\"uid 0 (root)\""] {
        assert!(audit.contains(by), "no {by} in\n{audit}");
    }
    assert_eq!(audit.matches("configuration-reloaded").count(), 3, "{audit}");
    server.stop();
}

#[test]
fn metrics_are_well_formed_documented_and_without_a_label_of_strangers() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", PROXY);
    let server = site.serve(&net);
    script(&net);
    let text = run(net.server.command(tool("curl", "curl")).args(["-sS", "http://127.0.0.1:8081/metrics"]));
    let documented =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md")).expect("docs");
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a sentence");
            assert!(helped.insert(name), "{name} has two HELP lines: its series do not stand together");
            assert!(help.ends_with('.') && help.len() > 10, "{name}: {help:?} is no sentence");
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, current, "HELP and TYPE belong together");
            assert!(families.insert(name, kind).is_none());
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(name.starts_with("bootstorm_") || name.starts_with("process_"), "{name}");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a series and a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name), "{name} twice");
            let family = name.split('{').next().expect("a name");
            assert_eq!(family, current, "every series stands below its family");
            assert!(!name.contains("52:54"), "a stranger made this label: {name}");
        }
    }
    assert!(families.len() > 30, "{text}");
    // Read by a server that is held to its own files.
    let carried = format!("bootstorm_link_sent_bytes_total{{interface=\"{}\"}}", net.interface);
    assert!(series.contains(carried.as_str()), "no {carried} in\n{text}");
    let links: Vec<_> = series.iter().filter(|name| name.contains("interface=")).collect();
    assert!((2..=3).contains(&links.len()), "of one interface: {links:?}");
    let missing: Vec<_> = families.keys().filter(|name| !documented.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not in docs/METRICS.md: {missing:?}");
    let gone: Vec<&str> = documented
        .split('`')
        .filter(|word| word.starts_with("bootstorm_") && !word.contains(' '))
        .filter(|word| !families.contains_key(word))
        .collect();
    assert!(gone.is_empty(), "in docs/METRICS.md and not there: {gone:?}");
    server.stop();
}

#[test]
fn json_log_lines_are_json_and_name_the_boot() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", PROXY);
    add_file(&site, "a.bin", 1);
    let mut command = net.server.command(binary());
    command.args(["serve", "--log-format", "json", "--config"]).arg(site.config());
    let mut process = labkit::Process::spawn("bootstorm", &mut command, &site.dir.join("server.log"));
    let ready = process.wait_for("bootstorm ready", SOON);
    let uuid = "4c4c4544-0042-3510-8052-b4c04f564231";
    let ask = |path: &str| {
        let url = format!("http://10.77.0.1:4433{path}");
        run(net.server.command(tool("curl", "curl")).args([
            "-sS",
            "-f",
            "-A",
            "iPXE/1.21.1",
            "-o",
            "/dev/null",
            &url,
        ]));
    };
    ask(&format!("/ipxe?mac=52:54:00:00:00:07&uuid={uuid}&platform=pcbios&buildarch=i386"));
    process.wait_for("\"stage\":\"script\"", SOON);
    // The request for a file says nothing of the machine but where it is.
    ask("/images/big/a.bin");
    process.wait_for("\"stage\":\"image\"", SOON);
    let server = Server { site: &site, process, ready };
    let log = server.process.output();
    let mut of_boots = 0;
    for line in log.lines().filter(|line| !line.starts_with("bootstorm ready")) {
        let parsed: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        assert!(parsed["timestamp"].is_string() && parsed["level"].is_string(), "{line}");
        if parsed["stage"] == "script" {
            of_boots += 1;
            assert!(parsed["session"].is_string(), "{line}");
        }
        if parsed["stage"].is_string() {
            assert_eq!(
                (&parsed["mac"], &parsed["uuid"]),
                (&"52:54:00:00:00:07".into(), &uuid.into()),
                "{line}"
            );
        }
    }
    assert!(of_boots > 0, "{log}");
    server.stop();
}

/// A journal at its usual place, in a mount namespace of its own, which prints every entry as one line; and the server, with
/// standard error as the stream that `JOURNAL_STREAM` names (systemd.exec(5)).
const JOURNAL: &str = r#"
import os, socket, sys
os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
journal.settimeout(0.2)
server = os.getpid()
if os.fork() != 0:
    stderr = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{stderr.st_dev}:{stderr.st_ino}"
    os.execv(sys.argv[1], sys.argv[1:])
while os.getppid() == server:
    try:
        entry, fields = journal.recv(1 << 16), []
    except TimeoutError:
        continue
    while entry:
        name, entry = entry.split(b"\n", 1)
        if b"=" not in name:
            length = int.from_bytes(entry[:8], "little")
            name, entry = name + b"=" + entry[8:8 + length], entry[9 + length:]
        fields.append(name.decode().replace("\n", " "))
    if fields:
        print("entry " + "|".join(fields), flush=True)
"#;

#[test]
fn under_systemd_the_fields_of_a_line_are_fields_of_the_journals_entry() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", PROXY);
    let mut command = net.server.command("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /run && exec \"$@\"",
        "sh",
        "python3",
        "-c",
        JOURNAL,
    ]);
    command.arg(binary()).args(["serve", "--config"]).arg(site.config());
    let mut process = labkit::Process::spawn("journal", &mut command, &site.dir.join("journal.log"));
    process.wait_for("bootstorm ready", SOON);
    script(&net);
    let entry = process.wait_for("BOOTSTORM_STAGE=script", SOON);
    let fields: Vec<&str> = entry.trim_start_matches("entry ").split('|').collect();
    for field in ["PRIORITY=6", "SYSLOG_IDENTIFIER=bootstorm", "BOOTSTORM_STAGE=script"] {
        assert!(fields.contains(&field), "{field} is not in {entry}");
    }
    for start in ["MESSAGE=", "BOOTSTORM_MAC=52:54:", "BOOTSTORM_SESSION="] {
        assert!(fields.iter().any(|field| field.starts_with(start)), "{start} is not in {entry}");
    }
    process.signal("TERM");
    assert!(process.wait(SOON + Duration::from_secs(10)).success());
}

#[test]
fn it_is_ready_when_everything_answers_and_drains_when_told_to_end() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    add_file(&site, "a.bin", LARGE);
    let mut server = site.serve(&net);
    let ready =
        run(net.server.command(tool("curl", "curl")).args(["-sS", "-f", "http://127.0.0.1:8081/readyz"]));
    assert_eq!(ready, "ready\n");
    let download = slow_download(&net, "/images/big/a.bin");
    let begun = Instant::now();
    while server.metric(&net, "bootstorm_http_connections_open") == 0 {
        assert!(begun.elapsed() < SOON, "the download does not begin");
        std::thread::yield_now();
    }
    server.process.signal("TERM");
    // A running download ends first.
    came_whole(download);
    let status = server.process.wait(SOON + Duration::from_secs(10));
    assert!(status.success());
}

//! The Debian package: built, installed, run as its unit runs it, removed again with what it served left in place.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use labkit::{Firmware, INIT_WORD, Machine, MachineSpec, Process, TempDir, run, tool};

use crate::server::{BRIDGE, FULL, Net, SOON, Site, binary};

const CONFIG: &str = "/etc/bootstorm/bootstorm.toml";

/// The installed package, removed on drop with all it left: the machine is somebody's.
struct Installed;

impl Installed {
    fn new() -> Self {
        let known = Command::new(tool("dpkg", "dpkg")).args(["-s", "bootstorm"]).output().expect("dpkg runs");
        assert!(
            !known.status.success(),
            "bootstorm is installed on this machine, which this test would remove"
        );
        assert!(
            !Path::new("/var/lib/bootstorm").exists(),
            "/var/lib/bootstorm exists, which this test would remove"
        );
        let root = env!("CARGO_MANIFEST_DIR");
        let built = run(Command::new(format!("{root}/tools/deb")).args(["--binary", binary()]));
        let file = built.lines().last().expect("it prints the package's path").to_owned();
        run(Command::new("dpkg").arg("-i").arg(Path::new(root).join(file)));
        Self
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = Command::new("dpkg").args(["--purge", "bootstorm"]).output();
        let _ = Command::new("userdel").arg("bootstorm").output();
        let _ = fs::remove_dir_all("/var/lib/bootstorm");
        let _ = fs::remove_dir_all("/etc/bootstorm");
    }
}

/// A line of the installed unit.
fn of_unit(key: &str) -> String {
    let unit = fs::read_to_string("/lib/systemd/system/bootstorm.service").expect("the package has a unit");
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key} in\n{unit}")).to_owned()
}

/// Where a service manager would listen.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = TempDir::new("manager");
        let socket = UnixDatagram::bind(folder.join("notify")).expect("a socket");
        for path in [folder.0.clone(), folder.join("notify")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("its own");
        }
        Self { socket, folder }
    }

    /// Waits for a message that holds `word`.
    fn hears(&self, word: &str) {
        let begun = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            let left = SOON.checked_sub(begun.elapsed()).unwrap_or_else(|| panic!("never heard {word}"));
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a time");
            let Ok(len) = self.socket.recv(&mut buffer) else { continue };
            if String::from_utf8_lossy(&buffer[..len]).contains(word) {
                return;
            }
        }
    }
}

/// The unit's command, under its user and with its capabilities, as the service manager would start it.
fn serve(net: &Net, manager: &Manager) -> Process {
    let wanted = of_unit("AmbientCapabilities").to_lowercase().replace("cap_", "+").replace(' ', ",");
    let mut command = net.server.command(tool("setpriv", "util-linux"));
    command
        .arg(format!("--reuid={}", of_unit("User")))
        .arg(format!("--regid={}", of_unit("Group")))
        .args(["--clear-groups", "--no-new-privs", "--bounding-set"])
        .arg(format!("-all,{wanted}"))
        .args(["--inh-caps", &wanted, "--ambient-caps", &wanted]);
    command.args(of_unit("ExecStart").split(' '));
    command.env("NOTIFY_SOCKET", manager.folder.join("notify")).env("WATCHDOG_USEC", "60000000");
    let mut process = Process::spawn("bootstorm", &mut command, &manager.folder.join("log"));
    process.wait_for("bootstorm ready", SOON);
    process
}

#[test]
fn the_package_installs_serves_as_its_own_user_and_goes_again() {
    let installed = Installed::new();
    let version = run(Command::new("/usr/bin/bootstorm").arg("--version"));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    run(Command::new("/usr/bin/bootstorm").args(["config", "check"]));
    let bare = fs::read_to_string(CONFIG).expect("a configuration is installed");
    let mut lines: Vec<&str> = bare.lines().collect();
    let interfaces =
        lines.iter_mut().find(|line| line.starts_with("interfaces = [")).expect("in the example");
    *interfaces = "interfaces = [\"lan\"]";
    let dhcp = lines.iter().position(|line| *line == "[dhcp]").expect("in the example");
    // The table's own lines are replaced by those of this test's network.
    let next =
        lines[dhcp + 1..].iter().position(|line| line.starts_with('[')).expect("another table follows");
    lines.drain(dhcp..=dhcp + next);
    fs::write(CONFIG, format!("{}\n{FULL}", lines.join("\n"))).expect("root may");

    let folder = Path::new("/var/lib/bootstorm/images/tiny");
    fs::create_dir_all(folder).expect("root may");
    let scratch = TempDir::new("package");
    fs::copy(labkit::kernel(), folder.join("vmlinuz")).expect("a kernel");
    fs::copy(labkit::initramfs(&scratch.0), folder.join("initrd.gz")).expect("an initramfs");
    fs::write(folder.join("image.toml"), "args = \"console=ttyS0 panic=1\"\n").expect("image.toml");

    let net = Net::flat();
    let manager = Manager::new();
    let mut process = serve(&net, &manager);
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    // What it was started with besides has been given up.
    let two = format!("{:016x}", 1 << 10 | 1 << 13);
    let none = format!("{:016x}", 0);
    for (set, held) in [("CapPrm", &two), ("CapEff", &two), ("CapInh", &none), ("CapAmb", &none)] {
        assert!(status.contains(&format!("{set}:\t{held}")), "{set}: {status}");
    }
    // It was enough to see that nothing here filters packets.
    process.wait_for("TFTP in small windows leaves in frames", SOON);
    let spec = MachineSpec::new(Firmware::Bios, 1);
    let added = run(Command::new("/usr/bin/bootstorm").args(["job", "add", "tiny", "--mac", &spec.mac]));
    assert!(added.contains("j1"), "{added}");
    // Its script and its kernel, as that machine would ask for them; the long form boots the machine too.
    let all = std::env::var_os("LAB_ALL").is_some();
    let curl = || {
        let mut command = net.server.command(tool("curl", "curl"));
        command.args(["-sS", "-f", "-A", "iPXE/1.21.1"]);
        command
    };
    let mut machine = all.then(|| Machine::start(&spec, net.machines(), BRIDGE, &scratch.0));
    let who = format!("mac={}&platform=pcbios&buildarch=i386&longmode=1", spec.mac);
    let script = run(curl().arg(format!("http://10.77.0.1:4433/ipxe?{who}")));
    let kernel = script.split_whitespace().find(|word| word.ends_with("/images/tiny/vmlinuz"));
    let kernel = kernel.unwrap_or_else(|| panic!("no kernel in\n{script}"));
    let (came, len) =
        (scratch.join("came"), fs::metadata(folder.join("vmlinuz")).expect("it is there").len());
    let rate = (len / 2).to_string();
    let mut download = curl();
    download.args(["--limit-rate", &rate, "-o"]).arg(&came).arg(kernel);
    let mut download = Process::spawn("curl", &mut download, &scratch.join("curl"));
    let begun = Instant::now();
    while fs::metadata(&came).map_or(0, |file| file.len()) == 0 {
        assert!(begun.elapsed() < SOON, "nothing comes: {}", download.output());
        std::thread::sleep(Duration::from_millis(5));
    }

    let changed = fs::read_to_string(CONFIG)
        .expect("it is there")
        .replace("menu_timeout = \"15s\"", "menu_timeout = \"16s\"");
    fs::write(CONFIG, changed).expect("root may");
    process.signal("HUP");
    manager.hears("RELOADING=1");
    process.wait_for("configuration reloaded", SOON);
    assert!(download.wait(SOON).success(), "{}", download.output());
    assert!(fs::read(&came).expect("it came") == fs::read(folder.join("vmlinuz")).expect("it is there"));
    if let Some(machine) = &mut machine {
        machine.wait_for(INIT_WORD, Duration::from_secs(300));
    }
    process.signal("TERM");
    manager.hears("STOPPING=1");
    assert!(process.wait(SOON).success(), "{}", process.output());

    // What a taken-over server could leave in its folder is nothing for the next upgrade to follow.
    let (loaders, elsewhere) = (Path::new("/var/lib/bootstorm/loaders"), scratch.join("elsewhere"));
    fs::remove_dir(loaders).expect("empty");
    fs::create_dir(&elsewhere).expect("a folder of root's");
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).expect("its own");
    std::os::unix::fs::symlink(&elsewhere, loaders).expect("root may");
    run(Command::new("sh").arg("/var/lib/dpkg/info/bootstorm.postinst").args(["configure", "0.1.0"]));
    let about = fs::metadata(&elsewhere).expect("it is there");
    assert_eq!((about.uid(), about.mode() & 0o777), (0, 0o700), "still root's");

    run(Command::new("dpkg").args(["--remove", "bootstorm"]));
    assert!(!Path::new("/usr/bin/bootstorm").exists());
    assert!(folder.join("vmlinuz").exists(), "images stay");
    assert!(Path::new("/var/lib/bootstorm/bootstorm.db").exists(), "state stays");
    assert!(Path::new(CONFIG).exists(), "so does the configuration");
    drop(installed);
}

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/package/bootstorm.service");

#[test]
fn the_unit_is_exposed_no_more_than_two_of_ten() {
    let mut command = Command::new(tool("systemd-analyze", "systemd"));
    let text = run(command.args(["security", "--offline=true", "--no-pager", UNIT]));
    let line = text.lines().find(|line| line.contains("Overall exposure level")).expect("it judges");
    let level: f32 = line.split_whitespace().find_map(|word| word.parse().ok()).expect("a number");
    assert!(level <= 2.0, "{text}");
}

#[test]
fn the_unit_is_tried_again_without_end_but_for_a_wrong_configuration() {
    let unit = fs::read_to_string(UNIT).expect("it is there");
    let (head, service) = unit.split_once("[Service]").expect("it has both parts");
    assert!(head.lines().any(|line| line == "StartLimitIntervalSec=0"), "{head}");
    let value = |key: &str| {
        let line = service.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {key} in\n{service}"))
    };
    assert_eq!(value("Restart"), "on-failure");
    let pause: u32 = value("RestartSec").parse().expect("seconds");
    assert!((2..=10).contains(&pause), "{pause} s: not at once, and soon");
    // What is not tried again is what `serve` says of a configuration that makes no sense.
    let folder = TempDir::new("unit");
    fs::write(folder.join("wrong.toml"), "[server]\nno_such_key = 1\n").expect("written");
    let mut command = Command::new(binary());
    let ended = command.args(["serve", "--config"]).arg(folder.join("wrong.toml")).output().expect("it runs");
    assert_eq!(
        ended.status.code().map(|code| code.to_string()).as_deref(),
        Some(value("RestartPreventExitStatus"))
    );
}

/// What the documented command of the container says: the words behind `key`, each time it stands there.
fn of_container<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    text.split(key).skip(1).filter_map(|rest| rest.split_whitespace().next()).collect()
}

#[test]
fn the_containers_command_gives_what_its_start_needs() {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/package/Containerfile");
    let text = fs::read_to_string(text).expect("it is there");
    assert_eq!(of_container(&text, "--cap-drop "), ["all"]);
    let given = of_container(&text, "--cap-add ");
    let sets = given.iter().map(|name| format!(",+{}", name.to_lowercase())).collect::<String>();
    assert_eq!(of_container(&text, "ENV BOOTSTORM_SERVER_USER="), ["bootstorm"]);
    // There is no such user here, and this one is everywhere.
    let user = "nobody";
    let owner = run(Command::new("id").args(["-u", user])).trim().parse::<u32>().expect("a number");
    let net = Net::flat();
    // A folder of the host that is mounted there is root's; a volume is the user's from the first start on.
    for folder_of in [0, owner] {
        let site = Site::new(net.interface, "auto", FULL);
        fs::remove_dir(site.dir.join("images")).expect("empty");
        let (state, images) = (site.dir.join("state"), site.dir.join("state/images"));
        std::os::unix::fs::chown(&state, Some(folder_of), Some(folder_of)).expect("as root");
        fs::set_permissions(&state, fs::Permissions::from_mode(0o750)).expect("its own");
        // The second start finds what the first one left: files that only the server's user may read.
        for start in ["first", "second"] {
            let mut command = net.server.command(tool("setpriv", "util-linux"));
            command.args(["--clear-groups", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set"]);
            command.arg(format!("-all{sets}")).arg(binary()).args(["serve", "--config"]).arg(site.config());
            command.arg("--images").arg(&images).env("BOOTSTORM_SERVER_USER", user);
            let mut process = Process::spawn("bootstorm", &mut command, &site.dir.join(start));
            process.wait_for("bootstorm ready", SOON);
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
            let two = format!("{:016x}", 1 << 10 | 1 << 13);
            for set in ["CapPrm", "CapEff"] {
                assert!(status.contains(&format!("{set}:\t{two}")), "{set}: {status}");
            }
            assert!(status.contains(&format!("CapBnd:\t{:016x}", 0)), "{status}");
            assert!(status.contains(&format!("Uid:\t{owner}\t{owner}")), "{status}");
            process.signal("TERM");
            assert!(process.wait(SOON).success(), "{}", process.output());
        }
        for path in [&state, &images, &state.join("bootstorm.db")] {
            assert_eq!(fs::metadata(path).expect("made").uid(), owner, "{}", path.display());
        }
    }
}

/// The calls of a set of systemd's, and of the sets in it.
fn calls_of(name: &str, calls: &mut BTreeSet<String>) {
    if !name.starts_with('@') {
        calls.insert(name.to_owned());
        return;
    }
    let mut command = Command::new(tool("systemd-analyze", "systemd"));
    let text = run(command.args(["syscall-filter", "--no-pager", name]));
    let lines = text.lines().skip(1).map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).for_each(|line| calls_of(line, calls));
}

#[test]
fn the_unit_lets_through_every_call_the_server_lets_itself() {
    let unit = fs::read_to_string(UNIT).expect("it is there");
    let mut allowed = BTreeSet::new();
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (names, is_off) = line.strip_prefix('~').map_or((line, false), |names| (names, true));
        let mut named = BTreeSet::new();
        names.split_whitespace().for_each(|name| calls_of(name, &mut named));
        match is_off {
            true => allowed.retain(|call| !named.contains(call)),
            false => allowed.extend(named),
        }
    }
    // Those of the server's own filter, and what the start makes before it.
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/sys/sandbox.rs"));
    let source = source.expect("it is there");
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let own = code.split("libc::SYS_").skip(1).map(|rest| {
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default().to_owned()
    });
    let start = [
        "io_uring_setup",
        "io_uring_register",
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
        "seccomp",
        "prlimit64",
        "execve",
    ];
    let wanted: BTreeSet<String> = own.chain(start.map(str::to_owned)).collect();
    assert!(wanted.len() > 130 && wanted.contains("mincore"), "{wanted:?}");
    let refused: Vec<&String> = wanted.difference(&allowed).collect();
    assert!(refused.is_empty(), "not in the unit's SystemCallFilter: {refused:?}");
}

//! The wipe interlock and what survives, on the real binary: `kill -9`, a full disk, re-arming.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use labkit::{DISK_WORD, Firmware, INIT_WORD, Machine, MachineSpec, local_disk, run, tool};

use crate::server::{BRIDGE, FULL, Net, SOON, Server, Site};

const MAC: &str = "52:54:00:00:00:07";
const SCRIPT: &str =
    "http://10.77.0.1:4433/ipxe?mac=52:54:00:00:00:07&platform=pcbios&buildarch=i386&longmode=1";

/// The tiny Linux, as an image that may wipe a disk.
fn site(net: &Net) -> Site {
    let site = Site::new(net.interface, "auto", FULL);
    site.add_linux();
    let manifest = "args = \"console=ttyS0 panic=1\"\ndestructive = true\n";
    fs::write(site.dir.join("images/tiny/image.toml"), manifest).expect("image.toml");
    site
}

fn script(net: &Net) -> String {
    run(net.server.command(tool("curl", "curl")).args(["-sS", "-f", "-A", "iPXE/1.21.1", SCRIPT]))
}

/// The URL of a script that ends so.
fn url(script: &str, end: &str) -> String {
    let line =
        script.lines().find(|line| line.contains(end)).unwrap_or_else(|| panic!("no {end} in\n{script}"));
    let word = line.split_whitespace().find(|word| word.ends_with(end)).expect("a URL");
    word.to_owned()
}

/// Whether all of a file came.
fn fetches(net: &Net, url: &str) -> bool {
    let mut command = net.server.command(tool("curl", "curl"));
    let command = command.args(["-sS", "-f", "--max-time", "20", "-o", "/dev/null", url]);
    command.stderr(Stdio::null()).status().expect("curl runs").success()
}

fn kill(mut server: Server<'_>) {
    server.process.signal("KILL");
    server.process.wait(SOON);
}

fn is_local(script: &str) -> bool {
    script.contains("had its job") && !script.contains("/images/")
}

#[test]
fn a_backup_that_is_put_back_gives_nobody_a_job_again() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    site.ask(&["job", "add", "tiny", "--mac", MAC]);
    let file = site.dir.join("backup.db");
    let name = file.to_str().expect("a path of plain text");
    let said = site.ask(&["backup", name]);
    assert!(said.contains("wrote ") && said.contains("files of their own"), "{said}");
    assert_eq!(fs::metadata(&file).expect("the backup").permissions().mode() & 0o777, 0o600);
    let again = site.command(&["backup", name]);
    assert_eq!(again.status.code(), Some(2), "nothing is written over");
    let nowhere = site.command(&["backup", "/nowhere/backup.db"]);
    assert_eq!(nowhere.status.code(), Some(5));
    let piped = site.command(&["backup", "-"]);
    assert!(piped.status.success() && piped.stdout.starts_with(b"SQLite format 3\0"));
    let left: Vec<_> = fs::read_dir(site.dir.join("state")).expect("the state").flatten().collect();
    assert!(!left.iter().any(|entry| entry.file_name().to_string_lossy().contains("backup")), "{left:?}");
    assert_eq!(site.ask(&["audit", "list"]).matches("store-backed-up").count(), 2);

    // The machine is installed after it.
    let first = script(&net);
    for end in ["/vmlinuz", "/initrd.gz"] {
        assert!(fetches(&net, &url(&first, end)), "{first}");
    }
    assert!(is_local(&script(&net)));
    kill(server);
    for part in ["bootstorm.db", "bootstorm.db-wal"] {
        let _ = fs::remove_file(site.dir.join("state").join(part));
    }
    fs::copy(&file, site.dir.join("state/bootstorm.db")).expect("put back");
    let mut server = site.serve(&net);
    server.process.wait_for("put back from a backup", SOON);
    let second = script(&net);
    assert!(second.contains("# bootstorm job none") && second.contains("set default local"), "{second}");
    assert!(!fetches(&net, &url(&first, "/initrd.gz")), "nor is there anything left under the old token");
    assert!(site.ask(&["job", "list"]).contains("cancelled"));
    assert!(site.ask(&["audit", "list"]).contains("the start on a backup of "));
    assert!(site.ask(&["audit", "verify"]).contains("is whole"));
    kill(server);
    // Said once; then it is a store like any other.
    let server = site.serve(&net);
    assert!(!server.process.output().contains("put back"), "{}", server.process.output());
    site.ask(&["job", "add", "tiny", "--mac", MAC]);
    assert!(script(&net).contains("# bootstorm job j2"));
    server.stop();
}

#[test]
fn a_machine_that_had_its_job_boots_locally_whatever_is_killed() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    // Each boot that is cut short while fetching counts, if its report reached the disk before the server died.
    site.ask(&["job", "add", "tiny", "--mac", MAC, "--attempts", "9"]);
    kill(server);
    // Before the point of no return nothing is lost, however often the server dies.
    for _ in 0..3 {
        let server = site.serve(&net);
        let initrd = url(&script(&net), "initrd.gz");
        assert!(fetches(&net, &initrd.replace("initrd.gz", "vmlinuz")));
        kill(server);
    }
    let server = site.serve(&net);
    let (one, two) = (script(&net), script(&net));
    let (one, two) = (url(&one, "initrd.gz"), url(&two, "initrd.gz"));
    assert!(fetches(&net, &one));
    kill(server);
    for _ in 0..3 {
        let server = site.serve(&net);
        let job = site.ask(&["job", "show", "j1"]);
        assert!(job.contains("running") && job.contains("may have started"), "{job}");
        assert!(is_local(&script(&net)), "{}", script(&net));
        assert!(fetches(&net, &one), "the same boot goes on under its token");
        assert!(!fetches(&net, &two), "another one does not");
        kill(server);
    }
    let server = site.serve(&net);
    let line = site.ask(&["job", "rearm", "j1"]);
    assert!(line.contains("re-armed j1 armed"), "{line}");
    assert!(!fetches(&net, &one), "it belongs to the time before");
    let again = url(&script(&net), "initrd.gz");
    assert!(fetches(&net, &again));
    assert!(is_local(&script(&net)));
    server.stop();
}

/// A boot of an emulated machine, and as long again for a script that tries again.
const PATIENCE: Duration = Duration::from_secs(300);

/// The complaint this program exists for: a machine with the network first in its boot order that installs itself again
/// and again. Here the server is killed once in every boot, at any moment of it.
#[test]
fn a_machine_that_always_boots_from_the_network_is_installed_once_whenever_the_server_is_killed() {
    let boots = if std::env::var_os("LAB_ALL").is_some() { 10 } else { 3 };
    let mut chance = u64::from(std::process::id());
    println!("seed {chance}");
    let net = Net::flat();
    let site = site(&net);
    let mut server = site.serve(&net);
    let mut spec = MachineSpec::new(Firmware::Bios, 7);
    spec.disk = Some(local_disk(&site.dir.0));
    site.ask(&["job", "add", "tiny", "--mac", &spec.mac, "--attempts", "20"]);
    let words = [INIT_WORD, DISK_WORD];
    let mut installed = 0;
    for boot in 1..=boots {
        let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_millis(1_000 + (chance >> 33) % 24_000);
        let seen = machine.see(&words, moment).unwrap_or_else(|| {
            println!("boot {boot}: the server is killed after {moment:?}");
            server.process.signal("KILL");
            server.process.wait(SOON);
            server = site.serve(&net);
            machine.see(&words, PATIENCE).expect("the machine boots something")
        });
        println!("boot {boot}: {}", words[seen]);
        installed += u32::from(seen == 0);
        assert!(installed <= 1, "installed twice:\n{}", site.ask(&["explain", &spec.mac]));
    }
    if installed == 0 {
        // Every boot was cut off before the point of no return: the job is still there, and the next one has it.
        let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
        machine.wait_for(INIT_WORD, PATIENCE);
    }
    assert!(site.ask(&["job", "show", "j1"]).contains("running"), "{}", site.ask(&["job", "show", "j1"]));
    let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
    machine.wait_for(DISK_WORD, PATIENCE);
    server.stop();
}

#[test]
fn a_rules_job_starts_over_for_one_machine_alone() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    site.ask(&["job", "add", "tiny", "--any", "--allow-rule"]);
    let of = |n: u8| {
        let who = format!("mac=52:54:00:00:01:0{n}&uuid=4c4c4544-0042-3510-8052-b4c04f56420{n}");
        let url = format!("http://10.77.0.1:4433/ipxe?{who}&platform=pcbios&buildarch=i386&longmode=1");
        run(net.server.command(tool("curl", "curl")).args(["-sS", "-f", "-A", "iPXE/1.21.1", &url]))
    };
    for n in [1, 2] {
        assert!(fetches(&net, &url(&of(n), "initrd.gz")));
        assert!(is_local(&of(n)), "{n} had it");
    }
    let refused = site.command(&["job", "rearm", "j1"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("2 machines had j1") && said.contains("--all"),
        "{said}"
    );
    assert!(is_local(&of(1)) && is_local(&of(2)), "nothing was re-armed");
    let unknown = site.command(&["job", "rearm", "j1", "--machine", "52:54:00:00:01:09"]);
    assert!(!unknown.status.success());
    let said = site.ask(&["job", "rearm", "j1", "--machine", "52:54:00:00:01:02"]);
    assert!(said.contains("gets j1 once more"), "{said}");
    assert!(is_local(&of(1)) && !is_local(&of(2)), "one of them alone");
    site.ask(&["job", "rearm", "j1", "--all"]);
    assert!(!is_local(&of(1)));
    server.stop();
}

/// A file system of a few megabytes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        run(Command::new(tool("mount", "mount"))
            .args(["-t", "tmpfs", "-o", "size=4m", "bootstorm-test"])
            .arg(&at));
        Self(at)
    }

    fn fill(&self) {
        // Ends by itself when nothing fits any more.
        let _ = Command::new("dd")
            .args(["if=/dev/zero", "bs=4096"])
            .arg(format!("of={}", self.0.join("filler").display()))
            .stderr(Stdio::null())
            .status();
    }

    fn clear(&self) {
        fs::remove_file(self.0.join("filler")).expect("the filler is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_in_words_and_goes_on_by_itself() {
    let net = Net::flat();
    let site = site(&net);
    let disk = SmallDisk::mount(site.dir.join("state"));
    let server = site.serve(&net);
    site.ask(&["job", "add", "tiny", "--mac", MAC]);
    disk.fill();
    // What is free inside the store's own pages is used up first.
    let mut refused = None;
    for n in 0..2_000u32 {
        let mac = format!("52:54:00:01:{:02x}:{:02x}", n >> 8, n & 0xff);
        let output = site.command(&["job", "add", "tiny", "--mac", &mac]);
        if !output.status.success() {
            refused = Some((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()));
            break;
        }
    }
    let (code, text) = refused.expect("a full disk takes no two thousand jobs");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no space left"), "{text}");
    let ready = || {
        let mut curl = net.server.command(tool("curl", "curl"));
        curl.args(["-sS", "http://127.0.0.1:8081/readyz"]);
        run(&mut curl)
    };
    assert!(ready().contains("changes cannot be stored"), "{}", ready());
    let listed = site.ask(&["job", "list"]);
    assert!(listed.contains("j1"), "reading goes on: {listed}");
    let initrd = url(&script(&net), "initrd.gz");
    assert!(!fetches(&net, &initrd), "nothing passes the point of no return unrecorded");
    disk.clear();
    let begun = Instant::now();
    while ready() != "ready\n" {
        assert!(begun.elapsed() < SOON, "it does not find out by itself: {}", ready());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(fetches(&net, &initrd), "and then it does");
    assert!(is_local(&script(&net)));
    server.stop();
}

//! The demonstration, as a user without privileges runs it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use labkit::{Process, TempDir, tool};

use crate::server::{SOON, binary};

fn demo(driver: &str) {
    let dir = TempDir::new("demo");
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o777)).expect("a folder for anyone");
    let program = dir.join("bootstorm");
    fs::copy(binary(), &program).expect("the program can be copied");
    let output = Command::new(tool("setpriv", "util-linux"))
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["demo", "--json", "--size", "8MiB", "--driver", driver])
        .env("TMPDIR", &dir.0)
        .output()
        .expect("the demonstration runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let boots = report["boots"].as_array().expect("boots");
    let kinds: Vec<&str> = boots.iter().filter_map(|boot| boot["kind"].as_str()).collect();
    assert_eq!(kinds, ["bios", "uefi", "http", "ipxe"]);
    for boot in boots {
        assert_eq!(boot["booted"], true, "{boot}");
        assert!(boot["bytes"].as_u64().expect("bytes") > 8 << 20, "the whole WIM and more: {boot}");
        assert_eq!(boot["hash"], boots[0]["hash"], "every machine got the same bytes");
        let names: Vec<&str> =
            boot["stages"].as_array().expect("stages").iter().filter_map(|s| s["name"].as_str()).collect();
        let loader = names.iter().any(|name| name.starts_with("loader"));
        assert_eq!(loader, boot["kind"] != "ipxe", "{names:?}");
    }
    let rows = report["throughput"].as_array().expect("rows");
    assert!(rows.iter().any(|row| row["work"] == "tftp") && rows.iter().any(|row| row["work"] == "http"));
    for row in rows {
        assert!(row["bytes"].as_u64().expect("bytes") > 0 && row["failures"] == 0, "{row}");
    }
    let left: Vec<_> =
        fs::read_dir(&dir.0).expect("the folder").filter_map(Result::ok).map(|e| e.file_name()).collect();
    assert_eq!(left, ["bootstorm"], "nothing is left behind");
}

#[test]
fn a_demonstration_that_is_ended_leaves_nothing_behind_and_shows_its_folder_to_nobody() {
    let stages = [
        ("64GiB", None, "INT", 5),
        ("64MiB", Some("four machines boot"), "TERM", 5),
        // Where it says that this is how it ends.
        ("1MiB", Some("Ctrl-C"), "HUP", 0),
    ];
    // While its files are made, while machines boot, and while it stays.
    for (size, word, signal, code) in stages {
        let (dir, logs) = (TempDir::new("demo-ended"), TempDir::new("demo-log"));
        let mut command = Command::new(binary());
        command.args(["demo", "--stay", "--size", size]).env("TMPDIR", &dir.0);
        let mut process = Process::spawn("demo", &mut command, &logs.join("log"));
        let folders = || -> Vec<_> {
            fs::read_dir(&dir.0).expect("there").map(|entry| entry.expect("an entry").path()).collect()
        };
        match word {
            Some(word) => drop(process.wait_for(word, SOON)),
            None => {
                let begun = Instant::now();
                while folders().first().is_none_or(|folder| !folder.join("images/winpe").is_dir()) {
                    assert!(begun.elapsed() < SOON, "{}", process.output());
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        let mode = fs::metadata(&folders()[0]).expect("its folder").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        process.signal(signal);
        let ended = process.wait(SOON);
        assert_eq!(ended.code(), Some(code), "{size} {signal}: {}", process.output());
        assert_eq!(folders(), Vec::<std::path::PathBuf>::new(), "{size} {signal}");
    }
}

#[test]
fn four_kinds_of_machines_boot_without_root_with_the_ring() {
    demo("uring");
}

#[test]
fn four_kinds_of_machines_boot_without_root_without_the_ring() {
    demo("mio");
}

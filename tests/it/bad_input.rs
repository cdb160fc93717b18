//! What a new administrator does wrong, and what the program says to it.

use std::fs;
use std::process::Command;

use labkit::{TempDir, tool};

use crate::server::{FULL, Net, Site, binary};

/// Exit code and both outputs.
fn outcome(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("the program runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn three_mistakes_are_all_named_with_line_and_key() {
    let dir = TempDir::new("bad");
    let file = dir.join("c.toml");
    fs::write(&file, "[server]\ndrivr = \"mio\"\n\n[dhcp]\nmode = \"half\"\n\n[tftp]\nmax_blksize = 7\n")
        .unwrap();
    for verb in [vec!["config", "check"], vec!["serve", "--config"]] {
        let (code, text) = outcome(Command::new(binary()).args(&verb).arg(&file));
        assert_eq!(code, 3, "{text}");
        for wanted in ["c.toml:2: server.drivr", "c.toml:5: dhcp.mode", "c.toml:8: tftp.max_blksize"] {
            assert!(text.contains(wanted), "{verb:?} does not say {wanted}:\n{text}");
        }
    }
}

#[test]
fn the_example_is_a_good_configuration() {
    let dir = TempDir::new("example");
    let example = Command::new(binary()).args(["config", "example"]).output().unwrap();
    fs::write(dir.join("c.toml"), example.stdout).unwrap();
    let (code, text) = outcome(Command::new(binary()).args(["config", "check"]).arg(dir.join("c.toml")));
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_variable_of_somebody_else_may_hold_any_bytes() {
    use std::os::unix::ffi::OsStrExt;

    let mut show = Command::new(binary());
    let (code, text) =
        outcome(show.args(["config", "show"]).env("SOMEBODYS", std::ffi::OsStr::from_bytes(b"\xff\xfe")));
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_missing_interface_is_named_with_those_there_are() {
    let net = Net::flat();
    let site = Site::new("nosuch0", "auto", FULL);
    let (code, text) = outcome(net.server.command(binary()).arg("serve").arg("--config").arg(site.config()));
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("interface nosuch0") && text.contains("lan"), "{text}");
}

#[test]
fn a_taken_port_is_named_with_the_way_to_find_its_holder() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let server = site.serve(&net);
    let other = Site::new(net.interface, "auto", &format!("{FULL}[admin]\nlisten = \"\"\n"));
    let (code, text) = outcome(net.server.command(binary()).arg("serve").arg("--config").arg(other.config()));
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("bind udp 0.0.0.0:67") && text.contains("ss -ulnp"), "{text}");
    server.stop();
}

#[test]
fn a_second_server_on_the_same_ports_does_not_start() {
    let net = Net::flat();
    let off = "[dhcp]\nmode = \"off\"\n[admin]\nlisten = \"\"\n";
    let first = Site::new(net.interface, "auto", off);
    let server = first.serve(&net);
    for (ports, named) in [
        ("[tftp]\nlisten = []\n", "bind tcp 0.0.0.0:4433: Address already in use"),
        ("[http]\nlisten = []\n", "bind udp 0.0.0.0:69: Address already in use"),
        ("[tftp]\nlisten = []\n[http]\nlisten = [\"10.77.0.1:4433\"]\n", "bind tcp 10.77.0.1:4433"),
    ] {
        let second = Site::new(net.interface, "auto", &format!("{off}{ports}"));
        let mut serve = net.server.command(tool("timeout", "coreutils"));
        let (code, text) =
            outcome(serve.arg("20").arg(binary()).arg("serve").arg("--config").arg(second.config()));
        assert_eq!(code, 5, "{text}");
        assert!(text.contains(named), "{named}:\n{text}");
    }
    server.stop();
}

#[test]
fn an_interface_named_twice_is_answered_on_once() {
    let net = Net::flat();
    let site = Site::new(&format!("{0}\", \"{0}", net.interface), "auto", FULL);
    let server = site.serve(&net);
    assert!(server.ready.ends_with(&format!("interfaces={}", net.interface)), "{}", server.ready);
    server.stop();
}

#[test]
fn a_missing_privilege_is_named_with_the_command_that_grants_it() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let mut open = fs::metadata(&site.dir.0).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o777);
    for folder in ["", "state", "images"] {
        fs::set_permissions(site.dir.join(folder), open.clone()).unwrap();
    }
    // The build folder need not be readable for nobody, so the program is put where it is.
    let program = site.dir.join("bootstorm");
    fs::copy(binary(), &program).unwrap();
    let mut command = net.server.command(tool("setpriv", "util-linux"));
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    let (code, text) = outcome(command.arg("serve").arg("--config").arg(site.config()));
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("Permission denied") && text.contains("setcap"), "{text}");
}

#[test]
fn a_folder_that_cannot_boot_is_listed_with_the_reason_and_refused() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    fs::create_dir_all(site.dir.join("images/broken")).unwrap();
    fs::write(site.dir.join("images/broken/readme.txt"), "nothing to boot here").unwrap();
    let listed = site.ask(&["image", "list"]);
    assert!(listed.contains("broken") && listed.contains("cannot boot: "), "{listed}");
    let server = site.serve(&net);
    let output = site.command(&["job", "add", "broken", "--mac", "52:54:00:00:00:01"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("broken"), "{output:?}");
    server.stop();
}

#[test]
fn a_destructive_image_is_not_booted_every_time_nor_by_everyone() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    site.add_linux();
    fs::write(site.dir.join("images/tiny/image.toml"), "destructive = true\n").unwrap();
    let server = site.serve(&net);
    for (whom, way_out) in
        [(&["--mac", "52:54:00:00:00:01", "--always"][..], "--always"), (&["--any-unknown"], "--allow-rule")]
    {
        let output = site.command(&[&["job", "add", "tiny"], whom].concat());
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("may wipe a disk") && text.contains(way_out), "{text}");
    }
    server.stop();
}

#[test]
fn two_servers_on_one_state_folder_are_told_apart() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let server = site.serve(&net);
    let (code, text) = outcome(net.server.command(binary()).arg("serve").arg("--config").arg(site.config()));
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("in use by another process") && text.contains("--state"), "{text}");
    server.stop();
}

#[test]
fn no_server_is_said_so() {
    let site = Site::new("lo", "auto", "");
    let output = site.command(&["job", "list"]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("bootstorm serve"), "{text}");
}

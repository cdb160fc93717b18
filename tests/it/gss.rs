//! A tree as Ghost Solution Suite leaves it, served unchanged: its iPXE images over HTTP, the others over TFTP by a boot
//! program of their own, for real firmware. Stand-ins that say that they ran take the place of Microsoft's and Broadcom's
//! programs, which nobody may hand out.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use labkit::{Firmware, INIT_WORD, Machine, MachineSpec, bios_program, efi_program, run, tool};

use crate::server::{BRIDGE, FULL, Net, Server, Site};

const PATIENCE: Duration = Duration::from_secs(300);
const NATIVE: &str = "NATIVE PROGRAM RAN";

/// Two images of one estate, iPXE off in both: `MenuOption128` can boot Linux by iPXE, `MenuOption144` only its own.
fn estate(root: &Path, lab: &Path) {
    for name in ["MenuOption128", "MenuOption144"] {
        let folder = root.join(name).join("X64");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("bstrap.0"), bios_program(NATIVE)).expect("a stand-in");
        fs::write(folder.join("bstrap.efi"), efi_program(NATIVE)).expect("a stand-in");
    }
    let folder = root.join("MenuOption128");
    fs::copy(labkit::kernel(), folder.join("X64/vmlinuz")).expect("a kernel");
    fs::copy(labkit::initramfs(lab), folder.join("X64/initrd.gz")).expect("an initramfs");
    fs::write(folder.join("cmdline"), "console=ttyS0 panic=1\n").expect("arguments");
    fs::create_dir_all(root.join("BStrap/X86pc")).expect("a folder");
    fs::write(root.join("BStrap/X86pc/BStrap.0"), "the vendor's first hop").expect("a file");
    fs::write(root.join("MTFTP.ini"), "x").expect("a file");
}

fn add(server: &Server<'_>, image: &str, mac: &str) -> String {
    let added = server.site.ask(&["job", "add", image, "--mac", mac, "--replace"]);
    added.split_whitespace().find(|word| word.starts_with('j')).expect("a job's number").to_owned()
}

/// Boots a machine until it says `word`; its job has passed then.
fn boots(net: &Net, server: &Server<'_>, spec: &MachineSpec, image: &str, word: &str) {
    let job = add(server, image, &spec.mac);
    let mut machine = Machine::start(spec, net.machines(), BRIDGE, &server.site.dir.0);
    machine.wait_for(word, PATIENCE);
    let shown = server.site.ask(&["job", "show", &job]);
    assert!(shown.contains("running"), "it ran, yet: {shown}");
}

fn switched_between_http_and_tftp(firmware: Firmware, number: u8, program: &str) {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    estate(&site.dir.join("images"), &site.dir.0);
    let mut server = site.serve(&net);
    let spec = MachineSpec::new(firmware, number);
    boots(&net, &server, &spec, "MenuOption128", NATIVE);
    server.process.wait_for(&format!("MenuOption128/X64/{program} delivered"), PATIENCE);
    let switched = site.ask(&["image", "loader", "enable", "MenuOption128"]);
    assert!(switched.contains("iPXE is on") && switched.contains("copied"), "{switched}");
    boots(&net, &server, &spec, "MenuOption128", INIT_WORD);
    server.process.wait_for("MenuOption128/X64/initrd.gz delivered", PATIENCE);
    // The other half of the estate is as it was, at the same time.
    if std::env::var_os("LAB_ALL").is_some() {
        boots(&net, &server, &MachineSpec::new(firmware, number + 1), "MenuOption144", NATIVE);
        let switched = site.ask(&["image", "loader", "disable", "MenuOption128"]);
        assert!(switched.contains("iPXE is off"), "{switched}");
        boots(&net, &server, &spec, "MenuOption128", NATIVE);
    }
    let audit = site.ask(&["audit", "list", "--json"]);
    assert!(audit.contains("image-loader-enabled") && audit.contains("zipxe.0"), "{audit}");
    site.ask(&["audit", "verify"]);
    server.stop();
}

#[test]
fn a_bios_machine_boots_an_image_by_tftp_then_by_http() {
    switched_between_http_and_tftp(Firmware::Bios, 41, "bstrap.0");
}

#[test]
#[ignore = "minutes of emulation: tools/test --all runs it"]
fn a_uefi_machine_boots_an_image_by_tftp_then_by_http() {
    switched_between_http_and_tftp(Firmware::Uefi, 43, "bstrap.efi");
}

#[test]
fn import_says_what_a_tree_holds_and_serves_it_where_it_lies() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let tree = site.dir.join("express/PXE/Images");
    estate(&tree, &site.dir.0);
    fs::write(tree.join("MenuOption144/X64/ipxe64.efi"), "the vendor's own").expect("a loader");
    let dir = site.dir.join("express").display().to_string();
    let said = site.command(&["import", "gss", &dir, "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&said.stdout).expect("JSON");
    assert!(document["root"].as_str().expect("a root").ends_with("express/PXE/Images"), "{document}");
    assert_eq!((document["served"].as_bool(), &document["beside"][0]), (Some(false), &"MTFTP.ini".into()));
    let image = |name: &str| {
        let images = document["images"].as_array().expect("images");
        images
            .iter()
            .find(|image| image["name"] == name)
            .unwrap_or_else(|| panic!("no {name} in {document}"))
            .clone()
    };
    let linux = image("MenuOption128");
    assert_eq!((linux["form"].as_str(), linux["ipxe"].as_bool()), (Some("gss"), Some(false)));
    assert_eq!(linux["boots"]["bios"]["program"], "X64/bstrap.0");
    assert_eq!(linux["boots"]["uefi-x64"]["by"], "native");
    let other = image("MenuOption144");
    assert_eq!(other["ipxe"], true);
    assert_eq!(other["ipxe_loaders"][0]["file"], "X64/ipxe64.efi");
    assert!(image("BStrap")["cannot_boot"].as_str().expect("a reason").contains("boot programs"));

    let said = site.ask(&["import", "gss", &dir, "--serve"]);
    assert!(said.contains("MenuOption128") && said.contains("[images] trees"), "{said}");
    site.ask(&["config", "check", &site.config().display().to_string()]);
    let server = site.serve(&net);
    let got = run(net
        .server
        .command(tool("curl", "curl"))
        .args(["-sS", "http://10.77.0.1:4433/images/MenuOption144/X64/ipxe64.efi"]));
    assert_eq!(got, "the vendor's own");
    let page = run(net
        .server
        .command(tool("curl", "curl"))
        .args(["-sS", "http://10.77.0.1:4433/Altiris/iPXE/GetPxeScript.aspx"]));
    assert!(page.contains("MenuOption128") && page.contains("X64/bstrap.0 by TFTP"), "{page}");
    // A change made by hand is seen by itself.
    fs::remove_file(tree.join("MenuOption144/X64/ipxe64.efi")).expect("switched off by hand");
    let shown = site.ask(&["image", "loader", "disable", "MenuOption144"]);
    assert!(shown.contains("iPXE is off for MenuOption144 already"), "{shown}");
    server.stop();
    // Without a server the verb works all the same, and leaves its entry.
    let shown = site.ask(&["image", "loader", "enable", "MenuOption144"]);
    assert!(shown.contains("copied X64/zipxe.0"), "{shown}");
    let server = site.serve(&net);
    let audit = site.ask(&["audit", "list", "--json"]);
    assert!(audit.contains("no server running") && audit.contains("MenuOption144"), "{audit}");
    site.ask(&["audit", "verify"]);
    server.stop();
}

#[test]
fn import_copies_a_tree_into_the_images_folder() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let tree = site.dir.join("tree");
    estate(&tree, &site.dir.0);
    let dir = tree.display().to_string();
    // Now, however long the rest has taken.
    run(Command::new("find").arg(&tree).args(["-type", "f", "-exec", "touch", "{}", "+"]));
    let young = site.command(&["import", "gss", &dir, "--copy"]);
    let said = String::from_utf8_lossy(&young.stdout).into_owned();
    assert!(young.status.code() == Some(1) && said.contains("it is still being written"), "{young:?}");
    run(Command::new("find").arg(&tree).args([
        "-type",
        "f",
        "-exec",
        "touch",
        "-d",
        "1 minute ago",
        "{}",
        "+",
    ]));
    let said = site.ask(&["import", "gss", &dir, "--copy"]);
    let shown = site.ask(&["image", "show", "MenuOption144", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["version"], 1, "a copy has a record, and with that is served at once: {shown}");
    assert!(said.contains("MenuOption144: copied"), "{said}");
    let listed = site.ask(&["image", "list"]);
    assert!(listed.contains("MenuOption128") && listed.contains("MenuOption144"), "{listed}");
    let again = site.ask(&["import", "gss", &dir, "--copy"]);
    assert!(again.contains("MenuOption144: there already"), "{again}");
    assert!(!site.command(&["import", "gss", "/nowhere"]).status.success());
    // Before the first start: the store is the server's to make.
    let switched = site.ask(&["image", "loader", "disable", "MenuOption144"]);
    assert!(switched.contains("not in the audit log: no server has run here yet"), "{switched}");
    assert_eq!(fs::read_dir(site.dir.join("state")).expect("its state").count(), 0);
}

#[test]
fn debians_loaders_are_known() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let said = site.ask(&["loader", "list", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let loader = |name: &str| {
        let loaders = document["loaders"].as_array().expect("loaders");
        loaders
            .iter()
            .find(|loader| loader["name"] == name)
            .unwrap_or_else(|| panic!("no {name} in {said}"))
            .clone()
    };
    for name in ["undionly.kpxe", "snponly.efi"] {
        let loader = loader(name);
        assert_eq!(loader["what"], "ipxe", "{loader}");
        assert!(loader["version"].as_str().expect("a version").starts_with("1."), "{loader}");
        assert!(loader["features"].as_array().expect("features").contains(&"http".into()), "{loader}");
    }
    assert_eq!(loader("undionly.kpxe")["offered_to"], serde_json::json!(["bios"]));
    let shown = site.ask(&["loader", "show", "snponly.efi"]);
    assert!(shown.contains("offered to uefi-x64") && shown.contains("blake3"), "{shown}");
}

/// Signs an EFI program with the key that the machine trusts.
fn sign(from: &Path, to: &Path) {
    let (certificate, key, passphrase) = labkit::SNAKEOIL;
    let folder = labkit::TempDir::new("key");
    let open = folder.join("key.pem");
    let pass = format!("pass:{passphrase}");
    run(Command::new(tool("openssl", "openssl"))
        .args(["pkey", "-in", key, "-passin", &pass, "-out"])
        .arg(&open));
    fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
    run(Command::new(tool("sbsign", "sbsigntool"))
        .arg("--key")
        .arg(&open)
        .args(["--cert", certificate, "--output"])
        .arg(to)
        .arg(from));
}

#[test]
#[ignore = "minutes of emulation: tools/test --all runs it"]
fn secure_boot_starts_what_is_signed_and_refuses_the_rest() {
    let net = Net::flat();
    let chain = "[loaders]\nuefi_x64 = [\"signed/snponly.efi\"]\n";
    let loaders = labkit::TempDir::new("loaders");
    let dirs = format!("dirs = [\"{}\"]\n", loaders.0.display());
    let site = Site::new(net.interface, "auto", &format!("{FULL}{chain}{dirs}"));
    site.add_linux();
    sign(&labkit::kernel(), &site.dir.join("images/tiny/vmlinuz"));
    let ipxe = Path::new("/usr/lib/ipxe/snponly.efi");
    sign(ipxe, &loaders.join("signed/snponly.efi"));
    let shown = site.ask(&["loader", "show", "signed/snponly.efi"]);
    assert!(shown.to_lowercase().contains("snakeoil"), "the signer is named: {shown}");
    let mut server = site.serve(&net);
    let spec = MachineSpec::new(Firmware::UefiSecure, 47);
    boots(&net, &server, &spec, "tiny", INIT_WORD);

    // The same program without its signature: fetched, and not started.
    let staged = loaders.join("unsigned.efi");
    fs::copy(ipxe, &staged).expect("a copy");
    fs::rename(staged, loaders.join("signed/snponly.efi")).expect("it takes the signed one's place");
    let other = MachineSpec::new(Firmware::UefiSecure, 48);
    let job = add(&server, "tiny", &other.mac);
    let mut machine = Machine::start(&other, net.machines(), BRIDGE, &site.dir.0);
    let refusals = ["Access Denied", "Security Violation", INIT_WORD, "iPXE initialising devices"];
    let said = machine.see(&refusals, PATIENCE);
    assert!(matches!(said, Some(0 | 1)), "{said:?}:\n{}", machine.serial());
    server.process.wait_for("loader signed/snponly.efi fetched", PATIENCE);
    let shown = site.ask(&["job", "show", &job]);
    assert!(shown.contains("armed"), "nothing ran: {shown}");
    server.stop();
}

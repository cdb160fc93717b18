//! WinPE as far as it can be shown without Microsoft's files: the script and every file it names, fetched by a real
//! iPXE to the last byte. A Linux kernel stands in for wimboot, which iPXE starts the same way: as a bzImage with the
//! other files behind it as an archive. What counts is what iPXE has acknowledged, byte for byte, before it starts it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use labkit::{Firmware, Machine, MachineSpec, run, tool};

use crate::server::{BRIDGE, FULL, Net, Site};

#[test]
fn every_file_of_a_winpe_image_arrives_as_it_is() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let folder = site.dir.join("images/winpe");
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(labkit::kernel(), folder.join("wimboot")).expect("the stand-in for wimboot");
    let content = site.dir.join("content");
    fs::create_dir_all(content.join("Windows/System32")).expect("a folder");
    fs::write(content.join("Windows/System32/hello.txt"), "hello").expect("a file for the WIM");
    run(Command::new(tool("wimlib-imagex", "wimtools"))
        .args(["capture", "--quiet", "--boot", "--compress=LZX"])
        .arg(&content)
        .arg(folder.join("boot.wim"))
        .arg("WinPE"));
    fs::write(folder.join("startnet.cmd"), "wpeinit\r\n").expect("an injected file");
    fs::write(folder.join("BCD"), vec![7; 65_537]).expect("a boot store of an odd size");
    fs::write(
        folder.join("image.toml"),
        "kind = \"winpe\"\narch = \"x64\"\nargs = \"console=ttyS0 panic=1\"\n",
    )
    .expect("image.toml");
    let listed = site.ask(&["image", "list"]);
    assert!(listed.contains("winpe") && !listed.contains("cannot boot"), "{listed}");

    let mut server = site.serve(&net);
    let spec = MachineSpec::new(Firmware::Bios, 20);
    site.ask(&["job", "add", "winpe", "--mac", &spec.mac]);
    let script = site.ask(&["script", "render", "--mac", &spec.mac, "--platform", "pcbios"]);
    for wanted in ["wimboot", "boot.wim", "startnet.cmd", "BCD"] {
        assert!(script.contains(wanted), "the script has no {wanted}:\n{script}");
    }
    let machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
    server.process.wait_for("winpe/boot.wim delivered", Duration::from_secs(300));
    drop(machine);
    let log = server.process.output();
    for name in ["wimboot", "startnet.cmd", "BCD", "boot.wim"] {
        let len = fs::metadata(folder.join(name)).expect("the file is there").len();
        let wanted = format!("winpe/{name} delivered, {len} bytes");
        assert!(log.contains(&wanted), "not in the log: {wanted}\n{log}");
    }
    server.stop();
}

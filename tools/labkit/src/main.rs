//! One machine, by hand. See `tools/lab`.

use std::fs;
use std::process::Command;
use std::time::Duration;

use labkit::{
    BRIDGE, FULL, Firmware, INIT_WORD, Machine, MachineSpec, Net, PROXY, Process, TempDir, initramfs, kernel,
    run,
};

const SOON: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(300);

#[allow(clippy::print_stdout, reason = "it is there to be read")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let word = |index: usize, default: &str| args.get(index).cloned().unwrap_or_else(|| default.to_owned());
    let (program, firmware, mode, driver) =
        (word(0, "bootstorm"), word(1, ""), word(2, "full"), word(3, "auto"));
    let firmware = match firmware.as_str() {
        "bios" => Firmware::Bios,
        "uefi" => Firmware::Uefi,
        "http" => Firmware::UefiHttp,
        other => panic!("{other:?}: expected bios, uefi or http"),
    };
    let dir = TempDir::new("lab");
    for name in ["images/tiny", "state"] {
        fs::create_dir_all(dir.join(name)).expect("a folder");
    }
    fs::copy(kernel(), dir.join("images/tiny/vmlinuz")).expect("the kernel");
    fs::copy(initramfs(&dir.0), dir.join("images/tiny/initrd.gz")).expect("the initramfs");
    fs::write(dir.join("images/tiny/image.toml"), "args = \"console=ttyS0 panic=1\"\n").expect("image.toml");

    let (net, dhcp) = match mode.as_str() {
        "full" => (Net::flat(), FULL),
        "proxy" => (Net::with_dnsmasq(&dir.0), PROXY),
        "relay" => (Net::relayed(&dir.0), FULL),
        other => panic!("{other:?}: expected full, proxy or relay"),
    };
    let config = dir.join("bootstorm.toml");
    let text = format!(
        "[server]\ninterfaces = [\"{}\"]\nstate_dir = \"{}\"\ndriver = \"{driver}\"\n[images]\ndir = \"{}\"\n{dhcp}",
        net.interface,
        dir.join("state").display(),
        dir.join("images").display()
    );
    fs::write(&config, text).expect("the configuration");
    let mut command = net.server.command(&program);
    command.arg("serve").arg("--config").arg(&config);
    let mut process = Process::spawn("bootstorm", &mut command, &dir.join("server.log"));
    println!("{}", process.wait_for("bootstorm ready", SOON));

    let spec = MachineSpec::new(firmware, 1);
    let ask = |words: &[&str]| run(Command::new(&program).args(words).arg("--config").arg(&config));
    print!("{}", ask(&["job", "add", "tiny", "--mac", &spec.mac]));
    let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &dir.0);
    machine.wait_for(INIT_WORD, PATIENCE);
    println!("--- server\n{}", process.output());
    println!("--- serial\n{}", machine.serial());
    println!("--- timeline\n{}", ask(&["explain", &spec.mac]));
}

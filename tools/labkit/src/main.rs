//! One machine, by hand. See `tools/lab`.

use std::fs;
use std::process::Command;
use std::time::Duration;

use labkit::{
    Firmware, INIT_WORD, Machine, MachineSpec, Namespace, Process, TempDir, initramfs, kernel, run, tool,
};

const SOON: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(300);

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

    let server = Namespace::new();
    let router = (mode == "relay").then(Namespace::new);
    let other = (mode == "proxy").then(Namespace::new);
    let mut helpers = Vec::new();
    let interface = match &router {
        None => {
            server.bridge("lan", "10.77.0.1/24");
            "lan"
        }
        Some(router) => {
            server.wire("eth0", router, "up0");
            server.ip("addr add 10.88.0.1/24 dev eth0");
            router.ip("addr add 10.88.0.2/24 dev up0");
            router.bridge("lan", "10.77.0.1/24");
            server.ip("route add 10.77.0.0/24 via 10.88.0.2");
            run(router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
            let mut command = router.command(tool("dhcrelay", "isc-dhcp-relay"));
            command.args(["-4", "-d", "-a", "-id", "lan", "-iu", "up0", "10.88.0.1"]);
            helpers.push(Process::spawn("dhcrelay", &mut command, &dir.join("dhcrelay.log")));
            "eth0"
        }
    };
    if let Some(other) = &other {
        server.wire("to-dns", other, "eth0");
        server.ip("link set to-dns master lan");
        other.ip("addr add 10.77.0.2/24 dev eth0");
        let mut command = other.command(tool("dnsmasq", "dnsmasq-base"));
        command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root", "--interface=eth0"]);
        command.args(["--bind-interfaces", "--dhcp-range=10.77.0.100,10.77.0.200,1h"]);
        command.arg(format!("--dhcp-leasefile={}", dir.join("leases").display()));
        helpers.push(Process::spawn("dnsmasq", &mut command, &dir.join("dnsmasq.log")));
    }
    let dhcp = match mode.as_str() {
        "proxy" => "[dhcp]\nmode = \"proxy\"\n",
        "full" | "relay" => {
            "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/24\"\n\
             range = \"10.77.0.100-10.77.0.200\"\nrouter = \"10.77.0.1\"\n"
        }
        other => panic!("{other:?}: expected full, proxy or relay"),
    };
    let config = dir.join("bootstorm.toml");
    let text = format!(
        "[server]\ninterfaces = [\"{interface}\"]\nstate_dir = \"{}\"\ndriver = \"{driver}\"\n[images]\ndir = \"{}\"\n{dhcp}",
        dir.join("state").display(),
        dir.join("images").display()
    );
    fs::write(&config, text).expect("the configuration");
    let mut command = server.command(&program);
    command.arg("serve").arg("--config").arg(&config);
    let mut process = Process::spawn("bootstorm", &mut command, &dir.join("server.log"));
    println!("{}", process.wait_for("bootstorm ready", SOON));

    let spec = MachineSpec::new(firmware, 1);
    let ask = |words: &[&str]| run(Command::new(&program).args(words).arg("--config").arg(&config));
    print!("{}", ask(&["job", "add", "tiny", "--mac", &spec.mac]));
    let mut machine = Machine::start(&spec, router.as_ref().unwrap_or(&server), "lan", &dir.0);
    machine.wait_for(INIT_WORD, PATIENCE);
    println!("--- server\n{}", process.output());
    println!("--- serial\n{}", machine.serial());
    println!("--- timeline\n{}", ask(&["explain", &spec.mac]));
}

//! A server under test, and the networks it stands in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use labkit::{Namespace, Process, TempDir, run, tool};

/// Patience with things that take well under a second on an idle machine.
pub const SOON: Duration = Duration::from_secs(30);

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_bootstorm")
}

/// Where the server stands and where machines are plugged in.
pub struct Net {
    /// The server's namespace.
    pub server: Namespace,
    /// The namespace of the machines' bridge, when it is another one.
    pub router: Option<Namespace>,
    /// Another DHCP server, when there is one.
    pub other: Option<Namespace>,
    /// Interface the server answers on.
    pub interface: &'static str,
    /// Programs that belong to the network.
    pub helpers: Vec<Process>,
}

/// The machines' bridge.
pub const BRIDGE: &str = "lan";

impl Net {
    /// Server and machines on one bridge: 10.77.0.1.
    pub fn flat() -> Self {
        let server = Namespace::new();
        server.bridge(BRIDGE, "10.77.0.1/24");
        Self { server, router: None, other: None, interface: BRIDGE, helpers: Vec::new() }
    }

    /// The same with dnsmasq as the LAN's DHCP server at 10.77.0.2.
    pub fn with_dnsmasq(folder: &Path) -> Self {
        let mut net = Self::flat();
        let other = Namespace::new();
        net.server.wire("to-dns", &other, "eth0");
        net.server.ip(&format!("link set to-dns master {BRIDGE}"));
        other.ip("addr add 10.77.0.2/24 dev eth0");
        let mut command = other.command(tool("dnsmasq", "dnsmasq-base"));
        command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--user=root"]);
        command.args(["--interface=eth0", "--bind-interfaces", "--dhcp-range=10.77.0.100,10.77.0.200,1h"]);
        command.arg(format!("--dhcp-leasefile={}", folder.join("dnsmasq.leases").display()));
        let mut dnsmasq = Process::spawn("dnsmasq", &mut command, &folder.join("dnsmasq.log"));
        dnsmasq.wait_for("DHCP, IP range", SOON);
        net.helpers.push(dnsmasq);
        net.other = Some(other);
        net
    }

    /// The server at 10.88.0.1 behind a router with a DHCP relay; machines on the router's bridge, 10.77.0.0/24.
    pub fn relayed(folder: &Path) -> Self {
        let server = Namespace::new();
        let router = Namespace::new();
        server.wire("eth0", &router, "up0");
        server.ip("addr add 10.88.0.1/24 dev eth0");
        router.ip("addr add 10.88.0.2/24 dev up0");
        router.bridge(BRIDGE, "10.77.0.1/24");
        server.ip("route add 10.77.0.0/24 via 10.88.0.2");
        run(router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
        let mut command = router.command(tool("dhcrelay", "isc-dhcp-relay"));
        command.args(["-4", "-d", "-a", "-id", BRIDGE, "-iu", "up0", "10.88.0.1"]);
        // dhcrelay lists the interfaces that exist when it starts, so the bridge has to be there, and is.
        let mut relay = Process::spawn("dhcrelay", &mut command, &folder.join("dhcrelay.log"));
        relay.wait_for("Sending on   Socket/fallback", SOON);
        Self { server, router: Some(router), other: None, interface: "eth0", helpers: vec![relay] }
    }

    /// Where the machines' bridge is.
    pub fn machines(&self) -> &Namespace {
        self.router.as_ref().unwrap_or(&self.server)
    }
}

/// A configured server, not started yet.
pub struct Site {
    pub dir: TempDir,
    config: PathBuf,
}

/// Full mode for 10.77.0.0/24.
pub const FULL: &str = "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/24\"\n\
                        range = \"10.77.0.100-10.77.0.200\"\nrouter = \"10.77.0.1\"\n";
/// Proxy mode.
pub const PROXY: &str = "[dhcp]\nmode = \"proxy\"\n";

impl Site {
    /// `[server]` is written here; `rest` is the remaining configuration.
    pub fn new(interface: &str, driver: &str, rest: &str) -> Self {
        let dir = TempDir::new("site");
        for name in ["images", "state"] {
            fs::create_dir_all(dir.join(name)).expect("a folder");
        }
        let config = dir.join("bootstorm.toml");
        let text = format!(
            "[server]\ninterfaces = [\"{interface}\"]\nstate_dir = \"{}\"\ndriver = \"{driver}\"\n\
             [images]\ndir = \"{}\"\n{rest}",
            dir.join("state").display(),
            dir.join("images").display(),
        );
        fs::write(&config, text).expect("the configuration can be written");
        Self { dir, config }
    }

    /// Adds the tiny Linux as image `tiny`.
    pub fn add_linux(&self) {
        let folder = self.dir.join("images/tiny");
        fs::create_dir_all(&folder).expect("a folder");
        fs::copy(labkit::kernel(), folder.join("vmlinuz")).expect("the kernel can be copied");
        fs::copy(labkit::initramfs(&self.dir.0), folder.join("initrd.gz"))
            .expect("the initramfs can be copied");
        fs::write(folder.join("image.toml"), "args = \"console=ttyS0 panic=1\"\n").expect("image.toml");
    }

    /// `bootstorm serve`, ready.
    pub fn serve(&self, net: &Net) -> Server<'_> {
        let mut command = net.server.command(binary());
        command.arg("serve").arg("--config").arg(&self.config).args(["--log", "debug"]);
        let mut process = Process::spawn("bootstorm", &mut command, &self.dir.join("server.log"));
        let ready = process.wait_for("bootstorm ready", SOON);
        Server { site: self, process, ready }
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Any bootstorm command with this site's configuration, outside every namespace: they meet at the socket.
    pub fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(words).arg("--config").arg(&self.config).output().expect("bootstorm runs")
    }

    /// The same, and it must end well; its output.
    pub fn ask(&self, words: &[&str]) -> String {
        let output = self.command(words);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "bootstorm {words:?}: {}\n{text}", output.status);
        text
    }
}

/// A running server.
pub struct Server<'a> {
    pub site: &'a Site,
    pub process: Process,
    pub ready: String,
}

impl Server<'_> {
    /// A metric's value, from the admin port inside the server's namespace.
    pub fn metric(&self, net: &Net, name: &str) -> u64 {
        let text =
            run(net.server.command(tool("curl", "curl")).args(["-sS", "http://127.0.0.1:8081/metrics"]));
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().expect("a metric has a value").parse().expect("a value is a number")
    }

    /// Ends it as a service manager does; its exit status must be 0.
    pub fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.wait(SOON);
        assert!(status.success(), "{status}\n{}", self.process.output());
    }
}

//! The networks a boot server stands in.

use std::path::Path;
use std::time::Duration;

use crate::Namespace;
use crate::process::{Process, run, tool};

/// Patience with helpers that start in well under a second on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// Full mode for 10.77.0.0/24.
pub const FULL: &str = "[dhcp]\nmode = \"full\"\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/24\"\n\
                        range = \"10.77.0.100-10.77.0.200\"\nrouter = \"10.77.0.1\"\n";
/// Proxy mode.
pub const PROXY: &str = "[dhcp]\nmode = \"proxy\"\n";

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
        // Its pings take three seconds for each new machine, one after the other.
        command.args([
            "--no-ping",
            "--interface=eth0",
            "--bind-interfaces",
            "--dhcp-range=10.77.0.100,10.77.0.200,1h",
        ]);
        command.arg(format!("--dhcp-leasefile={}", folder.join("dnsmasq.leases").display()));
        let mut dnsmasq = Process::spawn("dnsmasq", &mut command, &folder.join("dnsmasq.log"));
        dnsmasq.wait_for("DHCP, IP range", SOON);
        net.helpers.push(dnsmasq);
        net.other = Some(other);
        net
    }

    /// The server at 10.88.0.1 behind a router with ISC's DHCP relay; machines on the router's bridge, 10.77.0.0/24.
    pub fn relayed(folder: &Path) -> Self {
        let mut net = Self::routed();
        let mut command = net.machines().command(tool("dhcrelay", "isc-dhcp-relay"));
        command.args(["-4", "-d", "-a", "-id", BRIDGE, "-iu", "up0", "10.88.0.1"]);
        // dhcrelay lists the interfaces that exist when it starts, so the bridge has to be there, and is.
        let mut relay = Process::spawn("dhcrelay", &mut command, &folder.join("dhcrelay.log"));
        relay.wait_for("Sending on   Socket/fallback", SOON);
        net.helpers.push(relay);
        net
    }

    /// The same with dnsmasq's relay, which adds no option 82.
    pub fn relayed_by_dnsmasq(folder: &Path) -> Self {
        let mut net = Self::routed();
        let mut command = net.machines().command(tool("dnsmasq", "dnsmasq-base"));
        command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--user=root"]);
        command.arg("--dhcp-relay=10.77.0.1,10.88.0.1");
        let mut relay = Process::spawn("dnsmasq", &mut command, &folder.join("relay.log"));
        relay.wait_for("DHCP relay from 10.77.0.1 to 10.88.0.1", SOON);
        net.helpers.push(relay);
        net
    }

    /// The server at 10.88.0.1 behind a router that passes no broadcast on.
    fn routed() -> Self {
        let server = Namespace::new();
        let router = Namespace::new();
        server.wire("eth0", &router, "up0");
        server.ip("addr add 10.88.0.1/24 dev eth0");
        router.ip("addr add 10.88.0.2/24 dev up0");
        router.bridge(BRIDGE, "10.77.0.1/24");
        server.ip("route add 10.77.0.0/24 via 10.88.0.2");
        run(router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
        Self { server, router: Some(router), other: None, interface: "eth0", helpers: Vec::new() }
    }

    /// Where the machines' bridge is.
    pub fn machines(&self) -> &Namespace {
        self.router.as_ref().unwrap_or(&self.server)
    }
}

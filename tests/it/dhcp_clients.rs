//! DHCP clients as systems have them: each in full mode, beside another server, and through each relay at hand.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use labkit::{Namespace, TempDir, tool};

use crate::dhcp::plugged;
use crate::server::{FULL, Net, PROXY, SOON, Site, tell};

/// Runs a client that must end well; what it said.
fn client(command: &mut Command) -> String {
    let output = command.output().expect("the client runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

fn script(place: &Namespace, text: &str, tool: impl AsRef<OsStr>, dir: &Path) -> String {
    // A mount namespace: what a client keeps in fixed places is its own and gone with it.
    client(place.command("unshare").args(["-m", "bash", "-c", text]).arg(tool).arg(dir))
}

fn dhclient(place: &Namespace, dir: &Path) -> String {
    // In the foreground, where it stays when it has its lease: in the background its number may not be written down yet.
    let text = r#"
rm -f "$1/leases" "$1/pid"
: >"$1/said"
"$0" -4 -1 -d -v -sf /bin/true -cf /dev/null -pf "$1/pid" -lf "$1/leases" eth0 >"$1/said" 2>&1 </dev/null &
client=$!
for look in $(seq 600); do
  grep -q "bound to" "$1/said" || ! kill -0 $client 2>/dev/null && break
  sleep 0.1
done
kill $client 2>/dev/null
wait $client
cat "$1/said"
grep -q "bound to" "$1/said""#;
    script(place, text, tool("dhclient", "isc-dhcp-client"), dir)
}

/// busybox's client on a machine's `eth0`, which must get its lease; what it said.
pub fn udhcpc(place: &Namespace) -> String {
    let words = ["-i", "eth0", "-f", "-n", "-q", "-t", "30", "-T", "1", "-s", "/bin/true"];
    client(place.command(tool("udhcpc", "udhcpc")).args(words))
}

fn dhcpcd(place: &Namespace, dir: &Path) -> String {
    let text = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /var/lib/dhcpcd
mount -t tmpfs tmpfs /var/lib/dhcpcd
: >"$1/dhcpcd.conf"
timeout 90 "$0" -4 -1 -B -d -t 60 -f "$1/dhcpcd.conf" -c /bin/true --noarp eth0 2>&1"#;
    script(place, text, tool("dhcpcd", "dhcpcd-base"), dir)
}

fn networkd(place: &Namespace, dir: &Path) -> String {
    // Without a service manager and a bus; where /sys can only be read it does not wait for udev either. Ended, it gives
    // its lease back.
    let text = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/network /run/systemd/netif/leases /run/systemd/netif/links
chown -R systemd-network /run/systemd/netif
mount -t sysfs -o ro sysfs /sys
printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n[DHCPv4]\nUseHostname=no\n' \
  >/run/systemd/network/10-lab.network
export SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console
exec 3< <(exec timeout 90 "$0" 2>&1 </dev/null)
child=$! found=
while read -r line <&3; do
  echo "$line"
  case $line in *"acquired from"*) found=yes; kill $child ;; esac
done
[ -n "$found" ]"#;
    script(place, text, "/lib/systemd/systemd-networkd", dir)
}

#[test]
fn every_client_gets_its_lease_in_full_mode_beside_a_proxy_and_through_both_relays() {
    let folder = TempDir::new("clients");
    for kind in ["full", "proxy", "dhcrelay", "dnsmasq"] {
        let net = match kind {
            "full" => Net::flat(),
            "proxy" => Net::with_dnsmasq(&folder.0),
            "dhcrelay" => Net::relayed(&folder.0),
            _ => Net::relayed_by_dnsmasq(&folder.0),
        };
        let machines: Vec<_> = (0..4).map(|n| plugged(net.machines(), &format!("plug{n}"))).collect();
        let site = Site::new(net.interface, "auto", if kind == "proxy" { PROXY } else { FULL });
        let server = site.serve(&net);
        let from = match kind {
            "proxy" => "10.77.0.2",
            "full" => "10.77.0.1",
            _ => "10.88.0.1",
        };
        let said: Vec<(&str, String)> = std::thread::scope(|scope| {
            let dir = &folder.0;
            let running = [
                ("dhclient", scope.spawn(|| dhclient(&machines[0], dir))),
                ("udhcpc", scope.spawn(|| udhcpc(&machines[1]))),
                ("dhcpcd", scope.spawn(|| dhcpcd(&machines[2], dir))),
                ("systemd-networkd", scope.spawn(|| networkd(&machines[3], dir))),
            ];
            running.map(|(name, thread)| (name, thread.join().expect("the client got its lease"))).into()
        });
        for (name, text) in said {
            let got = match name {
                "dhclient" => "bound to 10.77.0.",
                "udhcpc" => "lease of 10.77.0.",
                "dhcpcd" => "leased 10.77.0.",
                _ => "DHCPv4 address 10.77.0.",
            };
            // Behind a relay a client names the relay or the server, as it likes.
            let named = net.router.is_some() || text.contains(&format!("from {from}"));
            assert!(text.contains(got) && named, "{kind} {name}: {text}");
        }
        let replies = server.metric(&net, "bootstorm_dhcp_replies_total");
        match kind {
            "proxy" => assert_eq!(replies, 0, "nobody there was booting"),
            _ => assert!(replies >= 8, "{replies}"),
        }
        server.stop();
    }
}

/// What perfdhcp counted of one kind of exchange.
#[derive(Clone, Copy, Default, Debug)]
struct Counted {
    sent: u64,
    received: u64,
    rejected: u64,
    twice: u64,
}

/// One run in a machine that has an address. It acts as a relay at that address, and asks the server or relay at `to`.
fn run_perfdhcp(place: &Namespace, words: &str, to: &str) -> Output {
    let mut command = place.command("timeout");
    command.arg("240").arg(tool("perfdhcp", "kea-admin")).args(["-4", "-l", "eth0"]);
    // At the end it waits so long for the last answers. With `-i` it then fails: it waits for ACKs that nobody asked for.
    if !words.starts_with("-i ") {
        command.args(["-W", "2000000"]);
    }
    command.args(words.split_whitespace()).arg(to).output().expect("perfdhcp runs")
}

/// What came of each kind of exchange in one run.
fn perfdhcp(place: &Namespace, words: &str, to: &str) -> HashMap<String, Counted> {
    let output = run_perfdhcp(place, words, to);
    let text = String::from_utf8_lossy(&output.stdout);
    // 3: an exchange without an answer, as every RELEASE is.
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{words}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let mut all: HashMap<String, Counted> = HashMap::new();
    let mut kind = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("***Statistics for: ") {
            kind = Some(name.trim_end_matches('*').to_owned());
        }
        let (Some(kind), Some((what, number))) = (&kind, line.split_once(": ")) else { continue };
        let Ok(number) = number.trim().parse() else { continue };
        let counted = all.entry(kind.clone()).or_default();
        match what {
            "sent packets" => counted.sent = number,
            "received packets" => counted.received = number,
            "rejected leases" => counted.rejected = number,
            "non unique addresses" => counted.twice = number,
            _ => {}
        }
    }
    assert!(!all.is_empty(), "{words}:\n{text}");
    all
}

const OFFERS: &str = "DISCOVER-OFFER";
const LEASES: &str = "REQUEST-ACK";
/// A UEFI machine's options 60 and 93.
const BOOTING: &str = "-o 60,505845436c69656e743a417263683a30303030373a554e44493a303033303136 -o 93,0007";

/// Answered late is lost to it; a run loses few on a busy machine, and most where something is wrong.
fn good(counted: Counted, what: &str) {
    tell(format!("{what}: {counted:?}"));
    assert!(counted.sent > 0 && counted.received * 20 >= counted.sent * 19, "{what}: {counted:?}");
    assert_eq!((counted.rejected, counted.twice), (0, 0), "{what}: {counted:?}");
}

/// Ways of asking that differ for a server on the same link alone: by broadcast, and machines out of a list in one thread.
fn modes_on_the_link(place: &Namespace, folder: &Path, to: &str, rate: u32, seconds: u32) {
    let count = rate * seconds;
    let broadcast = format!("-B -r {rate} -R {count} -n {count}");
    good(perfdhcp(place, &broadcast, "255.255.255.255")[LEASES], "leases by broadcast");
    let list = folder.join("machines");
    let machines: String = (0..200).map(|n| format!("52:54:00:00:09:{n:02x}\n")).collect();
    std::fs::write(&list, machines).expect("a list");
    let words = format!("-g single -M {} -r {rate} -n {count}", list.display());
    good(perfdhcp(place, &words, to)[LEASES], "leases of machines in a list");
}

/// The modes of perfdhcp that are for DHCPv4 and a server: exchanges in full and by half, of many machines and of one,
/// with renewals and releases, and a hall switched on at once. `replies` is how many the server has sent so far.
fn modes(place: &Namespace, to: &str, rate: u32, seconds: u32, replies: impl Fn() -> u64) {
    let count = rate * seconds;
    // More machines than exchanges: it asks once more than it says when an answer is late, and begins again with its first machine,
    // whose address is then no new one.
    let all = perfdhcp(place, &format!("-r {rate} -R {} -n {count} -u", 2 * count), to);
    good(all[OFFERS], "offers");
    good(all[LEASES], "leases");
    // At the end of this one perfdhcp waits for nothing: what it has not heard by then was answered all the same.
    let before = replies();
    let mut alone = perfdhcp(place, &format!("-i -r {rate} -R {count} -n {count}"), to)[OFFERS];
    tell(format!("offers alone, of which perfdhcp heard {}", alone.received));
    let begun = Instant::now();
    while alone.received * 20 < alone.sent * 19 && begun.elapsed() < SOON {
        alone.received = replies() - before;
    }
    good(alone, "offers alone");
    let all = perfdhcp(place, "-r 20 -n 40", to);
    good(all[LEASES], "one machine again and again");
    let (renewed, released) = (rate / 3, rate / 6);
    let words = format!("-r {rate} -R {count} -f {renewed} -F {released} -p {seconds}");
    let all = perfdhcp(place, &words, to);
    good(all[LEASES], "leases of machines that renew and release");
    good(all["REQUEST-ACK (renewal)"], "renewals");
    assert!(all["RELEASE"].sent > 0, "{all:?}");
    let all = perfdhcp(place, &format!("--scenario avalanche -R {count}"), to);
    for what in [OFFERS, LEASES] {
        tell(format!("{what} of an avalanche: {:?}", all[what]));
        assert_eq!(all[what].received, u64::from(count), "{what} of an avalanche: {all:?}");
    }
}

/// A machine for perfdhcp to run in.
fn loader_of(net: &Net) -> Namespace {
    let machine = plugged(net.machines(), "load");
    machine.ip("addr add 10.77.0.9/24 dev eth0");
    machine
}

const WIDE: &str = "[dhcp]\nmode = \"full\"\nper_circuit = 0\n[[dhcp.subnet]]\nnetwork = \"10.77.0.0/16\"\n\
                    range = \"10.77.1.0-10.77.200.255\"\n";

fn perfdhcp_in_every_set_up(rate: u32, seconds: u32) {
    let folder = TempDir::new("perfdhcp");
    for kind in ["full", "dhcrelay", "dnsmasq", "proxy"] {
        let net = match kind {
            "full" | "proxy" => Net::flat(),
            "dhcrelay" => Net::relayed(&folder.0),
            _ => Net::relayed_by_dnsmasq(&folder.0),
        };
        let load = loader_of(&net);
        let mut site = Site::new(net.interface, "auto", if kind == "proxy" { PROXY } else { WIDE });
        let loaders = site.dir.join("loaders");
        std::fs::create_dir_all(&loaders).expect("a folder");
        std::fs::write(loaders.join("snponly.efi"), "snponly.efi").expect("a loader");
        site.append(&format!("[loaders]\ndirs = [\"{}\"]\n", loaders.display()));
        let server = site.serve(&net);
        tell(format!("{kind}:"));
        // The server's address, or the relay's.
        let to = "10.77.0.1";
        if kind == "proxy" {
            // Offers without an address are none to it, so the server's own count is looked at.
            run_perfdhcp(&load, &format!("-i -r {rate} -R {rate} -n {rate}"), to);
            assert!(server.metric(&net, "bootstorm_dhcp_packets_total") >= u64::from(rate) * 19 / 20);
            assert_eq!(server.metric(&net, "bootstorm_dhcp_replies_total"), 0, "nobody was booting");
            let count = rate * seconds;
            run_perfdhcp(&load, &format!("-i -r {rate} -R {count} -n {count} {BOOTING}"), to);
            let offers = server.metric(&net, "bootstorm_dhcp_replies_total");
            assert!(offers * 20 >= u64::from(count) * 19, "{offers} of {count}");
        } else {
            let replies = || server.metric(&net, "bootstorm_dhcp_replies_total");
            modes(&load, to, rate, seconds, replies);
            if kind == "full" {
                modes_on_the_link(&load, &folder.0, to, rate, seconds);
            }
        }
        server.stop();
    }
}

#[test]
fn perfdhcp_is_answered_in_all_its_modes() {
    perfdhcp_in_every_set_up(60, 2);
}

#[test]
#[ignore = "three minutes of load on every core"]
fn perfdhcp_is_answered_in_all_its_modes_at_a_thousand_a_second() {
    perfdhcp_in_every_set_up(1000, 8);
}

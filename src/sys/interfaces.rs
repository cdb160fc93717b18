//! The machine's network interfaces: which there are, what they are, what addresses they have.

use std::io;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// What kind of device stands behind an interface, as far as choosing where to answer DHCP needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The loopback interface.
    Loopback,
    /// A device with hardware (or a hypervisor's paravirtual card) behind it.
    Physical,
    /// One end of a veth pair: a container's link.
    Veth,
    /// Bridge, bond member of a container network, tunnel, tap, dummy.
    Virtual,
}

/// One interface with one IPv4 address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Its first IPv4 address, if any.
    pub addr: Option<Ipv4Addr>,
    /// Prefix length belonging to `addr`.
    pub prefix: u8,
    /// Hardware address; zero where there is none.
    pub mac: [u8; 6],
    /// Its frames begin with an Ethernet header. Tunnels, InfiniBand and loopback have others or none.
    pub ethernet: bool,
    /// Administratively up and with a carrier.
    pub running: bool,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// What it is.
    pub device: Device,
}

/// Every interface, in index order.
pub fn list() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs().map_err(io::Error::from)? {
        let position = match found.iter().position(|i| i.name == entry.interface_name) {
            Some(position) => position,
            None => {
                let Ok(index) = nix::net::if_::if_nametoindex(entry.interface_name.as_str()) else {
                    continue;
                };
                let loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
                found.push(Interface {
                    index,
                    name: entry.interface_name.clone(),
                    addr: None,
                    prefix: 0,
                    mac: [0; 6],
                    ethernet: false,
                    running: entry.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
                    mtu: mtu(&entry.interface_name).unwrap_or(1500),
                    device: if loopback { Device::Loopback } else { device(&entry.interface_name) },
                });
                found.len() - 1
            }
        };
        let interface = &mut found[position];
        let Some(address) = entry.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            if interface.addr.is_none() {
                interface.addr = Some(v4.ip());
                let mask = entry.netmask.and_then(|mask| mask.as_sockaddr_in().map(|m| m.ip()));
                interface.prefix = mask.map_or(32, |mask| u32::from(mask).count_ones() as u8);
            }
        } else if let Some(link) = address.as_link_addr() {
            interface.mac = link.addr().unwrap_or_default();
            interface.ethernet = link.hatype() == libc::ARPHRD_ETHER;
        }
    }
    found.sort_by_key(|interface| interface.index);
    Ok(found)
}

/// A request structure for the interface ioctls, with the name filled in.
fn ifreq(name: &str) -> Option<libc::ifreq> {
    // SAFETY: `ifreq` is plain old data; all-zero is a valid value with an empty name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

fn mtu(name: &str) -> Option<u32> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    let mut request = ifreq(name)?;
    // SAFETY: SIOCGIFMTU reads the name and writes `ifru_mtu`, both inside `request`, which outlives the call.
    let done =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCGIFMTU, &raw mut request) };
    // SAFETY: SIOCGIFMTU succeeded, so the kernel filled the union's `ifru_mtu`.
    if done == 0 { Some(unsafe { request.ifr_ifru.ifru_mtu } as u32) } else { None }
}

/// What an interface has carried, as the kernel counts it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traffic {
    /// Name.
    pub name: String,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// What every interface has carried since it came up; nothing without /proc.
pub fn traffic() -> Vec<Traffic> {
    // This thread's namespace, whatever /proc was mounted in.
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    text.lines().filter_map(traffic_of).collect()
}

/// One line of /proc/net/dev: `name: bytes packets errs drop fifo frame compressed multicast`, and the same of what was
/// sent. Two lines of headings have no number there.
fn traffic_of(line: &str) -> Option<Traffic> {
    let (name, counts) = line.rsplit_once(':')?;
    let mut counts = counts.split_whitespace();
    let received = counts.next()?.parse().ok()?;
    let sent = counts.nth(7)?.parse().ok()?;
    Some(Traffic { name: name.trim().to_owned(), received, sent })
}

/// Bits a second, where the device says it: there is a cable, or it is one that knows its own.
pub fn speed(name: &str) -> Option<u64> {
    const ETHTOOL_GSET: u32 = 1;
    /// `struct ethtool_cmd` (linux/ethtool.h), 44 bytes. Asking for more, as newer calls do, is not needed for this.
    #[repr(C)]
    #[derive(Default)]
    struct Command {
        command: u32,
        modes: [u32; 2],
        speed: u16,
        ports: [u8; 6],
        packets: [u32; 2],
        speed_hi: u16,
        crossing: [u8; 2],
        rest: [u32; 3],
    }
    let mut asked = Command { command: ETHTOOL_GSET, ..Command::default() };
    let mut request = ifreq(name)?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    request.ifr_ifru.ifru_data = (&raw mut asked).cast();
    // SAFETY: SIOCETHTOOL with GSET writes one `ethtool_cmd` (44 bytes) through `ifru_data`, which points at `asked` of
    // that size; both outlive the call.
    let done =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCETHTOOL, &raw mut request) };
    let _ = (asked.command, asked.modes, asked.ports, asked.packets, asked.crossing, asked.rest);
    let megabits = u64::from(asked.speed_hi) << 16 | u64::from(asked.speed);
    // All ones, of either length, is a device that does not know.
    (done == 0 && megabits != 0 && megabits != 0xffff && megabits != 0xffff_ffff)
        .then_some(megabits * 1_000_000)
}

/// Tells devices apart by their driver's name. `/sys` would say it too, but shows the namespace it was mounted in,
/// not the one this process is in.
fn device(name: &str) -> Device {
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo` (linux/ethtool.h), 196 bytes.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    let (Some(mut request), Ok(socket)) = (ifreq(name), std::net::UdpSocket::bind("0.0.0.0:0")) else {
        return Device::Virtual;
    };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: SIOCETHTOOL with GDRVINFO writes one `ethtool_drvinfo` (196 bytes) through `ifru_data`, which points
    // at `info` of that size; both outlive the call.
    let done =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCETHTOOL, &raw mut request) };
    if done != 0 {
        return Device::Virtual;
    }
    let driver: &[u8] = info.driver.split(|b| *b == 0).next().unwrap_or_default();
    let _ = (info.command, info.rest);
    match driver {
        b"veth" => Device::Veth,
        b"bridge" | b"tun" | b"dummy" | b"vxlan" | b"ipvlan" | b"wireguard" | b"openvswitch" | b"ifb"
        | b"erspan" | b"vti" | b"vti6" | b"geneve" | b"macsec" | b"vrf" | b"can" | b"vcan" | b"nlmon"
        | b"" => Device::Virtual,
        driver if driver.starts_with(b"ip") || driver.starts_with(b"gre") || driver.starts_with(b"sit") => {
            Device::Virtual
        }
        _ => Device::Physical,
    }
}

/// Whether an interface is a port of a bridge, or a member of a bond: addresses are then the other one's. `/sys` has to do for
/// this; where it is another namespace's, one is waited for that never has an address, or not waited for.
pub fn is_port(name: &str) -> bool {
    // Looked at only, which no sandbox forbids.
    std::fs::symlink_metadata(format!("/sys/class/net/{name}/master")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_traffic_are_read_and_headings_are_none() {
        let line = "  eth0: 1234567    4000    0    1    0     0          0         9  7654321    5000    0 0 0 0 0 0";
        let traffic = traffic_of(line).unwrap();
        assert_eq!((traffic.name.as_str(), traffic.received, traffic.sent), ("eth0", 1_234_567, 7_654_321));
        for heading in ["Inter-|   Receive  |  Transmit", " face |bytes    packets errs drop", ""] {
            assert_eq!(traffic_of(heading), None);
        }
        assert!(super::traffic().iter().any(|traffic| traffic.name == "lo"));
        assert_eq!(speed("lo"), None, "it has none");
    }

    #[test]
    fn loopback_is_listed_as_loopback() {
        let all = list().unwrap();
        let lo = all.iter().find(|i| i.name == "lo").expect("every machine has lo");
        assert_eq!(lo.device, Device::Loopback);
        assert_eq!(lo.addr, Some(Ipv4Addr::LOCALHOST));
        assert_eq!(lo.prefix, 8);
        assert!(lo.mtu >= 1500 && !lo.ethernet);
    }
}

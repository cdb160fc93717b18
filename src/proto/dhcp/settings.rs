//! What the operator decides: mode, subnets, reservations.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use crate::wire::{MacAddr, Uuid};

/// What the DHCP server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Adds boot data beside somebody else's DHCP server; never gives an address.
    #[default]
    Proxy,
    /// Gives addresses too, inside the listed subnets.
    Full,
    /// Answers nothing.
    Off,
}

impl Mode {
    /// The word of the config file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Full => "full",
            Self::Off => "off",
        }
    }
}

/// An IPv4 network: an address and the length of its prefix. Printed as `10.77.0.0/24`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Network {
    /// The network `address` is in; bits below the prefix are dropped. `None` for a prefix over 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { address: Ipv4Addr::from(address.to_bits() & mask(prefix)), prefix })
    }

    /// Its lowest address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Bits of its prefix, 0..=32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// As option 1 wants it.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// Its highest address. In a /31 or /32 that is an ordinary address (RFC 3021).
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.address.to_bits() | !mask(self.prefix))
    }

    /// True for every address under the prefix, lowest and highest included.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }

    /// True for the addresses a machine may have: not the lowest or the highest of a /30 or wider.
    pub fn contains_host(self, address: Ipv4Addr) -> bool {
        let ends = self.prefix < 31 && (address == self.address || address == self.broadcast());
        self.contains(address) && !ends
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetworkError {
    /// Not `ADDRESS/PREFIX`.
    Syntax,
    /// The prefix is over 32.
    Prefix,
    /// Bits are set below the prefix: an address, not a network.
    HostBits {
        /// The network that was probably meant.
        meant: Network,
    },
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("expected a network such as 10.77.0.0/24"),
            Self::Prefix => f.write_str("expected a prefix length of 0 to 32"),
            Self::HostBits { meant } => write!(f, "expected a network, which would be {meant}"),
        }
    }
}

impl std::error::Error for NetworkError {}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = text.trim().split_once('/').ok_or(NetworkError::Syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| NetworkError::Syntax)?;
        let prefix: u8 = prefix.parse().map_err(|_| NetworkError::Syntax)?;
        let meant = Self::new(address, prefix).ok_or(NetworkError::Prefix)?;
        if meant.address != address {
            return Err(NetworkError::HostBits { meant });
        }
        Ok(meant)
    }
}

/// One subnet machines may sit in, local or behind a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Addresses of the subnet; also decides which requests belong to it.
    pub network: Network,
    /// First and last address given to machines without a reservation. Only the first
    /// [`super::POOL_LEN_MAX`] addresses are used.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// How long an address is given for; at least a minute.
    pub lease: Duration,
    /// Where boot files come from; default: the address the request reached.
    pub next_server: Option<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
    /// Further options, sent to everyone who is given an address there, as far as they fit.
    pub options: Vec<SiteOption>,
    /// The loader PXE firmware there gets in place of the loader table's choice.
    pub loader: Option<String>,
}

/// An option that a site wants in its answers: of a code that [`crate::wire::dhcp::is_site_option`] allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteOption {
    /// Its code.
    pub code: u8,
    /// Its body, 1 to 255 bytes.
    pub body: Vec<u8>,
}

impl Subnet {
    /// A subnet with nothing but its addresses: no range, no router, leases of an hour.
    pub fn new(network: Network) -> Self {
        Self {
            network,
            range: None,
            router: None,
            dns: Vec::new(),
            lease: Duration::from_secs(3600),
            next_server: None,
            domain: None,
            options: Vec::new(),
            loader: None,
        }
    }
}

/// An address kept for one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The machine.
    pub who: ReservedFor,
    /// Its address, inside a listed subnet, inside or outside that subnet's range.
    pub ip: Ipv4Addr,
}

/// What a machine with a reservation is known by. Where several fit, the first kind of this list counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReservedFor {
    /// Hardware address.
    Mac(MacAddr),
    /// Option 97.
    Uuid(Uuid),
    /// Option 61, whole.
    ClientId(Vec<u8>),
    /// Option 82's circuit id: whoever sits on that port.
    Circuit(Vec<u8>),
}

/// Everything the DHCP machine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What it does.
    pub mode: Mode,
    /// Where; needed in full mode, in proxy mode only for `next_server`. Of overlapping ones the longest prefix
    /// counts.
    pub subnets: Vec<Subnet>,
    /// Addresses kept for machines.
    pub reservations: Vec<Reservation>,
    /// In full mode: refuse wrong addresses inside the listed subnets with a NAK, and take up leases from before a
    /// restart when their address is free.
    pub authoritative: bool,
    /// How long an address offered but not requested is held.
    pub offer_hold: Duration,
    /// Addresses that unregistered machines behind one circuit of a relay (option 82) may have at once; 0: no bound.
    pub circuit_max: u32,
    /// In full mode: how long an answer is waited for from an address before it is offered to a machine that does not have
    /// it; zero: nobody is asked.
    pub probe: Duration,
    /// Changes of leases are handed out to be stored, and answers say for which they must wait.
    pub journal: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            subnets: Vec::new(),
            reservations: Vec::new(),
            authoritative: true,
            offer_hold: Duration::from_secs(10),
            circuit_max: 256,
            probe: Duration::ZERO,
            journal: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_is_printed() {
        for text in ["10.77.0.0/24", "0.0.0.0/0", "10.1.2.3/32", "192.168.4.0/22"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        let network: Network = "192.168.4.0/22".parse().unwrap();
        assert_eq!(network.mask(), Ipv4Addr::new(255, 255, 252, 0));
        assert_eq!(network.broadcast(), Ipv4Addr::new(192, 168, 7, 255));
        assert!(network.contains(Ipv4Addr::new(192, 168, 7, 255)));
        assert!(!network.contains_host(Ipv4Addr::new(192, 168, 7, 255)));
        assert!(!network.contains(Ipv4Addr::new(192, 168, 8, 0)));
    }

    #[test]
    fn what_is_not_a_network_says_why() {
        for text in ["", "10.77.0.0", "10.77.0/24", "10.77.0.0/x", "10.77.0.0/-1", "10.77.0.0/256"] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError::Syntax), "{text}");
        }
        assert_eq!("10.77.0.0/33".parse::<Network>(), Err(NetworkError::Prefix));
        let meant = "10.77.0.0/24".parse().unwrap();
        assert_eq!("10.77.0.5/24".parse::<Network>(), Err(NetworkError::HostBits { meant }));
    }

    #[test]
    fn a_point_to_point_network_has_no_broadcast() {
        let network: Network = "10.0.0.0/31".parse().unwrap();
        assert!(network.contains_host(Ipv4Addr::new(10, 0, 0, 0)));
        assert!(network.contains_host(Ipv4Addr::new(10, 0, 0, 1)));
    }
}

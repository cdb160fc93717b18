//! Rules: conditions that many machines can meet.

use std::cmp::Reverse;
use std::fmt;
use std::hash::BuildHasher;
use std::net::Ipv4Addr;
use std::str::FromStr;

use foldhash::quality::FixedState;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Identity;
use crate::wire::Arch;

/// Conditions on a machine; all that are given must hold. Without any, every machine meets it.
///
/// In JSON: `{"subnet": "10.77.0.0/24", "arch": [7, 9], "product": "OptiPlex 7080"}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Only machines that nobody registered and that no job names.
    #[serde(skip_serializing_if = "is_false")]
    pub any_unknown: bool,
    /// Only machines that an operator put into this group (exact).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Only machines of this network: by the relay that forwarded the request, else by the address it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Network>,
    /// Only machines behind this port of a relay (option 82, circuit id).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Circuit>,
    /// Only machines that send one of these codes in option 93. An empty list is no condition.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arch: Vec<Arch>,
    /// Only machines of this SMBIOS manufacturer (upper or lower case and blanks at the ends do not matter).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Only machines of this SMBIOS product (compared as the manufacturer is).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// How narrow a rule is; smaller is narrower. More conditions first, then the longer network prefix.
pub type Specificity = (Reverse<u32>, Reverse<u8>);

impl Rule {
    /// The rule that every machine meets.
    pub const ANY: &'static Self = &Self {
        any_unknown: false,
        group: None,
        subnet: None,
        circuit: None,
        arch: Vec::new(),
        manufacturer: None,
        product: None,
    };

    /// True without any condition.
    pub fn is_any(&self) -> bool {
        self == Self::ANY
    }

    /// How narrow it is.
    pub fn specificity(&self) -> Specificity {
        let conditions = [
            self.any_unknown,
            self.group.is_some(),
            self.subnet.is_some(),
            self.circuit.is_some(),
            !self.arch.is_empty(),
            self.manufacturer.is_some(),
            self.product.is_some(),
        ];
        let count = conditions.into_iter().map(u32::from).sum();
        (Reverse(count), Reverse(self.subnet.map_or(0, |network| network.prefix)))
    }

    /// The first condition that a machine does not meet; `None` when it meets all. `groups` are the groups it is
    /// in; `known` says that it is registered or that a job names it. Allocates nothing.
    pub fn misfit<'r, 'g>(
        &'r self,
        who: &Identity,
        mut groups: impl Iterator<Item = &'g str>,
        known: bool,
    ) -> Option<Misfit<'r>> {
        if self.any_unknown && known {
            return Some(Misfit::Known);
        }
        if let Some(group) = &self.group
            && !groups.any(|of| of == group)
        {
            return Some(Misfit::Group(group));
        }
        if let Some(network) = self.subnet {
            match who.relay.or(who.address) {
                None => return Some(Misfit::Unplaced(network)),
                Some(at) if !network.contains(at) => return Some(Misfit::Elsewhere(at, network)),
                Some(_) => {}
            }
        }
        if let Some(circuit) = &self.circuit
            && who.circuit != Some(CircuitMark::of(&circuit.0))
        {
            return Some(Misfit::Circuit(circuit));
        }
        if !self.arch.is_empty() && !who.arch.is_some_and(|arch| self.arch.contains(&arch)) {
            return Some(Misfit::Arch(who.arch));
        }
        if !said(&self.manufacturer, &who.manufacturer) {
            return Some(Misfit::Manufacturer);
        }
        if !said(&self.product, &who.product) {
            return Some(Misfit::Product);
        }
        None
    }
}

/// Why a machine does not meet a rule. `Display` says it in plain words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misfit<'r> {
    /// It is known, and the rule is for unknown machines.
    Known,
    /// It is not in this group.
    Group(&'r str),
    /// Neither a relay nor an address says whether it is in this network.
    Unplaced(Network),
    /// It asks from elsewhere than this network.
    Elsewhere(Ipv4Addr, Network),
    /// It asks through another circuit, or none.
    Circuit(&'r Circuit),
    /// It has this architecture, or none is known.
    Arch(Option<Arch>),
    /// Another manufacturer, or none was shown.
    Manufacturer,
    /// Another product, or none was shown.
    Product,
}

impl fmt::Display for Misfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known => f.write_str("the machine is known"),
            Self::Group(group) => write!(f, "the machine is not in group {group}"),
            Self::Unplaced(network) => write!(f, "it is not known whether the machine is in {network}"),
            Self::Elsewhere(at, network) => write!(f, "{at} is not in {network}"),
            Self::Circuit(circuit) => write!(f, "the request did not come through circuit {circuit}"),
            Self::Arch(Some(arch)) => write!(f, "the machine has architecture {}", arch.0),
            Self::Arch(None) => f.write_str("the machine has not said its architecture"),
            Self::Manufacturer => f.write_str("the machine is not known to be of that manufacturer"),
            Self::Product => f.write_str("the machine is not known to be that product"),
        }
    }
}

fn said(wanted: &Option<String>, shown: &Option<String>) -> bool {
    match (wanted, shown) {
        (None, _) => true,
        (Some(wanted), Some(shown)) => wanted.trim().eq_ignore_ascii_case(shown.trim()),
        (Some(_), None) => false,
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.any_unknown { "any unknown machine" } else { "any machine" })?;
        if let Some(group) = &self.group {
            write!(f, " of group {group}")?;
        }
        if let Some(network) = &self.subnet {
            write!(f, " in {network}")?;
        }
        if let Some(circuit) = &self.circuit {
            write!(f, " on circuit {circuit}")?;
        }
        for (index, arch) in self.arch.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { " with arch " } else { "," }, arch.0)?;
        }
        if let Some(manufacturer) = &self.manufacturer {
            write!(f, " made by {manufacturer}")?;
        }
        if let Some(product) = &self.product {
            write!(f, " of product {product}")?;
        }
        Ok(())
    }
}

/// An IPv4 network, written `10.77.0.0/24`. Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Network {
    /// The network of `address` with `prefix` bits; bits beyond the prefix are cleared. `None` above 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        let address = Ipv4Addr::from(u32::from(address) & mask(prefix));
        (prefix <= 32).then_some(Self { address, prefix })
    }

    /// Bits of the prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Its lowest address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Whether `at` lies in it.
    pub fn contains(self, at: Ipv4Addr) -> bool {
        u32::from(at) & mask(self.prefix) == u32::from(self.address)
    }
}

/// The netmask of so many bits.
pub(super) fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A text is not a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotANetwork;

impl fmt::Display for NotANetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an IPv4 network such as 10.77.0.0/24")
    }
}

impl std::error::Error for NotANetwork {}

impl FromStr for Network {
    type Err = NotANetwork;

    /// `10.77.0.0/24`, or one address alone (`/32`). Host bits are refused: they are a typing error more often
    /// than not.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = text.trim().split_once('/').unwrap_or((text.trim(), "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| NotANetwork)?;
        let prefix: u8 = prefix.parse().map_err(|_| NotANetwork)?;
        Self::new(address, prefix).filter(|network| network.address == address).ok_or(NotANetwork)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A relay's circuit id (option 82, sub-option 1; RFC 3046 §3.1): any bytes. Written as text where it is
/// printable ASCII, else as `0x` and hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Circuit(pub Vec<u8>);

impl fmt::Display for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(&self.0) {
            Ok(text) if reads_as_itself(text) => f.write_str(text),
            _ => {
                f.write_str("0x")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

fn reads_as_itself(text: &str) -> bool {
    let printable = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    printable && !text.is_empty() && text.trim() == text && !text.starts_with("0x")
}

/// A circuit id as a machine's exchange with DHCP leaves it behind for the requests after it: a hash, which has room in a table
/// of machines. Never 0. Whoever can choose a circuit's bytes can choose the right ones, so it is enough.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CircuitMark(u64);

impl CircuitMark {
    /// Of the bytes of sub-option 1.
    pub fn of(circuit: &[u8]) -> Self {
        Self(FixedState::with_seed(0).hash_one(circuit) | 1)
    }

    /// What [`CircuitMark::bits`] was; `None` for 0.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    /// As a number.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// A text is not a circuit id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotACircuit;

impl fmt::Display for NotACircuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a circuit id: its text, or 0x and its bytes in hexadecimal, 1 to 255 of them")
    }
}

impl std::error::Error for NotACircuit {}

impl FromStr for Circuit {
    type Err = NotACircuit;

    fn from_str(text: &str) -> Result<Self, NotACircuit> {
        let text = text.trim();
        let bytes = match text.strip_prefix("0x") {
            None => text.as_bytes().to_vec(),
            Some(digits) => {
                let digits: Option<Vec<u8>> =
                    digits.chars().map(|c| c.to_digit(16).map(|value| value as u8)).collect();
                let digits = digits.filter(|digits| digits.len().is_multiple_of(2)).ok_or(NotACircuit)?;
                digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
            }
        };
        if bytes.is_empty() || bytes.len() > 255 { Err(NotACircuit) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Circuit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Circuit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(json: &str) -> Rule {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_rule_survives_its_own_json_and_refuses_unknown_conditions() {
        let text = r#"{"any_unknown":true,"group":"lab","subnet":"10.77.0.0/24","circuit":"eth0/1/7","arch":[7,9],"manufacturer":"Dell Inc.","product":"OptiPlex"}"#;
        assert_eq!(serde_json::to_string(&rule(text)).unwrap(), text);
        assert_eq!(serde_json::to_string(Rule::ANY).unwrap(), "{}");
        for bad in [r#"{"subnet": "10.77.0.1/24"}"#, r#"{"subnets": "10.0.0.0/8"}"#, r#"{"circuit": ""}"#] {
            assert!(serde_json::from_str::<Rule>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_conditions_are_narrower_and_then_longer_prefixes() {
        let narrowest_first = [
            r#"{"subnet": "10.0.0.0/8", "arch": [7]}"#,
            r#"{"subnet": "10.77.0.0/24"}"#,
            r#"{"subnet": "10.0.0.0/8"}"#,
            r#"{"arch": [7, 9, 11]}"#,
            "{}",
        ];
        for pair in narrowest_first.windows(2) {
            assert!(rule(pair[0]).specificity() < rule(pair[1]).specificity(), "{} {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn the_relay_counts_before_the_address() {
        let subnet = rule(r#"{"subnet": "10.77.0.0/24"}"#);
        let at = |relay: Option<&str>, address: Option<&str>| {
            let parse = |text: &str| text.parse().unwrap();
            let who =
                Identity { relay: relay.map(parse), address: address.map(parse), ..Identity::default() };
            subnet.misfit(&who, std::iter::empty(), false).is_none()
        };
        assert!(at(Some("10.77.0.1"), Some("192.168.1.1")));
        assert!(!at(Some("192.168.1.1"), Some("10.77.0.9")));
        assert!(at(None, Some("10.77.0.9")));
        assert!(!at(None, None));
    }

    #[test]
    fn circuits_and_networks_read_what_they_print() {
        for bytes in [&b"eth0/1/7"[..], &[0, 4, 0, 1], b" x", b"0xno", &[0xff; 255]] {
            let circuit = Circuit(bytes.to_vec());
            assert_eq!(circuit.to_string().parse(), Ok(circuit));
        }
        for bad in ["", "0x", "0x1", "0xzz"] {
            assert_eq!(bad.parse::<Circuit>(), Err(NotACircuit), "{bad}");
        }
        for good in ["0.0.0.0/0", "10.77.0.0/24", "10.77.0.9/32"] {
            assert_eq!(good.parse::<Network>().unwrap().to_string(), good);
        }
        for bad in ["10.77.0.0/33", "10.77.0.1/24", "10.77.0/24", "10.77.0.0/", "10.0.0.0/+8x"] {
            assert_eq!(bad.parse::<Network>(), Err(NotANetwork), "{bad}");
        }
    }
}

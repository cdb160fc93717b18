//! The two names a machine goes by on the wire: its hardware address and its SMBIOS UUID.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ethernet hardware address. Printed as lower-case colon form (`52:54:00:12:34:56`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// True for the all-zero address, which no machine owns.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// True for group addresses (multicast and broadcast), which no machine may send from.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a MAC address or a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddrError {
    expected: &'static str,
}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.expected)
    }
}

impl std::error::Error for AddrError {}

impl FromStr for MacAddr {
    type Err = AddrError;

    /// Takes every form people paste: `52:54:00:12:34:56`, `52-54-00-12-34-56`, `5254.0012.3456`,
    /// `525400123456`, upper or lower case, and pxelinux' `01-52-54-...` with the hardware type in front.
    fn from_str(text: &str) -> Result<Self, AddrError> {
        const BAD: AddrError = AddrError { expected: "a MAC address such as 52:54:00:12:34:56" };
        let text = text.trim();
        let grouped = text.len() > 12;
        let mut digits = [0u8; 14];
        let mut count = 0;
        for byte in text.bytes() {
            match byte {
                b':' | b'-' | b'.' if grouped => {}
                _ => {
                    let value = (byte as char).to_digit(16).ok_or(BAD)?;
                    *digits.get_mut(count).ok_or(BAD)? = value as u8;
                    count += 1;
                }
            }
        }
        let digits = match count {
            12 => &digits[..12],
            14 if digits[..2] == [0, 1] => &digits[2..],
            _ => return Err(BAD),
        };
        let mut mac = [0u8; 6];
        for (byte, pair) in mac.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(mac))
    }
}

/// One hardware address, or every one that begins with the same bytes: `52:54:00:12:34:56`, `52:54:00:*`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MacPattern {
    bytes: [u8; 6],
    /// Bytes that count.
    len: u8,
}

impl MacPattern {
    /// Whether it covers an address.
    pub fn covers(&self, mac: MacAddr) -> bool {
        let len = usize::from(self.len);
        mac.0[..len] == self.bytes[..len]
    }
}

impl FromStr for MacPattern {
    type Err = AddrError;

    /// A MAC address in any of its forms, or one to five of its bytes and a `*`, with colons or dashes between.
    fn from_str(text: &str) -> Result<Self, AddrError> {
        const BAD: AddrError =
            AddrError { expected: "a MAC address or its first bytes and a star, such as 52:54:00:*" };
        let text = text.trim();
        let Some(first) = text.strip_suffix('*') else {
            let mac: MacAddr = text.parse().map_err(|_| BAD)?;
            return Ok(Self { bytes: mac.0, len: 6 });
        };
        let first = first.strip_suffix([':', '-']).ok_or(BAD)?;
        let mut pattern = Self { bytes: [0; 6], len: 0 };
        for pair in first.split([':', '-']) {
            let fits = pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !fits || pattern.len == 5 {
                return Err(BAD);
            }
            pattern.bytes[usize::from(pattern.len)] = u8::from_str_radix(pair, 16).map_err(|_| BAD)?;
            pattern.len += 1;
        }
        Ok(pattern)
    }
}

/// An SMBIOS system UUID, held in the order in which it is printed.
///
/// DHCP option 97 carries the first three fields little-endian (RFC 4578 §2.3 via SMBIOS), while iPXE's `${uuid}`
/// prints the text form; [`Uuid::from_smbios`] turns the former into this one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// From SMBIOS byte order, as in DHCP option 97 after its type byte.
    pub fn from_smbios(b: [u8; 16]) -> Self {
        Self([
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
            b[15],
        ])
    }

    /// To SMBIOS byte order. The swap is its own inverse.
    pub fn to_smbios(self) -> [u8; 16] {
        Self::from_smbios(self.0).0
    }

    /// False for UUIDs that boards share because nobody set them: all zero, all ones, counting patterns.
    /// Such a UUID never identifies a machine.
    pub fn is_identifying(self) -> bool {
        const COUNTING: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        // 03000200-0400-0500-0006-000700080009, the AMI default seen on many boards.
        const AMI: [u8; 16] = [3, 0, 2, 0, 4, 0, 5, 0, 0, 6, 0, 7, 0, 8, 0, 9];
        let same = self.0.iter().all(|b| *b == self.0[0]);
        let ami = [self.0, Self::from_smbios(self.0).0].contains(&AMI);
        !(same || self.0 == COUNTING || Self::from_smbios(self.0).0 == COUNTING || ami)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = AddrError;

    /// `4c4c4544-0042-...`, with or without dashes or braces, any case.
    fn from_str(text: &str) -> Result<Self, AddrError> {
        const BAD: AddrError = AddrError { expected: "a UUID such as 4c4c4544-0042-3510-8052-b4c04f564231" };
        let mut digits = [0u8; 32];
        let mut count = 0;
        for byte in text.trim().trim_start_matches('{').trim_end_matches('}').bytes() {
            if byte == b'-' {
                continue;
            }
            let value = (byte as char).to_digit(16).ok_or(BAD)?;
            *digits.get_mut(count).ok_or(BAD)? = value as u8;
            count += 1;
        }
        if count != 32 {
            return Err(BAD);
        }
        let mut uuid = [0u8; 16];
        for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(uuid))
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(MacAddr);
serde_as_text!(Uuid);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_one_address_or_all_with_its_first_bytes() {
        let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        for text in
            ["52:54:00:12:34:56", "525400123456", "52:54:00:*", "52-54-*", "52:*", " 52:54:00:12:34:* "]
        {
            assert!(text.parse::<MacPattern>().unwrap().covers(mac), "{text}");
        }
        for text in ["52:54:00:12:34:57", "52:55:*", "00:*"] {
            assert!(!text.parse::<MacPattern>().unwrap().covers(mac), "{text}");
        }
        for text in [
            "",
            "*",
            ":*",
            "5:*",
            "52*",
            "52:5g:*",
            "52:54:00:12:34:56:*",
            "52:+4:*",
            "52::*",
            "*:52",
            "5254:*",
        ] {
            assert!(text.parse::<MacPattern>().is_err(), "{text:?} would cover what nobody meant");
        }
    }

    #[test]
    fn every_pasted_form_of_a_mac_is_the_same_mac() {
        let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xab]);
        for text in [
            "52:54:00:12:34:ab",
            "52-54-00-12-34-AB",
            "5254.0012.34ab",
            "5254001234AB",
            "01-52-54-00-12-34-ab",
            " 52:54:00:12:34:ab ",
        ] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "52:54:00:12:34:ab");
    }

    #[test]
    fn what_is_not_a_mac_is_refused() {
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:ab:cd", "5254001234ag", "02-52-54-00-12-34-ab", "5:2"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn uuid_swaps_only_its_first_three_fields() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!(uuid.to_string(), text);
        assert_eq!(uuid.to_smbios()[..8], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(Uuid::from_smbios(uuid.to_smbios()), uuid);
    }

    #[test]
    fn shared_uuids_do_not_identify() {
        for text in [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "03000200-0400-0500-0006-000700080009",
            "00020003-0004-0005-0006-000700080009",
            "00010203-0405-0607-0809-0a0b0c0d0e0f",
        ] {
            assert!(!text.parse::<Uuid>().unwrap().is_identifying(), "{text}");
        }
        assert!("4c4c4544-0042-3510-8052-b4c04f564231".parse::<Uuid>().unwrap().is_identifying());
    }
}

//! The texts people write for sizes, times, networks and ranges.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::wire::dhcp::is_site_option;

/// `15s`, `1h`, `500ms`, `2m`, `1d`; a bare number is seconds.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    Some(match unit.trim() {
        "ms" => Duration::from_millis(number),
        "" | "s" => Duration::from_secs(number),
        "m" | "min" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        "d" => Duration::from_secs(number.checked_mul(86_400)?),
        _ => return None,
    })
}

/// [`duration`] with its unit written, as a file that is read again in a year should have it; `0` needs none.
pub fn time(text: &str) -> Option<Duration> {
    let has_unit = text.trim().ends_with(|c: char| c.is_ascii_alphabetic());
    duration(text).filter(|time| has_unit || time.is_zero())
}

/// A name that the kernel lets an interface have (linux net/core/dev.c dev_valid_name).
pub fn interface(text: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.contains(odd)
}

/// A domain name of RFC 1035 §2.3.1, a dot at its end allowed, and underscores, which many a site has.
pub fn domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}

/// A loader's name below the loader folders: `ipxe.efi`, `arm64/snponly.efi`.
pub fn loader(text: &str) -> bool {
    let is_step =
        |step: &str| !step.is_empty() && step != "." && step != ".." && !step.contains(char::is_control);
    (1..=127).contains(&text.len()) && text.split(['/', '\\']).all(is_step)
}

/// A duration as [`duration`] reads it, in the largest unit that divides it.
pub fn duration_text(value: Duration) -> String {
    let ms = value.as_millis();
    for (unit, len) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms >= len && ms.is_multiple_of(len) {
            return format!("{}{unit}", ms / len);
        }
    }
    if ms == 0 { "0s".into() } else { format!("{ms}ms") }
}

/// `64MiB`, `5GB`, `1.5GiB`, `65536`: bytes.
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" | "k" => 1000,
        "mb" | "m" => 1_000_000,
        "gb" | "g" => 1_000_000_000,
        "tb" | "t" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (0.0..9e18).contains(&value).then_some(value as u64)
}

/// `10.77.0.0/24`: the network's own address and its prefix length.
pub fn network(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (addr, prefix) = text.trim().split_once('/')?;
    let addr: Ipv4Addr = addr.parse().ok()?;
    let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32)?;
    Some((addr, prefix))
}

/// The address bits of a prefix length.
pub fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// True if `addr` is in the network.
pub fn contains((net, prefix): (Ipv4Addr, u8), addr: Ipv4Addr) -> bool {
    u32::from(net) & mask(prefix) == u32::from(addr) & mask(prefix)
}

/// The network's own address.
pub fn lowest((net, prefix): (Ipv4Addr, u8)) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net) & mask(prefix))
}

/// True for the lowest and the highest address of a network in which no machine can have these (RFC 3021).
pub fn is_end(network: (Ipv4Addr, u8), addr: Ipv4Addr) -> bool {
    let lowest = u32::from(lowest(network));
    let highest = lowest | !mask(network.1);
    network.1 < 31 && [lowest, highest].contains(&u32::from(addr))
}

/// `10.77.0.100-10.77.0.200`, the last one included.
pub fn range(text: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (first, last) = text.split_once('-')?;
    let (first, last): (Ipv4Addr, Ipv4Addr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Bytes: a text as it stands, or `hex:0001ff`. At least one, at most 255.
pub fn bytes(text: &str) -> Option<Vec<u8>> {
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => {
            let digits: Vec<u8> = digits.bytes().filter(|byte| !b": -".contains(byte)).collect();
            let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let whole = digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit);
            digits.chunks(2).map(pair).collect::<Option<Vec<u8>>>().filter(|_| whole)?
        }
    };
    (1..=255).contains(&bytes.len()).then_some(bytes)
}

/// A DHCP option: `150=10.77.0.1,10.77.0.2`, `12=text:lab`, `252=hex:0a0b`, `26=u16:1400`, `23=u8:64`, `2=u32:3600`.
/// Codes that the server itself sets are refused.
pub fn dhcp_option(text: &str) -> Option<(u8, Vec<u8>)> {
    let (code, value) = text.split_once('=')?;
    let code: u8 = code.trim().parse().ok().filter(|code| is_site_option(*code))?;
    let value = value.trim();
    let number = |digits: &str| digits.trim().parse::<u32>().ok();
    let body = match value.split_once(':') {
        Some(("text", text)) => text.as_bytes().to_vec(),
        Some(("hex", _)) => bytes(value)?,
        Some(("u8", digits)) => vec![u8::try_from(number(digits)?).ok()?],
        Some(("u16", digits)) => u16::try_from(number(digits)?).ok()?.to_be_bytes().to_vec(),
        Some(("u32", digits)) => number(digits)?.to_be_bytes().to_vec(),
        _ => {
            let all = value.split(',').map(|ip| ip.trim().parse::<Ipv4Addr>().ok().map(|ip| ip.octets()));
            all.collect::<Option<Vec<_>>>()?.concat()
        }
    };
    (1..=255).contains(&body.len()).then_some((code, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_as_people_write_them() {
        assert_eq!(duration("15s"), Some(Duration::from_secs(15)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("1h"), Some(Duration::from_secs(3600)));
        assert_eq!(duration("90"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1w"), None);
        assert_eq!(time("15s"), duration("15s"));
        assert_eq!((time("15"), time(" 15 "), time("0")), (None, None, Some(Duration::ZERO)));
        assert_eq!(duration("s"), None);
        for text in ["15s", "500ms", "1h", "2d", "0s", "90s"] {
            assert_eq!(duration(&duration_text(duration(text).unwrap())), duration(text));
        }
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("5GB"), Some(5_000_000_000));
        assert_eq!(size("1.5GiB"), Some(3 << 29));
        assert_eq!(size("-1"), None);
        assert_eq!(size("5 apples"), None);
    }

    #[test]
    fn options_and_bytes_as_people_write_them() {
        assert_eq!(bytes("port 7"), Some(b"port 7".to_vec()));
        assert_eq!(bytes("hex:00:01-Ff"), Some(vec![0, 1, 255]));
        for text in ["", "hex:", "hex:0", "hex:+1", "hex:0g"] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(dhcp_option("150=10.77.0.1, 10.77.0.2"), Some((150, vec![10, 77, 0, 1, 10, 77, 0, 2])));
        assert_eq!(dhcp_option("12=text:lab"), Some((12, b"lab".to_vec())));
        assert_eq!(dhcp_option("252=hex:0a0b"), Some((252, vec![10, 11])));
        assert_eq!(dhcp_option("26=u16:1400"), Some((26, vec![5, 120])));
        for text in ["53=u8:1", "13=u16:9", "256=text:x", "42=", "42=10.0.0", "23=u8:256", "12"] {
            assert_eq!(dhcp_option(text), None, "{text}");
        }
    }

    #[test]
    fn names_that_can_be_had() {
        for name in ["eth0", "enp3s0f1np1", "br-lan", "eth0.7"] {
            assert!(interface(name), "{name}");
        }
        for name in ["", "a/b", "..", "eth 0", "sixteen-letters-", "eth0:1"] {
            assert!(!interface(name), "{name}");
        }
        for name in ["lab", "lab.example", "a-b.example.", "_x.example"] {
            assert!(domain(name), "{name}");
        }
        for name in ["", "a b", "a..b", ".", "-a", "a/b", &"a".repeat(64)] {
            assert!(!domain(name), "{name}");
        }
        for name in ["ipxe.efi", "arm64/snponly.efi"] {
            assert!(loader(name), "{name}");
        }
        for name in ["", "../x", "a/../x", "/ipxe.efi", "a//b", "..\\x"] {
            assert!(!loader(name), "{name}");
        }
    }

    #[test]
    fn networks_and_ranges() {
        assert_eq!(network("10.77.0.0/24"), Some((Ipv4Addr::new(10, 77, 0, 0), 24)));
        assert_eq!(network("10.77.0.0/33"), None);
        assert!(contains((Ipv4Addr::new(10, 77, 0, 0), 24), Ipv4Addr::new(10, 77, 0, 255)));
        assert!(!contains((Ipv4Addr::new(10, 77, 0, 0), 24), Ipv4Addr::new(10, 77, 1, 0)));
        assert!(contains((Ipv4Addr::UNSPECIFIED, 0), Ipv4Addr::BROADCAST));
        assert!(range("10.0.0.5-10.0.0.9").is_some());
        assert_eq!(range("10.0.0.9-10.0.0.5"), None);
    }
}

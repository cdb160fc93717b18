//! What a machine has shown of itself in one request.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::rule::CircuitMark;
use crate::wire::arch::{Cpu, Family, Platform};
use crate::wire::{Arch, MacAddr, Uuid};

/// Everything one request says about who sent it. DHCP fills the binary part (no allocation), a script request
/// the texts as well. All of it is the client's claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Hardware address (`chaddr`, or `mac=`).
    pub mac: Option<MacAddr>,
    /// SMBIOS UUID in printing order (option 97, or `uuid=`).
    pub uuid: Option<Uuid>,
    /// SMBIOS serial.
    pub serial: Option<String>,
    /// SMBIOS asset tag.
    pub asset: Option<String>,
    /// SMBIOS manufacturer.
    pub manufacturer: Option<String>,
    /// SMBIOS product.
    pub product: Option<String>,
    /// Option 93.
    pub arch: Option<Arch>,
    /// iPXE's `buildarch` (`i386`, `x86_64`, `arm64`, ...).
    pub build_arch: Option<String>,
    /// iPXE's `platform`, or what option 93 implies.
    pub platform: Option<Platform>,
    /// iPXE's `cpuid --ext 29` said long mode.
    pub long_mode: Option<bool>,
    /// Address the request came from (never an identity, only shown).
    pub address: Option<Ipv4Addr>,
    /// Relay the request came through (giaddr).
    pub relay: Option<Ipv4Addr>,
    /// Option 82 circuit id. Never stored.
    #[serde(skip)]
    pub circuit: Option<CircuitMark>,
}

/// Longest text kept of one query value; SMBIOS strings are shorter.
const TEXT_MAX: usize = 128;

impl Identity {
    /// The identity in a URL's query or a form body: `mac uuid serial asset manufacturer product arch platform
    /// buildarch longmode`, percent-encoded.
    ///
    /// `None` when not one of these names occurs: the request carries no identity, and is to be answered with the
    /// script that asks for one ([`ask_identity`](super::script::ask_identity)) or with the page of options. A
    /// name with an empty or unusable value does count as asked, or a machine without SMBIOS would be asked for
    /// ever. `plus_is_blank` is for browsers' forms: iPXE never writes a blank as `+`, and before 2026-07 sends a
    /// literal `+` bare.
    pub fn from_query(query: &str, plus_is_blank: bool) -> Option<Self> {
        let mut who = Self::default();
        let mut asked = false;
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value, plus_is_blank);
            let value = value.trim();
            let text = || Some(value.to_owned()).filter(|text| !text.is_empty());
            // The first value of a name counts; what a proxy or a person appended does not.
            match name {
                "mac" => {
                    let mac = value.parse().ok().filter(|mac: &MacAddr| !mac.is_zero() && !mac.is_group());
                    who.mac = who.mac.or(mac);
                }
                "uuid" => who.uuid = who.uuid.or(value.parse().ok()),
                "serial" => who.serial = who.serial.take().or_else(text),
                "asset" => who.asset = who.asset.take().or_else(text),
                "manufacturer" => who.manufacturer = who.manufacturer.take().or_else(text),
                "product" => who.product = who.product.take().or_else(text),
                "arch" => who.arch = who.arch.or(arch_number(value)),
                "buildarch" => who.build_arch = who.build_arch.take().or_else(text),
                "platform" => {
                    let platform = match value {
                        "" => None,
                        "pcbios" | "bios" => Some(Platform::Bios),
                        "efi" => Some(Platform::Efi),
                        _ => Some(Platform::Other),
                    };
                    who.platform = who.platform.or(platform);
                }
                "longmode" => {
                    let long_mode = match value {
                        "1" => Some(true),
                        "0" => Some(false),
                        _ => None,
                    };
                    who.long_mode = who.long_mode.or(long_mode);
                }
                _ => continue,
            }
            asked = true;
        }
        asked.then_some(who)
    }

    /// The firmware family: what iPXE said, else what option 93 implies.
    pub fn firmware(&self) -> Option<Platform> {
        self.platform.or_else(|| self.arch.map(Arch::platform)).filter(|p| *p != Platform::Other)
    }

    /// The group of machines it belongs to that boot the same programs, as far as that is known.
    pub fn family(&self) -> Option<Family> {
        match self.firmware()? {
            Platform::Bios => Some(Family::Bios),
            platform => Family::on(platform, self.cpu()?),
        }
    }

    /// The processor a boot program must be built for on this machine, if it is known for certain.
    ///
    /// UEFI runs programs of its own width only, so there the running iPXE's build (or option 93) decides. A BIOS
    /// iPXE is a 32-bit build on every machine: there `cpuid` decides, and without its answer nothing is known,
    /// so that a 64-bit machine is never taken for a 32-bit one.
    pub fn cpu(&self) -> Option<Cpu> {
        let built = match self.build_arch.as_deref() {
            Some("i386") => Some(Cpu::X86),
            Some("x86_64") => Some(Cpu::X64),
            Some("arm32") => Some(Cpu::Arm32),
            Some("arm64") => Some(Cpu::Arm64),
            Some(_) => Some(Cpu::Other),
            None => None,
        };
        match (built, self.firmware()) {
            // An iPXE built for 64 bits runs.
            (Some(Cpu::X64), _) => Some(Cpu::X64),
            (Some(Cpu::X86) | None, Some(Platform::Bios)) | (Some(Cpu::X86), None) => match self.long_mode {
                Some(true) => Some(Cpu::X64),
                Some(false) => Some(Cpu::X86),
                None => None,
            },
            (Some(built), _) => Some(built),
            (None, Some(Platform::Efi)) => self.arch.map(Arch::cpu),
            (None, _) => None,
        }
    }
}

/// False for serials and asset tags that boards share because nobody filled them in.
pub fn is_identifying_text(text: &str) -> bool {
    const SHARED: [&str; 22] = [
        "default string",
        "system serial number",
        "serial number",
        "chassis serial number",
        "base board serial number",
        "asset tag",
        "no asset tag",
        "no asset information",
        "asset-1234567890",
        "to be filled by o.e.m.",
        "to be filled by oem",
        "o.e.m.",
        "oem",
        "not specified",
        "not applicable",
        "not available",
        "unknown",
        "invalid",
        "none",
        "n/a",
        "0123456789",
        "123456789",
    ];
    let text = text.trim();
    let mut bytes = text.bytes();
    let first = bytes.next();
    let repeated = bytes.all(|byte| Some(byte) == first);
    !(text.is_empty() || repeated || SHARED.iter().any(|shared| shared.eq_ignore_ascii_case(text)))
}

fn arch_number(text: &str) -> Option<Arch> {
    match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok().map(Arch),
        None => text.parse().ok().map(Arch),
    }
}

fn decode(value: &str, plus_is_blank: bool) -> String {
    let mut out = Vec::with_capacity(value.len().min(TEXT_MAX));
    let mut bytes = value.bytes();
    while out.len() < TEXT_MAX {
        let Some(byte) = bytes.next() else { break };
        let mut ahead = bytes.clone();
        // iPXE of 2019 writes a byte from 128 on as a negative number: `%FFFFFFC3`.
        if byte == b'%' && ahead.clone().take(6).eq(*b"FFFFFF") {
            ahead.nth(5);
        }
        let hex = |byte: Option<u8>| byte.and_then(|byte| (byte as char).to_digit(16));
        out.push(match byte {
            b'+' if plus_is_blank => b' ',
            b'%' => match (hex(ahead.next()), hex(ahead.next())) {
                (Some(high), Some(low)) => {
                    bytes = ahead;
                    (high << 4 | low) as u8
                }
                _ => b'%',
            },
            other => other,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

//! What a machine has shown of itself in one request.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::wire::arch::Platform;
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
    /// Option 82 circuit id.
    pub circuit: Option<Vec<u8>>,
}

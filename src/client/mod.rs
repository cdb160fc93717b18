//! Firmware machines without hardware: BIOS PXE, UEFI PXE, UEFI HTTP Boot and iPXE, from DISCOVER to the moment an
//! image would start.
//!
//! A [`Machine`] is sans-IO: inputs and expired deadlines go in, [`Command`]s come out. It asks for what real firmware
//! asks for, chooses between offers as real firmware does, and gives up when real firmware would, so a server that is
//! wrong fails here too. [`run`] carries one out over real sockets.
//!
//! Not modelled: PXE menus and multicast discovery, IPv6, `autoexec.ipxe` (iPXE of Debian's age never asks for it),
//! what an image does once it runs.
#![forbid(unsafe_code)]

mod dhcp;
mod machine;
mod relay;
pub mod run;
pub mod script;
mod tftp;

pub use dhcp::{Pick, pick};
pub use machine::{Command, Config, Input, Machine, Outcome, Stage};
pub use relay::Relay;

use std::time::Duration;

use serde::Serialize;

/// Which firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A BIOS PXE ROM.
    Bios,
    /// UEFI PXE (EDK2).
    Uefi,
    /// UEFI HTTP Boot (EDK2).
    Http,
    /// iPXE in the NIC's ROM.
    Ipxe,
}

impl Kind {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Bios, Self::Uefi, Self::Http, Self::Ipxe];

    /// As in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
            Self::Http => "http",
            Self::Ipxe => "ipxe",
        }
    }
}

/// How long a machine waits for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// First DISCOVER interval of BIOS and UEFI; doubles three times. UEFI always waits all of it for more offers.
    pub discover: Duration,
    /// iPXE's first DISCOVER interval; doubles until it passes ten times.
    pub discover_ipxe: Duration,
    /// iPXE stops waiting for a proxyDHCP offer after this.
    pub proxy_ipxe: Duration,
    /// First REQUEST interval; doubles three times.
    pub request: Duration,
    /// First resend of a TFTP packet by UEFI and BIOS; six tries.
    pub tftp: Duration,
    /// First resend by iPXE; doubles, given up after six.
    pub tftp_ipxe: Duration,
}

impl Patience {
    /// The firmware's own timers: PXE 2.1 and EDK2 4 s (PxeBcDhcp4.c, Mtftp4Dxe), iPXE 1 s and 0.25 s
    /// (config/dhcp.h, net/udp/tftp.c).
    pub fn firmware() -> Self {
        Self {
            discover: Duration::from_secs(4),
            discover_ipxe: Duration::from_secs(1),
            proxy_ipxe: Duration::from_secs(2),
            request: Duration::from_secs(4),
            tftp: Duration::from_secs(4),
            tftp_ipxe: Duration::from_millis(250),
        }
    }

    /// Twenty times as impatient, for demonstrations: the waits are not what they are to show.
    pub fn quick() -> Self {
        let real = Self::firmware();
        Self {
            discover: real.discover / 20,
            discover_ipxe: real.discover_ipxe / 4,
            proxy_ipxe: real.proxy_ipxe / 20,
            request: real.request / 4,
            ..real
        }
    }
}

#[cfg(test)]
mod tests;

//! Who answers a booting machine, with what, and what that does to it.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::Serialize;

use super::{Finding, machine};
use crate::client::{Kind, pick};
use crate::wire::dhcp::{Message, MessageType, SubOptions, code, pxe};

/// One server that answered, by its first OFFER.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answerer {
    /// Option 54.
    pub server: Ipv4Addr,
    /// True for the server that is looked at.
    pub ours: bool,
    /// Milliseconds after the DISCOVER.
    pub after_ms: u64,
    /// The address it offers, if it gives any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The boot file's name, if it names one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Where the file is said to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_server: Option<Ipv4Addr>,
    /// Option 60 says PXEClient or HTTPClient.
    pub boots: bool,
    /// Option 43 tells a PXE machine to go on without asking port 4011.
    pub direct: bool,
    /// The machine goes on with its boot data.
    pub wins: bool,
    /// The machine takes its address.
    pub wins_address: bool,
}

/// An OFFER as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Offered {
    pub(super) from: SocketAddrV4,
    pub(super) after_ms: u64,
    pub(super) bytes: Vec<u8>,
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default())
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Everybody who offered anything to a machine of this kind, in the order of their first offers. `us`: addresses of the
/// server that is looked at.
pub(super) fn answerers(kind: Kind, offers: &[Offered], us: &dyn Fn(Ipv4Addr) -> bool) -> Vec<Answerer> {
    let views: Vec<(SocketAddrV4, &[u8])> =
        offers.iter().map(|offer| (offer.from, offer.bytes.as_slice())).collect();
    let picked = pick(kind, &views);
    let mut found: Vec<Answerer> = Vec::new();
    for (place, offer) in offers.iter().enumerate() {
        let Ok(message) = Message::parse(&offer.bytes) else { continue };
        if message.message_type() != Some(MessageType::Offer) {
            continue;
        }
        let server = message.server_id().unwrap_or(*offer.from.ip());
        let class = message.option(code::VENDOR_CLASS).unwrap_or_default();
        let vendor = message.option(code::VENDOR_SPECIFIC).unwrap_or_default();
        let discovery = (pxe::DISCOVERY_CONTROL..=pxe::MENU_PROMPT)
            .any(|sub| SubOptions::encapsulated(vendor).first(sub).is_some());
        let file = match text(message.file()) {
            file if file.is_empty() => text(message.boot_file_option().unwrap_or_default()),
            file => file,
        };
        let specified = |ip: Ipv4Addr| Some(ip).filter(|ip| !ip.is_unspecified());
        let answerer = Answerer {
            server,
            // One that sends machines here, whoever gives the addresses.
            ours: us(server) || !file.is_empty() && us(message.siaddr()),
            after_ms: offer.after_ms,
            address: specified(message.yiaddr()),
            next_server: specified(message.siaddr()).filter(|_| !file.is_empty()),
            boots: class.starts_with(b"PXEClient") || class.starts_with(b"HTTPClient"),
            direct: discovery,
            wins: picked.is_some_and(|pick| pick.boot == Some(place)),
            wins_address: picked.is_some_and(|pick| pick.lease == place),
            file,
        };
        // A server repeats itself when it is asked again; one that offers both with and without an address is two.
        match found.iter_mut().find(|known| {
            known.server == answerer.server && known.address.is_some() == answerer.address.is_some()
        }) {
            Some(known) => {
                known.wins |= answerer.wins;
                known.wins_address |= answerer.wins_address;
            }
            None => found.push(answerer),
        }
    }
    found
}

/// What other servers' offers do to machines that are to boot from us. `kind`: the machine that heard them.
pub(super) fn judge(kind: Kind, answerers: &[Answerer]) -> Vec<Finding> {
    let mut found = Vec::new();
    let ours_wins = answerers.iter().any(|answerer| answerer.ours && answerer.wins);
    for other in answerers.iter().filter(|answerer| !answerer.ours) {
        let outcome = match (other.wins, ours_wins) {
            (true, _) => format!("{} takes it", machine(kind)),
            (false, true) => format!("{} takes ours this time", machine(kind)),
            (false, false) => format!("{} takes neither", machine(kind)),
        };
        let server = other.server;
        let file = match other.file.as_str() {
            "" => "no boot file".to_owned(),
            file => format!("{file:?}"),
        };
        if other.boots && !other.direct && other.address.is_some() {
            found.push(Finding::wrong(
                "option-60-without-43",
                format!("{server} gives addresses with option 60 PXEClient and no option 43; {outcome}"),
                "UEFI machines then ask port 4011 of that server for a boot file, and hang there (PXE-E55)",
                format!(
                    "take option 60 out of the DHCP server {server} (Windows: netsh dhcp server delete optionvalue 60)"
                ),
            ));
        } else if other.boots {
            found.push(Finding::wrong(
                "second-pxe-answerer",
                format!("{server} answers PXE machines too, with {file}; {outcome}"),
                "two servers tell machines what to boot, and the faster one wins",
                format!("switch PXE off on {server} (dnsmasq: no pxe-service and dhcp-boot lines; WDS: stop the service)"),
            ));
        } else if other.address.is_some() && !other.file.is_empty() {
            found.push(Finding::wrong(
                "filename-in-lease",
                format!("{server} names the boot file {file} in its lease; {outcome}"),
                "iPXE boots the file in the lease and never looks at ours",
                format!(
                    "take options 66 and 67, or next-server and filename, out of the DHCP server {server}"
                ),
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MacAddr;
    use crate::wire::dhcp::{Emitter, Header};

    const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn offer(server: u8, address: u8, class: &str, vendor: &[u8], file: &str) -> Offered {
        let mut buffer = vec![0; 600];
        let mut header = Header::request_from(MacAddr([2, 0xd0, 0xc7, 0, 0, 1]), 1);
        header.op = 2;
        if address > 0 {
            header.yiaddr = Ipv4Addr::new(10, 77, 0, address);
        }
        let server = Ipv4Addr::new(10, 77, 0, server);
        header.siaddr = server;
        let mut out = Emitter::new(&mut buffer, &header).unwrap();
        out.option(code::MESSAGE_TYPE, &[2]).unwrap();
        out.option(code::SERVER_ID, &server.octets()).unwrap();
        if !class.is_empty() {
            out.option(code::VENDOR_CLASS, class.as_bytes()).unwrap();
        }
        if !vendor.is_empty() {
            out.option(code::VENDOR_SPECIFIC, vendor).unwrap();
        }
        if !file.is_empty() {
            out.file(file.as_bytes()).unwrap();
            out.option(code::BOOT_FILE, file.as_bytes()).unwrap();
        }
        let len = out.finish().unwrap();
        buffer.truncate(len);
        Offered { from: SocketAddrV4::new(server, 67), after_ms: 1, bytes: buffer }
    }

    fn names(kind: Kind, offers: &[Offered]) -> (Vec<&'static str>, bool) {
        let found = answerers(kind, offers, &|server| server == US);
        let ours = found.iter().any(|answerer| answerer.ours && answerer.wins);
        (judge(kind, &found).iter().map(|finding| finding.name).collect(), ours)
    }

    #[test]
    fn a_plain_dhcp_server_beside_us_is_no_fault() {
        let direct = [6, 1, 8, 255];
        let offers = [offer(2, 100, "", &[], ""), offer(1, 0, "PXEClient", &direct, "snponly.efi")];
        for kind in [Kind::Bios, Kind::Uefi, Kind::Ipxe] {
            assert_eq!(names(kind, &offers), (vec![], true), "{kind:?}");
        }
    }

    #[test]
    fn each_kind_of_meddler_has_its_name() {
        let direct = [6, 1, 8, 255];
        let ours = offer(1, 0, "PXEClient", &direct, "snponly.efi");
        let plain = offer(2, 100, "", &[], "");
        let rival = offer(3, 0, "PXEClient", &direct, "pxelinux.0");
        assert_eq!(
            names(Kind::Uefi, &[plain.clone(), rival.clone(), ours.clone()]),
            (vec!["second-pxe-answerer"], false)
        );
        assert_eq!(names(Kind::Uefi, &[plain, ours.clone(), rival]), (vec!["second-pxe-answerer"], true));
        let class_only = offer(2, 100, "PXEClient", &[], "");
        assert_eq!(names(Kind::Bios, &[class_only, ours.clone()]), (vec!["option-60-without-43"], false));
        let named = offer(2, 100, "", &[], "grub.efi");
        assert_eq!(names(Kind::Ipxe, &[named.clone(), ours.clone()]), (vec!["filename-in-lease"], false));
        assert_eq!(names(Kind::Uefi, &[named, ours]), (vec!["filename-in-lease"], true));
    }

    #[test]
    fn a_dhcp_server_that_sends_machines_here_is_no_meddler() {
        let mut pointed = offer(2, 100, "", &[], "snponly.efi");
        pointed.bytes[20..24].copy_from_slice(&US.octets());
        assert_eq!(names(Kind::Uefi, &[pointed]), (vec![], true));
    }

    #[test]
    fn a_server_that_repeats_itself_is_listed_once() {
        let ours = offer(1, 100, "PXEClient", &[6, 1, 8, 255], "snponly.efi");
        let found = answerers(Kind::Uefi, &[ours.clone(), ours], &|server| server == US);
        assert_eq!(found.len(), 1);
        assert!(found[0].wins && found[0].wins_address);
    }
}

//! What each firmware says to DHCP servers, and how it chooses between their answers.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::Kind;
use crate::wire::dhcp::{Emitter, Header, Message, MessageType, SubOptions, code};
use crate::wire::{MacAddr, Uuid};

/// Who a message is from and about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    /// Firmware now: a loader turns everything into iPXE.
    pub(super) speaks: Kind,
    /// The platform it runs on.
    pub(super) efi: bool,
    pub(super) mac: MacAddr,
    pub(super) uuid: Uuid,
    pub(super) xid: u32,
}

/// What a REQUEST refers to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    pub(super) server: Ipv4Addr,
    pub(super) address: Ipv4Addr,
}

impl Asker {
    fn arch(&self) -> u16 {
        match (self.speaks, self.efi) {
            (Kind::Http, _) => 0x10,
            (_, true) => 7,
            (_, false) => 0,
        }
    }

    fn vendor_class(&self) -> String {
        let (class, undi) = match (self.speaks, self.efi) {
            (Kind::Http, _) => ("HTTPClient", "003016"),
            (_, true) => ("PXEClient", "003016"),
            (_, false) => ("PXEClient", "002001"),
        };
        format!("{class}:Arch:{:05}:UNDI:{undi}", self.arch())
    }

    fn max_size(&self) -> u16 {
        if self.speaks == Kind::Bios { 1260 } else { 1472 }
    }

    /// A DISCOVER; a REQUEST for a lease; or, with `ciaddr`, a REQUEST to a boot server on 4011.
    pub(super) fn message(
        &self,
        kind: MessageType,
        chosen: Option<Chosen>,
        ciaddr: Ipv4Addr,
    ) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1472];
        let mut header = Header::request_from(self.mac, self.xid);
        // EDK2 always asks for a broadcast (Dhcp4Io.c); a boot server is answered by unicast.
        header.flags = if ciaddr.is_unspecified() { 0x8000 } else { 0 };
        header.ciaddr = ciaddr;
        let mut out = Emitter::new(&mut buffer, &header)?;
        out.option(code::MESSAGE_TYPE, &[kind.code()])?;
        out.option(code::MAX_SIZE, &self.max_size().to_be_bytes())?;
        if let Some(chosen) = chosen {
            out.option(code::REQUESTED_ADDRESS, &chosen.address.octets())?;
            out.option(code::SERVER_ID, &chosen.server.octets())?;
        }
        out.option(code::PARAMETER_LIST, &[1, 3, 6, 12, 15, 17, 43, 54, 60, 66, 67, 97, 175])?;
        out.option(code::VENDOR_CLASS, self.vendor_class().as_bytes())?;
        out.option(code::CLIENT_ARCHITECTURE, &self.arch().to_be_bytes())?;
        out.option(code::CLIENT_NDI, if self.efi { &[1, 3, 16] } else { &[1, 2, 1] })?;
        let mut machine_id = [0; 17];
        machine_id[1..].copy_from_slice(&self.uuid.to_smbios());
        out.option(code::CLIENT_MACHINE_ID, &machine_id)?;
        if self.speaks == Kind::Ipxe {
            out.option(code::USER_CLASS, b"iPXE")?;
            // http, tftp, dns, menu, the platform's image type, version 1.0.0 as in Debian's build.
            let image = if self.efi { 36 } else { 24 };
            out.option(code::IPXE, &[19, 1, 1, 21, 1, 1, 23, 1, 1, 39, 1, 1, image, 1, 1, 235, 3, 1, 0, 0])?;
        }
        let len = out.finish()?;
        buffer.truncate(len);
        Some(buffer)
    }
}

/// One offer, as far as the choice needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    pub(super) yiaddr: Ipv4Addr,
    pub(super) siaddr: Ipv4Addr,
    pub(super) server: Ipv4Addr,
    pub(super) from: SocketAddrV4,
    /// Option 60.
    class: Class,
    /// Option 43 has something of 6 to 10.
    discovery: bool,
    /// Option 43.6 says to take the boot file at once.
    direct: bool,
    no_pxedhcp: bool,
    file_field: String,
    file_option: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    None,
    Pxe,
    Http,
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Offer {
    pub(super) fn of(message: &Message<'_>, from: SocketAddrV4) -> Option<Self> {
        let class = match message.option(code::VENDOR_CLASS) {
            Some(class) if class.starts_with(b"PXEClient") => Class::Pxe,
            Some(class) if class.starts_with(b"HTTPClient") => Class::Http,
            _ => Class::None,
        };
        let vendor = message.option(code::VENDOR_SPECIFIC).unwrap_or_default();
        let control = SubOptions::encapsulated(vendor).first(6).and_then(|body| body.first().copied());
        let discovery = (6..=10).any(|sub| SubOptions::encapsulated(vendor).first(sub).is_some());
        let ipxe = message.option(code::IPXE).unwrap_or_default();
        Some(Self {
            yiaddr: message.yiaddr(),
            siaddr: message.siaddr(),
            // EDK2 discards an offer without option 54.
            server: message.server_id()?,
            from,
            class,
            discovery,
            direct: control.is_some_and(|control| control & 8 != 0),
            no_pxedhcp: SubOptions::encapsulated(ipxe)
                .first(176)
                .is_some_and(|v| v.first().is_some_and(|b| *b != 0)),
            file_field: text(message.file()),
            file_option: text(message.boot_file_option().unwrap_or_default()),
        })
    }

    pub(super) fn is_lease(&self) -> bool {
        !self.yiaddr.is_unspecified()
    }

    /// The boot file as this firmware reads it: EDK2 option 67 first, iPXE and ROMs the `file` field first.
    pub(super) fn file(&self, speaks: Kind) -> &str {
        let (first, second) = match speaks {
            Kind::Uefi | Kind::Http => (&self.file_option, &self.file_field),
            Kind::Bios | Kind::Ipxe => (&self.file_field, &self.file_option),
        };
        if first.is_empty() { second } else { first }
    }

    /// Where the boot file is: EDK2 falls back from siaddr to option 54, iPXE does not.
    pub(super) fn next_server(&self, speaks: Kind) -> Ipv4Addr {
        if self.siaddr.is_unspecified() && speaks != Kind::Ipxe { self.server } else { self.siaddr }
    }
}

/// Which offers a machine goes on with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    /// The address comes from here.
    pub(super) lease: Offer,
    /// The boot data comes from here; may be the same one.
    pub(super) boot: Option<Offer>,
    /// The boot server on 4011 must be asked for the boot file.
    pub(super) ask_boot_server: bool,
}

/// Chooses once the machine has stopped waiting; `None` when nothing on the table boots it.
pub(super) fn choose(speaks: Kind, offers: &[Offer]) -> Option<Choice> {
    let lease = |wanted: &dyn Fn(&Offer) -> bool| {
        offers.iter().find(|offer| offer.is_lease() && wanted(offer)).cloned()
    };
    let proxy = |wanted: &dyn Fn(&Offer) -> bool| {
        offers.iter().find(|offer| !offer.is_lease() && wanted(offer)).cloned()
    };
    let plain = lease(&|offer| offer.class == Class::None);
    let made = |lease: Offer, boot: Offer, ask_boot_server| {
        Some(Choice { lease, boot: Some(boot), ask_boot_server })
    };
    match speaks {
        Kind::Uefi => {
            // The order of EDK2's PxeBcSelectOffer, as far as it concerns PXE 2.1.
            if let Some(offer) = lease(&|offer| offer.class == Class::Pxe && offer.discovery) {
                return made(offer.clone(), offer, false);
            }
            if let (Some(lease), Some(proxy)) =
                (&plain, proxy(&|offer| offer.class == Class::Pxe && offer.discovery))
            {
                return made(lease.clone(), proxy, false);
            }
            if let Some(offer) = lease(&|offer| offer.class == Class::Pxe) {
                return made(offer.clone(), offer, true);
            }
            if let (Some(lease), Some(proxy)) = (&plain, proxy(&|offer| offer.class == Class::Pxe)) {
                return made(lease.clone(), proxy, true);
            }
            let offer = lease(&|offer| !offer.file(speaks).is_empty())?;
            made(offer.clone(), offer, false)
        }
        Kind::Http => {
            let url = |offer: &Offer| offer.class == Class::Http && !offer.file(speaks).is_empty();
            if let Some(offer) = lease(&url) {
                return made(offer.clone(), offer, false);
            }
            made(plain?, proxy(&url)?, false)
        }
        Kind::Bios => {
            let pxe = |offer: &Offer| offer.class == Class::Pxe;
            if let Some(offer) = lease(&pxe) {
                let ask = !offer.direct;
                return made(offer.clone(), offer, ask);
            }
            if let (Some(lease), Some(proxy)) = (&plain, proxy(&pxe)) {
                let ask = !proxy.direct;
                return made(lease.clone(), proxy, ask);
            }
            let offer = lease(&|offer| !offer.file(speaks).is_empty())?;
            made(offer.clone(), offer, false)
        }
        Kind::Ipxe => {
            // The latest lease of equal priority wins; its own file beats the proxy's.
            let lease = offers.iter().rev().find(|offer| offer.is_lease())?.clone();
            if !lease.file(speaks).is_empty() {
                return made(lease.clone(), lease, false);
            }
            let proxy =
                offers.iter().rev().find(|offer| offer.class == Class::Pxe && !offer.is_lease()).cloned();
            let ask_boot_server = proxy.as_ref().is_some_and(|proxy| proxy.file(speaks).is_empty());
            Some(Choice { lease, boot: proxy, ask_boot_server })
        }
    }
}

/// Which of the offers a machine goes on with, by their places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// The address comes from this one.
    pub lease: usize,
    /// The boot data comes from this one; `None` when an iPXE has an address and nothing to boot.
    pub boot: Option<usize>,
    /// The boot server on 4011 has to be asked for the boot file.
    pub ask_boot_server: bool,
}

/// What a machine does that has these offers on the table when it stops waiting; `None` when nothing of it boots it.
/// Messages that are no offers, or that firmware discards, are passed over.
pub fn pick(speaks: Kind, offers: &[(SocketAddrV4, &[u8])]) -> Option<Pick> {
    let read: Vec<(usize, Offer)> = offers
        .iter()
        .enumerate()
        .filter_map(|(place, (from, bytes))| {
            let message = Message::parse(bytes).ok()?;
            (message.message_type() == Some(MessageType::Offer)).then_some(())?;
            Some((place, Offer::of(&message, *from)?))
        })
        .collect();
    let all: Vec<Offer> = read.iter().map(|(_, offer)| offer.clone()).collect();
    let place = |wanted: &Offer| read.iter().find(|(_, offer)| offer == wanted).map(|(place, _)| *place);
    let choice = choose(speaks, &all)?;
    Some(Pick {
        lease: place(&choice.lease)?,
        boot: choice.boot.as_ref().and_then(place),
        ask_boot_server: choice.ask_boot_server,
    })
}

/// Whether a machine need not wait any longer for offers.
pub(super) fn is_enough(speaks: Kind, offers: &[Offer], waited_for_proxy: bool) -> bool {
    match speaks {
        // UEFI answers "not ready" to every offer and always waits.
        Kind::Uefi | Kind::Http => false,
        Kind::Bios => choose(speaks, offers)
            .is_some_and(|choice| choice.boot.is_some_and(|boot| boot.class == Class::Pxe)),
        Kind::Ipxe => {
            let lease = offers.iter().rev().find(|offer| offer.is_lease());
            let proxy = offers.iter().any(|offer| offer.class == Class::Pxe && !offer.is_lease());
            lease.is_some_and(|lease| {
                lease.no_pxedhcp || lease.class == Class::Pxe || proxy || waited_for_proxy
            })
        }
    }
}

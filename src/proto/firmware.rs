//! Who is asking: which boot firmware sent a DHCP message, and what it can do. Also the table of the habits of real
//! firmware that DHCP must live with, see [`Quirk`].

use serde::Serialize;

use crate::wire::Arch;
use crate::wire::arch::{Cpu, Platform};
use crate::wire::dhcp::{Message, SubOptions, code, ipxe};

/// Option 60 of a PXE client begins so (PXE 2.1 §2.2.1; nine bytes, never a NUL).
pub const PXE_CLIENT: &[u8] = b"PXEClient";
/// Option 60 of a UEFI HTTP Boot client begins so (UEFI 2.5 §23.7.2.3).
pub const HTTP_CLIENT: &[u8] = b"HTTPClient";

/// What sort of program asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// A BIOS or UEFI ROM that fetches its first program by TFTP.
    Pxe,
    /// UEFI HTTP Boot: wants a URL.
    HttpBoot,
    /// iPXE or gPXE: wants a script.
    Ipxe(IpxeFeatures),
}

/// What an iPXE build says of itself in option 175.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct IpxeFeatures {
    /// Fetches `http://` URLs.
    pub http: bool,
    /// Fetches `https://` URLs.
    pub https: bool,
    /// Runs EFI programs, so it is an EFI build.
    pub efi: bool,
    /// Has `menu`, `item` and `choose`.
    pub menu: bool,
    /// Major, minor, patch; a development build has the numbers of the release before it.
    pub version: Option<[u8; 3]>,
}

/// A client that is booting from the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Firmware {
    /// What sort of program asks.
    pub kind: FirmwareKind,
    /// Architecture of the first program it can run.
    pub arch: Arch,
    /// False when the message names no architecture and `arch` is a guess from `kind`.
    pub arch_stated: bool,
}

impl Firmware {
    /// Recognises the firmware behind a message; `None` for who is not booting from the network.
    ///
    /// iPXE is known by its user class or its own option 175, whatever its vendor class says, since both classes are
    /// settings that a site may change.
    pub fn recognise(message: &Message<'_>) -> Option<Self> {
        let class = message.option(code::VENDOR_CLASS).unwrap_or_default();
        let kind = if let Some(features) = IpxeFeatures::of(message) {
            FirmwareKind::Ipxe(features)
        } else if class.starts_with(HTTP_CLIENT) {
            FirmwareKind::HttpBoot
        } else if class.starts_with(PXE_CLIENT) {
            FirmwareKind::Pxe
        } else {
            return None;
        };
        let stated = arch_of(message, class);
        Some(Self { kind, arch: stated.unwrap_or_else(|| kind.usual_arch()), arch_stated: stated.is_some() })
    }

    /// The class an answer must carry in option 60: a ROM drops offers of the other one.
    pub fn vendor_class(&self) -> &'static [u8] {
        match self.kind {
            FirmwareKind::HttpBoot => HTTP_CLIENT,
            FirmwareKind::Pxe | FirmwareKind::Ipxe(_) => PXE_CLIENT,
        }
    }

    /// The features of iPXE, when it is iPXE.
    pub fn ipxe(&self) -> Option<&IpxeFeatures> {
        match &self.kind {
            FirmwareKind::Ipxe(features) => Some(features),
            FirmwareKind::Pxe | FirmwareKind::HttpBoot => None,
        }
    }

    /// A short word for lists and logs.
    pub fn word(&self) -> &'static str {
        match (self.kind, self.arch.platform()) {
            (FirmwareKind::Ipxe(_), _) => "ipxe",
            (FirmwareKind::HttpBoot, _) => "http",
            (FirmwareKind::Pxe, Platform::Efi) => "uefi",
            (FirmwareKind::Pxe, Platform::Bios) => "bios",
            (FirmwareKind::Pxe, Platform::Other) => "pxe",
        }
    }
}

impl FirmwareKind {
    /// What a client of this kind most likely is when it names no architecture: a PXE ROM from before RFC 4578 is a
    /// BIOS one, HTTP Boot exists on UEFI only.
    fn usual_arch(self) -> Arch {
        match self {
            Self::Pxe => Arch::BIOS,
            Self::HttpBoot => Arch::HTTP_X64,
            Self::Ipxe(features) if features.efi => Arch::UEFI_X64,
            Self::Ipxe(_) => Arch::BIOS,
        }
    }
}

impl IpxeFeatures {
    /// `None` when the message is not iPXE's.
    fn of(message: &Message<'_>) -> Option<Self> {
        let user_class = message.option(code::USER_CLASS).unwrap_or_default();
        let Some(encapsulated) = message.option(code::IPXE) else {
            // Every build sends 175; one that lost it on the way is taken to speak HTTP, because the other guess
            // would hand iPXE to iPXE without end.
            return names_ipxe(user_class).then_some(Self { http: true, ..Self::default() });
        };
        let mut features = Self::default();
        for (sub, body) in SubOptions::encapsulated(encapsulated) {
            let present = body.first().is_some_and(|version| *version != 0);
            match sub {
                ipxe::FEATURE_HTTP => features.http = present,
                ipxe::FEATURE_HTTPS => features.https = present,
                ipxe::FEATURE_EFI => features.efi = present,
                ipxe::FEATURE_MENU => features.menu = present,
                ipxe::VERSION => features.version = body.try_into().ok(),
                _ => {}
            }
        }
        Some(features)
    }
}

/// True for `iPXE` and `gPXE`, bare as they send it or length-prefixed as RFC 3004 wants it, alone or as one of
/// several instances.
fn names_ipxe(user_class: &[u8]) -> bool {
    const NAMES: [&[u8]; 2] = [b"iPXE", b"gPXE"];
    if NAMES.contains(&user_class) {
        return true;
    }
    let mut rest = user_class;
    while let Some((len, tail)) = rest.split_first() {
        let Some((instance, tail)) = tail.split_at_checked(usize::from(*len)) else { return false };
        if NAMES.contains(&instance) {
            return true;
        }
        rest = tail;
    }
    false
}

/// The architecture to serve: of option 93's list the first we know a processor for, else its first; without 93 the
/// number in the vendor class.
fn arch_of(message: &Message<'_>, class: &[u8]) -> Option<Arch> {
    let known = |arch: &Arch| arch.cpu() != Cpu::Other;
    let listed = message.arches().find(known).or_else(|| message.arch());
    listed.or_else(|| class_arch(class))
}

/// `PXEClient:Arch:00007:UNDI:003016` says 7.
fn class_arch(class: &[u8]) -> Option<Arch> {
    let rest = class.strip_prefix(PXE_CLIENT).or_else(|| class.strip_prefix(HTTP_CLIENT))?;
    let digits = rest.strip_prefix(b":Arch:")?;
    let digits = digits.split(|byte| *byte == b':').next()?;
    if digits.len() != 5 {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().map(Arch)
}

/// A habit of real firmware that DHCP must live with. [`Quirk::entry`] says what and why; each has a test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quirk {
    /// A class without boot data sends ROMs to port 4011.
    ClassWithoutVendorOptions,
    /// Either `file` or option 67 is read, never both.
    FileInTwoPlaces,
    /// Old x64 firmware calls itself EFI byte code.
    ArchNineIsX64,
    /// Option 93 is missing.
    ArchOnlyInVendorClass,
    /// Option 93 is missing from the REQUEST only.
    ArchMissingInRequest,
    /// The user class comes in two shapes.
    UserClassTwoShapes,
    /// The UUID stands in `chaddr`.
    GuidInHardwareAddress,
    /// Short replies are dropped.
    ShortReplyDropped,
    /// Option 43 is read past its end.
    VendorOptionsNeedEnd,
    /// Option 67 is read past its end.
    BootFileNeedsNul,
    /// Long offers are dropped.
    LongOfferDropped,
    /// The boot server is asked from port 4011.
    BootServerAskedFrom4011,
    /// Proxy offers are dropped.
    OnlyCombinedOffers,
    /// iPXE waits for a proxy.
    IpxeWaitsForProxy,
    /// iPXE prefers a firmware menu over the boot file.
    IpxeEntersMenus,
    /// Unicast before configuration is asked for but not heard.
    DeafToUnicast,
    /// No machine id.
    NoMachineId,
    /// `secs` is not seconds.
    SecsIsNotSeconds,
    /// Takes an offer without a REQUEST.
    NeverRequests,
    /// Option 13 stands in for the size query.
    FileSizeMisread,
    /// Split options and overload are misread.
    SplitOptionsNotJoined,
    /// The proxy is taken for the TFTP server.
    ProxyTakenForServer,
    /// A boot file in the lease hides the proxy's.
    LeaseFileWins,
    /// HTTP Boot wants its own class and no names.
    HttpBootWantsItsClass,
    /// An iPXE that cannot fetch scripts.
    IpxeWithoutHttp,
    /// A switch port that does not forward yet.
    FirstMessagesLost,
    /// Relays want everything back.
    RelayWantsItsOption,
    /// One machine sends three client ids.
    ThreeIdentities,
    /// The UUID comes in two orders.
    UuidByteOrder,
    /// Another DHCP server on the same host.
    PortTaken,
    /// A hall asks in step.
    LockStep,
}

/// One row of the quirk table.
#[derive(Clone, Copy, Debug)]
pub struct QuirkEntry {
    /// Which firmware.
    pub firmware: &'static str,
    /// What it does.
    pub does: &'static str,
    /// What we do about it.
    pub answer: &'static str,
    /// The test that holds us to it.
    pub test: &'static str,
}

impl Quirk {
    /// Every quirk.
    pub const ALL: [Self; 31] = [
        Self::ClassWithoutVendorOptions,
        Self::FileInTwoPlaces,
        Self::ArchNineIsX64,
        Self::ArchOnlyInVendorClass,
        Self::ArchMissingInRequest,
        Self::UserClassTwoShapes,
        Self::GuidInHardwareAddress,
        Self::ShortReplyDropped,
        Self::VendorOptionsNeedEnd,
        Self::BootFileNeedsNul,
        Self::LongOfferDropped,
        Self::BootServerAskedFrom4011,
        Self::OnlyCombinedOffers,
        Self::IpxeWaitsForProxy,
        Self::IpxeEntersMenus,
        Self::DeafToUnicast,
        Self::NoMachineId,
        Self::SecsIsNotSeconds,
        Self::NeverRequests,
        Self::FileSizeMisread,
        Self::SplitOptionsNotJoined,
        Self::ProxyTakenForServer,
        Self::LeaseFileWins,
        Self::HttpBootWantsItsClass,
        Self::IpxeWithoutHttp,
        Self::FirstMessagesLost,
        Self::RelayWantsItsOption,
        Self::ThreeIdentities,
        Self::UuidByteOrder,
        Self::PortTaken,
        Self::LockStep,
    ];

    /// The row of the table.
    pub fn entry(self) -> QuirkEntry {
        let (firmware, does, answer, test) = match self {
            Self::ClassWithoutVendorOptions => (
                "every PXE ROM; EDK2 UefiPxeBcDxe/PxeBcDhcp4.c",
                "takes an offer with option 60 but without 43.6 for a boot server's and waits on port 4011 (PXE-E55)",
                "43 = 06 01 08 FF in every offer with 60=PXEClient, and port 4011 is answered all the same",
                "every_boot_offer_says_boot_this_file_now",
            ),
            Self::FileInTwoPlaces => (
                "EDK2 (67 first), iPXE net/dhcppkt.c (file first), shim netboot.c (file only)",
                "read the boot file from one place only",
                "the same name in file and in 67, the server in siaddr, 54 and 66",
                "file_and_option_67_agree",
            ),
            Self::ArchNineIsX64 => (
                "x64 UEFI up to about 2014",
                "sends architecture 9 after RFC 4578's swapped table",
                "Arch 9 counts as x64",
                "arch_nine_is_served_as_x64",
            ),
            Self::ArchOnlyInVendorClass => (
                "assorted ROMs, relays that strip options",
                "sends no option 93",
                "the number in option 60 counts; a PXEClient with neither is BIOS",
                "arch_comes_from_the_class_when_93_is_missing",
            ),
            Self::ArchMissingInRequest => (
                "some UEFI and BIOS ROMs",
                "leaves option 93 out of the REQUEST after a DISCOVER that had it",
                "the architecture of the DISCOVER is remembered by hardware address",
                "arch_of_the_discover_serves_the_boot_server_request",
            ),
            Self::UserClassTwoShapes => (
                "iPXE (bare), others (RFC 3004)",
                "sends the user class with or without length bytes",
                "both shapes are read; option 175 alone is enough",
                "ipxe_is_known_in_every_shape",
            ),
            Self::GuidInHardwareAddress => (
                "EDK2 with SendGUID set (UefiPxeBcDxe/PxeBcDhcp4.c)",
                "puts the SMBIOS UUID into chaddr, hlen 16",
                "read as the UUID; the frame's source is the MAC; chaddr is echoed whole",
                "guid_in_chaddr_is_the_uuid",
            ),
            Self::ShortReplyDropped => (
                "some BIOS ROMs and relays",
                "drop replies of less than 300 bytes",
                "every reply is padded to 300",
                "every_reply_has_at_least_300_bytes",
            ),
            Self::VendorOptionsNeedEnd => (
                "some BIOS ROMs",
                "read option 43 past its end without a 255",
                "43 always ends in FF",
                "every_boot_offer_says_boot_this_file_now",
            ),
            Self::BootFileNeedsNul => (
                "some BIOS ROMs; EDK2 writes a NUL over the byte after option 67",
                "read option 67 past its end without a NUL",
                "67 always ends in NUL",
                "file_and_option_67_agree",
            ),
            Self::LongOfferDropped => (
                "EDK2 (1472), BIOS ROMs (option 57, often 1260)",
                "drop longer replies",
                "a reply stays under option 57 less 28, at most 1472, 548 when 57 is missing",
                "no_reply_is_longer_than_the_client_takes",
            ),
            Self::BootServerAskedFrom4011 => (
                "EDK2 (from 4011), iPXE and BIOS ROMs (from 68)",
                "ask port 4011 from different ports",
                "the answer goes to the port the request came from, from 4011",
                "boot_server_answers_the_port_it_was_asked_from",
            ),
            Self::OnlyCombinedOffers => (
                "HP laptops, DL380 Gen9, Dell T130/T430 of 2014-2017",
                "never follow a proxy offer beside a lease offer",
                "full mode gives lease and boot file in one offer",
                "full_mode_offers_lease_and_boot_file_together",
            ),
            Self::IpxeWaitsForProxy => (
                "iPXE net/udp/dhcp.c",
                "waits up to 3 s for a proxy offer after the lease offer",
                "full mode sends 175.176 = 1",
                "ipxe_need_not_wait_for_a_proxy_in_full_mode",
            ),
            Self::IpxeEntersMenus => (
                "iPXE usr/autoboot.c",
                "enters a PXE menu (43.9) instead of its boot file; on EFI that fails",
                "no menu is ever sent, and 43.6 has bit 3",
                "every_boot_offer_says_boot_this_file_now",
            ),
            Self::DeafToUnicast => (
                "Raspberry Pi and others",
                "clear the broadcast bit, yet hear no unicast before they are configured",
                "a retry with the same xid is answered by broadcast",
                "a_retried_discover_is_answered_by_broadcast",
            ),
            Self::NoMachineId => (
                "some Intel cards, iPXE without SMBIOS",
                "send no option 97",
                "97 is echoed only if sent",
                "no_machine_id_is_invented",
            ),
            Self::SecsIsNotSeconds => (
                "iPXE net/udp/dhcp.c",
                "keeps retry count and state bits in secs",
                "secs gates nothing",
                "secs_gates_nothing",
            ),
            Self::NeverRequests => (
                "Raspberry Pi (boot ROM), others",
                "takes address and TFTP server from the OFFER and asks for files at once",
                "an offer alone tells who is at the address; TFTP waits for no REQUEST",
                "an_offer_alone_tells_who_is_where",
            ),
            Self::FileSizeMisread => (
                "EDK2 UefiPxeBcDxe/PxeBcBoot.c",
                "takes option 13 (in blocks of 512) for the loader's size and asks TFTP no more",
                "option 13 is never sent",
                "no_reply_has_what_firmware_misreads",
            ),
            Self::SplitOptionsNotJoined => (
                "iPXE net/dhcpopts.c, shim netboot.c",
                "do not join options split after RFC 3396, or read file and sname as options (52)",
                "no option comes twice, none is longer than 255, and 52 is never sent",
                "no_reply_has_what_firmware_misreads",
            ),
            Self::ProxyTakenForServer => (
                "UEFI of 2014-2017 (tianocore/edk2#6944)",
                "asks the proxy's own address for files whatever siaddr says",
                "siaddr, 54 and 66 are the address TFTP is served on, unless next_server names another",
                "file_and_option_67_agree",
            ),
            Self::LeaseFileWins => (
                "iPXE usr/autoboot.c",
                "boots the file of the lease and forgets the proxy's",
                "a server that names a file in its leases is named in the log and by doctor",
                "a_lease_with_a_boot_file_of_its_own_is_noticed",
            ),
            Self::HttpBootWantsItsClass => (
                "EDK2 HttpBootDxe/HttpBootDhcp4.c",
                "drops offers that are not 60=HTTPClient, and needs a resolver for a URL with a name",
                "60=HTTPClient without 43, and a URL with an address",
                "http_boot_gets_its_class_and_a_url_without_names",
            ),
            Self::IpxeWithoutHttp => (
                "VirtualBox and other built-in iPXE",
                "is iPXE, but has no HTTP (no 175.19)",
                "gets a full iPXE by TFTP, once; one with HTTP never gets a loader",
                "each_firmware_is_told_what_it_can_run",
            ),
            Self::FirstMessagesLost => (
                "any, behind spanning tree without edge ports",
                "is first heard seconds after it began to ask",
                "said once, with what to set on the switch",
                "a_first_message_that_comes_late_is_noticed",
            ),
            Self::RelayWantsItsOption => (
                "RFC 3046 relays",
                "drop replies whose giaddr or option 82 is not theirs",
                "both go back unchanged, 82 last, by unicast to port 67 of giaddr",
                "a_relayed_request_is_answered_to_the_relay_with_its_option_last",
            ),
            Self::ThreeIdentities => (
                "firmware, iPXE and the installed system",
                "send three values of option 61",
                "leases hang on chaddr: one address for all three",
                "three_client_ids_of_one_machine_share_its_address",
            ),
            Self::UuidByteOrder => (
                "most ROMs (little-endian fields), some in network order",
                "send the SMBIOS UUID as it lies in memory, or as it is printed",
                "a selector matches either order",
                "both_byte_orders_of_a_uuid_share_a_home",
            ),
            Self::PortTaken => (
                "dnsmasq, ISC dhcpd, libvirt",
                "have port 67 already",
                "in proxy mode every message is heard and answered by raw frames alone",
                "every_request_is_taken_by_exactly_one_of_the_two",
            ),
            Self::LockStep => (
                "thousands of equal machines",
                "repeat themselves at the same moments, 4, 8 and 16 s after power-on",
                "REQUESTs go before DISCOVERs, DISCOVERs wait in a bounded queue, stale ones are dropped",
                "discovers_wait_in_order_and_the_newest_is_refused",
            ),
        };
        QuirkEntry { firmware, does, answer, test }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MacAddr;
    use crate::wire::dhcp::{Emitter, Header};

    fn recognised(options: &[(u8, &[u8])]) -> Option<Firmware> {
        let mut buffer = [0; 600];
        let header = Header::request_from(MacAddr([2, 0, 0, 0, 0, 1]), 1);
        let mut emitter = Emitter::new(&mut buffer, &header).unwrap();
        for (code, body) in options {
            emitter.option(*code, body).unwrap();
        }
        let len = emitter.finish().unwrap();
        Firmware::recognise(&Message::parse(&buffer[..len]).unwrap())
    }

    fn pxe(class: &[u8], arch: &[u8]) -> Firmware {
        recognised(&[(60, class), (93, arch)]).unwrap()
    }

    #[test]
    fn roms_are_known_by_their_class() {
        let bios = pxe(b"PXEClient:Arch:00000:UNDI:002001", &[0, 0]);
        assert_eq!((bios.kind, bios.arch, bios.word()), (FirmwareKind::Pxe, Arch::BIOS, "bios"));
        let uefi = pxe(b"PXEClient:Arch:00007:UNDI:003016", &[0, 7]);
        assert_eq!((uefi.kind, uefi.arch, uefi.word()), (FirmwareKind::Pxe, Arch::UEFI_X64, "uefi"));
        let http = pxe(b"HTTPClient:Arch:00016:UNDI:003016", &[0, 16]);
        assert_eq!((http.kind, http.arch, http.word()), (FirmwareKind::HttpBoot, Arch::HTTP_X64, "http"));
        assert_eq!(http.vendor_class(), HTTP_CLIENT);
        assert_eq!(uefi.vendor_class(), PXE_CLIENT);
    }

    #[test]
    fn who_is_not_booting_is_nobody() {
        for class in [&b"MSFT 5.0"[..], b"dhcpcd-9", b"PXEClien", b"AAPLBSDPC/i386", b""] {
            assert_eq!(recognised(&[(60, class)]), None);
        }
        assert_eq!(recognised(&[(77, b"kiosk"), (93, &[0, 7])]), None);
    }

    #[test]
    fn ipxe_is_known_in_every_shape() {
        for class in [&b"iPXE"[..], b"\x04iPXE", b"gPXE", b"\x03foo\x04gPXE"] {
            let firmware = recognised(&[(77, class)]).unwrap();
            assert!(firmware.ipxe().is_some_and(|features| features.http), "{class:?}");
        }
        for class in [&b"ipxe"[..], b"iPXE2", b"\x05iPXE", b"\x04iPX"] {
            assert_eq!(recognised(&[(77, class)]), None, "{class:?}");
        }
        // The user class is a setting; option 175 cannot be switched off.
        let firmware = recognised(&[(60, b"corp"), (77, b"corp"), (175, &[19, 1, 1])]).unwrap();
        assert_eq!(firmware.word(), "ipxe");
        assert_eq!(firmware.vendor_class(), PXE_CLIENT);
    }

    #[test]
    fn ipxe_features_come_from_option_175() {
        let encapsulated =
            [177, 5, 1, 0x80, 0x86, 0x10, 0x0e, 19, 1, 1, 36, 1, 1, 39, 1, 1, 235, 3, 1, 21, 1, 255];
        let firmware = recognised(&[(77, b"iPXE"), (93, &[0, 7]), (175, &encapsulated)]).unwrap();
        let features = *firmware.ipxe().unwrap();
        assert_eq!(
            features,
            IpxeFeatures { http: true, https: false, efi: true, menu: true, version: Some([1, 21, 1]) }
        );
        // What stands after an overrun is not read, and what is not named is not there.
        let firmware = recognised(&[(77, b"iPXE"), (175, &[20, 1, 1, 19, 9])]).unwrap();
        assert!(!firmware.ipxe().unwrap().http && firmware.ipxe().unwrap().https);
    }

    #[test]
    fn arch_nine_is_served_as_x64() {
        let firmware = pxe(b"PXEClient:Arch:00009:UNDI:003001", &[0, 9]);
        assert_eq!((firmware.arch.cpu(), firmware.word()), (Cpu::X64, "uefi"));
    }

    #[test]
    fn arch_comes_from_the_class_when_93_is_missing() {
        let stated = |class: &[u8]| {
            let firmware = recognised(&[(60, class)]).unwrap();
            firmware.arch_stated.then_some(firmware.arch)
        };
        assert_eq!(stated(b"PXEClient:Arch:00011:UNDI:003000"), Some(Arch::UEFI_ARM64));
        assert_eq!(stated(b"HTTPClient:Arch:00019"), Some(Arch::HTTP_ARM64));
        assert_eq!(stated(b"PXEClient:Arch:7:UNDI"), None);
        assert_eq!(stated(b"PXEClient:Arch:99999"), None);
        assert_eq!(stated(b"PXEClient"), None);
        assert_eq!(recognised(&[(60, b"PXEClient")]).unwrap().arch, Arch::BIOS);
        assert_eq!(recognised(&[(60, b"HTTPClient")]).unwrap().arch, Arch::HTTP_X64);
    }

    #[test]
    fn option_93_beats_the_class_and_its_first_known_code_counts() {
        let firmware = pxe(b"PXEClient:Arch:00000:UNDI:002001", &[0, 0x1b, 0, 7, 0, 6]);
        assert_eq!(firmware.arch, Arch::UEFI_X64);
        let firmware = pxe(b"PXEClient:Arch:00000:UNDI:002001", &[0, 0x1b, 0]);
        assert_eq!(firmware.arch, Arch(0x1b));
    }

    #[test]
    fn every_quirk_names_a_test_that_exists() {
        const SOURCES: [&str; 8] = [
            include_str!("firmware.rs"),
            include_str!("dhcp/tests.rs"),
            include_str!("dhcp/tests/quirks.rs"),
            include_str!("dhcp/tests/rivals.rs"),
            include_str!("../engine/policy.rs"),
            include_str!("../engine/filters.rs"),
            include_str!("../engine/dhcp/waiting.rs"),
            include_str!("../jobs/table/tests.rs"),
        ];
        for quirk in Quirk::ALL {
            let signature = format!("fn {}()", quirk.entry().test);
            assert!(SOURCES.iter().any(|source| source.contains(&signature)), "{quirk:?}: {signature}");
        }
    }
}

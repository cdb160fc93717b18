//! Timelines of the server: what comes in, exactly what goes out.

use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::time::Duration;

use dhcproto::v4::{self, DhcpOption, OptionCode};
use dhcproto::{Decodable, Decoder};

use super::*;
use crate::wire;
use crate::wire::MacAddr;
use crate::wire::dhcp::{Emitter, Header, MessageType, SubOptions};

mod captured;
mod cases;
mod language;
mod oracle;
mod probes;
mod quirks;
mod rivals;

const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

const BIOS: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";
const UEFI: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";
const HTTP: &[u8] = b"HTTPClient:Arch:00016:UNDI:003016";

/// Last byte of the address that is never answered.
const EXCLUDED: u8 = 0xee;
/// Last bytes of the addresses of machines that an operator has entered: a fifth of a hundred.
const REGISTERED: std::ops::Range<u8> = 0xa0..0xb4;

/// Loaders to firmware, a script to iPXE, a URL to HTTP Boot.
struct Policy(Answer);

impl BootPolicy for Policy {
    fn resolve(
        &mut self,
        who: &Identity,
        firmware: &Firmware,
        server: Ipv4Addr,
        _: &Wish<'_>,
        file: &mut BootFile,
    ) -> Answer {
        let mac = who.mac.expect("these clients have one");
        match firmware.kind {
            FirmwareKind::Ipxe(_) => write!(file, "http://{server}:4433/ipxe?mac={mac}"),
            FirmwareKind::HttpBoot => write!(file, "http://{server}:4433/loaders/snponly.efi"),
            FirmwareKind::Pxe => {
                write!(file, "{}", if firmware.arch == Arch::BIOS { "undionly.kpxe" } else { "snponly.efi" })
            }
        }
        .expect("short names fit");
        self.0
    }

    fn is_excluded(&mut self, mac: MacAddr) -> bool {
        mac.0[5] == EXCLUDED
    }

    fn is_registered(&mut self, who: &Identity) -> bool {
        who.mac.is_some_and(|mac| REGISTERED.contains(&mac.0[5]))
    }
}

use crate::proto::firmware::FirmwareKind;
use crate::wire::Arch;

struct Lab {
    server: Server,
    interface: Interface,
    now: Instant,
    answer: Answer,
    out: [u8; 1472],
}

fn network() -> Network {
    Network::new(US, 24).expect("a good prefix")
}

fn full() -> Settings {
    let subnet = Subnet {
        range: Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 103))),
        router: Some(US),
        dns: vec![US],
        ..Subnet::new(network())
    };
    Settings { mode: Mode::Full, subnets: vec![subnet], authoritative: true, ..Settings::default() }
}

fn proxy() -> Settings {
    Settings { mode: Mode::Proxy, ..Settings::default() }
}

impl Lab {
    fn new(settings: Settings) -> Self {
        let interface = Interface {
            index: 2,
            name: "eth0".into(),
            addr: US,
            network: network(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
        };
        Self {
            server: Server::new(settings, 7),
            interface,
            now: Instant::now(),
            answer: Answer::Boot,
            out: [0; 1472],
        }
    }

    fn hear(&mut self, port: ServerPort, src: SocketAddrV4, dst: Ipv4Addr, bytes: &[u8]) -> Verdict {
        let interface = self.interface.clone();
        let input = Input { interface: &interface, port, src, src_mac: None, dst, local: US, bytes };
        self.server.handle(self.now, &input, &mut Policy(self.answer), &mut self.out)
    }

    fn broadcast(&mut self, bytes: &[u8]) -> Verdict {
        self.hear(ServerPort::Dhcp, SocketAddrV4::new(NOBODY, 68), Ipv4Addr::BROADCAST, bytes)
    }

    /// The reply to a broadcast that must have one.
    fn reply(&mut self, bytes: &[u8]) -> (Output, Message<'_>) {
        let verdict = self.broadcast(bytes);
        let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
        (output, Message::parse(&self.out[..output.len]).expect("what is sent parses"))
    }
}

/// A client's message.
struct Client {
    kind: MessageType,
    mac: u8,
    class: &'static [u8],
    arch: u16,
    ipxe: bool,
    options: Vec<(u8, Vec<u8>)>,
    ciaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    flags: u16,
}

const CLIENT: Client = Client {
    kind: MessageType::Discover,
    mac: 1,
    class: b"",
    arch: 0,
    ipxe: false,
    options: Vec::new(),
    ciaddr: NOBODY,
    giaddr: NOBODY,
    flags: 0x8000,
};

fn uefi() -> Client {
    Client { class: UEFI, arch: 7, ..CLIENT }
}

impl Client {
    fn with(mut self, code: u8, body: &[u8]) -> Self {
        self.options.push((code, body.to_vec()));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut buffer = vec![0; 1472];
        let mut header = Header::request_from(MacAddr([0x52, 0x54, 0, 0x77, 0, self.mac]), 0x1234_5678);
        header.ciaddr = self.ciaddr;
        header.giaddr = self.giaddr;
        header.flags = self.flags;
        let mut out = Emitter::new(&mut buffer, &header).unwrap();
        out.option(code::MESSAGE_TYPE, &[self.kind.code()]).unwrap();
        out.option(code::MAX_SIZE, &1472u16.to_be_bytes()).unwrap();
        if !self.class.is_empty() {
            out.option(code::VENDOR_CLASS, self.class).unwrap();
            out.option(code::CLIENT_ARCHITECTURE, &self.arch.to_be_bytes()).unwrap();
            let mut id = [0; 17];
            id[1] = self.mac;
            id[16] = 9;
            out.option(code::CLIENT_MACHINE_ID, &id).unwrap();
        }
        if self.ipxe {
            out.option(code::USER_CLASS, b"iPXE").unwrap();
            out.option(code::IPXE, &[19, 1, 1, 21, 1, 1, 235, 3, 1, 0, 0]).unwrap();
        }
        for (code, body) in &self.options {
            out.option(*code, body).unwrap();
        }
        let len = out.finish().unwrap();
        buffer.truncate(len);
        buffer
    }
}

fn request_for(address: Ipv4Addr, server: Ipv4Addr) -> Client {
    Client { kind: MessageType::Request, ..uefi() }
        .with(code::REQUESTED_ADDRESS, &address.octets())
        .with(code::SERVER_ID, &server.octets())
}

#[test]
fn a_proxy_offer_gives_boot_data_and_no_address() {
    let mut lab = Lab::new(proxy());
    let (output, offer) = lab.reply(&uefi().bytes());
    assert_eq!(output.to, To::Broadcast);
    assert_eq!((output.from, output.port), (US, ServerPort::Dhcp));
    assert_eq!(offer.message_type(), Some(MessageType::Offer));
    assert_eq!((offer.yiaddr(), offer.siaddr()), (NOBODY, US));
    assert_eq!(offer.file(), b"snponly.efi");
    assert_eq!(offer.option(code::VENDOR_CLASS), Some(b"PXEClient".as_slice()));
    assert_eq!(offer.option(code::VENDOR_SPECIFIC), Some([6, 1, 8, 255].as_slice()));
    assert_eq!(offer.option(code::BOOT_FILE), Some(b"snponly.efi\0".as_slice()));
    assert_eq!(offer.option(code::TFTP_SERVER_NAME), Some(b"10.77.0.1".as_slice()));
    assert!(offer.option(code::CLIENT_MACHINE_ID).is_some(), "97 is echoed");
    for lease_option in [code::LEASE_TIME, code::SUBNET_MASK, code::ROUTER] {
        assert_eq!(offer.option(lease_option), None);
    }
    assert!(output.len >= 300);
}

#[test]
fn each_firmware_gets_its_own_kind_of_boot_file() {
    let ipxe = Client { ipxe: true, ..uefi() };
    for (client, class, file) in [
        (Client { class: BIOS, ..CLIENT }, "PXEClient", "undionly.kpxe"),
        (uefi(), "PXEClient", "snponly.efi"),
        (
            Client { class: HTTP, arch: 16, ..CLIENT },
            "HTTPClient",
            "http://10.77.0.1:4433/loaders/snponly.efi",
        ),
        (ipxe, "PXEClient", "http://10.77.0.1:4433/ipxe?mac=52:54:00:77:00:01"),
    ] {
        for settings in [proxy(), full()] {
            let mut lab = Lab::new(settings);
            let (_, offer) = lab.reply(&client.bytes());
            assert_eq!(offer.file(), file.as_bytes());
            let option = offer.option(code::BOOT_FILE).unwrap();
            assert_eq!(option.strip_suffix(b"\0").unwrap_or(option), file.as_bytes(), "both say the same");
            assert_eq!(offer.option(code::VENDOR_CLASS), Some(class.as_bytes()));
        }
    }
}

#[test]
fn a_proxy_says_nothing_to_who_is_not_booting_or_asks_another_server() {
    let mut lab = Lab::new(proxy());
    assert_eq!(lab.broadcast(&CLIENT.bytes()), Verdict::Drop(DropReason::NotBooting));
    let request = request_for(Ipv4Addr::new(10, 77, 0, 50), OTHER);
    let Verdict::Heard(event) = lab.broadcast(&request.bytes()) else { panic!("a request tells an address") };
    assert_eq!(event.what, DhcpStep::OverheardRequest { server: Some(OTHER) });
    assert_eq!(event.ip, Some(Ipv4Addr::new(10, 77, 0, 50)));
    let release = Client { kind: MessageType::Release, ciaddr: OTHER, ..uefi() };
    assert!(matches!(lab.broadcast(&release.bytes()), Verdict::Drop(_)));
}

#[test]
fn a_boot_server_request_is_answered_from_4011_to_where_it_came_from() {
    let mut lab = Lab::new(proxy());
    let machine = Ipv4Addr::new(10, 77, 0, 50);
    let request = Client { kind: MessageType::Request, ciaddr: machine, flags: 0, ..uefi() };
    for source_port in [68, 4011] {
        let src = SocketAddrV4::new(machine, source_port);
        let verdict = lab.hear(ServerPort::BootServer, src, US, &request.bytes());
        let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
        assert_eq!((output.port, output.to), (ServerPort::BootServer, To::Unicast(src)));
        let ack = Message::parse(&lab.out[..output.len]).unwrap();
        assert_eq!(ack.message_type(), Some(MessageType::Ack));
        assert_eq!(ack.file(), b"snponly.efi");
    }
}

#[test]
fn a_lease_is_offered_requested_renewed_and_given_back() {
    let mut lab = Lab::new(full());
    let (_, offer) = lab.reply(&uefi().bytes());
    let address = offer.yiaddr();
    assert!(network().contains(address));
    for lease_option in
        [code::LEASE_TIME, code::SUBNET_MASK, code::ROUTER, code::SERVER_ID, code::VENDOR_SPECIFIC]
    {
        assert!(offer.option(lease_option).is_some(), "option {lease_option}");
    }
    let (_, again) = lab.reply(&uefi().bytes());
    assert_eq!(again.yiaddr(), address, "a retried DISCOVER gets the same answer");
    let (_, ack) = lab.reply(&request_for(address, US).bytes());
    assert_eq!((ack.message_type(), ack.yiaddr()), (Some(MessageType::Ack), address));
    lab.now += Duration::from_secs(1800);
    let renew = Client { kind: MessageType::Request, ciaddr: address, flags: 0, ..uefi() };
    let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(address, 68), US, &renew.bytes());
    assert!(matches!(verdict, Verdict::Reply(Output { to: To::Unicast(_), .. }, _)), "{verdict:?}");
    let release =
        Client { kind: MessageType::Release, ciaddr: address, ..uefi() }.with(code::SERVER_ID, &US.octets());
    let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(address, 68), US, &release.bytes());
    assert!(matches!(verdict, Verdict::Heard(DhcpEvent { what: DhcpStep::Released, .. })), "{verdict:?}");
}

#[test]
fn no_address_is_given_to_two_machines_and_an_empty_pool_is_said_so() {
    let mut lab = Lab::new(full());
    let mut given = Vec::new();
    for mac in 1..=4 {
        let (_, offer) = lab.reply(&Client { mac, ..uefi() }.bytes());
        let address = offer.yiaddr();
        assert!(!given.contains(&address), "{address} twice");
        given.push(address);
        let request = Client { mac, ..request_for(address, US) };
        lab.reply(&request.bytes());
    }
    let fifth = Client { mac: 5, ..uefi() }.bytes();
    assert_eq!(lab.broadcast(&fifth), Verdict::Drop(DropReason::PoolExhausted));
    lab.now += Duration::from_secs(2 * 3600);
    lab.reply(&fifth);
}

#[test]
fn an_offer_that_nobody_wants_is_free_again_after_ten_seconds() {
    let mut lab = Lab::new(full());
    for mac in 1..=4 {
        lab.reply(&Client { mac, ..uefi() }.bytes());
    }
    let fifth = Client { mac: 5, ..uefi() }.bytes();
    assert_eq!(lab.broadcast(&fifth), Verdict::Drop(DropReason::PoolExhausted));
    lab.now += Duration::from_secs(11);
    lab.reply(&fifth);
}

#[test]
fn a_declined_address_is_left_alone() {
    let mut lab = Lab::new(full());
    let (_, offer) = lab.reply(&uefi().bytes());
    let address = offer.yiaddr();
    lab.reply(&request_for(address, US).bytes());
    let decline = Client { kind: MessageType::Decline, ..request_for(address, US) };
    assert!(matches!(
        lab.broadcast(&decline.bytes()),
        Verdict::Heard(DhcpEvent { what: DhcpStep::Declined, .. })
    ));
    let (_, offer) = lab.reply(&uefi().bytes());
    assert_ne!(offer.yiaddr(), address);
}

/// A pool of a hundred addresses.
fn hundred() -> Settings {
    let range = Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 199)));
    Settings { subnets: vec![Subnet { range, ..Subnet::new(network()) }], ..full() }
}

impl Lab {
    /// A machine asks for an address and declines what it is offered.
    fn declines(&mut self, mac: u8, wanted: u8) {
        let wanted = Ipv4Addr::new(10, 77, 0, wanted);
        let discover = Client { mac, ..uefi() }.with(code::REQUESTED_ADDRESS, &wanted.octets());
        let ip = self.reply(&discover.bytes()).1.yiaddr();
        let decline = Client { kind: MessageType::Decline, mac, ..request_for(ip, US) };
        let verdict = self.broadcast(&decline.bytes());
        assert!(matches!(verdict, Verdict::Heard(DhcpEvent { what: DhcpStep::Declined, .. })), "{verdict:?}");
        self.server.leases.check();
    }

    fn addresses_taken(&self) -> u32 {
        self.server.pools().map(|pool| pool.live).sum()
    }
}

#[test]
fn who_declines_every_address_has_eight_of_them_put_aside() {
    let mut lab = Lab::new(hundred());
    for wanted in 100..120 {
        lab.declines(1, wanted);
    }
    assert_eq!(lab.addresses_taken(), probe::CLAIMS_OF_ONE_MAX as u32);
    assert_eq!(
        notices(&mut lab),
        [Notice::Disbelieved { by: Some(MacAddr([0x52, 0x54, 0, 0x77, 0, 1])) }],
        "told once"
    );
    lab.declines(2, 150);
    assert_eq!(lab.addresses_taken(), probe::CLAIMS_OF_ONE_MAX as u32 + 1, "another machine is believed");
    lab.now += leases::QUARANTINE;
    lab.server.handle_timeout(lab.now);
    assert_eq!(lab.addresses_taken(), 0);
    lab.declines(1, 100);
    assert_eq!(lab.addresses_taken(), 1);
}

#[test]
fn declines_under_made_up_addresses_leave_a_quarter_of_a_pool_and_the_registered_fifth() {
    let mut lab = Lab::new(hundred());
    for mac in 1..=100 {
        lab.declines(mac, 99 + mac);
    }
    assert_eq!(lab.addresses_taken(), 75);
    for mac in 101..=105 {
        lab.reply(&Client { mac, ..uefi() }.bytes());
    }
    assert_eq!(lab.broadcast(&Client { mac: 106, ..uefi() }.bytes()), Verdict::Drop(DropReason::PoolKept));
    for mac in REGISTERED {
        lab.reply(&Client { mac, ..uefi() }.bytes());
    }
    lab.server.leases.check();
    assert_eq!(lab.addresses_taken(), 100);
}

#[test]
fn a_wrong_address_is_refused_and_another_servers_is_not_our_business() {
    let mut lab = Lab::new(full());
    let wrong =
        Client { kind: MessageType::Request, ..uefi() }.with(code::REQUESTED_ADDRESS, &[192, 168, 1, 5]);
    let (output, nak) = lab.reply(&wrong.bytes());
    assert_eq!((nak.message_type(), output.to), (Some(MessageType::Nak), To::Broadcast));
    let elsewhere = request_for(Ipv4Addr::new(10, 77, 0, 100), OTHER);
    assert!(!matches!(lab.broadcast(&elsewhere.bytes()), Verdict::Reply(..)));
}

#[test]
fn a_relayed_request_is_answered_to_the_relay_with_its_option_last() {
    let circuit = b"\x01\x04port\x02\x02sw";
    let mut settings = full();
    let remote = Network::new(Ipv4Addr::new(10, 88, 0, 0), 24).unwrap();
    let range = Some((Ipv4Addr::new(10, 88, 0, 100), Ipv4Addr::new(10, 88, 0, 200)));
    settings.subnets.push(Subnet { range, ..Subnet::new(remote) });
    let mut lab = Lab::new(settings);
    let discover = Client { giaddr: RELAY, flags: 0, ..uefi() }.with(code::RELAY_AGENT, circuit);
    let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 67), US, &discover.bytes());
    let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
    assert_eq!(output.to, To::Unicast(SocketAddrV4::new(RELAY, 67)));
    let offer = Message::parse(&lab.out[..output.len]).unwrap();
    assert!(remote.contains(offer.yiaddr()), "the relay's network, not ours");
    assert_eq!((offer.giaddr(), offer.hops()), (RELAY, 0));
    assert_eq!(offer.options().last(), Some((code::RELAY_AGENT, circuit.as_slice())));
    // RFC 8357: a relay that sends from another port is answered there.
    let discover = Client { giaddr: RELAY, flags: 0, ..uefi() }.with(code::RELAY_AGENT, b"\x01\x01x\x13\0");
    let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 5067), US, &discover.bytes());
    let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
    assert_eq!(output.to, To::Unicast(SocketAddrV4::new(RELAY, 5067)));
}

#[test]
fn a_relay_of_an_unlisted_network_gets_nothing_in_full_mode() {
    let mut lab = Lab::new(full());
    let discover = Client { giaddr: Ipv4Addr::new(192, 0, 2, 1), ..uefi() };
    let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 67), US, &discover.bytes());
    assert_eq!(verdict, Verdict::Drop(DropReason::UnknownSubnet));
}

#[test]
fn ipxe_is_told_not_to_wait_for_a_proxy_in_full_mode() {
    let mut lab = Lab::new(full());
    let (_, offer) = lab.reply(&Client { ipxe: true, ..uefi() }.bytes());
    let ipxe = offer.option(code::IPXE).expect("option 175");
    assert_eq!(SubOptions::encapsulated(ipxe).first(176), Some([1].as_slice()));
}

#[test]
fn a_reservation_wins_and_is_given_to_nobody_else() {
    let mut settings = full();
    let ip = Ipv4Addr::new(10, 77, 0, 100);
    settings
        .reservations
        .push(Reservation { who: ReservedFor::Mac(MacAddr([0x52, 0x54, 0, 0x77, 0, 9])), ip });
    let mut lab = Lab::new(settings);
    for mac in 1..=3 {
        let (_, offer) = lab.reply(&Client { mac, ..uefi() }.bytes());
        assert_ne!(offer.yiaddr(), ip);
    }
    let (_, offer) = lab.reply(&Client { mac: 9, ..uefi() }.bytes());
    assert_eq!(offer.yiaddr(), ip);
}

#[test]
fn an_excluded_machine_is_answered_in_no_mode() {
    for settings in [proxy(), full()] {
        let mut lab = Lab::new(settings);
        let excluded = Client { mac: EXCLUDED, ..uefi() };
        assert_eq!(lab.broadcast(&excluded.bytes()), Verdict::Drop(DropReason::Excluded));
        let (_, _) = lab.reply(&Client { mac: EXCLUDED - 1, ..uefi() }.bytes());
    }
}

#[test]
fn a_silent_policy_is_silence() {
    for settings in [proxy(), full()] {
        let mut lab = Lab::new(settings);
        lab.answer = Answer::Silent;
        assert_eq!(lab.broadcast(&uefi().bytes()), Verdict::Drop(DropReason::Silent));
    }
}

#[test]
fn an_ordinary_client_gets_an_address_and_nothing_to_boot() {
    let mut lab = Lab::new(full());
    let (_, offer) = lab.reply(&CLIENT.bytes());
    assert!(network().contains(offer.yiaddr()));
    assert_eq!(offer.file(), b"");
    assert_eq!(offer.option(code::BOOT_FILE), None);
    assert_eq!(offer.option(code::VENDOR_CLASS), None);
}

#[test]
fn another_implementation_reads_every_reply_as_we_meant_it() {
    for (client, settings) in [
        (uefi(), proxy()),
        (uefi(), full()),
        (Client { class: HTTP, arch: 16, ..CLIENT }, full()),
        (Client { ipxe: true, ..uefi() }, full()),
        (CLIENT, full()),
    ] {
        let mut lab = Lab::new(settings);
        let bytes = client.bytes();
        let (output, ours) = lab.reply(&bytes);
        let (yiaddr, siaddr, file) = (ours.yiaddr(), ours.siaddr(), ours.file().to_vec());
        let theirs =
            v4::Message::decode(&mut Decoder::new(&lab.out[..output.len])).expect("dhcproto reads it");
        assert_eq!((theirs.yiaddr(), theirs.siaddr(), theirs.xid()), (yiaddr, siaddr, 0x1234_5678));
        let name = theirs.fname().map(|name| name.split(|b| *b == 0).next().unwrap_or_default().to_vec());
        assert_eq!(name.unwrap_or_default(), file);
        assert_eq!(
            theirs.opts().get(OptionCode::MessageType),
            Some(&DhcpOption::MessageType(v4::MessageType::Offer))
        );
        assert_eq!(theirs.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(US)));
    }
}

#[test]
fn cut_and_changed_messages_break_no_rule() {
    let bytes =
        uefi().with(code::RELAY_AGENT, b"\x01\x04port\x13\0").with(code::CLIENT_ID, b"\x01abcdef").bytes();
    let now = Instant::now();
    for cut in (0..bytes.len()).step_by(3) {
        fuzz_server(now, &bytes[..cut]);
    }
    for at in 0..bytes.len() {
        for change in [0u8, 1, 0x7f, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            fuzz_server(now, &changed);
        }
    }
}

#[test]
fn a_thousand_strangers_leave_bounded_books_that_agree() {
    let mut lab = Lab::new(full());
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..5000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mac = random as u8;
        let address = Ipv4Addr::new(10, 77, 0, 99 + (random >> 8) as u8 % 7);
        let client = match (random >> 16) % 5 {
            0 | 1 => Client { mac, ..uefi() },
            2 => Client { mac, ..request_for(address, US) },
            3 => Client { mac, kind: MessageType::Decline, ..request_for(address, US) },
            _ => Client { mac, kind: MessageType::Release, ciaddr: address, ..request_for(address, US) },
        };
        lab.now += Duration::from_millis(random >> 24 & 0xfff);
        lab.broadcast(&client.bytes());
        lab.server.leases.check();
        assert!(lab.server.leases.len() <= 4, "the pool has four addresses");
    }
}

/// A server that hands out what is to be stored, and the address a machine got from it.
fn journalling(settings: Settings) -> Lab {
    Lab::new(Settings { journal: true, ..settings })
}

fn changes(lab: &mut Lab) -> (Vec<Change>, u64) {
    let mut all = Vec::new();
    let number = lab.server.changes(|change| all.push(change));
    (all, number)
}

fn stored(verdict: Verdict) -> u64 {
    let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
    output.stored
}

#[test]
fn an_ack_waits_for_its_lease_and_a_renewal_within_the_term_for_nothing() {
    let mut lab = journalling(full());
    let (offered, offer) = lab.reply(&uefi().bytes());
    let address = offer.yiaddr();
    assert_eq!(offered.stored, 0, "an offer promises nothing");
    assert!(!lab.server.has_changes());
    let request = request_for(address, US).bytes();
    let first = stored(lab.broadcast(&request));
    assert_ne!(first, 0);
    assert_eq!(stored(lab.broadcast(&request)), first, "the same REQUEST again waits for the same change");
    let (changes_made, number) = changes(&mut lab);
    assert_eq!((changes_made.len(), number), (1, first));
    // Half a term later: a renewal, then a whole new boot. What is stored covers both.
    lab.now += Duration::from_secs(1800);
    let renew = Client { kind: MessageType::Request, ciaddr: address, flags: 0, ..uefi() }.bytes();
    assert_eq!(stored(lab.hear(ServerPort::Dhcp, SocketAddrV4::new(address, 68), US, &renew)), first);
    lab.reply(&uefi().bytes());
    assert_eq!(stored(lab.broadcast(&request)), first);
    assert!(!lab.server.has_changes());
    // Past the first term what is stored no longer does.
    lab.now += Duration::from_secs(1900);
    let later = stored(lab.hear(ServerPort::Dhcp, SocketAddrV4::new(address, 68), US, &renew));
    assert!(later > first);
}

#[test]
fn a_lease_taken_up_again_after_a_release_is_stored_again() {
    let mut lab = journalling(full());
    let address = lab.reply(&uefi().bytes()).1.yiaddr();
    let request = request_for(address, US).bytes();
    let first = stored(lab.broadcast(&request));
    let release = Client { kind: MessageType::Release, ciaddr: address, ..uefi() };
    lab.hear(ServerPort::Dhcp, SocketAddrV4::new(address, 68), US, &release.bytes());
    assert_eq!(lab.reply(&uefi().bytes()).1.yiaddr(), address);
    assert!(stored(lab.broadcast(&request)) > first);
    // The newest of an address counts.
    let (all, _) = changes(&mut lab);
    let Some(Change::Lease(LeaseRecord { ip, term: LeaseTerm::Held { until, .. }, .. })) = all.last() else {
        panic!("{all:?}")
    };
    assert!((*ip, *until > lab.now) == (address, true), "{all:?}");
}

#[test]
fn what_could_not_be_stored_is_asked_for_again() {
    let mut lab = journalling(full());
    let address = lab.reply(&uefi().bytes()).1.yiaddr();
    let request = request_for(address, US).bytes();
    let first = stored(lab.broadcast(&request));
    changes(&mut lab);
    lab.server.forget_changes_after(first - 1);
    let second = stored(lab.broadcast(&request));
    assert!(second > first);
    assert_eq!(changes(&mut lab).0.len(), 1);
}

#[test]
fn a_restarted_server_gives_no_address_twice_and_each_machine_its_own() {
    let mut lab = journalling(full());
    let mut given = Vec::new();
    for mac in 1..=4 {
        let address = lab.reply(&Client { mac, ..uefi() }.bytes()).1.yiaddr();
        lab.reply(&Client { mac, ..request_for(address, US) }.bytes());
        given.push(address);
    }
    let decline = Client { mac: 4, kind: MessageType::Decline, ..request_for(given[3], US) };
    lab.broadcast(&decline.bytes());
    let release = Client { mac: 3, kind: MessageType::Release, ciaddr: given[2], ..uefi() };
    lab.hear(ServerPort::Dhcp, SocketAddrV4::new(given[2], 68), US, &release.bytes());
    let (all, _) = changes(&mut lab);

    let mut again = journalling(full());
    again.server.restore(again.now, all.into_iter());
    again.server.leases.check();
    // The released address is the only one there is; its old machine finds it again, whoever asks first.
    assert_eq!(again.reply(&Client { mac: 3, ..uefi() }.bytes()).1.yiaddr(), given[2]);
    assert_eq!(
        again.broadcast(&Client { mac: 9, ..uefi() }.bytes()),
        Verdict::Drop(DropReason::PoolExhausted),
        "two leases, one quarantine, one offer"
    );
    assert_eq!(again.reply(&uefi().bytes()).1.yiaddr(), given[0]);
    let nak = again.reply(&Client { mac: 9, ..request_for(given[1], US) }.bytes()).1;
    assert_eq!(nak.message_type(), Some(MessageType::Nak), "another machine's address");
    // Twice the term later everything is free.
    again.now += Duration::from_secs(3 * 3600);
    for mac in 20..=23 {
        again.reply(&Client { mac, ..uefi() }.bytes());
    }
}

#[test]
fn a_machine_that_moved_leaves_no_second_address_behind() {
    let ip = Ipv4Addr::new(10, 77, 0, 103);
    let mut lab = journalling(full());
    let first = lab.reply(&uefi().bytes()).1.yiaddr();
    assert_ne!(first, ip);
    lab.reply(&request_for(first, US).bytes());
    let mut settings = full();
    settings
        .reservations
        .push(Reservation { who: ReservedFor::Mac(MacAddr([0x52, 0x54, 0, 0x77, 0, 1])), ip });
    lab.server.replace_settings(Settings { journal: true, ..settings });
    assert_eq!(lab.reply(&uefi().bytes()).1.yiaddr(), ip);
    lab.reply(&request_for(ip, US).bytes());
    let (all, _) = changes(&mut lab);
    let forgotten = |change: &Change| matches!(change, Change::Lease(LeaseRecord { ip, term: LeaseTerm::Forgotten, .. }) if *ip == first);
    assert!(all.iter().any(forgotten), "{all:?}");
}

fn subnet(network: &str, first: u8, last: u8) -> Subnet {
    let range = Some((Ipv4Addr::new(10, 77, 0, first), Ipv4Addr::new(10, 77, 0, last)));
    Subnet { range, ..Subnet::new(network.parse().unwrap()) }
}

impl Lab {
    /// The address a machine asks for and is given, directly or through a relay.
    fn leases(&mut self, mac: u8, giaddr: Ipv4Addr) -> Ipv4Addr {
        let mut ask = |client: Client| {
            let bytes = Client { mac, giaddr, ..client }.bytes();
            let verdict = self.hear(ServerPort::Dhcp, SocketAddrV4::new(giaddr, 67), US, &bytes);
            let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
            Message::parse(&self.out[..output.len]).unwrap().yiaddr()
        };
        let ip = ask(uefi());
        assert_eq!(ask(request_for(ip, US)), ip);
        self.server.leases.check();
        ip
    }

    /// What an installed system hears when its lease is half over, and when it starts again with it.
    fn renews(&mut self, mac: u8, ip: Ipv4Addr) -> [Option<MessageType>; 2] {
        let renew = Client { kind: MessageType::Request, mac, ciaddr: ip, flags: 0, ..CLIENT };
        let restart =
            Client { kind: MessageType::Request, mac, ..CLIENT }.with(code::REQUESTED_ADDRESS, &ip.octets());
        [(ip, renew), (NOBODY, restart)].map(|(src, client)| {
            match self.hear(ServerPort::Dhcp, SocketAddrV4::new(src, 68), US, &client.bytes()) {
                Verdict::Reply(output, _) => Message::parse(&self.out[..output.len]).unwrap().message_type(),
                Verdict::Drop(DropReason::UnknownLease) => None,
                other => panic!("{other:?}"),
            }
        })
    }
}

const KEPT: [Option<MessageType>; 2] = [Some(MessageType::Ack), Some(MessageType::Ack)];
/// Left to its term's end, but refused when it is asked for anew.
const ENDS: [Option<MessageType>; 2] = [None, Some(MessageType::Nak)];

#[test]
fn leases_are_kept_when_their_network_is_widened_or_split() {
    let wider = vec![subnet("10.77.0.0/23", 100, 103)];
    let halves = vec![subnet("10.77.0.0/25", 100, 103), subnet("10.77.0.128/25", 200, 203)];
    for later in [wider, halves] {
        let mut lab = Lab::new(full());
        let address = lab.leases(1, NOBODY);
        lab.server.replace_settings(Settings { subnets: later, ..full() });
        lab.server.leases.check();
        for mac in 2..=4 {
            assert_ne!(lab.leases(mac, NOBODY), address, "it is in use");
        }
        let fifth = Client { mac: 5, ..uefi() }.bytes();
        assert_eq!(lab.broadcast(&fifth), Verdict::Drop(DropReason::PoolExhausted));
        assert_eq!(lab.renews(1, address), KEPT);
    }
}

#[test]
fn of_two_leases_of_a_machine_whose_networks_become_one_the_later_counts() {
    let upper = Ipv4Addr::new(10, 77, 0, 129);
    for order in [[NOBODY, upper], [upper, NOBODY]] {
        let halves = vec![subnet("10.77.0.0/25", 100, 100), subnet("10.77.0.128/25", 200, 200)];
        let mut lab = Lab::new(Settings { subnets: halves, ..full() });
        let mut last = NOBODY;
        for relay in order {
            lab.now += Duration::from_secs(60);
            last = lab.leases(1, relay);
        }
        assert_eq!(lab.server.leases.len(), 2);
        lab.server.replace_settings(Settings { subnets: vec![subnet("10.77.0.0/24", 100, 200)], ..full() });
        lab.server.leases.check();
        assert_eq!(lab.renews(1, last), KEPT);
        // Nobody gets the other one before its term is over: it may be the one in use.
        assert_eq!(lab.server.leases.len(), 2);
        lab.now += Duration::from_secs(3600);
        lab.server.handle_timeout(lab.now);
        assert_eq!(lab.server.leases.len(), 1);
    }
}

#[test]
fn a_clock_that_was_behind_at_the_start_keeps_no_address_for_years() {
    let lab = Lab::new(full());
    let years = lab.now + Duration::from_secs(5 * 365 * 86_400);
    let held = |n: u8, term| {
        let mut hardware = [0; 16];
        hardware[5] = n;
        let ip = Ipv4Addr::new(10, 77, 0, 100 + n);
        Change::Lease(LeaseRecord { ip, htype: 1, hlen: 6, hardware, term })
    };
    let stored = [
        held(0, LeaseTerm::Held { until: years, stranger: true }),
        held(1, LeaseTerm::Quarantined { until: years }),
        held(2, LeaseTerm::Held { until: lab.now + Duration::from_secs(7200), stranger: true }),
    ];
    let mut server = Server::new(full(), 1);
    server.restore(lab.now, stored.into_iter());
    let live = |server: &mut Server, hours: u64| {
        server.handle_timeout(lab.now + Duration::from_secs(hours * 3600));
        server.pools().map(|pool| pool.live).sum::<u32>()
    };
    assert_eq!([0, 1, 3, 719, 721].map(|hours| live(&mut server, hours)), [3, 2, 1, 1, 0]);
}

#[test]
fn a_lease_that_is_now_outside_the_range_ends_with_its_term() {
    let mut lab = journalling(full());
    let address = lab.leases(1, NOBODY);
    let later = || Settings { subnets: vec![subnet("10.77.0.0/24", 110, 113)], ..full() };
    lab.server.replace_settings(later());
    lab.server.leases.check();
    assert_eq!(lab.renews(1, address), ENDS);
    let (_, nak) = lab.reply(&request_for(address, US).bytes());
    assert_eq!(nak.message_type(), Some(MessageType::Nak), "nor by a REQUEST that names us");
    // A machine that starts again gets what is given now, and what it had is forgotten.
    let next = lab.leases(1, NOBODY);
    assert!((110..=113).contains(&next.octets()[3]), "{next}");
    assert_eq!(lab.server.leases.len(), 1);
    let (all, _) = changes(&mut lab);
    let forgotten = |change: &Change| matches!(change, Change::Lease(LeaseRecord { ip, term: LeaseTerm::Forgotten, .. }) if *ip == address);
    assert!(all.iter().any(forgotten), "{all:?}");
    assert_eq!(lab.renews(1, next), KEPT);
}

#[test]
fn the_address_a_machine_may_not_keep_takes_no_room_on_its_circuit() {
    let settings = |first, last| {
        let remote = Network::new(Ipv4Addr::new(10, 88, 0, 0), 24).unwrap();
        let host = |last| Ipv4Addr::new(10, 88, 0, last);
        let range = Some((host(first), host(last)));
        Settings { circuit_max: 1, subnets: vec![Subnet { range, ..Subnet::new(remote) }], ..full() }
    };
    let discover = Client { giaddr: RELAY, ..uefi() }.with(code::RELAY_AGENT, b"\x01\x01a").bytes();
    let mut lab = Lab::new(settings(100, 103));
    for (first, last) in [(100, 103), (110, 113)] {
        lab.server.replace_settings(settings(first, last));
        let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 67), US, &discover);
        let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
        let [.., given] = Message::parse(&lab.out[..output.len]).unwrap().yiaddr().octets();
        assert!((first..=last).contains(&given), "{given}");
        lab.server.leases.check();
    }
}

#[test]
fn an_address_that_is_reserved_meanwhile_is_kept_unless_it_is_by_another_mac() {
    let mut id = [0; 17];
    (id[1], id[16]) = (7, 9);
    let uuid = crate::wire::Uuid::from_smbios(<[u8; 16]>::try_from(&id[1..]).unwrap());
    let mac = |last| ReservedFor::Mac(MacAddr([0x52, 0x54, 0, 0x77, 0, last]));
    for (who, said) in [
        (vec![mac(9)], ENDS),
        (vec![mac(1)], KEPT),
        (vec![ReservedFor::Uuid(uuid)], KEPT),
        (vec![ReservedFor::ClientId(b"\x00desk 8".to_vec())], KEPT),
        (vec![ReservedFor::Circuit(b"port17".to_vec())], KEPT),
        (vec![mac(9), ReservedFor::Uuid(uuid)], KEPT),
    ] {
        let mut lab = Lab::new(full());
        let ip = lab.leases(1, NOBODY);
        let reservations = who.iter().map(|who| Reservation { who: who.clone(), ip }).collect();
        lab.server.replace_settings(Settings { reservations, ..full() });
        assert_eq!(lab.renews(1, ip), said, "{who:?}");
        let offered = lab.reply(&uefi().bytes()).1.yiaddr();
        assert_eq!(offered == ip, said == KEPT, "{who:?}");
    }
    // The machine it is now reserved for waits until the other's term is over.
    let mut lab = Lab::new(full());
    let ip = lab.leases(1, NOBODY);
    let reservations = vec![Reservation { who: mac(9), ip }];
    lab.server.replace_settings(Settings { reservations, ..full() });
    assert_ne!(lab.leases(9, NOBODY), ip);
    lab.now += Duration::from_secs(3601);
    lab.server.handle_timeout(lab.now);
    assert_eq!(lab.leases(9, NOBODY), ip);
}

#[test]
fn reservations_hang_on_mac_uuid_client_id_and_circuit() {
    let mut id = [0; 17];
    (id[1], id[16]) = (7, 9);
    let smbios = <[u8; 16]>::try_from(&id[1..]).unwrap();
    let host = |last| Ipv4Addr::new(10, 77, 0, last);
    let mut settings = full();
    for (who, last) in [
        (ReservedFor::Mac(MacAddr([0x52, 0x54, 0, 0x77, 0, 6])), 206),
        (ReservedFor::Uuid(crate::wire::Uuid::from_smbios(smbios)), 207),
        (ReservedFor::ClientId(b"\x00desk 8".to_vec()), 208),
    ] {
        settings.reservations.push(Reservation { who, ip: host(last) });
    }
    let remote = Network::new(Ipv4Addr::new(10, 88, 0, 0), 24).unwrap();
    settings.subnets.push(Subnet {
        range: Some((Ipv4Addr::new(10, 88, 0, 9), Ipv4Addr::new(10, 88, 0, 9))),
        ..Subnet::new(remote)
    });
    let bench = Ipv4Addr::new(10, 88, 0, 50);
    settings.reservations.push(Reservation { who: ReservedFor::Circuit(b"port17".to_vec()), ip: bench });
    let mut lab = Lab::new(settings);
    assert_eq!(lab.reply(&Client { mac: 6, ..uefi() }.bytes()).1.yiaddr(), host(206));
    assert_eq!(lab.reply(&Client { mac: 7, ..uefi() }.bytes()).1.yiaddr(), host(207));
    let desk = Client { mac: 8, ..uefi() }.with(code::CLIENT_ID, b"\x00desk 8");
    assert_eq!(lab.reply(&desk.bytes()).1.yiaddr(), host(208));
    // A direct client cannot claim a port by sending the option itself.
    let direct = Client { mac: 30, ..uefi() }.with(code::RELAY_AGENT, b"\x01\x06port17");
    assert_ne!(lab.reply(&direct.bytes()).1.yiaddr(), bench);
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    let Verdict::Reply(_, event) = lab.hear(ServerPort::Dhcp, from, Ipv4Addr::BROADCAST, &direct.bytes())
    else {
        panic!("it is answered");
    };
    assert_eq!(event.circuit, None, "nor a rule about that port");
    for mac in [31, 32] {
        let relayed = Client { mac, giaddr: RELAY, ..uefi() }.with(code::RELAY_AGENT, b"\x01\x06port17");
        let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 67), US, &relayed.bytes());
        let given = match verdict {
            Verdict::Reply(output, event) => {
                assert_eq!(event.circuit, Some(crate::jobs::rule::CircuitMark::of(b"port17")));
                Some(Message::parse(&lab.out[..output.len]).unwrap().yiaddr())
            }
            _ => None,
        };
        match mac {
            31 => assert_eq!(given, Some(bench)),
            // The first machine on the port has it offered; another waits for that to end.
            _ => assert_ne!(given, Some(bench)),
        }
    }
}

#[test]
fn one_circuit_cannot_have_the_whole_pool() {
    let mut settings = full();
    settings.circuit_max = 2;
    let remote = Network::new(Ipv4Addr::new(10, 88, 0, 0), 24).unwrap();
    let range = Some((Ipv4Addr::new(10, 88, 0, 100), Ipv4Addr::new(10, 88, 0, 109)));
    settings.subnets.push(Subnet { range, ..Subnet::new(remote) });
    let mut lab = Lab::new(settings);
    let mut ask = |mac: u8, circuit: &[u8]| {
        let relayed = Client { mac, giaddr: RELAY, ..uefi() }.with(code::RELAY_AGENT, circuit);
        lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 67), US, &relayed.bytes())
    };
    assert!(matches!(ask(1, b"\x01\x01a"), Verdict::Reply(..)));
    assert!(matches!(ask(2, b"\x01\x01a"), Verdict::Reply(..)));
    assert_eq!(ask(3, b"\x01\x01a"), Verdict::Drop(DropReason::CircuitFull));
    assert!(matches!(ask(2, b"\x01\x01a"), Verdict::Reply(..)), "who is in, stays in");
    assert!(matches!(ask(3, b"\x01\x01b"), Verdict::Reply(..)), "another port is not to blame");
}

#[test]
fn a_relay_may_say_which_server_its_clients_know() {
    let mut settings = full();
    let remote = Network::new(Ipv4Addr::new(10, 88, 0, 0), 24).unwrap();
    let range = Some((Ipv4Addr::new(10, 88, 0, 100), Ipv4Addr::new(10, 88, 0, 109)));
    settings.subnets.push(Subnet { range, ..Subnet::new(remote) });
    let mut lab = Lab::new(settings);
    let agent = [&[relay::SERVER_ID_OVERRIDE, 4][..], &RELAY.octets()].concat();
    let discover = Client { giaddr: RELAY, ..uefi() }.with(code::RELAY_AGENT, &agent);
    let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 67), US, &discover.bytes());
    let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
    assert_eq!(output.from, US);
    let offer = Message::parse(&lab.out[..output.len]).unwrap();
    assert_eq!(offer.server_id(), Some(RELAY), "RFC 5107");
    let request =
        Client { giaddr: RELAY, ..request_for(offer.yiaddr(), RELAY) }.with(code::RELAY_AGENT, &agent);
    let verdict = lab.hear(ServerPort::Dhcp, SocketAddrV4::new(RELAY, 67), US, &request.bytes());
    assert!(matches!(verdict, Verdict::Reply(_, DhcpEvent { what: DhcpStep::Acked, .. })), "{verdict:?}");
}

#[test]
fn site_options_go_with_an_address_and_never_with_a_proxy_offer() {
    let mut settings = full();
    settings.subnets[0].options.push(SiteOption { code: 150, body: vec![10, 77, 0, 9] });
    let mut lab = Lab::new(settings.clone());
    assert_eq!(lab.reply(&uefi().bytes()).1.option(150), Some([10, 77, 0, 9].as_slice()));
    settings.mode = Mode::Proxy;
    assert_eq!(Lab::new(settings).reply(&uefi().bytes()).1.option(150), None);
}

#[test]
fn one_machine_that_says_too_much_is_not_heard_and_its_rack_is() {
    let mut lab = Lab::new(full());
    let loud = uefi().bytes();
    let answered = (0..200).filter(|_| matches!(lab.broadcast(&loud), Verdict::Reply(..))).count();
    assert_eq!(answered, 100);
    assert_eq!(lab.broadcast(&loud), Verdict::Drop(DropReason::RateLimited));
    lab.reply(&Client { mac: 2, ..uefi() }.bytes());
    lab.now += Duration::from_secs(1);
    lab.reply(&loud);
}

/// The same machine's DISCOVER of another boot.
fn with_xid(client: &Client, xid: u32) -> Vec<u8> {
    let mut bytes = client.bytes();
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes
}

fn notices(lab: &mut Lab) -> Vec<Notice> {
    lab.server.notices().collect()
}

#[test]
fn a_machine_that_starts_again_and_again_is_noticed_once() {
    let mut lab = Lab::new(proxy());
    for boot in 0..8u32 {
        let discover = with_xid(&uefi(), boot);
        lab.reply(&discover);
        lab.reply(&discover);
        lab.now += Duration::from_secs(5);
    }
    let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
    assert_eq!(
        notices(&mut lab).into_iter().filter(|n| matches!(n, Notice::Restarting { .. })).collect::<Vec<_>>(),
        [Notice::Restarting { mac, count: 5 }]
    );
}

#[test]
fn a_first_message_that_comes_late_is_noticed() {
    let mut lab = Lab::new(proxy());
    let mut late = uefi().bytes();
    late[9] = 12;
    lab.reply(&late);
    lab.reply(&late);
    let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
    assert_eq!(notices(&mut lab), [Notice::LateFirst { mac, secs: 12 }]);
    // iPXE's are not seconds.
    let mut ipxe = Client { mac: 2, ipxe: true, ..uefi() }.bytes();
    ipxe[9] = 12;
    lab.reply(&ipxe);
    assert_eq!(notices(&mut lab), []);
}

#[test]
fn an_ipxe_without_http_is_given_a_full_one_once() {
    let mut lab = Lab::new(proxy());
    let bare = Client {
        options: vec![(code::USER_CLASS, b"iPXE".to_vec()), (code::IPXE, vec![21, 1, 1, 235, 3, 1, 0, 0])],
        ..uefi()
    };
    let file = |lab: &mut Lab, xid: u32| match lab.broadcast(&with_xid(&bare, xid)) {
        Verdict::Reply(_, event) => event.file.as_str().to_owned(),
        _ => String::new(),
    };
    assert!(!file(&mut lab, 1).is_empty());
    assert!(!file(&mut lab, 1).is_empty(), "the DISCOVER again");
    lab.now += Duration::from_secs(5);
    assert_eq!(file(&mut lab, 2), "", "what it was given cannot fetch by HTTP either");
    lab.now += Duration::from_secs(60);
    assert!(!file(&mut lab, 3).is_empty(), "somebody switched it on again");
}

#[test]
fn a_machine_that_comes_back_without_its_script_is_given_the_next_loader() {
    /// Names the number of loaders passed over.
    struct Counting;
    impl BootPolicy for Counting {
        fn resolve(
            &mut self,
            _: &Identity,
            _: &Firmware,
            _: Ipv4Addr,
            wish: &Wish<'_>,
            file: &mut BootFile,
        ) -> Answer {
            write!(file, "{}", wish.pass_over).expect("room");
            Answer::Boot
        }
    }
    let mut lab = journalling(proxy());
    let ask = |lab: &mut Lab, client: &Client, xid: u32| {
        let interface = lab.interface.clone();
        let bytes = with_xid(client, xid);
        let src = SocketAddrV4::new(NOBODY, 68);
        let (port, dst) = (ServerPort::Dhcp, Ipv4Addr::BROADCAST);
        let input = Input { interface: &interface, port, src, src_mac: None, dst, local: US, bytes: &bytes };
        let verdict = lab.server.handle(lab.now, &input, &mut Counting, &mut lab.out);
        let Verdict::Reply(_, event) = verdict else { panic!("{verdict:?}") };
        event.file.as_str().to_owned()
    };
    let ipxe = Client { ipxe: true, ..uefi() };
    assert_eq!(ask(&mut lab, &uefi(), 1), "0");
    lab.now += Duration::from_secs(4);
    assert_eq!(ask(&mut lab, &uefi(), 1), "0", "the DISCOVER again");
    lab.now += Duration::from_secs(60);
    assert_eq!(ask(&mut lab, &uefi(), 2), "1", "it came back without a script");
    ask(&mut lab, &ipxe, 3);
    let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
    assert_eq!(changes(&mut lab).0, [Change::Loader { mac, pass_over: 1 }], "and with this one it did not");
    lab.now += Duration::from_secs(60);
    assert_eq!(ask(&mut lab, &uefi(), 4), "1", "what worked is given again");
    ask(&mut lab, &ipxe, 5);
    assert!(!lab.server.has_changes());
    // And by the next server.
    let mut again = journalling(proxy());
    again.server.restore(again.now, [Change::Loader { mac, pass_over: 1 }].into_iter());
    assert_eq!(ask(&mut again, &uefi(), 6), "1");
}

#[test]
fn another_server_is_named_once_with_what_it_does() {
    let mut lab = Lab::new(proxy());
    let mut buffer = [0; 600];
    let request = uefi().bytes();
    let header = Header {
        yiaddr: Ipv4Addr::new(10, 77, 0, 9),
        ..Header::reply_to(&Message::parse(&request).unwrap())
    };
    let mut offer = Emitter::new(&mut buffer, &header).unwrap();
    offer.option(code::MESSAGE_TYPE, &[MessageType::Offer.code()]).unwrap();
    offer.option(code::SERVER_ID, &OTHER.octets()).unwrap();
    offer.option(code::VENDOR_CLASS, b"PXEClient").unwrap();
    let len = offer.finish().unwrap();
    for _ in 0..3 {
        lab.hear(ServerPort::Dhcp, SocketAddrV4::new(OTHER, 67), Ipv4Addr::BROADCAST, &buffer[..len]);
    }
    let rival =
        Rival { server: OTHER, pxe: true, has_file: false, has_vendor_options: false, gives_addresses: true };
    assert_eq!(notices(&mut lab), [Notice::OtherServer { interface: 2, rival }]);
    lab.now += Duration::from_secs(25 * 3600);
    lab.hear(ServerPort::Dhcp, SocketAddrV4::new(OTHER, 67), Ipv4Addr::BROADCAST, &buffer[..len]);
    assert_eq!(notices(&mut lab).len(), 1, "a day later, if it is still there");
}

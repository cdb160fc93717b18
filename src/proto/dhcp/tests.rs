//! Timelines of the server: what comes in, exactly what goes out.

use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::time::Duration;

use dhcproto::v4::{self, DhcpOption, OptionCode};
use dhcproto::{Decodable, Decoder};

use super::*;
use crate::wire::MacAddr;
use crate::wire::dhcp::{Emitter, Header, MessageType, SubOptions};

mod quirks;

const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

const BIOS: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";
const UEFI: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";
const HTTP: &[u8] = b"HTTPClient:Arch:00016:UNDI:003016";

/// Last byte of the address that is never answered.
const EXCLUDED: u8 = 0xee;

/// Loaders to firmware, a script to iPXE, a URL to HTTP Boot.
struct Policy(Answer);

impl BootPolicy for Policy {
    fn resolve(
        &mut self,
        who: &Identity,
        firmware: &Firmware,
        server: Ipv4Addr,
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
    settings.reservations.push(Reservation { mac: MacAddr([0x52, 0x54, 0, 0x77, 0, 9]), ip });
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

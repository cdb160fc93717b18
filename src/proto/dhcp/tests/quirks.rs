//! One test for each habit of firmware in [`Quirk`](crate::proto::firmware::Quirk).

use super::*;

/// Every kind of booting client, in both modes.
fn everyone(mut check: impl FnMut(&Client, Output, Message<'_>)) {
    let ipxe = || Client { ipxe: true, ..uefi() };
    for settings in [proxy, full] {
        for client in
            [Client { class: BIOS, ..CLIENT }, uefi(), ipxe(), Client { class: HTTP, arch: 16, ..CLIENT }]
        {
            let mut lab = Lab::new(settings());
            let bytes = client.bytes();
            let (output, reply) = lab.reply(&bytes);
            check(&client, output, reply);
        }
    }
}

#[test]
fn every_boot_offer_says_boot_this_file_now() {
    everyone(|client, _, reply| {
        if client.class != HTTP {
            assert_eq!(reply.option(code::VENDOR_SPECIFIC), Some([6, 1, 8, 255].as_slice()));
        }
    });
}

#[test]
fn file_and_option_67_agree() {
    everyone(|_, _, reply| {
        let option = reply.option(code::BOOT_FILE).expect("67");
        assert_eq!(option, [reply.file(), b"\0"].concat());
        assert_eq!(reply.siaddr(), US);
        assert_eq!(reply.server_id(), Some(US));
        assert_eq!(reply.option(code::TFTP_SERVER_NAME), Some(b"10.77.0.1".as_slice()));
    });
}

#[test]
fn arch_nine_is_served_as_x64() {
    let mut lab = Lab::new(proxy());
    let (_, offer) =
        lab.reply(&Client { arch: 9, class: b"PXEClient:Arch:00009:UNDI:003016", ..CLIENT }.bytes());
    assert_eq!(offer.file(), b"snponly.efi");
}

#[test]
fn every_reply_has_at_least_300_bytes() {
    everyone(|_, output, _| assert!(output.len >= 300, "{}", output.len));
}

#[test]
fn no_reply_is_longer_than_the_client_takes() {
    for (max_size, limit) in
        [(None, 548), (Some(300u16), 548), (Some(576), 548), (Some(1260), 1232), (Some(9000), 1472)]
    {
        let mut settings = full();
        settings.subnets[0].dns = vec![US; 8];
        settings.subnets[0].domain = Some("a".repeat(250));
        let mut lab = Lab::new(settings);
        // The option the helper sends says 1472; this one stands before it and counts.
        let mut buffer = vec![0; 1472];
        let mut header = Header::request_from(MacAddr([0x52, 0x54, 0, 0x77, 0, 1]), 5);
        header.flags = 0x8000;
        let mut out = Emitter::new(&mut buffer, &header).unwrap();
        out.option(code::MESSAGE_TYPE, &[1]).unwrap();
        if let Some(size) = max_size {
            out.option(code::MAX_SIZE, &size.to_be_bytes()).unwrap();
        }
        out.option(code::VENDOR_CLASS, UEFI).unwrap();
        out.option(code::CLIENT_ARCHITECTURE, &[0, 7]).unwrap();
        let len = out.finish().unwrap();
        let (output, offer) = lab.reply(&buffer[..len]);
        assert!(output.len <= limit, "{max_size:?}: {}", output.len);
        assert_eq!(offer.file(), b"snponly.efi", "what boots is never left out");
        assert!(offer.option(code::LEASE_TIME).is_some());
    }
}

#[test]
fn boot_server_answers_the_port_it_was_asked_from() {
    let mut lab = Lab::new(full());
    let machine = Ipv4Addr::new(10, 77, 0, 50);
    for port in [68, 4011] {
        let request = Client { kind: MessageType::Request, ciaddr: machine, flags: 0, ..uefi() };
        let src = SocketAddrV4::new(machine, port);
        let verdict = lab.hear(ServerPort::BootServer, src, US, &request.bytes());
        let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
        assert_eq!((output.to, output.port), (To::Unicast(src), ServerPort::BootServer));
    }
}

#[test]
fn arch_of_the_discover_serves_the_boot_server_request() {
    let mut lab = Lab::new(proxy());
    lab.reply(&uefi().bytes());
    let machine = Ipv4Addr::new(10, 77, 0, 50);
    let request = Client { kind: MessageType::Request, ciaddr: machine, flags: 0, ..CLIENT }
        .with(code::VENDOR_CLASS, b"PXEClient");
    let verdict = lab.hear(ServerPort::BootServer, SocketAddrV4::new(machine, 4011), US, &request.bytes());
    let Verdict::Reply(output, _) = verdict else { panic!("{verdict:?}") };
    assert_eq!(Message::parse(&lab.out[..output.len]).unwrap().file(), b"snponly.efi");
}

#[test]
fn guid_in_chaddr_is_the_uuid() {
    let mut message = uefi().bytes();
    // htype 0xff, hlen 16, the UUID in SMBIOS order in chaddr.
    message[1] = 0xff;
    message[2] = 16;
    let uuid: [u8; 16] = std::array::from_fn(|i| i as u8 + 1);
    message[28..44].copy_from_slice(&uuid);
    let mut lab = Lab::new(proxy());
    let interface = lab.interface.clone();
    let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
    let input = Input {
        interface: &interface,
        port: ServerPort::Dhcp,
        src: SocketAddrV4::new(NOBODY, 68),
        src_mac: Some(mac),
        dst: Ipv4Addr::BROADCAST,
        local: US,
        bytes: &message,
    };
    let verdict = lab.server.handle(lab.now, &input, &mut Policy(Answer::Boot), &mut lab.out);
    let Verdict::Reply(output, event) = verdict else { panic!("{verdict:?}") };
    assert_eq!(event.mac, Some(mac));
    assert_eq!(Message::parse(&lab.out[..output.len]).unwrap().chaddr(), uuid);
}

#[test]
fn full_mode_offers_lease_and_boot_file_together() {
    let mut lab = Lab::new(full());
    let (_, offer) = lab.reply(&uefi().bytes());
    assert!(!offer.yiaddr().is_unspecified());
    assert_eq!(offer.file(), b"snponly.efi");
    assert_eq!(offer.option(code::VENDOR_CLASS), Some(b"PXEClient".as_slice()));
}

#[test]
fn ipxe_need_not_wait_for_a_proxy_in_full_mode() {
    let mut lab = Lab::new(full());
    let (_, offer) = lab.reply(&Client { ipxe: true, ..uefi() }.bytes());
    let ipxe = offer.option(code::IPXE).expect("175");
    assert_eq!(SubOptions::encapsulated(ipxe).first(176), Some([1].as_slice()));
    let mut lab = Lab::new(proxy());
    let (_, offer) = lab.reply(&Client { ipxe: true, ..uefi() }.bytes());
    assert_eq!(offer.option(code::IPXE), None, "beside another server it has to wait for us");
}

#[test]
fn a_retried_discover_is_answered_by_broadcast() {
    let mut lab = Lab::new(full());
    let deaf = Client { flags: 0, ..uefi() }.bytes();
    let (first, offer) = lab.reply(&deaf);
    assert!(matches!(first.to, To::Link { .. }));
    let address = offer.yiaddr();
    lab.now += Duration::from_secs(4);
    let (second, offer) = lab.reply(&deaf);
    assert_eq!((second.to, offer.yiaddr()), (To::Broadcast, address));
}

#[test]
fn a_retried_request_is_answered_by_broadcast() {
    let mut lab = Lab::new(full());
    let address = lab.reply(&Client { flags: 0, ..uefi() }.bytes()).1.yiaddr();
    let deaf = Client { flags: 0, ..request_for(address, US) }.bytes();
    let (first, ack) = lab.reply(&deaf);
    assert_eq!(ack.message_type(), Some(MessageType::Ack));
    assert!(matches!(first.to, To::Link { .. }));
    lab.now += Duration::from_secs(4);
    let (second, ack) = lab.reply(&deaf);
    assert_eq!((second.to, ack.yiaddr()), (To::Broadcast, address));
}

#[test]
fn no_machine_id_is_invented() {
    let mut lab = Lab::new(proxy());
    let client = CLIENT.with(code::VENDOR_CLASS, UEFI).with(code::CLIENT_ARCHITECTURE, &[0, 7]);
    let (_, offer) = lab.reply(&client.bytes());
    assert_eq!(offer.option(code::CLIENT_MACHINE_ID), None);
}

#[test]
fn secs_gates_nothing() {
    for secs in [0u16, 1, 4, 0xffff] {
        let mut message = uefi().bytes();
        message[8..10].copy_from_slice(&secs.to_be_bytes());
        Lab::new(proxy()).reply(&message);
    }
}

#[test]
fn an_offer_alone_tells_who_is_where() {
    let mut lab = Lab::new(full());
    let verdict = lab.broadcast(&uefi().bytes());
    let Verdict::Reply(output, event) = verdict else { panic!("{verdict:?}") };
    let offered = Message::parse(&lab.out[..output.len]).unwrap().yiaddr();
    assert_eq!((event.what, event.ip, event.arch), (DhcpStep::Offered, Some(offered), Some(Arch::UEFI_X64)));
}

#[test]
fn no_reply_has_what_firmware_misreads() {
    everyone(|_, _, reply| {
        let mut codes: Vec<u8> = reply.options().map(|(code, _)| code).collect();
        for never in [13, 52] {
            assert!(!codes.contains(&never), "option {never}");
        }
        let all = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all, "an option comes twice");
    });
}

#[test]
fn http_boot_gets_its_class_and_a_url_without_names() {
    for settings in [proxy, full] {
        let mut lab = Lab::new(settings());
        let (_, offer) = lab.reply(&Client { class: HTTP, arch: 16, ..CLIENT }.bytes());
        assert_eq!(offer.option(code::VENDOR_CLASS), Some(b"HTTPClient".as_slice()));
        assert_eq!(offer.option(code::VENDOR_SPECIFIC), None);
        assert!(offer.file().starts_with(b"http://10.77.0.1:4433/"), "{:?}", offer.file());
    }
}

#[test]
fn three_client_ids_of_one_machine_share_its_address() {
    let mut lab = Lab::new(full());
    let mut ids =
        [b"\0\x01\x02\x03".as_slice(), b"\x01\x52\x54\0\x77\0\x01", b"\xff\0\0\0\x01\0\x02\0\0\xab"]
            .map(|id| {
                let (_, offer) = lab.reply(&uefi().with(code::CLIENT_ID, id).bytes());
                assert_eq!(offer.option(code::CLIENT_ID), Some(id), "RFC 6842");
                offer.yiaddr()
            })
            .to_vec();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

//! Beside another PXE server, in proxy mode.

use super::*;

/// Another server's offer with a boot file is heard.
fn hear_another(lab: &mut Lab) {
    let mut buffer = [0; 600];
    let request = Client { mac: 0x99, ..uefi() }.bytes();
    let header = Header::reply_to(&Message::parse(&request).unwrap());
    let mut offer = Emitter::new(&mut buffer, &header).unwrap();
    offer.option(code::MESSAGE_TYPE, &[MessageType::Offer.code()]).unwrap();
    offer.option(code::SERVER_ID, &OTHER.octets()).unwrap();
    offer.option(code::VENDOR_CLASS, b"PXEClient").unwrap();
    offer.option(code::BOOT_FILE, b"pxelinux.0\0").unwrap();
    let len = offer.finish().unwrap();
    lab.hear(ServerPort::Dhcp, SocketAddrV4::new(OTHER, 67), Ipv4Addr::BROADCAST, &buffer[..len]);
}

/// A lab that has just heard one, and has nothing but its menu for machines.
fn beside_another() -> Lab {
    let mut lab = Lab::new(proxy());
    hear_another(&mut lab);
    lab.answer = Answer::BootUnclaimed;
    lab
}

const LEFT: Verdict = Verdict::Drop(DropReason::Deferred);

fn is_answered(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Reply(..))
}

#[test]
fn a_machine_without_a_job_is_left_to_the_other_server_for_one_retry() {
    let mut lab = beside_another();
    let ipxe = Client { ipxe: true, ..uefi() };
    assert_eq!(lab.broadcast(&with_xid(&uefi(), 1)), LEFT);
    lab.now += Duration::from_millis(100);
    assert_eq!(lab.broadcast(&with_xid(&uefi(), 1)), LEFT, "the copy that a relay made");
    lab.now += Duration::from_secs(4);
    assert!(is_answered(lab.broadcast(&with_xid(&uefi(), 1))));
    // The boot is ours now, and waits no more.
    lab.now += Duration::from_secs(10);
    assert!(is_answered(lab.broadcast(&with_xid(&ipxe, 2))));
    // The next boot is anybody's again.
    lab.now += Duration::from_secs(300);
    hear_another(&mut lab);
    assert_eq!(lab.broadcast(&with_xid(&uefi(), 3)), LEFT);
}

#[test]
fn a_boot_that_the_other_server_began_is_left_to_it_at_every_stage() {
    let mut lab = beside_another();
    let ipxe = Client { ipxe: true, ..uefi() };
    assert_eq!(lab.broadcast(&with_xid(&uefi(), 1)), LEFT);
    // It was answered there, and comes back as iPXE.
    lab.now += Duration::from_secs(8);
    assert_eq!(lab.broadcast(&with_xid(&ipxe, 2)), LEFT);
    // Where nobody answers that, we do.
    lab.now += Duration::from_secs(1);
    assert!(is_answered(lab.broadcast(&with_xid(&ipxe, 2))));
}

#[test]
fn firmware_that_numbers_its_retries_anew_is_answered_at_its_retry() {
    let mut lab = beside_another();
    assert_eq!(lab.broadcast(&with_xid(&uefi(), 1)), LEFT);
    lab.now += Duration::from_secs(4);
    assert!(is_answered(lab.broadcast(&with_xid(&uefi(), 2))));
}

#[test]
fn a_machine_with_a_job_waits_for_nobody() {
    let mut lab = beside_another();
    lab.answer = Answer::Boot;
    assert!(is_answered(lab.broadcast(&uefi().bytes())));
}

#[test]
fn a_lease_with_a_boot_file_of_its_own_is_noticed() {
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
    offer.option(code::BOOT_FILE, b"pxelinux.0\0").unwrap();
    let len = offer.finish().unwrap();
    lab.hear(ServerPort::Dhcp, SocketAddrV4::new(OTHER, 67), Ipv4Addr::BROADCAST, &buffer[..len]);
    let rival =
        Rival { server: OTHER, pxe: false, has_file: true, has_vendor_options: false, gives_addresses: true };
    assert_eq!(notices(&mut lab), [Notice::OtherServer { interface: 2, rival }]);
}

use super::*;

/// A DISCOVER as OVMF (EDK2, x64) sends it, byte for byte.
fn edk2_discover() -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0x80, 0];
    bytes.resize(28, 0);
    bytes.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    bytes.resize(236, 0);
    bytes.extend([0x63, 0x82, 0x53, 0x63]);
    bytes.extend([53, 1, 1, 57, 2, 0x05, 0xc0]);
    bytes.extend([97, 17, 0, 0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
    bytes.extend([0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    bytes.extend([94, 3, 1, 3, 16, 93, 2, 0, 7, 60, 32]);
    bytes.extend(b"PXEClient:Arch:00007:UNDI:003016");
    bytes.push(255);
    bytes
}

#[test]
fn fields_of_a_discover_are_where_rfc_2131_puts_them() {
    let bytes = edk2_discover();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.op(), OP_REQUEST);
    assert_eq!(message.xid(), 0xdead_beef);
    assert_eq!(message.flags(), FLAG_BROADCAST);
    assert!(message.wants_broadcast());
    assert_eq!(message.mac(), Some(MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
    assert_eq!(message.message_type(), Some(MessageType::Discover));
    assert_eq!(message.arch(), Some(Arch::UEFI_X64));
    assert_eq!(message.uuid().unwrap().to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    assert_eq!(message.option(code::VENDOR_CLASS), Some(&b"PXEClient:Arch:00007:UNDI:003016"[..]));
    assert_eq!(message.option(code::USER_CLASS), None);
    assert_eq!(message.options().map(|(code, _)| code).collect::<Vec<_>>(), [53, 57, 97, 94, 93, 60]);
}

#[test]
fn a_missing_end_is_tolerated() {
    let mut bytes = edk2_discover();
    bytes.pop();
    assert_eq!(Message::parse(&bytes).unwrap().options().count(), 6);
}

#[test]
fn the_first_instance_of_every_option_is_found_whatever_stands_around_it() {
    for code in 1..code::END {
        let other = if code == 53 { 60 } else { 53 };
        let mut bytes = edk2_discover();
        bytes.truncate(OPTIONS_OFFSET);
        bytes.extend([0, other, 2, code, 9, 0, code, 3, 7, 8, 9, code, 1, 1, 255, code, 1, 2]);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.option(code), Some(&[7, 8, 9][..]), "{code}");
        assert_eq!(message.option(other), Some(&[code, 9][..]), "{code}");
        let absent = if code == 61 { 97 } else { 61 };
        assert_eq!(message.option(absent), None, "{code}");
    }
}

#[test]
fn options_are_found_in_a_message_longer_than_any_datagram() {
    let mut bytes = edk2_discover();
    bytes.pop();
    bytes.resize(bytes.len() + 70_000, 0);
    bytes.extend([61, 2, 1, 2, 77, 1, 3, 255]);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.option(code::CLIENT_ID), Some(&[1, 2][..]));
    assert_eq!(message.option(code::USER_CLASS), Some(&[3][..]));
    assert_eq!(message.message_type(), Some(MessageType::Discover));
}

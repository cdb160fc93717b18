//! ARP for IPv4 over Ethernet (RFC 826): how simulated machines are found, and find the server.

use std::net::Ipv4Addr;

use super::addr::MacAddr;

/// An ARP frame, Ethernet header included.
pub const ARP_FRAME_LEN: usize = 42;

/// Ethernet, IPv4, lengths 6 and 4: the only combination there is.
const FIXED: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// One ARP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// True for an answer, false for a question.
    pub reply: bool,
    /// Who speaks.
    pub sender_mac: MacAddr,
    /// With which address.
    pub sender: Ipv4Addr,
    /// Whom an answer is for; zero in a question.
    pub target_mac: MacAddr,
    /// Who is asked for.
    pub target: Ipv4Addr,
}

/// Parses a frame; `None` when it is not ARP for IPv4 over Ethernet.
pub fn parse_arp_frame(frame: &[u8]) -> Option<Arp> {
    let frame = frame.first_chunk::<ARP_FRAME_LEN>()?;
    if frame[12..14] != [0x08, 0x06] || frame[14..20] != FIXED {
        return None;
    }
    let reply = match frame[20..22] {
        [0, 1] => false,
        [0, 2] => true,
        _ => return None,
    };
    let mac = |at: usize| Some(MacAddr(*frame.get(at..)?.first_chunk()?));
    let ip = |at: usize| Some(Ipv4Addr::from(*frame.get(at..)?.first_chunk::<4>()?));
    Some(Arp { reply, sender_mac: mac(22)?, sender: ip(28)?, target_mac: mac(32)?, target: ip(38)? })
}

/// Emits a frame: a question to everybody, an answer to its target. `None` when `buffer` is too short.
pub fn emit_arp_frame(buffer: &mut [u8], arp: &Arp) -> Option<usize> {
    let frame = buffer.first_chunk_mut::<ARP_FRAME_LEN>()?;
    frame[..6].copy_from_slice(&if arp.reply { arp.target_mac } else { MacAddr::BROADCAST }.0);
    frame[6..12].copy_from_slice(&arp.sender_mac.0);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    frame[14..20].copy_from_slice(&FIXED);
    frame[20..22].copy_from_slice(&[0, 1 + u8::from(arp.reply)]);
    frame[22..28].copy_from_slice(&arp.sender_mac.0);
    frame[28..32].copy_from_slice(&arp.sender.octets());
    frame[32..38].copy_from_slice(&arp.target_mac.0);
    frame[38..42].copy_from_slice(&arp.target.octets());
    Some(ARP_FRAME_LEN)
}

#[cfg(test)]
mod tests {
    use etherparse::{ArpOperation, NetSlice, SlicedPacket};

    use super::*;

    const QUESTION: Arp = Arp {
        reply: false,
        sender_mac: MacAddr([2, 0xb5, 0, 0, 0, 7]),
        sender: Ipv4Addr::new(10, 99, 1, 7),
        target_mac: MacAddr([0; 6]),
        target: Ipv4Addr::new(10, 99, 0, 1),
    };

    #[test]
    fn foreign_code_reads_what_is_emitted() {
        let answer = Arp { reply: true, target_mac: MacAddr([2, 9, 9, 9, 9, 9]), ..QUESTION };
        for arp in [QUESTION, answer] {
            let mut buffer = [0; 64];
            let len = emit_arp_frame(&mut buffer, &arp).unwrap();
            assert_eq!(parse_arp_frame(&buffer[..len]), Some(arp));
            let sliced = SlicedPacket::from_ethernet(&buffer[..len]).unwrap();
            let Some(NetSlice::Arp(read)) = sliced.net else { panic!("not ARP") };
            let operation = if arp.reply { ArpOperation::REPLY } else { ArpOperation::REQUEST };
            assert_eq!(read.operation(), operation);
            assert_eq!(read.sender_hw_addr(), arp.sender_mac.0);
            assert_eq!(read.sender_protocol_addr(), arp.sender.octets());
            assert_eq!(read.target_protocol_addr(), arp.target.octets());
        }
    }

    #[test]
    fn what_is_not_arp_for_ipv4_is_left_alone() {
        let mut good = [0; ARP_FRAME_LEN];
        emit_arp_frame(&mut good, &QUESTION).unwrap();
        for cut in 0..ARP_FRAME_LEN {
            assert_eq!(parse_arp_frame(&good[..cut]), None);
        }
        for at in 12..22 {
            let mut frame = good;
            frame[at] ^= 0x40;
            assert_eq!(parse_arp_frame(&frame), None, "byte {at}");
        }
        assert_eq!(emit_arp_frame(&mut [0; 41], &QUESTION), None);
    }
}

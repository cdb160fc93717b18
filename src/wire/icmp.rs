//! ICMP echo (RFC 792): whether anybody has an address that ARP does not reach.

use std::net::Ipv4Addr;

use super::frame::internet_checksum;

/// An echo message without data.
pub const ECHO_LEN: usize = 8;

/// ICMP's number in an IPv4 header.
const PROTOCOL: u8 = 1;
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;

/// What a question says and its answer repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo {
    /// Who asks.
    pub ident: u16,
    /// Which of their questions.
    pub sequence: u16,
}

/// Emits a question; `None` when `buffer` is too short.
pub fn emit_echo(buffer: &mut [u8], echo: Echo) -> Option<usize> {
    let message = buffer.first_chunk_mut::<ECHO_LEN>()?;
    message[..4].copy_from_slice(&[ECHO, 0, 0, 0]);
    message[4..6].copy_from_slice(&echo.ident.to_be_bytes());
    message[6..8].copy_from_slice(&echo.sequence.to_be_bytes());
    let checksum = internet_checksum(message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    Some(ECHO_LEN)
}

/// Reads an answer in an IPv4 packet, as a raw socket hands it over, and who sent it. `None` for anything else; data
/// behind the header and a damaged checksum are not looked at.
pub fn parse_echo_reply(packet: &[u8]) -> Option<(Ipv4Addr, Echo)> {
    let header = packet.first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 || header[9] != PROTOCOL {
        return None;
    }
    let message = packet.get(header_len..)?.first_chunk::<ECHO_LEN>()?;
    let number = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let from = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    (message[..2] == [ECHO_REPLY, 0]).then(|| (from, Echo { ident: number(4), sequence: number(6) }))
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Slice, Icmpv4Type};

    use super::*;

    const QUESTION: Echo = Echo { ident: 0xb007, sequence: 0xfffe };

    #[test]
    fn foreign_code_reads_the_question() {
        let mut buffer = [0xff; 20];
        let len = emit_echo(&mut buffer, QUESTION).unwrap();
        let slice = Icmpv4Slice::from_slice(&buffer[..len]).unwrap();
        let Icmpv4Type::EchoRequest(header) = slice.icmp_type() else { panic!("{:?}", slice.icmp_type()) };
        assert_eq!((header.id, header.seq), (QUESTION.ident, QUESTION.sequence));
        assert_eq!(slice.checksum(), slice.icmp_type().calc_checksum(slice.payload()));
        assert_eq!(emit_echo(&mut [0; 7], QUESTION), None);
    }

    #[test]
    fn an_answer_is_read_behind_any_ip_header_and_nothing_else_is() {
        for options in [0, 4, 40] {
            let mut packet = vec![0x40 | (5 + options / 4) as u8, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
            packet.extend([10, 88, 0, 7, 10, 77, 0, 1]);
            packet.resize(20 + options, 1);
            packet.extend([0, 0, 0, 0, 0xb0, 0x07, 0xff, 0xfe]);
            assert_eq!(parse_echo_reply(&packet), Some((Ipv4Addr::new(10, 88, 0, 7), QUESTION)));
            for cut in 0..packet.len() {
                assert_eq!(parse_echo_reply(&packet[..cut]), None, "{cut}");
            }
            for (at, byte) in [(0, 0x60), (0, 0x41), (9, 17), (20 + options, 8), (20 + options, 3)] {
                let mut other = packet.clone();
                other[at] = byte;
                assert_eq!(parse_echo_reply(&other), None, "byte {at} = {byte}");
            }
        }
    }
}

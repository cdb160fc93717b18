//! IPv4 packets of one machine, built and read: what `wire::frame` leaves out because no boot server speaks it itself
//! (TCP, fragments, ICMP's refusals).

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::wire::MacAddr;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ICMP: u8 = 1;

/// TCP's bits that matter here.
pub(super) mod flag {
    pub(in crate::doctor) const FIN: u8 = 1;
    pub(in crate::doctor) const SYN: u8 = 2;
    pub(in crate::doctor) const RST: u8 = 4;
    pub(in crate::doctor) const PSH: u8 = 8;
    pub(in crate::doctor) const ACK: u8 = 16;
}

/// A TCP segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) payload: Vec<u8>,
}

/// What was heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    Udp {
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: Vec<u8>,
    },
    Tcp {
        from: SocketAddrV4,
        to: SocketAddrV4,
        segment: Segment,
    },
    /// Part of a UDP datagram that was cut on its way: how many bytes of it, and whether they are its last.
    Fragment {
        from: Ipv4Addr,
        offset: usize,
        len: usize,
        last: bool,
    },
    /// ICMP says that nobody can be reached there, with its code: 3 is a port nobody has, 9, 10 and 13 are a filter's
    /// words.
    Unreachable {
        code: u8,
        to: SocketAddrV4,
    },
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |total, pair| {
        total + (u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
    })
}

fn fold(total: u32) -> u16 {
    let once = (total >> 16) + (total & 0xffff);
    !(((once >> 16) + (once & 0xffff)) as u16)
}

/// A frame with one IPv4 packet. `options`: with four bytes of "no operation" behind the header.
fn frame(
    macs: (MacAddr, MacAddr),
    (src, dst): (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    id: u16,
    options: bool,
    body: &[u8],
) -> Vec<u8> {
    let header_len = IPV4_LEN + if options { 4 } else { 0 };
    let mut out = Vec::with_capacity(ETHERNET_LEN + header_len + body.len());
    out.extend_from_slice(&macs.1.0);
    out.extend_from_slice(&macs.0.0);
    out.extend_from_slice(&[0x08, 0x00]);
    let mut ip = [1u8; IPV4_LEN + 4];
    ip[..IPV4_LEN].fill(0);
    ip[0] = 0x40 | (header_len / 4) as u8;
    ip[2..4].copy_from_slice(&((header_len + body.len()) as u16).to_be_bytes());
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[8] = 64;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&src.octets());
    ip[16..20].copy_from_slice(&dst.octets());
    let checksum = fold(sum(0, &ip[..header_len]));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    out.extend_from_slice(&ip[..header_len]);
    out.extend_from_slice(body);
    out
}

fn checksum(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, body: &[u8]) -> u16 {
    let pseudo = sum(sum(0, &src.octets()), &dst.octets());
    fold(sum(pseudo + u32::from(protocol) + body.len() as u32, body))
}

/// A whole frame with a UDP datagram.
pub(super) fn udp_frame(
    macs: (MacAddr, MacAddr),
    src: SocketAddrV4,
    dst: SocketAddrV4,
    id: u16,
    options: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = Vec::with_capacity(8 + payload.len());
    body.extend_from_slice(&src.port().to_be_bytes());
    body.extend_from_slice(&dst.port().to_be_bytes());
    body.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(payload);
    // RFC 768: a sum of zero is sent as all ones.
    let sum = match checksum(*src.ip(), *dst.ip(), UDP, &body) {
        0 => 0xffff,
        sum => sum,
    };
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    frame(macs, (*src.ip(), *dst.ip()), UDP, id, options, &body)
}

/// A whole frame with a TCP segment; a SYN says that segments of `mss` bytes are taken.
pub(super) fn tcp_frame(
    macs: (MacAddr, MacAddr),
    src: SocketAddrV4,
    dst: SocketAddrV4,
    id: u16,
    segment: &Segment,
    mss: u16,
) -> Vec<u8> {
    let options = segment.flags & flag::SYN != 0;
    let header_len: u8 = if options { 24 } else { 20 };
    let mut body = Vec::with_capacity(usize::from(header_len) + segment.payload.len());
    body.extend_from_slice(&src.port().to_be_bytes());
    body.extend_from_slice(&dst.port().to_be_bytes());
    body.extend_from_slice(&segment.seq.to_be_bytes());
    body.extend_from_slice(&segment.ack.to_be_bytes());
    body.extend_from_slice(&[(header_len / 4) << 4, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    if options {
        body.extend_from_slice(&[2, 4]);
        body.extend_from_slice(&mss.to_be_bytes());
    }
    body.extend_from_slice(&segment.payload);
    let sum = checksum(*src.ip(), *dst.ip(), TCP, &body);
    body[16..18].copy_from_slice(&sum.to_be_bytes());
    frame(macs, (*src.ip(), *dst.ip()), TCP, id, false, &body)
}

/// Reads a frame; `None` for what is nothing of [`Heard`]. Checksums are not looked at: what this host sent itself has
/// none yet.
pub(super) fn read(frame: &[u8]) -> Option<Heard> {
    if frame.get(12..14)? != [0x08, 0x00] {
        return None;
    }
    let (src, dst, protocol, cut, body) = read_ip(frame.get(ETHERNET_LEN..)?)?;
    if let Some((offset, last)) = cut {
        return (protocol == UDP).then_some(Heard::Fragment { from: src, offset, len: body.len(), last });
    }
    match protocol {
        UDP => {
            let len = usize::from(u16_at(body, 4)?);
            Some(Heard::Udp {
                from: SocketAddrV4::new(src, u16_at(body, 0)?),
                to: SocketAddrV4::new(dst, u16_at(body, 2)?),
                payload: body.get(8..len)?.to_vec(),
            })
        }
        TCP => {
            let header_len = usize::from(*body.get(12)? >> 4) * 4;
            Some(Heard::Tcp {
                from: SocketAddrV4::new(src, u16_at(body, 0)?),
                to: SocketAddrV4::new(dst, u16_at(body, 2)?),
                segment: Segment {
                    seq: u32_at(body, 4)?,
                    ack: u32_at(body, 8)?,
                    flags: *body.get(13)?,
                    payload: body.get(header_len..).filter(|_| header_len >= 20)?.to_vec(),
                },
            })
        }
        // Destination unreachable: 4 bytes of nothing, then the head of what could not be brought.
        ICMP if *body.first()? == 3 => {
            let inner = body.get(8..)?;
            let header_len = usize::from(inner.first()? & 0x0f) * 4;
            let to: [u8; 4] = inner.get(16..20)?.try_into().ok()?;
            let port = u16_at(inner, header_len + 2)?;
            Some(Heard::Unreachable { code: *body.get(1)?, to: SocketAddrV4::new(to.into(), port) })
        }
        _ => None,
    }
}

/// Source, destination, protocol, offset and whether it is the last one if it is a fragment, payload.
type Ip<'a> = (Ipv4Addr, Ipv4Addr, u8, Option<(usize, bool)>, &'a [u8]);

fn read_ip(packet: &[u8]) -> Option<Ip<'_>> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    if packet[0] >> 4 != 4 || header_len < IPV4_LEN {
        return None;
    }
    // A segment that is still to be cut may say 0 when it is longer than 64 KiB.
    let total = match usize::from(u16_at(packet, 2)?) {
        0 => packet.len(),
        total => total,
    };
    let bits = u16_at(packet, 6)?;
    let (offset, more) = (usize::from(bits & 0x1fff) * 8, bits & 0x2000 != 0);
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let cut = (offset > 0 || more).then_some((offset, !more));
    Some((address(12)?, address(16)?, *packet.get(9)?, cut, packet.get(header_len..total)?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const US: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 20_001);
    const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 4433);
    const MACS: (MacAddr, MacAddr) = (MacAddr([2, 0xd0, 0xc7, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 9]));

    #[test]
    fn foreign_code_reads_our_packets_and_agrees_on_every_checksum() {
        for payload in [&b""[..], b"x", b"hello", &[7; 1460]] {
            for options in [false, true] {
                let frame = udp_frame(MACS, US, SERVER, 7, options, payload);
                let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
                assert_eq!(udp.payload(), payload);
                let expected = udp.to_header().calc_checksum_ipv4(&header, payload).unwrap();
                assert_eq!(udp.checksum(), expected);
            }
            let segment = Segment { seq: 5, ack: 9, flags: flag::SYN, payload: payload.to_vec() };
            let frame = tcp_frame(MACS, US, SERVER, 7, &segment, 1460);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
            let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("not TCP") };
            let header = ip.header().to_header();
            assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, payload).unwrap());
            assert_eq!(tcp.options(), [2, 4, 5, 180]);
        }
    }

    #[test]
    fn what_is_built_is_read_back() {
        let frame = udp_frame(MACS, US, SERVER, 7, true, b"hello");
        assert_eq!(read(&frame), Some(Heard::Udp { from: US, to: SERVER, payload: b"hello".to_vec() }));
        let segment = Segment { seq: 5, ack: 9, flags: flag::ACK, payload: b"abc".to_vec() };
        let frame = tcp_frame(MACS, US, SERVER, 7, &segment, 1460);
        assert_eq!(read(&frame), Some(Heard::Tcp { from: US, to: SERVER, segment }));
    }

    #[test]
    fn a_refusal_names_the_port_that_nobody_has() {
        let asked = udp_frame(MACS, US, SERVER, 7, true, b"hello");
        let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
        icmp.extend_from_slice(&asked[ETHERNET_LEN..]);
        let refusal = frame((MACS.1, MACS.0), (*SERVER.ip(), *US.ip()), ICMP, 1, false, &icmp);
        assert_eq!(read(&refusal), Some(Heard::Unreachable { code: 3, to: SERVER }));
    }

    #[test]
    fn fragments_tell_where_they_stand() {
        let mut first = udp_frame(MACS, SERVER, US, 7, false, &[1; 1472]);
        first[20] = 0x20;
        assert_eq!(
            read(&first),
            Some(Heard::Fragment { from: *SERVER.ip(), offset: 0, len: 1480, last: false })
        );
        first[20..22].copy_from_slice(&185u16.to_be_bytes());
        assert_eq!(
            read(&first),
            Some(Heard::Fragment { from: *SERVER.ip(), offset: 1480, len: 1480, last: true })
        );
    }

    #[test]
    fn no_cut_or_changed_byte_panics() {
        let segment = Segment { seq: 5, ack: 9, flags: flag::ACK, payload: b"abc".to_vec() };
        for frame in
            [udp_frame(MACS, US, SERVER, 7, true, b"hello"), tcp_frame(MACS, US, SERVER, 7, &segment, 1460)]
        {
            for len in 0..frame.len() {
                let _ = read(&frame[..len]);
            }
            for at in 0..frame.len() {
                for value in [0, 1, 3, 0x0f, 0x45, 0x4f, 0xff] {
                    let mut changed = frame.clone();
                    changed[at] = value;
                    let _ = read(&changed);
                }
            }
        }
    }
}

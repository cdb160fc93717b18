//! Ethernet II frames that carry UDP over IPv4: what the packet sockets read and write.
//!
//! Reading takes a whole frame and gives the UDP payload with both ends' addresses. Writing goes the other way round
//! in place: the payload is put at [`UDP_PAYLOAD_OFFSET`] first, then the 42 bytes before it are filled in, so that
//! nothing is ever moved.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::addr::MacAddr;
use super::reader::{Reader, Writer};

/// Ethernet (14) + IPv4 without options (20) + UDP (8): where the payload of an emitted frame begins.
pub const UDP_PAYLOAD_OFFSET: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
/// The longest payload IPv4's 16-bit total length leaves room for.
pub const UDP_PAYLOAD_LEN_MAX: usize = u16::MAX as usize - IPV4_LEN - UDP_LEN;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
const ETHERTYPE_IPV4: u16 = 0x0800;
const PROTOCOL_UDP: u8 = 17;
/// More-fragments bit and fragment offset: either one set makes a fragment.
const FRAGMENT_BITS: u16 = 0x3fff;

/// Why a frame is not a UDP datagram for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// Ends inside a header.
    Truncated,
    /// Another EtherType than IPv4 (a VLAN tag the card did not take off counts as one).
    NotIpv4(u16),
    /// Version, header length or total length make no sense, or total length is more than was received.
    BadIpHeader,
    /// The IPv4 header's checksum is wrong.
    BadIpChecksum,
    /// A fragment; nothing we speak needs them.
    Fragment,
    /// Another protocol than UDP.
    NotUdp(u8),
    /// UDP's length is under 8 or more than IPv4 carries.
    BadUdpLen(u16),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("frame ends inside a header"),
            Self::NotIpv4(ethertype) => write!(f, "ethertype {ethertype:#06x} is not IPv4"),
            Self::BadIpHeader => f.write_str("IPv4 header lengths make no sense"),
            Self::BadIpChecksum => f.write_str("IPv4 header checksum is wrong"),
            Self::Fragment => f.write_str("IPv4 fragment"),
            Self::NotUdp(protocol) => write!(f, "IP protocol {protocol} is not UDP"),
            Self::BadUdpLen(len) => write!(f, "UDP length {len} does not fit its packet"),
        }
    }
}

impl std::error::Error for FrameError {}

/// One UDP datagram inside a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpDatagram<'a> {
    /// Ethernet source.
    pub src_mac: MacAddr,
    /// Ethernet destination.
    pub dst_mac: MacAddr,
    /// IPv4 source and UDP source port.
    pub src: SocketAddrV4,
    /// IPv4 destination and UDP destination port.
    pub dst: SocketAddrV4,
    /// UDP payload, Ethernet padding taken off.
    pub payload: &'a [u8],
    /// UDP checksum as it stands in the header.
    pub checksum: u16,
}

impl UdpDatagram<'_> {
    /// True where the checksum holds, or there is none (RFC 768: zero).
    pub fn is_sound(&self) -> bool {
        let pseudo = sum(sum(0, &self.src.ip().octets()), &self.dst.ip().octets());
        let ports = u32::from(self.src.port()) + u32::from(self.dst.port());
        let udp_len = (UDP_LEN + self.payload.len()) as u32;
        let head = pseudo + u32::from(PROTOCOL_UDP) + ports + 2 * udp_len + u32::from(self.checksum);
        self.checksum == 0 || fold(sum(head, self.payload)) == 0xffff
    }
}

/// Parses one Ethernet II frame down to its UDP payload.
///
/// The IPv4 checksum is verified. UDP's is not ([`UdpDatagram::is_sound`] does): a frame from the same host carries a
/// partial one, which the card that was to finish it never saw.
pub fn parse_udp_frame(frame: &[u8]) -> Result<UdpDatagram<'_>, FrameError> {
    let mut ethernet = Reader::new(frame);
    let dst_mac = MacAddr(ethernet.array().ok_or(FrameError::Truncated)?);
    let src_mac = MacAddr(ethernet.array().ok_or(FrameError::Truncated)?);
    let ethertype = ethernet.u16_be().ok_or(FrameError::Truncated)?;
    if ethertype != ETHERTYPE_IPV4 {
        return Err(FrameError::NotIpv4(ethertype));
    }

    let packet = ethernet.rest();
    let first = *packet.first().ok_or(FrameError::Truncated)?;
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < IPV4_LEN {
        return Err(FrameError::BadIpHeader);
    }
    let header = packet.get(..header_len).ok_or(FrameError::Truncated)?;
    if fold(sum(0, header)) != 0xffff {
        return Err(FrameError::BadIpChecksum);
    }
    let mut ip = Reader::new(header);
    ip.take(2).ok_or(FrameError::Truncated)?;
    let total_len = usize::from(ip.u16_be().ok_or(FrameError::Truncated)?);
    ip.take(2).ok_or(FrameError::Truncated)?;
    let fragment = ip.u16_be().ok_or(FrameError::Truncated)?;
    ip.take(1).ok_or(FrameError::Truncated)?;
    let protocol = ip.u8().ok_or(FrameError::Truncated)?;
    ip.take(2).ok_or(FrameError::Truncated)?;
    let src_ip = Ipv4Addr::from(ip.array::<4>().ok_or(FrameError::Truncated)?);
    let dst_ip = Ipv4Addr::from(ip.array::<4>().ok_or(FrameError::Truncated)?);
    if fragment & FRAGMENT_BITS != 0 {
        return Err(FrameError::Fragment);
    }
    if protocol != PROTOCOL_UDP {
        return Err(FrameError::NotUdp(protocol));
    }

    let mut udp = Reader::new(packet.get(header_len..total_len).ok_or(FrameError::BadIpHeader)?);
    let carried = udp.rest().len();
    let src_port = udp.u16_be().ok_or(FrameError::Truncated)?;
    let dst_port = udp.u16_be().ok_or(FrameError::Truncated)?;
    let udp_len = udp.u16_be().ok_or(FrameError::Truncated)?;
    let checksum = udp.u16_be().ok_or(FrameError::Truncated)?;
    let payload = usize::from(udp_len)
        .checked_sub(UDP_LEN)
        .filter(|_| usize::from(udp_len) <= carried)
        .and_then(|len| udp.take(len))
        .ok_or(FrameError::BadUdpLen(udp_len))?;
    Ok(UdpDatagram {
        src_mac,
        dst_mac,
        src: SocketAddrV4::new(src_ip, src_port),
        dst: SocketAddrV4::new(dst_ip, dst_port),
        payload,
        checksum,
    })
}

/// The headers of a UDP datagram of which only the beginning was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpHead {
    /// Ethernet source.
    pub src_mac: MacAddr,
    /// Ethernet destination.
    pub dst_mac: MacAddr,
    /// IPv4 source and UDP source port.
    pub src: SocketAddrV4,
    /// IPv4 destination and UDP destination port.
    pub dst: SocketAddrV4,
    /// Where the payload begins in the frame.
    pub payload_offset: usize,
    /// Bytes of payload on the wire, received or not.
    pub payload_len: usize,
}

/// Parses the headers of a frame that may have been cut behind them, as a capture with a short snapshot cuts it.
/// No checksum is looked at: whoever counts payload without reading it cannot check it either.
pub fn parse_udp_head(frame: &[u8]) -> Result<UdpHead, FrameError> {
    let ethernet = frame.first_chunk::<ETHERNET_LEN>().ok_or(FrameError::Truncated)?;
    let ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    if ethertype != ETHERTYPE_IPV4 {
        return Err(FrameError::NotIpv4(ethertype));
    }
    let packet = &frame[ETHERNET_LEN..];
    let ip = packet.first_chunk::<IPV4_LEN>().ok_or(FrameError::Truncated)?;
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header_len < IPV4_LEN {
        return Err(FrameError::BadIpHeader);
    }
    if u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT_BITS != 0 {
        return Err(FrameError::Fragment);
    }
    if ip[9] != PROTOCOL_UDP {
        return Err(FrameError::NotUdp(ip[9]));
    }
    let udp = packet.get(header_len..).and_then(|rest| rest.first_chunk::<UDP_LEN>());
    let udp = udp.ok_or(FrameError::Truncated)?;
    let total_len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let udp_len = u16::from_be_bytes([udp[4], udp[5]]);
    let payload_len = usize::from(udp_len)
        .checked_sub(UDP_LEN)
        .filter(|_| usize::from(udp_len) + header_len <= total_len)
        .ok_or(FrameError::BadUdpLen(udp_len))?;
    let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *ethernet;
    Ok(UdpHead {
        src_mac: MacAddr([s0, s1, s2, s3, s4, s5]),
        dst_mac: MacAddr([d0, d1, d2, d3, d4, d5]),
        src: SocketAddrV4::new(address(12), port(0)),
        dst: SocketAddrV4::new(address(16), port(2)),
        payload_offset: ETHERNET_LEN + header_len + UDP_LEN,
        payload_len,
    })
}

/// What stands in the 42 bytes before a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpHeader {
    /// Ethernet source.
    pub src_mac: MacAddr,
    /// Ethernet destination.
    pub dst_mac: MacAddr,
    /// IPv4 source and UDP source port.
    pub src: SocketAddrV4,
    /// IPv4 destination and UDP destination port.
    pub dst: SocketAddrV4,
    /// IPv4 time to live.
    pub ttl: u8,
    /// IPv4 identification; fragmenting on the way stays allowed, so it should differ from frame to frame.
    pub ip_id: u16,
}

/// Fills in the headers before a payload that already stands at [`UDP_PAYLOAD_OFFSET`] of `buffer`, both checksums
/// included. Returns the frame's length, or `None` when the payload is not all inside `buffer` or too long for IPv4.
///
/// Frames shorter than Ethernet's 60 bytes are not padded: the driver does that.
pub fn emit_udp_frame(buffer: &mut [u8], header: &UdpHeader, payload_len: usize) -> Option<usize> {
    let frame_len = UDP_PAYLOAD_OFFSET.checked_add(payload_len)?;
    let (headers, payload) = buffer.get_mut(..frame_len)?.split_first_chunk_mut::<UDP_PAYLOAD_OFFSET>()?;
    emit_udp_headers(headers, header, payload_len)?;
    let udp_len = (UDP_LEN + payload_len) as u32;
    let pseudo = sum(sum(0, &header.src.ip().octets()), &header.dst.ip().octets());
    let ports = u32::from(header.src.port()) + u32::from(header.dst.port());
    // UDP's length stands in the pseudo header and in the UDP header.
    let total = sum(pseudo + u32::from(PROTOCOL_UDP) + ports + 2 * udp_len, payload);
    // RFC 768: a sum of zero is sent as all ones, since zero means "none".
    let checksum = match !fold(total) {
        0 => 0xffff,
        checksum => checksum,
    };
    headers.last_chunk_mut::<2>()?.copy_from_slice(&checksum.to_be_bytes());
    Some(frame_len)
}

/// The same 42 bytes with a UDP checksum of zero ("none", RFC 768), for a payload that is sent from elsewhere or is
/// summed by the card. `None` when `payload_len` is too long for IPv4.
pub fn emit_udp_headers(
    headers: &mut [u8; UDP_PAYLOAD_OFFSET],
    header: &UdpHeader,
    payload_len: usize,
) -> Option<()> {
    let udp_len = u16::try_from(payload_len.checked_add(UDP_LEN)?).ok()?;
    let total_len = udp_len.checked_add(IPV4_LEN as u16)?;
    let mut writer = Writer::new(headers);
    writer.put(&header.dst_mac.0)?;
    writer.put(&header.src_mac.0)?;
    writer.u16_be(ETHERTYPE_IPV4)?;
    let mut ip = [0; IPV4_LEN];
    let mut ip_writer = Writer::new(&mut ip);
    ip_writer.put(&[0x45, 0])?;
    ip_writer.u16_be(total_len)?;
    ip_writer.u16_be(header.ip_id)?;
    ip_writer.u16_be(0)?;
    ip_writer.put(&[header.ttl, PROTOCOL_UDP, 0, 0])?;
    ip_writer.put(&header.src.ip().octets())?;
    ip_writer.put(&header.dst.ip().octets())?;
    let checksum = !fold(sum(0, &ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    writer.put(&ip)?;
    writer.u16_be(header.src.port())?;
    writer.u16_be(header.dst.port())?;
    writer.u16_be(udp_len)?;
    writer.u16_be(0)
}

/// RFC 1071's running sum of big-endian 16-bit words, an odd last byte filled up with zero.
///
/// Four bytes at a time, in this machine's order: the order does not matter until the end (RFC 1071 §2 B).
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let mut words = bytes.chunks_exact(4);
    let mut total: u64 =
        words.by_ref().map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    total += u64::from(u32::from_ne_bytes(last));
    // 65,535 bytes make less than 2^46, and these folds leave 16 bits.
    total = (total >> 32) + (total & 0xffff_ffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    start + u32::from(u16::from_be(total as u16))
}

/// The Internet checksum (RFC 1071) of a message whose own field is zero.
pub(super) fn internet_checksum(bytes: &[u8]) -> u16 {
    !fold(sum(0, bytes))
}

/// Folds the carries back in.
fn fold(total: u32) -> u16 {
    let once = (total >> 16) + (total & 0xffff);
    ((once >> 16) + (once & 0xffff)) as u16
}

/// Takes any frame through the parsers of this room, and what is a datagram back into a frame: for fuzz targets and the
/// mutation tests. Panics only when an invariant of this module or of [`arp`](super::arp) is broken.
pub fn fuzz_frame(bytes: &[u8]) {
    if let Some(arp) = super::arp::parse_arp_frame(bytes) {
        let mut frame = [0; super::arp::ARP_FRAME_LEN];
        super::arp::emit_arp_frame(&mut frame, &arp).expect("the buffer is a frame long");
        assert_eq!(super::arp::parse_arp_frame(&frame), Some(arp));
    }
    let head = parse_udp_head(bytes);
    let Ok(datagram) = parse_udp_frame(bytes) else { return };
    let head = head.expect("a frame that is whole has its headers");
    assert_eq!((head.src, head.dst, head.payload_len), (datagram.src, datagram.dst, datagram.payload.len()));
    assert_eq!(
        bytes.get(head.payload_offset..).map(|rest| &rest[..head.payload_len]),
        Some(datagram.payload)
    );
    let header = UdpHeader {
        src_mac: datagram.src_mac,
        dst_mac: datagram.dst_mac,
        src: datagram.src,
        dst: datagram.dst,
        ttl: 64,
        ip_id: 0,
    };
    let mut frame = vec![0; UDP_PAYLOAD_OFFSET + datagram.payload.len()];
    frame[UDP_PAYLOAD_OFFSET..].copy_from_slice(datagram.payload);
    let len =
        emit_udp_frame(&mut frame, &header, datagram.payload.len()).expect("what came in a packet fits one");
    let ours = parse_udp_frame(&frame[..len]).expect("a frame of ours is whole");
    assert!(ours.is_sound());
    // The checksum that came may be none, or wrong.
    assert_eq!(UdpDatagram { checksum: datagram.checksum, ..ours }, datagram);
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;

    const HEADER: UdpHeader = UdpHeader {
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        dst_mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        src: SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 67),
        dst: SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 68),
        ttl: 64,
        ip_id: 0x1234,
    };

    /// A frame made by somebody else's code.
    fn foreign_frame(payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(HEADER.src_mac.0, HEADER.dst_mac.0)
            .ipv4(HEADER.src.ip().octets(), HEADER.dst.ip().octets(), HEADER.ttl)
            .udp(HEADER.src.port(), HEADER.dst.port());
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    fn emitted(payload: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0xaa; UDP_PAYLOAD_OFFSET + payload.len() + 7];
        buffer[UDP_PAYLOAD_OFFSET..][..payload.len()].copy_from_slice(payload);
        let len = emit_udp_frame(&mut buffer, &HEADER, payload.len()).unwrap();
        buffer.truncate(len);
        buffer
    }

    fn payloads() -> impl Iterator<Item = Vec<u8>> {
        let mut state = 0x9e37_79b9_u32;
        (0..600).chain([1472, 1473, 9000, UDP_PAYLOAD_LEN_MAX]).map(move |len| {
            (0..len)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 17;
                    state ^= state << 5;
                    state as u8
                })
                .collect()
        })
    }

    fn refresh_ip_checksum(frame: &mut [u8]) {
        let header_len = usize::from(frame[14] & 0x0f) * 4;
        frame[24..26].fill(0);
        let checksum = !fold(sum(0, &frame[14..14 + header_len]));
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }

    #[test]
    fn foreign_frames_are_read() {
        for payload in payloads() {
            let frame = foreign_frame(&payload);
            let datagram = parse_udp_frame(&frame).unwrap();
            assert_eq!(datagram.src_mac, HEADER.src_mac);
            assert_eq!(datagram.dst_mac, HEADER.dst_mac);
            assert_eq!((datagram.src, datagram.dst), (HEADER.src, HEADER.dst));
            assert_eq!(datagram.payload, payload);
        }
    }

    #[test]
    fn a_checksum_holds_is_wrong_or_is_none() {
        for len in [0, 1, 2, 299, 300, 1172] {
            let mut frame = vec![0xa5; UDP_PAYLOAD_OFFSET + len];
            emit_udp_frame(&mut frame, &HEADER, len).unwrap();
            let is_sound = |frame: &[u8]| parse_udp_frame(frame).unwrap().is_sound();
            assert!(is_sound(&frame), "{len}");
            // A byte of the payload, of a port, of the checksum itself.
            for at in (UDP_PAYLOAD_OFFSET..frame.len()).chain([34, 37, 40]) {
                frame[at] ^= 1;
                assert!(!is_sound(&frame), "{len}, {at}");
                frame[at] ^= 1;
            }
            frame[40..42].fill(0);
            assert!(is_sound(&frame), "none");
        }
    }

    #[test]
    fn foreign_code_reads_our_frames_and_agrees_on_both_checksums() {
        for payload in payloads() {
            let frame = emitted(&payload);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
            let ip = ip.header();
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            assert_eq!((ip.ttl(), ip.identification()), (HEADER.ttl, HEADER.ip_id));
            let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
            assert_eq!(udp.payload(), payload);
            assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
            let expected = udp.to_header().calc_checksum_ipv4(&ip.to_header(), &payload).unwrap();
            assert_eq!(udp.checksum(), expected, "payload of {}", payload.len());
        }
    }

    #[test]
    fn headers_are_read_alike_from_a_whole_and_a_cut_frame() {
        for payload in payloads() {
            let frame = foreign_frame(&payload);
            for cut in [UDP_PAYLOAD_OFFSET, frame.len()] {
                let head = parse_udp_head(&frame[..cut]).unwrap();
                assert_eq!((head.src, head.dst), (HEADER.src, HEADER.dst));
                assert_eq!((head.src_mac, head.dst_mac), (HEADER.src_mac, HEADER.dst_mac));
                assert_eq!((head.payload_offset, head.payload_len), (UDP_PAYLOAD_OFFSET, payload.len()));
            }
            assert_eq!(parse_udp_head(&frame[..UDP_PAYLOAD_OFFSET - 1]), Err(FrameError::Truncated));
        }
    }

    #[test]
    fn headers_that_contradict_each_other_are_refused() {
        let frame = foreign_frame(b"hello");
        let changed = |at: usize, value: u8| {
            let mut frame = frame.clone();
            frame[at] = value;
            parse_udp_head(&frame)
        };
        assert_eq!(changed(12, 0x86), Err(FrameError::NotIpv4(0x8600)));
        assert_eq!(changed(14, 0x44), Err(FrameError::BadIpHeader));
        assert_eq!(changed(20, 0x20), Err(FrameError::Fragment));
        assert_eq!(changed(23, 6), Err(FrameError::NotUdp(6)));
        assert_eq!(changed(39, 7), Err(FrameError::BadUdpLen(7)));
        assert_eq!(changed(39, 14), Err(FrameError::BadUdpLen(14)));
    }

    #[test]
    fn a_udp_sum_of_zero_is_sent_as_all_ones() {
        // The payload word that brings the sum to 0xffff: the complement of everything else's sum.
        let bare = emitted(&[0, 0]);
        let checksum = u16::from_be_bytes([bare[40], bare[41]]);
        let frame = emitted(&checksum.to_be_bytes());
        assert_eq!(frame[40..42], [0xff, 0xff]);
    }

    #[test]
    fn headers_alone_say_that_there_is_no_udp_checksum() {
        let mut headers = [0; UDP_PAYLOAD_OFFSET];
        emit_udp_headers(&mut headers, &HEADER, 5).unwrap();
        let mut with_payload = emitted(b"hello");
        with_payload[40..42].fill(0);
        assert_eq!(headers[..], with_payload[..UDP_PAYLOAD_OFFSET]);
    }

    #[test]
    fn padding_after_the_ip_packet_is_not_payload() {
        let mut frame = foreign_frame(b"tiny");
        frame.resize(60, 0);
        assert_eq!(parse_udp_frame(&frame).unwrap().payload, b"tiny");
    }

    #[test]
    fn ip_options_are_stepped_over() {
        let mut frame = foreign_frame(b"hello");
        frame[14] = 0x46;
        frame.splice(34..34, [1, 1, 1, 0]);
        let total_len = u16::from_be_bytes([frame[16], frame[17]]) + 4;
        frame[16..18].copy_from_slice(&total_len.to_be_bytes());
        refresh_ip_checksum(&mut frame);
        let datagram = parse_udp_frame(&frame).unwrap();
        assert_eq!((datagram.payload, datagram.dst), (&b"hello"[..], HEADER.dst));
    }

    #[test]
    fn what_is_not_one_whole_udp_datagram_is_refused() {
        type Change = fn(&mut Vec<u8>);
        let cases: [(Change, FrameError); 12] = [
            (|f| f.truncate(0), FrameError::Truncated),
            (|f| f.truncate(14), FrameError::Truncated),
            (|f| f.truncate(30), FrameError::Truncated),
            (|f| f[12] = 0x86, FrameError::NotIpv4(0x8600)),
            (|f| f[14] = 0x65, FrameError::BadIpHeader),
            (|f| f[14] = 0x44, FrameError::BadIpHeader),
            (|f| f[17] += 1, FrameError::BadIpHeader),
            (|f| f[20] = 0x20, FrameError::Fragment),
            (|f| f[21] = 1, FrameError::Fragment),
            (|f| f[23] = 6, FrameError::NotUdp(6)),
            (|f| f[39] = 7, FrameError::BadUdpLen(7)),
            (|f| f[39] += 1, FrameError::BadUdpLen(14)),
        ];
        for (index, (change, expected)) in cases.into_iter().enumerate() {
            let mut frame = foreign_frame(b"hello");
            change(&mut frame);
            if frame.len() > 34 && (frame[14] & 0x0f) >= 5 {
                refresh_ip_checksum(&mut frame);
            }
            assert_eq!(parse_udp_frame(&frame), Err(expected), "case {index}");
        }
    }

    #[test]
    fn a_damaged_ip_header_is_refused() {
        let mut frame = foreign_frame(b"hello");
        frame[26] ^= 0x10;
        assert_eq!(parse_udp_frame(&frame), Err(FrameError::BadIpChecksum));
    }

    #[test]
    fn a_damaged_udp_checksum_is_not_our_business() {
        let mut frame = foreign_frame(b"hello");
        frame[40] ^= 0x55;
        assert_eq!(parse_udp_frame(&frame).unwrap().payload, b"hello");
    }

    #[test]
    fn no_prefix_or_one_byte_change_panics() {
        let frame = foreign_frame(b"some payload");
        for len in 0..frame.len() {
            assert!(parse_udp_frame(&frame[..len]).is_err());
        }
        for index in 0..frame.len() {
            for value in 0..=255 {
                let mut changed = frame.clone();
                changed[index] = value;
                let _ = parse_udp_frame(&changed);
                if index < 34
                    && changed[14] & 0x0f >= 5
                    && changed.len() >= 14 + usize::from(changed[14] & 0x0f) * 4
                {
                    refresh_ip_checksum(&mut changed);
                    let _ = parse_udp_frame(&changed);
                }
            }
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_not_emitted() {
        let mut buffer = vec![0; UDP_PAYLOAD_OFFSET + 10];
        assert_eq!(emit_udp_frame(&mut buffer, &HEADER, 10), Some(52));
        assert_eq!(emit_udp_frame(&mut buffer, &HEADER, 11), None);
        assert_eq!(emit_udp_frame(&mut buffer, &HEADER, usize::MAX), None);
        let mut buffer = vec![0; 70_000];
        assert_eq!(emit_udp_frame(&mut buffer, &HEADER, UDP_PAYLOAD_LEN_MAX), Some(65_549));
        assert_eq!(emit_udp_frame(&mut buffer, &HEADER, UDP_PAYLOAD_LEN_MAX + 1), None);
    }
}

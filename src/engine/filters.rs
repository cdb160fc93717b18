//! Classic BPF programs that split DHCP, and TFTP, between raw sockets and UDP sockets without a gap or an overlap.
//!
//! The raw sockets take what a UDP socket cannot answer: requests to 255.255.255.255 that no relay has touched. Where
//! frames may go past the host's packet filter there is one more, for what came to its interface's own address in one
//! plain, untagged packet of at most [`ADDRESSED_LEN_MAX`] (relayed messages, renewals). The UDP socket's own filter drops
//! exactly those, and takes the rest. Where another DHCP server owns port 67 there is no UDP socket, and the raw sockets
//! take everything. They also hear what other servers answer (port 67 to port 68).
//!
//! A raw socket on an interface is also shown what belongs to those upon it (VLANs, macvlan): the interface that the
//! kernel names with a packet tells them apart.
//!
//! TFTP by frames is split per interface: the raw socket takes what came to this interface's own address in one
//! plain, untagged packet without IP options; the UDP sockets drop exactly that, and serve the rest: other interfaces,
//! secondary addresses, VLANs (whose packets reach a UDP socket under another interface), loopback. A request that
//! was cut into fragments is served by neither on such an interface; no TFTP client sends one.

use std::net::Ipv4Addr;

use crate::sys::packet::BpfInstruction;

// linux/bpf_common.h and linux/filter.h.
const LD_H_ABS: u16 = 0x28;
const LD_B_ABS: u16 = 0x30;
const LD_W_ABS: u16 = 0x20;
const LD_W_LEN: u16 = 0x80;
const LD_H_IND: u16 = 0x48;
const LD_W_IND: u16 = 0x40;
const LDX_IP_HEADER_LEN: u16 = 0xb1;
const JUMP_EQ: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
const RETURN_A: u16 = 0x16;
const JUMP_GE: u16 = 0x35;
const JUMP: u16 = 0x05;
const COPY_TO_X: u16 = 0x07;
const ADD_X: u16 = 0x0c;
const ADD: u16 = 0x04;
const MODULO: u16 = 0x94;
/// `SKF_AD_OFF`: what the kernel knows besides the packet's bytes.
const ANCILLARY: u32 = 0xffff_f000;
const PACKET_TYPE: u32 = ANCILLARY + 4;
const INTERFACE_INDEX: u32 = ANCILLARY + 8;
const VLAN_TAG_PRESENT: u32 = ANCILLARY + 48;
/// `PACKET_HOST`: addressed to this machine.
const TO_US: u32 = 0;
/// `PACKET_OTHERHOST`: addressed to another machine.
const TO_OTHERS: u32 = 3;
/// `PACKET_OUTGOING`: sent by this machine.
const FROM_US: u32 = 4;
/// IPv4 with a header of 20 bytes.
const PLAIN_IPV4: u32 = 0x45;
const FRAGMENT: u32 = 0x3fff;
/// `SKF_NET_OFF`: offsets from here count from the IP header whatever layer the socket sees.
const NET_OFFSET: u32 = 0xfff0_0000;

const ETHERTYPE_IPV4: u32 = 0x0800;
const PROTOCOL_UDP: u32 = 17;
const BROADCAST: u32 = 0xffff_ffff;
/// Whole packet.
const ACCEPT: BpfInstruction = BpfInstruction { code: RETURN, jt: 0, jf: 0, k: 0x4_0000 };
const DROP: BpfInstruction = BpfInstruction { code: RETURN, jt: 0, jf: 0, k: 0 };
const CLIENT_PORT: u32 = 68;
/// Longest packet to the interface's own address that DHCP takes as a frame, IPv4 header included. A longer one may have
/// come in fragments, which the UDP socket sees as one; a shorter one that did is lost, but what link would do that (IPv6
/// asks for 1,280 of every one).
pub const ADDRESSED_LEN_MAX: u32 = 1200;

const fn load(code: u16, k: u32) -> BpfInstruction {
    BpfInstruction { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

/// Longest frame of a DISCOVER that goes to the ring of its own; firmware's have 300 to 600 bytes.
pub const DISCOVER_LEN_MAX: u32 = 900;

/// Which messages a raw socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// What begins an exchange: DISCOVERs, as every client writes them (option 53 first).
    Discovers,
    /// Everything else, and what other servers answer.
    Rest,
}

/// For the raw sockets: offsets count from the Ethernet header (14 bytes; the IP header's length in X). The two parts are of
/// two sockets, so that a storm of DISCOVERs fills the buffer of its own and no other. `everything` also takes relayed and unicast
/// requests: for hosts where another server has port `port`.
///
/// A frame that ends before the first option is dropped by the kernel.
pub fn raw(port: u16, interface: u32, everything: bool, part: Part) -> Vec<BpfInstruction> {
    const DHCP: u32 = 14 + 8;
    let port = u32::from(port);
    let mut program = Vec::new();
    let must = |program: &mut Vec<_>, code, at, value| {
        program.extend([load(code, at), jump(JUMP_EQ, value, 1, 0), DROP]);
    };
    must(&mut program, LD_H_ABS, 12, ETHERTYPE_IPV4);
    must(&mut program, LD_B_ABS, 23, PROTOCOL_UDP);
    must(&mut program, LD_W_ABS, INTERFACE_INDEX, interface);
    // A tagged frame is of another network, whose own interface hears it too. Sockets of every protocol see the tag.
    must(&mut program, LD_W_ABS, VLAN_TAG_PRESENT, 0);
    // A later fragment has no UDP header.
    program.extend([load(LD_H_ABS, 20), jump(JUMP_SET, 0x1fff, 0, 1), DROP]);
    program.extend([load(LDX_IP_HEADER_LEN, 14), load(LD_H_IND, 16)]);
    match part {
        // Another server's answer: its source port.
        Part::Rest => program.extend([
            jump(JUMP_EQ, CLIENT_PORT, 0, 4),
            load(LD_H_IND, 14),
            jump(JUMP_EQ, port, 0, 1),
            ACCEPT,
            DROP,
        ]),
        Part::Discovers => program.extend([jump(JUMP_EQ, CLIENT_PORT, 0, 1), DROP]),
    }
    // The accumulator still holds the destination port.
    program.extend([jump(JUMP_EQ, port, 1, 0), DROP]);
    // Others see no tag: a frame whose network has no interface here comes as if it were for somebody else.
    program.extend([load(LD_W_ABS, PACKET_TYPE), jump(JUMP_EQ, TO_OTHERS, 0, 1), DROP]);
    if everything {
        // What this host asks of others, as a relay does, is no question to us.
        program.extend([jump(JUMP_EQ, FROM_US, 0, 1), DROP]);
    } else {
        must(&mut program, LD_W_ABS, 30, BROADCAST);
        must(&mut program, LD_W_IND, DHCP + 24, 0); // giaddr
    }
    let (discover, other) = match part {
        Part::Discovers => (ACCEPT, DROP),
        Part::Rest => (DROP, ACCEPT),
    };
    program.extend([
        load(LD_W_LEN, 0),
        jump(JUMP_GE, DISCOVER_LEN_MAX + 1, 4, 0),
        load(LD_H_IND, DHCP + 240),
        jump(JUMP_EQ, 0x3501, 0, 2),
        load(LD_H_IND, DHCP + 241),
        jump(JUMP_EQ, 0x0101, 1, 0),
        other,
        discover,
    ]);
    program
}

/// For the raw sockets that hear answers to ARP questions (bound to ARP frames): replies, of any link.
pub fn arp_replies() -> Vec<BpfInstruction> {
    const OPERATION: u32 = 20;
    const REPLY: u32 = 2;
    vec![load(LD_H_ABS, OPERATION), jump(JUMP_EQ, REPLY, 0, 1), ACCEPT, DROP]
}

/// The ports TFTP is served on: the listeners', and one run of data ports.
#[derive(Clone, Debug)]
pub struct TftpPorts {
    /// Listening ports.
    pub listen: Vec<u16>,
    /// The data ports of all cores, without a hole; empty where the listeners send as well.
    pub data: std::ops::Range<u16>,
}

/// For the raw sockets that take TFTP on an interface with this address: what came to it in one plain packet.
pub fn tftp_frames(interface: u32, addr: Ipv4Addr, ports: &TftpPorts) -> Vec<BpfInstruction> {
    let mut program = plain(interface, addr);
    program.push(load(LD_H_ABS, 36));
    for port in &ports.listen {
        program.extend([jump(JUMP_EQ, u32::from(*port), 0, 1), ACCEPT]);
    }
    if !ports.data.is_empty() {
        program.extend([
            jump(JUMP_GE, u32::from(ports.data.start), 0, 2),
            jump(JUMP_GE, u32::from(ports.data.end), 1, 0),
            ACCEPT,
        ]);
    }
    program.push(DROP);
    program
}

/// For the raw socket that takes DHCP sent to this address of an interface: relayed messages, renewals.
pub fn addressed(port: u16, interface: u32, addr: Ipv4Addr) -> Vec<BpfInstruction> {
    let mut program = plain(interface, addr);
    program.extend([load(LD_H_ABS, 36), jump(JUMP_EQ, u32::from(port), 1, 0), DROP]);
    program.extend([load(LD_H_ABS, 16), jump(JUMP_GE, ADDRESSED_LEN_MAX + 1, 0, 1), DROP, ACCEPT]);
    program
}

/// The beginning of a raw socket's program: drops all but UDP that came to this address of the interface in one plain,
/// untagged packet. Offsets count from the Ethernet header.
fn plain(interface: u32, addr: Ipv4Addr) -> Vec<BpfInstruction> {
    let mut program = Vec::new();
    let mut must = |code, at, value| program.extend([load(code, at), jump(JUMP_EQ, value, 1, 0), DROP]);
    must(LD_H_ABS, 12, ETHERTYPE_IPV4);
    must(LD_B_ABS, 14, PLAIN_IPV4);
    must(LD_B_ABS, 23, PROTOCOL_UDP);
    must(LD_W_ABS, PACKET_TYPE, TO_US);
    must(LD_W_ABS, VLAN_TAG_PRESENT, 0);
    must(LD_W_ABS, INTERFACE_INDEX, interface);
    must(LD_W_ABS, 30, addr.to_bits());
    program.extend([load(LD_H_ABS, 20), jump(JUMP_SET, FRAGMENT, 0, 1), DROP]);
    program
}

/// For TFTP's UDP sockets: drops exactly what [`tftp_frames`] takes on these interfaces (index and address).
pub fn tftp_sockets(interfaces: &[(u32, Ipv4Addr)]) -> Vec<BpfInstruction> {
    let mut program = Vec::new();
    drop_plain(&mut program, interfaces);
    program
}

/// The end of a UDP socket's program: drops what came to these interfaces (index and address) in one plain packet.
fn drop_plain(program: &mut Vec<BpfInstruction>, interfaces: &[(u32, Ipv4Addr)]) {
    // Whatever is not plain is for the socket.
    let unless = |program: &mut Vec<_>, code, at, value| {
        program.extend([load(code, at), jump(JUMP_EQ, value, 1, 0), ACCEPT]);
    };
    unless(program, LD_B_ABS, NET_OFFSET, PLAIN_IPV4);
    unless(program, LD_W_ABS, PACKET_TYPE, TO_US);
    for (index, addr) in interfaces {
        program.extend([
            load(LD_W_ABS, INTERFACE_INDEX),
            jump(JUMP_EQ, *index, 0, 3),
            load(LD_W_ABS, NET_OFFSET + 16),
            jump(JUMP_EQ, addr.to_bits(), 0, 1),
            DROP,
        ]);
    }
    program.push(ACCEPT);
}

/// Takes everything: undoes a filter.
pub fn everything() -> Vec<BpfInstruction> {
    vec![ACCEPT]
}

/// Drops everything.
pub fn nothing() -> Vec<BpfInstruction> {
    vec![DROP]
}

/// DHCP's raw sockets of an interface, the first of those that share it: [`Part::Rest`], [`Part::Discovers`], and what
/// [`addressed`] is for, if there is one.
#[derive(Clone, Copy, Debug)]
pub struct DhcpRings {
    /// The server's port.
    pub port: u16,
    /// There are three, not two.
    pub addressed: bool,
}

impl DhcpRings {
    const REST: u32 = 0;
    const DISCOVERS: u32 = 1;
    const ADDRESSED: u32 = 2;

    /// How many there are.
    pub fn count(self) -> u32 {
        Self::ADDRESSED + u32::from(self.addressed)
    }
}

/// Which of the raw sockets that share an interface gets a packet to look at, by their order: DHCP's, then one for each core that
/// TFTP's (ports and cores) are of. What a socket's own filter takes is for that socket; what none takes is for any. Runs for every
/// IPv4 packet of the interface, and before those filters: offsets count from the IP header.
///
/// A data port belongs to the core it is congruent to; a TFTP request goes by its sender, so that its retries and (where the listener
/// sends as well) its acknowledgements meet the same core.
pub fn chooser(dhcp: Option<DhcpRings>, tftp: Option<(&TftpPorts, u32)>) -> Vec<BpfInstruction> {
    let answer = |position| load(RETURN, position);
    let mut program =
        vec![load(LD_B_ABS, 9), jump(JUMP_EQ, PROTOCOL_UDP, 1, 0), answer(0), load(LDX_IP_HEADER_LEN, 0)];
    program.push(load(LD_H_IND, 2));
    if let Some(rings) = dhcp {
        let requests = [
            load(LD_W_ABS, 16),
            jump(JUMP_EQ, BROADCAST, 1, 0),
            answer(if rings.addressed { DhcpRings::ADDRESSED } else { DhcpRings::REST }),
            // As in `raw`, whose sockets see the Ethernet header too.
            load(LD_W_LEN, 0),
            jump(JUMP_GE, DISCOVER_LEN_MAX + 1 - 14, 4, 0),
            load(LD_H_IND, 8 + 240),
            jump(JUMP_EQ, 0x3501, 0, 2),
            load(LD_H_IND, 8 + 241),
            jump(JUMP_EQ, 0x0101, 1, 0),
            answer(DhcpRings::REST),
            answer(DhcpRings::DISCOVERS),
        ];
        program.extend([jump(JUMP_EQ, CLIENT_PORT, 0, 1), answer(DhcpRings::REST)]);
        program.extend([jump(JUMP_EQ, u32::from(rings.port), 1, 0), load(JUMP, requests.len() as u32)]);
        program.extend(requests);
    }
    let first = dhcp.map_or(0, DhcpRings::count);
    // The accumulator still holds the destination port.
    match tftp {
        None => program.push(answer(0)),
        Some((_, 1)) => program.push(answer(first)),
        Some((ports, cores)) => {
            let share = [load(MODULO, cores), load(ADD, first), load(RETURN_A, 0)];
            // A jump that compares reaches 255 instructions far, and so not over any number of ports.
            let mut to_hash = (2 * ports.listen.len() + share.len()) as u32;
            for port in &ports.listen {
                to_hash -= 2;
                program.extend([jump(JUMP_EQ, u32::from(*port), 0, 1), load(JUMP, to_hash)]);
            }
            program.extend(share);
            program.extend([load(LD_W_ABS, 12), load(COPY_TO_X, 0), load(LD_H_ABS, 20), load(ADD_X, 0)]);
            program.extend(share);
        }
    }
    program
}

/// For DHCP's UDP socket: offsets count from the UDP header. Of what is sent to everybody and no relay has touched it takes
/// what came in on the interfaces of `heard`, which have no raw sockets; and it drops what [`addressed`] takes on those of
/// `frames` (index and address).
pub fn udp(heard: &[u32], frames: &[(u32, Ipv4Addr)]) -> Vec<BpfInstruction> {
    let relayed = [load(LD_W_ABS, 8 + 24), jump(JUMP_EQ, 0, 1, 0), ACCEPT]; // giaddr
    let mut everybody = relayed.to_vec();
    everybody.push(load(LD_W_ABS, INTERFACE_INDEX));
    everybody.extend(heard.iter().flat_map(|index| [jump(JUMP_EQ, *index, 0, 1), ACCEPT]));
    everybody.push(DROP);
    let over = load(JUMP, everybody.len() as u32);
    let mut program = vec![load(LD_W_ABS, NET_OFFSET + 16), jump(JUMP_EQ, BROADCAST, 1, 0), over];
    program.extend(everybody);
    program.extend([load(LD_H_ABS, NET_OFFSET + 2), jump(JUMP_GE, ADDRESSED_LEN_MAX + 1, 0, 1), ACCEPT]);
    drop_plain(&mut program, frames);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's interpreter in twenty lines: enough of it for these programs.
    fn accepts(program: &[BpfInstruction], packet: &[u8], network: usize) -> bool {
        run(program, packet, network, Meta::default()) != 0
    }

    /// What the kernel knows besides the bytes.
    #[derive(Clone, Copy, Debug)]
    struct Meta {
        packet_type: u32,
        interface: u32,
        tagged: u32,
    }

    impl Default for Meta {
        fn default() -> Self {
            Self { packet_type: TO_US, interface: 3, tagged: 0 }
        }
    }

    fn run(program: &[BpfInstruction], packet: &[u8], network: usize, meta: Meta) -> u32 {
        let byte = |at: usize| packet.get(at).map(|b| u32::from(*b));
        let number =
            |at: usize, len: usize| (at..at + len).try_fold(0, |value: u32, i| Some(value << 8 | byte(i)?));
        let place = |k: u32| {
            if (NET_OFFSET..ANCILLARY).contains(&k) {
                network + (k - NET_OFFSET) as usize
            } else {
                k as usize
            }
        };
        let (mut a, mut x, mut pc) = (0u32, 0usize, 0usize);
        loop {
            let i = program[pc];
            pc += 1;
            let loaded = match i.code {
                LD_W_ABS if i.k == PACKET_TYPE => Some(meta.packet_type),
                LD_W_ABS if i.k == INTERFACE_INDEX => Some(meta.interface),
                LD_W_ABS if i.k == VLAN_TAG_PRESENT => Some(meta.tagged),
                LD_W_LEN => Some(packet.len() as u32),
                LD_H_ABS => number(place(i.k), 2),
                LD_B_ABS => number(place(i.k), 1),
                LD_W_ABS => number(place(i.k), 4),
                LD_H_IND => number(x + i.k as usize, 2),
                LD_W_IND => number(x + i.k as usize, 4),
                LDX_IP_HEADER_LEN => {
                    let Some(b) = byte(i.k as usize) else { return 0 };
                    x = 4 * (b & 0xf) as usize;
                    Some(a)
                }
                JUMP_EQ => {
                    pc += usize::from(if a == i.k { i.jt } else { i.jf });
                    Some(a)
                }
                JUMP_SET => {
                    pc += usize::from(if a & i.k != 0 { i.jt } else { i.jf });
                    Some(a)
                }
                JUMP_GE => {
                    pc += usize::from(if a >= i.k { i.jt } else { i.jf });
                    Some(a)
                }
                JUMP => {
                    pc += i.k as usize;
                    Some(a)
                }
                COPY_TO_X => {
                    x = a as usize;
                    Some(a)
                }
                ADD_X => Some(a.wrapping_add(x as u32)),
                ADD => Some(a + i.k),
                MODULO => Some(a % i.k),
                RETURN_A => return a,
                RETURN => return i.k,
                code => panic!("unknown instruction {code:#x}"),
            };
            // A load past the end rejects the packet, as in the kernel.
            let Some(loaded) = loaded else { return 0 };
            a = loaded;
        }
    }

    #[derive(Clone, Copy)]
    struct Case {
        ip_options: usize,
        fragment: u16,
        protocol: u8,
        dst: [u8; 4],
        src_port: u16,
        dst_port: u16,
        giaddr: [u8; 4],
        options: [u8; 4],
    }

    const DISCOVER: Case = Case {
        ip_options: 0,
        fragment: 0,
        protocol: 17,
        dst: [255; 4],
        src_port: 68,
        dst_port: 67,
        giaddr: [0; 4],
        options: [53, 1, 1, 255],
    };

    fn frame(case: &Case) -> Vec<u8> {
        let ihl = 20 + case.ip_options;
        let mut frame = vec![0; 14 + ihl + 8 + 244];
        frame[14 + ihl + 8 + 240..].copy_from_slice(&case.options);
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x40 | (ihl / 4) as u8;
        let total_len = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total_len.to_be_bytes());
        frame[20..22].copy_from_slice(&case.fragment.to_be_bytes());
        frame[23] = case.protocol;
        frame[30..34].copy_from_slice(&case.dst);
        let udp = 14 + ihl;
        frame[udp..udp + 2].copy_from_slice(&case.src_port.to_be_bytes());
        frame[udp + 2..udp + 4].copy_from_slice(&case.dst_port.to_be_bytes());
        frame[udp + 8 + 24..udp + 8 + 28].copy_from_slice(&case.giaddr);
        frame
    }

    /// By either raw socket on interface 3, and never by both.
    fn raw_takes(packet: &[u8], everything: bool, meta: Meta) -> bool {
        let by = |part| run(&raw(67, 3, everything, part), packet, 14, meta) != 0;
        assert!(!(by(Part::Discovers) && by(Part::Rest)));
        by(Part::Discovers) || by(Part::Rest)
    }

    fn addressed_takes(packet: &[u8], meta: Meta) -> bool {
        run(&addressed(67, 3, ADDR), packet, 14, meta) != 0
    }

    fn udp_takes(packet: &[u8], heard: &[u32], frames: &[(u32, Ipv4Addr)], meta: Meta) -> bool {
        let udp_at = 14 + 4 * u32::from(packet[14] & 0xf);
        // The UDP socket's filter counts from the UDP header, with the IP header before it.
        let program = udp(heard, frames);
        let shifted: Vec<_> = program
            .iter()
            .map(|i| if i.code == LD_W_ABS && i.k < NET_OFFSET { load(i.code, i.k + udp_at) } else { *i })
            .collect();
        run(&shifted, packet, 14, meta) != 0
    }

    const ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const RRQ: Case = Case { dst: [10, 77, 0, 1], src_port: 2000, dst_port: 69, ..DISCOVER };

    fn ports() -> TftpPorts {
        TftpPorts { listen: vec![69, 6969], data: 50000..50016 }
    }

    #[test]
    fn every_tftp_packet_is_taken_by_exactly_one_of_the_two() {
        let sockets = tftp_sockets(&[(7, Ipv4Addr::new(10, 78, 0, 1)), (3, ADDR)]);
        let frames = tftp_frames(3, ADDR, &ports());
        let mut by_frame = 0;
        for ip_options in [0, 8] {
            for dst in [[10, 77, 0, 1], [10, 77, 0, 9], [255; 4]] {
                for dst_port in [69, 6969, 50000, 50007, 50015] {
                    for interface in [3, 4] {
                        for (packet_type, tagged) in [(0, 0), (1, 0), (3, 0)] {
                            let case = Case { ip_options, dst, dst_port, ..RRQ };
                            let packet = frame(&case);
                            let meta = Meta { packet_type, interface, tagged };
                            // The raw socket is bound to interface 3, and hears nothing of another.
                            let raw = interface == 3 && run(&frames, &packet, 14, meta) != 0;
                            let udp = run(&sockets, &packet, 14, meta) != 0;
                            assert_ne!(raw, udp, "{dst:?} {dst_port} {interface} {packet_type} {tagged}");
                            by_frame += usize::from(raw);
                        }
                    }
                }
            }
        }
        assert_eq!(by_frame, 5, "one address, one interface, no options, every port");
    }

    #[test]
    fn frames_are_taken_of_nothing_but_plain_tftp() {
        let frames = tftp_frames(3, ADDR, &ports());
        let taken = |case: &Case, meta| run(&frames, &frame(case), 14, meta) != 0;
        assert!(taken(&RRQ, Meta::default()));
        assert!(!taken(&RRQ, Meta { tagged: 1, ..Meta::default() }));
        for case in [
            Case { dst_port: 68, ..RRQ },
            Case { dst_port: 49999, ..RRQ },
            Case { dst_port: 50016, ..RRQ },
            Case { protocol: 6, ..RRQ },
            Case { fragment: 0x2000, ..RRQ },
            Case { fragment: 0x0010, ..RRQ },
        ] {
            assert!(!taken(&case, Meta::default()), "{} {}", case.dst_port, case.fragment);
        }
        assert!(!tftp_frames(3, ADDR, &TftpPorts { data: 0..0, ..ports() }).is_empty());
    }

    /// The chooser sees the packet from its IP header on.
    fn choose(chooser: &[BpfInstruction], packet: &[u8]) -> u32 {
        run(chooser, &packet[14..], 0, Meta::default())
    }

    #[test]
    fn a_data_port_belongs_to_its_core_and_a_request_to_its_sender() {
        for (rings, first) in [(None, 0), (Some(DhcpRings { port: 67, addressed: true }), 3)] {
            let chooser = chooser(rings, Some((&ports(), 2)));
            let choose = |case: &Case| choose(&chooser, &frame(case));
            for port in 50000..50016 {
                assert_eq!(choose(&Case { dst_port: port, ..RRQ }), first + u32::from(port) % 2);
            }
            for dst_port in [69, 6969] {
                let one = choose(&Case { dst_port, ..RRQ });
                assert_eq!(one, choose(&Case { dst_port, ..RRQ }));
                let other = choose(&Case { dst_port, src_port: 2001, ..RRQ });
                assert_eq!([one.min(other), one.max(other)], [first, first + 1]);
            }
        }
    }

    #[test]
    fn a_thousand_listeners_are_told_from_data_ports() {
        let ports = TftpPorts { listen: (1000..2000).collect(), data: 50000..50016 };
        let chooser = chooser(Some(DhcpRings { port: 67, addressed: false }), Some((&ports, 2)));
        for dst_port in [1000, 1001, 1254, 1255, 1256, 1998, 1999, 50000, 50001] {
            let of = |src_port| choose(&chooser, &frame(&Case { dst_port, src_port, ..RRQ }));
            let by_sender = of(2000) != of(2001);
            assert_eq!(by_sender, ports.listen.contains(&dst_port), "{dst_port}");
            assert!((2..4).contains(&of(2000)), "{dst_port}");
        }
    }

    #[test]
    fn what_a_socket_takes_is_chosen_for_that_socket() {
        let tftp = ports();
        for (addressed, cores) in [(false, 0), (false, 1), (true, 0), (true, 1), (true, 3)] {
            let tftp = (cores > 0).then_some((&tftp, cores));
            let chooser = chooser(Some(DhcpRings { port: 67, addressed }), tftp);
            let mut filters = vec![raw(67, 3, false, Part::Rest), raw(67, 3, false, Part::Discovers)];
            filters.extend(addressed.then(|| super::addressed(67, 3, ADDR)));
            let first_tftp = filters.len();
            filters.extend(tftp.map(|(ports, _)| tftp_frames(3, ADDR, ports)));
            let mut taken = vec![0; filters.len()];
            for ip_options in [0, 8, 40] {
                for dst in [[255; 4], ADDR.octets(), [10, 77, 0, 9]] {
                    for (src_port, dst_port) in [
                        (68, 67),
                        (67, 67),
                        (67, 68),
                        (2000, 69),
                        (2001, 6969),
                        (2000, 50000),
                        (2000, 50015),
                        (1, 80),
                    ] {
                        for (protocol, giaddr) in [(17, [0; 4]), (17, [10, 88, 0, 1]), (6, [0; 4])] {
                            for options in [[53, 1, 1, 255], [53, 1, 3, 255], [53, 2, 1, 1], [60, 1, 1, 255]]
                            {
                                for (fragment, len) in
                                    [0, 0x2000, 0x4000, 0x0010].into_iter().flat_map(|fragment| {
                                        [42, 60, 281, 282, 298, 600, 900, 901, 1214, 1215, 1500]
                                            .map(|len| (fragment, len))
                                    })
                                {
                                    let mut packet = frame(&Case {
                                        ip_options,
                                        fragment,
                                        protocol,
                                        dst,
                                        src_port,
                                        dst_port,
                                        giaddr,
                                        options,
                                    });
                                    packet.resize(len.max(14 + 20 + ip_options), 0);
                                    let total = (packet.len() - 14) as u16;
                                    packet[16..18].copy_from_slice(&total.to_be_bytes());
                                    let chosen = choose(&chooser, &packet) as usize;
                                    for (at, filter) in filters.iter().enumerate() {
                                        if run(filter, &packet, 14, Meta::default()) == 0 {
                                            continue;
                                        }
                                        let is_its_own = match at < first_tftp {
                                            true => chosen == at,
                                            false => {
                                                (first_tftp..first_tftp + cores as usize).contains(&chosen)
                                            }
                                        };
                                        assert!(is_its_own, "{at} takes what goes to {chosen}: {packet:x?}");
                                        taken[at] += 1;
                                    }
                                }
                            }
                        }
                    }
                }
            }
            assert!(taken.iter().all(|count| *count > 0), "{taken:?}");
        }
    }

    /// Interface 3 has raw sockets and this machine's first address, 4 has none, 5 is not answered on.
    #[test]
    fn every_request_is_taken_by_exactly_one_of_the_two() {
        let mut by_frame = 0;
        for (ip_options, packet_type, interface) in ways_in() {
            for dst in [[255; 4], ADDR.octets(), [10, 77, 0, 9], [10, 77, 0, 255]] {
                for giaddr in [[0; 4], [10, 88, 0, 1]] {
                    // What has no option yet, what has one, and what may have been cut.
                    for len in [28 + 28, 28 + 239, 28 + 244, 1200, 1201, 1500] {
                        for tagged in [0, 1] {
                            let case = Case { ip_options, dst, giaddr, ..DISCOVER };
                            let mut packet = frame(&case);
                            packet.resize(14 + len, 0);
                            packet[16..18].copy_from_slice(&(len as u16).to_be_bytes());
                            // The interface upon this one that has the tag shows its packets to both.
                            let meta = Meta { packet_type, interface, tagged };
                            let everybody = dst == [255; 4] && giaddr == [0; 4];
                            let short = len < 28 + 243 + ip_options;
                            let by_raw = raw_takes(&packet, false, meta);
                            let by_address = addressed_takes(&packet, meta);
                            let by_udp = udp_takes(&packet, &[4], &[(3, ADDR)], Meta { tagged: 0, ..meta });
                            let by_any = u8::from(by_raw) + u8::from(by_address) + u8::from(by_udp);
                            let what = format!("{dst:?} {giaddr:?} {meta:?} {len}");
                            if tagged == 1 {
                                assert!(!by_raw && !by_address, "{what}");
                            } else if len >= 28 + 28 + ip_options {
                                let to_nobody = everybody && (interface == 5 || (interface == 3 && short));
                                assert_eq!(by_any, u8::from(!to_nobody), "{what}");
                            }
                            assert!(everybody || !by_raw, "{what}");
                            by_frame += usize::from(by_address);
                            let of_three = interface == 3 && tagged == 0 && !short;
                            assert_eq!(raw_takes(&packet, true, meta), of_three, "{what}");
                        }
                    }
                }
            }
        }
        assert_eq!(by_frame, 2 * 4, "to one address, plain, of four lengths, with and without a relay");
    }

    #[test]
    fn what_is_for_somebody_else_is_no_question() {
        let offer = Case { src_port: 67, dst_port: 68, dst: [10, 77, 0, 5], ..DISCOVER };
        let relayed = Case { dst: ADDR.octets(), giaddr: [10, 88, 0, 1], ..DISCOVER };
        let meta = Meta { packet_type: TO_OTHERS, ..Meta::default() };
        for everything in [false, true] {
            assert!(!raw_takes(&frame(&DISCOVER), everything, meta));
            assert!(raw_takes(&frame(&offer), everything, meta), "another server's answer");
        }
        assert!(!addressed_takes(&frame(&relayed), meta));
    }

    fn ways_in() -> impl Iterator<Item = (usize, u32, u32)> {
        [0, 4, 40].into_iter().flat_map(|options| {
            [0, 1]
                .into_iter()
                .flat_map(move |kind| [3, 4, 5].into_iter().map(move |index| (options, kind, index)))
        })
    }

    #[test]
    fn a_hundred_interfaces_are_told_apart() {
        let frames: Vec<_> = (1..=200).map(|index| (index, ADDR)).collect();
        let heard: Vec<u32> = (201..=400).collect();
        let relayed = frame(&Case { dst: ADDR.octets(), giaddr: [10, 88, 0, 1], ..DISCOVER });
        for interface in [1, 100, 200, 201, 400, 401] {
            let meta = Meta { interface, ..Meta::default() };
            assert_eq!(udp_takes(&relayed, &heard, &frames, meta), interface > 200);
            let heard_by_udp = udp_takes(&frame(&DISCOVER), &heard, &frames, meta);
            assert_eq!(heard_by_udp, (201..=400).contains(&interface), "{interface}");
        }
    }

    #[test]
    fn a_relayed_message_in_pieces_is_no_frame_and_whole_the_sockets_when_it_is_long() {
        let relayed = Case { dst: ADDR.octets(), giaddr: [10, 88, 0, 1], ..DISCOVER };
        for fragment in [0x2000, 0x2010, 0x0010] {
            assert!(
                !addressed_takes(&frame(&Case { fragment, ..relayed }), Meta::default()),
                "{fragment:#x}"
            );
        }
        assert!(addressed_takes(&frame(&Case { fragment: 0x4000, ..relayed }), Meta::default()));
        // Put together by the kernel it has no mark of that any more.
        let mut whole = frame(&relayed);
        assert!(!udp_takes(&whole, &[], &[(3, ADDR)], Meta::default()));
        whole.resize(14 + 1201, 0);
        whole[16..18].copy_from_slice(&1201u16.to_be_bytes());
        assert!(udp_takes(&whole, &[], &[(3, ADDR)], Meta::default()));
    }

    #[test]
    fn only_a_discover_is_kept_apart() {
        let discovers = |options| {
            let packet = frame(&Case { options, ..DISCOVER });
            accepts(&raw(67, 3, false, Part::Discovers), &packet, 14)
        };
        assert!(discovers([53, 1, 1, 255]));
        for options in
            [[53, 1, 3, 255], [53, 1, 8, 255], [53, 2, 1, 1], [60, 1, 1, 255], [0, 53, 1, 1], [255, 0, 0, 0]]
        {
            assert!(!discovers(options), "{options:?}");
            let packet = frame(&Case { options, ..DISCOVER });
            assert!(raw_takes(&packet, false, Meta::default()), "{options:?}");
        }
        let mut long = frame(&DISCOVER);
        long.resize(DISCOVER_LEN_MAX as usize + 1, 0);
        assert!(
            !accepts(&raw(67, 3, false, Part::Discovers), &long, 14)
                && accepts(&raw(67, 3, false, Part::Rest), &long, 14)
        );
        let offer = Case { src_port: 67, dst_port: 68, ..DISCOVER };
        assert!(!accepts(&raw(67, 3, false, Part::Discovers), &frame(&offer), 14));
    }

    #[test]
    fn beside_a_server_on_this_host_its_answers_are_heard_and_its_questions_are_not() {
        let offer = Case { src_port: 67, dst_port: 68, dst: [10, 77, 0, 5], ..DISCOVER };
        let request = Case { options: [53, 1, 3, 255], giaddr: [10, 88, 0, 1], ..DISCOVER };
        let taken =
            |case: &Case, packet_type| raw_takes(&frame(case), true, Meta { packet_type, ..Meta::default() });
        for packet_type in [0, 1, FROM_US] {
            assert!(taken(&offer, packet_type));
            assert_eq!(taken(&DISCOVER, packet_type), packet_type != FROM_US);
            assert_eq!(taken(&request, packet_type), packet_type != FROM_US);
        }
    }

    #[test]
    fn other_servers_answers_are_heard_and_our_images_are_not() {
        let raw_takes =
            |case: &Case, everything| super::tests::raw_takes(&frame(case), everything, Meta::default());
        let offer = Case { src_port: 67, dst_port: 68, dst: [10, 77, 0, 5], ..DISCOVER };
        assert!(raw_takes(&offer, false) && raw_takes(&offer, true));
        for case in [
            Case { dst_port: 69, ..DISCOVER },
            Case { protocol: 6, ..DISCOVER },
            Case { fragment: 0x00b9, ..DISCOVER },
            Case { dst_port: 68, src_port: 4433, ..DISCOVER },
        ] {
            assert!(!raw_takes(&case, false) && !raw_takes(&case, true));
        }
        // The first fragment still has its header.
        assert!(raw_takes(&Case { fragment: 0x2000, ..DISCOVER }, false));
    }

    #[test]
    fn a_short_frame_is_dropped_by_the_kernel() {
        let whole = frame(&DISCOVER);
        for len in 0..14 + 20 + 8 + 28 {
            assert!(!accepts(&raw(67, 3, false, Part::Rest), &whole[..len], 14), "{len}");
        }
    }
}

//! Classic BPF programs that split DHCP between the raw socket and the UDP socket without a gap or an overlap.
//!
//! The raw socket takes what a UDP socket cannot answer: requests to 255.255.255.255 that no relay has touched.
//! The UDP socket's own filter drops exactly those, and takes the rest (relayed, unicast, renewals). Where another
//! DHCP server owns port 67 there is no UDP socket, and the raw socket takes everything. It also hears what other
//! servers answer (port 67 to port 68).

use crate::sys::packet::BpfInstruction;

// linux/bpf_common.h and linux/filter.h.
const LD_H_ABS: u16 = 0x28;
const LD_B_ABS: u16 = 0x30;
const LD_W_ABS: u16 = 0x20;
const LD_H_IND: u16 = 0x48;
const LD_W_IND: u16 = 0x40;
const LDX_IP_HEADER_LEN: u16 = 0xb1;
const JUMP_EQ: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// `SKF_NET_OFF`: offsets from here count from the IP header whatever layer the socket sees.
const NET_OFFSET: u32 = 0xfff0_0000;

const ETHERTYPE_IPV4: u32 = 0x0800;
const PROTOCOL_UDP: u32 = 17;
const BROADCAST: u32 = 0xffff_ffff;
/// Whole packet.
const ACCEPT: BpfInstruction = BpfInstruction { code: RETURN, jt: 0, jf: 0, k: 0x4_0000 };
const DROP: BpfInstruction = BpfInstruction { code: RETURN, jt: 0, jf: 0, k: 0 };
const CLIENT_PORT: u32 = 68;

const fn load(code: u16, k: u32) -> BpfInstruction {
    BpfInstruction { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

/// For the raw socket: offsets count from the Ethernet header (14 bytes; the IP header's length in X).
/// `everything` also takes relayed and unicast requests: for hosts where another server has port `port`.
pub fn raw(port: u16, everything: bool) -> Vec<BpfInstruction> {
    let port = u32::from(port);
    let mut program = vec![
        load(LD_H_ABS, 12),
        jump(JUMP_EQ, ETHERTYPE_IPV4, 0, 7), // -> DROP at 9
        load(LD_B_ABS, 23),
        jump(JUMP_EQ, PROTOCOL_UDP, 0, 5),
        load(LD_H_ABS, 20),
        jump(JUMP_SET, 0x1fff, 3, 0), // a later fragment has no UDP header
        load(LDX_IP_HEADER_LEN, 14),
        load(LD_H_IND, 16), // destination port
        jump(JUMP_EQ, CLIENT_PORT, 2, 1),
        DROP,
        jump(JUMP_EQ, port, 3, 4), // -> server part at 14, or DROP at 15
        load(LD_H_IND, 14),        // another server's answer: its source port
        jump(JUMP_EQ, port, 0, 2),
        ACCEPT,
    ];
    if everything {
        program.extend([ACCEPT, DROP]);
    } else {
        program.extend([
            jump(JUMP_EQ, port, 1, 0), // from 10: the accumulator still holds the destination port
            DROP,
            load(LD_W_ABS, 30),
            jump(JUMP_EQ, BROADCAST, 0, 2),
            load(LD_W_IND, 14 + 8 + 24), // giaddr
            jump(JUMP_EQ, 0, 1, 0),
            DROP,
            ACCEPT,
        ]);
    }
    program
}

/// For the UDP socket: offsets count from the UDP header. Drops exactly what [`raw`] takes.
pub fn udp() -> Vec<BpfInstruction> {
    vec![
        load(LD_W_ABS, NET_OFFSET.wrapping_add(16)),
        jump(JUMP_EQ, BROADCAST, 0, 2),
        load(LD_W_ABS, 8 + 24), // giaddr
        jump(JUMP_EQ, 0, 1, 0),
        ACCEPT,
        DROP,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's interpreter in twenty lines: enough of it for these programs.
    fn accepts(program: &[BpfInstruction], packet: &[u8], network: usize) -> bool {
        let byte = |at: usize| packet.get(at).map(|b| u32::from(*b));
        let number =
            |at: usize, len: usize| (at..at + len).try_fold(0, |value: u32, i| Some(value << 8 | byte(i)?));
        let place = |k: u32| if k >= NET_OFFSET { network + (k - NET_OFFSET) as usize } else { k as usize };
        let (mut a, mut x, mut pc) = (0u32, 0usize, 0usize);
        loop {
            let i = program[pc];
            pc += 1;
            let loaded = match i.code {
                LD_H_ABS => number(place(i.k), 2),
                LD_B_ABS => number(place(i.k), 1),
                LD_W_ABS => number(place(i.k), 4),
                LD_H_IND => number(x + i.k as usize, 2),
                LD_W_IND => number(x + i.k as usize, 4),
                LDX_IP_HEADER_LEN => {
                    let Some(b) = byte(i.k as usize) else { return false };
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
                RETURN => return i.k != 0,
                code => panic!("unknown instruction {code:#x}"),
            };
            // A load past the end rejects the packet, as in the kernel.
            let Some(loaded) = loaded else { return false };
            a = loaded;
        }
    }

    struct Case {
        ip_options: usize,
        fragment: u16,
        protocol: u8,
        dst: [u8; 4],
        src_port: u16,
        dst_port: u16,
        giaddr: [u8; 4],
    }

    const DISCOVER: Case = Case {
        ip_options: 0,
        fragment: 0,
        protocol: 17,
        dst: [255; 4],
        src_port: 68,
        dst_port: 67,
        giaddr: [0; 4],
    };

    fn frame(case: &Case) -> Vec<u8> {
        let ihl = 20 + case.ip_options;
        let mut frame = vec![0; 14 + ihl + 8 + 240];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x40 | (ihl / 4) as u8;
        frame[20..22].copy_from_slice(&case.fragment.to_be_bytes());
        frame[23] = case.protocol;
        frame[30..34].copy_from_slice(&case.dst);
        let udp = 14 + ihl;
        frame[udp..udp + 2].copy_from_slice(&case.src_port.to_be_bytes());
        frame[udp + 2..udp + 4].copy_from_slice(&case.dst_port.to_be_bytes());
        frame[udp + 8 + 24..udp + 8 + 28].copy_from_slice(&case.giaddr);
        frame
    }

    fn raw_takes(case: &Case, everything: bool) -> bool {
        accepts(&raw(67, everything), &frame(case), 14)
    }

    fn udp_takes(case: &Case) -> bool {
        let frame = frame(case);
        let udp_at = 34 + case.ip_options;
        // The UDP socket's filter counts from the UDP header, with the IP header before it.
        let program = udp();
        let shifted: Vec<_> =
            program
                .iter()
                .map(|i| {
                    if i.code == LD_W_ABS && i.k < NET_OFFSET {
                        load(i.code, i.k + udp_at as u32)
                    } else {
                        *i
                    }
                })
                .collect();
        accepts(&shifted, &frame, 14)
    }

    #[test]
    fn every_request_is_taken_by_exactly_one_of_the_two() {
        for ip_options in [0, 4, 40] {
            for dst in [[255; 4], [10, 77, 0, 1], [10, 77, 0, 255]] {
                for giaddr in [[0; 4], [10, 88, 0, 1]] {
                    let case = Case { ip_options, dst, giaddr, ..DISCOVER };
                    assert_ne!(raw_takes(&case, false), udp_takes(&case), "{dst:?} {giaddr:?}");
                    assert!(raw_takes(&case, true));
                }
            }
        }
        assert!(raw_takes(&DISCOVER, false));
    }

    #[test]
    fn other_servers_answers_are_heard_and_our_images_are_not() {
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
            assert!(!accepts(&raw(67, false), &whole[..len], 14), "{len}");
        }
    }
}

//! A receiver that costs nothing: each TCP segment with data that arrives at an interface is turned, in the kernel, into
//! its own acknowledgement and sent back. What the server then pays is its transmit cost alone, and no payload is copied
//! for a receiver.
//!
//! It stands on the far end of a veth pair. Connections are made by ordinary sockets there: SYN, SYN-ACK, resets and
//! segments without data pass. From then on the socket hears nothing more of its peer's stream, which is acknowledged
//! as fast as it comes, whole (segments that offload has not cut yet in one piece).

use std::io;

use crate::sys::SysError;
use crate::sys::bpf::{
    Assembler, Counters, FRAME, Function, If, Instruction, Link, Op, Program, R0, R1, R2, R3, R4, R5, R6, R7,
    R8, R9, Width,
};

/// linux/pkt_cls.h TC_ACT_SHOT: drop.
const DROP: i32 = 2;
/// linux/bpf.h TCX_NEXT: let it pass, as if the program were not there.
const PASS: i32 = -1;
/// Ethernet, IPv4 and TCP headers without options: what is read, and what is sent.
const HEAD_LEN: i32 = 14 + 20 + 20;
/// Where the headers lie on the program's stack, so that IP's and TCP's words are aligned (Ethernet's 14 bytes are not a
/// multiple of four), and where single fields of them are.
const HEAD: i16 = -58;
const ETHER_TO: i16 = HEAD;
const ETHER_FROM: i16 = HEAD + 6;
const ETHER_TYPE: i16 = HEAD + 12;
const IP: i16 = HEAD + 14;
const IP_TOTAL: i16 = IP + 2;
const IP_ID: i16 = IP + 4;
const IP_FRAGMENT: i16 = IP + 6;
const IP_TTL: i16 = IP + 8;
const IP_PROTOCOL: i16 = IP + 9;
const IP_CHECKSUM: i16 = IP + 10;
const IP_FROM: i16 = IP + 12;
const IP_TO: i16 = IP + 16;
const TCP: i16 = IP + 20;
const TCP_FROM: i16 = TCP;
const TCP_TO: i16 = TCP + 2;
const TCP_SEQ: i16 = TCP + 4;
const TCP_ACK: i16 = TCP + 8;
const TCP_LEN: i16 = TCP + 12;
const TCP_FLAGS: i16 = TCP + 13;
const TCP_WINDOW: i16 = TCP + 14;
const TCP_CHECKSUM: i16 = TCP + 16;
const TCP_URGENT: i16 = TCP + 18;
const FIN: i32 = 0x01;
const SYN_OR_RST: i32 = 0x02 | 0x04;
const ACK: i32 = 0x10;
const IPPROTO_TCP: i32 = 6;
/// The acknowledgement's IP packet.
const ACK_LEN: u16 = 20 + 20;
/// The loopback's index in every network namespace.
const LOOPBACK: u32 = 1;
/// Counters, by index.
const BYTES: usize = 0;
const SEGMENTS: usize = 1;

/// What was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sunk {
    /// Bytes of payload. What was sent twice counts twice.
    pub bytes: u64,
    /// Segments, uncut ones as one.
    pub segments: u64,
}

/// The sink on one interface, until it is dropped.
#[derive(Debug)]
pub struct Sink {
    counters: Counters,
    _link: Link,
}

impl Sink {
    /// Acknowledges what arrives on interface `index` of this network namespace from TCP port `port`, whoever's it is.
    ///
    /// The interface must be one end of a veth pair. Checksums are left as a local sender leaves them, for the card to
    /// complete: a frame that has been on a real wire would be answered with a wrong one.
    ///
    /// # Errors
    /// Without CAP_BPF and CAP_NET_ADMIN, or where the kernel has no BPF or no TCX links (before 6.6).
    pub fn open(index: u32, port: u16) -> Result<Self, SysError> {
        let counters = Counters::new(2)?;
        let program = Program::load("tcp_sink", &code(&counters, index, port))?;
        // The kernel holds the program for as long as it is attached.
        Ok(Self { _link: program.attach_ingress(index)?, counters })
    }

    /// Whether this process may open one here, tried where nothing is ever acknowledged: nobody sends from port 0.
    ///
    /// # Errors
    /// As [`Sink::open`].
    pub fn check() -> Result<(), SysError> {
        Self::open(LOOPBACK, 0).map(drop)
    }

    /// What was acknowledged so far.
    pub fn read(&self) -> io::Result<Sunk> {
        let values = self.counters.read()?;
        Ok(Sunk { bytes: values[BYTES], segments: values[SEGMENTS] })
    }
}

/// As a load of that width finds it in a header.
const fn half(value: u16) -> i32 {
    value.to_be() as i32
}

/// The whole program.
fn code(counters: &Counters, index: u32, port: u16) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    let (pass, drop) = (asm.label(), asm.label());
    asm.register(Op::Move, R6, R1);
    // struct __sk_buff begins with the frame's length, segments that are not cut yet included.
    asm.load(Width::Word, R7, R6, 0);
    asm.jump(If::Less, R7, HEAD_LEN, pass);
    asm.number(Op::Move, R2, 0);
    asm.register(Op::Move, R3, FRAME);
    asm.number(Op::Add, R3, HEAD.into());
    asm.number(Op::Move, R4, HEAD_LEN);
    asm.call(Function::LoadBytes);
    asm.jump(If::NotEqual, R0, 0, pass);

    // IPv4 without options, not a fragment, TCP from the server.
    for (width, at, wanted) in [
        (Width::Half, ETHER_TYPE, half(0x0800)),
        (Width::Byte, IP, 0x45),
        (Width::Byte, IP_PROTOCOL, IPPROTO_TCP),
        (Width::Half, TCP_FROM, half(port)),
    ] {
        asm.load(width, R0, FRAME, at);
        asm.jump(If::NotEqual, R0, wanted, pass);
    }
    asm.load(Width::Half, R0, FRAME, IP_FRAGMENT);
    asm.jump(If::AnyBit, R0, half(0x3fff), pass);
    asm.load(Width::Byte, R9, FRAME, TCP_FLAGS);
    asm.jump(If::AnyBit, R9, SYN_OR_RST, pass);

    // R7: bytes of payload. R8: what they and a FIN take of the sequence numbers.
    asm.load(Width::Byte, R8, FRAME, TCP_LEN);
    asm.number(Op::ShiftRight, R8, 4);
    asm.number(Op::ShiftLeft, R8, 2);
    asm.number(Op::Sub, R7, 14 + 20);
    asm.register(Op::Sub, R7, R8);
    asm.register(Op::Move, R8, R7);
    asm.number(Op::And, R9, FIN);
    asm.register(Op::Add, R8, R9);
    asm.jump(If::AtMostSigned, R8, 0, pass);

    // Back to where it came from.
    for step in [0, 2, 4] {
        swap(&mut asm, Width::Half, ETHER_TO + step, ETHER_FROM + step);
    }
    swap(&mut asm, Width::Word, IP_FROM, IP_TO);
    swap(&mut asm, Width::Half, TCP_FROM, TCP_TO);
    asm.store_number(Width::Half, FRAME, IP, half(0x4500));
    asm.store_number(Width::Half, FRAME, IP_TOTAL, half(ACK_LEN));
    asm.store_number(Width::Half, FRAME, IP_ID, 0);
    asm.store_number(Width::Half, FRAME, IP_FRAGMENT, half(0x4000));
    asm.store_number(Width::Byte, FRAME, IP_TTL, 64);
    asm.store_number(Width::Half, FRAME, IP_CHECKSUM, 0);
    asm.number(Op::Move, R0, 0);
    sum(&mut asm, IP, 10);
    asm.number(Op::Xor, R0, 0xffff);
    asm.store(Width::Half, FRAME, IP_CHECKSUM, R0);

    // Everything up to this segment's end, and room for as much as the scale allows. Options are left out: Linux takes
    // a segment without the time stamps that were agreed upon.
    asm.load(Width::Word, R1, FRAME, TCP_SEQ);
    asm.network_order(R1);
    asm.register(Op::Add, R1, R8);
    asm.network_order(R1);
    asm.load(Width::Word, R2, FRAME, TCP_ACK);
    asm.store(Width::Word, FRAME, TCP_SEQ, R2);
    asm.store(Width::Word, FRAME, TCP_ACK, R1);
    asm.store_number(Width::Byte, FRAME, TCP_LEN, 0x50);
    asm.store_number(Width::Byte, FRAME, TCP_FLAGS, ACK);
    asm.store_number(Width::Half, FRAME, TCP_WINDOW, 0xffff);
    asm.store_number(Width::Half, FRAME, TCP_URGENT, 0);
    // The sum of the pseudo header (RFC 9293, 3.1), not complemented: the frame is still one whose checksum the card is
    // to complete, which on veth nobody does or looks for.
    asm.number(Op::Move, R0, half(IPPROTO_TCP as u16) + half(20));
    sum(&mut asm, IP_FROM, 4);
    asm.store(Width::Half, FRAME, TCP_CHECKSUM, R0);

    asm.register(Op::Move, R1, R6);
    asm.number(Op::Move, R2, HEAD_LEN);
    asm.number(Op::Move, R3, 0);
    asm.call(Function::ChangeTail);
    asm.jump(If::NotEqual, R0, 0, drop);
    asm.register(Op::Move, R1, R6);
    asm.number(Op::Move, R2, 0);
    asm.register(Op::Move, R3, FRAME);
    asm.number(Op::Add, R3, HEAD.into());
    asm.number(Op::Move, R4, HEAD_LEN);
    asm.number(Op::Move, R5, 0);
    asm.call(Function::StoreBytes);
    asm.jump(If::NotEqual, R0, 0, drop);
    asm.count(counters, BYTES, R7, R1);
    asm.number(Op::Move, R8, 1);
    asm.count(counters, SEGMENTS, R8, R1);
    asm.number(Op::Move, R1, index as i32);
    asm.number(Op::Move, R2, 0);
    asm.call(Function::Redirect);
    asm.exit();

    asm.place(pass);
    asm.number(Op::Move, R0, PASS);
    asm.exit();
    // Half rewritten, it must not be received. The server sends it again.
    asm.place(drop);
    asm.number(Op::Move, R0, DROP);
    asm.exit();
    asm.finish()
}

/// Exchanges two fields.
fn swap(asm: &mut Assembler, width: Width, one: i16, other: i16) {
    asm.load(width, R1, FRAME, one);
    asm.load(width, R2, FRAME, other);
    asm.store(width, FRAME, one, R2);
    asm.store(width, FRAME, other, R1);
}

/// Adds so many 16-bit fields to R0, as the Internet checksum does (RFC 1071): in any byte order.
fn sum(asm: &mut Assembler, first: i16, count: i16) {
    for field in 0..count {
        asm.load(Width::Half, R1, FRAME, first + 2 * field);
        asm.register(Op::Add, R0, R1);
    }
    // The second time for the carry of the first.
    for _ in 0..2 {
        asm.register(Op::Move, R1, R0);
        asm.number(Op::ShiftRight, R1, 16);
        asm.number(Op::And, R0, 0xffff);
        asm.register(Op::Add, R0, R1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 4433;
    const REDIRECTED: i32 = 7;

    /// A segment of 10.0.0.1:4433 to 10.0.0.2:50000 with time stamps: sequence number 0xffff_fff0, acknowledging 77.
    fn segment(flags: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        let total = (20 + 32 + payload) as u16;
        frame.extend([0x45, 0, total.to_be_bytes()[0], total.to_be_bytes()[1], 0, 9, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(PORT.to_be_bytes());
        frame.extend(50_000u16.to_be_bytes());
        frame.extend(0xffff_fff0u32.to_be_bytes());
        frame.extend(77u32.to_be_bytes());
        frame.extend([0x80, flags, 1, 2, 3, 4, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        frame.extend(std::iter::repeat_n(0xaa, payload));
        frame
    }

    fn internet_sum(bytes: &[u8]) -> u16 {
        let sum: u32 =
            bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        let folded = (sum & 0xffff) + (sum >> 16);
        ((folded & 0xffff) + (folded >> 16)) as u16
    }

    fn program() -> (Counters, Program) {
        let counters = Counters::new(2).expect("this test needs root and a kernel with BPF");
        let program = Program::load("tcp_sink", &code(&counters, 1, PORT)).expect("the verifier agrees");
        (counters, program)
    }

    #[test]
    fn a_segment_becomes_its_acknowledgement() {
        let (counters, program) = program();
        let (verdict, ack) = program.run(&segment(0x18, 100)).unwrap();
        assert_eq!((verdict, ack.len()), (REDIRECTED, 54));
        assert_eq!(ack[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0], "back to its sender");
        let ip = &ack[14..34];
        assert_eq!(ip[..10], [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
        assert_eq!(ip[12..], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(internet_sum(ip), 0xffff, "the header's checksum is right");
        let tcp = &ack[34..];
        assert_eq!(tcp[..4], [195, 80, 17, 81], "ports exchanged");
        assert_eq!(tcp[4..8], 77u32.to_be_bytes());
        assert_eq!(tcp[8..12], 0xffff_fff0u32.wrapping_add(100).to_be_bytes(), "past the wrap");
        assert_eq!(tcp[12..16], [0x50, 0x10, 0xff, 0xff]);
        let pseudo = [10, 0, 0, 2, 10, 0, 0, 1, 0, 6, 0, 20];
        assert_eq!(tcp[16..18], internet_sum(&pseudo).to_be_bytes(), "left for the card to complete");
        assert_eq!(counters.read().unwrap(), [100, 1]);
    }

    #[test]
    fn the_end_of_a_stream_takes_one_number_and_no_byte() {
        let (counters, program) = program();
        let (verdict, ack) = program.run(&segment(0x11, 0)).unwrap();
        assert_eq!((verdict, &ack[42..46]), (REDIRECTED, &0xffff_fff1u32.to_be_bytes()[..]));
        assert_eq!(counters.read().unwrap(), [0, 1]);
    }

    #[test]
    fn everything_else_passes_as_it_is() {
        let (counters, program) = program();
        let changed = |at: usize, value: u8| {
            let mut frame = segment(0x18, 100);
            frame[at] = value;
            frame
        };
        for (frame, what) in [
            (segment(0x12, 0), "SYN-ACK"),
            (segment(0x10, 0), "no data"),
            (segment(0x04, 0), "reset"),
            (segment(0x14, 100), "reset with data"),
            (changed(13, 6), "ARP"),
            (changed(14, 0x46), "IP options"),
            (changed(20, 0x20), "first fragment"),
            (changed(21, 0x01), "later fragment"),
            (changed(23, 17), "UDP"),
            (changed(34, 0), "another port"),
            (segment(0x18, 100)[..40].to_vec(), "cut short"),
        ] {
            assert_eq!(program.run(&frame).unwrap(), (PASS, frame), "{what}");
        }
        let mut frame = segment(0x18, 4);
        frame[46] = 0xf0;
        assert_eq!(program.run(&frame).unwrap(), (PASS, frame), "a header longer than its frame");
        assert_eq!(counters.read().unwrap(), [0, 0]);
    }
}

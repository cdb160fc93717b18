//! A receiver that costs next to nothing: each TCP segment with data that comes to an interface is dropped there, in the kernel,
//! and its acknowledgement sent back. What the server then pays is its transmit cost alone, and no payload is copied for a
//! receiver.
//!
//! It stands on the far end of a veth pair. Connections are made by ordinary sockets there: SYN, SYN-ACK, resets and
//! segments without data pass. From then on the socket hears nothing more of its peer's stream, which is acknowledged
//! as fast as it comes, whole (segments that offload has not cut yet in one piece).
//!
//! Three parts of the kernel make one acknowledgement, one after the other and before the server's send goes on. A program on what
//! comes in (TCX) tells what is to be acknowledged, and marks the segment. A rule of nftables drops what is marked and answers with a
//! reset, which is a frame of its own, made for it. A program on what leaves turns that into the acknowledgement. The segment itself
//! cannot be turned into it: a program that shortens a frame has the kernel copy all of it first (net/core/filter.c,
//! `__bpf_skb_change_tail`), and pages that a zero-copy sender lent are copied before anybody receives them.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::find_programs;
use crate::sys::SysError;
use crate::sys::bpf::{
    Assembler, FRAME, Function, If, Instruction, Label, Link, Numbers, Op, Program, R0, R1, R2, R3, R4, R5,
    R6, R7, R8, R9, Width,
};

/// linux/bpf.h TCX_NEXT: let it pass, as if the program were not there.
const PASS: i32 = -1;
/// Ethernet, IPv4 and TCP headers without options: what is read, and what is sent.
const HEAD_LEN: i32 = 14 + 20 + 20;
/// Where the headers lie on the program's stack, so that IP's and TCP's words are aligned (Ethernet's 14 bytes are not a
/// multiple of four), and where single fields of them are.
const HEAD: i16 = -58;
const ETHER_TYPE: i16 = HEAD + 12;
const IP: i16 = HEAD + 14;
const IP_FRAGMENT: i16 = IP + 6;
const IP_PROTOCOL: i16 = IP + 9;
const TCP: i16 = IP + 20;
const TCP_FROM: i16 = TCP;
const TCP_TO: i16 = TCP + 2;
const TCP_SEQ: i16 = TCP + 4;
const TCP_ACK: i16 = TCP + 8;
const TCP_LEN: i16 = TCP + 12;
const TCP_FLAGS: i16 = TCP + 13;
const TCP_WINDOW: i16 = TCP + 14;
const FIN: i32 = 0x01;
const SYN_OR_RST: i32 = 0x02 | 0x04;
const ACK: i32 = 0x10;
const IPPROTO_TCP: i32 = 6;
const RST: i32 = 0x04;
/// `mark` in linux/bpf.h `struct __sk_buff`, and what is put there.
const FRAME_MARK: i16 = 8;
const MARK: u32 = 0x5349_4e4b;
/// Notes of what is to be acknowledged: one for each CPU, the number and whether there is one in 32 bits each. More CPUs share them:
/// a CPU that overwrites another one's note has an acknowledgement lost, and the next one make up for it.
const NOTES: usize = 1024;
const NOTE_SET: i16 = 4;
/// The loopback's index in every network namespace.
const LOOPBACK: u32 = 1;
/// Counters, by index.
const BYTES: usize = 0;
const SEGMENTS: usize = 1;

/// What came, and was acknowledged.
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
    counters: Numbers,
    _links: [Link; 2],
    _rule: Rule,
}

impl Sink {
    /// Acknowledges what arrives on interface `index` of this network namespace from TCP port `port`, whoever's it is.
    ///
    /// The interface must be one end of a veth pair. Checksums are left as a local sender leaves them, for the card to
    /// complete: a frame that has been on a real wire would be answered with a wrong one.
    ///
    /// # Errors
    /// Without CAP_BPF and CAP_NET_ADMIN, where the kernel has no BPF or no TCX links (before 6.6), or no nftables with `reject`
    /// for an interface, and where `nft` is not installed.
    pub fn open(index: u32, interface: &str, port: u16) -> Result<Self, SysError> {
        let (counters, _links) = attach(index, port)?;
        Ok(Self { counters, _links, _rule: Rule::add(interface)? })
    }

    /// Whether this process may open one here, tried where nothing is ever acknowledged: nobody sends from port 0.
    ///
    /// # Errors
    /// As [`Sink::open`].
    pub fn check() -> Result<(), SysError> {
        attach(LOOPBACK, 0)?;
        nft(&["--check"], &rule("lo"))
    }

    /// What was acknowledged so far.
    pub fn read(&self) -> io::Result<Sunk> {
        let values = self.counters.read()?;
        Ok(Sunk { bytes: values[BYTES], segments: values[SEGMENTS] })
    }
}

/// The rule that answers what is marked, until it is dropped.
#[derive(Debug)]
struct Rule {
    table: String,
}

impl Rule {
    fn add(interface: &str) -> Result<Self, SysError> {
        nft(&[], &rule(interface))?;
        Ok(Self { table: table(interface) })
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        // Where that fails, or nobody gets here, it stays and answers nothing, since nobody marks frames any more; whoever looks finds a
        // packet filter, and the next sink on an interface of this name takes its place.
        let _ = nft(&[], &format!("delete table netdev {}", self.table));
    }
}

fn table(interface: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("bootstorm_sink_{}", interface.chars().map(plain).collect::<String>())
}

fn rule(interface: &str) -> String {
    let table = table(interface);
    format!(
        "table netdev {table}\ndelete table netdev {table}\n\
         table netdev {table} {{ chain ingress {{ type filter hook ingress device \"{interface}\" priority 0; \
         meta mark {MARK} reject with tcp reset; }}; }}"
    )
}

/// Has `nft` do what `text` says.
fn nft(options: &[&str], text: &str) -> Result<(), SysError> {
    let failed = |error| SysError::new("answer segments by nftables (`nft`, package nftables)", error);
    let program = find_programs("nft").into_iter().next().unwrap_or_else(|| "nft".into());
    let mut command = Command::new(program);
    command.args(options).args(["--file", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    // What it does not read it complains of.
    let _ = child.stdin.take().map(|mut to| to.write_all(text.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(failed(io::Error::other(line.to_owned())))
}

/// Both programs, and what was acknowledged. The kernel holds a program for as long as it is attached.
fn attach(index: u32, port: u16) -> Result<(Numbers, [Link; 2]), SysError> {
    let (counters, notes) = (Numbers::new(2)?, Numbers::new(NOTES)?);
    let heard = Program::load("tcp_sink_heard", &heard(&counters, &notes, port))?;
    let answer = Program::load("tcp_sink_answer", &answer(&notes, port))?;
    // First who turns resets into acknowledgements: a reset would end a connection.
    Ok((counters, [answer.attach_egress(index)?, heard.attach_ingress(index)?]))
}

/// As a load of that width finds it in a header.
const fn half(value: u16) -> i32 {
    value.to_be() as i32
}

/// The beginning of both programs, the frame in R6: its headers onto the stack if they are IPv4 without options, not a fragment, and
/// TCP.
fn read_headers(asm: &mut Assembler, pass: Label) {
    asm.register(Op::Move, R1, R6);
    asm.number(Op::Move, R2, 0);
    asm.register(Op::Move, R3, FRAME);
    asm.number(Op::Add, R3, HEAD.into());
    asm.number(Op::Move, R4, HEAD_LEN);
    asm.call(Function::LoadBytes);
    asm.jump(If::NotEqual, R0, 0, pass);
    for (width, at, wanted) in [
        (Width::Half, ETHER_TYPE, half(0x0800)),
        (Width::Byte, IP, 0x45),
        (Width::Byte, IP_PROTOCOL, IPPROTO_TCP),
    ] {
        asm.load(width, R0, FRAME, at);
        asm.jump(If::NotEqual, R0, wanted, pass);
    }
    asm.load(Width::Half, R0, FRAME, IP_FRAGMENT);
    asm.jump(If::AnyBit, R0, half(0x3fff), pass);
}

/// R0: the address of this CPU's note. Clobbers R1 to R5.
fn find_note(asm: &mut Assembler, notes: &Numbers) {
    asm.call(Function::CpuNumber);
    asm.number(Op::And, R0, NOTES as i32 - 1);
    asm.number(Op::ShiftLeft, R0, 3);
    asm.address(R1, notes, 0);
    asm.register(Op::Add, R0, R1);
}

/// What comes in: segments with data from the server are counted, noted and marked.
fn heard(counters: &Numbers, notes: &Numbers, port: u16) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    let pass = asm.label();
    asm.register(Op::Move, R6, R1);
    // struct __sk_buff begins with the frame's length, segments that are not cut yet included.
    asm.load(Width::Word, R7, R6, 0);
    asm.jump(If::Less, R7, HEAD_LEN, pass);
    read_headers(&mut asm, pass);
    asm.load(Width::Half, R0, FRAME, TCP_FROM);
    asm.jump(If::NotEqual, R0, half(port), pass);
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
    asm.count(counters, BYTES, R7, R1);
    asm.number(Op::Move, R9, 1);
    asm.count(counters, SEGMENTS, R9, R1);

    // Everything up to this segment's end.
    asm.load(Width::Word, R9, FRAME, TCP_SEQ);
    asm.network_order(R9);
    asm.register(Op::Add, R9, R8);
    asm.network_order(R9);
    find_note(&mut asm, notes);
    asm.store(Width::Word, R0, 0, R9);
    asm.store_number(Width::Word, R0, NOTE_SET, 1);
    asm.number(Op::Move, R1, MARK as i32);
    asm.store(Width::Word, R6, FRAME_MARK, R1);

    asm.place(pass);
    asm.number(Op::Move, R0, PASS);
    asm.exit();
    asm.finish()
}

/// What leaves: the reset that answers what was noted becomes its acknowledgement. It has the right addresses, ports and sequence
/// number (RFC 9293, 3.10.7.1), and its checksum is the pseudo header's sum, which does not change: the card is to complete it,
/// which on veth nobody does or looks for.
fn answer(notes: &Numbers, port: u16) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    let pass = asm.label();
    asm.register(Op::Move, R6, R1);
    asm.load(Width::Word, R7, R6, 0);
    asm.jump(If::NotEqual, R7, HEAD_LEN, pass);
    find_note(&mut asm, notes);
    asm.register(Op::Move, R8, R0);
    asm.load(Width::Word, R9, R8, NOTE_SET);
    asm.jump(If::Equal, R9, 0, pass);
    read_headers(&mut asm, pass);
    asm.load(Width::Half, R0, FRAME, TCP_TO);
    asm.jump(If::NotEqual, R0, half(port), pass);
    asm.load(Width::Byte, R0, FRAME, TCP_FLAGS);
    asm.number(Op::And, R0, RST);
    asm.jump(If::Equal, R0, 0, pass);

    // Options are left out: Linux takes a segment without the time stamps that were agreed upon. Room is for as much as the
    // scale allows.
    asm.store_number(Width::Word, R8, NOTE_SET, 0);
    asm.load(Width::Word, R9, R8, 0);
    asm.store(Width::Word, FRAME, TCP_ACK, R9);
    asm.store_number(Width::Byte, FRAME, TCP_FLAGS, ACK);
    asm.store_number(Width::Half, FRAME, TCP_WINDOW, 0xffff);
    asm.register(Op::Move, R1, R6);
    asm.number(Op::Move, R2, 14 + 20);
    asm.register(Op::Move, R3, FRAME);
    asm.number(Op::Add, R3, TCP.into());
    asm.number(Op::Move, R4, 20);
    asm.number(Op::Move, R5, 0);
    asm.call(Function::StoreBytes);

    asm.place(pass);
    asm.number(Op::Move, R0, PASS);
    asm.exit();
    asm.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 4433;

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

    /// The reset that the rule answers [`segment`] with (net/ipv4/netfilter/nf_reject_ipv4.c).
    fn reset(flags: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
        frame.extend(50_000u16.to_be_bytes());
        frame.extend(PORT.to_be_bytes());
        frame.extend(77u32.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0xab, 0xcd, 0, 0]);
        frame
    }

    struct Programs {
        counters: Numbers,
        heard: Program,
        answer: Program,
    }

    /// On one CPU from here on: notes are a CPU's own.
    fn programs() -> Programs {
        crate::sys::affinity::pin_to(crate::sys::affinity::allowed_cpus()[0]).unwrap();
        let (counters, notes) = (
            Numbers::new(2).expect("this test needs root and a kernel with BPF"),
            Numbers::new(NOTES).unwrap(),
        );
        let heard =
            Program::load("tcp_sink_heard", &heard(&counters, &notes, PORT)).expect("the verifier agrees");
        let answer = Program::load("tcp_sink_answer", &answer(&notes, PORT)).expect("the verifier agrees");
        Programs { counters, heard, answer }
    }

    #[test]
    fn the_reset_that_answers_a_segment_becomes_its_acknowledgement() {
        let Programs { counters, heard, answer } = programs();
        let frame = segment(0x18, 100);
        assert_eq!(heard.run(&frame).unwrap(), (PASS, frame, MARK));
        let (verdict, ack, _) = answer.run(&reset(0x04)).unwrap();
        assert_eq!((verdict, &ack[..42]), (PASS, &reset(0x04)[..42]), "addresses, ports and number stay");
        assert_eq!(ack[42..46], 0xffff_fff0u32.wrapping_add(100).to_be_bytes(), "past the wrap");
        assert_eq!(ack[46..], [0x50, 0x10, 0xff, 0xff, 0xab, 0xcd, 0, 0], "no reset, and room for more");
        assert_eq!(counters.read().unwrap(), [100, 1]);
        let again = answer.run(&reset(0x04)).unwrap();
        assert_eq!(again, (PASS, reset(0x04), 0), "one for one");
    }

    #[test]
    fn the_end_of_a_stream_takes_one_number_and_no_byte() {
        let Programs { counters, heard, answer } = programs();
        assert_eq!(heard.run(&segment(0x11, 0)).unwrap().2, MARK);
        assert_eq!(answer.run(&reset(0x04)).unwrap().1[42..46], 0xffff_fff1u32.to_be_bytes());
        assert_eq!(counters.read().unwrap(), [0, 1]);
    }

    #[test]
    fn what_is_no_answer_to_a_segment_leaves_as_it_is() {
        let Programs { heard, answer, .. } = programs();
        let changed = |at: usize, value: u8| {
            let mut frame = reset(0x04);
            frame[at] = value;
            frame
        };
        heard.run(&segment(0x18, 100)).unwrap();
        let longer = [reset(0x04), vec![0]].concat();
        for (frame, what) in [
            (reset(0x10), "no reset"),
            (changed(37, 0), "to another port"),
            (changed(23, 17), "UDP"),
            (changed(14, 0x46), "IP options"),
            (longer, "another length"),
        ] {
            assert_eq!(answer.run(&frame).unwrap(), (PASS, frame, 0), "{what}");
        }
        assert_eq!(answer.run(&reset(0x04)).unwrap().1[47], 0x10, "the answer itself is still waited for");
    }

    #[test]
    fn everything_else_passes_as_it_is() {
        let Programs { counters, heard, .. } = programs();
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
            assert_eq!(heard.run(&frame).unwrap(), (PASS, frame, 0), "{what}");
        }
        let mut frame = segment(0x18, 4);
        frame[46] = 0xf0;
        assert_eq!(heard.run(&frame).unwrap(), (PASS, frame, 0), "a header longer than its frame");
        assert_eq!(counters.read().unwrap(), [0, 0]);
    }

    #[test]
    fn a_rule_names_its_interface_and_its_table_has_a_plain_name() {
        let text = rule("lan-1.20");
        let table = "table netdev bootstorm_sink_lan_1_20";
        assert!(
            text.starts_with(&format!("{table}\ndelete {table}\n{table} {{")),
            "in place of one left behind: {text}"
        );
        assert!(
            text.contains("device \"lan-1.20\"") && text.contains("meta mark 1397313099 reject"),
            "{text}"
        );
    }
}

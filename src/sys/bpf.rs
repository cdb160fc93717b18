//! Programs that run in the kernel on frames that come to an interface or leave by it: made of single instructions, checked by
//! the kernel's verifier, attached with a link that ends with its owner. No compiler and no library stands between.
//!
//! Needs CAP_BPF and CAP_NET_ADMIN (or root), and Linux 6.6 for the link (TCX).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::SysError;

// linux/bpf.h `enum bpf_cmd`.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_PROG_LOAD: libc::c_int = 5;
pub(super) const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
// linux/bpf.h `enum bpf_map_type`, `enum bpf_prog_type`, `enum bpf_attach_type`.
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// In an instruction that loads 64 bits: the address of a value in the map of that descriptor.
const BPF_PSEUDO_MAP_VALUE: u8 = 2;
/// None of the functions called here is reserved for programs under the GPL.
const LICENCE: &std::ffi::CStr = c"MIT";
/// Room for what the verifier has to say.
const LOG_LEN: usize = 64 << 10;
/// Lines of it that are told.
const LOG_LINES: usize = 4;
/// Loads of a program that something interrupts.
const LOAD_ATTEMPTS: u32 = 8;

/// A register. The kernel passes the frame in the first of [`R1`] to [`R5`], which calls clobber; results are in [`R0`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

#[allow(missing_docs, reason = "the machine's registers by their names")]
mod registers {
    use super::Register;
    pub const R0: Register = Register(0);
    pub const R1: Register = Register(1);
    pub const R2: Register = Register(2);
    pub const R3: Register = Register(3);
    pub const R4: Register = Register(4);
    pub const R5: Register = Register(5);
    pub const R6: Register = Register(6);
    pub const R7: Register = Register(7);
    pub const R8: Register = Register(8);
    pub const R9: Register = Register(9);
}
pub use registers::*;

/// The end of the stack; what a program keeps lies below it, in 512 bytes.
pub const FRAME: Register = Register(10);

/// Width of a load or a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Width {
    /// 8 bits.
    Byte = 0x10,
    /// 16 bits, at an even offset.
    Half = 0x08,
    /// 32 bits, at an offset of fours.
    Word = 0x00,
}

/// What is done to the first operand with the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "64-bit arithmetic by its names")]
pub enum Op {
    Add = 0x00,
    Sub = 0x10,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// When a jump is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "comparisons by their names; AnyBit is `register & number != 0`")]
pub enum If {
    Equal = 0x10,
    NotEqual = 0x50,
    AnyBit = 0x40,
    /// Without sign.
    Less = 0xa0,
    /// With sign.
    AtMostSigned = 0xd0,
}

/// A function of the kernel (linux/bpf.h `enum bpf_func_id`): arguments in R1 to R5, result in R0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Function {
    /// () → the number of the CPU the program runs on
    CpuNumber = 8,
    /// (frame, offset, from, len, flags) → 0
    StoreBytes = 9,
    /// (frame, offset, to, len) → 0
    LoadBytes = 26,
}

/// One instruction (linux/bpf.h `struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    number: i32,
}

impl Instruction {
    const fn new(code: u8, to: Register, from: Register, offset: i16, number: i32) -> Self {
        // Two bit fields of four, which C lays out by the machine's endianness.
        let registers = if cfg!(target_endian = "little") { from.0 << 4 | to.0 } else { to.0 << 4 | from.0 };
        Self { code, registers, offset, number }
    }
}

/// A place in a program that jumps lead to; they lead forward only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Puts a program together, one instruction a call.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// The jumps that wait for each label to be placed.
    labels: Vec<Vec<usize>>,
}

impl Assembler {
    /// A label to jump to before it is placed.
    pub fn label(&mut self) -> Label {
        self.labels.push(Vec::new());
        Label(self.labels.len() - 1)
    }

    /// The next instruction is where jumps to `label` lead.
    pub fn place(&mut self, label: Label) {
        let here = self.code.len();
        for jump in self.labels[label.0].drain(..) {
            self.code[jump].offset = (here - jump - 1) as i16;
        }
    }

    fn push(&mut self, instruction: Instruction) {
        self.code.push(instruction);
    }

    /// `to = to OP number`, 64 bits.
    pub fn number(&mut self, op: Op, to: Register, number: i32) {
        self.push(Instruction::new(0x07 | op as u8, to, R0, 0, number));
    }

    /// `to = to OP from`, 64 bits.
    pub fn register(&mut self, op: Op, to: Register, from: Register) {
        self.push(Instruction::new(0x0f | op as u8, to, from, 0, 0));
    }

    /// `to = *(from + offset)`, the upper bits zero.
    pub fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.push(Instruction::new(0x61 | width as u8, to, from, offset, 0));
    }

    /// `*(to + offset) = from`
    pub fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.push(Instruction::new(0x63 | width as u8, to, from, offset, 0));
    }

    /// `*(to + offset) = number`
    pub fn store_number(&mut self, width: Width, to: Register, offset: i16, number: i32) {
        self.push(Instruction::new(0x62 | width as u8, to, R0, offset, number));
    }

    /// Between the machine's order of 32 bits and the network's; the upper bits become zero.
    pub fn network_order(&mut self, register: Register) {
        self.push(Instruction::new(0xdc, register, R0, 0, 32));
    }

    /// `to = ` the address of one of `numbers`; those behind it follow it.
    pub fn address(&mut self, to: Register, numbers: &Numbers, index: usize) {
        let map = Register(BPF_PSEUDO_MAP_VALUE);
        self.push(Instruction::new(0x18, to, map, 0, numbers.fd.as_raw_fd()));
        self.push(Instruction::new(0, R0, R0, 0, (index * size_of::<u64>()) as i32));
    }

    /// Adds `from` to one of `numbers`, whoever else does so. `scratch` is overwritten.
    pub fn count(&mut self, numbers: &Numbers, index: usize, from: Register, scratch: Register) {
        self.address(scratch, numbers, index);
        self.push(Instruction::new(0xdb, scratch, from, 0, 0));
    }

    /// Goes to `label` when `register` compares so with `number`.
    pub fn jump(&mut self, when: If, register: Register, number: i32, label: Label) {
        self.labels[label.0].push(self.code.len());
        self.push(Instruction::new(0x05 | when as u8, register, R0, 0, number));
    }

    /// Calls a function of the kernel.
    pub fn call(&mut self, function: Function) {
        self.push(Instruction::new(0x85, R0, R0, 0, function as i32));
    }

    /// Ends the program; R0 is its verdict.
    pub fn exit(&mut self) {
        self.push(Instruction::new(0x95, R0, R0, 0, 0));
    }

    /// The program. A label that was jumped to and never placed leads nowhere: the verifier refuses that.
    pub fn finish(self) -> Vec<Instruction> {
        self.code
    }
}

/// Numbers of 64 bits that programs keep, and user space reads.
#[derive(Debug)]
pub struct Numbers {
    fd: OwnedFd,
    count: usize,
}

impl Numbers {
    /// So many, all 0.
    pub fn new(count: usize) -> Result<Self, SysError> {
        #[repr(C)]
        struct Create {
            kind: u32,
            key_size: u32,
            value_size: u32,
            entries: u32,
            flags: u32,
        }
        let mut attr = Create {
            kind: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: (count * size_of::<u64>()) as u32,
            entries: 1,
            flags: 0,
        };
        // SAFETY: `Create` is the start of `union bpf_attr` for this command, without pointers.
        let fd =
            unsafe { open(BPF_MAP_CREATE, &mut attr) }.map_err(|e| SysError::new("make BPF numbers", e))?;
        Ok(Self { fd, count })
    }

    /// What they stand at.
    pub fn read(&self) -> io::Result<Vec<u64>> {
        #[repr(C)]
        struct Lookup {
            map: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let key = 0u32;
        let mut values = vec![0u64; self.count];
        let mut attr = Lookup {
            map: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const key) as u64,
            value: values.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads 4 bytes at `key` and writes the map's value size, which is `values`' length in
        // bytes, at `value`; both live across the call.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
        Ok(values)
    }
}

/// A program that the verifier let pass.
#[derive(Debug)]
pub struct Program {
    pub(super) fd: OwnedFd,
}

impl Program {
    /// Loads one that judges frames. The error holds the verifier's last lines.
    pub fn load(name: &str, code: &[Instruction]) -> Result<Self, SysError> {
        Self::load_as(BPF_PROG_TYPE_SCHED_CLS, name, code)
    }

    /// Loads one of another type of program than [`Program::load`].
    pub(super) fn load_as(kind: u32, name: &str, code: &[Instruction]) -> Result<Self, SysError> {
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            code: u64,
            licence: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel: u32,
            flags: u32,
            name: [u8; 16],
        }
        let mut log = vec![0u8; LOG_LEN];
        let mut attr = Load {
            kind,
            count: code.len() as u32,
            code: code.as_ptr() as u64,
            licence: LICENCE.as_ptr() as u64,
            log_level: 1,
            log_size: log.len() as u32,
            log: log.as_mut_ptr() as u64,
            kernel: 0,
            flags: 0,
            name: [0; 16],
        };
        // 15 bytes and a zero.
        for (to, from) in attr.name.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        let mut attempts = 0;
        let loaded = loop {
            // SAFETY: the kernel reads `count` instructions at `code` and a string at `licence`, and writes at most
            // `log_size` bytes at `log`; all live across the call.
            let loaded = unsafe { open(BPF_PROG_LOAD, &mut attr) };
            attempts += 1;
            match loaded {
                // The verifier gives up when it is interrupted (kernel/bpf/verifier.c, `do_check`).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempts < LOAD_ATTEMPTS => {}
                loaded => break loaded,
            }
        };
        loaded.map(|fd| Self { fd }).map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(&log[..end]);
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            let said = lines[lines.len().saturating_sub(LOG_LINES)..].join(" / ");
            let said = if said.is_empty() { said } else { format!(" (the verifier: {said})") };
            SysError::new(format!("load BPF program {name}{said}"), error)
        })
    }

    /// Has it judge every frame that comes to interface `index` of this network namespace, for as long as the link lives.
    pub fn attach_ingress(&self, index: u32) -> Result<Link, SysError> {
        self.attach(index, BPF_TCX_INGRESS)
    }

    /// The same for every frame that leaves by it.
    pub fn attach_egress(&self, index: u32) -> Result<Link, SysError> {
        self.attach(index, BPF_TCX_EGRESS)
    }

    fn attach(&self, index: u32, kind: u32) -> Result<Link, SysError> {
        #[repr(C)]
        struct Attach {
            program: u32,
            interface: u32,
            kind: u32,
            flags: u32,
            relative: u32,
            pad: u32,
            revision: u64,
        }
        let mut attr = Attach {
            program: self.fd.as_raw_fd() as u32,
            interface: index,
            kind,
            flags: 0,
            relative: 0,
            pad: 0,
            revision: 0,
        };
        // SAFETY: `Attach` is the start of `union bpf_attr` for this command, without pointers.
        let fd = unsafe { open(BPF_LINK_CREATE, &mut attr) }
            .map_err(|e| SysError::new(format!("attach BPF program to interface {index}"), e))?;
        Ok(Link { _fd: fd })
    }

    /// Runs it once on `frame`, attached or not: its verdict, and the frame and its mark as it left them.
    #[cfg(test)]
    pub fn run(&self, frame: &[u8]) -> io::Result<(i32, Vec<u8>, u32)> {
        #[repr(C)]
        struct Run {
            program: u32,
            verdict: u32,
            len_in: u32,
            len_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            about_in_len: u32,
            about_out_len: u32,
            about_in: u64,
            about_out: u64,
        }
        // linux/bpf.h `struct __sk_buff`, of which the third is the mark.
        let mut about = [0u32; 3];
        let mut out = vec![0u8; frame.len()];
        let mut attr = Run {
            program: self.fd.as_raw_fd() as u32,
            verdict: 0,
            len_in: frame.len() as u32,
            len_out: out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            duration: 0,
            about_in_len: 0,
            about_out_len: size_of_val(&about) as u32,
            about_in: 0,
            about_out: about.as_mut_ptr() as u64,
        };
        // SAFETY: the kernel reads `len_in` bytes at `data_in`, and writes at most `len_out` at `data_out` and `about_out_len` at
        // `about_out`; all live across the call.
        match unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) } {
            // There was more to tell about the frame than room for it.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
            result => _ = result?,
        }
        out.truncate(attr.len_out as usize);
        Ok((attr.verdict as i32, out, about[2]))
    }
}

/// An attached program; dropping it detaches the program.
#[derive(Debug)]
pub struct Link {
    _fd: OwnedFd,
}

/// The system call.
///
/// # Safety
/// `attr` is laid out as the start of `union bpf_attr` for `command`, its pointers and lengths valid for the call.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller vouches for what `attr` points to; the kernel reads and writes `size_of::<T>()` bytes of it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// The same for commands that make a descriptor (the kernel sets its close-on-exec).
///
/// # Safety
/// As [`bpf`].
unsafe fn open<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for it.
    let raw = unsafe { bpf(command, attr) }?;
    // SAFETY: `raw` is a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

const _: () = assert!(size_of::<Instruction>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_where_their_label_is_placed() {
        let mut asm = Assembler::default();
        let (end, middle) = (asm.label(), asm.label());
        asm.jump(If::Equal, R1, 5, end);
        asm.jump(If::AnyBit, R1, 1, middle);
        asm.number(Op::Move, R0, 1);
        asm.place(middle);
        asm.number(Op::Move, R0, 2);
        asm.place(end);
        asm.exit();
        let offsets: Vec<i16> = asm.finish().iter().map(|instruction| instruction.offset).collect();
        assert_eq!(offsets, [3, 1, 0, 0, 0]);
    }

    #[test]
    fn instructions_have_the_kernels_encoding() {
        let mut asm = Assembler::default();
        asm.register(Op::Move, R6, R1);
        asm.load(Width::Half, R2, FRAME, -4);
        asm.store(Width::Byte, FRAME, -8, R2);
        asm.store_number(Width::Word, FRAME, -12, 7);
        asm.number(Op::ShiftRight, R2, 16);
        let label = asm.label();
        asm.jump(If::AtMostSigned, R2, 0, label);
        let expected: [(u8, u8, i16, i32); 6] = [
            (0xbf, 0x16, 0, 0),
            (0x69, 0xa2, -4, 0),
            (0x73, 0x2a, -8, 0),
            (0x62, 0x0a, -12, 7),
            (0x77, 0x02, 0, 16),
            (0xd5, 0x02, 0, 0),
        ];
        // linux/bpf.h, on a little-endian machine.
        let made: Vec<_> = asm.finish().iter().map(|i| (i.code, i.registers, i.offset, i.number)).collect();
        assert_eq!(made, expected);
    }

    #[test]
    fn a_program_without_a_verdict_is_refused_with_the_verifiers_words() {
        let mut asm = Assembler::default();
        asm.exit();
        let error = Program::load("nothing", &asm.finish()).unwrap_err().to_string();
        assert!(error.contains("load BPF program nothing") && error.contains("R0"), "{error}");
    }

    #[test]
    fn a_program_for_an_interface_that_is_not_there_is_not_attached() {
        let mut asm = Assembler::default();
        asm.number(Op::Move, R0, 0);
        asm.exit();
        let program =
            Program::load("pass", &asm.finish()).expect("this test needs root and a kernel with BPF");
        let error = program.attach_ingress(i32::MAX as u32).unwrap_err();
        assert!(error.to_string().starts_with("attach BPF program to interface 2147483647"), "{error}");
        let error = SysError::new("load BPF program pass", io::Error::from_raw_os_error(libc::EPERM));
        assert!(error.advice().is_some_and(|advice| advice.contains("CAP_BPF")), "not the advice for ports");
    }

    #[test]
    fn a_program_counts_and_its_numbers_are_read() {
        let numbers = Numbers::new(2).expect("this test needs root and a kernel with BPF");
        let mut asm = Assembler::default();
        asm.number(Op::Move, R2, 5);
        asm.count(&numbers, 1, R2, R1);
        asm.number(Op::Move, R0, 3);
        asm.exit();
        let program = Program::load("count", &asm.finish()).unwrap();
        let frame = [0x55; 64];
        assert_eq!(program.run(&frame).unwrap(), (3, frame.to_vec(), 0));
        assert_eq!(program.run(&frame).unwrap().0, 3);
        assert_eq!(numbers.read().unwrap(), [0, 10]);
    }
}

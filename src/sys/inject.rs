//! Frames put into an interface as if they had arrived on it: how a machine can be acted on the server's own host, whose
//! sockets never hear what the host itself sends.
//!
//! The kernel runs a program that lets every frame pass, once, with the frame as its input ("live frames" of
//! `BPF_PROG_TEST_RUN`). Nothing is attached to the interface, and nothing is left behind.
//!
//! Needs Linux 5.18, and CAP_BPF with CAP_NET_ADMIN (or root).

use std::io;
use std::os::fd::AsRawFd;

use super::SysError;
use super::bpf::{Assembler, BPF_PROG_TEST_RUN, Op, Program, R0, bpf};

// linux/bpf.h `enum bpf_prog_type`, `enum xdp_action`, flags of BPF_PROG_TEST_RUN.
const BPF_PROG_TYPE_XDP: u32 = 6;
const XDP_PASS: i32 = 2;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// Puts frames into one interface of this network namespace.
#[derive(Debug)]
pub struct Injector {
    program: Program,
    interface: u32,
}

impl Injector {
    /// For the interface with this index.
    ///
    /// # Errors
    /// EPERM without the capabilities, EINVAL before Linux 5.18 (with the first frame).
    pub fn new(interface: u32) -> Result<Self, SysError> {
        let mut asm = Assembler::default();
        asm.number(Op::Move, R0, XDP_PASS);
        asm.exit();
        Ok(Self { program: Program::load_as(BPF_PROG_TYPE_XDP, "pass", &asm.finish())?, interface })
    }

    /// One whole frame, at most about 3,500 bytes.
    ///
    /// # Errors
    /// What the kernel says of the frame or the interface.
    pub fn inject(&self, frame: &[u8]) -> io::Result<()> {
        /// `struct xdp_md`.
        #[repr(C)]
        struct Context {
            data: u32,
            data_end: u32,
            data_meta: u32,
            ingress: u32,
            queue: u32,
            egress: u32,
        }
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
            context_len_in: u32,
            context_len_out: u32,
            context_in: u64,
            context_out: u64,
            flags: u32,
            cpu: u32,
            batch: u32,
            pad: u32,
        }
        let context = Context {
            data: 0,
            data_end: frame.len() as u32,
            data_meta: 0,
            ingress: self.interface,
            queue: 0,
            egress: 0,
        };
        let mut attr = Run {
            program: self.program.fd.as_raw_fd() as u32,
            verdict: 0,
            len_in: frame.len() as u32,
            len_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
            context_len_in: size_of::<Context>() as u32,
            context_len_out: 0,
            context_in: (&raw const context) as u64,
            context_out: 0,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            cpu: 0,
            batch: 1,
            pad: 0,
        };
        // SAFETY: the kernel reads `len_in` bytes at `data_in` and `context_len_in` at `context_in`; both live across
        // the call, and nothing is written, since both lengths out are zero.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys::interfaces;
    use crate::sys::packet::{BpfInstruction, PacketSocket};
    use crate::wire::MacAddr;
    use crate::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_frame, parse_udp_frame};

    #[test]
    fn an_injected_frame_arrives_as_if_it_had_come_by_the_link() {
        let lo = interfaces::list().unwrap().into_iter().find(|i| i.name == "lo").unwrap();
        let everything = BpfInstruction { code: 0x06, jt: 0, jf: 0, k: 0x4_0000 };
        let socket =
            PacketSocket::open("lo", lo.index, &[everything]).expect("this test needs root and Linux 5.18");
        let port = 40_000 + (std::process::id() % 20_000) as u16;
        let mut frame = [0; 128];
        frame[UDP_PAYLOAD_OFFSET..][..5].copy_from_slice(b"hello");
        let header = UdpHeader {
            src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            dst_mac: MacAddr(lo.mac),
            src: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 68),
            dst: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
            ttl: 64,
            ip_id: 1,
        };
        let len = emit_udp_frame(&mut frame, &header, 5).unwrap();
        Injector::new(lo.index).unwrap().inject(&frame[..len]).unwrap();
        let start = Instant::now();
        let mut got = [0; 65_536];
        while start.elapsed() < Duration::from_secs(10) {
            socket.wait(Duration::from_millis(100)).unwrap();
            while let Ok(len) = socket.recv(&mut got) {
                if let Ok(datagram) = parse_udp_frame(&got[..len])
                    && datagram.dst.port() == port
                {
                    assert_eq!((datagram.payload, datagram.src), (&b"hello"[..], header.src));
                    return;
                }
            }
        }
        panic!("the frame did not arrive");
    }
}

//! Classic BPF programs, which the kernel runs on what a socket would receive.

use std::io;
use std::os::fd::RawFd;

use super::check;

/// One instruction of a classic BPF program (linux/filter.h `struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u16,
    /// Jump if true, in instructions.
    pub jt: u8,
    /// Jump if false, in instructions.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Attaches a classic BPF program to any socket.
pub fn attach_filter(fd: RawFd, filter: &[BpfInstruction]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr() as *mut libc::sock_filter };
    // SAFETY: `BpfInstruction` has the layout of `sock_filter` (repr(C), same fields); the kernel copies
    // `program.len` of them during the call and keeps no pointer.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

const _: () = assert!(size_of::<BpfInstruction>() == size_of::<libc::sock_filter>());

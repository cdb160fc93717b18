//! Syscalls, and the only home of `unsafe`. Nothing here knows a protocol.
#![allow(unsafe_code, reason = "this is where it lives; each block names its condition and who upholds it")]

pub mod mmap;

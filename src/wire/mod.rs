//! Bytes to values and back, and nothing else: no sockets, no files, no clock, no heap while parsing.
//!
//! The contract of every format here: `parse` checks lengths once and returns a borrowed view whose accessors
//! are total; `emit` writes into a buffer the caller owns and reports how much it wrote. A malformed input is a
//! small `Copy` error; what to do about it is decided in `proto`.
#![forbid(unsafe_code)]

pub mod addr;
pub mod arch;
pub mod arp;
pub mod capture;
pub mod dhcp;
pub mod frame;
pub mod http;
pub mod icmp;
pub mod reader;
pub mod tftp;
pub mod wim;

pub use addr::{MacAddr, MacPattern, Uuid};
pub use arch::Arch;

//! Decisions: one pure state machine per exchange, driven by (now, input).
//!
//! The drive contract, the same for every machine: hand in an input or an expired deadline, then drain what it
//! wants sent, then read when it wants to be called next. A machine never sees a socket, a file, the clock or
//! randomness; file data is named by byte range and turned into memory by the engine.
#![forbid(unsafe_code)]

pub mod dhcp;
pub mod firmware;
pub mod http;
pub mod tftp;

//! End to end: the real binary in namespaces of its own, against real clients and real firmware.
//!
//! Needs root and the tools `tools/test` installs. A tool that is missing fails the test that needs it.

#![allow(unreachable_pub, reason = "one binary of modules: pub is what they share")]

mod admission;
mod api;
mod bad_input;
mod bench;
mod clients;
mod compare;
mod demo;
mod dhcp;
mod dhcp_clients;
mod explain;
mod faults;
mod firmware;
mod gss;
mod https;
mod images;
mod interlock;
mod operations;
mod package;
mod robust;
mod scripts;
mod server;
mod soak;
mod start;
mod tftp_clients;
mod winpe;

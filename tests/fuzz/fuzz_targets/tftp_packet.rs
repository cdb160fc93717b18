//! Any datagram as a TFTP packet.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::wire::tftp::fuzz_packet(bytes));

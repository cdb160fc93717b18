//! Any datagram as a DHCP message.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::wire::dhcp::fuzz_message(bytes));

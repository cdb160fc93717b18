//! Any datagram to the DHCP machine, in both modes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::proto::dhcp::fuzz_server(std::time::Instant::now(), bytes));

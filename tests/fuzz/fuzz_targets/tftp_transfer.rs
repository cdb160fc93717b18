//! Any list of operations on a TFTP transfer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::proto::tftp::fuzz_transfer(std::time::Instant::now(), bytes));

//! Any bytes as a segment of the lease journal.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::store::journal::fuzz_segment(bytes));

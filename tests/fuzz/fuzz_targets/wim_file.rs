//! Any bytes as a WIM.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::files::wim::fuzz_file(bytes));

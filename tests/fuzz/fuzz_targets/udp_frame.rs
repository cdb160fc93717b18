//! Any frame a raw socket may hear.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::wire::frame::fuzz_frame(bytes));

//! Any bytes as the start of an HTTP connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| { bootstorm::proto::http::fuzz_head(bytes); });

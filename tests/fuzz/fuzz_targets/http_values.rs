//! Any path, range set, form, date or response head.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::wire::http::fuzz_values(bytes));

//! Any bytes as a boot loader.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::files::loader_facts::fuzz_loader(bytes));

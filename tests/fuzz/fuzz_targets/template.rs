//! Any text as an operator's template, and in every field of a machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bootstorm::jobs::template::fuzz_template(bytes));

//! See `harness/reference.rs`.
#![no_main]

#[path = "../harness/reference.rs"]
mod reference;

libfuzzer_sys::fuzz_target!(|data: &[u8]| reference::reference(data));

//! See `harness/layer.rs`.
#![no_main]

#[path = "../harness/layer.rs"]
#[allow(dead_code)]
mod layer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| layer::tar_reader(data));

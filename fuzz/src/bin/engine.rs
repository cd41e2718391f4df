//! Frames of HTTP/2 at both ends of a tunnel, while its streams go on.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ambit_hbone::tell_engine(bytes);
});

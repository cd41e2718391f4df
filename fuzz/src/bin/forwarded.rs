//! Which client and service a CONNECT is about.
#![no_main]

use ambit_wire::forwarded::Forwarded;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Forwarded::parse(bytes);
});

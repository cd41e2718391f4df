//! The authority of a CONNECT: one form of each target.
#![no_main]

use ambit_wire::Authority;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(authority) = Authority::parse(bytes) {
        let text = authority.to_string();
        assert_eq!(Authority::parse(text.as_bytes()), Ok(authority.clone()));
        assert_ne!(authority.port(), 0);
        if let Some(address) = authority.socket() {
            assert_eq!(address.ip().to_canonical(), address.ip());
        }
    }
});

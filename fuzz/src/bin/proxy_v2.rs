//! The header that tells an application who is behind a connection.
#![no_main]

use ambit_wire::proxy_v2::{Decoded, decode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match decode(bytes) {
        Ok(Decoded::Header {
            header: Some(header),
            length,
        }) => {
            assert!(length <= bytes.len());
            if let Ok(again) = header.encode() {
                let length = again.len();
                assert_eq!(
                    decode(&again),
                    Ok(Decoded::Header {
                        header: Some(header),
                        length
                    })
                );
            }
        }
        Ok(Decoded::Header {
            header: None,
            length,
        }) => assert!(length <= bytes.len()),
        Ok(Decoded::NeedMore(needed)) => assert!(needed > bytes.len()),
        Err(_) => {}
    }
});

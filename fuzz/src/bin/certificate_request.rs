//! Certificate requests, which strangers send: PKCS#10 in PEM.
#![no_main]

use ambit_tls::authority::Request;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = Request::from_pem(text);
});

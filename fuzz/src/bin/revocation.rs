//! A file of revocation lists.
#![no_main]

use ambit_tls::revocation::Lists;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(lists) = Lists::read(bytes) {
        assert!(!lists.summaries().is_empty());
    }
});

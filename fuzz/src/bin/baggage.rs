//! What the other end says of its workload.
#![no_main]

use ambit_wire::baggage::Baggage;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(baggage) = Baggage::parse(bytes) {
        let text = baggage.to_string();
        // Escapes can make a value three times as long, which may pass the limit of what is read.
        if text.len() <= bytes.len() {
            assert_eq!(Baggage::parse(text.as_bytes()), Ok(baggage));
        }
    }
});

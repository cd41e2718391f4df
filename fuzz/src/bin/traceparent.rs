//! Position in a trace.
#![no_main]

use ambit_wire::trace::TraceParent;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(parent) = TraceParent::parse(bytes) {
        assert_eq!(
            TraceParent::parse(parent.to_string().as_bytes()),
            Ok(parent)
        );
    }
});

//! Envoy's resources as a waypoint gets them: the first byte says which kind the rest is.
#![no_main]

use ambit_waypoint::envoy::{Compiler, Kind};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, payload)) = bytes.split_first() else {
        return;
    };
    let kind = match kind % 3 {
        0 => Kind::Listener,
        1 => Kind::Cluster,
        _ => Kind::Endpoints,
    };
    let mut compiler = Compiler::default();
    let refused = compiler.update(kind, [("one", payload)], []);
    let _ = compiler.plan();
    // What a resource is taken for does not depend on when it comes.
    assert_eq!(compiler.update(kind, [("one", payload)], []), refused);
    let _ = compiler.plan();
    compiler.update(kind, [], ["one"]);
    let _ = compiler.plan();
});

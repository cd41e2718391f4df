//! Compiles the definitions in `proto/` with a compiler written in Rust, so that no `protoc` is needed.

use std::path::Path;

const FILES: [&str; 12] = [
    "istio/workload.proto",
    "istio/authorization.proto",
    "istio/citadel.proto",
    "istio/zds.proto",
    "envoy/config/core/v3/base.proto",
    "envoy/service/discovery/v3/ads.proto",
    "google/rpc/status.proto",
    "opentelemetry/proto/collector/logs/v1/logs_service.proto",
    "opentelemetry/proto/collector/trace/v1/trace_service.proto",
    "spiffe/workload.proto",
    "spire/types.proto",
    "spire/delegated_identity.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    for file in FILES {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(FILES, [&root])?;

    let mut config = prost_build::Config::new();
    // Ordered maps: equal messages have equal bytes, which resource versions by content rely on.
    config.btree_map(["."]);
    // Addresses and payloads share the buffer they were received in. What SPIFFE's agents send does not: it holds private
    // keys, and a buffer that is kept for the sake of a certificate would keep them too.
    config.bytes([".istio", ".envoy"]);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

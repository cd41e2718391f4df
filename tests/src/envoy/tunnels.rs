//! A real Envoy at the end of tunnels (HBONE): it takes those that come to its pod, and makes others.
//!
//! Of each port `P` of applications: a tunnel that asks for any address with port `P` ends at
//! `127.0.0.1:P` in Envoy's pod; what connects to Envoy's port `P` + [`ONWARD`] goes through a tunnel
//! to port `P` of the far pod.
//!
//! What Envoy does by default and we do not count on is switched to what makes it strict: windows
//! small enough to fill, and a question for a sign of life several times a second, after which a
//! tunnel without an answer is ended.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::address;

/// From the port of an application to that of Envoy's listener which leads to it.
pub const ONWARD: u16 = 1000;

/// Where tunnels arrive.
const HBONE: u16 = 15008;

/// How long Envoy waits for the answer to a ping, in seconds: many times what a busy machine takes.
pub const PING_TIMEOUT: u64 = 3;

/// Envoy's certificate and whom it believes, in PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// Its certificate.
    pub chain: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// The mesh's root.
    pub root: PathBuf,
}

/// What Envoy is started with.
#[must_use]
pub fn bootstrap(files: &Files, far: Ipv4Addr, ports: &[u16]) -> Value {
    let onward = ports.iter().map(|port| onward(far, *port));
    let near = ports
        .iter()
        .map(|port| plain_cluster(&format!("near-{port}"), address("127.0.0.1", *port)));
    json!({
        "admin": {"address": address("127.0.0.1", 15000)},
        "static_resources": {
            "listeners": onward.chain([tunnels(files, ports)]).collect::<Vec<_>>(),
            "clusters": near.chain([far_cluster(files, far)]).collect::<Vec<_>>(),
        },
    })
}

pub(super) fn extension(kind: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("type.googleapis.com/envoy.{kind}").into();
    fields
}

/// What both ends of Envoy's HTTP/2 have in common.
fn http2() -> Value {
    json!({
        "initial_stream_window_size": 65_535,
        "initial_connection_window_size": 1 << 20,
        "connection_keepalive": {"interval": "0.2s", "timeout": format!("{PING_TIMEOUT}s")},
    })
}

/// TLS 1.3 as its pod, with peers of the mesh.
fn tls(files: &Files) -> Value {
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": {"filename": files.chain},
            "private_key": {"filename": files.key},
        }],
        "validation_context": {"trusted_ca": {"filename": files.root}},
    })
}

/// The listener that takes tunnels.
fn tunnels(files: &Files, ports: &[u16]) -> Value {
    let hosts = ports.iter().map(|port| {
        let route = json!({
            "cluster": format!("near-{port}"), "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        });
        json!({
            "name": port.to_string(), "domains": [format!("*:{port}")],
            "routes": [{"match": {"connect_matcher": {}}, "route": route}],
        })
    });
    let mut http2 = http2();
    http2["allow_connect"] = true.into();
    let router = json!({
        "name": "router",
        "typed_config": extension("extensions.filters.http.router.v3.Router", json!({})),
    });
    let manager = json!({
        "stat_prefix": "tunnels", "codec_type": "HTTP2", "drain_timeout": "0.2s",
        "http2_protocol_options": http2,
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": hosts.collect::<Vec<_>>()},
        "http_filters": [router],
    });
    let manager = extension(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        manager,
    );
    let socket = extension(
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({"require_client_certificate": true, "common_tls_context": tls(files)}),
    );
    json!({
        "name": "tunnels", "address": address("0.0.0.0", HBONE),
        "filter_chains": [{
            "transport_socket": {"name": "tls", "typed_config": socket},
            "filters": [{"name": "http", "typed_config": manager}],
        }],
    })
}

/// The listener whose connections go to a port of the far pod.
fn onward(far: Ipv4Addr, port: u16) -> Value {
    let proxy = extension(
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({
            "stat_prefix": "onward", "cluster": "far",
            "tunneling_config": {"hostname": format!("{far}:{port}")},
        }),
    );
    json!({
        "name": format!("onward-{port}"), "address": address("0.0.0.0", port + ONWARD),
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
    })
}

/// The proxy of the far pod.
fn far_cluster(files: &Files, far: Ipv4Addr) -> Value {
    let mut cluster = plain_cluster("far", address(&far.to_string(), HBONE));
    let socket = extension(
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"common_tls_context": tls(files)}),
    );
    cluster["transport_socket"] = json!({"name": "tls", "typed_config": socket});
    let options = extension(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        json!({"explicit_http_config": {"http2_protocol_options": http2()}}),
    );
    cluster["typed_extension_protocol_options"] =
        json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
    cluster
}

fn plain_cluster(name: &str, at: Value) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at}}]}],
        },
        // Its limit of 1,024 connections, streams and requests is not what is tested.
        "circuit_breakers": {"thresholds": [{
            "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000,
        }]},
    })
}

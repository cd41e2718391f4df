//! A real Envoy beside one application, in the shape that Istio gives its sidecars: what the mesh was before it
//! was ambient, for comparison.
//!
//! What leaves the pod is redirected to [`OUTBOUND`], where a listener hands each connection to the one of its
//! original destination; what comes to the pod is redirected to [`INBOUND`], where only mutual TLS with a peer of
//! the mesh is let in. Between sidecars each connection of applications has a TLS connection of its own, to the
//! application's port, with the application protocols by which Istio's sidecars know each other.
//!
//! As in Istio: two workers, no connection limit, only the few statistics that Istio keeps by default, access
//! log off unless the mesh turns it on. Not as in Istio: certificates and endpoints come from files and not from
//! an agent in the pod; Istio's own filters for statistics and for metadata of peers are missing; nothing is known
//! of services that nobody here calls; keys are P-256, where Istio's sidecars have RSA unless told. All of it makes this
//! sidecar cheaper than Istio's.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::address;
use super::tunnels::{Files, extension};
use crate::pod::Pod;

/// Where what leaves the pod is redirected to.
pub const OUTBOUND: u16 = 15001;
/// Where what comes to the pod is redirected to.
pub const INBOUND: u16 = 15006;
/// On Envoy's own connections, so that they are not redirected again.
pub const MARK: u32 = 1337;
/// Threads that carry traffic, as Istio's sidecars have by default.
pub const WORKERS: u32 = 2;

/// The source address of Envoy's connections to its own application, as in Istio.
const TO_APPLICATION: &str = "127.0.0.6";
/// Level and name of the socket option that sets the mark (`SOL_SOCKET`, `SO_MARK`).
const SO_MARK: (i32, i32) = (1, 36);
/// What sidecars speak with each other inside TLS: first for TCP, then for HTTP.
const TCP_PROTOCOLS: [&str; 2] = ["istio-peer-exchange", "istio"];
const HTTP_PROTOCOLS: [&str; 2] = ["istio-http/1.1", "istio"];
/// All that the inbound side takes.
const ANY_PROTOCOL: [&str; 5] = [
    "istio",
    "istio-peer-exchange",
    "istio-http/1.0",
    "istio-http/1.1",
    "istio-h2",
];
/// A limit that is none.
const UNLIMITED: u32 = u32::MAX;

/// As what the sidecar treats a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Bytes.
    Tcp,
    /// Requests.
    Http,
}

/// What an application may call.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Host name.
    pub name: String,
    /// The address that applications connect to: a service's or a pod's.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The pods behind it, and their port.
    pub endpoints: (Vec<Pod>, u16),
}

/// What one sidecar is told.
#[derive(Debug, Clone, Default)]
pub struct Sidecar {
    /// Whether every connection and request is logged.
    pub access_log: bool,
    /// Ports of the application.
    pub inbound: Vec<(u16, Protocol)>,
    /// What it may call.
    pub outbound: Vec<Outbound>,
}

/// Rules for `nft` that lead a pod's connections to its sidecar, but for Envoy's own.
#[must_use]
pub fn redirect() -> String {
    format!(
        "table ip sidecar {{
            chain leaving {{
                type nat hook output priority -100;
                meta mark {MARK} accept
                oifname \"lo\" accept
                meta l4proto tcp redirect to :{OUTBOUND}
            }}
            chain coming {{
                type nat hook prerouting priority -100;
                iifname \"lo\" accept
                meta l4proto tcp redirect to :{INBOUND}
            }}
        }}"
    )
}

impl Sidecar {
    /// What Envoy is started with.
    #[must_use]
    pub fn bootstrap(&self, files: &Files) -> Value {
        let mut listeners = vec![self.catch_all(), self.inbound_listener(files)];
        listeners.extend(self.outbound.iter().map(|to| self.outbound_listener(to)));
        let mut clusters = vec![passed_through(), to_application()];
        clusters.extend(self.outbound.iter().map(|to| outbound_cluster(to, files)));
        let few = json!({"inclusion_list": {"patterns": [
            {"prefix": "cluster_manager"}, {"prefix": "listener_manager"}, {"prefix": "server"},
            {"suffix": "ssl.handshake"}, {"suffix": "ssl.connection_error"},
        ]}});
        json!({
            "admin": {"address": address("127.0.0.1", 15000)},
            "stats_config": {"use_all_default_tags": false, "stats_matcher": few},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        })
    }

    /// The listener behind the redirect; what none of the others is for passes through.
    fn catch_all(&self) -> Value {
        json!({
            "name": "virtualOutbound", "address": address("0.0.0.0", OUTBOUND),
            "use_original_dst": true, "traffic_direction": "OUTBOUND",
            "filter_chains": [{"filters": [self.tcp("PassthroughCluster")]}],
        })
    }

    fn outbound_listener(&self, to: &Outbound) -> Value {
        let cluster = cluster_name(to);
        let filter = match to.protocol {
            Protocol::Tcp => self.tcp(&cluster),
            Protocol::Http => {
                let domains = [to.name.clone(), format!("{}:{}", to.name, to.port)];
                self.http("outbound", &cluster, &domains, json!({}))
            }
        };
        json!({
            "name": format!("{}_{}", to.address, to.port),
            "address": address(&to.address.to_string(), to.port),
            "bind_to_port": false, "traffic_direction": "OUTBOUND",
            "filter_chains": [{"filters": [filter]}],
        })
    }

    /// Only mutual TLS comes in, a chain for each port.
    fn inbound_listener(&self, files: &Files) -> Value {
        let chains = self.inbound.iter().map(|(port, protocol)| {
            let filter = match protocol {
                Protocol::Tcp => self.tcp("inbound"),
                Protocol::Http => self.http("inbound", "inbound", &["*".to_owned()], told_of_client()),
            };
            json!({
                "name": format!("0.0.0.0_{port}"),
                "filter_chain_match": {
                    "destination_port": port, "transport_protocol": "tls", "application_protocols": ANY_PROTOCOL,
                },
                "transport_socket": {"name": "tls", "typed_config": extension(
                    "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    json!({
                        "require_client_certificate": true,
                        "common_tls_context": tls(files, &ANY_PROTOCOL, trusted(&files.root)),
                    }),
                )},
                "filters": [filter],
            })
        });
        let first_looks = [
            ("original_dst", "OriginalDst"),
            ("tls_inspector", "TlsInspector"),
        ]
        .map(|(name, kind)| {
            let kind = format!("extensions.filters.listener.{name}.v3.{kind}");
            json!({"name": name, "typed_config": extension(&kind, json!({}))})
        });
        json!({
            "name": "virtualInbound", "address": address("0.0.0.0", INBOUND),
            "traffic_direction": "INBOUND", "listener_filters": first_looks,
            "filter_chains": chains.collect::<Vec<_>>(),
        })
    }

    fn tcp(&self, cluster: &str) -> Value {
        let proxy = json!({"stat_prefix": cluster, "cluster": cluster, "access_log": self.log()});
        json!({
            "name": "tcp",
            "typed_config": extension("extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy),
        })
    }

    /// HTTP to one cluster, through the filters of Istio's default that Envoy has itself.
    fn http(&self, prefix: &str, cluster: &str, domains: &[String], more: Value) -> Value {
        let filters = [
            ("grpc_stats", "FilterConfig"),
            ("fault", "HTTPFault"),
            ("cors", "Cors"),
            ("router", "Router"),
        ];
        let filters = filters.map(|(name, kind)| {
            let kind = format!("extensions.filters.http.{name}.v3.{kind}");
            json!({"name": format!("envoy.filters.http.{name}"), "typed_config": extension(&kind, json!({}))})
        });
        let route =
            json!({"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}});
        let mut manager = json!({
            "stat_prefix": prefix, "access_log": self.log(), "http_filters": filters,
            "normalize_path": true, "upgrade_configs": [{"upgrade_type": "websocket"}],
            "route_config": {
                "validate_clusters": false,
                "virtual_hosts": [{"name": prefix, "domains": domains, "routes": [route]}],
            },
        });
        if let (Some(manager), Value::Object(more)) = (manager.as_object_mut(), more) {
            manager.extend(more);
        }
        let kind = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        json!({"name": "http", "typed_config": extension(kind, manager)})
    }

    fn log(&self) -> Value {
        let kind = "extensions.access_loggers.file.v3.FileAccessLog";
        match self.access_log {
            true => {
                json!([{"name": "file", "typed_config": extension(kind, json!({"path": "/dev/stdout"}))}])
            }
            false => json!([]),
        }
    }
}

/// What the application is told of who calls.
fn told_of_client() -> Value {
    json!({
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"subject": true, "dns": true, "uri": true},
    })
}

fn cluster_name(to: &Outbound) -> String {
    format!("outbound|{}||{}", to.port, to.name)
}

fn tls(files: &Files, protocols: &[&str], peers: Value) -> Value {
    json!({
        "alpn_protocols": protocols,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key},
        }],
        "validation_context": peers,
    })
}

fn trusted(root: &Path) -> Value {
    json!({"trusted_ca": {"filename": root}})
}

fn unlimited() -> Value {
    json!({"thresholds": [{
        "max_connections": UNLIMITED, "max_pending_requests": UNLIMITED,
        "max_requests": UNLIMITED, "max_retries": UNLIMITED,
    }]})
}

/// Envoy's own connections pass by the redirect rules.
fn marked() -> Value {
    let (level, name) = SO_MARK;
    json!([{"level": level, "name": name, "int_value": MARK, "state": "STATE_PREBIND"}])
}

fn outbound_cluster(to: &Outbound, files: &Files) -> Value {
    let (pods, port) = &to.endpoints;
    let endpoints = pods
        .iter()
        .map(|pod| json!({"endpoint": {"address": address(&pod.ipv4().to_string(), *port)}}));
    let mut identities: Vec<String> = pods.iter().map(Pod::identity).collect();
    identities.dedup();
    let mut peers = trusted(&files.root);
    let names = identities
        .iter()
        .map(|name| json!({"san_type": "URI", "matcher": {"exact": name}}));
    peers["match_typed_subject_alt_names"] = names.collect();
    let protocols = match to.protocol {
        Protocol::Tcp => TCP_PROTOCOLS,
        Protocol::Http => HTTP_PROTOCOLS,
    };
    let socket = json!({
        "sni": format!("outbound_.{}_._.{}", to.port, to.name),
        "common_tls_context": tls(files, &protocols, peers),
    });
    let name = cluster_name(to);
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": unlimited(),
        "upstream_bind_config": {"source_address": {"address": "0.0.0.0", "port_value": 0}, "socket_options": marked()},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints.collect::<Vec<_>>()}]},
        "transport_socket": {
            "name": "tls",
            "typed_config": extension("extensions.transport_sockets.tls.v3.UpstreamTlsContext", socket),
        },
    })
}

/// The application of the pod: where the connection was going before it was redirected.
fn to_application() -> Value {
    json!({
        "name": "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s",
        "cleanup_interval": "60s", "circuit_breakers": unlimited(),
        "upstream_bind_config": {
            "source_address": {"address": TO_APPLICATION, "port_value": 0}, "socket_options": marked(),
        },
    })
}

/// What the mesh does not know.
fn passed_through() -> Value {
    json!({
        "name": "PassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s", "circuit_breakers": unlimited(),
        "upstream_bind_config": {"source_address": {"address": "0.0.0.0", "port_value": 0}, "socket_options": marked()},
    })
}

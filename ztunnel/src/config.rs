//! What a node proxy may be told, as typed values.
//!
//! # Purpose
//! One immutable [`Settings`] is made at start from the environment (`config/env.rs`, the only
//! reader of it) and handed down. The variable names, defaults and meanings are the ones that
//! Istio's ztunnel documents, so a DaemonSet written for it starts this program unchanged.
//!
//! # Failure modes
//! A value that cannot be understood, and a setting that asks for something this program does not
//! do, stop the start with the variable's name: a proxy that silently ignores `TLS12_ENABLED` would
//! be harder to understand than one that does not start, and with others less safe.

pub mod env;
pub mod value;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ambit_observe::access::filter::Filter;
use ambit_observe::metrics::Limits;
use ambit_relay::tcp::Bulk;
use ambit_tls::KeyExchange;
use serde::Serialize;

/// Port where a pod's outgoing connections are redirected to.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port where a pod's incoming plaintext connections are redirected to.
pub const PASSTHROUGH_PORT: u16 = 15006;
/// Port where a pod's tunnels (HBONE) arrive.
pub const HBONE_PORT: u16 = 15008;

/// Port where a pod's DNS queries are redirected to.
pub const DNS_PORT: u16 = 15053;

/// Ports nobody may reach through the proxy: a connection to one of them would come back to us.
pub const OWN_PORTS: [u16; 3] = [OUTBOUND_PORT, PASSTHROUGH_PORT, HBONE_PORT];

/// A setting that stops the program from starting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct Problem {
    /// The variable (or file) that is wrong.
    pub name: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// Where a control-plane service is and how it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// `https://host:port`.
    pub address: String,
    /// Whose certificates are believed.
    pub roots: Roots,
    /// A second server name that is accepted besides the address' host.
    pub alternative_name: Option<String>,
    /// Names of extra headers sent with each call; values are not shown, they may be secrets.
    #[serde(serialize_with = "names_only")]
    pub headers: Vec<(String, String)>,
}

/// Where the SPIRE agent of this machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spire {
    /// Its admin socket, where certificates of the pods are had.
    pub admin: PathBuf,
    /// Its workload socket, where the proxy's own is; without, that is had at the other, too.
    pub workload: Option<PathBuf>,
}

/// A set of trusted roots for the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Roots {
    /// A PEM file, read again at each connection.
    File(PathBuf),
    /// The PEM text itself.
    Pem(String),
    /// The machine's own set.
    System,
}

/// The credential shown to the control plane.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// A file, read again at each call because the kubelet rotates it.
    File(PathBuf),
    /// The token's text.
    Literal(String),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Literal(_) => f.write_str("Literal(not shown)"),
        }
    }
}

impl Serialize for Token {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::File(path) => to.collect_str(&path.display()),
            Self::Literal(_) => to.serialize_str("(literal, not shown)"),
        }
    }
}

/// Where workloads, services and policies come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A control plane, over delta xDS.
    ControlPlane(Endpoint),
    /// A file read once at start.
    File(PathBuf),
    /// The same content as such a file, given inline.
    Inline(String),
}

/// Whom the proxy serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// The pods of a node, which an agent names.
    Shared,
    /// One pod, or a machine that stands for one, in whose network namespace the proxy runs itself.
    Dedicated(Only),
}

/// The workload that a proxy of its own serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Only {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
}

/// Whether the application sees the caller's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OriginalSource {
    /// Wanted; where the kernel refuses, the connection goes on without it.
    Auto,
    /// Wanted; a listener that cannot do it does not start.
    Required,
    /// The application sees the proxy's address.
    Off,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// Tab-separated text.
    Plain,
    /// One JSON object a line.
    Json,
}

/// TCP keepalive of the sockets that face applications and peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection is given up.
    pub retries: u32,
}

/// HTTP/2 numbers of tunnels, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2 {
    /// Bytes one stream may have in flight; `None` leaves it to the tunnel layer.
    pub stream_window: Option<u32>,
    /// Bytes all streams of a tunnel may have in flight together.
    pub connection_window: Option<u32>,
    /// Largest frame accepted.
    pub frame_size: Option<u32>,
}

/// Where a pod's DNS queries are answered, in its own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DnsAddress {
    /// On the loopback, in both families where the pod has both.
    Localhost(u16),
    /// There alone.
    At(SocketAddr),
}

/// What TLS is restricted to, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Compliance {
    /// Nothing more than what this program speaks anyway.
    None,
    /// Key exchange that withstands a quantum computer, and no connection without.
    Pqc,
}

impl Compliance {
    /// What it means for handshakes.
    #[must_use]
    pub fn key_exchange(self) -> KeyExchange {
        match self {
            Self::None => KeyExchange::PostQuantumPreferred,
            Self::Pqc => KeyExchange::PostQuantumOnly,
        }
    }
}

/// Everything the program was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Whom the proxy serves.
    pub mode: Mode,
    /// Name of this machine's network; workloads of another network are not dialled directly.
    pub network: String,
    /// The node's name, empty outside Kubernetes.
    pub local_node: String,
    /// The cluster's name, sent with each control-plane call.
    pub cluster_id: String,
    /// The trust domain of the proxy's own identity.
    pub trust_domain: String,
    /// The proxy's own pod name.
    pub pod_name: String,
    /// The proxy's own namespace.
    pub pod_namespace: String,
    /// The proxy's own service account.
    pub service_account: String,
    /// The proxy's own address; 1.1.1.1 where it was not told, as the node id needs one.
    pub instance_ip: IpAddr,
    /// Where the mesh's state comes from.
    pub xds: Source,
    /// Workloads and services are asked for when they are needed, rather than all at once.
    pub xds_on_demand: bool,
    /// The certificate authority.
    pub ca: Endpoint,
    /// The agent that issues certificates in place of the authority.
    pub spire: Option<Spire>,
    /// The credential for both.
    pub auth: Option<Token>,
    /// The file of certificates that were taken back, if there is to be one.
    pub crl_path: Option<PathBuf>,
    /// What TLS is restricted to.
    pub compliance_policy: Compliance,
    /// Lifetime asked for certificates.
    pub secret_ttl: Duration,
    /// Node metadata sent to the control plane.
    pub proxy_metadata: Vec<(String, String)>,
    /// Node metadata given as JSON documents.
    pub proxy_metadata_json: Vec<(String, serde_json::Value)>,
    /// Data threads.
    pub num_worker_threads: usize,
    /// Streams carried by one tunnel before another is opened.
    pub pool_max_streams_per_connection: u32,
    /// Idle time after which a tunnel is closed.
    pub pool_unused_release_timeout: Duration,
    /// HTTP/2 numbers.
    pub http2: Http2,
    /// Time connections have to end after a stop was asked for.
    pub termination_deadline: Duration,
    /// Original source preservation.
    pub original_source: OriginalSource,
    /// Mark on each socket we open, by which the redirection rules know us; 0 for none.
    pub packet_mark: u32,
    /// The agent's socket.
    pub inpod_uds: PathBuf,
    /// SO_REUSEPORT on in-pod listeners, needed by more than one thread and by upgrades.
    pub inpod_port_reuse: bool,
    /// TCP keepalive; `None` switches it off.
    pub keepalive: Option<Keepalive>,
    /// TCP_USER_TIMEOUT derived from the keepalive numbers.
    pub user_timeout: Option<Duration>,
    /// Listen on `[::]` (both families) rather than `0.0.0.0`.
    pub ipv6_enabled: bool,
    /// Where pods' DNS queries are answered; `None` when they are not.
    pub dns_proxy: Option<DnsAddress>,
    /// The cluster's domain, which ends its services' names.
    pub cluster_domain: String,
    /// The namespace whose services are preferred when several have one name; empty for none.
    pub preferred_service_namespace: String,
    /// A waypoint's PROXY-protocol port is dialled on loopback.
    pub localhost_app_tunnel: bool,
    /// Connections between two pods of this node take no tunnel.
    pub same_node_direct: bool,
    /// The first bytes of a connection go with the request for its stream.
    pub early_data: bool,
    /// The kernel moves long runs of bytes between two TCP connections.
    pub splice_enabled: bool,
    /// Answer CONNECT with the destination's labels.
    pub response_baggage: bool,
    /// Admin server (localhost only).
    pub admin_addr: SocketAddr,
    /// Metrics server.
    pub stats_addr: SocketAddr,
    /// Readiness server.
    pub readiness_addr: SocketAddr,
    /// Log filter.
    pub log_filter: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Which connections get a record in the access log; all when there is none.
    pub access_log_filter: Option<Filter>,
    /// Where records and spans are exported to; nowhere when there is none.
    pub otlp: Option<ambit_otlp::Settings>,
    /// What policies decide is logged at level info rather than debug.
    pub policy_info_logging: bool,
    /// Bounds of the label sets of metrics.
    pub metrics: Limits,
    /// Version label of the `istio_build` metric.
    pub version_tag: String,
}

fn names_only<S: serde::Serializer>(
    headers: &[(String, String)],
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(headers.iter().map(|(name, _)| name))
}

impl Settings {
    /// The node id of xDS: type, address, name and domain, as Istio builds it.
    #[must_use]
    pub fn node_id(&self) -> String {
        format!(
            "ztunnel~{}~{}.{}~{}.svc.cluster.local",
            self.instance_ip, self.pod_name, self.pod_namespace, self.pod_namespace
        )
    }

    /// The address in-pod listeners bind, without the port.
    #[must_use]
    pub fn wildcard(&self) -> IpAddr {
        if self.ipv6_enabled {
            IpAddr::from([0u16; 8])
        } else {
            IpAddr::from([0u8; 4])
        }
    }

    /// The workload that this proxy is there for alone, if there is one.
    #[must_use]
    pub fn only(&self) -> Option<&Only> {
        match &self.mode {
            Mode::Shared => None,
            Mode::Dedicated(only) => Some(only),
        }
    }

    /// How many bytes on end are moved between two TCP connections.
    #[must_use]
    pub fn bulk(&self) -> Bulk {
        if self.splice_enabled {
            Bulk::Spliced
        } else {
            Bulk::Copied
        }
    }
}

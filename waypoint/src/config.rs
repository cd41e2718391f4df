//! What a waypoint may be told at start, as typed values. Everything else comes over xDS.
//!
//! The variable names, defaults and meanings are the ones Istio gives a waypoint's pod, so that a
//! Deployment written for it starts this program unchanged. A value that cannot be understood stops
//! the start with the variable's name.

pub mod env;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ambit_control::{Roots, TokenSource};
use ambit_model::identity::Identity;
use ambit_observe::logging::LogFormat;
use ambit_observe::metrics::Limits;

/// Port where tunnels (HBONE) arrive.
pub const HBONE_PORT: u16 = 15008;

/// A setting that stops the program from starting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct Problem {
    /// The variable that is wrong.
    pub name: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// A service of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://host:port`.
    pub address: String,
    /// Whose certificates are believed.
    pub roots: Roots,
    /// A second server name that is accepted besides the address' host.
    pub alternative_name: Option<String>,
}

/// Everything the program was told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who we are: from trust domain, namespace and service account.
    pub identity: Identity,
    /// Our pod's name.
    pub pod_name: String,
    /// Our own address, part of the node id.
    pub instance_ip: IpAddr,
    /// `<namespace>.svc.<cluster domain>`
    pub domain: String,
    /// Name of our service cluster, `node.cluster`.
    pub service_cluster: String,
    /// The cluster's name.
    pub cluster_id: String,
    /// Name of our network.
    pub network: String,
    /// Discovery.
    pub xds: Endpoint,
    /// The certificate authority.
    pub ca: Endpoint,
    /// The credential for both.
    pub token: TokenSource,
    /// Lifetime asked for our certificate.
    pub secret_ttl: Duration,
    /// Node metadata: names with JSON values.
    pub metadata: Vec<(String, serde_json::Value)>,
    /// Data threads.
    pub threads: usize,
    /// Time connections have to end after a stop was asked for.
    pub termination_deadline: Duration,
    /// Where tunnels arrive.
    pub tunnel_addr: SocketAddr,
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
    /// Bounds of the label sets of metrics.
    pub metrics: Limits,
    /// Istio's version, as the control plane and the `istio_build` metric want it.
    pub version_tag: String,
}

impl Settings {
    /// The node id of xDS: kind, address, name and domain, as Istio builds it.
    #[must_use]
    pub fn node_id(&self) -> String {
        let namespace = self.identity.namespace();
        format!(
            "waypoint~{}~{}.{namespace}~{}",
            self.instance_ip, self.pod_name, self.domain
        )
    }

    /// For the log and the admin page; no secret in it.
    #[must_use]
    pub fn shown(&self) -> serde_json::Value {
        let endpoint = |endpoint: &Endpoint| {
            serde_json::json!({
                "address": endpoint.address,
                "roots": match &endpoint.roots {
                    Roots::File(path) => path.display().to_string(),
                    Roots::Pem(_) => "(given as text)".to_owned(),
                    Roots::System => "SYSTEM".to_owned(),
                },
                "alternativeName": endpoint.alternative_name,
            })
        };
        serde_json::json!({
            "identity": self.identity.to_string(),
            "nodeId": self.node_id(),
            "serviceCluster": self.service_cluster,
            "clusterId": self.cluster_id,
            "network": self.network,
            "xds": endpoint(&self.xds),
            "ca": endpoint(&self.ca),
            "token": match &self.token {
                TokenSource::None => "none".to_owned(),
                TokenSource::File(path) => path.display().to_string(),
                TokenSource::Literal(_) => "(literal, not shown)".to_owned(),
            },
            "secretTtlSeconds": self.secret_ttl.as_secs(),
            "threads": self.threads,
            "terminationDeadlineSeconds": self.termination_deadline.as_secs(),
            "tunnelAddr": self.tunnel_addr,
            "adminAddr": self.admin_addr,
            "statsAddr": self.stats_addr,
            "readinessAddr": self.readiness_addr,
            "logFilter": self.log_filter,
            "metrics": self.metrics,
            "metadata": self.metadata.iter().cloned().collect::<serde_json::Map<_, _>>(),
        })
    }
}

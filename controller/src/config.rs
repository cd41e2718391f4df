//! Typed settings of the controller. Read from arguments in `main`, passed as values from there on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Facts about the mesh that every resource depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// Name of this cluster, in workload uids and metrics.
    pub cluster_id: String,
    /// Name of this cluster's network; empty when there is only one.
    pub network: String,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// Suffix of service host names after `svc.`.
    pub cluster_domain: String,
    /// Service accounts, `namespace/name`, whose pods may ask for certificates of other pods on
    /// their node.
    pub node_accounts: Vec<(String, String)>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            network: String::new(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_accounts: vec![("istio-system".to_owned(), "ztunnel".to_owned())],
        }
    }
}

impl Mesh {
    /// The host name of a Kubernetes service.
    pub fn hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.cluster_domain)
    }
}

/// What `serve` needs to know.
#[derive(Clone, Debug)]
pub struct Serve {
    /// Folder of manifests.
    pub manifests: PathBuf,
    /// Folder of the status overlay; inside `manifests` when absent.
    pub status: Option<PathBuf>,
    /// Folder of root certificate and keys.
    pub state: PathBuf,
    /// Where discovery and certificates are served.
    pub listen: SocketAddr,
    /// Where people and scrapers look.
    pub admin: SocketAddr,
    /// Names the server's certificate proves.
    pub server_names: Vec<String>,
    /// Longest life of a certificate.
    pub max_ttl: Duration,
    /// A further key whose tokens are accepted, such as a cluster's service-account key.
    pub token_key: Option<PathBuf>,
    /// The mesh.
    pub mesh: Mesh,
}

//! The answers of the admin servers, as far as they are shown. What is missing is empty: other versions, and Istio's
//! node proxy, answer the same shape with more or fewer fields.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `/config_dump` of the node proxy.
#[derive(Debug, Clone, Default)]
pub struct Dump {
    raw: Value,
    /// By uid.
    pub workloads: Vec<Workload>,
    /// By host name.
    pub services: Vec<Service>,
    /// By namespace and name.
    pub policies: Vec<Policy>,
    /// By identity.
    pub certificates: Vec<Certificate>,
    /// The pods of this node, by uid.
    pub pods: BTreeMap<String, PodState>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Parts {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    certificates: Vec<Certificate>,
    workload_state: BTreeMap<String, PodState>,
}

impl Dump {
    /// Reads an answer.
    ///
    /// # Errors
    /// It has another shape.
    pub fn read(raw: Value) -> serde_json::Result<Self> {
        let parts = Parts::deserialize(&raw)?;
        Ok(Self {
            raw,
            workloads: parts.workloads,
            services: parts.services,
            policies: parts.policies,
            certificates: parts.certificates,
            pods: parts.workload_state,
        })
    }

    /// One part as the proxy gave it.
    #[must_use]
    pub fn raw(&self, part: &str) -> &Value {
        self.raw.get(part).unwrap_or(&Value::Null)
    }

    /// Some entries of one part as the proxy gave them.
    #[must_use]
    pub fn raw_of(&self, part: &str, indices: &[usize]) -> Vec<&Value> {
        indices
            .iter()
            .filter_map(|index| self.raw(part).get(index))
            .collect()
    }

    /// The name behind an address: a pod's, else a service's.
    #[must_use]
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        let text = address.to_string();
        let workload = self
            .workloads
            .iter()
            .find(|workload| workload.workload_ips.contains(&text));
        workload.map(Workload::full_name).or_else(|| {
            let service = self.services.iter().find(|service| service.has_vip(&text));
            service.map(|service| format!("{}/{}", service.namespace, service.name))
        })
    }

    /// What a waypoint is called: `name`, with its namespace where it is another one.
    #[must_use]
    pub fn waypoint(&self, gateway: Option<&Gateway>, namespace: &str) -> String {
        let Some(gateway) = gateway else {
            return "None".to_owned();
        };
        let (first, rest) = gateway
            .destination
            .split_once('/')
            .unwrap_or(("", &gateway.destination));
        let found = match rest.parse::<IpAddr>() {
            Ok(address) => self.name_of(address),
            Err(_) => {
                let service = self
                    .services
                    .iter()
                    .find(|service| service.hostname == rest && service.namespace == first);
                service.map(|service| format!("{}/{}", service.namespace, service.name))
            }
        };
        let name = found.unwrap_or_else(|| gateway.destination.clone());
        let own = name
            .strip_prefix(namespace)
            .and_then(|rest| rest.strip_prefix('/'));
        own.map_or_else(|| name.clone(), str::to_owned)
    }
}

/// A workload.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Workload {
    /// Key.
    pub uid: String,
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Addresses.
    pub workload_ips: Vec<String>,
    /// Node.
    pub node: String,
    /// `HBONE` or `TCP`.
    pub protocol: String,
    /// Its waypoint.
    pub waypoint: Option<Gateway>,
    /// Names of policies that select it.
    pub authorization_policies: Vec<String>,
}

impl Workload {
    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its SPIFFE id.
    #[must_use]
    pub fn identity(&self) -> String {
        let Self {
            trust_domain,
            namespace,
            service_account,
            ..
        } = self;
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

/// Where a waypoint is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// `network/address` or `namespace/hostname`.
    pub destination: String,
}

/// A service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Full name.
    pub hostname: String,
    /// `network/address`.
    pub vips: Vec<String>,
    /// By workload.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Its waypoint.
    pub waypoint: Option<Gateway>,
}

impl Service {
    fn has_vip(&self, address: &str) -> bool {
        self.vips
            .iter()
            .any(|vip| vip.rsplit_once('/').map_or(vip.as_str(), |(_, ip)| ip) == address)
    }
}

/// One endpoint of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// `Healthy` or not.
    pub status: String,
}

/// A policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `Allow` or `Deny`.
    pub action: String,
    /// Whom it applies to.
    pub scope: String,
    /// It decides nothing.
    pub dry_run: bool,
    /// What in it was not understood.
    pub problems: Vec<Value>,
}

/// One identity's certificate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Certificate {
    /// Whose.
    pub identity: String,
    /// `Available`, or why not.
    pub state: String,
    /// Leaf first.
    pub cert_chain: Vec<CertificateText>,
    /// The trust bundle.
    pub root_certs: Vec<CertificateText>,
}

/// One certificate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateText {
    /// Decimal.
    pub serial_number: String,
    /// RFC 3339.
    pub valid_from: String,
    /// RFC 3339.
    pub expiration_time: String,
}

/// A pod of this node at the node proxy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodState {
    /// `Up` or `Pending`.
    pub state: String,
    /// Who it is.
    pub info: PodInfo,
    /// What it has open.
    pub connections: Open,
}

/// Who a pod is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodInfo {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// Open connections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Open {
    /// That came in.
    pub inbound: Vec<Connection>,
    /// That went out.
    pub outbound: Vec<Connection>,
}

/// One open connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Connection {
    /// The client.
    pub src: String,
    /// Where it wanted to go.
    pub original_dst: Option<String>,
    /// Where the bytes go.
    pub actual_dst: String,
    /// `HBONE` or `TCP`.
    pub protocol: String,
    /// Who the peer proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// `/debug/pods` of the agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pods {
    /// The agent's node.
    pub node: String,
    /// Node proxies that are connected to it.
    pub node_proxies_connected: usize,
    /// The pods of the node.
    pub pods: Vec<AgentPod>,
}

/// A pod as its agent sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// To be in the mesh.
    pub wanted: bool,
    /// Why, or why not.
    pub why: String,
    /// `out`, `enrolling`, `enrolled` or `leaving`.
    pub state: String,
    /// Rules in its namespace.
    pub rules: String,
    /// Whether the node proxy serves it.
    pub proxy: String,
    /// What others were told.
    pub announced: String,
    /// Where its network namespace is.
    pub netns_path: Option<String>,
    /// Which it is.
    pub netns: Option<String>,
    /// What keeps it.
    pub last_error: Option<String>,
    /// How often its rules were put back.
    pub mended: u64,
}

//! A service: a name and virtual addresses in front of workloads.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::address::{GatewayAddress, Vip};
use crate::identity::Identity;
use crate::text::Text;
use crate::workload::Workload;

/// Key of a service. Displays as `namespace/hostname`, which is also its resource name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the service.
    pub namespace: Text,
    /// Full host name.
    pub hostname: Text,
}

impl ServiceKey {
    /// A key of its two parts.
    #[must_use]
    pub fn new(namespace: impl Into<Text>, hostname: impl Into<Text>) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: hostname.into(),
        }
    }

    /// Reads `namespace/hostname`. `None` when there is no slash, a part is empty, or the host name holds another slash.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = text.split_once('/')?;
        let valid = !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/');
        valid.then(|| Self::new(namespace, hostname))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("expected namespace/hostname"))
    }
}

/// A service as clients address it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Namespace and host name.
    pub key: ServiceKey,
    /// Name of the object that declares it.
    pub name: Text,
    /// Virtual addresses; none for a headless service.
    pub vips: Vec<Vip>,
    /// Declared ports.
    pub ports: Vec<Port>,
    /// Identities a server of it may present, besides those of its workloads.
    pub subject_alt_names: Vec<Identity>,
    /// The waypoint that traffic to it passes.
    pub waypoint: Option<GatewayAddress>,
    /// When not empty, one of these is drawn by weight instead of `waypoint`.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Which address families it offers.
    pub ip_families: IpFamilies,
    /// Among services of one host name: the one that clients of other namespaces see.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

impl Service {
    /// A service without addresses, ports or waypoint.
    #[must_use]
    pub fn new(key: ServiceKey) -> Self {
        Self {
            name: key.hostname.split('.').next().unwrap_or_default().into(),
            key,
            vips: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: false,
            visibility: Visibility::Public,
        }
    }

    /// The declared port of that number.
    #[must_use]
    pub fn port(&self, service_port: u16) -> Option<&Port> {
        self.ports
            .iter()
            .find(|port| port.service_port == service_port)
    }

    /// May a client of `namespace` see it.
    #[must_use]
    pub fn visible_to(&self, namespace: &str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => self.key.namespace == *namespace,
        }
    }

    /// Every waypoint that traffic to it may pass.
    pub fn waypoints(&self) -> impl Iterator<Item = &GatewayAddress> {
        let weighted = self
            .weighted_waypoints
            .iter()
            .map(|entry| &entry.destination);
        self.waypoint.iter().chain(weighted)
    }
}

/// A service port and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// The number clients name.
    pub service_port: u16,
    /// The number dialled; 0 when each endpoint has its own.
    pub target_port: u16,
}

/// A waypoint and its share of connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share relative to the sum of all.
    pub weight: u32,
}

/// How an endpoint of a service is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancing {
    /// What the scopes mean.
    pub mode: Mode,
    /// Properties that client and endpoint may share, most significant first.
    #[serde(rename = "routingPreferences", alias = "scopes")]
    pub scopes: Vec<Scope>,
    /// Which endpoints count by health.
    pub health_policy: HealthPolicy,
}

/// What the scopes of a service mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Nothing.
    #[default]
    Standard,
    /// All must match.
    Strict,
    /// Endpoints that match more of them, in order, are preferred.
    Failover,
    /// No endpoint is chosen; the original destination is dialled.
    Passthrough,
}

/// A property that client and endpoint may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Part of a zone.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

/// Which endpoints count by health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Address families of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IpFamilies {
    /// Not declared: any.
    #[default]
    Automatic,
    /// IPv4 alone.
    #[serde(rename = "IPv4", alias = "V4")]
    V4,
    /// IPv6 alone.
    #[serde(rename = "IPv6", alias = "V6")]
    V6,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Does the service offer the family of `address`.
    #[must_use]
    pub fn permit(self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// Who may see a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}

/// A workload behind a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own ports for this service. Four cover nearly every service without an allocation.
    pub ports: SmallVec<[Port; 4]>,
}

impl Endpoint {
    /// The port of this workload behind `service_port`: its own mapping, else the one the service declares. `None` when neither
    /// knows a number.
    #[must_use]
    pub fn target_port(&self, service: &Service, service_port: u16) -> Option<u16> {
        target_port(&self.ports, service_port).or_else(|| target_port(&service.ports, service_port))
    }
}

/// Where `service_port` leads by one mapping; 0 leads nowhere.
#[must_use]
pub fn target_port(ports: &[Port], service_port: u16) -> Option<u16> {
    let port = ports.iter().find(|port| port.service_port == service_port);
    port.map(|port| port.target_port)
        .filter(|&target| target != 0)
}

/// The workloads behind a service, ordered by uid. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    list: Arc<[Endpoint]>,
    heaviest: u32,
}

impl Endpoints {
    /// A list that is already ordered by uid.
    pub(crate) fn new(list: Arc<[Endpoint]>) -> Self {
        let heaviest = list.iter().map(|endpoint| endpoint.workload.capacity).max();
        Self {
            heaviest: heaviest.unwrap_or_default(),
            list,
        }
    }

    /// The largest capacity among them.
    #[must_use]
    pub fn heaviest(&self) -> u32 {
        self.heaviest
    }
}

impl std::ops::Deref for Endpoints {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        &self.list
    }
}

//! A workload: one endpoint that connections come from and go to.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::address::GatewayAddress;
use crate::identity::Identity;
use crate::policy::PolicyKey;
use crate::service::{Port, ServiceKey};
use crate::text::Text;

/// Stands for an empty trust domain on the wire (contract of `istio.workload.Workload`).
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Stands for an empty service account on the wire.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// Stands for an empty cluster on the wire.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";
/// Weight of a workload that names none.
pub const DEFAULT_CAPACITY: u32 = 1;

/// One endpoint of the mesh: a pod, a virtual machine, an external address.
///
/// What it has in common with the other replicas of its owner is its [`Template`], which they share in memory
/// ([`Interned`](crate::intern::Interned)). Its fields are read and written as if they were the workload's own; writing one ends the
/// sharing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Key of the record.
    pub uid: Text,
    /// Its name where the uid does not end with it, as that of a pod does: of 50,000 pods each name is in memory once.
    pub(crate) own_name: Option<Box<str>>,
    /// Its addresses, canonical (no IPv4 mapped into IPv6).
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// Node it runs on; may be empty.
    pub node: Text,
    /// Is it ready for traffic.
    pub health: Health,
    /// The rest.
    pub(crate) template: Arc<Template>,
}

/// What the replicas of one owner have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    /// Namespace; always that of `identity`.
    pub namespace: Text,
    /// Who it is.
    pub identity: Identity,
    /// Host name to resolve when it has no address; may be empty.
    pub hostname: Text,
    /// Network its addresses belong to.
    pub network: Text,
    /// How it accepts connections.
    pub protocol: Protocol,
    /// The waypoint that traffic addressed to it passes.
    pub waypoint: Option<GatewayAddress>,
    /// How to enter its network from another one.
    pub network_gateway: Option<GatewayAddress>,
    /// Canonical service name.
    pub canonical_name: Text,
    /// Canonical service revision.
    pub canonical_revision: Text,
    /// Kind of its owner.
    pub workload_type: WorkloadType,
    /// Name of its owner.
    pub workload_name: Text,
    /// It ends tunnels itself.
    pub native_tunnel: bool,
    /// How its application takes what comes out of a tunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Services it is an endpoint of, with its own port numbers.
    pub services: Memberships,
    /// Policies that apply to it besides those of its namespace and of the mesh.
    pub policies: Vec<PolicyKey>,
    /// Cluster it runs in.
    pub cluster: Text,
    /// Where it runs.
    pub locality: Locality,
    /// Does an address of its name it alone.
    pub network_mode: NetworkMode,
    /// Weight among the endpoints of a service; 0 takes none.
    pub capacity: u32,
}

impl Deref for Workload {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

impl DerefMut for Workload {
    fn deref_mut(&mut self) -> &mut Template {
        Arc::make_mut(&mut self.template)
    }
}

impl Workload {
    /// A healthy workload without addresses, services or policies that speaks plain TCP.
    #[must_use]
    pub fn new(uid: Text, name: &str, identity: Identity) -> Self {
        let template = Template {
            namespace: identity.namespace().into(),
            identity,
            hostname: Text::empty(),
            network: Text::empty(),
            protocol: Protocol::Tcp,
            waypoint: None,
            network_gateway: None,
            canonical_name: Text::empty(),
            canonical_revision: Text::empty(),
            workload_type: WorkloadType::Deployment,
            workload_name: Text::empty(),
            native_tunnel: false,
            application_tunnel: None,
            services: Memberships::default(),
            policies: Vec::new(),
            cluster: DEFAULT_CLUSTER.into(),
            locality: Locality::default(),
            network_mode: NetworkMode::Standard,
            capacity: DEFAULT_CAPACITY,
        };
        Self {
            own_name: (last_part(&uid) != name).then(|| name.into()),
            uid,
            addresses: SmallVec::new(),
            node: Text::empty(),
            health: Health::Healthy,
            template: Arc::new(template),
        }
    }

    /// Object name; the pod name for pods.
    #[must_use]
    pub fn name(&self) -> &str {
        self.own_name
            .as_deref()
            .unwrap_or_else(|| last_part(&self.uid))
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Is it a pod, by the form of its uid (`<cluster>//Pod/<namespace>/<name>`).
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.uid.contains("//Pod/")
    }

    /// Does it have a name to resolve in place of an address.
    #[must_use]
    pub fn has_only_a_name(&self) -> bool {
        self.addresses.is_empty() && !self.hostname.is_empty()
    }

    /// Does `address` belong to it.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Its own ports for `service`, or `None` when it is no endpoint of that service.
    #[must_use]
    pub fn ports_for(&self, service: &ServiceKey) -> Option<&[Port]> {
        self.services.get(service)
    }
}

/// What comes after the last slash.
fn last_part(uid: &str) -> &str {
    uid.rsplit('/').next().unwrap_or_default()
}

/// The services that a workload is an endpoint of, each with the workload's own port numbers. Ordered by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Memberships(Vec<(ServiceKey, Box<[Port]>)>);

impl Memberships {
    /// Makes it an endpoint of `service`.
    pub fn insert(&mut self, service: ServiceKey, ports: impl Into<Box<[Port]>>) {
        let ports = ports.into();
        match self.place(&service) {
            Ok(place) => {
                if let Some((_, known)) = self.0.get_mut(place) {
                    *known = ports;
                }
            }
            Err(place) => self.0.insert(place, (service, ports)),
        }
    }

    /// Its own ports for `service`; `None` when it is no endpoint of it.
    #[must_use]
    pub fn get(&self, service: &ServiceKey) -> Option<&[Port]> {
        let found = self.place(service).ok().and_then(|place| self.0.get(place));
        found.map(|(_, ports)| &**ports)
    }

    /// Is it an endpoint of `service`.
    #[must_use]
    pub fn contains_key(&self, service: &ServiceKey) -> bool {
        self.place(service).is_ok()
    }

    /// The services, in order.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The services and its ports, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &[Port])> {
        self.0.iter().map(|(key, ports)| (key, &**ports))
    }

    /// Makes it an endpoint of nothing.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn keys_mut(&mut self) -> impl Iterator<Item = &mut ServiceKey> {
        self.0.iter_mut().map(|(key, _)| key)
    }

    fn place(&self, service: &ServiceKey) -> Result<usize, usize> {
        self.0.binary_search_by(|(key, _)| key.cmp(service))
    }
}

impl FromIterator<(ServiceKey, Vec<Port>)> for Memberships {
    fn from_iter<I: IntoIterator<Item = (ServiceKey, Vec<Port>)>>(from: I) -> Self {
        let mut memberships = Self::default();
        for (service, ports) in from {
            memberships.insert(service, ports);
        }
        memberships.0.shrink_to_fit();
        memberships
    }
}

/// How a workload accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Plain TCP on its own ports.
    Tcp,
    /// Tunnels on the HBONE port; plaintext must not be sent to it.
    Hbone,
}

/// Is a workload ready for traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Not ready, or going away.
    Unhealthy,
}

/// Does an address of a workload name it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkMode {
    /// Yes.
    Standard,
    /// No: it shares the addresses of its node, so it is never found by address.
    HostNetwork,
}

/// Kind of a workload's owner, for telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    /// Lower-case name, as in baggage keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// How the application behind a tunnel is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ApplicationTunnel {
    /// What is sent in front of the bytes.
    pub protocol: ApplicationProtocol,
    /// Port to dial instead of the requested one.
    pub port: Option<u16>,
}

/// What is sent to an application in front of the bytes of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ApplicationProtocol {
    /// Nothing.
    None,
    /// A PROXY version 2 header.
    Proxy,
}

/// Where a workload runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Locality {
    /// Region.
    pub region: Text,
    /// Zone within the region.
    pub zone: Text,
    /// Part of the zone.
    pub subzone: Text,
}

#[cfg(test)]
mod tests {
    use super::Workload;
    use crate::fixture::pod;

    #[test]
    fn a_name_that_the_uid_ends_with_is_in_memory_once() {
        let identity = pod("shop", "web", "10.0.0.1").identity.clone();
        for (uid, name, alone) in [
            ("Kubernetes//Pod/shop/web-1", "web-1", false),
            ("Kubernetes//Pod/shop/web-1", "web", true),
            ("Kubernetes//Pod/shop/web-1", "", true),
            ("web-1", "web-1", false),
        ] {
            let workload = Workload::new(uid.into(), name, identity.clone());
            assert_eq!(workload.name(), name);
            assert_eq!(workload.own_name.is_some(), alone, "{uid} {name}");
        }
    }
}

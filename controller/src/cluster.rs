//! The cluster view: all objects with the relations between them, immutable.
//!
//! Built once per change, read by the translation and by the certificate authority. Everything here
//! is derived from the objects alone, so any order of changes that ends at the same objects ends at
//! the same view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ambit_objects::kinds::security::Selector;
use ambit_objects::{Key, Kind, Name, Objects};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::config::Mesh;
use crate::finding::Findings;

pub mod waypoint;

pub use waypoint::{Binding, Handles, Waypoint};

/// Label of a pod or service that belongs to a Gateway.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Labels, as Kubernetes has them.
pub type Labels = BTreeMap<String, String>;

/// All objects, and what follows from them.
#[derive(Debug)]
pub struct Cluster {
    objects: Arc<Objects>,
    mesh: Mesh,
    waypoints: BTreeMap<Name, Waypoint>,
    /// Pods that are in the mesh, each with its usable addresses.
    pods: BTreeMap<Name, Vec<IpAddr>>,
    /// Services that can be reached, each with its usable addresses.
    services: BTreeMap<Name, Vec<IpAddr>>,
}

impl Cluster {
    /// Derives the view. What does not fit together goes to `findings`.
    pub(crate) fn new(objects: Arc<Objects>, mesh: Mesh, findings: &mut Findings) -> Self {
        let mut cluster = Self {
            objects,
            mesh,
            waypoints: BTreeMap::new(),
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
        };
        let mut taken = BTreeMap::new();
        cluster.pods = cluster.place_pods(&mut taken, findings);
        cluster.services = cluster.place_services(taken, findings);
        cluster.waypoints = waypoint::all(&cluster, findings);
        cluster.check_namespaces(findings);
        cluster
    }

    /// The objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Usable waypoints.
    pub fn waypoints(&self) -> &BTreeMap<Name, Waypoint> {
        &self.waypoints
    }

    /// Pods with an address, oldest name first.
    pub fn pods(&self) -> impl Iterator<Item = (&Name, &Pod, &[IpAddr])> {
        self.pods.iter().filter_map(|(name, addresses)| {
            Some((
                name,
                self.objects.pods.get(name)?.as_ref(),
                addresses.as_slice(),
            ))
        })
    }

    /// Services other than `ExternalName`, with their addresses; headless ones have none.
    pub fn services(&self) -> impl Iterator<Item = (&Name, &Service, &[IpAddr])> {
        self.services.iter().filter_map(|(name, addresses)| {
            Some((
                name,
                self.objects.services.get(name)?.as_ref(),
                addresses.as_slice(),
            ))
        })
    }

    /// One of [`Cluster::services`].
    pub fn service(&self, name: &Name) -> Option<(&Service, &[IpAddr])> {
        let addresses = self.services.get(name)?;
        Some((self.objects.services.get(name)?.as_ref(), addresses))
    }

    /// Labels of a namespace; none when there is no such object.
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.objects
            .namespaces
            .get(&Name::new("", namespace))?
            .metadata
            .labels
            .as_ref()
    }

    /// Addresses of every pod that is alive. Two pods cannot have one; the older keeps it.
    fn place_pods(
        &self,
        taken: &mut BTreeMap<IpAddr, Key>,
        findings: &mut Findings,
    ) -> BTreeMap<Name, Vec<IpAddr>> {
        let mut placed = BTreeMap::new();
        for (name, pod) in by_age(&self.objects.pods, |pod| &pod.metadata) {
            if !is_alive(pod) {
                continue;
            }
            let key = Key {
                kind: Kind::Pod,
                name: name.clone(),
            };
            let shared = is_host_network(pod);
            let mut addresses = Vec::new();
            for text in pod_addresses(pod) {
                let Ok(address) = text.parse::<IpAddr>() else {
                    let message = format!("{text:?} is not an IP address; it is left out");
                    findings.error(&key, "status.podIPs", message);
                    continue;
                };
                if shared || claim(taken, address, &key, "status.podIPs", findings) {
                    addresses.push(address);
                }
            }
            if !addresses.is_empty() {
                placed.insert(name.clone(), addresses);
            }
        }
        placed
    }

    /// Addresses of every service. Two services cannot have one; the older keeps it.
    fn place_services(
        &self,
        mut taken: BTreeMap<IpAddr, Key>,
        findings: &mut Findings,
    ) -> BTreeMap<Name, Vec<IpAddr>> {
        let mut placed = BTreeMap::new();
        for (name, service) in by_age(&self.objects.services, |service| &service.metadata) {
            if service.spec.as_ref().is_some_and(|spec| {
                spec.type_.as_deref() == Some("ExternalName") || spec.external_name.is_some()
            }) {
                continue;
            }
            let key = Key {
                kind: Kind::Service,
                name: name.clone(),
            };
            let mut addresses = Vec::new();
            for text in service_addresses(service) {
                let Ok(address) = text.parse::<IpAddr>() else {
                    let message = format!("{text:?} is not an IP address; it is left out");
                    findings.error(&key, "spec.clusterIPs", message);
                    continue;
                };
                if claim(&mut taken, address, &key, "spec.clusterIPs", findings) {
                    addresses.push(address);
                }
            }
            placed.insert(name.clone(), addresses);
        }
        placed
    }

    fn check_namespaces(&self, findings: &mut Findings) {
        let known: BTreeSet<&str> = self
            .objects
            .namespaces
            .keys()
            .map(|name| name.name.as_str())
            .collect();
        let pods = self.objects.pods.keys().map(|name| (Kind::Pod, name));
        let services = self
            .objects
            .services
            .keys()
            .map(|name| (Kind::Service, name));
        for (kind, name) in pods.chain(services) {
            if !known.contains(name.namespace.as_str()) {
                findings.warning(
                    &Key {
                        kind,
                        name: name.clone(),
                    },
                    "metadata.namespace",
                    format!(
                        "there is no Namespace {}; it counts as one without labels",
                        name.namespace
                    ),
                );
            }
        }
    }
}

/// Gives `address` to `key` unless somebody has it.
fn claim(
    taken: &mut BTreeMap<IpAddr, Key>,
    address: IpAddr,
    key: &Key,
    field: &str,
    findings: &mut Findings,
) -> bool {
    match taken.get(&address) {
        Some(owner) if owner == key => false,
        Some(owner) => {
            let message = format!("{address} belongs to {owner}; it is left out here");
            findings.error(key, field, message);
            false
        }
        None => {
            taken.insert(address, key.clone());
            true
        }
    }
}

/// Objects oldest first; those without a time last, then by name. Where Istio lets the oldest
/// decide, a newcomer cannot take anything from who was there.
pub(crate) fn by_age<T>(
    set: &BTreeMap<Name, Arc<T>>,
    metadata: impl Fn(&T) -> &ObjectMeta,
) -> Vec<(&Name, &T)> {
    let mut objects: Vec<(&Name, &T)> = set
        .iter()
        .map(|(name, object)| (name, object.as_ref()))
        .collect();
    // The sort is stable and the map is sorted by name.
    objects.sort_by_key(|(_, object)| {
        let time = metadata(object)
            .creation_timestamp
            .clone()
            .map(|Time(time)| time);
        (time.is_none(), time)
    });
    objects
}

/// Whether `labels` carry every label of the selector; an empty or absent one selects everything.
pub(crate) fn selects(selector: Option<&Selector>, labels: &Labels) -> bool {
    let Some(wanted) = selector.and_then(|selector| selector.match_labels.as_ref()) else {
        return true;
    };
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Labels of an object; none is an empty map.
pub(crate) fn labels(metadata: &ObjectMeta) -> &Labels {
    static NONE: Labels = Labels::new();
    metadata.labels.as_ref().unwrap_or(&NONE)
}

/// An annotation's value.
pub(crate) fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether its label says that it takes tunnels by itself: it has a proxy of its own, or is one.
pub(crate) fn takes_tunnels(pod: &Pod) -> bool {
    labels(&pod.metadata)
        .get("networking.istio.io/tunnel")
        .is_some_and(|tunnel| tunnel == "http")
}

/// Not yet ended. A pod that is being deleted is alive.
pub(crate) fn is_alive(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

pub(crate) fn is_host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false)
}

/// The pod's service account; Kubernetes means `default` when none is written.
pub(crate) fn service_account(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref())
        .filter(|account| !account.is_empty())
        .unwrap_or("default")
}

fn pod_addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let listed: Vec<&str> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|address| address.ip.as_str())
        .collect();
    if listed.is_empty() {
        status.pod_ip.as_deref().into_iter().collect()
    } else {
        listed
    }
}

fn service_addresses(service: &Service) -> Vec<&str> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let listed: Vec<&str> = spec
        .cluster_ips
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let all = if listed.is_empty() {
        spec.cluster_ip.as_deref().into_iter().collect()
    } else {
        listed
    };
    all.into_iter()
        .filter(|address| !address.is_empty() && *address != "None")
        .collect()
}

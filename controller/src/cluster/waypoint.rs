//! Which Gateways are waypoints, and which waypoint a service or pod uses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ambit_objects::kinds::gateway::{From, Gateway};
use ambit_objects::{Key, Kind, Name};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::cluster::{Cluster, GATEWAY_NAME, Labels, labels};
use crate::finding::Findings;

/// Class of the Gateways that are waypoints.
pub const WAYPOINT_CLASS: &str = "istio-waypoint";

/// Port of the tunnel; fixed, as in Istio.
pub const HBONE_PORT: u16 = 15008;

const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";

/// What a waypoint handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handles {
    /// Traffic to services; the default.
    Services,
    /// Traffic to pod addresses.
    Workloads,
    /// Both.
    All,
    /// Nothing.
    Nothing,
}

impl Handles {
    /// Whether traffic to a service may go there.
    pub fn services(self) -> bool {
        matches!(self, Self::Services | Self::All)
    }

    /// Whether traffic to a pod address may go there.
    pub fn workloads(self) -> bool {
        matches!(self, Self::Workloads | Self::All)
    }
}

/// Where a waypoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// By the host name of a service.
    Hostname {
        /// The service's namespace.
        namespace: String,
        /// The service's host name.
        hostname: String,
    },
    /// By address.
    Address(IpAddr),
}

/// A Gateway that can be used as a waypoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Waypoint {
    /// Its Gateway.
    pub name: Name,
    /// What it handles.
    pub handles: Handles,
    /// Where it is reached.
    pub reached: Reached,
    from: From,
    selector: Option<LabelSelector>,
}

/// What a service or pod that names a waypoint gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Binding<'a> {
    /// None is wanted.
    None,
    /// This one.
    To(&'a Waypoint),
    /// One is wanted and cannot be had.
    Unusable {
        /// The one that is wanted.
        wanted: Name,
        /// Why not.
        why: String,
    },
}

/// Every usable waypoint.
pub(super) fn all(cluster: &Cluster, findings: &mut Findings) -> BTreeMap<Name, Waypoint> {
    let mut waypoints = BTreeMap::new();
    for (name, gateway) in &cluster.objects().gateways {
        let key = Key {
            kind: Kind::Gateway,
            name: name.clone(),
        };
        match usable(cluster, &key, gateway, findings) {
            Ok(waypoint) => drop(waypoints.insert(name.clone(), waypoint)),
            // Other classes are somebody else's unless they turn out to be usable.
            Err(_) if gateway.spec.gateway_class_name != WAYPOINT_CLASS => {}
            Err((field, message)) => findings.error(&key, field, message),
        }
    }
    waypoints
}

fn usable(
    cluster: &Cluster,
    key: &Key,
    gateway: &Gateway,
    findings: &mut Findings,
) -> Result<Waypoint, (&'static str, String)> {
    let listeners = gateway.spec.listeners.as_deref().unwrap_or_default();
    if listeners.is_empty() {
        return Err((
            "spec.listeners",
            "a waypoint without listeners cannot be used; it needs one of protocol HBONE on port 15008"
                .to_owned(),
        ));
    }
    let listener = listeners
        .iter()
        .find(|listener| listener.protocol == "HBONE" && listener.port == HBONE_PORT)
        .ok_or_else(|| {
            (
                "spec.listeners",
                "no listener of protocol HBONE on port 15008".to_owned(),
            )
        })?;
    let allowed = listener
        .allowed_routes
        .as_ref()
        .and_then(|routes| routes.namespaces.as_ref());
    let reached = reached(cluster, &key.name, gateway).ok_or_else(|| {
        let message = format!(
            "no address: status.addresses is empty and there is no service {} with an address",
            key.name
        );
        ("status.addresses", message)
    })?;
    let class = Name::new("", &gateway.spec.gateway_class_name);
    let class = cluster.objects().gateway_classes.get(&class);
    let label = labels(&gateway.metadata)
        .get(WAYPOINT_FOR)
        .or_else(|| labels(&class?.metadata).get(WAYPOINT_FOR));
    let handles = match label.map(String::as_str) {
        None | Some("service") => Handles::Services,
        Some("workload") => Handles::Workloads,
        Some("all") => Handles::All,
        Some("none") => Handles::Nothing,
        Some(other) => {
            let message =
                format!("{other:?} is none of service, workload, all, none; service is meant");
            findings.error(key, "metadata.labels[istio.io/waypoint-for]", message);
            Handles::Services
        }
    };
    Ok(Waypoint {
        name: key.name.clone(),
        handles,
        reached,
        from: allowed
            .and_then(|namespaces| namespaces.from)
            .unwrap_or_default(),
        selector: allowed.and_then(|namespaces| namespaces.selector.clone()),
    })
}

/// Addresses published in the status first, host name before IP. Without any, the Gateway's own
/// service: there is no status when there is no Kubernetes API to write it to.
fn reached(cluster: &Cluster, name: &Name, gateway: &Gateway) -> Option<Reached> {
    let published = gateway
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let mut by_address = None;
    for address in published {
        if address.kind.as_deref() == Some("Hostname") {
            let hostname = address.value.clone();
            let namespace = hostname
                .split('.')
                .nth(1)
                .unwrap_or(&name.namespace)
                .to_owned();
            return Some(Reached::Hostname {
                namespace,
                hostname,
            });
        }
        by_address = by_address.or_else(|| address.value.parse().ok().map(Reached::Address));
    }
    by_address.or_else(|| {
        let own = |service: &Name, meta: &ObjectMeta| {
            service.namespace == name.namespace
                && (service.name == name.name || labels(meta).get(GATEWAY_NAME) == Some(&name.name))
        };
        let (service, ..) = cluster.services().find(|(service, object, addresses)| {
            !addresses.is_empty() && own(service, &object.metadata)
        })?;
        Some(Reached::Hostname {
            namespace: service.namespace.clone(),
            hostname: cluster.mesh().hostname(&service.namespace, &service.name),
        })
    })
}

impl Cluster {
    /// The waypoint for traffic to the service.
    pub fn service_waypoint(&self, name: &Name, metadata: &ObjectMeta) -> Binding<'_> {
        // A waypoint's own service is how it is reached; it cannot be behind another.
        if labels(metadata).contains_key(GATEWAY_NAME) || self.is_reached_by(name) {
            return Binding::None;
        }
        self.bind(name, metadata, "services", Handles::services)
    }

    /// The waypoint for traffic to the pod's address.
    pub fn pod_waypoint(&self, name: &Name, metadata: &ObjectMeta) -> Binding<'_> {
        if self.gateway_of(name, metadata).is_some() {
            return Binding::None;
        }
        self.bind(name, metadata, "workloads", Handles::workloads)
    }

    /// The waypoint that a pod is an instance of.
    pub fn gateway_of(&self, pod: &Name, metadata: &ObjectMeta) -> Option<&Waypoint> {
        let gateway = labels(metadata).get(GATEWAY_NAME)?;
        self.waypoints().get(&Name::new(&pod.namespace, gateway))
    }

    fn is_reached_by(&self, service: &Name) -> bool {
        let hostname = self.mesh().hostname(&service.namespace, &service.name);
        self.waypoints()
            .values()
            .any(|waypoint| match &waypoint.reached {
                Reached::Hostname {
                    hostname: reached, ..
                } => *reached == hostname,
                Reached::Address(address) => self
                    .service(service)
                    .is_some_and(|(_, addresses)| addresses.contains(address)),
            })
    }

    /// The object's own label decides alone; the namespace's only when it has none.
    fn bind(
        &self,
        name: &Name,
        metadata: &ObjectMeta,
        what: &str,
        handles: impl Fn(Handles) -> bool,
    ) -> Binding<'_> {
        let own = wanted(labels(metadata), &name.namespace);
        let explicit = own.is_some();
        let inherited = || {
            self.namespace_labels(&name.namespace)
                .and_then(|of| wanted(of, &name.namespace))
        };
        let Some(Wanted(wanted)) = own.or_else(inherited) else {
            return Binding::None;
        };
        let Some(wanted) = wanted else {
            return Binding::None;
        };
        let why = match self.waypoints().get(&wanted) {
            None => "there is no such waypoint, or it is not ready".to_owned(),
            Some(waypoint) if !self.may_attach(waypoint, &name.namespace) => {
                format!("its listener does not allow namespace {}", name.namespace)
            }
            Some(waypoint) if handles(waypoint.handles) => return Binding::To(waypoint),
            // A namespace's waypoint for the other kind of traffic is none of this object's business.
            Some(_) if !explicit => return Binding::None,
            Some(_) => format!("it does not handle {what}"),
        };
        Binding::Unusable { wanted, why }
    }

    fn may_attach(&self, waypoint: &Waypoint, namespace: &str) -> bool {
        match waypoint.from {
            From::All => true,
            From::None => false,
            From::Same => waypoint.name.namespace == namespace,
            From::Selector => {
                let empty = Labels::new();
                let labels = self.namespace_labels(namespace).unwrap_or(&empty);
                waypoint
                    .selector
                    .as_ref()
                    .is_some_and(|selector| matches(selector, labels))
            }
        }
    }
}

/// What a level's labels say; the inner `None` is an explicit "none".
struct Wanted(Option<Name>);

fn wanted(labels: &Labels, namespace: &str) -> Option<Wanted> {
    let name = labels.get(USE_WAYPOINT)?;
    if name == "none" {
        return Some(Wanted(None));
    }
    let namespace = labels
        .get(USE_WAYPOINT_NAMESPACE)
        .map_or(namespace, String::as_str);
    Some(Wanted(Some(Name::new(namespace, name))))
}

/// Kubernetes' label selector; an operator it does not have never matches.
fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let expressed = selector
        .match_expressions
        .iter()
        .flatten()
        .all(|expression| {
            let value = labels.get(&expression.key);
            let listed = value.is_some_and(|value| {
                expression
                    .values
                    .iter()
                    .flatten()
                    .any(|listed| listed == value)
            });
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        });
    equal && expressed
}

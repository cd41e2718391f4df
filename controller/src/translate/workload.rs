//! Workloads for node proxies: pods, and endpoints that are not pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ambit_objects::status::REDIRECTION;
use ambit_objects::{Key, Kind, Name};
use ambit_proto::istio::workload::{
    AppProtocol, Locality, NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus,
    WorkloadType,
};
use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cluster::{
    Binding, Cluster, annotation, is_host_network, labels, service_account, takes_tunnels,
};
use crate::finding::Findings;
use crate::translate::peer::Peers;
use crate::translate::policy::Policies;
use crate::translate::service::tcp_ports;
use crate::translate::{octets, waypoint_address};

/// Label of an endpoint slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The trust domain that is left out on the wire, as in Istio.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Every workload.
pub(crate) fn all(
    cluster: &Cluster,
    policies: &Policies,
    peers: &Peers,
    findings: &mut Findings,
) -> Vec<Workload> {
    let slices = Slices::new(cluster);
    let mut workloads: Vec<Workload> = cluster
        .pods()
        .map(|(name, pod, addresses)| {
            let mut workload = of_pod(cluster, name, pod, addresses, findings);
            workload.services = services_of_pod(cluster, &slices, name, pod, findings);
            workload.authorization_policies = policies.selecting(cluster, name, pod);
            workload
                .authorization_policies
                .extend(peers.selecting(cluster, name, pod));
            workload.authorization_policies.sort();
            workload
        })
        .collect();
    workloads.extend(of_slices(cluster, findings));
    workloads
}

fn of_pod(
    cluster: &Cluster,
    name: &Name,
    pod: &Pod,
    addresses: &[IpAddr],
    findings: &mut Findings,
) -> Workload {
    let mesh = cluster.mesh();
    let labels = labels(&pod.metadata);
    let terminates = takes_tunnels(pod) || cluster.gateway_of(name, &pod.metadata).is_some();
    let captured = annotation(&pod.metadata, REDIRECTION) == Some("enabled");
    let tunnel = if captured || terminates {
        TunnelProtocol::Hbone
    } else {
        TunnelProtocol::None
    };
    let workload_name = controller_name(pod).unwrap_or(&name.name).to_owned();
    let network_mode = if is_host_network(pod) {
        NetworkMode::HostNetwork
    } else {
        NetworkMode::Standard
    };
    let status = if is_ready(pod) {
        WorkloadStatus::Healthy
    } else {
        WorkloadStatus::Unhealthy
    };
    let first = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).cloned();
    let names = [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ];
    let revisions = [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ];
    let elided = mesh.trust_domain == DEFAULT_TRUST_DOMAIN;
    let node = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .unwrap_or_default();
    Workload {
        uid: format!("{}//Pod/{}/{}", mesh.cluster_id, name.namespace, name.name),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        addresses: addresses.iter().map(|address| octets(*address)).collect(),
        network: mesh.network.clone(),
        tunnel_protocol: tunnel.into(),
        native_tunnel: terminates,
        trust_domain: if elided {
            String::new()
        } else {
            mesh.trust_domain.clone()
        },
        service_account: service_account(pod).to_owned(),
        waypoint: match cluster.pod_waypoint(name, &pod.metadata) {
            Binding::None => None,
            Binding::To(waypoint) => Some(waypoint_address(mesh, waypoint)),
            Binding::Unusable { wanted, why } => {
                let key = Key {
                    kind: Kind::Pod,
                    name: name.clone(),
                };
                let message =
                    format!("waypoint {wanted} cannot be used: {why}; traffic goes without one");
                findings.error(&key, "metadata.labels[istio.io/use-waypoint]", message);
                None
            }
        },
        locality: locality(cluster, &node),
        node,
        canonical_name: first(&names).unwrap_or_else(|| workload_name.clone()),
        canonical_revision: first(&revisions).unwrap_or_else(|| "latest".to_owned()),
        workload_type: WorkloadType::Pod.into(),
        workload_name,
        status: status.into(),
        cluster_id: mesh.cluster_id.clone(),
        network_mode: network_mode.into(),
        ..Workload::default()
    }
}

/// Ready as its condition says. A running pod without that condition counts as ready: manifests on
/// one machine say that a pod runs and nobody there probes it.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready");
    match condition {
        Some(condition) => condition.status == "True",
        None => status.phase.as_deref() == Some("Running"),
    }
}

/// Name of what made the pod: the Deployment behind a ReplicaSet, the CronJob behind a Job.
fn controller_name(pod: &Pod) -> Option<&str> {
    let owner = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller.unwrap_or(false))?;
    let name = owner.name.as_str();
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = labels(&pod.metadata).get("pod-template-hash");
            let deployment =
                hash.and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            Some(deployment.unwrap_or(name))
        }
        "Job" => {
            // A CronJob names its Jobs after the minute they are for: eight digits or more.
            let cron = name.rsplit_once('-').filter(|(_, minute)| {
                minute.len() >= 8 && minute.bytes().all(|byte| byte.is_ascii_digit())
            });
            Some(cron.map_or(name, |(cron, _)| cron))
        }
        _ => Some(name),
    }
}

pub(crate) fn locality(cluster: &Cluster, node: &str) -> Option<Locality> {
    let node = cluster.objects().nodes.get(&Name::new("", node))?;
    let labels = labels(&node.metadata);
    let first = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| labels.get(*key))
            .cloned()
            .unwrap_or_default()
    };
    let locality = Locality {
        region: first(&[
            "topology.kubernetes.io/region",
            "failure-domain.beta.kubernetes.io/region",
        ]),
        zone: first(&[
            "topology.kubernetes.io/zone",
            "failure-domain.beta.kubernetes.io/zone",
        ]),
        subzone: first(&["topology.istio.io/subzone"]),
    };
    (locality != Locality::default()).then_some(locality)
}

/// Endpoint slices by the pods and the services they name.
struct Slices<'a> {
    by_pod: BTreeMap<Name, Vec<(&'a Name, &'a EndpointSlice)>>,
}

impl<'a> Slices<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let mut by_pod: BTreeMap<Name, Vec<_>> = BTreeMap::new();
        for (name, slice) in &cluster.objects().endpoint_slices {
            for pod in slice
                .endpoints
                .iter()
                .filter_map(|endpoint| target_pod(name, endpoint))
            {
                by_pod.entry(pod).or_default().push((name, slice.as_ref()));
            }
        }
        Self { by_pod }
    }
}

fn target_pod(slice: &Name, endpoint: &Endpoint) -> Option<Name> {
    let target = endpoint.target_ref.as_ref()?;
    if target.kind.as_deref() != Some("Pod") {
        return None;
    }
    let namespace = target.namespace.as_deref().unwrap_or(&slice.namespace);
    // A slice speaks for the pods of its own namespace only.
    (namespace == slice.namespace).then_some(())?;
    Some(Name::new(namespace, target.name.as_deref()?))
}

fn services_of_pod(
    cluster: &Cluster,
    slices: &Slices<'_>,
    name: &Name,
    pod: &Pod,
    findings: &mut Findings,
) -> BTreeMap<String, PortList> {
    let mut services = BTreeMap::new();
    let range = Name::new(&name.namespace, "")..;
    for (service_name, service) in cluster
        .objects()
        .services
        .range(range)
        .take_while(|(of, _)| of.namespace == name.namespace)
    {
        let ports = if has_selector(service) {
            if !selected(service, pod) {
                continue;
            }
            pod_ports(service_name, service, pod, findings)
        } else {
            let named = slices
                .by_pod
                .get(name)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let slice = named
                .iter()
                .find(|(_, slice)| is_of(slice, service_name, pod));
            let Some((_, slice)) = slice else { continue };
            slice_ports(service, slice)
        };
        let hostname = cluster
            .mesh()
            .hostname(&service_name.namespace, &service_name.name);
        let key = format!("{}/{hostname}", service_name.namespace);
        services.insert(key, PortList { ports });
    }
    services
}

pub(crate) fn has_selector(service: &Service) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty())
}

/// Whether the service's selector, which must not be empty, selects the pod.
pub(crate) fn selected(service: &Service, pod: &Pod) -> bool {
    let labels = labels(&pod.metadata);
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    })
}

/// Whether the slice belongs to the service and names this very pod.
fn is_of(slice: &EndpointSlice, service: &Name, pod: &Pod) -> bool {
    let named = slice
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.target_ref.as_ref())
        .any(|target| {
            target.name == pod.metadata.name
                && (target.uid.is_none() || target.uid == pod.metadata.uid)
        });
    named && labels(&slice.metadata).get(SERVICE_NAME) == Some(&service.name)
}

fn pod_ports(name: &Name, service: &Service, pod: &Pod, findings: &mut Findings) -> Vec<Port> {
    let mut ports = Vec::new();
    for port in tcp_ports(service.spec.as_ref()) {
        match target_port(port, pod) {
            Some(target) => ports.extend(wire(port.port, i32::from(target))),
            None => {
                let key = Key {
                    kind: Kind::Service,
                    name: name.clone(),
                };
                let message = format!(
                    "port {} names a target port that pod {} does not have; the pod is no endpoint of it",
                    port.port,
                    pod.metadata.name.as_deref().unwrap_or_default()
                );
                findings.warning(&key, "spec.ports", message);
            }
        }
    }
    ports
}

/// The pod's port behind a service's port.
pub(crate) fn target_port(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            // Sidecars in the Kubernetes sense: init containers that go on running.
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .find_map(|container| named(container, name))
        }
    }
}

fn named(container: &Container, name: &str) -> Option<u16> {
    let tcp =
        |protocol: &Option<String>| protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    container
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref() == Some(name) && tcp(&port.protocol))
        .and_then(|port| u16::try_from(port.container_port).ok())
}

/// Ports by name: a slice's port stands for the service's port of the same name.
fn slice_ports(service: &Service, slice: &EndpointSlice) -> Vec<Port> {
    let mut ports = Vec::new();
    for port in tcp_ports(service.spec.as_ref()) {
        let name = port.name.as_deref().unwrap_or_default();
        let target = slice
            .ports
            .iter()
            .flatten()
            .find(|target| target.name.as_deref().unwrap_or_default() == name);
        ports.extend(target.and_then(|target| wire(port.port, target.port?)));
    }
    ports
}

fn wire(service_port: i32, target_port: i32) -> Option<Port> {
    Some(Port {
        service_port: u32::from(u16::try_from(service_port).ok()?),
        target_port: u32::from(u16::try_from(target_port).ok()?),
        app_protocol: AppProtocol::Unknown.into(),
    })
}

/// One workload per address of a slice that is not a pod's.
fn of_slices(cluster: &Cluster, findings: &mut Findings) -> Vec<Workload> {
    let mut workloads = BTreeMap::new();
    for (name, slice) in &cluster.objects().endpoint_slices {
        let service = labels(&slice.metadata)
            .get(SERVICE_NAME)
            .map(|service| Name::new(&name.namespace, service));
        let Some((service_name, service)) = service.and_then(|service| {
            let (object, _) = cluster.service(&service)?;
            Some((service, object))
        }) else {
            continue;
        };
        if slice.address_type == "FQDN" || has_selector(service) {
            continue;
        }
        let hostname = cluster
            .mesh()
            .hostname(&service_name.namespace, &service_name.name);
        let key = format!("{}/{hostname}", service_name.namespace);
        let services = BTreeMap::from([(
            key,
            PortList {
                ports: slice_ports(service, slice),
            },
        )]);
        for endpoint in &slice.endpoints {
            // One that names a pod is that pod or, when it is gone or foreign, nothing.
            let target = endpoint.target_ref.as_ref();
            if target.is_some_and(|target| target.kind.as_deref() == Some("Pod")) {
                continue;
            }
            for text in &endpoint.addresses {
                let Ok(address) = text.parse::<IpAddr>() else {
                    let key = Key {
                        kind: Kind::EndpointSlice,
                        name: name.clone(),
                    };
                    let message = format!("{text:?} is not an IP address; it is left out");
                    findings.error(&key, "endpoints", message);
                    continue;
                };
                let workload = of_endpoint(cluster, name, endpoint, address, &services);
                workloads.insert(workload.uid.clone(), workload);
            }
        }
    }
    workloads.into_values().collect()
}

fn of_endpoint(
    cluster: &Cluster,
    slice: &Name,
    endpoint: &Endpoint,
    address: IpAddr,
    services: &BTreeMap<String, PortList>,
) -> Workload {
    let mesh = cluster.mesh();
    let ready = endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready);
    let status = if ready.unwrap_or(true) {
        WorkloadStatus::Healthy
    } else {
        WorkloadStatus::Unhealthy
    };
    let elided = mesh.trust_domain == DEFAULT_TRUST_DOMAIN;
    Workload {
        uid: format!(
            "{}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
            mesh.cluster_id, slice.namespace, slice.name
        ),
        name: slice.name.clone(),
        namespace: slice.namespace.clone(),
        addresses: vec![octets(address)],
        network: mesh.network.clone(),
        trust_domain: if elided {
            String::new()
        } else {
            mesh.trust_domain.clone()
        },
        canonical_name: slice.name.clone(),
        canonical_revision: "latest".to_owned(),
        workload_type: WorkloadType::Pod.into(),
        workload_name: slice.name.clone(),
        services: services.clone(),
        status: status.into(),
        cluster_id: mesh.cluster_id.clone(),
        network_mode: NetworkMode::HostNetwork.into(),
        ..Workload::default()
    }
}

//! Services for node proxies.

use ambit_objects::{Key, Kind, Name};
use ambit_proto::istio::workload::{
    AppProtocol, GatewayAddress, IpFamilies, LoadBalancing, NamespacedHostname, NetworkAddress,
    Port, Service, gateway_address, load_balancing,
};
use k8s_openapi::api::core::v1::{Service as Object, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cluster::waypoint::HBONE_PORT;
use crate::cluster::{Binding, Cluster, annotation, labels};
use crate::finding::Findings;
use crate::translate::{octets, waypoint_address};

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";

/// Every service.
pub(crate) fn all(cluster: &Cluster, findings: &mut Findings) -> Vec<Service> {
    cluster
        .services()
        .map(|(name, object, addresses)| {
            let mesh = cluster.mesh();
            let spec = object.spec.as_ref();
            Service {
                name: name.name.clone(),
                namespace: name.namespace.clone(),
                hostname: mesh.hostname(&name.namespace, &name.name),
                addresses: addresses
                    .iter()
                    .map(|address| NetworkAddress {
                        network: mesh.network.clone(),
                        address: octets(*address),
                        length: None,
                    })
                    .collect(),
                ports: tcp_ports(spec).map(wire_port).collect(),
                waypoint: waypoint(cluster, name, object, findings),
                load_balancing: load_balancing(cluster, name, object),
                ip_families: ip_families(spec).into(),
                canonical: true,
                ingress_use_waypoint: ingress_use_waypoint(cluster, name, &object.metadata),
                ..Service::default()
            }
        })
        .collect()
}

/// Ports that a TCP proxy can carry.
pub(crate) fn tcp_ports(spec: Option<&ServiceSpec>) -> impl Iterator<Item = &ServicePort> {
    spec.into_iter()
        .flat_map(|spec| spec.ports.iter().flatten())
        .filter(|port| {
            port.protocol
                .as_deref()
                .is_none_or(|protocol| protocol == "TCP")
        })
}

fn wire_port(port: &ServicePort) -> Port {
    let target = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(target)) => *target,
        // Named: each workload says which of its ports that is.
        Some(IntOrString::String(_)) => 0,
    };
    Port {
        service_port: u32::try_from(port.port).unwrap_or(0),
        target_port: u32::try_from(target).unwrap_or(0),
        app_protocol: app_protocol(port).into(),
    }
}

/// By `appProtocol`, else by the part of the port's name before the first dash.
pub(crate) fn app_protocol(port: &ServicePort) -> AppProtocol {
    let named = || {
        port.name
            .as_deref()
            .map(|name| name.split('-').next().unwrap_or(name))
    };
    let text = port
        .app_protocol
        .as_deref()
        .or_else(named)
        .unwrap_or_default();
    match text.to_ascii_lowercase().as_str() {
        "http" | "http1" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        // Istio's grpc-web is HTTP/2 towards the application and gRPC to those who count.
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "tcp" | "mongo" | "redis" | "mysql" => AppProtocol::Tcp,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

/// The service's waypoint. One that cannot be had means none, as in Istio, unless a policy counts
/// on it: then the service names a waypoint that does not resolve, and node proxies refuse.
fn waypoint(
    cluster: &Cluster,
    name: &Name,
    object: &Object,
    findings: &mut Findings,
) -> Option<GatewayAddress> {
    match cluster.service_waypoint(name, &object.metadata) {
        Binding::None => None,
        Binding::To(waypoint) => Some(waypoint_address(cluster.mesh(), waypoint)),
        Binding::Unusable { wanted, why } => {
            let key = Key {
                kind: Kind::Service,
                name: name.clone(),
            };
            let guarded =
                cluster
                    .objects()
                    .authorization_policies
                    .iter()
                    .any(|(policy, object)| {
                        crate::translate::policy::targets(policy, &object.spec)
                            .any(|target| target.kind == "Service" && target.name == *name)
                    });
            let outcome = if guarded {
                "as a policy is attached to the service, its traffic is refused"
            } else {
                "traffic goes without one"
            };
            let message = format!("waypoint {wanted} cannot be used: {why}; {outcome}");
            findings.error(&key, "metadata.labels[istio.io/use-waypoint]", message);
            guarded.then(|| GatewayAddress {
                destination: Some(gateway_address::Destination::Hostname(NamespacedHostname {
                    hostname: cluster.mesh().hostname(&wanted.namespace, &wanted.name),
                    namespace: wanted.namespace,
                })),
                hbone_mtls_port: u32::from(HBONE_PORT),
            })
        }
    }
}

fn ingress_use_waypoint(cluster: &Cluster, name: &Name, metadata: &ObjectMeta) -> bool {
    let own = labels(metadata).get(INGRESS_USE_WAYPOINT);
    let value = own.or_else(|| {
        cluster
            .namespace_labels(&name.namespace)?
            .get(INGRESS_USE_WAYPOINT)
    });
    value.is_some_and(|value| value == "true")
}

fn load_balancing(cluster: &Cluster, name: &Name, object: &Object) -> Option<LoadBalancing> {
    use load_balancing::{HealthPolicy, Mode, Scope};
    let spec = object.spec.as_ref()?;
    let near = [Scope::Network, Scope::Region, Scope::Zone];
    let nearest = [
        Scope::Network,
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
    ];
    let (scopes, mode): (&[Scope], _) = if spec.internal_traffic_policy.as_deref() == Some("Local")
    {
        (&[Scope::Node], Mode::Strict)
    } else {
        match distribution(cluster, name, object) {
            Some("PreferClose" | "PreferSameZone") => (&near, Mode::Failover),
            Some("PreferSameNode") => (&nearest, Mode::Failover),
            _ => (&[], Mode::UnspecifiedMode),
        }
    };
    let allow_all = spec.publish_not_ready_addresses.unwrap_or(false);
    if scopes.is_empty() && !allow_all {
        return None;
    }
    let health = if allow_all {
        HealthPolicy::AllowAll
    } else {
        HealthPolicy::OnlyHealthy
    };
    Some(LoadBalancing {
        routing_preference: scopes.iter().map(|scope| i32::from(*scope)).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    })
}

fn distribution<'a>(cluster: &'a Cluster, name: &Name, object: &'a Object) -> Option<&'a str> {
    let spec = object
        .spec
        .as_ref()
        .and_then(|spec| spec.traffic_distribution.as_deref());
    spec.or_else(|| annotation(&object.metadata, TRAFFIC_DISTRIBUTION))
        .or_else(|| {
            let namespace = cluster
                .objects()
                .namespaces
                .get(&Name::new("", &name.namespace))?;
            annotation(&namespace.metadata, TRAFFIC_DISTRIBUTION)
        })
}

fn ip_families(spec: Option<&ServiceSpec>) -> IpFamilies {
    let families: Vec<&str> = spec
        .and_then(|spec| spec.ip_families.as_ref())
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    match (families.contains(&"IPv4"), families.contains(&"IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

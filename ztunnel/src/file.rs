//! The mesh from a file, for tests and for trying things out without a control plane.
//!
//! The shape is that of Istio's local files (`LOCAL_XDS_PATH`): YAML or JSON with `workloads`,
//! `services` and `policies` as `/config_dump` shows them. Read once, at start.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ambit_model::Text;
use ambit_model::address::{GatewayAddress, GatewayDestination, Vip};
use ambit_model::identity::Identity;
use ambit_model::policy::PolicyKey;
use ambit_model::service::{
    IpFamilies, LoadBalancing, Port, Service, ServiceKey, Visibility, WeightedWaypoint,
};
use ambit_model::update::Change;
use ambit_model::workload::{
    ApplicationTunnel, DEFAULT_CAPACITY, DEFAULT_CLUSTER, DEFAULT_TRUST_DOMAIN, Health, Locality,
    NetworkMode, Protocol, Workload,
};
use ipnet::IpNet;
use serde::Deserialize;

mod policy;

use policy::{PolicyText, policy};

/// What is wrong with a file, by place.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The text is no such document.
    #[error("{0}")]
    Syntax(String),
    /// A value in it cannot be used.
    #[error("{0}: `{1}` {2}")]
    Value(&'static str, String, &'static str),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    workloads: Vec<WorkloadText>,
    services: Vec<ServiceText>,
    policies: Vec<PolicyText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WorkloadText {
    uid: String,
    name: String,
    namespace: String,
    service_account: String,
    trust_domain: String,
    network: String,
    network_mode: Option<NetworkMode>,
    network_gateway: Option<GatewayText>,
    workload_ips: Vec<IpAddr>,
    hostname: String,
    protocol: Option<Protocol>,
    node: String,
    cluster_id: String,
    locality: Locality,
    workload_name: String,
    canonical_name: String,
    canonical_revision: String,
    status: Option<Health>,
    capacity: Option<u32>,
    waypoint: Option<GatewayText>,
    application_tunnel: Option<ApplicationTunnel>,
    services: BTreeMap<String, BTreeMap<u16, u16>>,
    authorization_policies: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GatewayText {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceText {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    cidr_vips: Vec<String>,
    ports: BTreeMap<u16, u16>,
    subject_alt_names: Vec<Identity>,
    waypoint: Option<GatewayText>,
    weighted_waypoints: Vec<WeightedText>,
    load_balancer: Option<LoadBalancing>,
    ip_families: Option<IpFamilies>,
    canonical: bool,
    visibility: Visibility,
}

#[derive(Debug, Deserialize)]
struct WeightedText {
    destination: GatewayText,
    weight: u32,
}

/// Reads the text of such a file.
///
/// # Errors
/// What is wrong and where. A file is taken whole or not at all.
pub fn read(text: &str) -> Result<Vec<Change>, FileError> {
    let file: File =
        serde_saphyr::from_str(text).map_err(|error| FileError::Syntax(error.to_string()))?;
    let workloads = file
        .workloads
        .into_iter()
        .map(|w| workload(w).map(Change::UpsertWorkload));
    let services = file
        .services
        .into_iter()
        .map(|s| service(s).map(Change::UpsertService));
    let policies = file
        .policies
        .into_iter()
        .map(|p| Ok(Change::UpsertPolicy(policy(p))));
    workloads.chain(services).chain(policies).collect()
}

fn workload(text: WorkloadText) -> Result<Workload, FileError> {
    let account = Text::from(text.service_account).or("default");
    let domain = Text::from(text.trust_domain).or(DEFAULT_TRUST_DOMAIN);
    let identity = format!("spiffe://{domain}/ns/{}/sa/{account}", text.namespace);
    let identity: Identity = identity
        .parse()
        .map_err(|_| FileError::Value("workloads", identity.clone(), "is no identity"))?;
    let mut workload = Workload::new(text.uid.into(), &text.name, identity);
    workload.network = text.network.into();
    workload.network_mode = text.network_mode.unwrap_or(NetworkMode::Standard);
    workload.network_gateway = text.network_gateway.map(gateway).transpose()?;
    workload.hostname = text.hostname.into();
    workload.addresses = text
        .workload_ips
        .into_iter()
        .map(|ip| ip.to_canonical())
        .collect();
    workload.protocol = text.protocol.unwrap_or(Protocol::Tcp);
    workload.node = text.node.into();
    workload.cluster = Text::from(text.cluster_id).or(DEFAULT_CLUSTER);
    workload.locality = text.locality;
    workload.workload_name = text.workload_name.into();
    workload.canonical_name = text.canonical_name.into();
    workload.canonical_revision = text.canonical_revision.into();
    workload.health = text.status.unwrap_or(Health::Healthy);
    workload.capacity = text.capacity.unwrap_or(DEFAULT_CAPACITY);
    workload.waypoint = text.waypoint.map(gateway).transpose()?;
    workload.application_tunnel = text.application_tunnel;
    for (key, mapped) in text.services {
        let parsed = ServiceKey::parse(&key);
        let key = parsed.ok_or(FileError::Value(
            "services",
            key,
            "is not namespace/hostname",
        ))?;
        workload.services.insert(key, ports(mapped));
    }
    workload.policies = text
        .authorization_policies
        .iter()
        .map(|name| PolicyKey::parse(name))
        .collect();
    Ok(workload)
}

fn gateway(text: GatewayText) -> Result<GatewayAddress, FileError> {
    let wrong = "is neither network/address nor namespace/hostname";
    let parsed = text
        .destination
        .split_once('/')
        .and_then(|(left, right)| match right.parse() {
            Ok(address) => Some(GatewayDestination::Address {
                network: left.into(),
                address,
            }),
            Err(_) => ServiceKey::parse(&text.destination).map(GatewayDestination::Hostname),
        });
    let destination = parsed.ok_or(FileError::Value("waypoint", text.destination, wrong))?;
    Ok(GatewayAddress {
        destination,
        hbone_port: text.hbone_mtls_port,
    })
}

fn ports(mapped: BTreeMap<u16, u16>) -> Vec<Port> {
    mapped
        .into_iter()
        .map(|(service_port, target_port)| Port {
            service_port,
            target_port,
        })
        .collect()
}

fn service(text: ServiceText) -> Result<Service, FileError> {
    let mut service = Service::new(ServiceKey::new(text.namespace, text.hostname));
    service.name = text.name.into();
    service.ports = ports(text.ports);
    service.subject_alt_names = text.subject_alt_names;
    service.waypoint = text.waypoint.map(gateway).transpose()?;
    for weighted in text.weighted_waypoints {
        service.weighted_waypoints.push(WeightedWaypoint {
            destination: gateway(weighted.destination)?,
            weight: weighted.weight,
        });
    }
    service.load_balancing = text.load_balancer.unwrap_or_default();
    service.ip_families = text.ip_families.unwrap_or_default();
    service.canonical = text.canonical;
    service.visibility = text.visibility;
    for vip in text.vips.into_iter().chain(text.cidr_vips) {
        let wrong = "is neither network/address nor network/address/length";
        let parsed = self::vip(&vip).ok_or(FileError::Value("vips", vip, wrong))?;
        service.vips.push(parsed);
    }
    Ok(service)
}

fn vip(text: &str) -> Option<Vip> {
    let (network, address) = text.split_once('/')?;
    let network = Text::from(network);
    match address.parse() {
        Ok(address) => Some(Vip::single(network, address)),
        Err(_) => address.parse().ok().map(|block: IpNet| Vip {
            network,
            block: block.trunc(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use ambit_model::service::{IpFamilies, Scope};
    use ambit_model::update;
    use ambit_model::view::View;

    use super::{FileError, read};

    const FILE: &str = r#"
workloads:
- {uid: c//Pod/shop/web, name: web, namespace: shop, serviceAccount: web, workloadIps: [10.0.0.1], protocol: HBONE}
- uid: c//Pod/shop/cart
  name: cart
  namespace: shop
  workloadIps: [10.0.0.2]
  services: {"shop/cart.shop.svc.cluster.local": {80: 8080}}
  authorizationPolicies: [shop/only-web]
services:
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.96.0.1], ports: {80: 8080}}
policies:
- {name: only-web, namespace: shop, scope: WorkloadSelector, action: Allow,
   rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/web}]}]]]}
"#;

    #[test]
    fn reads_workloads_services_and_policies() {
        let view = update::apply(&View::default(), read(FILE).unwrap());
        assert_eq!(view.sizes(), (2, 1, 1));
        let cart = view.workload("c//Pod/shop/cart").unwrap();
        assert_eq!(
            cart.identity.to_string(),
            "spiffe://cluster.local/ns/shop/sa/default"
        );
        assert!(view.policies_for(cart).unresolved().is_none());
        assert!(
            view.service_at("", "10.96.0.1".parse().unwrap(), "shop")
                .is_some()
        );
    }

    #[test]
    fn reads_what_only_other_networks_and_waypoints_have() {
        let text = r#"
workloads:
- uid: c//Pod/shop/far
  name: far
  namespace: shop
  network: far
  networkGateway: {destination: shop/gateway.shop.svc.cluster.local, hboneMtlsPort: 15009}
  applicationTunnel: {protocol: PROXY, port: 15088}
  locality: {region: r}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["/10.96.0.1", "far/10.0.0.0/8"]
  cidrVips: ["/fd00::/16"]
  subjectAltNames: [spiffe://cluster.local/ns/shop/sa/cart]
  weightedWaypoints: [{destination: {destination: /10.0.0.9, hboneMtlsPort: 15008}, weight: 3}]
  loadBalancer: {mode: Failover, routingPreferences: [Network], healthPolicy: AllowAll}
  ipFamilies: IPv4
"#;
        let view = update::apply(&View::default(), read(text).unwrap());
        let far = view.workload("c//Pod/shop/far").unwrap();
        assert_eq!(far.network_gateway.as_ref().unwrap().hbone_port, 15009);
        assert_eq!(far.application_tunnel.unwrap().port, Some(15088));
        let inside = "10.9.9.9".parse().unwrap();
        let cart = view.service_at("far", inside, "shop").unwrap();
        assert_eq!(cart.weighted_waypoints.len(), 1);
        assert_eq!(cart.subject_alt_names.len(), 1);
        assert!(view.service_at("", inside, "shop").is_none());
        assert!(
            view.service_at("", "fd00::1".parse().unwrap(), "shop")
                .is_some()
        );
        assert_eq!(cart.load_balancing.scopes, [Scope::Network]);
        assert_eq!(cart.ip_families, IpFamilies::V4);
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let unknown = FILE.replace("principals:", "principalz:");
        assert!(matches!(read(&unknown), Err(FileError::Syntax(_))));
        let address = FILE.replace("/10.96.0.1", "here");
        assert!(matches!(read(&address), Err(FileError::Value("vips", ..))));
    }
}

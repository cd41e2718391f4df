//! The state of the proxy for the admin page, in the shape that istioctl and Kiali read.
//!
//! Both are strict: a value of another type than they know makes them read nothing. What they do not know they leave alone, so
//! fields of ours may be added.

pub mod config;
pub mod policy;

use std::collections::BTreeMap;

use ambit_identity::Certificates;
use ambit_model::address::GatewayAddress;
use ambit_model::service::{Endpoint, IpFamilies, Port, Service};
use ambit_model::view::View;
use ambit_model::workload::{ApplicationProtocol, Workload};
use ambit_observe::version::Version;
use serde_json::{Value, json};

use crate::inpod::Status;
use crate::live::Listed;
use crate::pods::Pods;
use crate::worker::Shared;

/// Everything, as `/config_dump` shows it. Certificates without their keys.
pub async fn config_dump(
    shared: &Shared,
    pods: &Pods,
    agent: &Status,
    certificates: &Certificates,
) -> Value {
    let view = shared.store.snapshot();
    let connections = pods.connections().await;
    json!({
        "workloads": workloads(&view),
        "services": services(&view),
        "policies": policies(&view),
        "unresolvedPolicies": unresolved(&view),
        "stagedServices": view.staged_services().map(ToString::to_string).collect::<Vec<_>>(),
        "certificates": certificates.dump(),
        "revocation": shared.revocation.shown(),
        "tls": ambit_tls::effective(shared.settings.compliance_policy.key_exchange()),
        "workloadState": pod_states(pods, agent, connections),
        "config": config::config(&shared.settings),
        "version": Version::of(&shared.settings.version_tag),
    })
}

/// The pods of this node and their connections, by uid.
#[must_use]
pub fn pod_states(pods: &Pods, agent: &Status, connections: Vec<Listed>) -> Value {
    let mut states: BTreeMap<String, Value> = BTreeMap::new();
    for pod in pods.running() {
        let info = json!({
            "name": pod.info.name,
            "namespace": pod.info.namespace,
            "serviceAccount": pod.info.service_account,
        });
        let none = json!({ "inbound": [], "outbound": [] });
        states.insert(
            pod.uid,
            json!({ "state": "Up", "connections": none, "info": info }),
        );
    }
    for (uid, info) in agent.pending() {
        let info = json!({
            "name": info.name,
            "namespace": info.namespace,
            "serviceAccount": info.service_account,
        });
        states.insert(uid, json!({ "state": "Pending", "info": info }));
    }
    for connection in connections {
        let direction = if connection.inbound {
            "inbound"
        } else {
            "outbound"
        };
        let pointer = format!("/connections/{direction}");
        let list = states
            .get_mut(&connection.pod)
            .and_then(|state| state.pointer_mut(&pointer));
        if let Some(Value::Array(list)) = list {
            list.push(json!(connection.shown));
        }
    }
    json!(states)
}

fn workloads(view: &View) -> Vec<Value> {
    let mut all: Vec<_> = view.workloads().collect();
    all.sort_by(|one, other| one.uid.cmp(&other.uid));
    all.into_iter()
        .map(|workload| self::workload(workload))
        .collect()
}

/// One workload.
#[must_use]
pub fn workload(workload: &Workload) -> Value {
    let application = workload.application_tunnel.map(|tunnel| {
        let protocol = match tunnel.protocol {
            ApplicationProtocol::None => "NONE",
            ApplicationProtocol::Proxy => "PROXY",
        };
        json!({ "protocol": protocol, "port": tunnel.port })
    });
    json!({
        "uid": workload.uid,
        "name": workload.name(),
        "namespace": workload.namespace,
        "serviceAccount": workload.identity.service_account(),
        "trustDomain": workload.identity.trust_domain(),
        "identity": workload.identity,
        "workloadIps": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "hostname": workload.hostname,
        "network": workload.network,
        "networkMode": workload.network_mode,
        "networkGateway": workload.network_gateway.as_ref().map(gateway),
        "protocol": workload.protocol,
        "nativeTunnel": workload.native_tunnel,
        "applicationTunnel": application,
        "waypoint": workload.waypoint.as_ref().map(gateway),
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "clusterId": workload.cluster,
        "node": workload.node,
        "locality": workload.locality,
        "status": workload.health,
        "capacity": workload.capacity,
        "services": workload.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "authorizationPolicies": workload.policies,
    })
}

fn gateway(address: &GatewayAddress) -> Value {
    json!({
        "destination": address.destination.to_string(),
        "hboneMtlsPort": address.hbone_port,
    })
}

fn services(view: &View) -> Vec<Value> {
    let mut all: Vec<_> = view.services().collect();
    all.sort_by(|one, other| one.key.hostname.cmp(&other.key.hostname));
    all.into_iter()
        .map(|service| self::service(view, service))
        .collect()
}

/// One service with its endpoints.
#[must_use]
pub fn service(view: &View, service: &Service) -> Value {
    let endpoint = |endpoint: &Endpoint| {
        let workload = &endpoint.workload;
        let shown = json!({
            "workloadUid": workload.uid,
            "service": service.key,
            "port": ports(&endpoint.ports),
            "status": workload.health,
        });
        (workload.uid.to_string(), shown)
    };
    let endpoints: BTreeMap<String, Value> = view
        .endpoints(&service.key)
        .map(|endpoints| endpoints.iter().map(endpoint).collect())
        .unwrap_or_default();
    let vips = |single: bool| {
        let vips = service.vips.iter();
        vips.filter(|vip| vip.exact().is_some() == single)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let families = service.ip_families;
    json!({
        "name": service.name,
        "namespace": service.key.namespace,
        "hostname": service.key.hostname,
        "vips": vips(true),
        "cidrVips": vips(false),
        "ports": ports(&service.ports),
        "endpoints": endpoints,
        "subjectAltNames": service.subject_alt_names,
        "waypoint": service.waypoint.as_ref().map(gateway),
        "weightedWaypoints": service.weighted_waypoints.iter().map(|entry| {
            json!({ "destination": gateway(&entry.destination), "weight": entry.weight })
        }).collect::<Vec<_>>(),
        "loadBalancer": service.load_balancing,
        "ipFamilies": (families != IpFamilies::Automatic).then_some(families),
        "canonical": service.canonical,
        "visibility": service.visibility,
    })
}

fn ports(ports: &[Port]) -> BTreeMap<String, u16> {
    ports
        .iter()
        .map(|port| (port.service_port.to_string(), port.target_port))
        .collect()
}

fn policies(view: &View) -> Vec<Value> {
    let mut all: Vec<_> = view.policies().collect();
    all.sort_by(|one, other| one.key().cmp(other.key()));
    all.into_iter()
        .map(|policy| policy::policy(policy))
        .collect()
}

/// Workloads that list a policy which is not known; what arrives for them is refused.
fn unresolved(view: &View) -> Vec<Value> {
    let listing = |workload: &std::sync::Arc<Workload>| {
        let policy = view.policies_for(workload).unresolved()?.clone();
        Some((workload.uid.clone(), policy))
    };
    let mut all: Vec<_> = view.workloads().filter_map(listing).collect();
    all.sort();
    let shown = |(uid, policy)| json!({ "workload": uid, "policy": policy });
    all.into_iter().map(shown).collect()
}

#[cfg(test)]
mod tests;

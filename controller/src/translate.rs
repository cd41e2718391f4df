//! Cluster view -> resources. Pure: the same objects give the same bytes, in whatever order they came.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ambit_objects::{Name, Objects};
use ambit_proto::istio::security::Authorization;
use ambit_proto::istio::workload::{
    Address, GatewayAddress, NamespacedHostname, NetworkAddress, address, gateway_address,
};
use bytes::Bytes;

use crate::cluster::waypoint::{HBONE_PORT, Reached};
use crate::cluster::{Cluster, Waypoint};
use crate::config::Mesh;
use crate::finding::{Finding, Findings};

pub mod envoy;
pub mod peer;
pub mod policy;
pub mod service;
pub mod workload;

/// Everything that is served, by the name it has on the wire.
#[derive(Debug, Default)]
pub struct Resources {
    /// Workloads and services.
    pub addresses: BTreeMap<String, Address>,
    /// Policies for node proxies.
    pub authorizations: BTreeMap<String, Authorization>,
    /// What each waypoint gets.
    pub waypoints: BTreeMap<Name, envoy::Waypoint>,
    /// What is wrong with the objects.
    pub findings: Vec<Finding>,
}

/// Translates everything.
pub fn translate(objects: Arc<Objects>, mesh: Mesh) -> (Cluster, Resources) {
    let mut findings = Findings::default();
    let cluster = Cluster::new(objects, mesh, &mut findings);
    let mut resources = Resources::default();
    let policies = policy::Policies::new(&cluster, &mut findings);
    let peers = peer::Peers::new(&cluster, &mut findings);
    resources.authorizations = policies.authorizations();
    resources.authorizations.extend(peers.authorizations());
    for service in service::all(&cluster, &mut findings) {
        let name = format!("{}/{}", service.namespace, service.hostname);
        let address = Address {
            r#type: Some(address::Type::Service(service)),
        };
        resources.addresses.insert(name, address);
    }
    for workload in workload::all(&cluster, &policies, &peers, &mut findings) {
        let name = workload.uid.clone();
        let address = Address {
            r#type: Some(address::Type::Workload(workload)),
        };
        resources.addresses.insert(name, address);
    }
    resources.waypoints = envoy::all(&cluster, &resources.addresses, &mut findings);
    resources.findings = findings.into_sorted();
    (cluster, resources)
}

/// An address as the wire has it: 4 or 16 bytes.
pub(crate) fn octets(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

/// How a waypoint is named in workloads and services.
pub(crate) fn waypoint_address(mesh: &Mesh, waypoint: &Waypoint) -> GatewayAddress {
    let destination = match &waypoint.reached {
        Reached::Hostname {
            namespace,
            hostname,
        } => gateway_address::Destination::Hostname(NamespacedHostname {
            namespace: namespace.clone(),
            hostname: hostname.clone(),
        }),
        Reached::Address(address) => gateway_address::Destination::Address(NetworkAddress {
            network: mesh.network.clone(),
            address: octets(*address),
            length: None,
        }),
    };
    GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: u32::from(HBONE_PORT),
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod tests;

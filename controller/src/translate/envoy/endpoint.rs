//! Endpoints of service ports, and how each is reached.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use ambit_proto::istio::workload::{Locality, TunnelProtocol, Workload, WorkloadStatus};
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, EnvoyInternalAddress, HealthStatus, Locality as WireLocality, Metadata, SocketAddress,
    socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::CONNECT_ORIGINATE;
use super::cluster::outbound_name;
use super::served::{Served, Service};
use super::wire::{fields, number, text};

/// Key of the metadata by which an internal listener learns where a connection is to go.
pub(super) const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

/// Endpoints of every cluster that has a list, by cluster name.
pub(super) fn all(
    served: &Served<'_>,
    others: &[(Service, u16)],
    workloads: &[&Workload],
) -> BTreeMap<String, ClusterLoadAssignment> {
    let mut lists = BTreeMap::new();
    let mut add = |name: String, service: &Service, port: u16| {
        let list = list(served, &name, service, port, workloads);
        lists.insert(name, list);
    };
    for service in &served.services {
        for port in &service.ports {
            if port.protocol.has_http() {
                add(service.chain(port.number, true), service, port.number);
            }
            if port.protocol.has_tcp() {
                add(service.chain(port.number, false), service, port.number);
            }
        }
    }
    for (service, port) in others {
        add(outbound_name(service, *port), service, *port);
    }
    lists
}

fn list(
    served: &Served<'_>,
    name: &str,
    service: &Service,
    port: u16,
    workloads: &[&Workload],
) -> ClusterLoadAssignment {
    let key = format!("{}/{}", service.name.namespace, service.hostname);
    let not_ready_too = served
        .cluster
        .service(&service.name)
        .and_then(|(object, _)| object.spec.as_ref()?.publish_not_ready_addresses)
        .unwrap_or(false);
    let mut localities: BTreeMap<(String, String, String), Vec<LbEndpoint>> = BTreeMap::new();
    for workload in workloads {
        let ready = workload.status == i32::from(WorkloadStatus::Healthy);
        let targets = workload
            .services
            .get(&key)
            .into_iter()
            .flat_map(|ports| &ports.ports);
        for target in targets.filter(|target| target.service_port == u32::from(port)) {
            if !(ready || not_ready_too) {
                continue;
            }
            let Locality {
                region,
                zone,
                subzone,
            } = workload.locality.clone().unwrap_or_default();
            let place = localities.entry((region, zone, subzone)).or_default();
            place.extend(endpoint(workload, target.target_port));
        }
    }
    let endpoints = localities
        .into_iter()
        .map(|((region, zone, sub_zone), lb_endpoints)| {
            let weight = u32::try_from(lb_endpoints.len()).unwrap_or(u32::MAX);
            LocalityLbEndpoints {
                locality: Some(WireLocality {
                    region,
                    zone,
                    sub_zone,
                }),
                load_balancing_weight: number(weight),
                lb_endpoints,
                ..LocalityLbEndpoints::default()
            }
        });
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints
            .filter(|place| !place.lb_endpoints.is_empty())
            .collect(),
        ..ClusterLoadAssignment::default()
    }
}

/// Over HBONE whenever the workload takes it, by its first address; else in plain text.
fn endpoint(workload: &Workload, port: u32) -> Option<LbEndpoint> {
    let address = SocketAddr::new(ip(workload.addresses.first()?)?, u16::try_from(port).ok()?);
    let hbone = workload.tunnel_protocol == i32::from(TunnelProtocol::Hbone);
    let named = [
        workload.workload_name.as_str(),
        &workload.namespace,
        &workload.canonical_name,
        &workload.canonical_revision,
        &workload.cluster_id,
    ];
    let istio = fields([("workload", text(named.join(";")))]);
    let mut filter_metadata = HashMap::from([("istio".to_owned(), istio)]);
    let wire = if hbone {
        let original = fields([("local", text(address.to_string()))]);
        filter_metadata.insert(ORIGINAL_DST.to_owned(), original);
        internal_address(CONNECT_ORIGINATE, &address.to_string())
    } else {
        socket_address(address)
    };
    Some(LbEndpoint {
        health_status: HealthStatus::Healthy.into(),
        metadata: Some(Metadata {
            filter_metadata,
            ..Metadata::default()
        }),
        load_balancing_weight: number(1),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(wire),
            ..Endpoint::default()
        })),
    })
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// The address of an internal listener.
pub(super) fn internal_address(listener: &str, endpoint: &str) -> Address {
    let specifier = AddressNameSpecifier::ServerListenerName(listener.to_owned());
    Address {
        address: Some(AddressKind::EnvoyInternalAddress(EnvoyInternalAddress {
            endpoint_id: endpoint.to_owned(),
            address_name_specifier: Some(specifier),
        })),
    }
}

/// The address of a socket.
pub(super) fn socket_address(address: SocketAddr) -> Address {
    Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
            ..SocketAddress::default()
        })),
    }
}

//! `ClusterLoadAssignment` → [`Endpoint`]s.

use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    EnvoyInternalAddress, HealthStatus, Locality as ProtoLocality, Metadata,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
};

use crate::endpoints::{Endpoint, Health, Locality, Transport, WorkloadName};
use crate::envoy::at::{At, Compiled, ignore_rest, nothing_left};
use crate::envoy::cluster::{socket, text};
use crate::plan::{Name, dialable};

/// The internal listener that opens HBONE.
const ORIGINATE: &str = "connect_originate";
/// Metadata that says where the CONNECT goes.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";
/// Port of HBONE.
const HBONE_PORT: u16 = 15008;
/// Endpoints of one cluster beyond which a list is refused rather than kept: far above any service,
/// far below what memory holds.
const MAX_ENDPOINTS: usize = 100_000;

/// One cluster's endpoints, as received.
#[derive(Debug, Clone, Default)]
pub(crate) struct Assignment {
    pub(crate) endpoints: Vec<Placed>,
    /// Percentage; Envoy's default if not given.
    pub(crate) overprovisioning: Option<u32>,
}

/// An endpoint with the weight of its locality.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) endpoint: Endpoint,
    pub(crate) locality_weight: u32,
}

/// Whether a static list is just "through HBONE to where the client wanted" (`encap`).
pub(crate) fn is_originate(list: &ClusterLoadAssignment) -> bool {
    let mut endpoints = list
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints);
    match (endpoints.next(), endpoints.next()) {
        (Some(only), None) => {
            only.metadata.is_none()
                && internal(only).is_some_and(|to| to.endpoint_id.is_empty() && is_listener(to))
        }
        _ => false,
    }
}

fn internal(endpoint: &LbEndpoint) -> Option<&EnvoyInternalAddress> {
    match endpoint.host_identifier.as_ref()? {
        HostIdentifier::Endpoint(endpoint) => match endpoint.address.as_ref()?.address.as_ref()? {
            AddressKind::EnvoyInternalAddress(address) => Some(address),
            _ => None,
        },
        HostIdentifier::EndpointName(_) => None,
    }
}

fn is_listener(address: &EnvoyInternalAddress) -> bool {
    matches!(
        &address.address_name_specifier,
        Some(AddressNameSpecifier::ServerListenerName(name)) if name == ORIGINATE
    )
}

pub(crate) fn assignment(mut proto: ClusterLoadAssignment, at: &At<'_>) -> Compiled<Assignment> {
    proto.cluster_name.clear();
    let mut out = Assignment::default();
    if let Some(mut policy) = proto.policy.take() {
        out.overprovisioning = policy
            .overprovisioning_factor
            .take()
            .map(|factor| factor.value);
        nothing_left(&policy, &at.field("policy"))?;
    }
    for (index, locality) in std::mem::take(&mut proto.endpoints).into_iter().enumerate() {
        locality_endpoints(locality, &mut out.endpoints, &at.index("endpoints", index))?;
        if out.endpoints.len() > MAX_ENDPOINTS {
            return Err(at.refuse(format_args!("has more than {MAX_ENDPOINTS} endpoints")));
        }
    }
    nothing_left(&proto, at)?;
    Ok(out)
}

fn locality_endpoints(
    mut proto: LocalityLbEndpoints,
    out: &mut Vec<Placed>,
    at: &At<'_>,
) -> Compiled<()> {
    let locality = proto.locality.take().and_then(locality).map(Arc::new);
    let priority = std::mem::take(&mut proto.priority);
    let locality_weight = proto
        .load_balancing_weight
        .take()
        .map_or(1, |weight| weight.value);
    for (index, endpoint) in std::mem::take(&mut proto.lb_endpoints)
        .into_iter()
        .enumerate()
    {
        let at = at.index("lb_endpoints", index);
        let mut endpoint = lb_endpoint(endpoint, &at)?;
        endpoint.priority = priority;
        endpoint.locality = locality.clone();
        out.push(Placed {
            endpoint,
            locality_weight,
        });
    }
    proto.metadata = None;
    proto.proximity = None;
    nothing_left(&proto, at)
}

fn locality(proto: ProtoLocality) -> Option<Locality> {
    let locality = Locality {
        region: proto.region.into(),
        zone: proto.zone.into(),
        subzone: proto.sub_zone.into(),
    };
    (!locality.region.is_empty()).then_some(locality)
}

fn lb_endpoint(mut proto: LbEndpoint, at: &At<'_>) -> Compiled<Endpoint> {
    let metadata = proto.metadata.take();
    let (address, transport) = match proto.host_identifier.take() {
        Some(HostIdentifier::Endpoint(mut endpoint)) => {
            let address = endpoint.address.take().and_then(|address| address.address);
            endpoint.hostname.clear();
            // Only the first address of a dual-stack endpoint is used, as Istio does for HBONE.
            endpoint.additional_addresses.clear();
            ignore_rest(&endpoint, at);
            match address {
                Some(AddressKind::SocketAddress(to)) => match to.port_specifier {
                    Some(PortSpecifier::PortValue(port)) => {
                        (socket(&to.address, port, at)?, Transport::Plain)
                    }
                    _ => return Err(at.refuse("has no port")),
                },
                Some(AddressKind::EnvoyInternalAddress(to)) => hbone(&to, metadata.as_ref(), at)?,
                Some(AddressKind::Pipe(_)) => return Err(at.refuse("pipes are not supported")),
                None => return Err(at.refuse("has no address")),
            }
        }
        _ => return Err(at.refuse("has no endpoint")),
    };
    if !dialable(address.ip()) {
        return Err(at.refuse(format_args!("{address} cannot be dialled")));
    }
    let mut endpoint = Endpoint::new(address, transport);
    endpoint.weight = match proto.load_balancing_weight.take() {
        Some(weight) if weight.value == 0 => return Err(at.refuse("has weight 0")),
        Some(weight) => weight.value,
        None => 1,
    };
    endpoint.health = match HealthStatus::try_from(std::mem::take(&mut proto.health_status)) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => {
            Health::Healthy
        }
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
    };
    endpoint.workload = workload(metadata.as_ref());
    nothing_left(&proto, at)?;
    Ok(endpoint)
}

/// An endpoint behind the internal listener: the metadata says where the CONNECT goes, and which
/// HBONE listener it is sent to.
fn hbone(
    to: &EnvoyInternalAddress,
    metadata: Option<&Metadata>,
    at: &At<'_>,
) -> Compiled<(SocketAddr, Transport)> {
    if !is_listener(to) {
        return Err(at.refuse("leads to an internal listener that is not supported"));
    }
    let original = metadata.and_then(|metadata| metadata.filter_metadata.get(ORIGINAL_DST));
    let part = |key| original.and_then(|original| text(original, key));
    let local = part("local").unwrap_or(&to.endpoint_id);
    let address = parse(local, at)?;
    let next_hop = match part("waypoint") {
        Some(waypoint) => parse(waypoint, at)?,
        None => SocketAddr::new(address.ip(), HBONE_PORT),
    };
    Ok((address, Transport::Hbone(next_hop)))
}

fn parse(text: &str, at: &At<'_>) -> Compiled<SocketAddr> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| at.refuse(format_args!("{text:?} is no address with a port")))?;
    socket(&address.ip().to_string(), address.port().into(), at)
}

/// `istio.workload`: `name;namespace;canonical-name;canonical-revision;cluster`.
fn workload(metadata: Option<&Metadata>) -> Option<Arc<WorkloadName>> {
    let istio = metadata?.filter_metadata.get("istio")?;
    let mut parts = text(istio, "workload")?.split(';').map(Name::from);
    let mut next = || parts.next().unwrap_or_else(|| Name::from(""));
    Some(Arc::new(WorkloadName {
        name: next(),
        namespace: next(),
        canonical_name: next(),
        canonical_revision: next(),
        cluster: next(),
    }))
}

//! `istio.workload.Service`.

use ambit_model::address::Vip;
use ambit_model::service::{
    HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, ServiceKey, Visibility,
    WeightedWaypoint,
};
use ambit_proto::istio::workload as wire;
use ambit_proto::istio::workload::load_balancing as balancing;
use ipnet::IpNet;

use super::{Invalid, gateway, ip, known, ports};

/// A service of the model.
///
/// # Errors
/// See [`Invalid`].
pub fn service(from: wire::Service) -> Result<Service, Invalid> {
    parse(from).map_err(|invalid| invalid.inside("service"))
}

fn parse(from: wire::Service) -> Result<Service, Invalid> {
    let text = format!("{}/{}", from.namespace, from.hostname);
    let key = ServiceKey::parse(&text).ok_or_else(|| {
        Invalid::field(
            "namespace, hostname",
            format!("{text:?} is not namespace/hostname"),
        )
    })?;
    let mut service = Service::new(key);
    if !from.name.is_empty() {
        service.name = from.name.into();
    }
    for (index, address) in from.addresses.into_iter().enumerate() {
        service
            .vips
            .push(vip(&format!("addresses[{index}]"), address)?);
    }
    service.ports = ports("ports", &from.ports)?;
    // A service outside the mesh may list DNS names here; no workload ever presents one, so only
    // identities have an effect.
    let names = from.subject_alt_names.iter();
    service.subject_alt_names = names.filter_map(|name| name.parse().ok()).collect();
    service.waypoint = from.waypoint.map(|w| gateway("waypoint", w)).transpose()?;
    for (index, weighted) in from.weighted_waypoints.into_iter().enumerate() {
        let field = format!("weighted_waypoints[{index}].destination");
        let destination = weighted
            .destination
            .ok_or_else(|| Invalid::field(&field, "missing"))?;
        let destination = gateway(&field, destination)?;
        service.weighted_waypoints.push(WeightedWaypoint {
            destination,
            weight: weighted.weight,
        });
    }
    if let Some(from) = from.load_balancing {
        service.load_balancing = load_balancing(&from)?;
    }
    service.ip_families = match known("ip_families", from.ip_families)? {
        wire::IpFamilies::Automatic => IpFamilies::Automatic,
        wire::IpFamilies::Ipv4Only => IpFamilies::V4,
        wire::IpFamilies::Ipv6Only => IpFamilies::V6,
        wire::IpFamilies::Dual => IpFamilies::Dual,
    };
    service.canonical = from.canonical;
    // Istio's contract: a visibility of the future is public.
    service.visibility = match wire::service::Visibility::try_from(from.visibility) {
        Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
        Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
    };
    Ok(service)
}

fn vip(field: &str, from: wire::NetworkAddress) -> Result<Vip, Invalid> {
    let address = ip(field, &from.address)?;
    let network = from.network.into();
    let Some(length) = from.length else {
        return Ok(Vip::single(network, address));
    };
    let block = block(&from.address, length).ok_or_else(|| {
        Invalid::field(
            &format!("{field}.length"),
            format!("{length} does not fit {address}"),
        )
    })?;
    Ok(Vip { network, block })
}

/// A block of addresses with its host bits cleared; IPv4 mapped into IPv6 becomes IPv4.
pub(super) fn block(address: &[u8], length: u32) -> Option<IpNet> {
    let ip = ip("", address).ok()?;
    // A mapped address counts its prefix from the start of the IPv6 one.
    let mapped = if ip.is_ipv4() && address.len() == 16 {
        96
    } else {
        0
    };
    let length = u8::try_from(length.checked_sub(mapped)?).ok()?;
    IpNet::new(ip, length).ok().map(|block| block.trunc())
}

fn load_balancing(from: &wire::LoadBalancing) -> Result<LoadBalancing, Invalid> {
    let mode = match known("load_balancing.mode", from.mode)? {
        balancing::Mode::UnspecifiedMode => Mode::Standard,
        balancing::Mode::Strict => Mode::Strict,
        balancing::Mode::Failover => Mode::Failover,
        balancing::Mode::Passthrough => Mode::Passthrough,
    };
    let scope = |(index, value): (usize, &i32)| {
        let field = format!("load_balancing.routing_preference[{index}]");
        Ok(match known(&field, *value)? {
            balancing::Scope::Region => Scope::Region,
            balancing::Scope::Zone => Scope::Zone,
            balancing::Scope::Subzone => Scope::Subzone,
            balancing::Scope::Node => Scope::Node,
            balancing::Scope::Cluster => Scope::Cluster,
            balancing::Scope::Network => Scope::Network,
            balancing::Scope::UnspecifiedScope => {
                return Err(Invalid::field(&field, "unspecified"));
            }
        })
    };
    let scopes = from
        .routing_preference
        .iter()
        .enumerate()
        .map(scope)
        .collect::<Result<_, _>>()?;
    let health_policy = match known("load_balancing.health_policy", from.health_policy)? {
        balancing::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
        balancing::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
    };
    Ok(LoadBalancing {
        mode,
        scopes,
        health_policy,
    })
}

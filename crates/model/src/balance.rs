//! The choice of an endpoint of a service.
//!
//! 1. An endpoint counts when the service's health policy takes it, it has weight, it can be reached, the port leads somewhere, and no
//!    attempt on it for this connection has failed.
//! 2. The mode of the service narrows them: STRICT to those that share every scope with the client, FAILOVER to those that share most,
//!    in order.
//! 3. Among the rest chance decides, by capacity.
//!
//! The choice is made once for each connection and remembers nothing.

use std::net::IpAddr;
use std::sync::Arc;

use crate::reason::Reason;
use crate::service::{Endpoint, Endpoints, HealthPolicy, IpFamilies, Mode, Scope, Service};
use crate::text::Text;
use crate::workload::{Health, Workload};

/// Draws before the exact choice is made by going through all endpoints. With half of the endpoints unfit, one choice in 256 needs it.
const DRAWS: usize = 8;

/// What an endpoint is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve the service: the port has to be declared by the service.
    Serve,
    /// To be the waypoint: the port may also be known only to the endpoint, or be taken as it is when an application tunnel is there.
    Waypoint,
    /// To be the gateway into another network: as a waypoint, and dialled whatever network its record names.
    Gateway,
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The workload whose connection it is.
    pub client: &'a Workload,
    /// The address it dialled; its family is preferred.
    pub address: IpAddr,
    /// The service port.
    pub port: u16,
    /// For what.
    pub purpose: Purpose,
    /// Uids of workloads not to take, because an attempt on them has failed.
    pub avoid: &'a [Text],
}

/// The endpoint that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picked<'v> {
    /// The workload.
    pub workload: &'v Arc<Workload>,
    /// The port to reach there.
    pub port: u16,
    /// It was one of several.
    pub others: bool,
}

/// Chooses one endpoint of `service`. Allocates nothing; `random` gives uniform numbers.
///
/// # Errors
///
/// [`Reason::NoHealthyUpstream`] when no endpoint may be used; [`Reason::GatewayUnresolved`] or [`Reason::HostnameUnresolved`] when
/// all are in other networks without a gateway there, or have neither an address nor a name: none of them can be reached.
pub fn pick<'v>(
    service: &Service,
    endpoints: &'v Endpoints,
    wanted: &Wanted<'_>,
    random: &mut impl FnMut() -> u64,
) -> Result<Picked<'v>, Reason> {
    let drawn = match service.load_balancing.mode {
        Mode::Standard | Mode::Passthrough => draw(service, endpoints, wanted, random),
        Mode::Strict | Mode::Failover => None,
    };
    drawn
        .or_else(|| choose(service, endpoints, wanted, random))
        .ok_or_else(|| none_fit(endpoints, wanted))
}

/// Draws endpoints at random and takes the first that is fit, each with the likelihood of its share of the largest capacity. So the
/// result has exactly the distribution of [`choose`] without going through all of them.
fn draw<'v>(
    service: &Service,
    endpoints: &'v Endpoints,
    wanted: &Wanted<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<Picked<'v>> {
    let count = u64::try_from(endpoints.len()).unwrap_or(u64::MAX);
    for _ in 0..DRAWS {
        let index = usize::try_from(below(random(), count)).unwrap_or_default();
        let endpoint = endpoints.get(index)?;
        let capacity = endpoint.workload.capacity;
        let heaviest = endpoints.heaviest();
        let taken =
            capacity == heaviest || below(random(), u64::from(heaviest)) < u64::from(capacity);
        if taken && let Some(port) = fit(service, endpoint, wanted) {
            return Some(Picked {
                workload: &endpoint.workload,
                port,
                others: count > 1,
            });
        }
    }
    None
}

/// Goes through all endpoints, keeping one of the best rank by capacity.
fn choose<'v>(
    service: &Service,
    endpoints: &'v Endpoints,
    wanted: &Wanted<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<Picked<'v>> {
    let mut best = 0;
    let mut total = 0;
    let mut picked = None;
    for endpoint in endpoints.iter() {
        let Some(port) = fit(service, endpoint, wanted) else {
            continue;
        };
        let Some(rank) = rank(service, wanted.client, &endpoint.workload) else {
            continue;
        };
        if rank < best {
            continue;
        }
        if rank > best {
            best = rank;
            total = 0;
        }
        let capacity = u64::from(endpoint.workload.capacity);
        total += capacity;
        if below(random(), total) < capacity {
            picked = Some(Picked {
                workload: &endpoint.workload,
                port,
                others: endpoints.len() > 1,
            });
        }
    }
    picked
}

/// A number below `bound` from a uniform one (Lemire's multiplication; the bias is below 2^-32 for any sum of capacities here).
pub(crate) fn below(random: u64, bound: u64) -> u64 {
    let product = u128::from(random) * u128::from(bound);
    u64::try_from(product >> 64).unwrap_or_default()
}

/// Why no endpoint may be used: those that only another proxy could reach are told apart.
fn none_fit(endpoints: &Endpoints, wanted: &Wanted<'_>) -> Reason {
    let remote = |endpoint: &Endpoint| {
        endpoint.workload.network != wanted.client.network
            && endpoint.workload.network_gateway.is_none()
    };
    let nameless = |endpoint: &Endpoint| {
        endpoint.workload.addresses.is_empty() && endpoint.workload.hostname.is_empty()
    };
    match endpoints.len() {
        0 => Reason::NoHealthyUpstream,
        _ if endpoints.iter().all(remote) => Reason::GatewayUnresolved,
        _ if endpoints.iter().all(nameless) => Reason::HostnameUnresolved,
        _ => Reason::NoHealthyUpstream,
    }
}

/// The port to reach at an endpoint that may be used.
fn fit(service: &Service, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Option<u16> {
    let workload = &endpoint.workload;
    let healthy = workload.health == Health::Healthy
        || service.load_balancing.health_policy == HealthPolicy::AllowAll;
    let direct = wanted.purpose == Purpose::Gateway || workload.network == wanted.client.network;
    let reachable = if direct {
        // A name is resolved once it is chosen.
        workload.has_only_a_name()
            || dial_address(workload, service.ip_families, wanted.address).is_some()
    } else {
        // Its address, if it has one, means nothing here.
        workload.network_gateway.is_some()
    };
    let avoided = wanted.avoid.contains(&workload.uid);
    if !healthy || avoided || workload.capacity == 0 || !reachable {
        return None;
    }
    let mapped = endpoint.target_port(service, wanted.port);
    match wanted.purpose {
        Purpose::Serve => mapped.filter(|_| service.port(wanted.port).is_some()),
        Purpose::Waypoint | Purpose::Gateway => {
            mapped.or_else(|| workload.application_tunnel.map(|_| wanted.port))
        }
    }
}

/// How well an endpoint suits a client; `None` when the mode excludes it.
fn rank(service: &Service, client: &Workload, endpoint: &Workload) -> Option<usize> {
    let scopes = &service.load_balancing.scopes;
    match service.load_balancing.mode {
        Mode::Standard | Mode::Passthrough => Some(0),
        Mode::Strict => scopes
            .iter()
            .all(|&scope| shared(scope, client, endpoint))
            .then_some(0),
        Mode::Failover => Some(failover_rank(scopes, client, endpoint)),
    }
}

fn failover_rank(scopes: &[Scope], client: &Workload, endpoint: &Workload) -> usize {
    let common = |scopes: &[Scope]| {
        scopes
            .iter()
            .take_while(|&&scope| shared(scope, client, endpoint))
            .count()
    };
    match scopes.split_first() {
        // Any endpoint of the same network comes before all of other networks, which are ranked among themselves.
        Some((Scope::Network, rest)) if shared(Scope::Network, client, endpoint) => {
            scopes.len() + common(rest)
        }
        Some((Scope::Network, rest)) => common(rest),
        _ => common(scopes),
    }
}

fn shared(scope: Scope, client: &Workload, endpoint: &Workload) -> bool {
    match scope {
        Scope::Region => client.locality.region == endpoint.locality.region,
        Scope::Zone => client.locality.zone == endpoint.locality.zone,
        Scope::Subzone => client.locality.subzone == endpoint.locality.subzone,
        Scope::Node => client.node == endpoint.node,
        Scope::Cluster => client.cluster == endpoint.cluster,
        Scope::Network => client.network == endpoint.network,
    }
}

/// The address of a workload to dial: the one the client dialled if it is one of the workload's own, else one of the same family, else
/// any, within the families that are offered.
#[must_use]
pub fn dial_address(workload: &Workload, offered: IpFamilies, dialled: IpAddr) -> Option<IpAddr> {
    if workload.owns(dialled) {
        return Some(dialled);
    }
    let permitted = || {
        workload
            .addresses
            .iter()
            .copied()
            .filter(|&ip| offered.permit(ip))
    };
    permitted()
        .find(|ip| ip.is_ipv4() == dialled.is_ipv4())
        .or_else(|| permitted().next())
}

#[cfg(test)]
mod tests;

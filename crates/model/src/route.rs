//! Where an outbound connection goes.
//!
//! 1. Refuse calls to the proxy's own ports.
//! 2. Is the destination a virtual address of a service: through its waypoint if it has one, else to one of its endpoints.
//! 3. Is it a workload: through its waypoint if it has one, unless the client is that waypoint; else to it.
//! 4. Is it neither: plain TCP to where the client wanted.
//!
//! When what was chosen for a service is in another network, the way leads through that network's gateway: a tunnel to the gateway, and
//! inside it a second one to whom the service vouches for ([`Beyond`]). Both are asked for the service by its name, since addresses of the
//! other network mean nothing here.
//!
//! An address that is both is a service: its waypoint may hold policies that must not be passed by. A destination that is reached by tunnel is never reached otherwise, and a waypoint that cannot be found is not passed by.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ambit_wire::Authority;
use smallvec::{SmallVec, smallvec};

use crate::address::{GatewayAddress, GatewayDestination};
use crate::balance::{self, Picked, Purpose, Wanted};
use crate::identity::Identity;
use crate::reason::Reason;
use crate::service::{IpFamilies, Mode, Service};
use crate::text::Text;
use crate::view::View;
use crate::workload::{Protocol, Workload};

/// The port on which workloads take tunnels (contract between node proxies).
pub const HBONE_PORT: u16 = 15008;

/// The proxy's own ports in a pod: outbound capture, inbound plaintext, inbound tunnels. A connection to one of them that came from the
/// proxy itself would go in circles.
pub const OWN_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// A connection that left an application.
#[derive(Debug, Clone, Copy)]
pub struct Outbound<'a> {
    /// The workload it came from.
    pub source: &'a Workload,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// The network in which that address is to be understood: the proxy's own.
    pub network: &'a str,
    /// Uids of workloads not to choose, because an attempt on them has failed.
    pub avoid: &'a [Text],
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// In plain TCP.
    Plain {
        /// The address to dial.
        to: SocketAddr,
        /// The workload there, if it is one of the mesh.
        upstream: Option<Arc<Workload>>,
        /// The service that was addressed, if one was.
        service: Option<Arc<Service>>,
        /// See [`Tunnel::instead`].
        instead: Option<Text>,
    },
    /// Through a tunnel.
    Tunnel(Tunnel),
    /// To a workload of which only a name is known, as the control plane says of hosts outside the cluster.
    Named(Box<Named>),
}

/// A way whose first address has yet to be found: it cannot be taken before [`Named::at`] is told one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    upstream: Arc<Workload>,
    /// Complete but for that address.
    way: Route,
}

impl Named {
    /// The name to resolve.
    #[must_use]
    pub fn hostname(&self) -> &Text {
        &self.upstream.hostname
    }

    /// The workload of that name.
    #[must_use]
    pub fn upstream(&self) -> &Arc<Workload> {
        &self.upstream
    }

    /// The service that was addressed, if one was.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.way.service()
    }

    /// The way, by one of the addresses of the name.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Route {
        let mut way = self.way.clone();
        match &mut way {
            Route::Plain { to, .. } => to.set_ip(address),
            Route::Tunnel(tunnel) => {
                tunnel.next_hop.set_ip(address);
                // A workload is asked for its own address; a waypoint or a gateway for what the client wanted.
                if !tunnel.via_waypoint
                    && tunnel.beyond.is_none()
                    && let Authority::Socket(own) = &mut tunnel.authority
                {
                    own.set_ip(address);
                }
            }
            Route::Named(_) => {}
        }
        way
    }
}

/// A way through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The address to dial.
    pub next_hop: SocketAddr,
    /// What to ask the tunnel's end for.
    pub authority: Authority,
    /// The tunnel's end has to prove one of these.
    pub expected: SmallVec<[Identity; 2]>,
    /// The workload at the tunnel's end.
    pub upstream: Arc<Workload>,
    /// The service that was addressed, if one was.
    pub service: Option<Arc<Service>>,
    /// The tunnel's end is a waypoint.
    pub via_waypoint: bool,
    /// The tunnel's end is a gateway into another network: what is behind it.
    pub beyond: Option<Box<Beyond>>,
    /// Uid of the workload to avoid for another choice, when the choice was among several.
    pub instead: Option<Text>,
}

impl Route {
    /// The uid to put in [`Outbound::avoid`] when this way has failed; `None` when there was no other choice.
    #[must_use]
    pub fn instead(&self) -> Option<&Text> {
        match self {
            Self::Plain { instead, .. } => instead.as_ref(),
            Self::Tunnel(way) => way.instead.as_ref(),
            Self::Named(named) => named.way.instead(),
        }
    }

    /// The service that was addressed, if one was.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Plain { service, .. } => service.as_ref(),
            Self::Tunnel(way) => way.service.as_ref(),
            Self::Named(named) => named.service(),
        }
    }
}

/// The end of the tunnel inside the one to a network's gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beyond {
    /// The record that was chosen. It may stand for many workloads over there, of which the gateway chooses one.
    pub upstream: Arc<Workload>,
    /// The end has to prove one of these: the identities that the service itself names, and never that of the record.
    pub expected: SmallVec<[Identity; 2]>,
}

/// Decides. On the way that permits it allocates at most when a service has more than one further identity.
///
/// # Errors
///
/// The reason for which the connection has to be refused.
pub fn outbound(
    view: &View,
    connection: &Outbound<'_>,
    random: &mut impl FnMut() -> u64,
) -> Result<Route, Reason> {
    let Outbound {
        source,
        destination,
        network,
        avoid: _,
    } = *connection;
    refuse_own_ports(source, destination)?;
    if let Some(service) = view.service_at(network, destination.ip(), &source.namespace) {
        return to_service(view, connection, service, random);
    }
    if let Some(workload) = view.workload_at(network, destination.ip()) {
        return to_workload(view, connection, workload, random);
    }
    Ok(Route::Plain {
        to: destination,
        upstream: None,
        service: None,
        instead: None,
    })
}

fn refuse_own_ports(source: &Workload, destination: SocketAddr) -> Result<(), Reason> {
    let own_address = destination.ip().is_loopback() || source.owns(destination.ip());
    let own_port = OWN_PORTS.contains(&destination.port());
    if own_address && own_port {
        Err(Reason::SelfCall)
    } else {
        Ok(())
    }
}

fn to_service(
    view: &View,
    connection: &Outbound<'_>,
    service: &Arc<Service>,
    random: &mut impl FnMut() -> u64,
) -> Result<Route, Reason> {
    let destination = connection.destination;
    if let Some(waypoint) = draw_waypoint(service, random) {
        let hop = find_hop(view, connection, waypoint, Purpose::Waypoint, random)?;
        if hop.workload.network != connection.source.network {
            return through_gateway(view, connection, service, &hop, random);
        }
        return hop.tunnel(connection, destination.into(), Some(service));
    }
    if service.load_balancing.mode == Mode::Passthrough {
        let service = Some(Arc::clone(service));
        return Ok(Route::Plain {
            to: destination,
            upstream: None,
            service,
            instead: None,
        });
    }
    let endpoints = view
        .endpoints(&service.key)
        .ok_or(Reason::NoHealthyUpstream)?;
    let wanted = Wanted {
        client: connection.source,
        address: destination.ip(),
        port: destination.port(),
        purpose: Purpose::Serve,
        avoid: connection.avoid,
    };
    let picked = balance::pick(service, endpoints, &wanted, random)?;
    if picked.workload.network != connection.source.network {
        let hop = Hop {
            workload: picked.workload,
            service: Some(service),
            port: picked.port,
            others: picked.others,
        };
        return through_gateway(view, connection, service, &hop, random);
    }
    direct(connection, picked, Some(service))
}

/// Through the gateway of the network that `chosen`, an endpoint of `service` or of its waypoint, is in.
fn through_gateway(
    view: &View,
    connection: &Outbound<'_>,
    service: &Arc<Service>,
    chosen: &Hop<'_>,
    random: &mut impl FnMut() -> u64,
) -> Result<Route, Reason> {
    let gateway = chosen.workload.network_gateway.as_ref();
    let gateway = gateway.ok_or(Reason::GatewayUnresolved)?;
    let named = chosen.service.map(|named| &*named.subject_alt_names);
    let expected: SmallVec<[Identity; 2]> = named.unwrap_or_default().iter().cloned().collect();
    if expected.is_empty() {
        // Nobody could prove to be the right one: not worth asking the gateway.
        return Err(Reason::NobodyExpected);
    }
    let gateway = find_hop(view, connection, gateway, Purpose::Gateway, random)
        .map_err(|_| Reason::GatewayUnresolved)?;
    let port = connection.destination.port();
    let authority = Authority::host(&service.key.hostname, port);
    let authority = authority.map_err(|_| Reason::GatewayUnresolved)?;
    let beyond = Beyond {
        upstream: Arc::clone(chosen.workload),
        expected,
    };
    let address = gateway.dial_address(connection);
    by(address, gateway.workload, Reason::GatewayUnresolved, |ip| {
        Route::Tunnel(Tunnel {
            next_hop: SocketAddr::new(ip, gateway.port),
            authority,
            expected: self::expected(gateway.workload, gateway.service),
            upstream: Arc::clone(gateway.workload),
            service: Some(Arc::clone(service)),
            via_waypoint: false,
            beyond: Some(Box::new(beyond)),
            instead: chosen.instead().or_else(|| gateway.instead()),
        })
    })
}

/// The way to `workload` by its address; where it has only a name, once that is resolved; else the reason `none`.
fn by(
    address: Option<IpAddr>,
    workload: &Arc<Workload>,
    none: Reason,
    way: impl FnOnce(IpAddr) -> Route,
) -> Result<Route, Reason> {
    match address {
        Some(address) => Ok(way(address)),
        None if workload.has_only_a_name() => Ok(Route::Named(Box::new(Named {
            upstream: Arc::clone(workload),
            way: way(Ipv4Addr::UNSPECIFIED.into()),
        }))),
        None => Err(none),
    }
}

fn to_workload(
    view: &View,
    connection: &Outbound<'_>,
    workload: &Arc<Workload>,
    random: &mut impl FnMut() -> u64,
) -> Result<Route, Reason> {
    let destination = connection.destination;
    if let Some(waypoint) = &workload.waypoint
        && !is_waypoint(view, connection.source, connection.network, waypoint)
    {
        let hop = find_hop(view, connection, waypoint, Purpose::Waypoint, random)?;
        if hop.workload.network != connection.source.network {
            // Beyond a gateway things are asked for by the name of a service, and here is none.
            return Err(Reason::GatewayUnresolved);
        }
        return hop.tunnel(connection, destination.into(), None);
    }
    direct(
        connection,
        Picked {
            workload,
            port: destination.port(),
            others: false,
        },
        None,
    )
}

/// To the chosen workload itself, in the way it accepts.
fn direct(
    connection: &Outbound<'_>,
    picked: Picked<'_>,
    service: Option<&Arc<Service>>,
) -> Result<Route, Reason> {
    let workload = picked.workload;
    if workload.network != connection.source.network {
        return Err(Reason::GatewayUnresolved);
    }
    let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
    let address = balance::dial_address(workload, families, connection.destination.ip());
    let instead = picked.others.then(|| workload.uid.clone());
    by(address, workload, Reason::HostnameUnresolved, |ip| {
        let to = SocketAddr::new(ip, picked.port);
        match workload.protocol {
            Protocol::Tcp => Route::Plain {
                to,
                upstream: Some(Arc::clone(workload)),
                service: service.cloned(),
                instead,
            },
            Protocol::Hbone => Route::Tunnel(Tunnel {
                next_hop: SocketAddr::new(ip, HBONE_PORT),
                authority: to.into(),
                expected: expected(workload, service),
                upstream: Arc::clone(workload),
                service: service.cloned(),
                via_waypoint: false,
                beyond: None,
                instead,
            }),
        }
    })
}

/// Who may be at the end of a tunnel: the workload that was chosen, or one of the names its service vouches for.
fn expected(workload: &Workload, service: Option<&Arc<Service>>) -> SmallVec<[Identity; 2]> {
    let mut expected = smallvec![workload.identity.clone()];
    for identity in service
        .iter()
        .flat_map(|service| &service.subject_alt_names)
    {
        expected.push(identity.clone());
    }
    expected
}

/// The waypoint of a service for one connection.
fn draw_waypoint<'v>(
    service: &'v Service,
    random: &mut impl FnMut() -> u64,
) -> Option<&'v GatewayAddress> {
    let mut total = 0;
    let mut drawn = None;
    for entry in &service.weighted_waypoints {
        let weight = u64::from(entry.weight);
        total += weight;
        if weight > 0 && balance::below(random(), total) < weight {
            drawn = Some(&entry.destination);
        }
    }
    drawn.or(service.waypoint.as_ref())
}

/// A waypoint or gateway that was found.
struct Hop<'v> {
    workload: &'v Arc<Workload>,
    /// The service it is an endpoint of, when it was addressed so.
    service: Option<&'v Arc<Service>>,
    port: u16,
    /// It was one of several.
    others: bool,
}

impl Hop<'_> {
    fn tunnel(
        self,
        connection: &Outbound<'_>,
        authority: Authority,
        service: Option<&Arc<Service>>,
    ) -> Result<Route, Reason> {
        let address = self.dial_address(connection);
        by(address, self.workload, Reason::WaypointUnresolved, |ip| {
            Route::Tunnel(Tunnel {
                next_hop: SocketAddr::new(ip, self.port),
                authority,
                expected: expected(self.workload, self.service),
                upstream: Arc::clone(self.workload),
                service: service.cloned(),
                via_waypoint: true,
                beyond: None,
                instead: self.instead(),
            })
        })
    }

    fn instead(&self) -> Option<Text> {
        self.others.then(|| self.workload.uid.clone())
    }

    fn dial_address(&self, connection: &Outbound<'_>) -> Option<IpAddr> {
        let families = self
            .service
            .map_or(IpFamilies::Automatic, |own| own.ip_families);
        let dialled = connection.destination.ip();
        balance::dial_address(self.workload, families, dialled)
    }
}

/// The workload that is, or is an endpoint of, the waypoint or gateway at `at`.
fn find_hop<'v>(
    view: &'v View,
    connection: &Outbound<'_>,
    at: &GatewayAddress,
    purpose: Purpose,
    random: &mut impl FnMut() -> u64,
) -> Result<Hop<'v>, Reason> {
    let namespace = &connection.source.namespace;
    let port = at.hbone_port;
    let service = match &at.destination {
        GatewayDestination::Hostname(key) => match view.service(key) {
            Some(service) => service,
            None => {
                let workload = view.workload_with_hostname(key);
                let workload = workload.ok_or(Reason::WaypointUnresolved)?;
                return Ok(Hop {
                    workload,
                    service: None,
                    port,
                    others: false,
                });
            }
        },
        GatewayDestination::Address { network, address } => {
            if let Some(workload) = view.workload_at(network, *address) {
                return Ok(Hop {
                    workload,
                    service: None,
                    port,
                    others: false,
                });
            }
            let service = view.service_at(network, *address, namespace);
            service.ok_or(Reason::WaypointUnresolved)?
        }
    };
    let wanted = Wanted {
        client: connection.source,
        address: connection.destination.ip(),
        port,
        purpose,
        avoid: connection.avoid,
    };
    let endpoints = view
        .endpoints(&service.key)
        .ok_or(Reason::WaypointUnresolved)?;
    let picked = balance::pick(service, endpoints, &wanted, random)
        .map_err(|_| Reason::WaypointUnresolved)?;
    Ok(Hop {
        workload: picked.workload,
        service: Some(service),
        port: picked.port,
        others: picked.others,
    })
}

/// Is `workload` itself (an instance of) that waypoint. Decided by what the control plane says of its record, never by an address that a
/// peer chose.
pub(crate) fn is_waypoint(
    view: &View,
    workload: &Workload,
    network: &str,
    waypoint: &GatewayAddress,
) -> bool {
    match &waypoint.destination {
        GatewayDestination::Hostname(key) => {
            workload.services.contains_key(key)
                || (workload.namespace == key.namespace && workload.hostname == key.hostname)
        }
        GatewayDestination::Address {
            network: of,
            address,
        } => {
            let service = view.service_at(of, *address, &workload.namespace);
            (*of == *network && workload.owns(*address))
                || service.is_some_and(|service| workload.services.contains_key(&service.key))
        }
    }
}

#[cfg(test)]
mod contract;
#[cfg(test)]
mod tests;

//! May an inbound connection come in, and where does it go.
//!
//! For a stream of a tunnel: 1. the workload it arrived for is known; 2. the authority names something behind it; 3. the port is
//! known and not the proxy's own; 4. the policies permit it. For a plaintext connection the second step is missing.
//!
//! [`Admitted`] is the proof that all of it was done; what dials the application takes one. It stays with the connection so that
//! [`still_admitted`] can ask again whenever the view changes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ambit_wire::{Authority, proxy_v2};

use crate::authorize::{self, Attributes, Rules, Verdict};
use crate::identity::Identity;
use crate::policy::PolicyKey;
use crate::reason::Reason;
use crate::route::{OWN_PORTS, is_waypoint};
use crate::service::{Service, target_port};
use crate::view::View;
use crate::workload::{ApplicationProtocol, Workload};

/// A connection or stream that arrived for a workload of this node.
#[derive(Debug, Clone, Copy)]
pub struct Inbound<'a> {
    /// Uid of the workload.
    pub local: &'a str,
    /// The destination of the TCP connection, as it arrived.
    pub connection: SocketAddr,
    /// The source of the TCP connection.
    pub peer_address: SocketAddr,
    /// In which way it arrived.
    pub arrival: Arrival<'a>,
}

/// How a connection arrived.
#[derive(Debug, Clone, Copy)]
pub enum Arrival<'a> {
    /// As a stream of a tunnel.
    Tunnel {
        /// What the peer asked for.
        authority: &'a Authority,
        /// Who the peer proved to be.
        peer: &'a Identity,
    },
    /// In plain TCP. The peer is nobody.
    Plaintext,
}

/// Proof that a connection was admitted.
#[derive(Debug, Clone)]
pub struct Admitted {
    local: Arc<Workload>,
    service: Option<Arc<Service>>,
    peer: Option<Identity>,
    source: SocketAddr,
    target: SocketAddr,
    decided_by: Option<PolicyKey>,
    header: Option<Box<proxy_v2::Header>>,
}

impl Admitted {
    /// The address of the application.
    #[must_use]
    pub fn upstream(&self) -> SocketAddr {
        self.target
    }

    /// The workload it arrived for, as it was known then.
    #[must_use]
    pub fn local(&self) -> &Arc<Workload> {
        &self.local
    }

    /// The service the peer named in the authority, if it named one.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    /// Who the peer proved to be; `None` for plaintext.
    #[must_use]
    pub fn peer(&self) -> Option<&Identity> {
        self.peer.as_ref()
    }

    /// The source of the TCP connection.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.source
    }

    /// The ALLOW policy that permitted it; `None` when no policy had to.
    #[must_use]
    pub fn decided_by(&self) -> Option<&PolicyKey> {
        self.decided_by.as_ref()
    }

    /// What to send to the application in front of the bytes.
    #[must_use]
    pub fn header(&self) -> Option<&proxy_v2::Header> {
        self.header.as_deref()
    }

    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            peer: self.peer.as_ref(),
            source: self.source.ip(),
            destination: self.target,
        }
    }
}

/// Why a connection was not admitted. Displays as the text for the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, from which status and flag follow.
    pub reason: Reason,
    /// The policy that decided, or the name that is not known.
    pub policy: Option<PolicyKey>,
    /// What was connected to and what was asked for, when they do not agree.
    pub mismatch: Option<(IpAddr, IpAddr)>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            policy: None,
            mismatch: None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.mismatch, self.reason) {
            (Some((connected, asked)), reason) => write!(f, "{reason}: {connected} != {asked}"),
            (None, reason) => f.write_str(&authorize::denial(reason, self.policy.as_ref())),
        }
    }
}

impl std::error::Error for Refusal {}

/// Decides. On the way that permits it allocates nothing, but for a header the application asked for.
///
/// # Errors
///
/// The reason for which it has to be refused: see the module for the order.
pub fn admit(view: &View, inbound: &Inbound<'_>) -> Result<Admitted, Refusal> {
    admit_told(view, inbound, |_| {})
}

/// The question that was put to the policies, and what they said.
#[derive(Debug)]
pub struct Asked<'a, 'v> {
    /// The policies that apply.
    pub rules: &'a Rules<'v>,
    /// What they looked at.
    pub attributes: &'a Attributes<'a>,
    /// What they said.
    pub verdict: Verdict<'v>,
}

/// Decides as [`admit`], and tells `told` what the policies were asked and said, if they were asked.
///
/// # Errors
///
/// Those of [`admit`].
pub fn admit_told(
    view: &View,
    inbound: &Inbound<'_>,
    told: impl FnOnce(&Asked<'_, '_>),
) -> Result<Admitted, Refusal> {
    let local = view
        .workload(inbound.local)
        .ok_or(Reason::UnknownDestination)?;
    let (service, target, peer) = match inbound.arrival {
        Arrival::Tunnel { authority, peer } => {
            check_authority(view, local, inbound.connection.ip(), authority)?;
            let (service, port) = find_target(view, local, authority)?;
            let target = SocketAddr::new(inbound.connection.ip(), port);
            (service, target, Some(peer))
        }
        Arrival::Plaintext => (None, inbound.connection, None),
    };
    if OWN_PORTS.contains(&target.port()) {
        return Err(Reason::SelfCall.into());
    }
    let mut admitted = Admitted {
        local: Arc::clone(local),
        service: service.cloned(),
        peer: peer.cloned(),
        source: inbound.peer_address,
        target,
        decided_by: None,
        header: header(view, local, inbound, service.map(|service| &**service)).map(Box::new),
    };
    admitted.decided_by = permitted(view, local, &admitted.attributes(), told)?.cloned();
    Ok(admitted)
}

/// Asks again about a connection that was admitted on an earlier view. The workload is looked up anew, so that a change of the policies
/// it lists counts; if it is gone, what was last known of it is taken.
///
/// # Errors
///
/// [`Reason::PolicyChanged`] with the policy that now forbids it; [`Reason::PolicyUnresolved`] with a name that is listed and not known,
/// when no known policy denies it: the caller says how long that may last.
pub fn still_admitted(view: &View, admitted: &Admitted) -> Result<(), Refusal> {
    let local = view
        .workload(&admitted.local.uid)
        .unwrap_or(&admitted.local);
    match permitted(view, local, &admitted.attributes(), |_| {}) {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.reason == Reason::PolicyUnresolved => Err(refusal),
        Err(refusal) => Err(Refusal {
            reason: Reason::PolicyChanged,
            ..refusal
        }),
    }
}

fn permitted<'v>(
    view: &'v View,
    local: &'v Workload,
    attributes: &Attributes<'_>,
    told: impl FnOnce(&Asked<'_, '_>),
) -> Result<Option<&'v PolicyKey>, Refusal> {
    let rules = view.policies_for(local);
    let verdict = authorize::authorize(&rules, attributes);
    told(&Asked {
        rules: &rules,
        attributes,
        verdict,
    });
    match verdict {
        Verdict::Allow { by } => Ok(by),
        Verdict::Deny { reason, by } => Err(Refusal {
            reason,
            policy: by.cloned(),
            mismatch: None,
        }),
    }
}

/// An address in the authority has to be the one that was connected to, unless the workload takes connections for others.
fn check_authority(
    view: &View,
    local: &Workload,
    connected: IpAddr,
    authority: &Authority,
) -> Result<(), Refusal> {
    let Some(asked) = authority.socket().map(|address| address.ip()) else {
        return Ok(());
    };
    let valid = asked == connected
        || local.application_tunnel.is_some()
        || is_waypoint_of(view, local, asked);
    if valid {
        return Ok(());
    }
    let mismatch = Some((connected, asked));
    Err(Refusal {
        reason: Reason::AuthorityMismatch,
        policy: None,
        mismatch,
    })
}

/// Is `local` a waypoint of what is at `address`.
fn is_waypoint_of(view: &View, local: &Workload, address: IpAddr) -> bool {
    let is = |waypoint| is_waypoint(view, local, &local.network, waypoint);
    let workload = view.workload_at(&local.network, address);
    let service = view.service_at(&local.network, address, &local.namespace);
    workload.is_some_and(|workload| workload.waypoint.as_ref().is_some_and(is))
        || service.is_some_and(|service| service.waypoints().any(is))
}

/// The port on which the application is reached, and the service when one was named.
fn find_target<'v>(
    view: &'v View,
    local: &Workload,
    authority: &Authority,
) -> Result<(Option<&'v Arc<Service>>, u16), Reason> {
    let (service, port) = match authority {
        Authority::Socket(address) => (None, address.port()),
        Authority::Host { host, port } => {
            let service = view.service_named(host, &local.namespace);
            let service = service.ok_or(Reason::PortUnresolved)?;
            let own = local.ports_for(&service.key).unwrap_or_default();
            let target = target_port(own, *port).or_else(|| target_port(&service.ports, *port));
            (Some(service), target.ok_or(Reason::PortUnresolved)?)
        }
    };
    if OWN_PORTS.contains(&port) {
        return Err(Reason::SelfCall);
    }
    let replaced = local.application_tunnel.and_then(|tunnel| tunnel.port);
    Ok((service, replaced.unwrap_or(port)))
}

/// The header for an application that asked for one.
fn header(
    view: &View,
    local: &Workload,
    inbound: &Inbound<'_>,
    named: Option<&Service>,
) -> Option<proxy_v2::Header> {
    let Arrival::Tunnel { authority, peer } = inbound.arrival else {
        return None;
    };
    local
        .application_tunnel
        .filter(|tunnel| tunnel.protocol == ApplicationProtocol::Proxy)?;
    let (destination, service) = match authority {
        Authority::Socket(address) => {
            let service = view.service_at(&local.network, address.ip(), &local.namespace);
            (*address, service.map(|service| &**service))
        }
        Authority::Host { port, .. } => {
            let address = named.and_then(|service| representative(service, &local.network));
            let address = address.unwrap_or(inbound.connection.ip());
            (SocketAddr::new(address, *port), named)
        }
    };
    Some(proxy_v2::Header {
        source: inbound.peer_address,
        destination,
        identity: Some(peer.as_str().into()),
        service: service.map(|service| service.key.hostname.as_str().into()),
    })
}

/// The virtual address that stands for a service: one of `network` if there is one, IPv4 before IPv6.
fn representative(service: &Service, network: &str) -> Option<IpAddr> {
    let exact = |vip: &crate::address::Vip| {
        vip.exact()
            .map(|address| (vip.network != *network, address.is_ipv6(), address))
    };
    service
        .vips
        .iter()
        .filter_map(exact)
        .min()
        .map(|(_, _, address)| address)
}

#[cfg(test)]
mod contract;
#[cfg(test)]
mod tests;

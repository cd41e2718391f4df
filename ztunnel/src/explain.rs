//! What would happen to a connection, and why: `/debug/explain?src=&dst=&port=`.
//!
//! Asks the same functions as a connection does, on the current view, and opens nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ambit_model::authorize::{self, Attributes};
use ambit_model::route::{self, Outbound, Route, Tunnel};
use ambit_model::service::Service;
use ambit_model::view::View;
use ambit_model::workload::{Protocol, Workload};
use serde_json::{Value, json};

/// A question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// A parameter is missing or cannot be read.
    #[error("{0}: {1}")]
    Parameter(&'static str, String),
    /// Nothing of that name is known here.
    #[error("{0} `{1}` is not known to this proxy")]
    Unknown(&'static str, String),
}

/// What `src` or `dst` names.
enum Named<'v> {
    Workload(&'v Arc<Workload>),
    Service(&'v Arc<Service>),
    Address(IpAddr),
}

/// Explains a connection from `source` to `destination` on `port`.
///
/// A workload is named by uid, `namespace/pod` or address; a destination also by service host name,
/// `namespace/hostname`, short service name `namespace/service`, or any address.
///
/// # Errors
/// The question names something unknown.
pub fn explain(
    view: &View,
    network: &str,
    source: &str,
    destination: &str,
    port: Option<u16>,
) -> Result<Value, Unanswerable> {
    let Some(Named::Workload(client)) = find(view, network, source) else {
        return Err(Unanswerable::Unknown("source", source.to_owned()));
    };
    let target = find(view, network, destination)
        .ok_or_else(|| Unanswerable::Unknown("destination", destination.to_owned()))?;
    let (address, port) = match target {
        Named::Address(address) => (address, port),
        Named::Workload(workload) => {
            let address = workload.addresses.first().copied();
            (address.ok_or_else(|| no_address(destination))?, port)
        }
        Named::Service(service) => {
            let vip = service.vips.iter().find_map(|vip| vip.exact());
            let first = service.ports.first().map(|port| port.service_port);
            (vip.ok_or_else(|| no_address(destination))?, port.or(first))
        }
    };
    let port = port.ok_or(Unanswerable::Parameter(
        "port",
        "needed for this destination".into(),
    ))?;
    let wanted = SocketAddr::new(address, port);
    let outbound = Outbound {
        source: client,
        destination: wanted,
        network,
        avoid: &[],
    };
    // Any draw is as good as another; the answer says which endpoint it fell on.
    let decided = route::outbound(view, &outbound, &mut || fastrand::u64(..));
    Ok(json!({
        "source": crate::dump::workload(client),
        "destination": wanted.to_string(),
        "route": route_shown(&decided),
        "admission": decided.as_ref().ok().and_then(|route| admission(view, client, route)),
    }))
}

fn no_address(name: &str) -> Unanswerable {
    Unanswerable::Parameter("dst", format!("`{name}` has no address"))
}

fn find<'v>(view: &'v View, network: &str, name: &str) -> Option<Named<'v>> {
    if let Some(workload) = view.workload(name) {
        return Some(Named::Workload(workload));
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        let found = view.workload_at(network, address);
        return Some(found.map_or(Named::Address(address), Named::Workload));
    }
    let named = |workload: &&Arc<Workload>| {
        name.split_once('/')
            .is_some_and(|(ns, pod)| workload.namespace == *ns && workload.name == *pod)
    };
    if let Some(workload) = view.workloads().find(named) {
        return Some(Named::Workload(workload));
    }
    let serves = |service: &&Arc<Service>| {
        let short = || {
            name.split_once('/').is_some_and(|(ns, short)| {
                service.key.namespace == *ns
                    && (service.name == *short || service.key.hostname == *short)
            })
        };
        service.key.hostname == *name || short()
    };
    view.services().find(serves).map(Named::Service)
}

fn route_shown(decided: &Result<Route, ambit_model::reason::Reason>) -> Value {
    match decided {
        Err(reason) => json!({ "kind": "refused", "reason": reason }),
        Ok(Route::Plain {
            to,
            upstream,
            service,
            instead: _,
        }) => json!({
            "kind": "plain",
            "nextHop": to.to_string(),
            "workload": upstream.as_ref().map(|workload| &workload.uid),
            "service": service.as_ref().map(|service| &service.key),
        }),
        Ok(Route::Tunnel(Tunnel {
            next_hop,
            authority,
            expected,
            upstream,
            service,
            via_waypoint,
            beyond,
            instead: _,
        })) => {
            let kind = match (beyond, via_waypoint) {
                (Some(_), _) => "gateway",
                (None, true) => "waypoint",
                (None, false) => "tunnel",
            };
            let beyond = beyond.as_ref().map(|beyond| {
                json!({
                    "workload": beyond.upstream.uid,
                    "expected": beyond.expected.iter().map(ToString::to_string).collect::<Vec<_>>(),
                })
            });
            json!({
                "kind": kind,
                "beyond": beyond,
                "nextHop": next_hop.to_string(),
                "authority": authority.to_string(),
                "expected": expected.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "workload": upstream.uid,
                "service": service.as_ref().map(|service| &service.key),
            })
        }
    }
}

/// What the policies at the other end say. Through a waypoint that is what they say to the waypoint:
/// what it lets pass is its own affair.
fn admission(view: &View, client: &Workload, route: &Route) -> Option<Value> {
    let (upstream, target, tunnel) = match route {
        Route::Plain { to, upstream, .. } => (upstream.as_ref()?, *to, false),
        Route::Tunnel(way) if way.via_waypoint => (&way.upstream, way.next_hop, true),
        Route::Tunnel(way) => (&way.upstream, way.authority.socket()?, true),
    };
    let attributes = Attributes {
        peer: tunnel.then_some(&client.identity),
        source: client.addresses.first().copied().unwrap_or(target.ip()),
        destination: target,
    };
    let explanation = authorize::explain(&view.policies_for(upstream), &attributes);
    Some(json!({
        "workload": upstream.uid,
        "mutualTls": tunnel,
        // Policies are enforced where a proxy takes the connection in.
        "enforced": upstream.protocol == Protocol::Hbone,
        "decision": explanation,
    }))
}

#[cfg(test)]
mod tests;

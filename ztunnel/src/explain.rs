//! What would happen to a connection, and why: `/debug/explain?src=&dst=&port=`.
//!
//! Asks the same functions as a connection does, [`route::outbound`] at the client's end and [`admit::admit_told`] at the other,
//! on the current view, and opens nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ambit_model::admit::{self, Arrival, Inbound};
use ambit_model::authorize;
use ambit_model::route::{self, Outbound, Route, Tunnel};
use ambit_model::service::Service;
use ambit_model::view::View;
use ambit_model::workload::{Protocol, Workload};
use ambit_observe::server::{Answer, Call};
use http::StatusCode;
use serde_json::{Value, json};

use crate::worker::Shared;

/// The parameters of a question.
const PARAMETERS: [&str; 3] = ["src", "dst", "port"];

/// Stands for the port of a client, which decides nothing.
const ANY_PORT: u16 = 0;

/// A question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// A parameter is missing or cannot be read.
    #[error("{0}: {1}")]
    Parameter(String, String),
    /// Nothing of that name is known here.
    #[error("{0} `{1}` is not known to this proxy")]
    Unknown(&'static str, String),
}

/// Answers a question: 200 with the explanation, 400 for a question that makes no sense, 404 for names that are not known.
pub fn answer(shared: &Shared, call: &Call) -> Answer {
    let network = &shared.settings.network;
    let explained = question(call).and_then(|(source, destination, port)| {
        let ask = |view: &View| explain(view, network, source, destination, port);
        shared.store.read(ask)
    });
    match explained {
        Ok(answer) => Answer::json(&answer),
        Err(problem) => {
            let status = match problem {
                Unanswerable::Parameter(..) => StatusCode::BAD_REQUEST,
                Unanswerable::Unknown(..) => StatusCode::NOT_FOUND,
            };
            Answer::text(status, format!("{problem}\n"))
        }
    }
}

/// Source, destination and port of a query.
fn question(call: &Call) -> Result<(&str, &str, Option<u16>), Unanswerable> {
    for (name, _) in &call.query {
        let known = PARAMETERS.into_iter().find(|known| known == name);
        let wrong = match known {
            None => Some("not a parameter; there are src, dst and port"),
            Some(_) if call.query.iter().filter(|(other, _)| other == name).count() > 1 => {
                Some("given twice")
            }
            Some(_) => None,
        };
        if let Some(wrong) = wrong {
            return Err(Unanswerable::Parameter(name.clone(), wrong.to_owned()));
        }
    }
    let named = |name: &str| {
        let given = call.param(name).filter(|text| !text.is_empty());
        let missing = || Unanswerable::Parameter(name.to_owned(), "missing".to_owned());
        given.ok_or_else(missing)
    };
    let port = match call.param("port").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => {
            let port = text.parse().ok().filter(|port| *port != 0);
            let wrong = || parameter("port", format!("`{text}` is not a number from 1 to 65535"));
            Some(port.ok_or_else(wrong)?)
        }
    };
    Ok((named("src")?, named("dst")?, port))
}

fn parameter(name: &str, wrong: impl Into<String>) -> Unanswerable {
    Unanswerable::Parameter(name.to_owned(), wrong.into())
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
    let client = match find(view, network, source) {
        Some(Named::Workload(client)) => Client::Known(client),
        Some(Named::Address(address)) => Client::Outside(address),
        Some(Named::Service(_)) => {
            return Err(parameter(
                "src",
                format!("`{source}` is a service; connections come from workloads"),
            ));
        }
        None => return Err(Unanswerable::Unknown("source", source.to_owned())),
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
    let port = port.ok_or_else(|| parameter("port", "needed for this destination"))?;
    let wanted = SocketAddr::new(address, port);
    match client {
        Client::Known(client) => Ok(from_workload(view, network, client, wanted)),
        Client::Outside(client) => {
            from_outside(view, network, client, wanted).ok_or_else(|| outside(source, destination))
        }
    }
}

/// Where a connection comes from.
enum Client<'v> {
    Known(&'v Arc<Workload>),
    /// From an address that no workload has, so from outside the mesh.
    Outside(IpAddr),
}

/// A connection that the mesh routes.
fn from_workload(view: &View, network: &str, client: &Workload, wanted: SocketAddr) -> Value {
    let outbound = Outbound {
        source: client,
        destination: wanted,
        network,
        avoid: &[],
    };
    // Any draw is as good as another; the answer says which endpoint it fell on.
    let decided = route::outbound(view, &outbound, &mut || fastrand::u64(..));
    let admission = decided
        .as_ref()
        .ok()
        .and_then(|route| admission(view, client, route));
    json!({
        "source": crate::dump::workload(client),
        "destination": wanted.to_string(),
        "route": route_shown(&decided),
        "admission": admission,
    })
}

/// A connection in plaintext that only its far end sees.
fn from_outside(view: &View, network: &str, client: IpAddr, wanted: SocketAddr) -> Option<Value> {
    let upstream = view.workload_at(network, wanted.ip())?;
    let arrival = Inbound {
        local: &upstream.uid,
        connection: wanted,
        peer_address: SocketAddr::new(client, ANY_PORT),
        arrival: Arrival::Plaintext,
    };
    Some(json!({
        "source": { "address": client.to_string() },
        "destination": wanted.to_string(),
        "route": { "kind": "outside" },
        "admission": admitted(view, upstream, &arrival),
    }))
}

fn outside(source: &str, destination: &str) -> Unanswerable {
    let wrong = format!(
        "`{source}` is no workload, and what it reaches at `{destination}` is not decided by the mesh; name the workload it reaches"
    );
    Unanswerable::Parameter("dst".to_owned(), wrong)
}

fn no_address(name: &str) -> Unanswerable {
    parameter("dst", format!("`{name}` has no address"))
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
            .is_some_and(|(ns, pod)| workload.namespace == *ns && workload.name() == pod)
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
        Ok(Route::Named(named)) => json!({
            "kind": "named",
            "hostname": named.hostname(),
            "workload": named.upstream().uid,
            "service": named.service().map(|service| &service.key),
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

/// What the other end would say. Through a waypoint that is what it says to the connection to it: what it lets pass is its own
/// affair, and so is what lies behind the gateway of another network.
fn admission(view: &View, client: &Workload, route: &Route) -> Option<Value> {
    let peer_address = |to: SocketAddr| {
        let address = client.addresses.first().copied().unwrap_or(to.ip());
        SocketAddr::new(address, ANY_PORT)
    };
    match route {
        Route::Plain { to, upstream, .. } => {
            let upstream = upstream.as_ref()?;
            let arrival = Inbound {
                local: &upstream.uid,
                connection: *to,
                peer_address: peer_address(*to),
                arrival: Arrival::Plaintext,
            };
            Some(admitted(view, upstream, &arrival))
        }
        // What listens behind a name outside the cluster is no concern of the mesh.
        Route::Named(_) => None,
        Route::Tunnel(way) if way.beyond.is_some() => None,
        Route::Tunnel(way) => {
            let arrival = Inbound {
                local: &way.upstream.uid,
                connection: way.next_hop,
                peer_address: peer_address(way.next_hop),
                arrival: Arrival::Tunnel {
                    authority: &way.authority,
                    peer: &client.identity,
                },
            };
            Some(admitted(view, &way.upstream, &arrival))
        }
    }
}

/// Asks whether the connection may come in, and what the policies were asked for it, if it came to that.
fn admitted(view: &View, upstream: &Workload, arrival: &Inbound<'_>) -> Value {
    let mut decision = None;
    let outcome = admit::admit_told(view, arrival, |asked| {
        decision = Some(authorize::explain(asked.rules, asked.attributes));
    });
    let (application, refusal) = match outcome {
        Ok(admitted) => (Some(admitted.upstream().to_string()), None),
        Err(refusal) => (None, Some(refusal.to_string())),
    };
    json!({
        "workload": upstream.uid,
        "mutualTls": matches!(arrival.arrival, Arrival::Tunnel { .. }),
        // Policies are enforced where a proxy takes the connection in.
        "enforced": upstream.protocol == Protocol::Hbone,
        "admitted": refusal.is_none(),
        "application": application,
        "refusal": refusal,
        "decision": decision,
    })
}

#[cfg(test)]
mod tests;

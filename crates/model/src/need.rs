//! What has to be known before a connection can be decided, where the view is filled on demand.
//!
//! A view that is not whole decides wrongly: an address that it does not know is one outside the mesh, to be dialled in plaintext.
//! These functions name what the decision would look up and the view does not have. Each answer is one name, asked of the control
//! plane; what came of it may lead to the next, a service to its waypoint. Names that the control plane said do not exist are not
//! needed again: the decision is then made as a whole view would make it.
//!
//! Not asked for: who is at the other end of a connection that comes in. That decides nothing, its certificate does.

use std::net::IpAddr;

use ambit_wire::Authority;

use crate::address::{GatewayAddress, GatewayDestination};
use crate::route::Outbound;
use crate::service::Mode;
use crate::text::Text;
use crate::view::View;
use crate::workload::Workload;

/// The name under which whatever is at an address is asked for.
#[must_use]
pub fn at(network: &str, address: IpAddr) -> Text {
    format!("{network}/{}", address.to_canonical()).into()
}

/// What [`crate::route::outbound`] lacks for a connection; `absent` says what is known not to exist.
#[must_use]
pub fn outbound(
    view: &View,
    connection: &Outbound<'_>,
    absent: impl Fn(&Text) -> bool,
) -> Option<Text> {
    let Outbound {
        source,
        destination,
        network,
        avoid: _,
    } = *connection;
    let address = destination.ip();
    let lacking = |name: Text| (!absent(&name)).then_some(name);
    let hop = |gateway: &GatewayAddress| gateway_lacking(view, gateway).and_then(&lacking);
    if !view.knows_address(network, address)
        && let Some(name) = lacking(at(network, address))
    {
        // Also where a block holds it: what is at the address itself comes first.
        return Some(name);
    }
    if let Some(service) = view.service_at(network, address, &source.namespace) {
        let waypoint = service.waypoints().find_map(hop);
        if waypoint.is_some()
            || service.waypoints().next().is_some()
            || service.load_balancing.mode == Mode::Passthrough
        {
            return waypoint;
        }
        let elsewhere = view
            .endpoints(&service.key)
            .into_iter()
            .flat_map(|endpoints| endpoints.iter())
            .map(|endpoint| &endpoint.workload)
            .filter(|workload| workload.network != source.network);
        return elsewhere
            .filter_map(|workload| workload.network_gateway.as_ref())
            .find_map(hop);
    }
    let workload = view.workload_at(network, address)?;
    workload.waypoint.as_ref().and_then(hop)
}

/// What [`crate::admit::admit`] lacks for a stream that asks for `authority` and was connected to `connected`, for `local`.
#[must_use]
pub fn inbound(
    view: &View,
    local: &Workload,
    connected: IpAddr,
    authority: &Authority,
    absent: impl Fn(&Text) -> bool,
) -> Option<Text> {
    let lacking = |name: Text| (!absent(&name)).then_some(name);
    match authority {
        Authority::Socket(asked) => {
            let asked = asked.ip();
            let elsewhere = asked != connected && local.application_tunnel.is_none();
            if !elsewhere || view.knows_address(&local.network, asked) {
                return None;
            }
            lacking(at(&local.network, asked))
        }
        Authority::Host { host, .. } => {
            if view.service_named(host, &local.namespace).is_some() {
                return None;
            }
            // Only a service of the workload leads to it.
            let own = local.services.keys();
            own.filter(|key| key.hostname == **host && view.service(key).is_none())
                .find_map(|key| lacking(key.to_string().into()))
        }
    }
}

/// The name of a waypoint or gateway that is not known.
fn gateway_lacking(view: &View, gateway: &GatewayAddress) -> Option<Text> {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => {
            let known = view.service(key).is_some() || view.workload_with_hostname(key).is_some();
            (!known).then(|| key.to_string().into())
        }
        GatewayDestination::Address { network, address } => {
            (!view.knows_address(network, *address)).then(|| at(network, *address))
        }
    }
}

#[cfg(test)]
mod tests;

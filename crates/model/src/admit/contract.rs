//! Istio's table of what a CONNECT leads to, case by case under the names it has there.

use ambit_wire::Authority;

use super::{Arrival, Inbound, admit};
use crate::fixture::{CART, WAYPOINT, at, identity, shop_with, socket};
use crate::update::{Change, apply};
use crate::view::View;
use crate::workload::{ApplicationProtocol, ApplicationTunnel};

const SERVER_VIP: &str = "10.1.0.2";
const WAYPOINT_POD: &str = "10.0.0.9";
const NAME: &str = "cart.shop.svc.cluster.local";

/// A row: name; what the waypoint is attached to and by which address, and whether it has an application tunnel; the address connected
/// to and the authority; what is dialled.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
);

const ROWS: [Row; 12] = [
    (
        "to workload no waypoint",
        "",
        "10.0.0.2 10.0.0.2:8080",
        Some("10.0.0.2:8080"),
    ),
    (
        "svc hostname to workload no waypoint",
        "",
        "10.0.0.2 cart.shop.svc.cluster.local:80",
        Some("10.0.0.2:8080"),
    ),
    (
        "to workload with waypoint referenced by pod",
        "workload 10.0.0.9",
        "10.0.0.9 10.0.0.2:8080",
        Some("10.0.0.9:8080"),
    ),
    (
        "to workload with waypoint referenced by vip",
        "workload 10.1.0.9",
        "10.0.0.9 10.0.0.2:8080",
        Some("10.0.0.9:8080"),
    ),
    (
        "to workload with app tunnel",
        "workload 10.1.0.9 tunnel",
        "10.0.0.9 10.0.0.2:8080",
        Some("10.0.0.9:15088"),
    ),
    (
        "to service with waypoint referenced by pod",
        "service 10.0.0.9",
        "10.0.0.9 10.1.0.2:80",
        Some("10.0.0.9:80"),
    ),
    (
        "to service with waypoint referenced by vip",
        "service 10.1.0.9",
        "10.0.0.9 10.1.0.2:80",
        Some("10.0.0.9:80"),
    ),
    (
        "to service with app tunnel",
        "service 10.1.0.9 tunnel",
        "10.0.0.9 10.1.0.2:80",
        Some("10.0.0.9:15088"),
    ),
    ("to server ip mismatch", "", "10.0.0.2 10.0.0.1:8080", None),
    (
        "to waypoint without attachment",
        "",
        "10.0.0.9 10.0.0.1:8080",
        None,
    ),
    (
        "to workload via waypoint with wrong attachment",
        "service 10.0.0.9",
        "10.0.0.9 10.0.0.2:8080",
        None,
    ),
    (
        "to service via waypoint with wrong attachment",
        "workload 10.0.0.9",
        "10.0.0.9 10.1.0.2:80",
        None,
    ),
];

fn view(attached: &str) -> View {
    let waypoint = |kind: &str| {
        let rest = attached.strip_prefix(kind)?;
        rest.split_whitespace().next().map(at)
    };
    let view = shop_with(
        |cart| cart.waypoint = waypoint("workload"),
        |cart| cart.waypoint = waypoint("service"),
    );
    let mut waypoint = (**view.workload(WAYPOINT).unwrap()).clone();
    waypoint.application_tunnel = attached.ends_with("tunnel").then_some(ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: Some(15088),
    });
    apply(&view, [Change::UpsertWorkload(waypoint)])
}

#[test]
fn leads_where_istios_node_proxy_leads() {
    for (name, attached, to, expected) in ROWS {
        let (connected, asked) = to.split_once(' ').unwrap();
        let authority: Authority = asked.parse().unwrap();
        let peer = identity("shop", "web");
        let inbound = Inbound {
            local: if connected == WAYPOINT_POD {
                WAYPOINT
            } else {
                CART
            },
            connection: socket(&format!("{connected}:15008")),
            peer_address: socket("10.0.0.1:40000"),
            arrival: Arrival::Tunnel {
                authority: &authority,
                peer: &peer,
            },
        };
        match (admit(&view(attached), &inbound), expected) {
            (Ok(admitted), Some(to)) => {
                assert_eq!(admitted.upstream(), socket(to), "{name}");
                let header = admitted.header();
                assert_eq!(header.is_some(), attached.ends_with("tunnel"), "{name}");
                if let Some(header) = header {
                    // What the client addressed, and the service if that is one.
                    let service = asked.starts_with(SERVER_VIP).then_some(NAME);
                    assert_eq!(header.destination, socket(asked), "{name}");
                    assert_eq!(header.service.as_deref(), service, "{name}");
                }
            }
            (Err(refusal), None) => assert_eq!(refusal.reason.status(), 400, "{name}"),
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
}

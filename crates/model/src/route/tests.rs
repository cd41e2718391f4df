use super::{Outbound, Route, outbound};
use crate::address::GatewayAddress;
use crate::fixture::{
    CART, WAYPOINT, WEB, at, gateway, identity, ip, key, pod, random, service, shop, shop_with,
    socket,
};
use crate::reason::Reason;
use crate::service::{Mode, Port, Visibility, WeightedWaypoint};
use crate::update::{Change, apply};
use crate::view::View;
use crate::workload::{ApplicationProtocol, ApplicationTunnel, Health, Protocol};

fn route(view: &View, source: &str, destination: &str) -> Result<Route, Reason> {
    let source = view.workload(source).unwrap();
    let destination = socket(destination);
    outbound(
        view,
        &Outbound {
            source,
            destination,
            network: "",
            avoid: &[],
        },
        &mut random(3),
    )
}

/// `next hop | authority | who is expected`, or `plain to`, or the reason.
fn summary(view: &View, source: &str, destination: &str) -> String {
    match route(view, source, destination) {
        Ok(route) => shown(&route),
        Err(reason) => format!("{reason:?}"),
    }
}

fn shown(route: &Route) -> String {
    match route {
        Route::Plain { to, .. } => format!("plain {to}"),
        Route::Named(named) => {
            let address = ip("192.0.2.7");
            format!("{}: {}", named.hostname(), shown(&named.at(address)))
        }
        Route::Tunnel(tunnel) => {
            let expected: Vec<_> = tunnel
                .expected
                .iter()
                .map(|identity| identity.service_account())
                .collect();
            let via = if tunnel.via_waypoint { " waypoint" } else { "" };
            format!(
                "{} {} {}{via}",
                tunnel.next_hop,
                tunnel.authority,
                expected.join(",")
            )
        }
    }
}

#[test]
fn goes_straight_to_workloads_in_the_way_they_accept() {
    let view = shop();
    assert_eq!(
        summary(&view, WEB, "10.0.0.2:8080"),
        "10.0.0.2:15008 10.0.0.2:8080 cart"
    );
    assert_eq!(
        summary(&view, WEB, "10.1.0.2:80"),
        "10.0.0.2:15008 10.0.0.2:8080 cart"
    );
    let plain = shop_with(|cart| cart.protocol = Protocol::Tcp, |_| {});
    assert_eq!(summary(&plain, WEB, "10.0.0.2:8080"), "plain 10.0.0.2:8080");
    assert_eq!(summary(&plain, WEB, "10.1.0.2:80"), "plain 10.0.0.2:8080");
}

#[test]
fn lets_pass_what_the_mesh_does_not_know() {
    let view = shop();
    assert_eq!(summary(&view, WEB, "192.0.2.1:443"), "plain 192.0.2.1:443");
    assert_eq!(
        summary(&view, WEB, "192.0.2.1:15008"),
        "plain 192.0.2.1:15008"
    );
}

#[test]
fn refuses_calls_to_the_own_ports() {
    let view = shop();
    for port in [15001, 15006, 15008] {
        for address in ["127.0.0.1", "[::1]", "10.0.0.1"] {
            let destination = format!("{address}:{port}");
            assert_eq!(
                summary(&view, WEB, &destination),
                "SelfCall",
                "{destination}"
            );
        }
    }
    assert_eq!(
        summary(&view, WEB, "10.0.0.1:8080"),
        "10.0.0.1:15008 10.0.0.1:8080 web"
    );
}

#[test]
fn refuses_a_service_that_cannot_serve() {
    let sick = shop_with(|cart| cart.health = Health::Unhealthy, |_| {});
    assert_eq!(summary(&sick, WEB, "10.1.0.2:80"), "NoHealthyUpstream");
    // A workload that is addressed itself is its client's choice.
    assert_eq!(
        summary(&sick, WEB, "10.0.0.2:80"),
        "10.0.0.2:15008 10.0.0.2:80 cart"
    );
    let empty = shop_with(|cart| cart.services.clear(), |_| {});
    assert_eq!(summary(&empty, WEB, "10.1.0.2:80"), "NoHealthyUpstream");
    assert_eq!(summary(&shop(), WEB, "10.1.0.2:81"), "NoHealthyUpstream");
}

#[test]
fn dials_the_original_destination_of_a_passthrough_service() {
    let view = shop_with(
        |_| {},
        |service| service.load_balancing.mode = Mode::Passthrough,
    );
    let Ok(Route::Plain {
        to,
        upstream,
        service,
        ..
    }) = route(&view, WEB, "10.1.0.2:80")
    else {
        panic!("plain");
    };
    assert_eq!((to, upstream), (socket("10.1.0.2:80"), None));
    assert_eq!(service.unwrap().key, key("shop", "cart"));
}

#[test]
fn passes_the_waypoint_of_a_service() {
    for waypoint in [
        gateway(&key("shop", "waypoint")),
        at("10.0.0.9"),
        at("10.1.0.9"),
    ] {
        let view = shop_with(|_| {}, |service| service.waypoint = Some(waypoint.clone()));
        let expected = "10.0.0.9:15008 10.1.0.2:80 waypoint waypoint";
        assert_eq!(summary(&view, WEB, "10.1.0.2:80"), expected, "{waypoint:?}");
        // Any port: the waypoint knows better. And no exemption for the waypoint itself on this way.
        assert_eq!(
            summary(&view, WEB, "10.1.0.2:99"),
            expected.replace(":80", ":99")
        );
        assert_eq!(summary(&view, WAYPOINT, "10.1.0.2:80"), expected);
        // Workload-addressed traffic does not.
        assert_eq!(
            summary(&view, WEB, "10.0.0.2:8080"),
            "10.0.0.2:15008 10.0.0.2:8080 cart"
        );
        let Ok(Route::Tunnel(tunnel)) = route(&view, WEB, "10.1.0.2:80") else {
            panic!("tunnel")
        };
        assert_eq!(tunnel.service.unwrap().key, key("shop", "cart"));
        assert_eq!(tunnel.upstream.uid, WAYPOINT);
    }
}

#[test]
fn passes_the_waypoint_of_a_workload_unless_it_is_that_waypoint() {
    for waypoint in [
        gateway(&key("shop", "waypoint")),
        at("10.0.0.9"),
        at("10.1.0.9"),
    ] {
        let view = shop_with(|cart| cart.waypoint = Some(waypoint.clone()), |_| {});
        let direct = "10.0.0.2:15008 10.0.0.2:8080 cart";
        let through = "10.0.0.9:15008 10.0.0.2:8080 waypoint waypoint";
        assert_eq!(
            summary(&view, WEB, "10.0.0.2:8080"),
            through,
            "{waypoint:?}"
        );
        assert_eq!(
            summary(&view, WAYPOINT, "10.0.0.2:8080"),
            direct,
            "{waypoint:?}"
        );
        // Service-addressed traffic does not, and the source's own waypoint is never used.
        assert_eq!(summary(&view, WEB, "10.1.0.2:80"), direct);
        assert_eq!(
            summary(&view, CART, "10.0.0.1:8080"),
            "10.0.0.1:15008 10.0.0.1:8080 web"
        );
    }
}

#[test]
fn exempts_no_workload_that_only_shares_the_identity_of_the_waypoint() {
    let view = shop_with(
        |cart| cart.waypoint = Some(gateway(&key("shop", "waypoint"))),
        |_| {},
    );
    let mut twin = pod("shop", "twin", "10.0.0.8");
    twin.identity = identity("shop", "waypoint");
    let uid = twin.uid.clone();
    let view = apply(&view, [Change::UpsertWorkload(twin)]);
    let through = "10.0.0.9:15008 10.0.0.2:8080 waypoint waypoint";
    assert_eq!(summary(&view, &uid, "10.0.0.2:8080"), through);
}

#[test]
fn refuses_when_the_waypoint_cannot_be_found() {
    let missing: [GatewayAddress; 3] = [
        gateway(&key("shop", "gone")),
        at("10.0.0.77"),
        at("10.1.0.2"),
    ];
    for waypoint in missing {
        // 10.1.0.2 is a service, but no endpoint of it serves the port of a waypoint.
        let view = shop_with(|_| {}, |service| service.waypoint = Some(waypoint.clone()));
        assert_eq!(
            summary(&view, WEB, "10.1.0.2:80"),
            "WaypointUnresolved",
            "{waypoint:?}"
        );
        let view = shop_with(|cart| cart.waypoint = Some(waypoint.clone()), |_| {});
        assert_eq!(
            summary(&view, WEB, "10.0.0.2:80"),
            "WaypointUnresolved",
            "{waypoint:?}"
        );
    }
    let view = shop_with(
        |_| {},
        |service| service.waypoint = Some(gateway(&key("shop", "waypoint"))),
    );
    let view = apply(&view, [Change::RemoveAddress(WAYPOINT.into())]);
    assert_eq!(summary(&view, WEB, "10.1.0.2:80"), "WaypointUnresolved");
}

#[test]
fn takes_a_sandwiched_waypoint_on_the_port_as_it_is() {
    let view = shop_with(
        |_| {},
        |service| service.waypoint = Some(gateway(&key("shop", "waypoint"))),
    );
    let mut waypoint = (**view.workload(WAYPOINT).unwrap()).clone();
    let protocol = ApplicationProtocol::Proxy;
    waypoint.application_tunnel = Some(ApplicationTunnel {
        protocol,
        port: Some(15088),
    });
    waypoint.services.insert(key("shop", "waypoint"), vec![]);
    let mut bare = service("shop", "waypoint", "10.1.0.9");
    bare.ports = vec![Port {
        service_port: 80,
        target_port: 80,
    }];
    let view = apply(
        &view,
        [
            Change::UpsertWorkload(waypoint),
            Change::UpsertService(bare),
        ],
    );
    assert_eq!(
        summary(&view, WEB, "10.1.0.2:80"),
        "10.0.0.9:15008 10.1.0.2:80 waypoint waypoint"
    );
}

#[test]
fn draws_among_weighted_waypoints_by_weight() {
    let weighted = |destination: GatewayAddress, weight| WeightedWaypoint {
        destination,
        weight,
    };
    let view = shop_with(
        |_| {},
        |service| {
            service.waypoint = Some(at("10.0.0.77"));
            service.weighted_waypoints =
                vec![weighted(at("10.0.0.9"), 3), weighted(at("10.0.0.1"), 1)];
        },
    );
    let source = view.workload(WEB).unwrap();
    let mut random = random(5);
    let mut first = 0;
    for _ in 0..4000 {
        let connection = Outbound {
            source,
            destination: socket("10.1.0.2:80"),
            network: "",
            avoid: &[],
        };
        let Ok(Route::Tunnel(tunnel)) = outbound(&view, &connection, &mut random) else {
            panic!("tunnel");
        };
        first += usize::from(tunnel.next_hop.ip() == ip("10.0.0.9"));
    }
    assert!((2850..3150).contains(&first), "{first}");
    let zero = shop_with(
        |_| {},
        |service| {
            service.waypoint = Some(at("10.0.0.9"));
            service.weighted_waypoints = vec![weighted(at("10.0.0.1"), 0)];
        },
    );
    assert_eq!(
        summary(&zero, WEB, "10.1.0.2:80"),
        "10.0.0.9:15008 10.1.0.2:80 waypoint waypoint"
    );
}

#[test]
fn accepts_the_further_identities_of_a_service() {
    let view = shop_with(
        |_| {},
        |service| {
            service.subject_alt_names = vec![identity("shop", "alias")];
        },
    );
    assert_eq!(
        summary(&view, WEB, "10.1.0.2:80"),
        "10.0.0.2:15008 10.0.0.2:8080 cart,alias"
    );
    assert_eq!(
        summary(&view, WEB, "10.0.0.2:80"),
        "10.0.0.2:15008 10.0.0.2:80 cart"
    );
}

#[test]
fn does_not_pass_by_the_waypoint_of_a_service_at_the_address_of_a_workload() {
    let view = shop_with(|_| {}, |service| service.waypoint = Some(at("10.0.0.9")));
    let both = service("shop", "both", "10.0.0.2");
    let both = crate::service::Service {
        waypoint: Some(at("10.0.0.9")),
        ..both
    };
    let view = apply(&view, [Change::UpsertService(both)]);
    let expected = "10.0.0.9:15008 10.0.0.2:80 waypoint waypoint";
    assert_eq!(summary(&view, WEB, "10.0.0.2:80"), expected);
}

#[test]
fn does_not_see_services_hidden_from_its_namespace() {
    let hidden = shop_with(|_| {}, |service| service.visibility = Visibility::Namespace);
    let other = pod("other", "client", "10.0.9.1");
    let uid = other.uid.clone();
    let view = apply(&hidden, [Change::UpsertWorkload(other)]);
    assert_eq!(summary(&view, &uid, "10.1.0.2:80"), "plain 10.1.0.2:80");
    assert_eq!(
        summary(&view, WEB, "10.1.0.2:80"),
        "10.0.0.2:15008 10.0.0.2:8080 cart"
    );
}

#[test]
fn refuses_other_networks_and_workloads_without_address() {
    let mut far = pod("shop", "far", "10.0.5.5");
    far.network = "far".into();
    let view = shop_with(|cart| cart.network = "far".into(), |_| {});
    let view = apply(&view, [Change::UpsertWorkload(far)]);
    assert_eq!(summary(&view, WEB, "10.1.0.2:80"), "GatewayUnresolved");
    let nameless = shop_with(|cart| cart.addresses.clear(), |_| {});
    assert_eq!(summary(&nameless, WEB, "10.1.0.2:80"), "HostnameUnresolved");
}

#[test]
fn a_workload_with_a_name_only_is_dialled_where_the_name_leads() {
    let named = |protocol| {
        shop_with(
            |cart| {
                cart.addresses.clear();
                cart.hostname = "cart.example".into();
                cart.protocol = protocol;
            },
            |_| {},
        )
    };
    assert_eq!(
        summary(&named(Protocol::Tcp), WEB, "10.1.0.2:80"),
        "cart.example: plain 192.0.2.7:8080"
    );
    assert_eq!(
        summary(&named(Protocol::Hbone), WEB, "10.1.0.2:80"),
        "cart.example: 192.0.2.7:15008 192.0.2.7:8080 cart"
    );
    // An address that it has is not asked for by name.
    let both = shop_with(|cart| cart.hostname = "cart.example".into(), |_| {});
    assert_eq!(
        summary(&both, WEB, "10.1.0.2:80"),
        "10.0.0.2:15008 10.0.0.2:8080 cart"
    );
}

#[test]
fn a_waypoint_with_a_name_only_is_asked_for_what_the_client_wanted() {
    let guarded = shop_with(
        |_| {},
        |service| service.waypoint = Some(gateway(&key("shop", "waypoint"))),
    );
    let mut waypoint = guarded.workload(WAYPOINT).unwrap().as_ref().clone();
    waypoint.addresses.clear();
    waypoint.hostname = "waypoint.example".into();
    let view = apply(&guarded, [Change::UpsertWorkload(waypoint)]);
    assert_eq!(
        summary(&view, WEB, "10.1.0.2:80"),
        "waypoint.example: 192.0.2.7:15008 10.1.0.2:80 waypoint waypoint"
    );
}

#[test]
fn chooses_another_when_an_attempt_has_failed_and_says_when_there_is_none() {
    let second = crate::fixture::serves(pod("shop", "cart2", "10.0.0.3"), &key("shop", "cart"));
    let second_uid = second.uid.clone();
    let view = apply(&shop(), [Change::UpsertWorkload(second)]);
    let lead = |view: &View, avoid: &[crate::Text], destination: &str| {
        let connection = Outbound {
            source: view.workload(WEB).unwrap(),
            destination: socket(destination),
            network: "",
            avoid,
        };
        outbound(view, &connection, &mut random(3))
    };
    let service = "10.1.0.2:80";
    let first = lead(&view, &[], service).unwrap();
    let failed = first.instead().unwrap().clone();
    assert!(failed == *CART || failed == second_uid);
    for _ in 0..20 {
        let next = lead(&view, std::slice::from_ref(&failed), service).unwrap();
        assert_ne!(next.instead().unwrap(), &failed);
    }
    let both = [CART.into(), second_uid];
    assert_eq!(lead(&view, &both, service), Err(Reason::NoHealthyUpstream));
    assert_eq!(
        lead(&shop(), &[], service).unwrap().instead(),
        None,
        "the only one"
    );
    assert_eq!(
        lead(&view, &[], "10.0.0.2:80").unwrap().instead(),
        None,
        "named by its client"
    );
}

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any};
use proptest::{collection, prop_assert, prop_assert_eq, proptest, sample};

use super::{Purpose, Wanted, dial_address, pick};
use crate::fixture::{but, ip, key, pod, random, serves, service, view};
use crate::reason::Reason;
use crate::service::{HealthPolicy, IpFamilies, Mode, Port, Scope, Service};
use crate::update::Change;
use crate::view::View;
use crate::workload::{ApplicationProtocol, ApplicationTunnel, Health, Workload};

fn mesh(endpoints: impl IntoIterator<Item = Workload>) -> View {
    let cart = key("shop", "cart");
    view(
        endpoints
            .into_iter()
            .map(|w| Change::UpsertWorkload(serves(w, &cart))),
    )
}

fn endpoint(number: usize) -> Workload {
    pod(
        "shop",
        &format!("cart-{number}"),
        &format!("10.0.1.{number}"),
    )
}

/// How often each endpoint is chosen for a client.
fn picks(
    view: &View,
    service: &Service,
    client: &Workload,
    times: usize,
) -> BTreeMap<String, usize> {
    let endpoints = view.endpoints(&service.key).cloned().unwrap_or_default();
    let mut random = random(7);
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let wanted = Wanted {
            client,
            address: ip("10.1.0.1"),
            port: 80,
            purpose: Purpose::Serve,
            avoid: &[],
        };
        let picked = pick(service, &endpoints, &wanted, &mut random).unwrap();
        assert_eq!(picked.port, 8080);
        *counts.entry(picked.workload.name().to_owned()).or_default() += 1;
    }
    counts
}

fn one(
    view: &View,
    service: &Service,
    port: u16,
    purpose: Purpose,
) -> Result<(String, u16), Reason> {
    let client = pod("shop", "web", "10.0.0.1");
    let endpoints = view.endpoints(&service.key).cloned().unwrap_or_default();
    let wanted = Wanted {
        client: &client,
        address: ip("10.1.0.1"),
        port,
        purpose,
        avoid: &[],
    };
    let picked = pick(service, &endpoints, &wanted, &mut random(1))?;
    Ok((picked.workload.name().to_owned(), picked.port))
}

fn close(count: usize, expected: f64, times: usize) -> bool {
    // Five standard deviations: wrong once in about two million, and the seed is fixed.
    let share = expected / times as f64;
    (count as f64 - expected).abs() < 5.0 * (times as f64 * share * (1.0 - share)).sqrt() + 1.0
}

#[test]
fn spreads_by_capacity_whatever_way_the_choice_is_made() {
    let capacities = [1, 3, 0, 4];
    let workloads = capacities
        .iter()
        .enumerate()
        .map(|(number, &capacity)| but(endpoint(number), |one| one.capacity = capacity));
    let view = mesh(workloads);
    let times = 40_000;
    let mut service = service("shop", "cart", "10.1.0.1");
    // By drawing, and by going through all.
    for mode in [Mode::Standard, Mode::Failover] {
        service.load_balancing.mode = mode;
        let counts = picks(&view, &service, &pod("shop", "web", "10.0.0.1"), times);
        for (number, &capacity) in capacities.iter().enumerate() {
            let count = counts
                .get(&format!("cart-{number}"))
                .copied()
                .unwrap_or_default();
            let expected = times as f64 * f64::from(capacity) / 8.0;
            assert!(close(count, expected, times), "{mode:?}: {counts:?}");
        }
    }
}

#[test]
fn refuses_when_no_endpoint_may_be_used() {
    let service = service("shop", "cart", "10.1.0.1");
    let sick = Workload {
        health: Health::Unhealthy,
        ..endpoint(1)
    };
    let weightless = but(endpoint(1), |one| one.capacity = 0);
    let remote = but(endpoint(1), |one| one.network = "far".into());
    let nameless = but(endpoint(1), |one| one.addresses.clear());
    let cases = [
        (vec![], Reason::NoHealthyUpstream),
        (vec![sick.clone()], Reason::NoHealthyUpstream),
        (vec![weightless], Reason::NoHealthyUpstream),
        (vec![remote.clone()], Reason::GatewayUnresolved),
        (vec![nameless], Reason::HostnameUnresolved),
        (
            vec![
                sick,
                Workload {
                    uid: "far".into(),
                    ..remote
                },
            ],
            Reason::NoHealthyUpstream,
        ),
    ];
    for (workloads, reason) in cases {
        assert_eq!(
            one(&mesh(workloads), &service, 80, Purpose::Serve),
            Err(reason)
        );
    }
}

#[test]
fn takes_unhealthy_endpoints_as_soon_as_the_service_says_so() {
    let view = mesh([Workload {
        health: Health::Unhealthy,
        ..endpoint(1)
    }]);
    let mut service = service("shop", "cart", "10.1.0.1");
    assert!(one(&view, &service, 80, Purpose::Serve).is_err());
    service.load_balancing.health_policy = HealthPolicy::AllowAll;
    assert_eq!(
        one(&view, &service, 80, Purpose::Serve),
        Ok(("cart-1".into(), 8080))
    );
}

#[test]
fn resolves_the_port_at_the_endpoint_then_at_the_service() {
    let tunnel = ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: Some(15088),
    };
    let ports = |pairs: &[(u16, u16)]| -> Vec<Port> {
        let port = |&(service_port, target_port)| Port {
            service_port,
            target_port,
        };
        pairs.iter().map(port).collect()
    };
    // Ports of the endpoint; of the service; has it an application tunnel; port to serve; port as a waypoint.
    type Case<'a> = (
        &'a [(u16, u16)],
        &'a [(u16, u16)],
        bool,
        Option<u16>,
        Option<u16>,
    );
    let cases: [Case<'_>; 8] = [
        (&[(80, 1)], &[(80, 2)], false, Some(1), Some(1)),
        (&[], &[(80, 2)], false, Some(2), Some(2)),
        (&[(80, 1)], &[(80, 0)], false, Some(1), Some(1)),
        (&[], &[(80, 0)], false, None, None),
        (&[(80, 0)], &[(80, 2)], false, Some(2), Some(2)),
        (&[(80, 1)], &[], false, None, Some(1)),
        (&[], &[], true, None, Some(80)),
        (&[], &[], false, None, None),
    ];
    for (own, declared, tunneled, serve, waypoint) in cases {
        let mut workload = endpoint(1);
        workload.services.insert(key("shop", "cart"), ports(own));
        workload.application_tunnel = tunneled.then_some(tunnel);
        let view = view([Change::UpsertWorkload(workload)]);
        let service = Service {
            ports: ports(declared),
            ..service("shop", "cart", "10.1.0.1")
        };
        let port = |purpose| one(&view, &service, 80, purpose).ok().map(|(_, port)| port);
        assert_eq!(port(Purpose::Serve), serve, "{own:?} {declared:?}");
        assert_eq!(port(Purpose::Waypoint), waypoint, "{own:?} {declared:?}");
    }
}

fn placed(number: usize, region: &str, zone: &str, node: &str) -> Workload {
    let mut workload = endpoint(number);
    workload.locality.region = region.into();
    workload.locality.zone = zone.into();
    workload.node = node.into();
    workload
}

#[test]
fn fails_over_step_by_step_in_the_order_of_the_scopes() {
    let mut service = service("shop", "cart", "10.1.0.1");
    service.load_balancing.mode = Mode::Failover;
    service.load_balancing.scopes = vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Node];
    let client = placed(0, "r1", "z1", "n1");
    let mut left = vec![
        placed(1, "r1", "z1", "n1"),
        placed(2, "r1", "z1", "n2"),
        placed(3, "r1", "z2", "n3"),
        // The zone has the same name but the region differs: the walk stopped before.
        placed(4, "r2", "z1", "n1"),
    ];
    for expected in ["cart-1", "cart-2", "cart-3", "cart-4"] {
        let counts = picks(&mesh(left.clone()), &service, &client, 50);
        assert_eq!(counts.keys().collect::<Vec<_>>(), [expected]);
        left.remove(0);
    }
}

#[test]
fn excludes_whatever_does_not_share_every_scope_when_strict() {
    let mut service = service("shop", "cart", "10.1.0.1");
    service.load_balancing.mode = Mode::Strict;
    service.load_balancing.scopes = vec![Scope::Node];
    let view = mesh([placed(1, "", "", "n1"), placed(2, "", "", "n2")]);
    let counts = picks(&view, &service, &placed(0, "", "", "n2"), 50);
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["cart-2"]);
    assert_eq!(
        one(
            &mesh([placed(1, "", "", "n9")]),
            &service,
            80,
            Purpose::Serve
        ),
        Err(Reason::NoHealthyUpstream)
    );
}

#[test]
fn dials_the_address_and_family_the_client_asked_for_if_it_can() {
    let mut both = endpoint(1);
    both.addresses.push(ip("2001:db8::1"));
    let v4 = Some(ip("10.0.1.1"));
    let v6 = Some(ip("2001:db8::1"));
    let cases = [
        (IpFamilies::Automatic, "10.9.9.9", v4),
        (IpFamilies::Automatic, "2001:db8::9", v6),
        (IpFamilies::Dual, "2001:db8::9", v6),
        (IpFamilies::V4, "2001:db8::9", v4),
        (IpFamilies::V6, "10.9.9.9", v6),
        (IpFamilies::V4, "2001:db8::1", v6),
    ];
    for (offered, dialled, expected) in cases {
        assert_eq!(
            dial_address(&both, offered, ip(dialled)),
            expected,
            "{offered:?} {dialled}"
        );
    }
    assert_eq!(
        dial_address(&endpoint(1), IpFamilies::V6, ip("10.9.9.9")),
        None
    );
}

fn any_endpoint() -> impl Strategy<Value = Workload> {
    let place = sample::select(vec!["", "a", "b"]);
    let flags = any::<(bool, bool)>();
    (
        1..200_usize,
        0..4_u32,
        place.clone(),
        place.clone(),
        place,
        flags,
    )
        .prop_map(
            |(number, capacity, region, zone, node, (healthy, remote))| {
                let mut workload = placed(number, region, zone, node);
                workload.capacity = capacity;
                workload.health = if healthy {
                    Health::Healthy
                } else {
                    Health::Unhealthy
                };
                workload.network = if remote { "far".into() } else { "".into() };
                workload
            },
        )
}

fn common(scopes: &[Scope], client: &Workload, endpoint: &Workload) -> usize {
    let same = |scope: &Scope| match scope {
        Scope::Region => client.locality.region == endpoint.locality.region,
        Scope::Zone => client.locality.zone == endpoint.locality.zone,
        _ => client.node == endpoint.node,
    };
    scopes
        .iter()
        .position(|scope| !same(scope))
        .unwrap_or(scopes.len())
}

proptest! {
    #[test]
    fn chooses_only_what_may_be_used_and_of_that_the_nearest(
        endpoints in collection::vec(any_endpoint(), 0..12),
        mode in sample::select(vec![Mode::Standard, Mode::Strict, Mode::Failover]),
        scopes in collection::vec(
            sample::select(vec![Scope::Region, Scope::Zone, Scope::Node]), 0..4),
        seed in any::<u64>(),
    ) {
        let view = mesh(endpoints);
        let mut service = service("shop", "cart", "10.1.0.1");
        service.load_balancing.mode = mode;
        service.load_balancing.scopes = scopes.clone();
        let client = placed(0, "a", "b", "a");
        let usable: Vec<&Workload> = view
            .workloads()
            .map(|workload| &**workload)
            .filter(|w| w.health == Health::Healthy && w.capacity > 0 && w.network.is_empty())
            .filter(|w| mode != Mode::Strict || common(&scopes, &client, w) == scopes.len())
            .collect();
        let nearest = usable.iter().map(|w| common(&scopes, &client, w)).max();
        let endpoints = view.endpoints(&service.key).cloned().unwrap_or_default();
        let wanted =
            Wanted { client: &client, address: ip("10.1.0.1"), port: 80, purpose: Purpose::Serve, avoid: &[] };
        match pick(&service, &endpoints, &wanted, &mut random(seed)) {
            Ok(picked) => {
                prop_assert!(usable.iter().any(|w| w.uid == picked.workload.uid));
                if mode == Mode::Failover {
                    prop_assert_eq!(Some(common(&scopes, &client, picked.workload)), nearest);
                }
            }
            Err(_) => prop_assert!(usable.is_empty()),
        }
    }
}

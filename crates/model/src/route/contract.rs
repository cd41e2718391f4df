//! Istio's cases of where an outbound connection leads, one by one under the names they have there (`build_request_…`).

use super::{Outbound, Route, outbound};
use crate::address::{GatewayAddress, GatewayDestination, Vip};
use crate::fixture::{identity, ip, key, pod, random, socket, view};
use crate::service::{IpFamilies, Mode, Port, Scope, Service};
use crate::text::Text;
use crate::update::Change;
use crate::workload::{Health, NetworkMode, Protocol, Workload};

const CLIENT: &str = "Kubernetes//Pod/shop/client";

/// Where it leads: `TCP to`, `HBONE next hop | authority`, `DOUBLE next hop | authority`, or the reason.
fn lead(mesh: Vec<Change>, destination: &str) -> String {
    let client = pod("shop", "client", "127.0.0.1");
    let mesh = view(mesh.into_iter().chain([Change::UpsertWorkload(client)]));
    let connection = Outbound {
        source: mesh.workload(CLIENT).unwrap(),
        destination: socket(destination),
        network: "",
        avoid: &[],
    };
    match outbound(&mesh, &connection, &mut random(11)) {
        Ok(Route::Plain { to, upstream, .. }) => match upstream {
            Some(upstream) => format!("TCP {to} {}", upstream.name()),
            None => format!("TCP {to}"),
        },
        Ok(Route::Tunnel(way)) => {
            let kind = if way.beyond.is_some() {
                "DOUBLE"
            } else {
                "HBONE"
            };
            format!("{kind} {} | {}", way.next_hop, way.authority)
        }
        Ok(Route::Named(named)) => format!("NAMED {}", named.hostname()),
        Err(reason) => format!("{reason:?}"),
    }
}

fn port(service_port: u16, target_port: u16) -> Port {
    Port {
        service_port,
        target_port,
    }
}

/// `example` in the shop at 127.0.0.3 and ::3, port 80 to 8080.
fn example(change: impl FnOnce(&mut Service)) -> Change {
    let vip = |text| Vip::single(Text::empty(), ip(text));
    let mut service = Service {
        vips: vec![vip("127.0.0.3"), vip("::3")],
        ports: vec![port(80, 8080)],
        subject_alt_names: vec![identity("shop", "example")],
        ..Service::new(key("shop", "example"))
    };
    change(&mut service);
    Change::UpsertService(service)
}

fn named(service: &str, vip: &str, ports: Vec<Port>) -> Change {
    Change::UpsertService(Service {
        vips: vec![Vip::single(Text::empty(), ip(vip))],
        ports,
        subject_alt_names: vec![identity("shop", service)],
        ..Service::new(key("shop", service))
    })
}

/// A workload of the shop, not healthy or tunnelled unless changed.
fn workload(name: &str, address: &str, change: impl FnOnce(&mut Workload)) -> Change {
    let mut workload = pod("shop", name, address);
    workload.protocol = Protocol::Tcp;
    change(&mut workload);
    Change::UpsertWorkload(workload)
}

fn serving(workload: &mut Workload, service: &str, ports: Vec<Port>) {
    workload.services.insert(key("shop", service), ports);
}

fn at(network: &str, address: &str, hbone_port: u16) -> Option<GatewayAddress> {
    Some(GatewayAddress {
        destination: GatewayDestination::Address {
            network: network.into(),
            address: ip(address),
        },
        hbone_port,
    })
}

fn by_name(service: &str, hbone_port: u16) -> Option<GatewayAddress> {
    Some(GatewayAddress {
        destination: GatewayDestination::Hostname(key("shop", service)),
        hbone_port,
    })
}

/// A workload of the network `remote` behind `gateway`, without an address.
fn remote(name: &str, service: &str, ports: Vec<Port>, gateway: Option<GatewayAddress>) -> Change {
    workload(name, "127.0.0.66", |remote| {
        remote.addresses.clear();
        remote.network = "remote".into();
        remote.network_gateway = gateway;
        serving(remote, service, ports);
    })
}

/// The gateway of the network `remote` at 10.22.1.1.
fn east_west() -> Change {
    workload("gateway", "10.22.1.1", |gateway| {
        gateway.network = "remote".into()
    })
}

#[test]
fn unknown_dest() {
    assert_eq!(lead(vec![], "1.2.3.4:80"), "TCP 1.2.3.4:80");
}

#[test]
fn wrong_network() {
    let without_gateway = workload("remote", "10.0.0.2", |remote| {
        remote.network = "remote".into();
        serving(remote, "example", vec![port(80, 8080)]);
    });
    let mesh = vec![example(|_| {}), without_gateway];
    assert_eq!(lead(mesh, "127.0.0.3:80"), "GatewayUnresolved");
}

#[test]
fn double_hbone_by_workload_by_gateway_service_and_to_a_waypoint() {
    let address = || at("remote", "10.22.1.1", 15009);
    let mesh = vec![
        example(|_| {}),
        remote("far", "example", vec![port(80, 8080)], address()),
        east_west(),
    ];
    let through = "DOUBLE 10.22.1.1:15009 | example.shop.svc.cluster.local:80";
    assert_eq!(lead(mesh, "127.0.0.3:80"), through);

    let endpoint = workload("gateway", "127.0.0.5", |gateway| {
        gateway.network = "remote".into();
        serving(gateway, "gateway", vec![port(15009, 15008)]);
    });
    let mesh = vec![
        example(|_| {}),
        remote(
            "far",
            "example",
            vec![port(80, 8080)],
            by_name("gateway", 15009),
        ),
        named("gateway", "127.0.0.4", vec![port(15009, 15009)]),
        endpoint,
    ];
    let through = "DOUBLE 127.0.0.5:15008 | example.shop.svc.cluster.local:80";
    assert_eq!(lead(mesh, "127.0.0.3:80"), through);

    let mesh = vec![
        example(|service| service.waypoint = by_name("waypoint", 15008)),
        named("waypoint", "127.0.0.4", vec![port(15008, 15008)]),
        remote(
            "far-waypoint",
            "waypoint",
            vec![port(15008, 15008)],
            address(),
        ),
        east_west(),
    ];
    let through = "DOUBLE 10.22.1.1:15009 | example.shop.svc.cluster.local:80";
    assert_eq!(lead(mesh, "127.0.0.3:80"), through);
}

#[test]
fn double_hbone_needs_a_gateway_that_is_known_and_a_name_to_expect() {
    let far = |gateway| remote("far", "example", vec![port(80, 8080)], gateway);
    let address = || at("remote", "10.22.1.1", 15009);
    let unknown = vec![example(|_| {}), far(address())];
    assert_eq!(lead(unknown, "127.0.0.3:80"), "GatewayUnresolved");
    let nameless = |service: &mut Service| service.subject_alt_names.clear();
    let anybody = vec![example(nameless), far(address()), east_west()];
    assert_eq!(lead(anybody, "127.0.0.3:80"), "NobodyExpected");
    // What is addressed by itself is of this network, and its waypoint has to be too.
    let waypoint = workload("cart", "127.0.0.2", |cart| {
        cart.waypoint = by_name("waypoint", 15008)
    });
    let mesh = vec![
        waypoint,
        named("waypoint", "127.0.0.4", vec![port(15008, 15008)]),
        remote(
            "far-waypoint",
            "waypoint",
            vec![port(15008, 15008)],
            address(),
        ),
        east_west(),
    ];
    assert_eq!(lead(mesh, "127.0.0.2:80"), "GatewayUnresolved");
}

#[test]
fn failover_to_remote() {
    let mesh = |health| {
        vec![
            example(|service| {
                service.load_balancing.mode = Mode::Failover;
                service.load_balancing.scopes = vec![Scope::Network];
            }),
            workload("near", "127.0.0.2", |near| {
                near.protocol = Protocol::Hbone;
                near.health = health;
                serving(near, "example", vec![port(80, 8080)]);
            }),
            remote(
                "far",
                "example",
                vec![port(80, 8080)],
                at("remote", "10.22.1.1", 15009),
            ),
            east_west(),
        ]
    };
    let near = "HBONE 127.0.0.2:15008 | 127.0.0.2:8080";
    assert_eq!(lead(mesh(Health::Healthy), "127.0.0.3:80"), near);
    let far = "DOUBLE 10.22.1.1:15009 | example.shop.svc.cluster.local:80";
    assert_eq!(lead(mesh(Health::Unhealthy), "127.0.0.3:80"), far);
}

#[test]
fn known_dest_remote_and_local_node_tcp_and_hbone() {
    for node in ["node1", "remote-node"] {
        let on = |protocol| {
            vec![workload("cart", "127.0.0.2", |cart| {
                cart.node = node.into();
                cart.protocol = protocol;
            })]
        };
        let plain = lead(on(Protocol::Tcp), "127.0.0.2:80");
        assert_eq!(plain, "TCP 127.0.0.2:80 cart", "{node}");
        let tunnel = lead(on(Protocol::Hbone), "127.0.0.2:80");
        assert_eq!(tunnel, "HBONE 127.0.0.2:15008 | 127.0.0.2:80", "{node}");
    }
}

#[test]
fn source_waypoint() {
    // The client's own waypoint plays no part: here it is of a second workload, and the client is the destination.
    let mut client = pod("shop", "client", "127.0.0.1");
    client.waypoint = at("", "127.0.0.10", 15008);
    let mesh = vec![
        workload("cart", "127.0.0.2", |_| {}),
        Change::UpsertWorkload(client),
    ];
    assert_eq!(lead(mesh, "127.0.0.2:80"), "TCP 127.0.0.2:80 cart");
}

#[test]
fn destination_waypoint_and_mismatch_ip() {
    let waypoint = || workload("waypoint", "127.0.0.10", |_| {});
    let cart = workload("cart", "127.0.0.2", |cart| {
        cart.addresses.push(ip("ff06::c3"));
        cart.waypoint = at("", "127.0.0.10", 15008);
    });
    let mesh = vec![cart, waypoint()];
    assert_eq!(
        lead(mesh.clone(), "127.0.0.2:80"),
        "HBONE 127.0.0.10:15008 | 127.0.0.2:80"
    );
    // A waypoint with an address of the other family only.
    assert_eq!(
        lead(mesh, "[ff06::c3]:80"),
        "HBONE 127.0.0.10:15008 | [ff06::c3]:80"
    );
}

#[test]
fn destination_svc_waypoint() {
    let mesh = vec![
        example(|service| service.waypoint = at("", "127.0.0.10", 15008)),
        workload("waypoint", "127.0.0.10", |_| {}),
    ];
    assert_eq!(
        lead(mesh, "127.0.0.3:80"),
        "HBONE 127.0.0.10:15008 | 127.0.0.3:80"
    );
}

#[test]
fn empty_service() {
    assert_eq!(
        lead(vec![example(|_| {})], "127.0.0.3:80"),
        "NoHealthyUpstream"
    );
}

#[test]
fn target_port() {
    let mesh = vec![
        example(|service| service.ports = vec![port(80, 0), port(8080, 0)]),
        workload("matching", "127.0.0.2", |w| {
            serving(w, "example", vec![port(80, 1234)])
        }),
        workload("other", "127.0.0.4", |w| {
            serving(w, "example", vec![port(8080, 9999)])
        }),
    ];
    assert_eq!(lead(mesh, "127.0.0.3:80"), "TCP 127.0.0.2:1234 matching");
}

#[test]
fn host_network() {
    let on_host = |name, serves: bool| {
        workload(name, "127.0.0.2", |pod| {
            pod.network_mode = NetworkMode::HostNetwork;
            if serves {
                serving(pod, "example", vec![port(80, 80)]);
            }
        })
    };
    let mesh = || {
        vec![
            example(|_| {}),
            on_host("pod1", true),
            on_host("pod2", false),
        ]
    };
    assert_eq!(lead(mesh(), "127.0.0.3:80"), "TCP 127.0.0.2:80 pod1");
    assert_eq!(lead(mesh(), "127.0.0.2:80"), "TCP 127.0.0.2:80");
}

#[test]
fn multiple_address_workload() {
    let mesh = || {
        vec![workload("dual", "127.0.0.2", |dual| {
            dual.addresses.push(ip("ff06::c3"))
        })]
    };
    assert_eq!(lead(mesh(), "127.0.0.2:80"), "TCP 127.0.0.2:80 dual");
    assert_eq!(lead(mesh(), "[ff06::c3]:80"), "TCP [ff06::c3]:80 dual");
}

#[test]
fn service_ip_families() {
    let (v4, v6) = (
        "HBONE 127.0.0.2:15008 | 127.0.0.2:8080",
        "HBONE [ff06::c3]:15008 | [ff06::c3]:8080",
    );
    let cases = [
        (IpFamilies::V6, "127.0.0.3:80", v6),
        (IpFamilies::V4, "127.0.0.3:80", v4),
        (IpFamilies::V4, "[::3]:80", v4),
        (IpFamilies::Dual, "127.0.0.3:80", v4),
        (IpFamilies::Dual, "[::3]:80", v6),
        (IpFamilies::Automatic, "[::3]:80", v6),
    ];
    for (families, destination, expected) in cases {
        let dual = workload("dual", "127.0.0.2", |dual| {
            dual.protocol = Protocol::Hbone;
            dual.addresses.push(ip("ff06::c3"));
            serving(dual, "example", vec![]);
        });
        let mesh = vec![example(|service| service.ip_families = families), dual];
        assert_eq!(
            lead(mesh, destination),
            expected,
            "{families:?} {destination}"
        );
    }
    let single = workload("single", "127.0.0.2", |single| {
        serving(single, "example", vec![])
    });
    let mesh = vec![
        example(|service| service.ip_families = IpFamilies::V6),
        single,
    ];
    assert_eq!(lead(mesh, "127.0.0.3:80"), "NoHealthyUpstream");
}

#[test]
fn passthrough_svc_without_and_with_waypoint() {
    let passing = |waypoint| {
        example(move |service| {
            service.load_balancing.mode = Mode::Passthrough;
            service.waypoint = waypoint;
        })
    };
    let waypoint = || workload("waypoint", "127.0.0.10", |_| {});
    assert_eq!(
        lead(vec![passing(None), waypoint()], "127.0.0.3:80"),
        "TCP 127.0.0.3:80"
    );
    let mesh = vec![passing(at("", "127.0.0.10", 15008)), waypoint()];
    assert_eq!(
        lead(mesh, "127.0.0.3:80"),
        "HBONE 127.0.0.10:15008 | 127.0.0.3:80"
    );
}

#[test]
fn a_block_of_addresses_leads_to_the_endpoints_it_has_now() {
    let block = |text: &str| Vip {
        network: Text::empty(),
        block: text.parse().unwrap(),
    };
    let egress =
        || example(|service| service.vips = vec![block("198.51.100.0/24"), block("2001:db8::/32")]);
    let endpoint = |address| {
        workload("exit", address, |exit| {
            serving(exit, "example", vec![port(80, 8080)])
        })
    };
    // Whether the workload or the service came first, and after it moved.
    for mesh in [
        vec![egress(), endpoint("10.0.0.9"), endpoint("10.0.0.2")],
        vec![endpoint("10.0.0.9"), egress(), endpoint("10.0.0.2")],
        vec![
            endpoint("10.0.0.9"),
            endpoint("10.0.0.2"),
            egress(),
            egress(),
        ],
    ] {
        assert_eq!(
            lead(mesh.clone(), "198.51.100.7:80"),
            "TCP 10.0.0.2:8080 exit"
        );
        assert_eq!(
            lead(mesh.clone(), "[2001:db8::7]:80"),
            "TCP 10.0.0.2:8080 exit"
        );
        assert_eq!(lead(mesh, "198.51.101.7:80"), "TCP 198.51.101.7:80");
    }
}

#[test]
fn a_health_policy_that_changes_counts_for_endpoints_that_came_before() {
    let serving_sick = workload("sick", "127.0.0.2", |sick| {
        sick.health = Health::Unhealthy;
        serving(sick, "example", vec![port(80, 8080)]);
    });
    let all = |service: &mut Service| {
        service.load_balancing.health_policy = crate::service::HealthPolicy::AllowAll;
    };
    let sent = vec![serving_sick, example(|_| {})];
    assert_eq!(lead(sent.clone(), "127.0.0.3:80"), "NoHealthyUpstream");
    let flipped: Vec<_> = sent.into_iter().chain([example(all)]).collect();
    let to_sick = "TCP 127.0.0.2:8080 sick";
    assert_eq!(lead(flipped.clone(), "127.0.0.3:80"), to_sick);
    let back = flipped.into_iter().chain([example(|_| {})]).collect();
    assert_eq!(lead(back, "127.0.0.3:80"), "NoHealthyUpstream");
}

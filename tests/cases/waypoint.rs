//! The waypoint: routing, rules, failures, protocols.

mod envoy;
mod failure;
mod manifests;
mod observed;
mod protocols;
mod rules;
mod table;

use std::collections::BTreeMap;

use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::{Shared, World, started};
use bytes::Bytes;
use http::{Method, Version};

/// The waypoint's program and pod.
const WAYPOINT: &str = "waypoint-mesh-waypoint";

/// A shop of two versions behind a waypoint; `mesh/client` and `mesh/other` call it.
pub fn plan(name: &str) -> Plan {
    let behind = ("istio.io/use-waypoint", "waypoint");
    let http: &[(&str, u16, u16)] = &[("http", 80, 8080)];
    let mut plan = Plan::new(name)
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("outside/plain", 1)
        .pod("mesh/client", 1)
        .pod("mesh/other", 1)
        .pod("mesh/v1", 2)
        .pod("mesh/v2", 1)
        .service("mesh/v1", "v1", http)
        .service("mesh/v2", "v2", http)
        .service("mesh/empty", "nobody", http)
        .service("mesh/shut", "v1", &[("http", 80, 8099)]);
    // Services whose traffic goes through the waypoint; all are served by v1 unless a route says
    // otherwise.
    for service in ["mesh/shop", "mesh/narrow", "mesh/ruled"] {
        plan = plan
            .service(service, "v1", http)
            .labelled(behind.0, behind.1);
    }
    plan.service("mesh/h2", "v1", &[("http2", 80, 8080), ("grpc", 81, 8080)])
        .labelled(behind.0, behind.1)
        .service("mesh/bytes", "v1", &[("tcp", 9000, 9000)])
        .labelled(behind.0, behind.1)
        .waypoint("mesh/waypoint", 2, "service")
        .manifest("routes", manifests::ROUTES)
}

static WORLD: Shared = Shared::new(|| started(plan("way")));

/// The shop's pods serve for as long as the answer lives.
fn serve(world: &World) -> [ambit_tests::apps::App; 2] {
    let apps = ["v1", "v2"].map(|name| world.pod(&format!("mesh/{name}")).serve_http(8080, name));
    world.eventually("the routes are in force", || {
        let answer = world.pod("mesh/client").get("http://shop.mesh/exact");
        answer.is_ok_and(|answer| answer.status == 200 && answer.json()["name"] == "v2")
    });
    apps
}

#[test]
fn each_request_goes_where_its_route_says_and_failures_are_answered_as_envoy_does() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let mut wrong = Vec::new();
    for case in table::CASES {
        if let Err(found) = case.check(world.pod("mesh/client")) {
            wrong.push(format!("{}: {found}", case.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn weights_are_kept_within_three_points() {
    const REQUESTS: u32 = 2000;
    let world = WORLD.alone();
    let _apps = serve(&world);
    let mut connection = world
        .pod("mesh/client")
        .http("shop.mesh:80", Version::HTTP_11)
        .unwrap();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..REQUESTS {
        let answer = connection
            .send(Method::GET, "/weights", &[], Bytes::new())
            .unwrap();
        *counts.entry(answer.json()["name"].to_string()).or_default() += 1;
    }
    let share = f64::from(counts["\"v2\""]) / f64::from(REQUESTS) * 100.0;
    assert!(
        (share - 10.0).abs() <= 3.0,
        "{share} of a hundred went to v2: {counts:?}"
    );
}

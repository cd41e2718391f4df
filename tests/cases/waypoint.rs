//! The waypoint: routing, rules, failures, protocols.

mod case;
mod differences;
mod envoy;
mod failure;
mod framing;
mod manifests;
mod observed;
mod protocols;
mod requests;
mod rules;
mod streams;

use ambit_tests::apps::App;
use ambit_tests::apps::heard::Heard;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::{Shared, World, started};

/// The waypoint's program and pod.
const WAYPOINT: &str = "waypoint-mesh-waypoint";

/// Where v1 writes down what it is sent.
const HEARD: u16 = 8081;

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
        // Beside the mesh: reached plain, so that its refusals are its own.
        .pod_with("mesh/bare", 2, |pod| {
            pod.label("istio.io/dataplane-mode", "none")
        })
        .service("mesh/v1", "v1", http)
        .service("mesh/v2", "v2", http)
        .service("mesh/empty", "nobody", http)
        .service("mesh/shut", "v1", &[("http", 80, 8099)])
        .service("mesh/breaks", "v1", &[("http", 80, 8098)])
        .service("mesh/refused", "bare", http);
    // Services whose traffic goes through the waypoint; all are served by v1 unless a route says
    // otherwise.
    for (service, port) in [
        ("mesh/shop", 8080),
        ("mesh/narrow", 8080),
        ("mesh/order", 8080),
        ("mesh/ruled", 8080),
        ("mesh/guarded", 8080),
        ("mesh/roles", 8080),
        ("mesh/spelled", HEARD),
        ("mesh/framing", HEARD),
    ] {
        plan = plan
            .service(service, "v1", &[("http", 80, port)])
            .labelled(behind.0, behind.1);
    }
    plan.service("mesh/h2", "v1", &[("http2", 80, 8080), ("grpc", 81, 8080)])
        .labelled(behind.0, behind.1)
        .service("mesh/bytes", "v1", &[("tcp", 9000, 9000)])
        .labelled(behind.0, behind.1)
        .waypoint("mesh/waypoint", 2, "service")
        .manifest(
            "routes",
            &(manifests::ROUTES.to_owned() + &manifests::order()),
        )
        .manifest("static-rules", &manifests::rules())
}

static WORLD: Shared = Shared::new(|| started(plan("way")));

/// The shop's pods serve for as long as the answer lives.
fn serve(world: &World) -> [App; 2] {
    let apps = ["v1", "v2"].map(|name| world.pod(&format!("mesh/{name}")).serve_http(8080, name));
    world.eventually("the routes are in force", || {
        let answer = world.pod("mesh/client").get("http://shop.mesh/exact");
        answer.is_ok_and(|answer| answer.status == 200 && answer.json()["name"] == "v2")
    });
    apps
}

/// All applications that [`plan`] speaks of, and what v1 is sent on [`HEARD`].
fn serve_all(world: &World) -> (Vec<App>, Heard) {
    let v1 = world.pod("mesh/v1");
    let (app, heard) = v1.serve_http_heard(HEARD, "v1");
    let mut apps = vec![app, v1.serve_reset(8098)];
    apps.extend(serve(world));
    (apps, heard)
}

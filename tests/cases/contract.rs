//! What a control plane may say besides what ours says: application tunnels, other networks.

use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::World;
use ambit_tests::world::told::{service, workload};
use serde_json::json;

const VIP: &str = "10.96.0.10";

/// `mesh/client` on one node, `mesh/server` and `mesh/second` on the other; `outside/gateway` is no
/// part of the mesh.
fn world(name: &str) -> World {
    let plan = Plan::new(name)
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/server", 2)
        .pod("mesh/second", 2)
        .pod("outside/gateway", 1)
        .service("mesh/server", "server", &[("tcp", 80, 8080)]);
    World::start(plan).unwrap_or_else(|error| panic!("{error:?}"))
}

#[test]
fn an_application_tunnel_carries_the_proxy_header_to_the_port_it_names() {
    let world = world("apptun");
    let [client, server, second] =
        ["client", "server", "second"].map(|name| world.pod(&format!("mesh/{name}")));
    let waypoint = json!({"destination": format!("/{}", second.ipv4()), "hboneMtlsPort": 15008});
    let sandwich = json!({"applicationTunnel": {"protocol": "PROXY", "port": 15088}});
    let behind = json!({"services": {"mesh/server.mesh.svc.cluster.local": {"80": 8080}}});
    let mesh = json!({
        "workloads": [
            workload(client, "", json!({})),
            workload(server, "", behind),
            workload(second, "", sandwich),
        ],
        "services": [service("mesh/server", &format!("/{VIP}"), 8080, json!({"waypoint": waypoint}))],
    });
    world.tell(1, "", &mesh);
    world.tell(2, "", &mesh);
    let app = second.serve_proxied(15088);
    let told = client
        .ask("server.mesh:80", b"through the sandwich")
        .unwrap();
    let expected = format!(
        "{} {VIP}:80 {} server.mesh.svc.cluster.local 127.0.0.1 through the sandwich",
        client.ipv4(),
        client.identity(),
    );
    assert_eq!(String::from_utf8(told).unwrap(), expected);
    assert_eq!(app.seen().count(), 1);
    let identity = second.identity();
    let fields = [
        ("dst.hbone_addr", "10.96.0.10:80"),
        ("dst.identity", identity.as_str()),
        ("dst.service", "server.mesh.svc.cluster.local"),
    ];
    world.wait_records("ztunnel-n1", &fields, 1);
    // What is no waypoint of an address and no application tunnel takes nothing for it.
    let mut plain = mesh.clone();
    plain["workloads"][2] = workload(second, "", json!({}));
    plain["services"][0]["waypoint"] = json!(null);
    world.tell(2, "", &plain);
    client.ask("server.mesh:80", b"refused").unwrap_err();
    let refused = [("direction", "inbound"), ("error", "*ip mismatch")];
    world.wait_records("ztunnel-n2", &refused, 1);
}

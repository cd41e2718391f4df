//! A node proxy that asks for what its connections need, rather than being told of the whole mesh.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::World;

/// The proxy that asks.
const NEAR: &str = "ztunnel-n1";

/// `mesh/client` is on the node of the proxy that asks.
fn world() -> World {
    let plan = Plan::new("demand")
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/server", 2)
        .pod("mesh/other", 2)
        .pod("outside/plain", 2)
        .service("mesh/server", "server", &[("tcp", 80, 8080)]);
    let world = World::start(plan).unwrap_or_else(|error| panic!("{error:?}"));
    for (name, value) in [
        ("XDS_ON_DEMAND", "true"),
        ("ISTIO_META_DNS_CAPTURE", "false"),
    ] {
        world.programs().set(NEAR, name, value);
    }
    world.kill(NEAR);
    world.start_again(NEAR);
    world
}

/// Names of the pods that the proxy knows, but its own.
fn known(world: &World) -> BTreeSet<String> {
    let dump = world.config_dump(NEAR).unwrap();
    let workloads = dump["workloads"].as_array().unwrap().iter();
    workloads
        .filter(|one| one["namespace"] != "istio-system")
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}

fn only(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_a_connection_needs_is_asked_for_and_nothing_else() {
    let world = world();
    let client = world.pod("mesh/client");
    let _apps = [
        ("mesh/server", 8080),
        ("mesh/other", 9701),
        ("outside/plain", 9702),
    ]
    .map(|(pod, port)| world.pod(pod).serve_echo(port));
    // The pods of its own node come without being asked for.
    world.eventually("the pod is known", || known(&world) == only(&["client"]));
    world.eventually("what is asked for is reached", || {
        client.reaches("server.mesh:80")
    });
    assert_eq!(known(&world), only(&["client", "server"]));
    let identity = world.pod("mesh/server").identity();
    let tunnelled = [
        ("direction", "outbound"),
        ("dst.service", "server.mesh.svc.cluster.local"),
        ("dst.identity", identity.as_str()),
    ];
    world.wait_records(NEAR, &tunnelled, 1);

    // By address, and one that the mesh knows and that is not in it.
    assert!(client.reaches("mesh/other:9701"));
    assert!(client.reaches("outside/plain:9702"));
    assert_eq!(known(&world), only(&["client", "other", "plain", "server"]));

    // Nobody's address is outside the mesh: dialled, and refused by whom it belongs to.
    let nobody = format!("{}:9703", world.node_address(2));
    assert!(!client.reaches(&nobody));
    let refused = [("dst.addr", nobody.as_str()), ("error", "*refused")];
    world.wait_records(NEAR, &refused, 1);

    without_the_control_plane(&world, &nobody);
}

/// What is known goes on; what was never asked is refused, and not passed by the mesh.
fn without_the_control_plane(world: &World, nobody: &str) {
    let client = world.pod("mesh/client");
    world.kill("controller");
    assert!(client.reaches("server.mesh:80"));
    assert!(client.reaches("mesh/other:9701"));
    let begin = Instant::now();
    assert!(!client.reaches(nobody));
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "what does not exist stands"
    );
    let never = format!("{}:9703", world.node_address(1));
    assert!(!client.reaches(&never));
    let refused = [
        ("dst.addr", never.as_str()),
        ("error", "*the control plane did not say"),
    ];
    world.wait_records(NEAR, &refused, 1);
    world.start_again("controller");
    world.eventually("the control plane is asked again", || {
        assert!(!client.reaches(&never));
        let records = world.records(NEAR);
        records
            .iter()
            .any(|record| record.has(&[("dst.addr", never.as_str()), ("error", "*refused")]))
    });
}

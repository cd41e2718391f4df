//! Manifests that are wrong: a clear error for each, and everything else stays in force.

use ambit_tests::http;
use ambit_tests::world::World;
use serde_json::Value;

use crate::mesh::POLICED;

/// What the controller says is wrong, in which every piece of `pieces` is found in one entry.
#[track_caller]
fn complains(world: &World, pieces: &[&str]) {
    world.eventually(&format!("the controller says {pieces:?}"), || {
        let problems = world.admin("controller", "/debug/problems").unwrap().json();
        let mut entries = problems
            .as_array()
            .into_iter()
            .flatten()
            .map(Value::to_string);
        entries.any(|entry| pieces.iter().all(|piece| entry.contains(piece)))
    });
}

/// Documents that are refused, and what is said of them.
const REFUSED: &[(&str, &str, &[&str])] = &[
    (
        "YAML that does not parse",
        "apiVersion: v1\nkind: Service\nmetadata: {name: broken\n  namespace: mesh\n",
        &["case.yaml"],
    ),
    (
        "a field of the wrong type",
        "apiVersion: v1\nkind: Service\nmetadata: {name: wrong, namespace: mesh}\nspec:\n  ports:\n  - port: eighty\n",
        &["case.yaml", "port"],
    ),
    (
        "a kind that nobody knows",
        "apiVersion: example.com/v1\nkind: Teapot\nmetadata: {name: short, namespace: mesh}\n",
        &["case.yaml", "Teapot"],
    ),
    (
        "a policy with an address block that is none",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: odd, namespace: outside}\nspec:\n  action: ALLOW\n  rules:\n  - from:\n    - source: {ipBlocks: [10.0.0.0/99]}\n",
        &["10.0.0.0/99"],
    ),
    (
        "a gateway without listeners",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: deaf, namespace: mesh}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: []\n",
        &["deaf"],
    ),
    (
        "a pod in a namespace that is not there",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, namespace: nowhere, uid: lost}\nspec: {nodeName: n1, containers: [{name: a, image: b}]}\nstatus: {phase: Running, podIP: 10.244.1.99, podIPs: [{ip: 10.244.1.99}]}\n",
        &["nowhere"],
    ),
];

#[test]
fn each_wrong_document_is_named_and_the_rest_stays_in_force() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9601);
    let client = world.pod("mesh/client");
    for (what, text, pieces) in REFUSED {
        eprintln!("{what}");
        let _applied = world.apply_for_now("case", text);
        complains(&world, pieces);
        assert!(
            client.reaches("mesh/server:9601"),
            "{what}: the rest stays in force"
        );
        assert!(world.pod("mesh/near").reaches("mesh/server:9601"));
    }
    world.eventually("nothing is wrong any more", || {
        let problems = world.admin("controller", "/debug/problems").unwrap().json();
        !problems.to_string().contains("case.yaml")
    });
}

#[test]
fn a_broken_change_leaves_the_last_good_version_in_force() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9602);
    let deny = |block: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: case, namespace: mesh}}\nspec:\n  action: DENY\n  selector: {{matchLabels: {{app: server}}}}\n  rules:\n  - {block}\n"
        )
    };
    let good = deny("from: [{source: {namespaces: [other]}}]");
    let _applied = world.apply_for_now("case", &good);
    let stranger = world.pod("other/stranger");
    world.eventually("the stranger is denied", || {
        !stranger.reaches("mesh/server:9602")
    });
    world.apply("case", &deny("from: {{{ not yaml"));
    complains(&world, &["case.yaml"]);
    assert!(
        !stranger.reaches("mesh/server:9602"),
        "the denial is still in force"
    );
    assert!(world.pod("mesh/client").reaches("mesh/server:9602"));
}

#[test]
fn two_services_on_one_address_are_named_and_one_of_them_serves() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(8080);
    let address = world
        .pod("mesh/client")
        .resolve("server.mesh:80", ambit_tests::pod::Family::V4);
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: twin, namespace: other}}\nspec:\n  clusterIP: {0}\n  clusterIPs: [{0}]\n  selector: {{app: nobody}}\n  ports: [{{name: tcp, port: 80, targetPort: 8080}}]\n",
        address.ip()
    );
    let _applied = world.apply_for_now("case", &text);
    complains(&world, &[&address.ip().to_string()]);
    // The older, and first by name, keeps the address.
    assert!(world.pod("mesh/client").reaches("server.mesh:80"));
}

#[test]
fn the_admin_port_is_for_the_machine_itself() {
    let world = POLICED.with_others();
    let node = world.node_address(1);
    for port in [15000, 15014] {
        let to = (node, port).into();
        assert!(
            http::get(world.netns("n2"), to, "/config_dump").is_err(),
            "{port}"
        );
    }
}

//! Manifests that are wrong: a clear error for each, and everything else stays in force.

use std::fs;

use ambit_tests::pod::Family;
use ambit_tests::world::World;
use serde_json::Value;

use crate::mesh::POLICED;

/// Where something is wrong, and what is said of it: the end of the place, the field, and a piece
/// of the message.
type Said<'a> = (&'a str, &'a str, &'a str);

/// What the controller says is wrong.
fn problems(world: &World) -> Vec<Value> {
    let answer = world.admin("controller", "/debug/problems").unwrap();
    answer.json().as_array().unwrap().clone()
}

/// Waits until the controller says it, at its admin port and in its log.
#[track_caller]
fn complains(world: &World, said: Said<'_>) {
    let (at, field, message) = said;
    let text = |problem: &Value, key: &str| problem[key].as_str().unwrap().to_owned();
    world.eventually(&format!("the controller says {said:?}"), || {
        problems(world).iter().any(|problem| {
            text(problem, "at").ends_with(at)
                && text(problem, "field") == field
                && text(problem, "message").contains(message)
        })
    });
    world.eventually(&format!("the log says {said:?} too"), || {
        let log = fs::read_to_string(world.programs().log("controller")).unwrap();
        let mut lines = log.lines();
        lines.any(|line| line.contains(at) && line.contains(field))
    });
}

/// Documents that are wrong, and what is said of them.
const WRONG: &[(&str, &str, Said<'static>)] = &[
    (
        "yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: broken\n  namespace: mesh\n",
        ("wrong-yaml.yaml:4", "", "while parsing"),
    ),
    (
        "type",
        "apiVersion: v1\nkind: Service\nmetadata: {name: wrong, namespace: mesh}\nspec:\n  ports:\n  - port: eighty\n",
        ("wrong-type.yaml:6", "spec.ports[0].port", "eighty"),
    ),
    (
        "kind",
        "# a pot\napiVersion: example.com/v1\nkind: Teapot\nmetadata: {name: short, namespace: mesh}\n",
        ("wrong-kind.yaml:3", "kind", "Teapot"),
    ),
    (
        "block",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: odd, namespace: outside}\nspec:\n  action: ALLOW\n  rules:\n  - from:\n    - source: {ipBlocks: [10.0.0.0/99]}\n",
        (
            "AuthorizationPolicy outside/odd",
            "spec.rules[0].from[0].source.ipBlocks[0]",
            "10.0.0.0/99",
        ),
    ),
    (
        "listeners",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: deaf, namespace: mesh}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: []\n",
        ("Gateway mesh/deaf", "spec.listeners", "without listeners"),
    ),
    (
        "nowhere",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, uid: lost}\nspec: {nodeName: n1, containers: [{name: a, image: b}]}\nstatus: {phase: Running, podIP: 10.244.1.98, podIPs: [{ip: 10.244.1.98}]}\n",
        ("wrong-nowhere.yaml:3", "metadata.namespace", "no namespace"),
    ),
    (
        "unknown",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, namespace: atlantis, uid: lost}\nspec: {nodeName: n1, containers: [{name: a, image: b}]}\nstatus: {phase: Running, podIP: 10.244.1.99, podIPs: [{ip: 10.244.1.99}]}\n",
        ("Pod atlantis/lost", "metadata.namespace", "atlantis"),
    ),
];

/// Pods that should be in the mesh, where they are said to be, and what their agent says of it.
const LOST: [(&str, &str, &str); 3] = [
    ("unnamed", "{}", "the pod has no annotation ambit.io/netns"),
    (
        "absent",
        "{ambit.io/netns: /run/netns/ambit-of-nobody}",
        "/run/netns/ambit-of-nobody is not a network namespace",
    ),
    (
        "stolen",
        "{ambit.io/netns: THE_CLIENTS}",
        "has an address of the pod",
    ),
];

#[test]
fn a_pod_without_a_network_namespace_of_its_own_is_named_and_the_rest_is_served() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9604);
    let client = world.pod("mesh/client");
    let of_client = world.netns_path("mesh/client");
    let mut all = Vec::new();
    for (number, (name, annotations, said)) in LOST.into_iter().enumerate() {
        let annotations = annotations.replace("THE_CLIENTS", &of_client.display().to_string());
        let address = format!("10.244.1.{}", 90 + number);
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: mesh, uid: {name}, annotations: {annotations}}}\nspec: {{nodeName: n1, containers: [{{name: a, image: b}}]}}\nstatus: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
        );
        all.push(world.apply_for_now(&format!("wrong-{name}"), &text));
        world.eventually(&format!("the agent says of {name}: {said}"), || {
            let pods = world.admin("agent-n1", "/debug/pods").unwrap().json();
            let mut pods = pods["pods"].as_array().unwrap().iter();
            pods.any(|pod| {
                let error = pod["lastError"].as_str().unwrap_or_default();
                pod["name"] == name && pod["state"] != "enrolled" && error.contains(said)
            })
        });
        world.eventually(&format!("the agent's log says so of {name}"), || {
            let log = fs::read_to_string(world.programs().log("agent-n1")).unwrap();
            let mut lines = log.lines();
            lines.any(|line| line.contains(name) && line.contains(said))
        });
        world.wait_protocol(&format!("mesh/{name}"), "TCP");
    }
    // Beside them others come and go as always.
    assert!(client.reaches("mesh/server:9604"));
    let mode = "istio.io/dataplane-mode";
    world.label_pod("outside/plain", mode, Some("ambient"));
    world.wait_protocol("outside/plain", "HBONE");
    world.label_pod("outside/plain", mode, None);
    world.wait_protocol("outside/plain", "TCP");
}

/// A policy of `mesh/server` with one rule.
fn policy(action: &str, rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: case, namespace: mesh}}\nspec:\n  action: {action}\n  selector: {{matchLabels: {{app: server}}}}\n  rules:\n  - {rule}\n"
    )
}

#[test]
fn each_wrong_document_is_named_by_place_and_field_and_the_rest_stays_in_force() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9601);
    let client = world.pod("mesh/client");
    let mut all = Vec::new();
    for (name, text, said) in WRONG {
        all.push(world.apply_for_now(&format!("wrong-{name}"), text));
        complains(&world, *said);
        assert!(client.reaches("mesh/server:9601"), "beside wrong {name}");
    }
    // All of them are there now, and a good change still takes effect, both ways.
    let good = policy("DENY", "from: [{source: {namespaces: [other]}}]");
    let applied = world.apply_for_now("case", &good);
    let stranger = world.pod("other/stranger");
    world.eventually("the stranger is denied", || {
        !stranger.reaches("mesh/server:9601")
    });
    assert!(client.reaches("mesh/server:9601"));
    drop(applied);
    world.eventually("the stranger is let in again", || {
        stranger.reaches("mesh/server:9601")
    });
    drop(all);
    world.eventually("nothing is wrong any more", || problems(&world).is_empty());
}

#[test]
fn a_broken_change_leaves_the_last_good_version_in_force() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9602);
    let good = policy("DENY", "from: [{source: {namespaces: [other]}}]");
    let applied = world.apply_for_now("case", &good);
    let (client, stranger) = (world.pod("mesh/client"), world.pod("other/stranger"));
    world.eventually("the stranger is denied", || {
        !stranger.reaches("mesh/server:9602")
    });
    world.apply("case", &policy("DENY", "from: {{{ not yaml"));
    complains(&world, ("case.yaml:8", "", ""));
    assert!(!stranger.reaches("mesh/server:9602"), "still denied");
    assert!(client.reaches("mesh/server:9602"));
    // Mended, it counts.
    let mended = policy("DENY", "from: [{source: {namespaces: [mesh]}}]");
    world.apply("case", &mended);
    world.eventually("the mended version is in force", || {
        stranger.reaches("mesh/server:9602") && !client.reaches("mesh/server:9602")
    });
    drop(applied);
    // The next case begins without a policy.
    world.eventually("all are let in again", || {
        client.reaches("mesh/server:9602")
    });
}

#[test]
fn of_two_services_on_one_address_the_first_keeps_it() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(8080);
    let client = world.pod("mesh/client");
    let address = client.resolve("server.mesh:80", Family::V4).ip();
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: twin, namespace: other}}\nspec:\n  clusterIP: {address}\n  clusterIPs: [{address}]\n  selector: {{app: nobody}}\n  ports: [{{name: tcp, port: 80, targetPort: 8080}}]\n"
    );
    let _applied = world.apply_for_now("case", &text);
    let twin = ("Service other/twin", "spec.clusterIPs");
    complains(&world, (twin.0, twin.1, &address.to_string()));
    complains(&world, (twin.0, twin.1, "mesh/server"));
    assert!(client.reaches("server.mesh:80"));
}

#[test]
fn an_address_block_that_is_none_lets_nobody_in() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9603);
    let clients = ["mesh/client", "mesh/third", "outside/plain"];
    let reached = |pod: &&str| world.pod(pod).reaches("mesh/server:9603");
    world.eventually("all reach it", || clients.iter().all(reached));
    // A rule that cannot be read allows nothing, and denies all.
    for action in ["ALLOW", "DENY"] {
        let odd = policy(action, "from: [{source: {ipBlocks: [10.244.1.300/33]}}]");
        let applied = world.apply_for_now("case", &odd);
        let field = "spec.rules[0].from[0].source.ipBlocks[0]";
        complains(
            &world,
            ("AuthorizationPolicy mesh/case", field, "10.244.1.300/33"),
        );
        world.eventually(&format!("{action} lets nobody in"), || {
            !clients.iter().any(reached)
        });
        drop(applied);
        world.eventually("all reach it again", || clients.iter().all(reached));
    }
}

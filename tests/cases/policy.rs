//! L4 policy: who may connect, and that a change ends what it forbids.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use ambit_tests::expect::{always, eventually_true};
use ambit_tests::istioctl::State;
use ambit_tests::world::{CHANGE, World};
use serde_json::{Value, json};

use crate::mesh::POLICED;

/// An authorization policy.
pub fn policy(namespace: &str, selector: Option<&str>, action: &str, rules: &Value) -> String {
    let mut spec = json!({"action": action, "rules": rules});
    if let Some(app) = selector {
        spec["selector"] = json!({"matchLabels": {"app": app}});
    }
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "case", "namespace": namespace}, "spec": spec,
    })
    .to_string()
}

/// A peer authentication.
fn strictness(mode: &str, ports: &Value) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "case", "namespace": "mesh"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "mtls": {"mode": mode}, "portLevelMtls": ports,
        },
    })
    .to_string()
}

/// Waits until exactly these clients reach `mesh/server:PORT`.
#[track_caller]
fn only(world: &World, port: u16, wanted: &[&str]) {
    let to = format!("mesh/server:{port}");
    let mut seen = Vec::new();
    eventually_true(CHANGE, &format!("only {wanted:?} reach {to}"), || {
        seen = ALL
            .into_iter()
            .filter(|client| world.pod(client).reaches(&to))
            .collect();
        seen == wanted
    });
}

const ALL: [&str; 4] = [
    "mesh/client",
    "mesh/third",
    "other/stranger",
    "outside/plain",
];

/// What is applied, and who of [`ALL`] then reaches port 9201 of `mesh/server`.
fn table(world: &World) -> Vec<(&'static str, String, Vec<&'static str>)> {
    let address = |pod: &str| world.pod(pod).ipv4().to_string();
    let source = |field: &str, value: &str| json!([{"from": [{"source": {field: [value]}}]}]);
    let port = |port: u16| json!([{"to": [{"operation": {"ports": [port.to_string()]}}]}]);
    vec![
        ("no policy", String::new(), ALL.to_vec()),
        (
            "ALLOW a principal, for the workload",
            policy(
                "mesh",
                Some("server"),
                "ALLOW",
                &source("principals", "cluster.local/ns/mesh/sa/client"),
            ),
            vec!["mesh/client"],
        ),
        (
            "ALLOW a namespace, for the namespace",
            policy("mesh", None, "ALLOW", &source("namespaces", "mesh")),
            vec!["mesh/client", "mesh/third"],
        ),
        (
            "DENY a namespace, for the mesh",
            policy("istio-system", None, "DENY", &source("namespaces", "other")),
            vec!["mesh/client", "mesh/third", "outside/plain"],
        ),
        (
            "DENY a service account",
            policy(
                "mesh",
                Some("server"),
                "DENY",
                &source("serviceAccounts", "mesh/client"),
            ),
            vec!["mesh/third", "other/stranger", "outside/plain"],
        ),
        (
            "ALLOW an address",
            policy(
                "mesh",
                Some("server"),
                "ALLOW",
                &source("ipBlocks", &address("outside/plain")),
            ),
            vec!["outside/plain"],
        ),
        (
            "DENY a block of addresses",
            policy(
                "mesh",
                Some("server"),
                "DENY",
                &source("ipBlocks", "10.244.1.0/24"),
            ),
            vec!["mesh/third"],
        ),
        (
            "DENY the port",
            policy("mesh", Some("server"), "DENY", &port(9201)),
            vec![],
        ),
        (
            "DENY another port",
            policy("mesh", Some("server"), "DENY", &port(9299)),
            ALL.to_vec(),
        ),
        (
            "ALLOW nothing",
            policy("mesh", Some("server"), "ALLOW", &json!([])),
            vec![],
        ),
    ]
}

#[test]
fn allow_and_deny_work_by_every_attribute_and_at_every_scope() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9201);
    for (what, text, wanted) in table(&world) {
        eprintln!("{what}");
        let _applied = world.apply_for_now("case", &text);
        only(&world, 9201, &wanted);
    }
    only(&world, 9201, &ALL);
}

#[test]
fn a_dry_run_decides_nothing_and_is_counted() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9206);
    let mut tried: Value = serde_json::from_str(&policy(
        "mesh",
        Some("server"),
        "DENY",
        &json!([{"from": [{"source": {"namespaces": ["other"]}}]}]),
    ))
    .unwrap();
    tried["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let _applied = world.apply_for_now("case", &tried.to_string());
    let would = |matched: &'static str, rehearsed: &'static str| {
        [
            ("policy", "mesh/case"),
            ("action", "DENY"),
            ("matched", matched),
            ("enforced", "allow"),
            ("rehearsed", rehearsed),
        ]
    };
    for (client, matched, rehearsed) in [
        ("other/stranger", "true", "deny"),
        ("mesh/client", "false", "allow"),
    ] {
        world.eventually("the policy is tried on the client", || {
            assert!(world.pod(client).reaches("mesh/server:9206"), "{client}");
            let counted = world.metrics("ztunnel-n2");
            let labels = would(matched, rehearsed);
            counted.sum("ambit_dry_run_policy_connections_total", &labels) >= 1.0
        });
    }
    let path = "/debug/explain?src=other/stranger&dst=mesh/server&port=9206";
    let explained = world.admin("ztunnel-n1", path).unwrap();
    let explained: Value = serde_json::from_slice(&explained.body).unwrap();
    let decision = &explained["admission"]["decision"];
    assert_eq!(decision["allowed"], true, "{explained}");
    assert_eq!(decision["rehearsed"]["decidedBy"], "mesh/case");
    assert_eq!(decision["rehearsed"]["allowed"], false);
}

#[test]
fn the_state_of_a_proxy_is_read_by_istioctl_and_kiali() {
    let world = POLICED.alone();
    let _app = world
        .pod("mesh/server")
        .serve_ticks(9207, Duration::from_millis(50));
    let strict = world.apply_for_now("case", &strictness("STRICT", &json!({})));
    let mut stream = world
        .pod("mesh/client")
        .connect("mesh/server:9207")
        .unwrap();
    let state = || {
        let dump = world.config_dump("ztunnel-n2").unwrap();
        serde_json::from_value::<State>(dump).expect("the types of istioctl and Kiali")
    };
    world.eventually("the policy of STRICT is in force", || {
        assert!(alive(&mut stream));
        !state().policies.is_empty()
    });
    let state = state();
    let server = world.pod("mesh/server");
    let address = server.ipv4().to_string();

    let workload = state.workloads.iter().find(|one| one.name == "server");
    let workload = workload.expect("the server");
    assert_eq!(workload.protocol, "HBONE");
    assert_eq!(workload.status, "Healthy");
    assert!(workload.workload_ips.contains(&address));
    assert_eq!(workload.authorization_policies.len(), 1);

    let service = state.services.iter().find(|one| one.name == "server");
    let service = service.expect("its service");
    assert!(service.vips[0].starts_with("/10."), "{:?}", service.vips);
    assert_eq!(service.endpoints[&workload.uid].port[&80], 8080);

    // What STRICT is made of: nobody, which is a test without a value.
    let policy = &state.policies[0];
    assert_eq!(policy.action, "Deny");
    assert!(policy.rules[0][0][0].not_principals[0].presence.is_some());

    let mine = state.certificates.iter();
    let mine: Vec<_> = mine
        .filter(|one| one.identity == server.identity())
        .collect();
    assert_eq!(mine[0].state, "Available");
    for certificate in mine[0].cert_chain.iter().chain(&mine[0].root_certs) {
        let decimal = certificate
            .serial_number
            .bytes()
            .all(|b| b.is_ascii_digit());
        assert!(decimal && !certificate.serial_number.is_empty());
        assert!(certificate.valid_from < certificate.expiration_time);
    }

    let mut pods = state.workload_state.values();
    let pod = pods.find(|pod| pod.info.name == "server").expect("a pod");
    assert_eq!(pod.state, "Up");
    let open = pod.connections.inbound.iter();
    let mut open = open.filter(|one| one.actual_dst == format!("{address}:9207"));
    assert_eq!(open.next().expect("the connection").protocol, "HBONE");

    assert_eq!(state.config.admin_addr.localhost.len(), 2);
    assert!(!state.config.ca_address.is_empty());
    drop(strict);
}

fn alive(stream: &mut TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    matches!(stream.read(&mut [0; 64]), Ok(length) if length > 0)
}

#[test]
fn a_change_closes_the_live_connection_it_forbids_and_leaves_the_others() {
    let world = POLICED.alone();
    let _app = world
        .pod("mesh/server")
        .serve_ticks(9202, Duration::from_millis(50));
    let clients = ["mesh/client", "other/stranger", "outside/plain"];
    let mut open: Vec<_> = clients
        .iter()
        .map(|pod| world.pod(pod).connect("mesh/server:9202").unwrap())
        .collect();
    assert!(open.iter_mut().all(alive));
    let rules = json!([{"from": [{"source": {"namespaces": ["other"]}}]}]);
    let applied = world.apply_for_now("case", &policy("mesh", Some("server"), "DENY", &rules));
    eventually_true(CHANGE, "the stranger's connection is closed", || {
        !alive(&mut open[1])
    });
    always(Duration::from_secs(1), "the others stay", || {
        alive(&mut open[0]) && alive(&mut open[2])
    });
    drop(applied);
    // The refusal is on record at the server's proxy, with its policy.
    let fields = [
        ("direction", "inbound"),
        ("src.workload", "stranger"),
        ("error", "*polic"),
    ];
    world.wait_records("ztunnel-n2", &fields, 1);
    eventually_true(CHANGE, "the stranger is let in again", || {
        world
            .pod("other/stranger")
            .connect("mesh/server:9202")
            .is_ok_and(|mut s| alive(&mut s))
    });
}

#[test]
fn strict_refuses_plaintext_except_where_a_port_is_excepted() {
    let world = POLICED.alone();
    let _apps = [9203, 9204].map(|port| world.pod("mesh/server").serve_echo(port));
    let mutual = &ALL[..3];
    only(&world, 9203, &ALL);
    {
        let _applied = world.apply_for_now("case", &strictness("STRICT", &json!({})));
        only(&world, 9203, mutual);
        only(&world, 9204, mutual);
    }
    {
        let except = json!({"9204": {"mode": "PERMISSIVE"}});
        let _applied = world.apply_for_now("case", &strictness("STRICT", &except));
        only(&world, 9203, mutual);
        only(&world, 9204, &ALL);
    }
    {
        let except = json!({"9204": {"mode": "STRICT"}});
        let _applied = world.apply_for_now("case", &strictness("PERMISSIVE", &except));
        only(&world, 9204, mutual);
        only(&world, 9203, &ALL);
    }
    only(&world, 9203, &ALL);
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "unknown"),
    ];
    world.wait_metric(
        "ztunnel-n2",
        "istio_tcp_connections_failed_total",
        &labels,
        1.0,
    );
}

#[test]
fn a_policy_with_an_invalid_address_block_fails_closed() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9205);
    let rules = json!([{"from": [{"source": {"ipBlocks": ["10.244.1.300/33"]}}]}]);
    // ALLOW by a rule that cannot be read lets nobody in.
    let applied = world.apply_for_now("case", &policy("mesh", Some("server"), "ALLOW", &rules));
    only(&world, 9205, &[]);
    drop(applied);
    only(
        &world,
        9205,
        &[
            "mesh/client",
            "mesh/third",
            "other/stranger",
            "outside/plain",
        ],
    );
}

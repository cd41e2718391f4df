//! Between two pods of one node no tunnel carries a connection; all else is as if one did.

use std::net::TcpStream;
use std::time::Duration;

use ambit_tests::expect::eventually_true;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::{CHANGE, Shared, World, started};
use nix::sys::signal::Signal;
use serde_json::json;

const PROXY: &str = "ztunnel-n1";
const OPENED: &str = "istio_tcp_connections_opened_total";

fn plan(name: &str) -> Plan {
    Plan::new(name)
        .namespace("mesh", &[AMBIENT])
        .namespace("other", &[AMBIENT])
        .pod("mesh/client", 1)
        .pod("mesh/near", 1)
        .pod("mesh/third", 1)
        .pod("other/stranger", 1)
        .service("mesh/near", "near", &[("tcp", 80, 9601)])
}

static WORLD: Shared = Shared::new(|| {
    // What a stop does to live connections is waited for.
    started(plan("nbr").setting("CONNECTION_TERMINATION_DEADLINE", "2s"))
});
static TUNNELLED: Shared =
    Shared::new(|| started(plan("nbrt").setting("SAME_NODE_DIRECT", "false")));

const PRINCIPALS: [(&str, &str); 2] = [
    (
        "source_principal",
        "spiffe://cluster.local/ns/mesh/sa/client",
    ),
    (
        "destination_principal",
        "spiffe://cluster.local/ns/mesh/sa/near",
    ),
];

/// Connections from `mesh/client` to `mesh/near` that a reporter counted as of this security policy.
fn opened(world: &World, reporter: &str, security: &str) -> f64 {
    let mut labels = PRINCIPALS.to_vec();
    labels.extend([
        ("reporter", reporter),
        ("connection_security_policy", security),
    ]);
    world.metrics(PROXY).sum(OPENED, &labels)
}

#[test]
fn both_ends_record_who_they_are_and_that_no_tls_lay_between() {
    let world = WORLD.with_others();
    let app = world.pod("mesh/near").serve_echo(9601);
    let client = world.pod("mesh/client");
    let answer = client.ask("near.mesh:80", b"eleven byte").unwrap();
    assert_eq!(answer, b"eleven byte");
    // The application sees its client, not the proxy.
    let seen = app.seen().peers();
    assert!(
        seen.iter().any(|peer| peer.ip() == client.ipv4()),
        "{seen:?}"
    );
    for direction in ["outbound", "inbound"] {
        let fields = [
            ("direction", direction),
            ("src.identity", "spiffe://cluster.local/ns/mesh/sa/client"),
            ("dst.identity", "spiffe://cluster.local/ns/mesh/sa/near"),
            ("dst.hbone_addr", "*:9601"),
            ("dst.service", "near.mesh.svc.cluster.local"),
            ("bytes_sent", "11"),
            ("bytes_recv", "11"),
            ("error", ""),
        ];
        world.wait_records(PROXY, &fields, 1);
    }
    for reporter in ["source", "destination"] {
        assert!(opened(&world, reporter, "unknown") >= 1.0, "{reporter}");
        assert_eq!(opened(&world, reporter, "mutual_tls"), 0.0, "{reporter}");
    }
}

#[test]
fn the_switch_brings_the_tunnel_back() {
    let world = TUNNELLED.with_others();
    let _app = world.pod("mesh/near").serve_echo(9602);
    assert!(world.pod("mesh/client").reaches("mesh/near:9602"));
    for reporter in ["source", "destination"] {
        eventually_true(CHANGE, "it is counted", || {
            opened(&world, reporter, "mutual_tls") >= 1.0
        });
        assert_eq!(opened(&world, reporter, "unknown"), 0.0, "{reporter}");
    }
}

fn policy(rules: &serde_json::Value) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "case", "namespace": "mesh"},
        "spec": {
            "selector": {"matchLabels": {"app": "near"}}, "action": "DENY", "rules": rules,
        },
    })
    .to_string()
}

fn alive(stream: &mut TcpStream) -> bool {
    use std::io::Read;
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    matches!(stream.read(&mut [0; 64]), Ok(length) if length > 0)
}

#[test]
fn policies_hold_for_new_connections_and_for_live_ones() {
    let world = WORLD.with_others();
    let _app = world
        .pod("mesh/near")
        .serve_ticks(9603, Duration::from_millis(50));
    let call = |from: &str| world.pod(from).connect("mesh/near:9603").unwrap();
    let mut denied = call("other/stranger");
    let mut allowed = call("mesh/client");
    assert!(alive(&mut denied) && alive(&mut allowed));
    let rules = json!([{
        "from": [{"source": {"principals": ["cluster.local/ns/other/sa/stranger"]}}],
        "to": [{"operation": {"ports": ["9603"]}}],
    }]);
    let applied = world.apply_for_now("case", &policy(&rules));
    eventually_true(CHANGE, "the stranger's connection is closed", || {
        !alive(&mut denied)
    });
    assert!(alive(&mut allowed), "the other one stays");
    let ends = |direction, error| {
        [
            ("direction", direction),
            ("src.workload", "stranger"),
            ("dst.hbone_addr", "*:9603"),
            ("error", error),
        ]
    };
    let changed = "*connection closed due to policy change";
    world.wait_records(PROXY, &ends("inbound", changed), 1);
    world.wait_records(
        PROXY,
        &ends("outbound", "connection reset by the far side"),
        1,
    );
    // A new one is told what a tunnel would have told it.
    let served = || {
        let stranger = world.pod("other/stranger");
        // The refusal may be there before the connection is known to be made.
        stranger
            .connect("mesh/near:9603")
            .is_ok_and(|mut stream| alive(&mut stream))
    };
    assert!(!served());
    world.wait_records(PROXY, &ends("inbound", "*mesh/case"), 1);
    world.wait_records(PROXY, &ends("outbound", "http status: 401"), 1);
    drop(applied);
    eventually_true(CHANGE, "the stranger is let in again", served);
}

/// Rules in a pod's namespace as a network plugin would set them for a policy.
fn network_policy(pod: &Pod, rules: &str) {
    let output = pod.command("nft").arg(rules).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_network_policy_between_two_pods_of_a_node_holds() {
    let world = WORLD.with_others();
    let _app = world.pod("mesh/near").serve_echo(9604);
    let (near, third) = (world.pod("mesh/near"), world.pod("mesh/third"));
    let address = third.ipv4();
    network_policy(
        near,
        &format!(
            "add table inet plugin; \
             add chain inet plugin in {{ type filter hook input priority 10; }}; \
             add rule inet plugin in ip saddr {address} reject with tcp reset"
        ),
    );
    assert!(!third.reaches("mesh/near:9604"));
    assert!(world.pod("mesh/client").reaches("mesh/near:9604"));
    network_policy(near, "delete table inet plugin");
    eventually_true(CHANGE, "the network lets it in", || {
        third.reaches("mesh/near:9604")
    });
}

#[test]
fn a_proxy_that_stops_ends_them_when_their_time_is_over() {
    let world = WORLD.alone();
    let _app = world
        .pod("mesh/near")
        .serve_ticks(9605, Duration::from_millis(50));
    let mut stream = world.pod("mesh/client").connect("mesh/near:9605").unwrap();
    assert!(alive(&mut stream));
    let ended = world.programs().end(PROXY, Signal::SIGTERM, CHANGE);
    assert!(ended.success(), "{ended:?}");
    // What had arrived before can still be read.
    eventually_true(CHANGE, "it has ended", || !alive(&mut stream));
    for direction in ["outbound", "inbound"] {
        let fields = [("direction", direction), ("dst.hbone_addr", "*:9605")];
        let found = world.wait_records(PROXY, &fields, 1);
        assert_eq!(found.len(), 1, "{found:?}");
    }
    world.start_again(PROXY);
    world.wait_enrolled();
    eventually_true(CHANGE, "and works with the next one", || {
        world
            .pod("mesh/client")
            .connect("mesh/near:9605")
            .is_ok_and(|mut s| alive(&mut s))
    });
}

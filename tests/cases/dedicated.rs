//! A node proxy for one workload: in its network namespace, without an agent and without a capability.

use std::net::IpAddr;

use ambit_tests::dns::query;
use ambit_tests::expect::eventually_true;
use ambit_tests::plan::{AMBIENT, Plan, PodPlan};
use ambit_tests::pod::Family;
use ambit_tests::world::{START, Shared, started};
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;

const CLIENT: &str = "spiffe://cluster.local/ns/alone/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/alone/sa/server";

/// `alone/client` and `alone/server` have proxies of their own, `mesh/client` is served by its node's.
fn plan() -> Plan {
    let tunnels = |pod: PodPlan| pod.label("networking.istio.io/tunnel", "http");
    Plan::new("only")
        .namespace("alone", &[])
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod_with("alone/client", 1, tunnels)
        .pod_with("alone/server", 2, tunnels)
        .pod("mesh/client", 1)
        .pod("outside/plain", 1)
        .pod("outside/far", 2)
        .service("alone/server", "server", &[("tcp", 80, 9101)])
}

static WORLD: Shared = Shared::new(|| {
    let world = started(plan());
    {
        let world = world.read();
        for pod in ["alone/client", "alone/server"] {
            let pod = world.pod(pod);
            pod.write_resolv_conf("search corp.example\nnameserver 10.96.0.253\n");
            world.start_dedicated(pod).unwrap();
        }
    }
    world
});

const NEAR: &str = "ztunnel-alone-client";
const FAR: &str = "ztunnel-alone-server";

const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-mesh, namespace: alone}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {notNamespaces: [mesh]}}]}]
"#;

#[test]
fn two_workloads_with_proxies_of_their_own_meet_over_mutual_tls() {
    let world = WORLD.with_others();
    let (client, server) = (world.pod("alone/client"), world.pod("alone/server"));
    let _echo = server.serve_echo(9101);
    let capture = world.capture();
    for to in ["server.alone:80", "alone/server:9101"] {
        for family in [Family::V4, Family::V6] {
            let answer = client.ask_over(to, family, b"MARKER-of-one").unwrap();
            assert_eq!(answer, b"MARKER-of-one", "{to} {family:?}");
        }
    }
    let packets = capture.end();
    assert_eq!(packets.with("MARKER-of-one"), 0);
    assert!(packets.to_port(15008) > 0);
    let ends = [("src.identity", CLIENT), ("dst.identity", SERVER)];
    for (program, direction) in [(NEAR, "outbound"), (FAR, "inbound")] {
        let mut fields = ends.to_vec();
        fields.extend([("direction", direction), ("error", "")]);
        world.wait_records(program, &fields, 4);
        let labels = [("connection_security_policy", "mutual_tls")];
        world.wait_metric(program, "istio_tcp_connections_closed_total", &labels, 4.0);
    }
    let dump = world.config_dump(NEAR).unwrap();
    assert_eq!(dump["config"]["proxyMode"], "Dedicated");
    assert_eq!(dump["config"]["mode"]["dedicated"]["name"], "client");
}

#[test]
fn one_meets_pods_that_their_nodes_proxy_serves_and_policies_hold() {
    let world = WORLD.alone();
    let (server, meshed) = (world.pod("alone/server"), world.pod("mesh/client"));
    let _echo = server.serve_echo(9101);
    let own = world.pod("alone/client");
    assert!(meshed.reaches("server.alone:80") && own.reaches("server.alone:80"));
    let policy = world.apply_for_now("only-mesh", POLICY);
    world.eventually("the policy forbids", || !own.reaches("server.alone:80"));
    assert!(meshed.reaches("server.alone:80"));
    let forbidden = [
        ("src.identity", CLIENT),
        ("error", "*explicitly denied by: alone/only-mesh"),
    ];
    world.wait_records(FAR, &forbidden, 1);
    drop(policy);
    world.eventually("it is permitted again", || own.reaches("server.alone:80"));
}

#[test]
fn plaintext_from_and_to_others_is_recorded_without_an_identity() {
    let world = WORLD.with_others();
    let _echo = world.pod("alone/server").serve_echo(9104);
    let _outside = world.pod("outside/far").serve_echo(9104);
    assert!(world.pod("outside/plain").reaches("alone/server:9104"));
    let records = world.wait_records(FAR, &[("direction", "inbound"), ("dst.addr", "*:9104")], 1);
    assert!(
        records
            .iter()
            .all(|record| record.get("src.identity").is_empty())
    );
    assert!(world.pod("alone/client").reaches("outside/far:9104"));
    let to = [("direction", "outbound"), ("dst.addr", "*:9104")];
    let records = world.wait_records(NEAR, &to, 1);
    assert!(
        records
            .iter()
            .all(|record| record.get("dst.identity").is_empty())
    );
}

#[test]
fn names_of_the_mesh_are_answered_with_the_search_domains_of_the_workload() {
    let world = WORLD.with_others();
    let client = world.pod("alone/client");
    let nobody: IpAddr = [10, 96, 0, 253].into();
    let service = client.resolve("server.alone:80", Family::V4).ip();
    for name in [
        "server.alone.svc.cluster.local",
        "server.alone.svc.cluster.local.corp.example",
    ] {
        let question = query(name, RecordType::A, None).to_vec().unwrap();
        let answer = client.dns_over_udp(nobody, &question).unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        let found = answer
            .answers
            .iter()
            .filter_map(|record| record.data.ip_addr());
        assert_eq!(found.collect::<Vec<_>>(), [service], "{name}");
    }
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_its_number() {
    let world = WORLD.with_others();
    let pod = world.pod("outside/far");
    let _other = pod.serve_echo(15008);
    let name = world.run_dedicated(pod, &[]).unwrap();
    eventually_true(START, "it ends", || !world.programs().runs(&name));
    let log = std::fs::read_to_string(world.programs().log(&name)).unwrap();
    assert!(
        log.contains("PROXY_MODE=dedicated") && log.contains("15008"),
        "{log}"
    );
}

#[test]
fn while_its_proxy_is_away_a_workload_is_cut_off_and_never_speaks_plaintext() {
    let world = WORLD.alone();
    let (client, server) = (world.pod("alone/client"), world.pod("alone/server"));
    let _echo = server.serve_echo(9101);
    assert!(client.reaches("server.alone:80"));
    world.kill(NEAR);
    let capture = world.capture();
    for _ in 0..3 {
        assert!(client.ask("alone/server:9101", b"MARKER-of-none").is_err());
    }
    assert_eq!(capture.end().with("MARKER-of-none"), 0);
    world.start_again(NEAR);
    assert!(client.reaches("server.alone:80"));
}

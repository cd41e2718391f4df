//! Each outcome has one record in the log of each proxy that saw it, and its counters, with the
//! right labels.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use ambit_tests::expect::eventually_true;
use ambit_tests::http;
use ambit_tests::metrics::Metrics;
use ambit_tests::network::CONTROLLER;
use ambit_tests::records::Record;
use ambit_tests::world::{CHANGE, World};
use serde_json::{Value, json};

use crate::mesh::{MESH, POLICED};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const FAILED: &str = "istio_tcp_connections_failed_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";
const SENT: &str = "istio_tcp_sent_bytes_total";

/// The proxy of the clients and that of `mesh/server`.
const NEAR: &str = "ztunnel-n1";
const FAR: &str = "ztunnel-n2";

/// Labels or fields with their values.
type Pairs<'a> = Vec<(&'a str, &'a str)>;

/// How one proxy tells of one connection.
struct Told<'a> {
    program: &'a str,
    /// The flag that it is counted with.
    flag: &'a str,
    /// Further labels of its counters.
    labels: Pairs<'a>,
    /// What its one record says.
    fields: Pairs<'a>,
}

impl<'a> Told<'a> {
    /// By the proxy of the client.
    fn near(flag: &'a str, labels: Pairs<'a>, mut fields: Pairs<'a>) -> Self {
        fields.push(("direction", "outbound"));
        Self::by(NEAR, "source", flag, labels, fields)
    }

    /// By the proxy of the server.
    fn far(flag: &'a str, labels: Pairs<'a>, mut fields: Pairs<'a>) -> Self {
        fields.push(("direction", "inbound"));
        Self::by(FAR, "destination", flag, labels, fields)
    }

    fn by(
        program: &'a str,
        reporter: &'a str,
        flag: &'a str,
        mut labels: Pairs<'a>,
        fields: Pairs<'a>,
    ) -> Self {
        labels.extend([("reporter", reporter), ("request_protocol", "tcp")]);
        Self {
            program,
            flag,
            labels,
            fields,
        }
    }

    /// What a connection with these labels adds: counter, flag if it matters, and by how much.
    fn counts(&self) -> [(&'static str, Option<&'a str>, f64); 6] {
        let failed = if self.flag == "-" { 0.0 } else { 1.0 };
        // Opened is counted before anybody knows how it will end.
        [
            (OPENED, Some("-"), 1.0),
            (OPENED, None, 1.0),
            (CLOSED, Some(self.flag), 1.0),
            (CLOSED, None, 1.0),
            (FAILED, Some(self.flag), failed),
            (FAILED, None, failed),
        ]
    }

    fn sum(&self, metrics: &Metrics, name: &str, flag: Option<&str>) -> f64 {
        let mut labels = self.labels.clone();
        labels.extend(flag.map(|flag| ("response_flags", flag)));
        metrics.sum(name, &labels)
    }
}

/// Lets one connection happen; then each proxy of `told`, and no other, has one record of it and
/// has counted it once. The port in the record's fields is one that no other test uses.
#[track_caller]
fn one_connection(world: &World, told: &[Told<'_>], happen: impl FnOnce()) -> Vec<Record> {
    let before: BTreeMap<&str, Metrics> = [NEAR, FAR]
        .map(|program| (program, world.metrics(program)))
        .into();
    happen();
    let mut records = Vec::new();
    for told in told {
        let Told {
            program,
            labels,
            fields,
            ..
        } = told;
        let start = &before[program];
        for (name, flag, by) in told.counts() {
            let grown = |now: &Metrics| told.sum(now, name, flag) - told.sum(start, name, flag);
            eventually_true(
                CHANGE,
                &format!("{program} {name}{labels:?} {flag:?}"),
                || grown(&world.metrics(program)) >= by,
            );
            let grown = grown(&world.metrics(program));
            assert!(
                (grown - by).abs() < f64::EPSILON,
                "{program} {name}{labels:?} {flag:?} grew by {grown}, not {by}"
            );
        }
        let found = world.wait_records(program, fields, 1);
        assert_eq!(found.len(), 1, "{program} {fields:?}: {found:?}");
        records.extend(found);
    }
    for program in [NEAR, FAR] {
        if told.iter().all(|told| told.program != program) {
            let (start, now) = (&before[program], world.metrics(program));
            let grown = now.sum(CLOSED, &[]) - start.sum(CLOSED, &[]);
            assert!(grown < f64::EPSILON, "{program} counted {grown}");
        }
    }
    records
}

/// The labels of a connection from `mesh/client` to `mesh/server` over mutual TLS.
const MUTUAL: [(&str, &str); 7] = [
    (
        "source_principal",
        "spiffe://cluster.local/ns/mesh/sa/client",
    ),
    (
        "destination_principal",
        "spiffe://cluster.local/ns/mesh/sa/server",
    ),
    ("source_workload", "client"),
    ("source_workload_namespace", "mesh"),
    ("destination_workload", "server"),
    ("destination_workload_namespace", "mesh"),
    ("connection_security_policy", "mutual_tls"),
];

/// The fields of a record of it.
const ENDS: [(&str, &str); 5] = [
    ("src.workload", "client"),
    ("src.namespace", "mesh"),
    ("src.identity", "spiffe://cluster.local/ns/mesh/sa/client"),
    ("dst.workload", "server"),
    ("dst.namespace", "mesh"),
];

/// [`ENDS`] of a connection to this port of `mesh/server`, and how it ended.
fn ends<'a>(port: &'a str, error: &'a str) -> Pairs<'a> {
    let mut fields = ENDS.to_vec();
    fields.extend([("dst.hbone_addr", port), ("error", error)]);
    fields
}

fn policy(action: &str, rules: &Value) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "case", "namespace": "mesh"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}}, "action": action, "rules": rules,
        },
    })
    .to_string()
}

#[test]
fn a_connection_is_one_record_and_one_count_at_each_proxy_with_both_identities() {
    let world = POLICED.alone();
    let _app = world
        .pod("mesh/server")
        .serve(8080, |mut stream, _| async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut question = Vec::new();
            stream.read_to_end(&mut question).await?;
            stream.write_all(&[7; 22]).await?;
            stream.shutdown().await
        });
    let mut labels = MUTUAL.to_vec();
    labels.extend([
        ("destination_service", "server.mesh.svc.cluster.local"),
        ("destination_service_name", "server"),
        ("destination_service_namespace", "mesh"),
    ]);
    let mut fields = ends("*:8080", "");
    fields.extend([
        ("dst.service", "server.mesh.svc.cluster.local"),
        ("dst.identity", "spiffe://cluster.local/ns/mesh/sa/server"),
    ]);
    let with = |sent, received| {
        let mut fields = fields.clone();
        fields.extend([("bytes_sent", sent), ("bytes_recv", received)]);
        fields
    };
    let told = [
        Told::near("-", labels.clone(), with("11", "22")),
        Told::far("-", labels.clone(), with("22", "11")),
    ];
    let bytes = |metrics: &Metrics, told: &Told<'_>| {
        [RECEIVED, SENT].map(|name| told.sum(metrics, name, Some("-")))
    };
    let before = told
        .each_ref()
        .map(|told| bytes(&world.metrics(told.program), told));
    one_connection(&world, &told, || {
        let answer = world
            .pod("mesh/client")
            .ask("server.mesh:80", b"eleven byte");
        assert_eq!(answer.unwrap().len(), 22);
    });
    for (told, before) in told.iter().zip(before) {
        let after = bytes(&world.metrics(told.program), told);
        let grown = [after[0] - before[0], after[1] - before[1]];
        // Both count what the client sent as received, as Istio does.
        assert_eq!(grown, [11.0, 22.0], "{}", told.program);
    }
}

#[test]
fn a_denied_connection_is_recorded_with_the_policy_that_denied_it() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9511);
    let rules = json!([{"to": [{"operation": {"ports": ["9511"]}}]}]);
    let _applied = world.apply_for_now("case", &policy("DENY", &rules));
    world.eventually("the policy is in force", || {
        !world.pod("mesh/third").reaches("mesh/server:9511")
    });
    let told = [
        Told::near("CONNECT", MUTUAL.into(), ends("*:9511", "http status: 401")),
        Told::far("DENY", MUTUAL.into(), ends("*:9511", "*mesh/case")),
    ];
    one_connection(&world, &told, || {
        assert!(!world.pod("mesh/client").reaches("mesh/server:9511"));
    });
}

#[test]
fn a_connection_that_a_change_ends_is_recorded_once_and_as_denied() {
    let world = POLICED.alone();
    let _app = world
        .pod("mesh/server")
        .serve_ticks(9512, Duration::from_millis(50));
    let far = "connection reset by the far side";
    let changed = "*connection closed due to policy change";
    let told = [
        Told::near("-", MUTUAL.into(), ends("*:9512", far)),
        Told::far("DENY", MUTUAL.into(), ends("*:9512", changed)),
    ];
    one_connection(&world, &told, || {
        let client = world.pod("mesh/client");
        let mut live = client.connect("mesh/server:9512").unwrap();
        live.read_exact(&mut [0; 4]).unwrap();
        let rules = json!([{"from": [{"source": {"principals": [
            "cluster.local/ns/mesh/sa/client"
        ]}}]}]);
        let _applied = world.apply_for_now("case", &policy("DENY", &rules));
        live.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        eventually_true(
            CHANGE,
            "the connection is closed",
            || !matches!(live.read(&mut [0; 64]), Ok(length) if length > 0),
        );
    });
    // The next case begins without the policy.
    world.eventually("the client is let in again", || {
        let again = world.pod("mesh/client").connect("mesh/server:9512");
        again.is_ok_and(|mut stream| stream.read(&mut [0; 4]).is_ok_and(|length| length > 0))
    });
}

#[test]
fn plaintext_where_it_is_not_allowed_is_recorded_without_an_identity() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9513);
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "case", "namespace": "mesh"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    let applied = world.apply_for_now("case", &strict.to_string());
    world.eventually("STRICT is in force", || {
        !world.pod("outside/far").reaches("mesh/server:9513")
    });
    let labels = vec![
        ("source_principal", "unknown"),
        ("source_workload", "plain"),
        ("source_workload_namespace", "outside"),
        ("destination_workload", "server"),
        ("destination_workload_namespace", "mesh"),
        ("connection_security_policy", "unknown"),
    ];
    let fields = vec![
        ("dst.addr", "*:9513"),
        ("src.workload", "plain"),
        ("src.identity", ""),
        ("dst.hbone_addr", ""),
        ("dst.workload", "server"),
        ("error", "*istio_converted_static_strict"),
    ];
    one_connection(&world, &[Told::far("DENY", labels, fields)], || {
        assert!(!world.pod("outside/plain").reaches("mesh/server:9513"));
    });
    drop(applied);
    // The next case begins without STRICT.
    world.eventually("plaintext is let in again", || {
        world.pod("outside/plain").reaches("mesh/server:9513")
    });
}

#[test]
fn a_port_that_nobody_serves_is_recorded_at_both_proxies_as_a_failure() {
    let world = POLICED.alone();
    let told = [
        Told::near("CONNECT", MUTUAL.into(), ends("*:9514", "http status: 503")),
        Told::far("CONNECT", MUTUAL.into(), ends("*:9514", "*refused")),
    ];
    one_connection(&world, &told, || {
        let Ok(mut stream) = world.pod("mesh/client").connect("mesh/server:9514") else {
            return;
        };
        let _ = stream.write_all(b"anybody?");
        let _ = stream.read(&mut [0; 1]);
    });
}

#[test]
fn a_service_without_a_healthy_endpoint_is_recorded_at_the_clients_proxy() {
    let world = POLICED.alone();
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: empty, namespace: mesh}\nspec:\n  clusterIP: 10.96.0.201\n  clusterIPs: [10.96.0.201]\n  selector: {app: nobody}\n  ports: [{name: tcp, port: 9515, targetPort: 9515}]\n";
    let _applied = world.apply_for_now("case", text);
    world.eventually("the service is known", || {
        let known = world.config_dump(NEAR).unwrap()["services"].to_string();
        known.contains("empty.mesh.svc.cluster.local")
    });
    let labels = vec![
        ("source_workload", "client"),
        ("source_workload_namespace", "mesh"),
        ("destination_workload", "unknown"),
        ("destination_service", "empty.mesh.svc.cluster.local"),
    ];
    let fields = vec![
        ("src.workload", "client"),
        ("dst.addr", "10.96.0.201:9515"),
        ("dst.service", "empty.mesh.svc.cluster.local"),
        ("error", "*no healthy upstream"),
    ];
    one_connection(&world, &[Told::near("CONNECT", labels, fields)], || {
        assert!(!world.pod("mesh/client").reaches("10.96.0.201:9515"));
    });
}

#[test]
fn plaintext_that_is_allowed_in_is_recorded_without_an_identity() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9517);
    let labels = vec![
        ("source_principal", "unknown"),
        ("source_workload", "plain"),
        ("source_workload_namespace", "outside"),
        ("destination_workload", "server"),
        ("destination_workload_namespace", "mesh"),
        ("connection_security_policy", "unknown"),
    ];
    let fields = vec![
        ("dst.addr", "*:9517"),
        ("src.workload", "plain"),
        ("src.identity", ""),
        ("dst.hbone_addr", ""),
        ("dst.workload", "server"),
        ("error", ""),
    ];
    one_connection(&world, &[Told::far("-", labels, fields)], || {
        assert!(world.pod("outside/plain").reaches("mesh/server:9517"));
    });
}

#[test]
fn what_leaves_the_mesh_is_recorded_at_the_clients_proxy() {
    let world = POLICED.alone();
    let _app = world.pod("outside/far").serve_echo(9518);
    let labels = vec![
        ("source_principal", "unknown"),
        ("source_workload", "client"),
        ("source_workload_namespace", "mesh"),
        ("destination_workload", "far"),
        ("destination_workload_namespace", "outside"),
        ("connection_security_policy", "unknown"),
    ];
    let fields = |port, error| {
        vec![
            ("dst.addr", port),
            ("src.workload", "client"),
            ("src.identity", ""),
            ("dst.hbone_addr", ""),
            ("dst.workload", "far"),
            ("dst.identity", ""),
            ("error", error),
        ]
    };
    let told = [Told::near("-", labels.clone(), fields("*:9518", ""))];
    one_connection(&world, &told, || {
        assert!(world.pod("mesh/client").reaches("outside/far:9518"));
    });
    let told = [Told::near("CONNECT", labels, fields("*:9519", "*refused"))];
    one_connection(&world, &told, || {
        assert!(!world.pod("mesh/client").reaches("outside/far:9519"));
    });
}

#[test]
fn label_sets_are_bounded_and_expire() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9520);
    let restart = |most: &str, idle: &str| {
        let programs = world.programs();
        programs.set(FAR, "METRICS_MAX_LABEL_SETS", most);
        programs.set(FAR, "METRICS_IDLE_TIMEOUT", idle);
        world.kill(FAR);
        world.start_again(FAR);
    };
    restart("3", "1s");
    let config = world.config_dump(FAR).unwrap()["config"]["metrics"].clone();
    assert_eq!(config["sets"], 3);
    let clients = [
        "mesh/client",
        "mesh/near",
        "other/stranger",
        "outside/plain",
        "outside/far",
    ];
    let shared = [
        ("source_workload", "_overflow"),
        ("reporter", "destination"),
    ];
    world.eventually("more clients than sets share a set", || {
        for client in clients {
            let _ = world.pod(client).reaches("mesh/server:9520");
        }
        let metrics = world.metrics(FAR);
        let all = metrics.find(OPENED, &[]).count();
        let shared = metrics.find(OPENED, &shared).count();
        assert!(all - shared <= 3, "{all} sets, {shared} of them shared");
        assert!((metrics.sum("ambit_metrics_label_sets_limit", &[]) - 3.0).abs() < 0.1);
        shared > 0
    });
    world.eventually("sets that nothing uses are gone", || {
        world.metrics(FAR).find(OPENED, &[]).count() == 0
    });
    let figure = |name| world.metrics(FAR).sum(name, &[]);
    assert!(figure("ambit_metrics_label_sets_expired_total") >= 4.0);
    // There is room again for a client's own name.
    let own = [("source_workload", "client"), ("response_flags", "-")];
    world.eventually("a client is counted by name", || {
        assert!(world.pod("mesh/client").reaches("mesh/server:9520"));
        world.metrics(FAR).sum(OPENED, &own) >= 1.0
    });
    restart("8192", "15m");
    world.eventually("traffic returns", || {
        world.pod("mesh/client").reaches("mesh/server:9520")
    });
}

#[test]
fn a_reset_by_an_application_is_recorded_and_is_no_failure_of_the_mesh() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_reset(9516);
    let reset = |side| ends("*:9516", side);
    let told = [
        Told::near(
            "-",
            MUTUAL.into(),
            reset("connection reset by the far side"),
        ),
        Told::far(
            "-",
            MUTUAL.into(),
            reset("connection reset by the near side"),
        ),
    ];
    one_connection(&world, &told, || {
        let client = world.pod("mesh/client");
        let mut stream = client.connect("mesh/server:9516").unwrap();
        stream.write_all(b"x").unwrap();
        stream.read(&mut [0; 1]).expect_err("a reset");
    });
}

#[test]
fn byte_counters_move_while_a_connection_is_open() {
    let world = POLICED.alone();
    let every = Duration::from_millis(50);
    let _app = world.pod("mesh/server").serve_ticks(9521, every);
    let sent = |program, reporter| {
        let labels = [("reporter", reporter), ("source_workload", "third")];
        world.metrics(program).sum(SENT, &labels)
    };
    let before = sent(FAR, "destination");
    let third = world.pod("mesh/third");
    let mut stream = third.connect("mesh/server:9521").unwrap();
    let mut tick = || stream.read_exact(&mut [0; 4]).unwrap();
    for more in [1.0, 20.0] {
        world.eventually("both reporters count what was sent so far", || {
            tick();
            let now = [sent(FAR, "source"), sent(FAR, "destination")];
            now.iter().all(|now| *now >= before + more)
        });
    }
}

#[test]
fn the_state_of_a_proxy_can_be_read() {
    let world = MESH.with_others();
    let _app = world
        .pod("mesh/server")
        .serve_ticks(9503, Duration::from_millis(100));
    let mut stream = world
        .pod("mesh/client")
        .connect("mesh/server:9503")
        .unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    let dump = world.config_dump(FAR).unwrap();
    for key in [
        "workloads",
        "services",
        "policies",
        "certificates",
        "config",
        "workloadState",
    ] {
        assert!(dump.get(key).is_some(), "no {key}");
    }
    let server = world.pod("mesh/server");
    let held = dump["certificates"].as_array().unwrap().iter();
    let mine = held.filter(|held| held["identity"] == server.identity().as_str());
    let states: Vec<_> = mine.map(|held| held["state"].clone()).collect();
    assert_eq!(states, ["Available"]);
    let text = dump.to_string();
    assert!(!text.contains("PRIVATE KEY"), "a dump holds no secret");
    assert!(
        dump["workloadState"]
            .to_string()
            .contains(&format!("{}:9503", server.ipv4()))
    );
}

#[test]
fn a_proxy_says_who_it_is_and_how_it_does() {
    let world = MESH.with_others();
    for node in [NEAR, FAR] {
        let metrics = world.metrics(node);
        let build = metrics
            .find("istio_build", &[("component", "ztunnel")])
            .next();
        assert!(build.is_some_and(|sample| sample.value >= 1.0));
        let pods = if node == NEAR { 3.0 } else { 2.0 };
        assert!(metrics.sum("workload_manager_active_proxy_count", &[]) >= pods);
        assert!(metrics.sum("process_open_fds", &[]) > 10.0);
        assert!(metrics.sum("istio_xds_message_total", &[]) >= 1.0);
        for nothing_amiss in [
            "ambit_log_lines_dropped_total",
            "ambit_policies_not_understood",
        ] {
            let found: Vec<_> = metrics.find(nothing_amiss, &[]).collect();
            assert!(matches!(&found[..], [one] if one.value < 0.5), "{found:?}");
        }
    }
}

#[test]
fn the_admin_port_is_for_the_machine_itself() {
    let world = MESH.with_others();
    let own = SocketAddr::from(([127, 0, 0, 1], 15000));
    assert!(http::get(world.netns("n1"), own, "/config_dump").is_ok());
    for (address, port) in [(world.node_address(1), 15000), (CONTROLLER.into(), 15014)] {
        let to = SocketAddr::new(address, port);
        let asked = http::get(world.netns("n2"), to, "/config_dump");
        assert!(asked.is_err(), "{to}");
    }
}

//! Each outcome has one record in the log of each proxy, and its counters, with the right labels.

use std::io::{Read, Write};
use std::time::Duration;

use ambit_tests::metrics::Metrics;
use ambit_tests::world::World;
use serde_json::json;

use crate::mesh::{MESH, POLICED};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const FAILED: &str = "istio_tcp_connections_failed_total";

/// A counter's name, labels, and by how much it grows.
type Counter<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// How a counter grew while something happened, once it has grown by what was expected.
fn grows(world: &World, program: &str, counters: &[Counter<'_>], happen: impl FnOnce()) {
    let before: Metrics = world.metrics(program);
    happen();
    for (name, labels, by) in counters {
        let start = before.sum(name, labels);
        world.wait_metric(program, name, labels, start + by);
    }
    let after = world.metrics(program);
    for (name, labels, by) in counters {
        let grown = after.sum(name, labels) - before.sum(name, labels);
        assert!(
            (grown - by).abs() < f64::EPSILON,
            "{program} {name}{labels:?} grew by {grown}"
        );
    }
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
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/server"));
    let (from, to) = (client.identity(), server.identity());
    let labels: Vec<(&str, &str)> = vec![
        ("source_principal", &from),
        ("destination_principal", &to),
        ("source_workload", "client"),
        ("source_workload_namespace", "mesh"),
        ("destination_workload", "server"),
        ("destination_workload_namespace", "mesh"),
        ("destination_service", "server.mesh.svc.cluster.local"),
        ("destination_service_name", "server"),
        ("destination_service_namespace", "mesh"),
        ("connection_security_policy", "mutual_tls"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
    ];
    let bytes = [
        "istio_tcp_received_bytes_total",
        "istio_tcp_sent_bytes_total",
    ];
    for (program, reporter) in [("ztunnel-n1", "source"), ("ztunnel-n2", "destination")] {
        let mut labels = labels.clone();
        labels.push(("reporter", reporter));
        let counters: [Counter<'_>; 4] = [
            (OPENED, &labels, 1.0),
            (CLOSED, &labels, 1.0),
            (bytes[0], &labels, 11.0),
            (bytes[1], &labels, 22.0),
        ];
        grows(&world, program, &counters, || {
            assert_eq!(
                client.ask("server.mesh:80", b"eleven byte").unwrap().len(),
                22
            );
        });
    }
    let common = [
        ("src.workload", "client"),
        ("src.namespace", "mesh"),
        ("dst.workload", "server"),
        ("dst.namespace", "mesh"),
        ("dst.service", "server.mesh.svc.cluster.local"),
        ("src.identity", from.as_str()),
        ("dst.identity", to.as_str()),
    ];
    for (program, direction, sent, received) in [
        ("ztunnel-n1", "outbound", "11", "22"),
        ("ztunnel-n2", "inbound", "22", "11"),
    ] {
        let mut fields = common.to_vec();
        fields.extend([
            ("direction", direction),
            ("bytes_sent", sent),
            ("bytes_recv", received),
        ]);
        let found = world.wait_records(program, &fields, 2);
        assert_eq!(found.len(), 2, "one record for each of the two connections");
        assert!(found.iter().all(|record| record.get("error").is_empty()));
    }
}

#[test]
fn a_denied_connection_is_counted_and_recorded_as_denied() {
    let world = POLICED.alone();
    let _app = world.pod("mesh/server").serve_echo(9501);
    let text = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "case", "namespace": "mesh"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}}, "action": "DENY",
            "rules": [{"to": [{"operation": {"ports": ["9501"]}}]}],
        },
    });
    let _applied = world.apply_for_now("case", &text.to_string());
    world.eventually("the policy is in force", || {
        !world.pod("mesh/third").reaches("mesh/server:9501")
    });
    let labels = [
        ("reporter", "destination"),
        ("source_workload", "client"),
        ("destination_workload", "server"),
        ("response_flags", "DENY"),
    ];
    grows(
        &world,
        "ztunnel-n2",
        &[(FAILED, &labels, 1.0), (CLOSED, &labels, 1.0)],
        || {
            assert!(!world.pod("mesh/client").reaches("mesh/server:9501"));
        },
    );
    let fields = [
        ("src.workload", "client"),
        ("direction", "inbound"),
        ("error", "*denied by: mesh/case"),
    ];
    world.wait_records("ztunnel-n2", &fields, 1);
}

#[test]
fn a_closed_port_is_recorded_at_both_proxies_as_a_failure() {
    let world = POLICED.alone();
    let labels = [("reporter", "destination"), ("source_workload", "near")];
    grows(&world, "ztunnel-n2", &[(FAILED, &labels, 1.0)], || {
        let Ok(mut stream) = world.pod("mesh/near").connect("mesh/server:9998") else {
            return;
        };
        let _ = stream.write_all(b"anybody?");
        let _ = stream.read(&mut [0; 1]);
    });
    for (program, direction) in [("ztunnel-n1", "outbound"), ("ztunnel-n2", "inbound")] {
        let fields = [
            ("src.workload", "near"),
            ("direction", direction),
            ("dst.hbone_addr", "*:9998"),
        ];
        let found = world.wait_records(program, &fields, 1);
        assert!(
            found.iter().all(|record| !record.get("error").is_empty()),
            "{found:?}"
        );
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
    let dump = world.config_dump("ztunnel-n2").unwrap();
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
    for (node, pods) in [("ztunnel-n1", 3.0), ("ztunnel-n2", 2.0)] {
        let metrics = world.metrics(node);
        let build = metrics
            .find("istio_build", &[("component", "ztunnel")])
            .next();
        assert!(build.is_some_and(|sample| sample.value >= 1.0));
        assert!((metrics.sum("workload_manager_active_proxy_count", &[]) - pods).abs() < 0.1);
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

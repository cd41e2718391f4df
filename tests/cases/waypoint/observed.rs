//! Each outcome of a request is one record and one count, with the right labels.

use ambit_tests::http::call;
use ambit_tests::metrics::Metrics;
use ambit_tests::world::World;
use http::Method;

use super::rules::{policy, wait};
use super::{WAYPOINT, WORLD, serve};

/// One request and what is said of it.
struct Outcome {
    url: &'static str,
    code: &'static str,
    flags: &'static str,
    /// The service whose answer it is; `unknown` if none was reached.
    service: &'static str,
    /// The workload that was asked.
    server: &'static str,
}

const fn outcome(
    url: &'static str,
    code: &'static str,
    flags: &'static str,
    service: &'static str,
    server: &'static str,
) -> Outcome {
    Outcome {
        url,
        code,
        flags,
        service,
        server,
    }
}

const OUTCOMES: [Outcome; 7] = [
    outcome("shop.mesh/seen", "200", "-", "v1", "v1"),
    outcome("ruled.mesh/seen", "403", "-", "unknown", "unknown"),
    outcome("narrow.mesh/seen", "404", "NR", "unknown", "unknown"),
    outcome("shop.mesh/missing/seen", "500", "NC", "unknown", "unknown"),
    outcome("shop.mesh/empty/seen", "503", "UH", "empty", "unknown"),
    outcome("shop.mesh/shut/seen", "503", "URX,UC", "shut", "v1"),
    outcome("shop.mesh/delay/5000/seen", "504", "UT", "v1", "v1"),
];

/// What is counted once for each request.
const COUNTED: [&str; 4] = [
    "istio_requests_total",
    "istio_request_duration_milliseconds_count",
    "istio_request_bytes_count",
    "istio_response_bytes_count",
];

/// What the waypoint counts of `labels`, once `wanted` has been reached.
#[track_caller]
fn grows_by_one(world: &World, before: &Metrics, name: &str, labels: &[(&str, &str)]) {
    let wanted = before.sum(name, labels) + 1.0;
    world.wait_metric(WAYPOINT, name, labels, wanted);
    let found = world.metrics(WAYPOINT).sum(name, labels);
    assert!((found - wanted).abs() < 0.1, "{name}{labels:?}: {found}");
}

#[test]
fn each_outcome_is_one_record_and_one_count_with_reporter_waypoint() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let deny = policy("seen", "DENY", "  - to: [{operation: {paths: [/seen*]}}]");
    let _applied = world.apply_for_now("seen", &deny);
    wait(&world, "mesh/other", &Method::GET, "/seen/wait", 403);
    let client = world.pod("mesh/client");
    for Outcome {
        url,
        code,
        flags,
        service,
        server,
    } in OUTCOMES
    {
        let host = match service {
            "unknown" => service.to_owned(),
            known => format!("{known}.mesh.svc.cluster.local"),
        };
        let principal = match server {
            "unknown" => server.to_owned(),
            known => world.pod(&format!("mesh/{known}")).identity(),
        };
        let namespace = |name| if name == "unknown" { name } else { "mesh" };
        let labels = [
            ("reporter", "waypoint"),
            ("source_workload", "client"),
            ("source_workload_namespace", "mesh"),
            ("source_principal", &client.identity()[..]),
            ("source_canonical_service", "client"),
            ("source_app", "client"),
            ("destination_service", &host[..]),
            ("destination_service_name", service),
            ("destination_service_namespace", namespace(service)),
            ("destination_workload", server),
            ("destination_workload_namespace", namespace(server)),
            ("destination_principal", &principal[..]),
            ("request_protocol", "http"),
            ("response_code", code),
            ("grpc_response_status", "unknown"),
            ("response_flags", flags),
            ("connection_security_policy", "mutual_tls"),
        ];
        let before = world.metrics(WAYPOINT);
        let answer = client.get(&format!("http://{url}")).unwrap();
        assert_eq!(answer.status.as_str(), code, "{url}");
        for name in COUNTED {
            grows_by_one(&world, &before, name, &labels);
        }
        let bytes = |metrics: &Metrics| metrics.sum("istio_response_bytes_sum", &labels);
        let sent = bytes(&world.metrics(WAYPOINT)) - bytes(&before);
        assert!(
            (sent - answer.body.len() as f64).abs() < 0.1,
            "{url}: {sent}"
        );
        if code != "200" {
            let any = [("source_workload", "client"), ("response_code", code)];
            grows_by_one(&world, &before, COUNTED[0], &any);
        }
        let (authority, path) = url.split_once('/').unwrap();
        let path = format!("/{path}");
        let found = world.wait_records(WAYPOINT, &[("path", &path), ("authority", authority)], 1);
        let length = answer.body.len().to_string();
        let fields = [
            ("method", "GET"),
            ("response_code", code),
            ("response_flags", flags),
            ("bytes_sent", &length),
        ];
        assert!(
            found.len() == 1 && found[0].has(&fields),
            "{url}: {found:?}"
        );
    }
}

#[test]
fn grpc_is_counted_as_what_it_is() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let client = world.pod("mesh/client");
    let before = world.metrics(WAYPOINT);
    let called = call(client, "h2.mesh:81", "/shop.Cart/Seen", &[], &["one"]).unwrap();
    assert_eq!(called.status(), "0");
    let grpc = [
        ("reporter", "waypoint"),
        ("source_workload", "client"),
        ("destination_service", "h2.mesh.svc.cluster.local"),
        ("destination_workload", "v1"),
        ("request_protocol", "grpc"),
        ("response_code", "200"),
        ("grpc_response_status", "0"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    grows_by_one(&world, &before, COUNTED[0], &grpc);
    let found = world.wait_records(WAYPOINT, &[("path", "/shop.Cart/Seen")], 1);
    assert_eq!(found.len(), 1);
    let metrics = world.metrics(WAYPOINT);
    let dropped = metrics.find("ambit_log_lines_dropped_total", &[]).next();
    assert!(dropped.is_some_and(|sample| sample.value < 0.5));
    // The node proxy behind the waypoint sees the waypoint as the client.
    let fields = [
        ("direction", "inbound"),
        ("src.workload", "waypoint"),
        ("dst.workload", "v1"),
    ];
    world.wait_records("ztunnel-n2", &fields, 1);
}

#[test]
fn label_sets_of_a_waypoint_are_bounded_and_expire() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let restart = |most: &str, idle: &str| {
        let programs = world.programs();
        programs.set(WAYPOINT, "METRICS_MAX_LABEL_SETS", most);
        programs.set(WAYPOINT, "METRICS_IDLE_TIMEOUT", idle);
        world.kill(WAYPOINT);
        world.start_again(WAYPOINT);
    };
    restart("3", "1s");
    let client = world.pod("mesh/client");
    let (requests, overflow) = (COUNTED[0], [("destination_service", "_overflow")]);
    world.eventually("more statuses than sets share a set", || {
        for status in 200..206 {
            let _ = client.get(&format!("http://shop.mesh/status/{status}"));
        }
        let metrics = world.metrics(WAYPOINT);
        let all = metrics.find(requests, &[]).count();
        let shared = metrics.find(requests, &overflow).count();
        assert!(all - shared <= 3, "{all} sets, {shared} of them shared");
        assert!((metrics.sum("ambit_metrics_label_sets_limit", &[]) - 3.0).abs() < 0.1);
        shared > 0
    });
    world.eventually("sets that nothing uses are gone", || {
        world.metrics(WAYPOINT).find(requests, &[]).count() == 0
    });
    let expired = world
        .metrics(WAYPOINT)
        .sum("ambit_metrics_label_sets_expired_total", &[]);
    assert!(expired >= 4.0, "{expired}");
    restart("8192", "15m");
}

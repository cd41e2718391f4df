//! What a node proxy counts: Istio's names, and Istio's word on which of them last.

use crate::mesh::MESH;

const NEAR: &str = "ztunnel-n1";

/// What Istio's node proxy counts: what dashboards may rely on, and what may still change.
const STABLE: [&str; 7] = [
    "istio_tcp_connections_opened",
    "istio_tcp_connections_closed",
    "istio_tcp_received_bytes",
    "istio_tcp_sent_bytes",
    "istio_build",
    "process_open_fds",
    "process_max_fds",
];
const UNSTABLE: [&str; 16] = [
    "istio_tcp_connections_failed",
    "istio_tcp_sockets_open",
    "istio_on_demand_dns",
    "istio_crl_policy_rejections",
    "istio_dns_requests",
    "istio_dns_upstream_requests",
    "istio_dns_upstream_failures",
    "istio_dns_upstream_request_duration_seconds",
    "istio_xds_connection_terminations",
    "istio_xds_message",
    "istio_xds_message_bytes",
    "workload_manager_active_proxy_count",
    "workload_manager_pending_proxy_count",
    "workload_manager_proxies_started",
    "workload_manager_proxies_stopped",
    "istio_crl_untracked_connections",
];

#[test]
fn what_istio_counts_too_has_its_name_and_says_whether_it_is_stable() {
    let world = MESH.with_others();
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/server"));
    let _echo = server.serve_echo(9507);
    client.ask("mesh/server:9507", b"counted").unwrap();
    let shown = || world.metrics_page(NEAR);
    world.eventually("all that is stable is shown", || {
        let page = shown();
        let told: Vec<_> = page.lines().filter_map(told).collect();
        let there = |name: &&str| told.iter().any(|(told, _)| *told == *name);
        STABLE.iter().all(there)
    });
    let page = shown();
    for (name, help) in page.lines().filter_map(told) {
        let istios = name.starts_with("istio_") || name.starts_with("workload_manager_");
        let stable = STABLE.contains(&name);
        assert!(!istios || stable || UNSTABLE.contains(&name), "{name}");
        if istios || stable {
            assert_eq!(help.contains("unstable"), !stable, "{name}: {help}");
        }
    }
}

/// The family and the help of a line that says what a metric is.
fn told(line: &str) -> Option<(&str, &str)> {
    let (name, help) = line.strip_prefix("# HELP ")?.split_once(' ')?;
    Some((name.strip_suffix("_total").unwrap_or(name), help))
}

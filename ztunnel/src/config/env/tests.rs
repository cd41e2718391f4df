//! Which variable does what, one row each.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ambit_observe::metrics::Limits;
use ambit_relay::tcp::Bulk;

use super::{Machine, read};
use crate::config::{Compliance, DnsAddress, Mode, OriginalSource, Roots, Settings, Source, Token};
use crate::dns::places::Conf;

fn settings(variables: &[(&str, &str)], machine: &Machine) -> Result<Settings, Vec<String>> {
    let variables: BTreeMap<String, String> = variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    read(variables, machine).map_err(|all| all.into_iter().map(|p| p.name).collect())
}

fn two_cpus() -> Machine {
    Machine {
        cpus: 2,
        ..Machine::default()
    }
}

#[test]
fn starts_with_nothing_set() {
    let s = settings(&[], &two_cpus()).unwrap();
    assert_eq!(s.num_worker_threads, 2);
    assert_eq!(s.packet_mark, 1337);
    assert_eq!(s.termination_deadline, Duration::from_secs(5));
    assert_eq!(s.original_source, OriginalSource::Auto);
    assert_eq!(s.ca.address, "https://localhost:15012");
    assert_eq!(
        s.ca.roots,
        Roots::File("./var/run/secrets/istio/root-cert.pem".into())
    );
    assert_eq!(s.auth, None);
    assert_eq!(s.admin_addr.to_string(), "127.0.0.1:15000");
    assert_eq!(s.stats_addr.to_string(), "[::]:15020");
    assert_eq!(s.metrics, Limits::default());
    assert!(s.same_node_direct && s.splice_enabled && s.early_data);
}

#[test]
fn splicing_can_be_turned_off_and_is_shown() {
    let bulk = |rows| settings(rows, &two_cpus()).unwrap().bulk();
    assert_eq!(bulk(&[]), Bulk::Spliced);
    let off = [("SPLICE_ENABLED", "false")];
    assert_eq!(bulk(&off), Bulk::Copied);
    let shown = serde_json::to_value(settings(&off, &two_cpus()).unwrap()).unwrap();
    assert_eq!(shown["spliceEnabled"], false);
}

#[test]
fn certificates_come_from_spire_only_if_that_is_asked_for() {
    let wrong = [
        ("SPIRE_ADMIN_ENDPOINT_SOCKET", "/run/spire/admin.sock"),
        ("SPIFFE_ENDPOINT_SOCKET", "tcp://127.0.0.1:8081"),
    ];
    assert_eq!(settings(&wrong, &two_cpus()).unwrap().spire, None);
    let on = ("SPIRE_ENABLED", "true");
    assert_eq!(
        settings(&[on, wrong[0], wrong[1]], &two_cpus()).unwrap_err(),
        [wrong[0].0, wrong[1].0]
    );
    let plain = settings(&[on], &two_cpus()).unwrap().spire.unwrap();
    assert_eq!(plain.admin, Path::new("/run/spire/sockets/admin.sock"));
    assert_eq!(plain.workload, None);
    let rows = [
        on,
        ("SPIRE_ADMIN_ENDPOINT_SOCKET", "unix:///a/admin.sock"),
        ("SPIFFE_ENDPOINT_SOCKET", "unix:///a/agent.sock"),
    ];
    let both = settings(&rows, &two_cpus()).unwrap();
    let shown = serde_json::to_value(&both).unwrap();
    assert_eq!(
        shown["spire"],
        serde_json::json!({"admin": "/a/admin.sock", "workload": "/a/agent.sock"})
    );
}

#[test]
fn bounds_the_label_sets_of_metrics() {
    let rows = [
        ("METRICS_MAX_LABEL_SETS", "20"),
        ("METRICS_IDLE_TIMEOUT", "30s"),
    ];
    let s = settings(&rows, &two_cpus()).unwrap();
    let wanted = Limits {
        sets: 20,
        idle: Duration::from_secs(30),
    };
    assert_eq!(s.metrics, wanted);
}

#[test]
fn refuses_wrong_values_by_name_and_reports_them_all() {
    let wrong = [
        ("IPV6_ENABLED", "yes"),
        ("SECRET_TTL", "a day"),
        ("INSTANCE_IP", "here"),
        ("XDS_ADDRESS", "http://plain:15010"),
        ("CA_ADDRESS", ""),
        ("SPIRE_ENABLED", "yes"),
        ("CA_ROOT_CA", "/no/such/file"),
        ("AUTH_TOKEN", "/no/such/token"),
        ("LOG_FORMAT", "xml"),
        ("ACCESS_LOG_FILTER", "status == 500"),
        ("AUTHZ_POLICY_INFO_LOGGING", "on"),
        ("HTTP2_FRAME_SIZE", "12"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
        ("METRICS_MAX_LABEL_SETS", "0"),
        ("METRICS_IDLE_TIMEOUT", "10ms"),
        ("ZTUNNEL_WORKER_THREADS", "lots"),
        ("PROXY_CONFIG", "concurrency: [1"),
        ("ISTIO_METAJSON_LABELS", "{"),
        ("ISTIO_META_DNS_PROXY_ADDR", "localhost"),
    ];
    for row in wrong {
        assert_eq!(
            settings(&[row], &two_cpus()).unwrap_err(),
            vec![row.0.to_owned()]
        );
    }
    assert_eq!(
        settings(&wrong, &two_cpus()).unwrap_err().len(),
        wrong.len()
    );
}

#[test]
fn refuses_settings_it_would_otherwise_silently_not_follow() {
    for row in [
        ("COMPLIANCE_POLICY", "fips-140-2"),
        ("TLS12_ENABLED", "true"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
        ("PROXY_MODE", "sidecar"),
    ] {
        assert_eq!(
            settings(&[row], &two_cpus()).unwrap_err(),
            vec![row.0.to_owned()]
        );
    }
    assert!(
        settings(
            &[("PROXY_MODE", "shared"), ("TLS12_ENABLED", "false")],
            &two_cpus()
        )
        .is_ok()
    );
}

#[test]
fn a_proxy_of_one_workload_needs_to_know_which() {
    let dedicated = ("PROXY_MODE", "dedicated");
    let whom = |text| settings(&[dedicated, ("PROXY_WORKLOAD_INFO", text)], &two_cpus());
    let s = whom("shop/cart-1/cart").unwrap();
    let only = s.only().unwrap();
    let parts = [&only.namespace, &only.name, &only.service_account];
    assert_eq!(parts, ["shop", "cart-1", "cart"]);
    assert_eq!(
        (s.packet_mark, s.original_source),
        (0, OriginalSource::Off),
        "it needs no capability"
    );
    let rows = [
        dedicated,
        ("PROXY_WORKLOAD_INFO", "a/b/c"),
        ("PACKET_MARK", "1337"),
        ("ENABLE_ORIG_SRC", "true"),
    ];
    let asked = settings(&rows, &two_cpus()).unwrap();
    assert_eq!(
        (asked.packet_mark, asked.original_source),
        (1337, OriginalSource::Required)
    );
    let missing = settings(&[dedicated], &two_cpus()).unwrap_err();
    assert_eq!(missing, ["PROXY_WORKLOAD_INFO"]);
    for wrong in ["", "a", "a/b", "a//c", "a/b/c/d", "/b/c"] {
        assert_eq!(whom(wrong).unwrap_err(), ["PROXY_WORKLOAD_INFO"], "{wrong}");
    }
    let spire = [
        dedicated,
        ("PROXY_WORKLOAD_INFO", "a/b/c"),
        ("SPIRE_ENABLED", "true"),
    ];
    assert_eq!(
        settings(&spire, &two_cpus()).unwrap_err(),
        ["SPIRE_ENABLED"]
    );
    let alone = [("PROXY_WORKLOAD_INFO", "nonsense")];
    assert_eq!(settings(&alone, &two_cpus()).unwrap().mode, Mode::Shared);
}

#[test]
fn revocation_and_compliance_are_off_unless_they_are_asked_for() {
    let none = settings(&[("CRL_PATH", ""), ("COMPLIANCE_POLICY", "")], &two_cpus()).unwrap();
    assert_eq!(
        (none.crl_path, none.compliance_policy),
        (None, Compliance::None)
    );
    let rows = [("CRL_PATH", "/crl.pem"), ("COMPLIANCE_POLICY", "pqc")];
    let asked = settings(&rows, &two_cpus()).unwrap();
    assert_eq!(asked.crl_path, Some("/crl.pem".into()));
    assert_eq!(asked.compliance_policy, Compliance::Pqc);
}

#[test]
fn asks_on_demand_without_the_dns_proxy_only() {
    let on_demand = ("XDS_ON_DEMAND", "true");
    let no_dns = ("ISTIO_META_DNS_CAPTURE", "false");
    let refused = settings(&[on_demand], &two_cpus()).unwrap_err();
    assert_eq!(refused, ["XDS_ON_DEMAND"]);
    let s = settings(&[on_demand, no_dns], &two_cpus()).unwrap();
    assert!(s.xds_on_demand);
    assert!(!settings(&[no_dns], &two_cpus()).unwrap().xds_on_demand);
}

#[test]
fn takes_proxy_config_over_the_mesh_file_field_by_field() {
    let machine = Machine {
        mesh: Some(
            "defaultConfig:\n  discoveryAddress: mesh:15012\n  statsPort: 15520\n  \
             proxyMetadata: {A: mesh, B: mesh}\nrootNamespace: istio-system\n"
                .to_owned(),
        ),
        ..two_cpus()
    };
    let s = settings(
        &[
            (
                "PROXY_CONFIG",
                "discoveryAddress: env:15012\nproxyMetadata: {B: env}\nconcurrency: 3",
            ),
            ("ISTIO_META_C", "variable"),
        ],
        &machine,
    )
    .unwrap();
    assert_eq!(s.ca.address, "https://env:15012");
    assert_eq!(s.stats_addr.port(), 15520);
    assert_eq!(s.num_worker_threads, 3);
    let metadata: Vec<_> = s
        .proxy_metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(metadata, [("A", "mesh"), ("B", "env"), ("C", "variable")]);
}

#[test]
fn tells_a_token_from_a_path() {
    let machine = Machine {
        files: vec!["/t".to_owned()],
        token_file: true,
        ..two_cpus()
    };
    let auth = |value: &[(&str, &str)]| settings(value, &machine).unwrap().auth;
    assert_eq!(
        auth(&[("AUTH_TOKEN", "/t")]),
        Some(Token::File("/t".into()))
    );
    assert_eq!(
        auth(&[("AUTH_TOKEN", "ey.jj")]),
        Some(Token::Literal("ey.jj".to_owned()))
    );
    assert!(matches!(auth(&[]), Some(Token::File(_))));
}

#[test]
fn shows_no_secret_in_the_effective_settings() {
    let s = settings(
        &[("AUTH_TOKEN", "SECRET-1"), ("CA_HEADER_X-KEY", "SECRET-2")],
        &two_cpus(),
    )
    .unwrap();
    let shown = format!("{}", serde_json::to_value(&s).unwrap());
    assert!(!shown.contains("SECRET"), "{shown}");
    assert!(shown.contains("X-KEY"));
    assert!(!format!("{:?}", s.auth).contains("SECRET"));
}

#[test]
fn picks_one_source_of_configuration() {
    let s = settings(&[("LOCAL_XDS_PATH", "/x.yaml")], &two_cpus()).unwrap();
    assert_eq!(s.xds, Source::File("/x.yaml".into()));
    let both = [("LOCAL_XDS_PATH", "/x.yaml"), ("LOCAL_XDS", "{}")];
    assert_eq!(
        settings(&both, &two_cpus()).unwrap_err(),
        vec!["LOCAL_XDS".to_owned()]
    );
}

#[test]
fn takes_the_explicit_deadline_over_the_grace_period() {
    let grace = ("TERMINATION_GRACE_PERIOD_SECONDS", "30");
    let s = settings(&[grace], &two_cpus()).unwrap();
    assert_eq!(s.termination_deadline, Duration::from_secs(25));
    let s = settings(
        &[grace, ("CONNECTION_TERMINATION_DEADLINE", "2s")],
        &two_cpus(),
    )
    .unwrap();
    assert_eq!(s.termination_deadline, Duration::from_secs(2));
}

#[test]
fn names_itself_to_the_control_plane_the_way_istio_does() {
    let s = settings(
        &[
            ("POD_NAME", "zt-1"),
            ("POD_NAMESPACE", "sys"),
            ("INSTANCE_IP", "10.0.0.9"),
        ],
        &two_cpus(),
    )
    .unwrap();
    assert_eq!(
        s.node_id(),
        "ztunnel~10.0.0.9~zt-1.sys~sys.svc.cluster.local"
    );
}

#[test]
fn dns_is_served_unless_it_is_switched_off() {
    let at = |port| Some(DnsAddress::Localhost(port));
    let own = "10.0.0.1:5353".parse().unwrap();
    type Row<'a> = (&'a [(&'a str, &'a str)], Option<DnsAddress>);
    let table: &[Row<'_>] = &[
        (&[], at(15053)),
        (&[("ISTIO_META_DNS_CAPTURE", "true")], at(15053)),
        (&[("ISTIO_META_DNS_CAPTURE", "false")], None),
        (&[("ISTIO_META_DNS_CAPTURE", "")], None),
        (&[("ISTIO_META_DNS_PROXY_ADDR", "localhost:53")], at(53)),
        (
            &[("ISTIO_META_DNS_PROXY_ADDR", "10.0.0.1:5353")],
            Some(DnsAddress::At(own)),
        ),
        (
            &[(
                "PROXY_CONFIG",
                "proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"false\"}",
            )],
            None,
        ),
    ];
    for (variables, expected) in table {
        let settings = settings(variables, &two_cpus()).unwrap();
        assert_eq!(settings.dns_proxy, *expected, "{variables:?}");
    }
}

#[test]
fn the_cluster_domain_is_said_or_shown_by_search_domains() {
    let mut machine = two_cpus();
    let domain = |variables: &[(&str, &str)], machine: &Machine| {
        settings(variables, machine).unwrap().cluster_domain
    };
    assert_eq!(domain(&[], &machine), "cluster.local");
    machine.resolver = Conf::read("search a.svc.corp svc.corp corp\nnameserver 10.0.0.1\n");
    assert_eq!(domain(&[], &machine), "corp");
    assert_eq!(
        domain(&[("CLUSTER_DOMAIN", "Other.Local.")], &machine),
        "other.local"
    );
}

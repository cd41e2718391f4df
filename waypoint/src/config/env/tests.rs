//! Tests of the settings.

use std::collections::BTreeMap;
use std::time::Duration;

use ambit_control::{Roots, TokenSource};

use super::{Machine, duration, read};
use crate::config::{Problem, Settings};

const NEEDED: [(&str, &str); 3] = [
    ("POD_NAME", "wp-1"),
    ("POD_NAMESPACE", "shop"),
    ("SERVICE_ACCOUNT", "wp"),
];

fn with(more: &[(&str, &str)], arguments: &[&str]) -> Result<Settings, Vec<Problem>> {
    let machine = Machine {
        cpus: 4,
        token_file: true,
        labels: Some("app=\"wp\"\ngateway.networking.k8s.io/gateway-name=\"wp\"\n".to_owned()),
    };
    let variables: BTreeMap<String, String> = NEEDED
        .iter()
        .chain(more)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    read(variables, &arguments, &machine)
}

fn text(settings: &Settings, key: &str) -> String {
    let found = settings.metadata.iter().find(|(name, _)| name == key);
    found
        .map(|(_, value)| value.to_string())
        .unwrap_or_default()
}

#[test]
fn the_environment_of_istios_template_is_enough() {
    let settings = with(
        &[
            (
                "PROXY_CONFIG",
                r#"{"discoveryAddress":"istiod.x.svc:15012","concurrency":3}"#,
            ),
            ("CA_ADDR", "ca.x.svc:15012"),
            ("INSTANCE_IP", "10.1.2.3"),
            ("TRUST_DOMAIN", "td"),
            ("ISTIO_META_CLUSTER_ID", "c1"),
            ("ISTIO_META_NETWORK", "n1"),
            ("ISTIO_META_MESH_ID", "mesh"),
            ("ISTIO_METAJSON_ANNOTATIONS", r#"{"a":"b"}"#),
        ],
        &[
            "waypoint",
            "--domain",
            "shop.svc.example",
            "--serviceCluster=wp.shop",
            "--unknown",
        ],
    )
    .unwrap();
    assert_eq!(settings.identity.to_string(), "spiffe://td/ns/shop/sa/wp");
    assert_eq!(
        settings.node_id(),
        "waypoint~10.1.2.3~wp-1.shop~shop.svc.example"
    );
    assert_eq!(settings.service_cluster, "wp.shop");
    assert_eq!(settings.xds.address, "https://istiod.x.svc:15012");
    assert_eq!(settings.ca.address, "https://ca.x.svc:15012");
    assert!(matches!(settings.xds.roots, Roots::File(_)));
    assert!(matches!(settings.token, TokenSource::File(_)));
    assert_eq!((settings.threads, settings.network.as_str()), (3, "n1"));
    assert_eq!(text(&settings, "MESH_ID"), r#""mesh""#);
    assert_eq!(text(&settings, "ANNOTATIONS"), r#"{"a":"b"}"#);
    assert!(text(&settings, "LABELS").contains("gateway-name"));
    assert!(settings.admin_addr.ip().is_loopback());
}

#[test]
fn every_wrong_setting_is_named() {
    let cases = [
        ("PROXY_CONFIG", "{"),
        ("INSTANCE_IP", "nowhere"),
        ("XDS_ADDRESS", "http://plain:15010"),
        ("SECRET_TTL", "soon"),
        ("WAYPOINT_WORKER_THREADS", "many"),
        ("METRICS_MAX_LABEL_SETS", "0"),
        ("METRICS_IDLE_TIMEOUT", "10ms"),
        ("ISTIO_METAJSON_LABELS", "{"),
        ("CRL_PATH", "/crl"),
    ];
    let problems = with(&cases, &[]).unwrap_err();
    for (name, _) in cases {
        assert!(
            problems.iter().any(|problem| problem.name == name),
            "{name}: {problems:?}"
        );
    }
    assert_eq!(problems.len(), cases.len(), "{problems:?}");
    let problems = read(BTreeMap::new(), &[], &Machine::default()).unwrap_err();
    let names: Vec<_> = problems
        .iter()
        .map(|problem| problem.name.as_str())
        .collect();
    assert!(
        names.contains(&"POD_NAMESPACE") && names.contains(&"SERVICE_ACCOUNT"),
        "{names:?}"
    );
}

#[test]
fn secrets_are_not_shown() {
    let settings = with(
        &[("AUTH_TOKEN", "sekrit-token"), ("XDS_ROOT_CA", "SYSTEM")],
        &[],
    )
    .unwrap();
    assert_eq!(
        settings.token,
        TokenSource::Literal("sekrit-token".to_owned())
    );
    assert!(!settings.shown().to_string().contains("sekrit"));
    assert!(!format!("{settings:?}").contains("sekrit"));
}

#[test]
fn durations_are_sums_of_numbers_with_units() {
    let cases = [
        ("10", Some(10_000)),
        ("1h30m", Some(5_400_000)),
        ("500ms", Some(500)),
        ("", None),
        ("5x", None),
        ("h", None),
    ];
    for (text, millis) in cases {
        assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
    }
}

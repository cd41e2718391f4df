//! The shapes that istioctl and Kiali read.

use ambit_model::address::Vip;
use ambit_model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch, Value,
};
use ambit_model::service::{IpFamilies, Port, Service, ServiceKey};
use ambit_model::update::{Change, apply};
use ambit_model::view::View;
use ambit_model::workload::Workload;
use serde_json::json;

use super::{config, policies, services, workloads};
use crate::config::env::{Machine, read};

fn key() -> ServiceKey {
    ServiceKey::new("shop", "cart.shop.svc.cluster.local")
}

fn cart() -> Workload {
    let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let mut cart = Workload::new("k//Pod/shop/cart".into(), "cart", identity);
    cart.addresses.push("10.0.0.2".parse().unwrap());
    let port = Port {
        service_port: 80,
        target_port: 8080,
    };
    cart.services.insert(key(), vec![port]);
    cart
}

#[test]
fn a_service_has_its_single_addresses_and_its_blocks_apart() {
    let mut service = Service::new(key());
    service.ip_families = IpFamilies::V4;
    let vip = |network: &str, block: &str| Vip {
        network: network.into(),
        block: block.parse().unwrap(),
    };
    service.vips = vec![vip("", "10.96.0.1/32"), vip("n", "10.0.0.0/8")];
    let changes = [
        Change::UpsertService(service),
        Change::UpsertWorkload(cart()),
    ];
    let shown = services(&apply(&View::default(), changes));
    assert_eq!(
        json!(shown),
        json!([{
            "name": "cart",
            "namespace": "shop",
            "hostname": "cart.shop.svc.cluster.local",
            "vips": ["/10.96.0.1"],
            "cidrVips": ["n/10.0.0.0/8"],
            "ports": {},
            "endpoints": {"k//Pod/shop/cart": {
                "workloadUid": "k//Pod/shop/cart",
                "service": "shop/cart.shop.svc.cluster.local",
                "port": {"80": 8080},
                "status": "Healthy",
            }},
            "subjectAltNames": [],
            "waypoint": null,
            "weightedWaypoints": [],
            "loadBalancer": {"mode": "Standard", "routingPreferences": [], "healthPolicy": "OnlyHealthy"},
            "ipFamilies": "IPv4",
            "canonical": false,
            "visibility": "Public",
        }])
    );
}

#[test]
fn a_workload_has_istio_s_names_and_words() {
    let shown = json!(workloads(&apply(
        &View::default(),
        [Change::UpsertWorkload(cart())]
    )));
    let wanted = json!({
        "uid": "k//Pod/shop/cart",
        "workloadIps": ["10.0.0.2"],
        "protocol": "TCP",
        "name": "cart",
        "namespace": "shop",
        "serviceAccount": "cart",
        "trustDomain": "cluster.local",
        "workloadType": "deployment",
        "clusterId": "Kubernetes",
        "status": "Healthy",
        "networkMode": "Standard",
        "capacity": 1,
        "waypoint": null,
        "networkGateway": null,
        "applicationTunnel": null,
        "locality": {"region": "", "zone": "", "subzone": ""},
        "services": ["shop/cart.shop.svc.cluster.local"],
        "authorizationPolicies": [],
    });
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&shown[0][name], value, "{name}");
    }
}

#[test]
fn a_policy_s_values_have_the_types_of_istio_s_and_no_others() {
    let account = ServiceAccount {
        namespace: "shop".into(),
        name: "web".into(),
    };
    let matches = Match {
        namespaces: vec![StringMatch::Prefix("kube-".into()).into()],
        not_principals: vec![StringMatch::Presence.into()],
        principals: vec![StringMatch::Exact("a".into()).into()],
        not_namespaces: vec![StringMatch::Suffix("-x".into()).into()],
        service_accounts: vec![account.into()],
        source_ips: vec![
            Value::Known("10.0.0.0/8".parse().unwrap()),
            Value::Unparsable("10.0.0.300".into()),
        ],
        destination_ports: vec![Value::Known(80), Value::Unparsable("port 70000".into())],
        ..Match::default()
    };
    let policy = Policy {
        key: PolicyKey::new("shop", "p"),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: true,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![matches],
            }],
        }],
        not_understood: Vec::new(),
    };
    let shown = policies(&apply(&View::default(), [Change::UpsertPolicy(policy)]));
    assert_eq!(
        json!(shown),
        json!([{
            "name": "p",
            "namespace": "shop",
            "scope": "WorkloadSelector",
            "action": "Deny",
            "dryRun": true,
            "rules": [[[{
                "namespaces": [{"Prefix": "kube-"}],
                "notNamespaces": [{"Suffix": "-x"}],
                "principals": [{"Exact": "a"}],
                "notPrincipals": [{"Presence": []}],
                "serviceAccounts": [{"namespace": "shop", "serviceAccount": "web"}],
                "sourceIps": ["10.0.0.0/8"],
                "destinationPorts": [80],
            }]]],
            "problems": ["10.0.0.300", "port 70000"],
        }])
    );
}

#[test]
fn settings_that_kiali_reads_have_its_types() {
    let variables = [
        ("ISTIO_META_A", "b"),
        ("NODE_NAME", "n1"),
        ("HTTP2_FRAME_SIZE", "65536"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let machine = Machine {
        cpus: 2,
        ..Machine::default()
    };
    let settings = read(variables.into(), &machine).unwrap();
    let shown = config::config(&settings);
    for (name, value) in [
        ("adminAddr", json!({"Localhost": [true, 15000]})),
        ("statsAddr", json!({"SocketAddr": "[::]:15020"})),
        ("readinessAddr", json!({"SocketAddr": "[::]:15021"})),
        ("dnsProxy", json!(true)),
        ("dnsProxyAddr", json!({"Localhost": [true, 15053]})),
        ("proxyMetadata", json!({"A": "b"})),
        ("caAddress", json!("https://localhost:15012")),
        (
            "xdsRootCert",
            json!({"File": "./var/run/secrets/istio/root-cert.pem"}),
        ),
        ("inboundAddr", json!("[::]:15008")),
        ("illegalPorts", json!([15001, 15006, 15008])),
        ("localNode", json!("n1")),
        ("numWorkerThreads", json!(2)),
        ("packetMark", json!(1337)),
        ("frameSize", json!(65536)),
        ("proxy", json!(true)),
        ("xdsOnDemand", json!(false)),
        ("secretTtl", json!({"secs": 86400, "nanos": 0})),
        ("poolUnusedReleaseTimeout", json!({"secs": 300, "nanos": 0})),
        // And ours beside them.
        (
            "metrics",
            json!({"sets": 8192, "idle": {"secs": 900, "nanos": 0}}),
        ),
    ] {
        assert_eq!(shown[name], value, "{name}");
    }
}

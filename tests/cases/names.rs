//! Hosts outside the cluster, of which the control plane knows a name and no address.

use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::World;
use ambit_tests::world::told::{service, workload};
use serde_json::{Value, json};

const NAME: &str = "outside.svc.cluster.local";

/// A host that has only a name, behind services.
fn host(name: &str, hostname: &str, services: &[&str]) -> Value {
    let ports = |service: &&str| (format!("outside/{service}.{NAME}"), json!({"80": 9001}));
    let services: serde_json::Map<String, Value> = services.iter().map(ports).collect();
    json!({
        "uid": format!("Kubernetes/networking.istio.io/ServiceEntry/outside/{name}"),
        "name": name,
        "namespace": "outside",
        "hostname": hostname,
        "protocol": "TCP",
        "workloadName": name,
        "canonicalName": name,
        "clusterId": "Kubernetes",
        "services": services,
    })
}

/// `db.example` is `outside/db`; `here.example` names the asker's own machine; nobody knows `missing.example`.
fn start() -> World {
    let plan = Plan::new("names")
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("outside/resolver", 2)
        .pod("outside/db", 2);
    let world = World::start(plan).unwrap_or_else(|error| panic!("{error:?}"));
    let resolver = world.pod("outside/resolver").ipv4();
    world.give_resolv_conf(1, &format!("nameserver {resolver}\n"));
    let outside = |name: &str, vip: &str| {
        service(
            &format!("outside/{name}"),
            &format!("/{vip}"),
            9001,
            json!({}),
        )
    };
    let mesh = json!({
        "workloads": [
            workload(world.pod("mesh/client"), "", json!({})),
            host("db", "db.example", &["db", "either"]),
            host("here", "here.example", &["here"]),
            host("missing", "missing.example", &["missing", "either"]),
        ],
        "services": [
            outside("db", "10.96.0.31"),
            outside("here", "10.96.0.32"),
            outside("missing", "10.96.0.33"),
            outside("either", "10.96.0.34"),
        ],
    });
    world.tell(1, "", &mesh);
    world
}

#[test]
fn a_host_that_has_only_a_name_is_dialled_where_the_name_leads() {
    let world = start();
    let (client, db) = (world.pod("mesh/client"), world.pod("outside/db"));
    let address = format!("--host-record=db.example,{}", db.ipv4());
    let records = [
        "--local=/example/",
        "--host-record=here.example,127.0.0.1",
        address.as_str(),
    ];
    let _dns = world.pod("outside/resolver").serve_dns(&records).unwrap();
    let _app = db.serve_echo(9001);
    let own = client.serve_echo(9001);

    for _ in 0..2 {
        let answer = client.ask("10.96.0.31:80", b"by name").unwrap();
        assert_eq!(answer, b"by name");
    }
    let to = format!("{}:9001", db.ipv4());
    let fields = [
        ("direction", "outbound"),
        ("dst.addr", to.as_str()),
        ("dst.workload", "db"),
        ("dst.service", &format!("db.{NAME}")),
    ];
    world.wait_records("ztunnel-n1", &fields, 2);
    let labels = [("hostname", "db.example"), ("source_workload", "client")];
    world.wait_metric("ztunnel-n1", "istio_on_demand_dns_total", &labels, 2.0);

    // What is not there, and what would lead to the client's own loopback, is refused.
    for (vip, why) in [
        (
            "10.96.0.32",
            "here.example: it has no address that leads to another machine",
        ),
        ("10.96.0.33", "missing.example: "),
    ] {
        assert!(
            client.ask(&format!("{vip}:80"), b"nobody").is_err(),
            "{vip}"
        );
        let error = format!("*destination has no address: {why}");
        world.wait_records("ztunnel-n1", &[("error", &error)], 1);
    }
    assert_eq!(
        own.seen().count(),
        0,
        "the client's own loopback was dialled"
    );

    // Where another endpoint will do, nobody notices.
    for _ in 0..12 {
        assert_eq!(client.ask("10.96.0.34:80", b"either").unwrap(), b"either");
    }

    let explained = world
        .admin(
            "ztunnel-n1",
            &format!("/debug/explain?src=mesh/client&dst=db.{NAME}&port=80"),
        )
        .unwrap();
    let explained: Value = serde_json::from_str(&explained.text()).unwrap();
    assert_eq!(explained["route"]["kind"], "named", "{explained}");
    assert_eq!(explained["route"]["hostname"], "db.example");
}

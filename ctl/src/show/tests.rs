use serde_json::json;

use super::{
    certificates, connections, policies, problems, select_connections, select_policies,
    select_services, select_workloads, services, workloads,
};
use crate::cli::{Connections, Filter};
use crate::dump::Dump;

fn dump() -> Dump {
    Dump::read(json!({
        "workloads": [
            {"uid": "c//Pod/shop/web", "name": "web", "namespace": "shop", "node": "n1", "protocol": "HBONE",
             "workloadIps": ["10.0.0.1", "fd00::1"]},
            {"uid": "c//Pod/shop/cart", "name": "cart", "namespace": "shop", "node": "n2", "protocol": "TCP",
             "workloadIps": ["10.0.0.2"], "waypoint": {"destination": "/10.96.0.9", "hboneMtlsPort": 15008}},
            {"uid": "c//Pod/other/job", "name": "job", "namespace": "other", "node": "n1", "protocol": "TCP",
             "waypoint": {"destination": "shop/waypoint.shop.svc.cluster.local"}},
        ],
        "services": [
            {"name": "waypoint", "namespace": "shop", "hostname": "waypoint.shop.svc.cluster.local",
             "vips": ["/10.96.0.9"], "endpoints": {}},
            {"name": "cart", "namespace": "shop", "hostname": "cart.shop.svc.cluster.local",
             "vips": ["net/10.96.0.1", "net/fd00::96"],
             "endpoints": {"a": {"status": "Healthy"}, "b": {"status": "Unhealthy"}}},
        ],
        "policies": [
            {"name": "deny", "namespace": "shop", "action": "Deny", "scope": "Namespace", "dryRun": true,
             "problems": ["x"]},
        ],
        "certificates": [
            {"identity": "spiffe://t/ns/shop/sa/web", "state": "Available",
             "certChain": [{"serialNumber": "01", "validFrom": "2000-01-01T00:00:00Z",
                "expirationTime": "2999-01-01T00:00:00Z"}],
             "rootCerts": [{"serialNumber": "02", "validFrom": "2000-01-01T00:00:00Z",
                "expirationTime": "2001-01-01T00:00:00Z"}]},
            {"identity": "spiffe://t/ns/shop/sa/new", "state": "Initializing"},
        ],
        "workloadState": {"u1": {"state": "Up",
            "info": {"name": "web", "namespace": "shop", "serviceAccount": "web"},
            "connections": {
                "inbound": [{"src": "10.0.0.2:4000", "originalDst": null, "actualDst": "10.0.0.1:8080",
                    "protocol": "HBONE"}],
                "outbound": [{"src": "10.0.0.1:5000", "originalDst": "10.96.0.1:80",
                    "actualDst": "10.0.0.2:15008", "protocol": "HBONE"}]}}},
    }))
    .unwrap()
}

fn all() -> Filter {
    Filter {
        namespace: None,
        node: None,
    }
}

#[test]
fn workloads_are_sorted_with_their_waypoints_by_name() {
    let dump = dump();
    let table = workloads(&dump, &select_workloads(&dump, &all()));
    assert_eq!(
        table.rows(),
        [
            ["other", "job", "", "n1", "shop/waypoint", "TCP"],
            ["shop", "cart", "10.0.0.2", "n2", "waypoint", "TCP"],
            ["shop", "web", "10.0.0.1", "n1", "None", "HBONE"],
        ]
    );
}

#[test]
fn filters_select_the_same_entries_for_tables_and_for_json() {
    let dump = dump();
    let filter = Filter {
        namespace: Some("shop".into()),
        node: Some("n1".into()),
    };
    let found = select_workloads(&dump, &filter);
    assert_eq!(workloads(&dump, &found).rows().len(), 1);
    let raw = dump.raw_of("workloads", &found);
    assert_eq!(raw.len(), 1);
    assert_eq!(
        raw[0]["workloadIps"][1], "fd00::1",
        "what the table leaves out is there"
    );
    let nowhere = Filter {
        namespace: Some("nowhere".into()),
        node: None,
    };
    assert!(select_services(&dump, &nowhere).is_empty());
    assert!(select_policies(&dump, &nowhere).is_empty());
}

#[test]
fn services_count_the_endpoints_that_are_healthy() {
    let dump = dump();
    let table = services(&dump, &select_services(&dump, &all()));
    assert_eq!(
        table.rows()[0],
        ["shop", "cart", "10.96.0.1,fd00::96", "None", "1/2"]
    );
    assert_eq!(
        table.rows()[1],
        ["shop", "waypoint", "10.96.0.9", "None", "0/0"]
    );
}

#[test]
fn policies_say_when_they_do_not_do_what_they_seem_to() {
    let dump = dump();
    let table = policies(&dump, &select_policies(&dump, &all()));
    let note = "dry run, 1 values not understood";
    assert_eq!(table.rows(), [["shop", "deny", "Deny", "Namespace", note]]);
}

#[test]
fn certificates_are_valid_between_their_dates() {
    let dump = dump();
    let table = certificates(&dump);
    let shown: Vec<_> = table
        .rows()
        .iter()
        .map(|row| (row[1].as_str(), row[3].as_str()))
        .collect();
    assert_eq!(
        shown,
        [("Leaf", "false"), ("Leaf", "true"), ("Root", "false")]
    );
    assert_eq!(table.rows()[0][2], "Initializing");
}

#[test]
fn connections_show_names_and_the_side_of_the_pod_first() {
    let dump = dump();
    let filter = |direction: Option<&str>| Connections {
        namespace: None,
        direction: direction.map(str::to_owned),
        raw: false,
    };
    let rows = select_connections(&dump, &filter(None));
    let table = connections(&dump, &rows, false);
    assert_eq!(
        table.rows(),
        [
            [
                "shop/web",
                "inbound",
                "shop/web:8080",
                "shop/cart:4000",
                "",
                "HBONE"
            ],
            [
                "shop/web",
                "outbound",
                "shop/web:5000",
                "shop/cart:15008",
                "shop/cart:80",
                "HBONE"
            ],
        ]
    );
    let rows = select_connections(&dump, &filter(Some("outbound")));
    let raw = connections(&dump, &rows, true);
    assert_eq!(raw.rows()[0][3], "10.0.0.2:15008");
    assert_eq!(raw.rows().len(), 1);
}

#[test]
fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
    let dump = Dump::read(json!({"workloads": [{"name": "x", "new": 1}]})).unwrap();
    assert_eq!(workloads(&dump, &[0]).rows()[0][1], "x");
    assert_eq!(certificates(&dump).rows().len(), 0);
    assert!(Dump::read(json!({"workloads": 7})).is_err());
}

#[test]
fn problems_are_listed_by_severity() {
    let table = problems(&json!([
        {"severity": "warning", "at": "a.yaml:1", "field": "", "message": "no effect"},
        {"severity": "error", "at": "b.yaml:2", "field": "spec", "message": "refused"},
    ]));
    assert_eq!(table.rows()[0], ["error", "b.yaml:2", "spec", "refused"]);
}

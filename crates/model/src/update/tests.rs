use std::collections::BTreeMap;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection, prop_assert, prop_assert_eq, proptest, sample};

use super::{Change, apply};
use crate::address::Vip;
use crate::fixture::{ip, key, pod, policy, serves, service, view};
use crate::policy::{Action, Match, Policy, Scope};
use crate::service::{Port, Service, ServiceKey, Visibility};
use crate::text::Text;
use crate::view::View;
use crate::workload::{Health, NetworkMode, Protocol, Workload};

#[test]
fn keeps_endpoints_of_a_service_that_is_not_known_yet() {
    let web = serves(pod("shop", "web", "10.0.0.1"), &key("shop", "web"));
    let view = view([Change::UpsertWorkload(web)]);
    assert_eq!(
        view.staged_services().collect::<Vec<_>>(),
        [&key("shop", "web")]
    );
    let view = apply(
        &view,
        [Change::UpsertService(service("shop", "web", "10.1.0.1"))],
    );
    assert_eq!(view.staged_services().count(), 0);
    assert_eq!(view.endpoints(&key("shop", "web")).unwrap().len(), 1);
}

#[test]
fn removes_a_workload_from_every_place_it_was_found_in() {
    let mut web = serves(pod("shop", "web", "10.0.0.1"), &key("shop", "web"));
    web.hostname = "web.example".into();
    let view = view([Change::UpsertWorkload(web.clone())]);
    assert_ne!(view, View::default());
    assert_eq!(
        apply(&view, [Change::RemoveAddress(web.uid)]),
        View::default()
    );
}

#[test]
fn a_workload_is_found_at_the_addresses_that_it_has_now() {
    let at = |addresses: &[&str]| {
        let mut web = pod("shop", "web", "10.0.0.1");
        web.addresses = addresses.iter().map(|text| ip(text)).collect();
        web
    };
    let mut current = View::default();
    // One that moves to another's place, one given twice, none, and one that is its node's.
    for addresses in [
        &["10.0.0.1", "10.0.0.2"][..],
        &["10.0.0.2", "10.0.0.3"],
        &["10.0.0.3", "10.0.0.3"],
        &[],
        &["10.0.0.1"],
    ] {
        current = apply(&current, [Change::UpsertWorkload(at(addresses))]);
        assert_eq!(current, view([Change::UpsertWorkload(at(addresses))]));
        for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            let found = current.workload_at("", ip(address));
            assert_eq!(found.is_some(), addresses.contains(&address), "{address}");
        }
    }
    let mut elsewhere = at(&["10.0.0.1"]);
    elsewhere.network = "n2".into();
    current = apply(&current, [Change::UpsertWorkload(elsewhere)]);
    assert!(current.workload_at("", ip("10.0.0.1")).is_none());
    assert!(current.workload_at("n2", ip("10.0.0.1")).is_some());
}

#[test]
fn removes_a_service_and_a_policy_by_their_names() {
    let policy = policy("shop/p", Scope::Namespace, Action::Deny, vec![]);
    let view = view([
        Change::UpsertService(service("shop", "web", "10.1.0.1")),
        Change::UpsertPolicy(policy),
    ]);
    let gone = [
        Change::RemoveAddress("shop/web.shop.svc.cluster.local".into()),
        Change::RemovePolicy("shop/p".into()),
    ];
    assert_eq!(apply(&view, gone), View::default());
}

#[test]
fn ignores_the_removal_of_what_is_not_known() {
    let view = view([Change::UpsertWorkload(pod("shop", "web", "10.0.0.1"))]);
    let names = ["", "/", "a", "a/b/c", "shop/web"];
    let gone = names.map(|name| Change::RemoveAddress(name.into()));
    let next = apply(&view, gone);
    assert_eq!(apply(&next, [Change::RemovePolicy("x".into())]), view);
}

#[test]
fn leaves_the_view_before_as_it_was() {
    let before = view([Change::UpsertWorkload(pod("shop", "web", "10.0.0.1"))]);
    let copy = before.clone();
    let _after = apply(
        &before,
        [Change::UpsertWorkload(pod("shop", "web", "10.0.0.7"))],
    );
    assert_eq!(before, copy);
    assert!(
        before
            .workload_at("", "10.0.0.1".parse().unwrap())
            .is_some()
    );
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let name = sample::select(vec!["w1", "w2", "w3", "w4"]);
    let address = sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1"]);
    let services = collection::vec(sample::select(vec!["s1", "s2", "s3"]), 0..3);
    let flags = any::<(bool, bool, bool, bool)>();
    (name, address, services, flags).prop_map(|(name, address, services, flags)| {
        let (tunnel, healthy, host, named) = flags;
        let mut workload = pod("shop", name, address);
        workload.protocol = if tunnel {
            Protocol::Hbone
        } else {
            Protocol::Tcp
        };
        workload.health = if healthy {
            Health::Healthy
        } else {
            Health::Unhealthy
        };
        if host {
            workload.network_mode = NetworkMode::HostNetwork;
            workload.node = "node2".into();
        }
        if named {
            workload.hostname = "w.example".into();
        }
        for service in services {
            let port = Port {
                service_port: 80,
                target_port: 8080,
            };
            workload.services.insert(key("shop", service), vec![port]);
        }
        workload
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let name = sample::select(vec!["s1", "s2", "s3"]);
    let blocks = vec![
        "10.1.0.1/32",
        "10.1.0.2/32",
        "10.1.0.0/24",
        "10.0.0.0/8",
        "2001:db8::/32",
    ];
    let vips = collection::vec(sample::select(blocks), 0..3);
    (name, vips, any::<(bool, bool)>()).prop_map(|(name, vips, (canonical, hidden))| {
        let vip = |text: &str| Vip {
            network: Text::empty(),
            block: text.parse().unwrap(),
        };
        let visibility = if hidden {
            Visibility::Namespace
        } else {
            Visibility::Public
        };
        let mut vips: Vec<Vip> = vips.into_iter().map(vip).collect();
        vips.sort();
        vips.dedup();
        Service {
            vips,
            canonical,
            visibility,
            ..Service::new(key("shop", name))
        }
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let name = sample::select(vec!["a/p", "a/q", "b/p", "b/q"]);
    let scope = sample::select(vec![
        Scope::Global,
        Scope::Namespace,
        Scope::WorkloadSelector,
    ]);
    (name, scope, any::<u16>()).prop_map(|(name, scope, port)| {
        let fields = Match {
            destination_ports: vec![port.into()],
            ..Match::default()
        };
        policy(name, scope, Action::Deny, vec![vec![fields]])
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => any_workload().prop_map(Change::UpsertWorkload),
        3 => any_service().prop_map(Change::UpsertService),
        3 => any_policy().prop_map(Change::UpsertPolicy),
        1 => any_workload().prop_map(|workload| Change::RemoveAddress(workload.uid)),
        1 => any_service().prop_map(|service| Change::RemoveAddress(service.key.to_string().into())),
        1 => any_policy().prop_map(|policy| Change::RemovePolicy(policy.key.to_string().into())),
        1 => Just(Change::RemoveAddress("nobody".into())),
    ]
}

/// The name of the resource a change is about; workloads, services and policies have names of their own.
fn name(change: &Change) -> (u8, String) {
    match change {
        Change::UpsertWorkload(workload) => (0, workload.uid.to_string()),
        Change::UpsertService(service) => (1, service.key.to_string()),
        Change::UpsertPolicy(policy) => (2, policy.key.to_string()),
        Change::RemoveAddress(name) if ServiceKey::parse(name).is_some() => (1, name.to_string()),
        Change::RemoveAddress(name) => (0, name.to_string()),
        Change::RemovePolicy(name) => (2, name.to_string()),
    }
}

fn is_upsert(change: &Change) -> bool {
    !matches!(change, Change::RemoveAddress(_) | Change::RemovePolicy(_))
}

proptest! {
    #[test]
    fn gives_the_same_view_in_any_order(
        changes in collection::vec(any_change(), 0..25),
        keys in collection::vec(any::<u64>(), 25),
        cut in 0..25_usize,
    ) {
        // The last change of each resource, in another order and in two batches.
        let mut last = BTreeMap::new();
        for change in changes.iter().filter(|change| is_upsert(change)) {
            last.insert(name(change), change.clone());
        }
        let set: Vec<Change> = last.into_values().collect();
        let mut shuffled: Vec<_> = keys.into_iter().zip(set.clone()).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let mut first: Vec<Change> = shuffled.into_iter().map(|(_, change)| change).collect();
        let second = first.split_off(cut.min(first.len()));
        prop_assert_eq!(apply(&view(first), second), view(set));
    }

    #[test]
    fn gives_the_view_of_what_is_left_after_any_history(
        batches in collection::vec(collection::vec(any_change(), 0..6), 0..8),
    ) {
        let mut left = BTreeMap::new();
        let mut current = View::default();
        for batch in batches {
            for change in &batch {
                if is_upsert(change) {
                    left.insert(name(change), change.clone());
                } else {
                    left.remove(&name(change));
                }
            }
            current = apply(&current, batch);
        }
        let rebuilt = view(left.into_values());
        prop_assert_eq!(&current, &rebuilt);
        for workload in current.workloads() {
            for service in workload.services.keys() {
                let endpoints = current.endpoints(service).unwrap();
                prop_assert!(endpoints.iter().any(|endpoint| endpoint.workload.uid == workload.uid));
                prop_assert!(endpoints.is_sorted_by(|a, b| a.workload.uid < b.workload.uid));
            }
        }
    }
}

use super::LocalPod;
use crate::address::Vip;
use crate::fixture::{but, identity, ip, key, pod, service, view};
use crate::service::{Service, ServiceKey, Visibility};
use crate::text::Text;
use crate::update::Change;
use crate::workload::{Health, NetworkMode, Protocol, Workload};

#[test]
fn prefers_pods_then_tunnels_then_health_at_one_address() {
    let tunnel = pod("shop", "b", "10.0.0.1");
    let plain = but(pod("shop", "a", "10.0.0.1"), |plain| {
        plain.protocol = Protocol::Tcp;
    });
    let sick = Workload {
        health: Health::Unhealthy,
        ..pod("shop", "a2", "10.0.0.1")
    };
    let external = Workload::new("entry".into(), "entry", identity("shop", "entry"));
    let external = but(external, |external| {
        external.protocol = Protocol::Hbone;
        external.addresses.push(ip("10.0.0.1"));
    });
    let orders = [
        vec![&tunnel, &plain, &sick, &external],
        vec![&external, &sick, &plain, &tunnel],
        vec![&plain, &tunnel, &external, &sick],
    ];
    for order in orders {
        let mut changes: Vec<_> = order
            .into_iter()
            .cloned()
            .map(Change::UpsertWorkload)
            .collect();
        let mut expected = vec![];
        for best in [&tunnel, &sick, &plain, &external] {
            let view = view(changes.clone());
            assert_eq!(view.workload_at("", ip("10.0.0.1")).unwrap().uid, best.uid);
            expected.push(best.uid.clone());
            changes.push(Change::RemoveAddress(best.uid.clone()));
        }
        assert!(view(changes).workload_at("", ip("10.0.0.1")).is_none());
    }
}

#[test]
fn never_finds_a_workload_of_the_host_network_by_address() {
    let mut host = pod("shop", "a", "10.0.0.1");
    host.network_mode = NetworkMode::HostNetwork;
    let uid = host.uid.clone();
    let view = view([Change::UpsertWorkload(host)]);
    assert!(view.workload_at("", ip("10.0.0.1")).is_none());
    assert!(view.workload(&uid).is_some());
}

#[test]
fn keeps_networks_apart() {
    let mut other = pod("shop", "b", "10.0.0.1");
    other.network = "n2".into();
    let view = view([
        Change::UpsertWorkload(pod("shop", "a", "10.0.0.1")),
        Change::UpsertWorkload(other),
    ]);
    assert_eq!(view.workload_at("", ip("10.0.0.1")).unwrap().name(), "a");
    assert_eq!(view.workload_at("n2", ip("10.0.0.1")).unwrap().name(), "b");
    assert!(view.workload_at("n3", ip("10.0.0.1")).is_none());
}

#[test]
fn finds_a_mapped_address_as_the_address_it_is() {
    let view = view([Change::UpsertWorkload(pod("shop", "a", "10.0.0.1"))]);
    assert!(view.workload_at("", ip("::ffff:10.0.0.1")).is_some());
}

fn at_vip(namespace: &str, canonical: bool, visibility: Visibility) -> Service {
    let mut service = service(namespace, "web", "10.1.0.1");
    service.key = ServiceKey::new(namespace, "web.example");
    Service {
        canonical,
        visibility,
        ..service
    }
}

#[test]
fn prefers_the_own_namespace_then_the_canonical_service() {
    let public = Visibility::Public;
    let hidden = Visibility::Namespace;
    // Services as (namespace, canonical, visibility); namespace of the client; namespace of the service it sees.
    type Case<'a> = (&'a [(&'a str, bool, Visibility)], &'a str, Option<&'a str>);
    let cases: [Case<'_>; 7] = [
        (&[("a", false, public), ("b", true, public)], "a", Some("a")),
        (&[("a", false, public), ("b", true, public)], "c", Some("b")),
        (
            &[("b", false, public), ("a", false, public)],
            "c",
            Some("a"),
        ),
        (&[("a", true, hidden), ("b", false, public)], "c", Some("b")),
        (&[("a", true, hidden)], "c", None),
        (&[("a", true, hidden)], "a", Some("a")),
        (&[], "a", None),
    ];
    for (services, client, expected) in cases {
        let services = services
            .iter()
            .map(|(ns, canonical, v)| at_vip(ns, *canonical, *v));
        let view = view(services.map(Change::UpsertService));
        let by_address = view.service_at("", ip("10.1.0.1"), client);
        let by_name = view.service_named("web.example", client);
        for found in [by_address, by_name] {
            assert_eq!(
                found.map(|service| service.key.namespace.as_str()),
                expected
            );
        }
    }
}

fn blocks(namespace: &str, name: &str, blocks: &[&str], canonical: bool) -> Service {
    let vip = |text: &&str| Vip {
        network: Text::empty(),
        block: text.parse().unwrap(),
    };
    let vips = blocks.iter().map(vip).collect();
    Service {
        vips,
        canonical,
        ..Service::new(key(namespace, name))
    }
}

#[test]
fn ranks_blocks_by_namespace_then_length_then_canonical() {
    let services = [
        blocks("a", "wide", &["10.0.0.0/8", "2001:db8::/32"], false),
        blocks("b", "long", &["10.1.0.0/16"], false),
        blocks("c", "long", &["10.1.0.0/16"], true),
        blocks("d", "exact", &["10.1.2.3/32"], false),
        blocks("e", "all", &["0.0.0.0/0"], false),
    ];
    let view = view(services.into_iter().map(Change::UpsertService));
    let cases = [
        ("10.9.0.1", "x", Some("a")),
        ("10.1.0.1", "x", Some("c")),
        ("10.1.0.1", "b", Some("b")),
        ("10.1.0.1", "a", Some("a")),
        ("10.1.0.1", "e", Some("e")),
        ("10.1.2.3", "a", Some("d")),
        ("11.0.0.1", "x", Some("e")),
        ("2001:db8::1", "x", Some("a")),
        ("2001:db9::1", "x", None),
    ];
    for (address, client, expected) in cases {
        let found = view.service_at("", ip(address), client);
        let namespace = found.map(|service| service.key.namespace.as_str());
        assert_eq!(namespace, expected, "{address} from {client}");
    }
}

#[test]
fn finds_the_record_of_a_pod_the_node_vouches_for() {
    let other = Workload {
        uid: "Remote//Pod/shop/web".into(),
        node: "node9".into(),
        ..pod("shop", "web", "10.7.0.1")
    };
    let view = view([
        Change::UpsertWorkload(other),
        Change::UpsertWorkload(pod("shop", "web", "10.0.0.1")),
    ]);
    let asked = LocalPod {
        namespace: "shop",
        name: "web",
        service_account: "web",
        node: "node1",
    };
    assert_eq!(view.local(&asked).unwrap().uid, "Kubernetes//Pod/shop/web");
    let elsewhere = LocalPod {
        node: "node9",
        ..asked
    };
    assert_eq!(view.local(&elsewhere).unwrap().uid, "Remote//Pod/shop/web");
    for wrong in [
        LocalPod {
            service_account: "admin",
            ..asked
        },
        LocalPod {
            namespace: "other",
            ..asked
        },
        LocalPod {
            name: "cart",
            ..asked
        },
        LocalPod {
            node: "node2",
            ..asked
        },
    ] {
        assert!(view.local(&wrong).is_none(), "{wrong:?}");
    }
}

#[test]
fn finds_the_longest_wildcard_that_covers_a_name_and_no_name_is_before_itself() {
    let named =
        |hostname: &str| Change::UpsertService(Service::new(ServiceKey::new("shop", hostname)));
    let view = view(["*.example.com", "*.b.example.com", "a.b.example.com", "*"].map(named));
    let cases = [
        ("a.b.example.com", Some("a.b.example.com")),
        ("c.b.example.com", Some("*.b.example.com")),
        ("d.c.b.example.com", Some("*.b.example.com")),
        ("b.example.com", Some("*.example.com")),
        ("*.b.example.com", Some("*.b.example.com")),
        ("example.com", None),
        ("b.example.org", None),
        ("", None),
    ];
    for (name, expected) in cases {
        let found = view
            .service_named(name, "shop")
            .map(|service| service.key.hostname.as_str());
        assert_eq!(found, expected, "{name}");
    }
}

use std::collections::BTreeMap;

use ambit_model::identity::Identity;
use ambit_model::intern::Interned;
use ambit_model::policy::{Action, PolicyKey, Scope as PolicyScope, StringMatch, Value};
use ambit_model::service::{Mode, Scope, Visibility};
use ambit_model::workload::{ApplicationProtocol, Health, NetworkMode, Protocol};
use ambit_proto::istio::security;
use ambit_proto::istio::workload::gateway_address::Destination;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn v4() -> Bytes {
    Bytes::from_static(&[10, 0, 0, 1])
}

fn by_host(port: u32) -> wire::GatewayAddress {
    let host = wire::NamespacedHostname {
        namespace: "shop".to_owned(),
        hostname: "waypoint.shop.svc.cluster.local".to_owned(),
    };
    wire::GatewayAddress {
        destination: Some(Destination::Hostname(host)),
        hbone_mtls_port: port,
    }
}

fn full_workload() -> wire::Workload {
    let ports = vec![wire::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 0,
    }];
    wire::Workload {
        uid: "Kubernetes//Pod/shop/web-1".to_owned(),
        name: "web-1".to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![v4(), Bytes::from(vec![0xfd; 16])],
        network: "n1".to_owned(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        service_account: "web".to_owned(),
        waypoint: Some(by_host(15008)),
        node: "node-1".to_owned(),
        canonical_name: "web".to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: wire::WorkloadType::Deployment.into(),
        workload_name: "web".to_owned(),
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        }),
        services: BTreeMap::from([("shop/web.shop".to_owned(), wire::PortList { ports })]),
        authorization_policies: vec!["shop/only-web".to_owned()],
        status: wire::WorkloadStatus::Unhealthy.into(),
        locality: Some(wire::Locality {
            region: "r".to_owned(),
            ..wire::Locality::default()
        }),
        network_mode: wire::NetworkMode::HostNetwork.into(),
        capacity: Some(7),
        ..wire::Workload::default()
    }
}

fn resource(name: &str, message: &impl Message) -> Resource {
    let payload = Bytes::from(message.encode_to_vec());
    Resource {
        name: name.into(),
        version: String::new(),
        payload,
    }
}

fn address(kind: address::Type) -> Address {
    Address { r#type: Some(kind) }
}

#[test]
fn a_workload_arrives_with_all_its_fields() {
    let got = workload(full_workload()).unwrap();
    assert_eq!(
        got.identity,
        Identity::new("cluster.local", "shop", "web").unwrap()
    );
    assert_eq!(
        got.addresses.as_slice(),
        [
            "10.0.0.1".parse::<IpAddr>().unwrap(),
            "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd".parse().unwrap(),
        ]
    );
    assert_eq!(
        (got.protocol, got.health),
        (Protocol::Hbone, Health::Unhealthy)
    );
    assert_eq!(
        (got.network_mode, got.capacity),
        (NetworkMode::HostNetwork, 7)
    );
    assert_eq!(got.waypoint.as_ref().unwrap().hbone_port, 15008);
    assert_eq!(got.cluster, "Kubernetes");
    assert_eq!(got.policies, [PolicyKey::new("shop", "only-web")]);
    let tunnel = got.application_tunnel.unwrap();
    assert_eq!(
        (tunnel.protocol, tunnel.port),
        (ApplicationProtocol::Proxy, Some(15088))
    );
    let key = ServiceKey::new("shop", "web.shop");
    assert_eq!(
        got.ports_for(&key).unwrap(),
        [Port {
            service_port: 80,
            target_port: 8080
        }]
    );
}

#[test]
fn empty_fields_stand_for_defaults() {
    let bare = wire::Workload {
        uid: "u".to_owned(),
        namespace: "shop".to_owned(),
        ..wire::Workload::default()
    };
    let got = workload(bare).unwrap();
    assert_eq!(
        got.identity.as_str(),
        "spiffe://cluster.local/ns/shop/sa/default"
    );
    assert_eq!(
        (got.protocol, got.health, got.capacity),
        (Protocol::Tcp, Health::Healthy, 1)
    );
}

#[test]
fn a_mapped_address_becomes_ipv4() {
    let mapped = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
    let from = wire::Workload {
        addresses: vec![mapped.to_vec().into()],
        ..full_workload()
    };
    assert_eq!(workload(from).unwrap().addresses[0].to_string(), "10.0.0.1");
}

#[test]
fn a_refused_workload_names_the_field() {
    type Change = fn(&mut wire::Workload);
    let cases: [(&str, Change); 13] = [
        ("workload.uid: empty", |w| w.uid.clear()),
        ("workload.addresses[1]: 3 bytes are no address", |w| {
            w.addresses[1] = vec![1; 3].into()
        }),
        (
            "workload.tunnel_protocol: LEGACY_ISTIO_MTLS is not supported",
            |w| {
                w.tunnel_protocol = 2;
            },
        ),
        ("workload.tunnel_protocol: unknown value 9", |w| {
            w.tunnel_protocol = 9
        }),
        (
            "workload.trust_domain, namespace, service_account: \"cluster.local\", \"\"",
            |w| {
                w.namespace.clear();
            },
        ),
        ("workload.trust_domain, namespace, service_account: ", |w| {
            w.service_account = "a/b".to_owned();
        }),
        ("workload.waypoint.destination: missing", |w| {
            w.waypoint.as_mut().unwrap().destination = None;
        }),
        ("workload.waypoint.hbone_mtls_port: 0 is no port", |w| {
            w.waypoint = Some(by_host(0))
        }),
        (
            "workload.network_gateway.hbone_mtls_port: 80000 is no port",
            |w| {
                w.network_gateway = Some(by_host(80_000));
            },
        ),
        (
            "workload.services[web]: the key is not namespace/hostname",
            |w| {
                let ports = w.services.pop_first().unwrap().1;
                w.services.insert("web".to_owned(), ports);
            },
        ),
        (
            "workload.services[shop/web.shop][0].target_port: 65616 is no port",
            |w| {
                w.services.get_mut("shop/web.shop").unwrap().ports[0].target_port = 65_616;
            },
        ),
        ("workload.status: unknown value 5", |w| w.status = 5),
        ("workload.application_tunnel.port: 70000 is no port", |w| {
            w.application_tunnel.as_mut().unwrap().port = 70_000;
        }),
    ];
    for (expected, change) in cases {
        let mut from = full_workload();
        change(&mut from);
        let text = workload(from).unwrap_err().to_string();
        assert!(
            text.starts_with(expected),
            "{text} should begin with {expected}"
        );
    }
}

fn full_service() -> wire::Service {
    let vip = |address: Bytes, length| wire::NetworkAddress {
        network: "n1".to_owned(),
        address,
        length,
    };
    wire::Service {
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "web.shop.svc.cluster.local".to_owned(),
        addresses: vec![vip(v4(), None), vip(v4(), Some(32)), vip(v4(), Some(8))],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 0,
            app_protocol: 2,
        }],
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".to_owned(), "dns.example".to_owned()],
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: Some(by_host(15008)),
            weight: 10,
        }],
        load_balancing: Some(wire::LoadBalancing {
            mode: 2,
            routing_preference: vec![6, 1, 2],
            health_policy: 1,
        }),
        visibility: 1,
        canonical: true,
        ..wire::Service::default()
    }
}

#[test]
fn a_service_arrives_with_all_its_fields() {
    let got = service(full_service()).unwrap();
    assert_eq!(got.key.to_string(), "shop/web.shop.svc.cluster.local");
    let vips: Vec<_> = got.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["n1/10.0.0.1", "n1/10.0.0.1", "n1/10.0.0.0/8"]);
    assert_eq!(got.subject_alt_names.len(), 1, "a DNS name is no identity");
    assert_eq!(got.weighted_waypoints[0].weight, 10);
    assert_eq!(got.load_balancing.mode, Mode::Failover);
    assert_eq!(
        got.load_balancing.scopes,
        [Scope::Network, Scope::Region, Scope::Zone]
    );
    assert_eq!(
        (got.visibility, got.canonical),
        (Visibility::Namespace, true)
    );
}

#[test]
fn a_refused_service_names_the_field() {
    type Change = fn(&mut wire::Service);
    let cases: [(&str, Change); 7] = [
        ("service.namespace, hostname: ", |s| s.namespace.clear()),
        ("service.namespace, hostname: ", |s| {
            s.hostname = "a/b".to_owned()
        }),
        ("service.addresses[0]: 0 bytes are no address", |s| {
            s.addresses[0].address = Bytes::new();
        }),
        (
            "service.addresses[2].length: 33 does not fit 10.0.0.1",
            |s| {
                s.addresses[2].length = Some(33);
            },
        ),
        ("service.ports[0].service_port: 0 is no port", |s| {
            s.ports[0].service_port = 0
        }),
        (
            "service.load_balancing.routing_preference[1]: unspecified",
            |s| {
                s.load_balancing.as_mut().unwrap().routing_preference[1] = 0;
            },
        ),
        ("service.weighted_waypoints[0].destination: missing", |s| {
            s.weighted_waypoints[0].destination = None;
        }),
    ];
    for (expected, change) in cases {
        let mut from = full_service();
        change(&mut from);
        let text = service(from).unwrap_err().to_string();
        assert!(
            text.starts_with(expected),
            "{text} should begin with {expected}"
        );
    }
}

fn a_policy(alternative: security::Match) -> Authorization {
    let clauses = vec![security::Clause {
        matches: vec![alternative],
    }];
    Authorization {
        name: "p".to_owned(),
        namespace: "shop".to_owned(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule { clauses }],
        ..Authorization::default()
    }
}

#[test]
fn values_of_a_policy_that_make_no_sense_stay_in_their_place() {
    let net = |address: &[u8], length| security::Address {
        address: Bytes::copy_from_slice(address),
        length,
    };
    let mapped = "::ffff:10.1.0.0".parse::<Ipv6Addr>().unwrap().octets();
    let exact = security::string_match::MatchType::Exact("a".to_owned());
    let from = a_policy(security::Match {
        source_ips: vec![
            net(&[10, 9, 9, 9], 8),
            net(&[1, 2, 3], 8),
            net(&[10, 0, 0, 0], 64),
        ],
        not_source_ips: vec![net(&mapped, 112), net(&mapped, 64)],
        destination_ports: vec![80, 65_616],
        principals: vec![
            security::StringMatch {
                match_type: Some(exact),
            },
            security::StringMatch { match_type: None },
        ],
        ..security::Match::default()
    });
    let got = policy(from).unwrap();
    assert_eq!(
        (got.action, got.scope),
        (Action::Deny, PolicyScope::Namespace)
    );
    let found = &got.rules[0].clauses[0].matches[0];
    assert_eq!(
        found.source_ips[0],
        Value::Known("10.0.0.0/8".parse().unwrap())
    );
    assert!(matches!(
        found.source_ips[1..],
        [Value::Unparsable(_), Value::Unparsable(_)]
    ));
    assert_eq!(
        found.not_source_ips[0],
        Value::Known("10.1.0.0/16".parse().unwrap())
    );
    assert!(matches!(found.not_source_ips[1], Value::Unparsable(_)));
    assert_eq!(found.destination_ports[0], Value::Known(80));
    assert!(matches!(found.destination_ports[1], Value::Unparsable(_)));
    assert_eq!(
        found.principals[0],
        Value::Known(StringMatch::Exact("a".into()))
    );
    assert!(matches!(found.principals[1], Value::Unparsable(_)));
}

#[test]
fn a_policy_without_a_name_is_refused() {
    let nameless = Authorization {
        name: String::new(),
        ..a_policy(security::Match::default())
    };
    let text = policy(nameless).unwrap_err().to_string();
    assert_eq!(text, "authorization.name: empty");
}

#[test]
fn a_policy_that_is_not_understood_is_refused_by_name_and_taken_closed() {
    let deny = a_policy(security::Match::default());
    let allow = Authorization {
        action: security::Action::Allow.into(),
        ..deny.clone()
    };
    let bytes = |policy: &Authorization, more: &[u8]| {
        let mut bytes = policy.encode_to_vec();
        bytes.extend_from_slice(more);
        Bytes::from(bytes)
    };
    let of = |action, scope| Authorization {
        action,
        scope,
        ..deny.clone()
    };
    // Field 8 with the number 1.
    let field = [8 << 3, 1];
    for (payload, reason, action, scope) in [
        (
            bytes(&deny, &field),
            "authorization.field 8: not known; until it is understood it refuses everything",
            Action::Deny,
            PolicyScope::Namespace,
        ),
        (
            bytes(&allow, &field),
            "authorization.field 8: not known; until it is understood it permits nothing",
            Action::Allow,
            PolicyScope::Namespace,
        ),
        (
            bytes(&of(7, 0), &[]),
            "authorization.action: unknown value 7; until it is understood it refuses everything",
            Action::Deny,
            PolicyScope::Global,
        ),
        (
            bytes(&of(0, 9), &[]),
            "authorization.scope: unknown value 9; until it is understood it permits nothing",
            Action::Allow,
            PolicyScope::Namespace,
        ),
    ] {
        let update = Update {
            type_url: type_url::AUTHORIZATION.to_owned(),
            resources: vec![Resource {
                name: "shop/p".into(),
                version: "1".to_owned(),
                payload,
            }],
            removed: Vec::new(),
        };
        let (changes, rejected) = changes(update, &mut Interned::default());
        assert_eq!(
            (&*rejected[0].name, &*rejected[0].reason),
            ("shop/p", reason)
        );
        let [Change::UpsertPolicy(taken)] = &changes[..] else {
            panic!("not taken: {changes:?}");
        };
        assert_eq!((taken.action, taken.scope), (action, scope));
        assert!(!taken.not_understood.is_empty());
    }
}

#[test]
fn an_update_becomes_changes_and_the_bad_ones_are_named() {
    let workload = full_workload();
    let name = workload.uid.clone();
    let service = full_service();
    let service_name = "shop/web.shop.svc.cluster.local";
    let resources = vec![
        resource(&name, &address(address::Type::Workload(workload.clone()))),
        Resource {
            name: "garbage".into(),
            version: String::new(),
            payload: Bytes::from_static(b"\xff\xff\xff"),
        },
        resource(service_name, &address(address::Type::Service(service))),
        resource("other", &address(address::Type::Workload(workload))),
        resource("empty", &Address::default()),
    ];
    let update = Update {
        type_url: type_url::ADDRESS.to_owned(),
        resources,
        removed: vec!["gone".to_owned()],
    };
    let (changes, rejected) = changes(update, &mut Interned::default());
    assert!(matches!(&changes[..], [
        Change::UpsertWorkload(_),
        Change::UpsertService(_),
        Change::RemoveAddress(gone),
    ] if gone == "gone"));
    let names: Vec<_> = rejected.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["garbage", "other", "empty"]);
    assert_eq!(rejected[1].reason, format!("name: the content is {name}"));
}

#[test]
fn policies_are_named_by_namespace_and_name() {
    let from = a_policy(security::Match::default());
    let good = change(type_url::AUTHORIZATION, &resource("shop/p", &from));
    assert!(matches!(good, Ok(Change::UpsertPolicy(_))));
    assert!(change(type_url::AUTHORIZATION, &resource("p", &from)).is_err());
    let update = Update {
        type_url: type_url::AUTHORIZATION.to_owned(),
        resources: Vec::new(),
        removed: vec!["shop/p".to_owned()],
    };
    assert!(
        matches!(&changes(update, &mut Interned::default()).0[..], [Change::RemovePolicy(name)] if name == "shop/p")
    );
}

#[test]
fn waypoints_read_bare_workloads() {
    let from = full_workload();
    let resource = resource(&from.uid, &from);
    let Ok(Change::UpsertWorkload(got)) = change(type_url::WORKLOAD, &resource) else {
        panic!("a workload");
    };
    let once = std::ptr::eq(got.uid.as_str(), resource.name.as_str());
    assert!(once, "the name of a record is in memory once");
    assert!(matches!(change("x", &resource), Err(Invalid::Type(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let payload = Bytes::from(payload);
        for kind in [type_url::ADDRESS, type_url::WORKLOAD, type_url::AUTHORIZATION] {
            let name = "n".into();
            let _ = change(kind, &Resource { name, version: String::new(), payload: payload.clone() });
        }
    }

    #[test]
    fn no_damage_to_a_message_makes_a_decoder_panic(at: prop::sample::Index, byte: u8) {
        let message = address(address::Type::Workload(full_workload()));
        let mut bytes = message.encode_to_vec();
        let index = at.index(bytes.len());
        bytes[index] = byte;
        let payload = Bytes::from(bytes);
        let _ = change(type_url::ADDRESS, &Resource {
            name: "n".into(), version: String::new(), payload,
        });
    }
}

use ambit_wire::Authority;

use super::{Admitted, Arrival, Inbound, Refusal, admit, still_admitted};
use crate::address::Vip;
use crate::fixture::{
    CART, WAYPOINT, at, gateway, identity, ip, key, policy, shop, shop_with, socket,
};
use crate::policy::{Action, Match, PolicyKey, Scope, ServiceAccount, StringMatch};
use crate::reason::Reason;
use crate::service::{Port, WeightedWaypoint};
use crate::update::{Change, apply};
use crate::view::View;
use crate::workload::{ApplicationProtocol, ApplicationTunnel};

/// A stream of shop/web to `local` at `connection` that asks for `authority`.
fn tunnel(
    view: &View,
    local: &str,
    connection: &str,
    authority: &str,
) -> Result<Admitted, Refusal> {
    let authority: Authority = authority.parse().unwrap();
    let peer = identity("shop", "web");
    let inbound = Inbound {
        local,
        connection: socket(connection),
        peer_address: socket("10.0.0.1:40000"),
        arrival: Arrival::Tunnel {
            authority: &authority,
            peer: &peer,
        },
    };
    admit(view, &inbound)
}

fn plain(view: &View, local: &str, connection: &str) -> Result<Admitted, Refusal> {
    let inbound = Inbound {
        local,
        connection: socket(connection),
        peer_address: socket("10.0.0.1:40000"),
        arrival: Arrival::Plaintext,
    };
    admit(view, &inbound)
}

/// The target, or the reason.
fn outcome(result: Result<Admitted, Refusal>) -> String {
    match result {
        Ok(admitted) => admitted.upstream().to_string(),
        Err(refusal) => format!("{:?}", refusal.reason),
    }
}

const TUNNEL: &str = "10.0.0.2:15008";

fn deny(name: &str, scope: Scope, account: &str) -> Change {
    let account = ServiceAccount {
        namespace: "shop".into(),
        name: account.into(),
    };
    let fields = Match {
        service_accounts: vec![account.into()],
        ..Match::default()
    };
    Change::UpsertPolicy(policy(name, scope, Action::Deny, vec![vec![fields]]))
}

#[test]
fn reaches_the_port_that_was_asked_for_at_the_address_that_was_connected_to() {
    let view = shop();
    let cases = [
        ("10.0.0.2:8080", "10.0.0.2:8080"),
        ("10.0.0.2:9999", "10.0.0.2:9999"),
        ("10.0.0.1:8080", "AuthorityMismatch"),
        ("10.1.0.2:80", "AuthorityMismatch"),
        ("127.0.0.1:8080", "AuthorityMismatch"),
        ("[::1]:8080", "AuthorityMismatch"),
        ("cart.shop.svc.cluster.local:80", "10.0.0.2:8080"),
        ("CART.shop.svc.cluster.local:80", "10.0.0.2:8080"),
        ("cart.shop.svc.cluster.local:81", "PortUnresolved"),
        ("gone.shop.svc.cluster.local:80", "PortUnresolved"),
        ("10.0.0.2:15001", "SelfCall"),
        ("10.0.0.2:15006", "SelfCall"),
        ("10.0.0.2:15008", "SelfCall"),
    ];
    for (authority, expected) in cases {
        assert_eq!(
            outcome(tunnel(&view, CART, TUNNEL, authority)),
            expected,
            "{authority}"
        );
    }
    let gone = tunnel(&view, "gone", TUNNEL, "10.0.0.2:80");
    assert_eq!(outcome(gone), "UnknownDestination");
}

#[test]
fn says_what_does_not_agree() {
    let refusal = tunnel(&shop(), CART, TUNNEL, "10.0.0.1:80").unwrap_err();
    assert_eq!(refusal.to_string(), "ip mismatch: 10.0.0.2 != 10.0.0.1");
    assert_eq!(refusal.reason.status(), 400);
}

#[test]
fn takes_the_own_port_of_the_workload_before_that_of_the_service() {
    let view = shop_with(
        |cart| {
            let port = Port {
                service_port: 80,
                target_port: 7070,
            };
            cart.services.insert(key("shop", "cart"), vec![port]);
        },
        |_| {},
    );
    let authority = "cart.shop.svc.cluster.local:80";
    assert_eq!(
        outcome(tunnel(&view, CART, TUNNEL, authority)),
        "10.0.0.2:7070"
    );
    let admitted = tunnel(&view, CART, TUNNEL, authority).unwrap();
    assert_eq!(admitted.service().unwrap().key, key("shop", "cart"));
}

#[test]
fn lets_a_waypoint_take_what_is_addressed_to_its_services_and_workloads() {
    let weighted = WeightedWaypoint {
        destination: at("10.0.0.9"),
        weight: 1,
    };
    let connection = "10.0.0.9:15008";
    for waypoint in [
        gateway(&key("shop", "waypoint")),
        at("10.0.0.9"),
        at("10.1.0.9"),
    ] {
        let view = shop_with(|_| {}, |service| service.waypoint = Some(waypoint.clone()));
        assert_eq!(
            outcome(tunnel(&view, WAYPOINT, connection, "10.1.0.2:80")),
            "10.0.0.9:80"
        );
        let other = tunnel(&view, WAYPOINT, connection, "10.1.0.1:80");
        assert_eq!(outcome(other), "AuthorityMismatch");
        let wrong = tunnel(&view, CART, TUNNEL, "10.1.0.2:80");
        assert_eq!(outcome(wrong), "AuthorityMismatch");
        let view = shop_with(|cart| cart.waypoint = Some(waypoint.clone()), |_| {});
        assert_eq!(
            outcome(tunnel(&view, WAYPOINT, connection, "10.0.0.2:80")),
            "10.0.0.9:80"
        );
    }
    let view = shop_with(
        |_| {},
        |service| service.weighted_waypoints = vec![weighted],
    );
    assert_eq!(
        outcome(tunnel(&view, WAYPOINT, connection, "10.1.0.2:80")),
        "10.0.0.9:80"
    );
}

#[test]
fn replaces_the_port_for_an_application_tunnel_and_tells_it_who_calls() {
    let tunnel_to = |protocol, port| {
        shop_with(
            |cart| cart.application_tunnel = Some(ApplicationTunnel { protocol, port }),
            |service| {
                let vip = |text: &str| Vip::single("far".into(), ip(text));
                service.vips.insert(0, vip("10.9.0.1"));
                service.vips.push(Vip::single("".into(), ip("2001:db8::2")));
            },
        )
    };
    let proxy = tunnel_to(ApplicationProtocol::Proxy, Some(15088));
    let name = "cart.shop.svc.cluster.local";
    let cases = [
        (
            "10.1.0.1:80",
            "10.1.0.1:80",
            Some("web.shop.svc.cluster.local"),
        ),
        ("10.0.0.2:80", "10.0.0.2:80", None),
        ("cart.shop.svc.cluster.local:80", "10.1.0.2:80", Some(name)),
    ];
    for (authority, destination, service) in cases {
        let admitted = tunnel(&proxy, CART, TUNNEL, authority).unwrap();
        assert_eq!(admitted.upstream(), socket("10.0.0.2:15088"), "{authority}");
        let header = admitted.header().unwrap();
        assert_eq!(header.source, socket("10.0.0.1:40000"));
        assert_eq!(header.destination, socket(destination));
        assert_eq!(
            header.identity.as_deref(),
            Some("spiffe://cluster.local/ns/shop/sa/web")
        );
        assert_eq!(header.service.as_deref(), service, "{authority}");
    }
    let none = tunnel_to(ApplicationProtocol::None, None);
    let admitted = tunnel(&none, CART, TUNNEL, "10.1.0.1:80").unwrap();
    assert_eq!(
        (admitted.upstream(), admitted.header()),
        (socket("10.0.0.2:80"), None)
    );
    let circle = tunnel_to(ApplicationProtocol::Proxy, Some(15008));
    assert_eq!(
        outcome(tunnel(&circle, CART, TUNNEL, "10.1.0.1:80")),
        "SelfCall"
    );
}

#[test]
fn asks_the_policies_about_the_port_the_application_is_reached_on() {
    let view = shop_with(
        |cart| {
            let protocol = ApplicationProtocol::None;
            cart.application_tunnel = Some(ApplicationTunnel {
                protocol,
                port: Some(9000),
            });
        },
        |_| {},
    );
    let fields = |port: u16| Match {
        destination_ports: vec![port.into()],
        ..Match::default()
    };
    for (port, expected) in [(9000, "PolicyDenied"), (80, "10.0.0.2:9000")] {
        let deny = policy(
            "shop/p",
            Scope::Namespace,
            Action::Deny,
            vec![vec![fields(port)]],
        );
        let view = apply(&view, [Change::UpsertPolicy(deny)]);
        assert_eq!(
            outcome(tunnel(&view, CART, TUNNEL, "10.0.0.2:80")),
            expected
        );
    }
}

#[test]
fn refuses_by_policy_with_the_words_and_the_status_of_the_contract() {
    let view = apply(&shop(), [deny("shop/deny", Scope::Namespace, "web")]);
    let refusal = tunnel(&view, CART, TUNNEL, "10.0.0.2:8080").unwrap_err();
    assert_eq!(refusal.to_string(), "explicitly denied by: shop/deny");
    assert_eq!(
        (refusal.reason.status(), refusal.reason.flag()),
        (401, "DENY")
    );
    let mut allow = policy("shop/allow", Scope::Namespace, Action::Allow, vec![]);
    allow.rules.clear();
    let view = apply(&shop(), [Change::UpsertPolicy(allow)]);
    let refusal = tunnel(&view, CART, TUNNEL, "10.0.0.2:8080").unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "allow policies exist, but none allowed"
    );
    let view = shop_with(
        |cart| cart.policies = vec![PolicyKey::parse("shop/late")],
        |_| {},
    );
    let refusal = tunnel(&view, CART, TUNNEL, "10.0.0.2:8080").unwrap_err();
    assert_eq!(refusal.to_string(), "policy is not known yet: shop/late");
}

#[test]
fn takes_plaintext_unless_a_policy_asks_for_an_identity() {
    let view = shop();
    assert_eq!(
        outcome(plain(&view, CART, "10.0.0.2:8080")),
        "10.0.0.2:8080"
    );
    assert_eq!(plain(&view, CART, "10.0.0.2:8080").unwrap().peer(), None);
    for port in ["15001", "15006", "15008"] {
        assert_eq!(
            outcome(plain(&view, CART, &format!("10.0.0.2:{port}"))),
            "SelfCall"
        );
    }
    let name = "istio-system/istio_converted_static_strict";
    let present = vec![StringMatch::Presence.into()];
    let fields = Match {
        not_principals: present,
        ..Match::default()
    };
    let strict = policy(
        name,
        Scope::WorkloadSelector,
        Action::Deny,
        vec![vec![fields]],
    );
    let view = shop_with(|cart| cart.policies = vec![PolicyKey::parse(name)], |_| {});
    let view = apply(&view, [Change::UpsertPolicy(strict)]);
    assert_eq!(outcome(plain(&view, CART, "10.0.0.2:8080")), "PolicyDenied");
    assert_eq!(
        outcome(tunnel(&view, CART, TUNNEL, "10.0.0.2:8080")),
        "10.0.0.2:8080"
    );
}

#[test]
fn ends_a_live_connection_that_a_change_forbids_at_any_reach() {
    let before = shop();
    let admitted = tunnel(&before, CART, TUNNEL, "10.0.0.2:8080").unwrap();
    assert_eq!(still_admitted(&before, &admitted), Ok(()));
    let mut listing = (**before.workload(CART).unwrap()).clone();
    listing.policies = vec![PolicyKey::parse("shop/deny")];
    let listed = Change::UpsertWorkload(listing);
    let forbidding = [
        vec![deny("shop/deny", Scope::Namespace, "web")],
        vec![deny("istio-system/deny", Scope::Global, "web")],
        vec![
            deny("shop/deny", Scope::WorkloadSelector, "web"),
            listed.clone(),
        ],
    ];
    for changes in forbidding {
        let refusal = still_admitted(&apply(&before, changes.clone()), &admitted).unwrap_err();
        assert_eq!(refusal.reason, Reason::PolicyChanged, "{changes:?}");
        assert!(refusal.policy.is_some());
        assert_eq!(
            refusal.to_string(),
            "connection closed due to policy change"
        );
    }
    // The workload lists a policy that has not come yet: told apart, so that it may still come.
    let refusal = still_admitted(&apply(&before, [listed]), &admitted).unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyUnresolved);
    assert_eq!(refusal.policy, Some(PolicyKey::parse("shop/deny")));
    let harmless = [
        vec![deny("shop/deny", Scope::Namespace, "other")],
        vec![deny("other/deny", Scope::Namespace, "web")],
        vec![deny("shop/deny", Scope::WorkloadSelector, "web")],
        vec![Change::RemoveAddress(CART.into())],
    ];
    for changes in harmless {
        assert_eq!(
            still_admitted(&apply(&before, changes.clone()), &admitted),
            Ok(()),
            "{changes:?}"
        );
    }
}

#[test]
fn goes_on_asking_about_a_workload_that_is_gone() {
    let admitted = tunnel(&shop(), CART, TUNNEL, "10.0.0.2:8080").unwrap();
    let gone = [
        Change::RemoveAddress(CART.into()),
        deny("shop/deny", Scope::Namespace, "web"),
    ];
    assert!(still_admitted(&apply(&shop(), gone), &admitted).is_err());
}

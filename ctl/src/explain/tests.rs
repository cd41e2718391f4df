use serde_json::{Value, json};

use super::{Enrolment, gather, text};
use crate::dump::{Dump, Pods};

fn dump() -> Dump {
    Dump::read(json!({
        "workloads": [{"uid": "c//Pod/shop/web", "name": "web", "namespace": "shop", "node": "n1",
            "protocol": "HBONE", "workloadIps": ["10.0.0.1"], "trustDomain": "cluster.local",
            "serviceAccount": "web", "authorizationPolicies": ["shop/only-web"]}],
        "certificates": [{"identity": "spiffe://cluster.local/ns/shop/sa/web", "state": "Available",
            "certChain": [{"serialNumber": "1", "expirationTime": "2999-01-01T00:00:00Z"}]}],
        "workloadState": {"u": {"state": "Up",
            "info": {"name": "web", "namespace": "shop", "serviceAccount": "web"},
            "connections": {"inbound": [{}], "outbound": []}}},
    }))
    .unwrap()
}

fn agent(pod: &Value) -> anyhow::Result<Pods> {
    Ok(serde_json::from_value(
        json!({"node": "n1", "nodeProxiesConnected": 1, "pods": [pod]}),
    )?)
}

fn enrolled() -> Value {
    json!({"namespace": "shop", "name": "web", "wanted": true, "why": "its namespace is labelled",
        "state": "enrolled", "rules": "capture", "proxy": "serves", "announced": "enabled",
        "netnsPath": "/run/netns/web", "netns": "4:5", "lastError": null, "mended": 2})
}

#[test]
fn an_enrolled_pod_is_explained_from_the_label_to_the_certificate() {
    let explained = gather("shop", "web", &dump(), agent(&enrolled()), None, None).unwrap();
    let text = text(&explained);
    for line in [
        "Pod shop/web",
        "enrolled       yes: its namespace is labelled",
        "state          enrolled: new connections are redirected, the node proxy serves it, others are told to use HBONE",
        "namespace      /run/netns/web (4:5)",
        "rules mended   2 times",
        "identity       spiffe://cluster.local/ns/shop/sa/web",
        "waypoint       None",
        "selected by    shop/only-web",
        "proxy          Up, 1 inbound and 0 outbound connections open",
        "certificate    Available, valid until 2999-01-01T00:00:00Z",
    ] {
        assert!(text.contains(line), "{line}\nnot in\n{text}");
    }
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["enrolment"]["why"], "its namespace is labelled");
    assert_eq!(json["proxy"]["state"], "Up");
}

#[test]
fn a_wanted_pod_that_names_no_namespace_is_said_to_be_outside() {
    let mut pod = enrolled();
    pod["netnsPath"] = Value::Null;
    pod["netns"] = Value::Null;
    let line = "namespace      not named: without the annotation ambit.io/netns the pod stays outside the mesh";
    let said = |pod: &Value| text(&gather("shop", "web", &dump(), agent(pod), None, None).unwrap());
    assert!(said(&pod).contains(line), "{}", said(&pod));
    pod["wanted"] = json!(false);
    assert!(!said(&pod).contains(line), "{}", said(&pod));
}

#[test]
fn what_keeps_a_pod_out_is_said() {
    let mut pod = enrolled();
    pod["wanted"] = json!(false);
    pod["why"] = json!("the pod is labelled none");
    pod["lastError"] = json!("the node proxy refused: no port");
    let text = text(&gather("shop", "web", &dump(), agent(&pod), None, None).unwrap());
    assert!(text.contains("no: the pod is labelled none"), "{text}");
    assert!(text.contains("the node proxy refused: no port"), "{text}");
}

#[test]
fn an_agent_that_cannot_be_asked_is_said_and_a_pod_that_nobody_knows_is_an_error() {
    let gone = || Err(anyhow::anyhow!("nothing answers"));
    let explained = gather("shop", "web", &dump(), gone(), None, None).unwrap();
    assert!(text(&explained).contains("could not be asked: nothing answers"));
    let unknown = gather("shop", "nobody", &dump(), gone(), None, None).unwrap_err();
    assert!(
        unknown.to_string().contains("no pod shop/nobody"),
        "{unknown}"
    );
    let elsewhere = gather(
        "shop",
        "web",
        &dump(),
        agent(&json!({"name": "other"})),
        None,
        None,
    );
    assert!(matches!(
        elsewhere.unwrap().enrolment,
        Enrolment::OtherNode { .. }
    ));
}

#[test]
fn a_connection_is_explained_with_the_policies_that_decide() {
    let target = "cart.shop:80".parse().unwrap();
    let answer = json!({
        "destination": "10.96.0.1:80",
        "route": {"kind": "waypoint", "nextHop": "10.0.0.9:15008", "authority": "10.96.0.1:80",
            "expected": ["spiffe://cluster.local/ns/shop/sa/waypoint"], "workload": "c//Pod/shop/waypoint",
            "service": {"namespace": "shop", "hostname": "cart.shop.svc.cluster.local"}},
        "admission": {"enforced": true, "mutualTls": true, "decision": {"allowed": false,
            "reason": "denied by: shop/deny",
            "rehearsed": {"allowed": true, "reason": "allowed by: shop/try", "decidedBy": "shop/try"},
            "policies": [
                {"policy": "shop/deny", "action": "Deny", "scope": "Namespace", "matchedRule": 0,
                 "dryRun": false, "problems": []},
                {"policy": "shop/try", "action": "Allow", "scope": "Global", "matchedRule": null,
                 "dryRun": true, "problems": ["x"]}]}},
    });
    let explained = gather(
        "shop",
        "web",
        &dump(),
        agent(&enrolled()),
        Some(&target),
        Some(answer),
    )
    .unwrap();
    let text = text(&explained);
    for line in [
        "To cart.shop:80",
        "service        cart.shop.svc.cluster.local",
        "route          over HBONE through the waypoint at 10.0.0.9:15008, CONNECT 10.96.0.1:80",
        "must prove     spiffe://cluster.local/ns/shop/sa/waypoint",
        "decision       refused: denied by: shop/deny",
        "dry run        would be allowed: allowed by: shop/try",
        "shop/deny   Deny     Namespace   rule 1",
        "shop/try    Allow    Global      no        dry run, 1 values not understood",
    ] {
        assert!(text.contains(line), "{line}\nnot in\n{text}");
    }
}

#[test]
fn the_outside_and_refusals_are_explained_too() {
    let target = "192.0.2.1:80".parse().unwrap();
    let explain = |answer: Value| {
        text(
            &gather(
                "shop",
                "web",
                &dump(),
                agent(&enrolled()),
                Some(&target),
                Some(answer),
            )
            .unwrap(),
        )
    };
    let plain = json!({"destination": "192.0.2.1:80", "route": {"kind": "plain", "nextHop": "192.0.2.1:80"},
        "admission": null});
    let shown = explain(plain);
    assert!(shown.contains("in plaintext to 192.0.2.1:80"), "{shown}");
    assert!(shown.contains("none apply"), "{shown}");
    let named = json!({"destination": "10.96.0.7:80", "route": {"kind": "named", "hostname": "db.example",
        "workload": "c//ServiceEntry/shop/db"}, "admission": null});
    let shown = explain(named);
    assert!(shown.contains("to an address of db.example"), "{shown}");
    let refused = json!({"destination": "10.0.0.3:80", "route": {"kind": "refused", "reason": "no healthy upstream"}});
    assert!(explain(refused).contains("refused by the node proxy: no healthy upstream"));
}

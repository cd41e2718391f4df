use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::{Decision, Labels, Policy, Why, decide};

fn pod(value: serde_json::Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

fn labels(mode: &str) -> Labels {
    if mode.is_empty() {
        return Labels::new();
    }
    Labels::from([(super::MODE_LABEL.to_owned(), mode.to_owned())])
}

fn plain(mode: &str) -> Pod {
    pod(json!({"metadata": {"name": "p", "namespace": "shop", "labels": labels(mode)}}))
}

#[test]
fn the_label_of_the_pod_wins_over_that_of_the_namespace() {
    use Decision::{In, Out};
    let table = [
        ("", "", Out(Why::NotSelected)),
        ("", "ambient", In(Why::NamespaceLabel)),
        ("", "none", Out(Why::NotSelected)),
        ("ambient", "", In(Why::PodLabel)),
        ("ambient", "none", In(Why::PodLabel)),
        ("ambient", "ambient", In(Why::PodLabel)),
        ("none", "", Out(Why::OptedOut)),
        ("none", "ambient", Out(Why::OptedOut)),
        ("other", "ambient", In(Why::NamespaceLabel)),
        ("other", "", Out(Why::NotSelected)),
    ];
    for (on_pod, on_namespace, expected) in table {
        let decision = decide(&Policy::default(), &plain(on_pod), &labels(on_namespace));
        assert_eq!(
            decision, expected,
            "pod {on_pod:?}, namespace {on_namespace:?}"
        );
    }
}

#[test]
fn what_rules_a_pod_out_beats_every_label() {
    let ambient = json!({super::MODE_LABEL: "ambient"});
    let table = [
        (
            json!({"metadata": {"name": "p", "namespace": "kube-system", "labels": ambient}}),
            Decision::Out(Why::NamespaceExcluded),
        ),
        (
            json!({"metadata": {"name": "p", "namespace": "shop", "labels": ambient},
                "spec": {"hostNetwork": true, "containers": []}}),
            Decision::Out(Why::HostNetwork),
        ),
        (
            json!({"metadata": {"name": "p", "namespace": "shop", "labels": ambient,
                "annotations": {super::SIDECAR_ANNOTATION: "{}"}}}),
            Decision::Out(Why::Sidecar),
        ),
        (
            json!({"metadata": {"name": "p", "namespace": "shop", "labels": ambient},
                "status": {"phase": "Succeeded"}}),
            Decision::Ended(Why::Finished("Succeeded".into())),
        ),
        (
            json!({"metadata": {"name": "z", "namespace": "istio-system",
                "labels": {super::MODE_LABEL: "ambient", "app": "ztunnel"}}}),
            Decision::Out(Why::NodeProxy),
        ),
    ];
    for (value, expected) in table {
        assert_eq!(
            decide(&Policy::default(), &pod(value), &labels("ambient")),
            expected
        );
    }
}

#[test]
fn a_pod_that_only_is_named_like_the_proxy_is_not_the_proxy() {
    let named =
        pod(json!({"metadata": {"name": "z", "namespace": "shop", "labels": {"app": "ztunnel"}}}));
    assert!(decide(&Policy::default(), &named, &labels("ambient")).is_in());
}

#[test]
fn configured_selectors_replace_the_defaults() {
    let selectors = serde_json::from_value(json!([
        {"podSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]},
         "namespaceSelector": {"matchExpressions": [{"key": "legacy", "operator": "DoesNotExist"}]}},
        {"podSelector": {"matchLabels": {"mesh": "yes"}}},
    ]))
    .unwrap();
    let policy = Policy {
        selectors,
        ..Policy::default()
    };
    let labelled = |labels: serde_json::Value| {
        pod(json!({"metadata": {"name": "p", "namespace": "shop", "labels": labels}}))
    };
    let none = Labels::new();
    let legacy = Labels::from([("legacy".to_owned(), "1".to_owned())]);
    let decided = |labels, namespace| decide(&policy, &labelled(labels), namespace);
    assert_eq!(
        decided(json!({"team": "b"}), &none),
        Decision::In(Why::Selector(0))
    );
    assert_eq!(
        decided(json!({"team": "b"}), &legacy),
        Decision::Out(Why::NotSelected)
    );
    assert_eq!(
        decided(json!({"team": "c"}), &none),
        Decision::Out(Why::NotSelected)
    );
    assert_eq!(
        decided(json!({"mesh": "yes"}), &legacy),
        Decision::In(Why::Selector(1))
    );
}

#[test]
fn an_operator_that_is_not_known_selects_nothing() {
    let selectors = serde_json::from_value(json!([
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]}},
    ]))
    .unwrap();
    let policy = Policy {
        selectors,
        ..Policy::default()
    };
    assert!(!decide(&policy, &plain("ambient"), &labels("ambient")).is_in());
}

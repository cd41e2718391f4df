use std::path::Path;

use ambit_objects::{Name, Objects, Severity};
use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal};

use super::{Compiled, compile, never};
use crate::finding::{Finding, Findings};

fn compiled(spec: &str) -> (Compiled, Vec<Finding>) {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    let objects = Objects::from_text(Path::new("test.yaml"), &text);
    let name = Name::new("shop", "p");
    let mut findings = Findings::default();
    let compiled = compile(
        &name,
        &objects.authorization_policies[&name],
        true,
        &mut findings,
    );
    (compiled, findings.into_sorted())
}

fn always() -> Policy {
    Policy {
        principals: vec![Principal {
            identifier: Some(Identifier::Any(true)),
        }],
        permissions: vec![Permission {
            rule: Some(Rule::Any(true)),
        }],
        ..Policy::default()
    }
}

fn policies(list: &[(String, Policy)]) -> Vec<Policy> {
    list.iter().map(|(_, policy)| policy.clone()).collect()
}

/// What of a rule cannot be understood by anybody.
const NOBODY: &[&str] = &[
    "rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]",
    "rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]",
    "rules: [{from: [{source: {notIpBlocks: [nonsense]}}]}]",
    "rules: [{from: [{source: {principals: [\"\"]}}]}]",
    "rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]",
    "rules: [{from: [{source: {ipBlock: [10.0.0.1]}}]}]",
    "rules: [{from: [{source: {}}]}]",
    "rules: [{form: [{source: {namespaces: [a]}}]}]",
    "rules: [{to: [{operation: {ports: [http]}}]}]",
    "rules: [{to: [{operation: {ports: [\"70000\"]}}]}]",
    "rules: [{to: [{operation: {paths: [\"/{name}/x\"]}}]}]",
    "rules: [{when: [{key: source.namespce, values: [a]}]}]",
    "rules: [{when: [{key: source.ip, value: [10.0.0.1]}]}]",
    "rules: [{when: [{key: source.ip}]}]",
    "rules: [{when: [{key: \"request.headers[a b]\", values: [c]}]}]",
    "rule: [{from: [{source: {namespaces: [a]}}]}]",
];

#[test]
fn what_cannot_be_understood_allows_nothing_and_denies_everything() {
    for spec in NOBODY {
        for (action, expected) in [("ALLOW", never()), ("DENY", always())] {
            let (compiled, told) = compiled(&format!("{{action: {action}, {spec}}}"));
            let expected = [expected];
            assert_eq!(policies(&compiled.http), expected, "HTTP {action} {spec}");
            assert_eq!(policies(&compiled.tcp), expected, "TCP {action} {spec}");
            assert!(
                told.iter().any(|one| one.severity == Severity::Error),
                "{action} {spec}: it must be told: {told:#?}"
            );
        }
    }
}

/// A rule with something that cannot be understood; what an ALLOW and what a DENY come to, where
/// nothing stands for a rule that is not used.
const IN_PART: &[(&str, &str, &str)] = &[
    (
        "{from: [{source: {namespaces: [a], ipBlocks: [nonsense]}}]}",
        "",
        "{from: [{source: {namespaces: [a]}}]}",
    ),
    (
        "{from: [{source: {namespaces: [a], ipBlock: [10.0.0.1]}}]}",
        "",
        "{from: [{source: {namespaces: [a]}}]}",
    ),
    // One good value: an ALLOW may use it, to a DENY the list says too little.
    (
        "{from: [{source: {ipBlocks: [10.0.0.1, nonsense], namespaces: [a]}}]}",
        "{from: [{source: {ipBlocks: [10.0.0.1], namespaces: [a]}}]}",
        "{from: [{source: {namespaces: [a]}}]}",
    ),
    // Of exceptions the other way round.
    (
        "{from: [{source: {notIpBlocks: [10.0.0.1, nonsense], namespaces: [a]}}]}",
        "",
        "{from: [{source: {notIpBlocks: [10.0.0.1], namespaces: [a]}}]}",
    ),
    (
        "{from: [{source: {namespaces: [a]}}], when: [{key: no.such, values: [b]}]}",
        "",
        "{from: [{source: {namespaces: [a]}}]}",
    ),
    (
        "{to: [{operation: {ports: [\"80\", http]}}]}",
        "{to: [{operation: {ports: [\"80\"]}}]}",
        "{}",
    ),
];

#[test]
fn a_rule_that_is_understood_in_part_is_no_weaker() {
    for (rule, allow, deny) in IN_PART {
        for (action, expected) in [("ALLOW", allow), ("DENY", deny)] {
            let (found, told) = compiled(&format!("{{action: {action}, rules: [{rule}]}}"));
            let (expected, nothing) =
                compiled(&format!("{{action: {action}, rules: [{expected}]}}"));
            assert_eq!(
                policies(&found.http),
                policies(&expected.http),
                "HTTP {action} {rule}"
            );
            assert_eq!(
                policies(&found.tcp),
                policies(&expected.tcp),
                "TCP {action} {rule}"
            );
            assert_eq!(nothing, [], "the plain form is clean");
            assert_ne!(told, [], "{action} {rule}: it must be told");
        }
    }
}

#[test]
fn on_tcp_ports_http_conditions_allow_nothing_and_are_not_asked_of_a_deny() {
    let rule =
        "rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}]";
    let (allow, _) = compiled(&format!("{{action: ALLOW, {rule}}}"));
    assert_eq!(policies(&allow.tcp), [never()]);
    let (deny, _) = compiled(&format!("{{action: DENY, {rule}}}"));
    let (plain, _) = compiled("{action: DENY, rules: [{from: [{source: {namespaces: [a]}}]}]}");
    assert_eq!(policies(&deny.tcp), policies(&plain.tcp));
    assert_ne!(policies(&deny.http), policies(&plain.http));
}

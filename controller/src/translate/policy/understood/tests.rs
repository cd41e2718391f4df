use std::path::Path;
use std::sync::Arc;

use ambit_objects::{Objects, Severity};

use crate::config::Mesh;
use crate::translate::policy::tests::rules;
use crate::translate::{Resources, translate};

fn policy(spec: &str) -> Resources {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    let objects = Objects::from_text(Path::new("test.yaml"), &text);
    translate(Arc::new(objects), Mesh::default()).1
}

/// Fields that nobody knows; what a node proxy gets of an ALLOW and of a DENY.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    (
        "rules: [{from: [{source: {namespaces: [a], ipBlock: [10.0.0.1]}}]}]",
        &[],
        &["namespace=a"],
    ),
    (
        "rules: [{from: [{source: {ipBlock: [10.0.0.1]}}]}, {from: [{source: {namespaces: [b]}}]}]",
        &["namespace=b"],
        &["", "namespace=b"],
    ),
    ("rules: [{form: [{source: {namespaces: [a]}}]}]", &[], &[""]),
    ("rules: [{from: [{sorce: {namespaces: [a]}}]}]", &[], &[""]),
    (
        "rules: [{when: [{key: source.ip, value: [10.0.0.1]}]}]",
        &[],
        &[""],
    ),
    // What is left is of HTTP; what is unknown may not have been.
    (
        "rules: [{to: [{operation: {methods: [GET], port: [\"80\"]}}]}]",
        &[],
        &[""],
    ),
    // Outside of the rules.
    (
        "selector: {matchLabels: {app: a}, matchExpressions: [{key: a, operator: Exists}]}, rules: [{to: [{operation: {ports: [\"80\"]}}]}]",
        &[],
        &[""],
    ),
    ("rule: [{to: [{operation: {ports: [\"80\"]}}]}]", &[], &[""]),
    (
        "acton: DENY, rules: [{to: [{operation: {ports: [\"80\"]}}]}]",
        &[],
        &[""],
    ),
];

#[test]
fn a_field_that_nobody_knows_never_makes_a_policy_weaker() {
    for (spec, allowed, denied) in TABLE {
        for (action, expected) in [("ALLOW", allowed), ("DENY", denied)] {
            let resources = policy(&format!("{{action: {action}, {spec}}}"));
            let sent = rules(&resources.authorizations["shop/p"]);
            assert_eq!(sent, **expected, "{action} {spec}");
            let told = resources.findings.iter().filter(|finding| {
                finding.name.to_string() == "shop/p"
                    && finding.severity == Severity::Error
                    && finding.message.starts_with("unknown field; ")
            });
            assert_eq!(told.count(), 1, "{action} {spec}");
        }
    }
}

#[test]
fn says_which_field_is_unknown_and_what_follows() {
    let resources = policy("{rules: [{from: [{source: {namespaces: [a], ipBlock: [10.0.0.1]}}]}]}");
    assert_eq!(
        resources.findings[0].to_string(),
        "AuthorizationPolicy shop/p: spec.rules[0].from[0].source.ipBlock: unknown field; the rule allows nothing"
    );
    let resources = policy("{action: DENY, rule: [{}]}");
    assert_eq!(
        resources.findings[0].to_string(),
        "AuthorizationPolicy shop/p: spec.rule: unknown field; the policy denies everything"
    );
}

#[test]
fn unknown_fields_outside_of_the_spec_change_nothing() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, colour: red}\nspec: {rules: [{from: [{source: {namespaces: [a]}}]}]}\n";
    let objects = Objects::from_text(Path::new("test.yaml"), text);
    let resources = translate(Arc::new(objects), Mesh::default()).1;
    assert_eq!(rules(&resources.authorizations["shop/p"]), ["namespace=a"]);
    assert_eq!(resources.findings, []);
}

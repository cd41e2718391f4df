use std::path::Path;

use super::{Parsed, parse};
use crate::kinds::{Key, Kind, Name, Object};
use crate::problem::Severity;

fn read(text: &str) -> Parsed {
    parse(Path::new("shop.yaml"), text)
}

fn told(parsed: &Parsed) -> Vec<String> {
    parsed.problems.iter().map(ToString::to_string).collect()
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n";

#[test]
fn reads_every_kind() {
    let text = include_str!("kinds.yaml");
    let parsed = read(text);
    assert_eq!(told(&parsed), Vec::<String>::new());
    let kinds: Vec<&str> = parsed
        .objects
        .iter()
        .map(|found| found.object.kind().as_str())
        .collect();
    assert_eq!(
        kinds,
        [
            "Namespace",
            "Node",
            "Pod",
            "Service",
            "EndpointSlice",
            "ServiceAccount",
            "Gateway",
            "GatewayClass",
            "HTTPRoute",
            "AuthorizationPolicy",
            "PeerAuthentication"
        ]
    );
    for found in &parsed.objects {
        let start = text.lines().nth(found.line - 1).unwrap();
        assert!(
            start.starts_with("apiVersion"),
            "line {} is {start}",
            found.line
        );
    }
    let Object::PeerAuthentication(peer) = &parsed.objects[10].object else {
        panic!()
    };
    assert!(
        peer.spec
            .port_level_mtls
            .as_ref()
            .unwrap()
            .contains_key(&8080)
    );
}

#[test]
fn a_list_is_its_items() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n";
    let parsed = read(text);
    let names: Vec<String> = parsed
        .objects
        .iter()
        .map(|found| found.object.key().to_string())
        .collect();
    assert_eq!(names, ["Namespace a", "Namespace b"]);
}

#[test]
fn names_file_line_and_field_of_each_mistake() {
    let table: &[(&str, &str)] = &[
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n",
            "shop.yaml:4: metadata.namespace: this Pod has no namespace",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: shop\n",
            "shop.yaml:4: metadata.name: this Pod has no name",
        ),
        (
            "kind: Pod\nmetadata: {name: a, namespace: b}\n",
            "shop.yaml:1: apiVersion: not a Kubernetes object: apiVersion is missing or no string",
        ),
        (
            "just text\n",
            "shop.yaml:1: kind: not a Kubernetes object: kind is missing or no string",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: b}\n",
            "shop.yaml:2: kind: kind Deployment of apps/v1 is not read here; it is skipped",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: b}\n",
            "shop.yaml:2: kind: kind Gateway of networking.istio.io/v1 is not read here; it is skipped",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\nspec:\n  ports:\n  - port: 80\n  - port: eighty\n",
            "shop.yaml:9: spec.ports[1].port: invalid type: string \"eighty\", expected i32",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec:\n  action: PERMIT\n",
            "shop.yaml:5: spec.action: unknown variant `PERMIT`, expected one of `ALLOW`, `DENY`, `AUDIT`, `CUSTOM`",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: b}\nspec:\n  portLevelMtls:\n    70000: {mode: STRICT}\n",
            "spec.portLevelMtls",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    istio.io/dataplane-mode: true\n",
            "shop.yaml:6: metadata.labels",
        ),
    ];
    for (text, expected) in table {
        let parsed = read(text);
        assert_eq!(parsed.objects.len(), 0, "{text}");
        let told = told(&parsed);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(expected), "{told:?}\nwanted {expected}");
        assert_eq!(parsed.problems[0].severity, Severity::Error);
    }
}

#[test]
fn a_name_that_kubernetes_would_not_take_is_refused() {
    let table = [
        ("a/b", "shop", "metadata.name"),
        ("A", "shop", "metadata.name"),
        ("-a", "shop", "metadata.name"),
        ("a..b", "shop", "metadata.name"),
        ("istio_converted_static_strict", "shop", "metadata.name"),
        ("a", "shop.b", "metadata.namespace"),
        ("a", "..", "metadata.namespace"),
    ];
    for (name, namespace, field) in table {
        let parsed = read(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: \"{name}\", namespace: \"{namespace}\"}}\n"
        ));
        assert_eq!(parsed.objects, [], "{namespace}/{name}");
        assert_eq!(parsed.problems[0].field, field, "{namespace}/{name}");
        assert!(parsed.unidentified, "it may be one of the file's, misspelt");
    }
    let good = "apiVersion: v1\nkind: Pod\nmetadata: {name: a.b-1, namespace: \"1-a\"}\n";
    assert_eq!(told(&read(good)), Vec::<String>::new());
}

#[test]
fn warns_of_fields_that_have_no_effect() {
    let parsed = read(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec:\n  rules:\n  - from:\n    - source:\n        principal: [x]\n",
    );
    assert_eq!(parsed.objects.len(), 1);
    assert_eq!(
        told(&parsed),
        [
            "shop.yaml:8: spec.rules[0].from[0].source.principal: unknown field of AuthorizationPolicy; the policy is read in its strictest sense"
        ]
    );
    assert_eq!(parsed.problems[0].severity, Severity::Warning);
    let parsed = read(&format!(
        "{POD}spec:\n  containers:\n  - name: a\n    imagee: b\n"
    ));
    assert_eq!(parsed.objects.len(), 1);
    assert!(told(&parsed)[0].starts_with("shop.yaml:9: spec.containers[0].imagee:"));
}

#[test]
fn a_broken_document_costs_its_neighbours_nothing() {
    let text = format!(
        "{POD}---\na: [1,\nb: }}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n"
    );
    let parsed = read(&text);
    assert_eq!(parsed.objects.len(), 2);
    assert_eq!(parsed.objects[1].line, 10);
    assert_eq!(parsed.problems.len(), 1);
    assert!(
        (7..=8).contains(&parsed.problems[0].line),
        "{:?}",
        parsed.problems
    );
    assert!(parsed.unidentified);
}

#[test]
fn knows_which_object_a_broken_document_was() {
    let pod = Key {
        kind: Kind::Pod,
        name: Name::new("shop", "web"),
    };
    let no_yaml = format!("{POD}spec:\n  containers: [\n");
    let wrong_type = format!("{POD}spec:\n  nodeName: 7\n");
    for text in [no_yaml, wrong_type] {
        let parsed = read(&text);
        assert_eq!(parsed.broken, std::slice::from_ref(&pod), "{text}");
        assert!(!parsed.unidentified, "{text}");
    }
    let namespace =
        "apiVersion: v1 # core\nkind: \"Namespace\"\nmetadata:\n  name: 'shop'\n  labels: {\n";
    assert_eq!(
        read(namespace).broken,
        [Key {
            kind: Kind::Namespace,
            name: Name::new("", "shop")
        }]
    );
}

#[test]
fn a_marker_line_with_content_starts_the_next_document() {
    let text = "--- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n--- # next\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n...\n";
    let parsed = read(text);
    assert_eq!(told(&parsed), Vec::<String>::new());
    assert_eq!(
        parsed
            .objects
            .iter()
            .map(|found| found.line)
            .collect::<Vec<_>>(),
        [1, 3]
    );
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "[-a-z:{}\\[\\]|>&*!%@` \n'\"#.0-9]{0,200}") {
        read(&text);
        read(&format!("{POD}{text}"));
    }
}

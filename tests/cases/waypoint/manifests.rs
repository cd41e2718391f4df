//! The routes of the shop, as a team would write them.

/// One route with a rule for each case, and one that leaves most paths out.
pub const ROUTES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: mesh}
spec:
  parentRefs: [{group: "", kind: Service, name: shop, port: 80}]
  rules:
  - matches: [{path: {type: Exact, value: /exact}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /prefix}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /prefix/deeper}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: RegularExpression, value: "/re/[0-9]+"}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{headers: [{name: x-tester, value: "yes"}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{headers: [{name: x-number, type: RegularExpression, value: "[0-9]+"}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{queryParams: [{name: side, value: b}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{method: PUT}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /both}, headers: [{name: x-both, value: "1"}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /weights}}]
    backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}]
  - matches: [{path: {type: PathPrefix, value: /redirect}}]
    filters:
    - type: RequestRedirect
      requestRedirect:
        hostname: moved.example
        statusCode: 301
        path: {type: ReplaceFullPath, replaceFullPath: /there}
  - matches: [{path: {type: PathPrefix, value: /rewrite}}]
    filters:
    - type: URLRewrite
      urlRewrite:
        hostname: inner.example
        path: {type: ReplacePrefixMatch, replacePrefixMatch: /written}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /headers}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: x-set, value: new}]
        add: [{name: x-added, value: more}]
        remove: [x-removed]
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{name: x-answer, value: shaped}]
        remove: [content-type]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /secure}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, port: 8443}
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect:
        path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}
  - matches: [{path: {type: PathPrefix, value: /cut}}]
    filters:
    - type: URLRewrite
      urlRewrite:
        path: {type: ReplacePrefixMatch, replacePrefixMatch: /}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /whole}}]
    filters:
    - type: URLRewrite
      urlRewrite:
        path: {type: ReplaceFullPath, replaceFullPath: /one}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /refused}}]
    backendRefs: [{name: refused, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /breaks}}]
    backendRefs: [{name: breaks, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /hang}}]
    timeouts: {request: 400ms}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /empty}}]
    backendRefs: [{name: empty, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /shut}}]
    backendRefs: [{name: shut, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /missing}}]
    backendRefs: [{name: nobody, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /delay}}]
    timeouts: {request: 400ms}
    backendRefs: [{name: v1, port: 80}]
  - backendRefs: [{name: v1, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: narrow, namespace: mesh}
spec:
  parentRefs: [{group: "", kind: Service, name: narrow, port: 80}]
  rules:
  - matches: [{path: {type: Exact, value: /only}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: RegularExpression, value: "/re/[0-9]+"}}]
    backendRefs: [{name: v2, port: 80}]
"#;

/// A route whose rules stand in the wrong order, each of which says its name: the order of the Gateway
/// API counts.
pub fn order() -> String {
    let prefix = |path: &str| format!("path: {{type: PathPrefix, value: {path}}}");
    let header = |name: &str| format!("{{name: {name}, value: \"1\"}}");
    let (a, b) = (header("x-a"), header("x-b"));
    let (q, r) = ("{name: q, value: \"1\"}", "{name: r, value: \"1\"}");
    let rules = [
        ("root", prefix("/")),
        ("first", prefix("/a")),
        ("second", prefix("/a")),
        ("one query", format!("{}, queryParams: [{q}]", prefix("/a"))),
        (
            "two queries",
            format!("{}, queryParams: [{q}, {r}]", prefix("/a")),
        ),
        ("one header", format!("{}, headers: [{a}]", prefix("/a"))),
        (
            "two headers",
            format!("{}, headers: [{a}, {b}]", prefix("/a")),
        ),
        ("method", format!("{}, method: POST", prefix("/a"))),
        ("longer", prefix("/a/c")),
        ("exact", "path: {type: Exact, value: /a/b}".to_owned()),
    ];
    let mut text = String::from(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: order, namespace: mesh}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: order, port: 80}]\n  rules:\n",
    );
    for (name, matches) in rules {
        text += &format!(
            "  - matches: [{{{matches}}}]\n    filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-rule, value: {name}}}]}}}}]\n    backendRefs: [{{name: v1, port: 80}}]\n"
        );
    }
    text
}

/// Rules of services `guarded`, `roles` and `spelled`.
pub fn rules() -> String {
    let policy = super::rules::policy_of;
    let mut text = policy(
        "guarded",
        "guarded-allow",
        "ALLOW",
        "  - from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]\n    to: [{operation: {methods: [GET], paths: [/open*]}}]\n  - when: [{key: \"request.headers[x-key]\", values: [secret]}]",
    );
    text += &policy(
        "guarded",
        "guarded-deny",
        "DENY",
        "  - to: [{operation: {paths: [\"*/admin\"]}}]",
    );
    text += &policy(
        "roles",
        "roles",
        "DENY",
        "  - when: [{key: \"request.headers[x-role]\", values: [root]}]\n  - to: [{operation: {methods: [DELETE]}}]\n  - to: [{operation: {hosts: [secret.mesh]}}]",
    );
    text += &policy(
        "spelled",
        "spelled",
        "DENY",
        "  - to: [{operation: {paths: [/admin, /admin/*]}}]\n  - when: [{key: \"request.headers[x-role]\", values: [root]}]",
    );
    text
}

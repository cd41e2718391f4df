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

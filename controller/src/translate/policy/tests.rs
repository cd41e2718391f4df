use ambit_proto::istio::security::{
    Action, Authorization, Match, Scope, StringMatch, string_match::MatchType,
};

use crate::translate::Resources;
use crate::translate::tests::resources;

fn policy(namespace: &str, spec: &str) -> Resources {
    resources(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    ))
}

fn shop(spec: &str) -> (Option<Authorization>, Vec<String>) {
    let resources = policy("shop", spec);
    let told = resources.findings.iter().map(|finding| {
        assert_eq!(finding.name.to_string(), "shop/p");
        format!("{}: {}", finding.field, finding.message)
    });
    (
        resources.authorizations.get("shop/p").cloned(),
        told.collect(),
    )
}

/// Short form of a policy's rules: clauses by `&`, matches by `|`.
pub(in crate::translate::policy) fn rules(policy: &Authorization) -> Vec<String> {
    let clause = |matches: &[Match]| matches.iter().map(fields).collect::<Vec<_>>().join(" | ");
    policy
        .rules
        .iter()
        .map(|rule| {
            rule.clauses
                .iter()
                .map(|one| clause(&one.matches))
                .collect::<Vec<_>>()
                .join(" & ")
        })
        .collect()
}

fn fields(found: &Match) -> String {
    let mut parts = Vec::new();
    let text = |list: &[StringMatch]| {
        list.iter()
            .map(|one| match one.match_type.as_ref().unwrap() {
                MatchType::Exact(text) => text.clone(),
                MatchType::Prefix(text) => format!("{text}*"),
                MatchType::Suffix(text) => format!("*{text}"),
                MatchType::Presence(()) => "*".to_owned(),
            })
            .collect::<Vec<_>>()
            .join(",")
    };
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            parts.push(format!("{name}={value}"));
        }
    };
    add("principal", text(&found.principals));
    add("not-principal", text(&found.not_principals));
    add("namespace", text(&found.namespaces));
    let accounts = found.service_accounts.iter();
    let accounts: Vec<String> = accounts
        .map(|one| format!("{}/{}", one.namespace, one.service_account))
        .collect();
    add("account", accounts.join(","));
    let ip = |list: &[ambit_proto::istio::security::Address]| {
        list.iter()
            .map(|one| format!("{:?}/{}", one.address.to_vec(), one.length))
            .collect::<String>()
    };
    add("ip", ip(&found.source_ips));
    add("not-ip", ip(&found.not_source_ips));
    add("to", ip(&found.destination_ips));
    let ports = |list: &[u32]| {
        list.iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    add("port", ports(&found.destination_ports));
    add("not-port", ports(&found.not_destination_ports));
    parts.join("+")
}

#[test]
fn translates_what_a_node_proxy_can_check() {
    let table: &[(&str, &[&str])] = &[
        ("{}", &[]),
        ("{rules: []}", &[]),
        ("{rules: [{}]}", &[""]),
        (
            "{rules: [{from: [{source: {principals: [\"cluster.local/ns/a/sa/b\", \"*\", \"x*\", \"*y\", \"spiffe://td/z\"]}}]}]}",
            &["principal=cluster.local/ns/a/sa/b,*,x*,*y,td/z"],
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a], notIpBlocks: [10.1.2.3]}}, {source: {serviceAccounts: [b/c, d]}}], to: [{operation: {ports: [\"80\"]}}, {operation: {notPorts: [\"90\"]}}]}]}",
            &["namespace=a+not-ip=[10, 1, 2, 3]/32 | account=b/c,shop/d & port=80 | not-port=90"],
        ),
        (
            "{rules: [{when: [{key: source.ip, values: [10.9.8.7/8]}, {key: destination.port, notValues: [\"1\"]}, {key: destination.ip, values: [\"fd00::/16\"]}]}]}",
            &[
                "ip=[10, 0, 0, 0]/8 & not-port=1 & to=[253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]/16",
            ],
        ),
    ];
    for (spec, expected) in table {
        for action in ["ALLOW", "DENY"] {
            let spec = spec.replacen('{', &format!("{{action: {action}, "), 1);
            let (policy, told) = shop(&spec);
            assert_eq!(rules(&policy.unwrap()), *expected, "{spec}");
            assert_eq!(told, Vec::<String>::new(), "{spec}");
        }
    }
}

#[test]
fn never_becomes_more_permissive_by_what_it_cannot_check_or_read() {
    let http = "{operation: {methods: [GET]}}";
    let table: &[(&str, &[&str], &[&str])] = &[
        // rules, as ALLOW, as DENY
        (&format!("[{{to: [{http}]}}]"), &[], &[]),
        (
            &format!("[{{from: [{{source: {{namespaces: [a]}}}}], to: [{http}]}}]"),
            &[],
            &["namespace=a"],
        ),
        (
            &format!("[{{to: [{{operation: {{ports: [\"80\"], paths: [/]}}}}, {http}]}}]"),
            &[],
            &["port=80"],
        ),
        (
            "[{to: [{operation: {hosts: [a]}}]}, {to: [{operation: {ports: [\"1\"]}}]}]",
            &["port=1"],
            &["port=1"],
        ),
        // One bad value among good ones.
        (
            "[{from: [{source: {ipBlocks: [10.0.0.0/8, 10.0.0.0/33]}}]}]",
            &["ip=[10, 0, 0, 0]/8"],
            &[""],
        ),
        (
            "[{from: [{source: {notIpBlocks: [10.0.0.0/8, nonsense]}}]}]",
            &[],
            &["not-ip=[10, 0, 0, 0]/8"],
        ),
        // Nothing but bad values.
        ("[{from: [{source: {ipBlocks: [nonsense]}}]}]", &[], &[""]),
        (
            "[{from: [{source: {namespaces: [a], ipBlocks: [nonsense]}}]}]",
            &[],
            &["namespace=a"],
        ),
        (
            "[{from: [{source: {notIpBlocks: [nonsense]}}]}]",
            &[],
            &[""],
        ),
        ("[{to: [{operation: {ports: [http]}}]}]", &[], &[""]),
        (
            "[{to: [{operation: {ports: [\"70000\"]}}, {operation: {ports: [\"80\"]}}]}]",
            &["port=80"],
            &[""],
        ),
        ("[{from: [{source: {}}]}]", &[], &[""]),
        (
            "[{when: [{key: source.namespce, values: [a]}]}]",
            &[],
            &[""],
        ),
        (
            "[{when: [{key: \"request.auth.claims[a]\", values: [b]}]}]",
            &[],
            &[],
        ),
    ];
    for (list, allowed, denied) in table {
        for (action, expected) in [("ALLOW", allowed), ("DENY", denied)] {
            let (policy, told) = shop(&format!("{{action: {action}, rules: {list}}}"));
            assert_eq!(
                rules(&policy.unwrap()),
                **expected,
                "{action} {list}\n{told:#?}"
            );
            assert_ne!(
                told,
                Vec::<String>::new(),
                "{action} {list}: it must be told"
            );
        }
    }
}

#[test]
fn says_which_field_is_wrong_and_what_follows() {
    let (_, told) =
        shop("{action: DENY, rules: [{from: [{source: {ipBlocks: [1.2.3.4, 300.1.1.1/8]}}]}]}");
    assert_eq!(
        told,
        [
            "spec.rules[0].from[0].source.ipBlocks[1]: \"300.1.1.1/8\" is neither an IP address nor a CIDR; so the rule denies more"
        ]
    );
}

#[test]
fn scope_follows_selector_and_namespace() {
    let of = |namespace: &str, spec: &str| {
        policy(namespace, spec).authorizations[&format!("{namespace}/p")].scope
    };
    assert_eq!(of("shop", "{}"), i32::from(Scope::Namespace));
    assert_eq!(of("istio-system", "{}"), i32::from(Scope::Global));
    let selector = "{selector: {matchLabels: {app: a}}}";
    assert_eq!(of("shop", selector), i32::from(Scope::WorkloadSelector));
    assert_eq!(
        of("istio-system", selector),
        i32::from(Scope::WorkloadSelector)
    );
    assert_eq!(of("shop", "{selector: {}}"), i32::from(Scope::Namespace));
}

#[test]
fn what_cannot_be_enforced_is_not_sent_and_is_told() {
    for spec in ["{action: AUDIT}", "{action: CUSTOM, provider: {name: x}}"] {
        let (policy, told) = shop(spec);
        assert_eq!(policy, None);
        assert_eq!(
            told,
            ["spec.action: not enforced: node proxies know ALLOW and DENY only"]
        );
    }
    let (attached, told) = shop("{targetRefs: [{kind: Service, group: \"\", name: gone}]}");
    assert_eq!(attached, None);
    assert_eq!(
        told,
        ["spec.targetRefs: not enforced on Service shop/gone: it does not exist"]
    );
}

#[test]
fn a_dry_run_is_sent_as_one_and_a_word_that_is_no_boolean_makes_none() {
    for (annotation, dry_run, told) in [
        ("''", false, 0),
        ("'true'", true, 0),
        ("'T'", true, 0),
        ("'1'", true, 0),
        ("'false'", false, 0),
        ("'yes'", false, 1),
    ] {
        let resources = resources(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop, annotations: {{istio.io/dry-run: {annotation}}}}}\nspec: {{action: DENY, rules: [{{}}]}}\n"
        ));
        let sent = &resources.authorizations["shop/p"];
        assert_eq!(sent.dry_run, dry_run, "{annotation}");
        assert_eq!(resources.findings.len(), told, "{annotation}");
    }
}

#[test]
fn an_empty_list_of_targets_leaves_a_policy_with_the_node_proxies() {
    let (policy, told) = shop("{targetRefs: [], action: DENY, rules: [{}]}");
    assert_eq!(rules(&policy.unwrap()), [""]);
    assert_eq!(told, Vec::<String>::new());
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: a}}
spec: {containers: []}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: other, labels: {app: a}}
spec: {containers: []}
status: {phase: Running, podIP: 10.0.0.2}
---
";

fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// Names of policies on the two pods.
fn selected(text: &str) -> (Vec<String>, Vec<String>, Resources) {
    let resources = resources(&format!("{PODS}{text}"));
    let of = |namespace: &str| {
        let name = format!("Kubernetes//Pod/{namespace}/a");
        match resources.addresses[&name].r#type.as_ref().unwrap() {
            ambit_proto::istio::workload::address::Type::Workload(workload) => {
                workload.authorization_policies.clone()
            }
            other => panic!("{other:?}"),
        }
    };
    (of("shop"), of("other"), resources)
}

#[test]
fn a_selector_reaches_its_own_namespace_and_from_the_root_every_one() {
    let selector = "{selector: {matchLabels: {app: a}}}";
    let text = object("AuthorizationPolicy", "shop", "own", selector)
        + &object("AuthorizationPolicy", "istio-system", "all", selector)
        + &object("AuthorizationPolicy", "shop", "wide", "{}")
        + &object(
            "AuthorizationPolicy",
            "shop",
            "b",
            "{selector: {matchLabels: {app: b}}}",
        );
    let (shop, other, _) = selected(&text);
    assert_eq!(shop, ["istio-system/all", "shop/own"]);
    assert_eq!(other, ["istio-system/all"]);
}

#[test]
fn peer_authentication_is_a_policy_against_nobody() {
    let strict = "istio-system/istio_converted_static_strict";
    let converted = "shop/converted_peer_authentication_w";
    let mesh = |mode: &str| {
        object(
            "PeerAuthentication",
            "istio-system",
            "m",
            &format!("{{mtls: {{mode: {mode}}}}}"),
        )
    };
    let own = |mode: &str| {
        object(
            "PeerAuthentication",
            "shop",
            "own",
            &format!("{{mtls: {{mode: {mode}}}}}"),
        )
    };
    let pod = |spec: &str| {
        object(
            "PeerAuthentication",
            "shop",
            "w",
            &format!("{{selector: {{matchLabels: {{app: a}}}}, {spec}}}"),
        )
    };
    let table: &[(String, &[&str], &[&str])] = &[
        (String::new(), &[], &[]),
        (mesh("STRICT"), &[strict], &[strict]),
        (mesh("STRICT") + &own("PERMISSIVE"), &[], &[strict]),
        (mesh("STRICT") + &own("UNSET"), &[strict], &[strict]),
        (mesh("STRICT") + &own("DISABLE"), &[], &[strict]),
        (own("STRICT"), &[strict], &[]),
        (own("STRICT") + &pod("mtls: {mode: PERMISSIVE}"), &[], &[]),
        (pod("mtls: {mode: STRICT}"), &[strict], &[]),
        (
            pod("portLevelMtls: {8080: {mode: STRICT}}"),
            &[converted],
            &[],
        ),
        (
            mesh("STRICT") + &pod("portLevelMtls: {8080: {mode: DISABLE}}"),
            &[converted],
            &[strict],
        ),
        (
            mesh("STRICT") + &pod("portLevelMtls: {8080: {mode: UNSET}}"),
            &[strict],
            &[strict],
        ),
        (
            pod("mtls: {mode: STRICT}, portLevelMtls: {1: {mode: PERMISSIVE}, 2: {mode: DISABLE}}"),
            &[converted],
            &[],
        ),
    ];
    for (text, expected, elsewhere) in table {
        let (shop, other, resources) = selected(text);
        assert_eq!(shop, *expected, "{text}");
        assert_eq!(other, *elsewhere, "{text}");
        for name in shop.iter().chain(&other) {
            let policy = &resources.authorizations[name];
            assert_eq!(policy.action, i32::from(Action::Deny));
            assert_eq!(policy.scope, i32::from(Scope::WorkloadSelector));
        }
    }
}

#[test]
fn strict_ports_are_alternatives_and_exceptions_are_together() {
    let of = |spec: &str| {
        let spec = format!("{{selector: {{matchLabels: {{app: a}}}}, {spec}}}");
        let (.., resources) = selected(&object("PeerAuthentication", "shop", "w", &spec));
        rules(&resources.authorizations["shop/converted_peer_authentication_w"])
    };
    assert_eq!(
        of("portLevelMtls: {1: {mode: STRICT}, 2: {mode: STRICT}, 3: {mode: PERMISSIVE}}"),
        ["not-principal=* & port=1", "not-principal=* & port=2"]
    );
    assert_eq!(
        of("mtls: {mode: STRICT}, portLevelMtls: {1: {mode: PERMISSIVE}, 2: {mode: DISABLE}}"),
        ["not-principal=* & not-port=1,2"]
    );
}

#[test]
fn the_oldest_of_a_level_decides_and_the_others_are_told() {
    let text = object(
        "PeerAuthentication",
        "shop",
        "a-new",
        "{mtls: {mode: PERMISSIVE}}",
    ) + "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: z-old, namespace: shop, creationTimestamp: \"2020-01-01T00:00:00Z\"}\nspec: {mtls: {mode: STRICT}}\n";
    let (shop, _, resources) = selected(&text);
    assert_eq!(shop, ["istio-system/istio_converted_static_strict"]);
    let told: Vec<String> = resources.findings.iter().map(ToString::to_string).collect();
    assert!(
        told.contains(
            &"PeerAuthentication shop/a-new: has no effect: an older one of this namespace decides"
                .to_owned()
        ),
        "{told:?}"
    );
}

use super::Compiled;
use crate::authorize::Attributes;
use crate::fixture::{identity, ip, policy, socket};
use crate::policy::{Action, Clause, Match, Rule, Scope, ServiceAccount, StringMatch, Value};

/// Does a policy of this action with these rules match a connection of shop/web from 10.0.0.1 to 10.0.0.2:8080.
fn matches(action: Action, rules: Vec<Rule>, known: bool) -> bool {
    let mut policy = policy("shop/p", Scope::Namespace, action, vec![]);
    policy.rules = rules;
    let web = identity("shop", "web");
    let attributes = Attributes {
        peer: known.then_some(&web),
        source: ip("10.0.0.1"),
        destination: socket("10.0.0.2:8080"),
    };
    Compiled::new(policy).first_match(&attributes).is_some()
}

fn one(action: Action, fields: Match, known: bool) -> bool {
    let clauses = vec![Clause {
        matches: vec![fields],
    }];
    matches(action, vec![Rule { clauses }], known)
}

fn text<T: for<'a> From<&'a str>>(text: &str) -> T {
    text.into()
}

fn exact(value: &str) -> Vec<Value<StringMatch>> {
    vec![StringMatch::Exact(text(value)).into()]
}

fn account(namespace: &str, name: &str) -> Vec<Value<ServiceAccount>> {
    vec![
        ServiceAccount {
            namespace: text(namespace),
            name: text(name),
        }
        .into(),
    ]
}

fn block(value: &str) -> Vec<Value<ipnet::IpNet>> {
    vec![value.parse::<ipnet::IpNet>().unwrap().into()]
}

fn port(value: u16) -> Vec<Value<u16>> {
    vec![value.into()]
}

#[test]
fn gives_empty_shapes_the_meaning_of_the_contract() {
    let never = || Match::default();
    let holds = || Match {
        destination_ports: port(8080),
        ..Match::default()
    };
    let clause = |matches| Clause { matches };
    let cases: [(&str, Vec<Rule>, bool); 8] = [
        ("no rules", vec![], false),
        ("a rule without clauses", vec![Rule::default()], true),
        (
            "a clause without matches",
            vec![Rule {
                clauses: vec![clause(vec![])],
            }],
            true,
        ),
        (
            "a match without fields",
            vec![Rule {
                clauses: vec![clause(vec![never()])],
            }],
            false,
        ),
        (
            "either match",
            vec![Rule {
                clauses: vec![clause(vec![never(), holds()])],
            }],
            true,
        ),
        (
            "every clause",
            vec![Rule {
                clauses: vec![clause(vec![holds()]), clause(vec![never()])],
            }],
            false,
        ),
        (
            "either rule",
            vec![
                Rule {
                    clauses: vec![clause(vec![never()])],
                },
                Rule {
                    clauses: vec![clause(vec![holds()])],
                },
            ],
            true,
        ),
        (
            "an empty clause beside one that fails",
            vec![Rule {
                clauses: vec![clause(vec![]), clause(vec![never()])],
            }],
            false,
        ),
    ];
    for (name, rules, expected) in cases {
        for action in [Action::Allow, Action::Deny] {
            assert_eq!(matches(action, rules.clone(), true), expected, "{name}");
        }
    }
}

fn with(set: impl FnOnce(&mut Match)) -> Match {
    let mut fields = Match::default();
    set(&mut fields);
    fields
}

/// For shop/web, then for nobody.
fn assert_holds(cases: Vec<(Match, bool, bool)>) {
    for (fields, known, nobody) in cases {
        for action in [Action::Allow, Action::Deny] {
            assert_eq!(one(action, fields.clone(), true), known, "{fields:?}");
            assert_eq!(
                one(action, fields.clone(), false),
                nobody,
                "{fields:?} for nobody"
            );
        }
    }
}

#[test]
fn compares_fields_of_the_identity() {
    let web = "cluster.local/ns/shop/sa/web";
    assert_holds(vec![
        (with(|m| m.namespaces = exact("shop")), true, false),
        (with(|m| m.namespaces = exact("Shop")), false, false),
        (with(|m| m.not_namespaces = exact("shop")), false, true),
        (
            with(|m| m.service_accounts = account("shop", "web")),
            true,
            false,
        ),
        (
            with(|m| m.service_accounts = account("other", "web")),
            false,
            false,
        ),
        (
            with(|m| m.not_service_accounts = account("shop", "web")),
            false,
            true,
        ),
        (with(|m| m.principals = exact(web)), true, false),
        (
            with(|m| m.principals = exact("spiffe://cluster.local/ns/shop/sa/web")),
            false,
            false,
        ),
        (with(|m| m.not_principals = exact(web)), false, true),
    ]);
}

#[test]
fn compares_fields_of_the_connection() {
    assert_holds(vec![
        (with(|m| m.source_ips = block("10.0.0.0/31")), true, true),
        (with(|m| m.source_ips = block("10.0.0.2/32")), false, false),
        (
            with(|m| m.source_ips = block("::ffff:10.0.0.0/120")),
            true,
            true,
        ),
        (with(|m| m.source_ips = block("::/0")), false, false),
        (
            with(|m| m.not_source_ips = block("10.0.0.1/32")),
            false,
            false,
        ),
        (
            with(|m| m.destination_ips = block("10.0.0.2/32")),
            true,
            true,
        ),
        (
            with(|m| m.not_destination_ips = block("0.0.0.0/0")),
            false,
            false,
        ),
        (with(|m| m.destination_ports = port(8080)), true, true),
        (with(|m| m.destination_ports = port(80)), false, false),
        (with(|m| m.not_destination_ports = port(80)), true, true),
    ]);
}

#[test]
fn wants_every_field_that_is_set_to_hold() {
    let both = |number| {
        with(|m| {
            m.namespaces = exact("shop");
            m.destination_ports = port(number);
        })
    };
    assert_holds(vec![(both(8080), true, false), (both(80), false, false)]);
}

#[test]
fn tests_strings_in_four_ways() {
    let principal = |test: StringMatch| Match {
        principals: vec![test.into()],
        ..Match::default()
    };
    let cases = [
        (StringMatch::Prefix(text("cluster.local/ns/shop/")), true),
        (StringMatch::Prefix(text("/ns/shop/")), false),
        (StringMatch::Suffix(text("/sa/web")), true),
        (StringMatch::Suffix(text("/sa/we")), false),
        (StringMatch::Presence, true),
        (StringMatch::Exact(text("")), false),
    ];
    for (test, expected) in cases {
        assert_eq!(
            one(Action::Deny, principal(test.clone()), true),
            expected,
            "{test:?}"
        );
        assert!(!one(Action::Deny, principal(test), false));
    }
}

#[test]
fn admits_nobody_by_a_test_that_any_text_passes() {
    let any = || vec![Value::Known(StringMatch::Prefix(text("")))];
    let fields = Match {
        namespaces: any(),
        ..Match::default()
    };
    assert!(!one(Action::Allow, fields.clone(), false));
    assert!(one(Action::Deny, fields, false));
}

#[test]
fn refuses_more_when_a_value_is_not_understood() {
    let bad = || Value::Unparsable(text("10.0.0.0/99"));
    let field = |values| Match {
        source_ips: values,
        ..Match::default()
    };
    let not_field = |values| Match {
        not_source_ips: values,
        ..Match::default()
    };
    let other = || Value::Known("10.9.0.0/16".parse().unwrap());
    let same = || Value::Known("10.0.0.0/16".parse().unwrap());
    // The fields; do they hold in an ALLOW; do they hold in a DENY.
    let cases = [
        (field(vec![bad()]), false, true),
        (field(vec![other(), bad()]), false, true),
        (field(vec![same(), bad()]), true, true),
        (not_field(vec![bad()]), false, true),
        (not_field(vec![other(), bad()]), false, true),
        (not_field(vec![same(), bad()]), false, false),
    ];
    for (fields, allow, deny) in cases {
        assert_eq!(
            one(Action::Allow, fields.clone(), true),
            allow,
            "{fields:?}"
        );
        assert_eq!(one(Action::Deny, fields.clone(), true), deny, "{fields:?}");
    }
}

#[test]
fn tells_which_values_were_not_understood() {
    let fields = Match {
        source_ips: vec![Value::Unparsable(text("ten"))],
        not_destination_ports: vec![Value::Unparsable(text("70000"))],
        ..Match::default()
    };
    let policy = policy("shop/p", Scope::Namespace, Action::Deny, vec![vec![fields]]);
    let problems = Compiled::new(policy).problems().to_vec();
    assert_eq!(problems, ["ten", "70000"]);
}

#[test]
fn a_policy_that_is_not_wholly_understood_refuses_all_that_it_can() {
    let anybody = Match {
        not_destination_ports: vec![Value::Known(9)],
        ..Match::default()
    };
    let nobody = Match {
        destination_ports: vec![Value::Known(9)],
        ..Match::default()
    };
    for (action, matches) in [(Action::Allow, false), (Action::Deny, true)] {
        for fields in [anybody.clone(), nobody.clone()] {
            let mut policy = policy("shop/p", Scope::Namespace, action, vec![vec![fields]]);
            policy.not_understood = vec![text("field 9")];
            let compiled = Compiled::new(policy);
            let attributes = Attributes {
                peer: None,
                source: ip("10.0.0.1"),
                destination: socket("10.0.0.2:8080"),
            };
            let found = compiled.first_match(&attributes);
            assert_eq!(found.is_some(), matches, "{action:?}");
            assert_eq!(compiled.problems(), ["field 9"]);
        }
    }
}

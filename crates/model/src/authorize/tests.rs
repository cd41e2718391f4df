use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection, option, prop_assert_eq, proptest};

use super::{Attributes, Verdict, authorize, explain, rehearse};
use crate::fixture::{identity, ip, pod, policy, socket, view};
use crate::identity::Identity;
use crate::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccount, StringMatch, Value,
};
use crate::reason::Reason;
use crate::update::Change;
use crate::workload::Workload;

fn from(account: &str) -> Vec<Vec<Match>> {
    let account = ServiceAccount {
        namespace: "shop".into(),
        name: account.into(),
    };
    vec![vec![Match {
        service_accounts: vec![account.into()],
        ..Match::default()
    }]]
}

fn nobody() -> Vec<Vec<Match>> {
    let present = vec![StringMatch::Presence.into()];
    vec![vec![Match {
        not_principals: present,
        ..Match::default()
    }]]
}

/// The verdict for shop/web, or for nobody, towards shop/cart, which lists `listed`.
fn verdict(
    policies: Vec<Policy>,
    listed: &[&str],
    known: bool,
) -> (Option<Reason>, Option<String>) {
    let mut cart = pod("shop", "cart", "10.0.0.2");
    cart.policies = listed.iter().map(|name| PolicyKey::parse(name)).collect();
    let view = view(policies.into_iter().map(Change::UpsertPolicy));
    let web = identity("shop", "web");
    let attributes = Attributes {
        peer: known.then_some(&web),
        source: ip("10.0.0.1"),
        destination: socket("10.0.0.2:8080"),
    };
    let rules = view.policies_for(&cart);
    let verdict = authorize(&rules, &attributes);
    let explained = explain(&rules, &attributes);
    assert_eq!(explained.allowed, verdict.allowed());
    let (reason, by) = match verdict {
        Verdict::Allow { by } => (None, by),
        Verdict::Deny { reason, by } => (Some(reason), by),
    };
    assert_eq!(explained.decided_by.as_ref(), by);
    (reason, by.map(ToString::to_string))
}

#[test]
fn permits_what_no_policy_speaks_of() {
    let elsewhere = policy("other/p", Scope::Namespace, Action::Deny, vec![]);
    let not_listed = policy("shop/p", Scope::WorkloadSelector, Action::Deny, vec![]);
    assert_eq!(
        verdict(vec![elsewhere, not_listed], &[], true),
        (None, None)
    );
}

#[test]
fn asks_policies_of_each_reach() {
    for (name, scope, listed) in [
        ("istio-system/p", Scope::Global, vec![]),
        ("shop/p", Scope::Namespace, vec![]),
        ("shop/p", Scope::WorkloadSelector, vec!["shop/p"]),
        (
            "istio-system/p",
            Scope::WorkloadSelector,
            vec!["istio-system/p"],
        ),
    ] {
        let deny = policy(name, scope, Action::Deny, from("web"));
        let expected = (Some(Reason::PolicyDenied), Some(name.to_owned()));
        assert_eq!(verdict(vec![deny], &listed, true), expected, "{scope:?}");
    }
}

#[test]
fn looks_at_denials_before_permits() {
    let allow = policy("shop/allow", Scope::Namespace, Action::Allow, from("web"));
    let deny = policy(
        "shop/deny",
        Scope::WorkloadSelector,
        Action::Deny,
        from("web"),
    );
    let by = |name: &str| Some(name.to_owned());
    assert_eq!(
        verdict(vec![allow.clone()], &[], true),
        (None, by("shop/allow"))
    );
    let both = vec![allow, deny];
    assert_eq!(
        verdict(both, &["shop/deny"], true),
        (Some(Reason::PolicyDenied), by("shop/deny"))
    );
}

#[test]
fn refuses_when_permits_exist_and_none_applies() {
    let allow = policy("shop/allow", Scope::Namespace, Action::Allow, from("other"));
    assert_eq!(
        verdict(vec![allow], &[], true),
        (Some(Reason::NotAllowed), None)
    );
    let mut nothing = policy("shop/allow", Scope::Namespace, Action::Allow, vec![]);
    nothing.rules.clear();
    assert_eq!(
        verdict(vec![nothing], &[], true),
        (Some(Reason::NotAllowed), None)
    );
}

#[test]
fn refuses_when_a_listed_policy_is_not_known() {
    let allow = policy("shop/allow", Scope::Namespace, Action::Allow, from("web"));
    let unknown = (Some(Reason::PolicyUnresolved), Some("shop/gone".to_owned()));
    assert_eq!(verdict(vec![allow], &["shop/gone"], true), unknown);
    let nameless = (Some(Reason::PolicyUnresolved), Some("/gone".to_owned()));
    assert_eq!(verdict(vec![], &["gone"], true), nameless);
}

#[test]
fn refuses_plaintext_under_the_strict_policy_of_istiod() {
    let name = "istio-system/istio_converted_static_strict";
    let strict = policy(name, Scope::WorkloadSelector, Action::Deny, nobody());
    assert_eq!(verdict(vec![strict.clone()], &[name], true), (None, None));
    let denied = (Some(Reason::PolicyDenied), Some(name.to_owned()));
    assert_eq!(verdict(vec![strict], &[name], false), denied);
}

#[test]
fn lets_a_dry_run_decide_nothing_and_tells_what_it_would_do() {
    let mut deny = policy("shop/deny", Scope::Namespace, Action::Deny, from("web"));
    deny.dry_run = true;
    let mut allow = policy("shop/allow", Scope::Namespace, Action::Allow, from("other"));
    allow.dry_run = true;
    assert_eq!(
        verdict(vec![deny.clone(), allow.clone()], &[], true),
        (None, None)
    );

    let cart = pod("shop", "cart", "10.0.0.2");
    let web = identity("shop", "web");
    let attributes = Attributes {
        peer: Some(&web),
        source: ip("10.0.0.1"),
        destination: socket("10.0.0.2:8080"),
    };
    for (policy, reason, matches) in [
        (deny, Reason::PolicyDenied, true),
        (allow, Reason::NotAllowed, false),
    ] {
        let key = policy.key.clone();
        let view = view([Change::UpsertPolicy(policy)]);
        let rules = view.policies_for(&cart);
        let rehearsal = rehearse(&rules, &attributes).unwrap();
        assert!(rehearsal.differs());
        assert_eq!(rehearsal.enforced, Verdict::Allow { by: None });
        assert!(matches!(rehearsal.rehearsed, Verdict::Deny { reason: r, .. } if r == reason));
        let asked: Vec<_> = rehearsal
            .policies
            .iter()
            .map(|(policy, matched)| (&policy.key, *matched))
            .collect();
        assert_eq!(asked, [(&key, matches)]);
        let explained = explain(&rules, &attributes);
        assert!(explained.allowed && !explained.rehearsed.unwrap().allowed);
    }
    let view = view([]);
    assert_eq!(rehearse(&view.policies_for(&cart), &attributes), None);
}

#[test]
fn tells_of_a_dry_run_that_would_change_nothing() {
    let mut tried = policy("shop/tried", Scope::Namespace, Action::Deny, from("web"));
    tried.dry_run = true;
    let deny = policy("shop/deny", Scope::Namespace, Action::Deny, from("web"));
    let cart = pod("shop", "cart", "10.0.0.2");
    let web = identity("shop", "web");
    let attributes = Attributes {
        peer: Some(&web),
        source: ip("10.0.0.1"),
        destination: socket("10.0.0.2:8080"),
    };
    let view = view([Change::UpsertPolicy(tried), Change::UpsertPolicy(deny)]);
    let rehearsal = rehearse(&view.policies_for(&cart), &attributes).unwrap();
    assert!(!rehearsal.differs());
    assert_eq!(rehearsal.policies.len(), 1);
    assert!(rehearsal.policies[0].1);
}

#[test]
fn explains_every_policy_that_applies() {
    let allow = policy("shop/allow", Scope::Namespace, Action::Allow, from("web"));
    let deny = policy("istio-system/deny", Scope::Global, Action::Deny, nobody());
    let view = view([Change::UpsertPolicy(allow), Change::UpsertPolicy(deny)]);
    let cart = pod("shop", "cart", "10.0.0.2");
    let attributes = Attributes {
        peer: None,
        source: ip("10.0.0.1"),
        destination: socket("10.0.0.2:8080"),
    };
    let explained = explain(&view.policies_for(&cart), &attributes);
    assert_eq!(explained.reason, "explicitly denied by: istio-system/deny");
    let matched: Vec<_> = explained
        .policies
        .iter()
        .map(|policy| policy.matched_rule)
        .collect();
    assert_eq!(matched, [Some(0), None]);
}

/// The same decision, written plainly from the text of the contract, over the policies as they were received.
mod reference {
    use super::{Action, Attributes, Clause, Match, Policy, Scope, StringMatch, Value, Workload};

    pub(super) fn permits(policies: &[Policy], workload: &Workload, at: &Attributes<'_>) -> bool {
        let mut candidates = Vec::new();
        for policy in policies {
            let applies = match policy.scope {
                Scope::Global => true,
                Scope::Namespace => policy.key.namespace == workload.namespace,
                Scope::WorkloadSelector => false,
            };
            if (applies || workload.policies.contains(&policy.key)) && !policy.dry_run {
                candidates.push(policy);
            }
        }
        for policy in &candidates {
            if policy.action == Action::Deny && matches(policy, at) {
                return false;
            }
        }
        for name in &workload.policies {
            if !policies.iter().any(|policy| policy.key == *name) {
                return false;
            }
        }
        candidates.retain(|policy| policy.action == Action::Allow);
        candidates.is_empty() || candidates.iter().any(|policy| matches(policy, at))
    }

    fn matches(policy: &Policy, at: &Attributes<'_>) -> bool {
        let deny = policy.action == Action::Deny;
        let clause = |clause: &Clause| {
            clause.matches.is_empty() || clause.matches.iter().any(|fields| holds(fields, deny, at))
        };
        policy
            .rules
            .iter()
            .any(|rule| rule.clauses.iter().all(clause))
    }

    fn holds(fields: &Match, deny: bool, at: &Attributes<'_>) -> bool {
        let uri = at.peer.map(ToString::to_string);
        let parts: Option<Vec<&str>> = uri.as_deref().map(|uri| uri.split('/').collect());
        let namespace = parts.as_ref().map(|parts| parts[4]);
        let account = parts.as_ref().map(|parts| parts[6]);
        let principal = uri.as_deref().map(|uri| &uri["spiffe://".len()..]);
        let string = |test: &StringMatch, text: &str| match test {
            StringMatch::Exact(value) => value.as_str() == text,
            StringMatch::Prefix(value) => text.starts_with(value.as_str()),
            StringMatch::Suffix(value) => text.ends_with(value.as_str()),
            StringMatch::Presence => !text.is_empty(),
        };
        let empty = if deny { Some("") } else { None };
        let by_namespace =
            |v: &StringMatch| namespace.or(empty).is_some_and(|text| string(v, text));
        let by_principal = |v: &StringMatch| principal.is_some_and(|text| string(v, text));
        let by_account = |v: &super::ServiceAccount| {
            namespace == Some(v.namespace.as_str()) && account == Some(v.name.as_str())
        };
        let (source, destination) = (at.source, at.destination);
        let by_source = |v: &ipnet::IpNet| v.contains(&source);
        let by_destination = |v: &ipnet::IpNet| v.contains(&destination.ip());
        let by_port = |v: &u16| *v == destination.port();
        let outcomes = [
            field(&fields.namespaces, false, deny, by_namespace),
            field(&fields.not_namespaces, true, deny, by_namespace),
            field(&fields.service_accounts, false, deny, by_account),
            field(&fields.not_service_accounts, true, deny, by_account),
            field(&fields.principals, false, deny, by_principal),
            field(&fields.not_principals, true, deny, by_principal),
            field(&fields.source_ips, false, deny, by_source),
            field(&fields.not_source_ips, true, deny, by_source),
            field(&fields.destination_ips, false, deny, by_destination),
            field(&fields.not_destination_ips, true, deny, by_destination),
            field(&fields.destination_ports, false, deny, by_port),
            field(&fields.not_destination_ports, true, deny, by_port),
        ];
        let set: Vec<bool> = outcomes.into_iter().flatten().collect();
        !set.is_empty() && set.into_iter().all(|outcome| outcome)
    }

    /// `None` when the field is not set. What is not understood refuses: see the table of `compile`.
    fn field<T>(
        values: &[Value<T>],
        not: bool,
        deny: bool,
        applies: impl Fn(&T) -> bool,
    ) -> Option<bool> {
        let one = |value: &Value<T>| match (value, not, deny) {
            (Value::Known(value), ..) => applies(value),
            (Value::Unparsable(_), false, true) | (Value::Unparsable(_), true, false) => true,
            (Value::Unparsable(_), ..) => false,
        };
        if values.is_empty() {
            None
        } else {
            Some(values.iter().any(one) != not)
        }
    }
}

fn value<T: Clone + std::fmt::Debug + 'static>(
    values: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Vec<Value<T>>> {
    let one = prop_oneof![
        9 => values.prop_map(Value::Known),
        1 => Just(Value::Unparsable("?".into())),
    ];
    prop_oneof![4 => Just(Vec::new()), 1 => collection::vec(one, 1..3)]
}

fn string() -> impl Strategy<Value = StringMatch> {
    let text = proptest::sample::select(vec![
        "",
        "a",
        "b",
        "td/ns/a/sa/x",
        "td/ns/b/sa/y",
        "td/ns/",
        "/sa/x",
        "td",
    ]);
    (0..4, text).prop_map(|(kind, text)| match kind {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn account() -> impl Strategy<Value = ServiceAccount> {
    let part = proptest::sample::select(vec![("a", "x"), ("a", "y"), ("b", "x")]);
    part.prop_map(|(namespace, name)| ServiceAccount {
        namespace: namespace.into(),
        name: name.into(),
    })
}

fn block() -> impl Strategy<Value = ipnet::IpNet> {
    let blocks = [
        "10.0.0.0/8",
        "10.0.0.1/32",
        "10.0.0.2/32",
        "2001:db8::/32",
        "0.0.0.0/0",
        "::/0",
    ];
    proptest::sample::select(blocks.to_vec()).prop_map(|text| text.parse().unwrap())
}

fn fields() -> impl Strategy<Value = Match> {
    let strings = || (value(string()), value(string()));
    let blocks = || (value(block()), value(block()));
    let port = || value(proptest::sample::select(vec![80_u16, 443, 8080]));
    let accounts = (value(account()), value(account()));
    let all = (
        strings(),
        strings(),
        accounts,
        blocks(),
        blocks(),
        (port(), port()),
    );
    all.prop_map(
        |(namespaces, principals, accounts, sources, destinations, ports)| Match {
            namespaces: namespaces.0,
            not_namespaces: namespaces.1,
            principals: principals.0,
            not_principals: principals.1,
            service_accounts: accounts.0,
            not_service_accounts: accounts.1,
            source_ips: sources.0,
            not_source_ips: sources.1,
            destination_ips: destinations.0,
            not_destination_ips: destinations.1,
            destination_ports: ports.0,
            not_destination_ports: ports.1,
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let clause = collection::vec(fields(), 0..3).prop_map(|matches| Clause { matches });
    let rule = collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope = prop_oneof![
        Just(Scope::Global),
        Just(Scope::Namespace),
        Just(Scope::WorkloadSelector),
    ];
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let rules = collection::vec(rule, 0..3);
    let key = proptest::sample::select(vec!["a/p", "a/q", "b/p", "b/q", "root/p"]);
    (key, scope, action, proptest::bool::weighted(0.1), rules).prop_map(
        |(key, scope, action, dry_run, rules)| {
            let key = PolicyKey::parse(key);
            Policy {
                key,
                scope,
                action,
                dry_run,
                rules,
                not_understood: Vec::new(),
            }
        },
    )
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_the_plain_reference(
        policies in collection::vec(any_policy(), 0..5),
        listed in collection::vec(proptest::sample::select(vec!["a/p", "a/q", "b/q", "a/gone"]), 0..2),
        peer in option::of(proptest::sample::select(vec!["a/x", "a/y", "b/x"])),
        source in proptest::sample::select(vec!["10.0.0.1", "11.0.0.1", "2001:db8::1"]),
        port in proptest::sample::select(vec![80_u16, 443, 9090]),
        _seed in any::<u8>(),
    ) {
        let mut policies = policies;
        // As in a view, the last of one key counts.
        policies.reverse();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        let mut workload = pod("a", "server", "10.0.0.2");
        workload.policies = listed.iter().map(|name| PolicyKey::parse(name)).collect();
        let peer = peer.map(|text| {
            let (namespace, account) = text.split_once('/').unwrap();
            Identity::new("td", namespace, account).unwrap()
        });
        let attributes = Attributes {
            peer: peer.as_ref(),
            source: ip(source),
            destination: std::net::SocketAddr::new(ip("10.0.0.2"), port),
        };
        let expected = reference::permits(&policies, &workload, &attributes);
        let view = view(policies.into_iter().map(Change::UpsertPolicy));
        let verdict = authorize(&view.policies_for(&workload), &attributes);
        prop_assert_eq!(verdict.allowed(), expected);
    }
}

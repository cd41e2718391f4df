//! Tests of authorization: tables, and a property against a plain reference.

use http::{HeaderMap, HeaderValue};
use proptest::prelude::{
    BoxedStrategy, Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest,
};

use super::template::Template;
use super::{Condition, Policy, RuleAction, Rules, Verdict};
use crate::plan::Name;
use crate::routes::matching::{HeaderKey, HeaderMatch, HeaderTest, StringMatch, StringTest};
use crate::subject::test::subject;
use crate::subject::{Strict, Subject};

fn prefix(text: &str) -> StringMatch {
    StringMatch::new(StringTest::Prefix(text.as_bytes().into()), false)
}

fn method(text: &str) -> Condition {
    Condition::Header(HeaderMatch {
        key: HeaderKey::Method,
        test: HeaderTest::Value(StringMatch::exact(text)),
        invert: false,
        missing_as_empty: false,
    })
}

fn one(action: RuleAction, permission: Condition, principal: Condition) -> Rules {
    let policies = vec![Policy {
        name: Name::from("p"),
        permissions: vec![permission],
        principals: vec![principal],
    }];
    Rules { action, policies }
}

fn anyone() -> Condition {
    Condition::Constant(true)
}

fn allowed(rules: &Rules, subject: &Subject<'_>) -> bool {
    matches!(rules.check(subject), Verdict::Allowed(_))
}

#[test]
fn every_condition_looks_at_its_own_attribute() {
    let mut headers = HeaderMap::new();
    headers.insert("x", HeaderValue::from_static("1"));
    let mut subject = subject(&headers);
    subject.path_and_query = "/admin/users?q=/other";
    subject.remote = "1.2.3.4".parse().unwrap();
    let net = |text: &str| text.parse().unwrap();
    let peer = |text: &str| Condition::Peer(Some(StringMatch::exact(text)));
    let cases = [
        (Condition::Constant(false), false),
        (Condition::Path(prefix("/admin")), true),
        (Condition::Path(StringMatch::exact("/admin/users")), true),
        (Condition::Path(prefix("/other")), false),
        (
            Condition::PathTemplate(Template::new("/{*}/users").unwrap()),
            true,
        ),
        (method("GET"), true),
        (method("get"), false),
        (Condition::DestinationIp(net("10.1.0.0/16")), true),
        (Condition::DestinationIp(net("10.2.0.0/16")), false),
        (Condition::DestinationPort(80..=80), true),
        (Condition::DestinationPort(81..=90), false),
        (Condition::SourceIp(net("10.0.0.1/32")), true),
        (Condition::SourceIp(net("1.2.3.4/32")), false),
        (Condition::RemoteIp(net("1.2.3.4/32")), true),
        (Condition::Peer(None), true),
        (peer("spiffe://cluster.local/ns/a/sa/b"), true),
        (peer("spiffe://cluster.local/ns/a/sa/c"), false),
        (
            Condition::Local(prefix("spiffe://cluster.local/ns/shop")),
            true,
        ),
        (Condition::ServerName(prefix("")), false),
        (Condition::Not(Box::new(Condition::Peer(None))), false),
        (Condition::All(vec![]), true),
        (Condition::Any(vec![]), false),
        (
            Condition::All(vec![anyone(), Condition::Constant(false)]),
            false,
        ),
        (
            Condition::Any(vec![anyone(), Condition::Constant(false)]),
            true,
        ),
    ];
    for (condition, wanted) in cases {
        assert_eq!(
            condition.holds(&subject, subject.path()),
            wanted,
            "{condition:?}"
        );
    }
    subject.connection.peer = None;
    assert!(!Condition::Peer(None).holds(&subject, "/"));
    assert!(!peer("spiffe://cluster.local/ns/a/sa/b").holds(&subject, "/"));
    assert!(!Condition::Peer(Some(prefix(""))).holds(&subject, "/"));
}

#[test]
fn the_verdict_names_the_policy_that_decided() {
    let headers = HeaderMap::new();
    let subject = subject(&headers);
    let name = Name::from("p");
    let check = |action, permission| {
        one(action, permission, anyone()).check(&subject) == {
            match action {
                RuleAction::Allow => Verdict::Allowed(Some(&name)),
                RuleAction::Deny => Verdict::Denied(Some(&name)),
                RuleAction::Log => Verdict::Allowed(None),
            }
        }
    };
    assert!(check(RuleAction::Allow, method("GET")));
    assert!(check(RuleAction::Deny, method("GET")));
    assert!(check(RuleAction::Log, method("GET")));
    let unmatched = one(RuleAction::Allow, method("POST"), anyone());
    assert_eq!(unmatched.check(&subject), Verdict::Denied(None));
    let unmatched = one(RuleAction::Deny, method("POST"), anyone());
    assert_eq!(unmatched.check(&subject), Verdict::Allowed(None));
    // ALLOW without a policy allows nothing; DENY without one denies nothing.
    assert!(!allowed(
        &Rules {
            action: RuleAction::Allow,
            policies: vec![]
        },
        &subject
    ));
    assert!(allowed(
        &Rules {
            action: RuleAction::Deny,
            policies: vec![]
        },
        &subject
    ));
}

#[test]
fn a_deny_holds_in_either_reading_and_an_allow_only_in_both() {
    let headers = HeaderMap::new();
    let mut subject = subject(&headers);
    subject.path_and_query = "/x/..;/admin";
    subject.strict = Some(Strict { path: "/admin" });
    let admin = || Condition::Path(prefix("/admin"));
    let public = || Condition::Path(prefix("/x"));
    assert!(!allowed(
        &one(RuleAction::Deny, admin(), anyone()),
        &subject
    ));
    assert!(!allowed(
        &one(RuleAction::Deny, public(), anyone()),
        &subject
    ));
    let not_public = Condition::Not(Box::new(public()));
    assert!(!allowed(
        &one(RuleAction::Deny, not_public, anyone()),
        &subject
    ));
    assert!(!allowed(
        &one(RuleAction::Allow, public(), anyone()),
        &subject
    ));
    assert!(!allowed(
        &one(RuleAction::Allow, admin(), anyone()),
        &subject
    ));
    let both = Condition::Any(vec![admin(), public()]);
    assert!(allowed(&one(RuleAction::Allow, both, anyone()), &subject));
}

#[test]
fn of_a_byte_stream_nothing_about_http_matches() {
    let headers = HeaderMap::new();
    let connection = subject(&headers).connection;
    let stream = Subject::of_connection(connection, &headers);
    assert!(!method("GET").holds(&stream, ""));
    assert!(!Condition::Path(prefix("/")).holds(&stream, ""));
    assert!(Condition::DestinationPort(80..=80).holds(&stream, ""));
}

/// The property's world is small, so that conditions often hold.
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
const PATHS: [&str; 4] = ["/a", "/a/b", "/b", "/b/c"];
const PORTS: [u16; 2] = [80, 81];

/// A condition in a form that a plain reference can read.
#[derive(Debug, Clone)]
enum Plain {
    Method(&'static str),
    PathPrefix(&'static str),
    Port(u16),
    HasPeer,
    Not(Box<Self>),
    All(Vec<Self>),
    Any(Vec<Self>),
}

impl Plain {
    fn compile(&self) -> Condition {
        match self {
            Self::Method(text) => method(text),
            Self::PathPrefix(text) => Condition::Path(prefix(text)),
            Self::Port(port) => Condition::DestinationPort(*port..=*port),
            Self::HasPeer => Condition::Peer(None),
            Self::Not(one) => Condition::Not(Box::new(one.compile())),
            Self::All(all) => Condition::All(all.iter().map(Self::compile).collect()),
            Self::Any(any) => Condition::Any(any.iter().map(Self::compile).collect()),
        }
    }

    fn reference(&self, method: &str, path: &str, port: u16, peer: bool) -> bool {
        match self {
            Self::Method(text) => *text == method,
            Self::PathPrefix(text) => path.starts_with(text),
            Self::Port(wanted) => *wanted == port,
            Self::HasPeer => peer,
            Self::Not(one) => !one.reference(method, path, port, peer),
            Self::All(all) => {
                let mut result = true;
                for one in all {
                    result &= one.reference(method, path, port, peer);
                }
                result
            }
            Self::Any(any) => {
                let mut result = false;
                for one in any {
                    result |= one.reference(method, path, port, peer);
                }
                result
            }
        }
    }
}

fn plain() -> BoxedStrategy<Plain> {
    let leaf = prop_oneof![
        prop::sample::select(METHODS.to_vec()).prop_map(Plain::Method),
        prop::sample::select(PATHS.to_vec()).prop_map(Plain::PathPrefix),
        prop::sample::select(PORTS.to_vec()).prop_map(Plain::Port),
        Just(Plain::HasPeer),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Plain::Not(Box::new(one))),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Plain::All),
            prop::collection::vec(inner, 0..3).prop_map(Plain::Any),
        ]
    })
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn deny_then_allow_agrees_with_a_plain_reference(
        deny in prop::collection::vec((plain(), plain()), 0..3),
        allow in prop::collection::vec((plain(), plain()), 1..3),
        method in prop::sample::select(METHODS.to_vec()),
        path in prop::sample::select(PATHS.to_vec()),
        strict in prop::option::of(prop::sample::select(PATHS.to_vec())),
        port in prop::sample::select(PORTS.to_vec()),
        peer in any::<bool>(),
    ) {
        let compile = |action, list: &[(Plain, Plain)]| Rules {
            action,
            policies: list
                .iter()
                .map(|(what, who)| Policy {
                    name: Name::from("p"),
                    permissions: vec![what.compile()],
                    principals: vec![who.compile()],
                })
                .collect(),
        };
        let headers = HeaderMap::new();
        let mut subject = subject(&headers);
        subject.method = method;
        subject.path_and_query = path;
        subject.strict = strict.map(|path| Strict { path });
        subject.connection.destination.set_port(port);
        if !peer {
            subject.connection.peer = None;
        }
        let got = [compile(RuleAction::Deny, &deny), compile(RuleAction::Allow, &allow)]
            .iter()
            .all(|rules| allowed(rules, &subject));

        let matches = |list: &[(Plain, Plain)], path: &str| {
            list.iter().any(|(what, who)| {
                what.reference(method, path, port, peer) && who.reference(method, path, port, peer)
            })
        };
        let readings: Vec<&str> = std::iter::once(path).chain(strict).collect();
        let denied = readings.iter().any(|path| matches(&deny, path));
        let wanted = !denied && readings.iter().all(|path| matches(&allow, path));
        assert_eq!(got, wanted);
    }
}

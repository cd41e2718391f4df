//! RBAC as Istio sends it, compiled and evaluated; and what is refused.

use std::cell::RefCell;
use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::rbac::v3::permission::{Rule, Set};
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac, principal};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::filter_state_matcher::Matcher;
use envoy_types::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    FilterStateMatcher, MetadataMatcher, PathMatcher, RegexMatcher, StringMatcher,
};
use envoy_types::pb::google::protobuf::UInt32Value;
use http::HeaderMap;

use super::{compile, http_filter};
use crate::envoy::at::{At, Compiled};
use crate::envoy::sample::any;
use crate::rules::{Rules, Verdict};
use crate::subject::test::subject;

fn text(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        ignore_case: false,
        match_pattern: Some(pattern),
    }
}

fn exact(value: &str) -> StringMatcher {
    text(MatchPattern::Exact(value.to_owned()))
}

fn regex(value: &str) -> StringMatcher {
    let regex = RegexMatcher {
        regex: value.to_owned(),
        ..RegexMatcher::default()
    };
    text(MatchPattern::SafeRegex(regex))
}

fn permission(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

fn path(matcher: StringMatcher) -> Rule {
    Rule::UrlPath(PathMatcher {
        rule: Some(PathRule::Path(matcher)),
    })
}

fn method(value: &str) -> Rule {
    Rule::Header(HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(value))),
        ..HeaderMatcher::default()
    })
}

fn peer(matcher: StringMatcher) -> Identifier {
    Identifier::FilterState(FilterStateMatcher {
        key: "io.istio.peer_principal".to_owned(),
        matcher: Some(Matcher::StringMatch(matcher)),
    })
}

/// One policy of the shape that Istio makes: lists within lists.
fn rbac(action: i32, what: Vec<Rule>, who: Vec<Identifier>) -> Rbac {
    let rules = what.into_iter().map(permission).collect();
    let ids = who.into_iter().map(principal).collect();
    let policy = Policy {
        permissions: vec![permission(Rule::AndRules(Set { rules }))],
        principals: vec![principal(Identifier::AndIds(principal::Set { ids }))],
        ..Policy::default()
    };
    let policies = HashMap::from([("ns[shop]-policy[p]-rule[0]".to_owned(), policy)]);
    Rbac {
        action,
        policies,
        ..Rbac::default()
    }
}

fn compiled(rbac: Rbac) -> Compiled<Rules> {
    let warnings = RefCell::new(Vec::new());
    compile(rbac, &At::root("rbac", &warnings))
}

#[test]
#[expect(deprecated, reason = "Istio sends the deprecated metadata matcher")]
fn istios_policies_are_compiled_and_decide() {
    let headers = HeaderMap::new();
    let mut subject = subject(&headers);
    subject.path_and_query = "/cart/items";
    let any_path = || {
        Rule::OrRules(Set {
            rules: vec![permission(path(text(MatchPattern::Prefix(
                "/cart/".to_owned(),
            ))))],
        })
    };
    let cases = [
        (
            vec![any_path(), method("GET")],
            vec![Identifier::Any(true)],
            true,
        ),
        (vec![method("DELETE")], vec![Identifier::Any(true)], false),
        (
            vec![Rule::Any(true)],
            vec![peer(exact("spiffe://cluster.local/ns/a/sa/b"))],
            true,
        ),
        (vec![Rule::Any(true)], vec![peer(regex(".*/ns/a/.*"))], true),
        (
            vec![Rule::Any(true)],
            vec![peer(regex(".*/ns/x/.*"))],
            false,
        ),
        // A dot in a name is a dot.
        (
            vec![Rule::Any(true)],
            vec![peer(exact("spiffe://cluster.local/ns/a/sa/."))],
            false,
        ),
        (
            vec![Rule::DestinationPort(80)],
            vec![Identifier::Any(true)],
            true,
        ),
        (
            vec![Rule::NotRule(Box::new(permission(Rule::DestinationPort(
                80,
            ))))],
            vec![Identifier::Any(true)],
            false,
        ),
        (
            vec![Rule::Any(true)],
            vec![Identifier::DirectRemoteIp(CidrRange {
                address_prefix: "10.0.0.0".to_owned(),
                prefix_len: Some(UInt32Value { value: 24 }),
            })],
            true,
        ),
        // A request principal never exists here.
        (
            vec![Rule::Any(true)],
            vec![Identifier::Metadata(MetadataMatcher {
                filter: "envoy.filters.http.jwt_authn".to_owned(),
                value: Some(Default::default()),
                ..MetadataMatcher::default()
            })],
            false,
        ),
    ];
    for (what, who, wanted) in cases {
        let rules = compiled(rbac(0, what, who)).unwrap();
        let allowed = matches!(rules.check(&subject), Verdict::Allowed(Some(_)));
        assert_eq!(allowed, wanted, "{rules:?}");
    }
}

#[test]
fn what_is_not_understood_is_refused_with_its_path() {
    let bad_range = CidrRange {
        address_prefix: "10.0.0.300".to_owned(),
        prefix_len: None,
    };
    let long_range = CidrRange {
        address_prefix: "10.0.0.0".to_owned(),
        prefix_len: Some(UInt32Value { value: 33 }),
    };
    let mut empty = text(MatchPattern::Exact(String::new()));
    empty.match_pattern = None;
    let what = [
        (Rule::Any(false), "rules[0]"),
        (path(regex("(")), "url_path"),
        (path(empty), "url_path"),
        (Rule::UrlPath(PathMatcher::default()), "url_path"),
        (Rule::DestinationIp(bad_range.clone()), "10.0.0.300"),
        (Rule::DestinationIp(long_range), "10.0.0.0/33"),
        (Rule::DestinationPort(70_000), "70000"),
        (Rule::Matcher(Default::default()), "unsupported matcher"),
        (Rule::NotRule(Box::default()), "not_rule"),
    ];
    for (rule, hint) in what {
        let refusal = compiled(rbac(1, vec![rule], vec![Identifier::Any(true)])).unwrap_err();
        let text = refusal.to_string().replace("and_rules", "rules");
        assert!(
            text.contains("ns[shop]-policy[p]-rule[0]") && text.contains(hint),
            "{text}"
        );
    }
    let other_key = Identifier::FilterState(FilterStateMatcher {
        key: "other".to_owned(),
        matcher: Some(Matcher::StringMatch(exact("x"))),
    });
    for who in [
        other_key,
        Identifier::DirectRemoteIp(bad_range),
        Identifier::Custom(Default::default()),
    ] {
        assert!(compiled(rbac(1, vec![Rule::Any(true)], vec![who])).is_err());
    }
    assert!(compiled(rbac(9, vec![Rule::Any(true)], vec![Identifier::Any(true)])).is_err());
    let mut without = rbac(1, vec![], vec![Identifier::Any(true)]);
    without
        .policies
        .values_mut()
        .for_each(|policy| policy.permissions.clear());
    assert!(compiled(without).is_err());
    let mut condition = rbac(1, vec![Rule::Any(true)], vec![Identifier::Any(true)]);
    condition
        .policies
        .values_mut()
        .for_each(|p| p.condition = Some(Default::default()));
    assert!(compiled(condition).unwrap_err().reason.contains('3'));
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    let mut rule = Rule::Any(true);
    for _ in 0..60 {
        rule = Rule::NotRule(Box::new(permission(rule)));
    }
    let refusal = compiled(rbac(1, vec![rule], vec![Identifier::Any(true)])).unwrap_err();
    assert!(refusal.reason.contains("nested too deeply"), "{refusal}");
}

#[test]
fn shadow_rules_alone_change_nothing_and_unknown_fields_are_refused() {
    let warnings = RefCell::new(Vec::new());
    let at = At::root("rbac", &warnings);
    let shadow = HttpRbac {
        shadow_rules: Some(rbac(1, vec![Rule::Any(true)], vec![Identifier::Any(true)])),
        shadow_rules_stat_prefix: "istio_dry_run_deny_".to_owned(),
        ..HttpRbac::default()
    };
    assert_eq!(http_filter(&any(&shadow), &at), Ok(None));
    let mut unknown = any(&shadow);
    unknown.value.extend_from_slice(&[0xc0, 0x3e, 0x01]);
    assert!(http_filter(&unknown, &at).is_err());
    let matcher = HttpRbac {
        matcher: Some(Default::default()),
        ..HttpRbac::default()
    };
    assert!(http_filter(&any(&matcher), &at).is_err());
    // No rules at all: nothing to enforce. Rules without policies: ALLOW nothing.
    assert_eq!(http_filter(&any(&HttpRbac::default()), &at), Ok(None));
    let nothing = HttpRbac {
        rules: Some(Rbac::default()),
        ..HttpRbac::default()
    };
    let rules = http_filter(&any(&nothing), &at).unwrap().unwrap();
    let headers = HeaderMap::new();
    assert_eq!(rules.check(&subject(&headers)), Verdict::Denied(None));
}

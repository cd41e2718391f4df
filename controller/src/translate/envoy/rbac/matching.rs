//! One rule of a policy as an RBAC policy.
//!
//! Alternatives of `from` become principals and those of `to` permissions, of which one must match;
//! what `when` says is added to each.

use ambit_objects::Key;
use ambit_objects::kinds::security::{Condition, Operation, PolicyRule, Source};
use envoy_types::pb::envoy::config::core::v3::{CidrRange, TypedExtensionConfig};
use envoy_types::pb::envoy::config::rbac::v3::permission::{self, Rule};
use envoy_types::pb::envoy::config::rbac::v3::principal::{self, Identifier};
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal};
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::filter_state_matcher::Matcher as StateMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    FilterStateMatcher, PathMatcher, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use super::super::pack::{PLAIN, any};
use super::super::route::{header, is_header_name, string};
use super::super::wire::number;
use crate::finding::Findings;
use crate::translate::policy::{ip_block, port_number};

/// Filter state in which the waypoint keeps who is at the other end of the tunnel.
const PEER: &str = "io.istio.peer_principal";

/// Compiles rules of one policy for one kind of chain.
pub(super) struct Rules<'a> {
    deny: bool,
    http: bool,
    key: &'a Key,
    findings: &'a mut Findings,
}

/// Conditions of one alternative, all of which must hold.
struct All<T> {
    conditions: Vec<T>,
    /// The alternative must not be used.
    never: bool,
    /// Whether anything was asked for at all.
    asked: bool,
}

impl<T> Default for All<T> {
    fn default() -> Self {
        Self {
            conditions: Vec::new(),
            never: false,
            asked: false,
        }
    }
}

/// How the values of a field are read: into a condition, or why not.
type Read<T> = fn(&str) -> Result<T, String>;

impl<'a> Rules<'a> {
    pub(super) fn new(deny: bool, http: bool, key: &'a Key, findings: &'a mut Findings) -> Self {
        Self {
            deny,
            http,
            key,
            findings,
        }
    }

    /// `None` when the rule must not be used.
    pub(super) fn policy(mut self, path: &str, rule: &PolicyRule) -> Option<Policy> {
        let mut principals = Vec::new();
        for (index, from) in rule.from.iter().flatten().enumerate() {
            let source = from.source.clone().unwrap_or_default();
            let field = format!("{path}.from[{index}].source");
            let all = self.source(&field, &source);
            principals.extend(self.alternative(all, &field));
        }
        let mut permissions = Vec::new();
        for (index, to) in rule.to.iter().flatten().enumerate() {
            let operation = to.operation.clone().unwrap_or_default();
            let field = format!("{path}.to[{index}].operation");
            let all = self.operation(&field, &operation);
            permissions.extend(self.alternative(all, &field));
        }
        let has = |list: Option<usize>| list.is_some_and(|length| length > 0);
        if has(rule.from.as_ref().map(Vec::len)) && principals.is_empty()
            || has(rule.to.as_ref().map(Vec::len)) && permissions.is_empty()
        {
            return None;
        }
        let (mut who, mut what) = (Vec::new(), Vec::new());
        for (index, condition) in rule.when.iter().flatten().enumerate() {
            let field = format!("{path}.when[{index}]");
            let (ids, rules) = self.condition(&field, condition)?;
            who.extend(ids);
            what.extend(rules);
        }
        Some(Policy {
            principals: with_each(principals, &who)
                .into_iter()
                .map(all_ids)
                .collect(),
            permissions: with_each(permissions, &what)
                .into_iter()
                .map(all_rules)
                .collect(),
            ..Policy::default()
        })
    }

    /// The conditions of an alternative, or nothing when it must not be used.
    fn alternative<T>(&mut self, all: All<T>, field: &str) -> Option<Vec<T>> {
        if !all.asked {
            let effect = if self.deny { "everything" } else { "nothing" };
            self.findings
                .error(self.key, field, format!("is empty; it matches {effect}"));
        }
        let used = self.deny || (all.asked && !all.never);
        used.then_some(all.conditions)
    }

    fn source(&mut self, field: &str, source: &Source) -> All<Principal> {
        let namespace = self.key.name.namespace.clone();
        let account = |text: &str| service_account(&namespace, text);
        let mut all = All::default();
        self.ids(
            &mut all,
            field,
            "principals",
            &source.principals,
            &source.not_principals,
            principal,
        );
        self.ids(
            &mut all,
            field,
            "namespaces",
            &source.namespaces,
            &source.not_namespaces,
            namespace_of,
        );
        self.ids(
            &mut all,
            field,
            "serviceAccounts",
            &source.service_accounts,
            &source.not_service_accounts,
            account,
        );
        self.ids(
            &mut all,
            field,
            "trustDomains",
            &source.trust_domains,
            &source.not_trust_domains,
            trust_domain,
        );
        self.ids(
            &mut all,
            field,
            "ipBlocks",
            &source.ip_blocks,
            &source.not_ip_blocks,
            direct_ip,
        );
        if self.only_http(
            &mut all,
            field,
            "remoteIpBlocks",
            &[&source.remote_ip_blocks, &source.not_remote_ip_blocks],
        ) {
            self.ids(
                &mut all,
                field,
                "remoteIpBlocks",
                &source.remote_ip_blocks,
                &source.not_remote_ip_blocks,
                remote_ip,
            );
        }
        let (yes, no) = (&source.request_principals, &source.not_request_principals);
        if self.only_http(&mut all, field, "requestPrincipals", &[yes, no]) {
            self.ids(&mut all, field, "requestPrincipals", yes, no, |_| {
                Ok(nobody())
            });
        }
        all
    }

    fn operation(&mut self, field: &str, operation: &Operation) -> All<Permission> {
        let mut all = All::default();
        let (yes, no) = (&operation.ports, &operation.not_ports);
        self.rules(&mut all, field, "ports", yes, no, destination_port);
        /// Field, what it lists, what its negation lists, how a value is read.
        type Listed<'a> = (
            &'a str,
            &'a Option<Vec<String>>,
            &'a Option<Vec<String>>,
            Read<Permission>,
        );
        let http: [Listed<'_>; 3] = [
            ("hosts", &operation.hosts, &operation.not_hosts, host),
            (
                "methods",
                &operation.methods,
                &operation.not_methods,
                method,
            ),
            ("paths", &operation.paths, &operation.not_paths, path),
        ];
        for (name, yes, no, read) in http {
            if self.only_http(&mut all, field, name, &[yes, no]) {
                self.rules(&mut all, field, name, yes, no, read);
            }
        }
        all
    }

    /// What a `when` adds to who and to what; `None` when the rule must not be used.
    fn condition(
        &mut self,
        field: &str,
        condition: &Condition,
    ) -> Option<(Vec<Principal>, Vec<Permission>)> {
        let (yes, no) = (&condition.values, &condition.not_values);
        let (mut who, mut what) = (All::default(), All::default());
        let key = condition.key.as_str();
        let name = key
            .strip_prefix("request.headers[")
            .and_then(|rest| rest.strip_suffix(']'));
        match (key, name) {
            ("source.ip", _) => self.ids(&mut who, field, "values", yes, no, direct_ip),
            ("source.namespace", _) => self.ids(&mut who, field, "values", yes, no, namespace_of),
            ("source.principal", _) => self.ids(&mut who, field, "values", yes, no, principal),
            ("destination.ip", _) => {
                self.rules(&mut what, field, "values", yes, no, destination_ip)
            }
            ("destination.port", _) => {
                self.rules(&mut what, field, "values", yes, no, destination_port);
            }
            ("connection.sni", _) => self.rules(&mut what, field, "values", yes, no, server_name),
            ("remote.ip", _) if self.only_http(&mut who, field, "key", &[yes, no]) => {
                self.ids(&mut who, field, "values", yes, no, remote_ip);
            }
            (_, Some(name)) if is_header_name(name) => {
                if self.only_http(&mut who, field, "key", &[yes, no]) {
                    let read = |text: &str| Ok(header_is(name, text));
                    self.ids(&mut who, field, "values", yes, no, read);
                }
            }
            // There is no token check here, so no request has any of these.
            _ if key.starts_with("request.auth.") => {
                if self.only_http(&mut who, field, "key", &[yes, no]) {
                    self.ids(&mut who, field, "values", yes, no, |_| Ok(nobody()));
                }
            }
            ("remote.ip", _) => {}
            _ => {
                self.invalid(field, "key", &format!("{key:?} is no attribute known here"));
                who.never = true;
                who.asked = true;
            }
        }
        if !(who.asked || what.asked) {
            self.findings.error(self.key, field, "has no values");
            who.never = true;
        }
        let never = who.never || what.never;
        (self.deny || !never).then_some((who.conditions, what.conditions))
    }

    /// Whether the chain can check an HTTP condition. Where it cannot, an ALLOW alternative is not
    /// used and a DENY goes without the condition.
    fn only_http<T>(
        &mut self,
        all: &mut All<T>,
        field: &str,
        name: &str,
        lists: &[&Option<Vec<String>>],
    ) -> bool {
        let asked = lists
            .iter()
            .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()));
        if self.http || !asked {
            return true;
        }
        all.asked = true;
        all.never = true;
        let effect = if self.deny {
            "denies without it"
        } else {
            "allows nothing"
        };
        let message = format!("cannot be checked on TCP ports, where the rule {effect}");
        self.findings
            .warning(self.key, &format!("{field}.{name}"), message);
        false
    }

    fn ids(
        &mut self,
        all: &mut All<Principal>,
        field: &str,
        name: &str,
        yes: &Option<Vec<String>>,
        no: &Option<Vec<String>>,
        read: impl Fn(&str) -> Result<Principal, String>,
    ) {
        let any_of = |ids| Principal {
            identifier: Some(Identifier::OrIds(principal::Set { ids })),
        };
        let not = |id| Principal {
            identifier: Some(Identifier::NotId(Box::new(id))),
        };
        self.add(all, field, name, (yes, no), &read, any_of, not);
    }

    fn rules(
        &mut self,
        all: &mut All<Permission>,
        field: &str,
        name: &str,
        yes: &Option<Vec<String>>,
        no: &Option<Vec<String>>,
        read: impl Fn(&str) -> Result<Permission, String>,
    ) {
        let any_of = |rules| Permission {
            rule: Some(Rule::OrRules(permission::Set { rules })),
        };
        let not = |rule| Permission {
            rule: Some(Rule::NotRule(Box::new(rule))),
        };
        self.add(all, field, name, (yes, no), &read, any_of, not);
    }

    /// Adds "one of these" and "none of those". A value that cannot be read: where leaving it out
    /// would widen an ALLOW, the alternative is not used; where it would narrow a DENY, the whole
    /// condition is left out.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two callers above are its short forms"
    )]
    fn add<T>(
        &mut self,
        all: &mut All<T>,
        field: &str,
        name: &str,
        (yes, no): (&Option<Vec<String>>, &Option<Vec<String>>),
        read: &impl Fn(&str) -> Result<T, String>,
        any_of: impl Fn(Vec<T>) -> T,
        not: impl Fn(T) -> T,
    ) {
        for (list, negated) in [(yes, false), (no, true)] {
            let (mut good, mut bad) = (Vec::new(), false);
            for (index, text) in list.iter().flatten().enumerate() {
                all.asked = true;
                match read(text) {
                    Ok(value) => good.push(value),
                    Err(message) => {
                        let not = if negated { "not " } else { "" };
                        self.invalid(field, &format!("{not}{name}[{index}]"), &message);
                        bad = true;
                    }
                }
            }
            let unsafe_without = bad && (negated != self.deny || good.is_empty());
            if unsafe_without {
                all.never |= !self.deny;
                continue;
            }
            if !good.is_empty() {
                let one = any_of(good);
                all.conditions.push(if negated { not(one) } else { one });
            }
        }
    }

    fn invalid(&mut self, field: &str, name: &str, message: &str) {
        let effect = if self.deny {
            "denies more"
        } else {
            "allows less"
        };
        let message = format!("{message}; so the rule {effect}");
        self.findings
            .error(self.key, &format!("{field}.{name}"), message);
    }
}

/// Adds conditions that all alternatives share; no alternatives is one without conditions.
fn with_each<T: Clone>(alternatives: Vec<Vec<T>>, shared: &[T]) -> Vec<Vec<T>> {
    let mut all = if alternatives.is_empty() {
        vec![Vec::new()]
    } else {
        alternatives
    };
    for one in &mut all {
        one.extend(shared.iter().cloned());
    }
    all
}

fn all_ids(ids: Vec<Principal>) -> Principal {
    let identifier = match ids.is_empty() {
        true => Identifier::Any(true),
        false => Identifier::AndIds(principal::Set { ids }),
    };
    Principal {
        identifier: Some(identifier),
    }
}

fn all_rules(rules: Vec<Permission>) -> Permission {
    let rule = match rules.is_empty() {
        true => Rule::Any(true),
        false => Rule::AndRules(permission::Set { rules }),
    };
    Permission { rule: Some(rule) }
}

fn id(identifier: Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

fn rule(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

/// Matches no request.
fn nobody() -> Principal {
    id(Identifier::NotId(Box::new(id(Identifier::Any(true)))))
}

fn peer(pattern: MatchPattern) -> Principal {
    id(Identifier::FilterState(FilterStateMatcher {
        key: PEER.to_owned(),
        matcher: Some(StateMatcher::StringMatch(string(pattern))),
    }))
}

fn pattern(text: String) -> MatchPattern {
    MatchPattern::SafeRegex(RegexMatcher {
        regex: text,
        ..RegexMatcher::default()
    })
}

fn not_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        Err("an empty value matches nothing".to_owned())
    } else {
        Ok(text)
    }
}

/// A principal, compared as a SPIFFE identity; `*` is anyone who has one.
fn principal(text: &str) -> Result<Principal, String> {
    let text = not_empty(text.strip_prefix("spiffe://").unwrap_or(text))?;
    Ok(peer(if text == "*" {
        pattern(".+".to_owned())
    } else if let Some(suffix) = text.strip_prefix('*') {
        pattern(format!("spiffe://.*{}", regex::escape(suffix)))
    } else if let Some(prefix) = text.strip_suffix('*') {
        MatchPattern::Prefix(format!("spiffe://{prefix}"))
    } else {
        MatchPattern::Exact(format!("spiffe://{text}"))
    }))
}

/// A namespace. No part of it is ever a pattern but a star at one end.
fn namespace_of(text: &str) -> Result<Principal, String> {
    let text = not_empty(text)?;
    let part = if text == "*" {
        "[^/]+".to_owned()
    } else if let Some(suffix) = text.strip_prefix('*') {
        format!("[^/]*{}", regex::escape(suffix))
    } else if let Some(prefix) = text.strip_suffix('*') {
        format!("{}[^/]*", regex::escape(prefix))
    } else {
        regex::escape(text)
    };
    Ok(peer(pattern(format!("spiffe://[^/]+/ns/{part}/.*"))))
}

fn service_account(namespace: &str, text: &str) -> Result<Principal, String> {
    let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
    if namespace.is_empty() || account.is_empty() || text.contains('*') || account.contains('/') {
        return Err(format!("{text:?} is not a service account"));
    }
    let (namespace, account) = (regex::escape(namespace), regex::escape(account));
    Ok(peer(pattern(format!(
        "spiffe://[^/]+/ns/{namespace}/sa/{account}"
    ))))
}

fn trust_domain(text: &str) -> Result<Principal, String> {
    let text = not_empty(text)?;
    Ok(peer(MatchPattern::Prefix(format!("spiffe://{text}/"))))
}

fn range(text: &str) -> Result<CidrRange, String> {
    let block = ip_block(text)?;
    let prefix_len = number(u32::from(block.prefix_len()));
    Ok(CidrRange {
        address_prefix: block.network().to_string(),
        prefix_len,
    })
}

fn direct_ip(text: &str) -> Result<Principal, String> {
    Ok(id(Identifier::DirectRemoteIp(range(text)?)))
}

fn remote_ip(text: &str) -> Result<Principal, String> {
    Ok(id(Identifier::RemoteIp(range(text)?)))
}

fn destination_ip(text: &str) -> Result<Permission, String> {
    Ok(rule(Rule::DestinationIp(range(text)?)))
}

fn destination_port(text: &str) -> Result<Permission, String> {
    Ok(rule(Rule::DestinationPort(u32::from(port_number(text)?))))
}

fn server_name(text: &str) -> Result<Permission, String> {
    Ok(rule(Rule::RequestedServerName(wildcard(not_empty(text)?))))
}

/// Exact, `prefix*`, `*suffix`, and `*` for anything.
fn wildcard(text: &str) -> StringMatcher {
    string(if text == "*" {
        pattern(".+".to_owned())
    } else if let Some(suffix) = text.strip_prefix('*') {
        MatchPattern::Suffix(suffix.to_owned())
    } else if let Some(prefix) = text.strip_suffix('*') {
        MatchPattern::Prefix(prefix.to_owned())
    } else {
        MatchPattern::Exact(text.to_owned())
    })
}

fn header_is(name: &str, text: &str) -> Principal {
    id(Identifier::Header(header(name.to_owned(), wildcard(text))))
}

fn method(text: &str) -> Result<Permission, String> {
    let matcher = wildcard(not_empty(text)?);
    Ok(rule(Rule::Header(header(":method".to_owned(), matcher))))
}

/// A host, whatever its case; one without a port is that host on any port.
fn host(text: &str) -> Result<Permission, String> {
    let text = not_empty(text)?;
    let authority = |mut matcher: StringMatcher| {
        matcher.ignore_case = !matches!(matcher.match_pattern, Some(MatchPattern::SafeRegex(_)));
        rule(Rule::Header(header(":authority".to_owned(), matcher)))
    };
    let exact = authority(wildcard(text));
    if text.ends_with('*') || text.contains(':') {
        return Ok(exact);
    }
    let with_port = match text.strip_prefix('*') {
        Some(suffix) => {
            let text = format!("(?i).*{}:[0-9]+", regex::escape(suffix));
            authority(string(pattern(text)))
        }
        None => authority(string(MatchPattern::Prefix(format!("{text}:")))),
    };
    Ok(rule(Rule::OrRules(permission::Set {
        rules: vec![exact, with_port],
    })))
}

/// A path without its query; `{*}` is one segment and `{**}` any number.
fn path(text: &str) -> Result<Permission, String> {
    let text = not_empty(text)?;
    if !text.contains(['{', '}']) {
        let matcher = PathMatcher {
            rule: Some(PathRule::Path(wildcard(text))),
        };
        return Ok(rule(Rule::UrlPath(matcher)));
    }
    let template = text.replace("{**}", "**").replace("{*}", "*");
    if template.contains(['{', '}']) || !template.starts_with('/') {
        return Err(format!("{text:?} is not a path template"));
    }
    let config = UriTemplateMatchConfig {
        path_template: template,
    };
    Ok(rule(Rule::UriTemplate(TypedExtensionConfig {
        name: "envoy.path.match.uri_template.uri_template_matcher".to_owned(),
        typed_config: Some(any(&config, &PLAIN)),
    })))
}

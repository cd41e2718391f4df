//! `HTTPRoute`s of services -> routes of their chains.
//!
//! A rule that cannot be carried out as it is written answers 500 and nothing else, as the Gateway
//! API asks: traffic is never sent on without what the rule says about it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use ambit_objects::kinds::route::{HttpRoute, Match, ParentRef, PathMatchKind, Rule};
use ambit_objects::{Key, Kind, Name};
use envoy_types::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Decorator, DirectResponseAction, RetryPolicy, Route, RouteAction, RouteMatch, route::Action,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::google::protobuf::Duration as WireDuration;

use super::pack::{PLAIN, any};
use super::served::{Served, Service};
use super::wire::{duration, number, on};
use crate::cluster::{Binding, Cluster, by_age};
use crate::finding::Findings;

mod action;
mod matching;

pub(super) use matching::{header, is_header_name, string};

/// Answers that are tried again by default, istiod's.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// How often something is tried again by default, and how often it may be at most: more is a danger
/// to the backend and a mistake in the route.
const RETRIES: u32 = 2;
const MAX_RETRIES: u32 = 50;

/// How often an endpoint that was tried already is drawn again, istiod's number.
const RESELECTIONS: i64 = 5;

/// Routes of all service ports that have any.
#[derive(Debug, Default)]
pub(super) struct Routes {
    by_port: BTreeMap<(Name, u16), Vec<Route>>,
    /// Backends that this waypoint does not serve.
    pub(super) others: Vec<(Service, u16)>,
}

impl Routes {
    /// Routes of one port; `None` when no object has any for it.
    pub(super) fn of(&self, service: &Name, port: u16) -> Option<&[Route]> {
        self.by_port
            .get(&(service.clone(), port))
            .map(Vec::as_slice)
    }
}

/// One route with what decides its place.
struct Candidate {
    rank: Rank,
    route: Route,
}

/// The Gateway API's precedence; less goes first.
type Rank = (
    PathRank,
    Reverse<usize>,
    Reverse<bool>,
    Reverse<usize>,
    Reverse<usize>,
    (usize, usize, usize),
);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Prefix,
    Regex,
}

/// Says which routes have no effect, and why.
pub(super) fn check_parents(cluster: &Cluster, findings: &mut Findings) {
    for (name, route) in &cluster.objects().http_routes {
        let key = Key {
            kind: Kind::HttpRoute,
            name: name.clone(),
        };
        for (index, parent) in route.spec.parent_refs.iter().flatten().enumerate() {
            let field = format!("spec.parentRefs[{index}]");
            let Some(service) = parent_service(name, parent) else {
                findings.error(&key, &field, "is not a Service; it has no effect in a mesh");
                continue;
            };
            let why = match cluster.objects().services.get(&service) {
                None => format!("there is no Service {service}"),
                Some(object) => match cluster.service_waypoint(&service, &object.metadata) {
                    Binding::To(waypoint) if !is_for(waypoint, name, &service) => {
                        format!("a route of another namespace does not apply to Service {service}")
                    }
                    Binding::To(_) => continue,
                    _ => format!("Service {service} has no waypoint"),
                },
            };
            findings.error(&key, &field, format!("has no effect: {why}"));
        }
    }
}

/// Everything for one waypoint.
pub(super) fn all(served: &Served<'_>, findings: &mut Findings) -> Routes {
    let mut candidates: BTreeMap<(Name, u16), Vec<Candidate>> = BTreeMap::new();
    let mut others = BTreeMap::new();
    let by_age = by_age(&served.cluster.objects().http_routes, |route| {
        &route.metadata
    });
    for (age, (name, route)) in by_age.into_iter().enumerate() {
        for (service, port) in parents(served, name, route) {
            let mut compiler = Compiler {
                served,
                name,
                service,
                port,
                findings,
                others: &mut others,
            };
            let own = candidates.entry((service.name.clone(), port)).or_default();
            own.extend(compiler.route(age, route));
        }
    }
    let by_port = candidates
        .into_iter()
        .map(|(key, mut candidates)| {
            candidates.sort_by(|a, b| a.rank.cmp(&b.rank));
            (
                key,
                candidates
                    .into_iter()
                    .map(|candidate| candidate.route)
                    .collect(),
            )
        })
        .collect();
    let others = others.into_values().collect();
    Routes { by_port, others }
}

/// Service ports that the route attaches to, each once.
fn parents<'a>(served: &'a Served<'_>, name: &Name, route: &HttpRoute) -> Vec<(&'a Service, u16)> {
    let mut found: BTreeMap<(&Name, u16), &Service> = BTreeMap::new();
    for parent in route.spec.parent_refs.iter().flatten() {
        let service = parent_service(name, parent).and_then(|service| served.service(&service));
        let Some(service) = service else { continue };
        if !is_for(served.waypoint, name, &service.name) {
            continue;
        }
        let ports = service.ports.iter().filter(|port| port.protocol.has_http());
        for port in ports.filter(|port| parent.port.is_none_or(|wanted| wanted == port.number)) {
            found.insert((&service.name, port.number), service);
        }
    }
    found
        .into_iter()
        .map(|((_, port), service)| (service, port))
        .collect()
}

/// A route counts in the service's own namespace and in the waypoint's.
fn is_for(waypoint: &crate::cluster::Waypoint, route: &Name, service: &Name) -> bool {
    route.namespace == service.namespace || route.namespace == waypoint.name.namespace
}

fn parent_service(route: &Name, parent: &ParentRef) -> Option<Name> {
    let core = parent.group.as_deref() == Some("");
    (core && parent.kind.as_deref() == Some("Service")).then(|| {
        let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
        Name::new(namespace, &parent.name)
    })
}

/// Compiles one route for one service port.
struct Compiler<'a, 'b> {
    served: &'a Served<'b>,
    name: &'a Name,
    service: &'a Service,
    port: u16,
    findings: &'a mut Findings,
    others: &'a mut BTreeMap<String, (Service, u16)>,
}

impl Compiler<'_, '_> {
    fn route(&mut self, age: usize, route: &HttpRoute) -> Vec<Candidate> {
        let everything = [Rule::default()];
        let rules = route.spec.rules.as_deref().unwrap_or(&everything);
        let mut candidates = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let matches = rule.matches.clone().filter(|matches| !matches.is_empty());
            for (place, one) in matches
                .unwrap_or_else(|| vec![Match::default()])
                .iter()
                .enumerate()
            {
                candidates.extend(self.candidate((age, index, place), rule, one));
            }
        }
        candidates
    }

    fn candidate(
        &mut self,
        order: (usize, usize, usize),
        rule: &Rule,
        one: &Match,
    ) -> Option<Candidate> {
        let (_, index, place) = order;
        let field = format!("spec.rules[{index}]");
        // A match that cannot be read matches nothing; guessing could take other rules' traffic.
        let matcher = match matching::matcher(one) {
            Ok(matcher) => matcher,
            Err(error) => {
                let field = format!("{field}.matches[{place}].{}", error.field);
                self.error(&field, format!("{}; the match is left out", error.message));
                return None;
            }
        };
        let name = rule
            .name
            .clone()
            .unwrap_or_else(|| format!("{}.{}.{index}", self.name.namespace, self.name.name));
        let mut route = Route {
            name,
            ..Route::default()
        };
        let operation = operation(self.service, self.port, &matcher);
        route.decorator = Some(Decorator {
            operation,
            ..Decorator::default()
        });
        if let Err(error) = action::fill(self, &mut route, rule, one) {
            let field = format!("{field}.{}", error.field);
            self.error(&field, format!("{}; the rule answers 500", error.message));
            route = refuse(route);
        }
        route.r#match = Some(matcher);
        Some(Candidate {
            rank: rank(one, order),
            route,
        })
    }

    fn error(&mut self, field: &str, message: String) {
        let key = Key {
            kind: Kind::HttpRoute,
            name: self.name.clone(),
        };
        self.findings.error(&key, field, message);
    }
}

/// Something in a rule that cannot be carried out.
struct Invalid {
    /// Path below the rule or match.
    field: String,
    message: String,
}

impl Invalid {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

fn rank(one: &Match, order: (usize, usize, usize)) -> Rank {
    let path = one.path.clone().unwrap_or_default();
    let kind = match path.kind.unwrap_or_default() {
        PathMatchKind::Exact => PathRank::Exact,
        PathMatchKind::PathPrefix => PathRank::Prefix,
        PathMatchKind::RegularExpression => PathRank::Regex,
    };
    let value = path.value.as_deref().unwrap_or("/");
    let value = if kind == PathRank::Prefix {
        matching::prefix(value)
    } else {
        value
    };
    let length = value.chars().count();
    let headers = one.headers.as_ref().map_or(0, Vec::len);
    let parameters = one.query_params.as_ref().map_or(0, Vec::len);
    (
        kind,
        Reverse(length),
        Reverse(one.method.is_some()),
        Reverse(headers),
        Reverse(parameters),
        order,
    )
}

/// The rule as a refusal: nothing of what it does is left, so that nothing is done by halves.
fn refuse(route: Route) -> Route {
    let answer = DirectResponseAction {
        status: 500,
        ..DirectResponseAction::default()
    };
    Route {
        name: route.name,
        decorator: route.decorator,
        action: Some(Action::DirectResponse(answer)),
        ..Route::default()
    }
}

/// The route of a port without any object: everything to the service itself.
pub(super) fn default_route(cluster: &str, hostname: &str, port: u16) -> Route {
    Route {
        name: "default".to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            case_sensitive: on(),
            ..RouteMatch::default()
        }),
        decorator: Some(Decorator {
            operation: format!("{hostname}:{port}/*"),
            ..Decorator::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            ..forward(None, Some(retry_policy()))
        })),
        ..Route::default()
    }
}

/// An action that forwards; the time limit is zero, none, unless given.
#[expect(
    deprecated,
    reason = "istiod sends it, and Envoy knows no other way to cap gRPC's own limit"
)]
fn forward(limit: Option<Duration>, retry_policy: Option<RetryPolicy>) -> RouteAction {
    let timeout = limit.map_or(Some(WireDuration::default()), duration);
    RouteAction {
        timeout,
        max_grpc_timeout: timeout,
        retry_policy,
        ..RouteAction::default()
    }
}

/// istiod's policy for routes that say nothing.
fn retry_policy() -> RetryPolicy {
    let previous = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(
            envoy_types::pb::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType::TypedConfig(
                any(&PreviousHostsPredicate::default(), &PLAIN),
            ),
        ),
    };
    RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: number(RETRIES),
        retry_host_predicate: vec![previous],
        host_selection_retry_max_attempts: RESELECTIONS,
        ..RetryPolicy::default()
    }
}

/// How long a rule's requests may take, and when they are tried again.
fn limits(rule: &Rule) -> Result<RouteAction, Invalid> {
    let read = |field: &str, text: Option<&String>| -> Result<Option<Duration>, Invalid> {
        let Some(text) = text else { return Ok(None) };
        let read = matching::duration(text);
        read.map(Some)
            .ok_or_else(|| Invalid::new(field, format!("{text:?} is not a duration")))
    };
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let request = read("timeouts.request", timeouts.request.as_ref())?;
    let backend = read("timeouts.backendRequest", timeouts.backend_request.as_ref())?;
    let Some(retry) = &rule.retry else {
        // Without retries of its own a rule's single try is the request.
        return Ok(forward(request.or(backend), Some(retry_policy())));
    };
    let attempts = retry.attempts.unwrap_or(RETRIES);
    if attempts == 0 {
        return Ok(forward(request.or(backend), None));
    }
    let mut policy = retry_policy();
    policy.num_retries = number(attempts.min(MAX_RETRIES));
    policy.per_try_timeout = backend.and_then(duration);
    let codes = retry.codes.clone().unwrap_or_default();
    if !codes.is_empty() {
        policy.retry_on.push_str(",retriable-status-codes");
        policy.retriable_status_codes = codes.into_iter().map(u32::from).collect();
    }
    let backoff = read("retry.backoff", retry.backoff.as_ref())?;
    policy.retry_back_off = backoff.map(|base| RetryBackOff {
        base_interval: duration(base.max(Duration::from_millis(1))),
        ..RetryBackOff::default()
    });
    Ok(forward(request, Some(policy)))
}

fn operation(service: &Service, port: u16, matcher: &RouteMatch) -> String {
    let path = match &matcher.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => format!("{prefix}/*"),
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex.clone(),
        _ => "/*".to_owned(),
    };
    format!("{}:{port}{path}", service.hostname)
}

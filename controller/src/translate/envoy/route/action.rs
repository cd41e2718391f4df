//! What a rule does: filters and backends.

use ambit_objects::Name;
use ambit_objects::kinds::route::{
    BackendRef, Filter, FilterKind, Header, HeaderModifier, Match, PathMatchKind, PathModifier,
    PathModifierKind, RequestRedirect, Rule, UrlRewrite,
};
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::cluster_weight::HostRewriteSpecifier as WeightHost;
use envoy_types::pb::envoy::config::route::v3::{
    RedirectAction, Route, RouteAction, WeightedCluster, route::Action,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};

use super::super::cluster::outbound_name;
use super::super::served::Service;
use super::super::wire::number;
use super::matching::{is_header_name, prefix};
use super::{Compiler, Invalid, limits};

/// A cluster that is not there: requests to it are answered 500.
const UNKNOWN_SERVICE: &str = "UnknownService";

/// Fills in action and header changes.
pub(super) fn fill(
    compiler: &mut Compiler<'_, '_>,
    route: &mut Route,
    rule: &Rule,
    one: &Match,
) -> Result<(), Invalid> {
    let mut changes = Changes::default();
    for (index, filter) in rule.filters.iter().flatten().enumerate() {
        let field = format!("filters[{index}]");
        match filter.kind {
            FilterKind::RequestRedirect => {
                let redirect = filter.request_redirect.clone().unwrap_or_default();
                let action = redirection(&redirect, one, compiler.port, &field)?;
                route.action = Some(Action::Redirect(action));
            }
            _ => changes.add(filter, one, &field)?,
        }
    }
    let Changes {
        request,
        response,
        host,
        path,
    } = changes;
    (
        route.request_headers_to_add,
        route.request_headers_to_remove,
    ) = request;
    (
        route.response_headers_to_add,
        route.response_headers_to_remove,
    ) = response;
    if route.action.is_some() {
        return Ok(());
    }
    let mut action = limits(rule)?;
    action.cluster_not_found_response_code =
        ClusterNotFoundResponseCode::InternalServerError.into();
    action.cluster_specifier = Some(destination(compiler, rule)?);
    if let Some(host) = host {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
    }
    if let Some(rewrite) = path {
        action.append_x_forwarded_host = true;
        rewrite.apply(&mut action);
    }
    route.action = Some(Action::Route(action));
    Ok(())
}

/// Headers to add, and to remove.
type HeaderChanges = (Vec<HeaderValueOption>, Vec<String>);

/// What filters change.
#[derive(Default)]
struct Changes {
    request: HeaderChanges,
    response: HeaderChanges,
    host: Option<String>,
    path: Option<Rewrite>,
}

/// How a path is rewritten; `Unchanged` when only the host is.
enum Rewrite {
    Unchanged,
    Prefix(String),
    Regex(RegexMatchAndSubstitute),
}

impl Rewrite {
    fn apply(self, action: &mut RouteAction) {
        match self {
            Self::Unchanged => {}
            Self::Prefix(prefix) => action.prefix_rewrite = prefix,
            Self::Regex(regex) => action.regex_rewrite = Some(regex),
        }
    }
}

impl Changes {
    fn add(&mut self, filter: &Filter, one: &Match, field: &str) -> Result<(), Invalid> {
        match filter.kind {
            FilterKind::RequestHeaderModifier => {
                let modifier = filter.request_header_modifier.clone().unwrap_or_default();
                let (changes, host) =
                    headers(&modifier, &format!("{field}.requestHeaderModifier"))?;
                self.host = host.or(self.host.take());
                merge(&mut self.request, changes);
            }
            FilterKind::ResponseHeaderModifier => {
                let modifier = filter.response_header_modifier.clone().unwrap_or_default();
                let field = format!("{field}.responseHeaderModifier");
                merge(&mut self.response, headers(&modifier, &field)?.0);
            }
            FilterKind::URLRewrite => {
                let rewrite = filter.url_rewrite.clone().unwrap_or_default();
                self.rewrite(&rewrite, one, &format!("{field}.urlRewrite"))?;
            }
            other => {
                let message = format!("filter {other:?} is not supported here");
                return Err(Invalid::new(format!("{field}.type"), message));
            }
        }
        Ok(())
    }

    fn rewrite(&mut self, rewrite: &UrlRewrite, one: &Match, field: &str) -> Result<(), Invalid> {
        if let Some(host) = &rewrite.hostname {
            check_host(host, &format!("{field}.hostname"))?;
            self.host = Some(host.clone());
        }
        self.path = Some(match &rewrite.path {
            None => Rewrite::Unchanged,
            Some(path) => path_rewrite(path, one, &format!("{field}.path"))?,
        });
        Ok(())
    }
}

fn merge(into: &mut HeaderChanges, (add, remove): HeaderChanges) {
    into.0.extend(add);
    into.1.extend(remove);
}

/// Header changes, and the host if that is among what is set.
fn headers(
    modifier: &HeaderModifier,
    field: &str,
) -> Result<(HeaderChanges, Option<String>), Invalid> {
    let (mut add, mut host) = (Vec::new(), None);
    let lists = [
        (
            "set",
            &modifier.set,
            HeaderAppendAction::OverwriteIfExistsOrAdd,
        ),
        (
            "add",
            &modifier.add,
            HeaderAppendAction::AppendIfExistsOrAdd,
        ),
    ];
    for (name, list, action) in lists {
        for (index, header) in list.iter().flatten().enumerate() {
            let field = format!("{field}.{name}[{index}]");
            if header.name.eq_ignore_ascii_case("host") {
                check_host(&header.value, &format!("{field}.value"))?;
                host = Some(header.value.clone());
            } else {
                add.push(option(header, action, &field)?);
            }
        }
    }
    let mut remove = Vec::new();
    for (index, name) in modifier.remove.iter().flatten().enumerate() {
        if !is_header_name(name) {
            let message = format!("{name:?} is no header name");
            return Err(Invalid::new(format!("{field}.remove[{index}]"), message));
        }
        // Without a host there is no request.
        if !name.eq_ignore_ascii_case("host") {
            remove.push(name.to_ascii_lowercase());
        }
    }
    Ok(((add, remove), host))
}

fn option(
    header: &Header,
    action: HeaderAppendAction,
    field: &str,
) -> Result<HeaderValueOption, Invalid> {
    if !is_header_name(&header.name) {
        let message = format!("{:?} is no header name", header.name);
        return Err(Invalid::new(format!("{field}.name"), message));
    }
    if header
        .value
        .bytes()
        .any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f)
    {
        let message = "a header value has no control characters";
        return Err(Invalid::new(format!("{field}.value"), message));
    }
    Ok(HeaderValueOption {
        header: Some(HeaderValue {
            key: header.name.clone(),
            // A percent sign begins a command of the proxy; here it is only itself.
            value: header.value.replace('%', "%%"),
            ..HeaderValue::default()
        }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    })
}

fn check_host(host: &str, field: &str) -> Result<(), Invalid> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    if !host.is_empty() && host.bytes().all(valid) {
        Ok(())
    } else {
        Err(Invalid::new(field, format!("{host:?} is not a host")))
    }
}

/// The prefix that a match has, for changes that replace it.
fn matched_prefix<'a>(one: &'a Match, field: &str) -> Result<&'a str, Invalid> {
    let path = one.path.as_ref();
    match path.and_then(|path| path.kind).unwrap_or_default() {
        PathMatchKind::PathPrefix => Ok(prefix(
            path.and_then(|path| path.value.as_deref()).unwrap_or("/"),
        )),
        _ => Err(Invalid::new(
            field,
            "a prefix can be replaced only where one is matched",
        )),
    }
}

fn path_rewrite(path: &PathModifier, one: &Match, field: &str) -> Result<Rewrite, Invalid> {
    match path.kind {
        PathModifierKind::ReplaceFullPath => {
            let full = path.replace_full_path.as_deref().unwrap_or("/");
            check_path(full, field)?;
            Ok(Rewrite::Regex(substitute("/.*", full)))
        }
        PathModifierKind::ReplacePrefixMatch => {
            let matched = matched_prefix(one, field)?;
            let replacement = prefix(path.replace_prefix_match.as_deref().unwrap_or("/"));
            if !replacement.is_empty() {
                check_path(replacement, field)?;
            }
            Ok(replace_prefix(matched, replacement))
        }
    }
}

/// Slashes are the difficulty: there must be one between what is put in and what follows, and not
/// two.
fn replace_prefix(matched: &str, replacement: &str) -> Rewrite {
    match (matched, replacement) {
        ("", "") => Rewrite::Unchanged,
        ("", replacement) => {
            let mut regex = substitute("^/(.*)", replacement);
            regex.substitution.push_str("/\\1");
            Rewrite::Regex(regex)
        }
        (matched, "") => {
            let pattern = format!("^{}(/?)(.*)", regex::escape(matched));
            let mut regex = substitute(&pattern, "");
            regex.substitution = "/\\2".to_owned();
            Rewrite::Regex(regex)
        }
        (_, replacement) => Rewrite::Prefix(replacement.to_owned()),
    }
}

fn substitute(pattern: &str, literal: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher {
            regex: pattern.to_owned(),
            ..RegexMatcher::default()
        }),
        // A backslash begins a reference.
        substitution: literal.replace('\\', "\\\\"),
    }
}

fn check_path(path: &str, field: &str) -> Result<(), Invalid> {
    let printable = path.bytes().all(|byte| byte > b' ' && byte < 0x7f);
    if path.starts_with('/') && printable && !path.contains(['?', '#']) {
        Ok(())
    } else {
        Err(Invalid::new(
            field,
            format!("{path:?} is not an absolute path"),
        ))
    }
}

fn redirection(
    redirect: &RequestRedirect,
    one: &Match,
    port: u16,
    field: &str,
) -> Result<RedirectAction, Invalid> {
    let field = format!("{field}.requestRedirect");
    let code = match redirect.status_code.unwrap_or(302) {
        301 => RedirectResponseCode::MovedPermanently,
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        other => {
            let message = format!("{other} is not a redirect");
            return Err(Invalid::new(format!("{field}.statusCode"), message));
        }
    };
    let scheme = match redirect.scheme.as_deref() {
        None => None,
        Some(scheme @ ("http" | "https")) => {
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme.to_owned()))
        }
        Some(other) => {
            let message = format!("{other:?} is neither http nor https");
            return Err(Invalid::new(format!("{field}.scheme"), message));
        }
    };
    if let Some(host) = &redirect.hostname {
        check_host(host, &format!("{field}.hostname"))?;
    }
    let path = match &redirect.path {
        None => None,
        Some(path) => redirect_path(path, one, &format!("{field}.path"))?,
    };
    Ok(RedirectAction {
        host_redirect: redirect.hostname.clone().unwrap_or_default(),
        port_redirect: redirect_port(redirect, port),
        response_code: code.into(),
        scheme_rewrite_specifier: scheme,
        path_rewrite_specifier: path,
        ..RedirectAction::default()
    })
}

/// The port asked for; with a new scheme the scheme's; else the request's. Envoy keeps the request's
/// with its host, so only a new host needs it said, and port 80 goes without saying.
fn redirect_port(redirect: &RequestRedirect, port: u16) -> u32 {
    match (redirect.port, &redirect.scheme, &redirect.hostname) {
        (Some(port), _, _) => u32::from(port),
        (None, None, Some(_)) if port != 80 => u32::from(port),
        _ => 0,
    }
}

fn redirect_path(
    path: &PathModifier,
    one: &Match,
    field: &str,
) -> Result<Option<PathRewriteSpecifier>, Invalid> {
    if path.kind == PathModifierKind::ReplaceFullPath {
        let full = path.replace_full_path.as_deref().unwrap_or("/");
        check_path(full, field)?;
        return Ok(Some(PathRewriteSpecifier::PathRedirect(full.to_owned())));
    }
    Ok(match path_rewrite(path, one, field)? {
        Rewrite::Unchanged => None,
        Rewrite::Prefix(prefix) => Some(PathRewriteSpecifier::PrefixRewrite(prefix)),
        Rewrite::Regex(regex) => Some(PathRewriteSpecifier::RegexRewrite(regex)),
    })
}

/// Where a rule's requests go.
fn destination(compiler: &mut Compiler<'_, '_>, rule: &Rule) -> Result<ClusterSpecifier, Invalid> {
    let backends = rule.backend_refs.as_deref().unwrap_or_default();
    let mut weighted = Vec::new();
    for (index, backend) in backends.iter().enumerate() {
        let weight = backend.weight.unwrap_or(1);
        if weight > 0 {
            weighted.push(one_backend(
                compiler,
                backend,
                weight,
                &format!("backendRefs[{index}]"),
            )?);
        }
    }
    let plain = |cluster: &ClusterWeight| {
        *cluster
            == ClusterWeight {
                name: cluster.name.clone(),
                weight: cluster.weight,
                ..ClusterWeight::default()
            }
    };
    match weighted.as_slice() {
        [] => Err(Invalid::new(
            "backendRefs",
            "no backend has a weight above 0",
        )),
        [only] if plain(only) => Ok(ClusterSpecifier::Cluster(only.name.clone())),
        _ => Ok(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: weighted,
            ..WeightedCluster::default()
        })),
    }
}

/// One backend. One that cannot be found keeps its share of the requests, which are answered 500.
fn one_backend(
    compiler: &mut Compiler<'_, '_>,
    backend: &BackendRef,
    weight: u32,
    field: &str,
) -> Result<ClusterWeight, Invalid> {
    let name = match cluster_name(compiler, backend) {
        Ok(name) => name,
        Err(message) => {
            compiler.error(
                field,
                format!("{message}; its share of requests is answered 500"),
            );
            UNKNOWN_SERVICE.to_owned()
        }
    };
    let mut changes = Changes::default();
    for (index, filter) in backend.filters.iter().flatten().enumerate() {
        let field = format!("{field}.filters[{index}]");
        if filter.kind == FilterKind::URLRewrite {
            return Err(Invalid::new(
                field,
                "a rewrite for one backend is not supported",
            ));
        }
        changes.add(filter, &Match::default(), &field)?;
    }
    let (request_headers_to_add, request_headers_to_remove) = changes.request;
    let (response_headers_to_add, response_headers_to_remove) = changes.response;
    Ok(ClusterWeight {
        name,
        weight: number(weight),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        host_rewrite_specifier: changes.host.map(WeightHost::HostRewriteLiteral),
        ..ClusterWeight::default()
    })
}

fn cluster_name(compiler: &mut Compiler<'_, '_>, backend: &BackendRef) -> Result<String, String> {
    let group = backend.group.as_deref().unwrap_or_default();
    let kind = backend.kind.as_deref().unwrap_or("Service");
    if !group.is_empty() || kind != "Service" {
        return Err(format!(
            "backend kind {kind} of group {group:?} is not supported"
        ));
    }
    let port = backend.port.ok_or("a Service backend needs a port")?;
    let own = &compiler.name.namespace;
    let namespace = backend.namespace.as_ref().unwrap_or(own);
    if namespace != own {
        return Err(
            "a backend of another namespace needs a ReferenceGrant, and none is read".into(),
        );
    }
    let name = Name::new(namespace, &backend.name);
    if let Some(service) = compiler.served.service(&name) {
        return match service.port(port) {
            Some(port) if port.protocol.has_http() => Ok(service.chain(port.number, true)),
            Some(_) => Err(format!("port {port} of Service {name} is not HTTP")),
            None => Err(format!("Service {name} has no port {port}")),
        };
    }
    let service = Service::find(compiler.served.cluster, &name)
        .ok_or_else(|| format!("there is no Service {name}"))?;
    if service.port(port).is_none() {
        return Err(format!("Service {name} has no port {port}"));
    }
    let cluster = outbound_name(&service, port);
    compiler.others.insert(cluster.clone(), (service, port));
    Ok(cluster)
}

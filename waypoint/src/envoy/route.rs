//! `RouteConfiguration` → [`RouteTable`].

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{DataSource, RuntimeFractionalPercent};
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action as ProtoAction;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, Route as ProtoRoute, RouteConfiguration,
    RouteMatch as ProtoMatch, VirtualHost as ProtoHost,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::pb::google::protobuf::Any;
use http::StatusCode;

use crate::envoy::at::{At, Compiled, nothing_left};
use crate::envoy::matching::{edits, header, query, regex};
use crate::filter::headers::Edit;
use crate::filter::redirect::Redirect;
use crate::filter::rewrite::PathRewrite;
use crate::plan::Name;
use crate::routes::matching::{PathMatch, RouteMatch, StringMatch, StringTest, Substitution};
use crate::routes::{Action, Respond, Route, RouteTable, VirtualHost};

mod forward;

/// Envoy's limit of a direct response's body where the configuration gives none.
const DIRECT_RESPONSE_LIMIT: usize = 4096;
/// Ours where the configuration gives a larger one: Istio asks for this much.
const DIRECT_RESPONSE_CAP: usize = 1 << 20;

/// What a table or host adds to every route in it.
struct Around<'a> {
    request: &'a [Edit],
    response: &'a [Edit],
    body_limit: usize,
}

pub(crate) fn table(mut config: RouteConfiguration, at: &At<'_>) -> Compiled<RouteTable> {
    let mut request = Vec::new();
    let mut response = Vec::new();
    edits(
        &std::mem::take(&mut config.request_headers_to_add),
        &std::mem::take(&mut config.request_headers_to_remove),
        &at.field("request_headers"),
        &mut request,
    )?;
    edits(
        &std::mem::take(&mut config.response_headers_to_add),
        &std::mem::take(&mut config.response_headers_to_remove),
        &at.field("response_headers"),
        &mut response,
    )?;
    let body_limit = match config.max_direct_response_body_size_bytes.take() {
        Some(limit) => usize::try_from(limit.value)
            .unwrap_or(usize::MAX)
            .min(DIRECT_RESPONSE_CAP),
        None => DIRECT_RESPONSE_LIMIT,
    };
    per_filter(&std::mem::take(&mut config.typed_per_filter_config), at)?;
    let hosts = std::mem::take(&mut config.virtual_hosts);
    config.name.clear();
    config.validate_clusters = None;
    config.metadata = None;
    nothing_left(&config, at)?;

    let mut table = RouteTable::default();
    for (index, host) in hosts.into_iter().enumerate() {
        let at = at.index("virtual_hosts", index);
        let domains = host.domains.clone();
        if domains.is_empty() {
            return Err(at.refuse("has no domains"));
        }
        let around = Around {
            request: &request,
            response: &response,
            body_limit,
        };
        table
            .add(virtual_host(host, &around, &at)?, &domains)
            .map_err(|e| at.refuse(e))?;
    }
    Ok(table)
}

fn virtual_host(mut proto: ProtoHost, table: &Around<'_>, at: &At<'_>) -> Compiled<VirtualHost> {
    let mut request = Vec::new();
    let mut response = Vec::new();
    edits(
        &std::mem::take(&mut proto.request_headers_to_add),
        &std::mem::take(&mut proto.request_headers_to_remove),
        &at.field("request_headers"),
        &mut request,
    )?;
    edits(
        &std::mem::take(&mut proto.response_headers_to_add),
        &std::mem::take(&mut proto.response_headers_to_remove),
        &at.field("response_headers"),
        &mut response,
    )?;
    request.extend_from_slice(table.request);
    response.extend_from_slice(table.response);
    per_filter(&std::mem::take(&mut proto.typed_per_filter_config), at)?;
    let routes = std::mem::take(&mut proto.routes);
    let name = Name::from(proto.name.as_str());
    proto.name.clear();
    proto.domains.clear();
    proto.metadata = None;
    nothing_left(&proto, at)?;

    let around = Around {
        request: &request,
        response: &response,
        body_limit: table.body_limit,
    };
    let routes = routes
        .into_iter()
        .enumerate()
        .map(|(index, proto)| {
            let name = proto.name.clone();
            let list = at.index("routes", index);
            let named = at.key("routes", &name);
            route(proto, &around, if name.is_empty() { &list } else { &named }).map(Arc::new)
        })
        .collect::<Compiled<_>>()?;
    Ok(VirtualHost { name, routes })
}

fn route(mut proto: ProtoRoute, around: &Around<'_>, at: &At<'_>) -> Compiled<Route> {
    let mut request_edits = Vec::new();
    let mut response_edits = Vec::new();
    edits(
        &std::mem::take(&mut proto.request_headers_to_add),
        &std::mem::take(&mut proto.request_headers_to_remove),
        &at.field("request_headers"),
        &mut request_edits,
    )?;
    edits(
        &std::mem::take(&mut proto.response_headers_to_add),
        &std::mem::take(&mut proto.response_headers_to_remove),
        &at.field("response_headers"),
        &mut response_edits,
    )?;
    request_edits.extend_from_slice(around.request);
    response_edits.extend_from_slice(around.response);
    per_filter(&std::mem::take(&mut proto.typed_per_filter_config), at)?;
    let matcher = proto
        .r#match
        .take()
        .ok_or_else(|| at.refuse("has no match"))?;
    let matcher = route_match(matcher, &at.field("match"))?;
    let action = match proto.action.take() {
        Some(ProtoAction::Route(action)) => {
            Action::Forward(Box::new(forward::forward(action, &at.field("route"))?))
        }
        Some(ProtoAction::Redirect(action)) => {
            Action::Redirect(redirect(action, &at.field("redirect"))?)
        }
        Some(ProtoAction::DirectResponse(action)) => Action::Respond(respond(
            action,
            around.body_limit,
            &at.field("direct_response"),
        )?),
        Some(ProtoAction::FilterAction(_) | ProtoAction::NonForwardingAction(_)) => {
            return Err(at.refuse("has an action that is not supported"));
        }
        None => return Err(at.refuse("has no action")),
    };
    let name = Name::from(proto.name.as_str());
    proto.name.clear();
    let operation = proto
        .decorator
        .take()
        .map(|decorator| Name::from(decorator.operation));
    proto.metadata = None;
    proto.stat_prefix.clear();
    nothing_left(&proto, at)?;
    Ok(Route {
        name,
        matcher,
        action,
        request_edits,
        response_edits,
        operation,
    })
}

/// Per-route settings of filters: we have no filter that takes any.
fn per_filter(configs: &HashMap<String, Any>, at: &At<'_>) -> Compiled<()> {
    match configs.iter().min_by_key(|(name, _)| *name) {
        None => Ok(()),
        Some((name, config)) => Err(at.key("typed_per_filter_config", name).refuse(format_args!(
            "{} is not supported",
            super::at::type_name(config)
        ))),
    }
}

pub(super) fn route_match(mut proto: ProtoMatch, at: &At<'_>) -> Compiled<RouteMatch> {
    let ignore_case = proto
        .case_sensitive
        .take()
        .is_some_and(|sensitive| !sensitive.value);
    let literal = |test: StringTest| StringMatch::new(test, ignore_case);
    let path = match proto.path_specifier.take() {
        Some(PathSpecifier::Prefix(text)) => {
            PathMatch::Prefix(literal(StringTest::Prefix(text.into_bytes().into())))
        }
        Some(PathSpecifier::Path(text)) => {
            PathMatch::Exact(literal(StringTest::Exact(text.into_bytes().into())))
        }
        Some(PathSpecifier::PathSeparatedPrefix(text)) => {
            if !text.starts_with('/') || text.ends_with('/') || text.contains(['?', '#']) {
                return Err(at.refuse(format_args!("path_separated_prefix {text:?} is malformed")));
            }
            PathMatch::Separated {
                prefix: text.into(),
                ignore_case,
            }
        }
        Some(PathSpecifier::SafeRegex(matcher)) => {
            PathMatch::Regex(regex(&matcher, &at.field("safe_regex"))?)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            return Err(at.refuse("CONNECT is not routed on a service"));
        }
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            return Err(at.refuse(format_args!(
                "path matcher {:?} is not supported",
                policy.name
            )));
        }
        None => return Err(at.refuse("has no path specifier")),
    };
    if let Some(fraction) = proto.runtime_fraction.take() {
        whole(&fraction, &at.field("runtime_fraction"))?;
    }
    let headers = std::mem::take(&mut proto.headers);
    let headers = headers
        .iter()
        .enumerate()
        .map(|(index, matcher)| header(matcher, &at.index("headers", index)))
        .collect::<Compiled<_>>()?;
    let parameters = std::mem::take(&mut proto.query_parameters);
    let query = parameters
        .iter()
        .enumerate()
        .map(|(index, matcher)| query(matcher, &at.index("query_parameters", index)))
        .collect::<Compiled<_>>()?;
    let grpc = proto.grpc.take().is_some();
    nothing_left(&proto, at)?;
    Ok(RouteMatch {
        path,
        headers,
        query,
        grpc,
    })
}

/// A fraction that is all: anything less is a random choice that we do not make.
fn whole(fraction: &RuntimeFractionalPercent, at: &At<'_>) -> Compiled<()> {
    let value = fraction.default_value.unwrap_or_default();
    let all = match value.denominator {
        0 => 100,
        1 => 10_000,
        _ => 1_000_000,
    };
    if value.numerator >= all {
        Ok(())
    } else {
        Err(at.refuse("fractions are not supported"))
    }
}

pub(super) fn substitution(proto: &RegexMatchAndSubstitute, at: &At<'_>) -> Compiled<Substitution> {
    let pattern = proto
        .pattern
        .as_ref()
        .ok_or_else(|| at.refuse("has no pattern"))?;
    Substitution::new(&pattern.regex, &proto.substitution).map_err(|error| at.refuse(error))
}

fn redirect(proto: RedirectAction, at: &At<'_>) -> Compiled<Redirect> {
    let status = match RedirectResponseCode::try_from(proto.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(at.refuse("has an unknown response_code")),
    };
    let scheme = match proto.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.into_boxed_str()),
    };
    let mut path_and_query = None;
    let path = match proto.path_rewrite_specifier {
        None => None,
        // Istio sends an empty text for "same path".
        Some(PathRewriteSpecifier::PathRedirect(text)) if text.is_empty() => None,
        Some(PathRewriteSpecifier::PathRedirect(text)) if text.contains('?') => {
            path_and_query = Some(text.into_boxed_str());
            None
        }
        Some(PathRewriteSpecifier::PathRedirect(text)) => Some(PathRewrite::Whole(text.into())),
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(at.field("path_rewrite").refuse("is not supported"));
        }
        Some(PathRewriteSpecifier::PrefixRewrite(text)) => Some(PathRewrite::Prefix(text.into())),
        Some(PathRewriteSpecifier::RegexRewrite(proto)) => Some(PathRewrite::Regex(substitution(
            &proto,
            &at.field("regex_rewrite"),
        )?)),
    };
    let port = match proto.port_redirect {
        0 => None,
        port => Some(u16::try_from(port).map_err(|_| at.refuse("has an impossible port"))?),
    };
    let host = (!proto.host_redirect.is_empty()).then(|| proto.host_redirect.into_boxed_str());
    Ok(Redirect {
        status,
        scheme,
        host,
        port,
        path,
        path_and_query,
        strip_query: proto.strip_query,
    })
}

fn respond(mut proto: DirectResponseAction, limit: usize, at: &At<'_>) -> Compiled<Respond> {
    let status = u16::try_from(proto.status)
        .ok()
        .filter(|status| (200..600).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| at.refuse(format_args!("{} is no final status", proto.status)))?;
    proto.status = 0;
    let body = match proto.body.take() {
        None => Bytes::new(),
        Some(source) => inline(source, &at.field("body"))?,
    };
    if body.len() > limit {
        return Err(at.refuse(format_args!(
            "body has {} bytes, {limit} are allowed",
            body.len()
        )));
    }
    nothing_left(&proto, at)?;
    Ok(Respond { status, body })
}

/// Data given in the resource itself; files and environment are not read on its word.
pub(super) fn inline(source: DataSource, at: &At<'_>) -> Compiled<Bytes> {
    match source.specifier {
        Some(Specifier::InlineString(text)) => Ok(Bytes::from(text)),
        Some(Specifier::InlineBytes(bytes)) => Ok(Bytes::from(bytes)),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            Err(at.refuse("only inline data is supported"))
        }
        None => Err(at.refuse("has no specifier")),
    }
}

#[cfg(test)]
mod tests;

//! `RouteAction` → [`Forward`].

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::retry_policy::RetryHostPredicate;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::cluster_weight;
use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy as ProtoRetry, RouteAction, WeightedCluster,
};
use http::{HeaderValue, StatusCode};

use super::{per_filter, substitution};
use crate::envoy::at::{At, Compiled, duration, ignore_rest, nothing_left, timeout};
use crate::envoy::matching::edits;
use crate::filter::rewrite::PathRewrite;
use crate::plan::Name;
use crate::routes::{
    DEFAULT_BACKOFF, DEFAULT_TIMEOUT, Destination, Forward, GrpcTimeout, RetryOn, RetryPolicy,
};

/// Back-off steps and caps below this would be a busy loop against a failing upstream.
const MIN_BACKOFF: Duration = Duration::from_millis(1);
/// The back-off cap is this many times its first step when it is not given (Envoy).
const BACKOFF_CAP_FACTOR: u32 = 10;
/// Retries beyond this are a mistake in the configuration and a danger to upstreams.
const MAX_RETRIES: u32 = 50;
/// The only predicate for the choice of a retry's endpoint that Istio uses.
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";

pub(super) fn forward(mut proto: RouteAction, at: &At<'_>) -> Compiled<Forward> {
    let destinations = match proto.cluster_specifier.take() {
        Some(ClusterSpecifier::Cluster(name)) => {
            vec![(Destination::plain(Name::from(name)), 1)]
        }
        Some(ClusterSpecifier::WeightedClusters(clusters)) => {
            weighted(clusters, &at.field("weighted_clusters"))?
        }
        Some(_) => return Err(at.refuse("has a cluster specifier that is not supported")),
        None => return Err(at.refuse("has no cluster")),
    };
    let mut forward = Forward::to(destinations).ok_or_else(|| {
        at.field("weighted_clusters")
            .refuse("has no weight above 0")
    })?;
    forward.missing_cluster =
        match ClusterNotFoundResponseCode::try_from(proto.cluster_not_found_response_code) {
            Ok(ClusterNotFoundResponseCode::ServiceUnavailable) => StatusCode::SERVICE_UNAVAILABLE,
            Ok(ClusterNotFoundResponseCode::NotFound) => StatusCode::NOT_FOUND,
            Ok(ClusterNotFoundResponseCode::InternalServerError) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Err(_) => return Err(at.refuse("has an unknown cluster_not_found_response_code")),
        };
    proto.cluster_not_found_response_code = 0;
    forward.path = path(&mut proto, at)?;
    forward.host = match proto.host_rewrite_specifier.take() {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => Some(host_value(&host, at)?),
        Some(_) => return Err(at.refuse("has a host rewrite that is not supported")),
    };
    forward.append_forwarded_host = std::mem::take(&mut proto.append_x_forwarded_host);
    forward.timeout = timeout(
        proto.timeout.take().as_ref(),
        Some(DEFAULT_TIMEOUT),
        &at.field("timeout"),
    )?;
    forward.idle_timeout = timeout(
        proto.idle_timeout.take().as_ref(),
        None,
        &at.field("idle_timeout"),
    )?;
    #[expect(deprecated, reason = "Istio sets the deprecated field")]
    let grpc = proto.max_grpc_timeout.take();
    forward.grpc_timeout = match grpc {
        None => GrpcTimeout::Ignored,
        Some(limit) => match duration(&limit, &at.field("max_grpc_timeout"))? {
            Duration::ZERO => GrpcTimeout::Honoured,
            limit => GrpcTimeout::UpTo(limit),
        },
    };
    forward.retry = match proto.retry_policy.take() {
        None => None,
        Some(policy) => retry(policy, &at.field("retry_policy"))?,
    };
    if !proto.hash_policy.is_empty() {
        at.warn("hash_policy has no effect: endpoints are not chosen by hash");
        proto.hash_policy.clear();
    }
    nothing_left(&proto, at)?;
    Ok(forward)
}

fn path(proto: &mut RouteAction, at: &At<'_>) -> Compiled<Option<PathRewrite>> {
    let prefix = std::mem::take(&mut proto.prefix_rewrite);
    let regex = proto.regex_rewrite.take();
    match (prefix.is_empty(), regex) {
        (true, None) => Ok(None),
        (false, None) => Ok(Some(PathRewrite::Prefix(prefix.into()))),
        (true, Some(regex)) => Ok(Some(PathRewrite::Regex(substitution(
            &regex,
            &at.field("regex_rewrite"),
        )?))),
        (false, Some(_)) => Err(at.refuse("has two path rewrites")),
    }
}

fn host_value(host: &str, at: &At<'_>) -> Compiled<HeaderValue> {
    HeaderValue::from_str(host)
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or_else(|| at.refuse(format_args!("host rewrite {host:?} is no host")))
}

fn weighted(mut proto: WeightedCluster, at: &At<'_>) -> Compiled<Vec<(Destination, u32)>> {
    let clusters = std::mem::take(&mut proto.clusters);
    proto.runtime_key_prefix.clear();
    // Deprecated in Envoy: the sum is always taken.
    #[expect(deprecated, reason = "older control planes send the old field")]
    let _sum = proto.total_weight.take();
    nothing_left(&proto, at)?;
    let clusters = clusters.into_iter().enumerate();
    clusters
        .map(|(index, one)| cluster_weight(one, &at.index("clusters", index)))
        .collect()
}

fn cluster_weight(mut proto: ClusterWeight, at: &At<'_>) -> Compiled<(Destination, u32)> {
    if proto.name.is_empty() {
        return Err(at.refuse("has no name"));
    }
    let mut destination = Destination::plain(Name::from(std::mem::take(&mut proto.name)));
    let weight = proto.weight.take().map_or(0, |weight| weight.value);
    edits(
        &std::mem::take(&mut proto.request_headers_to_add),
        &std::mem::take(&mut proto.request_headers_to_remove),
        &at.field("request_headers"),
        &mut destination.request_edits,
    )?;
    edits(
        &std::mem::take(&mut proto.response_headers_to_add),
        &std::mem::take(&mut proto.response_headers_to_remove),
        &at.field("response_headers"),
        &mut destination.response_edits,
    )?;
    per_filter(&std::mem::take(&mut proto.typed_per_filter_config), at)?;
    if let Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) =
        proto.host_rewrite_specifier.take()
    {
        destination.host = Some(host_value(&host, at)?);
    }
    nothing_left(&proto, at)?;
    Ok((destination, weight))
}

fn retry(mut proto: ProtoRetry, at: &At<'_>) -> Compiled<Option<RetryPolicy>> {
    let mut on = RetryOn::default();
    for word in std::mem::take(&mut proto.retry_on)
        .split(',')
        .map(str::trim)
    {
        retry_word(word, &mut on, at)?;
    }
    let statuses = std::mem::take(&mut proto.retriable_status_codes);
    let statuses = statuses
        .into_iter()
        .map(|code| u16::try_from(code).map_err(|_| at.refuse("has an impossible status")))
        .collect::<Compiled<Vec<_>>>()?;
    let per_try_timeout = timeout(
        proto.per_try_timeout.take().as_ref(),
        None,
        &at.field("per_try_timeout"),
    )?;
    let retries = proto.num_retries.take().map_or(1, |retries| retries.value);
    let avoids = avoids_previous(&std::mem::take(&mut proto.retry_host_predicate), at)?;
    let attempts = std::mem::take(&mut proto.host_selection_retry_max_attempts);
    let reselect = if avoids {
        u32::try_from(attempts.clamp(1, 10)).unwrap_or(1)
    } else {
        0
    };
    let (mut backoff, mut backoff_cap) = (DEFAULT_BACKOFF, None);
    if let Some(proto) = proto.retry_back_off.take() {
        let at = at.field("retry_back_off");
        if let Some(base) = proto.base_interval {
            backoff = duration(&base, &at.field("base_interval"))?.max(MIN_BACKOFF);
        }
        if let Some(cap) = proto.max_interval {
            backoff_cap = Some(duration(&cap, &at.field("max_interval"))?.max(backoff));
        }
    }
    // Which priority a retry goes to, and rate-limit headers, only tune the choice.
    ignore_rest(&proto, at);
    if retries > MAX_RETRIES {
        return Err(at.refuse(format_args!(
            "{retries} retries are more than {MAX_RETRIES}"
        )));
    }
    // Without retries the limit of one try is still in force: the first one.
    Ok(Some(RetryPolicy {
        on,
        retries,
        per_try_timeout,
        statuses,
        reselect,
        backoff,
        backoff_cap: backoff_cap.unwrap_or(backoff * BACKOFF_CAP_FACTOR),
    }))
}

fn avoids_previous(predicates: &[RetryHostPredicate], at: &At<'_>) -> Compiled<bool> {
    for predicate in predicates {
        if predicate.name != PREVIOUS_HOSTS {
            return Err(at
                .key("retry_host_predicate", &predicate.name)
                .refuse("is not supported"));
        }
    }
    Ok(!predicates.is_empty())
}

fn retry_word(word: &str, on: &mut RetryOn, at: &At<'_>) -> Compiled<()> {
    let flag = match word {
        "" => return Ok(()),
        "5xx" => &mut on.server_error,
        "gateway-error" => &mut on.gateway_error,
        "reset" => &mut on.reset,
        "reset-before-request" => &mut on.reset_before_request,
        "connect-failure" => &mut on.connect_failure,
        "refused-stream" => &mut on.refused_stream,
        "retriable-4xx" => &mut on.retriable_4xx,
        "retriable-status-codes" => &mut on.statuses,
        "cancelled" => &mut on.grpc_cancelled,
        "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
        "internal" => &mut on.grpc_internal,
        "resource-exhausted" => &mut on.grpc_resource_exhausted,
        "unavailable" => &mut on.grpc_unavailable,
        // They never happen here: no rate limiter, no HTTP/3, no header conditions.
        "envoy-ratelimited" | "http3-post-connect-failure" | "retriable-headers" => return Ok(()),
        other => {
            return Err(at.refuse(format_args!("unknown retry condition {other:?}")));
        }
    };
    *flag = true;
    Ok(())
}

//! Listeners: istiod's fixed graph of internal listeners, recognised and compiled away.
//!
//! `connect_terminate` (15008) → `main_internal` (dispatch and all policy) → cluster → EDS →
//! `connect_originate` (opens HBONE) becomes: accept a tunnel stream, look up its destination, walk
//! the chain, open a tunnel stream. The internal connections between the listeners carry nothing
//! else, which is checked here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter as ProtoFilter, FilterChain, Listener};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier as RouteCluster;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::Key;
use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3::Config as HttpState;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3::Config as NetworkState;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::google::protobuf::Any;

use crate::envoy::at::{
    At, Compiled, Refusal, duration, holds, ignore_rest, nothing_left, timeout, type_name, unpack,
};
use crate::envoy::{dispatch, http, logging, metrics, rules, tls};
use crate::filter::Filter;
use crate::plan::{
    Dispatch, HttpChain, Name, Reporter, TCP_IDLE_TIMEOUT, TcpChain, TunnelIn, WeightedClusters,
};
use crate::rules::Rules;

/// Istio's limit of streams on one HBONE connection, where the listener gives none.
const MAX_STREAMS: u32 = 100;

/// Filter state that the internal connections carry. Here it is simply known.
const KNOWN_STATE: [&str; 6] = [
    "envoy.filters.listener.original_dst.local_ip",
    "envoy.filters.listener.original_dst.remote_ip",
    "envoy.network.transport_socket.original_dst_address",
    "io.istio.connect_authority",
    "io.istio.peer_principal",
    "io.istio.local_principal",
];

/// A compiled filter chain.
#[derive(Debug, Clone)]
pub(crate) enum Chain {
    Tcp(Arc<TcpChain>),
    Http(Arc<HttpChain>),
}

/// The compiled `main_internal` listener.
#[derive(Debug, Default)]
pub(crate) struct Main {
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) chains: BTreeMap<Name, Chain>,
}

/// Compiles `main_internal`. A chain that is refused is replaced by its version in `previous`, or
/// refuses its connections; what was refused is added to `refused`.
pub(crate) fn main_internal(
    mut proto: Listener,
    previous: &Main,
    refused: &mut Vec<Refusal>,
    at: &At<'_>,
) -> Compiled<Main> {
    for filter in std::mem::take(&mut proto.listener_filters) {
        listener_filter(&filter.name, at)?;
    }
    let matcher = proto.filter_chain_matcher.take();
    let list = std::mem::take(&mut proto.filter_chains);
    clear(&mut proto);
    nothing_left(&proto, at)?;
    let mut chains = BTreeMap::new();
    for chain in list {
        let name = Name::from(chain.name.as_str());
        let at = at.key("filter_chains", &name);
        if chains.contains_key(&name) {
            return Err(at.refuse("occurs twice"));
        }
        let compiled = match service_chain(&name, chain, &at) {
            Ok(chain) => Some(chain),
            Err(refusal) => {
                refused.push(refusal);
                previous.chains.get(&name).cloned()
            }
        };
        chains.insert(name, compiled);
    }
    let dispatch = match matcher {
        Some(matcher) => {
            dispatch::dispatch(matcher, &chains, refused, &at.field("filter_chain_matcher"))?
        }
        None => Dispatch::default(),
    };
    let chains = chains
        .into_iter()
        .filter_map(|(name, chain)| Some((name, chain?)))
        .collect();
    Ok(Main {
        dispatch: Arc::new(dispatch),
        chains,
    })
}

fn listener_filter(name: &str, at: &At<'_>) -> Compiled<()> {
    match name {
        "envoy.filters.listener.original_dst"
        | "envoy.filters.listener.http_inspector"
        | "envoy.filters.listener.tls_inspector" => Ok(()),
        other => Err(at.key("listener_filters", other).refuse("is not supported")),
    }
}

/// What was taken, and what has no influence here.
fn clear(proto: &mut Listener) {
    proto.name.clear();
    proto.listener_specifier = None;
    proto.traffic_direction = 0;
    proto.address = None;
    proto.additional_addresses.clear();
    proto.access_log.clear();
    proto.connection_balance_config = None;
    proto.stat_prefix.clear();
    proto.use_original_dst = None;
    proto.bind_to_port = None;
    proto.enable_reuse_port = None;
    proto.max_connections_to_accept_per_socket_event = None;
    proto.metadata = None;
    proto.socket_options.clear();
    proto.drain_type = 0;
    proto.per_connection_buffer_limit_bytes = None;
}

/// The settings of a network filter.
fn filter_config<'a>(filter: &'a ProtoFilter, at: &At<'_>) -> Compiled<&'a Any> {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => Ok(config),
        Some(ConfigType::ConfigDiscovery(_)) => {
            Err(at.refuse("extension discovery is not supported"))
        }
        None => Err(at.refuse("has no config")),
    }
}

fn service_chain(name: &Name, mut proto: FilterChain, at: &At<'_>) -> Compiled<Chain> {
    let filters = std::mem::take(&mut proto.filters);
    proto.name.clear();
    proto.metadata = None;
    nothing_left(&proto, at)?;
    let mut gathered = Gathered::default();
    let last = filters
        .len()
        .checked_sub(1)
        .ok_or_else(|| at.refuse("has no filters"))?;
    for (index, filter) in filters.iter().enumerate() {
        let at = at.key("filters", &filter.name);
        let config = filter_config(filter, &at)?;
        if index < last {
            gathered.add(config, &at)?;
        } else if holds::<TcpProxy>(config) {
            return Ok(Chain::Tcp(Arc::new(tcp(
                name,
                unpack(config, &at)?,
                gathered,
                &at,
            )?)));
        } else if holds::<HttpConnectionManager>(config) {
            let mut chain = http::chain(name, unpack(config, &at)?, &at)?;
            // L4 rules in front of HTTP are rules like any other.
            let first = gathered.rules.into_iter().map(Filter::Rules);
            chain.filters.splice(0..0, first);
            return Ok(Chain::Http(Arc::new(chain)));
        }
    }
    Err(at.refuse("does not end in an HTTP connection manager or a TCP proxy"))
}

/// What the filters in front of the last one say.
#[derive(Default)]
struct Gathered {
    rules: Vec<Arc<Rules>>,
    reporter: Option<Arc<Reporter>>,
}

impl Gathered {
    fn add(&mut self, config: &Any, at: &At<'_>) -> Compiled<()> {
        if holds::<NetworkRbac>(config) {
            self.rules
                .extend(rules::network_filter(config, at)?.map(Arc::new));
            return Ok(());
        }
        if holds::<NetworkState>(config) {
            let state: NetworkState = unpack(config, at)?;
            return known_state(&state.on_new_connection, at);
        }
        if metrics::is_peer_discovery(config, at)? {
            return Ok(());
        }
        if let Some(reporter) = metrics::reporter(config, at)? {
            self.reporter = Some(Arc::new(reporter));
            return Ok(());
        }
        Err(at.refuse(format_args!(
            "filter {} is not supported",
            type_name(config)
        )))
    }
}

fn known_state(values: &[FilterStateValue], at: &At<'_>) -> Compiled<()> {
    for value in values {
        match &value.key {
            Some(Key::ObjectKey(key)) if KNOWN_STATE.contains(&key.as_str()) => {}
            Some(Key::ObjectKey(key)) => {
                return Err(at.refuse(format_args!("filter state {key:?} is not supported")));
            }
            None => return Err(at.refuse("has no key")),
        }
    }
    Ok(())
}

fn tcp(name: &Name, mut proto: TcpProxy, gathered: Gathered, at: &At<'_>) -> Compiled<TcpChain> {
    let clusters = match proto.cluster_specifier.take() {
        Some(ClusterSpecifier::Cluster(cluster)) => WeightedClusters::one(Name::from(cluster)),
        Some(ClusterSpecifier::WeightedClusters(list)) => {
            let at = at.field("weighted_clusters");
            if list
                .clusters
                .iter()
                .any(|cluster| cluster.metadata_match.is_some())
            {
                return Err(at.refuse("metadata_match is not supported"));
            }
            let list = list
                .clusters
                .into_iter()
                .map(|one| (Name::from(one.name), one.weight));
            WeightedClusters::several(list).ok_or_else(|| at.refuse("has no weight above 0"))?
        }
        None => return Err(at.refuse("has no cluster")),
    };
    let idle_timeout = timeout(
        proto.idle_timeout.take().as_ref(),
        Some(TCP_IDLE_TIMEOUT),
        &at.field("idle_timeout"),
    )?;
    let max_duration = timeout(
        proto.max_downstream_connection_duration.take().as_ref(),
        None,
        &at.field("max_downstream_connection_duration"),
    )?;
    if !proto.hash_policy.is_empty() {
        at.field("hash_policy")
            .warn("endpoints are not chosen by hash");
        proto.hash_policy.clear();
    }
    let logs = logging::access_logs(&std::mem::take(&mut proto.access_log), at);
    proto.stat_prefix.clear();
    nothing_left(&proto, at)?;
    Ok(TcpChain {
        name: Arc::clone(name),
        rules: gathered.rules,
        clusters,
        idle_timeout,
        max_duration,
        logs,
        reporter: gathered.reporter,
    })
}

/// The only filter of the only chain of a listener.
fn only_filter<'a>(proto: &'a Listener, at: &At<'_>) -> Compiled<(&'a FilterChain, &'a Any)> {
    let [chain] = proto.filter_chains.as_slice() else {
        return Err(at.field("filter_chains").refuse("must be exactly one"));
    };
    let Some((last, before)) = chain.filters.split_last() else {
        return Err(at.field("filters").refuse("is empty"));
    };
    if let Some(other) = before.first() {
        return Err(at.key("filters", &other.name).refuse("is not supported"));
    }
    Ok((chain, filter_config(last, at)?))
}

/// Compiles `connect_terminate`: who may open a tunnel, and how.
pub(crate) fn connect_terminate(proto: &Listener, at: &At<'_>) -> Compiled<TunnelIn> {
    let (chain, config) = only_filter(proto, at)?;
    let at = at.index("filter_chains", 0);
    let trust_domains = tls::downstream(
        chain.transport_socket.as_ref(),
        &at.field("transport_socket"),
    )?;
    let mut hcm: HttpConnectionManager = unpack(config, &at)?;
    goes_to_main(hcm.route_specifier.take(), &at)?;
    let mut tunnel = TunnelIn {
        trust_domains,
        max_streams: MAX_STREAMS,
        ..TunnelIn::default()
    };
    for filter in std::mem::take(&mut hcm.http_filters) {
        let at = at.key("http_filters", &filter.name);
        let Some(http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            return Err(at.refuse("has no config"));
        };
        if holds::<HttpState>(config) {
            let state: HttpState = unpack(config, &at)?;
            known_state(&state.on_request_headers, &at)?;
            continue;
        }
        let mut filters = http::Filters::default();
        http::http_filter(config, &mut filters, &at)?;
        for filter in filters.filters {
            match filter {
                Filter::Rules(rules) => tunnel.rules.push(rules),
                Filter::Headers { .. } => {
                    return Err(at.refuse("headers of a CONNECT are not changed"));
                }
            }
        }
    }
    if let Some(http2) = hcm.http2_protocol_options.take() {
        tunnel.max_streams = http2
            .max_concurrent_streams
            .map_or(MAX_STREAMS, |max| max.value.clamp(1, 10_000));
        if let Some(keepalive) = http2.connection_keepalive {
            let at = at.field("connection_keepalive");
            let read = |value: Option<_>| -> Compiled<Duration> {
                value.map_or(Ok(Duration::ZERO), |value| duration(&value, &at))
            };
            let (interval, timeout) = (read(keepalive.interval)?, read(keepalive.timeout)?);
            if !interval.is_zero() && !timeout.is_zero() {
                tunnel.keepalive = Some((interval, timeout));
            }
        }
    }
    Ok(tunnel)
}

/// The CONNECT must lead to `main_internal` and nowhere else.
fn goes_to_main(routes: Option<RouteSpecifier>, at: &At<'_>) -> Compiled<()> {
    let at = at.field("route_config");
    let Some(RouteSpecifier::RouteConfig(config)) = routes else {
        return Err(at.refuse("must be given inline"));
    };
    let mut routes = config.virtual_hosts.iter().flat_map(|host| &host.routes);
    let (Some(route), None) = (routes.next(), routes.next()) else {
        return Err(at.refuse("must have exactly one route"));
    };
    let connects = route.r#match.as_ref().is_some_and(|matcher| {
        matches!(
            matcher.path_specifier,
            Some(PathSpecifier::ConnectMatcher(_))
        )
    });
    let to_main = matches!(&route.action, Some(Action::Route(action)) if matches!(
        &action.cluster_specifier, Some(RouteCluster::Cluster(name)) if name == "main_internal"
    ));
    if connects && to_main {
        Ok(())
    } else {
        Err(at.refuse("must send CONNECT to main_internal"))
    }
}

/// Checks `connect_originate`: it must open a CONNECT to where the internal connection was going,
/// which is what we do in its place.
pub(crate) fn connect_originate(proto: &Listener, at: &At<'_>) -> Compiled<()> {
    let (_, config) = only_filter(proto, at)?;
    let mut proxy: TcpProxy = unpack(config, at)?;
    let at = at.field("tcp_proxy");
    match proxy.cluster_specifier.take() {
        Some(ClusterSpecifier::Cluster(name)) if name == "connect_originate" => {}
        _ => return Err(at.refuse("must use cluster connect_originate")),
    }
    let mut tunnelling = proxy.tunneling_config.take().unwrap_or_default();
    if tunnelling.hostname != "%DOWNSTREAM_LOCAL_ADDRESS%" {
        return Err(at
            .field("tunneling_config.hostname")
            .refuse("is not supported"));
    }
    tunnelling.hostname.clear();
    nothing_left(&tunnelling, &at.field("tunneling_config"))?;
    proxy.stat_prefix.clear();
    proxy.access_log.clear();
    ignore_rest(&proxy, &at);
    Ok(())
}

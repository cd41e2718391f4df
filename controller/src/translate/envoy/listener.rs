//! The three listeners.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLogFilter, ComparisonFilter, ResponseFlagFilter, StatusCodeFilter, comparison_filter,
};
use envoy_types::pb::envoy::config::core::v3::{
    Http2ProtocolOptions, KeepaliveSettings, RuntimeUInt32, TrafficDirection,
};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType as FilterConfig;
use envoy_types::pb::envoy::config::listener::v3::listener::{
    InternalListenerConfig, ListenerSpecifier,
};
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType as ListenerConfig;
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{
    MatchSet, Rule,
};
use envoy_types::pb::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, Listener, ListenerFilter,
    ListenerFilterChainMatchPredicate,
};
use envoy_types::pb::envoy::config::route::v3::route_action::upgrade_config::ConnectConfig;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, UpgradeConfig as RouteUpgrade,
};
use envoy_types::pb::envoy::config::route::v3::route_match::{ConnectMatcher, PathSpecifier};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier as TcpCluster, TunnelingConfig,
};
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use envoy_types::pb::google::protobuf::{Any, Duration as WireDuration};

use super::chain::{Target, chains, peer_metadata, router, tunnel_state};
use super::endpoint::socket_address;
use super::pack::{PLAIN, any};
use super::rbac::Attached;
use super::route::Routes;
use super::served::{Protocol, Served};
use super::wire::{access_log, duration, number, off, on};
use super::{CONNECT_ORIGINATE, CONNECT_TERMINATE, MAIN_INTERNAL, dispatch, tls};
use crate::cluster::waypoint::HBONE_PORT;

/// Streams of one tunnel connection, Istio's number.
const MAX_STREAMS: u32 = 100;

/// Pings on a tunnel connection, Istio's numbers.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WAIT: Duration = Duration::from_secs(20);

/// Every listener, by name.
pub(super) fn all(
    served: &Served<'_>,
    routes: &Routes,
    rules: &Attached<'_>,
) -> BTreeMap<String, Listener> {
    let listeners = [
        connect_terminate(served),
        main_internal(served, routes, rules),
        connect_originate(),
    ];
    listeners
        .into_iter()
        .map(|listener| (listener.name.clone(), listener))
        .collect()
}

fn connect_terminate(served: &Served<'_>) -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: CONNECT_TERMINATE.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(connect_route())),
        http_filters: vec![
            peer_metadata("waypoint_downstream_peer_metadata", "downstream_discovery"),
            tunnel_state(),
            router(),
        ],
        http2_protocol_options: Some(Http2ProtocolOptions {
            allow_connect: true,
            max_concurrent_streams: number(MAX_STREAMS),
            connection_keepalive: Some(KeepaliveSettings {
                interval: duration(PING_EVERY),
                timeout: duration(PING_WAIT),
                ..KeepaliveSettings::default()
            }),
            ..Http2ProtocolOptions::default()
        }),
        forward_client_cert_details: ForwardClientCertDetails::AppendForward.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            subject: on(),
            uri: true,
            dns: true,
            ..SetCurrentClientCertDetails::default()
        }),
        server_name: "istio-envoy".to_owned(),
        use_remote_address: off(),
        stream_idle_timeout: Some(WireDuration::default()),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "CONNECT".to_owned(),
            ..UpgradeConfig::default()
        }],
        access_log: vec![access_log(Some(refused_only()))],
        ..HttpConnectionManager::default()
    };
    let mut addresses = addresses(served).into_iter();
    Listener {
        name: CONNECT_TERMINATE.to_owned(),
        address: addresses.next().map(socket_address),
        additional_addresses: addresses
            .map(|address| AdditionalAddress {
                address: Some(socket_address(address)),
                ..AdditionalAddress::default()
            })
            .collect(),
        filter_chains: vec![FilterChain {
            name: "default".to_owned(),
            filters: vec![filter(MANAGER, any(&manager, &PLAIN))],
            transport_socket: Some(tls::downstream(&served.cluster.mesh().trust_domain)),
            ..FilterChain::default()
        }],
        access_log: vec![access_log(Some(flag("NR")))],
        ..Listener::default()
    }
}

/// The families of the waypoint's own pods; IPv4 while there are none.
fn addresses(served: &Served<'_>) -> Vec<SocketAddr> {
    let own = served
        .cluster
        .pods()
        .filter(|(name, pod, _)| {
            served.cluster.gateway_of(name, &pod.metadata) == Some(served.waypoint)
        })
        .flat_map(|(_, _, addresses)| addresses.iter());
    let (mut v4, mut v6) = (false, false);
    for address in own {
        match address {
            IpAddr::V4(_) => v4 = true,
            IpAddr::V6(_) => v6 = true,
        }
    }
    let every_v4 = (v4 || !v6).then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let every_v6 = v6.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    every_v4
        .into_iter()
        .chain(every_v6)
        .map(|ip| SocketAddr::new(ip, HBONE_PORT))
        .collect()
}

fn connect_route() -> RouteConfiguration {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher::default())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(MAIN_INTERNAL.to_owned())),
            upgrade_configs: vec![RouteUpgrade {
                upgrade_type: "CONNECT".to_owned(),
                connect_config: Some(ConnectConfig::default()),
                ..RouteUpgrade::default()
            }],
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    RouteConfiguration {
        name: "default".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "default".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        validate_clusters: off(),
        ..RouteConfiguration::default()
    }
}

fn main_internal(served: &Served<'_>, routes: &Routes, rules: &Attached<'_>) -> Listener {
    let filters = vec![
        inspector(
            "envoy.filters.listener.original_dst",
            any(&OriginalDst::default(), &PLAIN),
            None,
        ),
        inspector(
            "envoy.filters.listener.http_inspector",
            any(&HttpInspector::default(), &PLAIN),
            not_inspected(served),
        ),
    ];
    Listener {
        name: MAIN_INTERNAL.to_owned(),
        listener_specifier: Some(internal()),
        traffic_direction: TrafficDirection::Inbound.into(),
        listener_filters: filters,
        filter_chain_matcher: dispatch::matcher(served),
        filter_chains: chains(served, routes, rules),
        ..Listener::default()
    }
}

fn connect_originate() -> Listener {
    let proxy = TcpProxy {
        stat_prefix: CONNECT_ORIGINATE.to_owned(),
        cluster_specifier: Some(TcpCluster::Cluster(CONNECT_ORIGINATE.to_owned())),
        tunneling_config: Some(TunnelingConfig {
            hostname: "%DOWNSTREAM_LOCAL_ADDRESS%".to_owned(),
            ..TunnelingConfig::default()
        }),
        access_log: vec![access_log(Some(flag("UF")))],
        ..TcpProxy::default()
    };
    let original = any(&OriginalDst::default(), &PLAIN);
    Listener {
        name: CONNECT_ORIGINATE.to_owned(),
        listener_specifier: Some(internal()),
        use_original_dst: off(),
        listener_filters: vec![inspector(
            "envoy.filters.listener.original_dst",
            original,
            None,
        )],
        filter_chains: vec![FilterChain {
            filters: vec![filter(Target::TCP_PROXY, any(&proxy, &PLAIN))],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

const MANAGER: &str = Target::MANAGER;

pub(super) fn filter(name: &str, config: Any) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(FilterConfig::TypedConfig(config)),
    }
}

fn internal() -> ListenerSpecifier {
    ListenerSpecifier::InternalListener(InternalListenerConfig::default())
}

fn inspector(
    name: &str,
    config: Any,
    filter_disabled: Option<ListenerFilterChainMatchPredicate>,
) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        filter_disabled,
        config_type: Some(ListenerConfig::TypedConfig(config)),
    }
}

/// Ports whose first bytes need not be waited for: what is spoken there is said. When pods are
/// served too, any port may be theirs.
fn not_inspected(served: &Served<'_>) -> Option<ListenerFilterChainMatchPredicate> {
    if !served.pods.is_empty() {
        return None;
    }
    let mut said = BTreeMap::new();
    for port in served.services.iter().flat_map(|service| &service.ports) {
        *said.entry(port.number).or_insert(true) &= port.protocol != Protocol::Unknown;
    }
    let mut ports: Vec<ListenerFilterChainMatchPredicate> = said
        .into_iter()
        .filter(|(_, said)| *said)
        .map(|(port, _)| predicate(Rule::DestinationPortRange(range(port))))
        .collect();
    match ports.len() {
        0 => None,
        1 => ports.pop(),
        // An alternative needs two members at least.
        _ => Some(predicate(Rule::OrMatch(MatchSet { rules: ports }))),
    }
}

fn range(port: u16) -> Int32Range {
    Int32Range {
        start: i32::from(port),
        end: i32::from(port) + 1,
    }
}

fn predicate(rule: Rule) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}

fn flag(flag: &str) -> AccessLogFilter {
    AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
            flags: vec![flag.to_owned()],
        })),
    }
}

fn refused_only() -> AccessLogFilter {
    AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
            comparison: Some(ComparisonFilter {
                op: comparison_filter::Op::Ge.into(),
                value: Some(RuntimeUInt32 {
                    default_value: 400,
                    runtime_key: "istio.io/unset".to_owned(),
                }),
            }),
        })),
    }
}

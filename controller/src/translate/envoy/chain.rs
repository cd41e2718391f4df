//! Filter chains: one for each service port and protocol, and two for pods.

use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, Http2ProtocolOptions, SubstitutionFormatString, data_source::Specifier,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{
    Key, SharedWithUpstream, Value as StateValue,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::{
    FilterConfig as GrpcStats, filter_config::PerMethodStatSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3::Config as HttpState;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter::ConfigType,
};
use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3::Config as NetworkState;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::google::protobuf::{
    Any, BoolValue, Duration as WireDuration, ListValue, Struct, Value, value::Kind,
};

use super::ENCAP;
use super::endpoint::ORIGINAL_DST;
use super::listener::filter;
use super::pack::{PLAIN, STRUCT_BEARER, any};
use super::rbac::Attached;
use super::route::{Routes, default_route};
use super::served::{Port, Protocol, Served, Service};
use super::wire::{TypedStruct, access_log, fields, off, on, text};

/// The chains for traffic to pods.
pub(super) const DIRECT_TCP: &str = "direct-tcp";
pub(super) const DIRECT_HTTP: &str = "direct-http";

/// Largest body of an answer that a route gives itself, istiod's number.
const MAX_DIRECT_BODY: u32 = 1 << 20;

/// What a chain leads to.
pub(super) struct Target;

impl Target {
    pub(super) const MANAGER: &'static str = "envoy.filters.network.http_connection_manager";
    pub(super) const TCP_PROXY: &'static str = "envoy.filters.network.tcp_proxy";
}

/// Every chain.
pub(super) fn chains(
    served: &Served<'_>,
    routes: &Routes,
    rules: &Attached<'_>,
) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    for service in &served.services {
        for port in &service.ports {
            if port.protocol.has_tcp() {
                let name = service.chain(port.number, false);
                let mut filters = rules.network(Some(service));
                filters.push(tcp_proxy(&name, &name));
                chains.push(FilterChain {
                    name,
                    filters,
                    ..FilterChain::default()
                });
            }
            if port.protocol.has_http() {
                chains.push(http(service, port, routes, rules));
            }
        }
    }
    chains.push(direct(
        DIRECT_TCP,
        rules.network(None),
        tcp_proxy(ENCAP, ENCAP),
    ));
    let table = table(DIRECT_HTTP, 0, vec![default_route(ENCAP, "*", 0)], true);
    let manager = manager(0, false, table, rules.http(None));
    let manager = filter(Target::MANAGER, any(&manager, &PLAIN));
    chains.push(direct(DIRECT_HTTP, Vec::new(), manager));
    chains
}

fn http(service: &Service, port: &Port, routes: &Routes, rules: &Attached<'_>) -> FilterChain {
    let name = service.chain(port.number, true);
    let own = routes.of(&service.name, port.number);
    let table = match own {
        Some(own) => table(&name, port.number, own.to_vec(), false),
        None => {
            let route = default_route(&name, &service.hostname, port.number);
            table(&name, port.number, vec![route], true)
        }
    };
    let http2 = port.protocol == Protocol::Http2;
    let manager = manager(port.number, http2, table, rules.http(Some(service)));
    FilterChain {
        filters: vec![filter(Target::MANAGER, any(&manager, &PLAIN))],
        name,
        ..FilterChain::default()
    }
}

/// A chain for pods keeps the pod's address for the tunnel behind it.
fn direct(name: &str, rules: Vec<Filter>, last: Filter) -> FilterChain {
    let state = NetworkState {
        on_new_connection: vec![state(
            &format!("{ORIGINAL_DST}.local_ip"),
            &format!("%FILTER_STATE({ORIGINAL_DST}.local_ip:PLAIN)%"),
            "",
        )],
        ..NetworkState::default()
    };
    let mut filters = vec![filter("connect_authority", any(&state, &PLAIN))];
    filters.extend(rules);
    filters.push(last);
    FilterChain {
        name: name.to_owned(),
        filters,
        ..FilterChain::default()
    }
}

fn tcp_proxy(stat_prefix: &str, cluster: &str) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        access_log: vec![access_log(None)],
        ..TcpProxy::default()
    };
    filter(Target::TCP_PROXY, any(&proxy, &PLAIN))
}

fn table(
    name: &str,
    port: u16,
    routes: Vec<envoy_types::pb::envoy::config::route::v3::Route>,
    generated: bool,
) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{port}"),
            domains: vec!["*".to_owned()],
            routes,
            ..VirtualHost::default()
        }],
        validate_clusters: off(),
        max_direct_response_body_size_bytes: generated
            .then(|| super::wire::number(MAX_DIRECT_BODY))
            .flatten(),
        ..RouteConfiguration::default()
    }
}

fn manager(
    port: u16,
    http2: bool,
    table: RouteConfiguration,
    rules: Vec<HttpFilter>,
) -> HttpConnectionManager {
    let mut http_filters = rules;
    http_filters.extend([
        grpc_stats(),
        http_filter(
            "envoy.filters.http.fault",
            any(&HttpFault::default(), &PLAIN),
        ),
    ]);
    http_filters.push(http_filter(
        "envoy.filters.http.cors",
        any(&Cors::default(), &PLAIN),
    ));
    http_filters.push(peer_metadata(
        "waypoint_upstream_peer_metadata",
        "upstream_discovery",
    ));
    http_filters.push(stats());
    http_filters.push(router());
    HttpConnectionManager {
        stat_prefix: format!("inbound_0.0.0.0_{port};"),
        route_specifier: Some(RouteSpecifier::RouteConfig(table)),
        http_filters,
        http2_protocol_options: http2.then(Http2ProtocolOptions::default),
        stream_idle_timeout: Some(WireDuration::default()),
        normalize_path: on(),
        use_remote_address: off(),
        server_name: "istio-envoy".to_owned(),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        access_log: vec![access_log(None)],
        proxy_100_continue: true,
        ..HttpConnectionManager::default()
    }
}

fn grpc_stats() -> HttpFilter {
    let config = GrpcStats {
        emit_filter_state: true,
        per_method_stat_specifier: Some(PerMethodStatSpecifier::StatsForAllMethods(
            BoolValue::default(),
        )),
        ..GrpcStats::default()
    };
    http_filter("envoy.filters.http.grpc_stats", any(&config, &PLAIN))
}

pub(super) fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", any(&Router::default(), &PLAIN))
}

/// Istio's metrics filter. A proxy that does not have it goes without.
fn stats() -> HttpFilter {
    let value = fields([("reporter", text("SERVER_GATEWAY"))]);
    optional(
        "istio.stats",
        "type.googleapis.com/stats.PluginConfig",
        value,
    )
}

/// Istio's filter that learns who the peer is from the workloads. A proxy that does not have it
/// goes without.
pub(super) fn peer_metadata(name: &str, direction: &str) -> HttpFilter {
    let nothing = Value {
        kind: Some(Kind::StructValue(Struct::default())),
    };
    let method = fields([("workload_discovery", nothing)]);
    let method = Value {
        kind: Some(Kind::StructValue(method)),
    };
    let methods = Value {
        kind: Some(Kind::ListValue(ListValue {
            values: vec![method],
        })),
    };
    let mut value = fields([(direction, methods)]);
    if direction.starts_with("downstream") {
        let shared = Value {
            kind: Some(Kind::BoolValue(true)),
        };
        value
            .fields
            .insert("shared_with_upstream".to_owned(), shared);
    }
    optional(
        name,
        "type.googleapis.com/io.istio.http.peer_metadata.Config",
        value,
    )
}

fn optional(name: &str, type_url: &str, value: Struct) -> HttpFilter {
    let config = TypedStruct {
        type_url: type_url.to_owned(),
        value: Some(value),
    };
    let config = any(&config, &STRUCT_BEARER);
    HttpFilter {
        is_optional: true,
        ..http_filter(name, config)
    }
}

pub(super) fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// What a tunnel stream tells the listener behind it: where it goes, where it comes from, and who
/// is at its ends. The identities count in the choice of an inner connection, so two peers never
/// share one.
pub(super) fn tunnel_state() -> HttpFilter {
    const IDENTITY: &str = "envoy.hashable_string";
    let config = HttpState {
        on_request_headers: vec![
            state(&format!("{ORIGINAL_DST}.local_ip"), "%REQ(:AUTHORITY)%", ""),
            state("io.istio.connect_authority", "%REQ(:AUTHORITY)%", IDENTITY),
            state(
                &format!("{ORIGINAL_DST}.remote_ip"),
                "%DOWNSTREAM_REMOTE_ADDRESS%",
                "",
            ),
            state(
                "io.istio.peer_principal",
                "%DOWNSTREAM_PEER_URI_SAN%",
                IDENTITY,
            ),
            state(
                "io.istio.local_principal",
                "%DOWNSTREAM_LOCAL_URI_SAN%",
                IDENTITY,
            ),
        ],
        ..HttpState::default()
    };
    http_filter("connect_authority", any(&config, &PLAIN))
}

fn state(key: &str, value: &str, factory: &str) -> FilterStateValue {
    let format = SubstitutionFormatString {
        format: Some(Format::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(value.to_owned())),
            ..DataSource::default()
        })),
        ..SubstitutionFormatString::default()
    };
    FilterStateValue {
        factory_key: factory.to_owned(),
        shared_with_upstream: SharedWithUpstream::Once.into(),
        key: Some(Key::ObjectKey(key.to_owned())),
        value: Some(StateValue::FormatString(format)),
        ..FilterStateValue::default()
    }
}

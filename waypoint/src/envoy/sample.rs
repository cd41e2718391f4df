//! Resources of the shape that istiod gives a waypoint, for tests.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy, OriginalDstLbConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use envoy_types::pb::envoy::config::core::v3::{
    Address, EnvoyInternalAddress, Http2ProtocolOptions, Metadata, TransportSocket,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, ListenerFilter};
use envoy_types::pb::envoy::config::route::v3::retry_policy::RetryHostPredicate;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::{ConnectMatcher, PathSpecifier};
use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier as TcpCluster, TunnelingConfig,
};
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::{
    ApplicationProtocolInput, DestinationIpInput, DestinationPortInput,
};
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::{
    Any, BoolValue, Duration, ListValue, StringValue, Struct, UInt32Value, Value, value::Kind,
};
use envoy_types::pb::xds::core::v3::{CidrRange, TypedExtensionConfig};
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Outcome;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType, OnMatch};
use prost::{Message, Name};

use super::xds::{IpMatcher, IpRangeMatcher, TypedStruct};

pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

fn string(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

fn fields<const N: usize>(list: [(&str, Value); N]) -> Struct {
    Struct {
        fields: list.map(|(key, value)| (key.to_owned(), value)).into(),
    }
}

/// A filter of Istio's own, as `TypedStruct`.
fn istio_filter(type_name: &str) -> Any {
    let inner = TypedStruct {
        type_url: format!("type.googleapis.com/{type_name}"),
        value: Some(Struct::default()),
    };
    Any {
        type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".to_owned(),
        value: inner.encode_to_vec(),
    }
}

pub(crate) fn unknown_filter() -> Any {
    Any {
        type_url: "type.googleapis.com/example.Unknown".to_owned(),
        value: vec![],
    }
}

/// A service on port 80.
pub(crate) struct Service {
    pub(crate) host: &'static str,
    pub(crate) vip: &'static str,
    pub(crate) http: bool,
}

impl Service {
    pub(crate) fn name(&self) -> String {
        let protocol = if self.http { "http" } else { "tcp" };
        format!("inbound-vip|80|{protocol}|{}", self.host)
    }

    pub(crate) fn cluster(&self) -> Cluster {
        let name = self.host.split('.').next().unwrap_or_default();
        let service = fields([
            ("host", string(self.host)),
            ("name", string(name)),
            ("namespace", string("shop")),
        ]);
        let services = ListValue {
            values: vec![Value {
                kind: Some(Kind::StructValue(service)),
            }],
        };
        let istio = fields([(
            "services",
            Value {
                kind: Some(Kind::ListValue(services)),
            },
        )]);
        let raw = socket(&RawBuffer::default());
        let internal = InternalUpstreamTransport {
            transport_socket: Some(raw),
            ..InternalUpstreamTransport::default()
        };
        Cluster {
            name: self.name(),
            alt_stat_name: format!("{};", self.name()),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            eds_cluster_config: Some(EdsClusterConfig {
                service_name: self.name(),
                ..EdsClusterConfig::default()
            }),
            connect_timeout: Some(Duration {
                seconds: 10,
                nanos: 0,
            }),
            lb_policy: LbPolicy::LeastRequest as i32,
            common_lb_config: Some(Default::default()),
            transport_socket: Some(socket(&internal)),
            metadata: Some(metadata([("istio", istio)])),
            ..Cluster::default()
        }
    }

    pub(crate) fn endpoints(&self, addresses: &[&str]) -> ClusterLoadAssignment {
        let canonical = self.host.split('.').next().unwrap_or_default();
        let endpoint = |address: &&str| {
            let workload = string(&format!("{canonical}-1;shop;{canonical};v1;Kubernetes"));
            LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                    address: Some(internal("connect_originate", address)),
                    ..Endpoint::default()
                })),
                metadata: Some(metadata([
                    (
                        "envoy.filters.listener.original_dst",
                        fields([("local", string(address))]),
                    ),
                    ("istio", fields([("workload", workload)])),
                ])),
                load_balancing_weight: Some(UInt32Value { value: 1 }),
                health_status: 1,
            }
        };
        ClusterLoadAssignment {
            cluster_name: self.name(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: addresses.iter().map(endpoint).collect(),
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }
    }

    fn chain(&self) -> FilterChain {
        let name = self.name();
        let last = if self.http {
            filter("hcm", any(&manager(&name)))
        } else {
            let proxy = TcpProxy {
                stat_prefix: name.clone(),
                cluster_specifier: Some(TcpCluster::Cluster(name.clone())),
                ..TcpProxy::default()
            };
            filter("envoy.filters.network.tcp_proxy", any(&proxy))
        };
        FilterChain {
            name,
            filters: vec![last],
            ..FilterChain::default()
        }
    }
}

fn metadata<const N: usize>(list: [(&str, Struct); N]) -> Metadata {
    let filter_metadata: HashMap<_, _> = list.map(|(key, value)| (key.to_owned(), value)).into();
    Metadata {
        filter_metadata,
        ..Metadata::default()
    }
}

fn internal(listener: &str, id: &str) -> Address {
    Address {
        address: Some(AddressKind::EnvoyInternalAddress(EnvoyInternalAddress {
            endpoint_id: id.to_owned(),
            address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(
                listener.to_owned(),
            )),
        })),
    }
}

fn socket<M: Message + Name>(message: &M) -> TransportSocket {
    TransportSocket {
        name: "socket".to_owned(),
        config_type: Some(SocketConfig::TypedConfig(any(message))),
    }
}

fn filter(name: &str, config: Any) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
    }
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// A route configuration with one route.
fn one_route(name: &str, matcher: PathSpecifier, action: RouteAction) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "host".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                name: "default".to_owned(),
                r#match: Some(RouteMatch {
                    path_specifier: Some(matcher),
                    ..RouteMatch::default()
                }),
                action: Some(Action::Route(action)),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        validate_clusters: Some(BoolValue { value: false }),
        ..RouteConfiguration::default()
    }
}

pub(crate) fn manager(cluster: &str) -> HttpConnectionManager {
    let retry = RetryPolicy {
        retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
            .to_owned(),
        num_retries: Some(UInt32Value { value: 2 }),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            ..RetryHostPredicate::default()
        }],
        host_selection_retry_max_attempts: 5,
        ..RetryPolicy::default()
    };
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(Duration::default()),
        retry_policy: Some(retry),
        ..RouteAction::default()
    };
    let peers = istio_filter("io.istio.http.peer_metadata.Config");
    HttpConnectionManager {
        stat_prefix: "inbound_0.0.0.0_80;".to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(one_route(
            cluster,
            PathSpecifier::Prefix("/".to_owned()),
            action,
        ))),
        http_filters: vec![
            http_filter("envoy.filters.http.grpc_stats", any(&GrpcStats::default())),
            http_filter("waypoint_upstream_peer_metadata", peers),
            http_filter("istio.stats", istio_filter("stats.PluginConfig")),
            http_filter("envoy.filters.http.router", any(&Router::default())),
        ],
        server_name: "istio-envoy".to_owned(),
        normalize_path: Some(BoolValue { value: true }),
        use_remote_address: Some(BoolValue { value: false }),
        stream_idle_timeout: Some(Duration::default()),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        proxy_100_continue: true,
        ..HttpConnectionManager::default()
    }
}

/// Puts a filter in front of the last one of a chain of `main_internal`.
pub(crate) fn add_filter(listener: &mut Listener, chain: usize, config: Any) {
    listener.filter_chains[chain]
        .filters
        .insert(0, filter("added", config));
}

fn extension<M: Message + Name>(message: &M) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: "x".to_owned(),
        typed_config: Some(any(message)),
    }
}

fn action(chain: &str) -> OnMatch {
    let mut extension = extension(&StringValue {
        value: chain.to_owned(),
    });
    extension.name = chain.to_owned();
    OnMatch {
        on_match: Some(Outcome::Action(extension)),
        ..OnMatch::default()
    }
}

fn tree(input: TypedExtensionConfig, tree_type: TreeType) -> Matcher {
    let tree = MatcherTree {
        input: Some(input),
        tree_type: Some(tree_type),
    };
    Matcher {
        matcher_type: Some(MatcherType::MatcherTree(tree)),
        ..Matcher::default()
    }
}

fn map<const N: usize>(list: [(&str, OnMatch); N]) -> TreeType {
    let map = list.map(|(key, value)| (key.to_owned(), value)).into();
    TreeType::ExactMatchMap(MatchMap { map })
}

fn nested(matcher: Matcher) -> OnMatch {
    OnMatch {
        on_match: Some(Outcome::Matcher(Box::new(matcher))),
        ..OnMatch::default()
    }
}

fn range(vip: &str, on_port_80: OnMatch) -> IpRangeMatcher {
    let ports = tree(
        extension(&DestinationPortInput::default()),
        map([("80", on_port_80)]),
    );
    IpRangeMatcher {
        ranges: vec![CidrRange {
            address_prefix: vip.to_owned(),
            prefix_len: Some(UInt32Value { value: 32 }),
        }],
        on_match: Some(nested(ports)),
        exclusive: false,
    }
}

fn main_with(filter_chains: Vec<FilterChain>, range_matchers: Vec<IpRangeMatcher>) -> Listener {
    let ips = TreeType::CustomMatch(extension(&IpMatcher { range_matchers }));
    let inspector = |name: &str| ListenerFilter {
        name: name.to_owned(),
        ..Default::default()
    };
    Listener {
        name: "main_internal".to_owned(),
        filter_chains,
        filter_chain_matcher: Some(tree(extension(&DestinationIpInput::default()), ips)),
        listener_filters: vec![
            inspector("envoy.filters.listener.original_dst"),
            inspector("envoy.filters.listener.http_inspector"),
        ],
        traffic_direction: 1,
        ..Listener::default()
    }
}

pub(crate) fn main(services: &[&Service]) -> Listener {
    let ranges = services
        .iter()
        .map(|service| range(service.vip, action(&service.name())));
    main_with(
        services.iter().map(|service| service.chain()).collect(),
        ranges.collect(),
    )
}

/// One unnamed port: HTTP goes to the first, everything else to the second.
pub(crate) fn sniffed(http: &Service, tcp: &Service) -> Listener {
    let protocols = map([
        ("'h2c'", action(&http.name())),
        ("'http/1.1'", action(&http.name())),
    ]);
    let mut sniff = tree(extension(&ApplicationProtocolInput::default()), protocols);
    sniff.on_no_match = Some(Box::new(action(&tcp.name())));
    main_with(
        vec![http.chain(), tcp.chain()],
        vec![range(http.vip, nested(sniff))],
    )
}

fn common_tls() -> CommonTlsContext {
    let trust_domain = SubjectAltNameMatcher {
        san_type: 3,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix("spiffe://cluster.local/".to_owned())),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    };
    let secret = |name: &str| SdsSecretConfig {
        name: name.to_owned(),
        ..Default::default()
    };
    CommonTlsContext {
        alpn_protocols: vec!["h2".to_owned()],
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: vec![trust_domain],
                    ..CertificateValidationContext::default()
                }),
                validation_context_sds_secret_config: Some(secret("ROOTCA")),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    }
}

pub(crate) fn terminate() -> Listener {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("main_internal".to_owned())),
        ..RouteAction::default()
    };
    let matcher = PathSpecifier::ConnectMatcher(ConnectMatcher::default());
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(one_route(
            "default", matcher, action,
        ))),
        http_filters: vec![
            http_filter("peers", istio_filter("io.istio.http.peer_metadata.Config")),
            http_filter("envoy.filters.http.router", any(&Router::default())),
        ],
        http2_protocol_options: Some(Http2ProtocolOptions {
            allow_connect: true,
            max_concurrent_streams: Some(UInt32Value { value: 100 }),
            ..Http2ProtocolOptions::default()
        }),
        ..HttpConnectionManager::default()
    };
    let tls = DownstreamTlsContext {
        common_tls_context: Some(common_tls()),
        require_client_certificate: Some(BoolValue { value: true }),
        ..DownstreamTlsContext::default()
    };
    Listener {
        name: "connect_terminate".to_owned(),
        filter_chains: vec![FilterChain {
            name: "default".to_owned(),
            filters: vec![filter("hcm", any(&manager))],
            transport_socket: Some(socket(&tls)),
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

pub(crate) fn originate() -> Listener {
    let proxy = TcpProxy {
        stat_prefix: "connect_originate".to_owned(),
        cluster_specifier: Some(TcpCluster::Cluster("connect_originate".to_owned())),
        tunneling_config: Some(TunnelingConfig {
            hostname: "%DOWNSTREAM_LOCAL_ADDRESS%".to_owned(),
            ..TunnelingConfig::default()
        }),
        ..TcpProxy::default()
    };
    Listener {
        name: "connect_originate".to_owned(),
        filter_chains: vec![FilterChain {
            filters: vec![filter("tcp", any(&proxy))],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

pub(crate) fn main_cluster() -> Cluster {
    Cluster {
        name: "main_internal".to_owned(),
        ..Cluster::default()
    }
}

pub(crate) fn onward_cluster() -> Cluster {
    let tls = UpstreamTlsContext {
        common_tls_context: Some(common_tls()),
        ..UpstreamTlsContext::default()
    };
    Cluster {
        name: "connect_originate".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: LbPolicy::ClusterProvided as i32,
        lb_config: Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: Some(UInt32Value { value: 15008 }),
            ..OriginalDstLbConfig::default()
        })),
        transport_socket: Some(socket(&tls)),
        ..Cluster::default()
    }
}

//! Clusters: the joints of the internal listeners, and one per service port.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
    OriginalDstLbConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, circuit_breakers::Thresholds,
};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, Http2ProtocolOptions,
    HttpProtocolOptions as CommonOptions, Metadata, TransportSocket,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::{
    InternalUpstreamTransport, internal_upstream_transport::MetadataValueSource,
};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    explicit_http_config::ProtocolConfig,
};
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::{PathSegment, path_segment};
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_kind::{Host, Kind};
use envoy_types::pb::envoy::r#type::metadata::v3::{MetadataKey, MetadataKind};
use envoy_types::pb::google::protobuf::{Any, Duration as WireDuration, ListValue, Value, value};

use super::endpoint::{ORIGINAL_DST, internal_address};
use super::pack::{PLAIN, any};
use super::served::{Protocol, Served, Service};
use super::wire::{duration, fields, number, socket, text};
use super::{CONNECT_ORIGINATE, ENCAP, MAIN_INTERNAL, tls};

/// Mesh-wide time for a TCP connection to an endpoint, Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle time of the connection between the two halves of the waypoint.
const INTERNAL_IDLE: Duration = Duration::from_secs(300);

/// Idle time of a tunnel connection, Istio's default.
const HBONE_IDLE: Duration = Duration::from_secs(3600);

/// How often addresses that are not used any more are forgotten.
const CLEANUP: Duration = Duration::from_secs(60);

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Every cluster, by name. `others` are services of other waypoints, or of none, that routes of
/// this one lead to.
pub(super) fn all(served: &Served<'_>, others: &[(Service, u16)]) -> BTreeMap<String, Cluster> {
    let mut clusters = vec![main_internal(), encap(), connect_originate(served)];
    for service in &served.services {
        for port in &service.ports {
            let metadata = || Some(metadata(service));
            if port.protocol.has_http() {
                let name = service.chain(port.number, true);
                clusters.push(listed(&name, metadata(), http_options(port.protocol)));
            }
            if port.protocol.has_tcp() {
                clusters.push(listed(&service.chain(port.number, false), metadata(), None));
            }
        }
    }
    for (service, port) in others {
        let protocol = service
            .port(*port)
            .map_or(Protocol::Http1, |port| port.protocol);
        let name = outbound_name(service, *port);
        clusters.push(listed(
            &name,
            Some(metadata(service)),
            http_options(protocol),
        ));
    }
    clusters
        .into_iter()
        .map(|cluster| (cluster.name.clone(), cluster))
        .collect()
}

/// Name of the cluster of a service that is not served here.
pub(super) fn outbound_name(service: &Service, port: u16) -> String {
    format!("outbound|{port}||{}", service.hostname)
}

fn main_internal() -> Cluster {
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonOptions {
            idle_timeout: duration(INTERNAL_IDLE),
            ..CommonOptions::default()
        }),
        upstream_protocol_options: Some(as_downstream()),
        ..HttpProtocolOptions::default()
    };
    let mut cluster = to_listener(MAIN_INTERNAL, MAIN_INTERNAL, internal_socket(vec![]));
    cluster.typed_extension_protocol_options = extension(&options);
    cluster
}

fn encap() -> Cluster {
    to_listener(ENCAP, CONNECT_ORIGINATE, internal_socket(passed_on()))
}

/// A cluster whose only endpoint is an internal listener.
fn to_listener(name: &str, listener: &str, socket: TransportSocket) -> Cluster {
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(internal_address(listener, "")),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        transport_socket: Some(socket),
        ..common(name)
    }
}

fn connect_originate(served: &Served<'_>) -> Cluster {
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonOptions {
            idle_timeout: duration(HBONE_IDLE),
            ..CommonOptions::default()
        }),
        upstream_protocol_options: Some(http2(true)),
        ..HttpProtocolOptions::default()
    };
    let segment = path_segment::Segment::Key("waypoint".to_owned());
    let original = OriginalDstLbConfig {
        upstream_port_override: number(u32::from(crate::cluster::waypoint::HBONE_PORT)),
        metadata_key: Some(MetadataKey {
            key: ORIGINAL_DST.to_owned(),
            path: vec![PathSegment {
                segment: Some(segment),
            }],
        }),
        ..OriginalDstLbConfig::default()
    };
    let mesh = served.cluster.mesh();
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: LbPolicy::ClusterProvided.into(),
        lb_config: Some(LbConfig::OriginalDstLbConfig(original)),
        cleanup_interval: duration(CLEANUP),
        typed_extension_protocol_options: extension(&options),
        transport_socket: Some(tls::upstream(
            &mesh.trust_domain,
            &served.waypoint.name.namespace,
        )),
        ..common(CONNECT_ORIGINATE)
    }
}

/// A cluster whose endpoints come over EDS.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the options are made for this one call"
)]
fn listed(name: &str, metadata: Option<Metadata>, options: Option<HttpProtocolOptions>) -> Cluster {
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                initial_fetch_timeout: Some(WireDuration::default()),
                resource_api_version: ApiVersion::V3.into(),
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(
                    AggregatedConfigSource::default(),
                )),
                ..ConfigSource::default()
            }),
            service_name: name.to_owned(),
        }),
        lb_policy: LbPolicy::LeastRequest.into(),
        transport_socket: Some(internal_socket(passed_on())),
        typed_extension_protocol_options: options.as_ref().map(extension).unwrap_or_default(),
        metadata,
        ..common(name)
    }
}

fn common(name: &str) -> Cluster {
    let most = || number(u32::MAX);
    Cluster {
        name: name.to_owned(),
        alt_stat_name: format!("{name};"),
        connect_timeout: duration(CONNECT_TIMEOUT),
        common_lb_config: Some(CommonLbConfig::default()),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: most(),
                max_pending_requests: most(),
                max_requests: most(),
                max_retries: most(),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        ..Cluster::default()
    }
}

/// HTTP/2 where the port says so, what the client speaks where the port says nothing, else the
/// default, HTTP/1.1.
fn http_options(protocol: Protocol) -> Option<HttpProtocolOptions> {
    let chosen = match protocol {
        Protocol::Http2 => http2(false),
        Protocol::Unknown => as_downstream(),
        Protocol::Http1 | Protocol::Tcp => return None,
    };
    Some(HttpProtocolOptions {
        upstream_protocol_options: Some(chosen),
        ..HttpProtocolOptions::default()
    })
}

fn http2(allow_connect: bool) -> UpstreamProtocolOptions {
    let options = Http2ProtocolOptions {
        allow_connect,
        ..Http2ProtocolOptions::default()
    };
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(options)),
    })
}

fn as_downstream() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(Default::default()),
        http2_protocol_options: Some(Default::default()),
        ..UseDownstreamHttpConfig::default()
    })
}

fn extension(options: &HttpProtocolOptions) -> HashMap<String, Any> {
    HashMap::from([(HTTP_OPTIONS.to_owned(), any(options, &PLAIN))])
}

/// The metadata that an endpoint hands to the listener behind it.
fn passed_on() -> Vec<MetadataValueSource> {
    [ORIGINAL_DST, "istio"]
        .map(|name| MetadataValueSource {
            kind: Some(MetadataKind {
                kind: Some(Kind::Host(Host::default())),
            }),
            name: name.to_owned(),
        })
        .to_vec()
}

/// Plain bytes, to an internal listener or to an address.
fn internal_socket(passthrough_metadata: Vec<MetadataValueSource>) -> TransportSocket {
    let raw = socket(
        "envoy.transport_sockets.raw_buffer",
        any(&RawBuffer::default(), &PLAIN),
    );
    let transport = InternalUpstreamTransport {
        passthrough_metadata,
        transport_socket: Some(raw),
    };
    socket("internal_upstream", any(&transport, &PLAIN))
}

/// Which service a cluster is of, for metrics and logs.
fn metadata(service: &Service) -> Metadata {
    let named = fields([
        ("host", text(&service.hostname)),
        ("name", text(&service.name.name)),
        ("namespace", text(&service.name.namespace)),
    ]);
    let named = Value {
        kind: Some(value::Kind::StructValue(named)),
    };
    let list = Value {
        kind: Some(value::Kind::ListValue(ListValue {
            values: vec![named],
        })),
    };
    Metadata {
        filter_metadata: HashMap::from([("istio".to_owned(), fields([("services", list)]))]),
        ..Metadata::default()
    }
}

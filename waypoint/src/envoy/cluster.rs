//! `Cluster` and `ClusterLoadAssignment` → [`Cluster`] and [`Endpoint`]s.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, LbConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster as ProtoCluster};
use envoy_types::pb::envoy::config::core::v3::{Metadata, TransportSocket};
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::google::protobuf::{Any, Struct, value::Kind};

use crate::endpoints::{Balance, Spread};
use crate::envoy::at::{
    At, Compiled, duration, holds, ignore_rest, nothing_left, timeout, type_name, unpack,
};
use crate::envoy::tls::{socket_config, upstream};
use crate::plan::{CircuitLimits, Name, ServiceName, TunnelOut, UpstreamProtocol};

/// Port of HBONE. The contract between proxies fixes it.
const HBONE_PORT: u16 = 15008;
/// Key of the HTTP options among a cluster's extension options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's connect timeout where a cluster gives none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's idle timeout of an upstream connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// A cluster without its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClusterSpec {
    pub(crate) name: Name,
    pub(crate) service: Option<Arc<ServiceName>>,
    pub(crate) subset: Option<Name>,
    pub(crate) protocol: UpstreamProtocol,
    pub(crate) connect_timeout: Duration,
    pub(crate) limits: CircuitLimits,
    pub(crate) balance: Balance,
    pub(crate) spread: Spread,
    pub(crate) weigh_localities: bool,
    pub(crate) source: Source,
    pub(crate) max_requests_per_connection: Option<u32>,
    pub(crate) idle_timeout: Option<Duration>,
}

/// Where a cluster's endpoints come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// The endpoint list of this name.
    Listed(Name),
    /// Given with the cluster; the list has the cluster's name.
    Inline,
    /// The destination the client named, over HBONE.
    OriginalDestination,
}

/// What a cluster resource turns out to be.
#[derive(Debug)]
pub(crate) enum Role {
    /// A service's cluster, with its inline endpoints if it has them.
    Service(Box<ClusterSpec>, Option<super::assignment::Assignment>),
    /// `connect_originate`: how HBONE leaves.
    Onward(TunnelOut),
    /// `main_internal`: joins two internal listeners, which are one thing here.
    Joint,
}

pub(crate) fn cluster(mut proto: ProtoCluster, at: &At<'_>) -> Compiled<Role> {
    match proto.name.as_str() {
        "" => Err(at.refuse("has no name")),
        "main_internal" => Ok(Role::Joint),
        "connect_originate" => onward(&mut proto, at).map(Role::Onward),
        _ => service(proto, at),
    }
}

fn onward(proto: &mut ProtoCluster, at: &At<'_>) -> Compiled<TunnelOut> {
    if discovery_type(proto, at)? != DiscoveryType::OriginalDst {
        return Err(at.refuse("must be of type ORIGINAL_DST"));
    }
    if let Some(LbConfig::OriginalDstLbConfig(config)) = &proto.lb_config {
        let port = config
            .upstream_port_override
            .as_ref()
            .map_or(0, |port| port.value);
        if port != u32::from(HBONE_PORT) {
            return Err(at.field("upstream_port_override").refuse("must be 15008"));
        }
    } else {
        return Err(at.field("original_dst_lb_config").refuse("is missing"));
    }
    let socket = proto.transport_socket.as_ref();
    let trust_domains = upstream(socket, &at.field("transport_socket"))?;
    let options = http_options(proto, at)?;
    Ok(TunnelOut {
        port: HBONE_PORT,
        idle_timeout: options.idle_timeout.unwrap_or(IDLE_TIMEOUT),
        connect_timeout: connect_timeout(proto, at)?,
        trust_domains,
    })
}

fn discovery_type(proto: &ProtoCluster, at: &At<'_>) -> Compiled<DiscoveryType> {
    match &proto.cluster_discovery_type {
        None => Ok(DiscoveryType::Static),
        Some(ClusterDiscoveryType::Type(number)) => {
            DiscoveryType::try_from(*number).map_err(|_| at.refuse("has an unknown type"))
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => Err(at.refuse(format_args!(
            "cluster type {:?} is not supported",
            custom.name
        ))),
    }
}

fn connect_timeout(proto: &ProtoCluster, at: &At<'_>) -> Compiled<Duration> {
    match &proto.connect_timeout {
        None => Ok(CONNECT_TIMEOUT),
        Some(value) => match duration(value, &at.field("connect_timeout"))? {
            Duration::ZERO => Err(at.field("connect_timeout").refuse("must be above 0")),
            value => Ok(value),
        },
    }
}

fn service(mut proto: ProtoCluster, at: &At<'_>) -> Compiled<Role> {
    let name = Name::from(proto.name.as_str());
    let kind = discovery_type(&proto, at)?;
    let connect_timeout = connect_timeout(&proto, at)?;
    plain_socket(
        proto.transport_socket.take().as_ref(),
        &at.field("transport_socket"),
    )?;
    let options = http_options(&mut proto, at)?;
    let (service, subset) = istio_metadata(proto.metadata.take().as_ref());
    let limits = limits(proto.circuit_breakers.take());
    let balance = balance(&proto, kind, at)?;
    let (spread, weigh_localities) = common_lb(proto.common_lb_config.take(), at);
    let mut inline = None;
    let source = match kind {
        DiscoveryType::Eds => {
            let config = proto.eds_cluster_config.take();
            let config =
                config.ok_or_else(|| at.field("eds_cluster_config").refuse("is missing"))?;
            let listed = if config.service_name.is_empty() {
                &*name
            } else {
                &config.service_name
            };
            Source::Listed(Name::from(listed))
        }
        DiscoveryType::Static => {
            let list = proto.load_assignment.take();
            let list = list.ok_or_else(|| at.field("load_assignment").refuse("is missing"))?;
            if super::assignment::is_originate(&list) {
                Source::OriginalDestination
            } else {
                inline = Some(super::assignment::assignment(
                    list,
                    &at.field("load_assignment"),
                )?);
                Source::Inline
            }
        }
        other => {
            return Err(at.refuse(format_args!(
                "type {} is not supported",
                other.as_str_name()
            )));
        }
    };
    clear(&mut proto);
    ignore_outliers(&mut proto, at);
    nothing_left(&proto, at)?;
    let spec = ClusterSpec {
        name,
        service,
        subset,
        protocol: options.protocol,
        connect_timeout,
        limits,
        balance,
        spread,
        weigh_localities,
        source,
        max_requests_per_connection: options.max_requests,
        idle_timeout: options.idle_timeout,
    };
    Ok(Role::Service(Box::new(spec), inline))
}

/// What was taken, and what has no influence here.
fn clear(proto: &mut ProtoCluster) {
    proto.name.clear();
    proto.alt_stat_name.clear();
    proto.cluster_discovery_type = None;
    proto.connect_timeout = None;
    proto.lb_policy = 0;
    proto.lb_config = None;
    proto.eds_cluster_config = None;
    proto.load_assignment = None;
    proto.ignore_health_on_host_removal = false;
    proto.cleanup_interval = None;
    proto.upstream_connection_options = None;
    proto.dns_lookup_family = 0;
    proto
        .filters
        .retain(|filter| filter.name != "istio.metadata_exchange");
    proto.per_connection_buffer_limit_bytes = None;
}

fn ignore_outliers(proto: &mut ProtoCluster, at: &At<'_>) {
    if proto.outlier_detection.take().is_some() {
        at.field("outlier_detection")
            .warn("endpoints are not ejected");
    }
}

fn balance(proto: &ProtoCluster, kind: DiscoveryType, at: &At<'_>) -> Compiled<Balance> {
    if proto.load_balancing_policy.is_some() {
        return Err(at.field("load_balancing_policy").refuse("is not supported"));
    }
    match LbPolicy::try_from(proto.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::LeastRequest) => Ok(Balance::LeastRequest),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        Ok(LbPolicy::ClusterProvided) if kind == DiscoveryType::Static => Ok(Balance::Random),
        Ok(other) => Err(at
            .field("lb_policy")
            .refuse(format_args!("{} is not supported", other.as_str_name()))),
        Err(_) => Err(at.field("lb_policy").refuse("is unknown")),
    }
}

fn common_lb(config: Option<CommonLbConfig>, at: &At<'_>) -> (Spread, bool) {
    let mut spread = Spread::default();
    let Some(mut config) = config else {
        return (spread, false);
    };
    if let Some(percent) = config.healthy_panic_threshold.take() {
        // A percentage; comparing whole ones is enough.
        spread.panic_percent = (0..=100)
            .rev()
            .find(|p| f64::from(*p) <= percent.value)
            .unwrap_or(0);
    }
    let weigh = matches!(
        config.locality_config_specifier.take(),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
    );
    config.update_merge_window = None;
    ignore_rest(&config, &at.field("common_lb_config"));
    (spread, weigh)
}

fn limits(breakers: Option<CircuitBreakers>) -> CircuitLimits {
    let mut limits = CircuitLimits::default();
    let thresholds = breakers
        .map(|breakers| breakers.thresholds)
        .unwrap_or_default();
    // The default priority is the only one there is.
    if let Some(given) = thresholds
        .into_iter()
        .find(|threshold| threshold.priority == 0)
    {
        limits.connections = given
            .max_connections
            .map_or(limits.connections, |n| n.value);
        limits.pending = given
            .max_pending_requests
            .map_or(limits.pending, |n| n.value);
        limits.requests = given.max_requests.map_or(limits.requests, |n| n.value);
        limits.retries = given.max_retries.map_or(limits.retries, |n| n.value);
    }
    limits
}

/// An endpoint that is not reached over HBONE is spoken to in clear text, and only so: asking for
/// TLS of another kind is refused, never downgraded.
fn plain_socket(socket: Option<&TransportSocket>, at: &At<'_>) -> Compiled<()> {
    if socket.is_none() {
        return Ok(());
    }
    let config = socket_config(socket, at)?;
    if holds::<RawBuffer>(config) {
        return Ok(());
    }
    if !holds::<InternalUpstreamTransport>(config) {
        return Err(at.refuse(format_args!("{} is not supported", type_name(config))));
    }
    let inner: InternalUpstreamTransport = unpack(config, at)?;
    let at = at.field("transport_socket");
    let inner = socket_config(inner.transport_socket.as_ref(), &at)?;
    if holds::<RawBuffer>(inner) {
        return Ok(());
    }
    Err(at.refuse(format_args!("{} is not supported", type_name(inner))))
}

/// The parts of the HTTP options that we use.
#[derive(Debug, Default)]
struct HttpOptions {
    protocol: UpstreamProtocol,
    max_requests: Option<u32>,
    idle_timeout: Option<Duration>,
}

fn http_options(proto: &mut ProtoCluster, at: &At<'_>) -> Compiled<HttpOptions> {
    let configs: HashMap<String, Any> = std::mem::take(&mut proto.typed_extension_protocol_options);
    let mut out = HttpOptions {
        idle_timeout: Some(IDLE_TIMEOUT),
        ..HttpOptions::default()
    };
    for (name, config) in &configs {
        let at = at.key("typed_extension_protocol_options", name);
        if name != HTTP_OPTIONS {
            return Err(at.refuse("is not supported"));
        }
        let mut options: HttpProtocolOptions = unpack(config, &at)?;
        if let Some(mut common) = options.common_http_protocol_options.take() {
            out.max_requests = common
                .max_requests_per_connection
                .take()
                .map(|n| n.value)
                .filter(|n| *n > 0);
            let at = at.field("common_http_protocol_options");
            let idle = common.idle_timeout.take();
            out.idle_timeout =
                timeout(idle.as_ref(), Some(IDLE_TIMEOUT), &at.field("idle_timeout"))?;
            ignore_rest(&common, &at);
        }
        out.protocol = match options.upstream_protocol_options.take() {
            None => UpstreamProtocol::Http1,
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => {
                UpstreamProtocol::SameAsClient
            }
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
                match explicit.protocol_config {
                    Some(ProtocolConfig::Http2ProtocolOptions(_)) => UpstreamProtocol::Http2,
                    Some(ProtocolConfig::HttpProtocolOptions(_)) => UpstreamProtocol::Http1,
                    _ => return Err(at.refuse("has a protocol that is not supported")),
                }
            }
            Some(UpstreamProtocolOptions::AutoConfig(_)) => {
                return Err(at.refuse("automatic choice of protocol is not supported"));
            }
        };
        nothing_left(&options, &at)?;
    }
    Ok(out)
}

/// `istio.services[0]` and `istio.subset`.
fn istio_metadata(metadata: Option<&Metadata>) -> (Option<Arc<ServiceName>>, Option<Name>) {
    let Some(istio) = metadata.and_then(|metadata| metadata.filter_metadata.get("istio")) else {
        return (None, None);
    };
    let service = match istio
        .fields
        .get("services")
        .and_then(|value| value.kind.as_ref())
    {
        Some(Kind::ListValue(list)) => match list.values.first().and_then(|v| v.kind.as_ref()) {
            Some(Kind::StructValue(service)) => Some(Arc::new(ServiceName {
                host: text(service, "host").unwrap_or_default().into(),
                name: text(service, "name").unwrap_or_default().into(),
                namespace: text(service, "namespace").unwrap_or_default().into(),
            })),
            _ => None,
        },
        _ => None,
    };
    // `http/v1` is subset v1 of the HTTP cluster.
    let subset = text(istio, "subset")
        .map(|subset| subset.rsplit_once('/').map_or(subset, |(_, name)| name))
        .filter(|subset| !subset.is_empty());
    (service, subset.map(Name::from))
}

/// A string in a struct.
pub(super) fn text<'a>(fields: &'a Struct, key: &str) -> Option<&'a str> {
    match fields.fields.get(key).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// An IP address and a port.
pub(super) fn socket(address: &str, port: u32, at: &At<'_>) -> Compiled<SocketAddr> {
    let ip: IpAddr = address
        .parse()
        .map_err(|_| at.refuse(format_args!("{address:?} is no IP address")))?;
    let port = u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| at.refuse(format_args!("{port} is no port")))?;
    Ok(SocketAddr::new(ip.to_canonical(), port))
}

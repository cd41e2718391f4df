//! What the waypoint does, compiled: typed, immutable, shared, replaced as a whole.
//!
//! # Theory of operation
//! The control plane describes a waypoint as a graph of Envoy listeners, filter chains, routes and
//! clusters. [`crate::envoy`] turns that graph into one [`Plan`]; nothing on the request path ever
//! sees an Envoy type. A connection or request loads the plan once
//! (`ArcSwap<Plan>::load_full`), takes what it needs out of it as `Arc`s and does not look at a
//! newer plan before the next request.
//!
//! Reading order of one HBONE stream: [`Plan::target`] says which chain serves the CONNECT
//! authority; an [`HttpChain`] is walked by `request.rs`, a [`TcpChain`] by `tcp.rs`; both name
//! clusters, which [`Plan::cluster`] finds; a [`Cluster`] holds the [`Endpoints`] to choose from.
//!
//! # Invariants
//! - A lookup allocates nothing and takes no lock.
//! - A chain or cluster that was refused is either its last good version or absent. It is never a
//!   weaker one: an absent chain refuses connections.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::endpoints::{Balance, Endpoints};
use crate::filter::Filter;
use crate::routes::RouteTable;
use crate::rules::Rules;

mod logs;
mod settings;

pub use logs::{AccessLog, LogFilter, LogFormat, LogTarget, Reporter};
pub use settings::{
    CONNECTION_IDLE_TIMEOUT, ClientCert, EscapedSlashes, HttpSettings, MAX_HEADER_BYTES,
    MAX_HEADERS, PathNormalization, Underscores,
};

/// A name out of the configuration, shared instead of copied.
pub type Name = Arc<str>;

/// Everything the waypoint has been told to do, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Counts published plans; only for people (admin page, log).
    pub version: u64,
    /// How HBONE arrives. `None` until the first `connect_terminate` listener was accepted: then
    /// nothing is accepted on port 15008 either.
    pub tunnel: Option<Arc<TunnelIn>>,
    /// How HBONE leaves.
    pub onward: Arc<TunnelOut>,
    /// Which chain serves which destination.
    pub dispatch: Arc<Dispatch>,
    /// Clusters by name.
    pub clusters: Arc<HashMap<Name, Arc<Cluster>>>,
}

impl Plan {
    /// The chain for a CONNECT to a socket address. `None` means: not ours, refuse.
    #[must_use]
    pub fn target(&self, to: SocketAddr) -> Option<&Target> {
        self.dispatch.at(to)
    }

    /// The chain for a CONNECT that names a host (multi-network meshes only).
    #[must_use]
    pub fn target_named(&self, host: &str, port: u16) -> Option<&Target> {
        self.dispatch.named(host, port)
    }

    /// A cluster by the name a route gave. `None` is ordinary configuration (a route to a service
    /// that does not exist) and answers with the route's `cluster_not_found` status.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }
}

/// How HBONE arrives: the `connect_terminate` listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelIn {
    /// Trust domains whose workloads may connect. Empty means our own only.
    pub trust_domains: Vec<Name>,
    /// Rules on the CONNECT itself (layered policies), in order.
    pub rules: Vec<Arc<Rules>>,
    /// Streams a peer may have open on one connection.
    pub max_streams: u32,
    /// HTTP/2 keepalive: send a ping after this long without traffic, and give up after so long.
    pub keepalive: Option<(Duration, Duration)>,
}

/// How HBONE leaves: the `connect_originate` listener and cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelOut {
    /// Port of the far HBONE listener when the endpoint does not say otherwise.
    pub port: u16,
    /// How long an unused tunnel is kept.
    pub idle_timeout: Duration,
    /// How long dialling and the handshakes may take together.
    pub connect_timeout: Duration,
    /// Trust domains that the far end may belong to. Empty means our own only.
    pub trust_domains: Vec<Name>,
}

impl Default for TunnelOut {
    fn default() -> Self {
        Self {
            port: 15008,
            // Istio's mesh default for an idle HBONE connection.
            idle_timeout: Duration::from_secs(3600),
            // Istio's mesh default connect timeout.
            connect_timeout: Duration::from_secs(10),
            trust_domains: Vec::new(),
        }
    }
}

/// Destination address → chain. The IP matcher, port maps and protocol matchers of the
/// `main_internal` listener, flattened.
#[derive(Debug, Clone, Default)]
pub struct Dispatch {
    sockets: HashMap<SocketAddr, Target>,
    hosts: HashMap<(Name, u16), Target>,
    /// Ranges wider than one address, most specific first.
    ranges: Vec<(IpNet, PortMap)>,
}

/// What one address range does with each port.
#[derive(Debug, Clone)]
pub enum PortMap {
    /// Only these ports are served.
    Listed(HashMap<u16, Target>),
    /// Every port goes the same way (an attached workload).
    Any(Target),
}

impl PortMap {
    fn at(&self, port: u16) -> Option<&Target> {
        match self {
            Self::Listed(ports) => ports.get(&port),
            Self::Any(target) => Some(target),
        }
    }
}

impl Dispatch {
    /// Adds one range. Earlier additions win over later ones of the same length, as in Envoy.
    pub fn add_range(&mut self, range: IpNet, ports: PortMap) {
        if let (true, PortMap::Listed(listed)) =
            (range.prefix_len() == range.max_prefix_len(), &ports)
        {
            for (port, target) in listed {
                self.sockets
                    .entry(SocketAddr::new(range.addr(), *port))
                    .or_insert_with(|| target.clone());
            }
            return;
        }
        let at = self
            .ranges
            .partition_point(|(net, _)| net.prefix_len() >= range.prefix_len());
        self.ranges.insert(at, (range, ports));
    }

    /// Adds one host and port.
    pub fn add_host(&mut self, host: Name, port: u16, target: Target) {
        self.hosts.entry((host, port)).or_insert(target);
    }

    fn at(&self, to: SocketAddr) -> Option<&Target> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        self.sockets.get(&to).or_else(|| {
            self.ranges
                .iter()
                .filter(|(net, _)| net.contains(&to.ip()))
                .find_map(|(_, ports)| ports.at(to.port()))
        })
    }

    fn named(&self, host: &str, port: u16) -> Option<&Target> {
        // Host names are few and only used across networks: the short string is worth its cost.
        self.hosts
            .get(&(Name::from(host.to_ascii_lowercase()), port))
    }

    /// All served sockets with their chains, for the admin page.
    pub fn sockets(&self) -> impl Iterator<Item = (&SocketAddr, &Target)> {
        self.sockets.iter()
    }

    /// All served ranges, most specific first, for the admin page.
    pub fn ranges(&self) -> impl Iterator<Item = &(IpNet, PortMap)> {
        self.ranges.iter()
    }

    /// All served host names, for the admin page.
    pub fn hosts(&self) -> impl Iterator<Item = (&(Name, u16), &Target)> {
        self.hosts.iter()
    }
}

/// Who serves one destination.
#[derive(Debug, Clone)]
pub enum Target {
    /// Bytes are relayed; the protocol is not looked at.
    Tcp(Arc<TcpChain>),
    /// HTTP/1.1 or HTTP/2 by prior knowledge; anything else is an error.
    Http(Arc<HttpChain>),
    /// The first bytes decide: an HTTP request line or the HTTP/2 preface goes to `http`,
    /// everything else to `tcp`. Nothing within [`SNIFF_TIMEOUT`] closes the stream.
    Sniff {
        /// For HTTP/1.x and HTTP/2.
        http: Arc<HttpChain>,
        /// For everything else.
        tcp: Arc<TcpChain>,
    },
    /// The chain for this destination was refused and has no earlier version. Refuse, saying so.
    Refused(Name),
}

/// How long a client may stay silent before its protocol is known. Envoy's default for listener
/// filters, which Istio leaves in force; server-first protocols on unnamed ports run into it.
pub const SNIFF_TIMEOUT: Duration = Duration::from_secs(15);

/// A service port served as bytes.
#[derive(Debug, Clone)]
pub struct TcpChain {
    /// The control plane's name of the chain, such as `inbound-vip|9000|tcp|echo.shop.svc…`.
    pub name: Name,
    /// L4 rules in order. All are evaluated before the first byte in either direction.
    pub rules: Vec<Arc<Rules>>,
    /// Where the bytes go.
    pub clusters: WeightedClusters,
    /// Ends a connection with no byte in either direction for so long. `None`: never. The compiler
    /// has put in [`TCP_IDLE_TIMEOUT`] where the configuration is silent.
    pub idle_timeout: Option<Duration>,
    /// Ends a connection this long after it began.
    pub max_duration: Option<Duration>,
    /// Access logs to write when the connection ends.
    pub logs: Vec<AccessLog>,
    /// Whether and how `istio_tcp_*` metrics are counted.
    pub reporter: Option<Arc<Reporter>>,
}

/// Envoy's default idle timeout of a TCP proxy.
pub const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// One or several clusters with weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedClusters {
    /// Names with the running sum of weights; strictly rising, never empty.
    cumulative: Vec<(u64, Name)>,
}

impl WeightedClusters {
    /// A single cluster.
    #[must_use]
    pub fn one(name: Name) -> Self {
        Self {
            cumulative: vec![(1, name)],
        }
    }

    /// Several; entries of weight 0 are left out. `None` if no weight is above 0.
    #[must_use]
    pub fn several(weights: impl IntoIterator<Item = (Name, u32)>) -> Option<Self> {
        let mut sum = 0u64;
        let cumulative: Vec<_> = weights
            .into_iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(name, weight)| {
                sum += u64::from(weight);
                (sum, name)
            })
            .collect();
        (!cumulative.is_empty()).then_some(Self { cumulative })
    }

    /// Chooses by weight with one uniformly random number.
    #[must_use]
    pub fn choose(&self, random: u64) -> &Name {
        static NONE: std::sync::LazyLock<Name> = std::sync::LazyLock::new(|| Name::from(""));
        let total = self.cumulative.last().map_or(1, |(sum, _)| *sum);
        let point = random % total;
        let at = self.cumulative.partition_point(|(sum, _)| *sum <= point);
        self.cumulative.get(at).map_or(&*NONE, |(_, name)| name)
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.cumulative.iter().map(|(_, name)| name)
    }
}

/// A service port served as HTTP.
#[derive(Debug, Clone)]
pub struct HttpChain {
    /// The control plane's name of the chain, such as `inbound-vip|80|http|cart.shop.svc…`.
    pub name: Name,
    /// How requests are read, normalised and marked.
    pub settings: HttpSettings,
    /// What a request passes, in order, after its route was chosen and before it is forwarded.
    pub filters: Vec<Filter>,
    /// Where requests go.
    pub routes: RouteTable,
    /// Access logs to write when a request ends.
    pub logs: Vec<AccessLog>,
    /// Whether and how `istio_*` request metrics are counted.
    pub reporter: Option<Arc<Reporter>>,
}

/// An upstream: endpoints and how to speak to them.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Name, as routes say it.
    pub name: Name,
    /// Which service this is, for metrics; `None` for clusters that are not a service.
    pub service: Option<Arc<ServiceName>>,
    /// Version subset, if the cluster is one.
    pub subset: Option<Name>,
    /// HTTP version spoken to endpoints.
    pub protocol: UpstreamProtocol,
    /// Bounds dialling and handshake.
    pub connect_timeout: Duration,
    /// Limits on use.
    pub limits: CircuitLimits,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Where to go.
    pub upstream: Upstream,
    /// Requests on one connection before it is closed. `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// An unused connection is closed after so long. `None`: no limit.
    pub idle_timeout: Option<Duration>,
}

/// Where a cluster's connections go.
#[derive(Debug, Clone)]
pub enum Upstream {
    /// One of these. Waiting for the first endpoint list counts as empty.
    Endpoints(Arc<Endpoints>),
    /// To the destination the client named, through HBONE (attached workloads).
    OriginalDestination,
}

/// A service's names, for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// Full host name, `cart.shop.svc.cluster.local`.
    pub host: Name,
    /// Short name.
    pub name: Name,
    /// Namespace.
    pub namespace: Name,
}

/// HTTP version spoken to endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Whatever the client spoke.
    SameAsClient,
}

/// Limits on the use of a cluster. Istio's default is "no limit", written as the largest number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitLimits {
    /// Connections open at once.
    pub connections: u32,
    /// Requests waiting for a connection.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
    /// Retries in flight.
    pub retries: u32,
}

impl Default for CircuitLimits {
    fn default() -> Self {
        // Envoy's defaults when a threshold is not given.
        Self {
            connections: 1024,
            pending: 1024,
            requests: 1024,
            retries: 3,
        }
    }
}

/// Whether an address may be a destination at all: never unspecified, multicast or broadcast.
#[must_use]
pub fn dialable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast()),
    }
}

#[cfg(test)]
mod tests;

//! Istio's standard metrics, as a waypoint reports them.
//!
//! # Theory of operation
//! A label set is looked up in the registry once for each combination that a connection meets; after
//! that a request adds to plain atomics. Each connection remembers a few of its combinations.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use ambit_model::identity::Identity;
use ambit_model::workload::Workload;
use ambit_observe::labels::Labels;
use ambit_observe::metrics::{Family, Handle, Registry};
use ambit_observe::traffic::{Reporter, Service, Side, Tcp, Traffic};

use crate::endpoints::Endpoint;
use crate::plan::{Cluster, HttpChain, ServiceName};
use crate::record::{Flag, Flags, shown};
use crate::serve::Connection;

/// Envoy's default histogram bounds, which Istio's dashboards are made for: milliseconds and bytes.
const BOUNDS: &[f64] = &[
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Combinations that one connection remembers: one service's few endpoints and statuses.
const REMEMBERED: usize = 16;

ambit_observe::series! {
    /// What is counted of requests.
    pub struct Requests {
        /// Requests ended.
        total: Counter = ("istio_requests", "The total number of requests."),
        /// How long they took.
        duration: Histogram[BOUNDS] = ("istio_request_duration_milliseconds", "Duration of requests in milliseconds."),
        /// Request bodies.
        request_bytes: Histogram[BOUNDS] = ("istio_request_bytes", "Size of request bodies in bytes."),
        /// Response bodies.
        response_bytes: Histogram[BOUNDS] = ("istio_response_bytes", "Size of response bodies in bytes."),
    }
}

/// One program's metric families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<Requests>,
    tcp: Family<Tcp>,
}

/// One ended request.
#[derive(Debug)]
pub struct Request<'a> {
    /// Which chain served it.
    pub chain: &'a Arc<HttpChain>,
    /// Which cluster it went to.
    pub cluster: Option<&'a Arc<Cluster>>,
    /// Which service that is.
    pub service: Option<&'a ServiceName>,
    /// Which endpoint served it.
    pub endpoint: Option<&'a Arc<Endpoint>>,
    /// Its status; 0 if there was no answer.
    pub status: u16,
    /// Its flags.
    pub flags: &'a Flags,
    /// Whether it is gRPC.
    pub grpc: bool,
    /// Its gRPC status, if there was one.
    pub grpc_status: Option<u32>,
    /// From first byte to last.
    pub took: Duration,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// Messages each way, when counted.
    pub messages: (u64, u64),
}

/// What must be equal for two requests of a connection to share a label set.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    cluster: Option<usize>,
    endpoint: Option<usize>,
    status: u16,
    flags: Flags,
    grpc: Option<u32>,
    is_grpc: bool,
}

/// The label sets that a connection has met.
#[derive(Debug, Default)]
pub struct Remembered(RefCell<Vec<Known>>);

#[derive(Debug)]
struct Known {
    key: Key,
    /// Keep what the key points at alive, so that an address is not reused.
    _cluster: Option<Arc<Cluster>>,
    _endpoint: Option<Arc<Endpoint>>,
    handle: Handle<Requests>,
}

impl Metrics {
    /// The families, registered.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.family(),
            tcp: registry.family(),
        }
    }

    /// Counts one ended request.
    pub fn request(&self, connection: &Connection, request: &Request<'_>) {
        let key = Key {
            cluster: request.cluster.map(|cluster| Arc::as_ptr(cluster).addr()),
            endpoint: request
                .endpoint
                .map(|endpoint| Arc::as_ptr(endpoint).addr()),
            status: request.status,
            flags: request.flags.clone(),
            grpc: request.grpc_status,
            is_grpc: request.grpc,
        };
        let mut remembered = connection.remembered().0.borrow_mut();
        if let Some(known) = remembered.iter().find(|known| known.key == key) {
            return count(&known.handle, request);
        }
        let handle = self
            .requests
            .resolve(|labels| self.labels(connection, request, labels));
        count(&handle, request);
        if remembered.len() >= REMEMBERED {
            remembered.remove(0);
        }
        remembered.push(Known {
            key,
            _cluster: request.cluster.cloned(),
            _endpoint: request.endpoint.cloned(),
            handle,
        });
    }

    /// The handle for one TCP connection.
    #[must_use]
    pub fn tcp(
        &self,
        connection: &Connection,
        service: Option<&ServiceName>,
        endpoint: Option<&Arc<Endpoint>>,
        flags: &[Flag],
    ) -> Handle<Tcp> {
        let flags = shown(flags);
        let upstream = endpoint.and_then(|endpoint| connection.workload_at(endpoint.address.ip()));
        self.tcp.resolve(|labels| {
            traffic(
                connection,
                service,
                endpoint,
                upstream.as_deref(),
                &flags,
                "tcp",
                |all| all.write(labels),
            );
        })
    }

    fn labels(&self, connection: &Connection, request: &Request<'_>, labels: &mut Labels) {
        let flags = shown(request.flags);
        let protocol = if request.grpc { "grpc" } else { "http" };
        let upstream = request
            .endpoint
            .and_then(|endpoint| connection.workload_at(endpoint.address.ip()));
        traffic(
            connection,
            request.service,
            request.endpoint,
            upstream.as_deref(),
            &flags,
            protocol,
            |all| {
                all.write(labels);
            },
        );
        labels.open_display("response_code", request.status);
        match (request.grpc, request.grpc_status) {
            (true, Some(status)) => labels.open_display("grpc_response_status", status),
            _ => labels.closed("grpc_response_status", ""),
        }
    }
}

fn count(handle: &Handle<Requests>, request: &Request<'_>) {
    handle.total.inc();
    handle.duration.observe(request.took.as_secs_f64() * 1000.0);
    #[expect(
        clippy::cast_precision_loss,
        reason = "a histogram's buckets are coarser than 2^-52"
    )]
    {
        handle.request_bytes.observe(request.received as f64);
        handle.response_bytes.observe(request.sent as f64);
    }
}

/// Puts together everything that the shared labels are made of.
fn traffic(
    connection: &Connection,
    service: Option<&ServiceName>,
    endpoint: Option<&Arc<Endpoint>>,
    upstream: Option<&Workload>,
    flags: &str,
    protocol: &str,
    write: impl FnOnce(&Traffic<'_>),
) {
    let peer = connection.peer_identity();
    let mut source = connection
        .workload()
        .map_or_else(Side::default, |workload| side(workload));
    source.principal = peer.map(|peer| peer as &dyn ambit_observe::access::Shown);
    if let Some(peer) = peer {
        source.namespace = peer.namespace();
    }
    let mut destination = upstream.map_or_else(Side::default, side);
    let identity: Option<&Identity> = upstream.map(Workload::identity);
    destination.principal = identity.map(|identity| identity as &dyn ambit_observe::access::Shown);
    if upstream.is_none()
        && let Some(names) = endpoint.and_then(|endpoint| endpoint.workload.as_deref())
    {
        destination.workload = &names.name;
        destination.namespace = &names.namespace;
        destination.canonical_service = &names.canonical_name;
        destination.canonical_revision = &names.canonical_revision;
        destination.cluster = &names.cluster;
    }
    write(&Traffic {
        reporter: Reporter::Waypoint,
        source,
        destination,
        service: service.map_or_else(Service::default, |service| Service {
            host: &service.host,
            namespace: &service.namespace,
            name: &service.name,
        }),
        protocol,
        flags,
        mutual_tls: peer.is_some(),
        locality: false,
    });
}

fn side(workload: &Workload) -> Side<'_> {
    Side {
        workload: workload.workload_name.as_str(),
        canonical_service: workload.canonical_name.as_str(),
        canonical_revision: workload.canonical_revision.as_str(),
        namespace: workload.namespace.as_str(),
        principal: None,
        app: workload.canonical_name.as_str(),
        version: workload.canonical_revision.as_str(),
        cluster: workload.cluster.as_str(),
        region: "",
        zone: "",
    }
}

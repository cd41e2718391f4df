//! One stream of HBONE, from its acceptance to its end: what a data thread shares, who is at the
//! other end, and which of the three ways of serving it takes.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use ambit_hbone::{Stream, StreamIo};
use ambit_identity::Lease;
use ambit_model::identity::Identity;
use ambit_model::text::Text;
use ambit_model::view::View;
use ambit_model::workload::Workload;
use ambit_observe::access::AccessLog;
use ambit_runtime::drain::Draining;
use ambit_runtime::tasks::spawn_local;
use arc_swap::ArcSwap;

use crate::metrics::{Metrics, Remembered};
use crate::plan::{Plan, Target};
use crate::sniff::{self, Protocol};
use crate::subject;
use crate::upstream::Upstreams;
use crate::{server, tcp};

/// What everything on one data thread shares.
#[derive(Debug)]
pub struct Shared {
    /// What to do.
    pub plan: Arc<ArcSwap<Plan>>,
    /// Who is who.
    pub view: Arc<ArcSwap<View>>,
    /// Network that addresses are looked up in.
    pub network: Text,
    /// Our own certificate.
    pub certificate: Lease,
    /// Connections to endpoints.
    pub upstreams: Upstreams,
    /// Istio's metrics.
    pub metrics: Metrics,
    /// Where access-log lines go.
    pub log: AccessLog,
}

impl Shared {
    /// The workload at an address, as workload discovery has it now.
    #[must_use]
    pub fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.view
            .load()
            .workload_at(self.network.as_str(), address.to_canonical())
            .cloned()
    }
}

/// Facts of one stream of HBONE. They hold for every request on it.
#[derive(Debug)]
pub struct Connection {
    peer: Identity,
    local: Identity,
    source: SocketAddr,
    destination: SocketAddr,
    workload: Option<Arc<Workload>>,
    view: Arc<ArcSwap<View>>,
    network: Text,
    remembered: Remembered,
}

impl Connection {
    /// `peer` was verified; `source` is where its HBONE connection came from, `destination` what its
    /// CONNECT asked for.
    #[must_use]
    pub fn new(
        shared: &Shared,
        peer: Identity,
        local: Identity,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        Self {
            peer,
            local,
            source,
            destination,
            workload: shared.workload_at(source.ip()),
            view: Arc::clone(&shared.view),
            network: shared.network.clone(),
            remembered: Remembered::default(),
        }
    }

    /// What rules and routes may look at.
    #[must_use]
    pub fn facts(&self) -> subject::Connection<'_> {
        subject::Connection {
            peer: Some(self.peer.as_str()),
            local: self.local.as_str(),
            source: self.source,
            destination: self.destination,
            server_name: None,
        }
    }

    /// SPIFFE URI of the peer.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        Some(self.peer.as_str())
    }

    /// The peer.
    #[must_use]
    pub fn peer_identity(&self) -> Option<&Identity> {
        Some(&self.peer)
    }

    /// SPIFFE URI of this waypoint.
    #[must_use]
    pub fn local(&self) -> &str {
        self.local.as_str()
    }

    /// Where the peer's connection came from.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// What the peer asked for.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The client's workload, if workload discovery knew it when the stream began.
    #[must_use]
    pub fn workload(&self) -> Option<&Workload> {
        self.workload.as_deref()
    }

    /// The workload at an address, as workload discovery has it now.
    #[must_use]
    pub fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.view
            .load()
            .workload_at(self.network.as_str(), address.to_canonical())
            .cloned()
    }

    /// Label sets that its requests have met.
    #[must_use]
    pub fn remembered(&self) -> &Remembered {
        &self.remembered
    }
}

/// Serves an accepted stream to its end.
///
/// `target` is what [`Plan::target`] said for its destination when it was accepted; requests look
/// again, so that a change holds for the next request of a stream that is already open.
pub async fn stream(
    shared: Rc<Shared>,
    stream: Stream,
    connection: Rc<Connection>,
    target: Target,
    draining: Draining,
) {
    match target {
        Target::Tcp(chain) => tcp::serve(&shared, stream, &connection, &chain).await,
        Target::Http(chain) => {
            let io = sniff::Replay::new(StreamIo::from(stream));
            Box::pin(server::serve_any(shared, io, connection, chain, draining)).await;
        }
        Target::Sniff { http, tcp } => {
            let mut io = sniff::Replay::new(StreamIo::from(stream));
            match io.protocol().await {
                Ok(Protocol::Http1) => {
                    Box::pin(server::serve_http1(shared, io, connection, http, draining)).await;
                }
                Ok(Protocol::Http2) => {
                    Box::pin(server::serve_http2(shared, io, connection, http, draining)).await;
                }
                Ok(Protocol::Other) => {
                    tcp::serve_seen(&shared, io, &connection, &tcp).await;
                }
                // Silence, or gone: nothing was asked for and nothing is answered.
                Err(_gone) => {}
            }
        }
        // The caller refuses these before it accepts.
        Target::Refused(_) => {}
    }
}

/// Runs the HTTP library's tasks on the thread that they belong to.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        drop(spawn_local("http", Box::pin(task)));
    }
}

//! HTTP connections to endpoints, kept for the next request.

use std::rc::Rc;
use std::time::{Duration, Instant};

use ambit_runtime::tasks::spawn_local;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;

use super::{ConnectError, UpstreamIo, Upstreams};
use crate::body::RequestBody;
use crate::endpoints::{Endpoint, Transport};
use crate::plan::Cluster;
use crate::serve::{LocalExecutor, Shared};

/// A connection unused for so long is closed: shorter than the 60 s and more of common servers, so
/// that it is we who close and no request meets a closing server.
const IDLE: Duration = Duration::from_secs(50);
/// Idle connections kept for one endpoint on one thread.
const MOST_IDLE: usize = 64;
/// As much as tunnels have: bulk over one inner HTTP/2 connection is not bound by it.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Four full streams.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// The engine's default would be 16 KiB; answers may carry larger header blocks, as Envoy's limit.
const MAX_HEADER_LIST: u32 = 60 * 1024;
/// Envoy's limit for a response's header block.
const MAX_HEAD: usize = 60 * 1024;

/// What connections are kept by: requests of different clusters to one address share them only if
/// they go there the same way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    address: std::net::SocketAddr,
    transport: Transport,
    http2: bool,
}

/// The connections to one place.
#[derive(Debug, Default)]
pub(super) struct Connections {
    idle: Vec<(Instant, Plain)>,
    shared: Vec<http2::SendRequest<RequestBody>>,
}

impl Connections {
    /// Drops what is closed or idle too long; false if nothing is left.
    pub(super) fn sweep(&mut self) -> bool {
        self.idle
            .retain(|(since, plain)| !plain.sender.is_closed() && since.elapsed() < IDLE);
        self.shared.retain(|sender| !sender.is_closed());
        !self.idle.is_empty() || !self.shared.is_empty()
    }
}

/// What is left of an HTTP/1 connection that was upgraded: its stream, and bytes read ahead.
pub type Upgraded = (UpstreamIo, Bytes);

/// An HTTP/1 connection, and where its stream is handed out should it be upgraded.
#[derive(Debug)]
struct Plain {
    sender: http1::SendRequest<RequestBody>,
    upgraded: oneshot::Receiver<Upgraded>,
}

/// A connection that takes one request now.
#[derive(Debug)]
pub struct Sender {
    place: Place,
    kind: Kind,
    /// Whether it served a request before: then a closed connection may just have been stale.
    pub reused: bool,
}

#[derive(Debug)]
enum Kind {
    Http1(Plain),
    Http2(http2::SendRequest<RequestBody>),
}

/// A request that did not get an answer.
#[derive(Debug)]
pub struct Unsent {
    /// The request, if no byte of it was written.
    pub request: Option<Request<RequestBody>>,
    /// Why.
    pub error: hyper::Error,
}

impl Sender {
    /// Sends one request and waits for the head of its answer.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Box<Unsent>> {
        let unsent = |mut error: hyper::client::conn::TrySendError<Request<RequestBody>>| {
            Box::new(Unsent {
                request: error.take_message(),
                error: error.into_error(),
            })
        };
        match &mut self.kind {
            Kind::Http1(plain) => plain.sender.try_send_request(request).await.map_err(unsent),
            Kind::Http2(sender) => sender.try_send_request(request).await.map_err(unsent),
        }
    }

    /// Whether requests on it are HTTP/2.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        self.place.http2
    }

    /// The byte stream of an HTTP/1 connection whose answer was 101. `None`: it broke meanwhile.
    pub async fn upgraded(self) -> Option<Upgraded> {
        match self.kind {
            Kind::Http1(plain) => plain.upgraded.await.ok(),
            Kind::Http2(_) => None,
        }
    }

    /// Gives the connection back once the answer was read to its end.
    pub fn give_back(self, upstreams: &Upstreams) {
        let Kind::Http1(plain) = self.kind else {
            return;
        };
        if plain.sender.is_closed() {
            return;
        }
        let mut places = upstreams.http.borrow_mut();
        let idle = &mut places.entry(self.place).or_default().idle;
        if idle.len() < MOST_IDLE {
            idle.push((Instant::now(), plain));
        }
    }
}

impl Upstreams {
    /// A connection to an endpoint: one that is there, or a new one.
    ///
    /// # Errors
    /// As [`Upstreams::connect`].
    pub async fn sender(
        &self,
        shared: &Rc<Shared>,
        cluster: &Cluster,
        endpoint: &Endpoint,
        http2: bool,
        fresh: bool,
    ) -> Result<Sender, ConnectError> {
        let place = Place {
            address: endpoint.address,
            transport: endpoint.transport,
            http2,
        };
        if !fresh && let Some(kind) = self.kept(&place) {
            return Ok(Sender {
                place,
                kind,
                reused: true,
            });
        }
        let io = self
            .connect(shared, endpoint, cluster.connect_timeout, HeaderMap::new())
            .await?;
        let io = TokioIo::new(UpstreamIo::from(io));
        let failed = |error: hyper::Error| ConnectError::Tunnel(error.to_string());
        let kind = if http2 {
            let (sender, connection) = http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEADER_LIST)
                .handshake(io)
                .await
                .map_err(failed)?;
            drop(spawn_local("upstream http/2", Box::pin(connection)));
            self.http
                .borrow_mut()
                .entry(place.clone())
                .or_default()
                .shared
                .push(sender.clone());
            Kind::Http2(sender)
        } else {
            let (sender, connection) = http1::Builder::new()
                .preserve_header_case(false)
                .max_buf_size(MAX_HEAD.max(8192) * 2)
                .handshake(io)
                .await
                .map_err(failed)?;
            let (hand_out, upgraded) = oneshot::channel();
            drop(spawn_local("upstream http/1", async move {
                // Ends with the connection, or with its upgrade: then whoever asked for it takes over.
                if let Ok(parts) = connection.without_shutdown().await {
                    drop(hand_out.send((parts.io.into_inner(), parts.read_buf)));
                }
            }));
            Kind::Http1(Plain { sender, upgraded })
        };
        Ok(Sender {
            place,
            kind,
            reused: false,
        })
    }

    /// A connection that is ready now, the one used last first: the others fall idle and are closed.
    fn kept(&self, place: &Place) -> Option<Kind> {
        let mut places = self.http.borrow_mut();
        let connections = places.get_mut(place)?;
        if place.http2 {
            connections.shared.retain(|sender| !sender.is_closed());
            return connections
                .shared
                .iter()
                .find(|s| s.is_ready())
                .cloned()
                .map(Kind::Http2);
        }
        let mut at = connections.idle.len();
        while at > 0 {
            at -= 1;
            let (since, plain) = connections.idle.get(at)?;
            if plain.sender.is_closed() || since.elapsed() >= IDLE {
                connections.idle.remove(at);
            } else if plain.sender.is_ready() {
                return Some(Kind::Http1(connections.idle.remove(at).1));
            }
        }
        None
    }
}

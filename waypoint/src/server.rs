//! The HTTP server on one stream: hands each request to `request.rs`, and passes the stream on when
//! a request upgrades it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_runtime::drain::Draining;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::guard::{GuardedIo, Signals};
use crate::plan::HttpChain;
use crate::request::{self, Exchange};
use crate::serve::{Connection, LocalExecutor, Shared};
use crate::sniff::{Protocol, Replay};
use crate::upgrade;
use crate::upstream::Upgraded;

/// How long a client may take for the head of a request once it has begun one; Envoy leaves this open
/// by default, and a client that dribbles would hold a stream for ever.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// As much as a stream of the tunnel around it.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Four of them.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// Envoy's default for HTTP/2 within a service port is far above; this bounds one client's memory here.
const MAX_STREAMS: u32 = 1024;

/// Where an upgraded upstream connection waits for the client's stream to be handed out.
pub type UpgradeSlot = Rc<RefCell<Option<upgrade::Waiting>>>;

/// Serves a stream that must be HTTP, of either version.
pub async fn serve_any<T>(
    shared: Rc<Shared>,
    mut io: Replay<T>,
    connection: Rc<Connection>,
    chain: Arc<HttpChain>,
    draining: Draining,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    match io.protocol().await {
        Ok(Protocol::Http2) => serve_http2(shared, io, connection, chain, draining).await,
        // What is no HTTP gets HTTP/1's 400.
        Ok(Protocol::Http1 | Protocol::Other) => {
            serve_http1(shared, io, connection, chain, draining).await
        }
        Err(_gone) => {}
    }
}

/// Serves HTTP/1.
pub async fn serve_http1<T>(
    shared: Rc<Shared>,
    io: Replay<T>,
    connection: Rc<Connection>,
    chain: Arc<HttpChain>,
    draining: Draining,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let settings = &chain.settings;
    let (io, signals) = GuardedIo::new(io, settings.max_header_bytes);
    let slot = UpgradeSlot::default();
    let idle = settings.idle_timeout;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(
            settings
                .request_headers_timeout
                .or(idle)
                .unwrap_or(HEAD_TIMEOUT),
        )
        .half_close(true)
        .max_headers(settings.max_headers + 1)
        .auto_date_header(true)
        // The guard lets heads through only up to the chain's own limit.
        .max_buf_size((settings.max_header_bytes + 8192).max(16 * 1024));
    let service = {
        let exchange = exchange(&shared, &connection, &chain, Some(signals.clone()), &slot);
        service_fn(move |request: Request<Incoming>| {
            let exchange = exchange.clone();
            // Boxed: a connection that can be taken apart must not hold anything pinned.
            Box::pin(async move { Ok::<_, Infallible>(request::serve(exchange, request).await) })
        })
    };
    let mut serving = builder.serve_connection(TokioIo::new(io), service);
    let mut stop = Box::pin(draining.requested());
    let mut stopping = false;
    let ended = poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            Pin::new(&mut serving).graceful_shutdown();
        }
        // Without shutdown: after an upgrade the stream goes on with other bytes.
        serving.poll_without_shutdown(cx)
    })
    .await;
    let waiting = slot.borrow_mut().take();
    let parts = serving.into_parts();
    match (ended, waiting) {
        (Ok(()), Some(waiting)) => {
            upgrade::relay(parts.io.into_inner(), parts.read_buf, waiting).await;
        }
        _ => finish(parts.io.into_inner()).await,
    }
}

/// Ends a stream in order: what was written goes out, then our end of it.
async fn finish<T: AsyncWrite + Unpin>(mut io: T) {
    /// Enough for a full window on a slow link; a client that reads nothing loses its stream.
    const PATIENCE: Duration = Duration::from_secs(10);
    // A stream that is gone already has nothing to end.
    drop(tokio::time::timeout(PATIENCE, tokio::io::AsyncWriteExt::shutdown(&mut io)).await);
}

/// Serves HTTP/2 by prior knowledge.
pub async fn serve_http2<T>(
    shared: Rc<Shared>,
    io: Replay<T>,
    connection: Rc<Connection>,
    chain: Arc<HttpChain>,
    draining: Draining,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let settings = &chain.settings;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(settings.max_streams.unwrap_or(MAX_STREAMS))
        .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
        .auto_date_header(true);
    let service = {
        let exchange = exchange(&shared, &connection, &chain, None, &UpgradeSlot::default());
        service_fn(move |request: Request<Incoming>| {
            let exchange = exchange.clone();
            async move { Ok::<_, Infallible>(request::serve(exchange, request).await) }
        })
    };
    let mut serving = Box::pin(builder.serve_connection(TokioIo::new(io), service));
    let mut stop = Box::pin(draining.requested());
    let mut stopping = false;
    let ended = poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, source = %connection.source(), "http/2 connection ended with an error");
    }
}

fn exchange(
    shared: &Rc<Shared>,
    connection: &Rc<Connection>,
    chain: &Arc<HttpChain>,
    signals: Option<Signals>,
    slot: &UpgradeSlot,
) -> Rc<Exchange> {
    Rc::new(Exchange {
        shared: Rc::clone(shared),
        connection: Rc::clone(connection),
        chain: Arc::clone(chain),
        signals,
        upgrade: Rc::clone(slot),
    })
}

/// What an upgrade needs of the upstream's side.
impl From<Upgraded> for upgrade::Waiting {
    fn from((io, ahead): Upgraded) -> Self {
        Self {
            io,
            ahead,
            record: None,
        }
    }
}

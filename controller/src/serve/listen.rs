//! The TLS port: discovery and certificates together.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ambit_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use ambit_proto::istio::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use ambit_runtime::accept::accept_loop;
use ambit_runtime::clock::Clock;
use ambit_runtime::drain::Draining;
use ambit_runtime::tasks;
use ambit_tls::authority::Root;
use ambit_tls::csr::PrivateKey;
use ambit_tls::{Limits, ServerStream, TlsError, grpc};
use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::authority::Authority;
use crate::serve::Discovery;

/// Life of the server's own certificate, and how often it is made anew: any client that is
/// connected rarely enough to miss ten renewals has other problems.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(10 * 24 * 3600);
const CERTIFICATE_RENEWAL: Duration = Duration::from_secs(24 * 3600);

/// Handshakes at once. A handshake is a signature, so this bounds what strangers can cost.
const HANDSHAKES: usize = 64;

/// Connections at once, also of strangers. A node proxy has two, and clusters end at about 5,000
/// nodes; the rest is for waypoints. One more is closed and tries again.
const CONNECTIONS: usize = 16_384;

/// Calls at once on one connection: a node proxy asks for the certificates of all its pods at once,
/// and Kubernetes puts about 110 on a node.
const CALLS: u32 = 256;

/// Time for a certificate call, the arrival of its request included.
const CALL: Duration = Duration::from_secs(30);

/// Largest certificate request. It is read before its sender is known; a request is about 1 KiB.
const MAX_CSR: usize = 64 << 10;

/// Connections that wait for the server to take them.
const ACCEPTED: usize = 64;

/// A connection without a sign of life for this long, plus the wait for an answer to a ping, is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(10);

/// Largest discovery request. One that reconnects names every resource it has, about 100 bytes each.
const MAX_REQUEST: usize = 64 << 20;

/// The server's certificate, renewed while it runs.
#[derive(Clone)]
pub struct Identity {
    root: Arc<Root>,
    names: Arc<[String]>,
    clock: Clock,
    current: Arc<ArcSwap<grpc::Server>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// A certificate of these DNS names and addresses, signed by `root`.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate or the root has expired.
    pub fn new(root: Arc<Root>, names: &[String], clock: Clock) -> Result<Self, TlsError> {
        let names: Arc<[String]> = names.into();
        let first = issue(&root, &names, &clock)?;
        let current = Arc::new(ArcSwap::from_pointee(first));
        Ok(Self {
            root,
            names,
            clock,
            current,
        })
    }

    /// Renews for ever. A renewal that fails leaves the old certificate, which is good for longer.
    pub async fn renew(self) {
        loop {
            tokio::time::sleep(CERTIFICATE_RENEWAL).await;
            match issue(&self.root, &self.names, &self.clock) {
                Ok(next) => self.current.store(Arc::new(next)),
                Err(error) => tracing::error!(%error, "server certificate cannot be renewed"),
            }
        }
    }
}

fn issue(root: &Root, names: &[String], clock: &Clock) -> Result<grpc::Server, TlsError> {
    let key = PrivateKey::generate()?;
    let chain = root.issue_server(&key, names, clock.now(), CERTIFICATE_LIFE)?;
    grpc::Server::new(&chain, &key)
}

/// Serves until drained.
///
/// # Errors
/// When the listener breaks.
pub async fn run(
    listener: TcpListener,
    identity: Identity,
    discovery: Discovery,
    authority: Authority,
    draining: Draining,
) -> io::Result<()> {
    let (accepted, incoming) = mpsc::channel(ACCEPTED);
    let discovery =
        AggregatedDiscoveryServiceServer::new(discovery).max_decoding_message_size(MAX_REQUEST);
    let server = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WAIT))
        .max_concurrent_streams(Some(CALLS))
        .timeout(CALL)
        .add_service(discovery)
        .add_service(
            IstioCertificateServiceServer::new(authority).max_decoding_message_size(MAX_CSR),
        );
    let end = draining.clone();
    let serving = tasks::spawn("grpc server", async move {
        let incoming = ReceiverStream::new(incoming);
        server
            .serve_with_incoming_shutdown(incoming, async move { end.requested().await })
            .await
    });
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    accept_loop(listener, &draining, |socket: TcpStream, peer| {
        let (accepted, handshakes) = (accepted.clone(), Arc::clone(&handshakes));
        let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
            tracing::debug!(%peer, "too many connections; this one is closed");
            return;
        };
        let tls = identity.current.load_full();
        tasks::spawn("handshake", async move {
            let Ok(_permit) = handshakes.acquire().await else {
                return;
            };
            match tls.accept(socket, Limits::default()).await {
                Ok(stream) => {
                    let plain = Plain {
                        stream,
                        _place: place,
                    };
                    drop(accepted.send(Ok::<_, io::Error>(plain)).await);
                }
                Err(error) => tracing::debug!(%peer, %error, "handshake failed"),
            }
        });
    })
    .await?;
    drop(accepted);
    match serving.await {
        Ok(Some(served)) => served.map_err(io::Error::other),
        _ => Err(io::Error::other("the gRPC server failed")),
    }
}

/// A decrypted connection as tonic wants it.
struct Plain {
    stream: ServerStream<TcpStream>,
    /// Its place among all connections.
    _place: OwnedSemaphorePermit,
}

impl Connected for Plain {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

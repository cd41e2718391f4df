//! Connections to endpoints: through HBONE with our own certificate, or plain.
//!
//! # Theory of operation
//! Everything here belongs to one data thread. An HBONE connection is a stream on a tunnel of the
//! thread's pool; HTTP connections on top of either kind are kept per endpoint, see `http.rs`.
//!
//! # Invariants
//! - A tunnel is opened only to who must be there: the identity that workload discovery gives for
//!   the endpoint's address. Envoy checks the trust domain only; an address that changed hands would
//!   pass that.
//! - An error of [`Upstreams::connect`] means that no byte of a request has left.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ambit_hbone::client::{Tunnel, handshake};
use ambit_hbone::pool::{CheckoutError, Key, Limits, Pool};
use ambit_hbone::{OpenError, Request, Settings, Stream, StreamIo};
use ambit_model::text::Text;
use ambit_net::dial::Dial;
use ambit_runtime::tasks::spawn_local;
use ambit_wire::authority::Authority;
use http::HeaderMap;
use smallvec::smallvec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::endpoints::{Endpoint, Transport};
use crate::serve::Shared;

mod http1or2;

pub use http1or2::{Sender, Unsent, Upgraded};

/// Why an endpoint could not be connected to. No byte of a request has left.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// We have no valid certificate of our own.
    #[error("no certificate")]
    NoCertificate,
    /// Workload discovery does not know who is at the endpoint's address: nobody to expect there.
    #[error("unknown workload at the endpoint")]
    UnknownWorkload,
    /// It refused, or cannot be reached.
    #[error("{0}")]
    Refused(String),
    /// It did not answer in time.
    #[error("connection timeout")]
    Timeout,
    /// The far end is not who it must be, or speaks no TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// The far node proxy answered our CONNECT with this status.
    #[error("CONNECT answered {0}")]
    Status(u16),
    /// The tunnel failed or was closed.
    #[error("tunnel: {0}")]
    Tunnel(String),
    /// Too many streams or connections to this endpoint.
    #[error("overflow")]
    Overloaded,
}

impl ConnectError {
    /// What Envoy calls it in the body of its 503 and in the log.
    #[must_use]
    pub fn reset_reason(&self) -> &'static str {
        match self {
            Self::Timeout => "connection timeout",
            Self::Overloaded => "overflow",
            Self::Status(_) | Self::Tunnel(_) => "connection termination",
            Self::NoCertificate | Self::UnknownWorkload | Self::Refused(_) | Self::Tls(_) => {
                "remote connection failure"
            }
        }
    }

    /// What Envoy adds of the transport's own words.
    #[must_use]
    pub fn transport_text(&self) -> Option<&'static str> {
        match self {
            Self::Refused(_) => Some("delayed connect error: Connection refused"),
            Self::NoCertificate => Some("TLS_error: no certificate"),
            Self::UnknownWorkload | Self::Tls(_) => Some("TLS_error: certificate verification"),
            Self::Timeout | Self::Overloaded | Self::Status(_) | Self::Tunnel(_) => None,
        }
    }
}

/// One thread's connections to endpoints.
#[derive(Debug)]
pub struct Upstreams {
    tunnels: Pool<ConnectError>,
    settings: Rc<Settings>,
    http: RefCell<HashMap<http1or2::Place, http1or2::Connections>>,
}

impl Default for Upstreams {
    fn default() -> Self {
        Self {
            tunnels: Pool::new(Limits::default()),
            settings: Rc::new(Settings::default()),
            http: RefCell::default(),
        }
    }
}

impl Upstreams {
    /// Closes what has been idle too long, for as long as it is polled. One for each thread.
    pub async fn sweep(&self) {
        /// Half of the shortest idle time.
        const EVERY: Duration = Duration::from_secs(15);
        let tunnels = self.tunnels.sweeper();
        let connections = async {
            loop {
                tokio::time::sleep(EVERY).await;
                self.http
                    .borrow_mut()
                    .retain(|_, connections| connections.sweep());
            }
        };
        tokio::join!(tunnels, connections);
    }

    /// Opens a byte stream to an endpoint.
    ///
    /// # Errors
    /// See [`ConnectError`]. The endpoint has seen nothing of the request.
    pub async fn connect(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        timeout: Duration,
        headers: HeaderMap,
    ) -> Result<Opened, ConnectError> {
        match endpoint.transport {
            Transport::Plain => {
                let stream = Dial::new(endpoint.address, timeout).connect().await;
                stream.map(Opened::Tcp).map_err(dial_error)
            }
            Transport::Hbone(next_hop) => {
                let opening = self.open(shared, endpoint, next_hop, timeout, headers);
                let stream = tokio::time::timeout(timeout, opening).await;
                stream
                    .map_err(|_elapsed| ConnectError::Timeout)?
                    .map(Opened::Hbone)
            }
        }
    }

    async fn open(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        next_hop: std::net::SocketAddr,
        timeout: Duration,
        headers: HeaderMap,
    ) -> Result<Stream, ConnectError> {
        let svid = shared
            .certificate
            .current()
            .ok_or(ConnectError::NoCertificate)?;
        let workload = shared.workload_at(endpoint.address.ip());
        let workload = workload.ok_or(ConnectError::UnknownWorkload)?;
        let key = Key {
            source: Text::empty(),
            identity: svid.identity().clone(),
            generation: svid.generation(),
            destination: workload.uid.clone(),
            next_hop,
            expected: smallvec![workload.identity().clone()],
        };
        let settings = Rc::clone(&self.settings);
        let expected = key.expected.clone();
        let dial = move || async move {
            let tcp = Dial::new(next_hop, timeout)
                .connect()
                .await
                .map_err(dial_error)?;
            let limits = ambit_tls::Limits { timeout };
            let (stream, peer) = ambit_tls::connect(&svid, tcp, &expected, limits)
                .await
                .map_err(|error| ConnectError::Tls(error.to_string()))?;
            let (tunnel, driver) = handshake(stream, peer, &settings)
                .await
                .map_err(|error| ConnectError::Tunnel(error.to_string()))?;
            drop(spawn_local("tunnel", driver));
            Ok::<Tunnel, ConnectError>(tunnel)
        };
        let place = self
            .tunnels
            .checkout(&key, dial)
            .await
            .map_err(|error| match error {
                CheckoutError::Dial(error) => error,
                CheckoutError::Overloaded => ConnectError::Overloaded,
                CheckoutError::Closed => ConnectError::Tunnel("closed".to_owned()),
            })?;
        let authority = Authority::Socket(endpoint.address);
        let opened = place.open(Request { authority, headers }).await;
        opened
            .map(|opened| opened.stream)
            .map_err(|error| match error {
                OpenError::Refused { status, .. } => ConnectError::Status(status.as_u16()),
                OpenError::Timeout(_) => ConnectError::Timeout,
                other => ConnectError::Tunnel(other.to_string()),
            })
    }
}

fn dial_error(error: ambit_net::Error) -> ConnectError {
    match error {
        ambit_net::Error::Timeout(_) => ConnectError::Timeout,
        other => ConnectError::Refused(other.to_string()),
    }
}

/// A byte stream to an endpoint, just opened.
#[derive(Debug)]
pub enum Opened {
    /// Plain.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Hbone(Stream),
}

impl From<Opened> for UpstreamIo {
    fn from(opened: Opened) -> Self {
        match opened {
            Opened::Tcp(stream) => Self::Tcp(stream),
            Opened::Hbone(stream) => Self::Hbone(StreamIo::from(stream)),
        }
    }
}

/// A byte stream to an endpoint, as the HTTP library reads and writes it.
#[derive(Debug)]
pub enum UpstreamIo {
    /// Plain.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Hbone(StreamIo),
}

macro_rules! forward {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp($io) => $call,
            Self::Hbone($io) => $call,
        }
    };
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, io => Pin::new(io).poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::Hbone(io) => io.is_write_vectored(),
        }
    }
}

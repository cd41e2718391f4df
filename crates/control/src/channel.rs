//! Connecting and sending.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ambit_tls::{ClientStream, KeyExchange, Limits, TlsError, grpc};
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tower::Service;

use crate::{ControlError, Roots, TokenSource};

/// Time for name, TCP and TLS together; the same as Istio's clients allow.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent control plane is noticed after 40 s: an idle discovery stream carries nothing else.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the control plane is and how both sides prove themselves.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// `https://host:port`; without a scheme, https is meant.
    pub address: String,
    /// What proves the server.
    pub roots: Roots,
    /// What proves us.
    pub token: TokenSource,
    /// Sent as the `clusterid` header unless empty.
    pub cluster_id: String,
    /// Further headers of each call.
    pub headers: Vec<(String, String)>,
    /// Server names accepted besides the host of `address`.
    pub alternative_names: Vec<String>,
    /// How keys are agreed on.
    pub key_exchange: KeyExchange,
}

/// A channel that connects when used. Cheap to clone; clones share the connection.
///
/// # Guarantees
/// Every call carries the token of this moment; every connection was verified against the roots
/// of the moment it was made.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    token: Arc<TokenSource>,
    headers: Arc<Vec<(HeaderName, HeaderValue)>>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// A channel to `control_plane`. Connects nothing yet.
    ///
    /// # Assumptions
    /// Called within the control runtime, which then runs the connection.
    ///
    /// # Errors
    /// When the configuration is wrong: not an https address, or a header that cannot be sent.
    pub fn connect(control_plane: &ControlPlane) -> Result<Self, ControlError> {
        let uri = address(&control_plane.address)?;
        let headers = headers(control_plane)?;
        let connector = Connector::new(&uri, control_plane)?;
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(Self {
            inner: endpoint.connect_with_connector_lazy(connector),
            token: Arc::new(control_plane.token.clone()),
            headers: Arc::new(headers),
        })
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = ControlError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ControlError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ControlError>> {
        self.inner.poll_ready(cx).map_err(ControlError::Transport)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let sent = request.headers_mut();
        for (name, value) in self.headers.iter() {
            sent.insert(name, value.clone());
        }
        match self.token.header() {
            Ok(Some(token)) => {
                sent.insert(AUTHORIZATION, token);
            }
            Ok(None) => {}
            Err(error) => return Box::pin(async { Err(error) }),
        }
        let answer = self.inner.call(request);
        Box::pin(async { answer.await.map_err(ControlError::Transport) })
    }
}

/// The address as an https URI with a host.
fn address(text: &str) -> Result<Uri, ControlError> {
    let wrong = |problem| ControlError::Address {
        address: text.to_owned(),
        problem,
    };
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: Uri = full.parse().map_err(|_invalid| wrong("not an address"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(host)) if !host.is_empty() => Ok(uri),
        (Some("http"), _) => Err(wrong(
            "plaintext to the control plane is refused, use https",
        )),
        _ => Err(wrong("not an https address")),
    }
}

fn headers(from: &ControlPlane) -> Result<Vec<(HeaderName, HeaderValue)>, ControlError> {
    let cluster = [("clusterid".to_owned(), from.cluster_id.clone())];
    let cluster = cluster.iter().filter(|(_, value)| !value.is_empty());
    let parse = |(name, value): &(String, String)| {
        let name_parsed = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok();
        let value_parsed = HeaderValue::from_str(value).ok();
        name_parsed
            .zip(value_parsed)
            .ok_or_else(|| ControlError::Header(name.clone()))
    };
    cluster.chain(&from.headers).map(parse).collect()
}

/// Makes one TLS connection to the control plane.
#[derive(Clone)]
struct Connector {
    host: String,
    port: u16,
    /// The host, then the alternatives.
    names: Arc<Vec<String>>,
    roots: Arc<Roots>,
    key_exchange: KeyExchange,
}

impl Connector {
    fn new(uri: &Uri, control_plane: &ControlPlane) -> Result<Self, ControlError> {
        let problem = "has no host";
        let wrong = || ControlError::Address {
            address: control_plane.address.clone(),
            problem,
        };
        let host = uri.host().ok_or_else(wrong)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let mut names = vec![host.clone()];
        names.extend(control_plane.alternative_names.iter().cloned());
        Ok(Self {
            host,
            port: uri.port_u16().unwrap_or(443), // RFC 9110 4.2.2
            names: Arc::new(names),
            roots: Arc::new(control_plane.roots.clone()),
            key_exchange: control_plane.key_exchange,
        })
    }

    /// Tries the names in turn, each on a connection of its own because a failed handshake ends
    /// one. Nearly always there is one name and it fits.
    async fn open(self) -> Result<ClientStream<TcpStream>, ControlError> {
        let roots = self.roots.read()?;
        let mut last = None;
        for name in self.names.iter() {
            match self.attempt(&roots, name).await {
                Err(ControlError::Tls(_, TlsError::Protocol(why))) => {
                    last = Some(ControlError::Tls(name.clone(), TlsError::Protocol(why)));
                }
                Err(ControlError::Tls(_, TlsError::Peer(why))) => {
                    last = Some(ControlError::Tls(name.clone(), TlsError::Peer(why)));
                }
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| ControlError::Tls(self.host.clone(), TlsError::Bug("no name"))))
    }

    async fn attempt(
        &self,
        roots: &str,
        name: &str,
    ) -> Result<ClientStream<TcpStream>, ControlError> {
        let failed = |error| ControlError::Tls(name.to_owned(), error);
        let client = grpc::Client::with(roots, name, self.key_exchange).map_err(failed)?;
        let unreachable = |error| ControlError::Connect(self.host.clone(), error);
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        client
            .connect(
                tcp,
                Limits {
                    timeout: CONNECT_TIMEOUT,
                },
            )
            .await
            .map_err(failed)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<ClientStream<TcpStream>>;
    type Error = ControlError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ControlError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ControlError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async { connector.open().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests;

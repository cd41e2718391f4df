//! HTTP clients that call from a pod.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use ambit_net::dial::Dial;
use ambit_net::netns::Netns;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;

use crate::pod::{ANSWER, CONNECT, Family, Pod};

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Version it was answered in.
    pub version: Version,
    /// Header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Trailer fields, if any came.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header field, empty if absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }

    /// The body as JSON: what [`crate::apps::http`] tells of the request it got.
    ///
    /// # Panics
    ///
    /// The body is no JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }
}

/// One HTTP connection from a pod, kept between requests.
pub struct Connection {
    runtime: Runtime,
    authority: String,
    sender: Sender,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl Pod {
    /// Opens an HTTP/1.1 or HTTP/2 (prior knowledge) connection to `HOST:PORT`.
    ///
    /// # Errors
    ///
    /// The connection is refused or silent.
    pub fn http(&self, to: &str, version: Version) -> Result<Connection> {
        let address = self.resolve(to, Family::V4);
        // Pods have no name that HTTP allows, only services.
        let authority = if to.contains('/') {
            address.to_string()
        } else {
            to.to_owned()
        };
        let authority = authority.trim_end_matches(":80").to_owned();
        Connection::open(self.netns(), address, authority, version)
    }

    /// GET on a connection of its own; `url` is `http://HOST[:PORT]/PATH`.
    ///
    /// # Errors
    ///
    /// The connection is refused, broken or silent.
    pub fn get(&self, url: &str) -> Result<Answer> {
        self.request(Method::GET, url, &[])
    }

    /// A request without a body on a connection of its own.
    ///
    /// # Errors
    ///
    /// The connection is refused, broken or silent.
    pub fn request(&self, method: Method, url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let uri: Uri = url.parse()?;
        let host = uri.host().context("a host")?;
        let to = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        self.http(&to, Version::HTTP_11)?
            .send(method, path, headers, Bytes::new())
    }
}

impl Connection {
    /// Opens a connection from a namespace.
    ///
    /// # Errors
    ///
    /// The connection is refused or silent.
    pub fn open(
        netns: &Netns,
        to: SocketAddr,
        authority: String,
        version: Version,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let sender = runtime.block_on(async {
            let dial = Dial {
                netns: Some(netns),
                ..Dial::new(to, CONNECT)
            };
            let io = TokioIo::new(dial.connect().await?);
            anyhow::Ok(if version == Version::HTTP_2 {
                let (sender, connection) =
                    within(ANSWER, http2::handshake(TokioExecutor::new(), io)).await??;
                tokio::spawn(connection);
                Sender::Two(sender)
            } else {
                let (sender, connection) = within(ANSWER, http1::handshake(io)).await??;
                tokio::spawn(connection.with_upgrades());
                Sender::One(sender)
            })
        })?;
        Ok(Self {
            runtime,
            authority,
            sender,
        })
    }

    /// Sends a request and reads its answer to the end. `headers` may replace `host`.
    ///
    /// # Errors
    ///
    /// The connection broke, or no answer came within [`ANSWER`].
    pub fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method);
        let replaced = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = replaced.map_or(self.authority.as_str(), |(_, value)| value);
        request = match self.sender {
            Sender::One(_) => request.uri(path).header(HOST, host),
            Sender::Two(_) => request.uri(format!("http://{host}{path}")),
        };
        for (name, value) in headers
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("host"))
        {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into()))?;
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            within(ANSWER, async {
                let response = match sender {
                    Sender::One(sender) => {
                        sender.ready().await?;
                        sender.send_request(request).await?
                    }
                    Sender::Two(sender) => {
                        sender.ready().await?;
                        sender.send_request(request).await?
                    }
                };
                read(response).await
            })
            .await?
        })
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned();
    Ok(Answer {
        status: head.status,
        version: head.version,
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
    })
}

async fn within<T>(bound: Duration, work: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(bound, work).await {
        Ok(done) => Ok(done),
        Err(_) => bail!("no answer within {bound:?}"),
    }
}

/// What came of a gRPC call.
#[derive(Debug)]
pub struct Called {
    /// The answer's HTTP status and header fields.
    pub head: (StatusCode, HeaderMap),
    /// The messages that came back.
    pub messages: Vec<String>,
    /// Trailer fields; those of the head if the call ended with it.
    pub trailers: HeaderMap,
}

impl Called {
    /// `grpc-status`; empty if there is none.
    #[must_use]
    pub fn status(&self) -> &str {
        let status = self.trailers.get("grpc-status");
        status.and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// Calls an echoing gRPC method: sends each message when the one before it has come back, so that
/// both directions must be open at once. Whoever answers without reading the messages ends it.
///
/// # Errors
///
/// The call breaks, or no answer comes within [`ANSWER`].
pub fn call(
    client: &Pod,
    to: &str,
    path: &str,
    headers: &[(&str, &str)],
    messages: &[&str],
) -> Result<Called> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let io = TokioIo::new(client.dial(to).await?);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        let (send, mut receive) = tokio::sync::mpsc::channel::<Bytes>(1);
        // A call without messages ends its side at once.
        let send = (!messages.is_empty()).then_some(send);
        let body = StreamBody::new(futures_util::stream::poll_fn(move |cx| {
            receive
                .poll_recv(cx)
                .map(|next| next.map(|data| Ok::<_, Infallible>(Frame::data(data))))
        }));
        let authority = to.trim_end_matches(":80");
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{authority}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = within(ANSWER, sender.send_request(request.body(body)?)).await??;
        let (head, mut body) = response.into_parts();
        let mut back = Vec::new();
        for message in messages {
            let framed = framed(message);
            let wanted = framed.len();
            if let Some(send) = &send {
                // An answer that is complete already: nobody reads any more.
                let _ = send.send(framed).await;
            }
            let mut echoed = Vec::new();
            while echoed.len() < wanted && !body.is_end_stream() {
                let Some(frame) = within(ANSWER, body.frame()).await? else {
                    break;
                };
                echoed.extend_from_slice(frame?.data_ref().map_or(&[][..], |data| data));
            }
            if echoed.len() < wanted {
                break;
            }
            back.push(String::from_utf8(echoed.split_off(5))?);
        }
        drop(send);
        let mut trailers = None;
        while let Some(frame) = within(ANSWER, body.frame()).await? {
            trailers = frame?.into_trailers().ok();
        }
        Ok(Called {
            messages: back,
            trailers: trailers.unwrap_or_else(|| head.headers.clone()),
            head: (head.status, head.headers),
        })
    })
}

/// A message with gRPC's prefix: not compressed, and its length.
fn framed(message: &str) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend_from_slice(message.as_bytes());
    framed.into()
}

/// GET at an address in a namespace: for admin and metrics ports.
///
/// # Errors
///
/// The connection is refused, broken or silent.
pub fn get(netns: &Netns, to: SocketAddr, path: &str) -> Result<Answer> {
    send(netns, to, Method::GET, path)
}

/// A request without a body at an address in a namespace.
///
/// # Errors
///
/// The connection is refused, broken or silent.
pub fn send(netns: &Netns, to: SocketAddr, method: Method, path: &str) -> Result<Answer> {
    Connection::open(netns, to, to.to_string(), Version::HTTP_11)?.send(
        method,
        path,
        &[],
        Bytes::new(),
    )
}

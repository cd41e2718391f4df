//! The small HTTP/1.1 servers: admin, metrics, readiness.
//!
//! # Guarantees
//! A request head is read within 2 s and 8 KiB, a connection lives 10 minutes at most, and at most
//! 64 are open at once, so these ports cannot be used to exhaust the program. What changes state
//! is POST, and a POST that a browser sends for another site is refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Time for a request's head; the same as Istio's servers give.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a request's head. No client of these ports sends more than a few hundred.
const MAX_HEAD: usize = 8 * 1024;
/// Bytes of a request's body. Nothing here reads a body larger than a form.
const MAX_BODY: usize = 64 * 1024;
/// Connections at once: some scrapers and people.
const MAX_CONNECTIONS: usize = 64;
/// Longest life of a connection: above the longest answer (a five-minute profile).
const MAX_LIFE: Duration = Duration::from_secs(600);
/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What a request asks.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// Decoded pairs of the query string, in order.
    pub query: Vec<(String, String)>,
    /// Headers of the request.
    pub headers: HeaderMap,
    /// The body, at most 64 KiB.
    pub body: Bytes,
}

impl Call {
    /// The first value of this query key.
    pub fn param(&self, key: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// A header as text, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }
}

/// What a route answers.
pub struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Pieces,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Answer {
    /// Plain text with this status.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self::bytes(status, TEXT, Bytes::from(text.into()))
    }

    /// 200 with `value` as indented JSON, or 500 if it cannot be serialised.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(json) => Self::bytes(StatusCode::OK, JSON, Bytes::from(json)),
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// Bytes of any type.
    pub fn bytes(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        Self {
            status,
            content_type,
            body: Pieces::Whole(Some(body)),
        }
    }

    /// 200 with a body made while it is sent.
    pub fn pieces(
        content_type: &'static str,
        pieces: impl Iterator<Item = Bytes> + Send + 'static,
    ) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            body: Pieces::Made(Box::new(pieces)),
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The whole body, for tests.
    pub fn into_body(self) -> Vec<u8> {
        match self.body {
            Pieces::Whole(whole) => whole.unwrap_or_default().to_vec(),
            Pieces::Made(pieces) => pieces.flatten().collect(),
        }
    }

    fn into_response(self) -> http::Response<Pieces> {
        let mut response = http::Response::new(self.body);
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        response
    }
}

/// A body, whole (its length is then announced) or made piece by piece.
enum Pieces {
    Whole(Option<Bytes>),
    Made(Box<dyn Iterator<Item = Bytes> + Send>),
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            Self::Whole(whole) => whole.take(),
            Self::Made(pieces) => pieces.next(),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => {
                let length = whole.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
            Self::Made(_) => SizeHint::default(),
        }
    }
}

type Reply = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Handler = Arc<dyn Fn(Call) -> Reply + Send + Sync>;

struct Route {
    about: &'static str,
    method: Method,
    handler: Handler,
}

/// The paths of a server. Cheap to clone; routes can be added while it runs.
#[derive(Clone, Default)]
pub struct Routes {
    paths: Arc<RwLock<BTreeMap<String, Route>>>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.paths.read().keys()).finish()
    }
}

impl Routes {
    /// Adds a path that answers GET and changes nothing.
    pub fn get(
        &self,
        path: &str,
        about: &'static str,
        handler: impl Fn(&Call) -> Answer + Send + Sync + 'static,
    ) {
        self.add(
            Method::GET,
            path,
            about,
            Arc::new(move |call| {
                let answer = handler(&call);
                Box::pin(async move { answer })
            }),
        );
    }

    /// Adds a path that answers POST and may change state.
    pub fn post(
        &self,
        path: &str,
        about: &'static str,
        handler: impl Fn(&Call) -> Answer + Send + Sync + 'static,
    ) {
        self.add(
            Method::POST,
            path,
            about,
            Arc::new(move |call| {
                let answer = handler(&call);
                Box::pin(async move { answer })
            }),
        );
    }

    /// Adds a GET path whose answer is awaited (state that lives on other threads).
    pub fn get_async<F>(
        &self,
        path: &str,
        about: &'static str,
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.add_async(Method::GET, path, about, handler);
    }

    /// Adds a POST path whose answer is awaited.
    pub fn post_async<F>(
        &self,
        path: &str,
        about: &'static str,
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.add_async(Method::POST, path, about, handler);
    }

    fn add_async<F>(
        &self,
        method: Method,
        path: &str,
        about: &'static str,
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
        self.add(method, path, about, handler);
    }

    /// Moves every path of `other` here, for a program that has one server for all.
    pub fn absorb(&self, other: &Self) {
        let mut moved = std::mem::take(&mut *other.paths.write());
        self.paths.write().append(&mut moved);
    }

    /// `(method, path, what it is for)` of every route.
    pub fn index(&self) -> Vec<(String, String, &'static str)> {
        let paths = self.paths.read();
        let line = |(path, route): (&String, &Route)| {
            (route.method.to_string(), path.clone(), route.about)
        };
        paths.iter().map(line).collect()
    }

    fn add(&self, method: Method, path: &str, about: &'static str, handler: Handler) {
        self.paths.write().insert(
            path.to_owned(),
            Route {
                about,
                method,
                handler,
            },
        );
    }

    /// The handler for this request, or why not.
    fn find(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<Handler, Refusal> {
        let paths = self.paths.read();
        let route = paths.get(path).ok_or(Refusal::Unknown)?;
        let read = *method == Method::HEAD && route.method == Method::GET;
        if *method != route.method && !read {
            return Err(Refusal::Method(route.method.clone()));
        }
        // A browser names the site that made it send; no tool of ours does.
        if route.method == Method::POST && headers.contains_key(ORIGIN) {
            return Err(Refusal::CrossSite);
        }
        Ok(route.handler.clone())
    }

    async fn answer(&self, request: http::Request<Incoming>) -> http::Response<Pieces> {
        let (head, body) = request.into_parts();
        let handler = match self.find(&head.method, head.uri.path(), &head.headers) {
            Ok(handler) => handler,
            Err(refusal) => return refusal.into_response(),
        };
        let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            return Answer::text(status, "body too large or broken\n").into_response();
        };
        let query = parse_query(head.uri.query().unwrap_or(""));
        let call = Call {
            query,
            headers: head.headers,
            body: body.to_bytes(),
        };
        handler(call).await.into_response()
    }
}

enum Refusal {
    Unknown,
    Method(Method),
    CrossSite,
}

impl Refusal {
    fn into_response(self) -> http::Response<Pieces> {
        match self {
            Self::Unknown => Answer::text(StatusCode::NOT_FOUND, "not found\n").into_response(),
            Self::CrossSite => {
                Answer::text(StatusCode::FORBIDDEN, "cross-site request\n").into_response()
            }
            Self::Method(wanted) => {
                let text = format!("use {wanted}\n");
                let mut response =
                    Answer::text(StatusCode::METHOD_NOT_ALLOWED, text).into_response();
                if let Ok(value) = HeaderValue::from_str(wanted.as_str()) {
                    response.headers_mut().insert(ALLOW, value);
                }
                response
            }
        }
    }
}

/// Answers requests on `listener` until `stop` is done; open connections then end at once.
pub async fn serve(listener: TcpListener, routes: Routes, stop: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => return,
            Some(_ended) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                connections.spawn(connection(stream, routes.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = room
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, permit))
}

async fn connection(stream: TcpStream, routes: Routes, _room: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(routes.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    // How a scraper leaves is of no interest to anybody.
    let _ = tokio::time::timeout(MAX_LIFE, served).await;
}

/// Decodes a query string; a part that does not decode is kept as it is.
fn parse_query(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let pair = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = pair.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or(&[]);
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (other, _) => {
                bytes.push(*other);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;

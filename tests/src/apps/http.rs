//! An HTTP application that tells what it was asked: HTTP/1.1 and HTTP/2, gRPC, websocket.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::sync::mpsc;

use super::App;
use super::heard::Heard;
use crate::pod::Pod;

type Body = BoxBody<Bytes, Infallible>;

impl Pod {
    /// Serves HTTP/1.1 and HTTP/2 on a port. Answers with a JSON object that tells the request:
    /// `name`, `method`, `path`, `query`, `version`, `host`, `headers` (values joined by commas),
    /// `peer`, `body` (its length).
    ///
    /// The first part of the path may ask for something else: `/status/503` for a status,
    /// `/delay/500` for milliseconds of waiting before the answer, `/bytes/1000` for a body of
    /// that length, `/hang` for no answer ever.
    ///
    /// A request with `content-type: application/grpc` gets its messages back as they come and
    /// `grpc-status: 0`, or at once `grpc-status: 5` if its method is `Fail`; one with
    /// `upgrade: websocket` gets 101 and then its bytes back.
    pub fn serve_http(&self, port: u16, name: &str) -> App {
        let name = name.to_owned();
        self.serve(port, move |stream, peer| {
            let name = name.clone();
            async move {
                let answering = service_fn(move |request| answer(name.clone(), peer, request));
                auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), answering)
                    .await
                    .map_err(io::Error::other)
            }
        })
    }

    /// As [`serve_http`](Self::serve_http), HTTP/1.1 alone, and writes down what it is sent.
    pub fn serve_http_heard(&self, port: u16, name: &str) -> (App, Heard) {
        let (name, heard) = (name.to_owned(), Heard::default());
        let listened = heard.clone();
        let app = self.serve(port, move |stream, peer| {
            let (name, io) = (name.clone(), TokioIo::new(heard.listen(stream)));
            async move {
                let answering = service_fn(move |request| answer(name.clone(), peer, request));
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, answering)
                    .with_upgrades()
                    .await
                    .map_err(io::Error::other)
            }
        });
        (app, listened)
    }
}

async fn answer(
    name: String,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    let is = |key, value: &str| {
        let found = request
            .headers()
            .get(key)
            .and_then(|found| found.to_str().ok());
        found.is_some_and(|found| found.to_ascii_lowercase().starts_with(value))
    };
    if is(CONTENT_TYPE, "application/grpc") {
        match request.uri().path().rsplit('/').next() {
            Some("hang") => std::future::pending::<()>().await,
            Some("Fail") => return Ok(grpc_failed()),
            _ => return Ok(grpc(request.into_body())),
        }
    }
    if is(UPGRADE, "websocket") {
        tokio::spawn(echo(hyper::upgrade::on(&mut request)));
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response
            .headers_mut()
            .insert(UPGRADE, HeaderValue::from_static("websocket"));
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        return Ok(response);
    }
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (verb, value) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let number = value
        .split('/')
        .next()
        .and_then(|value| value.parse::<u64>().ok());
    let mut status = StatusCode::OK;
    match (verb, number) {
        ("status", Some(code)) => {
            let code = u16::try_from(code)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok());
            status = code.unwrap_or(StatusCode::BAD_REQUEST);
        }
        ("delay", Some(time)) => tokio::time::sleep(Duration::from_millis(time)).await,
        ("hang", _) => std::future::pending::<()>().await,
        ("bytes", Some(length)) => {
            let length = usize::try_from(length).unwrap_or(0);
            return Ok(Response::new(full(vec![b'x'; length].into())));
        }
        _ => {}
    }
    let told = tell(&name, peer, request).await?;
    let mut response = Response::new(full(told));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn tell(
    name: &str,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Bytes, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut headers = serde_json::Map::new();
    for key in head.headers.keys() {
        let values = head.headers.get_all(key).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(key.to_string(), values.join(", ").into());
    }
    let host = head.uri.authority().map(ToString::to_string).or_else(|| {
        Some(String::from_utf8_lossy(head.headers.get("host")?.as_bytes()).into_owned())
    });
    let told = json!({
        "name": name, "method": head.method.as_str(), "path": head.uri.path(),
        "query": head.uri.query(), "version": format!("{:?}", head.version), "host": host,
        "headers": headers, "peer": peer.ip().to_string(), "body": body.len(),
    });
    Ok(told.to_string().into())
}

/// Sends each piece of the body back as it comes, then the status of a call that went well.
fn grpc(mut body: Incoming) -> Response<Body> {
    // Few pieces at a time: a call that is not read must slow its sender.
    let (send, mut receive) = mpsc::channel::<Frame<Bytes>>(4);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if send.send(Frame::data(data)).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let _ = send.send(Frame::trailers(trailers)).await;
    });
    let frames = futures_util::stream::poll_fn(move |cx| {
        receive
            .poll_recv(cx)
            .map(|frame| frame.map(Ok::<_, Infallible>))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A call that went wrong before its first message: its status stands in the head.
fn grpc_failed() -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("5"));
    headers.insert("grpc-message", HeaderValue::from_static("no such cart"));
    response
}

async fn echo(upgrading: hyper::upgrade::OnUpgrade) {
    let Ok(upgraded) = upgrading.await else {
        return;
    };
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
}

fn full(body: Bytes) -> Body {
    Full::new(body).boxed()
}

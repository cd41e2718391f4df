//! Sending a request on: choose an endpoint, connect, send, wait for the head of the answer, and
//! perhaps try again, all within the route's deadline.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_wire::authority::Authority;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::body::{RequestBody, ResponseBody};
use crate::endpoints::{Endpoint, InFlight, Transport};
use crate::headers::names;
use crate::plan::{Cluster, Upstream, UpstreamProtocol};
use crate::record::{Flag, Record};
use crate::request::{Exchange, switched};
use crate::respond::Reply;
use crate::routes::{Forward, GrpcTimeout};
use crate::upgrade::Waiting;
use crate::upstream::{ConnectError, Sender};

pub mod retry;

use retry::{Failure, Retries};

/// What is to be sent, and how.
#[derive(Debug)]
pub struct Sending<'a> {
    /// Where it came from.
    pub exchange: &'a Exchange,
    /// The route's wishes.
    pub forward: &'a Forward,
    /// Where to.
    pub cluster: &'a Arc<Cluster>,
    /// Its head, with `host`.
    pub head: Request<()>,
    /// What the client speaks.
    pub version: Version,
    /// Whether it asks to switch protocols.
    pub upgrade: bool,
}

/// What came of it.
#[derive(Debug)]
pub enum Answer {
    /// An endpoint answered.
    Upstream(Box<Response<ResponseBody>>),
    /// None did; the record is still to be ended.
    Local(Reply, Box<Record>),
}

/// One try's end.
enum Tried {
    Answered(Response<Incoming>, Sender, Duration),
    Failed(Failure, Option<RequestBody>),
}

/// Sends a request until there is an answer or no reason to go on.
pub async fn run(sending: Sending<'_>, body: RequestBody, mut record: Box<Record>) -> Answer {
    let deadline = Deadline::of(&sending, &record);
    let mut retries = Retries::of(sending.forward.retry.as_ref());
    let mut avoid = SmallVec::<[SocketAddr; 4]>::new();
    let empty = body.is_empty();
    let mut body = Some(body);
    loop {
        let Some(endpoint) = choose(&sending, &avoid, &retries) else {
            return Answer::Local(Reply::no_healthy_upstream(), record);
        };
        record.endpoint(InFlight::begin(&endpoint));
        let this = match body.take() {
            Some(body) => body,
            None if empty => RequestBody::empty(),
            // The body went with an earlier try, which then may not be repeated.
            None => return Answer::Local(Reply::timeout("response_timeout"), record),
        };
        let trying = attempt(&sending, &endpoint, this, deadline.left());
        let tried = tokio::select! {
            biased;
            tried = within(retries.per_try(), trying) => tried,
            () = deadline.passed() => {
                record.complete();
                return Answer::Local(Reply::timeout("response_timeout"), record);
            }
        };
        match tried {
            Tried::Answered(response, sender, took) => {
                let again = retries.after_answer(response.status(), response.headers());
                if !again || !(empty || body.is_some()) {
                    record.upstream_answered(took, response.headers());
                    return answered(&sending, response, sender, &deadline, record).await;
                }
            }
            Tried::Failed(failure, unsent) => {
                body = unsent;
                let sendable = empty || body.is_some();
                if !sendable || !retries.after_failure(&failure) {
                    let exhausted = retries.exhausted();
                    return Answer::Local(failed(&failure, exhausted, &mut record), record);
                }
            }
        }
        avoid.push(endpoint.address);
        retries.pause(fastrand::u64(..)).await;
    }
}

async fn within(limit: Option<Duration>, trying: impl Future<Output = Tried>) -> Tried {
    match limit {
        None => trying.await,
        Some(limit) => match tokio::time::timeout(limit, trying).await {
            Ok(tried) => tried,
            Err(_elapsed) => Tried::Failed(Failure::TryTimeout, None),
        },
    }
}

fn choose(
    sending: &Sending<'_>,
    avoid: &[SocketAddr],
    retries: &Retries<'_>,
) -> Option<Arc<Endpoint>> {
    match &sending.cluster.upstream {
        Upstream::Endpoints(endpoints) => endpoints
            .choose(
                sending.cluster.balance,
                avoid,
                retries.reselect(),
                &mut || fastrand::u64(..),
            )
            .cloned(),
        Upstream::OriginalDestination => {
            let to = sending.exchange.connection.destination();
            let next_hop = SocketAddr::new(to.ip(), 15008);
            Some(Arc::new(Endpoint::new(to, Transport::Hbone(next_hop))))
        }
    }
}

/// One try at one endpoint.
async fn attempt(
    sending: &Sending<'_>,
    endpoint: &Endpoint,
    body: RequestBody,
    left: Option<Duration>,
) -> Tried {
    let http2 = match sending.cluster.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::SameAsClient => sending.version == Version::HTTP_2,
    } && !sending.upgrade;
    let shared = &sending.exchange.shared;
    let mut body = body;
    // Twice: a kept connection may have been closed by its endpoint just now, which says nothing
    // about the endpoint.
    for fresh in [false, true] {
        let sender = shared
            .upstreams
            .sender(shared, sending.cluster, endpoint, http2, fresh)
            .await;
        let mut sender = match sender {
            Ok(sender) => sender,
            Err(error) => return Tried::Failed(Failure::Connect(error), Some(body)),
        };
        let began = Instant::now();
        match sender.send(request(sending, http2, body, left)).await {
            Ok(response) => return Tried::Answered(response, sender, began.elapsed()),
            Err(unsent) => match unsent.request {
                Some(request) if sender.reused => body = request.into_body(),
                Some(request) => {
                    return Tried::Failed(Failure::of(&unsent.error), Some(request.into_body()));
                }
                None => return Tried::Failed(Failure::of(&unsent.error), None),
            },
        }
    }
    Tried::Failed(
        Failure::Connect(ConnectError::Tunnel("closed".to_owned())),
        Some(body),
    )
}

/// The request as it is sent in this version of HTTP.
fn request(
    sending: &Sending<'_>,
    http2: bool,
    body: RequestBody,
    left: Option<Duration>,
) -> Request<RequestBody> {
    let mut head = sending.head.clone();
    if http2 {
        *head.version_mut() = Version::HTTP_2;
        head.headers_mut().remove(HOST);
    } else {
        // Origin form; the host is in its header.
        let path = head.uri().path_and_query().cloned();
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = path;
        *head.uri_mut() = http::Uri::from_parts(parts).unwrap_or_default();
        // Of some methods the library takes it that they have no body unless a header says so.
        if !body.is_empty() && !head.headers().contains_key(CONTENT_LENGTH) {
            head.headers_mut()
                .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    if let Some(left) = left
        && let Ok(millis) = u64::try_from(left.as_millis())
    {
        head.headers_mut().insert(
            names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
            HeaderValue::from(millis),
        );
    }
    head.map(|()| body)
}

/// An endpoint's answer on its way to the client.
async fn answered(
    sending: &Sending<'_>,
    response: Response<Incoming>,
    sender: Sender,
    deadline: &Deadline,
    record: Box<Record>,
) -> Answer {
    let switching = switched(&response);
    let (mut parts, incoming) = response.into_parts();
    // The client's side of HTTP has a version of its own.
    parts.version = Version::default();
    // As Envoy: not where the answer began before the request had ended.
    if record.progress().ended().is_some()
        && let Some(took) = record.service_time()
        && let Ok(millis) = u64::try_from(took.as_millis())
    {
        parts.headers.insert(
            names::X_ENVOY_UPSTREAM_SERVICE_TIME,
            HeaderValue::from(millis),
        );
    }
    if switching && sending.upgrade {
        return upgraded(sending, parts, sender, record).await;
    }
    if switching {
        let mut record = record;
        record.transport_failure("unasked 101");
        let reply = Reply::upstream_failed(Flag::UpstreamProtocolError, "protocol error", None);
        return Answer::Local(
            Reply {
                status: StatusCode::BAD_GATEWAY,
                ..reply
            },
            record,
        );
    }
    let body = ResponseBody::upstream(incoming, Some(sender), deadline.at(), record);
    Answer::Upstream(Box::new(Response::from_parts(parts, body)))
}

/// Both ends agreed: the endpoint's stream waits for the server to hand over the client's.
async fn upgraded(
    sending: &Sending<'_>,
    parts: http::response::Parts,
    sender: Sender,
    mut record: Box<Record>,
) -> Answer {
    let Some((io, ahead)) = sender.upgraded().await else {
        let reply =
            Reply::upstream_failed(Flag::UpstreamTermination, "connection termination", None);
        return Answer::Local(reply, record);
    };
    if let Some(signals) = &sending.exchange.signals {
        signals.upgraded();
    }
    record.responded(parts.status, &parts.headers);
    *sending.exchange.upgrade.borrow_mut() = Some(Waiting {
        io,
        ahead,
        record: Some(record),
    });
    Answer::Upstream(Box::new(Response::from_parts(parts, ResponseBody::none())))
}

/// What the client is told when the last try failed.
fn failed(failure: &Failure, exhausted: bool, record: &mut Record) -> Reply {
    if exhausted {
        record.flag(Flag::RetryLimit);
        record.flag(failure.flag());
    }
    match failure {
        Failure::TryTimeout => Reply::timeout("upstream_per_try_timeout"),
        Failure::Connect(ConnectError::Overloaded) => Reply::overflow(),
        Failure::Connect(error) => {
            let text = error.to_string();
            record.transport_failure(&text);
            if exhausted && failure.flag() == Flag::UpstreamFailure {
                return Reply::retried(failure.flag(), error.reset_reason());
            }
            Reply::upstream_failed(failure.flag(), error.reset_reason(), error.transport_text())
        }
        Failure::Protocol(text) => {
            record.transport_failure(text);
            let reply = Reply::upstream_failed(failure.flag(), "protocol error", None);
            Reply {
                status: StatusCode::BAD_GATEWAY,
                ..reply
            }
        }
        Failure::Reset | Failure::Refused => {
            Reply::upstream_failed(failure.flag(), "remote reset", None)
        }
        Failure::Termination => {
            Reply::upstream_failed(failure.flag(), "connection termination", None)
        }
    }
}

/// The route's timeout: from the end of the request to the end of the answer.
#[derive(Debug)]
struct Deadline {
    limit: Option<Duration>,
    progress: Rc<crate::body::Progress>,
}

impl Deadline {
    fn of(sending: &Sending<'_>, record: &Record) -> Self {
        let forward = sending.forward;
        let asked = || {
            let value = sending.head.headers().get(names::GRPC_TIMEOUT)?;
            retry::grpc_timeout(value.as_bytes())
        };
        let limit = match forward.grpc_timeout {
            GrpcTimeout::Ignored => forward.timeout,
            _ if !record.is_grpc() => forward.timeout,
            GrpcTimeout::Honoured => asked().or(forward.timeout),
            GrpcTimeout::UpTo(most) => asked().map(|asked| asked.min(most)).or(forward.timeout),
        };
        Self {
            limit: limit.filter(|limit| !limit.is_zero()),
            progress: Rc::clone(record.progress()),
        }
    }

    /// When it is, as far as that is known.
    fn at(&self) -> Option<Instant> {
        Some(self.progress.ended().unwrap_or_else(Instant::now) + self.limit?)
    }

    fn left(&self) -> Option<Duration> {
        self.at()
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Waits for it. While the request's body still comes it is not counted.
    async fn passed(&self) {
        let Some(limit) = self.limit else {
            return std::future::pending().await;
        };
        loop {
            match self.progress.ended() {
                Some(ended) if ended.elapsed() >= limit => return,
                Some(ended) => tokio::time::sleep_until(ended + limit).await,
                None => tokio::time::sleep(limit).await,
            }
        }
    }
}

/// The authority of our CONNECT to an endpoint, for logs.
#[must_use]
pub fn authority(endpoint: &Endpoint) -> Authority {
    Authority::Socket(endpoint.address)
}

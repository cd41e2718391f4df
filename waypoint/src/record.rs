//! What one request leaves behind: one access-log line and one set of metrics, when it has ended.
//!
//! # Theory of operation
//! A [`Record`] is made when a request begins and filled in as it is served. Dropping it writes it:
//! whatever way a request ends, finished, broken off or with its task gone, that happens exactly once.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body::Frame;

use crate::body::Progress;
use crate::endpoints::InFlight;
use crate::plan::{Cluster, HttpChain, Name};
use crate::routes::Route;
use crate::serve::{Connection, Shared};
use crate::upstream::Upstreams;

mod line;

/// What Envoy's response flags say, as far as a waypoint can come to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// No route, or nothing is served at this address.
    NoRoute,
    /// No such cluster.
    NoCluster,
    /// No endpoint to use.
    NoHealthyUpstream,
    /// No connection to the endpoint.
    UpstreamFailure,
    /// The endpoint's connection ended.
    UpstreamTermination,
    /// The endpoint reset the request.
    UpstreamReset,
    /// The endpoint does not speak HTTP.
    UpstreamProtocolError,
    /// Too much going on there.
    UpstreamOverflow,
    /// No answer in time.
    UpstreamTimeout,
    /// All tries are used up.
    RetryLimit,
    /// The client went away.
    DownstreamTermination,
    /// The client does not speak HTTP.
    DownstreamProtocolError,
}

impl Flag {
    /// Envoy's short form.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamFailure => "UF",
            Self::UpstreamTermination => "UC",
            Self::UpstreamReset => "UR",
            Self::UpstreamProtocolError => "UPE",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamTimeout => "UT",
            Self::RetryLimit => "URX",
            Self::DownstreamTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
        }
    }
}

/// Flags of one request: two at most (`UF,URX`).
pub type Flags = smallvec::SmallVec<[Flag; 2]>;

/// One request on its way.
#[derive(Debug)]
pub struct Record {
    shared: Rc<Shared>,
    connection: Rc<Connection>,
    chain: Arc<HttpChain>,
    began: Instant,
    began_at: SystemTime,
    method: Method,
    authority: Box<str>,
    path: Box<str>,
    version: Version,
    grpc: bool,
    /// Kept only for the log, and only if there is one.
    headers: Option<HeaderMap>,
    response_headers: Option<HeaderMap>,
    route: Option<Arc<Route>>,
    cluster: Option<Arc<Cluster>>,
    endpoint: Option<InFlight>,
    progress: Rc<Progress>,
    status: u16,
    flags: Flags,
    details: std::borrow::Cow<'static, str>,
    transport_failure: Option<Box<str>>,
    bytes_sent: u64,
    service_time: Option<Duration>,
    tries: u32,
    grpc_status: Option<u32>,
    messages: (u64, u64),
    complete: bool,
}

impl Record {
    /// The beginning of a request.
    #[must_use]
    pub fn begin(
        shared: &Rc<Shared>,
        connection: &Rc<Connection>,
        chain: &Arc<HttpChain>,
    ) -> Box<Self> {
        Box::new(Self {
            shared: Rc::clone(shared),
            connection: Rc::clone(connection),
            chain: Arc::clone(chain),
            began: Instant::now(),
            began_at: SystemTime::now(),
            method: Method::GET,
            authority: Box::from(""),
            path: Box::from(""),
            version: Version::HTTP_11,
            grpc: false,
            headers: None,
            response_headers: None,
            route: None,
            cluster: None,
            endpoint: None,
            progress: Rc::default(),
            status: 0,
            flags: Flags::new(),
            details: "via_upstream".into(),
            transport_failure: None,
            bytes_sent: 0,
            service_time: None,
            tries: 0,
            grpc_status: None,
            messages: (0, 0),
            complete: false,
        })
    }

    /// The request as it was read.
    pub fn request(
        &mut self,
        method: &Method,
        authority: &str,
        path: &str,
        version: Version,
        headers: &HeaderMap,
    ) {
        self.method = method.clone();
        self.authority = authority.into();
        self.path = path.into();
        self.version = version;
        let content_type = headers.get(http::header::CONTENT_TYPE);
        self.grpc =
            content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !self.chain.logs.is_empty() {
            self.headers = Some(headers.clone());
        }
    }

    /// The route chosen.
    pub fn route(&mut self, route: &Arc<Route>) {
        self.route = Some(Arc::clone(route));
    }

    /// The cluster chosen.
    pub fn cluster(&mut self, cluster: &Arc<Cluster>) {
        self.cluster = Some(Arc::clone(cluster));
    }

    /// The endpoint of the try that begins.
    pub fn endpoint(&mut self, endpoint: InFlight) {
        self.endpoint = Some(endpoint);
        self.tries += 1;
    }

    /// The head of the endpoint's answer.
    pub fn upstream_answered(&mut self, service_time: Duration, headers: &HeaderMap) {
        self.service_time = Some(service_time);
        self.saw_grpc_status(headers);
    }

    /// The head as it goes to the client.
    pub fn responded(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        if !self.chain.logs.is_empty() {
            self.response_headers = Some(headers.clone());
        }
    }

    /// A piece of the answer's body, or its trailers.
    pub fn response_frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.bytes_sent += data.len() as u64;
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.saw_grpc_status(trailers);
        }
    }

    fn saw_grpc_status(&mut self, headers: &HeaderMap) {
        let status = headers
            .get("grpc-status")
            .and_then(|value| value.to_str().ok());
        if let Some(status) = status.and_then(|text| text.parse().ok()) {
            self.grpc_status = Some(status);
        }
    }

    /// How it ended for gRPC.
    pub fn grpc_status(&mut self, status: u32) {
        self.grpc_status = Some(status);
    }

    /// Adds a flag.
    pub fn flag(&mut self, flag: Flag) {
        if !self.flags.contains(&flag) {
            self.flags.push(flag);
        }
    }

    /// Why it ended as it did, in Envoy's words.
    pub fn details(&mut self, details: impl Into<std::borrow::Cow<'static, str>>) {
        self.details = details.into();
    }

    /// What the transport said when it failed.
    pub fn transport_failure(&mut self, text: &str) {
        self.transport_failure = Some(text.into());
    }

    /// The request has ended as the fields say; without this, dropping it means that the client left.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// How far the request's body is.
    #[must_use]
    pub fn progress(&self) -> &Rc<Progress> {
        &self.progress
    }

    /// Whether the client speaks gRPC.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Whether the answer must have no body.
    #[must_use]
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// How long the endpoint took to answer.
    #[must_use]
    pub fn service_time(&self) -> Option<Duration> {
        self.service_time
    }

    /// Bytes that an upgraded connection moved.
    pub fn upgraded(&mut self, received: u64, sent: u64) {
        self.progress.add(received);
        self.bytes_sent += sent;
    }

    /// The thread's connections.
    #[must_use]
    pub fn upstreams(&self) -> &Upstreams {
        &self.shared.upstreams
    }

    /// The service's name for metrics: what the cluster says, else unknown.
    fn service(&self) -> Option<&crate::plan::ServiceName> {
        self.cluster
            .as_ref()
            .and_then(|cluster| cluster.service.as_deref())
    }

    fn short_flags(&self) -> smallvec::SmallVec<[&'static str; 2]> {
        self.flags.iter().map(|flag| flag.short()).collect()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.complete {
            self.flag(Flag::DownstreamTermination);
            self.details = "downstream_remote_disconnect".into();
        }
        let took = self.began.elapsed();
        let flags = self.short_flags();
        if self.chain.reporter.is_some() {
            self.shared.metrics.request(
                &self.connection,
                &crate::metrics::Request {
                    chain: &self.chain,
                    cluster: self.cluster.as_ref(),
                    service: self.service(),
                    endpoint: self.endpoint.as_ref().map(InFlight::endpoint),
                    status: self.status,
                    flags: &self.flags,
                    grpc: self.grpc,
                    grpc_status: self.grpc_status,
                    took,
                    received: self.progress.bytes(),
                    sent: self.bytes_sent,
                    messages: self.messages,
                },
            );
        }
        for log in &self.chain.logs {
            if log.only.admits(self.status, took, &flags) {
                self.shared
                    .log
                    .write_line(line::of(self, &log.format, took));
            }
        }
    }
}

/// Joined flags as logs and labels show them.
#[must_use]
pub fn shown(flags: &[Flag]) -> std::borrow::Cow<'static, str> {
    match flags {
        [] => "-".into(),
        [one] => one.short().into(),
        several => several
            .iter()
            .map(|flag| flag.short())
            .collect::<Vec<_>>()
            .join(",")
            .into(),
    }
}

/// The name of an HTTP version in logs.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// A name, or Envoy's dash.
fn or_dash(name: Option<&Name>) -> &str {
    name.map_or("-", |name| name)
}

//! The answers that the waypoint gives itself: status, body, response flag and details as Envoy's, so
//! that people and dashboards that know the one know the other.
//!
//! A gRPC client gets every one of them as status 200 with `grpc-status` and `grpc-message` and
//! nothing else, as its protocol wants it.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::body::ResponseBody;
use crate::headers::names::X_ENVOY_OVERLOADED;
use crate::record::{Flag, Record};

/// One answer of our own.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Its status for HTTP clients.
    pub status: StatusCode,
    /// Its text.
    pub body: Bytes,
    /// What the log and the metrics call it.
    pub flag: Option<Flag>,
    /// Why, in the access log.
    pub details: String,
    /// `location` of a redirect.
    pub location: Option<HeaderValue>,
    /// Tell the client that it is our load, not its request.
    pub overloaded: bool,
}

impl Reply {
    fn new(
        status: StatusCode,
        flag: Option<Flag>,
        details: impl Into<String>,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            flag,
            details: details.into(),
            location: None,
            overloaded: false,
        }
    }

    /// A request that must not be understood: 400 and its kin.
    #[must_use]
    pub fn bad_request(status: StatusCode, details: impl Into<String>) -> Self {
        let text = status.canonical_reason().unwrap_or("Bad Request");
        Self::new(status, Some(Flag::DownstreamProtocolError), details, text)
    }

    /// An authorization rule said no.
    #[must_use]
    pub fn denied(policy: Option<&str>) -> Self {
        let policy = policy.unwrap_or("none");
        Self::new(
            StatusCode::FORBIDDEN,
            None,
            format!("rbac_access_denied_matched_policy[{policy}]"),
            "RBAC: access denied",
        )
    }

    /// No route matches.
    #[must_use]
    pub fn no_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Some(Flag::NoRoute),
            "route_not_found",
            Bytes::new(),
        )
    }

    /// A route names a cluster that is not there.
    #[must_use]
    pub fn no_cluster(status: StatusCode) -> Self {
        Self::new(
            status,
            Some(Flag::NoCluster),
            "cluster_not_found",
            Bytes::new(),
        )
    }

    /// A cluster has no endpoint to use.
    #[must_use]
    pub fn no_healthy_upstream() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some(Flag::NoHealthyUpstream),
            "no_healthy_upstream",
            "no healthy upstream",
        )
    }

    /// Too much is going on in a cluster.
    #[must_use]
    pub fn overflow() -> Self {
        let mut reply = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some(Flag::UpstreamOverflow),
            "upstream_reset_before_response_started{overflow}",
            "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        );
        reply.overloaded = true;
        reply
    }

    /// No answer from the endpoint. `transport`: what the transport said, if it was that.
    #[must_use]
    pub fn upstream_failed(flag: Flag, reason: &str, transport: Option<&str>) -> Self {
        let mut text = format!(
            "upstream connect error or disconnect/reset before headers. reset reason: {reason}"
        );
        let mut details = format!(
            "upstream_reset_before_response_started{{{}",
            reason.replace(' ', "_")
        );
        if let Some(transport) = transport {
            text.push_str(", transport failure reason: ");
            text.push_str(transport);
            details.push('|');
            details.push_str(&transport.replace(' ', "_"));
        }
        details.push('}');
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some(flag), details, text)
    }

    /// No connection to any endpoint, tried again as often as the route allows: Envoy then says so, and
    /// nothing of the transport.
    #[must_use]
    pub fn retried(flag: Flag, reason: &str) -> Self {
        let mut reply = Self::upstream_failed(flag, reason, None);
        let text = format!(
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: {reason}"
        );
        reply.body = text.into();
        reply
    }

    /// The route's timeout, or that of the last try, ran out.
    #[must_use]
    pub fn timeout(details: &'static str) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            Some(Flag::UpstreamTimeout),
            details,
            "upstream request timeout",
        )
    }

    /// What a route says itself.
    #[must_use]
    pub fn direct(status: StatusCode, body: Bytes) -> Self {
        Self::new(status, None, "direct_response", body)
    }

    /// A redirect of a route, or to a path's canonical spelling.
    #[must_use]
    pub fn redirect(status: StatusCode, location: HeaderValue, details: &'static str) -> Self {
        let mut reply = Self::new(status, None, details, Bytes::new());
        reply.location = Some(location);
        reply
    }

    /// Writes it down in the record and makes the response, without the headers that every response
    /// gets (`server`, `date`).
    #[must_use]
    pub fn into_response(self, mut record: Box<Record>) -> Response<ResponseBody> {
        if let Some(flag) = self.flag {
            record.flag(flag);
        }
        record.details(self.details);
        let mut headers = HeaderMap::with_capacity(4);
        let mut status = self.status;
        let mut body = self.body;
        if record.is_grpc() {
            let code = grpc_code(status);
            let message = std::str::from_utf8(&body).unwrap_or_default();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(code));
            if !message.is_empty()
                && let Ok(value) =
                    HeaderValue::try_from(utf8_percent_encode(message, GRPC_MESSAGE).to_string())
            {
                headers.insert("grpc-message", value);
            }
            record.grpc_status(u32::from(code));
            status = StatusCode::OK;
            body = Bytes::new();
        } else {
            if !body.is_empty() {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                // Of an empty one HTTP/1 has the length without our saying so, and HTTP/2 needs none.
                headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            }
        }
        if let Some(location) = self.location {
            headers.insert(LOCATION, location);
        }
        if self.overloaded {
            headers.insert(X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
        }
        if record.is_head() {
            body = Bytes::new();
        }
        let mut response = Response::new(ResponseBody::local(body, record));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// What a gRPC message may not carry as it is (the protocol's specification of `grpc-message`).
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%').add(0x7f);

/// Envoy's translation of HTTP statuses.
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

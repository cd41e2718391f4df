//! Request headers before anything looks at them: refuse what is ambiguous, drop what belongs to one
//! hop or is not for clients to say, fill in what upstreams expect.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::plan::{ClientCert, HttpSettings, Underscores};

pub mod path;

/// Header names that are not among the constants of `http`.
pub mod names {
    use http::HeaderName;

    /// Client addresses, nearest last.
    pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    /// Scheme the client used.
    pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    /// Host before a rewrite.
    pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    /// Port the client used.
    pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
    /// Certificates of clients, nearest last.
    pub const X_FORWARDED_CLIENT_CERT: HeaderName =
        HeaderName::from_static("x-forwarded-client-cert");
    /// Identifies one request over all hops.
    pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    /// Path before a rewrite.
    pub const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
    /// Host before a rewrite.
    pub const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
    /// Milliseconds the upstream is given.
    pub const X_ENVOY_EXPECTED_RQ_TIMEOUT_MS: HeaderName =
        HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
    /// Milliseconds the upstream took.
    pub const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName =
        HeaderName::from_static("x-envoy-upstream-service-time");
    /// Set on answers that say "too much at once".
    pub const X_ENVOY_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
    /// W3C trace context.
    pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
    /// A gRPC client's own timeout.
    pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
    /// Belongs to one hop though the RFC does not name it.
    pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    /// Belongs to one hop though the RFC does not name it.
    pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    /// Only in the handshake of HTTP/2 in clear text.
    pub const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
}

/// What clients of the mesh may not tell us: Envoy's tuning headers (they would change retries and
/// timeouts), and what belongs to the CONNECT request around this one.
const UNTRUSTED: [HeaderName; 19] = [
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-envoy-peer-metadata"),
    HeaderName::from_static("x-envoy-peer-metadata-id"),
    HeaderName::from_static("x-istio-source"),
    HeaderName::from_static("x-forwarded-network"),
];

/// Why a request's headers are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadersRefused {
    /// More than one `host`, or `host` and `:authority` differ, or it is no host. 400.
    #[error("request has no single host")]
    Host,
    /// An HTTP/2 request with a header of HTTP/1 connections, or `te` other than `trailers`. 400.
    #[error("request has a connection header")]
    ConnectionHeader,
    /// More than one `content-length`, or one that is no decimal number. 400.
    #[error("request has no single length")]
    Length,
    /// A method that differs from one of HTTP's in its letters' case alone. 400.
    #[error("request has a method in the wrong case")]
    Method,
    /// A name with an underscore where the control plane forbids them. 400.
    #[error("request has a header name with an underscore")]
    Underscore,
    /// More headers than allowed. 431.
    #[error("request has too many headers")]
    TooMany,
}

/// Methods have case (RFC 9110 section 9.1), but servers exist that fold it: to those, `delete` is what
/// a rule on `DELETE` is about. Methods of other names are nobody's but the endpoint's business.
///
/// # Errors
/// If the method is one of HTTP's but for its case.
pub fn check_method(method: &Method) -> Result<(), HeadersRefused> {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    let is = |known: &Method| known.as_str().eq_ignore_ascii_case(method.as_str());
    if known.contains(method) || !known.iter().any(is) {
        Ok(())
    } else {
        Err(HeadersRefused::Method)
    }
}

/// Checks the headers of a request as they came. `http2` says how.
///
/// # Errors
/// The first thing that is wrong with them.
pub fn check(
    headers: &mut HeaderMap,
    http2: bool,
    settings: &HttpSettings,
) -> Result<(), HeadersRefused> {
    if headers.len() > settings.max_headers {
        return Err(HeadersRefused::TooMany);
    }
    // In HTTP/1 the guard saw to it. In HTTP/2 frames count, but the next hop may speak HTTP/1.
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let decimal = |length: &HeaderValue| {
        let length = length.as_bytes();
        !length.is_empty() && length.iter().all(u8::is_ascii_digit)
    };
    if !lengths.next().is_none_or(decimal) || lengths.next().is_some() {
        return Err(HeadersRefused::Length);
    }
    if http2 {
        let forbidden = [
            CONNECTION,
            TRANSFER_ENCODING,
            UPGRADE,
            names::KEEP_ALIVE,
            names::PROXY_CONNECTION,
        ];
        if forbidden.iter().any(|name| headers.contains_key(name))
            || headers.get_all(TE).iter().any(|te| te != "trailers")
        {
            return Err(HeadersRefused::ConnectionHeader);
        }
    }
    match settings.underscores {
        Underscores::Allow => {}
        Underscores::Reject => {
            if headers.keys().any(|name| name.as_str().contains('_')) {
                return Err(HeadersRefused::Underscore);
            }
        }
        Underscores::Drop => {
            let named: Vec<_> = headers
                .keys()
                .filter(|name| name.as_str().contains('_'))
                .cloned()
                .collect();
            for name in named {
                headers.remove(name);
            }
        }
    }
    Ok(())
}

/// Takes the host of a request: from the request target if it carries one, else from `host`. The
/// result is in canonical form: lower case, without a trailing dot, the port as sent. `host` is
/// removed from the headers; whoever sends the request on adds it again.
///
/// # Errors
/// If there is none, more than one, the two differ, or it is no host.
pub fn take_host(
    headers: &mut HeaderMap,
    target: Option<&http::uri::Authority>,
) -> Result<String, HeadersRefused> {
    let mut hosts = headers.get_all(HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(one), None) => Some(canonical_host(
            one.to_str().map_err(|_| HeadersRefused::Host)?,
        )?),
        (Some(_), Some(_)) => return Err(HeadersRefused::Host),
    };
    let target = target
        .map(|target| canonical_host(target.as_str()))
        .transpose()?;
    headers.remove(HOST);
    match (target, named) {
        (Some(target), Some(named)) if target != named => Err(HeadersRefused::Host),
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(HeadersRefused::Host),
    }
}

/// Lower case, no trailing dot; refuses user information, lists and everything else that is not
/// `host[:port]`.
fn canonical_host(text: &str) -> Result<String, HeadersRefused> {
    let legal = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']')
    };
    if text.is_empty() || !text.bytes().all(legal) {
        return Err(HeadersRefused::Host);
    }
    let authority: http::uri::Authority = text.parse().map_err(|_| HeadersRefused::Host)?;
    let host = authority.host().to_ascii_lowercase();
    let trimmed = host.strip_suffix('.').unwrap_or(&host);
    if trimmed.is_empty() || trimmed.ends_with('.') {
        return Err(HeadersRefused::Host);
    }
    let port = text.get(authority.host().len()..).unwrap_or_default();
    match port.strip_prefix(':').map(str::parse::<u16>) {
        None if port.is_empty() => Ok(trimmed.to_owned()),
        Some(Ok(port)) => Ok(format!("{trimmed}:{port}")),
        None | Some(Err(_)) => Err(HeadersRefused::Host),
    }
}

/// Removes what belongs to one hop: the fixed list, and what `connection` names. `te: trailers`
/// stays, as gRPC needs it. Works for requests and responses.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        names::KEEP_ALIVE,
        names::PROXY_CONNECTION,
        names::HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what clients may not tell us.
pub fn strip_untrusted(headers: &mut HeaderMap, settings: &HttpSettings) {
    for name in &UNTRUSTED {
        headers.remove(name);
    }
    if settings.client_cert == ClientCert::Remove {
        headers.remove(names::X_FORWARDED_CLIENT_CERT);
    }
}

/// The client's address as far as it is known: the last entry of `x-forwarded-for`, else where the
/// connection came from. Telemetry and `remote_ip` rules use it; identity never does.
#[must_use]
pub fn remote(headers: &HeaderMap, source: IpAddr) -> IpAddr {
    headers
        .get_all(names::X_FORWARDED_FOR)
        .iter()
        .next_back()
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.rsplit(',').next())
        .and_then(|last| last.trim().parse::<IpAddr>().ok())
        .map_or(source, |address| address.to_canonical())
}

/// Sets `x-forwarded-proto` if it is absent (what comes out of a tunnel is clear text), and says
/// which scheme counts.
pub fn scheme(headers: &mut HeaderMap) -> &'static str {
    let https = headers
        .get(names::X_FORWARDED_PROTO)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"https"));
    if !headers.contains_key(names::X_FORWARDED_PROTO) {
        headers.insert(names::X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if https { "https" } else { "http" }
}

/// Adds `x-request-id` if it is absent: a random UUID (version 4).
pub fn request_id(headers: &mut HeaderMap, random: &mut impl FnMut() -> u64) {
    if headers.contains_key(names::X_REQUEST_ID) {
        return;
    }
    let (high, low) = (random(), random());
    // Version and variant bits of RFC 9562.
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    let text = format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    );
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(names::X_REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests;

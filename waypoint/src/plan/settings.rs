//! Settings of an HTTP chain.

use std::time::Duration;

use crate::plan::Name;

/// Settings of the HTTP connection manager that change what happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Path normalisation, applied before rules and routes and to what is forwarded.
    pub path: PathNormalization,
    /// Value of the `server` response header; `None` passes the upstream's through.
    pub server: Option<http::HeaderValue>,
    /// Make an `x-request-id` when there is none.
    pub generate_request_id: bool,
    /// Accept HTTP/1.0 requests.
    pub accept_http_10: bool,
    /// What to do with a client's `x-forwarded-client-cert`.
    pub client_cert: ClientCert,
    /// Names that `Upgrade` may carry (lower case). Anything else gets 403.
    pub upgrades: Vec<Name>,
    /// Pass `100-continue` through instead of answering it here.
    pub proxy_100_continue: bool,
    /// Add `x-forwarded-port`.
    pub append_forwarded_port: bool,
    /// Header names with an underscore.
    pub underscores: Underscores,
    /// Number of request headers allowed.
    pub max_headers: usize,
    /// Size of a request's header block, in bytes.
    pub max_header_bytes: usize,
    /// HTTP/2 streams a client may have open on one stream of HBONE.
    pub max_streams: Option<u32>,
    /// No byte in either direction of one request for so long: 408 or reset. `None`: no limit.
    pub stream_idle_timeout: Option<Duration>,
    /// From first header byte to end of the request. `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// From first byte to end of the request's headers. `None`: no limit.
    pub request_headers_timeout: Option<Duration>,
    /// Closes a client connection without requests for so long. `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// Closes a client connection this long after it began. `None`: no limit.
    pub max_connection_duration: Option<Duration>,
    /// Ends a request this long after it began. `None`: no limit.
    pub max_stream_duration: Option<Duration>,
    /// Do not send `x-envoy-upstream-service-time` and friends.
    pub suppress_envoy_headers: bool,
}

/// Envoy's default number of request headers.
pub const MAX_HEADERS: usize = 100;
/// Envoy's default size of a request's header block.
pub const MAX_HEADER_BYTES: usize = 60 * 1024;
/// Envoy's default idle timeout of a client connection.
pub const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            path: PathNormalization::default(),
            server: Some(http::HeaderValue::from_static("istio-envoy")),
            generate_request_id: true,
            accept_http_10: false,
            client_cert: ClientCert::Remove,
            upgrades: Vec::new(),
            proxy_100_continue: false,
            append_forwarded_port: false,
            underscores: Underscores::Allow,
            max_headers: MAX_HEADERS,
            max_header_bytes: MAX_HEADER_BYTES,
            max_streams: None,
            stream_idle_timeout: None,
            request_timeout: None,
            request_headers_timeout: None,
            idle_timeout: Some(CONNECTION_IDLE_TIMEOUT),
            max_connection_duration: None,
            max_stream_duration: None,
            suppress_envoy_headers: false,
        }
    }
}

/// Path normalisation as the control plane asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathNormalization {
    /// RFC 3986: decode unreserved characters, remove dot segments.
    pub normalize: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What happens to `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// What happens to `%2F` and `%5C` in a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay. Rules still see both readings; see `headers/path.rs`.
    #[default]
    Keep,
    /// The request is answered with 400.
    Reject,
    /// They are decoded, and the client is redirected to the decoded path.
    DecodeAndRedirect,
    /// They are decoded in place.
    Decode,
}

/// What happens to a client's `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientCert {
    /// Dropped.
    #[default]
    Remove,
    /// Forwarded as is, after a header filter has replaced its value.
    Forward,
}

/// What happens to header names with an underscore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Underscores {
    /// Forwarded.
    #[default]
    Allow,
    /// 400.
    Reject,
    /// The header is dropped.
    Drop,
}

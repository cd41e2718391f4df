//! Envoy's `%COMMAND(…)%` format strings, compiled. They make header values and access-log lines.
//!
//! A command that we do not know is an error when the configuration is compiled, never an empty
//! value at run time.

use http::HeaderName;

use crate::plan::Name;

/// A compiled format string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Name),
    Command(Command, Option<usize>),
}

/// A value that a format string can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `REQ(name?other)`: a request header, else another. Names may be pseudo headers, see
    /// [`HeaderRef`].
    Request(HeaderRef, Option<HeaderRef>),
    /// `REQ_WITHOUT_QUERY(…)`: as `REQ`, cut at the first `?`.
    RequestWithoutQuery(HeaderRef, Option<HeaderRef>),
    /// `RESP(name?other)`: a response header.
    Response(HeaderRef, Option<HeaderRef>),
    /// `TRAILER(name?other)`: a response trailer.
    Trailer(HeaderRef, Option<HeaderRef>),
    /// `START_TIME(format)`: when the request began. Without a format: RFC 3339 with milliseconds.
    StartTime(Option<Name>),
    /// `FILTER_STATE(io.istio.peer_principal…)` and `DOWNSTREAM_PEER_URI_SAN`: the peer's SPIFFE URI.
    PeerPrincipal,
    /// `FILTER_STATE(io.istio.local_principal…)` and `DOWNSTREAM_LOCAL_URI_SAN`: our SPIFFE URI.
    LocalPrincipal,
    /// One without an argument.
    Plain(Plain),
}

/// A header named in a format string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderRef {
    /// `:method`
    Method,
    /// `:path`
    Path,
    /// `:authority`
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status` (responses)
    Status,
    /// Any other.
    Named(HeaderName),
}

macro_rules! plain {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Commands without an argument.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Plain { $($(#[$doc])* $variant,)* }

        impl Plain {
            fn named(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

plain! {
    /// HTTP version of the request: `HTTP/1.1`, `HTTP/2`.
    Protocol = "PROTOCOL",
    /// Status sent to the client; 0 if none was.
    ResponseCode = "RESPONSE_CODE",
    /// Why that status.
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    /// Short response flags.
    ResponseFlags = "RESPONSE_FLAGS",
    /// Long response flags.
    ResponseFlagsLong = "RESPONSE_FLAGS_LONG",
    /// Why the connection ended.
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    /// Why the upstream's transport failed.
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    /// Body bytes from the client.
    BytesReceived = "BYTES_RECEIVED",
    /// Body bytes to the client.
    BytesSent = "BYTES_SENT",
    /// Milliseconds, whole request.
    Duration = "DURATION",
    /// Milliseconds until the request was read whole.
    RequestDuration = "REQUEST_DURATION",
    /// Milliseconds until the first byte from the upstream.
    ResponseDuration = "RESPONSE_DURATION",
    /// Milliseconds from the first to the last byte of the answer.
    ResponseTxDuration = "RESPONSE_TX_DURATION",
    /// Address of the endpoint.
    UpstreamHost = "UPSTREAM_HOST",
    /// Name of the cluster.
    UpstreamCluster = "UPSTREAM_CLUSTER",
    /// Name of the cluster.
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    /// Our address on the upstream connection.
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    /// Tries of this request.
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    /// The destination the client named.
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    /// The same without the port.
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    /// The port alone.
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    /// The client's address, as forwarded.
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    /// The same without the port.
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    /// The address that the connection came from.
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    /// The same without the port.
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    /// TLS server name.
    RequestedServerName = "REQUESTED_SERVER_NAME",
    /// Name of the route.
    RouteName = "ROUTE_NAME",
    /// Trace id.
    TraceId = "TRACE_ID",
    /// Name of this host.
    Hostname = "HOSTNAME",
    /// gRPC status, as text.
    GrpcStatus = "GRPC_STATUS",
    /// gRPC status, as a number.
    GrpcStatusNumber = "GRPC_STATUS_NUMBER",
}

/// Why a format string was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` without its partner, or a `(` without its `)`.
    #[error("format {0:?} has an unfinished command")]
    Unfinished(String),
    /// A command we do not know.
    #[error("format command %{0}% is not supported")]
    Unknown(String),
    /// A name in a command is no header name.
    #[error("{0:?} is no header name")]
    Header(String),
}

/// Where the values of a format string come from.
pub trait Values {
    /// Appends the value of a command to `out` and says whether there is one.
    fn append(&self, command: &Command, out: &mut Vec<u8>) -> bool;
}

impl Format {
    /// Compiles a format string. `%%` is one percent sign.
    ///
    /// # Errors
    /// If a command is unfinished, unknown or names an invalid header.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (command, limit, after) =
                parse_command(after).ok_or_else(|| FormatError::Unfinished(text.to_owned()))??;
            if !literal.is_empty() {
                pieces.push(Piece::Text(Name::from(literal.as_str())));
                literal.clear();
            }
            pieces.push(Piece::Command(command, limit));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(Name::from(literal.as_str())));
        }
        Ok(Self { pieces })
    }

    /// The value, if it needs nothing from a request.
    #[must_use]
    pub fn constant(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the rendered text. A missing value becomes `missing` (`-` in logs, nothing in
    /// headers).
    pub fn render(&self, values: &impl Values, missing: &str, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Command(command, limit) => {
                    let start = out.len();
                    if !values.append(command, out) {
                        out.truncate(start);
                        out.extend_from_slice(missing.as_bytes());
                    }
                    if let Some(limit) = limit {
                        out.truncate(start.saturating_add(*limit).min(out.len()));
                    }
                }
            }
        }
    }

    /// Whether the format is one command and nothing else: then JSON keeps numbers and nulls.
    #[must_use]
    pub fn single(&self) -> Option<&Command> {
        match self.pieces.as_slice() {
            [Piece::Command(command, None)] => Some(command),
            _ => None,
        }
    }
}

/// `NAME(argument):limit%…` → command, limit, what follows. `None`: unfinished.
#[expect(clippy::type_complexity, reason = "a parser's private result")]
fn parse_command(text: &str) -> Option<Result<(Command, Option<usize>, &str), FormatError>> {
    let name_end = text.find(['(', '%', ':'])?;
    let (name, mut rest) = text.split_at_checked(name_end)?;
    let mut argument = None;
    if let Some(after) = rest.strip_prefix('(') {
        let close = after.find(')')?;
        argument = after.get(..close);
        rest = after.get(close + 1..)?;
    }
    let mut limit = None;
    if let Some(after) = rest.strip_prefix(':') {
        let end = after.find('%')?;
        limit = Some(after.get(..end)?.parse().ok()?);
        rest = after.get(end..)?;
    }
    let rest = rest.strip_prefix('%')?;
    Some(command(name, argument).map(|command| (command, limit, rest)))
}

fn command(name: &str, argument: Option<&str>) -> Result<Command, FormatError> {
    let unknown = || {
        FormatError::Unknown(match argument {
            Some(argument) => format!("{name}({argument})"),
            None => name.to_owned(),
        })
    };
    let headers = |argument: Option<&str>| {
        let argument = argument.ok_or_else(unknown)?;
        let (first, other) = match argument.split_once('?') {
            Some((first, other)) => (first, Some(header(other)?)),
            None => (argument, None),
        };
        Ok::<_, FormatError>((header(first)?, other))
    };
    let pair = |make: fn(HeaderRef, Option<HeaderRef>) -> Command| {
        headers(argument).map(|(first, other)| make(first, other))
    };
    match name {
        "REQ" => pair(Command::Request),
        "REQ_WITHOUT_QUERY" => pair(Command::RequestWithoutQuery),
        "RESP" => pair(Command::Response),
        "TRAILER" => pair(Command::Trailer),
        "START_TIME" => Ok(Command::StartTime(argument.map(Name::from))),
        "FILTER_STATE" => {
            let key = argument.and_then(|argument| argument.split(':').next());
            match key {
                Some("io.istio.peer_principal") => Ok(Command::PeerPrincipal),
                Some("io.istio.local_principal") => Ok(Command::LocalPrincipal),
                _ => Err(unknown()),
            }
        }
        "DOWNSTREAM_PEER_URI_SAN" => Ok(Command::PeerPrincipal),
        "DOWNSTREAM_LOCAL_URI_SAN" => Ok(Command::LocalPrincipal),
        _ => Plain::named(name)
            .filter(|_| argument.is_none())
            .map(Command::Plain)
            .ok_or_else(unknown),
    }
}

fn header(name: &str) -> Result<HeaderRef, FormatError> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => HeaderRef::Method,
        ":path" => HeaderRef::Path,
        ":authority" | "host" => HeaderRef::Authority,
        ":scheme" => HeaderRef::Scheme,
        ":status" => HeaderRef::Status,
        other => HeaderRef::Named(
            HeaderName::from_bytes(other.as_bytes())
                .map_err(|_| FormatError::Header(name.to_owned()))?,
        ),
    })
}

#[cfg(test)]
mod tests;

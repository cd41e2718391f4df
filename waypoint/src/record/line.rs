//! The access-log line of a request.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use ambit_observe::access::{Line, timestamp};
use http::HeaderMap;

use super::{Record, or_dash, protocol, shown};
use crate::endpoints::InFlight;
use crate::format::{Command, Format, HeaderRef, Plain, Values};
use crate::plan::LogFormat;

/// The line, with its newline.
pub(super) fn of(record: &Record, format: &LogFormat, took: Duration) -> Vec<u8> {
    let values = Fields { record, took };
    match format {
        LogFormat::Text(format) => {
            let mut line = Vec::with_capacity(256);
            format.render(&values, "-", &mut line);
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            line
        }
        LogFormat::Json(fields) => {
            let mut line = Line::object();
            for (key, format) in fields {
                put(&mut line, key, format, &values);
            }
            line.finish()
        }
        LogFormat::Default => {
            let mut line = Line::object();
            for (key, command) in DEFAULT.iter() {
                let mut text = Vec::new();
                let found = values.append(command, &mut text);
                put_value(&mut line, key, found.then_some(&*text), is_number(command));
            }
            line.finish()
        }
    }
}

/// Istio's default JSON keys, in its order.
static DEFAULT: LazyLock<Vec<(&str, Command)>> = LazyLock::new(|| {
    vec![
        ("start_time", Command::StartTime(None)),
        ("method", Command::Request(HeaderRef::Method, None)),
        ("path", Command::Request(HeaderRef::Path, None)),
        ("protocol", Command::Plain(Plain::Protocol)),
        ("response_code", Command::Plain(Plain::ResponseCode)),
        ("response_flags", Command::Plain(Plain::ResponseFlags)),
        (
            "response_code_details",
            Command::Plain(Plain::ResponseCodeDetails),
        ),
        (
            "connection_termination_details",
            Command::Plain(Plain::ConnectionTerminationDetails),
        ),
        (
            "upstream_transport_failure_reason",
            Command::Plain(Plain::UpstreamTransportFailureReason),
        ),
        ("bytes_received", Command::Plain(Plain::BytesReceived)),
        ("bytes_sent", Command::Plain(Plain::BytesSent)),
        ("duration", Command::Plain(Plain::Duration)),
        (
            "upstream_service_time",
            Command::Plain(Plain::ResponseDuration),
        ),
        (
            "x_forwarded_for",
            Command::Request(
                HeaderRef::Named(crate::headers::names::X_FORWARDED_FOR),
                None,
            ),
        ),
        (
            "user_agent",
            Command::Request(HeaderRef::Named(http::header::USER_AGENT), None),
        ),
        (
            "request_id",
            Command::Request(HeaderRef::Named(crate::headers::names::X_REQUEST_ID), None),
        ),
        (
            "traceparent",
            Command::Request(HeaderRef::Named(crate::headers::names::TRACEPARENT), None),
        ),
        ("authority", Command::Request(HeaderRef::Authority, None)),
        ("upstream_host", Command::Plain(Plain::UpstreamHost)),
        ("upstream_cluster", Command::Plain(Plain::UpstreamCluster)),
        (
            "downstream_local_address",
            Command::Plain(Plain::DownstreamLocalAddress),
        ),
        (
            "downstream_remote_address",
            Command::Plain(Plain::DownstreamRemoteAddress),
        ),
        ("downstream_peer_uri_san", Command::PeerPrincipal),
        (
            "requested_server_name",
            Command::Plain(Plain::RequestedServerName),
        ),
        ("route_name", Command::Plain(Plain::RouteName)),
    ]
});

fn is_number(command: &Command) -> bool {
    matches!(
        command,
        Command::Plain(
            Plain::ResponseCode
                | Plain::BytesReceived
                | Plain::BytesSent
                | Plain::Duration
                | Plain::ResponseDuration
                | Plain::UpstreamRequestAttemptCount
        )
    )
}

fn put(line: &mut Line, key: &str, format: &Format, values: &Fields<'_>) {
    if let Some(command) = format.single() {
        let mut text = Vec::new();
        let found = values.append(command, &mut text);
        put_value(line, key, found.then_some(&*text), is_number(command));
    } else {
        let mut text = Vec::new();
        format.render(values, "-", &mut text);
        put_value(line, key, Some(&text), false);
    }
}

fn put_value(line: &mut Line, key: &str, value: Option<&[u8]>, number: bool) {
    match value {
        None => line.text_or_null(key, None),
        Some(value) if number => line.bare(key, String::from_utf8_lossy(value)),
        Some(value) => line.text(key, &String::from_utf8_lossy(value)),
    }
}

struct Fields<'a> {
    record: &'a Record,
    took: Duration,
}

impl Values for Fields<'_> {
    fn append(&self, command: &Command, out: &mut Vec<u8>) -> bool {
        let record = self.record;
        match command {
            Command::Request(first, other) => {
                self.request(first, out)
                    || other.as_ref().is_some_and(|other| self.request(other, out))
            }
            Command::RequestWithoutQuery(first, other) => {
                let start = out.len();
                let found = self.request(first, out)
                    || other.as_ref().is_some_and(|other| self.request(other, out));
                let query = out
                    .get(start..)
                    .and_then(|text| text.iter().position(|byte| *byte == b'?'));
                if let Some(query) = query {
                    out.truncate(start + query);
                }
                found
            }
            Command::Response(first, other) => {
                self.response(first, out)
                    || other
                        .as_ref()
                        .is_some_and(|other| self.response(other, out))
            }
            Command::Trailer(..) => false,
            Command::StartTime(_) => {
                out.extend_from_slice(timestamp(record.began_at).as_bytes());
                true
            }
            Command::PeerPrincipal => text(record.connection.peer(), out),
            Command::LocalPrincipal => text(Some(record.connection.local()), out),
            Command::Plain(plain) => self.plain(*plain, out),
        }
    }
}

impl Fields<'_> {
    fn request(&self, header: &HeaderRef, out: &mut Vec<u8>) -> bool {
        let record = self.record;
        match header {
            HeaderRef::Method => text(Some(record.method.as_str()), out),
            HeaderRef::Path => text(Some(&record.path), out),
            HeaderRef::Authority => text(Some(&record.authority), out),
            HeaderRef::Scheme => text(Some("http"), out),
            HeaderRef::Status => false,
            HeaderRef::Named(name) => named(record.headers.as_ref(), name, out),
        }
    }

    fn response(&self, header: &HeaderRef, out: &mut Vec<u8>) -> bool {
        match header {
            HeaderRef::Status => show(self.record.status, out),
            HeaderRef::Named(name) => named(self.record.response_headers.as_ref(), name, out),
            HeaderRef::Method | HeaderRef::Path | HeaderRef::Authority | HeaderRef::Scheme => false,
        }
    }

    fn plain(&self, plain: Plain, out: &mut Vec<u8>) -> bool {
        let record = self.record;
        let connection = &record.connection;
        match plain {
            Plain::Protocol => text(Some(protocol(record.version)), out),
            Plain::ResponseCode => show(record.status, out),
            Plain::ResponseCodeDetails => text(Some(&record.details), out),
            Plain::ResponseFlags | Plain::ResponseFlagsLong => {
                text(Some(&shown(&record.flags)), out)
            }
            Plain::UpstreamTransportFailureReason => text(record.transport_failure.as_deref(), out),
            Plain::BytesReceived => show(record.progress.bytes(), out),
            Plain::BytesSent => show(record.bytes_sent, out),
            Plain::Duration => show(self.took.as_millis(), out),
            Plain::ResponseDuration => record
                .service_time
                .is_some_and(|time| show(time.as_millis(), out)),
            Plain::UpstreamHost => {
                let endpoint = record.endpoint.as_ref().map(InFlight::endpoint);
                endpoint.is_some_and(|endpoint| show(endpoint.address, out))
            }
            Plain::UpstreamCluster | Plain::UpstreamClusterRaw => {
                text(record.cluster.as_ref().map(|cluster| &*cluster.name), out)
            }
            Plain::UpstreamRequestAttemptCount => show(record.tries, out),
            Plain::DownstreamLocalAddress => show(connection.destination(), out),
            Plain::DownstreamLocalAddressWithoutPort => show(connection.destination().ip(), out),
            Plain::DownstreamLocalPort => show(connection.destination().port(), out),
            Plain::DownstreamRemoteAddress | Plain::DownstreamDirectRemoteAddress => {
                show(connection.source(), out)
            }
            Plain::DownstreamRemoteAddressWithoutPort
            | Plain::DownstreamDirectRemoteAddressWithoutPort => {
                show(connection.source().ip(), out)
            }
            Plain::RouteName => {
                let name = record.route.as_ref().map(|route| &route.name);
                name.is_some_and(|name| text(Some(or_dash(Some(name))), out))
            }
            Plain::GrpcStatus | Plain::GrpcStatusNumber => {
                record.grpc_status.is_some_and(|status| show(status, out))
            }
            Plain::ConnectionTerminationDetails
            | Plain::RequestDuration
            | Plain::ResponseTxDuration
            | Plain::UpstreamLocalAddress
            | Plain::RequestedServerName
            | Plain::TraceId
            | Plain::Hostname => false,
        }
    }
}

fn text(value: Option<&str>, out: &mut Vec<u8>) -> bool {
    match value {
        Some(value) if !value.is_empty() => {
            out.extend_from_slice(value.as_bytes());
            true
        }
        _ => false,
    }
}

fn show(value: impl std::fmt::Display, out: &mut Vec<u8>) -> bool {
    write!(out, "{value}").is_ok()
}

fn named(headers: Option<&HeaderMap>, name: &http::HeaderName, out: &mut Vec<u8>) -> bool {
    let Some(value) = headers.and_then(|headers| headers.get(name)) else {
        return false;
    };
    // A log line must not be broken by what a client sends.
    for character in String::from_utf8_lossy(value.as_bytes()).chars() {
        if character.is_control() {
            out.push(b'?');
        } else {
            let mut text = String::new();
            if text.write_char(character).is_ok() {
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    true
}

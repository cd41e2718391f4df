//! Access records: one line for each connection, in Istio's keys.

pub mod filter;

use std::fmt::{self, Display, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::logging::{LogFormat, Logging};
use crate::writer::LogWriter;

use self::filter::Filter;

/// Most characters of one value. The longest legal value is an identity of some 500; a longer one
/// comes from a peer's mischief and would only fill the disk.
const MAX_VALUE: usize = 2048;

/// RFC 3339 in UTC with microseconds.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Builds one log line.
///
/// # Guarantees
/// Exactly one line whatever the values hold: line breaks and tabs are escaped.
#[derive(Debug)]
pub struct Line {
    format: LogFormat,
    out: String,
    /// Whether a field was written, for the separator.
    fields: bool,
}

impl Line {
    /// Starts a line with the time, `level`, `target` (`scope` in JSON) and `message`.
    pub fn begin(format: LogFormat, level: &str, target: &str, message: &str) -> Self {
        let mut line = Self {
            format,
            out: String::with_capacity(512),
            fields: false,
        };
        let now = timestamp(SystemTime::now());
        match format {
            LogFormat::Plain => {
                let _ = write!(line.out, "{now}\t{level}\t{target}\t");
                push_escaped(&mut line.out, message);
            }
            LogFormat::Json => {
                let _ = write!(line.out, "{{\"level\":\"{level}\",\"time\":\"{now}\"");
                line.fields = true;
                line.text("scope", target);
                line.text("message", message);
            }
        }
        line
    }

    /// Starts a JSON object with nothing in it, for records of another shape.
    pub fn object() -> Self {
        let out = String::from("{");
        Self {
            format: LogFormat::Json,
            out,
            fields: false,
        }
    }

    /// Adds a string (quoted in both formats).
    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.push('"');
        push_escaped(&mut self.out, value);
        self.out.push('"');
    }

    /// Adds a value by its `Display`: bare in plain lines, a string in JSON.
    pub fn display(&mut self, key: &str, value: impl Display) {
        self.key(key);
        let quoted = self.format == LogFormat::Json;
        if quoted {
            self.out.push('"');
        }
        // Writing to a String cannot fail.
        let _ = write!(
            Escape {
                out: &mut self.out,
                left: MAX_VALUE
            },
            "{value}"
        );
        if quoted {
            self.out.push('"');
        }
    }

    /// Adds a number, a boolean or `null`, bare in both formats.
    pub fn bare(&mut self, key: &str, value: impl Display) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    /// Adds a string, or `null` in JSON and nothing in plain lines.
    pub fn text_or_null(&mut self, key: &str, value: Option<&str>) {
        match (value, self.format) {
            (Some(value), _) => self.text(key, value),
            (None, LogFormat::Json) => self.bare(key, "null"),
            (None, LogFormat::Plain) => {}
        }
    }

    /// The line with its newline.
    pub fn finish(mut self) -> Vec<u8> {
        if self.format == LogFormat::Json {
            self.out.push('}');
        }
        self.out.push('\n');
        self.out.into_bytes()
    }

    fn key(&mut self, key: &str) {
        let first = !std::mem::replace(&mut self.fields, true);
        let (before, behind) = match (self.format, first) {
            (LogFormat::Plain, true) => ("\t", "="),
            (LogFormat::Plain, false) => (" ", "="),
            (LogFormat::Json, true) => ("\"", "\":"),
            (LogFormat::Json, false) => (",\"", "\":"),
        };
        for part in [before, key, behind] {
            self.out.push_str(part);
        }
    }
}

/// `at` as RFC 3339 in UTC with microseconds.
pub fn timestamp(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(TIME).unwrap_or_default()
}

fn push_escaped(out: &mut String, text: &str) {
    let _ = Escape {
        out,
        left: MAX_VALUE,
    }
    .write_str(text);
}

/// Writes text so that it fits inside a JSON string, and on one line.
struct Escape<'a> {
    out: &'a mut String,
    left: usize,
}

impl fmt::Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Nearly every text, and none of them cut.
        if text.len() <= self.left && text.bytes().all(is_plain) {
            self.left -= text.len();
            self.out.push_str(text);
            return Ok(());
        }
        for c in text.chars() {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                // C1 controls and the Unicode line separators also break lines for some readers.
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                    write!(self.out, "\\u{:04x}", u32::from(c))?;
                }
                c => self.out.push(c),
            }
        }
        Ok(())
    }
}

/// Whether a byte is a character that needs no escape.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// From which side of the connection a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// The client's side.
    #[default]
    Outbound,
    /// The server's side.
    Inbound,
}

impl Direction {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What the log says of one end. Empty texts are left out.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the names are the keys of the log")]
pub struct Endpoint<'a> {
    pub workload: &'a str,
    pub namespace: &'a str,
    /// Only when mutual TLS proved it.
    pub identity: Option<&'a dyn Shown>,
    pub cluster: &'a str,
}

/// `Display` and `Debug`, so that records can be shown in tests without formatting first.
pub trait Shown: Display + fmt::Debug {}
impl<T: Display + fmt::Debug> Shown for T {}

/// One finished (or refused) TCP connection, with the keys of Istio's node proxy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'a> {
    /// The client's address.
    pub source_address: Option<SocketAddr>,
    /// The client.
    pub source: Endpoint<'a>,
    /// The address connected to: the next hop outbound, our own 15008 inbound.
    pub destination_address: Option<SocketAddr>,
    /// The tunnel's authority, when there was a tunnel.
    pub hbone_address: Option<&'a dyn Shown>,
    /// Host name of the service.
    pub service: &'a str,
    /// The server.
    pub destination: Endpoint<'a>,
    /// Which side writes.
    pub direction: Direction,
    /// Bytes that the near application sent, seen from this direction.
    pub bytes_sent: u64,
    /// Bytes that it received.
    pub bytes_received: u64,
    /// From accept to close.
    pub duration: Duration,
    /// Why it failed, if it did.
    pub error: Option<&'a dyn Shown>,
    /// Its place in a trace. Not in the log.
    pub trace: Option<Trace>,
}

/// The place of a connection in a trace (W3C Trace Context). No id is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace_id: u128,
    /// This connection, as one proxy sees it.
    pub span_id: u64,
    /// What caused it, if that is known.
    pub parent_id: Option<u64>,
}

/// Takes records besides the log.
pub trait Sink: fmt::Debug + Send + Sync {
    /// Takes a record on the thread of its connection, so without waiting; `admitted` says whether it is one for the log by the
    /// filter by expression.
    fn take(&self, record: &Record<'_>, admitted: bool);
}

impl Record<'_> {
    /// The line of this record: `connection complete`, at level `error` if it failed.
    pub fn line(&self, format: LogFormat) -> Vec<u8> {
        let level = if self.error.is_some() {
            "error"
        } else {
            "info"
        };
        let mut line = Line::begin(format, level, TARGET, "connection complete");
        if let Some(address) = self.source_address {
            line.display("src.addr", address);
        }
        let keys = [
            "src.workload",
            "src.namespace",
            "src.identity",
            "src.cluster",
        ];
        self.source.write(keys, &mut line);
        if let Some(address) = self.destination_address {
            line.display("dst.addr", address);
        }
        if let Some(authority) = self.hbone_address {
            line.display("dst.hbone_addr", authority);
        }
        if !self.service.is_empty() {
            line.text("dst.service", self.service);
        }
        let keys = [
            "dst.workload",
            "dst.namespace",
            "dst.identity",
            "dst.cluster",
        ];
        self.destination.write(keys, &mut line);
        line.text("direction", self.direction.as_str());
        line.bare("bytes_sent", self.bytes_sent);
        line.bare("bytes_recv", self.bytes_received);
        line.text("duration", &format!("{}ms", self.duration.as_millis()));
        if let Some(error) = self.error {
            line.text("error", &error.to_string());
        }
        line.finish()
    }
}

impl Record<'_> {
    /// Hands out every text of the record that is there, by its key in the log, but the error.
    pub fn each(&self, mut text: impl FnMut(&'static str, &str)) {
        let mut known = |key, value: &str| {
            if !value.is_empty() {
                text(key, value);
            }
        };
        let shown = |value: Option<&dyn Shown>| value.map(ToString::to_string).unwrap_or_default();
        let address =
            |value: Option<SocketAddr>| value.map(|at| at.to_string()).unwrap_or_default();
        known("src.addr", &address(self.source_address));
        known("src.workload", self.source.workload);
        known("src.namespace", self.source.namespace);
        known("src.identity", &shown(self.source.identity));
        known("src.cluster", self.source.cluster);
        known("dst.addr", &address(self.destination_address));
        known("dst.hbone_addr", &shown(self.hbone_address));
        known("dst.service", self.service);
        known("dst.workload", self.destination.workload);
        known("dst.namespace", self.destination.namespace);
        known("dst.identity", &shown(self.destination.identity));
        known("dst.cluster", self.destination.cluster);
        known("direction", self.direction.as_str());
    }
}

impl Endpoint<'_> {
    fn write(&self, [workload, namespace, identity, cluster]: [&str; 4], line: &mut Line) {
        let mut text = |key: &str, value: &str| {
            if !value.is_empty() {
                line.text(key, value);
            }
        };
        text(workload, self.workload);
        text(namespace, self.namespace);
        if let Some(proved) = self.identity {
            text(identity, &proved.to_string());
        }
        text(cluster, self.cluster);
    }
}

/// The log target of access records, for level filters (`access=off`).
pub const TARGET: &str = "access";

/// Where access records go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    writer: LogWriter,
    format: LogFormat,
    filter: Option<Arc<Filter>>,
    sink: Option<Arc<dyn Sink>>,
}

impl AccessLog {
    /// Through the process's log queue, in its format.
    pub fn new(logging: &Logging) -> Self {
        Self {
            writer: logging.writer().clone(),
            format: logging.format(),
            filter: None,
            sink: None,
        }
    }

    /// Through `writer`, in `format`.
    pub fn to(writer: LogWriter, format: LogFormat) -> Self {
        Self {
            writer,
            format,
            filter: None,
            sink: None,
        }
    }

    /// The same, for the records alone that `filter` admits, if there is one.
    #[must_use]
    pub fn filtered(self, filter: Option<Filter>) -> Self {
        Self {
            filter: filter.map(Arc::new),
            ..self
        }
    }

    /// The same, with every record also given to `sink`, if there is one.
    #[must_use]
    pub fn with_sink(self, sink: Option<Arc<dyn Sink>>) -> Self {
        Self { sink, ..self }
    }

    /// Writes `record` unless the level filter is above it, or the filter by expression does not admit it.
    pub fn write(&self, record: &Record<'_>) {
        let wanted = match record.error {
            None => tracing::enabled!(target: "access", tracing::Level::INFO),
            Some(_) => tracing::enabled!(target: "access", tracing::Level::ERROR),
        };
        if !wanted && self.sink.is_none() {
            return;
        }
        let admits = |filter: &Arc<Filter>| filter.admits(record);
        let admitted = self.filter.as_ref().is_none_or(admits);
        if let Some(sink) = &self.sink {
            sink.take(record, admitted);
        }
        if wanted && admitted {
            self.writer.submit(record.line(self.format));
        }
    }

    /// Writes a line of another shape; it must end with a newline.
    pub fn write_line(&self, line: Vec<u8>) {
        self.writer.submit(line);
    }

    /// How lines look.
    pub fn format(&self) -> LogFormat {
        self.format
    }
}

#[cfg(test)]
mod tests;

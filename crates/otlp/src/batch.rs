//! Records → requests of the two services.

use std::time::SystemTime;

use ambit_observe::access::Direction;
use ambit_proto::otlp::{
    AnyValue, ExportLogsServiceRequest, ExportTraceServiceRequest, InstrumentationScope, KeyValue,
    LogRecord, Resource, ResourceLogs, ResourceSpans, ScopeLogs, ScopeSpans, SeverityNumber, Span,
    Status, any_value, span, status,
};

use crate::finished::{Finished, Value};

/// Bit 0 of a trace's flags: somebody records it.
const SAMPLED: u32 = 1;

/// The message of every access record.
const BODY: &str = "connection complete";

/// The log records of a batch; `None` without any.
pub(crate) fn logs(
    batch: &[Finished],
    resource: &[(String, String)],
) -> Option<ExportLogsServiceRequest> {
    let records: Vec<LogRecord> = batch
        .iter()
        .filter(|record| record.logged)
        .map(log)
        .collect();
    if records.is_empty() {
        return None;
    }
    Some(ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(self::resource(resource)),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records: records,
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    })
}

/// The spans of a batch; `None` without any.
pub(crate) fn spans(
    batch: &[Finished],
    resource: &[(String, String)],
) -> Option<ExportTraceServiceRequest> {
    let spans: Vec<Span> = batch
        .iter()
        .filter(|record| record.traced)
        .filter_map(span)
        .collect();
    if spans.is_empty() {
        return None;
    }
    Some(ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(self::resource(resource)),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope()),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    })
}

fn log(record: &Finished) -> LogRecord {
    let (number, text) = match record.error {
        Some(_) => (SeverityNumber::Error, "error"),
        None => (SeverityNumber::Info, "info"),
    };
    let mut attributes = attributes(record);
    let duration = format!("{}ms", record.duration.as_millis());
    attributes.push(pair("duration", text_value(&duration)));
    let ended = nanoseconds(record.ended);
    let mut log = LogRecord {
        time_unix_nano: ended,
        observed_time_unix_nano: ended,
        severity_number: number.into(),
        severity_text: text.to_owned(),
        body: Some(text_value(BODY)),
        attributes,
        ..LogRecord::default()
    };
    if let Some(trace) = record.trace {
        log.trace_id = trace.trace_id.to_be_bytes().to_vec();
        log.span_id = trace.span_id.to_be_bytes().to_vec();
        log.flags = if record.traced { SAMPLED } else { 0 };
    }
    log
}

fn span(record: &Finished) -> Option<Span> {
    let trace = record.trace?;
    let (name, kind) = match record.direction {
        Direction::Outbound => ("outbound connection", span::SpanKind::Client),
        Direction::Inbound => ("inbound connection", span::SpanKind::Server),
    };
    let parent = trace.parent_id.map(u64::to_be_bytes);
    let status = record.error.as_ref().map(|error| Status {
        message: error.clone(),
        code: status::StatusCode::Error.into(),
    });
    Some(Span {
        trace_id: trace.trace_id.to_be_bytes().to_vec(),
        span_id: trace.span_id.to_be_bytes().to_vec(),
        parent_span_id: parent.map(|id| id.to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanoseconds(record.started()),
        end_time_unix_nano: nanoseconds(record.ended),
        attributes: attributes(record),
        status,
        ..Span::default()
    })
}

fn attributes(record: &Finished) -> Vec<KeyValue> {
    let value = |value: &Value| match value {
        Value::Text(text) => text_value(text),
        Value::Number(number) => AnyValue {
            // More than 2^63 bytes no connection carries.
            value: Some(any_value::Value::IntValue(
                i64::try_from(*number).unwrap_or(i64::MAX),
            )),
        },
    };
    let known = record.attributes.iter();
    let mut attributes: Vec<_> = known.map(|(key, is)| pair(key, value(is))).collect();
    if let Some(error) = &record.error {
        attributes.push(pair("error", text_value(error)));
    }
    attributes
}

fn resource(known: &[(String, String)]) -> Resource {
    Resource {
        attributes: known
            .iter()
            .map(|(key, value)| pair(key, text_value(value)))
            .collect(),
        ..Resource::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "ambit".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn pair(key: &str, value: AnyValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
    }
}

fn text_value(text: &str) -> AnyValue {
    AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    }
}

fn nanoseconds(at: SystemTime) -> u64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

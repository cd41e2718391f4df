//! One event as one line, in Istio's two shapes.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::LogFormat;
use super::filter::OWN_PREFIX;
use crate::access::Line;

/// Fields of a span, as `key=value` separated by spaces.
#[derive(Default)]
pub(super) struct SpanFields(String);

impl Visit for SpanFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{gap}{}={value:?}", field.name());
    }
}

/// Adds one span, as `name{fields}`, to the context of a line.
pub(super) fn push_span(context: &mut String, name: &str, fields: Option<&SpanFields>) {
    let gap = if context.is_empty() { "" } else { ":" };
    let _ = match fields {
        Some(SpanFields(fields)) if !fields.is_empty() => {
            write!(context, "{gap}{name}{{{fields}}}")
        }
        _ => write!(context, "{gap}{name}"),
    };
}

/// The whole line, with its newline.
pub(super) fn event_line(event: &Event<'_>, spans: &str, format: LogFormat) -> Vec<u8> {
    let mut parts = Parts::default();
    event.record(&mut parts);
    let metadata = event.metadata();
    let target = metadata.target().trim_start_matches(OWN_PREFIX);
    let mut line = Line::begin(
        format,
        level_name(*metadata.level()),
        target,
        &parts.message,
    );
    if !spans.is_empty() {
        line.text("span", spans);
    }
    for (name, value) in &parts.fields {
        match value {
            Value::Text(text) => line.text(name, text),
            Value::Bare(text) => line.bare(name, text),
            Value::Shown(text) => line.display(name, text),
        }
    }
    line.finish()
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

enum Value {
    Text(String),
    /// A number or a boolean.
    Bare(String),
    /// Formatted by Display or Debug.
    Shown(String),
}

#[derive(Default)]
struct Parts {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Visit for Parts {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields
            .push((field.name(), Value::Bare(value.to_string())));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields
            .push((field.name(), Value::Bare(value.to_string())));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields
            .push((field.name(), Value::Bare(value.to_string())));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.fields
                .push((field.name(), Value::Text(value.to_owned())));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.fields.push((field.name(), Value::Text(text)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.push((field.name(), Value::Shown(text)));
        }
    }
}

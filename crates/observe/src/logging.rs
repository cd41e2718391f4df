//! The `tracing` subscriber: levels that can change at run time, lines through [`LogWriter`].

mod filter;
mod format;

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;
use tracing::{Event, Subscriber, span};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, filter::Targets, reload};

pub use self::filter::{Filter, FilterError};

use crate::metrics::{self, Descriptor, Kind};
use crate::writer::LogWriter;

/// How lines look (`LOG_FORMAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Tab-separated text for people.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The format for a `LOG_FORMAT` value; anything but `json` is plain.
    pub fn named(name: &str) -> Self {
        if name.eq_ignore_ascii_case("json") {
            Self::Json
        } else {
            Self::Plain
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// Configuration: the filter text is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Environment: no thread for the writer.
    #[error("cannot start the log writer")]
    Writer(#[source] io::Error),
    /// Us: logging was set up before in this process.
    #[error("logging is already set up")]
    Twice,
}

/// The process's logging. Cheap to clone.
#[derive(Clone)]
pub struct Logging {
    writer: LogWriter,
    format: LogFormat,
    levels: Arc<Levels>,
}

struct Levels {
    /// What the process started with; `reset` returns to it.
    initial: Filter,
    current: Mutex<Filter>,
    reload: reload::Handle<Targets, Registry>,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging")
            .field("levels", &self.levels())
            .finish_non_exhaustive()
    }
}

impl Logging {
    /// Installs the subscriber of this process, writing to standard output.
    ///
    /// `filter` has the form of `RUST_LOG`: `info`, `warn,xds=debug`. Empty means `info`.
    ///
    /// # Errors
    /// See [`LoggingError`].
    pub fn install(format: LogFormat, filter: &str) -> Result<Self, LoggingError> {
        let (logging, subscriber) = Self::build(format, filter, io::stdout())?;
        tracing::subscriber::set_global_default(subscriber)
            .map_err(|_already| LoggingError::Twice)?;
        Ok(logging)
    }

    /// The same without installing it, and with any output, for tests.
    ///
    /// # Errors
    /// See [`LoggingError`].
    pub fn build(
        format: LogFormat,
        filter: &str,
        output: impl Write + Send + 'static,
    ) -> Result<(Self, impl Subscriber + Send + Sync + 'static), LoggingError> {
        let initial = Filter::parse(if filter.is_empty() { "info" } else { filter })?;
        let writer = LogWriter::start(output).map_err(LoggingError::Writer)?;
        let (layer, reload) = reload::Layer::new(initial.targets());
        let lines = Lines {
            writer: writer.clone(),
            format,
        };
        let subscriber = Registry::default().with(layer).with(lines);
        let levels = Levels {
            current: Mutex::new(initial.clone()),
            initial,
            reload,
        };
        Ok((
            Self {
                writer,
                format,
                levels: Arc::new(levels),
            },
            subscriber,
        ))
    }

    /// The queue that lines go through.
    pub fn writer(&self) -> &LogWriter {
        &self.writer
    }

    /// How lines look.
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// The levels in force.
    pub fn levels(&self) -> String {
        self.levels.current.lock().to_string()
    }

    /// Adds to the levels in force: `debug` or `xds=debug,access=off`.
    ///
    /// # Errors
    /// When `change` is not of that form; the levels then stay as they are.
    pub fn change_levels(&self, change: &str) -> Result<(), FilterError> {
        let mut current = self.levels.current.lock();
        let next = current.with(&Filter::parse(change)?);
        self.apply(&mut current, next);
        Ok(())
    }

    /// Returns to the levels of the start.
    pub fn reset_levels(&self) {
        let mut current = self.levels.current.lock();
        self.apply(&mut current, self.levels.initial.clone());
    }

    /// Adds `ambit_log_lines_dropped_total`: lines that found the queue full.
    pub fn register(&self, registry: &metrics::Registry) {
        let descriptor = Descriptor {
            name: "ambit_log_lines_dropped",
            help: "Log lines dropped because the output was too slow (unstable).",
            kind: Kind::Counter,
        };
        let writer = self.writer.clone();
        registry.computed(descriptor, move || {
            Some(u32::try_from(writer.dropped()).map_or(f64::from(u32::MAX), f64::from))
        });
    }

    fn apply(&self, current: &mut Filter, next: Filter) {
        // Fails only when the subscriber is gone, and then there is nothing to filter.
        let _ = self.levels.reload.reload(next.targets());
        *current = next;
    }
}

/// Writes each event as one line.
struct Lines {
    writer: LogWriter,
    format: LogFormat,
}

impl<S> Layer<S> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = format::SpanFields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut spans = String::new();
        if let Some(scope) = ctx.event_scope(event) {
            for span in scope.from_root() {
                let extensions = span.extensions();
                let fields = extensions.get::<format::SpanFields>();
                format::push_span(&mut spans, span.name(), fields);
            }
        }
        self.writer
            .submit_now(format::event_line(event, &spans, self.format));
    }
}

#[cfg(test)]
mod tests;

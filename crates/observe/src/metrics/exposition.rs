//! The registry as text: Prometheus 0.0.4 and OpenMetrics 1.0.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;

use super::family::Entry;
use super::value::{Kind, Reading};
use super::{Descriptor, Series};

/// Size a piece of the exposition grows to before it is handed on: large enough to be one write,
/// small enough that a registry of many MiB is never in memory as text.
const PIECE: usize = 32 * 1024;

/// Which text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format for a request's `Accept` header.
    pub fn for_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What was in a collector at one moment, with a cursor.
pub(super) trait Snapshot: Send {
    /// Writes on until `out` is [`PIECE`] long; false when there is nothing left.
    fn advance(&mut self, format: Format, out: &mut String) -> bool;
}

/// The exposition in pieces of some tens of KiB.
pub struct Exposition {
    format: Format,
    left: std::vec::IntoIter<Box<dyn Snapshot>>,
    current: Option<Box<dyn Snapshot>>,
    ended: bool,
}

impl std::fmt::Debug for Exposition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exposition")
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

impl Exposition {
    pub(super) fn new(format: Format, snapshots: Vec<Box<dyn Snapshot>>) -> Self {
        Self {
            format,
            left: snapshots.into_iter(),
            current: None,
            ended: false,
        }
    }
}

impl Iterator for Exposition {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = String::new();
        while out.len() < PIECE {
            let Some(current) = &mut self.current else {
                self.current = self.left.next();
                if self.current.is_some() {
                    continue;
                }
                self.ended = true;
                if self.format == Format::OpenMetrics {
                    out.push_str("# EOF\n");
                }
                break;
            };
            if !current.advance(self.format, &mut out) {
                self.current = None;
            }
        }
        Some(Bytes::from(out))
    }
}

/// The sets of a family: all samples of its first metric, then all of the second, and so on, as
/// both formats demand.
pub(super) struct Entries<S> {
    entries: Vec<Arc<Entry<S>>>,
    /// Whether zeros are shown. Of a labelled family they are not: a set has several metrics, most
    /// of which never move (failures), and Istio shows none of them either.
    zeros: bool,
    metric: usize,
    next: usize,
    headed: bool,
}

impl<S> Entries<S> {
    pub(super) fn new(entries: Vec<Arc<Entry<S>>>, zeros: bool) -> Self {
        Self {
            entries,
            zeros,
            metric: 0,
            next: 0,
            headed: false,
        }
    }
}

impl<S: Series> Snapshot for Entries<S> {
    fn advance(&mut self, format: Format, out: &mut String) -> bool {
        while out.len() < PIECE {
            let Some(descriptor) = S::DESCRIPTORS.get(self.metric) else {
                return false;
            };
            let Some(entry) = self.entries.get(self.next) else {
                (self.metric, self.next, self.headed) = (self.metric + 1, 0, false);
                continue;
            };
            self.next += 1;
            let Some(reading) = entry.values.reading(self.metric) else {
                continue;
            };
            if !self.zeros && is_zero(reading) {
                continue;
            }
            if !self.headed {
                head(descriptor, format, out);
                self.headed = true;
            }
            samples(descriptor, &entry.labels, reading, out);
        }
        true
    }
}

/// One computed gauge.
pub(super) struct Row {
    descriptor: Descriptor,
    labels: String,
    value: Option<f64>,
}

impl Row {
    pub(super) fn new(descriptor: Descriptor, labels: String, value: Option<f64>) -> Self {
        Self {
            descriptor,
            labels,
            value,
        }
    }
}

impl Snapshot for Row {
    fn advance(&mut self, format: Format, out: &mut String) -> bool {
        if let Some(value) = self.value.take() {
            head(&self.descriptor, format, out);
            let suffix = if self.descriptor.kind == Kind::Counter {
                "_total"
            } else {
                ""
            };
            sample(self.descriptor.name, suffix, &self.labels, "", value, out);
        }
        false
    }
}

fn is_zero(reading: Reading<'_>) -> bool {
    match reading {
        Reading::Counter(counter) => counter.value() == 0,
        // A gauge at zero says that something ended, which is worth showing.
        Reading::Gauge(_) => false,
        Reading::Histogram(histogram) => histogram.count() == 0,
    }
}

fn head(descriptor: &Descriptor, format: Format, out: &mut String) {
    let name = descriptor.name;
    // The older format names a counter in full; OpenMetrics names the family.
    let suffix = match (descriptor.kind, format) {
        (Kind::Counter, Format::Text) => "_total",
        _ => "",
    };
    let kind = match descriptor.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let help = descriptor.help;
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}"
    );
}

fn samples(descriptor: &Descriptor, labels: &str, reading: Reading<'_>, out: &mut String) {
    let name = descriptor.name;
    match reading {
        Reading::Counter(counter) => sample(name, "_total", labels, "", counter.value(), out),
        Reading::Gauge(gauge) => sample(name, "", labels, "", gauge.value(), out),
        Reading::Histogram(histogram) => {
            let mut last = 0;
            let mut bound_text = String::new();
            for (bound, count) in histogram.cumulative() {
                bound_text.clear();
                let _ = match bound.is_infinite() {
                    true => bound_text.write_str("le=\"+Inf\""),
                    false => write!(bound_text, "le=\"{bound}\""),
                };
                sample(name, "_bucket", labels, &bound_text, count, out);
                last = count;
            }
            sample(name, "_sum", labels, "", histogram.sum(), out);
            // The same reading as the last bucket, so that both agree while others count on.
            sample(name, "_count", labels, "", last, out);
        }
    }
}

fn sample(
    name: &str,
    suffix: &str,
    labels: &str,
    more: &str,
    value: impl std::fmt::Display,
    out: &mut String,
) {
    let _ = match (labels, more) {
        ("", "") => writeln!(out, "{name}{suffix} {value}"),
        (labels, "") => writeln!(out, "{name}{suffix}{{{labels}}} {value}"),
        ("", more) => writeln!(out, "{name}{suffix}{{{more}}} {value}"),
        (labels, more) => writeln!(out, "{name}{suffix}{{{labels},{more}}} {value}"),
    };
}

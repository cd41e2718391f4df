//! Export of access records as OpenTelemetry log records and spans, over OTLP/gRPC. Off unless a collector is named.
//!
//! # Theory of operation
//! A data thread that ends a connection puts an owned copy of its record into a bounded queue and goes on: it neither waits nor wakes
//! anybody. One task looks at the queue every second, makes batches, and sends them to the collector: one log record and one span
//! for each connection, with the keys of the access log as attributes. What the collector cannot take now is tried
//! again a few times, with pauses; meanwhile the queue fills.
//!
//! # Invariants
//! - Nothing here slows a connection down. A record that finds the queue full is dropped and counted.
//! - Memory is bounded by the queue and one batch.
//! - Headers for the collector are never logged nor shown: they may be secrets.
//!
//! # Failure modes
//! While the collector is away records are dropped and counted; the log says so. Nothing else notices.
//!
//! Source: OpenTelemetry Protocol 1.x, gRPC transport; the names and defaults of settings are those of its environment variables.

mod batch;
mod export;
mod finished;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

pub use export::{Exporter, Finish};

/// Records that wait at most (`OTEL_BLRP_MAX_QUEUE_SIZE`). Some 2 KiB each.
pub const QUEUE: usize = 2048;

/// Time for the collector to answer (`OTEL_EXPORTER_OTLP_TIMEOUT`).
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Where one signal goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// `http://host:port` or `https://host:port`.
    pub endpoint: String,
    /// Roots that prove an https collector: a PEM file, else the system's.
    pub certificate: Option<PathBuf>,
    /// Headers of each call.
    #[serde(serialize_with = "names_only")]
    pub headers: Vec<(String, String)>,
    /// Time for the collector to answer.
    pub timeout: Duration,
}

/// Which connections have a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Sampling {
    /// All.
    Always,
    /// Those whose trace id is in the lower part of all ids, of this many in 2^32: so all who see a trace decide alike.
    Ratio(u32),
}

impl Sampling {
    /// Whether a trace is recorded.
    #[must_use]
    pub fn takes(self, trace_id: u128) -> bool {
        match self {
            Self::Always => true,
            // The random part of an id is at its end (W3C Trace Context, level 2).
            Self::Ratio(of) => trace_id & 0xffff_ffff < u128::from(of),
        }
    }
}

/// What to export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Where log records go; `None` for nowhere.
    pub logs: Option<Target>,
    /// Where spans go, and which.
    pub traces: Option<(Target, Sampling)>,
    /// What is known of this program.
    pub resource: Vec<(String, String)>,
    /// Records that wait at most.
    pub queue: usize,
}

fn names_only<S: serde::Serializer>(
    headers: &[(String, String)],
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(headers.iter().map(|(name, _)| name))
}

/// Why export cannot begin. All of it is configuration.
#[derive(Debug, Error)]
pub enum OtlpError {
    /// The address of the collector.
    #[error("{0:?} is not http://host:port or https://host:port")]
    Endpoint(String),
    /// A header.
    #[error("header {0:?} cannot be sent")]
    Header(String),
    /// The channel to an https collector.
    #[error(transparent)]
    Channel(#[from] ambit_control::ControlError),
}

//! What a chain reports: access logs and metrics.

use std::time::Duration;

use crate::format::Format;
use crate::plan::Name;

/// One access log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Where lines go.
    pub to: LogTarget,
    /// What a line looks like.
    pub format: LogFormat,
    /// Write only when this holds.
    pub only: LogFilter,
}

/// Where access-log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What an access-log line looks like.
#[derive(Debug, Clone)]
pub enum LogFormat {
    /// Our JSON line with Istio's default keys.
    Default,
    /// One line of text; the format carries its own newline or gets one.
    Text(Format),
    /// One JSON object a line; values are formats, in the order given.
    Json(Vec<(Name, Format)>),
}

/// When an access-log line is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFilter {
    /// Always.
    Always,
    /// Status within these bounds, both included.
    Status(u16, u16),
    /// At least so long.
    LongerThan(Duration),
    /// One of these response flags, or any flag if the list is empty.
    Flags(Vec<Name>),
    /// All of them.
    All(Vec<Self>),
    /// One of them.
    Any(Vec<Self>),
}

impl LogFilter {
    /// Whether a line is written for this outcome. `flags` are the short response flags set.
    #[must_use]
    pub fn admits(&self, status: u16, took: Duration, flags: &[&str]) -> bool {
        match self {
            Self::Always => true,
            Self::Status(low, high) => (*low..=*high).contains(&status),
            Self::LongerThan(limit) => took >= *limit,
            Self::Flags(wanted) if wanted.is_empty() => !flags.is_empty(),
            Self::Flags(wanted) => wanted.iter().any(|wanted| flags.contains(&&**wanted)),
            Self::All(all) => all.iter().all(|one| one.admits(status, took, flags)),
            Self::Any(any) => any.iter().any(|one| one.admits(status, took, flags)),
        }
    }
}

/// Which of Istio's standard metrics a chain reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reporter {
    /// Names without the `istio_` prefix that are switched off, such as `request_bytes`.
    pub dropped: Vec<Name>,
    /// Labels whose value is not reported (it reads `unknown`).
    pub removed_labels: Vec<Name>,
}

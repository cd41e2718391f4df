//! A connection's record, copied out of its thread.

use std::time::{Duration, SystemTime};

use ambit_observe::access::{Direction, Record, Trace};

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(u64),
}

/// One record, owned.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) ended: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) direction: Direction,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// By the keys of the access log, without what is absent.
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) trace: Option<Trace>,
    /// It becomes a log record.
    pub(crate) logged: bool,
    /// It becomes a span.
    pub(crate) traced: bool,
}

impl Finished {
    /// A copy of `record`, which ended at `ended`.
    pub(crate) fn of(record: &Record<'_>, ended: SystemTime, logged: bool, traced: bool) -> Self {
        let mut attributes = Vec::with_capacity(16);
        record.each(|key, value| attributes.push((key, Value::Text(value.to_owned()))));
        attributes.push(("bytes_sent", Value::Number(record.bytes_sent)));
        attributes.push(("bytes_recv", Value::Number(record.bytes_received)));
        Self {
            ended,
            duration: record.duration,
            direction: record.direction,
            error: record.error.map(ToString::to_string),
            attributes,
            trace: record.trace,
            logged,
            traced,
        }
    }

    /// When it began.
    pub(crate) fn started(&self) -> SystemTime {
        self.ended
            .checked_sub(self.duration)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

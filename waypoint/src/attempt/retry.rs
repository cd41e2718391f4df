//! When to try again: pure decisions on what a try ended with, and the pause before the next.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::record::Flag;
use crate::routes::{RetryOn, RetryPolicy};
use crate::upstream::ConnectError;

/// How a try ended without an answer.
#[derive(Debug)]
pub enum Failure {
    /// No connection: the endpoint has seen nothing.
    Connect(ConnectError),
    /// The connection ended before there was an answer.
    Termination,
    /// The endpoint reset the request.
    Reset,
    /// The endpoint said that it did not act on the request.
    Refused,
    /// What came back is no HTTP.
    Protocol(String),
    /// The try's own timeout ran out.
    TryTimeout,
}

impl Failure {
    /// What an error of the HTTP library means here.
    #[must_use]
    pub fn of(error: &hyper::Error) -> Self {
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if let Some(engine) = cause.downcast_ref::<h2::Error>() {
                return match engine.reason() {
                    Some(h2::Reason::REFUSED_STREAM) => Self::Refused,
                    Some(_) if engine.is_reset() => Self::Reset,
                    _ => Self::Termination,
                };
            }
            source = cause.source();
        }
        if error.is_parse() || error.is_parse_too_large() {
            return Self::Protocol(error.to_string());
        }
        Self::Termination
    }

    /// Its flag.
    #[must_use]
    pub fn flag(&self) -> Flag {
        match self {
            Self::Connect(ConnectError::Overloaded) => Flag::UpstreamOverflow,
            Self::Connect(ConnectError::Status(_) | ConnectError::Tunnel(_))
            | Self::Termination => Flag::UpstreamTermination,
            Self::Connect(_) => Flag::UpstreamFailure,
            Self::Reset | Self::Refused => Flag::UpstreamReset,
            Self::Protocol(_) => Flag::UpstreamProtocolError,
            Self::TryTimeout => Flag::UpstreamTimeout,
        }
    }
}

/// One request's tries.
#[derive(Debug)]
pub struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    left: u32,
    used: u32,
    wanted: bool,
}

impl<'a> Retries<'a> {
    /// At the first try.
    #[must_use]
    pub fn of(policy: Option<&'a RetryPolicy>) -> Self {
        Self {
            policy,
            left: policy.map_or(0, |policy| policy.retries),
            used: 0,
            wanted: false,
        }
    }

    /// Limit of one try.
    #[must_use]
    pub fn per_try(&self) -> Option<Duration> {
        self.policy.and_then(|policy| policy.per_try_timeout)
    }

    /// How many times to look for an endpoint not tried yet.
    #[must_use]
    pub fn reselect(&self) -> u32 {
        self.policy.map_or(0, |policy| policy.reselect)
    }

    /// Whether another try was wanted and none was left.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.wanted && self.used > 0
    }

    fn take(&mut self, wanted: bool) -> bool {
        self.wanted = wanted;
        if !wanted || self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.used += 1;
        true
    }

    /// Whether to try again after an answer.
    pub fn after_answer(&mut self, status: StatusCode, headers: &HeaderMap) -> bool {
        let Some(policy) = self.policy else {
            return false;
        };
        let on = &policy.on;
        let code = status.as_u16();
        let wanted = (on.server_error && status.is_server_error())
            || (on.gateway_error && matches!(code, 502..=504))
            || (on.retriable_4xx && code == 409)
            || (on.statuses && policy.statuses.contains(&code))
            || grpc_wanted(on, headers);
        self.take(wanted)
    }

    /// Whether to try again after no answer.
    pub fn after_failure(&mut self, failure: &Failure) -> bool {
        let Some(policy) = self.policy else {
            return false;
        };
        let on = &policy.on;
        let wanted = on.server_error
            || on.reset
            || match failure {
                // A CONNECT refused before any byte may go elsewhere, unlike with Envoy.
                Failure::Connect(_) => {
                    on.connect_failure || on.gateway_error || on.reset_before_request
                }
                Failure::Refused => on.refused_stream,
                Failure::Termination
                | Failure::Reset
                | Failure::Protocol(_)
                | Failure::TryTimeout => on.gateway_error,
            };
        self.take(wanted)
    }

    /// Waits before the next try: exponential with full jitter, as Envoy's.
    pub async fn pause(&self, random: u64) {
        let Some(policy) = self.policy else { return };
        let step = policy
            .backoff
            .saturating_mul(1 << self.used.saturating_sub(1).min(16));
        let most = u64::try_from(step.min(policy.backoff_cap).as_micros()).unwrap_or(u64::MAX);
        if most > 0 {
            tokio::time::sleep(Duration::from_micros(random % most)).await;
        }
    }
}

fn grpc_wanted(on: &RetryOn, headers: &HeaderMap) -> bool {
    let status = headers
        .get("grpc-status")
        .and_then(|value| value.to_str().ok());
    match status {
        Some("1") => on.grpc_cancelled,
        Some("4") => on.grpc_deadline_exceeded,
        Some("8") => on.grpc_resource_exhausted,
        Some("13") => on.grpc_internal,
        Some("14") => on.grpc_unavailable,
        _ => false,
    }
}

/// A `grpc-timeout` header: up to eight digits and a unit. `None`: not one.
#[must_use]
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Failure, Retries, grpc_timeout};
    use crate::routes::{RetryOn, RetryPolicy};
    use crate::upstream::ConnectError;

    fn policy(on: RetryOn) -> RetryPolicy {
        RetryPolicy {
            on,
            retries: 2,
            per_try_timeout: None,
            statuses: vec![503],
            reselect: 5,
            backoff: Duration::ZERO,
            backoff_cap: Duration::ZERO,
        }
    }

    #[test]
    fn a_failed_connection_is_tried_again_until_the_tries_are_used_up() {
        let policy = policy(RetryOn {
            connect_failure: true,
            ..RetryOn::default()
        });
        let mut retries = Retries::of(Some(&policy));
        let failure = Failure::Connect(ConnectError::Timeout);
        assert!(retries.after_failure(&failure));
        assert!(retries.after_failure(&failure));
        assert!(!retries.after_failure(&failure));
        assert!(retries.exhausted());
    }

    #[test]
    fn what_the_policy_does_not_name_is_not_tried_again() {
        let policy = policy(RetryOn {
            connect_failure: true,
            ..RetryOn::default()
        });
        let mut retries = Retries::of(Some(&policy));
        assert!(!retries.after_failure(&Failure::Termination));
        assert!(!retries.after_answer(
            http::StatusCode::SERVICE_UNAVAILABLE,
            &http::HeaderMap::new()
        ));
        assert!(!retries.exhausted());
        assert!(!Retries::of(None).after_failure(&Failure::Refused));
    }

    #[test]
    fn grpc_timeouts_have_digits_and_a_unit() {
        assert_eq!(grpc_timeout(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout(b"100m"), Some(Duration::from_millis(100)));
        for text in [&b""[..], b"S", b"5", b"-5S", b"123456789S", b"5x"] {
            assert_eq!(grpc_timeout(text), None);
        }
    }
}

//! How single values are written: booleans, durations, thread counts, grace periods, addresses. All pure.

use std::path::PathBuf;
use std::time::Duration;

use super::{DnsAddress, Only};

/// Reads exactly `true` or `false`.
///
/// # Errors
/// What would have been right.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("`{other}` is not `true` or `false`")),
    }
}

/// Reads a duration: a bare number of seconds, or a sum of numbers with units
/// (`ms`, `s`, `m`, `h`, `d`), such as `1h30m`.
///
/// # Errors
/// What would have been right.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 10, 500ms, 30s, 5m, 24h or 1h30m");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(millis).ok_or_else(wrong)?;
        sum = sum
            .checked_add(Duration::from_millis(part))
            .ok_or_else(wrong)?;
        rest = after;
    }
    Ok(sum)
}

/// Reads a workload: `NAMESPACE/NAME/SERVICEACCOUNT`.
///
/// # Errors
/// What would have been right.
pub fn workload(text: &str) -> Result<Only, String> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [namespace, name, service_account] if parts.iter().all(|part| !part.is_empty()) => {
            Ok(Only {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                service_account: service_account.to_owned(),
            })
        }
        _ => Err(format!("`{text}` is not NAMESPACE/NAME/SERVICEACCOUNT")),
    }
}

/// Reads where DNS is served: `localhost:PORT` or `ADDRESS:PORT`.
///
/// # Errors
/// What would have been right.
pub fn dns_address(text: &str) -> Result<DnsAddress, String> {
    let wrong = || format!("`{text}` is not localhost:PORT or ADDRESS:PORT");
    if let Some(port) = text.strip_prefix("localhost:") {
        return port.parse().map(DnsAddress::Localhost).map_err(|_| wrong());
    }
    text.parse().map(DnsAddress::At).map_err(|_| wrong())
}

/// Reads a unix socket as SPIFFE writes it (SPIFFE Workload Endpoint, section 4): `unix:///PATH`, or `unix:/PATH`.
///
/// # Errors
/// What would have been right.
pub fn unix_socket(text: &str) -> Result<PathBuf, String> {
    let rest = text.strip_prefix("unix:");
    let path = rest.map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    match path {
        // A host between two slashes and the path is none of ours; a question mark or fragment has no meaning there.
        Some(path) if path.starts_with('/') && path.len() > 1 && !path.contains(['?', '#']) => {
            Ok(path.into())
        }
        _ => Err(format!(
            "`{text}` is no unix socket such as unix:///run/spire/sockets/admin.sock"
        )),
    }
}

/// Reads the number of data threads: `N`, `0` for one a CPU, or `P%` of the CPUs rounded up.
///
/// # Errors
/// What would have been right.
pub fn threads(text: &str, cpus: usize) -> Result<usize, String> {
    let wrong = || format!("`{text}` is not a thread count such as 4, 0 (all) or 25%");
    let chosen = match text.strip_suffix('%') {
        Some(percent) => {
            let percent: usize = percent.parse().map_err(|_| wrong())?;
            cpus.checked_mul(percent).ok_or_else(wrong)?.div_ceil(100)
        }
        None => match text.parse().map_err(|_| wrong())? {
            0 => cpus,
            n => n,
        },
    };
    // More threads than this only cost listeners and tunnels: no node has so many CPUs to use.
    if chosen > 1024 {
        return Err(format!(
            "{chosen} threads are more than the 1024 that make sense"
        ));
    }
    Ok(chosen.max(1))
}

/// The thread count where none was asked for: a quarter of the CPUs, at least two, so that a
/// node proxy neither starves its node nor lets one busy connection stop all others.
#[must_use]
pub fn default_threads(cpus: usize, limit: Option<f64>, request: Option<f64>) -> usize {
    let whole = |share: f64| {
        // Not a truncation that matters: CPU counts are small and were checked to be positive.
        (1..=1024usize).find(|n| *n as f64 >= share).unwrap_or(1024)
    };
    let request = request.map_or(0, whole);
    match limit {
        Some(limit) => whole(limit).max(request).max(1),
        None => cpus.div_ceil(4).max(request).max(2),
    }
}

/// Reads a CPU quantity: `2`, `0.5` or `500m`.
///
/// # Errors
/// What would have been right.
pub fn cpus(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is not a CPU quantity such as 2, 0.5 or 500m");
    let (number, scale) = match text.strip_suffix('m') {
        Some(milli) => (milli, 1000.0),
        None => (text, 1.0),
    };
    let value: f64 = number.parse().map_err(|_| wrong())?;
    if value.is_finite() && value > 0.0 {
        Ok(value / scale)
    } else {
        Err(wrong())
    }
}

/// How long connections get to end, given the pod's grace period: all of it but what the rest of
/// the stop needs.
#[must_use]
pub fn deadline_within(grace_seconds: u64) -> Duration {
    let seconds = if grace_seconds > 10 {
        grace_seconds - 5
    } else {
        grace_seconds.saturating_sub(1).max(1)
    };
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::{boolean, cpus, deadline_within, default_threads, duration, threads, unix_socket};
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn reads_durations_the_way_istio_writes_them() {
        let cases = [
            ("10", Some(10_000)),
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("1h30m", Some(5_400_000)),
            ("1d", Some(86_400_000)),
            ("", None),
            ("m", None),
            ("5", Some(5_000)),
            ("5x", None),
            ("-5s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ];
        for (text, millis) in cases {
            assert_eq!(
                duration(text).ok(),
                millis.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn takes_only_true_and_false_as_booleans() {
        assert_eq!(boolean("true"), Ok(true));
        assert_eq!(boolean("false"), Ok(false));
        for wrong in ["", "1", "True", "yes"] {
            assert!(boolean(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn counts_threads_from_numbers_and_percentages() {
        assert_eq!(threads("4", 8), Ok(4));
        assert_eq!(threads("0", 8), Ok(8));
        assert_eq!(threads("25%", 10), Ok(3));
        assert_eq!(threads("0%", 10), Ok(1));
        assert!(threads("many", 8).is_err());
        assert!(threads("5000", 8).is_err());
        assert_eq!(default_threads(2, None, None), 2);
        assert_eq!(default_threads(64, None, None), 16);
        assert_eq!(default_threads(64, Some(1.5), None), 2);
        assert_eq!(default_threads(64, Some(1.0), Some(3.0)), 3);
        assert_eq!(cpus("500m"), Ok(0.5));
        assert!(cpus("-1").is_err());
    }

    #[test]
    fn takes_unix_sockets_as_spiffe_writes_them() {
        for right in ["unix:///run/a.sock", "unix:/run/a.sock"] {
            assert_eq!(
                unix_socket(right).as_deref(),
                Ok(Path::new("/run/a.sock")),
                "{right}"
            );
        }
        let wrong = [
            "",
            "/run/a.sock",
            "unix:",
            "unix:///",
            "unix:a.sock",
            "unix://host/a.sock",
            "tcp://127.0.0.1:1",
            "unix:///a.sock?b",
        ];
        for wrong in wrong {
            assert!(unix_socket(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn leaves_room_inside_the_grace_period() {
        for (grace, seconds) in [(0, 1), (1, 1), (2, 1), (10, 9), (11, 6), (30, 25)] {
            assert_eq!(
                deadline_within(grace),
                Duration::from_secs(seconds),
                "{grace}"
            );
        }
    }
}

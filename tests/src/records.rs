//! Access-log records of a program, read from its log.

use std::path::Path;

use serde_json::{Map, Value};

/// One record: a flat object with Istio's keys.
#[derive(Debug, Clone)]
pub struct Record(pub Map<String, Value>);

impl Record {
    /// A field as text; empty if absent.
    #[must_use]
    pub fn get(&self, key: &str) -> String {
        match self.0.get(key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// Whether all these fields have these values. A value that begins with `*` is found
    /// anywhere in the field.
    #[must_use]
    pub fn has(&self, fields: &[(&str, &str)]) -> bool {
        fields.iter().all(|(key, wanted)| {
            let found = self.get(key);
            match wanted.strip_prefix('*') {
                Some(part) => found.contains(part),
                None => found == *wanted,
            }
        })
    }
}

/// All records in a log, oldest first: JSON lines with scope `access`, or without a scope, and
/// lines of Istio's text format, as waypoints are told to write them.
#[must_use]
pub fn read(log: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let objects = text
        .lines()
        .filter_map(|line| match serde_json::from_str(line) {
            Ok(Value::Object(object)) => Some(object),
            _ => from_text(line),
        });
    objects
        .filter(|object| object.get("scope").is_none_or(|scope| scope == "access"))
        .map(Record)
        .collect()
}

/// Fields of Istio's text format behind the request line, by their names in its JSON format.
const FIELDS: [&str; 20] = [
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "upstream_transport_failure_reason",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "route_name",
];

/// `[TIME] "METHOD PATH PROTOCOL" FIELD "FIELD" …`
fn from_text(line: &str) -> Option<Map<String, Value>> {
    let (time, rest) = line.strip_prefix('[')?.split_once("] \"")?;
    let (request, mut rest) = rest.split_once('"')?;
    let mut request = request.split(' ');
    let mut record = Map::new();
    record.insert("start_time".to_owned(), time.into());
    for name in ["method", "path", "protocol"] {
        record.insert(name.to_owned(), request.next()?.into());
    }
    for name in FIELDS {
        rest = rest.trim_start();
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        record.insert(name.to_owned(), value.into());
        rest = after;
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::{Record, from_text};

    #[test]
    fn reads_istios_text_format_and_no_other_line() {
        let line = concat!(
            r#"[2026-01-01T00:00:00.000Z] "GET /a?b=c HTTP/1.1" 503 UH no_healthy_upstream - "-" "#,
            r#"0 19 1 - "-" "curl 8" "id" "web.mesh" "-" c|80||web - 10.0.0.1:80 10.0.0.2:9 - default"#,
        );
        let record = Record(from_text(line).unwrap());
        let wanted = [
            ("path", "/a?b=c"),
            ("response_code", "503"),
            ("response_flags", "UH"),
            ("user_agent", "curl 8"),
            ("upstream_cluster", "c|80||web"),
            ("route_name", "default"),
        ];
        assert!(record.has(&wanted), "{record:?}");
        for other in [
            "",
            "[2026-01-01 00:00:00.000][7][warning][main] [a.cc:1] \"x\" no",
            "info",
        ] {
            assert!(from_text(other).is_none(), "{other}");
        }
    }
}

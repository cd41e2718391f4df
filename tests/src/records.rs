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

/// All records in a log, oldest first: lines that are JSON with scope `access`, or, as a waypoint
/// writes them, JSON without a scope.
#[must_use]
pub fn read(log: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let objects = text
        .lines()
        .filter_map(|line| match serde_json::from_str(line) {
            Ok(Value::Object(object)) => Some(object),
            _ => None,
        });
    objects
        .filter(|object| object.get("scope").is_none_or(|scope| scope == "access"))
        .map(Record)
        .collect()
}

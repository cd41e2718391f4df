//! What is wrong with an object in the light of the others.

use std::fmt;

use ambit_objects::{Key, Kind, Name, Severity};
use serde::Serialize;

/// One thing wrong with an object that was accepted. What it means is in the message: an object
/// with a finding of severity error has a part that is not in force, or only in a stricter form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// Path of the field; empty for the object.
    pub field: String,
    /// What is wrong and what was done about it.
    pub message: String,
    /// Whether something is not in force.
    pub severity: Severity,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Collects findings.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn error(&mut self, key: &Key, field: &str, message: impl Into<String>) {
        self.add(key, field, message.into(), Severity::Error);
    }

    pub(crate) fn warning(&mut self, key: &Key, field: &str, message: impl Into<String>) {
        self.add(key, field, message.into(), Severity::Warning);
    }

    fn add(&mut self, key: &Key, field: &str, message: String, severity: Severity) {
        self.0.push(Finding {
            kind: key.kind,
            name: key.name.clone(),
            field: field.to_owned(),
            message,
            severity,
        });
    }

    pub(crate) fn into_sorted(mut self) -> Vec<Finding> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
}

//! What is wrong with a document, said so that its author can find and mend it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document was refused. Its last accepted version, if there is one, stays in force.
    Error,
    /// The document is in force, but something in it has no effect.
    Warning,
}

/// One thing wrong in one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// The file it is in.
    pub file: PathBuf,
    /// Line in the file, from 1; 0 when no line can be named.
    pub line: usize,
    /// Path of the field inside the document, such as `spec.rules[0].from`; empty for the document.
    pub field: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Whether the document was refused.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

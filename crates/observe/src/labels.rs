//! One label set, rendered once in the form of the text exposition.

use std::fmt::{self, Write};

/// What stands for a value that nobody knows (Istio's convention).
pub const UNKNOWN: &str = "unknown";

/// What stands for each open-ended value once a family is full.
pub const OVERFLOW: &str = "_overflow";

/// Longest value kept, in bytes. Kubernetes names end at 253 and SPIFFE identities of Istio's
/// shape stay below 512; anything longer is abuse and is cut.
const MAX_VALUE: usize = 512;

/// Collects the labels of one set, in order, as `a="1",b="2"`.
///
/// # Guarantees
/// Values are escaped as the Prometheus text format asks, so nothing a peer says can break a
/// scrape.
#[derive(Debug, Default)]
pub struct Labels {
    text: String,
    overflow: bool,
}

impl Labels {
    pub(crate) fn with_buffer(mut text: String, overflow: bool) -> Self {
        text.clear();
        Self { text, overflow }
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }

    /// The labels so far, in exposition form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Adds a label whose values form an open set (names, addresses, identities). An empty value
    /// prints as [`UNKNOWN`].
    pub fn open(&mut self, name: &str, value: &str) {
        let value = match (self.overflow, value) {
            (true, _) => OVERFLOW,
            (false, "") => UNKNOWN,
            (false, known) => known,
        };
        self.push(name, value);
    }

    /// Like [`Labels::open`] for a value that is formatted.
    pub fn open_display(&mut self, name: &str, value: impl fmt::Display) {
        if self.overflow {
            return self.push(name, OVERFLOW);
        }
        self.begin(name);
        // Writing to a String cannot fail.
        let _ = write!(
            Escaped {
                out: &mut self.text,
                left: MAX_VALUE
            },
            "{value}"
        );
        self.text.push('"');
    }

    /// Adds a label whose values form a small closed set (a direction, a flag). It keeps its value
    /// in the overflow set too.
    pub fn closed(&mut self, name: &str, value: &str) {
        self.push(name, if value.is_empty() { UNKNOWN } else { value });
    }

    fn push(&mut self, name: &str, value: &str) {
        self.begin(name);
        let _ = Escaped {
            out: &mut self.text,
            left: MAX_VALUE,
        }
        .write_str(value);
        self.text.push('"');
    }

    fn begin(&mut self, name: &str) {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(name);
        self.text.push_str("=\"");
    }
}

/// Escapes what passes through it and stops after `left` bytes.
struct Escaped<'a> {
    out: &'a mut String,
    left: usize,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.len_utf8() > self.left {
                self.left = 0;
                break;
            }
            self.left -= c.len_utf8();
            match c {
                '\\' => self.out.push_str("\\\\"),
                '"' => self.out.push_str("\\\""),
                '\n' => self.out.push_str("\\n"),
                other => self.out.push(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_in_order_and_fills_unknown() {
        let mut labels = Labels::default();
        labels.closed("reporter", "source");
        labels.open("source_workload", "");
        labels.open_display("port", 80);
        assert_eq!(
            labels.as_str(),
            r#"reporter="source",source_workload="unknown",port="80""#
        );
    }

    #[test]
    fn escapes_what_would_break_a_scrape() {
        let mut labels = Labels::default();
        labels.open("a", "x\"y\\z\n{}");
        assert_eq!(labels.as_str(), "a=\"x\\\"y\\\\z\\n{}\"");
    }

    #[test]
    fn overflow_keeps_closed_values_only() {
        let mut labels = Labels::with_buffer(String::from("old"), true);
        labels.closed("reporter", "source");
        labels.open("who", "somebody");
        labels.open_display("n", 7);
        assert_eq!(
            labels.as_str(),
            r#"reporter="source",who="_overflow",n="_overflow""#
        );
    }

    #[test]
    fn cuts_a_value_at_a_character_boundary() {
        let mut labels = Labels::default();
        labels.open("a", &"é".repeat(400));
        assert_eq!(labels.as_str().len(), "a=\"\"".len() + MAX_VALUE);
    }
}

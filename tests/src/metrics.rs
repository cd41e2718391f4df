//! What a program counts, read from its metrics port.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Metric name, with its suffix (`_total`, `_bucket`…).
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// One reading of a metrics port.
#[derive(Debug, Clone, Default)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Reads the text of Prometheus or OpenMetrics.
    ///
    /// # Errors
    ///
    /// A line is none of a comment, a sample, or empty.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| sample(line).with_context(|| format!("metrics line: {line}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The samples of a name that carry all these labels.
    pub fn find<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }

    /// The sum over [`find`](Self::find); zero if there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(|sample| sample.value).sum()
    }
}

fn sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("a value")?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"").context("a label")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next().context("a value")?.parse()?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// A label value up to its closing quote, and what follows.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, other)) => value.push(other),
                None => bail!("ends in an escape"),
            },
            other => value.push(other),
        }
    }
    bail!("an open quote")
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn reads_samples_with_and_without_labels() {
        let text = "# TYPE a counter\na_total{x=\"1\",y=\"a\\\"b,}\"} 2\na_total{x=\"2\",y=\"\"} 3 1700\nup 1\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a_total", &[]), 5.0);
        assert_eq!(metrics.sum("a_total", &[("y", "a\"b,}")]), 2.0);
        assert_eq!(metrics.sum("up", &[]), 1.0);
        assert_eq!(metrics.sum("down", &[]), 0.0);
        assert!(Metrics::parse("nonsense").is_err());
    }
}

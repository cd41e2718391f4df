//! Numbers of all rounds, as a table for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::place::Arm;

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A time or a size.
    Less,
    /// A rate.
    More,
}

/// All numbers of one shape.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured, with its unit.
    pub name: String,
    /// Which way is good.
    pub better: Better,
    /// Numbers of the rounds, by arm.
    pub rounds: BTreeMap<Arm, Vec<f64>>,
}

/// Everything measured.
#[derive(Debug, Clone, Default)]
pub struct Report {
    rows: Vec<Row>,
    singles: Vec<(String, f64)>,
}

impl Report {
    /// Adds one number of one round.
    pub fn add(&mut self, name: &str, better: Better, arm: Arm, value: f64) {
        let index = self
            .rows
            .iter()
            .position(|row| row.name == name)
            .unwrap_or_else(|| {
                let rounds = BTreeMap::new();
                self.rows.push(Row {
                    name: name.to_owned(),
                    better,
                    rounds,
                });
                self.rows.len() - 1
            });
        self.rows[index].rounds.entry(arm).or_default().push(value);
    }

    /// Adds a number that is measured once, of ours alone.
    pub fn single(&mut self, name: &str, value: f64) {
        self.singles.push((name.to_owned(), value));
    }

    /// The table: medians, and ours as a multiple of the limit's; an arrow says which way is good.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "| {:<44} | {:>9} | {:>9} | {:>9} | {:>14} |",
            "median of the rounds", "no mesh", "limit", "ambit", "ambit : limit"
        );
        let _ = writeln!(
            text,
            "|{:-<46}|{:->11}|{:->11}|{:->11}|{:->16}|",
            "", ":", ":", ":", ":"
        );
        for row in &self.rows {
            let cell = |arm| row.median(arm).map_or(String::new(), number);
            let arrow = match row.better {
                Better::Less => '↓',
                Better::More => '↑',
            };
            let ratio = row
                .ratio()
                .map_or(String::new(), |ratio| format!("{ratio:.2} × {arrow}"));
            let _ = writeln!(
                text,
                "| {:<44} | {:>9} | {:>9} | {:>9} | {:>14} |",
                row.name,
                cell(Arm::Plain),
                cell(Arm::Limit),
                cell(Arm::Mesh),
                ratio
            );
        }
        for (name, value) in &self.singles {
            let _ = writeln!(
                text,
                "| {name:<44} | {:>9} | {:>9} | {:>9} | {:>14} |",
                "",
                "",
                number(*value),
                ""
            );
        }
        text
    }

    /// The same, with every round's number.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let rounds: BTreeMap<_, _> = row
                .rounds
                .iter()
                .map(|(arm, values)| (arm.name(), values))
                .collect();
            json!({"name": row.name, "rounds": rounds, "ambit_to_limit": row.ratio()})
        });
        let singles: BTreeMap<_, _> = self
            .singles
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        json!({"rows": rows.collect::<Vec<_>>(), "ambit": singles})
    }
}

impl Row {
    fn median(&self, arm: Arm) -> Option<f64> {
        let mut values = self.rounds.get(&arm)?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// Ours to the limit's, as a plain quotient.
    fn ratio(&self) -> Option<f64> {
        Some(self.median(Arm::Mesh)? / self.median(Arm::Limit)?)
    }
}

/// A number with as many digits as mean something.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Better, Report};
    use crate::place::Arm;

    #[test]
    fn compares_medians() {
        let mut report = Report::default();
        for value in [1.0, 90.0, 10.0] {
            report.add("time, µs", Better::Less, Arm::Limit, value);
            report.add("time, µs", Better::Less, Arm::Mesh, value * 1.5);
        }
        report.single("memory, MiB", 12.25);
        assert_eq!(report.json()["rows"][0]["ambit_to_limit"], 1.5);
        let table = report.table();
        assert!(
            table.contains("1.50 ×") && table.contains("12.2"),
            "{table}"
        );
    }
}

//! Numbers of all rounds, as tables for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A time or a size.
    Less,
    /// A rate.
    More,
}

/// What does the work: a column.
pub type Arm = &'static str;

/// One comparison: arms beside each other, and ours as a multiple of some of them.
#[derive(Debug, Clone)]
pub struct Table {
    title: String,
    arms: Vec<Arm>,
    ours: Arm,
    against: Vec<Arm>,
    rows: Vec<Row>,
}

/// All numbers of one shape.
#[derive(Debug, Clone)]
struct Row {
    name: String,
    better: Better,
    /// Numbers of the rounds, by arm.
    rounds: BTreeMap<Arm, Vec<f64>>,
}

impl Table {
    /// A table of `arms`, of which `ours` is given as a multiple of each of `against`.
    #[must_use]
    pub fn new(title: &str, arms: &[Arm], ours: Arm, against: &[Arm]) -> Self {
        Self {
            title: title.to_owned(),
            arms: arms.to_vec(),
            ours,
            against: against.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds one number of one round. The unit is part of the name.
    pub fn add(&mut self, name: &str, better: Better, arm: Arm, value: f64) {
        let known = self.rows.iter().position(|row| row.name == name);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row {
                name: name.to_owned(),
                better,
                rounds: BTreeMap::new(),
            });
            self.rows.len() - 1
        });
        self.rows[index].rounds.entry(arm).or_default().push(value);
    }

    /// Medians, and ours as multiples; an arrow says which way is good.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.title);
        let ratios = self
            .against
            .iter()
            .map(|arm| format!("{} : {arm}", self.ours));
        let heads: Vec<String> = self
            .arms
            .iter()
            .map(|arm| (*arm).to_owned())
            .chain(ratios)
            .collect();
        let _ = write!(text, "| {:<46} |", "median of the rounds");
        for head in &heads {
            let _ = write!(text, " {head:>15} |");
        }
        let _ = write!(text, "\n|{:-<48}|", "");
        for _ in &heads {
            let _ = write!(text, "{:->17}|", ":");
        }
        text.push('\n');
        for row in &self.rows {
            let name = match row.better {
                Better::Less => format!("{} ↓", row.name),
                Better::More => format!("{} ↑", row.name),
            };
            let _ = write!(text, "| {name:<46} |");
            for arm in &self.arms {
                let _ = write!(
                    text,
                    " {:>15} |",
                    row.median(arm).map_or(String::new(), number)
                );
            }
            for base in &self.against {
                let ratio = row.ratio(self.ours, base);
                let _ = write!(
                    text,
                    " {:>15} |",
                    ratio.map_or(String::new(), |ratio| format!("{ratio:.2} ×"))
                );
            }
            text.push('\n');
        }
        text
    }

    /// The same, with every round's number, and the least and the most of them.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let ratios: BTreeMap<_, _> = self
                .against
                .iter()
                .map(|base| (*base, row.ratio(self.ours, base)))
                .collect();
            let of_arms = |value: &dyn Fn(Arm) -> Option<Value>| -> BTreeMap<Arm, Value> {
                let arms = self.arms.iter();
                arms.filter_map(|arm| Some((*arm, value(arm)?))).collect()
            };
            json!({
                "name": row.name,
                "better": match row.better { Better::Less => "less", Better::More => "more" },
                "rounds": row.rounds,
                "medians": of_arms(&|arm| row.median(arm).map(Value::from)),
                "spread": of_arms(&|arm| row.spread(arm).map(|(least, most)| json!([least, most]))),
                "ratios": ratios,
            })
        });
        let rows: Vec<_> = rows.collect();
        json!({"title": self.title, "arms": self.arms, "ours": self.ours, "rows": rows})
    }
}

impl Row {
    fn median(&self, arm: Arm) -> Option<f64> {
        median(self.rounds.get(arm)?)
    }

    fn spread(&self, arm: Arm) -> Option<(f64, f64)> {
        spread(self.rounds.get(arm)?)
    }

    /// One arm to another, as a plain quotient.
    fn ratio(&self, ours: Arm, base: Arm) -> Option<f64> {
        Some(self.median(ours)? / self.median(base)?)
    }
}

/// The middle one of some numbers, if there are any.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The least and the most of some numbers, if there are any.
#[must_use]
pub fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let most = values.iter().copied().max_by(f64::total_cmp)?;
    Some((least, most))
}

/// A number with as many digits as mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Better, Table};

    #[test]
    fn compares_medians() {
        let mut table = Table::new("times", &["limit", "ambit"], "ambit", &["limit"]);
        for value in [1.0, 90.0, 10.0] {
            table.add("time, µs", Better::Less, "limit", value);
            table.add("time, µs", Better::Less, "ambit", value * 1.5);
        }
        table.add("memory, MiB", Better::Less, "ambit", 12.25);
        let row = table.json()["rows"][0].clone();
        assert_eq!(row["ratios"]["limit"], 1.5);
        assert_eq!(row["medians"]["limit"], 10.0);
        assert_eq!(row["spread"]["limit"], serde_json::json!([1.0, 90.0]));
        let text = table.markdown();
        assert!(text.contains("1.50 ×") && text.contains("12.2"), "{text}");
    }
}

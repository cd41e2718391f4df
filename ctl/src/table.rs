//! Columns as kubectl aligns them.

use std::fmt;

/// Between two columns.
const GAP: usize = 3;

/// Rows under a heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet.
    #[must_use]
    pub fn new(heading: &[&'static str]) -> Self {
        Self {
            heading: heading.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that are missing stay empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Sorts the rows by their cells, from the left.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.rows.sort();
        self
    }

    /// The rows, for tests.
    #[must_use]
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    fn width(&self, column: usize) -> usize {
        let cells = self
            .rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        let heading = self
            .heading
            .get(column)
            .map_or(0, |heading| heading.chars().count());
        cells.max().unwrap_or(0).max(heading)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| self.width(column))
            .collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for (cell, width) in cells.zip(&widths) {
                text.push_str(cell);
                let padding = width.saturating_sub(cell.chars().count()) + GAP;
                text.extend(std::iter::repeat_n(' ', padding));
            }
            writeln!(f, "{}", text.trim_end())
        };
        line(&mut self.heading.iter().copied())?;
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let mut table = Table::new(&["NAME", "AGE"]);
        table.row(["a-long-name".to_owned(), String::new()]);
        table.row(["é".to_owned(), "1".to_owned()]);
        let text = table.sorted().to_string();
        assert_eq!(text, "NAME          AGE\na-long-name\né             1\n");
    }
}

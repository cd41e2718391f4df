//! Charts: bars of the arms beside each other, one panel for each shape of load, as SVG that needs nothing else.
//!
//! Text and axes take the reader's colours, light or dark. A bar is the median of the rounds; the thin line over its
//! end goes from the least to the most of them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::report::{Better, number};

/// Panels beside each other.
const COLUMNS: usize = 2;
/// Pixels: of a panel, of its heading, of one bar with the room below it, of the names left of the bars, of the
/// numbers right of them.
const WIDTH: f64 = 440.0;
const HEADING: f64 = 34.0;
const BAR: f64 = 20.0;
const NAMES: f64 = 140.0;
const NUMBERS: f64 = 56.0;
/// Between panels, and around all.
const GAP: f64 = 18.0;
/// Of the title of all.
const TITLE: f64 = 34.0;
/// Colours of the arms, ours apart: told from each other on white and on black, and by those who see few colours
/// (after Okabe and Ito).
const COLOURS: [&str; 6] = [
    "#8a8a8a", "#b0a080", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00",
];
/// Ours.
const OURS: &str = "#009e73";
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}\
    .head{font-weight:600}.note{fill:#59636e;font-size:11px}.end{text-anchor:end}\
    .axis{stroke:#59636e;stroke-width:1}.spread{stroke:#1f2328;stroke-width:1.2}\
    @media (prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9198a1}.axis{stroke:#9198a1}.spread{stroke:#e6edf3}}";

/// One number of one arm.
#[derive(Debug, Clone)]
pub struct Bar {
    /// The arm.
    pub name: String,
    /// Median of the rounds.
    pub middle: f64,
    /// Least and most of them.
    pub spread: (f64, f64),
}

/// The arms beside each other in one respect.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What is measured, and its unit.
    pub name: String,
    /// Which way is good.
    pub better: Better,
    /// The arms.
    pub bars: Vec<Bar>,
}

/// Panels under one title.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Title.
    pub title: String,
    /// All arms, each of which has one colour.
    pub arms: Vec<String>,
    /// Those that stand out.
    pub ours: Vec<String>,
    /// All panels have the scale of the largest: when they are about the same quantity.
    pub one_scale: bool,
    /// In reading order.
    pub panels: Vec<Panel>,
}

impl Chart {
    /// The chart of a table that was written as JSON.
    ///
    /// # Errors
    ///
    /// It is none of [`Table::json`](crate::report::Table::json).
    pub fn of_table(table: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        let list = |value: &Value| value.as_array().cloned().context("a list");
        let arms: Vec<String> = list(&table["arms"])?
            .iter()
            .map(text)
            .collect::<Result<_>>()?;
        let mut panels = Vec::new();
        for row in list(&table["rows"])? {
            let mut bars = Vec::new();
            for arm in &arms {
                let Some(middle) = row["medians"][arm].as_f64() else {
                    continue;
                };
                let end = |index: usize| row["spread"][arm][index].as_f64().unwrap_or(middle);
                bars.push(Bar {
                    spread: (end(0), end(1)),
                    name: arm.clone(),
                    middle,
                });
            }
            let better = if row["better"] == "more" {
                Better::More
            } else {
                Better::Less
            };
            panels.push(Panel {
                name: text(&row["name"])?,
                better,
                bars,
            });
        }
        Ok(Self {
            title: text(&table["title"])?,
            arms,
            ours: vec![text(&table["ours"])?],
            one_scale: false,
            panels,
        })
    }

    /// The whole file.
    #[must_use]
    pub fn svg(&self) -> String {
        let heights: Vec<f64> = self
            .panels
            .chunks(COLUMNS)
            .map(|row| row.iter().map(Panel::height).fold(0.0, f64::max) + GAP)
            .collect();
        let width = WIDTH * COLUMNS as f64 + GAP * (COLUMNS + 1) as f64;
        let height = TITLE + GAP + heights.iter().sum::<f64>();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\">\n<title>{0}</title>\n<style>{STYLE}</style>\n\
             <text class=\"title\" x=\"{GAP}\" y=\"24\">{0}</text>\n",
            escaped(&self.title)
        );
        let top = self.panels.iter().map(Panel::most).fold(0.0, f64::max);
        let mut y = TITLE;
        for (row, height) in self.panels.chunks(COLUMNS).zip(heights) {
            for (column, panel) in row.iter().enumerate() {
                let x = GAP + (WIDTH + GAP) * column as f64;
                let most = if self.one_scale { top } else { panel.most() };
                panel.draw(&mut svg, (x, y), most, self);
            }
            y += height;
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn colour(&self, name: &str) -> &'static str {
        if self.ours.iter().any(|ours| ours == name) {
            return OURS;
        }
        let index = self.arms.iter().position(|arm| arm == name);
        COLOURS[index.unwrap_or_default() % COLOURS.len()]
    }
}

impl Panel {
    fn height(&self) -> f64 {
        HEADING + BAR * self.bars.len() as f64
    }

    fn most(&self) -> f64 {
        self.bars
            .iter()
            .map(|bar| bar.spread.1.max(bar.middle))
            .fold(0.0, f64::max)
    }

    fn draw(&self, svg: &mut String, (x, y): (f64, f64), most: f64, chart: &Chart) {
        let better = match self.better {
            Better::Less => "← less is better",
            Better::More => "→ more is better",
        };
        let (left, right) = (x + NAMES, x + WIDTH);
        let _ = writeln!(
            svg,
            "<text class=\"head\" x=\"{x}\" y=\"{0:.1}\">{1}</text>\n<text class=\"note end\" x=\"{right}\" \
             y=\"{0:.1}\">{better}</text>",
            y + 16.0,
            escaped(&self.name)
        );
        let room = WIDTH - NAMES - NUMBERS;
        // Nothing at all, or not a number, is a bar of no length.
        let at = |value: f64| {
            if most > 0.0 && value.is_finite() {
                left + room * value.max(0.0) / most
            } else {
                left
            }
        };
        let first = y + HEADING - 8.0;
        for (index, bar) in self.bars.iter().enumerate() {
            let (top, end) = (first + BAR * index as f64, at(bar.middle));
            let (low, high) = (at(bar.spread.0), at(bar.spread.1));
            let (middle, base) = (top + 7.0, top + 11.5);
            let _ = writeln!(
                svg,
                "<text class=\"end\" x=\"{0:.1}\" y=\"{base:.1}\">{1}</text>\
                 <rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{2:.1}\" height=\"14\" fill=\"{3}\"/>\
                 <line class=\"spread\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
                 <text x=\"{4:.1}\" y=\"{base:.1}\">{5}</text>",
                left - 6.0,
                escaped(&bar.name),
                end - left,
                chart.colour(&bar.name),
                high.max(end) + 5.0,
                number(bar.middle)
            );
        }
        let bottom = first + BAR * self.bars.len() as f64 - 3.0;
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{left}\" x2=\"{left}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>",
            first - 3.0
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Draws every table of a file of JSON into a folder, and returns the names of the files.
///
/// # Errors
///
/// The file is not one that this program wrote, or the folder cannot be written.
pub fn draw(json: &Path, folder: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(json).with_context(|| json.display().to_string())?;
    let tables: Value = serde_json::from_str(&text)?;
    let mut names = Vec::new();
    for table in tables.as_array().context("a list of tables")? {
        let chart = Chart::of_table(table)?;
        let name = format!("{}.svg", file_name(&chart.title));
        write(folder, &name, &chart)?;
        names.push(name);
    }
    Ok(names)
}

/// Writes a chart into a folder, which is made if need be.
///
/// # Errors
///
/// The folder cannot be written.
pub fn write(folder: &Path, name: &str, chart: &Chart) -> Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(name);
    fs::write(&path, chart.svg()).with_context(|| path.display().to_string())
}

/// The first words of a title, up to its colon, as a file is named.
fn file_name(title: &str) -> String {
    let short = title.split([':', ',']).next().unwrap_or(title);
    let letters = short
        .to_lowercase()
        .replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    letters
        .split('-')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::{Bar, Chart, Panel, file_name};
    use crate::report::{Better, Table};

    fn panel(name: &str, better: Better, middles: &[(&str, f64)]) -> Panel {
        let bars = middles.iter().map(|(name, middle)| Bar {
            name: (*name).to_owned(),
            middle: *middle,
            spread: (*middle * 0.5, *middle * 1.5),
        });
        Panel {
            name: name.to_owned(),
            better,
            bars: bars.collect(),
        }
    }

    fn chart(one_scale: bool, panels: Vec<Panel>) -> Chart {
        Chart {
            title: "a < b & c".to_owned(),
            arms: ["limit", "ambit", "sidecars"].map(str::to_owned).into(),
            ours: vec!["ambit".to_owned()],
            one_scale,
            panels,
        }
    }

    /// Widths of the bars, in order.
    fn widths(svg: &str) -> Vec<f64> {
        let rects = svg.split("<rect ").skip(1);
        rects
            .map(|rect| {
                rect.split("width=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect()
    }

    #[test]
    fn a_bar_is_as_long_as_its_number_within_its_panel() {
        let panels = vec![
            panel(
                "time, µs",
                Better::Less,
                &[("limit", 100.0), ("ambit", 50.0)],
            ),
            panel("rate, /s", Better::More, &[("limit", 9.0), ("ambit", 3.0)]),
        ];
        let svg = chart(false, panels.clone()).svg();
        let seen = widths(&svg);
        assert!(
            (seen[0] / seen[1] - 2.0).abs() < 0.01 && (seen[2] / seen[3] - 3.0).abs() < 0.01,
            "{seen:?}"
        );
        assert!(
            (seen[0] - seen[2]).abs() < 0.2,
            "each panel has its own scale"
        );
        let seen = widths(&chart(true, panels).svg());
        assert!(
            (seen[0] / seen[2] - 100.0 / 9.0).abs() < 0.2,
            "one scale: {seen:?}"
        );
    }

    #[test]
    fn says_which_way_is_good_and_escapes_what_is_not_its_own() {
        let svg = chart(
            false,
            vec![panel("time, µs", Better::Less, &[("x<y", 1.0)])],
        )
        .svg();
        for part in [
            "a &lt; b &amp; c",
            "time, µs",
            "← less is better",
            "x&lt;y",
            "prefers-color-scheme:dark",
        ] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert!(!svg.contains("more is better"));
        assert_eq!(
            svg.matches('<').count(),
            svg.matches('>').count(),
            "every tag is closed"
        );
    }

    #[test]
    fn an_arm_keeps_its_colour_where_others_are_missing() {
        let panels = vec![
            panel(
                "a",
                Better::Less,
                &[("limit", 1.0), ("sidecars", 1.0), ("ambit", 1.0)],
            ),
            panel("b", Better::Less, &[("sidecars", 1.0)]),
        ];
        let svg = chart(false, panels).svg();
        let colours: Vec<_> = svg
            .split("fill=\"")
            .skip(1)
            .map(|rest| &rest[..7])
            .collect();
        assert_eq!(colours[1], colours[3], "{colours:?}");
        assert_eq!(colours[2], super::OURS);
        assert_ne!(colours[0], colours[1]);
    }

    #[test]
    fn draws_nothing_but_zero_for_what_is_no_number() {
        let svg = chart(
            false,
            vec![panel("x", Better::More, &[("a", 0.0), ("b", f64::NAN)])],
        )
        .svg();
        assert_eq!(widths(&svg), [0.0, 0.0]);
    }

    #[test]
    fn charts_what_a_table_wrote_in_the_order_of_its_arms() {
        let mut table = Table::new(
            "Node proxy: two pods",
            &["no mesh", "ambit"],
            "ambit",
            &["no mesh"],
        );
        for value in [3.0, 1.0, 2.0] {
            table.add("rate, /s", Better::More, "ambit", value);
            table.add("rate, /s", Better::More, "no mesh", value * 10.0);
        }
        table.add("memory, MiB", Better::Less, "ambit", 12.0);
        let chart = Chart::of_table(&table.json()).unwrap();
        assert_eq!(chart.ours, ["ambit"]);
        let bars = &chart.panels[0].bars;
        assert_eq!(
            (bars[0].name.as_str(), bars[1].name.as_str()),
            ("no mesh", "ambit")
        );
        assert_eq!((bars[1].middle, bars[1].spread), (2.0, (1.0, 3.0)));
        assert_eq!(
            chart.panels[1].bars.len(),
            1,
            "an arm without a number has no bar"
        );
    }

    #[test]
    fn names_files_by_the_first_words_of_a_title() {
        assert_eq!(file_name("Node proxy: two pods, two nodes"), "node-proxy");
        assert_eq!(
            file_name("One hostile peer beside a quiet pod, on one node"),
            "one-hostile-peer-beside-a-quiet-pod"
        );
    }
}

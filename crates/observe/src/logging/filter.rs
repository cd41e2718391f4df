//! Which events are written: a level, and levels by target.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// Our crates' targets begin with this; people leave it out.
pub(super) const OWN_PREFIX: &str = "ambit_";

/// Most targets with a level of their own, so that repeated changes cannot grow the filter.
const MAX_TARGETS: usize = 64;

/// What is wrong with a filter text.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// A part is neither a level nor `target=level`.
    #[error("{0:?} is neither a level (off, error, warn, info, debug, trace) nor target=level")]
    Part(String),
    /// More than 64 targets.
    #[error("a filter names at most {MAX_TARGETS} targets")]
    TooMany,
}

/// A level for everything and levels by target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    default: Option<LevelFilter>,
    targets: BTreeMap<String, LevelFilter>,
}

impl Filter {
    /// Parses `info`, `xds=debug`, or several of those separated by commas.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut filter = Self {
            default: None,
            targets: BTreeMap::new(),
        };
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let wrong = || FilterError::Part(part.to_owned());
            // istioctl writes target:level, RUST_LOG has target=level.
            let split = part.split_once('=').or_else(|| part.rsplit_once(':'));
            match split {
                None => filter.default = Some(level(part).ok_or_else(wrong)?),
                Some((target, name)) => {
                    let known = level(name.trim()).ok_or_else(wrong)?;
                    let target = target.trim().trim_start_matches(OWN_PREFIX);
                    if target.is_empty() {
                        return Err(wrong());
                    }
                    filter.targets.insert(target.to_owned(), known);
                }
            }
        }
        if filter.targets.len() > MAX_TARGETS {
            return Err(FilterError::TooMany);
        }
        Ok(filter)
    }

    /// This filter with `change` on top. A change that names only a level for everything leaves
    /// the targets as they are.
    pub(super) fn with(&self, change: &Self) -> Self {
        let mut targets = change.targets.clone();
        for (target, level) in &self.targets {
            if targets.len() < MAX_TARGETS {
                targets.entry(target.clone()).or_insert(*level);
            }
        }
        Self {
            default: change.default.or(self.default),
            targets,
        }
    }

    pub(super) fn targets(&self) -> Targets {
        let default = self.default.unwrap_or(LevelFilter::INFO);
        let mut targets = Targets::new().with_default(default);
        for (target, level) in &self.targets {
            targets = targets
                .with_target(target.clone(), *level)
                .with_target(format!("{OWN_PREFIX}{target}"), *level);
        }
        targets
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default.unwrap_or(LevelFilter::INFO))?;
        self.targets
            .iter()
            .try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

fn level(name: &str) -> Option<LevelFilter> {
    Some(match name.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_levels_and_targets() {
        for (text, shown) in [
            ("info", "info"),
            ("WARN", "warn"),
            ("", "info"),
            ("xds=debug", "info,xds=debug"),
            (
                "warn, ambit_xds::client=trace,access=off",
                "warn,access=off,xds::client=trace",
            ),
            ("ztunnel:debug", "info,ztunnel=debug"),
        ] {
            assert_eq!(Filter::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for text in ["loud", "xds", "xds=loud", "=info", "a=b=c"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_change_goes_on_top() {
        let start = Filter::parse("info,xds=debug").unwrap();
        let changed = start.with(&Filter::parse("warn,access=off").unwrap());
        assert_eq!(changed.to_string(), "warn,access=off,xds=debug");
    }

    #[test]
    fn repeated_changes_do_not_grow_the_filter() {
        let mut filter = Filter::parse("info").unwrap();
        for n in 0..1000 {
            filter = filter.with(&Filter::parse(&format!("t{n}=debug")).unwrap());
        }
        assert!(filter.targets.len() <= MAX_TARGETS);
        assert!(filter.targets.contains_key("t999"), "the newest is kept");
    }
}

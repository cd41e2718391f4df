//! The numbers of a measurement, and what they were measured on; as JSON and back.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use ambit_tests::{envoy, programs};
use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Effort;
use crate::report;

/// How requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// No mesh between.
    None,
    /// From sidecar to sidecar, as bytes.
    SidecarsBytes,
    /// Through both node proxies, as bytes.
    Node,
    /// From sidecar to sidecar, each of which reads requests.
    SidecarsHttp,
    /// Through both node proxies and a waypoint, which reads requests.
    Waypoint,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Memory of the node before any request, MiB: all pages of each program.
    Idle,
    /// The same with pages that programs share counted once.
    IdleShared,
    /// Memory of the node after the last request, MiB.
    After,
    /// The same with pages that programs share counted once.
    AfterShared,
    /// CPU time a second without requests.
    IdleCores,
    /// CPU time a second at the rate.
    Cores,
    /// Half of the requests take no longer, µs.
    Half,
    /// One in a hundred takes longer, µs.
    Most,
}

/// Which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// Pods on the node.
    pub pods: usize,
    /// How requests go.
    pub way: Way,
    /// What is measured.
    pub what: What,
}

impl Way {
    /// In the order in which they take turns.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::SidecarsBytes,
        Self::Node,
        Self::SidecarsHttp,
        Self::Waypoint,
    ];
    /// Those with memory of their own: a sidecar is the same program for bytes and for requests.
    pub const MESHES: [Self; 3] = [Self::SidecarsBytes, Self::Node, Self::Waypoint];

    /// A name for people and programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no mesh",
            Self::SidecarsBytes => "sidecars, L4",
            Self::Node => "ambit, L4",
            Self::SidecarsHttp => "sidecars, HTTP",
            Self::Waypoint => "ambit + waypoint",
        }
    }
}

impl What {
    const ALL: [Self; 8] = [
        Self::Idle,
        Self::IdleShared,
        Self::After,
        Self::AfterShared,
        Self::IdleCores,
        Self::Cores,
        Self::Half,
        Self::Most,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "memory idle, MiB",
            Self::IdleShared => "memory idle, shared pages once, MiB",
            Self::After => "memory after load, MiB",
            Self::AfterShared => "memory after load, shared pages once, MiB",
            Self::IdleCores => "CPU idle, cores",
            Self::Cores => "CPU under load, cores",
            Self::Half => "p50, µs",
            Self::Most => "p99, µs",
        }
    }
}

/// All numbers of all rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// Machine and versions, as name and text.
    pub on: Vec<(String, String)>,
    /// Requests a second.
    pub rate: f64,
    /// Rounds, and seconds of each way in each.
    pub rounds: (usize, u64),
    /// How many pods there were, in turn.
    pub pods: Vec<usize>,
    numbers: BTreeMap<Number, Vec<f64>>,
}

impl Findings {
    /// None yet.
    ///
    /// # Errors
    ///
    /// Envoy is missing.
    pub fn new(effort: &Effort) -> Result<Self> {
        Ok(Self {
            on: machine()?,
            ..Self::of(
                effort.pods.clone(),
                effort.rate,
                (effort.rounds, effort.during.as_secs()),
            )
        })
    }

    pub(super) fn of(pods: Vec<usize>, rate: f64, rounds: (usize, u64)) -> Self {
        Self {
            on: Vec::new(),
            rate,
            rounds,
            pods,
            numbers: BTreeMap::new(),
        }
    }

    /// Adds a number of a round.
    pub fn add(&mut self, number: Number, value: f64) {
        self.numbers.entry(number).or_default().push(value);
    }

    /// The median of the rounds, if there was one.
    #[must_use]
    pub fn median(&self, number: Number) -> Option<f64> {
        report::median(self.numbers.get(&number)?)
    }

    /// The least and the most of the rounds.
    #[must_use]
    pub fn spread(&self, number: Number) -> Option<(f64, f64)> {
        report::spread(self.numbers.get(&number)?)
    }

    /// For programs, and for the next time that the page is made.
    #[must_use]
    pub fn json(&self) -> Value {
        let numbers = self.numbers.iter().map(|(number, rounds)| {
            json!({
                "pods": number.pods, "way": number.way.name(), "what": number.what.name(),
                "median": report::median(rounds), "spread": report::spread(rounds), "rounds": rounds,
            })
        });
        json!({
            "on": self.on, "rate": self.rate, "rounds": self.rounds.0, "seconds": self.rounds.1,
            "pods": self.pods, "numbers": numbers.collect::<Vec<_>>(),
        })
    }

    /// What [`json`](Self::json) wrote.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn from_json(json: &Value) -> Result<Self> {
        let size = |value: &Value| {
            Ok::<_, anyhow::Error>(usize::try_from(value.as_u64().context("a number")?)?)
        };
        let list = |value: &Value| value.as_array().cloned().context("a list");
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        let pods = list(&json["pods"])?
            .iter()
            .map(size)
            .collect::<Result<_>>()?;
        let rounds = (
            size(&json["rounds"])?,
            json["seconds"].as_u64().context("seconds")?,
        );
        let mut findings = Self::of(pods, json["rate"].as_f64().context("a rate")?, rounds);
        for pair in list(&json["on"])? {
            findings.on.push((text(&pair[0])?, text(&pair[1])?));
        }
        for entry in list(&json["numbers"])? {
            let number = Number {
                pods: size(&entry["pods"])?,
                way: Way::ALL
                    .into_iter()
                    .find(|way| entry["way"] == way.name())
                    .context("a way")?,
                what: What::ALL
                    .into_iter()
                    .find(|what| entry["what"] == what.name())
                    .context("a measure")?,
            };
            for value in list(&entry["rounds"])? {
                findings.add(number, value.as_f64().context("a number")?);
            }
        }
        Ok(findings)
    }
}

/// What this is measured on.
fn machine() -> Result<Vec<(String, String)>> {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .map(str::to_owned);
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
            .unwrap_or_default()
    };
    let cpus = std::thread::available_parallelism()?;
    let memory: f64 = field(&file("/proc/meminfo"), "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or_default();
    let envoy = envoy::program()?;
    let version = |program: &std::path::Path, argument: &str| -> Result<String> {
        let output = Command::new(program).arg(argument).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .trim()
            .to_owned())
    };
    // "…/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"
    let envoy = version(&envoy, "--version")?;
    let envoy = envoy.split('/').rev().nth(3).unwrap_or_default().to_owned();
    let built = if programs::folder()?.ends_with("debug") {
        "debug build: no measure of anything"
    } else {
        "release build"
    };
    let on = [
        (
            "CPU",
            format!("{} × {}", cpus, field(&file("/proc/cpuinfo"), "model name")),
        ),
        ("Memory", format!("{:.0} GiB", memory / 1024.0 / 1024.0)),
        (
            "Linux",
            file("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        ("Ambit", format!("{}, {built}", env!("CARGO_PKG_VERSION"))),
        (
            "Envoy",
            format!("{envoy} (PyPI), {} workers", envoy::sidecar::WORKERS),
        ),
    ];
    Ok(on.map(|(name, text)| (name.to_owned(), text)).into())
}

#[cfg(test)]
mod tests {
    use super::{Findings, Number, Way, What};

    #[test]
    fn what_is_written_is_read_again() {
        let mut findings = Findings::of(vec![1, 50], 500.0, (3, 10));
        findings
            .on
            .push(("CPU".to_owned(), "2 × something".to_owned()));
        for (index, what) in What::ALL.into_iter().enumerate() {
            for way in Way::ALL {
                findings.add(
                    Number {
                        pods: 50,
                        way,
                        what,
                    },
                    index as f64 + 0.5,
                );
                findings.add(
                    Number {
                        pods: 50,
                        way,
                        what,
                    },
                    7.0,
                );
            }
        }
        assert_eq!(Findings::from_json(&findings.json()).unwrap(), findings);
        assert!(Findings::from_json(&serde_json::json!({"pods": []})).is_err());
    }
}

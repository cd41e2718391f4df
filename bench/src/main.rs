//! Runs the measurements, or, as a child of itself, the limit's relay.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_bench::place::AMBIT;
use ambit_bench::report::Table;
use ambit_bench::resources::findings::Findings;
use ambit_bench::resources::page;
use ambit_bench::tunnel::{self, Effort, Shape};
use ambit_bench::{hostile, plot, relay, waypoint};
use ambit_net::netns::Netns;
use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// What the mesh costs, as ratios within one run. Needs root.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure.
    Run(Run),
    /// Measure what the size of the mesh costs a node proxy.
    Scale(Rounds),
    /// Measure what the number of pods on a node costs its proxy.
    Crowd(Rounds),
    /// What one hostile peer costs a quiet pod beside it.
    Hostile(Hostile),
    /// Measure what the mesh takes of a node beside sidecars, and write the page about it.
    Resources(Resources),
    /// Mixed load with churn; fails when memory or descriptors grow, or connections break.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 20)]
        minutes: u64,
    },
    /// Draw what was measured.
    Plot {
        /// What a measurement wrote.
        #[arg(long)]
        json: PathBuf,
        /// The folder for the charts: one for each table.
        #[arg(long)]
        out: PathBuf,
    },
    /// Be the bare relay, in the namespace this is started in.
    Relay {
        /// The port that redirect rules lead to.
        #[arg(long)]
        port: u16,
        /// Threads that share nothing.
        #[arg(long)]
        threads: usize,
    },
}

#[derive(Args)]
struct Run {
    /// Rounds; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each shape in each round.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Idle connections for the memory of one.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// Only this shape of load, for a closer look at the node proxy.
    #[arg(long)]
    shape: Option<Shape>,
    /// Only ours, compared with nothing: for profilers.
    #[arg(long)]
    ours: bool,
    /// Envoy sidecars log every connection to a file. By default they are as silent as the node proxies here.
    #[arg(long)]
    sidecar_log: bool,
    /// Also write everything here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Resources {
    /// Rounds; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each way in each round.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests a second, over all pods.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// How many pods are on the node, in turn.
    #[arg(long, value_delimiter = ',', default_value = "1,10,25,50")]
    pods: Vec<usize>,
    /// Write all numbers here.
    #[arg(long)]
    json: PathBuf,
    /// Measure nothing: take the numbers from that file.
    #[arg(long)]
    again: bool,
    /// The folder for the page and its charts.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Rounds {
    /// Rounds; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Also write everything here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Hostile {
    /// Rounds; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each arm of each attack in each round, taken in turns of half a second.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Data threads of each node proxy.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Microseconds between two blows of the attacker; none if it does all it can.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Also write everything here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Connections through node proxies.
    Tunnel,
    /// Requests through a waypoint.
    Waypoint,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        What::Relay { port, threads } => relay::run(&Netns::current()?, port, threads),
        What::Run(run) => measure(&run),
        What::Scale(of) => {
            let table = ambit_bench::scale::measure(of.rounds, say)?;
            report(&[table], of.json.as_deref())
        }
        What::Crowd(of) => {
            let table = ambit_bench::crowd::measure(of.rounds, say)?;
            report(&[table], of.json.as_deref())
        }
        What::Hostile(with) => {
            let (during, pause) = (
                Duration::from_secs(with.seconds),
                Duration::from_micros(with.pause),
            );
            let table = hostile::compare(with.rounds, during, with.threads, pause, say)?;
            report(&[table], with.json.as_deref())
        }
        What::Resources(with) => resources(with),
        What::Plot { json, out } => {
            for name in plot::draw(&json, &out)? {
                say(&format!("{}", out.join(name).display()));
            }
            Ok(())
        }
        What::Soak { minutes } => {
            let flat = ambit_bench::soak::run(Duration::from_secs(60 * minutes), say)?;
            ensure!(flat, "what should stay the same does not");
            Ok(())
        }
    }
}

fn measure(run: &Run) -> Result<()> {
    let effort = Effort {
        rounds: run.rounds,
        during: Duration::from_secs(run.seconds),
        idle: run.idle,
        shape: run.shape,
        arm: run.ours.then_some(AMBIT),
        sidecar_log: run.sidecar_log,
    };
    let mut tables = Vec::new();
    if run.only.is_none_or(|only| only == Part::Tunnel) {
        tables.push(tunnel::compare(effort, say)?);
    }
    if run.only.is_none_or(|only| only == Part::Waypoint) {
        tables.push(waypoint::compare(effort, say)?);
    }
    report(&tables, run.json.as_deref())
}

fn resources(with: Resources) -> Result<()> {
    let findings = if with.again {
        Findings::from_json(&serde_json::from_str(&fs::read_to_string(&with.json)?)?)?
    } else {
        let effort = ambit_bench::resources::Effort {
            rounds: with.rounds,
            during: Duration::from_secs(with.seconds),
            rate: with.rate,
            pods: with.pods,
        };
        let findings = ambit_bench::resources::measure(&effort, say)?;
        fs::write(&with.json, format!("{:#}\n", findings.json())).context("the JSON file")?;
        findings
    };
    for (name, chart) in page::charts(&findings) {
        plot::write(&with.out.join("plots"), name, &chart)?;
    }
    let path = with.out.join("resource-usage.md");
    fs::write(&path, page::markdown(&findings)).context("the page")?;
    say(&format!("{}", path.display()));
    Ok(())
}

fn report(tables: &[Table], json: Option<&Path>) -> Result<()> {
    for table in tables {
        say(&format!("\n{}", table.markdown()));
    }
    if let Some(path) = json {
        let all: Vec<_> = tables.iter().map(Table::json).collect();
        fs::write(path, format!("{:#}\n", serde_json::Value::from(all)))
            .context("the JSON file")?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn say(text: &str) {
    println!("{text}");
}

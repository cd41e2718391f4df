//! Runs the measurements, or, as a child of itself, the limit's relay.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ambit_bench::load::{self, pause};
use ambit_bench::place::{Arm, Place};
use ambit_bench::relay;
use ambit_bench::report::{Better, Report};
use ambit_net::netns::Netns;
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

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
    /// Also write everything here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        What::Relay { port, threads } => relay::run(&Netns::current()?, port, threads),
        What::Run(run) => measure(&run),
    }
}

fn measure(run: &Run) -> Result<()> {
    let place = Place::make()?;
    let mut report = Report::default();
    // Before any load: what it takes to be there.
    pause(Duration::from_secs(2));
    let idle = memory(&place)?;
    for round in 1..=run.rounds {
        for arm in Arm::ALL {
            say(&format!("round {round} of {}: {}", run.rounds, arm.name()));
            shapes(&place, arm, Duration::from_secs(run.seconds), &mut report)
                .with_context(|| arm.name())?;
        }
    }
    report.single(
        "ztunnel idle, ten pods, mean of a node, MiB",
        idle / 2.0 / MIB,
    );
    let before = memory(&place)?;
    let open = load::idle(
        place.pod(Arm::Mesh, "client"),
        place.pod(Arm::Mesh, "server"),
        run.idle,
    )?;
    pause(Duration::from_secs(2));
    let each = (memory(&place)? - before) / open.len() as f64;
    report.single("an idle connection, both ends, KiB", each / 1024.0);
    say(&report.table());
    if let Some(path) = &run.json {
        fs::write(path, format!("{:#}\n", report.json())).context("the JSON file")?;
    }
    Ok(())
}

const MIB: f64 = 1024.0 * 1024.0;

/// Every shape once on one arm.
fn shapes(place: &Place, arm: Arm, during: Duration, report: &mut Report) -> Result<()> {
    let (client, server) = (place.pod(arm, "client"), place.pod(arm, "server"));
    let near = place.pod(arm, "near");
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let one = load::round_trips(client, server, during)?;
    report.add(
        "ping-pong 64 B, 1 connection, p50 µs",
        Better::Less,
        arm,
        micros(one.p50),
    );
    report.add(
        "ping-pong 64 B, 1 connection, p99 µs",
        Better::Less,
        arm,
        micros(one.p99),
    );
    let many = load::pings(client, server, 16, during)?;
    report.add("ping-pong, 16 connections, /s", Better::More, arm, many);
    let short = load::connections(client, server, 8, during)?;
    report.add(
        "connect + ping + close, 8 at once, /s",
        Better::More,
        arm,
        short,
    );
    let bulk = load::bulk(client, server, during)?;
    report.add("bulk, 1 connection, Gbit/s", Better::More, arm, bulk);
    let one = load::round_trips(client, near, during)?;
    report.add(
        "same node: ping-pong p50 µs",
        Better::Less,
        arm,
        micros(one.p50),
    );
    let bulk = load::bulk(client, near, during)?;
    report.add("same node: bulk, Gbit/s", Better::More, arm, bulk);
    Ok(())
}

/// Resident memory of both node proxies, in bytes.
fn memory(place: &Place) -> Result<f64> {
    let nodes = ["ztunnel-n1", "ztunnel-n2"].map(|name| place.world().programs().resident(name));
    let [one, two] = nodes.map(|bytes| bytes.context("a node proxy runs"));
    Ok((one? + two?) as f64)
}

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn say(text: &str) {
    println!("{text}");
}

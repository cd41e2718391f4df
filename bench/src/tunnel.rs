//! The node proxy: connections between pods.

use std::io;
use std::time::Duration;

use ambit_tests::pod::Pod;
use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::http;
use crate::load::{self, Direction, Times};
use crate::paced::{self, Pace};
use crate::place::{AMBIT, Beside, ISTIO, LIMIT, NONE, Place, SIDECARS};
use crate::report::{Arm, Better, Table};
use crate::window::{Meter, Window, pause, settle};

/// How many connections carry bulk at once.
const BULK: [usize; 3] = [1, 4, 16];
/// Connections that carry small messages at a fixed rate, and messages a second over all.
const PACED: (usize, f64) = (4, 1000.0);
/// Streams that their client does not read, so many that each tunnel between two pods has one.
const STALLED: usize = 4;
/// Until all buffers on the way are full.
const FILLED: Duration = Duration::from_secs(1);
/// How often it is measured without and with them: half a second each, of three.
const TURNS: u32 = 6;
const MIB: f64 = 1024.0 * 1024.0;

/// How much is measured, and what.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds of all arms.
    pub rounds: usize,
    /// Of each shape in each round.
    pub during: Duration,
    /// Idle connections for the memory of one.
    pub idle: usize,
    /// Only this one.
    pub shape: Option<Shape>,
    /// Only the arm of this name.
    pub arm: Option<&'static str>,
    /// Sidecars log every connection.
    pub sidecar_log: bool,
}

/// Measures all shapes on all arms.
///
/// # Errors
///
/// A connection breaks, or a program is missing.
pub fn compare(effort: Effort, say: fn(&str)) -> Result<Table> {
    let beside = match effort.arm {
        Some(_) => Beside::Nothing,
        None if effort.sidecar_log => Beside::Logging,
        None => Beside::Silent,
    };
    let place = Place::make(beside.possible(say))?;
    let mut arms = place.arms();
    arms.retain(|arm| effort.arm.is_none_or(|only| only == *arm));
    let mut against = vec![LIMIT];
    against.extend(arms.iter().filter(|arm| [ISTIO, SIDECARS].contains(*arm)));
    let mut table = Table::new(
        "Node proxy: two pods, two nodes, one machine",
        &arms,
        AMBIT,
        &against,
    );
    // Before any load: what it takes to be there.
    settle();
    for arm in arms.iter().filter(|arm| **arm != NONE) {
        let each = place.memory(arm) / 2.0 / MIB;
        if *arm != LIMIT {
            table.add(
                "memory idle, ten pods, a node, MiB",
                Better::Less,
                arm,
                each,
            );
            let own = place.own_memory(arm) / 2.0 / MIB;
            table.add("of it private, MiB", Better::Less, arm, own);
        }
    }
    for round in 1..=effort.rounds {
        for arm in &arms {
            say(&format!("round {round} of {}: {arm}", effort.rounds));
            shapes(&place, arm, &effort, &mut table).with_context(|| *arm)?;
        }
    }
    for arm in arms.iter().filter(|arm| ![NONE, LIMIT].contains(arm)) {
        table.add(
            "memory after load, a node, MiB",
            Better::Less,
            arm,
            place.memory(arm) / 2.0 / MIB,
        );
        let before = place.memory(arm);
        let open = load::idle(
            place.pod(arm, "client"),
            place.pod(arm, "server"),
            effort.idle,
        )?;
        pause(Duration::from_secs(2));
        let each = (place.memory(arm) - before) / open.len() as f64 / 1024.0;
        table.add(
            "an idle connection, both ends, KiB",
            Better::Less,
            arm,
            each,
        );
    }
    Ok(table)
}

/// One kind of load, to be picked by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// One connection, one ping after the other.
    Ping,
    /// Sixteen of them.
    Pings,
    /// Connect, ping, close.
    Short,
    /// As many bytes as go.
    Bulk,
    /// Pods on one node.
    Near,
    /// Small messages at a fixed rate.
    Paced,
    /// HTTP/1.1 between pods, of which the proxies see bytes.
    Http,
    /// Small messages beside streams that nobody reads.
    Stalled,
}

/// Every shape that is wanted once on one arm.
fn shapes(place: &Place, arm: Arm, effort: &Effort, table: &mut Table) -> Result<()> {
    let pair = (place.pod(arm, "client"), place.pod(arm, "server"));
    let wants = |shape| effort.shape.is_none_or(|only| only == shape);
    let during = effort.during;
    let meter = || place.cpu(arm);
    if wants(Shape::Ping) {
        let one = load::round_trips(pair.0, pair.1, during)?;
        table.add(
            "ping-pong 64 B, 1 connection, p50 µs",
            Better::Less,
            arm,
            micros(one.p50),
        );
        table.add(
            "ping-pong 64 B, 1 connection, p99 µs",
            Better::Less,
            arm,
            micros(one.p99),
        );
    }
    if wants(Shape::Pings) {
        let many = load::pings(pair.0, pair.1, 16, during, &meter)?;
        table.add(
            "ping-pong, 16 connections, /s",
            Better::More,
            arm,
            many.rate(),
        );
        table.add(
            "ping-pong, CPU µs each",
            Better::Less,
            arm,
            many.cost() * 1e6,
        );
    }
    if wants(Shape::Short) {
        let short = load::connections(pair.0, pair.1, 8, during, &meter)?;
        table.add(
            "connect + ping + close, 8 at once, /s",
            Better::More,
            arm,
            short.rate(),
        );
        table.add(
            "connect + ping + close, CPU µs each",
            Better::Less,
            arm,
            short.cost() * 1e6,
        );
    }
    if wants(Shape::Bulk) {
        bulk(pair, arm, during, &meter, table)?;
    }
    for (shape, measure) in MORE {
        if wants(*shape) {
            measure(pair, arm, effort, table)?;
        }
    }
    if wants(Shape::Near) {
        let pair = (pair.0, place.pod(arm, "near"));
        let one = load::round_trips(pair.0, pair.1, during)?;
        table.add(
            "same node: ping-pong p50 µs",
            Better::Less,
            arm,
            micros(one.p50),
        );
        let bulk = load::bulk(pair, Direction::Up, 1, during, &meter)?;
        table.add(
            "same node: bulk up, Gbit/s",
            Better::More,
            arm,
            gigabits(&bulk),
        );
    }
    Ok(())
}

/// Shapes in which who stands between is not asked for its CPU time.
type Measure = fn((&Pod, &Pod), Arm, &Effort, &mut Table) -> Result<()>;
const MORE: &[(Shape, Measure)] = &[
    (Shape::Paced, paced),
    (Shape::Http, requests),
    (Shape::Stalled, beside_stalled),
];

/// Small messages when they are due, not when the one before is answered.
fn paced(pair: (&Pod, &Pod), arm: Arm, effort: &Effort, table: &mut Table) -> Result<()> {
    let connections = (0..PACED.0).map(|_| load::connect(pair.0, pair.1, load::ECHO));
    let connections = connections.collect::<io::Result<Vec<_>>>()?;
    let pace = Pace {
        rate: PACED.1,
        during: effort.during,
    };
    let done = paced::run(connections, pace, &|| Duration::ZERO, load::ping)?;
    for (name, thousandths) in [("p50", 500), ("p99", 990)] {
        let row = format!(
            "64 B at {} /s over {} connections, {name} µs",
            PACED.1, PACED.0
        );
        table.add(&row, Better::Less, arm, micros(done.at(thousandths)?));
    }
    Ok(())
}

fn requests(pair: (&Pod, &Pod), arm: Arm, effort: &Effort, table: &mut Table) -> Result<()> {
    let to = format!("{}:{}", pair.1.ipv4(), load::HTTP);
    let done = http::requests(pair.0, &to, 16, effort.during, &|| Duration::ZERO)?;
    let row = "HTTP/1.1, 1 KiB answers, 16 connections, /s";
    table.add(row, Better::More, arm, done.rate());
    Ok(())
}

/// What streams that do not move do to those beside them, which share their tunnels.
fn beside_stalled(pair: (&Pod, &Pod), arm: Arm, effort: &Effort, table: &mut Table) -> Result<()> {
    // In turns: a 99th percentile of a second is as much about the machine's mood in that second.
    let (mut without, mut beside) = (Times::default(), Times::default());
    let mut stuck = false;
    for _ in 0..TURNS {
        let during = effort.during / TURNS;
        without.add(load::times(pair.0, pair.1, during)?);
        let stalled = load::stalled(pair.0, pair.1, STALLED)?;
        pause(FILLED);
        // Who lets its neighbours starve is slow, and no reason to measure nothing else: what does not come counts as what was waited.
        match load::times(pair.0, pair.1, during) {
            Ok(times) => beside.add(times),
            Err(error) if load::is_stuck(&error) => stuck = true,
            Err(error) => return Err(error),
        }
        drop(stalled);
        if stuck {
            break;
        }
    }
    let without = without.round_trip()?;
    let beside = if stuck {
        load::STUCK
    } else {
        beside.round_trip()?.p99
    };
    let mut add = |name: &str, value: f64| {
        let row = format!("ping-pong beside {STALLED} stalled streams, {name}");
        table.add(&row, Better::Less, arm, value);
    };
    add("p99 µs", micros(beside));
    add(
        "p99 : without",
        beside.as_secs_f64() / without.p99.as_secs_f64(),
    );
    Ok(())
}

fn bulk(
    pair: (&Pod, &Pod),
    arm: Arm,
    during: Duration,
    meter: Meter<'_>,
    table: &mut Table,
) -> Result<()> {
    for at_once in BULK {
        let bulk = load::bulk(pair, Direction::Up, at_once, during, meter)?;
        let name = format!("bulk up, {at_once} at once, Gbit/s");
        table.add(&name, Better::More, arm, gigabits(&bulk));
        if at_once == 1 {
            table.add("bulk up, CPU s a GB", Better::Less, arm, bulk.cost() * 1e9);
        }
    }
    let bulk = load::bulk(pair, Direction::Down, 1, during, meter)?;
    table.add(
        "bulk down, 1 connection, Gbit/s",
        Better::More,
        arm,
        gigabits(&bulk),
    );
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn gigabits(bytes: &Window) -> f64 {
    bytes.rate() * 8.0 / 1e9
}

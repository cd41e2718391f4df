//! The node proxy: connections between pods.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::{self, Direction};
use crate::place::{AMBIT, ISTIO, LIMIT, NONE, Place};
use crate::report::{Arm, Better, Table};
use crate::window::pause;

/// How many connections carry bulk at once.
const BULK: [usize; 3] = [1, 4, 16];
const MIB: f64 = 1024.0 * 1024.0;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds of all arms.
    pub rounds: usize,
    /// Of each shape in each round.
    pub during: Duration,
    /// Idle connections for the memory of one.
    pub idle: usize,
}

/// Measures all shapes on all arms.
///
/// # Errors
///
/// A connection breaks, or a program is missing.
pub fn compare(effort: Effort, say: fn(&str)) -> Result<Table> {
    let place = Place::make()?;
    let arms = place.arms();
    let mut against = vec![LIMIT];
    against.extend(arms.iter().filter(|arm| **arm == ISTIO));
    let mut table = Table::new(
        "Node proxy: two pods, two nodes, one machine",
        &arms,
        AMBIT,
        &against,
    );
    // Before any load: what it takes to be there.
    pause(Duration::from_secs(2));
    for arm in arms.iter().filter(|arm| **arm != NONE) {
        let each = place.memory(arm) / 2.0 / MIB;
        if *arm != LIMIT {
            table.add(
                "memory idle, ten pods, a node, MiB",
                Better::Less,
                arm,
                each,
            );
        }
    }
    for round in 1..=effort.rounds {
        for arm in &arms {
            say(&format!("round {round} of {}: {arm}", effort.rounds));
            shapes(&place, arm, effort.during, &mut table).with_context(|| *arm)?;
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

/// Every shape once on one arm.
fn shapes(place: &Place, arm: Arm, during: Duration, table: &mut Table) -> Result<()> {
    let (client, server) = (place.pod(arm, "client"), place.pod(arm, "server"));
    let near = place.pod(arm, "near");
    let meter = || place.cpu(arm);
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let one = load::round_trips(client, server, during)?;
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
    let many = load::pings(client, server, 16, during, &meter)?;
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
    let short = load::connections(client, server, 8, during, &meter)?;
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
    for at_once in BULK {
        let bulk = load::bulk((client, server), Direction::Up, at_once, during, &meter)?;
        let name = format!("bulk up, {at_once} connections, Gbit/s");
        table.add(&name, Better::More, arm, bulk.rate() * 8.0 / 1e9);
        if at_once == 1 {
            table.add("bulk up, CPU s a GB", Better::Less, arm, bulk.cost() * 1e9);
        }
    }
    let bulk = load::bulk((client, server), Direction::Down, 1, during, &meter)?;
    table.add(
        "bulk down, 1 connection, Gbit/s",
        Better::More,
        arm,
        bulk.rate() * 8.0 / 1e9,
    );
    let one = load::round_trips(client, near, during)?;
    table.add(
        "same node: ping-pong p50 µs",
        Better::Less,
        arm,
        micros(one.p50),
    );
    let bulk = load::bulk((client, near), Direction::Up, 1, during, &meter)?;
    table.add(
        "same node: bulk up, Gbit/s",
        Better::More,
        arm,
        bulk.rate() * 8.0 / 1e9,
    );
    Ok(())
}

//! The waypoint: requests through both node proxies and a waypoint, ours or Envoy, on the same
//! resources from the same controller.

use std::time::Duration;

use ambit_tests::envoy;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::World;
use anyhow::{Context, Result};

use crate::http;
use crate::place::many_ports;
use crate::report::{Arm, Better, Table};
use crate::tunnel::Effort;
use crate::window::settle;

/// Node proxies alone.
const NONE: Arm = "no waypoint";
/// Envoy as the waypoint, with one worker as one pod's CPU would give it.
const ENVOY: Arm = "envoy";
/// Ours.
const AMBIT: Arm = "ambit";

const PROGRAM: &str = "waypoint-mesh-waypoint";
const PORT: u16 = 8080;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures requests; without Envoy's program only ours.
///
/// # Errors
///
/// A request fails, or a program is missing.
pub fn compare(effort: Effort, say: fn(&str)) -> Result<Table> {
    let ours = place(plan("ours"))?;
    let envoy = match envoy::program() {
        Ok(_) => Some(place(plan("envoy").envoy_waypoints())?),
        Err(error) => {
            say(&format!("no comparison with Envoy: {error:#}"));
            None
        }
    };
    let mut arms = vec![(NONE, &ours, "direct.mesh:80")];
    arms.extend(envoy.as_ref().map(|world| (ENVOY, world, "shop.mesh:80")));
    arms.push((AMBIT, &ours, "shop.mesh:80"));
    let names: Vec<Arm> = arms.iter().map(|(arm, ..)| *arm).collect();
    let against: &[Arm] = if envoy.is_some() { &[ENVOY] } else { &[] };
    let mut table = Table::new(
        "Waypoint: HTTP/1.1, answers of 1 KiB",
        &names,
        AMBIT,
        against,
    );
    settle();
    for (arm, world, _) in arms.iter().filter(|(arm, ..)| *arm != NONE) {
        table.add(
            "waypoint, memory idle, MiB",
            Better::Less,
            arm,
            memory(world)?,
        );
    }
    for round in 1..=effort.rounds {
        for (arm, world, to) in &arms {
            say(&format!("round {round} of {}: {arm}", effort.rounds));
            shapes((arm, world, to), effort.during, &mut table).with_context(|| *arm)?;
        }
    }
    for (arm, world, _) in arms.iter().filter(|(arm, ..)| *arm != NONE) {
        table.add(
            "waypoint, memory after load, MiB",
            Better::Less,
            arm,
            memory(world)?,
        );
    }
    Ok(table)
}

fn shapes(
    (arm, world, to): (Arm, &World, &str),
    during: Duration,
    table: &mut Table,
) -> Result<()> {
    let client = world.pod("mesh/client");
    let one = http::round_trips(client, to, during)?;
    table.add(
        "1 connection, p50 µs",
        Better::Less,
        arm,
        one.as_secs_f64() * 1e6,
    );
    let meter = || world.programs().cpu(PROGRAM).unwrap_or_default();
    let many = http::requests(client, to, 16, during, &meter)?;
    table.add("16 connections, requests/s", Better::More, arm, many.rate());
    if arm != NONE {
        table.add(
            "waypoint, CPU µs a request",
            Better::Less,
            arm,
            many.cost() * 1e6,
        );
    }
    Ok(())
}

fn memory(world: &World) -> Result<f64> {
    let bytes = world
        .programs()
        .resident(PROGRAM)
        .context("the waypoint runs")?;
    Ok(bytes as f64 / MIB)
}

fn plan(name: &str) -> Plan {
    let http: &[(&str, u16, u16)] = &[("http", 80, PORT)];
    Plan::new(name)
        .namespace("mesh", &[AMBIENT])
        .setting("RUST_LOG", "warn")
        .pod("mesh/client", 1)
        .pod_with("mesh/server", 2, |pod| pod.label("app", "shop"))
        .service("mesh/direct", "shop", http)
        .service("mesh/shop", "shop", http)
        .labelled("istio.io/use-waypoint", "waypoint")
        .waypoint("mesh/waypoint", 2, "service")
}

fn place(plan: Plan) -> Result<World> {
    let world = World::start(plan)?;
    many_ports(world.pod("mesh/client"))?;
    http::serve(world.pod("mesh/server"), PORT)?;
    Ok(world)
}

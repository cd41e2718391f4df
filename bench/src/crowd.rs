//! What the number of pods on a node costs its proxy.
//!
//! # Theory of operation
//! One node with so many real pods: namespaces with a cable each, enrolled by the real agent, certified by the real controller. The
//! proxy is started anew: how long until it serves all of them, what it then holds, and what it does while nothing happens. Then one pod
//! goes out of the mesh and in again, again and again: the cost of that. And two of the pods talk. A cost that does not grow with
//! the pods of the node has equal columns.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use ambit_net::netns::Netns;
use ambit_tests::expect::eventually_true;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::World;
use anyhow::{Context, Result};

use crate::load;
use crate::report::{Arm, Better, Table};
use crate::window::{pause, settle};

/// Pods on the node.
const SIZES: [(Arm, usize); 3] = [("10", 10), ("100", 100), ("1,000", 1000)];
/// The proxy under test.
const PROXY: &str = "ztunnel-n1";
/// Where a proxy takes tunnels for a pod: it listens there as long as the pod is in the mesh.
const HBONE: u16 = 15008;
/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long is looked at what the proxy does while nothing happens.
const QUIET: Duration = Duration::from_secs(10);
/// Times that a pod goes out and in.
const TURNS: u32 = 10;
/// How long two of the pods talk.
const TALK: Duration = Duration::from_secs(2);
const MIB: f64 = 1024.0 * 1024.0;

/// Measures every size in each of `rounds` rounds.
///
/// # Errors
///
/// Not root, or the programs are not built.
pub fn measure(rounds: usize, say: impl Fn(&str)) -> Result<Table> {
    let arms = SIZES.map(|(arm, _)| arm);
    let title = "One node proxy, by pods on its node";
    let mut table = Table::new(title, &arms, arms[2], &arms[..1]);
    for round in 1..=rounds {
        let mut least = None;
        for (arm, size) in SIZES {
            say(&format!("round {round} of {rounds}: {arm} pods"));
            let resident = one(arm, size, &mut table)?;
            let (few, with_few) = *least.get_or_insert((size, resident));
            if size > few {
                let each = (resident - with_few) / (size - few) as f64 / 1024.0;
                table.add("resident for each pod, KiB", Better::Less, arm, each);
            }
        }
    }
    Ok(table)
}

/// Measures one node. Returns the proxy's memory in bytes.
fn one(arm: Arm, size: usize, table: &mut Table) -> Result<f64> {
    let pods = (0..size).map(|number| format!("mesh/pod-{number}"));
    let plan = pods.fold(
        Plan::new("crowd").namespace("mesh", &[AMBIENT]),
        |plan, pod| plan.pod(&pod, 1),
    );
    let world = World::start(plan.setting("RUST_LOG", "warn"))?;
    let cpu = || world.programs().cpu(PROXY).context("a running proxy");
    let mut less = |name: &str, value: f64| table.add(name, Better::Less, arm, value);

    less("until all are served, s", restarted(&world).as_secs_f64());
    settle();
    let resident = world.programs().resident(PROXY).context("its memory")? as f64;
    less("resident, MiB", resident / MIB);
    let process = world.programs().process(PROXY).context("its process")?;
    let descriptors = fs::read_dir(format!("/proc/{process}/fd"))?.count();
    less("descriptors", descriptors as f64);
    let (before, begin) = (cpu()?, Instant::now());
    pause(QUIET);
    let share = (cpu()? - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    less("CPU while nothing happens, % of a core", share * 100.0);

    let (name, mover) = ("mesh/pod-2", world.pod("mesh/pod-2"));
    let (key, value) = AMBIENT;
    let (before, begin) = (cpu()?, Instant::now());
    for turn in 0..2 * TURNS {
        let inside = turn % 2 == 1;
        // Out by a value of its own: without one, what the namespace says would count.
        world.label_pod(name, key, Some(if inside { value } else { "none" }));
        eventually_true(PATIENCE, "a pod goes out or in", || {
            listens(mover.netns()) == inside
        });
    }
    less(
        "a pod out and in, ms",
        begin.elapsed().as_secs_f64() * 1e3 / f64::from(TURNS),
    );
    less(
        "a pod out and in, CPU ms",
        (cpu()? - before).as_secs_f64() * 1e3 / f64::from(TURNS),
    );

    let (client, server) = (world.pod("mesh/pod-0"), world.pod("mesh/pod-1"));
    load::serve(server)?;
    let talk = load::round_trips(client, server, TALK)?;
    less(
        "ping-pong of two of them, p50 µs",
        talk.p50.as_secs_f64() * 1e6,
    );
    Ok(resident)
}

/// Starts the proxy anew; how long until it serves every pod.
fn restarted(world: &World) -> Duration {
    world.kill(PROXY);
    let begin = Instant::now();
    world.start_again(PROXY);
    begin.elapsed()
}

/// Whether somebody takes tunnels in a pod.
fn listens(netns: &Netns) -> bool {
    let bound = netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, HBONE)));
    bound.is_ok_and(|bound| bound.is_err())
}

//! What one hostile peer costs its neighbours.
//!
//! A quiet pod's small requests go to a pod of the second node. Beside it on that node is another pod,
//! and a peer with a certificate of the mesh attacks that pod's port for tunnels, which the same node
//! proxy serves: with one data thread, so that there is no thread to hide on. Three arms take turns:
//! nobody attacks; the attack; and, because an attacker on the same machine costs it CPU time whatever
//! the proxy does, as many bytes and as much CPU time that no proxy has to do with. What the proxy
//! lets the attacker take is the attack's figure as a multiple of the last.
//!
//! A 99th percentile needs many requests, and a machine has bad moments that last seconds. So the arms
//! take turns in short windows, and a figure is that of all requests of an arm's windows of a round.

use std::net::SocketAddr;
use std::time::Duration;

use ambit_tests::hostile::{Attack, Spent};
use ambit_tests::mint::{Credentials, Mint};
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::World;
use anyhow::Result;

use crate::load::{self, Times};
use crate::place::many_ports;
use crate::report::{Arm, Better, Table};

const QUIET: Arm = "nobody";
const DROPPED: Arm = "dropped before";
const HOSTILE: Arm = "hostile peer";

/// Where the proxy takes tunnels.
const HBONE: u16 = 15008;

/// Measures all attacks.
///
/// # Errors
///
/// A program is missing, or the quiet pod's connection breaks.
pub fn compare(
    rounds: usize,
    during: Duration,
    threads: usize,
    pause: Duration,
    say: fn(&str),
) -> Result<Table> {
    let plan = Plan::new("hostile")
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/server", 2)
        .pod("mesh/target", 2)
        .pod("outside/peer", 1)
        .setting("RUST_LOG", "warn")
        .setting("ZTUNNEL_WORKER_THREADS", &threads.to_string());
    let world = World::start(plan)?;
    let peer = world.pod("outside/peer");
    many_ports(peer)?;
    for pod in ["mesh/server", "mesh/target"] {
        load::serve(world.pod(pod))?;
    }
    let with = Mint::of(&world.state())?.issue("spiffe://cluster.local/ns/mesh/sa/peer")?;
    let arms = [QUIET, DROPPED, HOSTILE];
    let title = "One hostile peer beside a quiet pod, on one node";
    let mut table = Table::new(title, &arms, HOSTILE, &[QUIET, DROPPED]);
    for round in 1..=rounds {
        for attack in Attack::ALL {
            say(&format!("round {round} of {rounds}: {}", attack.name()));
            let case = Case {
                world: &world,
                peer,
                with: &with,
                attack,
                during,
                pause,
            };
            case.measure(&mut table)?;
        }
    }
    Ok(table)
}

struct Case<'a> {
    world: &'a World,
    peer: &'a Pod,
    with: &'a Credentials,
    attack: Attack,
    during: Duration,
    pause: Duration,
}

/// A window of one arm: short beside the machine's moods, long beside the start of an attack.
const WINDOW: Duration = Duration::from_millis(500);

/// What an arm saw in its windows.
#[derive(Default)]
struct Seen {
    times: Times,
    /// CPU time of the proxy of the quiet pod's server, and what the others did, each in so much time.
    proxy: Duration,
    during: Duration,
    spent: Spent,
}

impl Case<'_> {
    fn measure(&self, table: &mut Table) -> Result<()> {
        let target = self.world.pod("mesh/target").ipv4();
        let at = SocketAddr::from((target, HBONE));
        let [mut quiet, mut hostile, mut dropped] = [(); 3].map(|()| Seen::default());
        while quiet.during < self.during {
            self.requests(&mut quiet)?;
            let peer = self.peer.attack(self.attack, at, self.with, self.pause)?;
            let beside = self.requests(&mut hostile);
            let spent = peer.end();
            beside?;
            hostile.spent += spent;
            let pretended = self.peer.pretend(at, spent);
            let beside = self.requests(&mut dropped);
            dropped.spent += pretended.end();
            beside?;
        }
        for (arm, seen) in [(QUIET, quiet), (HOSTILE, hostile), (DROPPED, dropped)] {
            self.add(table, arm, seen)?;
        }
        Ok(())
    }

    /// The quiet pod's round trips in one window, and what the proxy of its server used meanwhile.
    fn requests(&self, seen: &mut Seen) -> Result<()> {
        let proxy = || self.world.programs().cpu("ztunnel-n2").unwrap_or_default();
        let [client, server] = ["mesh/client", "mesh/server"].map(|path| self.world.pod(path));
        let (begun, before) = (std::time::Instant::now(), proxy());
        seen.times.add(load::times(client, server, WINDOW)?);
        seen.proxy += proxy() - before;
        seen.during += begun.elapsed();
        Ok(())
    }

    fn add(&self, table: &mut Table, arm: Arm, seen: Seen) -> Result<()> {
        let times = seen.times.round_trip()?;
        let mut row = |what: &str, value: f64| {
            let name = format!("{}: {what}", self.attack.name());
            table.add(&name, Better::Less, arm, value);
        };
        row("p50 µs", times.p50.as_secs_f64() * 1e6);
        row("p99 µs", times.p99.as_secs_f64() * 1e6);
        let proxy = seen.proxy.as_secs_f64() / seen.during.as_secs_f64();
        row("the proxy's CPU, %", proxy * 100.0);
        let spent = seen.spent;
        if spent.during > Duration::ZERO {
            row("the peer's CPU, %", spent.share() * 100.0);
            row("the peer's KiB a second", spent.rate() / 1024.0);
            let connections = spent.connections as f64 / spent.during.as_secs_f64();
            row("the peer's connections a second", connections);
        }
        Ok(())
    }
}

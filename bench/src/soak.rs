//! Hours in minutes: mixed load with churn of pods and policies, and whether memory and descriptors stay where they are.
//!
//! # Theory of operation
//! Two nodes with load between and within them: long connections, short ones, bulk both ways, ones that are reset, ones that a policy
//! refuses, ones to where nobody listens. Meanwhile pods go in and out of the mesh, and policies come and go, some of which end
//! live connections. Every few seconds the resident memory and the descriptors of each program are looked at. What is the same at the
//! end as half-way is flat; what still grew is a leak, and the soak fails. It also fails if a connection broke that nothing forbade.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::World;
use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use socket2::SockRef;

use crate::load::{self, Direction};
use crate::place::many_ports;
use crate::window::pause;

/// How often is looked at the programs.
const LOOK: Duration = Duration::from_secs(5);
/// How often is said what was seen.
const SAY: Duration = Duration::from_secs(60);
/// A pod goes in or out, a policy comes or goes.
const CHURN: Duration = Duration::from_secs(2);
/// Long connections at once.
const LONG: usize = 8;
/// Pings of one long connection before it is replaced: about a minute's.
const PINGS: usize = 10_000;
/// Between two pings of one, and between two short connections: the machine shall not be full, since then it is the scheduler that is
/// measured.
const BREATH: Duration = Duration::from_millis(5);
/// Between two stretches of bulk.
const REST: Duration = Duration::from_secs(3);
/// Growth that is noise: what the allocator holds or does not hold back at the moment.
const NOISE: f64 = 0.03;
/// The same for programs that have little: in bytes.
const LITTLE: f64 = 1024.0 * 1024.0;
/// The same for descriptors: the connections that are open at the moment.
const FEW: f64 = 12.0;
/// Broken connections that are told one by one.
const SAID: u64 = 10;
/// Looks that make a judgement: fewer say nothing.
const LEAST: usize = 12;

/// What is counted while load runs.
#[derive(Debug)]
struct Counts {
    begin: Instant,
    done: AtomicU64,
    broken: AtomicU64,
    /// The first few of what broke: when, and how.
    why: Mutex<Vec<String>>,
    ending: AtomicBool,
}

/// What one program had at one time.
#[derive(Debug, Clone, Copy)]
struct Seen {
    resident: f64,
    descriptors: f64,
}

/// Runs for so long. Returns whether all was flat.
///
/// # Errors
///
/// Not root, the programs are not built, or one of them ended.
pub fn run(during: Duration, say: impl Fn(&str)) -> Result<bool> {
    let world = World::start(plan())?;
    for name in ["mesh/client", "mesh/server", "mesh/near", "mesh/denied"] {
        many_ports(world.pod(name))?;
    }
    for name in ["mesh/server", "mesh/near", "late/pod"] {
        load::serve(world.pod(name))?;
    }
    let counts = Counts {
        begin: Instant::now(),
        done: AtomicU64::new(0),
        broken: AtomicU64::new(0),
        why: Mutex::default(),
        ending: AtomicBool::new(false),
    };
    let mut seen = BTreeMap::new();
    let looked = std::thread::scope(|scope| {
        let jobs: [fn(&World, &Counts); 6] = [long, short, bulk, reset, refused, churn];
        for job in jobs {
            let (world, counts) = (&world, &counts);
            scope.spawn(move || job(world, counts));
        }
        let looked = look(&world, during, &counts, &mut seen, &say);
        counts.ending.store(true, Ordering::Relaxed);
        looked
    });
    looked?;
    let broken = counts.broken.load(Ordering::Relaxed);
    for why in counts.why.lock().iter() {
        say(why);
    }
    say(&format!(
        "{} connections and transfers, {broken} broken that nothing forbade",
        counts.done.load(Ordering::Relaxed)
    ));
    let mut flat = broken == 0;
    for (program, seen) in &seen {
        flat &= judge(program, seen, &say)?;
    }
    say(if flat { "flat" } else { "NOT flat" });
    Ok(flat)
}

fn plan() -> Plan {
    Plan::new("soak")
        .namespace("mesh", &[AMBIENT])
        .namespace("late", &[])
        .pod("mesh/client", 1)
        .pod("mesh/near", 1)
        .pod("mesh/denied", 1)
        .pod("mesh/server", 2)
        .pod("late/pod", 2)
        .setting("RUST_LOG", "warn")
}

/// Looks at every program until time is over.
fn look(
    world: &World,
    during: Duration,
    counts: &Counts,
    seen: &mut BTreeMap<String, Vec<Seen>>,
    say: &impl Fn(&str),
) -> Result<()> {
    let begin = Instant::now();
    let mut said = begin - SAY;
    while begin.elapsed() < during {
        pause(LOOK);
        let mut line = format!("{:5.1} min", begin.elapsed().as_secs_f64() / 60.0);
        for name in world.programs().names() {
            let now = now(world, &name).with_context(|| format!("{name} runs"))?;
            line += &format!(
                " | {name} {:.1} MiB {} fd",
                now.resident / LITTLE,
                now.descriptors
            );
            seen.entry(name).or_default().push(now);
        }
        if said.elapsed() >= SAY {
            said = Instant::now();
            say(&format!(
                "{line} | {} done",
                counts.done.load(Ordering::Relaxed)
            ));
        }
    }
    Ok(())
}

fn now(world: &World, program: &str) -> Result<Seen> {
    let process = world.programs().process(program).context("a process")?;
    let descriptors = fs::read_dir(format!("/proc/{process}/fd"))?.count();
    let resident = world.programs().resident(program).context("its memory")?;
    Ok(Seen {
        resident: resident as f64,
        descriptors: descriptors as f64,
    })
}

/// Compares the last quarter with the one before the middle; the first is for warming up.
fn judge(program: &str, seen: &[Seen], say: &impl Fn(&str)) -> Result<bool> {
    ensure!(seen.len() >= LEAST, "too short to say anything");
    let quarter = seen.len() / 4;
    let before = &seen[quarter..2 * quarter];
    let after = &seen[seen.len() - quarter..];
    let of = |seen: &[Seen], what: fn(&Seen) -> f64| {
        let mut all: Vec<f64> = seen.iter().map(what).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let memory = [before, after].map(|seen| of(seen, |seen| seen.resident));
    let descriptors = [before, after].map(|seen| of(seen, |seen| seen.descriptors));
    let flat = memory[1] <= memory[0] + LITTLE.max(NOISE * memory[0])
        && descriptors[1] <= descriptors[0] + FEW.max(NOISE * descriptors[0]);
    say(&format!(
        "{program}: {:.2} MiB, then {:.2}; {} descriptors, then {}: {}",
        memory[0] / LITTLE,
        memory[1] / LITTLE,
        descriptors[0],
        descriptors[1],
        if flat { "flat" } else { "GROWS" }
    ));
    Ok(flat)
}

impl Counts {
    /// Does `work` until the end; what it did and whether it broke is counted.
    fn repeat(&self, kind: &str, rest: Duration, mut work: impl FnMut() -> Result<()>) {
        while !self.ending.load(Ordering::Relaxed) {
            let begin = Instant::now();
            match work() {
                Ok(()) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let before = self.broken.fetch_add(1, Ordering::Relaxed);
                    if before < SAID {
                        let after = begin.elapsed().as_secs_f64();
                        let minutes = self.begin.elapsed().as_secs_f64() / 60.0;
                        let text = format!(
                            "{minutes:5.1} min | {kind} broke after {after:.3} s: {error:#}"
                        );
                        self.why.lock().push(text);
                    }
                }
            }
            pause(rest);
        }
    }
}

/// Connections that live for about a minute, across nodes and within one.
fn long(world: &World, counts: &Counts) {
    let client = world.pod("mesh/client");
    std::thread::scope(|scope| {
        for number in 0..LONG {
            let name = ["mesh/server", "mesh/near"][number % 2];
            let server = world.pod(name);
            scope.spawn(move || {
                counts.repeat(&format!("a long connection to {name}"), BREATH, || {
                    lasting(client, server, counts)
                })
            });
        }
    });
}

fn lasting(client: &Pod, server: &Pod, counts: &Counts) -> Result<()> {
    let mut stream = load::connect(client, server, load::ECHO)?;
    for _ in 0..PINGS {
        if counts.ending.load(Ordering::Relaxed) {
            break;
        }
        load::ping(&mut stream)?;
        pause(BREATH);
    }
    Ok(())
}

/// Connections of one ping.
fn short(world: &World, counts: &Counts) {
    let client = world.pod("mesh/client");
    let mut turn = 0;
    counts.repeat("a short connection", BREATH, || {
        turn += 1;
        let server = world.pod(["mesh/server", "mesh/near"][turn % 2]);
        load::ping(&mut load::connect(client, server, load::ECHO)?)?;
        Ok(())
    });
}

/// As many bytes as go for a moment, then none.
fn bulk(world: &World, counts: &Counts) {
    let pair = (world.pod("mesh/client"), world.pod("mesh/server"));
    let moment = Duration::from_millis(300);
    let mut turn = 0;
    counts.repeat("bulk", REST, || {
        turn += 1;
        let direction = [Direction::Up, Direction::Down][turn % 2];
        load::bulk(pair, direction, 2, moment, &|| Duration::ZERO)?;
        Ok(())
    });
}

/// Connections that are reset in the middle.
fn reset(world: &World, counts: &Counts) {
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/server"));
    counts.repeat("a connection to be reset", 4 * BREATH, || {
        let mut stream = load::connect(client, server, load::SOURCE)?;
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0; 4096])?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    });
}

/// Connections that end at once: a policy refuses them, or nobody listens.
fn refused(world: &World, counts: &Counts) {
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/server"));
    let denied = world.pod("mesh/denied");
    let gone = |from: &Pod, port| {
        let stream = load::connect(from, server, port);
        // With the policy it ends; without it is like any other.
        let _ = stream.and_then(|mut stream: TcpStream| load::ping(&mut stream));
    };
    counts.repeat("a refused connection", 10 * BREATH, || {
        gone(denied, load::ECHO);
        gone(client, load::PORTS.end - 1);
        Ok(())
    });
}

/// A pod goes in and out of the mesh with connections to it; policies come and go, and with them live connections.
fn churn(world: &World, counts: &Counts) {
    let (denied, late) = (world.pod("mesh/denied"), world.pod("late/pod"));
    let policy = serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "soak", "namespace": "mesh"},
        "spec": {"action": "DENY", "rules": [
            {"from": [{"source": {"principals": [denied.identity().trim_start_matches("spiffe://")]}}]},
        ]},
    });
    let mut held = Vec::new();
    let mut turn = 0;
    counts.repeat("churn", CHURN, || {
        turn += 1;
        let (key, value) = AMBIENT;
        world.label_pod("late/pod", key, (turn % 2 == 0).then_some(value));
        if turn % 3 == 0 {
            world.apply("soak", &policy.to_string());
        } else if turn % 3 == 1 {
            world.remove("soak");
        }
        // Some live connections that the next policy ends, and some to the pod that comes and goes.
        held.clear();
        for (from, to) in [(denied, world.pod("mesh/server")), (denied, late)] {
            held.extend((0..4).filter_map(|_| load::connect(from, to, load::ECHO).ok()));
        }
        Ok(())
    });
}

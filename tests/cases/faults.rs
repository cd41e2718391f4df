//! What the machine under a node proxy may run out of: descriptors, ports, namespaces. Nothing ends,
//! nothing spins, and all recovers by itself.

use std::fs;
use std::io::{self, Read};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use ambit_tests::expect::eventually;
use ambit_tests::pod::{ANSWER, Pod};
use ambit_tests::world::{Shared, World, started};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::mesh::plan;

static WORLD: Shared = Shared::new(|| started(plan("fault")));

const PROXY: &str = "ztunnel-n2";

/// A thing that happens at once on an idle machine and late on a loaded one.
const BOUND: Duration = Duration::from_secs(20);

fn process(world: &World) -> Pid {
    world.programs().process(PROXY).unwrap()
}

/// Descriptors that the proxy has open.
fn descriptors(world: &World) -> usize {
    let folder = format!("/proc/{}/fd", process(world));
    fs::read_dir(folder).unwrap().count()
}

/// Sets how many descriptors the proxy may have; how far this may be raised stays.
fn limit(world: &World, most: usize) {
    let (pid, most) = (process(world).to_string(), format!("--nofile={most}:"));
    let done = Command::new("prlimit")
        .args(["--pid", &pid, &most])
        .status();
    assert!(done.unwrap().success());
}

/// How many it may have now.
fn limited(world: &World) -> usize {
    let limits = fs::read_to_string(format!("/proc/{}/limits", process(world))).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = line.unwrap().split_whitespace().nth(3).unwrap();
    soft.parse().unwrap()
}

fn log_length(world: &World) -> u64 {
    fs::metadata(world.programs().log(PROXY)).unwrap().len()
}

/// Connections that ask for nothing and stay.
fn hold(client: &Pod, to: &str, count: usize) -> Vec<TcpStream> {
    let opened = (0..count).filter_map(|_| client.connect(to).ok());
    opened.collect()
}

#[test]
fn a_proxy_without_descriptors_neither_spins_nor_floods_its_log_and_recovers_by_itself() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9801);
    let (client, plain) = (world.pod("mesh/client"), world.pod("outside/plain"));
    assert!(client.reaches("mesh/server:9801") && plain.reaches("mesh/server:9801"));
    let (before, open) = (limited(&world), descriptors(&world));
    // An odd number: each connection takes two, and then one more can be accepted and not carried.
    limit(&world, open + 31);
    let held = [
        hold(plain, "mesh/server:9801", 100),
        hold(client, "mesh/server:9801", 100),
    ];
    eventually(BOUND, "it has none left", || {
        let open_now = descriptors(&world);
        if open_now >= open + 29 {
            Ok(())
        } else {
            Err(open_now - open)
        }
    });
    let (cpu, log, begun) = (
        world.programs().cpu(PROXY),
        log_length(&world),
        Instant::now(),
    );
    // Other listeners of the proxy, and clients that try again and again.
    let others: Vec<_> = ["15020", "15021", "15008"]
        .map(|port| plain.connect(&format!("{}:{port}", world.node_address(2))))
        .into_iter()
        .collect();
    let mut tries = 0u64;
    while begun.elapsed() < Duration::from_secs(2) {
        drop(plain.connect("mesh/server:9801"));
        tries += 1;
        std::thread::yield_now();
        ambit_tests::expect::pause();
    }
    let used = world.programs().cpu(PROXY).unwrap() - cpu.unwrap();
    assert!(
        used < Duration::from_secs(1),
        "{used:?} of CPU in {:?}",
        begun.elapsed()
    );
    // A record for each connection, and little else.
    let written = log_length(&world) - log;
    assert!(
        written < 2048 * (tries + 200),
        "{written} bytes of log for {tries} tries"
    );
    drop((held, others));
    for pod in [client, plain] {
        eventually(BOUND, "traffic returns with the descriptors", || {
            pod.reaches("mesh/server:9801")
                .then_some(())
                .ok_or("not yet")
        });
    }
    // It was never started again, and nothing is left open but what is kept between tunnels.
    eventually(BOUND, "what was held is given back", || {
        let now = descriptors(&world);
        if now <= open + 8 {
            Ok(())
        } else {
            Err(now - open)
        }
    });
    limit(&world, before);
}

/// The range of ports that a pod's connections come from.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

#[test]
fn when_the_source_ports_of_a_client_run_out_connections_go_on_from_the_pods_own_address() {
    let world = WORLD.alone();
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/third"));
    let app = server.serve_greeting(9802, "hello");
    let inside = |work: &dyn Fn() -> io::Result<String>| server.netns().run(work).unwrap().unwrap();
    let range = inside(&|| fs::read_to_string(RANGE));
    inside(&|| fs::write(RANGE, "40000 40007").map(|()| String::new()));
    let greeted = || {
        let mut stream = client.connect("mesh/third:9802").ok()?;
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.read_exact(&mut [0; 5]).ok()?;
        Some(stream)
    };
    let begun = Instant::now();
    // Eight ports: as many connections as the client itself, then as many from the pod.
    let held: Vec<_> = (0..24).filter_map(|_| greeted()).collect();
    let own = app.seen().peers();
    let as_client = own.iter().filter(|peer| peer.ip() == client.ipv4()).count();
    assert!(as_client >= 4 && own.len() > as_client, "{own:?}");
    let told = eventually(BOUND, "it is told", || {
        let log = fs::read_to_string(world.programs().log(PROXY)).unwrap();
        let told = log.matches("address cannot be kept").count();
        (told > 0).then_some(told).ok_or("not yet")
    });
    // Once a second for each of two threads.
    let most = 2 * (begun.elapsed().as_secs() + 1);
    let told = u64::try_from(told).unwrap();
    assert!(told <= most, "told {told} times in {:?}", begun.elapsed());
    drop(held);
    inside(&|| fs::write(RANGE, &range).map(|()| String::new()));
    eventually(BOUND, "the client is seen as itself again", || {
        greeted().ok_or("refused")?;
        let last = app.seen().peers().pop().unwrap();
        if last.ip() == client.ipv4() {
            Ok(())
        } else {
            Err("from another address")
        }
    });
}

/// `ip link` in a pod.
fn link(pod: &Pod, arguments: &[&str]) {
    let done = pod.command("ip").arg("link").args(arguments).status();
    assert!(done.unwrap().success(), "{arguments:?}");
}

#[test]
fn a_pod_whose_network_is_torn_down_under_live_traffic_hurts_nobody_else() {
    let world = WORLD.alone();
    let (client, near) = (world.pod("mesh/client"), world.pod("mesh/near"));
    let ticks = [9803, 9806].map(|port| near.serve_ticks(port, Duration::from_millis(50)));
    let _echo = world.pod("mesh/server").serve_echo(9803);
    let mut live = ["mesh/near:9803", "mesh/near:9806"].map(|to| client.connect(to).unwrap());
    for live in &mut live {
        live.read_exact(&mut [0; 5]).unwrap();
        live.set_read_timeout(Some(BOUND)).unwrap();
    }
    // As when a runtime kills a pod: its links go first, then its processes, then it is said.
    let ([lives_on, ends], [mut cut, mut ended]) = (ticks, live);
    link(near, &["set", "eth0", "down"]);
    drop(ends);
    let last_words = ended.read_to_end(&mut Vec::new());
    assert!(
        last_words.is_ok(),
        "what the application says needs no link: {last_words:?}"
    );
    for _ in 0..5 {
        assert!(client.reaches("mesh/server:9803"));
    }
    link(near, &["del", "eth0"]);
    world.remove("pod-mesh-near");
    eventually(BOUND, "the pod is no longer served", || {
        let dump = world.config_dump("ztunnel-n1").unwrap();
        let held = dump["workloadState"].to_string();
        if held.contains("near") {
            Err(held)
        } else {
            Ok(())
        }
    });
    assert!(world.programs().runs("ztunnel-n1") && world.programs().runs("agent-n1"));
    assert!(client.reaches("mesh/server:9803"));
    let heard = cut.read_to_end(&mut Vec::new());
    assert!(
        heard.is_err(),
        "cut, and not as if it had been all: {heard:?}"
    );
    drop(lives_on);
}

/// Stops a program until this is dropped.
struct Stopped<'a>(&'a World, &'static str);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.programs().signal(self.1, Signal::SIGCONT);
    }
}

#[test]
fn nobody_is_dialled_for_a_client_that_has_left() {
    let world = WORLD.alone();
    let (client, server) = (world.pod("mesh/client"), world.pod("mesh/server"));
    // A far end that takes connections and says nothing.
    world.programs().signal(PROXY, Signal::SIGSTOP);
    let stopped = Stopped(&world, PROXY);
    let to = format!("{}:15008", server.ipv4());
    let told = || {
        let records = world.records("ztunnel-n1");
        let fields = [("direction", "outbound"), ("dst.addr", to.as_str())];
        records.iter().filter(|record| record.has(&fields)).count()
    };
    let before = told();
    let stream = client.connect("mesh/server:9804").unwrap();
    ambit_net::options::reset_on_close(&stream).unwrap();
    let begun = Instant::now();
    drop(stream);
    eventually(BOUND, "its connection is over", || {
        (told() > before).then_some(()).ok_or("not yet")
    });
    // The far end would have been waited for ten seconds and more.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    drop(stopped);
}

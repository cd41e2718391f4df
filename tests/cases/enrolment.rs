//! In and out of the mesh, by labels, under load.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::{Shared, World, started};

fn plan() -> Plan {
    Plan::new("enr")
        .namespace("mesh", &[AMBIENT])
        .namespace("late", &[])
        .pod("mesh/client", 1)
        .namespace("outside", &[])
        .pod("outside/plain", 1)
        .pod("late/server", 2)
        .pod_with("late/none", 2, |pod| {
            pod.label("istio.io/dataplane-mode", "none")
        })
        .pod_with("late/host", 2, |pod| pod.host_network())
}

static WORLD: Shared = Shared::new(|| started(plan()));

/// Connections made again and again from a pod, each with a marker.
struct Load {
    ending: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Load {
    fn begin(client: &Pod, to: &str, marker: &'static str) -> Self {
        let (ending, good) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (client, to) = (client.clone(), to.to_owned());
        let thread = std::thread::spawn({
            let (ending, good) = (Arc::clone(&ending), Arc::clone(&good));
            move || {
                let mut failures = Vec::new();
                while !ending.load(Ordering::Relaxed) {
                    match client.ask(&to, marker.as_bytes()) {
                        Ok(answer) if answer == marker.as_bytes() => {
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        other => failures.push(format!("{other:?}")),
                    }
                }
                failures
            }
        });
        Self {
            ending,
            good,
            thread: Some(thread),
        }
    }

    /// Waits for some more connections to succeed.
    fn more(&self, world: &World) {
        let before = self.good.load(Ordering::Relaxed);
        world.eventually("the load goes on", || {
            self.good.load(Ordering::Relaxed) > before + 30
        });
    }

    /// Ends the load; what failed.
    fn end(mut self) -> Vec<String> {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_namespace_goes_in_and_out_under_load_without_one_failed_connection() {
    let world = WORLD.alone();
    let _app = world.pod("late/server").serve_echo(9301);
    let load = Load::begin(
        world.pod("mesh/client"),
        "late/server:9301",
        "MARKER-under-load",
    );
    load.more(&world);
    for turn in 0..2 {
        let (key, value) = AMBIENT;
        world.label_namespace("late", key, Some(value));
        world.wait_protocol("late/server", "HBONE");
        // Announced: connections that begin from here on may not be readable, so let those end
        // that began before.
        load.more(&world);
        let capture = world.capture();
        load.more(&world);
        let packets = capture.end();
        assert!(
            packets.to_port(15008) > 0,
            "turn {turn}: {} packets",
            packets.count()
        );
        assert_eq!(packets.with("MARKER-under-load"), 0, "turn {turn}");
        world.label_namespace("late", key, None);
        world.wait_protocol("late/server", "TCP");
        load.more(&world);
        let capture = world.capture();
        load.more(&world);
        assert!(
            capture.end().with("MARKER-under-load") > 0,
            "turn {turn}: outside again"
        );
    }
    assert_eq!(load.end(), Vec::<String>::new(), "no connection failed");
}

/// The range from which a pod's kernel takes the source ports of connections.
fn set_ports(pod: &Pod, range: &str) {
    let setting = format!("net.ipv4.ip_local_port_range={range}");
    let output = pod.command("sysctl").args(["-qw", &setting]).output();
    assert!(output.unwrap().status.success(), "{setting}");
}

const FEW: &str = "32768 32773";
const USUAL: &str = "32768 60999";

#[test]
fn a_source_port_that_the_client_uses_itself_does_no_harm() {
    // The proxy speaks to the application from the client's address and from a port that its own
    // kernel picks, which knows nothing of the ports that the client has in use. Here it has no
    // other ones to pick from.
    let world = WORLD.alone();
    let _app = world.pod("late/server").serve_echo(9303);
    let (client, server) = (world.pod("outside/plain"), world.pod("late/server"));
    let (key, value) = AMBIENT;
    world.label_namespace("late", key, Some(value));
    world.wait_protocol("late/server", "HBONE");
    set_ports(client, FEW);
    let held = (0..6).map(|_| client.connect("late/server:9303").unwrap());
    let mut held: Vec<TcpStream> = held.collect();
    held.iter_mut().for_each(echoes);
    set_ports(client, USUAL);
    set_ports(server, FEW);
    let reached = client.reaches("late/server:9303");
    set_ports(server, USUAL);
    assert!(reached, "a connection beside those that hold the ports");
    held.iter_mut().for_each(echoes);
    drop(held);
    world.label_namespace("late", key, None);
    world.wait_protocol("late/server", "TCP");
}

fn echoes(stream: &mut TcpStream) {
    let mut answer = [0; 4];
    stream.write_all(b"live").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"live");
}

#[test]
fn a_pod_goes_in_and_out_by_its_own_label() {
    let world = WORLD.alone();
    let _app = world.pod("late/server").serve_echo(9302);
    let client = world.pod("mesh/client");
    let (key, value) = AMBIENT;
    world.label_pod("late/server", key, Some(value));
    world.wait_protocol("late/server", "HBONE");
    assert!(client.reaches("late/server:9302"));
    world.label_pod("late/server", key, None);
    world.wait_protocol("late/server", "TCP");
    assert!(client.reaches("late/server:9302"));
    // Connections had time to end; then nothing of ours is left in the pod.
    let said = |program: &str, arguments: &[&str]| {
        let pod = world.pod("late/server");
        let output = pod.command(program).args(arguments).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    world.eventually("nothing of ours is left in the pod", || {
        said("nft", &["list", "tables"]).is_empty() && !said("ip", &["rule"]).contains("fwmark")
    });
}

#[test]
fn host_network_and_mode_none_stay_out() {
    let world = WORLD.alone();
    let (key, value) = AMBIENT;
    world.label_namespace("late", key, Some(value));
    world.wait_protocol("late/server", "HBONE");
    for path in ["late/none", "late/host"] {
        let known = world
            .workload(1, path)
            .map(|workload| workload["protocol"].clone());
        assert!(
            known.is_err() || known.is_ok_and(|protocol| protocol != "HBONE"),
            "{path}"
        );
        let listed = world
            .pod(path)
            .command("nft")
            .args(["list", "tables"])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(listed.stdout).unwrap(),
            "",
            "{path}: no rules of ours"
        );
    }
    world.label_namespace("late", key, None);
    world.wait_protocol("late/server", "TCP");
}

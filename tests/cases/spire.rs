//! One node's proxy has its certificates from a SPIRE agent, the other's from the controller, under one root.
//!
//! The agent is the scripted one of `ambit_tests::spire`: SPIRE's own programs are no part of these tests. By hand the first
//! case was run with SPIRE's server and agent too (1.16 in development), with certificates of 60 s.

use std::io::{Read, Write};
use std::net::TcpStream;

use ambit_tests::manifests::uid;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::spire::{Registration, SpireAgent, sockets};
use ambit_tests::world::{Shared, World, started};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::load::Load;

static WORLD: Shared = Shared::new(|| {
    started(
        Plan::new("spire")
            .namespace("mesh", &[AMBIENT])
            .pod("mesh/client", 1)
            .pod("mesh/byuid", 1)
            .pod("mesh/odd", 1)
            .pod("mesh/server", 2),
    )
});

/// The node with the agent.
const NODE: &str = "ztunnel-n1";
const OWN: &str = "spiffe://cluster.local/ns/istio-system/sa/ztunnel";

fn selectors(all: &[&str]) -> Vec<String> {
    all.iter()
        .map(|selector| format!("k8s:{selector}"))
        .collect()
}

/// By service account, as people register, and by pod, as SPIRE's controller does.
fn registrations(world: &World) -> Vec<Registration> {
    let pod = format!("pod-uid:{}", uid("mesh", "byuid"));
    vec![
        (
            selectors(&["ns:mesh", "sa:client"]),
            world.pod("mesh/client").identity(),
        ),
        (selectors(&[&pod]), world.pod("mesh/byuid").identity()),
    ]
}

/// An agent, and a proxy that asks it from now on.
fn agent(world: &World) -> SpireAgent {
    let agent = SpireAgent::serve(world, OWN, registrations(world)).unwrap();
    let programs = world.programs();
    if programs.variable(NODE, "SPIRE_ENABLED").is_none() {
        let [admin, workload] = sockets(world).map(|path| format!("unix://{}", path.display()));
        programs.set(NODE, "SPIRE_ENABLED", "true");
        programs.set(NODE, "SPIRE_ADMIN_ENDPOINT_SOCKET", &admin);
        programs.set(NODE, "SPIFFE_ENDPOINT_SOCKET", &workload);
        // Nobody is there: what works without it does not come from it.
        programs.set(NODE, "CA_ADDRESS", "https://127.0.0.1:1");
        world.kill(NODE);
        world.start_again(NODE);
    }
    agent
}

/// What the proxy has for an identity.
fn held(world: &World, identity: &str) -> Option<Value> {
    let dump = world.config_dump(NODE).ok()?;
    let all = dump["certificates"].as_array()?;
    all.iter().find(|one| one["identity"] == identity).cloned()
}

/// The proxy has the certificate that the agent issued last.
fn is_current(world: &World, agent: &SpireAgent, identity: &str) -> bool {
    let serial = held(world, identity).map(|held| held["certChain"][0]["serialNumber"].clone());
    serial.is_some_and(|held| agent.serial(identity).is_some_and(|issued| held == issued))
}

fn gauge(world: &World, name: &str) -> f64 {
    world.metrics(NODE).sum(name, &[])
}

fn echoes(live: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    live.write_all(b"ping").is_ok() && live.read_exact(&mut back).is_ok() && &back == b"ping"
}

#[test]
fn traffic_flows_with_what_spire_issued_and_a_rotation_loses_no_connection() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9701);
    let agent = agent(&world);
    let pods = ["mesh/client", "mesh/byuid"];
    let identities = pods.map(|pod| world.pod(pod).identity());
    for pod in pods {
        world.eventually(pod, || world.pod(pod).reaches("mesh/server:9701"));
        let source = world.pod(pod).identity();
        let seen = [("direction", "inbound"), ("src.identity", source.as_str())];
        world.wait_records("ztunnel-n2", &seen, 1);
    }
    for identity in identities.iter().map(String::as_str).chain([OWN]) {
        world.eventually(identity, || is_current(&world, &agent, identity));
    }

    let client = world.pod("mesh/client").clone();
    let mut live = client.connect("mesh/server:9701").unwrap();
    let load = Load::begin(&world, move || {
        match client.ask("mesh/server:9701", b"again") {
            Ok(answer) if answer == b"again" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    for _ in 0..3 {
        agent.rotate();
        for identity in &identities {
            world.eventually("the next certificate", || {
                is_current(&world, &agent, identity)
            });
        }
        load.more(&world);
        assert!(echoes(&mut live), "what is open goes on");
    }

    drop(agent);
    world.eventually("the agent is missed", || {
        gauge(&world, "ambit_certificates_followed") == 0.0
    });
    load.more(&world);
    assert!(gauge(&world, "ambit_certificates_valid") >= 2.0);
    let next = SpireAgent::serve(&world, OWN, registrations(&world)).unwrap();
    for identity in &identities {
        world.eventually("an agent that is back", || {
            is_current(&world, &next, identity)
        });
    }
    load.more(&world);
    assert_eq!(load.end(), Vec::<String>::new(), "no connection failed");
    assert!(echoes(&mut live));
}

#[test]
fn a_pod_that_spire_knows_under_another_name_or_not_at_all_has_no_certificate() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9702);
    let agent = agent(&world);
    let odd = world.pod("mesh/odd");
    let says = |text: &str| {
        let held = held(&world, &odd.identity());
        held.is_some_and(|held| held["state"].as_str().unwrap_or_default().contains(text))
    };
    world.eventually("nobody of that name", || {
        says("SPIRE agent has no certificate of")
    });
    assert!(!odd.reaches("mesh/server:9702"));
    let account = selectors(&["ns:mesh", "sa:odd"]);
    agent.register((account.clone(), world.pod("mesh/client").identity()));
    let other = format!("but of {}", world.pod("mesh/client").identity());
    world.eventually("somebody else", || says(&other));
    assert!(!odd.reaches("mesh/server:9702"));
    world.eventually("the others are served", || {
        world.pod("mesh/client").reaches("mesh/server:9702")
    });
    agent.register((account, odd.identity()));
    world.eventually("registered", || odd.reaches("mesh/server:9702"));
    world
        .programs()
        .end(NODE, Signal::SIGTERM, ambit_tests::world::START);
    world.start_again(NODE);
    world.eventually("after a new start", || odd.reaches("mesh/server:9702"));
}

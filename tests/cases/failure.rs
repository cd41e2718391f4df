//! Programs die, one after the other, under load: nothing leaks, and all recovers without a hand.

use std::io::Read;
use std::time::Duration;

use ambit_tests::expect::always;
use ambit_tests::world::{Shared, World, started};

use crate::mesh::plan;

static WORLD: Shared = Shared::new(|| started(plan("fail")));

/// Sends a marker until it comes back.
fn returns(world: &World, port: u16) {
    world.eventually("traffic returns", || {
        let answer = world
            .pod("mesh/client")
            .ask(&format!("mesh/server:{port}"), b"MARKER-failure");
        answer.is_ok_and(|answer| answer == b"MARKER-failure")
    });
}

#[test]
fn a_killed_node_proxy_leaks_nothing_and_traffic_returns() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9401);
    for node in ["ztunnel-n1", "ztunnel-n2"] {
        returns(&world, 9401);
        let capture = world.capture();
        world.kill(node);
        let client = world.pod("mesh/client");
        always(
            Duration::from_secs(1),
            "unreachable while a proxy is down",
            || {
                !client
                    .ask("mesh/server:9401", b"MARKER-failure")
                    .is_ok_and(|a| !a.is_empty())
            },
        );
        world.start_again(node);
        returns(&world, 9401);
        let packets = capture.end();
        assert_eq!(packets.with("MARKER-failure"), 0, "{node}");
        assert!(packets.to_port(15008) > 0);
    }
}

#[test]
fn traffic_survives_the_death_of_controller_and_agents() {
    let world = WORLD.alone();
    let _app = world
        .pod("mesh/server")
        .serve_ticks(9402, Duration::from_millis(20));
    let _echo = world.pod("mesh/server").serve_echo(9403);
    let mut live = world
        .pod("mesh/client")
        .connect("mesh/server:9402")
        .unwrap();
    live.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let capture = world.capture();
    for program in ["controller", "agent-n1", "agent-n2"] {
        world.kill(program);
        always(
            Duration::from_millis(500),
            "live and new connections go on",
            || {
                live.read(&mut [0; 64]).is_ok_and(|length| length > 0)
                    && world.pod("mesh/client").reaches("mesh/server:9403")
            },
        );
        world.start_again(program);
        assert!(world.pod("mesh/client").reaches("mesh/server:9403"));
    }
    returns(&world, 9403);
    assert!(
        live.read(&mut [0; 64]).is_ok_and(|length| length > 0),
        "never interrupted"
    );
    assert_eq!(capture.end().with("MARKER-failure"), 0);
}

#[test]
fn a_proxy_that_starts_while_the_controller_is_down_becomes_ready_when_it_is_back() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9404);
    let capture = world.capture();
    world.kill("controller");
    world.kill("ztunnel-n1");
    world.programs().start_again("ztunnel-n1").unwrap();
    let client = world.pod("mesh/client");
    always(
        Duration::from_secs(1),
        "nothing passes without a configuration",
        || {
            !client
                .ask("mesh/server:9404", b"MARKER-failure")
                .is_ok_and(|a| !a.is_empty())
        },
    );
    world.start_again("controller");
    returns(&world, 9404);
    assert_eq!(capture.end().with("MARKER-failure"), 0);
}

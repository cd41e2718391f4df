//! The waypoint dies under load, or starts before there is anybody to tell it what to do.

use std::time::Duration;

use ambit_tests::expect::always;
use ambit_tests::pod::Pod;
use ambit_tests::world::World;
use http::Method;

use super::{WAYPOINT, WORLD, serve};
use crate::load::Load;

/// What no capture may hold.
const MARKER: &str = "MARKER-waypoint";

/// One request with the marker; what came back if it is not 200.
fn ask(client: &Pod) -> Result<(), String> {
    match client.request(Method::GET, "http://shop.mesh/", &[("x-m", MARKER)]) {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(answer.status.to_string()),
        Err(error) => Err(format!("{error:#}")),
    }
}

fn load(world: &World) -> Load {
    let client = world.pod("mesh/client").clone();
    Load::begin(world, move || ask(&client))
}

#[test]
fn a_waypoint_killed_under_load_leaks_nothing_and_traffic_returns() {
    let world = WORLD.alone();
    let apps = serve(&world);
    let load = load(&world);
    let capture = world.capture();
    world.kill(WAYPOINT);
    // What was under way when it died may still be counted by the server.
    let client = world.pod("mesh/client");
    assert!(ask(client).is_err());
    let served = apps[0].seen().count();
    always(
        Duration::from_millis(500),
        "nothing goes round the waypoint",
        || ask(client).is_err(),
    );
    assert_eq!(
        apps[0].seen().count(),
        served,
        "nobody else reached the server"
    );
    // What needs no waypoint goes on.
    let _echo = world.pod("mesh/v2").serve_echo(9901);
    assert!(client.reaches("mesh/v2:9901"));
    world.start_again(WAYPOINT);
    load.more(&world);
    assert!(!load.end().is_empty(), "the load saw that it was gone");
    let packets = capture.end();
    assert_eq!(packets.with(MARKER), 0);
    assert!(packets.to_port(15008) > 0, "it went through tunnels");
}

#[test]
fn a_waypoint_goes_on_without_the_controller_and_a_new_one_waits_for_it() {
    let world = WORLD.alone();
    let _apps = serve(&world);
    let load = load(&world);
    let capture = world.capture();
    world.kill("controller");
    load.more(&world);
    assert_eq!(load.end(), Vec::<String>::new(), "no request failed");
    world.kill(WAYPOINT);
    world.programs().start_again(WAYPOINT).unwrap();
    let client = world.pod("mesh/client");
    always(Duration::from_secs(1), "nothing passes", || {
        ask(client).is_err()
    });
    world.start_again("controller");
    world.eventually("traffic returns", || ask(client).is_ok());
    assert_eq!(capture.end().with(MARKER), 0);
}

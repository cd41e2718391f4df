//! Programs die, one after the other, under load: nothing leaks, and all recovers without a hand.
//! And what is worse than death: an authority that refuses, a server that talks nonsense.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use ambit_proto::discovery::Resource;
use ambit_proto::istio::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};
use ambit_proto::type_url::{ADDRESS, AUTHORIZATION};
use ambit_tests::discovery::Discovery;
use ambit_tests::expect::always;
use ambit_tests::world::{Shared, World, started};
use prost::Message;

use crate::load::Load;
use crate::mesh::plan;

static WORLD: Shared = Shared::new(|| started(plan("fail")));

/// What no capture may hold.
const MARKER: &[u8] = b"MARKER-failure";

/// Connections from `mesh/client`, each with the marker.
fn load(world: &World, port: u16) -> Load {
    let client = world.pod("mesh/client").clone();
    let to = format!("mesh/server:{port}");
    Load::begin(world, move || match client.ask(&to, MARKER) {
        Ok(answer) if answer == MARKER => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// A connection on which the server goes on speaking.
fn live(world: &World, port: u16) -> TcpStream {
    let to = format!("mesh/server:{port}");
    let mut live = world.pod("mesh/client").connect(&to).unwrap();
    live.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert!(speaks(&mut live));
    live
}

fn speaks(live: &mut TcpStream) -> bool {
    live.read(&mut [0; 64]).is_ok_and(|length| length > 0)
}

/// Whether anything at all comes back.
fn answered(world: &World, port: u16) -> bool {
    let answer = world
        .pod("mesh/client")
        .ask(&format!("mesh/server:{port}"), MARKER);
    answer.is_ok_and(|answer| !answer.is_empty())
}

#[test]
fn a_killed_node_proxy_leaks_nothing_and_traffic_returns() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9401);
    let load = load(&world, 9401);
    let capture = world.capture();
    for node in ["ztunnel-n1", "ztunnel-n2"] {
        load.more(&world);
        world.kill(node);
        always(
            Duration::from_secs(1),
            "unreachable without a proxy",
            || !answered(&world, 9401),
        );
        world.start_again(node);
        load.more(&world);
    }
    let failures = load.end();
    assert!(!failures.is_empty(), "the load saw that a proxy was gone");
    let packets = capture.end();
    assert_eq!(packets.with(MARKER), 0);
    assert!(packets.to_port(15008) > 0, "it went through the tunnel");
}

#[test]
fn traffic_survives_the_death_of_controller_and_agents() {
    let world = WORLD.alone();
    let server = world.pod("mesh/server");
    let _ticks = server.serve_ticks(9402, Duration::from_millis(20));
    let _echo = server.serve_echo(9403);
    let mut live = live(&world, 9402);
    let load = load(&world, 9403);
    let capture = world.capture();
    for program in ["controller", "agent-n1", "agent-n2"] {
        world.kill(program);
        always(
            Duration::from_millis(500),
            "a live connection goes on",
            || speaks(&mut live),
        );
        load.more(&world);
        world.start_again(program);
        load.more(&world);
    }
    assert!(speaks(&mut live), "never interrupted");
    assert_eq!(load.end(), Vec::<String>::new(), "no connection failed");
    assert_eq!(capture.end().with(MARKER), 0);
    // The controller that came back is heard: a change of labels arrives.
    world.label_pod("outside/far", "istio.io/dataplane-mode", Some("ambient"));
    world.wait_protocol("outside/far", "HBONE");
    world.label_pod("outside/far", "istio.io/dataplane-mode", None);
    world.wait_protocol("outside/far", "TCP");
}

#[test]
fn a_proxy_that_starts_while_the_controller_is_down_becomes_ready_when_it_is_back() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9404);
    let capture = world.capture();
    world.kill("controller");
    world.kill("ztunnel-n1");
    world.programs().start_again("ztunnel-n1").unwrap();
    always(Duration::from_secs(1), "nothing passes", || {
        !answered(&world, 9404)
    });
    world.start_again("controller");
    world.eventually("traffic returns", || answered(&world, 9404));
    assert_eq!(capture.end().with(MARKER), 0);
}

#[test]
fn a_proxy_that_the_authority_refuses_carries_nothing_until_it_is_accepted() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9405);
    // A token of another node's proxy: good for discovery, not for the identities of this node.
    let file = world.state().join("token-of-a-test");
    let token = |pod, node| world.token("istio-system", "ztunnel", pod, node).unwrap();
    fs::write(&file, token("ztunnel-n2", 2)).unwrap();
    let programs = world.programs();
    let own = programs.variable("ztunnel-n1", "AUTH_TOKEN").unwrap();
    programs.set("ztunnel-n1", "AUTH_TOKEN", file.to_str().unwrap());
    let capture = world.capture();
    world.kill("ztunnel-n1");
    programs.start_again("ztunnel-n1").unwrap();
    let identity = world.pod("mesh/client").identity();
    let state = |wanted: &str| {
        let dump = world.config_dump("ztunnel-n1").ok();
        let held = dump.and_then(|dump| dump["certificates"].as_array().cloned());
        held.into_iter().flatten().any(|held| {
            let state = held["state"].as_str().unwrap_or_default();
            held["identity"] == identity.as_str() && state.starts_with(wanted)
        })
    };
    world.eventually("the refusal shows", || state("Unavailable"));
    always(Duration::from_secs(1), "nothing passes", || {
        !answered(&world, 9405)
    });
    let fields = [("src.workload", "client"), ("error", "*no certificate")];
    world.wait_records("ztunnel-n1", &fields, 1);
    let labels = [
        ("reporter", "source"),
        ("source_workload", "client"),
        ("response_flags", "IDENTITY_ERROR"),
    ];
    world.wait_metric(
        "ztunnel-n1",
        "istio_tcp_connections_failed_total",
        &labels,
        1.0,
    );
    // The file is read again; nobody has to start anything.
    fs::write(&file, token("ztunnel-n1", 1)).unwrap();
    world.eventually("the authority accepts", || state("Available"));
    world.eventually("traffic returns", || answered(&world, 9405));
    assert_eq!(capture.end().with(MARKER), 0);
    programs.set("ztunnel-n1", "AUTH_TOKEN", &own);
    world.kill("ztunnel-n1");
    world.start_again("ztunnel-n1");
}

/// Serial numbers of the certificate that a proxy holds for `mesh/client`.
fn serials(world: &World) -> BTreeSet<String> {
    let dump = world.config_dump("ztunnel-n1").unwrap();
    let identity = world.pod("mesh/client").identity();
    let held = dump["certificates"].as_array().unwrap().iter();
    held.filter(|held| held["identity"] == identity.as_str())
        .filter_map(|held| held["certChain"][0]["serialNumber"].as_str())
        .map(str::to_owned)
        .collect()
}

#[test]
fn certificates_are_replaced_under_load_before_they_expire() {
    let world = WORLD.alone();
    let server = world.pod("mesh/server");
    let _ticks = server.serve_ticks(9406, Duration::from_millis(20));
    let _echo = server.serve_echo(9407);
    let nodes = ["ztunnel-n1", "ztunnel-n2"];
    let restart = |ttl: &str| {
        for node in nodes {
            world.programs().set(node, "SECRET_TTL", ttl);
            world.kill(node);
            world.start_again(node);
        }
        world.eventually("traffic returns", || answered(&world, 9407));
    };
    // As short as this, every certificate in use is about to expire all the time.
    restart("8s");
    let capture = world.capture();
    let mut live = live(&world, 9406);
    let load = load(&world, 9407);
    let mut seen = serials(&world);
    // Three successors, so that at least one was made by a certificate's own renewal and each was
    // used.
    world.eventually("certificates follow each other", || {
        assert!(speaks(&mut live), "a live connection goes on");
        seen.extend(serials(&world));
        seen.len() > 3
    });
    load.more(&world);
    assert!(speaks(&mut live));
    assert_eq!(load.end(), Vec::<String>::new(), "no connection failed");
    assert_eq!(capture.end().with(MARKER), 0);
    restart("24h");
}

/// A resource by name.
fn resource(name: &str, type_url: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: "scripted".to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value,
        }),
        ..Resource::default()
    }
}

/// A policy that denies the namespace `other` everything in `mesh`.
fn denial(name: &str) -> Vec<u8> {
    let other = StringMatch {
        match_type: Some(MatchType::Exact("other".to_owned())),
    };
    let matching = Match {
        namespaces: vec![other],
        ..Match::default()
    };
    let clause = Clause {
        matches: vec![matching],
    };
    let policy = Authorization {
        name: name.to_owned(),
        namespace: "mesh".to_owned(),
        scope: Scope::Namespace.into(),
        action: Action::Deny.into(),
        rules: vec![Rule {
            clauses: vec![clause],
        }],
        ..Authorization::default()
    };
    policy.encode_to_vec()
}

#[test]
fn a_garbage_resource_is_refused_by_name_and_the_rest_is_applied() {
    let world = WORLD.alone();
    let _app = world.pod("mesh/server").serve_echo(9408);
    let load = load(&world, 9408);
    let stranger = world.pod("other/stranger");
    assert!(stranger.reaches("mesh/server:9408"));
    world.kill("controller");
    // Field 1, of a length that is not there.
    let garbage = vec![0x0a, 0xff, 0xff, 0x01];
    let script = vec![
        (
            AUTHORIZATION,
            vec![
                resource("mesh/garbage", AUTHORIZATION, garbage.clone()),
                resource("mesh/scripted", AUTHORIZATION, denial("scripted")),
            ],
        ),
        (
            ADDRESS,
            vec![resource("garbage//address", ADDRESS, garbage)],
        ),
    ];
    let discovery = Discovery::serve(&world, script).unwrap();
    for (type_url, name) in [
        (AUTHORIZATION, "mesh/garbage"),
        (ADDRESS, "garbage//address"),
    ] {
        world.eventually("both proxies refuse it by name", || {
            let told = discovery.told(type_url);
            let refusals = told.iter().filter_map(|told| told.error_detail.as_ref());
            let named = refusals.filter(|refusal| {
                refusal.message.contains(name) && !refusal.message.contains("scripted")
            });
            named.count() >= 2
        });
    }
    world.eventually("the good policy beside it is in force", || {
        !stranger.reaches("mesh/server:9408")
    });
    let dump = world.config_dump("ztunnel-n2").unwrap()["policies"].to_string();
    assert!(dump.contains("scripted") && !dump.contains("garbage"));
    load.more(&world);
    drop(discovery);
    world.start_again("controller");
    world.eventually("what the controller does not have is gone", || {
        stranger.reaches("mesh/server:9408")
    });
    assert_eq!(load.end(), Vec::<String>::new(), "no connection failed");
}

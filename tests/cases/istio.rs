//! Tunnels with Istio's own node proxy at one end: ours dials it, and it dials ours. One controller and
//! our agents serve both.
//!
//! Only where `ISTIO_ZTUNNEL` names its program, built from its public source: there is none to be
//! installed. What differed is in `docs/compatibility.md`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ambit_tests::apps::bytes::whole;
use ambit_tests::expect::{always, eventually, eventually_true};
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::{Family, Pod};
use ambit_tests::world::{CHANGE, START, Shared, World, started};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::policy::policy;
use crate::tunnels::{AFTER, BOUND, FIRST, block_on, ends_by_turns, round_trip};

/// Names Istio's program.
const ISTIO: &str = "ISTIO_ZTUNNEL";

/// Our proxy serves the first node, Istio's the second.
static WORLD: Shared = Shared::new(|| {
    let program = PathBuf::from(std::env::var_os(ISTIO).expect(ISTIO));
    started(
        Plan::new("ist")
            .node_proxy_of(2, &program)
            .namespace("mesh", &[AMBIENT])
            .namespace("other", &[AMBIENT])
            .pod("mesh/client", 1)
            .pod("mesh/near", 1)
            .pod("other/near", 1)
            .pod("mesh/far", 2)
            .pod("mesh/server", 2)
            .pod("other/far", 2)
            .service("mesh/server", "server", &[("tcp", 80, 8080)])
            .service("mesh/near", "near", &[("tcp", 80, 8080)])
            // Longer than any case here takes.
            .setting("CONNECTION_TERMINATION_DEADLINE", "60s"),
    )
});

/// Whether there is anything to be tested; says so if not.
fn there() -> bool {
    let there = std::env::var_os(ISTIO).is_some_and(|program| !program.is_empty());
    if !there {
        eprintln!("skipped: {ISTIO} is not set");
    }
    there
}

/// One direction in which tunnels are made.
struct Way<'a> {
    what: &'static str,
    client: &'a Pod,
    stranger: &'a Pod,
    app: &'a Pod,
    /// The application, and the service in front of it.
    name: &'static str,
    service: &'static str,
    dials: &'static str,
    accepts: &'static str,
}

impl Way<'_> {
    fn to(&self, port: u16) -> String {
        format!("{}:{port}", self.name)
    }
}

fn ways(world: &World) -> [Way<'_>; 2] {
    let pod = |path| world.pod(path);
    [
        Way {
            what: "ours dials Istio's",
            client: pod("mesh/client"),
            stranger: pod("other/near"),
            app: pod("mesh/server"),
            name: "mesh/server",
            service: "server.mesh:80",
            dials: "ztunnel-n1",
            accepts: "ztunnel-n2",
        },
        Way {
            what: "Istio's dials ours",
            client: pod("mesh/far"),
            stranger: pod("other/far"),
            app: pod("mesh/near"),
            name: "mesh/near",
            service: "near.mesh:80",
            dials: "ztunnel-n2",
            accepts: "ztunnel-n1",
        },
    ]
}

#[test]
fn every_byte_goes_both_ways_between_istios_proxy_and_ours_under_their_identities() {
    const LENGTH: u64 = 64 << 20;
    const PORT: u16 = 9801;
    if !there() {
        return;
    }
    let world = WORLD.with_others();
    for way in ways(&world) {
        let _app = way.app.serve_bytes(PORT);
        let both = block_on(way.client.exchange_bytes(&way.to(PORT), LENGTH, 11)).unwrap();
        assert_eq!(both, whole(LENGTH, 11), "{}", way.what);
        let (from, to) = (way.client.identity(), way.app.identity());
        for (program, direction) in [(way.dials, "outbound"), (way.accepts, "inbound")] {
            let fields = [
                ("direction", direction),
                ("dst.hbone_addr", &format!("{}:{PORT}", way.app.ipv4())),
                ("src.identity", from.as_str()),
                ("dst.identity", to.as_str()),
                ("src.workload", &way.client.path()[5..]),
                ("dst.workload", &way.app.path()[5..]),
            ];
            let found = world.wait_records(program, &fields, 1);
            assert_eq!(found[0].get("error"), "", "{}", way.what);
        }
    }
}

#[test]
fn services_and_pods_are_reached_over_both_families_through_istios_proxy_and_ours() {
    if !there() {
        return;
    }
    let world = WORLD.with_others();
    for way in ways(&world) {
        let app = way.app.serve_whoami(8080);
        for family in [Family::V4, Family::V6] {
            let own = match family {
                Family::V4 => way.client.ipv4().to_string(),
                Family::V6 => way.client.ipv6().to_string(),
            };
            for to in [way.service, &way.to(8080)] {
                let told = way.client.ask_over(to, family, b"").unwrap();
                let told = String::from_utf8(told).unwrap();
                assert_eq!(told, own, "{}, {to}, {family:?}", way.what);
            }
        }
        assert_eq!(app.seen().count(), 4, "{}", way.what);
        let fields = [("direction", "outbound"), ("dst.service", "*.mesh.svc")];
        assert!(world.wait_records(way.dials, &fields, 2).len() >= 2);
    }
}

#[test]
fn either_side_may_end_first_and_the_other_goes_on_or_not_with_istios_proxy_as_with_ours() {
    const PORT: u16 = 9802;
    if !there() {
        return;
    }
    let world = WORLD.with_others();
    for way in ways(&world) {
        let read = Arc::new(Mutex::new(Vec::new()));
        let _app = way.app.serve(PORT, {
            let read = Arc::clone(&read);
            move |stream, _| {
                let read = Arc::clone(&read);
                async move {
                    let outcome = ends_by_turns(stream).await;
                    read.lock().push(outcome.map_err(|error| error.kind()));
                    Ok(())
                }
            }
        });
        for command in *b"CcSs" {
            let what = format!("{}, {}", way.what, char::from(command));
            let after = vec![
                command;
                if command.is_ascii_uppercase() {
                    AFTER
                } else {
                    0
                }
            ];
            let client_first = command.eq_ignore_ascii_case(&b'C');
            let mut stream = way.client.connect(&way.to(PORT)).unwrap();
            stream.write_all(&[command]).unwrap();
            let mut rest = Vec::new();
            if client_first {
                stream.write_all(FIRST).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                stream.read_to_end(&mut rest).unwrap();
                assert!(rest == after, "{what}: {} bytes", rest.len());
            } else {
                stream.read_to_end(&mut rest).unwrap();
                assert_eq!(rest, FIRST, "{what}");
                stream.write_all(&after).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            let told = eventually(BOUND, &format!("{what}: the server is done"), || {
                read.lock().pop().ok_or("not yet")
            });
            let expected = if client_first { FIRST.to_vec() } else { after };
            assert!(
                told == Ok(expected),
                "{what}: {:?}",
                told.map(|all| all.len())
            );
        }
    }
}

#[test]
fn a_reset_ends_the_connection_at_the_other_end_through_istios_proxy_and_ours() {
    const SERVER: u16 = 9803;
    const CLIENT: u16 = 9804;
    if !there() {
        return;
    }
    let world = WORLD.with_others();
    for way in ways(&world) {
        let _resets = way.app.serve_reset(SERVER);
        let mut stream = way.client.connect(&way.to(SERVER)).unwrap();
        stream.write_all(b"x").unwrap();
        let end = stream.read(&mut [0; 8]).map_err(|error| error.kind());
        let (tell, told) = std::sync::mpsc::channel();
        let _reads = way.app.serve(CLIENT, move |mut stream, _| {
            let tell = tell.clone();
            async move {
                stream.write_all(b"!").await?;
                let outcome = stream.read_to_end(&mut Vec::new()).await;
                let _ = tell.send(outcome.map_err(|error| error.kind()));
                Ok(())
            }
        });
        let mut stream = way.client.connect(&way.to(CLIENT)).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        ambit_net::options::reset_on_close(&stream).unwrap();
        drop(stream);
        // Istio's makes an orderly end of a reset, whichever of the two tells it. Ours does not.
        let seen = told.recv_timeout(BOUND).expect(way.what);
        eprintln!("{}: the client sees {end:?}, the server {seen:?}", way.what);
        for what in [end, seen] {
            assert!(
                matches!(what, Ok(0) | Err(ErrorKind::ConnectionReset)),
                "{}: {what:?}",
                way.what
            );
        }
    }
}

#[test]
fn a_hundred_connections_and_a_burst_of_tiny_writes_go_side_by_side_with_istios_proxy() {
    const MANY: u16 = 9805;
    const TINY: u16 = 9806;
    const TINY_WRITES: usize = 40_000;
    if !there() {
        return;
    }
    let world = WORLD.with_others();
    for way in ways(&world) {
        let echo = way.app.serve_echo(MANY);
        let go = Arc::new(watch::Sender::new(false));
        let (tell, told) = std::sync::mpsc::channel();
        let _standing = way.app.serve(TINY, {
            let go = Arc::clone(&go);
            move |mut stream, _| {
                let (mut go, tell) = (go.subscribe(), tell.clone());
                async move {
                    go.wait_for(|go| *go).await.map_err(io::Error::other)?;
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).await?;
                    let _ = tell.send(all.len());
                    Ok(())
                }
            }
        });
        let mut burst = way.client.connect(&way.to(TINY)).unwrap();
        let bursting = std::thread::spawn(move || {
            for _ in 0..TINY_WRITES {
                burst.write_all(b"x").unwrap();
            }
            burst
        });
        block_on(async {
            let mut opening = JoinSet::new();
            for number in 0..100u8 {
                let (client, to) = (way.client.clone(), way.to(MANY));
                opening.spawn_local(async move {
                    let mut stream = client.dial(&to).await?;
                    let (message, mut answer) = ([number; 5000], [0; 5000]);
                    stream.write_all(&message).await?;
                    stream.read_exact(&mut answer).await?;
                    assert_eq!(answer, message);
                    io::Result::Ok(stream)
                });
            }
            let mut open = Vec::new();
            while let Some(done) = opening.join_next().await {
                open.push(done.unwrap().expect(way.what));
            }
            assert_eq!(open.len(), 100);
        });
        assert_eq!(echo.seen().count(), 100, "{}", way.what);
        let burst = bursting.join().expect(way.what);
        go.send_replace(true);
        burst.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(told.recv_timeout(BOUND).expect(way.what), TINY_WRITES);
    }
}

fn alive(stream: &mut TcpStream) -> bool {
    round_trip(stream, b"on").is_ok()
}

#[test]
fn policies_are_in_force_by_identity_and_end_live_tunnels_at_istios_proxy_and_ours() {
    const PORT: u16 = 9807;
    if !there() {
        return;
    }
    let world = WORLD.alone();
    for way in ways(&world) {
        let _app = way.app.serve_echo(PORT);
        let to = way.to(PORT);
        let app = &way.app.path()[5..];
        let only = |client: bool, stranger: bool| {
            let what = format!("{}: client {client}, stranger {stranger}", way.what);
            eventually_true(CHANGE, &what, || {
                way.client.reaches(&to) == client && way.stranger.reaches(&to) == stranger
            });
        };
        only(true, true);
        let mut ours = way.client.connect(&to).unwrap();
        let mut theirs = way.stranger.connect(&to).unwrap();
        assert!(alive(&mut ours) && alive(&mut theirs));
        let rules = json!([{"from": [{"source": {"namespaces": ["other"]}}]}]);
        {
            // Istio's closes live connections for policies of a namespace or the mesh only.
            let _applied = world.apply_for_now("case", &policy("mesh", None, "DENY", &rules));
            eventually_true(CHANGE, &format!("{}: is cut", way.what), || {
                !alive(&mut theirs)
            });
            only(true, false);
            assert!(alive(&mut ours), "{}", way.what);
        }
        only(true, true);
        let principal = way.client.identity().replace("spiffe://", "");
        let rules = json!([{"from": [{"source": {"principals": [principal]}}]}]);
        {
            let _applied = world.apply_for_now("case", &policy("mesh", Some(app), "ALLOW", &rules));
            only(true, false);
        }
        only(true, true);
        let fields = [
            ("direction", "inbound"),
            ("src.namespace", "other"),
            ("error", "*polic"),
        ];
        world.wait_records(way.accepts, &fields, 1);
        // What the dialling side says of the answer 401.
        let fields = [("direction", "outbound"), ("error", "*401")];
        world.wait_records(way.dials, &fields, 1);
    }
}

#[test]
fn a_proxy_that_goes_lets_the_other_ones_tunnels_end_and_takes_no_new_ones() {
    const PORT: u16 = 9808;
    if !there() {
        return;
    }
    let world = WORLD.alone();
    for way in ways(&world) {
        let _app = way.app.serve_echo(PORT);
        let to = way.to(PORT);
        let mut live = way.client.connect(&to).unwrap();
        round_trip(&mut live, b"first").unwrap();
        world.programs().signal(way.accepts, Signal::SIGTERM);
        eventually_true(BOUND, "nothing new is taken", || {
            round_trip(&mut live, b"goes on").expect(way.what);
            !way.client.reaches(&to)
        });
        always(Duration::from_secs(1), "what is open goes on", || {
            alive(&mut live)
        });
        drop(live);
        // The last stream gone, it ends by itself; this signal does nothing to it.
        world.programs().end(way.accepts, Signal::SIGCONT, START);
        world.start_again(way.accepts);
        eventually_true(CHANGE, "tunnels are made anew", || way.client.reaches(&to));
    }
}

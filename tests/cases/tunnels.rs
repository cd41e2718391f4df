//! Tunnels with a real Envoy at one end: our node proxy dials it, and it dials our node proxy.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ambit_tests::apps::bytes::{Noise, Sum, expected, whole};
use ambit_tests::envoy::tunnels::{ONWARD, PING_TIMEOUT};
use ambit_tests::expect::{always, eventually};
use ambit_tests::http;
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::told::workload;
use ambit_tests::world::{CHANGE, START, Shared, World, started};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

const BYTES: u16 = 9701;
const ENDS: u16 = 9702;
const RESETS: u16 = 9703;
const BROKEN: u16 = 9704;
const QUIET: u16 = 9705;
const SLOW: u16 = 9706;
const MANY: u16 = 9708;
const TINY: u16 = 9709;
const ECHO: u16 = 9710;
const PORTS: [u16; 9] = [BYTES, ENDS, RESETS, BROKEN, QUIET, SLOW, MANY, TINY, ECHO];

/// A thing that happens at once on an idle machine and late on a loaded one.
pub const BOUND: Duration = Duration::from_secs(20);

const OURS: &str = "ztunnel-n1";
const ENVOY: &str = "envoy-outside-proxy";

/// `mesh/client` and `mesh/server` are served by our proxy. In `outside/proxy` stands Envoy, which
/// the mesh is told to be a workload that takes tunnels; `outside/plain` speaks to it without one.
static WORLD: Shared = Shared::new(|| {
    let plan = Plan::new("tun")
        .namespace("mesh", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/server", 1)
        .pod("outside/plain", 2)
        .pod("outside/proxy", 2)
        // Each thread has its own tunnels, and they are counted here.
        .setting("ZTUNNEL_WORKER_THREADS", "1")
        // Longer than any case here takes.
        .setting("CONNECTION_TERMINATION_DEADLINE", "60s");
    let world = started(plan);
    {
        let world = world.read();
        let pods = ["mesh/client", "mesh/server", "outside/proxy"].map(|path| world.pod(path));
        let [_, server, proxy] = pods;
        let mesh = pods.map(|pod| workload(pod, "", json!({})));
        world.tell(1, "", &json!({"workloads": mesh}));
        world.start_envoy_tunnels(proxy, server, &PORTS).unwrap();
    }
    world
});

/// One direction in which tunnels are made.
struct Way<'a> {
    what: &'static str,
    client: &'a Pod,
    app: &'a Pod,
    to: String,
}

/// Both, for an application on `port`.
fn ways(world: &World, port: u16) -> [Way<'_>; 2] {
    let proxy = world.pod("outside/proxy");
    let at = proxy.ipv4();
    [
        Way {
            what: "ours dials",
            client: world.pod("mesh/client"),
            app: proxy,
            to: format!("{at}:{port}"),
        },
        Way {
            what: "Envoy dials",
            client: world.pod("outside/plain"),
            app: world.pod("mesh/server"),
            to: format!("{at}:{}", port + ONWARD),
        },
    ]
}

/// A number that Envoy counts.
fn counted(world: &World, name: &str) -> u64 {
    let text = world
        .admin(ENVOY, &format!("/stats?filter=^{name}$"))
        .unwrap();
    let text = text.text();
    let value = text.trim().rsplit(' ').next().unwrap_or_default();
    value.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, work)
}

pub fn round_trip(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, message);
    Ok(())
}

#[test]
fn envoy_and_ours_carry_every_byte_both_ways_under_their_identities() {
    const LENGTH: u64 = 16 << 20;
    let world = WORLD.with_others();
    let [client, server, proxy] =
        ["mesh/client", "mesh/server", "outside/proxy"].map(|path| world.pod(path).identity());
    for way in ways(&world, BYTES) {
        let _app = way.app.serve_bytes(BYTES);
        let both = block_on(way.client.exchange_bytes(&way.to, LENGTH, 11)).unwrap();
        assert_eq!(both, whole(LENGTH, 11), "{}", way.what);
    }
    let port = |pod: &str| format!("{}:{BYTES}", world.pod(pod).ipv4());
    for (direction, at, from, to) in [
        ("outbound", port("outside/proxy"), &client, &proxy),
        ("inbound", port("mesh/server"), &proxy, &server),
    ] {
        let fields = [
            ("direction", direction),
            ("dst.hbone_addr", at.as_str()),
            ("src.identity", from.as_str()),
            ("dst.identity", to.as_str()),
        ];
        let found = world.wait_records(OURS, &fields, 1);
        assert_eq!(found[0].get("error"), "");
    }
}

/// What the first to end says.
pub const FIRST: &[u8] = b"that is all from me";

/// How much the other one says after that end, where it says something.
pub const AFTER: usize = 300_000;

/// Serves by the client's first byte. `C` and `c`: the client ends first; `S` and `s`: the server
/// does. The other one goes on where the letter is large.
pub async fn ends_by_turns(mut stream: tokio::net::TcpStream) -> io::Result<Vec<u8>> {
    let command = stream.read_u8().await?;
    let mut rest = Vec::new();
    if command.eq_ignore_ascii_case(&b'S') {
        stream.write_all(FIRST).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut rest).await?;
        return Ok(rest);
    }
    stream.read_to_end(&mut rest).await?;
    assert_eq!(rest, FIRST);
    if command.is_ascii_uppercase() {
        stream.write_all(&vec![command; AFTER]).await?;
    }
    stream.shutdown().await?;
    Ok(rest)
}

#[test]
fn either_side_may_end_first_with_envoy_and_the_other_goes_on_or_not() {
    let world = WORLD.with_others();
    for way in ways(&world, ENDS) {
        let read = Arc::new(Mutex::new(Vec::new()));
        let _app = way.app.serve(ENDS, {
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
            let after = if command.is_ascii_uppercase() {
                vec![command; AFTER]
            } else {
                Vec::new()
            };
            let mut stream = way.client.connect(&way.to).unwrap();
            stream.write_all(&[command]).unwrap();
            let mut rest = Vec::new();
            let expected = if command.eq_ignore_ascii_case(&b'C') {
                stream.write_all(FIRST).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                stream.read_to_end(&mut rest).unwrap();
                assert!(rest == after, "{what}: {} bytes", rest.len());
                FIRST.to_vec()
            } else {
                stream.read_to_end(&mut rest).unwrap();
                assert_eq!(rest, FIRST, "{what}");
                if way.what == "ours dials" {
                    // Envoy has no half-closed connections to applications: all is over.
                    let _ = eventually(BOUND, &format!("{what}: the server is done"), || {
                        read.lock().pop().ok_or("not yet")
                    });
                    continue;
                }
                stream.write_all(&after).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                after
            };
            let told = eventually(BOUND, &format!("{what}: the server is done"), || {
                read.lock().pop().ok_or("not yet")
            });
            assert!(
                told == Ok(expected),
                "{what}: {:?}",
                told.map(|all| all.len())
            );
        }
    }
}

#[test]
fn a_reset_by_the_server_behind_envoy_or_before_it_is_a_reset_at_the_client() {
    let world = WORLD.with_others();
    for way in ways(&world, RESETS) {
        let _app = way.app.serve_reset(RESETS);
        for _ in 0..3 {
            let mut stream = way.client.connect(&way.to).unwrap();
            stream.write_all(b"x").unwrap();
            let error = stream.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{}", way.what);
        }
    }
}

#[test]
fn a_reset_by_the_client_is_a_reset_at_the_server_or_at_envoy() {
    let world = WORLD.alone();
    let resets = || counted(&world, "http.tunnels.downstream_rq_rx_reset");
    for (way, envoy_takes) in ways(&world, BROKEN).into_iter().zip([true, false]) {
        let said = Arc::new(Mutex::new(Vec::new()));
        let _app = way.app.serve(BROKEN, {
            let said = Arc::clone(&said);
            move |mut stream, _| {
                let said = Arc::clone(&said);
                async move {
                    stream.write_all(b"!").await?;
                    let outcome = stream.read_to_end(&mut Vec::new()).await;
                    said.lock().push(outcome.map_err(|error| error.kind()));
                    Ok(())
                }
            }
        });
        let before = resets();
        let mut stream = way.client.connect(&way.to).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        ambit_net::options::reset_on_close(&stream).unwrap();
        drop(stream);
        let told = eventually(BOUND, &format!("{}: the end is seen", way.what), || {
            said.lock().pop().ok_or("not yet")
        });
        if envoy_takes {
            // Envoy makes an orderly end of it, but it was told.
            eventually(BOUND, "Envoy is told of a reset", || {
                (resets() > before).then_some(()).ok_or("not yet")
            });
        } else {
            assert_eq!(told, Err(ErrorKind::ConnectionReset), "{}", way.what);
        }
    }
}

#[test]
fn pings_of_envoy_are_answered_on_quiet_tunnels() {
    let world = WORLD.with_others();
    let mut quiet = Vec::new();
    for way in ways(&world, QUIET) {
        let app = way.app.serve_echo(QUIET);
        let mut stream = way.client.connect(&way.to).unwrap();
        round_trip(&mut stream, b"open").unwrap();
        quiet.push((way.what, stream, app));
    }
    // Longer than Envoy waits for one answer.
    let long = Duration::from_secs(PING_TIMEOUT) + Duration::from_millis(500);
    always(long, "nobody is taken for dead", || {
        let ends = [
            "http2.keepalive_timeout",
            "cluster.far.http2.keepalive_timeout",
        ];
        ends.iter().all(|name| counted(&world, name) == 0)
    });
    for (what, mut stream, _app) in quiet {
        round_trip(&mut stream, b"still here").expect(what);
    }
}

const SEED: u64 = 5;

/// Sends noise until it is not taken for half a second, says so with `stood`, and goes on until as
/// much as a reader that had not stopped would have got was sent. Answers how much that is.
async fn send_past_a_stop(stream: &mut tokio::net::TcpStream, stood: &watch::Sender<bool>) -> u64 {
    const LEAST: u64 = 16 << 20;
    /// Windows and buffers on the way are far smaller.
    const MOST: u64 = 1 << 28;
    let (mut noise, mut piece, mut sent) = (Noise::new(SEED), vec![0; 64 * 1024], 0);
    while sent < LEAST || !*stood.borrow() {
        noise.fill(&mut piece);
        let mut write = std::pin::pin!(stream.write_all(&piece));
        let soon = tokio::time::timeout(Duration::from_millis(500), &mut write).await;
        let written = match soon {
            Ok(written) => written,
            Err(_elapsed) => {
                stood.send_replace(true);
                tokio::time::timeout(BOUND, write).await.expect("credit")
            }
        };
        written.unwrap();
        sent += piece.len() as u64;
        assert!(sent < MOST, "who does not read took it all");
    }
    sent
}

/// Reads nothing until the other end stands, then as much as it says that it has sent.
async fn read_after_a_stop(
    stream: &mut tokio::net::TcpStream,
    stood: &watch::Sender<bool>,
    sent: &watch::Sender<u64>,
) -> (u64, u64) {
    stood.subscribe().wait_for(|stood| *stood).await.unwrap();
    let mut sent = sent.subscribe();
    let (mut sum, mut piece, mut length) = (Sum::default(), vec![0; 64 * 1024], 0);
    while length == 0 || length != *sent.borrow_and_update() {
        tokio::select! {
            read = stream.read(&mut piece) => {
                let read = read.unwrap();
                assert!(read > 0, "ended after {length}");
                sum.add(&piece[..read]);
                length += read as u64;
            }
            changed = sent.changed() => changed.unwrap(),
        }
    }
    sum.end()
}

/// Whether the sender stood, and how much was sent.
type Slow = (watch::Sender<bool>, watch::Sender<u64>);

/// Serves one of the two ends; what was read is told.
async fn serve_slowly(
    mut stream: tokio::net::TcpStream,
    slow: Arc<Slow>,
    tell: std::sync::mpsc::Sender<(u64, u64)>,
    sends: bool,
) -> io::Result<()> {
    let (stood, sent) = &*slow;
    if sends {
        sent.send_replace(send_past_a_stop(&mut stream, stood).await);
    } else {
        let read = read_after_a_stop(&mut stream, stood, sent).await;
        let _ = tell.send(read);
    }
    // The client ends first: when the server does, Envoy resets the stream and drops what the client
    // has given it no credit for.
    stream.read_exact(&mut [0]).await.unwrap_err();
    stream.shutdown().await
}

#[test]
fn a_reader_that_stops_stops_the_sender_beyond_envoy_and_gets_every_byte_later() {
    let world = WORLD.with_others();
    let ways = ways(&world, SLOW);
    for (way, server_sends) in ways.iter().flat_map(|way| [(way, false), (way, true)]) {
        let slow = Arc::<Slow>::new((watch::Sender::new(false), watch::Sender::new(0)));
        let (tell, told) = std::sync::mpsc::channel();
        let shared = Arc::clone(&slow);
        let _app = way.app.serve(SLOW, move |stream, _| {
            serve_slowly(stream, Arc::clone(&shared), tell.clone(), server_sends)
        });
        let (stood, sent) = &*slow;
        let read = block_on(async {
            let mut stream = way.client.dial(&way.to).await.unwrap();
            let read = if server_sends {
                read_after_a_stop(&mut stream, stood, sent).await
            } else {
                sent.send_replace(send_past_a_stop(&mut stream, stood).await);
                told.recv_timeout(BOUND).expect(way.what)
            };
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "{}", way.what);
            read
        });
        let sent = *sent.borrow();
        assert_eq!(
            read,
            expected(SEED, sent),
            "{}, server sends: {server_sends}",
            way.what
        );
    }
}

#[test]
fn a_hundred_streams_share_one_tunnel_with_envoy() {
    let world = WORLD.alone();
    let counts = [
        "http.tunnels.downstream_cx_total",
        "cluster.far.upstream_cx_total",
    ];
    for (way, count) in ways(&world, MANY).into_iter().zip(counts) {
        let app = way.app.serve_echo(MANY);
        let before = counted(&world, count);
        block_on(async {
            let mut opening = JoinSet::new();
            for number in 0..100u8 {
                let (client, to) = (way.client.clone(), way.to.clone());
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
        assert_eq!(app.seen().count(), 100, "{}", way.what);
        assert!(counted(&world, count) <= before + 1, "{}", way.what);
    }
}

#[test]
fn forty_thousand_tiny_writes_to_a_standing_reader_cost_their_neighbours_nothing() {
    const TINY_WRITES: usize = 40_000;
    let world = WORLD.with_others();
    for way in ways(&world, TINY) {
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
        let _echo = way.app.serve_echo(ECHO);
        let beside = way.to.replace(&TINY.to_string(), &ECHO.to_string());
        let beside = beside.replace(&(TINY + ONWARD).to_string(), &(ECHO + ONWARD).to_string());
        let mut burst = way.client.connect(&way.to).unwrap();
        let mut flow = way.client.connect(&beside).unwrap();
        round_trip(&mut flow, b"before").unwrap();
        let bursting = std::thread::spawn(move || {
            for _ in 0..TINY_WRITES {
                burst.write_all(b"x").unwrap();
            }
            burst
        });
        let mut trips = 0;
        while !bursting.is_finished() || trips < 100 {
            round_trip(&mut flow, &[7; 1000]).expect(way.what);
            trips += 1;
        }
        let burst = bursting.join().expect(way.what);
        go.send_replace(true);
        burst.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(told.recv_timeout(BOUND).expect(way.what), TINY_WRITES);
        round_trip(&mut flow, b"after").expect(way.what);
    }
}

/// Tells Envoy that it is going, or that it is not.
fn healthy(world: &World, yes: bool) {
    let path = if yes {
        "/healthcheck/ok"
    } else {
        "/healthcheck/fail"
    };
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000));
    let netns = world.pod("outside/proxy").netns();
    let answer = http::send(netns, at, ::http::Method::POST, path).unwrap();
    assert!(answer.status.is_success());
}

#[test]
fn after_envoys_goaway_streams_go_on_and_new_ones_go_elsewhere() {
    let world = WORLD.alone();
    let [way, _] = ways(&world, ECHO);
    let _app = way.app.serve_echo(ECHO);
    let mut first = way.client.connect(&way.to).unwrap();
    round_trip(&mut first, b"first").unwrap();
    let tunnels = || counted(&world, "http.tunnels.downstream_cx_total");
    let before = tunnels();
    healthy(&world, false);
    // Each answer on a tunnel is followed by GOAWAY now.
    let mut open = vec![first];
    eventually(BOUND, "a new stream goes on a new tunnel", || {
        let mut stream = way.client.connect(&way.to).unwrap();
        round_trip(&mut stream, b"new").unwrap();
        open.push(stream);
        (tunnels() > before).then_some(()).ok_or("not yet")
    });
    // Longer than Envoy takes from its first GOAWAY to its last.
    always(Duration::from_millis(500), "all streams go on", || {
        open.iter_mut()
            .all(|stream| round_trip(stream, b"on").is_ok())
    });
    healthy(&world, true);
    assert!(way.client.reaches(&way.to));
}

#[test]
fn our_goaway_lets_envoys_streams_go_on_and_takes_no_new_ones() {
    let world = WORLD.alone();
    let [_, way] = ways(&world, ECHO);
    let _app = way.app.serve_echo(ECHO);
    let mut live = way.client.connect(&way.to).unwrap();
    round_trip(&mut live, b"first").unwrap();
    let count = |name: &str| counted(&world, &format!("cluster.far.{name}"));
    let (told, failed) = (
        count("upstream_cx_close_notify"),
        count("upstream_cx_connect_fail"),
    );
    world.programs().signal(OURS, Signal::SIGTERM);
    eventually(BOUND, "Envoy is told", || {
        round_trip(&mut live, b"goes on").unwrap();
        (count("upstream_cx_close_notify") > told)
            .then_some(())
            .ok_or("not yet")
    });
    // It looks for another tunnel to this pod, and there is none.
    assert!(!way.client.reaches(&way.to));
    assert!(count("upstream_cx_connect_fail") > failed);
    round_trip(&mut live, b"still").unwrap();
    drop(live);
    // The last stream gone, it ends by itself; this signal does nothing to it.
    world.programs().end(OURS, Signal::SIGCONT, START);
    world.start_again(OURS);
    eventually(CHANGE, "tunnels are made anew", || {
        way.client.reaches(&way.to).then_some(()).ok_or("not yet")
    });
}

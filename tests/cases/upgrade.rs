//! A node proxy takes over from another, as in a rolling update.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

use ambit_tests::world::{START, Shared, World, started};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::load::Load;
use crate::mesh::plan;
use crate::tunnels::{BOUND, round_trip};

static WORLD: Shared = Shared::new(|| started(plan("upg")));

const MARKER: &[u8] = b"MARKER-upgrade";

/// Clients at work: enough that some connection always waits to be accepted.
const CLIENTS: usize = 6;

fn load(world: &World, port: u16) -> Load {
    let client = world.pod("mesh/client").clone();
    let to = format!("mesh/server:{port}");
    Load::begin(world, move || match client.ask(&to, MARKER) {
        Ok(answer) if answer == MARKER => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

fn speaks(live: &mut TcpStream) -> bool {
    live.read(&mut [0; 64]).is_ok_and(|length| length > 0)
}

#[test]
fn a_proxy_takes_over_under_load_without_one_lost_connection() {
    let world = WORLD.alone();
    let server = world.pod("mesh/server");
    let _echo = server.serve_echo(9501);
    let _ticks = server.serve_ticks(9502, Duration::from_millis(20));
    let loads: Vec<Load> = (0..CLIENTS).map(|_| load(&world, 9501)).collect();
    let more = || loads.iter().for_each(|load| load.more(&world));
    let capture = world.capture();
    // The client's node first, then the server's.
    for (old, place) in [
        ("ztunnel-n1", "outside/plain"),
        ("ztunnel-n2", "outside/far"),
    ] {
        let mut live = world
            .pod("mesh/client")
            .connect("mesh/server:9502")
            .unwrap();
        live.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert!(speaks(&mut live));
        let new = world.start_beside(old, place);
        more();
        world.programs().signal(old, Signal::SIGTERM);
        more();
        assert!(speaks(&mut live), "what is open goes on at the old proxy");
        drop(live);
        world.eventually("the old proxy ends when its last connection does", || {
            !world.programs().runs(old)
        });
        more();
        world.eventually("the new proxy carried connections", || {
            !world.records(&new).is_empty()
        });
    }
    let failures: Vec<String> = loads.into_iter().flat_map(Load::end).collect();
    assert_eq!(failures, Vec::<String>::new(), "no connection failed");
    let packets = capture.end();
    assert_eq!(packets.with(MARKER), 0);
    assert!(packets.to_port(15008) > 0, "it went through tunnels");
}

#[test]
fn what_is_cut_at_the_deadline_is_reset_and_on_record_and_what_had_ended_stays_whole() {
    let cut = plan("cut").setting("CONNECTION_TERMINATION_DEADLINE", "1s");
    let world = World::start(cut).unwrap_or_else(|error| panic!("{error:?}"));
    let [client, server] = ["mesh/client", "mesh/server"].map(|path| world.pod(path));
    let _echo = server.serve_echo(9503);
    let (tell, told) = std::sync::mpsc::channel();
    let _ends = server.serve(9504, move |mut stream, _| {
        let tell = tell.clone();
        async move {
            stream.write_all(b"whole").await?;
            stream.shutdown().await?;
            let rest = stream.read_to_end(&mut Vec::new()).await;
            let _ = tell.send(rest.map_err(|error| error.kind()));
            Ok(())
        }
    });
    let mut open = client.connect("mesh/server:9503").unwrap();
    round_trip(&mut open, b"half of a message").unwrap();
    let mut ended = client.connect("mesh/server:9504").unwrap();
    let mut answer = [0; 5];
    ended.read_exact(&mut answer).unwrap();
    world.programs().end("ztunnel-n2", Signal::SIGTERM, START);
    let error = open.read(&mut [0; 8]).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ConnectionReset,
        "no end that looks like one"
    );
    // That direction was over; the other was not.
    assert_eq!(ended.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(
        told.recv_timeout(BOUND).unwrap(),
        Err(ErrorKind::ConnectionReset)
    );
    let fields = [
        ("direction", "inbound"),
        ("error", "connection closed by drain"),
    ];
    assert_eq!(world.wait_records("ztunnel-n2", &fields, 2).len(), 2);
}

#[test]
fn asked_over_its_admin_page_to_quit_it_drains_and_ends() {
    let world = World::start(plan("quit")).unwrap_or_else(|error| panic!("{error:?}"));
    let [client, server] = ["mesh/client", "mesh/server"].map(|path| world.pod(path));
    let _echo = server.serve_echo(9505);
    let mut open = client.connect("mesh/server:9505").unwrap();
    round_trip(&mut open, b"before").unwrap();
    assert_eq!(world.quit("ztunnel-n2").unwrap().status.as_u16(), 200);
    world.eventually("new connections are refused", || {
        client.ask("mesh/server:9505", b"new").is_err()
    });
    round_trip(&mut open, b"what is open goes on").unwrap();
    assert!(world.programs().runs("ztunnel-n2"));
    drop(open);
    world.eventually("it ends with its last connection", || {
        !world.programs().runs("ztunnel-n2")
    });
}

//! What one side sends, the other receives, through the mesh: every byte once and in order, ends as
//! ends, resets as resets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_tests::apps::bytes::whole;
use ambit_tests::expect::eventually;
use ambit_tests::pod::Family;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream as AsyncStream;
use tokio::task::JoinSet;

use crate::mesh::MESH;

/// A thing that happens at once on an idle machine and late on a loaded one.
const BOUND: Duration = Duration::from_secs(20);

/// Servers for `mesh/client`: one on another node, reached by tunnel, and one on its own.
const SERVERS: [&str; 2] = ["mesh/server", "mesh/near"];

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

#[test]
fn a_gibibyte_each_way_arrives_with_its_checksum() {
    const LENGTH: u64 = 1 << 30;
    let world = MESH.with_others();
    let _app = world.pod("mesh/server").serve_bytes(9001);
    let client = world.pod("mesh/client");
    let both = block_on(client.exchange_bytes("mesh/server:9001", LENGTH, 3)).unwrap();
    assert_eq!(both, whole(LENGTH, 3));
}

#[test]
fn bytes_are_whole_to_a_service_over_ipv6_and_on_one_node() {
    const LENGTH: u64 = 40 << 20;
    let world = MESH.with_others();
    let client = world.pod("mesh/client");
    let apps = [
        world.pod("mesh/server").serve_bytes(8080),
        world.pod("mesh/near").serve_bytes(9002),
    ];
    let six = format!("[{}]:8080", world.pod("mesh/server").ipv6());
    for (index, to) in ["server.mesh:80", "mesh/near:9002", &six]
        .into_iter()
        .enumerate()
    {
        let seed = 100 + index as u64;
        let both = block_on(client.exchange_bytes(to, LENGTH, seed)).unwrap();
        assert_eq!(both, whole(LENGTH, seed), "{to}");
    }
    let service_six = client.resolve("server.mesh:80", Family::V6).to_string();
    let both = block_on(client.exchange_bytes(&service_six, LENGTH, 9)).unwrap();
    assert_eq!(both, whole(LENGTH, 9));
    assert_eq!(apps.map(|app| app.seen().count()), [3, 1]);
}

/// Serves one connection by a blocking function, and gives what it returned.
fn remember() -> (
    Arc<Mutex<Vec<String>>>,
    impl Fn(String) + Clone + Send + 'static,
) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let say = {
        let said = Arc::clone(&said);
        move |text| said.lock().push(text)
    };
    (said, say)
}

#[test]
fn the_server_may_end_its_sending_first_and_go_on_reading() {
    for server in SERVERS {
        let world = MESH.with_others();
        let (said, say) = remember();
        let _app = world.pod(server).serve(9003, move |mut stream, _| {
            let say = say.clone();
            async move {
                stream.write_all(b"that is all from me").await?;
                stream.shutdown().await?;
                let mut rest = String::new();
                stream.read_to_string(&mut rest).await?;
                say(rest);
                Ok(())
            }
        });
        let mut stream = world
            .pod("mesh/client")
            .connect(&format!("{server}:9003"))
            .unwrap();
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "that is all from me");
        stream.write_all(b"but not from me").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        eventually(BOUND, "the server reads to the end", || {
            let said = said.lock();
            if *said == ["but not from me"] {
                Ok(())
            } else {
                Err(said.clone())
            }
        });
    }
}

#[test]
fn the_client_may_end_its_sending_first_and_go_on_reading() {
    for server in SERVERS {
        let world = MESH.with_others();
        let _app = world.pod(server).serve(9004, |mut stream, _| async move {
            let mut question = String::new();
            stream.read_to_string(&mut question).await?;
            // Nothing moves for a while after the client's end: the direction back must stay open.
            tokio::time::sleep(Duration::from_millis(700)).await;
            stream
                .write_all(format!("you said {question}").as_bytes())
                .await?;
            stream.shutdown().await
        });
        let answer = world
            .pod("mesh/client")
            .ask(&format!("{server}:9004"), b"nothing")
            .unwrap();
        assert_eq!(answer, b"you said nothing");
    }
}

#[test]
fn a_server_may_speak_first() {
    for server in SERVERS {
        let world = MESH.with_others();
        let _app = world.pod(server).serve_greeting(9005, "220 ready");
        let mut stream = world
            .pod("mesh/client")
            .connect(&format!("{server}:9005"))
            .unwrap();
        let mut greeting = [0; 9];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready");
    }
}

#[test]
fn a_reset_by_the_server_is_a_reset_at_the_client() {
    for server in SERVERS {
        let world = MESH.with_others();
        let _app = world.pod(server).serve_reset(9006);
        for _ in 0..5 {
            let mut stream = world
                .pod("mesh/client")
                .connect(&format!("{server}:9006"))
                .unwrap();
            stream.write_all(b"x").unwrap();
            let error = stream.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn a_reset_by_the_client_is_a_reset_at_the_server() {
    for server in SERVERS {
        let world = MESH.with_others();
        let (said, say) = remember();
        let _app = world.pod(server).serve(9007, move |mut stream, _| {
            let say = say.clone();
            async move {
                stream.write_all(b"!").await?;
                let mut rest = Vec::new();
                let outcome = stream.read_to_end(&mut rest).await;
                say(format!("{:?}", outcome.map_err(|error| error.kind())));
                Ok(())
            }
        });
        let mut stream = world
            .pod("mesh/client")
            .connect(&format!("{server}:9007"))
            .unwrap();
        stream.read_exact(&mut [0]).unwrap();
        ambit_net::options::reset_on_close(&stream).unwrap();
        drop(stream);
        eventually(BOUND, "the server sees the reset", || {
            let said = said.lock();
            if *said == ["Err(ConnectionReset)"] {
                Ok(())
            } else {
                Err(said.clone())
            }
        });
    }
}

#[test]
fn a_refused_port_is_no_answer() {
    for server in SERVERS {
        let world = MESH.with_others();
        let mut stream = match world.pod("mesh/client").connect(&format!("{server}:9999")) {
            Ok(stream) => stream,
            Err(_) => return, // a direct refusal is as good
        };
        let outcome = stream.read(&mut [0; 1]);
        assert!(
            matches!(outcome, Err(ref error) if error.kind() == ErrorKind::ConnectionReset)
                || matches!(outcome, Ok(0)),
            "{outcome:?}"
        );
    }
}

async fn round_trip(stream: &mut AsyncStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, message);
    Ok(())
}

#[test]
fn two_thousand_connections_at_once_all_work() {
    for server in SERVERS {
        const COUNT: usize = 2000;
        let world = MESH.with_others();
        let app = world.pod(server).serve_echo(9008);
        let client = world.pod("mesh/client");
        let local = tokio::task::LocalSet::new();
        let opened = local.run_until(async {
            let mut opening = JoinSet::new();
            for number in 0..COUNT {
                let client = client.clone();
                opening.spawn_local(async move {
                    let mut stream = client.dial(&format!("{server}:9008")).await?;
                    round_trip(&mut stream, format!("first {number}").as_bytes()).await?;
                    io::Result::Ok((number, stream))
                });
            }
            let mut open = Vec::new();
            while let Some(done) = opening.join_next().await {
                open.push(done.unwrap().expect("every connection opens"));
            }
            // All are open now; each still works.
            for (number, stream) in &mut open {
                round_trip(stream, format!("again {number}").as_bytes())
                    .await
                    .expect("still open");
            }
            open.len()
        });
        assert_eq!(block_on(opened), COUNT);
        assert_eq!(app.seen().count(), COUNT);
    }
}

/// Writes until nothing is taken any more.
fn fill(stream: &mut TcpStream) -> usize {
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let piece = vec![7; 256 * 1024];
    let mut written = 0;
    while let Ok(length) = stream.write(&piece) {
        written += length;
        assert!(
            written < 1 << 30,
            "a reader that never reads took a gibibyte"
        );
    }
    written
}

#[test]
fn a_slow_reader_does_not_slow_its_neighbours_on_the_tunnel() {
    let world = MESH.alone();
    let _stalled = world.pod("mesh/third").serve_stalled(9009);
    let _echo = world.pod("mesh/third").serve_echo(9010);
    let client = world.pod("mesh/client");
    let neighbours = || {
        let start = Instant::now();
        block_on(async {
            for _ in 0..20 {
                let mut stream = client.dial("mesh/third:9010").await.unwrap();
                for _ in 0..10 {
                    round_trip(&mut stream, &[5; 10_000]).await.unwrap();
                }
            }
        });
        start.elapsed()
    };
    let alone = neighbours();
    // Four of them, from the same pod to the same pod: the same tunnel as the neighbours.
    let mut slow: Vec<_> = (0..4)
        .map(|_| client.connect("mesh/third:9009").unwrap())
        .collect();
    let held: usize = slow.iter_mut().map(fill).sum();
    let beside = neighbours();
    // Far more than a machine's moods, far less than waiting for a reader that never reads.
    let most = 4 * alone + Duration::from_secs(3);
    assert!(
        beside < most,
        "{beside:?} beside slow readers ({held} bytes held), {alone:?} alone"
    );
}

#[test]
fn connections_that_come_and_go_leave_nothing_open() {
    let world = MESH.with_others();
    let _app = world.pod("mesh/near").serve_echo(9011);
    let client = world.pod("other/stranger");
    for _ in 0..200 {
        assert!(client.reaches("mesh/near:9011"));
    }
    // Both ends are on this node. Nothing of the two hundred may be left in its proxy.
    let address = format!("{}:9011", world.pod("mesh/near").ipv4());
    eventually(BOUND, "the proxy lists no connection to the port", || {
        let dump = world.config_dump("ztunnel-n1").unwrap();
        let state = dump["workloadState"].to_string();
        if state.contains(&address) {
            Err(state)
        } else {
            Ok(())
        }
    });
}

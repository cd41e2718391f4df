//! Bytes that a client sent before its tunnel's far end had answered.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use ambit_hbone::server::{self, Exchange};
use ambit_hbone::{Settings, StreamIo};
use ambit_tests::apps::App;
use ambit_tests::mint::Mint;
use ambit_tests::plan::Plan;
use ambit_tests::world::World;
use ambit_tests::world::told::{service, workload};
use ambit_tls::{Limits, Svid};
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::contract::world_with;

const VIP: &str = "10.96.0.10";
const NAME: &str = "server.mesh.svc.cluster.local";

/// For each request, what had come with it when it was answered.
type Came = Arc<Mutex<Vec<Vec<u8>>>>;

/// What the scripted proxy does with a request.
#[derive(Debug, Clone, Copy)]
enum Does {
    Echoes,
    Refuses,
}

/// A proxy of the test's in `outside/gateway`, which the mesh takes for a workload's own. It shakes hands when `may` allows it.
fn serve_tunnels(world: &World, does: Does, may: &Arc<Semaphore>) -> (App, Came) {
    let may = Arc::clone(may);
    let pod = world.pod("outside/gateway");
    let mint = Mint::of(&world.state()).unwrap();
    let svid = mint.issue(&pod.identity()).unwrap().svid().unwrap();
    let came = Came::default();
    let seen = Arc::clone(&came);
    let app = pod.serve(15008, move |stream, _| {
        let (svid, seen, may) = (Arc::clone(&svid), Arc::clone(&seen), Arc::clone(&may));
        async move {
            let _may = may.acquire().await.map_err(io::Error::other)?;
            tunnels(stream, &svid, &seen, does).await
        }
    });
    (app, came)
}

async fn tunnels(stream: TcpStream, svid: &Svid, came: &Came, does: Does) -> io::Result<()> {
    let accepted = ambit_tls::accept(svid, stream, Limits::default()).await;
    let (stream, peer) = accepted.map_err(io::Error::other)?;
    let never = std::future::pending();
    let serving = server::serve(stream, peer, &Settings::default(), never).await;
    let mut incoming = serving.map_err(io::Error::other)?;
    while let Some(Ok(exchange)) = incoming.next().await {
        // Time for more than the request to arrive.
        let _ = tokio::time::timeout(Duration::from_millis(50), incoming.next()).await;
        match does {
            Does::Refuses => exchange.refuse(StatusCode::SERVICE_UNAVAILABLE),
            Does::Echoes => echo(exchange, came).await?,
        }
    }
    Ok(())
}

async fn echo(exchange: Exchange, came: &Came) -> io::Result<()> {
    let mut stream = StreamIo::from(exchange.accept(HeaderMap::new())?);
    // The answer leaves when the tunnel is driven again: what is here now did not wait for it.
    let mut early = vec![0; 64 * 1024];
    let length = stream.read(&mut early).now_or_never().transpose()?;
    early.truncate(length.unwrap_or(0));
    came.lock().push(early.clone());
    tokio::task::spawn_local(async move {
        stream.write_all(&early).await?;
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::io::copy(&mut from, &mut to).await?;
        to.shutdown().await
    });
    Ok(())
}

/// Tells the client's node that the service's endpoints are `also` and the scripted proxy.
fn tell(world: &World, also: &[&str]) {
    let behind = || json!({"services": {(format!("mesh/{NAME}")): {"80": 8080}}});
    let mut workloads = vec![workload(world.pod("mesh/client"), "", json!({}))];
    for path in [&["outside/gateway"], also].concat() {
        workloads.push(workload(world.pod(path), "", behind()));
    }
    let mesh = json!({
        "workloads": workloads,
        "services": [service("mesh/server", &format!("/{VIP}"), 8080, json!({}))],
    });
    world.tell(1, "", &mesh);
    world.tell(2, "", &mesh);
}

/// What came early of a first message to the scripted proxy.
fn early(name: &str, enabled: bool, message: &[u8]) -> Vec<u8> {
    let plan = Plan::new(name).setting("EARLY_DATA_ENABLED", &enabled.to_string());
    let world = world_with(plan);
    tell(&world, &[]);
    let may = Arc::new(Semaphore::new(0));
    let (_app, came) = serve_tunnels(&world, Does::Echoes, &may);
    let mut client = world.pod("mesh/client").connect("server.mesh:80").unwrap();
    client.write_all(message).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    may.add_permits(1);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, message);
    let sent = message.len().to_string();
    let fields = [
        ("direction", "outbound"),
        ("bytes_sent", &*sent),
        ("bytes_recv", &*sent),
    ];
    world.wait_records("ztunnel-n1", &fields, 1);
    let came = came.lock();
    assert_eq!(came.len(), 1);
    came[0].clone()
}

#[test]
fn what_a_client_said_by_then_goes_with_the_request() {
    assert_eq!(early("earlyon", true, b"said at once"), b"said at once");
}

#[test]
fn the_switch_has_the_first_bytes_wait_for_the_answer() {
    assert_eq!(early("earlyoff", false, b"said at once"), b"");
}

#[test]
fn what_an_endpoint_refused_with_its_request_reaches_another_whole() {
    let world = world_with(Plan::new("earlyno"));
    tell(&world, &["mesh/server"]);
    let (app, _) = serve_tunnels(&world, Does::Refuses, &Arc::new(Semaphore::new(1)));
    let [client, server] = ["mesh/client", "mesh/server"].map(|path| world.pod(path));
    let _echo = server.serve_echo(8080);
    // Longer than what goes early.
    let message: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
    // Half of them meet the one that refuses: that none does is less likely than 1 in 16 million.
    for _ in 0..24 {
        assert!(client.ask("server.mesh:80", &message).unwrap() == message);
    }
    assert!(app.seen().count() > 0);
    let sent = message.len().to_string();
    let fields = [
        ("direction", "outbound"),
        ("bytes_sent", &*sent),
        ("bytes_recv", &*sent),
    ];
    world.wait_records("ztunnel-n1", &fields, 24);
}

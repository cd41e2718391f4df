//! Tests of tunnels end to end, in memory: ours against ours, and ours against scripted peers.

mod frames;
mod headers;
mod hostile;
mod oracle;
mod pool;
mod streams;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use ambit_relay::{Sink, Source};
use ambit_tls::authority::{Request as Signing, Root};
use ambit_tls::csr::KeyAndCsr;
use ambit_tls::{Limits, Peer, Svid};
use ambit_wire::authority::Authority;
use bytes::Bytes;
use http::HeaderMap;
use tokio::io::DuplexStream;
use tokio::task::LocalSet;

use crate::client::{Tunnel, handshake};
use crate::server::{Incoming, serve};
use crate::{Request, Settings, Stream, StreamSink, StreamSource};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The peer of most tests.
static PEER: LazyLock<Peer> = LazyLock::new(|| verified(DAY));

/// A verified peer, made the only way there is: by a handshake. Not inside a runtime: it makes one of
/// its own.
fn verified(lifetime: Duration) -> Peer {
    let root = Root::generate("mesh", SystemTime::now(), 365 * DAY).unwrap();
    let svid = svid(&root, "spiffe://cluster.local/ns/shop/sa/web", lifetime);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let expected = [svid.identity().clone()];
        let (client, server) = tokio::join!(
            ambit_tls::connect(&svid, near, &expected, Limits::default()),
            ambit_tls::accept(&svid, far, Limits::default())
        );
        client.unwrap();
        server.unwrap().1
    })
}

fn svid(root: &Root, text: &str, lifetime: Duration) -> Arc<Svid> {
    let identity: Identity = text.parse().unwrap();
    let asked = KeyAndCsr::generate(&identity).unwrap();
    let request = Signing::from_pem(&asked.csr_pem).unwrap();
    let chain = root
        .issue(&request, &identity, SystemTime::now(), lifetime)
        .unwrap();
    Svid::from_chain(&asked.key, &chain).unwrap()
}

/// Runs one test on one thread with real time.
fn live<F: Future>(test: impl FnOnce(Peer) -> F) -> F::Output {
    run(false, test)
}

/// The same with a clock that jumps over waits.
fn paused<F: Future>(test: impl FnOnce(Peer) -> F) -> F::Output {
    run(true, test)
}

fn run<F: Future>(paused: bool, test: impl FnOnce(Peer) -> F) -> F::Output {
    let peer = PEER.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(paused)
        .build()
        .unwrap();
    let test = test(peer);
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(3600), test)
            .await
            .unwrap()
    })
}

async fn ends(peer: &Peer, settings: &Settings, pipe: usize) -> (Tunnel, Incoming<DuplexStream>) {
    let (near, far) = tokio::io::duplex(pipe);
    let (tunnel, driver) = handshake(near, peer.clone(), settings).await.unwrap();
    tokio::task::spawn_local(driver);
    let incoming = serve(far, peer.clone(), settings, std::future::pending())
        .await
        .unwrap();
    (tunnel, incoming)
}

/// Accepts every stream, and hands each over as soon as it is there.
fn accept_all(
    mut incoming: Incoming<DuplexStream>,
) -> tokio::sync::mpsc::UnboundedReceiver<Stream> {
    let (give, take) = tokio::sync::mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        while let Some(exchange) = incoming.next().await {
            // A test that does not care for streams dropped its end.
            let _ = give.send(exchange.unwrap().accept(HeaderMap::new()).unwrap());
        }
    });
    take
}

fn request() -> Request {
    Request {
        authority: Authority::parse(b"10.0.0.1:80").unwrap(),
        headers: HeaderMap::new(),
    }
}

async fn read(source: &mut StreamSource) -> std::io::Result<Option<Bytes>> {
    std::future::poll_fn(|cx| source.poll_next(cx)).await
}

async fn read_to_end(source: &mut StreamSource) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(piece) = read(source).await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn write(sink: &mut StreamSink, data: impl Into<Bytes>) -> std::io::Result<()> {
    let mut data = data.into();
    while !data.is_empty() {
        std::future::poll_fn(|cx| sink.poll_write(cx, &mut data)).await?;
    }
    std::future::poll_fn(|cx| sink.poll_flush(cx)).await
}

async fn close(sink: &mut StreamSink) -> std::io::Result<()> {
    std::future::poll_fn(|cx| sink.poll_close(cx)).await
}

//! Bytes through TLS and through whole tunnels, both ends in this process, with a pipe of memory in between.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_hbone::client::{Tunnel, handshake};
use ambit_hbone::server::{Incoming, serve};
use ambit_hbone::{Request, Settings, Stream, StreamSink, StreamSource};
use ambit_model::Identity;
use ambit_relay::{Sink, Source};
use ambit_tls::authority::{Request as Signing, Root};
use ambit_tls::csr::KeyAndCsr;
use ambit_tls::{ClientStream, Limits, Peer, ServerStream, Svid};
use ambit_wire::Authority;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local};

/// The pipe holds more than is ever on its way.
const PIPE: usize = 1024 * 1024;
/// A message of an application that talks much and says little.
const PING: usize = 64;
/// A piece of bulk.
const BULK: usize = 64 * 1024;
/// Where streams lead that come back as they are, and those of which only a mark comes back for each piece of bulk.
const ECHO: u16 = 1;
const SWALLOW: u16 = 2;

type Ends = (ClientStream<DuplexStream>, ServerStream<DuplexStream>);

fn run(task: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    LocalSet::new().block_on(&runtime, task)
}

fn svid() -> Result<Arc<Svid>> {
    let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    let root = Root::generate("mesh", now, day)?;
    let identity = Identity::new("cluster.local", "shop", "web")?;
    let asked = KeyAndCsr::generate(&identity)?;
    let chain = root.issue(&Signing::from_pem(&asked.csr_pem)?, &identity, now, day)?;
    Ok(Svid::from_chain(&asked.key, &chain)?)
}

async fn connected(svid: &Svid) -> Result<(Ends, Peer, Peer)> {
    // Under callgrind a handshake takes a hundred times as long as without.
    let patient = Limits {
        timeout: Duration::from_secs(600),
    };
    let (near, far) = duplex(PIPE);
    let expected = [svid.identity().clone()];
    let (dialled, accepted) = tokio::join!(
        ambit_tls::connect(svid, near, &expected, patient),
        ambit_tls::accept(svid, far, patient)
    );
    let ((near, server), (far, client)) = (dialled?, accepted?);
    Ok(((near, far), server, client))
}

/// Mutual TLS, both ends.
pub(crate) fn handshakes(times: usize) -> Result<()> {
    run(async move {
        let svid = svid()?;
        for _ in 0..times {
            drop(connected(&svid).await?);
        }
        Ok(())
    })
}

/// Records of `size` bytes one after the other.
pub(crate) fn records(size: usize, times: usize) -> Result<()> {
    run(async move {
        let ((mut near, mut far), _, _) = connected(&*svid()?).await?;
        let (data, mut read) = (vec![7; size], vec![0; size]);
        for _ in 0..times {
            near.write_all(&data).await?;
            near.flush().await?;
            far.read_exact(&mut read).await?;
        }
        ensure!(read == data, "what was sealed is what was opened");
        Ok(())
    })
}

/// A tunnel whose far end serves.
async fn tunnel() -> Result<Tunnel> {
    let svid = svid()?;
    let ((near, far), server, client) = connected(&svid).await?;
    let settings = Settings::default();
    let (tunnel, driver) = handshake(near, server, &settings).await?;
    drop(spawn_local(driver));
    let incoming = serve(far, client, &settings, std::future::pending()).await?;
    drop(spawn_local(accept(incoming)));
    Ok(tunnel)
}

async fn accept(mut incoming: Incoming<ServerStream<DuplexStream>>) -> Result<()> {
    while let Some(exchange) = incoming.next().await {
        let exchange = exchange?;
        let echo = exchange.request().authority.port() == ECHO;
        let stream = exchange.accept(HeaderMap::new())?;
        drop(spawn_local(answer(stream, echo)));
    }
    Ok(())
}

async fn answer(stream: Stream, echo: bool) -> io::Result<()> {
    let (mut source, mut sink) = stream.split();
    let mut held = 0;
    while let Some(piece) = read(&mut source).await? {
        if echo {
            write(&mut sink, piece).await?;
            continue;
        }
        held += piece.len();
        while held >= BULK {
            held -= BULK;
            write(&mut sink, Bytes::from_static(b".")).await?;
        }
    }
    poll_fn(|cx| sink.poll_close(cx)).await
}

async fn open(tunnel: &Tunnel, port: u16) -> Result<(StreamSource, StreamSink)> {
    let authority = Authority::parse(format!("10.244.1.17:{port}").as_bytes())?;
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (
            "baggage",
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v1",
        ),
        (
            "forwarded",
            "for=\"10.244.0.12:41234\";host=cart.shop.svc.cluster.local",
        ),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let opened = tunnel.open(Request { authority, headers }).await?;
    Ok(opened.stream.split())
}

async fn read(source: &mut StreamSource) -> io::Result<Option<Bytes>> {
    poll_fn(|cx| source.poll_next(cx)).await
}

async fn write(sink: &mut StreamSink, mut data: Bytes) -> io::Result<()> {
    while !data.is_empty() {
        poll_fn(|cx| sink.poll_write(cx, &mut data)).await?;
    }
    poll_fn(|cx| sink.poll_flush(cx)).await
}

async fn take(source: &mut StreamSource, mut bytes: usize) -> Result<()> {
    while bytes > 0 {
        let piece = read(source).await?.context("the stream goes on")?;
        bytes = bytes
            .checked_sub(piece.len())
            .context("no more than that")?;
    }
    Ok(())
}

/// Streams one after the other: CONNECT, answer, and both ends closed.
pub(crate) fn streams(times: usize) -> Result<()> {
    run(async move {
        let tunnel = tunnel().await?;
        for _ in 0..times {
            let (mut source, mut sink) = open(&tunnel, ECHO).await?;
            poll_fn(|cx| sink.poll_close(cx)).await?;
            ensure!(read(&mut source).await?.is_none(), "the answer's end");
        }
        Ok(())
    })
}

/// Messages there and back over one stream.
pub(crate) fn pings(times: usize) -> Result<()> {
    run(async move {
        let tunnel = tunnel().await?;
        let (mut source, mut sink) = open(&tunnel, ECHO).await?;
        for _ in 0..times {
            write(&mut sink, Bytes::from_static(&[7; PING])).await?;
            take(&mut source, PING).await?;
        }
        Ok(())
    })
}

/// Bulk over one stream, with a byte back for each piece.
pub(crate) fn bulk(times: usize) -> Result<()> {
    run(async move {
        let tunnel = tunnel().await?;
        let (mut source, mut sink) = open(&tunnel, SWALLOW).await?;
        let piece = Bytes::from(vec![7; BULK]);
        for _ in 0..times {
            write(&mut sink, piece.clone()).await?;
            take(&mut source, 1).await?;
        }
        Ok(())
    })
}

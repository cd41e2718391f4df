//! How fast one tunnel is: bulk and ping-pong over loopback TCP, one thread at each end.
//!
//! ```sh
//! cargo run --release -p ambit-hbone --example tunnel_speed -- [MiB] [round trips]
//! ```
//! Prints wall-clock rates and, because machines are seldom quiet, the processor time of both ends
//! together: compare that one between two builds.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ambit_hbone::client::{Tunnel, handshake};
use ambit_hbone::server::serve;
use ambit_hbone::{Request, Settings, Stream, StreamSink, StreamSource};
use ambit_model::identity::Identity;
use ambit_relay::{Sink, Source};
use ambit_tls::authority::{Request as Signing, Root};
use ambit_tls::csr::KeyAndCsr;
use ambit_tls::{Limits, Svid};
use ambit_wire::authority::Authority;
use bytes::Bytes;
use http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

type Outcome<T> = Result<T, Box<dyn Error>>;

const IDENTITY: &str = "spiffe://cluster.local/ns/bench/sa/bench";

fn main() -> Outcome<()> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let mib = numbers.next().transpose()?.unwrap_or(2048);
    let trips = numbers.next().transpose()?.unwrap_or(50_000);
    let svid = svid()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let server = Arc::clone(&svid);
    // The thread ends with the process.
    drop(std::thread::spawn(move || {
        // A failure shows at the other end.
        let _ = local(accept(server, listener));
    }));
    local(async move {
        let transport = TcpStream::connect(address).await?;
        transport.set_nodelay(true)?;
        let expected = [IDENTITY.parse::<Identity>()?];
        let (io, peer) = ambit_tls::connect(&svid, transport, &expected, Limits::default()).await?;
        let (tunnel, driver) = handshake(io, peer, &Settings::default()).await?;
        tokio::task::spawn_local(driver);
        bulk(&tunnel, mib).await?;
        ping_pong(&tunnel, trips).await?;
        concurrent(&tunnel, trips).await
    })
}

fn local<T>(task: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, task)
}

fn svid() -> Outcome<Arc<Svid>> {
    let now = SystemTime::now();
    let day = Duration::from_secs(24 * 3600);
    let root = Root::generate("bench", now, day)?;
    let identity: Identity = IDENTITY.parse()?;
    let asked = KeyAndCsr::generate(&identity)?;
    let chain = root.issue(&Signing::from_pem(&asked.csr_pem)?, &identity, now, day)?;
    Ok(Svid::from_chain(&asked.key, &chain)?)
}

/// Echoes streams to port 1 and swallows the others, answering one byte at their end.
async fn accept(svid: Arc<Svid>, listener: std::net::TcpListener) -> Outcome<()> {
    let (transport, _) = TcpListener::from_std(listener)?.accept().await?;
    transport.set_nodelay(true)?;
    let (io, peer) = ambit_tls::accept(&svid, transport, Limits::default()).await?;
    let mut incoming = serve(io, peer, &Settings::default(), std::future::pending()).await?;
    while let Some(exchange) = incoming.next().await {
        let exchange = exchange?;
        let echo = exchange.request().authority.port() == 1;
        let stream = exchange.accept(HeaderMap::new())?;
        tokio::task::spawn_local(answer(stream, echo));
    }
    Ok(())
}

async fn answer(stream: Stream, echo: bool) -> std::io::Result<()> {
    let (mut source, mut sink) = stream.split();
    while let Some(piece) = read(&mut source).await? {
        if echo {
            write(&mut sink, piece).await?;
        }
    }
    write(&mut sink, Bytes::from_static(b".")).await?;
    std::future::poll_fn(|cx| sink.poll_close(cx)).await
}

async fn open(tunnel: &Tunnel, port: u16) -> Outcome<(StreamSource, StreamSink)> {
    let authority = Authority::parse(format!("127.0.0.1:{port}").as_bytes())?;
    let request = Request {
        authority,
        headers: HeaderMap::new(),
    };
    Ok(tunnel.open(request).await?.stream.split())
}

async fn read(source: &mut StreamSource) -> std::io::Result<Option<Bytes>> {
    std::future::poll_fn(|cx| source.poll_next(cx)).await
}

async fn write(sink: &mut StreamSink, mut data: Bytes) -> std::io::Result<()> {
    while !data.is_empty() {
        std::future::poll_fn(|cx| sink.poll_write(cx, &mut data)).await?;
    }
    std::future::poll_fn(|cx| sink.poll_flush(cx)).await
}

async fn bulk(tunnel: &Tunnel, mib: usize) -> Outcome<()> {
    let (mut source, mut sink) = open(tunnel, 2).await?;
    let piece = Bytes::from(vec![7; 256 * 1024]);
    let (started, cpu) = (Instant::now(), cpu()?);
    for _ in 0..mib * 4 {
        write(&mut sink, piece.clone()).await?;
    }
    std::future::poll_fn(|cx| sink.poll_close(cx)).await?;
    while read(&mut source).await?.is_some() {}
    let (wall, used) = (started.elapsed().as_secs_f64(), self::cpu()? - cpu);
    let gib = mib as f64 / 1024.0;
    let rate = gib * 8.0 * 1.073_741_824 / wall;
    say(&format!(
        "bulk: {rate:.2} Gbit/s, {:.0} ms of processor per GiB",
        used * 1e3 / gib
    ))
}

async fn ping_pong(tunnel: &Tunnel, trips: usize) -> Outcome<()> {
    let (mut source, mut sink) = open(tunnel, 1).await?;
    let ping = Bytes::from(vec![7; 64]);
    let mut times = Vec::with_capacity(trips);
    let cpu = cpu()?;
    for _ in 0..trips {
        let started = Instant::now();
        write(&mut sink, ping.clone()).await?;
        let mut left = ping.len();
        while left > 0 {
            left -= read(&mut source).await?.ok_or("ended early")?.len();
        }
        times.push(started.elapsed());
    }
    let used = self::cpu()? - cpu;
    times.sort_unstable();
    let median = times.get(trips / 2).copied().unwrap_or_default();
    let each = used * 1e6 / trips as f64;
    say(&format!(
        "ping-pong 64 B: p50 {median:?}, {each:.1} us of processor per round trip"
    ))
}

/// Sixteen streams of one tunnel at once.
async fn concurrent(tunnel: &Tunnel, trips: usize) -> Outcome<()> {
    let (started, cpu) = (Instant::now(), cpu()?);
    let mut clients = Vec::new();
    for _ in 0..16 {
        let (mut source, mut sink) = open(tunnel, 1).await?;
        clients.push(tokio::task::spawn_local(async move {
            for _ in 0..trips / 16 {
                write(&mut sink, Bytes::from_static(&[7; 64])).await?;
                let mut left = 64;
                while left > 0 {
                    let piece = read(&mut source).await?;
                    left -= piece.ok_or(std::io::ErrorKind::UnexpectedEof)?.len();
                }
            }
            std::io::Result::Ok(())
        }));
    }
    for client in clients {
        client.await??;
    }
    let (wall, used) = (started.elapsed().as_secs_f64(), self::cpu()? - cpu);
    let trips = trips as f64;
    let each = used * 1e6 / trips;
    say(&format!(
        "ping-pong 64 B, 16 streams: {:.0}/s, {each:.1} us of processor per round trip",
        trips / wall
    ))
}

fn say(line: &str) -> Outcome<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Seconds of processor time that all threads of this process have had.
fn cpu() -> Outcome<f64> {
    let mut total = 0.0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let nanoseconds = text.split(' ').next().ok_or("schedstat")?;
        total += nanoseconds.parse::<f64>()? / 1e9;
    }
    Ok(total)
}

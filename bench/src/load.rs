//! The shapes of load. Clients and servers are blocking threads: the cheapest there is on either
//! side, so that what is measured is what stands between.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ambit_tests::pod::Pod;
use anyhow::{Context, Result};

/// Ports that load uses; the redirect rules of the limit name them.
pub const PORTS: Range<u16> = 20000..20010;
/// Echoes.
const ECHO: u16 = 20000;
/// Reads and drops.
const SINK: u16 = 20001;
/// Bytes of one ping.
const PING: usize = 64;
/// Bytes written at once in bulk.
const PIECE: usize = 256 * 1024;
/// Warming up: caches, tunnels, buffers.
const WARM: Duration = Duration::from_millis(300);

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
        let mut total = 0u64;
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => total += length as u64,
            }
        }
        // Says how much came, so that what still was on the way does not count.
        let _ = stream.write_all(&total.to_le_bytes());
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

fn connect(client: &Pod, server: &Pod, port: u16) -> io::Result<TcpStream> {
    client.connect(&format!("{}:{port}", server.ipv4()))
}

fn ping(stream: &mut TcpStream) -> io::Result<()> {
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
    times.sort_unstable();
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .context("no round trip")
    };
    Ok(RoundTrip {
        p50: at(50)?,
        p99: at(99)?,
    })
}

/// Many connections at once, each one ping after the other: pings a second of all.
///
/// # Errors
///
/// A connection breaks.
pub fn pings(client: &Pod, server: &Pod, at_once: usize, during: Duration) -> Result<f64> {
    at_once_for(at_once, during, |ending, count| {
        let mut stream = connect(client, server, ECHO)?;
        while !ending.load(Ordering::Relaxed) {
            ping(&mut stream)?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Connect, one ping, close, by several clients at once: connections a second of all.
///
/// # Errors
///
/// A connection breaks.
pub fn connections(client: &Pod, server: &Pod, at_once: usize, during: Duration) -> Result<f64> {
    at_once_for(at_once, during, |ending, count| {
        while !ending.load(Ordering::Relaxed) {
            let mut stream = connect(client, server, ECHO)?;
            ping(&mut stream)?;
            drop(stream);
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

fn at_once_for(
    at_once: usize,
    during: Duration,
    work: impl Fn(&AtomicBool, &AtomicU64) -> io::Result<()> + Sync,
) -> Result<f64> {
    let (ending, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..at_once)
            .map(|_| scope.spawn(|| work(&ending, &count)))
            .collect();
        pause(WARM);
        let (start, before) = (Instant::now(), count.load(Ordering::Relaxed));
        pause(during);
        let (took, after) = (start.elapsed(), count.load(Ordering::Relaxed));
        ending.store(true, Ordering::Relaxed);
        for thread in running {
            thread.join().expect("no panic")?;
        }
        Ok((after - before) as f64 / took.as_secs_f64())
    })
}

/// One connection, as many bytes as go: gigabits a second, as the server counted them.
///
/// # Errors
///
/// The connection breaks.
pub fn bulk(client: &Pod, server: &Pod, during: Duration) -> Result<f64> {
    let mut stream = connect(client, server, SINK)?;
    let piece = vec![7; PIECE];
    let start = Instant::now();
    while start.elapsed() < during {
        stream.write_all(&piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_le_bytes(total) as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
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

/// Lets time pass on a thread that serves nobody.
#[expect(clippy::disallowed_methods, reason = "no data-plane thread")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

//! HTTP/1.1 load: requests over connections that stay open, to a service.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ambit_tests::pod::Pod;
use anyhow::{Context, Result};

use crate::window::{self, Meter, WARM, Window};

/// Bytes of an answer's body.
const BODY: usize = 1024;
/// No answer takes as long while load runs.
const STUCK: Duration = Duration::from_secs(20);

/// Starts a server in a pod that answers every request alike; it ends with the process.
///
/// # Errors
///
/// The port is in use.
pub fn serve(pod: &Pod, port: u16) -> Result<()> {
    let address = format!("0.0.0.0:{port}");
    let listener = pod.netns().run(|| TcpListener::bind(&address))??;
    std::thread::Builder::new()
        .name("server".to_owned())
        .spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || answer(stream));
            }
        })?;
    Ok(())
}

fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n").into_bytes();
    reply.resize(reply.len() + BODY, b'x');
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line == b"\r\n" {
            writer.write_all(&reply)?;
        }
    }
}

/// One connection to a service.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    asked: String,
    line: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(pod: &Pod, to: &str) -> io::Result<Self> {
        let stream = pod.connect(to)?;
        stream.set_read_timeout(Some(STUCK))?;
        Ok(Self {
            stream: BufReader::new(stream),
            asked: format!(
                "GET /bench HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n",
                to.trim_end_matches(":80").replace('/', ".")
            ),
            line: Vec::new(),
        })
    }

    pub(crate) fn request(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(self.asked.as_bytes())?;
        let mut first = true;
        let mut body = None;
        loop {
            self.line.clear();
            self.stream.read_until(b'\n', &mut self.line)?;
            let line = String::from_utf8_lossy(&self.line);
            if first && !line.starts_with("HTTP/1.1 200 ") {
                return Err(io::Error::other(format!("answered {line:?}")));
            }
            first = false;
            if line.trim_end().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                body = value.trim().parse().ok();
            }
        }
        let mut buffer = [0; BODY];
        if body != Some(BODY) {
            return Err(io::Error::other(
                "the length of the answer is not the server's",
            ));
        }
        self.stream.read_exact(&mut buffer)
    }
}

/// The median time of a request, one after the other on one connection.
///
/// # Errors
///
/// A request fails.
pub fn round_trips(client: &Pod, to: &str, during: Duration) -> Result<Duration> {
    let mut connection = Client::connect(client, to)?;
    let start = Instant::now();
    while start.elapsed() < WARM {
        connection.request()?;
    }
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    while start.elapsed() < during {
        let sent = Instant::now();
        connection.request()?;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("no request")
}

/// Many connections at once, one request after the other on each.
///
/// # Errors
///
/// A request fails.
pub fn requests(
    client: &Pod,
    to: &str,
    at_once: usize,
    during: Duration,
    meter: Meter<'_>,
) -> Result<Window> {
    window::count(at_once, during, meter, |ending, count| {
        let mut connection = Client::connect(client, to)?;
        while !ending.load(Ordering::Relaxed) {
            connection.request()?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

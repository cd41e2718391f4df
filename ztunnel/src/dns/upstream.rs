//! Asking the pod's servers, as the pod.
//!
//! Each try is a socket of its own in the pod's namespace, connected to the server, on a port that the kernel draws,
//! with an id that nobody can foretell; what comes is believed only from there and for that question. The query's bytes
//! go out as they came but for the id, and the answer is handed back as it came.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ambit_dns::Transport;
use ambit_dns::query::Query;
use ambit_dns::reply;
use ambit_net::datagram;
use ambit_net::dial::Dial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use crate::dns::client::{Client, Servers};
use crate::pod::mark;

/// The port of DNS.
const PORT: u16 = 53;

/// How long one server may take before the next is asked. Far servers of rare names take a second.
const TRY: Duration = Duration::from_secs(2);

/// How long all tries may take together: resolvers wait five seconds, and what comes later nobody hears.
const TOTAL: Duration = Duration::from_millis(4_500);

/// How often each server is asked, as the C library does.
const ROUNDS: usize = 2;

/// What a server said.
#[derive(Debug)]
pub struct Said {
    /// Its answer.
    pub answer: Vec<u8>,
    /// What it said over TCP, where it had cut its answer.
    pub whole: Option<Vec<u8>>,
}

/// Asks the servers in turn until one answers. One that refuses is believed when no other does better.
pub async fn ask(
    client: &Client,
    servers: &Servers,
    query: &Query<'_>,
    transport: Transport,
) -> Option<Said> {
    let end = Instant::now() + TOTAL;
    let count = servers.addresses.len();
    let mut refusal = None;
    for _ in 0..ROUNDS {
        let first = servers.first.get();
        for turn in 0..count {
            let index = (first + turn) % count;
            let Some(address) = servers.addresses.get(index) else {
                continue;
            };
            if Instant::now() >= end {
                return refusal;
            }
            let to = SocketAddr::new(*address, PORT);
            let one = timeout(TRY, ask_one(client, to, query, transport));
            match timeout_at(end, one).await {
                Ok(Ok(Ok(said))) if reply::is_refusal(&said.answer) => refusal = Some(said),
                Ok(Ok(Ok(said))) => {
                    servers.first.set(index);
                    return Some(said);
                }
                Ok(Ok(Err(error))) => tracing::debug!(server = %to, %error, "DNS server failed"),
                Ok(Err(_)) | Err(_) => tracing::debug!(server = %to, "DNS server is silent"),
            }
        }
        if refusal.is_some() {
            return refusal;
        }
    }
    None
}

async fn ask_one(
    client: &Client,
    to: SocketAddr,
    query: &Query<'_>,
    transport: Transport,
) -> io::Result<Said> {
    if transport == Transport::Tcp {
        let answer = over_tcp(client, to, query).await?;
        return Ok(Said {
            answer,
            whole: None,
        });
    }
    let answer = over_udp(client, to, query).await?;
    // The client may have room for more than the server dared to send; and if it has not, its own try over TCP is
    // answered from the cache.
    let whole = if reply::is_truncated(&answer) {
        over_tcp(client, to, query).await.ok()
    } else {
        None
    };
    Ok(Said { answer, whole })
}

async fn over_udp(client: &Client, to: SocketAddr, query: &Query<'_>) -> io::Result<Vec<u8>> {
    let resolver = &client.resolver;
    let socket = datagram::speak(&client.pod.netns, to, mark(&resolver.shared.settings))?;
    let socket = UdpSocket::from_std(socket)?;
    let id = id(client);
    socket.send(&reply::forwarded(query, id)).await?;
    loop {
        socket.readable().await?;
        let mut buffer = resolver.scratch.borrow_mut();
        let read = match socket.try_recv(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let answer = buffer.get(..read).unwrap_or_default();
        if reply::is_answer(query, id, answer) {
            return Ok(answer.to_vec());
        }
    }
}

async fn over_tcp(client: &Client, to: SocketAddr, query: &Query<'_>) -> io::Result<Vec<u8>> {
    let dial = Dial {
        mark: mark(&client.resolver.shared.settings),
        netns: Some(&client.pod.netns),
        ..Dial::new(to, TRY)
    };
    let mut stream = dial.connect().await?;
    let id = id(client);
    let message = reply::forwarded(query, id);
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [length.to_be_bytes().as_slice(), &message].concat();
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if reply::is_answer(query, id, &answer) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn id(client: &Client) -> u16 {
    let [high, low, ..] = client.resolver.draw().to_be_bytes();
    u16::from_be_bytes([high, low])
}

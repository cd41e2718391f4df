//! A pod's DNS sockets: datagrams and streams.
//!
//! Once the drain asks, the sockets take nothing new, so that a process that takes over gets it all; what was read is
//! answered first.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_dns::Transport;
use ambit_runtime::accept::accept_loop;
use ambit_runtime::drain::Draining;
use ambit_runtime::tasks::spawn_local;
use bytes::{Buf, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::dns::client::{Client, Reply};
use crate::dns::{Resolver, Sockets};
use crate::flag::Flag;
use crate::pod::Pod;

/// How long a stream may be silent, and how long a client may leave an answer unread (contract of Istio's ztunnel).
const IDLE: Duration = Duration::from_secs(5);

/// Queries of one stream in flight; further ones are read once these are answered (contract of Istio's ztunnel).
const PIPELINED: usize = 32;

/// Streams of one pod. Resolvers open one at a time; a pod with more asks over datagrams, or waits.
const STREAMS: u32 = 64;

/// Longest query over a stream: a name and EDNS take 300 bytes, and signatures not 4 KiB.
const LONGEST_QUERY: usize = 4096;

/// Datagrams read in one turn, so that a flood from one pod leaves the thread to the others.
const BATCH: usize = 32;

/// Serves a pod's sockets on the calling thread until `draining` asks to stop.
///
/// # Errors
/// The sockets cannot be registered with the thread's event loop.
pub fn serve(
    resolver: &Rc<Resolver>,
    pod: Arc<Pod>,
    sockets: Sockets,
    draining: Draining,
) -> io::Result<()> {
    let udp: Vec<_> = sockets
        .udp
        .into_iter()
        .map(UdpSocket::from_std)
        .collect::<io::Result<_>>()?;
    let tcp: Vec<_> = sockets
        .tcp
        .into_iter()
        .map(TcpListener::from_std)
        .collect::<io::Result<_>>()?;
    let client = Rc::new(Client::new(resolver, pod));
    let ending = Flag::default();
    for socket in udp {
        let serving = datagrams(Rc::clone(&client), socket, draining.clone());
        drop(spawn_local("DNS datagrams", serving));
    }
    for listener in tcp {
        let serving = streams(
            Rc::clone(&client),
            listener,
            ending.clone(),
            draining.clone(),
        );
        drop(spawn_local("DNS listener", serving));
    }
    drop(spawn_local("DNS drain", end(client, ending, draining)));
    Ok(())
}

/// Carries out the drain, and holds it until what was read is answered.
async fn end(client: Rc<Client>, ending: Flag, draining: Draining) {
    draining.requested().await;
    ending.raise();
    tokio::select! {
        () = client.busy.idle() => {}
        () = draining.stopped() => {}
    }
}

async fn datagrams(client: Rc<Client>, socket: UdpSocket, draining: Draining) {
    let socket = Rc::new(socket);
    let serving = async {
        loop {
            let read = match socket.readable().await {
                Ok(()) => receive(&client, &socket, BATCH),
                Err(error) => Err(error),
            };
            match read {
                // A datagram that is there already costs no wait, so the others get their turn here.
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => {
                    tracing::debug!(%error, "DNS socket failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = draining.requested() => {}
        () = serving => {}
    }
    // A socket with a peer gets nothing that others send: from now on they reach whoever else listens here.
    let nobody = match socket.local_addr() {
        Ok(SocketAddr::V6(own)) => SocketAddr::from((*own.ip(), DISCARD)),
        _ => SocketAddr::from(([127, 0, 0, 1], DISCARD)),
    };
    let _ = socket.connect(nobody).await;
    let _ = receive(&client, &socket, LAST_ROUND);
    tokio::select! {
        () = client.busy.idle() => {}
        () = draining.stopped() => {}
    }
}

/// The port at which nobody listens (RFC 863).
const DISCARD: u16 = 9;
/// Datagrams read when the drain starts: more than a socket's default queue of 208 KiB holds.
const LAST_ROUND: usize = 4096;
/// Pause after an error that a socket should not have, so that it does not take the thread.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads what is there, `most` datagrams at most, and answers it or sees to it.
fn receive(client: &Rc<Client>, socket: &Rc<UdpSocket>, most: usize) -> io::Result<()> {
    // Out of its place only for as long as nothing waits.
    let mut buffer = client.resolver.scratch.take();
    let mut outcome = Ok(());
    for _ in 0..most {
        match socket.try_recv_from(&mut buffer) {
            Ok((read, peer)) => one(client, socket, buffer.get(..read).unwrap_or_default(), peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    client.resolver.scratch.replace(buffer);
    outcome
}

fn one(client: &Rc<Client>, socket: &Rc<UdpSocket>, message: &[u8], peer: SocketAddr) {
    // From ourselves: a forged sender, to which every answer would come back as the next message.
    if socket.local_addr().is_ok_and(|own| own == peer) {
        return;
    }
    match client.take(message, Transport::Udp) {
        // A full send queue loses it, as a network may; the resolver asks again.
        Reply::Now(answer) => drop(socket.try_send_to(&answer, peer)),
        Reply::Later(answer) => {
            let socket = Rc::clone(socket);
            drop(spawn_local("DNS query", async move {
                drop(socket.try_send_to(&answer.await, peer));
            }));
        }
        Reply::Nothing => {}
    }
}

async fn streams(client: Rc<Client>, listener: TcpListener, ending: Flag, draining: Draining) {
    let _listening = client.busy.begin();
    let each = |stream: TcpStream, _peer| {
        if client.streams.get() >= STREAMS {
            return;
        }
        client.streams.set(client.streams.get() + 1);
        let (client, ending) = (Rc::clone(&client), ending.clone());
        let work = client.busy.begin();
        drop(spawn_local("DNS stream", async move {
            let _work = work;
            if let Err(error) = stream_of(&client, stream, &ending).await {
                tracing::debug!(%error, "DNS stream ended");
            }
            client.streams.set(client.streams.get().saturating_sub(1));
        }));
    };
    if let Err(error) = accept_loop(listener, &draining, each).await {
        tracing::error!(%error, "DNS listener failed");
    }
}

/// Answers one stream's queries, each as soon as it can be (RFC 7766 section 7), until it ends or is idle.
async fn stream_of(client: &Rc<Client>, mut stream: TcpStream, ending: &Flag) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    let mut buffer = BytesMut::new();
    let mut waiting = FuturesUnordered::new();
    let mut over = false;
    loop {
        while waiting.len() < PIPELINED
            && let Some(message) = next_message(&mut buffer)?
        {
            match client.take(&message, Transport::Tcp) {
                Reply::Now(answer) => send(&mut write, &answer).await?,
                Reply::Later(answer) => waiting.push(answer),
                Reply::Nothing => return Ok(()),
            }
        }
        if over && waiting.is_empty() {
            return Ok(());
        }
        tokio::select! {
            Some(answer) = waiting.next() => send(&mut write, &answer).await?,
            read = read.read_buf(&mut buffer), if !over && waiting.len() < PIPELINED => {
                over = read? == 0;
            }
            () = tokio::time::sleep(IDLE), if waiting.is_empty() => return Ok(()),
            () = ending.wait(), if waiting.is_empty() => return Ok(()),
        }
    }
}

/// Takes one message out of the buffer, if it is there as a whole.
fn next_message(buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(length) = buffer.first_chunk::<2>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > LONGEST_QUERY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if buffer.len() < 2 + length {
        return Ok(None);
    }
    buffer.advance(2);
    Ok(Some(buffer.split_to(length)))
}

async fn send(write: &mut tokio::net::tcp::WriteHalf<'_>, answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
    let framed = [length.to_be_bytes().as_slice(), answer].concat();
    tokio::time::timeout(IDLE, write.write_all(&framed)).await?
}

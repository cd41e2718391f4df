//! The limit: a relay with nothing but `epoll`, `read` and `write`.
//!
//! As a node proxy it listens in a pod's namespace, is reached through redirect rules, and dials
//! from that namespace; unlike one it neither encrypts, frames, looks anything up, nor logs.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use ambit_net::listen::TcpListen;
use ambit_net::netns::Netns;
use ambit_net::original_dst::original_destination;
use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

/// The mark by which redirect rules let the relay's own connections pass.
pub const MARK: u32 = 1337;
/// Events taken at once.
const EVENTS: usize = 256;
/// Bytes read at once: where larger reads stop to be faster on loopback.
const BUFFER: usize = 128 * 1024;
/// The listener's number among the connections'.
const LISTENER: u64 = u64::MAX;

/// Relays every connection to `port` of a namespace to where it was going, for ever, on `threads`
/// threads that share nothing.
///
/// # Errors
///
/// The port is in use.
pub fn run(netns: &Netns, port: u16, threads: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| serve(netns, port)))
            .collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })
}

fn serve(netns: &Netns, port: u16) -> Result<()> {
    let listen = TcpListen {
        reuse_port: true,
        ..TcpListen::new(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    };
    let listener = netns.run(|| listen.bind())??;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut pairs: Slab<Pair> = Slab::new();
    let mut events = [EpollEvent::empty(); EVENTS];
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::Error::EINTR) => 0,
            other => other?,
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept(&listener, netns, &epoll, &mut pairs)?;
                continue;
            }
            let key = usize::try_from(event.data())?;
            // A pair may have ended earlier in this batch.
            let over = pairs
                .get_mut(key)
                .is_some_and(|pair| pair.turn(&mut buffer));
            if over {
                pairs.remove(key);
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    netns: &Netns,
    epoll: &Epoll,
    pairs: &mut Slab<Pair>,
) -> Result<()> {
    while let Ok((client, _)) = listener.accept() {
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        let to = original_destination(&client)?;
        // Who dials the relay itself would be relayed to it again, for ever.
        if to.port() == listener.local_addr()?.port() {
            continue;
        }
        let server = dial(netns, to)?;
        let entry = pairs.vacant_entry();
        let key = u64::try_from(entry.key())?;
        let both = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        for stream in [client.as_fd(), server.as_fd()] {
            epoll.add(stream, EpollEvent::new(both, key))?;
        }
        entry.insert(Pair {
            client,
            server,
            there: Way::default(),
            back: Way::default(),
        });
    }
    Ok(())
}

fn dial(netns: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = netns.run(|| Socket::new(Domain::IPV4, kind, Some(Protocol::TCP)))??;
    socket.set_tcp_nodelay(true)?;
    socket.set_mark(MARK)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::Error::EINPROGRESS as i32) => {
            Err(error.into())
        }
        _ => Ok(socket.into()),
    }
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
    there: Way,
    back: Way,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Read and not yet written.
    pending: Vec<u8>,
    ended: bool,
    closed: bool,
}

impl Pair {
    /// Moves what can be moved; true when nothing more will.
    fn turn(&mut self, buffer: &mut [u8]) -> bool {
        let there = self.there.turn(&self.client, &self.server, buffer);
        let back = self.back.turn(&self.server, &self.client, buffer);
        there.is_err() || back.is_err() || (self.there.closed && self.back.closed)
    }
}

impl Way {
    fn turn(&mut self, mut from: &TcpStream, to: &TcpStream, buffer: &mut [u8]) -> io::Result<()> {
        while !self.closed {
            if !self.pending.is_empty() {
                let written = write(to, &self.pending)?;
                self.pending.drain(..written);
                if !self.pending.is_empty() {
                    return Ok(());
                }
            }
            if self.ended {
                to.shutdown(Shutdown::Write)?;
                self.closed = true;
                return Ok(());
            }
            let length = match from.read(buffer) {
                Ok(0) => {
                    self.ended = true;
                    continue;
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let written = write(to, &buffer[..length])?;
            self.pending.extend_from_slice(&buffer[written..length]);
        }
        Ok(())
    }
}

/// Writes what the socket takes.
fn write(mut to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

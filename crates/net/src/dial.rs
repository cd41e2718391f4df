//! Outgoing TCP connections: from another namespace, with another's source address, marked.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::error::Named;
use crate::listen::make_transparent;
use crate::netns::Netns;
use crate::options::{self, Keepalive};
use crate::original_dst::canonical;
use crate::{Error, Result};

/// A connection to be made.
#[derive(Debug, Clone, Copy)]
pub struct Dial<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// Speak from this address although it may not be ours: the peer of a proxied connection
    /// then sees its real client. Needs `CAP_NET_ADMIN`, and rules that bring the answers back.
    pub source: Option<IpAddr>,
    /// Packet mark, by which redirection rules know our own connections (`SO_MARK`).
    pub mark: Option<u32>,
    /// Dial from this namespace; from the calling thread's if absent.
    pub netns: Option<&'a Netns>,
    /// How long the peer may take to answer.
    pub timeout: Duration,
    /// Probe a silent peer.
    pub keepalive: Option<Keepalive>,
}

impl Dial<'_> {
    /// A plain connection from here: no mark, own source address, no keep-alive.
    #[must_use]
    pub fn new(to: SocketAddr, timeout: Duration) -> Self {
        Self {
            to,
            source: None,
            mark: None,
            netns: None,
            timeout,
            keepalive: None,
        }
    }

    /// Connects. The connection sends small writes at once (`TCP_NODELAY`).
    ///
    /// Dropping the future abandons the attempt.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] and [`Error::Connect`] are the peer's; the rest is the environment's
    /// (capabilities, descriptors) or the caller's ([`Error::FamilyMismatch`]).
    pub async fn connect(&self) -> Result<TcpStream> {
        let mut tries = match self.source {
            Some(_) => BORROWED_PORT_TRIES,
            None => 0,
        };
        loop {
            let port = (tries > 0).then(borrowed_port);
            let socket = TcpSocket::from_std_stream(self.prepare(port)?.into());
            let attempt = socket.connect(canonical(self.to));
            match tokio::time::timeout(self.timeout, attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if tries > 0 && lacks_port(&error) => tries -= 1,
                Ok(Err(error)) => return Err(self.blame(error)),
                Err(_elapsed) => return Err(Error::Timeout(self.timeout)),
            }
        }
    }

    /// Makes and configures the socket; only its making happens in the other namespace.
    fn prepare(&self, port: Option<u16>) -> Result<Socket> {
        let to = canonical(self.to);
        let domain = Domain::for_address(to);
        let kind = Type::STREAM.nonblocking().cloexec();
        let make = || Socket::new(domain, kind, Some(Protocol::TCP)).named("socket");
        let socket = match self.netns {
            Some(netns) => netns.run(make)??,
            None => make()?,
        };
        options::nodelay(&socket).named("setsockopt TCP_NODELAY")?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark).named("setsockopt SO_MARK")?;
        }
        if let Some(keepalive) = &self.keepalive {
            options::keepalive(&socket, keepalive).named("setsockopt SO_KEEPALIVE")?;
        }
        if let Some(source) = self.source {
            speak_from(&socket, source.to_canonical(), to)?;
        }
        if let Some(port) = port {
            // Linux before 6.3 does not know the option: the kernel picks among all ports then.
            let _unknown = options::local_ports(&socket, port..=port);
        }
        Ok(socket)
    }

    /// `connect` reports both the peer's refusals and our own lack of ports or rights.
    fn blame(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::TimedOut => Error::Timeout(self.timeout),
            _ if lacks_port(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
                Error::System {
                    call: "connect",
                    source: error,
                }
            }
            _ => Error::Connect(error),
        }
    }
}

/// Which ports go with a borrowed address first.
///
/// The address's owner, on another kernel, may have a port in use with the same destination, and the
/// destination could not tell the two connections apart. Linux takes ports for `connect` in steps of
/// two from the bottom of its range, 32768 to 60999 unless set otherwise, and turns to the odd ones
/// when no even one is left. So the odd ones are free at most owners.
const BORROWED_PORTS: std::ops::RangeInclusive<u16> = 32769..=60999;

/// How many of these are tried before any port will do. With half of them in use at one destination,
/// one connection in eight comes to that; a try in vain costs a socket.
const BORROWED_PORT_TRIES: u32 = 3;

fn borrowed_port() -> u16 {
    fastrand::u16(BORROWED_PORTS) | 1
}

fn lacks_port(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
    )
}

/// Binds to an address that may belong to another machine, leaving the port to `connect`.
fn speak_from(socket: &Socket, source: IpAddr, to: SocketAddr) -> Result<()> {
    if source.is_ipv4() != to.is_ipv4() {
        return Err(Error::FamilyMismatch);
    }
    make_transparent(socket, to.is_ipv6())?;
    if to.is_ipv6() {
        socket
            .set_freebind_v6(true)
            .named("setsockopt IPV6_FREEBIND")?;
    } else {
        socket
            .set_freebind_v4(true)
            .named("setsockopt IP_FREEBIND")?;
    }
    // The port is chosen at connect, when the destination is known, so that the same port can
    // serve many destinations: a bound port would run out at about 28,000 connections.
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)
        .named("setsockopt IP_BIND_ADDRESS_NO_PORT")?;
    socket
        .bind(&SocketAddr::new(source, 0).into())
        .named("bind (source address)")
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr, TcpListener};
    use std::time::Duration;

    use super::Dial;
    use crate::Error;

    const SHORT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn connects_with_the_mark_and_without_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let stream = Dial {
            mark: Some(7),
            ..Dial::new(to, SHORT)
        }
        .connect()
        .await
        .unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert_eq!(socket.mark().unwrap(), 7);
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn speaks_from_an_address_that_is_not_configured() {
        // Loopback answers for all of 127/8, so the way back exists without rules.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let source: IpAddr = "127.9.8.7".parse().unwrap();
        let dial = Dial {
            source: Some(source),
            ..Dial::new(to, SHORT)
        };
        let _stream = dial.connect().await.unwrap();
        assert_eq!(listener.accept().unwrap().1.ip(), source);
    }

    #[tokio::test]
    async fn a_borrowed_address_goes_with_ports_that_its_owner_picks_last() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let usual = range
            .split_whitespace()
            .eq(["32768", "60999"].iter().copied());
        assert!(usual, "needs the usual range, not {range}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mut kept = Vec::new();
        for _ in 0..20 {
            let dial = Dial {
                source: Some("127.9.8.6".parse().unwrap()),
                ..Dial::new(to, SHORT)
            };
            kept.push((dial.connect().await.unwrap(), listener.accept().unwrap()));
        }
        for (_, (_, client)) in kept {
            assert_eq!(client.port() % 2, 1, "{client}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_the_peers_and_a_mixed_family_is_ours() {
        let closed: SocketAddr = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let refused = Dial::new(closed, SHORT).connect().await;
        assert!(matches!(refused, Err(Error::Connect(_))), "{refused:?}");
        let mixed = Dial {
            source: Some("::1".parse().unwrap()),
            ..Dial::new(closed, SHORT)
        };
        assert!(matches!(mixed.connect().await, Err(Error::FamilyMismatch)));
    }

    #[tokio::test]
    async fn a_silent_peer_is_a_timeout() {
        // A full accept queue drops the SYN: nobody answers.
        let listener =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let to = listener.local_addr().unwrap().as_socket().unwrap();
        let mut kept = Vec::new();
        for _ in 0..4 {
            match Dial::new(to, Duration::from_millis(200)).connect().await {
                Ok(stream) => kept.push(stream),
                Err(error) => {
                    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
                    return;
                }
            }
        }
        panic!("the queue never filled");
    }
}

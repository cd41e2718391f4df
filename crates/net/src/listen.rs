//! Listening TCP sockets.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Named;
use crate::sysctl;
use crate::{Error, Result};

/// Whether a listener should accept connections for addresses that are not this machine's, and
/// so keep the original destination as its local address (`IP_TRANSPARENT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transparent {
    /// Not asked for.
    #[default]
    Off,
    /// Asked for; the listener works without it.
    Wanted,
    /// Asked for; binding fails without it.
    Required,
}

/// A listening socket to be made.
#[derive(Debug, Clone, Copy)]
pub struct TcpListen {
    /// Where to listen. `[::]` means both families.
    pub address: SocketAddr,
    /// Accept connections to foreign addresses.
    pub transparent: Transparent,
    /// Share the port with other sockets of the same user, which is how several threads, and an
    /// old and a new process, listen at once (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Packet mark of this socket and of the connections it accepts (`SO_MARK`).
    pub mark: Option<u32>,
    /// Connections the kernel keeps ready before `accept`; more are dropped and retried by the
    /// client. The kernel lowers it to `net.core.somaxconn`.
    pub backlog: u32,
}

/// Enough for a burst of new connections during one long turn of the event loop.
pub const DEFAULT_BACKLOG: u32 = 1024;

/// Says whether, in the calling thread's namespace, connections that wait to be accepted by a
/// listener that closes go to another listener of the same port (with
/// [`reuse_port`](TcpListen::reuse_port)) in place of being reset: without it, a client whose
/// handshake ends while a listener closes loses its connection. Both families; kernel 5.14.
///
/// Answers whether the kernel took it.
#[must_use]
pub fn hand_over(wanted: bool) -> bool {
    sysctl::set("ipv4/tcp_migrate_req", wanted)
}

/// Says whether, in the calling thread's namespace, the application's end of a new connection has the
/// mark that the opening segment carries, so that its answers are routed by it. Both families, and
/// only for listeners without a mark of their own; kernel 4.1.
///
/// Answers whether the kernel took it.
#[must_use]
pub fn take_marks(wanted: bool) -> bool {
    sysctl::set("ipv4/tcp_fwmark_accept", wanted)
}

impl TcpListen {
    /// A plain listener at `address`: not transparent, not shared, not marked.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            transparent: Transparent::Off,
            reuse_port: false,
            mark: None,
            backlog: DEFAULT_BACKLOG,
        }
    }

    /// Makes the socket, binds it and listens. The socket does not block.
    ///
    /// The socket belongs to the namespace the calling thread is in: call this inside
    /// [`Netns::run`](crate::netns::Netns::run) to listen in a pod.
    ///
    /// # Errors
    ///
    /// The address is in use or not of this machine, or a capability is missing: `CAP_NET_ADMIN`
    /// for a mark or for a required transparent listener.
    pub fn bind(&self) -> Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(self.address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
        .named("socket")?;
        if self.address.is_ipv6() {
            socket.set_only_v6(false).named("setsockopt IPV6_V6ONLY")?;
        }
        socket
            .set_reuse_address(true)
            .named("setsockopt SO_REUSEADDR")?;
        if self.reuse_port {
            socket
                .set_reuse_port(true)
                .named("setsockopt SO_REUSEPORT")?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark).named("setsockopt SO_MARK")?;
        }
        let ipv6 = self.address.is_ipv6();
        match self.transparent {
            Transparent::Off => {}
            Transparent::Wanted => drop(make_transparent(&socket, ipv6)),
            Transparent::Required => make_transparent(&socket, ipv6)?,
        }
        let backlog = i32::try_from(self.backlog).unwrap_or(i32::MAX);
        let bound = socket.bind(&self.address.into());
        let listens = bound.and_then(|()| socket.listen(backlog));
        listens.map_err(|source| Error::Listen {
            address: self.address,
            source,
        })?;
        Ok(socket.into())
    }
}

/// Lets a socket use addresses that are not this machine's, in both families for an IPv6 socket,
/// which may carry IPv4 too.
pub(crate) fn make_transparent(socket: &Socket, ipv6: bool) -> Result<()> {
    if ipv6 {
        socket
            .set_ip_transparent_v6(true)
            .named("setsockopt IPV6_TRANSPARENT")?;
    }
    socket
        .set_ip_transparent_v4(true)
        .named("setsockopt IP_TRANSPARENT")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr, TcpStream};
    use std::time::Duration;

    use super::{TcpListen, Transparent};
    use crate::options::{self, Keepalive};

    #[test]
    fn the_unspecified_ipv6_address_takes_both_families() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let listener = TcpListen::new(any).bind().unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        TcpStream::connect(("::1", port)).unwrap();
    }

    #[test]
    fn two_sockets_share_a_port_only_when_both_ask() {
        let first = TcpListen {
            reuse_port: true,
            ..TcpListen::new(SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        let first = (first.bind().unwrap(), first);
        let address = first.0.local_addr().unwrap();
        let sharing = TcpListen { address, ..first.1 };
        sharing.bind().unwrap();
        let alone = TcpListen {
            reuse_port: false,
            ..sharing
        };
        let error = std::io::Error::from(alone.bind().unwrap_err());
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    }

    #[test]
    fn what_is_set_on_a_listener_its_connections_have() {
        let listener = TcpListen::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = listener.bind().unwrap();
        let seconds = Duration::from_secs;
        let keepalive = Keepalive {
            idle: seconds(33),
            interval: seconds(44),
            probes: 5,
        };
        options::nodelay(&listener).unwrap();
        options::keepalive(&listener, &keepalive).unwrap();
        options::user_timeout(&listener, seconds(66)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let accepted = listener.accept().unwrap().0;
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), keepalive.idle);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), keepalive.probes);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(seconds(66)));
    }

    #[test]
    fn marks_and_transparency_are_set_on_the_socket() {
        let wanted = TcpListen {
            transparent: Transparent::Required,
            mark: Some(1337),
            ..TcpListen::new(SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        let listener = wanted.bind().unwrap();
        let socket = socket2::SockRef::from(&listener);
        assert_eq!(socket.mark().unwrap(), 1337);
        assert!(socket.ip_transparent_v4().unwrap());
        assert!(listener.accept().is_err(), "does not block");
    }
}

//! UDP sockets: listening at a place of their own, and speaking to one peer.

use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Named;
use crate::netns::Netns;
use crate::original_dst::canonical;
use crate::{Error, Result};

/// A UDP socket that anybody may send to.
#[derive(Debug, Clone, Copy)]
pub struct UdpListen {
    /// Where it listens.
    pub address: SocketAddr,
    /// Share the port with other sockets of the same user, such as those of a process that takes over
    /// (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Packet mark of what it sends (`SO_MARK`).
    pub mark: Option<u32>,
}

impl UdpListen {
    /// Makes the socket and binds it. It does not block. It belongs to the namespace the calling thread is in.
    ///
    /// # Errors
    ///
    /// The address is in use or not of this machine, or `CAP_NET_ADMIN` is missing for the mark.
    pub fn bind(&self) -> Result<UdpSocket> {
        let socket = make(self.address)?;
        if self.address.is_ipv6() {
            socket.set_only_v6(true).named("setsockopt IPV6_V6ONLY")?;
        }
        if self.reuse_port {
            socket
                .set_reuse_port(true)
                .named("setsockopt SO_REUSEPORT")?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark).named("setsockopt SO_MARK")?;
        }
        let bound = socket.bind(&self.address.into());
        bound.map_err(|source| Error::Listen {
            address: self.address,
            source,
        })?;
        Ok(socket.into())
    }
}

/// Makes a UDP socket in `netns` that speaks to `to` alone, from a port that the kernel draws: what anybody else sends
/// does not arrive, and a refusal (ICMP) shows as an error. The port is shared with no other socket.
///
/// # Errors
///
/// No route leads there, no port or descriptor is left, or `CAP_NET_ADMIN` is missing for the mark.
pub fn speak(netns: &Netns, to: SocketAddr, mark: Option<u32>) -> Result<UdpSocket> {
    let to = canonical(to);
    let socket = netns.run(|| make(to))??;
    if let Some(mark) = mark {
        socket.set_mark(mark).named("setsockopt SO_MARK")?;
    }
    socket.connect(&to.into()).named("connect (UDP)")?;
    Ok(socket.into())
}

fn make(address: SocketAddr) -> Result<Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP)).named("socket")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;
    use std::net::{SocketAddr, UdpSocket};

    use super::{UdpListen, speak};
    use crate::netns::Netns;

    fn listen(reuse_port: bool) -> UdpListen {
        UdpListen {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            reuse_port,
            mark: Some(7),
        }
    }

    #[test]
    fn speaks_marked_from_a_port_of_its_own_and_hears_its_peer_alone() {
        let here = Netns::current().unwrap();
        let peer = listen(false).bind().unwrap();
        let to = peer.local_addr().unwrap();
        let sockets: Vec<_> = (0..20)
            .map(|_| speak(&here, to, Some(7)).unwrap())
            .collect();
        let ports: BTreeSet<_> = sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap().port())
            .collect();
        assert_eq!(ports.len(), 20);
        let socket = &sockets[0];
        assert_eq!(socket2::SockRef::from(socket).mark().unwrap(), 7);
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = socket.local_addr().unwrap();
        stranger.send_to(b"forged", own).unwrap();
        let mut buffer = [0; 16];
        let heard = socket.recv(&mut buffer).unwrap_err();
        assert_eq!(heard.kind(), ErrorKind::WouldBlock);
        peer.send_to(b"true", own).unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 4);
    }

    #[test]
    fn two_listeners_share_a_port_only_when_both_ask() {
        let first = listen(true).bind().unwrap();
        let address = first.local_addr().unwrap();
        let again = UdpListen {
            address,
            ..listen(true)
        };
        again.bind().unwrap();
        let alone = UdpListen {
            reuse_port: false,
            ..again
        };
        let error = std::io::Error::from(alone.bind().unwrap_err());
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
}

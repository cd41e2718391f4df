//! Where a redirected connection was going.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use socket2::SockRef;

/// The destination that the client dialled, before a redirect rule sent the connection here.
///
/// Asks connection tracking for IPv4 or IPv6 after the socket's own family (an IPv4 connection
/// accepted by an IPv6 socket counts as IPv4), and falls back to the socket's local address: that
/// is the destination when nothing was rewritten (transparent proxying, or a direct connection).
/// IPv4-mapped IPv6 addresses are returned as IPv4.
///
/// # Errors
///
/// The socket is not connected any more.
pub fn original_destination(connection: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(connection);
    let local = socket
        .local_addr()?
        .as_socket()
        .map(canonical)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let recorded = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    Ok(recorded
        .ok()
        .and_then(|address| address.as_socket())
        .map_or(local, canonical))
}

/// The same address with an IPv4-mapped IPv6 address written as IPv4, and without flow label.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            IpAddr::V6(ip) => SocketAddr::new(IpAddr::V6(ip), v6.port()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::{canonical, original_destination};

    #[test]
    fn writes_mapped_addresses_as_ipv4() {
        let cases = [
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("[::1]:0", "[::1]:0"),
        ];
        for (given, wanted) in cases {
            let given: SocketAddr = given.parse().unwrap();
            assert_eq!(canonical(given), wanted.parse().unwrap(), "{given}");
        }
    }

    #[test]
    fn is_the_local_address_when_nothing_was_redirected() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(bind).unwrap();
            let address = listener.local_addr().unwrap();
            let _client = TcpStream::connect(address).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(original_destination(&accepted).unwrap(), address);
        }
    }
}

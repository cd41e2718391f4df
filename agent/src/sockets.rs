//! Whether connections that were redirected are still open in a pod's namespace: the kernel is asked for its sockets there
//! (sock_diag(7)), since the proxy's are among them.
//!
//! # Theory of operation
//! A redirected connection that still needs our rules has a socket of the proxy's in the pod: accepted on the port of outbound or of
//! inbound connections, or dialled to the application under the proxy's mark, which is how streams of tunnels show. A tunnel itself needs
//! no rules and lives on without streams, so sockets of its port do not count.

use std::io;

use ambit_net::netns::Netns;

use crate::netlink::{Family, Message, Netlink};
use crate::rules::{HBONE_PORT, INBOUND_PORT, MARK_MASK, OUTBOUND_PORT, PROXY_MARK};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `AF_INET` and `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];
/// `TCP_ESTABLISHED`, `TCP_SYN_SENT`, `TCP_SYN_RECV`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`,
/// `TCP_CLOSING`: whatever still expects segments.
const OPEN: [u32; 8] = [1, 2, 3, 4, 5, 8, 9, 11];
/// `INET_DIAG_MARK`. Told to whoever has `CAP_NET_ADMIN`.
const MARK: u16 = 15;
/// The length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// The length of `struct inet_diag_msg`.
const ANSWER: usize = 72;

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    local: u16,
    remote: u16,
    mark: u32,
}

/// How many sockets of redirected connections are open in a namespace.
///
/// # Errors
/// The namespace cannot be entered, or the kernel does not tell.
pub fn redirected(netns: &Netns) -> io::Result<usize> {
    let mut netlink = netns.run(|| Netlink::open(Family::Sockets))??;
    let mut found = 0;
    for family in FAMILIES {
        let answers = netlink.dump(Message {
            kind: BY_FAMILY,
            flags: 0,
            payload: request(family),
        })?;
        let sockets = answers.iter().filter_map(|answer| parse(&answer.payload));
        found += sockets.filter(|socket| socket.is_redirected()).count();
    }
    Ok(found)
}

impl Socket {
    fn is_redirected(self) -> bool {
        if [self.local, self.remote].contains(&HBONE_PORT) {
            return false;
        }
        [OUTBOUND_PORT, INBOUND_PORT].contains(&self.local) || self.mark & MARK_MASK == PROXY_MARK
    }
}

/// All open sockets of a family: no extension, and no address in particular.
fn request(family: u8) -> Vec<u8> {
    let states = OPEN.iter().fold(0_u32, |states, state| states | 1 << state);
    let mut bytes = vec![family, TCP, 0, 0];
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.resize(REQUEST, 0);
    bytes
}

/// Family, state, timer and retransmissions, then both ports in network order, and attributes behind the fixed part.
fn parse(bytes: &[u8]) -> Option<Socket> {
    let (fixed, mut rest) = bytes.split_first_chunk::<ANSWER>()?;
    let [_, _, _, _, l0, l1, r0, r1, ..] = *fixed;
    let mut mark = 0;
    while let Some((&[a, b, c, d], _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([c, d]) == MARK {
            mark = u32::from_ne_bytes(*value.first_chunk()?);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Socket {
        local: u16::from_be_bytes([l0, l1]),
        remote: u16::from_be_bytes([r0, r1]),
        mark,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::{ANSWER, REQUEST, Socket, parse, request};

    fn socket(local: u16, remote: u16, mark: u32) -> Socket {
        Socket {
            local,
            remote,
            mark,
        }
    }

    #[test]
    fn only_the_proxys_own_sockets_count_and_no_tunnels() {
        let table = [
            (socket(15001, 40_000, 0), true),
            (socket(15006, 40_000, 0x539), true),
            (socket(41_000, 8080, 0x539), true),
            (socket(41_000, 8080, 0xabc_0539), true),
            (socket(41_000, 8080, 0), false),
            (socket(8080, 15001, 0), false),
            (socket(41_000, 15008, 0x539), false),
            (socket(15008, 41_000, 0x539), false),
        ];
        for (socket, expected) in table {
            assert_eq!(socket.is_redirected(), expected, "{socket:?}");
        }
    }

    #[test]
    fn an_answer_is_read_with_its_mark_behind_another_attribute() {
        let mut bytes = vec![2, 1, 0, 0, 0x1f, 0x90, 0x9c, 0x40];
        bytes.resize(ANSWER, 0);
        assert_eq!(parse(&bytes), Some(socket(8080, 40_000, 0)));
        bytes.extend_from_slice(&[5, 0, 8, 0, 7, 0, 0, 0]);
        bytes.extend_from_slice(&[8, 0, 15, 0]);
        bytes.extend_from_slice(&0x539_u32.to_ne_bytes());
        assert_eq!(parse(&bytes), Some(socket(8080, 40_000, 0x539)));
        assert_eq!(parse(&bytes[..ANSWER - 1]), None);
        assert_eq!(request(2).len(), REQUEST);
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_keeps_us(bytes: Vec<u8>) {
            parse(&bytes);
        }
    }
}

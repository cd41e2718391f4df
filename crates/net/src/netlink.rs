//! Netlink: ask the kernel about links, addresses, routes, rules and packet filters.
//!
//! One [`Netlink`] is one socket in the namespace of the thread that opened it: open it inside
//! [`Netns::run`](crate::netns::Netns::run). Calls block for at most [`ANSWER_TIMEOUT`]; they
//! belong to control paths.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use socket2::{SockRef, Socket as AnySocket};
use tokio::io::unix::AsyncFd;

use crate::error::Named;
use crate::{Error, Result};

/// The kernel answers in microseconds; this only bounds a wait that would never end.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Room for one datagram of answers: the kernel never sends more than 32 KiB in one.
const DATAGRAM: usize = 64 * 1024;

/// Which part of the kernel to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, neighbours, routes and rules (`NETLINK_ROUTE`).
    Route,
    /// Packet filter and connection tracking (`NETLINK_NETFILTER`).
    Netfilter,
    /// Which sockets there are (`NETLINK_SOCK_DIAG`).
    Sockets,
}

impl Family {
    fn protocol(self) -> isize {
        match self {
            Self::Route => netlink_sys::protocols::NETLINK_ROUTE,
            Self::Netfilter => netlink_sys::protocols::NETLINK_NETFILTER,
            Self::Sockets => netlink_sys::protocols::NETLINK_SOCK_DIAG,
        }
    }
}

/// One netlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// No descriptor is left, or the kernel has no such family.
    pub fn open(family: Family) -> Result<Self> {
        let mut socket = Socket::new(family.protocol()).named("socket AF_NETLINK")?;
        socket.bind_auto().named("bind AF_NETLINK")?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .named("connect AF_NETLINK")?;
        SockRef::from(&socket)
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .named("setsockopt SO_RCVTIMEO")?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Joins a multicast group, whose notices [`receive`](Self::receive) then returns.
    ///
    /// # Errors
    ///
    /// The family has no such group.
    pub fn subscribe(&mut self, group: u32) -> Result<()> {
        self.socket
            .add_membership(group)
            .named("setsockopt NETLINK_ADD_MEMBERSHIP")
    }

    /// Sends one request and returns its answers.
    ///
    /// `flags` are added to `NLM_F_REQUEST`. A request with `NLM_F_DUMP` reads to the end of
    /// the dump; any other asks for, and waits for, an acknowledgement.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`] with the kernel's answer, such as `EEXIST` or `ENOENT`.
    pub fn request<T>(&mut self, payload: T, flags: u16) -> Result<Vec<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags | if dump { 0 } else { NLM_F_ACK };
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.send(&bytes)?;
        let mut answers = Vec::new();
        loop {
            let datagram = self.receive()?;
            if self.collect(&datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes the messages of one datagram; true at the end of the answer.
    fn collect<T>(&self, datagram: &[u8], answers: &mut Vec<T>) -> Result<bool>
    where
        T: NetlinkDeserializable,
    {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkMessage::<T>::deserialize(rest).map_err(undecodable)?;
            let (header, payload) = message.into_parts();
            // Messages start at multiples of four; the last may end short of one.
            let length = usize::try_from(header.length).unwrap_or(usize::MAX).max(4);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if header.sequence_number != self.sequence {
                continue; // a notice, or the tail of an abandoned answer
            }
            match payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => {
                    return Err(Error::Netlink {
                        what: "request refused",
                        source: error.to_io(),
                    });
                }
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Sends bytes that already are netlink messages, for families without a typed encoder (a
    /// packet filter transaction is one such datagram).
    ///
    /// # Errors
    ///
    /// The kernel does not take the datagram, for example because it is too large.
    pub fn send(&mut self, messages: &[u8]) -> Result<()> {
        let sent = self.socket.send(messages, 0).named("send AF_NETLINK")?;
        if sent == messages.len() {
            return Ok(());
        }
        Err(Error::Netlink {
            what: "request cut short",
            source: io::Error::from(io::ErrorKind::WriteZero),
        })
    }

    /// The next datagram from the kernel: one or more whole messages.
    ///
    /// # Errors
    ///
    /// Nothing came within [`ANSWER_TIMEOUT`] (`WouldBlock`), or notices were lost because they
    /// were not read in time (`ENOBUFS`).
    pub fn receive(&mut self) -> Result<Vec<u8>> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        self.socket
            .recv(&mut datagram, 0)
            .map_err(|source| Error::Netlink {
                what: "no answer",
                source,
            })?;
        Ok(datagram)
    }

    /// Changes how long [`receive`](Self::receive) waits; `None` waits for ever, which only a
    /// thread that waits for notices should do.
    ///
    /// # Errors
    ///
    /// The duration is zero.
    pub fn set_wait(&self, wait: Option<Duration>) -> Result<()> {
        SockRef::from(&self.socket)
            .set_read_timeout(wait)
            .named("setsockopt SO_RCVTIMEO")
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The notices of the groups that a [`Netlink`] joined, for tasks that wait for them.
#[derive(Debug)]
pub struct Notices(AsyncFd<AnySocket>);

impl Notices {
    /// Turns a socket that joined groups into one that is waited on. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new(netlink: &Netlink) -> Result<Self> {
        let descriptor = netlink.as_fd().try_clone_to_owned().named("dup")?;
        let socket = AnySocket::from(descriptor);
        socket.set_nonblocking(true).named("fcntl O_NONBLOCK")?;
        Ok(Self(crate::seqpacket::registered(socket)?))
    }

    /// The next datagram of notices. Cancel safe.
    ///
    /// # Errors
    ///
    /// Notices were lost because they were not read in time (`ENOBUFS`).
    pub async fn next(&self) -> io::Result<Vec<u8>> {
        let mut datagram = vec![0; DATAGRAM];
        let length = self
            .0
            .async_io(tokio::io::Interest::READABLE, |mut socket| {
                socket.read(&mut datagram)
            })
            .await?;
        datagram.truncate(length);
        Ok(datagram)
    }
}

fn undecodable(error: netlink_packet_core::DecodeError) -> Error {
    Error::Netlink {
        what: "undecodable answer",
        source: io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_DUMP;
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::{Family, Netlink};
    use crate::Error;

    #[test]
    fn lists_the_loopback_link() {
        let mut netlink = Netlink::open(Family::Route).unwrap();
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = netlink.request(question, NLM_F_DUMP).unwrap();
        assert!(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => {
                link.attributes
                    .contains(&LinkAttribute::IfName("lo".to_owned()))
            }
            _ => false,
        }));
    }

    #[test]
    fn a_refusal_carries_the_kernels_reason() {
        let mut netlink = Netlink::open(Family::Route).unwrap();
        let mut link = LinkMessage::default();
        link.attributes
            .push(LinkAttribute::IfName("no-such-link".to_owned()));
        let refused = netlink
            .request(RouteNetlinkMessage::GetLink(link), 0)
            .unwrap_err();
        let Error::Netlink { source, .. } = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(source.raw_os_error(), Some(libc::ENODEV));
    }
}

//! One request and its answers over a netlink socket.
//!
//! [`ambit_net::netlink`] carries the datagrams; this splits and matches them, for the messages that have no typed
//! encoder and for several in one datagram. A socket belongs to the network namespace in which it was made: open it inside
//! [`ambit_net::netns::Netns::run`], use it anywhere.

use std::io;

pub(crate) use ambit_net::netlink::Family;
use ambit_net::netlink::Netlink as Socket;

/// `NLMSG_ERROR`, which is also the acknowledgement when its code is zero.
const ERROR: u16 = 2;
/// `NLMSG_DONE`, the end of a dump.
const DONE: u16 = 3;
/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(crate) const ACKNOWLEDGE: u16 = 0x4;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A message for the kernel, or from it: type and payload without the netlink header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: Vec<u8>,
}

/// A netlink socket of one namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for `family` in the namespace of the calling thread.
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open(family)?,
            sequence: 0,
        })
    }

    /// Opens a socket that hears what the kernel tells the given groups.
    pub(crate) fn listen(family: Family, groups: &[u32]) -> io::Result<Socket> {
        let mut socket = Socket::open(family)?;
        for group in groups {
            socket.subscribe(*group)?;
        }
        Ok(socket)
    }

    /// Sends the messages in one datagram and takes the acknowledgement of each that asks for one.
    ///
    /// # Errors
    /// The first error that the kernel answers.
    pub(crate) fn transact(&mut self, messages: &[Message]) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        self.send(messages)?;
        let mut waiting = messages
            .iter()
            .filter(|m| m.flags & ACKNOWLEDGE != 0)
            .count();
        while waiting > 0 {
            for (message, sequence) in self.receive()? {
                if message.kind != ERROR || sequence.wrapping_sub(first) >= u32::MAX / 2 {
                    continue; // the tail of an abandoned answer
                }
                match error_code(&message.payload) {
                    0 => waiting = waiting.saturating_sub(1),
                    code => return Err(io::Error::from_raw_os_error(-code)),
                }
            }
        }
        Ok(())
    }

    /// Sends one dump request and collects what the kernel answers.
    ///
    /// # Errors
    /// The error that the kernel answers; `Interrupted` when the state changed during the dump.
    pub(crate) fn dump(&mut self, request: Message) -> io::Result<Vec<Message>> {
        /// `NLM_F_DUMP_INTR`: what was dumped is not of one moment.
        const INCONSISTENT: u16 = 0x10;
        self.send(&[Message {
            flags: request.flags | REQUEST | DUMP,
            ..request
        }])?;
        let (mut found, mut consistent) = (Vec::new(), true);
        loop {
            for (message, sequence) in self.receive()? {
                if sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & INCONSISTENT == 0;
                match message.kind {
                    DONE if consistent => return Ok(found),
                    DONE => return Err(io::ErrorKind::Interrupted.into()),
                    ERROR => refused(&message)?,
                    _ => found.push(message),
                }
            }
        }
    }

    /// Sends one request and returns the message that answers it.
    ///
    /// # Errors
    /// The error that the kernel answers.
    pub(crate) fn query(&mut self, request: Message) -> io::Result<Message> {
        self.send(&[Message {
            flags: request.flags | REQUEST,
            ..request
        }])?;
        loop {
            for (message, sequence) in self.receive()? {
                match message.kind {
                    _ if sequence != self.sequence => {}
                    ERROR => refused(&message)?,
                    _ => return Ok(message),
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<Vec<(Message, u32)>> {
        Ok(split(&self.socket.receive()?))
    }

    fn send(&mut self, messages: &[Message]) -> io::Result<()> {
        let mut datagram = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let length = u32::try_from(HEADER + message.payload.len())
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            datagram.extend_from_slice(&length.to_ne_bytes());
            datagram.extend_from_slice(&message.kind.to_ne_bytes());
            datagram.extend_from_slice(&message.flags.to_ne_bytes());
            datagram.extend_from_slice(&self.sequence.to_ne_bytes());
            datagram.extend_from_slice(&0_u32.to_ne_bytes());
            datagram.extend_from_slice(&message.payload);
            datagram.resize(datagram.len().next_multiple_of(4), 0);
        }
        Ok(self.socket.send(&datagram)?)
    }
}

fn refused(message: &Message) -> io::Result<()> {
    match error_code(&message.payload) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// The code at the start of an error message; zero or a negative errno.
fn error_code(payload: &[u8]) -> i32 {
    payload
        .first_chunk::<4>()
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes))
}

/// The messages of one datagram, each with its sequence number.
fn split(mut bytes: &[u8]) -> Vec<(Message, u32)> {
    let mut messages = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(payload) = bytes.get(HEADER..length) else {
            break;
        };
        let message = Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            payload: payload.to_vec(),
        };
        messages.push((message, u32::from_ne_bytes([s0, s1, s2, s3])));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::split;
    use proptest::prelude::proptest;

    #[test]
    fn a_datagram_is_split_at_the_lengths_it_states() {
        let mut bytes = Vec::new();
        for (kind, payload) in [(3_u16, &b"abcde"[..]), (4, b"")] {
            bytes.extend_from_slice(&u32::try_from(16 + payload.len()).unwrap().to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(payload);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let messages = split(&bytes);
        assert_eq!(messages.len(), 2);
        assert_eq!(
            (messages[0].0.kind, messages[0].0.payload.as_slice()),
            (3, &b"abcde"[..])
        );
        assert_eq!(
            (messages[1].0.kind, messages[1].0.payload.as_slice()),
            (4, &b""[..])
        );
    }

    proptest! {
        #[test]
        fn any_datagram_is_split_without_a_panic(bytes: Vec<u8>) {
            let total: usize = split(&bytes).iter().map(|(message, _)| message.payload.len()).sum();
            assert!(total <= bytes.len());
        }
    }
}

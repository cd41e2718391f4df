//! What can go wrong with a system call, by who is to blame.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// A failed call, by blame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Peer: nobody answered a connection attempt within this time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Peer or the network between: the connection attempt was answered with a refusal, or no
    /// route leads there.
    #[error("the connection was not made")]
    Connect(#[source] io::Error),
    /// Peer: a message broke the rules of its socket (too long, too many descriptors).
    #[error("the peer's message is invalid: {0}")]
    Message(&'static str),
    /// Environment: the kernel refused a call, most often for a missing capability, an address
    /// in use, or no descriptors left.
    #[error("{call} failed")]
    System {
        /// The call, as its manual page names it, with the option or path it was about.
        call: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Environment: an address that a listener was to have is in use, or is not of this machine.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Environment: the kernel answered a netlink request with an error or with bytes that do
    /// not decode.
    #[error("netlink: {what}")]
    Netlink {
        /// Which step of the exchange.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Us: the addresses given for one socket are of different families.
    #[error("source and destination are of different address families")]
    FamilyMismatch,
}

impl Error {
    /// The operating system's error under this one, if there is one.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Connect(source)
            | Self::System { source, .. }
            | Self::Listen { source, .. }
            | Self::Netlink { source, .. } => Some(source),
            Self::Timeout(_) | Self::Message(_) | Self::FamilyMismatch => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Timeout(_) => io::ErrorKind::TimedOut,
            Error::Message(_) => io::ErrorKind::InvalidData,
            Error::FamilyMismatch => io::ErrorKind::InvalidInput,
            Error::Connect(source)
            | Error::System { source, .. }
            | Error::Listen { source, .. }
            | Error::Netlink { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Names the call that failed.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> crate::Result<T>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, call: &'static str) -> crate::Result<T> {
        self.map_err(|source| Error::System { call, source })
    }
}

impl<T> Named<T> for nix::Result<T> {
    fn named(self, call: &'static str) -> crate::Result<T> {
        self.map_err(|errno| Error::System {
            call,
            source: errno.into(),
        })
    }
}

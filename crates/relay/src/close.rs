//! How a relayed connection ended.

use std::fmt;
use std::io;

/// One of the two connections of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that was accepted: its peer asked for the connection.
    Client,
    /// The one that was dialled.
    Server,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// What ended a connection.
#[derive(Debug)]
pub enum How {
    /// Both sides ended their sending and all bytes were passed on.
    Clean,
    /// This side reset its connection, or stopped reading before the other stopped sending.
    ResetBy(Side),
    /// This side's connection failed: its peer is silent (keep-alive), unreachable, or broke the
    /// rules of its protocol.
    Failed(Side, io::Error),
}

impl How {
    pub(crate) fn from_error(side: Side, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::ResetBy(side),
            _ => Self::Failed(side, error),
        }
    }
}

/// A finished relay.
#[derive(Debug)]
pub struct Closed {
    /// Bytes written on from the client to the server.
    pub sent: u64,
    /// Bytes written on from the server to the client.
    pub received: u64,
    /// What ended it.
    pub how: How,
}

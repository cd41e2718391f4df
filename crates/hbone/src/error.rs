//! Errors of a connection and of one request, by who is to blame.

use std::io;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::engine::{Code, Failure};

/// Why a connection ended, or could not begin.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TunnelError {
    /// The connection below broke, or ended without a good-bye.
    #[error("connection broke: {kind}: {detail}")]
    Io {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// The failure's text.
        detail: String,
    },
    /// The peer broke the protocol or used up an allowance, and was told so.
    #[error("peer misbehaved: {0}")]
    Misbehaved(String),
    /// The peer ended the connection with an error.
    #[error("peer ended the connection: {0}")]
    EndedByPeer(String),
    /// The peer did not start HTTP/2 in time.
    #[error("peer did not start HTTP/2 within {0:?}")]
    Timeout(Duration),
    /// No sign of life.
    #[error("peer is silent")]
    Silent,
    /// We ended it on purpose.
    #[error("connection was closed: {0}")]
    Closed(&'static str),
}

impl TunnelError {
    /// Whether the peer broke a rule, of HTTP/2 or of the TLS below.
    #[must_use]
    pub fn is_by_peer(&self) -> bool {
        match self {
            Self::Misbehaved(_) => true,
            Self::Io { kind, .. } => *kind == io::ErrorKind::InvalidData,
            _ => false,
        }
    }

    /// The connection below ended where it should not.
    pub(crate) fn cut() -> Self {
        Self::from_io(&io::ErrorKind::UnexpectedEof.into())
    }

    pub(crate) fn from_io(error: &io::Error) -> Self {
        Self::Io {
            kind: error.kind(),
            detail: error.to_string(),
        }
    }
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The peer answered with a status other than success.
    #[error("refused with status {status}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its headers.
        headers: HeaderMap,
    },
    /// The peer said that it did not act on the request: another try is safe.
    #[error("not accepted by the peer")]
    NotAccepted,
    /// The peer reset the stream instead of answering.
    #[error("reset by the peer: {0}")]
    Reset(String),
    /// The peer did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The request cannot be sent.
    #[error("request cannot be sent: {0}")]
    Invalid(&'static str),
    /// The tunnel itself failed.
    #[error("tunnel failed")]
    Tunnel(#[source] TunnelError),
}

impl OpenError {
    pub(crate) fn from_failure(failure: Failure) -> Self {
        match failure {
            Failure::ByPeer(Code::REFUSED_STREAM) | Failure::NotAccepted => Self::NotAccepted,
            Failure::ByPeer(code) | Failure::ByUs(code) => Self::Reset(code.to_string()),
            // The driver knows why, and says so.
            Failure::Gone | Failure::NoRoom => Self::Tunnel(TunnelError::Closed("gone")),
        }
    }

    /// Whether the peer certainly did not act on the request, so that it may be sent again elsewhere.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self, Self::NotAccepted)
    }
}

/// A stream's failure as its reader or writer sees it. A reset stays recognisable.
pub(crate) fn stream_error(failure: Failure) -> io::Error {
    match failure {
        Failure::ByPeer(code) => {
            let text = format!("reset by the peer: {code}");
            io::Error::new(io::ErrorKind::ConnectionReset, text)
        }
        Failure::ByUs(code) => {
            let text = format!("was reset: {code}");
            io::Error::new(io::ErrorKind::ConnectionReset, text)
        }
        Failure::NoRoom => io::Error::new(
            io::ErrorKind::OutOfMemory,
            "reader stands still, and there is no room for more of what it does not read",
        ),
        // Not the kind of the failure below: a broken pipe there would read as the peer's wish for no
        // more bytes on this one stream.
        Failure::NotAccepted | Failure::Gone => {
            io::Error::new(io::ErrorKind::ConnectionAborted, "tunnel is closed")
        }
    }
}

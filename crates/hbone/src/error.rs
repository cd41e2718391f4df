//! Errors of a connection and of one request, by who is to blame.

use std::io;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

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
    pub(crate) fn from_engine(error: h2::Error) -> Self {
        let text = error.to_string();
        if error.is_go_away() && error.is_remote() {
            return Self::EndedByPeer(text);
        }
        match error.into_io() {
            Some(io) => Self::from_io(&io),
            None => Self::Misbehaved(text),
        }
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
    pub(crate) fn from_engine(error: h2::Error) -> Self {
        if error.is_reset() {
            return match error.reason() {
                Some(h2::Reason::REFUSED_STREAM) => Self::NotAccepted,
                Some(reason) => Self::Reset(reason.description().to_owned()),
                None => Self::Reset("unknown".to_owned()),
            };
        }
        // A GOAWAY names the last stream that was acted on, and the engine fails only later ones.
        if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) {
            return Self::NotAccepted;
        }
        Self::Tunnel(TunnelError::from_engine(error))
    }

    /// Whether the peer certainly did not act on the request, so that it may be sent again elsewhere.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self, Self::NotAccepted)
    }
}

/// A stream's failure as its reader or writer sees it. A reset stays recognisable.
pub(crate) fn stream_error(error: &h2::Error) -> io::Error {
    let text = error.to_string();
    if error.is_reset() {
        return io::Error::new(io::ErrorKind::ConnectionReset, text);
    }
    // Not the kind of the failure below: a broken pipe there would read as the peer's wish for no
    // more bytes on this one stream.
    io::Error::new(io::ErrorKind::ConnectionAborted, text)
}

/// A server that sent all it had and wants no more says so with a reset that is no error
/// (RFC 9113 8.1).
pub(crate) fn wants_no_more(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// The connection below a stream is gone.
pub(crate) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "tunnel is closed")
}

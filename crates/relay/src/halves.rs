//! The two halves of a connection, as traits on [`Bytes`].

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;

/// Where bytes come from.
///
/// # Errors
///
/// An error is the end: the connection is broken and is not polled again. A reset by the peer is
/// [`io::ErrorKind::ConnectionReset`].
pub trait Source {
    /// The next bytes, never empty; `None` once the peer ended its sending (and on every call
    /// after).
    ///
    /// The contract for a caller: do not ask again while holding unwritten bytes, because what is
    /// read has left the flow control of the connection.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>>;
}

/// Where bytes go.
///
/// A sink that is dropped before [`poll_close`](Self::poll_close) was ready has not ended its
/// sending: the peer must see a reset.
///
/// # Errors
///
/// [`io::ErrorKind::BrokenPipe`] means that the peer takes no more bytes but that all it sent is
/// there to be read from the [`Source`]. Any other error breaks both directions: the source yields
/// what came before, and then fails.
pub trait Sink {
    /// Takes bytes from the front of `data`, which is not empty: at least one when ready.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>>;

    /// Sends what the sink still holds. Called when the source has nothing more at the moment.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the sending, after everything written. The other direction stays open.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when the connection broke. Asked only while nothing is read from the connection's
    /// source, which would tell otherwise.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error>;

    /// Ends both directions at once, as a reset. What was not sent is dropped, unless the sending
    /// was ended in order: then the peer gets all of it.
    fn reset(&mut self);
}

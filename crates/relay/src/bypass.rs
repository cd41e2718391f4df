//! A way of bytes from a source to a sink that does not lead through this process's memory.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;

/// What came of filling a bypass.
pub(crate) enum Filled {
    /// Bytes are in it.
    Some,
    /// The source has ended.
    End,
    /// Not by this way, at the moment: nothing was taken, and the source is to be read.
    Declined,
}

/// What came of draining a bypass.
pub(crate) enum Drained {
    /// Bytes that the sink took.
    Sent(usize),
    /// The sink takes nothing this way: everything that was held, to be written.
    Returned(Bytes),
}

/// Moves bytes of one direction around this process.
///
/// Errors are the source's or the sink's, in the meaning of [`Source`](crate::Source) and [`Sink`](crate::Sink). Dropped, it
/// forgets what it holds.
pub(crate) trait Bypass<R, W> {
    /// Whether bytes were taken and not yet sent.
    fn holds(&self) -> bool;

    /// Hears that the source was read and brought this many bytes.
    fn was_read(&mut self, bytes: usize);

    /// Takes bytes from the source. Asked only while nothing is held.
    fn poll_fill(&mut self, cx: &mut Context<'_>, source: &mut R) -> Poll<io::Result<Filled>>;

    /// Sends what is held.
    fn poll_drain(&mut self, cx: &mut Context<'_>, sink: &mut W) -> Poll<io::Result<Drained>>;

    /// Forgets what is held.
    fn abandon(&mut self);
}

/// No bypass: every byte is read and written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Never;

impl<R, W> Bypass<R, W> for Never {
    fn holds(&self) -> bool {
        false
    }

    fn was_read(&mut self, _bytes: usize) {}

    fn poll_fill(&mut self, _cx: &mut Context<'_>, _source: &mut R) -> Poll<io::Result<Filled>> {
        Poll::Ready(Ok(Filled::Declined))
    }

    fn poll_drain(&mut self, _cx: &mut Context<'_>, _sink: &mut W) -> Poll<io::Result<Drained>> {
        Poll::Ready(Ok(Drained::Sent(0)))
    }

    fn abandon(&mut self) {}
}

//! One stream of a tunnel.

mod io_adapter;

use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ambit_relay::{Sink, Source};
use bytes::{Bytes, BytesMut};

pub use io_adapter::StreamIo;

use crate::halves::{Reader, Writer};

/// Writes below this are joined until a flush: each would be a frame of its own, and peers charge
/// small frames to the whole connection.
const SMALL_WRITE: usize = 1024;

/// Joined writes leave when they reach this size.
const JOINED_WRITES: usize = 16 * 1024;

/// Both halves of an open stream.
///
/// Dropping it, or both halves, before both directions have ended resets the stream.
#[derive(Debug)]
pub struct Stream {
    source: StreamSource,
    sink: StreamSink,
}

impl Stream {
    /// Takes over an accepted or answered stream, and keeps `lease` for as long as either half lasts.
    pub(crate) fn new(reader: Reader, writer: Writer, lease: Option<Rc<dyn Lease>>) -> Self {
        Self {
            source: StreamSource {
                reader,
                _lease: lease.clone(),
            },
            sink: StreamSink {
                writer,
                joined: BytesMut::new(),
                ended: false,
                _lease: lease,
            },
        }
    }

    /// The two directions, to be moved independently.
    #[must_use]
    pub fn split(self) -> (StreamSource, StreamSink) {
        (self.source, self.sink)
    }
}

/// Something that lasts as long as a stream does, such as its place in a tunnel.
pub(crate) trait Lease {}

/// The receiving half.
pub struct StreamSource {
    reader: Reader,
    _lease: Option<Rc<dyn Lease>>,
}

impl Source for StreamSource {
    /// Asking for a piece gives the peer credit for the one before.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.reader.poll_take(cx)
    }
}

impl fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamSource(..)")
    }
}

/// The sending half.
pub struct StreamSink {
    writer: Writer,
    /// Small writes, not framed yet.
    joined: BytesMut,
    ended: bool,
    _lease: Option<Rc<dyn Lease>>,
}

impl Sink for StreamSink {
    /// Small writes wait for [`Sink::poll_flush`], so that they leave together.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if data.len() < SMALL_WRITE && self.joined.len() + data.len() <= JOINED_WRITES {
            self.joined.extend_from_slice(data);
            data.clear();
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send_joined(cx))?;
        let room = ready!(self.writer.poll_room(cx, data.len()))?;
        self.writer.send(data.split_to(room));
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send_joined(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send_joined(cx))?;
        self.writer.close()?;
        self.ended = true;
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.writer.poll_broken(cx)
    }

    fn reset(&mut self) {
        if self.ended {
            return; // when both halves are dropped the stream is reset, after what is queued
        }
        self.ended = true;
        self.joined = BytesMut::new();
        self.writer.reset();
    }
}

impl StreamSink {
    fn poll_send_joined(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.joined.is_empty() {
            let room = ready!(self.writer.poll_room(cx, self.joined.len()))?;
            let piece = if room == self.joined.len() {
                std::mem::take(&mut self.joined) // who idles holds nothing
            } else {
                self.joined.split_to(room)
            };
            self.writer.send(piece.freeze());
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for StreamSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSink")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

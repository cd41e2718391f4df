//! One stream of a tunnel.

mod io_adapter;

use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ambit_relay::{Sink, Source};
use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};

pub use io_adapter::StreamIo;

use crate::error::{gone, stream_error, wants_no_more};
use crate::inbox::{Inbox, Inboxes};

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
    /// Takes over an accepted or answered stream. `None`, and the stream is reset, if this
    /// connection already has too many.
    pub(crate) fn new(
        send: SendStream<Bytes>,
        receive: RecvStream,
        inboxes: &Rc<Inboxes>,
        piece: usize,
        lease: Rc<dyn Lease>,
    ) -> Option<Self> {
        let mut send = send;
        let Some(inbox) = inboxes.add(receive) else {
            send.send_reset(Reason::REFUSED_STREAM);
            return None;
        };
        let source = StreamSource {
            inbox,
            inboxes: Rc::clone(inboxes),
            _lease: Rc::clone(&lease),
        };
        let sink = StreamSink {
            send,
            joined: BytesMut::new(),
            piece,
            ended: false,
            _lease: lease,
        };
        Some(Self { source, sink })
    }

    /// The two directions, to be moved independently.
    #[must_use]
    pub fn split(self) -> (StreamSource, StreamSink) {
        (self.source, self.sink)
    }
}

/// Something that lasts as long as a stream does, such as its place in a tunnel.
pub(crate) trait Lease {}

impl Lease for () {}

/// The receiving half.
pub struct StreamSource {
    inbox: Rc<Inbox>,
    inboxes: Rc<Inboxes>,
    _lease: Rc<dyn Lease>,
}

impl Source for StreamSource {
    /// Asking for a piece gives the peer credit for the one before.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.inbox.poll_take(cx, &self.inboxes)
    }
}

impl Drop for StreamSource {
    fn drop(&mut self) {
        self.inboxes.remove(&self.inbox);
    }
}

impl fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamSource(..)")
    }
}

/// The sending half.
pub struct StreamSink {
    send: SendStream<Bytes>,
    /// Small writes, not framed yet.
    joined: BytesMut,
    /// Most bytes of one frame.
    piece: usize,
    ended: bool,
    _lease: Rc<dyn Lease>,
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
        let room = ready!(self.poll_room(cx, data.len()))?;
        let piece = data.split_to(room.min(data.len()));
        Poll::Ready(
            self.send
                .send_data(piece, false)
                .map_err(|error| sink_error(&error)),
        )
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send_joined(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send_joined(cx))?;
        // The one empty frame that is ever sent: it carries END_STREAM and takes no credit.
        self.send
            .send_data(Bytes::new(), true)
            .map_err(|error| sink_error(&error))?;
        self.ended = true;
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(io::Error::new(
                reset_kind(reason),
                reason.description().to_owned(),
            )),
            Err(error) => Poll::Ready(sink_error(&error)),
        }
    }

    fn reset(&mut self) {
        if self.ended {
            return; // the engine resets when both halves are dropped, after what is queued
        }
        self.ended = true;
        self.joined.clear();
        self.send.send_reset(Reason::CANCEL);
    }
}

impl StreamSink {
    fn poll_send_joined(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.joined.has_remaining() {
            let room = ready!(self.poll_room(cx, self.joined.len()))?;
            let piece = self.joined.split_to(room.min(self.joined.len())).freeze();
            self.send
                .send_data(piece, false)
                .map_err(|error| sink_error(&error))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Why the engine takes nothing more for this stream.
    fn why_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.poll_broken(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => gone(),
        }
    }

    /// How much may be sent now, as one frame: the peer's credit and our own buffer allow it.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let wanted = wanted.min(self.piece);
        self.send.reserve_capacity(wanted);
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(sink_error(&error))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
    }
}

/// As [`stream_error`], but the peer's wish for no more bytes is no reset of what it sent.
fn sink_error(error: &h2::Error) -> io::Error {
    if wants_no_more(error) {
        return io::Error::new(io::ErrorKind::BrokenPipe, error.to_string());
    }
    stream_error(error)
}

fn reset_kind(reason: Reason) -> io::ErrorKind {
    if reason == Reason::NO_ERROR {
        io::ErrorKind::BrokenPipe
    } else {
        io::ErrorKind::ConnectionReset
    }
}

impl fmt::Debug for StreamSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSink")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

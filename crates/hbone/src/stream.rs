//! One stream of a tunnel.

mod io_adapter;

use std::fmt;
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use ambit_relay::{Sink, Source};
use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};

pub use io_adapter::StreamIo;

use crate::backlog::{Left, Piece};
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
        mut outgoing: Outgoing,
        receive: RecvStream,
        inboxes: &Rc<Inboxes>,
        lease: Rc<dyn Lease>,
    ) -> Option<Self> {
        let Some(inbox) = inboxes.add(receive) else {
            outgoing.send.send_reset(Reason::REFUSED_STREAM);
            return None;
        };
        let arrived = Rc::downgrade(&inbox);
        let source = StreamSource {
            inbox,
            inboxes: Rc::clone(inboxes),
            _lease: Rc::clone(&lease),
        };
        let sink = StreamSink {
            outgoing,
            arrived,
            joined: BytesMut::new(),
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

/// A stream's way into the engine.
pub(crate) struct Outgoing {
    pub(crate) send: SendStream<Piece>,
    /// What is still there.
    pub(crate) left: Rc<Left>,
    /// Most bytes of one frame.
    pub(crate) piece: usize,
}

impl Outgoing {
    fn leave(&mut self, bytes: Bytes) -> io::Result<()> {
        let piece = self.left.piece(bytes);
        self.send
            .send_data(piece, false)
            .map_err(|error| sink_error(&error))
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
    outgoing: Outgoing,
    /// The other direction, which may end for a reason that is ours.
    arrived: Weak<Inbox>,
    /// Small writes, not framed yet.
    joined: BytesMut,
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
        Poll::Ready(self.outgoing.leave(piece))
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
        self.outgoing
            .send
            .send_data(Piece::end(), true)
            .map_err(|error| sink_error(&error))?;
        self.ended = true;
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let arrived = self.arrived.upgrade();
        if let Some(arrived) = &arrived
            && let Poll::Ready(error) = arrived.poll_overflow(cx)
        {
            return Poll::Ready(error);
        }
        let whole = arrived.is_some_and(|arrived| arrived.is_whole());
        match ready!(self.outgoing.send.poll_reset(cx)) {
            Ok(reason) => {
                let kind = if whole || reason == Reason::NO_ERROR {
                    io::ErrorKind::BrokenPipe
                } else {
                    io::ErrorKind::ConnectionReset
                };
                Poll::Ready(io::Error::new(kind, reason.description().to_owned()))
            }
            Err(error) => Poll::Ready(sink_error(&error)),
        }
    }

    fn reset(&mut self) {
        if self.ended {
            return; // the engine resets when both halves are dropped, after what is queued
        }
        self.ended = true;
        self.joined.clear();
        self.outgoing.send.send_reset(Reason::CANCEL);
    }
}

impl StreamSink {
    fn poll_send_joined(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.joined.has_remaining() {
            let room = ready!(self.poll_room(cx, self.joined.len()))?;
            let piece = self.joined.split_to(room.min(self.joined.len())).freeze();
            self.outgoing.leave(piece)?;
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

    /// How much may be sent now, as one frame: the peer's credit and our own limits allow it.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let Outgoing { send, left, piece } = &mut self.outgoing;
        let wanted = wanted.min(*piece).min(ready!(left.poll_room(cx)));
        send.reserve_capacity(wanted);
        loop {
            let room = send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(send.poll_capacity(cx)) {
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

impl fmt::Debug for StreamSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSink")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

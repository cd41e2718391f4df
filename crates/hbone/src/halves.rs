//! The two halves of a stream as its holders have them: each with its waker, and let go when it is dropped.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::engine::{Code, Engine, Failure, Message, Taken};
use crate::error::stream_error;
use crate::link::{Half, Link};

/// What arrives.
#[derive(Debug)]
pub(crate) struct Reader {
    link: Rc<Link>,
    slot: usize,
}

/// What goes.
#[derive(Debug)]
pub(crate) struct Writer {
    link: Rc<Link>,
    slot: usize,
}

impl Reader {
    pub(crate) fn new(link: Rc<Link>, slot: usize) -> Self {
        Self { link, slot }
    }

    /// The next piece; `None` at the end of the stream. Asking gives the peer credit for the one before.
    pub(crate) fn poll_take(&self, cx: &Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match self.link.change(|engine| engine.take(self.slot)) {
            Taken::Piece(piece) => Poll::Ready(Ok(Some(piece))),
            Taken::End => Poll::Ready(Ok(None)),
            Taken::Failed(failure) => Poll::Ready(Err(stream_error(failure))),
            Taken::Nothing => {
                self.link.listen(self.slot, Half::Reader, cx);
                Poll::Pending
            }
        }
    }

    /// The answer to the request that the stream was opened with.
    pub(crate) fn poll_answer(&self, cx: &Context<'_>) -> Poll<Result<Message, Failure>> {
        match self.link.drive(|engine| engine.take_answer(self.slot)) {
            Ok(Some(message)) => Poll::Ready(Ok(message)),
            Err(failure) => Poll::Ready(Err(failure)),
            Ok(None) => {
                self.link.listen(self.slot, Half::Reader, cx);
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.link.forget(self.slot, Half::Reader);
        self.link.change(|engine| engine.drop_reader(self.slot));
    }
}

impl Writer {
    pub(crate) fn new(link: Rc<Link>, slot: usize) -> Self {
        Self { link, slot }
    }

    /// Answers the request that the stream was opened with.
    pub(crate) fn answer(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        ends: bool,
    ) -> io::Result<()> {
        let answer = |engine: &mut Engine| engine.answer(self.slot, status, headers, ends);
        self.link.change(answer).map_err(stream_error)
    }

    /// Says that nobody looked at the request.
    pub(crate) fn refuse(&self) {
        self.link.change(|engine| engine.refuse(self.slot));
    }

    /// How much of `wanted` may be sent now, as one frame: the peer's credit and our own limits allow it.
    pub(crate) fn poll_room(&self, cx: &Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let (slot, link) = (self.slot, &self.link);
        let room = link.drive(|engine| {
            let room = engine.room(slot)?;
            let room = room.min(link.backlog_room(engine.waiting(slot)));
            let room = room.min(wanted).min(engine.longest_piece());
            if room == 0 {
                engine.await_room(slot);
            }
            Ok(room)
        });
        match room {
            Ok(0) => {
                self.link.listen(self.slot, Half::Writer, cx);
                Poll::Pending
            }
            Ok(room) => Poll::Ready(Ok(room)),
            Err(failure) => Poll::Ready(Err(self.broken(failure))),
        }
    }

    /// Leaves a piece to be sent, no longer than [`Writer::poll_room`] said.
    pub(crate) fn send(&self, piece: Bytes) {
        self.link.change(|engine| engine.send(self.slot, piece));
    }

    /// Ends the direction, behind what was left.
    pub(crate) fn close(&self) -> io::Result<()> {
        let closed = self.link.change(|engine| engine.close(self.slot));
        closed.map_err(|failure| self.broken(failure))
    }

    /// Ends both directions at once.
    pub(crate) fn reset(&self) {
        self.link
            .change(|engine| engine.reset(self.slot, Code::CANCEL));
    }

    /// Ready when the stream broke.
    pub(crate) fn poll_broken(&self, cx: &Context<'_>) -> Poll<io::Error> {
        match self.link.look(|engine| engine.failure(self.slot)) {
            Some((failure, _)) => Poll::Ready(self.broken(failure)),
            None => {
                self.link.listen(self.slot, Half::Writer, cx);
                Poll::Pending
            }
        }
    }

    /// As the writer sees it: the peer's wish for no more bytes takes back nothing of what it sent.
    fn broken(&self, failure: Failure) -> io::Error {
        let failed = self.link.look(|engine| engine.failure(self.slot));
        let whole = failed.is_some_and(|(_, whole)| whole);
        let error = stream_error(failure);
        match failure {
            Failure::ByPeer(_) if whole => io::Error::new(io::ErrorKind::BrokenPipe, error),
            _ => error,
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.link.forget(self.slot, Half::Writer);
        self.link.change(|engine| engine.drop_writer(self.slot));
    }
}

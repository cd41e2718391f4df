//! The transport of a connection, one turn of its driver at a time.
//!
//! # Theory of operation
//! A turn writes what is to go, so that it leaves before anything else is done; reads what is there, up to a bound; wakes the
//! streams that got something; and writes what the peer is to be answered. What a turn writes leaves in one flush, so that the
//! frames of many streams share records and system calls.
//!
//! A connection that ends says why, if it can, and is shut down; its streams learn of it at once. One that nothing can be written to
//! any more is first read to its end: a peer that says its last and leaves is heard, however much that is.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::engine::{Broken, Code, Engine, Out};
use crate::error::TunnelError;
use crate::keepalive::Keepalive;
use crate::link::Link;
use crate::settings::{Settings, TURN_BYTES};

/// Bytes that are read at once while no longer frame is on its way: a few requests, or many small messages. What is read for a
/// longer frame is as long as that, so that its payload needs no copy and holds nothing but itself.
const STEP: usize = 8 * 1024;

/// A frame's head is read with the frame before it, so that its length is known in time.
const NEXT: usize = 9;

/// A transport and what is on its way in and out.
pub(crate) struct Drive<T> {
    io: T,
    link: Rc<Link>,
    input: BytesMut,
    out: Out,
    unflushed: bool,
    /// Why nothing can be written any more.
    unwritable: Option<io::Error>,
    received: u64,
    keepalive: Keepalive,
    /// How the connection ended, while that is being said.
    ending: Option<Result<(), TunnelError>>,
}

/// Why no more is read in this turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// There is nothing more.
    Empty,
    /// It was enough.
    Turn,
    /// The peer is to read first.
    Full,
    /// There will be nothing more.
    End,
}

/// What ended a connection.
enum Cause {
    Broken(Broken),
    Io(io::Error),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Drive<T> {
    pub(crate) fn new(io: T, link: Rc<Link>, settings: &Settings) -> Self {
        Self {
            io,
            link,
            input: BytesMut::new(),
            out: Out::default(),
            unflushed: false,
            unwritable: None,
            received: 0,
            keepalive: Keepalive::new(settings),
            ending: None,
        }
    }

    /// Asks the peer for a sign of life now.
    pub(crate) fn probe(&mut self) {
        self.keepalive.probe(self.received);
        self.link.drive(Engine::ask);
    }

    /// Why the connection is ending, if it is and not in order.
    pub(crate) fn failure(&self) -> Option<&TunnelError> {
        self.ending
            .as_ref()
            .and_then(|ending| ending.as_ref().err())
    }

    /// Ends the connection in order: what is queued is lost, so there should be nothing.
    pub(crate) fn finish(&mut self) {
        self.end(Some(Code::NO_ERROR), Ok(()));
    }

    /// Ends the connection because the peer costs too much.
    pub(crate) fn calm(&mut self, what: &'static str) {
        let code = Code::ENHANCE_YOUR_CALM;
        let error = TunnelError::Misbehaved(format!("{code}: {what}"));
        self.end(Some(code), Err(error));
    }

    fn end(&mut self, code: Option<Code>, result: Result<(), TunnelError>) {
        if self.ending.is_none() {
            let cut = self.link.drive(|engine| engine.end(code));
            let left = self.link.look(Engine::left);
            self.ending = Some(match (result, left) {
                (Ok(()), Some(code)) if code != Code::NO_ERROR => {
                    Err(TunnelError::EndedByPeer(code.to_string()))
                }
                // The transport's end is no end of the streams on it.
                (Ok(()), _) if cut > 0 => Err(TunnelError::cut()),
                (result, _) => result,
            });
        }
    }

    /// One turn. Ready when the connection has ended, with the reason if that was not in order.
    pub(crate) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        self.link.begin(cx);
        let mut again = false;
        if self.ending.is_none() {
            match self.turn(cx) {
                Ok(Stop::End) => self.end(None, Ok(())),
                Ok(stop) => again = stop == Stop::Turn,
                Err(Cause::Broken(broken)) => {
                    let error = TunnelError::Misbehaved(broken.to_string());
                    self.end(Some(broken.code), Err(error));
                }
                // A cut. Without streams nothing was lost by it.
                Err(Cause::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.end(None, Ok(()));
                }
                Err(Cause::Io(error)) => {
                    self.end(None, Err(TunnelError::from_io(&error)));
                    self.link.announce();
                    return Poll::Ready(self.ending.take().unwrap_or(Ok(())));
                }
            }
        }
        let dead = self.poll_alive(cx).is_ready();
        if dead {
            self.end(None, Err(TunnelError::Silent));
        }
        self.link.announce();
        if self.ending.is_none() {
            if again {
                cx.waker().wake_by_ref();
            }
            self.link.finish(again || !self.out.is_empty());
            return Poll::Pending;
        }
        if !dead {
            // Whether the last words get through changes nothing any more.
            let _ = ready!(self.poll_last_words(cx));
        }
        Poll::Ready(self.ending.take().unwrap_or(Ok(())))
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Stop, Cause> {
        let (mut read, mut written) = (TURN_BYTES, TURN_BYTES);
        loop {
            self.write(cx, &mut written);
            let stop = self.read(cx, &mut read)?;
            self.link.announce();
            self.write(cx, &mut written);
            if self.unwritable.is_some() && self.link.look(Engine::is_left) {
                return Ok(Stop::End);
            }
            if self.input.is_empty() && self.input.capacity() > 0 {
                self.input = BytesMut::new(); // who idles holds nothing
            }
            let full = || self.link.look(|engine| engine.is_full(&self.out));
            match stop {
                Stop::Full if !full() => {}
                Stop::End => return self.unwritable.take().map_or(Ok(stop), |e| Err(e.into())),
                // There may be more to write.
                _ if written == 0 => return Ok(Stop::Turn),
                stop => return Ok(stop),
            }
        }
    }

    /// Reads and handles what there is, until `left` is used.
    fn read(&mut self, cx: &mut Context<'_>, left: &mut usize) -> Result<Stop, Cause> {
        loop {
            let (input, out) = (&mut self.input, &self.out);
            let full = self.link.drive(|engine| {
                engine.receive(input, left).map_err(Cause::Broken)?;
                Ok::<_, Cause>(engine.is_full(out))
            })?;
            if *left == 0 {
                return Ok(Stop::Turn);
            }
            if full {
                return Ok(Stop::Full);
            }
            match self.poll_fill(cx) {
                Poll::Pending => return Ok(Stop::Empty),
                Poll::Ready(Ok(0)) => return Ok(Stop::End),
                Poll::Ready(Ok(count)) => self.received = self.received.wrapping_add(count),
                // What failed first says more.
                Poll::Ready(Err(error)) => {
                    return Err(self.unwritable.take().unwrap_or(error).into());
                }
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let missing = Engine::missing(&self.input);
        let room = if missing > STEP { missing + NEXT } else { STEP };
        self.input.reserve(room);
        let mut space = (&mut self.input).limit(room);
        let mut reading = std::pin::pin!(self.io.read_buf(&mut space));
        let count = ready!(reading.as_mut().poll(cx))?;
        Poll::Ready(Ok(u64::try_from(count).unwrap_or(u64::MAX)))
    }

    /// Writes what there is until the transport is full or `left` is used, and flushes. What cannot be written is told when all is
    /// read: the peer's last words may be on their way.
    fn write(&mut self, cx: &mut Context<'_>, left: &mut usize) {
        if self.unwritable.is_none()
            && let Err(error) = self.try_write(cx, left)
        {
            self.unwritable = Some(error);
            self.out = Out::default();
            self.link.drive(Engine::mute);
        }
    }

    fn try_write(&mut self, cx: &mut Context<'_>, left: &mut usize) -> io::Result<()> {
        while *left > 0 {
            let out = &mut self.out;
            if out.is_empty() && !self.link.drive(|engine| engine.fill(out)) {
                break;
            }
            match self.poll_write(cx) {
                Poll::Pending => return self.flush(cx),
                Poll::Ready(written) => *left = left.saturating_sub(written?),
            }
        }
        self.flush(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let written = {
            let slices = self.out.slices();
            ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.out.advance(written);
        Poll::Ready(Ok(written))
    }

    /// Not being able to flush now is no error: the task is woken when it can go on.
    fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.unflushed {
            return Ok(());
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(result) => {
                self.unflushed = false;
                result
            }
        }
    }

    /// Ready when the peer is taken for dead.
    fn poll_alive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let link = &self.link;
        let mut asked = false;
        let dead = self.keepalive.poll_dead(cx, self.received, || {
            asked = true;
            link.drive(Engine::ask);
        });
        if asked && dead.is_pending() {
            self.write(cx, &mut TURN_BYTES.clone());
        }
        dead
    }

    /// Writes what is left to say, and closes the transport.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let out = &mut self.out;
            if out.is_empty() && !self.link.drive(|engine| engine.fill(out)) {
                break;
            }
            ready!(self.poll_write(cx))?;
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T> Drop for Drive<T> {
    /// Nothing moves without a driver.
    fn drop(&mut self) {
        self.link.abandon();
    }
}

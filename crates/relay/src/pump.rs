//! The loop: read a chunk, write it, and see how things end.
//!
//! 1. Move bytes from client to server, then from server to client, as far as both go.
//! 2. Ask the connections that are not being read whether they broke.
//! 3. When both directions are over, or one connection broke, say how it ended.

use std::future::{Future, poll_fn};
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::bypass::{Bypass, Drained, Filled, Never};
use crate::close::{Closed, How, Side};
use crate::halves::{Sink, Source};
use crate::meter::Meter;

/// Chunks that one direction moves before other tasks of the thread get their turn: about one
/// MiB, a tenth of a millisecond.
const CHUNKS_PER_TURN: usize = 16;

/// Moves bytes both ways between the connection that was accepted and the one that was dialled,
/// until both directions are over or one connection broke.
///
/// Each direction ends by itself: when one side ends its sending, so does the relay towards the
/// other, and the opposite direction goes on. When a connection breaks, what its peer sent before
/// is delivered if it is whole, and the other connection is reset.
///
/// Cancelling (dropping) resets both connections.
pub fn relay(
    client: (impl Source, impl Sink),
    server: (impl Source, impl Sink),
    meter: &impl Meter,
) -> impl Future<Output = Closed> {
    carry(client, server, (Never, Never), meter)
}

/// [`relay`] with a bypass for each direction: from the client, and from the server.
pub(crate) fn carry<CR: Source, CW: Sink, SR: Source, SW: Sink>(
    client: (CR, CW),
    server: (SR, SW),
    (forward, backward): (impl Bypass<CR, SW>, impl Bypass<SR, CW>),
    meter: &impl Meter,
) -> impl Future<Output = Closed> {
    // No `async fn`: its future would have room for the halves twice, as arguments and as what is made of them, and most
    // connections idle most of the time.
    let (client_source, client_sink) = client;
    let (server_source, server_sink) = server;
    let mut forward = Flow::new(client_source, server_sink, forward);
    let mut backward = Flow::new(server_source, client_sink, backward);
    let mut ending = Ending::default();

    async move {
        poll_fn(|cx| {
            let turned = forward.turn(cx, |bytes| meter.sent(bytes));
            ending.turned(&mut forward, turned, Side::Client, Side::Server);
            let turned = backward.turn(cx, |bytes| meter.received(bytes));
            ending.turned(&mut backward, turned, Side::Server, Side::Client);
            // A connection that is being read tells by itself when it breaks.
            if !forward.reads() && !backward.over() {
                ending.asked(&mut backward, cx, Side::Client);
            }
            if !backward.reads() && !forward.over() {
                ending.asked(&mut forward, cx, Side::Server);
            }
            if ending.at_once || (forward.over() && backward.over()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;

        let how = match ending.first {
            None => How::Clean,
            Some((side, error)) => {
                backward.sink.reset();
                forward.sink.reset();
                How::from_error(side, error)
            }
        };
        Closed {
            sent: forward.moved,
            received: backward.moved,
            how,
        }
    }
}

/// What broke, and whether anything is left to do.
#[derive(Default)]
struct Ending {
    /// The first break is the cause; what follows are its consequences.
    first: Option<(Side, io::Error)>,
    at_once: bool,
}

impl Ending {
    /// Takes the outcome of a turn of the direction that reads from `source`.
    fn turned<R: Source, W: Sink, B: Bypass<R, W>>(
        &mut self,
        flow: &mut Flow<R, W, B>,
        turned: Result<(), Broken>,
        source: Side,
        sink: Side,
    ) {
        match turned {
            Ok(()) => {}
            Err(Broken::Source(error)) => {
                self.at_once = true;
                self.first.get_or_insert((source, error));
            }
            // The peer may have sent an answer before it closed: the opposite direction goes on
            // until its source ends, which is soon and says whether the answer is whole.
            Err(Broken::Sink(error)) => {
                flow.abandon();
                self.first.get_or_insert((sink, error));
            }
        }
    }

    /// Asks a connection that is not being read; `flow` is the direction to it.
    fn asked<R: Source, W: Sink, B: Bypass<R, W>>(
        &mut self,
        flow: &mut Flow<R, W, B>,
        cx: &mut Context<'_>,
        side: Side,
    ) {
        let Poll::Ready(error) = flow.sink.poll_broken(cx) else {
            return;
        };
        // A broken pipe leaves what the peer sent before its end, which may still be on its way.
        self.at_once |= error.kind() != io::ErrorKind::BrokenPipe;
        flow.abandon();
        self.first.get_or_insert((side, error));
    }
}

/// One direction.
struct Flow<R, W, B> {
    source: R,
    sink: W,
    bypass: B,
    state: State,
    /// Read and not yet written.
    pending: Bytes,
    /// Written since the last flush.
    unflushed: bool,
    /// Bytes written.
    moved: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The source has ended; the sink is to be closed after what is pending.
    Closing,
    /// Ended in order, or abandoned.
    Over,
}

/// Which half broke a direction.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl<R: Source, W: Sink, B: Bypass<R, W>> Flow<R, W, B> {
    fn new(source: R, sink: W, bypass: B) -> Self {
        Self {
            source,
            sink,
            bypass,
            state: State::Open,
            pending: Bytes::new(),
            unflushed: false,
            moved: 0,
        }
    }

    /// Moves what can be moved now, and arranges to be woken when more can be.
    fn turn(&mut self, cx: &mut Context<'_>, count: impl Fn(u64)) -> Result<(), Broken> {
        for _ in 0..CHUNKS_PER_TURN {
            let step = if !self.pending.is_empty() {
                self.write(cx, &count)
            } else if self.bypass.holds() {
                self.drain(cx, &count)
            } else {
                match self.state {
                    State::Open => self.read(cx),
                    State::Closing => self.close(cx),
                    State::Over => return Ok(()),
                }
            };
            match step {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return Err(broken),
                Poll::Pending => return Ok(()),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>, count: impl Fn(u64)) -> Poll<Result<(), Broken>> {
        let before = self.pending.len();
        ready!(self.sink.poll_write(cx, &mut self.pending)).map_err(Broken::Sink)?;
        let written = before - self.pending.len();
        if self.pending.is_empty() {
            // Lets go of the buffer, so that the source can read into it again.
            self.pending = Bytes::new();
        }
        self.wrote(written, count);
        Poll::Ready(Ok(()))
    }

    fn drain(&mut self, cx: &mut Context<'_>, count: impl Fn(u64)) -> Poll<Result<(), Broken>> {
        match ready!(self.bypass.poll_drain(cx, &mut self.sink)).map_err(Broken::Sink)? {
            Drained::Sent(bytes) => self.wrote(bytes, count),
            Drained::Returned(bytes) => self.pending = bytes,
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, bytes: usize, count: impl Fn(u64)) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.unflushed = true;
        self.moved += bytes;
        count(bytes);
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let filled = match self.bypass.poll_fill(cx, &mut self.source) {
            Poll::Ready(Ok(Filled::Declined)) => match self.source.poll_next(cx) {
                Poll::Ready(Ok(Some(bytes))) => {
                    self.bypass.was_read(bytes.len());
                    self.pending = bytes;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(None)) => Poll::Ready(Ok(Filled::End)),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            },
            filled => filled,
        };
        match filled {
            Poll::Ready(Ok(Filled::End)) => self.state = State::Closing,
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Source(error))),
            Poll::Pending => {
                if self.unflushed {
                    ready!(self.sink.poll_flush(cx)).map_err(Broken::Sink)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        ready!(self.sink.poll_close(cx)).map_err(Broken::Sink)?;
        self.state = State::Over;
        Poll::Ready(Ok(()))
    }

    /// Gives the direction up; the opposite one goes on.
    fn abandon(&mut self) {
        self.pending = Bytes::new();
        self.bypass.abandon();
        self.state = State::Over;
    }

    /// Whether the source is being asked for more.
    fn reads(&self) -> bool {
        self.state == State::Open && !self.holds()
    }

    /// Whether there are bytes to be written.
    fn holds(&self) -> bool {
        !self.pending.is_empty() || self.bypass.holds()
    }

    fn over(&self) -> bool {
        self.state == State::Over
    }
}

#[cfg(test)]
mod tests;

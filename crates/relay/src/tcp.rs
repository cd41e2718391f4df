//! The halves of a TCP connection.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use ambit_net::options;
use ambit_net::splice::{self, Pipe};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::buffers::{self, Longest};
use crate::close::Closed;
use crate::growth::Growth;
use crate::halves::{Sink, Source};
use crate::meter::Meter;
use crate::pump;
use crate::splice::{Policy, Splice};

/// How many bytes on end are moved from one TCP connection to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    /// Read and written, as few bytes are.
    Copied,
    /// By the kernel, by way of a pipe. Copied where that is not possible.
    Spliced,
}

/// [`relay`](crate::relay) between two TCP connections: the one that was accepted and the one that was dialled.
pub fn relay(
    client: (TcpSource, TcpSink),
    server: (TcpSource, TcpSink),
    bulk: Bulk,
    meter: &impl Meter,
) -> impl Future<Output = Closed> {
    let policy = match bulk {
        Bulk::Copied => &Policy::NEVER,
        Bulk::Spliced => &Policy::BULK,
    };
    relay_by(policy, client, server, meter)
}

fn relay_by(
    policy: &'static Policy,
    client: (TcpSource, TcpSink),
    server: (TcpSource, TcpSink),
    meter: &impl Meter,
) -> impl Future<Output = Closed> {
    let bypasses = (Splice::new(policy), Splice::new(policy));
    pump::carry(client, server, bypasses, meter)
}

/// Splits a connection into its halves; it closes when both are dropped.
///
/// Until its sending has ended in order, any end of it is a reset, also when the process is killed and the kernel closes it: half a
/// message must not look like a whole one.
#[must_use]
pub fn split(stream: TcpStream) -> (TcpSource, TcpSink) {
    // Fails only on a socket that is gone.
    let _ = options::reset_on_close(&stream);
    let shared = Arc::new(Shared {
        stream,
        truncated: AtomicBool::new(false),
    });
    let source = TcpSource {
        shared: Arc::clone(&shared),
        buffer: BytesMut::new(),
        class: 0,
        growth: Growth::default(),
        longest: None,
    };
    (
        source,
        TcpSink {
            shared,
            closed: false,
            broken: None,
        },
    )
}

struct Shared {
    stream: TcpStream,
    /// The peer reset the connection before it ended its sending, and the kernel told so to a
    /// write: the next read would see an orderly end.
    truncated: AtomicBool,
}

impl Shared {
    /// Keeps in mind what an error from the sending half says about the receiving one.
    ///
    /// The kernel tells each error once. `EPIPE` is the answer when the peer had ended its sending
    /// before its reset, so what it sent is whole.
    fn note(&self, error: io::Error) -> io::Error {
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.truncated.store(true, Ordering::Relaxed);
        }
        error
    }
}

/// The receiving half.
///
/// Holds a buffer only while there is something to read.
pub struct TcpSource {
    shared: Arc<Shared>,
    buffer: BytesMut,
    /// What the buffer had room for when it was made.
    class: usize,
    growth: Growth,
    /// While its buffer is one of the longest.
    longest: Option<Longest>,
}

impl TcpSource {
    /// One read, into a buffer with room for more than is waiting if that can be had.
    ///
    /// A read that leaves room has emptied the socket (epoll(7), question 9), so the runtime's
    /// readiness is cleared by answering "would block", which saves a read that brings nothing.
    fn read(&mut self) -> io::Result<usize> {
        let class = self.next_class();
        let wanted = buffers::size(class);
        if self.buffer.capacity() == 0 {
            self.buffer = buffers::take(class);
            self.class = class;
        } else if self.buffer.capacity() < wanted / 2 {
            self.buffer.reserve(wanted);
            self.class = class;
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let stream = &self.shared.stream;
        let buffer = &mut self.buffer;
        let mut partial = None;
        let outcome = stream.try_io(Interest::READABLE, || {
            let read = stream.try_read_buf(buffer)?;
            if read > 0 && read < room {
                partial = Some(read);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(read)
        });
        let read = partial.map_or(outcome, Ok)?;
        self.growth.read(read, room);
        Ok(read)
    }

    /// As large as reads have shown, and the longest only while few are in hand.
    fn next_class(&mut self) -> usize {
        let class = self.growth.class();
        if class < buffers::LONGEST {
            self.longest = None;
            return class;
        }
        self.longest = self.longest.take().or_else(Longest::get);
        class - usize::from(self.longest.is_none())
    }

    /// Ready when there may be something to [`fill`](Self::fill) a pipe with.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.stream.poll_read_ready(cx)
    }

    /// Fills an empty pipe: the same as a read, in all that it tells. Zero is the end.
    pub(crate) fn fill(&mut self, pipe: &mut Pipe) -> io::Result<usize> {
        // Nothing is read while pipes are filled.
        self.rest();
        let stream = &self.shared.stream;
        let filled = stream.try_io(Interest::READABLE, || pipe.fill(stream))?;
        if filled == 0 && self.shared.truncated.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(filled)
    }

    fn rest(&mut self) {
        self.longest = None;
        if self.buffer.capacity() > 0 {
            self.growth.rest();
            buffers::give_back(std::mem::take(&mut self.buffer), self.class);
        }
    }
}

impl Source for TcpSource {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if self.shared.stream.poll_read_ready(cx)?.is_pending() {
                self.rest();
                return Poll::Pending;
            }
            match self.read() {
                Ok(0) if self.shared.truncated.load(Ordering::Relaxed) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Ok(0) => {
                    self.rest();
                    return Poll::Ready(Ok(None));
                }
                Ok(_) => return Poll::Ready(Ok(Some(self.buffer.split().freeze()))),
                Err(error) if would_block(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for TcpSource {
    fn drop(&mut self) {
        self.rest();
    }
}

impl fmt::Debug for TcpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpSource")
            .field("peer", &self.shared.stream.peer_addr().ok())
            .finish()
    }
}

type Broken = Pin<Box<dyn Future<Output = io::Error> + Send>>;

/// The sending half. Dropped before its sending was ended, it resets the connection.
pub struct TcpSink {
    shared: Arc<Shared>,
    closed: bool,
    /// Made only for connections that are asked whether they broke, which few are.
    broken: Option<Broken>,
}

impl TcpSink {
    /// One write. A part written means that the socket is full; see [`TcpSource::read`].
    fn write(&self, data: &[u8]) -> io::Result<usize> {
        let stream = &self.shared.stream;
        let mut partial = None;
        let outcome = stream.try_io(Interest::WRITABLE, || {
            let written = stream.try_write(data)?;
            if written < data.len() {
                partial = Some(written);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(written)
        });
        partial.map_or(outcome, Ok)
    }

    /// Ready when a pipe may be [drained](Self::drain).
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.stream.poll_write_ready(cx)
    }

    /// Sends from a pipe: the same as a write, in all that it tells. `cut_short` says that the call before sent a part only.
    ///
    /// Behind that part the kernel may have hidden an error, of which only `EPIPE` is left now. Whether what the peer sent is whole
    /// can then not be known, so it does not count as whole.
    pub(crate) fn drain(&self, pipe: &mut Pipe, cut_short: bool) -> io::Result<usize> {
        let stream = &self.shared.stream;
        let drained = stream.try_io(Interest::WRITABLE, || pipe.drain(stream));
        drained.map_err(|error| {
            if would_block(&error) || splice::refused(&error) {
                error
            } else if cut_short && error.kind() == io::ErrorKind::BrokenPipe {
                self.shared.note(io::ErrorKind::ConnectionReset.into())
            } else {
                self.shared.note(error)
            }
        })
    }
}

impl Sink for TcpSink {
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        loop {
            ready!(self.shared.stream.poll_write_ready(cx))?;
            match self.write(data) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    data.advance(written);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if would_block(&error) => {}
                Err(error) => return Poll::Ready(Err(self.shared.note(error))),
            }
        }
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            let stream = &self.shared.stream;
            // All is written. First, as between the two calls it would be an end, too.
            let ended = options::end_on_close(stream).and_then(|()| options::end_sending(stream));
            ended.map_err(|error| self.shared.note(error))?;
            self.closed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let shared = &self.shared;
        let broken = self.broken.get_or_insert_with(|| {
            let shared = Arc::clone(shared);
            Box::pin(async move {
                if let Err(error) = shared.stream.ready(Interest::ERROR).await {
                    return error;
                }
                let told = shared.stream.take_error().ok().flatten();
                shared.note(told.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
            })
        });
        broken.as_mut().poll(cx)
    }

    fn reset(&mut self) {
        let stream = &self.shared.stream;
        // The end of the sending itself counts as one byte; more is data on its way, which a reset
        // would overtake.
        if self.closed && options::unacknowledged(stream).is_ok_and(|bytes| bytes > 1) {
            return;
        }
        self.closed = true;
        // Fails only on a socket that is gone already.
        let _ = options::reset_on_close(stream);
    }
}

impl Drop for TcpSink {
    fn drop(&mut self) {
        if !self.closed {
            self.reset();
        }
    }
}

impl fmt::Debug for TcpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpSink")
            .field("peer", &self.shared.stream.peer_addr().ok())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

pub(crate) fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests;

//! The connection below the engine, one driver turn at a time.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::ends::Ends;
use crate::heads::{Heads, Read};
use crate::settings::{FRAME_COST, Settings, TURN_BYTES};

/// The connection, shared by the engine that reads and writes it and the driver that ends a turn.
///
/// Reading stops after [`TURN_BYTES`] in a turn, so that the driver can hand out what arrived and other
/// connections of the thread get theirs.
/// Flushing is put off to the end of the turn, so that the frames of many streams leave in one write:
/// the engine asks for a flush after every large frame.
pub(crate) struct Turn<T> {
    shared: Rc<Shared<T>>,
}

struct Shared<T> {
    io: RefCell<T>,
    left: Cell<usize>,
    received: Cell<u64>,
    heads: RefCell<Heads>,
    ends: RefCell<Ends>,
    unflushed: Cell<bool>,
}

impl<T> Turn<T> {
    /// Of the bytes that are read, the first `preface` are no frame.
    pub(crate) fn new(io: T, preface: usize, settings: &Settings) -> Self {
        Self {
            shared: Rc::new(Shared {
                io: RefCell::new(io),
                left: Cell::new(TURN_BYTES),
                received: Cell::new(0),
                heads: RefCell::new(Heads::new(preface, settings)),
                ends: RefCell::new(Ends::new(preface)),
                unflushed: Cell::new(false),
            }),
        }
    }

    /// A second handle, for the driver.
    pub(crate) fn handle(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
        }
    }

    /// Begins a turn. What arrived in the one before was handed out.
    pub(crate) fn begin(&self) {
        self.shared.left.set(TURN_BYTES);
        self.shared.ends.borrow_mut().known();
    }

    /// Bytes received so far: a sign of life.
    pub(crate) fn received(&self) -> u64 {
        self.shared.received.get()
    }
}

impl<T: AsyncWrite + Unpin> Turn<T> {
    /// Ends a turn: what was written leaves. Not being able to write now is no error; the task is
    /// woken when it can go on.
    pub(crate) fn end(&self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.shared.unflushed.get() {
            return Ok(());
        }
        match Pin::new(&mut *self.shared.io.borrow_mut()).poll_flush(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(result) => {
                self.shared.unflushed.set(false);
                result
            }
        }
    }
}

impl<T> fmt::Debug for Turn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn")
            .field("received", &self.shared.received)
            .finish_non_exhaustive()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Turn<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &self.shared;
        let mut heads = shared.heads.borrow_mut();
        let before = buf.filled().len();
        while buf.filled().len() == before {
            if shared.left.get() == 0 {
                cx.waker().wake_by_ref(); // there may be more, for the next turn
                return Poll::Pending;
            }
            let mut io = shared.io.borrow_mut();
            let Read::Some(read) = std::task::ready!(heads.poll_read(Pin::new(&mut *io), cx, buf))?
            else {
                break;
            };
            // A header block may be longer for the engine than it was on the wire.
            let cost = read.max(buf.filled().len() - before);
            let cost = cost.max(heads.frames() * FRAME_COST);
            shared.left.set(shared.left.get().saturating_sub(cost));
            let received = shared.received.get().wrapping_add(read as u64);
            shared.received.set(received);
        }
        if let Some(bytes) = buf.filled_mut().get_mut(before..) {
            shared.ends.borrow_mut().read(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Turn<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.unflushed.set(true);
        Pin::new(&mut *self.shared.io.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.unflushed.set(true);
        Pin::new(&mut *self.shared.io.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.shared.io.borrow().is_write_vectored()
    }

    /// Put off to [`Turn::end`].
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.shared.io.borrow_mut()).poll_shutdown(cx)
    }
}

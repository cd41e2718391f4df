//! The guard in front of the HTTP library: a byte stream whose reads have been looked at.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::{Guard, Passed, Refusal};
use crate::forward::forward_writes;

/// What the library reads in the place of a refused request. It is sound, so that the library hands it
/// to the service; the service asks [`Signals::refusal`] first and answers the refusal. It stands
/// for exactly one request, after which the connection ends. In the place of a chunk it is none, and
/// the library ends the body with an error.
const PLACEHOLDER: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// Whether a request may be the one that stands in the place of a refused one.
#[must_use]
pub fn is_placeholder(request: &http::request::Parts) -> bool {
    let host = request.headers.get(http::header::HOST);
    host.is_some_and(|host| host == "refused")
}

/// Read at a time while a head is incomplete.
const PIECE: usize = 4 * 1024;

/// What the guard and the service of one connection tell each other. Both live on one thread.
#[derive(Debug, Clone, Default)]
pub struct Signals(Rc<SignalsInner>);

#[derive(Debug, Default)]
struct SignalsInner {
    refusal: Cell<Option<Refusal>>,
    upgraded: Cell<bool>,
}

impl Signals {
    /// Why what the client sent was refused, if it was: then an [`is_placeholder`] request, or the
    /// body of the last one, stands for it.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.0.refusal.get()
    }

    /// The service is about to answer 101: what follows is no longer HTTP.
    pub fn upgraded(&self) {
        self.0.upgraded.set(true);
    }
}

/// A stream whose incoming bytes pass a [`Guard`].
#[derive(Debug)]
pub struct GuardedIo<T> {
    inner: T,
    guard: Guard,
    signals: Signals,
    /// Bytes not passed on yet: an incomplete head, or what did not fit the reader's buffer.
    held: Vec<u8>,
    /// How many of `held` may be read.
    free: usize,
    ended: bool,
}

impl<T> GuardedIo<T> {
    /// Guards `inner`. `max_head`: bytes of request line and headers allowed.
    pub fn new(inner: T, max_head: usize) -> (Self, Signals) {
        let signals = Signals::default();
        let guarded = Self {
            inner,
            guard: Guard::new(max_head),
            signals: signals.clone(),
            held: Vec::new(),
            free: 0,
            ended: false,
        };
        (guarded, signals)
    }

    /// Moves what may be read into the reader's buffer; true if there was any.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let count = self.free.min(buf.remaining());
        if count == 0 {
            return false;
        }
        buf.put_slice(self.held.get(..count).unwrap_or_default());
        self.held.drain(..count);
        self.free -= count;
        true
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.signals.0.refusal.set(Some(refusal));
        self.held.truncate(self.free);
        self.held.extend_from_slice(PLACEHOLDER);
        self.free = self.held.len();
        self.ended = true;
    }

    /// Looks at everything held behind what is free already.
    fn look(&mut self) {
        let unseen = self.held.get(self.free..).unwrap_or_default();
        match self.guard.look(unseen) {
            Passed::Bytes(count) => self.free += count,
            Passed::Refused(count, refusal) => {
                self.free += count;
                self.refuse(refusal);
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GuardedIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.signals.0.upgraded.get() {
            this.guard.open();
            this.look();
        }
        loop {
            if this.give(buf) || this.ended {
                return Poll::Ready(Ok(()));
            }
            if this.held.is_empty() {
                // The common case reads straight into the reader's buffer and looks at it there.
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                let fresh = buf.filled().get(before..).unwrap_or_default();
                if fresh.is_empty() {
                    this.ended = true;
                    return Poll::Ready(Ok(()));
                }
                let (count, refusal) = match this.guard.look(fresh) {
                    Passed::Bytes(count) => (count, None),
                    Passed::Refused(count, refusal) => (count, Some(refusal)),
                };
                this.held
                    .extend_from_slice(fresh.get(count..).unwrap_or_default());
                buf.set_filled(before + count);
                if let Some(refusal) = refusal {
                    this.refuse(refusal);
                }
                if count > 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                // The client left in the middle of a head: the library says so in its own way.
                this.free = this.held.len();
                this.ended = true;
                continue;
            }
            this.held.extend_from_slice(piece.filled());
            this.look();
        }
    }
}

forward_writes!(GuardedIo);

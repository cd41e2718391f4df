//! A tunnel that we accepted.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ambit_tls::Peer;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::drive::Drive;
use crate::engine::{Engine, Limits, Message};
use crate::error::TunnelError;
use crate::expiry;
use crate::halves::{Reader, Writer};
use crate::link::Link;
use crate::request::{Malformed, Request};
use crate::settings::{MAX_ABANDONED, Settings};
use crate::stream::Stream;

/// Starts HTTP/2 on an accepted connection whose other end was verified.
///
/// When `draining` completes, the peer is told to open no more streams (GOAWAY); those that are open
/// go on until they end by themselves, and [`Incoming::next`] then answers `None`. The same happens when
/// the peer's certificate expires.
///
/// # Errors
/// [`TunnelError`] if the peer did not start in time or the connection broke.
pub async fn serve<T>(
    io: T,
    peer: Peer,
    settings: &Settings,
    draining: impl Future<Output = ()> + 'static,
) -> Result<Incoming<T>, TunnelError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let limit = settings.handshake_timeout;
    let link = Link::new(Engine::server(Limits::new(settings, settings.max_streams)));
    let mut drive = Drive::new(io, Rc::clone(&link), settings);
    let started = std::future::poll_fn(|cx| {
        let turned = drive.poll_turn(cx);
        let begun = link.look(Engine::has_begun);
        match turned {
            Poll::Ready(Ok(())) => Poll::Ready(Err(TunnelError::cut())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if begun => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    });
    match tokio::time::timeout(limit, started).await {
        Ok(started) => started?,
        Err(_elapsed) => return Err(TunnelError::Timeout(limit)),
    }
    let expired = tokio::time::sleep_until(expiry::of(&peer));
    let draining = async move {
        tokio::select! {
            () = draining => {}
            () = expired => {}
        }
    };
    Ok(Incoming {
        drive: Some(drive),
        link,
        draining: Some(Box::pin(draining)),
        unanswered: Rc::new(Unanswered::default()),
        peer: Rc::new(peer),
        max_streams: settings.max_streams,
        ended: None,
    })
}

/// The streams that a peer opens, one after the other.
///
/// [`Incoming::next`] also drives the connection: streams already accepted move only while it is
/// being awaited. Handle each [`Exchange`] in a task of its own. Dropping this ends the connection.
pub struct Incoming<T> {
    drive: Option<Drive<T>>,
    link: Rc<Link>,
    draining: Option<Pin<Box<dyn Future<Output = ()>>>>,
    unanswered: Rc<Unanswered>,
    peer: Rc<Peer>,
    max_streams: u32,
    ended: Option<TunnelError>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Incoming<T> {
    /// The next stream that the peer wants; `None` when the connection has ended.
    ///
    /// `Some(Err(_))` is one bad request, already answered; the connection goes on.
    pub async fn next(&mut self) -> Option<Result<Exchange, Malformed>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Why the connection ended, if not in order.
    #[must_use]
    pub fn ended(&self) -> Option<&TunnelError> {
        self.ended.as_ref()
    }

    /// Tells the peer to open no more streams. Idempotent.
    pub fn drain(&mut self) {
        self.draining = None;
        self.link.change(Engine::leave);
    }

    /// As [`Incoming::next`], for hand-written futures.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Exchange, Malformed>>> {
        if self
            .draining
            .as_mut()
            .is_some_and(|draining| draining.as_mut().poll(cx).is_ready())
        {
            self.drain();
        }
        loop {
            while let Some((message, reader, writer)) = self.link.next_request() {
                if let Some(item) = self.admit(message, reader, writer) {
                    return Poll::Ready(Some(item));
                }
            }
            let Some(drive) = &mut self.drive else {
                return Poll::Ready(None);
            };
            if self.unanswered.abandoned.get() > MAX_ABANDONED {
                self.unanswered.abandoned.set(0);
                drive.calm("requests that are given up before they are answered");
            }
            let mut turned = drive.poll_turn(cx);
            if turned.is_pending() && self.link.look(is_done) {
                drive.finish();
                turned = drive.poll_turn(cx);
            }
            if let Poll::Ready(result) = turned {
                self.ended = result.err();
                self.drive = None; // tells the streams that nothing will come
                return Poll::Ready(None);
            }
            if !self.link.look(Engine::has_requests) {
                return Poll::Pending;
            }
        }
    }

    fn admit(
        &self,
        message: Message,
        reader: Reader,
        writer: Writer,
    ) -> Option<Result<Exchange, Malformed>> {
        let waiting = self.unanswered.waiting.get();
        if waiting >= self.max_streams {
            writer.refuse(); // each would be a dial of ours
            return None;
        }
        match Request::from_message(message) {
            Ok(request) => {
                self.unanswered.waiting.set(waiting + 1);
                Some(Ok(Exchange {
                    request,
                    halves: Some((reader, writer)),
                    unanswered: Rc::clone(&self.unanswered),
                    answered: false,
                    peer: Rc::clone(&self.peer),
                }))
            }
            Err(malformed) => {
                // Fails only if the peer has reset the stream meanwhile.
                let _ = writer.answer(StatusCode::BAD_REQUEST, &HeaderMap::new(), true);
                Some(Err(malformed))
            }
        }
    }
}

/// Whether nothing is left to do: no stream is open, and none will be.
fn is_done(engine: &Engine) -> bool {
    engine.open_streams() == 0 && (engine.left().is_some() || engine.has_left())
}

impl<T> fmt::Debug for Incoming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Requests that were handed out and not answered.
#[derive(Debug, Default)]
struct Unanswered {
    /// Now.
    waiting: Cell<u32>,
    /// Given up by the peer before our answer, less those that were answered since.
    abandoned: Cell<u32>,
}

/// One request, to be answered exactly once. Dropping it unanswered resets the stream.
pub struct Exchange {
    request: Request,
    /// Taken by the answer.
    halves: Option<(Reader, Writer)>,
    unanswered: Rc<Unanswered>,
    answered: bool,
    peer: Rc<Peer>,
}

impl Exchange {
    /// What is asked for.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Who asks.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Ends when the peer gives the request up: race it with whatever is done before answering.
    pub async fn cancelled(&mut self) {
        if let Some((_, writer)) = &self.halves {
            // Whatever broke it, there is nobody to answer.
            let _ = std::future::poll_fn(|cx| writer.poll_broken(cx)).await;
        }
    }

    /// Answers 200 with `headers`: bytes may flow.
    ///
    /// # Errors
    /// `ConnectionReset` if the peer has given the request up, another kind if the tunnel failed.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "who answers makes them for this one answer"
    )]
    pub fn accept(mut self, headers: HeaderMap) -> std::io::Result<Stream> {
        let halves = self.halves.take();
        let (reader, writer) = halves.ok_or(std::io::ErrorKind::NotConnected)?;
        writer.answer(StatusCode::OK, &headers, false)?;
        self.settle();
        Ok(Stream::new(reader, writer, None))
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(mut self, status: StatusCode) {
        if let Some((_reader, writer)) = self.halves.take()
            && writer.answer(status, &HeaderMap::new(), true).is_ok()
        {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.answered = true;
        let abandoned = self.unanswered.abandoned.get();
        self.unanswered.abandoned.set(abandoned.saturating_sub(1));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let counts = &self.unanswered;
        counts.waiting.set(counts.waiting.get().saturating_sub(1));
        if !self.answered {
            counts.abandoned.set(counts.abandoned.get() + 1);
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("request", &self.request)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

//! A tunnel that we accepted.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ambit_tls::Peer;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::backlog::{Backlog, Piece};
use crate::ends::PREFACE;
use crate::error::{TunnelError, gone, stream_error};
use crate::expiry;
use crate::inbox::Inboxes;
use crate::keepalive::Keepalive;
use crate::request::{Malformed, Request};
use crate::settings::{
    MAX_ABANDONED, MAX_ERROR_RESETS, MAX_RESET_BEFORE_ACCEPT, SMALL_FRAME_ALLOWANCE, Settings,
};
use crate::stream::{Lease, Outgoing, Stream};
use crate::turn::Turn;

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
    let turn = Turn::new(io, PREFACE, settings);
    let handle = turn.handle();
    let limit = settings.handshake_timeout;
    let mut start = std::pin::pin!(engine(settings).handshake::<_, Piece>(turn));
    // The engine's flushes are put off to the end of a turn, here as later.
    let started = std::future::poll_fn(|cx| {
        handle.begin();
        let started = start.as_mut().poll(cx);
        match handle.end(cx) {
            Ok(()) => started.map_err(TunnelError::from_engine),
            Err(error) => Poll::Ready(Err(TunnelError::from_io(&error))),
        }
    });
    let mut connection = match tokio::time::timeout(limit, started).await {
        Ok(started) => started?,
        Err(_elapsed) => return Err(TunnelError::Timeout(limit)),
    };
    let keepalive = Keepalive::new(connection.ping_pong(), settings);
    let expired = tokio::time::sleep_until(expiry::of(&peer));
    let draining = async move {
        tokio::select! {
            () = draining => {}
            () = expired => {}
        }
    };
    Ok(Incoming {
        connection: Some(connection),
        turn: handle,
        keepalive,
        draining: Some(Box::pin(draining)),
        inboxes: Inboxes::new(),
        backlog: Rc::default(),
        unanswered: Rc::new(Unanswered::default()),
        peer: Rc::new(peer),
        settings: settings.clone(),
        ended: None,
    })
}

fn engine(settings: &Settings) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window(settings.max_streams))
        .max_concurrent_streams(settings.max_streams)
        .max_frame_size(settings.max_frame)
        .max_header_list_size(settings.max_header_list)
        .max_send_buffer_size(settings.send_buffer)
        .max_pending_accept_reset_streams(MAX_RESET_BEFORE_ACCEPT)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .data_frame_budget(SMALL_FRAME_ALLOWANCE);
    builder
}

/// The streams that a peer opens, one after the other.
///
/// [`Incoming::next`] also drives the connection: streams already accepted move only while it is
/// being awaited. Handle each [`Exchange`] in a task of its own. Dropping this ends the connection.
pub struct Incoming<T> {
    connection: Option<Connection<Turn<T>, Piece>>,
    turn: Turn<T>,
    keepalive: Keepalive,
    draining: Option<Pin<Box<dyn Future<Output = ()>>>>,
    inboxes: Rc<Inboxes>,
    backlog: Rc<Backlog>,
    unanswered: Rc<Unanswered>,
    peer: Rc<Peer>,
    settings: Settings,
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
        if let Some(connection) = &mut self.connection {
            connection.graceful_shutdown();
        }
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
            let accepted = match std::task::ready!(self.turn(cx)) {
                Ok(Some(accepted)) => accepted,
                Ok(None) => return self.finish(None),
                Err(error) => return self.finish(Some(error)),
            };
            if let Some(item) = self.admit(accepted) {
                return Poll::Ready(Some(item));
            }
        }
    }

    /// One turn of the engine, up to the next request.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Accepted>, TunnelError>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(Ok(None));
        };
        if self.unanswered.abandoned.get() > MAX_ABANDONED {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            self.unanswered.abandoned.set(0);
        }
        self.turn.begin();
        self.inboxes.begin(cx);
        let accepted = connection.poll_accept(cx);
        self.inboxes.end();
        if let Err(error) = self.turn.end(cx) {
            return Poll::Ready(Err(TunnelError::from_io(&error)));
        }
        match accepted {
            Poll::Ready(accepted) => {
                Poll::Ready(accepted.transpose().map_err(TunnelError::from_engine))
            }
            Poll::Pending => match self.keepalive.poll_dead(cx, self.turn.received()) {
                Poll::Ready(()) => Poll::Ready(Err(TunnelError::Silent)),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn admit(&self, (head, mut respond): Accepted) -> Option<Result<Exchange, Malformed>> {
        let waiting = self.unanswered.waiting.get();
        if waiting >= self.settings.max_streams {
            respond.send_reset(Reason::REFUSED_STREAM); // each would be a dial of ours
            return None;
        }
        let (parts, receive) = head.into_parts();
        match Request::from_head(parts) {
            Ok(request) => {
                self.unanswered.waiting.set(waiting + 1);
                Some(Ok(Exchange {
                    request,
                    receive: Some(receive),
                    respond,
                    inboxes: Rc::clone(&self.inboxes),
                    backlog: Rc::clone(&self.backlog),
                    unanswered: Rc::clone(&self.unanswered),
                    answered: false,
                    peer: Rc::clone(&self.peer),
                    piece: self.settings.send_piece,
                }))
            }
            Err(malformed) => {
                // Fails only if the peer has reset the stream meanwhile.
                let _ = respond.send_response(bare(StatusCode::BAD_REQUEST), true);
                Some(Err(malformed))
            }
        }
    }

    fn finish(&mut self, error: Option<TunnelError>) -> Poll<Option<Result<Exchange, Malformed>>> {
        self.ended = self.ended.take().or(error);
        self.close();
        Poll::Ready(None)
    }
}

type Accepted = (http::Request<RecvStream>, SendResponse<Piece>);

impl<T> Incoming<T> {
    fn close(&mut self) {
        drop(self.connection.take()); // tells the engine's streams that nothing will come
        self.inboxes.orphan();
    }
}

impl<T> Drop for Incoming<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> fmt::Debug for Incoming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

fn bare(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
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
    receive: Option<RecvStream>,
    respond: SendResponse<Piece>,
    inboxes: Rc<Inboxes>,
    backlog: Rc<Backlog>,
    unanswered: Rc<Unanswered>,
    answered: bool,
    peer: Rc<Peer>,
    piece: usize,
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
        // An error says the same: there is nobody to answer.
        let _ = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Answers 200 with `headers`: bytes may flow.
    ///
    /// # Errors
    /// `ConnectionReset` if the peer has given the request up, another kind if the tunnel failed.
    pub fn accept(mut self, headers: HeaderMap) -> std::io::Result<Stream> {
        let mut response = bare(StatusCode::OK);
        *response.headers_mut() = headers;
        let send = self
            .respond
            .send_response(response, false)
            .map_err(|error| stream_error(&error))?;
        self.settle();
        let receive = self.receive.take().ok_or_else(gone)?;
        let outgoing = Outgoing {
            send,
            left: self.backlog.stream(),
            piece: self.piece,
        };
        let lease = Rc::new(()) as Rc<dyn Lease>;
        Stream::new(outgoing, receive, &self.inboxes, lease).ok_or_else(gone)
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(mut self, status: StatusCode) {
        if self.respond.send_response(bare(status), true).is_ok() {
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

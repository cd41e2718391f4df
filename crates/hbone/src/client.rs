//! A tunnel that we dialled.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ambit_tls::Peer;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::{HeaderMap, Method};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::backlog::{Backlog, Piece};
use crate::error::{OpenError, TunnelError};
use crate::expiry;
use crate::inbox::Inboxes;
use crate::keepalive::Keepalive;
use crate::request::Request;
use crate::settings::{
    MAX_ERROR_RESETS, MAX_RESET_BEFORE_ACCEPT, POOL_STREAMS, SMALL_FRAME_ALLOWANCE, Settings,
};
use crate::stream::{Lease, Outgoing, Stream};
use crate::turn::Turn;

/// Starts HTTP/2 on a connection whose other end was verified.
///
/// Does not wait for the peer: streams may be opened at once. The [`Driver`] must be spawned on this
/// thread, and nothing moves without it.
///
/// # Errors
/// [`TunnelError`] if the connection broke.
pub async fn handshake<T>(
    io: T,
    peer: Peer,
    settings: &Settings,
) -> Result<(Tunnel, Driver<T>), TunnelError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let turn = Turn::new(io, 0, settings);
    let handle = turn.handle();
    let (send, mut connection) = engine(settings)
        .handshake::<_, Piece>(turn)
        .await
        .map_err(TunnelError::from_engine)?;
    let inboxes = Inboxes::new();
    let shared = Rc::new(Shared {
        inboxes,
        backlog: Rc::default(),
        expires: expiry::of(&peer),
        peer,
        settings: settings.clone(),
        streams: Cell::new(0),
        state: RefCell::new(State {
            ended: None,
            abort: None,
            probe: false,
            driver: None,
        }),
    });
    let keepalive = Keepalive::new(connection.ping_pong(), settings);
    let driver = Driver {
        connection: Some(connection),
        turn: handle,
        keepalive,
        shared: Rc::clone(&shared),
    };
    Ok((Tunnel { send, shared }, driver))
}

fn engine(settings: &Settings) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window(POOL_STREAMS))
        .max_frame_size(settings.max_frame)
        .max_header_list_size(settings.max_header_list)
        .max_send_buffer_size(settings.send_buffer)
        // What the peer allows is not known before its SETTINGS; the pool never asks for more.
        .initial_max_send_streams(POOL_STREAMS as usize)
        .max_pending_accept_reset_streams(MAX_RESET_BEFORE_ACCEPT)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .data_frame_budget(SMALL_FRAME_ALLOWANCE)
        .enable_push(false);
    builder
}

struct Shared {
    inboxes: Rc<Inboxes>,
    backlog: Rc<Backlog>,
    peer: Peer,
    /// When its certificate does.
    expires: Instant,
    settings: Settings,
    streams: Cell<u32>,
    state: RefCell<State>,
}

struct State {
    ended: Option<TunnelError>,
    abort: Option<&'static str>,
    /// The peer is to be asked for a sign of life.
    probe: bool,
    driver: Option<Waker>,
}

/// A handle on a connection that streams can be opened on. Cheap to clone.
///
/// The connection ends, in order, when the last handle and the last stream are dropped.
#[derive(Clone)]
pub struct Tunnel {
    send: SendRequest<Piece>,
    shared: Rc<Shared>,
}

/// An open stream and what the peer said when it accepted it.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: Stream,
    /// Headers of the answer, such as the destination's baggage.
    pub headers: HeaderMap,
}

impl Tunnel {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// Streams that are open or being opened.
    #[must_use]
    pub fn live_streams(&self) -> u32 {
        self.shared.streams.get()
    }

    /// Whether a stream can be opened: the connection lives, the peer did not say good-bye, and what it
    /// proved still holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let state = self.shared.state.borrow();
        let over = state.ended.is_some() || state.abort.is_some();
        if over || Instant::now() >= self.shared.expires {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        !matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Why the connection ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<TunnelError> {
        self.shared.state.borrow().ended.clone()
    }

    /// Ends the connection at once, with every stream on it.
    pub fn abort(&self, reason: &'static str) {
        let mut state = self.shared.state.borrow_mut();
        state.abort.get_or_insert(reason);
        if let Some(driver) = state.driver.take() {
            drop(state);
            driver.wake();
        }
    }

    /// Asks the peer for a sign of life now. Without one the connection ends within seconds, rather
    /// than after some quiet intervals. For a peer of which is said that it is gone.
    pub fn probe(&self) {
        let mut state = self.shared.state.borrow_mut();
        state.probe = true;
        if let Some(driver) = state.driver.take() {
            drop(state);
            driver.wake();
        }
    }

    /// Streams that the peer lets us have at once; a guess until its SETTINGS are here.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.send.current_max_send_streams()).unwrap_or(u32::MAX)
    }

    /// Takes a place on the tunnel for one stream.
    #[must_use]
    pub fn reserve(&self) -> Place {
        Place {
            tunnel: self.clone(),
            lease: Rc::new(Lived::new(&self.shared)),
        }
    }

    /// Opens a stream. Dropping the future gives the attempt up and resets the stream.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, request: Request) -> Result<Opened, OpenError> {
        self.reserve().open(request).await
    }

    async fn open_within(&self, request: Request, lease: Rc<Lived>) -> Result<Opened, OpenError> {
        let limit = self.shared.settings.open_timeout;
        match tokio::time::timeout(limit, self.negotiate(request, lease)).await {
            Ok(result) => result.map_err(|error| self.explain(error)),
            Err(_elapsed) => Err(OpenError::Timeout(limit)),
        }
    }

    async fn negotiate(&self, request: Request, lease: Rc<Lived>) -> Result<Opened, OpenError> {
        let head = head(request)?;
        let mut send = self
            .send
            .clone()
            .ready()
            .await
            .map_err(OpenError::from_engine)?;
        let (response, outgoing) = send
            .send_request(head, false)
            .map_err(OpenError::from_engine)?;
        drop(send); // the stream keeps the connection; this handle would keep it too long
        let (parts, incoming) = answer(response).await?;
        if !parts.status.is_success() {
            return Err(OpenError::Refused {
                status: parts.status,
                headers: parts.headers,
            });
        }
        let outgoing = Outgoing {
            send: outgoing,
            left: self.shared.backlog.stream(),
            piece: self.shared.settings.send_piece,
        };
        Stream::new(outgoing, incoming, &self.shared.inboxes, lease)
            .map(|stream| Opened {
                stream,
                headers: parts.headers,
            })
            .ok_or(OpenError::Invalid("too many streams"))
    }

    /// The engine says only that the connection is gone; the driver knows why.
    fn explain(&self, error: OpenError) -> OpenError {
        match (error, self.ended()) {
            (OpenError::Tunnel(_), Some(ended)) => OpenError::Tunnel(ended),
            (error, _) => error,
        }
    }
}

async fn answer(
    response: ResponseFuture,
) -> Result<(http::response::Parts, h2::RecvStream), OpenError> {
    let response = response.await.map_err(OpenError::from_engine)?;
    Ok(response.into_parts())
}

fn head(request: Request) -> Result<http::Request<()>, OpenError> {
    let mut head = http::Request::builder()
        .method(Method::CONNECT)
        .uri(request.authority.to_string())
        .body(())
        .map_err(|_| OpenError::Invalid("authority"))?;
    *head.headers_mut() = request.headers;
    Ok(head)
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("peer", &self.shared.peer)
            .field("streams", &self.shared.streams.get())
            .finish_non_exhaustive()
    }
}

/// A place on a tunnel, taken for one stream. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    tunnel: Tunnel,
    lease: Rc<Lived>,
}

impl Place {
    /// The tunnel it is on.
    #[must_use]
    pub fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Opens the stream. The place is taken until both halves of the stream are dropped.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(self, request: Request) -> Result<Opened, OpenError> {
        self.tunnel.open_within(request, self.lease).await
    }
}

/// Counts one stream of a tunnel for as long as it lives.
struct Lived {
    shared: Rc<Shared>,
}

impl Lived {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self {
            shared: Rc::clone(shared),
        }
    }
}

impl Lease for Lived {}

impl fmt::Debug for Lived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lived")
    }
}

impl Drop for Lived {
    fn drop(&mut self) {
        self.shared
            .streams
            .set(self.shared.streams.get().saturating_sub(1));
    }
}

/// Moves the tunnel's bytes. Ends when the connection does, with the reason if it was not orderly.
#[must_use = "a tunnel does nothing unless its driver is polled"]
pub struct Driver<T> {
    connection: Option<Connection<Turn<T>, Piece>>,
    turn: Turn<T>,
    keepalive: Keepalive,
    shared: Rc<Shared>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(Ok(()));
        };
        if let Some(reason) = self.shared.register(cx) {
            return Poll::Ready(Err(TunnelError::Closed(reason)));
        }
        if std::mem::take(&mut self.shared.state.borrow_mut().probe) {
            self.keepalive.probe(cx, self.turn.received());
        }
        self.turn.begin();
        self.shared.inboxes.begin(cx);
        let engine = Pin::new(connection).poll(cx);
        self.shared.inboxes.end();
        if let Err(error) = self.turn.end(cx) {
            return Poll::Ready(Err(TunnelError::from_io(&error)));
        }
        if let Poll::Ready(result) = engine {
            return Poll::Ready(result.map_err(TunnelError::from_engine));
        }
        self.keepalive
            .poll_dead(cx, self.turn.received())
            .map(|()| Err(TunnelError::Silent))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(self.turn(cx));
        Poll::Ready(self.finish(result))
    }
}

impl<T> Driver<T> {
    fn finish(&mut self, result: Result<(), TunnelError>) -> Result<(), TunnelError> {
        drop(self.connection.take()); // tells the engine's streams that nothing will come
        let cut = self.shared.inboxes.orphan();
        let result = match result {
            // The engine takes any end of the connection for an orderly one.
            Ok(()) if cut > 0 => Err(TunnelError::from_io(&ErrorKind::UnexpectedEof.into())),
            other => other,
        };
        let ended = result
            .clone()
            .err()
            .unwrap_or(TunnelError::Closed("in order"));
        self.shared.state.borrow_mut().ended.get_or_insert(ended);
        result
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        if self.connection.is_some() {
            // The reason is kept for the handles; there is nobody else to tell.
            let _ = self.finish(Err(TunnelError::Closed("driver dropped")));
        }
    }
}

impl<T> fmt::Debug for Driver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver(..)")
    }
}

impl Shared {
    /// Registers the driver for aborts; answers with the reason if one was asked for.
    fn register(&self, cx: &Context<'_>) -> Option<&'static str> {
        let mut state = self.state.borrow_mut();
        match &mut state.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        state.abort
    }
}

//! A tunnel that we dialled.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ambit_tls::Peer;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::drive::Drive;
use crate::engine::{Engine, Limits};
use crate::error::{OpenError, TunnelError};
use crate::expiry;
use crate::link::Link;
use crate::request::Request;
use crate::settings::{POOL_STREAMS, Settings};
use crate::stream::{Lease, Stream};

/// Starts HTTP/2 on a connection whose other end was verified.
///
/// Does not wait for the peer: streams may be opened at once. The [`Driver`] must be spawned on this
/// thread, and nothing moves without it.
///
/// # Errors
/// None: whatever is wrong with the connection shows at the driver.
pub async fn handshake<T>(
    io: T,
    peer: Peer,
    settings: &Settings,
) -> Result<(Tunnel, Driver<T>), TunnelError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let engine = Engine::client(Limits::new(settings, POOL_STREAMS));
    let shared = Rc::new(Shared {
        link: Link::new(engine),
        expires: expiry::of(&peer),
        peer,
        settings: settings.clone(),
        streams: Cell::new(0),
        handles: Cell::new(0),
        state: RefCell::default(),
    });
    let driver = Driver {
        drive: Some(Drive::new(io, Rc::clone(&shared.link), settings)),
        shared: Rc::clone(&shared),
    };
    Ok((Tunnel::new(&shared), driver))
}

struct Shared {
    link: Rc<Link>,
    peer: Peer,
    /// When its certificate does.
    expires: Instant,
    settings: Settings,
    streams: Cell<u32>,
    /// Handles on the tunnel.
    handles: Cell<u32>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    ended: Option<TunnelError>,
    abort: Option<&'static str>,
    /// The peer is to be asked for a sign of life.
    probe: bool,
}

/// A handle on a connection that streams can be opened on. Cheap to clone.
///
/// The connection ends, in order, when the last handle and the last stream are dropped.
pub struct Tunnel {
    shared: Rc<Shared>,
}

/// An open stream and what the peer said when it accepted it.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: Stream,
    /// Headers of the answer, such as the destination's baggage.
    pub headers: HeaderMap,
    /// How many of the early bytes went with the request.
    pub early: usize,
}

impl Tunnel {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.handles.set(shared.handles.get() + 1);
        Self {
            shared: Rc::clone(shared),
        }
    }

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
        self.shared.link.look(Engine::takes_streams)
    }

    /// Why the connection ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<TunnelError> {
        self.shared.state.borrow().ended.clone()
    }

    /// Ends the connection at once, with every stream on it.
    pub fn abort(&self, reason: &'static str) {
        self.shared.state.borrow_mut().abort.get_or_insert(reason);
        self.shared.link.wake_driver();
    }

    /// Asks the peer for a sign of life now. Without one the connection ends within seconds, rather
    /// than after some quiet intervals. For a peer of which is said that it is gone.
    pub fn probe(&self) {
        self.shared.state.borrow_mut().probe = true;
        self.shared.link.wake_driver();
    }

    /// Streams that the peer lets us have at once; a guess until its SETTINGS are here.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.shared.link.look(Engine::capacity)
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

    async fn open_within(
        &self,
        request: Request,
        early: Bytes,
        lease: Rc<Lived>,
    ) -> Result<Opened, OpenError> {
        let limit = self.shared.settings.open_timeout;
        match tokio::time::timeout(limit, self.negotiate(request, early, lease)).await {
            Ok(result) => result.map_err(|error| self.explain(error)),
            Err(_elapsed) => Err(OpenError::Timeout(limit)),
        }
    }

    async fn negotiate(
        &self,
        request: Request,
        mut early: Bytes,
        lease: Rc<Lived>,
    ) -> Result<Opened, OpenError> {
        let link = &self.shared.link;
        let authority = request.authority.to_string();
        let opening = poll_fn(|cx| link.poll_open(cx, &authority, &request.headers));
        let Some((reader, writer)) = opening.await else {
            return Err(self.closed());
        };
        if !early.is_empty() {
            let room = poll_fn(|cx| Poll::Ready(writer.poll_room(cx, early.len()))).await;
            // What there is no room for, or a stream that has failed already, is seen when the answer is there.
            early.truncate(if let Poll::Ready(Ok(room)) = room {
                room
            } else {
                0
            });
            if !early.is_empty() {
                writer.send(early.clone());
            }
        }
        let answer = poll_fn(|cx| reader.poll_answer(cx)).await;
        let answer = answer.map_err(OpenError::from_failure)?;
        let status = answer.status.unwrap_or(StatusCode::BAD_GATEWAY);
        if !status.is_success() {
            return Err(OpenError::Refused {
                status,
                headers: answer.headers,
            });
        }
        Ok(Opened {
            stream: Stream::new(reader, writer, Some(lease)),
            headers: answer.headers,
            early: early.len(),
        })
    }

    /// Why no stream can be opened any more.
    fn closed(&self) -> OpenError {
        if self.shared.link.look(Engine::is_over) {
            OpenError::Tunnel(TunnelError::Closed("gone"))
        } else {
            OpenError::NotAccepted
        }
    }

    /// A stream knows only that the connection is gone; the driver knows why.
    fn explain(&self, error: OpenError) -> OpenError {
        match (error, self.ended()) {
            (OpenError::Tunnel(_), Some(ended)) => OpenError::Tunnel(ended),
            (error, _) => error,
        }
    }
}

impl Clone for Tunnel {
    fn clone(&self) -> Self {
        Self::new(&self.shared)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let left = self.shared.handles.get() - 1;
        self.shared.handles.set(left);
        if left == 0 {
            self.shared.link.wake_driver();
        }
    }
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
        self.open_early(request, Bytes::new()).await
    }

    /// The same, and sends what there is room for of `early` without waiting for the answer. A peer that refuses the
    /// request throws that away (RFC 9110 section 9.3.6: there is no tunnel before a 2xx), so it may be sent again to another one.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_early(self, request: Request, early: Bytes) -> Result<Opened, OpenError> {
        self.tunnel.open_within(request, early, self.lease).await
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
    drive: Option<Drive<T>>,
    shared: Rc<Shared>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let Some(drive) = &mut self.drive else {
            return Poll::Ready(Ok(()));
        };
        let (abort, probe) = {
            let mut state = self.shared.state.borrow_mut();
            (state.abort, std::mem::take(&mut state.probe))
        };
        if let Some(reason) = abort {
            return Poll::Ready(Err(TunnelError::Closed(reason)));
        }
        if probe {
            drive.probe();
        }
        let mut turned = drive.poll_turn(cx);
        if turned.is_pending() && self.shared.is_done() {
            drive.finish();
            turned = drive.poll_turn(cx);
        }
        if let Some(error) = drive.failure() {
            let mut state = self.shared.state.borrow_mut();
            state.ended.get_or_insert_with(|| error.clone());
        }
        turned
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(self.poll_turn(cx));
        self.finish(&result);
        Poll::Ready(result)
    }
}

impl<T> Driver<T> {
    fn finish(&mut self, result: &Result<(), TunnelError>) {
        let ended = result.clone().err();
        let ended = ended.unwrap_or(TunnelError::Closed("in order"));
        self.shared.state.borrow_mut().ended.get_or_insert(ended);
        drop(self.drive.take()); // tells the streams that nothing will come
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        if self.drive.is_some() {
            // The reason is kept for the handles; there is nobody else to tell.
            self.finish(&Err(TunnelError::Closed("driver dropped")));
        }
    }
}

impl<T> fmt::Debug for Driver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver(..)")
    }
}

impl Shared {
    /// Whether nothing is left to do: no stream is open, and none will be.
    fn is_done(&self) -> bool {
        let (open, left) = self
            .link
            .look(|engine| (engine.open_streams(), engine.left().is_some()));
        open == 0 && (left || self.handles.get() == 0)
    }
}

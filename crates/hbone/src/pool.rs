//! Which tunnel a new stream goes on.
//!
//! # Theory of operation
//! One pool for each data thread. Streams of one source to one next hop, with the same certificate
//! and the same expectations, share tunnels; nobody else shares them. A stream takes the oldest
//! tunnel with a free place, so that tunnels beyond the need fall idle and are closed. Without a free
//! place it joins a dial in flight, and starts one only when every dial in flight already has as many
//! waiters as a tunnel has places.
//!
//! # Invariants
//! - A dial runs in a task of its own: a waiter that goes away takes nobody with it. A dial that
//!   nobody has waited for during [`ABANDONED`] is given up.
//! - Whatever ends a dial, every one of its waiters hears of it.
//! - Waiters, tunnels of a key and streams of a tunnel are bounded.

mod entry;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use ambit_model::identity::Identity;
use ambit_model::text::Text;
use ambit_runtime::tasks::spawn_local;
use ambit_tls::Peer;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::client::{Place, Tunnel};
use crate::settings::POOL_STREAMS;

use entry::{Entry, Seat};

/// How long a dial goes on with nobody waiting: whoever comes within a second finds it further on,
/// which is what lets a client get through that tries again too soon. A dial to somebody who never
/// answers would otherwise hold its socket for many more.
const ABANDONED: Duration = Duration::from_secs(1);

/// What must be equal for two streams to share a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Uid of the workload that the stream comes from.
    pub source: Text,
    /// Whose certificate is presented.
    pub identity: Identity,
    /// Which of its certificates (`Svid::generation`): a renewed one gets new tunnels.
    pub generation: u64,
    /// Uid of the workload at the tunnel's end.
    pub destination: Text,
    /// The address dialled.
    pub next_hop: SocketAddr,
    /// Who may answer there.
    pub expected: SmallVec<[Identity; 2]>,
}

/// Bounds of a pool.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Streams on one tunnel, unless its peer allows fewer.
    pub streams: u32,
    /// Tunnels of one key, those being dialled included.
    pub tunnels: usize,
    /// Streams waiting for dials, over all keys.
    pub waiting: usize,
    /// A tunnel without streams is kept this long.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: POOL_STREAMS,
            // 6,400 streams from one workload to one other on each thread.
            tunnels: 64,
            // Each costs about 200 bytes here, and its own connection's task elsewhere.
            waiting: 8192,
            // Long enough for clients that call every minute, and a tunnel costs tens of KiB.
            idle: Duration::from_secs(90),
        }
    }
}

/// Why no place could be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CheckoutError<E> {
    /// The dial failed.
    #[error("tunnel could not be opened")]
    Dial(E),
    /// A bound of the pool is reached.
    #[error("too many streams to this destination")]
    Overloaded,
    /// The key was closed while the dial was in flight.
    #[error("destination was closed")]
    Closed,
}

/// The tunnels of one thread. Cheap to clone; all clones are the same pool.
pub struct Pool<E> {
    shared: Rc<Shared<E>>,
}

struct Shared<E> {
    limits: Limits,
    entries: RefCell<HashMap<Key, Entry<E>>>,
    /// Streams waiting for dials.
    waiting: Cell<usize>,
    /// Number of the next dial.
    next: Cell<u64>,
}

impl<E: Clone + 'static> Pool<E> {
    /// An empty pool.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            shared: Rc::new(Shared {
                limits,
                entries: RefCell::default(),
                waiting: Cell::new(0),
                next: Cell::new(0),
            }),
        }
    }

    /// A place for one stream: on a tunnel that is there, or on one that is being or will be dialled.
    ///
    /// `dial` must answer in bounded time, and spawn the tunnel's driver on this thread. It is called
    /// only if this caller is the one to dial.
    ///
    /// # Errors
    /// See [`CheckoutError`].
    pub async fn checkout<F>(
        &self,
        key: &Key,
        dial: impl FnOnce() -> F,
    ) -> Result<Place, CheckoutError<E>>
    where
        F: Future<Output = Result<Tunnel, E>> + 'static,
    {
        let seat = self.shared.seat(key);
        let waiter = match seat {
            Seat::Free(place) => return Ok(place),
            Seat::Full => return Err(CheckoutError::Overloaded),
            Seat::Join(waiter) => waiter,
            Seat::Dial(number, waiter) => {
                self.start(key.clone(), number, dial());
                waiter
            }
        };
        let _waiting = Waiting::new(&self.shared.waiting);
        // The end of a dial always answers. Without an answer its task was dropped or panicked.
        waiter.await.unwrap_or(Err(CheckoutError::Closed))
    }

    /// Dials in a task of its own and answers whoever waits then.
    fn start<F>(&self, key: Key, number: u64, dial: F)
    where
        F: Future<Output = Result<Tunnel, E>> + 'static,
    {
        let end = DialEnd {
            shared: Rc::downgrade(&self.shared),
            key,
            number,
        };
        // The task ends by itself: a dial answers in bounded time.
        drop(spawn_local(
            "tunnel dial",
            Box::pin(async move {
                let result = tokio::select! {
                    biased;
                    result = dial => result,
                    () = end.abandoned() => return,
                };
                end.settle(&result);
            }),
        ));
    }

    /// No new streams on the tunnels of the keys that match; those that live go on.
    pub fn retire(&self, matches: impl Fn(&Key) -> bool) {
        for (_, entry) in self
            .shared
            .entries
            .borrow_mut()
            .iter_mut()
            .filter(|(key, _)| matches(key))
        {
            entry.retire();
        }
    }

    /// As [`retire`](Self::retire), for destinations that are said to be gone: tunnels without streams
    /// end now, and the others within seconds if their peer gives no sign of life.
    pub fn forsake(&self, matches: impl Fn(&Key) -> bool) {
        let now = Instant::now();
        let idle = self.shared.limits.idle;
        self.shared.entries.borrow_mut().retain(|key, entry| {
            if !matches(key) {
                return true;
            }
            entry.forsake();
            entry.sweep(now, idle)
        });
    }

    /// Ends the tunnels of the keys that match at once, with their streams; dials in flight come to
    /// nothing.
    pub fn close(&self, reason: &'static str, matches: impl Fn(&Key) -> bool) {
        let closed: Vec<Entry<E>> = {
            let mut entries = self.shared.entries.borrow_mut();
            entries
                .extract_if(|key, _| matches(key))
                .map(|(_, entry)| entry)
                .collect()
        };
        for entry in closed {
            entry.close(reason);
        }
    }

    /// Ends the tunnels whose peer matches at once, with their streams. Answers how many.
    pub fn end(&self, reason: &'static str, matches: impl Fn(&Peer) -> bool) -> usize {
        let entries = self.shared.entries.borrow();
        entries
            .values()
            .map(|entry| entry.end(reason, &matches))
            .sum()
    }

    /// Lets go of tunnels that ended, that their peer is leaving, or that had no stream for the idle
    /// time. The last of their handles gone, they end in order.
    pub fn sweep(&self, now: Instant) {
        let limits = &self.shared.limits;
        self.shared
            .entries
            .borrow_mut()
            .retain(|_, entry| entry.sweep(now, limits.idle));
    }

    /// Sweeps for as long as a pool exists. To be spawned on its thread.
    pub fn sweeper(&self) -> impl Future<Output = ()> + 'static {
        let pool = Rc::downgrade(&self.shared);
        // An idle tunnel lives at most this much longer than it should.
        let period = self.shared.limits.idle / 4;
        async move {
            loop {
                tokio::time::sleep(period).await;
                let Some(shared) = pool.upgrade() else { return };
                Self { shared }.sweep(Instant::now());
            }
        }
    }

    /// What is in the pool, for people to look at.
    #[must_use]
    pub fn contents(&self) -> Vec<Contents> {
        let entries = self.shared.entries.borrow();
        entries
            .iter()
            .map(|(key, entry)| Contents {
                key: key.clone(),
                streams: entry.streams(),
                dials: entry.dials(),
            })
            .collect()
    }
}

/// One key's part of a pool.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The key.
    pub key: Key,
    /// Streams of each tunnel.
    pub streams: Vec<u32>,
    /// Dials in flight.
    pub dials: usize,
}

impl<E: Clone> Shared<E> {
    fn seat(&self, key: &Key) -> Seat<E> {
        let mut entries = self.entries.borrow_mut();
        if !entries.contains_key(key) {
            entries.insert(key.clone(), Entry::default());
        }
        let Some(entry) = entries.get_mut(key) else {
            return Seat::Full;
        };
        if let Some(place) = entry.place(self.limits.streams) {
            return Seat::Free(place);
        }
        if self.waiting.get() >= self.limits.waiting {
            return Seat::Full;
        }
        let number = self.next.get();
        self.next.set(number + 1);
        entry.wait(number, &self.limits)
    }
}

/// The end of one dial. Dropped without [`DialEnd::settle`] (a panic, the thread's end), it takes the
/// dial out, and its waiters find their answer missing.
struct DialEnd<E: Clone> {
    shared: Weak<Shared<E>>,
    key: Key,
    number: u64,
}

impl<E: Clone> DialEnd<E> {
    /// Ends when nobody has waited for a while.
    async fn abandoned(&self) {
        loop {
            poll_fn(|cx| self.poll_abandoned(cx)).await;
            tokio::time::sleep(ABANDONED).await;
            if poll_fn(|cx| Poll::Ready(self.poll_abandoned(cx).is_ready())).await {
                return;
            }
        }
    }

    fn poll_abandoned(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(shared) = self.shared.upgrade() else {
            return Poll::Ready(());
        };
        let mut entries = shared.entries.borrow_mut();
        match entries.get_mut(&self.key) {
            Some(entry) => entry.poll_abandoned(self.number, cx),
            None => Poll::Ready(()),
        }
    }

    fn settle(self, result: &Result<Tunnel, E>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let dial = {
            let mut entries = shared.entries.borrow_mut();
            let Some(entry) = entries.get_mut(&self.key) else {
                return;
            };
            let Some(dial) = entry.take_dial(self.number) else {
                return;
            };
            if let Ok(tunnel) = result {
                entry.add(tunnel.clone(), Instant::now());
            }
            dial
        };
        dial.answer(result, shared.limits.streams);
    }
}

impl<E: Clone> Drop for DialEnd<E> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut entries = shared.entries.borrow_mut();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.take_dial(self.number);
            if entry.is_empty() {
                entries.remove(&self.key);
            }
        }
    }
}

/// Counts one waiter for as long as it waits.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl<E> Clone for Pool<E> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
        }
    }
}

impl<E> fmt::Debug for Pool<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

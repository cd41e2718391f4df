//! What arrived for each stream of a connection and was not read yet.
//!
//! # Theory of operation
//! The engine keeps arrived frames until they are taken, each with its own bookkeeping, and charges
//! small ones to an allowance of the whole connection. So the driver takes them at once: the engine's
//! notice "stream has data" sets a bit in [`Arrivals`], and after its turn the driver empties the
//! engine's queue of each marked stream into that stream's [`Inbox`]. There, pieces that are small
//! and cannot be read at once are joined, so that memory stays in proportion to bytes.
//!
//! # Invariants
//! - All inboxes of a thread together hold at most [`HELD`], and [`STANDING`] for each: beyond that a
//!   stream whose reader stands is ended.
//! - An inbox holds at most its stream's window, because credit is given back only by [`Inbox::take`]
//!   of the *next* piece, and by dropping the inbox.
//! - A slot belongs to one stream until its reader is dropped.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use h2::RecvStream;
use slab::Slab;

use crate::error::{gone, stream_error, wants_no_more};

/// Streams one connection can have at this end, ended ones whose readers are still here included.
/// Five times the most that a peer may have open at once.
pub(crate) const MAX_SLOTS: usize = 1024;

/// Pieces below this are joined when they have to wait: each piece on its own costs 32 bytes here and
/// may hold a whole receive buffer of the engine alive.
const SMALL: usize = 2048;

/// Joined pieces are passed on when they reach this size.
const JOINED: usize = 16 * 1024;

/// Bytes that all streams of one thread may have waiting for their readers: 256 readers that stand
/// still with a full window each. A peer gets a window for each stream it opens, on as many
/// connections as it makes, so this is what ends an attack by streams that nobody reads.
const HELD: usize = 256 * 1024 * 1024;

/// A stream that has no more than this waiting goes on when the thread has no room: it is not the
/// cause, and small ones are all that many honest streams are.
const STANDING: usize = 64 * 1024;

thread_local! {
    /// Bytes waiting for readers of this thread.
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// Which streams the engine has something for.
pub(crate) struct Arrivals {
    marked: [AtomicU64; MAX_SLOTS / 64],
    /// The driver is inside its turn and will look anyway.
    in_turn: AtomicBool,
    driver: AtomicWaker,
}

/// The engine's notice for one slot.
struct Notice {
    arrivals: Arc<Arrivals>,
    slot: usize,
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(word) = self.arrivals.marked.get(self.slot / 64) {
            word.fetch_or(1 << (self.slot % 64), Ordering::AcqRel);
        }
        if !self.arrivals.in_turn.load(Ordering::Acquire) {
            self.arrivals.driver.wake();
        }
    }
}

/// The inboxes of one connection.
pub(crate) struct Inboxes {
    slots: RefCell<Slab<Rc<Inbox>>>,
    /// One notice for each slot ever used, kept for the next stream in that slot.
    notices: RefCell<Vec<Waker>>,
    arrivals: Arc<Arrivals>,
    /// The driver is gone: readers look into the engine's queues themselves.
    orphaned: Cell<bool>,
}

impl Inboxes {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            slots: RefCell::new(Slab::new()),
            notices: RefCell::new(Vec::new()),
            arrivals: Arc::new(Arrivals {
                marked: [const { AtomicU64::new(0) }; MAX_SLOTS / 64],
                in_turn: AtomicBool::new(false),
                driver: AtomicWaker::new(),
            }),
            orphaned: Cell::new(false),
        })
    }

    /// Takes over the receiving half of a new stream. `None` if there are too many.
    pub(crate) fn add(self: &Rc<Self>, receive: RecvStream) -> Option<Rc<Inbox>> {
        let mut slots = self.slots.borrow_mut();
        if slots.len() >= MAX_SLOTS {
            return None;
        }
        let entry = slots.vacant_entry();
        let notice = self.notice(entry.key());
        let inbox = Rc::new(Inbox {
            slot: entry.key(),
            notice,
            arrived: RefCell::new(Arrived {
                receive,
                first: Bytes::new(),
                more: VecDeque::new(),
                joined: BytesMut::new(),
                waiting: 0,
                lent: 0,
                end: None,
                reader: None,
                overflowed: false,
                writer: None,
            }),
        });
        entry.insert(Rc::clone(&inbox));
        drop(slots);
        inbox.collect(); // what came with the first frames, and the registration of the notice
        Some(inbox)
    }

    fn notice(&self, slot: usize) -> Waker {
        let mut notices = self.notices.borrow_mut();
        while notices.len() <= slot {
            let notice = Notice {
                arrivals: Arc::clone(&self.arrivals),
                slot: notices.len(),
            };
            notices.push(Waker::from(Arc::new(notice)));
        }
        notices
            .get(slot)
            .cloned()
            .unwrap_or_else(|| Waker::noop().clone())
    }

    /// The reader is gone.
    pub(crate) fn remove(&self, inbox: &Inbox) {
        self.slots.borrow_mut().try_remove(inbox.slot);
    }

    /// The driver begins a turn of the engine.
    pub(crate) fn begin(&self, cx: &Context<'_>) {
        self.arrivals.driver.register(cx.waker());
        self.arrivals.in_turn.store(true, Ordering::Release);
    }

    /// The driver ends a turn: every stream that something arrived for gets it.
    pub(crate) fn end(&self) {
        self.arrivals.in_turn.store(false, Ordering::Release);
        for (index, word) in self.arrivals.marked.iter().enumerate() {
            if word.load(Ordering::Acquire) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let slot = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let inbox = self.slots.borrow().get(slot).cloned();
                if let Some(inbox) = inbox {
                    inbox.collect();
                }
            }
        }
    }

    /// The driver is gone: every reader learns of it. Answers how many streams had not ended.
    pub(crate) fn orphan(&self) -> usize {
        self.orphaned.set(true);
        self.arrivals.in_turn.store(false, Ordering::Release);
        let inboxes: Vec<_> = self
            .slots
            .borrow()
            .iter()
            .map(|(_, inbox)| Rc::clone(inbox))
            .collect();
        let cut = inboxes.iter().filter(|inbox| inbox.is_cut()).count();
        for inbox in inboxes {
            inbox.collect();
            inbox.fail(gone());
        }
        cut
    }

    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.get()
    }
}

/// What arrived for one stream.
pub(crate) struct Inbox {
    slot: usize,
    notice: Waker,
    arrived: RefCell<Arrived>,
}

struct Arrived {
    receive: RecvStream,
    /// The first piece, empty if there is none: mostly there is one at a time, and a queue would take room for four.
    first: Bytes,
    /// The pieces after it.
    more: VecDeque<Bytes>,
    /// Small pieces that arrived after those.
    joined: BytesMut,
    /// Bytes in all of them.
    waiting: usize,
    /// Bytes that the reader took last and was not credited for.
    lent: usize,
    end: Option<End>,
    reader: Option<Waker>,
    /// It was ended here, because its reader stood and the thread had no room.
    overflowed: bool,
    /// The stream's other half, which ends the stream towards its peer then.
    writer: Option<Waker>,
}

/// How a stream's receiving half ended.
enum End {
    Finished,
    /// Told once in full; afterwards only its kind is left to tell.
    Failed(io::ErrorKind, Option<io::Error>),
}

fn waiting() -> usize {
    WAITING.try_with(Cell::get).unwrap_or_default()
}

fn no_room() -> io::Error {
    io::Error::new(
        io::ErrorKind::OutOfMemory,
        "reader stands still, and there is no room for more of what it does not read",
    )
}

impl Inbox {
    /// The next piece; `None` at the end of the stream.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        inboxes: &Inboxes,
    ) -> Poll<io::Result<Option<Bytes>>> {
        let mut arrived = self.arrived.borrow_mut();
        arrived.credit();
        if arrived.waiting == 0 && arrived.end.is_none() && inboxes.is_orphaned() {
            arrived.collect(&self.notice);
            arrived.end.get_or_insert(End::Failed(gone().kind(), None));
        }
        if let Some(piece) = arrived.next() {
            return Poll::Ready(Ok(Some(piece)));
        }
        match &mut arrived.end {
            Some(End::Finished) => Poll::Ready(Ok(None)),
            Some(End::Failed(kind, told)) => {
                Poll::Ready(Err(told.take().unwrap_or_else(|| (*kind).into())))
            }
            None => {
                arrived.wait(cx);
                Poll::Pending
            }
        }
    }

    /// Ready when the stream was ended here for want of room. Its reader may stand for ever, so the
    /// other half has to tell the peer.
    pub(crate) fn poll_overflow(&self, cx: &Context<'_>) -> Poll<io::Error> {
        let mut arrived = self.arrived.borrow_mut();
        if arrived.overflowed {
            return Poll::Ready(no_room());
        }
        arrived.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether the peer has ended its sending: what it sent is whole, and a reset that comes later
    /// takes nothing of it back.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.arrived.borrow().end, Some(End::Finished))
    }

    /// Whether the connection's end is also this stream's: it neither ended nor was reset.
    fn is_cut(&self) -> bool {
        match self.arrived.borrow().end {
            None => true,
            Some(End::Finished) => false,
            Some(End::Failed(kind, _)) => kind != io::ErrorKind::ConnectionReset,
        }
    }

    /// Takes what the engine has, and wakes the reader if there is news for it.
    fn collect(&self) {
        let (reader, writer) = {
            let mut arrived = self.arrived.borrow_mut();
            let news = arrived.collect(&self.notice);
            let overflowed = arrived.overflowed;
            (
                arrived.reader.take_if(|_| news),
                arrived.writer.take_if(|_| overflowed),
            )
        };
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }

    fn fail(&self, error: io::Error) {
        let mut arrived = self.arrived.borrow_mut();
        arrived
            .end
            .get_or_insert_with(|| End::Failed(error.kind(), Some(error)));
        let reader = arrived.reader.take();
        drop(arrived);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Arrived {
    /// Empties the engine's queue for this stream. True if there is news for the reader.
    fn collect(&mut self, notice: &Waker) -> bool {
        let mut news = false;
        let mut cx = Context::from_waker(notice);
        while self.end.is_none() || self.overflowed {
            match self.receive.poll_data(&mut cx) {
                Poll::Pending => break,
                // Gone at once, and credited with the rest at the end.
                Poll::Ready(Some(Ok(piece))) if self.overflowed => self.lent += piece.len(),
                Poll::Ready(_) if self.overflowed => break,
                Poll::Ready(Some(Ok(piece))) => self.put(piece),
                Poll::Ready(None) => self.end = Some(End::Finished),
                // The end and this reset may arrive in one turn, and then hide each other.
                Poll::Ready(Some(Err(error))) if wants_no_more(&error) => {
                    self.end = Some(End::Finished);
                }
                Poll::Ready(Some(Err(error))) => {
                    let error = stream_error(&error);
                    self.end = Some(End::Failed(error.kind(), Some(error)));
                }
            }
            news = true;
        }
        news
    }

    fn put(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        let alone = self.waiting == 0;
        self.count(self.waiting + piece.len());
        if self.waiting > STANDING && waiting() > HELD {
            self.lent += piece.len();
            self.overflow();
            return;
        }
        if piece.len() < SMALL && !alone {
            self.joined.extend_from_slice(&piece);
            if self.joined.len() >= JOINED {
                self.close_joined();
            }
        } else {
            self.close_joined();
            self.push(piece);
        }
    }

    /// Sets the number of bytes waiting, for the thread too.
    fn count(&mut self, now: usize) {
        let before = std::mem::replace(&mut self.waiting, now);
        // When the thread is ending nobody asks any more.
        let _ = WAITING.try_with(|all| {
            all.set(all.get().saturating_add(now).saturating_sub(before));
        });
    }

    /// Ends the stream and lets go of what was waiting.
    fn overflow(&mut self) {
        let gone: usize = self.more.iter().map(Bytes::len).sum();
        self.lent += self.first.len() + gone + self.joined.len();
        self.first = Bytes::new();
        self.more = VecDeque::new();
        self.joined = BytesMut::new();
        self.count(0);
        let error = no_room();
        self.end = Some(End::Failed(error.kind(), Some(error)));
        self.overflowed = true;
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            // Nothing stays behind: what is left of the buffer would be held by a stream that may idle from here on.
            let piece = std::mem::take(&mut self.joined).freeze();
            self.push(piece);
        }
    }

    /// Adds a piece, which is not empty.
    fn push(&mut self, piece: Bytes) {
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.more.push_back(piece);
        }
    }

    fn next(&mut self) -> Option<Bytes> {
        if self.first.is_empty() {
            self.close_joined();
        }
        let second = self.more.pop_front();
        if second.is_some() && self.more.is_empty() {
            self.more = VecDeque::new(); // a burst is over: an idle stream holds no queue
        }
        let piece = std::mem::replace(&mut self.first, second.unwrap_or_default());
        if piece.is_empty() {
            return None;
        }
        self.count(self.waiting - piece.len());
        self.lent = piece.len();
        Some(piece)
    }

    /// The reader is done with what it took last: the peer may send as much again.
    fn credit(&mut self) {
        if self.lent > 0 {
            // Fails only if more is given back than was received, which `lent` cannot be.
            let _ = self.receive.flow_control().release_capacity(self.lent);
            self.lent = 0;
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

impl Drop for Arrived {
    /// What nobody will read is credited to the connection, or its window would shrink for good.
    fn drop(&mut self) {
        self.lent += self.waiting;
        self.count(0);
        self.credit();
    }
}

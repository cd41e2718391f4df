//! A connection as its driver and its streams share it, on one thread.
//!
//! # Theory of operation
//! The [`Engine`] decides everything; here is who is to be woken. Streams change the engine through their halves and wake the driver
//! if that left something to write, once until its next turn. The driver changes it in its turns, and then wakes the streams that
//! there is news for.
//!
//! # Invariants
//! - No borrow is held while somebody is woken, or while the transport is asked.
//! - Whoever got "not yet" left a waker before, in the same borrow as the answer was given under.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http::HeaderMap;
use smallvec::SmallVec;

use crate::backlog::Backlog;
use crate::engine::{Engine, Message};
use crate::halves::{Reader, Writer};

/// One connection, but for its transport.
pub(crate) struct Link {
    engine: RefCell<Engine>,
    /// Who waits for each slot of the engine.
    ears: RefCell<Vec<Ears>>,
    /// Who waits to open a stream.
    openers: RefCell<Vec<Waker>>,
    driver: RefCell<Option<Waker>>,
    /// The driver was woken, or needs not be: it will look by itself.
    awake: Cell<bool>,
    backlog: Backlog,
}

#[derive(Default)]
struct Ears {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Which half of a stream waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Reader,
    Writer,
}

/// Wakers that are about to be woken.
type Wakes = SmallVec<[Waker; 8]>;

impl Link {
    pub(crate) fn new(engine: Engine) -> Rc<Self> {
        Rc::new(Self {
            engine: RefCell::new(engine),
            ears: RefCell::default(),
            openers: RefCell::default(),
            driver: RefCell::default(),
            awake: Cell::new(false),
            backlog: Backlog::default(),
        })
    }

    /// Looks at the engine.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Engine) -> R) -> R {
        look(&self.engine.borrow())
    }

    /// Changes the engine, and wakes whoever that concerns.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Engine) -> R) -> R {
        let (result, news, output) = {
            let mut engine = self.engine.borrow_mut();
            let result = change(&mut engine);
            self.backlog.count(engine.holds());
            (result, engine.has_news(), engine.has_output())
        };
        if news {
            self.announce();
        }
        if output {
            self.nudge();
        }
        result
    }

    /// Changes the engine in the driver's own turn, which ends with [`Link::announce`].
    pub(crate) fn drive<R>(&self, change: impl FnOnce(&mut Engine) -> R) -> R {
        let mut engine = self.engine.borrow_mut();
        engine.hold_at_most(self.backlog.most_held());
        let result = change(&mut engine);
        self.backlog.count(engine.holds());
        result
    }

    /// Wakes whoever there is news for.
    pub(crate) fn announce(&self) {
        let mut wakes = Wakes::new();
        {
            let mut engine = self.engine.borrow_mut();
            let mut ears = self.ears.borrow_mut();
            while let Some((slot, reader, writer)) = engine.news() {
                if let Some(ears) = ears.get_mut(slot) {
                    wakes.extend(ears.reader.take_if(|_| reader));
                    wakes.extend(ears.writer.take_if(|_| writer));
                }
            }
            if engine.opened_up() {
                wakes.extend(self.openers.borrow_mut().drain(..));
            }
        }
        for waker in wakes {
            waker.wake();
        }
    }

    /// The driver begins a turn.
    pub(crate) fn begin(&self, cx: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        match &mut *driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.awake.set(true);
    }

    /// The driver ends a turn; `awake` says that it will look by itself when something can be written again.
    pub(crate) fn finish(&self, awake: bool) {
        self.awake.set(awake);
    }

    /// There is no driver any more: what its streams ask for has failed, and its waker would keep its task.
    pub(crate) fn abandon(&self) {
        self.change(|engine| engine.end(None));
        let driver = self.driver.borrow_mut().take();
        drop(driver);
    }

    /// Wakes the driver, unless it was woken since its last turn.
    pub(crate) fn nudge(&self) {
        if !self.awake.replace(true) {
            self.wake_driver();
        }
    }

    /// Wakes the driver for more than something to write.
    pub(crate) fn wake_driver(&self) {
        let driver = self.driver.borrow().clone();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Leaves a waker for one half of a stream.
    pub(crate) fn listen(&self, slot: usize, half: Half, cx: &Context<'_>) {
        let mut ears = self.ears.borrow_mut();
        if ears.len() <= slot {
            ears.resize_with(slot + 1, Ears::default);
        }
        let Some(ears) = ears.get_mut(slot) else {
            return;
        };
        match ears.of(half) {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Nobody listens any more: a waker would keep its task.
    pub(crate) fn forget(&self, slot: usize, half: Half) {
        let mut ears = self.ears.borrow_mut();
        let waker = ears.get_mut(slot).and_then(|ears| ears.of(half).take());
        drop(ears);
        drop(waker);
    }

    /// Opens a stream as soon as there is room for one. `None` when there will be no more.
    pub(crate) fn poll_open(
        self: &Rc<Self>,
        cx: &Context<'_>,
        authority: &str,
        headers: &HeaderMap,
    ) -> Poll<Option<(Reader, Writer)>> {
        let (takes, can) = self.look(|engine| (engine.takes_streams(), engine.can_open()));
        if !takes {
            return Poll::Ready(None);
        }
        if !can {
            let mut openers = self.openers.borrow_mut();
            if !openers.iter().any(|opener| opener.will_wake(cx.waker())) {
                openers.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let slot = self.change(|engine| engine.open(authority, headers));
        Poll::Ready(Some(self.halves(slot)))
    }

    /// The next request of the peer's.
    pub(crate) fn next_request(self: &Rc<Self>) -> Option<(Message, Reader, Writer)> {
        let (slot, message) = self.drive(Engine::next_request)?;
        let (reader, writer) = self.halves(slot);
        Some((message, reader, writer))
    }

    fn halves(self: &Rc<Self>, slot: usize) -> (Reader, Writer) {
        let (reader, writer) = (Rc::clone(self), Rc::clone(self));
        (Reader::new(reader, slot), Writer::new(writer, slot))
    }

    /// The most that a stream with `waiting` bytes may leave to be sent, by what others hold.
    pub(crate) fn backlog_room(&self, waiting: usize) -> usize {
        self.backlog.room(waiting)
    }
}

impl Ears {
    fn of(&mut self, half: Half) -> &mut Option<Waker> {
        match half {
            Half::Reader => &mut self.reader,
            Half::Writer => &mut self.writer,
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link(..)")
    }
}

//! What the streams of a connection have left with the engine and the connection has not taken.
//!
//! # Theory of operation
//! A stream leaves some hundreds of KiB with the engine, so that the driver never runs dry between two
//! wakes of the writer. A peer that gives credit on many streams and reads nothing from the connection
//! below them would make us hold that for each of its streams (CVE-2019-9517). So every piece that is
//! left is counted until the engine lets go of it: for its stream, its connection and its thread.
//! Beyond the limit of the connection or the thread a stream may leave more only when nothing of its
//! own is there any more, and then a little.
//!
//! # Invariants
//! - What is counted is what the engine holds: the count is carried by the piece itself, and goes with
//!   it whether it is sent or thrown away.
//! - A stream that has credit and nothing left in the engine always gets room, whatever its neighbours
//!   hold: the limits slow streams down and stop none.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

/// Bytes that the streams of one connection leave with the engine freely: sixteen streams at full
/// speed. More of them share a connection that is the bottleneck anyway.
const OF_CONNECTION: usize = 4 * 1024 * 1024;

/// The same for all connections of a thread: eight at full speed. Connections that stand still keep
/// what they have; with so many of those, the others get by on little at a time.
const OF_THREAD: usize = 32 * 1024 * 1024;

/// What a stream may leave beyond the limits: one TLS record.
const LITTLE: usize = 16 * 1024;

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(0) };
}

/// Counts for one connection.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: Cell<usize>,
}

impl Backlog {
    /// Counts for one more stream of the connection.
    pub(crate) fn stream(self: &Rc<Self>) -> Rc<Left> {
        Rc::new(Left {
            connection: Rc::clone(self),
            bytes: Cell::new(0),
            writer: RefCell::new(None),
        })
    }
}

/// What one stream has left with the engine.
#[derive(Debug)]
pub(crate) struct Left {
    connection: Rc<Backlog>,
    bytes: Cell<usize>,
    /// Waits until there is nothing left.
    writer: RefCell<Option<Waker>>,
}

impl Left {
    /// The most that the stream may leave now, at least one byte.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        if self.connection.bytes.get() < OF_CONNECTION && of_thread() < OF_THREAD {
            return Poll::Ready(usize::MAX);
        }
        if self.bytes.get() == 0 {
            return Poll::Ready(LITTLE);
        }
        *self.writer.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A piece to be left with the engine.
    pub(crate) fn piece(self: &Rc<Self>, bytes: Bytes) -> Piece {
        let length = bytes.len();
        self.bytes.set(self.bytes.get() + length);
        let connection = &self.connection.bytes;
        connection.set(connection.get() + length);
        add_to_thread(|all| all.saturating_add(length));
        Piece {
            bytes,
            counted: Some((length, Rc::clone(self))),
        }
    }

    fn gone(&self, length: usize) {
        let connection = &self.connection.bytes;
        connection.set(connection.get().saturating_sub(length));
        add_to_thread(|all| all.saturating_sub(length));
        let left = self.bytes.get().saturating_sub(length);
        self.bytes.set(left);
        if left == 0
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
    }
}

fn of_thread() -> usize {
    THREAD.try_with(Cell::get).unwrap_or_default()
}

fn add_to_thread(change: impl FnOnce(usize) -> usize) {
    // When the thread is ending nobody asks any more.
    let _ = THREAD.try_with(|all| all.set(change(all.get())));
}

/// Bytes on their way through the engine.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Bytes,
    counted: Option<(usize, Rc<Left>)>,
}

impl Piece {
    /// Nothing, to carry the end of a stream.
    pub(crate) fn end() -> Self {
        Self {
            bytes: Bytes::new(),
            counted: None,
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some((length, left)) = self.counted.take() {
            left.gone(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    use bytes::Bytes;

    use super::{Backlog, LITTLE, OF_CONNECTION, OF_THREAD, of_thread};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn bytes(length: usize) -> Bytes {
        Bytes::from(vec![0; length])
    }

    #[test]
    fn beyond_the_connections_limit_a_stream_gets_little_and_only_with_nothing_of_its_own_left() {
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        let connection = Rc::<Backlog>::default();
        let (greedy, other) = (connection.stream(), connection.stream());
        assert_eq!(greedy.poll_room(&cx), Poll::Ready(usize::MAX));
        let held = greedy.piece(bytes(OF_CONNECTION));
        let more = greedy.piece(bytes(1));
        assert_eq!(greedy.poll_room(&cx), Poll::Pending);
        assert_eq!(other.poll_room(&cx), Poll::Ready(LITTLE));
        assert_eq!(
            Rc::<Backlog>::default().stream().poll_room(&cx),
            Poll::Ready(usize::MAX)
        );
        drop(more);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "something is left");
        drop(held);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(greedy.poll_room(&cx), Poll::Ready(usize::MAX));
        assert_eq!(of_thread(), 0);
    }

    #[test]
    fn connections_that_stand_leave_the_others_of_the_thread_little_at_a_time() {
        let cx = Context::from_waker(Waker::noop());
        let standing: Vec<_> = (0..OF_THREAD / OF_CONNECTION)
            .map(|_| {
                Rc::<Backlog>::default()
                    .stream()
                    .piece(bytes(OF_CONNECTION))
            })
            .collect();
        let stream = Rc::<Backlog>::default().stream();
        assert_eq!(stream.poll_room(&cx), Poll::Ready(LITTLE));
        let piece = stream.piece(bytes(LITTLE));
        assert_eq!(stream.poll_room(&cx), Poll::Pending);
        drop(piece);
        assert_eq!(stream.poll_room(&cx), Poll::Ready(LITTLE));
        drop(standing);
        assert_eq!(stream.poll_room(&cx), Poll::Ready(usize::MAX));
    }
}

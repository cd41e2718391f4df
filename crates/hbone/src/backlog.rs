//! What the connections of a thread hold together.
//!
//! # Theory of operation
//! Each connection bounds itself, but a peer makes as many connections as it likes. So what the engines hold is counted for the
//! thread, in both directions:
//! - What arrived and waits for readers. Beyond [`HELD`] a stream whose reader stands, with more than a little, is ended.
//! - What waits to be sent. A stream leaves some hundreds of KiB with the engine, so that the driver never runs dry between two wakes
//!   of the writer. A peer that gives credit on many streams and reads nothing from the connection below them would make us hold
//!   that for each of its streams (CVE-2019-9517). Beyond [`OF_CONNECTION`] or [`OF_THREAD`] a stream may leave more only when
//!   nothing of its own is there any more, and then a little.
//!
//! # Invariants
//! - What is counted is what the engines hold, after each thing that was done to one of them.
//! - A stream that has credit and nothing left to be sent always gets room, whatever its neighbours hold: the limits slow streams
//!   down and stop none.

use std::cell::Cell;

/// Bytes that all streams of one thread may have waiting for their readers: 256 readers that stand still with a full window each. A
/// peer gets a window for each stream it opens, on as many connections as it makes, so this is what ends an attack by streams that
/// nobody reads.
const HELD: usize = 256 * 1024 * 1024;

/// Bytes that the streams of one connection leave to be sent freely: sixteen streams at full speed. More of them share a connection
/// that is the bottleneck anyway.
const OF_CONNECTION: usize = 4 * 1024 * 1024;

/// The same for all connections of a thread: eight at full speed. Connections that stand still keep what they have; with so many of
/// those, the others get by on little at a time.
const OF_THREAD: usize = 32 * 1024 * 1024;

/// What a stream may leave beyond the limits: one TLS record.
const LITTLE: usize = 16 * 1024;

thread_local! {
    static HOLDS: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Of all connections of this thread.
fn of_thread() -> (usize, usize) {
    // When the thread is ending nobody asks any more.
    HOLDS.try_with(Cell::get).unwrap_or_default()
}

/// One connection's part of what its thread counts: bytes that wait for readers, and bytes that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    counted: Cell<(usize, usize)>,
}

impl Backlog {
    /// Counts what the connection holds now.
    pub(crate) fn count(&self, now: (usize, usize)) {
        let before = self.counted.replace(now);
        if before == now {
            return;
        }
        let change = |all: usize, before: usize, now: usize| (all + now).saturating_sub(before);
        let _ = HOLDS.try_with(|all| {
            let (held, queued) = all.get();
            let held = change(held, before.0, now.0);
            all.set((held, change(queued, before.1, now.1)));
        });
    }

    /// The most that the connection may hold for its readers now, before those that stand are ended.
    pub(crate) fn most_held(&self) -> usize {
        HELD.saturating_sub(of_thread().0) + self.counted.get().0
    }

    /// The most that a stream may leave to be sent that has `waiting` there; 0 if it has to wait until that is gone.
    pub(crate) fn room(&self, waiting: usize) -> usize {
        if self.counted.get().1 < OF_CONNECTION && of_thread().1 < OF_THREAD {
            usize::MAX
        } else if waiting == 0 {
            LITTLE
        } else {
            0
        }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.count((0, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::{Backlog, HELD, LITTLE, OF_CONNECTION, OF_THREAD, of_thread};

    #[test]
    fn beyond_the_connections_limit_a_stream_gets_little_and_only_with_nothing_of_its_own_left() {
        let (connection, other) = (Backlog::default(), Backlog::default());
        assert_eq!(connection.room(100_000), usize::MAX);
        connection.count((0, OF_CONNECTION));
        assert_eq!(connection.room(1), 0);
        assert_eq!(connection.room(0), LITTLE);
        assert_eq!(other.room(1), usize::MAX);
        connection.count((0, OF_CONNECTION - 1));
        assert_eq!(connection.room(1), usize::MAX);
        drop((connection, other));
        assert_eq!(of_thread(), (0, 0));
    }

    #[test]
    fn connections_that_stand_leave_the_others_of_the_thread_little_at_a_time() {
        let standing: Vec<_> = (0..OF_THREAD / OF_CONNECTION)
            .map(|_| {
                let connection = Backlog::default();
                connection.count((0, OF_CONNECTION));
                connection
            })
            .collect();
        let other = Backlog::default();
        assert_eq!((other.room(0), other.room(1)), (LITTLE, 0));
        drop(standing);
        assert_eq!(other.room(1), usize::MAX);
    }

    #[test]
    fn what_readers_leave_standing_on_one_connection_is_missing_on_the_others() {
        let (standing, other) = (Backlog::default(), Backlog::default());
        standing.count((HELD - 10, 0));
        other.count((5, 0));
        assert_eq!(other.most_held(), 10);
        assert_eq!(standing.most_held(), HELD - 5);
        standing.count((HELD + 7, 0));
        assert_eq!((other.most_held(), standing.most_held()), (5, HELD + 7));
        drop(standing);
        assert_eq!(other.most_held(), HELD);
    }
}

//! Faulty in-memory connections: short writes, stalls, and breaks at every point; with every byte
//! read and written, and with a bypass that comes and goes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::carry;
use crate::bypass::{Bypass, Drained, Filled};
use crate::{Closed, How, Meter, Side, Sink, Source};

/// One step of a scripted half.
#[derive(Debug, Clone)]
enum Step {
    /// A source yields, or a sink takes, at most this many bytes.
    Move(usize),
    /// Pending, and woken at once.
    Stall,
    /// Breaks with this error; a script without it ends in order.
    Break(io::ErrorKind),
}

/// What the test sees of one connection.
#[derive(Debug, Default)]
struct Record {
    received: Vec<u8>,
    closed: bool,
    reset: bool,
    written_after_close: bool,
    flushed: usize,
}

struct ScriptSource {
    data: Bytes,
    steps: VecDeque<Step>,
    ended: bool,
}

impl Source for ScriptSource {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        assert!(!self.ended, "asked again after the end");
        match self.steps.pop_front() {
            Some(Step::Stall) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Break(kind)) => {
                self.ended = true;
                Poll::Ready(Err(kind.into()))
            }
            Some(Step::Move(most)) if !self.data.is_empty() => {
                Poll::Ready(Ok(Some(self.data.split_to(most.clamp(1, self.data.len())))))
            }
            None if !self.data.is_empty() => Poll::Ready(Ok(Some(std::mem::take(&mut self.data)))),
            Some(Step::Move(_)) | None => {
                self.ended = true;
                Poll::Ready(Ok(None))
            }
        }
    }
}

struct ScriptSink {
    record: Rc<RefCell<Record>>,
    steps: VecDeque<Step>,
}

impl Sink for ScriptSink {
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        assert!(!data.is_empty(), "nothing to write");
        let mut record = self.record.borrow_mut();
        record.written_after_close |= record.closed;
        let most = match self.steps.pop_front() {
            Some(Step::Stall) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Break(kind)) => return Poll::Ready(Err(kind.into())),
            Some(Step::Move(most)) => most.clamp(1, data.len()),
            None => data.len(),
        };
        record.received.extend_from_slice(&data[..most]);
        data.advance(most);
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut record = self.record.borrow_mut();
        record.flushed = record.received.len();
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.record.borrow_mut().closed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }

    fn reset(&mut self) {
        self.record.borrow_mut().reset = true;
    }
}

/// A bypass that does what the script says at each filling and each draining.
#[derive(Debug, Clone, Default)]
struct ScriptBypass {
    held: Bytes,
    fills: VecDeque<Way>,
    drains: VecDeque<Way>,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Bypass,
    /// A filling declines, a draining returns what was held.
    Refuse,
}

impl Bypass<ScriptSource, ScriptSink> for ScriptBypass {
    fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    fn was_read(&mut self, bytes: usize) {
        assert!(bytes > 0 && self.held.is_empty());
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut ScriptSource,
    ) -> Poll<io::Result<Filled>> {
        assert!(self.held.is_empty(), "filled before it was drained");
        let Some(Way::Bypass) = self.fills.pop_front() else {
            return Poll::Ready(Ok(Filled::Declined));
        };
        source.poll_next(cx).map_ok(|bytes| match bytes {
            Some(bytes) => {
                self.held = bytes;
                Filled::Some
            }
            None => Filled::End,
        })
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut ScriptSink,
    ) -> Poll<io::Result<Drained>> {
        if let Some(Way::Refuse) = self.drains.pop_front() {
            return Poll::Ready(Ok(Drained::Returned(std::mem::take(&mut self.held))));
        }
        let before = self.held.len();
        sink.poll_write(cx, &mut self.held)
            .map_ok(|()| Drained::Sent(before - self.held.len()))
    }

    fn abandon(&mut self) {
        self.held = Bytes::new();
    }
}

/// Counts, to be compared with what the sinks took.
#[derive(Default)]
struct Counts(std::cell::Cell<(u64, u64)>);

impl Meter for Counts {
    fn sent(&self, bytes: u64) {
        let (sent, received) = self.0.get();
        self.0.set((sent + bytes, received));
    }
    fn received(&self, bytes: u64) {
        let (sent, received) = self.0.get();
        self.0.set((sent, received + bytes));
    }
}

type Script = (Vec<u8>, Vec<Step>, Vec<Step>);

struct Outcome {
    closed: Closed,
    counted: (u64, u64),
    /// What the client's and the server's connection got.
    client: Record,
    server: Record,
}

/// Runs a relay of two scripted connections; each script is (data, source steps, sink steps).
fn run(client: Script, server: Script, bypasses: (ScriptBypass, ScriptBypass)) -> Outcome {
    let records = [Rc::new(RefCell::default()), Rc::new(RefCell::default())];
    let half = |(data, source, sink): Script, record: &Rc<RefCell<Record>>| {
        (
            ScriptSource {
                data: data.into(),
                steps: source.into(),
                ended: false,
            },
            ScriptSink {
                record: Rc::clone(record),
                steps: sink.into(),
            },
        )
    };
    let counts = Counts::default();
    let mut relaying = pin!(carry(
        half(client, &records[0]),
        half(server, &records[1]),
        bypasses,
        &counts
    ));
    let mut cx = Context::from_waker(Waker::noop());
    // Every stall wakes at once, so polling on is what an executor would do.
    let closed = (0..100_000)
        .find_map(|_| match relaying.as_mut().poll(&mut cx) {
            Poll::Ready(closed) => Some(closed),
            Poll::Pending => None,
        })
        .expect("the relay never ends");
    let [client, server] = records.map(|record| record.take());
    Outcome {
        closed,
        counted: counts.0.get(),
        client,
        server,
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(
        prop_oneof![3 => (1usize..50).prop_map(Step::Move), 2 => Just(Step::Stall)],
        0..40,
    )
}

/// None, or any mixture.
fn bypass() -> impl Strategy<Value = ScriptBypass> {
    let ways = || {
        let way = prop_oneof![4 => Just(Way::Bypass), 1 => Just(Way::Refuse)];
        vec(way, 0..60).prop_map(VecDeque::from)
    };
    (ways(), ways()).prop_map(|(fills, drains)| ScriptBypass {
        held: Bytes::new(),
        fills,
        drains,
    })
}

/// Every byte read and written; and every byte by the bypass.
fn both_ways() -> [ScriptBypass; 2] {
    let always = ScriptBypass {
        fills: vec![Way::Bypass; 100_000].into(),
        ..ScriptBypass::default()
    };
    [ScriptBypass::default(), always]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..400)
}

proptest! {
    #[test]
    fn moves_every_byte_once_and_in_order_through_stalls_and_short_writes(
        sent in data(), received in data(),
        client in (steps(), steps()), server in (steps(), steps()),
        bypasses in (bypass(), bypass()),
    ) {
        let client = (sent.clone(), client.0, client.1);
        let outcome = run(client, (received.clone(), server.0, server.1), bypasses);
        prop_assert!(matches!(outcome.closed.how, How::Clean));
        prop_assert_eq!(&outcome.server.received, &sent);
        prop_assert_eq!(&outcome.client.received, &received);
        prop_assert_eq!(outcome.counted, (sent.len() as u64, received.len() as u64));
        prop_assert_eq!((outcome.closed.sent, outcome.closed.received), outcome.counted);
        for side in [&outcome.client, &outcome.server] {
            prop_assert!(side.closed && !side.reset && !side.written_after_close);
        }
    }

    #[test]
    fn a_break_of_a_source_at_any_point_resets_both_and_invents_no_byte(
        sent in data(), received in data(),
        mut broken in steps(), other in steps(), sinks in (steps(), steps()),
        at in 0usize..40, by_client in any::<bool>(), bypasses in (bypass(), bypass()),
    ) {
        let at = at.min(broken.len());
        broken.insert(at, Step::Break(io::ErrorKind::ConnectionReset));
        // Enough steps that the break is reached before the data ends.
        let (client_source, server_source) = if by_client { (broken, other) } else { (other, broken) };
        let by = if by_client { Side::Client } else { Side::Server };
        let client = (sent.clone(), client_source, sinks.0);
        let outcome = run(client, (received.clone(), server_source, sinks.1), bypasses);
        prop_assert!(sent.starts_with(&outcome.server.received));
        prop_assert!(received.starts_with(&outcome.client.received));
        match outcome.closed.how {
            How::ResetBy(side) => {
                prop_assert_eq!(side, by);
                prop_assert!(outcome.client.reset && outcome.server.reset);
                // A truncated direction never looks ended.
                let cut = if by_client { &outcome.server } else { &outcome.client };
                prop_assert!(!cut.closed);
            }
            How::Clean => {
                // The data ended before the break: everything arrived.
                prop_assert_eq!(&outcome.server.received, &sent);
                prop_assert_eq!(&outcome.client.received, &received);
            }
            How::Failed(side, error) => prop_assert!(false, "{side}: {error}"),
        }
    }

    #[test]
    fn a_sink_that_breaks_still_lets_the_answer_through(
        sent in vec(any::<u8>(), 1..400), answer in data(),
        source in steps(), mut broken in steps(), server in steps(), client in steps(),
        bypasses in (bypass(), bypass()),
    ) {
        broken.truncate(3);
        broken.push(Step::Break(io::ErrorKind::BrokenPipe));
        let client = (sent.clone(), source, client);
        let outcome = run(client, (answer.clone(), server, broken), bypasses);
        prop_assert_eq!(&outcome.client.received, &answer);
        prop_assert!(outcome.client.closed);
        prop_assert!(sent.starts_with(&outcome.server.received));
        if outcome.server.received.len() < sent.len() {
            prop_assert!(matches!(outcome.closed.how, How::ResetBy(Side::Server)));
            prop_assert!(!outcome.server.closed);
        }
    }
}

#[test]
fn each_direction_ends_by_itself() {
    let stalls = |count| vec![Step::Stall; count];
    for way in both_ways() {
        // The server answers long after the client ended its sending.
        let outcome = run(
            (b"question".to_vec(), vec![], vec![]),
            (b"answer".to_vec(), stalls(50), vec![]),
            (way.clone(), way.clone()),
        );
        assert!(matches!(outcome.closed.how, How::Clean));
        assert_eq!(outcome.client.received, b"answer");
        // And the other way round.
        let outcome = run(
            (b"late".to_vec(), stalls(50), vec![]),
            (b"greeting".to_vec(), vec![], vec![]),
            (way.clone(), way),
        );
        assert!(matches!(outcome.closed.how, How::Clean));
        assert_eq!(outcome.server.received, b"late");
    }
}

#[test]
fn flushes_when_the_source_rests() {
    for way in both_ways() {
        let outcome = run(
            (
                b"abc".to_vec(),
                vec![Step::Move(2), Step::Stall, Step::Stall],
                vec![],
            ),
            (vec![], vec![], vec![]),
            (way.clone(), way),
        );
        assert_eq!(
            outcome.server.flushed, 2,
            "flushed once, before the last byte came"
        );
    }
}

#[test]
fn tells_a_silent_peer_from_a_reset() {
    for way in both_ways() {
        let outcome = run(
            (vec![], vec![Step::Break(io::ErrorKind::TimedOut)], vec![]),
            (vec![], vec![Step::Stall; 9], vec![]),
            (way.clone(), way),
        );
        assert!(matches!(outcome.closed.how, How::Failed(Side::Client, _)));
    }
}

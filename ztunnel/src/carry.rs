//! The course that every connection takes, whichever way it came: begun, carried, recorded.
//!
//! Most connections idle most of the time, so what one holds then is watched. A future made by `async fn` has room for its
//! arguments twice, as they came and as they are awaited, and as much room as its largest step for as long as it lives. So nothing
//! here is one, and the two steps are boxed: the beginning is large and short, and a relay takes what its own way needs.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::busy::Work;
use crate::live::Guard;
use crate::record::{Outcome, Record};

/// What a beginning comes to: its record, with a connection to be carried or the reason why there is none.
pub(crate) type Beginning<C> = (Box<Record>, Result<C, Outcome>);

/// A relay under way.
pub(crate) type Relay<'r> = Pin<Box<dyn Future<Output = Outcome> + 'r>>;

/// A connection that is open at both ends.
pub(crate) trait Carry {
    /// Relays until it ends by itself or may not go on.
    fn carry(self, record: &Record) -> Relay<'_>;
}

/// Carries one connection from its `beginning` to its one record. `work` is held as long.
pub(crate) fn serve<C: Carry>(
    work: Work,
    beginning: impl Future<Output = Beginning<C>>,
) -> impl Future<Output = ()> {
    let beginning = Box::pin(beginning);
    async move {
        let _work = work;
        let (record, begun) = beginning.await;
        let outcome = match relay(begun, &record) {
            Ok(relay) => relay.await,
            Err(outcome) => outcome,
        };
        record.finish(&outcome);
    }
}

/// A function, so that what was begun is given away as a whole and has no room while the relay is awaited.
fn relay<C: Carry>(begun: Result<C, Outcome>, record: &Record) -> Result<Relay<'_>, Outcome> {
    begun.map(|begun| begun.carry(record))
}

/// The outcome of a relay, unless the connection may not go on before it ends.
pub(crate) fn unless_ended<R: Future<Output = Outcome>>(
    guard: Guard,
    relayed: R,
) -> impl Future<Output = Outcome> {
    UnlessEnded { relayed, guard }
}

pin_project! {
    // By hand: a `select!` has room for the relay twice, as it came and as it is polled.
    struct UnlessEnded<R> {
        #[pin]
        relayed: R,
        guard: Guard,
    }
}

impl<R: Future<Output = Outcome>> Future for UnlessEnded<R> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        match this.guard.poll_ended(cx) {
            Poll::Ready(refusal) => Poll::Ready(refusal.into()),
            Poll::Pending => this.relayed.poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use ambit_model::reason::Reason;
    use ambit_model::workload::Workload;

    use super::unless_ended;
    use crate::live::{Carried, Decided, Guard, Live};
    use crate::record::Record;
    use crate::{inbound, outbound, passthrough};

    /// What one connection holds besides its relay and its record: with what tokio adds a task is
    /// then 256 bytes, the next size that it comes in is 384.
    const MOST: usize = 112;

    fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_an_open_connection_holds_is_small() {
        assert!(size(outbound::serve) <= MOST);
        assert!(size(passthrough::serve) <= MOST);
        let stream = |pod, exchange, ends, ()| inbound::exchange_served(pod, exchange, ends);
        assert!(size(stream) <= MOST);
        assert!(size_of::<Record>() <= 320);
    }

    #[test]
    fn there_is_room_for_a_relay_once() {
        let relayed = async {
            let held = [const { String::new() }; 20];
            std::future::pending::<()>().await;
            drop(held);
            Reason::Ok.into()
        };
        let size = size_of_val(&relayed);
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let carried = Carried {
            source: Arc::new(Workload::new("web".into(), "web", identity)),
            upstream: None,
            next_hop: ([10, 0, 0, 2], 80).into(),
            protocol: "TCP",
            wanted: ([10, 0, 0, 2], 80).into(),
        };
        let client = ([10, 0, 0, 1], 1025).into();
        let decided = Decided::Outbound(carried);
        let guard = Rc::new(Live::default()).register(&"web".into(), decided, client, None);
        let whole = unless_ended(guard, relayed);
        assert_eq!(
            size_of_val(&whole),
            size.next_multiple_of(8) + size_of::<Guard>()
        );
    }
}

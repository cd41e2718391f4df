//! The course that every connection takes, whichever way it came: begun, carried, recorded.
//!
//! Most connections idle most of the time, so what one holds then is watched. A future made by `async fn` has room for its
//! arguments twice, as they came and as they are awaited, and as much room as its largest step for as long as it lives. So nothing
//! here is one, and the two steps are boxed: the beginning is large and short, and a relay takes what its own way needs.

use std::future::Future;
use std::pin::Pin;

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
        let outcome = match begun {
            Ok(begun) => begun.carry(&record).await,
            Err(outcome) => outcome,
        };
        record.finish(&outcome);
    }
}

/// The outcome of a relay, unless the connection may not go on before it ends.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` has room for its arguments twice"
)]
pub(crate) fn unless_ended(
    guard: Guard,
    relayed: impl Future<Output = Outcome>,
) -> impl Future<Output = Outcome> {
    async move {
        tokio::select! {
            biased;
            refusal = guard.ended() => refusal.into(),
            outcome = relayed => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::record::Record;
    use crate::{inbound, outbound, passthrough};

    /// What one connection holds besides its relay and its record.
    const MOST: usize = 320;

    fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_an_open_connection_holds_is_small() {
        assert!(size(outbound::serve) <= MOST);
        assert!(size(passthrough::serve) <= MOST);
        let stream = |pod, exchange, ends, ()| inbound::exchange_served(pod, exchange, ends);
        assert!(size(stream) <= MOST);
        assert!(size_of::<Record>() <= MOST);
    }
}

//! Stopping in two steps: a request to finish, then, at a deadline, an order to stop.
//!
//! # Theory of operation
//!
//! A [`Drain`] is the trigger and a [`Draining`] what the work watches; everyone who must finish
//! first holds a clone. [`Drain::finished`] waits until all clones are dropped. A part that stops
//! on its own (one pod) gets a [`Draining::child`]: it ends with its parent, or alone.
//!
//! # Invariants
//!
//! * The state only moves forward: running, then finishing, then stopped; a deadline is never
//!   moved later.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Finishing { until: Instant },
    Stopped,
}

/// Starts the drain. Dropping it without doing so is an order to stop at once: whoever owned the
/// work is gone.
#[derive(Debug)]
pub struct Drain(watch::Sender<State>);

/// Watches for the drain. Work that must finish before the drain does holds one.
#[derive(Debug, Clone)]
pub struct Draining {
    own: watch::Receiver<State>,
    parent: Option<Box<Self>>,
}

/// A drain and its watcher.
#[must_use]
pub fn drain() -> (Drain, Draining) {
    let (send, own) = watch::channel(State::Running);
    (Drain(send), Draining { own, parent: None })
}

impl Drain {
    /// Asks all work to finish within `grace`; what is not done then is ordered to stop. Zero is
    /// an order to stop at once.
    ///
    /// Asking again can only shorten the time.
    pub fn start(&self, grace: Duration) {
        let until = Instant::now() + grace;
        self.0.send_if_modified(|state| {
            let next = match *state {
                _ if grace.is_zero() => State::Stopped,
                State::Running => State::Finishing { until },
                State::Finishing { until: earlier } => State::Finishing {
                    until: until.min(earlier),
                },
                State::Stopped => State::Stopped,
            };
            let changed = next != *state;
            *state = next;
            changed
        });
    }

    /// Orders all work to stop now.
    pub fn stop(&self) {
        self.0.send_replace(State::Stopped);
    }

    /// Waits until every [`Draining`] of this drain, its clones and children included, is gone.
    pub async fn finished(&self) {
        self.0.closed().await;
    }

    /// Starts the drain and waits for its end: at most `grace`, and a little more for the work
    /// that was ordered to stop to be dropped. True if all work ended.
    pub async fn complete(self, grace: Duration) -> bool {
        /// Dropping a connection takes microseconds; this covers a full node's worth.
        const LAST_BREATH: Duration = Duration::from_secs(1);
        self.start(grace);
        if tokio::time::timeout(grace, self.finished()).await.is_ok() {
            return true;
        }
        self.stop();
        tokio::time::timeout(LAST_BREATH, self.finished())
            .await
            .is_ok()
    }
}

impl Draining {
    /// A part of this work that can be stopped alone.
    #[must_use]
    pub fn child(&self) -> (Drain, Self) {
        let (send, own) = watch::channel(State::Running);
        (
            Drain(send),
            Self {
                own,
                parent: Some(Box::new(self.clone())),
            },
        )
    }

    /// Waits until work is asked to finish (or ordered to stop): take nothing new. Cancel safe.
    pub async fn requested(&self) {
        self.reached(|state| !matches!(state, State::Running)).await;
    }

    /// Waits until work is ordered to stop, or its time to finish is over: end it now. Cancel
    /// safe.
    pub async fn stopped(&self) {
        self.requested().await;
        loop {
            let Some(until) = self.deadline() else {
                return;
            };
            let stop = pin!(self.reached(|state| matches!(state, State::Stopped)));
            // A shorter deadline given meanwhile must count, so look again when it changes.
            let shorter = pin!(self.reached(move |state| match state {
                State::Finishing { until: other } => *other < until,
                State::Running | State::Stopped => false,
            }));
            let time = pin!(tokio::time::sleep_until(until));
            match select(select(stop, time), shorter).await {
                Either::Left(_) => return,
                Either::Right(_) => {}
            }
        }
    }

    /// Whether work was asked to finish.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.chain().any(|level| level.state() != State::Running)
    }

    /// Until when work may finish. `None` while running, and once ordered to stop.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let mut earliest: Option<Instant> = None;
        for level in self.chain() {
            match level.state() {
                State::Running => {}
                State::Finishing { until } => {
                    earliest = Some(earliest.map_or(until, |other| other.min(until)));
                }
                State::Stopped => return None,
            }
        }
        earliest
    }

    fn state(&self) -> State {
        // A dropped trigger can ask for nothing any more: see `Drain`.
        if self.own.has_changed().is_err() {
            State::Stopped
        } else {
            *self.own.borrow()
        }
    }

    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |level| level.parent.as_deref())
    }

    /// Waits until this level or one above is in a state that `wanted` accepts.
    fn reached<'a>(
        &'a self,
        wanted: impl Fn(&State) -> bool + Copy + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let levels = self.chain().map(move |level| {
            let mut own = level.own.clone();
            Box::pin(async move {
                let reached = own.wait_for(wanted).await.is_ok();
                if !reached && !wanted(&State::Stopped) {
                    std::future::pending::<()>().await;
                }
            })
        });
        let any = futures_util::future::select_all(levels);
        async move {
            any.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::drain;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn asks_first_and_orders_at_the_deadline() {
        let (trigger, work) = drain();
        assert!(work.requested().now_or_never().is_none());
        assert_eq!(work.deadline(), None);
        let start = Instant::now();
        trigger.start(10 * SECOND);
        work.requested().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(work.is_requested());
        assert_eq!(work.deadline(), Some(start + 10 * SECOND));
        work.stopped().await;
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_only_shortens() {
        let (trigger, work) = drain();
        let start = Instant::now();
        trigger.start(10 * SECOND);
        trigger.start(20 * SECOND);
        assert_eq!(work.deadline(), Some(start + 10 * SECOND));
        let waiting = tokio::spawn(async move { work.stopped().await });
        tokio::task::yield_now().await;
        trigger.start(2 * SECOND);
        waiting.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_stops_alone_or_with_its_parent() {
        let (trigger, work) = drain();
        let (first_trigger, first) = work.child();
        let (_second_trigger, second) = work.child();
        first_trigger.stop();
        first.stopped().await;
        assert!(work.stopped().now_or_never().is_none());
        assert!(second.stopped().now_or_never().is_none());
        trigger.start(SECOND);
        second.requested().await;
        second.stopped().await;
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_all_clones_and_children() {
        let (trigger, work) = drain();
        let (child_trigger, child) = work.child();
        drop(work);
        assert!(trigger.finished().now_or_never().is_none());
        drop(child);
        trigger.finished().await;
        child_trigger.finished().await;
    }

    #[tokio::test(start_paused = true)]
    async fn completes_early_when_the_work_does_and_late_when_it_never_does() {
        let (trigger, work) = drain();
        let start = Instant::now();
        tokio::spawn(async move {
            work.requested().await;
            tokio::time::sleep(SECOND).await;
        });
        assert!(trigger.complete(10 * SECOND).await);
        assert_eq!(start.elapsed().as_secs(), 1);

        let (trigger, _stuck) = drain();
        let start = Instant::now();
        assert!(!trigger.complete(10 * SECOND).await);
        assert_eq!(start.elapsed().as_secs(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_trigger_is_an_order_to_stop() {
        let (trigger, work) = drain();
        drop(trigger);
        work.requested().await;
        work.stopped().await;
    }
}

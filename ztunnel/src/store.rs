//! The current view of the mesh: written by the control thread, read by every data thread.
//!
//! # Theory of operation
//! A view is immutable; publishing swaps one pointer. A reader borrows the view for the length of
//! a closure, which cannot await, so no connection ever waits on a view or keeps an old one alive.
//! Whoever has to act on changes (the re-check of live connections, a connection whose workload is
//! not known yet) watches a counter that the publisher raises after the swap.
//!
//! # Invariants
//! - One writer. Two would lose each other's changes.
//! - A reader that sees the counter raised sees the view that raised it, or a later one.

use std::time::Duration;

use ambit_model::update::{self, Change};
use ambit_model::view::View;
use arc_swap::ArcSwap;
use std::sync::Arc;
use tokio::sync::watch;

/// Publishes views.
#[derive(Debug)]
pub struct Store {
    view: ArcSwap<View>,
    published: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            view: ArcSwap::default(),
            published: watch::Sender::new(0),
        }
    }
}

impl Store {
    /// Gives `decide` the current view. Takes no lock and wakes nobody.
    pub fn read<T>(&self, decide: impl FnOnce(&View) -> T) -> T {
        decide(&self.view.load())
    }

    /// The current view, to be kept. For control paths: a kept view keeps its memory.
    #[must_use]
    pub fn snapshot(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Applies changes as one new view. For the one writer.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let next = update::apply(&self.view.load(), changes);
        self.view.store(Arc::new(next));
        self.published.send_modify(|count| *count += 1);
    }

    /// Tells when views are published.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// What `find` finds on the current view or on one published within `limit`; `None` if none of
    /// them has it.
    pub async fn wait_for<T>(
        &self,
        limit: Duration,
        find: impl Fn(&View) -> Option<T>,
    ) -> Option<T> {
        if let Some(found) = self.read(&find) {
            return Some(found);
        }
        let mut changes = self.changes();
        let later = async {
            loop {
                // Subscribed before the look, so a view published in between is not missed.
                if let Some(found) = self.read(&find) {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, later).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ambit_model::service::{Service, ServiceKey};
    use ambit_model::update::Change;

    use super::Store;

    fn service(name: &str) -> Change {
        Change::UpsertService(Service::new(ServiceKey::new("shop", name)))
    }

    #[tokio::test(start_paused = true)]
    async fn finds_what_a_later_view_brings() {
        let store = Arc::new(Store::default());
        let waiting = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                let key = ServiceKey::new("shop", "b");
                store
                    .wait_for(Duration::from_secs(5), |view| view.service(&key).cloned())
                    .await
            }
        });
        tokio::task::yield_now().await;
        store.apply([service("a")]);
        tokio::task::yield_now().await;
        store.apply([service("b")]);
        assert!(waiting.await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_when_the_time_is_over() {
        let store = Store::default();
        let start = tokio::time::Instant::now();
        let found: Option<()> = store.wait_for(Duration::from_secs(5), |_| None).await;
        assert_eq!(found, None);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[test]
    fn a_reader_sees_the_whole_of_a_change() {
        let store = Store::default();
        let before = store.snapshot();
        store.apply([service("a"), service("b")]);
        assert_eq!(before.sizes().1, 0);
        assert_eq!(store.read(|view| view.sizes().1), 2);
        assert_eq!(*store.changes().borrow(), 1);
    }
}

//! Named gates that must all be open before a program says that it is ready.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The gates of one program. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Closed gates by name, each with how many are held under that name.
    closed: Mutex<BTreeMap<String, usize>>,
    changed: Notify,
}

/// One closed gate. A gate that is dropped unopened stays closed: what it stood for never
/// happened.
#[derive(Debug)]
#[must_use = "the program is not ready until the gate is opened"]
pub struct Gate {
    name: String,
    all: Readiness,
}

impl Readiness {
    /// No gates yet, which counts as ready: make all gates before anyone asks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a closed gate.
    pub fn gate(&self, name: impl Into<String>) -> Gate {
        let name = name.into();
        *self.0.closed.lock().entry(name.clone()).or_default() += 1;
        Gate {
            name,
            all: self.clone(),
        }
    }

    /// Whether every gate is open.
    #[must_use]
    pub fn all_ready(&self) -> bool {
        self.0.closed.lock().is_empty()
    }

    /// Names of the gates still closed, sorted.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        self.0.closed.lock().keys().cloned().collect()
    }

    /// Waits until every gate is open. Cancel safe.
    pub async fn wait(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.all_ready() {
                return;
            }
            changed.await;
        }
    }
}

impl Gate {
    /// Opens the gate for good.
    pub fn open(self) {
        let mut closed = self.all.0.closed.lock();
        if let Some(count) = closed.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                closed.remove(&self.name);
            }
        }
        drop(closed);
        tracing::debug!(gate = self.name, "ready");
        self.all.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::Readiness;

    #[tokio::test]
    async fn is_ready_once_every_gate_is_open() {
        let readiness = Readiness::new();
        let (xds, identity, twin) = (
            readiness.gate("xds"),
            readiness.gate("identity"),
            readiness.gate("xds"),
        );
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait().await }
        });
        tokio::task::yield_now().await;
        xds.open();
        assert_eq!(readiness.pending(), ["identity", "xds"]);
        twin.open();
        identity.open();
        waiting.await.unwrap();
        assert!(readiness.all_ready());
    }

    #[test]
    fn a_lost_gate_stays_closed() {
        let readiness = Readiness::new();
        drop(readiness.gate("certificate"));
        assert!(!readiness.all_ready());
        assert_eq!(readiness.pending(), ["certificate"]);
    }
}

//! Label sets of one family: resolve, hold, expire.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

use super::exposition::{Entries, Row, Snapshot};
use super::{Descriptor, Limits, Series};
use crate::labels::Labels;

/// `Entry::idle_since` of a set that was in use when last looked at.
const IN_USE: u64 = u64::MAX;

thread_local! {
    /// Where labels are rendered for the lookup, so that a hit allocates nothing.
    static SCRATCH: Cell<String> = const { Cell::new(String::new()) };
}

/// One label set and its metrics.
pub(super) struct Entry<S> {
    pub(super) labels: Box<str>,
    pub(super) values: S,
    /// Seconds since the registry began, or [`IN_USE`].
    idle_since: AtomicU64,
}

/// A held label set: count through it for as long as the connection lives.
///
/// # Guarantees
/// The set is shown, and keeps its values, for as long as a handle exists.
pub struct Handle<S>(Arc<Entry<S>>);

impl<S> Clone for Handle<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Deref for Handle<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0.values
    }
}

impl<S> fmt::Debug for Handle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.0.labels).finish()
    }
}

impl<S> Handle<S> {
    /// The labels in exposition form.
    pub fn labels(&self) -> &str {
        &self.0.labels
    }
}

/// Entry keyed by its labels, so that the text is stored once.
struct ByLabels<S>(Arc<Entry<S>>);

impl<S> Borrow<str> for ByLabels<S> {
    fn borrow(&self) -> &str {
        &self.0.labels
    }
}

impl<S> Hash for ByLabels<S> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.labels.hash(state);
    }
}

impl<S> PartialEq for ByLabels<S> {
    fn eq(&self, other: &Self) -> bool {
        self.0.labels == other.0.labels
    }
}

impl<S> Eq for ByLabels<S> {}

/// Metrics by label set. Cheap to clone.
pub struct Family<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    limits: Limits,
    started: Instant,
    sets: Mutex<HashSet<ByLabels<S>>>,
}

impl<S> Clone for Family<S> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<S> fmt::Debug for Family<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family")
            .field("sets", &self.shared.sets.lock().len())
            .finish()
    }
}

impl<S: Series> Family<S> {
    pub(super) fn new(limits: Limits, started: Instant) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                started,
                sets: Mutex::default(),
            }),
        }
    }

    /// The label set that `labels` writes, made if it is new. When the family is full, the
    /// overflow set instead: `labels` then runs a second time, with open values replaced.
    pub fn resolve(&self, labels: impl Fn(&mut Labels)) -> Handle<S> {
        let render = |overflow| {
            let mut rendered = Labels::with_buffer(SCRATCH.take(), overflow);
            labels(&mut rendered);
            rendered.into_text()
        };
        let mut text = render(false);
        let mut sets = self.shared.sets.lock();
        let mut found = sets.get(text.as_str()).map(|set| set.0.clone());
        if found.is_none() && sets.len() >= self.shared.limits.sets {
            SCRATCH.set(text);
            text = render(true);
            found = sets.get(text.as_str()).map(|set| set.0.clone());
        }
        let entry = found.unwrap_or_else(|| {
            let made = Arc::new(Entry::new(text.as_str()));
            sets.insert(ByLabels(made.clone()));
            made
        });
        entry.idle_since.store(IN_USE, Relaxed);
        drop(sets);
        SCRATCH.set(text);
        Handle(entry)
    }

    /// How many label sets there are now.
    pub fn sets(&self) -> usize {
        self.shared.sets.lock().len()
    }
}

impl<S: Series> Entry<S> {
    fn new(labels: &str) -> Self {
        Self {
            labels: labels.into(),
            values: S::zero(),
            idle_since: AtomicU64::new(IN_USE),
        }
    }
}

/// What the registry asks of everything in it.
pub(super) trait Collect: Send + Sync {
    /// Removes sets idle for too long at `now`.
    fn expire(&self, now: Instant) -> usize;
    /// How many label sets there are.
    fn sets(&self) -> usize {
        0
    }
    /// The sets of this moment, to be written without holding a lock.
    fn snapshot(&self) -> Box<dyn Snapshot>;
}

impl<S: Series> Collect for Family<S> {
    fn expire(&self, now: Instant) -> usize {
        let now = now.saturating_duration_since(self.shared.started).as_secs();
        let idle = self.shared.limits.idle.as_secs();
        let mut sets = self.shared.sets.lock();
        let before = sets.len();
        sets.retain(|ByLabels(entry)| {
            // Only this lock hands out new references, so a count of one stays one meanwhile.
            if Arc::strong_count(entry) > 1 {
                entry.idle_since.store(IN_USE, Relaxed);
                return true;
            }
            match entry.idle_since.load(Relaxed) {
                IN_USE => {
                    entry.idle_since.store(now, Relaxed);
                    true
                }
                since => now.saturating_sub(since) < idle,
            }
        });
        let removed = before - sets.len();
        if sets.capacity() > sets.len().saturating_mul(4) {
            sets.shrink_to_fit();
        }
        removed
    }

    fn sets(&self) -> usize {
        self.sets()
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        let sets = self.shared.sets.lock();
        Box::new(Entries::new(
            sets.iter().map(|set| set.0.clone()).collect(),
            false,
        ))
    }
}

/// Metrics without labels.
struct Single<S>(Arc<Entry<S>>);

pub(super) fn single<S: Series>() -> (Arc<dyn Collect>, Handle<S>) {
    let entry = Arc::new(Entry::new(""));
    (Arc::new(Single(entry.clone())), Handle(entry))
}

impl<S: Series> Collect for Single<S> {
    fn expire(&self, _now: Instant) -> usize {
        0
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(Entries::new(vec![self.0.clone()], true))
    }
}

/// A gauge computed when read.
pub(super) struct Computed<F> {
    descriptor: Descriptor,
    labels: String,
    value: F,
}

impl<F> Computed<F> {
    pub(super) fn new(descriptor: Descriptor, labels: String, value: F) -> Self {
        Self {
            descriptor,
            labels,
            value,
        }
    }
}

impl<F: Fn() -> Option<f64> + Send + Sync> Collect for Computed<F> {
    fn expire(&self, _now: Instant) -> usize {
        0
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(Row::new(
            self.descriptor,
            self.labels.clone(),
            (self.value)(),
        ))
    }
}

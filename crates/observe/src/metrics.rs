//! The metrics registry: what is counted, by which labels, and how it is read out.
//!
//! # Theory of operation
//! A [`Family`] is a group of metrics that share one label set (the five TCP metrics of a
//! connection, say). A caller resolves its labels once to a [`Handle`]; from then on counting is
//! an atomic addition with no lookup and no lock. Each label set is stored once, already in
//! exposition form.
//!
//! # Invariants
//! - A family holds at most [`Limits::sets`] sets, plus overflow sets whose labels are drawn from
//!   closed value lists only.
//! - A set that no handle refers to is removed after [`Limits::idle`]. One that is held stays.

mod exposition;
mod family;
mod value;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde::Serialize;

pub use self::exposition::{Exposition, Format};
pub use self::family::{Family, Handle};
pub use self::value::{Counter, Gauge, Histogram, Kind, Reading};

use self::family::Collect;

/// Bounds of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Most label sets a family keeps; later ones share an overflow set. A set costs about 1 KiB,
    /// so the default of 8,192 bounds a family by some 8 MiB.
    pub sets: usize,
    /// How long a set that nobody holds is still shown. The default of 15 minutes lets several
    /// scrapes, also slow ones, read its last value.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sets: 8192,
            idle: Duration::from_secs(15 * 60),
        }
    }
}

/// The least of [`Limits::idle`]: idle sets are counted in whole seconds.
pub const LEAST_IDLE: Duration = Duration::from_secs(1);

/// The longest time between two looks for idle sets. A look costs microseconds for a set, and a set
/// that stays a minute longer harms nobody.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

impl Limits {
    /// How often what holds sets unused lets go of them, and idle sets are looked for: short beside
    /// [`Limits::idle`].
    pub fn look(&self) -> Duration {
        (self.idle / 2).clamp(LEAST_IDLE / 2, LONGEST_LOOK)
    }
}

/// Name, help and kind of one metric.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Metric name; for a counter without the `_total` that the exposition adds.
    pub name: &'static str,
    /// One line for people.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
}

/// The metrics that share a label set. Made by [`series!`](crate::series).
pub trait Series: Send + Sync + 'static {
    /// One per metric, in the order of [`Series::reading`].
    const DESCRIPTORS: &'static [Descriptor];

    /// All at zero.
    fn zero() -> Self;

    /// The metric at this index of [`Series::DESCRIPTORS`].
    fn reading(&self, index: usize) -> Option<Reading<'_>>;
}

/// Declares a struct of metrics that share a label set.
///
/// ```
/// ambit_observe::series! {
///     /// What a request counts.
///     pub struct Requests {
///         /// Requests answered.
///         answered: Counter = ("requests", "Requests answered."),
///         /// How long they took.
///         took: Histogram[&[0.1, 1.0]] = ("request_duration_seconds", "Time to answer."),
///     }
/// }
/// let registry = ambit_observe::metrics::Registry::default();
/// let family = registry.family::<Requests>();
/// family.resolve(|labels| labels.open("path", "/")).answered.inc();
/// ```
#[macro_export]
macro_rules! series {
    ($(#[$about:meta])* $visible:vis struct $name:ident {
        $($(#[$doc:meta])* $field:ident : $kind:ident $([$bounds:expr])? = ($metric:literal, $help:literal)),+ $(,)?
    }) => {
        $(#[$about])*
        #[derive(Debug)]
        $visible struct $name { $($(#[$doc])* pub $field: $crate::metrics::$kind),+ }

        impl $crate::metrics::Series for $name {
            const DESCRIPTORS: &'static [$crate::metrics::Descriptor] = &[$(
                $crate::metrics::Descriptor {
                    name: $metric, help: $help, kind: $crate::metrics::Kind::$kind,
                }
            ),+];

            fn zero() -> Self {
                Self { $($field: $crate::metrics::$kind::new($($bounds)?)),+ }
            }

            fn reading(&self, index: usize) -> Option<$crate::metrics::Reading<'_>> {
                let all = [$($crate::metrics::Reading::$kind(&self.$field)),+];
                all.get(index).copied()
            }
        }
    };
}

/// Every metric of a program. Cheap to clone; all clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    limits: Limits,
    started: Instant,
    /// Sets removed so far.
    expired: AtomicUsize,
    collectors: RwLock<Vec<Arc<dyn Collect>>>,
}

impl Inner {
    fn sets(&self) -> usize {
        let collectors = self.collectors.read().clone();
        collectors.iter().map(|collector| collector.sets()).sum()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("families", &self.inner.collectors.read().len())
            .finish()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Registry {
    /// An empty registry whose families have these bounds.
    pub fn new(limits: Limits) -> Self {
        let inner = Inner {
            limits,
            started: Instant::now(),
            expired: AtomicUsize::new(0),
            collectors: RwLock::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Adds a labelled family.
    pub fn family<S: Series>(&self) -> Family<S> {
        let family = Family::new(self.inner.limits, self.inner.started);
        self.register(Arc::new(family.clone()));
        family
    }

    /// Adds metrics without labels. They are shown also while they are zero, and never expire.
    pub fn single<S: Series>(&self) -> Handle<S> {
        let (collector, handle) = family::single::<S>();
        self.register(collector);
        handle
    }

    /// Adds a gauge that is computed when it is read.
    pub fn computed(
        &self,
        descriptor: Descriptor,
        value: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        self.register(Arc::new(family::Computed::new(
            descriptor,
            String::new(),
            value,
        )));
    }

    /// Adds a gauge that is always 1, to show its labels (build information).
    pub fn information(
        &self,
        name: &'static str,
        help: &'static str,
        labels: impl Fn(&mut labels::Labels),
    ) {
        let descriptor = Descriptor {
            name,
            help,
            kind: Kind::Gauge,
        };
        let mut text = labels::Labels::default();
        labels(&mut text);
        self.register(Arc::new(family::Computed::new(
            descriptor,
            text.into_text(),
            || Some(1.0),
        )));
    }

    /// Removes label sets that were idle for [`Limits::idle`] at `now`; returns how many.
    pub fn expire(&self, now: Instant) -> usize {
        let collectors = self.inner.collectors.read().clone();
        let removed: usize = collectors
            .iter()
            .map(|collector| collector.expire(now))
            .sum();
        self.inner.expired.fetch_add(removed, Relaxed);
        removed
    }

    /// Removes idle label sets from time to time, for ever; also where nobody scrapes.
    pub async fn keep_expiring(self) {
        let mut every = tokio::time::interval(self.inner.limits.look());
        loop {
            let now = every.tick().await;
            self.expire(now.into_std());
        }
    }

    /// Adds what the registry has to say of itself: its label sets now, how many a family may have,
    /// and how many have expired.
    pub fn show_itself(&self) {
        let figures: [(_, _, _, Figure); 3] = [
            (
                "ambit_metrics_label_sets",
                "Label sets of all metrics now.",
                Kind::Gauge,
                |inner| counted(inner.sets()),
            ),
            (
                "ambit_metrics_label_sets_limit",
                "Label sets that one family of metrics may have.",
                Kind::Gauge,
                |inner| counted(inner.limits.sets),
            ),
            (
                "ambit_metrics_label_sets_expired",
                "Label sets removed because nothing used them any more.",
                Kind::Counter,
                |inner| counted(inner.expired.load(Relaxed)),
            ),
        ];
        for (name, help, kind, figure) in figures {
            // The registry owns the closure: a strong reference back would keep both for ever.
            let inner = Arc::downgrade(&self.inner);
            let descriptor = Descriptor { name, help, kind };
            self.computed(descriptor, move || {
                inner.upgrade().map(|inner| figure(&inner))
            });
        }
    }

    /// The whole registry as text, in pieces, so that a large one is never one string.
    pub fn exposition(&self, format: Format) -> Exposition {
        let collectors = self.inner.collectors.read().clone();
        Exposition::new(
            format,
            collectors
                .iter()
                .map(|collector| collector.snapshot())
                .collect(),
        )
    }

    /// The whole registry as one string, for tests and small programs.
    pub fn render(&self, format: Format) -> String {
        self.exposition(format)
            .map(|piece| String::from_utf8_lossy(&piece).into_owned())
            .collect()
    }

    fn register(&self, collector: Arc<dyn Collect>) {
        self.inner.collectors.write().push(collector);
    }
}

/// How a figure of the registry itself is found.
type Figure = fn(&Inner) -> f64;

/// A count as a metric's value.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of label sets stay below 2^53"
)]
fn counted(count: usize) -> f64 {
    count as f64
}

use crate::labels;

#[cfg(test)]
mod tests;

//! Workloads and services that are asked for when a connection first needs them (`XDS_ON_DEMAND`).
//!
//! # Theory of operation
//! Before a connection is decided, what the decision would look up and the view does not have is named
//! ([`need`]), asked of the control plane, and waited for. Any number of connections wait on one
//! ask. An answer either puts the resource into the view, or says that there is none: that is remembered for a while, and the connection
//! is decided as it would be on a whole view, in plaintext past the mesh for an address that nobody in it has.
//!
//! # Invariants
//! - Only the control plane's word makes an address one outside the mesh. No answer in time, too many asks at once and a resource
//!   that was refused all refuse the connection.
//! - What is asked for, and what is known not to exist, are bounded in number and time.
//! - Where the whole mesh is subscribed none of this is there.
//!
//! # Failure modes
//! While the control plane is away, what it said last stands: the view, and what does not exist. What it was never asked is refused.
//!
//! # Cost
//! A connection to what the view has takes no lock. One to an address outside the mesh takes one, briefly: the list of what does
//! not exist is shared by the data threads.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ambit_model::need;
use ambit_model::reason::Reason;
use ambit_model::route::Outbound;
use ambit_model::text::Text;
use ambit_model::view::View;
use ambit_model::workload::Workload;
use ambit_observe::metrics::{Handle, Registry};
use ambit_wire::Authority;
use ambit_xds::Answered;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::store::Store;

/// Time that one connection waits for all that it needs. As long as for its own record.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an ask stays open when nobody waits any more: a late answer still serves the next connection.
const ASK_LIFE: Duration = Duration::from_secs(30);

/// Asks open at once. The control plane answers thousands a second; with more open than this it does not.
const MOST_ASKS: usize = 1024;

/// How long it is remembered that there is nothing of a name. A pod that starts at an address which was nobody's is reached past the
/// mesh for that long, unless something else makes it known before.
const ABSENT_LIFE: Duration = Duration::from_secs(5);

/// Names remembered as nothing: the addresses outside the mesh that a node's pods talk to within seconds. Half a MiB.
const MOST_ABSENT: usize = 4096;

/// Rounds for one connection: an address, its waypoint, and one more for what changes meanwhile.
const ROUNDS: usize = 4;

ambit_observe::series! {
    /// Asks.
    struct Asks {
        asked: Counter = ("ambit_xds_on_demand_asks", "Resources asked for on demand (unstable)."),
        absent: Counter = ("ambit_xds_on_demand_absent", "Resources asked for on demand that do not exist (unstable)."),
        failed: Counter = ("ambit_xds_on_demand_failed", "Connections refused because what they need was not known in time (unstable)."),
    }
}

/// What is asked for and what does not exist. Shared by all threads.
#[derive(Debug)]
pub struct Demand {
    table: Mutex<Table>,
    /// Tells the discovery client that there is something to ask for.
    wake: watch::Sender<u64>,
    /// Tells connections that something was answered. Changes after the view.
    answers: watch::Sender<u64>,
    asks: Handle<Asks>,
}

#[derive(Debug, Default)]
struct Table {
    /// When each was asked for first.
    asked: HashMap<Text, Instant>,
    /// When each was said not to exist, or to be nothing that a decision looks up by that name.
    absent: HashMap<Text, Instant>,
    connected: bool,
}

impl Demand {
    /// Nothing asked for yet.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            table: Mutex::default(),
            wake: watch::Sender::new(0),
            answers: watch::Sender::new(0),
            asks: registry.single(),
        }
    }

    /// Changes when there is something to ask for.
    #[must_use]
    pub fn wakes(&self) -> watch::Receiver<u64> {
        self.wake.subscribe()
    }

    /// What is to be asked for now. Asks that nobody waits for any more are let go.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<String> {
        let now = Instant::now();
        let mut table = self.table.lock();
        table
            .asked
            .retain(|_, since| now.duration_since(*since) < ASK_LIFE);
        table.asked.keys().map(ToString::to_string).collect()
    }

    /// Takes the control plane's answers. To be called when the view that they brought is published.
    pub fn answered(&self, answers: Vec<Answered>) {
        let now = Instant::now();
        let mut table = self.table.lock();
        for Answered {
            name,
            exists,
            refused,
        } in answers
        {
            let name = Text::from(name);
            table.asked.remove(&name);
            if !exists {
                self.asks.absent.inc();
            }
            if refused {
                table.absent.remove(&name);
            } else {
                // Where it exists, the view has all that there is to know of it. It may still not be found by that name: an
                // address of the host network is no workload's own.
                table.remember(name, now);
            }
        }
        drop(table);
        self.answers.send_modify(|count| *count += 1);
    }

    /// Whether the control plane is there. While it is not, nothing that it said grows old.
    pub fn connected(&self, up: bool) {
        self.table.lock().connected = up;
    }

    /// Asks for whatever is at an address, without waiting.
    pub fn ask_at(&self, network: &str, address: IpAddr) {
        // With too many asks the pod's record may still come by itself.
        let _ = self.ask(need::at(network, address));
    }

    /// Waits until [`route::outbound`](ambit_model::route::outbound) can decide a connection of `source` to `destination`.
    ///
    /// # Errors
    /// [`Reason::Undiscovered`] when what it needs is not known in time, [`Reason::Overloaded`] with too many asks.
    pub async fn outbound(
        &self,
        store: &Store,
        network: &str,
        source: &Workload,
        destination: SocketAddr,
    ) -> Result<(), Reason> {
        let connection = Outbound {
            source,
            destination,
            network,
            avoid: &[],
        };
        self.known(store, |view| {
            need::outbound(view, &connection, |name| self.is_absent(name))
        })
        .await
    }

    /// Waits until [`admit`](ambit_model::admit::admit) can decide a stream for `local` that asks for `authority`.
    ///
    /// # Errors
    /// Those of [`Demand::outbound`].
    pub async fn inbound(
        &self,
        store: &Store,
        local: &Workload,
        connected: IpAddr,
        authority: &Authority,
    ) -> Result<(), Reason> {
        self.known(store, |view| {
            need::inbound(view, local, connected, authority, |name| {
                self.is_absent(name)
            })
        })
        .await
    }

    /// Asks for what `lacks` names, one after the other, until it names nothing.
    async fn known(
        &self,
        store: &Store,
        lacks: impl Fn(&View) -> Option<Text>,
    ) -> Result<(), Reason> {
        let Some(mut name) = store.read(&lacks) else {
            return Ok(());
        };
        let end = Instant::now() + PATIENCE;
        for _ in 0..ROUNDS {
            // Subscribed before the ask, so that its answer is not missed.
            let mut answers = self.answers.subscribe();
            if !self.ask(name.clone()) {
                self.asks.failed.inc();
                return Err(Reason::Overloaded);
            }
            let next = loop {
                if timeout_at(end, answers.changed()).await.is_err() {
                    self.asks.failed.inc();
                    return Err(Reason::Undiscovered);
                }
                let Some(next) = store.read(&lacks) else {
                    return Ok(());
                };
                if next != name || !self.is_asked(&name) {
                    break next;
                }
            };
            if next == name {
                // Answered, and not there: it was refused, or is gone already.
                break;
            }
            name = next;
        }
        self.asks.failed.inc();
        Err(Reason::Undiscovered)
    }

    /// Asks, unless it is asked already. False when there are too many asks.
    fn ask(&self, name: Text) -> bool {
        let mut table = self.table.lock();
        if table.asked.contains_key(&name) {
            return true;
        }
        if table.asked.len() >= MOST_ASKS {
            return false;
        }
        table.asked.insert(name, Instant::now());
        drop(table);
        self.asks.asked.inc();
        self.wake.send_modify(|count| *count += 1);
        true
    }

    fn is_asked(&self, name: &Text) -> bool {
        self.table.lock().asked.contains_key(name)
    }

    fn is_absent(&self, name: &Text) -> bool {
        let table = self.table.lock();
        let fresh = |since: &Instant| !table.connected || since.elapsed() < ABSENT_LIFE;
        table.absent.get(name).is_some_and(fresh)
    }
}

impl Table {
    fn remember(&mut self, name: Text, now: Instant) {
        if self.absent.len() >= MOST_ABSENT {
            self.absent
                .retain(|_, since| now.duration_since(*since) < ABSENT_LIFE);
        }
        if self.absent.len() >= MOST_ABSENT {
            // All of them young: each is asked for again when it is needed.
            self.absent.clear();
        }
        self.absent.insert(name, now);
    }
}

#[cfg(test)]
mod tests;

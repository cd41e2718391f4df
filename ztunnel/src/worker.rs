//! What one data thread has: its pool, its connections, its pods.
//!
//! # Invariants
//! - Everything here is used by one thread. Other threads reach it by sending a closure.
//! - Nothing that a connection does between accept and close leaves the thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use ambit_hbone::pool::{Limits, Pool};
use ambit_hbone::settings::Settings as TunnelSettings;
use ambit_model::reason::Reason;
use ambit_observe::access::AccessLog;
use ambit_runtime::tasks::spawn_local;
use tokio::time::Instant;

use crate::config::Settings;
use crate::live::Live;
use crate::metrics::{Metrics, Telemetry};
use crate::pod::ServedPod;
use crate::record::Outcome;
use crate::store::Store;

/// TLS and HTTP/2 handshakes of accepted connections that may be in flight on one thread. Each
/// costs tens of KiB and some milliseconds of CPU; with more of them, all would time out.
const HANDSHAKES: u32 = 512;

/// What all threads share. Nothing in it is written on the data path but atomics.
#[derive(Debug)]
pub struct Shared {
    /// The mesh.
    pub store: Store,
    /// What we were told.
    pub settings: Settings,
    /// Counters.
    pub metrics: Metrics,
    /// Where access records go.
    pub access: AccessLog,
    /// Numbers of tunnels.
    pub tunnels: TunnelSettings,
}

/// One data thread.
#[derive(Debug)]
pub struct Worker {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// What this one reports through.
    pub telemetry: Rc<Telemetry>,
    /// Its open connections.
    pub live: Rc<Live>,
    /// Its tunnels to other nodes.
    pub pool: Pool<Outcome>,
    pods: RefCell<HashMap<String, Rc<ServedPod>>>,
    handshakes: Cell<u32>,
}

impl Worker {
    /// A thread without pods.
    #[must_use]
    pub fn new(shared: &Arc<Shared>) -> Self {
        let settings = &shared.settings;
        let limits = Limits {
            streams: settings.pool_max_streams_per_connection,
            idle: settings.pool_unused_release_timeout,
            ..Limits::default()
        };
        Self {
            shared: Arc::clone(shared),
            telemetry: Rc::new(Telemetry::new(
                shared.metrics.clone(),
                shared.access.clone(),
            )),
            live: Rc::default(),
            pool: Pool::new(limits),
            pods: RefCell::default(),
            handshakes: Cell::new(0),
        }
    }

    /// Looks after the thread's state for as long as the thread lives.
    pub async fn keep(self: Rc<Self>) {
        drop(spawn_local("tunnel sweep", self.pool.sweeper()));
        let mut views = self.shared.store.changes();
        let mut sweep = tokio::time::interval(self.shared.settings.metrics.look());
        // When the time of a policy that is waited for is over, if one is.
        let mut over = None;
        loop {
            tokio::select! {
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    over = self.recheck().await;
                }
                () = at(over) => over = self.recheck().await,
                _ = sweep.tick() => self.telemetry.sweep(),
            }
        }
    }

    /// Looks at everything that lives, on the newest view. Returns when to look again without one.
    async fn recheck(&self) -> Option<Instant> {
        self.shared.store.read(|view| {
            // A tunnel to a workload that is gone carries nothing new, and ends once its far end
            // gives no sign of life: nobody may be left there to end it.
            self.pool
                .forsake(|key| view.workload(&key.destination).is_none());
            for pod in self.pods.borrow().values() {
                pod.notice(view);
            }
        });
        let now = Instant::now();
        let until = |pod: &ServedPod| pod.waits_until().filter(|until| *until > now);
        let waits = |uid: &str| {
            let pods = self.pods.borrow();
            pods.get(uid).is_some_and(|pod| until(pod).is_some())
        };
        let ended = self.live.recheck(&self.shared.store, waits).await;
        if ended > 0 {
            tracing::info!(ended, "connections no longer permitted were ended");
        }
        self.pods
            .borrow()
            .values()
            .filter_map(|pod| until(pod))
            .min()
    }

    /// A place among the handshakes in flight, or a refusal.
    ///
    /// # Errors
    /// There are too many.
    pub fn handshake(self: &Rc<Self>) -> Result<Handshake, Reason> {
        let running = self.handshakes.get();
        if running >= HANDSHAKES {
            return Err(Reason::Overloaded);
        }
        self.handshakes.set(running + 1);
        Ok(Handshake(Rc::clone(self)))
    }

    /// Takes a pod in.
    pub fn add(&self, pod: &Rc<ServedPod>) {
        self.pods
            .borrow_mut()
            .insert(pod.pod.uid.clone(), Rc::clone(pod));
    }

    /// Takes a pod out, unless another of that uid came in its place.
    pub fn remove(&self, pod: &Rc<ServedPod>) {
        let mut pods = self.pods.borrow_mut();
        if pods
            .get(&pod.pod.uid)
            .is_some_and(|there| Rc::ptr_eq(there, pod))
        {
            pods.remove(&pod.pod.uid);
        }
    }
}

/// Waits until then, or for ever.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// One handshake in flight.
#[derive(Debug)]
pub struct Handshake(Rc<Worker>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0
            .handshakes
            .set(self.0.handshakes.get().saturating_sub(1));
    }
}

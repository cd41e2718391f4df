//! What one data thread has: its pool, its connections, its pods.
//!
//! # Invariants
//! - Everything here is used by one thread. Other threads reach it by sending a closure.
//! - Nothing that a connection does between accept and close leaves the thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use ambit_hbone::pool::{Limits, Pool};
use ambit_hbone::settings::Settings as TunnelSettings;
use ambit_model::workload::Workload;
use ambit_observe::access::AccessLog;
use ambit_observe::traffic::Reporter;
use ambit_runtime::tasks::spawn_local;
use ambit_tls::Lineage;
use tokio::time::Instant;

use crate::config::Settings;
use crate::demand::Demand;
use crate::flag::Flag;
use crate::handshakes::Handshakes;
use crate::live::Live;
use crate::metrics::{Metrics, Telemetry};
use crate::names::Names;
use crate::pod::ServedPod;
use crate::record::Outcome;
use crate::revocation::Revocation;
use crate::store::Store;
use crate::unkept::Unkept;

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
    /// Certificates that were taken back.
    pub revocation: Arc<Revocation>,
    /// Asks for what is not known, where not all of the mesh is subscribed.
    pub demand: Option<Demand>,
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
    /// Where it could not speak from its clients' addresses.
    pub unkept: Unkept,
    /// The names it resolves for connections to hosts outside the cluster.
    pub names: Names,
    pods: RefCell<HashMap<String, Rc<ServedPod>>>,
    /// The same by namespace and name: how the mesh names them.
    named: RefCell<HashMap<String, HashMap<String, Rc<ServedPod>>>>,
    /// Raised, and replaced by another, when the accepted tunnels are to ask about their peers.
    ask_again: RefCell<Flag>,
    /// The handshakes of its accepted tunnels.
    pub handshakes: Rc<Handshakes>,
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
            unkept: Unkept::default(),
            names: Names::new(settings.ipv6_enabled, shared.metrics.names.clone()),
            pods: RefCell::default(),
            named: RefCell::default(),
            ask_again: RefCell::default(),
            handshakes: Rc::default(),
        }
    }

    /// Looks after the thread's state for as long as the thread lives.
    pub async fn keep(self: Rc<Self>) {
        drop(spawn_local("tunnel sweep", self.pool.sweeper()));
        let mut views = self.shared.store.changes();
        let mut lists = self.shared.revocation.changes();
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
                changed = lists.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.recheck_proofs().await;
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

    /// Ends what rests on a certificate that was revoked: the connections first, so that each of them
    /// knows why it ends when its tunnel does.
    async fn recheck_proofs(&self) {
        let lists = &self.shared.revocation.lists;
        let connections = self.live.recheck_proofs(lists).await;
        self.ask_again.take().raise();
        let tunnels = self
            .pool
            .end("peer's certificate was revoked", |peer| lists.revoke(peer));
        self.shared.metrics.revoked(Reporter::Source, tunnels);
        if connections + tunnels > 0 {
            tracing::warn!(
                connections,
                tunnels,
                "peers whose certificates were revoked are cut off"
            );
        }
    }

    /// Waits until the certificate of an accepted tunnel's peer is revoked.
    pub async fn revoked(&self, proof: Option<Lineage>) {
        let Some(proof) = proof else {
            return std::future::pending().await;
        };
        loop {
            // Before the look: lists that come after it raise this.
            let ask_again = self.ask_again.borrow().wait();
            if self.shared.revocation.lists.revoke_lineage(&proof) {
                return;
            }
            ask_again.await;
        }
    }

    /// Takes a pod in.
    pub fn add(&self, pod: &Rc<ServedPod>) {
        let info = &pod.pod.info;
        self.named
            .borrow_mut()
            .entry(info.namespace.clone())
            .or_default()
            .insert(info.name.clone(), Rc::clone(pod));
        self.pods
            .borrow_mut()
            .insert(pod.pod.uid.clone(), Rc::clone(pod));
    }

    /// Takes a pod out, unless another one came in its place.
    pub fn remove(&self, pod: &Rc<ServedPod>) {
        take_out(&mut self.pods.borrow_mut(), &pod.pod.uid, pod);
        let info = &pod.pod.info;
        let mut named = self.named.borrow_mut();
        if let Some(of_namespace) = named.get_mut(&info.namespace) {
            take_out(of_namespace, &info.name, pod);
            if of_namespace.is_empty() {
                named.remove(&info.namespace);
            }
        }
    }

    /// The pod that this thread serves as the one whose record is `workload`.
    #[must_use]
    pub fn serves(&self, workload: &Workload) -> Option<Rc<ServedPod>> {
        let named = self.named.borrow();
        let pod = named.get(&*workload.namespace)?.get(workload.name())?;
        let known = pod.workload_now()?;
        (known.uid == workload.uid && known.identity == workload.identity).then(|| Rc::clone(pod))
    }
}

fn take_out(from: &mut HashMap<String, Rc<ServedPod>>, key: &str, pod: &Rc<ServedPod>) {
    if from.get(key).is_some_and(|there| Rc::ptr_eq(there, pod)) {
        from.remove(key);
    }
}

/// Waits until then, or for ever.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

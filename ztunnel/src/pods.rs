//! The pods of this node, seen from the control thread: starts and stops them on all data threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ambit_identity::{Certificates, Lease};
use ambit_model::identity::Identity;
use ambit_net::netns::Netns;
use ambit_runtime::drain::{Drain, Draining};
use ambit_runtime::tasks;
use ambit_runtime::threads::ThreadHandle;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::dns::{self, Dns};
use crate::inpod::reconcile::{PodInfo, Wanted};
use crate::live::Listed;
use crate::pod::{Pod, ServedPod, Sockets};
use crate::worker::{Shared, Worker};

/// A pod's namespace, shared by its threads; equal when it is the same namespace.
#[derive(Debug, Clone)]
pub struct PodNetns(pub Arc<Netns>);

impl PartialEq for PodNetns {
    fn eq(&self, other: &Self) -> bool {
        self.0.id() == other.0.id()
    }
}

/// Why a pod cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Environment: its sockets cannot be made.
    #[error("pod {pod} is not served: {why}{}", because(.why))]
    Sockets {
        /// Namespace and name.
        pod: String,
        /// Why.
        why: ambit_net::Error,
    },
    /// Environment: a data thread cannot watch its sockets.
    #[error("a data thread cannot serve pod {0}: {1}")]
    Thread(String, String),
    /// Environment: the proxy was asked to stop.
    #[error("pod {0} is not served: the proxy stops")]
    Stopping(String),
}

fn because(error: &ambit_net::Error) -> String {
    error.io().map(|io| format!(": {io}")).unwrap_or_default()
}

/// One running pod, for the admin page.
#[derive(Debug, Clone)]
pub struct Running {
    /// Uid.
    pub uid: String,
    /// Who it is.
    pub info: PodInfo,
}

/// A pod whose sockets are bound, and that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    /// Namespace and name.
    name: String,
    pod: Arc<Pod>,
    /// By thread.
    sockets: Vec<Sockets>,
    names: Option<dns::Sockets>,
}

struct Entry {
    pod: Arc<Pod>,
    drain: Drain,
    /// Ends the task that keeps the certificate.
    _certificate: oneshot::Sender<()>,
}

/// Starts and stops pods. Cheap to clone.
#[derive(Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    threads: Vec<ThreadHandle<Worker>>,
    dns: Dns,
    shared: Arc<Shared>,
    certificates: Certificates,
    /// Gone once the proxy stops: the drain waits for whoever holds it.
    draining: Mutex<Option<Draining>>,
    running: Mutex<BTreeMap<String, Entry>>,
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods")
            .field("running", &self.inner.running.lock().len())
            .finish()
    }
}

impl Pods {
    /// No pods yet; they all stop with `draining`.
    #[must_use]
    pub fn new(
        threads: Vec<ThreadHandle<Worker>>,
        dns: Dns,
        shared: Arc<Shared>,
        certificates: Certificates,
        draining: Draining,
    ) -> Self {
        let running = Mutex::default();
        let draining = Mutex::new(Some(draining));
        Self {
            inner: Arc::new(Inner {
                threads,
                dns,
                shared,
                certificates,
                draining,
                running,
            }),
        }
    }

    /// Serves a pod: its sockets listen on every data thread when this returns.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing of the pod is left behind.
    pub async fn start(&self, wanted: &Wanted<PodNetns>) -> Result<(), StartError> {
        self.start_bound(self.bind(wanted)?).await
    }

    /// Binds a pod's sockets. What arrives there waits until [`Pods::start_bound`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn bind(&self, wanted: &Wanted<PodNetns>) -> Result<Bound, StartError> {
        let inner = &self.inner;
        let name = format!("{}/{}", wanted.info.namespace, wanted.info.name);
        let failed = |why| StartError::Sockets {
            pod: name.clone(),
            why,
        };
        let netns = wanted.netns.0.try_clone().map_err(failed)?;
        let sockets =
            Sockets::bind(&netns, &inner.shared.settings, inner.threads.len()).map_err(failed)?;
        let at = inner.shared.settings.dns_proxy;
        let names = at.map(|at| dns::Sockets::bind(&netns, &inner.shared.settings, at));
        let names = names.transpose().map_err(failed)?;
        let pod = Pod {
            uid: wanted.uid.clone(),
            info: wanted.info.clone(),
            netns,
            credential: crate::credential::Credential::default(),
            own: false,
        };
        Ok(Bound {
            name,
            pod: Arc::new(pod),
            sockets,
            names,
        })
    }

    /// Serves a pod whose sockets are bound.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing of the pod is left behind.
    pub async fn start_bound(&self, bound: Bound) -> Result<(), StartError> {
        let Bound {
            name,
            pod,
            sockets,
            names,
        } = bound;
        let inner = &self.inner;
        let (drain, keep) = self
            .serve(name.clone(), Arc::clone(&pod), sockets, names)
            .await?;
        let uid = pod.uid.clone();
        tracing::info!(pod = name, uid, "pod is served");
        let entry = Entry {
            pod,
            drain,
            _certificate: keep,
        };
        inner.running.lock().insert(uid, entry);
        inner.shared.metrics.pods.started.inc();
        self.count();
        Ok(())
    }

    /// Serves tunnels to the proxy itself, so that what it tells (its metrics) can be had under
    /// mutual TLS and policy. Returns when the proxy stops. To be called once, with sockets of
    /// [`Sockets::bind_own`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn serve_own(
        &self,
        info: PodInfo,
        netns: Netns,
        sockets: Vec<Sockets>,
    ) -> Result<(), StartError> {
        let name = format!("{}/{}", info.namespace, info.name);
        let pod = Arc::new(Pod {
            // No pod's uid, which is a UUID.
            uid: "self".to_owned(),
            info,
            netns,
            credential: crate::credential::Credential::default(),
            own: true,
        });
        let (drain, _certificate) = self.serve(name, pod, sockets, None).await?;
        drain.finished().await;
        Ok(())
    }

    /// Serves a pod on all threads, its names if there are sockets for them, and keeps its certificate until the second answer is dropped.
    async fn serve(
        &self,
        name: String,
        pod: Arc<Pod>,
        sockets: Vec<Sockets>,
        names: Option<dns::Sockets>,
    ) -> Result<(Drain, oneshot::Sender<()>), StartError> {
        let inner = &self.inner;
        let child = inner.draining.lock().as_ref().map(Draining::child);
        let (drain, draining) = child.ok_or_else(|| StartError::Stopping(name.clone()))?;
        for (thread, sockets) in inner.threads.iter().zip(sockets) {
            let (pod, draining) = (Arc::clone(&pod), draining.clone());
            let served = thread
                .ask("serve pod", move |worker| async move {
                    ServedPod::serve(&worker, pod, sockets, draining).map_err(|e| e.to_string())
                })
                .await;
            match served {
                Ok(Ok(())) => {}
                Ok(Err(problem)) => {
                    drain.stop();
                    return Err(StartError::Thread(name, problem));
                }
                Err(stopped) => return Err(StartError::Thread(name, stopped.to_string())),
            }
        }
        if let Some(sockets) = names {
            let served = inner.dns.serve(Arc::clone(&pod), sockets, draining).await;
            if let Err(error) = served {
                drain.stop();
                return Err(StartError::Thread(name, error.to_string()));
            }
        }
        let (keep, kept) = oneshot::channel();
        drop(tasks::spawn(
            "pod certificate",
            self.clone().keep_certificate(pod, kept),
        ));
        Ok((drain, keep))
    }

    /// Stops serving a pod. Its listeners close at once; its connections get until the
    /// termination deadline to end, because after an opt-out the pod goes on living. Of a pod that
    /// is gone they end by themselves.
    pub fn stop(&self, uid: &str) {
        let Some(entry) = self.inner.running.lock().remove(uid) else {
            return;
        };
        let grace = self.inner.shared.settings.termination_deadline;
        let info = &entry.pod.info;
        tracing::info!(
            namespace = info.namespace,
            pod = info.name,
            uid,
            "pod is no longer served"
        );
        self.inner.shared.metrics.pods.stopped.inc();
        self.count();
        // The entry's drop would be an order to stop at once, and end its certificate.
        drop(tasks::spawn("pod stop", async move {
            let Entry {
                pod,
                drain,
                _certificate,
            } = entry;
            if !drain.complete(grace).await {
                tracing::warn!("a pod's connections did not end in time");
            }
            Sockets::forget(&pod.netns);
        }));
    }

    /// Takes no more pods, so that the drain can come to its end.
    pub fn close(&self) {
        self.inner.draining.lock().take();
    }

    fn count(&self) {
        let running = self.inner.running.lock().len();
        let pods = &self.inner.shared.metrics.pods;
        pods.active.set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// Shows how many pods are wanted and not served.
    pub fn count_pending(&self, pending: usize) {
        let pods = &self.inner.shared.metrics.pods;
        pods.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    /// The pods served.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        let running = self.inner.running.lock();
        running
            .iter()
            .map(|(uid, entry)| Running {
                uid: uid.clone(),
                info: entry.pod.info.clone(),
            })
            .collect()
    }

    /// The open connections of all threads.
    pub async fn connections(&self) -> Vec<Listed> {
        let mut all = Vec::new();
        for thread in &self.inner.threads {
            let listed = thread
                .ask("list", |worker| async move { worker.live.list() })
                .await;
            all.extend(listed.unwrap_or_default());
        }
        all
    }

    /// Keeps a pod's certificate in its place, from the moment its identity is known.
    async fn keep_certificate(self, pod: Arc<Pod>, mut stop: oneshot::Receiver<()>) {
        tokio::select! {
            _ = &mut stop => {}
            () = self.follow_identity(&pod) => {}
        }
    }

    async fn follow_identity(&self, pod: &Pod) {
        let shared = &self.inner.shared;
        let mut views = shared.store.changes();
        let identity = || {
            shared.store.read(|view| {
                let workload = pod.find(view, &shared.settings.local_node);
                workload.map(|workload| workload.identity.clone())
            })
        };
        loop {
            let Some(known) = identity() else {
                if views.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let certificates = &self.inner.certificates;
            let lease = match pod.own {
                true => certificates.lease(&known),
                false => certificates.lease_for(&known, &pod.uid),
            };
            let lease = match lease {
                Ok(lease) => lease,
                Err(error) => {
                    pod.credential.fail(&error.to_string());
                    // Pods must end before there is room; look again at a walking pace.
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    continue;
                }
            };
            let mut changed = std::pin::pin!(async {
                loop {
                    if views.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    // A workload that is gone for a moment keeps the certificate it had.
                    if identity().is_some_and(|now| now != known) {
                        return;
                    }
                }
            });
            tokio::select! {
                () = &mut changed => {}
                () = self.follow_lease(pod, &lease) => {}
            }
        }
    }

    async fn follow_lease(&self, pod: &Pod, lease: &Lease) {
        let mut attempts = lease.attempts();
        let mut generation = 0;
        loop {
            attempts.borrow_and_update();
            match lease.get().await {
                Ok(svid) if svid.generation() == generation => {}
                Ok(svid) => {
                    generation = svid.generation();
                    pod.credential.put(svid);
                    self.retire(lease.identity(), generation);
                }
                Err(error) => pod.credential.fail(&error.to_string()),
            }
            if attempts.changed().await.is_err() {
                return;
            }
        }
    }

    /// Lets tunnels of older certificates of `identity` carry nothing new.
    fn retire(&self, identity: &Identity, generation: u64) {
        for thread in &self.inner.threads {
            let identity = identity.clone();
            let retire = move |worker: std::rc::Rc<Worker>| async move {
                worker
                    .pool
                    .retire(|key| key.identity == identity && key.generation != generation);
            };
            // A thread that has stopped has no tunnels.
            let _ = thread.run("retire tunnels", retire);
        }
    }
}

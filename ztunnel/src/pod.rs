//! One pod: its sockets in its own network namespace, and what its connections need.
//!
//! # Theory of operation
//! The control thread binds all of a pod's listeners in one visit to its namespace (three a data
//! thread, sharing the ports) and hands each thread its own. From then on a connection stays on
//! the thread whose listener the kernel gave it to. Stopping goes the other way: the control
//! thread asks, each thread closes its listeners, says good-bye on its tunnels, lets connections
//! end until the deadline, and ends the rest.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_model::admit::Asked;
use ambit_model::reason::Reason;
use ambit_model::view::{LocalPod, View};
use ambit_model::workload::{Health, Workload, WorkloadType};
use ambit_net::listen::{DEFAULT_BACKLOG, TcpListen, Transparent, hand_over};
use ambit_net::netns::Netns;
use ambit_net::options;
use ambit_runtime::accept::accept_loop;
use ambit_runtime::drain::Draining;
use ambit_runtime::tasks::spawn_local;
use ambit_tls::Svid;
use ambit_wire::baggage::{Baggage, OwnerType};
use http::HeaderValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::busy::{Busy, Work};
use crate::config::{
    HBONE_PORT, Keepalive, OUTBOUND_PORT, OriginalSource, PASSTHROUGH_PORT, Settings,
};
use crate::credential::Credential;
use crate::flag::Flag;
use crate::inpod::reconcile::PodInfo;
use crate::live::{Decided, Guard};
use crate::record::Outcome;
use crate::worker::Worker;
use crate::{inbound, outbound, passthrough, verdict};

/// How long a connection waits for its own workload or certificate to become known: as long as
/// Istio's node proxy. A pod's first connection often comes before the control plane has seen it.
pub const UNKNOWN: Duration = Duration::from_secs(5);

/// How long a policy that a pod's record lists may be unknown before that forbids what it would
/// decide on: workloads and policies come in different responses, in either order. Until then new
/// connections wait and open ones go on.
pub const UNRESOLVED: Duration = Duration::from_secs(5);

/// A pod as every thread sees it.
#[derive(Debug)]
pub struct Pod {
    /// Kubernetes uid.
    pub uid: String,
    /// Who it is; the agent vouches for it.
    pub info: PodInfo,
    /// Its network namespace.
    pub netns: Netns,
    /// Its certificate.
    pub credential: Credential,
    /// It is the proxy's own pod. Nothing is redirected there: it takes tunnels only, and what it
    /// dials sees the proxy's address, since the answers to any other would not come back.
    pub own: bool,
}

impl Pod {
    /// The pod's record in `view`.
    #[must_use]
    pub fn find<'v>(&self, view: &'v View, node: &str) -> Option<&'v Arc<Workload>> {
        view.local(&LocalPod {
            namespace: &self.info.namespace,
            name: &self.info.name,
            service_account: &self.info.service_account,
            node,
        })
    }
}

/// One thread's listeners in one pod.
#[derive(Debug)]
pub struct Sockets {
    hbone: StdListener,
    /// For what is redirected to us; none in our own pod.
    redirected: Option<Redirected>,
}

#[derive(Debug)]
struct Redirected {
    outbound: StdListener,
    passthrough: StdListener,
}

impl Sockets {
    /// Binds the listeners of `threads` threads in one visit to the pod's namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, a port is in use there, or a capability is missing.
    pub fn bind(
        netns: &Netns,
        settings: &Settings,
        threads: usize,
    ) -> Result<Vec<Self>, ambit_net::Error> {
        let transparent = match settings.original_source {
            OriginalSource::Auto => Transparent::Wanted,
            OriginalSource::Required => Transparent::Required,
            OriginalSource::Off => Transparent::Off,
        };
        let listen = |port| bound(settings, listener(settings, threads, port, transparent));
        let all = || {
            Ok(Self {
                redirected: Some(Redirected {
                    outbound: listen(OUTBOUND_PORT)?,
                    passthrough: listen(PASSTHROUGH_PORT)?,
                }),
                hbone: listen(HBONE_PORT)?,
            })
        };
        netns.run(|| {
            let bound = (0..threads).map(|_| all()).collect();
            if !hand_over(true) {
                tracing::debug!("net.ipv4.tcp_migrate_req cannot be set: connections may be reset in the moment in which another proxy takes over");
            }
            bound
        })?
    }

    /// Takes back, in the namespace of a pod that leaves the mesh, what [`Sockets::bind`] set there
    /// beside its listeners. A namespace that is gone needs it no more.
    pub fn forget(netns: &Netns) {
        let _ = netns.run(|| hand_over(false));
    }

    /// Binds the listeners for tunnels to the proxy itself, in its own namespace.
    ///
    /// # Errors
    /// The port is in use there.
    pub fn bind_own(settings: &Settings, threads: usize) -> Result<Vec<Self>, ambit_net::Error> {
        let own = || {
            let listener = listener(settings, threads, HBONE_PORT, Transparent::Off);
            Ok(Self {
                redirected: None,
                hbone: bound(settings, listener)?,
            })
        };
        (0..threads).map(|_| own()).collect()
    }
}

/// Binds, and sets what every accepted connection is to have: it has what its listener had.
fn bound(settings: &Settings, listener: TcpListen) -> Result<StdListener, ambit_net::Error> {
    let listener = listener.bind()?;
    // Without them a connection is slower, or noticed later when it is dead.
    let _ = options::nodelay(&listener);
    if let Some(keepalive) = keepalive(settings) {
        let _ = options::keepalive(&listener, &keepalive);
    }
    if let Some(after) = settings.user_timeout {
        let _ = options::user_timeout(&listener, after);
    }
    Ok(listener)
}

fn listener(settings: &Settings, threads: usize, port: u16, transparent: Transparent) -> TcpListen {
    TcpListen {
        address: SocketAddr::new(settings.wildcard(), port),
        transparent,
        // Without it a second thread could not listen.
        reuse_port: settings.inpod_port_reuse || threads > 1,
        mark: mark(settings),
        backlog: DEFAULT_BACKLOG,
    }
}

/// The packet mark of our sockets, if there is one.
#[must_use]
pub fn mark(settings: &Settings) -> Option<u32> {
    (settings.packet_mark != 0).then_some(settings.packet_mark)
}

/// Keepalive in the form of the sockets.
#[must_use]
pub fn keepalive(settings: &Settings) -> Option<options::Keepalive> {
    settings.keepalive.map(
        |Keepalive {
             time,
             interval,
             retries,
         }| options::Keepalive {
            idle: time,
            interval,
            probes: retries,
        },
    )
}

/// What a pod's record says of it, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Unknown,
    Unhealthy,
    Healthy,
}

/// A pod as served by one thread.
#[derive(Debug)]
pub struct ServedPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its uid, for the registry of connections.
    pub uid: Rc<str>,
    /// The thread.
    pub worker: Rc<Worker>,
    /// Raised when no new work is to be taken.
    draining: Flag,
    /// Raised, and replaced by another, each time the pod's record gets worse: see [`Standing`].
    leaving: RefCell<Flag>,
    standing: Cell<Standing>,
    /// Until when a policy that the record lists may be unknown; `None` when all are known.
    unresolved: Cell<Option<Instant>>,
    /// Raised when the time to finish is over.
    pub over: Flag,
    /// Tasks at work for it on this thread: listeners, and connections from accept to close.
    pub busy: Busy,
    /// What the pod says of itself on its tunnels, and for which record of it.
    baggage: RefCell<Option<(Arc<Workload>, HeaderValue)>>,
}

impl ServedPod {
    /// Serves `pod` on the calling thread until `draining` asks to stop.
    ///
    /// # Errors
    /// The sockets cannot be registered with the thread's event loop.
    pub fn serve(
        worker: &Rc<Worker>,
        pod: Arc<Pod>,
        sockets: Sockets,
        draining: Draining,
    ) -> io::Result<()> {
        let hbone = TcpListener::from_std(sockets.hbone)?;
        let redirected = match sockets.redirected {
            None => None,
            Some(there) => Some((
                TcpListener::from_std(there.outbound)?,
                TcpListener::from_std(there.passthrough)?,
            )),
        };
        let served = Rc::new(Self {
            uid: Rc::from(pod.uid.as_str()),
            pod,
            worker: Rc::clone(worker),
            draining: Flag::default(),
            leaving: RefCell::default(),
            standing: Cell::new(Standing::Unknown),
            unresolved: Cell::default(),
            over: Flag::default(),
            busy: Busy::default(),
            baggage: RefCell::default(),
        });
        worker.add(&served);
        worker.shared.store.read(|view| served.notice(view));
        let to_outbound = |pod, stream, peer, work| {
            drop(spawn_local(
                "outbound",
                outbound::serve(pod, stream, peer, work),
            ));
        };
        let to_passthrough = |pod, stream, peer, work| {
            drop(spawn_local(
                "passthrough",
                passthrough::serve(pod, stream, peer, work),
            ));
        };
        let to_inbound = |pod, stream, peer, work| {
            drop(spawn_local(
                "inbound",
                inbound::serve(pod, stream, peer, work),
            ));
        };
        if let Some((outbound, passthrough)) = redirected {
            served.listen("outbound listener", outbound, &draining, to_outbound);
            let name = "passthrough listener";
            served.listen(name, passthrough, &draining, to_passthrough);
        }
        served.listen("inbound listener", hbone, &draining, to_inbound);
        drop(spawn_local("pod drain", served.end(draining)));
        Ok(())
    }

    fn listen(
        self: &Rc<Self>,
        name: &'static str,
        listener: TcpListener,
        draining: &Draining,
        serve: impl Fn(Rc<Self>, TcpStream, SocketAddr, Work) + 'static,
    ) {
        let (pod, draining) = (Rc::clone(self), draining.clone());
        // From before the first connection to after the last: the pod is not idle while one may
        // still come.
        let work = self.busy.begin();
        let accepting = async move {
            let _listening = work;
            let each = |stream: TcpStream, peer| {
                serve(Rc::clone(&pod), stream, peer, pod.busy.begin());
            };
            if let Err(error) = accept_loop(listener, &draining, each).await {
                tracing::error!(name, pod = pod.pod.info.name, %error, "listener failed");
            }
        };
        drop(spawn_local(name, accepting));
    }

    /// Waits for the drain and carries it out. Holds the drain until the pod's connections ended.
    async fn end(self: Rc<Self>, draining: Draining) {
        draining.requested().await;
        self.draining.raise();
        tokio::select! {
            () = self.busy.idle() => {}
            () = draining.stopped() => {}
        }
        self.worker.live.end(&self.uid, Reason::Drained);
        self.over.raise();
        let source = self.workload_now().map(|workload| workload.uid.clone());
        self.worker.pool.close("pod is no longer served", |key| {
            Some(&key.source) == source.as_ref()
        });
        self.worker.remove(&self);
        self.busy.idle().await;
    }

    /// Looks at the pod's record in a new view. A pod that is going becomes unhealthy and is then
    /// forgotten, while its namespace is still there: the last moment at which its peers can be told
    /// to open no more streams.
    pub fn notice(&self, view: &View) {
        let known = self.pod.find(view, &self.worker.shared.settings.local_node);
        let now = known.map_or(Standing::Unknown, |workload| match workload.health {
            Health::Unhealthy => Standing::Unhealthy,
            Health::Healthy => Standing::Healthy,
        });
        if now < self.standing.replace(now) {
            self.leaving.take().raise();
        }
        if known.is_none_or(|workload| all_known(view, workload)) {
            self.unresolved.set(None);
        } else {
            self.unresolved_until();
        }
    }

    /// Until when a policy that the pod's record lists may be unknown, if one is.
    #[must_use]
    pub fn waits_until(&self) -> Option<Instant> {
        self.unresolved.get()
    }

    /// The same, when one is known to be unknown: the time runs from when that was first seen.
    fn unresolved_until(&self) -> Instant {
        let until = self.unresolved.get().unwrap_or(Instant::now() + UNRESOLVED);
        self.unresolved.set(Some(until));
        until
    }

    /// Waits until every policy that the pod's record lists is known, if that may still come.
    /// Answers whether it is worth asking again.
    pub async fn policies_known(&self) -> bool {
        let limit = self
            .unresolved_until()
            .saturating_duration_since(Instant::now());
        let shared = &self.worker.shared;
        let find = |view: &View| {
            let known = self.pod.find(view, &shared.settings.local_node)?;
            all_known(view, known).then_some(())
        };
        let known = !limit.is_zero() && shared.store.wait_for(limit, find).await.is_some();
        if known {
            self.unresolved.set(None);
        }
        known
    }

    /// Whether it takes no new work any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_raised()
    }

    /// Waits until the peers of a tunnel that is there now are to open no more streams on it.
    pub fn leaving(&self) -> impl Future<Output = ()> + 'static {
        let (draining, leaving) = (self.draining.wait(), self.leaving.borrow().wait());
        async move {
            tokio::select! {
                () = draining => {}
                () = leaving => {}
            }
        }
    }

    /// The pod's record now.
    #[must_use]
    pub fn workload_now(&self) -> Option<Arc<Workload>> {
        let shared = &self.worker.shared;
        shared
            .store
            .read(|view| self.pod.find(view, &shared.settings.local_node).cloned())
    }

    /// The pod's record, waiting for it no longer than [`UNKNOWN`]. Where it has to be asked for, it is the one at `own`, an
    /// address of the pod.
    pub async fn workload(&self, own: IpAddr) -> Option<Arc<Workload>> {
        match self.workload_now() {
            Some(known) => Some(known),
            // Boxed: the waiting is rare and its state need not lie in every connection.
            None => Box::pin(self.workload_later(own)).await,
        }
    }

    async fn workload_later(&self, own: IpAddr) -> Option<Arc<Workload>> {
        let shared = &self.worker.shared;
        if let Some(demand) = &shared.demand {
            demand.ask_at(&shared.settings.network, own);
        }
        let find = |view: &View| self.pod.find(view, &shared.settings.local_node).cloned();
        shared.store.wait_for(UNKNOWN, find).await
    }

    /// The pod's certificate, waiting for it no longer than [`UNKNOWN`].
    ///
    /// # Errors
    /// There is none: without it nothing goes in or out.
    pub async fn svid(&self) -> Result<Arc<Svid>, Outcome> {
        if let Some(svid) = self.pod.credential.current() {
            return Ok(svid);
        }
        let later = Box::pin(self.pod.credential.wait(UNKNOWN)).await;
        later.map_err(|problem| Outcome::because(Reason::CertificateUnavailable, problem))
    }

    /// Registers a connection of this pod, in the turn in which it was decided.
    #[must_use]
    pub fn register(&self, decided: Decided, client: SocketAddr, wanted: Option<Rc<str>>) -> Guard {
        let guard = self
            .worker
            .live
            .register(&self.uid, decided, client, wanted);
        if self.over.is_raised() {
            // Its listener is closed and whoever would end it has been here.
            self.worker.live.end(&self.uid, Reason::Drained);
        }
        guard
    }

    /// Tells what the policies were asked about a connection of this pod, and what they said.
    pub fn tell(&self, asked: &Asked<'_, '_>) {
        let info = self.worker.shared.settings.policy_info_logging;
        verdict::tell(&self.worker.telemetry.tried, info, asked);
    }

    /// What `workload`, the pod's record, says of itself on tunnels.
    #[must_use]
    pub fn baggage(&self, workload: &Arc<Workload>) -> Option<HeaderValue> {
        let mut kept = self.baggage.borrow_mut();
        if let Some((of, value)) = &*kept
            && Arc::ptr_eq(of, workload)
        {
            return Some(value.clone());
        }
        let value = HeaderValue::try_from(baggage_of(workload).to_string()).ok()?;
        *kept = Some((Arc::clone(workload), value.clone()));
        Some(value)
    }
}

fn all_known(view: &View, workload: &Workload) -> bool {
    workload.policies.is_empty() || view.policies_for(workload).unresolved().is_none()
}

fn baggage_of(workload: &Workload) -> Baggage {
    let some = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    Baggage {
        cluster: some(&workload.cluster),
        namespace: some(&workload.namespace),
        workload_type: Some(match workload.workload_type {
            WorkloadType::Deployment => OwnerType::Deployment,
            WorkloadType::CronJob => OwnerType::CronJob,
            WorkloadType::Pod => OwnerType::Pod,
            WorkloadType::Job => OwnerType::Job,
        }),
        workload_name: some(&workload.workload_name),
        service_name: some(&workload.canonical_name),
        service_version: some(&workload.canonical_revision),
        region: some(&workload.locality.region),
        zone: some(&workload.locality.zone),
    }
}

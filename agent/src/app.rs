//! The agent as a whole, in the order in which it starts.
//!
//! 1. logging, metrics, admin server
//! 2. the folder is read, and each pod of this node is looked at once
//! 3. rules of pods that are gone are removed
//! 4. only now node proxies may connect: before, they would be told of too few pods and drop the others
//! 5. follow the folder until asked to end
//!
//! When the agent ends, rules and proxies stay as they are: the pods stay in the mesh.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambit_objects::status::Writer;
use ambit_objects::{Folder, Watch};
use ambit_observe::logging::{LogFormat, Logging};
use ambit_observe::metrics::{Descriptor, Kind, Registry};
use ambit_observe::server::{self, Answer, Routes};
use ambit_observe::version::Version;
use ambit_observe::{admin, process};
use ambit_runtime::settle;
use ambit_runtime::signal::Termination;
use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::config::{Run, Unenrol};
use crate::namespace::Claims;
use crate::nftables::Owner;
use crate::pod::Shared;
use crate::reconcile::{self, Reconciler};
use crate::redirect;
use crate::report::Reports;
use crate::session::Hub;

/// How long the first look at all pods may keep node proxies waiting.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Runs until asked to end.
///
/// # Errors
/// What keeps the agent from starting: an address or socket that cannot be bound, a folder that cannot be read.
pub async fn run(run: Run) -> anyhow::Result<()> {
    let logging = Logging::install(LogFormat::named(&run.log_format), &run.log_level)?;
    let registry = Registry::default();
    Version::of("").register("cni", &registry);
    process::register(&registry, Some(&tokio::runtime::Handle::current()));

    let hub = Hub::default();
    let reports = Reports::new(&registry);
    let (quit, mut asked) = mpsc::channel(1);
    let ready = Arc::new(AtomicBool::new(false));
    let routes = routes(&run, &logging, quit, &registry, &hub, &reports, &ready);
    let listener = TcpListener::bind(run.admin).await;
    let listener = listener.with_context(|| format!("the admin server at {}", run.admin))?;
    tokio::spawn(server::serve(listener, routes, std::future::pending()));

    let folder = Folder::new(&run.manifests, run.status.as_deref());
    let writer = Writer::new(folder.overlay()).context("the folder of the pods' status")?;
    let mut watch = Watch::start(folder)
        .with_context(|| format!("the manifests in {}", run.manifests.display()))?;
    let shared = Shared {
        node: run.node_name.clone(),
        source: source(&run.manifests)?,
        settle: run.settle,
        drain: run.drain,
        claims: Arc::new(Claims::for_this_host()),
        hub: hub.clone(),
        writer,
        reports,
    };
    let mut reconciler = Reconciler::new(Arc::new(shared), run.settings());
    let objects = watch.next().await;
    let looking = reconciler.apply(&objects);
    all_looked(looking).await;
    reconciler.sweep(&run.netns_dir);

    let mut termination = Termination::watch()?;
    let socket = run.zds_socket.as_path();
    let listening = hub
        .listen(socket)
        .with_context(|| format!("the socket {}", socket.display()))?;
    let mut listening = tokio::spawn(listening);
    ready.store(true, Ordering::Relaxed);
    tracing::info!(node = run.node_name, "ready");
    settle::after(std::future::ready(()));
    loop {
        tokio::select! {
            objects = watch.next() => drop(reconciler.apply(&objects)),
            cause = termination.requested() => {
                tracing::info!(?cause, "ending; pods stay as they are");
                break;
            }
            _asked = asked.recv() => break,
            ended = &mut listening => {
                anyhow::bail!("the server for node proxies ended: {ended:?}");
            }
        }
    }
    logging.writer().flush(Duration::from_secs(1));
    Ok(())
}

/// The folder by its one name, whatever way it was given.
fn source(manifests: &Path) -> anyhow::Result<PathBuf> {
    let named = manifests.canonicalize();
    named.with_context(|| format!("the manifests in {}", manifests.display()))
}

async fn all_looked(looking: Vec<oneshot::Receiver<()>>) {
    let deadline = Instant::now() + FIRST_LOOK;
    for one in looking {
        if timeout_at(deadline, one).await.is_err() {
            tracing::warn!("a pod could not be looked at in time");
        }
    }
}

fn routes(
    run: &Run,
    logging: &Logging,
    quit: mpsc::Sender<()>,
    registry: &Registry,
    hub: &Hub,
    reports: &Reports,
    ready: &Arc<AtomicBool>,
) -> Routes {
    let connected = hub.clone();
    let gauge = Descriptor {
        name: "ztunnel_connected",
        help: "Node proxies that are connected.",
        kind: Kind::Gauge,
    };
    registry.computed(gauge, move || {
        Some(f64::from(
            u32::try_from(connected.proxies()).unwrap_or(u32::MAX),
        ))
    });
    let routes = admin::routes(logging, quit);
    routes.absorb(&admin::metrics_routes(registry));
    let ready = Arc::clone(ready);
    routes.absorb(&admin::readiness_routes(move || {
        let pending = (!ready.load(Ordering::Relaxed)).then(|| "first look at pods".to_owned());
        pending.into_iter().collect()
    }));
    let (node, hub, reports) = (run.node_name.clone(), hub.clone(), reports.clone());
    routes.get(
        "/debug/pods",
        "the pods of this node, and why each is in the mesh or not",
        move |_| {
            Answer::json(&serde_json::json!({
                "node": node,
                "nodeProxiesConnected": hub.proxies(),
                "pods": reports.to_json(),
            }))
        },
    );
    routes
}

/// Removes what agents left in the namespaces of pods; returns how many pods that were.
///
/// # Errors
/// The first namespace that could not be cleaned; the others are.
pub fn unenrol(command: &Unenrol) -> anyhow::Result<usize> {
    let mut removed = 0;
    let mut failure = None;
    let source = command.manifests.as_deref().map(source).transpose()?;
    for (path, netns) in reconcile::namespaces(&command.netns_dir) {
        let Ok(Some(owner)) = redirect::owner(&netns) else {
            continue;
        };
        let ours = |owner: &Owner| {
            let node = command.node_name.as_deref().unwrap_or(&owner.node);
            match &source {
                Some(source) => owner.same_agent(&Owner::new(node, source, "")),
                None => owner.node == Owner::new(node, Path::new(""), "").node,
            }
        };
        if !owner.as_ref().is_some_and(ours) {
            continue;
        }
        match redirect::remove(&netns) {
            Ok(()) => removed += 1,
            Err(error) => failure = failure.or(Some(anyhow::Error::new(error).context(path))),
        }
    }
    if let Some(manifests) = &command.manifests {
        remove_status(command, manifests)?;
    }
    failure.map_or(Ok(removed), Err)
}

fn remove_status(command: &Unenrol, manifests: &Path) -> anyhow::Result<()> {
    let mut folder = Folder::new(manifests, command.status.as_deref());
    let writer = Writer::new(folder.overlay())?;
    for (name, pod) in &folder.read()?.pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if command.node_name.is_none() || node == command.node_name.as_deref() {
            writer.remove(name)?;
        }
    }
    Ok(())
}

//! The controller at work.
//!
//! 1. Open the keys.
//! 2. Read the objects once, so that nobody is told of an empty mesh.
//! 3. Listen.
//! 4. For ever: watch, translate, publish; each session sends its client the difference.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_objects::{Folder, Objects, Watch};
use ambit_observe::admin::routes;
use ambit_observe::logging::Logging;
use ambit_observe::metrics::Registry;
use ambit_observe::process;
use ambit_runtime::clock::Clock;
use ambit_runtime::drain::{Draining, drain};
use ambit_runtime::settle;
use ambit_runtime::signal::Termination;
use ambit_runtime::tasks;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::admin;
use crate::authority::Authority;
use crate::authority::keys::{KeyError, Keys};
use crate::authority::review::{Caller, Denied, Reviewer};
use crate::config::{Mesh, Serve};
use crate::metrics::Metrics;
use crate::publish::Published;
use crate::serve::Discovery;
use crate::serve::clients::Clients;
use crate::serve::listen::{self, Identity};
use crate::translate::translate;

/// Time for open streams to end when the controller is told to stop. They have nothing to finish.
const GRACE: Duration = Duration::from_secs(5);

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The folder of manifests.
    #[error("manifests {0}")]
    Manifests(String, #[source] io::Error),
    /// A port.
    #[error("cannot listen on {0}")]
    Listen(String, #[source] io::Error),
    /// The key of somebody else's tokens.
    #[error("token key: {0}")]
    TokenKey(String),
    /// The server's certificate.
    #[error("server certificate")]
    Certificate(#[from] ambit_tls::TlsError),
    /// Metrics, logs, signals.
    #[error("cannot start")]
    Start(#[source] io::Error),
}

/// What is published now, and whose token counts.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    published: watch::Sender<Arc<Published>>,
    reviewer: Reviewer,
    metrics: Arc<Metrics>,
}

impl Shared {
    /// Publishes `objects` for the first time.
    pub fn new(
        objects: Arc<Objects>,
        mesh: Mesh,
        reviewer: Reviewer,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (cluster, resources) = translate(objects, mesh);
        let first = Published::new(cluster, resources, None);
        metrics.published(&first, crate::publish::Difference::default());
        let published = watch::Sender::new(Arc::new(first));
        Self(Arc::new(Inner {
            published,
            reviewer,
            metrics,
        }))
    }

    /// What is published now.
    pub fn published(&self) -> Arc<Published> {
        self.0.published.borrow().clone()
    }

    /// What is published now and from now on.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.0.published.subscribe()
    }

    /// Translates and publishes new objects. One caller at a time.
    pub fn update(&self, objects: Arc<Objects>) {
        let before = self.published();
        let mesh = before.cluster.mesh().clone();
        let (cluster, resources) = translate(objects, mesh);
        let next = Published::new(cluster, resources, Some(&before));
        let difference = next.difference(&before);
        self.0.metrics.published(&next, difference);
        tell(&next, Some(&before));
        let (changed, removed) = (difference.changed, difference.removed);
        tracing::info!(changed, removed, "objects changed");
        self.0.published.send_replace(Arc::new(next));
    }

    /// Who calls, by the token in the call's metadata.
    ///
    /// # Errors
    /// Unauthenticated; the reason is in the log only.
    pub fn caller(
        &self,
        metadata: &MetadataMap,
        published: &Published,
        now: SystemTime,
    ) -> Result<Caller, Status> {
        let header = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| {
            let (scheme, token) = header.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        let reviewed = token.ok_or(Denied::Missing).and_then(|token| {
            self.0
                .reviewer
                .review(token, published.cluster.objects(), now)
        });
        reviewed.map_err(|denied| {
            self.0.metrics.denied();
            tracing::warn!(%denied, "call refused");
            Status::unauthenticated("authentication failure")
        })
    }
}

/// Logs what is newly wrong.
fn tell(published: &Published, before: Option<&Published>) {
    let known = before.map(|before| &before.cluster.objects().problems);
    for problem in &published.cluster.objects().problems {
        if known.is_none_or(|known| !known.contains(problem)) {
            tracing::warn!("{problem}");
        }
    }
    let known = before.map(|before| &before.findings);
    for finding in &published.findings {
        if known.is_none_or(|known| !known.contains(finding)) {
            tracing::warn!("{finding}");
        }
    }
}

/// Runs until asked to stop.
///
/// # Errors
/// When it cannot start.
pub async fn serve(settings: Serve, logging: &Logging) -> Result<(), Error> {
    let clock = Clock::system();
    let mut termination = Termination::watch().map_err(Error::Start)?;
    let keys = Keys::open(&settings.state, &settings.mesh.trust_domain, clock.now())?;
    let reviewer = reviewer(&settings, &keys)?;
    let registry = Registry::default();
    process::register(&registry, Some(&tokio::runtime::Handle::current()));
    let metrics = Arc::new(Metrics::register(&registry));

    let folder = Folder::new(&settings.manifests, settings.status.as_deref());
    let mut objects = Watch::start(folder)
        .map_err(|error| Error::Manifests(settings.manifests.display().to_string(), error))?;
    let shared = Shared::new(
        objects.next().await,
        settings.mesh.clone(),
        reviewer,
        Arc::clone(&metrics),
    );
    tell(&shared.published(), None);

    let (stop, draining) = drain();
    let clients = Arc::new(Clients::default());
    let (quit, mut quitting) = mpsc::channel(1);
    let admin = serve_admin(
        &settings, logging, &registry, &shared, &clients, quit, &draining,
    )
    .await?;
    let root = Arc::new(keys.root);
    let identity = Identity::new(Arc::clone(&root), &settings.server_names, clock.clone())?;
    tasks::spawn("certificate renewal", identity.clone().renew());
    let listener = bind(&settings.listen.to_string()).await?;
    let listen = listener.local_addr().map_err(Error::Start)?;
    tracing::info!(%listen, %admin, names = ?settings.server_names, "serving");
    let discovery = Discovery {
        shared: shared.clone(),
        clients,
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
        draining: draining.clone(),
    };
    let authority = Authority {
        root,
        shared: shared.clone(),
        max_ttl: settings.max_ttl,
        clock,
        metrics,
    };
    let mut serving = tasks::spawn(
        "listener",
        Box::pin(listen::run(
            listener,
            identity,
            discovery,
            authority,
            draining.clone(),
        )),
    );
    tasks::spawn("objects", follow(objects, shared, draining));
    settle::after(std::future::ready(()));
    tokio::select! {
        cause = termination.requested() => tracing::info!(?cause, "stopping"),
        _ = quitting.recv() => tracing::info!("stopping on request"),
        _ = &mut serving => return Err(Error::Start(io::Error::other("the listener failed"))),
    }
    stop.complete(GRACE).await;
    Ok(())
}

/// Publishes every change of the objects until drained. Changes that come together were put
/// together by the watch, which waits for the folder to be quiet.
async fn follow(mut objects: Watch, shared: Shared, draining: Draining) {
    loop {
        tokio::select! {
            () = draining.requested() => return,
            next = objects.next() => shared.update(next),
        }
    }
}

fn reviewer(settings: &Serve, keys: &Keys) -> Result<Reviewer, Error> {
    let mut trusted = vec![keys.token_public.clone()];
    if let Some(file) = &settings.token_key {
        let pem = std::fs::read_to_string(file)
            .map_err(|error| Error::TokenKey(format!("{}: {error}", file.display())))?;
        trusted.push(pem);
    }
    Reviewer::new(trusted.iter().map(String::as_str))
        .map_err(|error| Error::TokenKey(error.to_owned()))
}

async fn serve_admin(
    settings: &Serve,
    logging: &Logging,
    registry: &Registry,
    shared: &Shared,
    clients: &Arc<Clients>,
    quit: mpsc::Sender<()>,
    draining: &Draining,
) -> Result<SocketAddr, Error> {
    let routes = routes(logging, quit);
    admin::add(&routes, registry, shared, clients);
    let listener = bind(&settings.admin.to_string()).await?;
    let address = listener.local_addr().map_err(Error::Start)?;
    let end = draining.clone();
    let serving =
        ambit_observe::server::serve(listener, routes, async move { end.requested().await });
    tasks::spawn("admin", Box::pin(serving));
    Ok(address)
}

async fn bind(address: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::Listen(address.to_owned(), error))
}

//! The program, in the order in which it starts and stops.
//!
//! Start: 1. logs and limits, 2. local servers, 3. control plane (certificate and discovery), 4. data
//! threads with their listeners, 5. ready once clusters and listeners were accepted and the
//! certificate is there.
//!
//! Stop: 1. not ready, 2. listeners close, tunnels say good-bye, 3. requests end by themselves until
//! the deadline, 4. what is left is ended, 5. exit.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambit_control::{Channel, ControlPlane};
use ambit_identity::{CaIssuer, Certificates, Lease};
use ambit_model::text::Text;
use ambit_net::listen::TcpListen;
use ambit_observe::access::AccessLog;
use ambit_observe::logging::Logging;
use ambit_observe::metrics::Registry;
use ambit_observe::server::{Answer, Routes};
use ambit_observe::version::Version;
use ambit_observe::{admin, process, server};
use ambit_proto::discovery::Node;
use ambit_proto::type_url;
use ambit_runtime::clock::Clock;
use ambit_runtime::drain::{Draining, drain};
use ambit_runtime::ready::Readiness;
use ambit_runtime::settle;
use ambit_runtime::signal::Termination;
use ambit_runtime::tasks;
use ambit_runtime::threads::DataThreads;
use ambit_xds::client::{self, Config};
use ambit_xds::delta::Subscription;
use anyhow::Context;
use prost_types::value::Kind as Json;
use prost_types::{ListValue, Struct, Value};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::config::{Endpoint, Settings};
use crate::discovery::{Discovery, Published};
use crate::dump;
use crate::envoy::Kind;
use crate::metrics::Metrics;
use crate::serve::Shared;
use crate::tunnel;
use crate::upstream::Upstreams;

/// Time for log lines to leave at the end.
const FLUSH: Duration = Duration::from_millis(500);

/// Runs the waypoint until it is asked to stop.
///
/// # Errors
/// It cannot start: a port of its own is taken, or a setting names something that is not there.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut termination = Termination::watch()?;
    let logging =
        Logging::install(settings.log_format, &settings.log_filter).context("RUST_LOG")?;
    let (quit, mut quits) = mpsc::channel(1);
    let (stop, draining) = drain();
    let deadline = settings.termination_deadline;
    let waypoint = Waypoint::start(Arc::new(settings), &logging, quit, &draining)?;
    // The drain is over when the last piece of work is; this is none.
    drop(draining);
    tokio::select! {
        cause = termination.requested() => tracing::info!(?cause, "stop requested by signal"),
        _ = quits.recv() => tracing::info!("stop requested at the admin port"),
    }
    waypoint.stopping.store(true, Ordering::Relaxed);
    tracing::info!(?deadline, "draining");
    match termination
        .unless_interrupted(stop.complete(deadline))
        .await
    {
        Some(true) => tracing::info!("all connections ended"),
        Some(false) => tracing::warn!("connections were cut at the deadline"),
        None => tracing::warn!("interrupted again: stopping at once"),
    }
    waypoint.threads.stop();
    logging.writer().flush(FLUSH);
    Ok(())
}

/// The running parts, besides tasks that run for ever.
struct Waypoint {
    threads: DataThreads<Shared>,
    stopping: Arc<AtomicBool>,
}

/// What all parts have in common.
#[derive(Clone)]
struct Parts {
    settings: Arc<Settings>,
    published: Published,
    certificates: Certificates,
    registry: Registry,
    readiness: Readiness,
    metrics: Metrics,
    log: AccessLog,
}

impl Waypoint {
    fn start(
        settings: Arc<Settings>,
        logging: &Logging,
        quit: mpsc::Sender<()>,
        draining: &Draining,
    ) -> anyhow::Result<Self> {
        let descriptors = ambit_net::limits::raise_nofile()?;
        let config = settings.shown().to_string();
        tracing::info!(
            version = Version::of("").version,
            descriptors,
            config,
            "starting"
        );
        let registry = Registry::new(settings.metrics);
        registry.show_itself();
        drop(tasks::spawn(
            "metrics expiry",
            registry.clone().keep_expiring(),
        ));
        logging.register(&registry);
        process::register(&registry, Some(&tokio::runtime::Handle::current()));
        Version::of(&settings.version_tag).register("proxy", &registry);
        let (certificates, renewer) = Certificates::new(Clock::system());
        certificates.register(&registry);
        let parts = Parts {
            metrics: Metrics::new(&registry),
            log: AccessLog::new(logging),
            published: Published::default(),
            readiness: Readiness::new(),
            settings,
            certificates,
            registry,
        };
        let stopping = Arc::new(AtomicBool::new(false));
        parts.local_servers(logging, quit, Arc::clone(&stopping))?;

        let ca = parts.channel(&parts.settings.ca).context("CA_ADDRESS")?;
        let issuer = CaIssuer::new(ca, parts.settings.secret_ttl, false);
        drop(tasks::spawn("certificates", Box::pin(renewer.run(issuer))));
        parts.await_certificate();
        parts.discover()?;
        let threads = parts.data_threads(draining)?;
        let started = parts.readiness.clone();
        settle::after(async move { started.wait().await });
        Ok(Self { threads, stopping })
    }
}

impl Parts {
    fn local_servers(
        &self,
        logging: &Logging,
        quit: mpsc::Sender<()>,
        stopping: Arc<AtomicBool>,
    ) -> anyhow::Result<()> {
        let routes = admin::routes(logging, quit);
        let parts = self.clone();
        routes.get("/config_dump", "the whole state", move |_| {
            Answer::json(&dump::config_dump(
                &parts.settings,
                &parts.published,
                &parts.certificates,
            ))
        });
        listen("admin", self.settings.admin_addr, routes)?;
        listen(
            "metrics",
            self.settings.stats_addr,
            admin::metrics_routes(&self.registry),
        )?;
        let readiness = self.readiness.clone();
        let pending = move || {
            let mut pending = readiness.pending();
            if stopping.load(Ordering::Relaxed) {
                pending.push("stopping".to_owned());
            }
            pending
        };
        listen(
            "readiness",
            self.settings.readiness_addr,
            admin::readiness_routes(pending),
        )
    }

    /// Not ready before the first certificate: every tunnel would be refused.
    fn await_certificate(&self) {
        let gate = self.readiness.gate("certificate");
        let (certificates, settings) = (self.certificates.clone(), Arc::clone(&self.settings));
        drop(tasks::spawn("first certificate", async move {
            loop {
                match certificates.get(&settings.identity).await {
                    Ok(_) => return gate.open(),
                    Err(error) => tracing::warn!(%error, "no certificate yet"),
                }
                tokio::time::sleep(CERTIFICATE_PAUSE).await;
            }
        }));
    }

    fn channel(&self, endpoint: &Endpoint) -> anyhow::Result<Channel> {
        let control_plane = ControlPlane {
            address: endpoint.address.clone(),
            roots: endpoint.roots.clone(),
            token: self.settings.token.clone(),
            cluster_id: self.settings.cluster_id.clone(),
            headers: Vec::new(),
            alternative_names: endpoint.alternative_name.iter().cloned().collect(),
            key_exchange: Default::default(),
        };
        Ok(Channel::connect(&control_plane)?)
    }

    fn discover(&self) -> anyhow::Result<()> {
        let channel = self.channel(&self.settings.xds).context("XDS_ADDRESS")?;
        let config = Config {
            node: node(&self.settings),
            // In the order that istiod wants them.
            subscriptions: vec![
                Subscription::all(&Kind::Cluster.type_url()),
                Subscription::all(&Kind::Listener.type_url()),
                Subscription::all(type_url::WORKLOAD),
                Subscription::by_name(&Kind::Endpoints.type_url()),
            ],
            metrics: client::Metrics::register(&self.registry),
            wake: None,
        };
        let gate = self.readiness.gate("configuration");
        let discovery = Discovery::new(self.published.clone(), gate);
        let synced = || tracing::info!("the configuration is known");
        let running = client::run(channel, config, discovery, synced);
        drop(tasks::spawn("discovery", Box::pin(running)));
        Ok(())
    }

    /// What one data thread starts with.
    fn shared(&self, certificate: Lease) -> Shared {
        Shared {
            plan: Arc::clone(&self.published.plan),
            view: Arc::clone(&self.published.view),
            network: Text::from(self.settings.network.as_str()),
            certificate,
            upstreams: Upstreams::default(),
            metrics: self.metrics.clone(),
            log: self.log.clone(),
        }
    }

    fn data_threads(&self, draining: &Draining) -> anyhow::Result<DataThreads<Shared>> {
        let count = NonZeroUsize::new(self.settings.threads).unwrap_or(NonZeroUsize::MIN);
        let certificate = self.certificates.lease(&self.settings.identity)?;
        let parts = self.clone();
        let init = move |_| parts.shared(certificate.clone());
        let threads =
            DataThreads::start("data", count, init).context("data threads cannot be started")?;
        for thread in threads.handles() {
            let listener = bind(self.settings.tunnel_addr, true).context("tunnel port")?;
            let draining = draining.clone();
            thread.run("tunnels", move |shared| async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => tunnel::accept(shared, listener, draining).await,
                    Err(error) => tracing::error!(%error, "tunnels cannot be accepted"),
                }
            })?;
            thread.run(
                "sweep",
                |shared| async move { shared.upstreams.sweep().await },
            )?;
        }
        Ok(threads)
    }
}

/// Between two questions for a first certificate; the renewer has its own back-off below this.
const CERTIFICATE_PAUSE: Duration = Duration::from_millis(200);

/// Binds, on IPv4 alone where the machine has no IPv6.
fn bind(address: SocketAddr, reuse_port: bool) -> ambit_net::Result<std::net::TcpListener> {
    let bind = |address| {
        let mut listen = TcpListen::new(address);
        listen.reuse_port = reuse_port;
        listen.bind()
    };
    bind(address).or_else(|error| {
        if address.ip() == IpAddr::from([0u16; 8]) {
            bind(SocketAddr::from(([0, 0, 0, 0], address.port())))
        } else {
            Err(error)
        }
    })
}

fn listen(name: &'static str, address: SocketAddr, routes: Routes) -> anyhow::Result<()> {
    let listener = bind(address, false).with_context(|| format!("{name} server"))?;
    let listener = TcpListener::from_std(listener)?;
    let serving = server::serve(listener, routes, std::future::pending());
    drop(tasks::spawn(name, serving));
    Ok(())
}

/// Who we are to the control plane.
fn node(settings: &Settings) -> Node {
    let fields = settings
        .metadata
        .iter()
        .map(|(name, value)| (name.clone(), json(value)));
    Node {
        id: settings.node_id(),
        cluster: settings.service_cluster.clone(),
        metadata: Some(Struct {
            fields: fields.collect(),
        }),
        ..Node::default()
    }
}

fn json(value: &serde_json::Value) -> Value {
    use serde_json::Value as From;
    let kind = match value {
        From::Null => Json::NullValue(0),
        From::Bool(value) => Json::BoolValue(*value),
        From::Number(value) => Json::NumberValue(value.as_f64().unwrap_or_default()),
        From::String(value) => Json::StringValue(value.clone()),
        From::Array(values) => Json::ListValue(ListValue {
            values: values.iter().map(json).collect(),
        }),
        From::Object(fields) => Json::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), json(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

//! The program, in the order in which it starts and stops.
//!
//! Start: 1. logs and limits, 2. data threads, 3. local servers, 4. control plane, 5. agent (once the
//! mesh is known, so that no pod is acknowledged by a proxy that knows nobody), 6. ready.
//!
//! Stop: 1. not ready, 2. listeners close once their queues are empty, tunnels say good-bye,
//! 3. connections end by themselves until the deadline, 4. what is left is ended, 5. exit.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ambit_control::{Channel, ControlPlane, Roots, TokenSource};
use ambit_hbone::settings::Settings as TunnelSettings;
use ambit_identity::{Certificates, Renewer};
use ambit_model::intern::Interned;
use ambit_net::listen::TcpListen;
use ambit_net::netns::Netns;
use ambit_observe::access::{AccessLog, Sink};
use ambit_observe::logging::{LogFormat, Logging};
use ambit_observe::metrics::Registry;
use ambit_observe::server::{Answer, Routes};
use ambit_observe::version::Version;
use ambit_observe::{admin, process, server};
use ambit_otlp::{Exporter, Finish};
use ambit_proto::discovery::Node;
use ambit_proto::type_url;
use ambit_runtime::clock::Clock;
use ambit_runtime::drain::{Drain, Draining, drain};
use ambit_runtime::ready::Readiness;
use ambit_runtime::settle;
use ambit_runtime::signal::Termination;
use ambit_runtime::tasks;
use ambit_runtime::threads::DataThreads;
use ambit_xds::client::{self, Config};
use ambit_xds::delta::Subscription;
use ambit_xds::{Answered, Handler, Rejected, Update, decode};
use anyhow::Context;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tokio::sync::mpsc;

use crate::config::{self, Endpoint, Settings, Source, Token};
use crate::dedicated;
use crate::demand::Demand;
use crate::dns::{self, Resolver};
use crate::dump;
use crate::explain;
use crate::file;
use crate::inpod::reconcile::PodInfo;
use crate::inpod::{Session, Status};
use crate::issuer;
use crate::metrics::{self, Metrics};
use crate::pod::Sockets;
use crate::pods::Pods;
use crate::revocation::{self, Revocation};
use crate::worker::{Shared, Worker};

/// Time for log lines to leave at the end.
const FLUSH: Duration = Duration::from_millis(500);

/// Runs the node proxy until it is asked to stop.
///
/// # Errors
/// It cannot start: a port of its own is taken, a capability or file is missing.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut termination = Termination::watch()?;
    let logging = logging(&settings)?;
    let (quit, mut quits) = mpsc::channel(1);
    let (stop, draining) = drain();

    let proxy = Proxy::start(settings, &logging, quit, draining)?;
    tokio::select! {
        cause = termination.requested() => tracing::info!(?cause, "stop requested by signal"),
        _ = quits.recv() => tracing::info!("stop requested at the admin port"),
    }
    if termination
        .unless_interrupted(proxy.stop(stop))
        .await
        .is_none()
    {
        tracing::warn!("interrupted again: stopping at once");
    }
    logging.writer().flush(FLUSH);
    Ok(())
}

fn logging(settings: &Settings) -> anyhow::Result<Logging> {
    let format = match settings.log_format {
        config::LogFormat::Plain => LogFormat::Plain,
        config::LogFormat::Json => LogFormat::Json,
    };
    Logging::install(format, &settings.log_filter).context("RUST_LOG")
}

/// The running parts, besides tasks that run for ever.
struct Proxy {
    threads: DataThreads<Worker>,
    dns: DataThreads<Resolver>,
    pods: Pods,
    shared: Arc<Shared>,
    stopping: Arc<std::sync::atomic::AtomicBool>,
    finish: Option<Finish>,
}

impl Proxy {
    fn start(
        settings: Settings,
        logging: &Logging,
        quit: mpsc::Sender<()>,
        draining: Draining,
    ) -> anyhow::Result<Self> {
        announce(&settings)?;
        let registry = Registry::new(settings.metrics);
        registry.show_itself();
        drop(tasks::spawn(
            "metrics expiry",
            registry.clone().keep_expiring(),
        ));
        let metrics = Metrics::new(&registry);
        logging.register(&registry);
        process::register(&registry, Some(&tokio::runtime::Handle::current()));
        Version::of(&settings.version_tag).register("ztunnel", &registry);
        let tunnels = tunnels(&settings);
        let (revocation, lists) = Revocation::start(settings.crl_path.as_deref())?;
        let revocation = Arc::new(revocation);
        if let Some(lists) = lists {
            revocation::register(&registry, &revocation);
            let kept = revocation::keep(Arc::clone(&revocation), lists);
            drop(tasks::spawn("revocation lists", kept));
        }
        let demand = demand(&settings, &registry);
        let (access, finish) = records(&settings, logging, &registry)?;
        let shared = Arc::new(Shared {
            store: Default::default(),
            settings,
            metrics,
            access,
            tunnels,
            revocation,
            demand,
        });

        let policies = Arc::clone(&shared);
        metrics::register_policies(&registry, move || policies.store.snapshot());
        let threads = threads(&shared)?;
        let readiness = Readiness::new();
        let resolving = readiness.gate("dns proxy");
        let (dns, names) = dns::start(&shared).context("the DNS thread cannot be started")?;
        resolving.open();
        let (certificates, renewer) = Certificates::new(Clock::system());
        certificates.register(&registry);
        let pods = Pods::new(
            threads.handles().to_vec(),
            names,
            Arc::clone(&shared),
            certificates.clone(),
            draining.clone(),
        );
        let agent = Status::default();
        let synced = readiness.gate("state manager");
        let stopping = Arc::default();

        let local = Local {
            shared: &shared,
            pods: &pods,
            agent: &agent,
            certificates: &certificates,
        };
        local.serve(logging, &registry, quit, &readiness, Arc::clone(&stopping))?;
        control(&shared, &registry, renewer, synced)?;
        let started = readiness.clone();
        settle::after(async move { started.wait().await });
        match shared.settings.only() {
            Some(only) => {
                dedicated::start(only, &pods, agent, readiness).context("PROXY_MODE=dedicated")?
            }
            None => {
                serve_own(&shared.settings, threads.handles().len(), &pods)?;
                let session = Session::new(pods.clone(), agent);
                follow_agent(session, &shared, readiness, draining);
            }
        }
        Ok(Self {
            threads,
            dns,
            pods,
            shared,
            stopping,
            finish,
        })
    }

    /// The stop, in order. Bounded by the termination deadline.
    async fn stop(self, stop: Drain) {
        self.stopping
            .store(true, std::sync::atomic::Ordering::Relaxed);
        let deadline = self.shared.settings.termination_deadline;
        tracing::info!(?deadline, "draining");
        self.pods.close();
        let ended = stop.complete(deadline).await;
        if ended {
            tracing::info!("drained");
        } else {
            tracing::warn!("some connections could not be ended in time");
        }
        self.threads.stop();
        self.dns.stop();
        if let Some(finish) = self.finish {
            finish.wait(FLUSH).await;
        }
    }
}

/// Says what starts, and how it was told to.
fn announce(settings: &Settings) -> anyhow::Result<()> {
    let descriptors = ambit_net::limits::raise_nofile()?;
    tracing::info!(
        version = Version::of("").version,
        descriptors,
        config = serde_json::to_string(settings)?,
        "starting"
    );
    Ok(())
}

/// What asks for resources, where not all of the mesh is subscribed. A file is whole.
fn demand(settings: &Settings, registry: &Registry) -> Option<Demand> {
    let asks = settings.xds_on_demand && matches!(settings.xds, Source::ControlPlane(_));
    asks.then(|| Demand::new(registry))
}

/// Where records go, and how to end their export.
fn records(
    settings: &Settings,
    logging: &Logging,
    registry: &Registry,
) -> anyhow::Result<(AccessLog, Option<Finish>)> {
    let (export, finish) = exporter(settings, registry)?;
    let access = AccessLog::new(logging)
        .filtered(settings.access_log_filter.clone())
        .with_sink(export);
    Ok((access, finish))
}

/// The exporter of records and spans, where there is a collector.
type Export = (Option<Arc<dyn Sink>>, Option<Finish>);

fn exporter(settings: &Settings, registry: &Registry) -> anyhow::Result<Export> {
    let Some(wanted) = &settings.otlp else {
        return Ok((None, None));
    };
    let (exporter, task, finish) =
        Exporter::new(wanted, settings.compliance_policy.key_exchange(), registry)
            .context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    drop(tasks::spawn("export", task));
    Ok((Some(exporter), Some(finish)))
}

fn tunnels(settings: &Settings) -> TunnelSettings {
    let mut tunnels = TunnelSettings::default();
    if let Some(window) = settings.http2.stream_window {
        tunnels.stream_window = window;
    }
    if let Some(frame) = settings.http2.frame_size {
        tunnels.max_frame = frame;
    }
    tunnels
}

fn threads(shared: &Arc<Shared>) -> anyhow::Result<DataThreads<Worker>> {
    let count = NonZeroUsize::new(shared.settings.num_worker_threads).unwrap_or(NonZeroUsize::MIN);
    let for_workers = Arc::clone(shared);
    let threads = DataThreads::start("data", count, move |_| Worker::new(&for_workers))
        .context("data threads cannot be started")?;
    for thread in threads.handles() {
        thread.run("housekeeping", Worker::keep)?;
    }
    Ok(threads)
}

/// Serves the pods that the agent names, once the mesh is known.
fn follow_agent(session: Session, shared: &Arc<Shared>, readiness: Readiness, draining: Draining) {
    let socket = shared.settings.inpod_uds.clone();
    drop(tasks::spawn("agent", async move {
        readiness.wait().await;
        tokio::select! {
            never = Box::pin(session.run(&socket)) => match never {},
            () = draining.requested() => {}
        }
    }));
}

/// Takes tunnels to the proxy itself, if it was told who it is.
fn serve_own(settings: &Settings, threads: usize, pods: &Pods) -> anyhow::Result<()> {
    let info = PodInfo {
        name: settings.pod_name.clone(),
        namespace: settings.pod_namespace.clone(),
        service_account: settings.service_account.clone(),
    };
    let parts = [&info.name, &info.namespace, &info.service_account];
    if parts.iter().any(|part| part.is_empty()) {
        return Ok(());
    }
    let bound =
        || Ok::<_, ambit_net::Error>((Netns::current()?, Sockets::bind_own(settings, threads)?));
    let (netns, sockets) = bound().context("tunnels to the proxy itself")?;
    let pods = pods.clone();
    drop(tasks::spawn("own tunnels", async move {
        if let Err(error) = pods.serve_own(info, netns, sockets).await {
            tracing::error!(%error, "tunnels to the proxy itself are not served");
        }
    }));
    Ok(())
}

/// The local HTTP servers.
struct Local<'a> {
    shared: &'a Arc<Shared>,
    pods: &'a Pods,
    agent: &'a Status,
    certificates: &'a Certificates,
}

impl Local<'_> {
    fn serve(
        &self,
        logging: &Logging,
        registry: &Registry,
        quit: mpsc::Sender<()>,
        readiness: &Readiness,
        stopping: Arc<std::sync::atomic::AtomicBool>,
    ) -> anyhow::Result<()> {
        let settings = &self.shared.settings;
        let (readiness, agent) = (readiness.clone(), self.agent.clone());
        let pending = move || {
            let mut pending = readiness.pending();
            if !agent.ready() {
                pending.push("workload proxy manager".to_owned());
            }
            if stopping.load(std::sync::atomic::Ordering::Relaxed) {
                pending.push("stopping".to_owned());
            }
            pending
        };
        listen("admin", settings.admin_addr, self.admin(logging, quit))?;
        listen(
            "metrics",
            settings.stats_addr,
            admin::metrics_routes(registry),
        )?;
        listen(
            "readiness",
            settings.readiness_addr,
            admin::readiness_routes(pending),
        )
    }

    fn admin(&self, logging: &Logging, quit: mpsc::Sender<()>) -> Routes {
        let routes = admin::routes(logging, quit);
        let (shared, pods) = (Arc::clone(self.shared), self.pods.clone());
        let (agent, certificates) = (self.agent.clone(), self.certificates.clone());
        routes.get_async("/config_dump", "the whole state", move |_| {
            let (shared, pods) = (Arc::clone(&shared), pods.clone());
            let (agent, certificates) = (agent.clone(), certificates.clone());
            async move { Answer::json(&dump::config_dump(&shared, &pods, &agent, &certificates).await) }
        });
        let (pods, agent) = (self.pods.clone(), self.agent.clone());
        routes.get_async("/connections", "open connections by pod", move |_| {
            let (pods, agent) = (pods.clone(), agent.clone());
            async move {
                let connections = pods.connections().await;
                Answer::json(&dump::pod_states(&pods, &agent, connections))
            }
        });
        let shared = Arc::clone(self.shared);
        let about = "?src=ns/pod&dst=ns/name&port=N: what would happen to a connection, and why";
        routes.get("/debug/explain", about, move |call| {
            explain::answer(&shared, call)
        });
        routes
    }
}

fn listen(name: &'static str, address: SocketAddr, routes: Routes) -> anyhow::Result<()> {
    let listener = TcpListen::new(address)
        .bind()
        .or_else(|error| {
            // No IPv6 on this machine: the other family alone.
            let v4 = SocketAddr::from(([0, 0, 0, 0], address.port()));
            let mapped = address.ip() == IpAddr::from([0u16; 8]);
            if mapped {
                TcpListen::new(v4).bind()
            } else {
                Err(error)
            }
        })
        .with_context(|| format!("{name} server"))?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    drop(tasks::spawn(
        name,
        server::serve(listener, routes, std::future::pending()),
    ));
    Ok(())
}

/// Discovery and certificates.
fn control(
    shared: &Arc<Shared>,
    registry: &Registry,
    renewer: Renewer,
    synced: ambit_runtime::ready::Gate,
) -> anyhow::Result<()> {
    let settings = &shared.settings;
    issuer::start(shared, registry, renewer)?;
    let endpoint = match &settings.xds {
        Source::ControlPlane(endpoint) => endpoint,
        Source::File(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("LOCAL_XDS_PATH: {}", path.display()))?;
            shared
                .store
                .apply(file::read(&text).context("LOCAL_XDS_PATH")?);
            synced.open();
            return Ok(());
        }
        Source::Inline(text) => {
            shared.store.apply(file::read(text).context("LOCAL_XDS")?);
            synced.open();
            return Ok(());
        }
    };
    let channel = Channel::connect(&control_plane(settings, endpoint)).context("XDS_ADDRESS")?;
    let config = Config {
        node: node(settings),
        subscriptions: vec![
            match shared.demand {
                None => Subscription::all(type_url::ADDRESS),
                Some(_) => Subscription::on_demand(type_url::ADDRESS),
            },
            Subscription::all(type_url::AUTHORIZATION),
        ],
        metrics: client::Metrics::register(registry),
        wake: shared.demand.as_ref().map(Demand::wakes),
    };
    let mesh = Mesh {
        shared: Arc::clone(shared),
        interned: Interned::default(),
    };
    let synced = move || {
        tracing::info!("the mesh is known");
        synced.open();
    };
    drop(tasks::spawn(
        "discovery",
        Box::pin(client::run(channel, config, mesh, synced)),
    ));
    Ok(())
}

/// How a service of the control plane is reached.
pub(crate) fn control_plane(settings: &Settings, endpoint: &Endpoint) -> ControlPlane {
    ControlPlane {
        address: endpoint.address.clone(),
        roots: match &endpoint.roots {
            config::Roots::File(path) => Roots::File(path.clone()),
            config::Roots::Pem(pem) => Roots::Pem(pem.clone()),
            config::Roots::System => Roots::System,
        },
        token: match &settings.auth {
            None => TokenSource::None,
            Some(Token::File(path)) => TokenSource::File(path.clone()),
            Some(Token::Literal(token)) => TokenSource::Literal(token.clone()),
        },
        cluster_id: settings.cluster_id.clone(),
        headers: endpoint.headers.clone(),
        alternative_names: endpoint.alternative_name.iter().cloned().collect(),
        key_exchange: settings.compliance_policy.key_exchange(),
    }
}

/// Who we are to the control plane.
fn node(settings: &Settings) -> Node {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let mut fields = std::collections::BTreeMap::new();
    fields.insert("NAME".to_owned(), text(&settings.pod_name));
    fields.insert("NAMESPACE".to_owned(), text(&settings.pod_namespace));
    fields.insert(
        "INSTANCE_IPS".to_owned(),
        text(&settings.instance_ip.to_string()),
    );
    fields.insert("NODE_NAME".to_owned(), text(&settings.local_node));
    for (name, value) in &settings.proxy_metadata {
        fields.insert(name.clone(), text(value));
    }
    for (name, value) in &settings.proxy_metadata_json {
        fields.insert(name.clone(), from_json(value));
    }
    Node {
        id: settings.node_id(),
        metadata: Some(Struct { fields }),
        ..Node::default()
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(from_json).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), from_json(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

/// Puts what the control plane says in force.
struct Mesh {
    shared: Arc<Shared>,
    interned: Interned,
}

impl Handler for Mesh {
    fn update(&mut self, update: Update) -> Vec<Rejected> {
        let (changes, rejected) = decode::changes(update, &mut self.interned);
        self.shared.store.apply(changes);
        rejected
    }

    fn wanted(&self, type_url: &str) -> Option<BTreeSet<String>> {
        let demand = self.shared.demand.as_ref()?;
        (type_url == type_url::ADDRESS).then(|| demand.wanted())
    }

    fn answered(&mut self, _type_url: &str, answers: Vec<Answered>) {
        if let Some(demand) = &self.shared.demand {
            demand.answered(answers);
        }
    }

    fn connected(&mut self, up: bool) {
        if let Some(demand) = &self.shared.demand {
            demand.connected(up);
        }
    }
}

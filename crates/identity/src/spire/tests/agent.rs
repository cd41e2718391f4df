//! A scripted agent: the real calls over real sockets, and what a test wants said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use ambit_model::identity::Identity;
use ambit_proto::spiffe::workload::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use ambit_proto::spiffe::workload::{
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use ambit_proto::spire::delegated::delegated_identity_server::{
    DelegatedIdentity, DelegatedIdentityServer,
};
use ambit_proto::spire::delegated::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, X509svidWithKey,
};
use ambit_proto::spire::types::{Spiffeid, X509svid};
use ambit_runtime::clock::Clock;
use ambit_tls::authority::{Request as SigningRequest, Root};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What there is to say; a change is told on every open stream.
pub(super) struct Agent {
    pub(super) root: Root,
    pub(super) clock: Clock,
    pub(super) svids: watch::Sender<SubscribeToX509sviDsResponse>,
    pub(super) bundles: watch::Sender<BTreeMap<String, Vec<u8>>>,
    pub(super) own: watch::Sender<X509svidResponse>,
    /// Every call is answered with it.
    pub(super) refusal: Mutex<Option<Status>>,
    /// Subscriptions, in order.
    pub(super) asked: Mutex<Vec<SubscribeToX509sviDsRequest>>,
    /// Whatever is sent here ends every open stream.
    pub(super) cut: watch::Sender<()>,
    /// Streams of certificates that are open.
    pub(super) live: AtomicUsize,
}

/// DER of a PEM text.
pub(super) fn der(pem: &str) -> Vec<u8> {
    let base64: String = pem.lines().filter(|line| !line.starts_with("--")).collect();
    STANDARD.decode(base64).unwrap()
}

impl Agent {
    /// One that knows the roots of `td` and nobody's registration.
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        let root = Root::generate("agent", clock.now(), Duration::from_secs(10_000_000)).unwrap();
        let known = BTreeMap::from([("spiffe://td".to_owned(), der(&root.certificate_pem()))]);
        Arc::new(Self {
            root,
            clock,
            svids: watch::Sender::default(),
            bundles: watch::Sender::new(known),
            own: watch::Sender::default(),
            refusal: Mutex::default(),
            asked: Mutex::default(),
            cut: watch::Sender::default(),
            live: AtomicUsize::new(0),
        })
    }

    /// A certificate of `identity` with its key.
    pub(super) fn sign(&self, identity: &Identity, life: Duration) -> X509svidWithKey {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let request = SigningRequest::from_pem(&request.pem().unwrap()).unwrap();
        let now = self.clock.now();
        let chain = self.root.issue(&request, identity, now, life).unwrap();
        let since = (now + life).duration_since(std::time::UNIX_EPOCH).unwrap();
        X509svidWithKey {
            x509_svid: Some(X509svid {
                cert_chain: vec![der(&chain[0])],
                id: Some(Spiffeid {
                    trust_domain: identity.trust_domain().to_owned(),
                    path: identity.as_str().split_once("//td").unwrap().1.to_owned(),
                }),
                expires_at: i64::try_from(since.as_secs()).unwrap(),
                hint: String::new(),
            }),
            x509_svid_key: key.serialize_der(),
        }
    }

    pub(super) fn tell(&self, x509_svids: Vec<X509svidWithKey>) {
        self.svids.send_replace(SubscribeToX509sviDsResponse {
            x509_svids,
            federates_with: Vec::new(),
        });
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.lock().len()
    }

    /// Every call is answered with `refusal` from now on, and what is open ends.
    pub(super) fn goes_away(&self, refusal: Status) {
        *self.refusal.lock() = Some(refusal);
        self.cut.send_replace(());
    }

    fn until_cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut cut = self.cut.subscribe();
        async move {
            let _ = cut.changed().await;
        }
    }

    fn permitted(&self) -> Result<(), Status> {
        self.refusal.lock().clone().map_or(Ok(()), Err)
    }
}

/// Counts a stream for as long as it is open.
struct Live(Arc<Agent>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Relaxed);
    }
}

struct Served(Arc<Agent>);

#[tonic::async_trait]
impl DelegatedIdentity for Served {
    type SubscribeToX509SVIDsStream =
        BoxStream<'static, Result<SubscribeToX509sviDsResponse, Status>>;
    type SubscribeToX509BundlesStream =
        BoxStream<'static, Result<SubscribeToX509BundlesResponse, Status>>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        self.0.asked.lock().push(request.into_inner());
        self.0.permitted()?;
        self.0.live.fetch_add(1, Relaxed);
        let live = Live(Arc::clone(&self.0));
        let told = WatchStream::new(self.0.svids.subscribe()).take_until(self.0.until_cut());
        Ok(Response::new(
            told.map(move |answer| {
                let _ = &live;
                Ok(answer)
            })
            .boxed(),
        ))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        self.0.permitted()?;
        let told = WatchStream::new(self.0.bundles.subscribe()).take_until(self.0.until_cut());
        let answers =
            told.map(|ca_certificates| Ok(SubscribeToX509BundlesResponse { ca_certificates }));
        Ok(Response::new(answers.boxed()))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Served {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(
                "security header missing from request",
            ));
        }
        self.0.permitted()?;
        Ok(Response::new(
            WatchStream::new(self.0.own.subscribe()).map(Ok).boxed(),
        ))
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// The two sockets of an agent, served until it is killed.
pub(super) struct Sockets {
    pub(super) admin: PathBuf,
    pub(super) workload: PathBuf,
    accepting: Vec<JoinHandle<()>>,
}

impl Sockets {
    pub(super) fn serve(agent: &Arc<Agent>, folder: &Path) -> Self {
        let [admin, workload] = ["admin.sock", "agent.sock"].map(|name| folder.join(name));
        let [first, second] = [&admin, &workload].map(|path| listen(path));
        let delegated = DelegatedIdentityServer::new(Served(Arc::clone(agent)));
        let api = SpiffeWorkloadApiServer::new(Served(Arc::clone(agent)));
        let delegated = Server::builder().add_service(delegated);
        let api = Server::builder().add_service(api);
        tokio::spawn(delegated.serve_with_incoming(first.0));
        tokio::spawn(api.serve_with_incoming(second.0));
        Self {
            admin,
            workload,
            accepting: vec![first.1, second.1],
        }
    }

    /// Ends the process that the agent would be: its connections end, and nobody accepts.
    pub(super) fn kill(&self) {
        for accepting in &self.accepting {
            accepting.abort();
        }
        for path in [&self.admin, &self.workload] {
            let _ = std::fs::remove_file(path);
        }
    }
}

type Incoming = ReceiverStream<std::io::Result<DuplexStream>>;

/// Connections of a socket, each through a task that dies with the one that accepts.
fn listen(path: &Path) -> (Incoming, JoinHandle<()>) {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let (connections, incoming) = mpsc::channel(16);
    let accepting = tokio::spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (mut outer, _) = listener.accept().await.unwrap();
            let (mut inner, far) = tokio::io::duplex(64 * 1024);
            open.spawn(async move { tokio::io::copy_bidirectional(&mut outer, &mut inner).await });
            connections.send(Ok(far)).await.unwrap();
        }
    });
    (ReceiverStream::new(incoming), accepting)
}

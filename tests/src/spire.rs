//! An agent in the place of SPIRE's: the same calls over the same kind of sockets, and registrations that a test makes.
//!
//! It signs with the root of the world's controller, as a SPIRE server does whose upstream authority that is, so that nodes
//! with and without SPIRE trust each other. It is ours from end to end: what SPIRE's own agent does beyond these calls
//! (attestation, who may be a delegate) is not shown by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use ambit_proto::spiffe::workload::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use ambit_proto::spiffe::workload::{
    X509BundlesRequest, X509BundlesResponse, X509svid as OwnSvid, X509svidRequest, X509svidResponse,
};
use ambit_proto::spire::delegated::delegated_identity_server::{
    DelegatedIdentity, DelegatedIdentityServer,
};
use ambit_proto::spire::delegated::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, X509svidWithKey,
};
use ambit_proto::spire::types::{Spiffeid, X509svid};
use anyhow::{Context, Result};
use futures_util::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::mint::Mint;
use crate::world::World;

/// Our trust domain, as an agent names it.
const DOMAIN: &str = "spiffe://cluster.local";

/// Who is registered: what a workload must be like, and who it is then.
pub type Registration = (Vec<String>, String);

/// The running agent; it ends when dropped, with all of its connections.
#[derive(Debug)]
pub struct SpireAgent {
    shared: Arc<Shared>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    mint: Mint,
    roots: Vec<u8>,
    /// Who the caller at the workload socket is.
    own: String,
    registered: Mutex<Vec<Registration>>,
    current: Mutex<BTreeMap<String, Issued>>,
    /// Sent on each change; every stream then says what there is.
    changed: watch::Sender<()>,
}

/// A certificate that was handed out.
#[derive(Debug, Clone)]
struct Issued {
    chain: Vec<u8>,
    key: Vec<u8>,
    serial: String,
}

/// Where an agent of this world is: its admin socket, then its workload socket.
#[must_use]
pub fn sockets(world: &World) -> [PathBuf; 2] {
    ["spire-admin.sock", "spire-agent.sock"].map(|name| world.file(name))
}

impl SpireAgent {
    /// Serves at [`sockets`]. A registration is chosen by selectors such as `k8s:ns:mesh`, all of which the request must
    /// name; `own` is who calls at the workload socket.
    ///
    /// # Errors
    ///
    /// The world's controller has made no root yet.
    pub fn serve(world: &World, own: &str, registered: Vec<Registration>) -> Result<Self> {
        let root = CertificateDer::from_pem_file(world.state().join("root-cert.pem"))?;
        let shared = Arc::new(Shared {
            mint: Mint::of(&world.state())?,
            roots: root.to_vec(),
            own: own.to_owned(),
            registered: Mutex::new(registered),
            current: Mutex::default(),
            changed: watch::Sender::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (end, ended) = oneshot::channel();
        let sockets = sockets(world);
        let [admin, workload] = {
            let _inside = runtime.enter();
            let [admin, workload] = sockets.each_ref().map(|path| listen(path));
            [admin?, workload?]
        };
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("spire agent".to_owned())
            .spawn(move || runtime.block_on(run(served, admin, workload, ended)))?;
        Ok(Self {
            shared,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Registers one more, or somebody in the place of whoever has these selectors.
    pub fn register(&self, (selectors, id): Registration) {
        let mut registered = self.shared.registered.lock();
        registered.retain(|(there, _)| *there != selectors);
        registered.push((selectors, id));
        drop(registered);
        self.shared.changed.send_replace(());
    }

    /// Issues every certificate anew, and tells everybody.
    pub fn rotate(&self) {
        self.shared.current.lock().clear();
        self.shared.changed.send_replace(());
    }

    /// The serial number of the certificate in force of an identity: decimal, as dumps show it.
    #[must_use]
    pub fn serial(&self, identity: &str) -> Option<String> {
        let current = self.shared.current.lock();
        current.get(identity).map(|issued| issued.serial.clone())
    }
}

impl Drop for SpireAgent {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(path: &Path) -> Result<UnixListenerStream> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    Ok(UnixListenerStream::new(listener))
}

/// Until it is ended. The connections are tasks of this runtime and go with it.
async fn run(
    shared: Arc<Shared>,
    admin: UnixListenerStream,
    workload: UnixListenerStream,
    ended: oneshot::Receiver<()>,
) {
    let delegated = DelegatedIdentityServer::new(Served(Arc::clone(&shared)));
    let api = SpiffeWorkloadApiServer::new(Served(shared));
    tokio::select! {
        _ = ended => {}
        end = Server::builder().add_service(delegated).serve_with_incoming(admin) => {
            end.expect("a socket of ours");
        }
        end = Server::builder().add_service(api).serve_with_incoming(workload) => {
            end.expect("a socket of ours");
        }
    }
}

impl Shared {
    /// The certificate in force of an identity.
    fn issued(&self, identity: &str) -> Issued {
        let mut current = self.current.lock();
        let issued = current.entry(identity.to_owned()).or_insert_with(|| {
            let made = self.mint.issue(identity).expect("an identity");
            let leaf = CertificateDer::from_pem_slice(made.chain[0].as_bytes());
            let key = KeyPair::from_pem(&made.key).expect("a key");
            Issued {
                chain: leaf.expect("a leaf").to_vec(),
                key: key.serialize_der(),
                serial: made.svid().expect("a certificate").chain()[0]
                    .serial
                    .clone(),
            }
        });
        issued.clone()
    }

    /// What a workload of these selectors is told.
    fn answer(&self, selectors: &[String]) -> SubscribeToX509sviDsResponse {
        let registered = self.registered.lock().clone();
        let found = registered
            .into_iter()
            .filter(|(wanted, _)| wanted.iter().all(|wanted| selectors.contains(wanted)));
        let x509_svids = found.map(|(_, id)| {
            let issued = self.issued(&id);
            let (trust_domain, path) = parts(&id);
            X509svidWithKey {
                x509_svid: Some(X509svid {
                    cert_chain: vec![issued.chain],
                    id: Some(Spiffeid { trust_domain, path }),
                    ..X509svid::default()
                }),
                x509_svid_key: issued.key,
            }
        });
        SubscribeToX509sviDsResponse {
            x509_svids: x509_svids.collect(),
            federates_with: Vec::new(),
        }
    }

    fn own(&self) -> X509svidResponse {
        let issued = self.issued(&self.own);
        X509svidResponse {
            svids: vec![OwnSvid {
                spiffe_id: self.own.clone(),
                x509_svid: issued.chain,
                x509_svid_key: issued.key,
                bundle: self.roots.clone(),
                hint: String::new(),
            }],
            ..X509svidResponse::default()
        }
    }

    fn told<T: Send + 'static>(
        self: &Arc<Self>,
        say: impl Fn(&Self) -> T + Send + 'static,
    ) -> Response<BoxStream<'static, Result<T, Status>>> {
        let shared = Arc::clone(self);
        let changes = WatchStream::new(self.changed.subscribe());
        Response::new(changes.map(move |()| Ok(say(&shared))).boxed())
    }
}

/// Trust domain and path.
fn parts(id: &str) -> (String, String) {
    let rest = id.strip_prefix("spiffe://").expect("a SPIFFE ID");
    let (domain, path) = rest.split_once('/').expect("a path");
    (domain.to_owned(), format!("/{path}"))
}

struct Served(Arc<Shared>);

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
        let request = request.into_inner();
        if request.selectors.is_empty() == (request.pid == 0) {
            return Err(Status::invalid_argument(
                "selectors or a process, one of them",
            ));
        }
        let selectors = request.selectors.into_iter();
        let selectors: Vec<_> = selectors
            .map(|s| format!("{}:{}", s.r#type, s.value))
            .collect();
        Ok(self.0.told(move |shared| shared.answer(&selectors)))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        Ok(self.0.told(|shared| SubscribeToX509BundlesResponse {
            ca_certificates: [(DOMAIN.to_owned(), shared.roots.clone())].into(),
        }))
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
        let metadata = request.metadata().get("workload.spiffe.io");
        if metadata.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("no security metadata"));
        }
        Ok(self.0.told(Shared::own))
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Ok(self.0.told(|shared| X509BundlesResponse {
            bundles: [(DOMAIN.to_owned(), shared.roots.clone())].into(),
            ..X509BundlesResponse::default()
        }))
    }
}

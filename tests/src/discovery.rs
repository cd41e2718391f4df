//! A discovery server in the controller's place that says what a test wants said.

use std::convert::Infallible;
use std::fs;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use ambit_tls::authority::Root;
use ambit_tls::csr::PrivateKey;
use ambit_tls::{Limits, grpc};
use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::network::{CONTROLLER, CONTROLLER_NAME};
use crate::world::World;

/// The port of the control plane.
const PORT: u16 = 15012;
/// The one method that is served.
const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// A gRPC message's prefix: a flag and four bytes of length.
const PREFIX: usize = 5;

/// Responses on their way to one stream.
const PUSHES: usize = 4096;

/// What is sent, by type; a type not named is answered with nothing.
pub type Script = Vec<(&'static str, Vec<Resource>)>;

/// The running server; it ends when dropped. There are no certificates from it.
#[derive(Debug)]
pub struct Discovery {
    told: Arc<Mutex<Vec<DeltaDiscoveryRequest>>>,
    pushes: broadcast::Sender<DeltaDiscoveryResponse>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Discovery {
    /// Serves where the controller did, with its name and its root: every stream is sent the
    /// script once.
    ///
    /// # Errors
    ///
    /// The controller is still there, or never was.
    pub fn serve(world: &World, script: Script) -> Result<Self> {
        let read = |name: &str| fs::read_to_string(world.state().join(name));
        let root = Root::from_pem(&read("root-cert.pem")?, &read("root-key.pem")?)?;
        let key = PrivateKey::generate()?;
        let hour = Duration::from_secs(3600);
        let chain = root.issue_server(&key, &[CONTROLLER_NAME], SystemTime::now(), hour)?;
        let tls = grpc::Server::new(&chain, &key)?;
        let address = SocketAddr::from((CONTROLLER, PORT));
        let listener = world
            .netns("control")
            .run(|| StdListener::bind(address))?
            .context("the controller's port")?;
        listener.set_nonblocking(true)?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = oneshot::channel();
        let (pushes, _) = broadcast::channel(PUSHES);
        let shared = Arc::new(Shared {
            script,
            told: Arc::clone(&told),
            pushes: pushes.clone(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("discovery".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    tokio::select! {
                        _ = ended => {}
                        () = accept(listener, tls, shared) => {}
                    }
                });
            })?;
        Ok(Self {
            told,
            pushes,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Sends a response to every stream that is open. A client that acknowledges it repeats its nonce.
    pub fn push(&self, response: DeltaDiscoveryResponse) {
        // Without a stream there is nobody to send it to.
        let _ = self.pushes.send(response);
    }

    /// What clients said of a type, in order: subscriptions, acknowledgements, refusals.
    #[must_use]
    pub fn told(&self, type_url: &str) -> Vec<DeltaDiscoveryRequest> {
        let told = self.told.lock();
        told.iter()
            .filter(|request| request.type_url == type_url)
            .cloned()
            .collect()
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Shared {
    script: Script,
    told: Arc<Mutex<Vec<DeltaDiscoveryRequest>>>,
    pushes: broadcast::Sender<DeltaDiscoveryResponse>,
}

async fn accept(listener: StdListener, tls: grpc::Server, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let (stream, _) = listener.accept().await.expect("descriptors enough");
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream, Limits::default()).await else {
                return;
            };
            let answering = service_fn(move |request| {
                let answer = answer(request, &shared);
                async move { Ok::<_, Infallible>(answer) }
            });
            // A client that goes away is the test's business.
            let _ = auto::Builder::new(TokioExecutor::new())
                .http2_only()
                .serve_connection(TokioIo::new(stream), answering)
                .await;
        });
    }
}

fn answer(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
) -> Response<BoxBody<Bytes, Infallible>> {
    let known = request.uri().path() == DELTA;
    let mut response = if known {
        let (send, mut receive) = mpsc::channel(16);
        tokio::spawn(converse(request.into_body(), send, Arc::clone(shared)));
        let body = StreamBody::new(futures_util::stream::poll_fn(move |cx| {
            receive
                .poll_recv(cx)
                .map(|next| next.map(|data| Ok(Frame::data(data))))
        }));
        Response::new(body.boxed())
    } else {
        let mut refusal = Response::new(Empty::new().boxed());
        // UNAVAILABLE: what a client sees of a server that cannot do this now.
        let unavailable = HeaderValue::from_static("14");
        refusal.headers_mut().insert("grpc-status", unavailable);
        refusal
    };
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

/// One stream: the first request of each type is answered by the script.
async fn converse(mut body: Incoming, send: mpsc::Sender<Bytes>, shared: Arc<Shared>) {
    let mut buffer = BytesMut::new();
    let mut answered: Vec<String> = Vec::new();
    let mut pushes = shared.pushes.subscribe();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            pushed = pushes.recv() => {
                let pushed = pushed.expect("fewer pushes at once than room for them");
                if send.send(framed(&pushed)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some(Ok(frame)) = frame else { return };
        let Ok(data) = frame.into_data() else { return };
        buffer.extend_from_slice(&data);
        while let Some(message) = take(&mut buffer) {
            let request = DeltaDiscoveryRequest::decode(message).expect("a discovery request");
            let type_url = request.type_url.clone();
            shared.told.lock().push(request);
            if answered.contains(&type_url) {
                continue;
            }
            let scripted = shared.script.iter().find(|(name, _)| *name == type_url);
            let response = DeltaDiscoveryResponse {
                resources: scripted.map(|(_, all)| all.clone()).unwrap_or_default(),
                nonce: format!("scripted {type_url}"),
                type_url: type_url.clone(),
                ..DeltaDiscoveryResponse::default()
            };
            answered.push(type_url);
            if send.send(framed(&response)).await.is_err() {
                return;
            }
        }
    }
}

/// The next whole message.
fn take(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = buffer.get(1..PREFIX)?.try_into().map(u32::from_be_bytes);
    let length = usize::try_from(length.ok()?).ok()?;
    if buffer.len() < PREFIX + length {
        return None;
    }
    buffer.advance(PREFIX);
    Some(buffer.split_to(length).freeze())
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("a short script"));
    framed.put_slice(&message.encode_to_vec());
    framed.freeze()
}

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use ambit_observe::metrics::{Counter, Format};
use ambit_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use ambit_proto::discovery::{DiscoveryRequest, DiscoveryResponse, Resource as Sent};
use ambit_proto::type_url::{ADDRESS, AUTHORIZATION};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio_stream::Stream as Responses;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response};

use super::*;
use crate::Update;

/// One stream as the server sees it: the script reads requests and writes responses.
struct Peer {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

/// Hands each new stream to the script.
struct Scripted(mpsc::Sender<Peer>);

type Boxed<T> = Pin<Box<dyn Responses<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Scripted {
    type StreamAggregatedResourcesStream = Boxed<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Boxed<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(16);
        let peer = Peer {
            requests: request.into_inner(),
            responses,
        };
        self.0
            .send(peer)
            .await
            .map_err(|_| Status::unavailable("script is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// A channel to a scripted server in memory, and the streams that arrive there.
fn server() -> (Channel, mpsc::Receiver<Peer>) {
    let (peers, arrived) = mpsc::channel(16);
    let (connections, incoming) = mpsc::channel::<Result<DuplexStream, std::io::Error>>(16);
    let service = AggregatedDiscoveryServiceServer::new(Scripted(peers));
    let served = Server::builder().add_service(service);
    tokio::spawn(served.serve_with_incoming(ReceiverStream::new(incoming)));
    let connector = tower::service_fn(move |_| {
        let connections = connections.clone();
        async move {
            let (near, far) = tokio::io::duplex(64 * 1024);
            connections
                .send(Ok(far))
                .await
                .map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(near))
        }
    });
    (
        Endpoint::from_static("http://scripted").connect_with_connector_lazy(connector),
        arrived,
    )
}

/// Tells what it is given, and refuses resources called `bad`.
struct Telling(mpsc::UnboundedSender<Update>);

impl Handler for Telling {
    fn update(&mut self, update: Update) -> Vec<Rejected> {
        let bad = |name: &str| Rejected {
            name: name.to_owned(),
            reason: "field: bad".to_owned(),
        };
        let names = update
            .resources
            .iter()
            .map(|resource| resource.name.as_str());
        let rejected = names
            .filter(|name| name.starts_with("bad"))
            .map(bad)
            .collect();
        let _ = self.0.send(update);
        rejected
    }
}

struct Running {
    updates: mpsc::UnboundedReceiver<Update>,
    synced: Arc<AtomicBool>,
    registry: Registry,
    task: tokio::task::JoinHandle<Infallible>,
}

fn client(channel: Channel) -> Running {
    let (tell, updates) = mpsc::unbounded_channel();
    let synced = Arc::new(AtomicBool::new(false));
    let registry = Registry::default();
    let config = Config {
        node: Node {
            id: "ztunnel~1.1.1.1~z.istio-system~x".to_owned(),
            ..Node::default()
        },
        subscriptions: vec![Subscription::all(ADDRESS), Subscription::all(AUTHORIZATION)],
        metrics: Metrics::register(&registry),
        wake: None,
    };
    let done = synced.clone();
    let task = tokio::spawn(run(channel, config, Telling(tell), move || {
        done.store(true, SeqCst)
    }));
    Running {
        updates,
        synced,
        registry,
        task,
    }
}

fn response(type_url: &str, nonce: &str, names: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |name: &&str| Sent {
        name: (*name).to_owned(),
        version: format!("v-{nonce}"),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value: vec![],
        }),
        ..Sent::default()
    };
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

impl Peer {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        self.requests
            .message()
            .await
            .unwrap()
            .expect("the client keeps the stream open")
    }

    async fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_resource_is_refused_by_name_and_readiness_does_not_wait_for_it() {
    let (channel, mut streams) = server();
    let mut client = client(channel);
    let mut peer = streams.recv().await.unwrap();
    assert_eq!(peer.request().await.type_url, ADDRESS);
    assert_eq!(peer.request().await.type_url, AUTHORIZATION);
    peer.send(response(ADDRESS, "1", &["good", "bad"])).await;
    let nack = peer.request().await;
    assert_eq!(nack.response_nonce, "1");
    assert_eq!(nack.error_detail.unwrap().message, "bad: field: bad");
    assert_eq!(client.updates.recv().await.unwrap().resources.len(), 2);
    assert!(!client.synced.load(SeqCst));
    peer.send(response(AUTHORIZATION, "2", &[])).await;
    let ack = peer.request().await;
    assert_eq!(
        (ack.type_url.as_str(), ack.response_nonce.as_str()),
        (AUTHORIZATION, "2")
    );
    assert_eq!(ack.error_detail, None);
    assert!(
        client.synced.load(SeqCst),
        "each type had a processed response"
    );
    let text = client.registry.render(Format::Text);
    assert!(
        text.contains(&format!("istio_xds_message_total{{url=\"{ADDRESS}\"}} 1")),
        "{text}"
    );
    assert!(text.contains(&format!(
        "ambit_xds_rejected_resources_total{{url=\"{ADDRESS}\"}} 1"
    )));
    client.task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_names_the_versions_in_force() {
    let (channel, mut streams) = server();
    let client = client(channel);
    let mut peer = streams.recv().await.unwrap();
    peer.request().await;
    peer.request().await;
    peer.send(response(ADDRESS, "1", &["a", "bad", "b"])).await;
    peer.request().await;
    peer.responses
        .send(Err(Status::unavailable("going away")))
        .await
        .unwrap();
    let mut second = streams.recv().await.unwrap();
    let first = second.request().await;
    let held: Vec<_> = first.initial_resource_versions.into_iter().collect();
    let version = "v-1".to_owned();
    assert_eq!(
        held,
        [("a".to_owned(), version.clone()), ("b".to_owned(), version)]
    );
    assert!(first.node.is_some(), "a new stream needs the node again");
    assert!(second.request().await.initial_resource_versions.is_empty());
    let text = client.registry.render(Format::Text);
    let ended = "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 1";
    assert!(text.contains(ended), "{text}");
    client.task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_stream_politely_is_not_asked_faster_and_faster() {
    let (channel, mut streams) = server();
    let client = client(channel);
    let began = Instant::now();
    let mut streams_seen = 0;
    while began.elapsed() < Duration::from_secs(120) {
        let mut peer = streams.recv().await.unwrap();
        peer.request().await;
        drop(peer);
        streams_seen += 1;
    }
    // 100 ms doubling to 10 s, halved at most by jitter: 7 streams until the longest pause, then
    // at most one in 5 s.
    assert!(
        (10..=32).contains(&streams_seen),
        "{streams_seen} streams in two minutes"
    );
    client.task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_lived_long_is_replaced_quickly() {
    let (channel, mut streams) = server();
    let client = client(channel);
    for _ in 0..8 {
        drop(streams.recv().await.unwrap());
    }
    let mut peer = streams.recv().await.unwrap();
    peer.request().await;
    peer.send(response(ADDRESS, "1", &[])).await;
    tokio::time::sleep(GOOD_LIFE).await;
    drop(peer);
    let ended = Instant::now();
    streams.recv().await.unwrap();
    assert!(
        ended.elapsed() <= FIRST_PAUSE + Duration::from_millis(10),
        "{:?}",
        ended.elapsed()
    );
    client.task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_left_after_a_minute() {
    let (channel, mut streams) = server();
    let client = client(channel);
    let began = Instant::now();
    let _silent = streams.recv().await.unwrap();
    let _next = streams.recv().await.unwrap();
    assert!(began.elapsed() >= FIRST_RESPONSE);
    assert!(began.elapsed() < FIRST_RESPONSE + Duration::from_secs(2));
    client.task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_retried_with_pauses() {
    let attempts = Arc::new(Counter::new());
    let seen = attempts.clone();
    let connector = tower::service_fn(move |_| {
        seen.inc();
        async { Err::<TokioIo<DuplexStream>, _>(std::io::Error::other("no route")) }
    });
    let channel = Endpoint::from_static("http://x").connect_with_connector_lazy(connector);
    let client = client(channel);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(
        (7..=20).contains(&attempts.value()),
        "{} attempts in a minute",
        attempts.value()
    );
    let text = client.registry.render(Format::Text);
    assert!(text.contains("reason=\"ConnectionError\""), "{text}");
    client.task.abort();
}

//! Drives a [`Session`] over gRPC, for ever.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::time::Duration;

use ambit_observe::metrics::{Family, Registry};
use ambit_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use ambit_runtime::backoff::Backoff;
use bytes::Bytes;
use prost::Message;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::{Code, Status, Streaming};

use crate::delta::{Answer, Session, Subscription};
use crate::{Handler, Rejected};

/// Largest response: a mesh of 100,000 workloads in one first response is about 100 MB.
const MAX_MESSAGE: usize = 200 * 1024 * 1024;
/// Pauses between streams. The first is short because most losses are a restart of the server or
/// of a node between; the longest bounds how late a proxy learns that the server is back.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A stream that lived this long was a success: the next pause is short again. Longer than the
/// longest pause, so a server that ends every stream at once is not asked more and more often.
const GOOD_LIFE: Duration = Duration::from_secs(15);
/// Time from the first request to the first response. A loaded server delays first responses by
/// some seconds; one that says nothing for a minute will not.
const FIRST_RESPONSE: Duration = Duration::from_secs(60);
/// Time for the server to take an acknowledgement out of our window.
const SEND: Duration = Duration::from_secs(30);
/// Refused resources of one response that are logged each; the count is logged for all.
const MAX_LOGGED: usize = 20;
/// Requests in flight towards the server: the first of each type, then acknowledgements.
const REQUESTS: usize = 64;

ambit_observe::series! {
    /// How streams ended.
    struct Terminations {
        ended: Counter = ("istio_xds_connection_terminations", "The total number of completed connections to xds server (unstable)."),
    }
}

ambit_observe::series! {
    /// What was received, by type.
    struct Messages {
        received: Counter = ("istio_xds_message", "Total number of messages received (unstable)."),
        bytes: Counter = ("istio_xds_message_bytes", "Total number of bytes received (unstable)."),
        rejected: Counter = ("ambit_xds_rejected_resources", "Resources refused (unstable)."),
    }
}

/// What the client counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    terminations: Family<Terminations>,
    messages: Family<Messages>,
}

impl Metrics {
    /// Adds the client's metrics to a registry.
    pub fn register(registry: &Registry) -> Self {
        Self {
            terminations: registry.family(),
            messages: registry.family(),
        }
    }

    fn received(&self, response: &DeltaDiscoveryResponse) {
        let messages = self
            .messages
            .resolve(|labels| labels.open("url", &response.type_url));
        messages.received.inc();
        messages
            .bytes
            .add(u64::try_from(response.encoded_len()).unwrap_or(u64::MAX));
    }

    fn ended(&self, ended: &Ended, lived: Duration, pause: Duration) {
        self.terminations
            .resolve(|labels| labels.closed("reason", ended.label()))
            .ended
            .inc();
        let error: &(dyn StdError + 'static) = ended;
        tracing::warn!(error, ?lived, ?pause, "discovery will reconnect");
    }

    fn rejected(&self, type_url: &str, rejected: &[Rejected]) {
        let messages = self.messages.resolve(|labels| labels.open("url", type_url));
        messages
            .rejected
            .add(u64::try_from(rejected.len()).unwrap_or(u64::MAX));
    }
}

/// What the client asks for, and as whom.
#[derive(Debug)]
pub struct Config {
    /// Who we are.
    pub node: Node,
    /// What we want, in the order of the first requests.
    pub subscriptions: Vec<Subscription>,
    /// What to count.
    pub metrics: Metrics,
    /// Changes when [`Handler::wanted`] may have changed for another reason than an update; `None` when that does not happen.
    pub wake: Option<watch::Receiver<u64>>,
}

/// How a stream ended.
#[derive(Debug, Error)]
enum Ended {
    /// Network, configuration or peer: no stream came to be.
    #[error("cannot open a discovery stream")]
    Connection(#[source] Status),
    /// Peer: it ended the stream with an error.
    #[error("discovery stream failed")]
    Failed(#[source] Status),
    /// Peer: it ended the stream without one.
    #[error("discovery stream ended")]
    Complete,
    /// Peer: nothing came, or nothing was taken, for too long.
    #[error("discovery stream stalled: {0}")]
    Stalled(&'static str),
}

impl Ended {
    /// Istio's names for the metric.
    fn label(&self) -> &'static str {
        match self {
            Self::Connection(_) => "ConnectionError",
            Self::Failed(status) if restarting(status) => "Reconnect",
            Self::Failed(_) | Self::Stalled(_) => "Error",
            Self::Complete => "Complete",
        }
    }
}

/// Whether the server went away in good order, as on its restart or its limit of stream age.
fn restarting(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
    ) || status.code() == Code::Unavailable
}

/// Keeps `handler` up to date over `channel`, through any number of streams.
///
/// `synced` is called once, when each type has had its first processed response.
///
/// # Guarantees
/// Never returns; dropping the future ends the client. Between two streams there is always a pause
/// with jitter.
pub async fn run<C, H>(
    channel: C,
    config: Config,
    mut handler: H,
    synced: impl FnOnce(),
) -> Infallible
where
    C: GrpcService<Body> + Clone,
    C::Error: Into<Box<dyn StdError + Send + Sync>>,
    C::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
    H: Handler,
{
    let mut session = Session::new(config.node, config.subscriptions);
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut synced = Some(synced);
    loop {
        let began = Instant::now();
        let mut stream = Stream {
            session: &mut session,
            handler: &mut handler,
            metrics: &config.metrics,
            synced: &mut synced,
            wake: config.wake.clone(),
        };
        let ended = stream.serve(channel.clone()).await;
        handler.connected(false);
        let lived = began.elapsed();
        if lived >= GOOD_LIFE {
            backoff.reset();
        }
        let pause = backoff.next(fastrand::u64(..));
        config.metrics.ended(&ended, lived, pause);
        tokio::time::sleep(pause).await;
    }
}

/// One stream, from its first request to its end.
struct Stream<'a, H, F> {
    session: &'a mut Session,
    handler: &'a mut H,
    metrics: &'a Metrics,
    synced: &'a mut Option<F>,
    wake: Option<watch::Receiver<u64>>,
}

impl<H: Handler, F: FnOnce()> Stream<'_, H, F> {
    async fn serve<C>(&mut self, channel: C) -> Ended
    where
        C: GrpcService<Body>,
        C::Error: Into<Box<dyn StdError + Send + Sync>>,
        C::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
        <C::ResponseBody as tonic::codegen::Body>::Error:
            Into<Box<dyn StdError + Send + Sync>> + Send,
    {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        for request in self.session.open() {
            // There are fewer types than room.
            if requests.try_send(request).is_err() {
                return Ended::Stalled("too many types");
            }
        }
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let opening = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
        let mut responses = match timeout(FIRST_RESPONSE, opening).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Ended::Connection(status),
            Err(_elapsed) => return Ended::Stalled("the server did not open the stream"),
        };
        tracing::info!("discovery stream open");
        let first = match timeout(FIRST_RESPONSE, responses.message()).await {
            Ok(first) => first,
            Err(_elapsed) => return Ended::Stalled("no first response"),
        };
        self.follow(first, &mut responses, &requests).await
    }

    async fn follow(
        &mut self,
        first: Result<Option<DeltaDiscoveryResponse>, Status>,
        responses: &mut Streaming<DeltaDiscoveryResponse>,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Ended {
        let mut next = first;
        loop {
            let response = match next {
                Ok(Some(response)) => response,
                Ok(None) => return Ended::Complete,
                Err(status) => return Ended::Failed(status),
            };
            self.handler.connected(true);
            let mut replies = self.process(response);
            next = loop {
                for request in replies {
                    match timeout(SEND, requests.send(request)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_closed)) => return Ended::Complete,
                        Err(_elapsed) => return Ended::Stalled("the server takes no requests"),
                    }
                }
                tokio::select! {
                    next = responses.message() => break next,
                    () = woken(&mut self.wake) => replies = self.session.follow_up(self.handler),
                }
            };
        }
    }

    /// Puts one response in force; returns what to send.
    fn process(&mut self, response: DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
        self.metrics.received(&response);
        let type_url = response.type_url.clone();
        let (count, removed) = (response.resources.len(), response.removed_resources.len());
        let Answer {
            reply,
            follow_up,
            rejected,
        } = self.session.receive(response, self.handler);
        tracing::debug!(
            type_url,
            count,
            removed,
            rejected = rejected.len(),
            "discovery response"
        );
        if !rejected.is_empty() {
            self.metrics.rejected(&type_url, &rejected);
            tracing::warn!(
                type_url,
                rejected = rejected.len(),
                of = count,
                "resources refused"
            );
        }
        for Rejected { name, reason } in rejected.iter().take(MAX_LOGGED) {
            tracing::warn!(type_url, name, reason, "resource refused");
        }
        if self.session.synced()
            && let Some(synced) = self.synced.take()
        {
            synced();
        }
        let mut sent = vec![reply];
        sent.extend(follow_up);
        sent
    }
}

/// Waits until there may be more to ask for.
async fn woken(wake: &mut Option<watch::Receiver<u64>>) {
    if let Some(wake) = wake
        && wake.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;

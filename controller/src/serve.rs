//! The discovery server: one task for each stream, around a pure [`session`].

use std::sync::Arc;
use std::time::Duration;

use ambit_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use ambit_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use ambit_runtime::clock::Clock;
use ambit_runtime::drain::Draining;
use ambit_runtime::tasks;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::app::Shared;
use crate::authority::review::Caller;
use crate::metrics::Metrics;
use crate::publish::Published;
use crate::serve::clients::{Clients, Open};
use crate::serve::session::{Rejection, Session};

pub mod clients;
pub mod listen;
pub mod session;
pub mod view;

/// Time for a client's first request, which says who it is. It is sent with the headers.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Time for a client to take a response off the queue. One that reads slower than this holds
/// resources that nobody else needs; it connects again and says what it has.
const SLOW_CLIENT: Duration = Duration::from_secs(60);

/// Responses waiting for one client. A publication is six at most.
const QUEUE: usize = 8;

/// The discovery service.
#[derive(Debug)]
pub struct Discovery {
    /// What is published, and who may read it.
    pub shared: Shared,
    /// Who is connected.
    pub clients: Arc<Clients>,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When to end.
    pub draining: Draining,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "only incremental discovery is served (DELTA_GRPC)",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let publications = self.shared.subscribe();
        let published = publications.borrow().clone();
        let caller = self
            .shared
            .caller(request.metadata(), &published, self.clock.now())?;
        let (answers, queue) = mpsc::channel(QUEUE);
        let stream = Stream {
            caller,
            requests: request.into_inner(),
            answers,
            publications,
            clients: Arc::clone(&self.clients),
            metrics: Arc::clone(&self.metrics),
            draining: self.draining.clone(),
        };
        tasks::spawn("discovery", Box::pin(stream.run()));
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

/// One client's stream.
struct Stream {
    caller: Caller,
    requests: Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    publications: watch::Receiver<Arc<Published>>,
    clients: Arc<Clients>,
    metrics: Arc<Metrics>,
    draining: Draining,
}

/// Why a stream ended.
enum Ended {
    /// The client went, or the connection did.
    ByClient,
    /// We end it and say why.
    ByUs(Status),
}

impl Stream {
    async fn run(mut self) {
        self.metrics.client_came();
        let ended = self.serve().await;
        self.metrics.client_left();
        match ended {
            Ended::ByClient => tracing::debug!(caller = %self.caller, "discovery stream ended"),
            Ended::ByUs(status) => {
                tracing::warn!(caller = %self.caller, %status, "discovery stream refused");
                // A client that does not read does not get to know.
                drop(self.answers.try_send(Err(status)));
            }
        }
    }

    async fn serve(&mut self) -> Ended {
        let first = match timeout(FIRST_REQUEST, self.requests.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(_) => return Ended::ByClient,
            Err(_) => return Ended::ByUs(Status::deadline_exceeded("no request")),
        };
        let published = self.publications.borrow_and_update().clone();
        let node = first.node.clone().unwrap_or_default();
        let scope = match view::of(&published.cluster, &self.caller, &node) {
            Ok(scope) => scope,
            Err(refused) => return Ended::ByUs(Status::permission_denied(refused.to_string())),
        };
        let client = self.clients.open(&node.id, &self.caller, &scope);
        tracing::info!(node = node.id, caller = %self.caller, ?scope, "discovery stream");
        let mut session = Session::new(scope);
        match self.follow(&mut session, &client, first, published).await {
            Ok(()) => Ended::ByClient,
            Err(status) => Ended::ByUs(status),
        }
    }

    async fn follow(
        &mut self,
        session: &mut Session,
        client: &Open,
        first: DeltaDiscoveryRequest,
        mut published: Arc<Published>,
    ) -> Result<(), Status> {
        let mut request = Some(first);
        loop {
            if let Some(request) = request.take() {
                let reaction = session
                    .request(&published, request)
                    .map_err(|misbehaved| Status::resource_exhausted(misbehaved.to_string()))?;
                if let Some(rejection) = reaction.rejection {
                    self.rejected(client, rejection);
                }
                self.send(reaction.responses).await?;
                client.holds(session.held());
            }
            // Requests first: what a client asks for goes before what it does not wait for.
            tokio::select! {
                biased;
                () = self.draining.requested() => {
                    return Err(Status::unavailable("the controller stops"));
                }
                next = self.requests.message() => match next {
                    Ok(Some(next)) => request = Some(next),
                    Ok(None) | Err(_) => return Ok(()),
                },
                changed = self.publications.changed() => {
                    changed.map_err(|_| Status::unavailable("the controller stops"))?;
                    published = self.publications.borrow_and_update().clone();
                    self.send(session.publish(&published)).await?;
                    client.holds(session.held());
                }
            }
        }
    }

    async fn send(&self, responses: Vec<DeltaDiscoveryResponse>) -> Result<(), Status> {
        for response in responses {
            let type_url = response.type_url.clone();
            match timeout(SLOW_CLIENT, self.answers.send(Ok(response))).await {
                Ok(Ok(())) => self.metrics.responded(&type_url),
                // Gone: the next read says so.
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Status::deadline_exceeded("the client does not read")),
            }
        }
        Ok(())
    }

    fn rejected(&self, client: &Open, rejection: Rejection) {
        self.metrics.rejected(&rejection.type_url);
        tracing::warn!(
            node = client.node(),
            type_url = rejection.type_url,
            reason = rejection.message,
            "client refused resources"
        );
        client.rejected(rejection);
    }
}

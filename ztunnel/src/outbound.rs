//! One connection that left a pod.
//!
//! 1. Where was it going: the destination before redirection.
//! 2. Whose is it: the pod's own record.
//! 3. Decide on one view: refuse calls to ourselves, then [`route::outbound`].
//! 4. Open the way (a name resolved first, where that is all there is; dial), trying another while nothing was carried.
//! 5. Relay, raced with whatever forbids it later.
//! 6. Record one reason.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_hbone::Stream;
use ambit_hbone::client::Opened;
use ambit_model::reason::Reason;
use ambit_model::route::{self, Outbound, Route, Tunnel};
use ambit_model::text::Text;
use ambit_model::workload::Workload;
use ambit_net::options;
use ambit_net::original_dst::{canonical, original_destination};
use ambit_observe::access::{Direction, Trace};
use ambit_relay::tcp::{self, Bulk};
use ambit_relay::{Closed, Meter, relay};
use ambit_wire::baggage::Baggage;
use ambit_wire::forwarded::Forwarded;
use ambit_wire::trace::TraceParent;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::busy::Work;
use crate::carry::{self, Beginning, Carry, Relay, unless_ended};
use crate::dial;
use crate::early;
use crate::live::{Carried, Decided, Guard};
use crate::neighbour::{self, Arrived, Call};
use crate::pod::ServedPod;
use crate::record::{Outcome, Record};

/// Ways tried for one connection. Where three endpoints in a row fail, so will a fourth.
const ATTEMPTS: u32 = 3;

/// Time for all of them together: as long as one connection attempt may take, so that an
/// application waits no longer for several.
const BUDGET: Duration = Duration::from_secs(10);

/// Carries one connection from accept to close.
pub fn serve(
    pod: Rc<ServedPod>,
    client: TcpStream,
    peer: SocketAddr,
    work: Work,
) -> impl Future<Output = ()> {
    let record = Record::new(&pod.worker.telemetry, Direction::Outbound, canonical(peer));
    carry::serve(work, begun(pod, client, Box::new(record)))
}

/// The beginning, given up when the client is.
async fn begun(pod: Rc<ServedPod>, client: TcpStream, mut record: Box<Record>) -> Beginning<Begun> {
    let opened = tokio::select! {
        biased;
        opened = begin(&pod, &client, &mut record) => opened,
        () = broken_off(&client) => Err(Reason::LocalReset.into()),
    };
    let begun = match opened {
        Ok((guard, onward)) => Ok(Begun {
            client,
            bulk: pod.worker.shared.settings.bulk(),
            guard,
            onward,
        }),
        Err(outcome) => {
            refuse(&client);
            Err(outcome)
        }
    };
    (record, begun)
}

/// The steps up to the open way, in order.
async fn begin(
    pod: &Rc<ServedPod>,
    client: &TcpStream,
    record: &mut Record,
) -> Result<(Guard, Onward), Outcome> {
    let destination = destination(client)?;
    record.destination_address = Some(destination);
    let own = record.source_address.ip();
    let source = pod.workload(own).await.ok_or(Reason::UnknownSource)?;
    record.source.workload = Some(Arc::clone(&source));
    let shared = &pod.worker.shared;
    if let Some(demand) = &shared.demand {
        let network = &shared.settings.network;
        Box::pin(demand.outbound(&shared.store, network, &source, destination)).await?;
    }
    let connection = Connection {
        pod,
        source,
        client: record.source_address,
        stream: client,
        destination,
    };
    connection.open(record).await
}

/// Ends when the client breaks its connection off: nobody is left to open a way for. Its orderly end
/// is no such thing, since it may wait for an answer.
async fn broken_off(client: &TcpStream) {
    // An error says the same.
    let _ = client.ready(Interest::ERROR).await;
}

/// Makes the end of a connection that was not carried a reset: an orderly end would look like an
/// empty answer.
pub(crate) fn refuse(client: &TcpStream) {
    // Fails only on a socket that is gone.
    let _ = options::reset_on_close(client);
}

/// The destination that the application dialled.
fn destination(client: &TcpStream) -> Result<SocketAddr, Outcome> {
    original_destination(client).map_err(|error| Outcome::because(Reason::Io, error))
}

/// The open way onward.
enum Onward {
    Plain(TcpStream),
    /// With how many of the client's bytes have gone already.
    Tunnel(Stream, usize),
    Neighbour(Box<Arrived>),
}

struct Connection<'a> {
    pod: &'a Rc<ServedPod>,
    source: Arc<Workload>,
    client: SocketAddr,
    stream: &'a TcpStream,
    destination: SocketAddr,
}

impl Connection<'_> {
    /// Decides and dials. Where the way failed before anything was sent, decides anew without what
    /// failed: another endpoint may do, or another tunnel to the same one.
    async fn open(&self, record: &mut Record) -> Result<(Guard, Onward), Outcome> {
        let mut avoid = SmallVec::new();
        let mut route = match self.decide(&avoid) {
            Ok(route) => route,
            Err(reason) => {
                self.describe_meant(record);
                return Err(reason.into());
            }
        };
        let end = Instant::now() + BUDGET;
        for left in (0..ATTEMPTS).rev() {
            let guard = self.register(&route);
            self.describe(&route, record);
            // With nobody else to try, it may take what it takes.
            let limit = route.instead().map(|_| share(end, left));
            let opened = tokio::select! {
                biased;
                refusal = guard.ended() => Err(refusal.into()),
                opened = self.take(&route, limit, &guard, record) => opened,
            };
            let outcome = match opened {
                Ok(onward) => {
                    record.open();
                    if let Onward::Tunnel(_, early) = onward {
                        early::take(self.stream, early).await?;
                        record.sent(u64::try_from(early).unwrap_or(0));
                    }
                    return Ok((guard, onward));
                }
                Err(outcome) => outcome,
            };
            let again = left > 0 && outcome.reason.retriable() && Instant::now() < end;
            let next = again.then(|| self.another(&route, outcome.reason, &mut avoid));
            match next.flatten() {
                Some(next) => {
                    tracing::debug!(error = outcome.detail, left, "trying another way");
                    route = next;
                }
                None => return Err(outcome),
            }
        }
        Err(Reason::Bug.into())
    }

    /// The way to try after one that failed, if there is one.
    fn another(&self, failed: &Route, reason: Reason, avoid: &mut Avoided) -> Option<Route> {
        if !reason.of_the_tunnel() {
            avoid.push(failed.instead()?.clone());
        }
        self.decide(avoid).ok()
    }

    /// Where it goes, on the view of this moment.
    fn decide(&self, avoid: &[Text]) -> Result<Route, Reason> {
        let shared = &self.pod.worker.shared;
        let outbound = Outbound {
            source: &self.source,
            destination: self.destination,
            network: &shared.settings.network,
            avoid,
        };
        shared
            .store
            .read(|view| route::outbound(view, &outbound, &mut || fastrand::u64(..)))
    }

    /// Where it goes nowhere, `record` learns at least whom the application meant.
    fn describe_meant(&self, record: &mut Record) {
        let shared = &self.pod.worker.shared;
        let (network, address) = (&shared.settings.network, self.destination.ip());
        shared.store.read(|view| {
            let service = view.service_at(network, address, &self.source.namespace);
            record.service = service.cloned();
            if record.service.is_none() {
                record.destination.workload = view.workload_at(network, address).cloned();
            }
        });
    }

    fn register(&self, route: &Route) -> Guard {
        let decided = Decided::Outbound(self.carried(route));
        self.pod.register(decided, self.client, None)
    }

    fn carried(&self, route: &Route) -> Carried {
        let (upstream, next_hop) = match route {
            Route::Plain { to, upstream, .. } => (upstream.clone(), *to),
            Route::Tunnel(tunnel) => (Some(Arc::clone(&tunnel.upstream)), tunnel.next_hop),
            // Until its name is resolved.
            Route::Named(named) => (Some(Arc::clone(named.upstream())), self.destination),
        };
        Carried {
            source: Arc::clone(&self.source),
            upstream,
            next_hop,
            protocol: match route {
                Route::Plain { .. } | Route::Named(_) => "TCP",
                Route::Tunnel(way) if way.beyond.is_some() => "DOUBLEHBONE",
                Route::Tunnel(_) => "HBONE",
            },
            wanted: self.destination,
        }
    }

    fn describe(&self, route: &Route, record: &mut Record) {
        let (upstream, next_hop, authority) = match route {
            Route::Plain { to, upstream, .. } => (upstream.clone(), *to, None),
            Route::Tunnel(way) => (
                Some(Arc::clone(&way.upstream)),
                way.next_hop,
                Some(way.authority.clone()),
            ),
            // Until its name is resolved.
            Route::Named(named) => (Some(Arc::clone(named.upstream())), self.destination, None),
        };
        record.destination.workload = upstream;
        record.service = route.service().cloned();
        record.destination_address = Some(next_hop);
        // Both ends of a tunnel are who they say, or it is not made.
        record.source.identity = authority.as_ref().map(|_| self.source.identity.clone());
        record.authority = authority;
    }

    /// Dials, once it is known where to.
    async fn take(
        &self,
        route: &Route,
        limit: Option<Duration>,
        guard: &Guard,
        record: &mut Record,
    ) -> Result<Onward, Outcome> {
        let Route::Named(named) = route else {
            return self.dial(route, limit, guard, record).await;
        };
        let (names, like) = (&self.pod.worker.names, self.destination.ip());
        let begun = Instant::now();
        let resolving = names.resolve(&self.source, named.hostname(), like, limit);
        let route = named.at(resolving.await?);
        self.describe(&route, record);
        guard.leads(self.carried(&route));
        let limit = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
        Box::pin(self.dial(&route, limit, guard, record)).await
    }

    async fn dial(
        &self,
        route: &Route,
        limit: Option<Duration>,
        guard: &Guard,
        record: &mut Record,
    ) -> Result<Onward, Outcome> {
        let way = match route {
            Route::Plain { to, .. } => {
                record.trace = Some(new_trace());
                return Ok(Onward::Plain(dial::plain(self.pod, *to, limit).await?));
            }
            Route::Tunnel(way) => way,
            Route::Named(_) => return Err(Reason::Bug.into()),
        };
        if let Some(neighbour) = neighbour::find(self.pod, way) {
            return self.hand_over(neighbour, way, limit, guard, record).await;
        }
        let trace = TraceParent::root(fastrand::u128(..), fastrand::u64(..));
        // The tunnel's other end is told of this connection's span as its parent.
        record.trace = Some(Trace {
            trace_id: trace.trace_id,
            span_id: trace.parent_id,
            parent_id: None,
        });
        let headers = self.headers(way, trace);
        let early = || match self.pod.worker.shared.settings.early_data {
            true => early::peek(self.stream),
            false => Ok(Bytes::new()),
        };
        let through = dial::tunnel(self.pod, &self.source, way, headers, limit, early).await?;
        if way.beyond.is_some() {
            // Which of the workloads over there it is, only the answer says.
            record.destination.workload = None;
            record.destination.said = said(&through.opened.headers);
        }
        for proof in &through.proofs {
            guard.rests_on(proof, &self.pod.worker.shared.revocation.lists);
        }
        record.destination.identity = Some(through.peer);
        let Opened { stream, early, .. } = through.opened;
        Ok(Onward::Tunnel(stream, early))
    }

    /// Hands the connection to a pod of this node.
    async fn hand_over(
        &self,
        neighbour: Rc<ServedPod>,
        way: &Tunnel,
        limit: Option<Duration>,
        guard: &Guard,
        record: &mut Record,
    ) -> Result<Onward, Outcome> {
        let lists = &self.pod.worker.shared.revocation.lists;
        let trace = new_trace();
        record.trace = Some(trace);
        record.neighbours = true;
        let own = neighbour::believed(self.pod).await?;
        let far = dial::far_end(self.pod, &own.svid, &self.source, way, limit).await?;
        for proof in far.proof.iter().chain(&own.proof) {
            guard.rests_on(proof, lists);
        }
        record.destination.identity = Some(far.peer);
        let call = Call {
            way,
            client: self.client,
            trace,
        };
        let arrived = neighbour::arrive(neighbour, &call, own, far.proof).await?;
        Ok(Onward::Neighbour(arrived))
    }

    /// What the CONNECT says besides its authority.
    fn headers(&self, way: &Tunnel, trace: TraceParent) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(3);
        if let Some(baggage) = self.pod.baggage(&self.source) {
            headers.insert(HeaderName::from_static("baggage"), baggage);
        }
        let forwarded = Forwarded {
            client: Some(self.client),
            host: way
                .service
                .as_ref()
                .map(|service| Arc::from(service.key.hostname.as_str())),
        };
        insert(&mut headers, "forwarded", &forwarded.to_string());
        insert(&mut headers, "traceparent", &trace.to_string());
        headers
    }
}

/// Uids of workloads on which an attempt has failed.
type Avoided = SmallVec<[Text; 2]>;

/// How long one attempt may take when `left` more may follow before `end`.
fn share(end: Instant, left: u32) -> Duration {
    end.saturating_duration_since(Instant::now()) / (left + 1)
}

/// What the other end says of its workload. Telemetry only.
pub(crate) fn said(headers: &HeaderMap) -> Option<Box<Baggage>> {
    let mut said = Box::<Baggage>::default();
    for value in headers.get_all("baggage") {
        // What cannot be read is not known.
        let _ = said.merge(value.as_bytes());
    }
    (*said != Baggage::default()).then_some(said)
}

/// A trace that nobody else is told of.
pub(crate) fn new_trace() -> Trace {
    let root = TraceParent::root(fastrand::u128(..), fastrand::u64(..));
    Trace {
        trace_id: root.trace_id,
        span_id: root.parent_id,
        parent_id: None,
    }
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // What cannot be a header value is telemetry of a strangely named service, and is left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// A connection and the open way onward.
struct Begun {
    client: TcpStream,
    bulk: Bulk,
    guard: Guard,
    onward: Onward,
}

impl Carry for Begun {
    fn carry(self, record: &Record) -> Relay<'_> {
        let client = tcp::split(self.client);
        let outcome = |closed: Closed| Outcome::of(&closed, Direction::Outbound);
        let guard = self.guard;
        match self.onward {
            Onward::Plain(server) => {
                let server = tcp::split(server);
                let relayed = tcp::relay(client, server, self.bulk, record).map(outcome);
                Box::pin(unless_ended(guard, relayed))
            }
            Onward::Tunnel(stream, _) => {
                let relayed = relay(client, stream.split(), record).map(outcome);
                Box::pin(unless_ended(guard, relayed))
            }
            Onward::Neighbour(arrived) => Box::pin(unless_ended(
                guard,
                arrived.carry(client, self.bulk, record),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{BUDGET, share};

    #[tokio::test(start_paused = true)]
    async fn attempts_share_one_budget() {
        let end = Instant::now() + BUDGET;
        assert_eq!(share(end, 2), BUDGET / 3);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(share(end, 1), Duration::from_secs(3));
        assert_eq!(share(end, 0), Duration::from_secs(6));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(share(end, 0), Duration::ZERO);
    }
}

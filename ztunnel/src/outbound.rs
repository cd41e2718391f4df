//! One connection that left a pod.
//!
//! 1. Where was it going: the destination before redirection.
//! 2. Whose is it: the pod's own record.
//! 3. Decide on one view: refuse calls to ourselves, then [`route::outbound`].
//! 4. Open the way (dial), trying another endpoint while nothing was sent.
//! 5. Relay, raced with whatever forbids it later.
//! 6. Record one reason.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ambit_hbone::Stream;
use ambit_model::reason::Reason;
use ambit_model::route::{self, Outbound, Route, Tunnel};
use ambit_model::workload::Workload;
use ambit_net::options;
use ambit_net::original_dst::{canonical, original_destination};
use ambit_observe::access::Direction;
use ambit_relay::{relay, tcp};
use ambit_wire::baggage::Baggage;
use ambit_wire::forwarded::Forwarded;
use ambit_wire::trace::TraceParent;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::net::TcpStream;

use crate::dial;
use crate::live::{Carried, Decided, Guard};
use crate::pod::ServedPod;
use crate::record::{Outcome, Record};

/// Ways tried for one connection to a service. Each takes up to ten seconds when it fails by
/// timeout, and an application waits no longer than that for much more.
const ATTEMPTS: u32 = 3;

/// Carries one connection from accept to close.
pub async fn serve(pod: Rc<ServedPod>, client: TcpStream, peer: SocketAddr) {
    let _work = pod.busy.begin();
    let mut record = Record::new(&pod.worker.telemetry, Direction::Outbound, canonical(peer));
    let outcome = match begin(&pod, &client, &mut record).await {
        Ok((guard, onward)) => carry_on(client, onward, &guard, &record).await,
        Err(outcome) => {
            refuse(&client);
            outcome
        }
    };
    record.finish(&outcome);
}

/// The steps up to the open way, in order.
async fn begin(
    pod: &Rc<ServedPod>,
    client: &TcpStream,
    record: &mut Record,
) -> Result<(Guard, Onward), Outcome> {
    let destination = destination(client)?;
    record.destination_address = Some(destination);
    let source = pod.workload().await.ok_or(Reason::UnknownSource)?;
    record.source.workload = Some(Arc::clone(&source));
    let connection = Connection {
        pod,
        source,
        client: record.source_address,
        destination,
    };
    connection.open(record).await
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
    Tunnel(Stream),
}

struct Connection<'a> {
    pod: &'a Rc<ServedPod>,
    source: Arc<Workload>,
    client: SocketAddr,
    destination: SocketAddr,
}

impl Connection<'_> {
    /// Decides and dials. Where the way failed before anything was sent and the destination is a
    /// service, decides anew: another endpoint may do.
    async fn open(&self, record: &mut Record) -> Result<(Guard, Onward), Outcome> {
        let mut tried = 1;
        loop {
            let route = self.decide(record)?;
            let guard = self.register(&route);
            self.describe(&route, record);
            let several = record.service.is_some();
            let opened = tokio::select! {
                biased;
                refusal = guard.ended() => Err(refusal.into()),
                opened = self.dial(&route, record) => opened,
            };
            match opened {
                Ok(onward) => return Ok((guard, onward)),
                Err(outcome) if several && tried < ATTEMPTS && outcome.reason.retriable() => {
                    tracing::debug!(error = outcome.detail, tried, "trying another endpoint");
                    tried += 1;
                }
                Err(outcome) => return Err(outcome),
            }
        }
    }

    /// Where it goes, on the view of this moment; where it goes nowhere, `record` learns at least
    /// whom the application meant.
    fn decide(&self, record: &mut Record) -> Result<Route, Reason> {
        let shared = &self.pod.worker.shared;
        let outbound = Outbound {
            source: &self.source,
            destination: self.destination,
            network: &shared.settings.network,
        };
        shared.store.read(|view| {
            let decided = route::outbound(view, &outbound, &mut || fastrand::u64(..));
            if decided.is_err() {
                let (network, address) = (outbound.network, self.destination.ip());
                record.service = view
                    .service_at(network, address, &self.source.namespace)
                    .cloned();
                if record.service.is_none() {
                    record.destination.workload = view.workload_at(network, address).cloned();
                }
            }
            decided
        })
    }

    fn register(&self, route: &Route) -> Guard {
        let (upstream, next_hop) = match route {
            Route::Plain { to, upstream, .. } => (upstream.clone(), *to),
            Route::Tunnel(tunnel) => (Some(Arc::clone(&tunnel.upstream)), tunnel.next_hop),
        };
        let carried = Carried {
            source: Arc::clone(&self.source),
            upstream,
            next_hop,
            protocol: match route {
                Route::Plain { .. } => "TCP",
                Route::Tunnel(way) if way.beyond.is_some() => "DOUBLEHBONE",
                Route::Tunnel(_) => "HBONE",
            },
            wanted: self.destination,
        };
        self.pod
            .register(Decided::Outbound(carried), self.client, None)
    }

    fn describe(&self, route: &Route, record: &mut Record) {
        let (upstream, service, next_hop) = match route {
            Route::Plain {
                to,
                upstream,
                service,
            } => (upstream.clone(), service, *to),
            Route::Tunnel(way) => (Some(Arc::clone(&way.upstream)), &way.service, way.next_hop),
        };
        record.destination.workload = upstream;
        record.service = service.clone();
        record.destination_address = Some(next_hop);
        if let Route::Tunnel(way) = route {
            record.authority = Some(way.authority.clone());
        }
    }

    async fn dial(&self, route: &Route, record: &mut Record) -> Result<Onward, Outcome> {
        match route {
            Route::Plain { to, .. } => {
                record.open();
                Ok(Onward::Plain(dial::plain(self.pod, *to).await?))
            }
            Route::Tunnel(way) => {
                // Both ends are who they say from here on, or the tunnel is not made.
                record.source.identity = Some(self.source.identity.clone());
                if way.beyond.is_none() {
                    record.open();
                }
                let headers = self.headers(way);
                let through = dial::tunnel(self.pod, &self.source, way, headers).await?;
                if way.beyond.is_some() {
                    // Which of the workloads over there it is, only the answer says.
                    record.destination.workload = None;
                    record.destination.said = said(&through.opened.headers);
                }
                record.destination.identity = Some(through.peer);
                record.open();
                Ok(Onward::Tunnel(through.opened.stream))
            }
        }
    }

    /// What the CONNECT says besides its authority.
    fn headers(&self, way: &Tunnel) -> HeaderMap {
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
        let trace = TraceParent::root(fastrand::u128(..), fastrand::u64(..));
        insert(&mut headers, "traceparent", &trace.to_string());
        headers
    }
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

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // What cannot be a header value is telemetry of a strangely named service, and is left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Relays until it ends by itself or may not go on.
async fn carry_on(client: TcpStream, onward: Onward, guard: &Guard, record: &Record) -> Outcome {
    let client = tcp::split(client);
    let closed = async {
        match onward {
            Onward::Plain(server) => relay(client, tcp::split(server), record).await,
            Onward::Tunnel(stream) => relay(client, stream.split(), record).await,
        }
    };
    tokio::select! {
        biased;
        refusal = guard.ended() => refusal.into(),
        closed = closed => Outcome::of(&closed, Direction::Outbound),
    }
}

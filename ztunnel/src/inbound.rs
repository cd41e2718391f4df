//! Tunnels that arrive for a pod, and the streams in them.
//!
//! For the connection: 1. TLS handshake as the pod, which gives a `Peer` (proof). 2. HTTP/2.
//! 3. Each CONNECT is a task of its own.
//!
//! For each CONNECT:
//! 1. The pod's own record.
//! 2. Decide on one view: [`admit::admit`], which gives an `Admitted` (proof).
//! 3. Connect to the application, from the client's address.
//! 4. Answer 200.
//! 5. Relay, raced with whatever forbids it later.
//! 6. Record one reason.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use ambit_hbone::Stream;
use ambit_hbone::server::{self, Exchange, Incoming};
use ambit_model::admit::{self, Admitted, Arrival, Inbound};
use ambit_model::identity::Identity;
use ambit_model::reason::Reason;
use ambit_model::service::Service;
use ambit_model::view::View;
use ambit_model::workload::Workload;
use ambit_net::original_dst::canonical;
use ambit_observe::access::{Direction, Trace};
use ambit_observe::traffic::Reporter;
use ambit_relay::{Closed, relay, tcp};
use ambit_runtime::tasks::spawn_local;
use ambit_tls::{Limits, Lineage, Peer, ServerStream};
use ambit_wire::Authority;
use ambit_wire::baggage::Baggage;
use ambit_wire::forwarded::Forwarded;
use ambit_wire::trace::TraceParent;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::busy::Work;
use crate::carry::{self, Beginning, Carry, Relay, unless_ended};
use crate::dial;
use crate::handshakes::Visit;
use crate::live::{Decided, Guard};
use crate::outbound::{new_trace, said};
use crate::pod::ServedPod;
use crate::record::{Outcome, Record};

/// Where a tunnel came from and what it was connected to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// Serves one tunnel from accept to close.
pub async fn serve(pod: Rc<ServedPod>, stream: TcpStream, peer: SocketAddr, _work: Work) {
    let peer = canonical(peer);
    let local = stream.local_addr().map_or(peer, canonical);
    let ends = Ends { peer, local };
    let begun = tokio::select! {
        visit = pod.worker.handshakes.begin(peer.ip()) => match visit {
            Ok(visit) => Box::pin(begin(&pod, stream, visit)).await,
            Err(reason) => Err(reason.into()),
        },
        () = pod.over.wait() => Err(Reason::Drained.into()),
    };
    match begun {
        Ok((incoming, visit)) => exchanges(&pod, incoming, ends, visit).await,
        Err(outcome) => {
            let mut record = Record::new(&pod.worker.telemetry, Direction::Inbound, peer);
            record.destination_address = Some(local);
            record.destination.workload = pod.workload_now();
            record.finish(&outcome);
        }
    }
}

/// TLS and HTTP/2, with a place among the handshakes in flight.
async fn begin(
    pod: &ServedPod,
    stream: TcpStream,
    visit: Visit,
) -> Result<(Incoming<ServerStream>, Visit), Outcome> {
    let svid = pod.svid().await.inspect_err(|_| visit.forgive())?;
    let accepted = ambit_tls::accept(&svid, stream, Limits::default()).await;
    let (stream, peer): (_, Peer) =
        accepted.map_err(|error| dial::refused(pod, Reporter::Destination, &error))?;
    let tunnels = &pod.worker.shared.tunnels;
    let served = server::serve(stream, peer, tunnels, pod.leaving()).await;
    let incoming = served.map_err(|error| dial::tunnel_failed(&error))?;
    visit.shook_hands();
    Ok((incoming, visit))
}

/// Hands out the CONNECTs of one tunnel until it ends.
async fn exchanges(
    pod: &Rc<ServedPod>,
    mut incoming: Incoming<ServerStream>,
    ends: Ends,
    visit: Visit,
) {
    let proof = incoming.peer().lineage().cloned();
    let mut revoked = pin!(pod.worker.revoked(proof));
    loop {
        let next = tokio::select! {
            next = incoming.next() => next,
            () = &mut revoked => {
                pod.worker.shared.metrics.revoked(Reporter::Destination, 1);
                return;
            }
            // Its streams were told to end; without streams there is nothing to wait for.
            () = pod.over.wait() => return visit.forgive(),
        };
        match next {
            None => break,
            Some(Ok(exchange)) => {
                visit.forgive();
                drop(spawn_local(
                    "inbound stream",
                    exchange_served(Rc::clone(pod), exchange, ends),
                ));
            }
            Some(Err(malformed)) => refused(pod, &incoming, ends, malformed),
        }
    }
    if let Some(error) = incoming.ended() {
        if error.is_by_peer() {
            visit.blame();
        }
        tracing::debug!(peer = %ends.peer, %error, "tunnel ended");
    }
}

/// A request that was no CONNECT was answered already; it is recorded here.
fn refused(
    pod: &ServedPod,
    incoming: &Incoming<ServerStream>,
    ends: Ends,
    malformed: ambit_hbone::Malformed,
) {
    let mut record = Record::new(&pod.worker.telemetry, Direction::Inbound, ends.peer);
    record.destination_address = Some(ends.local);
    record.destination.workload = pod.workload_now();
    record.source.identity = Some(incoming.peer().identity().clone());
    let reason = match malformed {
        ambit_hbone::Malformed::Method => Reason::NotConnect,
        ambit_hbone::Malformed::Extended => Reason::BadRequest,
        ambit_hbone::Malformed::Authority => Reason::BadAuthority,
    };
    record.finish(&reason.into());
}

/// What a CONNECT says, or would say where none is needed.
pub(crate) struct Asked {
    pub(crate) authority: Authority,
    pub(crate) peer: Identity,
    pub(crate) proof: Option<Lineage>,
    /// What the peer says of its workload, and which service its client addressed. Telemetry only.
    pub(crate) said: Option<Box<Baggage>>,
    pub(crate) host: Option<Arc<str>>,
    /// The trace it belongs to. Telemetry only.
    pub(crate) trace: Trace,
    /// It came through a gateway from another network: the address it came from is the gateway's.
    pub(crate) elsewhere: bool,
    /// It comes from a pod of this node, and no tunnel carries it.
    pub(crate) neighbour: bool,
}

impl Asked {
    fn of(exchange: &Exchange, network: &str) -> Self {
        let request = exchange.request();
        let forwarded = request.headers.get("forwarded");
        let forwarded = forwarded.and_then(|value| Forwarded::parse(value.as_bytes()).ok());
        Self {
            authority: request.authority.clone(),
            peer: exchange.peer().identity().clone(),
            proof: exchange.peer().lineage().cloned(),
            said: said(&request.headers),
            host: forwarded.and_then(|forwarded| forwarded.host),
            trace: trace(&request.headers),
            elsewhere: from_elsewhere(&request.headers, network),
            neighbour: false,
        }
    }
}

/// The trace that a request says it belongs to, or a new one.
fn trace(headers: &HeaderMap) -> Trace {
    let told = headers.get("traceparent");
    let told = told.and_then(|value| TraceParent::parse(value.as_bytes()).ok());
    let own = new_trace();
    match told {
        None => own,
        Some(parent) => Trace {
            trace_id: parent.trace_id,
            span_id: own.span_id,
            parent_id: Some(parent.parent_id),
        },
    }
}

/// Whether a request comes from another network than ours.
fn from_elsewhere(headers: &HeaderMap, network: &str) -> bool {
    headers
        .get_all(dial::FORWARDED_NETWORK)
        .iter()
        .any(|from| !from.as_bytes().eq_ignore_ascii_case(network.as_bytes()))
}

/// Serves one stream of a tunnel.
pub(crate) fn exchange_served(
    pod: Rc<ServedPod>,
    exchange: Exchange,
    ends: Ends,
) -> impl Future<Output = ()> {
    let work = pod.busy.begin();
    let mut record = Record::new(&pod.worker.telemetry, Direction::Inbound, ends.peer);
    record.destination_address = Some(ends.local);
    carry::serve(work, begun(pod, exchange, ends, Box::new(record)))
}

/// The steps up to the answer, in order.
async fn begun(
    pod: Rc<ServedPod>,
    mut exchange: Exchange,
    ends: Ends,
    mut record: Box<Record>,
) -> Beginning<Begun> {
    let asked = Asked::of(&exchange, &pod.worker.shared.settings.network);
    record.authority = Some(asked.authority.clone());
    record.source.identity = Some(asked.peer.clone());
    record.trace = Some(asked.trace);
    let opened = tokio::select! {
        biased;
        opened = open(&pod, asked, ends, &mut record) => opened,
        () = exchange.cancelled() => Err(Reason::LocalReset.into()),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(outcome) => {
            exchange.refuse(status(outcome.reason));
            return (record, Err(outcome));
        }
    };
    let begun = match exchange.accept(answer(&pod, &opened.local)) {
        Ok(stream) => Ok(Begun {
            stream,
            guard: opened.guard,
            application: opened.application,
        }),
        Err(error) => Err(Outcome::because(Reason::LocalReset, error)),
    };
    (record, begun)
}

/// An answered stream and the application that it leads to.
struct Begun {
    stream: Stream,
    guard: Guard,
    application: TcpStream,
}

impl Carry for Begun {
    fn carry(self, record: &Record) -> Relay<'_> {
        let relayed = relay(self.stream.split(), tcp::split(self.application), record);
        let outcome = |closed: Closed| Outcome::of(&closed, Direction::Inbound);
        Box::pin(unless_ended(self.guard, relayed.map(outcome)))
    }
}

/// An admitted stream with the application at its other end.
pub(crate) struct Opened {
    pub(crate) guard: Guard,
    pub(crate) local: Arc<Workload>,
    pub(crate) application: TcpStream,
}

/// Decides and connects to the application.
pub(crate) async fn open(
    pod: &ServedPod,
    asked: Asked,
    ends: Ends,
    record: &mut Record,
) -> Result<Opened, Outcome> {
    let own = ends.local.ip();
    let local = pod.workload(own).await.ok_or(Reason::UnknownDestination)?;
    let shared = &pod.worker.shared;
    if let Some(demand) = &shared.demand {
        Box::pin(demand.inbound(&shared.store, &local, own, &asked.authority)).await?;
    }
    let mut decided = decide(pod, &local, &asked, ends, record);
    if unresolved(&decided) && Box::pin(pod.policies_known()).await {
        decided = decide(pod, &local, &asked, ends, record);
    }
    record.open();
    let admitted = decided?;
    let decided = match asked.neighbour {
        true => Decided::Neighbour(admitted.clone()),
        false => Decided::Inbound(admitted.clone()),
    };
    let host = asked.host.as_deref().map(Rc::from);
    let guard = pod.register(decided, ends.peer, host);
    if let Some(proof) = &asked.proof {
        guard.rests_on(proof, &pod.worker.shared.revocation.lists);
    }
    let application = tokio::select! {
        biased;
        refusal = guard.ended() => return Err(refusal.into()),
        dialled = connect(pod, &admitted) => dialled?,
    };
    Ok(Opened {
        guard,
        local,
        application,
    })
}

/// Whether only a policy that is not known yet stands against it.
pub(crate) fn unresolved(decided: &Result<Admitted, Outcome>) -> bool {
    matches!(decided, Err(outcome) if outcome.reason == Reason::PolicyUnresolved)
}

/// Asks whether the stream may come in, and learns for the record who its ends are: one view for
/// both.
fn decide(
    pod: &ServedPod,
    local: &Arc<Workload>,
    asked: &Asked,
    ends: Ends,
    record: &mut Record,
) -> Result<Admitted, Outcome> {
    let shared = &pod.worker.shared;
    let inbound = Inbound {
        local: &local.uid,
        connection: ends.local,
        peer_address: ends.peer,
        arrival: Arrival::Tunnel {
            authority: &asked.authority,
            peer: &asked.peer,
        },
    };
    shared.store.read(|view| {
        let decided = admit::admit_told(view, &inbound, |asked| pod.tell(asked));
        let source = view.workload_at(&shared.settings.network, ends.peer.ip());
        // An address that is also somebody else's says nothing about this peer.
        record.source.workload = source
            .filter(|source| !asked.elsewhere && source.identity == asked.peer)
            .cloned();
        if record.source.workload.is_none() && shared.settings.response_baggage {
            record.source.said.clone_from(&asked.said);
        }
        record.destination.workload = Some(Arc::clone(local));
        record.destination.identity = Some(local.identity.clone());
        let port = decided
            .as_ref()
            .map_or(asked.authority.port(), |ok| ok.upstream().port());
        record.service = service(view, local, asked.host.as_deref(), port);
        decided.map_err(Outcome::from)
    })
}

/// The service to be named in telemetry: the one that the client says it addressed, else the first
/// of the workload with that port.
pub(crate) fn service(
    view: &View,
    local: &Workload,
    host: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    if let Some(named) = host.and_then(|host| view.service_named(host, &local.namespace)) {
        return Some(Arc::clone(named));
    }
    let serves =
        |ports: &[ambit_model::service::Port]| ports.iter().any(|there| there.target_port == port);
    local
        .services
        .iter()
        .filter_map(|(key, ports)| view.service(key).map(|service| (service, ports)))
        .find(|(service, ports)| serves(ports) || serves(&service.ports))
        .map(|(service, _)| Arc::clone(service))
}

/// Connects to the application and tells it, where it asked for that, what it cannot see.
async fn connect(pod: &ServedPod, admitted: &Admitted) -> Result<TcpStream, Outcome> {
    let mut stream = dial::application(pod, admitted).await?;
    if let Some(header) = admitted.header() {
        let bytes = header
            .encode()
            .map_err(|error| Outcome::because(Reason::Bug, error))?;
        // A few hundred bytes into an empty socket buffer: this does not wait for the peer.
        stream
            .write_all(&bytes)
            .await
            .map_err(|error| Outcome::because(Reason::DialFailed, error))?;
    }
    Ok(stream)
}

/// The headers of the answer: who serves, for the other end's telemetry.
fn answer(pod: &ServedPod, local: &Arc<Workload>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let wanted = pod.worker.shared.settings.response_baggage;
    if let Some(baggage) = wanted.then(|| pod.baggage(local)).flatten() {
        headers.insert(HeaderName::from_static("baggage"), baggage);
    }
    headers
}

pub(crate) fn status(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::from_elsewhere;

    #[test]
    fn a_request_is_from_elsewhere_when_it_names_another_network() {
        let cases: [(&[&str], bool); 5] = [
            (&[], false),
            (&["here"], false),
            (&["HERE"], false),
            (&["there"], true),
            (&["here", ""], true),
        ];
        for (values, expected) in cases {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-forwarded-network", value.parse().unwrap());
            }
            assert_eq!(from_elsewhere(&headers, "here"), expected, "{values:?}");
        }
    }
}

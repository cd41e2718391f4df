//! A connection from a pod of this node to another one of this node: handed over, not tunnelled.
//!
//! A tunnel between the two would leave this process only to come back to it: its bytes would be encrypted, framed, unframed and
//! decrypted by the same thread or its neighbour. What a tunnel is for is done without it:
//!
//! 1. [`find`]: the chosen workload is a pod that this thread serves, and it takes new connections.
//! 2. [`believed`]: the source has a certificate that the destination would believe, now.
//! 3. There is a tunnel between the two, though no stream is opened in it ([`dial::far_end`]): the network lets the one reach the
//!    other, which only a packet that takes its way can tell (network policies), and the destination proved who it is.
//! 4. [`arrive`]: the destination decides as it does about a stream of that tunnel, and its application is connected.
//! 5. [`Arrived::carry`]: bytes go between the two sockets, raced with whatever forbids it at either end.
//! 6. Each end records its one reason, as with a tunnel. What differs is said: no mutual TLS in the metrics.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use ambit_model::reason::Reason;
use ambit_model::route::Tunnel;
use ambit_observe::access::{Direction, Trace};
use ambit_observe::traffic::Reporter;
use ambit_relay::Meter;
use ambit_relay::tcp::{self, Bulk, TcpSink, TcpSource};
use ambit_tls::{Lineage, Svid};
use tokio::net::TcpStream;

use crate::busy::Work;
use crate::inbound::{self, Asked, Ends};
use crate::live::Guard;
use crate::outbound::new_trace;
use crate::pod::ServedPod;
use crate::record::{Outcome, Record};

#[cfg(doc)]
use crate::dial;

/// The pod that `way` leads to, if it is one that may be handed the connection.
#[must_use]
pub fn find(source: &ServedPod, way: &Tunnel) -> Option<Rc<ServedPod>> {
    let worker = &source.worker;
    let direct = worker.shared.settings.same_node_direct
        && way.beyond.is_none()
        && !way.via_waypoint
        && !way.upstream.native_tunnel;
    if !direct {
        return None;
    }
    // One that stops takes nothing new; the tunnel finds who took over from us.
    worker
        .serves(&way.upstream)
        .filter(|pod| !pod.pod.own && !pod.is_draining())
}

/// The certificate by which a pod is believed, and the path it rests on where that may be revoked.
#[derive(Debug)]
pub struct Believed {
    /// The certificate.
    pub svid: Arc<Svid>,
    /// The path.
    pub proof: Option<Lineage>,
}

/// The certificate of a pod that opens a connection, if another pod would believe it.
///
/// # Errors
/// There is none, or it would be refused in a handshake.
pub async fn believed(pod: &ServedPod) -> Result<Believed, Outcome> {
    let svid = pod.svid().await?;
    let proof = svid
        .believed(SystemTime::now())
        .map_err(|error| Outcome::because(Reason::HandshakeFailed, error))?
        .cloned();
    let shared = &pod.worker.shared;
    let revoked = |proof: &Lineage| shared.revocation.lists.revoke_lineage(proof);
    if proof.as_ref().is_some_and(revoked) {
        shared.metrics.revoked(Reporter::Destination, 1);
        return Err(Reason::Revoked.into());
    }
    Ok(Believed { svid, proof })
}

/// What the source says of the connection.
#[derive(Debug)]
pub struct Call<'a> {
    /// The way that was chosen.
    pub way: &'a Tunnel,
    /// The client.
    pub client: SocketAddr,
    /// The source's place in a trace.
    pub trace: Trace,
}

/// A connection that the destination admitted.
#[derive(Debug)]
pub struct Arrived {
    record: Record,
    guard: Guard,
    application: TcpStream,
    _work: Work,
}

/// The destination's part up to the connected application. `far` is the path that the destination's own certificate rests on.
///
/// # Errors
/// What the source would be told: see [`Reason::RefusedByPeer`]. The destination's record has the reason itself.
pub async fn arrive(
    pod: Rc<ServedPod>,
    call: &Call<'_>,
    source: Believed,
    far: Option<Lineage>,
) -> Result<Box<Arrived>, Outcome> {
    let work = pod.busy.begin();
    let way = call.way;
    let peer = source.svid.identity();
    let mut record = Record::new(&pod.worker.telemetry, Direction::Inbound, call.client);
    record.destination_address = Some(way.next_hop);
    record.authority = Some(way.authority.clone());
    record.source.identity = Some(peer.clone());
    let own = new_trace();
    record.trace = Some(Trace {
        trace_id: call.trace.trace_id,
        span_id: own.span_id,
        parent_id: Some(call.trace.span_id),
    });
    record.neighbours = true;
    record.if_dropped = Reason::LocalReset;
    let host = way.service.as_ref();
    let asked = Asked {
        authority: way.authority.clone(),
        peer: peer.clone(),
        proof: source.proof,
        said: None,
        host: host.map(|service| Arc::from(service.key.hostname.as_str())),
        trace: call.trace,
        elsewhere: false,
        neighbour: true,
    };
    let ends = Ends {
        peer: call.client,
        local: way.next_hop,
    };
    let opened = match inbound::open(&pod, asked, ends, &mut record).await {
        Ok(opened) => opened,
        Err(outcome) => {
            record.finish(&outcome);
            let status = inbound::status(outcome.reason).as_u16();
            return Err(Reason::RefusedByPeer(status).into());
        }
    };
    if let Some(proof) = &far {
        let lists = &pod.worker.shared.revocation.lists;
        opened.guard.rests_on(proof, lists);
    }
    record.if_dropped = Reason::PeerReset;
    Ok(Box::new(Arrived {
        record,
        guard: opened.guard,
        application: opened.application,
        _work: work,
    }))
}

impl Arrived {
    /// Relays until it ends by itself or the destination may not go on. Records the destination's end; answers how the source's
    /// ended. Dropped before, it ends because of the source.
    pub async fn carry(
        self: Box<Self>,
        client: (TcpSource, TcpSink),
        bulk: Bulk,
        source: &Record,
    ) -> Outcome {
        let Self {
            record,
            guard,
            application,
            _work,
        } = *self;
        let both = Both(source, &record);
        let (here, there) = tokio::select! {
            biased;
            refusal = guard.ended() => (Reason::PeerReset.into(), refusal.into()),
            closed = tcp::relay(client, tcp::split(application), bulk, &both) => (
                Outcome::of(&closed, Direction::Outbound),
                Outcome::of(&closed, Direction::Inbound),
            ),
        };
        record.finish(&there);
        here
    }
}

/// Counts at both ends.
struct Both<'a>(&'a Record, &'a Record);

impl Meter for Both<'_> {
    fn sent(&self, bytes: u64) {
        self.0.sent(bytes);
        self.1.sent(bytes);
    }

    fn received(&self, bytes: u64) {
        self.0.received(bytes);
        self.1.received(bytes);
    }
}

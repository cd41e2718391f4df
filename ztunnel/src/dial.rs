//! Opens each kind of way onward, from inside the pod's network namespace.
//!
//! Every socket is made in the pod's namespace, so that network policies and the pod's routes apply
//! to it, and carries the packet mark by which the redirection rules know it is ours. Every step
//! has its timeout; every failure is one [`Outcome`].
//!
//! # Into another network
//! The stream to a network's gateway carries a second mutual TLS and a second tunnel, whose end is
//! behind the gateway; the gateway sees neither. The outer tunnel is pooled like any other. The
//! inner one is made for each connection and never shared: the gateway chooses a workload once for
//! each stream it is asked for, so a second connection on the same inner tunnel would always reach
//! the workload of the first, ready or not, and what comes back does not say which that was.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_hbone::client::{self, Opened, Place};
use ambit_hbone::pool::{CheckoutError, Key};
use ambit_hbone::{OpenError, Request, Stream, StreamIo, TunnelError};
use ambit_model::admit::Admitted;
use ambit_model::identity::Identity;
use ambit_model::reason::Reason;
use ambit_model::route::{Beyond, Tunnel};
use ambit_model::workload::Workload;
use ambit_net::dial::Dial;
use ambit_observe::traffic::Reporter;
use ambit_runtime::tasks::spawn_local;
use ambit_tls::{Limits, Lineage, Rejected, Svid, TlsError};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use tokio::net::TcpStream;

use crate::config::{HBONE_PORT, OriginalSource};
use crate::pod::{ServedPod, keepalive, mark};
use crate::record::Outcome;

/// How long a TCP connection may take: three lost SYNs of a second, two and four, as in Istio.
const CONNECT: Duration = Duration::from_secs(10);

/// The header that says which network a request comes from (Istio's contract): on the request inside
/// a gateway's tunnel, and on no other.
pub const FORWARDED_NETWORK: &str = "x-forwarded-network";

/// A stream to the far end and who proved to be there.
#[derive(Debug)]
pub struct Through {
    /// The stream and the peer's answer.
    pub opened: Opened,
    /// Who is at the tunnel's end.
    pub peer: Identity,
    /// By which paths the peers on the way proved who they are, where those may be revoked.
    pub proofs: Vec<Lineage>,
}

/// Opens plain TCP to `to`, with the pod's own address, within `limit` if that is less than it may
/// take anyway.
///
/// # Errors
/// Why not.
pub async fn plain(
    pod: &ServedPod,
    to: SocketAddr,
    limit: Option<Duration>,
) -> Result<TcpStream, Outcome> {
    let dial = Dial {
        timeout: limit.map_or(CONNECT, |limit| limit.min(CONNECT)),
        ..from_pod(pod, to)
    };
    dial.connect()
        .await
        .map_err(|error| dial_failed(&error, to))
}

/// Opens a stream through a tunnel, on one that is there or a new one. Waits no longer than `limit`
/// for the tunnel; a dial goes on for a while without its waiters. What `early` answers then goes with
/// the request, where the far end is a workload's own proxy.
///
/// # Errors
/// Why not.
pub async fn tunnel(
    pod: &Rc<ServedPod>,
    source: &Workload,
    way: &Tunnel,
    headers: HeaderMap,
    limit: Option<Duration>,
    early: impl FnOnce() -> Result<Bytes, Outcome>,
) -> Result<Through, Outcome> {
    let svid = pod.svid().await?;
    let place = place(pod, &svid, source, way, limit).await?;
    let FarEnd { peer, proof } = FarEnd::of(&place);
    let request = Request {
        authority: way.authority.clone(),
        headers,
    };
    let Some(beyond) = &way.beyond else {
        let early = match way.via_waypoint {
            true => Bytes::new(),
            false => early()?,
        };
        let opened = place
            .open_early(request, early)
            .await
            .map_err(open_failed)?;
        return Ok(Through {
            opened,
            peer,
            proofs: proof.into_iter().collect(),
        });
    };
    let inner = inner_request(&request, &pod.worker.shared.settings.network);
    let outer = place.open(request).await.map_err(open_failed)?;
    // Boxed: two handshakes' state, for few connections.
    let mut through = Box::pin(inner_tunnel(pod, &svid, outer.stream, beyond, inner)).await?;
    through.proofs.extend(proof);
    Ok(through)
}

/// Who proved to be at the far end of a tunnel.
#[derive(Debug)]
pub struct FarEnd {
    /// Its identity.
    pub peer: Identity,
    /// By which path, where that may be revoked.
    pub proof: Option<Lineage>,
}

impl FarEnd {
    fn of(place: &Place) -> Self {
        let peer = place.tunnel().peer();
        Self {
            peer: peer.identity().clone(),
            proof: peer.lineage().cloned(),
        }
    }
}

/// Makes sure that there is a tunnel, and opens no stream in it: the network lets the two ends talk,
/// and the far one is who it should be.
///
/// # Errors
/// Why there is none.
pub async fn far_end(
    pod: &Rc<ServedPod>,
    svid: &Arc<Svid>,
    source: &Workload,
    way: &Tunnel,
    limit: Option<Duration>,
) -> Result<FarEnd, Outcome> {
    let place = place(pod, svid, source, way, limit).await?;
    Ok(FarEnd::of(&place))
}

/// A place for one stream in a tunnel, on one that is there or a new one.
async fn place(
    pod: &Rc<ServedPod>,
    svid: &Arc<Svid>,
    source: &Workload,
    way: &Tunnel,
    limit: Option<Duration>,
) -> Result<Place, Outcome> {
    let key = Key {
        source: source.uid.clone(),
        identity: svid.identity().clone(),
        generation: svid.generation(),
        destination: way.upstream.uid.clone(),
        next_hop: way.next_hop,
        expected: way.expected.clone(),
    };
    let dial = || {
        let (pod, expected) = (Rc::clone(pod), way.expected.clone());
        new_tunnel(pod, Arc::clone(svid), way.next_hop, expected)
    };
    let checkout = pod.worker.pool.checkout(&key, dial);
    let place = match limit {
        None => checkout.await,
        Some(limit) => tokio::time::timeout(limit, checkout)
            .await
            .map_err(|_elapsed| timed_out(way.next_hop))?,
    }
    .map_err(checkout_failed)?;
    let shared = &pod.worker.shared;
    if shared.revocation.lists.revoke(place.tunnel().peer()) {
        // Lists came while it was being made.
        place.tunnel().abort("peer's certificate was revoked");
        shared.metrics.revoked(Reporter::Source, 1);
        return Err(Reason::Revoked.into());
    }
    Ok(place)
}

/// The request inside a gateway's tunnel: the same, and which network it comes from.
fn inner_request(outer: &Request, network: &str) -> Request {
    let mut inner = outer.clone();
    // A name that no header can hold is no network's; the far end then takes us for one of its own.
    if let Ok(network) = HeaderValue::from_str(network) {
        let name = HeaderName::from_static(FORWARDED_NETWORK);
        inner.headers.insert(name, network);
    }
    inner
}

/// Makes the tunnel inside a gateway's stream, and its one stream.
async fn inner_tunnel(
    pod: &ServedPod,
    svid: &Svid,
    outer: Stream,
    beyond: &Beyond,
    request: Request,
) -> Result<Through, Outcome> {
    let outer = StreamIo::from(outer);
    let (stream, peer) = ambit_tls::connect(svid, outer, &beyond.expected, Limits::default())
        .await
        .map_err(|error| refused(pod, Reporter::Source, &error))?;
    let identity = peer.identity().clone();
    let proofs = peer.lineage().cloned().into_iter().collect();
    let (tunnel, driver) = client::handshake(stream, peer, &pod.worker.shared.tunnels)
        .await
        .map_err(|error| tunnel_failed(&error))?;
    drop(spawn_local("inner tunnel", async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "inner tunnel ended");
        }
    }));
    // It ends with its stream: this was the only handle.
    let opened = tunnel.open(request).await.map_err(open_failed)?;
    Ok(Through {
        opened,
        peer: identity,
        proofs,
    })
}

/// Makes one tunnel: TCP, TLS as the pod, HTTP/2.
async fn new_tunnel(
    pod: Rc<ServedPod>,
    svid: Arc<Svid>,
    next_hop: SocketAddr,
    expected: SmallVec<[Identity; 2]>,
) -> Result<client::Tunnel, Outcome> {
    let stream = from_pod(&pod, next_hop)
        .connect()
        .await
        .map_err(|error| dial_failed(&error, next_hop))?;
    let (stream, peer) = ambit_tls::connect(&svid, stream, &expected, Limits::default())
        .await
        .map_err(|error| refused(&pod, Reporter::Source, &error))?;
    let (tunnel, driver) = client::handshake(stream, peer, &pod.worker.shared.tunnels)
        .await
        .map_err(|error| tunnel_failed(&error))?;
    drop(spawn_local("tunnel", async move {
        if let Err(error) = driver.await {
            tracing::debug!(%next_hop, %error, "tunnel ended");
        }
    }));
    Ok(tunnel)
}

/// Connects to the application that a connection was admitted to, speaking from the client's
/// address.
///
/// # Errors
/// Why not.
pub async fn application(pod: &ServedPod, admitted: &Admitted) -> Result<TcpStream, Outcome> {
    let settings = &pod.worker.shared.settings;
    let to = admitted.upstream();
    if admitted.header().is_some() && settings.localhost_app_tunnel {
        let loopback = if to.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        let to = SocketAddr::new(loopback, to.port());
        return plain(pod, to, None).await;
    }
    let client = admitted.peer_address().ip();
    // A pod that calls itself would get its answers from itself, not from us.
    let spoof = !pod.pod.own
        && settings.original_source != OriginalSource::Off
        && client != to.ip()
        && client.is_ipv4() == to.is_ipv4()
        && !pod.worker.unkept.lately(client, to);
    let dial = from_pod(pod, to);
    if !spoof {
        return dial
            .connect()
            .await
            .map_err(|error| dial_failed(&error, to));
    }
    match (Dial {
        source: Some(client),
        ..dial
    })
    .connect()
    .await
    {
        Ok(stream) => Ok(stream),
        // Without a descriptor there is no connection either way.
        Err(ambit_net::Error::System { call, source })
            if settings.original_source == OriginalSource::Auto && call != "socket" =>
        {
            tracing::warn!(%client, %to, call, %source, "the client's address cannot be kept");
            pod.worker.unkept.note(client, to);
            plain(pod, to, None).await
        }
        Err(error) => Err(dial_failed(&error, to)),
    }
}

fn from_pod(pod: &ServedPod, to: SocketAddr) -> Dial<'_> {
    let settings = &pod.worker.shared.settings;
    Dial {
        mark: mark(settings),
        netns: Some(&pod.pod.netns),
        keepalive: keepalive(settings),
        ..Dial::new(to, CONNECT)
    }
}

fn dial_failed(error: &ambit_net::Error, to: SocketAddr) -> Outcome {
    match error {
        ambit_net::Error::Timeout(_) => timed_out(to),
        other => match other.io() {
            Some(io) => Outcome::because(Reason::DialFailed, io),
            None => Outcome::because(Reason::DialFailed, other),
        },
    }
}

fn timed_out(to: SocketAddr) -> Outcome {
    if to.port() == HBONE_PORT {
        Reason::TunnelPortTimeout.into()
    } else {
        Reason::DialTimeout.into()
    }
}

/// The outcome of a failed TLS handshake, on the side that `reporter` says; a revoked peer is counted.
#[must_use]
pub fn refused(pod: &ServedPod, reporter: Reporter, error: &TlsError) -> Outcome {
    let outcome = tls_failed(error);
    if outcome.reason == Reason::Revoked {
        pod.worker.shared.metrics.revoked(reporter, 1);
    }
    outcome
}

fn tls_failed(error: &TlsError) -> Outcome {
    let reason = match error {
        TlsError::Peer(Rejected::Identity { .. }) => Reason::PeerIdentityMismatch,
        TlsError::Peer(Rejected::Revoked) => Reason::Revoked,
        TlsError::Timeout(_) => Reason::HandshakeTimeout,
        TlsError::Bug(_) => Reason::Bug,
        _ => Reason::HandshakeFailed,
    };
    Outcome::because(reason, Chain(error))
}

/// The outcome of an HTTP/2 connection that did not come about.
#[must_use]
pub fn tunnel_failed(error: &TunnelError) -> Outcome {
    Outcome::because(Reason::TunnelFailed, Chain(error))
}

fn checkout_failed(error: CheckoutError<Outcome>) -> Outcome {
    match error {
        CheckoutError::Dial(outcome) => outcome,
        CheckoutError::Overloaded => Reason::Overloaded.into(),
        CheckoutError::Closed => Reason::TunnelClosed.into(),
    }
}

fn open_failed(error: OpenError) -> Outcome {
    match error {
        OpenError::Refused { status, .. } => Reason::RefusedByPeer(status.as_u16()).into(),
        OpenError::Timeout(_) => Reason::TunnelTimeout.into(),
        OpenError::NotAccepted => Reason::TunnelRefused.into(),
        OpenError::Invalid(what) => Outcome::because(Reason::Bug, what),
        other => Outcome::because(Reason::TunnelClosed, Chain(&other)),
    }
}

/// An error with its sources, on one line.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ambit_hbone::Request;
    use http::HeaderMap;

    use super::{FORWARDED_NETWORK, inner_request};

    #[test]
    fn only_the_inner_request_says_where_it_comes_from() {
        let mut headers = HeaderMap::new();
        headers.insert("baggage", "k8s.namespace.name=shop".parse().unwrap());
        let outer = Request {
            authority: "cart.shop.svc.cluster.local:80".parse().unwrap(),
            headers,
        };
        let inner = inner_request(&outer, "here");
        assert_eq!(inner.authority, outer.authority);
        assert_eq!(inner.headers.get("baggage"), outer.headers.get("baggage"));
        assert_eq!(inner.headers.get(FORWARDED_NETWORK).unwrap(), "here");
        assert_eq!(outer.headers.get(FORWARDED_NETWORK), None);
        // A network without a name is said too: that there was a gateway is what counts.
        let unnamed = inner_request(&outer, "");
        assert_eq!(unnamed.headers.get(FORWARDED_NETWORK).unwrap(), "");
    }
}

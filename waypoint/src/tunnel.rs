//! HBONE in: from an accepted connection to streams with a verified peer and a chain to serve them.
//!
//! For the connection: 1. a listener exists only in force while the plan has one; 2. TLS handshake as
//! ourselves, which gives a `Peer` (proof); 3. its trust domain; 4. HTTP/2; each CONNECT is a task of
//! its own.
//!
//! For each CONNECT: 1. its destination is looked up in the plan: what is not ours is refused; 2. the
//! rules on CONNECT itself; 3. the answer 200; 4. [`crate::serve::stream`].

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use ambit_hbone::Settings as TunnelSettings;
use ambit_hbone::server::{self, Exchange, Incoming};
use ambit_net::original_dst::canonical;
use ambit_runtime::accept::accept_loop;
use ambit_runtime::drain::Draining;
use ambit_runtime::tasks::spawn_local;
use ambit_tls::{Limits, ServerStream};
use ambit_wire::authority::Authority;
use http::{HeaderMap, StatusCode};
use tokio::net::{TcpListener, TcpStream};

use crate::plan::{Plan, Target, TunnelIn};
use crate::rules::Verdict;
use crate::serve::{self, Connection, Shared};
use crate::subject::Subject;

/// Handshakes in flight on one thread. Each costs tens of KiB and some milliseconds of CPU; with more
/// of them all would time out.
const HANDSHAKES: u32 = 512;

/// Why a tunnel or a stream of one was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// No `connect_terminate` listener was accepted yet.
    #[error("not configured yet")]
    NotConfigured,
    /// Too many handshakes at once.
    #[error("too many handshakes")]
    Overloaded,
    /// We have no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// The peer is not who may connect.
    #[error("{0}")]
    Tls(#[from] ambit_tls::TlsError),
    /// Of another trust domain than the listener admits.
    #[error("trust domain {0:?} may not connect")]
    TrustDomain(String),
    /// The peer does not speak HTTP/2.
    #[error("{0}")]
    Tunnel(#[from] ambit_hbone::TunnelError),
}

/// Accepts tunnels until the drain is requested. Ends early only if the listener breaks.
pub async fn accept(shared: Rc<Shared>, listener: TcpListener, draining: Draining) {
    let handshakes = Rc::new(Cell::new(0));
    let ending = draining.clone();
    let served = accept_loop(listener, &ending, |stream, peer| {
        let tunnel = Tunnel {
            shared: Rc::clone(&shared),
            handshakes: Rc::clone(&handshakes),
            source: canonical(peer),
            draining: draining.clone(),
        };
        drop(spawn_local("tunnel", async move {
            Box::pin(tunnel.serve(stream)).await
        }));
    });
    if let Err(error) = served.await {
        tracing::error!(%error, "no more tunnels are accepted");
    }
}

/// One connection.
struct Tunnel {
    shared: Rc<Shared>,
    handshakes: Rc<Cell<u32>>,
    source: SocketAddr,
    draining: Draining,
}

impl Tunnel {
    async fn serve(self, stream: TcpStream) {
        let incoming = match Box::pin(self.begin(stream)).await {
            Ok(incoming) => incoming,
            Err(refused) => {
                tracing::info!(peer = %self.source, %refused, "tunnel refused");
                return;
            }
        };
        tokio::select! {
            () = self.streams(incoming) => {}
            // Its streams were told to end; their time is over.
            () = self.draining.stopped() => {}
        }
    }

    async fn begin(&self, stream: TcpStream) -> Result<Incoming<ServerStream>, Refused> {
        let tunnel = self
            .shared
            .plan
            .load()
            .tunnel
            .clone()
            .ok_or(Refused::NotConfigured)?;
        let _place = Place::take(&self.handshakes).ok_or(Refused::Overloaded)?;
        // Latency of small answers matters more than a packet saved.
        let _ = stream.set_nodelay(true);
        let svid = self
            .shared
            .certificate
            .current()
            .ok_or(Refused::NoCertificate)?;
        let (stream, peer) = ambit_tls::accept(&svid, stream, Limits::default()).await?;
        let domain = peer.identity().trust_domain();
        if !admits(&tunnel, domain) {
            return Err(Refused::TrustDomain(domain.to_owned()));
        }
        let draining = self.draining.clone();
        let wait = async move { draining.requested().await };
        Ok(server::serve(stream, peer, &settings(&tunnel), wait).await?)
    }

    async fn streams(&self, mut incoming: Incoming<ServerStream>) {
        while let Some(next) = incoming.next().await {
            match next {
                Ok(exchange) => self.exchange(exchange),
                // Answered with 400 already.
                Err(malformed) => {
                    tracing::info!(peer = %self.source, %malformed, "stream refused");
                }
            }
        }
        if let Some(error) = incoming.ended() {
            tracing::debug!(peer = %self.source, %error, "tunnel ended");
        }
    }

    fn exchange(&self, exchange: Exchange) {
        let plan = self.shared.plan.load_full();
        let (status, why) = match target(&plan, &exchange.request().authority) {
            Ok((target, destination)) => {
                let target = target.clone();
                match self.admit(&plan, &exchange, destination) {
                    Ok(connection) => return self.stream(exchange, connection, target),
                    Err(denied) => denied,
                }
            }
            Err(refused) => refused,
        };
        tracing::info!(
            peer = %self.source,
            identity = %exchange.peer().identity(),
            authority = %exchange.request().authority,
            status = status.as_u16(),
            why,
            "stream refused"
        );
        exchange.refuse(status);
    }

    fn admit(
        &self,
        plan: &Plan,
        exchange: &Exchange,
        destination: SocketAddr,
    ) -> Result<Connection, (StatusCode, &'static str)> {
        let local = self.shared.certificate.identity().clone();
        let peer = exchange.peer().identity().clone();
        let connection = Connection::new(&self.shared, peer, local, self.source, destination);
        let empty = HeaderMap::new();
        let subject = Subject::of_connection(connection.facts(), &empty);
        let rules = plan.tunnel.iter().flat_map(|tunnel| &tunnel.rules);
        for rules in rules {
            if let Verdict::Denied(_) = rules.check(&subject) {
                return Err((StatusCode::FORBIDDEN, "denied by policy"));
            }
        }
        Ok(connection)
    }

    fn stream(&self, exchange: Exchange, connection: Connection, target: Target) {
        // It fails only if the peer has given the stream up meanwhile.
        let Ok(stream) = exchange.accept(HeaderMap::new()) else {
            return;
        };
        let (shared, draining) = (Rc::clone(&self.shared), self.draining.clone());
        let connection = Rc::new(connection);
        drop(spawn_local("stream", async move {
            Box::pin(serve::stream(shared, stream, connection, target, draining)).await;
        }));
    }
}

/// The chain for a CONNECT, and the address that counts as its destination.
fn target<'p>(
    plan: &'p Plan,
    authority: &Authority,
) -> Result<(&'p Target, SocketAddr), (StatusCode, &'static str)> {
    let found = match authority.socket() {
        Some(to) => plan.target(to).map(|target| (target, to)),
        // Names are for other networks; their address is not known here, their port is.
        None => named(plan, authority),
    };
    match found {
        None => Err((StatusCode::NOT_FOUND, "destination is not served here")),
        Some((Target::Refused(_), _)) => Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "its configuration was refused",
        )),
        Some(found) => Ok(found),
    }
}

fn named<'p>(plan: &'p Plan, authority: &Authority) -> Option<(&'p Target, SocketAddr)> {
    let text = authority.to_string();
    let (host, _) = text.rsplit_once(':')?;
    let port = authority.port();
    let target = plan.target_named(host, port)?;
    Some((target, SocketAddr::from(([0, 0, 0, 0], port))))
}

/// Whether workloads of a trust domain may connect. Without a list, TLS has admitted our own only.
fn admits(tunnel: &TunnelIn, domain: &str) -> bool {
    tunnel.trust_domains.is_empty() || tunnel.trust_domains.iter().any(|one| &**one == domain)
}

fn settings(tunnel: &TunnelIn) -> TunnelSettings {
    let mut settings = TunnelSettings {
        max_streams: tunnel.max_streams,
        ..TunnelSettings::default()
    };
    if let Some((interval, _)) = tunnel.keepalive {
        settings.ping_interval = interval;
    }
    settings
}

/// One handshake in flight.
struct Place(Rc<Cell<u32>>);

impl Place {
    fn take(count: &Rc<Cell<u32>>) -> Option<Self> {
        let running = count.get();
        if running >= HANDSHAKES {
            return None;
        }
        count.set(running + 1);
        Some(Self(Rc::clone(count)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;

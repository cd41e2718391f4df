//! A service port served as bytes: rules, cluster, endpoint, relay.
//!
//! 1. Rules, before any byte in either direction.
//! 2. Cluster by weight, endpoint by load; another one if it cannot be reached.
//! 3. Relay, with half-close, bounded by the chain's idle time.
//! 4. Metrics, and one access-log line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_hbone::Stream;
use ambit_observe::access::Line;
use ambit_relay::{How, Meter, Side, relay};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};

use crate::endpoints::{Endpoint, InFlight, Transport};
use crate::plan::{Cluster, Plan, TCP_IDLE_TIMEOUT, TcpChain, Upstream};
use crate::record::{Flag, shown};
use crate::rules::Verdict;
use crate::serve::{Connection, Shared};
use crate::sniff::Replay;
use crate::subject::Subject;
use crate::upstream::{ConnectError, Opened, UpstreamIo};

/// Endpoints tried before a connection is given up, as Envoy's default for TCP is one; nothing was
/// sent yet, so another endpoint is as good.
const TRIES: u32 = 3;

/// How one connection ended.
#[derive(Debug, Default)]
struct Ended {
    sent: u64,
    received: u64,
    flag: Option<Flag>,
    details: Option<String>,
}

/// Serves a stream of which nothing was read.
pub async fn serve(shared: &Shared, stream: Stream, connection: &Connection, chain: &TcpChain) {
    run(shared, connection, chain, async |opened| {
        let (source, sink) = stream.split();
        let idle = Activity::new(chain);
        let relayed = async {
            match opened {
                Opened::Hbone(upstream) => relay((source, sink), upstream.split(), &idle).await,
                Opened::Tcp(upstream) => {
                    relay((source, sink), ambit_relay::tcp::split(upstream), &idle).await
                }
            }
        };
        tokio::select! {
            closed = relayed => Ended {
                sent: closed.sent,
                received: closed.received,
                flag: match closed.how {
                    How::Clean => None,
                    How::ResetBy(Side::Client) | How::Failed(Side::Client, _) => Some(Flag::DownstreamTermination),
                    How::ResetBy(Side::Server) | How::Failed(Side::Server, _) => Some(Flag::UpstreamTermination),
                },
                details: None,
            },
            () = idle.expired() => Ended {
                sent: idle.sent.get(),
                received: idle.received.get(),
                flag: None,
                details: Some("idle_timeout".to_owned()),
            },
        }
    })
    .await;
}

/// Serves a stream whose first bytes were looked at.
pub async fn serve_seen<T>(
    shared: &Shared,
    mut io: Replay<T>,
    connection: &Connection,
    chain: &TcpChain,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    run(shared, connection, chain, async |opened| {
        let mut upstream = UpstreamIo::from(opened);
        match copy_bidirectional(&mut io, &mut upstream).await {
            Ok((sent, received)) => Ended {
                sent,
                received,
                ..Ended::default()
            },
            Err(error) => Ended {
                flag: Some(Flag::UpstreamTermination),
                details: Some(error.to_string()),
                ..Ended::default()
            },
        }
    })
    .await;
}

/// Steps 1 to 4; `relayed` is step 3.
async fn run(
    shared: &Shared,
    connection: &Connection,
    chain: &TcpChain,
    relayed: impl AsyncFnOnce(Opened) -> Ended,
) {
    let began = Instant::now();
    let plan = shared.plan.load_full();
    let denied = denied(connection, chain);
    let cluster = plan
        .cluster(chain.clusters.choose(fastrand::u64(..)))
        .cloned();
    let mut endpoint = None;
    let mut count = None;
    let ended = if let Some(policy) = denied {
        Ended {
            details: Some(format!("rbac_access_denied_matched_policy[{policy}]")),
            ..Ended::default()
        }
    } else {
        match connect(shared, connection, &plan, cluster.as_deref()).await {
            Ok((opened, chosen)) => {
                endpoint = Some(chosen);
                let handle = counted(
                    shared,
                    connection,
                    chain,
                    cluster.as_deref(),
                    endpoint.as_ref(),
                    &[],
                );
                if let Some(handle) = &handle {
                    handle.opened.inc();
                }
                count = handle;
                relayed(opened).await
            }
            Err((flag, text)) => Ended {
                flag: Some(flag),
                details: Some(text),
                ..Ended::default()
            },
        }
    };
    let flags: Vec<Flag> = ended.flag.into_iter().collect();
    if let Some(handle) = count {
        handle.sent.add(ended.received);
        handle.received.add(ended.sent);
        handle.closed.inc();
    } else if let Some(handle) =
        counted(shared, connection, chain, cluster.as_deref(), None, &flags)
    {
        handle.opened.inc();
        handle.closed.inc();
    }
    log(
        shared,
        connection,
        chain,
        cluster.as_deref(),
        endpoint.as_ref(),
        &ended,
        began.elapsed(),
    );
}

/// Step 1: the policy that says no.
fn denied(connection: &Connection, chain: &TcpChain) -> Option<String> {
    let headers = HeaderMap::new();
    let subject = Subject::of_connection(connection.facts(), &headers);
    chain
        .rules
        .iter()
        .find_map(|rules| match rules.check(&subject) {
            Verdict::Allowed(_) => None,
            Verdict::Denied(policy) => {
                Some(policy.map_or_else(|| "none".to_owned(), ToString::to_string))
            }
        })
}

/// Step 2.
async fn connect(
    shared: &Shared,
    connection: &Connection,
    _plan: &Plan,
    cluster: Option<&Cluster>,
) -> Result<(Opened, InFlight), (Flag, String)> {
    let cluster = cluster.ok_or_else(|| (Flag::NoCluster, "cluster_not_found".to_owned()))?;
    let mut avoid = smallvec::SmallVec::<[std::net::SocketAddr; 4]>::new();
    let mut last = None;
    for _ in 0..TRIES {
        let chosen = match &cluster.upstream {
            Upstream::Endpoints(endpoints) => endpoints
                .choose(cluster.balance, &avoid, TRIES, &mut || fastrand::u64(..))
                .cloned(),
            Upstream::OriginalDestination => {
                let to = connection.destination();
                let next_hop = std::net::SocketAddr::new(to.ip(), 15008);
                Some(Arc::new(Endpoint::new(to, Transport::Hbone(next_hop))))
            }
        };
        let Some(endpoint) = chosen else {
            return Err((Flag::NoHealthyUpstream, "no_healthy_upstream".to_owned()));
        };
        if avoid.contains(&endpoint.address) {
            break;
        }
        let flight = InFlight::begin(&endpoint);
        match shared
            .upstreams
            .connect(shared, &endpoint, cluster.connect_timeout, HeaderMap::new())
            .await
        {
            Ok(opened) => return Ok((opened, flight)),
            Err(error) => last = Some(error),
        }
        avoid.push(endpoint.address);
    }
    let text = last
        .as_ref()
        .map_or_else(String::new, ConnectError::to_string);
    Err((Flag::UpstreamFailure, text))
}

fn counted(
    shared: &Shared,
    connection: &Connection,
    chain: &TcpChain,
    cluster: Option<&Cluster>,
    endpoint: Option<&InFlight>,
    flags: &[Flag],
) -> Option<ambit_observe::metrics::Handle<ambit_observe::traffic::Tcp>> {
    chain.reporter.as_ref()?;
    let service = cluster.and_then(|cluster| cluster.service.as_deref());
    let endpoint = endpoint.map(InFlight::endpoint);
    Some(shared.metrics.tcp(connection, service, endpoint, flags))
}

fn log(
    shared: &Shared,
    connection: &Connection,
    chain: &TcpChain,
    cluster: Option<&Cluster>,
    endpoint: Option<&InFlight>,
    ended: &Ended,
    took: Duration,
) {
    let flags: Vec<Flag> = ended.flag.into_iter().collect();
    let short: Vec<&str> = flags.iter().map(|flag| flag.short()).collect();
    if !chain
        .logs
        .iter()
        .any(|log| log.only.admits(0, took, &short))
    {
        return;
    }
    let mut line = Line::object();
    line.text(
        "start_time",
        &ambit_observe::access::timestamp(std::time::SystemTime::now()),
    );
    line.text("protocol", "TCP");
    line.bare("response_code", 0);
    line.text("response_flags", &shown(&flags));
    line.text_or_null("connection_termination_details", ended.details.as_deref());
    line.bare("bytes_received", ended.sent);
    line.bare("bytes_sent", ended.received);
    line.bare("duration", took.as_millis());
    match endpoint {
        Some(endpoint) => line.display("upstream_host", endpoint.endpoint().address),
        None => line.text_or_null("upstream_host", None),
    }
    line.text_or_null("upstream_cluster", cluster.map(|cluster| &*cluster.name));
    line.display("downstream_local_address", connection.destination());
    line.display("downstream_remote_address", connection.source());
    line.text_or_null("downstream_peer_uri_san", connection.peer());
    shared.log.write_line(line.finish());
}

/// Counts bytes and notices when there are none for too long.
#[derive(Debug)]
struct Activity {
    limit: Duration,
    sent: std::cell::Cell<u64>,
    received: std::cell::Cell<u64>,
}

impl Activity {
    fn new(chain: &TcpChain) -> Self {
        Self {
            limit: chain.idle_timeout.unwrap_or(TCP_IDLE_TIMEOUT),
            sent: std::cell::Cell::default(),
            received: std::cell::Cell::default(),
        }
    }

    /// Ready after an interval without a byte; looks once an interval, so it may take two.
    async fn expired(&self) {
        if self.limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let before = (self.sent.get(), self.received.get());
            tokio::time::sleep(self.limit).await;
            if before == (self.sent.get(), self.received.get()) {
                return;
            }
        }
    }
}

impl Meter for Activity {
    fn sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
    }

    fn received(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
    }
}

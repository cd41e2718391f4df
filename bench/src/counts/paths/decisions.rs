//! What is decided about a connection, at both of its ends.

use std::hint::black_box;
use std::net::SocketAddr;

use ambit_model::admit::{Arrival, Inbound, admit};
use ambit_model::authorize::{Attributes, authorize};
use ambit_model::route::{Outbound, Route, outbound};
use ambit_model::view::LocalPod;
use anyhow::{Context, Result, bail, ensure};

use super::mesh::{PORT, mesh, namespace, pick, random, service};

/// A port that callers come from.
const FROM: u16 = 41_234;

/// A pod, as its node's agent names it.
struct Caller {
    namespace: String,
    name: String,
    account: String,
    node: String,
    /// What it calls.
    to: SocketAddr,
}

/// Connections from pods to services: the caller's record, the route, and the admission at the other end.
pub(crate) fn connections(size: usize, policies: bool, times: usize) -> Result<()> {
    let view = mesh(size, policies)?;
    let mut callers = Vec::new();
    for turn in 0..size {
        let number = pick(turn, size);
        let name = format!("pod-{number}");
        let uid = format!("Kubernetes//Pod/{}/{name}", namespace(number));
        let record = view.workload(&uid).context("a workload of the mesh")?;
        let (_, address) = service((number + size / 2) % size)?;
        callers.push(Caller {
            namespace: namespace(number),
            name,
            account: record.identity.service_account().to_owned(),
            node: record.node.as_str().to_owned(),
            to: SocketAddr::new(address, PORT.service_port),
        });
    }
    let mut random = random();
    for caller in callers.iter().cycle().take(times) {
        let pod = LocalPod {
            namespace: &caller.namespace,
            name: &caller.name,
            service_account: &caller.account,
            node: &caller.node,
        };
        let source = view.local(&pod).context("the caller's record")?;
        let connection = Outbound {
            source,
            destination: caller.to,
            network: "",
            avoid: &[],
        };
        let Ok(Route::Tunnel(way)) = outbound(&view, &connection, &mut random) else {
            bail!("no way to {}", caller.to);
        };
        let own = source.addresses.first().context("the caller's address")?;
        let arrived = Inbound {
            local: &way.upstream.uid,
            connection: way.next_hop,
            peer_address: SocketAddr::new(*own, FROM),
            arrival: Arrival::Tunnel {
                authority: &way.authority,
                peer: &source.identity,
            },
        };
        let admitted = admit(&view, &arrived)?;
        ensure!(admitted.decided_by().is_some() == policies, "by a policy");
        black_box((&way, &admitted));
    }
    Ok(())
}

/// The policies of one workload after the other, asked about a caller that the last of them allows.
pub(crate) fn policies(times: usize) -> Result<()> {
    const SIZE: usize = 100;
    let view = mesh(SIZE, true)?;
    let mut pods: Vec<_> = view.workloads().collect();
    pods.sort_by(|a, b| a.uid.cmp(&b.uid));
    let peer = pods.first().context("a workload")?;
    let source = *peer.addresses.first().context("its address")?;
    for pod in pods.iter().cycle().take(times) {
        let own = *pod.addresses.first().context("its address")?;
        let asked = Attributes {
            peer: Some(&peer.identity),
            source,
            destination: SocketAddr::new(own, PORT.target_port),
        };
        let verdict = authorize(&view.policies_for(pod), &asked);
        ensure!(verdict.by().is_some() && verdict.allowed(), "{verdict}");
        black_box(&verdict);
    }
    Ok(())
}

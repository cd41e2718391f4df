//! Envoy resources for waypoints, in the shape that istiod gives.
//!
//! A waypoint terminates tunnels (`connect_terminate`), hands what is inside to one internal listener
//! (`main_internal`) that finds the service by address and port and applies all policy, and opens
//! tunnels to the endpoints (`connect_originate`). A proxy may run that graph as it stands, as Envoy
//! does, or compile it away, as ours does.
//!
//! Left out of istiod's shape: Istio's own network filters for metrics, which a plain Envoy does not
//! have and would refuse; those for HTTP are marked optional.

use std::collections::BTreeMap;

use ambit_objects::Name;
use ambit_proto::istio::workload::{Address, Workload, address};
use bytes::Bytes;
use prost::Message;

use crate::cluster::Cluster;
use crate::finding::Findings;

mod chain;
mod cluster;
mod dispatch;
mod endpoint;
mod listener;
mod pack;
mod rbac;
mod route;
mod served;
mod tls;
mod wire;

use served::Served;

/// Terminates tunnels.
const CONNECT_TERMINATE: &str = "connect_terminate";
/// Opens tunnels: a listener and the cluster behind it.
const CONNECT_ORIGINATE: &str = "connect_originate";
/// Finds the service: a listener and the cluster that leads to it.
const MAIN_INTERNAL: &str = "main_internal";
/// Leads to `connect_originate` for traffic to pods.
const ENCAP: &str = "encap";

/// What one waypoint gets, encoded, by resource name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waypoint {
    /// `envoy.config.listener.v3.Listener`.
    pub listeners: BTreeMap<String, Bytes>,
    /// `envoy.config.cluster.v3.Cluster`.
    pub clusters: BTreeMap<String, Bytes>,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    pub endpoints: BTreeMap<String, Bytes>,
}

/// Every usable waypoint's resources.
pub(crate) fn all(
    cluster: &Cluster,
    addresses: &BTreeMap<String, Address>,
    findings: &mut Findings,
) -> BTreeMap<Name, Waypoint> {
    let workloads: Vec<&Workload> = addresses
        .values()
        .filter_map(|address| match &address.r#type {
            Some(address::Type::Workload(workload)) => Some(workload),
            _ => None,
        })
        .collect();
    rbac::check_targets(cluster, findings);
    route::check_parents(cluster, findings);
    let waypoints = cluster.waypoints().values();
    waypoints
        .map(|waypoint| {
            let served = Served::new(cluster, waypoint);
            (waypoint.name.clone(), one(&served, &workloads, findings))
        })
        .collect()
}

fn one(served: &Served<'_>, workloads: &[&Workload], findings: &mut Findings) -> Waypoint {
    let routes = route::all(served, findings);
    let rules = rbac::Attached::new(served, findings);
    let listeners = listener::all(served, &routes, &rules);
    let clusters = cluster::all(served, &routes.others);
    let endpoints = endpoint::all(served, &routes.others, workloads);
    Waypoint {
        listeners: encoded(listeners, &pack::PLAIN),
        clusters: encoded(clusters, &pack::CLUSTER),
        endpoints: encoded(endpoints, &pack::ASSIGNMENT),
    }
}

fn encoded<T: Message>(
    messages: BTreeMap<String, T>,
    shape: &'static pack::Shape,
) -> BTreeMap<String, Bytes> {
    messages
        .into_iter()
        .map(|(name, message)| (name, pack::bytes(&message, shape).into()))
        .collect()
}

#[cfg(test)]
mod tests;

//! Envoy resources for waypoints, in the shape that istiod gives.

use std::collections::BTreeMap;

use ambit_objects::Name;
use bytes::Bytes;

use crate::cluster::Cluster;
use crate::finding::Findings;

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
pub(crate) fn all(cluster: &Cluster, _findings: &mut Findings) -> BTreeMap<Name, Waypoint> {
    cluster
        .waypoints()
        .keys()
        .map(|name| (name.clone(), Waypoint::default()))
        .collect()
}

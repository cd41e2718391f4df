//! A mesh told to a node proxy by the test, in the place of the controller.
//!
//! For what a control plane of Istio's may say and our controller does not: other networks,
//! application tunnels, blocks of addresses. Certificates still come from the controller.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::World;
use crate::pod::Pod;

/// A workload record of a pod that takes tunnels, in a network, with further fields.
///
/// # Panics
///
/// `more` is no object.
#[must_use]
pub fn workload(pod: &Pod, network: &str, more: Value) -> Value {
    let plan = &pod.plan;
    let mut record = json!({
        "uid": format!("Kubernetes//Pod/{}", pod.path()),
        "name": plan.name,
        "namespace": plan.namespace,
        "serviceAccount": plan.service_account,
        "network": network,
        "workloadIps": [pod.ipv4().to_string(), pod.ipv6().to_string()],
        "protocol": "HBONE",
        "node": format!("n{}", plan.node),
        "workloadName": plan.name,
        "canonicalName": plan.name,
        "canonicalRevision": "latest",
        "clusterId": "Kubernetes",
    });
    merge(&mut record, more);
    record
}

/// A service `NAMESPACE/NAME` with one virtual address and port 80 in front of port `target`, with
/// further fields.
///
/// # Panics
///
/// The path has no slash, or `more` is no object.
#[must_use]
pub fn service(path: &str, vip: &str, target: u16, more: Value) -> Value {
    let (namespace, name) = path.split_once('/').expect("NAMESPACE/NAME");
    let mut record = json!({
        "name": name,
        "namespace": namespace,
        "hostname": format!("{name}.{namespace}.svc.cluster.local"),
        "vips": [vip],
        "ports": {"80": target},
    });
    merge(&mut record, more);
    record
}

fn merge(record: &mut Value, more: Value) {
    let Value::Object(more) = more else {
        panic!("further fields are an object: {more}");
    };
    record.as_object_mut().expect("an object").extend(more);
}

impl World {
    /// Gives the programs of a node that start from now on a `resolv.conf`.
    ///
    /// # Panics
    ///
    /// Not root.
    pub fn give_resolv_conf(&self, node: usize, text: &str) {
        let folder = Path::new("/etc/netns").join(self.run.namespace(&format!("n{node}")));
        fs::write(folder.join("resolv.conf"), text).expect("the folder of its namespace");
    }

    /// Starts a node's proxy anew, with this mesh and in this network.
    ///
    /// # Panics
    ///
    /// The proxy does not become ready.
    pub fn tell(&self, node: usize, network: &str, mesh: &Value) {
        let program = format!("ztunnel-n{node}");
        self.programs.set(&program, "LOCAL_XDS", &mesh.to_string());
        self.programs.set(&program, "NETWORK", network);
        self.kill(&program);
        self.start_again(&program);
    }
}

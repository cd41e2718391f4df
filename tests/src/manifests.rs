//! Kubernetes manifests of a plan. JSON, which is YAML too, so that nothing needs quoting.

use std::path::Path;

use serde_json::{Value, json};

use crate::network::node_address;
use crate::plan::{Labels, Plan, PodPlan, ServicePlan, WaypointPlan};

/// A document of its own.
fn document(value: &Value) -> String {
    format!("---\n{value:#}\n")
}

/// A namespace with labels.
#[must_use]
pub fn namespace(name: &str, labels: &Labels) -> String {
    document(&json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }))
}

/// A pod that runs, with its service account.
#[must_use]
pub fn pod(pod: &PodPlan, netns: &Path) -> String {
    let mut annotations = pod.annotations.clone();
    annotations.insert("ambit.io/netns".to_owned(), netns.display().to_string());
    let account = document(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": pod.service_account, "namespace": pod.namespace},
    }));
    let ips = [pod.ipv4().to_string(), pod.ipv6().to_string()];
    account
        + &running_pod(
            &pod.namespace,
            &pod.name,
            &json!({"labels": pod.labels, "annotations": annotations}),
            &json!({
                "nodeName": format!("n{}", pod.node),
                "serviceAccountName": pod.service_account,
                "hostNetwork": pod.host_network,
                "containers": [{"name": "app", "image": "local"}],
            }),
            &ips,
        )
}

fn running_pod(namespace: &str, name: &str, extra: &Value, spec: &Value, ips: &[String]) -> String {
    let mut metadata = json!({"name": name, "namespace": namespace, "uid": uid(namespace, name)});
    for key in ["labels", "annotations"] {
        metadata[key] = extra[key].clone();
    }
    let pod_ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    document(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
        "status": {
            "phase": "Running", "podIP": ips[0], "podIPs": pod_ips,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
}

/// The uid of a pod, as tokens are bound to it.
#[must_use]
pub fn uid(namespace: &str, name: &str) -> String {
    format!("{namespace}-{name}")
}

/// A service.
#[must_use]
pub fn service(service: &ServicePlan) -> String {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}))
        .collect();
    let addresses = service.addresses().map(|ip| ip.to_string());
    document(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": service.name, "namespace": service.namespace, "labels": service.labels,
        },
        "spec": {
            "clusterIP": addresses[0], "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
            "selector": service.selector, "ports": ports,
        },
    }))
}

/// A waypoint's gateway.
#[must_use]
pub fn gateway(namespace: &str, name: &str, waypoint_for: &str) -> String {
    document(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {"istio.io/waypoint-for": waypoint_for},
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }))
}

/// A node, and the pod of its node proxy, to which the proxy's token is bound.
#[must_use]
pub fn node(node: usize) -> String {
    let name = format!("n{node}");
    let machine = document(&json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "topology.kubernetes.io/region": "local",
            "topology.kubernetes.io/zone": format!("zone-{node}"),
        }},
    }));
    let account = document(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "ztunnel", "namespace": "istio-system"},
    }));
    let proxy = running_pod(
        "istio-system",
        &format!("ztunnel-{name}"),
        &json!({"labels": {"app": "ztunnel"}, "annotations": {}}),
        &json!({
            "nodeName": name, "hostNetwork": true, "serviceAccountName": "ztunnel",
            "containers": [{"name": "istio-proxy", "image": "local"}],
        }),
        &[node_address(node).to_string()],
    );
    machine + &if node == 1 { account + &proxy } else { proxy }
}

/// All files of a plan: name and text.
#[must_use]
pub fn files(plan: &Plan, netns: impl Fn(&PodPlan) -> std::path::PathBuf) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (name, labels) in &plan.namespaces {
        files.push((format!("namespace-{name}"), namespace(name, labels)));
    }
    for number in 1..=plan.nodes {
        files.push((format!("node-{number}"), node(number)));
    }
    for planned in &plan.pods {
        let file = format!("pod-{}-{}", planned.namespace, planned.name);
        files.push((file, pod(planned, &netns(planned))));
    }
    for planned in &plan.services {
        let file = format!("service-{}-{}", planned.namespace, planned.name);
        files.push((file, service(planned)));
    }
    files.extend(plan.manifests.iter().cloned());
    files
}

impl WaypointPlan {
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

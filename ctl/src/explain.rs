//! `ambitctl explain`: everything known about one pod, and about one connection of it, in the order in which it is decided.

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;

use crate::dump::{AgentPod, Certificate, Dump, PodState, Pods, Workload};
use crate::target::Target;

mod text;

pub use text::text;

/// What there is to say; also what `-o json` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// `namespace/name`.
    pub pod: String,
    /// What the agent says: is it enrolled, and why.
    pub enrolment: Enrolment,
    /// What the control plane says about it.
    pub workload: Option<Workload>,
    /// Its waypoint by name.
    pub waypoint: String,
    /// What the node proxy that was asked does for it.
    pub proxy: Proxy,
    /// Its certificate at that proxy.
    pub certificate: Option<Certificate>,
    /// Where to.
    pub target: Option<Target>,
    /// What would happen, in the node proxy's words.
    pub connection: Option<Value>,
}

/// What the agent says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "known")]
pub enum Enrolment {
    /// The pod is one of its node.
    Yes {
        /// The agent's node.
        node: String,
        /// Node proxies connected to the agent.
        node_proxies_connected: usize,
        /// The pod.
        #[serde(flatten)]
        pod: Box<AgentPod>,
    },
    /// The pod is not one of its node.
    OtherNode {
        /// The agent's node.
        node: String,
    },
    /// The agent could not be asked.
    Unreachable {
        /// Why.
        why: String,
    },
}

/// What the node proxy does for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// `Up`, `Pending`, or nothing when the pod is not its.
    pub state: Option<String>,
    /// Open connections that came in.
    pub inbound: usize,
    /// Open connections that went out.
    pub outbound: usize,
}

/// Puts the answers together.
///
/// # Errors
/// When nobody knows the pod.
pub fn gather(
    namespace: &str,
    name: &str,
    dump: &Dump,
    pods: anyhow::Result<Pods>,
    target: Option<&Target>,
    connection: Option<Value>,
) -> anyhow::Result<Explained> {
    let workload = dump
        .workloads
        .iter()
        .find(|one| one.namespace == namespace && one.name == name)
        .cloned();
    let state = dump
        .pods
        .values()
        .find(|pod| pod.info.namespace == namespace && pod.info.name == name);
    let enrolment = enrolment(pods, namespace, name);
    if workload.is_none() && state.is_none() && !matches!(enrolment, Enrolment::Yes { .. }) {
        let agent = match &enrolment {
            Enrolment::OtherNode { node } => format!("the agent of node {node} does not know it"),
            Enrolment::Unreachable { why } => format!("the agent could not be asked: {why}"),
            Enrolment::Yes { .. } => String::new(),
        };
        bail!("no pod {namespace}/{name}: the node proxy does not know it, and {agent}");
    }
    let identity = identity(workload.as_ref(), state, dump);
    let certificate = identity.and_then(|id| {
        dump.certificates
            .iter()
            .find(|one| one.identity == id)
            .cloned()
    });
    let gateway = workload
        .as_ref()
        .and_then(|workload| workload.waypoint.as_ref());
    Ok(Explained {
        pod: format!("{namespace}/{name}"),
        enrolment,
        waypoint: dump.waypoint(gateway, namespace),
        workload,
        proxy: Proxy {
            state: state.map(|state| state.state.clone()),
            inbound: state.map_or(0, |state| state.connections.inbound.len()),
            outbound: state.map_or(0, |state| state.connections.outbound.len()),
        },
        certificate,
        target: target.cloned(),
        connection,
    })
}

fn enrolment(pods: anyhow::Result<Pods>, namespace: &str, name: &str) -> Enrolment {
    let pods = match pods {
        Ok(pods) => pods,
        Err(error) => {
            return Enrolment::Unreachable {
                why: format!("{error:#}"),
            };
        }
    };
    let found = pods
        .pods
        .into_iter()
        .find(|pod| pod.namespace == namespace && pod.name == name);
    match found {
        Some(pod) => Enrolment::Yes {
            node: pods.node,
            node_proxies_connected: pods.node_proxies_connected,
            pod: Box::new(pod),
        },
        None => Enrolment::OtherNode { node: pods.node },
    }
}

fn identity(workload: Option<&Workload>, state: Option<&PodState>, dump: &Dump) -> Option<String> {
    if let Some(workload) = workload {
        return Some(workload.identity());
    }
    // Not announced yet: by the account that the agent vouched for, whatever the trust domain.
    let info = &state?.info;
    let tail = format!("/ns/{}/sa/{}", info.namespace, info.service_account);
    dump.certificates
        .iter()
        .map(|one| one.identity.clone())
        .find(|id| id.ends_with(&tail))
}

#[cfg(test)]
mod tests;

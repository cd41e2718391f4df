//! Which view of the resources a client may have. Pure.
//!
//! The node identifier says what a client wants to be, the token what it is. What it is decides.

use ambit_objects::Name;
use ambit_proto::discovery::Node;
use prost_types::value::Kind;

use crate::authority::review::Caller;
use crate::cluster::{Cluster, GATEWAY_NAME, labels, takes_tunnels};
use crate::publish::Scope;

/// Why a client gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a kind of client that is served.
    #[error("node id {0:?} is neither a node proxy's (ztunnel~) nor a waypoint's (waypoint~)")]
    Kind(String),
    /// The metadata is not of who the token says.
    #[error("node metadata says {said}, the token {proved}")]
    Identity {
        /// What the metadata says.
        said: String,
        /// What the token proves.
        proved: String,
    },
    /// Only node proxies see the whole mesh, those of one pod among them.
    #[error(
        "{0} is not a node proxy's account, nor is its pod labelled networking.istio.io/tunnel: http"
    )]
    NotANodeProxy(String),
    /// No Gateway that the client could be an instance of.
    #[error("no usable waypoint of {0}: {1}")]
    NoGateway(String, &'static str),
}

/// The view of this client.
///
/// # Errors
/// See [`Refused`].
pub fn of(cluster: &Cluster, caller: &Caller, node: &Node) -> Result<Scope, Refused> {
    let proved = format!("{}/{}", caller.namespace, caller.service_account);
    for (key, proof) in [
        ("NAMESPACE", &caller.namespace),
        ("SERVICE_ACCOUNT", &caller.service_account),
    ] {
        let said = text(node, key);
        if said.is_some_and(|said| !said.is_empty() && said != proof) {
            let said = format!("{key} {}", said.unwrap_or_default());
            return Err(Refused::Identity { said, proved });
        }
    }
    if node.id.starts_with("ztunnel~") {
        let account = (caller.namespace.clone(), caller.service_account.clone());
        let of_a_node = cluster.mesh().node_accounts.contains(&account);
        return match of_a_node || has_its_own(cluster, caller) {
            true => Ok(Scope::Node),
            false => Err(Refused::NotANodeProxy(proved)),
        };
    }
    if node.id.starts_with("waypoint~") {
        let name = gateway(cluster, caller, node).ok_or(Refused::NoGateway(
            proved.clone(),
            "neither its pod nor its labels name one",
        ))?;
        return if cluster.objects().gateways.contains_key(&name) {
            Ok(Scope::Waypoint(name))
        } else {
            Err(Refused::NoGateway(
                proved,
                "there is no Gateway of that name",
            ))
        };
    }
    Err(Refused::Kind(node.id.chars().take(64).collect()))
}

/// Whether the client's pod is one that has a node proxy of its own. Who may label the pod decides that.
fn has_its_own(cluster: &Cluster, caller: &Caller) -> bool {
    let Some(bound) = &caller.pod else {
        return false;
    };
    let name = Name::new(&caller.namespace, &bound.name);
    cluster
        .objects()
        .pods
        .get(&name)
        .is_some_and(|pod| takes_tunnels(pod))
}

/// The Gateway of the client's pod. Without a pod among the objects, the one its metadata names,
/// if it runs as the account that is named after it: labels alone grant nothing.
fn gateway(cluster: &Cluster, caller: &Caller, node: &Node) -> Option<Name> {
    let bound = caller
        .pod
        .as_ref()
        .map(|pod| Name::new(&caller.namespace, &pod.name));
    if let Some(pod) = bound.and_then(|name| cluster.objects().pods.get(&name)) {
        let gateway = labels(&pod.metadata).get(GATEWAY_NAME)?;
        return Some(Name::new(&caller.namespace, gateway));
    }
    let said = label(node, GATEWAY_NAME).or_else(|| text(node, "WORKLOAD_NAME"))?;
    (said == caller.service_account).then(|| Name::new(&caller.namespace, said))
}

fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    string(node.metadata.as_ref()?.fields.get(key)?)
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node
        .metadata
        .as_ref()?
        .fields
        .get("LABELS")?
        .kind
        .as_ref()?
    {
        Kind::StructValue(labels) => string(labels.fields.get(key)?),
        _ => None,
    }
}

fn string(value: &prost_types::Value) -> Option<&str> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

//! Who may have which identity. Pure.

use ambit_model::identity::{Identity, InvalidIdentity};
use ambit_objects::Name;

use crate::authority::review::Caller;
use crate::cluster::{Cluster, is_alive, service_account};

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// What is asked for is no identity of the mesh.
    #[error("{0:?} is no identity: {1}")]
    NoIdentity(String, InvalidIdentity),
    /// It is of another trust domain.
    #[error("trust domain {0} is not this mesh's")]
    TrustDomain(String),
    /// Only node proxies may ask for somebody else's.
    #[error("{0} is not a node proxy's account")]
    NotANodeProxy(String),
    /// The node proxy's token does not say which pod it is, or the pod is on no node.
    #[error("the caller's token is bound to no pod on a node")]
    NoNode,
    /// No living pod with that account is on the caller's node.
    #[error("no pod of {0} is on node {1}")]
    NotOnNode(String, String),
}

/// The identity the caller gets: its own, or for a node proxy one of a pod on its own node.
///
/// # Errors
/// See [`Refused`].
pub fn grant(
    cluster: &Cluster,
    caller: &Caller,
    wanted: Option<&str>,
) -> Result<Identity, Refused> {
    let mesh = cluster.mesh();
    let own = Identity::new(
        &mesh.trust_domain,
        &caller.namespace,
        &caller.service_account,
    )
    .map_err(|error| Refused::NoIdentity(caller.to_string(), error))?;
    let Some(wanted) = wanted else { return Ok(own) };
    let wanted: Identity = wanted
        .parse()
        .map_err(|error| Refused::NoIdentity(wanted.to_owned(), error))?;
    if wanted == own {
        return Ok(own);
    }
    if wanted.trust_domain() != mesh.trust_domain {
        return Err(Refused::TrustDomain(wanted.trust_domain().to_owned()));
    }
    let account = (caller.namespace.clone(), caller.service_account.clone());
    if !mesh.node_accounts.contains(&account) {
        return Err(Refused::NotANodeProxy(caller.to_string()));
    }
    let node = node_of(cluster, caller).ok_or(Refused::NoNode)?;
    let from = Name::new(wanted.namespace(), "");
    let on_node = cluster
        .objects()
        .pods
        .range(from..)
        .take_while(|(name, _)| name.namespace == wanted.namespace())
        .any(|(_, pod)| {
            let its = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            its == Some(node) && is_alive(pod) && service_account(pod) == wanted.service_account()
        });
    if on_node {
        Ok(wanted)
    } else {
        Err(Refused::NotOnNode(wanted.to_string(), node.to_owned()))
    }
}

/// The node of the pod that the caller's token is bound to, as the objects have it. That the pod is
/// there with that uid and account was checked when the token was.
fn node_of<'a>(cluster: &'a Cluster, caller: &Caller) -> Option<&'a str> {
    let pod = Name::new(&caller.namespace, &caller.pod.as_ref()?.name);
    let spec = cluster.objects().pods.get(&pod)?.spec.as_ref()?;
    spec.node_name.as_deref().filter(|node| !node.is_empty())
}

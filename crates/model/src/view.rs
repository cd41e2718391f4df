//! The mesh at one moment: an immutable, indexed set of workloads, services and policies.
//!
//! # Theory of operation
//!
//! The maps are persistent: the next view shares all that a change did not touch, and a change costs the logarithm of the size of the
//! mesh (plus, for a workload, the number of endpoints of its services). Endpoints are indexed by service key whether or not the
//! service is known, so workloads and services may come in any order.
//!
//! # Precedence
//!
//! * Several workloads at one address: pods before others, then those reached by tunnel, then healthy ones, then the smallest uid.
//! * Several services at one virtual address or host name: of those the client may see, the one of its own namespace, then the
//!   canonical one, then the smallest key. A host name comes before the wildcards that cover it (`*.example.com`), a longer one of
//!   these before a shorter. A single address comes before a block; among blocks the client's own namespace comes
//!   first, then the longer prefix, then the canonical one.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::authorize::Rules;
use crate::compile::Compiled;
use crate::policy::PolicyKey;
use crate::service::{Endpoints, Service, ServiceKey};
use crate::text::Text;
use crate::workload::Workload;

pub(crate) mod index;
pub(crate) mod table;

use index::{Blocks, Nested};
use table::{Address, Name, Table, Uid};

/// A persistent map. The hash has fixed keys: what is in it comes from the control plane, and equal views shall iterate alike.
pub(crate) type Map<K, V> = rpds::HashTrieMapSync<K, V, BuildHasherDefault<DefaultHasher>>;

/// Policies of one reach, ordered by key.
pub(crate) type PolicyList = Arc<[Arc<Compiled>]>;

/// The mesh at one moment. Cloning shares everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    pub(crate) workloads: Table<Uid>,
    pub(crate) by_address: Table<Address>,
    pub(crate) by_name: Table<Name>,
    /// Namespace, host name.
    pub(crate) by_hostname: Nested<Text, Workload>,

    pub(crate) services: Map<ServiceKey, Arc<Service>>,
    pub(crate) endpoints: Map<ServiceKey, Endpoints>,
    /// Network, address.
    pub(crate) vips: Nested<IpAddr, Service>,
    /// Blocks of addresses.
    pub(crate) blocks: Blocks,
    /// Nothing, host name.
    pub(crate) service_names: Nested<Text, Service>,

    pub(crate) policies: Map<PolicyKey, Arc<Compiled>>,
    pub(crate) global_policies: PolicyList,
    pub(crate) namespace_policies: Map<Text, PolicyList>,
}

/// A pod as the node agent names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPod<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Pod name.
    pub name: &'a str,
    /// Service account.
    pub service_account: &'a str,
    /// Node it runs on; empty when it is not known.
    pub node: &'a str,
}

impl View {
    /// The workload of that uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).next()
    }

    /// The workload at an address of a network. Workloads of the host network are never found so.
    #[must_use]
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address
            .get((network, address.to_canonical()))
            .next()
    }

    /// The record of a pod that the node agent vouched for. Of pods of that name in several clusters the one on this node counts.
    #[must_use]
    pub fn local(&self, pod: &LocalPod<'_>) -> Option<&Arc<Workload>> {
        let mut named = self.by_name.get((pod.namespace, pod.name));
        let fits = |workload: &&Arc<Workload>| {
            workload.is_pod()
                && workload.identity.service_account() == pod.service_account
                && (pod.node.is_empty() || workload.node.is_empty() || workload.node == *pod.node)
        };
        named.find(fits)
    }

    /// The workload without address whose host name is that of `key`, in the namespace of `key`.
    #[must_use]
    pub fn workload_with_hostname(&self, key: &ServiceKey) -> Option<&Arc<Workload>> {
        self.by_hostname
            .get(&key.namespace, key.hostname.as_str())
            .first()
    }

    /// Every workload, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// The service of that key, whoever may see it.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service at a virtual address, as a client of `namespace` sees it.
    #[must_use]
    pub fn service_at(
        &self,
        network: &str,
        address: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<Service>> {
        let address = address.to_canonical();
        let exact = self.vips.get(network, &address);
        preferred(exact, namespace).or_else(|| self.blocks.find(network, address, namespace))
    }

    /// Has any workload, or any service whoever may see it, that very address of a network. Blocks of addresses do not count.
    #[must_use]
    pub fn knows_address(&self, network: &str, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.workload_at(network, address).is_some() || !self.vips.get(network, &address).is_empty()
    }

    /// The service of a host name, as a client of `namespace` sees it: of that very name, else of the longest wildcard that covers it.
    #[must_use]
    pub fn service_named(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let exact = preferred(self.service_names.get("", hostname), namespace);
        exact.or_else(|| self.service_covering(hostname, namespace))
    }

    /// The service named `*.` and as much of the end of `hostname` as possible.
    fn service_covering(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let dots = hostname.match_indices('.').map(|(at, _)| at);
        let mut name = String::with_capacity(hostname.len() + 1);
        for dot in dots {
            name.clear();
            name.push('*');
            name.push_str(hostname.get(dot..).unwrap_or_default());
            let covering = preferred(self.service_names.get("", name.as_str()), namespace);
            if covering.is_some() {
                return covering;
            }
        }
        None
    }

    /// Every service of a host name, whoever may see it: canonical ones first, then by key.
    #[must_use]
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        self.service_names.get("", hostname)
    }

    /// The workloads behind a service, known or not.
    #[must_use]
    pub fn endpoints(&self, key: &ServiceKey) -> Option<&Endpoints> {
        self.endpoints.get(key)
    }

    /// Every service, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Services that workloads name and that are not known.
    pub fn staged_services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.endpoints
            .keys()
            .filter(|key| !self.services.contains_key(*key))
    }

    /// The policy of that key.
    #[must_use]
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Compiled>> {
        self.policies.get(key)
    }

    /// Every policy, in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Compiled>> {
        self.policies.values()
    }

    /// The policies that apply to a workload: those of the mesh, of its namespace, and those it lists.
    #[must_use]
    pub fn policies_for<'v>(&'v self, workload: &'v Workload) -> Rules<'v> {
        let mut selected = SmallVec::new();
        let mut unresolved = None;
        for name in &workload.policies {
            match self.policies.get(name) {
                Some(policy) => selected.push(policy),
                None => unresolved = unresolved.or(Some(name)),
            }
        }
        let namespace = self.namespace_policies.get(&workload.namespace);
        Rules {
            global: &self.global_policies,
            namespace: namespace.map(|list| &**list).unwrap_or_default(),
            selected,
            unresolved,
        }
    }

    /// How many workloads, services and policies there are.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (
            self.workloads.size(),
            self.services.size(),
            self.policies.size(),
        )
    }
}

/// The service a client of `namespace` means, of candidates in the order canonical first, then by key.
fn preferred<'v>(candidates: &'v [Arc<Service>], namespace: &str) -> Option<&'v Arc<Service>> {
    let own = candidates
        .iter()
        .find(|service| service.key.namespace == *namespace);
    own.or_else(|| {
        candidates
            .iter()
            .find(|service| service.visible_to(namespace))
    })
}

#[cfg(test)]
mod tests;

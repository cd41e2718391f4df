//! From one view to the next.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::compile::Compiled;
use crate::policy::{Policy, PolicyKey, Scope};
use crate::service::{Endpoint, Endpoints, Service, ServiceKey};
use crate::text::Text;
use crate::view::{PolicyList, View};
use crate::workload::{NetworkMode, Workload};

/// One change of the mesh.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new or changed workload.
    UpsertWorkload(Workload),
    /// A new or changed service.
    UpsertService(Service),
    /// A new or changed policy.
    UpsertPolicy(Policy),
    /// The resource of that name is gone: a workload by uid, else a service by `namespace/hostname`. Unknown names are ignored.
    RemoveAddress(Text),
    /// The policy of that name, `namespace/name`, is gone. Unknown names are ignored.
    RemovePolicy(Text),
}

/// The view after the changes, in their order. Between changes of different resources the order makes no difference.
///
/// A change costs the logarithm of the number of workloads, services and policies. Endpoint lists are rewritten once for each service
/// that any change touches.
#[must_use]
pub fn apply(view: &View, changes: impl IntoIterator<Item = Change>) -> View {
    let mut next = Next {
        view: view.clone(),
        endpoints: BTreeMap::new(),
    };
    for change in changes {
        match change {
            Change::UpsertWorkload(workload) => next.upsert_workload(workload),
            Change::UpsertService(service) => next.upsert_service(service),
            Change::UpsertPolicy(policy) => next.upsert_policy(policy),
            Change::RemoveAddress(name) => {
                if !next.remove_workload(&name)
                    && let Some(key) = ServiceKey::parse(&name)
                {
                    next.remove_service(&key);
                }
            }
            Change::RemovePolicy(name) => next.remove_policy(&PolicyKey::parse(&name)),
        }
    }
    next.finish()
}

/// Changes of one service's endpoints by uid; `None` takes the endpoint away.
type EndpointChanges = BTreeMap<Text, Option<Endpoint>>;

struct Next {
    view: View,
    endpoints: BTreeMap<ServiceKey, EndpointChanges>,
}

impl Next {
    fn upsert_workload(&mut self, workload: Workload) {
        let known = self.view.workload(&workload.uid).cloned();
        if known.as_deref() == Some(&workload) {
            return;
        }
        let workload = Arc::new(workload);
        self.replace(known.as_deref(), Some(&workload));
    }

    fn remove_workload(&mut self, uid: &str) -> bool {
        let Some(workload) = self.view.workload(uid).cloned() else {
            return false;
        };
        self.replace(Some(&workload), None);
        true
    }

    /// Puts one version of a workload in the place of another.
    fn replace(&mut self, old: Option<&Workload>, new: Option<&Arc<Workload>>) {
        let view = &mut self.view;
        view.workloads.replace(
            old.map(|old| (&*old.uid, old)),
            new.map(|new| (&*new.uid, new)),
        );
        view.by_name.replace(
            old.map(|old| ((&*old.namespace, old.name()), old)),
            new.map(|new| ((&*new.namespace, new.name()), new)),
        );
        let found_at = |workload: &Workload| match workload.network_mode {
            NetworkMode::Standard => workload.addresses.clone(),
            NetworkMode::HostNetwork => SmallVec::new(),
        };
        if let Some(old) = old {
            let network = &old.network;
            let stays = |address: &IpAddr| {
                new.is_some_and(|new| new.network == *network && found_at(new).contains(address))
            };
            for address in found_at(old).into_iter().filter(|address| !stays(address)) {
                view.by_address
                    .replace(Some(((network, address), old)), None);
            }
        }
        if let Some(new) = new {
            for address in found_at(new) {
                view.by_address
                    .replace(None, Some(((&new.network, address), new)));
            }
        }
        if let Some(old) = old {
            self.forget(old);
        }
        if let Some(new) = new {
            self.name(new);
        }
    }

    /// Takes a workload out of what only some are in, or are in several times.
    fn forget(&mut self, workload: &Workload) {
        if !workload.hostname.is_empty() {
            self.view
                .by_hostname
                .remove(&workload.namespace, &workload.hostname, workload);
        }
        for service in workload.services.keys() {
            self.change_endpoint(service, &workload.uid, None);
        }
    }

    /// Puts a workload there.
    fn name(&mut self, workload: &Arc<Workload>) {
        if !workload.hostname.is_empty() {
            self.view
                .by_hostname
                .insert(&workload.namespace, &workload.hostname, workload);
        }
        for (service, ports) in workload.services.iter() {
            let endpoint = Endpoint {
                workload: Arc::clone(workload),
                ports: SmallVec::from_slice(ports),
            };
            self.change_endpoint(service, &workload.uid, Some(endpoint));
        }
    }

    fn change_endpoint(&mut self, service: &ServiceKey, uid: &Text, endpoint: Option<Endpoint>) {
        if let Some(changes) = self.endpoints.get_mut(service) {
            changes.insert(uid.clone(), endpoint);
            return;
        }
        let changes = BTreeMap::from([(uid.clone(), endpoint)]);
        self.endpoints.insert(service.clone(), changes);
    }

    fn upsert_service(&mut self, service: Service) {
        if self
            .view
            .services
            .get(&service.key)
            .is_some_and(|known| **known == service)
        {
            return;
        }
        self.remove_service(&service.key);
        let mut service = service;
        // A block given twice would be counted twice and taken out once.
        service.vips.sort();
        service.vips.dedup();
        let service = Arc::new(service);
        for vip in &service.vips {
            match vip.exact() {
                Some(address) => self.view.vips.insert(&vip.network, &address, &service),
                None => self.view.blocks.insert(&vip.network, vip.block, &service),
            }
        }
        self.view
            .service_names
            .insert(&Text::empty(), &service.key.hostname, &service);
        self.view.services.insert_mut(service.key.clone(), service);
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        let view = &mut self.view;
        let Some(service) = view.services.get(key).cloned() else {
            return;
        };
        view.services.remove_mut(key);
        for vip in &service.vips {
            match vip.exact() {
                Some(address) => view.vips.remove(&vip.network, &address, &service),
                None => view.blocks.remove(&vip.network, vip.block, &service),
            }
        }
        view.service_names
            .remove(&Text::empty(), &service.key.hostname, &service);
    }

    fn upsert_policy(&mut self, policy: Policy) {
        if self
            .view
            .policies
            .get(&policy.key)
            .is_some_and(|known| *known.policy() == policy)
        {
            return;
        }
        self.remove_policy(&policy.key);
        let policy = Arc::new(Compiled::new(policy));
        self.change_list(&policy, |list| {
            let place = list.partition_point(|other| other.key() < policy.key());
            list.insert(place, Arc::clone(&policy));
        });
        self.view.policies.insert_mut(policy.key().clone(), policy);
    }

    fn remove_policy(&mut self, key: &PolicyKey) {
        let Some(policy) = self.view.policies.get(key).cloned() else {
            return;
        };
        self.view.policies.remove_mut(key);
        self.change_list(&policy, |list| list.retain(|other| other.key() != key));
    }

    /// Changes the list of the policies with the reach of `policy`; those that workloads list are in none.
    fn change_list(&mut self, policy: &Compiled, change: impl FnOnce(&mut Vec<Arc<Compiled>>)) {
        let changed = |list: Option<&PolicyList>| -> PolicyList {
            let mut list = list.map(|list| list.to_vec()).unwrap_or_default();
            change(&mut list);
            list.into()
        };
        let namespace = &policy.key().namespace;
        let view = &mut self.view;
        match policy.policy().scope {
            Scope::WorkloadSelector => {}
            Scope::Global => view.global_policies = changed(Some(&view.global_policies)),
            Scope::Namespace => {
                let list = changed(view.namespace_policies.get(namespace.as_str()));
                if list.is_empty() {
                    view.namespace_policies.remove_mut(namespace.as_str());
                } else {
                    view.namespace_policies.insert_mut(namespace.clone(), list);
                }
            }
        }
    }

    fn finish(mut self) -> View {
        for (service, changes) in std::mem::take(&mut self.endpoints) {
            let before = self.view.endpoints.get(&service);
            let list = merge(before.map(|list| &**list).unwrap_or_default(), changes);
            if list.is_empty() {
                self.view.endpoints.remove_mut(&service);
            } else {
                self.view
                    .endpoints
                    .insert_mut(service, Endpoints::new(list));
            }
        }
        self.view
    }
}

/// One list of two, each ordered by uid.
fn merge(before: &[Endpoint], changes: EndpointChanges) -> Arc<[Endpoint]> {
    let mut list = Vec::with_capacity(before.len() + changes.len());
    let mut kept = before.iter().peekable();
    for (uid, change) in changes {
        while let Some(endpoint) = kept.next_if(|endpoint| endpoint.workload.uid < uid) {
            list.push(endpoint.clone());
        }
        kept.next_if(|endpoint| endpoint.workload.uid == uid);
        list.extend(change);
    }
    list.extend(kept.cloned());
    list.into()
}

#[cfg(test)]
mod tests;

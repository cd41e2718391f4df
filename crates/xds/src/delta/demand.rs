//! Resources that are asked for one by one, when they are first needed.
//!
//! # Theory of operation
//! A name is asked for by subscribing to it. The server answers with the resource, which may have another name and this one among its
//! aliases, and with whatever belongs to it (the workloads of a service); or it says that the name is removed, which here means
//! that there is none. What was sent stays subscribed: the server tells of its changes and its removal, and learns of it again from
//! `initial_resource_versions` on the next stream.
//!
//! A server does not answer a subscription to what is subscribed already, so a name that may have to be asked again must first be
//! given back: one that was answered by another name or not at all, and one that was held and is removed. Giving back and asking are
//! two requests, because the server applies the second list of a request after the first.
//!
//! Source: istiod's `istio.workload.Address`; Envoy's xDS protocol, "Subscribing to resources" and "Resource aliases".

use std::collections::BTreeSet;

use ambit_proto::discovery::{DeltaDiscoveryRequest, Node};

use super::{Answered, Interest, Rejected, Subscribed};

/// The name that means all. To subscribe to it and to give it back in one request is to subscribe to nothing, which an empty list
/// would not be.
const ALL: &str = "*";

/// What a resource is called.
#[derive(Debug)]
pub(super) struct Came {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
}

impl Came {
    fn is_called(&self, name: &String) -> bool {
        self.name == *name || self.aliases.contains(name)
    }

    fn is_among(&self, rejected: &[Rejected]) -> bool {
        rejected.iter().any(|rejected| rejected.name == self.name)
    }
}

impl Subscribed {
    /// The first request on a stream: nothing but what is asked for, and what is held.
    pub(super) fn first_demand(
        &self,
        asked: &BTreeSet<String>,
        node: &Node,
    ) -> DeltaDiscoveryRequest {
        let all = std::iter::once(ALL.to_owned());
        DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.subscription.type_url.clone(),
            resource_names_subscribe: all.clone().chain(asked.iter().cloned()).collect(),
            resource_names_unsubscribe: all.collect(),
            initial_resource_versions: self.held(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes what a response says of the names that were asked for. Returns which were answered, and how. Call when the versions of
    /// the response are recorded.
    pub(super) fn answer(
        &mut self,
        came: &[Came],
        rejected: &[Rejected],
        removed: &[String],
        held_before: &BTreeSet<String>,
    ) -> Vec<Answered> {
        let Interest::Demand { asked, back } = &mut self.subscription.interest else {
            return Vec::new();
        };
        let mut answered = Vec::new();
        asked.retain(|name| {
            let resource = came.iter().find(|came| came.is_called(name));
            let exists = resource.is_some();
            if !exists && !removed.contains(name) {
                return true;
            }
            if !self.versions.contains_key(name.as_str()) {
                back.insert(name.clone());
            }
            answered.push(Answered {
                name: name.clone(),
                exists,
                refused: resource.is_some_and(|came| came.is_among(rejected)),
            });
            false
        });
        let gone = removed.iter().filter(|name| {
            held_before.contains(*name) && !self.versions.contains_key(name.as_str())
        });
        back.extend(gone.cloned());
        answered
    }

    /// The requests that make what is asked for equal to `wanted`.
    pub(super) fn change_demand(&mut self, wanted: BTreeSet<String>) -> Vec<DeltaDiscoveryRequest> {
        let requested = self.requested;
        let Interest::Demand { asked, back } = &mut self.subscription.interest else {
            return Vec::new();
        };
        if !requested {
            // The first request of the stream will say all of it.
            *asked = wanted;
            back.clear();
            return Vec::new();
        }
        back.extend(asked.difference(&wanted).cloned());
        let new: Vec<String> = wanted.difference(asked).cloned().collect();
        *asked = wanted;
        let given_back: Vec<String> = std::mem::take(back).into_iter().collect();
        let mut requests = Vec::new();
        let empty = || DeltaDiscoveryRequest {
            type_url: self.subscription.type_url.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        if !given_back.is_empty() {
            requests.push(DeltaDiscoveryRequest {
                resource_names_unsubscribe: given_back,
                ..empty()
            });
        }
        if !new.is_empty() {
            requests.push(DeltaDiscoveryRequest {
                resource_names_subscribe: new,
                ..empty()
            });
        }
        requests
    }
}

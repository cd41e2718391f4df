//! The client side of the incremental discovery protocol, without I/O.
//!
//! Source: Envoy's xDS protocol, "Incremental xDS"; what istiod makes of it is noted where it
//! matters.

mod demand;

use std::collections::{BTreeMap, BTreeSet};

use ambit_model::text::Text;
use ambit_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource as Received, Status,
};
use bytes::Bytes;

use self::demand::Came;
use crate::{Answered, Handler, Rejected, Resource, Update};

/// gRPC's INVALID_ARGUMENT, for the status inside a NACK. Servers log it and read the text.
const INVALID_ARGUMENT: i32 = 3;

/// Longest text of a NACK. It is for a person's eyes; some thousand refused resources would
/// otherwise be repeated to the sender in full.
const MAX_NACK: usize = 4096;

/// A type and which of its resources are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Type URL.
    pub type_url: String,
    /// Which of them.
    pub interest: Interest,
}

impl Subscription {
    /// All resources of a type.
    pub fn all(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            interest: Interest::All,
        }
    }

    /// Resources that are asked for when they are first needed: [`Handler::wanted`] says which are needed and have not come.
    pub fn on_demand(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            interest: Interest::Demand {
                asked: BTreeSet::new(),
                back: BTreeSet::new(),
            },
        }
    }

    /// Resources by name, none at first: [`Handler::wanted`] says which.
    pub fn by_name(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            interest: Interest::Names(BTreeSet::new()),
        }
    }
}

/// Which resources of a type are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    /// All that the server has for us (an empty list on the wire).
    All,
    /// These.
    Names(BTreeSet<String>),
    /// Those that were asked for so far, and what came with them.
    Demand {
        /// Asked for and not answered.
        asked: BTreeSet<String>,
        /// To be given back with the next request.
        back: BTreeSet<String>,
    },
}

/// What became of a response.
#[derive(Debug)]
pub struct Answer {
    /// The ACK or NACK, to be sent first.
    pub reply: DeltaDiscoveryRequest,
    /// Changed subscriptions that follow from the update, to be sent after it.
    pub follow_up: Vec<DeltaDiscoveryRequest>,
    /// What was refused.
    pub rejected: Vec<Rejected>,
}

/// The state of all subscriptions; it outlives streams.
///
/// # Invariants
/// A version is recorded for a resource exactly while some accepted version of it is in force.
#[derive(Debug)]
pub struct Session {
    node: Node,
    types: Vec<Subscribed>,
}

#[derive(Debug)]
struct Subscribed {
    subscription: Subscription,
    /// Versions in force, by resource name.
    versions: BTreeMap<Text, Box<str>>,
    /// Whether this stream has seen a request of this type.
    requested: bool,
    /// Whether any stream has brought a response of this type.
    answered: bool,
}

impl Session {
    /// Nothing received yet. Types are requested in the order given.
    pub fn new(node: Node, subscriptions: Vec<Subscription>) -> Self {
        let subscribed = |subscription| Subscribed {
            subscription,
            versions: BTreeMap::new(),
            requested: false,
            answered: false,
        };
        Self {
            node,
            types: subscriptions.into_iter().map(subscribed).collect(),
        }
    }

    /// A new stream begins: what to send first. Names the versions in force, so that the server
    /// sends the difference and the removals of the meantime.
    pub fn open(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let node = &self.node;
        self.types
            .iter_mut()
            .for_each(|subscribed| subscribed.requested = false);
        self.types
            .iter_mut()
            .filter_map(|subscribed| subscribed.first_request(node))
            .collect()
    }

    /// Whether each type has had a response, refused resources or not. A type subscribed by name
    /// with no names wanted has nothing to wait for.
    pub fn synced(&self) -> bool {
        self.types.iter().all(|subscribed| {
            let idle = match &subscribed.subscription.interest {
                Interest::All => false,
                Interest::Names(names) => names.is_empty(),
                Interest::Demand { .. } => true,
            };
            subscribed.answered || idle
        })
    }

    /// Type URLs that [`Session::synced`] waits for.
    pub fn pending(&self) -> Vec<&str> {
        let waiting = self.types.iter().filter(|subscribed| !subscribed.answered);
        waiting
            .map(|subscribed| subscribed.subscription.type_url.as_str())
            .collect()
    }

    /// Names of the resources of a type that are in force, with their versions.
    pub fn versions(&self, type_url: &str) -> Option<&BTreeMap<Text, Box<str>>> {
        let found = self
            .types
            .iter()
            .find(|known| known.subscription.type_url == type_url);
        found.map(|subscribed| &subscribed.versions)
    }

    /// Processes one response: hands it to `handler` and says what to send.
    pub fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        handler: &mut impl Handler,
    ) -> Answer {
        let mut reply = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        let position = self
            .types
            .iter()
            .position(|known| known.subscription.type_url == response.type_url);
        let Some(subscribed) = position.and_then(|index| self.types.get_mut(index)) else {
            // Nobody asked. Refusing would only make the server send it again.
            tracing::error!(
                type_url = response.type_url,
                "response of a type not subscribed"
            );
            return Answer {
                reply,
                follow_up: Vec::new(),
                rejected: Vec::new(),
            };
        };
        let mut rejected = Vec::new();
        let came = subscribed.came(&response.resources);
        let mut resources = Vec::with_capacity(response.resources.len());
        for received in response.resources {
            match subscribed.open_resource(received) {
                Ok(Some(resource)) => resources.push(resource),
                Ok(None) => {}
                Err(refused) => rejected.push(refused),
            }
        }
        let versions: Vec<_> = resources
            .iter()
            .map(|r| (r.name.clone(), r.version.as_str().into()))
            .collect();
        let removed = response.removed_resources;
        let held = removed
            .iter()
            .filter(|name| subscribed.versions.contains_key(name.as_str()));
        let held_before: BTreeSet<String> = held.cloned().collect();
        let update = Update {
            type_url: response.type_url,
            resources,
            removed: removed.clone(),
        };
        rejected.extend(handler.update(update));
        subscribed.record(versions, &removed, &rejected);
        subscribed.answered = true;
        let answered = subscribed.answer(&came, &rejected, &removed, &held_before);
        if !answered.is_empty() {
            handler.answered(&subscribed.subscription.type_url, answered);
        }
        if !rejected.is_empty() {
            let message = nack_text(&rejected);
            let status = Status {
                code: INVALID_ARGUMENT,
                message,
                ..Status::default()
            };
            reply.error_detail = Some(status);
        }
        Answer {
            reply,
            follow_up: self.follow_up(handler),
            rejected,
        }
    }

    /// Requests for types whose wanted names changed. To be asked for whenever they may have.
    pub fn follow_up(&mut self, handler: &impl Handler) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for subscribed in &mut self.types {
            if subscribed.subscription.interest == Interest::All {
                continue;
            }
            let Some(wanted) = handler.wanted(&subscribed.subscription.type_url) else {
                continue;
            };
            match subscribed.subscription.interest {
                Interest::Demand { .. } => requests.extend(subscribed.change_demand(wanted)),
                Interest::All | Interest::Names(_) => {
                    requests.extend(subscribed.change_names(wanted, &self.node));
                }
            }
        }
        requests
    }
}

impl Subscribed {
    /// The first request of this type on a stream. `None` for a type by name without names: an
    /// empty list would mean all.
    fn first_request(&mut self, node: &Node) -> Option<DeltaDiscoveryRequest> {
        if let Interest::Demand { back, .. } = &mut self.subscription.interest {
            // What an earlier stream had subscribed, this one has not.
            back.clear();
        }
        let names: Vec<String> = match &self.subscription.interest {
            Interest::All => Vec::new(),
            Interest::Names(names) if names.is_empty() => return None,
            Interest::Names(names) => names.iter().cloned().collect(),
            Interest::Demand { asked, .. } => {
                let request = self.first_demand(asked, node);
                self.requested = true;
                return Some(request);
            }
        };
        self.requested = true;
        Some(DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.subscription.type_url.clone(),
            resource_names_subscribe: names,
            initial_resource_versions: self.held(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn change_names(
        &mut self,
        wanted: BTreeSet<String>,
        node: &Node,
    ) -> Option<DeltaDiscoveryRequest> {
        let Interest::Names(names) = &mut self.subscription.interest else {
            return None;
        };
        if *names == wanted {
            return None;
        }
        let subscribe = wanted.difference(names).cloned().collect();
        let unsubscribe: Vec<String> = names.difference(&wanted).cloned().collect();
        // What is no longer wanted is never updated again, so it is not held either.
        unsubscribe
            .iter()
            .for_each(|name| drop(self.versions.remove(name.as_str())));
        *names = wanted;
        if !self.requested {
            return self.first_request(node);
        }
        Some(DeltaDiscoveryRequest {
            type_url: self.subscription.type_url.clone(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// The name and the aliases of each resource, of a type that is asked for one by one. For other types nobody wants to know.
    fn came(&self, resources: &[Received]) -> Vec<Came> {
        if !matches!(self.subscription.interest, Interest::Demand { .. }) {
            return Vec::new();
        }
        let came = |resource: &Received| Came {
            name: resource.name.clone(),
            aliases: resource.aliases.clone(),
        };
        resources.iter().map(came).collect()
    }

    /// The resource inside its wrapper. `Ok(None)` for one that only says that nothing changed.
    fn open_resource(&self, received: Received) -> Result<Option<Resource>, Rejected> {
        let name = Text::from(received.name);
        let Some(any) = received.resource else {
            // A heartbeat repeats the version of a resource with a time to live.
            if self.versions.get(&name).map(|version| &**version) == Some(&received.version) {
                return Ok(None);
            }
            return Err(Rejected {
                name: name.into(),
                reason: "resource: missing".to_owned(),
            });
        };
        if any.type_url != self.subscription.type_url {
            let reason = format!("resource: is a {}", any.type_url);
            return Err(Rejected {
                name: name.into(),
                reason,
            });
        }
        let payload = Bytes::from(any.value);
        Ok(Some(Resource {
            name,
            version: received.version,
            payload,
        }))
    }

    fn record(
        &mut self,
        versions: Vec<(Text, Box<str>)>,
        removed: &[String],
        rejected: &[Rejected],
    ) {
        let refused: BTreeSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        for (name, version) in versions {
            if !refused.contains(name.as_str()) {
                self.versions.insert(name, version);
            }
        }
        for name in removed {
            self.versions.remove(name.as_str());
        }
    }

    /// What is in force, for the server.
    fn held(&self) -> BTreeMap<String, String> {
        let held = self.versions.iter();
        held.map(|(name, version)| (name.to_string(), version.to_string()))
            .collect()
    }
}

/// `name: reason; name: reason`, cut where it gets too long.
fn nack_text(rejected: &[Rejected]) -> String {
    let mut text = String::new();
    for (index, Rejected { name, reason }) in rejected.iter().enumerate() {
        let part = format!("{name}: {reason}");
        if text.len() + part.len() > MAX_NACK {
            let cut: String = part
                .chars()
                .take(MAX_NACK.saturating_sub(text.len()) / 4)
                .collect();
            text.push_str(&cut);
            text.push_str(&format!("… and {} more", rejected.len() - index - 1));
            break;
        }
        if index > 0 {
            text.push_str("; ");
        }
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
mod tests;

//! The server's side of one delta discovery stream. Pure: requests and publications in, responses out.
//!
//! # Theory of operation
//! Per type the session knows what the client subscribed to and which version of each resource it
//! was sent. A request changes the former, a publication is compared with the latter. The protocol is
//! Envoy's incremental aggregated discovery.
//!
//! # Order
//! A publication goes out make-before-break: what refers to something is sent after it, and what is
//! referred to is removed last. For a node proxy that is policies before the workloads that name
//! them; for a waypoint clusters, endpoints, listeners.
//!
//! # On demand
//! A client that subscribes to everything and gives it back in its first request is one that asks for what it needs (istiod's
//! contract with node proxies). With a service it is sent the workloads behind it, and in any case those of its own node; all that it
//! was sent, or says that it has, stays subscribed until it gives it back.
//!
//! # Not done here
//! Repeating after a NACK: a refused resource is sent again when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use ambit_proto::type_url;
use prost_types::value::Kind;

use crate::publish::{Entry, Place, Published, Scope, Table};

/// Types one client may subscribe to. Ours use four, Envoy with extensions about ten.
const MAX_TYPES: usize = 32;

/// Names one client may subscribe to in one type: above the clusters of the largest meshes.
const MAX_NAMES: usize = 100_000;

/// The name that means all.
const WILDCARD: &str = "*";

/// One client's stream.
#[derive(Debug)]
pub struct Session {
    scope: Scope,
    types: BTreeMap<String, Subscription>,
    nonces: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Versions by resource name, as sent or as the client said it has.
    sent: BTreeMap<String, String>,
    /// The node of a client that asks for what it needs; empty when it did not say.
    on_demand: Option<String>,
}

/// A refusal of what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The type.
    pub type_url: String,
    /// What the client says: resource names with reasons.
    pub message: String,
}

/// What a request leads to.
#[derive(Debug, Default, PartialEq)]
pub struct Reaction {
    /// To send, in order.
    pub responses: Vec<DeltaDiscoveryResponse>,
    /// Set when the request refuses an earlier response.
    pub rejection: Option<Rejection>,
}

/// A client that does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaved {
    /// More types than any client has use for.
    #[error("subscribes to more than {MAX_TYPES} types")]
    Types,
    /// More names than any client has use for.
    #[error("subscribes to more than {MAX_NAMES} names")]
    Names,
}

/// Which half of a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    New,
    Gone,
    Both,
}

/// A publication to a node proxy, in order.
const NODE_STEPS: [(&str, Half); 4] = [
    (type_url::AUTHORIZATION, Half::New),
    (type_url::ADDRESS, Half::Both),
    (type_url::WORKLOAD, Half::Both),
    (type_url::AUTHORIZATION, Half::Gone),
];

/// A publication to a waypoint, in order.
const WAYPOINT_STEPS: [(&str, Half); 6] = [
    (type_url::WORKLOAD, Half::Both),
    (type_url::CLUSTER, Half::New),
    (type_url::ENDPOINT, Half::New),
    (type_url::LISTENER, Half::Both),
    (type_url::CLUSTER, Half::Gone),
    (type_url::ENDPOINT, Half::Gone),
];

impl Session {
    /// A new stream of a client with this view.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            types: BTreeMap::new(),
            nonces: 0,
        }
    }

    /// Takes one request.
    ///
    /// # Errors
    /// When the client must be cut off.
    pub fn request(
        &mut self,
        published: &Published,
        request: DeltaDiscoveryRequest,
    ) -> Result<Reaction, Misbehaved> {
        let type_url = request.type_url.clone();
        let rejection = request.error_detail.as_ref().map(|status| Rejection {
            type_url: type_url.clone(),
            message: status.message.clone(),
        });
        let first = !self.types.contains_key(&type_url);
        if first && self.types.len() >= MAX_TYPES {
            return Err(Misbehaved::Types);
        }
        let subscription = self.types.entry(type_url.clone()).or_default();
        let asked = subscription.change(first, request)?;
        if !first && asked.is_empty() {
            // An ACK, a NACK, or the end of interest in some names: there is nothing to say.
            return Ok(Reaction {
                responses: Vec::new(),
                rejection,
            });
        }
        let response = self.difference(published, &type_url, Half::Both, &asked, first);
        Ok(Reaction {
            responses: response.into_iter().collect(),
            rejection,
        })
    }

    /// Takes a publication: what this client does not have yet.
    pub fn publish(&mut self, published: &Published) -> Vec<DeltaDiscoveryResponse> {
        let steps: &[(&str, Half)] = match self.scope {
            Scope::Node => &NODE_STEPS,
            Scope::Waypoint(_) => &WAYPOINT_STEPS,
        };
        let mut responses = Vec::new();
        for (type_url, half) in steps {
            let response = self.difference(published, type_url, *half, &BTreeSet::new(), false);
            if let Some(response) = &response
                && *type_url == type_url::CLUSTER
            {
                self.forget_endpoints(response);
            }
            responses.extend(response);
        }
        responses
    }

    /// Types and names this client has, for dumps.
    pub fn held(&self) -> BTreeMap<String, usize> {
        self.types
            .iter()
            .map(|(type_url, held)| (type_url.clone(), held.sent.len()))
            .collect()
    }

    /// Envoy holds a changed cluster back until its endpoints come again.
    fn forget_endpoints(&mut self, clusters: &DeltaDiscoveryResponse) {
        if let Some(endpoints) = self.types.get_mut(type_url::ENDPOINT) {
            for cluster in &clusters.resources {
                endpoints.sent.remove(&cluster.name);
            }
        }
    }

    /// What the client lacks and what it has too much; `None` when nothing, unless `always`.
    /// A name of `asked` that does not exist is answered as removed.
    fn difference(
        &mut self,
        published: &Published,
        type_url: &str,
        half: Half,
        asked: &BTreeSet<String>,
        always: bool,
    ) -> Option<DeltaDiscoveryResponse> {
        let subscription = self.types.get_mut(type_url)?;
        let empty = Table::new();
        let table = published.table(&self.scope, type_url).unwrap_or(&empty);
        let mut response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        if !always {
            // Who asks again, by whatever name, wants it again.
            for (name, _) in asked.iter().filter_map(|name| find(table, name)) {
                subscription.sent.remove(name);
            }
        }
        if half != Half::Gone {
            response.resources = subscription.lacking(type_url, table);
        }
        if half != Half::New {
            response.removed_resources = subscription.too_much(table);
            let unknown = asked
                .iter()
                .filter(|name| *name != WILDCARD && find(table, name).is_none())
                .filter(|name| !response.removed_resources.contains(name));
            let unknown: Vec<String> = unknown.cloned().collect();
            response.removed_resources.extend(unknown);
        }
        let silent = response.resources.is_empty() && response.removed_resources.is_empty();
        if silent && !always {
            return None;
        }
        self.nonces += 1;
        response.nonce = self.nonces.to_string();
        Some(response)
    }
}

impl Subscription {
    /// Applies what the request says about names. Returns the names newly asked for.
    fn change(
        &mut self,
        first: bool,
        request: DeltaDiscoveryRequest,
    ) -> Result<BTreeSet<String>, Misbehaved> {
        let given_back = &request.resource_names_unsubscribe;
        let nothing = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        if first && nothing(&request.resource_names_subscribe) && nothing(given_back) {
            self.on_demand = Some(node_name(request.node.as_ref()));
            let held = request.initial_resource_versions.keys();
            self.names.extend(held.cloned());
        }
        if first {
            self.sent = request.initial_resource_versions;
        }
        let subscribe: BTreeSet<String> = request.resource_names_subscribe.into_iter().collect();
        let silent = subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
        self.wildcard |= (first && silent) || subscribe.contains(WILDCARD);
        for name in &subscribe {
            // Who asks again wants it again, unless it has just said what it has.
            if !first {
                self.sent.remove(name);
            }
            if name != WILDCARD {
                self.names.insert(name.clone());
            }
        }
        for name in &request.resource_names_unsubscribe {
            self.names.remove(name);
            self.sent.remove(name);
            if name == WILDCARD {
                // The client drops what it did not ask for by name.
                self.wildcard = false;
                self.sent.retain(|name, _| self.names.contains(name));
            }
        }
        if self.names.len() > MAX_NAMES || self.sent.len() > MAX_NAMES {
            return Err(Misbehaved::Names);
        }
        Ok(subscribe)
    }

    fn lacking(&mut self, type_url: &str, table: &Table) -> Vec<Resource> {
        let all = table.iter().filter(|_| self.wildcard);
        let named = self
            .names
            .iter()
            .filter(|_| !self.wildcard)
            .filter_map(|name| find(table, name));
        let mut wanted: BTreeMap<&String, &Arc<Entry>> = all.chain(named).collect();
        if let Some(node) = &self.on_demand {
            let along = |(name, entry): &(&String, &Arc<Entry>)| {
                let Place {
                    services,
                    node: its,
                } = &entry.place;
                let local = !its.is_empty() && its == node;
                local
                    || services.iter().any(|service| {
                        self.names.contains(service) || wanted.contains_key(&service)
                    })
                    || self.names.contains(*name)
            };
            let along: Vec<_> = table.iter().filter(along).collect();
            wanted.extend(along);
            self.names.extend(wanted.keys().map(|name| (*name).clone()));
        }
        let mut resources = Vec::new();
        for (name, entry) in wanted {
            if self.sent.get(name) != Some(&entry.version) {
                self.sent.insert(name.clone(), entry.version.clone());
                resources.push(resource(type_url, name, entry));
            }
        }
        resources
    }

    fn too_much(&mut self, table: &Table) -> Vec<String> {
        let gone: Vec<String> = self
            .sent
            .keys()
            .filter(|name| !table.contains_key(*name))
            .cloned()
            .collect();
        for name in &gone {
            self.sent.remove(name);
        }
        gone
    }
}

/// The node that a client says it is on.
fn node_name(node: Option<&Node>) -> String {
    let metadata = node.and_then(|node| node.metadata.as_ref());
    let name = metadata.and_then(|metadata| metadata.fields.get("NODE_NAME"));
    match name.and_then(|name| name.kind.as_ref()) {
        Some(Kind::StringValue(name)) => name.clone(),
        _ => String::new(),
    }
}

/// By name, else by alias.
fn find<'a>(table: &'a Table, name: &str) -> Option<(&'a String, &'a Arc<Entry>)> {
    table.get_key_value(name).or_else(|| {
        table
            .iter()
            .find(|(_, entry)| entry.aliases.iter().any(|alias| alias == name))
    })
}

fn resource(type_url: &str, name: &str, entry: &Entry) -> Resource {
    Resource {
        name: name.to_owned(),
        version: entry.version.clone(),
        aliases: entry.aliases.clone(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value: entry.payload.to_vec(),
        }),
        ..Resource::default()
    }
}

#[cfg(test)]
mod tests;

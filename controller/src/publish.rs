//! Resources as they are served: encoded, with a version by content.
//!
//! A version is a digest of the bytes, so it survives a restart, two controllers agree on it, and
//! what did not change is not sent again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ambit_objects::Name;
use ambit_proto::istio::workload::{Address, address};
use ambit_proto::type_url;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use prost::Message;

use crate::cluster::Cluster;
use crate::finding::Finding;
use crate::translate::Resources;

/// Bytes of the digest that make a version. Two versions of one resource have to differ, and 64 bits
/// make an accident there impossible in practice.
const VERSION_BYTES: usize = 8;

/// One resource as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Digest of `payload`.
    pub version: String,
    /// The message.
    pub payload: Bytes,
    /// Other names by which it can be asked for.
    pub aliases: Vec<String>,
    /// Of a workload: what else it comes along with.
    pub place: Place,
}

/// Where a workload belongs, as far as one is sent because of it to a client that asked for something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Names of the services that it is behind.
    pub services: Vec<String>,
    /// Its node; empty when it has none.
    pub node: String,
}

/// Resources of one type by name.
pub type Table = BTreeMap<String, Arc<Entry>>;

/// Whose view of the resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A node proxy: all workloads, services and policies.
    Node,
    /// A waypoint: the resources of this Gateway.
    Waypoint(Name),
}

/// Everything that is served at one moment.
#[derive(Debug)]
pub struct Published {
    /// The view it was made of.
    pub cluster: Cluster,
    /// What is wrong with the objects.
    pub findings: Vec<Finding>,
    addresses: Table,
    workloads: Table,
    authorizations: Table,
    waypoints: BTreeMap<Name, ByType>,
}

#[derive(Debug, Default)]
struct ByType {
    listeners: Table,
    clusters: Table,
    endpoints: Table,
}

/// What changed from one moment to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Resources that are new or different.
    pub changed: usize,
    /// Resources that are gone.
    pub removed: usize,
}

impl Published {
    /// Encodes `resources`. What is the same as in `before` shares its memory.
    pub fn new(cluster: Cluster, resources: Resources, before: Option<&Self>) -> Self {
        let empty = Table::new();
        let nothing = ByType::default();
        let mut addresses = Table::new();
        let mut workloads = Table::new();
        let (old_addresses, old_workloads, old_authorizations) = before
            .map_or((&empty, &empty, &empty), |before| {
                (&before.addresses, &before.workloads, &before.authorizations)
            });
        for (name, address) in &resources.addresses {
            let (aliases, place) = (aliases(address), place(address));
            if let Some(address::Type::Workload(workload)) = &address.r#type {
                let payload = workload.encode_to_vec().into();
                let entry = entry(old_workloads, name, payload, vec![], Place::default());
                workloads.insert(name.clone(), entry);
            }
            let payload = address.encode_to_vec().into();
            let entry = entry(old_addresses, name, payload, aliases, place);
            addresses.insert(name.clone(), entry);
        }
        let authorizations = resources
            .authorizations
            .iter()
            .map(|(name, policy)| {
                let payload = policy.encode_to_vec().into();
                (
                    name.clone(),
                    entry(old_authorizations, name, payload, vec![], Place::default()),
                )
            })
            .collect();
        let waypoints = resources
            .waypoints
            .into_iter()
            .map(|(name, waypoint)| {
                let old = before
                    .and_then(|before| before.waypoints.get(&name))
                    .unwrap_or(&nothing);
                let by_type = ByType {
                    listeners: table(&old.listeners, waypoint.listeners),
                    clusters: table(&old.clusters, waypoint.clusters),
                    endpoints: table(&old.endpoints, waypoint.endpoints),
                };
                (name, by_type)
            })
            .collect();
        let findings = resources.findings;
        Self {
            cluster,
            findings,
            addresses,
            workloads,
            authorizations,
            waypoints,
        }
    }

    /// Resources of one type in one view; `None` when that view has no such type.
    pub fn table(&self, scope: &Scope, type_url: &str) -> Option<&Table> {
        match (scope, type_url) {
            (Scope::Node, type_url::ADDRESS) => Some(&self.addresses),
            (Scope::Node, type_url::AUTHORIZATION) => Some(&self.authorizations),
            (Scope::Node | Scope::Waypoint(_), type_url::WORKLOAD) => Some(&self.workloads),
            (Scope::Waypoint(name), _) => {
                let waypoint = self.waypoints.get(name)?;
                match type_url {
                    type_url::LISTENER => Some(&waypoint.listeners),
                    type_url::CLUSTER => Some(&waypoint.clusters),
                    type_url::ENDPOINT => Some(&waypoint.endpoints),
                    _ => None,
                }
            }
            (Scope::Node, _) => None,
        }
    }

    /// What is different from `before`.
    pub fn difference(&self, before: &Self) -> Difference {
        let mut difference = Difference::default();
        difference.count(&self.addresses, &before.addresses);
        difference.count(&self.authorizations, &before.authorizations);
        let nothing = ByType::default();
        for (name, now) in &self.waypoints {
            difference.count_all(now, before.waypoints.get(name).unwrap_or(&nothing));
        }
        for (name, old) in &before.waypoints {
            if !self.waypoints.contains_key(name) {
                difference.count_all(&nothing, old);
            }
        }
        difference
    }

    /// Every table with the view it is in, for dumps.
    pub fn tables(&self) -> Vec<(String, &'static str, &Table)> {
        let node = "node".to_owned();
        let mut tables = vec![
            (node.clone(), type_url::ADDRESS, &self.addresses),
            (node, type_url::AUTHORIZATION, &self.authorizations),
        ];
        for (name, waypoint) in &self.waypoints {
            let view = format!("waypoint {name}");
            tables.push((view.clone(), type_url::CLUSTER, &waypoint.clusters));
            tables.push((view.clone(), type_url::ENDPOINT, &waypoint.endpoints));
            tables.push((view, type_url::LISTENER, &waypoint.listeners));
        }
        tables
    }
}

impl Difference {
    fn count(&mut self, now: &Table, before: &Table) {
        self.changed += now
            .iter()
            .filter(|(name, entry)| before.get(*name) != Some(*entry))
            .count();
        self.removed += before
            .keys()
            .filter(|name| !now.contains_key(*name))
            .count();
    }

    fn count_all(&mut self, now: &ByType, before: &ByType) {
        self.count(&now.listeners, &before.listeners);
        self.count(&now.clusters, &before.clusters);
        self.count(&now.endpoints, &before.endpoints);
    }

    /// Whether nothing changed.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

fn table(before: &Table, now: BTreeMap<String, Bytes>) -> Table {
    now.into_iter()
        .map(|(name, payload)| {
            let entry = entry(before, &name, payload, vec![], Place::default());
            (name, entry)
        })
        .collect()
}

fn entry(
    before: &Table,
    name: &str,
    payload: Bytes,
    aliases: Vec<String>,
    place: Place,
) -> Arc<Entry> {
    match before.get(name) {
        Some(old) if old.payload == payload && old.aliases == aliases => Arc::clone(old),
        _ => Arc::new(Entry {
            version: version(&payload),
            payload,
            aliases,
            // Both follow from the payload.
            place,
        }),
    }
}

fn place(address: &Address) -> Place {
    match &address.r#type {
        Some(address::Type::Workload(workload)) => Place {
            services: workload.services.keys().cloned().collect(),
            node: workload.node.clone(),
        },
        _ => Place::default(),
    }
}

fn version(payload: &[u8]) -> String {
    let digest = digest(&SHA256, payload);
    digest
        .as_ref()
        .iter()
        .take(VERSION_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// `network/ip` of every address, by which an on-demand client asks.
fn aliases(address: &Address) -> Vec<String> {
    let text = |network: &str, octets: &[u8]| {
        let ip: Option<IpAddr> = match octets.len() {
            4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        };
        ip.map(|ip| format!("{network}/{ip}"))
    };
    match &address.r#type {
        Some(address::Type::Workload(workload)) => workload
            .addresses
            .iter()
            .filter_map(|octets| text(&workload.network, octets))
            .collect(),
        Some(address::Type::Service(service)) => service
            .addresses
            .iter()
            .filter_map(|address| text(&address.network, &address.address))
            .collect(),
        None => Vec::new(),
    }
}

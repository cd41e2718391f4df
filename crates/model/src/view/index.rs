//! Persistent indexes with several candidates per key.

use std::borrow::Borrow;
use std::cmp::{Ordering, Reverse};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::service::Service;
use crate::text::Text;
use crate::view::Map;
use crate::workload::{Health, Protocol, Workload};

/// Candidates for one key, best first. Nearly always one.
type Group<T> = SmallVec<[Arc<T>; 1]>;

/// What can be a candidate.
pub(crate) trait Candidate {
    /// Total order, best first; equal only for the same object.
    fn order(&self, other: &Self) -> Ordering;

    /// Is it another version of the same object.
    fn same(&self, other: &Self) -> bool;
}

impl Candidate for Workload {
    fn order(&self, other: &Self) -> Ordering {
        fn rank(workload: &Workload) -> (Reverse<bool>, Reverse<bool>, Reverse<bool>, &str) {
            let tunnel = workload.protocol == Protocol::Hbone;
            let healthy = workload.health == Health::Healthy;
            (
                Reverse(workload.is_pod()),
                Reverse(tunnel),
                Reverse(healthy),
                &workload.uid,
            )
        }
        rank(self).cmp(&rank(other))
    }

    fn same(&self, other: &Self) -> bool {
        self.uid == other.uid
    }
}

impl Candidate for Service {
    fn order(&self, other: &Self) -> Ordering {
        (Reverse(self.canonical), &self.key).cmp(&(Reverse(other.canonical), &other.key))
    }

    fn same(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// A map of maps: the outer key is a network or a namespace, of which there are few.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Nested<K: Eq + Hash, T: PartialEq> {
    map: Map<Text, Map<K, Group<T>>>,
}

impl<K: Eq + Hash, T: PartialEq> Default for Nested<K, T> {
    fn default() -> Self {
        Self {
            map: Map::default(),
        }
    }
}

impl<K: Clone + Eq + Hash, T: Candidate + PartialEq> Nested<K, T> {
    /// The candidates, best first.
    pub(crate) fn get<Q>(&self, outer: &str, inner: &Q) -> &[Arc<T>]
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let group = self.map.get(outer).and_then(|map| map.get(inner));
        group.map(SmallVec::as_slice).unwrap_or_default()
    }

    pub(crate) fn insert(&mut self, outer: &Text, inner: &K, item: &Arc<T>) {
        self.change(outer, inner, |group| insert(group, item));
    }

    pub(crate) fn remove(&mut self, outer: &Text, inner: &K, item: &T) {
        self.change(outer, inner, |group| {
            group.retain(|other| !other.same(item))
        });
    }

    fn change(&mut self, outer: &Text, inner: &K, change: impl FnOnce(&mut Group<T>)) {
        if !self.map.contains_key(outer.as_str()) {
            self.map.insert_mut(outer.clone(), Map::default());
        }
        let Some(map) = self.map.get_mut(outer.as_str()) else {
            return;
        };
        let mut group = map.get(inner).cloned().unwrap_or_default();
        change(&mut group);
        if group.is_empty() {
            map.remove_mut(inner);
        } else {
            map.insert_mut(inner.clone(), group);
        }
        // An empty map left behind would make equal views compare unequal.
        if map.is_empty() {
            self.map.remove_mut(outer.as_str());
        }
    }
}

fn insert<T: Candidate>(group: &mut Group<T>, item: &Arc<T>) {
    group.retain(|other| !other.same(item));
    let place = group.partition_point(|other| other.order(item) == Ordering::Less);
    group.insert(place, Arc::clone(item));
}

/// Prefix length and address of a block; IPv4 and IPv6 never meet, since the address tells them apart.
type BlockKey = (u8, IpAddr);

/// Services by blocks of addresses. A lookup tries each prefix length in use.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Blocks {
    services: Nested<BlockKey, Service>,
    /// Network to how many blocks each prefix length has, by family.
    lengths: Map<Text, rpds::RedBlackTreeMapSync<(bool, u8), usize>>,
}

impl Blocks {
    /// The service whose block holds `address`, as a client of `namespace` sees it.
    pub(crate) fn find(
        &self,
        network: &str,
        address: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<Service>> {
        let lengths = self.lengths.get(network)?;
        let mut best = None;
        // From the shortest prefix to the longest: of equals the later, which is the longer, wins.
        for &(v6, length) in lengths.keys() {
            if v6 != address.is_ipv6() {
                continue;
            }
            let Ok(block) = IpNet::new(address, length) else {
                continue;
            };
            let candidates = self.services.get(network, &(length, block.network()));
            let Some(service) = super::preferred(candidates, namespace) else {
                continue;
            };
            let own = service.key.namespace == *namespace;
            best = match best {
                Some((best_own, found)) if best_own && !own => Some((best_own, found)),
                _ => Some((own, service)),
            };
        }
        best.map(|(_, service)| service)
    }

    pub(crate) fn insert(&mut self, network: &Text, block: IpNet, service: &Arc<Service>) {
        let key = (block.prefix_len(), block.network());
        self.services.insert(network, &key, service);
        self.count(network, block, |count| count.saturating_add(1));
    }

    /// Takes out a block that was put in for this service.
    pub(crate) fn remove(&mut self, network: &Text, block: IpNet, service: &Service) {
        let key = (block.prefix_len(), block.network());
        self.services.remove(network, &key, service);
        self.count(network, block, |count| count.saturating_sub(1));
    }

    fn count(&mut self, network: &Text, block: IpNet, change: impl FnOnce(usize) -> usize) {
        let key = (block.addr().is_ipv6(), block.prefix_len());
        let mut lengths = self
            .lengths
            .get(network.as_str())
            .cloned()
            .unwrap_or_default();
        match change(lengths.get(&key).copied().unwrap_or_default()) {
            0 => lengths.remove_mut(&key),
            count => {
                lengths.insert_mut(key, count);
                true
            }
        };
        if lengths.is_empty() {
            self.lengths.remove_mut(network.as_str());
        } else {
            self.lengths.insert_mut(network.clone(), lengths);
        }
    }
}

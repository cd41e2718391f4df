//! The endpoints of a cluster and the choice among them.
//!
//! # Theory of operation
//! An endpoint list is compiled once, when it changes: priorities get their share of the load as
//! Envoy computes it (health × 1.4, next priority takes what is missing, panic below the
//! threshold), unusable hosts are left out. A choice is then two random numbers and one comparison
//! of requests in flight. Loads survive a new list: an endpoint that stays the same keeps its
//! [`Endpoint`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::plan::Name;

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Balance {
    /// The less loaded of two chosen at random by weight.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random. Weights do not count (as in Envoy).
    Random,
}

/// One place that serves a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Address of the application: what we dial, or the authority of our CONNECT.
    pub address: SocketAddr,
    /// How to get there.
    pub transport: Transport,
    /// Relative weight, at least 1.
    pub weight: u32,
    /// Lower numbers are used first.
    pub priority: u32,
    /// As the control plane sees it.
    pub health: Health,
    /// Where it runs.
    pub locality: Option<Arc<Locality>>,
    /// Which workload it is, for metrics.
    pub workload: Option<Arc<WorkloadName>>,
    in_flight: AtomicU32,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// By CONNECT over mutual TLS to this address (the pod's node proxy, or its own waypoint).
    Hbone(SocketAddr),
    /// By plain TCP.
    Plain,
}

/// Health as the control plane sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Use it.
    Healthy,
    /// Use it only in a panic.
    Unhealthy,
    /// Finishing; use it only in a panic, and do not count it for one.
    Draining,
}

/// Where an endpoint runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Name,
    /// Zone.
    pub zone: Name,
    /// Sub zone.
    pub subzone: Name,
}

/// A workload's names, out of the endpoint's `istio.workload` metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadName {
    /// Workload name.
    pub name: Name,
    /// Namespace.
    pub namespace: Name,
    /// Canonical service.
    pub canonical_name: Name,
    /// Canonical revision.
    pub canonical_revision: Name,
    /// Cluster it runs in.
    pub cluster: Name,
}

impl Endpoint {
    /// An endpoint with weight 1, priority 0, healthy, without load.
    #[must_use]
    pub fn new(address: SocketAddr, transport: Transport) -> Self {
        Self {
            address,
            transport,
            weight: 1,
            priority: 0,
            health: Health::Healthy,
            locality: None,
            workload: None,
            in_flight: AtomicU32::new(0),
        }
    }

    /// Requests (or connections) in flight to it, over all threads.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Same place, same settings: the loads may be carried over.
    fn same(&self, other: &Self) -> bool {
        self.address == other.address
            && self.transport == other.transport
            && self.weight == other.weight
            && self.priority == other.priority
            && self.health == other.health
            && self.locality == other.locality
            && self.workload == other.workload
    }
}

/// A copy has no load of its own yet.
impl Clone for Endpoint {
    fn clone(&self) -> Self {
        Self {
            address: self.address,
            transport: self.transport,
            weight: self.weight,
            priority: self.priority,
            health: self.health,
            locality: self.locality.clone(),
            workload: self.workload.clone(),
            in_flight: AtomicU32::new(0),
        }
    }
}

/// A request in flight to an endpoint; ends when dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    /// Counts one more.
    #[must_use]
    pub fn begin(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Settings of the compilation of an endpoint list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Below this percentage of healthy hosts in a priority, all its hosts are used. 0 switches
    /// that off.
    pub panic_percent: u32,
    /// Percentage by which a priority's health counts more than it is.
    pub overprovisioning: u32,
}

impl Default for Spread {
    fn default() -> Self {
        // Envoy's defaults.
        Self {
            panic_percent: 50,
            overprovisioning: 140,
        }
    }
}

/// A compiled endpoint list. Immutable but for the loads and the turn.
#[derive(Debug, Default)]
pub struct Endpoints {
    all: Vec<Arc<Endpoint>>,
    tiers: Vec<Tier>,
    turn: AtomicUsize,
}

/// The usable hosts of one priority.
#[derive(Debug)]
struct Tier {
    /// Running sum of shares, out of 100.
    upto: u32,
    hosts: Vec<Arc<Endpoint>>,
    /// Running sum of weights.
    weights: Vec<u64>,
    /// All weights are the same.
    even: bool,
}

impl Endpoints {
    /// Compiles a list. Endpoints that `previous` has unchanged keep their load.
    #[must_use]
    pub fn new(list: Vec<Endpoint>, spread: Spread, previous: Option<&Self>) -> Self {
        let mut known: std::collections::HashMap<SocketAddr, &Arc<Endpoint>> = previous
            .into_iter()
            .flat_map(|previous| &previous.all)
            .map(|endpoint| (endpoint.address, endpoint))
            .collect();
        let all: Vec<Arc<Endpoint>> = list
            .into_iter()
            .map(|endpoint| match known.remove(&endpoint.address) {
                Some(old) if old.same(&endpoint) => Arc::clone(old),
                _ => Arc::new(endpoint),
            })
            .collect();
        let tiers = tiers(&all, spread);
        Self {
            all,
            tiers,
            turn: AtomicUsize::new(0),
        }
    }

    /// Every endpoint, usable or not, in the order given.
    #[must_use]
    pub fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// Chooses one that is not in `avoid` if `attempts` tries find one, else any. `None` if no
    /// endpoint is usable. Allocates nothing.
    pub fn choose(
        &self,
        balance: Balance,
        avoid: &[SocketAddr],
        attempts: u32,
        random: &mut impl FnMut() -> u64,
    ) -> Option<&Arc<Endpoint>> {
        let mut chosen = self.choose_once(balance, random)?;
        for _ in 0..attempts {
            if !avoid.contains(&chosen.address) {
                break;
            }
            chosen = self.choose_once(balance, random)?;
        }
        Some(chosen)
    }

    fn choose_once(
        &self,
        balance: Balance,
        random: &mut impl FnMut() -> u64,
    ) -> Option<&Arc<Endpoint>> {
        let tier = self.tier(random)?;
        match (balance, tier.hosts.as_slice()) {
            (_, []) => None,
            (_, [only]) => Some(only),
            (Balance::Random, hosts) => hosts.get(below(random(), hosts.len())),
            (Balance::RoundRobin, hosts) => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                if tier.even {
                    return hosts.get(turn % hosts.len().max(1));
                }
                // Multiples of the golden ratio visit every range in proportion to its length,
                // and far ones in turn.
                tier.by_weight((turn as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16)
            }
            (Balance::LeastRequest, _) => {
                let first = tier.by_weight(random())?;
                let second = tier.by_weight(random())?;
                Some(if second.load() < first.load() {
                    second
                } else {
                    first
                })
            }
        }
    }

    fn tier(&self, random: &mut impl FnMut() -> u64) -> Option<&Tier> {
        match self.tiers.as_slice() {
            [] => None,
            [only] => Some(only),
            many => {
                let total = many.last()?.upto;
                let point = u32::try_from(random() % u64::from(total.max(1))).unwrap_or(0);
                many.iter().find(|tier| point < tier.upto)
            }
        }
    }
}

impl Tier {
    fn by_weight(&self, random: u64) -> Option<&Arc<Endpoint>> {
        self.at_weight(random % self.weights.last().copied().unwrap_or(1).max(1))
    }

    fn at_weight(&self, point: u64) -> Option<&Arc<Endpoint>> {
        self.hosts
            .get(self.weights.partition_point(|sum| *sum <= point))
    }
}

fn below(random: u64, length: usize) -> usize {
    usize::try_from(random % (length.max(1) as u64)).unwrap_or(0)
}

/// Shares of the priorities, and the hosts that each uses.
fn tiers(all: &[Arc<Endpoint>], spread: Spread) -> Vec<Tier> {
    let mut priorities: Vec<u32> = all.iter().map(|endpoint| endpoint.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let groups: Vec<(Group, u32)> = priorities
        .iter()
        .map(|priority| {
            let group = Group::of(all.iter().filter(|e| e.priority == *priority));
            let health = group.health(spread.overprovisioning);
            (group, health)
        })
        .collect();
    let total: u32 = groups
        .iter()
        .map(|(_, health)| *health)
        .sum::<u32>()
        .min(100);
    if total == 0 {
        // Nothing is healthy anywhere: the first priority serves if panic is allowed.
        let all_hosts = groups
            .into_iter()
            .next()
            .filter(|_| spread.panic_percent > 0);
        return all_hosts
            .map(|(group, _)| Tier::of(100, group.everyone))
            .into_iter()
            .collect();
    }
    let mut out = Vec::new();
    let mut given = 0;
    for (group, health) in groups {
        // Health of all together below 100 is scaled up, so that the shares fill 100.
        let share = (health * 100 / total).min(100 - given);
        if share == 0 {
            continue;
        }
        given += share;
        let panics = total < 100 && group.healthy_percent() < spread.panic_percent;
        out.push(Tier::of(
            given,
            if panics {
                group.everyone
            } else {
                group.healthy
            },
        ));
    }
    out.retain(|tier| !tier.hosts.is_empty());
    out
}

#[derive(Default)]
struct Group {
    everyone: Vec<Arc<Endpoint>>,
    healthy: Vec<Arc<Endpoint>>,
    draining: usize,
}

impl Group {
    fn of<'a>(endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) -> Self {
        let mut group = Self::default();
        for endpoint in endpoints {
            group.everyone.push(Arc::clone(endpoint));
            match endpoint.health {
                Health::Healthy => group.healthy.push(Arc::clone(endpoint)),
                Health::Unhealthy => {}
                Health::Draining => group.draining += 1,
            }
        }
        group
    }

    /// Draining hosts are not counted: they neither serve nor fail.
    fn healthy_percent(&self) -> u32 {
        let counted = self.everyone.len().saturating_sub(self.draining);
        let percent = (self.healthy.len() * 100).checked_div(counted).unwrap_or(0);
        u32::try_from(percent).unwrap_or(100)
    }

    fn health(&self, overprovisioning: u32) -> u32 {
        (self.healthy_percent() * overprovisioning / 100).min(100)
    }
}

impl Tier {
    fn of(upto: u32, hosts: Vec<Arc<Endpoint>>) -> Self {
        let mut sum = 0;
        let weights = hosts
            .iter()
            .map(|host| {
                sum += u64::from(host.weight.max(1));
                sum
            })
            .collect();
        let even = hosts
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if a.weight == b.weight));
        Self {
            upto,
            hosts,
            weights,
            even,
        }
    }
}

#[cfg(test)]
mod tests;

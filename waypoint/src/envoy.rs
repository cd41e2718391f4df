//! Envoy resources → [`Plan`]. Pure: bytes in, plan or refusals out.
//!
//! # Theory of operation
//! [`Compiler`] keeps the compiled form of every accepted resource. An update compiles only the
//! resources in it; [`Compiler::plan`] then puts a whole new plan together out of shared parts.
//!
//! # What is refused
//! A resource with something that we do not understand is refused by name and path, and its previous
//! version stays; everything else of the update applies. Inside `main_internal`, which holds every
//! service, that holds for each filter chain by itself, so that one service's mistake does not
//! freeze the others: a refused chain stays as it was, or refuses its connections if it is new.
//!
//! Fields that cannot change what is allowed or where it goes are left out with a warning.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use prost::{Message, Name as _};

use crate::endpoints::{Endpoint, Endpoints, Spread};
use crate::envoy::assignment::Assignment;
use crate::envoy::at::{At, Compiled, Refusal};
use crate::envoy::cluster::{ClusterSpec, Role, Source};
use crate::envoy::listener::Main;
use crate::plan::{Cluster, Name, Plan, TunnelIn, TunnelOut, Upstream};

mod assignment;
mod at;
mod cluster;
mod dispatch;
mod http;
mod listener;
mod logging;
mod matching;
mod metrics;
mod route;
mod rules;
mod tls;
mod xds;

/// How many refusals of one resource are reported. A NACK is one message to people.
const REPORTED: usize = 8;

/// The three resource types that make a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// LDS.
    Listener,
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
}

impl Kind {
    /// The kind with this type URL.
    #[must_use]
    pub fn of(type_url: &str) -> Option<Self> {
        let kinds = [Self::Listener, Self::Cluster, Self::Endpoints];
        kinds.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// The type URL on the stream.
    #[must_use]
    pub fn type_url(self) -> String {
        match self {
            Self::Listener => Listener::type_url(),
            Self::Cluster => ProtoCluster::type_url(),
            Self::Endpoints => ClusterLoadAssignment::type_url(),
        }
    }
}

/// A refused resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Name of the resource.
    pub name: String,
    /// Paths and reasons.
    pub reason: String,
}

/// Compiled resources, and the plan that they make together.
#[derive(Debug, Default)]
pub struct Compiler {
    tunnel: Option<Arc<TunnelIn>>,
    onward: Arc<TunnelOut>,
    main: Main,
    specs: BTreeMap<Name, ClusterSpec>,
    lists: HashMap<Name, Arc<Assignment>>,
    built: HashMap<Name, Built>,
    version: u64,
    accepted: (bool, bool),
    warnings: RefCell<Vec<String>>,
}

/// A cluster in the plan, with what it was made of.
#[derive(Debug)]
struct Built {
    cluster: Arc<Cluster>,
    spec: ClusterSpec,
    list: Option<Arc<Assignment>>,
}

impl Compiler {
    /// Takes in one response: new or changed resources by name, and the names of removed ones. Good
    /// resources apply even if others are refused.
    pub fn update<'a>(
        &mut self,
        kind: Kind,
        changed: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        removed: impl IntoIterator<Item = &'a str>,
    ) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for (name, payload) in changed {
            let mut refused = Vec::new();
            if let Err(refusal) = self.one(kind, name, payload, &mut refused) {
                refused.push(refusal);
            }
            if refused.is_empty() {
                continue;
            }
            let more = refused.len().saturating_sub(REPORTED);
            let mut reason = refused
                .iter()
                .take(REPORTED)
                .map(Refusal::to_string)
                .collect::<Vec<_>>()
                .join("; ");
            if more > 0 {
                reason.push_str(&format!("; and {more} more"));
            }
            rejected.push(Rejected {
                name: name.to_owned(),
                reason,
            });
        }
        for name in removed {
            self.remove(kind, name);
        }
        if rejected.is_empty() {
            match kind {
                Kind::Cluster => self.accepted.0 = true,
                Kind::Listener => self.accepted.1 = true,
                Kind::Endpoints => {}
            }
        }
        rejected
    }

    fn one(
        &mut self,
        kind: Kind,
        name: &str,
        payload: &[u8],
        refused: &mut Vec<Refusal>,
    ) -> Compiled<()> {
        let warnings = RefCell::take(&self.warnings);
        let warnings = RefCell::new(warnings);
        let at = At::root(name, &warnings);
        let done = self.compile(kind, name, payload, refused, &at);
        self.warnings = RefCell::new(warnings.take());
        done
    }

    fn compile(
        &mut self,
        kind: Kind,
        name: &str,
        payload: &[u8],
        refused: &mut Vec<Refusal>,
        at: &At<'_>,
    ) -> Compiled<()> {
        match kind {
            Kind::Listener => {
                let proto: Listener = parse(payload, at)?;
                same_name(&proto.name, name, at)?;
                self.listener(name, proto, refused, at)
            }
            Kind::Cluster => {
                let proto: ProtoCluster = parse(payload, at)?;
                same_name(&proto.name, name, at)?;
                self.cluster(proto, at)
            }
            Kind::Endpoints => {
                let proto: ClusterLoadAssignment = parse(payload, at)?;
                same_name(&proto.cluster_name, name, at)?;
                let list = assignment::assignment(proto, at)?;
                self.lists.insert(Name::from(name), Arc::new(list));
                Ok(())
            }
        }
    }

    fn listener(
        &mut self,
        name: &str,
        proto: Listener,
        refused: &mut Vec<Refusal>,
        at: &At<'_>,
    ) -> Compiled<()> {
        match name {
            "connect_terminate" => {
                self.tunnel = Some(Arc::new(listener::connect_terminate(&proto, at)?));
            }
            "main_internal" => {
                self.main = listener::main_internal(proto, &self.main, refused, at)?;
            }
            "connect_originate" => listener::connect_originate(&proto, at)?,
            _ => return Err(at.refuse("is no listener of a waypoint")),
        }
        Ok(())
    }

    fn cluster(&mut self, proto: ProtoCluster, at: &At<'_>) -> Compiled<()> {
        match cluster::cluster(proto, at)? {
            Role::Joint => {}
            Role::Onward(onward) => self.onward = Arc::new(onward),
            Role::Service(spec, inline) => {
                if let Some(list) = inline {
                    self.lists.insert(Arc::clone(&spec.name), Arc::new(list));
                }
                self.specs.insert(Arc::clone(&spec.name), *spec);
            }
        }
        Ok(())
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        match (kind, name) {
            (Kind::Listener, "connect_terminate") => self.tunnel = None,
            (Kind::Listener, "main_internal") => self.main = Main::default(),
            (Kind::Listener, _) => {}
            (Kind::Cluster, "connect_originate") => self.onward = Arc::default(),
            (Kind::Cluster, name) => {
                self.built.remove(name);
                if let Some(spec) = self.specs.remove(name) {
                    let list = match &spec.source {
                        Source::Listed(list) => list,
                        Source::Inline | Source::OriginalDestination => &spec.name,
                    };
                    self.lists.remove(list);
                }
            }
            (Kind::Endpoints, name) => {
                self.lists.remove(name);
            }
        }
    }

    /// Names of the endpoint lists that the clusters need, in order.
    #[must_use]
    pub fn endpoint_lists(&self) -> Vec<String> {
        let names = self.specs.values().filter_map(|spec| match &spec.source {
            Source::Listed(name) => Some(name.to_string()),
            Source::Inline | Source::OriginalDestination => None,
        });
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether clusters and listeners have each been accepted whole at least once, and tunnels can
    /// be accepted.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.accepted.0 && self.accepted.1 && self.tunnel.is_some()
    }

    /// Takes the warnings gathered since the last call.
    pub fn warnings(&mut self) -> Vec<String> {
        self.warnings.take()
    }

    /// Puts together the plan of everything accepted so far.
    #[must_use]
    pub fn plan(&mut self) -> Plan {
        self.version += 1;
        let mut clusters = HashMap::with_capacity(self.specs.len());
        for (name, spec) in &self.specs {
            let list = match &spec.source {
                Source::Listed(list) => self.lists.get(list),
                Source::Inline => self.lists.get(name),
                Source::OriginalDestination => None,
            };
            let previous = self.built.get(name);
            let built = match previous {
                Some(built) if built.spec == *spec && same(built.list.as_ref(), list) => {
                    Some(Arc::clone(&built.cluster))
                }
                _ => build(spec, list, previous.map(|built| &*built.cluster)),
            };
            // A new cluster is warm once its endpoints are known; a changed one goes on as it was.
            if let Some(cluster) = built.or_else(|| previous.map(|b| Arc::clone(&b.cluster))) {
                let list = list.cloned();
                let built = Built {
                    cluster: Arc::clone(&cluster),
                    spec: spec.clone(),
                    list,
                };
                self.built.insert(Arc::clone(name), built);
                clusters.insert(Arc::clone(name), cluster);
            }
        }
        Plan {
            version: self.version,
            tunnel: self.tunnel.clone(),
            onward: Arc::clone(&self.onward),
            dispatch: Arc::clone(&self.main.dispatch),
            clusters: Arc::new(clusters),
        }
    }
}

fn parse<M: Message + Default>(payload: &[u8], at: &At<'_>) -> Compiled<M> {
    M::decode(payload).map_err(|error| at.refuse(format_args!("does not decode: {error}")))
}

/// A resource under another name than its own could never be replaced or removed.
fn same_name(inside: &str, outside: &str, at: &At<'_>) -> Compiled<()> {
    if inside == outside {
        return Ok(());
    }
    Err(at.refuse(format_args!("calls itself {inside:?}")))
}

fn same(a: Option<&Arc<Assignment>>, b: Option<&Arc<Assignment>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// `None`: its endpoints are not known yet.
fn build(
    spec: &ClusterSpec,
    list: Option<&Arc<Assignment>>,
    previous: Option<&Cluster>,
) -> Option<Arc<Cluster>> {
    let upstream = match spec.source {
        Source::OriginalDestination => Upstream::OriginalDestination,
        Source::Listed(_) | Source::Inline => {
            let previous = previous.and_then(|cluster| match &cluster.upstream {
                Upstream::Endpoints(endpoints) => Some(&**endpoints),
                Upstream::OriginalDestination => None,
            });
            let list = list?;
            let mut spread = spec.spread;
            spread.overprovisioning = list.overprovisioning.unwrap_or(spread.overprovisioning);
            Upstream::Endpoints(Arc::new(endpoints(
                list,
                spec.weigh_localities,
                spread,
                previous,
            )))
        }
    };
    Some(Arc::new(Cluster {
        name: Arc::clone(&spec.name),
        service: spec.service.clone(),
        subset: spec.subset.clone(),
        protocol: spec.protocol,
        connect_timeout: spec.connect_timeout,
        limits: spec.limits,
        balance: spec.balance,
        upstream,
        max_requests_per_connection: spec.max_requests_per_connection,
        idle_timeout: spec.idle_timeout,
    }))
}

/// With localities weighed, a locality's weight is shared out among its endpoints.
fn endpoints(
    list: &Assignment,
    weigh: bool,
    spread: Spread,
    previous: Option<&Endpoints>,
) -> Endpoints {
    let mut sums: HashMap<_, u64> = HashMap::new();
    for placed in &list.endpoints {
        let key = (&placed.endpoint.locality, placed.endpoint.priority);
        *sums.entry(key).or_default() += u64::from(placed.endpoint.weight);
    }
    let scaled = |placed: &assignment::Placed| -> Option<Endpoint> {
        let mut endpoint = placed.endpoint.clone();
        if weigh {
            let key = (&placed.endpoint.locality, placed.endpoint.priority);
            let sum = sums.get(&key).copied().unwrap_or(1).max(1);
            // Fixed point: a thousandth of the smallest weight is fine enough.
            let share = u64::from(endpoint.weight) * u64::from(placed.locality_weight) * 1000 / sum;
            endpoint.weight = u32::try_from(share).unwrap_or(u32::MAX);
            // A locality of weight 0 gets nothing.
            if placed.locality_weight == 0 {
                return None;
            }
            endpoint.weight = endpoint.weight.max(1);
        }
        Some(endpoint)
    };
    Endpoints::new(
        list.endpoints.iter().filter_map(scaled).collect(),
        spread,
        previous,
    )
}

#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

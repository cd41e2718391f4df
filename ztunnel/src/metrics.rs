//! What the node proxy counts, and how one connection finds its counters.
//!
//! # Theory of operation
//! A label set is looked up in the registry once, under the registry's lock; the data threads must
//! not take that lock for each connection. So every thread keeps the handles it used lately, by
//! the identity of the records they were made from. A view change makes new records and thereby
//! new keys; handles that were not used for a sweep are let go, so that the registry can expire
//! them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use ambit_model::service::Service;
use ambit_model::view::View;
use ambit_model::workload::Workload;
use ambit_observe::access::AccessLog;
use ambit_observe::metrics::{Descriptor, Family, Handle, Kind, Registry};
use ambit_observe::traffic::{Reporter, Tcp};

use crate::names::Named;
use crate::verdict::{Tried, Tries};

ambit_observe::series! {
    /// Sockets, by the side that has them.
    pub struct Sockets {
        /// Connections being relayed.
        open: Gauge = ("istio_tcp_sockets_open", "Connections open now (unstable)."),
    }
}

ambit_observe::series! {
    /// Pods of this node.
    pub struct Pods {
        /// Served.
        active: Gauge = ("workload_manager_active_proxy_count", "The total number current workloads with active proxies (unstable)."),
        /// Wanted, not served yet.
        pending: Gauge = ("workload_manager_pending_proxy_count", "The total number current workloads with pending proxies (unstable)."),
        /// Ever started.
        started: Counter = ("workload_manager_proxies_started", "The total number of proxies that were started (unstable)."),
        /// Ever stopped.
        stopped: Counter = ("workload_manager_proxies_stopped", "The total number of proxies that were stopped (unstable)."),
    }
}

ambit_observe::series! {
    /// What came of revocation lists, by the side that asked.
    pub struct Revocations {
        /// Handshakes refused and tunnels ended.
        rejected: Counter = ("istio_crl_policy_rejections", "Handshakes refused and tunnels ended because the peer's certificate was revoked (unstable)."),
    }
}

/// Every family. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Connections.
    pub tcp: Family<Tcp>,
    /// Open sockets.
    pub sockets: Family<Sockets>,
    /// Revoked peers.
    pub revocations: Family<Revocations>,
    /// Pods.
    pub pods: Handle<Pods>,
    /// DNS.
    pub dns: crate::dns::metrics::Families,
    /// Dry-run policies.
    pub tries: Family<Tries>,
    /// Names that were resolved.
    pub names: Family<Named>,
}

impl Metrics {
    /// Counts `peers` refused, or cut off, because their certificates were revoked.
    pub fn revoked(&self, reporter: Reporter, peers: usize) {
        if peers > 0 {
            let side = reporter.as_str();
            let counted = self
                .revocations
                .resolve(|labels| labels.closed("reporter", side));
            counted
                .rejected
                .add(u64::try_from(peers).unwrap_or(u64::MAX));
        }
    }

    /// Registers every family.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            tcp: registry.family(),
            sockets: registry.family(),
            revocations: registry.family(),
            pods: registry.single(),
            dns: crate::dns::metrics::Families::new(registry),
            tries: Tried::register(registry),
            names: registry.family(),
        }
    }
}

/// Adds the number of policies that were not wholly understood. They refuse more than was meant, so somebody
/// should look: `config_dump` names them.
pub fn register_policies(
    registry: &Registry,
    view: impl Fn() -> Arc<View> + Send + Sync + 'static,
) {
    let descriptor = Descriptor {
        name: "ambit_policies_not_understood",
        help: "Policies in force with fields or values that are not known, which therefore refuse more (unstable).",
        kind: Kind::Gauge,
    };
    registry.computed(descriptor, move || {
        let view = view();
        let troubled = view
            .policies()
            .filter(|policy| !policy.problems().is_empty());
        Some(u32::try_from(troubled.count()).map_or(f64::from(u32::MAX), f64::from))
    });
}

/// Handles that one thread keeps at most. Beyond it all are let go and found again: a node with
/// that many pairs of workloads in one minute pays a lock for some of its connections.
const MOST: usize = 4096;

/// By what a handle is found again: the records it was made from, by address. The entry holds
/// the records, so an address cannot come to mean another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    reporter: &'static str,
    source: *const Workload,
    destination: *const Workload,
    service: *const Service,
    flag: &'static str,
    mutual_tls: bool,
}

/// The records that make a label set.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Client.
    pub source: Option<Arc<Workload>>,
    /// Server.
    pub destination: Option<Arc<Workload>>,
    /// Service.
    pub service: Option<Arc<Service>>,
}

struct Kept {
    handle: Handle<Tcp>,
    _records: Records,
    used: bool,
}

/// What one data thread reports through.
pub struct Telemetry {
    /// The families.
    pub metrics: Metrics,
    /// Where records go.
    pub access: AccessLog,
    /// Open sockets of outbound connections.
    pub outbound_sockets: Handle<Sockets>,
    /// Open sockets of inbound connections.
    pub inbound_sockets: Handle<Sockets>,
    /// Dry-run policies.
    pub tried: Tried,
    kept: RefCell<HashMap<Key, Kept>>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry")
            .field("kept", &self.kept.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Reports through these.
    #[must_use]
    pub fn new(metrics: Metrics, access: AccessLog) -> Self {
        let sockets = |reporter: Reporter| {
            metrics
                .sockets
                .resolve(|labels| labels.closed("reporter", reporter.as_str()))
        };
        Self {
            outbound_sockets: sockets(Reporter::Source),
            inbound_sockets: sockets(Reporter::Destination),
            tried: Tried::new(metrics.tries.clone()),
            metrics,
            access,
            kept: RefCell::default(),
        }
    }

    /// The counters for `records`, as `find` resolves them where they are not kept.
    pub fn counters(
        &self,
        reporter: Reporter,
        records: &Records,
        flag: &'static str,
        mutual_tls: bool,
        find: impl FnOnce(&Family<Tcp>) -> Handle<Tcp>,
    ) -> Handle<Tcp> {
        let key = Key {
            reporter: reporter.as_str(),
            source: address(records.source.as_ref()),
            destination: address(records.destination.as_ref()),
            service: address(records.service.as_ref()),
            flag,
            mutual_tls,
        };
        let mut kept = self.kept.borrow_mut();
        if let Some(entry) = kept.get_mut(&key) {
            entry.used = true;
            return entry.handle.clone();
        }
        let handle = find(&self.metrics.tcp);
        if kept.len() >= MOST {
            kept.clear();
        }
        let entry = Kept {
            handle: handle.clone(),
            _records: records.clone(),
            used: true,
        };
        kept.insert(key, entry);
        handle
    }

    /// Lets go of handles that were not used since the last sweep.
    pub fn sweep(&self) {
        self.kept
            .borrow_mut()
            .retain(|_, entry| std::mem::take(&mut entry.used));
        self.tried.sweep();
    }
}

fn address<T>(record: Option<&Arc<T>>) -> *const T {
    record.map_or(std::ptr::null(), Arc::as_ptr)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambit_model::policy::{Action, Policy, PolicyKey, Scope};
    use ambit_model::update::{Change, apply};
    use ambit_model::view::View;
    use ambit_observe::metrics::{Format, Registry};

    use super::register_policies;

    #[test]
    fn policies_that_are_not_understood_are_counted() {
        let policy = |name: &str, not_understood: &[&str]| {
            Change::UpsertPolicy(Policy {
                key: PolicyKey::new("shop", name),
                scope: Scope::Namespace,
                action: Action::Deny,
                dry_run: false,
                rules: Vec::new(),
                not_understood: not_understood.iter().map(|&field| field.into()).collect(),
            })
        };
        let view = apply(
            &View::default(),
            [policy("a", &["field 9"]), policy("b", &[])],
        );
        let view = Arc::new(view);
        let registry = Registry::default();
        register_policies(&registry, move || Arc::clone(&view));
        let page = registry.render(Format::Text);
        assert!(page.contains("ambit_policies_not_understood 1\n"), "{page}");
    }
}

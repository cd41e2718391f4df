//! What people are shown about the pods of this node: the answer of `/debug/pods`, and the gauges.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_net::netns::NetnsId;
use ambit_observe::metrics::{Descriptor, Handle, Kind, Registry};
use parking_lot::Mutex;
use serde::Serialize;

use crate::pod::Wish;
use crate::pod::plan::{Announced, Facts, InForce, Want};

ambit_observe::series! {
    /// What the agent counts.
    pub struct Counts {
        /// Steps that failed and were tried again.
        failures: Counter = ("nodeagent_reconcile_failures", "Steps for pods that failed and are tried again."),
        /// Rule sets that were changed by somebody and put back.
        mended: Counter = ("nodeagent_rules_mended", "Redirection rules that somebody changed and the agent put back."),
    }
}

/// Where a pod is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not in the mesh, and nothing is left to undo.
    Out,
    /// On its way in.
    Enrolling,
    /// In the mesh: redirected, served, announced.
    Enrolled,
    /// On its way out.
    Leaving,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    namespace: String,
    name: String,
    uid: String,
    service_account: String,
    addresses: Vec<String>,
    /// Whether it is to be in the mesh.
    wanted: bool,
    why: String,
    state: Phase,
    rules: &'static str,
    proxy: &'static str,
    announced: &'static str,
    netns_path: Option<String>,
    netns: Option<String>,
    last_error: Option<String>,
    mended: u64,
}

/// The reports of all pods. Clones share them.
#[derive(Debug, Clone)]
pub struct Reports {
    pods: Arc<Mutex<BTreeMap<String, Report>>>,
    counts: Handle<Counts>,
}

impl Reports {
    /// No pods yet; registers the metrics.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let reports = Self {
            pods: Arc::default(),
            counts: registry.single::<Counts>(),
        };
        let gauge = |name, help, counted: fn(&Report) -> bool| {
            let pods = Arc::clone(&reports.pods);
            let value = move || {
                let count = pods
                    .lock()
                    .values()
                    .filter(|report| counted(report))
                    .count();
                Some(f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
            };
            registry.computed(
                Descriptor {
                    name,
                    help,
                    kind: Kind::Gauge,
                },
                value,
            );
        };
        gauge(
            "nodeagent_pods_wanted",
            "Pods of this node that are to be in the mesh.",
            |report| report.wanted,
        );
        gauge(
            "nodeagent_pods_enrolled",
            "Pods of this node that are in the mesh.",
            |report| report.state == Phase::Enrolled,
        );
        gauge(
            "nodeagent_pods_without_namespace",
            "Pods of this node that are to be in the mesh and name no network namespace.",
            |report| report.wanted && report.netns_path.is_none(),
        );
        gauge(
            "nodeagent_pods_failing",
            "Pods of this node whose last step failed.",
            |report| report.last_error.is_some(),
        );
        reports
    }

    /// The pods as JSON values, by namespace and name.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut reports: Vec<Report> = self.pods.lock().values().cloned().collect();
        reports.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        serde_json::to_value(reports).unwrap_or_default()
    }

    pub(crate) fn wish(&self, wish: &Wish, facts: &Facts) {
        let mut pods = self.pods.lock();
        let before = pods.get(&wish.uid);
        let report = Report {
            namespace: wish.name.namespace.clone(),
            name: wish.name.name.clone(),
            uid: wish.uid.clone(),
            service_account: wish.identity.service_account.clone(),
            addresses: wish.addresses.iter().map(ToString::to_string).collect(),
            wanted: wish.want == Want::In,
            why: wish.why.clone(),
            state: before.map_or(Phase::Out, |report| report.state),
            rules: rules(facts),
            proxy: proxy(facts),
            announced: announced(facts),
            netns_path: wish.netns.as_ref().map(|path| path.display().to_string()),
            netns: before.and_then(|report| report.netns.clone()),
            last_error: before.and_then(|report| report.last_error.clone()),
            mended: before.map_or(0, |report| report.mended),
        };
        pods.insert(wish.uid.clone(), report);
    }

    pub(crate) fn facts(&self, uid: &str, facts: &Facts) {
        self.change(uid, |report| {
            (report.rules, report.proxy, report.announced) =
                (rules(facts), proxy(facts), announced(facts));
            report.last_error = None;
        });
    }

    pub(crate) fn phase(&self, uid: &str, phase: Phase) {
        self.change(uid, |report| report.state = phase);
    }

    pub(crate) fn namespace(&self, uid: &str, id: Option<NetnsId>) {
        self.change(uid, |report| report.netns = id.map(|id| id.to_string()));
    }

    pub(crate) fn failed(&self, uid: &str, error: &str) {
        self.counts.failures.inc();
        self.change(uid, |report| report.last_error = Some(error.to_owned()));
    }

    pub(crate) fn recovered(&self, uid: &str) {
        self.change(uid, |report| report.last_error = None);
    }

    pub(crate) fn mended(&self, uid: &str) {
        self.counts.mended.inc();
        self.change(uid, |report| report.mended += 1);
    }

    pub(crate) fn remove(&self, uid: &str) {
        self.pods.lock().remove(uid);
    }

    fn change(&self, uid: &str, with: impl FnOnce(&mut Report)) {
        if let Some(report) = self.pods.lock().get_mut(uid) {
            with(report);
        }
    }
}

const fn rules(facts: &Facts) -> &'static str {
    match facts.rules {
        InForce::Nothing => "none",
        InForce::Capture => "capture",
        InForce::Drain => "drain",
    }
}

const fn proxy(facts: &Facts) -> &'static str {
    if facts.served { "serves" } else { "none" }
}

const fn announced(facts: &Facts) -> &'static str {
    match facts.announced {
        Announced::Nothing => "no",
        Announced::Pending => "pending",
        Announced::Enabled => "enabled",
    }
}

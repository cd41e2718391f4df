//! What the control plane says, put in force.
//!
//! One handler, on the control runtime, owns the compiler; it publishes plans and views behind atomic
//! pointers, which is all that data threads ever see of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ambit_model::intern::Interned;
use ambit_model::update::apply;
use ambit_model::view::View;
use ambit_proto::type_url;
use ambit_runtime::ready::Gate;
use ambit_xds::{Handler, Rejected, Update, decode};
use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::envoy::{Compiler, Kind};
use crate::plan::Plan;

/// What was refused last, by type and resource name: for the admin page.
pub type Refusals = Arc<Mutex<BTreeMap<(String, String), String>>>;

/// Refusals kept for people. More than anybody reads.
const MAX_REFUSALS: usize = 256;

/// What data threads read.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// What to do.
    pub plan: Arc<ArcSwap<Plan>>,
    /// Who is who.
    pub view: Arc<ArcSwap<View>>,
    /// What was refused and is still so.
    pub refusals: Refusals,
}

/// The handler of all resource types of a waypoint.
#[derive(Debug)]
pub struct Discovery {
    compiler: Compiler,
    interned: Interned,
    published: Published,
    ready: Option<Gate>,
}

impl Discovery {
    /// Nothing received yet. `ready` is opened when listeners and clusters were each accepted once.
    pub fn new(published: Published, ready: Gate) -> Self {
        Self {
            compiler: Compiler::default(),
            interned: Interned::default(),
            published,
            ready: Some(ready),
        }
    }

    fn resources(&mut self, kind: Kind, update: &Update) -> Vec<Rejected> {
        let changed = update
            .resources
            .iter()
            .map(|one| (one.name.as_str(), &*one.payload));
        let removed = update.removed.iter().map(String::as_str);
        let rejected = self.compiler.update(kind, changed, removed);
        for warning in self.compiler.warnings() {
            tracing::warn!(warning, "part of a resource is left out");
        }
        let plan = self.compiler.plan();
        tracing::info!(version = plan.version, kind = ?kind, resources = update.resources.len(),
            removed = update.removed.len(), rejected = rejected.len(), "plan replaced");
        self.published.plan.store(Arc::new(plan));
        if self.compiler.ready()
            && let Some(gate) = self.ready.take()
        {
            gate.open();
        }
        let rejected = rejected.into_iter();
        rejected
            .map(|one| Rejected {
                name: one.name,
                reason: one.reason,
            })
            .collect()
    }

    fn workloads(&mut self, update: Update) -> Vec<Rejected> {
        let (changes, rejected) = decode::changes(update, &mut self.interned);
        let view = apply(&self.published.view.load(), changes);
        self.published.view.store(Arc::new(view));
        rejected
    }

    fn remember(&self, type_url: &str, names: &BTreeSet<String>, rejected: &[Rejected]) {
        let mut refusals = self.published.refusals.lock();
        refusals.retain(|(of, name), _| of != type_url || !names.contains(name));
        for one in rejected {
            tracing::warn!(
                type_url,
                name = one.name,
                reason = one.reason,
                "resource refused"
            );
            if refusals.len() < MAX_REFUSALS {
                refusals.insert((type_url.to_owned(), one.name.clone()), one.reason.clone());
            }
        }
    }
}

impl Handler for Discovery {
    fn update(&mut self, update: Update) -> Vec<Rejected> {
        let type_url = update.type_url.clone();
        let names = update.resources.iter().map(|one| one.name.to_string());
        let names: BTreeSet<String> = names.chain(update.removed.iter().cloned()).collect();
        let rejected = match Kind::of(&type_url) {
            Some(kind) => self.resources(kind, &update),
            None if type_url == type_url::WORKLOAD => self.workloads(update),
            // Never asked for.
            None => Vec::new(),
        };
        self.remember(&type_url, &names, &rejected);
        rejected
    }

    fn wanted(&self, type_url: &str) -> Option<BTreeSet<String>> {
        let endpoints = Kind::of(type_url) == Some(Kind::Endpoints);
        endpoints.then(|| self.compiler.endpoint_lists().into_iter().collect())
    }
}

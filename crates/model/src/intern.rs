//! What records repeat, kept once.
//!
//! # Theory of operation
//!
//! The pods of a deployment say the same of themselves but for their own name, address and node, and those of a namespace or a node
//! name it again and again. Records go through an [`Interned`] on their way from the wire into the view: what it has seen before is
//! replaced by the one it keeps. It does not change what a record says, so nothing depends on it but memory.
//!
//! # Invariants
//!
//! What nobody but the table holds any more is let go: the table is never more than twice as large as what was in use when it
//! was last swept, and a sweep costs no more than the insertions since then.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

use crate::address::{GatewayAddress, GatewayDestination};
use crate::service::{Service, ServiceKey};
use crate::text::Text;
use crate::update::Change;
use crate::workload::Template;

/// Entries below which a table is not swept: what that many hold is no memory to speak of.
const SMALL: usize = 1024;

/// Texts and templates that records share. For the one that decodes them.
#[derive(Debug, Default)]
pub struct Interned {
    texts: Table<Text>,
    templates: Table<Arc<Template>>,
}

impl Interned {
    /// Makes a record share what others had, too.
    pub fn change(&mut self, change: &mut Change) {
        match change {
            Change::UpsertWorkload(workload) => {
                self.text(&mut workload.node);
                self.template(&mut workload.template);
            }
            Change::UpsertService(service) => self.service(service),
            Change::UpsertPolicy(_) | Change::RemoveAddress(_) | Change::RemovePolicy(_) => {}
        }
    }

    fn text(&mut self, text: &mut Text) {
        // The empty one is kept once as it is.
        if text.is_empty() {
            return;
        }
        match self.texts.get(text.as_str()) {
            Some(known) => *text = known,
            None => self.texts.insert(text.clone(), Text::is_alone),
        }
    }

    fn template(&mut self, template: &mut Arc<Template>) {
        if let Some(known) = self.templates.get(&**template) {
            *template = known;
            return;
        }
        let own = Arc::make_mut(template);
        for text in [
            &mut own.namespace,
            own.identity.text_mut(),
            &mut own.hostname,
            &mut own.network,
            &mut own.canonical_name,
            &mut own.canonical_revision,
            &mut own.workload_name,
            &mut own.cluster,
            &mut own.locality.region,
            &mut own.locality.zone,
            &mut own.locality.subzone,
        ] {
            self.text(text);
        }
        for gateway in [&mut own.waypoint, &mut own.network_gateway] {
            gateway.iter_mut().for_each(|gateway| self.gateway(gateway));
        }
        own.services.keys_mut().for_each(|key| self.key(key));
        for policy in &mut own.policies {
            self.text(&mut policy.namespace);
            self.text(&mut policy.name);
        }
        own.policies.shrink_to_fit();
        let unused = |template: &Arc<Template>| Arc::strong_count(template) == 1;
        self.templates.insert(Arc::clone(template), unused);
    }

    fn service(&mut self, service: &mut Service) {
        self.key(&mut service.key);
        self.text(&mut service.name);
        for vip in &mut service.vips {
            self.text(&mut vip.network);
        }
        service
            .waypoint
            .iter_mut()
            .for_each(|gateway| self.gateway(gateway));
        for weighted in &mut service.weighted_waypoints {
            self.gateway(&mut weighted.destination);
        }
    }

    fn key(&mut self, key: &mut ServiceKey) {
        self.text(&mut key.namespace);
        self.text(&mut key.hostname);
    }

    fn gateway(&mut self, gateway: &mut GatewayAddress) {
        match &mut gateway.destination {
            GatewayDestination::Hostname(key) => self.key(key),
            GatewayDestination::Address { network, .. } => self.text(network),
        }
    }
}

/// Fixed keys: what is in it comes from the control plane.
type Set<T> = HashSet<T, BuildHasherDefault<DefaultHasher>>;

#[derive(Debug)]
struct Table<T> {
    kept: Set<T>,
    /// How many there may be before those that nobody uses are looked for.
    sweep_at: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            kept: Set::default(),
            sweep_at: SMALL,
        }
    }
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn get<Q: Eq + Hash + ?Sized>(&self, like: &Q) -> Option<T>
    where
        T: Borrow<Q>,
    {
        self.kept.get(like).cloned()
    }

    fn insert(&mut self, item: T, unused: impl Fn(&T) -> bool) {
        if self.kept.len() >= self.sweep_at {
            self.kept.retain(|item| !unused(item));
            self.kept.shrink_to(2 * self.kept.len());
            self.sweep_at = SMALL.max(2 * self.kept.len());
        }
        self.kept.insert(item);
    }
}

#[cfg(test)]
mod tests;

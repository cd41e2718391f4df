//! Who is connected, for people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::authority::review::Caller;
use crate::metrics::short_name;
use crate::publish::Scope;
use crate::serve::session::Rejection;

/// All clients.
#[derive(Debug, Default)]
pub struct Clients {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Client>>,
}

/// One client.
#[derive(Clone, Debug, Serialize)]
pub struct Client {
    /// Its node identifier.
    pub node: String,
    /// Who it proved to be.
    pub caller: String,
    /// Its view.
    pub view: String,
    /// How many resources of each type it has.
    pub resources: BTreeMap<String, usize>,
    /// The last thing it refused of each type.
    pub rejected: BTreeMap<String, String>,
}

/// A client's entry; it goes when this does.
#[derive(Debug)]
pub(super) struct Open {
    clients: Arc<Clients>,
    id: u64,
    node: String,
}

impl Clients {
    /// All clients now.
    pub fn list(&self) -> Vec<Client> {
        self.open.lock().values().cloned().collect()
    }

    pub(super) fn open(self: &Arc<Self>, node: &str, caller: &Caller, scope: &Scope) -> Open {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let view = match scope {
            Scope::Node => "node".to_owned(),
            Scope::Waypoint(name) => format!("waypoint {name}"),
        };
        let client = Client {
            node: node.to_owned(),
            caller: caller.to_string(),
            view,
            resources: BTreeMap::new(),
            rejected: BTreeMap::new(),
        };
        self.open.lock().insert(id, client);
        Open {
            clients: Arc::clone(self),
            id,
            node: node.to_owned(),
        }
    }
}

impl Open {
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn holds(&self, held: BTreeMap<String, usize>) {
        if let Some(client) = self.clients.open.lock().get_mut(&self.id) {
            client.resources = held
                .into_iter()
                .map(|(type_url, count)| (short_name(&type_url).to_owned(), count))
                .collect();
        }
    }

    pub(super) fn rejected(&self, rejection: Rejection) {
        if let Some(client) = self.clients.open.lock().get_mut(&self.id) {
            let name = short_name(&rejection.type_url).to_owned();
            client.rejected.insert(name, rejection.message);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.clients.open.lock().remove(&self.id);
    }
}

//! Who is to be served, and what each proxy was told. No I/O and no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_net::netns::NetnsId;
use tokio::time::Instant;

use super::RETRY;
use crate::namespace::PodNetns;

/// Who a pod is: what the agent vouches for towards the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// What a proxy answered about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// It serves it in this network namespace.
    In(NetnsId),
    /// It goes on as before.
    Kept,
    /// It cannot.
    Refused {
        /// In its words.
        why: String,
        /// When.
        at: Instant,
    },
}

/// One pod on the board.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) netns: Option<Arc<PodNetns>>,
}

/// The next message for a connection.
#[derive(Debug, Clone)]
pub(super) enum Next {
    Add {
        uid: String,
        identity: Identity,
        netns: Arc<PodNetns>,
    },
    Keep {
        uid: String,
    },
    Delete {
        uid: String,
    },
    SnapshotSent,
}

#[derive(Debug, Default)]
struct Connection {
    told: BTreeMap<String, Served>,
    snapshot_sent: bool,
}

/// See the module above.
#[derive(Debug, Default)]
pub(super) struct Board {
    pods: BTreeMap<String, Entry>,
    /// By age: the last is the newest.
    connections: BTreeMap<u64, Connection>,
    last: u64,
}

impl Board {
    pub(super) fn expect(&mut self, uid: &str, identity: &Identity) {
        let entry = Entry {
            identity: identity.clone(),
            netns: None,
        };
        self.pods.entry(uid.to_owned()).or_insert(entry);
    }

    /// Forgets a refusal of the newest connection, so that it is asked again now.
    pub(super) fn put(&mut self, uid: &str, identity: &Identity, netns: &Arc<PodNetns>) {
        let entry = Entry {
            identity: identity.clone(),
            netns: Some(Arc::clone(netns)),
        };
        self.pods.insert(uid.to_owned(), entry);
        if let Some(newest) = self.connections.values_mut().next_back()
            && matches!(newest.told.get(uid), Some(Served::Refused { .. }))
        {
            newest.told.remove(uid);
        }
    }

    pub(super) fn take(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    pub(super) fn newest(&self, uid: &str) -> Option<&Served> {
        self.connections.values().next_back()?.told.get(uid)
    }

    pub(super) fn is_told(&self, uid: &str) -> bool {
        self.connections
            .values()
            .any(|connection| connection.told.contains_key(uid))
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// A new connection, the newest.
    pub(super) fn connect(&mut self) -> u64 {
        self.last += 1;
        self.connections.insert(self.last, Connection::default());
        self.last
    }

    pub(super) fn disconnect(&mut self, id: u64) {
        self.connections.remove(&id);
    }

    /// What to say next to this connection, if anything.
    pub(super) fn next(&self, id: u64, now: Instant) -> Option<Next> {
        let connection = self.connections.get(&id)?;
        if connection.snapshot_sent {
            let gone = connection
                .told
                .keys()
                .find(|uid| !self.pods.contains_key(*uid));
            if let Some(uid) = gone {
                return Some(Next::Delete { uid: uid.clone() });
            }
        }
        let newest = self.connections.keys().next_back() == Some(&id);
        if newest || !connection.snapshot_sent {
            let mut missing = self
                .pods
                .iter()
                .filter_map(|(uid, entry)| connection.wants(uid, entry, now));
            if let Some(next) = missing.next() {
                return Some(next);
            }
        }
        (!connection.snapshot_sent).then_some(Next::SnapshotSent)
    }

    /// Writes down how the connection answered.
    pub(super) fn answered(&mut self, id: u64, to: &Next, error: &str, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let (uid, accepted) = match to {
            Next::SnapshotSent => {
                connection.snapshot_sent = true;
                return;
            }
            Next::Delete { uid } => {
                connection.told.remove(uid);
                return;
            }
            Next::Add { uid, netns, .. } => (uid, Served::In(netns.id())),
            Next::Keep { uid } => (uid, Served::Kept),
        };
        let served = if error.is_empty() {
            accepted
        } else {
            Served::Refused {
                why: error.to_owned(),
                at: now,
            }
        };
        connection.told.insert(uid.clone(), served);
    }
}

impl Connection {
    fn wants(&self, uid: &str, entry: &Entry, now: Instant) -> Option<Next> {
        let told = self.told.get(uid);
        if let Some(Served::Refused { at, .. }) = told
            && now < *at + RETRY
        {
            return None;
        }
        match &entry.netns {
            Some(netns) if told == Some(&Served::In(netns.id())) => None,
            Some(netns) => Some(Next::Add {
                uid: uid.to_owned(),
                identity: entry.identity.clone(),
                netns: Arc::clone(netns),
            }),
            // After the snapshot there is no way to say "keep".
            None if told.is_none() && !self.snapshot_sent => Some(Next::Keep {
                uid: uid.to_owned(),
            }),
            None => None,
        }
    }
}

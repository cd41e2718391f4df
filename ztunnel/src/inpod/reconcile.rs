//! Pods the agent wants served vs pods that are: which to start and which to stop. Pure.
//!
//! # Theory of operation
//! A conversation with the agent begins with a snapshot: it names every pod of the node (`Add`
//! with the namespace, or `Keep` where it has none at hand), then says so. Whatever was not named
//! by then is stopped. Pods go on being served while no agent is connected, because their traffic
//! must not depend on the agent's health. A pod that could not be started stays wanted and is
//! tried again until the agent takes it back.
//!
//! # Invariants
//! * One running pod a uid; the newest namespace wins.
//! * Nothing is stopped between the start of a conversation and the end of its snapshot, but a pod
//!   whose namespace changed.

use std::collections::{BTreeMap, BTreeSet};

/// Who a pod is; the agent vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodInfo {
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// A pod to be served. `N` names its network namespace: equal values are the same namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<N> {
    /// Pod uid.
    pub uid: String,
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace.
    pub netns: N,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<N> {
    /// Serve this pod.
    Add(Wanted<N>),
    /// Go on serving this pod.
    Keep(String),
    /// Stop serving this pod.
    Del(String),
    /// All pods were named.
    SnapshotSent,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<N> {
    /// Serve this pod, then tell with [`Reconcile::started`] or [`Reconcile::failed`].
    Start(Wanted<N>),
    /// Stop serving this pod at once.
    Stop(String),
}

/// The agent broke the conversation's rules; it is answered with this and the conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// `Keep` belongs to the snapshot.
    #[error("keep after the snapshot")]
    KeepAfterSnapshot,
    /// There is one snapshot a conversation.
    #[error("snapshot sent twice")]
    SecondSnapshot,
}

#[derive(Debug)]
enum Phase {
    Disconnected,
    Snapshot { named: BTreeSet<String> },
    Live { ready: bool },
}

/// What runs, what is wanted and could not be started, and where the conversation stands.
#[derive(Debug)]
pub struct Reconcile<N> {
    phase: Phase,
    running: BTreeMap<String, N>,
    pending: BTreeMap<String, Wanted<N>>,
}

impl<N: Clone + PartialEq> Default for Reconcile<N> {
    fn default() -> Self {
        Self {
            phase: Phase::Disconnected,
            running: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }
}

impl<N: Clone + PartialEq> Reconcile<N> {
    /// A conversation begins. What was pending is forgotten: the agent names it again.
    pub fn connected(&mut self) {
        self.phase = Phase::Snapshot {
            named: BTreeSet::new(),
        };
        self.pending.clear();
    }

    /// The conversation ended.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Disconnected;
    }

    /// Takes one message.
    ///
    /// # Errors
    /// The message may not come now; nothing was changed.
    pub fn message(&mut self, message: Message<N>) -> Result<Vec<Action<N>>, Violation> {
        match message {
            Message::Add(wanted) => Ok(self.add(wanted)),
            Message::Keep(uid) => match &mut self.phase {
                Phase::Snapshot { named } => {
                    named.insert(uid);
                    Ok(Vec::new())
                }
                _ => Err(Violation::KeepAfterSnapshot),
            },
            Message::Del(uid) => Ok(self.del(uid)),
            Message::SnapshotSent => self.snapshot_sent(),
        }
    }

    fn add(&mut self, wanted: Wanted<N>) -> Vec<Action<N>> {
        if let Phase::Snapshot { named } = &mut self.phase {
            named.insert(wanted.uid.clone());
        }
        self.pending.remove(&wanted.uid);
        match self.running.get(&wanted.uid) {
            Some(netns) if *netns == wanted.netns => Vec::new(),
            Some(_) => {
                self.running.remove(&wanted.uid);
                vec![Action::Stop(wanted.uid.clone()), Action::Start(wanted)]
            }
            None => vec![Action::Start(wanted)],
        }
    }

    fn del(&mut self, uid: String) -> Vec<Action<N>> {
        self.pending.remove(&uid);
        if let Phase::Snapshot { named } = &mut self.phase {
            // Stopped at the end of the snapshot, as anything else that it does not name.
            named.remove(&uid);
            return Vec::new();
        }
        match self.running.remove(&uid) {
            Some(_) => vec![Action::Stop(uid)],
            None => Vec::new(),
        }
    }

    fn snapshot_sent(&mut self) -> Result<Vec<Action<N>>, Violation> {
        let Phase::Snapshot { named } = &mut self.phase else {
            return Err(Violation::SecondSnapshot);
        };
        let named = std::mem::take(named);
        let gone: Vec<String> = self
            .running
            .keys()
            .filter(|uid| !named.contains(*uid))
            .cloned()
            .collect();
        self.running.retain(|uid, _| named.contains(uid));
        self.phase = Phase::Live {
            ready: self.pending.is_empty(),
        };
        Ok(gone.into_iter().map(Action::Stop).collect())
    }

    /// A start succeeded.
    pub fn started(&mut self, wanted: Wanted<N>) {
        self.pending.remove(&wanted.uid);
        self.running.insert(wanted.uid, wanted.netns);
        if let Phase::Live { ready } = &mut self.phase {
            *ready |= self.pending.is_empty();
        }
    }

    /// A start failed; the pod stays wanted.
    pub fn failed(&mut self, wanted: Wanted<N>) {
        self.pending.insert(wanted.uid.clone(), wanted);
    }

    /// What to try again.
    #[must_use]
    pub fn retries(&self) -> Vec<Wanted<N>> {
        self.pending.values().cloned().collect()
    }

    /// Pods wanted and not running.
    pub fn pending(&self) -> impl Iterator<Item = &Wanted<N>> {
        self.pending.values()
    }

    /// Number of pods running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Does a pod run?
    #[must_use]
    pub fn runs(&self, uid: &str) -> bool {
        self.running.contains_key(uid)
    }

    /// Whether the node's pods are served: an agent is connected, its snapshot came, and every pod
    /// of it started. A later pod that fails is that pod's trouble, not the node's.
    #[must_use]
    pub fn ready(&self) -> bool {
        matches!(self.phase, Phase::Live { ready: true })
    }
}

#[cfg(test)]
mod tests;

//! What is told of the policies' answer to one connection: a line of the log, and what dry-run policies would have done.
//!
//! A dry-run policy is asked like any other and decides nothing. Each connection that it applies to is counted, by whether it
//! matched, by what the verdict is, and by what it would be if all dry-run policies were enforced. So the question before a
//! policy is put in force, whom it would refuse, is one sum over `enforced="allow",rehearsed="deny"`.
//!
//! Told once for each connection, when it comes in. Live connections that are asked again are not told of again.

use std::cell::RefCell;
use std::collections::HashMap;

use ambit_model::admit::Asked;
use ambit_model::authorize::{self, Rehearsal, Verdict};
use ambit_model::policy::{Action, Policy, PolicyKey};
use ambit_observe::metrics::{Family, Handle, Registry};

ambit_observe::series! {
    /// What dry-run policies said.
    pub struct Tries {
        /// To connections.
        connections: Counter = ("ambit_dry_run_policy_connections", "Connections that a dry-run policy applied to (unstable)."),
    }
}

/// Counters that one thread keeps at most: eight for each of a hundred policies. Beyond it all are let go and found again.
const MOST: usize = 800;

/// By what a counter is found again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    policy: PolicyKey,
    action: Action,
    matched: bool,
    enforced: bool,
    rehearsed: bool,
}

/// One thread's counters of dry-run policies: each is looked up in the registry, which locks, once and then kept.
#[derive(Debug)]
pub struct Tried {
    family: Family<Tries>,
    kept: RefCell<HashMap<Key, (Handle<Tries>, bool)>>,
}

impl Tried {
    /// Registers the family. Once for a program.
    #[must_use]
    pub fn register(registry: &Registry) -> Family<Tries> {
        registry.family()
    }

    /// Counts through `family`.
    #[must_use]
    pub fn new(family: Family<Tries>) -> Self {
        Self {
            family,
            kept: RefCell::default(),
        }
    }

    fn count(&self, rehearsal: &Rehearsal<'_>) {
        let mut kept = self.kept.borrow_mut();
        for (policy, matched) in &rehearsal.policies {
            let key = key(policy, *matched, rehearsal);
            if let Some((handle, used)) = kept.get_mut(&key) {
                handle.connections.inc();
                *used = true;
                continue;
            }
            let handle = self.resolve(&key);
            handle.connections.inc();
            if kept.len() >= MOST {
                kept.clear();
            }
            kept.insert(key, (handle, true));
        }
    }

    fn resolve(&self, key: &Key) -> Handle<Tries> {
        self.family.resolve(|labels| {
            labels.open_display("policy", &key.policy);
            let action = match key.action {
                Action::Allow => "ALLOW",
                Action::Deny => "DENY",
            };
            labels.closed("action", action);
            labels.closed("matched", if key.matched { "true" } else { "false" });
            labels.closed("enforced", word(key.enforced));
            labels.closed("rehearsed", word(key.rehearsed));
        })
    }

    /// Lets go of counters that were not used since the last sweep, so that the registry can expire them.
    pub fn sweep(&self) {
        self.kept
            .borrow_mut()
            .retain(|_, (_, used)| std::mem::take(used));
    }
}

fn key(policy: &Policy, matched: bool, rehearsal: &Rehearsal<'_>) -> Key {
    Key {
        policy: policy.key.clone(),
        action: policy.action,
        matched,
        enforced: rehearsal.enforced.allowed(),
        rehearsed: rehearsal.rehearsed.allowed(),
    }
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

/// A line at the level that `AUTHZ_POLICY_INFO_LOGGING` asks for.
macro_rules! line {
    ($info:expr, $($fields:tt)*) => {
        if $info {
            tracing::info!($($fields)*);
        } else {
            tracing::debug!($($fields)*);
        }
    };
}

/// Tells of one answer: what holds, and what dry-run policies would make of it. `info` is the level of the lines, debug otherwise.
pub fn tell(tried: &Tried, info: bool, asked: &Asked<'_, '_>) {
    let Asked {
        rules,
        attributes,
        verdict,
    } = asked;
    let about = |verdict: &Verdict<'_>, message: &'static str| {
        line!(
            info,
            src = %attributes.source,
            dst = %attributes.destination,
            peer = attributes.peer.map(tracing::field::display),
            policy = verdict.by().map(tracing::field::display),
            verdict = word(verdict.allowed()),
            reason = %verdict,
            "{message}"
        );
    };
    about(verdict, "policies decided");
    let Some(rehearsal) = authorize::rehearse(rules, attributes) else {
        return;
    };
    tried.count(&rehearsal);
    let message = if rehearsal.differs() {
        "dry-run policies would decide otherwise"
    } else {
        "dry-run policies would decide the same"
    };
    about(&rehearsal.rehearsed, message);
}

#[cfg(test)]
mod tests;

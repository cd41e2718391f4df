//! Do the policies of a workload permit a connection.
//!
//! In this order: a DENY policy that matches refuses; a policy that the workload lists and that is not known refuses; without ALLOW
//! policies it is permitted; an ALLOW policy that matches permits; else it is refused. Dry-run policies take no part; what they would
//! change is told by [`rehearse`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use smallvec::SmallVec;

use crate::compile::Compiled;
use crate::identity::Identity;
use crate::policy::{Action, Policy, PolicyKey, Scope};
use crate::reason::Reason;

/// What rules may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// The verified identity of the peer; `None` for plaintext.
    pub peer: Option<&'a Identity>,
    /// Address of the peer at the transport level: that of the waypoint when one is between.
    pub source: IpAddr,
    /// The workload's address that was dialled, with the port on which the application will be reached.
    pub destination: SocketAddr,
}

/// The policies that apply to one workload, borrowed from a view.
#[derive(Debug, Clone)]
pub struct Rules<'v> {
    pub(crate) global: &'v [Arc<Compiled>],
    pub(crate) namespace: &'v [Arc<Compiled>],
    /// Four cover nearly every workload without an allocation.
    pub(crate) selected: SmallVec<[&'v Arc<Compiled>; 4]>,
    /// The first listed name that no known policy has.
    pub(crate) unresolved: Option<&'v PolicyKey>,
}

impl<'v> Rules<'v> {
    /// Every known policy among them, mesh first, then namespace, then those the workload lists.
    pub fn policies(&self) -> impl Iterator<Item = &'v Compiled> {
        let wide = self.global.iter().chain(self.namespace);
        wide.chain(self.selected.iter().copied())
            .map(|policy| &**policy)
    }

    /// A name the workload lists that no known policy has.
    #[must_use]
    pub fn unresolved(&self) -> Option<&'v PolicyKey> {
        self.unresolved
    }

    /// Is any DENY policy among those that count.
    fn deny(&self, counts: impl Fn(&Policy) -> bool) -> bool {
        self.policies()
            .map(Compiled::policy)
            .any(|policy| policy.action == Action::Deny && counts(policy))
    }
}

/// The outcome, with the policy that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'v> {
    /// Permitted.
    Allow {
        /// The ALLOW policy that matched; `None` when there is no ALLOW policy.
        by: Option<&'v PolicyKey>,
    },
    /// Refused.
    Deny {
        /// [`Reason::PolicyDenied`], [`Reason::NotAllowed`] or [`Reason::PolicyUnresolved`].
        reason: Reason,
        /// The DENY policy that matched, or the name that is not known; `None` when no ALLOW policy matched.
        by: Option<&'v PolicyKey>,
    },
}

impl<'v> Verdict<'v> {
    /// Is it permitted.
    #[must_use]
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The policy that decided, if one did.
    #[must_use]
    pub fn by(&self) -> Option<&'v PolicyKey> {
        match *self {
            Self::Allow { by } | Self::Deny { by, .. } => by,
        }
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Allow { by: Some(key) } => write!(f, "allowed by: {key}"),
            Self::Allow { by: None } => f.write_str("no policy denies, none allows"),
            Self::Deny { reason, by } => f.write_str(&denial(reason, by)),
        }
    }
}

/// Decides. Allocates nothing.
#[must_use]
pub fn authorize<'v>(rules: &Rules<'v>, attributes: &Attributes<'_>) -> Verdict<'v> {
    evaluate(rules, attributes, |policy| !policy.policy().dry_run)
}

/// What the dry-run policies of a workload say to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal<'v> {
    /// The verdict that holds.
    pub enforced: Verdict<'v>,
    /// The verdict if the dry-run policies were enforced too.
    pub rehearsed: Verdict<'v>,
    /// Each dry-run policy that applies, and whether it matches. Two cover nearly every workload without an allocation.
    pub policies: SmallVec<[(&'v Policy, bool); 2]>,
}

impl Rehearsal<'_> {
    /// Would it make a difference to this connection if they were enforced.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.enforced.allowed() != self.rehearsed.allowed()
    }
}

/// Asks the dry-run policies. `None` when there are none, and while a listed policy is not known: then nothing can be said yet.
#[must_use]
pub fn rehearse<'v>(rules: &Rules<'v>, attributes: &Attributes<'_>) -> Option<Rehearsal<'v>> {
    let tried = rules.policies().filter(|policy| policy.policy().dry_run);
    let policies: SmallVec<_> = tried
        .map(|policy| (policy.policy(), policy.first_match(attributes).is_some()))
        .collect();
    if policies.is_empty() || rules.unresolved.is_some() {
        return None;
    }
    Some(Rehearsal {
        enforced: authorize(rules, attributes),
        rehearsed: evaluate(rules, attributes, |_| true),
        policies,
    })
}

fn evaluate<'v>(
    rules: &Rules<'v>,
    attributes: &Attributes<'_>,
    counts: impl Fn(&Compiled) -> bool,
) -> Verdict<'v> {
    let of = |action: Action| {
        rules
            .policies()
            .filter(move |policy| policy.policy().action == action)
            .filter(|p| counts(p))
    };
    let matched = |policy: &&Compiled| policy.first_match(attributes).is_some();
    if let Some(policy) = of(Action::Deny).find(matched) {
        return Verdict::Deny {
            reason: Reason::PolicyDenied,
            by: Some(policy.key()),
        };
    }
    if let Some(name) = rules.unresolved {
        return Verdict::Deny {
            reason: Reason::PolicyUnresolved,
            by: Some(name),
        };
    }
    let mut allows = of(Action::Allow).peekable();
    if allows.peek().is_none() {
        return Verdict::Allow { by: None };
    }
    match allows.find(matched) {
        Some(policy) => Verdict::Allow {
            by: Some(policy.key()),
        },
        None => Verdict::Deny {
            reason: Reason::NotAllowed,
            by: None,
        },
    }
}

/// A verdict and how it came about, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Is it permitted.
    pub allowed: bool,
    /// Why, in words.
    pub reason: String,
    /// The policy that decided.
    pub decided_by: Option<PolicyKey>,
    /// Every policy that applies to the workload.
    pub policies: Vec<Considered>,
    /// The listed name that is not known.
    pub unresolved: Option<PolicyKey>,
    /// What it would be if the dry-run policies among them were enforced; `None` without such policies.
    pub rehearsed: Option<Rehearsed>,
}

/// What a verdict would be if the dry-run policies were enforced, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rehearsed {
    /// Would it be permitted.
    pub allowed: bool,
    /// Why, in words.
    pub reason: String,
    /// The policy that would decide.
    pub decided_by: Option<PolicyKey>,
}

/// One policy and what it says to a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Considered {
    /// Namespace and name.
    pub policy: PolicyKey,
    /// Whom it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// It decides nothing.
    pub dry_run: bool,
    /// Index of the first rule that matches.
    pub matched_rule: Option<usize>,
    /// Values in it that were not understood.
    pub problems: Vec<String>,
}

/// Decides as [`authorize`] and tells how.
#[must_use]
pub fn explain(rules: &Rules<'_>, attributes: &Attributes<'_>) -> Explanation {
    let policies = rules.policies().map(|compiled| {
        let policy = compiled.policy();
        Considered {
            policy: policy.key.clone(),
            scope: policy.scope,
            action: policy.action,
            dry_run: policy.dry_run,
            matched_rule: compiled.first_match(attributes),
            problems: compiled
                .problems()
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    });
    let verdict = authorize(rules, attributes);
    let rehearsed = rehearse(rules, attributes).map(|rehearsal| Rehearsed {
        allowed: rehearsal.rehearsed.allowed(),
        reason: words(&rehearsal.rehearsed, rules.deny(|_| true)),
        decided_by: rehearsal.rehearsed.by().cloned(),
    });
    Explanation {
        allowed: verdict.allowed(),
        reason: words(&verdict, rules.deny(|policy| !policy.dry_run)),
        decided_by: verdict.by().cloned(),
        policies: policies.collect(),
        unresolved: rules.unresolved.cloned(),
        rehearsed,
    }
}

/// Why, in words; `denied` says whether any of the policies that count could have denied.
fn words(verdict: &Verdict<'_>, denied: bool) -> String {
    match verdict {
        Verdict::Allow { by: None } if !denied => "no policy applies".to_owned(),
        other => other.to_string(),
    }
}

/// The words of a refusal; the first and the last are those of Istio's node proxy.
pub(crate) fn denial(reason: Reason, by: Option<&PolicyKey>) -> String {
    match (reason, by) {
        (Reason::PolicyDenied, Some(key)) => format!("explicitly denied by: {key}"),
        (Reason::PolicyUnresolved, Some(key)) => format!("policy is not known yet: {key}"),
        (reason, _) => reason.to_string(),
    }
}

#[cfg(test)]
mod tests;

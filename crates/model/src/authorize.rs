//! Do the policies of a workload permit a connection.
//!
//! In this order: a DENY policy that matches refuses; a policy that the workload lists and that is not known refuses; without ALLOW
//! policies it is permitted; an ALLOW policy that matches permits; else it is refused. Dry-run policies take no part; what they would
//! change is told by [`rehearse`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use smallvec::SmallVec;

use crate::compile::Compiled;
use crate::identity::Identity;
use crate::policy::{Action, PolicyKey, Scope};
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

    fn enforced(&self, action: Action) -> impl Iterator<Item = &'v Compiled> {
        self.policies()
            .filter(move |policy| policy.policy().action == action && !policy.policy().dry_run)
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

impl Verdict<'_> {
    /// Is it permitted.
    #[must_use]
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// Decides. Allocates nothing.
#[must_use]
pub fn authorize<'v>(rules: &Rules<'v>, attributes: &Attributes<'_>) -> Verdict<'v> {
    evaluate(rules, attributes, |policy| !policy.policy().dry_run)
}

/// What the verdict would be if the dry-run policies were enforced too. `None` when there are none or they change nothing.
#[must_use]
pub fn rehearse<'v>(rules: &Rules<'v>, attributes: &Attributes<'_>) -> Option<Verdict<'v>> {
    if !rules.policies().any(|policy| policy.policy().dry_run) {
        return None;
    }
    let rehearsed = evaluate(rules, attributes, |_| true);
    let enforced = authorize(rules, attributes);
    (rehearsed.allowed() != enforced.allowed()).then_some(rehearsed)
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
    let (reason, decided_by) = match verdict {
        Verdict::Allow { by: Some(key) } => (format!("allowed by: {key}"), Some(key)),
        Verdict::Allow { by: None } if rules.enforced(Action::Deny).next().is_none() => {
            ("no policy applies".to_owned(), None)
        }
        Verdict::Allow { by: None } => ("no policy denies, none allows".to_owned(), None),
        Verdict::Deny { reason, by } => (denial(reason, by), by),
    };
    Explanation {
        allowed: verdict.allowed(),
        reason,
        decided_by: decided_by.cloned(),
        policies: policies.collect(),
        unresolved: rules.unresolved.cloned(),
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

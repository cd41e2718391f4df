//! Rules of an `AuthorizationPolicy` with regard to fields that nobody here knows.
//!
//! What such a field was to say is unknown, so the strictest reading holds. Within a rule it can only
//! have been a condition: an ALLOW rule is not used, a DENY rule goes without the condition. Outside
//! of the rules it may have been anything, the action or the rules themselves misspelt: an ALLOW
//! then allows nothing, a DENY denies everything.

use std::borrow::Cow;

use ambit_objects::Key;
use ambit_objects::kinds::security::{AuthorizationPolicy, PolicyRule};

use crate::finding::Findings;

/// A rule that may be used.
pub(crate) struct Understood<'a> {
    /// Its place in the policy.
    pub(crate) index: usize,
    /// The rule without what is unknown.
    pub(crate) rule: Cow<'a, PolicyRule>,
    /// Whether nothing in it is unknown.
    pub(crate) whole: bool,
}

/// The rules to use. `deny` says how to read what is unknown.
pub(crate) fn rules<'a>(
    policy: &'a AuthorizationPolicy,
    deny: bool,
    key: &Key,
    findings: &mut Findings,
) -> Vec<Understood<'a>> {
    let mut whole = true;
    for path in &policy.unknown {
        let effect = match (path.starts_with("spec.rules["), deny) {
            (true, true) => "the rule denies without it",
            (true, false) => "the rule allows nothing",
            (false, true) => "the policy denies everything",
            (false, false) => "the policy allows nothing",
        };
        whole &= path.starts_with("spec.rules[");
        findings.error(key, path, format!("unknown field; {effect}"));
    }
    if !whole {
        let everything = Understood {
            index: 0,
            rule: Cow::Owned(PolicyRule::default()),
            whole: true,
        };
        return if deny { vec![everything] } else { Vec::new() };
    }
    let rules = policy.spec.rules.iter().flatten().enumerate();
    rules
        .map(|(index, rule)| {
            let within = format!("spec.rules[{index}]");
            let whole = !policy.unknown.iter().any(|path| path.starts_with(&within));
            let rule = Cow::Borrowed(rule);
            Understood { index, rule, whole }
        })
        .filter(|understood| deny || understood.whole)
        .collect()
}

#[cfg(test)]
mod tests;

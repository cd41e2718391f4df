//! `AuthorizationPolicy` for node proxies: what is L4 in it, and nothing more permissive than asked.
//!
//! A node proxy sees no requests. An ALLOW rule with an HTTP condition is left out, so less is
//! allowed; in a DENY rule the HTTP condition is left out, so more is denied; a DENY rule of HTTP
//! conditions alone has no effect there, which its author is told. A value that cannot be read
//! never widens either: it makes an ALLOW rule match less and a DENY rule match more.

use std::collections::BTreeMap;

use ambit_objects::kinds::security::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, PolicyRule, Selector, TargetRef,
};
use ambit_objects::{Key, Kind, Name};
use ambit_proto::istio::security::{
    Action as WireAction, Authorization, Clause, Match, Rule, Scope,
};
use k8s_openapi::api::core::v1::Pod;

use crate::cluster::{Cluster, annotation, labels, selects};
use crate::finding::Findings;

mod fields;
pub(crate) mod understood;

use fields::{Fields, Part};
pub(crate) use fields::{ip_block, port_number};
use understood::Understood;

/// Annotation that makes a policy log and count only.
const DRY_RUN: &str = "istio.io/dry-run";

/// All policies for node proxies.
#[derive(Debug, Default)]
pub(crate) struct Policies(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    name: Name,
    /// Of a policy with a selector.
    selector: Option<Selector>,
    authorization: Authorization,
}

impl Policies {
    pub(crate) fn new(cluster: &Cluster, findings: &mut Findings) -> Self {
        let mut entries = Vec::new();
        for (name, policy) in &cluster.objects().authorization_policies {
            let key = Key {
                kind: Kind::AuthorizationPolicy,
                name: name.clone(),
            };
            if let Err(message) = dry_run(policy) {
                findings.error(&key, "metadata.annotations[istio.io/dry-run]", message);
            }
            // Attached ones are the waypoint's alone.
            if is_attached(&policy.spec) {
                continue;
            }
            let action = match policy.spec.action.unwrap_or_default() {
                Action::Allow => WireAction::Allow,
                Action::Deny => WireAction::Deny,
                Action::Audit | Action::Custom => {
                    let message = "not enforced: node proxies know ALLOW and DENY only";
                    findings.error(&key, "spec.action", message);
                    continue;
                }
            };
            let selector = policy.spec.selector.clone().filter(|selector| {
                selector
                    .match_labels
                    .as_ref()
                    .is_some_and(|labels| !labels.is_empty())
            });
            let scope = match &selector {
                Some(_) => Scope::WorkloadSelector,
                None if name.namespace == cluster.mesh().root_namespace => Scope::Global,
                None => Scope::Namespace,
            };
            let mut compiler = Compiler {
                deny: action == WireAction::Deny,
                key: &key,
                findings,
            };
            let rules = compiler.rules(policy);
            entries.push(Entry {
                name: name.clone(),
                selector,
                authorization: Authorization {
                    name: name.name.clone(),
                    namespace: name.namespace.clone(),
                    scope: scope.into(),
                    action: action.into(),
                    rules,
                    dry_run: is_dry_run(policy),
                    ..Authorization::default()
                },
            });
        }
        Self(entries)
    }

    /// What is served, by resource name.
    pub(crate) fn authorizations(&self) -> BTreeMap<String, Authorization> {
        self.0
            .iter()
            .map(|entry| (entry.name.to_string(), entry.authorization.clone()))
            .collect()
    }

    /// Resource names of the policies whose selector selects the pod: those of its own namespace
    /// and of the root namespace.
    pub(crate) fn selecting(&self, cluster: &Cluster, name: &Name, pod: &Pod) -> Vec<String> {
        let root = &cluster.mesh().root_namespace;
        self.0
            .iter()
            .filter(|entry| {
                let here = entry.name.namespace == name.namespace || entry.name.namespace == *root;
                here && entry.selector.is_some()
                    && selects(entry.selector.as_ref(), labels(&pod.metadata))
            })
            .map(|entry| entry.name.to_string())
            .collect()
    }
}

/// Whether a policy decides nothing and is only logged and counted.
///
/// # Errors
///
/// The annotation is no boolean as Go reads one: the policy is then enforced.
fn dry_run(policy: &AuthorizationPolicy) -> Result<bool, String> {
    match annotation(&policy.metadata, DRY_RUN) {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        None | Some("" | "0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!(
            "`{other}` is neither true nor false; the policy is enforced"
        )),
    }
}

/// The same, for where it was said already that the annotation makes no sense.
pub(crate) fn is_dry_run(policy: &AuthorizationPolicy) -> bool {
    dry_run(policy).unwrap_or(false)
}

/// Whether a policy is for waypoints. An empty list says as little as none.
pub(crate) fn is_attached(spec: &AuthorizationPolicySpec) -> bool {
    spec.target_ref.is_some()
        || spec
            .target_refs
            .as_ref()
            .is_some_and(|targets| !targets.is_empty())
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: String,
    /// Of a `GatewayClass` the namespace is empty.
    pub(crate) name: Name,
}

/// Every target of a policy that it may have. It may not reach into other namespaces.
pub(crate) fn targets<'a>(
    policy: &'a Name,
    spec: &'a AuthorizationPolicySpec,
) -> impl Iterator<Item = Target> + 'a {
    let all = spec
        .target_ref
        .iter()
        .chain(spec.target_refs.iter().flatten());
    all.filter(|target| !is_foreign(policy, target))
        .map(|target| Target {
            kind: target.kind.clone(),
            name: match target.kind.as_str() {
                "GatewayClass" => Name::new("", &target.name),
                _ => Name::new(&policy.namespace, &target.name),
            },
        })
}

pub(crate) fn is_foreign(policy: &Name, target: &TargetRef) -> bool {
    let namespace = target.namespace.as_deref().unwrap_or_default();
    !namespace.is_empty() && namespace != policy.namespace
}

struct Compiler<'a> {
    deny: bool,
    key: &'a Key,
    findings: &'a mut Findings,
}

/// Alternatives of one part of a rule, put together.
enum Combined {
    /// One of these.
    Clause(Clause),
    /// Always true: something in it could not be read and the rule denies.
    Always,
    /// Nothing but HTTP conditions.
    OnlyHttp,
    /// The rule must not be used.
    Never,
}

impl Compiler<'_> {
    fn rules(&mut self, policy: &AuthorizationPolicy) -> Vec<Rule> {
        understood::rules(policy, self.deny, self.key, self.findings)
            .iter()
            .filter_map(|understood| self.rule(understood))
            .collect()
    }

    fn rule(&mut self, understood: &Understood<'_>) -> Option<Rule> {
        let namespace = self.key.name.namespace.clone();
        let path = format!("spec.rules[{}]", understood.index);
        let rule: &PolicyRule = &understood.rule;
        let mut combined = Vec::new();
        if !understood.whole {
            // What was not understood may have been what a node proxy could check.
            combined.push(Combined::Always);
        }
        if let Some(from) = non_empty(rule.from.as_deref()) {
            let parts = from.iter().enumerate().map(|(index, from)| {
                let path = format!("{path}.from[{index}].source");
                let source = from.source.clone().unwrap_or_default();
                self.fields(&path).source(&namespace, &source)
            });
            let parts: Vec<Part> = parts.collect();
            combined.push(self.combine(parts));
        }
        if let Some(to) = non_empty(rule.to.as_deref()) {
            let parts = to.iter().enumerate().map(|(index, to)| {
                let path = format!("{path}.to[{index}].operation");
                self.fields(&path)
                    .operation(&to.operation.clone().unwrap_or_default())
            });
            let parts: Vec<Part> = parts.collect();
            combined.push(self.combine(parts));
        }
        for (index, condition) in rule.when.iter().flatten().enumerate() {
            let part = self
                .fields(&format!("{path}.when[{index}]"))
                .condition(condition);
            combined.push(self.combine(vec![part]));
        }
        self.conclude(&path, combined)
    }

    fn conclude(&mut self, path: &str, combined: Vec<Combined>) -> Option<Rule> {
        let (mut clauses, mut always, mut only_http) = (Vec::new(), false, false);
        for part in combined {
            match part {
                Combined::Clause(clause) => clauses.push(clause),
                Combined::Always => always = true,
                Combined::OnlyHttp => only_http = true,
                Combined::Never => return None,
            }
        }
        // An ALLOW must not be used without its condition; a DENY must not become one of everything.
        if only_http && (!self.deny || (clauses.is_empty() && !always)) {
            let message = "has no effect at node proxies; attach the policy to a waypoint";
            self.findings.error(self.key, path, message);
            return None;
        }
        Some(Rule { clauses })
    }

    fn combine(&self, parts: Vec<Part>) -> Combined {
        let (mut matches, mut always, mut http): (Vec<Match>, _, _) = (Vec::new(), false, false);
        for part in parts {
            match part {
                Part::Match(found) => matches.push(*found),
                Part::Always => always = true,
                Part::OnlyHttp => http = true,
                Part::Never => {}
            }
        }
        match (self.deny, http, always, matches.is_empty()) {
            (true, _, true, _) => Combined::Always,
            (true, true, _, true) | (false, true, _, _) => Combined::OnlyHttp,
            (_, _, _, true) => Combined::Never,
            (_, _, _, false) => Combined::Clause(Clause { matches }),
        }
    }

    fn fields(&mut self, path: &str) -> Fields<'_> {
        Fields::new(self.deny, self.key, path, self.findings)
    }
}

fn non_empty<T>(list: Option<&[T]>) -> Option<&[T]> {
    list.filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests;

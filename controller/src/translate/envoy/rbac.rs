//! `AuthorizationPolicy` attached to services, waypoints and their class -> RBAC filters.
//!
//! DENY goes before ALLOW. A value that cannot be read makes an ALLOW rule match less and a DENY rule
//! match more, as for node proxies.

use std::collections::HashMap;

use ambit_objects::kinds::security::{Action, AuthorizationPolicy};
use ambit_objects::{Key, Kind, Name};
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;

use super::chain::http_filter;
use super::listener::filter;
use super::pack::{RBAC_FILTER, any};
use super::served::{Served, Service};
use crate::cluster::waypoint::WAYPOINT_CLASS;
use crate::cluster::{Binding, Cluster};
use crate::finding::Findings;
use crate::translate::policy::{Target, is_attached, is_dry_run, is_foreign, targets, understood};

mod matching;

use matching::Rules;

/// Policies that reach one waypoint, each with its targets.
pub(super) struct Attached<'a> {
    policies: Vec<(&'a Name, &'a AuthorizationPolicy, Vec<Target>, Compiled)>,
    waypoint: Name,
    class: String,
}

/// Rules of one policy for both kinds of chain.
struct Compiled {
    http: Vec<(String, Policy)>,
    tcp: Vec<(String, Policy)>,
}

/// Says which policies are attached to nothing, and why.
pub(super) fn check_targets(cluster: &Cluster, findings: &mut Findings) {
    for (name, policy) in &cluster.objects().authorization_policies {
        let key = Key {
            kind: Kind::AuthorizationPolicy,
            name: name.clone(),
        };
        let spec = &policy.spec;
        let all = spec
            .target_ref
            .iter()
            .chain(spec.target_refs.iter().flatten());
        for target in all.filter(|target| is_foreign(name, target)) {
            let message = format!(
                "{} {} of another namespace is no target",
                target.kind, target.name
            );
            findings.error(&key, "spec.targetRefs", message);
        }
        if spec.selector.is_some() && is_attached(spec) {
            let message = "has no effect: the policy is attached by targetRefs";
            findings.error(&key, "spec.selector", message);
        }
        for target in targets(name, spec) {
            if let Some(why) = not_enforced(cluster, name, &target) {
                let message = format!("not enforced on {} {}: {why}", target.kind, target.name);
                findings.error(&key, "spec.targetRefs", message);
            }
        }
    }
}

fn not_enforced(cluster: &Cluster, policy: &Name, target: &Target) -> Option<String> {
    let objects = cluster.objects();
    match target.kind.as_str() {
        "Service" => match objects.services.get(&target.name) {
            None => Some("it does not exist".to_owned()),
            Some(service) => match cluster.service_waypoint(&target.name, &service.metadata) {
                Binding::To(_) => None,
                Binding::None => Some("it has no waypoint".to_owned()),
                // Its traffic is refused as a whole, which the service's own finding says.
                Binding::Unusable { .. } => None,
            },
        },
        "Gateway" if cluster.waypoints().contains_key(&target.name) => None,
        "Gateway" => Some("it is no usable waypoint".to_owned()),
        "GatewayClass" if target.name.name != WAYPOINT_CLASS => {
            Some(format!("only {WAYPOINT_CLASS} can be a target"))
        }
        "GatewayClass" if policy.namespace != cluster.mesh().root_namespace => {
            Some("only a policy of the root namespace may be attached to a class".to_owned())
        }
        "GatewayClass" => None,
        _ => Some("targets are Services, Gateways and GatewayClasses".to_owned()),
    }
}

impl<'a> Attached<'a> {
    pub(super) fn new(served: &Served<'a>, findings: &mut Findings) -> Self {
        let objects = served.cluster.objects();
        let waypoint = served.waypoint.name.clone();
        let class = objects
            .gateways
            .get(&waypoint)
            .map(|gateway| gateway.spec.gateway_class_name.clone())
            .unwrap_or_default();
        let mut attached = Self {
            policies: Vec::new(),
            waypoint,
            class,
        };
        for (name, policy) in &objects.authorization_policies {
            let targets: Vec<Target> = targets(name, &policy.spec)
                .filter(|target| attached.reaches(served, name, target))
                .collect();
            if !targets.is_empty() {
                let tcp = attached.reaches_tcp(served, &targets);
                let compiled = compile(name, policy, tcp, findings);
                attached.policies.push((name, policy, targets, compiled));
            }
        }
        attached
    }

    fn reaches(&self, served: &Served<'_>, policy: &Name, target: &Target) -> bool {
        match target.kind.as_str() {
            "Service" => served.service(&target.name).is_some(),
            "Gateway" => target.name == self.waypoint,
            "GatewayClass" => {
                target.name.name == self.class
                    && policy.namespace == served.cluster.mesh().root_namespace
            }
            _ => false,
        }
    }

    /// Whether any chain it is a filter of carries plain TCP.
    fn reaches_tcp(&self, served: &Served<'_>, targets: &[Target]) -> bool {
        let whole = targets.iter().any(|target| target.kind != "Service");
        let named = |service: &&Service| targets.iter().any(|target| target.name == service.name);
        let mut services = served
            .services
            .iter()
            .filter(|service| whole || named(service));
        let tcp = services.any(|service| service.ports.iter().any(|port| port.protocol.has_tcp()));
        tcp || (whole && !served.pods.is_empty())
    }

    /// Filters of the chains of one service, or of pods.
    pub(super) fn http(&self, service: Option<&Service>) -> Vec<HttpFilter> {
        let filters = self.filters(service, |compiled| &compiled.http).into_iter();
        filters
            .map(|(action, dry_run, rules)| {
                let mut filter = HttpRbac::default();
                if dry_run {
                    filter.shadow_rules_stat_prefix = dry_run_prefix(action);
                    filter.shadow_rules = Some(rules);
                } else {
                    filter.rules = Some(rules);
                }
                http_filter("envoy.filters.http.rbac", any(&filter, &RBAC_FILTER))
            })
            .collect()
    }

    /// The same for TCP.
    pub(super) fn network(&self, service: Option<&Service>) -> Vec<Filter> {
        let filters = self.filters(service, |compiled| &compiled.tcp).into_iter();
        filters
            .map(|(action, dry_run, rules)| {
                let mut config = NetworkRbac {
                    stat_prefix: "tcp.".to_owned(),
                    ..NetworkRbac::default()
                };
                if dry_run {
                    config.shadow_rules_stat_prefix = dry_run_prefix(action);
                    config.shadow_rules = Some(rules);
                } else {
                    config.rules = Some(rules);
                }
                filter("envoy.filters.network.rbac", any(&config, &RBAC_FILTER))
            })
            .collect()
    }

    /// Audit, then deny, then allow; of each what is enforced, then what is only tried.
    fn filters(
        &self,
        service: Option<&Service>,
        of: impl Fn(&Compiled) -> &[(String, Policy)],
    ) -> Vec<(rbac::Action, bool, Rbac)> {
        let mut filters = Vec::new();
        for action in [rbac::Action::Log, rbac::Action::Deny, rbac::Action::Allow] {
            for dry_run in [false, true] {
                let mut policies = HashMap::new();
                for (_, policy, targets, compiled) in &self.policies {
                    let here = targets.iter().any(|target| {
                        target.kind != "Service"
                            || service.is_some_and(|service| service.name == target.name)
                    });
                    let same = wire_action(policy) == action && is_dry_run(policy) == dry_run;
                    if here && same {
                        policies.extend(of(compiled).iter().cloned());
                    }
                }
                if !policies.is_empty() {
                    let action_number = action.into();
                    let rules = Rbac {
                        action: action_number,
                        policies,
                        ..Rbac::default()
                    };
                    filters.push((action, dry_run, rules));
                }
            }
        }
        filters
    }
}

fn dry_run_prefix(action: rbac::Action) -> String {
    let name = if action == rbac::Action::Allow {
        "allow"
    } else {
        "deny"
    };
    format!("istio_dry_run_{name}_")
}

fn wire_action(policy: &AuthorizationPolicy) -> rbac::Action {
    match policy.spec.action.unwrap_or_default() {
        Action::Allow => rbac::Action::Allow,
        Action::Audit => rbac::Action::Log,
        // Nobody is asked here, so what somebody else would decide on is refused.
        Action::Deny | Action::Custom => rbac::Action::Deny,
    }
}

/// `tcp` says whether what cannot be checked on TCP ports is worth telling.
fn compile(
    name: &Name,
    policy: &AuthorizationPolicy,
    tcp: bool,
    findings: &mut Findings,
) -> Compiled {
    let key = Key {
        kind: Kind::AuthorizationPolicy,
        name: name.clone(),
    };
    let action = policy.spec.action.unwrap_or_default();
    if action == Action::Custom {
        let message = "CUSTOM is not supported; what its rules match is refused";
        findings.error(&key, "spec.action", message);
    }
    let deny = wire_action(policy) == rbac::Action::Deny;
    let rules = understood::rules(policy, deny, &key, findings);
    let both = [true, false].map(|http| {
        let mut untold = Findings::default();
        let findings = if http || tcp {
            &mut *findings
        } else {
            &mut untold
        };
        let mut compiled = Vec::new();
        for understood in &rules {
            let path = format!("spec.rules[{}]", understood.index);
            let matched = Rules::new(deny, http, &key, findings).policy(&path, &understood.rule);
            if let Some(matched) = matched {
                compiled.push((id(name, action, understood.index), matched));
            }
        }
        if compiled.is_empty() {
            // A policy whose rules are gone still stands: an ALLOW of nothing allows nothing.
            compiled.push((id(name, action, 0), never()));
        }
        compiled
    });
    let [http, tcp] = both;
    Compiled { http, tcp }
}

fn id(name: &Name, action: Action, index: usize) -> String {
    let suffix = if action == Action::Custom {
        "-deny-due-to-bad-CUSTOM-action"
    } else {
        ""
    };
    format!(
        "ns[{}]-policy[{}]-rule[{index}]{suffix}",
        name.namespace, name.name
    )
}

/// A rule that nothing matches.
fn never() -> Policy {
    let anything = Permission {
        rule: Some(permission::Rule::Any(true)),
    };
    let anyone = Principal {
        identifier: Some(principal::Identifier::Any(true)),
    };
    Policy {
        permissions: vec![Permission {
            rule: Some(permission::Rule::NotRule(Box::new(anything))),
        }],
        principals: vec![Principal {
            identifier: Some(principal::Identifier::NotId(Box::new(anyone))),
        }],
        ..Policy::default()
    }
}

#[cfg(test)]
mod tests;

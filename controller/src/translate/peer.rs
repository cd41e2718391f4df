//! `PeerAuthentication` for node proxies: policies that deny whoever has no identity.

use std::collections::BTreeMap;

use ambit_objects::kinds::security::{Mode, Mtls, PeerAuthentication};
use ambit_objects::{Key, Kind, Name};
use ambit_proto::istio::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};
use k8s_openapi::api::core::v1::Pod;

use crate::cluster::{Cluster, by_age, labels, selects};
use crate::finding::Findings;

/// The one policy of every workload that is STRICT on all ports. Underscores, so that no object can
/// have the name.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// Before the name of a `PeerAuthentication` that makes a policy of its own.
const CONVERTED: &str = "converted_peer_authentication_";

/// All modes of the mesh.
#[derive(Debug)]
pub(crate) struct Peers {
    root: String,
    mesh: Mode,
    namespaces: BTreeMap<String, Mode>,
    /// Those with a selector, oldest first, by namespace.
    selecting: BTreeMap<String, Vec<Selecting>>,
    any: bool,
}

#[derive(Debug)]
struct Selecting {
    name: Name,
    object: PeerAuthentication,
    /// What its workloads get.
    verdict: Verdict,
}

/// What a workload gets.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// Plaintext is accepted on every port.
    Open,
    /// On none.
    Strict,
    /// By port: a policy of its own.
    ByPort(Vec<Rule>),
}

impl Peers {
    pub(crate) fn new(cluster: &Cluster, findings: &mut Findings) -> Self {
        let root = cluster.mesh().root_namespace.clone();
        let mut peers = Self {
            mesh: Mode::Unset,
            namespaces: BTreeMap::new(),
            selecting: BTreeMap::new(),
            any: !cluster.objects().peer_authentications.is_empty(),
            root,
        };
        let all = by_age(&cluster.objects().peer_authentications, |object| {
            &object.metadata
        });
        for (name, object) in &all {
            if !has_selector(object) {
                peers.level(name, object, findings);
            }
        }
        for (name, object) in &all {
            if !has_selector(object) {
                continue;
            }
            if name.namespace == peers.root {
                let message = "has no effect: a selector does not reach out of the root namespace";
                findings.error(&key(name), "spec.selector", message);
                continue;
            }
            let base = peers.base(&name.namespace, mode(object.spec.mtls.as_ref()));
            let ports = object.spec.port_level_mtls.iter().flatten();
            let ports: Vec<(u16, bool)> = ports
                .map(|(port, mtls)| (*port, inherit(mode(Some(mtls)), base) == Mode::Strict))
                .collect();
            let verdict = verdict(base == Mode::Strict, &ports);
            let object = (*object).clone();
            let of_namespace = peers.selecting.entry(name.namespace.clone()).or_default();
            of_namespace.push(Selecting {
                name: (*name).clone(),
                object,
                verdict,
            });
        }
        peers
    }

    /// A mesh or namespace level; the oldest decides.
    fn level(&mut self, name: &Name, object: &PeerAuthentication, findings: &mut Findings) {
        if object
            .spec
            .port_level_mtls
            .as_ref()
            .is_some_and(|ports| !ports.is_empty())
        {
            let message = "has no effect without a selector";
            findings.error(&key(name), "spec.portLevelMtls", message);
        }
        let mode = mode(object.spec.mtls.as_ref());
        let taken = if name.namespace == self.root {
            let taken = self.namespaces.contains_key(&self.root);
            if !taken {
                self.mesh = mode;
            }
            taken
        } else {
            self.namespaces.contains_key(&name.namespace)
        };
        if taken {
            findings.error(
                &key(name),
                "",
                "has no effect: an older one of this namespace decides",
            );
        } else {
            self.namespaces.insert(name.namespace.clone(), mode);
        }
    }

    /// The mode of a workload-level object after inheritance.
    fn base(&self, namespace: &str, own: Mode) -> Mode {
        let level = self.namespaces.get(namespace).copied().unwrap_or_default();
        inherit(own, inherit(level, self.mesh))
    }

    /// What is served, by resource name.
    pub(crate) fn authorizations(&self) -> BTreeMap<String, Authorization> {
        let mut served = BTreeMap::new();
        if self.any {
            let strict = vec![Rule {
                clauses: vec![nobody()],
            }];
            let name = Name::new(&self.root, STATIC_STRICT);
            served.insert(name.to_string(), policy(&name, strict));
        }
        for selecting in self.selecting.values().flatten() {
            if let Verdict::ByPort(rules) = &selecting.verdict {
                let name = converted(&selecting.name);
                served.insert(name.to_string(), policy(&name, rules.clone()));
            }
        }
        served
    }

    /// Resource names of what the pod gets.
    pub(crate) fn selecting(&self, _: &Cluster, name: &Name, pod: &Pod) -> Option<String> {
        let of_namespace = self.selecting.get(&name.namespace).into_iter().flatten();
        let oldest = of_namespace.into_iter().find(|selecting| {
            selects(
                selecting.object.spec.selector.as_ref(),
                labels(&pod.metadata),
            )
        });
        let strict = || Some(Name::new(&self.root, STATIC_STRICT).to_string());
        match oldest.map(|selecting| (&selecting.name, &selecting.verdict)) {
            Some((_, Verdict::Open)) => None,
            Some((_, Verdict::Strict)) => strict(),
            Some((name, Verdict::ByPort(_))) => Some(converted(name).to_string()),
            None if self.base(&name.namespace, Mode::Unset) == Mode::Strict => strict(),
            None => None,
        }
    }
}

/// What ports of a workload come to, given the mode of all others.
fn verdict(strict: bool, ports: &[(u16, bool)]) -> Verdict {
    let ports_that_are = |wanted: bool| {
        ports
            .iter()
            .filter(move |(_, is)| *is == wanted)
            .map(|(port, _)| *port)
    };
    if strict {
        let exceptions: Vec<u32> = ports_that_are(false).map(u32::from).collect();
        if exceptions.is_empty() {
            return Verdict::Strict;
        }
        let other_port = clause(Match {
            not_destination_ports: exceptions,
            ..Match::default()
        });
        Verdict::ByPort(vec![Rule {
            clauses: vec![nobody(), other_port],
        }])
    } else {
        // A rule for each: rules are alternatives, clauses are not.
        let rules: Vec<Rule> = ports_that_are(true)
            .map(|port| {
                let port = Match {
                    destination_ports: vec![u32::from(port)],
                    ..Match::default()
                };
                Rule {
                    clauses: vec![nobody(), clause(port)],
                }
            })
            .collect();
        if rules.is_empty() {
            Verdict::Open
        } else {
            Verdict::ByPort(rules)
        }
    }
}

/// Matches a connection without an identity.
fn nobody() -> Clause {
    let somebody = StringMatch {
        match_type: Some(MatchType::Presence(())),
    };
    clause(Match {
        not_principals: vec![somebody],
        ..Match::default()
    })
}

fn clause(found: Match) -> Clause {
    Clause {
        matches: vec![found],
    }
}

fn policy(name: &Name, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        ..Authorization::default()
    }
}

fn converted(name: &Name) -> Name {
    Name::new(&name.namespace, format!("{CONVERTED}{}", name.name))
}

fn key(name: &Name) -> Key {
    Key {
        kind: Kind::PeerAuthentication,
        name: name.clone(),
    }
}

fn mode(mtls: Option<&Mtls>) -> Mode {
    mtls.and_then(|mtls| mtls.mode).unwrap_or_default()
}

fn inherit(own: Mode, above: Mode) -> Mode {
    if own == Mode::Unset { above } else { own }
}

fn has_selector(object: &PeerAuthentication) -> bool {
    let labels = object
        .spec
        .selector
        .as_ref()
        .and_then(|selector| selector.match_labels.as_ref());
    labels.is_some_and(|labels| !labels.is_empty())
}

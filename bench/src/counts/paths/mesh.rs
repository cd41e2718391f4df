//! A mesh of any size, always the same.

use std::net::{IpAddr, Ipv4Addr};

use ambit_model::address::Vip;
use ambit_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};
use ambit_model::service::{Port, Service, ServiceKey};
use ambit_model::update::{Change, apply};
use ambit_model::workload::{Protocol, Workload};
use ambit_model::{Identity, Text, View};
use anyhow::Result;

/// Workloads behind one service.
const BEHIND: usize = 10;
/// Workloads of one namespace.
const OF_A_NAMESPACE: usize = 50;
/// Pods of one node.
const OF_A_NODE: usize = 25;
/// The port that services are called on, and the one behind it.
pub(crate) const PORT: Port = Port {
    service_port: 80,
    target_port: 8080,
};

/// The namespace of a workload.
pub(crate) fn namespace(workload: usize) -> String {
    format!("team-{}", workload / OF_A_NAMESPACE)
}

/// The service that a workload is behind: its namespace and host name, and its address.
pub(crate) fn service(workload: usize) -> Result<(ServiceKey, IpAddr)> {
    let (number, namespace) = (workload / BEHIND, namespace(workload));
    let host = format!("app-{number}.{namespace}.svc.cluster.local");
    Ok((ServiceKey::new(namespace, host), address(96, number)?))
}

fn address(range: u8, number: usize) -> Result<IpAddr> {
    let [_, _, high, low] = u32::try_from(number)?.to_be_bytes();
    Ok(Ipv4Addr::new(10, range, high, low).into())
}

/// Pods reached by tunnel, ten behind each service and fifty in each namespace. With policies: one of the mesh that denies by
/// address, and in each namespace one that denies by namespace and one that allows eight callers by name and the mesh's own.
pub(crate) fn mesh(size: usize, policies: bool) -> Result<View> {
    let mut changes = Vec::new();
    for number in 0..size {
        let (key, vip) = service(number)?;
        if number % BEHIND == 0 {
            changes.push(Change::UpsertService(Service {
                vips: vec![Vip::single(Text::empty(), vip)],
                ports: vec![PORT],
                ..Service::new(key.clone())
            }));
        }
        changes.push(Change::UpsertWorkload(workload(number, key)?));
        if policies && number % OF_A_NAMESPACE == 0 {
            changes.extend(of_namespace(&namespace(number)).map(Change::UpsertPolicy));
        }
    }
    if policies {
        let blocks = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"];
        let blocks: Result<Vec<ipnet::IpNet>, _> = blocks.iter().map(|text| text.parse()).collect();
        let from = Match {
            source_ips: blocks?.into_iter().map(Into::into).collect(),
            ..Match::default()
        };
        let key = PolicyKey::new("istio-system", "no-strangers");
        changes.push(Change::UpsertPolicy(policy(
            key,
            Scope::Global,
            Action::Deny,
            vec![vec![from]],
        )));
    }
    Ok(apply(&View::default(), changes))
}

fn workload(number: usize, service: ServiceKey) -> Result<Workload> {
    let (namespace, name) = (namespace(number), format!("pod-{number}"));
    let account = format!("app-{}", number / BEHIND);
    let identity = Identity::new("cluster.local", &namespace, &account)?;
    let uid = format!("Kubernetes//Pod/{namespace}/{name}");
    let mut workload = Workload::new(uid.into(), &name, identity);
    workload.addresses.push(address(244, number)?);
    workload.protocol = Protocol::Hbone;
    workload.node = format!("node-{}", number / OF_A_NODE).into();
    workload.services.insert(service, vec![PORT]);
    Ok(workload)
}

fn of_namespace(namespace: &str) -> [Policy; 2] {
    let denied = Match {
        namespaces: vec![StringMatch::Exact("quarantine".into()).into()],
        ..Match::default()
    };
    let named = (0..8).map(|caller| format!("cluster.local/ns/elsewhere/sa/caller-{caller}"));
    let named = named.map(|principal| StringMatch::Exact(principal.into()).into());
    let callers = Match {
        principals: named
            .chain([StringMatch::Prefix("cluster.local/ns/team-".into()).into()])
            .collect(),
        ..Match::default()
    };
    let port = Match {
        destination_ports: vec![PORT.target_port.into()],
        ..Match::default()
    };
    let key = |name: &str| PolicyKey::new(namespace, name);
    [
        policy(
            key("no-quarantined"),
            Scope::Namespace,
            Action::Deny,
            vec![vec![denied]],
        ),
        policy(
            key("callers"),
            Scope::Namespace,
            Action::Allow,
            vec![vec![callers], vec![port]],
        ),
    ]
}

fn policy(key: PolicyKey, scope: Scope, action: Action, clauses: Vec<Vec<Match>>) -> Policy {
    let clauses = clauses.into_iter().map(|matches| Clause { matches });
    Policy {
        key,
        scope,
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: clauses.collect(),
        }],
        not_understood: Vec::new(),
    }
}

/// Uniform numbers, the same in each run (SplitMix64).
pub(crate) fn random() -> impl FnMut() -> u64 {
    let mut state: u64 = 1;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The number of the workload that is a run's so-manieth caller or callee: all of a mesh's in turn, no two neighbours after each
/// other.
pub(crate) fn pick(turn: usize, size: usize) -> usize {
    turn.wrapping_mul(7919) % size
}

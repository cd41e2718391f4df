//! Whole resources of istiod's shape, and what is made of them.

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use prost::Message;

use super::sample::{self, Service};
use super::{Compiler, Kind, Rejected};
use crate::endpoints::Transport;
use crate::plan::{Plan, Target, Upstream, UpstreamProtocol};
use crate::routes::Action;

fn clusters(compiler: &mut Compiler, list: &[ProtoCluster]) -> Vec<Rejected> {
    let bytes: Vec<_> = list
        .iter()
        .map(|one| (one.name.clone(), one.encode_to_vec()))
        .collect();
    update(compiler, Kind::Cluster, &bytes)
}

fn listeners(compiler: &mut Compiler, list: &[Listener]) -> Vec<Rejected> {
    let bytes: Vec<_> = list
        .iter()
        .map(|one| (one.name.clone(), one.encode_to_vec()))
        .collect();
    update(compiler, Kind::Listener, &bytes)
}

fn endpoints(compiler: &mut Compiler, list: &[ClusterLoadAssignment]) -> Vec<Rejected> {
    let bytes: Vec<_> = list
        .iter()
        .map(|one| (one.cluster_name.clone(), one.encode_to_vec()))
        .collect();
    update(compiler, Kind::Endpoints, &bytes)
}

fn update(compiler: &mut Compiler, kind: Kind, list: &[(String, Vec<u8>)]) -> Vec<Rejected> {
    let changed = list
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    compiler.update(kind, changed, [])
}

const CART: Service = Service {
    host: "cart.shop.svc",
    vip: "10.96.0.1",
    http: true,
};
const ECHO: Service = Service {
    host: "echo.shop.svc",
    vip: "10.96.0.2",
    http: false,
};

/// Two services, accepted whole.
fn whole() -> (Compiler, Plan) {
    let mut compiler = Compiler::default();
    let list = [
        sample::main_cluster(),
        sample::onward_cluster(),
        CART.cluster(),
        ECHO.cluster(),
    ];
    assert_eq!(clusters(&mut compiler, &list), []);
    let list = [
        sample::terminate(),
        sample::originate(),
        sample::main(&[&CART, &ECHO]),
    ];
    assert_eq!(listeners(&mut compiler, &list), []);
    assert_eq!(compiler.endpoint_lists(), [CART.name(), ECHO.name()]);
    let lists = [
        CART.endpoints(&["10.1.0.1:8080"]),
        ECHO.endpoints(&["10.1.0.2:9000"]),
    ];
    assert_eq!(endpoints(&mut compiler, &lists), []);
    assert_eq!(compiler.warnings(), Vec::<String>::new());
    assert!(compiler.ready());
    let plan = compiler.plan();
    (compiler, plan)
}

fn chain(plan: &Plan, to: &str) -> Option<String> {
    match plan.target(to.parse().unwrap())? {
        Target::Tcp(chain) => Some(format!("tcp {}", chain.name)),
        Target::Http(chain) => Some(format!("http {}", chain.name)),
        Target::Sniff { .. } => Some("sniff".to_owned()),
        Target::Refused(name) => Some(format!("refused {name}")),
    }
}

#[test]
fn istiods_graph_becomes_a_plan() {
    let (_, plan) = whole();
    let tunnel = plan.tunnel.as_ref().unwrap();
    assert_eq!(
        tunnel
            .trust_domains
            .iter()
            .map(|d| &**d)
            .collect::<Vec<_>>(),
        ["cluster.local"]
    );
    assert_eq!(tunnel.max_streams, 100);
    assert_eq!(plan.onward.idle_timeout.as_secs(), 3600);

    assert_eq!(
        chain(&plan, "10.96.0.1:80"),
        Some(format!("http {}", CART.name()))
    );
    assert_eq!(
        chain(&plan, "10.96.0.2:80"),
        Some(format!("tcp {}", ECHO.name()))
    );
    assert_eq!(chain(&plan, "10.96.0.1:81"), None);
    assert_eq!(chain(&plan, "10.96.0.9:80"), None);

    let Some(Target::Http(http)) = plan.target("10.96.0.1:80".parse().unwrap()) else {
        panic!()
    };
    assert_eq!(http.settings.server.as_ref().unwrap(), "istio-envoy");
    assert_eq!(&*http.settings.upgrades[0], "websocket");
    assert!(http.settings.path.normalize);
    assert!(http.reporter.is_some());
    assert!(http.filters.is_empty());
    let route = &http.routes.hosts()[0].routes[0];
    let Action::Forward(forward) = &route.action else {
        panic!()
    };
    assert_eq!(&*forward.choose(0).unwrap().cluster, CART.name());
    assert_eq!(forward.timeout, None);
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.grpc_unavailable && !retry.on.server_error);
    assert_eq!((retry.retries, retry.reselect), (2, 5));

    let cluster = plan.cluster(&CART.name()).unwrap();
    assert_eq!(&*cluster.service.as_ref().unwrap().name, "cart");
    assert_eq!(cluster.protocol, UpstreamProtocol::Http1);
    let Upstream::Endpoints(endpoints) = &cluster.upstream else {
        panic!()
    };
    let endpoint = &endpoints.all()[0];
    assert_eq!(endpoint.address, "10.1.0.1:8080".parse().unwrap());
    assert_eq!(
        endpoint.transport,
        Transport::Hbone("10.1.0.1:15008".parse().unwrap())
    );
    assert_eq!(&*endpoint.workload.as_ref().unwrap().canonical_name, "cart");
}

#[test]
fn a_bad_chain_is_refused_by_path_and_the_rest_applies() {
    let (mut compiler, _) = whole();
    // The policy of one service cannot be understood; the other one moves to another address.
    let moved = Service {
        vip: "10.96.0.3",
        ..ECHO
    };
    let mut main = sample::main(&[&CART, &moved]);
    sample::add_filter(&mut main, 0, sample::unknown_filter());
    let rejected = listeners(&mut compiler, &[main.clone()]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].name, "main_internal");
    let reason = &rejected[0].reason;
    assert!(
        reason.contains(&format!("filter_chains[{:?}]", CART.name())),
        "{reason}"
    );
    assert!(
        reason.contains("example.Unknown is not supported"),
        "{reason}"
    );
    let plan = compiler.plan();
    // The refused chain is the one before; the other is new.
    assert_eq!(
        chain(&plan, "10.96.0.1:80"),
        Some(format!("http {}", CART.name()))
    );
    assert_eq!(
        chain(&plan, "10.96.0.3:80"),
        Some(format!("tcp {}", ECHO.name()))
    );
    assert_eq!(chain(&plan, "10.96.0.2:80"), None);

    // Without a version before there is nothing to fall back to: connections are refused.
    let mut fresh = Compiler::default();
    assert_eq!(listeners(&mut fresh, &[main]).len(), 1);
    assert!(!fresh.ready());
    let plan = fresh.plan();
    assert_eq!(
        chain(&plan, "10.96.0.1:80"),
        Some(format!("refused {}", CART.name()))
    );
    assert_eq!(
        chain(&plan, "10.96.0.3:80"),
        Some(format!("tcp {}", ECHO.name()))
    );
}

#[test]
fn a_bad_resource_keeps_its_last_good_version() {
    let (mut compiler, before) = whole();
    let garbage = [("main_internal".to_owned(), vec![0xff, 0xff, 0xff])];
    let rejected = update(&mut compiler, Kind::Listener, &garbage);
    assert!(
        rejected[0].reason.contains("does not decode"),
        "{rejected:?}"
    );
    let other = Listener {
        name: "0.0.0.0_80".to_owned(),
        ..Listener::default()
    };
    assert!(
        listeners(&mut compiler, &[other])[0]
            .reason
            .contains("no listener of a waypoint")
    );
    let mut cluster = CART.cluster();
    cluster.lb_policy = 2;
    let rejected = clusters(&mut compiler, &[cluster]);
    assert!(rejected[0].reason.contains("RING_HASH"), "{rejected:?}");
    let mut terminate = sample::terminate();
    terminate.filter_chains[0].transport_socket = None;
    assert!(
        listeners(&mut compiler, &[terminate])[0]
            .reason
            .contains("transport socket")
    );
    let plan = compiler.plan();
    assert_eq!(chain(&plan, "10.96.0.1:80"), chain(&before, "10.96.0.1:80"));
    assert!(plan.tunnel.is_some());
    assert!(plan.cluster(&CART.name()).is_some());
    assert!(compiler.ready());
}

#[test]
fn clusters_are_warm_once_their_endpoints_are_known() {
    let mut compiler = Compiler::default();
    clusters(&mut compiler, &[CART.cluster()]);
    assert!(compiler.plan().cluster(&CART.name()).is_none());
    endpoints(&mut compiler, &[CART.endpoints(&[])]);
    assert!(compiler.plan().cluster(&CART.name()).is_some());
}

#[test]
fn endpoint_changes_leave_everything_else_in_place() {
    let (mut compiler, before) = whole();
    endpoints(
        &mut compiler,
        &[CART.endpoints(&["10.1.0.1:8080", "10.1.0.7:8080"])],
    );
    let after = compiler.plan();
    let shared = |name: &str| {
        let (a, b) = (before.cluster(name).unwrap(), after.cluster(name).unwrap());
        std::sync::Arc::ptr_eq(a, b)
    };
    assert!(!shared(&CART.name()));
    assert!(shared(&ECHO.name()));
    assert!(std::sync::Arc::ptr_eq(&before.dispatch, &after.dispatch));
    let rejected = endpoints(&mut compiler, &[CART.endpoints(&["10.1.0.1:0"])]);
    assert!(
        rejected[0].reason.contains("lb_endpoints[0]"),
        "{rejected:?}"
    );
    let plan = compiler.plan();
    let Upstream::Endpoints(kept) = &plan.cluster(&CART.name()).unwrap().upstream else {
        panic!()
    };
    assert_eq!(kept.all().len(), 2);
}

#[test]
fn what_is_removed_is_gone() {
    let (mut compiler, _) = whole();
    let cart = CART.name();
    compiler.update(Kind::Cluster, [], [cart.as_str()]);
    compiler.update(Kind::Listener, [], ["connect_terminate", "main_internal"]);
    let plan = compiler.plan();
    assert!(plan.cluster(&cart).is_none());
    assert!(plan.tunnel.is_none());
    assert_eq!(chain(&plan, "10.96.0.2:80"), None);
    assert_eq!(compiler.endpoint_lists(), [ECHO.name()]);
}

#[test]
fn a_matcher_that_names_no_chain_refuses_that_destination() {
    let mut compiler = Compiler::default();
    let mut main = sample::main(&[&CART, &ECHO]);
    main.filter_chains.remove(0);
    let rejected = listeners(&mut compiler, &[main]);
    assert!(
        rejected[0].reason.contains("does not exist"),
        "{rejected:?}"
    );
    let plan = compiler.plan();
    assert_eq!(
        chain(&plan, "10.96.0.1:80"),
        Some(format!("refused {}", CART.name()))
    );
    assert_eq!(
        chain(&plan, "10.96.0.2:80"),
        Some(format!("tcp {}", ECHO.name()))
    );
}

#[test]
fn an_unnamed_port_is_told_by_its_first_bytes() {
    let mut compiler = Compiler::default();
    let main = sample::sniffed(&CART, &ECHO);
    assert_eq!(listeners(&mut compiler, &[main]), []);
    assert_eq!(
        chain(&compiler.plan(), "10.96.0.1:80").as_deref(),
        Some("sniff")
    );
}

/// A filter that denies everybody everything.
fn deny_all() -> envoy_types::pb::google::protobuf::Any {
    use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
    use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
    use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac};
    use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
    let policy = Policy {
        permissions: vec![Permission {
            rule: Some(Rule::Any(true)),
        }],
        principals: vec![Principal {
            identifier: Some(Identifier::Any(true)),
        }],
        ..Policy::default()
    };
    let rules = Rbac {
        action: 1,
        policies: [("deny-all".to_owned(), policy)].into(),
        ..Rbac::default()
    };
    sample::any(&NetworkRbac {
        rules: Some(rules),
        ..NetworkRbac::default()
    })
}

#[test]
fn a_policy_in_front_of_http_is_a_filter_of_its_chain() {
    let mut compiler = Compiler::default();
    let mut main = sample::main(&[&CART]);
    sample::add_filter(&mut main, 0, deny_all());
    assert_eq!(listeners(&mut compiler, &[main]), []);
    let plan = compiler.plan();
    let Some(Target::Http(chain)) = plan.target("10.96.0.1:80".parse().unwrap()) else {
        panic!()
    };
    let crate::filter::Filter::Rules(rules) = &chain.filters[0] else {
        panic!()
    };
    assert_eq!(&*rules.policies[0].name, "deny-all");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    /// Whatever bytes come, there is an answer and no panic, and what was in force stays or is
    /// replaced whole.
    #[test]
    fn damaged_resources_are_refused_or_compiled_and_never_panic(
        changes in proptest::collection::vec((0usize..4096, proptest::num::u8::ANY), 1..6),
        cut in proptest::option::of(0usize..4096),
        which in 0usize..5,
    ) {
        let mut main = sample::main(&[&CART, &ECHO]);
        sample::add_filter(&mut main, 0, deny_all());
        let (kind, name, mut bytes) = match which {
            0 => (Kind::Listener, "main_internal".to_owned(), main.encode_to_vec()),
            1 => (Kind::Listener, "connect_terminate".to_owned(), sample::terminate().encode_to_vec()),
            2 => (Kind::Cluster, "connect_originate".to_owned(), sample::onward_cluster().encode_to_vec()),
            3 => (Kind::Cluster, CART.name(), CART.cluster().encode_to_vec()),
            _ => (Kind::Endpoints, CART.name(), CART.endpoints(&["10.1.0.1:80"]).encode_to_vec()),
        };
        let length = bytes.len();
        for (at, value) in changes {
            bytes[at % length] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % length);
        }
        let (mut compiler, _) = whole();
        let rejected = update(&mut compiler, kind, &[(name, bytes)]);
        let plan = compiler.plan();
        if !rejected.is_empty() {
            proptest::prop_assert!(plan.cluster(&CART.name()).is_some());
            proptest::prop_assert!(plan.tunnel.is_some());
        }
    }
}

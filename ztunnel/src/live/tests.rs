//! Which connections a change of the view ends.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_model::admit::{self, Arrival, Inbound};
use ambit_model::identity::Identity;
use ambit_model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch, Value,
};
use ambit_model::reason::Reason;
use ambit_model::update::Change;
use ambit_model::workload::{Protocol, Workload};
use ambit_tls::authority::{Request, Root};
use ambit_tls::csr::KeyAndCsr;
use ambit_tls::revocation::Lists;
use ambit_tls::{Limits, Peer, Revocations, Svid, Terms, accept, connect};
use futures_util::FutureExt;

use super::{Carried, Decided, Guard, Live};
use crate::store::Store;

fn identity(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

fn workload(name: &str, address: &str) -> Workload {
    let mut workload = Workload::new(format!("c//Pod/shop/{name}").into(), name, identity(name));
    workload.addresses.push(address.parse().unwrap());
    workload.protocol = Protocol::Hbone;
    workload
}

fn deny(name: &str, principal: &str) -> Change {
    let matches = Match {
        principals: vec![Value::Known(StringMatch::Exact(principal.into()))],
        ..Match::default()
    };
    Change::UpsertPolicy(Policy {
        key: PolicyKey::new("shop", name),
        scope: Scope::Namespace,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![matches],
            }],
        }],
        not_understood: Vec::new(),
    })
}

fn store() -> Store {
    let store = Store::default();
    store.apply(
        [workload("web", "10.0.0.1"), workload("cart", "10.0.0.2")].map(Change::UpsertWorkload),
    );
    store
}

fn inbound(store: &Store, live: &Rc<Live>, from: &str) -> Guard {
    let authority = ambit_wire::Authority::parse(b"10.0.0.2:8080").unwrap();
    let peer = identity(from);
    let source = "10.0.0.1:4000".parse().unwrap();
    let inbound = Inbound {
        local: "c//Pod/shop/cart",
        connection: "10.0.0.2:15008".parse().unwrap(),
        peer_address: source,
        arrival: Arrival::Tunnel {
            authority: &authority,
            peer: &peer,
        },
    };
    let admitted = store.read(|view| admit::admit(view, &inbound)).unwrap();
    live.register(&Rc::from("uid"), Decided::Inbound(admitted), source, None)
}

fn outbound(store: &Store, live: &Rc<Live>) -> Guard {
    let (source, upstream) = store.read(|view| {
        let find = |name| Arc::clone(view.workload(name).unwrap());
        (find("c//Pod/shop/web"), find("c//Pod/shop/cart"))
    });
    let carried = Carried {
        source,
        upstream: Some(upstream),
        next_hop: "10.0.0.2:15008".parse().unwrap(),
        protocol: "HBONE",
        wanted: "10.0.0.2:80".parse().unwrap(),
    };
    let client = "10.0.0.1:4000".parse().unwrap();
    live.register(&Rc::from("uid"), Decided::Outbound(carried), client, None)
}

#[tokio::test]
async fn a_new_policy_ends_what_it_forbids_and_nothing_else() {
    let (store, live) = (store(), Rc::new(Live::default()));
    let web = inbound(&store, &live, "web");
    let other = inbound(&store, &live, "other");
    store.apply([deny("no-web", "cluster.local/ns/shop/sa/web")]);
    assert_eq!(live.recheck(&store, |_| false).await, 1);
    let refusal = web.ended().now_or_never().unwrap();
    assert_eq!(refusal.reason, Reason::PolicyChanged);
    assert_eq!(refusal.policy, Some(PolicyKey::new("shop", "no-web")));
    assert!(other.ended().now_or_never().is_none());
    assert_eq!(live.recheck(&store, |_| false).await, 0, "told once");
    drop((web, other));
    assert_eq!(live.open(), 0);
}

#[tokio::test]
async fn a_policy_that_a_workload_comes_to_list_counts_too() {
    let (store, live) = (store(), Rc::new(Live::default()));
    let guard = inbound(&store, &live, "web");
    let Change::UpsertPolicy(mut policy) = deny("picked", "cluster.local/ns/shop/sa/web") else {
        unreachable!()
    };
    policy.scope = Scope::WorkloadSelector;
    store.apply([Change::UpsertPolicy(policy)]);
    assert_eq!(live.recheck(&store, |_| false).await, 0);
    let mut cart = workload("cart", "10.0.0.2");
    cart.policies.push(PolicyKey::new("shop", "picked"));
    store.apply([Change::UpsertWorkload(cart)]);
    assert_eq!(live.recheck(&store, |_| false).await, 1);
    assert!(guard.ended().now_or_never().is_some());
}

#[tokio::test]
async fn a_listed_policy_that_is_not_known_is_waited_for_while_the_pod_may_wait() {
    let (store, live) = (store(), Rc::new(Live::default()));
    let guard = inbound(&store, &live, "web");
    let mut cart = workload("cart", "10.0.0.2");
    cart.policies.push(PolicyKey::new("shop", "late"));
    store.apply([Change::UpsertWorkload(cart)]);
    assert_eq!(live.recheck(&store, |pod| pod == "uid").await, 0);
    assert!(guard.ended().now_or_never().is_none());
    assert_eq!(live.recheck(&store, |_| false).await, 1);
    let refusal = guard.ended().now_or_never().unwrap();
    assert_eq!(refusal.reason, Reason::PolicyUnresolved);
    assert_eq!(refusal.to_string(), "policy is not known yet: shop/late");
}

#[tokio::test]
async fn wakes_the_connection_it_ends() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (store, live) = (store(), Rc::new(Live::default()));
            let guard = inbound(&store, &live, "web");
            let waiting = tokio::task::spawn_local(async move { guard.ended().await });
            tokio::task::yield_now().await;
            store.apply([deny("no-web", "cluster.local/ns/shop/sa/web")]);
            live.recheck(&store, |_| false).await;
            assert_eq!(waiting.await.unwrap().reason, Reason::PolicyChanged);
        })
        .await;
}

#[tokio::test]
async fn an_outbound_connection_ends_when_its_far_end_becomes_somebody_else() {
    let (store, live) = (store(), Rc::new(Live::default()));
    let guard = outbound(&store, &live);
    store.apply([Change::RemoveAddress("c//Pod/shop/cart".into())]);
    assert_eq!(
        live.recheck(&store, |_| false).await,
        0,
        "a pod that goes away may finish"
    );
    let mut heir = workload("heir", "10.0.0.2");
    heir.uid = "c//Pod/shop/heir".into();
    store.apply([Change::UpsertWorkload(heir)]);
    assert_eq!(live.recheck(&store, |_| false).await, 1);
    assert_eq!(
        guard.ended().now_or_never().unwrap().reason,
        Reason::PeerIdentityMismatch
    );
}

#[tokio::test]
async fn every_turn_is_asked() {
    let (store, live) = (store(), Rc::new(Live::default()));
    let guards: Vec<_> = (0..1000).map(|_| inbound(&store, &live, "web")).collect();
    store.apply([deny("no-web", "cluster.local/ns/shop/sa/web")]);
    assert_eq!(live.recheck(&store, |_| false).await, 1000);
    assert_eq!(live.list().len(), guards.len());
}

const DAY: Duration = Duration::from_secs(86_400);

fn svid(root: &Root, name: &str, revocations: &Revocations) -> Arc<Svid> {
    let asked = KeyAndCsr::generate(&identity(name)).unwrap();
    let request = Request::from_pem(&asked.csr_pem).unwrap();
    let now = SystemTime::now();
    let chain = root.issue(&request, &identity(name), now, DAY).unwrap();
    let terms = Terms {
        revocations: revocations.clone(),
        ..Terms::default()
    };
    Svid::from_chain_on(&asked.key, &chain, &terms).unwrap()
}

/// Who `web` is to a server that looks at `revocations`, and a list that takes its certificate back.
async fn peer(revocations: &Revocations) -> (Peer, Lists) {
    let root = Root::generate("mesh", SystemTime::now(), 10 * DAY).unwrap();
    let (web, cart) = (
        svid(&root, "web", revocations),
        svid(&root, "cart", revocations),
    );
    let (near, far) = tokio::io::duplex(16 * 1024);
    let expected = [identity("cart")];
    let (client, server) = tokio::join!(
        connect(&web, near, &expected, Limits::default()),
        accept(&cart, far, Limits::default())
    );
    client.unwrap();
    let key = rcgen::KeyPair::from_pem(&root.key_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root.certificate_pem(), key).unwrap();
    let digit = |at| u8::from_str_radix(&web.serial()[at..at + 2], 16).unwrap();
    let serial: Vec<u8> = (0..web.serial().len()).step_by(2).map(digit).collect();
    let entry = rcgen::RevokedCertParams {
        serial_number: rcgen::SerialNumber::from_slice(&serial),
        revocation_time: rcgen::date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2096, 1, 1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![entry],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).unwrap().pem().unwrap();
    (server.unwrap().1, Lists::read(list.as_bytes()).unwrap())
}

#[tokio::test]
async fn a_revoked_certificate_ends_what_rests_on_it_now_and_later() {
    let (store, live) = (store(), Rc::new(Live::default()));
    let lists = Revocations::watched();
    let ((web, take_back), (other, _)) = (peer(&lists).await, peer(&lists).await);
    let of_web = inbound(&store, &live, "web");
    let of_both = outbound(&store, &live);
    let of_other = inbound(&store, &live, "other");
    let of_nobody = inbound(&store, &live, "web");
    for (guard, peers) in [
        (&of_web, &[&web][..]),
        (&of_both, &[&other, &web]),
        (&of_other, &[&other]),
    ] {
        for peer in peers {
            guard.rests_on(peer.lineage().unwrap(), &lists);
        }
    }
    assert_eq!(live.recheck_proofs(&lists).await, 0);
    lists.put(take_back);
    assert_eq!(live.recheck_proofs(&lists).await, 2);
    for guard in [&of_web, &of_both] {
        assert_eq!(
            guard.ended().now_or_never().unwrap().reason,
            Reason::Revoked
        );
    }
    for guard in [&of_other, &of_nobody] {
        assert!(guard.ended().now_or_never().is_none());
    }
    assert_eq!(live.recheck_proofs(&lists).await, 0, "told once");
    // What comes to rest on it between the lists and the asking is not asked: it is told.
    let late = inbound(&store, &live, "web");
    late.rests_on(web.lineage().unwrap(), &lists);
    assert_eq!(late.ended().now_or_never().unwrap().reason, Reason::Revoked);
}

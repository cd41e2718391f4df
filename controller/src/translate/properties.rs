//! What holds for every order and every history of the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use ambit_objects::{Object, Objects, parse};
use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ambit_proto::type_url::{ADDRESS, AUTHORIZATION};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, proptest};
use proptest::sample::{Index, subsequence};

use super::translate;
use crate::config::Mesh;
use crate::publish::{Published, Scope};
use crate::serve::session::Session;

/// The example with policies for node proxies.
fn shop() -> String {
    let policies = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: node, namespace: shop}
spec: {selector: {matchLabels: {app: cart}}, action: DENY, rules: [{from: [{source: {ipBlocks: [192.0.2.0/24]}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: thief, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{port: 80}]}
";
    format!("{}{policies}", include_str!("../../tests/shop.yaml"))
}

fn objects() -> Vec<Object> {
    let parsed = parse::parse(Path::new("test.yaml"), &shop());
    assert_eq!(parsed.problems, []);
    let found = parsed.objects.into_iter();
    found.map(|found| found.object).collect()
}

fn publish(list: &[Object], before: Option<&Published>) -> Published {
    let mut objects = Objects::default();
    for object in list {
        objects.insert(object.clone());
    }
    let (cluster, resources) = translate(Arc::new(objects), Mesh::default());
    Published::new(cluster, resources, before)
}

/// Version and bytes.
type Sent = (String, Vec<u8>);

/// Everything that is sent, by view, type and name, and everything that is told.
fn served(published: &Published) -> (BTreeMap<String, Sent>, Vec<String>) {
    let mut all = BTreeMap::new();
    for (view, type_url, table) in published.tables() {
        for (name, entry) in table {
            let value = (entry.version.clone(), entry.payload.to_vec());
            all.insert(format!("{view} {type_url} {name}"), value);
        }
    }
    let told = published.findings.iter().map(ToString::to_string);
    (all, told.collect())
}

fn some() -> impl Strategy<Value = Vec<Object>> {
    let all = objects();
    let most = all.len();
    subsequence(all, 0..=most)
}

/// A node proxy that has everything of `published`.
fn node(published: &Published) -> Session {
    let mut session = Session::new(Scope::Node);
    for type_url in [ADDRESS, AUTHORIZATION] {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        session.request(published, request).unwrap();
    }
    session
}

/// Names added or changed, and names removed, of one type.
fn sent(responses: &[DeltaDiscoveryResponse], type_url: &str) -> (BTreeSet<String>, Vec<String>) {
    let of_type = || responses.iter().filter(|one| one.type_url == type_url);
    let resources = of_type().flat_map(|one| &one.resources);
    let removed = of_type().flat_map(|one| &one.removed_resources);
    (
        resources.map(|resource| resource.name.clone()).collect(),
        removed.cloned().collect(),
    )
}

/// Documents that are refused, each for another reason.
const BAD: &[&str] = &[
    "a: [b\n",
    "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop}\n",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a/b, namespace: shop}\n",
    "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec: {ports: [{port: eighty}]}\n",
    "apiVersion: v1\nkind: Nonsense\nmetadata: {name: bad, namespace: shop}\n",
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bad, namespace: shop}\nspec: {action: DENNY, rules: [{}]}\n",
    "- a\n- list\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_order_of_objects_gives_the_same_bytes(list in Just(objects()).prop_shuffle()) {
        proptest::prop_assert_eq!(served(&publish(&list, None)), served(&publish(&objects(), None)));
    }

    /// What was there before leaves no trace, however it was reached.
    #[test]
    fn any_history_gives_the_same_bytes(history in prop::collection::vec(some(), 1..4), last in some()) {
        let mut before = None;
        for list in &history {
            before = Some(publish(list, before.as_ref()));
        }
        let now = publish(&last, before.as_ref());
        proptest::prop_assert_eq!(served(&now), served(&publish(&last, None)));
    }

    /// What goes is said to be gone, what differs is sent, and nothing else is.
    #[test]
    fn a_change_is_sent_exactly(from in some(), to in some()) {
        let before = publish(&from, None);
        let after = publish(&to, Some(&before));
        let responses = node(&before).publish(&after);
        for type_url in [ADDRESS, AUTHORIZATION] {
            let was = before.table(&Scope::Node, type_url).unwrap();
            let is = after.table(&Scope::Node, type_url).unwrap();
            let (new, removed) = sent(&responses, type_url);
            let gone: Vec<String> = was.keys().filter(|name| !is.contains_key(*name)).cloned().collect();
            let differs = is.iter().filter(|(name, entry)| {
                was.get(*name).map(|old| &old.payload) != Some(&entry.payload)
            });
            proptest::prop_assert_eq!(removed, gone);
            proptest::prop_assert_eq!(new, differs.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>());
        }
    }

    /// A document that is refused is told at its own lines; all others are in force.
    #[test]
    fn a_bad_document_costs_only_itself(bad in prop::sample::select(BAD), place in any::<Index>()) {
        let text = shop();
        let mut documents: Vec<&str> = text.split("---\n").collect();
        let place = place.index(documents.len() + 1);
        documents.insert(place, bad);
        let lines = |documents: &[&str]| documents.join("---\n").lines().count() + 1;
        let first = if place == 0 { 1 } else { lines(&documents[..place]) + 1 };
        let last = first + bad.lines().count();
        let parsed = parse::parse(Path::new("test.yaml"), &documents.join("---\n"));
        proptest::prop_assert!(!parsed.problems.is_empty());
        for problem in &parsed.problems {
            proptest::prop_assert!((first..=last).contains(&problem.line), "{} not in {}..{}", problem, first, last);
        }
        let list: Vec<Object> = parsed.objects.into_iter().map(|found| found.object).collect();
        proptest::prop_assert_eq!(served(&publish(&list, None)), served(&publish(&objects(), None)));
    }
}

#[test]
fn what_nothing_refers_to_goes_without_a_trace() {
    let all = objects();
    let before = publish(&all, None);
    let table: &[(&str, &str, &str)] = &[
        ("Pod shop/cart-1", ADDRESS, "Kubernetes//Pod/shop/cart-1"),
        (
            "Service shop/outside",
            ADDRESS,
            "shop/outside.shop.svc.cluster.local",
        ),
    ];
    for (object, type_url, name) in table {
        let without: Vec<Object> = all
            .iter()
            .filter(|one| one.key().to_string() != *object)
            .cloned()
            .collect();
        assert_eq!(without.len() + 1, all.len(), "{object}");
        let responses = node(&before).publish(&publish(&without, Some(&before)));
        let (new, removed) = sent(&responses, type_url);
        assert!(
            removed.contains(&(*name).to_owned()),
            "{object}: {removed:?}"
        );
        assert_eq!(new, BTreeSet::new(), "{object}");
        assert_eq!(responses.len(), 1, "{object}: {responses:?}");
    }
}

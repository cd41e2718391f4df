use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use ambit_objects::{Name, Objects};
use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status};
use ambit_proto::type_url::{ADDRESS, AUTHORIZATION, CLUSTER, ENDPOINT, LISTENER, WORKLOAD};
use proptest::prelude::{Strategy, prop, proptest};

use super::{Misbehaved, Reaction, Session};
use crate::config::Mesh;
use crate::publish::{Published, Scope};
use crate::translate::translate;

const SHOP: &str = include_str!("../../../tests/shop.yaml");

fn publish(text: &str) -> Published {
    let objects = Arc::new(Objects::from_text(Path::new("test.yaml"), text));
    let (cluster, resources) = translate(objects, Mesh::default());
    Published::new(cluster, resources, None)
}

fn policy(name: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: cart}}}}}}\n"
    )
}

fn subscribe(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

fn only(reaction: Reaction) -> DeltaDiscoveryResponse {
    assert_eq!(reaction.responses.len(), 1);
    reaction.responses.into_iter().next().unwrap()
}

/// The types of a publication's responses, in order, each with what it adds and removes.
fn steps(responses: &[DeltaDiscoveryResponse]) -> Vec<(&str, Vec<&str>, Vec<&str>)> {
    responses
        .iter()
        .map(|response| {
            let short = response.type_url.rsplit('.').next().unwrap();
            let removed = response
                .removed_resources
                .iter()
                .map(String::as_str)
                .collect();
            (short, names(response), removed)
        })
        .collect()
}

fn node() -> Session {
    Session::new(Scope::Node)
}

fn waypoint() -> Session {
    Session::new(Scope::Waypoint(Name::new("shop", "waypoint")))
}

#[test]
fn an_empty_first_request_gets_everything_and_an_ack_nothing() {
    let published = publish(SHOP);
    let mut session = node();
    let first = only(
        session
            .request(&published, subscribe(ADDRESS, &[]))
            .unwrap(),
    );
    assert_eq!(first.resources.len(), 12, "{:?}", names(&first));
    assert!(
        first
            .resources
            .iter()
            .all(|resource| !resource.version.is_empty())
    );
    let ack = DeltaDiscoveryRequest {
        response_nonce: first.nonce,
        ..subscribe(ADDRESS, &[])
    };
    assert_eq!(
        session.request(&published, ack).unwrap(),
        Reaction::default()
    );
    assert_eq!(session.publish(&published), []);
}

#[test]
fn a_type_without_resources_is_answered_all_the_same() {
    let published = publish("");
    for type_url in [ADDRESS, AUTHORIZATION, "type.googleapis.com/unknown.Type"] {
        let answer = only(
            node()
                .request(&published, subscribe(type_url, &[]))
                .unwrap(),
        );
        assert_eq!(answer.resources, []);
        assert_ne!(answer.nonce, "");
    }
}

#[test]
fn who_comes_back_gets_only_what_it_lacks() {
    let published = publish(SHOP);
    let mut all = BTreeMap::new();
    for resource in only(node().request(&published, subscribe(ADDRESS, &[])).unwrap()).resources {
        all.insert(resource.name, resource.version);
    }
    all.insert(
        "shop/web.shop.svc.cluster.local".to_owned(),
        "older".to_owned(),
    );
    all.insert(
        "shop/gone.shop.svc.cluster.local".to_owned(),
        "any".to_owned(),
    );
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: all,
        ..subscribe(ADDRESS, &[])
    };
    let answer = only(node().request(&published, again).unwrap());
    assert_eq!(names(&answer), ["shop/web.shop.svc.cluster.local"]);
    assert_eq!(
        answer.removed_resources,
        ["shop/gone.shop.svc.cluster.local"]
    );
}

#[test]
fn a_refusal_is_reported_and_not_repeated() {
    let published = publish(SHOP);
    let mut session = node();
    let first = only(
        session
            .request(&published, subscribe(ADDRESS, &[]))
            .unwrap(),
    );
    let nack = DeltaDiscoveryRequest {
        response_nonce: first.nonce,
        error_detail: Some(Status {
            message: "web: no".to_owned(),
            ..Status::default()
        }),
        ..subscribe(ADDRESS, &[])
    };
    let reaction = session.request(&published, nack).unwrap();
    assert_eq!(reaction.rejection.unwrap().message, "web: no");
    assert_eq!(reaction.responses, []);
    assert_eq!(session.publish(&published), []);
}

#[test]
fn policies_arrive_before_who_names_them_and_leave_after() {
    let without = publish(SHOP);
    let with = publish(&format!("{SHOP}{}", policy("p")));
    let mut session = node();
    for type_url in [ADDRESS, AUTHORIZATION] {
        session.request(&without, subscribe(type_url, &[])).unwrap();
    }
    let cart = vec!["Kubernetes//Pod/shop/cart-1"];
    assert_eq!(
        steps(&session.publish(&with)),
        [
            ("Authorization", vec!["shop/p"], vec![]),
            ("Address", cart.clone(), vec![])
        ]
    );
    assert_eq!(
        steps(&session.publish(&without)),
        [
            ("Address", cart, vec![]),
            ("Authorization", vec![], vec!["shop/p"])
        ]
    );
}

#[test]
fn clusters_arrive_before_endpoints_before_listeners_and_leave_last() {
    let without = publish(SHOP);
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: new, namespace: shop}\nspec: {clusterIP: 10.96.1.1, selector: {app: cart}, ports: [{name: http, port: 80}]}\n";
    let with = publish(&format!("{SHOP}{service}"));
    let mut session = waypoint();
    let name = "inbound-vip|80|http|new.shop.svc.cluster.local";
    for (type_url, names) in [
        (CLUSTER, vec![]),
        (LISTENER, vec![]),
        (ENDPOINT, vec![name]),
    ] {
        session
            .request(&without, subscribe(type_url, &names))
            .unwrap();
    }
    assert_eq!(
        steps(&session.publish(&with)),
        [
            ("Cluster", vec![name], vec![]),
            ("ClusterLoadAssignment", vec![name], vec![]),
            ("Listener", vec!["main_internal"], vec![]),
        ]
    );
    assert_eq!(
        steps(&session.publish(&without)),
        [
            ("Listener", vec!["main_internal"], vec![]),
            ("Cluster", vec![], vec![name]),
            ("ClusterLoadAssignment", vec![], vec![name]),
        ]
    );
}

#[test]
fn endpoints_of_a_changed_cluster_come_again() {
    let before = publish(SHOP);
    let after = publish(&SHOP.replace("name: http2-api, port: 8080", "name: http-api, port: 8080"));
    let mut session = waypoint();
    let name = "inbound-vip|8080|http|guest.other.svc.cluster.local";
    session.request(&before, subscribe(CLUSTER, &[])).unwrap();
    session
        .request(&before, subscribe(ENDPOINT, &[name]))
        .unwrap();
    let responses = session.publish(&after);
    assert_eq!(
        steps(&responses),
        [
            ("Cluster", vec![name], vec![]),
            ("ClusterLoadAssignment", vec![name], vec![])
        ]
    );
}

#[test]
fn named_resources_are_found_by_name_and_by_address() {
    let published = publish(SHOP);
    let mut session = node();
    let answer = only(session.request(&published, on_demand("", &[])).unwrap());
    assert_eq!(names(&answer), Vec::<&str>::new());

    let asked = subscribe(ADDRESS, &["/10.96.0.2", "shop/none.shop.svc.cluster.local"]);
    let answer = only(session.request(&published, asked).unwrap());
    // With a service come the workloads behind it.
    assert_eq!(
        names(&answer),
        [
            "Kubernetes//Pod/shop/cart-1",
            "shop/cart.shop.svc.cluster.local"
        ]
    );
    let service = answer.resources.last().unwrap();
    assert!(service.aliases.contains(&"/10.96.0.2".to_owned()));
    assert_eq!(
        answer.removed_resources,
        ["shop/none.shop.svc.cluster.local"]
    );

    let again = only(
        session
            .request(
                &published,
                subscribe(ADDRESS, &["shop/cart.shop.svc.cluster.local"]),
            )
            .unwrap(),
    );
    assert_eq!(again.resources.len(), 1, "who asks again gets it again");
}

/// The first request of a client on `node` that asks for what it needs, and has these.
fn on_demand(node: &str, held: &[&str]) -> DeltaDiscoveryRequest {
    let held = held.iter().map(|name| ((*name).to_owned(), String::new()));
    let name = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(node.to_owned())),
    };
    let metadata = prost_types::Struct {
        fields: [("NODE_NAME".to_owned(), name)].into(),
    };
    DeltaDiscoveryRequest {
        node: Some(ambit_proto::discovery::Node {
            metadata: Some(metadata),
            ..Default::default()
        }),
        resource_names_unsubscribe: vec!["*".to_owned()],
        initial_resource_versions: held.collect(),
        ..subscribe(ADDRESS, &["*"])
    }
}

#[test]
fn a_client_on_demand_has_the_workloads_of_its_node_without_asking() {
    let published = publish(SHOP);
    let mut session = node();
    let first = on_demand("node-1", &[]);
    let answer = only(session.request(&published, first).unwrap());
    let sent = names(&answer);
    assert!(sent.contains(&"Kubernetes//Pod/shop/cart-1"), "{sent:?}");
    assert!(sent.contains(&"Kubernetes//Pod/shop/web-1"), "{sent:?}");
    assert!(!sent.iter().any(|name| name.contains("svc")), "{sent:?}");
    assert_eq!(session.publish(&published), []);
}

#[test]
fn what_a_client_on_demand_was_sent_or_has_stays_subscribed_until_it_gives_it_back() {
    let published = publish(SHOP);
    let gone = publish("");
    let (pod, cart) = (
        "Kubernetes//Pod/shop/cart-1",
        "shop/cart.shop.svc.cluster.local",
    );
    // By another name, which is then given back.
    let mut session = node();
    only(session.request(&published, on_demand("", &[])).unwrap());
    only(
        session
            .request(&published, subscribe(ADDRESS, &["/10.96.0.2"]))
            .unwrap(),
    );
    let back = |name: &str| DeltaDiscoveryRequest {
        type_url: ADDRESS.to_owned(),
        resource_names_unsubscribe: vec![name.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    let silent = session.request(&published, back("/10.96.0.2")).unwrap();
    assert_eq!(silent, Reaction::default());
    assert_eq!(
        steps(&session.publish(&gone)),
        [("Address", vec![], vec![pod, cart])]
    );
    // It comes back by itself.
    assert_eq!(
        steps(&session.publish(&published)),
        [("Address", vec![pod, cart], vec![])]
    );
    session.publish(&gone);
    for name in [pod, cart] {
        session.request(&gone, back(name)).unwrap();
    }
    assert_eq!(session.publish(&published), []);

    // On the next stream, by what it says that it has.
    let mut session = node();
    let first = on_demand("", &[pod, "Kubernetes//Pod/shop/gone"]);
    let answer = only(session.request(&published, first).unwrap());
    assert_eq!(names(&answer), [pod]);
    assert_eq!(answer.removed_resources, ["Kubernetes//Pod/shop/gone"]);
}

#[test]
fn who_asks_again_by_address_gets_it_again() {
    let published = publish(SHOP);
    let mut session = node();
    let asked = || subscribe(ADDRESS, &["/10.96.0.2"]);
    for time in ["first", "second"] {
        let answer = only(session.request(&published, asked()).unwrap());
        assert_eq!(
            names(&answer),
            ["shop/cart.shop.svc.cluster.local"],
            "{time}"
        );
    }
    assert_eq!(session.publish(&published), []);
}

#[test]
fn who_wants_everything_again_after_it_did_not_gets_everything_again() {
    let published = publish(SHOP);
    let mut session = node();
    let all = only(
        session
            .request(&published, subscribe(ADDRESS, &["*"]))
            .unwrap(),
    );
    let no_more = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..subscribe(ADDRESS, &[])
    };
    assert_eq!(
        session.request(&published, no_more).unwrap(),
        Reaction::default()
    );
    assert_eq!(session.publish(&publish("")), [], "it holds nothing");
    let again = only(
        session
            .request(&published, subscribe(ADDRESS, &["*"]))
            .unwrap(),
    );
    assert_eq!(names(&again), names(&all));
}

#[test]
fn a_client_sees_nothing_of_other_views() {
    let published = publish(SHOP);
    for type_url in [LISTENER, CLUSTER, ENDPOINT] {
        let answer = only(
            node()
                .request(&published, subscribe(type_url, &["*"]))
                .unwrap(),
        );
        assert_eq!(answer.resources, [], "{type_url}");
    }
    for type_url in [ADDRESS, AUTHORIZATION] {
        let answer = only(
            waypoint()
                .request(&published, subscribe(type_url, &[]))
                .unwrap(),
        );
        assert_eq!(answer.resources, [], "{type_url}");
    }
    let other = Scope::Waypoint(Name::new("other", "waypoint"));
    let answer = only(
        Session::new(other)
            .request(&published, subscribe(LISTENER, &[]))
            .unwrap(),
    );
    assert_eq!(answer.resources, []);
    let workloads = only(
        waypoint()
            .request(&published, subscribe(WORKLOAD, &[]))
            .unwrap(),
    );
    assert!(
        workloads
            .resources
            .iter()
            .all(|one| one.name.starts_with("Kubernetes/"))
    );
}

#[test]
fn a_client_cannot_grow_without_bound() {
    let published = publish("");
    let mut session = node();
    let mut outcome = Ok(Reaction::default());
    for index in 0..40 {
        outcome = session.request(&published, subscribe(&format!("type/{index}"), &[]));
    }
    assert_eq!(outcome, Err(Misbehaved::Types));
    let many: Vec<String> = (0..100_001).map(|index| index.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(
        node().request(&published, subscribe(ADDRESS, &many)),
        Err(Misbehaved::Names)
    );
}

/// A client that does as it is told.
#[derive(Default)]
struct Client(BTreeMap<String, BTreeMap<String, String>>);

impl Client {
    fn take(&mut self, responses: Vec<DeltaDiscoveryResponse>) {
        for response in responses {
            let held = self.0.entry(response.type_url).or_default();
            for resource in response.resources {
                held.insert(resource.name, resource.version);
            }
            for name in response.removed_resources {
                held.remove(&name);
            }
        }
    }
}

fn worlds() -> impl Strategy<Value = Vec<(BTreeSet<u8>, bool)>> {
    prop::collection::vec(
        (prop::collection::btree_set(0..5_u8, 0..5), prop::bool::ANY),
        1..8,
    )
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    /// Whatever came before, and whether or not the stream was cut in between, the client ends with
    /// exactly what is published.
    #[test]
    fn a_client_ends_with_what_is_published(worlds in worlds()) {
        let mut client = Client::default();
        let mut session = node();
        let mut last = publish("");
        for (policies, cut) in worlds {
            let text: String = policies.iter().map(|index| policy(&format!("p{index}"))).collect();
            last = publish(&format!("{SHOP}{text}"));
            if cut {
                session = node();
            }
            for type_url in [ADDRESS, AUTHORIZATION] {
                if session.held().contains_key(type_url) {
                    continue;
                }
                let held = client.0.get(type_url).cloned().unwrap_or_default();
                let request = DeltaDiscoveryRequest { initial_resource_versions: held, ..subscribe(type_url, &[]) };
                client.take(session.request(&last, request).unwrap().responses);
            }
            client.take(session.publish(&last));
        }
        for type_url in [ADDRESS, AUTHORIZATION] {
            let published: BTreeMap<String, String> = last
                .table(&Scope::Node, type_url)
                .unwrap()
                .iter()
                .map(|(name, entry)| (name.clone(), entry.version.clone()))
                .collect();
            proptest::prop_assert_eq!(client.0.get(type_url).cloned().unwrap_or_default(), published);
        }
    }
}

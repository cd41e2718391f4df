use std::collections::HashMap;

use ambit_proto::discovery::Resource as Sent;
use proptest::prelude::*;

use super::*;

const A: &str = "type.googleapis.com/test.A";
const B: &str = "type.googleapis.com/test.B";

/// Keeps everything but payloads that begin with `bad`.
#[derive(Default)]
struct Store {
    kept: HashMap<String, Bytes>,
    wanted: Option<BTreeSet<String>>,
}

impl Handler for Store {
    fn update(&mut self, update: Update) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for resource in update.resources {
            if resource.payload.starts_with(b"bad") {
                rejected.push(Rejected {
                    name: resource.name,
                    reason: "field: bad".to_owned(),
                });
            } else {
                self.kept.insert(resource.name, resource.payload);
            }
        }
        update
            .removed
            .iter()
            .for_each(|name| drop(self.kept.remove(name)));
        rejected
    }

    fn wanted(&self, type_url: &str) -> Option<BTreeSet<String>> {
        assert_eq!(type_url, B, "asked only for types by name");
        self.wanted.clone()
    }
}

fn sent(name: &str, version: &str, payload: &str) -> Sent {
    let any = prost_types::Any {
        type_url: A.to_owned(),
        value: payload.into(),
    };
    Sent {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(any),
        ..Sent::default()
    }
}

fn response(nonce: &str, resources: Vec<Sent>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: A.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn session(subscriptions: Vec<Subscription>) -> Session {
    Session::new(
        Node {
            id: "n".to_owned(),
            ..Node::default()
        },
        subscriptions,
    )
}

#[test]
fn first_requests_follow_the_order_and_carry_the_node() {
    let mut session = session(vec![Subscription::all(B), Subscription::all(A)]);
    let requests = session.open();
    let types: Vec<_> = requests
        .iter()
        .map(|request| request.type_url.as_str())
        .collect();
    assert_eq!(types, [B, A]);
    for request in requests {
        assert_eq!(request.node.unwrap().id, "n");
        assert!(
            request.resource_names_subscribe.is_empty(),
            "an empty list means all"
        );
        assert!(request.response_nonce.is_empty());
    }
}

#[test]
fn acknowledges_and_names_versions_on_the_next_stream() {
    let mut session = session(vec![Subscription::all(A)]);
    let mut store = Store::default();
    session.open();
    let first = response("1", vec![sent("x", "7", "ok"), sent("y", "8", "ok")], &[]);
    let answer = session.receive(first, &mut store);
    assert_eq!(
        (
            answer.reply.response_nonce.as_str(),
            answer.reply.error_detail
        ),
        ("1", None)
    );
    assert!(answer.reply.initial_resource_versions.is_empty());
    session.receive(response("2", vec![], &["y"]), &mut store);
    let again = session.open().remove(0);
    assert_eq!(
        again
            .initial_resource_versions
            .into_iter()
            .collect::<Vec<_>>(),
        [("x".to_owned(), "7".to_owned())]
    );
    assert_eq!(store.kept.len(), 1);
}

#[test]
fn refuses_one_resource_by_name_and_keeps_the_rest() {
    let mut session = session(vec![Subscription::all(A)]);
    let mut store = Store::default();
    session.open();
    session.receive(response("1", vec![sent("x", "1", "old")], &[]), &mut store);
    let mixed = response("2", vec![sent("x", "2", "bad"), sent("y", "1", "ok")], &[]);
    let answer = session.receive(mixed, &mut store);
    assert_eq!(answer.reply.response_nonce, "2");
    assert_eq!(answer.reply.error_detail.unwrap().message, "x: field: bad");
    assert_eq!(
        store.kept["x"], "old",
        "the last accepted version stays in force"
    );
    assert_eq!(store.kept["y"], "ok");
    let versions = session.versions(A).unwrap();
    assert_eq!((versions["x"].as_str(), versions["y"].as_str()), ("1", "1"));
}

#[test]
fn a_resource_without_content_or_of_another_type_is_refused() {
    let mut session = session(vec![Subscription::all(A)]);
    let mut store = Store::default();
    session.open();
    let empty = Sent {
        resource: None,
        ..sent("x", "1", "")
    };
    let mut other = sent("y", "1", "ok");
    other.resource.as_mut().unwrap().type_url = B.to_owned();
    let answer = session.receive(response("1", vec![empty, other], &[]), &mut store);
    let text = answer.reply.error_detail.unwrap().message;
    assert_eq!(text, format!("x: resource: missing; y: resource: is a {B}"));
    assert!(store.kept.is_empty());
}

#[test]
fn a_heartbeat_is_not_refused() {
    let mut session = session(vec![Subscription::all(A)]);
    let mut store = Store::default();
    session.open();
    session.receive(response("1", vec![sent("x", "1", "ok")], &[]), &mut store);
    let beat = Sent {
        resource: None,
        ..sent("x", "1", "")
    };
    let answer = session.receive(response("2", vec![beat], &[]), &mut store);
    assert_eq!(answer.reply.error_detail, None);
    assert_eq!(session.versions(A).unwrap()["x"], "1");
}

#[test]
fn a_type_nobody_asked_for_is_acknowledged_and_ignored() {
    let mut session = session(vec![Subscription::all(A)]);
    session.open();
    let odd = DeltaDiscoveryResponse {
        type_url: B.to_owned(),
        ..response("5", vec![], &[])
    };
    let answer = session.receive(odd, &mut Store::default());
    assert_eq!(
        (
            answer.reply.type_url.as_str(),
            answer.reply.response_nonce.as_str()
        ),
        (B, "5")
    );
    assert_eq!(answer.reply.error_detail, None);
    assert!(!session.synced());
}

#[test]
fn a_refused_first_response_counts_as_synced() {
    let mut session = session(vec![Subscription::all(A), Subscription::by_name(B)]);
    session.open();
    assert!(!session.synced());
    assert_eq!(session.pending(), [A, B]);
    session.receive(
        response("1", vec![sent("x", "1", "bad")], &[]),
        &mut Store::default(),
    );
    assert!(
        session.synced(),
        "no names of B are wanted, so B has nothing to wait for"
    );
}

#[test]
fn names_follow_the_handler_s_wish() {
    let mut session = session(vec![Subscription::all(A), Subscription::by_name(B)]);
    let mut store = Store::default();
    assert_eq!(
        session.open().len(),
        1,
        "an empty list of names would mean all"
    );
    store.wanted = Some(names(&["b1", "b2"]));
    let mut follow_up = session
        .receive(response("1", vec![], &[]), &mut store)
        .follow_up;
    let first = follow_up.remove(0);
    assert_eq!(first.resource_names_subscribe, ["b1", "b2"]);
    assert!(first.node.is_some(), "the first request of the type");
    assert!(!session.synced());
    let mut known = sent("b1", "1", "ok");
    known.resource.as_mut().unwrap().type_url = B.to_owned();
    let known = DeltaDiscoveryResponse {
        type_url: B.to_owned(),
        ..response("2", vec![known], &[])
    };
    assert!(session.receive(known, &mut store).follow_up.is_empty());
    assert!(session.synced());
    store.wanted = Some(names(&["b2", "b3"]));
    let mut follow_up = session
        .receive(response("3", vec![], &[]), &mut store)
        .follow_up;
    let change = follow_up.remove(0);
    assert_eq!(change.resource_names_subscribe, ["b3"]);
    assert_eq!(change.resource_names_unsubscribe, ["b1"]);
    assert!(
        session.versions(B).unwrap().is_empty(),
        "what is not wanted is not held"
    );
    assert_eq!(session.open()[1].resource_names_subscribe, ["b2", "b3"]);
}

#[test]
fn the_text_of_a_nack_is_bounded() {
    let rejected: Vec<_> = (0..100_000)
        .map(|n| Rejected {
            name: format!("workload-{n}"),
            reason: "x".repeat(50),
        })
        .collect();
    let text = nack_text(&rejected);
    assert!(text.len() < MAX_NACK + 100, "{}", text.len());
    assert!(text.contains("more"));
    let one = [Rejected {
        name: "n".to_owned(),
        reason: "é".repeat(10_000),
    }];
    assert!(nack_text(&one).len() < MAX_NACK + 100);
}

#[derive(Debug, Clone)]
enum Step {
    Put { name: u8, version: u8, bad: bool },
    Remove { name: u8 },
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, any::<u8>(), any::<bool>())
            .prop_map(|(name, version, bad)| Step::Put { name, version, bad }),
        2 => (0u8..6).prop_map(|name| Step::Remove { name }),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    /// The versions we claim to hold are exactly those of what the handler has in force.
    #[test]
    fn claimed_versions_equal_what_is_in_force(steps in prop::collection::vec(step(), 0..60)) {
        let mut session = session(vec![Subscription::all(A)]);
        let mut store = Store::default();
        let mut claimed = session.open().remove(0).initial_resource_versions;
        prop_assert!(claimed.is_empty());
        for (nonce, step) in steps.into_iter().enumerate() {
            let nonce = nonce.to_string();
            let message = match step {
                Step::Put { name, version, bad } => {
                    let version = version.to_string();
                    let payload = if bad { "bad".to_owned() } else { version.clone() };
                    response(&nonce, vec![sent(&name.to_string(), &version, &payload)], &[])
                }
                Step::Remove { name } => response(&nonce, vec![], &[&name.to_string()]),
                Step::Reconnect => {
                    claimed = session.open().remove(0).initial_resource_versions;
                    let held = session.versions(A).unwrap();
                    prop_assert_eq!(&claimed, held);
                    continue;
                }
            };
            let answer = session.receive(message, &mut store);
            prop_assert_eq!(&answer.reply.response_nonce, &nonce);
            prop_assert_eq!(answer.reply.error_detail.is_some(), !answer.rejected.is_empty());
        }
        let held = session.versions(A).unwrap();
        prop_assert_eq!(held.len(), store.kept.len());
        for (name, version) in held {
            prop_assert_eq!(store.kept[name].as_ref(), version.as_bytes());
        }
    }
}

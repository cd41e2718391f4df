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
                    name: resource.name.to_string(),
                    reason: "field: bad".to_owned(),
                });
            } else {
                self.kept
                    .insert(resource.name.to_string(), resource.payload);
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
    assert_eq!((&*versions["x"], &*versions["y"]), ("1", "1"));
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
    assert_eq!(&*session.versions(A).unwrap()["x"], "1");
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
                    let held = held.iter();
                    let held: Vec<_> = held.map(|(name, version)| (&**name, &**version)).collect();
                    let claimed: Vec<_> = claimed.iter().map(|(name, version)| (&**name, &**version)).collect();
                    prop_assert_eq!(claimed, held);
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
            prop_assert_eq!(store.kept[&**name].as_ref(), version.as_bytes());
        }
    }
}

/// What a client on demand asks for, and what it was told.
#[derive(Default)]
struct OnDemand {
    wanted: BTreeSet<String>,
    answers: Vec<(String, bool)>,
    refused: Vec<String>,
}

impl Handler for OnDemand {
    fn update(&mut self, update: Update) -> Vec<Rejected> {
        let bad = update.resources.iter();
        bad.filter(|resource| resource.payload.starts_with(b"bad"))
            .map(|resource| Rejected {
                name: resource.name.to_string(),
                reason: "field: bad".to_owned(),
            })
            .collect()
    }

    fn wanted(&self, _type_url: &str) -> Option<BTreeSet<String>> {
        Some(self.wanted.clone())
    }

    fn answered(&mut self, _type_url: &str, answers: Vec<Answered>) {
        for Answered {
            name,
            exists,
            refused,
        } in answers
        {
            self.wanted.remove(&name);
            if refused {
                self.refused.push(name.clone());
            }
            self.answers.push((name, exists));
        }
    }
}

impl OnDemand {
    /// Asks for one more name: what is to be sent.
    fn ask(&mut self, session: &mut Session, name: &str) -> Vec<(Vec<String>, Vec<String>)> {
        self.wanted.insert(name.to_owned());
        lists(session.follow_up(self))
    }
}

/// What requests subscribe to and give back.
fn lists(requests: Vec<DeltaDiscoveryRequest>) -> Vec<(Vec<String>, Vec<String>)> {
    let each = requests.into_iter().map(|request| {
        assert!(request.response_nonce.is_empty());
        (
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        )
    });
    each.collect()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn on_demand_nothing_is_subscribed_at_first_and_readiness_does_not_wait() {
    let mut session = session(vec![Subscription::on_demand(A), Subscription::all(B)]);
    let requests = lists(session.open());
    assert_eq!(requests[0], (texts(&["*"]), texts(&["*"])));
    assert_eq!(requests[1], (vec![], vec![]));
    assert!(!session.synced());
    let other = DeltaDiscoveryResponse {
        type_url: B.to_owned(),
        ..DeltaDiscoveryResponse::default()
    };
    session.receive(other, &mut OnDemand::default());
    assert!(session.synced());
}

#[test]
fn a_name_is_asked_once_and_answered_by_name_alias_or_absence() {
    let mut session = session(vec![Subscription::on_demand(A)]);
    let mut client = OnDemand::default();
    session.open();
    assert_eq!(
        client.ask(&mut session, "/10.0.0.1"),
        [(texts(&["/10.0.0.1"]), vec![])]
    );
    assert_eq!(
        client.ask(&mut session, "shop/cart"),
        [(texts(&["shop/cart"]), vec![])]
    );
    assert_eq!(
        client.ask(&mut session, "/192.0.2.1"),
        [(texts(&["/192.0.2.1"]), vec![])]
    );
    let mut pod = sent("uid", "1", "ok");
    pod.aliases = texts(&["/10.0.0.1"]);
    let all = response(
        "1",
        vec![pod, sent("shop/cart", "1", "ok")],
        &["/192.0.2.1"],
    );
    let answer = session.receive(all, &mut client);
    let mut answers = client.answers.clone();
    answers.sort();
    let told = |name: &str, exists| (name.to_owned(), exists);
    assert_eq!(
        answers,
        [
            told("/10.0.0.1", true),
            told("/192.0.2.1", false),
            told("shop/cart", true)
        ]
    );
    // What is not held by that name is given back, so that it can be asked again.
    assert_eq!(
        lists(answer.follow_up),
        [(vec![], texts(&["/10.0.0.1", "/192.0.2.1"]))]
    );
    assert_eq!(
        client.ask(&mut session, "/192.0.2.1"),
        [(texts(&["/192.0.2.1"]), vec![])]
    );
    // The next stream asks for what is open, and says what is held.
    let again = session.open().remove(0);
    assert_eq!(again.resource_names_subscribe, ["*", "/192.0.2.1"]);
    assert_eq!(again.resource_names_unsubscribe, ["*"]);
    let held: Vec<_> = again.initial_resource_versions.into_keys().collect();
    assert_eq!(held, ["shop/cart", "uid"]);
}

#[test]
fn what_was_held_and_is_removed_is_given_back() {
    let mut session = session(vec![Subscription::on_demand(A)]);
    let mut client = OnDemand::default();
    session.open();
    session.receive(
        response("1", vec![sent("uid", "1", "ok")], &[]),
        &mut client,
    );
    let answer = session.receive(response("2", vec![], &["uid", "other"]), &mut client);
    assert_eq!(lists(answer.follow_up), [(vec![], texts(&["uid"]))]);
}

#[test]
fn a_refused_resource_answers_that_it_exists_and_was_refused() {
    let mut session = session(vec![Subscription::on_demand(A)]);
    let mut client = OnDemand::default();
    session.open();
    client.ask(&mut session, "alias");
    let mut bad = sent("uid", "1", "bad");
    bad.aliases = texts(&["alias"]);
    let answer = session.receive(response("1", vec![bad], &[]), &mut client);
    assert_eq!(client.answers, [("alias".to_owned(), true)]);
    assert_eq!(client.refused, ["alias"]);
    assert_eq!(lists(answer.follow_up), [(vec![], texts(&["alias"]))]);
}

#[test]
fn an_ask_that_nobody_needs_any_more_is_given_back() {
    let mut session = session(vec![Subscription::on_demand(A)]);
    let mut client = OnDemand::default();
    session.open();
    client.ask(&mut session, "a");
    client.wanted.clear();
    assert_eq!(
        client.ask(&mut session, "b"),
        [(vec![], texts(&["a"])), (texts(&["b"]), vec![])]
    );
}
